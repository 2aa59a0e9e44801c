// SPDX-License-Identifier: GPL-2.0-only
/**
 * Command line of the simulation.
 *   npm run sim -- --seed N [--messages] [--mistake NAME]             replays one seed and tells its story
 *   npm run sim -- --seeds K [--from S] [--jobs J] [--mistake NAME]   a campaign; ends with one line of figures
 *   ... --from random                                                 a range that nobody has tried; it is printed
 *   ... --nexus new|"new, by port"                                    initiators come back as another nexus (world.ts)
 * Exit status 1 when a rule was broken; the line names the seed that replays it.
 *
 * A campaign is run by one thread a processor, in portions: which thread plays a seed changes nothing about it.
 */
import { randomInt } from "node:crypto";
import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker } from "node:worker_threads";
import type { Mistake } from "../../src/cluster/state.js";
import type { PersistMistake } from "../../src/disk/lock_persister.js";
import type { FilesMistake } from "./files.js";
import { runSeed, type ScenarioOptions, SITUATIONS } from "./scenario.js";
import { NEXUS_KINDS } from "./world.js";

const PORTION = 10;
const BROKEN_MAX = 20;
const SEED_MAX = 2 ** 31;

interface Portion {
  readonly from: number;
  readonly count: number;
  readonly mistakes: ReadonlySet<Mistake>;
}

interface Figures {
  readonly events: number;
  readonly commits: number;
  readonly virtualMs: number;
  readonly changes: number;
  readonly replayed: number;
  readonly situations: ReadonlyMap<string, number>;
  readonly broken: readonly string[];
}

async function play({ from, count, mistakes }: Portion): Promise<Figures> {
  let events = 0;
  let commits = 0;
  let virtualMs = 0;
  let changes = 0;
  let replayed = 0;
  const situations = new Map<string, number>();
  const broken: string[] = [];
  for (let seed = from; seed < from + count; seed++) {
    const report = await runSeed(seed, planted(mistakes));
    events += report.events;
    commits += report.commits;
    virtualMs += report.virtualMs;
    changes += report.changes;
    replayed += report.replayed;
    addTo(situations, report.situations);
    if (report.violation !== null) broken.push(`seed ${seed}: ${report.violation}`);
  }
  return { events, commits, virtualMs, changes, replayed, situations, broken };
}

function addTo(sum: Map<string, number>, more: ReadonlyMap<string, number>): void {
  for (const [name, count] of more) sum.set(name, (sum.get(name) ?? 0) + count);
}

function argument(name: string): string | null {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? null : (process.argv[at + 1] ?? "");
}

function number(name: string, otherwise: number): number {
  const text = argument(name);
  if (text === null) return otherwise;
  if (!/^\d{1,10}$/.test(text)) throw new Error(`--${name} ${text}: expected a whole number`);
  return Number(text);
}

/** One thread of a campaign: asks for portions until there is none. */
function thread(next: () => Portion | null, take: (figures: Figures) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(fileURLToPath(import.meta.url), { argv: process.argv.slice(2) });
    const feed = (): void => {
      const portion = next();
      if (portion === null) worker.terminate().then(() => resolve(), reject);
      else worker.postMessage(portion);
    };
    worker.on("message", (figures: Figures) => {
      take(figures);
      feed();
    });
    worker.on("error", reject);
    feed();
  });
}

/** A name is one of the core's mistakes, the lock records' or the kernels'; who does not know it passes it over. */
function planted(mistakes: ReadonlySet<Mistake>): ScenarioOptions {
  const names = mistakes as ReadonlySet<string>;
  const nexus = NEXUS_KINDS.find((kind) => kind === (argument("nexus") ?? "kept"));
  if (nexus === undefined)
    throw new Error(`--nexus ${argument("nexus")}: expected ${NEXUS_KINDS.join(" | ")}`);
  return {
    nexus,
    mistakes,
    persistMistakes: names as ReadonlySet<PersistMistake>,
    filesMistakes: names as ReadonlySet<FilesMistake>,
  };
}

async function campaign(mistakes: ReadonlySet<Mistake>): Promise<number> {
  const count = number("seeds", 200);
  const from = argument("from") === "random" ? randomInt(1, SEED_MAX - count) : number("from", 1);
  const jobs = Math.max(1, Math.min(number("jobs", availableParallelism()), Math.ceil(count / PORTION)));
  console.log(`seeds ${from}..${from + count - 1} (again: npm run sim -- --seeds ${count} --from ${from})`);
  const startedAt = performance.now();
  let at = from;
  let played = 0;
  let events = 0;
  let commits = 0;
  let virtualMs = 0;
  let changes = 0;
  let replayed = 0;
  const situations = new Map<string, number>(SITUATIONS.map((name) => [name, 0]));
  const broken: string[] = [];
  const next = (): Portion | null => {
    if (at >= from + count || broken.length >= BROKEN_MAX) return null;
    const portion = { from: at, count: Math.min(PORTION, from + count - at), mistakes };
    at += portion.count;
    played += portion.count;
    return portion;
  };
  const take = (figures: Figures): void => {
    events += figures.events;
    commits += figures.commits;
    virtualMs += figures.virtualMs;
    changes += figures.changes;
    replayed += figures.replayed;
    addTo(situations, figures.situations);
    broken.push(...figures.broken);
    for (const line of figures.broken) console.log(line);
  };
  await Promise.all(Array.from({ length: jobs }, () => thread(next, take)));
  const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
  const staged = [...situations].map(([name, count]) => `${name} ${count}`).join(", ");
  console.log(
    `${played} seeds from ${from}: ${broken.length} broken, ${commits} commits, ${events} events, ` +
      `${(virtualMs / 3_600_000).toFixed(1)} virtual hours in ${seconds} s, ` +
      `${changes} changes of files, ${replayed} found done; ${staged}`,
  );
  return broken.length === 0 ? 0 : 1;
}

async function replay(mistakes: ReadonlySet<Mistake>): Promise<number> {
  const verbose = process.argv.includes("--messages") ? 2 : 1;
  const report = await runSeed(number("seed", 1), { ...planted(mistakes), verbose });
  console.log(
    report.violation === null
      ? `seed ${report.seed}: no rule was broken, ${report.events} events, ${report.commits} commits`
      : `seed ${report.seed}: BROKEN: ${report.violation}`,
  );
  return report.violation === null ? 0 : 1;
}

if (isMainThread) {
  const mistake = argument("mistake");
  const mistakes = new Set(mistake === null ? [] : [mistake as Mistake]);
  process.exitCode = argument("seed") === null ? await campaign(mistakes) : await replay(mistakes);
} else {
  parentPort?.on("message", (portion: Portion) => {
    play(portion).then(
      (figures) => parentPort?.postMessage(figures),
      (error: unknown) => {
        throw error;
      },
    );
  });
}
