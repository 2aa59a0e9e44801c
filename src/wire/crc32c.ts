// SPDX-License-Identifier: GPL-2.0-only
/**
 * CRC32C (Castagnoli, reflected polynomial 82F63B78h): the checksum of XFS metadata and of MXFS's own records.
 * Fact from: RFC 3720 B.4 (test vectors), Linux lib/crc32c. Slicing by 4, so that 64 KiB blocks cost little.
 * Known weakness: guards against damage, not against an enemy.
 */

const POLYNOMIAL = 0x82f63b78;

/** Four tables of 256: entry [k * 256 + b] advances byte b over k further zero bytes. */
const TABLES: Uint32Array = (() => {
  const tables = new Uint32Array(4 * 256);
  for (let b = 0; b < 256; b++) {
    let crc = b;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1) !== 0 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
    tables[b] = crc;
  }
  for (let k = 1; k < 4; k++) {
    for (let b = 0; b < 256; b++) {
      const previous = tables[(k - 1) * 256 + b] as number;
      tables[k * 256 + b] = (previous >>> 8) ^ (tables[previous & 0xff] as number);
    }
  }
  return tables;
})();

/**
 * Runs the CRC register over bytes. Start with CRC32C_SEED, pass the result on for the next piece, and end with
 * crc32cFinish().
 */
export function crc32cUpdate(register: number, bytes: Uint8Array): number {
  let crc = register;
  let i = 0;
  for (const end = bytes.length - 3; i < end; i += 4) {
    crc ^=
      (bytes[i] as number) |
      ((bytes[i + 1] as number) << 8) |
      ((bytes[i + 2] as number) << 16) |
      ((bytes[i + 3] as number) << 24);
    crc =
      (TABLES[768 + (crc & 0xff)] as number) ^
      (TABLES[512 + ((crc >>> 8) & 0xff)] as number) ^
      (TABLES[256 + ((crc >>> 16) & 0xff)] as number) ^
      (TABLES[crc >>> 24] as number);
  }
  for (; i < bytes.length; i++) crc = (crc >>> 8) ^ (TABLES[(crc ^ (bytes[i] as number)) & 0xff] as number);
  return crc >>> 0;
}

export const CRC32C_SEED = 0xffffffff;

/** The checksum that belongs to a register. */
export function crc32cFinish(register: number): number {
  return ~register >>> 0;
}

/** CRC32C of the bytes, as an unsigned 32-bit number ("123456789" gives E3069283h). */
export function crc32c(bytes: Uint8Array): number {
  return crc32cFinish(crc32cUpdate(CRC32C_SEED, bytes));
}

const ZEROS_4 = new Uint8Array(4);

/** CRC32C of the bytes with the four bytes at `fieldOffset` taken as zero: how a checksum inside is made. */
export function crc32cExcept(bytes: Uint8Array, fieldOffset: number): number {
  if (fieldOffset < 0 || fieldOffset + 4 > bytes.length) {
    throw new RangeError(`checksum field at ${fieldOffset} lies outside of ${bytes.length} bytes`);
  }
  let crc = crc32cUpdate(CRC32C_SEED, bytes.subarray(0, fieldOffset));
  crc = crc32cUpdate(crc, ZEROS_4);
  return crc32cFinish(crc32cUpdate(crc, bytes.subarray(fieldOffset + 4)));
}
