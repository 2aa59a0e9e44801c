// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proof of knowing the cluster key: HMAC-SHA256 codes for AUTH frames and discovery packets.
 *
 * Protocol (include/mxfs/wire.h): the code of AUTH covers the volume, both nodes with their incarnations, both
 * nonces, the sender's first, so that it proves one side of one connection and cannot be reflected or replayed, and
 * what both have asked for (flags), so that nobody between them can talk them out of it. Codes are compared in
 * constant time.
 * Known weakness: without MXFS_HELLO_ENCRYPT the connection behind AUTH is not signed frame by frame; who can write
 * into a TCP stream can inject. And who can read the disk has the key.
 */
import { createHmac, timingSafeEqual } from "node:crypto";
import { MXFS_DISK_CLUSTER_KEY_SIZE, MXFS_WIRE_MAC_SIZE, MXFS_WIRE_NONCE_SIZE } from "./abi.js";
import { assertU32, assertU64, encodeUtf8, viewOf } from "./error.js";

/** What both sides of a connection have said in HELLO, from the point of view of the one who proves. */
export interface AuthContext {
  readonly volume: bigint;
  readonly sender: number;
  readonly target: number;
  readonly senderIncarnation: number;
  readonly targetIncarnation: number;
  readonly senderNonce: Uint8Array;
  readonly targetNonce: Uint8Array;
  /** MXFS_HELLO_*, as each side has said them. */
  readonly senderFlags: number;
  readonly targetFlags: number;
}

const LABEL = encodeUtf8("mxfs-auth");

/** HMAC-SHA256 of `bytes`. @param key the cluster key, 32 bytes. */
export function hmac(key: Uint8Array, bytes: Uint8Array): Uint8Array {
  if (key.length !== MXFS_DISK_CLUSTER_KEY_SIZE) {
    throw new RangeError(`cluster key: expected ${MXFS_DISK_CLUSTER_KEY_SIZE} bytes, found ${key.length}`);
  }
  return Uint8Array.from(createHmac("sha256", key).update(bytes).digest());
}

/** Compares in constant time; false for a wrong length. */
export function macEquals(expected: Uint8Array, found: Uint8Array): boolean {
  return expected.length === found.length && timingSafeEqual(expected, found);
}

/** 24 bytes: volume, nodes, incarnations, the sender's first. */
export function contextBytes(context: AuthContext): Uint8Array {
  const bytes = new Uint8Array(24);
  const view = viewOf(bytes);
  view.setBigUint64(0, assertU64(context.volume, "volume"), true);
  view.setUint32(8, assertU32(context.sender, "sender"), true);
  view.setUint32(12, assertU32(context.target, "target"), true);
  view.setUint32(16, assertU32(context.senderIncarnation, "sender's incarnation"), true);
  view.setUint32(20, assertU32(context.targetIncarnation, "target's incarnation"), true);
  return bytes;
}

/** The 32 bytes of an AUTH body. @throws RangeError for a key or nonce of the wrong size. */
export function authCode(key: Uint8Array, context: AuthContext): Uint8Array {
  for (const nonce of [context.senderNonce, context.targetNonce]) {
    if (nonce.length !== MXFS_WIRE_NONCE_SIZE) {
      throw new RangeError(`nonce: expected ${MXFS_WIRE_NONCE_SIZE} bytes, found ${nonce.length}`);
    }
  }
  const fixed = contextBytes(context);
  const flagged = context.senderFlags !== 0 || context.targetFlags !== 0;
  const nonceAt = LABEL.length + fixed.length;
  const flagsAt = nonceAt + 2 * MXFS_WIRE_NONCE_SIZE;
  const bytes = new Uint8Array(flagsAt + (flagged ? 8 : 0));
  bytes.set(LABEL, 0);
  bytes.set(fixed, LABEL.length);
  bytes.set(context.senderNonce, nonceAt);
  bytes.set(context.targetNonce, nonceAt + MXFS_WIRE_NONCE_SIZE);
  if (flagged) {
    const view = viewOf(bytes);
    view.setUint32(flagsAt, assertU32(context.senderFlags, "sender's flags"), true);
    view.setUint32(flagsAt + 4, assertU32(context.targetFlags, "target's flags"), true);
  }
  return hmac(key, bytes);
}

/** Whether `code` is the peer's proof; `context` from the peer's point of view (the peer is the sender). */
export function verifyAuth(key: Uint8Array, context: AuthContext, code: Uint8Array): boolean {
  return code.length === MXFS_WIRE_MAC_SIZE && macEquals(authCode(key, context), code);
}
