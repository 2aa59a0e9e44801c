// SPDX-License-Identifier: GPL-2.0-only
//
// A thread of the bulk pool (bulk.ts): takes stripes of the lock table from a shared cursor, one after the other, and
// wakes or purges them; or reads a page of a dump. It decides with an engine of its own, and hands back what is to be
// told: it has no way to kernel or peers.
//
// Known weakness: one table per process; its memory comes with the first task.

import { type DumpPage, LockEngine, type LockFilter } from "../dlm/engine.js";
import type { SharedMemory } from "../dlm/memory.js";
import { Outbox, type Outcome } from "../dlm/outbox.js";
import { MXFS_NL_LOCKS_MAX } from "../wire/abi.js";

export type BulkTask =
  /** First decisions after a view change, in the stripes from the cursor on, while `epoch` lasts. */
  | {
      readonly kind: "wake";
      readonly memory: SharedMemory;
      readonly cursor: SharedArrayBuffer;
      readonly epoch: bigint;
    }
  /** A node's locks are forgotten. */
  | {
      readonly kind: "purge";
      readonly memory: SharedMemory;
      readonly cursor: SharedArrayBuffer;
      readonly node: number;
    }
  | {
      readonly kind: "dump";
      readonly memory: SharedMemory;
      readonly filter: LockFilter;
      readonly after: number;
      readonly countMax: number;
    };

/** Entries of one kind for one client of one node, as LockDispatch sends them. */
export interface OutcomeRun {
  readonly node: number;
  readonly type: Outcome;
  readonly client: number;
  readonly entries: Uint8Array<ArrayBuffer>;
}

export interface BulkResult {
  readonly runs: readonly OutcomeRun[];
  readonly page: DumpPage | null;
  /** Locks purged. */
  readonly count: number;
  /** No stripe is left, or the epoch is over. */
  readonly done: boolean;
  /** Why locks were refused, for the log. */
  readonly refusal: string | null;
}

/** Outcomes that one task hands back, about; then it is asked again, so that nothing piles up. */
const OUTCOMES_PER_TASK = 8192;

let engine: LockEngine | null = null;
const outbox = new Outbox();

export default function run(task: BulkTask): BulkResult {
  engine ??= LockEngine.attach(task.memory);
  if (task.kind === "dump") {
    const page = engine.dumpPage(task.filter, task.after, task.countMax);
    return { runs: [], page, count: 0, done: true, refusal: null };
  }
  const cursor = new Int32Array(task.cursor);
  let count = 0;
  let done = false;
  while (!done && outbox.count < OUTCOMES_PER_TASK) {
    const stripe = Atomics.add(cursor, 0, 1);
    if (stripe >= engine.table.stripeCount) done = true;
    else if (task.kind === "wake") done = !engine.wakeStripe(stripe, task.epoch, outbox);
    else count += engine.purgeStripe(stripe, task.node, outbox);
  }
  const runs: OutcomeRun[] = [];
  outbox.drain(MXFS_NL_LOCKS_MAX, (node, type, entries, client) => {
    runs.push({ node, type, client, entries: entries.slice() });
  });
  const { refusal } = engine.table;
  engine.table.refusal = null;
  return { runs, page: null, count, done, refusal };
}
