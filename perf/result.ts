// SPDX-License-Identifier: GPL-2.0-only
//
// What a run of the harness leaves: settings, machine, every sample by row and column, and what could not be
// measured and why. As JSON it is what --compare reads; the table and the report are made from it.
//
// Weakness: a file of another format is refused, not converted.

import { columnsOf, findRow, ROWS, type SystemKey } from "./rows.js";
import { ratio, type Summary, summarize } from "./stats.js";

export const RESULT_FORMAT = "mxfs-perf-1";
const SAMPLES_MAX = 10_000;

export interface Settings {
  readonly quick: boolean;
  readonly rounds: number;
  /** Size of fio's file, MiB; half of it on each node where both are at work. */
  readonly fileMib: number;
  /** Operations of 4 KiB, at most, of a random job. */
  readonly randomOps: number;
  /** Files of the metadata loads, for each node. */
  readonly files: number;
  /** Longest time of a job (but sequential writing) or a phase. */
  readonly seconds: number;
}

export interface Machine {
  readonly cpu: string;
  readonly cpus: number;
  readonly memoryMib: number;
  /** "tcg": the guests are emulated, and slow. */
  readonly accelerator: string;
  readonly guestKernel: string;
  readonly guestMemoryMib: number;
}

export interface SystemState {
  readonly key: SystemKey;
  /** Why it did not run at all; null: it ran. */
  reason: string | null;
}

export interface Cell {
  readonly row: string;
  readonly column: string;
  readonly samples: number[];
  /** Why there is no sample of a round. */
  readonly errors: string[];
}

export interface PerfResult {
  readonly format: typeof RESULT_FORMAT;
  /** ISO 8601, of the start. */
  readonly date: string;
  minutes: number;
  readonly commit: string | null;
  readonly machine: Machine;
  readonly settings: Settings;
  /** The host's load average (1 minute) at the start of each visit: 3 or so is the harness itself on two cores. */
  readonly loads: number[];
  readonly systems: SystemState[];
  readonly cells: Cell[];
  /** What else should be known: words of the guests' kernels, say. */
  readonly notes: string[];
}

/** How an error begins that says that a figure was not even tried for lack of time. */
export const NOT_TRIED = "not tried:";

/** Whether something went wrong with a cell. */
export function hasFailed(cell: Cell | null): boolean {
  return cell?.errors.some((it) => !it.startsWith(NOT_TRIED)) ?? false;
}

export function findCell(result: PerfResult, rowKey: string, column: string): Cell | null {
  return result.cells.find((it) => it.row === rowKey && it.column === column) ?? null;
}

function cellFor(result: PerfResult, rowKey: string, column: string): Cell {
  const found = findCell(result, rowKey, column);
  if (found !== null) {
    return found;
  }
  if (!columnsOf(findRow(rowKey).section).some((it) => it.key === column)) {
    throw new RangeError(`row ${rowKey} has no column ${column}`);
  }
  const cell: Cell = { row: rowKey, column, samples: [], errors: [] };
  result.cells.push(cell);
  return cell;
}

/** @throws RangeError for what can be no figure. */
export function addSample(result: PerfResult, rowKey: string, column: string, value: number): void {
  if (!Number.isFinite(value) || value < 0) {
    throw new RangeError(`row ${rowKey}, column ${column}: ${value} is no figure`);
  }
  cellFor(result, rowKey, column).samples.push(value);
}

export function addError(result: PerfResult, rowKey: string, column: string, reason: string): void {
  cellFor(result, rowKey, column).errors.push(reason);
}

/** Median and range of a cell; null without a sample. */
export function cellSummary(result: PerfResult, rowKey: string, column: string): Summary | null {
  return summarize(findCell(result, rowKey, column)?.samples ?? []);
}

/** A cell's median by that of raw XFS in the row it refers to. */
export function rawRatio(result: PerfResult, rowKey: string, column: string): number | null {
  const { base } = findRow(rowKey);
  if (base === null) {
    return null;
  }
  const own = cellSummary(result, rowKey, column)?.median ?? null;
  return ratio(own, cellSummary(result, base, "raw")?.median ?? null);
}

/** Rows that anything was tried for, in the order of ROWS. */
export function rowsOf(result: PerfResult): typeof ROWS {
  return ROWS.filter((it) => result.cells.some((cell) => cell.row === it.key));
}

/** One line for each system that did not run, and for each different failure with the rows it befell. */
export function failures(result: PerfResult): string[] {
  const lines = result.systems.flatMap(({ key, reason }) =>
    reason === null ? [] : [`${key}: not run: ${reason}`],
  );
  const byReason = new Map<string, Set<string>>();
  for (const cell of result.cells) {
    for (const error of cell.errors) {
      const name = `${cell.column}: ${error}`;
      byReason.set(name, (byReason.get(name) ?? new Set()).add(cell.row));
    }
  }
  for (const [reason, rows] of byReason) {
    lines.push(`${[...rows].join(", ")} on ${reason}`);
  }
  return lines;
}

// ---- reading a file ---------------------------------------------------------------------------------------------

/** A file that is no result of this harness; the message says where it differs. */
export class ResultError extends Error {
  override name = "ResultError";
}

type Fields = Record<string, unknown>;

function expected(what: string, wanted: string, found: unknown): ResultError {
  const text = JSON.stringify(found) ?? "nothing";
  return new ResultError(
    `${what}: expected ${wanted}, found ${text.length > 80 ? `${text.slice(0, 80)}...` : text}`,
  );
}

function object(value: unknown, what: string): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw expected(what, "an object", value);
  }
  return value as Fields;
}

function list<T>(value: unknown, what: string, each: (item: unknown, what: string) => T): T[] {
  if (!Array.isArray(value) || value.length > SAMPLES_MAX) {
    throw expected(what, `a list of at most ${SAMPLES_MAX}`, value);
  }
  return value.map((item, i) => each(item, `${what}[${i}]`));
}

function text(value: unknown, what: string): string {
  if (typeof value !== "string") {
    throw expected(what, "a string", value);
  }
  return value;
}

function textOrNull(value: unknown, what: string): string | null {
  return value === null ? null : text(value, what);
}

function amount(value: unknown, what: string): number {
  if (typeof value !== "number" || !Number.isFinite(value) || value < 0) {
    throw expected(what, "a number from 0", value);
  }
  return value;
}

function settingsOf(value: unknown): Settings {
  const it = object(value, "settings");
  if (typeof it.quick !== "boolean") {
    throw expected("settings.quick", "true or false", it.quick);
  }
  return {
    quick: it.quick,
    rounds: amount(it.rounds, "settings.rounds"),
    fileMib: amount(it.fileMib, "settings.fileMib"),
    randomOps: amount(it.randomOps, "settings.randomOps"),
    files: amount(it.files, "settings.files"),
    seconds: amount(it.seconds, "settings.seconds"),
  };
}

function machineOf(value: unknown): Machine {
  const it = object(value, "machine");
  return {
    cpu: text(it.cpu, "machine.cpu"),
    cpus: amount(it.cpus, "machine.cpus"),
    memoryMib: amount(it.memoryMib, "machine.memoryMib"),
    accelerator: text(it.accelerator, "machine.accelerator"),
    guestKernel: text(it.guestKernel, "machine.guestKernel"),
    guestMemoryMib: amount(it.guestMemoryMib, "machine.guestMemoryMib"),
  };
}

function systemOf(value: unknown, what: string): SystemState {
  const it = object(value, what);
  return { key: text(it.key, `${what}.key`) as SystemKey, reason: textOrNull(it.reason, `${what}.reason`) };
}

function cellOf(value: unknown, what: string): Cell {
  const it = object(value, what);
  return {
    row: text(it.row, `${what}.row`),
    column: text(it.column, `${what}.column`),
    samples: list(it.samples, `${what}.samples`, amount),
    errors: list(it.errors, `${what}.errors`, text),
  };
}

/** Rows that this version does not know are kept: --compare names them. @throws ResultError */
export function parseResult(json: string): PerfResult {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch (error) {
    throw new ResultError(`no JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
  const it = object(value, "result");
  if (it.format !== RESULT_FORMAT) {
    throw expected("format", `"${RESULT_FORMAT}"`, it.format);
  }
  return {
    format: RESULT_FORMAT,
    date: text(it.date, "date"),
    minutes: amount(it.minutes, "minutes"),
    commit: textOrNull(it.commit, "commit"),
    machine: machineOf(it.machine),
    settings: settingsOf(it.settings),
    loads: list(it.loads, "loads", amount),
    systems: list(it.systems, "systems", systemOf),
    cells: list(it.cells, "cells", cellOf),
    notes: list(it.notes, "notes", text),
  };
}

/** Adds the samples of another run with the same settings: more rounds of one measurement. @throws ResultError */
export function mergeResult(into: PerfResult, other: PerfResult): void {
  for (const key of ["quick", "fileMib", "randomOps", "files", "seconds"] as const) {
    if (into.settings[key] !== other.settings[key]) {
      throw new ResultError(
        `settings.${key}: expected ${into.settings[key]} as in this run, found ${other.settings[key]}: ` +
          "rounds of different sizes are not added up",
      );
    }
  }
  if (into.commit !== other.commit) {
    into.notes.push(
      `rounds of different commits: ${other.commit ?? "unknown"} and ${into.commit ?? "unknown"}`,
    );
  }
  into.minutes += other.minutes;
  into.loads.unshift(...other.loads);
  into.notes.unshift(...other.notes);
  for (const cell of other.cells) {
    if (!ROWS.some((it) => it.key === cell.row)) {
      continue;
    }
    const own = cellFor(into, cell.row, cell.column);
    own.samples.unshift(...cell.samples);
    own.errors.unshift(...cell.errors);
  }
  for (const system of other.systems) {
    const own = into.systems.find((it) => it.key === system.key);
    if (own === undefined) {
      into.systems.push({ ...system });
    } else if (system.reason === null) {
      own.reason = null;
    }
  }
}
