// SPDX-License-Identifier: GPL-2.0-only
//
// The demo's short figures: throughput of fio jobs and rates of mxfs-work, in a directory of one guest, and ratios to
// raw XFS. `npm run perf` (run.ts) is the long form.
//
// Before every reading job the page caches of all nodes are dropped, so that nobody reads what is still in memory.
// Everything is buffered I/O with the fsync at the end counted in.
//
// Weakness: the guests share the host's cores and its page cache (the LUN is a file on the host), so only figures of
// one run, taken in turns, can be compared, and only as ratios.

import type { Lab, NodeName } from "../lab/lab.js";
import { WORK } from "../lab/volume.js";
import { type FioJob, parseFio } from "./fio.js";
import { figure } from "./stats.js";

export interface FigureSize {
  /** Of the fio file. */
  readonly fileMib: number;
  /** Operations of a random job. */
  readonly randomOps: number;
  /** Writes of 4 KiB with an fsync each. */
  readonly fsyncOps: number;
  /** Files of the rates. */
  readonly files: number;
}

export const SIZE_SHORT: FigureSize = { fileMib: 8, randomOps: 150, fsyncOps: 20, files: 60 };

export const FIGURES = [
  { key: "seqWrite", title: "sequential write, 1 MiB", unit: "MiB/s" },
  { key: "seqRead", title: "sequential read, 1 MiB", unit: "MiB/s" },
  { key: "randRead", title: "random read, 4 KiB", unit: "IOPS" },
  { key: "randWrite", title: "random write, 4 KiB", unit: "IOPS" },
  { key: "fsync", title: "write 4 KiB + fsync", unit: "per s" },
  { key: "create", title: "create a file", unit: "per s" },
  { key: "stat", title: "stat it, warm", unit: "per s" },
  { key: "unlink", title: "unlink it", unit: "per s" },
] as const;

export type FigureKey = (typeof FIGURES)[number]["key"];
export type Figures = Readonly<Record<FigureKey, number>>;

/** Runs fio in a guest, and returns its one job. @throws FioError when fio reports an error. */
export async function fio(
  lab: Lab,
  node: NodeName,
  words: readonly string[],
  timeoutMs = 300_000,
): Promise<FioJob> {
  return parseFio(
    await lab.run(node, ["fio", "--name=mxfs", "--output-format=json", "--ioengine=psync", ...words], {
      timeoutMs,
    }),
  );
}

async function dropCaches(lab: Lab): Promise<void> {
  const running = Array.from({ length: lab.nodeCount }, (_, i) => i + 1).filter(
    (node) => lab.state(node) === "running",
  );
  await Promise.all(running.map((node) => lab.run(node, "sync; echo 3 >/proc/sys/vm/drop_caches")));
}

/** One round in `dir` of `node`; leaves nothing there. */
export async function measure(lab: Lab, node: NodeName, dir: string, size: FigureSize): Promise<Figures> {
  const file = `${dir}/fio.dat`;
  const base = [`--filename=${file}`, `--size=${size.fileMib}m`];
  const random = [...base, "--bs=4k", "--randseed=7", "--norandommap", `--io_size=${size.randomOps * 4}k`];
  await lab.run(node, ["mkdir", "-p", `${dir}/rates`]);

  const seqWrite = await fio(lab, node, [...base, "--rw=write", "--bs=1m", "--end_fsync=1"]);
  await dropCaches(lab);
  const seqRead = await fio(lab, node, [...base, "--rw=read", "--bs=1m"]);
  await dropCaches(lab);
  const randRead = await fio(lab, node, [...random, "--rw=randread"]);
  const randWrite = await fio(lab, node, [...random, "--rw=randwrite", "--end_fsync=1"]);
  const fsync = await fio(lab, node, [
    ...base,
    "--rw=write",
    "--bs=4k",
    "--fsync=1",
    `--io_size=${size.fsyncOps * 4}k`,
  ]);
  const text = await lab.run(node, [WORK, "rates", `${dir}/rates`, String(size.files)], {
    timeoutMs: 300_000,
  });
  const rates = JSON.parse(text) as { create: number; stat: number; unlink: number };
  await lab.run(node, `rm -r ${file} ${dir}/rates`);
  return {
    seqWrite: seqWrite.write.bw / 1024,
    seqRead: seqRead.read.bw / 1024,
    randRead: randRead.read.iops,
    randWrite: randWrite.write.iops,
    fsync: fsync.write.iops,
    create: rates.create,
    stat: rates.stat,
    unlink: rates.unlink,
  };
}

/** Rows: figure, raw XFS, and for each column its value and its ratio to raw XFS. */
export function figureTable(raw: Figures, columns: readonly (readonly [string, Figures])[]): string {
  const header = [
    "figure",
    "unit",
    "raw XFS",
    ...columns.flatMap(([name]) => [`mxfs ${name}`, `${name}/raw`]),
  ];
  const rows = FIGURES.map(({ key, title, unit }) => [
    title,
    unit,
    figure(raw[key]),
    ...columns.flatMap(([, figures]) => [figure(figures[key]), (figures[key] / raw[key]).toFixed(2)]),
  ]);
  const widths = header.map((name, i) => Math.max(name.length, ...rows.map((row) => row[i]?.length ?? 0)));
  const line = (cells: readonly string[]): string =>
    cells
      .map((text, i) => (i < 2 ? text.padEnd(widths[i] ?? 0) : text.padStart(widths[i] ?? 0)))
      .join("  ")
      .trimEnd();
  return [header, ...rows].map(line).join("\n");
}
