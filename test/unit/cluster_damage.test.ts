// SPDX-License-Identifier: GPL-2.0-only
/**
 * Lockstate is wiped again and again while hosts mount, unmount, die, hang and lose their daemons, on the simulated world
 * (test/sim): no rule is broken, and in the end everybody serves.
 *
 * Weakness: what is wiped is header and heartbeats together; journal slots stay.
 */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { Cluster } from "../sim/cluster.js";
import type { Host } from "../sim/host.js";

const SEEDS = 24;
const ACTIONS = 8;

/** One random action: a wipe, or something that happens to a host. */
function act(cluster: Cluster): void {
  const { random, hosts } = cluster;
  const host = random.pick(hosts) as Host;
  const dice = random.int(0, 99);
  if (dice < 25) {
    cluster.story("lockstate is wiped");
    cluster.disk.damage();
  } else if (!host.powered) {
    host.powerOn();
    host.mount();
  } else if (host.kernel.state === "idle") host.mount();
  else if (host.kernel.fenced) host.unmount();
  else if (dice < 50) host.powerOff();
  else if (dice < 65) host.unmount();
  else if (dice < 75) host.killDaemon();
  else if (dice < 85) host.freeze(random.int(500, 30_000));
}

async function story(seed: number): Promise<Cluster> {
  const cluster = new Cluster({ seed, hostCount: 2 + (seed % 2) });
  const { random, hosts } = cluster;
  for (const host of hosts) {
    host.mount();
    await cluster.pass(random.int(10, 3000));
  }
  await cluster.pass(15_000);
  for (let i = 0; i < ACTIONS && cluster.violation === null; i++) {
    act(cluster);
    await cluster.pass(random.int(50, 20_000));
  }
  cluster.story("---- quiet");
  await cluster.pass(60_000);
  for (const host of hosts) {
    if (host.kernel.state === "running" && (host.kernel.fenced || !host.serving())) host.unmount();
  }
  await cluster.pass(60_000);
  for (let round = 0; round < 3; round++) {
    for (const host of hosts) {
      if (!host.powered) host.powerOn();
      if (host.kernel.state === "idle") host.mount();
    }
    await cluster.pass(90_000, () => hosts.every((host) => host.serving()));
  }
  for (const host of hosts) host.daemon?.core?.stop();
  return cluster;
}

test(`lockstate is wiped at any moment: ${SEEDS} seeds break no rule and end with everybody served`, async () => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const cluster = await story(seed);
    const told = `seed ${seed}\n${cluster.storyLines.slice(-40).join("\n")}`;
    assert.is(cluster.violation, null, told);
    assert.ok(
      cluster.hosts.every((host) => host.serving()),
      `somebody is not served: ${told}`,
    );
  }
});

test.run();
