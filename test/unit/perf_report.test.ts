// SPDX-License-Identifier: GPL-2.0-only
//
// The perf harness's results: rows and how they are chosen, the JSON file read back and refused when damaged, rounds
// added up, the table, the comparison of two runs, the report page.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { compareResults, compareTable } from "../../perf/compare.js";
import { GOALS, goalLines, goalStates } from "../../perf/goals.js";
import { Visit } from "../../perf/measure.js";
import { escapeHtml, reportPage } from "../../perf/report.js";
import {
  addError,
  addSample,
  cellSummary,
  failures,
  mergeResult,
  NOT_TRIED,
  type PerfResult,
  parseResult,
  RESULT_FORMAT,
  ResultError,
  rawRatio,
} from "../../perf/result.js";
import { columnsOf, ROWS, roundOrder, SYSTEMS, selectRows, selectSystems } from "../../perf/rows.js";
import { markdownTable, terminalTable } from "../../perf/table.js";

function emptyResult(): PerfResult {
  return {
    format: RESULT_FORMAT,
    date: "2026-01-02T03:04:05.000Z",
    minutes: 10,
    commit: "abc1234",
    machine: {
      cpu: "A CPU <fast>",
      cpus: 2,
      memoryMib: 4096,
      accelerator: "tcg",
      guestKernel: "6.1.0-1-amd64",
      guestMemoryMib: 1024,
    },
    settings: { quick: true, rounds: 1, fileMib: 24, randomOps: 1200, files: 200, seconds: 3 },
    loads: [1, 4.25],
    systems: SYSTEMS.map((it) => ({ key: it.key, reason: null })),
    cells: [],
    notes: [],
  };
}

/** Every cell with the given figures, but for what `except` says. */
function fullResult(
  samples: readonly number[],
  except: Readonly<Record<string, readonly number[]>> = {},
): PerfResult {
  const result = emptyResult();
  for (const row of ROWS) {
    for (const column of columnsOf(row.section)) {
      for (const value of except[`${row.key}/${column.key}`] ?? samples)
        addSample(result, row.key, column.key, value);
    }
  }
  return result;
}

test("every row has a key of its own, and one that is compared with raw XFS has a row of one node at work behind it", () => {
  assert.is(new Set(ROWS.map((it) => it.key)).size, ROWS.length);
  for (const row of ROWS.filter((it) => it.base !== null)) {
    assert.is(ROWS.find((it) => it.key === row.base)?.section, "one", row.key);
  }
});

test("every file system but raw XFS has a column in every section", () => {
  for (const { key } of SYSTEMS) {
    for (const section of ["one", "both", "between"] as const) {
      const has = columnsOf(section).some((it) => it.system === key);
      assert.is(has, key !== "raw" || section === "one", `${key} in ${section}`);
    }
  }
});

test("rows are chosen by key, by section, or by how they begin; nothing means all; a word for none is refused", () => {
  assert.is(selectRows([]).size, ROWS.length);
  assert.equal([...selectRows(["fsync", "cold-stat"])], ["fsync", "cold-stat"]);
  assert.equal([...selectRows(["between"])].length, 7);
  assert.equal([...selectRows(["turns-p*"])], ["turns-plain", "turns-plain-longest"]);
  assert.throws(() => selectRows(["fsync", "nothing"]), /nothing.*--list/);
  assert.equal(selectSystems(["gfs2", "raw"]), ["raw", "gfs2"]);
  assert.is(selectSystems([]).length, SYSTEMS.length);
  assert.throws(() => selectSystems(["zfs"]), /zfs.*raw, mxfs/);
});

test("in each round raw XFS is first and the others are shifted, so that each comes at each place", () => {
  const all = selectSystems([]);
  const orders = [0, 1, 2, 3].map((round) => roundOrder(all, round));
  for (const order of orders) {
    assert.is(order[0], "raw");
    assert.equal([...order].sort(), [...all].sort());
  }
  for (const place of [1, 2, 3, 4]) {
    assert.is(new Set(orders.map((it) => it[place])).size, 4);
  }
  assert.equal(roundOrder(["raw"], 5), ["raw"]);
  assert.equal(roundOrder(["gfs2"], 1), ["gfs2"]);
});

test("a visit's cells are those of the wanted rows in the columns of its file system", () => {
  assert.equal(Visit.cells("mxfs", new Set(["stat", "cold-stat"])), [
    { row: "stat", column: "holder" },
    { row: "stat", column: "member" },
    { row: "cold-stat", column: "mxfs" },
  ]);
  assert.equal(Visit.cells("raw", new Set(["cold-stat"])), []);
});

test("a sample that is no figure, or for a column that its row has not, is refused", () => {
  const result = emptyResult();
  for (const value of [Number.NaN, Number.POSITIVE_INFINITY, -1]) {
    assert.throws(() => addSample(result, "stat", "raw", value), /no figure/);
  }
  assert.throws(() => addSample(result, "cold-stat", "raw", 1), /no column raw/);
  assert.throws(() => addSample(result, "nothing", "raw", 1), /nothing/);
  assert.is(result.cells.length, 0);
});

test("a cell shows its median; its ratio is to the median of raw XFS, of both nodes too", () => {
  const result = emptyResult();
  for (const value of [90, 110, 100]) addSample(result, "create", "raw", value);
  for (const value of [10, 30, 20]) addSample(result, "both-create", "mxfs", value);
  addSample(result, "cold-stat", "mxfs", 20);
  assert.equal(cellSummary(result, "both-create", "mxfs"), { median: 20, min: 10, max: 30, count: 3 });
  assert.is(rawRatio(result, "both-create", "mxfs"), 0.2);
  assert.is(rawRatio(result, "both-create", "gfs2"), null);
  assert.is(rawRatio(result, "cold-stat", "mxfs"), null);
});

test("a result written as JSON is read back the same", () => {
  const result = fullResult([1, 2.5]);
  addError(result, "stat", "ocfs2", "it did not");
  result.notes.push("a note");
  assert.equal(parseResult(JSON.stringify(result)), result);
});

test("a damaged file is refused with the place where it is damaged", () => {
  const whole = JSON.parse(JSON.stringify(fullResult([1]))) as Record<string, unknown>;
  const damaged: [Record<string, unknown>, RegExp][] = [
    [{ ...whole, format: "mxfs-perf-0" }, /format: expected "mxfs-perf-1", found "mxfs-perf-0"/],
    [{ ...whole, date: 7 }, /date: expected a string/],
    [{ ...whole, minutes: null }, /minutes: expected a number/],
    [{ ...whole, machine: [] }, /machine: expected an object/],
    [{ ...whole, settings: { quick: "yes" } }, /settings.quick/],
    [{ ...whole, loads: [1, "2"] }, /loads\[1\]/],
    [{ ...whole, systems: [{ key: "raw" }] }, /systems\[0\].reason: expected a string, found nothing/],
    [
      { ...whole, cells: [{ row: "stat", column: "raw", samples: [-1], errors: [] }] },
      /cells\[0\].samples\[0\]/,
    ],
    [{ ...whole, cells: new Array(10_001).fill(null) }, /cells: expected a list of at most 10000/],
    [{ ...whole, notes: undefined }, /notes/],
  ];
  for (const [value, reason] of damaged) {
    assert.throws(
      () => parseResult(JSON.stringify(value)),
      (error: Error) => error instanceof ResultError && reason.test(error.message),
      String(reason),
    );
  }
  const text = JSON.stringify(whole);
  for (let cut = 0; cut < text.length; cut += 97) {
    assert.throws(
      () => parseResult(text.slice(0, cut)),
      (error: Error) => error instanceof ResultError,
      `cut ${cut}`,
    );
  }
});

test("rounds are added to those of an earlier run of the same sizes, and of no other", () => {
  const [before, after] = [emptyResult(), emptyResult()];
  addSample(before, "stat", "raw", 1);
  addSample(after, "stat", "raw", 2);
  addError(before, "stat", "gfs2", "reason");
  const [gfs2] = before.systems.filter((it) => it.key === "gfs2");
  if (gfs2 !== undefined) gfs2.reason = "no packages";
  mergeResult(after, before);
  assert.equal(cellSummary(after, "stat", "raw"), { median: 1.5, min: 1, max: 2, count: 2 });
  assert.is(after.minutes, 20);
  assert.is(after.loads.length, 4);
  assert.is(after.systems.find((it) => it.key === "gfs2")?.reason, null, "it ran in one of the two");
  assert.ok(failures(after).some((it) => it.includes("reason")));
  const other = { ...emptyResult(), settings: { ...emptyResult().settings, files: 7 } };
  assert.throws(() => mergeResult(after, other), /settings.files: expected 200 as in this run, found 7/);
});

test("the table has every row, ratios to raw XFS, and no line wider than a terminal of 120", () => {
  const text = terminalTable(fullResult([1234.5], { "stat/raw": [4938] }));
  for (const row of ROWS) assert.ok(text.includes(row.title), row.key);
  assert.match(text, /^stat, warm +files\/s +4938 +1235 +0\.25 +1235 +0\.25/m);
  assert.match(text, /^turns on one file +hand-overs\/s +1235 +1235 +1235 +1235$/m);
  assert.match(text, /2026-01-02, commit abc1234; 2 x A CPU <fast>, emulated guests/);
  const tables = text.slice(text.indexOf("one node at work"), text.indexOf("goals:"));
  for (const line of tables.split("\n")) assert.ok(line.length <= 120, line);
});

test("a file system that did not run stays in the table, with its reason below; so does a figure that failed", () => {
  const result = emptyResult();
  for (const key of ["raw", "holder", "gfs2"]) addSample(result, "stat", key, 100);
  addError(result, "stat", "gfs2", "only sometimes");
  addError(result, "stat", "member", "mxfs-perf: stat x: Input/output error");
  for (const system of result.systems) {
    if (system.key === "ocfs2") system.reason = "packages cannot be fetched";
  }
  const text = terminalTable(result);
  assert.match(text, /one node at work .* OCFS2/);
  assert.match(text, /^stat, warm +files\/s +100 +100 +1\.00 +failed +- +100 +1\.00 +not run$/m);
  assert.match(text, /^ {2}ocfs2: not run: packages cannot be fetched$/m);
  assert.match(text, /^ {2}stat on member: mxfs-perf: stat x: Input\/output error$/m);
  assert.match(
    markdownTable(result),
    /\| stat, warm, files\/s \| 100 \| 100 \(1\.00\) \| failed \| - \| 100 \(1\.00\) \| not run \|/,
  );
  assert.match(reportPage(result), /ocfs2: not run: packages cannot be fetched/);
  assert.match(reportPage(result), />not run</);
  assert.match(reportPage(result), />failed</);
});

test("a row that there was no time for has not failed, and is named", () => {
  const result = emptyResult();
  addSample(result, "stat", "raw", 100);
  addError(result, "stat", "gfs2", `${NOT_TRIED} the time was over`);
  assert.match(terminalTable(result), /^stat, warm +files\/s +100( +-){5}$/m);
  assert.match(terminalTable(result), /^ {2}stat on gfs2: not tried: the time was over$/m);
  assert.not.match(reportPage(result), />failed</);
});

test("what changed beyond its scatter is told, larger changes first, and whether it is better", () => {
  const before = fullResult([100, 100, 100]);
  const after = fullResult([100, 100, 100], {
    "create/member": [300, 290, 310],
    "turns-plain-longest/mxfs": [50, 50, 50],
    "stat/gfs2": [60, 100, 140],
    "fsync/holder": [80, 80, 80],
    "fsync/nfs": [95, 95, 95],
  });
  const found = compareResults(before, after);
  assert.equal(
    found.changes.map((it) => [it.row, it.column, it.of, it.better]),
    [
      ["create", "member", "ratio", true],
      ["turns-plain-longest", "mxfs", "figure", true],
      ["fsync", "holder", "ratio", false],
    ],
  );
  assert.equal([found.gone, found.added, found.warnings], [[], [], []]);
  const text = compareTable(found, before, after);
  assert.match(text, /^better +create +member +1\.00 +-> +3\.00 +of raw XFS +x 3\.00$/m);
  assert.match(text, /^WORSE +fsync +holder/m);
  assert.match(text, /2 better, 1 worse/);
});

test("on a machine of half the speed nothing with a ratio has changed", () => {
  const found = compareResults(fullResult([100, 100]), fullResult([50, 50]));
  assert.ok(found.changes.every((it) => it.of === "figure"));
  assert.ok(found.changes.some((it) => it.row === "stat" && it.column === "raw"));
});

test("one sample a side tells only of large changes", () => {
  const changed = (value: number): number =>
    compareResults(fullResult([100]), fullResult([100], { "stat/member": [value] })).changes.length;
  assert.equal([changed(75), changed(125), changed(70), changed(140)], [1, 0, 1, 1]);
});

test("cells that only one run has, and sizes and machines that differ, are named", () => {
  const before = fullResult([1]);
  const after = fullResult([1], { "stat/ocfs2": [] });
  before.cells.push({ row: "of-long-ago", column: "raw", samples: [1], errors: [] });
  const other = {
    ...after,
    settings: { ...after.settings, files: 2000 },
    machine: { ...after.machine, cpus: 8 },
  };
  const found = compareResults(before, other);
  assert.equal([...found.gone].sort(), ["of-long-ago/raw", "stat/ocfs2"]);
  assert.equal(found.warnings, ["files was 200, is 2000", "cpus was 2, is 8"]);
  assert.equal(compareResults(other, before).added, ["stat/ocfs2"]);
});

test("each goal is met, or says in which rows it is not and by how much, or is silent where nothing was measured", () => {
  assert.equal(goalLines(emptyResult()), []);
  // All alike: goals of at most 1 are met.
  for (const { goal, compared, short } of goalStates(fullResult([100]))) {
    assert.is(compared, goal.rows.length * goal.others.length);
    assert.is(short.length, goal.atLeast <= 1 ? 0 : compared, goal.title);
  }
  const better = Object.fromEntries(
    GOALS.flatMap((goal) =>
      goal.rows.map((row) => [`${row}/${goal.column}`, [goal.column === "mxfs" ? 500 : 200]]),
    ),
  );
  assert.ok(goalLines(fullResult([100], better)).every((it) => it.startsWith("met ")));
  const result = fullResult([100], { ...better, "turns-fcntl/mxfs": [250], "turns-plain/mxfs": [150] });
  assert.equal(
    goalLines(result).filter((it) => it.startsWith("SHORT")),
    [
      "SHORT  turns on one file: at least 3 x gfs2, ocfs2: 2 of 6; " +
        "turns-plain/gfs2 1.50, turns-plain/ocfs2 1.50, turns-fcntl/gfs2 2.50, turns-fcntl/ocfs2 2.50",
    ],
  );
  assert.match(terminalTable(result), /SHORT {2}turns on one file/);
  assert.match(reportPage(result), /SHORT {2}turns on one file/);
});

test("the report is one page that loads nothing, with a plot for every row and all it quotes escaped", () => {
  const result = fullResult([10, 20, 30]);
  result.notes.push('<script>alert("x")</script>');
  const page = reportPage(result);
  assert.is(page.match(/<svg /g)?.length, ROWS.length);
  assert.not.match(page, /<script|<link|<img|url\(|@import|https?:/);
  assert.ok(page.includes("&lt;script&gt;") && page.includes("A CPU &lt;fast&gt;"));
  assert.not.match(page, /NaN|undefined|Infinity|null/);
  assert.is(
    page.match(/<(svg|figure|div|table|tr|td|ul|li|h2)[ >]/g)?.length,
    page.match(/<\/(svg|figure|div|table|tr|td|ul|li|h2)>/g)?.length,
  );
  assert.is(escapeHtml(`<a href="x">'&`), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;");
  assert.not.match(reportPage(emptyResult()), /NaN|undefined|Infinity/);
});

test("a bar is as long as its median beside the others of its row", () => {
  const page = reportPage(fullResult([100], { "fsync/member": [50], "fsync/nfs": [0] }));
  const plot = /aria-label="write 4 KiB \+ fsync">(.*?)<\/svg>/s.exec(page)?.[1] ?? "";
  const widths = [...plot.matchAll(/<rect class="(\w+)"[^>]* width="([\d.]+)"/g)].map((it) => Number(it[2]));
  assert.is(widths.length, 6);
  const [raw = 0, holder = 0, member = 0, nfs = -1] = widths;
  assert.is(raw, holder);
  assert.ok(Math.abs(member - raw / 2) < 0.2);
  assert.is(nfs, 0);
});

test.run();
