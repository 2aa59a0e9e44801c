// SPDX-License-Identifier: GPL-2.0-only
//
// Three nodes under load, a checker outside of the guests: two survivors of one death, split networks, a node that joins
// in the middle of a recovery.
//
// Weakness: timings are shorter than the defaults (TIMINGS).

import * as assert from "uvu/assert";
import { FaultSuite } from "./mxfs_faults_suite.js";

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

faults.proves("The holder and a member die at once: the third node takes over alone", async (field) => {
  const holder = await field.holder();
  const [member = 0, survivor = 0] = field.others(holder);
  field.begins();
  for (const node of [holder, member]) {
    suite.lab.kill(node);
    field.load.gone(node);
  }
  await field.goOn([survivor]);
  assert.is(await field.holder(), survivor);
  assert.equal(field.load.failuresOf([survivor]), []);
  await field.bringBack();
});

faults.run();
