// SPDX-License-Identifier: GPL-2.0-only
//
// Nodes that come, go, hang, lose their network or their power, while others work. Three guests; only the tests that
// need the third one mount it.
//
// Weakness: timings are those of the defaults (node_timeout 12 s), so every death costs half a minute.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { until } from "../../lab/volume.js";
import { MOUNTPOINT, Suite } from "./mxfs_suite.js";

/** From a death until the survivors work: node_timeout, lease, fencing, and slow machines. */
const EVICTION_MS = 90_000;
/** The last whole 4 KiB of the 4 GiB LUN: beyond every allocation group, or free space. */
const SPARE_BLOCK = 4 * 2 ** 30 - 4096;
/** What a node that is thrown out says, rightly. */
const FENCING = [
  /mxfs: .*(fenc|evict|lease|reservation|key|error)/i,
  /XFS .*(shut|error|log I\/O)/i,
  /reservation conflict/i,
];

const suite = new Suite("mxfs-roles", { mounted: false, nodes: 3, memoryMib: 768 });

async function mountTwo(): Promise<void> {
  await suite.volume.mkfs(3);
  await suite.volume.mount(1);
  await suite.volume.mount(2);
  assert.is(await suite.volume.role(1), "holder");
  assert.is(await suite.volume.role(2), "member");
}

async function failsWithEio(node: number, script: string): Promise<void> {
  const result = await suite.lab.exec(node, script, { timeoutMs: EVICTION_MS });
  assert.is.not(result.status, 0, `node${node}: "${script}" was expected to fail`);
  assert.match(result.stderr, /Input\/output error|Invalid exchange/, `node${node}: ${script}`);
}

async function oneKeyIsLeft(node: number): Promise<void> {
  await until("only the survivor's key is registered", EVICTION_MS, async () =>
    (await suite.volume.keys(node)).length === 1 ? true : undefined,
  );
}

/** Work of the survivor that needs locks which the dead node may hold. */
async function goesOn(node: number, name: string): Promise<void> {
  await suite.lab.run(node, `echo ${name} >>${MOUNTPOINT}/shared-file && mkdir ${MOUNTPOINT}/${name}`, {
    timeoutMs: EVICTION_MS,
  });
}

/** Who was thrown out mounts again. Until then the last one to leave keeps the reservation, against its late writes. */
async function comesBack(node: number): Promise<void> {
  const { volume } = suite;
  await volume.mount(node);
  assert.is(await volume.role(node), "member");
  await volume.umountAll();
  assert.equal(await volume.keys(node), []);
  await volume.checkXfs(node);
}

suite.proves("A member leaves and rejoins, and misses nothing", async () => {
  const { lab, volume } = suite;
  await mountTwo();
  await volume.umount(2);
  assert.is((await volume.keys(1)).length, 1);
  await lab.run(1, `echo while away >${MOUNTPOINT}/note`);
  await volume.mount(2);
  assert.is(await lab.run(2, `cat ${MOUNTPOINT}/note`), "while away\n");
  assert.is(await volume.role(2), "member");
  await volume.umountAll();
});

suite.proves("A third node joins while two work, sees everything, and leaves again", async () => {
  const { lab, volume } = suite;
  await mountTwo();
  const file = `${MOUNTPOINT}/busy`;
  const load = [1, 2].map((node) => volume.work(node, ["append", file, `n${node}`, 100]));
  await volume.mount(3);
  await Promise.all(load);
  await volume.work(3, ["append-check", file, 100, "n1", "n2"]);
  await volume.work(3, ["names", MOUNTPOINT, "third", 20]);
  for (const node of [1, 2]) assert.is(await lab.run(node, `ls ${MOUNTPOINT} | grep -c ^third`), "20\n");
  await Promise.all(
    [1, 2, 3].map((node) => volume.work(node, ["locked-add", `${MOUNTPOINT}/count3`, "flock", 10])),
  );
  assert.is((await lab.run(3, `od -An -tu8 -N8 ${MOUNTPOINT}/count3`)).trim(), "30");
  await volume.umount(3);
  await volume.umountAll();
  await volume.checkXfs(1);
});

suite.proves(
  "The holder unmounts under load, and a member carries on as the holder without an error",
  async () => {
    const { lab, volume } = suite;
    await mountTwo();
    await lab.run(2, ["mkdir", `${MOUNTPOINT}/under`]);
    const load = Promise.all([
      volume.work(2, ["append", `${MOUNTPOINT}/log`, "m", 300]),
      volume.work(2, ["churn", `${MOUNTPOINT}/under`, "m", 40]),
    ]);
    load.catch(() => undefined); // awaited below
    const holding = volume.hold(2, ["mxfs-work", "hold", `${MOUNTPOINT}/flocked`, "flock"]);
    assert.is(await holding.first, "held");
    await volume.umount(1);
    await load;
    assert.is(await volume.role(2), "holder");
    await volume.work(2, ["append-check", `${MOUNTPOINT}/log`, 300, "m"]);
    await volume.mount(1);
    assert.is(await volume.role(1), "member");
    assert.is(await volume.work(1, ["try-lock", `${MOUNTPOINT}/flocked`, "flock"]), "busy\n");
    assert.is(await holding.letGo(), 0);
    await volume.work(1, ["append-check", `${MOUNTPOINT}/log`, 300, "m"]);
    await volume.umountAll();
    await volume.checkXfs(1);
  },
);

suite.proves(
  "A member whose power is cut is evicted: its locks and its key go, and the holder goes on",
  async () => {
    const { lab, volume } = suite;
    await mountTwo();
    await lab.run(2, `echo from member >${MOUNTPOINT}/shared-file; sync -f ${MOUNTPOINT}`);
    const holding = volume.hold(2, ["mxfs-work", "hold", `${MOUNTPOINT}/flocked`, "flock"]);
    assert.is(await holding.first, "held");
    lab.kill(2);
    await goesOn(1, "after-power-cut");
    assert.match(await lab.run(1, `cat ${MOUNTPOINT}/shared-file`), /^from member\n/);
    await until("the dead node's flock is free", EVICTION_MS, async () =>
      (await volume.work(1, ["try-lock", `${MOUNTPOINT}/flocked`, "flock"])) === "free\n" ? true : undefined,
    );
    await oneKeyIsLeft(1);
    // And it may come back.
    await lab.start(2);
    await volume.prepare(2);
    await volume.mount(2);
    assert.match(await lab.run(2, `cat ${MOUNTPOINT}/shared-file`), /after-power-cut/);
    await volume.umountAll();
    await volume.checkXfs(1);
  },
  { expected: FENCING },
);

suite.proves(
  "A member whose network is cut is evicted, gets EIO, cannot write to the disk, and may mount again once healed",
  async () => {
    const { lab, volume } = suite;
    await mountTwo();
    await lab.run(2, `echo from member >${MOUNTPOINT}/shared-file`);
    lab.cut(2, "network");
    await goesOn(1, "after-cut");
    await oneKeyIsLeft(1);
    await failsWithEio(2, `echo too late >>${MOUNTPOINT}/shared-file`);
    assert.match(await volume.work(2, ["raw-write", "/dev/sda", SPARE_BLOCK]), /^refused /);
    lab.heal(2, "network");
    await volume.umount(2);
    await volume.mount(2);
    assert.not.match(await lab.run(2, `cat ${MOUNTPOINT}/shared-file`), /too late/);
    await volume.umountAll();
    await volume.checkXfs(1);
  },
  { expected: FENCING },
);

suite.proves(
  "A frozen member is evicted, and thawed it gets EIO and its writes are refused",
  async () => {
    const { lab, volume } = suite;
    await mountTwo();
    await lab.run(2, `echo from member >${MOUNTPOINT}/shared-file`);
    lab.freeze(2);
    await goesOn(1, "after-freeze");
    await oneKeyIsLeft(1);
    lab.thaw(2);
    await failsWithEio(2, `cat ${MOUNTPOINT}/shared-file && echo too late >>${MOUNTPOINT}/shared-file`);
    assert.match(await volume.work(2, ["raw-write", "/dev/sda", SPARE_BLOCK]), /^refused /);
    await volume.umount(2);
    assert.not.match(await lab.run(1, `cat ${MOUNTPOINT}/shared-file`), /too late/);
    await comesBack(2);
  },
  { expected: FENCING },
);

suite.proves(
  "When the holder's power is cut the member takes over, nothing safe or seen is lost, and the dead node may come back",
  async () => {
    const { lab, volume } = suite;
    await mountTwo();
    await lab.run(1, `echo safe >${MOUNTPOINT}/safe && sync -f ${MOUNTPOINT}`);
    await lab.run(1, `echo seen >${MOUNTPOINT}/seen`);
    assert.is(await lab.run(2, `cat ${MOUNTPOINT}/seen`), "seen\n");
    await lab.run(2, `echo mine >${MOUNTPOINT}/mine && sync ${MOUNTPOINT}/mine`);
    const holding = volume.hold(2, ["mxfs-work", "hold", `${MOUNTPOINT}/flocked`, "flock"]);
    assert.is(await holding.first, "held");
    const load = volume.work(2, ["append", `${MOUNTPOINT}/log`, "m", 200]);
    load.catch(() => undefined); // awaited below
    lab.kill(1);
    await goesOn(2, "after-takeover");
    await load;
    assert.is(await volume.role(2), "holder");
    assert.is(
      await lab.run(2, `cd ${MOUNTPOINT}; cat safe seen mine shared-file`),
      "safe\nseen\nmine\nafter-takeover\n",
    );
    await volume.work(2, ["append-check", `${MOUNTPOINT}/log`, 200, "m"]);
    await oneKeyIsLeft(2);
    await lab.start(1);
    await volume.prepare(1);
    await volume.mount(1);
    assert.is(await volume.role(1), "member");
    assert.is(await lab.run(1, `cat ${MOUNTPOINT}/seen`), "seen\n");
    assert.is(await volume.work(1, ["try-lock", `${MOUNTPOINT}/flocked`, "flock"]), "busy\n");
    assert.is(await holding.letGo(), 0);
    await volume.umountAll();
    await volume.checkXfs(2);
  },
  { expected: FENCING },
);

suite.proves(
  "A frozen holder is replaced, and thawed it is no second writer: EIO, and its writes are refused",
  async () => {
    const { lab, volume } = suite;
    await mountTwo();
    await lab.run(1, `echo from holder >${MOUNTPOINT}/shared-file && sync -f ${MOUNTPOINT}`);
    lab.freeze(1);
    await goesOn(2, "after-freeze-of-holder");
    assert.is(await volume.role(2), "holder");
    lab.thaw(1);
    await failsWithEio(1, `cat ${MOUNTPOINT}/shared-file && echo too late >>${MOUNTPOINT}/shared-file`);
    assert.match(await volume.work(1, ["raw-write", "/dev/sda", SPARE_BLOCK]), /^refused /);
    await volume.umount(1);
    assert.not.match(await lab.run(2, `cat ${MOUNTPOINT}/shared-file`), /too late/);
    await comesBack(1);
  },
  { expected: FENCING },
);

test.run();
