// SPDX-License-Identifier: GPL-2.0-only
//
// What has changed between two results. Two runs are on machines, or under loads, that may differ: so where a row has
// a ratio to raw XFS it is the ratios that are compared, and the figures themselves only elsewhere.
//
// A change is told when it is larger than both limits: CHANGE_MIN, and what the samples of the two runs scatter by
// (from their medians). With one sample a side nothing is known of the scatter, and ONE_SAMPLE_MIN is the limit.
//
// Weakness: no statistics beyond that; a change that is told wants a second look.

import { cellSummary, type PerfResult, rawRatio } from "./result.js";
import { columnsOf, findRow, ROWS } from "./rows.js";
import { figure, ratioText, type Summary } from "./stats.js";

export const CHANGE_MIN = 0.1;
export const ONE_SAMPLE_MIN = 0.3;

export interface Change {
  readonly row: string;
  readonly column: string;
  /** "ratio": to raw XFS; "figure": in the row's unit. */
  readonly of: "ratio" | "figure";
  readonly before: number;
  readonly after: number;
  readonly better: boolean;
}

export interface Comparison {
  /** Largest first. */
  readonly changes: readonly Change[];
  /** Cells that both have and that did not change beyond their scatter. */
  readonly unchanged: number;
  /** ROW/COLUMN that only one of them has. */
  readonly gone: readonly string[];
  readonly added: readonly string[];
  /** Why the two can hardly be compared. */
  readonly warnings: readonly string[];
}

/** Half of the range, as a part of the median. */
function scatter(summary: Summary): number {
  return summary.median > 0 ? (summary.max - summary.min) / 2 / summary.median : 0;
}

function size(change: Change): number {
  if (change.before <= 0 || change.after <= 0) {
    return change.before === change.after ? 0 : Number.POSITIVE_INFINITY;
  }
  return Math.max(change.before / change.after, change.after / change.before) - 1;
}

function warningsOf(before: PerfResult, after: PerfResult): string[] {
  const found: string[] = [];
  for (const key of ["quick", "fileMib", "randomOps", "files", "seconds"] as const) {
    if (before.settings[key] !== after.settings[key]) {
      found.push(`${key} was ${before.settings[key]}, is ${after.settings[key]}`);
    }
  }
  for (const key of ["cpu", "cpus", "accelerator", "guestKernel"] as const) {
    if (before.machine[key] !== after.machine[key]) {
      found.push(`${key} was ${before.machine[key]}, is ${after.machine[key]}`);
    }
  }
  return found;
}

export function compareResults(before: PerfResult, after: PerfResult): Comparison {
  const changes: Change[] = [];
  const gone: string[] = [];
  const added: string[] = [];
  let unchanged = 0;
  const unknown = before.cells.filter((cell) => !ROWS.some((row) => row.key === cell.row));
  gone.push(...unknown.map((cell) => `${cell.row}/${cell.column}`));
  for (const row of ROWS) {
    for (const { key: column } of columnsOf(row.section)) {
      const [old, now] = [cellSummary(before, row.key, column), cellSummary(after, row.key, column)];
      if (old === null || now === null) {
        if (old !== null) gone.push(`${row.key}/${column}`);
        if (now !== null) added.push(`${row.key}/${column}`);
        continue;
      }
      const ratios = [rawRatio(before, row.key, column), rawRatio(after, row.key, column)] as const;
      const byRatio = column !== "raw" && ratios[0] !== null && ratios[1] !== null;
      const [from, to] = byRatio ? [ratios[0] ?? 0, ratios[1] ?? 0] : [old.median, now.median];
      const change: Change = {
        row: row.key,
        column,
        of: byRatio ? "ratio" : "figure",
        before: from,
        after: to,
        better: row.better === "higher" ? to > from : to < from,
      };
      const least = Math.min(old.count, now.count) < 2 ? ONE_SAMPLE_MIN : CHANGE_MIN;
      if (size(change) > Math.max(least, scatter(old) + scatter(now))) {
        changes.push(change);
      } else {
        unchanged++;
      }
    }
  }
  changes.sort((a, b) => size(b) - size(a));
  return { changes, unchanged, gone, added, warnings: warningsOf(before, after) };
}

function changeText(change: Change): string[] {
  const row = findRow(change.row);
  const text = change.of === "ratio" ? ratioText : figure;
  const factor = change.before > 0 ? change.after / change.before : Number.POSITIVE_INFINITY;
  const unit = change.of === "ratio" ? "of raw XFS" : row.unit;
  return [
    change.better ? "better" : "WORSE",
    row.key,
    change.column,
    text(change.before),
    "->",
    text(change.after),
    unit,
    Number.isFinite(factor) ? `x ${ratioText(factor)}` : "",
  ];
}

/** For the terminal, without a newline at its end. */
export function compareTable(comparison: Comparison, before: PerfResult, after: PerfResult): string {
  const name = (it: PerfResult): string => `${it.date.slice(0, 16)} (${it.commit ?? "unknown commit"})`;
  const lines = [`from ${name(before)} to ${name(after)}`];
  lines.push(...comparison.warnings.map((it) => `careful: ${it}`));
  const rows = comparison.changes.map(changeText);
  const widths = Array.from({ length: 8 }, (_, i) => Math.max(0, ...rows.map((it) => it[i]?.length ?? 0)));
  for (const cells of rows) {
    const padded = cells.map((cell, i) =>
      i === 3 || i === 5 || i === 7 ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0),
    );
    lines.push(padded.join("  ").trimEnd());
  }
  const worse = comparison.changes.filter((it) => !it.better).length;
  lines.push(
    `${comparison.changes.length - worse} better, ${worse} worse, ${comparison.unchanged} not changed beyond their scatter`,
  );
  if (comparison.gone.length > 0) lines.push(`only in the old one: ${comparison.gone.join(", ")}`);
  if (comparison.added.length > 0) lines.push(`only in the new one: ${comparison.added.join(", ")}`);
  return lines.join("\n");
}
