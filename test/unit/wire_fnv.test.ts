// SPDX-License-Identifier: GPL-2.0-only
/** Proves the FNV-1a and CRC32C sums against published vectors and a slow, plain second implementation. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { CRC32C_SEED, crc32c, crc32cExcept, crc32cFinish, crc32cUpdate } from "../../src/wire/crc32c.js";
import { fnv1a32, fnv1a64 } from "../../src/wire/fnv.js";

const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

test("FNV-1a-32 gives the published values", () => {
  assert.is(fnv1a32(bytesOf("")), 0x811c9dc5);
  assert.is(fnv1a32(bytesOf("a")), 0xe40c292c);
  assert.is(fnv1a32(bytesOf("foobar")), 0xbf9cf968);
});

test("FNV-1a-64 gives the published values", () => {
  assert.is(fnv1a64(bytesOf("")), 0xcbf29ce484222325n);
  assert.is(fnv1a64(bytesOf("a")), 0xaf63dc4c8601ec8cn);
  assert.is(fnv1a64(bytesOf("foobar")), 0x85944171f73967e8n);
});

test("FNV-1a-64 in halves equals the plain definition for 500 random inputs", () => {
  let seed = 7;
  const next = (): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return seed >>> 16;
  };
  for (let round = 0; round < 500; round++) {
    const bytes = Uint8Array.from({ length: next() % 40 }, () => next() & 0xff);
    let expected = 0xcbf29ce484222325n;
    for (const byte of bytes) expected = ((expected ^ BigInt(byte)) * 0x100000001b3n) & 0xffffffffffffffffn;
    assert.is(fnv1a64(bytes), expected);
  }
});

test("CRC32C gives the vectors of RFC 3720 B.4", () => {
  assert.is(crc32c(bytesOf("123456789")), 0xe3069283);
  assert.is(crc32c(new Uint8Array(32)), 0x8a9136aa);
  assert.is(crc32c(new Uint8Array(32).fill(0xff)), 0x62a8ab43);
  assert.is(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i)), 0x46dd794e);
});

test("CRC32C in pieces of any size equals CRC32C in one go", () => {
  const bytes = Uint8Array.from({ length: 100 }, (_, i) => (i * 37) & 0xff);
  for (let cut = 0; cut <= bytes.length; cut++) {
    const first = crc32cUpdate(CRC32C_SEED, bytes.subarray(0, cut));
    assert.is(crc32cFinish(crc32cUpdate(first, bytes.subarray(cut))), crc32c(bytes));
  }
});

test("a checksum field counts as zero wherever it lies, and outside it is refused", () => {
  const bytes = Uint8Array.from({ length: 20 }, (_, i) => i + 1);
  for (let at = 0; at <= 16; at++) {
    const zeroed = bytes.slice();
    zeroed.fill(0, at, at + 4);
    assert.is(crc32cExcept(bytes, at), crc32c(zeroed));
  }
  assert.throws(() => crc32cExcept(bytes, 17), /outside/);
  assert.throws(() => crc32cExcept(bytes, -1), /outside/);
});

test.run();
