// SPDX-License-Identifier: GPL-2.0-only
//
// A member dies, is cut off, or one of the two daemons dies or hangs; two nodes under load, a checker outside of the
// guests.
//
// Weakness: timings are shorter than the defaults (TIMINGS).

import * as assert from "uvu/assert";
import { until } from "../../lab/volume.js";
import { FaultSuite } from "./mxfs_faults_suite.js";

const faults = new FaultSuite("mxfs-faults-member", 2);
const { suite } = faults;

faults.proves(
  "A member's power is cut under load: it is fenced, its locks are free again, who waited for them goes on",
  async (field, directory) => {
    const holder = await field.holder();
    const member = holder === 1 ? 2 : 1;
    await suite.lab.run(holder, `: >${directory}-flocked; : >${directory}-fcntled`);
    for (const kind of ["flock", "fcntl"]) {
      const held = suite.volume.hold(member, ["mxfs-work", "hold", `${directory}-${kind}ed`, kind]);
      assert.is(await held.first, "held");
    }
    const waits = ["flock", "fcntl"].map((kind) =>
      suite.volume.work(holder, ["locked-add", `${directory}-${kind}ed`, kind, 1]),
    );
    await field.kill(member);
    await Promise.all(waits);
    await field.keysAre([holder]);
    assert.is(await field.holder(), holder);
    assert.equal(field.load.failuresOf([holder]), []);
    await field.bringBack();
  },
);

faults.proves(
  "The network between two nodes is cut: the holder's side goes on, the other is thrown out and cannot write",
  async (field) => {
    const holder = await field.holder();
    const member = holder === 1 ? 2 : 1;
    await field.cutUntilFenced(member, "network");
    assert.is(await field.holder(), holder);
    await faults.cannotWrite(member);
    assert.equal(field.load.failuresOf([holder]), []);
    await field.bringBack();
  },
);

for (const who of ["holder", "member"] as const) {
  faults.proves(
    `The daemon of the ${who} is killed: another takes its place, locks and open files outlive it`,
    async (field) => {
      const holder = await field.holder();
      const node = who === "holder" ? holder : 3 - holder;
      const before = (await suite.volume.kernelState(node))?.pid;
      await field.killDaemon(node);
      if (field.evictions === 0) {
        assert.is(await field.holder(), holder);
        assert.is.not((await suite.volume.kernelState(node))?.pid, before);
        assert.equal(field.load.failuresOf([1, 2]), []);
      }
      // A machine so slow that a daemon's start outlasts the node timeout: thrown out, by the book.
      await field.bringBack();
    },
  );
}

faults.proves(
  "The holder's daemon hangs while its kernel lives: the member takes over, and the holder cannot write any more",
  async (field) => {
    const holder = await field.holder();
    await field.stopDaemonUntilFenced(holder);
    assert.is.not(await field.holder(), holder);
    await faults.cannotWrite(holder);
    assert.equal(field.load.failuresOf([3 - holder]), []);
    await field.bringBack();
  },
);

faults.proves(
  "A member's daemon hangs while its kernel lives: it is evicted, and the holder goes on",
  async (field) => {
    const holder = await field.holder();
    await field.stopDaemonUntilFenced(3 - holder);
    assert.is(await field.holder(), holder);
    await faults.cannotWrite(3 - holder);
    await until("the holder alone is in the view", 30_000, async () => {
      const members = (await suite.volume.status(holder)).members;
      return Array.isArray(members) && members.length === 1 ? true : undefined;
    });
    assert.equal(field.load.failuresOf([holder]), []);
    await field.bringBack();
  },
);

faults.run();
