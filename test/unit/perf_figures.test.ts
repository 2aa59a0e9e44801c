// SPDX-License-Identifier: GPL-2.0-only
//
// What the perf harness reads from its loads (fio's JSON, mxfs-perf's lines), whole and damaged, and its arithmetic.

import * as fc from "fast-check";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { FioError, parseFio } from "../../perf/fio.js";
import { LoadError, type Phase, parsePhase, rateOf } from "../../perf/load.js";
import { fioFigure } from "../../perf/measure.js";
import { figure, median, ratio, ratioText, summarize } from "../../perf/stats.js";

const SIDE = { bw: 2048, iops: 512.5, io_bytes: 4 << 20, runtime: 2000 };
const NOTHING = { bw: 0, iops: 0, io_bytes: 0, runtime: 0 };
const WHOLE = {
  "fio version": "fio-3.33",
  jobs: [{ jobname: "mixed", error: 0, read: SIDE, write: NOTHING }],
};

function textOf(job: Record<string, unknown>): string {
  return JSON.stringify({ jobs: [{ ...WHOLE.jobs[0], ...job }] }, null, 2);
}

test("fio's JSON is read behind the warnings that fio prints before it", () => {
  const job = parseFio(
    `note: both iodepth >= 1 and synchronous I/O {engine}\n${JSON.stringify(WHOLE, null, 2)}\n`,
  );
  assert.equal(job, { name: "mixed", read: SIDE, write: NOTHING });
});

test("a fio job that failed is an error with its errno and what fio said", () => {
  const text = `fio: pid=7, err=28/file:filesetup.c, func=write, error=No space left\n${textOf({ error: 28 })}`;
  assert.throws(
    () => parseFio(text),
    (error: Error) => error instanceof FioError && /errno 28.*No space/.test(error.message),
  );
});

test("fio output without JSON, without a job, or with figures that are none is refused", () => {
  for (const text of [
    "",
    "fio: no such file",
    "[]",
    "{}",
    '{"jobs": []}',
    '{"jobs": {}}',
    '{"jobs": [null]}',
    textOf({ error: "no" }),
    textOf({ read: null }),
    textOf({ read: { ...SIDE, bw: -1 } }),
    textOf({ write: { ...SIDE, iops: "many" } }),
    textOf({ write: { ...SIDE, runtime: null } }),
  ]) {
    assert.throws(
      () => parseFio(text),
      (error: Error) => error instanceof FioError && error.message.startsWith("fio: "),
      text,
    );
  }
});

test("fio output cut anywhere, or with a byte changed, gives an error of the parser or a whole job, never anything else", () => {
  const whole = `warning\n${JSON.stringify(WHOLE, null, 2)}\n`;
  const tried = (text: string): void => {
    try {
      const job = parseFio(text);
      for (const side of [job.read, job.write]) {
        for (const value of Object.values(side)) assert.ok(Number.isFinite(value) && value >= 0);
      }
    } catch (error) {
      if (!(error instanceof FioError)) throw error;
    }
  };
  for (let cut = 0; cut < whole.length - 2; cut++) {
    assert.throws(
      () => parseFio(whole.slice(0, cut)),
      (error: Error) => error instanceof FioError,
      `cut at ${cut}`,
    );
  }
  fc.assert(
    fc.property(fc.nat(whole.length - 1), fc.integer({ min: 32, max: 126 }), (at, code) => {
      tried(whole.slice(0, at) + String.fromCharCode(code) + whole.slice(at + 1));
    }),
    { numRuns: 500 },
  );
});

test("a row in MiB/s shows bandwidth, another one operations, both directions together", () => {
  const job = { name: "x", read: SIDE, write: { ...SIDE, bw: 1024, iops: 100 } };
  assert.is(fioFigure("seq-read", job), 3);
  assert.is(fioFigure("mixed", job), 612.5);
});

test("a line of mxfs-perf is read, and a damaged one refused", () => {
  const line = '{"phase": "turns", "ops": 40, "seconds": 3.5, "longest_ms": 80.25, "last": 79, "looks": 912}';
  assert.equal(parsePhase(line), { phase: "turns", ops: 40, seconds: 3.5, longest_ms: 80.25, last: 79 });
  assert.is(parsePhase('{"phase": "stat", "ops": 1, "seconds": 1, "longest_ms": 1}').last, null);
  for (const bad of [
    "",
    "ready stat",
    "null",
    line.slice(0, -1),
    line.replace("40", "-40"),
    line.replace("3.5", '"long"'),
    line.replace("79", "null"),
    line.replace('"turns"', "7"),
  ]) {
    assert.throws(
      () => parsePhase(bad),
      (error: Error) => error instanceof LoadError,
      bad,
    );
  }
});

test("the rate of phases at the same time is all operations by the longest of their times", () => {
  const phase = (ops: number, seconds: number): Phase => ({
    phase: "create",
    ops,
    seconds,
    longest_ms: 1,
    last: null,
  });
  assert.is(rateOf([phase(100, 2), phase(60, 4)]), 40);
  assert.throws(() => rateOf([phase(0, 2)]), /nothing was done/);
  assert.throws(() => rateOf([]), /nothing was done/);
});

test("medians, ranges and ratios", () => {
  assert.is(median([3, 1, 2]), 2);
  assert.is(median([4, 1]), 2.5);
  assert.throws(() => median([]), /nothing/);
  assert.equal(summarize([5, 1, 3]), { median: 3, min: 1, max: 5, count: 3 });
  assert.is(summarize([]), null);
  assert.is(ratio(1, 4), 0.25);
  assert.is(ratio(null, 4), null);
  assert.is(ratio(1, 0), null);
  fc.assert(
    fc.property(
      fc.array(fc.double({ min: 0, max: 1e9, noNaN: true }), { minLength: 1, maxLength: 20 }),
      (values) => {
        const middle = median(values);
        const below = values.filter((it) => it <= middle).length;
        const above = values.filter((it) => it >= middle).length;
        assert.ok(2 * below >= values.length && 2 * above >= values.length);
      },
    ),
  );
});

test("figures are written with three digits, without exponents", () => {
  assert.equal([0, 0.01234, 0.5, 1, 9.999, 12.34, 99.99, 123.4, 56789.4, null].map(figure), [
    "0",
    "0.0123",
    "0.500",
    "1.00",
    "10.00",
    "12.3",
    "100",
    "123",
    "56789",
    "-",
  ]);
  assert.equal([0.004, 0.95, 9.999, 12.34, 140.2, null].map(ratioText), [
    "0.00",
    "0.95",
    "10.0",
    "12.3",
    "140",
    "-",
  ]);
});

test.run();
