// SPDX-License-Identifier: GPL-2.0-only
/**
 * The one error that decoders of foreign bytes throw, with a stable code for tests, logs and counters, and the
 * checked conversions of 64-bit numbers that every codec needs.
 *
 * Protocol: whoever catches a WireError closes the connection (TCP), drops the packet (UDP) or ends the
 * session (netlink); the bytes behind it are never looked at again.
 * Known weakness: the message quotes what was found, so it may hold a peer's bytes; strings are shortened.
 */

export type WireErrorCode =
  /** Fewer bytes than the structure has. */
  | "WIRE_TRUNCATED"
  /** A length field over its limit, or not fitting what it describes. */
  | "WIRE_LENGTH"
  | "WIRE_MAGIC"
  | "WIRE_VERSION"
  /** A message, command or packet type that is not known, or not allowed here. */
  | "WIRE_TYPE"
  /** A sequence number with a gap, or repeated. */
  | "WIRE_SEQ"
  /** A field's value outside its range. */
  | "WIRE_FIELD"
  /** A body that is not the JSON it should be. */
  | "WIRE_JSON"
  /** From or to another node than the connection's. */
  | "WIRE_ENDPOINT"
  /** Authentication code wrong. */
  | "WIRE_MAC";

export class WireError extends Error {
  override readonly name = "WireError";
  constructor(
    readonly code: WireErrorCode,
    message: string,
  ) {
    super(message);
  }
}

/** At most 80 characters of something foreign, for an error message. */
export function excerpt(value: unknown): string {
  const text = typeof value === "string" ? JSON.stringify(value.slice(0, 100)) : String(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

/** Throws unless `bytes` has `size` bytes at `offset`. */
export function needBytes(bytes: Uint8Array, offset: number, size: number, what: string): void {
  if (bytes.length - offset < size) {
    throw new WireError(
      "WIRE_TRUNCATED",
      `${what}: expected ${size} bytes, found ${Math.max(0, bytes.length - offset)}`,
    );
  }
}

export const U32_MAX = 0xffffffff;
export const U64_MAX = 0xffffffffffffffffn;

/** Throws RangeError (our own mistake, not the peer's) unless an unsigned 32-bit number. */
export function assertU32(value: number, what: string): number {
  if (!Number.isInteger(value) || value < 0 || value > U32_MAX) {
    throw new RangeError(`${what}: expected an unsigned 32-bit number, found ${value}`);
  }
  return value;
}

/** Throws RangeError unless an unsigned 64-bit number. */
export function assertU64(value: bigint, what: string): bigint {
  if (value < 0n || value > U64_MAX) {
    throw new RangeError(`${what}: expected an unsigned 64-bit number, found ${value}`);
  }
  return value;
}

/** Fatal: invalid UTF-8 throws, and a byte order mark is kept as it is. */
const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Strict UTF-8. TextDecoder refuses views of shared memory, hence the copy. */
export function decodeUtf8(bytes: Uint8Array, what: string): string {
  try {
    return UTF8.decode(bytes.slice());
  } catch {
    throw new WireError("WIRE_FIELD", `${what}: expected UTF-8, found ${bytes.length} bytes that are not`);
  }
}

const ENCODER = new TextEncoder();
export function encodeUtf8(text: string): Uint8Array<ArrayBuffer> {
  return ENCODER.encode(text);
}

/** A DataView of exactly these bytes. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** What was thrown, in words. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
