// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proves that circles of waiting control clients are found and broken, over many nodes with delayed messages.
 * Invariants: 1. every wait is denied only when it stands in a real circle (checked against the whole graph, which
 * no node sees); 2. in the end no circle is left; 3. no more waits are denied than there are circles.
 */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { DeadlockDetector, describeCircle, type Wait } from "../../src/dlm/deadlock.js";
import { COMMAND, LockEngine } from "../../src/dlm/engine.js";
import { OUTCOME, Outbox } from "../../src/dlm/outbox.js";
import { LockMode, MXFS_LKF_CANCEL, MXFS_RES_USER } from "../../src/wire/abi.js";
import { WireError } from "../../src/wire/error.js";
import { decodeLockEntries, type LockEntry } from "../../src/wire/lock_entry.js";
import { decodeProbe, encodeProbe, PROBE, type Probe } from "../../src/wire/probe.js";
import { entryOf, type ModeName } from "../support/locks.js";
import { Random } from "../support/random.js";

const CONTROL = 1n << 60n;

interface Held {
  readonly entry: LockEntry;
  readonly client: number;
  waiting: boolean;
  denied: boolean;
  readonly sinceMs: number;
}

/** Some nodes, each with an engine and a detector; client n lives on node (n % nodes) + 1. */
class World {
  readonly engines = new Map<number, LockEngine>();
  readonly detectors = new Map<number, DeadlockDetector>();
  readonly locks = new Map<bigint, Held>();
  readonly stories: string[] = [];
  /** Messages under way: delivered in random order, for TCP orders only those of one connection. */
  readonly wire: { from: number; to: number; probe: Probe }[] = [];
  victims: bigint[] = [];
  readonly #out = new Outbox();
  #nextId = CONTROL;
  #now = 1000;

  constructor(
    readonly nodes: number,
    readonly random: Random,
  ) {
    const view = Array.from({ length: nodes }, (_, index) => index + 1);
    for (const self of view) {
      const engine = LockEngine.create(self, { resourceCountMax: 64, lockCountMax: 256 });
      engine.freezeAndClear(1n, view);
      engine.resume(1n, this.#out);
      this.engines.set(self, engine);
      this.detectors.set(
        self,
        new DeadlockDetector({
          self,
          masterOf: (wait) => engine.masterOf(wait),
          blockersOf: (wait, countMax) => engine.blockersOf(wait, countMax),
          clientOf: (lockId) => {
            const lock = this.locks.get(lockId);
            if (lock === undefined || lock.entry.node !== self) return null;
            const waits = [...this.locks.values()].filter(
              (other) => other.client === lock.client && other.waiting,
            );
            return { client: lock.client, waits: waits.map((other) => this.#wait(other)) };
          },
          send: (to, probe) => {
            // Through the codec, as on a wire.
            this.wire.push({ from: self, to, probe: decodeProbe(probe.type, encodeProbe(probe)) });
          },
          break: (lockId, seq, circle) => {
            const lock = this.locks.get(lockId);
            if (lock === undefined || !lock.waiting || lock.entry.seq !== seq) return;
            assert.ok(this.inCircle(lockId), `${lockId} was denied, but stands in no circle`);
            this.stories.push(describeCircle(circle));
            this.victims.push(lockId);
            this.#submit(COMMAND.RELEASE, { ...lock.entry, flags: MXFS_LKF_CANCEL });
          },
        }),
      );
    }
  }

  nodeOf(client: number): number {
    return (client % this.nodes) + 1;
  }

  #wait({ entry, sinceMs }: Held): Wait {
    const { lockId, seq, node, volume, ino, offset, ag, type } = entry;
    return { lockId, seq, node, volume, ino, offset, ag, type, sinceMs, name: `r${ino}` };
  }

  #submit(command: (typeof COMMAND)[keyof typeof COMMAND], entry: LockEntry): void {
    const from = entry.node;
    const master = this.engines.get(from)?.masterOf(entry) ?? 0;
    this.engines.get(master)?.submitEntry(command, entry, from, this.#out);
    this.#out.drain(256, (_node, type, entries) => {
      for (const said of decodeLockEntries(this.#plain(entries), 256)) {
        const lock = this.locks.get(said.lockId);
        if (lock === undefined) continue;
        if (type === OUTCOME.GRANT) lock.waiting = false;
        if (type === OUTCOME.DENY) {
          lock.waiting = false;
          lock.denied = true;
          this.locks.delete(said.lockId);
        }
      }
    });
  }

  /** Entries without their values. */
  #plain(entries: Uint8Array): Uint8Array {
    const kept: number[] = [];
    for (let at = 0; at < entries.length; at += 64) {
      const flags = entries[at + 54] ?? 0;
      if ((flags & 128) !== 0) continue;
      const copy = entries.slice(at, at + 64);
      copy[54] = flags & ~32;
      kept.push(...copy);
    }
    return Uint8Array.from(kept);
  }

  request(client: number, ino: number, mode: ModeName): bigint {
    const lockId = this.#nextId++;
    const entry = entryOf({
      lockId,
      ino: BigInt(ino),
      type: MXFS_RES_USER,
      node: this.nodeOf(client),
      mode: LockMode[mode],
    });
    this.#now++;
    this.locks.set(lockId, { entry, client, waiting: true, denied: false, sinceMs: this.#now });
    this.#submit(COMMAND.REQUEST, entry);
    return lockId;
  }

  waits(client: number): boolean {
    return [...this.locks.values()].some((lock) => lock.client === client && lock.waiting);
  }

  /** The whole graph: client to client. */
  edges(): Map<number, Set<number>> {
    const graph = new Map<number, Set<number>>();
    for (const lock of this.locks.values()) {
      if (!lock.waiting) continue;
      const master = this.engines.get(this.engines.get(1)?.masterOf(lock.entry) ?? 0);
      const to = graph.get(lock.client) ?? new Set<number>();
      graph.set(lock.client, to);
      for (const { lockId } of master?.blockersOf(lock.entry, 1000) ?? []) {
        const other = this.locks.get(lockId);
        if (other !== undefined) to.add(other.client);
      }
    }
    return graph;
  }

  #reaches(graph: Map<number, Set<number>>, from: number, goal: number): boolean {
    const seen = new Set<number>();
    const todo = [...(graph.get(from) ?? [])];
    for (let client = todo.pop(); client !== undefined; client = todo.pop()) {
      if (client === goal) return true;
      if (seen.has(client)) continue;
      seen.add(client);
      todo.push(...(graph.get(client) ?? []));
    }
    return false;
  }

  inCircle(lockId: bigint): boolean {
    const lock = this.locks.get(lockId);
    return lock?.waiting === true && this.#reaches(this.edges(), lock.client, lock.client);
  }

  circleLeft(): boolean {
    const graph = this.edges();
    return [...graph.keys()].some((client) => this.#reaches(graph, client, client));
  }

  /** Every waiting client looks around once; messages arrive in any order. */
  look(): void {
    for (const lock of [...this.locks.values()]) {
      if (lock.waiting) this.detectors.get(lock.entry.node)?.start(this.#wait(lock));
    }
    let steps = 0;
    while (this.wire.length > 0) {
      assert.ok(++steps < 200_000, "the probes never end");
      const [message] = this.wire.splice(this.random.below(this.wire.length), 1);
      if (message !== undefined) this.detectors.get(message.to)?.receive(message.from, message.probe);
    }
  }
}

test("two clients on two nodes that wait for each other: the younger one is denied, and told why", () => {
  const world = new World(2, new Random(1));
  const [a, b] = [0, 1];
  world.request(a, 10, "EX");
  world.request(b, 11, "EX");
  world.request(a, 11, "EX");
  const young = world.request(b, 10, "EX");
  assert.ok(world.circleLeft());
  world.look();
  assert.equal(world.victims, [young]);
  assert.not.ok(world.circleLeft());
  assert.match(world.stories[0] ?? "", /node 1 waits for r11/);
  assert.match(world.stories[0] ?? "", /node 2 waits for r10/);
});

test("a circle of many clients over many nodes is broken by one denial", () => {
  for (const count of [3, 7, 31]) {
    const world = new World(5, new Random(count));
    for (let client = 0; client < count; client++) world.request(client, client, "EX");
    for (let client = 0; client < count; client++) world.request(client, (client + 1) % count, "PR");
    world.look();
    assert.is(world.victims.length, 1, `${count} clients`);
    assert.not.ok(world.circleLeft());
  }
});

test("who only waits long is left alone", () => {
  const world = new World(3, new Random(3));
  for (let client = 0; client < 6; client++) world.request(client, 5, "EX");
  for (let client = 1; client < 6; client++) world.request(client, 6, "PR");
  for (let round = 0; round < 3; round++) world.look();
  assert.equal(world.victims, []);
});

test("a client that waits for its own other lock is denied", () => {
  const world = new World(2, new Random(4));
  world.request(0, 1, "PR");
  const own = world.request(0, 1, "EX");
  world.look();
  assert.equal(world.victims, [own]);
});

test("who waits behind a waiting writer is part of the circle", () => {
  const world = new World(3, new Random(9));
  world.request(0, 1, "PR");
  world.request(1, 2, "EX");
  world.request(1, 1, "EX");
  // Compatible with what is held, but behind the writer.
  world.request(2, 1, "PR");
  world.request(0, 2, "PR");
  world.look();
  assert.is(world.victims.length, 1);
  assert.not.ok(world.circleLeft());
});

test("a circle longer than the limit is dropped and counted, not followed for ever", () => {
  const world = new World(4, new Random(5));
  for (let client = 0; client < 40; client++) world.request(client, client, "EX");
  for (let client = 0; client < 40; client++) world.request(client, (client + 1) % 40, "EX");
  world.look();
  assert.equal(world.victims, []);
  assert.ok([...world.detectors.values()].some((detector) => detector.dropped > 0));
});

test("in random traffic every circle is broken, and nobody is denied outside of one", () => {
  let [victims, rounds] = [0, 0];
  for (let seed = 1; seed <= 150; seed++) {
    const random = new Random(seed);
    const world = new World(1 + random.below(4), random);
    const clients = 2 + random.below(8);
    for (let step = 0; step < 60; step++) {
      const client = random.below(clients);
      if (!world.waits(client)) world.request(client, random.below(6), random.pick(["PR", "EX", "CW", "PW"]));
      if (random.below(10) === 0) world.look();
    }
    for (let last = 0; last < 20 && world.circleLeft(); last++) {
      world.look();
      rounds++;
    }
    assert.not.ok(world.circleLeft(), `seed ${seed}`);
    victims += world.victims.length;
  }
  assert.ok(victims > 100, `${victims} circles broken`);
  assert.ok(rounds > 10, `${rounds} rounds`);
});

test("a probe that is not what it should be is refused", () => {
  const wait = { ...entryOf({ ino: 5n }), sinceMs: 3, via: 0n, name: "x" };
  const good: Probe = { type: PROBE.CHASE, round: 4, path: [wait], blockers: [7n] };
  const back = decodeProbe(PROBE.CHASE, encodeProbe(good));
  assert.is(back.path[0]?.ino, 5n);
  assert.equal(back.blockers, [7n]);
  const text = new TextDecoder().decode(encodeProbe(good));
  const refused = (from: string | RegExp, to: string, type: Probe["type"] = PROBE.CHASE): void => {
    const bad = text.replace(from, to);
    assert.throws(
      () => decodeProbe(type, new TextEncoder().encode(bad)),
      (error: unknown) => error instanceof WireError,
      bad,
    );
  };
  refused('"round":4', '"round":-1');
  refused('"round":4', '"round":"4"');
  refused(/"path":\[.*\],"b/, '"path":[],"b');
  refused('["7"]', "[]");
  refused('["7"]', '["x"]');
  refused('["7"]', '["7"]', PROBE.ASK);
  refused('"name":"x"', `"name":"${"x".repeat(99)}"`);
  refused('"ino":"5"', '"ino":"99999999999999999999999"');
  refused(/^\{/, "[");
  const random = new Random(6);
  const bytes = encodeProbe(good);
  for (let round = 0; round < 2000; round++) {
    const copy = bytes.slice();
    copy[random.below(copy.length)] = random.below(256);
    try {
      decodeProbe(PROBE.CHASE, copy);
    } catch (error) {
      assert.instance(error, WireError);
    }
  }
});

test.run();
