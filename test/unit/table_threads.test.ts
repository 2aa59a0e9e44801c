// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proves that several threads can work on one lock table at once. Invariants, checked by the threads themselves:
 *   1. who holds EX on a resource is alone in its epoch: a shared word per resource names the owner;
 *   2. nothing is decided for an epoch once it is cleared;
 *   3. afterwards links and counts agree, and the table empties;
 *   4. a thread that dies with a stripe lock is an error for the others, and soon;
 *   5. what several threads are told, some by the short path (WebAssembly) and some without it, fits together: a checker
 *      that knows only the log of what each asked and was answered, and when, finds no two incompatible modes held at
 *      once, and no refusal without somebody who may have been in the way.
 * The thread's part is at the end of this file.
 */
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { COMMAND, type Command, LockEngine, RESULT } from "../../src/dlm/engine.js";
import { createSharedMemory, type SharedMemory } from "../../src/dlm/memory.js";
import { OUTCOME, Outbox } from "../../src/dlm/outbox.js";
import { LockTable, LockTableError } from "../../src/dlm/table.js";
import { LockMode, MXFS_LKF_CONVERT, MXFS_LKF_NOQUEUE } from "../../src/wire/abi.js";
import { decodeLockEntry, encodeLockEntries } from "../../src/wire/lock_entry.js";
import { entryOf } from "../support/locks.js";
import { Random } from "../support/random.js";

const THIS_FILE = fileURLToPath(import.meta.url);
const THREADS = 3;
const INOS = 8;
const RUN_MS = 1500;
const HISTORY_ROUNDS = 600;
const BATCH_MAX = 12;
/** COMPATIBLE is what is to be proven: here is the matrix again, as the documents have it. */
const BESIDE = ["++++++", "+++++.", "+++...", "++.+..", "++....", "+....."];

interface Job {
  readonly role: "hammer" | "history" | "die";
  readonly table: SharedMemory;
  /** Word 0: stop. Word 1 + ino: epoch * 64 + thread of who holds EX on it. */
  readonly shared: SharedArrayBuffer;
  readonly seed: number;
}

interface Report {
  readonly rounds: number;
  readonly granted: number;
  readonly stale: number;
  readonly flaws: readonly string[];
}

/** One thread's log: what it was told of one lock. Times are tickets that all threads draw from one counter. */
interface Told {
  readonly ino: number;
  /** The lock: of one thread, never used again. */
  readonly id: number;
  readonly mode: number;
  /** Before it asked, after it was answered. */
  readonly asked: number;
  readonly answered: number;
  readonly what: "granted" | "refused" | "given up";
}
interface History {
  readonly told: readonly Told[];
  readonly flaws: readonly string[];
}

function start<T = Report>(job: Job): Promise<T> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(THIS_FILE, { workerData: job });
    worker.once("message", (report: T) => {
      resolve(report);
    });
    worker.once("error", reject);
  });
}

const later = (ms: number): Promise<void> =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
  });

test("threads that hammer one table never hold EX together, through view changes, and leave it whole", async () => {
  const engine = LockEngine.create(1, { resourceCountMax: 16, lockCountMax: 64 });
  const out = new Outbox();
  engine.freezeAndClear(1n, [1]);
  engine.resume(1n, out);
  const shared = new SharedArrayBuffer(4 * (1 + INOS));
  const words = new Int32Array(shared);
  const threads = Array.from({ length: THREADS }, (_, index) =>
    start({ role: "hammer", table: engine.memory, shared, seed: index + 1 }),
  );
  const until = performance.now() + RUN_MS;
  let epoch = 1n;
  try {
    while (performance.now() < until) {
      await later(30);
      epoch++;
      engine.freezeAndClear(epoch, [1]);
      // Requests of the new epoch may be queued by now, but nothing may be granted.
      const granted = [...engine.dump()].filter((lock) => lock.queue !== "wait");
      assert.equal(granted, [], "a decision landed behind the clearing");
      engine.resume(epoch, out);
      out.clear();
    }
  } finally {
    Atomics.store(words, 0, 1);
  }
  const reports = await Promise.all(threads);
  for (const report of reports) {
    assert.equal(report.flaws, []);
    assert.ok(report.granted > 100, `a thread was granted only ${report.granted} of ${report.rounds}`);
  }
  assert.ok(
    reports.some((report) => report.stale > 0),
    "no thread ever met a view change",
  );
  for (let stripe = 0; stripe < engine.table.stripeCount; stripe++) {
    engine.table.locked(stripe, () => {
      engine.table.checkStripe(stripe);
    });
  }
  engine.freezeAndClear(epoch + 1n, [1]);
  assert.is(engine.table.locksUsed, 0);
  assert.is(engine.table.resourcesUsed, 0);
});

test("the history of threads on both paths fits together", async () => {
  const engine = LockEngine.create(1, { resourceCountMax: 1024, lockCountMax: 4096 });
  engine.freezeAndClear(1n, [1]);
  engine.resume(1n, new Outbox());
  const shared = new SharedArrayBuffer(4 * (1 + INOS));
  const histories = await Promise.all(
    Array.from({ length: THREADS + 1 }, (_, index) =>
      start<History>({ role: "history", table: engine.memory, shared, seed: index + 1 }),
    ),
  );
  assert.equal(
    histories.flatMap(({ flaws }) => flaws),
    [],
  );
  const told = histories.flatMap(({ told: its }) => its);
  assert.equal(flawsOf(told), []);
  const count = (what: Told["what"]): number => told.filter((each) => each.what === what).length;
  assert.ok(count("granted") > 2000 && count("refused") > 200, "the threads do not get in each other's way");
  const { short, requests, converts, statements, releases } = engine.counters;
  const all = requests + converts + statements + releases;
  assert.ok(short > all / 20 && short < (all * 19) / 20, `${short} of ${all} went the short way`);
  assert.is(engine.table.locksUsed, 0);
  assert.is(engine.table.resourcesUsed, 0);
  for (let stripe = 0; stripe < engine.table.stripeCount; stripe++) {
    engine.table.locked(stripe, () => engine.table.checkStripe(stripe));
  }
});

test("the checker of histories finds what must not be", () => {
  const granted = { ino: 1, mode: 5, what: "granted" } as const;
  const gone = { ino: 1, mode: 5, what: "given up" } as const;
  const two: Told[] = [
    { ...granted, id: 1, asked: 1, answered: 2 },
    { ...granted, id: 2, asked: 3, answered: 4 },
    { ...gone, id: 1, asked: 5, answered: 6 },
    { ...gone, id: 2, asked: 7, answered: 8 },
  ];
  assert.is(flawsOf(two).length, 1);
  assert.equal(flawsOf([{ ...two[0], mode: 3 } as Told, { ...two[2], mode: 3 } as Told]), []);
  const refused = { ino: 1, id: 3, mode: 3, what: "refused" } as const;
  assert.equal(flawsOf([two[0] as Told, { ...refused, asked: 3, answered: 4 }, two[2] as Told]), []);
  assert.is(flawsOf([{ ...refused, asked: 9, answered: 10 }, two[0] as Told, two[2] as Told]).length, 1);
});

test("a stripe lock whose owner is known to be dead is an error at once, not a hang", async () => {
  const engine = LockEngine.create(1, { resourceCountMax: 16, lockCountMax: 64 });
  engine.freezeAndClear(1n, [1]);
  engine.resume(1n, new Outbox());
  const shared = new SharedArrayBuffer(8);
  const words = new Int32Array(shared);
  const worker = new Worker(THIS_FILE, {
    workerData: { role: "die", table: engine.memory, shared, seed: 0 },
  });
  const ended = new Promise((resolve) => {
    worker.once("exit", resolve);
  });
  await ended;
  const dead = Atomics.load(words, 1);
  assert.ok(dead > 0);
  engine.table.markThreadDead(dead);
  const started = performance.now();
  assert.throws(
    () => {
      for (let stripe = 0; stripe < engine.table.stripeCount; stripe++)
        engine.table.locked(stripe, () => null);
    },
    (error: unknown) =>
      error instanceof LockTableError &&
      error.code === "TABLE_STALLED" &&
      error.message.includes(`thread ${dead}`),
  );
  assert.ok(performance.now() - started < 2000);
});

test("an operation that fails half-way breaks the table for everybody", () => {
  const table = LockTable.create({ resourceCountMax: 4, lockCountMax: 4 });
  const second = LockTable.attach(table.memory);
  assert.throws(
    () =>
      table.locked(0, () => {
        throw new Error("half-way");
      }),
    /half-way/,
  );
  assert.throws(
    () => second.locked(0, () => null),
    (error: unknown) => error instanceof LockTableError && error.code === "TABLE_BROKEN",
  );
});

test("a view change does not pass a stripe that somebody is in", () => {
  const engine = LockEngine.create(1, { resourceCountMax: 1024, lockCountMax: 1024 });
  const other = LockTable.attach(engine.memory);
  const last = engine.table.stripeCount - 1;
  engine.freezeAndClear(1n, [1]);
  engine.resume(1n, new Outbox());
  other.lockStripe(last);
  engine.table.markThreadDead(other.thread);
  assert.throws(
    () => engine.freezeAndClear(2n, [1]),
    (error: unknown) => error instanceof LockTableError && error.code === "TABLE_STALLED",
  );
});

test("what goes through the whole table finds the stripes where something is, and only those", () => {
  const engine = LockEngine.create(1, { resourceCountMax: 4096, lockCountMax: 4096 });
  const { table } = engine;
  const out = new Outbox();
  const busy = (): number[] => {
    const found: number[] = [];
    for (let at = table.nextBusy(0); at < table.stripeCount; at = table.nextBusy(at + 1)) found.push(at);
    return found;
  };
  engine.freezeAndClear(1n, [1]);
  engine.resume(1n, out);
  assert.equal(busy(), []);
  for (let ino = 0; ino < 20; ino++) {
    engine.submitEntry(COMMAND.REQUEST, entryOf({ ino: BigInt(ino), lockId: BigInt(ino + 1) }), 1, out);
  }
  const full: number[] = [];
  for (let stripe = 0; stripe < table.stripeCount; stripe++) {
    let count = 0;
    table.locked(stripe, () => table.forEachResource(stripe, () => count++));
    if (count > 0) full.push(stripe);
  }
  assert.ok(full.length > 10);
  assert.equal(busy(), full);
  const other = LockTable.attach(engine.memory);
  const free = Array.from({ length: table.stripeCount }, (_, at) => at).find((at) => !full.includes(at)) ?? 0;
  other.lockStripe(free);
  assert.equal(
    busy(),
    [...full, free].sort((a, b) => a - b),
  );
  other.unlockStripe(free);
  assert.is(engine.purgeNode(1, out), 20);
  assert.equal(busy(), []);
});

test("strange memory is refused, and so are more threads than the lock words can name", () => {
  const isCode = (code: string) => (error: unknown) => error instanceof LockTableError && error.code === code;
  assert.throws(() => LockTable.attach(createSharedMemory(1, 1)), isCode("TABLE_FOREIGN"));
  const table = LockTable.create({ resourceCountMax: 1, lockCountMax: 1 });
  for (let thread = 2; thread <= 30; thread++) LockTable.attach(table.memory);
  assert.throws(() => LockTable.attach(table.memory), isCode("TABLE_LIMIT"));
  assert.throws(() => LockTable.create({ resourceCountMax: 0, lockCountMax: 1 }), RangeError);
});

if (isMainThread) test.run();
else if (parentPort !== null) work(workerData as Job, parentPort);

// ---- in the threads -----------------------------------------------------------------------------------------

function work(job: Job, port: NonNullable<typeof parentPort>): void {
  const engine = LockEngine.attach(job.table);
  if (job.role === "die") {
    Atomics.store(new Int32Array(job.shared), 1, engine.table.thread);
    for (let stripe = 0; stripe < engine.table.stripeCount; stripe++) engine.table.lockStripe(stripe);
    process.exit(0);
  }
  port.postMessage(job.role === "history" ? history(job) : hammer(engine, job));
}

// ---- histories ----------------------------------------------------------------------------------------------

/** From when to when a lock may have been held in a mode, and from when to when it must have been. */
interface Hold {
  readonly id: number;
  readonly mode: number;
  readonly mayFrom: number;
  readonly mustFrom: number;
  mustTo: number;
  mayTo: number;
}

/** What does not fit together, at most a few of them. */
function flawsOf(told: readonly Told[]): string[] {
  const flaws: string[] = [];
  for (const ino of new Set(told.map((each) => each.ino))) {
    const here = told.filter((each) => each.ino === ino).sort((a, b) => a.asked - b.asked);
    const holds: Hold[] = [];
    const last = new Map<number, Hold>();
    for (const { id, mode, asked, answered, what } of here) {
      const before = last.get(id);
      if (before !== undefined && what !== "refused") {
        before.mustTo = asked;
        before.mayTo = answered;
        last.delete(id);
      }
      if (what === "granted") {
        const never = Number.POSITIVE_INFINITY;
        const hold = { id, mode, mayFrom: asked, mustFrom: answered, mustTo: never, mayTo: never };
        holds.push(hold);
        last.set(id, hold);
      }
    }
    const beside = (a: number, b: number): boolean => BESIDE[a]?.[b] === "+";
    holds.sort((a, b) => a.mustFrom - b.mustFrom);
    // Those whose must-times meet: only neighbours in time can.
    let open: Hold[] = [];
    for (const hold of holds) {
      open = open.filter((other) => other.mustTo > hold.mustFrom);
      for (const other of open) {
        if (!beside(other.mode, hold.mode)) {
          flaws.push(
            `inode ${ino}: locks ${other.id} and ${hold.id} held in modes ${other.mode} and ${hold.mode}`,
          );
        }
      }
      open.push(hold);
    }
    for (const { id, mode, asked, answered, what } of here) {
      if (what !== "refused") continue;
      const excused = holds.some(
        (other) =>
          other.id !== id && !beside(other.mode, mode) && other.mayFrom < answered && other.mayTo > asked,
      );
      if (!excused)
        flaws.push(`inode ${ino}: lock ${id} was refused mode ${mode}, and nobody was in its way`);
    }
    if (flaws.length > 5) break;
  }
  return flaws;
}

/** Asks for a batch of locks without queueing, converts some, gives them up. Every other thread goes the long way. */
function history(job: Job): History {
  const engine = LockEngine.attach(job.table, {
    shortPathAfter: job.seed % 2 === 0 ? 0 : Number.POSITIVE_INFINITY,
  });
  const clock = new Int32Array(job.shared);
  const random = new Random(job.seed);
  const out = new Outbox();
  const told: Told[] = [];
  const flaws: string[] = [];
  let nextId = job.seed << 24;
  interface Wish {
    readonly ino: number;
    readonly id: number;
    mode: number;
  }
  /** All in one batch. @returns the ids that were granted, and those refused. */
  const send = (command: Command, wishes: readonly Wish[], flags: number): Set<number>[] => {
    const entries = wishes.map(({ ino, id, mode }) =>
      entryOf({ ino: BigInt(ino), lockId: BigInt(id), mode, flags, seq: ++seq }),
    );
    engine.submitAll(command, encodeLockEntries(entries), 1, out);
    const [granted, refused] = [new Set<number>(), new Set<number>()];
    for (let index = 0; index < out.count; index++) {
      const { lockId } = decodeLockEntry(out.entry(index), 0);
      (out.type(index) === OUTCOME.GRANT ? granted : refused).add(Number(lockId));
    }
    out.clear();
    return [granted, refused];
  };
  let seq = 0;
  for (let round = 0; round < HISTORY_ROUNDS; round++) {
    const wishes = Array.from({ length: 1 + random.below(BATCH_MAX) }, () => ({
      ino: random.below(INOS),
      id: nextId++,
      mode: random.pick([1, 2, 3, 3, 3, 4, 5]),
    }));
    let asked = Atomics.add(clock, 0, 1);
    const [granted = new Set(), refused = new Set()] = send(COMMAND.REQUEST, wishes, MXFS_LKF_NOQUEUE);
    let answered = Atomics.add(clock, 0, 1);
    if (granted.size + refused.size !== wishes.length)
      flaws.push(`round ${round}: not every request was answered`);
    for (const wish of wishes) {
      const what = granted.has(wish.id) ? "granted" : "refused";
      told.push({ ...wish, asked, answered, what });
    }
    const held = wishes.filter(({ id }) => granted.has(id));
    const changed = held
      .filter(() => random.chance(40))
      .map((wish) => ({ ...wish, mode: random.pick([0, 1, 3, 5]) }));
    asked = Atomics.add(clock, 0, 1);
    const [, kept = new Set()] = send(COMMAND.CONVERT, changed, MXFS_LKF_CONVERT | MXFS_LKF_NOQUEUE);
    answered = Atomics.add(clock, 0, 1);
    for (const wish of changed) {
      told.push({ ...wish, asked, answered, what: kept.has(wish.id) ? "refused" : "granted" });
    }
    asked = Atomics.add(clock, 0, 1);
    const [late = new Set()] = send(COMMAND.RELEASE, held, 0);
    if (late.size > 0) flaws.push(`round ${round}: a release was answered`);
    answered = Atomics.add(clock, 0, 1);
    for (const wish of held) told.push({ ...wish, asked, answered, what: "given up" });
  }
  return { told, flaws };
}

/** Asks for EX without queueing, marks itself owner, and lets go, as fast as it can. */
function hammer(engine: LockEngine, job: Job): Report {
  const words = new Int32Array(job.shared);
  const random = new Random(job.seed);
  const out = new Outbox();
  const flaws: string[] = [];
  let [rounds, granted, stale] = [0, 0, 0];
  // Ids never come twice, whichever thread made them.
  let nextId = BigInt(job.seed) << 40n;
  while (Atomics.load(words, 0) === 0 && flaws.length < 5) {
    rounds++;
    const epoch = engine.epoch;
    const ino = random.below(INOS);
    const entry = entryOf({
      ino: BigInt(ino),
      epoch,
      lockId: nextId++,
      mode: LockMode.EX,
      flags: 1,
      node: 1,
    });
    const asked = engine.submitEntry(COMMAND.REQUEST, entry, 1, out);
    if (asked === RESULT.STALE || asked === RESULT.FROZEN) {
      stale++;
      continue;
    }
    if (asked === RESULT.QUEUED) {
      // Only during a rebuild; the resume answers it elsewhere, or the next clearing forgets it.
      engine.submitEntry(COMMAND.RELEASE, entry, 1, out);
      out.clear();
      continue;
    }
    if (asked !== RESULT.DECIDED || out.count !== 1) flaws.push(`result ${asked}, ${out.count} outcomes`);
    const answer = decodeLockEntry(out.entry(0), 0);
    const type = out.type(0);
    out.clear();
    if (answer.lockId !== entry.lockId || answer.epoch !== epoch) flaws.push("somebody else's answer");
    if (type !== OUTCOME.GRANT) continue;
    granted++;
    const mark = Number(epoch) * 64 + engine.table.thread;
    const other = takeOver(words, 1 + ino, mark);
    if (other !== null) flaws.push(`threads ${other % 64} and ${engine.table.thread} hold EX on ${ino}`);
    Atomics.compareExchange(words, 1 + ino, mark, 0);
    engine.submitEntry(COMMAND.RELEASE, entry, 1, out);
    for (let index = 0; index < out.count; index++) {
      const { lockId } = decodeLockEntry(out.entry(index), 0);
      if (lockId === entry.lockId) flaws.push("a release was answered");
    }
    out.clear();
  }
  return { rounds, granted, stale, flaws };
}

/** Marks a resource as owned in the mark's epoch. @returns the mark of another owner in the same epoch, or null. */
function takeOver(words: Int32Array, at: number, mark: number): number | null {
  for (;;) {
    const old = Atomics.load(words, at);
    if (Math.floor(old / 64) === Math.floor(mark / 64)) return old;
    // An owner of a later epoch: this thread's own lock is void already.
    if (old > mark || Atomics.compareExchange(words, at, old, mark) === old) return null;
  }
}
