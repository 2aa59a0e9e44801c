// SPDX-License-Identifier: GPL-2.0-only
/** Proves what becomes of lock value blocks: who brings, writes, loses and reclaims them. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { COMMAND, LockEngine, RESULT } from "../../src/dlm/engine.js";
import { OUTCOME, Outbox } from "../../src/dlm/outbox.js";
import {
  LockMode,
  MXFS_LKF_CONVERT,
  MXFS_LKF_LOST,
  MXFS_LKF_VALUE,
  MXFS_LOCK_ENTRY_SIZE,
  MXFS_RES_USER,
} from "../../src/wire/abi.js";
import { WireError } from "../../src/wire/error.js";
import {
  checkLockEntries,
  decodeValuedEntries,
  type EntryValue,
  encodeValuedEntries,
  type LockEntry,
} from "../../src/wire/lock_entry.js";
import { entryOf, type ModeName } from "../support/locks.js";
import { Random } from "../support/random.js";

const CONTROL = 1n << 60n;

function value(text: string, seq: bigint, valid = true): EntryValue {
  const bytes = new Uint8Array(32);
  bytes.set(new TextEncoder().encode(text));
  return { bytes, seq, valid };
}

function show(found: EntryValue | null): string {
  if (found === null) return "none";
  const text = new TextDecoder().decode(found.bytes).replaceAll("\0", "");
  return `${text || "zeros"}:${found.seq}${found.valid ? "" : " invalid"}`;
}

/** One master, control clients of nodes 1 to 4 on one USER resource. */
class Book {
  readonly engine = LockEngine.create(1, { resourceCountMax: 16, lockCountMax: 64 });
  readonly out = new Outbox();
  #epoch = 0n;

  constructor() {
    this.change();
    this.resume();
  }

  change(): void {
    this.engine.freezeAndClear(++this.#epoch, [1]);
  }
  resume(): void {
    this.engine.resume(this.#epoch, this.out);
  }

  #entry(id: number, fields: Partial<LockEntry>): LockEntry {
    const lockId = CONTROL | BigInt(id);
    return entryOf({ type: MXFS_RES_USER, lockId, epoch: this.#epoch, ino: 9n, ...fields });
  }
  send(
    command: (typeof COMMAND)[keyof typeof COMMAND],
    id: number,
    fields: Partial<LockEntry>,
    carried: EntryValue | null = null,
  ): string[] {
    const bytes = encodeValuedEntries([{ entry: this.#entry(id, fields), value: carried }]);
    this.engine.submitAll(command, bytes, 1, this.out);
    return this.said();
  }
  said(): string[] {
    const lines: string[] = [];
    this.out.drain(256, (_node, type, entries) => {
      if (type !== OUTCOME.GRANT) return;
      for (const { entry, value: found } of decodeValuedEntries(entries, 256)) {
        lines.push(`#${entry.lockId & 0xffffn} ${show(found)}`);
      }
    });
    return lines;
  }
  request(id: number, mode: ModeName): string[] {
    return this.send(COMMAND.REQUEST, id, { mode: LockMode[mode] });
  }
  convert(id: number, from: ModeName, to: ModeName, carried: EntryValue | null = null): string[] {
    const fields = { mode: LockMode[to], granted: LockMode[from], flags: MXFS_LKF_CONVERT, seq: 2 };
    return this.send(COMMAND.CONVERT, id, fields, carried);
  }
  release(id: number, carried: EntryValue | null = null, flags = 0): string[] {
    return this.send(COMMAND.RELEASE, id, { flags }, carried);
  }
  reclaim(id: number, held: ModeName, carried: EntryValue | null): void {
    this.send(COMMAND.RECLAIM, id, { granted: LockMode[held], mode: LockMode[held] }, carried);
  }
}

test("a value is zeros at first, is written by who gives up EX or PW, and comes with every later grant", () => {
  const book = new Book();
  assert.equal(book.request(1, "NL"), ["#1 zeros:0"]);
  assert.equal(book.request(2, "EX"), ["#2 zeros:0"]);
  assert.equal(book.convert(2, "EX", "PR", value("first", 1n)), []);
  assert.equal(book.request(3, "PR"), ["#3 first:1"]);
  book.release(2);
  book.release(3);
  assert.equal(book.convert(1, "NL", "PW"), ["#1 first:1"]);
  assert.equal(book.release(1, value("second", 2n)), []);
  assert.is(book.engine.table.valuesUsed, 0, "with its last lock a resource forgets its value");
});

test("who waits gets the value that was written as the lock was given up", () => {
  const book = new Book();
  book.request(1, "EX");
  assert.equal(book.request(2, "PR"), []);
  assert.equal(book.request(3, "PR"), []);
  assert.equal(book.release(1, value("news", 1n)), ["#2 news:1", "#3 news:1"]);
});

test("a reader's value is not taken", () => {
  const book = new Book();
  book.request(1, "PR");
  book.request(2, "CW");
  book.release(1, value("forged", 7n));
  assert.equal(book.request(3, "NL"), ["#3 zeros:0"]);
});

test("a writer that is lost leaves the value invalid, until the next one writes it; a lost reader does not", () => {
  const book = new Book();
  book.request(9, "NL");
  book.request(1, "PR");
  book.release(1, null, MXFS_LKF_LOST);
  assert.equal(book.request(2, "EX"), ["#2 zeros:0"]);
  book.release(2, null, MXFS_LKF_LOST);
  assert.equal(book.request(3, "EX"), ["#3 zeros:0 invalid"]);
  book.release(3, value("healed", 1n));
  assert.equal(book.request(4, "PR"), ["#4 healed:1"]);
});

test("purging a writer's node leaves the value invalid", () => {
  const engine = LockEngine.create(1, { resourceCountMax: 16, lockCountMax: 64 });
  const out = new Outbox();
  engine.freezeAndClear(1n, [1, 2]);
  engine.resume(1n, out);
  let ino = 1n;
  while (engine.masterOf(entryOf({ ino, type: MXFS_RES_USER })) !== 1) ino++;
  const request = (node: number, mode: ModeName): void => {
    const lockId = CONTROL | BigInt(node);
    const entry = entryOf({ ino, type: MXFS_RES_USER, node, lockId, mode: LockMode[mode] });
    assert.is(engine.submitEntry(COMMAND.REQUEST, entry, node, out), RESULT.DECIDED);
  };
  const states = (): (boolean | undefined)[] => [...engine.dump()].map((lock) => lock.value?.valid);
  request(1, "NL");
  request(2, "EX");
  assert.equal(states(), [true, true]);
  assert.is(engine.purgeNode(2, out), 1);
  assert.equal(states(), [false]);
});

test("after a view change a lock that kept writers out vouches for the value", () => {
  const book = new Book();
  book.change();
  book.reclaim(1, "NL", value("older", 4n));
  book.reclaim(2, "PR", value("sound", 5n));
  book.reclaim(3, "CR", value("older", 3n));
  book.resume();
  assert.equal(book.request(4, "PR"), ["#4 sound:5"]);
});

test("after a view change that left only weak locks, the newest value anybody knows is invalid", () => {
  for (const order of [
    [1, 2],
    [2, 1],
  ]) {
    const book = new Book();
    book.change();
    for (const id of order) book.reclaim(id, id === 1 ? "NL" : "CR", value(`v${id}`, BigInt(id)));
    book.resume();
    assert.equal(book.request(4, "PR"), ["#4 v2:2 invalid"]);
  }
});

test("a request that came during the rebuild makes no invalid value by itself", () => {
  const book = new Book();
  book.change();
  book.request(1, "EX");
  book.resume();
  assert.equal(book.said(), ["#1 zeros:0"]);
});

test("the kernel's locks, and other types, carry no value", () => {
  const book = new Book();
  const types = (fields: Partial<LockEntry>): number => {
    book.send(COMMAND.REQUEST, 1, fields);
    return [...book.engine.dump()].filter((lock) => lock.value !== null).length;
  };
  assert.is(types({ lockId: 5n, mode: 5 }), 0);
  assert.is(types({ type: 4, mode: 5, ino: 10n }), 0);
});

test("an outbox never parts a value from its entry", () => {
  const book = new Book();
  const requests = Array.from({ length: 7 }, (_, index) => ({
    entry: entryOf({ type: MXFS_RES_USER, lockId: CONTROL | BigInt(index), ino: BigInt(index), mode: 3 }),
    value: null,
  }));
  for (const runMax of [1, 2, 3, 5, 256]) {
    book.change();
    book.resume();
    const epoch = book.engine.epoch;
    const bytes = encodeValuedEntries(
      requests.map(({ entry }) => ({ entry: { ...entry, epoch }, value: null })),
    );
    book.engine.submitAll(COMMAND.REQUEST, bytes, 1, book.out);
    let grants = 0;
    book.out.drain(runMax, (_node, _type, entries) => {
      assert.ok(entries.length / MXFS_LOCK_ENTRY_SIZE <= Math.max(2, runMax));
      grants += decodeValuedEntries(entries, 256).length;
    });
    assert.is(grants, 7);
  }
});

test("a value goes over the wire and back, and one that is not its entry's is refused", () => {
  const entry = entryOf({ lockId: CONTROL | 3n, seq: 4, node: 5, type: MXFS_RES_USER });
  const bytes = encodeValuedEntries([
    { entry, value: value("x", 77n, false) },
    { entry: { ...entry, seq: 5 }, value: null },
  ]);
  const [first, second] = decodeValuedEntries(bytes, 10);
  assert.is(show(first?.value ?? null), "x:77 invalid");
  assert.is(first?.entry.flags, MXFS_LKF_VALUE);
  assert.is(second?.value, null);
  const refused = (change: (copy: Uint8Array) => Uint8Array, values = true): void => {
    const copy = change(bytes.slice());
    assert.throws(
      () => checkLockEntries(copy, 10, values),
      (error: unknown) => error instanceof WireError,
    );
  };
  refused((copy) => copy, false);
  refused((copy) => copy.subarray(0, 64));
  refused((copy) => copy.subarray(64));
  for (const at of [96, 112, 116, 117, 118, 120, 124]) {
    refused((copy) => {
      copy[at] = (copy[at] ?? 0) ^ 0xff;
      return copy;
    });
  }
  const random = new Random(11);
  for (let round = 0; round < 3000; round++) {
    const copy = bytes.slice();
    copy[random.below(copy.length)] = random.below(256);
    try {
      decodeValuedEntries(copy, 10);
    } catch (error) {
      assert.instance(error, WireError);
    }
  }
});

test.run();
