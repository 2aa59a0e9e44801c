// SPDX-License-Identifier: GPL-2.0-only
/**
 * A node's own part in a view change, the same for the coordinator (which calls it directly) and for every other
 * member (driven by PREPARE, REBUILD, COMMIT): freeze and adopt, dump and reclaim, resume.
 *
 * Protocol: docs/interfaces.md section 6. A PREPARE of a higher epoch supersedes whatever was under way: the older
 * flow sees that state.next is not its view any more and ends silently. A PREPARE that is not above every epoch this
 * node has seen is refused with that epoch, so a coordinator whose daemon was restarted climbs above it.
 *
 * Known weakness: between PREPARE and COMMIT this node serves no lock; a coordinator that dies there leaves it
 * frozen until the holder is judged dead.
 */
import { hexKey } from "../disk/reservation.js";
import { Role } from "../wire/abi.js";
import type { ClusterMessageOf, MemberInfo } from "../wire/messages.js";
import { fenceSelf, fenceSelfAndHalt } from "./eviction.js";
import type { LeaseKeeper } from "./lease.js";
import { prKey, type View } from "./ports.js";
import { type ClusterState, hexNode, holderOf, memberOf } from "./state.js";

export class Participant {
  /** While joining or rejoining: the node whose PREPARE is awaited. */
  joinTarget: number | null = null;
  readonly #rebuildSent = new Set<number>();
  /** The view under way has no other node, and nobody but the kernel wants the kernel's locks. */
  #solo = false;

  constructor(
    readonly state: ClusterState,
    readonly lease: LeaseKeeper,
  ) {}

  // ---- the three steps, on this node ------------------------------------------------------------------------

  /** Step 1: stop deciding locks, take the next view over, dial whom we miss. */
  begin(view: View): void {
    const { state } = this;
    state.raiseEpoch(view.epoch);
    state.next = view;
    this.#rebuildSent.clear();
    this.lease.watch(view.members);
    state.ports.locks.freezeAndClear(view);
    for (const member of this.others(view)) {
      if (!state.isConnected(member)) state.ports.net.connect(member.node, member.address, member.port);
    }
    state.poke();
  }

  /** The members this node has no connection to after `timeoutMs`. */
  async connectAll(view: View, timeoutMs: number, isVoid = (): boolean => false): Promise<MemberInfo[]> {
    const { state } = this;
    const missing = (): MemberInfo[] => this.others(view).filter((member) => !state.isConnected(member));
    await state.until(
      () => (state.next !== view || isVoid() || missing().length === 0 ? true : undefined),
      timeoutMs,
    );
    return missing();
  }

  /** Step 2: tell all locks to their new masters. False when superseded, or others did not tell theirs in time. */
  async rebuild(view: View): Promise<boolean> {
    const { state } = this;
    if (!(await this.startHeartbeat(view))) return false;
    const alone = view.members.length === 1 || state.mistakes.has("solo-in-company");
    this.#solo = alone && !state.soloBarred;
    const dump = await state.ports.kernel.lockDump(view.epoch, this.#solo);
    state.alive();
    if (state.next !== view) return false;
    if (dump.error !== 0) throw new Error(`kernel refused LOCK_DUMP: errno ${dump.error} ${dump.message}`);
    await state.ports.locks.reclaimControl(view.epoch);
    state.alive();
    if (state.next !== view) return false;
    for (const member of this.others(view))
      state.send(member.node, { kind: "REBUILD_SENT", epoch: view.epoch });
    this.#rebuildSent.add(state.self);
    const all = (): boolean => view.members.every((member) => this.#rebuildSent.has(member.node));
    const done = await state.until(
      () => (state.next !== view ? false : all() ? true : undefined),
      2 * state.timings.nodeTimeoutMs,
    );
    return done === true && (await this.makeRecords(view));
  }

  /** Rule 5 over view changes: what is mastered here now, and allows writing, is on disk before we say so. */
  private async makeRecords(view: View): Promise<boolean> {
    const { state } = this;
    const deadline = state.now() + state.timings.nodeTimeoutMs;
    for (;;) {
      const { location } = state;
      if (location === null) throw new Error("lock records are to be made before lockstate was found");
      const outcome = await state.ports.locks.makeRecords(view, location);
      state.alive();
      if (state.next !== view) return false;
      if (outcome.kind === "ok") {
        // The next header may deal our chunks out without asking us.
        if (state.phase === "leaving" && state.role === Role.MEMBER) await state.ports.locks.freezeRecords();
        return true;
      }
      if (outcome.kind === "conflict") {
        fenceSelfAndHalt(state, "the target refused our write of a lock record: another node has fenced us");
      }
      state.log("error", "cannot write the lock records", { error: outcome.message });
      if (state.now() >= deadline)
        fenceSelfAndHalt(state, `the lock records cannot be written: ${outcome.message}`);
      await state.pause(state.timings.heartbeatMs, () => state.next !== view);
    }
  }

  /** The slot is ours once the header says so; a newcomer must have written it before it counts as a member. */
  private async startHeartbeat(view: View): Promise<boolean> {
    const { state } = this;
    const me = memberOf(view, state.self);
    const location = state.location;
    if (me === undefined || location === null) throw new Error("view change without our slot or lockstate");
    const { self } = state.config;
    state.admitted = true;
    state.ports.disk.setHeartbeat(location, me.slot, {
      volume: state.ports.disk.volume,
      epoch: view.epoch,
      node: self.node,
      incarnation: self.incarnation,
      uuid: self.uuid,
      role: me.role,
      port: self.port,
      address: self.address,
      unreachableSlots: 0n,
      hostName: self.hostName,
    });
    const written = await state.until(
      () => (state.next !== view ? false : state.heartbeatWrittenAt >= 0 ? true : undefined),
      state.timings.nodeTimeoutMs,
    );
    return written === true;
  }

  /** Step 3: the view counts. */
  commit(view: View, resend: boolean): void {
    const { state } = this;
    const gone = (state.view?.members ?? []).filter(
      (old) => memberOf(view, old.node)?.incarnation !== old.incarnation,
    );
    state.view = view;
    state.next = null;
    state.newHolder = null;
    state.role = view.holder === state.self ? Role.HOLDER : Role.MEMBER;
    this.joinTarget = null;
    if (state.phase === "starting") state.phase = "running";
    this.lease.watchOnly(view.members);
    for (const member of gone) state.ports.locks.purge(member.node);
    state.ports.locks.resume(view.epoch);
    state.ports.kernel.view(view.epoch, holderOf(view), resend, this.#solo);
    state.solo = this.#solo;
    if (this.lease.leaseUntil > state.now()) state.ports.kernel.lease(this.lease.leaseUntil, view.epoch);
    for (const node of state.recovering) state.ports.kernel.recovery(false, node, view.epoch);
    state.recovering.clear();
    state.log("info", "view committed", {
      epoch: view.epoch,
      holder: hexNode(view.holder),
      members: view.members.map((member) => hexNode(member.node)).join(","),
    });
    state.poke();
  }

  /** The JOIN came to nothing: no PREPARE or COMMIT is followed until the next one. */
  abandonJoin(): void {
    this.joinTarget = null;
    if (this.state.view === null) this.state.next = null;
    this.state.poke();
  }

  // ---- driven by the coordinator's messages -----------------------------------------------------------------

  /** Whose view changes this node follows. */
  private follows(from: number): boolean {
    const { state } = this;
    if (state.role === Role.HOLDER) return false;
    if (this.joinTarget !== null) return from === this.joinTarget;
    if (state.view === null) return false;
    if (from === state.newHolder) return true;
    // A later incarnation of it has taken over like any other (hasTakenOver).
    if (from === state.view.holder) return state.isConnected(holderOf(state.view));
    // During a hand-over any member may come forward as the new holder.
    return state.gateShut && memberOf(state.view, from) !== undefined;
  }

  /**
   * A member that comes forward and has the reservation has taken a dead holder over. It may be one that was let in by a view of
   * which we had no COMMIT before its holder died.
   */
  private async hasTakenOver(from: number): Promise<boolean> {
    const { state } = this;
    const member = [memberOf(state.view, from), memberOf(state.next, from)].find(
      (known) => known !== undefined && state.isConnected(known),
    );
    if (member === undefined || state.role !== Role.MEMBER || this.joinTarget !== null) return false;
    // Without reservations there is only our own judgement of the holder.
    if (state.ports.pr === null) return state.contested;
    const reservation = await state.ports.pr.readReservation();
    state.alive();
    return reservation.kind === "held" && reservation.key === prKey(member.node, member.incarnation);
  }

  /** The dead holder's recovery has begun: until the next view is committed the kernel lets nobody in. */
  recoveryBegins(node: number): void {
    const { state } = this;
    if (state.recovering.has(node)) return;
    state.recovering.add(node);
    state.ports.kernel.recovery(true, node, state.highestEpoch);
  }

  async prepared(from: number, message: ClusterMessageOf<"PREPARE">): Promise<void> {
    const { state } = this;
    const me = message.members.find((member) => member.node === state.self);
    if (from === message.holder && !this.follows(from) && (await this.hasTakenOver(from))) {
      state.newHolder = from;
      if (state.view !== null) this.recoveryBegins(state.view.holder);
      // It died in its hand-over: our gate's drain may wait for its answers, and the lock dump behind the drain.
      if (state.gateShut) {
        const forced = await state.ports.kernel.gate(false, "the holder died while it left", true);
        state.alive();
        if (forced.error !== 0) throw new Error(`kernel refused to force the gate: errno ${forced.error}`);
      }
    }
    const stale = message.epoch <= state.highestEpoch && !state.mistakes.has("accept-stale-epoch");
    if (from !== message.holder || !this.follows(from) || me?.incarnation !== state.config.self.incarnation) {
      state.log("warn", "ignored a PREPARE from a node that is not our holder, or that does not name us", {
        from: hexNode(from),
        epoch: message.epoch,
      });
      return;
    }
    if (stale) {
      const seen = state.highestEpoch;
      state.send(from, { kind: "PREPARED", epoch: message.epoch, seen, refused: true, unreachable: [] });
      return;
    }
    const view: View = { epoch: message.epoch, holder: message.holder, members: message.members };
    this.begin(view);
    const missing = await this.connectAll(view, state.timings.nodeTimeoutMs / 2);
    if (state.next !== view) return;
    // Our lock records may be another's from here on.
    if (!state.mistakes.has("prepared-while-writing")) await state.ports.locks.freezeRecords();
    state.alive();
    if (state.next !== view) return;
    state.send(from, {
      kind: "PREPARED",
      epoch: view.epoch,
      seen: view.epoch,
      refused: false,
      unreachable: missing.map((member) => member.node),
    });
  }

  async rebuildAsked(from: number, epoch: bigint): Promise<void> {
    const { state } = this;
    const view = state.next;
    if (view === null || view.epoch !== epoch || from !== view.holder) {
      this.stale(from, "REBUILD", epoch);
      return;
    }
    if (await this.rebuild(view)) state.send(from, { kind: "REBUILT", epoch });
  }

  /** Whether that node has told its locks in the change under way. */
  hasSent(node: number): boolean {
    return this.#rebuildSent.has(node);
  }

  rebuildSent(from: number, epoch: bigint): void {
    const { state } = this;
    if (state.next === null || state.next.epoch !== epoch) {
      this.stale(from, "REBUILD_SENT", epoch);
      return;
    }
    this.#rebuildSent.add(from);
    state.poke();
  }

  async committed(from: number, message: ClusterMessageOf<"COMMIT">): Promise<void> {
    const { state } = this;
    const view = state.next;
    if (view === null || view.epoch !== message.epoch || from !== view.holder) {
      this.stale(from, "COMMIT", message.epoch);
      return;
    }
    this.commit(view, message.resend);
    for (const node of [...state.connected.keys()]) {
      if (memberOf(view, node) === undefined) state.ports.net.disconnect(node);
    }
    await this.reopenGate();
    state.send(from, { kind: "COMMITTED", epoch: message.epoch });
  }

  /** After a hand-over, done or given up. */
  async reopenGate(): Promise<void> {
    const { state } = this;
    if (!state.gateShut) return;
    state.gateShut = false;
    const opened = await state.ports.kernel.gate(true, "hand-over is over", false);
    state.alive();
    if (opened.error !== 0) {
      throw new Error(`kernel refused to open the gate: errno ${opened.error} ${opened.message}`);
    }
  }

  /** The holder is leaving: let everybody out of the gate and say so. */
  async gateShutAsked(from: number, reason: string): Promise<void> {
    const { state } = this;
    if (state.view === null || from !== state.view.holder) {
      this.stale(from, "GATE_SHUT", 0n);
      return;
    }
    const epoch = state.view.epoch;
    state.gateShut = true;
    const shut = await state.ports.kernel.gate(false, reason, false);
    state.alive();
    if (shut.error !== 0) {
      throw new Error(`kernel refused to shut the gate: errno ${shut.error} ${shut.message}`);
    }
    if (state.view?.epoch === epoch && state.gateShut) state.send(from, { kind: "GATE_IS_SHUT" });
  }

  /** JOIN_REFUSED after we were a member: the holder has evicted us. */
  evicted(reason: string): void {
    fenceSelf(this.state, `the holder refuses us: ${reason} (our key is ${hexKey(this.state.key)})`);
  }

  private others(view: View): MemberInfo[] {
    return view.members.filter((member) => member.node !== this.state.self);
  }

  private stale(from: number, kind: string, epoch: bigint): void {
    this.state.log("debug", "dropped a message of another epoch", { from: hexNode(from), kind, epoch });
  }
}
