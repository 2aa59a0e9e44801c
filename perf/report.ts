// SPDX-License-Identifier: GPL-2.0-only
//
// A result as one HTML file: nothing is loaded from anywhere, the plots are SVG. For each row a bar for each column:
// the length is the median, the thin line its range, the number behind it the figure and its ratio to raw XFS. Raw XFS
// is the dashed line. Below the plots every figure as a table.
//
// Weakness: bars of one row begin at 0 and share one linear scale: next to a very long one, short ones are all alike;
// the numbers tell them apart.

import { goalLines } from "./goals.js";
import { cellSummary, failures, findCell, hasFailed, type PerfResult, rawRatio, rowsOf } from "./result.js";
import { type Column, type Row, SECTIONS, type Section } from "./rows.js";
import { figure, ratioText } from "./stats.js";
import { headLines } from "./table.js";

const PLOT_WIDTH = 460;
const LABEL_WIDTH = 112;
const VALUE_WIDTH = 118;
const BAR_HEIGHT = 16;
const BAR_STEP = 22;

const STYLE = `
:root { color-scheme: light dark; --ink: #1a1a1a; --dim: #666; --line: #ccc; --paper: #fff;
  --raw: #8a8a8a; --mxfs: #1f6feb; --nfs: #b08800; --gfs2: #2a8a57; --ocfs2: #9a4fb5; --bad: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --dim: #999; --line: #444; --paper: #161616;
  --raw: #8f8f8f; --mxfs: #58a6ff; --nfs: #d4a72c; --gfs2: #4cc38a; --ocfs2: #c58fda; --bad: #ff7b72; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1000px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; } h3 { font-size: .95em; margin: 0 0 .3em; }
p.dim, .unit { color: var(--dim); font-weight: normal; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(${PLOT_WIDTH}px, 1fr)); gap: 1.4em 1.5em; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .dim { fill: var(--dim); } svg .bad { fill: var(--bad); }
.raw { fill: var(--raw); } .mxfs { fill: var(--mxfs); } .nfs { fill: var(--nfs); }
.gfs2 { fill: var(--gfs2); } .ocfs2 { fill: var(--ocfs2); }
.range { stroke: var(--ink); stroke-width: 1; } .rawline { stroke: var(--raw); stroke-dasharray: 3 3; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .2em .7em; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td span { color: var(--dim); }
li.bad { color: var(--bad); }
`;

export function escapeHtml(text: string): string {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;")
    .replaceAll("'", "&#39;");
}

function columnsIn(result: PerfResult, section: Section): Column[] {
  return section.columns.filter((column) => result.systems.some((it) => it.key === column.system));
}

/** Why a cell has no figure. */
function absence(result: PerfResult, row: Row, column: Column): string {
  if (result.systems.find((it) => it.key === column.system)?.reason != null) {
    return "not run";
  }
  return hasFailed(findCell(result, row.key, column.key)) ? "failed" : "not measured";
}

/** The plot of one row. */
function plot(result: PerfResult, section: Section, row: Row): string {
  const columns = columnsIn(result, section);
  const summaries = columns.map((it) => cellSummary(result, row.key, it.key));
  const raw = row.base === null ? null : (cellSummary(result, row.base, "raw")?.median ?? null);
  const longest = Math.max(raw ?? 0, ...summaries.map((it) => it?.max ?? 0));
  const width = PLOT_WIDTH - LABEL_WIDTH - VALUE_WIDTH;
  const x = (value: number): string =>
    (LABEL_WIDTH + (longest > 0 ? (value / longest) * width : 0)).toFixed(1);
  const height = columns.length * BAR_STEP;
  const parts = columns.map((column, i) => {
    const top = i * BAR_STEP + (BAR_STEP - BAR_HEIGHT) / 2;
    const middle = top + BAR_HEIGHT / 2;
    const baseline = middle + 4;
    const label = `<text x="${LABEL_WIDTH - 6}" y="${baseline}" text-anchor="end">${escapeHtml(column.title)}</text>`;
    const summary = summaries[i] ?? null;
    if (summary === null) {
      return `${label}<text class="bad" x="${LABEL_WIDTH + 4}" y="${baseline}">${absence(result, row, column)}</text>`;
    }
    const byRaw = column.key === "raw" ? null : rawRatio(result, row.key, column.key);
    const barWidth = (Number(x(summary.median)) - LABEL_WIDTH).toFixed(1);
    const range =
      summary.count > 1
        ? `<line class="range" x1="${x(summary.min)}" x2="${x(summary.max)}" y1="${middle}" y2="${middle}"/>`
        : "";
    const note = byRaw === null ? "" : ` <tspan class="dim">${ratioText(byRaw)} x raw</tspan>`;
    return (
      `${label}<rect class="${column.system}" x="${LABEL_WIDTH}" y="${top}" width="${barWidth}" ` +
      `height="${BAR_HEIGHT}" rx="2"/>${range}<text x="${(Number(x(summary.max)) + 6).toFixed(1)}" ` +
      `y="${baseline}">${figure(summary.median)}${note}</text>`
    );
  });
  const rawLine =
    raw === null ? "" : `<line class="rawline" x1="${x(raw)}" x2="${x(raw)}" y1="0" y2="${height}"/>`;
  const hint = row.better === "lower" ? ", less is better" : "";
  const title = escapeHtml(row.title.trim());
  return (
    `<figure style="margin:0"><h3>${title} <span class="unit">${escapeHtml(row.unit)}${hint}</span></h3>` +
    `<svg viewBox="0 0 ${PLOT_WIDTH} ${height}" width="${PLOT_WIDTH}" height="${height}" role="img" ` +
    `aria-label="${title}">${rawLine}${parts.join("")}</svg></figure>`
  );
}

function tableOf(result: PerfResult, section: Section, rows: readonly Row[]): string {
  const columns = columnsIn(result, section);
  const head = columns.map((it) => `<th>${escapeHtml(it.title)}</th>`).join("");
  const body = rows.map((row) => {
    const cells = columns.map((column) => {
      const summary = cellSummary(result, row.key, column.key);
      if (summary === null) {
        return `<td>${absence(result, row, column)}</td>`;
      }
      const byRaw = column.key === "raw" ? null : rawRatio(result, row.key, column.key);
      const range = summary.count > 1 ? ` title="${figure(summary.min)} to ${figure(summary.max)}"` : "";
      return `<td${range}>${figure(summary.median)}${byRaw === null ? "" : ` <span>${ratioText(byRaw)}</span>`}</td>`;
    });
    return `<tr><td>${escapeHtml(row.title.trim())}, ${escapeHtml(row.unit)}</td>${cells.join("")}</tr>`;
  });
  return `<div class="scroll"><table><tr><th>${escapeHtml(section.title)}</th>${head}</tr>${body.join("")}</table></div>`;
}

function listOf(title: string, lines: readonly string[], kind: string): string {
  if (lines.length === 0) {
    return "";
  }
  return `<h2>${title}</h2><ul>${lines.map((it) => `<li class="${kind}">${escapeHtml(it)}</li>`).join("")}</ul>`;
}

/** The page. */
export function reportPage(result: PerfResult): string {
  const sections = SECTIONS.flatMap((section) => {
    const rows = rowsOf(result).filter((it) => it.section === section.key);
    return rows.length === 0 ? [] : [{ section, rows }];
  });
  const plots = sections.map(
    ({ section, rows }) =>
      `<h2>${escapeHtml(section.title)}</h2><div class="plots">` +
      `${rows.map((row) => plot(result, section, row)).join("\n")}</div>`,
  );
  const tables = sections.map(({ section, rows }) => tableOf(result, section, rows));
  return [
    "<!doctype html>",
    '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
    `<title>MXFS beside its peers, ${escapeHtml(result.date.slice(0, 10))}</title><style>${STYLE}</style></head><body>`,
    "<h1>MXFS beside raw XFS and its peers</h1>",
    ...headLines(result).map((it) => `<p class="dim">${escapeHtml(it)}</p>`),
    "<p>All on the same two guests and the same disk, one file system after the other in turns, each made new. " +
      "Bars: medians; thin lines: the range of the rounds; dashed: raw XFS with one node at work.</p>",
    ...plots,
    "<h2>All figures</h2>",
    ...tables,
    listOf("Goals", goalLines(result), ""),
    listOf("Not measured", failures(result), "bad"),
    listOf("Notes", result.notes, ""),
    "</body></html>",
    "",
  ].join("\n");
}
