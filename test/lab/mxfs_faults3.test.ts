// SPDX-License-Identifier: GPL-2.0-only
//
// Three nodes under load, a checker outside of the guests: two survivors of one death, split networks, a node that joins
// in the middle of a recovery, a second death in the middle of one.
//
// Weakness: timings are shorter than the defaults (TIMINGS).

import * as assert from "uvu/assert";
import type { Field } from "../../lab/field.js";
import { until } from "../../lab/volume.js";
import { dumpDisk } from "../../src/main/disk_dump.js";
import { FaultSuite } from "./mxfs_faults_suite.js";
import { MOUNTPOINT } from "./mxfs_suite.js";

const faults = new FaultSuite("mxfs-faults3", 3);
const { suite } = faults;

faults.proves(
  "The holder of three is alone in a split network: it steps down, and the two others go on",
  async (field) => {
    const holder = await field.holder();
    const others = field.others(holder);
    await field.cutUntilFenced(holder, "network");
    assert.ok(others.includes(await field.holder()));
    await faults.cannotWrite(holder);
    assert.equal(field.load.failuresOf(others), []);
    await field.bringBack();
  },
);

faults.proves(
  "A member of three is alone in a split network: it is thrown out, and the two others go on",
  async (field) => {
    const holder = await field.holder();
    const [member = 0] = field.others(holder);
    const others = field.others(member);
    await field.cutUntilFenced(member, "network");
    assert.is(await field.holder(), holder);
    await faults.cannotWrite(member);
    assert.equal(field.load.failuresOf(others), []);
    await field.bringBack();
  },
);

faults.proves(
  "Two members cannot reach each other: one of them goes, and the rest goes on",
  async (field) => {
    const holder = await field.holder();
    const [one = 0, other = 0] = field.others(holder);
    const { victim } = await field.cutPairUntilFenced(one, other);
    assert.is(await field.holder(), holder);
    await faults.cannotWrite(victim);
    assert.equal(field.load.failuresOf(field.others(victim)), []);
    await field.bringBack();
  },
);

faults.proves(
  "A third node joins in the middle of a recovery: it waits, and then is a member",
  async (field) => {
    const holder = await field.holder();
    const [joiner = 0, survivor = 0] = field.others(holder);
    await field.leave(joiner);
    const killed = field.kill(holder);
    await Promise.all([killed, field.mount(joiner)]);
    assert.is(await field.holder(), survivor);
    assert.is(await suite.volume.role(joiner), "member");
    assert.equal(field.load.failuresOf([survivor]), []);
    await field.bringBack();
  },
);

/** Two nodes are about to die: of what members were told only what is durable is promised, and that is now all until here. */
async function twoDeaths(field: Field): Promise<void> {
  const members = field.others(await field.holder());
  field.begins();
  await Promise.all(members.map((node) => suite.lab.run(node, `sync -f ${MOUNTPOINT}`)));
}

faults.proves("The holder and a member die at once: the third node takes over alone", async (field) => {
  const holder = await field.holder();
  const [member = 0, survivor = 0] = field.others(holder);
  await twoDeaths(field);
  for (const node of [holder, member]) {
    suite.lab.kill(node);
    field.load.gone(node);
  }
  await field.goOn([survivor]);
  assert.is(await field.holder(), survivor);
  assert.equal(field.load.failuresOf([survivor]), []);
  await field.bringBack();
});

/** The holder's power is cut, with much in its log. Resolves when a survivor replays that; with whom that is, and who is left. */
async function replayBegins(field: Field, directory: string): Promise<{ recoverer: number; third: number }> {
  const { lab, volume } = suite;
  const holder = await field.holder();
  const members = field.others(holder);
  await lab.run(holder, `mkdir ${directory}-log`);
  await volume.work(holder, ["tree-make", `${directory}-log`, 600, 1]);
  await lab.run(holder, `sync -f ${MOUNTPOINT}`);
  await twoDeaths(field);
  const before = new Map(members.map((node) => [node, lab.console(node).length]));
  lab.kill(holder);
  field.load.gone(holder);
  const recoverer = await until(
    "a survivor replays the log",
    60_000,
    async () =>
      members.find((node) => lab.console(node).slice(before.get(node)).includes("Starting recovery")),
    5,
  );
  return { recoverer, third: members.find((node) => node !== recoverer) ?? 0 };
}

/** On the disk: the replay has begun and is not over. */
async function isBeingRecovered(): Promise<void> {
  const { journals } = await dumpDisk(suite.lab.diskImage);
  const states = journals.map((row) => row.state);
  assert.ok(states.includes("being recovered"), `journal slots: ${states.join(", ")}`);
}

faults.proves(
  "The survivor that takes a dead holder over dies in the middle of the replay: the third node takes over",
  async (field, directory) => {
    const { recoverer, third } = await replayBegins(field, directory);
    suite.lab.kill(recoverer);
    field.load.gone(recoverer);
    await isBeingRecovered();
    await field.goOn([third]);
    assert.is(await field.holder(), third);
    assert.equal(field.load.failuresOf([third]), []);
    await field.keysAre([third]);
    await suite.volume.work(third, ["tree-check", `${directory}-log`, 600, 1]);
    await field.bringBack();
  },
);

faults.proves(
  "The survivor that takes a dead holder over hangs in the middle of the replay, and wakes up when the third has done it",
  async (field, directory) => {
    const { recoverer, third } = await replayBegins(field, directory);
    suite.lab.freeze(recoverer);
    try {
      await isBeingRecovered();
      await field.goOn([third]);
      assert.is(await field.holder(), third);
    } finally {
      suite.lab.thaw(recoverer);
    }
    await field.isThrownOut(recoverer);
    await faults.cannotWrite(recoverer);
    assert.equal(field.load.failuresOf([third]), []);
    await field.keysAre([third]);
    await suite.volume.work(third, ["tree-check", `${directory}-log`, 600, 1]);
    await field.bringBack();
  },
);

faults.run();
