// SPDX-License-Identifier: GPL-2.0-only
/**
 * `mxfs_lock dump --disk DEVICE`: what .mxfs/lockstate says, read from the raw device or an image of it, without a daemon
 * and without writing anything: header, heartbeats, journal slots, lock records.
 *
 * Records that are not sound are told as problems; only a device without XFS or without lockstate is an error. The
 * cluster key is not shown.
 *
 * Known weakness: a cluster that works goes on writing; each record is sound by itself, together they are no snapshot.
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { type DiskHeader, HEADER_MEMBER_STATE, headerMismatch } from "../disk/lockstate.js";
import { formatUuid, journalStateName } from "../disk/record.js";
import { readSuperblock } from "../disk/xfs.js";
import { MXFS_DISK_RECORD_SIZE_MIN, Role } from "../wire/abi.js";
import { fnv1a64 } from "../wire/fnv.js";
import {
  locateLockstate,
  RawDevice,
  type RecordDevice,
  readHeader,
  readHeartbeats,
  readJournals,
  readLockArea,
} from "../workers/disk_io.js";
import { formatResource, MODE_NAMES } from "./resource_name.js";

/** A plain file that holds a copy of the volume. */
export class ImageFile implements RecordDevice {
  readonly sectorSize = MXFS_DISK_RECORD_SIZE_MIN;
  readonly recordSize = MXFS_DISK_RECORD_SIZE_MIN;
  readonly sizeBytes: number;
  readonly #fd: number;

  constructor(readonly path: string) {
    this.#fd = openSync(path, "r");
    this.sizeBytes = fstatSync(this.#fd).size;
  }

  read(offsetBytes: number, lengthBytes: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(lengthBytes);
    const moved = readSync(this.#fd, bytes, 0, lengthBytes, offsetBytes);
    return moved === lengthBytes
      ? Promise.resolve(bytes)
      : Promise.reject(
          new Error(`${this.path}: only ${moved} of ${lengthBytes} bytes at ${offsetBytes} could be read`),
        );
  }

  close(): void {
    closeSync(this.#fd);
  }
}

function open(path: string): RecordDevice & { close(): void } {
  const fd = openSync(path, "r");
  const is_file = fstatSync(fd).isFile();
  closeSync(fd);
  return is_file ? new ImageFile(path) : new RawDevice(path, false);
}

const hex = (node: number): string => node.toString(16).padStart(8, "0");
const roleName = (role: number): string =>
  role === Role.HOLDER ? "holder" : role === Role.MEMBER ? "member" : "none";

/** The whole of it, ready for JSON: 64-bit numbers are decimal strings, node ids hexadecimal. */
export interface DiskDump {
  readonly volume: { readonly uuid: string; readonly id: string };
  readonly lockstate: { readonly ino: string; readonly bytes: number; readonly recordSize: number };
  readonly header: Readonly<Record<string, unknown>> | null;
  readonly heartbeats: readonly Readonly<Record<string, unknown>>[];
  readonly journals: readonly Readonly<Record<string, unknown>>[];
  readonly locks: readonly Readonly<Record<string, unknown>>[];
  readonly outdatedLockRecords: number;
  readonly problems: readonly string[];
}

/** @throws Error that names the device and what was expected of it. */
export async function dumpDisk(path: string): Promise<DiskDump> {
  const device = open(path);
  try {
    return await dumpFrom(path, device);
  } finally {
    device.close();
  }
}

async function dumpFrom(path: string, device: RecordDevice): Promise<DiskDump> {
  const problems: string[] = [];
  const sb = await readSuperblock(device);
  const volume = fnv1a64(sb.uuid);
  const uuid = formatUuid(sb.uuid);
  const located = await locateLockstate(device);
  if (located.kind === "not-found") {
    throw new Error(`${path} is an XFS without .mxfs/lockstate: it was never mounted with mxfs`);
  }
  if (located.kind === "unreadable") {
    throw new Error(`${path}: .mxfs/lockstate cannot be found: ${located.message}`);
  }
  const { location } = located;
  const outcome = await readHeader(device, location, volume);
  if (outcome.kind === "error") throw new Error(`${path}: the header cannot be read: ${outcome.message}`);
  problems.push(...outcome.problems);
  const header = outcome.kind === "found" ? outcome.header : null;
  if (header !== null) {
    const mismatch = headerMismatch(header, location);
    if (mismatch !== null) problems.push(mismatch);
  }
  const report =
    (what: string) =>
    (slot: number, problem: string): void => {
      problems.push(`${what} ${slot}: ${problem}`);
    };
  const heartbeats = await readHeartbeats(device, location, volume, report("heartbeat slot"));
  const journals = await readJournals(device, location, volume, report("journal slot"));
  for (const read of [heartbeats, journals]) {
    if (read.kind === "error") problems.push(read.message);
  }
  const read = header === null ? null : await readLockArea(device, location, header);
  if (read?.kind === "error") problems.push(`lock records: ${read.message}`);
  const area = read?.kind === "ok" ? read.report : null;
  problems.push(...(area?.problems ?? []));
  return {
    volume: { uuid, id: volume.toString(16).padStart(16, "0") },
    lockstate: { ino: location.ino.toString(), bytes: location.size, recordSize: location.recordSize },
    header: header === null ? null : headerRow(header),
    heartbeats: (heartbeats.kind === "ok" ? heartbeats.records : []).flatMap((record, slot) =>
      record === null
        ? []
        : [
            {
              slot,
              node: hex(record.node),
              incarnation: record.incarnation,
              uuid: record.uuid,
              role: roleName(record.role),
              epoch: record.epoch.toString(),
              counter: record.sequence.toString(),
              address: record.address,
              port: record.port,
              hostName: record.hostName,
            },
          ],
    ),
    journals: (journals.kind === "ok" ? journals.records : []).flatMap((record, slot) =>
      record === null
        ? []
        : [
            {
              slot,
              node: hex(record.node),
              incarnation: record.incarnation,
              state: journalStateName(record.state),
              epoch: record.epoch.toString(),
              recoverer: record.recoverer === 0 ? null : hex(record.recoverer),
            },
          ],
    ),
    locks: (area?.locks ?? []).map((lock) => ({
      resource: formatResource(lock.resource),
      mode: MODE_NAMES[lock.mode] ?? String(lock.mode),
      node: hex(lock.owner),
      incarnation: lock.ownerIncarnation,
      lock: lock.lockId.toString(16),
      master: hex(lock.writer),
    })),
    outdatedLockRecords: area?.outdated ?? 0,
    problems,
  };
}

function headerRow(header: DiskHeader): Readonly<Record<string, unknown>> {
  const chunks = new Map<number, number>();
  for (const owner of header.chunkOwners)
    if (owner > 0) chunks.set(owner - 1, (chunks.get(owner - 1) ?? 0) + 1);
  return {
    epoch: header.epoch.toString(),
    sequence: header.sequence.toString(),
    holder: hex(header.holder),
    holderIncarnation: header.holderIncarnation,
    lockRecords: header.lockRecordCount,
    members: header.members.map((member) => ({
      node: hex(member.node),
      incarnation: member.incarnation,
      slot: member.slot,
      state: member.state === HEADER_MEMBER_STATE.ACTIVE ? "active" : "dead, not seen again",
      lockChunks: chunks.get(member.slot) ?? 0,
    })),
  };
}

/** The dump as lines for people. */
export function formatDump(dump: DiskDump): string {
  const lines: string[] = [];
  const row = (value: unknown): string =>
    Object.entries(value as Record<string, unknown>)
      .filter(([, field]) => !Array.isArray(field))
      .map(([name, field]) => `${name}=${String(field)}`)
      .join(" ");
  lines.push(`volume ${dump.volume.uuid} (${dump.volume.id})`);
  lines.push(`lockstate ${row(dump.lockstate)}`);
  lines.push(dump.header === null ? "header none" : `header ${row(dump.header)}`);
  const members = dump.header?.members;
  for (const member of Array.isArray(members) ? members : []) lines.push(`member ${row(member)}`);
  for (const heartbeat of dump.heartbeats) lines.push(`heartbeat ${row(heartbeat)}`);
  for (const journal of dump.journals) lines.push(`journal ${row(journal)}`);
  for (const lock of dump.locks) lines.push(`lock ${row(lock)}`);
  if (dump.outdatedLockRecords > 0) lines.push(`outdated lock records: ${dump.outdatedLockRecords}`);
  for (const problem of dump.problems) lines.push(`problem: ${problem}`);
  return `${lines.join("\n")}\n`;
}
