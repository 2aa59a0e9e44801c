// SPDX-License-Identifier: GPL-2.0-only
//
// Work on the whole lock table: at once where it is small, by a piscina pool where it is large, so that the thread
// that asks never stands still for it.
//
//   resume ─┬─ fewer than BULK_LOCKS_MIN locks ─► woken here
//           └─ more ─► SERVING at once; pool threads take the stripes in turn, and what they decide comes back in
//                      portions and is sent from here. Whoever waits goes on when his stripe's turn comes.
//   purge, dump likewise.
//
// Without piscina (a bundle without its node_modules) the work is done here, after a warning.
//
// Pool threads are started at the first large job (a daemon with a small table has none) and stay: the table knows
// its threads by number. A pool thread that fails has left the table half changed: that is fatal to the daemon.
//
// Known weakness: two pool threads at most, and the portions of one job are sent in no particular order.

import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";
import type { Piscina } from "piscina";
import type { DumpPage, LockEngine, LockFilter } from "../dlm/engine.js";
import type { BulkResult, BulkTask } from "./bulk_task.js";
import type { LockDispatch } from "./dispatch.js";

/** Locks from which on a job on all of them goes to the pool. */
export const BULK_LOCKS_MIN = 65_536;
const THREADS_MAX = 2;

export interface BulkOptions {
  readonly locksMin?: number;
  /** File that piscina runs, for tests; by default the one beside this. */
  readonly taskFile?: string;
  readonly threadsMax?: number;
  /** How piscina is loaded, for tests. */
  readonly load?: () => Promise<{ readonly Piscina: typeof Piscina }>;
  /** A pool thread failed. */
  fatal(error: unknown): void;
  warn(text: string): void;
}

export class BulkLocks {
  readonly #engine: LockEngine;
  readonly #options: BulkOptions;
  #pool: Promise<Piscina<BulkTask, BulkResult> | null> | null = null;
  /** Jobs that the pool had. */
  jobs = 0;

  constructor(engine: LockEngine, options: BulkOptions) {
    this.#engine = engine;
    this.#options = options;
  }

  get #large(): boolean {
    return this.#engine.table.locksUsed >= (this.#options.locksMin ?? BULK_LOCKS_MIN);
  }

  get #threads(): number {
    return Math.min(this.#options.threadsMax ?? THREADS_MAX, availableParallelism());
  }

  /** LockEngine.resume. The service runs when this returns; resolves when everybody who waits was looked at. */
  async resume(epoch: bigint, dispatch: LockDispatch): Promise<void> {
    const engine = this.#engine;
    if (!this.#large) {
      engine.resume(epoch, dispatch.outbox, () => dispatch.end());
      dispatch.end();
      return;
    }
    engine.serve(epoch);
    if ((await this.#open()) === null) {
      for (let stripe = 0; stripe < engine.table.stripeCount; stripe++) {
        engine.wakeStripe(stripe, epoch, dispatch.outbox);
        dispatch.end();
      }
      return;
    }
    const { memory } = engine;
    await this.#each(dispatch, (cursor) => ({ kind: "wake", memory, cursor, epoch }));
  }

  /** LockEngine.purgeNode. @returns how many locks */
  async purge(node: number, dispatch: LockDispatch): Promise<number> {
    const engine = this.#engine;
    if (!this.#large || (await this.#open()) === null) {
      const count = engine.purgeNode(node, dispatch.outbox, () => dispatch.end());
      dispatch.end();
      return count;
    }
    const { memory } = engine;
    return await this.#each(dispatch, (cursor) => ({ kind: "purge", memory, cursor, node }));
  }

  /** LockEngine.dumpPage. */
  async dumpPage(filter: LockFilter, after: number, countMax: number): Promise<DumpPage> {
    const engine = this.#engine;
    if (!this.#large || filter.resource !== undefined || (await this.#open()) === null) {
      return engine.dumpPage(filter, after, countMax);
    }
    const { memory } = engine;
    const { page } = await this.#run({ kind: "dump", memory, filter, after, countMax });
    return page ?? { locks: [], next: null };
  }

  /** Every stripe once, by all threads of the pool; what they decide goes out as it comes. */
  async #each(dispatch: LockDispatch, task: (cursor: SharedArrayBuffer) => BulkTask): Promise<number> {
    const cursor = new SharedArrayBuffer(4);
    let count = 0;
    const share = async (): Promise<void> => {
      for (let done = false; !done; ) {
        const result = await this.#run(task(cursor));
        dispatch.sendRuns(result.runs);
        dispatch.refused(result.refusal);
        count += result.count;
        done = result.done;
      }
    };
    await Promise.all(Array.from({ length: this.#threads }, share));
    return count;
  }

  async #run(task: BulkTask): Promise<BulkResult> {
    this.jobs++;
    try {
      const pool = await this.#open();
      if (pool === null) {
        throw new Error("the bulk pool has no threads");
      }
      return await pool.run(task);
    } catch (error) {
      this.#options.fatal(error);
      throw error;
    }
  }

  /** null: there is no piscina. */
  #open(): Promise<Piscina<BulkTask, BulkResult> | null> {
    this.#pool ??= this.#start();
    return this.#pool;
  }

  async #start(): Promise<Piscina<BulkTask, BulkResult> | null> {
    const load = this.#options.load ?? (() => import("piscina"));
    let library: Awaited<ReturnType<typeof load>>;
    try {
      library = await load();
    } catch (error) {
      this.#options.warn(`no pool for bulk work, it is done in one thread: ${String(error)}`);
      return null;
    }
    const threads = this.#threads;
    return new library.Piscina<BulkTask, BulkResult>({
      filename: this.#options.taskFile ?? fileURLToPath(new URL("../workers/bulk_task.js", import.meta.url)),
      minThreads: threads,
      maxThreads: threads,
    });
  }

  async close(): Promise<void> {
    const pool = await this.#pool;
    this.#pool = null;
    await pool?.destroy();
  }
}
