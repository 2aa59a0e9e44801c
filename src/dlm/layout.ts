// SPDX-License-Identifier: GPL-2.0-only
/**
 * Where everything lies in the lock table's one SharedArrayBuffer. Unit: 32-bit words.
 *
 *   0            control words (CTL)        capacities, state, epoch, allocator
 *   64           view: node ids, sorted     MXFS_NODE_COUNT_MAX words
 *   128          counters (COUNTER)         32 words
 *   160          stripe locks               stripe_count * 16 (a cache line each)
 *   buckets_at   hash buckets               bucket_count: index of the first resource, 0 = none
 *   resources_at resource arena             (resource_count_max + 1) * RES_WORDS; index 0 is not used
 *   locks_at     lock arena                 (lock_count_max + 1) * LOCK_WORDS; index 0 is not used
 *
 *   bucket ──► resource ──► resource ──► 0          (RES.NEXT; both under one stripe lock)
 *                 │
 *                 ├─ granted  head ⇄ lock ⇄ lock tail
 *                 ├─ convert  head ⇄ lock tail        each still holds LOCK.GRANTED
 *                 └─ wait     head ⇄ lock ⇄ lock tail
 *
 * Protocol: a bucket belongs to stripe (bucket & (stripe_count - 1)); whatever hangs below a bucket is read and
 * written only under that stripe's lock. Free records hang in one list per arena (NEXT), under the allocator's
 * lock, which is only taken inside a stripe lock, never the other way. A generation counter rises whenever a
 * record is freed.
 * Known weakness: capacities are fixed at creation; records are not packed when the table empties.
 */
import { MXFS_NODE_COUNT_MAX } from "../wire/abi.js";

/** Control words. */
export const CTL = {
  MAGIC: 0,
  VERSION: 1,
  RESOURCE_COUNT_MAX: 2,
  LOCK_COUNT_MAX: 3,
  BUCKET_COUNT: 4,
  STRIPE_COUNT: 5,
  /** 1: an operation failed half-way; nothing in here can be relied on. */
  BROKEN: 6,
  /** Threads attached so far; the number of the last one. */
  THREAD_COUNT: 7,
  /** Bit n: thread n is dead. */
  THREADS_DEAD: 8,
  SELF_NODE: 9,
  /** TABLE_STATE */
  STATE: 10,
  EPOCH_LOW: 11,
  EPOCH_HIGH: 12,
  VIEW_COUNT: 13,
  /** Held by who changes state, epoch and view. */
  ADMIN_LOCK: 16,
  ALLOCATOR_LOCK: 32,
  RESOURCE_FREE: 33,
  /** Index of the first resource never used yet. */
  RESOURCE_FRESH: 34,
  RESOURCE_USED: 35,
  LOCK_FREE: 36,
  LOCK_FRESH: 37,
  LOCK_USED: 38,
} as const;

export const TABLE_MAGIC = 0x4d584c54;
export const TABLE_VERSION = 1;

export const TABLE_STATE = {
  /** No view yet. */
  NONE: 0,
  /** Being cleared: nothing is taken. */
  CHANGING: 1,
  /** View and epoch are the next ones; reclaims are entered, requests queued, nothing is decided. */
  REBUILDING: 2,
  SERVING: 3,
} as const;
export type TableState = (typeof TABLE_STATE)[keyof typeof TABLE_STATE];

export const VIEW_AT = 64;
export const COUNTERS_AT = VIEW_AT + MXFS_NODE_COUNT_MAX;

/** Counters, unsigned 32 bit, wrapping. */
export const COUNTER = {
  requests: 0,
  converts: 1,
  statements: 2,
  releases: 3,
  cancels: 4,
  reclaims: 5,
  grants: 6,
  denies: 7,
  basts: 8,
  forwards: 9,
  /** Messages of another epoch, dropped. */
  stale: 10,
  /** Messages while there was no view, dropped. */
  frozen: 11,
  /** Messages that break the protocol, dropped. */
  rejected: 12,
  /** Messages that came too late or twice, and need nothing. */
  ignored: 13,
  /** Reclaimed modes that conflict: two nodes believe what only one may. */
  conflicts: 14,
  deadlocks: 15,
  /** Requests denied because an arena was full. */
  full: 16,
  /** Stripe locks that were not free at once. */
  contended: 17,
  /** Stripe locks that had to be slept for. */
  slept: 18,
  purged: 19,
  viewChanges: 20,
} as const;
export type CounterName = keyof typeof COUNTER;
export const COUNTER_WORDS = 32;

export const STRIPES_AT = COUNTERS_AT + COUNTER_WORDS;
export const STRIPE_WORDS = 16;

/** Fields of a resource record. */
export const RES = {
  NEXT: 0,
  HASH: 1,
  /** Eight words. */
  KEY: 2,
  /** Head and tail of each queue, by QUEUE. */
  QUEUES: 10,
  /** How many locks are held in each mode (granted and converting ones): six words. */
  HELD: 16,
  /** How many converting and waiting locks want each mode: six words. */
  WANTED: 22,
  GENERATION: 28,
  LOCK_COUNT: 29,
} as const;
export const RES_WORDS = 32;

/** Which queue a lock is in; also the order of RES.QUEUES (head at QUEUES + 2 * queue). */
export const QUEUE = { GRANTED: 0, CONVERT: 1, WAIT: 2 } as const;
export type Queue = (typeof QUEUE)[keyof typeof QUEUE];

/** Fields of a lock record. */
export const LOCK = {
  NEXT: 0,
  PREV: 1,
  RESOURCE: 2,
  NODE: 3,
  ID_LOW: 4,
  ID_HIGH: 5,
  /** Of the outstanding request, else of the last one that was granted or stated. */
  SEQ: 6,
  QUEUE: 7,
  /** Mode held; NL in the wait queue. */
  GRANTED: 8,
  /** Mode wanted; that of GRANTED in the granted queue. */
  MODE: 9,
  /** MXFS_LKF_NOQUEUE while a request of that kind waits for the end of a rebuild. */
  FLAGS: 10,
  /** Bit mask: the modes it may still be held as after all BASTs sent since its owner's last word. */
  ALLOWED: 11,
  GENERATION: 12,
  /** GRANTED's seq while a conversion is outstanding: a BAST names the grant it means. */
  GRANTED_SEQ: 13,
} as const;
export const LOCK_WORDS = 16;

/** Queue of a record that is in none: in the free list. */
export const QUEUE_FREE = -1;

/** Most threads that may attach (bits of THREADS_DEAD; also told apart in the lock words). */
export const THREAD_COUNT_MAX = 30;

export interface TableCapacity {
  readonly resourceCountMax: number;
  readonly lockCountMax: number;
}

export interface TableLayout extends TableCapacity {
  readonly bucketCount: number;
  readonly stripeCount: number;
  readonly bucketsAt: number;
  readonly resourcesAt: number;
  readonly locksAt: number;
  /** Words of the whole table. */
  readonly words: number;
}

const STRIPE_COUNT_MAX = 256;
/** Both arenas together stay below 2 GiB. */
const COUNT_MAX = 1 << 23;

/** @throws RangeError when a capacity is out of range. */
export function tableLayout({ resourceCountMax, lockCountMax }: TableCapacity): TableLayout {
  for (const [name, count] of [
    ["resource", resourceCountMax],
    ["lock", lockCountMax],
  ] as const) {
    if (!Number.isInteger(count) || count < 1 || count > COUNT_MAX) {
      throw new RangeError(`lock table: ${name} count ${count}: expected 1 to ${COUNT_MAX}`);
    }
  }
  const bucketCount = 2 ** Math.ceil(Math.log2(Math.max(2, resourceCountMax)));
  const stripeCount = Math.min(STRIPE_COUNT_MAX, bucketCount);
  const bucketsAt = STRIPES_AT + stripeCount * STRIPE_WORDS;
  const resourcesAt = bucketsAt + bucketCount;
  const locksAt = resourcesAt + (resourceCountMax + 1) * RES_WORDS;
  const words = locksAt + (lockCountMax + 1) * LOCK_WORDS;
  return { resourceCountMax, lockCountMax, bucketCount, stripeCount, bucketsAt, resourcesAt, locksAt, words };
}

if (new Uint8Array(Uint32Array.of(1).buffer)[0] !== 1) {
  throw new Error("MXFS needs a little-endian machine: keys are used as the words of the wire's bytes");
}
