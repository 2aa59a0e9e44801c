// SPDX-License-Identifier: GPL-2.0-only
/** Proves discovery packets: signed, checked, and no packet counts twice. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { hmac } from "../../src/wire/auth.js";
import {
  type DiscoveryPacket,
  decodeDiscovery,
  encodeDiscovery,
  ReplayGuard,
} from "../../src/wire/discovery.js";
import { WireError } from "../../src/wire/error.js";
import { codeOfError } from "../support/code_of.js";
import { Random } from "../support/random.js";

const KEY = new Random(3).bytes(32);
const PACKET: DiscoveryPacket = {
  type: "announce",
  volume: 0xfedcba9876543210n,
  node: 0xffffffff,
  incarnation: 7,
  role: 1,
  port: 7601,
  address: "10.1.2.3",
  epoch: 12n,
  counter: 99n,
  uuid: new Random(4).bytes(16),
};

const codeOf = codeOfError(WireError, "accepted");

/** Changes bytes and signs again. */
function resigned(change: (view: DataView) => void): Uint8Array {
  const bytes = encodeDiscovery(PACKET, KEY);
  change(new DataView(bytes.buffer));
  bytes.set(hmac(KEY, bytes.subarray(0, 80)), 80);
  return bytes;
}

test("packets are read as they were written", () => {
  const variants: Partial<DiscoveryPacket>[] = [
    {},
    { type: "query", role: 0 },
    { address: "fe80::1:2" },
    { address: null },
    { counter: 0xffffffffffffffffn },
  ];
  for (const variant of variants) {
    const packet = { ...PACKET, ...variant };
    const bytes = encodeDiscovery(packet, KEY);
    assert.is(bytes.length, 112);
    assert.equal(decodeDiscovery(bytes, KEY), packet);
  }
});

test("every changed bit is noticed", () => {
  const bytes = encodeDiscovery(PACKET, KEY);
  for (let bit = 0; bit < 112 * 8; bit++) {
    const changed = bytes.slice();
    changed[bit >> 3] = (changed[bit >> 3] as number) ^ (1 << (bit & 7));
    const expected = bit < 32 ? "WIRE_MAGIC" : bit < 48 ? "WIRE_VERSION" : "WIRE_MAC";
    assert.is(
      codeOf(() => decodeDiscovery(changed, KEY)),
      expected,
      `bit ${bit}`,
    );
  }
});

test("another cluster's packets are not believed", () => {
  assert.is(
    codeOf(() => decodeDiscovery(encodeDiscovery(PACKET, new Uint8Array(32)), KEY)),
    "WIRE_MAC",
  );
});

test("a signed packet with bad fields is refused all the same", () => {
  const decode = (change: (view: DataView) => void): string =>
    codeOf(() => decodeDiscovery(resigned(change), KEY));
  assert.is(
    decode(() => {}),
    "accepted",
  );
  assert.is(
    decode((view) => view.setUint16(6, 3, true)),
    "WIRE_TYPE",
  );
  assert.is(
    decode((view) => view.setUint32(24, 3, true)),
    "WIRE_FIELD",
  );
  assert.is(
    decode((view) => view.setUint16(28, 0, true)),
    "WIRE_FIELD",
  );
  assert.is(
    decode((view) => view.setUint16(30, 5, true)),
    "WIRE_FIELD",
  );
  for (const length of [0, 111, 113, 65507]) {
    assert.is(
      codeOf(() => decodeDiscovery(new Uint8Array(length), KEY)),
      "WIRE_LENGTH",
    );
  }
});

test("what cannot be sent is a mistake of ours and said so", () => {
  for (const wrong of [
    { port: 0 },
    { address: "here" },
    { uuid: new Uint8Array(15) },
    { node: -1 },
    { counter: -1n },
  ]) {
    assert.throws(() => encodeDiscovery({ ...PACKET, ...wrong }, KEY), RangeError);
  }
});

test("a packet counts once, an older one not at all, and a new incarnation starts anew", () => {
  const guard = new ReplayGuard();
  const accept = (incarnation: number, counter: bigint, node = 1): boolean =>
    guard.accept({ node, incarnation, counter });
  assert.is(accept(1, 5n), true);
  assert.is(accept(1, 5n), false);
  assert.is(accept(1, 4n), false);
  assert.is(accept(1, 6n), true);
  assert.is(accept(2, 0n), true);
  assert.is(accept(1, 100n), false);
  assert.is(accept(1, 5n, 2), true);
});

test("the guard's memory is bounded, and forgets who was silent for longest", () => {
  const guard = new ReplayGuard(3);
  for (const node of [1, 2, 3]) guard.accept({ node, incarnation: 1, counter: 5n });
  guard.accept({ node: 1, incarnation: 1, counter: 6n });
  guard.accept({ node: 4, incarnation: 1, counter: 5n });
  assert.is(guard.size, 3);
  assert.is(guard.accept({ node: 1, incarnation: 1, counter: 6n }), false);
  assert.is(guard.accept({ node: 2, incarnation: 1, counter: 5n }), true);
});

test("random bytes are refused with a WireError, and never anything else (seeds 1 to 1000)", () => {
  for (let seed = 1; seed <= 1000; seed++) {
    const random = new Random(seed);
    const bytes = random.damaged(encodeDiscovery(PACKET, KEY));
    const code = codeOf(() => decodeDiscovery(bytes, KEY));
    assert.ok(code !== "accepted" || bytes.length === 112, `seed ${seed}`);
  }
});

test.run();
