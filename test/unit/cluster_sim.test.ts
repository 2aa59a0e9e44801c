// SPDX-License-Identifier: GPL-2.0-only
/**
 * Runs the cluster simulation over a fixed set of seeds, and proves that it bites: mistakes planted in the core are
 * seen. A failing seed replays with `node dist/test/sim/run.js --seed N`.
 */
import { test } from "uvu";
import * as assert from "uvu/assert";
import type { Mistake } from "../../src/cluster/state.js";
import type { PersistMistake } from "../../src/disk/lock_persister.js";
import { runSeed } from "../sim/scenario.js";

const SEEDS = 60;

test(`${SEEDS} seeds of mounts, faults and unmounts break no rule and end with everybody served`, async () => {
  let commits = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const report = await runSeed(seed);
    assert.is(
      report.violation,
      null,
      `seed ${seed}: ${report.violation}\n${report.story.slice(-30).join("\n")}`,
    );
    commits += report.commits;
  }
  assert.ok(commits > 5 * SEEDS, `only ${commits} view commits: the scenarios do not do anything`);
});

test("the same seed gives the same story, to the letter", async () => {
  const first = await runSeed(17);
  const second = await runSeed(17);
  assert.equal(first.story, second.story);
  assert.ok(first.story.length > 20);
});

const PLANTED: readonly (readonly [Mistake, RegExp, number])[] = [
  ["skip-fence", /not fenced|rule 1|rule 5/, 5],
  ["skip-lease-wait", /its lease runs/, 190],
  ["accept-stale-epoch", /epoch|VIEW/, 1],
  ["reregister-after-fence", /registers a key again/, 110],
  ["mount-before-preempt", /rule 1/, 12],
  ["preempt-living-holder", /rule 8/, 1],
  ["newcomer-preempts-living-view", /rule 8/, 235],
  ["recovered-before-mount", /rule 9/, 1],
  ["takeover-without-resend", /rule 10/, 1],
  ["solo-in-company", /rule 3: .* grants itself/, 1],
];
const PLANTED_PERSISTING: readonly (readonly [PersistMistake, RegExp, number])[] = [
  ["tell-before-persist", /rule 11: .* tells/, 1],
  ["tell-after-failed-write", /rule 11: .* tells/, 1],
  ["rebuild-without-records", /rule 11: view .* is committed/, 1],
  ["write-after-freeze", /rule 11: .* writes lock record/, 40],
];
/** Most seeds that are tried for one mistake. */
const PLANTED_SEEDS_MAX = 300;

for (const [mistake, expected, from] of PLANTED) {
  test(`the simulation sees a core with the mistake "${mistake}"`, async () => {
    const found: string[] = [];
    for (let seed = from; seed < from + PLANTED_SEEDS_MAX; seed++) {
      const report = await runSeed(seed, { mistakes: new Set([mistake]) });
      if (report.violation === null) continue;
      found.push(report.violation);
      if (expected.test(report.violation)) return;
    }
    assert.unreachable(
      `not seen in ${PLANTED_SEEDS_MAX} seeds; seen instead: ${found.slice(0, 3).join(" | ") || "nothing"}`,
    );
  });
}

for (const [mistake, expected, from] of PLANTED_PERSISTING) {
  test(`the simulation sees lock records with the mistake "${mistake}"`, async () => {
    const found: string[] = [];
    for (let seed = from; seed < from + PLANTED_SEEDS_MAX; seed++) {
      const report = await runSeed(seed, { persistMistakes: new Set([mistake]) });
      if (report.violation === null) continue;
      found.push(report.violation);
      if (expected.test(report.violation)) return;
    }
    assert.unreachable(
      `not seen in ${PLANTED_SEEDS_MAX} seeds; seen instead: ${found.slice(0, 3).join(" | ") || "nothing"}`,
    );
  });
}

test.run();
