// SPDX-License-Identifier: GPL-2.0-only
//
// Gathers the lock messages of many frames, so that the lock table sees them as one batch: what one read of a socket
// brings is decided together, in the order it came, requests and releases mixed.
//
// Protocol: `add` checks a frame's entries as it copies them; one that throws adds nothing. `commands[slot]` is the
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
  readonly #commands: Command[] = [];
  #from = 0;
  #slots = 0;
  /** The piece of the stream that the last frame lay in; its buffer's words, and where in them it begins. */
  #piece: Uint8Array | null = null;
  #pieceWords = new Int32Array(0) as Int32Array;
  #pieceAt = 0;

  /** @param slotsMax most entries and values. */
  constructor(readonly slotsMax: number) {
    this.#words = new Int32Array(slotsMax * ENTRY_WORDS);
    this.#bytes = new Uint8Array(this.#words.buffer);
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
  get commands(): readonly Command[] {
    return this.#commands;
  }

  clear(): void {
    this.#slots = 0;
    // Not to keep it alive.
    this.#piece = null;
  }

  /** Whether this frame of `from` may be added before the batch is decided. */
  fits(frame: Frame, from: number): boolean {
    if (this.#slots === 0) return true;
    const slots = this.#slots + frame.length / MXFS_LOCK_ENTRY_SIZE;
    return from === this.#from && slots <= this.slotsMax;
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
    for (let slot = this.#slots; slot < this.#slots + count; slot++) this.#commands[slot] = command;
    this.#from = from;
    this.#slots += count;
  }

  /** Copies the entries behind the others. @returns whether all are plain ones of `from`, without values. */
  #copy(frame: Frame, count: number, from: number): boolean {
    if (count > this.slotsMax) return false;
    const to = this.#slots * ENTRY_WORDS;
    const words = this.#words;
    // Many frames lie in one piece, and to ask a typed array for its buffer is dear.
    if (this.#piece !== frame.bytes) {
      this.#piece = frame.bytes;
      this.#pieceWords = new Int32Array(frame.bytes.buffer, 0, frame.bytes.buffer.byteLength >>> 2);
      this.#pieceAt = frame.bytes.byteOffset;
    }
    const offset = this.#pieceAt + frame.bodyAt;
    if ((offset & 3) === 0) {
      const source = this.#pieceWords;
      const at = offset >>> 2;
      for (let word = 0; word < count * ENTRY_WORDS; word++) words[to + word] = source[at + word] as number;
    } else {
      this.#bytes.set(frame.body, 4 * to);
    }
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
