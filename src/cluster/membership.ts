// SPDX-License-Identifier: GPL-2.0-only
/**
 * The coordinator: view changes, driven by the journal holder, one at a time. attempt() is the whole protocol from
 * top to bottom: connect, PREPARE, fence, header, REBUILD, COMMIT.
 *
 * Triggers (JOIN, LEAVE, eviction, RESYNC) gather in four collections; a change takes all that are there. What comes
 * in the middle of a change waits for the next one, except what makes the running one void (a participant died, or a
 * connection between participants broke, so that messages may be lost): then the attempt ends and a new one starts
 * with a higher epoch, which supersedes the old on every node.
 *
 * `base` is the membership that the header on disk names. It moves when the header is written, not at COMMIT: who is
 * in the header has a slot and may write, and must be fenced to get rid of.
 *
 * Known weakness: every change stops the lock service of all nodes for its duration.
 */
import { dealChunks } from "../disk/lock_records.js";
import type { DiskHeader, HeaderMember } from "../disk/lockstate.js";
import { chunkCount, HEADER_MEMBER_STATE } from "../disk/lockstate.js";
import { hexKey } from "../disk/reservation.js";
import { MXFS_DISK_LOCK_CHUNK_COUNT_MAX, MXFS_NODE_COUNT_MAX, NodeState, Role } from "../wire/abi.js";
import type { ClusterMessageOf, MemberInfo } from "../wire/messages.js";
import { fenceForSure, fenceSelfAndHalt, waitForDrain } from "./eviction.js";
import { tellHeldByDead } from "./inheritance.js";
import { JournalSlots } from "./journal.js";
import { ERRNO, type LeaseKeeper, worseConnected } from "./lease.js";
import type { Participant } from "./participant.js";
import { prKey, type View } from "./ports.js";
import { type ClusterState, deadMembers, hexNode } from "./state.js";

const ATTEMPTS_MAX = 64;

interface Eviction {
  readonly member: MemberInfo;
  readonly reason: string;
}

interface Plan {
  readonly view: View;
  readonly evicted: readonly Eviction[];
  readonly joined: readonly MemberInfo[];
  readonly reason: string;
  readonly resend: boolean;
  /** Connection generations of the participants when PREPARE was sent. */
  readonly generations: Map<number, number>;
}

export class Coordinator {
  /** Whom the header on disk names, in order of rank. */
  base: MemberInfo[] = [];
  /** Set when this node wants to leave: the loop ends when nothing else is to be done. */
  stepDown = false;
  /** For the first header of a volume. */
  newClusterKey: Uint8Array | null = null;
  /** Unanswered fsops must be sent again at the next COMMIT (hand-over, restarted daemon, broken connection). */
  resend = false;
  readonly joins = new Map<number, MemberInfo>();
  /** Node to incarnation. */
  readonly leaves = new Map<number, number>();
  readonly evictions = new Map<number, Eviction>();
  #resync: string | null = null;
  /** How often in a row neither copy of the header was sound. */
  #headerMissing = 0;
  #recentlyLeft = new Set<number>();
  #prepared = new Map<number, ClusterMessageOf<"PREPARED">>();
  #rebuilt = new Set<number>();
  #committed = new Set<number>();
  /** Our own kernel refused to tell its locks. */
  #rebuildError: { readonly error: unknown } | null = null;
  /** Our own rebuild ended without having told our locks, and no other view has superseded it. */
  #rebuildGaveUp = false;

  readonly journal: JournalSlots;

  constructor(
    readonly state: ClusterState,
    readonly lease: LeaseKeeper,
    readonly participant: Participant,
  ) {
    this.journal = new JournalSlots(state);
  }

  // ---- triggers ---------------------------------------------------------------------------------------------

  join(from: number, message: ClusterMessageOf<"JOIN">): void {
    const { state } = this;
    const refuse = (errno: number, reason: string): void => {
      state.log("warn", "refused a JOIN", { node: hexNode(from), incarnation: message.incarnation, reason });
      state.send(from, { kind: "JOIN_REFUSED", errno, reason });
    };
    if (state.role !== Role.HOLDER) {
      refuse(ERRNO.EAGAIN, "this node is not the holder");
      return;
    }
    if (this.stepDown) {
      refuse(ERRNO.EAGAIN, "the holder is handing over; try again");
      return;
    }
    const old = this.base.find((member) => member.node === from);
    const same = old !== undefined && old.incarnation === message.incarnation;
    if (message.rejoin && !same) {
      refuse(ERRNO.ESTALE, "not in the view any more: it was evicted");
      return;
    }
    if (same && this.evictions.has(from)) {
      refuse(ERRNO.ESTALE, "it is being evicted");
      return;
    }
    if (old !== undefined && old.incarnation > message.incarnation) {
      refuse(ERRNO.EEXIST, `a later incarnation (${old.incarnation}) of this node is in the view`);
      return;
    }
    const twin = state.heartbeats.find((record) => record?.node === from && record.uuid !== message.uuid);
    if (twin !== undefined && twin !== null && old !== undefined) {
      refuse(ERRNO.EEXIST, `node ${hexNode(from)} is host ${twin.hostName}, which has another UUID`);
      return;
    }
    if (old === undefined && this.base.length + this.joins.size >= MXFS_NODE_COUNT_MAX) {
      refuse(ERRNO.ENOSPC, `the volume has its ${MXFS_NODE_COUNT_MAX} nodes already`);
      return;
    }
    const chunks = chunkCount(state.header?.lockRecordCount ?? state.config.lockRecordCount);
    if (old === undefined && this.base.length + this.joins.size >= chunks) {
      refuse(
        ERRNO.ENOSPC,
        `the volume has lock records for ${chunks} nodes: unmount everywhere, remove .mxfs/lockstate with the XFS mounted plainly, mount with a larger lock_records=`,
      );
      return;
    }
    if (old !== undefined && !same) {
      this.evict(old, `its incarnation ${message.incarnation} has come, so ${old.incarnation} is dead`);
    }
    const { incarnation, address, port } = message;
    this.joins.set(from, { node: from, incarnation, slot: old?.slot ?? 0, address, port, role: Role.MEMBER });
    if (same) {
      // Its earlier daemon may have begun to leave. This one writes lock records again, until it says so itself.
      this.leaves.delete(from);
      this.#resync = `node ${hexNode(from)} rejoins`;
    }
    state.poke();
  }

  leave(from: number): void {
    const incarnation = this.state.connected.get(from);
    if (incarnation === undefined) return;
    if (!this.base.some((m) => m.node === from && m.incarnation === incarnation)) return;
    this.leaves.set(from, incarnation);
    this.state.poke();
  }

  evict(member: MemberInfo, reason: string): void {
    const known = this.base.some((m) => m.node === member.node && m.incarnation === member.incarnation);
    if (!known || this.evictions.has(member.node) || member.node === this.state.self) return;
    this.state.log("warn", "evicting a node", { node: hexNode(member.node), reason });
    this.evictions.set(member.node, { member, reason });
    // It must not come back through a JOIN or go through a LEAVE of the same incarnation.
    if (this.joins.get(member.node)?.incarnation === member.incarnation) this.joins.delete(member.node);
    if (this.isLeavingAs(member)) this.leaves.delete(member.node);
    this.state.poke();
  }

  requestResync(reason: string): void {
    this.#resync = reason;
    this.state.poke();
  }

  peerConnected(node: number, incarnation: number): void {
    const member = this.base.find((m) => m.node === node);
    if (member?.incarnation === incarnation && this.state.view !== null) {
      this.requestResync(`connection to node ${hexNode(node)} came back`);
    }
  }

  peerLost(node: number): void {
    this.#recentlyLeft.delete(node);
    const join = this.joins.get(node);
    const member = this.base.find((m) => m.node === node);
    if (join !== undefined && member?.incarnation !== join.incarnation) this.joins.delete(node);
  }

  isBeingEvicted(node: number): boolean {
    return this.evictions.has(node);
  }

  private isLeavingAs(member: MemberInfo): boolean {
    return this.leaves.get(member.node) === member.incarnation;
  }

  isLeaving(node: number): boolean {
    return this.leaves.has(node) || this.#recentlyLeft.has(node);
  }

  hasWork(): boolean {
    return this.joins.size > 0 || this.leaves.size > 0 || this.evictions.size > 0 || this.#resync !== null;
  }

  // ---- answers ----------------------------------------------------------------------------------------------

  answered(from: number, message: ClusterMessageOf<"PREPARED" | "REBUILT" | "COMMITTED">): void {
    const { state } = this;
    const epoch = message.kind === "COMMITTED" ? state.view?.epoch : state.next?.epoch;
    if (message.epoch !== epoch) return;
    if (message.kind === "PREPARED") this.#prepared.set(from, message);
    else if (message.kind === "REBUILT") this.#rebuilt.add(from);
    else this.#committed.add(from);
    state.poke();
  }

  // ---- the change -------------------------------------------------------------------------------------------

  /** Serves triggers until the node steps down. */
  async run(): Promise<void> {
    const { state } = this;
    for (;;) {
      if (this.hasWork()) await this.change("membership");
      else if (this.stepDown) return;
      else {
        const work = (): true | undefined => (this.hasWork() || this.stepDown ? true : undefined);
        if ((await state.until(work, state.timings.nodeTimeoutMs / 2)) === null) await this.checkHeader();
      }
    }
  }

  /** A newcomer finds us, and the cluster key, by the header alone: when both copies are gone a view change writes it. */
  private async checkHeader(): Promise<void> {
    const { state } = this;
    if (state.location === null) return;
    const outcome = await state.ports.disk.readHeader(state.location);
    state.alive();
    this.#headerMissing = outcome.kind === "none" ? this.#headerMissing + 1 : 0;
    if (this.#headerMissing < 2) return;
    this.#headerMissing = 0;
    state.log("error", "both copies of the header on disk are damaged; writing it anew", {});
    this.requestResync("the header was damaged");
  }

  /** One view change, as many attempts as it takes; afterwards the view on disk is committed on all members. */
  async change(reason: string): Promise<void> {
    const { state } = this;
    const started_at = state.now();
    for (let attempt = 1; attempt <= ATTEMPTS_MAX; attempt++) {
      const plan = this.plan(reason);
      if (await this.attempt(plan, started_at, attempt)) return;
      state.alive();
    }
    throw new Error(`view change did not succeed in ${ATTEMPTS_MAX} attempts; the daemon starts over`);
  }

  private plan(reason: string): Plan {
    const { state } = this;
    for (const [node, { member }] of [...this.evictions]) {
      // It has left in good order while its eviction was being asked for.
      if (!this.base.some((m) => m.node === node && m.incarnation === member.incarnation))
        this.evictions.delete(node);
    }
    const evicted = [...this.evictions.values()];
    const gone = new Set(evicted.map(({ member }) => member.node));
    const stay = this.base.filter((member) => !gone.has(member.node) && !this.isLeavingAs(member));
    const taken = new Set([...this.base, ...stay].map((member) => member.slot));
    const members: MemberInfo[] = [];
    for (const member of stay) {
      const again = this.joins.get(member.node);
      const address = again === undefined ? {} : { address: again.address, port: again.port };
      members.push({ ...member, ...address, role: member.node === state.self ? Role.HOLDER : Role.MEMBER });
    }
    const joined: MemberInfo[] = [];
    for (const join of this.joins.values()) {
      if (stay.some((member) => member.node === join.node)) continue;
      if (!state.isConnected(join)) {
        this.joins.delete(join.node);
        continue;
      }
      let slot = 0;
      while (taken.has(slot)) slot++;
      if (slot >= MXFS_NODE_COUNT_MAX) continue; // Next change: slots of the leaving are free then.
      taken.add(slot);
      joined.push({ ...join, slot });
    }
    const resend =
      (this.resend || this.#resync !== null || evicted.length > 0) &&
      !state.mistakes.has("takeover-without-resend");
    const why = this.#resync ?? reason;
    this.#resync = null;
    this.resend = resend;
    return {
      view: { epoch: this.nextEpoch(), holder: state.self, members: [...members, ...joined] },
      evicted,
      joined,
      reason: why,
      resend,
      generations: new Map(),
    };
  }

  /** Above every epoch heard of, those of attempts that came to nothing included. */
  private nextEpoch(): bigint {
    const { state } = this;
    if (state.mistakes.has("accept-stale-epoch"))
      return (state.view?.epoch ?? state.header?.epoch ?? 0n) + 1n;
    return state.highestEpoch + 1n;
  }

  /** False: the plan is void, make another. */
  private async attempt(plan: Plan, startedAt: number, attempt: number): Promise<boolean> {
    const { state, participant } = this;
    const { view } = plan;
    const timeout = state.timings.nodeTimeoutMs;
    const others = view.members.filter((member) => member.node !== state.self);
    const times: Record<string, number> = {};
    let step_at = state.now();
    const step = (name: string): void => {
      times[`${name}Ms`] = state.now() - step_at;
      step_at = state.now();
    };

    // 1. Everybody stops deciding locks and takes the next view over.
    this.#prepared.clear();
    this.#rebuilt.clear();
    this.#committed.clear();
    this.#rebuildError = null;
    this.#rebuildGaveUp = false;
    participant.begin(view);
    const missing = await participant.connectAll(view, timeout, () => this.isVoid(plan));
    if (this.isVoid(plan)) return false;
    if (missing.length > 0) return this.giveUpOn(missing, "no connection to it");
    for (const member of others) plan.generations.set(member.node, state.generation(member.node));
    const { epoch, holder, members } = view;
    for (const member of others) {
      state.send(member.node, { kind: "PREPARE", epoch, holder, reason: plan.reason, members });
    }
    const prepared = await this.barrier(plan, others, (node) => this.#prepared.has(node));
    if (prepared !== "all")
      return prepared === "again" ? false : this.giveUpOn(prepared, "did not answer PREPARE");
    if (!this.judgePrepared(view)) return false;
    await state.ports.locks.freezeRecords();
    state.alive();
    if (this.isVoid(plan)) return false;
    step("prepare");

    // 2. Who goes is kept from writing; then, and only then, the header says that it is gone.
    if (!(await this.checkJoinersKeys(plan))) return false;
    await this.stepDownIfCut(plan);
    for (const eviction of plan.evicted) {
      await this.waitForLeaseEnd(eviction.member);
      const key = prKey(eviction.member.node, eviction.member.incarnation);
      await fenceForSure(state, key, eviction.reason);
    }
    if (plan.evicted.length > 0) {
      const dead = plan.evicted.map(({ member }) => member);
      // Before the header makes the records void; nothing is decided by it, so it need not wait for the drain.
      await Promise.all([waitForDrain(state), tellHeldByDead(state, state.header, dead)]);
    }
    step("fence");
    if (this.isVoid(plan)) return false;
    await this.writeHeader(plan);
    this.headerCounts(plan);
    step("header");
    for (const member of others) state.send(member.node, { kind: "REBUILD", epoch });
    void participant.rebuild(view).then(
      (done) => {
        if (done) this.#rebuilt.add(state.self);
        else if (state.next === view) this.#rebuildGaveUp = true;
        state.poke();
      },
      (error: unknown) => {
        this.#rebuildError = { error };
        state.poke();
      },
    );
    const rebuilt = await this.rebuildBarrier(plan);
    if (rebuilt !== "all") {
      return rebuilt === "again" ? false : this.giveUpOn(rebuilt, "did not tell its locks");
    }
    step("rebuild");

    // 3. The view counts; masters grant.
    participant.commit(view, plan.resend);
    this.afterCommit(plan);
    for (const member of others)
      state.send(member.node, { kind: "COMMIT", epoch, resend: plan.resend, holder });
    const committed = await this.barrier(plan, others, (node) => this.#committed.has(node));
    // After a hand-over all have told us their file locks by now; before that nobody may be granted one.
    await participant.reopenGate();
    if (Array.isArray(committed)) this.giveUpOn(committed, "did not answer COMMIT");
    step("commit");
    state.log("info", "view change done", {
      epoch,
      reason: plan.reason,
      attempt,
      members: members.length,
      evicted: plan.evicted.map(({ member }) => hexNode(member.node)).join(","),
      ...times,
      totalMs: state.now() - startedAt,
    });
    return true;
  }

  /** "all" have `answered`; "again": the plan is void; or who was still missing after the node timeout. */
  private async barrier(
    plan: Plan,
    members: readonly MemberInfo[],
    answered: (node: number) => boolean,
  ): Promise<"all" | "again" | MemberInfo[]> {
    const { state } = this;
    const lacking = (): MemberInfo[] => members.filter((member) => !answered(member.node));
    const outcome = await state.until<"all" | "again">(
      () =>
        this.isVoid(plan) || this.#rebuildError !== null || this.#rebuildGaveUp
          ? "again"
          : lacking().length === 0
            ? "all"
            : undefined,
      state.timings.nodeTimeoutMs,
    );
    return outcome ?? lacking();
  }

  /**
   * As barrier(). One node that does not tell its locks keeps all others from having rebuilt, so the blame is with
   * those whose REBUILD_SENT has not come; when that is our own kernel, nobody else is to blame and we wait for it.
   */
  private async rebuildBarrier(plan: Plan): Promise<"all" | "again" | MemberInfo[]> {
    for (;;) {
      const outcome = await this.barrier(plan, plan.view.members, (node) => this.#rebuilt.has(node));
      if (this.#rebuildError !== null) throw this.#rebuildError.error;
      if (!Array.isArray(outcome)) return outcome;
      const silent = plan.view.members.filter((member) => !this.participant.hasSent(member.node));
      if (silent.length === 0) return outcome.filter((member) => member.node !== this.state.self);
      const others = silent.filter((member) => member.node !== this.state.self);
      if (others.length === silent.length) return others;
      this.state.log("warn", "our own kernel is slow to tell its locks; the view change waits", {});
    }
  }

  /** Messages of this attempt may be lost, or one of its members is to go. */
  private isVoid(plan: Plan): boolean {
    if (this.#resync !== null) return true;
    for (const [node, generation] of plan.generations) {
      if (this.state.generation(node) !== generation) return true;
    }
    return plan.view.members.some(
      (member) => this.evictions.get(member.node)?.member.incarnation === member.incarnation,
    );
  }

  private judgePrepared(view: View): boolean {
    const { state } = this;
    const degree = new Map<number, number>();
    let sound = true;
    for (const [node, answer] of this.#prepared) {
      state.raiseEpoch(answer.seen);
      if (answer.refused) sound = false;
      for (const other of answer.unreachable) {
        degree.set(node, (degree.get(node) ?? 0) + 1);
        degree.set(other, (degree.get(other) ?? 0) + 1);
      }
    }
    if (degree.size > 0) {
      const pair = view.members.filter((member) => degree.has(member.node));
      const victim = worseConnected(pair, degree, state.self);
      if (victim !== undefined) this.giveUpOn([victim], "it and another member cannot reach each other");
      return false;
    }
    return sound;
  }

  /** Always false: the plan is void. Members are evicted; one that was only about to join is told to try again. */
  private giveUpOn(members: readonly MemberInfo[], reason: string): false {
    for (const member of members) {
      const in_base = this.base.some((m) => m.node === member.node && m.incarnation === member.incarnation);
      if (in_base) {
        this.evict(member, reason);
        continue;
      }
      this.joins.delete(member.node);
      this.state.send(member.node, { kind: "JOIN_REFUSED", errno: ERRNO.EAGAIN, reason });
      this.state.log("warn", "gave up on a joining node", { node: hexNode(member.node), reason });
    }
    return false;
  }

  /** Evicting most of a view that lives and is only out of reach would let the smaller side win. */
  private async stepDownIfCut(plan: Plan): Promise<void> {
    const { state, lease } = this;
    const cut = plan.evicted
      .map(({ member }) => member)
      .filter(
        (member) =>
          !state.isConnected(member) &&
          lease.heartbeatSilentMs(member.node, member.incarnation) < state.timings.nodeTimeoutMs / 2,
      );
    if (2 * cut.length > this.base.length) await this.stepDownForGood(cut);
  }

  /**
   * The XFS is let go as well as may be. When it is, a last heartbeat says so, and the others take over at once; if not,
   * they do when our heartbeat has stood still.
   */
  async stepDownForGood(cut: readonly MemberInfo[]): Promise<never> {
    const { state } = this;
    const names = cut.map((member) => hexNode(member.node)).join(",");
    const why = `stepping down: ${names} heartbeat, are more than half of the view, and cannot be reached`;
    state.log("error", "this holder is on the smaller side of a cut network; it unmounts the XFS", {
      members: names,
    });
    await state.ports.disk.stopHeartbeat(false);
    state.alive();
    const shut = await state.ports.kernel.gate(false, "stepping down", true);
    state.alive();
    const changed =
      shut.error === 0 ? await state.ports.kernel.roleChange(Role.NONE, 0, state.highestEpoch) : shut;
    state.alive();
    if (changed.error !== 0) {
      state.log("error", "the XFS could not be unmounted; it is shut down", { error: changed.message });
    } else {
      await this.lastHeartbeat();
    }
    fenceSelfAndHalt(state, why);
  }

  /** Role NONE on disk: this node has let go of everything that it was the holder for. */
  private async lastHeartbeat(): Promise<void> {
    const { state } = this;
    const me = this.base.find((member) => member.node === state.self);
    if (me === undefined || state.location === null) return;
    const { self } = state.config;
    const asked_at = state.now();
    state.ports.disk.setHeartbeat(state.location, me.slot, {
      volume: state.ports.disk.volume,
      epoch: state.highestEpoch,
      node: self.node,
      incarnation: self.incarnation,
      uuid: self.uuid,
      role: Role.NONE,
      port: self.port,
      address: self.address,
      unreachableSlots: 0n,
      hostName: self.hostName,
    });
    const written = (): true | undefined => (state.heartbeatWrittenAt >= asked_at ? true : undefined);
    if ((await state.until(written, 2 * state.timings.heartbeatMs)) === null) {
      state.log("warn", "the others could not be told; they wait for the node timeout", {});
    }
    await state.ports.disk.stopHeartbeat(false);
    state.alive();
  }

  /** Its lease has run out by its own clock, and by a tenth more. */
  async waitForLeaseEnd(member: MemberInfo): Promise<void> {
    const { state } = this;
    if (state.mistakes.has("skip-lease-wait")) return;
    const until = this.lease.leaseOverAt(member);
    if (until > state.now()) await state.pause(until - state.now());
  }

  /** A newcomer without a registered key would be a member that cannot write its heartbeat. */
  private async checkJoinersKeys(plan: Plan): Promise<boolean> {
    const { state } = this;
    if (state.ports.pr === null || plan.joined.length === 0) return true;
    const keys = await state.ports.pr.readKeys();
    state.alive();
    if (keys.kind === "error") {
      state.log("error", "READ KEYS fails; joins wait", { error: keys.message });
      await state.pause(state.timings.heartbeatMs);
      return false;
    }
    const without = plan.joined.filter((m) => !keys.keys.includes(prKey(m.node, m.incarnation)));
    return without.length === 0 || this.giveUpOn(without, "its key is not registered; registering again");
  }

  /**
   * The header with the new epoch, durable. A conflict means that we are fenced; errors are tried again, as long as the
   * reservation is ours: who had it taken from him and let the taker leave is not refused by the target.
   */
  private async writeHeader(plan: Plan): Promise<void> {
    const { state } = this;
    const location = state.location;
    if (location === null) throw new Error("the header cannot be written before lockstate was found");
    const header = this.makeHeader(plan.view, plan.evicted);
    const deadline = state.now() + state.timings.nodeTimeoutMs;
    for (;;) {
      const outcome = await state.ports.disk.writeHeader(location, header);
      state.alive();
      if (outcome.kind === "ok") break;
      if (outcome.kind === "conflict") {
        fenceSelfAndHalt(state, "the target refused our write of the header: another node has fenced us");
      }
      state.log("error", "cannot write the header", { error: outcome.message });
      do {
        if (state.now() >= deadline)
          fenceSelfAndHalt(state, `the header cannot be written: ${outcome.message}`);
        await state.pause(state.timings.heartbeatMs);
      } while (!(await this.hasReservation()));
    }
    state.header = header;
    await this.journal.follow(plan.view.members, state.self);
  }

  /** False: nobody has it, or nobody can tell. */
  private async hasReservation(): Promise<boolean> {
    const { state } = this;
    if (state.ports.pr === null) return true;
    const reservation = await state.ports.pr.readReservation();
    state.alive();
    if (reservation.kind !== "held") return false;
    if (reservation.key !== state.key) {
      fenceSelfAndHalt(
        state,
        `key ${hexKey(reservation.key)} has the reservation: another node has taken over`,
      );
    }
    return true;
  }

  private makeHeader(view: View, evicted: readonly Eviction[]): DiskHeader {
    const { state } = this;
    const { location, header } = state;
    if (location === null) throw new Error("header without lockstate's location");
    // A second key, or a sequence that starts over, would split the cluster.
    const cluster_key = header?.clusterKey ?? this.newClusterKey;
    if (cluster_key === null)
      throw new Error("a header is to be written, and the one on disk was never read");
    const members: HeaderMember[] = view.members.map(({ node, incarnation, slot }) => ({
      node,
      incarnation,
      slot,
      state: HEADER_MEMBER_STATE.ACTIVE,
    }));
    const just_evicted: HeaderMember[] = evicted.map(({ member }) => ({
      node: member.node,
      incarnation: member.incarnation,
      slot: member.slot,
      state: HEADER_MEMBER_STATE.DEAD,
    }));
    const dead = just_evicted
      .concat(header === null ? [] : deadMembers(header))
      .filter((gone) => !members.some((member) => member.node === gone.node));
    return {
      volume: state.ports.disk.volume,
      volumeUuid: state.ports.disk.volumeUuid,
      epoch: view.epoch,
      sequence: (header?.sequence ?? 0n) + 1n,
      ino: location.ino,
      generation: location.generation,
      recordSize: location.recordSize,
      lockRecordCount: header?.lockRecordCount ?? state.config.lockRecordCount,
      holder: state.self,
      holderIncarnation: state.config.self.incarnation,
      clusterKey: cluster_key,
      members: [...members, ...dead].slice(0, MXFS_NODE_COUNT_MAX),
      extents: location.extents,
      chunkOwners: dealChunks(
        header?.chunkOwners ?? new Uint8Array(MXFS_DISK_LOCK_CHUNK_COUNT_MAX),
        chunkCount(header?.lockRecordCount ?? state.config.lockRecordCount),
        view.members.map((member) => member.slot),
      ),
    };
  }

  /** The header says that the members are `members`, before any change has been prepared. */
  async writePlainHeader(members: readonly MemberInfo[], evicted: readonly MemberInfo[]): Promise<void> {
    const { state } = this;
    const view: View = { epoch: state.highestEpoch + 1n, holder: state.self, members };
    state.raiseEpoch(view.epoch);
    await this.writeHeader({
      view,
      evicted: evicted.map((member) => ({ member, reason: "" })),
      joined: [],
      reason: "",
      resend: false,
      generations: new Map(),
    });
    this.base = [...members];
  }

  private headerCounts(plan: Plan): void {
    const { state } = this;
    this.base = [...plan.view.members];
    for (const { member } of plan.evicted) {
      this.evictions.delete(member.node);
      state.ports.kernel.nodeStatus(member.node, member.incarnation, NodeState.DEAD);
      if (!plan.joined.some((joined) => joined.node === member.node)) state.ports.net.disconnect(member.node);
    }
    // Before it can ask for anything. The kernel may know this very incarnation as dead: a newcomer in a change that died
    // with its holder has written nothing, and tries again.
    for (const member of plan.joined) {
      state.ports.kernel.nodeStatus(member.node, member.incarnation, NodeState.JOINING);
    }
  }

  private afterCommit(plan: Plan): void {
    const { state } = this;
    this.resend = false;
    for (const member of plan.view.members) {
      if (this.joins.get(member.node)?.incarnation === member.incarnation) this.joins.delete(member.node);
    }
    for (const member of plan.joined) {
      state.ports.kernel.nodeStatus(member.node, member.incarnation, NodeState.ACTIVE);
    }
    for (const [node, incarnation] of [...this.leaves]) {
      if (plan.view.members.some((m) => m.node === node && m.incarnation === incarnation)) continue;
      this.leaves.delete(node);
      this.#recentlyLeft.add(node);
      state.send(node, { kind: "LEFT", epoch: plan.view.epoch });
      state.ports.kernel.nodeStatus(node, incarnation, NodeState.LEFT);
    }
  }
}
