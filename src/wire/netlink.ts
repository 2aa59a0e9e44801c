// SPDX-License-Identifier: GPL-2.0-only
/**
 * The generic netlink family "mxfs" (include/mxfs/netlink.h) and what comes with it: acknowledgements with
 * extended errors, ends of dumps, and the controller's answer about a family.
 *
 *   datagram = message*            message = nlmsghdr (16)  genlmsghdr (4)  attribute*
 *   attribute = {length u16, type u16} payload, padded to 4; the length counts its own header
 *
 * Protocol: which attributes a command carries in which direction stands in the two tables TO_KERNEL and
 * TO_DAEMON; the TypeScript types come from them. Every length is checked before a byte is read. Attributes
 * that are not known, or not the command's, are skipped, as netlink wants it. Integers are in host order, which
 * is little endian on every machine MXFS supports.
 * Known weakness: binary attributes of decoded messages are views of the datagram: use or copy them before the
 * receive buffer is filled again.
 * Fact from: linux/netlink.h, linux/genetlink.h, Linux net/netlink/af_netlink.c netlink_ack().
 */
import {
  AttrId,
  Cmd,
  CmdName,
  MXFS_FSOP_PAYLOAD_MAX,
  MXFS_GENL_VERSION,
  MXFS_NL_DATA_MAX,
  MXFS_NL_LOCKS_MAX,
} from "./abi.js";
import { assertU32, assertU64, decodeUtf8, encodeUtf8, needBytes, viewOf, WireError } from "./error.js";
import { checkLockEntries } from "./lock_entry.js";
import { fsopPartFlaw } from "./messages.js";

export const NLMSG_HEADER_SIZE = 16;
export const GENL_HEADER_SIZE = 4;
const ATTR_HEADER_SIZE = 4;

export const NLMSG_NOOP = 1;
export const NLMSG_ERROR = 2;
export const NLMSG_DONE = 3;
export const NLMSG_OVERRUN = 4;
/** nlmsg_type of the controller (genl-ctrl); families begin above. */
export const GENL_ID_CTRL = 16;

export const NLM_F_REQUEST = 1;
export const NLM_F_MULTI = 2;
export const NLM_F_ACK = 4;
export const NLM_F_DUMP = 0x300;
const NLM_F_CAPPED = 0x100;
const NLM_F_ACK_TLVS = 0x200;
/** NLA_F_NESTED | NLA_F_NET_BYTEORDER are not part of the type. */
const NLA_TYPE_MASK = 0x3fff;
const NLMSGERR_ATTR_MSG = 1;

// ---- which command carries what ---------------------------------------------------------------------------

/** What the attributes are called here, and their types. */
export interface AttrValues {
  mountId: number;
  session: bigint;
  abiVersion: number;
  pid: number;
  reqId: bigint;
  /** Positive errno, 0 is well. */
  error: number;
  message: string;
  volume: bigint;
  node: number;
  incarnation: number;
  holder: number;
  /** enum mxfs_role */
  role: number;
  epoch: bigint;
  /** enum mxfs_kstate */
  state: number;
  fenced: number;
  /** CLOCK_BOOTTIME milliseconds. */
  leaseUntil: bigint;
  gateOpen: number;
  reason: string;
  force: number;
  resend: number;
  solo: number;
  /** struct mxfs_lock_entry[1..MXFS_NL_LOCKS_MAX], checked. */
  locks: Uint8Array;
  ino: bigint;
  generation: number;
  size: bigint;
  created: number;
  lockstateSize: bigint;
  /** enum mxfs_node_state */
  nodeState: number;
  fsopId: bigint;
  fsopOffset: number;
  fsopTotal: number;
  fsopData: Uint8Array;
  counters: string;
  device: string;
  fd: number;
}
export type AttrKey = keyof AttrValues;

type AttrSpec =
  | { readonly id: AttrId; readonly as: "u32"; readonly max: number }
  | { readonly id: AttrId; readonly as: "u64" }
  /** `cut`: a longer text is shortened when sent, else refused. */
  | { readonly id: AttrId; readonly as: "string"; readonly max: number; readonly cut: boolean }
  | { readonly id: AttrId; readonly as: "locks" }
  | { readonly id: AttrId; readonly as: "data" };

const u32 = (id: AttrId, max = 0xffffffff): AttrSpec => ({ id, as: "u32", max });
const u64 = (id: AttrId): AttrSpec => ({ id, as: "u64" });
const text = (id: AttrId, max: number, cut = false): AttrSpec => ({ id, as: "string", max, cut });

const ATTRS: { readonly [K in AttrKey]: AttrSpec } = {
  mountId: u32(AttrId.MOUNT_ID),
  session: u64(AttrId.SESSION),
  abiVersion: u32(AttrId.ABI_VERSION),
  pid: u32(AttrId.PID),
  reqId: u64(AttrId.REQ_ID),
  error: u32(AttrId.ERROR, 4095),
  message: text(AttrId.MESSAGE, 511, true),
  volume: u64(AttrId.VOLUME),
  node: u32(AttrId.NODE),
  incarnation: u32(AttrId.INCARNATION),
  holder: u32(AttrId.HOLDER),
  role: u32(AttrId.ROLE, 2),
  epoch: u64(AttrId.EPOCH),
  state: u32(AttrId.STATE),
  fenced: u32(AttrId.FENCED, 1),
  leaseUntil: u64(AttrId.LEASE_UNTIL),
  gateOpen: u32(AttrId.GATE_OPEN, 1),
  reason: text(AttrId.REASON, 127, true),
  force: u32(AttrId.FORCE, 1),
  resend: u32(AttrId.RESEND, 1),
  solo: u32(AttrId.SOLO, 1),
  locks: { id: AttrId.LOCKS, as: "locks" },
  ino: u64(AttrId.INO),
  generation: u32(AttrId.GENERATION),
  size: u64(AttrId.SIZE),
  created: u32(AttrId.CREATED, 1),
  lockstateSize: u64(AttrId.LOCKSTATE_SIZE),
  nodeState: u32(AttrId.NODE_STATE),
  fsopId: u64(AttrId.FSOP_ID),
  fsopOffset: u32(AttrId.FSOP_OFFSET, MXFS_FSOP_PAYLOAD_MAX),
  fsopTotal: u32(AttrId.FSOP_TOTAL, MXFS_FSOP_PAYLOAD_MAX),
  fsopData: { id: AttrId.FSOP_DATA, as: "data" },
  counters: text(AttrId.COUNTERS, 4095),
  device: text(AttrId.DEVICE, 4095),
  fd: u32(AttrId.FD, 0x7fffffff),
};

interface CommandSpec {
  readonly must: readonly AttrKey[];
  readonly may: readonly AttrKey[];
}

const LOCKS = { must: ["mountId", "locks"], may: ["session"] } as const;
const FSOP = {
  must: ["mountId", "fsopId", "node", "fsopOffset", "fsopTotal", "fsopData"],
  may: ["session"],
} as const;

/** Daemon to kernel. SESSION may go with every command: it stands for the bound port. */
const TO_KERNEL = {
  DAEMON_ATTACH: { must: ["mountId", "abiVersion", "pid"], may: [] },
  DAEMON_READY: {
    must: ["mountId"],
    may: ["session", "role", "epoch", "holder", "incarnation", "leaseUntil", "error", "message"],
  },
  ROLE_CHANGE: {
    must: ["mountId", "reqId", "role", "node", "incarnation", "holder", "epoch"],
    may: ["session", "lockstateSize"],
  },
  GATE: { must: ["mountId", "reqId", "gateOpen"], may: ["session", "reason", "force"] },
  LEASE: { must: ["mountId", "leaseUntil", "epoch"], may: ["session"] },
  LOCK_DUMP: { must: ["mountId", "reqId", "epoch"], may: ["session", "solo"] },
  VIEW: { must: ["mountId", "epoch", "holder", "incarnation", "resend"], may: ["session", "solo"] },
  LOCK_GRANT: LOCKS,
  LOCK_DENY: LOCKS,
  BAST: LOCKS,
  CACHE_INVALIDATE: { must: ["mountId"], may: ["session", "ino"] },
  NODE_STATUS: { must: ["mountId", "node", "incarnation", "nodeState"], may: ["session"] },
  RECOVERY_START: { must: ["mountId", "node", "epoch"], may: ["session"] },
  RECOVERY_DONE: { must: ["mountId", "node", "epoch"], may: ["session"] },
  FSOP_REQUEST: FSOP,
  FSOP_REPLY: FSOP,
  FSOP_SOCKET: { must: ["mountId", "node", "incarnation", "fd"], may: ["session"] },
  FENCED: { must: ["mountId", "message"], may: ["session"] },
  STATUS: { must: ["mountId"], may: ["session"] },
  DONE: { must: ["mountId", "reqId", "error"], may: ["session", "message"] },
  VOLUME_MOUNT: { must: [], may: ["mountId"] },
} as const satisfies { readonly [C in keyof typeof Cmd]?: CommandSpec };

/** Kernel to daemon; ATTACH, STATUS and VOLUME_MOUNT are the answers to the commands of the same name. */
const TO_DAEMON = {
  DAEMON_ATTACH: {
    must: ["mountId", "session", "volume", "state", "role", "epoch", "node", "incarnation", "fenced"],
    may: [],
  },
  LOCK_DUMP: { must: ["mountId", "locks"], may: ["epoch", "reqId"] },
  LOCK_REQUEST: { must: ["mountId", "locks"], may: [] },
  LOCK_CONVERT: { must: ["mountId", "locks"], may: [] },
  LOCK_RELEASE: { must: ["mountId", "locks"], may: [] },
  FSOP_REQUEST: { must: FSOP.must, may: [] },
  FSOP_REPLY: { must: FSOP.must, may: [] },
  VOLUME_UNMOUNT: { must: ["mountId", "reqId"], may: [] },
  STATUS: {
    must: ["mountId", "state", "role"],
    may: [
      "session",
      "volume",
      "epoch",
      "node",
      "incarnation",
      "holder",
      "fenced",
      "leaseUntil",
      "gateOpen",
      "pid",
      "device",
      "counters",
    ],
  },
  DONE: {
    must: ["mountId", "reqId", "error"],
    may: ["message", "ino", "generation", "size", "created"],
  },
  VOLUME_ERROR: { must: ["mountId", "error"], may: ["message"] },
  VOLUME_MOUNT: { must: ["mountId", "state", "role"], may: ["device", "volume", "pid"] },
} as const satisfies { readonly [C in keyof typeof Cmd]?: CommandSpec };

type MessageOf<T extends Readonly<Record<string, CommandSpec>>> = {
  [C in keyof T]: { readonly cmd: C } & Readonly<Pick<AttrValues, T[C]["must"][number]>> &
    Readonly<Partial<Pick<AttrValues, T[C]["may"][number]>>>;
}[keyof T];

/** A message from the daemon to the kernel: {cmd, attributes}. */
export type ToKernel = MessageOf<typeof TO_KERNEL>;
/** A message from the kernel to the daemon. */
export type ToDaemon = MessageOf<typeof TO_DAEMON>;

// ---- writing ----------------------------------------------------------------------------------------------

export interface NetlinkEnvelope {
  /** nlmsg_type: the family's id. */
  readonly familyId: number;
  /** NLM_F_*; NLM_F_REQUEST | NLM_F_ACK for a command that wants its acknowledgement. */
  readonly flags: number;
  readonly seq: number;
  /** nlmsg_pid: the sender's port id, or 0 and the kernel fills it in. */
  readonly portId: number;
}

/** Bytes that any message fits in: headers, a full data attribute and every small one. */
export const NETLINK_MESSAGE_MAX = MXFS_NL_DATA_MAX + 8192;

/** Builds a message for the kernel. @throws RangeError when a field does not fit. */
export function encodeToKernel(message: ToKernel, envelope: NetlinkEnvelope): Uint8Array<ArrayBuffer> {
  return encode(message.cmd, TO_KERNEL[message.cmd], message, envelope);
}

/** Builds a message as the kernel does: for simulations and tests. */
export function encodeToDaemon(message: ToDaemon, envelope: NetlinkEnvelope): Uint8Array<ArrayBuffer> {
  return encode(message.cmd, TO_DAEMON[message.cmd], message, envelope);
}

const scratch = new Uint8Array(NETLINK_MESSAGE_MAX);
const scratchView = viewOf(scratch);

function encode(
  cmd: keyof typeof Cmd,
  spec: CommandSpec,
  values: Partial<AttrValues>,
  envelope: NetlinkEnvelope,
): Uint8Array<ArrayBuffer> {
  let end = NLMSG_HEADER_SIZE + GENL_HEADER_SIZE;
  for (const key of spec.must) {
    const value = values[key];
    if (value === undefined) throw new RangeError(`netlink ${cmd}: ${key} is missing`);
    end = putAttr(key, value, end);
  }
  for (const key of spec.may) {
    const value = values[key];
    if (value !== undefined) end = putAttr(key, value, end);
  }
  scratchView.setUint32(0, end, true);
  scratchView.setUint16(4, envelope.familyId, true);
  scratchView.setUint16(6, envelope.flags, true);
  scratchView.setUint32(8, assertU32(envelope.seq, "netlink seq"), true);
  scratchView.setUint32(12, assertU32(envelope.portId, "netlink port"), true);
  scratchView.setUint8(16, Cmd[cmd]);
  scratchView.setUint8(17, MXFS_GENL_VERSION);
  scratchView.setUint16(18, 0, true);
  return scratch.slice(0, end);
}

/** Writes one attribute at `at` of the scratch buffer; returns where the next one begins. */
function putAttr(key: AttrKey, value: AttrValues[AttrKey], at: number): number {
  const spec = ATTRS[key];
  const from = at + ATTR_HEADER_SIZE;
  let size: number;
  switch (spec.as) {
    case "u32":
      if (typeof value !== "number" || value > spec.max)
        throw misfit(key, `a number up to ${spec.max}`, value);
      scratchView.setUint32(from, assertU32(value, key), true);
      size = 4;
      break;
    case "u64":
      if (typeof value !== "bigint") throw misfit(key, "a bigint", value);
      scratchView.setBigUint64(from, assertU64(value, key), true);
      size = 8;
      break;
    case "string": {
      if (typeof value !== "string") throw misfit(key, "a string", value);
      const bytes = fitText(key, value, spec.max, spec.cut);
      scratch.set(bytes, from);
      scratch[from + bytes.length] = 0;
      size = bytes.length + 1;
      break;
    }
    case "locks":
    case "data": {
      if (!(value instanceof Uint8Array)) throw misfit(key, "bytes", value);
      if (value.length < 1 || value.length > MXFS_NL_DATA_MAX) {
        throw misfit(key, `1 to ${MXFS_NL_DATA_MAX} bytes`, `${value.length} bytes`);
      }
      if (spec.as === "locks") checkLockEntries(value, MXFS_NL_LOCKS_MAX);
      scratch.set(value, from);
      size = value.length;
      break;
    }
  }
  scratchView.setUint16(at, ATTR_HEADER_SIZE + size, true);
  scratchView.setUint16(at + 2, spec.id, true);
  const next = align4(from + size);
  scratch.fill(0, from + size, next);
  return next;
}

function fitText(key: AttrKey, value: string, max: number, cut: boolean): Uint8Array {
  const bytes = encodeUtf8(value.replaceAll("\0", " "));
  if (bytes.length <= max) return bytes;
  if (!cut) throw misfit(key, `at most ${max} bytes`, `${bytes.length} bytes`);
  let end = max;
  while (((bytes[end] as number) & 0xc0) === 0x80) end--;
  return bytes.subarray(0, end);
}

function misfit(key: AttrKey, expected: string, found: unknown): RangeError {
  return new RangeError(`netlink attribute ${key}: expected ${expected}, found ${String(found)}`);
}

const align4 = (size: number): number => (size + 3) & ~3;

// ---- reading ----------------------------------------------------------------------------------------------

/** One netlink message, still closed. `payload` is a view of the datagram. */
export interface NlMessage {
  readonly type: number;
  readonly flags: number;
  readonly seq: number;
  readonly portId: number;
  readonly payload: Uint8Array;
}

/** Takes a datagram of one or several messages apart. @throws WireError WIRE_TRUNCATED, WIRE_LENGTH */
export function splitMessages(datagram: Uint8Array): NlMessage[] {
  const messages: NlMessage[] = [];
  const view = viewOf(datagram);
  let at = 0;
  while (at < datagram.length) {
    needBytes(datagram, at, NLMSG_HEADER_SIZE, "netlink header");
    const length = view.getUint32(at, true);
    if (length < NLMSG_HEADER_SIZE || length > datagram.length - at) {
      throw new WireError(
        "WIRE_LENGTH",
        `netlink message at ${at}: length ${length}, expected 16 to ${datagram.length - at}`,
      );
    }
    messages.push({
      type: view.getUint16(at + 4, true),
      flags: view.getUint16(at + 6, true),
      seq: view.getUint32(at + 8, true),
      portId: view.getUint32(at + 12, true),
      payload: datagram.subarray(at + NLMSG_HEADER_SIZE, at + length),
    });
    at += align4(length);
  }
  return messages;
}

/** Calls `onAttr` for every attribute in bytes[from..]. @throws WireError WIRE_LENGTH */
function forEachAttr(
  bytes: Uint8Array,
  from: number,
  onAttr: (id: number, payload: Uint8Array) => void,
): void {
  const view = viewOf(bytes);
  let at = from;
  // Up to three bytes of padding may follow the last attribute.
  while (bytes.length - at >= ATTR_HEADER_SIZE) {
    const length = view.getUint16(at, true);
    if (length < ATTR_HEADER_SIZE || length > bytes.length - at) {
      throw new WireError(
        "WIRE_LENGTH",
        `netlink attribute at ${at}: length ${length}, expected 4 to ${bytes.length - at}`,
      );
    }
    onAttr(view.getUint16(at + 2, true) & NLA_TYPE_MASK, bytes.subarray(at + ATTR_HEADER_SIZE, at + length));
    at += align4(length);
  }
}

const KEY_OF_ID: ReadonlyMap<number, AttrKey> = new Map(
  (Object.keys(ATTRS) as AttrKey[]).map((key) => [ATTRS[key].id, key]),
);

function getAttr(key: AttrKey, payload: Uint8Array): AttrValues[AttrKey] {
  const spec = ATTRS[key];
  switch (spec.as) {
    case "u32": {
      attrLength(key, payload, 4);
      const value = viewOf(payload).getUint32(0, true);
      if (value > spec.max) {
        throw new WireError("WIRE_FIELD", `netlink ${key}: at most ${spec.max}, found ${value}`);
      }
      return value;
    }
    case "u64":
      attrLength(key, payload, 8);
      return viewOf(payload).getBigUint64(0, true);
    case "string": {
      const zero = payload.indexOf(0);
      const length = zero < 0 ? payload.length : zero;
      if (length > spec.max || (zero >= 0 && zero !== payload.length - 1)) {
        throw new WireError(
          "WIRE_FIELD",
          `netlink ${key}: expected a string of at most ${spec.max} bytes, found ${payload.length} bytes`,
        );
      }
      return decodeUtf8(payload.subarray(0, length), `netlink ${key}`);
    }
    case "locks":
      checkLockEntries(payload, MXFS_NL_LOCKS_MAX);
      return payload;
    case "data":
      if (payload.length < 1 || payload.length > MXFS_NL_DATA_MAX) {
        throw new WireError(
          "WIRE_LENGTH",
          `netlink ${key}: 1 to ${MXFS_NL_DATA_MAX}, found ${payload.length}`,
        );
      }
      return payload;
  }
}

function attrLength(key: AttrKey, payload: Uint8Array, size: number): void {
  if (payload.length !== size) {
    throw new WireError("WIRE_LENGTH", `netlink ${key}: expected ${size} bytes, found ${payload.length}`);
  }
}

/** Reads the payload of a message of the family "mxfs", as the daemon. @throws WireError */
export function decodeToDaemon(payload: Uint8Array): ToDaemon {
  return decode(TO_DAEMON, payload) as unknown as ToDaemon;
}

/** Reads the payload of a message of the family "mxfs", as the kernel: for simulations and tests. */
export function decodeToKernel(payload: Uint8Array): ToKernel {
  return decode(TO_KERNEL, payload) as unknown as ToKernel;
}

function decode(table: Readonly<Record<string, CommandSpec>>, payload: Uint8Array): Record<string, unknown> {
  needBytes(payload, 0, GENL_HEADER_SIZE, "generic netlink header");
  const number = payload[0] as number;
  const version = payload[1] as number;
  const cmd = CmdName[number];
  const spec = cmd !== undefined && Object.hasOwn(table, cmd) ? table[cmd] : undefined;
  if (cmd === undefined || spec === undefined) {
    throw new WireError("WIRE_TYPE", `netlink command ${number} (${cmd ?? "unknown"}) does not go this way`);
  }
  if (version !== MXFS_GENL_VERSION) {
    throw new WireError(
      "WIRE_VERSION",
      `netlink version ${version}, expected ${MXFS_GENL_VERSION}: module and daemon must be of one release`,
    );
  }
  const result: Record<string, unknown> = { cmd };
  forEachAttr(payload, GENL_HEADER_SIZE, (id, bytes) => {
    const key = KEY_OF_ID.get(id);
    if (key === undefined || !(spec.must.includes(key) || spec.may.includes(key))) return;
    if (Object.hasOwn(result, key)) throw new WireError("WIRE_FIELD", `netlink ${cmd}: ${key} comes twice`);
    result[key] = getAttr(key, bytes);
  });
  for (const key of spec.must) {
    if (!Object.hasOwn(result, key)) throw new WireError("WIRE_FIELD", `netlink ${cmd}: ${key} is missing`);
  }
  if (cmd === "FSOP_REQUEST" || cmd === "FSOP_REPLY") {
    const { fsopOffset, fsopTotal, fsopData } = result as unknown as AttrValues;
    const flaw = fsopPartFlaw(fsopOffset, fsopTotal, fsopData.length);
    if (flaw !== null) throw new WireError("WIRE_LENGTH", `netlink ${cmd}: ${flaw}`);
  }
  return result;
}

/** What a datagram from the kernel can hold. */
export type NetlinkEvent =
  | { readonly kind: "message"; readonly seq: number; readonly message: ToDaemon }
  /** An acknowledgement: `error` 0, or a positive errno with the kernel's explanation if it gave one. */
  | { readonly kind: "ack"; readonly seq: number; readonly error: number; readonly message: string | null }
  /** The end of a dump. */
  | { readonly kind: "done"; readonly seq: number }
  /** An answer of the controller. */
  | { readonly kind: "family"; readonly seq: number; readonly family: FamilyInfo };

/** Reads everything in a datagram from the kernel. @throws WireError */
export function decodeDatagram(datagram: Uint8Array, familyId: number): NetlinkEvent[] {
  const events: NetlinkEvent[] = [];
  for (const { type, flags, seq, payload } of splitMessages(datagram)) {
    if (type === familyId) events.push({ kind: "message", seq, message: decodeToDaemon(payload) });
    else if (type === NLMSG_ERROR) events.push({ kind: "ack", seq, ...decodeAck(payload, flags) });
    else if (type === NLMSG_DONE) events.push({ kind: "done", seq });
    else if (type === GENL_ID_CTRL) events.push({ kind: "family", seq, family: decodeFamily(payload) });
    else if (type !== NLMSG_NOOP) {
      throw new WireError("WIRE_TYPE", `netlink message type ${type}: expected ${familyId} or an answer`);
    }
  }
  return events;
}

/** struct nlmsgerr {error s32, nlmsghdr of the request}, its payload unless capped, then attributes. */
function decodeAck(payload: Uint8Array, flags: number): { error: number; message: string | null } {
  needBytes(payload, 0, 4 + NLMSG_HEADER_SIZE, "netlink acknowledgement");
  const view = viewOf(payload);
  const error = -view.getInt32(0, true);
  if (error < 0 || error > 4095) {
    throw new WireError("WIRE_FIELD", `netlink acknowledgement: error ${-error}: expected 0 to -4095`);
  }
  if ((flags & NLM_F_ACK_TLVS) === 0) return { error: error === 0 ? 0 : error, message: null };
  const echoed = (flags & NLM_F_CAPPED) !== 0 ? NLMSG_HEADER_SIZE : align4(view.getUint32(4, true));
  needBytes(payload, 4, echoed, "netlink acknowledgement: the request in it");
  let message: string | null = null;
  forEachAttr(payload, 4 + echoed, (id, bytes) => {
    if (id !== NLMSGERR_ATTR_MSG) return;
    const zero = bytes.indexOf(0);
    message = decodeUtf8(zero < 0 ? bytes : bytes.subarray(0, zero), "netlink extended error");
  });
  return { error: error === 0 ? 0 : error, message };
}

// ---- the controller ---------------------------------------------------------------------------------------

const CTRL_CMD_NEWFAMILY = 1;
const CTRL_CMD_GETFAMILY = 3;
const CTRL_ATTR_FAMILY_ID = 1;
const CTRL_ATTR_FAMILY_NAME = 2;
const CTRL_ATTR_VERSION = 3;
const CTRL_VERSION = 2;

export interface FamilyInfo {
  readonly id: number;
  readonly name: string;
  readonly version: number;
}

/** CTRL_CMD_GETFAMILY by name: answered by a family event, or an ack with ENOENT. */
export function encodeGetFamily(name: string, seq: number): Uint8Array<ArrayBuffer> {
  const bytes = encodeUtf8(name);
  if (bytes.length < 1 || bytes.length > 15) throw new RangeError(`family name "${name}": 1 to 15 bytes`);
  const from = NLMSG_HEADER_SIZE + GENL_HEADER_SIZE;
  const attr = ATTR_HEADER_SIZE + bytes.length + 1;
  const message = new Uint8Array(from + align4(attr));
  const view = viewOf(message);
  view.setUint32(0, message.length, true);
  view.setUint16(4, GENL_ID_CTRL, true);
  view.setUint16(6, NLM_F_REQUEST, true);
  view.setUint32(8, assertU32(seq, "netlink seq"), true);
  view.setUint8(16, CTRL_CMD_GETFAMILY);
  view.setUint8(17, CTRL_VERSION);
  view.setUint16(from, attr, true);
  view.setUint16(from + 2, CTRL_ATTR_FAMILY_NAME, true);
  message.set(bytes, from + ATTR_HEADER_SIZE);
  return message;
}

function decodeFamily(payload: Uint8Array): FamilyInfo {
  needBytes(payload, 0, GENL_HEADER_SIZE, "controller's answer");
  if (payload[0] !== CTRL_CMD_NEWFAMILY) {
    throw new WireError("WIRE_TYPE", `controller's answer: command ${payload[0]}, expected 1 (NEWFAMILY)`);
  }
  let id: number | null = null;
  let name: string | null = null;
  let version = 0;
  forEachAttr(payload, GENL_HEADER_SIZE, (attr, bytes) => {
    if (attr === CTRL_ATTR_FAMILY_ID) {
      needBytes(bytes, 0, 2, "family id");
      id = viewOf(bytes).getUint16(0, true);
    } else if (attr === CTRL_ATTR_FAMILY_NAME) {
      const zero = bytes.indexOf(0);
      name = decodeUtf8(zero < 0 ? bytes : bytes.subarray(0, zero), "family name");
    } else if (attr === CTRL_ATTR_VERSION) {
      needBytes(bytes, 0, 4, "family version");
      version = viewOf(bytes).getUint32(0, true);
    }
  });
  if (id === null || name === null) throw new WireError("WIRE_FIELD", "controller's answer: no id or name");
  return { id, name, version };
}
