// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proves that it makes no difference which way a message goes. Two engines get the same random history, in batches of
 * any size and commands in any order, one with the short path (WebAssembly), one without. After each batch
 *   1. outcomes are the same, byte for byte, for the same nodes, in the same order;
 *   2. results and counters are the same;
 *   3. both tables hold the same locks in the same queues, and agree with themselves.
 * MXFS_TEST_SEED replays one history.
 */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { COMMAND, type Command, LockEngine, RESULT } from "../../src/dlm/engine.js";
import { CTL, isBucket, LOCK, RES } from "../../src/dlm/layout.js";
import { Outbox } from "../../src/dlm/outbox.js";
import { LockTableError } from "../../src/dlm/table.js";
import {
  MXFS_LKF_CANCEL,
  MXFS_LKF_CONVERT,
  MXFS_LKF_LOST,
  MXFS_LKF_NOQUEUE,
  MXFS_LOCK_ENTRY_SIZE,
  MXFS_MODE_COUNT,
  MXFS_RES_USER,
} from "../../src/wire/abi.js";
import {
  encodeValuedEntries,
  entrySize,
  type LockEntry,
  type ValuedEntry,
} from "../../src/wire/lock_entry.js";
import { entryOf } from "../support/locks.js";
import { Random } from "../support/random.js";

const CONTROL = 1n << 60n;

/** What a history is like. */
interface Shape {
  readonly nodes: readonly number[];
  readonly inos: number;
  readonly locksMax: number;
  readonly capacity: { resourceCountMax: number; lockCountMax: number };
  /** Percent of requests that are for control clients' USER locks. */
  readonly control: number;
  readonly modes: readonly number[];
}

const SHAPES: readonly Shape[] = [
  // One node, hardly any contention: nearly all goes the short way.
  {
    nodes: [1],
    inos: 500,
    locksMax: 300,
    capacity: { resourceCountMax: 4096, lockCountMax: 4096 },
    control: 0,
    modes: [3],
  },
  // A few resources that everybody wants, in every mode.
  {
    nodes: [1, 2, 3],
    inos: 4,
    locksMax: 40,
    capacity: { resourceCountMax: 64, lockCountMax: 256 },
    control: 10,
    modes: [0, 1, 2, 3, 4, 5],
  },
  // Readers, and now and then a writer.
  {
    nodes: [1, 2],
    inos: 30,
    locksMax: 200,
    capacity: { resourceCountMax: 1024, lockCountMax: 1024 },
    control: 5,
    modes: [1, 3, 3, 3, 5],
  },
  // No room.
  {
    nodes: [1],
    inos: 100,
    locksMax: 100,
    capacity: { resourceCountMax: 20, lockCountMax: 30 },
    control: 10,
    modes: [1, 3, 5],
  },
];

interface Known {
  readonly entry: LockEntry;
}

/** Makes messages: most of them make sense, some do not. */
class Traffic {
  readonly #known: Known[] = [];
  #nextId = 1n;
  #seq = 0;

  constructor(
    readonly random: Random,
    readonly shape: Shape,
  ) {}

  batch(epoch: bigint, from: number): { commands: Command[]; bytes: Uint8Array } {
    const { random } = this;
    const size = random.pick([1, 2, 3, 20, 128, 129, 300]);
    const commands: Command[] = [];
    const entries: ValuedEntry[] = [];
    for (let count = 0; count < size; count++) {
      const [command, entry] = this.#message(epoch, from);
      const mode = entry.granted;
      const gives = command === COMMAND.RELEASE || command === COMMAND.CONVERT;
      const carries = gives && (entry.flags & MXFS_LKF_CANCEL) === 0 && mode >= 4 && random.chance(50);
      const value = { bytes: random.bytes(32), seq: random.u64(), valid: true };
      entries.push({ entry, value: carries ? value : null });
      commands.push(command);
      // The commands lie beside the slots; the slot of a value has none.
      if (carries) commands.push(command);
    }
    return { commands, bytes: encodeValuedEntries(entries) };
  }

  #message(epoch: bigint, from: number): [Command, LockEntry] {
    const { random, shape } = this;
    const mine = this.#known.filter(({ entry }) => entry.node === from);
    this.#seq++;
    const noqueue = random.chance(40) ? MXFS_LKF_NOQUEUE : 0;
    const strange = {
      ...(random.chance(1) ? { epoch: epoch - 1n } : {}),
      ...(random.chance(1) ? { node: from + 1 } : {}),
    };
    const mode = random.pick(shape.modes);
    if (mine.length === 0 || (this.#known.length < shape.locksMax && random.chance(45))) {
      const control = random.chance(shape.control);
      const entry = entryOf({
        volume: random.chance(5) ? 0x1234_5678_9abc_def0n : 77n,
        ino: random.chance(95) ? BigInt(random.below(shape.inos)) : 0x1_0000_0000n + BigInt(random.below(3)),
        offset: random.chance(90) ? 0n : 4096n * BigInt(random.below(3)),
        ag: random.chance(95) ? 0 : 7,
        type: control ? MXFS_RES_USER : 4,
        lockId: (control ? CONTROL : 0n) | this.#nextId++,
        seq: this.#seq,
        node: from,
        flags: noqueue,
        mode,
        epoch,
      });
      this.#known.push({ entry });
      return [COMMAND.REQUEST, { ...entry, ...strange }];
    }
    const known = random.pick(mine);
    const entry = { ...known.entry, epoch, mode, seq: this.#seq, granted: random.below(MXFS_MODE_COUNT) };
    if (random.chance(2)) return [COMMAND.REQUEST, { ...entry, flags: noqueue, ...strange }];
    if (random.chance(1)) return [COMMAND.RECLAIM, { ...entry, flags: 0 }];
    if (random.chance(35))
      return [COMMAND.CONVERT, { ...entry, flags: MXFS_LKF_CONVERT | noqueue, ...strange }];
    if (random.chance(10))
      return [COMMAND.RELEASE, { ...entry, seq: known.entry.seq, flags: MXFS_LKF_CANCEL }];
    // Some are released twice.
    if (random.chance(95)) this.#known.splice(this.#known.indexOf(known), 1);
    return [COMMAND.RELEASE, { ...entry, flags: random.chance(3) ? MXFS_LKF_LOST : 0, ...strange }];
  }
}

interface Side {
  readonly engine: LockEngine;
  readonly out: Outbox;
  readonly tally: Uint32Array;
}

function side(shape: Shape, shortPath: boolean): Side {
  const engine = LockEngine.create(1, shape.capacity, {
    shortPathAfter: shortPath ? 0 : Number.POSITIVE_INFINITY,
  });
  return { engine, out: new Outbox(), tally: new Uint32Array(8) };
}

/** Everything that was said, in one text; empties the outbox. */
function said({ out }: Side): string[] {
  const lines = Array.from({ length: out.count }, (_, index) => {
    return `${out.node(index)} ${out.type(index)} ${Buffer.from(out.entry(index)).toString("hex")}`;
  });
  out.clear();
  return lines;
}

/** Every lock in the order of buckets, chains and queues, with what a record says of it. */
function contents({ engine }: Side): string[] {
  const { table } = engine;
  const lines: string[] = [];
  for (let stripe = 0; stripe < table.stripeCount; stripe++) {
    table.locked(stripe, () => {
      table.checkStripe(stripe);
      table.forEachResource(stripe, (resource, bucket) => {
        const key = table.words.slice(resource + RES.KEY, resource + RES.QUEUES).join(",");
        lines.push(`${bucket} ${key} x ${table.lockCount(resource)}`);
        table.forEachLock(resource, (lock, queue) => {
          const its = [LOCK.NODE, LOCK.ID_LOW, LOCK.ID_HIGH, LOCK.SEQ, LOCK.GRANTED_SEQ].map(
            (field) => table.words[lock + field],
          );
          const modes = [table.granted(lock), table.mode(lock), table.flags(lock), table.allowed(lock)];
          lines.push(`  ${queue}: ${its.join(",")} ${modes.join(",")}`);
        });
      });
    });
  }
  return lines;
}

function counted({ engine }: Side): Record<string, number> {
  return { ...engine.counters, short: 0, contended: 0, slept: 0 };
}

/** @returns how many messages went the short way, and how many there were. */
function run(seed: number): { short: number; all: number } {
  const random = new Random(seed);
  const shape = random.pick(SHAPES);
  const traffic = new Traffic(random, shape);
  const sides = [side(shape, true), side(shape, false)] as const;
  let epoch = 0n;
  let all = 0;
  const same = (what: string, of: (each: Side) => unknown): void => {
    assert.equal(of(sides[0]), of(sides[1]), `seed ${seed}: ${what}`);
  };
  const change = (resume: boolean): void => {
    if (sides[0].engine.state !== 2) {
      epoch++;
      for (const { engine } of sides) engine.freezeAndClear(epoch, shape.nodes);
    }
    if (resume) for (const { engine, out } of sides) engine.resume(epoch, out);
  };
  change(true);
  for (let step = 0; step < 40; step++) {
    const what = `step ${step}`;
    if (random.chance(6)) change(random.chance(70));
    else if (sides[0].engine.state === 2) change(true);
    if (random.chance(5)) {
      const node = random.pick(shape.nodes);
      for (const { engine, out } of sides) engine.purgeNode(node, out);
    }
    const from = random.pick(shape.nodes);
    const { commands, bytes } = traffic.batch(epoch, from);
    const alone = random.chance(20);
    for (const { engine, out, tally } of sides) {
      if (alone) {
        all += submitEach(engine, commands, bytes, from, out, tally);
      } else {
        all += engine.submitAll(Int32Array.from(commands), bytes, from, out, tally);
      }
    }
    same(`${what}: outcomes`, said);
    same(`${what}: results`, ({ tally }) => tally.join(","));
    same(`${what}: counters`, counted);
    same(`${what}: table`, contents);
    same(`${what}: in use`, ({ engine: { table } }) => [
      table.locksUsed,
      table.resourcesUsed,
      table.valuesUsed,
    ]);
  }
  assert.is(sides[1].engine.counters.short, 0);
  return { short: sides[0].engine.counters.short, all: all / 2 };
}

/** One by one, with the bytes where a word cannot lie. */
function submitEach(
  engine: LockEngine,
  commands: readonly Command[],
  bytes: Uint8Array,
  from: number,
  out: Outbox,
  tally: Uint32Array,
): number {
  const odd = new Uint8Array(bytes.length + 1);
  odd.set(bytes, 1);
  const shifted = odd.subarray(1);
  let count = 0;
  for (let at = 0; at < bytes.length; at += MXFS_LOCK_ENTRY_SIZE) {
    const command = commands[at / MXFS_LOCK_ENTRY_SIZE] as Command;
    const result = engine.submit(command, shifted, at, from, out);
    tally[result] = (tally[result] as number) + 1;
    at += entrySize(bytes, at) - MXFS_LOCK_ENTRY_SIZE;
    count++;
  }
  return count;
}

test("both paths come to the same outcomes and the same table on random histories", () => {
  const only = process.env.MXFS_TEST_SEED;
  if (only !== undefined) {
    run(Number(only));
    return;
  }
  let [short, all] = [0, 0];
  for (let seed = 1; seed <= 30; seed++) {
    const counts = run(seed);
    short += counts.short;
    all += counts.all;
  }
  assert.ok(all > 20_000, `only ${all} messages`);
  assert.ok(
    short > all / 10 && short < (all * 9) / 10,
    `${short} of ${all} went the short way: one is not tried`,
  );
});

function serving(): { engine: LockEngine; out: Outbox } {
  const engine = LockEngine.create(1, { resourceCountMax: 4096, lockCountMax: 4096 }, { shortPathAfter: 0 });
  const out = new Outbox();
  engine.freezeAndClear(1n, [1]);
  engine.resume(1n, out);
  return { engine, out };
}

test("what is simple does go the short way: request, conversion up and down, release", () => {
  const { engine, out } = serving();
  const entry = entryOf({ mode: 3 });
  // The first one fetches free records.
  engine.submitEntry(COMMAND.REQUEST, entryOf({ ino: 5n, mode: 3 }), 1, out);
  const before = engine.counters.short;
  for (const [command, fields] of [
    [COMMAND.REQUEST, {}],
    [COMMAND.CONVERT, { mode: 5, granted: 3, flags: MXFS_LKF_CONVERT }],
    [COMMAND.CONVERT, { mode: 1, granted: 5, flags: MXFS_LKF_CONVERT }],
    [COMMAND.RELEASE, {}],
  ] as const) {
    assert.is(engine.submitEntry(command, { ...entry, ...fields }, 1, out), RESULT.DECIDED);
  }
  assert.is(engine.counters.short - before, 4);
});

test("a batch over more stripes than are held at once counts every message and every record once", () => {
  const { engine, out } = serving();
  const { table } = engine;
  // Free records at hand for all that follows.
  const inos = Array.from({ length: 120 }, (_, index) => BigInt(index + 1));
  const batch = (of: (ino: bigint) => Partial<LockEntry>): Uint8Array =>
    encodeValuedEntries(
      inos.map((ino) => ({ entry: entryOf({ ino, lockId: ino, mode: 3, ...of(ino) }), value: null })),
    );
  const both = (): void => {
    engine.submitAll(
      COMMAND.REQUEST,
      batch(() => ({})),
      1,
      out,
    );
    assert.equal([table.locksUsed, table.resourcesUsed, out.count], [120, 120, 120]);
    engine.submitAll(
      COMMAND.RELEASE,
      batch(() => ({})),
      1,
      out,
    );
    assert.equal([table.locksUsed, table.resourcesUsed], [0, 0]);
    out.clear();
  };
  both();
  const before = engine.counters;
  both();
  const after = engine.counters;
  assert.is(after.short - before.short, 240, "all in one go each");
  for (const name of ["requests", "grants", "releases"] as const)
    assert.is(after[name] - before[name], 120, name);
});

test("the short path is taken once there is something to do", () => {
  const engine = LockEngine.create(1, { resourceCountMax: 4096, lockCountMax: 4096 });
  const out = new Outbox();
  engine.freezeAndClear(1n, [1]);
  engine.resume(1n, out);
  const short: number[] = [];
  for (let ino = 1n; ino <= 300n; ino++) {
    engine.submitEntry(COMMAND.REQUEST, entryOf({ ino, lockId: ino, mode: 3 }), 1, out);
    short.push(engine.counters.short);
  }
  assert.is(short[255], 0);
  assert.ok((short[299] ?? 0) > 40);
  assert.is(engine.table.locksUsed, 300);
});

test("a stripe that another thread holds is waited for, not worked on", () => {
  const { engine, out } = serving();
  const { table } = engine;
  const other = LockEngine.attach(engine.memory);
  for (let stripe = 0; stripe < table.stripeCount; stripe++) other.table.lockStripe(stripe);
  other.table.markThreadDead(other.table.thread);
  assert.throws(
    () => engine.submitEntry(COMMAND.REQUEST, entryOf({ mode: 3 }), 1, out),
    (error: unknown) => error instanceof LockTableError && error.code === "TABLE_STALLED",
  );
});

test("a corrupt table is an error, and breaks the table for everybody", () => {
  const { engine, out } = serving();
  const { table } = engine;
  const other = LockEngine.attach(engine.memory);
  engine.submitEntry(COMMAND.REQUEST, entryOf({ mode: 3 }), 1, out);
  const { bucketCount } = table.layout;
  // Every bucket leads out of the memory.
  for (let bucket = 0; bucket < bucketCount; bucket++) {
    if (isBucket(bucket)) table.words[table.bucketAt(bucket)] = 0x3fff_0000;
  }
  assert.throws(() => engine.submitEntry(COMMAND.REQUEST, entryOf({ mode: 3 }), 1, out), /out of bounds/);
  assert.is(Atomics.load(table.words, CTL.BROKEN), 1);
  assert.throws(
    () => other.submitEntry(COMMAND.REQUEST, entryOf({ ino: 3n, mode: 3 }), 1, out),
    (error: unknown) => error instanceof LockTableError,
  );
});

test.run();
