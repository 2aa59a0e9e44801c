// SPDX-License-Identifier: GPL-2.0-only
/** Proves that frames gathered into one batch are the frames that came, in order, and that bad ones add nothing. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { type Command, LockEngine } from "../../src/dlm/engine.js";
import { Outbox } from "../../src/dlm/outbox.js";
import { LockMode, MXFS_LOCK_ENTRY_SIZE, MXFS_RES_USER, WireType } from "../../src/wire/abi.js";
import { WireError } from "../../src/wire/error.js";
import { FrameParser, FrameWriter, type OnLocks } from "../../src/wire/frame.js";
import { encodeLockEntries, encodeValuedEntries, isValueAt } from "../../src/wire/lock_entry.js";
import { LockBatch } from "../../src/workers/lock_batch.js";
import { entryOf } from "../support/locks.js";
import { Random } from "../support/random.js";

const NODE = 3;
const MAX = 64;

interface Body {
  readonly type: Command;
  readonly bytes: Uint8Array;
}

function body(type: Command, first: number, count: number): Body {
  const entries = Array.from({ length: count }, (_, index) =>
    entryOf({ node: NODE, lockId: BigInt(first + index), ino: BigInt(first + index), mode: LockMode.EX }),
  );
  return { type, bytes: encodeLockEntries(entries) };
}

/** A control client gives up a lock and says what the value is. */
function valued(id: number): Body {
  const entry = entryOf({ node: NODE, type: MXFS_RES_USER, lockId: (1n << 60n) | BigInt(id) });
  const value = { bytes: new Uint8Array(32).fill(id), seq: BigInt(id), valid: true };
  return { type: WireType.LOCK_RELEASE, bytes: encodeValuedEntries([{ entry, value }]) };
}

function stream(bodies: readonly Body[]): Uint8Array {
  const writer = new FrameWriter(NODE, 1);
  return Buffer.concat(bodies.map(({ type, bytes }) => writer.encode(type, 1n, bytes)));
}

/**
 * Feeds a stream in pieces; decides whenever the batch is full. @param short plain lock messages are taken as words.
 * @returns what was in the batches, one after the other, and how many frames came as words.
 */
function gather(
  pieces: readonly Uint8Array[],
  short = false,
): { commands: Command[]; bytes: Buffer; words: number } {
  const batch = new LockBatch(MAX);
  const parser = new FrameParser();
  parser.expect({ sender: NODE, target: 1 });
  let asWords = 0;
  const commands: Command[] = [];
  const parts: Buffer[] = [];
  const decide = (): void => {
    commands.push(...(Array.from(batch.commands) as Command[]));
    assert.is(batch.commands.length, batch.slots);
    parts.push(Buffer.from(batch.bytes.slice()));
    if (batch.slots > 0) assert.is(batch.from, NODE);
    batch.clear();
  };
  const onLocks: OnLocks = (type, words, at, count) => {
    if (!batch.hasRoom(count, NODE)) decide();
    const taken = batch.addWords(type as Command, words, at, count, NODE);
    if (taken) asWords++;
    return taken;
  };
  for (const piece of pieces) {
    parser.push(
      piece,
      (frame) => {
        if (!batch.fits(frame, NODE)) decide();
        batch.add(frame.type as Command, frame, NODE);
      },
      short ? onLocks : undefined,
    );
  }
  decide();
  return { commands, bytes: Buffer.concat(parts), words: asWords };
}

test("whatever the pieces of the stream, the batches hold every entry once, in order, with its command", () => {
  const random = new Random(5);
  const bodies: Body[] = [];
  for (let count = 0, id = 1; count < 200; count++) {
    const type = random.pick([WireType.LOCK_REQUEST, WireType.LOCK_RELEASE, WireType.LOCK_CONVERT]);
    const made = random.chance(10) ? valued(id & 0xff) : body(type, id, random.pick([1, 1, 2, 7, MAX]));
    id += MAX;
    bodies.push(made);
  }
  const whole = stream(bodies);
  const valuedCount = bodies.filter(({ bytes }) => isValueAt(bytes, MXFS_LOCK_ENTRY_SIZE)).length;
  const expected = Buffer.concat(bodies.map(({ bytes }) => bytes));
  const commands = bodies.flatMap(({ type, bytes }) =>
    new Array<Command>(bytes.length / MXFS_LOCK_ENTRY_SIZE).fill(type),
  );
  for (const shift of [0, 1, 4]) {
    for (const size of [1 << 20, 4096, 1001, 64]) {
      const pieces: Uint8Array[] = [];
      for (let at = 0; at < whole.length; at += size) {
        const piece = whole.subarray(at, at + size);
        const room = new Uint8Array(piece.length + shift);
        room.set(piece, shift);
        pieces.push(room.subarray(shift));
      }
      for (const short of [false, true]) {
        const found = gather(pieces, short);
        assert.ok(found.bytes.equals(expected), `pieces of ${size} bytes, shifted by ${shift}, ${short}`);
        assert.equal(found.commands, commands);
        // Where frames lie whole and aligned in a piece, all but those with values come as words.
        if (short && shift !== 1 && size === 1 << 20) assert.is(found.words, bodies.length - valuedCount);
        if (!short || shift === 1) assert.is(found.words, short && size === 1001 ? found.words : 0);
      }
    }
  }
});

test("a frame with a fault is refused as a whole, and the batch stays as it was", () => {
  const wrong = (fields: object): Uint8Array =>
    encodeLockEntries([entryOf({ node: NODE }), entryOf({ node: NODE, ...fields })]);
  const brokenValue = valued(9).bytes.slice();
  brokenValue[MXFS_LOCK_ENTRY_SIZE + 32] = 77;
  const cases: [string, Uint8Array][] = [
    ["another's lock", wrong({ node: 4 })],
    ["a type that is none", wrong({ type: 99 })],
    ["a mode that is none", wrong({ mode: 6 })],
    ["an unknown flag", wrong({ flags: 0x4000 })],
    ["an errno that is none", wrong({ status: 5000 })],
    ["a value of another lock", brokenValue],
    ["half an entry", new Uint8Array(96)],
    ["nothing", new Uint8Array(0)],
    ["more than a batch", body(WireType.LOCK_REQUEST, 1, MAX + 1).bytes],
  ];
  for (const [what, bytes] of cases) {
    const batch = new LockBatch(MAX);
    const good = body(WireType.LOCK_REQUEST, 1, 1);
    // An empty batch takes even the largest frame: it is looked at there.
    const before = what === "more than a batch" ? [] : [good];
    const all = stream([...before, { type: WireType.LOCK_REQUEST, bytes }]);
    assert.throws(
      () => new FrameParser().push(all, (frame) => batch.add(frame.type as Command, frame, NODE)),
      (error: unknown) => error instanceof WireError,
      what,
    );
    assert.is(batch.slots, before.length, what);
    const words = new Int32Array(bytes.slice().buffer, 0, bytes.length >>> 2);
    const count = Math.floor(bytes.length / MXFS_LOCK_ENTRY_SIZE);
    if (count * MXFS_LOCK_ENTRY_SIZE !== bytes.length || count === 0) continue;
    assert.not(
      batch.hasRoom(count, NODE) && batch.addWords(WireType.LOCK_REQUEST, words, 0, count, NODE),
      what,
    );
    assert.is(batch.slots, before.length, what);
  }
});

test("a batch of mixed commands is decided as if one came after the other", () => {
  const engine = LockEngine.create(1, { resourceCountMax: 1024, lockCountMax: 1024 });
  const out = new Outbox();
  engine.freezeAndClear(1n, [1, NODE]);
  engine.resume(1n, out);
  const ours: number[] = [];
  for (let ino = 1; ours.length < 20; ino++) {
    if (engine.masterOf(entryOf({ ino: BigInt(ino) })) === 1) ours.push(ino);
  }
  const bodies = ours.flatMap((ino) => [
    body(WireType.LOCK_REQUEST, ino, 1),
    body(WireType.LOCK_RELEASE, ino, 1),
    body(WireType.LOCK_REQUEST, ino, 1),
  ]);
  const { commands, bytes } = gather([stream(bodies)]);
  assert.is(engine.submitAll(Int32Array.from(commands), bytes, NODE, out), 60);
  assert.is(out.count, 40);
  assert.is(engine.table.locksUsed, 20);
});

test("a frame of another node, or one too many, must wait until the batch is decided", () => {
  const batch = new LockBatch(MAX);
  const frames: boolean[] = [];
  new FrameParser().push(
    stream([
      body(WireType.LOCK_REQUEST, 1, 40),
      body(WireType.LOCK_REQUEST, 100, 24),
      body(WireType.LOCK_REQUEST, 9, 1),
    ]),
    (frame) => {
      frames.push(batch.fits(frame, NODE));
      if (batch.fits(frame, NODE)) batch.add(frame.type as Command, frame, NODE);
      assert.not(batch.fits(frame, NODE + 1));
      assert.is(batch.slots === MAX, frames.length > 1);
    },
  );
  assert.equal(frames, [true, true, false]);
});

test.run();
