// SPDX-License-Identifier: GPL-2.0-only
/**
 * Seeded random numbers for tests (mulberry32), so that a failure replays exactly.
 * Known weakness: 32 bits of state; good for inputs, not for statistics.
 */
export class Random {
  #state: number;

  constructor(readonly seed: number) {
    this.#state = seed >>> 0;
  }

  u32(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  }

  /** 0 to count - 1. */
  below(count: number): number {
    return Math.floor((this.u32() / 0x1_0000_0000) * count);
  }

  u64(): bigint {
    return (BigInt(this.u32()) << 32n) | BigInt(this.u32());
  }

  chance(percent: number): boolean {
    return this.below(100) < percent;
  }

  pick<T>(from: readonly T[]): T {
    if (from.length === 0) throw new RangeError("nothing to pick from");
    return from[this.below(from.length)] as T;
  }

  bytes(count: number): Uint8Array<ArrayBuffer> {
    return Uint8Array.from({ length: count }, () => this.u32() & 0xff);
  }

  /** A copy with a few bits flipped, bytes overwritten, or the end cut off or grown. */
  damaged(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
    let copy = bytes.slice();
    for (let i = this.below(4); i >= 0; i--) {
      if (copy.length > 0 && this.chance(80)) {
        const at = this.below(copy.length);
        copy[at] = this.chance(50)
          ? (copy[at] as number) ^ (1 << this.below(8))
          : this.pick([0, 1, 0x7f, 0x80, 0xff]);
      } else if (this.chance(50)) {
        copy = copy.slice(0, this.below(copy.length + 1));
      } else {
        const longer = new Uint8Array(copy.length + this.below(20));
        longer.set(copy);
        copy = longer;
      }
    }
    return copy;
  }
}
