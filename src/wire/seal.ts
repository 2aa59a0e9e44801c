// SPDX-License-Identifier: GPL-2.0-only
/**
 * Sealed connections: what follows AUTH is encrypted and authenticated in records (include/mxfs/wire.h).
 *
 *   record   0 length u32 of the plain text, 1 to MXFS_SEAL_PLAIN_MAX, little endian; also the additional data
 *            4 AES-256-GCM cipher text, as long as the plain text
 *            4 + length   tag[16]
 *
 * The plain texts of a direction, one after another, are its stream of frames; a record may hold many, or a part of one.
 *
 * Keys: each direction has its own, HKDF-SHA256(secret: cluster key, salt: sender's nonce || target's nonce, info:
 * "mxfs-seal" || volume u64 || sender || target || sender's incarnation || target's), 44 bytes: key[32] iv[12]. The
 * nonces are new for each connection, so a key never is another connection's, and what one side said cannot be sent
 * back to it. Record n (from 0) of a key has the nonce iv XOR n, n as a big endian number of 64 bits in the last 8
 * bytes; it is counted, not sent: a record that was changed, repeated, left out or moved does not open, and that ends
 * the connection. After MXFS_SEAL_KEY_RECORDS records both sides go on with HKDF(secret: key, no salt, "mxfs-rekey"),
 * and count from 0.
 *
 * Known weakness: no forward secrecy. Who has recorded a connection, and comes to know the cluster key (it lies on the
 * shared disk), can read it. And the lengths of records can be seen.
 */
import {
  type CipherGCM,
  createCipheriv,
  createDecipheriv,
  createSecretKey,
  hkdfSync,
  type KeyObject,
} from "node:crypto";
import { MXFS_SEAL_KEY_RECORDS, MXFS_SEAL_PLAIN_MAX, MXFS_SEAL_TAG_SIZE } from "./abi.js";
import { type AuthContext, contextBytes } from "./auth.js";
import { encodeUtf8, viewOf, WireError } from "./error.js";

const CIPHER = "aes-256-gcm";
const KEY_SIZE = 32;
const IV_SIZE = 12;
const HEADER_SIZE = 4;
const LABEL = encodeUtf8("mxfs-seal");
const REKEY_LABEL = encodeUtf8("mxfs-rekey");

/** The secret of one direction of one connection, and how many records it has sealed. */
export class SealKey {
  #key: KeyObject;
  #iv: Uint8Array;
  #records = 0;
  readonly #nonce = new Uint8Array(IV_SIZE);
  readonly #recordsMax: number;

  private constructor(material: Uint8Array, recordsMax: number) {
    this.#recordsMax = recordsMax;
    this.#key = createSecretKey(material.subarray(0, KEY_SIZE));
    this.#iv = material.slice(KEY_SIZE, KEY_SIZE + IV_SIZE);
  }

  /**
   * @param clusterKey 32 bytes. @param context from the point of view of who seals.
   * @param recordsMax for tests.
   */
  static derive(clusterKey: Uint8Array, context: AuthContext, recordsMax = MXFS_SEAL_KEY_RECORDS): SealKey {
    const salt = new Uint8Array([...context.senderNonce, ...context.targetNonce]);
    const info = new Uint8Array([...LABEL, ...contextBytes(context)]);
    return new SealKey(
      new Uint8Array(hkdfSync("sha256", clusterKey, salt, info, KEY_SIZE + IV_SIZE)),
      recordsMax,
    );
  }

  /** Key and nonce of the next record; no two records get the same ones. The nonce is valid until the next call. */
  next(): { readonly key: KeyObject; readonly nonce: Uint8Array } {
    if (this.#records >= this.#recordsMax) this.#rekey();
    const count = this.#records++;
    const nonce = this.#nonce;
    nonce.set(this.#iv);
    const view = viewOf(nonce);
    view.setUint32(4, view.getUint32(4) ^ Math.floor(count / 2 ** 32));
    view.setUint32(8, view.getUint32(8) ^ (count >>> 0));
    return { key: this.#key, nonce };
  }

  #rekey(): void {
    const material = new Uint8Array(
      hkdfSync("sha256", this.#key, new Uint8Array(0), REKEY_LABEL, KEY_SIZE + IV_SIZE),
    );
    this.#key = createSecretKey(material.subarray(0, KEY_SIZE));
    this.#iv = material.slice(KEY_SIZE);
    this.#records = 0;
  }
}

/** Seals one direction. */
export class Sealer {
  constructor(readonly key: SealKey) {}

  /**
   * One record, as pieces to be written one after another.
   * @param plain 1 to MXFS_SEAL_PLAIN_MAX bytes; not kept. @throws RangeError for another length.
   */
  seal(plain: Uint8Array): readonly Uint8Array[] {
    if (plain.length < 1 || plain.length > MXFS_SEAL_PLAIN_MAX) {
      throw new RangeError(`record: expected 1 to ${MXFS_SEAL_PLAIN_MAX} bytes, found ${plain.length}`);
    }
    const { key, nonce } = this.key.next();
    const header = new Uint8Array(HEADER_SIZE);
    viewOf(header).setUint32(0, plain.length, true);
    const cipher: CipherGCM = createCipheriv(CIPHER, key, nonce);
    cipher.setAAD(header);
    const sealed = cipher.update(plain);
    cipher.final();
    return [header, sealed, cipher.getAuthTag()];
  }
}

/** Opens one direction. After an error it stays broken: the connection must be closed. */
export class Opener {
  readonly #header = new Uint8Array(HEADER_SIZE);
  #headerFill = 0;
  /** Cipher text and tag of the record being collected, when it came in pieces. */
  #record: Uint8Array | null = null;
  #recordFill = 0;
  #broken: WireError | null = null;

  constructor(readonly key: SealKey) {}

  /** Whether bytes of an unfinished record are held (an end of the stream now is a truncation). */
  get partial(): boolean {
    return this.#headerFill > 0;
  }

  /** Takes the next bytes of the stream; calls `onPlain` with each record's plain text, only when its tag was right. */
  push(chunk: Uint8Array, onPlain: (plain: Uint8Array) => void): void {
    if (this.#broken !== null) throw this.#broken;
    try {
      let at = 0;
      while (at < chunk.length) {
        if (this.#headerFill < HEADER_SIZE) {
          const taken = Math.min(HEADER_SIZE - this.#headerFill, chunk.length - at);
          this.#header.set(chunk.subarray(at, at + taken), this.#headerFill);
          this.#headerFill += taken;
          at += taken;
          if (this.#headerFill < HEADER_SIZE) return;
        }
        const size = this.#length() + MXFS_SEAL_TAG_SIZE;
        let record: Uint8Array;
        if (this.#record === null && chunk.length - at >= size) {
          record = chunk.subarray(at, at + size);
          at += size;
        } else {
          this.#record ??= new Uint8Array(size);
          const taken = Math.min(size - this.#recordFill, chunk.length - at);
          this.#record.set(chunk.subarray(at, at + taken), this.#recordFill);
          this.#recordFill += taken;
          at += taken;
          if (this.#recordFill < size) return;
          record = this.#record;
        }
        const plain = this.#open(record);
        this.#record = null;
        this.#recordFill = 0;
        this.#headerFill = 0;
        onPlain(plain);
      }
    } catch (error) {
      this.#broken =
        error instanceof WireError
          ? error
          : new WireError("WIRE_MAC", `a record was not taken (${error}): the connection is over`);
      throw error;
    }
  }

  #length(): number {
    const length = viewOf(this.#header).getUint32(0, true);
    if (length < 1 || length > MXFS_SEAL_PLAIN_MAX) {
      throw new WireError(
        "WIRE_LENGTH",
        `sealed record: expected 1 to ${MXFS_SEAL_PLAIN_MAX} bytes, announced ${length}`,
      );
    }
    return length;
  }

  #open(record: Uint8Array): Uint8Array {
    const { key, nonce } = this.key.next();
    const end = record.length - MXFS_SEAL_TAG_SIZE;
    const decipher = createDecipheriv(CIPHER, key, nonce, { authTagLength: MXFS_SEAL_TAG_SIZE });
    decipher.setAAD(this.#header);
    decipher.setAuthTag(record.subarray(end));
    const plain = decipher.update(record.subarray(0, end));
    try {
      decipher.final();
    } catch {
      throw new WireError(
        "WIRE_MAC",
        "a sealed record does not open: it was changed, repeated, left out or moved on its way",
      );
    }
    return plain;
  }
}
