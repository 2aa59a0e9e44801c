// SPDX-License-Identifier: GPL-2.0-only
//
// profile=fast: the same death in a quarter of the time. The phases come from the daemon's own report; the test says
// where the time went and asserts on order and outcome, not on time.
//
// Weakness: emulated machines on a busy host may be slower than these timings allow, and throw each other out; so there
// is no load here but one file and one lock, and who is put out while it joins tries again.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { FENCING_SAYS, until, VolumeError } from "../../lab/volume.js";
import { MOUNTPOINT, Suite } from "./mxfs_suite.js";

const FAST = "profile=fast";

const suite = new Suite("mxfs-faults-fast", { mounted: false, nodes: 2, memoryMib: 768 });

/** A newcomer that does not answer within the node timeout is put out, and may come again. */
async function join(node: number): Promise<void> {
  await until(
    `node ${node} has joined`,
    120_000,
    async () => {
      const { status, said } = await suite.volume.tryMount(node, FAST);
      if (status !== 0 && !/evicted|fenced|Stale file handle/.test(said)) throw new VolumeError(said);
      return status === 0 ? true : undefined;
    },
    1000,
  );
}

suite.proves(
  "With profile=fast a power cut of the holder is survived, and status says where the time went",
  async () => {
    const { lab, volume } = suite;
    await volume.mount(1, FAST);
    await join(2);
    assert.match(
      await lab.run(2, "cat /proc/mounts"),
      /mxfs .*heartbeat=500,renew=500,lease=1600,node_timeout=3600/,
    );
    assert.is(await volume.role(1), "holder");
    await lab.run(2, `echo kept >${MOUNTPOINT}/file && sync ${MOUNTPOINT}/file`);
    const held = volume.hold(2, ["mxfs-work", "hold", `${MOUNTPOINT}/lock`, "flock"]);
    assert.is(await held.first, "held");
    const began = Date.now();
    lab.kill(1);
    assert.is(await lab.run(2, `mkdir ${MOUNTPOINT}/after && cat ${MOUNTPOINT}/file`), "kept\n");
    const waited = Date.now() - began;
    assert.is(await volume.role(2), "holder");
    const status = await until("status has the recovery", 30_000, async () => {
      const now = await volume.status(2);
      return now.lastRecovery === null ? undefined : now;
    });
    process.stderr.write(`    mkdir waited ${waited} ms: ${JSON.stringify(status.lastRecovery)}\n`);
    const report = status.lastRecovery as Record<string, unknown>;
    assert.is(report.survivors, 1);
    for (const name of [
      "silentMs",
      "electMs",
      "leaseMs",
      "fenceMs",
      "mountMs",
      "headerMs",
      "viewMs",
      "totalMs",
    ]) {
      assert.type(report[name], "number", name);
    }
    assert.ok(Number(report.silentMs) >= 3600, "nobody is dead before the node timeout");
    const journals = status.journals as readonly Record<string, unknown>[];
    assert.equal(
      journals.map((row) => row.state),
      ["free", "holder"],
    );
    assert.is(await held.letGo(), 0);
    await lab.start(1);
    await volume.prepare(1);
    await join(1);
    assert.is(await volume.role(1), "member");
    await volume.umountAll();
    await volume.checkXfs(1);
  },
  { expected: FENCING_SAYS },
);

test.run();
