// SPDX-License-Identifier: GPL-2.0-only
//
// Gathers the lock messages of many frames, so that the lock table sees them as one batch: what one read of a socket
// brings is decided together, in the order it came, requests and releases mixed.
//
// Protocol: `add` and `addWords` check entries as they copy them; one that throws adds nothing. `commands[slot]` is the
// frame type of the 64 bytes `bytes[64 * slot ..)`; a value's slot has that of its entry. Full: `fits` says no, and
// the batch must be decided before the frame is added.
//
// Known weakness: one batch is of one node: frames of two nodes in turns make batches of one frame each.

import type { Command } from "../dlm/engine.js";
import { MXFS_LKF_VALUE, MXFS_LOCK_ENTRY_SIZE, MXFS_MODE_COUNT, ResourceTypeName } from "../wire/abi.js";
import { WireError } from "../wire/error.js";
import type { Frame } from "../wire/frame.js";
import { checkLockEntries, LOCK_ENTRY } from "../wire/lock_entry.js";

const ENTRY_WORDS = MXFS_LOCK_ENTRY_SIZE / 4;
/** More entries are copied at once: that costs a view. */
const COPY_BY_WORD_COUNT_MAX = 3;
/** Words of an entry. */
const TYPE = LOCK_ENTRY.type / 4;
const MODES = LOCK_ENTRY.mode / 4;
const NODE = LOCK_ENTRY.node / 4;
const STATUS = LOCK_ENTRY.status / 4;

/** KNOWN_TYPES[type] is 1 for the types of resources; a table is quicker than the names. */
const KNOWN_TYPES = Uint8Array.from({ length: 256 }, (_, type) =>
  ResourceTypeName[type] === undefined ? 0 : 1,
);

/** Every entry must belong to `owner`. @throws WireError */
export function checkOwner(entries: Uint8Array, owner: number): void {
  for (let at = LOCK_ENTRY.node; at < entries.length; at += MXFS_LOCK_ENTRY_SIZE) {
    const node =
      ((entries[at] as number) |
        ((entries[at + 1] as number) << 8) |
        ((entries[at + 2] as number) << 16) |
        ((entries[at + 3] as number) << 24)) >>>
      0;
    if (node !== owner) {
      throw new WireError(
        "WIRE_FIELD",
        `a lock of node ${node.toString(16)} where ${owner.toString(16)}'s was expected`,
      );
    }
  }
}

export class LockBatch {
  readonly #words: Int32Array;
  readonly #bytes: Uint8Array;
  readonly #commands: Int32Array;
  #from = 0;
  #slots = 0;

  /** @param slotsMax most entries and values. */
  constructor(readonly slotsMax: number) {
    this.#words = new Int32Array(slotsMax * ENTRY_WORDS);
    this.#bytes = new Uint8Array(this.#words.buffer);
    this.#commands = new Int32Array(slotsMax);
  }

  /** The node whose messages these are. */
  get from(): number {
    return this.#from;
  }
  get slots(): number {
    return this.#slots;
  }
  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#slots * MXFS_LOCK_ENTRY_SIZE);
  }
  /** By slot. A view. */
  get commands(): Int32Array {
    return this.#commands.subarray(0, this.#slots);
  }

  clear(): void {
    this.#slots = 0;
  }

  /** Whether this frame of `from` may be added before the batch is decided. */
  fits(frame: Frame, from: number): boolean {
    return this.hasRoom(frame.length / MXFS_LOCK_ENTRY_SIZE, from);
  }

  /** As `fits`, for so many slots. */
  hasRoom(count: number, from: number): boolean {
    return this.#slots === 0 || (from === this.#from && this.#slots + count <= this.slotsMax);
  }

  /**
   * Adds words[at .. at + 16 * count), the body of a frame of lock messages of `from`. @returns false, and nothing is
   * added: something is wrong with them, or there are values: `add` the frame. @throws RangeError: see `hasRoom`
   */
  addWords(command: Command, words: Int32Array, at: number, count: number, from: number): boolean {
    if (!this.hasRoom(count, from)) throw new RangeError("lock batch: decide what is in it first");
    if (count > this.slotsMax) return false;
    const to = this.#slots * ENTRY_WORDS;
    if (count > COPY_BY_WORD_COUNT_MAX) {
      this.#words.set(words.subarray(at, at + count * ENTRY_WORDS), to);
    } else {
      for (let word = 0; word < count * ENTRY_WORDS; word++) {
        this.#words[to + word] = words[at + word] as number;
      }
    }
    if (!this.#arePlain(to, count, from)) return false;
    this.#take(command, count, from);
    return true;
  }

  /** Adds a frame of lock messages, all of which must be locks of `from`. @throws WireError; RangeError: see `fits` */
  add(command: Command, frame: Frame, from: number): void {
    const count = frame.length / MXFS_LOCK_ENTRY_SIZE;
    if (!this.fits(frame, from)) throw new RangeError("lock batch: decide what is in it first");
    if (!Number.isInteger(count) || count === 0 || !this.#copy(frame, count, from)) {
      // Not quite plain: something is wrong, or there are values.
      checkLockEntries(frame.body, this.slotsMax, true);
      checkOwner(frame.body, from);
    }
    this.#take(command, count, from);
  }

  #take(command: Command, count: number, from: number): void {
    if (count === 1) this.#commands[this.#slots] = command;
    else this.#commands.fill(command, this.#slots, this.#slots + count);
    this.#from = from;
    this.#slots += count;
  }

  /** Copies the entries behind the others. @returns whether all are plain ones of `from`, without values. */
  #copy(frame: Frame, count: number, from: number): boolean {
    if (count > this.slotsMax) return false;
    const to = this.#slots * ENTRY_WORDS;
    this.#bytes.set(frame.body, 4 * to);
    return this.#arePlain(to, count, from);
  }

  /** Whether the entries behind the others, from word `to` on, are plain ones of `from`, without values. */
  #arePlain(to: number, count: number, from: number): boolean {
    const words = this.#words;
    for (let at = to; at < to + count * ENTRY_WORDS; at += ENTRY_WORDS) {
      const modes = words[at + MODES] as number;
      if (
        KNOWN_TYPES[words[at + TYPE] as number] !== 1 ||
        (modes & 0xff) >= MXFS_MODE_COUNT ||
        ((modes >>> 8) & 0xff) >= MXFS_MODE_COUNT ||
        modes >>> 16 >= MXFS_LKF_VALUE ||
        words[at + STATUS] !== 0 ||
        words[at + NODE] !== (from | 0)
      ) {
        return false;
      }
    }
    return true;
  }
}
