// SPDX-License-Identifier: GPL-2.0-only
/**
 * The lock engine: decides requests, conversions and releases on the resources whose master this node is, and
 * sends everything else on to its master. Deterministic: the same messages in the same order give the same
 * outcomes; no clock, no I/O. Every thread has one, over one shared table.
 *
 *   submit ─┬─ other epoch ─────────────► STALE     (dropped; the next lock dump tells it again)
 *           ├─ no view, or changing ────► FROZEN    (dropped likewise)
 *           ├─ another node is master ──► FORWARDED (outbox: the same entry for the master)
 *           └─ master here: request ─┬─ fits, nobody before it ─► grant
 *                                    ├─ NOQUEUE ───────────────► deny EAGAIN
 *                                    └─ wait queue, BASTs
 *                          convert ──┬─ only gives up ─────────► statement: held mode changes, no answer
 *                                    ├─ fits, none converting ─► grant
 *                                    ├─ NOQUEUE ───────────────► deny EAGAIN
 *                                    ├─ in the way of one before ► deny EDEADLK
 *                                    └─ convert queue, BASTs
 *                          release ──── gone; CANCEL: deny ECANCELED if still queued, else nothing (the answer
 *                                       is on its way)
 *                          then settle: conversions in order, then, when none waits, requests in order; the first
 *                          that does not fit stops the line (so readers never starve a writer)
 *
 * BASTs go to granted locks that are incompatible with what somebody in a queue wants, once per wanted mode,
 * and again when a mode is wanted that rules out more than was said before, or when the holder has answered and
 * is still in the way. A converting lock gets none: it is granted or denied first, and asked then.
 *
 * Epoch and state are read inside the stripe lock, and a view change passes every stripe lock before it touches
 * them: no decision of the old epoch lands behind the clearing.
 *
 * Values (lock value blocks): a USER resource with a control client's lock has 32 bytes that every grant to such a
 * client brings along, and that whoever holds PW or EX may replace as it gives that up (MXFS_LKF_VALUE). A writer
 * that is gone without a word (MXFS_LKF_LOST, or its node purged) leaves the value marked invalid. After a view
 * change the value is that of a lock which kept writers out (above CR); where none is left, the newest that
 * anybody knows, invalid.
 *
 * Known weakness: locks on one resource are found by walking its queues; a resource with thousands of locks is
 * slow. Deadlocks over several resources are not seen here (deadlock.ts does, for control clients); the kernel
 * keeps the lock order.
 */
import {
  MXFS_LKF_CANCEL,
  MXFS_LKF_CONVERT,
  MXFS_LKF_IS_VALUE,
  MXFS_LKF_LOST,
  MXFS_LKF_NOQUEUE,
  MXFS_LKF_VALUE,
  MXFS_LKF_WAITING,
  MXFS_LOCK_CLIENT_CONTROL,
  MXFS_LOCK_CLIENT_SHIFT,
  MXFS_LOCK_ENTRY_SIZE,
  MXFS_MODE_COUNT,
  MXFS_MODE_CR,
  MXFS_MODE_NL,
  MXFS_MODE_PW,
  MXFS_RES_USER,
  WireType,
} from "../wire/abi.js";
import { assertU32, assertU64, viewOf } from "../wire/error.js";
import { encodeLockEntry, entrySize, type LockEntry, type Resource } from "../wire/lock_entry.js";
import {
  COUNTER,
  type CounterName,
  CTL,
  DESK,
  DESK_COUNT,
  DESK_WORDS,
  DESK_WORK,
  DESK_WORK_WORDS,
  DESKS_AT,
  KIND,
  LOCK,
  QUEUE,
  RES,
  TABLE_STATE,
  type TableCapacity,
  type TableState,
  VALUE,
  VALUE_STATE,
  VIEW_AT,
  WAS_CONVERSION,
} from "./layout.js";
import type { SharedMemory } from "./memory.js";
import { ALL_MODES, COMPATIBLE, isDownConversion } from "./modes.js";
import { OUTCOME, type Outbox, type Outcome } from "./outbox.js";
import { KEY_WORDS, ResourceHasher } from "./resource.js";
import { LockTable } from "./table.js";
import { masterOf, sortedNodes } from "./view.js";
import { type LockProgram, lockProgram } from "./wasm_path.js";

/** errnos of denials, positive (asm-generic/errno.h). */
export const EAGAIN = 11;
export const EINVAL = 22;
export const EDEADLK = 35;
export const ENOLCK = 37;
export const ECANCELED = 125;

/** What a message asks for: the frame types of the messages to a master. */
export const COMMAND = {
  REQUEST: WireType.LOCK_REQUEST,
  CONVERT: WireType.LOCK_CONVERT,
  /** With MXFS_LKF_CANCEL: gives up the outstanding request `seq`. */
  RELEASE: WireType.LOCK_RELEASE,
  RECLAIM: WireType.LOCK_RECLAIM,
} as const;
export type Command = (typeof COMMAND)[keyof typeof COMMAND];

/** What became of a message. */
export const RESULT = {
  /** Decided here; grants, denials and BASTs are in the outbox. */
  DECIDED: 0,
  /** Waits in a queue; BASTs may be in the outbox. */
  QUEUED: 1,
  /** The outbox has it for the master. */
  FORWARDED: 2,
  /** No view, or it is just being changed: dropped, nothing decided. */
  FROZEN: 3,
  /** Of another epoch: dropped. */
  STALE: 4,
  /** Against the protocol (wrong owner, wrong node, not the master): dropped, a reason to log. */
  REJECTED: 5,
  /** A reclaimed mode conflicts with another: not entered. Two nodes believe to hold it: a reason to stop. */
  CONFLICT: 6,
  /** Nothing to do: repeated, or crossed by an answer. */
  IGNORED: 7,
} as const;
export type Result = (typeof RESULT)[keyof typeof RESULT];

/** What each message of a batch asks for: by slot (64 bytes, a value being one too), or of all. */
export type Commands = Command | Int32Array;

/** How many messages of a batch came to which result; index by RESULT. */
export type Tally = Uint32Array;

export interface LockFilter {
  readonly node?: number;
  readonly ino?: bigint;
  /** enum mxfs_resource_type */
  readonly type?: number;
  /** Only locks of resources where somebody waits. */
  readonly contended?: boolean;
  /** Only this resource: looked up, not searched for. */
  readonly resource?: Resource;
}

/** A resource's lock value block. */
export interface LockValue {
  /** MXFS_LVB_LEN bytes. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** How often it was written. */
  readonly seq: bigint;
  readonly valid: boolean;
}

/** One lock, for status and dump commands. */
export interface LockInfo extends Resource {
  readonly node: number;
  readonly lockId: bigint;
  readonly seq: number;
  readonly granted: number;
  readonly mode: number;
  readonly queue: "granted" | "convert" | "wait";
  /** Whether its owner has been asked to give way and has not answered yet. */
  readonly blocking: boolean;
  /** Of the resource; null where it has none. */
  readonly value: LockValue | null;
}

/** Who a lock belongs to. */
export interface LockOwner {
  readonly node: number;
  readonly lockId: bigint;
}

/** A lock and what is held of it. */
export interface HeldLock {
  readonly resource: Resource;
  readonly node: number;
  readonly lockId: bigint;
  readonly mode: number;
}

export interface DumpPage {
  readonly locks: LockInfo[];
  /** Where the next page begins; null: this was the last. */
  readonly next: number | null;
}

const QUEUE_NAME = ["granted", "convert", "wait"] as const;
/** How many outcomes resume and purge let pile up before they call `onBatch`. */
const BATCH_COUNT = 256;
const ENTRY_WORDS = MXFS_LOCK_ENTRY_SIZE / 4;
/** Buckets that one page of a dump looks at, at most. */
const DUMP_BUCKETS_MAX = 32_768;
/** LOCK.ID_HIGH >>> this: MXFS_LOCK_CLIENT_*. */
const CLIENT_SHIFT = MXFS_LOCK_CLIENT_SHIFT - 32;

export interface EngineOptions {
  /**
   * Messages (or batches of them) that this thread decides by itself before it has wasm_path.ts do what is simple; the
   * outcome is the same. Not at once, for the program costs some milliseconds to write, and many a daemon hardly
   * decides anything. Infinity: never.
   */
  readonly shortPathAfter?: number;
}

const SHORT_PATH_AFTER = 256;

export class LockEngine {
  readonly #hasher = new ResourceHasher();
  /** The message in hand: 16 words of an entry. */
  readonly #entry = new Int32Array(ENTRY_WORDS);
  readonly #entryBytes = new Uint8Array(MXFS_LOCK_ENTRY_SIZE);

  /** The value that came with it. */
  readonly #value = new Int32Array(ENTRY_WORDS);
  #lastBuffer: ArrayBufferLike | null = null;
  #lastWords = new Int32Array(0) as Int32Array;

  /** What the last submitted message gave up: the mode that was held, where it was a release or a statement, else NL. */
  gaveUp: number = MXFS_MODE_NL;

  /** The short path, when there is one. */
  #program: LockProgram | null = null;
  /** Messages until there is. */
  #programIn: number;
  /** This thread's desk: messages and commands for the short path. */
  readonly #desk: Int32Array;
  readonly #deskBytes: Uint8Array;

  private constructor(
    readonly table: LockTable,
    { shortPathAfter = SHORT_PATH_AFTER }: EngineOptions,
  ) {
    const desk = DESKS_AT + table.thread * DESK_WORDS;
    this.#desk = table.words.subarray(desk, desk + DESK_WORDS);
    this.#deskBytes = new Uint8Array(table.words.buffer, 4 * desk, DESK_COUNT * MXFS_LOCK_ENTRY_SIZE);
    this.#programIn = shortPathAfter;
  }

  get #shortPath(): LockProgram | null {
    if (this.#program === null && --this.#programIn < 0) {
      this.#program = lockProgram(this.table.memory, this.table.layout);
    }
    return this.#program;
  }

  /** Longer ones replace it: not to be kept over a `reserve`. */
  get #words(): Int32Array<SharedArrayBuffer> {
    return this.table.words;
  }

  /** Makes a table for node `self` and an engine over it. Without a view it decides nothing. */
  static create(self: number, capacity: TableCapacity, options: EngineOptions = {}): LockEngine {
    assertU32(self, "node id");
    const table = LockTable.create(capacity);
    Atomics.store(table.words, CTL.SELF_NODE, self | 0);
    return new LockEngine(table, options);
  }

  /** An engine of another thread over the same table. */
  static attach(memory: SharedMemory, options: EngineOptions = {}): LockEngine {
    return new LockEngine(LockTable.attach(memory), options);
  }

  /** Post this to other threads, for `attach`. */
  get memory(): SharedMemory {
    return this.table.memory;
  }
  get self(): number {
    return (this.#words[CTL.SELF_NODE] as number) >>> 0;
  }
  get state(): TableState {
    return Atomics.load(this.#words, CTL.STATE) as TableState;
  }
  /** Exact only for the thread that changes views; others see it change in two steps. */
  get epoch(): bigint {
    const high = BigInt((this.#words[CTL.EPOCH_HIGH] as number) >>> 0);
    return (high << 32n) | BigInt((this.#words[CTL.EPOCH_LOW] as number) >>> 0);
  }
  /** Node ids of the view, sorted. */
  get view(): number[] {
    const count = this.#words[CTL.VIEW_COUNT] as number;
    return Array.from(this.#words.subarray(VIEW_AT, VIEW_AT + count), (node) => node >>> 0);
  }
  get counters(): Record<CounterName, number> {
    return this.table.counters();
  }

  /** The master of a resource in the present view, or null without one. */
  masterOf(resource: Resource): number | null {
    const view = this.view;
    if (view.length === 0) return null;
    encodeLockEntry({ ...resource, ...BLANK }, this.#entryBytes, 0);
    this.#load(this.#entryBytes, 0);
    return masterOf(view, this.#hasher.hash(this.#entry, 0));
  }

  // ---- messages ---------------------------------------------------------------------------------------------

  /**
   * Takes one message: the 64 bytes at `at`, which `checkLockEntries` has accepted. @param from the node it came
   * from; this node itself for the kernel's and the control clients' messages. With MXFS_LKF_VALUE the 64 bytes
   * behind it are its value.
   * @throws LockTableError: the daemon must end.
   */
  submit(command: Command, bytes: Uint8Array, at: number, from: number, out: Outbox): Result {
    const program = this.#shortPath;
    if (program !== null) {
      this.#lay(bytes, at);
      this.#desk[DESK.COMMANDS] = command;
      program.prepare(this.table.thread, 0, 1);
      if (this.#runShort(program, 0, 1, from, out) === 1) {
        this.gaveUp = this.#desk[DESK.WORK + DESK_WORK.GAVE_UP] as number;
        return RESULT.DECIDED;
      }
    }
    this.#load(bytes, at);
    return this.#submit(command, bytes, at, from, out);
  }

  /**
   * As `submit` for every entry of a body, in order. @param tally is added to.
   * @param onTrouble called for messages that are REJECTED, or a CONFLICT.
   * @param onGaveUp called for releases and statements, with the mode that was held. @returns how many entries.
   */
  submitAll(
    command: Commands,
    bytes: Uint8Array,
    from: number,
    out: Outbox,
    tally?: Tally,
    onTrouble?: (at: number, result: Result) => void,
    onGaveUp?: (at: number, mode: number) => void,
  ): number {
    const slots = Math.floor(bytes.length / MXFS_LOCK_ENTRY_SIZE);
    const program = this.#shortPath;
    const size = program === null ? 1 : DESK_COUNT;
    let count = 0;
    let first = 0;
    while (first < slots) {
      const some = Math.min(size, slots - first);
      if (program !== null) this.#layAll(program, command, bytes, first, some);
      let slot = 0;
      while (slot < some) {
        const done = program === null ? 0 : this.#runShort(program, slot, some, from, out);
        if (onGaveUp !== undefined) this.#tellGivenUp(slot, done, first, onGaveUp);
        slot += done;
        count += done;
        if (tally !== undefined) tally[RESULT.DECIDED] = (tally[RESULT.DECIDED] as number) + done;
        if (slot >= some) break;
        const at = (first + slot) * MXFS_LOCK_ENTRY_SIZE;
        const its = typeof command === "number" ? command : (command[first + slot] as Command);
        this.#load(bytes, at);
        const result = this.#submit(its, bytes, at, from, out);
        count++;
        slot += entrySize(bytes, at) / MXFS_LOCK_ENTRY_SIZE;
        if (tally !== undefined) tally[result] = (tally[result] as number) + 1;
        if (onGaveUp !== undefined && this.gaveUp !== MXFS_MODE_NL) onGaveUp(at, this.gaveUp);
        if (onTrouble !== undefined && (result === RESULT.REJECTED || result === RESULT.CONFLICT)) {
          onTrouble(at, result);
        }
      }
      first += slot;
    }
    return count;
  }

  /** What the short path has decided of the desk's messages [slot, slot + done). */
  #tellGivenUp(
    slot: number,
    done: number,
    first: number,
    onGaveUp: (at: number, mode: number) => void,
  ): void {
    for (let index = slot; index < slot + done; index++) {
      const mode = this.#desk[DESK.WORK + index * DESK_WORK_WORDS + DESK_WORK.GAVE_UP] as number;
      if (mode !== MXFS_MODE_NL) onGaveUp((first + index) * MXFS_LOCK_ENTRY_SIZE, mode);
    }
  }

  /** Lays one message on the desk. */
  #lay(bytes: Uint8Array, at: number): void {
    const offset = bytes.byteOffset + at;
    if ((offset & 3) !== 0) {
      this.#deskBytes.set(bytes.subarray(at, at + MXFS_LOCK_ENTRY_SIZE));
      return;
    }
    const words = this.#wordsOf(bytes.buffer);
    const desk = this.#desk;
    for (let word = 0; word < ENTRY_WORDS; word++) desk[word] = words[(offset >>> 2) + word] as number;
  }

  /** Lays `count` slots from slot `first` on on the desk, prepared. */
  #layAll(program: LockProgram, command: Commands, bytes: Uint8Array, first: number, count: number): void {
    const at = first * MXFS_LOCK_ENTRY_SIZE;
    if (count === 1) this.#lay(bytes, at);
    else this.#deskBytes.set(bytes.subarray(at, at + count * MXFS_LOCK_ENTRY_SIZE));
    if (typeof command === "number") {
      this.#desk.fill(command, DESK.COMMANDS, DESK.COMMANDS + count);
    } else {
      this.#desk.set(command.subarray(first, first + count), DESK.COMMANDS);
    }
    program.prepare(this.table.thread, 0, count);
  }

  /** @returns how many of the desk's messages [start, end) the short path has decided. */
  #runShort(program: LockProgram, start: number, end: number, from: number, out: Outbox): number {
    let done = 0;
    let told = false;
    try {
      done = program.run(this.table.thread, start, end, from | 0);
      const grants = done >>> 16;
      if (grants > 0) out.appendRun(from, OUTCOME.GRANT, this.#desk, start * ENTRY_WORDS, grants);
      told = true;
    } finally {
      // A trap (the table is corrupt, and this thread's stripes stay locked), or grants that found no room.
      if (!told) {
        this.table.breakTable();
        this.table.markThreadDead(this.table.thread);
      }
    }
    const count = done & 0xffff;
    this.table.count(COUNTER.short, count);
    return count;
  }

  /** As `submit`, for an entry as an object. @throws RangeError when a field does not fit */
  submitEntry(command: Command, entry: LockEntry, from: number, out: Outbox): Result {
    if (entry.mode >= MXFS_MODE_COUNT || entry.granted >= MXFS_MODE_COUNT) {
      throw new RangeError(`lock entry: modes ${entry.granted} and ${entry.mode}: expected 0 to 5`);
    }
    encodeLockEntry(entry, this.#entryBytes, 0);
    return this.submit(command, this.#entryBytes, 0, from, out);
  }

  /** The words of a buffer: frames come many to one buffer, and a view of it is not free. */
  #wordsOf(buffer: ArrayBufferLike): Int32Array {
    if (this.#lastBuffer !== buffer) {
      this.#lastBuffer = buffer;
      this.#lastWords = new Int32Array(buffer, 0, buffer.byteLength >>> 2);
    }
    return this.#lastWords;
  }

  #load(bytes: Uint8Array, at: number): void {
    const offset = bytes.byteOffset + at;
    if ((offset & 3) === 0) {
      this.#loadWords(this.#wordsOf(bytes.buffer), offset >>> 2);
      return;
    }
    const view = viewOf(bytes);
    for (let word = 0; word < ENTRY_WORDS; word++) this.#entry[word] = view.getInt32(at + 4 * word, true);
    if ((this.#flags() & MXFS_LKF_VALUE) === 0) return;
    const value = at + MXFS_LOCK_ENTRY_SIZE;
    for (let word = 0; word < ENTRY_WORDS; word++) this.#value[word] = view.getInt32(value + 4 * word, true);
  }

  #loadWords(words: Int32Array, at: number): void {
    const entry = this.#entry;
    for (let word = 0; word < ENTRY_WORDS; word++) entry[word] = words[at + word] as number;
    if ((this.#flags() & MXFS_LKF_VALUE) === 0) return;
    const value = this.#value;
    for (let word = 0; word < ENTRY_WORDS; word++) value[word] = words[at + ENTRY_WORDS + word] as number;
  }

  #submit(command: Command, bytes: Uint8Array, at: number, from: number, out: Outbox): Result {
    const { table } = this;
    this.gaveUp = MXFS_MODE_NL;
    // Signed: a number that V8 need not put on the heap.
    const hash = this.#hasher.hash(this.#entry, 0) | 0;
    const bucket = table.bucketOf(hash);
    const stripe = table.stripeOf(bucket);
    table.lockStripe(stripe);
    let whole = false;
    try {
      const result = this.#decide(command, bytes, at, from, hash, bucket, out);
      whole = true;
      return result;
    } finally {
      if (!whole) table.breakTable();
      table.unlockStripe(stripe);
    }
  }

  /** Under the stripe lock: may this message be taken at all, and who decides it? */
  #decide(
    command: Command,
    bytes: Uint8Array,
    at: number,
    from: number,
    hash: number,
    bucket: number,
    out: Outbox,
  ): Result {
    const words = this.#words;
    const entry = this.#entry;
    const state = Atomics.load(words, CTL.STATE);
    if (state !== TABLE_STATE.SERVING && state !== TABLE_STATE.REBUILDING) {
      return this.#drop(COUNTER.frozen, RESULT.FROZEN);
    }
    if (entry[E.epochLow] !== words[CTL.EPOCH_LOW] || entry[E.epochHigh] !== words[CTL.EPOCH_HIGH]) {
      return this.#drop(COUNTER.stale, RESULT.STALE);
    }
    if (entry[E.node] !== (from | 0) || !this.#inView(from))
      return this.#drop(COUNTER.rejected, RESULT.REJECTED);
    const master = words[VIEW_AT + ((hash >>> 0) % ((words[CTL.VIEW_COUNT] as number) >>> 0))] as number;
    if (master !== words[CTL.SELF_NODE]) {
      // All nodes of an epoch agree on masters: only our own clients may be wrong about it.
      if ((from | 0) !== words[CTL.SELF_NODE]) return this.#drop(COUNTER.rejected, RESULT.REJECTED);
      out.appendBytes(master >>> 0, command, bytes, at);
      if ((this.#flags() & MXFS_LKF_VALUE) !== 0) {
        out.appendBytes(master >>> 0, command, bytes, at + MXFS_LOCK_ENTRY_SIZE);
      }
      this.table.count(COUNTER.forwards);
      return RESULT.FORWARDED;
    }
    const serving = state === TABLE_STATE.SERVING;
    switch (command) {
      case COMMAND.REQUEST:
        this.table.count(COUNTER.requests);
        return this.#request(bucket, serving, out);
      case COMMAND.CONVERT:
        return this.#convert(bucket, serving, out);
      case COMMAND.RELEASE:
        if ((this.#flags() & MXFS_LKF_CANCEL) !== 0) return this.#cancel(bucket, serving, out);
        return this.#release(bucket, serving, out);
      case COMMAND.RECLAIM:
        if (serving) return this.#drop(COUNTER.rejected, RESULT.REJECTED);
        return this.#reclaim(bucket);
    }
  }

  #drop(counter: number, result: Result): Result {
    this.table.count(counter);
    return result;
  }

  #inView(node: number): boolean {
    const words = this.#words;
    const count = words[CTL.VIEW_COUNT] as number;
    for (let i = 0; i < count; i++) if (words[VIEW_AT + i] === (node | 0)) return true;
    return false;
  }

  #mode(): number {
    return (this.#entry[E.modes] as number) & 0xff;
  }
  #granted(): number {
    return ((this.#entry[E.modes] as number) >>> 8) & 0xff;
  }
  #flags(): number {
    return (this.#entry[E.modes] as number) >>> 16;
  }

  #findLock(resource: number): number {
    const entry = this.#entry;
    if (resource === 0) return 0;
    return this.table.findLock(
      resource,
      entry[E.node] as number,
      entry[E.lockIdLow] as number,
      entry[E.lockIdHigh] as number,
    );
  }

  /** A new lock for the message's owner, not queued yet; 0 when there is no room for it (ENOLCK). */
  #addLock(resource: number, bucket: number, serving: boolean): number {
    const { table } = this;
    const entry = this.#entry;
    if ((resource === 0 && !table.reserve(KIND.RESOURCE)) || !table.reserve(KIND.LOCK)) return 0;
    const owned = resource !== 0 ? resource : table.addResource(bucket, entry);
    const withValue = this.#hasValue(entry[E.lockIdHigh] as number, entry[E.type] as number);
    const fresh = withValue && table.words[owned + RES.VALUE] === 0;
    const room = !withValue || table.valueOf(owned) !== 0;
    const lock = room
      ? table.addLock(
          owned,
          entry[E.node] as number,
          entry[E.lockIdLow] as number,
          entry[E.lockIdHigh] as number,
        )
      : 0;
    if (lock === 0) {
      if (resource === 0) table.removeResource(bucket, owned);
      return 0;
    }
    const words = this.#words;
    if (fresh) {
      const value = words[owned + RES.VALUE] as number;
      words[value + VALUE.STATE] = serving ? VALUE_STATE.VALID : VALUE_STATE.WEAK;
    }
    words[lock + LOCK.SEQ] = entry[E.seq] as number;
    words[lock + LOCK.GRANTED_SEQ] = entry[E.seq] as number;
    table.setAllowed(lock, ALL_MODES);
    return lock;
  }

  #request(bucket: number, serving: boolean, out: Outbox): Result {
    const { table } = this;
    const mode = this.#mode();
    const resource = table.findResource(bucket, this.#entry);
    const known = this.#findLock(resource);
    if (known !== 0) {
      if (table.queueOf(known) === QUEUE.WAIT && this.#words[known + LOCK.SEQ] === this.#entry[E.seq]) {
        return this.#drop(COUNTER.ignored, RESULT.IGNORED);
      }
      table.count(COUNTER.rejected);
      return this.#denyMessage(EINVAL, table.granted(known), out);
    }
    const alone =
      resource === 0 ||
      (table.first(resource, QUEUE.CONVERT) === 0 && table.first(resource, QUEUE.WAIT) === 0);
    const fits = resource === 0 || (table.fits(resource, mode, 0) && (alone || mode === MXFS_MODE_NL));
    const noqueue = (this.#flags() & MXFS_LKF_NOQUEUE) !== 0;
    if (serving && !fits && noqueue) return this.#denyMessage(EAGAIN, MXFS_MODE_NL, out);

    const lock = this.#addLock(resource, bucket, serving);
    if (lock === 0) {
      table.count(COUNTER.full);
      return this.#denyMessage(ENOLCK, MXFS_MODE_NL, out);
    }
    table.setModes(lock, MXFS_MODE_NL, mode, noqueue ? MXFS_LKF_NOQUEUE : 0);
    if (serving && fits) {
      this.#grant(lock, false, out);
      return RESULT.DECIDED;
    }
    table.enqueue(lock, QUEUE.WAIT);
    if (serving) this.#bastHolders(this.#words[lock + LOCK.RESOURCE] as number, out);
    return RESULT.QUEUED;
  }

  #convert(bucket: number, serving: boolean, out: Outbox): Result {
    const { table } = this;
    const words = this.#words;
    const mode = this.#mode();
    const resource = table.findResource(bucket, this.#entry);
    const lock = this.#findLock(resource);
    if (lock === 0) {
      // A statement about a lock that is gone needs no answer; a wish for more does.
      table.count(COUNTER.rejected);
      if (isDownConversion(this.#granted(), mode)) return RESULT.REJECTED;
      return this.#denyMessage(EINVAL, MXFS_MODE_NL, out);
    }
    const queue = table.queueOf(lock);
    const held = table.granted(lock);
    if (queue !== QUEUE.WAIT && isDownConversion(held, mode)) {
      table.count(COUNTER.statements);
      this.gaveUp = held;
      this.#writeValue(resource, held);
      // An outstanding conversion stays outstanding.
      table.setGranted(lock, mode);
      words[lock + LOCK.GRANTED_SEQ] = this.#entry[E.seq] as number;
      table.setAllowed(lock, ALL_MODES);
      if (queue === QUEUE.GRANTED) words[lock + LOCK.SEQ] = this.#entry[E.seq] as number;
      if (serving) this.#settle(resource, out);
      return RESULT.DECIDED;
    }
    table.count(COUNTER.converts);
    if (queue !== QUEUE.GRANTED) {
      if (words[lock + LOCK.SEQ] === this.#entry[E.seq] && table.mode(lock) === mode) {
        return this.#drop(COUNTER.ignored, RESULT.IGNORED);
      }
      table.count(COUNTER.rejected);
      return this.#denyMessage(EINVAL, held, out);
    }
    const fits = table.first(resource, QUEUE.CONVERT) === 0 && table.fits(resource, mode, lock);
    const noqueue = (this.#flags() & MXFS_LKF_NOQUEUE) !== 0;
    if (serving && !fits) {
      if (noqueue) return this.#denyMessage(EAGAIN, held, out);
      if (this.#blocksConverter(resource, lock)) {
        table.count(COUNTER.deadlocks);
        return this.#denyMessage(EDEADLK, held, out);
      }
    }
    table.dequeue(lock);
    words[lock + LOCK.SEQ] = this.#entry[E.seq] as number;
    table.setModes(lock, held, mode, noqueue ? MXFS_LKF_NOQUEUE : 0);
    if (serving && fits) {
      this.#grant(lock, true, out);
      // Not only who is in the way now: from PR to CW, or back, it also stopped being in somebody's way.
      this.#settle(resource, out);
      return RESULT.DECIDED;
    }
    table.enqueue(lock, QUEUE.CONVERT);
    if (serving) this.#bastHolders(resource, out);
    return RESULT.QUEUED;
  }

  #release(bucket: number, serving: boolean, out: Outbox): Result {
    const { table } = this;
    const resource = table.findResource(bucket, this.#entry);
    const lock = this.#findLock(resource);
    if (lock === 0) return this.#drop(COUNTER.ignored, RESULT.IGNORED);
    table.count(COUNTER.releases);
    this.gaveUp = table.queueOf(lock) === QUEUE.WAIT ? MXFS_MODE_NL : table.granted(lock);
    this.#writeValue(resource, table.granted(lock));
    this.#remove(resource, lock, (this.#flags() & MXFS_LKF_LOST) !== 0);
    this.#afterRemoval(resource, bucket, serving, out);
    return RESULT.DECIDED;
  }

  /** @param lost its owner is gone without a word: what it may have written is not known. */
  #remove(resource: number, lock: number, lost: boolean): void {
    const { table } = this;
    if (lost && table.queueOf(lock) !== QUEUE.WAIT && table.granted(lock) >= MXFS_MODE_PW) {
      const value = this.#words[resource + RES.VALUE] as number;
      if (value !== 0) this.#words[value + VALUE.STATE] = VALUE_STATE.INVALID;
    }
    table.dequeue(lock);
    table.removeLock(lock);
  }

  #cancel(bucket: number, serving: boolean, out: Outbox): Result {
    const { table } = this;
    const resource = table.findResource(bucket, this.#entry);
    const lock = this.#findLock(resource);
    if (lock === 0) return this.#drop(COUNTER.ignored, RESULT.IGNORED);
    if (table.queueOf(lock) === QUEUE.GRANTED || this.#words[lock + LOCK.SEQ] !== this.#entry[E.seq]) {
      return this.#drop(COUNTER.ignored, RESULT.IGNORED);
    }
    table.count(COUNTER.cancels);
    this.#deny(lock, ECANCELED, out);
    this.#afterRemoval(resource, bucket, serving, out);
    return RESULT.DECIDED;
  }

  /** Something left the resource: free it when empty, else see who can go on. */
  #afterRemoval(resource: number, bucket: number, serving: boolean, out: Outbox): void {
    if (this.table.lockCount(resource) === 0) {
      this.table.removeResource(bucket, resource);
    } else if (serving) {
      this.#settle(resource, out);
    }
  }

  /** Enters a lock as its owner knows it from before: held, and perhaps with a request outstanding. */
  #reclaim(bucket: number): Result {
    const { table } = this;
    const flags = this.#flags();
    const held = this.#granted();
    const waiting = (flags & MXFS_LKF_WAITING) !== 0;
    const resource = table.findResource(bucket, this.#entry);
    if (this.#findLock(resource) !== 0) return this.#drop(COUNTER.ignored, RESULT.IGNORED);
    if (resource !== 0 && !table.fits(resource, held, 0))
      return this.#drop(COUNTER.conflicts, RESULT.CONFLICT);
    const lock = this.#addLock(resource, bucket, false);
    if (lock === 0) return this.#drop(COUNTER.full, RESULT.CONFLICT);
    table.count(COUNTER.reclaims);
    table.setModes(lock, held, waiting ? this.#mode() : held, waiting ? flags & MXFS_LKF_NOQUEUE : 0);
    const converting = held !== MXFS_MODE_NL || (flags & MXFS_LKF_CONVERT) !== 0;
    table.enqueue(lock, waiting ? (converting ? QUEUE.CONVERT : QUEUE.WAIT) : QUEUE.GRANTED);
    this.#reclaimValue(this.#words[lock + LOCK.RESOURCE] as number, held);
    return waiting ? RESULT.QUEUED : RESULT.DECIDED;
  }

  // ---- values -----------------------------------------------------------------------------------------------

  #hasValue(lockIdHigh: number, type: number): boolean {
    return lockIdHigh >>> CLIENT_SHIFT === MXFS_LOCK_CLIENT_CONTROL && type === MXFS_RES_USER;
  }

  /** The message gives up `held`, and says what the value is from now on. */
  #writeValue(resource: number, held: number): void {
    const value = this.#words[resource + RES.VALUE] as number;
    if ((this.#flags() & MXFS_LKF_VALUE) === 0 || held < MXFS_MODE_PW || value === 0) return;
    this.#copyValue(value, VALUE_STATE.VALID);
    this.table.count(COUNTER.values);
  }

  #copyValue(value: number, state: number): void {
    const words = this.#words;
    for (let word = 0; word < KEY_WORDS; word++) words[value + word] = this.#value[word] as number;
    words[value + VALUE.SEQ] = this.#value[V.seqLow] as number;
    words[value + VALUE.SEQ + 1] = this.#value[V.seqHigh] as number;
    words[value + VALUE.STATE] = state;
  }

  /** What a reclaimed lock's owner knows of the value. */
  #reclaimValue(resource: number, held: number): void {
    const words = this.#words;
    const value = words[resource + RES.VALUE] as number;
    if ((this.#flags() & MXFS_LKF_VALUE) === 0 || value === 0) return;
    const weak = words[value + VALUE.STATE] === VALUE_STATE.WEAK;
    const seq = wide(this.#value, V.seqLow);
    const state = ((this.#value[V.state] as number) & 0xff) === 0 ? VALUE_STATE.VALID : VALUE_STATE.INVALID;
    if (held > MXFS_MODE_CR) {
      // It has kept writers out since it learned this.
      if (weak || seq > wide(words, value + VALUE.SEQ)) this.#copyValue(value, state);
    } else if (weak && seq >= wide(words, value + VALUE.SEQ)) {
      this.#copyValue(value, VALUE_STATE.WEAK);
    }
  }

  /** The rebuild is over: nobody vouches for what only weak locks know. */
  #settleValue(resource: number): void {
    const words = this.#words;
    const value = words[resource + RES.VALUE] as number;
    if (value === 0 || words[value + VALUE.STATE] !== VALUE_STATE.WEAK) return;
    const known = this.table.heldModes(resource) !== 0;
    words[value + VALUE.STATE] = known ? VALUE_STATE.INVALID : VALUE_STATE.VALID;
  }

  // ---- decisions --------------------------------------------------------------------------------------------

  /** Whether this conversion's held mode keeps an earlier one from ever being granted. */
  #blocksConverter(resource: number, lock: number): boolean {
    const { table } = this;
    const held = table.granted(lock);
    for (let other = table.first(resource, QUEUE.CONVERT); other !== 0; other = table.next(other)) {
      if (other === lock) return false;
      if (((COMPATIBLE[table.mode(other)] as number) & (1 << held)) === 0) return true;
    }
    return false;
  }

  /** Grants what the queues allow, in order; then asks whoever is in the way. */
  #settle(resource: number, out: Outbox): void {
    const { table } = this;
    if (table.wantedModes(resource) === 0) return;
    for (const queue of [QUEUE.CONVERT, QUEUE.WAIT] as const) {
      for (let lock = table.first(resource, queue); lock !== 0; lock = table.first(resource, queue)) {
        if (!table.fits(resource, table.mode(lock), lock)) break;
        table.dequeue(lock);
        this.#grant(lock, queue === QUEUE.CONVERT, out);
      }
      if (table.first(resource, queue) !== 0) break;
    }
    this.#bastHolders(resource, out);
  }

  /** The lock, in no queue, now holds what it wanted. */
  #grant(lock: number, conversion: boolean, out: Outbox): void {
    const { table } = this;
    const words = this.#words;
    const mode = table.mode(lock);
    table.setModes(lock, mode, mode, table.granted(lock) | (conversion ? WAS_CONVERSION : 0));
    table.setAllowed(lock, ALL_MODES);
    words[lock + LOCK.GRANTED_SEQ] = words[lock + LOCK.SEQ] as number;
    table.enqueue(lock, QUEUE.GRANTED);
    table.count(COUNTER.grants);
    this.#tell(OUTCOME.GRANT, lock, mode, words[lock + LOCK.SEQ] as number, 0, out);
  }

  /** Denies a queued lock's request: a conversion goes back to what it holds, a request goes away. */
  #deny(lock: number, errno: number, out: Outbox): void {
    const { table } = this;
    const words = this.#words;
    const queue = table.queueOf(lock);
    const held = table.granted(lock);
    table.count(COUNTER.denies);
    this.#tell(OUTCOME.DENY, lock, table.mode(lock), words[lock + LOCK.SEQ] as number, errno, out);
    table.dequeue(lock);
    if (queue === QUEUE.CONVERT) {
      table.setModes(lock, held, held, 0);
      words[lock + LOCK.SEQ] = words[lock + LOCK.GRANTED_SEQ] as number;
      table.enqueue(lock, QUEUE.GRANTED);
    } else {
      table.removeLock(lock);
    }
  }

  /** BASTs to the granted locks that keep somebody from what he wants, as far as not said before. */
  #bastHolders(resource: number, out: Outbox): void {
    const { table } = this;
    const wanted = table.wantedModes(resource);
    if (wanted === 0) return;
    const words = this.#words;
    // Strongest first: what EX rules out says all of the others.
    for (let holder = table.first(resource, QUEUE.GRANTED); holder !== 0; holder = table.next(holder)) {
      const held = table.granted(holder);
      for (let mode = MXFS_MODE_COUNT - 1; mode > MXFS_MODE_NL; mode--) {
        const compatible = COMPATIBLE[mode] as number;
        if ((wanted & (1 << mode)) === 0 || (compatible & (1 << held)) !== 0) continue;
        const allowed = table.allowed(holder);
        if ((allowed & ~compatible) === 0) continue;
        table.setAllowed(holder, allowed & compatible);
        table.count(COUNTER.basts);
        this.#tell(OUTCOME.BAST, holder, mode, words[holder + LOCK.GRANTED_SEQ] as number, 0, out);
      }
    }
  }

  /** Appends a message to the lock's owner; a grant brings the value along. */
  #tell(type: Outcome, lock: number, mode: number, seq: number, errno: number, out: Outbox): void {
    const words = this.#words;
    const resource = words[lock + LOCK.RESOURCE] as number;
    const key = resource + RES.KEY;
    const node = words[lock + LOCK.NODE] as number;
    const withValue =
      type === OUTCOME.GRANT &&
      this.#hasValue(words[lock + LOCK.ID_HIGH] as number, words[key + E.type] as number);
    const to = out.append(node >>> 0, type);
    const entry = out.words;
    for (let word = 0; word < KEY_WORDS; word++) entry[to + word] = words[key + word] as number;
    entry[to + E.lockIdLow] = words[lock + LOCK.ID_LOW] as number;
    entry[to + E.lockIdHigh] = words[lock + LOCK.ID_HIGH] as number;
    entry[to + E.epochLow] = words[CTL.EPOCH_LOW] as number;
    entry[to + E.epochHigh] = words[CTL.EPOCH_HIGH] as number;
    entry[to + E.seq] = seq;
    entry[to + E.modes] = mode | (this.table.granted(lock) << 8) | (withValue ? MXFS_LKF_VALUE << 16 : 0);
    entry[to + E.node] = node;
    entry[to + E.status] = errno;
    if (withValue) this.#tellValue(words[resource + RES.VALUE] as number, lock, seq, out);
  }

  #tellValue(value: number, lock: number, seq: number, out: Outbox): void {
    const words = this.#words;
    const node = words[lock + LOCK.NODE] as number;
    const to = out.append(node >>> 0, OUTCOME.GRANT);
    const entry = out.words;
    for (let word = 0; word < KEY_WORDS; word++) entry[to + word] = words[value + word] as number;
    entry[to + E.lockIdLow] = words[lock + LOCK.ID_LOW] as number;
    entry[to + E.lockIdHigh] = words[lock + LOCK.ID_HIGH] as number;
    entry[to + V.seqLow] = words[value + VALUE.SEQ] as number;
    entry[to + V.seqHigh] = words[value + VALUE.SEQ + 1] as number;
    entry[to + E.seq] = seq;
    const valid = words[value + VALUE.STATE] === VALUE_STATE.VALID;
    entry[to + V.state] = (valid ? 0 : 1) | (MXFS_LKF_IS_VALUE << 16);
    entry[to + E.node] = node;
    entry[to + E.status] = 0;
  }

  /** Denies the message in hand. */
  #denyMessage(errno: number, held: number, out: Outbox): Result {
    const message = this.#entry;
    const to = out.append((message[E.node] as number) >>> 0, OUTCOME.DENY);
    const entry = out.words;
    for (let word = 0; word < E.modes; word++) entry[to + word] = message[word] as number;
    entry[to + E.modes] = this.#mode() | (held << 8);
    entry[to + E.node] = message[E.node] as number;
    entry[to + E.status] = errno;
    this.table.count(COUNTER.denies);
    return RESULT.DECIDED;
  }

  // ---- grants that must be persisted before they are told (src/disk/lock_persister.ts) ----------------------------

  /** What the owner of the lock that this entry names holds, as far as it is mastered here and of this epoch; else NL. */
  heldMode(bytes: Uint8Array, at: number): number {
    return this.#withLock(bytes, at, MXFS_MODE_NL, (lock) =>
      this.table.queueOf(lock) === QUEUE.WAIT ? MXFS_MODE_NL : this.table.granted(lock),
    );
  }

  /**
   * Takes back a grant that was decided and not told: the lock is again what it was before, its owner is told DENY, and
   * whoever waited for it goes on. @param bytes the GRANT at `at`. @returns false: nothing is left to be taken back.
   */
  refuse(bytes: Uint8Array, at: number, errno: number, out: Outbox): boolean {
    return this.#withLock(bytes, at, false, (lock, resource, bucket) => {
      const { table } = this;
      const words = this.#words;
      const mode = this.#mode();
      if (table.queueOf(lock) !== QUEUE.GRANTED || table.granted(lock) !== mode) return false;
      if (this.state !== TABLE_STATE.SERVING) return false;
      if (words[lock + LOCK.SEQ] !== this.#entry[E.seq]) return false;
      const before = table.flags(lock) & ~WAS_CONVERSION;
      const conversion = (table.flags(lock) & WAS_CONVERSION) !== 0;
      table.dequeue(lock);
      table.setModes(lock, before, before, 0);
      table.count(COUNTER.denies);
      this.#tell(OUTCOME.DENY, lock, mode, words[lock + LOCK.SEQ] as number, errno, out);
      if (conversion) {
        table.setAllowed(lock, ALL_MODES);
        table.enqueue(lock, QUEUE.GRANTED);
        this.#settle(resource, out);
      } else {
        table.removeLock(lock);
        this.#afterRemoval(resource, bucket, true, out);
      }
      return true;
    });
  }

  /**
   * Asks the owner of a granted lock for what does not go with `mode`, though nobody waits for it.
   * @returns false: it does, is not granted, or has been asked already.
   */
  recall(bytes: Uint8Array, at: number, mode: number, out: Outbox): boolean {
    return this.#withLock(bytes, at, false, (lock) => {
      const { table } = this;
      const compatible = COMPATIBLE[mode] as number;
      if (table.queueOf(lock) !== QUEUE.GRANTED || (compatible & (1 << table.granted(lock))) !== 0)
        return false;
      const allowed = table.allowed(lock);
      if ((allowed & ~compatible) === 0) return false;
      table.setAllowed(lock, allowed & compatible);
      table.count(COUNTER.basts);
      this.#tell(OUTCOME.BAST, lock, mode, this.#words[lock + LOCK.GRANTED_SEQ] as number, 0, out);
      return true;
    });
  }

  /** The locks of a stripe that are held in one of these modes (bit mask). */
  heldIn(stripe: number, modes: number): HeldLock[] {
    const { table } = this;
    const words = this.#words;
    const found: HeldLock[] = [];
    table.locked(stripe, () => {
      table.forEachResource(stripe, (resource) => {
        if ((table.heldModes(resource) & modes) === 0) return;
        const key = resource + RES.KEY;
        table.forEachLock(resource, (lock, queue) => {
          const mode = table.granted(lock);
          if (queue === QUEUE.WAIT || (modes & (1 << mode)) === 0) return;
          found.push({
            resource: {
              volume: wide(words, key),
              ino: wide(words, key + 2),
              offset: wide(words, key + 4),
              ag: (words[key + 6] as number) >>> 0,
              type: (words[key + 7] as number) >>> 0,
            },
            node: (words[lock + LOCK.NODE] as number) >>> 0,
            lockId: wide(words, lock + LOCK.ID_LOW),
            mode,
          });
        });
      });
    });
    return found;
  }

  /** Under the stripe lock of the lock that the entry names, in the entry's epoch; else `otherwise`. */
  #withLock<T>(
    bytes: Uint8Array,
    at: number,
    otherwise: T,
    action: (lock: number, resource: number, bucket: number) => T,
  ): T {
    const { table } = this;
    this.#load(bytes, at);
    const entry = this.#entry;
    const bucket = table.bucketOf(this.#hasher.hash(entry, 0) | 0);
    const stripe = table.stripeOf(bucket);
    return table.locked(stripe, () => {
      const words = this.#words;
      if (this.state !== TABLE_STATE.SERVING && this.state !== TABLE_STATE.REBUILDING) return otherwise;
      if (entry[E.epochLow] !== words[CTL.EPOCH_LOW] || entry[E.epochHigh] !== words[CTL.EPOCH_HIGH]) {
        return otherwise;
      }
      const resource = table.findResource(bucket, entry);
      const lock = this.#findLock(resource);
      return lock === 0 ? otherwise : action(lock, resource, bucket);
    });
  }

  // ---- view changes (one thread, one at a time) -------------------------------------------------------------

  /**
   * First half of a view change: no more decisions, every lock forgotten; then epoch and view are the next ones
   * and reclaims are taken. May be called again with a later epoch before `resume`.
   * @param nodes the next view's node ids; this node must be one of them.
   * @throws RangeError for an epoch that does not rise, or a view without this node; nothing has changed then.
   */
  freezeAndClear(epoch: bigint, nodes: Iterable<number>): void {
    const { table } = this;
    const words = this.#words;
    const sorted = sortedNodes(nodes);
    assertU64(epoch, "epoch");
    if (epoch <= this.epoch) throw new RangeError(`epoch ${epoch} does not rise above ${this.epoch}`);
    if (!sorted.includes(this.self)) {
      throw new RangeError(`view: this node ${this.self.toString(16)} is not in the next view`);
    }
    table.lockAdmin();
    try {
      Atomics.store(words, CTL.STATE, TABLE_STATE.CHANGING);
      // Whoever is inside a stripe finishes; whoever comes later sees CHANGING, and leaves everything alone.
      table.passAll();
      table.forgetAll();
      sorted.forEach((node, index) => {
        words[VIEW_AT + index] = node | 0;
      });
      words[CTL.VIEW_COUNT] = sorted.length;
      words[CTL.EPOCH_LOW] = Number(BigInt.asIntN(32, epoch));
      words[CTL.EPOCH_HIGH] = Number(BigInt.asIntN(32, epoch >> 32n));
      table.count(COUNTER.viewChanges);
      Atomics.store(words, CTL.STATE, TABLE_STATE.REBUILDING);
    } finally {
      table.unlockAdmin();
    }
  }

  /**
   * Second half: service resumes. What was reclaimed or queued meanwhile is granted, denied or asked for.
   * @param onBatch called now and then, without a stripe lock, to drain the outbox.
   * @throws RangeError unless `epoch` is the one of the last `freezeAndClear`, not resumed yet.
   */
  resume(epoch: bigint, out: Outbox, onBatch?: () => void): void {
    this.serve(epoch);
    const { table } = this;
    const end = table.stripeCount;
    for (let stripe = table.nextBusy(0); stripe < end; stripe = table.nextBusy(stripe + 1)) {
      this.wakeStripe(stripe, epoch, out);
      if (onBatch !== undefined && out.count >= BATCH_COUNT) onBatch();
    }
    if (onBatch !== undefined && out.count > 0) onBatch();
  }

  /** As `resume`, but whoever waits goes on only when `wakeStripe` has been called for every stripe. */
  serve(epoch: bigint): void {
    const { table } = this;
    if (this.state !== TABLE_STATE.REBUILDING || epoch !== this.epoch) {
      throw new RangeError(
        `resume of epoch ${epoch}: the lock service is in epoch ${this.epoch}, state ${this.state}`,
      );
    }
    table.lockAdmin();
    try {
      Atomics.store(this.#words, CTL.STATE, TABLE_STATE.SERVING);
    } finally {
      table.unlockAdmin();
    }
  }

  /** First decisions on a stripe's rebuilt resources. @returns false: the epoch is over, nothing was done. */
  wakeStripe(stripe: number, epoch: bigint, out: Outbox): boolean {
    const { table } = this;
    return table.locked(stripe, () => {
      if (this.state !== TABLE_STATE.SERVING || this.epoch !== epoch) return false;
      table.forEachResource(stripe, (resource, bucket) => {
        this.#settleValue(resource);
        this.#wake(resource, bucket, out);
      });
      return true;
    });
  }

  #wake(resource: number, bucket: number, out: Outbox): void {
    const { table } = this;
    if (table.wantedModes(resource) === 0) return;
    let lock = table.first(resource, QUEUE.CONVERT);
    while (lock !== 0) {
      const next = table.next(lock);
      // Who does not wait is refused as anywhere else: two kernels that both try for more must not take it for a deadlock.
      if (table.flags(lock) === 0 && this.#blocksConverter(resource, lock)) {
        table.count(COUNTER.deadlocks);
        this.#deny(lock, EDEADLK, out);
      }
      lock = next;
    }
    this.#settle(resource, out);
    let denied = false;
    table.forEachLock(resource, (queued, queue) => {
      if (queue === QUEUE.GRANTED || table.flags(queued) === 0) return;
      this.#deny(queued, EAGAIN, out);
      denied = true;
    });
    if (denied) this.#afterRemoval(resource, bucket, true, out);
  }

  /**
   * Forgets every lock of a node (it is dead and fenced, or has left), and lets those go on who waited for it.
   * @param onBatch as for `resume`. @returns how many locks.
   */
  purgeNode(node: number, out: Outbox, onBatch?: () => void): number {
    const { table } = this;
    const end = table.stripeCount;
    let count = 0;
    for (let stripe = table.nextBusy(0); stripe < end; stripe = table.nextBusy(stripe + 1)) {
      count += this.purgeStripe(stripe, node, out);
      if (onBatch !== undefined && out.count >= BATCH_COUNT) onBatch();
    }
    if (onBatch !== undefined && out.count > 0) onBatch();
    return count;
  }

  /** As `purgeNode`, for one stripe. */
  purgeStripe(stripe: number, node: number, out: Outbox): number {
    const { table } = this;
    return table.locked(stripe, () => {
      let count = 0;
      const serving = this.state === TABLE_STATE.SERVING;
      table.forEachResource(stripe, (resource, bucket) => {
        const before = count;
        table.forEachLock(resource, (lock) => {
          if (this.#words[lock + LOCK.NODE] !== (node | 0)) return;
          this.#remove(resource, lock, true);
          count++;
        });
        if (count > before) this.#afterRemoval(resource, bucket, serving, out);
      });
      table.count(COUNTER.purged, count);
      return count;
    });
  }

  // ---- deadlocks --------------------------------------------------------------------------------------------

  /**
   * The control clients' locks that keep a waiting lock waiting: holders of what does not go with it, and whoever
   * stands before it. Empty when it does not wait (any more), or is not mastered here.
   * @param countMax most locks named.
   */
  blockersOf(wait: Resource & { node: number; lockId: bigint; seq: number }, countMax: number): LockOwner[] {
    const { table } = this;
    encodeLockEntry({ ...BLANK, ...wait, flags: 0, status: 0 }, this.#entryBytes, 0);
    this.#load(this.#entryBytes, 0);
    const bucket = table.bucketOf(this.#hasher.hash(this.#entry, 0));
    return table.locked(table.stripeOf(bucket), () => {
      if (this.state !== TABLE_STATE.SERVING) return [];
      const resource = table.findResource(bucket, this.#entry);
      const lock = this.#findLock(resource);
      if (lock === 0 || table.queueOf(lock) === QUEUE.GRANTED) return [];
      if (this.#words[lock + LOCK.SEQ] !== this.#entry[E.seq]) return [];
      return this.#blockers(resource, lock, countMax);
    });
  }

  #blockers(resource: number, lock: number, countMax: number): LockOwner[] {
    const { table } = this;
    const words = this.#words;
    const compatible = COMPATIBLE[table.mode(lock)] as number;
    const own = table.queueOf(lock);
    const found: LockOwner[] = [];
    let before = true;
    table.forEachLock(resource, (other, queue) => {
      if (other === lock) before = false;
      if (other === lock || found.length >= countMax) return;
      const holds = queue !== QUEUE.WAIT && (compatible & (1 << table.granted(other))) === 0;
      const first = queue !== QUEUE.GRANTED && (queue < own || (queue === own && before));
      if (!holds && !first) return;
      if ((words[other + LOCK.ID_HIGH] as number) >>> CLIENT_SHIFT !== MXFS_LOCK_CLIENT_CONTROL) return;
      found.push({
        node: (words[other + LOCK.NODE] as number) >>> 0,
        lockId: wide(words, other + LOCK.ID_LOW),
      });
    });
    return found;
  }

  // ---- looking in -------------------------------------------------------------------------------------------

  /**
   * A page of the table's locks that the filter lets through: about `countMax`, more only to finish a resource's
   * bucket; fewer, even none, when the filter passes little (then `next` says where to go on). Each bucket is
   * copied under its lock, so the whole is not one moment's picture, but each resource is.
   * @param cursor 0, or `next` of the page before.
   */
  dumpPage(filter: LockFilter, cursor: number, countMax: number): DumpPage {
    const { table } = this;
    const locks: LockInfo[] = [];
    const take = (bucket: number): void => {
      if (this.#words[table.bucketAt(bucket)] === 0) return;
      table.locked(table.stripeOf(bucket), () => {
        table.forEachInBucket(bucket, (resource) => this.#collect(resource, filter, locks));
      });
    };
    if (filter.resource !== undefined) {
      encodeLockEntry({ ...filter.resource, ...BLANK }, this.#entryBytes, 0);
      this.#load(this.#entryBytes, 0);
      const key = this.#entry.slice(0, KEY_WORDS);
      const bucket = table.bucketOf(this.#hasher.hash(key, 0));
      table.locked(table.stripeOf(bucket), () => {
        const resource = this.state === TABLE_STATE.CHANGING ? 0 : table.findResource(bucket, key);
        if (resource !== 0) this.#collect(resource, filter, locks);
      });
      return { locks, next: null };
    }
    const end = Math.min(table.bucketCount, cursor + DUMP_BUCKETS_MAX);
    let bucket = cursor;
    while (bucket < end && locks.length < countMax) take(bucket++);
    return { locks, next: bucket < table.bucketCount ? bucket : null };
  }

  /** All pages. */
  *dump(filter: LockFilter = {}): Generator<LockInfo> {
    for (let cursor: number | null = 0; cursor !== null; ) {
      const page: DumpPage = this.dumpPage(filter, cursor, BATCH_COUNT);
      yield* page.locks;
      cursor = page.next;
    }
  }

  #collect(resource: number, filter: LockFilter, found: LockInfo[]): void {
    const { table } = this;
    const words = this.#words;
    const key = resource + RES.KEY;
    if (filter.type !== undefined && words[key + 7] !== filter.type) return;
    if (filter.ino !== undefined && wide(words, key + 2) !== filter.ino) return;
    if (filter.contended === true && table.wantedModes(resource) === 0) return;
    const value = this.#valueOf(resource);
    table.forEachLock(resource, (lock, queue) => {
      const node = (words[lock + LOCK.NODE] as number) >>> 0;
      if (filter.node !== undefined && node !== filter.node) return;
      found.push({
        volume: wide(words, key),
        ino: wide(words, key + 2),
        offset: wide(words, key + 4),
        ag: (words[key + 6] as number) >>> 0,
        type: (words[key + 7] as number) >>> 0,
        node,
        lockId: wide(words, lock + LOCK.ID_LOW),
        seq: (words[lock + LOCK.SEQ] as number) >>> 0,
        granted: table.granted(lock),
        mode: table.mode(lock),
        queue: QUEUE_NAME[queue],
        blocking: table.allowed(lock) !== ALL_MODES,
        value,
      });
    });
  }

  #valueOf(resource: number): LockValue | null {
    const words = this.#words;
    const value = words[resource + RES.VALUE] as number;
    if (value === 0) return null;
    const copy = new Int32Array(KEY_WORDS);
    copy.set(words.subarray(value, value + KEY_WORDS));
    return {
      bytes: new Uint8Array(copy.buffer),
      seq: wide(words, value + VALUE.SEQ),
      valid: words[value + VALUE.STATE] === VALUE_STATE.VALID,
    };
  }
}

/** Words of an entry (struct mxfs_lock_entry); the key is words 0 to 7. */
const E = {
  type: 7,
  lockIdLow: 8,
  lockIdHigh: 9,
  epochLow: 10,
  epochHigh: 11,
  seq: 12,
  /** mode u8, granted u8, flags u16 */
  modes: 13,
  node: 14,
  status: 15,
} as const;

/** Words of a value (struct mxfs_lock_value); its bytes are words 0 to 7, the rest is as in an entry. */
const V = {
  seqLow: 10,
  seqHigh: 11,
  /** state u8, 0 u8, flags u16 */
  state: 13,
} as const;

function wide(words: Int32Array, at: number): bigint {
  return (BigInt((words[at + 1] as number) >>> 0) << 32n) | BigInt((words[at] as number) >>> 0);
}

const BLANK = { lockId: 0n, epoch: 0n, seq: 0, mode: 0, granted: 0, flags: 0, node: 0, status: 0 };
