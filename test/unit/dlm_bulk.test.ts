// SPDX-License-Identifier: GPL-2.0-only
/** Proves that the bulk pool wakes, purges and dumps a table as one thread would, while others work on it. */
import { fileURLToPath } from "node:url";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { COMMAND, LockEngine } from "../../src/dlm/engine.js";
import { Outbox } from "../../src/dlm/outbox.js";
import { LockMode, MXFS_LKF_WAITING, WireType } from "../../src/wire/abi.js";
import { decodeLockEntries } from "../../src/wire/lock_entry.js";
import { BulkLocks, type BulkOptions } from "../../src/workers/bulk.js";
import { LockDispatch } from "../../src/workers/dispatch.js";
import { NodeWords } from "../../src/workers/protocol.js";
import { entryOf } from "../support/locks.js";

const TASK_FILE = fileURLToPath(new URL("../../src/workers/bulk_task.js", import.meta.url));
const RESOURCES = 20_000;
const warnings: string[] = [];

interface Bed {
  readonly engine: LockEngine;
  readonly bulk: BulkLocks;
  readonly dispatch: LockDispatch;
  /** Ids granted to node 2's locks. */
  readonly granted: bigint[];
}

function bed(locksMin: number, load?: BulkOptions["load"]): Bed {
  const engine = LockEngine.create(1, { resourceCountMax: 1 << 16, lockCountMax: 1 << 17 });
  engine.freezeAndClear(1n, [1, 2]);
  const granted: bigint[] = [];
  const dispatch = new LockDispatch({
    self: 1,
    words: new NodeWords(new SharedArrayBuffer(NodeWords.BYTES)),
    kernel: null,
    toRecords: null,
    sendFrames: (frames) => {
      for (const { node, type, body } of frames) {
        assert.is(node, 2);
        if (type !== WireType.LOCK_GRANT) continue;
        for (const entry of decodeLockEntries(body, 256)) granted.push(entry.lockId);
      }
    },
    toControl: () => assert.unreachable("no control client asked"),
    log: () => undefined,
  });
  const bulk = new BulkLocks(engine, {
    locksMin,
    taskFile: TASK_FILE,
    ...(load === undefined ? {} : { load }),
    warn: (text) => warnings.push(text),
    fatal: (error) => {
      throw error;
    },
  });
  return { engine, bulk, dispatch, granted };
}

/** Node 1 holds every resource that is mastered here, node 2 waits for each; of every third, nobody holds it. */
function fill({ engine }: Bed): { held: number; free: number } {
  const out = new Outbox();
  let [held, free] = [0, 0];
  for (let ino = 1n; ino <= BigInt(RESOURCES); ino++) {
    if (engine.masterOf(entryOf({ ino })) !== 1) continue;
    const epoch = engine.epoch;
    if (ino % 3n !== 0n) {
      held++;
      engine.submitEntry(
        COMMAND.RECLAIM,
        entryOf({ ino, epoch, lockId: ino, granted: LockMode.EX, mode: LockMode.EX }),
        1,
        out,
      );
    } else free++;
    const waiting = { lockId: ino, node: 2, mode: LockMode.EX, flags: MXFS_LKF_WAITING };
    engine.submitEntry(COMMAND.RECLAIM, entryOf({ ino, epoch, ...waiting }), 2, out);
  }
  assert.is(out.count, 0);
  return { held, free };
}

for (const locksMin of [1, 1 << 30]) {
  const who = locksMin === 1 ? "the pool" : "this thread";

  test(`${who} grants at a resume what nobody holds, and at a purge what the dead node held, each once`, async () => {
    const it = bed(locksMin);
    const { held, free } = fill(it);
    await it.bulk.resume(1n, it.dispatch);
    assert.is(it.granted.length, free);
    assert.is(await it.bulk.purge(1, it.dispatch), held);
    assert.is(it.granted.length, free + held);
    assert.is(new Set(it.granted).size, free + held);
    assert.is(it.engine.table.locksUsed, free + held);
    for (let stripe = 0; stripe < it.engine.table.stripeCount; stripe++) {
      it.engine.table.locked(stripe, () => it.engine.table.checkStripe(stripe));
    }
    assert.is(it.bulk.jobs > 0, locksMin === 1);
    await it.bulk.close();
  });

  test(`${who} dumps every lock once, in pages`, async () => {
    const it = bed(locksMin);
    const { held, free } = fill(it);
    const seen = new Set<string>();
    let pages = 0;
    for (let after: number | null = 0; after !== null; pages++) {
      const page = await it.bulk.dumpPage({}, after, 500);
      for (const lock of page.locks) seen.add(`${lock.node}:${lock.lockId}`);
      after = page.next;
    }
    assert.is(seen.size, 2 * held + free);
    assert.ok(pages > 10);
    await it.bulk.close();
  });
}

test("a view change that comes while the pool wakes the old view ends that work, and nothing of it is decided", async () => {
  const it = bed(1);
  fill(it);
  const woken = it.bulk.resume(1n, it.dispatch);
  it.engine.freezeAndClear(2n, [1, 2]);
  await woken;
  assert.is(it.engine.table.locksUsed, 0);
  const { free } = fill(it);
  it.granted.length = 0;
  await it.bulk.resume(2n, it.dispatch);
  assert.is(it.granted.length, free);
  await it.bulk.close();
});

test("this thread can decide while the pool wakes the table", async () => {
  const it = bed(1);
  const { free } = fill(it);
  const woken = it.bulk.resume(1n, it.dispatch);
  const out = new Outbox();
  let granted = 0;
  for (let ino = BigInt(RESOURCES) + 1n; ino < BigInt(RESOURCES) + 5000n; ino++) {
    if (it.engine.masterOf(entryOf({ ino })) !== 1) continue;
    it.engine.submitEntry(COMMAND.REQUEST, entryOf({ ino, lockId: ino, mode: LockMode.EX }), 1, out);
    granted += out.count;
    out.clear();
  }
  assert.ok(granted > 1000);
  await woken;
  assert.is(it.granted.length, free);
  await it.bulk.close();
});

test("without piscina the same work is done in this thread, after a warning", async () => {
  const it = bed(1, () => Promise.reject(new Error("not there")));
  const { held, free } = fill(it);
  await it.bulk.resume(1n, it.dispatch);
  assert.is(it.granted.length, free);
  assert.is(await it.bulk.purge(1, it.dispatch), held);
  assert.is(it.granted.length, free + held);
  assert.is((await it.bulk.dumpPage({}, 0, 10)).locks.length >= 10, true);
  assert.is(it.bulk.jobs, 0);
  assert.equal(warnings.length, 1);
  assert.match(warnings[0] ?? "", /not there/);
});

test.run();
