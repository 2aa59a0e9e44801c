// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proves the way of a grant from the lock engine to its owner: over its record on disk; and what happens where that cannot
 * be written, has no room, or a view change comes between.
 */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { LockPersister, type PersistChoice } from "../../src/disk/lock_persister.js";
import {
  type LockRecord,
  type RecordWrite,
  type RecordWriteOutcome,
  readLockArea,
} from "../../src/disk/lock_records.js";
import { COMMAND, type Command, LockEngine } from "../../src/dlm/engine.js";
import { Outbox } from "../../src/dlm/outbox.js";
import {
  LockMode,
  MXFS_DISK_LOCK_CHUNK_RECORDS,
  MXFS_LKF_CONVERT,
  MXFS_LKF_VALUE,
  MXFS_LOCK_CLIENT_CONTROL,
  MXFS_LOCK_CLIENT_SHIFT,
  MXFS_LOCK_ENTRY_SIZE,
  MXFS_RES_USER,
} from "../../src/wire/abi.js";
import { decodeLockEntry, encodeLockEntry, type LockEntry } from "../../src/wire/lock_entry.js";
import { LockDispatch } from "../../src/workers/dispatch.js";
import { NodeWords, type ToRecords } from "../../src/workers/protocol.js";
import { CAPACITY, describeOutcome, entryOf } from "../support/locks.js";

const VOLUME = 77n;
const SIZE = 512;
const SELF = 1;
const { NL, PR, PW, EX } = LockMode;
const INCARNATIONS = new Map([
  [1, 5],
  [2, 6],
  [3, 7],
]);

/** One master over an engine, a persister and a disk that a test holds back or lets fail. */
class Desk {
  readonly engine = LockEngine.create(SELF, { ...CAPACITY, lockCountMax: 4096, resourceCountMax: 4096 });
  readonly area: Uint8Array;
  readonly persister: LockPersister;
  readonly said: string[] = [];
  readonly logged: string[] = [];
  readonly #out = new Outbox();
  outcomes: RecordWriteOutcome[] = [];
  conflicts = 0;
  held: (() => void)[] | null = null;
  /** What waits for the next turn, as it would in a thread's port. */
  late: (() => void)[] | null = null;

  constructor(
    readonly chunks: readonly number[] = [0, 1],
    persist: PersistChoice = "writing",
  ) {
    this.area = new Uint8Array(4 * MXFS_DISK_LOCK_CHUNK_RECORDS * SIZE);
    this.persister = new LockPersister(
      this.engine,
      { volume: VOLUME, recordSize: SIZE, writer: SELF, writerIncarnation: 5, persist },
      {
        write: (pieces) => this.write(pieces),
        tell: (_node, type, entries) => this.tell(type, entries),
        pause: async () => {
          for (let turn = 0; turn < 4; turn++) await new Promise((resolve) => setImmediate(resolve));
        },
        log: (_level, text) => this.logged.push(text),
        conflict: () => {
          this.conflicts++;
        },
      },
    );
  }

  static async open(chunks?: readonly number[], persist?: PersistChoice): Promise<Desk> {
    const desk = new Desk(chunks, persist);
    await desk.view(1n);
    return desk;
  }

  /** A view change; `reclaim` tells the locks in the middle of it. */
  async view(epoch: bigint, reclaim: () => void = () => undefined): Promise<void> {
    const frozen = this.persister.freeze();
    this.engine.freezeAndClear(epoch, [1, 2, 3]);
    reclaim();
    await frozen;
    assert.is((await this.persister.begin(epoch, this.chunks, INCARNATIONS)).kind, "ok");
    this.engine.resume(epoch, this.#out);
    this.drain();
    this.persister.resumed();
    await this.settled();
  }

  private write(pieces: readonly RecordWrite[]): Promise<RecordWriteOutcome> {
    return new Promise((resolve) => {
      const land = (): void => {
        const outcome = this.outcomes.shift() ?? { kind: "ok" };
        if (outcome.kind === "ok") for (const { index, bytes } of pieces) this.area.set(bytes, index * SIZE);
        setImmediate(() => resolve(outcome));
      };
      if (this.held === null) land();
      else this.held.push(land);
    });
  }

  /** The writes that a test held back land. */
  async land(): Promise<void> {
    for (const land of this.held ?? []) land();
    this.held = null;
    await this.settled();
  }

  async settled(): Promise<void> {
    for (let turn = 0; turn < 8; turn++) await new Promise((resolve) => setImmediate(resolve));
  }

  private tell(type: number, entries: Uint8Array): void {
    for (let at = 0; at < entries.length; at += MXFS_LOCK_ENTRY_SIZE) {
      this.said.push(describeOutcome(type, decodeLockEntry(entries, at)));
    }
  }

  send(command: Command, fields: Partial<LockEntry>): void {
    const entry = entryOf({ ino: this.ino(), epoch: this.engine.epoch, ...fields });
    this.engine.submitEntry(command, entry, entry.node, this.#out);
    if ((this.persister.modes & (1 << this.engine.gaveUp)) !== 0) {
      const bytes = new Uint8Array(MXFS_LOCK_ENTRY_SIZE);
      encodeLockEntry(entry, bytes, 0);
      if (this.late === null) this.persister.gave(bytes);
      else this.late.push(() => this.persister.gave(bytes));
    }
    this.drain();
  }

  private drain(): void {
    const grants: Uint8Array[] = [];
    this.#out.drain(256, (_node, type, entries) => {
      for (let at = 0; at < entries.length; at += MXFS_LOCK_ENTRY_SIZE) {
        const entry = entries.slice(at, at + MXFS_LOCK_ENTRY_SIZE);
        const mode = decodeLockEntry(entry, 0).mode;
        if (isGrant(type) && (this.persister.modes & (1 << mode)) !== 0) grants.push(entry);
        else this.tell(type, entry);
      }
    });
    for (const grant of grants) this.persister.grants(grant);
  }

  ino(index = 0): bigint {
    for (let ino = 100n, found = 0; ; ino++) {
      if (this.engine.masterOf(entryOf({ ino })) === SELF && found++ === index) return ino;
    }
  }

  request(node: number, id: number, mode: number, more: Partial<LockEntry> = {}): void {
    this.send(COMMAND.REQUEST, { node, lockId: BigInt(id), mode, ...more });
  }
  convert(node: number, id: number, from: number, to: number, seq: number): void {
    const flags = MXFS_LKF_CONVERT;
    this.send(COMMAND.CONVERT, { node, lockId: BigInt(id), granted: from, mode: to, seq, flags });
  }
  release(node: number, id: number, more: Partial<LockEntry> = {}): void {
    this.send(COMMAND.RELEASE, { node, lockId: BigInt(id), mode: NL, ...more });
  }

  /** What was said since the last call. */
  take(): string[] {
    return this.said.splice(0);
  }

  disk(epoch = this.engine.epoch): string[] {
    return this.records(epoch)
      .map((record) => `n${record.owner}.${record.ownerIncarnation} #${record.lockId} ${record.mode}`)
      .sort();
  }
  records(epoch = this.engine.epoch): readonly LockRecord[] {
    const report = readLockArea(this.area, SIZE, VOLUME, epoch, () => ({ node: SELF, incarnation: 5 }));
    assert.equal(report.problems, []);
    return report.locks;
  }
}

const isGrant = (type: number): boolean => describeOutcome(type, entryOf({})).startsWith("GRANT");

test("a writing mode is told when its record is on disk, a reading one at once; a release clears it after", async () => {
  const desk = await Desk.open();
  desk.held = [];
  desk.request(2, 20, EX);
  desk.request(3, 30, PR, { ino: desk.ino(1) });
  await desk.settled();
  assert.equal(desk.take(), ["GRANT n3 #30 PR"]);
  assert.equal(desk.disk(), []);
  await desk.land();
  assert.equal(desk.take(), ["GRANT n2 #20 EX"]);
  assert.equal(desk.disk(), ["n2.6 #20 5"]);
  desk.release(2, 20);
  await desk.settled();
  assert.equal(desk.disk(), []);
});

test("persist=all holds reading modes back as well", async () => {
  const desk = await Desk.open([0], "all");
  desk.held = [];
  desk.request(2, 20, PR);
  await desk.settled();
  assert.equal(desk.take(), []);
  await desk.land();
  assert.equal(desk.take(), ["GRANT n2 #20 PR"]);
  assert.equal(desk.disk(), ["n2.6 #20 3"]);
});

test("grants that come while a write is under way go out in one write after it, and are told together", async () => {
  const desk = await Desk.open();
  desk.held = [];
  desk.request(2, 1, EX, { ino: desk.ino(1) });
  await desk.settled();
  const before = desk.persister.status().writes;
  for (let n = 2; n <= 40; n++) desk.request(2, n, EX, { ino: desk.ino(n) });
  await desk.land();
  await desk.settled();
  assert.is(desk.persister.status().writes, before + 1);
  assert.is(desk.take().length, 40);
});

test("a conversion down rewrites the record, or clears it where the mode left only reads", async () => {
  const desk = await Desk.open();
  desk.request(2, 20, EX);
  await desk.settled();
  desk.convert(2, 20, EX, PW, 1);
  await desk.settled();
  assert.equal(desk.disk(), ["n2.6 #20 4"]);
  desk.convert(2, 20, PW, PR, 1);
  await desk.settled();
  assert.equal(desk.disk(), []);
});

test("a write that fails: the request is denied, its lock is gone, and who waited for it goes on", async () => {
  const desk = await Desk.open();
  desk.outcomes = [{ kind: "error", message: "medium error" }];
  desk.request(2, 20, EX);
  desk.request(3, 30, EX);
  await desk.settled();
  const said = desk.take().filter((line) => !line.startsWith("BAST"));
  assert.equal(said, ["DENY n2 #20 EX errno 5", "GRANT n3 #30 EX"]);
  assert.equal(desk.disk(), ["n3.7 #30 5"]);
  assert.match(desk.logged[0] ?? "", /refused with EIO/);
});

test("a write that fails: a conversion is denied, and what was held before stays, in memory and on disk", async () => {
  const desk = await Desk.open();
  desk.request(2, 20, PW);
  await desk.settled();
  desk.take();
  desk.outcomes = [{ kind: "error", message: "medium error" }];
  desk.convert(2, 20, PW, EX, 2);
  await desk.settled();
  assert.equal(desk.take(), ["DENY n2 #20 EX errno 5"]);
  assert.equal(desk.disk(), ["n2.6 #20 4"]);
  assert.equal(
    [...desk.engine.dump()].map((lock) => [lock.queue, lock.granted]),
    [["granted", PW]],
  );
  // And it can be tried again.
  desk.convert(2, 20, PW, EX, 3);
  await desk.settled();
  assert.equal(desk.take(), ["GRANT n2 #20 EX"]);
});

test("a write that the target refuses tells nobody anything, and is reported as a fence", async () => {
  const desk = await Desk.open();
  desk.outcomes = [{ kind: "conflict" }];
  desk.request(2, 20, EX);
  await desk.settled();
  assert.equal(desk.take(), []);
  assert.is(desk.conflicts, 1);
});

test("a hint of a release that comes late does not clear the record of what was granted since", async () => {
  const desk = await Desk.open();
  desk.request(2, 20, EX);
  await desk.settled();
  desk.late = [];
  desk.convert(2, 20, EX, PR, 1);
  desk.convert(2, 20, PR, EX, 2);
  await desk.settled();
  assert.equal(desk.disk(), ["n2.6 #20 5"]);
  for (const act of desk.late) act();
  await desk.settled();
  assert.equal(desk.disk(), ["n2.6 #20 5"]);
});

test("a view change: grants under way are never told, what is reclaimed is on disk before the view serves", async () => {
  const desk = await Desk.open();
  desk.request(2, 20, EX);
  await desk.settled();
  desk.take();
  desk.held = [];
  desk.request(3, 30, EX, { ino: desk.ino(1) });
  await desk.settled();
  const changed = desk.view(2n, () => {
    desk.send(COMMAND.RECLAIM, { node: 2, lockId: 20n, granted: EX, mode: EX });
    desk.send(COMMAND.RECLAIM, { node: 3, lockId: 31n, granted: PR, mode: PR, ino: desk.ino(2) });
  });
  await desk.settled();
  assert.equal(
    desk.disk(2n),
    [],
    "the view's records were written before the last write of the old view had ended",
  );
  await desk.land();
  await changed;
  assert.equal(desk.take(), []);
  assert.equal(desk.disk(2n), ["n2.6 #20 5"]);
});

test("a full area: kernels are asked for unused locks, and the next is granted when one comes back", async () => {
  const desk = await Desk.open([0]);
  const { capacity } = desk.persister.status();
  for (let n = 1; n <= capacity; n++) desk.request(2, n, EX, { ino: desk.ino(n) });
  await desk.settled();
  assert.is(desk.take().length, capacity);
  desk.request(3, 9000, EX);
  await new Promise((resolve) => setImmediate(resolve));
  const asked = desk.take();
  assert.is(asked[0], "BAST n2 #1 holds EX for PR");
  desk.send(COMMAND.CONVERT, { node: 2, lockId: 1n, granted: EX, mode: PR, ino: desk.ino(1) });
  await desk.settled();
  assert.ok(desk.take().includes("GRANT n3 #9000 EX"));
  assert.is(desk.records().length, capacity);
  assert.ok(desk.persister.status().recalls > 0);
});

test("a full area that nobody leaves refuses with ENOLCK, once said; what is held stays", async () => {
  const desk = await Desk.open([0]);
  const { capacity } = desk.persister.status();
  const control = BigInt(MXFS_LOCK_CLIENT_CONTROL) << BigInt(MXFS_LOCK_CLIENT_SHIFT);
  for (let n = 1; n <= capacity; n++) {
    desk.request(2, 0, EX, { lockId: control | BigInt(n), ino: desk.ino(n) });
  }
  await desk.settled();
  desk.take();
  desk.request(3, 9000, EX);
  await desk.settled();
  assert.equal(desk.take(), ["DENY n3 #9000 EX errno 37"]);
  assert.match(desk.logged.join(), /refused with ENOLCK: there is no lock record/);
  assert.is(desk.records().length, capacity);
  desk.release(2, 0, { lockId: control | 1n, ino: desk.ino(1) });
  desk.request(3, 9001, EX);
  await desk.settled();
  assert.ok(desk.take().includes("GRANT n3 #9001 EX"));
});

test("a node without a chunk refuses what must be recorded, and grants the rest", async () => {
  const desk = await Desk.open([]);
  desk.request(2, 20, EX);
  desk.request(3, 30, PR, { ino: desk.ino(1) });
  await desk.settled();
  assert.equal(desk.take().sort(), ["DENY n2 #20 EX errno 37", "GRANT n3 #30 PR"]);
});

test("locks that a view change brings in beyond the room stay, are counted, and are asked back", async () => {
  const desk = await Desk.open([0]);
  const { capacity } = desk.persister.status();
  await desk.view(2n, () => {
    for (let n = 1; n <= capacity + 5; n++) {
      desk.send(COMMAND.RECLAIM, { node: 2, lockId: BigInt(n), granted: EX, mode: EX, ino: desk.ino(n) });
    }
  });
  assert.is(desk.records().length, capacity);
  assert.is(desk.persister.status().unrecorded, 5);
  assert.is(desk.take().filter((line) => line.startsWith("BAST n2")).length, 5);
  const lost = desk.engine.counters.conflicts;
  assert.is(lost, 0);
});

test("the dispatch sends to the records worker what must be persisted, with its value, and what was given up", () => {
  const engine = LockEngine.create(SELF, CAPACITY);
  const words = new NodeWords(new SharedArrayBuffer(NodeWords.BYTES));
  const posted: ToRecords[] = [];
  const control: number[] = [];
  const dispatch = new LockDispatch({
    self: SELF,
    words,
    kernel: null,
    sendFrames: () => undefined,
    toRecords: (message) => posted.push(message),
    toControl: (_type, entries) => control.push(entries.length),
    log: () => undefined,
  });
  engine.freezeAndClear(1n, [SELF]);
  engine.resume(1n, dispatch.outbox);
  const lockId = (BigInt(MXFS_LOCK_CLIENT_CONTROL) << BigInt(MXFS_LOCK_CLIENT_SHIFT)) | 1n;
  const bytes = (fields: Partial<LockEntry>): Uint8Array => {
    const into = new Uint8Array(MXFS_LOCK_ENTRY_SIZE);
    encodeLockEntry(entryOf({ type: MXFS_RES_USER, lockId, ...fields }), into, 0);
    return into;
  };
  words.persistModes = 1 << EX;
  dispatch.submit(engine, COMMAND.REQUEST, bytes({ mode: EX }), SELF);
  dispatch.submit(engine, COMMAND.REQUEST, bytes({ mode: PR, ino: 200n, lockId: lockId + 1n }), SELF);
  dispatch.end();
  assert.equal(
    control,
    [2 * MXFS_LOCK_ENTRY_SIZE],
    "the reading lock was held back, or came without its value",
  );
  const [first] = posted;
  assert.ok(
    first?.kind === "locks" && first.grants?.length === 2 * MXFS_LOCK_ENTRY_SIZE && first.gave === null,
  );
  assert.ok(first.grants !== null && (decodeLockEntry(first.grants, 0).flags & MXFS_LKF_VALUE) !== 0);
  dispatch.submit(engine, COMMAND.RELEASE, bytes({ mode: NL }), SELF);
  dispatch.submit(engine, COMMAND.RELEASE, bytes({ mode: NL, ino: 200n, lockId: lockId + 1n }), SELF);
  dispatch.end();
  const second = posted[1];
  assert.ok(
    second?.kind === "locks" && second.grants === null && second.gave?.length === MXFS_LOCK_ENTRY_SIZE,
  );
  // A view of one: nothing is held back.
  words.persistModes = 0;
  dispatch.submit(engine, COMMAND.REQUEST, bytes({ mode: EX, ino: 300n, lockId: lockId + 2n }), SELF);
  dispatch.end();
  assert.is(posted.length, 2);
  assert.is(control.length, 2);
});

test.run();
