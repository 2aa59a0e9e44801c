// SPDX-License-Identifier: GPL-2.0-only
//
// Takes what the lock engine decided to those whom it concerns: the kernel, this node's control clients, or
// another node. One per thread; what a batch of messages brought is sent together.
//
// Rule 5: a grant that must be persisted first goes to the records worker, which tells it when its record is durable; all
// else is told from here. That worker also hears which of such locks were given up.
//
// Known weakness: an outbox is drained on the thread that filled it; two threads' messages to one owner may
// overtake each other (src/dlm/outbox.ts says why that does no harm).

import type { LockEngine } from "../dlm/engine.js";
import { type Commands, RESULT, type Result } from "../dlm/engine.js";
import { Outbox, type Outcome } from "../dlm/outbox.js";
import { MXFS_LOCK_CLIENT_KERNEL, MXFS_LOCK_ENTRY_SIZE, MXFS_NL_LOCKS_MAX, WireType } from "../wire/abi.js";
import {
  decodeLockEntry,
  describeLockEntry,
  entrySize,
  LOCK_ENTRY,
  lockClientAt,
} from "../wire/lock_entry.js";
import type { OutcomeRun } from "./bulk_task.js";
import type { KernelLink } from "./kernel_link.js";
import type { LogFields, LogLevel, NodeWords, OutFrame, ToRecords, WireTypeNumber } from "./protocol.js";

export interface DispatchTargets {
  readonly self: number;
  readonly words: NodeWords;
  /** null: no mount. */
  readonly kernel: KernelLink | null;
  sendFrames(frames: readonly OutFrame[]): void;
  /** null: grants are told as they come (the records worker itself, and a lock service without a disk). */
  readonly toRecords: ((message: ToRecords) => void) | null;
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
  /** For the records worker. */
  #grants: Uint8Array[] = [];
  #gave: Uint8Array[] = [];

  constructor(targets: DispatchTargets) {
    this.#targets = targets;
  }

  /**
   * Gives lock messages of node `from` to the engine; `end` sends what comes of it.
   * @param command of all of them, or by slot (64 bytes, a value being one too).
   */
  submit(engine: LockEngine, command: Commands, entries: Uint8Array, from: number): void {
    const modes = this.#targets.words.persistModes;
    const gave = (at: number, mode: number): void => {
      if ((modes & (1 << mode)) !== 0) {
        this.#gave.push(entries.slice(at, at + MXFS_LOCK_ENTRY_SIZE));
      }
    };
    const trouble = (at: number, result: Result): void => {
      this.#targets.log("error", `lock message refused: ${describeLockEntry(decodeLockEntry(entries, at))}`, {
        from: from.toString(16),
        conflict: result === RESULT.CONFLICT,
      });
    };
    engine.submitAll(command, entries, from, this.outbox, undefined, trouble, modes === 0 ? undefined : gave);
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
    this.#postRecords();
    if (this.#frames.length > 0) {
      const frames = this.#frames;
      this.#frames = [];
      this.#targets.sendFrames(frames);
    }
  }

  #postRecords(): void {
    if (this.#grants.length === 0 && this.#gave.length === 0) {
      return;
    }
    const grants = this.#grants.length === 0 ? null : joined(this.#grants);
    const gave = this.#gave.length === 0 ? null : joined(this.#gave);
    this.#grants = [];
    this.#gave = [];
    this.#targets.toRecords?.({ kind: "locks", grants, gave });
  }

  /** Keeps those back that are to be persisted. @returns the rest; null: nothing is left. */
  #withoutPersisted(entries: Uint8Array): Uint8Array | null {
    const modes = this.#targets.words.persistModes;
    const rest: Uint8Array[] = [];
    let kept = false;
    for (let at = 0; at < entries.length; ) {
      const size = entrySize(entries, at);
      if ((modes & (1 << (entries[at + LOCK_ENTRY.mode] as number))) !== 0) {
        this.#grants.push(entries.slice(at, at + size));
        kept = true;
      } else {
        rest.push(entries.subarray(at, at + size));
      }
      at += size;
    }
    return !kept ? entries : rest.length === 0 ? null : joined(rest);
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

  #route(node: number, type: Outcome, decided: Uint8Array, client: number): void {
    const { self, words, toRecords } = this.#targets;
    const persists = type === WireType.LOCK_GRANT && toRecords !== null && words.persistModes !== 0;
    const entries = persists ? this.#withoutPersisted(decided) : decided;
    if (entries === null) {
      return;
    }
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

function joined(pieces: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(pieces.reduce((length, piece) => length + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}
