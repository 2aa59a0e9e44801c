// SPDX-License-Identifier: GPL-2.0-only
//
// Discovery over a real UDP socket on loopback: what is not believed is dropped, counted, and told once per source and
// minute; what is right gets through afterwards.

import { createSocket, type Socket } from "node:dgram";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Discovered } from "../../src/cluster/ports.js";
import { Discovery } from "../../src/main/discovery.js";
import { Role } from "../../src/wire/abi.js";
import { type DiscoveryPacket, encodeDiscovery } from "../../src/wire/discovery.js";

const KEY = new Uint8Array(32).fill(3);
const VOLUME = 7n;
const PACKET: DiscoveryPacket = {
  type: "announce",
  volume: VOLUME,
  node: 2,
  incarnation: 5,
  role: Role.MEMBER,
  port: 7601,
  address: "127.0.0.1",
  epoch: 1n,
  counter: 1n,
  uuid: new Uint8Array(16),
};

interface Context {
  discovery: Discovery;
  sender: Socket;
  found: Discovered[];
  logs: string[];
  send: (bytes: Uint8Array) => Promise<void>;
  /** Sends a right packet and waits for it: everything sent before has been looked at then. */
  settle: (counter: bigint) => Promise<void>;
}

async function freePort(): Promise<number> {
  const probe = createSocket("udp4");
  await new Promise<void>((resolve) => probe.bind(0, "127.0.0.1", resolve));
  const { port } = probe.address();
  await new Promise<void>((resolve) => probe.close(() => resolve()));
  return port;
}

const test = suite<Context>("discovery on a socket");
test.before.each(async (context) => {
  context.found = [];
  context.logs = [];
  let wake: () => void = () => undefined;
  context.discovery = new Discovery({
    volume: VOLUME,
    self: 1,
    incarnation: 1,
    uuid: new Uint8Array(16),
    port: 7601,
    address: "127.0.0.1",
    iface: null,
    multicast: null,
    broadcast: null,
    peers: [],
    periodMs: 60_000,
    log: (level, text) => context.logs.push(`${level} ${text}`),
    found: (packet) => {
      context.found.push(packet);
      wake();
    },
  });
  const port = await freePort();
  await context.discovery.open(port);
  context.discovery.announce(KEY, 1n, Role.HOLDER);
  context.sender = createSocket("udp4");
  context.send = (bytes) =>
    new Promise((resolve, reject) =>
      context.sender.send(bytes, port, "127.0.0.1", (error) => (error ? reject(error) : resolve())),
    );
  context.settle = async (counter) => {
    const seen = new Promise<void>((resolve) => {
      wake = resolve;
    });
    await context.send(encodeDiscovery({ ...PACKET, counter }, KEY));
    await seen;
  };
});
test.after.each(async (context) => {
  context.sender.close();
  await context.discovery.close();
});

test("a wrong key, a replayed, an oversized and a malformed packet are dropped, counted, and told once", async (context) => {
  const { send, settle, discovery, found, logs } = context;
  await settle(10n);
  const right = encodeDiscovery({ ...PACKET, counter: 10n }, KEY);
  const wrong: Uint8Array[] = [
    encodeDiscovery({ ...PACKET, counter: 11n }, new Uint8Array(32).fill(4)),
    right,
    encodeDiscovery({ ...PACKET, counter: 9n }, KEY),
    encodeDiscovery({ ...PACKET, incarnation: 4, counter: 99n }, KEY),
    Buffer.concat([right, new Uint8Array(1)]),
    new Uint8Array(60_000).fill(0x41),
    right.subarray(0, 50),
    new Uint8Array(112),
  ];
  for (const bytes of wrong) await send(bytes);
  await settle(12n);
  assert.is(discovery.droppedCount, wrong.length);
  assert.is(found.length, 2);
  assert.is(logs.length, 1, logs.join("\n"));
});

test("another version is said", async ({ send, settle, discovery, logs }) => {
  const bytes = encodeDiscovery(PACKET, KEY);
  new DataView(bytes.buffer).setUint16(4, 9, true);
  await send(bytes);
  await settle(2n);
  assert.is(discovery.droppedCount, 1);
  assert.match(logs[0] ?? "", /warn discovery: .*version 9, expected 1/);
});

test("another volume's packets, and one's own, are passed over", async ({
  send,
  settle,
  discovery,
  found,
}) => {
  await send(encodeDiscovery({ ...PACKET, volume: 8n }, KEY));
  await send(encodeDiscovery({ ...PACKET, node: 1 }, KEY));
  await settle(3n);
  assert.is(found.length, 1);
  assert.is(discovery.droppedCount, 0);
});

test.run();
