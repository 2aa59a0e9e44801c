// SPDX-License-Identifier: GPL-2.0-only
/**
 * Runs the cluster simulation over a fixed set of seeds, and proves that it bites: mistakes planted in the core, the
 * lock records and the simulated kernels are seen. A failing seed replays with `node dist/test/sim/run.js --seed N`.
 */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { TIMINGS_DEFAULT, type Timings } from "../../src/cluster/config.js";
import type { Mistake } from "../../src/cluster/state.js";
import type { PersistMistake } from "../../src/disk/lock_persister.js";
import * as abi from "../../src/wire/abi.js";
import { Cluster } from "../sim/cluster.js";
import type { FilesMistake } from "../sim/files.js";
import type { Host } from "../sim/host.js";
import { runSeed, type ScenarioOptions, SITUATIONS } from "../sim/scenario.js";

const SEEDS = 60;
/** How far the search for situations goes at most. */
const SITUATIONS_SEEDS_MAX = 200;
/** Those of the first test. */
const situations = new Set<string>();

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
    for (const name of report.situations.keys()) situations.add(name);
  }
  assert.ok(commits > 5 * SEEDS, `only ${commits} view commits: the scenarios do not do anything`);
});

test("initiators that come back from a reboot as another nexus break no rule either", async () => {
  for (const nexus of ["new", "new, by port"] as const) {
    for (let seed = 51; seed <= 89; seed += 2) {
      const { violation, story } = await runSeed(seed, { nexus });
      assert.is(
        violation,
        null,
        `nexus ${nexus}, seed ${seed}: ${violation}\n${story.slice(-30).join("\n")}`,
      );
    }
  }
});

test("the same seed gives the same story, to the letter", async () => {
  const first = await runSeed(17);
  const second = await runSeed(17);
  assert.equal(first.story, second.story);
  assert.ok(first.story.length > 20);
});

test("every situation that the cluster must live through comes about in some seed", async () => {
  for (let seed = SEEDS + 1; situations.size < SITUATIONS.length && seed <= SITUATIONS_SEEDS_MAX; seed++) {
    for (const name of (await runSeed(seed)).situations.keys()) situations.add(name);
  }
  assert.equal([...situations].sort(), [...SITUATIONS].sort());
});

/** Rule, mistake, what is reported, and the seed at which the search begins. */
type Planted<T> = readonly [T, RegExp, number];

const PLANTED: readonly Planted<Mistake>[] = [
  ["mount-before-preempt", /^rule 1 /, 12],
  ["reregister-after-fence", /^rule 2 .*registers a key again/, 270],
  ["preempt-living-holder", /^rule 2 .*whose heartbeat moves/, 1],
  ["newcomer-preempts-living-view", /^rule 2 .*not of the last view/, 50],
  ["solo-in-company", /^rule 3 .* grants itself/, 1],
  ["takeover-without-resend", /^rule 7 /, 1],
  ["accept-stale-epoch", /^rule 8 /, 1],
  ["skip-fence", /^rule (1|9) /, 5],
  ["skip-lease-wait", /^rule 9 .*its lease runs/, 1],
  ["recovered-before-mount", /^rule 9 /, 1],
];
const PLANTED_PERSISTING: readonly Planted<PersistMistake>[] = [
  ["tell-before-persist", /^rule 5 .* tells/, 1],
  ["tell-after-failed-write", /^rule 5 .* tells/, 1],
  ["rebuild-without-records", /^rule 5 .*: view .* is committed/, 1],
  ["write-after-freeze", /^rule 5 .* writes lock record/, 1],
];
const PLANTED_FILES: readonly Planted<FilesMistake>[] = [
  ["two-masters", /^rule (3|5) /, 1],
  ["cache-outlives-lock", /^rule 3 .* serves/, 1],
  ["execute-for-the-dead", /^rule 3 .* /, 100],
  ["release-without-force", /^rule 4 .* gives EX/, 1],
  ["solo-dump-without-force", /^rule 4 .* ends its view of one/, 34],
  ["answer-unforced", /^rule 6 .* answered/, 1],
  ["not-kept", /^rule 6 .* answered/, 1],
  ["committed-by-another", /^rule 6 .* stops keeping/, 3000],
  ["fsync-unforced", /^rule (4|6) /, 1],
  ["resend-executed-again", /^rule 7 /, 1],
  ["replies-forgotten", /^rule 7 /, 320],
  ["resend-at-once", /^rule (3|7) /, 50],
  ["no-resend", /^rule 10 /, 1],
  ["lost-waiter", /^rule 10 /, 1],
];
/** Most seeds that are tried for one mistake. */
const PLANTED_SEEDS_MAX = 300;

async function seen(options: ScenarioOptions, expected: RegExp, from: number): Promise<void> {
  const found: string[] = [];
  for (let seed = from; seed < from + PLANTED_SEEDS_MAX; seed++) {
    const report = await runSeed(seed, options);
    if (report.violation === null) continue;
    found.push(report.violation);
    if (expected.test(report.violation)) return;
  }
  assert.unreachable(
    `not seen in ${PLANTED_SEEDS_MAX} seeds; seen instead: ${found.slice(0, 3).join(" | ") || "nothing"}`,
  );
}

for (const [mistake, expected, from] of PLANTED) {
  test(`the simulation sees a core with the mistake "${mistake}"`, () =>
    seen({ mistakes: new Set([mistake]) }, expected, from));
}
for (const [mistake, expected, from] of PLANTED_PERSISTING) {
  test(`the simulation sees lock records with the mistake "${mistake}"`, () =>
    seen({ persistMistakes: new Set([mistake]) }, expected, from));
}
for (const [mistake, expected, from] of PLANTED_FILES) {
  test(`the simulation sees kernels with the mistake "${mistake}"`, () =>
    seen({ filesMistakes: new Set([mistake]) }, expected, from));
}

/** profile=fast: the sooner a death is seen, the less of the log has been written by chance. */
const FAST: Timings = {
  ...TIMINGS_DEFAULT,
  heartbeatMs: abi.MXFS_HEARTBEAT_MS_FAST,
  renewMs: abi.MXFS_LEASE_RENEW_MS_FAST,
  leaseMs: abi.MXFS_LEASE_MS_FAST,
  nodeTimeoutMs: abi.MXFS_NODE_TIMEOUT_MS_FAST,
  drainMs: abi.MXFS_DRAIN_MS_FAST,
};

/** Two hosts, early answers, and load for a while; then `story` in each of so many seeds, until a rule is broken. */
async function staged(
  mistake: FilesMistake | null,
  story: (cluster: Cluster, holder: Host, member: Host) => Promise<void>,
): Promise<string | null> {
  for (let seed = 1; seed <= (mistake === null ? STAGED_SEEDS : PLANTED_STAGED_SEEDS); seed++) {
    const filesMistakes = new Set(mistake === null ? [] : [mistake]);
    const cluster = new Cluster({ seed, hostCount: 2, timings: FAST, files: "kept", filesMistakes });
    const [holder, member] = cluster.hosts as [Host, Host];
    for (const host of [holder, member]) {
      host.mount();
      await cluster.pass(15_000, () => host.serving());
    }
    await cluster.pass(cluster.random.int(2000, 6000));
    await story(cluster, holder, member);
    for (const host of cluster.hosts) host.daemon?.core?.stop();
    if (cluster.violation !== null) return cluster.violation;
  }
  return null;
}
const STAGED_SEEDS = 120;
const PLANTED_STAGED_SEEDS = 1000;

/** A holder stands still until then, while a newcomer waits that cannot reach it; null: for longer. */
async function wakesUp(
  seed: number,
  mistakes: ReadonlySet<Mistake>,
  until: number | null,
): Promise<{ preemptedAt: number; violation: string | null }> {
  const cluster = new Cluster({ seed, hostCount: 2, mistakes });
  const [holder, newcomer] = cluster.hosts as [Host, Host];
  holder.mount();
  await cluster.pass(15_000, () => holder.serving());
  cluster.network.cut(holder, newcomer);
  newcomer.mount();
  await cluster.pass(4000);
  holder.freeze((until ?? cluster.time.now + 60_000) - cluster.time.now);
  const { key } = holder;
  await cluster.pass(55_000, () => cluster.target.preempted.has(key));
  const preemptedAt = cluster.time.now;
  await cluster.pass(5000);
  for (const host of cluster.hosts) host.daemon?.core?.stop();
  return { preemptedAt, violation: cluster.violation };
}

test('staged, the simulation sees a core with the mistake "newcomer-skips-lease-wait", and none without', async () => {
  for (const mistake of [null, "newcomer-skips-lease-wait"] as const) {
    const mistakes = new Set<Mistake>(mistake === null ? [] : [mistake]);
    const found: string[] = [];
    for (let seed = 1; seed <= STAGED_SEEDS / 2; seed++) {
      const { preemptedAt } = await wakesUp(seed, mistakes, null);
      const { violation } = await wakesUp(seed, mistakes, preemptedAt - 2 - seed);
      if (violation !== null) found.push(violation);
    }
    if (mistake === null) assert.equal(found, []);
    else assert.match(found.join("\n"), /^rule 9 .*its lease runs/m);
  }
});

type Story = Parameters<typeof staged>[1];
const STAGED: readonly (readonly [FilesMistake, RegExp, Story])[] = [
  [
    "solo-release-before-redo",
    /^rule 3 .* which holds 0/,
    async (cluster, holder, member) => {
      holder.powerOff();
      await cluster.pass(40_000, () => member.kernel.solo);
      member.kernel.locks?.evictAll();
      await cluster.pass(2000);
    },
  ],
  [
    "dead-without-force",
    /^rule 4 .*seen by/,
    async (cluster, holder, member) => {
      member.powerOff();
      await cluster.pass(40_000, () => holder.kernel.solo);
      await cluster.pass(3000);
      holder.powerOff();
      await cluster.pass(1000);
      holder.powerOn();
      holder.mount();
      await cluster.pass(40_000, () => holder.serving());
    },
  ],
];
for (const [mistake, expected, story] of STAGED) {
  test(`staged, the simulation sees kernels with the mistake "${mistake}", and none without`, async () => {
    assert.is(await staged(null, story), null);
    assert.match((await staged(mistake, story)) ?? "nothing", expected);
  });
}

test.run();
