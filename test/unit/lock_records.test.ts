// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proves lock records on disk: the codec against bad and random bytes, the dealing of chunks, and the writer's promise:
 * whenever the machine stops, whatever of the writes under way has landed, torn or whole, in any order, a reader finds
 * every lock that was said to be persisted, and none that was never granted.
 */
import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  dealChunks,
  decodeLockRecord,
  encodeLockRecord,
  type LockRecord,
  type LockRecordIo,
  LockRecordWriter,
  type PersistedLock,
  type RecordWrite,
  type RecordWriteOutcome,
  readLockArea,
} from "../../src/disk/lock_records.js";
import { DiskFormatError, sealRecord } from "../../src/disk/record.js";
import { MXFS_DISK_LOCK_CHUNK_RECORDS } from "../../src/wire/abi.js";
import { Random } from "../sim/world.js";
import { codeOfError } from "../support/code_of.js";

const VOLUME = 77n;
const SIZE = 512;
const WRITER = { node: 0xaabbccdd, incarnation: 3 };

function record(change: Partial<LockRecord> = {}): LockRecord {
  return {
    volume: VOLUME,
    epoch: 9n,
    sequence: 5n,
    resource: { volume: VOLUME, ino: 0x1_0000_0001n, offset: 4096n, ag: 0, type: 1 },
    lockId: (1n << 60n) | 12n,
    owner: 0xfffffffe,
    ownerIncarnation: 4,
    mode: 5,
    writer: WRITER.node,
    writerIncarnation: WRITER.incarnation,
    ...change,
  };
}

function lockOf(n: number, mode: number, owner = 1): PersistedLock {
  return {
    resource: { volume: VOLUME, ino: BigInt(n), offset: 0n, ag: 0, type: 1 },
    lockId: BigInt(n),
    owner,
    ownerIncarnation: 1,
    mode,
  };
}

/** A disk of whole sectors whose writes land when the test says so. */
class Disk implements LockRecordIo {
  readonly area: Uint8Array;
  readonly underWay: { pieces: readonly RecordWrite[]; settle: (outcome: RecordWriteOutcome) => void }[] = [];
  auto = true;
  failures = 0;
  recalls = 0;
  recall: () => void = () => undefined;
  more: number[] = [];
  constructor(chunks: number) {
    this.area = new Uint8Array(chunks * MXFS_DISK_LOCK_CHUNK_RECORDS * SIZE);
  }
  write(pieces: readonly RecordWrite[]): Promise<RecordWriteOutcome> {
    return new Promise((settle) => {
      this.underWay.push({ pieces, settle });
      if (this.auto) setImmediate(() => this.land());
    });
  }
  /** The oldest write lands whole. */
  land(): void {
    const write = this.underWay.shift();
    if (write === undefined) return;
    if (this.failures > 0) {
      this.failures--;
      write.settle({ kind: "error", message: "medium error" });
      return;
    }
    for (const { index, bytes } of write.pieces) this.area.set(bytes, index * SIZE);
    write.settle({ kind: "ok" });
  }
  recallUnused(): Promise<void> {
    this.recalls++;
    this.recall();
    return Promise.resolve();
  }
  moreChunks(): Promise<readonly number[]> {
    return Promise.resolve(this.more.splice(0));
  }
  /** What a reader would find if the machine stopped now: each sector under way is old, new or torn. */
  crash(random: Random): Uint8Array {
    const area = this.area.slice();
    for (const { pieces } of this.underWay) {
      for (const { index, bytes } of pieces) {
        for (let at = 0; at < bytes.length; at += SIZE) {
          const dice = random.int(0, 2);
          if (dice === 0) continue;
          const length = dice === 1 ? SIZE : random.int(1, SIZE - 1);
          area.set(bytes.subarray(at, at + length), index * SIZE + at);
        }
      }
    }
    return area;
  }
}

function writerOn(disk: Disk, chunks: readonly number[], epoch = 9n): LockRecordWriter {
  const writer = new LockRecordWriter(
    { volume: VOLUME, recordSize: SIZE, writer: WRITER.node, writerIncarnation: WRITER.incarnation },
    disk,
  );
  writer.begin(epoch, chunks);
  return writer;
}

const read = (area: Uint8Array, epoch = 9n) => readLockArea(area, SIZE, VOLUME, epoch, () => WRITER);
const names = (locks: readonly { lockId: bigint; mode: number }[]): string[] =>
  locks.map((lock) => `${lock.lockId}:${lock.mode}`).sort();

const codeOf = codeOfError(DiskFormatError, "none");

test("a lock record comes back as it went, in every record size", () => {
  for (const size of [512, 1024, 4096]) {
    const bytes = encodeLockRecord(record(), size);
    assert.is(bytes.length, size);
    assert.equal(decodeLockRecord(bytes, size, VOLUME), record());
  }
});

test("a torn, foreign, misplaced or senseless lock record is refused, each with its own code", () => {
  const good = encodeLockRecord(record(), SIZE);
  const changed = (at: number, value: number, seal: boolean): Uint8Array => {
    const bytes = good.slice();
    bytes[at] = value;
    return seal ? sealRecord(bytes) : bytes;
  };
  const code = (bytes: Uint8Array, volume = VOLUME): string =>
    codeOf(() => decodeLockRecord(bytes, SIZE, volume));
  assert.is(code(new Uint8Array(SIZE)), "EMPTY");
  assert.is(code(changed(45, 1, false)), "BAD_CRC");
  const torn = good.slice();
  torn.fill(0, 64);
  assert.is(code(torn), "BAD_CRC");
  assert.is(code(good, 78n), "FOREIGN");
  assert.is(code(changed(6, 2, true)), "BAD_TYPE");
  assert.is(code(changed(4, 9, true)), "BAD_VERSION");
  assert.is(code(changed(84, 6, true)), "BAD_FIELD");
  assert.is(
    codeOf(() => encodeLockRecord(record({ mode: 6 }), SIZE)),
    "BAD_FIELD",
  );
});

test("random damage never passes as another lock record", () => {
  const random = new Random(5);
  const good = encodeLockRecord(record(), SIZE);
  for (let i = 0; i < 2000; i++) {
    const bytes = good.slice();
    const at = random.int(0, SIZE - 1);
    bytes[at] = (bytes[at] as number) ^ (1 << random.int(0, 7));
    assert.is.not(
      codeOf(() => decodeLockRecord(bytes, SIZE, VOLUME)),
      "none",
      `byte ${at}`,
    );
  }
});

test("chunks are dealt out evenly, all of them, and who stays keeps what it has as far as that is fair", () => {
  const nobody = new Uint8Array(2048);
  const count = (owners: Uint8Array, slot: number): number => owners.filter((o) => o === slot + 1).length;
  const one = dealChunks(nobody, 256, [0]);
  assert.is(count(one, 0), 256);
  const two = dealChunks(one, 256, [0, 3]);
  assert.equal([count(two, 0), count(two, 3)], [128, 128]);
  const three = dealChunks(two, 256, [0, 3, 1]);
  assert.equal([count(three, 0), count(three, 1), count(three, 3)].sort(), [85, 85, 86]);
  let kept = 0;
  for (let i = 0; i < 256; i++) if (three[i] === two[i]) kept++;
  assert.ok(kept >= 170, `${kept} chunks stayed`);
  assert.equal(dealChunks(three, 256, [0, 3, 1]), three, "nothing moves when nobody comes or goes");
  assert.is(count(dealChunks(three, 256, [1]), 1), 256);
  assert.is(count(dealChunks(one, 256, []), 0), 0);
});

test("a grant is on disk when persist resolves, a release after it; what waits meanwhile goes in one write", async () => {
  const disk = new Disk(4);
  const writer = writerOn(disk, [0, 1, 2, 3]);
  const first = writer.persist(lockOf(1, 5));
  await new Promise((resolve) => setImmediate(resolve));
  const rest = Array.from({ length: 63 }, (_, i) => writer.persist(lockOf(i + 2, 3)));
  assert.is((await first).kind, "ok");
  assert.equal(names(read(disk.area).locks), ["1:5"]);
  for (const outcome of await Promise.all(rest)) assert.is(outcome.kind, "ok");
  assert.is(read(disk.area).locks.length, 64);
  assert.is(writer.writes, 2, "64 grants needed more than two writes");
  writer.release(lockOf(1, 5));
  await writer.idle();
  assert.is(read(disk.area).locks.length, 63);
});

test("a view change makes everything before it void, on disk and for who still waits", async () => {
  const disk = new Disk(2);
  const writer = writerOn(disk, [0, 1]);
  await writer.persist(lockOf(1, 5));
  disk.auto = false;
  const late = writer.persist(lockOf(2, 5));
  await new Promise((resolve) => setImmediate(resolve));
  const waiting = writer.persist(lockOf(3, 5));
  writer.begin(10n, [1]);
  const after = writer.persist(lockOf(4, 5));
  await new Promise((resolve) => setImmediate(resolve));
  assert.is(disk.underWay.length, 1, "a write of the new view went out beside one of the old");
  disk.auto = true;
  disk.land();
  assert.is((await late).kind, "void");
  assert.is((await waiting).kind, "void");
  assert.is((await after).kind, "ok");
  assert.equal(names(read(disk.area, 10n).locks), ["4:5"]);
});

test("a full area recalls unused locks first, takes more chunks then, and refuses only after both", async () => {
  const disk = new Disk(2);
  const writer = writerOn(disk, [0]);
  const capacity = writer.capacity;
  for (let i = 1; i <= capacity; i++) assert.is((await writer.persist(lockOf(i, 5))).kind, "ok");
  assert.is((await writer.persist(lockOf(9001, 5))).kind, "full");
  assert.is(disk.recalls, 1);
  assert.is(
    (await writer.persist(lockOf(1, 3))).kind,
    "ok",
    "a conversion of a lock that is there needs no room",
  );
  disk.recall = () => writer.release(lockOf(7, 5));
  assert.is((await writer.persist(lockOf(9002, 5))).kind, "ok");
  disk.recall = () => undefined;
  disk.more = [1];
  assert.is((await writer.persist(lockOf(9003, 5))).kind, "ok");
  await writer.idle();
  const found = read(disk.area).locks;
  assert.is(found.length, capacity + 1);
  assert.ok(found.some((lock) => lock.lockId === 9003n));
});

test("releases wait for a grant to go out with, and go by themselves when none comes", async () => {
  const disk = new Disk(2);
  let over: () => void = () => undefined;
  const io: LockRecordIo = {
    write: (pieces) => disk.write(pieces),
    recallUnused: () => disk.recallUnused(),
    moreChunks: () => disk.moreChunks(),
    pause: () =>
      new Promise((resolve) => {
        over = resolve;
      }),
  };
  const options = {
    volume: VOLUME,
    recordSize: SIZE,
    writer: WRITER.node,
    writerIncarnation: WRITER.incarnation,
  };
  const writer = new LockRecordWriter(options, io);
  writer.begin(9n, [0, 1]);
  await writer.persist(lockOf(1, 5));
  await writer.persist(lockOf(2, 5));
  const writes = writer.writes;
  writer.release(lockOf(1, 5));
  await new Promise((resolve) => setImmediate(resolve));
  assert.is(writer.writes, writes);
  await writer.persist(lockOf(3, 5));
  assert.is(writer.writes, writes + 1);
  assert.equal(names(read(disk.area).locks), ["2:5", "3:5"]);
  over();
  await new Promise((resolve) => setImmediate(resolve));
  writer.release(lockOf(2, 5));
  await new Promise((resolve) => setImmediate(resolve));
  assert.is(read(disk.area).locks.length, 2);
  over();
  await writer.idle();
  assert.equal(names(read(disk.area).locks), ["3:5"]);
});

test("a conversion whose write fails leaves the record that was there before to count", async () => {
  const disk = new Disk(2);
  const writer = writerOn(disk, [0, 1]);
  await writer.persist(lockOf(1, 4));
  disk.failures = 1;
  assert.is((await writer.persist(lockOf(1, 5))).kind, "error");
  await writer.idle();
  assert.equal(names(read(disk.area).locks), ["1:4"]);
  assert.is(writer.granted, 1);
});

test("a frozen writer writes nothing, tells nothing, and forgets", async () => {
  const disk = new Disk(2);
  const writer = writerOn(disk, [0, 1]);
  await writer.persist(lockOf(1, 5));
  const { writes } = writer;
  writer.freeze();
  assert.is((await writer.persist(lockOf(2, 5))).kind, "void");
  writer.release(lockOf(1, 5));
  await writer.idle();
  assert.is(writer.writes, writes);
  assert.is(writer.granted, 0);
});

test("records of a writer's earlier incarnation are outdated", () => {
  const disk = new Disk(1);
  disk.area.set(encodeLockRecord(record({ writerIncarnation: WRITER.incarnation - 1 }), SIZE), 0);
  const report = read(disk.area);
  assert.equal([report.locks.length, report.outdated, report.problems.length], [0, 1, 0]);
});

test("a write that fails refuses its grants and does not leave them to count", async () => {
  const disk = new Disk(2);
  const writer = writerOn(disk, [0, 1]);
  await writer.persist(lockOf(1, 5));
  disk.failures = 1;
  const outcome = await writer.persist(lockOf(2, 5));
  assert.equal(outcome, { kind: "error", message: "medium error" });
  await writer.idle();
  assert.equal(names(read(disk.area).locks), ["1:5"]);
  assert.is((await writer.persist(lockOf(3, 5))).kind, "ok");
});

test("records of another epoch are outdated, those of a wrong writer and torn ones are reported and ignored", async () => {
  const disk = new Disk(1);
  disk.area.set(encodeLockRecord(record({ epoch: 8n }), SIZE), 0);
  disk.area.set(encodeLockRecord(record({ lockId: 2n, writer: 1 }), SIZE), SIZE);
  disk.area.set(encodeLockRecord(record({ lockId: 3n }), SIZE).subarray(0, 60), 2 * SIZE);
  disk.area.set(encodeLockRecord(record({ lockId: 4n, volume: 1n }), SIZE), 3 * SIZE);
  disk.area.set(encodeLockRecord(record({ lockId: 5n }), SIZE), 4 * SIZE);
  const report = read(disk.area);
  assert.equal(names(report.locks), ["5:5"]);
  assert.is(report.outdated, 1);
  assert.is(report.problems.length, 3);
  assert.match(report.problems[0] ?? "", /lock record 1: written by node 1, whose chunk it is not/);
});

/** Random traffic; a crash is looked at after every write. */
async function traffic(
  seed: number,
  steps: number,
  large = false,
): Promise<{ crashes: number; writes: number }> {
  const random = new Random(seed);
  const disk = new Disk(large ? 40 : 2);
  disk.auto = false;
  // Not in a row, so that a piece that crosses from one chunk to the next would be seen.
  const every_second = Array.from({ length: 20 }, (_, i) => 39 - 2 * i);
  const writer = writerOn(disk, large ? every_second : random.chance(0.5) ? [1] : [1, 0]);
  /** Acknowledged: mode. */
  const sure = new Map<number, number>();
  /** Asked for at any time. */
  const asked = new Map<number, Set<number>>();
  /** Under way: neither on nor off for sure. */
  const open = new Set<number>();
  let crashes = 0;
  const check = (): void => {
    crashes++;
    const found = new Map(read(disk.crash(random)).locks.map((lock) => [Number(lock.lockId), lock.mode]));
    for (const [n, mode] of sure) {
      if (open.has(n)) continue;
      assert.is(found.get(n), mode, `seed ${seed}: lock ${n} was persisted and is not found`);
    }
    for (const [n, mode] of found) {
      assert.ok(asked.get(n)?.has(mode), `seed ${seed}: lock ${n} mode ${mode} was never granted`);
    }
  };
  for (let step = 0; step < steps; step++) {
    const n = random.int(1, random.chance(0.3) ? 20 : 300);
    if (random.chance(0.6)) {
      if (!open.has(n) && (sure.has(n) || writer.granted < writer.capacity)) {
        const mode = random.pick([2, 4, 5]) as number;
        open.add(n);
        const modes = asked.get(n) ?? new Set<number>();
        asked.set(n, modes.add(mode));
        void writer.persist(lockOf(n, mode)).then((outcome) => {
          open.delete(n);
          if (outcome.kind === "ok") sure.set(n, mode);
        });
      }
    } else if (sure.has(n) && !open.has(n)) {
      sure.delete(n);
      writer.release(lockOf(n, 5));
    }
    if (random.chance(0.3)) {
      if (random.chance(0.2)) check();
      disk.land();
      for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve));
      if (random.chance(0.2)) check();
    }
  }
  disk.auto = true;
  while (disk.underWay.length > 0) disk.land();
  await writer.idle();
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
  const end = new Map(read(disk.area).locks.map((lock) => [Number(lock.lockId), lock.mode]));
  assert.equal([...end].sort(), [...sure].sort(), `seed ${seed}: at the end disk and memory differ`);
  return { crashes, writes: writer.writes };
}

test("whenever the machine stops, every persisted lock is found, and none that was never granted", async () => {
  let crashes = 0;
  let writes = 0;
  for (let seed = 1; seed <= 10; seed++) {
    const done = await traffic(seed, 600);
    crashes += done.crashes;
    writes += done.writes;
  }
  assert.ok(crashes > 400 && writes > 500, `only ${crashes} crashes over ${writes} writes`);
  // A large area has longer segments.
  await traffic(11, 1200, true);
});

test.run();
