// SPDX-License-Identifier: GPL-2.0-only
/**
 * Finds circles of waiting control clients over several resources and nodes, and breaks each by denying its
 * youngest wait with EDEADLK. Edge chasing after Chandy, Misra and Haas; one detector per node, over the locks of
 * its control clients (as their owner) and the queues it masters.
 *
 *   owner A: client 1 has waited a while for R ── ASK path [1 waits for R] ──► master of R
 *   master of R: R is held by lock 7 of node B ── CHASE path, blockers [7] ──► owner B
 *   owner B: lock 7 is client 2's, and it waits for S ── ASK path [1 for R, 2 for S] ──► master of S ... CHASE ──► A
 *   owner A: the blocker is client 1's own: a circle. The same circle twice in a row ── BREAK ──► the youngest's owner
 *
 * Why twice: every wait of the circle is seen outstanding by its owner in both rounds, so all were outstanding at
 * the moment between them; a waiting client lets nothing go and lock ids never come twice, so all edges stood then
 * too. (It holds for clients that wait with one thread; one that lets go in another may be denied needlessly.)
 * Every detector that sees a circle picks the same victim: the latest `sinceMs`, ties by node and lock id.
 *
 * Limits: a path of PROBE_PATH_MAX waits (longer circles are left to time-outs), PROBE_BLOCKERS_MAX blockers of a
 * wait per node, VISITS_MAX clients remembered; what is over them is dropped and counted, and asked again later.
 *
 * Known weakness: wall clocks that differ make a wait look older or younger than it is; kernel locks take no part.
 */
import { PROBE, PROBE_BLOCKERS_MAX, PROBE_PATH_MAX, type Probe, type ProbeWait } from "../wire/probe.js";
import type { LockOwner } from "./engine.js";

/** What a client waits for; `via` is filled in on the way. */
export type Wait = Omit<ProbeWait, "via">;

/** A client with locks or waits of this node. */
export interface WaitingClient {
  readonly client: number;
  readonly waits: readonly Wait[];
}

export interface DeadlockTargets {
  readonly self: number;
  /** null: no view. */
  masterOf(wait: Wait): number | null;
  /** As LockEngine.blockersOf. */
  blockersOf(wait: Wait, countMax: number): readonly LockOwner[];
  /** The client that owns this lock of this node, held or waiting; null when the lock is gone. */
  clientOf(lockId: bigint): WaitingClient | null;
  /** To another node; may be lost. */
  send(node: number, probe: Probe): void;
  /** Deny this wait of this node with EDEADLK, if it is still outstanding. */
  break(lockId: bigint, seq: number, circle: readonly ProbeWait[]): void;
}

/** Clients visited that are remembered, over all rounds. */
const VISITS_MAX = 8192;
/** Blockers of one wait that are followed. */
const BLOCKERS_MAX = 1024;
/** Circles of one wait that are remembered. */
const CIRCLES_MAX = 64;
/** Own messages answered by own messages, at most, before the rest is dropped. */
const LOCAL_MAX = 100_000;

/** What the rounds of one wait have found so far. */
interface Suspicion {
  /** Round in which a circle was seen first. */
  readonly circles: Map<string, number>;
  /** The round that a second look was begun for. */
  again: number;
  /** The round that had a circle broken: others may be gone with it. */
  broken: number;
}

export class DeadlockDetector {
  readonly #targets: DeadlockTargets;
  readonly #visited = new Set<string>();
  readonly #suspects = new Map<string, Suspicion>();
  readonly #local: Probe[] = [];
  #round = 0;
  #busy = false;
  /** Circles broken on behalf of this node's waits. */
  found = 0;
  /** Probes dropped at a limit. */
  dropped = 0;

  constructor(targets: DeadlockTargets) {
    this.#targets = targets;
  }

  /** Looks whether this wait of this node stands in a circle. Call it when it has lasted a while, and again. */
  start(wait: Wait): void {
    this.#round = (this.#round + 1) >>> 0;
    this.#ask({ type: PROBE.ASK, round: this.#round, path: [{ ...wait, via: 0n }], blockers: [] });
    this.#drain();
  }

  /** A wait is over: what was found about it is void. */
  forget(wait: Pick<Wait, "lockId" | "seq">): void {
    this.#suspects.delete(keyOf(wait));
  }

  /** A message of another node, `from`; one that cannot be true is dropped. */
  receive(from: number, probe: Probe): void {
    const last = probe.path[probe.path.length - 1];
    // Only the owner of the last wait asks about it.
    if (probe.type === PROBE.ASK && last?.node !== from) return;
    this.#take(probe);
    this.#drain();
  }

  #send(node: number, probe: Probe): void {
    if (node !== this.#targets.self) this.#targets.send(node, probe);
    else if (this.#local.length < LOCAL_MAX) this.#local.push(probe);
    else this.dropped++;
  }

  /** What this node tells itself, without recursion. */
  #drain(): void {
    if (this.#busy) return;
    this.#busy = true;
    try {
      for (let probe = this.#local.shift(); probe !== undefined; probe = this.#local.shift())
        this.#take(probe);
    } finally {
      this.#busy = false;
    }
  }

  #take(probe: Probe): void {
    if (probe.type === PROBE.ASK) this.#answer(probe);
    else if (probe.type === PROBE.CHASE) for (const blocker of probe.blockers) this.#chase(probe, blocker);
    else this.#break(probe);
  }

  #ask(probe: Probe): void {
    const last = probe.path[probe.path.length - 1];
    const master = last === undefined ? null : this.#targets.masterOf(last);
    if (master !== null) this.#send(master, probe);
  }

  /** As the master: on to the owners of what is in the way. */
  #answer(probe: Probe): void {
    const last = probe.path[probe.path.length - 1];
    if (last === undefined) return;
    const byNode = new Map<number, bigint[]>();
    for (const { node, lockId } of this.#targets.blockersOf(last, BLOCKERS_MAX)) {
      const ids = byNode.get(node) ?? [];
      byNode.set(node, ids);
      if (ids.length < PROBE_BLOCKERS_MAX) ids.push(lockId);
      else this.dropped++;
    }
    for (const [node, blockers] of byNode) this.#send(node, { ...probe, type: PROBE.CHASE, blockers });
  }

  /** As the owner of a lock in the way: a circle, or on to what its client waits for. */
  #chase(probe: Probe, blocker: bigint): void {
    const { self } = this.#targets;
    const [first] = probe.path;
    const owner = this.#targets.clientOf(blocker);
    if (owner === null || first === undefined) return;
    if (first.node === self && this.#targets.clientOf(first.lockId)?.client === owner.client) {
      // The client may wait for more than one thing: the circle goes through the wait that asked.
      const asking = owner.waits.some((wait) => wait.lockId === first.lockId && wait.seq === first.seq);
      if (asking) this.#circle(probe, blocker);
      return;
    }
    const visit = `${first.node}:${keyOf(first)}:${probe.round}:${owner.client}`;
    if (this.#visited.has(visit)) return;
    if (this.#visited.size >= VISITS_MAX) this.#visited.clear();
    this.#visited.add(visit);
    for (const wait of owner.waits) {
      if (probe.path.length >= PROBE_PATH_MAX) {
        this.dropped++;
        return;
      }
      const path = [...probe.path, { ...wait, via: blocker }];
      this.#ask({ type: PROBE.ASK, round: probe.round, path, blockers: [] });
    }
  }

  #circle(probe: Probe, closing: bigint): void {
    const [first] = probe.path;
    if (first === undefined) return;
    const key = keyOf(first);
    const circle = `${probe.path.map((wait) => `${wait.node}:${keyOf(wait)}<${wait.via}`).join(" ")} ${closing}`;
    const suspicion = this.#suspects.get(key) ?? { circles: new Map<string, number>(), again: 0, broken: 0 };
    this.#suspects.set(key, suspicion);
    const seen = suspicion.circles.get(circle);
    if (seen === undefined) {
      if (suspicion.circles.size >= CIRCLES_MAX) suspicion.circles.clear();
      suspicion.circles.set(circle, probe.round);
      if (suspicion.again === probe.round) return;
      suspicion.again = probe.round;
      const { via: _via, ...wait } = first;
      this.start(wait);
      return;
    }
    // The same round twice proves nothing; and one victim a round: it may stand in the other circles, too.
    if (seen === probe.round || suspicion.broken === probe.round) return;
    suspicion.broken = probe.round;
    suspicion.circles.delete(circle);
    this.found++;
    const victim = probe.path.reduce((young, wait) => (isYounger(wait, young) ? wait : young), first);
    this.#send(victim.node, { ...probe, type: PROBE.BREAK, blockers: [] });
  }

  #break(probe: Probe): void {
    const [first] = probe.path;
    if (first === undefined) return;
    const victim = probe.path.reduce((young, wait) => (isYounger(wait, young) ? wait : young), first);
    if (victim.node === this.#targets.self) this.#targets.break(victim.lockId, victim.seq, probe.path);
  }
}

function keyOf(wait: Pick<Wait, "lockId" | "seq">): string {
  return `${wait.lockId}.${wait.seq}`;
}

function isYounger(a: ProbeWait, b: ProbeWait): boolean {
  if (a.sinceMs !== b.sinceMs) return a.sinceMs > b.sinceMs;
  if (a.node !== b.node) return a.node > b.node;
  return a.lockId > b.lockId;
}

/** The circle as a sentence: who waits for what, in turn. */
export function describeCircle(circle: readonly ProbeWait[]): string {
  return circle.map((wait) => `node ${wait.node.toString(16)} waits for ${wait.name}`).join(", ");
}
