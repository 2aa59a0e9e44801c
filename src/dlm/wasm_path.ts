// SPDX-License-Identifier: GPL-2.0-only
/**
 * The lock engine's short path, in WebAssembly on the table's own memory: what is decided at once and concerns nobody
 * else. Six times as fast as the same in TypeScript, for Atomics are dear there.
 *
 *   request            no such resource yet, or all hold it, nobody waits, and the mode fits beside theirs ─► grant
 *   convert            held, nobody waits: gives up rights ─► done; takes more, and it fits ─► grant
 *   release            held, nobody waits ─► gone
 *   anything else      left to engine.ts, untouched: queues, BASTs, denials, values, cancels, reclaims, messages of
 *                      another epoch, of somebody else, or for another master; no free record at hand; the stripe is
 *                      taken, the table broken, the view changing
 *
 * So engine.ts stays the one place that knows everything; this file must come to the same outcome and the same table
 * wherever it does not leave a message to it (test/unit/wasm_path.test.ts: random histories through both).
 *
 * Protocol: the thread lays messages on its desk, `prepare` hashes them and touches what they will need (so that many
 * cache misses are waited for at once), `run` decides them in order until one is not simple, and says how far it came.
 * Stripe locks are kept from one message to the next, DESK_HELD_MAX at most: who holds one only *tries* another, and
 * lets all go before it waits (which it leaves to engine.ts). All are let go when `run` returns. State and epoch are
 * looked at whenever a stripe has been taken: a view change passes every stripe before it touches anything, so while one is
 * held they stay. What the thread counts and keeps (free records) is in variables until stripes are let go. A message about
 * the same resource as the one before it needs no hash and no search.
 *
 * A trap (an index out of the memory: the table is corrupt) leaves the stripes locked: the caller must break the table.
 * Known weakness: the first message of all takes ten milliseconds more, for the program is written then; a chain or queue of
 * more than STEP_COUNT_MAX is left to engine.ts.
 */
import {
  MXFS_LKF_CONVERT,
  MXFS_LKF_NOQUEUE,
  MXFS_LOCK_CLIENT_CONTROL,
  MXFS_LOCK_CLIENT_SHIFT,
  MXFS_LOCK_ENTRY_SIZE,
  MXFS_MODE_COUNT,
  MXFS_MODE_NL,
  MXFS_RES_USER,
  WireType,
} from "../wire/abi.js";
import { LOCK_ENTRY } from "../wire/lock_entry.js";
import {
  BUCKETS_AT,
  COUNTER,
  CTL,
  DESK,
  DESK_HELD_MAX,
  DESK_WORDS,
  DESK_WORK,
  DESK_WORK_WORDS,
  DESKS_AT,
  KEPT_AGE_AT,
  KEPT_COUNT_AT,
  KEPT_HEAD_AT,
  KIND,
  LOCK,
  LOCK_BYTE,
  MASK_WORDS,
  MASKS_AT,
  PROGRAM_AT,
  PROGRAM_WORDS,
  QUEUE,
  QUEUE_FREE,
  RES,
  RES_LOCK_COUNT_MAX,
  STRIPE_HEAD_WORDS,
  STRIPE_WORDS,
  TABLE_STATE,
  type TableLayout,
  THREAD_WORDS,
  THREADS_AT,
  USED_AT,
  VIEW_AT,
  WAITERS,
  WAS_CONVERSION,
} from "./layout.js";
import { runOn, type SharedMemory } from "./memory.js";
import { ALL_MODES, STATEMENT } from "./modes.js";
import {
  atomicCompareExchange32,
  atomicExchange32,
  atomicLoad32,
  atomicNotify,
  type Code,
  type Expr,
  extend,
  i32,
  i64,
  type Label,
  load8,
  load16,
  load32,
  load64,
  select,
  type Var,
  WasmModule,
  wrap,
} from "./wasm_asm.js";

/** Over the desk's messages [start, end), of which there are at most DESK_COUNT. */
export interface LockProgram {
  /** Hashes them. Messages that are values are not harmed. @param thread its number in the table. */
  prepare(thread: number, start: number, end: number): void;
  /**
   * Decides them, prepared and each with its frame type in DESK.COMMANDS, until one is not simple.
   * @param from the node they come from, signed.
   * @returns how many were done | how many grants, from message `start` on, << 16.
   */
  run(thread: number, start: number, end: number, from: number): number;
}

const STEP_COUNT_MAX = 1024;
const SPIN_COUNT = 200;
/** Words of memory from which on records are touched ahead: below, they are in the processor's cache anyway. */
const TOUCH_WORDS = 1 << 20;

const BYTES = 4;
const KEY_BYTES = 32;
/** Byte offsets in records. */
const RESOURCE = {
  key: BYTES * RES.KEY,
  granted: BYTES * (RES.QUEUES + QUEUE.GRANTED),
  convert: BYTES * (RES.QUEUES + QUEUE.CONVERT),
  wait: BYTES * (RES.QUEUES + QUEUE.WAIT),
  held: BYTES * RES.HELD,
  value: BYTES * RES.VALUE,
  lockCount: BYTES * RES.META,
  generation: BYTES * RES.META + 2,
} as const;
const OWNED = {
  next: BYTES * LOCK.NEXT,
  prev: BYTES * LOCK.PREV,
  resource: BYTES * LOCK.RESOURCE,
  node: BYTES * LOCK.NODE,
  id: BYTES * LOCK.ID_LOW,
  seq: BYTES * LOCK.SEQ,
  grantedSeq: BYTES * LOCK.GRANTED_SEQ,
} as const;
/** In DESK.COMMANDS, beside the frame type: the message names the same resource as the one before it. */
const SAME = 0x100;
/** The modes' word of a message: mode u8, granted u8, flags u16. */
const MODES = LOCK_ENTRY.mode;

/** FNV-1a-32 (resource.ts). */
const OFFSET_BASIS = 0x811c9dc5;
const PRIME = 0x01000193;
const primePower = (n: number): number => (n === 0 ? 1 : Math.imul(PRIME, primePower(n - 1)));

/** STATEMENT as bits: held * 6 + wanted. */
const STATEMENT_BITS = STATEMENT.reduce((bits, is, at) => bits | (BigInt(is) << BigInt(at)), 0n);

/** Words of the thread's block that only it writes, and that `run` has in variables: the value, or what was added to it. */
const RECORD_KINDS = [KIND.RESOURCE, KIND.LOCK] as const;
const KEPT_WORDS: readonly number[] = RECORD_KINDS.flatMap((kind) => [
  KEPT_HEAD_AT + kind,
  KEPT_COUNT_AT + kind,
]);
const COUNTED_WORDS: readonly number[] = [
  ...RECORD_KINDS.map((kind) => USED_AT + kind),
  COUNTER.requests,
  COUNTER.releases,
  COUNTER.grants,
];

type I32 = Expr<"i32">;
type I64 = Expr<"i64">;

/** How many stripes are held; the message in hand, and the first one that was decided since all were let go. */
interface Held {
  readonly count: Var<"i32">;
  readonly index: Var<"i32">;
  readonly from: Var<"i32">;
}

/**
 * Writes one function. The layout's numbers are constants in it; the thread's are not, so that all threads of a process
 * share what the engine makes of it.
 */
class Writer {
  /** Byte addresses of the thread's block and desk. */
  readonly #block: Var<"i32">;
  readonly #desk: Var<"i32">;
  /** The thread's words that `run` keeps in variables, by their index in its block. */
  readonly #kept = new Map<number, Var<"i32">>();

  constructor(
    readonly layout: TableLayout,
    code: Code,
    /** Number of the thread. */
    readonly thread: Var<"i32">,
  ) {
    const place = (first: number, words: number): Var<"i32"> =>
      code.let(thread.mul(i32(BYTES * words)).add(i32(BYTES * first)));
    this.#block = place(THREADS_AT, THREAD_WORDS);
    this.#desk = place(DESKS_AT, DESK_WORDS);
  }

  /** The program's bytes. */
  static program(layout: TableLayout): Uint8Array<ArrayBuffer> {
    const module = new WasmModule();
    module.func("prepare", ["i32", "i32", "i32"], null, (code, [thread, start, end]) => {
      new Writer(layout, code, thread).#prepare(code, start, end);
    });
    module.func("run", ["i32", "i32", "i32", "i32"], "i32", (code, [thread, start, end, from]) => {
      new Writer(layout, code, thread).#run(code, start, end, from);
    });
    return module.encode();
  }

  // ---- places -----------------------------------------------------------------------------------------------

  /** A word at a fixed place. */
  #word(at: number): I32 {
    return load32(i32(0), BYTES * at);
  }
  /** A word of this thread's block. */
  #mine(at: number): I32 {
    return load32(this.#block, BYTES * at);
  }
  #setMine(code: Code, at: number, value: I32): void {
    code.store32(this.#block, BYTES * at, value);
  }
  #count(code: Code, counter: number, by = 1): void {
    this.#setMine(code, counter, this.#mine(counter).add(i32(by)));
  }
  /** The variable of a word of this thread's block. */
  #keptOf(at: number): Var<"i32"> {
    const variable = this.#kept.get(at);
    if (variable === undefined) throw new Error(`wasm_path: word ${at} is not among those that run keeps`);
    return variable;
  }
  #add(code: Code, at: number, by: 1 | -1): void {
    const variable = this.#keptOf(at);
    code.set(variable, variable.add(i32(by)));
  }
  /** Address of message `index`. */
  #message(index: I32): I32 {
    return this.#desk.add(index.mul(i32(MXFS_LOCK_ENTRY_SIZE))).add(i32(BYTES * DESK.MESSAGES));
  }
  #work(index: I32): I32 {
    return this.#desk.add(index.mul(i32(BYTES * DESK_WORK_WORDS))).add(i32(BYTES * DESK.WORK));
  }
  /** Address of a record. */
  #address(handle: I32): I32 {
    return handle.shl(i32(2));
  }
  #handle(address: I32): I32 {
    return address.shr(i32(2));
  }

  // ---- prepare ----------------------------------------------------------------------------------------------

  #prepare(code: Code, start: Var<"i32">, end: Var<"i32">): void {
    const volume = code.let(i64(0n));
    const afterVolume = code.let(i32(Math.imul(OFFSET_BASIS, primePower(8))));
    this.#forEach(code, start, end, (index) => {
      const message = code.let(this.#message(index));
      const work = code.let(this.#work(index));
      code.block((done) => {
        code.block((differs) => {
          code.leave(differs, index.eq(start));
          const before = code.let(message.sub(i32(MXFS_LOCK_ENTRY_SIZE)));
          const differ = (at: number): I64 => load64(message, at).xor(load64(before, at));
          code.leave(differs, differ(LOCK_ENTRY.ino).isZero().isZero());
          const { volume: at, offset, ag } = LOCK_ENTRY;
          code.leave(differs, differ(at).or(differ(offset)).or(differ(ag)).isZero().isZero());
          for (let word = 0; word < BYTES * DESK_WORK_WORDS; word += 8) {
            code.store64(work, word, load64(work.sub(i32(BYTES * DESK_WORK_WORDS)), word));
          }
          const command = code.let(this.#desk.add(index.shl(i32(2))));
          const at32 = BYTES * DESK.COMMANDS;
          code.store32(command, at32, load32(command, at32).or(i32(SAME)));
          code.leave(done);
        });
        this.#hash(code, message, work, volume, afterVolume);
      });
    });
    code.if(this.#word(CTL.LENGTH).gt(i32(TOUCH_WORDS)), () => this.#touch(code, start, end));
  }

  /** @param volume the volume of the message before, and what its hash came to. */
  #hash(code: Code, message: I32, work: I32, volume: Var<"i64">, afterVolume: Var<"i32">): void {
    const { bucketCount } = this.layout;
    code.if(load64(message, LOCK_ENTRY.volume).ne(volume), () => {
      code.set(volume, load64(message, LOCK_ENTRY.volume));
      code.set(afterVolume, i32(OFFSET_BASIS));
      this.#mix64(code, afterVolume, message, LOCK_ENTRY.volume);
    });
    const hash = code.let(afterVolume);
    for (const at of [LOCK_ENTRY.ino, LOCK_ENTRY.offset, LOCK_ENTRY.ag]) {
      this.#mix64(code, hash, message, at);
    }
    code.store32(work, BYTES * DESK_WORK.HASH, hash);
    // As table.ts bucketOf, stripeOf.
    const mixed = hash.mul(i32(0x9e3779b1)).shr(i32(7));
    const inStripe = STRIPE_WORDS - 1;
    const place = code.let(mixed.and(i32(bucketCount - 1)));
    const isHead = place.and(i32(inStripe)).lt(i32(STRIPE_HEAD_WORDS));
    const bucket = place.add(isHead.mul(i32(STRIPE_HEAD_WORDS)));
    const head = code.let(bucket.shl(i32(2)).add(i32(BYTES * BUCKETS_AT)));
    code.store32(work, BYTES * DESK_WORK.BUCKET, head);
    const stripe = place.and(i32(~inStripe));
    const lock = code.let(stripe.shl(i32(2)).add(i32(BYTES * BUCKETS_AT)));
    code.store32(work, BYTES * DESK_WORK.STRIPE, lock);
    // Written, for another thread may have had this line last: to fetch it is what two threads at once wait for most, and a
    // plain store waits for nothing. It is the word that nobody reads.
    code.store32(lock, BYTES, i32(0));
    // Unlocked, so only a hint: it is read again.
    code.store32(work, BYTES * DESK_WORK.HEAD, load32(head));
  }

  /** Reads a little of each message's resource, then of that one's first lock: loads that do not wait for each other. */
  #touch(code: Code, start: I32, end: I32): void {
    const last = code.let(this.#word(CTL.LENGTH).sub(i32(MXFS_LOCK_ENTRY_SIZE)));
    const inside = (handle: Var<"i32">): I32 => select(handle, i32(0), handle.lt(last));
    const next = (field: number, alsoAt: number): void => {
      this.#forEach(code, start, end, (index) => {
        const work = code.let(this.#work(index));
        const handle = code.let(load32(work, BYTES * DESK_WORK.HEAD));
        const record = code.let(this.#address(inside(handle)));
        code.run(load32(record, alsoAt));
        code.store32(work, BYTES * DESK_WORK.HEAD, load32(record, field));
      });
    };
    next(RESOURCE.granted, RESOURCE.lockCount);
    next(OWNED.next, LOCK_BYTE.GENERATION);
  }

  #forEach(code: Code, start: I32, end: I32, body: (index: Var<"i32">) => void): void {
    const index = code.let(start);
    code.block((done) => {
      code.loop((again) => {
        code.leave(done, index.ge(end));
        body(index);
        code.set(index, index.add(i32(1)));
        code.again(again);
      });
    });
  }

  /** FNV-1a of the eight bytes at address + offset, nearly always mostly zeros. */
  #mix64(code: Code, hash: Var<"i32">, address: I32, offset: number): void {
    code.if(
      load64(address, offset).isZero(),
      () => code.set(hash, hash.mul(i32(primePower(8)))),
      () => {
        this.#mix32(code, hash, code.let(load32(address, offset)));
        this.#mix32(code, hash, code.let(load32(address, offset + 4)));
      },
    );
  }

  #mix32(code: Code, hash: Var<"i32">, word: Var<"i32">): void {
    const byte = (at: number): void => {
      code.set(hash, hash.xor(word.shr(i32(8 * at)).and(i32(0xff))).mul(i32(PRIME)));
    };
    code.if(
      word.isZero(),
      () => code.set(hash, hash.mul(i32(primePower(4)))),
      () => {
        byte(0);
        code.if(
          word.shr(i32(8)).isZero(),
          () => code.set(hash, hash.mul(i32(primePower(3)))),
          () => [1, 2, 3].forEach(byte),
        );
      },
    );
  }

  // ---- run --------------------------------------------------------------------------------------------------

  #run(code: Code, start: Var<"i32">, end: Var<"i32">, from: Var<"i32">): void {
    const epoch = code.let(load64(i32(0), BYTES * CTL.EPOCH_LOW));
    const viewCount = code.let(this.#word(CTL.VIEW_COUNT));
    for (const at of KEPT_WORDS) this.#kept.set(at, code.let(this.#mine(at)));
    for (const at of COUNTED_WORDS) this.#kept.set(at, code.let(i32(0)));
    const index = code.let(start);
    const held: Held = { count: code.let(i32(0)), index, from: code.let(start) };
    const grants = code.let(start);
    /** Of the last message: the record of its resource, or 0, and the address of the word that names it. */
    const resource = code.let(i32(0));
    const link = code.let(i32(0));
    code.block((stop) => {
      // A view of another epoch than `epoch` is noticed below: under a stripe lock it is the same only if no view
      // change has begun since.
      this.#leaveUnlessInView(code, from, stop);
      code.loop((again) => {
        code.leave(stop, index.ge(end));
        const message = code.let(this.#message(index));
        const work = code.let(this.#work(index));
        const flags = load16(message, LOCK_ENTRY.flags);
        code.leave(stop, flags.and(i32(0xffff & ~(MXFS_LKF_NOQUEUE | MXFS_LKF_CONVERT))));
        code.leave(stop, load32(message, LOCK_ENTRY.node).ne(from));
        code.leave(stop, load64(message, LOCK_ENTRY.epoch).ne(epoch));
        const word = code.let(load32(this.#desk.add(index.shl(i32(2))), BYTES * DESK.COMMANDS));
        const command = code.let(word.and(i32(SAME - 1)));
        code.block((known) => {
          // The message before was decided here, just now: its stripe is still held.
          code.if(word.ge(i32(SAME)), () => code.leave(known, index.ne(start)));
          this.#lockStripe(code, work, epoch, held, stop);
          this.#leaveUnlessMaster(code, work, viewCount, stop);
          code.set(link, load32(work, BYTES * DESK_WORK.BUCKET));
          this.#find(code, message, link, resource, stop);
        });
        code.block((done) => {
          code.store32(work, BYTES * DESK_WORK.GAVE_UP, i32(MXFS_MODE_NL));
          code.if(command.eq(i32(WireType.LOCK_REQUEST)), () => {
            this.#request(code, message, work, resource, link, stop);
            this.#tellGrant(code, message, index, grants);
            code.leave(done);
          });
          const lock = code.let(i32(0));
          this.#findLock(code, message, resource, lock, stop);
          code.leave(stop, lock.isZero());
          const mode = code.let(load8(lock, LOCK_BYTE.GRANTED));
          code.if(command.eq(i32(WireType.LOCK_RELEASE)), () => {
            this.#release(code, resource, link, lock, stop);
            code.store32(work, BYTES * DESK_WORK.GAVE_UP, mode);
            code.leave(done);
          });
          code.leave(stop, command.ne(i32(WireType.LOCK_CONVERT)));
          this.#convert(code, message, work, resource, lock, stop, done);
          this.#tellGrant(code, message, index, grants);
        });
        code.set(index, index.add(i32(1)));
        code.again(again);
      });
    });
    this.#unlockAll(code, held);
    code.ret(index.sub(start).or(grants.sub(start).shl(i32(16))));
  }

  #leaveUnlessInView(code: Code, from: I32, stop: Label): void {
    code.block((found) => {
      this.#forEach(code, i32(0), this.#word(CTL.VIEW_COUNT), (at) => {
        code.leave(found, load32(at.shl(i32(2)), BYTES * VIEW_AT).eq(from));
      });
      code.leave(stop);
    });
  }

  /** Takes the message's stripe lock if this thread has not got it, and looks whether messages of the epoch may be decided. */
  #lockStripe(code: Code, work: I32, epoch: I64, held: Held, stop: Label): void {
    const lock = code.let(load32(work, BYTES * DESK_WORK.STRIPE));
    code.block((ours) => {
      // Only this thread ever writes its own number.
      code.leave(ours, load32(lock).and(i32(~WAITERS)).eq(this.thread));
      code.if(held.count.eq(i32(DESK_HELD_MAX)), () => this.#unlockAll(code, held));
      code.block((taken) => {
        const tryIt = (): void =>
          code.leave(taken, atomicCompareExchange32(lock, i32(0), this.thread).isZero());
        tryIt();
        this.#count(code, COUNTER.contended);
        const spins = code.let(i32(SPIN_COUNT));
        code.loop((again) => {
          code.if(atomicLoad32(lock).isZero(), tryIt);
          code.set(spins, spins.sub(i32(1)));
          code.again(again, spins);
        });
        code.leave(stop);
      });
      code.store32(this.#desk.add(held.count.shl(i32(2))), BYTES * DESK.HELD, lock);
      code.set(held.count, held.count.add(i32(1)));
      code.leave(stop, this.#word(CTL.BROKEN));
      code.leave(stop, atomicLoad32(i32(0), BYTES * CTL.STATE).ne(i32(TABLE_STATE.SERVING)));
      code.leave(stop, load64(i32(0), BYTES * CTL.EPOCH_LOW).ne(epoch));
      // A table that was forgotten meanwhile: the records at hand are void.
      code.leave(stop, this.#word(CTL.AGE).ne(this.#mine(KEPT_AGE_AT)));
    });
  }

  #unlockAll(code: Code, held: Held): void {
    // Only what was decided under a stripe that is still held may be written: else a view change might be between.
    code.if(held.index.ne(held.from), () => {
      for (const at of KEPT_WORDS) this.#setMine(code, at, this.#keptOf(at));
      for (const at of COUNTED_WORDS) {
        this.#setMine(code, at, this.#mine(at).add(this.#keptOf(at)));
        code.set(this.#keptOf(at), i32(0));
      }
      code.set(held.from, held.index);
    });
    this.#forEach(code, i32(0), held.count, (at) => {
      const lock = code.let(load32(this.#desk.add(at.shl(i32(2))), BYTES * DESK.HELD));
      const value = code.let(atomicExchange32(lock, i32(0)));
      code.if(value.ne(this.thread), () => {
        code.if(
          value.eq(this.thread.or(i32(WAITERS))),
          () => code.run(atomicNotify(lock, i32(1))),
          // As table.ts: somebody else has been in here.
          () => code.atomicStore32(i32(0), BYTES * CTL.BROKEN, i32(1)),
        );
      });
    });
    code.set(held.count, i32(0));
  }

  #leaveUnlessMaster(code: Code, work: I32, viewCount: I32, stop: Label): void {
    code.if(viewCount.ne(i32(1)), () => {
      const place = load32(work, BYTES * DESK_WORK.HASH).rem(viewCount);
      code.leave(stop, load32(place.shl(i32(2)), BYTES * VIEW_AT).ne(this.#word(CTL.SELF_NODE)));
    });
  }

  /** Sets `resource` to the record of the message's key, or 0, and `link` to the address of the word that names it. */
  #find(code: Code, message: I32, link: Var<"i32">, resource: Var<"i32">, stop: Label): void {
    const steps = code.let(i32(STEP_COUNT_MAX));
    code.set(resource, this.#address(load32(link)));
    code.block((found) => {
      code.loop((again) => {
        code.leave(found, resource.isZero());
        // The inode number first: there keys differ.
        const ino = RESOURCE.key + LOCK_ENTRY.ino;
        code.if(load64(resource, ino).eq(load64(message, LOCK_ENTRY.ino)), () => {
          const differs = (at: number): I64 => load64(resource, RESOURCE.key + at).xor(load64(message, at));
          const { volume, offset, ag } = LOCK_ENTRY;
          code.leave(found, differs(volume).or(differs(offset)).or(differs(ag)).isZero());
        });
        code.set(link, resource);
        code.set(resource, this.#address(load32(resource, BYTES * RES.NEXT)));
        code.set(steps, steps.sub(i32(1)));
        code.leave(stop, steps.isZero());
        code.again(again);
      });
    });
  }

  /** Sets `lock` to the owner's granted lock on the resource, or 0; leaves when the resource has other queues. */
  #findLock(code: Code, message: I32, resource: I32, lock: Var<"i32">, stop: Label): void {
    code.leave(stop, resource.isZero());
    code.leave(stop, load32(resource, RESOURCE.convert).or(load32(resource, RESOURCE.wait)));
    const steps = code.let(i32(STEP_COUNT_MAX));
    code.set(lock, this.#address(load32(resource, RESOURCE.granted)));
    code.block((found) => {
      code.loop((again) => {
        code.leave(found, lock.isZero());
        code.if(load64(lock, OWNED.id).eq(load64(message, LOCK_ENTRY.lockId)), () => {
          code.leave(found, load32(lock, OWNED.node).eq(load32(message, LOCK_ENTRY.node)));
        });
        code.set(lock, this.#address(load32(lock, OWNED.next)));
        code.set(steps, steps.sub(i32(1)));
        code.leave(stop, steps.isZero());
        code.again(again);
      });
    });
  }

  // ---- the three commands -----------------------------------------------------------------------------------

  #request(code: Code, message: I32, work: I32, resource: Var<"i32">, link: Var<"i32">, stop: Label): void {
    this.#leaveIfValued(code, message, stop);
    const mode = code.let(load8(message, LOCK_ENTRY.mode));
    code.leave(stop, this.#keptOf(KEPT_COUNT_AT + KIND.LOCK).isZero());
    const lock = code.let(this.#address(this.#keptOf(KEPT_HEAD_AT + KIND.LOCK)));
    code.if(
      resource.isZero(),
      () => {
        code.leave(stop, this.#keptOf(KEPT_COUNT_AT + KIND.RESOURCE).isZero());
        code.set(resource, this.#address(this.#keptOf(KEPT_HEAD_AT + KIND.RESOURCE)));
        this.#take(code, KIND.RESOURCE, resource);
        code.set(link, load32(work, BYTES * DESK_WORK.BUCKET));
        this.#newResource(code, message, resource, link);
        this.#take(code, KIND.LOCK, lock);
      },
      () => {
        const known = code.let(i32(0));
        this.#findLock(code, message, resource, known, stop);
        code.leave(stop, known);
        code.leave(stop, this.#fits(resource, mode).isZero());
        code.leave(stop, load16(resource, RESOURCE.lockCount).ge(i32(RES_LOCK_COUNT_MAX)));
        this.#take(code, KIND.LOCK, lock);
      },
    );
    code.store32(lock, OWNED.resource, this.#handle(resource));
    code.store32(lock, OWNED.node, load32(message, LOCK_ENTRY.node));
    code.store64(lock, OWNED.id, load64(message, LOCK_ENTRY.lockId));
    this.#addTo16(code, resource, RESOURCE.lockCount, 1);
    this.#enqueueGranted(code, message, resource, lock, mode, i32(0));
    this.#add(code, COUNTER.requests, 1);
  }

  #convert(code: Code, message: I32, work: I32, resource: I32, lock: I32, stop: Label, done: Label): void {
    const mode = code.let(load8(message, LOCK_ENTRY.mode));
    const held = code.let(load8(lock, LOCK_BYTE.GRANTED));
    const count = (of: I32): Var<"i32"> => code.let(resource.add(of.shl(i32(1))));
    const own = count(held);
    code.leave(stop, load16(own, RESOURCE.held).isZero());
    const cell = held.mul(i32(MXFS_MODE_COUNT)).add(mode);
    const statement = i64(STATEMENT_BITS).shr(extend(cell)).and(i64(1n));
    code.if(wrap(statement), () => {
      this.#addTo16(code, own, RESOURCE.held, -1);
      this.#addTo16(code, count(mode), RESOURCE.held, 1);
      code.store8(lock, LOCK_BYTE.GRANTED, mode);
      code.store8(lock, LOCK_BYTE.MODE, mode);
      code.store8(lock, LOCK_BYTE.ALLOWED, i32(ALL_MODES));
      code.store32(lock, OWNED.seq, load32(message, LOCK_ENTRY.seq));
      code.store32(lock, OWNED.grantedSeq, load32(message, LOCK_ENTRY.seq));
      code.store32(work, BYTES * DESK_WORK.GAVE_UP, held);
      this.#count(code, COUNTER.statements);
      code.leave(done);
    });
    this.#leaveIfValued(code, message, stop);
    // Its own held mode does not stand in its way.
    this.#addTo16(code, own, RESOURCE.held, -1);
    code.if(this.#fits(resource, mode).isZero(), () => {
      this.#addTo16(code, own, RESOURCE.held, 1);
      code.leave(stop);
    });
    this.#unlinkGranted(code, resource, lock);
    this.#enqueueGranted(code, message, resource, lock, mode, held.or(i32(WAS_CONVERSION)));
    this.#count(code, COUNTER.converts);
  }

  /** `resource` is 0 then, if it was the last lock. */
  #release(code: Code, resource: Var<"i32">, link: I32, lock: I32, stop: Label): void {
    const own = code.let(resource.add(load8(lock, LOCK_BYTE.GRANTED).shl(i32(1))));
    const count = code.let(load16(resource, RESOURCE.lockCount));
    code.leave(stop, load32(resource, RESOURCE.value));
    code.leave(stop, load16(own, RESOURCE.held).isZero().or(count.isZero()));
    code.leave(stop, this.#keptFull(KIND.LOCK));
    code.if(
      count.eq(i32(1)),
      () => {
        code.leave(stop, this.#keptFull(KIND.RESOURCE));
        code.store32(link, BYTES * RES.NEXT, load32(resource, BYTES * RES.NEXT));
        this.#give(code, KIND.RESOURCE, resource, RESOURCE.generation);
        code.set(resource, i32(0));
      },
      () => {
        this.#addTo16(code, own, RESOURCE.held, -1);
        code.store16(resource, RESOURCE.lockCount, count.sub(i32(1)));
        this.#unlinkGranted(code, resource, lock);
      },
    );
    code.store8(lock, LOCK_BYTE.QUEUE, i32(QUEUE_FREE));
    this.#give(code, KIND.LOCK, lock, LOCK_BYTE.GENERATION);
    this.#add(code, COUNTER.releases, 1);
  }

  // ---- their parts ------------------------------------------------------------------------------------------

  /** Locks whose grants bring a value along. */
  #leaveIfValued(code: Code, message: I32, stop: Label): void {
    const client = load32(message, LOCK_ENTRY.lockId + 4).shr(i32(MXFS_LOCK_CLIENT_SHIFT - 32));
    const user = load32(message, LOCK_ENTRY.type).eq(i32(MXFS_RES_USER));
    code.leave(stop, user.and(client.eq(i32(MXFS_LOCK_CLIENT_CONTROL))));
  }

  /** Whether nothing that is held rules the mode out. */
  #fits(resource: I32, mode: I32): I32 {
    const mask = mode.mul(i32(BYTES * MASK_WORDS));
    const low = load64(resource, RESOURCE.held).and(load64(mask, BYTES * MASKS_AT));
    const high = load32(resource, RESOURCE.held + 8).and(load32(mask, BYTES * MASKS_AT + 8));
    return low.isZero().and(high.isZero());
  }

  #newResource(code: Code, message: I32, resource: I32, bucket: I32): void {
    for (let at = 0; at < KEY_BYTES; at += 8) {
      code.store64(resource, RESOURCE.key + at, load64(message, at));
    }
    // Everything behind the key up to the count of locks; that is a half, the other one the generation.
    for (let at = RESOURCE.key + KEY_BYTES; at < RESOURCE.lockCount; at += 8) {
      code.store64(resource, at, i64(0n));
    }
    code.store16(resource, RESOURCE.lockCount, i32(0));
    code.store32(resource, BYTES * RES.NEXT, load32(bucket));
    code.store32(bucket, 0, this.#handle(resource));
  }

  /** Behind the others in the granted queue, holding `mode`. @param before see LOCK_BYTE.FLAGS */
  #enqueueGranted(code: Code, message: I32, resource: I32, lock: I32, mode: I32, before: I32): void {
    const handle = code.let(this.#handle(lock));
    const head = code.let(this.#address(load32(resource, RESOURCE.granted)));
    code.if(
      head.isZero(),
      () => {
        code.store32(resource, RESOURCE.granted, handle);
        code.store32(lock, OWNED.prev, handle);
      },
      () => {
        const tail = code.let(load32(head, OWNED.prev));
        code.store32(this.#address(tail), OWNED.next, handle);
        code.store32(lock, OWNED.prev, tail);
        code.store32(head, OWNED.prev, handle);
      },
    );
    code.store32(lock, OWNED.next, i32(0));
    code.store32(lock, OWNED.seq, load32(message, LOCK_ENTRY.seq));
    code.store32(lock, OWNED.grantedSeq, load32(message, LOCK_ENTRY.seq));
    // QUEUE, GRANTED, MODE and FLAGS are one word.
    const word = mode.mul(i32(0x010100)).or(before.shl(i32(24)));
    code.store32(lock, LOCK_BYTE.QUEUE, word.or(i32(QUEUE.GRANTED)));
    code.store8(lock, LOCK_BYTE.ALLOWED, i32(ALL_MODES));
    this.#addTo16(code, code.let(resource.add(mode.shl(i32(1)))), RESOURCE.held, 1);
  }

  #unlinkGranted(code: Code, resource: I32, lock: I32): void {
    const head = code.let(this.#address(load32(resource, RESOURCE.granted)));
    const next = code.let(load32(lock, OWNED.next));
    const prev = code.let(load32(lock, OWNED.prev));
    code.if(
      lock.eq(head),
      () => {
        code.store32(resource, RESOURCE.granted, next);
        code.if(next, () => code.store32(this.#address(next), OWNED.prev, prev));
      },
      () => {
        code.store32(this.#address(prev), OWNED.next, next);
        code.store32(select(this.#address(next), head, next), OWNED.prev, prev);
      },
    );
  }

  #addTo16(code: Code, address: I32, offset: number, by: 1 | -1): void {
    code.store16(address, offset, load16(address, offset).add(i32(by)));
  }

  // ---- free records of this thread --------------------------------------------------------------------------

  #keptFull(kind: number): I32 {
    return this.#keptOf(KEPT_COUNT_AT + kind).ge(i32(2 * this.layout.batchCount));
  }

  /** The first free record, whose address is known, is in use from now on. */
  #take(code: Code, kind: number, record: I32): void {
    code.set(this.#keptOf(KEPT_HEAD_AT + kind), load32(record));
    this.#add(code, KEPT_COUNT_AT + kind, -1);
    this.#add(code, USED_AT + kind, 1);
  }

  #give(code: Code, kind: number, record: I32, generation: number): void {
    this.#addTo16(code, record, generation, 1);
    code.store32(record, 0, this.#keptOf(KEPT_HEAD_AT + kind));
    code.set(this.#keptOf(KEPT_HEAD_AT + kind), this.#handle(record));
    this.#add(code, KEPT_COUNT_AT + kind, 1);
    this.#add(code, USED_AT + kind, -1);
  }

  /** The request becomes its grant, and moves up behind the grant before it. */
  #tellGrant(code: Code, message: I32, index: I32, grants: Var<"i32">): void {
    const to = code.let(this.#message(grants));
    code.if(grants.ne(index), () => {
      for (let at = 0; at < MXFS_LOCK_ENTRY_SIZE; at += 8) code.store64(to, at, load64(message, at));
    });
    code.store32(to, MODES, load8(to, LOCK_ENTRY.mode).mul(i32(0x0101)));
    code.store32(to, LOCK_ENTRY.status, i32(0));
    code.set(grants, grants.add(i32(1)));
    this.#add(code, COUNTER.grants, 1);
  }
}

/**
 * Makes the short path run in this thread. The first one in a table leaves the program's bytes there for the others,
 * since writing it takes a hundred times as long as having it compiled a second time.
 * @throws RangeError when the program is larger than its place: a mistake in here.
 */
export function lockProgram(memory: SharedMemory, layout: TableLayout): LockProgram {
  const words = new Int32Array(memory.buffer);
  const place = new Uint8Array(memory.buffer, BYTES * PROGRAM_AT, BYTES * PROGRAM_WORDS);
  if (Atomics.load(words, CTL.PROGRAM_BYTES) === 0) {
    const bytes = Writer.program(layout);
    // Two threads at once write the same.
    place.set(bytes);
    Atomics.store(words, CTL.PROGRAM_BYTES, bytes.length);
  }
  const bytes = new Uint8Array(Atomics.load(words, CTL.PROGRAM_BYTES));
  bytes.set(place.subarray(0, bytes.length));
  return runOn(memory, bytes) as LockProgram;
}
