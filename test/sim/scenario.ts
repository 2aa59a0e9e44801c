// SPDX-License-Identifier: GPL-2.0-only
/**
 * One seed, one story: hosts mount at nearly the same time, then random faults and orders (mounts, unmounts, power
 * cuts, killed daemons, network cuts, stalled kernels), then quiet. The rules of cluster.ts hold at every event; at
 * the end everybody who is mounted must be in one view with a lease, and everybody must be able to leave.
 *
 * A dead holder is taken over: in the quiet, before anybody comes back, those who are mounted and not fenced serve again.
 */
import type { Mistake } from "../../src/cluster/state.js";
import type { PersistMistake } from "../../src/disk/lock_persister.js";
import { Cluster } from "./cluster.js";
import { type FilesMistake, PATIENCE_MS, type Way } from "./files.js";
import type { Host } from "./host.js";
import type { NexusKind } from "./world.js";

export interface Report {
  readonly seed: number;
  readonly violation: string | null;
  readonly story: readonly string[];
  readonly events: number;
  readonly commits: number;
  /** Of files: executed, and found done when they came again. */
  readonly changes: number;
  readonly replayed: number;
  readonly saved: number;
  readonly virtualMs: number;
  readonly hosts: number;
  /** How often each situation of SITUATIONS came about. */
  readonly situations: ReadonlyMap<string, number>;
}

export interface ScenarioOptions {
  readonly mistakes?: ReadonlySet<Mistake>;
  readonly persistMistakes?: ReadonlySet<PersistMistake>;
  readonly filesMistakes?: ReadonlySet<FilesMistake>;
  readonly nexus?: NexusKind;
  readonly verbose?: number;
  /** Random actions between the start and the quiet end. */
  readonly actionCount?: number;
}

/** One seed in three has no files: there nothing is in the way of an unmount. */
function filesOf(seed: number): { readonly files?: Way } {
  const files = ([null, "forced", "kept"] as const)[Math.floor(seed / 3) % 3] ?? null;
  return files === null ? {} : { files };
}

export async function runSeed(seed: number, options: ScenarioOptions = {}): Promise<Report> {
  const host_count = 2 + (seed % 3);
  const cluster = new Cluster({
    seed,
    hostCount: host_count,
    ...(options.mistakes === undefined ? {} : { mistakes: options.mistakes }),
    ...(options.persistMistakes === undefined ? {} : { persistMistakes: options.persistMistakes }),
    ...(options.filesMistakes === undefined ? {} : { filesMistakes: options.filesMistakes }),
    ...(options.nexus === undefined ? {} : { nexus: options.nexus }),
    ...filesOf(seed),
    verbose: options.verbose ?? 0,
  });
  const started_at = cluster.time.now;
  await play(cluster, options.actionCount ?? 10);
  for (const host of cluster.hosts) host.daemon?.core?.stop();
  return {
    seed,
    violation: cluster.violation,
    story: cluster.storyLines,
    events: cluster.time.events,
    commits: cluster.commits,
    changes: cluster.volume.changes,
    replayed: cluster.volume.replayed,
    saved: cluster.volume.saved,
    virtualMs: cluster.time.now - started_at,
    hosts: host_count,
    situations: cluster.situations,
  };
}

async function play(cluster: Cluster, actionCount: number): Promise<void> {
  const { random, hosts } = cluster;
  cluster.calm = false;
  const first = random.int(1, hosts.length);
  for (const host of hosts.slice(0, first))
    cluster.time.at(random.int(0, random.chance(0.5) ? 30 : 4000), () => host.mount());
  await cluster.pass(random.int(1000, 30_000));
  for (let i = 0; i < actionCount && cluster.violation === null; i++) {
    if (!random.chance(0.12) || !stage(cluster)) act(cluster);
    await cluster.pass(random.int(50, random.chance(0.5) ? 2000 : 25_000));
  }
  await quieten(cluster);
  await everybodyIn(cluster);
  await everybodyOut(cluster);
}

/** What a cluster must live through, whoever else is doing what; each is brought about on purpose, too. */
export const SITUATIONS = [
  "split of two",
  "split of three or more",
  "two members apart",
  "frozen, late",
  "holder back unnoticed",
  "all die, all return",
  "joins in a recovery",
] as const;

/** Brings one of them about. False: it cannot be had now. */
function stage(cluster: Cluster): boolean {
  const { random, hosts, network, time } = cluster;
  const situation = random.pick(SITUATIONS);
  const holder = cluster.holder();
  const serving = hosts.filter((host) => host.serving());
  const members = serving.filter((host) => host !== holder);
  if (holder === undefined || !serving.includes(holder) || members.length === 0) return false;
  const back = (host: Host, afterMs: number): void => {
    time.at(afterMs, () => {
      host.powerOn();
      host.mount();
    });
  };
  const count = (): void => {
    cluster.story(`-- ${situation}`);
    cluster.count(situation ?? "");
  };
  switch (situation) {
    case "split of two":
    case "split of three or more": {
      if ((situation === "split of two") !== (serving.length === 2)) return false;
      // One side is one host or more, with the holder or without.
      const side = serving.filter((_host, i) =>
        i === 0 ? true : i < serving.length - 1 && random.chance(0.3),
      );
      if (random.chance(0.5) && !side.includes(holder)) side.push(holder);
      if (side.length === serving.length) side.shift();
      count();
      for (const a of side) for (const b of hosts) if (!side.includes(b)) network.cut(a, b);
      if (random.chance(0.6)) time.at(random.int(1000, 40_000), () => network.healAll());
      return true;
    }
    case "two members apart": {
      const [a, b] = members;
      if (a === undefined || b === undefined) return false;
      count();
      network.cut(a, b);
      return true;
    }
    case "frozen, late": {
      // Longer than all wait for it: others have gone on without it.
      count();
      const { nodeTimeoutMs } = holder.timings;
      const ms = random.int(nodeTimeoutMs + 5000, 3 * nodeTimeoutMs);
      if (random.chance(0.5)) random.pick(members)?.freeze(ms);
      else cluster.volume.inTheMiddle(holder, 1000, () => holder.freeze(ms));
      return true;
    }
    case "holder back unnoticed":
      count();
      holder.powerOff();
      back(holder, random.int(0, holder.timings.nodeTimeoutMs / 2));
      return true;
    case "all die, all return":
      count();
      for (const host of hosts) if (host.powered) host.powerOff();
      for (const host of hosts) back(host, random.int(0, random.chance(0.5) ? 50 : 20_000));
      return true;
    case "joins in a recovery": {
      const third = hosts.find((host) => host !== holder && !serving.includes(host)) ?? members[1];
      if (third === undefined) return false;
      holder.powerOff();
      if (third.kernel.state !== "idle") third.powerOff();
      // Between the first suspicion and the end of the takeover.
      const { nodeTimeoutMs } = holder.timings;
      time.at(random.int(nodeTimeoutMs - 3000, nodeTimeoutMs + 4000), () => {
        third.powerOn();
        if (third.kernel.state !== "idle" || cluster.holder() !== undefined) return;
        count();
        third.mount();
      });
      return true;
    }
    default:
      return false;
  }
}

function act(cluster: Cluster): void {
  const { random, hosts, network } = cluster;
  const host = random.pick(hosts) as Host;
  const other = random.pick(hosts.filter((h) => h !== host)) as Host;
  const dice = random.int(0, 99);
  const holds = host.kernel.files?.xfs != null;
  if (host.powered && host.frozen) {
    if (dice < 20) host.powerOff();
  } else if (!host.powered) {
    host.powerOn();
    if (random.chance(0.8)) host.mount();
  } else if (host.kernel.state === "idle" && dice < 80) {
    host.mount();
  } else if (host.kernel.state === "running" && (host.kernel.fenced || dice < 30)) {
    host.unmount();
  } else if (dice < 45) {
    if (holds && random.chance(0.6)) {
      cluster.volume.inTheMiddle(host, 2000, () => host.powerOff());
      return;
    }
    if (!holds && host.kernel.files !== null && random.chance(0.6)) {
      cluster.volume.diesWaiting(host, 2000, () => host.powerOff());
      return;
    }
    host.powerOff();
    // Two at once; or back before anybody has noticed.
    if (random.chance(0.2) && hosts.length > 2) other.powerOff();
    if (random.chance(0.2)) {
      host.powerOn();
      host.mount();
    }
  } else if (dice < 50) {
    host.freeze(random.int(500, 40_000));
  } else if (dice < 53) {
    host.loseDisk(random.int(500, 40_000));
  } else if (dice < 65) {
    if (holds && random.chance(0.6)) cluster.volume.inTheMiddle(host, 2000, () => host.killDaemon());
    else host.killDaemon();
  } else if (dice < 75) {
    if (random.chance(0.4)) {
      cluster.story(`network cut from ${host.name} to ${other.name}, not back`);
      network.cutOneWay(host, other);
    } else {
      cluster.story(`network cut between ${host.name} and ${other.name}`);
      network.cut(host, other);
    }
  } else if (dice < 80) {
    cluster.story(`network of ${host.name} cut`);
    for (const h of hosts) if (h !== host) network.cut(host, h);
  } else if (dice < 88) {
    cluster.story("network heals");
    network.healAll();
  } else if (dice < 92) {
    // Within what the lease rules allow for (10 %). More happens only to a host that stood still for as long: freeze.
    host.leap(random.int(50, 300));
  } else {
    host.stall(random.int(1000, 45_000));
  }
}

/** No more faults; survivors of a dead holder must have taken it over; who is fenced unmounts. */
async function quieten(cluster: Cluster): Promise<void> {
  if (cluster.violation !== null) return;
  cluster.story("---- quiet");
  cluster.calm = true;
  cluster.network.healAll();
  for (const host of cluster.hosts) host.stallUntil = 0;
  await cluster.pass(90_000);
  const settled = (host: Host): boolean =>
    !host.powered || host.kernel.state !== "running" || host.kernel.fenced || host.serving();
  // A heartbeat may be late at any time, and a lease stand still for it.
  await cluster.pass(8000, () => cluster.hosts.every(settled));
  for (const host of cluster.hosts) {
    if (host.powered && host.kernel.state === "running" && !host.kernel.fenced && !host.serving()) {
      cluster.violate(`liveness: ${host.name} is neither served nor fenced after a long quiet`);
    }
    if (!host.serving() || host.kernel.state !== "running") continue;
    const late = host.kernel.locks?.late(PATIENCE_MS) ?? host.kernel.files?.late(PATIENCE_MS) ?? null;
    if (late !== null) cluster.violate(`rule 10: ${host.name} waits for ${late} in a long quiet`);
  }
  for (const host of cluster.hosts) {
    if (host.kernel.state === "running" && host.kernel.fenced) host.unmount();
  }
  await cluster.pass(90_000, () =>
    cluster.hosts.every((host) => !host.kernel.fenced || host.kernel.state !== "stopping"),
  );
  for (const host of cluster.hosts) {
    if (host.kernel.fenced && host.kernel.state !== "idle" && host.kernel.state !== "off") {
      cluster.violate(`liveness: ${host.name} is fenced and its unmount does not end`);
    }
  }
}

async function everybodyIn(cluster: Cluster): Promise<void> {
  for (let round = 0; round < 5 && cluster.violation === null; round++) {
    for (const host of cluster.hosts) {
      host.powerOn();
      if (host.kernel.state === "idle") host.mount();
      else if (host.kernel.state === "running" && host.kernel.fenced) host.unmount();
    }
    await cluster.pass(70_000, () => cluster.hosts.every((host) => host.serving()));
    if (cluster.hosts.every((host) => host.serving())) break;
  }
  if (cluster.violation !== null) return;
  await cluster.pass(10_000);
  await cluster.pass(8000, () => cluster.hosts.every((host) => host.serving()));
  const views = new Set<string>();
  for (const host of cluster.hosts) {
    const snapshot = host.daemon?.core?.snapshot();
    if (!host.serving() || snapshot?.view == null) {
      cluster.violate(
        `liveness: ${host.name} (${host.kernel.state}) is not serving at the end: ${host.failure}`,
      );
      return;
    }
    views.add(`${snapshot.view.epoch} ${snapshot.view.members.length}`);
    if (snapshot.view.members.length !== cluster.hosts.length) {
      cluster.violate(`liveness: ${host.name}'s view has ${snapshot.view.members.length} members at the end`);
    }
  }
  if (views.size > 1) cluster.violate(`liveness: views differ at the end: ${[...views].join(" / ")}`);
}

async function everybodyOut(cluster: Cluster): Promise<void> {
  if (cluster.violation !== null) return;
  cluster.story("---- everybody leaves");
  const { random } = cluster;
  for (const host of cluster.hosts)
    cluster.time.at(random.int(0, random.chance(0.3) ? 20 : 8000), () => host.unmount());
  await cluster.pass(9000);
  const out = (): boolean => cluster.hosts.every((host) => host.kernel.state === "idle");
  await cluster.pass(120_000, out);
  if (cluster.violation !== null) return;
  for (const host of cluster.hosts) {
    if (host.kernel.state !== "idle") cluster.violate(`liveness: ${host.name}'s unmount does not end`);
    if (host.kernel.fenced)
      cluster.violate(`liveness: ${host.name} was fenced while everybody left in good order`);
  }
  await cluster.pass(1000);
  const { keys, reservation } = cluster.target;
  if (keys.size > 0 || reservation !== null) {
    cluster.violate(
      `all have left, and the target still has ${keys.size} keys, reservation ${reservation?.key ?? "none"}`,
    );
  }
}
