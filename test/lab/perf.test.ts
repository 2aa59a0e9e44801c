// SPDX-License-Identifier: GPL-2.0-only
//
// The perf harness as a user starts it: one row on two file systems, and what it leaves.
//
// Weakness: the peers are not brought up here; a whole run of the harness says of each whether it ran.

import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { PROJECT_DIR } from "../../lab/lab.js";
import { cellSummary, parseResult, rawRatio } from "../../perf/result.js";

const LAB = `${process.env.MXFS_LAB === undefined ? "" : `${process.env.MXFS_LAB}-`}perf-test`;
const dir = mkdtempSync(join(tmpdir(), "mxfs-perf-test-"));
const json = join(dir, "figures.json");

function perf(...words: string[]): { status: number | null; stdout: string; stderr: string } {
  const program = join(PROJECT_DIR, "dist", "perf", "run.js");
  return spawnSync(process.execPath, [program, "--json", json, ...words], {
    encoding: "utf8",
    env: { ...process.env, MXFS_LAB: LAB },
  });
}

test.after(() => {
  execFileSync(process.execPath, [join(PROJECT_DIR, "dist", "lab", "cli.js"), "down"], {
    env: { ...process.env, MXFS_LAB: LAB },
    stdio: "ignore",
  });
  rmSync(dir, { recursive: true, force: true });
});

test("one row on two file systems gives figures, a table, a report, and leaves no lab", () => {
  const { status, stdout, stderr } = perf(
    "--quick",
    "--only",
    "create",
    "--files",
    "30",
    "--systems",
    "raw",
    "mxfs",
  );
  assert.is(status, 0, stderr);
  const result = parseResult(readFileSync(json, "utf8"));
  assert.equal(result.cells.map((it) => [it.row, it.column, it.samples.length]).sort(), [
    ["create", "holder", 1],
    ["create", "member", 1],
    ["create", "raw", 2],
  ]);
  for (const column of ["raw", "holder", "member"]) {
    assert.ok((cellSummary(result, "create", column)?.median ?? 0) > 0, column);
  }
  assert.ok((rawRatio(result, "create", "member") ?? 0) > 0);
  assert.match(stdout, /^create +files\/s +\d+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+$/m);
  assert.match(readFileSync(join(dir, "figures.html"), "utf8"), /aria-label="create"/);
  assert.not.ok(existsSync(`/run/mxfs-lab/${LAB}`));
  assert.not.ok(existsSync(`/run/netns/mxfs-${LAB}`));
});

test("two results are compared without measuring anything", () => {
  const old = join(dir, "old.json");
  const changed = parseResult(readFileSync(json, "utf8"));
  for (const cell of changed.cells.filter((it) => it.column === "member")) {
    cell.samples.splice(0, cell.samples.length, ...cell.samples.map((it) => it * 10));
  }
  writeFileSync(old, JSON.stringify(changed));
  const same = perf("--compare", json);
  assert.is(same.status, 0, same.stderr);
  assert.match(same.stdout, /^0 better, 0 worse, 3 not changed/m);
  assert.match(perf("--compare", old).stdout, /^WORSE +create +member .* x 0\.10$/m);
  const damaged = join(dir, "damaged.json");
  writeFileSync(damaged, '{"format": "mxfs-perf-1"}');
  const refused = perf("--compare", damaged);
  assert.is(refused.status, 1);
  assert.match(refused.stderr, /damaged\.json: date: expected a string, found nothing/);
});

test("words that mean nothing are refused before anything is started", () => {
  for (const [words, reason] of [
    [["--only", "nothing"], /--only nothing: expected a row/],
    [["--systems", "zfs"], /--systems zfs: expected some of raw/],
    [["--files", "100001"], /--files 100001: expected a whole number from 1 to 100000/],
    [["--compare", join(dir, "none")], /none: no such file; a run writes one/],
  ] as const) {
    const { status, stderr } = perf("--quick", ...words);
    assert.ok(status === 1 || status === 2, String(status));
    assert.match(stderr, reason);
  }
});

test.run();
