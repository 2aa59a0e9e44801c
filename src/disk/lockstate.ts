// SPDX-License-Identifier: GPL-2.0-only
/**
 * .mxfs/lockstate as a whole: the codec of its header, which of the two header copies counts, where each record
 * lies in the file, and where a place in the file lies on the device (include/mxfs/disk.h is the layout).
 *
 * The header is written by the journal holder only, alternately to A and B with a rising sequence, so one sound
 * copy survives a torn write. Its member list is in order of rank: who has been in the view longest comes first.
 * Entries in state DEAD are nodes that were evicted and have not been seen to come back: while there are any, the
 * last leaver keeps the reservation.
 *
 * Known weakness: a header that is sound and old (its newer copy torn) is taken; the epoch rule covers that, since
 * a new epoch is also above any that a member reports.
 */

import {
  MXFS_DISK_CLUSTER_KEY_SIZE,
  MXFS_DISK_EXTENT_COUNT_MAX,
  MXFS_DISK_HEADER_A_OFFSET,
  MXFS_DISK_HEADER_B_OFFSET,
  MXFS_DISK_HEADER_CHUNKS_OFFSET,
  MXFS_DISK_HEADER_EXTENTS_OFFSET,
  MXFS_DISK_HEADER_MEMBERS_OFFSET,
  MXFS_DISK_HEADER_SIZE,
  MXFS_DISK_HEARTBEAT_OFFSET,
  MXFS_DISK_JOURNAL_OFFSET,
  MXFS_DISK_LOCK_CHUNK_COUNT_MAX,
  MXFS_DISK_LOCK_CHUNK_RECORDS,
  MXFS_DISK_LOCK_OFFSET,
  MXFS_NODE_ACTIVE,
  MXFS_NODE_COUNT_MAX,
  MXFS_NODE_DEAD,
} from "../wire/abi.js";
import { viewOf } from "../wire/error.js";
import {
  badField,
  checkRecordSize,
  DISK_RECORD_TYPE,
  DiskFormatError,
  formatUuid,
  openRecord,
  parseUuid,
  type RecordPrefix,
  readPrefix,
  sealRecord,
  u32,
} from "./record.js";

/** MXFS_NODE_* values that occur in the header. */
export const HEADER_MEMBER_STATE = { ACTIVE: MXFS_NODE_ACTIVE, DEAD: MXFS_NODE_DEAD } as const;

export interface HeaderMember {
  readonly node: number;
  readonly incarnation: number;
  readonly slot: number;
  /** HEADER_MEMBER_STATE value. */
  readonly state: number;
}

/** A stretch of lockstate on the device; all in bytes. */
export interface LockstateExtent {
  readonly fileOffset: number;
  readonly deviceOffset: number;
  readonly length: number;
}

export interface DiskHeader extends RecordPrefix {
  /** sb_uuid of the XFS. */
  readonly volumeUuid: string;
  readonly ino: bigint;
  readonly generation: number;
  readonly recordSize: number;
  readonly lockRecordCount: number;
  /** Who wrote it. Without an ACTIVE member it has left cleanly, and whoever reserves next finds nobody. */
  readonly holder: number;
  readonly holderIncarnation: number;
  readonly clusterKey: Uint8Array;
  readonly members: readonly HeaderMember[];
  readonly extents: readonly LockstateExtent[];
  /** Who writes each chunk of lock records: heartbeat slot + 1, 0 nobody; MXFS_DISK_LOCK_CHUNK_COUNT_MAX of them. */
  readonly chunkOwners: Uint8Array;
}

/** Where lockstate lies: found by reading the raw XFS, repeated by the header. */
export interface LockstateLocation {
  readonly ino: bigint;
  readonly generation: number;
  /** Bytes. */
  readonly size: number;
  readonly recordSize: number;
  readonly extents: readonly LockstateExtent[];
}

export function encodeHeader(header: DiskHeader): Uint8Array {
  checkRecordSize(header.recordSize);
  if (header.members.length > MXFS_NODE_COUNT_MAX) {
    badField(`header: ${header.members.length} members, at most ${MXFS_NODE_COUNT_MAX}`);
  }
  if (header.extents.length > MXFS_DISK_EXTENT_COUNT_MAX) {
    badField(
      `header: lockstate has ${header.extents.length} extents, at most ${MXFS_DISK_EXTENT_COUNT_MAX}; ` +
        "remove .mxfs/lockstate with the XFS mounted plainly and nobody on MXFS, after freeing space",
    );
  }
  if (header.clusterKey.length !== MXFS_DISK_CLUSTER_KEY_SIZE)
    badField(`header: cluster key of ${header.clusterKey.length} bytes`);
  if (header.chunkOwners.length !== MXFS_DISK_LOCK_CHUNK_COUNT_MAX)
    badField(`header: ${header.chunkOwners.length} chunk owners, expected ${MXFS_DISK_LOCK_CHUNK_COUNT_MAX}`);
  const bytes = openRecord(MXFS_DISK_HEADER_SIZE, DISK_RECORD_TYPE.HEADER, header);
  const view = viewOf(bytes);
  bytes.set(parseUuid(header.volumeUuid), 40);
  view.setBigUint64(56, header.ino, true);
  view.setUint32(64, u32("generation", header.generation), true);
  view.setUint32(68, header.recordSize, true);
  view.setBigUint64(72, BigInt(header.lockRecordCount), true);
  view.setUint32(80, u32("holder", header.holder), true);
  view.setUint32(84, u32("holder incarnation", header.holderIncarnation), true);
  bytes.set(header.clusterKey, 88);
  view.setUint32(120, header.members.length, true);
  view.setUint32(124, header.extents.length, true);
  for (const [i, member] of header.members.entries()) {
    const at = MXFS_DISK_HEADER_MEMBERS_OFFSET + 16 * i;
    view.setUint32(at, u32("member", member.node), true);
    view.setUint32(at + 4, u32("member's incarnation", member.incarnation), true);
    view.setUint32(at + 8, checkSlot(member.slot), true);
    view.setUint32(at + 12, u32("member's state", member.state), true);
  }
  for (const [i, extent] of header.extents.entries()) {
    const at = MXFS_DISK_HEADER_EXTENTS_OFFSET + 24 * i;
    view.setBigUint64(at, BigInt(extent.fileOffset), true);
    view.setBigUint64(at + 8, BigInt(extent.deviceOffset), true);
    view.setBigUint64(at + 16, BigInt(extent.length), true);
  }
  bytes.set(header.chunkOwners, MXFS_DISK_HEADER_CHUNKS_OFFSET);
  return sealRecord(bytes);
}

/** Whole chunks in a lock area of this many records. */
export function chunkCount(lockRecordCount: number): number {
  return Math.min(Math.floor(lockRecordCount / MXFS_DISK_LOCK_CHUNK_RECORDS), MXFS_DISK_LOCK_CHUNK_COUNT_MAX);
}

/** Throws DiskFormatError. */
export function decodeHeader(bytes: Uint8Array, volume: bigint): DiskHeader {
  const prefix = readPrefix(
    bytes,
    MXFS_DISK_HEADER_SIZE,
    DISK_RECORD_TYPE.HEADER,
    volume,
    "lockstate header",
  );
  const view = viewOf(bytes);
  const member_count = view.getUint32(120, true);
  const extent_count = view.getUint32(124, true);
  if (member_count > MXFS_NODE_COUNT_MAX) badField(`lockstate header: ${member_count} members`);
  if (extent_count > MXFS_DISK_EXTENT_COUNT_MAX) badField(`lockstate header: ${extent_count} extents`);
  const record_size = view.getUint32(68, true);
  checkRecordSize(record_size);
  const members: HeaderMember[] = [];
  const slots = new Set<number>();
  const nodes = new Set<number>();
  for (let i = 0; i < member_count; i++) {
    const at = MXFS_DISK_HEADER_MEMBERS_OFFSET + 16 * i;
    const member = {
      node: view.getUint32(at, true),
      incarnation: view.getUint32(at + 4, true),
      slot: checkSlot(view.getUint32(at + 8, true)),
      state: view.getUint32(at + 12, true),
    };
    if (member.state === HEADER_MEMBER_STATE.ACTIVE) {
      if (slots.has(member.slot)) badField(`lockstate header: slot ${member.slot} is given twice`);
      if (nodes.has(member.node))
        badField(`lockstate header: node ${member.node.toString(16)} is listed twice`);
      slots.add(member.slot);
      nodes.add(member.node);
    }
    members.push(member);
  }
  const chunk_owners = bytes.slice(
    MXFS_DISK_HEADER_CHUNKS_OFFSET,
    MXFS_DISK_HEADER_CHUNKS_OFFSET + MXFS_DISK_LOCK_CHUNK_COUNT_MAX,
  );
  if (chunk_owners.some((owner) => owner > MXFS_NODE_COUNT_MAX)) {
    badField("lockstate header: a chunk of lock records belongs to a slot that does not exist");
  }
  const extents: LockstateExtent[] = [];
  for (let i = 0; i < extent_count; i++) {
    const at = MXFS_DISK_HEADER_EXTENTS_OFFSET + 24 * i;
    extents.push({
      fileOffset: safeNumber("extent's file offset", view.getBigUint64(at, true)),
      deviceOffset: safeNumber("extent's device offset", view.getBigUint64(at + 8, true)),
      length: safeNumber("extent's length", view.getBigUint64(at + 16, true)),
    });
  }
  return {
    ...prefix,
    volumeUuid: formatUuid(bytes.subarray(40, 56)),
    ino: view.getBigUint64(56, true),
    generation: view.getUint32(64, true),
    recordSize: record_size,
    lockRecordCount: safeNumber("lock record count", view.getBigUint64(72, true)),
    holder: view.getUint32(80, true),
    holderIncarnation: view.getUint32(84, true),
    clusterKey: bytes.slice(88, 88 + MXFS_DISK_CLUSTER_KEY_SIZE),
    members,
    extents,
    chunkOwners: chunk_owners,
  };
}

function checkSlot(slot: number): number {
  if (!Number.isInteger(slot) || slot < 0 || slot >= MXFS_NODE_COUNT_MAX) {
    badField(`slot ${slot}, expected 0 to ${MXFS_NODE_COUNT_MAX - 1}`);
  }
  return slot;
}

function safeNumber(name: string, value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) badField(`lockstate header: ${name} ${value} is beyond 2^53`);
  return Number(value);
}

/** One copy of the header as read: sound, or why not. */
export type HeaderCopy = DiskHeader | DiskFormatError;

export function tryDecodeHeader(bytes: Uint8Array, volume: bigint): HeaderCopy {
  try {
    return decodeHeader(bytes, volume);
  } catch (error) {
    if (error instanceof DiskFormatError) return error;
    throw error;
  }
}

/** The sound copy with the higher sequence; null when neither is sound. */
export function chooseHeader(a: HeaderCopy, b: HeaderCopy): DiskHeader | null {
  if (a instanceof DiskFormatError) return b instanceof DiskFormatError ? null : b;
  if (b instanceof DiskFormatError) return a;
  return b.sequence > a.sequence ? b : a;
}

/** Copies alternate: where the header with this sequence goes, as a file offset in bytes. */
export function headerOffset(sequence: bigint): number {
  return (sequence & 1n) === 0n ? MXFS_DISK_HEADER_A_OFFSET : MXFS_DISK_HEADER_B_OFFSET;
}

export function heartbeatOffset(slot: number, recordSize: number): number {
  checkRecordSize(recordSize);
  return MXFS_DISK_HEARTBEAT_OFFSET + checkSlot(slot) * recordSize;
}

export function journalOffset(slot: number, recordSize: number): number {
  checkRecordSize(recordSize);
  return MXFS_DISK_JOURNAL_OFFSET + checkSlot(slot) * recordSize;
}

export function lockRecordOffset(index: number, recordSize: number, lockRecordCount: number): number {
  checkRecordSize(recordSize);
  if (!Number.isInteger(index) || index < 0 || index >= lockRecordCount) {
    badField(`lock record ${index}, expected 0 to ${lockRecordCount - 1}`);
  }
  return MXFS_DISK_LOCK_OFFSET + index * recordSize;
}

/** Bytes of the whole file. */
export function lockstateSize(recordSize: number, lockRecordCount: number): number {
  checkRecordSize(recordSize);
  return MXFS_DISK_LOCK_OFFSET + recordSize * lockRecordCount;
}

export interface DeviceRun {
  readonly deviceOffset: number;
  readonly length: number;
}

/** Where the bytes [fileOffset, fileOffset + length) of lockstate lie on the device. Throws UNMAPPED. */
export function mapToDevice(
  extents: readonly LockstateExtent[],
  fileOffset: number,
  length: number,
): DeviceRun[] {
  const runs: DeviceRun[] = [];
  let at = fileOffset;
  const end = fileOffset + length;
  while (at < end) {
    const extent = extents.find((e) => at >= e.fileOffset && at < e.fileOffset + e.length);
    if (extent === undefined) {
      throw new DiskFormatError(
        "UNMAPPED",
        `lockstate: byte ${at} is not covered by its ${extents.length} extents`,
      );
    }
    const into = at - extent.fileOffset;
    const step = Math.min(end - at, extent.length - into);
    runs.push({ deviceOffset: extent.deviceOffset + into, length: step });
    at += step;
  }
  return runs;
}

/** As mapToDevice(), for a record that must lie in one piece (a record's write must be one command). */
export function mapRecord(extents: readonly LockstateExtent[], fileOffset: number, length: number): number {
  const runs = mapToDevice(extents, fileOffset, length);
  const run = runs[0];
  if (run === undefined || runs.length !== 1) {
    throw new DiskFormatError(
      "UNMAPPED",
      `lockstate: the record at ${fileOffset} is split over ${runs.length} extents`,
    );
  }
  return run.deviceOffset;
}

/** Why the header does not belong to the file that was found; null when it does. */
export function headerMismatch(header: DiskHeader, found: LockstateLocation): string | null {
  if (header.ino !== found.ino) return `header names inode ${header.ino}, the file is inode ${found.ino}`;
  if (header.generation !== found.generation) {
    return `header names generation ${header.generation}, the file has ${found.generation}`;
  }
  if (header.recordSize !== found.recordSize) {
    return `header was made for records of ${header.recordSize} bytes, this device needs ${found.recordSize}`;
  }
  const same =
    header.extents.length === found.extents.length &&
    header.extents.every((e, i) => {
      const f = found.extents[i];
      return f?.fileOffset === e.fileOffset && f.deviceOffset === e.deviceOffset && f.length === e.length;
    });
  return same ? null : "the file's extents are not those that the header repeats";
}
