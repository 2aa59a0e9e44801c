// SPDX-License-Identifier: GPL-2.0-only
/**
 * struct mxfs_lock_entry (include/mxfs/abi.h): the 64 bytes that name one lock in netlink messages and in TCP
 * frames alike.
 *
 * Protocol: bodies are arrays of entries. `checkLockEntries` looks at every field once, where bytes come in;
 * behind it the hot path reads fields in place (LOCK_ENTRY's offsets, a DataView), and only status commands
 * and tests use the object form.
 * Between daemons an entry of a control client may have a value (struct mxfs_lock_value) of 64 bytes behind it.
 * Known weakness: 64-bit fields in the object form are bigint, about ten times slower than the bytes.
 */
import {
  LockModeName,
  MXFS_LKF_CANCEL,
  MXFS_LKF_CONVERT,
  MXFS_LKF_IS_VALUE,
  MXFS_LKF_LOST,
  MXFS_LKF_NOQUEUE,
  MXFS_LKF_RECLAIM,
  MXFS_LKF_VALUE,
  MXFS_LKF_WAITING,
  MXFS_LOCK_CLIENT_SHIFT,
  MXFS_LOCK_ENTRY_SIZE,
  MXFS_LVB_LEN,
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

const FLAGS_KERNEL =
  MXFS_LKF_NOQUEUE | MXFS_LKF_CONVERT | MXFS_LKF_CANCEL | MXFS_LKF_WAITING | MXFS_LKF_RECLAIM;
const FLAGS_PEERS = FLAGS_KERNEL | MXFS_LKF_VALUE | MXFS_LKF_LOST;

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

/** struct mxfs_lock_value, without what it repeats of its entry. */
export interface EntryValue {
  /** MXFS_LVB_LEN bytes. */
  readonly bytes: Uint8Array;
  readonly seq: bigint;
  readonly valid: boolean;
}

/** Byte offsets of struct mxfs_lock_value; lock id, seq, flags and node lie as in an entry. */
export const LOCK_VALUE = { value: 0, valueSeq: 40, state: 52, reserved: 53, reserved2: 60 } as const;

/** Bytes from this entry to the next: 64, or 128 with a value behind it. */
export function entrySize(bytes: Uint8Array, at: number): number {
  const flags = bytes[at + LOCK_ENTRY.flags] as number;
  return (flags & MXFS_LKF_VALUE) !== 0 ? 2 * MXFS_LOCK_ENTRY_SIZE : MXFS_LOCK_ENTRY_SIZE;
}

/** Whether the 64 bytes at `at` are a value, and belong to the entry before. */
export function isValueAt(bytes: Uint8Array, at: number): boolean {
  return ((bytes[at + LOCK_ENTRY.flags] as number) & MXFS_LKF_IS_VALUE) !== 0;
}

/**
 * Checks a body of entries: whole ones, at least one, every field in its range, every value behind its entry.
 * @param values whether values are allowed: between daemons, not from the kernel.
 * @returns how many times 64 bytes. @throws WireError WIRE_LENGTH, WIRE_FIELD.
 */
export function checkLockEntries(bytes: Uint8Array, countMax: number, values = false): number {
  const count = bytes.length / MXFS_LOCK_ENTRY_SIZE;
  if (!Number.isInteger(count) || count < 1 || count > countMax) {
    throw new WireError(
      "WIRE_LENGTH",
      `lock entries: expected 1 to ${countMax} of ${MXFS_LOCK_ENTRY_SIZE} bytes, found ${bytes.length} bytes`,
    );
  }
  const view = viewOf(bytes);
  const known = values ? FLAGS_PEERS : FLAGS_KERNEL;
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
      (flags & ~known) !== 0 ||
      status > ERRNO_MAX
    ) {
      throw new WireError(
        "WIRE_FIELD",
        `lock entry ${at / MXFS_LOCK_ENTRY_SIZE}: type ${type}, mode ${mode}, granted ${granted}, flags ` +
          `0x${flags.toString(16)}, status ${status}: one of them is not known to this version`,
      );
    }
    if ((flags & MXFS_LKF_VALUE) !== 0) {
      checkValue(view, at, bytes.length);
      at += MXFS_LOCK_ENTRY_SIZE;
    }
  }
  return count;
}

/** The value that the entry at `at` announces. */
function checkValue(view: DataView, at: number, end: number): void {
  const value = at + MXFS_LOCK_ENTRY_SIZE;
  const whole = value + MXFS_LOCK_ENTRY_SIZE <= end;
  const repeats = (field: number): boolean =>
    view.getUint32(at + field, true) === view.getUint32(value + field, true);
  if (
    !whole ||
    view.getUint16(value + LOCK_ENTRY.flags, true) !== MXFS_LKF_IS_VALUE ||
    !repeats(LOCK_ENTRY.lockId) ||
    !repeats(LOCK_ENTRY.lockId + 4) ||
    !repeats(LOCK_ENTRY.seq) ||
    !repeats(LOCK_ENTRY.node) ||
    view.getUint8(value + LOCK_VALUE.state) > 1 ||
    view.getUint8(value + LOCK_VALUE.reserved) !== 0 ||
    view.getUint32(value + LOCK_VALUE.reserved2, true) !== 0
  ) {
    throw new WireError(
      "WIRE_FIELD",
      `lock entry ${at / MXFS_LOCK_ENTRY_SIZE}: its value is expected right behind it, with the same lock id, seq and node`,
    );
  }
}

/** Writes the value of `entry` (which must have MXFS_LKF_VALUE) behind it, at `at`. */
export function encodeEntryValue(entry: LockEntry, value: EntryValue, into: Uint8Array, at: number): void {
  if (value.bytes.length !== MXFS_LVB_LEN) {
    throw new RangeError(`lock value: expected ${MXFS_LVB_LEN} bytes, found ${value.bytes.length}`);
  }
  const view = viewOf(into);
  into.fill(0, at, at + MXFS_LOCK_ENTRY_SIZE);
  into.set(value.bytes, at + LOCK_VALUE.value);
  view.setBigUint64(at + LOCK_ENTRY.lockId, assertU64(entry.lockId, "lock id"), true);
  view.setBigUint64(at + LOCK_VALUE.valueSeq, assertU64(value.seq, "value seq"), true);
  view.setUint32(at + LOCK_ENTRY.seq, entry.seq, true);
  view.setUint8(at + LOCK_VALUE.state, value.valid ? 0 : 1);
  view.setUint16(at + LOCK_ENTRY.flags, MXFS_LKF_IS_VALUE, true);
  view.setUint32(at + LOCK_ENTRY.node, entry.node, true);
}

export function decodeEntryValue(bytes: Uint8Array, at: number): EntryValue {
  const view = viewOf(bytes);
  return {
    bytes: bytes.slice(at + LOCK_VALUE.value, at + LOCK_VALUE.value + MXFS_LVB_LEN),
    seq: view.getBigUint64(at + LOCK_VALUE.valueSeq, true),
    valid: view.getUint8(at + LOCK_VALUE.state) === 0,
  };
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

/** An entry and what comes with it. */
export interface ValuedEntry {
  readonly entry: LockEntry;
  readonly value: EntryValue | null;
}

/** Entries as one body; one with a value gets MXFS_LKF_VALUE. */
export function encodeValuedEntries(entries: readonly ValuedEntry[]): Uint8Array<ArrayBuffer> {
  const slots = entries.reduce((sum, { value }) => sum + (value === null ? 1 : 2), 0);
  const bytes = new Uint8Array(slots * MXFS_LOCK_ENTRY_SIZE);
  let at = 0;
  for (const { entry, value } of entries) {
    encodeLockEntry(value === null ? entry : { ...entry, flags: entry.flags | MXFS_LKF_VALUE }, bytes, at);
    if (value !== null) encodeEntryValue(entry, value, bytes, at + MXFS_LOCK_ENTRY_SIZE);
    at += value === null ? MXFS_LOCK_ENTRY_SIZE : 2 * MXFS_LOCK_ENTRY_SIZE;
  }
  return bytes;
}

/** Entries as one body, without values. */
export function encodeLockEntries(entries: readonly LockEntry[]): Uint8Array<ArrayBuffer> {
  return encodeValuedEntries(entries.map((entry) => ({ entry, value: null })));
}

/** Checks and reads a body of entries with values. @throws WireError */
export function decodeValuedEntries(bytes: Uint8Array, countMax: number): ValuedEntry[] {
  checkLockEntries(bytes, countMax, true);
  const entries: ValuedEntry[] = [];
  for (let at = 0; at < bytes.length; at += entrySize(bytes, at)) {
    const entry = decodeLockEntry(bytes, at);
    const value =
      (entry.flags & MXFS_LKF_VALUE) !== 0 ? decodeEntryValue(bytes, at + MXFS_LOCK_ENTRY_SIZE) : null;
    entries.push({ entry, value });
  }
  return entries;
}

/** Checks and reads a body of entries without values. @throws WireError */
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
