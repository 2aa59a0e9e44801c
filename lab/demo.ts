// SPDX-License-Identifier: GPL-2.0-only
//
// The demo (`npm start`): two machines share one XFS through MXFS, and every promise of the README is tried on them
// and checked. Prints what it does while it does it, and a table at the end; exit status 1 if a line failed, 130 when
// interrupted. The lab is taken down in every case.
//
// The lines are in demo_lines.ts. A line that fails does not end the demo, but one that the rest stands on does: the
// lines behind it are then shown as not tried, and count as failed.
//
// Weakness: a line that hangs is given up after LINE_TIMEOUT_MS, and what it started may disturb the next ones.

import { type DemoState, LINES } from "./demo_lines.js";
import { Lab, LabError } from "./lab.js";
import { Volume } from "./volume.js";

const LINE_TIMEOUT_MS = 180_000;

interface Outcome {
  readonly title: string;
  readonly ok: boolean;
  readonly seconds: number;
  readonly detail: string;
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

function within<T>(work: Promise<T>, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new LabError(`${what}: no end within ${LINE_TIMEOUT_MS / 1000} s`)),
      LINE_TIMEOUT_MS,
    );
  });
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}

function table(outcomes: readonly Outcome[]): string {
  const width = Math.max(...outcomes.map((it) => it.title.length));
  return outcomes
    .map((it) => {
      const result = it.ok ? "ok    " : "FAILED";
      const [first = ""] = it.detail.split("\n");
      return `${it.title.padEnd(width)}  ${result}  ${it.seconds.toFixed(1).padStart(5)} s  ${first}`;
    })
    .join("\n");
}

async function main(): Promise<number> {
  const began = Date.now();
  const lab = await Lab.up({ name: process.env.MXFS_LAB ?? "demo", nodes: 2, ephemeral: true, log: say });
  const outcomes: Outcome[] = [];
  try {
    const state: DemoState = { lab, volume: new Volume(lab), tables: [], raw: undefined };
    state.volume.markKernelLogs();
    let broken: string | undefined;
    for (const line of LINES) {
      const lineBegan = Date.now();
      let ok = false;
      let detail: string;
      say(`... ${line.title}`);
      if (broken !== undefined && line.always !== true) {
        detail = `not tried: "${broken}" failed`;
      } else {
        try {
          detail = await within(line.run(state), line.title);
          ok = true;
        } catch (error) {
          detail = error instanceof Error ? error.message : String(error);
          if (line.foundation === true) broken = line.title;
        }
      }
      const seconds = (Date.now() - lineBegan) / 1000;
      outcomes.push({ title: line.title, ok, seconds, detail });
      say(`${ok ? "ok " : "FAILED"} ${line.title}, ${seconds.toFixed(1)} s: ${detail}`);
      if (!ok && broken === undefined) {
        const logs = await Promise.allSettled(
          state.volume.nodes.map((node) => state.volume.daemonLog(node, 15)),
        );
        logs.forEach((log, i) => {
          say(
            `--- node${i + 1}: last lines of mxfsd.log\n${log.status === "fulfilled" ? log.value : log.reason}`,
          );
        });
      }
    }
    say("");
    for (const text of state.tables) say(`${text}\n`);
  } finally {
    lab.down();
  }
  say(table(outcomes));
  const failed = outcomes.filter((it) => !it.ok).length;
  say(
    `\n${outcomes.length - failed} of ${outcomes.length} ok, ${((Date.now() - began) / 1000).toFixed(0)} s; ` +
      "the lab is down again",
  );
  return failed === 0 ? 0 : 1;
}

try {
  process.exitCode = await main();
} catch (error) {
  process.stderr.write(`demo: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
// Commands that were given up hold their sockets open.
process.exit();
