// SPDX-License-Identifier: GPL-2.0-only
//
// Lock records on the shared disk: what allows writing is there before it is told, and goes when it is given up; a dead
// node's records are read, and void after; a full area gives unused locks back, and refuses what it has no room for.
//
// Weakness: what `dump --disk` reads of a cluster at work is each record for itself; so the tests ask while nothing moves.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { DEVICE, until } from "../../lab/volume.js";
import { MOUNTPOINT, Suite, TIMINGS } from "./mxfs_suite.js";

const WAIT_MS = 60_000;
/** From a death until the survivors work: node_timeout, lease, fencing, and slow machines. */
const EVICTION_MS = 90_000;
/** The fewest that can be made: 4 chunks, so that two nodes have 2 each, of which 384 records are slots. */
const FEW = 1024;
const SLOTS_OF_FEW = 768;
/** Clients, and how many of these each holds: side by side, since each waits for the disk. */
const CLIENTS = 6;
const HELD_BY_EACH = 115;
const HELD = CLIENTS * HELD_BY_EACH;

const suite = new Suite("mxfs-persist", { mounted: false, nodes: 2 });

interface Row {
  readonly resource: string;
  readonly mode: string;
  readonly node: string;
  readonly master: string;
  readonly incarnation: number;
}

interface Dump {
  readonly locks: readonly Row[];
  readonly problems: readonly string[];
  readonly header: { readonly lockRecords: number; readonly epoch: string };
}

const DUMP = `mxfs_lock dump --disk ${DEVICE} --json`;

async function diskDump(node: number): Promise<Dump> {
  const dump = JSON.parse(await suite.lab.run(node, DUMP, { timeoutMs: WAIT_MS })) as Dump;
  assert.equal(dump.problems, []);
  return dump;
}

async function nodeId(node: number): Promise<number> {
  return Number.parseInt(String((await suite.volume.status(node)).node), 16);
}

const heldBy = (dump: Dump, id: number): Row[] =>
  dump.locks.filter((lock) => Number.parseInt(lock.node, 16) === id);

async function records(node: number): Promise<Readonly<Record<string, unknown>>> {
  return (await suite.volume.status(node)).lockRecords as Record<string, unknown>;
}

async function mountTwo(options = `lock_records=${FEW},${TIMINGS}`): Promise<void> {
  await suite.volume.mkfs(1);
  await suite.volume.mount(1, options);
  await suite.volume.mount(2, options);
  assert.is(await suite.volume.role(2), "member");
}

suite.proves(
  "What a member is told that it may write is in a record on disk by then, and is gone when it is given up",
  async () => {
    const { lab, volume } = suite;
    await mountTwo();
    const member = await nodeId(2);
    // The command runs when the lock was told.
    const told = JSON.parse(
      await lab.run(2, `mxfs_lock lock nightly EX -- ${DUMP}`, { timeoutMs: WAIT_MS }),
    ) as Dump;
    assert.equal(told.problems, []);
    assert.is(told.header.lockRecords, FEW);
    const named = heldBy(told, member).filter((lock) => lock.resource.startsWith("user:"));
    assert.equal(
      named.map((lock) => lock.mode),
      ["EX"],
    );
    await until("the record is cleared", WAIT_MS, async () =>
      heldBy(await diskDump(1), member).some((lock) => lock.resource.startsWith("user:")) ? undefined : true,
    );
    // The kernel's locks. A file that is born under a directory in EX is covered: the directory's record stands for it.
    await lab.run(2, `echo words >${MOUNTPOINT}/file`);
    const top = (await lab.run(2, `stat -c %i ${MOUNTPOINT}`)).trim();
    assert.ok(
      heldBy(await diskDump(1), member).some(
        (lock) => lock.resource === `inode:${top}` && lock.mode === "EX",
      ),
    );
    assert.is(await lab.run(1, `cat ${MOUNTPOINT}/file`), "words\n");
    // From here on it has a lock of its own.
    await lab.run(2, `echo more >>${MOUNTPOINT}/file`);
    const ino = (await lab.run(2, `stat -c %i ${MOUNTPOINT}/file`)).trim();
    const file = (dump: Dump): Row[] =>
      heldBy(dump, member).filter((lock) => lock.resource.startsWith(`inode:${ino}`));
    assert.equal(
      file(await diskDump(1)).map((lock) => lock.mode),
      ["EX"],
    );
    assert.is(await lab.run(1, `cat ${MOUNTPOINT}/file`), "words\nmore\n");
    await until("the record is cleared", WAIT_MS, async () =>
      file(await diskDump(1)).length === 0 ? true : undefined,
    );
    await volume.umount(2);
    assert.equal(heldBy(await diskDump(1), member), []);
    await volume.umountAll();
    await volume.checkXfs(1);
  },
);

suite.proves(
  "persist=all records what may be read as well; another word is refused with its reason",
  async () => {
    const { lab, volume } = suite;
    await volume.mkfs(1);
    for (const word of ["none", "some"]) {
      const refused = await volume.tryMount(1, `persist=${word}`);
      assert.is.not(refused.status, 0);
      assert.match(refused.said, new RegExp(`persist=${word}: expected writing .* or all`));
    }
    await volume.mount(1, `lock_records=${FEW},persist=all`);
    await volume.mount(2, "persist=all");
    assert.match(await lab.run(2, `grep ${MOUNTPOINT} /proc/mounts`), /persist=all/);
    const member = await nodeId(2);
    const told = JSON.parse(
      await lab.run(2, `mxfs_lock lock report PR -- ${DUMP}`, { timeoutMs: WAIT_MS }),
    ) as Dump;
    assert.ok(heldBy(told, member).some((lock) => lock.resource.startsWith("user:") && lock.mode === "PR"));
    await volume.umountAll();
  },
);

suite.proves(
  "A member's power is cut: the holder reads what it held for writing, and its records count no more",
  async () => {
    const { lab, volume } = suite;
    await mountTwo();
    const member = await nodeId(2);
    await lab.run(2, `echo from the member >${MOUNTPOINT}/file && sync -f ${MOUNTPOINT}`);
    const before = heldBy(await diskDump(1), member);
    assert.ok(before.some((lock) => lock.mode === "EX"));
    lab.kill(2);
    await until("the dead member is gone from the disk's header", EVICTION_MS, async () =>
      (await diskDump(1)).locks.every((lock) => Number.parseInt(lock.node, 16) !== member) ? true : undefined,
    );
    const dead = (await volume.status(1)).dead as { node: string; heldForWriting: number }[];
    const found = dead.find((row) => Number.parseInt(row.node, 16) === member);
    assert.ok(
      found !== undefined && found.heldForWriting >= before.length,
      `the records had ${before.length} locks of the dead member, and ${found?.heldForWriting} were found`,
    );
    assert.is(await lab.run(1, `cat ${MOUNTPOINT}/file`, { timeoutMs: EVICTION_MS }), "from the member\n");
    // It comes back: as another incarnation, with records of its own.
    await lab.start(2);
    await volume.prepare(2);
    await volume.mount(2);
    await lab.run(2, `echo again >>${MOUNTPOINT}/file`);
    const after = heldBy(await diskDump(1), member);
    assert.ok(after.length > 0 && before[0] !== undefined);
    assert.ok(after.every((lock) => lock.incarnation > (before[0]?.incarnation ?? 0)));
    await volume.umountAll();
    await volume.checkXfs(1);
  },
  { expected: [/mxfs: .*(evict|lease|fenc)/i] },
);

suite.proves(
  "A full area gives unused locks back and goes on; what is in use is refused beyond it, clearly, and has room again after",
  async () => {
    const { lab, volume } = suite;
    await mountTwo();
    // Clients' locks cannot be taken back: they leave little room.
    const take = (name: string, count: number): string =>
      `for i in $(seq 1 ${count}); do echo "lock ${name}-$i EX"; done`;
    const clients = Array.from({ length: CLIENTS }, (_, client) => {
      const words = `(${take(`held${client}`, HELD_BY_EACH)}; cat) | mxfs_lock session`;
      const it = { ...volume.hold(2, ["sh", "-c", words]), said: "" };
      it.command.on("stdout", (piece) => {
        it.said += piece.toString();
      });
      return it;
    });
    await until("the clients have their locks", 300_000, async () => {
      const held = clients.reduce((sum, { said }) => sum + (said.match(/^ok/gm)?.length ?? 0), 0);
      return held >= HELD ? true : undefined;
    });
    // Every file that is written after another node has read it has a lock in EX, cached.
    const files = SLOTS_OF_FEW - HELD + 60;
    const write = `cd ${MOUNTPOINT}/many && for i in $(seq 1 ${files}); do echo $i >>$i || exit 1; done`;
    await lab.run(2, `mkdir ${MOUNTPOINT}/many && ${write}`, { timeoutMs: 300_000 });
    await lab.run(1, `cat ${MOUNTPOINT}/many/* >/dev/null`, { timeoutMs: 300_000 });
    await lab.run(2, write, { timeoutMs: 300_000 });
    assert.is(await lab.run(1, `ls ${MOUNTPOINT}/many | wc -l`, { timeoutMs: WAIT_MS }), `${files}\n`);
    const after = await records(1);
    assert.is(after.capacity, SLOTS_OF_FEW / 2);
    assert.ok(Number(after.recalls) > 0 && Number(after.recorded) <= SLOTS_OF_FEW / 2);
    // More than there is room for.
    const wanted = SLOTS_OF_FEW - HELD + 40;
    const { stdout } = await lab.exec(2, `(${take("more", wanted)}; echo quit) | mxfs_lock session`, {
      timeoutMs: 300_000,
    });
    const refused = stdout.split("\n").filter((line) => line.startsWith("error"));
    assert.ok(refused.length >= 40, `only ${refused.length} of ${wanted} were refused`);
    assert.match(refused[0] ?? "", /^error ENOLCK .*no room for it/);
    assert.match(await volume.daemonLog(1, 400), /refused with ENOLCK: there is no lock record/);
    await Promise.all(clients.map((client) => client.letGo()));
    await lab.run(2, `mxfs_lock lock afterwards EX -- true`, { timeoutMs: WAIT_MS });
    await lab.run(2, `echo more >${MOUNTPOINT}/more`, { timeoutMs: WAIT_MS });
    await volume.umountAll();
    await volume.checkXfs(1);
  },
);

test.run();
