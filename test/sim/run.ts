// SPDX-License-Identifier: GPL-2.0-only
/**
 * Command line of the simulation.
 *   node dist/test/sim/run.js --seed N [--messages] [--mistake NAME]   replays one seed and tells its story
 *   node dist/test/sim/run.js --seeds K [--from S] [--mistake NAME]    a campaign; one line of figures
 * Exit code 1 when a rule was broken; the line names the seed that replays it.
 */
import type { Mistake } from "../../src/cluster/state.js";
import { runSeed } from "./scenario.js";

function argument(name: string): string | null {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? null : (process.argv[at + 1] ?? "");
}

function number(name: string, otherwise: number): number {
  const text = argument(name);
  if (text === null) return otherwise;
  if (!/^\d+$/.test(text)) throw new Error(`--${name} ${text}: expected a whole number`);
  return Number(text);
}

const mistake = argument("mistake");
const mistakes = new Set(mistake === null ? [] : [mistake as Mistake]);

if (argument("seed") !== null) {
  const verbose = process.argv.includes("--messages") ? 2 : 1;
  const report = await runSeed(number("seed", 1), { mistakes, verbose });
  console.log(report.violation === null ? "no rule was broken" : `BROKEN: ${report.violation}`);
  process.exitCode = report.violation === null ? 0 : 1;
} else {
  const from = number("from", 1);
  const count = number("seeds", 200);
  const started_at = performance.now();
  let events = 0;
  let commits = 0;
  let virtual_ms = 0;
  const broken: string[] = [];
  for (let seed = from; seed < from + count; seed++) {
    const report = await runSeed(seed, { mistakes });
    events += report.events;
    commits += report.commits;
    virtual_ms += report.virtualMs;
    if (report.violation !== null) {
      broken.push(`seed ${seed}: ${report.violation}`);
      if (broken.length >= 20) break;
    }
  }
  for (const line of broken) console.log(line);
  const seconds = ((performance.now() - started_at) / 1000).toFixed(1);
  console.log(
    `seeds ${from}..${from + count - 1}: ${broken.length} broken, ${commits} commits, ${events} events, ` +
      `${(virtual_ms / 3_600_000).toFixed(1)} virtual hours in ${seconds} s`,
  );
  process.exitCode = broken.length === 0 ? 0 : 1;
}
