// SPDX-License-Identifier: GPL-2.0-only
/**
 * Short ways to talk to a lock engine in tests: messages by name, outcomes as lines of text.
 * Known weakness: one volume, INODE resources, small numbers.
 */
import { COMMAND, EAGAIN, LockEngine, RESULT, type Result } from "../../src/dlm/engine.js";
import { OUTCOME, Outbox } from "../../src/dlm/outbox.js";
import {
  LockMode,
  LockModeName,
  MXFS_LKF_CANCEL,
  MXFS_LKF_CONVERT,
  MXFS_LKF_NOQUEUE,
  MXFS_LKF_WAITING,
} from "../../src/wire/abi.js";
import { decodeLockEntry, type LockEntry } from "../../src/wire/lock_entry.js";

export type ModeName = keyof typeof LockMode;

export const CAPACITY = { resourceCountMax: 64, lockCountMax: 256 };

const OUTCOME_NAME: Record<number, string> = Object.fromEntries(
  Object.entries(OUTCOME).map(([name, type]) => [type, name]),
);
const RESULT_NAME = Object.fromEntries(
  Object.entries(RESULT).map(([name, result]) => [result, name]),
) as Record<Result, keyof typeof RESULT>;

export function entryOf(fields: Partial<LockEntry>): LockEntry {
  return {
    volume: 77n,
    ino: 100n,
    offset: 0n,
    ag: 0,
    type: 4,
    lockId: 1n,
    epoch: 1n,
    seq: 1,
    mode: 0,
    granted: 0,
    flags: 0,
    node: 1,
    status: 0,
    ...fields,
  };
}

/** "GRANT n2 #7 EX", "DENY n2 #7 EX errno 11", "BAST n1 #3 holds PR for EX" */
export function describeOutcome(type: number, entry: LockEntry): string {
  const head = `${OUTCOME_NAME[type]} n${entry.node} #${entry.lockId}`;
  const mode = LockModeName[entry.mode];
  if (type === OUTCOME.DENY) return `${head} ${mode} errno ${entry.status}`;
  if (type === OUTCOME.BAST) return `${head} holds ${LockModeName[entry.granted]} for ${mode}`;
  return `${head} ${mode}`;
}

/** A node that is the only master there is: view {1, 2, 3, 4} cannot be, so masters are asked by the right ino. */
export class Desk {
  readonly out = new Outbox();
  readonly engine: LockEngine;
  /** Outcomes since the last `said`. */
  #said: string[] = [];
  readonly entries: { type: number; to: number; entry: LockEntry }[] = [];

  constructor(
    readonly nodes: readonly number[] = [1, 2, 3, 4],
    readonly self = 1,
    capacity = CAPACITY,
  ) {
    // The model is held against the short path too.
    this.engine = LockEngine.create(self, capacity, { shortPathAfter: 0 });
    this.engine.freezeAndClear(1n, nodes);
    this.engine.resume(1n, this.out);
  }

  /** An inode number whose master is this node. */
  ino(index = 0): bigint {
    return this.inoOf(this.self, index);
  }

  inoOf(master: number, index = 0): bigint {
    for (let ino = 100n, found = 0; ; ino++) {
      if (this.engine.masterOf(entryOf({ ino })) === master && found++ === index) return ino;
    }
  }

  #send(command: (typeof COMMAND)[keyof typeof COMMAND], fields: Partial<LockEntry>): keyof typeof RESULT {
    const entry = entryOf({ ino: this.ino(), epoch: this.engine.epoch, ...fields });
    const result = this.engine.submitEntry(command, entry, entry.node, this.out);
    this.collect();
    return RESULT_NAME[result];
  }

  collect(): void {
    for (let index = 0; index < this.out.count; index++) {
      const entry = decodeLockEntry(this.out.entry(index), 0);
      const type = this.out.type(index);
      this.entries.push({ type, to: this.out.node(index), entry });
      this.#said.push(describeOutcome(type, entry));
    }
    this.out.clear();
  }

  request(node: number, id: number, mode: ModeName, fields: Partial<LockEntry> = {}): keyof typeof RESULT {
    return this.#send(COMMAND.REQUEST, { node, lockId: BigInt(id), mode: LockMode[mode], ...fields });
  }
  try(node: number, id: number, mode: ModeName, fields: Partial<LockEntry> = {}): keyof typeof RESULT {
    return this.request(node, id, mode, { flags: MXFS_LKF_NOQUEUE, ...fields });
  }
  convert(
    node: number,
    id: number,
    from: ModeName,
    to: ModeName,
    fields: Partial<LockEntry> = {},
  ): keyof typeof RESULT {
    return this.#send(COMMAND.CONVERT, {
      node,
      lockId: BigInt(id),
      granted: LockMode[from],
      mode: LockMode[to],
      seq: 2,
      flags: MXFS_LKF_CONVERT,
      ...fields,
    });
  }
  release(node: number, id: number, fields: Partial<LockEntry> = {}): keyof typeof RESULT {
    return this.#send(COMMAND.RELEASE, { node, lockId: BigInt(id), ...fields });
  }
  cancel(node: number, id: number, seq: number, fields: Partial<LockEntry> = {}): keyof typeof RESULT {
    return this.release(node, id, { flags: MXFS_LKF_CANCEL, seq, ...fields });
  }
  /** Reclaims what is held, and, with `wanted`, an outstanding request. */
  reclaim(
    node: number,
    id: number,
    held: ModeName,
    wanted?: ModeName,
    fields: Partial<LockEntry> = {},
  ): keyof typeof RESULT {
    const flags = wanted === undefined ? 0 : MXFS_LKF_WAITING | (held === "NL" ? 0 : MXFS_LKF_CONVERT);
    return this.#send(COMMAND.RECLAIM, {
      node,
      lockId: BigInt(id),
      granted: LockMode[held],
      mode: LockMode[wanted ?? held],
      flags,
      ...fields,
    });
  }

  /** What was said since the last time. */
  said(): string[] {
    const lines = this.#said;
    this.#said = [];
    return lines;
  }

  /** The table as lines, sorted: "n1 #3 granted PR", "n2 #4 convert PR->EX", "n3 #5 wait EX". */
  table(): string[] {
    return [...this.engine.dump()]
      .map((lock) => {
        const held = LockModeName[lock.granted];
        const wanted = LockModeName[lock.mode];
        const modes = lock.queue === "granted" ? held : lock.queue === "wait" ? wanted : `${held}->${wanted}`;
        return `n${lock.node} #${lock.lockId} ${lock.queue} ${modes}`;
      })
      .sort();
  }

  check(): void {
    for (let stripe = 0; stripe < this.engine.table.stripeCount; stripe++) {
      this.engine.table.locked(stripe, () => {
        this.engine.table.checkStripe(stripe);
      });
    }
  }
}

export { EAGAIN };
