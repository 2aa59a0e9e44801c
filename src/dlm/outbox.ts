// SPDX-License-Identifier: GPL-2.0-only
/**
 * What the lock engine has decided and somebody must now tell: entries, each with the node it is for and the
 * kind of message. The entries lie as they go over the wire.
 *
 * Protocol: one outbox per thread. The engine appends under a stripe lock; the thread drains it soon after,
 * without one. For one node the order must be kept: a grant comes before the BAST that takes it back.
 * Known weakness: two threads drain independently, so a BAST can overtake the grant it means on its way to the
 * owner; it names that grant (seq), and the owner keeps it until the grant has come (docs/interfaces.md 7).
 */
import { MXFS_LOCK_ENTRY_SIZE, WireType } from "../wire/abi.js";
import { isValueAt, lockClientAt } from "../wire/lock_entry.js";
import { LockTableError } from "./table.js";

export const OUTCOME = {
  GRANT: WireType.LOCK_GRANT,
  DENY: WireType.LOCK_DENY,
  BAST: WireType.LOCK_BAST,
  /** To the resource's master: */
  REQUEST: WireType.LOCK_REQUEST,
  CONVERT: WireType.LOCK_CONVERT,
  RELEASE: WireType.LOCK_RELEASE,
  RECLAIM: WireType.LOCK_RECLAIM,
} as const;
/** A frame type of the lock messages. */
export type Outcome = (typeof OUTCOME)[keyof typeof OUTCOME];

const ENTRY_WORDS = MXFS_LOCK_ENTRY_SIZE / 4;
const START_COUNT = 256;
/** More entries are copied at once: that costs a view. */
const COPY_BY_WORD_COUNT_MAX = 3;

/**
 * Entries of one kind for one node, in order: `entries` is a view of the outbox, valid until the next append.
 * @param client MXFS_LOCK_CLIENT_*: which of the node's clients owns these locks.
 */
export type OnOutcomes = (node: number, type: Outcome, entries: Uint8Array, client: number) => void;

export class Outbox {
  #words: Int32Array<ArrayBuffer>;
  #bytes: Uint8Array<ArrayBuffer>;
  #nodes: Uint32Array<ArrayBuffer>;
  #types: Uint8Array<ArrayBuffer>;
  #count = 0;

  /** @param countMax most entries; one more is an error that breaks the table, never a loss. */
  constructor(readonly countMax = 1 << 20) {
    const count = Math.min(START_COUNT, countMax);
    this.#words = new Int32Array(count * ENTRY_WORDS);
    this.#bytes = new Uint8Array(this.#words.buffer);
    this.#nodes = new Uint32Array(count);
    this.#types = new Uint8Array(count);
  }

  get count(): number {
    return this.#count;
  }

  node(index: number): number {
    return this.#nodes[index] as number;
  }

  type(index: number): Outcome {
    return this.#types[index] as Outcome;
  }

  /** The 64 bytes of an entry; a view, valid until the next append. */
  entry(index: number): Uint8Array {
    return this.#bytes.subarray(index * MXFS_LOCK_ENTRY_SIZE, (index + 1) * MXFS_LOCK_ENTRY_SIZE);
  }

  /** MXFS_LOCK_CLIENT_* of an entry. */
  client(index: number): number {
    return lockClientAt(this.#bytes, index * MXFS_LOCK_ENTRY_SIZE);
  }

  clear(): void {
    this.#count = 0;
  }

  /** Room for one more entry: fill words[at .. at + 16), every word of it. @returns `at` in `words`. */
  append(node: number, type: Outcome): number {
    if (this.#count === this.#nodes.length) this.#grow();
    const index = this.#count++;
    this.#nodes[index] = node;
    this.#types[index] = type;
    return index * ENTRY_WORDS;
  }

  /** The entries' words; another array after an append that had to grow. */
  get words(): Int32Array {
    return this.#words;
  }

  /** Appends an entry that came over the wire, as it is. */
  appendBytes(node: number, type: Outcome, bytes: Uint8Array, at: number): void {
    const to = this.append(node, type) * 4;
    for (let i = 0; i < MXFS_LOCK_ENTRY_SIZE; i++) this.#bytes[to + i] = bytes[at + i] as number;
  }

  /** Appends `count` entries for one node, as they lie in words[at ..). */
  appendRun(node: number, type: Outcome, words: Int32Array, at: number, count: number): void {
    while (this.#count + count > this.#nodes.length) this.#grow();
    const first = this.#count;
    this.#count += count;
    this.#nodes.fill(node, first, first + count);
    this.#types.fill(type, first, first + count);
    const to = first * ENTRY_WORDS;
    if (count > COPY_BY_WORD_COUNT_MAX) {
      this.#words.set(words.subarray(at, at + count * ENTRY_WORDS), to);
      return;
    }
    for (let word = 0; word < count * ENTRY_WORDS; word++)
      this.#words[to + word] = words[at + word] as number;
  }

  #grow(): void {
    const count = Math.min(this.#nodes.length * 2, this.countMax);
    if (count === this.#nodes.length) {
      throw new LockTableError(
        "TABLE_LIMIT",
        `outbox: at most ${this.countMax} outcomes: drain it more often`,
      );
    }
    const words = new Int32Array(count * ENTRY_WORDS);
    words.set(this.#words);
    const nodes = new Uint32Array(count);
    nodes.set(this.#nodes);
    const types = new Uint8Array(count);
    types.set(this.#types);
    this.#words = words;
    this.#bytes = new Uint8Array(words.buffer);
    this.#nodes = nodes;
    this.#types = types;
  }

  /**
   * Hands everything out and empties the outbox: for each node, in order of its first entry, runs of one type and
   * client in the order they were appended, at most `runMax` entries each (a value counts as one, and stays with
   * its entry). `onOutcomes` must not append here.
   */
  drain(runMax: number, onOutcomes: OnOutcomes): void {
    const total = this.#count;
    if (total === 0) return;
    if (total <= runMax && this.#allAlike()) {
      onOutcomes(
        this.node(0),
        this.type(0),
        this.#bytes.subarray(0, total * MXFS_LOCK_ENTRY_SIZE),
        this.client(0),
      );
      this.#count = 0;
      return;
    }
    const order: number[] = [];
    const byNode = new Map<number, number[]>();
    for (let index = 0; index < total; index++) {
      const node = this.#nodes[index] as number;
      let indices = byNode.get(node);
      if (indices === undefined) {
        indices = [];
        byNode.set(node, indices);
        order.push(node);
      }
      indices.push(index);
    }
    for (const node of order) {
      const indices = byNode.get(node) as number[];
      let from = 0;
      while (from < indices.length) {
        const first = indices[from] as number;
        const type = this.type(first);
        const client = this.client(first);
        let to = from + 1;
        while (to < indices.length && to - from < runMax) {
          const index = indices[to] as number;
          if (this.type(index) !== type || this.client(index) !== client) break;
          to++;
        }
        const next = indices[to];
        if (next !== undefined && isValueAt(this.#bytes, next * MXFS_LOCK_ENTRY_SIZE)) {
          to += to - from > 1 ? -1 : 1;
        }
        onOutcomes(node, type, this.#gather(indices, from, to), client);
        from = to;
      }
    }
    this.#count = 0;
  }

  /** Whether it is one run: one node, type and client. That is common, and quickly seen. */
  #allAlike(): boolean {
    const [node, type, client] = [this.#nodes[0], this.#types[0], this.client(0)];
    for (let index = 1; index < this.#count; index++) {
      if (this.#nodes[index] !== node || this.#types[index] !== type || this.client(index) !== client)
        return false;
    }
    return true;
  }

  /** Entries indices[from..to) in one piece: a view where they lie side by side, else a copy. */
  #gather(indices: readonly number[], from: number, to: number): Uint8Array {
    const first = indices[from] as number;
    if ((indices[to - 1] as number) - first === to - from - 1) {
      return this.#bytes.subarray(first * MXFS_LOCK_ENTRY_SIZE, (first + to - from) * MXFS_LOCK_ENTRY_SIZE);
    }
    const bytes = new Uint8Array((to - from) * MXFS_LOCK_ENTRY_SIZE);
    for (let i = from; i < to; i++)
      bytes.set(this.entry(indices[i] as number), (i - from) * MXFS_LOCK_ENTRY_SIZE);
    return bytes;
  }
}
