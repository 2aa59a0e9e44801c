// SPDX-License-Identifier: GPL-2.0-only
//
// The test runner behind `npm test`.
//
//   npm test                    everything, in the order of PARTS
//   npm test -- unit            one part
//   npm test -- unit/config     the files of a part whose name begins so
//   npm test -- --list          what there is
//   npm test -- faults --target lio    the labs' shared disk from another target than tgt; or MXFS_TARGET=lio
//   npm test -- lab/mxfs_posix --kernel debug    guests on the kernel of scripts/debug-kernel.sh; or MXFS_KERNEL=debug
//
// Every part says how long it took. The last line is "N passed, N failed"; the exit status is 0 only when
// nothing failed and something passed. A test file that ends without uvu's totals counts as one failure.

import { spawn } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const DIST_TEST = join(ROOT, "dist", "test");

/** By how much a job may take longer on the guests' debug kernel. */
const DEBUG_PATIENCE = 4;

interface Count {
  passed: number;
  failed: number;
}

interface Job {
  readonly name: string;
  readonly command: readonly string[];
  /** uvu: totals are read from the output. check: the exit status is one test. */
  readonly kind: "uvu" | "check";
  readonly timeoutMs: number;
  /** A check that test files may run beside. */
  readonly beside?: boolean;
  /** Its output is shown when it is well, too. */
  readonly tells?: boolean;
}

interface Part {
  readonly name: string;
  readonly about: string;
  /** How many test files run at once; 1 unless told. */
  readonly lanes?: number;
  /** Runs only when it is asked for by name; a plain run says that it was left out. */
  readonly onDemand?: boolean;
  jobs(): Job[];
}

function testFiles(folder: string, timeoutMs: number): Job[] {
  const path = join(DIST_TEST, folder);
  if (!existsSync(path)) {
    return [];
  }
  return readdirSync(path)
    .filter(
      (name) =>
        name.endsWith(".test.js") && existsSync(join(ROOT, "test", folder, name.replace(/\.js$/, ".ts"))),
    )
    .sort()
    .map((name) => ({
      name: `${folder}/${name.replace(/\.test\.js$/, "")}`,
      command: [process.execPath, join(path, name)],
      kind: "uvu",
      timeoutMs,
    }));
}

function timeLimitMs(job: Job): number {
  const inLab = job.name.startsWith("lab/");
  return job.timeoutMs * (inLab && process.env.MXFS_KERNEL === "debug" ? DEBUG_PATIENCE : 1);
}

function check(name: string, command: readonly string[], timeoutMs = 300_000): Job {
  return { name, command, kind: "check", timeoutMs };
}

/** For programs that take the target as an option; tests read MXFS_TARGET themselves. */
function targetWords(): string[] {
  return process.env.MXFS_TARGET === "lio" ? ["--target", "lio"] : [];
}

/** Those that take the longest, in this order: they begin first, so that all lanes end at about the same time. */
const LONGEST = ["lab/mxfs_mount", "lab/mxfs_commit", "lab/mxfs_roles", "unit/cluster_sim"];

function longestFirst(jobs: Job[]): Job[] {
  const rank = (job: Job): number => (LONGEST.indexOf(job.name) + LONGEST.length + 1) % (LONGEST.length + 1);
  return jobs.sort((one, other) => rank(one) - rank(other));
}

/** Tests that wait for time-outs most of their time: a plain run has the chaos campaign and the roles instead. */
function isFault(job: Job): boolean {
  return /^lab\/(mxfs_faults|mxfs_fence|mxfs_asking|perf)/.test(job.name);
}

const PARTS: readonly Part[] = [
  {
    name: "lint",
    about: "format and lint of TypeScript, C and C++ compiled without a warning, sparse",
    jobs: () => [
      check("lint/biome", ["npx", "biome", "check", "--error-on-warnings", "."]),
      check("lint/types", ["npx", "tsc", "-p", ".", "--noEmit", "--incremental", "false"]),
      check("lint/sparse", ["bash", "scripts/sparse.sh"]),
    ],
  },
  {
    name: "unit",
    about: "units, properties and fuzz, natively",
    lanes: 2,
    jobs: () => longestFirst(testFiles("unit", 300_000)),
  },
  {
    name: "sim",
    about: "the seeded cluster simulation",
    jobs: () => [
      // Seeds that nobody has tried: the range is printed, and replays.
      {
        ...check(
          "sim/campaign",
          [process.execPath, "dist/test/sim/run.js", "--seeds", "2000", "--from", "random"],
          900_000,
        ),
        tells: true,
      },
    ],
  },
  {
    name: "lab",
    about: "real kernels in virtual machines; two files at once, since they wait more than they work",
    lanes: 2,
    jobs: () => [
      {
        ...check("lab/chaos", [process.execPath, "dist/lab/chaos.js", "--short", ...targetWords()], 900_000),
        beside: true,
      },
      ...longestFirst(testFiles("lab", 1_200_000).filter((job) => !isFault(job))),
      check("lab/demo", [process.execPath, "dist/lab/demo.js"], 900_000),
    ],
  },
  {
    name: "faults",
    about:
      "every fault in turn on real kernels, reservations, locks not asked for, the harness: half an hour of its own",
    onDemand: true,
    jobs: () => testFiles("lab", 1_800_000).filter(isFault),
  },
];

/** What the tests that take long say after each of theirs. */
const PROGRESS = /\[[0-9.]+ s\] .*/;

function run(job: Job): Promise<{ status: number | null; output: string; late: boolean }> {
  return new Promise((resolve) => {
    const [program = "", ...rest] = job.command;
    const child = spawn(program, rest, { cwd: ROOT, stdio: ["ignore", "pipe", "pipe"], detached: true });
    let output = "";
    let late = false;
    let line = "";
    const take = (chunk: Buffer): void => {
      const text = chunk.toString("utf8");
      output = (output + text).slice(-200_000);
      const lines = (line + text).slice(-10_000).split("\n");
      line = lines.pop() ?? "";
      for (const done of lines) {
        const progress = PROGRESS.exec(done);
        if (progress !== null) process.stdout.write(`     ${progress[0]}\n`);
      }
    };
    child.stdout.on("data", take);
    child.stderr.on("data", take);
    const timer = setTimeout(() => {
      late = true;
      if (child.pid !== undefined) {
        process.kill(-child.pid, "SIGKILL");
      }
    }, timeLimitMs(job));
    const end = (status: number | null): void => {
      clearTimeout(timer);
      resolve({ status, output, late });
    };
    child.on("error", (error) => {
      output += String(error);
      end(null);
    });
    child.on("close", end);
  });
}

function countOf(job: Job, status: number | null, output: string): Count {
  if (job.kind === "check") {
    return status === 0 ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 };
  }
  const total = /^\s*Total:\s+(\d+)/m.exec(output);
  const passed = /^\s*Passed:\s+(\d+)/m.exec(output);
  const skipped = /^\s*Skipped:\s+(\d+)/m.exec(output);
  if (total === null || passed === null) {
    return { passed: 0, failed: 1 };
  }
  const failed = Number(total[1]) - Number(passed[1]) - Number(skipped?.[1] ?? 0);
  const silent = status !== 0 && failed === 0 ? 1 : 0;
  return { passed: Number(passed[1]), failed: failed + silent + Number(skipped?.[1] ?? 0) };
}

function seconds(sinceMs: number): string {
  return `${((Date.now() - sinceMs) / 1000).toFixed(1)} s`;
}

async function main(): Promise<number> {
  const wanted = process.argv.slice(2);
  const at = wanted.indexOf("--target");
  if (at >= 0) {
    const [, target] = wanted.splice(at, 2);
    if (target !== "tgt" && target !== "lio") {
      process.stderr.write(`--target ${target ?? ""}: expected tgt or lio\n`);
      return 2;
    }
    process.env.MXFS_TARGET = target;
  }
  const kernelAt = wanted.indexOf("--kernel");
  if (kernelAt >= 0) {
    const [, kernel] = wanted.splice(kernelAt, 2);
    if (kernel !== "debug") {
      process.stderr.write(`--kernel ${kernel ?? ""}: expected debug\n`);
      return 2;
    }
    process.env.MXFS_KERNEL = kernel;
  }
  const jobsOf = (part: Part): Job[] =>
    part
      .jobs()
      .filter(
        (job) =>
          (wanted.length === 0 && part.onDemand !== true) ||
          wanted.some((word) => word === part.name || (word.includes("/") && job.name.startsWith(word))),
      );
  if (wanted.includes("--list")) {
    for (const part of PARTS) {
      process.stdout.write(`${part.name}: ${part.about}\n`);
      for (const job of part.jobs()) {
        process.stdout.write(`  ${job.name}\n`);
      }
    }
    return 0;
  }
  const sum: Count = { passed: 0, failed: 0 };
  const times: string[] = [];
  const startMs = Date.now();
  for (const part of PARTS) {
    const jobs = jobsOf(part);
    if (jobs.length === 0) {
      continue;
    }
    const partStartMs = Date.now();
    process.stdout.write(`\n== ${part.name}: ${part.about}\n`);
    const one = async (job: Job): Promise<void> => {
      const jobStartMs = Date.now();
      const { status, output, late } = await run(job);
      const count = countOf(job, status, output);
      sum.passed += count.passed;
      sum.failed += count.failed;
      const verdict = count.failed === 0 ? "ok  " : "FAIL";
      const note = late ? ` (stopped after ${timeLimitMs(job) / 1000} s)` : "";
      process.stdout.write(
        `${verdict} ${job.name}: ${count.passed} passed, ${count.failed} failed, ${seconds(jobStartMs)}${note}\n`,
      );
      if (count.failed > 0) {
        process.stdout.write(`${output.slice(-20_000)}\n`);
      } else if (job.tells === true) {
        process.stdout.write(output.replace(/^/gm, "     ").trimEnd().concat("\n"));
      }
    };
    // Files beside each other, checks (they measure, or use all processors) one by one behind them.
    const inLanes = (job: Job): boolean => job.kind === "uvu" || job.beside === true;
    const files = jobs.filter(inLanes);
    const lane = async (): Promise<void> => {
      for (let job = files.shift(); job !== undefined; job = files.shift()) await one(job);
    };
    await Promise.all(Array.from({ length: part.lanes ?? 1 }, lane));
    for (const job of jobs) if (!inLanes(job)) await one(job);
    times.push(`${part.name} ${seconds(partStartMs)}`);
  }
  if (wanted.length === 0) {
    const left = PARTS.filter((part) => part.onDemand === true).map((part) => `npm test -- ${part.name}`);
    process.stdout.write(`\nnot part of a plain run: ${left.join(", ")}\n`);
  }
  process.stdout.write(`\ntime: ${times.join(", ")}; all ${seconds(startMs)}\n`);
  process.stdout.write(`${sum.passed} passed, ${sum.failed} failed\n`);
  return sum.failed === 0 && sum.passed > 0 ? 0 : 1;
}

process.exitCode = await main();
