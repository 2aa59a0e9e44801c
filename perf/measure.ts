// SPDX-License-Identifier: GPL-2.0-only
//
// One visit to one file system: everything that is wanted of its columns, measured once. Where a figure cannot be
// had its cell gets the reason, and the next one is tried; when a command hangs, or a guest is gone, the visit is over.
// It begins no further row after the time that a visit has.
//
// Before jobs that are called cold the page caches, dentries and inodes of both nodes are dropped.
//
// Weakness: fio of two nodes starts on both at once but takes its time to start, so sums of both are of overlapping,
// not of equal, stretches of time; mxfs-perf's phases do begin together.

import { ExecError, GuestGoneError, type Lab, LabError, type NodeName, PROJECT_DIR } from "../lab/lab.js";
import { MOUNTPOINT } from "../lab/volume.js";
import { type FioJob, parseFio } from "./fio.js";
import { LoadError, rateOf, runLoad } from "./load.js";
import { addError, addSample, NOT_TRIED, type PerfResult, type Settings } from "./result.js";
import {
  type Column,
  columnsOf,
  FIO_JOBS,
  type FioJobKey,
  META_PHASES,
  ROWS,
  type SystemKey,
  TURN_KINDS,
} from "./rows.js";
import { figure } from "./stats.js";

/** Beyond the time a job has by its settings: to start, to write back, to close. */
const GRACE_MS = 120_000;
/** A file system this slow at writing a file is taken for one that hangs. */
const SLOWEST_MS_PER_MIB = 10_000;

/** The file system, or a guest, is in no state to go on with. */
export class StuckError extends Error {
  override name = "StuckError";
}

function message(error: unknown): string {
  const text =
    error instanceof ExecError
      ? error.result.stderr.trim() || error.message
      : String((error as Error).message);
  return text.replaceAll(/\s+/g, " ").slice(0, 300);
}

function isStuck(error: unknown): boolean {
  return error instanceof GuestGoneError || (error instanceof LabError && !(error instanceof ExecError));
}

/** What a row shows of a fio job. */
export function fioFigure(key: FioJobKey, job: FioJob): number {
  const unit = FIO_JOBS.find((it) => it.key === key)?.unit;
  return unit === "MiB/s" ? (job.read.bw + job.write.bw) / 1024 : job.read.iops + job.write.iops;
}

export class Visit {
  readonly #lab: Lab;
  readonly #system: SystemKey;
  readonly #settings: Settings;
  readonly #wanted: ReadonlySet<string>;
  readonly #result: PerfResult;
  readonly #say: (line: string) => void;
  readonly #deadline: number;

  /** @param visitMs after this time no further row is begun. */
  constructor(
    lab: Lab,
    system: SystemKey,
    wanted: ReadonlySet<string>,
    result: PerfResult,
    visitMs: number,
    say: (line: string) => void,
  ) {
    this.#deadline = Date.now() + visitMs;
    this.#lab = lab;
    this.#system = system;
    this.#settings = result.settings;
    this.#wanted = wanted;
    this.#result = result;
    this.#say = say;
  }

  /** Rows that are wanted, of a section this system has a column in, with their columns. */
  static cells(system: SystemKey, wanted: ReadonlySet<string>): { row: string; column: string }[] {
    return ROWS.filter((row) => wanted.has(row.key)).flatMap((row) =>
      columnsOf(row.section)
        .filter((column) => column.system === system)
        .map((column) => ({ row: row.key, column: column.key })),
    );
  }

  /** @throws StuckError, after every cell that is left has got the reason. */
  async run(): Promise<void> {
    const left = new Set(Visit.cells(this.#system, this.#wanted).map((it) => `${it.row} ${it.column}`));
    const done = (rows: readonly string[], column: string): void => {
      for (const row of rows) left.delete(`${row} ${column}`);
    };
    try {
      const ones = columnsOf("one").filter((it) => it.system === this.#system);
      const boths = columnsOf("both").filter((it) => it.system === this.#system);
      for (const column of boths) {
        await this.#turns(column, done);
        await this.#coldStat(column, done);
      }
      for (const column of ones) {
        await this.#meta(column, `${MOUNTPOINT}/${column.key}-meta`, "", false, done);
      }
      for (const column of boths) {
        await this.#meta(column, `${MOUNTPOINT}/both-meta`, "both-", false, done);
        await this.#meta(column, `${MOUNTPOINT}/shared-meta`, "shared-", true, done);
      }
      for (const column of ones) await this.#fioJobs(column, `${MOUNTPOINT}/${column.key}`, "", done);
      for (const column of boths) await this.#fioJobs(column, `${MOUNTPOINT}/both`, "both-", done);
    } catch (error) {
      if (!(error instanceof StuckError)) throw error;
      for (const cell of left) {
        const [row = "", column = ""] = cell.split(" ");
        addError(this.#result, row, column, error.message);
      }
      throw error;
    }
  }

  /** Runs `body`, whose rows get the reason if it fails. @throws StuckError */
  async #attempt(
    rows: readonly string[],
    column: Column,
    done: (rows: readonly string[], column: string) => void,
    body: () => Promise<ReadonlyMap<string, number>>,
  ): Promise<void> {
    if (Date.now() > this.#deadline) {
      for (const row of rows.filter((it) => this.#wanted.has(it))) {
        addError(
          this.#result,
          row,
          column.key,
          `${NOT_TRIED} the time for one visit was over (--visit-minutes)`,
        );
      }
      done(rows, column.key);
      return;
    }
    try {
      const found = await body();
      for (const row of rows) {
        const value = found.get(row);
        if (value === undefined || !this.#wanted.has(row)) continue;
        addSample(this.#result, row, column.key, value);
        this.#say(`  ${row} on ${column.title}: ${figure(value)}`);
      }
      done(rows, column.key);
    } catch (error) {
      const why = message(error);
      this.#say(`${rows.join(", ")} on ${column.title}: ${why}`);
      if (isStuck(error)) throw new StuckError(why);
      if (!(error instanceof Error)) throw error;
      for (const row of rows.filter((it) => this.#wanted.has(it))) {
        addError(this.#result, row, column.key, why);
      }
      done(rows, column.key);
    }
  }

  #on<T>(nodes: readonly number[], work: (node: number) => Promise<T>): Promise<T[]> {
    return Promise.all(nodes.map(work));
  }

  async #dropCaches(): Promise<void> {
    const nodes = Array.from({ length: this.#lab.nodeCount }, (_, i) => i + 1);
    await this.#on(nodes, (node) =>
      this.#lab.run(node, "sync; echo 3 >/proc/sys/vm/drop_caches", { timeoutMs: GRACE_MS }),
    );
  }

  async #fio(node: NodeName, key: FioJobKey, dir: string, fileMib: number): Promise<FioJob> {
    const { seconds, randomOps, files } = this.#settings;
    const text = await this.#lab.run(
      node,
      ["fio", "--output-format=json", `${PROJECT_DIR}/perf/fio/${key}.fio`],
      {
        timeoutMs: seconds * 1000 + fileMib * SLOWEST_MS_PER_MIB + GRACE_MS,
        env: {
          PATH: process.env.PATH ?? "/usr/sbin:/usr/bin:/sbin:/bin",
          MXFS_DIR: dir,
          MXFS_FILE_MIB: String(fileMib),
          MXFS_RANDOM_KIB: String(randomOps * 4),
          MXFS_FILES: String(files),
          MXFS_SECONDS: String(seconds),
        },
        // fio leaves files of its own where it is started.
        cwd: "/tmp",
      },
    );
    return parseFio(text);
  }

  async #fioJobs(
    column: Column,
    dir: string,
    prefix: "" | "both-",
    done: (rows: readonly string[], column: string) => void,
  ): Promise<void> {
    const jobs = FIO_JOBS.filter((job) => prefix === "" || job.both);
    const wanted = jobs.filter((job) => this.#wanted.has(`${prefix}${job.key}`));
    if (wanted.length === 0) return;
    // The files that the others work in are made by these two.
    const makes = (maker: string): boolean =>
      wanted.some((job) =>
        maker === "direct-seq-write"
          ? job.key.startsWith("direct-")
          : !job.key.startsWith("direct-") && job.key !== "fsync" && job.key !== "many-files",
      );
    const fileMib = Math.max(1, Math.floor(this.#settings.fileMib / column.nodes.length));
    const own = (node: number): string => (column.nodes.length === 1 ? dir : `${dir}-${node}`);
    await this.#on(column.nodes, (node) =>
      this.#lab.run(node, ["mkdir", "-p", `${own(node)}/many`], { timeoutMs: GRACE_MS }),
    );
    for (const job of jobs) {
      const isMaker = (job.key === "seq-write" || job.key === "direct-seq-write") && makes(job.key);
      if (!isMaker && !wanted.includes(job)) continue;
      const row = `${prefix}${job.key}`;
      await this.#attempt([row], column, done, async () => {
        if (job.cold) await this.#dropCaches();
        const found = await this.#on(column.nodes, (node) => this.#fio(node, job.key, own(node), fileMib));
        return new Map([[row, found.reduce((sum, it) => sum + fioFigure(job.key, it), 0)]]);
      });
    }
  }

  /** A phase is over by its own clock; what it is in the middle of then is waited for. */
  get #phaseTimeoutMs(): number {
    return (this.#settings.seconds || 3600) * 1000 + GRACE_MS;
  }

  async #meta(
    column: Column,
    dir: string,
    prefix: "" | "both-" | "shared-",
    shared: boolean,
    done: (rows: readonly string[], column: string) => void,
  ): Promise<void> {
    const phases = META_PHASES.filter((phase) => !shared || phase.shared);
    const last = phases.findLastIndex((phase) => this.#wanted.has(`${prefix}${phase.key}`));
    if (last < 0) return;
    // What is not wanted is left out where nothing that follows needs it: files must have been created.
    const names = phases
      .slice(0, last + 1)
      .map((phase) => phase.key)
      .filter((key) => key === "create" || this.#wanted.has(`${prefix}${key}`));
    const rows = names.map((key) => `${prefix}${key}`);
    const { files, seconds } = this.#settings;
    await this.#attempt(rows, column, done, async () => {
      const found = await runLoad(
        this.#lab,
        column.nodes,
        (node) => [
          "meta",
          shared || column.nodes.length === 1 ? dir : `${dir}-${node}`,
          `n${node}-`,
          String(files),
          String(seconds),
          ...names,
        ],
        names,
        this.#phaseTimeoutMs,
        shared,
      );
      return new Map(found.map((ofNodes, i) => [rows[i] ?? "", rateOf(ofNodes)]));
    });
  }

  async #turns(column: Column, done: (rows: readonly string[], column: string) => void): Promise<void> {
    for (const { key } of TURN_KINDS) {
      const rows = [`turns-${key}`, `turns-${key}-longest`];
      if (!rows.some((it) => this.#wanted.has(it))) continue;
      await this.#attempt(rows, column, done, async () => {
        const file = `${MOUNTPOINT}/turns-${key}`;
        const [ofNodes = []] = await runLoad(
          this.#lab,
          column.nodes,
          (node) => [
            "turns",
            file,
            String(column.nodes.indexOf(Number(node))),
            key,
            String(this.#settings.seconds || 60),
          ],
          ["turns"],
          this.#phaseTimeoutMs,
          true,
        );
        const ops = ofNodes.reduce((sum, it) => sum + it.ops, 0);
        const last = Math.max(...ofNodes.map((it) => it.last ?? 0));
        if (last !== ops) {
          throw new LoadError(`${ops} turns were taken, but the value is ${last}: turns were lost`);
        }
        return new Map([
          [`turns-${key}`, rateOf(ofNodes)],
          [`turns-${key}-longest`, Math.max(...ofNodes.map((it) => it.longest_ms))],
        ]);
      });
    }
  }

  /** Node 1 makes files, node 2 asks for each by name. */
  async #coldStat(column: Column, done: (rows: readonly string[], column: string) => void): Promise<void> {
    const row = "cold-stat";
    if (!this.#wanted.has(row)) return;
    await this.#attempt([row], column, done, async () => {
      const { files, seconds } = this.#settings;
      const [maker = 1, asker = 2] = column.nodes;
      const load = (node: number, count: number, phases: readonly string[]): ReturnType<typeof runLoad> =>
        runLoad(
          this.#lab,
          [node],
          () => ["meta", `${MOUNTPOINT}/cold`, "c", String(count), String(seconds), ...phases],
          phases,
          this.#phaseTimeoutMs,
        );
      const [made = []] = await load(maker, files, ["create"]);
      const found = await load(asker, made[0]?.ops ?? 0, ["theirs", "stat"]);
      return new Map([[row, rateOf(found[1] ?? [])]]);
    });
  }
}
