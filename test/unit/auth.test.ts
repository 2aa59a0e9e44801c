// SPDX-License-Identifier: GPL-2.0-only
/** Proves that only who has the cluster key is believed, and only for what he said himself, once. */
import { createHmac } from "node:crypto";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { type AuthContext, authCode, hmac, macEquals, verifyAuth } from "../../src/wire/auth.js";
import { Random } from "../support/random.js";

const random = new Random(11);
const KEY = random.bytes(32);
const CONTEXT: AuthContext = {
  volume: 0x1122334455667788n,
  sender: 1,
  target: 2,
  senderIncarnation: 3,
  targetIncarnation: 4,
  senderNonce: random.bytes(32),
  targetNonce: random.bytes(32),
  senderFlags: 0,
  targetFlags: 0,
};

test("the code is HMAC-SHA256 over the bytes that wire.h lists", () => {
  const numbers = Buffer.alloc(24);
  numbers.writeBigUInt64LE(CONTEXT.volume, 0);
  [1, 2, 3, 4].forEach((value, index) => {
    numbers.writeUInt32LE(value, 8 + 4 * index);
  });
  const bytes = Buffer.concat([Buffer.from("mxfs-auth"), numbers, CONTEXT.senderNonce, CONTEXT.targetNonce]);
  assert.equal([...authCode(KEY, CONTEXT)], [...createHmac("sha256", KEY).update(bytes).digest()]);
});

test("flags are covered by the code, the sender's first", () => {
  const plain = authCode(KEY, CONTEXT);
  const flagged = authCode(KEY, { ...CONTEXT, senderFlags: 1 });
  assert.not.equal(flagged, plain);
  assert.not.equal(flagged, authCode(KEY, { ...CONTEXT, targetFlags: 1 }));
  // Who was told of other flags than were sent computes another code: nobody between them can take them away.
  assert.is(verifyAuth(KEY, CONTEXT, flagged), false);
});

test("HMAC-SHA256 gives what another implementation gave (Python's hmac)", () => {
  const key = Uint8Array.from({ length: 32 }, (_, index) => index);
  const found = Buffer.from(hmac(key, new TextEncoder().encode("hello"))).toString("hex");
  assert.is(found, "53c40272a70c15ca4ee0af4df1f155fd6c41e00ce2307d8987ecd4bb36a7e990");
});

test("the right code is believed, and not for any other node, volume, incarnation, nonce or key", () => {
  const code = authCode(KEY, CONTEXT);
  assert.is(verifyAuth(KEY, CONTEXT, code), true);
  const others: Partial<AuthContext>[] = [
    { volume: 1n },
    { sender: 9 },
    { target: 9 },
    { senderIncarnation: 9 },
    { targetIncarnation: 9 },
    { senderNonce: new Uint8Array(32) },
    { targetNonce: new Uint8Array(32) },
    { senderFlags: 1 },
    { targetFlags: 1 },
  ];
  for (const other of others) assert.is(verifyAuth(KEY, { ...CONTEXT, ...other }, code), false);
  assert.is(verifyAuth(new Uint8Array(32), CONTEXT, code), false);
});

test("a code sent back to its sender is not believed", () => {
  const mirrored: AuthContext = {
    ...CONTEXT,
    sender: CONTEXT.target,
    target: CONTEXT.sender,
    senderIncarnation: CONTEXT.targetIncarnation,
    targetIncarnation: CONTEXT.senderIncarnation,
    senderNonce: CONTEXT.targetNonce,
    targetNonce: CONTEXT.senderNonce,
  };
  assert.is(verifyAuth(KEY, mirrored, authCode(KEY, CONTEXT)), false);
});

test("any changed bit, and any other length, is not believed", () => {
  const code = authCode(KEY, CONTEXT);
  for (let bit = 0; bit < 256; bit++) {
    const changed = code.slice();
    changed[bit >> 3] = (changed[bit >> 3] as number) ^ (1 << (bit & 7));
    assert.is(verifyAuth(KEY, CONTEXT, changed), false);
  }
  assert.is(verifyAuth(KEY, CONTEXT, code.slice(0, 31)), false);
  assert.is(verifyAuth(KEY, CONTEXT, new Uint8Array(0)), false);
  assert.is(macEquals(code, new Uint8Array(33)), false);
});

test("keys and nonces of the wrong size are a mistake of ours and said so", () => {
  assert.throws(() => hmac(new Uint8Array(16), KEY), /cluster key: expected 32/);
  assert.throws(() => authCode(KEY, { ...CONTEXT, senderNonce: new Uint8Array(8) }), /nonce: expected 32/);
});

test.run();
