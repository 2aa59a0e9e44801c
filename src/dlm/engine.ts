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
 * Known weakness: locks on one resource are found by walking its queues; a resource with thousands of locks is
 * slow. Deadlocks over several resources are not seen: callers keep the lock order, or give up by time-out.
 */
import {
  MXFS_LKF_CANCEL,
  MXFS_LKF_CONVERT,
  MXFS_LKF_NOQUEUE,
  MXFS_LKF_WAITING,
  MXFS_LOCK_ENTRY_SIZE,
  MXFS_MODE_COUNT,
  MXFS_MODE_NL,
  WireType,
} from "../wire/abi.js";
import { assertU32, assertU64, viewOf } from "../wire/error.js";
import { encodeLockEntry, type LockEntry, type Resource } from "../wire/lock_entry.js";
import {
  COUNTER,
  type CounterName,
  CTL,
  LOCK,
  QUEUE,
  type Queue,
  RES,
  TABLE_STATE,
  type TableCapacity,
  type TableState,
  VIEW_AT,
} from "./layout.js";
import { ALL_MODES, COMPATIBLE, isDownConversion } from "./modes.js";
import { OUTCOME, type Outbox, type Outcome } from "./outbox.js";
import { KEY_WORDS, ResourceHasher } from "./resource.js";
import { LockTable } from "./table.js";
import { masterOf, sortedNodes } from "./view.js";

/** errnos of denials, positive (asm-generic/errno.h). */
export const EAGAIN = 11;
export const ENOMEM = 12;
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

/** How many messages of a batch came to which result; index by RESULT. */
export type Tally = Uint32Array;

export interface LockFilter {
  readonly node?: number;
  readonly ino?: bigint;
  /** enum mxfs_resource_type */
  readonly type?: number;
  /** Only locks of resources where somebody waits. */
  readonly contended?: boolean;
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
}

const QUEUE_NAME = ["granted", "convert", "wait"] as const;
/** How many outcomes resume and purge let pile up before they call `onBatch`. */
const BATCH_COUNT = 256;

export class LockEngine {
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #hasher = new ResourceHasher();
  /** The message in hand: 16 words of an entry. */
  readonly #entry = new Int32Array(MXFS_LOCK_ENTRY_SIZE / 4);
  readonly #entryBytes = new Uint8Array(MXFS_LOCK_ENTRY_SIZE);

  private constructor(readonly table: LockTable) {
    this.#words = table.words;
  }

  /** Makes a table for node `self` and an engine over it. Without a view it decides nothing. */
  static create(self: number, capacity: TableCapacity): LockEngine {
    assertU32(self, "node id");
    const table = LockTable.create(capacity);
    Atomics.store(table.words, CTL.SELF_NODE, self | 0);
    return new LockEngine(table);
  }

  /** An engine of another thread over the same table. */
  static attach(buffer: SharedArrayBuffer): LockEngine {
    return new LockEngine(LockTable.attach(buffer));
  }

  /** Post this to other threads, for `attach`. */
  get buffer(): SharedArrayBuffer {
    return this.table.buffer;
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
    this.#load(viewOf(this.#entryBytes), 0);
    return masterOf(view, this.#hasher.hash(this.#entry, 0));
  }

  // ---- messages ---------------------------------------------------------------------------------------------

  /**
   * Takes one message: the 64 bytes at `at`, which `checkLockEntries` has accepted. @param from the node it came
   * from; this node itself for the kernel's and the control clients' messages.
   * @throws LockTableError: the daemon must end.
   */
  submit(command: Command, bytes: Uint8Array, at: number, from: number, out: Outbox): Result {
    return this.#submit(command, bytes, viewOf(bytes), at, from, out);
  }

  /** As `submit` for every entry of a body, in order; adds to `tally` if given. @returns how many entries. */
  submitAll(command: Command, bytes: Uint8Array, from: number, out: Outbox, tally?: Tally): number {
    const view = viewOf(bytes);
    let at = 0;
    for (; at + MXFS_LOCK_ENTRY_SIZE <= bytes.length; at += MXFS_LOCK_ENTRY_SIZE) {
      const result = this.#submit(command, bytes, view, at, from, out);
      if (tally !== undefined) tally[result] = (tally[result] as number) + 1;
    }
    return at / MXFS_LOCK_ENTRY_SIZE;
  }

  /** As `submit`, for an entry as an object. @throws RangeError when a field does not fit */
  submitEntry(command: Command, entry: LockEntry, from: number, out: Outbox): Result {
    if (entry.mode >= MXFS_MODE_COUNT || entry.granted >= MXFS_MODE_COUNT) {
      throw new RangeError(`lock entry: modes ${entry.granted} and ${entry.mode}: expected 0 to 5`);
    }
    encodeLockEntry(entry, this.#entryBytes, 0);
    return this.submit(command, this.#entryBytes, 0, from, out);
  }

  #load(view: DataView, at: number): void {
    for (let word = 0; word < MXFS_LOCK_ENTRY_SIZE / 4; word++) {
      this.#entry[word] = view.getInt32(at + 4 * word, true);
    }
  }

  #submit(
    command: Command,
    bytes: Uint8Array,
    view: DataView,
    at: number,
    from: number,
    out: Outbox,
  ): Result {
    const { table } = this;
    this.#load(view, at);
    const hash = this.#hasher.hash(this.#entry, 0);
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
    const master = words[VIEW_AT + (hash % (words[CTL.VIEW_COUNT] as number))] as number;
    if (master !== words[CTL.SELF_NODE]) {
      // All nodes of an epoch agree on masters: only our own clients may be wrong about it.
      if ((from | 0) !== words[CTL.SELF_NODE]) return this.#drop(COUNTER.rejected, RESULT.REJECTED);
      out.appendBytes(master >>> 0, command, bytes, at);
      this.table.count(COUNTER.forwards);
      return RESULT.FORWARDED;
    }
    const serving = state === TABLE_STATE.SERVING;
    switch (command) {
      case COMMAND.REQUEST:
        this.table.count(COUNTER.requests);
        return this.#request(hash, bucket, serving, out);
      case COMMAND.CONVERT:
        return this.#convert(hash, bucket, serving, out);
      case COMMAND.RELEASE:
        if ((this.#flags() & MXFS_LKF_CANCEL) !== 0) return this.#cancel(hash, bucket, serving, out);
        return this.#release(hash, bucket, serving, out);
      case COMMAND.RECLAIM:
        if (serving) return this.#drop(COUNTER.rejected, RESULT.REJECTED);
        return this.#reclaim(hash, bucket);
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

  /** A new lock for the message's owner, not queued yet; 0 with the denial's errno when an arena is full. */
  #addLock(resource: number, hash: number, bucket: number): { lock: number; errno: number } {
    const { table } = this;
    const entry = this.#entry;
    const owned = resource !== 0 ? resource : table.addResource(bucket, hash, entry);
    if (owned === 0) return { lock: 0, errno: ENOMEM };
    const lock = table.addLock(
      owned,
      entry[E.node] as number,
      entry[E.lockIdLow] as number,
      entry[E.lockIdHigh] as number,
    );
    if (lock === 0) {
      if (resource === 0) table.removeResource(bucket, owned);
      return { lock: 0, errno: ENOLCK };
    }
    const at = table.lockAt(lock);
    this.#words[at + LOCK.SEQ] = entry[E.seq] as number;
    this.#words[at + LOCK.GRANTED_SEQ] = entry[E.seq] as number;
    this.#words[at + LOCK.ALLOWED] = ALL_MODES;
    return { lock, errno: 0 };
  }

  #request(hash: number, bucket: number, serving: boolean, out: Outbox): Result {
    const { table } = this;
    const words = this.#words;
    const mode = this.#mode();
    const resource = table.findResource(bucket, hash, this.#entry);
    const known = this.#findLock(resource);
    if (known !== 0) {
      const at = table.lockAt(known);
      if (words[at + LOCK.QUEUE] === QUEUE.WAIT && words[at + LOCK.SEQ] === this.#entry[E.seq]) {
        return this.#drop(COUNTER.ignored, RESULT.IGNORED);
      }
      table.count(COUNTER.rejected);
      return this.#denyMessage(EINVAL, words[at + LOCK.GRANTED] as number, out);
    }
    const alone =
      resource === 0 ||
      (table.first(resource, QUEUE.CONVERT) === 0 && table.first(resource, QUEUE.WAIT) === 0);
    const fits = resource === 0 || (table.fits(resource, mode, 0) && (alone || mode === MXFS_MODE_NL));
    const noqueue = (this.#flags() & MXFS_LKF_NOQUEUE) !== 0;
    if (serving && !fits && noqueue) return this.#denyMessage(EAGAIN, MXFS_MODE_NL, out);

    const { lock, errno } = this.#addLock(resource, hash, bucket);
    if (lock === 0) {
      table.count(COUNTER.full);
      return this.#denyMessage(errno, MXFS_MODE_NL, out);
    }
    const at = table.lockAt(lock);
    words[at + LOCK.GRANTED] = MXFS_MODE_NL;
    words[at + LOCK.MODE] = mode;
    words[at + LOCK.FLAGS] = noqueue ? MXFS_LKF_NOQUEUE : 0;
    if (serving && fits) {
      this.#grant(lock, out);
      return RESULT.DECIDED;
    }
    table.enqueue(lock, QUEUE.WAIT);
    if (serving) this.#bastHolders(words[at + LOCK.RESOURCE] as number, out);
    return RESULT.QUEUED;
  }

  #convert(hash: number, bucket: number, serving: boolean, out: Outbox): Result {
    const { table } = this;
    const words = this.#words;
    const mode = this.#mode();
    const resource = table.findResource(bucket, hash, this.#entry);
    const lock = this.#findLock(resource);
    if (lock === 0) {
      // A statement about a lock that is gone needs no answer; a wish for more does.
      table.count(COUNTER.rejected);
      if (isDownConversion(this.#granted(), mode)) return RESULT.REJECTED;
      return this.#denyMessage(EINVAL, MXFS_MODE_NL, out);
    }
    const at = table.lockAt(lock);
    const queue = words[at + LOCK.QUEUE] as Queue;
    const held = words[at + LOCK.GRANTED] as number;
    if (queue !== QUEUE.WAIT && isDownConversion(held, mode)) {
      table.count(COUNTER.statements);
      this.#state(lock, queue, mode);
      if (serving) this.#settle(resource, out);
      return RESULT.DECIDED;
    }
    table.count(COUNTER.converts);
    if (queue !== QUEUE.GRANTED) {
      if (words[at + LOCK.SEQ] === this.#entry[E.seq] && words[at + LOCK.MODE] === mode) {
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
    words[at + LOCK.SEQ] = this.#entry[E.seq] as number;
    words[at + LOCK.MODE] = mode;
    words[at + LOCK.FLAGS] = noqueue ? MXFS_LKF_NOQUEUE : 0;
    if (serving && fits) {
      this.#grant(lock, out);
      // Not only who is in the way now: from PR to CW, or back, it also stopped being in somebody's way.
      this.#settle(resource, out);
      return RESULT.DECIDED;
    }
    table.enqueue(lock, QUEUE.CONVERT);
    if (serving) this.#bastHolders(resource, out);
    return RESULT.QUEUED;
  }

  /** A down-conversion: the owner has given up rights. An outstanding conversion stays outstanding. */
  #state(lock: number, queue: Queue, mode: number): void {
    const words = this.#words;
    const at = this.table.lockAt(lock);
    // Off and on again in place: a converting lock must keep its turn.
    const resourceAt = this.table.resourceAt(words[at + LOCK.RESOURCE] as number);
    const heldAt = resourceAt + RES.HELD + (words[at + LOCK.GRANTED] as number);
    words[heldAt] = (words[heldAt] as number) - 1;
    words[resourceAt + RES.HELD + mode] = (words[resourceAt + RES.HELD + mode] as number) + 1;
    words[at + LOCK.GRANTED] = mode;
    words[at + LOCK.GRANTED_SEQ] = this.#entry[E.seq] as number;
    words[at + LOCK.ALLOWED] = ALL_MODES;
    if (queue === QUEUE.GRANTED) {
      words[at + LOCK.MODE] = mode;
      words[at + LOCK.SEQ] = this.#entry[E.seq] as number;
    }
  }

  #release(hash: number, bucket: number, serving: boolean, out: Outbox): Result {
    const { table } = this;
    const resource = table.findResource(bucket, hash, this.#entry);
    const lock = this.#findLock(resource);
    if (lock === 0) return this.#drop(COUNTER.ignored, RESULT.IGNORED);
    table.count(COUNTER.releases);
    table.dequeue(lock);
    table.removeLock(lock);
    this.#afterRemoval(resource, bucket, serving, out);
    return RESULT.DECIDED;
  }

  #cancel(hash: number, bucket: number, serving: boolean, out: Outbox): Result {
    const { table } = this;
    const words = this.#words;
    const resource = table.findResource(bucket, hash, this.#entry);
    const lock = this.#findLock(resource);
    if (lock === 0) return this.#drop(COUNTER.ignored, RESULT.IGNORED);
    const at = table.lockAt(lock);
    if (words[at + LOCK.QUEUE] === QUEUE.GRANTED || words[at + LOCK.SEQ] !== this.#entry[E.seq]) {
      return this.#drop(COUNTER.ignored, RESULT.IGNORED);
    }
    table.count(COUNTER.cancels);
    this.#deny(lock, ECANCELED, out);
    this.#afterRemoval(resource, bucket, serving, out);
    return RESULT.DECIDED;
  }

  /** Something left the resource: free it when empty, else see who can go on. */
  #afterRemoval(resource: number, bucket: number, serving: boolean, out: Outbox): void {
    if (this.#words[this.table.resourceAt(resource) + RES.LOCK_COUNT] === 0) {
      this.table.removeResource(bucket, resource);
    } else if (serving) {
      this.#settle(resource, out);
    }
  }

  /** Enters a lock as its owner knows it from before: held, and perhaps with a request outstanding. */
  #reclaim(hash: number, bucket: number): Result {
    const { table } = this;
    const words = this.#words;
    const flags = this.#flags();
    const held = this.#granted();
    const waiting = (flags & MXFS_LKF_WAITING) !== 0;
    const resource = table.findResource(bucket, hash, this.#entry);
    if (this.#findLock(resource) !== 0) return this.#drop(COUNTER.ignored, RESULT.IGNORED);
    if (resource !== 0 && !table.fits(resource, held, 0))
      return this.#drop(COUNTER.conflicts, RESULT.CONFLICT);
    const { lock } = this.#addLock(resource, hash, bucket);
    if (lock === 0) return this.#drop(COUNTER.full, RESULT.CONFLICT);
    table.count(COUNTER.reclaims);
    const at = table.lockAt(lock);
    words[at + LOCK.GRANTED] = held;
    words[at + LOCK.MODE] = waiting ? this.#mode() : held;
    words[at + LOCK.FLAGS] = waiting ? flags & MXFS_LKF_NOQUEUE : 0;
    const converting = held !== MXFS_MODE_NL || (flags & MXFS_LKF_CONVERT) !== 0;
    table.enqueue(lock, waiting ? (converting ? QUEUE.CONVERT : QUEUE.WAIT) : QUEUE.GRANTED);
    return waiting ? RESULT.QUEUED : RESULT.DECIDED;
  }

  // ---- decisions --------------------------------------------------------------------------------------------

  /** Whether this conversion's held mode keeps an earlier one from ever being granted. */
  #blocksConverter(resource: number, lock: number): boolean {
    const words = this.#words;
    const held = words[this.table.lockAt(lock) + LOCK.GRANTED] as number;
    for (let other = this.table.first(resource, QUEUE.CONVERT); other !== 0; other = this.table.next(other)) {
      if (other === lock) return false;
      const wanted = words[this.table.lockAt(other) + LOCK.MODE] as number;
      if (((COMPATIBLE[wanted] as number) & (1 << held)) === 0) return true;
    }
    return false;
  }

  /** Grants what the queues allow, in order; then asks whoever is in the way. */
  #settle(resource: number, out: Outbox): void {
    const { table } = this;
    const words = this.#words;
    for (const queue of [QUEUE.CONVERT, QUEUE.WAIT] as const) {
      for (let lock = table.first(resource, queue); lock !== 0; lock = table.first(resource, queue)) {
        if (!table.fits(resource, words[table.lockAt(lock) + LOCK.MODE] as number, lock)) break;
        table.dequeue(lock);
        this.#grant(lock, out);
      }
      if (table.first(resource, queue) !== 0) break;
    }
    this.#bastHolders(resource, out);
  }

  /** The lock, in no queue, now holds what it wanted. */
  #grant(lock: number, out: Outbox): void {
    const words = this.#words;
    const at = this.table.lockAt(lock);
    words[at + LOCK.GRANTED] = words[at + LOCK.MODE] as number;
    words[at + LOCK.GRANTED_SEQ] = words[at + LOCK.SEQ] as number;
    words[at + LOCK.ALLOWED] = ALL_MODES;
    words[at + LOCK.FLAGS] = 0;
    this.table.enqueue(lock, QUEUE.GRANTED);
    this.table.count(COUNTER.grants);
    this.#tell(OUTCOME.GRANT, lock, words[at + LOCK.MODE] as number, words[at + LOCK.SEQ] as number, 0, out);
  }

  /** Denies a queued lock's request: a conversion goes back to what it holds, a request goes away. */
  #deny(lock: number, errno: number, out: Outbox): void {
    const { table } = this;
    const words = this.#words;
    const at = table.lockAt(lock);
    const queue = words[at + LOCK.QUEUE];
    table.count(COUNTER.denies);
    this.#tell(
      OUTCOME.DENY,
      lock,
      words[at + LOCK.MODE] as number,
      words[at + LOCK.SEQ] as number,
      errno,
      out,
    );
    table.dequeue(lock);
    if (queue === QUEUE.CONVERT) {
      words[at + LOCK.MODE] = words[at + LOCK.GRANTED] as number;
      words[at + LOCK.SEQ] = words[at + LOCK.GRANTED_SEQ] as number;
      words[at + LOCK.FLAGS] = 0;
      table.enqueue(lock, QUEUE.GRANTED);
    } else {
      table.removeLock(lock);
    }
  }

  /** BASTs to the granted locks that keep somebody from what he wants, as far as not said before. */
  #bastHolders(resource: number, out: Outbox): void {
    const { table } = this;
    const words = this.#words;
    const wanted = table.wantedModes(resource);
    if (wanted === 0) return;
    // Strongest first: what EX rules out says all of the others.
    for (let holder = table.first(resource, QUEUE.GRANTED); holder !== 0; holder = table.next(holder)) {
      const at = table.lockAt(holder);
      const held = words[at + LOCK.GRANTED] as number;
      for (let mode = MXFS_MODE_COUNT - 1; mode > MXFS_MODE_NL; mode--) {
        const compatible = COMPATIBLE[mode] as number;
        if ((wanted & (1 << mode)) === 0 || (compatible & (1 << held)) !== 0) continue;
        const allowed = words[at + LOCK.ALLOWED] as number;
        if ((allowed & ~compatible) === 0) continue;
        words[at + LOCK.ALLOWED] = allowed & compatible;
        table.count(COUNTER.basts);
        this.#tell(OUTCOME.BAST, holder, mode, words[at + LOCK.GRANTED_SEQ] as number, 0, out);
      }
    }
  }

  /** Appends a message to the lock's owner. */
  #tell(type: Outcome, lock: number, mode: number, seq: number, errno: number, out: Outbox): void {
    const words = this.#words;
    const at = this.table.lockAt(lock);
    const key = this.table.resourceAt(words[at + LOCK.RESOURCE] as number) + RES.KEY;
    const to = out.append((words[at + LOCK.NODE] as number) >>> 0, type);
    const entry = out.words;
    for (let word = 0; word < KEY_WORDS; word++) entry[to + word] = words[key + word] as number;
    entry[to + E.lockIdLow] = words[at + LOCK.ID_LOW] as number;
    entry[to + E.lockIdHigh] = words[at + LOCK.ID_HIGH] as number;
    entry[to + E.epochLow] = words[CTL.EPOCH_LOW] as number;
    entry[to + E.epochHigh] = words[CTL.EPOCH_HIGH] as number;
    entry[to + E.seq] = seq;
    entry[to + E.modes] = mode | ((words[at + LOCK.GRANTED] as number) << 8);
    entry[to + E.node] = words[at + LOCK.NODE] as number;
    entry[to + E.status] = errno;
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
      for (let stripe = 0; stripe < table.stripeCount; stripe++) {
        table.locked(stripe, () => {
          this.#clearStripe(stripe);
        });
      }
      // Nobody decides now: whoever takes a stripe lock from here on sees CHANGING.
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

  #clearStripe(stripe: number): void {
    const { table } = this;
    table.forEachResource(stripe, (resource, bucket) => {
      table.forEachLock(resource, (lock) => {
        table.dequeue(lock);
        table.removeLock(lock);
      });
      table.removeResource(bucket, resource);
    });
  }

  /**
   * Second half: service resumes. What was reclaimed or queued meanwhile is granted, denied or asked for.
   * @param onBatch called now and then, without a stripe lock, to drain the outbox.
   * @throws RangeError unless `epoch` is the one of the last `freezeAndClear`, not resumed yet.
   */
  resume(epoch: bigint, out: Outbox, onBatch?: () => void): void {
    const { table } = this;
    if (this.state !== TABLE_STATE.REBUILDING || epoch !== this.epoch) {
      throw new RangeError(
        `resume of epoch ${epoch}: the lock service is in epoch ${this.epoch}, state ${this.state}`,
      );
    }
    table.lockAdmin();
    try {
      Atomics.store(this.#words, CTL.STATE, TABLE_STATE.SERVING);
      for (let stripe = 0; stripe < table.stripeCount; stripe++) {
        table.locked(stripe, () => {
          table.forEachResource(stripe, (resource, bucket) => {
            this.#wake(resource, bucket, out);
          });
        });
        if (onBatch !== undefined && out.count >= BATCH_COUNT) onBatch();
      }
    } finally {
      table.unlockAdmin();
    }
    if (onBatch !== undefined && out.count > 0) onBatch();
  }

  /** First decisions on a rebuilt resource. */
  #wake(resource: number, bucket: number, out: Outbox): void {
    const { table } = this;
    const words = this.#words;
    if (table.wantedModes(resource) === 0) return;
    let lock = table.first(resource, QUEUE.CONVERT);
    while (lock !== 0) {
      const next = table.next(lock);
      if (this.#blocksConverter(resource, lock)) {
        table.count(COUNTER.deadlocks);
        this.#deny(lock, EDEADLK, out);
      }
      lock = next;
    }
    this.#settle(resource, out);
    let denied = false;
    table.forEachLock(resource, (queued, queue) => {
      if (queue === QUEUE.GRANTED || (words[table.lockAt(queued) + LOCK.FLAGS] as number) === 0) return;
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
    return this.#purge((lockAt) => this.#words[lockAt + LOCK.NODE] === (node | 0), out, onBatch);
  }

  #purge(condemned: (lockAt: number) => boolean, out: Outbox, onBatch?: () => void): number {
    const { table } = this;
    let count = 0;
    for (let stripe = 0; stripe < table.stripeCount; stripe++) {
      table.locked(stripe, () => {
        const serving = Atomics.load(this.#words, CTL.STATE) === TABLE_STATE.SERVING;
        table.forEachResource(stripe, (resource, bucket) => {
          const before = count;
          table.forEachLock(resource, (lock) => {
            if (!condemned(table.lockAt(lock))) return;
            table.dequeue(lock);
            table.removeLock(lock);
            count++;
          });
          if (count > before) this.#afterRemoval(resource, bucket, serving, out);
        });
      });
      if (onBatch !== undefined && out.count >= BATCH_COUNT) onBatch();
    }
    table.count(COUNTER.purged, count);
    if (onBatch !== undefined && out.count > 0) onBatch();
    return count;
  }

  // ---- looking in -------------------------------------------------------------------------------------------

  /**
   * Every lock of the table that the filter lets through. One stripe at a time is copied under its lock, so the
   * whole is not one moment's picture, but each resource is.
   */
  *dump(filter: LockFilter = {}): Generator<LockInfo> {
    for (let stripe = 0; stripe < this.table.stripeCount; stripe++) {
      const found: LockInfo[] = [];
      this.table.locked(stripe, () => {
        this.table.forEachResource(stripe, (resource) => {
          this.#collect(resource, filter, found);
        });
      });
      yield* found;
    }
  }

  #collect(resource: number, filter: LockFilter, found: LockInfo[]): void {
    const { table } = this;
    const words = this.#words;
    const key = table.resourceAt(resource) + RES.KEY;
    const wide = (at: number): bigint =>
      (BigInt((words[at + 1] as number) >>> 0) << 32n) | BigInt((words[at] as number) >>> 0);
    if (filter.type !== undefined && words[key + 7] !== filter.type) return;
    if (filter.ino !== undefined && wide(key + 2) !== filter.ino) return;
    if (filter.contended === true && table.wantedModes(resource) === 0) return;
    table.forEachLock(resource, (lock, queue) => {
      const at = table.lockAt(lock);
      const node = (words[at + LOCK.NODE] as number) >>> 0;
      if (filter.node !== undefined && node !== filter.node) return;
      found.push({
        volume: wide(key),
        ino: wide(key + 2),
        offset: wide(key + 4),
        ag: (words[key + 6] as number) >>> 0,
        type: (words[key + 7] as number) >>> 0,
        node,
        lockId: wide(at + LOCK.ID_LOW),
        seq: (words[at + LOCK.SEQ] as number) >>> 0,
        granted: words[at + LOCK.GRANTED] as number,
        mode: words[at + LOCK.MODE] as number,
        queue: QUEUE_NAME[queue],
        blocking: words[at + LOCK.ALLOWED] !== ALL_MODES,
      });
    });
  }
}

/** Words of an entry (struct mxfs_lock_entry); the key is words 0 to 7. */
const E = {
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

const BLANK = { lockId: 0n, epoch: 0n, seq: 0, mode: 0, granted: 0, flags: 0, node: 0, status: 0 };
