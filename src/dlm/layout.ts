// SPDX-License-Identifier: GPL-2.0-only
/**
 * Where everything lies in the lock table's one shared memory. Unit: 32-bit words; a record's handle is the number
 * of its first word.
 *
 *   0            control words (CTL)        capacities, state, epoch, allocator
 *   64           view: node ids, sorted     MXFS_NODE_COUNT_MAX words
 *   128          mode masks                 MXFS_MODE_COUNT * 4: what each mode rules out (MASK)
 *   160          thread blocks              (THREAD_COUNT_MAX + 1) * 64: what each thread has counted (COUNTER), and
 *                                           the free records that it keeps (KEPT_*)
 *   desks_at     desks                      (THREAD_COUNT_MAX + 1) * 2816: a thread's messages in hand (DESK)
 *   program_at   program                    2048: what wasm_path.ts wrote, for all threads
 *   buckets_at   stripes                    bucket_count words, a cache line each: a lock, a word that nobody reads, and
 *                                           14 hash buckets: the first resource, 0 = none
 *   segments_at  segments                   segment_words each: records of one kind; added while the table grows
 *
 *   bucket ──► resource ──► resource ──► 0          (RES.NEXT; both under one stripe lock)
 *                 │
 *                 ├─ granted  head ⇄ lock ⇄ lock         the head's PREV is the tail
 *                 ├─ convert  head ⇄ lock                each still holds LOCK_BYTE.GRANTED
 *                 ├─ wait     head ⇄ lock ⇄ lock
 *                 └─ value    lock value block, or 0
 *
 * The memory is a shared WebAssembly.Memory, because that can grow by whole segments in any thread while the
 * others go on: their views stay right for the old length, and they take the longer one when they next enter a
 * stripe (CTL.LENGTH). A *growable* SharedArrayBuffer would be nine times slower to read.
 *
 * Protocol: whatever hangs below a bucket is read and written only under the lock of its stripe. A bucket's number is the
 * place of its word, so the numbers of the stripes' heads are no buckets (`isBucket`). Lock and buckets share a cache line,
 * because threads at work on different resources hand each other nothing but these lines. (Whether a stripe is idle can be
 * seen without its lock: LockTable.nextBusy.) Free records hang in one list per kind
 * (word 0), under the allocator's lock, which is only taken inside a stripe lock, never the other way; each thread
 * keeps a list of a few for itself, void once AGE has changed. A generation counter rises whenever a record is freed.
 * Two pieces of code work on it by the same rules: table.ts with engine.ts, in TypeScript, which can do everything,
 * and wasm_path.ts, in WebAssembly, which does what is simple and most of what happens.
 * Size: one lock on a resource of its own costs 80 + 40 bytes and its bucket, 4.
 * Known weakness: memory never shrinks; more resources than buckets make longer chains.
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
  /** Words of the memory; a thread whose view is shorter takes a new one. */
  LENGTH: 14,
  /** Rises when the whole table is forgotten: free records that a thread kept are void. */
  AGE: 15,
  /** Held by who changes state, epoch and view. */
  ADMIN_LOCK: 16,
  SEGMENT_WORDS: 17,
  /** Length of the program at PROGRAM_AT; 0 until somebody has written it. */
  PROGRAM_BYTES: 18,
  ALLOCATOR_LOCK: 32,
  /** Segments that exist, and how many of them were given to a kind since the table was last forgotten. */
  SEGMENT_COUNT: 33,
  SEGMENT_NEXT: 34,
  /** ARENA_WORDS each, by KIND. */
  ARENAS: 36,
} as const;

/** Kinds of records. */
export const KIND = { RESOURCE: 0, LOCK: 1, VALUE: 2 } as const;
export type Kind = (typeof KIND)[keyof typeof KIND];

/** Control words of a kind's arena. */
export const ARENA = {
  /** First free record. */
  FREE: 0,
  /** The rest of the segment being cut into records. */
  FRESH: 1,
  FRESH_END: 2,
  /** Records in use, or kept by a thread. */
  OUT: 3,
} as const;
export const ARENA_WORDS = 4;

export const TABLE_MAGIC = 0x4d584c54;
export const TABLE_VERSION = 4;

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

/** Counters, unsigned 32 bit, wrapping; every thread counts for itself, a reader adds up. */
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
  /** Requests denied because the table was full, or memory for more was refused. */
  full: 16,
  /** Stripe locks that were not free at once. */
  contended: 17,
  /** Stripe locks that had to be slept for. */
  slept: 18,
  purged: 19,
  viewChanges: 20,
  /** Segments added. */
  segments: 21,
  /** Segments that the system had no memory for. */
  memoryRefused: 22,
  /** Lock values written. */
  values: 23,
  /** Messages decided by the short path (wasm_path.ts); also counted as what they are. */
  short: 24,
} as const;
export type CounterName = keyof typeof COUNTER;

/**
 * By mode, MASK_WORDS each: the halves of RES.HELD (six, the rest is 0) that must be 0 for a lock of that mode to be
 * granted, all ones.
 */
export const MASKS_AT = VIEW_AT + MXFS_NODE_COUNT_MAX;
export const MASK_WORDS = 4;

/** In a thread's block, behind the counters: records in use as far as this thread took and gave them, by KIND. */
export const USED_AT = 28;
/** Free records that the thread keeps: the first of the list, and how many, by KIND. */
export const KEPT_HEAD_AT = 32;
export const KEPT_COUNT_AT = 36;
/** CTL.AGE when the list was begun. */
export const KEPT_AGE_AT = 40;
export const THREAD_WORDS = 64;
/** On a cache line of its own, as is each block. */
export const THREADS_AT = 160;

/** Most threads that may attach (bits of THREADS_DEAD; also told apart in the lock words). */
export const THREAD_COUNT_MAX = 30;

/** Messages that a desk has room for. */
export const DESK_COUNT = 128;
/** Words of a thread's desk, where it lays messages for wasm_path.ts; nobody else looks at it. */
export const DESK = {
  /** DESK_COUNT entries of 16 words; a grant is written over the request, or one before it. */
  MESSAGES: 0,
  /** DESK_COUNT frame types. */
  COMMANDS: DESK_COUNT * 16,
  /** DESK_COUNT * DESK_WORK_WORDS. */
  WORK: DESK_COUNT * 17,
  /** Byte addresses of the stripe locks that are held. */
  HELD: DESK_COUNT * 21,
} as const;
/** What `prepare` finds out about a message; and, once it is decided, the mode that it gave up (NL: none). */
export const DESK_WORK = { HASH: 0, BUCKET: 1, STRIPE: 2, HEAD: 3, GAVE_UP: 3 } as const;
export const DESK_WORK_WORDS = 4;
/**
 * Stripe locks that a thread holds at once, at most; it only tries for a second one, never waits. More save a few
 * instructions, and cost other threads more.
 */
export const DESK_HELD_MAX = 8;
export const DESK_WORDS = DESK_COUNT * 22;
export const DESKS_AT = THREADS_AT + (THREAD_COUNT_MAX + 1) * THREAD_WORDS;

/** The bytes of wasm_path.ts's program, for every thread to compile. */
export const PROGRAM_AT = DESKS_AT + (THREAD_COUNT_MAX + 1) * DESK_WORDS;
export const PROGRAM_WORDS = 2048;

export const BUCKETS_AT = PROGRAM_AT + PROGRAM_WORDS;
/** At the start of each stripe: its lock, and a word that nobody reads (a thread that will take the lock writes it). */
export const STRIPE_HEAD_WORDS = 2;
/** Words of a stripe: a cache line, so that who takes the lock has the buckets, too. */
export const STRIPE_SHIFT = 4;
export const STRIPE_WORDS = 1 << STRIPE_SHIFT;
/** Set in a lock word when somebody sleeps on it; the bits below are the owner's thread number. */
export const WAITERS = 0x4000_0000;

/** Fields of a resource record. */
export const RES = {
  NEXT: 0,
  /** Eight words. */
  KEY: 1,
  /** Head of each queue, by QUEUE. */
  QUEUES: 9,
  /** How many locks are held in each mode (granted and converting ones): six halves. */
  HELD: 12,
  /** How many converting and waiting locks want each mode: six halves. */
  WANTED: 15,
  /** Its value record, or 0. */
  VALUE: 18,
  /** Two halves: locks; generation. */
  META: 19,
} as const;
export const RES_WORDS = 20;
/** Most locks of one resource: what its counts can tell. */
export const RES_LOCK_COUNT_MAX = 0xffff;

/** Which queue a lock is in; also the order of RES.QUEUES. */
export const QUEUE = { GRANTED: 0, CONVERT: 1, WAIT: 2 } as const;
export type Queue = (typeof QUEUE)[keyof typeof QUEUE];

/** Words of a lock record. */
export const LOCK = {
  NEXT: 0,
  PREV: 1,
  RESOURCE: 2,
  NODE: 3,
  ID_LOW: 4,
  ID_HIGH: 5,
  /** Of the outstanding request, else of the last one that was granted or stated. */
  SEQ: 6,
  /** GRANTED's seq while a conversion is outstanding: a BAST names the grant it means. */
  GRANTED_SEQ: 7,
} as const;
/** Bytes of a lock record, behind its words. */
export const LOCK_BYTE = {
  QUEUE: 32,
  /** Mode held; NL in the wait queue. */
  GRANTED: 33,
  /** Mode wanted; that of GRANTED in the granted queue. */
  MODE: 34,
  /**
   * MXFS_LKF_NOQUEUE while a request of that kind waits for the end of a rebuild. In the granted queue: the mode held
   * before the last grant, and whether that was a conversion (a grant that cannot be persisted is taken back).
   */
  FLAGS: 35,
  /** Bit mask: the modes it may still be held as after all BASTs sent since its owner's last word. */
  ALLOWED: 36,
  /** u16 */
  GENERATION: 38,
} as const;
export const LOCK_WORDS = 10;
/** In LOCK_BYTE.FLAGS of a granted lock, beside the mode that was held before: it was a conversion. */
export const WAS_CONVERSION = 8;

/** LOCK_BYTE.QUEUE of a record that is in none. */
export const QUEUE_FREE = 0xff;

/** Words of a value record (lock value block); its free list hangs in word 0. */
export const VALUE = {
  /** MXFS_LVB_LEN bytes. */
  BYTES: 0,
  /** u64: rises with every value written. */
  SEQ: 8,
  /** VALUE_STATE */
  STATE: 10,
} as const;
export const VALUE_WORDS = 12;

export const VALUE_STATE = {
  VALID: 0,
  /** Somebody who might have changed it is gone. */
  INVALID: 1,
  /** While rebuilding: told only by locks that keep no writer out; invalid unless a stronger one tells it. */
  WEAK: 2,
} as const;

export const RECORD_WORDS: readonly number[] = [RES_WORDS, LOCK_WORDS, VALUE_WORDS];

export interface TableCapacity {
  readonly resourceCountMax: number;
  readonly lockCountMax: number;
  /** Bytes of memory at most, when that is less than the counts allow. */
  readonly memoryBytesMax?: number;
}

export interface TableLayout {
  readonly resourceCountMax: number;
  readonly lockCountMax: number;
  /** Words of all stripes, a power of two: buckets, and the stripes' heads among them. */
  readonly bucketCount: number;
  readonly stripeCount: number;
  readonly segmentsAt: number;
  readonly segmentWords: number;
  /** Free records that a thread fetches at once. */
  readonly batchCount: number;
}

const BUCKET_COUNT_MAX = 1 << 20;
/** 8 Mi of each stay below 1 GiB: byte offsets fit 31 bits. */
const COUNT_MAX = 1 << 23;
const BATCH_COUNT_MAX = 256;
export const PAGE_WORDS = 16_384;
const SEGMENT_PAGES_MAX = 8;

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
  const wanted = 2 ** Math.ceil(Math.log2(Math.max(STRIPE_WORDS, resourceCountMax)));
  const bucketCount = Math.min(BUCKET_COUNT_MAX, wanted);
  const stripeCount = bucketCount / STRIPE_WORDS;
  const segmentsAt = BUCKETS_AT + bucketCount;
  const pages = Math.ceil((resourceCountMax * RES_WORDS) / PAGE_WORDS);
  const segmentWords = Math.min(SEGMENT_PAGES_MAX, pages) * PAGE_WORDS;
  const batchCount = Math.max(
    1,
    Math.min(BATCH_COUNT_MAX, Math.floor(Math.min(resourceCountMax, lockCountMax) / 64)),
  );
  return {
    resourceCountMax,
    lockCountMax,
    bucketCount,
    stripeCount,
    segmentsAt,
    segmentWords,
    batchCount,
  };
}

/** Whether a number below the layout's bucketCount is a bucket: the others are the heads of stripes. */
export function isBucket(bucket: number): boolean {
  return (bucket & (STRIPE_WORDS - 1)) >= STRIPE_HEAD_WORDS;
}

/** Words that all records together can come to, full segments of each kind. */
export function tableWordsMax(layout: TableLayout): number {
  const { segmentWords, segmentsAt, resourceCountMax, lockCountMax } = layout;
  const counts = [resourceCountMax, lockCountMax, resourceCountMax];
  return counts.reduce((words, count, kind) => {
    const perSegment = Math.floor(segmentWords / (RECORD_WORDS[kind] as number));
    return words + Math.ceil(count / perSegment) * segmentWords;
  }, segmentsAt);
}

if (new Uint8Array(Uint32Array.of(1).buffer)[0] !== 1) {
  throw new Error("MXFS needs a little-endian machine: keys are used as the words of the wire's bytes");
}
