// SPDX-License-Identifier: GPL-2.0-only
import { connect, createServer, type Server } from "node:net";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { MXFS_HANDSHAKE_BODY_MAX, MXFS_WIRE_VERSION, WireType } from "../../src/wire/abi.js";
import { FrameParser, FrameWriter } from "../../src/wire/frame.js";
import { decodeError } from "../../src/wire/messages.js";
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

  constructor(
    self: number,
    key: Uint8Array | null,
    volume = 7n,
    encrypt = false,
    silenceMs = SILENCE_MS,
    kernel = false,
  ) {
    const note = (what: string, node: number, text: string): void => {
      this.events.push({ what, node, text });
      for (const waiter of this.#waiters.splice(0)) {
        waiter();
      }
    };
    this.net = new PeerNetwork(
      {
        self,
        incarnation: self * 10,
        volume,
        port: 0,
        iface: null,
        encrypt,
        silenceMs,
        fsops: kernel ? (node, incarnation, fd) => note("fsops", node, `${incarnation} ${fd > 2}`) : null,
      },
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
/** So long that nobody meets it who does not want to. */
const SILENCE_MS = 60_000;
const SHORT_SILENCE_MS = 400;
const test = suite<{
  sides: Side[];
  make: (
    self: number,
    key?: Uint8Array | null,
    volume?: bigint,
    encrypt?: boolean,
    silenceMs?: number,
    kernel?: boolean,
  ) => Promise<Side>;
}>("peer network");
test.before.each((context) => {
  context.sides = [];
  context.make = async (
    self,
    key = KEY,
    volume = 7n,
    encrypt = false,
    silenceMs = SILENCE_MS,
    kernel = false,
  ) => {
    const side = new Side(self, key, volume, encrypt, silenceMs, kernel);
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

test("more than the kernel takes at once arrives, whole and in order", async ({ make }) => {
  const a = await make(1);
  const b = await make(2);
  a.net.connect(2, "127.0.0.1", b.port);
  await Promise.all([a.until("up"), b.until("up")]);
  const count = 500;
  const body = (index: number): string => `${index}:${"x".repeat(index % 2 === 0 ? 60_000 : 3)}`;
  for (let index = 0; index < count; index++) {
    assert.ok(a.net.send(2, WireType.LEASE_ACK, 1n, new TextEncoder().encode(body(index))));
  }
  await Promise.resolve();
  assert.ok((a.net.peers()[0]?.queuedBytes ?? 0) > 0, "so much that it has to wait");
  assert.ok(a.net.send(2, WireType.LEASE_ACK, 1n, new TextEncoder().encode("last")));
  await b.until("frame", count + 1);
  const found = b.events.filter(({ what }) => what === "frame").map(({ text }) => text);
  const expected = [...Array.from({ length: count }, (_, index) => body(index)), "last"];
  assert.ok(found.every((text, index) => text === `${WireType.LEASE_ACK}:${expected[index]}`));
  assert.is(a.count("lost") + b.count("lost"), 0);
});

test("a second connection is made for the kernels, and given to both", async ({ make }) => {
  for (const [low, high] of [
    [11, 12],
    [14, 13],
  ] as const) {
    const a = await make(low, KEY, 7n, false, SILENCE_MS, true);
    const b = await make(high, KEY, 7n, false, SILENCE_MS, true);
    a.net.connect(high, "127.0.0.1", b.port);
    const [atA, atB] = await Promise.all([a.until("fsops"), b.until("fsops")]);
    assert.equal([atA.node, atA.text], [high, `${high * 10} true`]);
    assert.equal([atB.node, atB.text], [low, `${low * 10} true`]);
    // The other one is as it was.
    a.net.send(high, WireType.LEASE_ACK, 0n, new TextEncoder().encode("still"));
    assert.is((await b.until("frame")).text, `${WireType.LEASE_ACK}:still`);
    assert.is(a.net.peers().length + b.net.peers().length, 2);
    assert.is(a.count("lost") + b.count("lost") + a.count("log") + b.count("log"), 0);
    assert.is(a.count("up") + b.count("up"), 2);
  }
});

test("no connection is made for the kernels where one side encrypts, or has no kernel", async ({ make }) => {
  const sealed = await make(21, KEY, 7n, true, SILENCE_MS, true);
  const plain = await make(22, KEY, 7n, false, SILENCE_MS, true);
  plain.net.connect(21, "127.0.0.1", sealed.port);
  await Promise.all([sealed.until("up"), plain.until("up")]);
  const without = await make(23);
  const with_kernel = await make(24, KEY, 7n, false, SILENCE_MS, true);
  with_kernel.net.connect(23, "127.0.0.1", without.port);
  await Promise.all([without.until("up"), with_kernel.until("up")]);
  assert.match((await without.until("log")).text, /no connection for the kernels is wanted here/);
  assert.match((await with_kernel.until("log")).text, /no connection for fsops/);
  for (const side of [sealed, plain, without, with_kernel]) {
    assert.is(side.count("fsops") + side.count("lost"), 0);
    assert.is(side.net.peers().length, 1);
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

/** Between a and b: shows and may change what goes through. */
async function between(
  to: Side,
  change: (chunk: Buffer, toServer: boolean) => Buffer,
): Promise<{ server: Server; port: number; seen: () => Buffer }> {
  const seen: Buffer[] = [];
  const server = createServer((near) => {
    const far = connect(to.port, "127.0.0.1");
    for (const [from, into, toServer] of [
      [near, far, true],
      [far, near, false],
    ] as const) {
      from.on("data", (chunk: Buffer) => {
        seen.push(chunk);
        into.write(change(chunk, toServer));
      });
      from.on("error", () => undefined);
      from.on("close", () => into.destroy());
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  const port = typeof address === "object" && address !== null ? address.port : 0;
  return { server, port, seen: () => Buffer.concat(seen) };
}

const SECRET = "nobody between them reads this";

test("one side that asks for it is enough: what is said is sealed, and arrives in order", async ({
  make,
}) => {
  for (const [low, high] of [
    [true, false],
    [false, true],
    [true, true],
  ] as const) {
    const a = await make(1, KEY, 7n, low);
    const b = await make(2, KEY, 7n, high);
    const wire = await between(b, (chunk) => chunk);
    a.net.connect(2, "127.0.0.1", wire.port);
    await Promise.all([a.until("up"), b.until("up")]);
    assert.is(a.net.peers()[0]?.sealed, true);
    for (let i = 0; i < 50; i++)
      a.net.send(2, WireType.LEASE_ACK, 1n, new TextEncoder().encode(`${SECRET} ${i}`));
    // Longer together than one record.
    for (let i = 0; i < 5; i++) b.net.send(1, WireType.LEASE_ACK, 1n, new Uint8Array(65_536).fill(0x41 + i));
    assert.is((await b.until("frame", 50)).text, `${WireType.LEASE_ACK}:${SECRET} 49`);
    assert.is((await a.until("frame", 5)).text, `${WireType.LEASE_ACK}:${"E".repeat(65_536)}`);
    assert.not.ok(wire.seen().includes(SECRET));
    await Promise.all([a.net.close(), b.net.close()]);
    wire.server.close();
  }
});

test("without it frames are in the clear (so the test above can fail)", async ({ make }) => {
  const a = await make(1);
  const b = await make(2);
  const wire = await between(b, (chunk) => chunk);
  a.net.connect(2, "127.0.0.1", wire.port);
  await a.until("up");
  a.net.send(2, WireType.LEASE_ACK, 1n, new TextEncoder().encode(SECRET));
  await b.until("frame");
  assert.is(a.net.peers()[0]?.sealed, false);
  assert.ok(wire.seen().includes(SECRET));
  await a.net.close();
  wire.server.close();
});

test("nobody between two nodes can talk them out of sealing", async ({ make }) => {
  const a = await make(1, KEY, 7n, true);
  const b = await make(2, KEY, 7n, true);
  // The flags in both HELLOs, which come first.
  const done = new Set<boolean>();
  const wire = await between(b, (chunk, toServer) => {
    if (!done.has(toServer)) {
      done.add(toServer);
      chunk.writeUInt32LE(0, 44);
    }
    return chunk;
  });
  a.net.connect(2, "127.0.0.1", wire.port);
  assert.match((await b.until("log")).text, /wrong cluster key/);
  assert.is(a.count("up") + b.count("up"), 0);
  await a.net.close();
  wire.server.close();
});

test("a changed byte on a sealed connection ends it, and nothing of the record is taken", async ({
  make,
}) => {
  const a = await make(1, KEY, 7n, true);
  const b = await make(2, KEY, 7n, true);
  let damage = false;
  const wire = await between(b, (chunk, toServer) => {
    if (damage && toServer) {
      chunk[20] = (chunk[20] as number) ^ 1;
    }
    return chunk;
  });
  a.net.connect(2, "127.0.0.1", wire.port);
  await Promise.all([a.until("up"), b.until("up")]);
  damage = true;
  a.net.send(2, WireType.LEASE_ACK, 1n, new TextEncoder().encode("x"));
  assert.match((await b.until("lost")).text, /does not open/);
  assert.is(b.count("frame"), 0);
  assert.ok(b.net.refusedCount >= 1);
  damage = false;
  await a.until("up", 2);
  await a.net.close();
  wire.server.close();
});

test("two versions meet: each says which the other speaks, once a minute, and the connection ends", async ({
  make,
}) => {
  const a = await make(1);
  const said: string[] = [];
  for (let round = 0; round < 3; round++) {
    await new Promise<void>((resolve) => {
      // A node of the next version: header and ERROR are the same in all versions.
      const body = new Uint8Array(60);
      const hello = new FrameWriter(2, 1).encode(WireType.HELLO, 0n, body);
      new DataView(hello.buffer).setUint16(4, MXFS_WIRE_VERSION + 1, true);
      const socket = connect(a.port, "127.0.0.1", () => socket.write(hello));
      const parser = new FrameParser();
      socket.on("data", (chunk: Buffer) => {
        parser.push(chunk, (frame) => {
          if (frame.type === WireType.ERROR) said.push(decodeError(frame.body).message);
        });
      });
      socket.on("error", () => undefined);
      socket.on("close", () => resolve());
    });
  }
  const expected = `peer speaks wire version ${MXFS_WIRE_VERSION + 1}, this node ${MXFS_WIRE_VERSION}: install the same MXFS on both`;
  assert.equal(said, [expected, expected, expected]);
  const logs = a.events.filter((event) => event.what === "log");
  assert.equal(
    logs.map((event) => event.text),
    [`connection refused: ${expected}`],
  );
  assert.is(a.net.refusedCount, 3);
});

test("before AUTH a long body is refused when it is announced", async ({ make }) => {
  const a = await make(1);
  await new Promise<void>((resolve) => {
    const frame = new FrameWriter(2, 0).encode(
      WireType.HELLO,
      0n,
      new Uint8Array(MXFS_HANDSHAKE_BODY_MAX + 1),
    );
    const socket = connect(a.port, "127.0.0.1", () => socket.write(frame.subarray(0, 40)));
    socket.on("error", () => undefined);
    socket.on("data", () => undefined);
    socket.on("close", () => resolve());
  });
  assert.match((await a.until("log")).text, /at most 2048 bytes here, announced 2049/);
});

test("an AUTH that was recorded proves nothing on another connection", async ({ make }) => {
  const a = await make(1);
  const b = await make(2);
  const recorded: Buffer[] = [];
  const wire = await between(b, (chunk, toServer) => {
    if (toServer) recorded.push(Buffer.from(chunk));
    return chunk;
  });
  a.net.connect(2, "127.0.0.1", wire.port);
  await Promise.all([a.until("up"), b.until("up")]);
  await a.net.close();
  await b.until("lost");
  await new Promise<void>((resolve) => {
    const socket = connect(b.port, "127.0.0.1", () => socket.write(Buffer.concat(recorded)));
    socket.on("error", () => undefined);
    socket.on("data", () => undefined);
    socket.on("close", () => resolve());
  });
  assert.match((await b.until("log")).text, /wrong cluster key/);
  assert.is(b.count("up"), 1);
  wire.server.close();
});

test("a peer that says nothing is asked; one that does not answer is lost, though the connection stays open", async ({
  make,
}) => {
  const a = await make(1, KEY, 7n, false, SHORT_SILENCE_MS);
  const b = await make(2, KEY, 7n, false, SHORT_SILENCE_MS);
  let cut = false;
  let passed = 0;
  let enough = (): void => undefined;
  const answered = new Promise<void>((resolve) => {
    enough = resolve;
  });
  const wire = await between(b, (chunk) => {
    if (a.count("up") > 0 && b.count("up") > 0 && ++passed === 8) enough();
    return cut ? Buffer.alloc(0) : chunk;
  });
  a.net.connect(2, "127.0.0.1", wire.port);
  await Promise.all([a.until("up"), b.until("up")]);
  // Nobody has anything to say, and for longer than the silence takes to be deadly.
  await answered;
  assert.is(a.count("lost") + b.count("lost"), 0);
  cut = true;
  // What is written has not been answered: by itself TCP would wait for a quarter of an hour.
  a.net.send(2, WireType.LEASE_ACK, 0n, new TextEncoder().encode("hello?"));
  b.net.send(1, WireType.LEASE_ACK, 0n, new TextEncoder().encode("hello?"));
  const reasons = await Promise.all([a.until("lost"), b.until("lost")]);
  assert.ok(reasons.some((event) => /silent for/.test(event.text)));
  wire.server.close();
});

test.run();
