// SPDX-License-Identifier: GPL-2.0-only
/**
 * Rule 5, persist before grant: stands between the lock engine, which has decided, and the owner, who is to be told.
 *
 *   engine ── GRANT of a mode that is persisted ──► grants() ── record durable ──► told
 *                                                          └─ cannot be ──► engine.refuse(): as before, DENY is told
 *   engine ── released, converted down ───────────► gave() ──── record cleared, or rewritten, some time after
 *   view change ── freeze() ─► begin() ── every reclaimed lock of such a mode ──► durable, then the node says REBUILT
 *
 * What comes in are hints: what is written is what the lock table says at that moment. So the threads that decide need
 * not agree on an order: whatever changes a lock in the table sends a hint behind it, and the last one looked at is right.
 *
 * Not persisted are the locks of a view of one (nobody else could want them, and the kernel grants itself what it likes
 * there), and what a cover stands for: an inode born under a parent that is held in EX needs no lock, so no record.
 *
 * Full: kernels are asked to give unused locks back (BASTs that nobody waits for); what has no room RECALL_WAIT_MS later is
 * refused with ENOLCK. Locks that a view change brings in beyond the room are held already and cannot be refused: they
 * stay, are counted as unrecorded, and are asked back.
 *
 * Known weakness: a rewrite to a weaker mode that fails leaves the stronger one on disk, which errs on the safe side.
 */
import { ENOLCK, type LockEngine } from "../dlm/engine.js";
import { type OnOutcomes, OUTCOME, Outbox } from "../dlm/outbox.js";
import {
  LockMode,
  MXFS_LOCK_CLIENT_KERNEL,
  MXFS_LOCK_CLIENT_SHIFT,
  MXFS_LOCK_ENTRY_SIZE,
  MXFS_NL_LOCKS_MAX,
} from "../wire/abi.js";
import { decodeLockEntry, encodeLockEntry, entrySize, LOCK_ENTRY } from "../wire/lock_entry.js";
import {
  type LockRecordOptions,
  LockRecordWriter,
  type PersistedLock,
  type PersistOutcome,
  type RecordWrite,
  type RecordWriteOutcome,
} from "./lock_records.js";

const EIO = 5;
/** Owners asked at a time to give a lock back. */
const RECALL_COUNT = 256;
const RECALL_WAIT_MS = 1_000;
/** Locks of a rebuild that are written at a time. */
const REBUILD_BATCH = 4_096;

const bits = (...modes: readonly number[]): number => modes.reduce((mask, mode) => mask | (1 << mode), 0);

/** Which modes are persisted (bit mask of 1 << mode), by the option persist=. */
export const PERSIST = {
  writing: bits(LockMode.CW, LockMode.PW, LockMode.EX),
  all: bits(LockMode.CR, LockMode.CW, LockMode.PR, LockMode.PW, LockMode.EX),
} as const;
export type PersistChoice = keyof typeof PERSIST;

/** Mistakes that tests plant, to prove that the simulation would see them. Always empty in life. */
export type PersistMistake =
  | "tell-before-persist"
  | "tell-after-failed-write"
  | "rebuild-without-records"
  /** A view change does not wait for the writes of the old view. */
  | "write-after-freeze";

export interface LockPersisterIo {
  /** Durable when it resolves. */
  write(pieces: readonly RecordWrite[]): Promise<RecordWriteOutcome>;
  /** To owners: grants, denials, BASTs. */
  readonly tell: OnOutcomes;
  pause(ms: number): Promise<void>;
  log(
    level: "error" | "warn" | "info",
    text: string,
    fields: Readonly<Record<string, string | number>>,
  ): void;
  /** The target refused a write: this node is fenced. */
  conflict(): void;
}

export interface LockPersisterOptions extends LockRecordOptions {
  readonly persist: PersistChoice;
  readonly mistakes?: ReadonlySet<PersistMistake>;
}

/** What `status` shows. */
export interface PersisterStatus {
  readonly persist: PersistChoice;
  readonly recorded: number;
  readonly capacity: number;
  readonly writes: number;
  readonly recordsWritten: number;
  readonly refusedFull: number;
  readonly refusedError: number;
  readonly recalls: number;
  readonly unrecorded: number;
}

export class LockPersister {
  readonly writer: LockRecordWriter;
  readonly modes: number;
  readonly #out = new Outbox();
  /** What comes of grants that are taken back. */
  readonly #refusals = new Outbox();
  readonly #mistakes: ReadonlySet<PersistMistake>;
  #epoch = 0n;
  #incarnations: ReadonlyMap<number, number> = new Map();
  #recalling: Promise<void> | null = null;
  #draining = false;
  #refusedFull = 0;
  #refusedError = 0;
  #recalls = 0;
  /** Held beyond the room. */
  #unrecorded: PersistedLock[] = [];

  constructor(
    readonly engine: LockEngine,
    readonly options: LockPersisterOptions,
    readonly io: LockPersisterIo,
  ) {
    this.modes = PERSIST[options.persist];
    this.#mistakes = options.mistakes ?? new Set();
    this.writer = new LockRecordWriter(options, {
      write: (pieces) => io.write(pieces),
      recallUnused: () => this.recallUnused(),
      // Every view deals all chunks out.
      moreChunks: () => Promise.resolve([]),
      pause: (ms) => io.pause(ms),
    });
  }

  status(): PersisterStatus {
    const { writer } = this;
    return {
      persist: this.options.persist,
      recorded: writer.granted,
      capacity: writer.capacity,
      writes: writer.writes,
      recordsWritten: writer.recordsWritten,
      refusedFull: this.#refusedFull,
      refusedError: this.#refusedError,
      recalls: this.#recalls,
      unrecorded: this.#unrecorded.length,
    };
  }

  // ---- view changes -----------------------------------------------------------------------------------------

  /** Nothing of the old view is told or written any more once this resolves. */
  async freeze(): Promise<void> {
    this.#epoch = 0n;
    this.#unrecorded = [];
    if (this.#mistakes.has("write-after-freeze")) return;
    this.writer.freeze();
    await this.writer.drained();
  }

  /**
   * The header of the next view is on disk, and everybody's locks are in the table: makes the records of all that are
   * held. After an error it may be called again for the same epoch.
   * @param incarnations of the view's members, by node.
   */
  async begin(
    epoch: bigint,
    chunks: readonly number[],
    incarnations: ReadonlyMap<number, number>,
  ): Promise<RecordWriteOutcome | { readonly kind: "void" }> {
    if (epoch !== this.#epoch) {
      this.writer.begin(epoch, chunks);
      this.#epoch = epoch;
      this.#incarnations = incarnations;
    }
    this.#unrecorded = [];
    if (this.#mistakes.has("rebuild-without-records")) return { kind: "ok" };
    const { table } = this.engine;
    const end = table.stripeCount;
    const batch: Promise<RecordWriteOutcome | { readonly kind: "void" }>[] = [];
    for (let stripe = 0; stripe < end; stripe++) {
      stripe = table.nextBusy(stripe);
      const held = stripe < end ? this.engine.heldIn(stripe, this.modes) : [];
      for (const { resource, node, lockId, mode } of held) {
        batch.push(this.record(this.lockOf(resource, node, lockId, mode)));
      }
      if (batch.length < REBUILD_BATCH && stripe + 1 < end) continue;
      for (const outcome of await Promise.all(batch.splice(0))) if (outcome.kind !== "ok") return outcome;
      if (this.#epoch !== epoch) return { kind: "void" };
    }
    if (this.#unrecorded.length > 0) {
      this.io.log("error", "more locks are held than there are lock records; they are asked back", {
        unrecorded: this.#unrecorded.length,
        records: this.writer.capacity,
      });
    }
    return { kind: "ok" };
  }

  private async record(lock: PersistedLock): Promise<RecordWriteOutcome | { readonly kind: "void" }> {
    const outcome = await this.writer.persist(lock, false);
    if (outcome.kind !== "full") return outcome;
    this.#unrecorded.push(lock);
    return { kind: "ok" };
  }

  /** The view is committed. */
  resumed(): void {
    this.#recalls += this.ask(this.#unrecorded, Number.POSITIVE_INFINITY);
  }

  // ---- hints ------------------------------------------------------------------------------------------------

  /** Grants that the engine has decided: entries, with their values. The bytes are kept. */
  grants(entries: Uint8Array): void {
    for (let at = 0; at < entries.length; ) {
      const size = entrySize(entries, at);
      void this.grant(entries.subarray(at, at + size));
      at += size;
    }
  }

  /** Locks that were released, or converted down: what the message said. */
  gave(entries: Uint8Array): void {
    for (let at = 0; at < entries.length; at += entrySize(entries, at)) {
      if (!this.isCurrent(entries, at)) continue;
      const mode = this.engine.heldMode(entries, at);
      const lock = this.lockAt(entries, at, mode);
      this.#unrecorded = this.#unrecorded.filter(
        (it) => it.lockId !== lock.lockId || it.owner !== lock.owner,
      );
      if ((this.modes & (1 << mode)) !== 0) void this.writer.persist(lock, false);
      else this.writer.release(lock);
    }
  }

  private async grant(entry: Uint8Array): Promise<void> {
    if (!this.isCurrent(entry, 0)) return;
    const epoch = this.#epoch;
    // Gone already: its owner answers the grant by a release.
    const mode = this.engine.heldMode(entry, 0);
    const early = this.#mistakes.has("tell-before-persist");
    if (early) this.tell(entry);
    let outcome: PersistOutcome = { kind: "ok" };
    if ((this.modes & (1 << mode)) !== 0) outcome = await this.writer.persist(this.lockAt(entry, 0, mode));
    if (epoch !== this.#epoch || early) return;
    switch (outcome.kind) {
      case "ok":
        this.tell(entry);
        return;
      case "void":
        return;
      case "full":
        this.said(++this.#refusedFull, "a lock is refused with ENOLCK: there is no lock record for it", {
          records: this.writer.capacity,
          recorded: this.writer.granted,
          next: "unmount everywhere, mount -t xfs, remove .mxfs/lockstate, and mount with a larger lock_records=",
        });
        this.refuse(entry, ENOLCK);
        return;
      case "error":
        this.said(++this.#refusedError, "a lock is refused with EIO: its record could not be written", {
          error: outcome.message,
        });
        if (this.#mistakes.has("tell-after-failed-write")) this.tell(entry);
        else this.refuse(entry, EIO);
        return;
      case "conflict":
        this.io.conflict();
        return;
    }
  }

  /** Said once, and again when it has happened twice as often. */
  private said(times: number, text: string, fields: Readonly<Record<string, string | number>>): void {
    if (Number.isInteger(Math.log2(times))) this.io.log("error", text, { ...fields, times });
  }

  private tell(entry: Uint8Array): void {
    const { owner } = this.lockAt(entry, 0, 0);
    for (let at = 0; at < entry.length; at += MXFS_LOCK_ENTRY_SIZE) {
      this.#out.appendBytes(owner, OUTCOME.GRANT, entry, at);
    }
    this.drainSoon();
  }

  /** Taking a grant back may let others go on: their grants are persisted as any. */
  private refuse(entry: Uint8Array, errno: number): void {
    this.engine.refuse(entry, 0, errno, this.#refusals);
    this.#refusals.drain(MXFS_NL_LOCKS_MAX, (node, type, entries) => {
      if (type === OUTCOME.GRANT) {
        this.grants(entries.slice());
        return;
      }
      for (let at = 0; at < entries.length; at += MXFS_LOCK_ENTRY_SIZE) {
        this.#out.appendBytes(node, type, entries, at);
      }
    });
    this.drainSoon();
  }

  /** What one write made durable is told together. */
  private drainSoon(): void {
    if (this.#draining) return;
    this.#draining = true;
    queueMicrotask(() => {
      this.#draining = false;
      this.#out.drain(MXFS_NL_LOCKS_MAX, this.io.tell);
    });
  }

  // ---- making room ------------------------------------------------------------------------------------------

  /** Resolves when there may be room, or the owners had their time. */
  private recallUnused(): Promise<void> {
    this.#recalling ??= this.recall().finally(() => {
      this.#recalling = null;
    });
    return this.#recalling;
  }

  private async recall(): Promise<void> {
    const asked = this.ask(this.writer.locks(), RECALL_COUNT);
    this.#recalls += asked;
    if (this.writer.capacity > 0) await Promise.race([this.writer.room(), this.io.pause(RECALL_WAIT_MS)]);
  }

  /** Asks kernels for cached locks, as if somebody wanted what they keep others from. */
  private ask(locks: Iterable<PersistedLock>, countMax: number): number {
    const weaker = (this.modes & (1 << LockMode.PR)) !== 0 ? LockMode.EX : LockMode.PR;
    const entry = new Uint8Array(MXFS_LOCK_ENTRY_SIZE);
    let asked = 0;
    for (const { resource, lockId, owner: node, mode } of locks) {
      if (asked >= countMax) break;
      if (lockId >> BigInt(MXFS_LOCK_CLIENT_SHIFT) !== BigInt(MXFS_LOCK_CLIENT_KERNEL)) continue;
      const rest = { epoch: this.#epoch, seq: 0, granted: mode, flags: 0, status: 0 };
      encodeLockEntry({ ...resource, ...rest, lockId, node, mode }, entry, 0);
      if (this.engine.recall(entry, 0, weaker, this.#out)) asked++;
    }
    if (asked > 0) this.drainSoon();
    return asked;
  }

  // ---- names ------------------------------------------------------------------------------------------------

  private isCurrent(entries: Uint8Array, at: number): boolean {
    const view = new DataView(entries.buffer, entries.byteOffset, entries.byteLength);
    return this.#epoch !== 0n && view.getBigUint64(at + LOCK_ENTRY.epoch, true) === this.#epoch;
  }

  private lockAt(entries: Uint8Array, at: number, mode: number): PersistedLock {
    const { volume, ino, offset, ag, type, node, lockId } = decodeLockEntry(entries, at);
    return this.lockOf({ volume, ino, offset, ag, type }, node, lockId, mode);
  }

  private lockOf(
    resource: PersistedLock["resource"],
    owner: number,
    lockId: bigint,
    mode: number,
  ): PersistedLock {
    return { resource, owner, ownerIncarnation: this.#incarnations.get(owner) ?? 0, lockId, mode };
  }
}
