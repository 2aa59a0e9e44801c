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
import { type DiskHeader, type HeaderMember, headerMismatch } from "../disk/lockstate.js";
import { JOURNAL_STATE } from "../disk/record.js";
import { hexKey } from "../disk/reservation.js";
import { MXFS_DISK_CLUSTER_KEY_SIZE, MXFS_DISK_LOCK_CHUNK_COUNT_MAX, NodeState, Role } from "../wire/abi.js";
import type { MemberInfo } from "../wire/messages.js";
import { fenceForSure, fenceKey, fenceSelfAndHalt } from "./eviction.js";
import type { LeaseKeeper } from "./lease.js";
import type { Coordinator } from "./membership.js";
import type { Participant } from "./participant.js";
import { keyIncarnation, keyNode, prKey } from "./ports.js";
import { activeMembers, type ClusterState, hexNode, memberOf } from "./state.js";

/** A member of the header, with the address that we know of it. */
interface Survivor extends MemberInfo {
  readonly known: boolean;
}

/** What the disk says about who leads. */
interface Standing {
  /** The key with the reservation. */
  readonly owner: bigint;
  readonly header: DiskHeader;
  /** ACTIVE members in order of rank. */
  readonly members: readonly Survivor[];
}

export class Takeover {
  /** The reservation is ours and the XFS is being mounted. */
  underWay = false;
  /** Since when nobody has had the reservation. */
  #lostSince: number | null = null;

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
        const { owner, members } = standing;
        if (owner === state.key) return await this.takeOver(standing, why);
        if (!this.isDead(owner, members)) {
          // A restarted daemon follows by itself.
          if (view === null || keyNode(owner) === (state.next ?? view).holder) return "over";
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
        if (state.ports.pr === null) return await this.takeOver(standing, why);
        if (state.mistakes.has("mount-before-preempt")) return await this.takeOver(standing, why);
        const outcome = await fenceKey(state, owner, why);
        if (outcome === "fenced") return await this.takeOver(standing, why);
        if (outcome === "failed") await this.pause();
      }
    } finally {
      state.contested = false;
      state.poke();
    }
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
      if (reservation.kind === "none") {
        this.#lostSince ??= state.now();
        const why = "the target has lost its reservation; unmount MXFS on all nodes, then mount again";
        if (state.now() - this.#lostSince >= state.timings.nodeTimeoutMs) fenceSelfAndHalt(state, why);
        return this.unclear(why);
      }
      this.#lostSince = null;
      owner = reservation.key;
    }
    if (state.location === null) return this.unclear("lockstate was never found");
    const outcome = await disk.readHeader(state.location);
    state.alive();
    if (outcome.kind === "error") return this.unclear(`the header cannot be read: ${outcome.message}`);
    const header = outcome.kind === "found" ? outcome.header : null;
    if (pr === null) return this.standingWithoutKeys(header);
    if (header === null) return this.unclear("there is no sound header");
    const mismatch = headerMismatch(header, state.location);
    if (mismatch !== null) return this.unclear(mismatch);
    state.raiseEpoch(header.epoch);
    if (!(await this.readHeartbeats())) return null;
    const members = activeMembers(header).map((member) => this.survivor(member));
    if (!members.some((m) => m.node === state.self && m.incarnation === state.config.self.incarnation)) {
      fenceSelfAndHalt(state, "the header does not list us any more: another node has taken over without us");
    }
    return owner === null ? null : { owner, header, members };
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

  /** A lock service (no device at all) knows the view and nothing else. */
  private standingWithoutKeys(header: DiskHeader | null): Standing | null {
    const { state } = this;
    const view = state.next ?? state.view;
    const known = header ?? state.header ?? this.emptyHeader();
    if (view === null || known === null) return null;
    const holder = memberOf(view, view.holder);
    if (holder === undefined) return null;
    const members = view.members.map((member) => ({ ...member, known: true }));
    return { owner: prKey(holder.node, holder.incarnation), header: known, members };
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
  private async takeOver(standing: Standing, why: string): Promise<"won"> {
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
      await this.fenceOthers(survivors);
      const owner_at = state.now();

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
      const mounted = await state.ports.kernel.roleChange(Role.HOLDER, state.self, state.highestEpoch);
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
      state.log("warn", "took the dead holder over", {
        holder: hexNode(header.holder),
        leaseAndFenceMs: owner_at - fenced_at,
        mountMs: mounted_at - owner_at,
        headerMs: state.now() - mounted_at,
        totalMs: state.now() - fenced_at,
      });
      coordinator.requestResync("takeover");
      this.becameHolder();
      return "won";
    } finally {
      this.underWay = false;
      state.poke();
    }
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
