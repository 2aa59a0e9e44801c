// SPDX-License-Identifier: GPL-2.0-only
/**
 * The lock table: resources with their three queues of locks, in one shared memory that every thread of the
 * daemon works on itself. This file knows memory and mutual exclusion; what may be granted is engine.ts's.
 *
 * Protocol: a thread takes the stripe lock of a resource's bucket, works, gives it back. The stripe lock is a
 * futex word: 0 free, else the owner's thread number, plus WAITERS if somebody sleeps. Who finds it taken spins
 * a little, then sleeps. A wait that goes on for STALL_MS, or for a thread that is known to be dead, is an error
 * that names the owner: the table behind it may be half changed, so the daemon must end. The same goes for an
 * operation that throws half-way: the table is marked broken and refuses everything.
 *
 * The table grows by segments, up to the capacity it was made with. When the system refuses memory, or the capacity
 * is reached, `reserve*` fails: the request is denied with ENOLCK and counted (`full`, `memoryRefused`), `refusal`
 * says why, for the log; nothing else is harmed, and room that is given back is used again.
 * Known weakness: no fairness among threads; a stopped thread (debugger, SIGSTOP) looks dead after STALL_MS.
 */
import { MXFS_MODE_COUNT } from "../wire/abi.js";
import {
  ARENA,
  ARENA_WORDS,
  BUCKETS_AT,
  COUNTER,
  type CounterName,
  CTL,
  isBucket,
  KEPT_AGE_AT,
  KEPT_COUNT_AT,
  KEPT_HEAD_AT,
  KIND,
  type Kind,
  LOCK,
  LOCK_BYTE,
  MASK_WORDS,
  MASKS_AT,
  PAGE_WORDS,
  QUEUE,
  QUEUE_FREE,
  type Queue,
  RECORD_WORDS,
  RES,
  RES_LOCK_COUNT_MAX,
  STRIPE_HEAD_WORDS,
  STRIPE_SHIFT,
  STRIPE_WORDS,
  TABLE_MAGIC,
  TABLE_STATE,
  TABLE_VERSION,
  type TableCapacity,
  type TableLayout,
  THREAD_COUNT_MAX,
  THREAD_WORDS,
  THREADS_AT,
  tableLayout,
  tableWordsMax,
  USED_AT,
  VALUE,
  WAITERS,
} from "./layout.js";
import { createSharedMemory, type SharedMemory } from "./memory.js";
import { COMPATIBLE } from "./modes.js";
import { KEY_WORDS, ResourceHasher } from "./resource.js";

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
  /** The whole table. Below a bucket only under its stripe lock; longer ones replace it as the table grows. */
  words: Int32Array<SharedArrayBuffer>;
  #halves: Uint16Array<SharedArrayBuffer>;
  #bytes: Uint8Array<SharedArrayBuffer>;
  /** Word of this thread's block. */
  readonly #block: number;
  /** Why the last reservation failed, until somebody has logged it. */
  refusal: string | null = null;

  private constructor(
    readonly memory: SharedMemory,
    layout: TableLayout,
  ) {
    this.#layout = layout;
    this.words = new Int32Array(memory.buffer);
    this.#halves = new Uint16Array(memory.buffer);
    this.#bytes = new Uint8Array(memory.buffer);
    this.thread = Atomics.add(this.words, CTL.THREAD_COUNT, 1) + 1;
    if (this.thread > THREAD_COUNT_MAX) {
      throw new LockTableError("TABLE_LIMIT", `lock table: at most ${THREAD_COUNT_MAX} threads may attach`);
    }
    this.#block = THREADS_AT + this.thread * THREAD_WORDS;
    this.words[this.#block + KEPT_AGE_AT] = this.words[CTL.AGE] as number;
  }

  /** Makes an empty table; the calling thread is attached to it. @throws RangeError */
  static create(capacity: TableCapacity): LockTable {
    const layout = tableLayout(capacity);
    const pagesMax = Math.ceil(tableWordsMax(layout) / PAGE_WORDS) + 1;
    const pages = Math.ceil(layout.segmentsAt / PAGE_WORDS);
    const allowed = Math.floor((capacity.memoryBytesMax ?? Number.POSITIVE_INFINITY) / (4 * PAGE_WORDS));
    const memory = createSharedMemory(pages, Math.max(pages, Math.min(pagesMax, allowed)));
    const words = new Int32Array(memory.buffer);
    words[CTL.MAGIC] = TABLE_MAGIC;
    words[CTL.VERSION] = TABLE_VERSION;
    words[CTL.RESOURCE_COUNT_MAX] = layout.resourceCountMax;
    words[CTL.LOCK_COUNT_MAX] = layout.lockCountMax;
    words[CTL.BUCKET_COUNT] = layout.bucketCount;
    words[CTL.STRIPE_COUNT] = layout.stripeCount;
    words[CTL.SEGMENT_WORDS] = layout.segmentWords;
    words[CTL.LENGTH] = words.length;
    const halves = new Uint16Array(memory.buffer);
    for (let mode = 0; mode < MXFS_MODE_COUNT; mode++) {
      for (let other = 0; other < MXFS_MODE_COUNT; other++) {
        const ruledOut = ((COMPATIBLE[mode] as number) & (1 << other)) === 0;
        halves[2 * (MASKS_AT + mode * MASK_WORDS) + other] = ruledOut ? 0xffff : 0;
      }
    }
    return new LockTable(memory, layout);
  }

  /** Attaches the calling thread. Once per thread. @throws LockTableError TABLE_FOREIGN, TABLE_LIMIT */
  static attach(memory: SharedMemory): LockTable {
    const words = new Int32Array(memory.buffer);
    if (words[CTL.MAGIC] !== TABLE_MAGIC || words[CTL.VERSION] !== TABLE_VERSION) {
      throw new LockTableError("TABLE_FOREIGN", "lock table: this shared memory holds none of this version");
    }
    const layout = tableLayout({
      resourceCountMax: words[CTL.RESOURCE_COUNT_MAX] as number,
      lockCountMax: words[CTL.LOCK_COUNT_MAX] as number,
    });
    return new LockTable(memory, layout);
  }

  get stripeCount(): number {
    return this.#layout.stripeCount;
  }
  get bucketCount(): number {
    return this.#layout.bucketCount;
  }
  get capacity(): TableCapacity {
    return this.#layout;
  }
  get layout(): TableLayout {
    return this.#layout;
  }
  get resourcesUsed(): number {
    return this.#sum(USED_AT + KIND.RESOURCE);
  }
  get locksUsed(): number {
    return this.#sum(USED_AT + KIND.LOCK);
  }
  get valuesUsed(): number {
    return this.#sum(USED_AT + KIND.VALUE);
  }
  /** Bytes of shared memory, free records included. */
  get memoryBytes(): number {
    return Atomics.load(this.words, CTL.LENGTH) * 4;
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
    const at = this.#block + counter;
    this.words[at] = (this.words[at] as number) + by;
  }

  /** A thread block's word, added up over all threads. */
  #sum(word: number): number {
    const words = this.words;
    let sum = 0;
    for (let thread = 1; thread <= THREAD_COUNT_MAX; thread++) {
      sum = (sum + Atomics.load(words, THREADS_AT + thread * THREAD_WORDS + word)) | 0;
    }
    return sum;
  }

  /** All counters, by name (unsigned, wrapping at 2^32). */
  counters(): Record<CounterName, number> {
    const entries = Object.entries(COUNTER).map(([name, index]) => [name, this.#sum(index) >>> 0]);
    return Object.fromEntries(entries) as Record<CounterName, number>;
  }

  // ---- mutual exclusion -------------------------------------------------------------------------------------

  /** Which bucket; the hash is mixed again, for resources of one master agree in hash % node_count. */
  bucketOf(hash: number): number {
    const bucket = (Math.imul(hash, 0x9e3779b1) >>> 7) & (this.#layout.bucketCount - 1);
    return isBucket(bucket) ? bucket : bucket + STRIPE_HEAD_WORDS;
  }

  stripeOf(bucket: number): number {
    return bucket >>> STRIPE_SHIFT;
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
    this.#acquire(BUCKETS_AT + (stripe << STRIPE_SHIFT), "stripe");
  }

  unlockStripe(stripe: number): void {
    this.#release(BUCKETS_AT + (stripe << STRIPE_SHIFT));
  }

  /**
   * Waits until everybody has left the stripe that he was in. Who has changed state or epoch before knows then that whoever
   * takes a lock from now on sees that change: a free lock is only looked at, for both are sequentially consistent, and who
   * takes one looks at the state after that. So it is as good as passing every lock, and dirties nothing.
   * @throws LockTableError as lockStripe
   */
  passAll(): void {
    // One is always taken: that finds out whether the table is broken.
    this.locked(0, () => undefined);
    const { words } = this;
    for (let stripe = 0; stripe < this.stripeCount; stripe++) {
      if (Atomics.load(words, BUCKETS_AT + (stripe << STRIPE_SHIFT)) !== 0) {
        this.locked(stripe, () => undefined);
      }
    }
  }

  /**
   * The first stripe from `from` on, or stripeCount, that is not idle: somebody is in it, or something hangs below it. Its lock
   * is looked at first, so that what its last owner did is seen; what others do afterwards they do in the present state
   * and epoch (as in `passAll`).
   */
  nextBusy(from: number): number {
    const { words, stripeCount } = this;
    // Of a broken table nothing is known: who goes on to take the lock is told.
    if (words[CTL.BROKEN] !== 0) return from;
    for (let stripe = from; stripe < stripeCount; stripe++) {
      const at = BUCKETS_AT + (stripe << STRIPE_SHIFT);
      if (Atomics.load(words, at) !== 0) return stripe;
      for (let bucket = STRIPE_HEAD_WORDS; bucket < STRIPE_WORDS; bucket++) {
        if (words[at + bucket] !== 0) return stripe;
      }
    }
    return stripeCount;
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
    if (this.words[CTL.LENGTH] !== this.words.length) this.#look();
  }

  /** Takes views of the present length. */
  #look(): void {
    const { buffer } = this.memory;
    this.words = new Int32Array(buffer);
    this.#halves = new Uint16Array(buffer);
    this.#bytes = new Uint8Array(buffer);
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
    return BUCKETS_AT + bucket;
  }

  /** The resource with this key (key[0..8)), or 0. */
  findResource(bucket: number, key: Int32Array): number {
    const words = this.words;
    let index = words[this.bucketAt(bucket)] as number;
    for (let steps = 0; index !== 0; steps++) {
      if (steps > this.#layout.resourceCountMax) throw corrupt(`bucket ${bucket} is a circle`);
      // The inode number first: there keys differ.
      if (words[index + RES.KEY + 2] === key[2]) {
        let word = 0;
        while (word < KEY_WORDS && words[index + RES.KEY + word] === key[word]) word++;
        if (word === KEY_WORDS) return index;
      }
      index = words[index + RES.NEXT] as number;
    }
    return 0;
  }

  /** A new, empty resource in its bucket; `reserve(KIND.RESOURCE)` must have said yes. */
  addResource(bucket: number, key: Int32Array): number {
    const words = this.words;
    const index = this.#take(KIND.RESOURCE);
    for (let word = 0; word < KEY_WORDS; word++) words[index + RES.KEY + word] = key[word] as number;
    for (let word: number = RES.QUEUES; word < RES.META; word++) words[index + word] = 0;
    this.#halves[2 * (index + RES.META)] = 0;
    const head = this.bucketAt(bucket);
    words[index + RES.NEXT] = words[head] as number;
    words[head] = index;
    return index;
  }

  /** Takes an empty resource out of its bucket and frees it and its value. */
  removeResource(bucket: number, index: number): void {
    const words = this.words;
    if (this.lockCount(index) !== 0) throw corrupt(`resource ${index} still has locks`);
    let link = this.bucketAt(bucket);
    for (let steps = 0; words[link] !== index; steps++) {
      if (words[link] === 0 || steps > this.#layout.resourceCountMax) {
        throw corrupt(`resource ${index} is not in bucket ${bucket}`);
      }
      link = (words[link] as number) + RES.NEXT;
    }
    words[link] = words[index + RES.NEXT] as number;
    const value = words[index + RES.VALUE] as number;
    if (value !== 0) this.#give(KIND.VALUE, value);
    const generation = 2 * (index + RES.META) + 1;
    this.#halves[generation] = (this.#halves[generation] as number) + 1;
    this.#give(KIND.RESOURCE, index);
  }

  /** How many locks a resource has, in all queues. */
  lockCount(resource: number): number {
    return this.#halves[2 * (resource + RES.META)] as number;
  }

  /** The resource's value record, made if need be; 0 when there is no room. */
  valueOf(resource: number): number {
    const known = this.words[resource + RES.VALUE] as number;
    if (known !== 0 || !this.reserve(KIND.VALUE)) return known;
    const value = this.#take(KIND.VALUE);
    this.words.fill(0, value, value + VALUE.STATE + 1);
    this.words[resource + RES.VALUE] = value;
    return value;
  }

  // ---- locks (under the stripe lock of their resource) ------------------------------------------------------

  /** A new lock of the resource, in no queue yet; `reserve(KIND.LOCK)` must have said yes. 0: it has too many. */
  addLock(resource: number, node: number, idLow: number, idHigh: number): number {
    if (this.lockCount(resource) >= RES_LOCK_COUNT_MAX) {
      this.refusal = `a resource has ${RES_LOCK_COUNT_MAX} locks`;
      return 0;
    }
    const words = this.words;
    const index = this.#take(KIND.LOCK);
    words[index + LOCK.RESOURCE] = resource;
    words[index + LOCK.NODE] = node | 0;
    words[index + LOCK.ID_LOW] = idLow | 0;
    words[index + LOCK.ID_HIGH] = idHigh | 0;
    this.#bytes[4 * index + LOCK_BYTE.QUEUE] = QUEUE_FREE;
    this.#halves[2 * (resource + RES.META)] = this.lockCount(resource) + 1;
    return index;
  }

  /** Frees a lock that is in no queue. */
  removeLock(index: number): void {
    if (this.queueOf(index) !== QUEUE_FREE) throw corrupt(`lock ${index} is still queued`);
    const resource = this.words[index + LOCK.RESOURCE] as number;
    this.#halves[2 * (resource + RES.META)] = this.lockCount(resource) - 1;
    const generation = (4 * index + LOCK_BYTE.GENERATION) / 2;
    this.#halves[generation] = (this.#halves[generation] as number) + 1;
    this.#give(KIND.LOCK, index);
  }

  /** QUEUE, or QUEUE_FREE. */
  queueOf(lock: number): number {
    return this.#bytes[4 * lock + LOCK_BYTE.QUEUE] as number;
  }
  granted(lock: number): number {
    return this.#bytes[4 * lock + LOCK_BYTE.GRANTED] as number;
  }
  mode(lock: number): number {
    return this.#bytes[4 * lock + LOCK_BYTE.MODE] as number;
  }
  flags(lock: number): number {
    return this.#bytes[4 * lock + LOCK_BYTE.FLAGS] as number;
  }
  allowed(lock: number): number {
    return this.#bytes[4 * lock + LOCK_BYTE.ALLOWED] as number;
  }
  /** Only for a lock that is in no queue: the counts go by GRANTED and MODE. */
  setModes(lock: number, granted: number, mode: number, flags: number): void {
    const at = 4 * lock;
    this.#bytes[at + LOCK_BYTE.GRANTED] = granted;
    this.#bytes[at + LOCK_BYTE.MODE] = mode;
    this.#bytes[at + LOCK_BYTE.FLAGS] = flags;
  }
  setAllowed(lock: number, mask: number): void {
    this.#bytes[4 * lock + LOCK_BYTE.ALLOWED] = mask;
  }

  /** Another held mode for a lock that stays where it is: off and on again would cost a converting one its turn. */
  setGranted(lock: number, granted: number): void {
    const resource = this.words[lock + LOCK.RESOURCE] as number;
    this.#addTo(2 * (resource + RES.HELD) + this.granted(lock), -1);
    this.#addTo(2 * (resource + RES.HELD) + granted, 1);
    this.#bytes[4 * lock + LOCK_BYTE.GRANTED] = granted;
    if (this.queueOf(lock) === QUEUE.GRANTED) this.#bytes[4 * lock + LOCK_BYTE.MODE] = granted;
  }

  /** The lock of this owner on the resource, whatever its queue, or 0. */
  findLock(resource: number, node: number, idLow: number, idHigh: number): number {
    const words = this.words;
    for (let queue: number = QUEUE.GRANTED; queue <= QUEUE.WAIT; queue++) {
      let index = words[resource + RES.QUEUES + queue] as number;
      for (let steps = 0; index !== 0; steps++) {
        if (steps > RES_LOCK_COUNT_MAX) throw corrupt(`a queue of resource ${resource} is a circle`);
        if (
          words[index + LOCK.ID_LOW] === (idLow | 0) &&
          words[index + LOCK.ID_HIGH] === (idHigh | 0) &&
          words[index + LOCK.NODE] === (node | 0)
        ) {
          return index;
        }
        index = words[index + LOCK.NEXT] as number;
      }
    }
    return 0;
  }

  /** First lock of a queue, or 0. */
  first(resource: number, queue: Queue): number {
    return this.words[resource + RES.QUEUES + queue] as number;
  }

  /** The lock behind this one in its queue, or 0. */
  next(lock: number): number {
    return this.words[lock + LOCK.NEXT] as number;
  }

  /**
   * Puts a lock that is in no queue at the end of one. GRANTED and MODE must be set: the resource's counts of held
   * and wanted modes are kept here, in `dequeue` and in `setGranted`, and nowhere else.
   */
  enqueue(lock: number, queue: Queue): void {
    const words = this.words;
    if (this.queueOf(lock) !== QUEUE_FREE) throw corrupt(`lock ${lock} is queued already`);
    const resource = words[lock + LOCK.RESOURCE] as number;
    const headAt = resource + RES.QUEUES + queue;
    const head = words[headAt] as number;
    words[lock + LOCK.NEXT] = 0;
    if (head === 0) {
      words[headAt] = lock;
      words[lock + LOCK.PREV] = lock;
    } else {
      const tail = words[head + LOCK.PREV] as number;
      words[tail + LOCK.NEXT] = lock;
      words[lock + LOCK.PREV] = tail;
      words[head + LOCK.PREV] = lock;
    }
    this.#bytes[4 * lock + LOCK_BYTE.QUEUE] = queue;
    this.#tally(resource, lock, queue, 1);
  }

  /** Takes a lock out of its queue. */
  dequeue(lock: number): void {
    const words = this.words;
    const queue = this.queueOf(lock);
    if (queue === QUEUE_FREE) throw corrupt(`lock ${lock} is in no queue`);
    const resource = words[lock + LOCK.RESOURCE] as number;
    const headAt = resource + RES.QUEUES + queue;
    const head = words[headAt] as number;
    const prev = words[lock + LOCK.PREV] as number;
    const next = words[lock + LOCK.NEXT] as number;
    if (lock === head) words[headAt] = next;
    else words[prev + LOCK.NEXT] = next;
    if (next !== 0) words[next + LOCK.PREV] = prev;
    else if (lock !== head) words[head + LOCK.PREV] = prev;
    this.#bytes[4 * lock + LOCK_BYTE.QUEUE] = QUEUE_FREE;
    this.#tally(resource, lock, queue as Queue, -1);
  }

  #tally(resource: number, lock: number, queue: Queue, by: 1 | -1): void {
    if (queue !== QUEUE.WAIT) this.#addTo(2 * (resource + RES.HELD) + this.granted(lock), by);
    if (queue !== QUEUE.GRANTED) this.#addTo(2 * (resource + RES.WANTED) + this.mode(lock), by);
  }

  #addTo(half: number, by: 1 | -1): void {
    const value = (this.#halves[half] as number) + by;
    if (value < 0 || value > RES_LOCK_COUNT_MAX)
      throw corrupt(`the count of modes in half ${half} would be ${value}`);
    this.#halves[half] = value;
  }

  /** Bit mask of the modes that locks of the resource want. */
  wantedModes(resource: number): number {
    // Nobody waits, nearly always: three words tell.
    const words = this.words;
    const at = resource + RES.WANTED;
    if (((words[at] as number) | (words[at + 1] as number) | (words[at + 2] as number)) === 0) return 0;
    return this.#modes(2 * at);
  }

  /** Bit mask of the modes that locks of the resource hold, converting ones included. */
  heldModes(resource: number): number {
    return this.#modes(2 * (resource + RES.HELD));
  }

  #modes(half: number): number {
    let mask = 0;
    for (let mode = 0; mode < MXFS_MODE_COUNT; mode++) {
      if ((this.#halves[half + mode] as number) > 0) mask |= 1 << mode;
    }
    return mask;
  }

  /**
   * Whether `mode` can be held beside everything that is held. @param lock one whose own held mode does not count
   * (a conversion), or 0.
   */
  fits(resource: number, mode: number, lock: number): boolean {
    const held = 2 * (resource + RES.HELD);
    const own = lock === 0 ? -1 : this.granted(lock);
    const compatible = COMPATIBLE[mode] as number;
    for (let other = 0; other < MXFS_MODE_COUNT; other++) {
      if ((compatible & (1 << other)) !== 0) continue;
      if ((this.#halves[held + other] as number) > (other === own ? 1 : 0)) return false;
    }
    return true;
  }

  // ---- arenas -----------------------------------------------------------------------------------------------

  /**
   * Sees to it that the next record of this kind can be had. May grow the table: take `words` again afterwards.
   * @returns whether there is room; if not, `refusal` says why.
   */
  reserve(kind: Kind): boolean {
    if (this.words[this.#block + KEPT_AGE_AT] !== this.words[CTL.AGE]) this.#forgetKept();
    return (this.words[this.#block + KEPT_COUNT_AT + kind] as number) > 0 || this.#fetch(kind);
  }

  #take(kind: Kind): number {
    const words = this.words;
    if (words[this.#block + KEPT_COUNT_AT + kind] === 0)
      throw corrupt(`no record of kind ${kind} was reserved`);
    const record = words[this.#block + KEPT_HEAD_AT + kind] as number;
    words[this.#block + KEPT_HEAD_AT + kind] = words[record] as number;
    this.count(KEPT_COUNT_AT + kind, -1);
    this.count(USED_AT + kind);
    return record;
  }

  #give(kind: Kind, record: number): void {
    const words = this.words;
    if (words[this.#block + KEPT_AGE_AT] !== words[CTL.AGE]) this.#forgetKept();
    if (words[this.#block + KEPT_COUNT_AT + kind] === 2 * this.#layout.batchCount) this.#giveBack(kind);
    this.#keep(kind, record);
    this.count(USED_AT + kind, -1);
  }

  /** Puts a free record into this thread's list. */
  #keep(kind: Kind, record: number): void {
    const words = this.words;
    words[record] = words[this.#block + KEPT_HEAD_AT + kind] as number;
    words[this.#block + KEPT_HEAD_AT + kind] = record;
    this.count(KEPT_COUNT_AT + kind);
  }

  #forgetKept(): void {
    this.words.fill(0, this.#block + KEPT_HEAD_AT, this.#block + KEPT_AGE_AT);
    this.words[this.#block + KEPT_AGE_AT] = this.words[CTL.AGE] as number;
  }

  /** Gets a batch of free records from all threads' pool, or cuts new ones. */
  #fetch(kind: Kind): boolean {
    const { resourceCountMax, lockCountMax, batchCount } = this.#layout;
    const arena = CTL.ARENAS + kind * ARENA_WORDS;
    const countMax = kind === KIND.LOCK ? lockCountMax : resourceCountMax;
    const size = RECORD_WORDS[kind] as number;
    this.#acquire(CTL.ALLOCATOR_LOCK, "allocator");
    try {
      let count = 0;
      while (count < batchCount && (this.words[arena + ARENA.OUT] as number) < countMax) {
        const words = this.words;
        let record = words[arena + ARENA.FREE] as number;
        if (record !== 0) {
          words[arena + ARENA.FREE] = words[record] as number;
        } else {
          if ((words[arena + ARENA.FRESH] as number) + size > (words[arena + ARENA.FRESH_END] as number)) {
            if (!this.#addSegment(arena)) break;
          }
          record = this.words[arena + ARENA.FRESH] as number;
          this.words[arena + ARENA.FRESH] = record + size;
        }
        this.words[arena + ARENA.OUT] = (this.words[arena + ARENA.OUT] as number) + 1;
        this.#keep(kind, record);
        count++;
      }
      if (count === 0 && this.words[arena + ARENA.OUT] === countMax) {
        this.refusal = `the lock table is full: ${countMax} ${kind === KIND.LOCK ? "locks" : "resources"}`;
      }
      return count > 0;
    } finally {
      this.#release(CTL.ALLOCATOR_LOCK);
    }
  }

  /** The next segment is this kind's; memory is asked for when all are used. Under the allocator's lock. */
  #addSegment(arena: number): boolean {
    const { segmentWords, segmentsAt } = this.#layout;
    const segment = this.words[CTL.SEGMENT_NEXT] as number;
    if (segment === this.words[CTL.SEGMENT_COUNT]) {
      const end = segmentsAt + (segment + 1) * segmentWords;
      const pages = Math.ceil((end - this.words.length) / PAGE_WORDS);
      try {
        this.memory.grow(pages);
      } catch (error) {
        this.count(COUNTER.memoryRefused);
        this.refusal = `no memory for more than ${this.words.length * 4} bytes of locks: ${String(error)}`;
        return false;
      }
      this.#look();
      this.words[CTL.SEGMENT_COUNT] = segment + 1;
      this.count(COUNTER.segments);
      Atomics.store(this.words, CTL.LENGTH, this.words.length);
    }
    this.words[CTL.SEGMENT_NEXT] = segment + 1;
    this.words[arena + ARENA.FRESH] = segmentsAt + segment * segmentWords;
    this.words[arena + ARENA.FRESH_END] = segmentsAt + (segment + 1) * segmentWords;
    return true;
  }

  /** Half of what this thread keeps goes back to all. */
  #giveBack(kind: Kind): void {
    const arena = CTL.ARENAS + kind * ARENA_WORDS;
    this.#acquire(CTL.ALLOCATOR_LOCK, "allocator");
    try {
      const words = this.words;
      for (let count = this.#layout.batchCount; count > 0; count--) {
        const record = words[this.#block + KEPT_HEAD_AT + kind] as number;
        words[this.#block + KEPT_HEAD_AT + kind] = words[record] as number;
        this.count(KEPT_COUNT_AT + kind, -1);
        words[record] = words[arena + ARENA.FREE] as number;
        words[arena + ARENA.FREE] = record;
        words[arena + ARENA.OUT] = (words[arena + ARENA.OUT] as number) - 1;
      }
    } finally {
      this.#release(CTL.ALLOCATOR_LOCK);
    }
  }

  /**
   * Forgets every record, at the cost of the buckets alone. Nobody may be inside a stripe, or enter one with more
   * than a look at STATE, until the state is another: the caller has set CHANGING and passed every stripe lock.
   */
  forgetAll(): void {
    if (Atomics.load(this.words, CTL.STATE) !== TABLE_STATE.CHANGING) {
      throw corrupt("it may be forgotten in state CHANGING only");
    }
    const { bucketCount } = this.#layout;
    this.#acquire(CTL.ALLOCATOR_LOCK, "allocator");
    try {
      const words = this.words;
      // Written only where something hangs: memory that was never written costs nothing. No segment, no record.
      if (words[CTL.SEGMENT_NEXT] !== 0) {
        for (let bucket = 0; bucket < bucketCount; bucket++) {
          const at = this.bucketAt(bucket);
          if (words[at] !== 0 && isBucket(bucket)) words[at] = 0;
        }
      }
      words.fill(0, CTL.ARENAS, CTL.ARENAS + RECORD_WORDS.length * ARENA_WORDS);
      words[CTL.SEGMENT_NEXT] = 0;
      for (let thread = 1; thread <= THREAD_COUNT_MAX; thread++) {
        const used = THREADS_AT + thread * THREAD_WORDS + USED_AT;
        words.fill(0, used, used + RECORD_WORDS.length);
      }
      Atomics.add(words, CTL.AGE, 1);
    } finally {
      this.#release(CTL.ALLOCATOR_LOCK);
    }
  }

  // ---- walking ----------------------------------------------------------------------------------------------

  /**
   * Calls `visit` for every resource of a stripe (whose lock is held); it may remove that resource. Nothing is
   * shown while the table is being forgotten.
   */
  forEachResource(stripe: number, visit: (resource: number, bucket: number) => void): void {
    const end = (stripe + 1) << STRIPE_SHIFT;
    for (let bucket = (stripe << STRIPE_SHIFT) + STRIPE_HEAD_WORDS; bucket < end; bucket++) {
      // Most are empty.
      if (this.words[this.bucketAt(bucket)] !== 0) this.forEachInBucket(bucket, visit);
    }
  }

  /** As `forEachResource`, for one bucket; nothing hangs below a number that is none. */
  forEachInBucket(bucket: number, visit: (resource: number, bucket: number) => void): void {
    if (!isBucket(bucket)) return;
    let index = this.words[this.bucketAt(bucket)] as number;
    if (index === 0 || Atomics.load(this.words, CTL.STATE) === TABLE_STATE.CHANGING) return;
    for (let steps = 0; index !== 0; steps++) {
      if (steps > this.#layout.resourceCountMax) throw corrupt(`bucket ${bucket} is a circle`);
      const next = this.words[index + RES.NEXT] as number;
      visit(index, bucket);
      index = next;
    }
  }

  /** Calls `visit` for every lock of a resource: granted, converting, waiting; it may remove that lock. */
  forEachLock(resource: number, visit: (lock: number, queue: Queue) => void): void {
    for (const queue of [QUEUE.GRANTED, QUEUE.CONVERT, QUEUE.WAIT] as const) {
      let index = this.first(resource, queue);
      for (let steps = 0; index !== 0; steps++) {
        if (steps > RES_LOCK_COUNT_MAX) throw corrupt(`a queue of resource ${resource} is a circle`);
        const next = this.next(index);
        visit(index, queue);
        index = next;
      }
    }
  }

  /** Throws unless queues, links and counts of a stripe agree. For tests; the stripe's lock must be held. */
  checkStripe(stripe: number): void {
    const hasher = new ResourceHasher();
    this.forEachResource(stripe, (resource, bucket) => {
      if (this.bucketOf(hasher.hash(this.words, resource + RES.KEY)) !== bucket) {
        throw corrupt(`resource ${resource} hangs in the wrong bucket ${bucket}`);
      }
      const held = new Array<number>(MXFS_MODE_COUNT).fill(0);
      const wanted = new Array<number>(MXFS_MODE_COUNT).fill(0);
      let count = 0;
      this.forEachLock(resource, (lock, queue) => {
        if (this.queueOf(lock) !== queue || this.words[lock + LOCK.RESOURCE] !== resource) {
          throw corrupt(`lock ${lock} is not where it says`);
        }
        const after = this.next(lock);
        const before = after === 0 ? this.first(resource, queue) : after;
        if (this.words[before + LOCK.PREV] !== lock) throw corrupt(`the links around lock ${lock} disagree`);
        if (queue !== QUEUE.WAIT) held[this.granted(lock)] = (held[this.granted(lock)] as number) + 1;
        if (queue !== QUEUE.GRANTED) wanted[this.mode(lock)] = (wanted[this.mode(lock)] as number) + 1;
        count++;
      });
      for (let mode = 0; mode < MXFS_MODE_COUNT; mode++) {
        if (
          this.#halves[2 * (resource + RES.HELD) + mode] !== held[mode] ||
          this.#halves[2 * (resource + RES.WANTED) + mode] !== wanted[mode]
        ) {
          throw corrupt(`resource ${resource} miscounts mode ${mode}`);
        }
      }
      if (count === 0 || count !== this.lockCount(resource)) {
        throw corrupt(`resource ${resource} has ${count} locks, counts ${this.lockCount(resource)}`);
      }
    });
  }
}

function corrupt(what: string): LockTableError {
  return new LockTableError("TABLE_CORRUPT", `lock table: ${what}: the daemon must end`);
}
