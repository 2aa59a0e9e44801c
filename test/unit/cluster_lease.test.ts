// SPDX-License-Identifier: GPL-2.0-only
/** Proves what the lease keeper takes for silence, on the clock of the simulated world (test/sim). */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { TIMINGS_DEFAULT } from "../../src/cluster/config.js";
import { LeaseKeeper } from "../../src/cluster/lease.js";
import { ClusterState } from "../../src/cluster/state.js";
import type { HeartbeatRecord } from "../../src/disk/record.js";
import { Role } from "../../src/wire/abi.js";
import { Cluster } from "../sim/cluster.js";
import { Daemon, type Host } from "../sim/host.js";
import { VOLUME } from "../sim/world.js";

const OTHER = { node: 0x77, incarnation: 3, slot: 1, address: "10.0.0.9", port: 7601, role: Role.MEMBER };

function record(sequence: bigint): HeartbeatRecord {
  const { node, incarnation, address, port, role } = OTHER;
  const uuid = "00000000-0000-4000-8000-000000000077";
  const common = { volume: VOLUME, epoch: 1n, node, incarnation, uuid, role, port, address };
  return { ...common, sequence, unreachableSlots: 0n, hostName: "other" };
}

function keeper(): { cluster: Cluster; lease: LeaseKeeper; state: ClusterState; now: () => number } {
  const cluster = new Cluster({ seed: 1, hostCount: 1 });
  const host = cluster.hosts[0] as Host;
  const { node, uuid } = host;
  const config = {
    self: { node, incarnation: 1, uuid, address: "10.0.0.1", port: 7601, hostName: host.name },
    timings: TIMINGS_DEFAULT,
    fence: "scsi" as const,
    rejoin: null,
    lockRecordCount: 1024,
  };
  const state = new ClusterState(config, host.ports(new Daemon(1), host.kernel), new Set());
  const lease = new LeaseKeeper(state, {
    evict: () => undefined,
    isBeingEvicted: () => false,
    isLeaving: () => false,
    stepDown: () => undefined,
    holderDead: () => undefined,
  });
  return { cluster, lease, state, now: () => host.now() };
}

test("who reads heartbeats for the first time has not listened before: nobody is dead by that", async () => {
  const { cluster, lease, now } = keeper();
  lease.watch([OTHER]);
  await cluster.pass(TIMINGS_DEFAULT.nodeTimeoutMs + 1000);
  lease.heartbeatsRead([null, record(5n)], now());
  assert.not(lease.isDead(OTHER.node, OTHER.incarnation));
});

test("a heartbeat that stands still from the first read on is dead after the node timeout, and not one that moves", async () => {
  for (const moves of [false, true]) {
    const { cluster, lease, now } = keeper();
    lease.watch([OTHER]);
    let sequence = 5n;
    for (let ms = 0; ms <= TIMINGS_DEFAULT.nodeTimeoutMs; ms += TIMINGS_DEFAULT.heartbeatMs) {
      lease.heartbeatsRead([null, record(moves ? ++sequence : sequence)], now());
      await cluster.pass(TIMINGS_DEFAULT.heartbeatMs);
    }
    assert.is(lease.isDead(OTHER.node, OTHER.incarnation), !moves);
  }
});

test("the first heartbeat under another holder renews, however shortly ago the dead one was asked", async () => {
  const { cluster, lease, now } = keeper();
  const { state } = lease;
  const { address, port, incarnation } = state.config.self;
  const self = { node: state.self, incarnation, slot: 0, address, port, role: Role.MEMBER };
  state.view = { epoch: 1n, holder: OTHER.node, members: [{ ...OTHER, role: Role.HOLDER }, self] };
  lease.heartbeatWritten(now());
  assert.is(lease.leaseUntil, 0, "the dead holder has answered");
  await cluster.pass(100);
  state.next = { epoch: 2n, holder: state.self, members: [{ ...self, role: Role.HOLDER }] };
  lease.heartbeatWritten(now());
  assert.ok(lease.leaseUntil > now(), "the taker-over waits for its next heartbeat");
});

test("what was just acknowledged runs, though the heartbeat behind it has not been read yet", async () => {
  const { cluster, lease, state, now } = keeper();
  state.role = Role.HOLDER;
  state.view = { epoch: 5n, holder: state.self, members: [OTHER] };
  state.connected.set(OTHER.node, OTHER.incarnation);
  lease.watch([OTHER]);
  lease.heartbeatsRead([null, record(5n)], now());
  await cluster.pass(TIMINGS_DEFAULT.nodeTimeoutMs - 1000);
  state.heartbeatWrittenAt = now();
  lease.renewed(OTHER.node, { kind: "LEASE_RENEW", seq: 1n, unreachable: [] });
  assert.ok(lease.leaseOverAt(OTHER) >= now() + TIMINGS_DEFAULT.leaseMs);
});

test.run();
