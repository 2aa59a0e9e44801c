// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proves that several threads can work on one lock table at once. Invariants, checked by the threads themselves:
 *   1. who holds EX on a resource is alone in its epoch: a shared word per resource names the owner;
 *   2. nothing is decided for an epoch once it is cleared;
 *   3. afterwards links and counts agree, and the table empties;
 *   4. a thread that dies with a stripe lock is an error for the others, and soon.
 * The thread's part is at the end of this file.
 */
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { COMMAND, LockEngine, RESULT } from "../../src/dlm/engine.js";
import { createSharedMemory, type SharedMemory } from "../../src/dlm/memory.js";
import { OUTCOME, Outbox } from "../../src/dlm/outbox.js";
import { LockTable, LockTableError } from "../../src/dlm/table.js";
import { LockMode } from "../../src/wire/abi.js";
import { decodeLockEntry } from "../../src/wire/lock_entry.js";
import { entryOf } from "../support/locks.js";
import { Random } from "../support/random.js";

const THIS_FILE = fileURLToPath(import.meta.url);
const THREADS = 3;
const INOS = 8;
const RUN_MS = 1500;

interface Job {
  readonly role: "hammer" | "die";
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

function start(job: Job): Promise<Report> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(THIS_FILE, { workerData: job });
    worker.once("message", (report: Report) => {
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
    () => second.locked(1, () => null),
    (error: unknown) => error instanceof LockTableError && error.code === "TABLE_BROKEN",
  );
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
  port.postMessage(hammer(engine, job));
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
