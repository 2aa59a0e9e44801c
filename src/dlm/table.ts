// SPDX-License-Identifier: GPL-2.0-only
/**
 * The lock table: resources with their three queues of locks, in one SharedArrayBuffer that every thread of the
 * daemon works on itself. This file knows memory and mutual exclusion; what may be granted is engine.ts's.
 *
 * Protocol: a thread takes the stripe lock of a resource's bucket, works, gives it back. The stripe lock is a
 * futex word: 0 free, else the owner's thread number, plus WAITERS if somebody sleeps. Who finds it taken spins
 * a little, then sleeps. A wait that goes on for STALL_MS, or for a thread that is known to be dead, is an error
 * that names the owner: the table behind it may be half changed, so the daemon must end. The same goes for an
 * operation that throws half-way: the table is marked broken and refuses everything.
 * Known weakness: no fairness among threads; a stopped thread (debugger, SIGSTOP) looks dead after STALL_MS.
 */
import { MXFS_MODE_COUNT } from "../wire/abi.js";
import {
  COUNTER,
  COUNTERS_AT,
  type CounterName,
  CTL,
  LOCK,
  LOCK_WORDS,
  QUEUE,
  QUEUE_FREE,
  type Queue,
  RES,
  RES_WORDS,
  STRIPE_WORDS,
  STRIPES_AT,
  TABLE_MAGIC,
  TABLE_VERSION,
  type TableCapacity,
  type TableLayout,
  THREAD_COUNT_MAX,
  tableLayout,
} from "./layout.js";
import { COMPATIBLE } from "./modes.js";
import { KEY_WORDS } from "./resource.js";

export type LockTableErrorCode =
  /** Not a lock table, or one of another version. */
  | "TABLE_FOREIGN"
  /** Another thread failed half-way through a change. */
  | "TABLE_BROKEN"
  /** A stripe's owner is dead, or does not let go. */
  | "TABLE_STALLED"
  /** An invariant does not hold. */
  | "TABLE_CORRUPT"
  /** More threads than THREAD_COUNT_MAX, or too many outcomes at once. */
  | "TABLE_LIMIT";

export class LockTableError extends Error {
  override readonly name = "LockTableError";
  constructor(
    readonly code: LockTableErrorCode,
    message: string,
  ) {
    super(message);
  }
}

/** Set in a lock word when somebody sleeps on it; the bits below are the owner's thread number. */
const WAITERS = 0x4000_0000;
/** Longer spins are deadly on few cores. */
const SPIN_COUNT = 200;
const WAIT_SLICE_MS = 100;
const STALL_MS = 10_000;
/** Wake-ups that find the word taken again; far beyond what contention gives. */
const WAKE_COUNT_MAX = 1_000_000;

export class LockTable {
  readonly #layout: TableLayout;
  /** Number of this thread, from 1. */
  readonly thread: number;

  private constructor(
    readonly buffer: SharedArrayBuffer,
    /** The whole table. Below a bucket only under its stripe lock. */
    readonly words: Int32Array<SharedArrayBuffer>,
    layout: TableLayout,
  ) {
    this.#layout = layout;
    this.thread = Atomics.add(words, CTL.THREAD_COUNT, 1) + 1;
    if (this.thread > THREAD_COUNT_MAX) {
      throw new LockTableError("TABLE_LIMIT", `lock table: at most ${THREAD_COUNT_MAX} threads may attach`);
    }
  }

  /** Makes an empty table; the calling thread is attached to it. @throws RangeError */
  static create(capacity: TableCapacity): LockTable {
    const layout = tableLayout(capacity);
    const buffer = new SharedArrayBuffer(layout.words * 4);
    const words = new Int32Array(buffer);
    words[CTL.MAGIC] = TABLE_MAGIC;
    words[CTL.VERSION] = TABLE_VERSION;
    words[CTL.RESOURCE_COUNT_MAX] = layout.resourceCountMax;
    words[CTL.LOCK_COUNT_MAX] = layout.lockCountMax;
    words[CTL.BUCKET_COUNT] = layout.bucketCount;
    words[CTL.STRIPE_COUNT] = layout.stripeCount;
    words[CTL.RESOURCE_FRESH] = 1;
    words[CTL.LOCK_FRESH] = 1;
    return new LockTable(buffer, words, layout);
  }

  /** Attaches the calling thread. Once per thread. @throws LockTableError TABLE_FOREIGN, TABLE_LIMIT */
  static attach(buffer: SharedArrayBuffer): LockTable {
    const words = new Int32Array(buffer);
    if (words[CTL.MAGIC] !== TABLE_MAGIC || words[CTL.VERSION] !== TABLE_VERSION) {
      throw new LockTableError("TABLE_FOREIGN", "lock table: this shared memory holds none of this version");
    }
    const layout = tableLayout({
      resourceCountMax: words[CTL.RESOURCE_COUNT_MAX] as number,
      lockCountMax: words[CTL.LOCK_COUNT_MAX] as number,
    });
    return new LockTable(buffer, words, layout);
  }

  get stripeCount(): number {
    return this.#layout.stripeCount;
  }
  get capacity(): TableCapacity {
    return this.#layout;
  }
  get resourcesUsed(): number {
    return Atomics.load(this.words, CTL.RESOURCE_USED);
  }
  get locksUsed(): number {
    return Atomics.load(this.words, CTL.LOCK_USED);
  }

  /** Says that a thread will never come back: whoever waits for a lock it holds fails at once. */
  markThreadDead(thread: number): void {
    if (!Number.isInteger(thread) || thread < 1 || thread > THREAD_COUNT_MAX) {
      throw new RangeError(`lock table: thread ${thread}: expected 1 to ${THREAD_COUNT_MAX}`);
    }
    Atomics.or(this.words, CTL.THREADS_DEAD, 1 << thread);
  }

  // ---- counters ---------------------------------------------------------------------------------------------

  count(counter: number, by = 1): void {
    Atomics.add(this.words, COUNTERS_AT + counter, by);
  }

  /** All counters, by name (unsigned, wrapping at 2^32). */
  counters(): Record<CounterName, number> {
    const entries = Object.entries(COUNTER).map(([name, index]) => [
      name,
      Atomics.load(this.words, COUNTERS_AT + index) >>> 0,
    ]);
    return Object.fromEntries(entries) as Record<CounterName, number>;
  }

  // ---- mutual exclusion -------------------------------------------------------------------------------------

  /** Which bucket; the hash is mixed again, for resources of one master agree in hash % node_count. */
  bucketOf(hash: number): number {
    return (Math.imul(hash, 0x9e3779b1) >>> 7) & (this.#layout.bucketCount - 1);
  }

  stripeOf(bucket: number): number {
    return bucket & (this.#layout.stripeCount - 1);
  }

  /** Runs `work` under a stripe's lock; a throw marks the table broken. Not reentrant. @throws LockTableError */
  locked<T>(stripe: number, work: () => T): T {
    this.lockStripe(stripe);
    try {
      return work();
    } catch (error) {
      this.breakTable();
      throw error;
    } finally {
      this.unlockStripe(stripe);
    }
  }

  lockStripe(stripe: number): void {
    this.#acquire(STRIPES_AT + stripe * STRIPE_WORDS, "stripe");
  }

  unlockStripe(stripe: number): void {
    this.#release(STRIPES_AT + stripe * STRIPE_WORDS);
  }

  /** For changes of state, epoch and view. Two at once are a mistake of the caller. */
  lockAdmin(): void {
    if (Atomics.compareExchange(this.words, CTL.ADMIN_LOCK, 0, this.thread) !== 0) {
      throw new LockTableError("TABLE_STALLED", "lock table: a view change is under way in another thread");
    }
  }

  unlockAdmin(): void {
    this.#release(CTL.ADMIN_LOCK);
  }

  /** From now on every thread's next operation throws TABLE_BROKEN. */
  breakTable(): void {
    Atomics.store(this.words, CTL.BROKEN, 1);
  }

  #acquire(at: number, what: string): void {
    if (Atomics.compareExchange(this.words, at, 0, this.thread) !== 0) this.#acquireSlowly(at, what);
    if (this.words[CTL.BROKEN] !== 0) {
      this.#release(at);
      throw new LockTableError(
        "TABLE_BROKEN",
        "lock table: a thread failed half-way through a change (see the first error); the daemon must end",
      );
    }
  }

  #acquireSlowly(at: number, what: string): void {
    const words = this.words;
    this.count(COUNTER.contended);
    for (let spin = 0; spin < SPIN_COUNT; spin++) {
      if (Atomics.load(words, at) === 0 && Atomics.compareExchange(words, at, 0, this.thread) === 0) return;
    }
    this.count(COUNTER.slept);
    let waitedMs = 0;
    for (let wake = 0; wake < WAKE_COUNT_MAX; wake++) {
      const value = Atomics.load(words, at);
      if (value === 0) {
        // Others may still sleep here: keep the mark, so that our release wakes the next one.
        if (Atomics.compareExchange(words, at, 0, this.thread | WAITERS) === 0) return;
        continue;
      }
      const owner = value & ~WAITERS;
      if (owner === this.thread) {
        throw new LockTableError("TABLE_CORRUPT", `lock table: thread ${owner} takes a ${what} lock twice`);
      }
      if ((Atomics.load(words, CTL.THREADS_DEAD) & (1 << owner)) !== 0) {
        throw new LockTableError("TABLE_STALLED", `lock table: thread ${owner} died holding a ${what} lock`);
      }
      if (value === owner && Atomics.compareExchange(words, at, value, value | WAITERS) !== value) continue;
      if (Atomics.wait(words, at, owner | WAITERS, WAIT_SLICE_MS) === "timed-out") {
        waitedMs += WAIT_SLICE_MS;
        if (waitedMs >= STALL_MS) break;
      }
    }
    const owner = Atomics.load(words, at) & ~WAITERS;
    throw new LockTableError(
      "TABLE_STALLED",
      `lock table: thread ${owner} has held a ${what} lock for more than ${STALL_MS} ms: dead or stuck`,
    );
  }

  #release(at: number): void {
    const value = Atomics.exchange(this.words, at, 0);
    if ((value & ~WAITERS) !== this.thread) {
      this.breakTable();
      throw new LockTableError(
        "TABLE_CORRUPT",
        `lock table: lock word ${at} was not this thread's: ${value}`,
      );
    }
    if ((value & WAITERS) !== 0) Atomics.notify(this.words, at, 1);
  }

  // ---- resources (under the bucket's stripe lock) -----------------------------------------------------------

  /** Word index of a bucket's head. */
  bucketAt(bucket: number): number {
    return this.#layout.bucketsAt + bucket;
  }

  /** Word index of a resource's record. */
  resourceAt(index: number): number {
    return this.#layout.resourcesAt + index * RES_WORDS;
  }

  /** Word index of a lock's record. */
  lockAt(index: number): number {
    return this.#layout.locksAt + index * LOCK_WORDS;
  }

  /** The resource with this key (key[0..8)), or 0. */
  findResource(bucket: number, hash: number, key: Int32Array): number {
    const words = this.words;
    let index = words[this.bucketAt(bucket)] as number;
    for (let steps = 0; index !== 0; steps++) {
      if (steps > this.#layout.resourceCountMax) throw corrupt(`bucket ${bucket} is a circle`);
      const at = this.resourceAt(index);
      if (words[at + RES.HASH] === (hash | 0)) {
        let word = 0;
        while (word < KEY_WORDS && words[at + RES.KEY + word] === key[word]) word++;
        if (word === KEY_WORDS) return index;
      }
      index = words[at + RES.NEXT] as number;
    }
    return 0;
  }

  /** A new, empty resource in its bucket, or 0 when the arena is full. */
  addResource(bucket: number, hash: number, key: Int32Array): number {
    const words = this.words;
    const index = this.#take(
      CTL.RESOURCE_FREE,
      CTL.RESOURCE_FRESH,
      CTL.RESOURCE_USED,
      this.#layout.resourceCountMax,
    );
    if (index === 0) return 0;
    const at = this.resourceAt(index);
    words[at + RES.HASH] = hash | 0;
    for (let word = 0; word < KEY_WORDS; word++) words[at + RES.KEY + word] = key[word] as number;
    words.fill(0, at + RES.QUEUES, at + RES.GENERATION);
    words[at + RES.LOCK_COUNT] = 0;
    const head = this.bucketAt(bucket);
    words[at + RES.NEXT] = words[head] as number;
    words[head] = index;
    return index;
  }

  /** Takes an empty resource out of its bucket and frees it. */
  removeResource(bucket: number, index: number): void {
    const words = this.words;
    const at = this.resourceAt(index);
    if (words[at + RES.LOCK_COUNT] !== 0) throw corrupt(`resource ${index} still has locks`);
    let link = this.bucketAt(bucket);
    for (let steps = 0; words[link] !== index; steps++) {
      if (words[link] === 0 || steps > this.#layout.resourceCountMax) {
        throw corrupt(`resource ${index} is not in bucket ${bucket}`);
      }
      link = this.resourceAt(words[link] as number) + RES.NEXT;
    }
    words[link] = words[at + RES.NEXT] as number;
    this.#give(CTL.RESOURCE_FREE, CTL.RESOURCE_USED, at + RES.NEXT, at + RES.GENERATION, index);
  }

  // ---- locks (under the stripe lock of their resource) ------------------------------------------------------

  /** A new lock of the resource, in no queue yet, or 0 when the arena is full. */
  addLock(resource: number, node: number, idLow: number, idHigh: number): number {
    const words = this.words;
    const index = this.#take(CTL.LOCK_FREE, CTL.LOCK_FRESH, CTL.LOCK_USED, this.#layout.lockCountMax);
    if (index === 0) return 0;
    const at = this.lockAt(index);
    words[at + LOCK.RESOURCE] = resource;
    words[at + LOCK.NODE] = node | 0;
    words[at + LOCK.ID_LOW] = idLow | 0;
    words[at + LOCK.ID_HIGH] = idHigh | 0;
    words[at + LOCK.QUEUE] = QUEUE_FREE;
    const resourceAt = this.resourceAt(resource);
    words[resourceAt + RES.LOCK_COUNT] = (words[resourceAt + RES.LOCK_COUNT] as number) + 1;
    return index;
  }

  /** Frees a lock that is in no queue. */
  removeLock(index: number): void {
    const words = this.words;
    const at = this.lockAt(index);
    if (words[at + LOCK.QUEUE] !== QUEUE_FREE) throw corrupt(`lock ${index} is still queued`);
    const resourceAt = this.resourceAt(words[at + LOCK.RESOURCE] as number);
    words[resourceAt + RES.LOCK_COUNT] = (words[resourceAt + RES.LOCK_COUNT] as number) - 1;
    this.#give(CTL.LOCK_FREE, CTL.LOCK_USED, at + LOCK.NEXT, at + LOCK.GENERATION, index);
  }

  /** The lock of this owner on the resource, whatever its queue, or 0. */
  findLock(resource: number, node: number, idLow: number, idHigh: number): number {
    const words = this.words;
    const queues = this.resourceAt(resource) + RES.QUEUES;
    for (let queue: number = QUEUE.GRANTED; queue <= QUEUE.WAIT; queue++) {
      let index = words[queues + 2 * queue] as number;
      for (let steps = 0; index !== 0; steps++) {
        if (steps > this.#layout.lockCountMax) throw corrupt(`a queue of resource ${resource} is a circle`);
        const at = this.lockAt(index);
        if (
          words[at + LOCK.ID_LOW] === (idLow | 0) &&
          words[at + LOCK.ID_HIGH] === (idHigh | 0) &&
          words[at + LOCK.NODE] === (node | 0)
        ) {
          return index;
        }
        index = words[at + LOCK.NEXT] as number;
      }
    }
    return 0;
  }

  /** First lock of a queue, or 0. */
  first(resource: number, queue: Queue): number {
    return this.words[this.resourceAt(resource) + RES.QUEUES + 2 * queue] as number;
  }

  /** The lock behind this one in its queue, or 0. */
  next(lock: number): number {
    return this.words[this.lockAt(lock) + LOCK.NEXT] as number;
  }

  /**
   * Puts a lock that is in no queue at the end of one. GRANTED and MODE must be set: the resource's counts of held
   * and wanted modes are kept here and in `dequeue`, and nowhere else.
   */
  enqueue(lock: number, queue: Queue): void {
    const words = this.words;
    const at = this.lockAt(lock);
    if (words[at + LOCK.QUEUE] !== QUEUE_FREE) throw corrupt(`lock ${lock} is queued already`);
    const resourceAt = this.resourceAt(words[at + LOCK.RESOURCE] as number);
    const head = resourceAt + RES.QUEUES + 2 * queue;
    const tail = words[head + 1] as number;
    words[at + LOCK.PREV] = tail;
    words[at + LOCK.NEXT] = 0;
    words[tail === 0 ? head : this.lockAt(tail) + LOCK.NEXT] = lock;
    words[head + 1] = lock;
    words[at + LOCK.QUEUE] = queue;
    this.#tally(resourceAt, at, queue, 1);
  }

  /** Takes a lock out of its queue. */
  dequeue(lock: number): void {
    const words = this.words;
    const at = this.lockAt(lock);
    const queue = words[at + LOCK.QUEUE] as number;
    if (queue === QUEUE_FREE) throw corrupt(`lock ${lock} is in no queue`);
    const resourceAt = this.resourceAt(words[at + LOCK.RESOURCE] as number);
    const head = resourceAt + RES.QUEUES + 2 * queue;
    const prev = words[at + LOCK.PREV] as number;
    const next = words[at + LOCK.NEXT] as number;
    words[prev === 0 ? head : this.lockAt(prev) + LOCK.NEXT] = next;
    words[next === 0 ? head + 1 : this.lockAt(next) + LOCK.PREV] = prev;
    words[at + LOCK.QUEUE] = QUEUE_FREE;
    this.#tally(resourceAt, at, queue as Queue, -1);
  }

  #tally(resourceAt: number, lockAt: number, queue: Queue, by: 1 | -1): void {
    const words = this.words;
    if (queue !== QUEUE.WAIT)
      this.#addTo(resourceAt + RES.HELD + (words[lockAt + LOCK.GRANTED] as number), by);
    if (queue !== QUEUE.GRANTED)
      this.#addTo(resourceAt + RES.WANTED + (words[lockAt + LOCK.MODE] as number), by);
  }

  #addTo(at: number, by: 1 | -1): void {
    const value = (this.words[at] as number) + by;
    if (value < 0) throw corrupt(`the count of modes in word ${at} falls below zero`);
    this.words[at] = value;
  }

  /** Bit mask of the modes that locks of the resource want. */
  wantedModes(resource: number): number {
    return this.#modes(this.resourceAt(resource) + RES.WANTED);
  }

  /** Bit mask of the modes that locks of the resource hold, converting ones included. */
  heldModes(resource: number): number {
    return this.#modes(this.resourceAt(resource) + RES.HELD);
  }

  #modes(at: number): number {
    let mask = 0;
    for (let mode = 0; mode < MXFS_MODE_COUNT; mode++) {
      if ((this.words[at + mode] as number) > 0) mask |= 1 << mode;
    }
    return mask;
  }

  /**
   * Whether `mode` can be held beside everything that is held. @param lock one whose own held mode does not count
   * (a conversion), or 0.
   */
  fits(resource: number, mode: number, lock: number): boolean {
    const held = this.resourceAt(resource) + RES.HELD;
    const own = lock === 0 ? -1 : (this.words[this.lockAt(lock) + LOCK.GRANTED] as number);
    const compatible = COMPATIBLE[mode] as number;
    for (let other = 0; other < MXFS_MODE_COUNT; other++) {
      if ((compatible & (1 << other)) !== 0) continue;
      if ((this.words[held + other] as number) > (other === own ? 1 : 0)) return false;
    }
    return true;
  }

  // ---- arenas -----------------------------------------------------------------------------------------------

  #take(free: number, fresh: number, used: number, countMax: number): number {
    const words = this.words;
    this.#acquire(CTL.ALLOCATOR_LOCK, "allocator");
    try {
      let index = words[free] as number;
      if (index !== 0) {
        const at =
          free === CTL.LOCK_FREE ? this.lockAt(index) + LOCK.NEXT : this.resourceAt(index) + RES.NEXT;
        words[free] = words[at] as number;
      } else {
        index = words[fresh] as number;
        if (index > countMax) return 0;
        words[fresh] = index + 1;
      }
      words[used] = (words[used] as number) + 1;
      return index;
    } finally {
      this.#release(CTL.ALLOCATOR_LOCK);
    }
  }

  #give(free: number, used: number, nextAt: number, generationAt: number, index: number): void {
    const words = this.words;
    this.#acquire(CTL.ALLOCATOR_LOCK, "allocator");
    try {
      words[generationAt] = ((words[generationAt] as number) + 1) | 0;
      words[nextAt] = words[free] as number;
      words[free] = index;
      words[used] = (words[used] as number) - 1;
    } finally {
      this.#release(CTL.ALLOCATOR_LOCK);
    }
  }

  // ---- walking ----------------------------------------------------------------------------------------------

  /** Calls `visit` for every resource of a stripe (whose lock is held); it may remove that resource. */
  forEachResource(stripe: number, visit: (resource: number, bucket: number) => void): void {
    for (let bucket = stripe; bucket < this.#layout.bucketCount; bucket += this.#layout.stripeCount) {
      let index = this.words[this.bucketAt(bucket)] as number;
      for (let steps = 0; index !== 0; steps++) {
        if (steps > this.#layout.resourceCountMax) throw corrupt(`bucket ${bucket} is a circle`);
        const next = this.words[this.resourceAt(index) + RES.NEXT] as number;
        visit(index, bucket);
        index = next;
      }
    }
  }

  /** Calls `visit` for every lock of a resource: granted, converting, waiting; it may remove that lock. */
  forEachLock(resource: number, visit: (lock: number, queue: Queue) => void): void {
    for (const queue of [QUEUE.GRANTED, QUEUE.CONVERT, QUEUE.WAIT] as const) {
      let index = this.first(resource, queue);
      for (let steps = 0; index !== 0; steps++) {
        if (steps > this.#layout.lockCountMax) throw corrupt(`a queue of resource ${resource} is a circle`);
        const next = this.next(index);
        visit(index, queue);
        index = next;
      }
    }
  }

  /** Throws unless queues, links and counts of a stripe agree. For tests; the stripe's lock must be held. */
  checkStripe(stripe: number): void {
    this.forEachResource(stripe, (resource, bucket) => {
      const at = this.resourceAt(resource);
      if (this.bucketOf((this.words[at + RES.HASH] as number) >>> 0) !== bucket) {
        throw corrupt(`resource ${resource} hangs in the wrong bucket ${bucket}`);
      }
      const held = new Array<number>(MXFS_MODE_COUNT).fill(0);
      const wanted = new Array<number>(MXFS_MODE_COUNT).fill(0);
      let count = 0;
      this.forEachLock(resource, (lock, queue) => {
        const lockAt = this.lockAt(lock);
        const granted = this.words[lockAt + LOCK.GRANTED] as number;
        const mode = this.words[lockAt + LOCK.MODE] as number;
        if (this.words[lockAt + LOCK.QUEUE] !== queue || this.words[lockAt + LOCK.RESOURCE] !== resource) {
          throw corrupt(`lock ${lock} is not where it says`);
        }
        if (queue !== QUEUE.WAIT) held[granted] = (held[granted] as number) + 1;
        if (queue !== QUEUE.GRANTED) wanted[mode] = (wanted[mode] as number) + 1;
        count++;
      });
      for (let mode = 0; mode < MXFS_MODE_COUNT; mode++) {
        if (
          this.words[at + RES.HELD + mode] !== held[mode] ||
          this.words[at + RES.WANTED + mode] !== wanted[mode]
        ) {
          throw corrupt(`resource ${resource} miscounts mode ${mode}`);
        }
      }
      if (count === 0 || count !== this.words[at + RES.LOCK_COUNT]) {
        throw corrupt(`resource ${resource} has ${count} locks, counts ${this.words[at + RES.LOCK_COUNT]}`);
      }
    });
  }
}

function corrupt(what: string): LockTableError {
  return new LockTableError("TABLE_CORRUPT", `lock table: ${what}: the daemon must end`);
}
