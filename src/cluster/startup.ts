// SPDX-License-Identifier: GPL-2.0-only
/**
 * Start-up: who is the journal holder, and how this node comes into the view (docs/interfaces.md section 6).
 *
 * Fresh mount: tryOnce() is the election from the top to the bottom; it is repeated from the top until it has led to
 * a committed view or the start-up time-out is over. As long as this node has not been admitted it holds nothing, so
 * registering its key again is safe (a winner preempts the keys of nodes that only try); afterwards, never.
 *
 * Restarted daemon: the kernel lives on with its locks. It never registers; key gone, or not in the header any more,
 * is final.
 *
 * Known weakness: a holder that dies (or takes very long) between its RESERVE and its first header is waited for
 * most of the start-up time, since nothing tells whether it lives; then its key is preempted, which is safe for the
 * volume and unkind to a slow mount. A volume whose lockstate stays unreadable, with nobody holding the reservation, is
 * waited for as long: those who live take the reservation again in that time.
 */
import type { DiskHeader, HeaderMember } from "../disk/lockstate.js";
import { HEADER_MEMBER_STATE, headerMismatch } from "../disk/lockstate.js";
import { type HeartbeatRecord, JOURNAL_STATE } from "../disk/record.js";
import { hexKey, MXFS_PR_TYPE } from "../disk/reservation.js";
import { MXFS_DISK_CLUSTER_KEY_SIZE, MXFS_WIRE_VERSION, NodeState, Role } from "../wire/abi.js";
import type { ClusterMessageOf, MemberInfo } from "../wire/messages.js";
import { fenceKey, waitForDrain } from "./eviction.js";
import { ERRNO, type LeaseKeeper } from "./lease.js";
import type { Coordinator } from "./membership.js";
import type { Participant } from "./participant.js";
import { type Discovered, keyIncarnation, keyNode, type PrPort, prKey, type Rejoin } from "./ports.js";
import { activeMembers, type ClusterState, deadMembers, hexNode, holderOf, memberOf } from "./state.js";
import type { Takeover } from "./takeover.js";

/** Epochs of which no record may be left are passed over when the header is begun anew. */
const EPOCH_LEAP = 1n << 20n;
/** A header that is damaged is read so often before it is given up. */
const DAMAGED_READS = 4;
/** How many heartbeat periods a heartbeat is watched before it counts as standing still. */
const TWIN_PERIODS = 2.5;

/** The mount fails with this errno and message. `fenced`: the key or the place in the view is lost for good. */
export class StartupFailed extends Error {
  readonly errno: number;
  readonly fenced: boolean;
  constructor(errno: number, message: string, fenced = false) {
    super(message);
    this.name = "StartupFailed";
    this.errno = errno;
    this.fenced = fenced;
  }
}

/** again: from the top after a heartbeat period, because of `why`; at-once: from the top now. */
type TryOutcome = "done" | "at-once" | { readonly again: string };

/** damaged: both copies were read and neither is sound; as good as absent, to who has the XFS mounted. */
type HeaderRead = DiskHeader | "not found" | "unreadable" | "damaged" | "no header";

export class Startup {
  #deadline = 0;
  #twinsChecked = false;
  /** Keys of our node's earlier incarnations that were registered beside ours. */
  #earlier: readonly bigint[] = [];
  /** The device has reservations, so there may be a key of ours. */
  #probed = false;
  /** The target gave the reservation of our earlier mount to our new key, and members of its view live. */
  #holdsForOthers = false;
  /** The header of the view whose place this node has taken: all others in it are fenced now, or were before. */
  #replaced: DiskHeader | null = null;
  #refusal: { from: number; errno: number; reason: string } | null = null;
  readonly #heard = new Map<number, Discovered>();
  #heardSerial = 0;
  /** Since when each key has held the reservation without a header of its own to show for it. */
  readonly #keySince = new Map<bigint, number>();
  /** Since when nobody has had the reservation while lockstate could not be read. */
  #blindSince: number | null = null;
  readonly #watch: HeartbeatWatch;

  constructor(
    readonly state: ClusterState,
    readonly lease: LeaseKeeper,
    readonly participant: Participant,
    readonly coordinator: Coordinator,
    readonly takeover: Takeover,
    readonly becameHolder: () => void,
  ) {
    this.#watch = new HeartbeatWatch(3 * state.timings.heartbeatMs);
  }

  /** Returns with the view committed, the lease there and the kernel told. @throws StartupFailed */
  async run(): Promise<void> {
    const { state } = this;
    const started_at = state.now();
    this.#deadline = started_at + state.timings.startupMs;
    if (state.ports.pr !== null) await this.probe(state.ports.pr);
    if (state.config.rejoin !== null) await this.rejoin(state.config.rejoin);
    else await this.elect();
    // The holder may die meanwhile: the kernel is told READY behind the takeover, not in the middle of it.
    const recovers = (): boolean => state.contested || state.recovering.size > 0;
    let leased: true | null;
    do {
      leased = await state.until(
        () => (this.lease.leaseUntil > state.now() && !recovers() ? true : undefined),
        2 * state.timings.nodeTimeoutMs,
      );
    } while (leased === null && recovers());
    const view = state.view;
    if (leased === null || view === null) {
      throw new StartupFailed(ERRNO.ETIMEDOUT, "in the view, and no lease came within two node timeouts");
    }
    state.ports.kernel.ready(state.role, view.epoch, holderOf(view), this.lease.leaseUntil);
    state.log("info", "started", {
      role: state.role === Role.HOLDER ? "holder" : "member",
      epoch: view.epoch,
      ms: state.now() - started_at,
    });
  }

  /** How reservations are made on this device. A rejoining daemon knows that they are: it waits for the answer. */
  private async probe(pr: PrPort): Promise<void> {
    const { state } = this;
    for (;;) {
      const found = await pr.probe();
      state.alive();
      if (found.kind === "ok") {
        this.#probed = true;
        state.log("info", "reservations", { way: found.way });
        return;
      }
      if (found.kind === "refused") throw new StartupFailed(ERRNO.EPROTO, found.message);
      state.log("warn", "start-up waits", { why: found.message });
      this.checkAborted();
      if (state.now() >= this.#deadline) throw new StartupFailed(ERRNO.ETIMEDOUT, found.message);
      await state.pause(state.timings.heartbeatMs, () => this.aborted());
    }
  }

  // ---- events -----------------------------------------------------------------------------------------------

  /** True when the refusal was for a JOIN of ours that is being waited for. */
  refused(from: number, errno: number, reason: string): boolean {
    if (this.participant.joinTarget !== from) return false;
    this.#refusal = { from, errno, reason };
    this.state.poke();
    return true;
  }

  discovered(packet: Discovered): void {
    if (this.state.phase !== "starting" || packet.node === this.state.self) return;
    if (!this.#heard.has(packet.node) && this.#heard.size >= 256) return; // Only a hint; the disk decides.
    this.#heard.set(packet.node, packet);
    this.#heardSerial++;
    this.state.poke();
  }

  // ---- a fresh mount ----------------------------------------------------------------------------------------

  private async elect(): Promise<void> {
    const { state } = this;
    let why = "";
    let at_once = 0;
    for (;;) {
      this.checkAborted();
      if (state.now() >= this.#deadline) {
        throw new StartupFailed(
          ERRNO.ETIMEDOUT,
          `not in the cluster after ${state.timings.startupMs} ms: ${why || "no reason known"}`,
        );
      }
      const outcome =
        state.ports.pr === null ? await this.tryWithoutKeys() : await this.tryOnce(state.ports.pr);
      if (outcome === "done") return;
      if (outcome === "at-once" && ++at_once % 8 !== 0) continue;
      if (outcome !== "at-once") {
        if (outcome.again !== why) state.log("info", "start-up waits", { why: outcome.again });
        why = outcome.again;
      }
      const serial = this.#heardSerial;
      await state.pause(state.timings.heartbeatMs, () => this.#heardSerial !== serial || this.aborted());
    }
  }

  private aborted(): boolean {
    return this.state.unmountRequest !== null;
  }
  private checkAborted(): void {
    if (this.aborted()) throw new StartupFailed(ERRNO.EBUSY, "unmounted before the start-up was over");
  }

  /** One election, from the top. */
  private async tryOnce(pr: PrPort): Promise<TryOutcome> {
    const { state } = this;

    // 0. The reservation covers the whole LUN: two volumes on it would fence each other.
    const neighbour = state.admitted ? null : await state.ports.disk.otherVolumeOnLun();
    state.alive();
    if (neighbour !== null) {
      throw new StartupFailed(
        ERRNO.EBUSY,
        `another mxfs volume is in use on the same LUN: ${neighbour}. A reservation covers the whole LUN, so there is ` +
          "one mxfs volume per LUN: unmount that one on all nodes, or give this one a LUN of its own",
      );
    }

    // 1. Our key. What our node has left there from earlier is dead by our being here, unless it is a twin.
    const before = await pr.readKeys();
    state.alive();
    if (before.kind === "error") return { again: `READ KEYS fails: ${before.message}` };
    if (!this.#twinsChecked) await this.checkTwins(before.keys);
    if (state.admitted) {
      if (!before.keys.includes(state.key)) throw evicted(state);
    } else {
      const registered = await pr.register(state.key);
      state.alive();
      if (registered.kind === "unsupported") {
        throw new StartupFailed(
          ERRNO.EPROTO,
          `the device refuses to register a key (${registered.message}); ` +
            "MXFS needs persistent reservations to keep failed nodes from writing",
        );
      }
      if (registered.kind !== "ok") return { again: `REGISTER fails: ${describe(registered)}` };
    }
    const reservation = await pr.readReservation();
    state.alive();
    if (reservation.kind === "error") return { again: `READ RESERVATION fails: ${reservation.message}` };
    if (reservation.kind === "held" && reservation.type !== MXFS_PR_TYPE) {
      throw new StartupFailed(
        ERRNO.EBUSY,
        `the LUN is reserved by other software: key ${hexKey(reservation.key)}, reservation type ${reservation.type} ` +
          `(MXFS makes type ${MXFS_PR_TYPE}); see sg_persist --in --read-reservation, and end that use first`,
      );
    }
    const held_by = reservation.kind === "held" ? reservation.key : null;
    const earlier = this.earlierKeys(before.keys);
    const gone = this.#earlier.filter((key) => !earlier.includes(key));
    for (const key of earlier) {
      if (key === held_by) continue;
      if ((await fenceKey(state, key, "an earlier incarnation of this node")) !== "failed") gone.push(key);
    }
    this.#earlier = earlier.filter((key) => !gone.includes(key));
    if (gone.length > 0 && !state.admitted && held_by !== state.key) {
      const anew = await this.registerAnew(pr);
      if (anew !== null) return anew;
    }

    // 2. Nobody has it: the target decides who is first.
    if (held_by === null) {
      const living = await this.livingView();
      if (living !== null) return { again: `nobody has the reservation, and ${living}` };
      const reserved = await pr.reserve(state.key);
      state.alive();
      if (reserved.kind === "conflict") return "at-once";
      if (reserved.kind !== "ok") return { again: `RESERVE fails: ${describe(reserved)}` };
      return this.becomeHolder();
    }
    this.#blindSince = null;
    const header = await this.readHeader();
    // Reserved in an earlier try; or our own earlier mount had it, and our key has replaced that one's at the target.
    if (held_by === state.key) {
      if (header === "unreadable") return { again: "the reservation is ours, and lockstate cannot be read" };
      if (header === "damaged") await this.readHeartbeats();
      if (header === "damaged" && this.#watch.anyMoved(state.timings.nodeTimeoutMs, state.now())) {
        return { again: "the reservation is ours, the header is damaged, and somebody heartbeats" };
      }
      if (typeof header === "string") return this.becomeHolder();
      return this.preemptHolder(held_by, header, "our own earlier mount");
    }

    // 3. Somebody has it.
    if (typeof header === "string") return this.holderWithoutHeader(held_by, header !== "unreadable", header);
    if (prKey(header.holder, header.holderIncarnation) !== held_by) {
      const winner = activeMembers(header).find((m) => prKey(m.node, m.incarnation) === held_by);
      if (winner !== undefined) return this.waitForTakeover(held_by, winner, header);
      return this.holderWithoutHeader(held_by, true, "the header is an earlier holder's");
    }
    this.#keySince.delete(held_by);
    const left = activeMembers(header).length === 0;
    const own_old = keyNode(held_by) === state.self;
    if (left || own_old)
      return this.preemptHolder(held_by, header, left ? "it has left" : "our own earlier mount");
    return this.follow(header, false);
  }

  /** Of a list of keys those of our node's earlier incarnations. */
  private earlierKeys(keys: readonly bigint[]): bigint[] {
    return [...new Set(keys)].filter((key) => keyNode(key) === this.state.self && key !== this.state.key);
  }

  /**
   * To Linux's target (LIO) a port is unregistered when any of its registrations goes: after a reboot that of our earlier nexus,
   * if the initiator has a new one. Our key is still listed, but PREEMPT and writes are refused until we register anew. Null: done.
   */
  private async registerAnew(pr: PrPort): Promise<TryOutcome | null> {
    const { state } = this;
    const before = await pr.unregister(state.key);
    state.alive();
    const after = await pr.register(state.key);
    state.alive();
    if (after.kind !== "ok") return { again: `REGISTER fails: ${describe(after)}` };
    state.log("info", "registered anew: a key of an earlier incarnation of this node has gone", {
      unregister: before.kind,
    });
    return null;
  }

  /** fence=none: the header and the heartbeats are all there is. Two nodes may both win; for tests only. */
  private async tryWithoutKeys(): Promise<TryOutcome> {
    const { state } = this;
    const header = await this.readHeader();
    if (header === "unreadable" || header === "damaged") return { again: "lockstate cannot be read" };
    if (
      header === "not found" ||
      header === "no header" ||
      (typeof header !== "string" && activeMembers(header).length === 0)
    ) {
      // Again and again: who has just begun to listen, here or there, has missed what was asked before.
      for (let left = TWIN_PERIODS; left > 0; left--) {
        state.ports.net.query();
        await state.pause(Math.min(left, 1) * state.timings.heartbeatMs);
      }
      const first = [...this.#heard.values()].find((o) => o.role === Role.HOLDER || o.node < state.self);
      if (first !== undefined) return { again: `node ${hexNode(first.node)} goes first` };
      return this.becomeHolder();
    }
    if (typeof header === "string") return { again: header };
    if (header.holder === state.self) {
      return this.preemptHolder(
        prKey(header.holder, header.holderIncarnation),
        header,
        "our own earlier mount",
      );
    }
    return this.follow(header, false);
  }

  /** Two hosts with one UUID: a key of ours is registered, and its heartbeat moves. */
  private async checkTwins(keys: readonly bigint[]): Promise<void> {
    const { state } = this;
    const ours = [...new Set(keys.filter((key) => keyNode(key) === state.self))];
    if (ours.length > 0 && typeof (await this.readHeaderPatiently()) !== "string") {
      const until = state.now() + TWIN_PERIODS * state.timings.heartbeatMs;
      while (state.now() < until) {
        await this.readHeartbeats();
        for (const key of ours) {
          if (!this.#watch.moved(state.self, keyIncarnation(key))) continue;
          throw new StartupFailed(
            ERRNO.EEXIST,
            `another host uses this volume under our node id ${hexNode(state.self)} (incarnation ` +
              `${keyIncarnation(key)}: its heartbeat moves); remove /etc/mxfs/node.uuid on one of them and mount again`,
          );
        }
        await state.pause(state.timings.heartbeatMs / 2);
      }
    }
    this.#twinsChecked = true;
  }

  /**
   * Nobody has the reservation. If the header all the same names members whose heartbeats move, the target has lost it
   * under a living cluster, where an XFS is mounted: hands off. A header that is damaged hides who they are, not that
   * somebody heartbeats; lockstate that cannot be read hides everything, so the living get the time to take the
   * reservation again. Null: nobody of the last view lives. Otherwise why this node waits.
   */
  private async livingView(): Promise<string | null> {
    const { state } = this;
    const header = await this.readHeader();
    if (header === "unreadable") {
      this.#blindSince ??= state.now();
      if (state.now() - this.#blindSince >= 0.75 * state.timings.startupMs) return null;
      return "lockstate cannot be read: whoever is mounted is to take it again";
    }
    this.#blindSince = null;
    if (typeof header === "string" && header !== "damaged") return null;
    const others =
      typeof header === "string"
        ? null
        : activeMembers(header).filter((member) => member.node !== state.self);
    if (others?.length === 0) return null;
    const until = state.now() + TWIN_PERIODS * state.timings.heartbeatMs;
    this.#watch.reset();
    for (;;) {
      await this.readHeartbeats();
      const living = others?.find((member) => this.#watch.moved(member.node, member.incarnation));
      if (living !== undefined) {
        return `node ${hexNode(living.node)} is mounted: the target has lost it, and its holder is to take it again`;
      }
      if (others === null && this.#watch.anyMoved(state.timings.nodeTimeoutMs, state.now())) {
        return "somebody heartbeats, though the header is damaged: the target has lost it";
      }
      if (state.now() >= until) return null;
      await state.pause(state.timings.heartbeatMs / 2);
    }
  }

  /** The holder has no header yet, or lockstate cannot be found. */
  private async holderWithoutHeader(key: bigint, sound: boolean, why: string): Promise<TryOutcome> {
    const { state } = this;
    const now = state.now();
    const again = { again: `key ${hexKey(key)} holds the reservation, and ${why}` };
    const since = this.#keySince.get(key) ?? now;
    this.#keySince.set(key, since);
    const patient = now - since >= 0.75 * state.timings.startupMs;
    if (keyNode(key) === state.self) {
      // Our own earlier mount died before it had written a header; checkTwins() found no life in it. If there is one, and we cannot
      // read it, members of its view may live, who take the reservation if they do.
      await this.readHeartbeats();
      if (this.#watch.anyMoved(state.timings.nodeTimeoutMs, state.now()) || (!sound && !patient))
        return again;
      return (await fenceKey(state, key, "our own earlier mount")) === "fenced" ? this.becomeHolder() : again;
    }
    state.ports.net.query();
    const heard = this.#heard.get(keyNode(key));
    if (heard !== undefined && heard.incarnation === keyIncarnation(key)) {
      this.#keySince.set(key, now);
      this.#heard.delete(keyNode(key));
    }
    await this.readHeartbeats();
    // A damaged header hides who the members are; not whether somebody lives.
    if (!sound || this.#watch.anyMoved(state.timings.nodeTimeoutMs, state.now())) return again;
    if (!patient) return again;
    state.log("warn", "the holder has shown no sign of life since it reserved: preempting it", {
      key: hexKey(key),
      ms: now - since,
    });
    return (await fenceKey(state, key, "no sign of life since it reserved")) === "fenced"
      ? this.becomeHolder()
      : again;
  }

  /** The holder is dead or gone. Only if no other member of its view lives may a newcomer preempt it. */
  private async preemptHolder(key: bigint, header: DiskHeader, why: string): Promise<TryOutcome> {
    const { state } = this;
    await this.readHeartbeats();
    const others = await this.livingMembers(key, header);
    if (others === null) return { again: "READ KEYS fails" };
    const other = others[0];
    if (other !== undefined && !state.mistakes.has("newcomer-preempts-living-view")) {
      this.#holdsForOthers = key === state.key;
      if (keyNode(key) === state.self || header.holder === state.self) await this.tellOfReturn(others);
      return {
        again: `the holder (${hexKey(key)}) is gone; node ${hexNode(other.node)} of its view may still live`,
      };
    }
    if (state.ports.pr !== null && key !== state.key) {
      const fenced = await fenceKey(state, key, why);
      if (fenced === "was-gone") return "at-once";
      if (fenced === "failed") return { again: `the holder's key ${hexKey(key)} could not be preempted` };
    }
    return this.becomeHolder();
  }

  /** Members of the header that may live: no silence for the node timeout, and no later incarnation registered. */
  private async livingMembers(key: bigint, header: DiskHeader): Promise<HeaderMember[] | null> {
    const { state } = this;
    const keys = state.ports.pr === null ? null : await state.ports.pr.readKeys();
    state.alive();
    if (keys?.kind === "error") return null;
    return activeMembers(header).filter(
      (member) =>
        member.node !== state.self &&
        prKey(member.node, member.incarnation) !== key &&
        !isReplaced(member, keys?.keys ?? []) &&
        this.#watch.silentMs(member.node, member.incarnation, state.now()) < state.timings.nodeTimeoutMs,
    );
  }

  /** We were the holder, and are back before anybody noticed: a JOIN tells the survivors, who refuse it and take over. */
  private async tellOfReturn(members: readonly HeaderMember[]): Promise<void> {
    const { state } = this;
    for (const member of members) {
      const record = this.recordOf(member);
      if (record === null || record.address === "") continue;
      state.ports.net.connect(member.node, record.address, record.port);
    }
    const connected = (): HeaderMember[] => members.filter((member) => state.isConnected(member));
    await state.until(
      () => (connected().length === members.length ? true : undefined),
      state.timings.heartbeatMs / 2,
    );
    for (const member of connected()) state.send(member.node, this.joinMessage(false));
  }

  private joinMessage(rejoin: boolean): ClusterMessageOf<"JOIN"> {
    const { self } = this.state.config;
    return {
      kind: "JOIN",
      incarnation: self.incarnation,
      uuid: self.uuid,
      address: self.address,
      port: self.port,
      hostname: self.hostName,
      rejoin,
      wireVersion: MXFS_WIRE_VERSION,
    };
  }

  /** A member of the header's view has taken the reservation of the dead holder, and has no header of its own yet. */
  private async waitForTakeover(key: bigint, winner: HeaderMember, header: DiskHeader): Promise<TryOutcome> {
    const { state } = this;
    await this.readHeartbeats();
    if (
      this.#watch.silentMs(winner.node, winner.incarnation, state.now()) >= state.timings.nodeTimeoutMs ||
      winner.node === state.self
    ) {
      return this.preemptHolder(key, header, "died while it took over");
    }
    return { again: `node ${hexNode(winner.node)} is taking a dead holder over` };
  }

  /** The header's holder lives: join it. Or it does not: see whether we may take its place. */
  private async follow(header: DiskHeader, rejoin: boolean): Promise<TryOutcome> {
    const { state } = this;
    await this.readHeartbeats();
    const holder = activeMembers(header).find((m) => m.node === header.holder);
    const key = prKey(header.holder, header.holderIncarnation);
    const record = holder === undefined ? null : this.recordOf(holder);
    let why = `holder ${hexNode(header.holder)} cannot be reached at ${record?.address || "an unknown address"}`;
    if (holder !== undefined && record !== null && record.address !== "") {
      const joined = await this.join(holder, record, rejoin);
      if (joined === true) return "done";
      why = joined;
      // The attempt took its time: judge the heartbeat as it is now. That there is a connection proves nothing.
      await this.readHeartbeats();
    }
    if (
      this.#watch.silentMs(header.holder, header.holderIncarnation, state.now()) < state.timings.nodeTimeoutMs
    ) {
      return { again: why };
    }
    if (rejoin) {
      if ((await this.takeover.contest("dead: no heartbeat")) === "won") return this.inView();
      return { again: `holder ${hexNode(header.holder)} is dead, and another node may be taking it over` };
    }
    return this.preemptHolder(key, header, "dead: no heartbeat and no connection");
  }

  /** True: in a committed view. Otherwise why not. */
  private async join(holder: HeaderMember, record: HeartbeatRecord, rejoin: boolean): Promise<true | string> {
    const { state, participant } = this;
    state.ports.net.connect(holder.node, record.address, record.port);
    const up = await state.until(
      () => (state.isConnected(holder) ? true : undefined),
      state.timings.heartbeatMs,
    );
    if (up === null)
      return `no connection to holder ${hexNode(holder.node)} at ${record.address}:${record.port}`;
    if (state.role === Role.NONE) await this.changeRole(Role.MEMBER, holder.node);
    const keys = await this.readKeys();
    if (!keys.includes(state.key) && state.ports.pr !== null) {
      if (state.admitted) throw evicted(state);
      return "our key was preempted by the new holder; registering again";
    }
    if (!state.admitted && this.#earlier.some((key) => !keys.includes(key)))
      return "a key of an earlier incarnation of this node has gone; registering anew";
    participant.joinTarget = holder.node;
    this.#refusal = null;
    const generation = state.generation(holder.node);
    state.send(holder.node, this.joinMessage(rejoin));
    const patience = rejoin ? 4 * state.timings.nodeTimeoutMs : this.#deadline - state.now();
    const answer = await state.until<"in" | "refused" | "lost">(() => {
      if (memberOf(state.view, state.self) !== undefined) return "in";
      if (this.#refusal !== null) return "refused";
      if (state.generation(holder.node) !== generation) return "lost";
      // A living mount comes back into the view first, and leaves then.
      if (this.aborted() && !rejoin) return "lost";
      return undefined;
    }, patience);
    if (answer === "in") return true;
    // From the top again: a view change that still names us must not be followed behind the election's back.
    participant.abandonJoin();
    const refusal = this.takeRefusal();
    if (refusal === null) return `connection to holder ${hexNode(holder.node)} broke while joining`;
    if (refusal.errno === ERRNO.EAGAIN) return refusal.reason;
    throw new StartupFailed(
      refusal.errno,
      `the holder refuses us: ${refusal.reason}`,
      refusal.errno === ERRNO.ESTALE,
    );
  }

  private takeRefusal(): { errno: number; reason: string } | null {
    const refusal = this.#refusal;
    this.#refusal = null;
    return refusal;
  }

  /** Empty when there are none, or they cannot be read. */
  private async readKeys(): Promise<readonly bigint[]> {
    const { state } = this;
    if (state.ports.pr === null) return [];
    const keys = await state.ports.pr.readKeys();
    state.alive();
    return keys.kind === "ok" ? keys.keys : [];
  }

  private async changeRole(role: Role, holder: number): Promise<void> {
    const { state } = this;
    const changed = await state.ports.kernel.roleChange(role, holder, state.highestEpoch);
    state.alive();
    if (changed.error !== 0) {
      const what =
        role === Role.HOLDER ? "mount the XFS" : role === Role.MEMBER ? "claim the disk" : "let go";
      throw new StartupFailed(changed.error, `the kernel could not ${what}: ${changed.message}`);
    }
    state.role = role;
  }

  /** The reservation is ours: nobody else writes, the XFS is mounted, the header says who is the holder. */
  private async becomeHolder(): Promise<TryOutcome> {
    const { state, coordinator } = this;
    const { pr } = state.ports;
    const started_at = state.now();
    this.participant.joinTarget = null;
    let registered: readonly bigint[] = [];
    if (pr !== null) {
      const keys = await pr.readKeys();
      state.alive();
      if (keys.kind === "error") return { again: `READ KEYS fails: ${keys.message}` };
      registered = keys.keys;
      for (const key of new Set(keys.keys)) {
        if (key === state.key) continue;
        if ((await fenceKey(state, key, "not in the view of the new holder")) === "failed") {
          return { again: `key ${hexKey(key)} could not be preempted` };
        }
      }
    }
    await this.waitForLeases(registered);
    await waitForDrain(state);
    // A holder that was just leaving may have released the reservation before its key was preempted: then nobody has it.
    if (pr !== null) {
      const reservation = await pr.readReservation();
      state.alive();
      if (reservation.kind === "error") return { again: `READ RESERVATION fails: ${reservation.message}` };
      if (reservation.kind !== "held" || reservation.key !== state.key) return "at-once";
    }
    if (state.role !== Role.NONE) await this.changeRole(Role.NONE, 0);
    await this.markRecovery();
    await this.changeRole(Role.HOLDER, state.self);
    const header = await this.headerAfterMount();
    state.header = header === null ? null : withoutOthers(header, state.self);
    if (header !== null) state.raiseEpoch(header.epoch);
    const old_slot = header?.members.find((member) => member.node === state.self)?.slot;
    const { node, incarnation, address, port } = state.config.self;
    coordinator.base = [{ node, incarnation, slot: old_slot ?? 0, address, port, role: Role.HOLDER }];
    const key = header?.clusterKey ?? state.ports.random(MXFS_DISK_CLUSTER_KEY_SIZE);
    coordinator.newClusterKey = key;
    state.ports.net.setClusterKey(key);
    state.log("info", "this node is the journal holder", { ms: state.now() - started_at });
    coordinator.requestResync("start");
    this.becameHolder();
    const in_view = await state.until(
      () => (memberOf(state.view, state.self) !== undefined ? true : undefined),
      4 * state.timings.nodeTimeoutMs,
    );
    if (in_view === null)
      throw new StartupFailed(ERRNO.ETIMEDOUT, "the first view was not committed in time");
    return "done";
  }

  /**
   * All others are fenced. Who had only stood still may have come to itself just before, and have renewed its lease behind one
   * more heartbeat: none can come any more, so two leases after the last that we see it serves nothing. Most often that is past.
   */
  private async waitForLeases(registered: readonly bigint[]): Promise<void> {
    const { state } = this;
    const header = await this.readHeaderPatiently();
    if (typeof header === "string") return;
    this.#replaced = withoutOthers(header, state.self);
    if (state.mistakes.has("newcomer-skips-lease-wait")) return;
    await this.readHeartbeats();
    const silent = activeMembers(header)
      .filter((member) => member.node !== state.self && !isReplaced(member, registered))
      .map((member) => this.#watch.silentMs(member.node, member.incarnation, state.now()));
    const ms = 2 * state.graceMs - Math.min(...silent);
    if (silent.length === 0 || ms <= 0) return;
    state.log("info", "waiting for the leases of the fenced to run out", { ms });
    await state.pause(ms);
  }

  /** Nobody of the last view lives, and it has not left in order: our mount replays its log. */
  private async markRecovery(): Promise<void> {
    const before = await this.readHeaderPatiently();
    if (typeof before === "string") return;
    const old = activeMembers(before).find((member) => member.node === before.holder);
    if (old !== undefined) await this.coordinator.journal.mark(old, JOURNAL_STATE.RECOVERING);
  }

  /**
   * lockstate is there now; its metadata may take a moment to be seen raw. Null: no header was ever written, or what was
   * there is damaged: we have the reservation and the XFS, and nobody else a key, so a new one is right.
   */
  private async headerAfterMount(): Promise<DiskHeader | null> {
    const { state } = this;
    let damaged = 0;
    for (;;) {
      const header = await this.readHeader();
      if (typeof header !== "string") return header;
      if (header === "no header") return null;
      if (header === "damaged" && ++damaged >= DAMAGED_READS) {
        state.header = null;
        await this.epochsOfOtherRecords();
        state.log("error", "both copies of the header are damaged: lockstate begins anew", {
          epochAbove: state.highestEpoch,
        });
        return null;
      }
      if (state.now() >= this.#deadline) {
        throw new StartupFailed(ERRNO.EIO, `XFS is mounted, and .mxfs/lockstate on the raw disk: ${header}`);
      }
      await state.pause(state.timings.heartbeatMs / 4);
    }
  }

  /** The header that told the epoch is lost; heartbeats and journal slots tell one that is not far below it. */
  private async epochsOfOtherRecords(): Promise<void> {
    const { state } = this;
    if (state.location === null) return;
    await this.readHeartbeats();
    const journals = await state.ports.disk.readJournals(state.location);
    state.alive();
    const records = [...state.heartbeats, ...(journals.kind === "ok" ? journals.records : [])];
    for (const record of records) if (record !== null) state.raiseEpoch(record.epoch);
    state.raiseEpoch(state.highestEpoch + EPOCH_LEAP);
  }

  // ---- a restarted daemon -----------------------------------------------------------------------------------

  private async rejoin(rejoin: Rejoin): Promise<void> {
    const { state } = this;
    if (rejoin.fenced) throw new StartupFailed(ERRNO.EIO, "the mount is fenced already", true);
    if (rejoin.role === Role.NONE) {
      throw new StartupFailed(ERRNO.EIO, "the daemon was restarted in the middle of a role change", true);
    }
    state.admitted = true;
    state.role = rejoin.role;
    // The daemon before may have told the kernel of a recovery: the next commit ends it.
    state.recovering.add(state.self);
    state.raiseEpoch(rejoin.epoch);
    const keys_deadline = state.now() + state.timings.nodeTimeoutMs;
    for (;;) {
      const why = await this.rejoinOnce(rejoin);
      if (why === null) return;
      state.log("warn", "rejoin waits", { why });
      if (state.now() >= keys_deadline && state.location === null) {
        throw new StartupFailed(ERRNO.EIO, `rejoin: ${why}`);
      }
      await state.pause(state.timings.heartbeatMs);
    }
  }

  /** Null: back in the view. */
  private async rejoinOnce(rejoin: Rejoin): Promise<string | null> {
    const { state } = this;
    const { pr } = state.ports;
    if (pr !== null) {
      const keys = await pr.readKeys();
      state.alive();
      if (keys.kind === "error") return `READ KEYS fails: ${keys.message}`;
      if (!keys.keys.includes(state.key)) {
        if (!state.mistakes.has("reregister-after-fence")) throw evicted(state);
        await pr.register(state.key);
      }
    }
    const header = await this.readHeader();
    if (typeof header === "string") return header;
    state.raiseEpoch(header.epoch);
    await this.readHeartbeats();
    if (rejoin.role === Role.HOLDER) return this.rejoinAsHolder(header);
    const me = activeMembers(header).find((m) => prKey(m.node, m.incarnation) === state.key);
    if (me === undefined) throw evicted(state);
    this.startHeartbeat(me);
    this.lease.watch(activeMembers(header).filter((member) => member.node !== state.self));
    if (await this.hasReservation()) {
      // Won before the daemon died.
      if ((await this.takeover.contest("we had preempted it")) === "won") await this.inView();
      return state.view === null ? "no view could be committed" : null;
    }
    const outcome = await this.follow(header, true);
    return outcome === "done" ? null : outcome === "at-once" ? "again" : outcome.again;
  }

  private async hasReservation(): Promise<boolean> {
    const { state } = this;
    if (state.ports.pr === null) return false;
    const reservation = await state.ports.pr.readReservation();
    state.alive();
    return reservation.kind === "held" && reservation.key === state.key;
  }

  /** This node has taken over; its first view change follows. */
  private async inView(): Promise<TryOutcome> {
    const { state } = this;
    const view = await state.until(
      () => (memberOf(state.view, state.self) !== undefined ? true : undefined),
      64 * state.timings.nodeTimeoutMs,
    );
    return view === null ? { again: "no view could be committed" } : "done";
  }

  /** The daemon died in the middle of a takeover, behind the mount: the old holder is dead, and has not left. */
  private async wasRecovering(old: HeaderMember): Promise<boolean> {
    const { state } = this;
    if (state.location === null) return false;
    const journals = await state.ports.disk.readJournals(state.location);
    state.alive();
    const slot = journals.kind === "ok" ? (journals.records[old.slot] ?? null) : null;
    return slot?.state === JOURNAL_STATE.RECOVERING && slot.recoverer === state.self;
  }

  private async rejoinAsHolder(header: DiskHeader): Promise<string | null> {
    const { state, coordinator } = this;
    const { pr } = state.ports;
    if (pr !== null) {
      const reservation = await pr.readReservation();
      state.alive();
      if (reservation.kind === "error") return `READ RESERVATION fails: ${reservation.message}`;
      if (reservation.kind !== "held" || reservation.key !== state.key) throw evicted(state);
    }
    const members: MemberInfo[] = [];
    const lost: MemberInfo[] = [];
    for (const { node, incarnation, slot } of activeMembers(header)) {
      const mine = prKey(node, incarnation) === state.key;
      // The daemon died as the successor of a hand-over: the old holder has left.
      if (!mine && node === header.holder) continue;
      const record = mine ? state.config.self : this.recordOf({ node, incarnation, slot, state: 0 });
      const role = mine ? Role.HOLDER : Role.MEMBER;
      const known = record !== null && record.address !== "";
      const member = {
        node,
        incarnation,
        slot,
        address: known ? record.address : "0.0.0.0",
        port: known ? record.port : 1,
        role,
      };
      members.push(member);
      if (!known) lost.push(member);
    }
    if (!members.some((member) => member.node === state.self)) throw evicted(state);
    const old = activeMembers(header).find((m) => m.node === header.holder && m.node !== state.self);
    state.header = header;
    // Our slot is ours: without a moving heartbeat a newcomer would take us for dead during the change.
    const me = activeMembers(header).find((m) => prKey(m.node, m.incarnation) === state.key);
    if (me !== undefined) this.startHeartbeat(me);
    coordinator.base = members;
    this.lease.watch(members);
    if (old !== undefined && (await this.wasRecovering(old))) {
      this.participant.recoveryBegins(old.node);
      state.ports.kernel.nodeStatus(old.node, old.incarnation, NodeState.DEAD);
      await coordinator.writePlainHeader(members, [{ ...old, address: "", port: 0, role: Role.MEMBER }]);
    }
    for (const member of lost)
      coordinator.evict(member, "its heartbeat record is unreadable: no address known");
    coordinator.requestResync("the holder's daemon was restarted");
    this.becameHolder();
    await state.until(
      () => (memberOf(state.view, state.self) !== undefined ? true : undefined),
      64 * state.timings.nodeTimeoutMs,
    );
    return state.view === null ? "no view could be committed" : null;
  }

  private startHeartbeat(me: HeaderMember): void {
    const { state } = this;
    if (state.location === null || state.heartbeatWrittenAt >= 0) return;
    const { self } = state.config;
    state.ports.disk.setHeartbeat(state.location, me.slot, {
      volume: state.ports.disk.volume,
      epoch: state.highestEpoch,
      node: self.node,
      incarnation: self.incarnation,
      uuid: self.uuid,
      role: state.role,
      port: self.port,
      address: self.address,
      unreachableSlots: 0n,
      hostName: self.hostName,
    });
  }

  // ---- reading the disk -------------------------------------------------------------------------------------

  private async readHeader(): Promise<HeaderRead> {
    const { state } = this;
    const { disk } = state.ports;
    const located = await disk.locateLockstate();
    state.alive();
    if (located.kind === "not-found") return "not found";
    if (located.kind === "unreadable") {
      state.log("warn", "lockstate cannot be found on the raw disk", { why: located.message });
      return "unreadable";
    }
    state.location = located.location;
    const outcome = await disk.readHeader(located.location);
    state.alive();
    if (outcome.kind === "error") {
      state.log("warn", "the header cannot be read", { why: outcome.message });
      return "unreadable";
    }
    for (const problem of outcome.problems) state.log("warn", "lockstate header", { problem });
    if (outcome.kind === "none") return outcome.problems.length === 0 ? "no header" : "damaged";
    const mismatch = headerMismatch(outcome.header, located.location);
    if (mismatch !== null) {
      state.log("warn", "the header does not belong to the file", { mismatch });
      return "damaged";
    }
    state.headerSeen = outcome.header;
    state.ports.net.setClusterKey(outcome.header.clusterKey);
    state.raiseEpoch(outcome.header.epoch);
    return outcome.header;
  }

  /** As readHeader(); what was read in the middle of a write is read again. */
  private async readHeaderPatiently(): Promise<HeaderRead> {
    for (let reads = 1; ; reads++) {
      const header = await this.readHeader();
      if (header !== "unreadable" || reads >= DAMAGED_READS) return header;
      await this.state.pause(this.state.timings.heartbeatMs / 4);
    }
  }

  private async readHeartbeats(): Promise<void> {
    const { state } = this;
    if (state.location === null) return;
    const outcome = await state.ports.disk.readHeartbeats(state.location);
    state.alive();
    if (outcome.kind === "error") {
      // Nobody's silence counts while we are deaf.
      this.#watch.reset();
      state.log("warn", "heartbeats cannot be read", { why: outcome.message });
      return;
    }
    state.heartbeats = outcome.records;
    this.#watch.note(outcome.records, state.now());
  }

  private recordOf(member: HeaderMember): HeartbeatRecord | null {
    const record = this.state.heartbeats[member.slot] ?? null;
    return record?.node === member.node && record.incarnation === member.incarnation ? record : null;
  }

  // ---- giving up --------------------------------------------------------------------------------------------

  /** The mount fails: let everything go that this start has taken. */
  async cleanUp(): Promise<void> {
    const { state } = this;
    const { pr } = state.ports;
    if (state.halted) return;
    await state.ports.disk.stopHeartbeat(false);
    state.alive();
    if (state.role !== Role.NONE) {
      const changed = await state.ports.kernel.roleChange(Role.NONE, 0, state.highestEpoch);
      state.alive();
      if (changed.error !== 0) {
        state.log("error", "the kernel could not let go; our key stays", { errno: changed.error });
        return;
      }
    }
    if (pr === null || !this.#probed) return;
    const reservation = await pr.readReservation();
    state.alive();
    const mine = reservation.kind === "held" && reservation.key === state.key;
    // Failed before it had a header of its own: who was fenced for it may only have stood still, and write on.
    const header = state.header ?? this.#replaced;
    if (mine && header !== null && deadMembers(header).length > 0) {
      state.log("warn", "the reservation stays: evicted nodes have not come back", {});
      return;
    }
    if (mine && this.#holdsForOthers) {
      state.log("warn", "the reservation stays: the survivors of our earlier mount take it over", {});
      return;
    }
    const outcome = await pr.unregister(state.key);
    state.alive();
    if (outcome.kind === "error") state.log("error", "cannot unregister our key", { error: outcome.message });
  }
}

/** Which heartbeats move, by our own clock, from one read to the next. */
class HeartbeatWatch {
  readonly #seen = new Map<bigint, { sequence: bigint; movedAt: number; moved: boolean }>();
  /** Who was asked for without having a record, and since when. */
  readonly #missed = new Map<bigint, number>();
  #beganAt = -1;
  #lastAt = -1;

  constructor(readonly gapMaxMs: number) {}

  reset(): void {
    this.#seen.clear();
    this.#missed.clear();
    this.#beganAt = -1;
  }

  note(records: readonly (HeartbeatRecord | null)[], now: number): void {
    // Nobody was watched in between: silence counts from here.
    if (this.#beganAt >= 0 && now - this.#lastAt > this.gapMaxMs) {
      this.#beganAt += now - this.#lastAt;
      for (const seen of this.#seen.values()) seen.movedAt += now - this.#lastAt;
      for (const [key, since] of this.#missed) this.#missed.set(key, since + now - this.#lastAt);
    }
    this.#lastAt = now;
    if (this.#beganAt < 0) this.#beganAt = now;
    for (const record of records) {
      if (record === null) continue;
      const key = prKey(record.node, record.incarnation);
      const seen = this.#seen.get(key);
      if (seen === undefined) this.#seen.set(key, { sequence: record.sequence, movedAt: now, moved: false });
      else if (seen.sequence !== record.sequence) {
        this.#seen.set(key, { sequence: record.sequence, movedAt: now, moved: true });
      }
    }
  }

  /** Some heartbeat, whoever's, has moved in the last `withinMs`. */
  anyMoved(withinMs: number, now: number): boolean {
    return [...this.#seen.values()].some((seen) => seen.moved && now - seen.movedAt < withinMs);
  }

  moved(node: number, incarnation: number): boolean {
    return this.#seen.get(prKey(node, incarnation))?.moved ?? false;
  }

  /** How long it has not moved. Who has no record yet may be about to write its first: silent since it was asked for. */
  silentMs(node: number, incarnation: number, now: number): number {
    if (this.#beganAt < 0) return 0;
    const key = prKey(node, incarnation);
    const seen = this.#seen.get(key);
    if (seen !== undefined) return now - seen.movedAt;
    const since = this.#missed.get(key) ?? now;
    this.#missed.set(key, since);
    return now - since;
  }
}

/** A later incarnation of that node has registered: it has restarted, and serves nothing of its earlier mount. */
function isReplaced(member: HeaderMember, keys: readonly bigint[]): boolean {
  return keys.some((key) => keyNode(key) === member.node && keyIncarnation(key) > member.incarnation);
}

/**
 * The last view's header, when nobody of that view goes on: who was active in it and has not left is fenced now, but may
 * only have stood still, and have writes queued. Until it is seen to come back the reservation must not be released.
 */
function withoutOthers(header: DiskHeader, self: number): DiskHeader {
  const members = header.members.map((member) =>
    member.node === self ? member : { ...member, state: HEADER_MEMBER_STATE.DEAD },
  );
  return { ...header, members };
}

function evicted(state: ClusterState): StartupFailed {
  return new StartupFailed(
    ERRNO.EIO,
    `our key ${hexKey(state.key)}, or our place in the view, is gone: another node has evicted us`,
    true,
  );
}

function describe(outcome: { readonly kind: string; readonly message?: string }): string {
  return outcome.message ?? outcome.kind;
}
