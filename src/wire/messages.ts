// SPDX-License-Identifier: GPL-2.0-only
/**
 * Bodies of the frames (include/mxfs/wire.h, docs/interfaces.md section 6): binary ones for HELLO, AUTH, ERROR
 * and fsop parts (lock entries: lock_entry.ts), JSON objects for the rare cluster messages.
 *
 * Protocol: in JSON a 64-bit number is a string of decimal digits, a 32-bit one a number; every field is
 * checked on the way in and out; fields that are not known are ignored, so that a later version may add some.
 * Known weakness: JSON.parse builds the whole object before any check; the frame's limit (64 KiB) bounds it.
 */
import {
  MXFS_FSOP_PAYLOAD_MAX,
  MXFS_HELLO_ENCRYPT,
  MXFS_HELLO_FSOP,
  MXFS_NL_DATA_MAX,
  MXFS_NODE_COUNT_MAX,
  MXFS_ROLE_MEMBER,
  MXFS_WIRE_BODY_MAX,
  MXFS_WIRE_MAC_SIZE,
  MXFS_WIRE_NONCE_SIZE,
  MXFS_WIRE_VERSION,
  type Role,
  WireType,
  WireTypeName,
} from "./abi.js";
import { parseAddress } from "./address.js";
import {
  assertU32,
  assertU64,
  decodeUtf8,
  encodeUtf8,
  excerpt,
  needBytes,
  U32_MAX,
  U64_MAX,
  viewOf,
  WireError,
} from "./error.js";

// ---- HELLO, AUTH, ERROR -----------------------------------------------------------------------------------

/** 0 version u32   4 flags u32   8 volume u64   16 node u32   20 incarnation u32   24 nonce[32] */
export const HELLO_SIZE = 24 + MXFS_WIRE_NONCE_SIZE;

export interface Hello {
  readonly volume: bigint;
  readonly node: number;
  readonly incarnation: number;
  /** MXFS_WIRE_NONCE_SIZE random bytes. */
  readonly nonce: Uint8Array;
  /** MXFS_HELLO_* */
  readonly flags: number;
}

const HELLO_FLAGS = MXFS_HELLO_ENCRYPT | MXFS_HELLO_FSOP;

export function encodeHello(hello: Hello): Uint8Array<ArrayBuffer> {
  if (hello.nonce.length !== MXFS_WIRE_NONCE_SIZE) {
    throw new RangeError(`nonce: expected ${MXFS_WIRE_NONCE_SIZE} bytes, found ${hello.nonce.length}`);
  }
  const bytes = new Uint8Array(HELLO_SIZE);
  const view = viewOf(bytes);
  view.setUint32(0, MXFS_WIRE_VERSION, true);
  view.setUint32(4, assertU32(hello.flags, "flags"), true);
  view.setBigUint64(8, assertU64(hello.volume, "volume"), true);
  view.setUint32(16, assertU32(hello.node, "node"), true);
  view.setUint32(20, assertU32(hello.incarnation, "incarnation"), true);
  bytes.set(hello.nonce, 24);
  return bytes;
}

/** @throws WireError WIRE_LENGTH, WIRE_VERSION, WIRE_FIELD */
export function decodeHello(body: Uint8Array): Hello {
  exactLength(body, HELLO_SIZE, "HELLO");
  const view = viewOf(body);
  const version = view.getUint32(0, true);
  if (version !== MXFS_WIRE_VERSION) {
    throw new WireError(
      "WIRE_VERSION",
      `HELLO of protocol version ${version}, expected ${MXFS_WIRE_VERSION}`,
    );
  }
  const flags = view.getUint32(4, true);
  if ((flags & ~HELLO_FLAGS) !== 0) {
    throw new WireError("WIRE_FIELD", `HELLO flags: ${flags.toString(16)}: not known to this version`);
  }
  return {
    volume: view.getBigUint64(8, true),
    node: view.getUint32(16, true),
    incarnation: view.getUint32(20, true),
    flags,
    nonce: body.slice(24, HELLO_SIZE),
  };
}

/** The body of AUTH: the 32 bytes of the code. @throws WireError WIRE_LENGTH */
export function decodeAuth(body: Uint8Array): Uint8Array {
  exactLength(body, MXFS_WIRE_MAC_SIZE, "AUTH");
  return body.slice();
}

export const ERROR_MESSAGE_MAX = 1024;

export interface ErrorMessage {
  /** Positive errno. */
  readonly errno: number;
  readonly message: string;
}

/** {errno u32, UTF-8 message}; a message above ERROR_MESSAGE_MAX bytes is cut between characters. */
export function encodeError(error: ErrorMessage): Uint8Array<ArrayBuffer> {
  let text = encodeUtf8(error.message);
  if (text.length > ERROR_MESSAGE_MAX) {
    let end = ERROR_MESSAGE_MAX;
    while (((text[end] as number) & 0xc0) === 0x80) end--;
    text = text.slice(0, end);
  }
  const bytes = new Uint8Array(4 + text.length);
  viewOf(bytes).setUint32(0, assertU32(error.errno, "errno"), true);
  bytes.set(text, 4);
  return bytes;
}

/** @throws WireError WIRE_TRUNCATED, WIRE_LENGTH, WIRE_FIELD */
export function decodeError(body: Uint8Array): ErrorMessage {
  needBytes(body, 0, 4, "ERROR");
  if (body.length > 4 + ERROR_MESSAGE_MAX) {
    throw new WireError("WIRE_LENGTH", `ERROR: at most ${ERROR_MESSAGE_MAX} bytes, found ${body.length - 4}`);
  }
  return { errno: viewOf(body).getUint32(0, true), message: decodeUtf8(body.subarray(4), "ERROR message") };
}

function exactLength(body: Uint8Array, size: number, what: string): void {
  if (body.length !== size) {
    throw new WireError("WIRE_LENGTH", `${what}: expected ${size} bytes, found ${body.length}`);
  }
}

// ---- fsop parts -------------------------------------------------------------------------------------------

/** 0 fsop id u64   8 offset u32   12 total u32   16 the part's bytes */
export const FSOP_PART_HEADER_SIZE = 16;

export interface FsopPart {
  /** The member's sequence number. */
  readonly id: bigint;
  /** Where this part begins. */
  readonly offset: number;
  /** Bytes of the whole payload. */
  readonly total: number;
  /** 1 to MXFS_NL_DATA_MAX bytes. */
  readonly data: Uint8Array;
}

export function encodeFsopPart(part: FsopPart): Uint8Array<ArrayBuffer> {
  const flaw = fsopPartFlaw(part.offset, part.total, part.data.length);
  if (flaw !== null) throw new RangeError(flaw);
  const bytes = new Uint8Array(FSOP_PART_HEADER_SIZE + part.data.length);
  const view = viewOf(bytes);
  view.setBigUint64(0, assertU64(part.id, "fsop id"), true);
  view.setUint32(8, part.offset, true);
  view.setUint32(12, part.total, true);
  bytes.set(part.data, FSOP_PART_HEADER_SIZE);
  return bytes;
}

/** The part's data is a view of the body. @throws WireError WIRE_TRUNCATED, WIRE_LENGTH */
export function decodeFsopPart(body: Uint8Array): FsopPart {
  needBytes(body, 0, FSOP_PART_HEADER_SIZE, "fsop part");
  const view = viewOf(body);
  const offset = view.getUint32(8, true);
  const total = view.getUint32(12, true);
  const data = body.subarray(FSOP_PART_HEADER_SIZE);
  const flaw = fsopPartFlaw(offset, total, data.length);
  if (flaw !== null) throw new WireError("WIRE_LENGTH", flaw);
  return { id: view.getBigUint64(0, true), offset, total, data };
}

/** What is wrong with a part's measures, or null. */
export function fsopPartFlaw(offset: number, total: number, length: number): string | null {
  if (total > MXFS_FSOP_PAYLOAD_MAX) return `fsop of ${total} bytes: at most ${MXFS_FSOP_PAYLOAD_MAX}`;
  if (length < 1 || length > MXFS_NL_DATA_MAX) {
    return `fsop part of ${length} bytes: expected 1 to ${MXFS_NL_DATA_MAX}`;
  }
  if (offset + length > total) return `fsop part ${offset}+${length} lies outside of ${total} bytes`;
  return null;
}

// ---- cluster messages -------------------------------------------------------------------------------------

export interface MemberInfo {
  readonly node: number;
  readonly incarnation: number;
  /** Heartbeat slot on disk. */
  readonly slot: number;
  /** IPv4 or IPv6 in text form. */
  readonly address: string;
  readonly port: number;
  readonly role: Role;
}

export type ClusterMessage =
  | {
      readonly kind: "JOIN";
      readonly incarnation: number;
      readonly uuid: string;
      readonly address: string;
      readonly port: number;
      readonly hostname: string;
      readonly rejoin: boolean;
      readonly wireVersion: number;
    }
  | { readonly kind: "JOIN_REFUSED"; readonly errno: number; readonly reason: string }
  | {
      readonly kind: "PREPARE";
      readonly epoch: bigint;
      readonly holder: number;
      readonly reason: string;
      readonly members: readonly MemberInfo[];
    }
  | {
      readonly kind: "PREPARED";
      readonly epoch: bigint;
      /** The highest epoch this node has seen; above `epoch`, or equal to it in another change: refused. */
      readonly seen: bigint;
      readonly refused: boolean;
      /** Members this node could not connect to. */
      readonly unreachable: readonly number[];
    }
  | { readonly kind: "REBUILD"; readonly epoch: bigint }
  | { readonly kind: "REBUILD_SENT"; readonly epoch: bigint }
  | { readonly kind: "REBUILT"; readonly epoch: bigint }
  | { readonly kind: "COMMIT"; readonly epoch: bigint; readonly resend: boolean; readonly holder: number }
  | { readonly kind: "COMMITTED"; readonly epoch: bigint }
  | { readonly kind: "LEAVE" }
  | { readonly kind: "LEFT"; readonly epoch: bigint }
  | { readonly kind: "GATE_SHUT"; readonly reason: string }
  | { readonly kind: "GATE_IS_SHUT" }
  | {
      readonly kind: "TAKE_OVER";
      readonly epoch: bigint;
      readonly members: readonly MemberInfo[];
      /** The old holder's PR key. */
      readonly oldKey: bigint;
    }
  | { readonly kind: "TAKEN_OVER" }
  | { readonly kind: "LEASE_RENEW"; readonly seq: bigint; readonly unreachable: readonly number[] }
  | { readonly kind: "LEASE_ACK"; readonly seq: bigint }
  | { readonly kind: "RESYNC"; readonly reason: string };

export type ClusterKind = ClusterMessage["kind"];
export type ClusterMessageOf<K extends ClusterKind> = Extract<ClusterMessage, { kind: K }>;

/** How one field is checked and written. `decode` throws WireError, naming `path`. */
interface FieldCodec<T> {
  decode(value: unknown, path: string): T;
  encode(value: T): unknown;
}
type Fields<T> = { readonly [F in keyof T]: FieldCodec<T[F]> };

function bad(path: string, expected: string, found: unknown): WireError {
  return new WireError("WIRE_FIELD", `${path}: expected ${expected}, found ${excerpt(found)}`);
}

function integer(min: number, max: number): FieldCodec<number> {
  return {
    decode(value, path) {
      if (typeof value !== "number" || !Number.isInteger(value) || value < min || value > max) {
        throw bad(path, `a whole number from ${min} to ${max}`, value);
      }
      return value;
    },
    encode: (value) => value,
  };
}

function text(what: string, lengthMax: number, pattern: RegExp): FieldCodec<string> {
  return {
    decode(value, path) {
      if (typeof value !== "string" || value.length > lengthMax || !pattern.test(value)) {
        throw bad(path, `${what} of at most ${lengthMax} characters`, value);
      }
      return value;
    },
    encode: (value) => value,
  };
}

function list<T>(item: FieldCodec<T>, countMin: number, countMax: number): FieldCodec<readonly T[]> {
  return {
    decode(value, path) {
      if (!Array.isArray(value) || value.length < countMin || value.length > countMax) {
        throw bad(path, `a list of ${countMin} to ${countMax}`, Array.isArray(value) ? value.length : value);
      }
      return value.map((element: unknown, index) => item.decode(element, `${path}[${index}]`));
    },
    encode: (value) => value.map((element) => item.encode(element)),
  };
}

function record<T extends object>(fields: Fields<T>): FieldCodec<T> {
  return {
    decode: (value, path) => decodeFields(fields, value, path),
    encode: (value) => encodeFields(fields, value),
  };
}

const u32 = integer(0, U32_MAX);
const port = integer(1, 65535);
const errno = integer(1, 4095);
const flag: FieldCodec<boolean> = {
  decode(value, path) {
    if (typeof value !== "boolean") throw bad(path, "true or false", value);
    return value;
  },
  encode: (value) => value,
};
const u64: FieldCodec<bigint> = {
  decode(value, path) {
    if (typeof value !== "string" || !/^(0|[1-9][0-9]{0,19})$/.test(value) || BigInt(value) > U64_MAX) {
      throw bad(path, "an unsigned 64-bit number in a string of decimal digits", value);
    }
    return BigInt(value);
  },
  encode: (value) => value.toString(),
};
const uuid = text("a UUID", 36, /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/);
const hostname = text("a host name", 63, /^[^\p{Cc}]*$/u);
const reason = text("a reason without control characters", 255, /^[^\p{Cc}]*$/u);
const address: FieldCodec<string> = {
  decode(value, path) {
    if (typeof value !== "string" || parseAddress(value) === null) throw bad(path, "an IP address", value);
    return value;
  },
  encode: (value) => value,
};
const role = integer(0, MXFS_ROLE_MEMBER) as FieldCodec<Role>;
const member = record<MemberInfo>({
  node: u32,
  incarnation: u32,
  slot: integer(0, MXFS_NODE_COUNT_MAX - 1),
  address,
  port,
  role,
});
const members: FieldCodec<readonly MemberInfo[]> = {
  decode(value, path) {
    const found = list(member, 1, MXFS_NODE_COUNT_MAX).decode(value, path);
    for (const field of ["node", "slot"] as const) {
      if (new Set(found.map((info) => info[field])).size !== found.length) {
        throw bad(path, `every ${field} once`, found.map((info) => info[field]).join(","));
      }
    }
    return found;
  },
  encode: (value) => value.map((info) => member.encode(info)),
};

const SCHEMA: { readonly [K in ClusterKind]: Fields<Omit<ClusterMessageOf<K>, "kind">> } = {
  JOIN: { incarnation: u32, uuid, address, port, hostname, rejoin: flag, wireVersion: u32 },
  JOIN_REFUSED: { errno, reason },
  PREPARE: { epoch: u64, holder: u32, reason, members },
  PREPARED: { epoch: u64, seen: u64, refused: flag, unreachable: list(u32, 0, MXFS_NODE_COUNT_MAX) },
  REBUILD: { epoch: u64 },
  REBUILD_SENT: { epoch: u64 },
  REBUILT: { epoch: u64 },
  COMMIT: { epoch: u64, resend: flag, holder: u32 },
  COMMITTED: { epoch: u64 },
  LEAVE: {},
  LEFT: { epoch: u64 },
  GATE_SHUT: { reason },
  GATE_IS_SHUT: {},
  TAKE_OVER: { epoch: u64, members, oldKey: u64 },
  TAKEN_OVER: {},
  LEASE_RENEW: { seq: u64, unreachable: list(u32, 0, MXFS_NODE_COUNT_MAX) },
  LEASE_ACK: { seq: u64 },
  RESYNC: { reason },
};

function decodeFields<T extends object>(fields: Fields<T>, value: unknown, path: string): T {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw bad(path, "a JSON object", Array.isArray(value) ? "a list" : value);
  }
  const result: Partial<T> = {};
  for (const name of Object.keys(fields) as (keyof T & string)[]) {
    const own = Object.hasOwn(value, name) ? (value as Record<string, unknown>)[name] : undefined;
    result[name] = fields[name].decode(own, `${path}.${name}`);
  }
  return result as T;
}

function encodeFields<T extends object>(fields: Fields<T>, value: T): Record<string, unknown> {
  const result: Record<string, unknown> = {};
  for (const name of Object.keys(fields) as (keyof T & string)[]) {
    result[name] = fields[name].encode(value[name]);
  }
  return result;
}

/** SCHEMA has checked the types of its fields; the loops over them need only their names. */
function fieldsOf(kind: ClusterKind): Fields<Record<string, unknown>> {
  return SCHEMA[kind] as unknown as Fields<Record<string, unknown>>;
}

/** Whether frames of this type carry a cluster message. */
export function isClusterType(type: number): boolean {
  const kind = WireTypeName[type];
  return kind !== undefined && Object.hasOwn(SCHEMA, kind);
}

/** The frame type of a cluster message. */
export function clusterType(message: ClusterMessage): WireType {
  return WireType[message.kind];
}

/** The JSON body. @throws RangeError when a field is not what the receiver would accept. */
export function encodeClusterMessage(message: ClusterMessage): Uint8Array<ArrayBuffer> {
  const fields = fieldsOf(message.kind);
  const plain = encodeFields(fields, { ...message });
  try {
    decodeFields(fields, plain, message.kind);
  } catch (error) {
    throw new RangeError(`message to send is not valid: ${(error as Error).message}`, { cause: error });
  }
  const body = encodeUtf8(JSON.stringify(plain));
  if (body.length > MXFS_WIRE_BODY_MAX) {
    throw new RangeError(`${message.kind}: at most ${MXFS_WIRE_BODY_MAX} bytes, found ${body.length}`);
  }
  return body;
}

/** @throws WireError WIRE_TYPE (no cluster message), WIRE_JSON, WIRE_FIELD */
export function decodeClusterMessage(type: number, body: Uint8Array): ClusterMessage {
  const kind = WireTypeName[type];
  if (kind === undefined || !Object.hasOwn(SCHEMA, kind)) {
    throw new WireError("WIRE_TYPE", `frame type ${type} (${kind ?? "unknown"}) is no cluster message`);
  }
  let value: unknown;
  try {
    value = JSON.parse(decodeUtf8(body, kind));
  } catch (error) {
    if (error instanceof WireError) throw error;
    throw new WireError("WIRE_JSON", `${kind}: not JSON: ${excerpt((error as Error).message)}`);
  }
  return { ...decodeFields(fieldsOf(kind as ClusterKind), value, kind), kind } as ClusterMessage;
}
