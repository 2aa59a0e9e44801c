// SPDX-License-Identifier: GPL-2.0-only
//
// Takes what the lock engine decided to those whom it concerns: the kernel, this node's control clients, or
// another node. One per thread; what a batch of messages brought is sent together.
//
// Known weakness: an outbox is drained on the thread that filled it; two threads' messages to one owner may
// overtake each other (src/dlm/outbox.ts says why that does no harm).

import type { LockEngine } from "../dlm/engine.js";
import { type Command, RESULT } from "../dlm/engine.js";
import { Outbox, type Outcome } from "../dlm/outbox.js";
import { MXFS_LOCK_CLIENT_KERNEL, MXFS_LOCK_ENTRY_SIZE, MXFS_NL_LOCKS_MAX, WireType } from "../wire/abi.js";
import { decodeLockEntry, describeLockEntry, lockClientAt } from "../wire/lock_entry.js";
import type { OutcomeRun } from "./bulk_task.js";
import type { KernelLink } from "./kernel_link.js";
import type { LogFields, LogLevel, NodeWords, OutFrame, WireTypeNumber } from "./protocol.js";

export interface DispatchTargets {
  readonly self: number;
  readonly words: NodeWords;
  /** null: no mount. */
  readonly kernel: KernelLink | null;
  sendFrames(frames: readonly OutFrame[]): void;
  /** Grants, denials and BASTs for control clients: a copy. */
  toControl(type: WireTypeNumber, entries: Uint8Array): void;
  log(level: LogLevel, text: string, fields?: LogFields): void;
}

const KERNEL_COMMAND = {
  [WireType.LOCK_GRANT]: "LOCK_GRANT",
  [WireType.LOCK_DENY]: "LOCK_DENY",
  [WireType.LOCK_BAST]: "BAST",
} as const;

function isAnswer(type: number): type is keyof typeof KERNEL_COMMAND {
  return type in KERNEL_COMMAND;
}

export class LockDispatch {
  readonly outbox = new Outbox();
  readonly #targets: DispatchTargets;
  #frames: OutFrame[] = [];

  constructor(targets: DispatchTargets) {
    this.#targets = targets;
  }

  /**
   * Gives lock messages of node `from` to the engine; `end` sends what comes of it.
   * @param command of all of them, or by slot (64 bytes, a value being one too).
   */
  submit(engine: LockEngine, command: Command | readonly Command[], entries: Uint8Array, from: number): void {
    engine.submitAll(command, entries, from, this.outbox, undefined, (at, result) => {
      this.#targets.log("error", `lock message refused: ${describeLockEntry(decodeLockEntry(entries, at))}`, {
        from: from.toString(16),
        conflict: result === RESULT.CONFLICT,
      });
    });
    this.refused(engine.table.refusal);
    engine.table.refusal = null;
  }

  /** The table had no room: said once, and again when it has happened twice as often. */
  refused(refusal: string | null): void {
    if (refusal === null) {
      return;
    }
    this.#refusals++;
    if (Number.isInteger(Math.log2(this.#refusals))) {
      this.#targets.log("error", `locks are refused with ENOLCK: ${refusal}`, { times: this.#refusals });
    }
  }
  #refusals = 0;

  /** Sends everything that the engine said since the last call. */
  end(): void {
    this.outbox.drain(MXFS_NL_LOCKS_MAX, (node, type, entries, client) =>
      this.#route(node, type, entries, client),
    );
    this.#post();
  }

  /** Sends what an engine of the bulk pool said. */
  sendRuns(runs: readonly OutcomeRun[]): void {
    for (const run of runs) {
      this.#route(run.node, run.type, run.entries, run.client);
    }
    this.#post();
  }

  #post(): void {
    if (this.#frames.length > 0) {
      const frames = this.#frames;
      this.#frames = [];
      this.#targets.sendFrames(frames);
    }
  }

  /** Grants, denials and BASTs that came from a master, for this node. */
  deliver(type: WireTypeNumber, entries: Uint8Array): void {
    if (!isAnswer(type)) {
      throw new RangeError(`lock messages of type ${type} are not for an owner`);
    }
    // Runs of one client: nearly always one.
    let from = 0;
    while (from < entries.length) {
      const client = lockClientAt(entries, from);
      let to = from + MXFS_LOCK_ENTRY_SIZE;
      while (to < entries.length && lockClientAt(entries, to) === client) {
        to += MXFS_LOCK_ENTRY_SIZE;
      }
      this.#toOwner(type, entries.subarray(from, to), client);
      from = to;
    }
  }

  #route(node: number, type: Outcome, entries: Uint8Array, client: number): void {
    const { self, words } = this.#targets;
    if (node === self && isAnswer(type)) {
      this.#toOwner(type, entries, client);
    } else {
      this.#frames.push({ node, type, epoch: words.nextEpoch, body: entries.slice() });
    }
  }

  #toOwner(type: keyof typeof KERNEL_COMMAND, entries: Uint8Array, client: number): void {
    const { kernel, toControl } = this.#targets;
    if (client === MXFS_LOCK_CLIENT_KERNEL) {
      kernel?.sendLocks(KERNEL_COMMAND[type], entries);
    } else {
      toControl(type, entries.slice());
    }
  }
}
