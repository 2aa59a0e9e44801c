// SPDX-License-Identifier: GPL-2.0-only
/**
 * Leases and who is alive. A lease is renewed only by a heartbeat that was written, and
 *   for a member: the holder's LEASE_ACK, counted from the *sending* of the renewal it answers;
 *   for the holder: LEASE_ACKs of at least half of the view, itself included, counted from the sending.
 * It is never taken away: one lets it run out, the kernel enforces that by itself.
 *
 * Liveness: a heartbeat counts when its counter moves between two of our own reads, judged by our own clock, or when
 * a renewal arrives. Silence of both for the node timeout is death. A member that is cut off from the holder's
 * network and heartbeats on is evicted as well, but only while the holder's own lease runs (it has half of the view).
 *
 * Known weakness: when this node's own reads stop for a while (paused guest, disk stall) it cannot tell others'
 * silence from its own deafness; the gap is added to everybody's account, so a death is found later.
 */
import type { HeartbeatRecord } from "../disk/record.js";
import { NodeState, Role } from "../wire/abi.js";
import type { ClusterMessageOf, MemberInfo } from "../wire/messages.js";
import type { TimerHandle, View } from "./ports.js";
import { type ClusterState, hexNode, keyOfHolder, memberOf } from "./state.js";

/** What we know of another node's life. All times are our own clock's. */
interface Account {
  incarnation: number;
  sequence: bigint;
  heartbeatMovedAt: number;
  renewalAt: number;
  /** When the last one came of those that may have been acknowledged. */
  leaseFrom: number;
  /** When we have last acknowledged a renewal of it. */
  acknowledgedAt: number;
  suspected: boolean;
  unreachable: readonly number[];
  /** A later incarnation of the node has come. */
  provenDead: boolean;
}

const ROUNDS_MAX = 16;

export interface LeaseCallbacks {
  /** Holder: this member must go. */
  evict(member: MemberInfo, reason: string): void;
  /** Holder: renewals of a node that is being evicted are not acknowledged any more. */
  isBeingEvicted(node: number): boolean;
  /** Holder: the node has left, its renewals are answered to the end. */
  isLeaving(node: number): boolean;
  /** Holder: these members heartbeat, are more than half of the view, and out of reach. */
  stepDown(cut: readonly MemberInfo[]): void;
  /** Member: the holder is dead. */
  holderDead(holder: MemberInfo, silentMs: number): void;
}

export class LeaseKeeper {
  /** CLOCK_BOOTTIME ms until which this node may serve; 0 before the first renewal. */
  leaseUntil = 0;
  #seq = 0n;
  /** Renewals under way: when sent, and who has acknowledged. */
  readonly #rounds = new Map<bigint, { sentAt: number; acks: Set<number> }>();
  readonly #accounts = new Map<number, Account>();
  /** Pairs of members that cannot reach each other, and since when. */
  readonly #cutPairs = new Map<string, number>();
  /** Whose renewals are not acknowledged, since they are about to be evicted for a cut pair: their leases are over by then. */
  #withheld: ReadonlySet<number> = new Set();
  #lastReadAt = -1;
  #lastRenewAt = -1;
  /** The key of whose acknowledgement the last renewal asked for: what a dead holder was asked is worth nothing to the next. */
  #lastRenewHolder = 0n;
  #ranOutLogged = false;
  #judgeSoon: TimerHandle | null = null;

  constructor(
    readonly state: ClusterState,
    readonly callbacks: LeaseCallbacks,
  ) {}

  /**
   * When that member's lease has surely run out, by our own clock. It renews only behind a heartbeat of its own, at
   * most a lease after that was written; so two leases after its heartbeat was last seen to move, however it got its
   * acknowledgements. Who got them from us alone is out one lease after its last renewal. What we have acknowledged ourselves
   * runs in any case: the heartbeat behind it may be one that we have not read yet.
   */
  leaseOverAt(member: MemberInfo): number {
    const account = this.#accounts.get(member.node);
    const grace = this.state.graceMs;
    if (account === undefined || account.incarnation !== member.incarnation) return this.state.now() + grace;
    if (account.provenDead) return this.state.now();
    const over = Math.min(account.leaseFrom + grace, account.heartbeatMovedAt + 2 * grace);
    return Math.max(over, account.acknowledgedAt + grace);
  }

  /** As leaseOverAt(), for one that others have acknowledged. */
  holderLeaseOverAt(holder: MemberInfo): number {
    const account = this.#accounts.get(holder.node);
    const grace = this.state.graceMs;
    if (account === undefined || account.incarnation !== holder.incarnation)
      return this.state.now() + 2 * grace;
    return account.provenDead ? this.state.now() : account.heartbeatMovedAt + 2 * grace;
  }

  /** For how long neither its heartbeat moved nor a renewal came; 0 when it is not watched. */
  silentMs(node: number, incarnation: number): number {
    const account = this.#accounts.get(node);
    if (account === undefined || account.incarnation !== incarnation) return 0;
    return this.state.now() - Math.max(account.heartbeatMovedAt, account.renewalAt);
  }

  heartbeatSilentMs(node: number, incarnation: number): number {
    const account = this.#accounts.get(node);
    if (account === undefined || account.incarnation !== incarnation) return 0;
    return this.state.now() - account.heartbeatMovedAt;
  }

  /**
   * Neither a heartbeat nor a lease message for the node timeout, or a later incarnation has come. A connection that is
   * merely open proves nothing: it outlives its other end by minutes.
   */
  isDead(node: number, incarnation: number): boolean {
    const account = this.#accounts.get(node);
    if (account === undefined || account.incarnation !== incarnation) return false;
    if (this.state.mistakes.has("preempt-living-holder"))
      return this.state.connected.get(node) !== incarnation;
    return account.provenDead || this.silentMs(node, incarnation) >= this.state.timings.nodeTimeoutMs;
  }

  /**
   * A later incarnation of this node has come. It is believed only when the old one's heartbeat stands still by our
   * own reads too (two hosts with one UUID). True: dead.
   */
  proveDead(node: number, incarnation: number): boolean {
    const account = this.#accounts.get(node);
    if (account === undefined || account.incarnation !== incarnation) return false;
    if (this.heartbeatSilentMs(node, incarnation) < 2 * this.state.timings.heartbeatMs) return false;
    account.provenDead = true;
    return true;
  }

  /**
   * This node has taken a dead holder over. The survivors' leases were renewed by the old one, which could go on for
   * a lease after it was fenced; what we knew of their heartbeats stands.
   */
  tookOver(members: readonly MemberInfo[], fencedAt: number): void {
    this.watch(members);
    this.watchOnly(members);
    const from = Math.max(this.state.now(), fencedAt + this.state.graceMs);
    for (const account of this.#accounts.values()) account.renewalAt = account.leaseFrom = from;
  }

  /** Begins to watch the members of a view that is being prepared. */
  watch(members: readonly { readonly node: number; readonly incarnation: number }[]): void {
    const now = this.state.now();
    for (const member of members) {
      const account = this.#accounts.get(member.node);
      if (account === undefined || account.incarnation !== member.incarnation) {
        this.#accounts.set(member.node, freshAccount(member.incarnation, now));
      }
    }
  }

  /** The view is committed: forget who is not in it. */
  watchOnly(members: readonly MemberInfo[]): void {
    for (const node of [...this.#accounts.keys()]) {
      if (!members.some((member) => member.node === node)) this.#accounts.delete(node);
    }
  }

  /** A new holder knows nothing of renewals given to the old one: count from now. */
  restartAccounts(): void {
    this.#accounts.clear();
  }

  /**
   * Whose acknowledgements count: the committed view's; that of the one being prepared when there is none yet, or when
   * it has another holder (hand-over).
   */
  private leaseView(): View | null {
    const { view, next } = this.state;
    if (view === null || next === null) return view ?? next;
    return next.holder === view.holder ? view : next;
  }

  heartbeatWritten(atMs: number): void {
    const { state } = this;
    const view = this.leaseView();
    if (view === null || memberOf(view, state.self) === undefined) return;
    const now = state.now();
    if (
      this.#lastRenewAt >= 0 &&
      this.#lastRenewHolder === keyOfHolder(view) &&
      now - this.#lastRenewAt < state.timings.renewMs - state.timings.heartbeatMs / 2
    ) {
      return;
    }
    // A heartbeat that took longer than a lease to be written proves nothing of now.
    if (now - atMs >= state.timings.leaseMs) return;
    this.renew(view);
  }

  private renew(view: View): void {
    const { state } = this;
    const { members, holder } = view;
    const seq = ++this.#seq;
    this.#lastRenewAt = state.now();
    this.#lastRenewHolder = keyOfHolder(view);
    this.#rounds.set(seq, { sentAt: state.now(), acks: new Set([state.self]) });
    for (const old of this.#rounds.keys()) {
      if (this.#rounds.size <= ROUNDS_MAX) break;
      this.#rounds.delete(old);
    }
    const others = members.filter((member) => member.node !== state.self);
    const unreachable = others.filter((member) => !state.isConnected(member)).map((member) => member.node);
    const targets = state.self === holder ? others : others.filter((member) => member.node === holder);
    for (const target of targets) state.send(target.node, { kind: "LEASE_RENEW", seq, unreachable });
    this.settle(seq);
  }

  /** LEASE_RENEW from another node. */
  renewed(from: number, message: ClusterMessageOf<"LEASE_RENEW">): void {
    const { state, callbacks } = this;
    const member = memberOf(state.next, from) ?? memberOf(state.view, from);
    const known = member !== undefined && state.connected.get(from) === member.incarnation;
    if (!known) {
      if (callbacks.isLeaving(from)) return;
      if (state.role !== Role.HOLDER || state.view === null) return;
      state.send(from, {
        kind: "JOIN_REFUSED",
        errno: ERRNO.ESTALE,
        reason: `node ${hexNode(from)} is not in view ${state.view.epoch}: it was evicted`,
      });
      return;
    }
    if (callbacks.isBeingEvicted(from)) return;
    // A holder without heartbeat may have been taken over: nobody's lease may outlive that.
    if (state.role === Role.HOLDER && state.now() - state.heartbeatWrittenAt >= state.timings.leaseMs) return;
    const account = this.#accounts.get(from);
    const withheld = this.#withheld.has(from);
    if (account !== undefined) {
      account.renewalAt = state.now();
      if (!withheld) account.leaseFrom = account.acknowledgedAt = state.now();
      account.unreachable = message.unreachable;
    }
    if (!withheld) state.send(from, { kind: "LEASE_ACK", seq: message.seq });
  }

  acknowledged(from: number, seq: bigint): void {
    const { state } = this;
    const round = this.#rounds.get(seq);
    const view = this.leaseView();
    if (round === undefined || view === null || memberOf(view, from) === undefined) return;
    if (state.self !== view.holder && from !== view.holder) return;
    round.acks.add(from);
    const account = this.#accounts.get(from);
    if (account !== undefined && state.self !== view.holder)
      account.renewalAt = account.leaseFrom = state.now();
    this.settle(seq);
  }

  private settle(seq: bigint): void {
    const { state } = this;
    const view = this.leaseView();
    const round = this.#rounds.get(seq);
    if (view === null || round === undefined) return;
    const enough =
      state.self === view.holder
        ? 2 * view.members.filter((member) => round.acks.has(member.node)).length >= view.members.length
        : round.acks.has(view.holder);
    if (!enough) return;
    for (const older of [...this.#rounds.keys()]) if (older < seq) this.#rounds.delete(older);
    const until = round.sentAt + state.timings.leaseMs;
    if (until <= this.leaseUntil) return;
    this.leaseUntil = until;
    if (this.#ranOutLogged) state.log("info", "lease renewed again: serving", { until });
    this.#ranOutLogged = false;
    if (state.view !== null) state.ports.kernel.lease(until, state.view.epoch);
    state.poke();
  }

  /** A new batch of heartbeat records: update the accounts, then judge. */
  heartbeatsRead(records: readonly (HeartbeatRecord | null)[], atMs: number): void {
    const { state } = this;
    this.forgiveOwnGap(atMs);
    this.noteHeartbeats(records, atMs);
    if (!this.#ranOutLogged && this.leaseUntil > 0 && state.now() >= this.leaseUntil) {
      this.#ranOutLogged = true;
      state.log("warn", "lease ran out: this node does not serve until it is renewed", {
        until: this.leaseUntil,
      });
    }
    this.judge(atMs);
  }

  /** Whose counter has moved since the last look. */
  noteHeartbeats(records: readonly (HeartbeatRecord | null)[], atMs: number): void {
    this.state.heartbeats = records;
    for (const record of records) {
      if (record === null) continue;
      const account = this.#accounts.get(record.node);
      if (account === undefined || account.incarnation !== record.incarnation) continue;
      if (account.sequence !== record.sequence) {
        if (account.sequence !== UNKNOWN_SEQUENCE) account.heartbeatMovedAt = atMs;
        account.sequence = record.sequence;
        // A holder that has stepped down says so itself: XFS unmounted, gate shut for good.
        if (record.role === Role.NONE) account.provenDead = true;
      }
    }
  }

  private forgiveOwnGap(atMs: number): void {
    const first = this.#lastReadAt < 0;
    const gap = first ? 0 : atMs - this.#lastReadAt;
    this.#lastReadAt = atMs;
    // A newcomer reads no heartbeats before it has a slot: silence that nobody listened to is none.
    if (first) for (const account of this.#accounts.values()) account.heartbeatMovedAt = atMs;
    if (gap <= 3 * this.state.timings.heartbeatMs) return;
    this.state.log("warn", "this node read no heartbeats for a while: others get as long to show life", {
      gapMs: gap,
    });
    for (const account of this.#accounts.values()) {
      account.heartbeatMovedAt += gap;
      account.renewalAt += gap;
      account.leaseFrom += gap;
    }
    for (const [pair, since] of this.#cutPairs) this.#cutPairs.set(pair, since + gap);
  }

  private judge(now: number): void {
    const { state } = this;
    if (state.halted) return;
    if (state.role === Role.HOLDER) this.judgeMembers(now);
    else this.judgeHolder();
  }

  private judgeMembers(now: number): void {
    const { state, callbacks } = this;
    const timeout = state.timings.nodeTimeoutMs;
    const view = state.view;
    if (view === null || state.phase === "starting") return;
    for (const member of view.members) {
      if (member.node === state.self || callbacks.isBeingEvicted(member.node)) continue;
      const account = this.#accounts.get(member.node);
      if (account === undefined) continue;
      const silent = now - Math.max(account.renewalAt, account.heartbeatMovedAt);
      const unheard = now - account.renewalAt;
      if (silent >= timeout) {
        callbacks.evict(member, `dead: no heartbeat and no renewal for ${Math.round(silent)} ms`);
      } else if (unheard >= timeout && this.leaseUntil > now) {
        callbacks.evict(
          member,
          `cut off: it heartbeats on disk, and sent no renewal for ${Math.round(unheard)} ms`,
        );
      }
      this.suspect(member, account, unheard >= timeout / 2);
    }
    this.judgeOurSide(view.members, now);
    this.judgeCutPairs(view.members, now);
  }

  /** A holder that cannot reach more than half of the view, while they heartbeat, steps down. */
  private judgeOurSide(members: readonly MemberInfo[], now: number): void {
    const timeout = this.state.timings.nodeTimeoutMs;
    const cut = members.filter((member) => {
      const account = this.#accounts.get(member.node);
      if (account === undefined || member.node === this.state.self) return false;
      return now - account.renewalAt >= timeout && now - account.heartbeatMovedAt < timeout;
    });
    if (2 * cut.length > members.length) this.callbacks.stepDown(cut);
  }

  private suspect(member: MemberInfo, account: Account, suspected: boolean): void {
    if (account.suspected === suspected) return;
    account.suspected = suspected;
    const { state } = this;
    state.log(suspected ? "warn" : "info", suspected ? "node is suspect" : "node is well again", {
      node: hexNode(member.node),
    });
    const node_state = suspected ? NodeState.SUSPECT : NodeState.ACTIVE;
    state.ports.kernel.nodeStatus(member.node, member.incarnation, node_state);
  }

  /**
   * Of two members that cannot reach each other the worse connected goes, half a node timeout after that was told: who tells it has
   * waited for the other half. When both say so, and go on saying it, the one that would go gets no acknowledgement any more in
   * the last part of that time, so that its lease need not be waited for afterwards. If they find each other again it gets
   * the next one.
   */
  private judgeCutPairs(members: readonly MemberInfo[], now: number): void {
    const cut = new Set<string>();
    const degree = new Map<number, number>();
    // What a silent member last said of others is nothing, and that others cannot reach it is no news.
    const silent = (node: number): boolean => {
      const account = this.#accounts.get(node);
      if (node === this.state.self) return false;
      if (account === undefined || this.callbacks.isBeingEvicted(node)) return true;
      return now - account.renewalAt >= this.state.timings.nodeTimeoutMs / 2;
    };
    for (const member of members) {
      if (silent(member.node)) continue;
      for (const other of this.#accounts.get(member.node)?.unreachable ?? []) {
        if (silent(other) || !members.some((m) => m.node === other)) continue;
        cut.add(pairName(member.node, other));
        degree.set(member.node, (degree.get(member.node) ?? 0) + 1);
        degree.set(other, (degree.get(other) ?? 0) + 1);
      }
    }
    for (const pair of [...this.#cutPairs.keys()]) if (!cut.has(pair)) this.#cutPairs.delete(pair);
    const { nodeTimeoutMs, renewMs } = this.state.timings;
    const withheld = new Set<number>();
    this.#withheld = withheld;
    for (const pair of cut) {
      const since = this.#cutPairs.get(pair) ?? now;
      this.#cutPairs.set(pair, since);
      const pair_members = members.filter((m) => pair.split(",").includes(String(m.node)));
      const victim = worseConnected(pair_members, degree, this.state.self);
      if (victim === undefined || this.callbacks.isBeingEvicted(victim.node)) continue;
      const cut_ms = now - since;
      if (cut_ms >= nodeTimeoutMs / 2) {
        this.#cutPairs.delete(pair);
        this.callbacks.evict(victim, `cannot reach another member (${pair}) for ${Math.round(cut_ms)} ms`);
        return;
      }
      const last_part = Math.max(renewMs, nodeTimeoutMs / 2 - this.state.graceMs);
      if (cut_ms >= last_part && this.bothTell(pair_members, now)) withheld.add(victim.node);
    }
  }

  /** Both tell, and not long ago, that they cannot reach each other. A daemon that is started anew tells nothing for a while. */
  private bothTell(pair: readonly MemberInfo[], now: number): boolean {
    const fresh_ms = 2 * this.state.timings.renewMs;
    return pair.every((member) => {
      const account = this.#accounts.get(member.node);
      const others = pair.filter((other) => other.node !== member.node);
      return (
        account !== undefined &&
        now - account.renewalAt <= fresh_ms &&
        others.every((other) => account.unreachable.includes(other.node))
      );
    });
  }

  private judgeHolder(): void {
    const { state } = this;
    const view = state.next ?? state.view;
    const holder = memberOf(view, view?.holder ?? 0);
    if (holder === undefined || holder.node === state.self) return;
    const { node, incarnation } = holder;
    if (this.isDead(node, incarnation)) {
      this.callbacks.holderDead(holder, this.heartbeatSilentMs(node, incarnation));
      return;
    }
    // Its time may be over between two of our reads; who takes over reads once more before it preempts.
    const left = state.timings.nodeTimeoutMs - this.silentMs(node, incarnation);
    if (left <= 0 || left >= 2 * state.timings.heartbeatMs || this.#judgeSoon !== null) return;
    this.#judgeSoon = state.ports.clock.setTimer(left, () => {
      this.#judgeSoon = null;
      this.judge(state.now());
    });
  }
}

/** The one with more broken connections; of equals the later in rank; never this node. */
export function worseConnected(
  members: readonly MemberInfo[],
  degree: ReadonlyMap<number, number>,
  self: number,
): MemberInfo | undefined {
  let victim: MemberInfo | undefined;
  for (const member of members) {
    if (member.node === self) continue;
    const worse = (degree.get(member.node) ?? 0) >= (degree.get(victim?.node ?? 0) ?? 0);
    if (victim === undefined || worse) victim = member;
  }
  return victim;
}

const UNKNOWN_SEQUENCE = -1n;

function freshAccount(incarnation: number, now: number): Account {
  return {
    incarnation,
    sequence: UNKNOWN_SEQUENCE,
    heartbeatMovedAt: now,
    renewalAt: now,
    leaseFrom: now,
    acknowledgedAt: Number.NEGATIVE_INFINITY,
    suspected: false,
    unreachable: [],
    provenDead: false,
  };
}

function pairName(a: number, b: number): string {
  return a < b ? `${a},${b}` : `${b},${a}`;
}

/** Linux errnos that the core answers with. */
export const ERRNO = {
  EIO: 5,
  EAGAIN: 11,
  EBUSY: 16,
  EEXIST: 17,
  ENOSPC: 28,
  EPROTO: 71,
  ETIMEDOUT: 110,
  ESTALE: 116,
} as const;
