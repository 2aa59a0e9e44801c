// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proves the ring between threads: every message once, in each sender's order, however it wraps; full and closed
 * are said, not lost. The threads' part is at the end of this file.
 */
import { fileURLToPath } from "node:url";
import { isMainThread, Worker, workerData } from "node:worker_threads";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { Ring, RingError } from "../../src/workers/ring.js";
import { codeOfError } from "../support/code_of.js";
import { Random } from "../support/random.js";

const THIS_FILE = fileURLToPath(import.meta.url);
const COUNT = 5000;

interface Job {
  readonly ring: SharedArrayBuffer;
  readonly sender: number;
}

const codeOf = codeOfError(RingError, "accepted");

const NOTHING = new Uint8Array(0);

/** A message that can be checked: its own number, and bytes that follow from it. */
function payload(sender: number, index: number): Uint8Array {
  const random = new Random(sender * 1_000_003 + index);
  return random.bytes(random.below(90));
}

test("messages come out as they went in, through many wraps and all sizes", () => {
  const ring = Ring.create(1024);
  const random = new Random(1);
  const expected: [number, number, number, number[]][] = [];
  let taken = 0;
  for (let step = 0; step < 4000; step++) {
    if (random.chance(60)) {
      const bytes = random.bytes(random.below(ring.messageMax + 1));
      const [tag, a, b] = [random.u32(), random.u32(), random.u32()];
      if (ring.trySend(tag, a, b, bytes)) expected.push([tag, a, b, [...bytes]]);
    } else {
      taken += ring.receive(1 + random.below(4), (tag, a, b, bytes) => {
        assert.equal([tag, a, b, [...bytes]], expected.shift());
      });
    }
  }
  assert.ok(taken > 500, `only ${taken} messages`);
  assert.is(ring.sent, taken + expected.length);
});

test("a full ring says so at once, or after the time given, and nothing is lost", () => {
  const ring = Ring.create(64);
  const bytes = new Uint8Array(16);
  assert.is(ring.trySend(1, 0, 0, bytes), true);
  assert.is(ring.trySend(2, 0, 0, bytes), true);
  assert.is(ring.trySend(3, 0, 0, NOTHING), false);
  const started = performance.now();
  assert.is(
    codeOf(() => ring.send(3, 0, 0, NOTHING, 30)),
    "RING_FULL",
  );
  assert.ok(performance.now() - started >= 25);
  assert.is(ring.fullCount, 1);
  const tags: number[] = [];
  ring.receive(9, (tag) => tags.push(tag));
  assert.equal(tags, [1, 2]);
  assert.is(ring.used, 0);
  ring.send(4, 0, 0, NOTHING, 0);
});

test("a message larger than half of the ring is refused, the largest one fits wherever the tail is", () => {
  const ring = Ring.create(128);
  assert.is(
    codeOf(() => ring.trySend(1, 0, 0, new Uint8Array(ring.messageMax + 1))),
    "RING_TOO_LARGE",
  );
  for (let round = 0; round < 20; round++) {
    assert.is(ring.trySend(1, 0, 0, new Uint8Array(ring.messageMax)), true);
    assert.is(
      ring.receive(1, () => null),
      1,
    );
    assert.is(ring.trySend(2, 0, 0, NOTHING), true);
    assert.is(
      ring.receive(1, () => null),
      1,
    );
  }
});

test("a message whose receiver throws counts as taken, the ones behind it stay", () => {
  const ring = Ring.create(256);
  for (const tag of [1, 2, 3]) ring.trySend(tag, 0, 0, NOTHING);
  assert.throws(
    () =>
      ring.receive(9, (tag) => {
        if (tag === 2) throw new Error("receiver");
      }),
    /receiver/,
  );
  const tags: number[] = [];
  ring.receive(9, (tag) => tags.push(tag));
  assert.equal(tags, [3]);
});

test("a closed ring takes nothing more, and gives what it has before it says that it is over", async () => {
  const ring = Ring.create(256);
  ring.trySend(1, 0, 0, NOTHING);
  ring.close();
  assert.is(
    codeOf(() => ring.trySend(2, 0, 0, NOTHING)),
    "RING_CLOSED",
  );
  assert.is(ring.wait(1000), true);
  const tags: number[] = [];
  await ring.consume(10, (tag) => tags.push(tag));
  assert.equal(tags, [1]);
  assert.is(ring.wait(1000), false);
  assert.is(await ring.readable(), false);
});

test("waiting without a message ends with the time given", () => {
  const ring = Ring.create(64);
  const started = performance.now();
  assert.is(ring.wait(30), false);
  assert.ok(performance.now() - started >= 25);
});

test("strange memory and impossible sizes are refused", () => {
  assert.is(
    codeOf(() => Ring.attach(new SharedArrayBuffer(256))),
    "RING_FOREIGN",
  );
  for (const size of [0, 32, 100, 2 ** 29]) assert.throws(() => Ring.create(size), RangeError);
});

/** Starts two senders on a small ring, so that they fill it again and again. */
function senders(ring: Ring): Promise<unknown>[] {
  return [1, 2].map(
    (sender) =>
      new Promise((resolve, reject) => {
        const worker = new Worker(THIS_FILE, { workerData: { ring: ring.buffer, sender } satisfies Job });
        worker.once("exit", resolve);
        worker.once("error", reject);
      }),
  );
}

/** Checks that each sender's messages come whole and in order. */
function checker(): {
  readonly take: (tag: number, a: number, b: number, bytes: Uint8Array) => void;
  total: () => number;
} {
  const next = [0, 0, 0];
  return {
    take: (tag, a, b, bytes) => {
      assert.is(tag, 7);
      assert.is(b, next[a], `sender ${a} out of order`);
      assert.equal([...bytes], [...payload(a, b)]);
      next[a] = b + 1;
    },
    total: () => next.reduce((sum, count) => sum + count, 0),
  };
}

test("two threads send at once to a receiver that blocks: every message once, each sender's in order", async () => {
  const ring = Ring.create(2048);
  const ended = senders(ring);
  const check = checker();
  const until = performance.now() + 30_000;
  while (check.total() < 2 * COUNT && performance.now() < until) {
    // Short sleeps: the threads' start needs this thread's event loop.
    if (ring.wait(5)) ring.receive(64, check.take);
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
  }
  assert.is(check.total(), 2 * COUNT);
  await Promise.all(ended);
  assert.ok(ring.fullCount > 0, "the ring was never full: it is too large for this test");
});

test("two threads send at once to a receiver in its event loop: every message once, each sender's in order", async () => {
  const ring = Ring.create(2048);
  const check = checker();
  const consumed = ring.consume(16, check.take);
  await Promise.all(senders(ring));
  ring.close();
  await consumed;
  assert.is(check.total(), 2 * COUNT);
});

if (isMainThread) test.run();
else send(workerData as Job);

// ---- in the threads -----------------------------------------------------------------------------------------

function send(job: Job): void {
  const ring = Ring.attach(job.ring);
  for (let index = 0; index < COUNT; index++)
    ring.send(7, job.sender, index, payload(job.sender, index), 20_000);
}
