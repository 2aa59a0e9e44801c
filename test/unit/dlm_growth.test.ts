// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proves that the lock table grows to a million resources within 128 bytes a lock, in front of other threads, and
 * what it does when it may not grow. The thread's part is at the end of this file.
 */
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { COMMAND, LockEngine, RESULT } from "../../src/dlm/engine.js";
import { KIND } from "../../src/dlm/layout.js";
import type { SharedMemory } from "../../src/dlm/memory.js";
import { OUTCOME, Outbox } from "../../src/dlm/outbox.js";
import { LockTable } from "../../src/dlm/table.js";
import { LockMode, MXFS_LOCK_ENTRY_SIZE } from "../../src/wire/abi.js";
import { encodeLockEntries, LOCK_ENTRY } from "../../src/wire/lock_entry.js";
import { entryOf } from "../support/locks.js";

const THIS_FILE = fileURLToPath(import.meta.url);
const BATCH = 1000;

function serving(resourceCountMax: number, lockCountMax: number, memoryBytesMax?: number): LockEngine {
  const engine = LockEngine.create(1, {
    resourceCountMax,
    lockCountMax,
    ...(memoryBytesMax === undefined ? {} : { memoryBytesMax }),
  });
  engine.freezeAndClear(1n, [1]);
  engine.resume(1n, new Outbox());
  return engine;
}

/** Sends one command for each of `count` inodes from `first` on. @returns how many were granted. */
function each(
  engine: LockEngine,
  command: typeof COMMAND.REQUEST | typeof COMMAND.RELEASE,
  first: number,
  count: number,
): number {
  const batch = encodeLockEntries(
    Array.from({ length: BATCH }, () => entryOf({ mode: LockMode.PR, epoch: engine.epoch })),
  );
  const view = new DataView(batch.buffer);
  const out = new Outbox();
  let granted = 0;
  for (let from = first; from < first + count; from += BATCH) {
    const size = Math.min(BATCH, first + count - from);
    for (let index = 0; index < size; index++) {
      view.setBigUint64(index * MXFS_LOCK_ENTRY_SIZE + LOCK_ENTRY.ino, BigInt(from + index), true);
      view.setBigUint64(index * MXFS_LOCK_ENTRY_SIZE + LOCK_ENTRY.lockId, BigInt(from + index), true);
    }
    engine.submitAll(command, batch.subarray(0, size * MXFS_LOCK_ENTRY_SIZE), 1, out);
    for (let index = 0; index < out.count; index++) if (out.type(index) === OUTCOME.GRANT) granted++;
    out.clear();
  }
  return granted;
}

function inThread(memory: SharedMemory, first: number, count: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(THIS_FILE, { workerData: { memory, first, count } });
    worker.once("message", resolve);
    worker.once("error", reject);
  });
}

test("a million resources are resident within 128 bytes a lock, and each can be found and let go", () => {
  const count = 1_000_000;
  const engine = serving(count, count);
  assert.ok(engine.table.memoryBytes < 8 << 20, "an empty table is small");
  assert.is(each(engine, COMMAND.REQUEST, 1, count), count);
  assert.is(engine.table.locksUsed, count);
  assert.is(engine.table.resourcesUsed, count);
  const bytes = engine.table.memoryBytes / count;
  assert.ok(bytes <= 128, `${bytes} bytes a resident lock, of the whole shared memory`);
  assert.is(engine.table.memory.buffer.byteLength, engine.table.memoryBytes);
  const found = engine.dumpPage({ resource: entryOf({ ino: 765_432n }) }, 0, 10).locks;
  assert.equal(
    found.map((lock) => [lock.ino, lock.lockId]),
    [[765_432n, 765_432n]],
  );
  each(engine, COMMAND.RELEASE, 1, count);
  assert.is(engine.table.locksUsed, 0);
  assert.is(engine.table.resourcesUsed, 0);
});

test("the table grows in front of threads that attached when it was small, and they find each other's locks", async () => {
  const share = 60_000;
  const engine = serving(200_000, 200_000);
  const small = engine.table.memoryBytes;
  const threads = [1, 2].map((part) => inThread(engine.memory, part * share, share));
  assert.is(each(engine, COMMAND.REQUEST, 0, share), share);
  assert.equal(await Promise.all(threads), [share, share]);
  assert.ok(engine.table.memoryBytes > small);
  assert.is(engine.table.locksUsed, 3 * share);
  // This thread lets go what the others took.
  each(engine, COMMAND.RELEASE, 0, 3 * share);
  assert.is(engine.table.resourcesUsed, 0);
  for (let stripe = 0; stripe < engine.table.stripeCount; stripe++) {
    engine.table.locked(stripe, () => engine.table.checkStripe(stripe));
  }
});

test("when memory for more is refused, requests are denied with ENOLCK, counted and explained, and nothing is lost", () => {
  const engine = serving(1 << 20, 1 << 20, 12 << 20);
  const granted = each(engine, COMMAND.REQUEST, 1, 200_000);
  assert.ok(granted > 30_000 && granted < 100_000, `${granted} fitted`);
  const { full, memoryRefused } = engine.counters;
  assert.is(full, 200_000 - granted);
  assert.ok(memoryRefused > 0);
  assert.match(engine.table.refusal ?? "", /no memory for more than \d+ bytes of locks/);
  const out = new Outbox();
  const refused = engine.submitEntry(COMMAND.REQUEST, entryOf({ ino: 999_999n, mode: 3 }), 1, out);
  assert.is(refused, RESULT.DECIDED);
  assert.is(out.type(0), OUTCOME.DENY);
  assert.is(new DataView(out.entry(0).slice().buffer).getUint32(LOCK_ENTRY.status, true), 37);
  assert.is(engine.table.locksUsed, granted);
  // Room that is given back is used again.
  each(engine, COMMAND.RELEASE, 1, 1000);
  assert.is(each(engine, COMMAND.REQUEST, 500_000, 1000), 1000);
});

test("a view change gives every record back at once, and the next view uses the same memory", () => {
  const engine = serving(100_000, 100_000);
  for (let epoch = 2n; epoch < 6n; epoch++) {
    assert.is(each(engine, COMMAND.REQUEST, 1, 100_000), 100_000);
    const bytes = engine.table.memoryBytes;
    engine.freezeAndClear(epoch, [1]);
    assert.is(engine.table.locksUsed, 0);
    engine.resume(epoch, new Outbox());
    assert.is(each(engine, COMMAND.REQUEST, 1, 10), 10);
    each(engine, COMMAND.RELEASE, 1, 10);
    assert.is(engine.table.memoryBytes, bytes);
  }
});

test("a dump comes in pages that together show every lock once", () => {
  const engine = serving(5000, 5000);
  each(engine, COMMAND.REQUEST, 1, 5000);
  const seen = new Set<bigint>();
  let pages = 0;
  for (let cursor: number | null = 0; cursor !== null; pages++) {
    const page = engine.dumpPage({}, cursor, 100);
    assert.ok(page.locks.length < 200);
    for (const lock of page.locks) seen.add(lock.lockId);
    cursor = page.next;
  }
  assert.ok(pages > 25);
  assert.is(seen.size, 5000);
});

test("one resource holds 65,535 locks, and no more", () => {
  const table = LockTable.create({ resourceCountMax: 4, lockCountMax: 70_000 });
  assert.ok(table.reserve(KIND.RESOURCE));
  const resource = table.addResource(0, new Int32Array(8));
  let count = 0;
  while (table.reserve(KIND.LOCK) && table.addLock(resource, 1, count, 0) !== 0) count++;
  assert.is(count, 65_535);
  assert.match(table.refusal ?? "", /65535 locks/);
});

if (isMainThread) test.run();
else if (parentPort !== null) {
  const job = workerData as { memory: SharedMemory; first: number; count: number };
  parentPort.postMessage(each(LockEngine.attach(job.memory), COMMAND.REQUEST, job.first, job.count));
}
