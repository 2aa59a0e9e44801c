// SPDX-License-Identifier: GPL-2.0-only
//
// A result as text: the table in the terminal, and the same as Markdown for the README. One block for each section;
// behind each figure its ratio to raw XFS, where there is one.

import { goalLines } from "./goals.js";
import { cellSummary, failures, findCell, hasFailed, type PerfResult, rawRatio, rowsOf } from "./result.js";
import { type Column, type Row, SECTIONS, type Section } from "./rows.js";
import { figure, ratioText } from "./stats.js";

/** Columns of a section in which this result has tried anything. */
function usedColumns(result: PerfResult, section: Section): Column[] {
  return section.columns.filter(
    (column) =>
      result.systems.some((it) => it.key === column.system) &&
      (column.key !== "raw" || rowsOf(result).some((row) => findCell(result, row.key, "raw") !== null)),
  );
}

function cellText(result: PerfResult, row: Row, column: Column): [value: string, ratio: string] {
  const system = result.systems.find((it) => it.key === column.system);
  const summary = cellSummary(result, row.key, column.key);
  if (summary === null) {
    const failed = hasFailed(findCell(result, row.key, column.key));
    return [failed ? "failed" : system?.reason != null ? "not run" : "-", ""];
  }
  const byRaw = column.key === "raw" || row.base === null ? null : rawRatio(result, row.key, column.key);
  return [figure(summary.median), byRaw === null ? "" : ratioText(byRaw)];
}

/** How many samples the best-measured cell has that is not raw XFS (which is measured once more). */
export function roundsMeasured(result: PerfResult): number {
  return Math.max(0, ...result.cells.filter((it) => it.column !== "raw").map((it) => it.samples.length));
}

/** Who, when, on what. */
export function headLines(result: PerfResult): string[] {
  const { machine, settings, loads } = result;
  const how = machine.accelerator === "kvm" ? "hardware virtualisation" : "emulated guests";
  const loadText =
    loads.length === 0
      ? ""
      : `; host's load ${Math.min(...loads).toFixed(1)} to ${Math.max(...loads).toFixed(1)}`;
  return [
    `${result.date.slice(0, 10)}, commit ${result.commit ?? "unknown"}; ${machine.cpus} x ${machine.cpu}, ` +
      `${how} of 1 CPU and ${machine.guestMemoryMib} MiB, kernel ${machine.guestKernel}${loadText}`,
    `medians of ${roundsMeasured(result)} round(s), ${Math.round(result.minutes)} minutes; ` +
      `file ${settings.fileMib} MiB, ${settings.files} files, at most ${settings.seconds} s a job`,
  ];
}

function layout(rows: readonly (readonly string[])[], leftColumns: number): string[] {
  const count = Math.max(...rows.map((it) => it.length));
  const widths = Array.from({ length: count }, (_, i) => Math.max(...rows.map((it) => it[i]?.length ?? 0)));
  return rows.map((cells) =>
    cells
      .map((cell, i) => (i < leftColumns ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0)))
      .join("  ")
      .trimEnd(),
  );
}

function sectionText(result: PerfResult, section: Section, rows: readonly Row[]): string[] {
  const columns = usedColumns(result, section);
  const compared = section.key !== "between" && result.cells.some((it) => it.column === "raw");
  const spread = (column: Column, cells: readonly string[]): readonly string[] =>
    compared && column.key !== "raw" ? cells : cells.slice(0, 1);
  const header = [section.title, "unit", ...columns.flatMap((it) => spread(it, [it.short, "/raw"]))];
  const body = rows.map((row) => [
    row.title,
    row.unit,
    ...columns.flatMap((column) => spread(column, cellText(result, row, column))),
  ]);
  return layout([header, ...body], 2);
}

/** The whole table, without a newline at its end. */
export function terminalTable(result: PerfResult): string {
  const blocks = SECTIONS.flatMap((section) => {
    const rows = rowsOf(result).filter((it) => it.section === section.key);
    return rows.length === 0 ? [] : [sectionText(result, section, rows).join("\n")];
  });
  const goals = goalLines(result);
  if (goals.length > 0) {
    blocks.push(["goals:", ...goals.map((it) => `  ${it}`)].join("\n"));
  }
  const failed = failures(result);
  if (failed.length > 0) {
    blocks.push(["not measured:", ...failed.map((it) => `  ${it}`)].join("\n"));
  }
  if (result.notes.length > 0) {
    blocks.push(["notes:", ...result.notes.map((it) => `  ${it}`)].join("\n"));
  }
  return [headLines(result).join("\n"), ...blocks].join("\n\n");
}

/** The same for the README: a figure, and its ratio to raw XFS in brackets. */
export function markdownTable(result: PerfResult): string {
  const lines: string[] = [];
  for (const section of SECTIONS) {
    const rows = rowsOf(result).filter((it) => it.section === section.key);
    if (rows.length === 0) {
      continue;
    }
    const columns = usedColumns(result, section);
    lines.push(
      `| ${section.title} | ${columns.map((it) => it.title).join(" | ")} |`,
      `| --- |${columns.map(() => " ---: |").join("")}`,
    );
    for (const row of rows) {
      const cells = columns.map((column) => {
        const [value, byRaw] = cellText(result, row, column);
        return byRaw === "" ? value : `${value} (${byRaw})`;
      });
      lines.push(`| ${row.title.trim()}, ${row.unit} | ${cells.join(" | ")} |`);
    }
    lines.push("");
  }
  return lines.join("\n").trimEnd();
}
