// SPDX-License-Identifier: GPL-2.0-only
/**
 * The guard looks at the target once a heartbeat period: is our key still there, does the reservation stand?
 *
 * A key that somebody took away is final (rule 9): fenced at once, not only when the next write is refused. A target
 * that has lost *everything* (restarted, and it keeps no reservations through that) is another matter: nobody has
 * fenced anybody, but nobody is kept from writing either. Then the rightful nodes arm it again:
 *
 *   our key is gone, and so is the reservation, or PRGENERATION has fallen (only a restart lets it fall: others have
 *     been faster than we) -> REGISTER, which fails on a path that has any key
 *   holder: the members of the view are there again -> RESERVE; it waits for them up to the node timeout, because their
 *     writes would be refused, and not at all while the header knows of evicted nodes that have not come back
 *
 * and only while the header on disk names this incarnation (as its holder, or as ACTIVE) and our lease runs, looked at
 * before and once more afterwards. Without the lease it waits: the lease comes back with the disk or somebody else
 * takes over. Whoever finds another one's reservation, or no place in the header, is fenced.
 *
 * Known weakness: from the restart to the RESERVE the target refuses nobody. Who was fenced before it and wakes up in
 * just that time can write what its kernel had queued. A target that keeps reservations (APTPL) has no such gap.
 */
import { HEADER_MEMBER_STATE, headerMismatch } from "../disk/lockstate.js";
import { hexKey } from "../disk/reservation.js";
import { Role } from "../wire/abi.js";
import { fenceSelfAndHalt } from "./eviction.js";
import type { LeaseKeeper } from "./lease.js";
import { type PrPort, prKey } from "./ports.js";
import { type ClusterState, deadMembers } from "./state.js";

/** Our standing in the header on disk. */
type Place = "ours" | "gone" | "unreadable";

export class ReservationGuard {
  #busy = false;
  /** PRGENERATION at the last look that found our key. */
  #generation = 0;
  /** Since when the reservation has been lacking, or another's while our key is there; holder only. */
  #lostSince: number | null = null;
  #said = "";

  constructor(
    readonly state: ClusterState,
    readonly lease: LeaseKeeper,
  ) {}

  /** One look; those that come while it lasts are dropped. */
  async look(): Promise<void> {
    const { state } = this;
    const { pr } = state.ports;
    if (pr === null || this.#busy || !this.isInOffice()) return;
    this.#busy = true;
    try {
      await this.check(pr);
    } finally {
      this.#busy = false;
    }
  }

  /** Start-up, hand-over and takeover look at the target by themselves. */
  private isInOffice(): boolean {
    const { state } = this;
    return state.phase === "running" && state.view !== null && !state.contested && !state.gateShut;
  }

  private async check(pr: PrPort): Promise<void> {
    const { state } = this;
    const keys = await pr.readKeys();
    state.alive();
    if (keys.kind === "error") return this.say(`READ KEYS fails: ${keys.message}`);
    const there = keys.keys.includes(state.key);
    const restarted = keys.generation < this.#generation;
    if (there) this.#generation = keys.generation;
    if (there && state.role !== Role.HOLDER) return this.say("");

    const reservation = await pr.readReservation();
    state.alive();
    if (reservation.kind === "error") return this.say(`READ RESERVATION fails: ${reservation.message}`);
    if (!this.isInOffice()) return;
    const vacant = reservation.kind === "none";
    if (!there) {
      if (vacant || restarted) return this.registerAgain(pr);
      fenceSelfAndHalt(
        state,
        `our key ${hexKey(state.key)} is gone from the target: another node has fenced us`,
      );
    }
    if (!vacant && reservation.key === state.key) {
      this.#lostSince = null;
      return this.say("");
    }
    this.#lostSince ??= state.now();
    const by = vacant ? "nobody" : `key ${hexKey(reservation.key)}`;
    if (!vacant && state.now() - this.#lostSince >= state.timings.nodeTimeoutMs) {
      fenceSelfAndHalt(
        state,
        `this node is the holder, and ${by} has had the reservation for the node timeout`,
      );
    }
    if (!vacant) return this.say(`the reservation is ${by}'s, and this node is the holder`);
    await this.reserveAgain(pr, keys.keys, this.#lostSince);
  }

  private async registerAgain(pr: PrPort): Promise<void> {
    const { state } = this;
    if (!(await this.mayArm())) return;
    const registered = await pr.registerAgain(state.key);
    state.alive();
    if (registered.kind === "conflict") {
      fenceSelfAndHalt(
        state,
        `our key ${hexKey(state.key)} is gone, and the target has another one for this path`,
      );
    }
    if (registered.kind !== "ok") {
      return this.say(
        `REGISTER after the target's restart fails: ${registered.kind === "error" ? registered.message : registered.kind}`,
      );
    }
    // It took its time: if somebody else may have decided meanwhile, our key must not stay.
    if (this.lease.leaseUntil <= state.now() || (await this.place()) === "gone") {
      const undone = await pr.unregister(state.key);
      state.alive();
      if (undone.kind === "error") state.log("error", "cannot unregister our key", { error: undone.message });
      fenceSelfAndHalt(
        state,
        "the target has lost its reservations, and our time ran out while we registered again",
      );
    }
    this.#said = "";
    state.log("warn", "the target had lost its reservations: registered again", { key: hexKey(state.key) });
  }

  private async reserveAgain(pr: PrPort, keys: readonly bigint[], since: number): Promise<void> {
    const { state } = this;
    const missing = (state.next ?? state.view)?.members.filter(
      (member) => !keys.includes(prKey(member.node, member.incarnation)),
    );
    const patient = state.header === null || deadMembers(state.header).length === 0;
    if (missing !== undefined && missing.length > 0 && patient) {
      if (state.now() - since < state.timings.nodeTimeoutMs) {
        return this.say(
          `the target has lost its reservation; ${missing.length} members are to register again`,
        );
      }
    }
    if (!(await this.mayArm())) return;
    const reserved = await pr.reserve(state.key);
    state.alive();
    // Conflict: somebody was faster; the next look says whether that is final.
    if (reserved.kind !== "ok") {
      return this.say(
        `RESERVE after the target's restart fails: ${reserved.kind === "error" ? reserved.message : reserved.kind}`,
      );
    }
    if ((await this.place()) === "gone") {
      fenceSelfAndHalt(state, "the reservation is ours again, and the header names another holder");
    }
    this.#lostSince = null;
    this.#said = "";
    state.log("warn", "the target had lost its reservation: reserved again", { ms: state.now() - since });
  }

  /** The header names this incarnation, and our lease runs. No place in the header: fenced. */
  private async mayArm(): Promise<boolean> {
    const { state } = this;
    const place = await this.place();
    if (place === "gone") {
      fenceSelfAndHalt(
        state,
        "the target has lost its reservations, and the header does not name us any more",
      );
    }
    if (place === "ours" && this.isInOffice() && this.lease.leaseUntil > state.now()) return true;
    const why = place === "unreadable" ? "the header cannot be read" : "our lease does not run";
    this.say(`the target has lost its reservations, and is not armed again yet: ${why}`);
    return false;
  }

  private async place(): Promise<Place> {
    const { state } = this;
    const { location } = state;
    if (location === null) return "unreadable";
    const outcome = await state.ports.disk.readHeader(location);
    state.alive();
    if (outcome.kind !== "found" || headerMismatch(outcome.header, location) !== null) return "unreadable";
    const { header } = outcome;
    const { node, incarnation } = state.config.self;
    const active = header.members.some(
      (m) => m.node === node && m.incarnation === incarnation && m.state === HEADER_MEMBER_STATE.ACTIVE,
    );
    const leads = header.holder === node && header.holderIncarnation === incarnation;
    return active && (leads || state.role !== Role.HOLDER) ? "ours" : "gone";
  }

  /** Once for each reason; "" when all is well. */
  private say(why: string): void {
    if (why !== "" && why !== this.#said) this.state.log("warn", "reservation guard", { why });
    this.#said = why;
  }
}
