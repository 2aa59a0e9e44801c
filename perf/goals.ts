// SPDX-License-Identifier: GPL-2.0-only
//
// What MXFS is meant to reach beside raw XFS and its peers, as ratios in one run, and how far a result is from it.
//
// Weakness: medians alone are looked at; a goal that is met or missed narrowly wants more rounds.

import { cellSummary, type PerfResult } from "./result.js";
import { findRow } from "./rows.js";
import { ratioText } from "./stats.js";

export interface Goal {
  readonly title: string;
  readonly rows: readonly string[];
  /** Whose figure, and in which column those are that it is held against. */
  readonly column: string;
  readonly others: readonly string[];
  /** Least ratio to each of the others. */
  readonly atLeast: number;
}

const DATA = ["seq-write", "seq-read", "rand-read", "rand-write", "mixed"];
const DIRECT = ["direct-seq-write", "direct-seq-read", "direct-rand-write", "direct-rand-read"];
const OWN_TREES = [
  ...["both-seq-write", "both-seq-read", "both-rand-read", "both-rand-write"],
  ...["both-create", "both-stat", "both-list", "both-rename", "both-small", "both-unlink"],
];
const TURNS = ["turns-plain", "turns-fcntl", "turns-direct"];

export const GOALS: readonly Goal[] = [
  { title: "holder, data", rows: [...DATA, ...DIRECT], column: "holder", others: ["raw"], atLeast: 0.95 },
  {
    title: "holder, create, stat, unlink",
    rows: ["create", "stat", "unlink"],
    column: "holder",
    others: ["raw"],
    atLeast: 0.8,
  },
  { title: "member, data", rows: [...DATA, ...DIRECT], column: "member", others: ["raw"], atLeast: 0.9 },
  {
    title: "member, create, stat, list, unlink",
    rows: ["create", "stat", "list", "unlink"],
    column: "member",
    others: ["nfs"],
    atLeast: 2,
  },
  {
    title: "both in their own trees",
    rows: OWN_TREES,
    column: "mxfs",
    others: ["gfs2", "ocfs2"],
    atLeast: 1.5,
  },
  {
    title: "member, new and small files",
    rows: ["create", "small"],
    column: "member",
    others: ["gfs2", "ocfs2"],
    atLeast: 1,
  },
  { title: "turns on one file", rows: TURNS, column: "mxfs", others: ["gfs2", "ocfs2"], atLeast: 3 },
  { title: "turns on one file", rows: TURNS, column: "mxfs", others: ["nfs"], atLeast: 1 },
  {
    title: "stat, made on other node",
    rows: ["cold-stat"],
    column: "mxfs",
    others: ["nfs", "gfs2", "ocfs2"],
    atLeast: 5,
  },
];

export interface GoalState {
  readonly goal: Goal;
  /** Pairs of figures that could be compared, and those that fall short: "ROW/OTHER 0.85", the worst first. */
  readonly compared: number;
  readonly short: readonly string[];
}

export function goalStates(result: PerfResult): GoalState[] {
  return GOALS.map((goal) => {
    const short: { name: string; ratio: number }[] = [];
    let compared = 0;
    for (const row of goal.rows) {
      findRow(row); // a goal for a row that there is not would be met for ever
      const own = cellSummary(result, row, goal.column)?.median;
      for (const other of goal.others) {
        const theirs = cellSummary(result, row, other)?.median;
        if (own === undefined || theirs === undefined) continue;
        compared++;
        // Whoever gets nothing done is outdone by anything.
        const ratio = theirs > 0 ? own / theirs : own > 0 ? Number.POSITIVE_INFINITY : 0;
        if (ratio < goal.atLeast)
          short.push({ name: goal.others.length === 1 ? row : `${row}/${other}`, ratio });
      }
    }
    short.sort((a, b) => a.ratio - b.ratio);
    return { goal, compared, short: short.map((it) => `${it.name} ${ratioText(it.ratio)}`) };
  });
}

/** One line for each goal that anything was measured for. */
export function goalLines(result: PerfResult): string[] {
  return goalStates(result)
    .filter((it) => it.compared > 0)
    .map(({ goal, compared, short }) => {
      const wanted = `${goal.title}: at least ${goal.atLeast} x ${goal.others.join(", ")}`;
      const met = `${compared - short.length} of ${compared}`;
      return short.length === 0
        ? `met    ${wanted}: ${met}`
        : `SHORT  ${wanted}: ${met}; ${short.join(", ")}`;
    });
}
