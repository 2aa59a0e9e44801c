// SPDX-License-Identifier: GPL-2.0-only
import { connect } from "node:net";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { WireType } from "../../src/wire/abi.js";
import { PeerNetwork } from "../../src/workers/peer_net.js";

interface Event {
  readonly what: string;
  readonly node: number;
  readonly text: string;
}

class Side {
  readonly events: Event[] = [];
  readonly net: PeerNetwork;
  port = 0;
  #waiters: (() => void)[] = [];

  constructor(self: number, key: Uint8Array | null, volume = 7n) {
    const note = (what: string, node: number, text: string): void => {
      this.events.push({ what, node, text });
      for (const waiter of this.#waiters.splice(0)) {
        waiter();
      }
    };
    this.net = new PeerNetwork(
      { self, incarnation: self * 10, volume, port: 0, iface: null },
      {
        up: (node, incarnation) => note("up", node, String(incarnation)),
        lost: (node, reason) => note("lost", node, reason),
        frame: (node, frame) => note("frame", node, `${frame.type}:${new TextDecoder().decode(frame.body)}`),
        log: (_level, text) => note("log", 0, text),
      },
    );
    this.net.key = key;
  }

  async until(what: string, count = 1): Promise<Event> {
    for (;;) {
      const found = this.events.filter((event) => event.what === what);
      const event = found[count - 1];
      if (event !== undefined) {
        return event;
      }
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  count(what: string): number {
    return this.events.filter((event) => event.what === what).length;
  }
}

const KEY = new Uint8Array(32).fill(3);
const test = suite<{
  sides: Side[];
  make: (self: number, key?: Uint8Array | null, volume?: bigint) => Promise<Side>;
}>("peer network");
test.before.each((context) => {
  context.sides = [];
  context.make = async (self, key = KEY, volume = 7n) => {
    const side = new Side(self, key, volume);
    context.sides.push(side);
    side.port = await side.net.listen();
    return side;
  };
});
test.after.each(async (context) => {
  await Promise.all(context.sides.map((side) => side.net.close()));
});

test("two nodes that know the key connect, whichever dials, and frames pass both ways", async ({ make }) => {
  for (const [low, high] of [
    [1, 2],
    [4, 3],
  ] as const) {
    const a = await make(low);
    const b = await make(high);
    a.net.connect(high, "127.0.0.1", b.port);
    assert.is((await a.until("up")).text, String(high * 10));
    await b.until("up");
    assert.ok(a.net.send(high, WireType.LEASE_ACK, 5n, new TextEncoder().encode("hi")));
    assert.is((await b.until("frame")).text, `${WireType.LEASE_ACK}:hi`);
    assert.ok(b.net.send(low, WireType.LEASE_ACK, 5n, new TextEncoder().encode("ho")));
    assert.is((await a.until("frame")).text, `${WireType.LEASE_ACK}:ho`);
  }
});

test("when both dial at once one connection is used, and nothing said on it is lost", async ({ make }) => {
  for (let round = 0; round < 20; round++) {
    const a = await make(100 + round);
    const b = await make(200 + round);
    a.net.connect(200 + round, "127.0.0.1", b.port);
    b.net.connect(100 + round, "127.0.0.1", a.port);
    await Promise.all([a.until("up"), b.until("up")]);
    a.net.send(200 + round, WireType.LEASE_ACK, 0n, new TextEncoder().encode("1"));
    b.net.send(100 + round, WireType.LEASE_ACK, 0n, new TextEncoder().encode("2"));
    await Promise.all([a.until("frame"), b.until("frame")]);
    assert.is(a.count("lost") + b.count("lost"), 0, `round ${round}`);
    assert.is(a.net.peers().length, 1);
    assert.is(b.net.peers().length, 1);
  }
});

test("a wrong key, another volume and one's own id are refused with the reason", async ({ make }) => {
  const a = await make(1);
  const wrongKey = await make(2, new Uint8Array(32).fill(4));
  const wrongVolume = await make(3, KEY, 8n);
  wrongKey.net.connect(1, "127.0.0.1", a.port);
  assert.match((await a.until("log")).text, /wrong cluster key/);
  a.events.length = 0;
  wrongVolume.net.connect(1, "127.0.0.1", a.port);
  const twin = await make(1);
  a.net.connect(9, "127.0.0.1", twin.port);
  await twin.until("log");
  assert.match((await twin.until("log")).text, /own id/);
  assert.is(a.count("up") + wrongKey.count("up") + wrongVolume.count("up"), 0);
});

test("garbage, and frames before the handshake, close the connection and nothing else", async ({ make }) => {
  const a = await make(1);
  for (const bytes of [new Uint8Array(64).fill(0x41), new Uint8Array(40)]) {
    await new Promise<void>((resolve) => {
      const socket = connect(a.port, "127.0.0.1", () => socket.write(bytes));
      socket.on("error", () => undefined);
      socket.on("data", () => undefined);
      socket.on("close", () => resolve());
    });
  }
  const b = await make(2);
  a.net.connect(2, "127.0.0.1", b.port);
  await a.until("up");
  assert.ok(a.net.refusedCount >= 2);
});

test("a broken connection is reported and dialled again", async ({ make }) => {
  const a = await make(1);
  const b = await make(2);
  a.net.connect(2, "127.0.0.1", b.port);
  await Promise.all([a.until("up"), b.until("up")]);
  b.net.disconnect(1, "test");
  await a.until("lost");
  await a.until("up", 2);
  await b.until("up", 2);
});

test.run();
