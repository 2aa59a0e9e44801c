// SPDX-License-Identifier: GPL-2.0-only
//
// The registry of control clients' locks: what it sends to the lock engine, and when.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { COMMAND, type Command } from "../../src/dlm/engine.js";
import { ClientLocks, LOCKS_PER_CLIENT_MAX } from "../../src/main/client_locks.js";
import { type ControlClient, ControlError } from "../../src/main/control.js";
import { MXFS_MODE_EX, WireType } from "../../src/wire/abi.js";
import { encodeValuedEntries, type ValuedEntry } from "../../src/wire/lock_entry.js";

const EPOCH = 5n;
const client = { id: "c1", event: () => undefined } as unknown as ControlClient;

interface Desk {
  readonly locks: ClientLocks;
  readonly sent: { readonly command: Command; readonly entries: readonly ValuedEntry[] }[];
  /** How often solo was asked to end. */
  asked: number;
  /** Solo has ended. */
  shared(): Promise<void>;
}

function desk(): Desk {
  let resolve = (): void => undefined;
  const promise = new Promise<void>((done) => {
    resolve = done;
  });
  const sent: Desk["sent"] = [];
  const locks = new ClientLocks(
    {
      self: 0xaa,
      volume: 7n,
      epoch: () => EPOCH,
      submit: (command, entries) => sent.push({ command, entries }),
      detector: () => null,
      share: () => {
        it.asked++;
        return promise;
      },
    },
    1n,
  );
  const it: Desk = {
    locks,
    sent,
    asked: 0,
    shared: async () => {
      resolve();
      await promise;
      await Promise.resolve();
    },
  };
  locks.resumed();
  return it;
}

test("A lock of the kernel's is asked for only when the table knows what the kernel holds", async () => {
  const it = desk();
  const granted = it.locks.lock(client, "inode:133:7", MXFS_MODE_EX, true, null);
  await Promise.resolve();
  assert.is(it.asked, 1);
  assert.is(it.sent.length, 0, "nothing is sent before");
  await it.shared();
  assert.is(it.sent.length, 1);
  const entry = it.sent[0]?.entries[0]?.entry;
  assert.is(it.sent[0]?.command, COMMAND.REQUEST);
  assert.is(entry?.ino, 133n);
  assert.is(entry?.ag, 7);
  if (entry === undefined) return;
  it.locks.receive(WireType.LOCK_GRANT, encodeValuedEntries([{ entry, value: null }]));
  assert.is((await granted).mode, MXFS_MODE_EX);

  const second = it.locks.lock(client, "super:1", MXFS_MODE_EX, true, null);
  await Promise.resolve();
  assert.is(it.asked, 1, "once is enough");
  assert.is(it.sent.length, 2);
  it.locks.clientGone(client);
  second.catch(() => undefined);
});

test("A named lock is nothing that the kernel takes: it is asked for at once", async () => {
  const it = desk();
  const granted = it.locks.lock(client, "backup", MXFS_MODE_EX, true, null);
  await Promise.resolve();
  assert.is(it.asked, 0);
  assert.is(it.sent.length, 1);
  granted.catch(() => undefined);
});

test("What is said of a lock whose request waits for the end of solo comes behind that request", async () => {
  const it = desk();
  const refused = it.locks.lock(client, "super:1", MXFS_MODE_EX, true, null);
  refused.catch(() => undefined);
  await Promise.resolve();
  it.locks.clientGone(client);
  assert.is(it.sent.length, 0);
  await it.shared();
  assert.equal(
    it.sent.map(({ command }) => command),
    [COMMAND.REQUEST, COMMAND.RELEASE],
  );
});

test("A client has so many locks and no more, whatever others have; one that it gives back counts no longer", async () => {
  const it = desk();
  const other = { ...client, id: "c2" } as unknown as ControlClient;
  const answer = (type: number, from: number): void => {
    for (const { entries } of it.sent.splice(from)) {
      it.locks.receive(type as typeof WireType.LOCK_GRANT, encodeValuedEntries(entries));
    }
  };
  const take = (who: ControlClient, name: string): Promise<{ id: bigint }> =>
    it.locks.lock(who, name, MXFS_MODE_EX, true, null);
  const all = Array.from({ length: LOCKS_PER_CLIENT_MAX }, (_, index) => take(client, `name${index}`));
  answer(WireType.LOCK_GRANT, 0);
  const [first] = await Promise.all(all);
  const refused = await take(client, "one more").catch((error: unknown) => error);
  assert.ok(refused instanceof ControlError && refused.errno === "ENOLCK");
  const theirs = take(other, "one more");
  answer(WireType.LOCK_GRANT, 0);
  await theirs;
  it.locks.unlock(client, first?.id ?? 0n, null);
  it.sent.splice(0);
  const denied = take(client, "one more");
  answer(WireType.LOCK_DENY, 0);
  assert.ok((await denied.catch((error: unknown) => error)) instanceof ControlError, "the master says no");
  const again = take(client, "another");
  answer(WireType.LOCK_GRANT, 0);
  await again;
  it.locks.clientGone(client);
  const anew = Array.from({ length: LOCKS_PER_CLIENT_MAX }, (_, index) => take(client, `name${index}`));
  answer(WireType.LOCK_GRANT, LOCKS_PER_CLIENT_MAX);
  await Promise.all(anew);
});

test.run();
