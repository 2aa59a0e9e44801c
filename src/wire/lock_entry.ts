// SPDX-License-Identifier: GPL-2.0-only
/**
 * struct mxfs_lock_entry (include/mxfs/abi.h): the 64 bytes that name one lock in netlink messages and in TCP
 * frames alike.
 *
 * Protocol: bodies are arrays of entries. `checkLockEntries` looks at every field once, where bytes come in;
 * behind it the hot path reads fields in place (LOCK_ENTRY's offsets, a DataView), and only status commands
 * and tests use the object form.
 * Known weakness: 64-bit fields in the object form are bigint, about ten times slower than the bytes.
 */
import {
  LockModeName,
  MXFS_LKF_CANCEL,
  MXFS_LKF_CONVERT,
  MXFS_LKF_NOQUEUE,
  MXFS_LKF_RECLAIM,
  MXFS_LKF_WAITING,
  MXFS_LOCK_CLIENT_SHIFT,
  MXFS_LOCK_ENTRY_SIZE,
  MXFS_MODE_COUNT,
  ResourceTypeName,
} from "./abi.js";
import { assertU32, assertU64, viewOf, WireError } from "./error.js";

/** Byte offsets of the fields. */
export const LOCK_ENTRY = {
  volume: 0,
  ino: 8,
  offset: 16,
  ag: 24,
  type: 28,
  lockId: 32,
  epoch: 40,
  seq: 48,
  mode: 52,
  granted: 53,
  flags: 54,
  node: 56,
  status: 60,
} as const;

const FLAGS_ALL = MXFS_LKF_NOQUEUE | MXFS_LKF_CONVERT | MXFS_LKF_CANCEL | MXFS_LKF_WAITING | MXFS_LKF_RECLAIM;

/** Largest errno (Linux MAX_ERRNO). */
const ERRNO_MAX = 4095;

/** struct mxfs_resource. */
export interface Resource {
  readonly volume: bigint;
  readonly ino: bigint;
  readonly offset: bigint;
  readonly ag: number;
  /** enum mxfs_resource_type */
  readonly type: number;
}

export interface LockEntry extends Resource {
  readonly lockId: bigint;
  readonly epoch: bigint;
  readonly seq: number;
  /** Wanted (request, convert), granted (grant), blocking (BAST). */
  readonly mode: number;
  /** Held at the time of the message. */
  readonly granted: number;
  /** MXFS_LKF_* */
  readonly flags: number;
  /** The lock's owner. */
  readonly node: number;
  /** Deny: positive errno. */
  readonly status: number;
}

/**
 * Checks a body of entries: whole ones, at least one, every field in its range.
 * @returns how many. @throws WireError WIRE_LENGTH, WIRE_FIELD.
 */
export function checkLockEntries(bytes: Uint8Array, countMax: number): number {
  const count = bytes.length / MXFS_LOCK_ENTRY_SIZE;
  if (!Number.isInteger(count) || count < 1 || count > countMax) {
    throw new WireError(
      "WIRE_LENGTH",
      `lock entries: expected 1 to ${countMax} of ${MXFS_LOCK_ENTRY_SIZE} bytes, found ${bytes.length} bytes`,
    );
  }
  const view = viewOf(bytes);
  for (let at = 0; at < bytes.length; at += MXFS_LOCK_ENTRY_SIZE) {
    const type = view.getUint32(at + LOCK_ENTRY.type, true);
    const mode = view.getUint8(at + LOCK_ENTRY.mode);
    const granted = view.getUint8(at + LOCK_ENTRY.granted);
    const flags = view.getUint16(at + LOCK_ENTRY.flags, true);
    const status = view.getUint32(at + LOCK_ENTRY.status, true);
    if (
      ResourceTypeName[type] === undefined ||
      mode >= MXFS_MODE_COUNT ||
      granted >= MXFS_MODE_COUNT ||
      (flags & ~FLAGS_ALL) !== 0 ||
      status > ERRNO_MAX
    ) {
      throw new WireError(
        "WIRE_FIELD",
        `lock entry ${at / MXFS_LOCK_ENTRY_SIZE}: type ${type}, mode ${mode}, granted ${granted}, flags ` +
          `0x${flags.toString(16)}, status ${status}: one of them is not known to this version`,
      );
    }
  }
  return count;
}

/** Writes one entry at `at`. @throws RangeError when a field does not fit. */
export function encodeLockEntry(entry: LockEntry, into: Uint8Array, at: number): void {
  const view = viewOf(into);
  encodeResource(entry, into, at);
  view.setBigUint64(at + LOCK_ENTRY.lockId, assertU64(entry.lockId, "lock id"), true);
  view.setBigUint64(at + LOCK_ENTRY.epoch, assertU64(entry.epoch, "epoch"), true);
  view.setUint32(at + LOCK_ENTRY.seq, assertU32(entry.seq, "seq"), true);
  view.setUint8(at + LOCK_ENTRY.mode, entry.mode);
  view.setUint8(at + LOCK_ENTRY.granted, entry.granted);
  view.setUint16(at + LOCK_ENTRY.flags, entry.flags, true);
  view.setUint32(at + LOCK_ENTRY.node, assertU32(entry.node, "node"), true);
  view.setUint32(at + LOCK_ENTRY.status, assertU32(entry.status, "status"), true);
}

/** Writes the 32 bytes of a resource at `at`. */
export function encodeResource(resource: Resource, into: Uint8Array, at: number): void {
  const view = viewOf(into);
  view.setBigUint64(at + LOCK_ENTRY.volume, assertU64(resource.volume, "volume"), true);
  view.setBigUint64(at + LOCK_ENTRY.ino, assertU64(resource.ino, "ino"), true);
  view.setBigUint64(at + LOCK_ENTRY.offset, assertU64(resource.offset, "offset"), true);
  view.setUint32(at + LOCK_ENTRY.ag, assertU32(resource.ag, "ag"), true);
  view.setUint32(at + LOCK_ENTRY.type, assertU32(resource.type, "resource type"), true);
}

export function decodeResource(bytes: Uint8Array, at: number): Resource {
  const view = viewOf(bytes);
  return {
    volume: view.getBigUint64(at + LOCK_ENTRY.volume, true),
    ino: view.getBigUint64(at + LOCK_ENTRY.ino, true),
    offset: view.getBigUint64(at + LOCK_ENTRY.offset, true),
    ag: view.getUint32(at + LOCK_ENTRY.ag, true),
    type: view.getUint32(at + LOCK_ENTRY.type, true),
  };
}

/** Reads the entry at `at` of bytes that `checkLockEntries` has accepted. */
export function decodeLockEntry(bytes: Uint8Array, at: number): LockEntry {
  const view = viewOf(bytes);
  return {
    ...decodeResource(bytes, at),
    lockId: view.getBigUint64(at + LOCK_ENTRY.lockId, true),
    epoch: view.getBigUint64(at + LOCK_ENTRY.epoch, true),
    seq: view.getUint32(at + LOCK_ENTRY.seq, true),
    mode: view.getUint8(at + LOCK_ENTRY.mode),
    granted: view.getUint8(at + LOCK_ENTRY.granted),
    flags: view.getUint16(at + LOCK_ENTRY.flags, true),
    node: view.getUint32(at + LOCK_ENTRY.node, true),
    status: view.getUint32(at + LOCK_ENTRY.status, true),
  };
}

/** Entries as one body. */
export function encodeLockEntries(entries: readonly LockEntry[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(entries.length * MXFS_LOCK_ENTRY_SIZE);
  entries.forEach((entry, index) => {
    encodeLockEntry(entry, bytes, index * MXFS_LOCK_ENTRY_SIZE);
  });
  return bytes;
}

/** Checks and reads a body of entries. @throws WireError */
export function decodeLockEntries(bytes: Uint8Array, countMax: number): LockEntry[] {
  const count = checkLockEntries(bytes, countMax);
  return Array.from({ length: count }, (_, index) => decodeLockEntry(bytes, index * MXFS_LOCK_ENTRY_SIZE));
}

/** MXFS_LOCK_CLIENT_* of the entry at `at`: who of the owner node's clients the lock belongs to. */
export function lockClientAt(bytes: Uint8Array, at: number): number {
  return (bytes[at + LOCK_ENTRY.lockId + 7] as number) >>> (MXFS_LOCK_CLIENT_SHIFT - 56);
}

/** One line for logs: "INODE 131:0 lock 4711 of node 1a2b3c4d PR->EX seq 7". */
export function describeLockEntry(entry: LockEntry): string {
  return (
    `${ResourceTypeName[entry.type] ?? entry.type} ${entry.ino}:${entry.offset} lock ${entry.lockId.toString(16)} ` +
    `of node ${entry.node.toString(16)} ${LockModeName[entry.granted] ?? entry.granted}->` +
    `${LockModeName[entry.mode] ?? entry.mode} seq ${entry.seq}`
  );
}
