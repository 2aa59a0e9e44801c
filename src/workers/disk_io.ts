// SPDX-License-Identifier: GPL-2.0-only
//
// The raw device, as the lease and the heartbeat worker use it: the DiskPort of the cluster core over O_DIRECT reads and
// writes.
//
// All of it is read past every cache (O_DIRECT), in whole records. A write refused by the target's reservation
// fails with EBADE (52): this node was fenced.
//
// Known weakness: a disk whose path is lost makes reads hang for as long as the kernel's SCSI layer waits (30 s a
// command by default); one thread of the pool each.

import { Buffer } from "node:buffer";
import { setTimeout as pause } from "node:timers/promises";
import {
  allocAligned,
  blockDeviceBytes,
  closeFd,
  isNativeError,
  logicalBlockBytes,
  openDirect,
  preadAsync,
  pwriteAsync,
} from "../../native/index.js";
import type {
  HeaderOutcome,
  HeartbeatsOutcome,
  JournalsOutcome,
  LocateOutcome,
  LockAreaOutcome,
  WriteOutcome,
} from "../cluster/ports.js";
import { readLockArea as readRecords } from "../disk/lock_records.js";
import {
  chooseHeader,
  chunkCount,
  type DiskHeader,
  encodeHeader,
  HEADER_MEMBER_STATE,
  headerOffset,
  journalOffset,
  type LockstateLocation,
  mapToDevice,
  tryDecodeHeader,
} from "../disk/lockstate.js";
import {
  DiskFormatError,
  decodeHeartbeat,
  decodeJournal,
  encodeJournal,
  type HeartbeatRecord,
  type JournalRecord,
} from "../disk/record.js";
import { findPath, readSuperblock } from "../disk/xfs.js";
import { type BlockReader, XfsFormatError, type XfsSuperblock } from "../disk/xfs_types.js";
import {
  MXFS_DIR_NAME,
  MXFS_DISK_HEADER_A_OFFSET,
  MXFS_DISK_HEADER_B_OFFSET,
  MXFS_DISK_HEADER_SIZE,
  MXFS_DISK_HEARTBEAT_OFFSET,
  MXFS_DISK_JOURNAL_OFFSET,
  MXFS_DISK_LOCK_CHUNK_RECORDS,
  MXFS_DISK_LOCK_OFFSET,
  MXFS_DISK_RECORD_SIZE_MIN,
  MXFS_LOCKSTATE_NAME,
  MXFS_NODE_COUNT_MAX,
} from "../wire/abi.js";
import { messageOf } from "../wire/error.js";

const ALIGNMENT = 4096;
const LOCATE_TRIES = 5;
const LOCATE_PAUSE_MS = 50;

/** EBADE is what a write refused by a reservation ends with (drivers/scsi, SAM status 18h). */
function writeFailure(error: unknown): WriteOutcome {
  return isNativeError(error) && error.code === "EBADE"
    ? { kind: "conflict" }
    : { kind: "error", message: messageOf(error) };
}

/** What lockstate is read from: a device, or a copy of one. */
export interface RecordDevice extends BlockReader {
  /** Bytes of one lockstate record. */
  readonly recordSize: number;
}

/** One block device, opened for O_DIRECT. Each thread has its own. */
export class RawDevice implements RecordDevice {
  readonly fd: number;
  readonly sectorSize: number;
  readonly sizeBytes: number;
  /** Bytes of one lockstate record. */
  readonly recordSize: number;

  /** @throws NativeError when the device cannot be opened, or is no block device. */
  constructor(
    readonly path: string,
    write: boolean,
  ) {
    this.fd = openDirect(path, { write, exclusive: false, dsync: write });
    this.sectorSize = logicalBlockBytes(this.fd);
    this.sizeBytes = blockDeviceBytes(this.fd);
    this.recordSize = Math.max(MXFS_DISK_RECORD_SIZE_MIN, this.sectorSize);
  }

  async read(offsetBytes: number, lengthBytes: number): Promise<Uint8Array> {
    const buffer = allocAligned(lengthBytes, ALIGNMENT);
    const moved = await preadAsync(this.fd, buffer, offsetBytes);
    if (moved !== lengthBytes) {
      throw new Error(`${this.path}: only ${moved} of ${lengthBytes} bytes at ${offsetBytes} could be read`);
    }
    return buffer;
  }

  async write(offsetBytes: number, bytes: Uint8Array): Promise<void> {
    const buffer = allocAligned(bytes.length, ALIGNMENT);
    buffer.set(bytes);
    await pwriteAsync(this.fd, buffer, offsetBytes);
  }

  close(): void {
    closeFd(this.fd);
  }
}

/** Reads a stretch of lockstate. */
export async function readLockstate(
  device: RecordDevice,
  location: LockstateLocation,
  offset: number,
  length: number,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const run of mapToDevice(location.extents, offset, length)) {
    bytes.set(await device.read(run.deviceOffset, run.length), at);
    at += run.length;
  }
  return bytes;
}

/** Writes a stretch of lockstate; durable on return. */
export async function writeLockstate(
  device: RawDevice,
  location: LockstateLocation,
  offset: number,
  bytes: Uint8Array,
): Promise<void> {
  let at = 0;
  for (const run of mapToDevice(location.extents, offset, bytes.length)) {
    await device.write(run.deviceOffset, bytes.subarray(at, at + run.length));
    at += run.length;
  }
}

/** Finds .mxfs/lockstate on the raw device; retries what may be a read in the middle of the holder's write. */
export async function locateLockstate(device: RecordDevice): Promise<LocateOutcome> {
  let last = "";
  for (let attempt = 1; attempt <= LOCATE_TRIES; attempt++) {
    try {
      const sb: XfsSuperblock = await readSuperblock(device);
      const file = await findPath(device, sb, [MXFS_DIR_NAME, MXFS_LOCKSTATE_NAME]);
      if (
        file.kind !== "file" ||
        file.extents.length === 0 ||
        file.extents.some((extent) => extent.unwritten)
      ) {
        return { kind: "unreadable", message: `lockstate (inode ${file.ino}) is not written out yet` };
      }
      return {
        kind: "found",
        location: {
          ino: file.ino,
          generation: file.generation,
          size: file.size,
          recordSize: device.recordSize,
          extents: file.extents.map((extent) => ({
            fileOffset: extent.fileOffsetBlocks * sb.blockSize,
            deviceOffset: extent.startByte,
            length: extent.lengthBytes,
          })),
        },
      };
    } catch (error) {
      if (!(error instanceof XfsFormatError)) {
        throw error;
      }
      if (error.code === "NOT_FOUND") {
        return { kind: "not-found" };
      }
      last = error.message;
      if (!error.retriable) {
        break;
      }
      await pause(LOCATE_PAUSE_MS * attempt);
    }
  }
  return { kind: "unreadable", message: last };
}

export async function readHeader(
  device: RecordDevice,
  location: LockstateLocation,
  volume: bigint,
): Promise<HeaderOutcome> {
  try {
    const copies = [];
    for (const offset of [MXFS_DISK_HEADER_A_OFFSET, MXFS_DISK_HEADER_B_OFFSET]) {
      copies.push(
        tryDecodeHeader(await readLockstate(device, location, offset, MXFS_DISK_HEADER_SIZE), volume),
      );
    }
    const [a, b] = copies;
    if (a === undefined || b === undefined) {
      throw new Error("unreachable: two header copies are read");
    }
    const problems = copies
      .filter((copy) => copy instanceof DiskFormatError)
      .filter((problem) => problem.code !== "EMPTY")
      .map((problem) => problem.message);
    const header = chooseHeader(a, b);
    return header === null ? { kind: "none", problems } : { kind: "found", header, problems };
  } catch (error) {
    return { kind: "error", message: messageOf(error) };
  }
}

export async function writeHeader(
  device: RawDevice,
  location: LockstateLocation,
  header: DiskHeader,
): Promise<WriteOutcome> {
  try {
    await writeLockstate(device, location, headerOffset(header.sequence), encodeHeader(header));
    return { kind: "ok" };
  } catch (error) {
    return writeFailure(error);
  }
}

/** All slots of one kind; unsound ones are null and reported. */
async function readSlots<T>(
  device: RecordDevice,
  location: LockstateLocation,
  offset: number,
  decode: (bytes: Uint8Array, recordSize: number) => T,
  report: (slot: number, problem: string) => void,
): Promise<
  | { readonly kind: "ok"; readonly records: (T | null)[] }
  | { readonly kind: "error"; readonly message: string }
> {
  const { recordSize } = location;
  try {
    const bytes = await readLockstate(device, location, offset, recordSize * MXFS_NODE_COUNT_MAX);
    const records: (T | null)[] = [];
    for (let slot = 0; slot < MXFS_NODE_COUNT_MAX; slot++) {
      try {
        records.push(decode(bytes.slice(slot * recordSize, (slot + 1) * recordSize), recordSize));
      } catch (error) {
        if (!(error instanceof DiskFormatError)) {
          throw error;
        }
        if (error.code !== "EMPTY") {
          report(slot, error.message);
        }
        records.push(null);
      }
    }
    return { kind: "ok", records };
  } catch (error) {
    return { kind: "error", message: messageOf(error) };
  }
}

/** All journal slots; unsound ones are null and reported. */
export function readJournals(
  device: RecordDevice,
  location: LockstateLocation,
  volume: bigint,
  report: (slot: number, problem: string) => void,
): Promise<JournalsOutcome> {
  const decode = (bytes: Uint8Array, size: number): JournalRecord => decodeJournal(bytes, size, volume);
  return readSlots(device, location, MXFS_DISK_JOURNAL_OFFSET, decode, report);
}

/** Durable on return. */
export async function writeJournal(
  device: RawDevice,
  location: LockstateLocation,
  slot: number,
  record: JournalRecord,
): Promise<WriteOutcome> {
  try {
    const { recordSize } = location;
    const bytes = encodeJournal(record, recordSize);
    await writeLockstate(device, location, journalOffset(slot, recordSize), bytes);
    return { kind: "ok" };
  } catch (error) {
    return writeFailure(error);
  }
}

/** All heartbeat slots; unsound ones are null and reported. */
export function readHeartbeats(
  device: RecordDevice,
  location: LockstateLocation,
  volume: bigint,
  report: (slot: number, problem: string) => void,
): Promise<HeartbeatsOutcome> {
  const decode = (bytes: Uint8Array, size: number): HeartbeatRecord => decodeHeartbeat(bytes, size, volume);
  return readSlots(device, location, MXFS_DISK_HEARTBEAT_OFFSET, decode, report);
}

/** Bytes of the lock area that are read at a time. */
const AREA_READ_BYTES = 1 << 20;

/** What the lock records of the header's view say. Only chunks that belong to somebody are read. */
export async function readLockArea(
  device: RecordDevice,
  location: LockstateLocation,
  header: DiskHeader,
): Promise<LockAreaOutcome> {
  const { recordSize, lockRecordCount, volume, epoch } = header;
  try {
    const room = Math.max(0, location.size - MXFS_DISK_LOCK_OFFSET);
    const length =
      Math.min(lockRecordCount, chunkCount(lockRecordCount) * MXFS_DISK_LOCK_CHUNK_RECORDS) * recordSize;
    if (length > room) {
      return {
        kind: "error",
        message: `lockstate has ${room} bytes of lock records, the header says ${length}`,
      };
    }
    const area = new Uint8Array(length);
    const nothing = new Uint8Array(Math.min(AREA_READ_BYTES, length));
    for (let at = 0; at < length; at += AREA_READ_BYTES) {
      const step = Math.min(AREA_READ_BYTES, length - at);
      const piece = await readLockstate(device, location, MXFS_DISK_LOCK_OFFSET + at, step);
      // Most of it is empty, and memory that is not touched costs nothing.
      if (Buffer.compare(piece, nothing.subarray(0, step)) !== 0) area.set(piece, at);
    }
    const report = readRecords(area, recordSize, volume, epoch, (chunk) => {
      const slot = (header.chunkOwners[chunk] ?? 0) - 1;
      return header.members.find((m) => m.slot === slot && m.state === HEADER_MEMBER_STATE.ACTIVE) ?? null;
    });
    return { kind: "ok", report };
  } catch (error) {
    return { kind: "error", message: messageOf(error) };
  }
}
