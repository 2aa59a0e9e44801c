// SPDX-License-Identifier: GPL-2.0-only
//
// `npm run perf`: MXFS beside raw XFS, NFSv4.2, GFS2 and OCFS2, in the lab's two guests and on its one disk.
//
//   npm run perf -- --quick                    one round, about ten minutes on an idle machine with two cores
//   npm run perf                               three rounds of full size: hours where guests are emulated
//   npm run perf -- --only turns-* cold-stat --systems mxfs gfs2
//   npm run perf -- --quick --add              one more round, added to those of the last run
//   npm run perf -- --compare OLD.json         what changed from OLD.json to the last run; measures nothing
//   npm run perf -- --quick --compare OLD.json measures first
//
// A round visits one file system after the other, in an order that shifts from round to round, and raw XFS once more at
// the end; each visit makes the file system new (systems.ts) and measures every wanted row (measure.ts, rows.ts) once.
// Figures are medians over the rounds. They are printed as a table, and written as JSON and as an HTML page after every
// visit, so that an interrupted run leaves what it has.
//
// A file system that does not come up is reported with the reason, and the run goes on. Exit status: 0; 1 when raw XFS
// or mxfs has failed at something, or a kernel complained while mxfs was mounted; 2 wrong usage.
//
// Weakness: guests share the host's cores and its page cache (the disk is a file of the host); emulated ones are about
// twelve times slower than a machine, so what costs CPU weighs too much. Only figures of one run can be compared, and
// best as ratios.

import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { cpus, loadavg, totalmem } from "node:os";
import { dirname } from "node:path";
import yargs from "yargs";
import { hideBin } from "yargs/helpers";
import { LabError } from "../lab/lab.js";
import { Lab, PROJECT_DIR, Volume } from "../lab/volume.js";
import { compareResults, compareTable } from "./compare.js";
import { StuckError, Visit } from "./measure.js";
import { reportPage } from "./report.js";
import {
  addError,
  hasFailed,
  mergeResult,
  type PerfResult,
  parseResult,
  RESULT_FORMAT,
  ResultError,
  type Settings,
} from "./result.js";
import { ROWS, roundOrder, SYSTEMS, type SystemKey, selectRows, selectSystems } from "./rows.js";
import { Stage } from "./systems.js";
import { markdownTable, terminalTable } from "./table.js";

const GUEST_MEMORY_MIB = 1024;
const SIZE_QUICK = { fileMib: 16, randomOps: 1200, files: 1000, seconds: 3 } as const;
const SIZE_FULL = { fileMib: 256, randomOps: 20_000, files: 2000, seconds: 30 } as const;

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

function readResult(file: string): PerfResult {
  if (!existsSync(file)) {
    throw new ResultError(`${file}: no such file; a run writes one: npm run perf -- --quick`);
  }
  try {
    return parseResult(readFileSync(file, "utf8"));
  } catch (error) {
    if (error instanceof ResultError) throw new ResultError(`${file}: ${error.message}`);
    throw error;
  }
}

function writeWhole(file: string, text: string): void {
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(`${file}.new`, text);
  renameSync(`${file}.new`, file);
}

function commit(): string | null {
  try {
    const git = (...args: string[]): string =>
      execFileSync("git", ["-C", PROJECT_DIR, ...args], {
        encoding: "utf8",
        stdio: ["ignore", "pipe", "ignore"],
      });
    return `${git("rev-parse", "--short", "HEAD").trim()}${git("status", "--porcelain", "-uno") === "" ? "" : "+"}`;
  } catch {
    return null; // no repository: a copy of the sources, which has no commit
  }
}

async function emptyResult(lab: Lab, settings: Settings, systems: readonly SystemKey[]): Promise<PerfResult> {
  const kernel = await lab.run(1, ["uname", "-r"]);
  return {
    format: RESULT_FORMAT,
    date: new Date().toISOString(),
    minutes: 0,
    commit: commit(),
    machine: {
      cpu: cpus()[0]?.model ?? "unknown CPU",
      cpus: cpus().length,
      memoryMib: Math.round(totalmem() / 2 ** 20),
      accelerator: lab.status().accelerator,
      guestKernel: kernel.trim(),
      guestMemoryMib: GUEST_MEMORY_MIB,
    },
    settings,
    loads: [],
    systems: systems.map((key) => ({ key, reason: null })),
    cells: [],
    notes: [],
  };
}

/** One visit; what fails is in the result afterwards. After the last one the nodes are left as they are. */
async function visit(
  stage: Stage,
  key: SystemKey,
  wanted: ReadonlySet<string>,
  result: PerfResult,
  visitMs: number,
  isLast: boolean,
): Promise<void> {
  const { volume } = stage;
  const state = result.systems.find((it) => it.key === key);
  result.loads.push(loadavg()[0] ?? 0);
  volume.markKernelLogs();
  try {
    await stage.up(key);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    say(`${key} does not come up: ${reason}`);
    const hasFigures = result.cells.some((it) =>
      Visit.cells(key, wanted).some((cell) => cell.row === it.row && cell.column === it.column),
    );
    if (!hasFigures && state !== undefined) state.reason = reason.replaceAll(/\s+/g, " ").slice(0, 500);
    for (const cell of hasFigures ? Visit.cells(key, wanted) : []) {
      addError(result, cell.row, cell.column, "did not come up in one round");
    }
    if (!isLast) await stage.reboot();
    return;
  }
  if (state !== undefined) state.reason = null;
  let stuck = false;
  try {
    await new Visit(volume.lab, key, wanted, result, visitMs, say).run();
  } catch (error) {
    if (!(error instanceof StuckError)) throw error;
    stuck = true;
  }
  if (key === "mxfs") {
    result.notes.push(...volume.kernelTrouble().map((it) => `kernel log while mxfs was mounted: ${it}`));
  }
  if (!isLast) await (stuck ? stage.reboot() : stage.down(key));
}

interface Plan {
  readonly visitMs: number;
  readonly settings: Settings;
  readonly wanted: ReadonlySet<string>;
  readonly systems: readonly SystemKey[];
  readonly json: string;
  readonly html: string;
  /** Rounds of an earlier run that these are added to. */
  readonly earlier: PerfResult | null;
}

async function measureAll(plan: Plan): Promise<PerfResult> {
  const began = Date.now();
  const { settings, systems, wanted } = plan;
  const lab = await Lab.up({
    name: process.env.MXFS_LAB ?? "perf",
    nodes: 2,
    memoryMib: GUEST_MEMORY_MIB,
    ephemeral: true,
    log: say,
  });
  try {
    const result = await emptyResult(lab, settings, systems);
    if (plan.earlier !== null) mergeResult(result, plan.earlier);
    const earlierMinutes = result.minutes;
    const stage = new Stage(new Volume(lab), say);
    const orders = Array.from({ length: settings.rounds }, (_, round) => roundOrder(systems, round));
    const visits = [...orders.flat(), ...systems.filter((it) => it === "raw")];
    for (const [i, key] of visits.entries()) {
      const minutes = (Date.now() - began) / 60_000;
      say(`${minutes.toFixed(1)} min: visit ${i + 1} of ${visits.length}: ${key}`);
      await visit(stage, key, wanted, result, plan.visitMs, i === visits.length - 1);
      result.minutes = earlierMinutes + (Date.now() - began) / 60_000;
      writeWhole(plan.json, `${JSON.stringify(result, null, 1)}\n`);
      writeWhole(plan.html, reportPage(result));
    }
    return result;
  } finally {
    lab.down();
  }
}

function isUnwell(result: PerfResult): boolean {
  const ours = result.cells.some(
    (it) => ["raw", "holder", "member", "mxfs"].includes(it.column) && hasFailed(it),
  );
  const unfit = result.systems.some((it) => (it.key === "raw" || it.key === "mxfs") && it.reason !== null);
  return ours || unfit || result.notes.some((it) => it.startsWith("kernel log"));
}

function listRows(): string {
  const systems = SYSTEMS.map((it) => `  ${it.key.padEnd(26)} ${it.title}`);
  const rows = ROWS.map(
    (it) => `  ${it.key.padEnd(26)} ${it.section.padEnd(8)} ${it.title.trim()}, ${it.unit}`,
  );
  return ["systems:", ...systems, "rows:", ...rows].join("\n");
}

async function main(): Promise<number> {
  const argv = await yargs(hideBin(process.argv))
    .scriptName("perf")
    .option("quick", { type: "boolean", default: false, describe: "small sizes, one round: ten minutes" })
    .option("rounds", { type: "number", describe: "visits to each file system (3; quick: 1)" })
    .option("only", { type: "string", array: true, default: [], describe: "rows, sections, or PREFIX*" })
    .option("systems", {
      type: "string",
      array: true,
      default: [],
      describe: "some of raw mxfs nfs gfs2 ocfs2",
    })
    .option("files", { type: "number", describe: "files of the metadata loads, for each node, up to 100000" })
    .option("file-mib", { type: "number", describe: "size of fio's file" })
    .option("seconds", { type: "number", describe: "limit of a job; 0: none (metadata loads only)" })
    .option("visit-minutes", {
      type: "number",
      describe: "begin no row after this time in a visit (quick: 4)",
    })
    .option("json", { type: "string", default: ".lab/perf.json", describe: "where the figures go" })
    .option("html", { type: "string", describe: "where the report goes (beside the figures)" })
    .option("add", { type: "boolean", default: false, describe: "add the rounds to those in the JSON file" })
    .option("compare", { type: "string", describe: "an older JSON file: print what changed" })
    .option("markdown", {
      type: "boolean",
      default: false,
      describe: "print the last run's table as Markdown",
    })
    .option("list", { type: "boolean", default: false, describe: "show the rows and the systems" })
    .strict()
    .parseAsync();
  if (argv.list) {
    process.stdout.write(`${listRows()}\n`);
    return 0;
  }
  if (argv.markdown) {
    process.stdout.write(`${markdownTable(readResult(argv.json))}\n`);
    return 0;
  }
  const limited = (name: string, value: number, least: number, most: number): number => {
    if (!Number.isInteger(value) || value < least || value > most) {
      throw new RangeError(`--${name} ${value}: expected a whole number from ${least} to ${most}`);
    }
    return value;
  };
  const size = argv.quick ? SIZE_QUICK : SIZE_FULL;
  const settings: Settings = {
    quick: argv.quick,
    rounds: limited("rounds", argv.rounds ?? (argv.quick ? 1 : 3), 1, 100),
    fileMib: limited("file-mib", argv.fileMib ?? size.fileMib, 2, 1024),
    randomOps: size.randomOps,
    files: limited("files", argv.files ?? size.files, 1, 100_000),
    seconds: limited("seconds", argv.seconds ?? size.seconds, 0, 3600),
  };
  const visitMs = 60_000 * limited("visit-minutes", argv.visitMinutes ?? (argv.quick ? 4 : 600), 1, 600);
  const wanted = selectRows(argv.only);
  const systems = selectSystems(argv.systems);
  // Before hours of work: is what is asked for to be had?
  const old = argv.compare === undefined ? null : readResult(argv.compare);
  const asked = argv.quick || argv.rounds !== undefined || argv.only.length > 0 || argv.systems.length > 0;
  let result: PerfResult;
  if (old !== null && !asked) {
    result = readResult(argv.json);
  } else {
    const html = argv.html ?? argv.json.replace(/(\.json)?$/, ".html");
    const earlier = argv.add && existsSync(argv.json) ? readResult(argv.json) : null;
    result = await measureAll({ settings, visitMs, wanted, systems, json: argv.json, html, earlier });
    process.stdout.write(`${terminalTable(result)}\n`);
    say(`\nall figures: ${argv.json}\nreport: ${html}`);
  }
  if (old !== null) {
    process.stdout.write(`${compareTable(compareResults(old, result), old, result)}\n`);
    return 0;
  }
  return isUnwell(result) ? 1 : 0;
}

try {
  process.exitCode = await main();
} catch (error) {
  if (error instanceof LabError || error instanceof ResultError || error instanceof RangeError) {
    say(`perf: ${error.message}`);
    process.exitCode = error instanceof RangeError ? 2 : 1;
  } else {
    throw error;
  }
}
// Commands that were given up hold their sockets open.
process.exit();
