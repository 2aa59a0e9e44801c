// SPDX-License-Identifier: GPL-2.0-only
/** Proves single courses of the cluster core, seen from outside, on the simulated world (test/sim). */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { checkTimings, TIMINGS_DEFAULT } from "../../src/cluster/config.js";
import { Role } from "../../src/wire/abi.js";
import { Cluster, type ClusterOptions } from "../sim/cluster.js";
import type { Host } from "../sim/host.js";

async function on(
  options: Partial<ClusterOptions> & { hostCount: number },
  story: (cluster: Cluster, hosts: Host[]) => Promise<void>,
): Promise<void> {
  const cluster = new Cluster({ seed: 7, ...options });
  await story(cluster, cluster.hosts);
  for (const host of cluster.hosts) host.daemon?.core?.stop();
  assert.is(cluster.violation, null, cluster.storyLines.slice(-20).join("\n"));
}

const at = (hosts: Host[], index: number): Host => hosts[index] as Host;
const viewOf = (host: Host): readonly number[] =>
  host.daemon?.core?.snapshot().view?.members.map((m) => m.node) ?? [];

test("two nodes that start on a fresh XFS at the same instant become one holder and one member", async () => {
  for (let seed = 1; seed <= 30; seed++) {
    await on({ hostCount: 2, seed }, async (cluster, hosts) => {
      for (const host of hosts) host.mount();
      await cluster.pass(30_000, () => hosts.every((host) => host.serving()));
      assert.equal(hosts.map((host) => host.kernel.role).sort(), [Role.HOLDER, Role.MEMBER], `seed ${seed}`);
      assert.is(viewOf(at(hosts, 0)).length, 2);
      assert.equal(viewOf(at(hosts, 0)), viewOf(at(hosts, 1)));
      const holder = hosts.find((host) => host.kernel.role === Role.HOLDER);
      assert.is(cluster.target.reservation?.key, holder?.key);
    });
  }
});

test("a lone holder serves for long without anybody's acknowledgement, and releases everything when it leaves", async () => {
  await on({ hostCount: 1 }, async (cluster, hosts) => {
    const host = at(hosts, 0);
    host.mount();
    await cluster.pass(5000);
    for (let i = 0; i < 60; i++) {
      await cluster.pass(1000);
      assert.ok(host.serving());
    }
    host.unmount();
    await cluster.pass(10_000);
    assert.is(host.kernel.state, "idle");
    assert.is(cluster.target.keys.size, 0);
    assert.is(cluster.target.reservation, null);
  });
});

test("the holder's clean hand-over passes the reservation on without a gap, in order of rank", async () => {
  await on({ hostCount: 3 }, async (cluster, hosts) => {
    for (const host of hosts) {
      host.mount();
      await cluster.pass(10_000);
    }
    at(hosts, 0).unmount();
    let gap = false;
    await cluster.pass(20_000, () => {
      gap ||= cluster.target.reservation === null;
      return false;
    });
    assert.not(gap, "the reservation lapsed");
    assert.is(at(hosts, 0).kernel.state, "idle");
    assert.is(at(hosts, 1).kernel.role, Role.HOLDER);
    assert.is(cluster.target.reservation?.key, at(hosts, 1).key);
    assert.equal(viewOf(at(hosts, 2)), [at(hosts, 1).node, at(hosts, 2).node]);
    assert.ok(at(hosts, 1).serving() && at(hosts, 2).serving());
  });
});

test("a newcomer is told to the holder's kernel, which may know it as dead, before it can ask for anything", async () => {
  await on({ hostCount: 2, files: "kept" }, async (cluster, hosts) => {
    at(hosts, 0).mount();
    await cluster.pass(10_000);
    const { files } = at(hosts, 0).kernel;
    assert.ok(files);
    const told: [number, number, boolean][] = [];
    files.back = (node, incarnation) => told.push([node, incarnation, at(hosts, 1).serving()]);
    at(hosts, 1).mount();
    await cluster.pass(10_000, () => at(hosts, 1).serving());
    assert.equal(told, [[at(hosts, 1).node, at(hosts, 1).incarnation, false]]);
  });
});

test("a member that dies is fenced and put out after the node timeout; its next incarnation at once", async () => {
  await on({ hostCount: 2 }, async (cluster, hosts) => {
    at(hosts, 0).mount();
    await cluster.pass(10_000);
    at(hosts, 1).mount();
    await cluster.pass(10_000);
    const key = at(hosts, 1).key;
    at(hosts, 1).powerOff();
    await cluster.pass(10_000);
    assert.is(viewOf(at(hosts, 0)).length, 2, "put out before the node timeout");
    await cluster.pass(15_000);
    assert.is(viewOf(at(hosts, 0)).length, 1);
    assert.ok(cluster.target.preempted.has(key));
    at(hosts, 1).powerOn();
    at(hosts, 1).mount();
    await cluster.pass(10_000);
    assert.ok(at(hosts, 1).serving());
    at(hosts, 1).powerOff();
    at(hosts, 1).powerOn();
    at(hosts, 1).mount();
    await cluster.pass(13_500);
    assert.ok(at(hosts, 1).serving(), "the new incarnation had to wait for the node timeout");
  });
});

test("a daemon that is restarted keeps its slot and its key, as a member and as the holder", async () => {
  await on({ hostCount: 2 }, async (cluster, hosts) => {
    at(hosts, 0).mount();
    await cluster.pass(10_000);
    at(hosts, 1).mount();
    await cluster.pass(10_000);
    const slots = cluster.disk.header()?.members.map((m) => `${m.node}.${m.incarnation}@${m.slot}`);
    for (const host of [at(hosts, 1), at(hosts, 0)]) {
      const epoch = host.kernel.epoch;
      host.killDaemon();
      await cluster.pass(12_000);
      assert.ok(hosts.every((h) => h.serving()));
      assert.ok(host.kernel.epoch > epoch, "no view change took its locks back in");
    }
    assert.equal(
      cluster.disk.header()?.members.map((m) => `${m.node}.${m.incarnation}@${m.slot}`),
      slots,
    );
    assert.is(cluster.target.preempted.size, 0);
  });
});

test("a holder's restarted daemon whose first heartbeat takes longer than the node timeout serves in the end", async () => {
  for (let seed = 1; seed <= 8; seed++) {
    await on({ hostCount: 1, seed }, async (cluster, hosts) => {
      const host = at(hosts, 0);
      host.mount();
      await cluster.pass(10_000);
      const before = host.daemon;
      host.killDaemon();
      await cluster.pass(5000, () => host.daemon !== null && host.daemon !== before);
      host.beatLagMs = TIMINGS_DEFAULT.nodeTimeoutMs + 5000;
      await cluster.pass(host.beatLagMs);
      assert.not(host.serving());
      await cluster.pass(2 * TIMINGS_DEFAULT.nodeTimeoutMs, () => host.serving());
      assert.ok(host.serving(), `seed ${seed}: the view change never ends`);
    });
  }
});

test("a newcomer that waited long for its view does not take a member for dead that it had not listened to", async () => {
  for (let seed = 1; seed <= 24; seed++) {
    await on({ hostCount: 4, seed }, async (cluster, hosts) => {
      const [holder, successor, frozen, newcomer] = hosts as [Host, Host, Host, Host];
      for (const host of [holder, successor, frozen]) {
        host.mount();
        await cluster.pass(8000);
      }
      // The view change that takes the newcomer in waits for the frozen one; behind it the holder hands over.
      frozen.freeze(60_000);
      newcomer.mount();
      await cluster.pass(4000);
      holder.unmount();
      await cluster.pass(40_000, () => holder.kernel.state === "idle" && newcomer.serving());
      await cluster.pass(3000);
      assert.not(
        cluster.storyLines.some((line) => line.includes(`${newcomer.name} [error] the holder is dead`)),
        `seed ${seed}\n${cluster.storyLines.slice(-20).join("\n")}`,
      );
      assert.ok(newcomer.serving() && successor.serving(), `seed ${seed}`);
      assert.is(successor.kernel.role, Role.HOLDER);
    });
  }
});

test("a second host with the same UUID is refused, and the first one goes on", async () => {
  for (const incarnation of [0, 4]) {
    await on({ hostCount: 2 }, async (cluster, hosts) => {
      at(hosts, 1).node = at(hosts, 0).node;
      at(hosts, 1).incarnation = incarnation;
      at(hosts, 0).mount();
      await cluster.pass(10_000);
      at(hosts, 1).mount();
      await cluster.pass(20_000);
      assert.match(at(hosts, 1).failure, /^17 another host uses this volume under our node id/);
      assert.ok(at(hosts, 0).serving());
    });
  }
});

test("of two members that are cut from each other one is put out, and the others go on", async () => {
  await on({ hostCount: 3 }, async (cluster, hosts) => {
    for (const host of hosts) {
      host.mount();
      await cluster.pass(8000);
    }
    cluster.network.cut(at(hosts, 1), at(hosts, 2));
    await cluster.pass(45_000);
    assert.ok(at(hosts, 0).serving() && at(hosts, 1).serving());
    assert.ok(at(hosts, 2).kernel.fenced);
  });
});

test("two members that cannot reach each other hold the rest up for little more than a node timeout", async () => {
  await on({ hostCount: 3 }, async (cluster, hosts) => {
    for (const host of hosts) {
      host.mount();
      await cluster.pass(8000);
    }
    const cut_at = cluster.time.now;
    cluster.network.cut(at(hosts, 1), at(hosts, 2));
    await cluster.pass(45_000, () => viewOf(at(hosts, 1)).length === 2);
    const took_ms = cluster.time.now - cut_at;
    assert.is(viewOf(at(hosts, 1)).length, 2);
    assert.ok(took_ms < 19_000, `the rest waited for ${took_ms} ms`);
  });
});

test("two members that find each other again in time are both kept, and serve", async () => {
  await on({ hostCount: 3 }, async (cluster, hosts) => {
    for (const host of hosts) {
      host.mount();
      await cluster.pass(8000);
    }
    const [, one, other] = hosts;
    if (one === undefined || other === undefined) throw new Error("three hosts");
    cluster.network.cut(one, other);
    // Both have noticed, and the holder does not acknowledge one of them any more.
    const lost = (host: Host, peer: Host): boolean =>
      host.daemon?.core?.snapshot().connected.includes(peer.node) === false;
    await cluster.pass(20_000, () => lost(one, other) && lost(other, one));
    await cluster.pass(5000);
    cluster.network.healAll();
    await cluster.pass(40_000);
    assert.ok(hosts.every((host) => host.serving()));
    assert.is(viewOf(at(hosts, 0)).length, 3);
  });
});

test("fence=none elects by the header and heartbeats alone, hands over, and puts a dead member out", async () => {
  await on({ hostCount: 2, fence: "none" }, async (cluster, hosts) => {
    at(hosts, 0).mount();
    await cluster.pass(20_000);
    assert.is(at(hosts, 0).kernel.role, Role.HOLDER);
    at(hosts, 1).mount();
    await cluster.pass(20_000);
    assert.is(viewOf(at(hosts, 0)).length, 2);
    at(hosts, 0).unmount();
    await cluster.pass(20_000);
    assert.is(at(hosts, 1).kernel.role, Role.HOLDER);
    at(hosts, 0).mount();
    await cluster.pass(20_000);
    assert.is(viewOf(at(hosts, 1)).length, 2);
    at(hosts, 0).powerOff();
    await cluster.pass(30_000);
    assert.is(viewOf(at(hosts, 1)).length, 1);
    assert.ok(at(hosts, 1).serving());
  });
});

test("the last leaver keeps the reservation while an evicted node has not come back, and anybody can take it over", async () => {
  await on({ hostCount: 3 }, async (cluster, hosts) => {
    for (const host of hosts.slice(0, 2)) {
      host.mount();
      await cluster.pass(8000);
    }
    at(hosts, 1).powerOff();
    await cluster.pass(25_000);
    const key = at(hosts, 0).key;
    at(hosts, 0).unmount();
    await cluster.pass(10_000);
    assert.is(at(hosts, 0).kernel.state, "idle");
    assert.is(cluster.target.reservation?.key, key, "an evicted node's queued writes could land now");
    at(hosts, 2).mount();
    await cluster.pass(5000);
    assert.is(at(hosts, 2).kernel.role, Role.HOLDER, "a mount after a clean leave had to wait");
    at(hosts, 1).powerOn();
    at(hosts, 1).mount();
    await cluster.pass(15_000);
    assert.ok(at(hosts, 1).serving());
    for (const host of hosts.slice(1)) host.unmount();
    await cluster.pass(20_000);
    assert.is(cluster.target.reservation, null, "it has come back, so the reservation is released");
  });
});

test("a kernel that refuses its lock dump ends the daemon with an error that says so", async () => {
  const cluster = new Cluster({ seed: 3, hostCount: 1 });
  at(cluster.hosts, 0).refuseDump = true;
  at(cluster.hosts, 0).mount();
  await cluster.pass(20_000);
  assert.match(cluster.violation ?? "", /kernel refused LOCK_DUMP: errno 22 refused by the test/);
});

test("timings that contradict each other are refused with the two names", () => {
  checkTimings(TIMINGS_DEFAULT);
  const bad = (change: object, expected: RegExp): void => {
    assert.throws(() => checkTimings({ ...TIMINGS_DEFAULT, ...change }), expected);
  };
  bad({ heartbeatMs: 2500 }, /heartbeat \(2500 ms\) must not be longer than lease renewal/);
  bad({ renewMs: 5000 }, /lease renewal \(5000 ms\) must be shorter than the lease/);
  bad({ leaseMs: 14_000 }, /must be shorter than the node timeout/);
  bad({ startupMs: 1000 }, /start-up/);
  bad({ heartbeatMs: 0 }, /expected whole milliseconds/);
});

test.run();
