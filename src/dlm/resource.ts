// SPDX-License-Identifier: GPL-2.0-only
/**
 * The resource key: 32 bytes, as eight little-endian words, and its FNV-1a-32 hash, which picks the master and
 * the hash bucket.
 *
 * Protocol: every node must come to the same hash, so it is FNV-1a of the very bytes on the wire. Keys are
 * mostly zeros and begin with the same volume: a zero word is one multiplication by prime^4, and the state
 * after the volume is kept.
 * Known weakness: FNV is not keyed; a user who picks inode numbers could crowd one bucket.
 */

import { MXFS_RESOURCE_SIZE } from "../wire/abi.js";
import { fnv1a32 } from "../wire/fnv.js";
import { encodeResource, type Resource } from "../wire/lock_entry.js";

export const KEY_WORDS = MXFS_RESOURCE_SIZE / 4;

const OFFSET_BASIS = 0x811c9dc5 | 0;
const PRIME = 0x01000193;
const PRIME_2 = Math.imul(PRIME, PRIME);
const PRIME_3 = Math.imul(PRIME_2, PRIME);
const PRIME_4 = Math.imul(PRIME_2, PRIME_2);

function mixWord(hash: number, word: number): number {
  if (word === 0) return Math.imul(hash, PRIME_4);
  let h = Math.imul(hash ^ (word & 0xff), PRIME);
  if (word >>> 8 === 0) return Math.imul(h, PRIME_3);
  h = Math.imul(h ^ ((word >>> 8) & 0xff), PRIME);
  h = Math.imul(h ^ ((word >>> 16) & 0xff), PRIME);
  return Math.imul(h ^ (word >>> 24), PRIME);
}

/** Hashes keys; remembers the state after the last volume. One per thread. */
export class ResourceHasher {
  #volumeLow = 0;
  #volumeHigh = 0;
  #afterVolume = mixWord(mixWord(OFFSET_BASIS, 0), 0);

  /** FNV-1a-32, unsigned, of words[at .. at + 8). */
  hash(words: Int32Array, at: number): number {
    const low = words[at] as number;
    const high = words[at + 1] as number;
    if (low !== this.#volumeLow || high !== this.#volumeHigh) {
      this.#afterVolume = mixWord(mixWord(OFFSET_BASIS, low), high);
      this.#volumeLow = low;
      this.#volumeHigh = high;
    }
    let h = this.#afterVolume;
    for (let i = 2; i < KEY_WORDS; i++) h = mixWord(h, words[at + i] as number);
    return h >>> 0;
  }
}

/** The plain way, for whoever has a resource as an object. */
export function hashResource(resource: Resource): number {
  return fnv1a32(resourceBytes(resource));
}

/** The 32 bytes of a key. */
export function resourceBytes(resource: Resource): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(MXFS_RESOURCE_SIZE);
  encodeResource(resource, bytes, 0);
  return bytes;
}

/** Total order in which locks are taken: by (ino, type, offset). Negative when `a` comes first. */
export function compareResources(a: Resource, b: Resource): number {
  if (a.ino !== b.ino) return a.ino < b.ino ? -1 : 1;
  if (a.type !== b.type) return a.type - b.type;
  if (a.offset !== b.offset) return a.offset < b.offset ? -1 : 1;
  return 0;
}
