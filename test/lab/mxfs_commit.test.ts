// SPDX-License-Identifier: GPL-2.0-only
//
// What a member is answered before the holder's log has it: nothing of it is missed when the holder dies, what was synced or seen
// by another node is there when all die. Node 1 is the holder; of the members the one takes it over, the other follows.
//
// Weakness: which operations the holder's log had already when its power was cut is chance; how many were lost and done again is
// counted, and must be some. The operations of one node are done one after the other.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { until } from "../../lab/volume.js";
import { MOUNTPOINT, Suite, TIMINGS } from "./mxfs_suite.js";

const DEATH = [/mxfs: .*(fenc|evict|lease|reservation|key|another holder)/i, /reservation conflict/i];
const TAKEOVER_MS = 90_000;
const FILES = 30;

const suite = new Suite("mxfs-commit", { mounted: false, nodes: 3, memoryMib: 768, mountOptions: TIMINGS });
const MEMBERS = [2, 3] as const;

/** Nobody commits by itself, nor does the XFS, so that a death comes before that. */
async function mounted(): Promise<void> {
  const { volume, lab } = suite;
  for (const node of volume.nodes) {
    if (lab.state(node) !== "running") {
      await lab.start(node);
      await volume.prepare(node);
    }
    await lab.run(
      node,
      "echo 600000 >/sys/module/mxfs/parameters/commit_ms; echo 720000 >/proc/sys/fs/xfs/xfssyncd_centisecs",
    );
    if (!(await volume.isMounted(node))) await volume.mount(node, TIMINGS);
  }
  assert.is(await volume.role(1), "holder");
}

/** One of each kind of change that is answered early, and things that follow from each other. (A special file is not, and commits.) */
function changes(dir: string): string {
  return `set -e; cd ${dir}
    for i in $(seq ${FILES}); do : >file$i; done
    mkdir sub sub/deep; : >sub/a; : >sub/deep/b; mkdir -m 700 sub/gone; rmdir sub/gone
    for i in $(seq 1 5); do mv file$i sub/moved$i; done
    for i in $(seq 6 10); do rm file$i; done
    ln file11 sub/linked; ln -s file12 soft; mv file13 file14
    chmod 640 file15; chown 12:34 file16; touch -d @1000000000 file17
    : >again; rm again; : >again; chmod 604 again`;
}

const SHOW = "find . -printf '%P %y %m %U:%G %n %s %l\\n' | sort; stat -c '%Y' file17";

function shown(node: number, dir: string): Promise<string> {
  return suite.lab.run(node, `cd ${dir} && ${SHOW}`, { timeoutMs: TAKEOVER_MS });
}

/** Each member makes a directory, commits that, and makes the changes in it: what each shows then. */
async function changedByMembers(dir: (node: number) => string): Promise<readonly string[]> {
  const { lab } = suite;
  for (const node of MEMBERS) await lab.run(node, `mkdir ${dir(node)}; sync -f ${MOUNTPOINT}`);
  return await Promise.all(
    MEMBERS.map(async (node) => {
      await lab.run(node, changes(dir(node)));
      return await shown(node, dir(node));
    }),
  );
}

async function takenOver(): Promise<void> {
  await until("a member has taken over", TAKEOVER_MS, async () => {
    const states = await Promise.all(MEMBERS.map((node) => suite.volume.kernelState(node)));
    return states.some((state) => state?.role === "holder") ? true : undefined;
  });
}

suite.proves(
  "Members miss nothing that the dead holder had answered and not committed, and can go on with all of it",
  async () => {
    await suite.volume.mkfs();
    await mounted();
    const { volume, lab } = suite;
    const early = await suite.volume.counter(1, "fsop_early");
    // What is durable at once comes first, on both: it commits everything.
    for (const node of MEMBERS) {
      await lab.run(
        node,
        `set -e; mkdir ${MOUNTPOINT}/node${node}; mkfifo ${MOUNTPOINT}/node${node}/fifo; sync -f ${MOUNTPOINT}`,
      );
    }
    const open = await Promise.all(
      MEMBERS.map(async (node) => {
        const dir = `${MOUNTPOINT}/node${node}`;
        await lab.run(node, changes(dir));
        const before = await shown(node, dir);
        // A file that is open, and written after the takeover under whatever number it has then; and a working directory.
        const command = lab.spawn(
          node,
          `cd ${dir}/sub/deep; exec 5>new; echo ready; read go; echo late >&5; echo here >beside; sync new beside; echo done; read end`,
        );
        let said = "";
        command.on("stdout", (piece) => {
          said += piece.toString();
        });
        await until("the file is open", 30_000, async () => (said.includes("ready") ? true : undefined));
        return { node, dir, before: await shown(node, dir), command, said: () => said, had: before };
      }),
    );
    assert.ok((await suite.volume.counter(1, "fsop_early")) - early > 2 * FILES, "the holder answers early");
    lab.kill(1);
    await takenOver();
    for (const it of open) {
      assert.is(await shown(it.node, it.dir), it.before, `node ${it.node}`);
      assert.ok(
        (await suite.volume.counter(it.node, "redone")) > FILES,
        `node ${it.node} had something to do again`,
      );
      await it.command.write(Buffer.from("go\n"));
      await until("the open file was written", TAKEOVER_MS, async () =>
        it.said().includes("done") ? true : undefined,
      );
      await lab.run(
        it.node,
        `set -e; cd ${it.dir}; echo more >file20; : >fresh; rm file21; mv sub/deep sub/deeper`,
      );
    }
    for (const it of open) {
      const other = it.node === 2 ? 3 : 2;
      assert.is(await shown(other, it.dir), await shown(it.node, it.dir));
      assert.is(
        await lab.run(other, `cat ${it.dir}/sub/deeper/new ${it.dir}/sub/deeper/beside ${it.dir}/file20`),
        "late\nhere\nmore\n",
      );
      await it.command.end();
      await it.command.done;
    }
    await volume.umountAll();
    await volume.checkXfs(2);
  },
  { expected: DEATH },
);

suite.proves(
  "What a member has synced, or another node has seen, is there when all nodes die",
  async () => {
    await mounted();
    const { volume, lab } = suite;
    const dir = `${MOUNTPOINT}/all`;
    await lab.run(2, `set -e; mkdir ${dir} ${dir}/synced ${dir}/seen; sync -f ${MOUNTPOINT}`);
    await lab.run(
      2,
      `set -e; cd ${dir}/synced; for i in $(seq 20); do : >f$i; done; mv f1 g1; rm f2; echo data >f3; sync f3`,
    );
    await lab.run(
      3,
      `set -e; cd ${dir}/seen; for i in $(seq 20); do : >f$i; done; mv f1 g1; rm f2; chmod 600 f3`,
    );
    const names = (node: number, which: string) =>
      lab.run(node, `cd ${dir}/${which} && find . -printf '%P %m\\n' | sort`);
    const seen = await names(1, "seen");
    const synced = await lab.run(2, `cd ${dir}/synced && find . -printf '%P %m\\n' | sort`);
    for (const node of volume.nodes) lab.kill(node);
    await Promise.all(volume.nodes.map((node) => lab.start(node)));
    await volume.prepareAll();
    await volume.mount(1, TIMINGS);
    assert.is(await names(1, "seen"), seen);
    assert.is(await names(1, "synced"), synced);
    assert.is(await lab.run(1, `cat ${dir}/synced/f3`), "data\n");
    await volume.umountAll();
    await volume.checkXfs(1);
  },
  { expected: DEATH },
);

suite.proves(
  "A member that leaves, or dies, has lost nothing of what it was answered when all die next",
  async () => {
    await mounted();
    const { volume, lab } = suite;
    const dir = (node: number) => `${MOUNTPOINT}/left${node}`;
    const before = await changedByMembers(dir);
    await volume.umount(2);
    lab.kill(3);
    // Of the dead one's directory the holder hears when its locks have passed on.
    assert.equal(await Promise.all(MEMBERS.map((node) => shown(1, dir(node)))), before);
    lab.kill(1);
    await Promise.all([1, 3].map((node) => lab.start(node)));
    await Promise.all([1, 3].map((node) => volume.prepare(node)));
    await volume.mount(1, TIMINGS);
    assert.equal(await Promise.all(MEMBERS.map((node) => shown(1, dir(node)))), before);
    await volume.umountAll();
    await volume.checkXfs(1);
  },
  { expected: DEATH },
);

suite.proves(
  "When the holder leaves, its successor has nothing to do again, and when that one dies nothing is missed",
  async () => {
    await mounted();
    const { volume, lab } = suite;
    const dir = (node: number) => `${MOUNTPOINT}/handed${node}`;
    const before = await changedByMembers(dir);
    const redone = await Promise.all(MEMBERS.map((node) => volume.counter(node, "redone")));
    await volume.umount(1);
    assert.equal(await Promise.all(MEMBERS.map((node) => shown(node, dir(node)))), before);
    assert.equal(await Promise.all(MEMBERS.map((node) => volume.counter(node, "redone"))), redone);
    const states = await Promise.all(MEMBERS.map((node) => volume.kernelState(node)));
    const holder = states[0]?.role === "holder" ? 2 : 3;
    const member = holder === 2 ? 3 : 2;
    await lab.run(
      member,
      `set -e; cd ${dir(member)}; for i in $(seq 50); do : >more$i; done; rm file20; ls more1`,
    );
    const then = await shown(member, dir(member));
    lab.kill(holder);
    assert.is(await shown(member, dir(member)), then);
    assert.is(await shown(member, dir(holder)), before[MEMBERS.indexOf(holder)]);
    await volume.umountAll();
    await volume.checkXfs(member);
  },
  { expected: DEATH },
);

suite.proves(
  "A name that is taken stays taken for who tries to make it while the holder dies",
  async () => {
    await mounted();
    const { volume, lab } = suite;
    const dir = `${MOUNTPOINT}/taken`;
    // Empty, and of the same owner: nothing tells it from what the other one would make.
    await lab.run(
      2,
      `set -e; mkdir ${dir} ${MOUNTPOINT}/signs; : >${dir}/lock; mkdir ${dir}/lock.d; ls ${dir}`,
    );
    const tries = lab.run(3, `mxfs-work taken ${dir}/lock ${MOUNTPOINT}/signs/stop`, {
      timeoutMs: 2 * TAKEOVER_MS,
    });
    tries.catch(() => {}); // looked at below
    await lab.run(2, `ls ${MOUNTPOINT}`);
    const sent = await volume.counter(3, "fsop_sent");
    await until("the attempts are under way", 60_000, async () =>
      (await volume.counter(3, "fsop_sent")) > sent + 100 ? true : undefined,
    );
    lab.kill(1);
    await takenOver();
    await lab.run(2, `: >${MOUNTPOINT}/signs/stop`, { timeoutMs: TAKEOVER_MS });
    assert.match(await tries, /^\d+ tries\n$/);
    await volume.umountAll();
    await volume.checkXfs(2);
  },
  { expected: DEATH },
);

test.run();
