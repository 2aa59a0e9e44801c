// SPDX-License-Identifier: GPL-2.0-only
/**
 * FNV-1a hashes: 32 bit for node ids and for resources (mastering, record placement), 64 bit for volume ids.
 * Fact from: The FNV Non-Cryptographic Hash Algorithm (draft-eastlake-fnv), offset basis and prime.
 * Known weakness: not keyed and easily made to collide; never use it where an enemy chooses the input.
 */

const FNV32_OFFSET = 0x811c9dc5;
const FNV32_PRIME = 0x01000193;
const FNV64_PRIME_LOW = 0x1b3;

/** FNV-1a of the bytes, as an unsigned 32-bit number. */
export function fnv1a32(bytes: Uint8Array): number {
  let hash = FNV32_OFFSET;
  for (let i = 0; i < bytes.length; i++) hash = Math.imul(hash ^ (bytes[i] as number), FNV32_PRIME);
  return hash >>> 0;
}

/**
 * FNV-1a of the bytes, as an unsigned 64-bit bigint. Worked out in two 32-bit halves; the prime is 2^40 + 1B3h,
 * so hash * prime = hash * 1B3h + (low half << 40), modulo 2^64.
 */
export function fnv1a64(bytes: Uint8Array): bigint {
  let high = 0xcbf29ce4;
  let low = 0x84222325;
  for (let i = 0; i < bytes.length; i++) {
    const mixed = (low ^ (bytes[i] as number)) >>> 0;
    const product = mixed * FNV64_PRIME_LOW; // below 2^41: exact
    const carry = Math.floor(product / 0x1_0000_0000);
    high = (Math.imul(high, FNV64_PRIME_LOW) + carry + (mixed << 8)) >>> 0;
    low = product >>> 0;
  }
  return (BigInt(high) << 32n) | BigInt(low);
}
