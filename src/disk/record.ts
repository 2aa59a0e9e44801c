// SPDX-License-Identifier: GPL-2.0-only
/**
 * Codecs of the small records in .mxfs/lockstate: the common prefix, heartbeats and journal slots
 * (include/mxfs/disk.h is the layout). Pure bytes in and out; who reads and writes them is the workers' business.
 *
 * Every record is checked on reading as on writing: magic, version, type, CRC32C over the whole record, volume.
 * A record that fails is an error with a stable code; an all-zero one is EMPTY (never written), which callers
 * treat as absent without complaint.
 *
 * Known weakness: a torn write and plain corruption look the same (BAD_CRC); both count as absent.
 */

import {
  MXFS_DISK_HEADER,
  MXFS_DISK_HEARTBEAT,
  MXFS_DISK_JOURNAL,
  MXFS_DISK_LOCK,
  MXFS_DISK_MAGIC,
  MXFS_DISK_RECORD_SIZE_MAX,
  MXFS_DISK_RECORD_SIZE_MIN,
  MXFS_DISK_VERSION,
} from "../wire/abi.js";
import * as wire_address from "../wire/address.js";
import { crc32cExcept } from "../wire/crc32c.js";
import { viewOf } from "../wire/error.js";

export const DISK_RECORD_TYPE = {
  HEADER: MXFS_DISK_HEADER,
  HEARTBEAT: MXFS_DISK_HEARTBEAT,
  JOURNAL: MXFS_DISK_JOURNAL,
  LOCK: MXFS_DISK_LOCK,
} as const;
export type DiskRecordType = (typeof DISK_RECORD_TYPE)[keyof typeof DISK_RECORD_TYPE];

const CRC_OFFSET = 8;
const HOST_NAME_BYTES = 64;

export type DiskFormatCode =
  /** All zero: never written, or cleared. */
  | "EMPTY"
  /** The buffer is not as long as the record must be. */
  | "SHORT"
  | "BAD_MAGIC"
  | "BAD_VERSION"
  /** A sound record of another type: it lies in the wrong place. */
  | "BAD_TYPE"
  /** Torn by an interrupted write, or damaged. */
  | "BAD_CRC"
  /** A sound record of another volume. */
  | "FOREIGN"
  /** The checksum is right and a field is not: written by a faulty program. */
  | "BAD_FIELD"
  /** lockstate's extents do not cover the place. */
  | "UNMAPPED";

/** The only error the lockstate codecs throw. `code` is stable. */
export class DiskFormatError extends Error {
  readonly code: DiskFormatCode;
  constructor(code: DiskFormatCode, message: string) {
    super(message);
    this.name = "DiskFormatError";
    this.code = code;
  }
}

/** What every record begins with. */
export interface RecordPrefix {
  readonly volume: bigint;
  readonly epoch: bigint;
  /** Rises with every write of this record. */
  readonly sequence: bigint;
}

export const JOURNAL_STATE = { FREE: 0, MEMBER: 1, HOLDER: 2, NEEDS_RECOVERY: 3, RECOVERING: 4 } as const;
export type JournalState = (typeof JOURNAL_STATE)[keyof typeof JOURNAL_STATE];

/** As `status` and dumps call it. */
export function journalStateName(state: JournalState): string {
  return ["free", "member", "holder", "needs recovery", "being recovered"][state] ?? `state ${state}`;
}

export interface HeartbeatRecord extends RecordPrefix {
  readonly node: number;
  readonly incarnation: number;
  /** Lower case, with dashes. */
  readonly uuid: string;
  /** MXFS_ROLE_*: 0 none, 1 holder, 2 member. */
  readonly role: number;
  readonly port: number;
  /** Textual IPv4 or IPv6, or "" for none. */
  readonly address: string;
  /** Bit n: the node in slot n cannot be reached by TCP. */
  readonly unreachableSlots: bigint;
  readonly hostName: string;
}

export interface JournalRecord extends RecordPrefix {
  readonly node: number;
  readonly incarnation: number;
  readonly state: JournalState;
  readonly recoverer: number;
}

function isAllZero(bytes: Uint8Array): boolean {
  for (let i = 0; i < bytes.length; i++) if (bytes[i] !== 0) return false;
  return true;
}

/** A zeroed record with its prefix; fill in the rest, then sealRecord(). */
export function openRecord(size: number, type: DiskRecordType, prefix: RecordPrefix): Uint8Array {
  const bytes = new Uint8Array(size);
  const view = viewOf(bytes);
  view.setUint32(0, MXFS_DISK_MAGIC, true);
  view.setUint16(4, MXFS_DISK_VERSION, true);
  view.setUint16(6, type, true);
  view.setBigUint64(16, u64("volume", prefix.volume), true);
  view.setBigUint64(24, u64("epoch", prefix.epoch), true);
  view.setBigUint64(32, u64("sequence", prefix.sequence), true);
  return bytes;
}

/** Puts the checksum in. */
export function sealRecord(bytes: Uint8Array): Uint8Array {
  viewOf(bytes).setUint32(CRC_OFFSET, crc32cExcept(bytes, CRC_OFFSET), true);
  return bytes;
}

/** Checks everything that is common to all records; `what` names the record in messages. Throws DiskFormatError. */
export function readPrefix(
  bytes: Uint8Array,
  size: number,
  type: DiskRecordType,
  volume: bigint,
  what: string,
): RecordPrefix {
  if (bytes.length !== size) {
    throw new DiskFormatError("SHORT", `${what}: expected ${size} bytes, got ${bytes.length}`);
  }
  if (isAllZero(bytes)) throw new DiskFormatError("EMPTY", `${what}: all zero, never written`);
  const view = viewOf(bytes);
  const magic = view.getUint32(0, true);
  if (magic !== MXFS_DISK_MAGIC) {
    throw new DiskFormatError(
      "BAD_MAGIC",
      `${what}: magic ${hex(magic, 8)}, expected ${hex(MXFS_DISK_MAGIC, 8)}`,
    );
  }
  const version = view.getUint16(4, true);
  if (version !== MXFS_DISK_VERSION) {
    throw new DiskFormatError(
      "BAD_VERSION",
      `${what}: version ${version}, this program knows ${MXFS_DISK_VERSION}; use the same MXFS on all nodes`,
    );
  }
  const stored = view.getUint32(CRC_OFFSET, true);
  const computed = crc32cExcept(bytes, CRC_OFFSET);
  if (stored !== computed) {
    throw new DiskFormatError(
      "BAD_CRC",
      `${what}: checksum ${hex(stored, 8)}, computed ${hex(computed, 8)}; torn by an interrupted write, or damaged`,
    );
  }
  const found_type = view.getUint16(6, true);
  if (found_type !== type) {
    throw new DiskFormatError("BAD_TYPE", `${what}: record type ${found_type}, expected ${type}`);
  }
  const found_volume = view.getBigUint64(16, true);
  if (found_volume !== volume) {
    throw new DiskFormatError(
      "FOREIGN",
      `${what}: belongs to volume ${found_volume.toString(16)}, expected ${volume.toString(16)}`,
    );
  }
  return { volume, epoch: view.getBigUint64(24, true), sequence: view.getBigUint64(32, true) };
}

/** Bytes of one heartbeat record. `recordSize` is max(512, logical block size). */
export function encodeHeartbeat(record: HeartbeatRecord, recordSize: number): Uint8Array {
  checkRecordSize(recordSize);
  const bytes = openRecord(recordSize, DISK_RECORD_TYPE.HEARTBEAT, record);
  const view = viewOf(bytes);
  view.setUint32(40, u32("node", record.node), true);
  view.setUint32(44, u32("incarnation", record.incarnation), true);
  bytes.set(parseUuid(record.uuid), 48);
  view.setUint32(64, u32("role", record.role), true);
  if (record.port < 0 || record.port > 0xffff) badField(`heartbeat port ${record.port}`);
  view.setUint16(68, record.port, true);
  const address = parseAddress(record.address);
  view.setUint16(70, address.family, true);
  bytes.set(address.bytes, 72);
  view.setBigUint64(88, u64("unreachable mask", record.unreachableSlots), true);
  bytes.set(truncateUtf8(record.hostName, HOST_NAME_BYTES), 96);
  return sealRecord(bytes);
}

/** Throws DiskFormatError. */
export function decodeHeartbeat(bytes: Uint8Array, recordSize: number, volume: bigint): HeartbeatRecord {
  checkRecordSize(recordSize);
  const prefix = readPrefix(bytes, recordSize, DISK_RECORD_TYPE.HEARTBEAT, volume, "heartbeat record");
  const view = viewOf(bytes);
  const role = view.getUint32(64, true);
  if (role > 2) badField(`heartbeat record: role ${role}, expected 0 to 2`);
  const name = bytes.subarray(96, 96 + HOST_NAME_BYTES);
  const end = name.indexOf(0);
  return {
    ...prefix,
    node: view.getUint32(40, true),
    incarnation: view.getUint32(44, true),
    uuid: formatUuid(bytes.subarray(48, 64)),
    role,
    port: view.getUint16(68, true),
    address: formatAddress(view.getUint16(70, true), bytes.subarray(72, 88)),
    unreachableSlots: view.getBigUint64(88, true),
    hostName: new TextDecoder().decode(end < 0 ? name : name.subarray(0, end)),
  };
}

export function encodeJournal(record: JournalRecord, recordSize: number): Uint8Array {
  checkRecordSize(recordSize);
  const bytes = openRecord(recordSize, DISK_RECORD_TYPE.JOURNAL, record);
  const view = viewOf(bytes);
  view.setUint32(40, u32("node", record.node), true);
  view.setUint32(44, u32("incarnation", record.incarnation), true);
  view.setUint32(48, checkJournalState(record.state), true);
  view.setUint32(52, u32("recoverer", record.recoverer), true);
  return sealRecord(bytes);
}

/** Throws DiskFormatError. */
export function decodeJournal(bytes: Uint8Array, recordSize: number, volume: bigint): JournalRecord {
  checkRecordSize(recordSize);
  const prefix = readPrefix(bytes, recordSize, DISK_RECORD_TYPE.JOURNAL, volume, "journal slot");
  const view = viewOf(bytes);
  return {
    ...prefix,
    node: view.getUint32(40, true),
    incarnation: view.getUint32(44, true),
    state: checkJournalState(view.getUint32(48, true)),
    recoverer: view.getUint32(52, true),
  };
}

function checkJournalState(state: number): JournalState {
  if (!Number.isInteger(state) || state < 0 || state > 4)
    badField(`journal slot: state ${state}, expected 0 to 4`);
  return state as JournalState;
}

export function checkRecordSize(recordSize: number): void {
  const power_of_two = Number.isInteger(recordSize) && (recordSize & (recordSize - 1)) === 0;
  if (!power_of_two || recordSize < MXFS_DISK_RECORD_SIZE_MIN || recordSize > MXFS_DISK_RECORD_SIZE_MAX) {
    badField(
      `record size ${recordSize}, expected a power of two from ${MXFS_DISK_RECORD_SIZE_MIN} to ${MXFS_DISK_RECORD_SIZE_MAX}`,
    );
  }
}

export function badField(message: string): never {
  throw new DiskFormatError("BAD_FIELD", message);
}

export function u32(name: string, value: number): number {
  if (!Number.isInteger(value) || value < 0 || value > 0xffff_ffff) badField(`${name} ${value} is not a u32`);
  return value;
}

export function u64(name: string, value: bigint): bigint {
  if (value < 0n || value > 0xffff_ffff_ffff_ffffn) badField(`${name} ${value} is not a u64`);
  return value;
}

function hex(value: number, digits: number): string {
  return `${value.toString(16).padStart(digits, "0")}h`;
}

/** Cuts at a character's border. */
function truncateUtf8(text: string, bytesMax: number): Uint8Array {
  const into = new Uint8Array(bytesMax);
  const { written } = new TextEncoder().encodeInto(text, into);
  return into.subarray(0, written);
}

/** 16 bytes of a textual UUID (RFC 9562, with dashes). */
export function parseUuid(text: string): Uint8Array {
  const digits = text.replaceAll("-", "");
  if (!/^[0-9a-fA-F]{32}$/.test(digits)) badField(`"${text}" is not a UUID`);
  return Uint8Array.from({ length: 16 }, (_, i) => Number.parseInt(digits.slice(2 * i, 2 * i + 2), 16));
}

export function formatUuid(bytes: Uint8Array): string {
  let text = "";
  for (let i = 0; i < 16; i++) {
    text += (bytes[i] ?? 0).toString(16).padStart(2, "0");
    if (i === 3 || i === 5 || i === 7 || i === 9) text += "-";
  }
  return text;
}

/** Family 4, 6, or 0 for "", and 16 bytes in network order (an IPv4 address in the first four). */
function parseAddress(text: string): { family: 0 | 4 | 6; bytes: Uint8Array } {
  if (text === "") return { family: 0, bytes: new Uint8Array(16) };
  return wire_address.parseAddress(text) ?? badField(`"${text}" is neither an IPv4 nor an IPv6 address`);
}

function formatAddress(family: number, bytes: Uint8Array): string {
  if (family === 0) return "";
  return (
    wire_address.formatAddress(family, bytes) ?? badField(`address family ${family}, expected 0, 4 or 6`)
  );
}
