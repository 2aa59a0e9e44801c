// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proves what becomes of keys and reservation while nodes are mounted, on the simulated world (test/sim): taken away by
 * others, lost by the target, waited for after a plain PREEMPT. That no fenced node registers again is a rule of the
 * simulated target itself.
 */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { TIMINGS_DEFAULT } from "../../src/cluster/config.js";
import { Role } from "../../src/wire/abi.js";
import { Cluster } from "../sim/cluster.js";
import type { Host } from "../sim/host.js";

const SEEDS = [1, 2, 3, 4, 5, 6, 7, 8];
const STRANGER = 0xdead_beefn;

/** Hosts mounted one after the other: the first one is the holder. */
async function course(
  hostCount: number,
  story: (cluster: Cluster, hosts: readonly [Host, Host, Host]) => Promise<void>,
): Promise<void> {
  for (const seed of SEEDS) {
    const cluster = new Cluster({ seed, hostCount: 3 });
    const [a, b, c] = cluster.hosts as [Host, Host, Host];
    try {
      for (const host of cluster.hosts.slice(0, hostCount)) {
        host.mount();
        await cluster.pass(15_000, () => host.serving());
        assert.ok(host.serving(), `${host.name} did not mount: ${host.failure}`);
      }
      await cluster.pass(3000);
      assert.is(a.kernel.role, Role.HOLDER);
      await story(cluster, [a, b, c]);
      assert.is(cluster.violation, null);
    } catch (error) {
      console.error(`seed ${seed}: ${cluster.violation}\n${cluster.storyLines.slice(-40).join("\n")}`);
      throw error;
    } finally {
      for (const host of cluster.hosts) host.daemon?.core?.stop();
    }
  }
}

/** Somebody who is not of the cluster takes a node's key away. */
function preemptFromOutside(cluster: Cluster, victim: Host): void {
  cluster.target.register("stranger", STRANGER);
  assert.ok(cluster.target.preempt("stranger", STRANGER, victim.key));
}

test("a target that forgets everything is armed again by those who are mounted, and nobody loses the mount", async () => {
  await course(3, async (cluster, hosts) => {
    cluster.target.restart();
    let all_before_reservation: boolean | null = null;
    await cluster.pass(20_000, () => {
      if (cluster.target.reservation !== null)
        all_before_reservation ??= hosts.every((host) => host.isRegistered());
      return false;
    });
    assert.is(all_before_reservation, true, "reserved while a member had no key: its next write is refused");
    assert.is(cluster.target.reservation?.key, hosts[0].key);
    for (const host of hosts) assert.ok(host.serving() && host.isRegistered() && !host.kernel.fenced);
    assert.is(hosts[0].kernel.role, Role.HOLDER);
  });
});

test("a reservation that alone is lost is taken again by the holder", async () => {
  await course(2, async (cluster, [holder, member]) => {
    cluster.target.reservation = null;
    await cluster.pass(8000);
    assert.ok(!cluster.target.mayWrite("stranger"), "nobody has the reservation");
    assert.ok(cluster.target.mayWrite(holder.nexus));
    assert.ok(holder.serving() && member.serving());
  });
});

test("a member whose key was taken from outside is fenced within two heartbeats, and may mount again", async () => {
  await course(2, async (cluster, [holder, member]) => {
    preemptFromOutside(cluster, member);
    await cluster.pass(2 * TIMINGS_DEFAULT.heartbeatMs + 500);
    assert.ok(member.kernel.fenced);
    assert.not(member.isRegistered());
    await cluster.pass(40_000);
    assert.ok(holder.serving() && !holder.kernel.fenced);
    member.unmount();
    await cluster.pass(20_000, () => member.kernel.state === "idle");
    member.mount();
    await cluster.pass(30_000, () => member.serving());
    assert.ok(member.serving(), member.failure);
  });
});

test("a holder whose key was taken from outside is fenced; when the stranger has left a member takes over", async () => {
  await course(2, async (cluster, [holder, member]) => {
    preemptFromOutside(cluster, holder);
    await cluster.pass(2 * TIMINGS_DEFAULT.heartbeatMs + 500);
    assert.ok(holder.kernel.fenced);
    await cluster.pass(30_000);
    assert.not(member.kernel.role === Role.HOLDER, "took over while a stranger had the reservation");
    assert.ok(cluster.target.unregister("stranger", STRANGER));
    await cluster.pass(20_000, () => member.serving());
    assert.ok(member.serving() && member.kernel.role === Role.HOLDER);
    assert.is(cluster.target.reservation?.key, member.key);
  });
});

test("an evicted node that wakes up after the target has forgotten everything stays fenced", async () => {
  await course(2, async (cluster, [holder, member]) => {
    member.freeze(60_000);
    await cluster.pass(40_000);
    assert.not(member.isRegistered());
    cluster.target.restart();
    await cluster.pass(15_000);
    assert.is(
      cluster.target.reservation?.key,
      holder.key,
      "not armed again at once, with an evicted node about",
    );
    await cluster.pass(30_000);
    assert.ok(member.kernel.fenced && !member.isRegistered());
    assert.ok(holder.serving());
  });
});

test("a holder that was taken over does not arm a forgetful target again when it wakes up; its successor does", async () => {
  await course(2, async (cluster, [old, successor]) => {
    old.freeze(60_000);
    await cluster.pass(45_000);
    assert.is(successor.kernel.role, Role.HOLDER);
    cluster.target.restart();
    await cluster.pass(40_000);
    assert.ok(old.kernel.fenced && !old.isRegistered());
    assert.is(cluster.target.reservation?.key, successor.key);
    assert.ok(successor.serving());
  });
});

test("when the holder dies and the target forgets everything, a survivor reserves and takes over", async () => {
  await course(3, async (cluster, [dead, b, c]) => {
    cluster.target.restart();
    dead.powerOff();
    await cluster.pass(60_000, () => b.serving() || c.serving());
    assert.ok(b.serving() || c.serving());
    await cluster.pass(20_000);
    const owner = cluster.target.reservation?.key;
    assert.ok(owner === b.key || owner === c.key);
    for (const host of [b, c]) assert.ok(host.serving() !== host.kernel.fenced, `${host.name} hangs`);
  });
});

test("who mounts while the target has lost the reservation of a living cluster waits, and joins", async () => {
  await course(2, async (cluster, [holder, member, newcomer]) => {
    cluster.target.restart();
    newcomer.mount();
    await cluster.pass(40_000, () => newcomer.serving());
    assert.ok(newcomer.serving(), newcomer.failure);
    assert.is(newcomer.kernel.role, Role.MEMBER);
    assert.ok(holder.serving() && member.serving());
    assert.is(cluster.target.reservation?.key, holder.key);
  });
});

test("who cannot read lockstate while the target has lost the reservation does not take it from a living cluster", async () => {
  await course(2, async (cluster, [holder, member, newcomer]) => {
    cluster.target.restart();
    newcomer.lockstateUnreadable = true;
    newcomer.mount();
    await cluster.pass(20_000);
    assert.ok(holder.serving() && member.serving());
    assert.is(cluster.target.reservation?.key, holder.key);
    newcomer.lockstateUnreadable = false;
    await cluster.pass(20_000, () => newcomer.serving());
    assert.ok(newcomer.serving(), newcomer.failure);
    assert.is(newcomer.kernel.role, Role.MEMBER);
  });
});

test("lockstate that nobody can read, and a reservation that nobody has, is waited for and then mounted", async () => {
  await course(1, async (cluster, [holder, newcomer]) => {
    holder.powerOff();
    cluster.target.restart();
    newcomer.lockstateUnreadable = true;
    newcomer.mount();
    await cluster.pass(0.7 * TIMINGS_DEFAULT.startupMs);
    assert.is(cluster.target.reservation, null);
    await cluster.pass(0.2 * TIMINGS_DEFAULT.startupMs, () => newcomer.kernel.xfs);
    assert.ok(newcomer.kernel.xfs, newcomer.failure);
    newcomer.lockstateUnreadable = false;
    await cluster.pass(20_000, () => newcomer.serving());
    assert.ok(newcomer.serving(), newcomer.failure);
  });
});

test("who finds the header damaged and the reservation lost does not take it while somebody heartbeats", async () => {
  await course(2, async (cluster, [holder, member, newcomer]) => {
    cluster.target.restart();
    cluster.disk.damage();
    newcomer.mount();
    await cluster.pass(60_000, () => newcomer.serving());
    assert.ok(newcomer.serving(), newcomer.failure);
    assert.is(newcomer.kernel.role, Role.MEMBER);
    assert.ok(holder.serving() && member.serving() && !holder.kernel.fenced && !member.kernel.fenced);
  });
});

test("a holder that had only stood still finds itself fenced, though the one that took its place has left", async () => {
  await course(1, async (cluster, [sleeper, newcomer]) => {
    sleeper.freeze(90_000);
    newcomer.mount();
    await cluster.pass(50_000, () => newcomer.serving());
    assert.ok(newcomer.serving(), newcomer.failure);
    const { key } = newcomer;
    newcomer.unmount();
    await cluster.pass(10_000, () => newcomer.kernel.state === "idle");
    assert.is(newcomer.kernel.state, "idle");
    assert.is(cluster.target.reservation?.key, key, "released while the sleeper's writes could land");
    await cluster.pass(90_000, () => sleeper.kernel.fenced);
    assert.ok(sleeper.kernel.fenced && !sleeper.serving());
  });
});

test("a newcomer that preempts the key of a holder that has just released the reservation mounts with it in its hand", async () => {
  await course(2, async (cluster, [holder, dead, newcomer]) => {
    // A dead member that has not come back makes the last leaver leave its key and the reservation behind.
    dead.powerOff();
    await cluster.pass(30_000, () => cluster.target.preempted.has(dead.key));
    await cluster.pass(5000);
    const { key } = holder;
    holder.unmount();
    await cluster.pass(10_000, () => holder.kernel.state === "idle");
    assert.is(cluster.target.reservation?.key, key);
    const preempt = cluster.target.preempt.bind(cluster.target);
    cluster.target.preempt = (nexus, own, victim) => {
      if (victim === key) cluster.target.release(holder.nexus, key);
      return preempt(nexus, own, victim);
    };
    newcomer.mount();
    let mounted_without = false;
    await cluster.pass(30_000, () => {
      mounted_without ||= newcomer.kernel.xfs && cluster.target.reservation?.key !== newcomer.key;
      return newcomer.serving();
    });
    assert.not(mounted_without, "the XFS is mounted without the reservation");
    assert.ok(newcomer.serving(), newcomer.failure);
    assert.ok(cluster.target.preempted.has(key));
  });
});

test("after a plain PREEMPT of a dead holder the XFS is mounted when the drain time is over, not before", async () => {
  let without_abort = 0;
  await course(2, async (cluster, [dead, winner]) => {
    if (!cluster.target.lacksAbort) return;
    without_abort++;
    const { key } = dead;
    dead.powerOff();
    let preempted_at = 0;
    await cluster.pass(60_000, () => {
      if (cluster.target.preempted.has(key) && preempted_at === 0) preempted_at = cluster.time.now;
      return winner.kernel.xfs;
    });
    assert.ok(winner.kernel.xfs);
    assert.ok(
      cluster.time.now - preempted_at >= TIMINGS_DEFAULT.drainMs,
      "mounted while writes could still land",
    );
  });
  assert.ok(without_abort > 0);
});

test("after a plain PREEMPT of a dead member nobody gets what it held before the drain time is over", async () => {
  let without_abort = 0;
  await course(2, async (cluster, [holder, dead]) => {
    if (!cluster.target.lacksAbort) return;
    without_abort++;
    const { key } = dead;
    dead.powerOff();
    let preempted_at = 0;
    await cluster.pass(60_000, () => {
      if (cluster.target.preempted.has(key) && preempted_at === 0) preempted_at = cluster.time.now;
      return holder.daemon?.core?.snapshot().view?.members.length === 1;
    });
    assert.ok(preempted_at > 0 && cluster.time.now - preempted_at >= TIMINGS_DEFAULT.drainMs);
  });
  assert.ok(without_abort > 0);
});

test("a mount is refused while another volume is in use on the LUN, and registers nothing", async () => {
  const cluster = new Cluster({ seed: 1, hostCount: 1 });
  const host = cluster.hosts[0] as Host;
  host.otherVolume = "/dev/sda1 (XFS 0b4ee3cc, nodes 00000001)";
  host.mount();
  await cluster.pass(20_000, () => host.failure !== "");
  assert.match(host.failure, /^16 .*\/dev\/sda1.*one mxfs volume per LUN/);
  assert.is(cluster.target.generation, 0);
  host.otherVolume = null;
  host.mount();
  await cluster.pass(20_000, () => host.serving());
  assert.ok(host.serving(), host.failure);
  host.daemon?.core?.stop();
});

test("a mount on a device without reservations is refused with the reason", async () => {
  const cluster = new Cluster({ seed: 1, hostCount: 1 });
  const host = cluster.hosts[0] as Host;
  host.noReservations = "/dev/vda has no SCSI-3 persistent reservations";
  host.mount();
  await cluster.pass(20_000, () => host.failure !== "");
  assert.match(host.failure, /^71 .*no SCSI-3 persistent reservations/);
  host.daemon?.core?.stop();
});

test.run();
