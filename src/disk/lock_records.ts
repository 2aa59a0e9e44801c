// SPDX-License-Identifier: GPL-2.0-only
/**
 * Lock records on disk: what a master has granted, written before it is told (include/mxfs/disk.h is the layout).
 *
 * A node's area is made of the chunks that the journal holder gave it. It begins with a ring, to which grants and releases
 * are appended: everything that is waiting when a write ends goes out in the next one, in one piece (group commit).
 *
 *      ring:  [segment][segment][segment]...   appended to, round and round
 *                        ^ head   ^ being cleaned: what still counts in it is moved to the slots, behind the ring
 *      slots: FNV-1a of the resource, linear probing
 *
 * A record's state is what was written for its lock with the highest sequence. A segment is written again only when nothing
 * in it counts any more: a grant in it was copied to a slot, a release in it was applied to its slot. The ring is first in,
 * first out, so a release outlives every older grant of its lock in the ring. A write that is torn loses only records that
 * nobody was told of: records are whole sectors with a checksum, and what a write replaces counts no more.
 *
 * A release is not urgent: it waits a little for a grant to go out with, so that the disk is free when a grant comes.
 *
 * Full: a lock that would have no slot is granted only after unused ones were recalled, or more chunks given; else refused.
 *
 * Known weakness: a release whose record is damaged on disk leaves its lock held there, which errs on the safe side.
 */

import { Buffer } from "node:buffer";
import { hashResource, resourceBytes } from "../dlm/resource.js";
import {
  MXFS_DISK_LOCK_CHUNK_RECORDS,
  MXFS_DISK_LOCK_RING_SEGMENTS_MAX,
  MXFS_DISK_LOCK_SEGMENT_RECORDS,
} from "../wire/abi.js";
import { viewOf } from "../wire/error.js";
import { decodeResource, type Resource } from "../wire/lock_entry.js";
import {
  badField,
  checkRecordSize,
  DISK_RECORD_TYPE,
  DiskFormatError,
  openRecord,
  type RecordPrefix,
  readPrefix,
  sealRecord,
  u32,
  u64,
} from "./record.js";

const MODE_RELEASED = 0;
const MODE_MAX = 5;
/** Lock operations that may wait for a write; beyond it they are refused. */
const PENDING_MAX = 65_536;
/** An area of so many chunks has segments of a whole chunk: more goes into one write. */
const CHUNKS_FOR_LONG_SEGMENTS = 16;
/** How long a release waits for a grant that goes into the same write. */
const RELEASE_LINGER_MS = 50;

export interface LockRecord extends RecordPrefix {
  readonly resource: Resource;
  readonly lockId: bigint;
  /** The node that holds the lock. */
  readonly owner: number;
  /** 0: not known. */
  readonly ownerIncarnation: number;
  /** MXFS_MODE_*; 0 (NL): released. */
  readonly mode: number;
  /** The master that wrote it. */
  readonly writer: number;
  readonly writerIncarnation: number;
}

export function encodeLockRecord(record: LockRecord, recordSize: number): Uint8Array {
  checkRecordSize(recordSize);
  const bytes = openRecord(recordSize, DISK_RECORD_TYPE.LOCK, record);
  const view = viewOf(bytes);
  bytes.set(resourceBytes(record.resource), 40);
  view.setBigUint64(72, u64("lock id", record.lockId), true);
  view.setUint32(80, u32("owner", record.owner), true);
  view.setUint32(84, checkMode(record.mode), true);
  view.setUint32(88, u32("writer", record.writer), true);
  view.setUint32(92, u32("writer's incarnation", record.writerIncarnation), true);
  view.setUint32(96, u32("owner's incarnation", record.ownerIncarnation), true);
  return sealRecord(bytes);
}

/** Throws DiskFormatError. */
export function decodeLockRecord(bytes: Uint8Array, recordSize: number, volume: bigint): LockRecord {
  checkRecordSize(recordSize);
  const prefix = readPrefix(bytes, recordSize, DISK_RECORD_TYPE.LOCK, volume, "lock record");
  const view = viewOf(bytes);
  return {
    ...prefix,
    resource: decodeResource(bytes, 40),
    lockId: view.getBigUint64(72, true),
    owner: view.getUint32(80, true),
    ownerIncarnation: view.getUint32(96, true),
    mode: checkMode(view.getUint32(84, true)),
    writer: view.getUint32(88, true),
    writerIncarnation: view.getUint32(92, true),
  };
}

function checkMode(mode: number): number {
  if (!Number.isInteger(mode) || mode < 0 || mode > MODE_MAX)
    badField(`lock record: mode ${mode}, expected 0 to ${MODE_MAX}`);
  return mode;
}

// ---- chunks ------------------------------------------------------------------------------------------------

/**
 * Deals the chunks out: who has a slot in `members` gets an even share, and keeps of what it has as much as that allows.
 * @param owners heartbeat slot + 1 by chunk, 0 nobody's; not changed.
 */
export function dealChunks(
  owners: Uint8Array,
  chunkCount: number,
  slots: readonly number[],
): Uint8Array<ArrayBuffer> {
  const dealt = new Uint8Array(owners.length);
  if (slots.length === 0) return dealt;
  const sorted = [...slots].sort((a, b) => a - b);
  const share = new Map(
    sorted.map((slot, i) => [
      slot,
      Math.floor(chunkCount / sorted.length) + (i < chunkCount % sorted.length ? 1 : 0),
    ]),
  );
  const has = new Map<number, number>();
  for (let chunk = 0; chunk < chunkCount; chunk++) {
    const slot = (owners[chunk] ?? 0) - 1;
    const count = has.get(slot) ?? 0;
    if (count >= (share.get(slot) ?? 0)) continue;
    dealt[chunk] = slot + 1;
    has.set(slot, count + 1);
  }
  let next = 0;
  for (let chunk = 0; chunk < chunkCount; chunk++) {
    if (dealt[chunk] !== 0) continue;
    while (next < sorted.length) {
      const slot = sorted[next] as number;
      const count = has.get(slot) ?? 0;
      if (count < (share.get(slot) ?? 0)) {
        dealt[chunk] = slot + 1;
        has.set(slot, count + 1);
        break;
      }
      next++;
    }
  }
  return dealt;
}

// ---- the writer --------------------------------------------------------------------------------------------

/** One piece of records to be written, in order, as one command. */
export interface RecordWrite {
  /** Index of the first record in the lock area of lockstate. */
  readonly index: number;
  readonly bytes: Uint8Array;
}

export type RecordWriteOutcome =
  | { readonly kind: "ok" }
  | { readonly kind: "conflict" }
  | { readonly kind: "error"; readonly message: string };

export interface LockRecordIo {
  /** Durable when it resolves; pieces of one call may go out together, in any order. */
  write(pieces: readonly RecordWrite[]): Promise<RecordWriteOutcome>;
  /** The area is full: give unused cached locks back. Resolves when that was tried. */
  recallUnused(): Promise<void>;
  /** Chunks given in addition; empty: there are none. */
  moreChunks(): Promise<readonly number[]>;
  /** For releases, which wait a little for a grant to go out with; without it they do not. */
  pause?(ms: number): Promise<void>;
}

export interface LockRecordOptions {
  readonly volume: bigint;
  readonly recordSize: number;
  readonly writer: number;
  readonly writerIncarnation: number;
}

export type PersistOutcome =
  | { readonly kind: "ok" }
  /** ENOLCK: no room, and nothing could be freed. */
  | { readonly kind: "full" }
  | { readonly kind: "conflict" }
  | { readonly kind: "error"; readonly message: string }
  /** A view change came: the lock is told to its new master. */
  | { readonly kind: "void" };

export interface PersistedLock {
  readonly resource: Resource;
  readonly lockId: bigint;
  readonly owner: number;
  readonly ownerIncarnation: number;
  readonly mode: number;
}

interface Entry {
  /** As it is, or will be when what waits is written. */
  lock: PersistedLock;
  /** As its latest record says; null before the first. */
  written: PersistedLock | null;
  /** Operations on it that wait to be written. */
  waiting: number;
  sequence: bigint;
  /** Ring segment in which its latest record lies; -1: the slot has it. */
  segment: number;
  slot: number;
}

interface Pending {
  readonly lock: PersistedLock;
  /** Somebody waits for it. */
  readonly urgent: boolean;
  readonly settle: (outcome: PersistOutcome) => void;
}

export class LockRecordWriter {
  readonly #entries = new Map<string, Entry>();
  #chunks: number[] = [];
  #segmentCount = 0;
  #segmentRecords: number = MXFS_DISK_LOCK_SEGMENT_RECORDS;
  /** Records whose latest state is in the segment; some may be outdated. */
  #inSegment: Set<Entry>[] = [];
  #slotUser: (Entry | null)[] = [];
  #slotBase = 0;
  #epoch = 0n;
  #sequence = 0n;
  /** Next record of the ring to be written. */
  #head = 0;
  #pending: Pending[] = [];
  /** Of these, those that somebody waits for. */
  #urgent = 0;
  #lingering = false;
  #granted = 0;
  #flushing = false;
  /** Between freeze() and begin() nothing is written. */
  #frozen = true;
  #roomWaiters: (() => void)[] = [];
  #generation = 0;
  #cleaning: Promise<RecordWriteOutcome> = Promise.resolve({ kind: "ok" });
  readonly #underWay = new Set<Promise<RecordWriteOutcome>>();
  writes = 0;
  recordsWritten = 0;

  constructor(
    readonly options: LockRecordOptions,
    readonly io: LockRecordIo,
  ) {
    checkRecordSize(options.recordSize);
  }

  /** Locks that may be persisted at the same time. */
  get capacity(): number {
    return this.#slotUser.length;
  }
  get granted(): number {
    return this.#granted;
  }

  /** A view change has begun: nothing more is written until begin(), since our chunks may be another's in the next view. */
  freeze(): void {
    this.#generation++;
    this.#frozen = true;
    const pending = this.#pending;
    this.#pending = [];
    this.#urgent = 0;
    for (const { settle } of pending) settle({ kind: "void" });
    this.#entries.clear();
    this.#slotUser = [];
    this.#granted = 0;
    this.roomCame();
  }

  /**
   * A view is being changed to: what was written before counts no more (its epoch is over), and everybody's locks are
   * told and persisted anew.
   * @param chunks none: everything is refused as full.
   */
  begin(epoch: bigint, chunks: readonly number[]): void {
    this.freeze();
    this.#frozen = false;
    this.#chunks = [...chunks];
    this.#epoch = epoch;
    this.#head = 0;
    // Never in two chunks: a segment is written in one piece.
    this.#segmentRecords =
      chunks.length >= CHUNKS_FOR_LONG_SEGMENTS
        ? MXFS_DISK_LOCK_CHUNK_RECORDS
        : MXFS_DISK_LOCK_SEGMENT_RECORDS;
    const segments = (chunks.length * MXFS_DISK_LOCK_CHUNK_RECORDS) / this.#segmentRecords;
    this.#segmentCount = Math.max(2, Math.min(MXFS_DISK_LOCK_RING_SEGMENTS_MAX, Math.floor(segments / 4)));
    this.#inSegment = Array.from({ length: this.#segmentCount }, () => new Set<Entry>());
    this.#slotBase = this.#segmentCount * this.#segmentRecords;
    const slots = Math.max(0, chunks.length * MXFS_DISK_LOCK_CHUNK_RECORDS - this.#slotBase);
    this.#slotUser = new Array<Entry | null>(slots).fill(null);
    // The ring begins anew: no earlier write may land on top of what comes now.
    this.#cleaning = Promise.all(this.#underWay).then((): RecordWriteOutcome => ({ kind: "ok" }));
  }

  /**
   * Resolves when the grant is durable; may be told then. After "error" the lock's record is what it was before.
   * @param patient whether room is made for it where there is none.
   */
  async persist(lock: PersistedLock, patient = true): Promise<PersistOutcome> {
    if (this.#frozen) return { kind: "void" };
    const generation = this.#generation;
    checkMode(lock.mode);
    if (lock.mode === MODE_RELEASED) throw new RangeError("a release is not persisted but released");
    if (!this.isGranted(lock)) {
      if (!(await this.makeRoom(generation, patient))) {
        return { kind: this.#generation === generation ? "full" : "void" };
      }
      if (this.#generation !== generation) return { kind: "void" };
      // Room was taken; somebody else may have persisted the same lock meanwhile.
      if (this.isGranted(lock)) this.#granted--;
    }
    if (this.#pending.length >= PENDING_MAX) {
      if (!this.isGranted(lock)) this.#granted--;
      return { kind: "full" };
    }
    const before = this.isGranted(lock) ? this.#entries.get(nameOf(lock))?.lock : undefined;
    const outcome = await this.queue(lock);
    // Nobody knows what is on disk: so that it does not count, what was there before is written again.
    if (outcome.kind === "error" && this.#generation === generation) {
      if (before === undefined) this.release(lock);
      else if (this.#entries.get(nameOf(lock))?.lock === lock) void this.queue(before);
    }
    return outcome;
  }

  /** What is granted, oldest first. */
  *locks(): Generator<PersistedLock> {
    for (const { lock } of this.#entries.values()) if (lock.mode !== MODE_RELEASED) yield lock;
  }

  /** Resolves when one more lock may have room, or everything is void. */
  room(): Promise<void> {
    return new Promise((resolve) => this.#roomWaiters.push(resolve));
  }

  private roomCame(): void {
    for (const resolve of this.#roomWaiters.splice(0)) resolve();
  }

  /** Given up in memory: cleared on disk with one of the next writes. */
  release(lock: Omit<PersistedLock, "mode">): void {
    const entry = this.#entries.get(nameOf(lock));
    if (entry === undefined || entry.lock.mode === MODE_RELEASED) return;
    this.#granted--;
    void this.queue({ ...lock, mode: MODE_RELEASED }, false);
    this.roomCame();
  }

  /**
   * Resolves when no write of before is under way any more. A node says that it has rebuilt only then, since its chunks
   * may be another's in the next view.
   */
  async drained(): Promise<void> {
    await Promise.all(this.#underWay);
  }

  /** Resolves when nothing is waiting to be written any more. */
  async idle(): Promise<void> {
    while (this.#flushing || this.#lingering || this.#pending.length > 0)
      await new Promise((resolve) => setImmediate(resolve));
  }

  private isGranted(lock: PersistedLock): boolean {
    const entry = this.#entries.get(nameOf(lock));
    return entry !== undefined && entry.lock.mode !== MODE_RELEASED;
  }

  /** Takes room for one more lock. */
  private async makeRoom(generation: number, patient: boolean): Promise<boolean> {
    const take = (): boolean => {
      if (this.#generation !== generation || this.#granted >= this.capacity) return false;
      this.#granted++;
      return true;
    };
    if (take()) return true;
    if (!patient) return false;
    await this.io.recallUnused();
    if (take()) return true;
    if (this.#generation !== generation) return false;
    const more = await this.io.moreChunks();
    if (this.#generation !== generation) return false;
    for (const chunk of more) {
      this.#chunks.push(chunk);
      for (let i = 0; i < MXFS_DISK_LOCK_CHUNK_RECORDS; i++) this.#slotUser.push(null);
    }
    return take();
  }

  private queue(lock: PersistedLock, urgent = true): Promise<PersistOutcome> {
    // Its place in the order is fixed here: later operations on the lock see it.
    const name = nameOf(lock);
    const entry = this.#entries.get(name);
    if (entry === undefined) {
      this.#entries.set(name, { lock, written: null, waiting: 1, sequence: 0n, segment: -1, slot: -1 });
    } else {
      entry.lock = lock;
      entry.waiting++;
    }
    return new Promise((settle) => {
      this.#pending.push({ lock, urgent, settle });
      if (urgent) this.#urgent++;
      if (this.mustWrite) this.startFlush();
      else this.linger();
    });
  }

  private get mustWrite(): boolean {
    return this.#urgent > 0 || this.io.pause === undefined || this.#pending.length >= this.#segmentRecords;
  }

  private startFlush(): void {
    if (this.#flushing) return;
    this.#flushing = true;
    // What the same batch of messages brings goes into the same write.
    queueMicrotask(() => void this.flush());
  }

  /** Only releases wait: the next grant is to find the disk free, and takes them along. */
  private linger(): void {
    if (this.#lingering || this.#flushing || this.io.pause === undefined) return;
    this.#lingering = true;
    void this.io.pause(RELEASE_LINGER_MS).then(() => {
      this.#lingering = false;
      if (this.#pending.length > 0) this.startFlush();
    });
  }

  private async flush(): Promise<void> {
    for (let first = true; this.#pending.length > 0 && (first || this.mustWrite); first = false) {
      const generation = this.#generation;
      const at = this.#head % this.#segmentRecords;
      if (at === 0) {
        const cleaned = await this.enterSegment();
        if (generation !== this.#generation) continue;
        if (cleaned.kind !== "ok") {
          this.#urgent = 0;
          this.settleAll(this.#pending.splice(0), cleaned);
          continue;
        }
      }
      const batch = this.#pending.splice(0, this.#segmentRecords - at);
      for (const { urgent } of batch) if (urgent) this.#urgent--;
      const outcome = await this.append(batch);
      this.settleAll(batch, generation === this.#generation ? outcome : { kind: "void" });
    }
    this.#flushing = false;
    if (this.#pending.length > 0) this.linger();
  }

  private settleAll(batch: readonly Pending[], outcome: PersistOutcome): void {
    for (const { settle } of batch) settle(outcome);
  }

  private get segment(): number {
    return Math.floor(this.#head / this.#segmentRecords);
  }

  /** The head stands at a segment's beginning: nothing in it counts any more when this resolves well. */
  private async enterSegment(): Promise<RecordWriteOutcome> {
    const here = this.segment;
    const generation = this.#generation;
    let outcome = await this.#cleaning;
    if (generation !== this.#generation) return outcome;
    if (outcome.kind === "ok" && (this.#inSegment[here]?.size ?? 0) > 0) outcome = await this.clean(here);
    if (generation !== this.#generation) return outcome;
    this.#cleaning = Promise.resolve({ kind: "ok" });
    if (outcome.kind === "ok") {
      const next = (here + 1) % this.#segmentCount;
      this.#cleaning = this.clean(next);
    }
    return outcome;
  }

  private async append(batch: readonly Pending[]): Promise<RecordWriteOutcome> {
    const { recordSize } = this.options;
    const bytes = new Uint8Array(batch.length * recordSize);
    const segment = this.segment;
    const set = this.#inSegment[segment];
    for (const [i, { lock }] of batch.entries()) {
      const entry = this.#entries.get(nameOf(lock));
      if (entry === undefined || set === undefined) throw new Error("lock records: a queued lock is unknown");
      this.#sequence += 1n;
      bytes.set(this.encode(lock, this.#sequence), i * recordSize);
      if (entry.segment >= 0) this.#inSegment[entry.segment]?.delete(entry);
      entry.sequence = this.#sequence;
      entry.written = lock;
      entry.waiting--;
      entry.segment = segment;
      set.add(entry);
    }
    const index = this.indexOf(this.#head);
    this.#head = (this.#head + batch.length) % this.#slotBase;
    return this.write([{ index, bytes }]);
  }

  /** Moves what counts in a segment of the ring to the slots, and applies its releases. */
  private async clean(segment: number): Promise<RecordWriteOutcome> {
    const set = this.#inSegment[segment];
    if (set === undefined || set.size === 0) return { kind: "ok" };
    const generation = this.#generation;
    const handled = [...set].map((entry) => ({ entry, sequence: entry.sequence }));
    /** By slot, so that a slot that is cleared and taken again is written once. */
    const slots = new Map<number, Uint8Array>();
    for (const { entry } of handled) {
      if (entry.written?.mode === MODE_RELEASED && entry.slot >= 0) {
        slots.set(entry.slot, new Uint8Array(this.options.recordSize));
      }
    }
    for (const { entry, sequence } of handled) {
      // What is released already, though that waits to be written, need not be kept.
      if (entry.written === null || entry.written.mode === MODE_RELEASED) continue;
      if (entry.lock.mode === MODE_RELEASED) continue;
      if (entry.slot < 0) this.takeSlot(entry);
      slots.set(entry.slot, this.encode(entry.written, sequence));
    }
    const outcome = await this.write(
      [...slots].map(([slot, bytes]) => ({ index: this.indexOf(this.#slotBase + slot), bytes })),
    );
    if (outcome.kind !== "ok" || generation !== this.#generation) return outcome;
    for (const { entry, sequence } of handled) {
      if (entry.sequence !== sequence) continue;
      set.delete(entry);
      entry.segment = -1;
      if (entry.written?.mode !== MODE_RELEASED) continue;
      if (entry.slot >= 0) this.#slotUser[entry.slot] = null;
      entry.slot = -1;
      if (entry.waiting === 0) this.#entries.delete(nameOf(entry.lock));
    }
    return outcome;
  }

  /** There are as many slots as locks may be granted, so one is free, or its lock is released. */
  private takeSlot(entry: Entry): void {
    const count = this.#slotUser.length;
    const home = hashResource(entry.lock.resource) % count;
    let stale = -1;
    for (let i = 0; i < count; i++) {
      const slot = (home + i) % count;
      const user = this.#slotUser[slot] ?? null;
      if (user === null) {
        this.#slotUser[slot] = entry;
        entry.slot = slot;
        return;
      }
      if (stale < 0 && user.lock.mode === MODE_RELEASED) stale = slot;
    }
    const user = this.#slotUser[stale];
    if (user == null) {
      throw new Error(`lock records: no slot among ${count} for ${this.#granted} granted locks`);
    }
    // Overwriting the old grant of a lock that is released is as good as clearing it.
    user.slot = -1;
    this.#slotUser[stale] = entry;
    entry.slot = stale;
  }

  private encode(lock: PersistedLock, sequence: bigint): Uint8Array {
    const { volume, recordSize, writer, writerIncarnation } = this.options;
    return encodeLockRecord(
      { ...lock, volume, epoch: this.#epoch, sequence, writer, writerIncarnation },
      recordSize,
    );
  }

  /** Index in the lock area of the record at this place of ours. */
  private indexOf(place: number): number {
    const chunk = this.#chunks[Math.floor(place / MXFS_DISK_LOCK_CHUNK_RECORDS)];
    if (chunk === undefined) throw new Error(`lock records: place ${place} is beyond our chunks`);
    return chunk * MXFS_DISK_LOCK_CHUNK_RECORDS + (place % MXFS_DISK_LOCK_CHUNK_RECORDS);
  }

  private async write(pieces: readonly RecordWrite[]): Promise<RecordWriteOutcome> {
    if (pieces.length === 0) return { kind: "ok" };
    this.writes++;
    for (const { bytes } of pieces) this.recordsWritten += bytes.length / this.options.recordSize;
    const under_way = this.io.write(pieces).catch((error: unknown): RecordWriteOutcome => {
      return { kind: "error", message: error instanceof Error ? error.message : String(error) };
    });
    this.#underWay.add(under_way);
    const outcome = await under_way;
    this.#underWay.delete(under_way);
    return outcome;
  }
}

function nameOf(lock: { readonly owner: number; readonly lockId: bigint }): string {
  return `${lock.owner}:${lock.lockId}`;
}

// ---- the reader --------------------------------------------------------------------------------------------

export interface AreaReport {
  /** Granted locks, by what counts. */
  readonly locks: readonly LockRecord[];
  /** Records that are not sound, or not where they belong; they count as absent. */
  readonly problems: readonly string[];
  /** Sound records that do not count any more: of earlier epochs, or of an incarnation that is over. */
  readonly outdated: number;
}

/**
 * What the lock area of a volume says.
 * @param area the records of the whole area.
 * @param writerOf the (node, incarnation) that a chunk belongs to; null: nobody's.
 */
export function readLockArea(
  area: Uint8Array,
  recordSize: number,
  volume: bigint,
  epoch: bigint,
  writerOf: (chunk: number) => { readonly node: number; readonly incarnation: number } | null,
): AreaReport {
  const latest = new Map<string, LockRecord>();
  const problems: string[] = [];
  const zero = new Uint8Array(recordSize);
  const chunk_bytes = MXFS_DISK_LOCK_CHUNK_RECORDS * recordSize;
  const zero_chunk = new Uint8Array(chunk_bytes);
  let outdated = 0;
  for (let index = 0; (index + 1) * recordSize <= area.length; index++) {
    const at = index * recordSize;
    // Most are: looked at as a whole, since somebody may be waiting for a recovery.
    if (at % chunk_bytes === 0 && Buffer.compare(area.subarray(at, at + chunk_bytes), zero_chunk) === 0) {
      index += MXFS_DISK_LOCK_CHUNK_RECORDS - 1;
      continue;
    }
    const bytes = area.subarray(at, at + recordSize);
    if (Buffer.compare(bytes, zero) === 0) continue;
    let record: LockRecord;
    try {
      record = decodeLockRecord(bytes, recordSize, volume);
    } catch (error) {
      if (!(error instanceof DiskFormatError)) throw error;
      if (error.code !== "EMPTY") problems.push(`lock record ${index}: ${error.message}`);
      continue;
    }
    const writer = writerOf(Math.floor(index / MXFS_DISK_LOCK_CHUNK_RECORDS));
    const over = writer?.node === record.writer && record.writerIncarnation < writer.incarnation;
    if (record.epoch !== epoch || over) {
      outdated++;
      continue;
    }
    if (writer?.node !== record.writer || writer.incarnation !== record.writerIncarnation) {
      problems.push(
        `lock record ${index}: written by node ${record.writer.toString(16)}, whose chunk it is not; ignored`,
      );
      continue;
    }
    const before = latest.get(nameOf(record));
    if (before === undefined || before.sequence < record.sequence) latest.set(nameOf(record), record);
  }
  const locks = [...latest.values()].filter((record) => record.mode !== MODE_RELEASED);
  return { locks, problems, outdated };
}
