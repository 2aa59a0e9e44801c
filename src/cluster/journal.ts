// SPDX-License-Identifier: GPL-2.0-only
/**
 * Journal slots: who of the members may own the XFS log, and what a survivor must do first, written on disk.
 *
 * A node's journal slot has its heartbeat slot's number. Slots are written by the journal holder, which claims one for
 * each member when the header takes it in and frees it when the header lets it go; and by the winner of a dead holder's
 * reservation, which marks that one's slot: needs recovery (the reservation is won), being recovered (XFS is about to be
 * mounted, which replays the log), free (it is mounted).
 *
 * Known weakness: the slots tell people and tests what has happened; decisions rest on the reservation and the header. So
 * a slot that cannot be written is logged and written again with the next header.
 */
import { JOURNAL_STATE, type JournalState } from "../disk/record.js";
import { MXFS_NODE_COUNT_MAX } from "../wire/abi.js";
import type { MemberInfo } from "../wire/messages.js";
import { fenceSelfAndHalt } from "./eviction.js";
import { type ClusterState, hexNode } from "./state.js";

interface Claim {
  readonly node: number;
  readonly incarnation: number;
  readonly state: JournalState;
}

export class JournalSlots {
  /** What the disk says, as far as we know. */
  readonly #known = new Map<number, Claim>();
  #sequence = 0n;
  #read = false;

  constructor(readonly state: ClusterState) {}

  /** What a member list and its holder mean for the slots: everybody else's is free. */
  async follow(members: readonly MemberInfo[], holder: number): Promise<void> {
    await this.readAll();
    for (let slot = 0; slot < MXFS_NODE_COUNT_MAX; slot++) {
      const member = members.find((m) => m.slot === slot);
      const known = this.#known.get(slot);
      if (member !== undefined) {
        const { node, incarnation } = member;
        const state = node === holder ? JOURNAL_STATE.HOLDER : JOURNAL_STATE.MEMBER;
        await this.write(slot, { node, incarnation, state });
      } else if (known !== undefined && known.state !== JOURNAL_STATE.FREE) {
        await this.write(slot, { ...known, state: JOURNAL_STATE.FREE });
      }
    }
  }

  /** Marks the dead holder's slot. */
  async mark(dead: Omit<Claim, "state"> & { readonly slot: number }, state: JournalState): Promise<void> {
    await this.readAll();
    await this.write(dead.slot, { node: dead.node, incarnation: dead.incarnation, state });
  }

  private async readAll(): Promise<void> {
    const { state } = this;
    if (this.#read || state.location === null) return;
    const outcome = await state.ports.disk.readJournals(state.location);
    state.alive();
    if (outcome.kind === "error") {
      state.log("warn", "journal slots cannot be read", { error: outcome.message });
      return;
    }
    this.#read = true;
    for (const [slot, record] of outcome.records.entries()) {
      if (record === null) continue;
      this.#known.set(slot, record);
      if (record.sequence > this.#sequence) this.#sequence = record.sequence;
    }
  }

  private async write(slot: number, claim: Claim): Promise<void> {
    const { state } = this;
    const known = this.#known.get(slot);
    const same =
      known?.node === claim.node && known.incarnation === claim.incarnation && known.state === claim.state;
    if (same || state.location === null) return;
    this.#sequence += 1n;
    const outcome = await state.ports.disk.writeJournal(state.location, slot, {
      volume: state.ports.disk.volume,
      epoch: state.highestEpoch,
      sequence: this.#sequence,
      ...claim,
      recoverer: claim.state === JOURNAL_STATE.RECOVERING ? state.self : 0,
    });
    state.alive();
    if (outcome.kind === "conflict") {
      fenceSelfAndHalt(state, "the target refused our write of a journal slot: another node has fenced us");
    }
    if (outcome.kind === "ok") {
      this.#known.set(slot, claim);
      return;
    }
    state.log("error", "cannot write a journal slot; it is written again with the next header", {
      slot,
      node: hexNode(claim.node),
      error: outcome.message,
    });
  }
}
