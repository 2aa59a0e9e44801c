// SPDX-License-Identifier: GPL-2.0-only
/** Proves the rules of granting, converting, asking back and changing views, one sentence each. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { COMMAND, LockEngine, RESULT } from "../../src/dlm/engine.js";
import { OUTCOME, Outbox } from "../../src/dlm/outbox.js";
import { hashResource, ResourceHasher, resourceBytes } from "../../src/dlm/resource.js";
import { LockTableError } from "../../src/dlm/table.js";
import { masterOf, sortedNodes } from "../../src/dlm/view.js";
import { LockMode, MXFS_LKF_NOQUEUE, MXFS_LKF_WAITING } from "../../src/wire/abi.js";
import { fnv1a32 } from "../../src/wire/fnv.js";
import { encodeLockEntries } from "../../src/wire/lock_entry.js";
import { Desk, entryOf } from "../support/locks.js";
import { Random } from "../support/random.js";

// ---- keys and masters ---------------------------------------------------------------------------------------

test("the quick hash of a key is FNV-1a-32 of its 32 bytes", () => {
  const random = new Random(5);
  const hasher = new ResourceHasher();
  for (let round = 0; round < 2000; round++) {
    const resource = {
      volume: random.pick([0n, 77n, random.u64()]),
      ino: random.pick([0n, 131n, random.u64(), 1n << 40n]),
      offset: random.pick([0n, 1n, random.u64()]),
      ag: random.pick([0, 3, random.u32()]),
      type: 1 + random.below(8),
    };
    const bytes = resourceBytes(resource);
    assert.is(hasher.hash(new Int32Array(bytes.buffer), 0), fnv1a32(bytes));
    assert.is(hashResource(resource), fnv1a32(bytes));
  }
});

test("the master is the hash's turn among the node ids sorted as unsigned numbers", () => {
  const nodes = sortedNodes([0x80000000, 5, 0xffffffff, 7]);
  assert.equal(nodes, [5, 7, 0x80000000, 0xffffffff]);
  for (let hash = 0; hash < 8; hash++) assert.is(masterOf(nodes, hash), nodes[hash % 4]);
  assert.is(masterOf(nodes, 0xffffffff), 0xffffffff);
  assert.throws(() => sortedNodes([1, 1]), /twice/);
  assert.throws(() => sortedNodes([]), RangeError);
  const desk = new Desk([0xffffffff, 5], 0xffffffff);
  for (let ino = 1n; ino < 50n; ino++) {
    const resource = entryOf({ ino });
    assert.is(desk.engine.masterOf(resource), masterOf([5, 0xffffffff], hashResource(resource)));
  }
});

// ---- requests -----------------------------------------------------------------------------------------------

test("compatible requests are granted at once, and a grant repeats id, seq and epoch", () => {
  const desk = new Desk();
  assert.is(desk.request(1, 10, "PR", { seq: 41 }), "DECIDED");
  assert.is(desk.request(2, 20, "PR"), "DECIDED");
  assert.is(desk.request(3, 30, "CR"), "DECIDED");
  assert.equal(desk.said(), ["GRANT n1 #10 PR", "GRANT n2 #20 PR", "GRANT n3 #30 CR"]);
  const grant = desk.entries[0]?.entry;
  assert.is(grant?.seq, 41);
  assert.is(grant?.epoch, 1n);
  assert.is(grant?.granted, LockMode.PR);
  assert.is(grant?.ino, desk.ino());
  assert.is(desk.entries[1]?.to, 2);
});

test("an incompatible request waits, every holder in the way is asked once, and a release lets it through", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 20, "PR");
  desk.request(3, 30, "CR");
  desk.said();
  assert.is(desk.request(4, 40, "PW"), "QUEUED");
  assert.equal(desk.said(), ["BAST n1 #10 holds PR for PW", "BAST n2 #20 holds PR for PW"]);
  desk.release(1, 10);
  assert.equal(desk.said(), []);
  desk.release(2, 20);
  assert.equal(desk.said(), ["GRANT n4 #40 PW"]);
  assert.equal(desk.table(), ["n3 #30 granted CR", "n4 #40 granted PW"]);
});

test("a stream of readers does not starve a writer", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 20, "EX");
  for (let reader = 0; reader < 20; reader++) assert.is(desk.request(3, 30 + reader, "PR"), "QUEUED");
  desk.said();
  desk.release(1, 10);
  assert.equal(desk.said(), ["GRANT n2 #20 EX", "BAST n2 #20 holds EX for PR"]);
  desk.release(2, 20);
  assert.is(desk.said().filter((line) => line.startsWith("GRANT n3")).length, 20);
});

test("NOQUEUE is denied with EAGAIN where others hold or wait, leaves nothing behind and asks nobody", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.said();
  assert.is(desk.try(2, 20, "EX"), "DECIDED");
  assert.equal(desk.said(), ["DENY n2 #20 EX errno 11"]);
  assert.is(desk.try(2, 21, "PR"), "DECIDED");
  assert.equal(desk.said(), ["GRANT n2 #21 PR"]);
  desk.request(3, 30, "EX");
  desk.said();
  desk.try(2, 22, "PR");
  assert.equal(desk.said(), ["DENY n2 #22 PR errno 11"]);
  assert.equal(desk.table(), ["n1 #10 granted PR", "n2 #21 granted PR", "n3 #30 wait EX"]);
});

test("NL is granted whoever waits", () => {
  const desk = new Desk();
  desk.request(1, 10, "EX");
  desk.request(2, 20, "EX");
  desk.said();
  desk.request(3, 30, "NL");
  assert.equal(desk.said(), ["GRANT n3 #30 NL"]);
});

test("a repeated request is not queued twice, and one for a lock that is held is refused", () => {
  const desk = new Desk();
  desk.request(1, 10, "EX");
  desk.request(2, 20, "PR");
  desk.said();
  assert.is(desk.request(2, 20, "PR"), "IGNORED");
  assert.equal(desk.said(), []);
  desk.request(1, 10, "EX", { seq: 9 });
  assert.equal(desk.said(), ["DENY n1 #10 EX errno 22"]);
  assert.equal(desk.table(), ["n1 #10 granted EX", "n2 #20 wait PR"]);
});

// ---- conversions --------------------------------------------------------------------------------------------

test("going down is a statement: no answer, and whoever can go on does", () => {
  const desk = new Desk();
  desk.request(1, 10, "EX");
  desk.request(2, 20, "PR");
  desk.said();
  assert.is(desk.convert(1, 10, "EX", "PR"), "DECIDED");
  assert.equal(desk.said(), ["GRANT n2 #20 PR"]);
  assert.equal(desk.table(), ["n1 #10 granted PR", "n2 #20 granted PR"]);
});

test("going up is granted when it fits, before those who wait", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 20, "EX");
  desk.said();
  assert.is(desk.convert(1, 10, "PR", "EX"), "DECIDED");
  assert.equal(desk.said(), ["GRANT n1 #10 EX", "BAST n1 #10 holds EX for EX"]);
});

test("a waiting conversion comes before earlier waiting requests", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 20, "PR");
  desk.request(3, 30, "EX");
  desk.said();
  assert.is(desk.convert(1, 10, "PR", "EX"), "QUEUED");
  assert.equal(desk.said(), []); // n2 has been asked for EX already
  desk.release(2, 20);
  assert.equal(desk.said(), ["GRANT n1 #10 EX", "BAST n1 #10 holds EX for EX"]);
  assert.equal(desk.table(), ["n1 #10 granted EX", "n3 #30 wait EX"]);
});

test("of two readers that both want to write, the later one is denied with EDEADLK and keeps reading", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 20, "PR");
  assert.is(desk.convert(1, 10, "PR", "EX"), "QUEUED");
  desk.said();
  assert.is(desk.convert(2, 20, "PR", "EX"), "DECIDED");
  assert.equal(desk.said(), ["DENY n2 #20 EX errno 35"]);
  assert.equal(desk.table(), ["n1 #10 convert PR->EX", "n2 #20 granted PR"]);
  desk.convert(2, 20, "PR", "NL", { seq: 3 });
  assert.equal(desk.said(), ["GRANT n1 #10 EX"]);
  assert.is(desk.engine.counters.deadlocks, 1);
});

test("a NOQUEUE conversion that does not fit is denied and the lock stays as it was", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 20, "PR");
  desk.said();
  desk.convert(1, 10, "PR", "EX", { flags: MXFS_LKF_NOQUEUE });
  assert.equal(desk.said(), ["DENY n1 #10 EX errno 11"]);
  desk.release(2, 20);
  desk.convert(1, 10, "PR", "EX", { flags: MXFS_LKF_NOQUEUE, seq: 3 });
  assert.equal(desk.said(), ["GRANT n1 #10 EX"]);
});

test("PR to CW is no statement, for neither is stronger", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 20, "PR");
  desk.said();
  assert.is(desk.convert(1, 10, "PR", "CW"), "QUEUED");
  assert.equal(desk.said(), ["BAST n2 #20 holds PR for CW"]);
});

test("a conversion from PR to CW lets in who only waited for PR to go", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 20, "CW");
  desk.said();
  desk.convert(1, 10, "PR", "CW");
  assert.equal(desk.said(), ["GRANT n1 #10 CW", "GRANT n2 #20 CW"]);
});

test("a lock that waits for more can give up what it has, and keeps its turn", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 20, "PR");
  desk.convert(1, 10, "PR", "EX");
  desk.said();
  assert.is(desk.convert(1, 10, "PR", "CR", { seq: 3 }), "DECIDED");
  assert.equal(desk.table(), ["n1 #10 convert CR->EX", "n2 #20 granted PR"]);
  desk.release(2, 20);
  assert.equal(desk.said(), ["GRANT n1 #10 EX"]);
  assert.is(desk.entries.at(-1)?.entry.seq, 2, "the answer repeats the request's number");
  desk.check();
});

test("wanting more of a lock that does not exist is denied, giving up something of it needs no answer", () => {
  const desk = new Desk();
  assert.is(desk.convert(2, 99, "PR", "EX"), "DECIDED");
  assert.equal(desk.said(), ["DENY n2 #99 EX errno 22"]);
  assert.is(desk.convert(2, 99, "EX", "PR"), "REJECTED");
  assert.is(desk.release(2, 99), "IGNORED");
  assert.equal(desk.said(), []);
});

// ---- BASTs --------------------------------------------------------------------------------------------------

test("a holder is asked once per wanted mode, again for one that rules out more, not for a weaker one", () => {
  const desk = new Desk();
  desk.request(1, 10, "EX");
  desk.said();
  desk.request(2, 20, "CR");
  assert.equal(desk.said(), ["BAST n1 #10 holds EX for CR"]);
  desk.request(3, 30, "CR");
  assert.equal(desk.said(), []);
  desk.request(3, 31, "PR");
  assert.equal(desk.said(), ["BAST n1 #10 holds EX for PR"]);
  desk.request(3, 32, "EX");
  assert.equal(desk.said(), ["BAST n1 #10 holds EX for EX"]);
  desk.request(2, 21, "PW");
  assert.equal(desk.said(), []);
});

test("CW after PR is asked for again, for PR's answer would still be in the way", () => {
  const desk = new Desk();
  desk.request(1, 10, "EX");
  desk.request(2, 20, "PR");
  desk.said();
  desk.request(3, 30, "CW");
  assert.equal(desk.said(), ["BAST n1 #10 holds EX for CW"]);
  desk.request(3, 31, "PR");
  assert.equal(desk.said(), []);
});

test("who answers and is still in the way is asked again", () => {
  const desk = new Desk();
  desk.request(1, 10, "EX");
  desk.request(2, 20, "PR");
  desk.request(3, 30, "EX");
  desk.said();
  desk.convert(1, 10, "EX", "PR");
  assert.equal(desk.said(), [
    "GRANT n2 #20 PR",
    "BAST n1 #10 holds PR for EX",
    "BAST n2 #20 holds PR for EX",
  ]);
});

test("a BAST names the grant it means by its seq, also when it was sent together with it", () => {
  const desk = new Desk();
  desk.request(1, 10, "EX", { seq: 5 });
  desk.request(2, 20, "EX", { seq: 8 });
  desk.request(3, 30, "EX", { seq: 9 });
  desk.release(1, 10);
  const basts = desk.entries.filter(({ type }) => type === OUTCOME.BAST);
  assert.equal(
    basts.map(({ entry }) => [entry.node, entry.seq]),
    [
      [1, 5],
      [2, 8],
    ],
  );
});

// ---- cancelling and crossing --------------------------------------------------------------------------------

test("a cancelled request is denied with ECANCELED and stands in nobody's way", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 20, "EX", { seq: 4 });
  desk.request(3, 30, "PR");
  desk.said();
  assert.is(desk.cancel(2, 20, 4), "DECIDED");
  assert.equal(desk.said(), ["DENY n2 #20 EX errno 125", "GRANT n3 #30 PR"]);
  assert.equal(desk.table(), ["n1 #10 granted PR", "n3 #30 granted PR"]);
});

test("a cancelled conversion keeps what it held", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 20, "PR");
  desk.convert(1, 10, "PR", "EX");
  desk.said();
  desk.cancel(1, 10, 2);
  assert.equal(desk.said(), ["DENY n1 #10 EX errno 125"]);
  assert.equal(desk.table(), ["n1 #10 granted PR", "n2 #20 granted PR"]);
});

test("a cancel that crosses the grant changes nothing: each request is answered once", () => {
  const desk = new Desk();
  desk.request(1, 10, "EX", { seq: 4 });
  desk.said();
  assert.is(desk.cancel(1, 10, 4), "IGNORED");
  assert.is(desk.cancel(1, 10, 3), "IGNORED");
  assert.is(desk.cancel(1, 11, 4), "IGNORED");
  assert.equal(desk.said(), []);
  assert.equal(desk.table(), ["n1 #10 granted EX"]);
});

test("a release takes the lock with whatever it waits for, unanswered", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 20, "PR");
  desk.convert(1, 10, "PR", "EX");
  desk.request(3, 30, "EX");
  desk.said();
  desk.release(3, 30);
  desk.release(1, 10);
  assert.equal(desk.said(), []);
  assert.equal(desk.table(), ["n2 #20 granted PR"]);
  desk.release(2, 20);
  assert.is(desk.engine.table.resourcesUsed, 0);
  assert.is(desk.engine.table.locksUsed, 0);
});

// ---- who may say what ---------------------------------------------------------------------------------------

test("a message of another epoch is dropped and counted", () => {
  const desk = new Desk();
  assert.is(desk.request(1, 10, "PR", { epoch: 0n }), "STALE");
  assert.is(desk.request(1, 10, "PR", { epoch: 2n }), "STALE");
  assert.is(desk.request(1, 10, "PR", { epoch: (1n << 32n) + 1n }), "STALE");
  assert.equal(desk.said(), []);
  assert.is(desk.engine.counters.stale, 3);
});

test("what another node masters is sent on as it is, but only for our own clients", () => {
  const desk = new Desk();
  const ino = desk.inoOf(3);
  assert.is(desk.request(1, 10, "PR", { ino, flags: MXFS_LKF_NOQUEUE }), "FORWARDED");
  assert.is(desk.convert(1, 10, "PR", "EX", { ino }), "FORWARDED");
  assert.is(desk.release(1, 10, { ino }), "FORWARDED");
  assert.equal(desk.said(), ["REQUEST n1 #10 PR", "CONVERT n1 #10 EX", "RELEASE n1 #10 NL"]);
  assert.equal(
    desk.entries.map(({ to }) => to),
    [3, 3, 3],
  );
  assert.is(desk.entries[0]?.entry.flags, MXFS_LKF_NOQUEUE);
  assert.is(desk.request(2, 10, "PR", { ino }), "REJECTED");
  assert.equal(desk.table(), []);
});

test("a node speaks for itself only, and only a node of the view", () => {
  const desk = new Desk();
  const entry = entryOf({ ino: desk.ino(), node: 2, mode: LockMode.PR });
  assert.is(desk.engine.submitEntry(COMMAND.REQUEST, entry, 3, desk.out), RESULT.REJECTED);
  assert.is(desk.request(9, 10, "PR"), "REJECTED");
  assert.is(desk.out.count, 0);
  assert.is(desk.engine.counters.rejected, 2);
});

test("locks of the same id on different nodes are different locks", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 10, "PR");
  desk.release(1, 10);
  assert.equal(desk.table(), ["n2 #10 granted PR"]);
});

// ---- full ---------------------------------------------------------------------------------------------------

test("a full table denies with ENOLCK, and room that was given back is used", () => {
  const desk = new Desk([1], 1, { resourceCountMax: 2, lockCountMax: 3 });
  desk.request(1, 1, "PR", { ino: 1n });
  desk.request(1, 2, "PR", { ino: 2n });
  desk.said();
  desk.request(1, 3, "PR", { ino: 3n });
  assert.equal(desk.said(), ["DENY n1 #3 PR errno 37"]);
  desk.request(1, 4, "PR", { ino: 2n });
  desk.request(1, 5, "PR", { ino: 2n });
  assert.equal(desk.said(), ["GRANT n1 #4 PR", "DENY n1 #5 PR errno 37"]);
  desk.release(1, 1, { ino: 1n });
  desk.request(1, 6, "PR", { ino: 9n });
  assert.equal(desk.said(), ["GRANT n1 #6 PR"]);
  assert.is(desk.engine.counters.full, 2);
  // A resource must not stay behind when its first lock found no room.
  desk.release(1, 6, { ino: 9n });
  desk.request(1, 7, "PR", { ino: 2n });
  desk.request(1, 8, "PR", { ino: 8n });
  assert.equal(desk.said(), ["GRANT n1 #7 PR", "DENY n1 #8 PR errno 37"]);
  assert.is(desk.engine.table.resourcesUsed, 1);
  desk.check();
});

// ---- views --------------------------------------------------------------------------------------------------

test("without a view nothing is decided", () => {
  const engine = LockEngine.create(1, { resourceCountMax: 4, lockCountMax: 4 });
  const out = new Outbox();
  assert.is(engine.submitEntry(COMMAND.REQUEST, entryOf({ mode: 3 }), 1, out), RESULT.FROZEN);
  assert.is(engine.masterOf(entryOf({})), null);
  assert.is(out.count, 0);
});

test("a view change forgets every lock, takes reclaims, and decides nothing before it is committed", () => {
  const desk = new Desk();
  desk.request(1, 10, "EX");
  desk.request(2, 20, "EX");
  desk.said();
  desk.engine.freezeAndClear(5n, [1, 2]);
  assert.equal(desk.table(), []);
  assert.is(desk.request(1, 11, "PR", { epoch: 1n }), "STALE");
  assert.is(desk.reclaim(1, 10, "EX"), "DECIDED");
  assert.is(desk.reclaim(2, 20, "NL", "EX", { seq: 7 }), "QUEUED");
  assert.is(desk.reclaim(2, 20, "NL", "EX", { seq: 7 }), "IGNORED");
  // A node that has heard COMMIT earlier than we may ask already.
  assert.is(desk.request(2, 21, "PR"), "QUEUED");
  assert.is(desk.try(2, 22, "PR"), "QUEUED");
  assert.equal(desk.said(), []);
  desk.engine.resume(5n, desk.out);
  desk.collect();
  assert.equal(desk.said(), ["BAST n1 #10 holds EX for EX", "DENY n2 #22 PR errno 11"]);
  desk.release(1, 10);
  assert.equal(desk.said(), ["GRANT n2 #20 EX", "BAST n2 #20 holds EX for PR"]);
  assert.is(desk.entries.at(-1)?.entry.epoch, 5n);
  desk.check();
});

test("what nobody is in the way of is granted at the commit", () => {
  const desk = new Desk();
  desk.engine.freezeAndClear(2n, [1, 2, 3]);
  desk.reclaim(2, 20, "PR", "EX");
  desk.reclaim(3, 30, "NL", "PR");
  desk.engine.resume(2n, desk.out);
  desk.collect();
  assert.equal(desk.said(), ["GRANT n2 #20 EX", "BAST n2 #20 holds EX for PR"]);
});

test("two conversions whose denial was lost with the old view are told apart at the commit", () => {
  const desk = new Desk();
  desk.engine.freezeAndClear(2n, [1, 2, 3]);
  desk.reclaim(2, 20, "PR", "EX");
  desk.reclaim(3, 30, "PR", "EX");
  desk.engine.resume(2n, desk.out);
  desk.collect();
  assert.equal(desk.said(), ["DENY n3 #30 EX errno 35", "BAST n3 #30 holds PR for EX"]);
});

test("two conversions that do not wait are refused as such at the commit, not as a deadlock", () => {
  const desk = new Desk();
  desk.engine.freezeAndClear(2n, [1, 2, 3]);
  const flags = MXFS_LKF_NOQUEUE | MXFS_LKF_WAITING;
  desk.reclaim(2, 20, "PR", "EX", { flags });
  desk.reclaim(3, 30, "PR", "EX", { flags });
  desk.engine.resume(2n, desk.out);
  desk.collect();
  assert.equal(desk.said(), ["DENY n2 #20 EX errno 11", "DENY n3 #30 EX errno 11"]);
  assert.equal(desk.table(), ["n2 #20 granted PR", "n3 #30 granted PR"]);
  assert.is(desk.engine.counters.deadlocks, 0);
});

test("reclaimed modes that conflict are an alarm, and not entered", () => {
  const desk = new Desk();
  desk.engine.freezeAndClear(2n, [1, 2]);
  assert.is(desk.reclaim(1, 10, "EX"), "DECIDED");
  assert.is(desk.reclaim(2, 20, "PR"), "CONFLICT");
  assert.is(desk.engine.counters.conflicts, 1);
  assert.equal(desk.table(), ["n1 #10 granted EX"]);
});

test("a reclaim outside a view change is refused, one for another master is sent on", () => {
  const desk = new Desk();
  assert.is(desk.reclaim(1, 10, "EX"), "REJECTED");
  desk.engine.freezeAndClear(2n, [1, 2]);
  assert.is(desk.reclaim(1, 10, "EX", undefined, { ino: desk.inoOf(2) }), "FORWARDED");
  assert.equal(desk.said(), ["RECLAIM n1 #10 EX"]);
});

test("a newer change supersedes an unfinished one, an older epoch never comes back", () => {
  const desk = new Desk();
  desk.engine.freezeAndClear(3n, [1, 2]);
  desk.reclaim(1, 10, "EX");
  desk.engine.freezeAndClear(4n, [1, 3]);
  assert.equal(desk.table(), []);
  assert.throws(() => desk.engine.resume(3n, desk.out), /epoch 4/);
  assert.throws(() => desk.engine.freezeAndClear(4n, [1]), /does not rise/);
  assert.throws(() => desk.engine.freezeAndClear(9n, [2, 3]), /not in the next view/);
  desk.engine.resume(4n, desk.out);
  assert.throws(() => desk.engine.resume(4n, desk.out), RangeError);
  assert.equal(desk.engine.view, [1, 3]);
  assert.is(desk.engine.epoch, 4n);
});

test("epochs above 32 bits are told apart", () => {
  const desk = new Desk();
  const epoch = (3n << 32n) + 1n;
  desk.engine.freezeAndClear(epoch, [1]);
  desk.engine.resume(epoch, desk.out);
  assert.is(desk.request(1, 1, "PR", { epoch: 1n }), "STALE");
  assert.is(desk.request(1, 1, "PR"), "DECIDED");
  assert.is(desk.entries.at(-1)?.entry.epoch, epoch);
});

test("purging a node forgets its locks and wishes, and lets others go on", () => {
  const desk = new Desk();
  desk.request(2, 20, "EX");
  desk.request(3, 30, "PR");
  desk.request(2, 21, "EX");
  desk.request(1, 10, "PR");
  desk.request(2, 22, "PR", { ino: desk.ino(1) });
  desk.said();
  assert.is(desk.engine.purgeNode(2, desk.out), 3);
  desk.collect();
  assert.equal(desk.said(), ["GRANT n3 #30 PR", "GRANT n1 #10 PR"]);
  assert.is(desk.engine.table.locksUsed, 2);
  desk.check();
});

test("resume hands out its outcomes in batches", () => {
  const desk = new Desk([1], 1, { resourceCountMax: 4096, lockCountMax: 4096 });
  desk.engine.freezeAndClear(2n, [1]);
  for (let id = 1; id <= 2000; id++) {
    desk.engine.submitEntry(
      COMMAND.RECLAIM,
      entryOf({ ino: BigInt(id), lockId: BigInt(id), epoch: 2n, mode: 3, flags: MXFS_LKF_WAITING }),
      1,
      desk.out,
    );
  }
  const batches: number[] = [];
  desk.engine.resume(2n, desk.out, () => {
    batches.push(desk.out.count);
    desk.out.clear();
  });
  assert.is(
    batches.reduce((sum, count) => sum + count, 0),
    2000,
  );
  assert.ok(batches.length > 3 && Math.max(...batches) < 600, batches.join(" "));
});

// ---- outbox and looking in ----------------------------------------------------------------------------------

test("the outbox keeps each node's order and bundles runs of one kind", () => {
  const out = new Outbox();
  const add = (node: number, type: (typeof OUTCOME)[keyof typeof OUTCOME], id: bigint): void => {
    out.appendBytes(node, type, encodeLockEntries([entryOf({ node, lockId: id })]), 0);
  };
  add(2, OUTCOME.GRANT, 1n);
  add(3, OUTCOME.GRANT, 2n);
  add(2, OUTCOME.GRANT, 3n);
  add(2, OUTCOME.BAST, 4n);
  add(2, OUTCOME.GRANT, 5n);
  add(2, OUTCOME.GRANT, (1n << 60n) + 6n);
  const seen: string[] = [];
  out.drain(256, (node, type, entries, client) => {
    const ids = Array.from({ length: entries.length / 64 }, (_, i) => entries[i * 64 + 32]);
    seen.push(`${node}:${type}:${ids.join(",")}:${client}`);
  });
  assert.equal(seen, ["2:20:1,3:0", "2:22:4:0", "2:20:5:0", "2:20:6:1", "3:20:2:0"]);
  assert.is(out.count, 0);
  for (let id = 0n; id < 700n; id++) add(1, OUTCOME.DENY, id);
  const sizes: number[] = [];
  out.drain(256, (_node, _type, entries) => {
    sizes.push(entries.length / 64);
  });
  assert.equal(sizes, [256, 256, 188]);
});

test("an outbox over its limit is an error that breaks the table, never a loss", () => {
  const desk = new Desk();
  const small = new Outbox(1);
  const entries = [1, 2].map((id) => entryOf({ ino: desk.ino(), lockId: BigInt(id), mode: 3 }));
  const submit = (): number => desk.engine.submitAll(COMMAND.REQUEST, encodeLockEntries(entries), 1, small);
  assert.throws(submit, (error: unknown) => error instanceof LockTableError && error.code === "TABLE_LIMIT");
  assert.throws(submit, (error: unknown) => error instanceof LockTableError && error.code === "TABLE_BROKEN");
});

test("dump shows what the filter lets through", () => {
  const desk = new Desk();
  desk.request(1, 10, "PR");
  desk.request(2, 20, "EX");
  desk.request(2, 21, "PR", { ino: desk.ino(1) });
  const ids = (filter: Parameters<LockEngine["dump"]>[0]): number[] =>
    [...desk.engine.dump(filter)].map((lock) => Number(lock.lockId)).sort((a, b) => a - b);
  assert.equal(ids({}), [10, 20, 21]);
  assert.equal(ids({ node: 2 }), [20, 21]);
  assert.equal(ids({ ino: desk.ino(1) }), [21]);
  assert.equal(ids({ contended: true }), [10, 20]);
  assert.equal(ids({ type: 6 }), []);
  const blocking = [...desk.engine.dump({ node: 1 })][0];
  assert.is(blocking?.blocking, true);
  assert.is(blocking?.volume, 77n);
});

test("submitAll tells how many messages came to which result", () => {
  const desk = new Desk([1], 1);
  const entries = [
    entryOf({ lockId: 1n, mode: 5 }),
    entryOf({ lockId: 2n, mode: 5 }),
    entryOf({ lockId: 3n, mode: 5, epoch: 9n }),
    entryOf({ lockId: 4n, mode: 5, node: 2 }),
  ];
  const tally = new Uint32Array(8);
  assert.is(desk.engine.submitAll(COMMAND.REQUEST, encodeLockEntries(entries), 1, desk.out, tally), 4);
  assert.equal([...tally], [1, 1, 0, 0, 1, 1, 0, 0]);
});

test.run();
