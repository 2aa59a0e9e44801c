// SPDX-License-Identifier: GPL-2.0-only
/**
 * What the parts of the cluster core share: the node's own standing, the view, who is connected, the header, and one
 * condition variable. Events change a field and poke(); flows (start-up, view change, hand-over) are async functions
 * that read from top to bottom and wait with until(). A flow never sees half an event, since events are synchronous.
 *
 * Protocol: after fence() or halt() every until() throws Halted, so a flow ends at its next wait; a flow that awaits
 * a port calls alive() behind it, for the same end.
 *
 * Known weakness: every poke() evaluates every waiter's predicate; there are a handful of waiters at most.
 */
import type { DiskHeader, HeaderMember, LockstateLocation } from "../disk/lockstate.js";
import { HEADER_MEMBER_STATE } from "../disk/lockstate.js";
import type { HeartbeatRecord } from "../disk/record.js";
import { Role } from "../wire/abi.js";
import type { ClusterMessage, MemberInfo } from "../wire/messages.js";
import { type ClusterConfig, leaseGraceMs, type Timings } from "./config.js";
import { type LogFields, type LogLevel, type Ports, prKey, type TimerHandle, type View } from "./ports.js";

/** Thrown into flows when the node is fenced or the daemon stops: not an error, the flow is simply over. */
export class Halted extends Error {
  constructor() {
    super("the cluster core has halted");
    this.name = "Halted";
  }
}

export type Phase =
  | "starting"
  | "running"
  /** The mount is going; leave or hand-over under way. */
  | "leaving"
  /** Final for this mount. */
  | "fenced"
  | "stopped";

/**
 * Mistakes that tests plant on purpose, to prove that the simulator would see them (test/sim). Always empty in life.
 */
export type Mistake =
  | "skip-fence"
  | "skip-lease-wait"
  | "accept-stale-epoch"
  | "reregister-after-fence"
  /** Takeover: the locks pass on while the dead holder's lease may run. */
  | "takeover-skips-lease-wait"
  /** Takeover: XFS is mounted first, and the reservation taken then. */
  | "mount-before-preempt"
  /** Takeover: nobody asks whether the holder's heartbeat moves. */
  | "preempt-living-holder"
  /** Start-up: a newcomer preempts a dead holder while members of its view live. */
  | "newcomer-preempts-living-view"
  /** A newcomer that takes a dead view's place serves while a lease of the fenced may run. */
  | "newcomer-skips-lease-wait"
  /** Takeover: the journal slot says that recovery is done before XFS is mounted. */
  | "recovered-before-mount"
  /** Takeover: members are not told to send unanswered operations again. */
  | "takeover-without-resend"
  /** Solo: the kernel goes on granting itself locks in a view with other nodes. */
  | "solo-in-company"
  /** View change: PREPARED is said while lock records of the old view are being written. */
  | "prepared-while-writing";

interface Waiter {
  check(): boolean;
  halt(): void;
}

const WAITERS_MAX = 64;

export class ClusterState {
  phase: Phase = "starting";
  role: Role = Role.NONE;
  location: LockstateLocation | null = null;
  /** The header as last read, or written by us. */
  header: DiskHeader | null = null;
  /** As this node read it when it started: the cluster key and the file are those of today, the members are not. */
  headerSeen: DiskHeader | null = null;
  /** The committed view. */
  view: View | null = null;
  /** The view being prepared; null between changes. */
  next: View | null = null;
  /** Above every epoch heard of: in the header, in messages, from the kernel. */
  highestEpoch = 0n;
  /** Has written to the volume, or may have: from now on its key is never registered again. */
  admitted = false;
  /** This node's gate was shut for a hand-over. */
  gateShut = false;
  /** A holder is dead as far as we know, and who follows is being decided. */
  contested = false;
  /** Not our holder yet; it has the reservation, so its view changes are followed. */
  newHolder: number | null = null;
  /** The kernel grants its locks itself: there is no other node, and the lock table knows none of them. */
  solo = false;
  /** Somebody beside the kernel has wanted locks that the kernel takes: no view of this daemon is solo any more. */
  soloBarred = false;
  /** Dead holders whose recovery the kernel was told of, until the next view is committed. */
  readonly recovering = new Set<number>();
  /** The request id of VOLUME_UNMOUNT. */
  unmountRequest: bigint | null = null;
  /** Authenticated connections: node to incarnation. */
  readonly connected = new Map<number, number>();
  /** Rises whenever a connection comes or goes: what was sent before may be lost. */
  readonly connectionGeneration = new Map<number, number>();
  /** Time of the last own heartbeat write reported; -1 before the first. */
  heartbeatWrittenAt = -1;
  heartbeats: readonly (HeartbeatRecord | null)[] = [];
  /** Until then writes of nodes we have fenced may still land. */
  drainedAt = 0;

  readonly #waiters = new Set<Waiter>();

  constructor(
    readonly config: ClusterConfig,
    readonly ports: Ports,
    readonly mistakes: ReadonlySet<Mistake>,
  ) {}

  get self(): number {
    return this.config.self.node;
  }
  get key(): bigint {
    return prKey(this.config.self.node, this.config.self.incarnation);
  }
  get timings(): Timings {
    return this.config.timings;
  }
  get graceMs(): number {
    return leaseGraceMs(this.config.timings);
  }
  get halted(): boolean {
    return this.phase === "fenced" || this.phase === "stopped";
  }
  now(): number {
    return this.ports.clock.now();
  }
  log(level: LogLevel, text: string, fields: LogFields = {}): void {
    this.ports.log(level, text, fields);
  }
  send(node: number, message: ClusterMessage): void {
    this.ports.net.send(node, message);
  }
  /** Throws Halted when the node was fenced or stopped while a port was at work. */
  alive(): void {
    if (this.halted) throw new Halted();
  }
  raiseEpoch(epoch: bigint): void {
    if (epoch > this.highestEpoch) this.highestEpoch = epoch;
  }
  isConnected(member: { node: number; incarnation: number }): boolean {
    return member.node === this.self || this.connected.get(member.node) === member.incarnation;
  }
  generation(node: number): number {
    return this.connectionGeneration.get(node) ?? 0;
  }

  /** Something changed: look at all waiters' conditions. */
  poke(): void {
    for (const waiter of [...this.#waiters]) {
      if (this.#waiters.has(waiter) && waiter.check()) this.#waiters.delete(waiter);
    }
  }

  /** Ends all flows. */
  halt(phase: "fenced" | "stopped"): void {
    this.phase = phase;
    for (const waiter of [...this.#waiters]) waiter.halt();
    this.#waiters.clear();
  }

  /** Waits until predicate() gives something else than undefined; null when timeoutMs have passed first. */
  until<T>(predicate: () => T | undefined, timeoutMs: number): Promise<T | null> {
    if (this.halted) return Promise.reject(new Halted());
    const now_value = predicate();
    if (now_value !== undefined) return Promise.resolve(now_value);
    if (timeoutMs <= 0) return Promise.resolve(null);
    if (this.#waiters.size >= WAITERS_MAX) {
      return Promise.reject(
        new Error(`cluster core: more than ${WAITERS_MAX} flows wait at once; a flow leaks`),
      );
    }
    return new Promise<T | null>((resolve, reject) => {
      let timer: TimerHandle | null = null;
      const { clock } = this.ports;
      const done = (): void => {
        if (timer !== null) clock.clearTimer(timer);
        timer = null;
      };
      const waiter: Waiter = {
        check: () => {
          const value = predicate();
          if (value === undefined) return false;
          done();
          resolve(value);
          return true;
        },
        halt: () => {
          done();
          reject(new Halted());
        },
      };
      timer = clock.setTimer(timeoutMs, () => {
        timer = null;
        if (this.#waiters.delete(waiter)) resolve(null);
      });
      this.#waiters.add(waiter);
    });
  }

  /** A plain pause in a retry loop, ended early by `wake` if that is given and true. */
  async pause(ms: number, wake: () => boolean = () => false): Promise<void> {
    await this.until(() => (wake() ? true : undefined), ms);
  }
}

export function memberOf(view: View | null, node: number): MemberInfo | undefined {
  return view?.members.find((member) => member.node === node);
}

/** A view names its holder among its members: another one is a bug, and the daemon starts over. */
export function holderOf(view: View): MemberInfo {
  const holder = memberOf(view, view.holder);
  if (holder === undefined)
    throw new Error(`view ${view.epoch} does not have its holder ${hexNode(view.holder)}`);
  return holder;
}

export function keyOfHolder(view: View): bigint {
  const { node, incarnation } = holderOf(view);
  return prKey(node, incarnation);
}

export function activeMembers(header: DiskHeader): HeaderMember[] {
  return header.members.filter((member) => member.state === HEADER_MEMBER_STATE.ACTIVE);
}

/** Evicted and not seen to come back: while there are any, the reservation must not be released. */
export function deadMembers(header: DiskHeader): HeaderMember[] {
  return header.members.filter((member) => member.state === HEADER_MEMBER_STATE.DEAD);
}

/** Node ids in messages. */
export function hexNode(node: number): string {
  return node.toString(16).padStart(8, "0");
}
