// SPDX-License-Identifier: GPL-2.0-only
/**
 * Leaving in good order: a member's leave, the holder's hand-over to a successor, the last leaver, and the
 * successor's side of the hand-over.
 *
 * Hand-over: GATE_SHUT to all (while our own gate is open, so that their fsops are answered) -> own gate -> XFS
 * unmounted -> TAKE_OVER to the first in rank -> it preempts our key, mounts, writes the header, says TAKEN_OVER, and
 * changes the view. So the reservation passes on without a gap, and never before the XFS is unmounted.
 *
 * A successor that wants to leave itself answers TAKE_OVER with LEAVE; one that dies is fenced and the next is asked.
 * The last leaver releases the reservation, unless an evicted node has not been seen to come back: then the key and
 * the reservation stay, and the next mount takes them over.
 *
 * Known weakness: between XFS unmounted here and mounted there every operation of the cluster waits.
 */
import { hexKey } from "../disk/reservation.js";
import { Role } from "../wire/abi.js";
import type { ClusterMessageOf, MemberInfo } from "../wire/messages.js";
import { fenceForSure, fenceKey, fenceSelfAndHalt } from "./eviction.js";
import { ERRNO, type LeaseKeeper } from "./lease.js";
import type { Coordinator } from "./membership.js";
import type { Participant } from "./participant.js";
import { prKey } from "./ports.js";
import { type ClusterState, deadMembers, hexNode } from "./state.js";

const ROUNDS_MAX = 64;

export class HandOver {
  /** Gates known to be shut in this hand-over. */
  readonly #gates = new Set<number>();
  #takenOverBy: number | null = null;
  #left = false;
  /** A TAKE_OVER is being carried out by this node. */
  takingOver = false;

  constructor(
    readonly state: ClusterState,
    readonly lease: LeaseKeeper,
    readonly participant: Participant,
    readonly coordinator: Coordinator,
    /** This node is the holder from now on. */
    readonly becameHolder: () => void,
  ) {}

  // ---- events -----------------------------------------------------------------------------------------------

  gateIsShut(from: number): void {
    this.#gates.add(from);
    this.state.poke();
  }

  takenOver(from: number): void {
    this.#takenOverBy = from;
    this.state.poke();
  }

  left(from: number): void {
    if (from !== this.state.view?.holder) return;
    this.#left = true;
    this.state.poke();
  }

  // ---- the leaver -------------------------------------------------------------------------------------------

  /** Leaves as whatever this node is by now; afterwards its key is gone (or kept on purpose) and XFS unmounted. */
  async leave(holderIsDead: () => boolean, coordinatorDone: () => Promise<void>): Promise<void> {
    const { state } = this;
    // A take-over that is under way decides what we are.
    await state.until(() => (this.takingOver ? undefined : true), 4 * state.timings.nodeTimeoutMs);
    if (state.role === Role.HOLDER) {
      await coordinatorDone();
      await this.leaveAsHolder();
    } else await this.leaveAsMember(holderIsDead);
  }

  private async leaveAsMember(holderIsDead: () => boolean): Promise<void> {
    const { state } = this;
    const deadline = state.now() + 4 * state.timings.nodeTimeoutMs;
    await state.ports.locks.freezeRecords();
    state.alive();
    while (!this.#left && state.now() < deadline && !holderIsDead()) {
      const holder = state.view?.holder ?? 0;
      const generation = state.generation(holder);
      state.send(holder, { kind: "LEAVE" });
      // Once on every connection, and again to a new holder.
      const changed = (): boolean => state.view?.holder !== holder || state.generation(holder) !== generation;
      await state.until(
        () => (this.#left || holderIsDead() || changed() ? true : undefined),
        deadline - state.now(),
      );
    }
    if (!this.#left) state.log("warn", "leaving without the holder's answer", {});
    await this.letGo();
    await this.unregister();
  }

  /** The kernel lets the disk go, and our slot is not written any more. */
  private async letGo(): Promise<void> {
    const { state } = this;
    const changed = await state.ports.kernel.roleChange(Role.NONE, 0, state.highestEpoch);
    state.alive();
    if (changed.error !== 0) {
      state.log("error", "kernel could not let go", { errno: changed.error, message: changed.message });
    }
    await state.ports.disk.stopHeartbeat(false);
    state.alive();
  }

  private async unregister(): Promise<void> {
    const { state } = this;
    if (state.ports.pr === null) return;
    const outcome = await state.ports.pr.unregister(state.key);
    state.alive();
    // Conflict: somebody has preempted us already; we have nothing mounted, so that is as well.
    if (outcome.kind === "error") state.log("error", "cannot unregister our key", { error: outcome.message });
  }

  private async leaveAsHolder(): Promise<void> {
    const { coordinator } = this;
    coordinator.stepDown = true;
    for (let round = 0; round < ROUNDS_MAX; round++) {
      // The coordinator's loop has ended: changes are ours to make now.
      while (coordinator.hasWork()) await coordinator.change("hand-over");
      if (coordinator.base.length <= 1) return this.leaveAlone();
      if (!(await this.shutGates())) continue;
      const refused = await this.unmountLower();
      if (refused !== null) {
        // Nobody can take over while our XFS is mounted: back to work, and the umount fails.
        coordinator.resend = true;
        await coordinator.change("hand-over given up");
        throw new HandOverRefused(refused);
      }
      return this.passOn();
    }
    throw new Error(`hand-over did not succeed in ${ROUNDS_MAX} rounds`);
  }

  /** Everybody outside the gate. False: somebody was evicted or wants to leave; begin again. */
  private async shutGates(): Promise<boolean> {
    const { state, coordinator } = this;
    const started_at = state.now();
    this.#gates.clear();
    const others = coordinator.base.filter((member) => member.node !== state.self);
    for (const member of others)
      state.send(member.node, { kind: "GATE_SHUT", reason: "the holder is leaving" });
    const lacking = (): MemberInfo[] => others.filter((member) => !this.#gates.has(member.node));
    const all = await state.until(
      () => (coordinator.hasWork() ? false : lacking().length === 0 ? true : undefined),
      state.timings.nodeTimeoutMs,
    );
    if (all === null) {
      for (const member of lacking()) coordinator.evict(member, "did not shut its gate for the hand-over");
    }
    state.log("info", "gates of the members shut", { ms: state.now() - started_at, all: all === true });
    return all === true;
  }

  private async unmountLower(): Promise<string | null> {
    const { state } = this;
    state.gateShut = true;
    const shut = await state.ports.kernel.gate(false, "the holder is leaving", false);
    state.alive();
    if (shut.error !== 0) return `gate: errno ${shut.error} ${shut.message}`;
    const changed = await state.ports.kernel.roleChange(Role.NONE, 0, state.highestEpoch);
    state.alive();
    if (changed.error !== 0) return `unmount of the XFS: errno ${changed.error} ${changed.message}`;
    state.role = Role.NONE;
    return null;
  }

  /** XFS is unmounted here, the reservation is still ours: find one who takes it. */
  private async passOn(): Promise<void> {
    const { state, coordinator } = this;
    await state.ports.locks.freezeRecords();
    state.alive();
    await state.ports.disk.stopHeartbeat(false);
    state.alive();
    const fenced: MemberInfo[] = [];
    for (const successor of coordinator.base.filter((member) => member.node !== state.self)) {
      if (coordinator.leaves.has(successor.node)) continue;
      if (await this.offer(successor)) return;
      if (coordinator.leaves.has(successor.node)) continue;
      if (await this.isReservationLost()) return;
      const key = prKey(successor.node, successor.incarnation);
      if ((await fenceKey(state, key, "did not take over")) === "failed" && (await this.isReservationLost()))
        return;
      fenced.push(successor);
    }
    // Whoever mounts next serves at once: by then they serve nothing any more, and ask us for no more time.
    for (const member of fenced) state.ports.net.disconnect(member.node);
    for (const member of fenced) await coordinator.waitForLeaseEnd(member);
    // Only such as wanted to leave were there: they hold nothing any more.
    await coordinator.writePlainHeader([], fenced);
    for (const node of coordinator.leaves.keys())
      state.send(node, { kind: "LEFT", epoch: state.highestEpoch });
    await this.releaseAll();
  }

  /** True when `successor` has the reservation and XFS. */
  private async offer(successor: MemberInfo): Promise<boolean> {
    const { state, coordinator } = this;
    if (!state.isConnected(successor)) return false;
    const started_at = state.now();
    const generation = state.generation(successor.node);
    const members = coordinator.base;
    // It may have taken us over once before: after a death of ours it says so to the incarnation that came back.
    this.#takenOverBy = null;
    state.send(successor.node, { kind: "TAKE_OVER", epoch: state.highestEpoch, members, oldKey: state.key });
    const answer = await state.until<"taken" | "declined" | "lost">(() => {
      if (this.#takenOverBy === successor.node) return "taken";
      if (coordinator.leaves.has(successor.node)) return "declined";
      if (state.generation(successor.node) !== generation) return "lost";
      return undefined;
    }, 4 * state.timings.nodeTimeoutMs);
    const ms = state.now() - started_at;
    state.log("info", "hand-over", { successor: hexNode(successor.node), answer: answer ?? "no answer", ms });
    return answer === "taken";
  }

  /** Who cannot tell writes nothing any more: somebody may have taken it over, and have released it since. */
  private async isReservationLost(): Promise<boolean> {
    const { state } = this;
    if (state.ports.pr === null) return false;
    const deadline = state.now() + state.timings.nodeTimeoutMs;
    for (;;) {
      const reservation = await state.ports.pr.readReservation();
      state.alive();
      // None: whoever took it over has left as well by now; we have not released it.
      if (reservation.kind !== "error") return reservation.kind === "none" || reservation.key !== state.key;
      state.log("error", "READ RESERVATION fails while leaving", { error: reservation.message });
      if (state.now() >= deadline) return true;
      await state.pause(state.timings.heartbeatMs);
    }
  }

  private async leaveAlone(): Promise<void> {
    const { coordinator } = this;
    const refused = await this.unmountLower();
    if (refused !== null) throw new HandOverRefused(refused);
    await coordinator.writePlainHeader([], []);
    await this.releaseAll();
  }

  private async releaseAll(): Promise<void> {
    const { state } = this;
    const { pr } = state.ports;
    await state.ports.disk.stopHeartbeat(true);
    state.alive();
    const unseen = state.header === null ? [] : deadMembers(state.header);
    if (unseen.length > 0) {
      state.log(
        "warn",
        "the reservation stays: evicted nodes have not come back, and may have writes queued",
        {
          nodes: unseen.map((member) => hexNode(member.node)).join(","),
        },
      );
      return;
    }
    if (pr === null) return;
    const released = await pr.release(state.key);
    state.alive();
    if (released.kind !== "ok")
      state.log("error", "cannot release the reservation", { outcome: released.kind });
    await this.unregister();
  }

  // ---- the successor ----------------------------------------------------------------------------------------

  /** TAKE_OVER from the holder. */
  async takeOver(from: number, message: ClusterMessageOf<"TAKE_OVER">): Promise<void> {
    const { state, coordinator } = this;
    // We have taken it for dead: one of the two ways to take it over, not both. If we were wrong, this one is left.
    await state.until(() => (state.contested ? undefined : true), 4 * state.timings.nodeTimeoutMs);
    if (
      state.contested ||
      state.view === null ||
      from !== state.view.holder ||
      state.role !== Role.MEMBER ||
      !state.connected.has(from)
    ) {
      state.log("warn", "ignored a TAKE_OVER from a node that is not our holder", { from: hexNode(from) });
      return;
    }
    if (state.unmountRequest !== null) {
      state.send(from, { kind: "LEAVE" });
      return;
    }
    this.takingOver = true;
    try {
      const started_at = state.now();
      await fenceForSure(state, message.oldKey, "it hands over", "is-empty");
      await this.checkReservationIsOurs();
      state.raiseEpoch(message.epoch);
      const mounted = await state.ports.kernel.roleChange(Role.HOLDER, state.self, state.highestEpoch);
      state.alive();
      if (mounted.error !== 0) {
        fenceSelfAndHalt(state, `cannot take the XFS over: errno ${mounted.error} ${mounted.message}`);
      }
      await this.readCurrentHeader();
      state.role = Role.HOLDER;
      state.gateShut = true;
      this.lease.restartAccounts();
      const old = message.members.find((member) => member.node === from);
      const rest = message.members.filter((member) => member.node !== from);
      this.lease.watch(rest);
      coordinator.resend = true;
      await coordinator.writePlainHeader(rest, []);
      state.send(from, { kind: "TAKEN_OVER" });
      state.log("info", "took over", {
        from: hexNode(from),
        key: old ? hexKey(message.oldKey) : "",
        ms: state.now() - started_at,
      });
      coordinator.requestResync("hand-over");
      this.becameHolder();
    } finally {
      this.takingOver = false;
      state.poke();
    }
  }

  private async checkReservationIsOurs(): Promise<void> {
    const { state } = this;
    if (state.ports.pr === null) return;
    for (;;) {
      const reservation = await state.ports.pr.readReservation();
      state.alive();
      if (reservation.kind === "held" && reservation.key === state.key) return;
      if (reservation.kind !== "error") {
        const by = reservation.kind === "held" ? hexKey(reservation.key) : "nobody";
        fenceSelfAndHalt(state, `took over from the holder, but the reservation is held by ${by}`);
      }
      state.log("error", "READ RESERVATION fails during take-over", { error: reservation.message });
      await state.pause(state.timings.heartbeatMs);
    }
  }

  private async readCurrentHeader(): Promise<void> {
    const { state } = this;
    if (state.location === null) throw new Error("take-over without lockstate's location");
    const deadline = state.now() + state.timings.nodeTimeoutMs;
    for (;;) {
      const outcome = await state.ports.disk.readHeader(state.location);
      state.alive();
      if (outcome.kind === "found") {
        state.header = outcome.header;
        state.raiseEpoch(outcome.header.epoch);
        return;
      }
      if (state.header !== null) return;
      const why = outcome.kind === "error" ? outcome.message : outcome.problems.join("; ") || "there is none";
      if (state.now() >= deadline) fenceSelfAndHalt(state, `take-over: no sound header can be read: ${why}`);
      state.log("error", "take-over: the header cannot be read", { why });
      await state.pause(state.timings.heartbeatMs);
    }
  }
}

/** The lower XFS could not be unmounted: the umount fails, and this node goes on as the holder. */
export class HandOverRefused extends Error {
  readonly errno = ERRNO.EBUSY;
  constructor(why: string) {
    super(`hand-over refused by the kernel: ${why}`);
    this.name = "HandOverRefused";
  }
}
