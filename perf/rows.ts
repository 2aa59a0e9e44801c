// SPDX-License-Identifier: GPL-2.0-only
//
// What the harness measures: its rows (one figure each), in three sections, and the columns of each section.
//
//   one      one node at work, the other has the file system mounted (NFS: serves it) and is idle
//   both     both nodes at work at the same time, sums; in directories of their own, or in one
//   between  what one node does waits for what the other has done
//
// Rows and columns have keys, which the JSON file, --only and --systems use; titles are for people.

export const SYSTEMS = [
  { key: "raw", title: "raw XFS" },
  { key: "mxfs", title: "mxfs" },
  { key: "nfs", title: "NFSv4.2" },
  { key: "gfs2", title: "GFS2" },
  { key: "ocfs2", title: "OCFS2" },
] as const;

export type SystemKey = (typeof SYSTEMS)[number]["key"];

export type SectionKey = "one" | "both" | "between";

export interface Column {
  readonly key: string;
  readonly title: string;
  /** For the terminal. */
  readonly short: string;
  readonly system: SystemKey;
  /** Who works. */
  readonly nodes: readonly number[];
}

export interface Section {
  readonly key: SectionKey;
  readonly title: string;
  readonly columns: readonly Column[];
}

const ONE: readonly Column[] = [
  { key: "raw", title: "raw XFS", short: "raw XFS", system: "raw", nodes: [1] },
  { key: "holder", title: "mxfs holder", short: "holder", system: "mxfs", nodes: [1] },
  { key: "member", title: "mxfs member", short: "member", system: "mxfs", nodes: [2] },
  { key: "nfs", title: "NFS client", short: "NFS", system: "nfs", nodes: [2] },
  { key: "gfs2", title: "GFS2", short: "GFS2", system: "gfs2", nodes: [2] },
  { key: "ocfs2", title: "OCFS2", short: "OCFS2", system: "ocfs2", nodes: [2] },
];

const TWO: readonly Column[] = [
  { key: "mxfs", title: "mxfs", short: "mxfs", system: "mxfs", nodes: [1, 2] },
  { key: "nfs", title: "NFS srv+client", short: "NFS", system: "nfs", nodes: [1, 2] },
  { key: "gfs2", title: "GFS2", short: "GFS2", system: "gfs2", nodes: [1, 2] },
  { key: "ocfs2", title: "OCFS2", short: "OCFS2", system: "ocfs2", nodes: [1, 2] },
];

export const SECTIONS: readonly Section[] = [
  { key: "one", title: "one node at work", columns: ONE },
  { key: "both", title: "both nodes at work (sums)", columns: TWO },
  { key: "between", title: "from node to node", columns: TWO },
];

export interface Row {
  readonly key: string;
  readonly title: string;
  readonly unit: string;
  readonly section: SectionKey;
  readonly better: "higher" | "lower";
  /** The row of section "one" whose raw XFS this one's ratios refer to; null: there is nothing to compare with. */
  readonly base: string | null;
}

/** fio's jobs: one file each in perf/fio, which says what it does. `both`: also run on both nodes at once. */
export const FIO_JOBS = [
  { key: "seq-write", title: "sequential write, 1 MiB", unit: "MiB/s", cold: false, both: true },
  { key: "seq-read", title: "sequential read, 1 MiB", unit: "MiB/s", cold: true, both: true },
  { key: "rand-read", title: "random read, 4 KiB", unit: "IOPS", cold: true, both: true },
  { key: "rand-write", title: "random write, 4 KiB", unit: "IOPS", cold: false, both: true },
  { key: "mixed", title: "random 70/30 mix, 4 KiB", unit: "IOPS", cold: true, both: false },
  { key: "fsync", title: "write 4 KiB + fsync", unit: "per s", cold: false, both: false },
  { key: "direct-seq-write", title: "O_DIRECT write, 1 MiB", unit: "MiB/s", cold: false, both: false },
  { key: "direct-seq-read", title: "O_DIRECT read, 1 MiB", unit: "MiB/s", cold: false, both: false },
  { key: "direct-rand-write", title: "O_DIRECT rnd write, 16 deep", unit: "IOPS", cold: false, both: false },
  { key: "direct-rand-read", title: "O_DIRECT rnd read, 16 deep", unit: "IOPS", cold: false, both: false },
  { key: "mmap", title: "mmap, random 50/50, 4 KiB", unit: "IOPS", cold: true, both: false },
  { key: "many-files", title: "many files of 16 KiB", unit: "files/s", cold: false, both: false },
] as const;

export type FioJobKey = (typeof FIO_JOBS)[number]["key"];

/** Phases of `mxfs-perf meta`, in the order in which they run. */
export const META_PHASES = [
  { key: "create", title: "create", unit: "files/s", shared: true },
  { key: "stat", title: "stat, warm", unit: "files/s", shared: true },
  { key: "list", title: "readdir + stat", unit: "files/s", shared: false },
  { key: "rename", title: "rename", unit: "files/s", shared: false },
  { key: "small", title: "create + write 4 KiB", unit: "files/s", shared: false },
  { key: "unlink", title: "unlink", unit: "files/s", shared: true },
] as const;

export const TURN_KINDS = [
  { key: "plain", title: "turns on one file" },
  { key: "fcntl", title: "turns, fcntl locks" },
  { key: "direct", title: "turns, O_DIRECT" },
] as const;

function row(
  key: string,
  title: string,
  unit: string,
  section: SectionKey,
  base: string | null,
  better: "higher" | "lower" = "higher",
): Row {
  return { key, title, unit, section, base, better };
}

export const ROWS: readonly Row[] = [
  ...FIO_JOBS.map((job) => row(job.key, job.title, job.unit, "one", job.key)),
  ...META_PHASES.map((phase) => row(phase.key, phase.title, phase.unit, "one", phase.key)),
  ...FIO_JOBS.filter((job) => job.both).map((job) =>
    row(`both-${job.key}`, job.title, job.unit, "both", job.key),
  ),
  ...META_PHASES.map((phase) =>
    row(`both-${phase.key}`, `${phase.title}, own dirs`, phase.unit, "both", phase.key),
  ),
  ...META_PHASES.filter((phase) => phase.shared).map((phase) =>
    row(`shared-${phase.key}`, `${phase.title}, one dir`, phase.unit, "both", phase.key),
  ),
  ...TURN_KINDS.flatMap((kind) => [
    row(`turns-${kind.key}`, kind.title, "hand-overs/s", "between", null),
    row(`turns-${kind.key}-longest`, "  longest operation", "ms", "between", null, "lower"),
  ]),
  row("cold-stat", "stat, made on other node", "files/s", "between", null),
];

export function findRow(key: string): Row {
  const found = ROWS.find((it) => it.key === key);
  if (found === undefined) {
    throw new RangeError(`row "${key}": expected one of ${ROWS.map((it) => it.key).join(", ")}`);
  }
  return found;
}

export function columnsOf(section: SectionKey): readonly Column[] {
  return SECTIONS.find((it) => it.key === section)?.columns ?? [];
}

/**
 * The rows that words of the command line mean: a row's key, or a section's, or the beginning of keys with a "*".
 * Nothing means all. @throws RangeError for a word that means no row.
 */
export function selectRows(words: readonly string[]): ReadonlySet<string> {
  if (words.length === 0) {
    return new Set(ROWS.map((it) => it.key));
  }
  const chosen = words.flatMap((word) => {
    const found = ROWS.filter((it) =>
      word.endsWith("*") ? it.key.startsWith(word.slice(0, -1)) : it.key === word || it.section === word,
    );
    if (found.length === 0) {
      throw new RangeError(
        `--only ${word}: expected a row, a section (one, both, between), or the beginning of a row and "*"; ` +
          `npm run perf -- --list shows them`,
      );
    }
    return found.map((it) => it.key);
  });
  return new Set(chosen);
}

/** @throws RangeError for a word that is no system. */
export function selectSystems(words: readonly string[]): SystemKey[] {
  for (const word of words) {
    if (!SYSTEMS.some((it) => it.key === word)) {
      throw new RangeError(`--systems ${word}: expected some of ${SYSTEMS.map((it) => it.key).join(", ")}`);
    }
  }
  return SYSTEMS.map((it) => it.key).filter((key) => words.length === 0 || words.includes(key));
}

/** The order of a round: raw first, the others shifted by one each round. */
export function roundOrder(systems: readonly SystemKey[], round: number): SystemKey[] {
  const others = systems.filter((it) => it !== "raw");
  const shift = others.length === 0 ? 0 : round % others.length;
  return [...systems.filter((it) => it === "raw"), ...others.slice(shift), ...others.slice(0, shift)];
}
