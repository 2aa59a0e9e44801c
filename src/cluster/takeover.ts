// SPDX-License-Identifier: GPL-2.0-only
/**
 * Taking a dead holder over. contest() decides who does it, takeOver() does it; both read from top to bottom.
 *
 *   holder dead (no heartbeat and no lease message for the node timeout, or a later incarnation of its node has come)
 *     -> survivors, lowest rank first, PREEMPT the key that has the reservation; later ranks wait a step longer each and
 *        look at the reservation first -> the target lets one of them win
 *     -> winner: slot "needs recovery", the dead one's lease waited out, every key that is not of the view fenced, gate
 *        shut with force, slot "being recovered", XFS mounted (its log is replayed), header, view change with RESEND
 *     -> losers: wait for the winner's PREPARE (participant.ts checks that it has the reservation)
 *
 * What is believed: the reservation says who the holder is, the header who may take over (its ACTIVE members, nobody
 * else), the heartbeats who lives. A winner that dies in the middle is a dead owner of the reservation like any other.
 * A holder that comes back to life before it was preempted goes on; afterwards it finds its key gone, which is final.
 *
 * Without reservations (fence=none, tests only) the lowest rank simply goes first, and the others wait for its PREPARE.
 *
 * Known weakness: between the death and the detection lies the node timeout, since a standing heartbeat is all there is
 * to see of it.
 */
import {
  type DiskHeader,
  HEADER_MEMBER_STATE,
  type HeaderMember,
  headerMismatch,
} from "../disk/lockstate.js";
import { JOURNAL_STATE } from "../disk/record.js";
import { hexKey } from "../disk/reservation.js";
import { MXFS_DISK_CLUSTER_KEY_SIZE, MXFS_DISK_LOCK_CHUNK_COUNT_MAX, NodeState, Role } from "../wire/abi.js";
import type { MemberInfo } from "../wire/messages.js";
import { type FenceOutcome, fenceForSure, fenceKey, fenceSelfAndHalt, waitForDrain } from "./eviction.js";
import { tellHeldByDead } from "./inheritance.js";
import type { LeaseKeeper } from "./lease.js";
import type { Coordinator } from "./membership.js";
import type { Participant } from "./participant.js";
import { keyIncarnation, keyNode, prKey, type RecoveryReport } from "./ports.js";
import {
  activeMembers,
  type ClusterState,
  deadMembers,
  Halted,
  hexNode,
  keyOfHolder,
  memberOf,
} from "./state.js";

/** A member of the header, with the address that we know of it. */
interface Survivor extends MemberInfo {
  readonly known: boolean;
}

/** What the disk says about who leads. */
interface Standing {
  /** The key with the reservation; when nobody has it (the target has lost it), that of the header's holder. */
  readonly owner: bigint;
  readonly vacant: boolean;
  readonly header: DiskHeader;
  /** ACTIVE members in order of rank. */
  readonly members: readonly Survivor[];
}

/** When the takeover was decided, and for how long the holder had been silent then. */
interface Begun {
  readonly decidedAt: number;
  readonly silentMs: number;
}

export class Takeover {
  /** The reservation is ours and the XFS is being mounted. */
  underWay = false;

  constructor(
    readonly state: ClusterState,
    readonly lease: LeaseKeeper,
    readonly participant: Participant,
    readonly coordinator: Coordinator,
    readonly becameHolder: () => void,
  ) {}

  // ---- who --------------------------------------------------------------------------------------------------

  /** Until this node has taken over ("won"), or the holder lives, or another one's view is committed ("over"). */
  async contest(why: string): Promise<"won" | "over"> {
    const { state } = this;
    if (state.contested || this.underWay) return "over";
    state.contested = true;
    const decided_at = state.now();
    const silent_ms = this.silentMs();
    const view = state.view;
    /** Since when each owner of the reservation has been dead to us. */
    const dead_since = new Map<bigint, number>();
    let told = 0n;
    try {
      for (;;) {
        if (state.view !== view || state.role === Role.HOLDER || state.phase === "leaving") return "over";
        const standing = await this.look();
        if (standing === null) {
          await this.pause();
          continue;
        }
        const { owner, vacant, members } = standing;
        const begun = { decidedAt: decided_at, silentMs: silent_ms };
        if (owner === state.key && !vacant) return await this.takeOver(standing, why, begun);
        if (!this.isDead(owner, members)) {
          // A restarted daemon follows by itself.
          if (view === null || owner === keyOfHolder(state.next ?? view)) return "over";
          if (told !== owner) state.log("info", "another node takes over", { owner: hexKey(owner) });
          told = owner;
          await this.pause();
          continue;
        }
        const since = dead_since.get(owner) ?? state.now();
        dead_since.set(owner, since);
        // Without an arbiter only the time keeps the next in rank from going as well.
        const step = state.ports.pr === null ? state.timings.nodeTimeoutMs : state.timings.heartbeatMs;
        const turn_at = since + this.rank(owner, members) * step;
        if (turn_at > state.now()) {
          await state.pause(Math.min(turn_at - state.now(), state.timings.heartbeatMs));
          continue;
        }
        if (state.ports.pr === null) return await this.takeOver(standing, why, begun);
        if (state.mistakes.has("mount-before-preempt")) return await this.takeOver(standing, why, begun);
        const outcome = vacant ? await this.reserve() : await fenceKey(state, owner, why);
        if (outcome === "fenced") return await this.takeOver(standing, why, begun);
        if (outcome === "failed") await this.pause();
      }
    } finally {
      state.contested = false;
      state.poke();
    }
  }

  /**
   * The target has lost the reservation of a dead holder (it was restarted, or a stranger took it and left): RESERVE lets
   * one survivor win, as PREEMPT does. The dead one's key, if it is there, goes with all that are not of the view.
   */
  private async reserve(): Promise<FenceOutcome> {
    const { state } = this;
    if (state.ports.pr === null) throw new Error("a reservation without a reservation port");
    const reserved = await state.ports.pr.reserve(state.key);
    state.alive();
    if (reserved.kind === "ok") return "fenced";
    if (reserved.kind === "conflict") return "was-gone";
    this.unclear(`RESERVE fails: ${reserved.kind === "error" ? reserved.message : reserved.kind}`);
    return "failed";
  }

  private async pause(): Promise<void> {
    await this.state.pause(this.state.timings.heartbeatMs / 2);
  }

  private rank(owner: bigint, members: readonly MemberInfo[]): number {
    const others = members.filter((member) => member.node !== keyNode(owner));
    return Math.max(
      0,
      others.findIndex((member) => member.node === this.state.self),
    );
  }

  /** The key's owner shows no life; or it is a later incarnation of a member that is dead by that. */
  private isDead(owner: bigint, members: readonly MemberInfo[]): boolean {
    const { lease } = this;
    const member = members.find((m) => m.node === keyNode(owner));
    // Not one of us: whoever it is has found us all dead, and fences us next.
    if (member === undefined) return false;
    if (keyIncarnation(owner) > member.incarnation) {
      return (
        lease.proveDead(member.node, member.incarnation) || lease.isDead(member.node, member.incarnation)
      );
    }
    return keyIncarnation(owner) === member.incarnation && lease.isDead(member.node, member.incarnation);
  }

  /** Null: nothing to be decided from it now. A key of ours that is gone, or a place in the header, is final. */
  private async look(): Promise<Standing | null> {
    const { state } = this;
    const { pr, disk } = state.ports;
    let owner: bigint | null = null;
    let vacant = false;
    if (pr !== null) {
      const keys = await pr.readKeys();
      state.alive();
      if (keys.kind === "error") return this.unclear(`READ KEYS fails: ${keys.message}`);
      if (!keys.keys.includes(state.key)) {
        fenceSelfAndHalt(
          state,
          `our key ${hexKey(state.key)} is gone: another node has taken over without us`,
        );
      }
      const reservation = await pr.readReservation();
      state.alive();
      if (reservation.kind === "error") return this.unclear(`READ RESERVATION fails: ${reservation.message}`);
      vacant = reservation.kind === "none";
      if (reservation.kind === "held") owner = reservation.key;
    }
    if (state.location === null) return this.unclear("lockstate was never found");
    const outcome = await disk.readHeader(state.location);
    state.alive();
    if (outcome.kind === "error") return this.unclear(`the header cannot be read: ${outcome.message}`);
    if (pr === null) return this.standingWithoutKeys(outcome.kind === "found" ? outcome.header : null);
    const header = outcome.kind === "found" ? outcome.header : this.headerFromMemory();
    if (header === null) return this.unclear("there is no sound header");
    const mismatch = headerMismatch(header, state.location);
    if (mismatch !== null) return this.unclear(mismatch);
    state.raiseEpoch(header.epoch);
    if (!(await this.readHeartbeats())) return null;
    const members = activeMembers(header).map((member) => this.survivor(member));
    if (!members.some((m) => m.node === state.self && m.incarnation === state.config.self.incarnation)) {
      fenceSelfAndHalt(state, "the header does not list us any more: another node has taken over without us");
    }
    owner ??= prKey(header.holder, header.holderIncarnation);
    return { owner, vacant, header, members };
  }

  /** Who preempts has looked at the heartbeats just before. */
  private async readHeartbeats(): Promise<boolean> {
    const { state } = this;
    if (state.location === null) return false;
    const outcome = await state.ports.disk.readHeartbeats(state.location);
    state.alive();
    if (outcome.kind === "error") {
      this.unclear(`the heartbeats cannot be read: ${outcome.message}`);
      return false;
    }
    this.lease.noteHeartbeats(outcome.records, state.now());
    return true;
  }

  /**
   * Both copies on disk are gone. Our key is registered, so nobody has thrown us out, and whoever had taken over would
   * have written a sound one: the members are those of our own view.
   */
  private headerFromMemory(): DiskHeader | null {
    const { view, highestEpoch } = this.state;
    const header = this.state.header ?? this.state.headerSeen;
    const holder = memberOf(view, view?.holder ?? 0);
    if (header === null || view === null || holder === undefined) return null;
    this.state.log(
      "error",
      "both copies of the header are damaged: taking over by what this node remembers",
      {
        epoch: highestEpoch,
      },
    );
    const members: HeaderMember[] = view.members.map(({ node, incarnation, slot }) => ({
      node,
      incarnation,
      slot,
      state: HEADER_MEMBER_STATE.ACTIVE,
    }));
    const dead = deadMembers(header).filter((gone) => !members.some((member) => member.node === gone.node));
    return {
      ...header,
      epoch: highestEpoch,
      holder: holder.node,
      holderIncarnation: holder.incarnation,
      members: [...members, ...dead],
    };
  }

  /** A lock service (no device at all) knows the view and nothing else. */
  private standingWithoutKeys(header: DiskHeader | null): Standing | null {
    const { state } = this;
    const view = state.next ?? state.view;
    const known = header ?? state.header ?? this.emptyHeader();
    if (view === null || known === null) return null;
    const holder = memberOf(view, view.holder);
    if (holder === undefined) return null;
    const members = view.members.map((member) => ({ ...member, known: true }));
    return { owner: prKey(holder.node, holder.incarnation), vacant: false, header: known, members };
  }

  private emptyHeader(): DiskHeader | null {
    const { location, view, config, ports } = this.state;
    if (location === null || view === null) return null;
    return {
      volume: ports.disk.volume,
      volumeUuid: ports.disk.volumeUuid,
      epoch: view.epoch,
      sequence: view.epoch,
      ino: location.ino,
      generation: location.generation,
      recordSize: location.recordSize,
      lockRecordCount: config.lockRecordCount,
      holder: view.holder,
      holderIncarnation: memberOf(view, view.holder)?.incarnation ?? 0,
      clusterKey: ports.random(MXFS_DISK_CLUSTER_KEY_SIZE),
      members: [],
      extents: location.extents,
      chunkOwners: new Uint8Array(MXFS_DISK_LOCK_CHUNK_COUNT_MAX),
    };
  }

  private unclear(why: string): null {
    this.state.log("warn", "the holder is dead, and the takeover waits", { why });
    return null;
  }

  private survivor({ node, incarnation, slot }: HeaderMember): Survivor {
    const { state } = this;
    const role = Role.MEMBER;
    const member = memberOf(state.view, node) ?? memberOf(state.next, node);
    if (member?.incarnation === incarnation) return { ...member, slot, role, known: true };
    if (node === state.self) {
      const { address, port } = state.config.self;
      return { node, incarnation, slot, address, port, role, known: true };
    }
    const record = state.heartbeats[slot];
    const known = record?.node === node && record.incarnation === incarnation && record.address !== "";
    return known
      ? { node, incarnation, slot, address: record.address, port: record.port, role, known }
      : { node, incarnation, slot, address: "0.0.0.0", port: 1, role, known };
  }

  // ---- how --------------------------------------------------------------------------------------------------

  /** The owner of the reservation was dead, and its reservation is ours. */
  private async takeOver(standing: Standing, why: string, begun: Begun): Promise<"won"> {
    const { state, lease, coordinator } = this;
    const { header, members } = standing;
    const fenced_at = state.now();
    this.underWay = true;
    try {
      const dead = members.filter((member) => this.isGone(member, header));
      const survivors = members.filter((member) => !dead.includes(member)).map(withoutKnown);
      const unknown = members.filter((member) => !member.known && !dead.includes(member));
      const old = members.find((member) => member.node === header.holder);
      state.log("warn", "taking the dead holder over", {
        holder: hexNode(header.holder),
        survivors: survivors.length,
        why,
      });
      this.participant.joinTarget = null;
      if (state.admitted === false) throw new Error("take-over by a node that is no member");
      for (const member of dead) this.participant.recoveryBegins(member.node);

      // 1. Nobody else writes, and the dead serve nothing any more.
      if (old !== undefined && old.node !== state.self)
        await coordinator.journal.mark(old, JOURNAL_STATE.NEEDS_RECOVERY);
      await this.waitForLeases(dead);
      const leases_at = state.now();
      await this.fenceOthers(survivors);
      // Nothing is decided by it, so it need not wait for the drain.
      const told = tellHeldByDead(state, header, dead);
      told.catch(() => undefined); // awaited below

      // 2. The XFS.
      state.gateShut = true;
      const gate = await state.ports.kernel.gate(false, "taking a dead holder over", true);
      state.alive();
      if (gate.error !== 0) {
        fenceSelfAndHalt(state, `the kernel refused to shut its gate: errno ${gate.error} ${gate.message}`);
      }
      if (old !== undefined && old.node !== state.self) {
        await coordinator.journal.mark(old, JOURNAL_STATE.RECOVERING);
        if (state.mistakes.has("recovered-before-mount")) {
          await coordinator.journal.mark(old, JOURNAL_STATE.FREE);
        }
      }
      await waitForDrain(state);
      const gate_at = state.now();
      const [mounted] = await Promise.all([
        state.ports.kernel.roleChange(Role.HOLDER, state.self, state.highestEpoch),
        told,
      ]);
      state.alive();
      if (mounted.error !== 0) {
        fenceSelfAndHalt(state, `cannot take the XFS over: errno ${mounted.error} ${mounted.message}`);
      }
      const mounted_at = state.now();

      // 3. The cluster: the header says who leads, then a view change gathers everybody.
      state.role = Role.HOLDER;
      state.header = header;
      lease.tookOver(survivors, fenced_at);
      coordinator.resend = !state.mistakes.has("takeover-without-resend");
      await coordinator.writePlainHeader(survivors, dead);
      for (const member of dead) {
        state.ports.kernel.nodeStatus(member.node, member.incarnation, NodeState.DEAD);
        state.ports.net.disconnect(member.node);
      }
      for (const member of unknown) {
        coordinator.evict(member, "its heartbeat record is unreadable: no address known");
      }
      const header_at = state.now();
      coordinator.requestResync("takeover");
      this.becameHolder();
      void this.report({
        holder: hexNode(header.holder),
        epoch: state.highestEpoch,
        survivors: survivors.length,
        silentMs: begun.silentMs,
        electMs: fenced_at - begun.decidedAt,
        leaseMs: leases_at - fenced_at,
        fenceMs: gate_at - leases_at,
        mountMs: mounted_at - gate_at,
        headerMs: header_at - mounted_at,
        viewMs: header_at,
        totalMs: begun.decidedAt - begun.silentMs,
      });
      return "won";
    } finally {
      this.underWay = false;
      state.poke();
    }
  }

  /** Of the view's holder, how long nothing has been seen. */
  private silentMs(): number {
    const { state, lease } = this;
    const view = state.next ?? state.view;
    const holder = memberOf(view, view?.holder ?? 0);
    return holder === undefined ? 0 : lease.silentMs(holder.node, holder.incarnation);
  }

  /** When the first view is committed and the gate open. `viewMs` and `totalMs` are given as the times they count from. */
  private async report(report: RecoveryReport): Promise<void> {
    const { state } = this;
    const serves = (): true | undefined =>
      state.view?.holder === state.self && state.next === null && !state.gateShut ? true : undefined;
    try {
      if ((await state.until(serves, 64 * state.timings.nodeTimeoutMs)) === null) return;
    } catch (error) {
      if (error instanceof Halted) return;
      throw error;
    }
    const now = state.now();
    const done = {
      ...report,
      silentMs: Math.round(report.silentMs),
      electMs: Math.round(report.electMs),
      leaseMs: Math.round(report.leaseMs),
      fenceMs: Math.round(report.fenceMs),
      mountMs: Math.round(report.mountMs),
      headerMs: Math.round(report.headerMs),
      viewMs: Math.round(now - report.viewMs),
      totalMs: Math.round(now - report.totalMs),
    };
    state.log("warn", "took the dead holder over", done);
    state.ports.recovered(done);
  }

  /** The header's holder; whose key had the reservation; whoever else shows no life. Never ourselves. */
  private isGone(member: MemberInfo, header: DiskHeader): boolean {
    const { state, lease } = this;
    if (member.node === state.self) return false;
    return member.node === header.holder || lease.isDead(member.node, member.incarnation);
  }

  private async waitForLeases(dead: readonly MemberInfo[]): Promise<void> {
    const { state } = this;
    if (state.mistakes.has("takeover-skips-lease-wait")) return;
    const until = Math.max(0, ...dead.map((member) => this.lease.holderLeaseOverAt(member)));
    if (until <= state.now()) return;
    state.log("info", "waiting for the dead nodes' leases to run out", { ms: until - state.now() });
    await state.pause(until - state.now());
  }

  /** Every key but the survivors'; and the reservation must be ours at the end of it. */
  private async fenceOthers(survivors: readonly MemberInfo[]): Promise<void> {
    const { state } = this;
    const { pr } = state.ports;
    if (pr === null || state.mistakes.has("mount-before-preempt")) return;
    const ours = new Set(survivors.map((member) => prKey(member.node, member.incarnation)));
    for (;;) {
      const keys = await pr.readKeys();
      state.alive();
      const reservation = await pr.readReservation();
      state.alive();
      if (keys.kind === "error" || reservation.kind === "error") {
        this.unclear("the target does not tell its keys");
        await this.pause();
        continue;
      }
      if (reservation.kind !== "held" || reservation.key !== state.key) {
        const by = reservation.kind === "held" ? hexKey(reservation.key) : "nobody";
        fenceSelfAndHalt(state, `took over from a dead holder, but the reservation is held by ${by}`);
      }
      const strangers = [...new Set(keys.keys)].filter((key) => !ours.has(key));
      for (const key of strangers) await fenceForSure(state, key, "not of the view");
      return;
    }
  }
}

function withoutKnown({ node, incarnation, slot, address, port, role }: Survivor): MemberInfo {
  return { node, incarnation, slot, address, port, role };
}
