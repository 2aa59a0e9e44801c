// SPDX-License-Identifier: GPL-2.0-only
/**
 * Sealed records: what was sealed opens, in order, once, in one direction; anything else ends the connection. The format
 * is computed once more here, from what include/mxfs/wire.h says.
 */
import { createDecipheriv, createHmac } from "node:crypto";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { MXFS_SEAL_PLAIN_MAX } from "../../src/wire/abi.js";
import type { AuthContext } from "../../src/wire/auth.js";
import { WireError } from "../../src/wire/error.js";
import { Opener, Sealer, SealKey } from "../../src/wire/seal.js";
import { Random } from "../support/random.js";

const random = new Random(5);
const KEY = random.bytes(32);
const CONTEXT: AuthContext = {
  volume: 0x1122334455667788n,
  sender: 1,
  target: 2,
  senderIncarnation: 3,
  targetIncarnation: 4,
  senderNonce: random.bytes(32),
  targetNonce: random.bytes(32),
  senderFlags: 1,
  targetFlags: 0,
};
/** The other direction of the same connection. */
const BACK: AuthContext = {
  ...CONTEXT,
  sender: CONTEXT.target,
  target: CONTEXT.sender,
  senderIncarnation: CONTEXT.targetIncarnation,
  targetIncarnation: CONTEXT.senderIncarnation,
  senderNonce: CONTEXT.targetNonce,
  targetNonce: CONTEXT.senderNonce,
};

const sealer = (context = CONTEXT, recordsMax?: number): Sealer =>
  new Sealer(SealKey.derive(KEY, context, recordsMax));
const opener = (context = CONTEXT, recordsMax?: number): Opener =>
  new Opener(SealKey.derive(KEY, context, recordsMax));
const bytesOf = (pieces: readonly Uint8Array[]): Buffer => Buffer.concat(pieces);
const text = (plain: string): Uint8Array => new TextEncoder().encode(plain);

function opened(by: Opener, bytes: Uint8Array): string[] {
  const found: string[] = [];
  by.push(bytes, (plain) => found.push(new TextDecoder().decode(plain)));
  return found;
}

function refused(by: Opener, bytes: Uint8Array, code: string): void {
  let taken = 0;
  const push = (): void => by.push(bytes, () => taken++);
  const wrong = (error: unknown): boolean => error instanceof WireError && error.code === code;
  assert.throws(push, wrong);
  assert.is(taken, 0);
  assert.throws(push, wrong, "it stays broken");
}

test("records open in order, however the stream is cut", () => {
  for (let seed = 1; seed <= 200; seed++) {
    const cut = new Random(seed);
    const from = sealer();
    const to = opener();
    const plains = Array.from({ length: 5 }, () => cut.bytes(1 + cut.below(300)));
    const stream = bytesOf(plains.flatMap((plain) => from.seal(plain)));
    const found: Uint8Array[] = [];
    for (let at = 0; at < stream.length; ) {
      const size = 1 + cut.below(200);
      to.push(stream.subarray(at, at + size), (plain) => found.push(Uint8Array.from(plain)));
      at += size;
    }
    assert.is(to.partial, false);
    assert.equal(Buffer.concat(found), Buffer.concat(plains), `seed ${seed}`);
  }
});

test("keys, nonces and records are as wire.h says (HKDF and AES-256-GCM done anew)", () => {
  const hmac = (key: Uint8Array, ...parts: Uint8Array[]): Buffer =>
    createHmac("sha256", key).update(Buffer.concat(parts)).digest();
  const hkdf = (secret: Uint8Array, salt: Uint8Array, info: Uint8Array): Buffer => {
    const prk = hmac(salt.length === 0 ? new Uint8Array(32) : salt, secret);
    const first = hmac(prk, info, Uint8Array.of(1));
    return Buffer.concat([first, hmac(prk, first, info, Uint8Array.of(2))]).subarray(0, 44);
  };
  const numbers = Buffer.alloc(24);
  numbers.writeBigUInt64LE(CONTEXT.volume, 0);
  [1, 2, 3, 4].forEach((value, index) => {
    numbers.writeUInt32LE(value, 8 + 4 * index);
  });
  const salt = Buffer.concat([CONTEXT.senderNonce, CONTEXT.targetNonce]);
  let material = hkdf(KEY, salt, Buffer.concat([text("mxfs-seal"), numbers]));
  const from = sealer(CONTEXT, 3);
  for (let record = 0; record < 7; record++) {
    if (record > 0 && record % 3 === 0)
      material = hkdf(material.subarray(0, 32), Buffer.alloc(0), text("mxfs-rekey"));
    const nonce = Buffer.from(material.subarray(32));
    nonce[11] = (nonce[11] as number) ^ (record % 3);
    const bytes = bytesOf(from.seal(text(`record ${record}`)));
    assert.is(bytes.readUInt32LE(0), 8);
    const decipher = createDecipheriv("aes-256-gcm", material.subarray(0, 32), nonce);
    decipher.setAAD(bytes.subarray(0, 4));
    decipher.setAuthTag(bytes.subarray(12));
    assert.is(
      Buffer.concat([decipher.update(bytes.subarray(4, 12)), decipher.final()]).toString(),
      `record ${record}`,
    );
  }
});

test("no nonce comes twice under one key, over a change of keys either", () => {
  const key = SealKey.derive(KEY, CONTEXT, 100);
  const seen = new Set<string>();
  for (let record = 0; record < 1000; record++) {
    const { key: secret, nonce } = key.next();
    seen.add(`${secret.export().toString("hex")} ${Buffer.from(nonce).toString("hex")}`);
  }
  assert.is(seen.size, 1000);
});

test("both sides change keys at the same record", () => {
  const from = sealer(CONTEXT, 4);
  const to = opener(CONTEXT, 4);
  for (let record = 0; record < 20; record++) {
    assert.equal(opened(to, bytesOf(from.seal(text(String(record))))), [String(record)]);
  }
});

test("any changed bit is noticed: length, cipher text, tag", () => {
  const bytes = bytesOf(sealer().seal(text("twelve bytes")));
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const changed = Buffer.from(bytes);
    changed[bit >> 3] = (changed[bit >> 3] as number) ^ (1 << (bit & 7));
    const to = opener();
    let taken = 0;
    try {
      // A longer length waits for more: which is then no right record either.
      to.push(changed, () => taken++);
      assert.ok(to.partial, `bit ${bit}`);
      to.push(new Uint8Array(MXFS_SEAL_PLAIN_MAX + 16), () => taken++);
      assert.unreachable(`bit ${bit} was not noticed`);
    } catch (error) {
      assert.instance(error, WireError, `bit ${bit}: ${error}`);
    }
    assert.is(taken, 0);
  }
});

test("a record that is repeated, left out or moved does not open", () => {
  const from = sealer();
  const [first, second] = [bytesOf(from.seal(text("1"))), bytesOf(from.seal(text("2")))];
  const repeated = opener();
  assert.equal(opened(repeated, first), ["1"]);
  refused(repeated, first, "WIRE_MAC");
  refused(opener(), second, "WIRE_MAC");
  assert.equal(opened(opener(), Buffer.concat([first, second])), ["1", "2"]);
});

test("what one side sealed does not open as the other side's, nor on another connection", () => {
  const bytes = bytesOf(sealer().seal(text("hello")));
  refused(opener(BACK), bytes, "WIRE_MAC");
  refused(opener({ ...CONTEXT, senderNonce: random.bytes(32) }), bytes, "WIRE_MAC");
  refused(opener({ ...CONTEXT, targetNonce: random.bytes(32) }), bytes, "WIRE_MAC");
  refused(opener({ ...CONTEXT, volume: 1n }), bytes, "WIRE_MAC");
  refused(opener({ ...CONTEXT, targetIncarnation: 9 }), bytes, "WIRE_MAC");
  refused(new Opener(SealKey.derive(random.bytes(32), CONTEXT)), bytes, "WIRE_MAC");
});

test("a stream that ends within a record has given nothing of it", () => {
  const bytes = bytesOf(sealer().seal(text("all or nothing")));
  for (let end = 1; end < bytes.length; end++) {
    const to = opener();
    assert.equal(opened(to, bytes.subarray(0, end)), []);
    assert.is(to.partial, true);
  }
});

test("a length of nothing, or above the limit, is refused before anything is kept", () => {
  for (const length of [0, MXFS_SEAL_PLAIN_MAX + 1, 0xffffffff, 0x4d584653]) {
    const header = Buffer.alloc(4);
    header.writeUInt32LE(length);
    refused(opener(), header, "WIRE_LENGTH");
  }
  assert.throws(() => sealer().seal(new Uint8Array(0)), RangeError);
  assert.throws(() => sealer().seal(new Uint8Array(MXFS_SEAL_PLAIN_MAX + 1)), RangeError);
  const longest = new Uint8Array(MXFS_SEAL_PLAIN_MAX).fill(7);
  let found = 0;
  opener().push(bytesOf(sealer().seal(longest)), (plain) => {
    found = plain.length;
  });
  assert.is(found, MXFS_SEAL_PLAIN_MAX);
});

test.run();
