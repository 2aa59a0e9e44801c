// SPDX-License-Identifier: GPL-2.0-only
/**
 * The cluster core: takes events, owns the parts (election, membership, leases, hand-over), and says when it is over.
 * No I/O: everything goes through the ports. One instance lives for one daemon process on one mount.
 *
 * Life: start() -> election or rejoin -> view committed, lease there -> kernel.ready() -> serves -> unmountRequested()
 * -> leave or hand-over -> kernel.unmountDone() -> exit(0). A start that fails: kernel.failed(), exit(1). Fenced:
 * everything stops but the answer to an unmount.
 *
 * Known weakness: an unexpected exception anywhere in a flow ends the daemon (exit 2), and the kernel starts it again;
 * that is on purpose, since a half-done view change is nothing to patch up in place.
 */
import type { HeartbeatRecord } from "../disk/record.js";
import { Role } from "../wire/abi.js";
import type { ClusterMessage, ClusterMessageOf, MemberInfo } from "../wire/messages.js";
import { type ClusterConfig, checkTimings } from "./config.js";
import { fenceSelf } from "./eviction.js";
import { ReservationGuard } from "./guard.js";
import { HandOver, HandOverRefused } from "./handover.js";
import { ERRNO, LeaseKeeper } from "./lease.js";
import { Coordinator } from "./membership.js";
import { Participant } from "./participant.js";
import type { ClusterEvents, Discovered, HeartbeatFailure, Ports, View } from "./ports.js";
import { Startup, StartupFailed } from "./startup.js";
import { ClusterState, Halted, hexNode, type Mistake, memberOf, type Phase } from "./state.js";
import { Takeover } from "./takeover.js";

/** How often it is said that the end of solo takes long. */
const SOLO_END_MS = 10_000;

export interface ClusterSnapshot {
  readonly phase: Phase;
  readonly role: Role;
  readonly view: View | null;
  readonly highestEpoch: bigint;
  readonly leaseUntil: number;
  readonly connected: readonly number[];
}

export class ClusterCore implements ClusterEvents {
  readonly #state: ClusterState;
  readonly #lease: LeaseKeeper;
  readonly #participant: Participant;
  readonly #coordinator: Coordinator;
  readonly #handOver: HandOver;
  readonly #takeover: Takeover;
  readonly #startup: Startup;
  readonly #guard: ReservationGuard;
  #steppingDown = false;
  #holderDead = false;
  #coordinatorDone: Promise<void> | null = null;
  /** Nodes whose connection broke while they were in the view. */
  readonly #broken = new Set<number>();

  /** @throws RangeError on timings that contradict each other. */
  constructor(config: ClusterConfig, ports: Ports, mistakes: ReadonlySet<Mistake> = new Set()) {
    checkTimings(config.timings);
    if ((ports.pr === null) !== (config.fence === "none")) {
      throw new RangeError(
        `fence=${config.fence} ${ports.pr === null ? "needs" : "must not have"} a reservation port`,
      );
    }
    const state = new ClusterState(config, ports, mistakes);
    this.#state = state;
    this.#lease = new LeaseKeeper(state, {
      evict: (member, reason) => this.#coordinator.evict(member, reason),
      isBeingEvicted: (node) => this.#coordinator.isBeingEvicted(node),
      isLeaving: (node) => this.#coordinator.isLeaving(node),
      stepDown: (cut) => this.stepDown(cut),
      holderDead: (holder, silentMs) =>
        this.holderDead(holder.node, `no heartbeat for ${Math.round(silentMs)} ms`),
    });
    this.#guard = new ReservationGuard(state, this.#lease);
    this.#participant = new Participant(state, this.#lease);
    this.#coordinator = new Coordinator(state, this.#lease, this.#participant);
    this.#handOver = new HandOver(state, this.#lease, this.#participant, this.#coordinator, () =>
      this.startCoordinator(),
    );
    this.#takeover = new Takeover(state, this.#lease, this.#participant, this.#coordinator, () =>
      this.startCoordinator(),
    );
    this.#startup = new Startup(
      state,
      this.#lease,
      this.#participant,
      this.#coordinator,
      this.#takeover,
      () => this.startCoordinator(),
    );
  }

  /** Begins the election, or the rejoin. Called once. */
  start(): void {
    this.flow("start-up", () => this.run());
  }

  /** The daemon ends without unmount: no port is called any more. */
  stop(): void {
    if (!this.#state.halted) this.#state.halt("stopped");
  }

  snapshot(): ClusterSnapshot {
    const { phase, role, view, highestEpoch, connected } = this.#state;
    const leaseUntil = this.#lease.leaseUntil;
    return { phase, role, view, highestEpoch, leaseUntil, connected: [...connected.keys()] };
  }

  /**
   * Somebody beside the kernel is about to ask for locks that the kernel takes, too: resolves when the lock table knows
   * the kernel's. From then on it always does.
   */
  async endSolo(): Promise<void> {
    const state = this.#state;
    state.soloBarred = true;
    if (state.solo && state.role === Role.HOLDER) {
      this.#coordinator.requestResync("a control client asks for a lock that the kernel takes");
    }
    while ((await state.until(() => (state.solo ? undefined : true), SOLO_END_MS)) === null) {
      state.log("warn", "the view change that ends solo takes long", {});
    }
  }

  // ---- flows ------------------------------------------------------------------------------------------------

  private async run(): Promise<void> {
    const state = this.#state;
    if (state.config.fence === "none") {
      state.log(
        "warn",
        "fence=none: for tests only, nothing keeps a dead node from writing to the volume",
        {},
      );
    }
    try {
      await this.#startup.run();
    } catch (error) {
      if (error instanceof Halted && this.isFenced() && state.config.rejoin === null) {
        // mount(2) still waits for an answer.
        state.ports.kernel.failed(ERRNO.EIO, "fenced during start-up, see the daemon's log; mount again");
        state.phase = "stopped";
        state.ports.exit(1);
        return;
      }
      if (!(error instanceof StartupFailed)) throw error;
      await this.startFailed(error);
    }
  }

  private async startFailed(error: StartupFailed): Promise<void> {
    const state = this.#state;
    state.log("error", "the mount fails", { errno: error.errno, why: error.message });
    if (state.config.rejoin !== null) {
      if (error.fenced) {
        // The mount lives on, fenced; the daemon stays to answer its unmount.
        fenceSelf(state, error.message);
        if (state.unmountRequest !== null) await this.leaveFenced(state.unmountRequest);
      } else {
        state.halt("stopped");
        state.ports.exit(1);
      }
      return;
    }
    await this.#startup.cleanUp();
    if (state.unmountRequest !== null) state.ports.kernel.unmountDone(state.unmountRequest, 0, "");
    else state.ports.kernel.failed(error.errno, error.message);
    if (!state.halted) state.halt("stopped");
    state.ports.exit(1);
  }

  /** This node is the holder (elected, rejoined or by hand-over): serve view changes. */
  private startCoordinator(): void {
    if (this.#coordinatorDone !== null) return;
    this.#coordinatorDone = this.flow("coordinator", () => this.#coordinator.run());
  }

  private async leave(requestId: bigint): Promise<void> {
    const state = this.#state;
    const started_at = state.now();
    try {
      // A start that is still under way gives up by itself (startup.ts looks at unmountRequest).
      await state.until(() => (state.phase === "starting" ? undefined : true), 4 * state.timings.startupMs);
      // Nor does a takeover stop half-way: it decides what we are.
      await state.until(() => (this.#takeover.underWay ? undefined : true), 64 * state.timings.nodeTimeoutMs);
      state.phase = "leaving";
      this.#coordinator.stepDown = true;
      state.poke();
      await this.#handOver.leave(
        () => this.#holderDead,
        async () => {
          if (this.#coordinatorDone !== null) await this.#coordinatorDone;
          state.alive();
        },
      );
    } catch (error) {
      if (error instanceof Halted && this.isFenced()) return this.leaveFenced(requestId);
      if (!(error instanceof HandOverRefused)) throw error;
      state.log("error", "the unmount fails", { why: error.message });
      state.unmountRequest = null;
      state.phase = "running";
      this.#coordinator.stepDown = false;
      state.ports.kernel.unmountDone(requestId, error.errno, error.message);
      this.#coordinatorDone = null;
      this.startCoordinator();
      return;
    }
    state.log("info", "left", { ms: state.now() - started_at });
    state.halt("stopped");
    state.ports.kernel.unmountDone(requestId, 0, "");
    state.ports.exit(0);
  }

  private isFenced(): boolean {
    return this.#state.phase === "fenced";
  }

  /** Fenced, or the holder is dead: nobody to say goodbye to. */
  private async leaveFenced(requestId: bigint): Promise<void> {
    const { ports } = this.#state;
    const changed = await ports.kernel.roleChange(Role.NONE, 0, this.#state.highestEpoch);
    if (this.#state.phase === "stopped") return;
    this.#state.phase = "stopped";
    ports.kernel.unmountDone(requestId, changed.error, changed.message);
    ports.exit(0);
  }

  /** The survivors decide who takes it over. */
  private holderDead(holder: number, why: string): void {
    const state = this.#state;
    // A newcomer or a restarted daemon is in its election, which looks at the holder by itself.
    if (state.phase === "starting" || state.role !== Role.MEMBER || state.contested) return;
    if (this.#takeover.underWay || this.#handOver.takingOver) return;
    if (state.phase === "leaving") {
      if (!this.#holderDead) state.log("warn", "the holder is dead; leaving without it", { why });
      this.#holderDead = true;
      state.poke();
      return;
    }
    state.log("error", "the holder is dead", { holder: hexNode(holder), why });
    void this.flow("takeover", async () => {
      await this.#takeover.contest(`dead: ${why}`);
    });
  }

  /** JOIN or not, a later incarnation of the holder's node proves the holder dead. */
  private holderReturned(from: number, message: ClusterMessageOf<"JOIN">): void {
    const state = this.#state;
    const view = state.next ?? state.view;
    const holder = memberOf(view, view?.holder ?? 0);
    if (state.role !== Role.MEMBER || holder === undefined || holder.node !== from) return;
    if (message.rejoin || message.incarnation <= holder.incarnation) return;
    const record = state.heartbeats[holder.slot];
    if (record?.node === from && record.uuid !== message.uuid) return;
    if (!this.#lease.proveDead(from, holder.incarnation)) return;
    this.holderDead(from, `its incarnation ${message.incarnation} has come`);
  }

  private stepDown(cut: readonly MemberInfo[]): void {
    if (this.#steppingDown || this.#state.phase === "leaving") return;
    this.#steppingDown = true;
    void this.flow("step down", () => this.#coordinator.stepDownForGood(cut));
  }

  private flow(name: string, body: () => Promise<void>): Promise<void> {
    return body().catch((error: unknown) => {
      if (error instanceof Halted || this.#state.phase === "stopped") return;
      const why = error instanceof Error ? (error.stack ?? error.message) : String(error);
      this.#state.log("error", "the cluster core failed; the daemon starts over", { flow: name, why });
      if (!this.#state.halted) this.#state.halt("stopped");
      this.#state.ports.exit(2);
    });
  }

  // ---- events -----------------------------------------------------------------------------------------------

  message(from: number, message: ClusterMessage): void {
    const state = this.#state;
    if (state.phase === "fenced" && message.kind === "JOIN") {
      // Who takes us for the holder must not wait for us.
      state.send(from, { kind: "JOIN_REFUSED", errno: ERRNO.EAGAIN, reason: "this node was fenced" });
    }
    if (state.halted) return;
    const participant = this.#participant;
    switch (message.kind) {
      case "JOIN":
        if (state.connected.get(from) !== message.incarnation) return;
        this.holderReturned(from, message);
        this.#coordinator.join(from, message);
        return;
      case "JOIN_REFUSED":
        if (this.#startup.refused(from, message.errno, message.reason)) return;
        if (from === state.view?.holder && message.errno === ERRNO.ESTALE)
          participant.evicted(message.reason);
        return;
      case "PREPARE":
        void this.flow("PREPARE", () => participant.prepared(from, message));
        return;
      case "REBUILD":
        void this.flow("REBUILD", () => participant.rebuildAsked(from, message.epoch));
        return;
      case "REBUILD_SENT":
        participant.rebuildSent(from, message.epoch);
        return;
      case "COMMIT":
        void this.flow("COMMIT", () => participant.committed(from, message));
        return;
      case "PREPARED":
      case "REBUILT":
      case "COMMITTED":
        if (state.role === Role.HOLDER) this.#coordinator.answered(from, message);
        return;
      case "LEAVE":
        this.#coordinator.leave(from);
        return;
      case "LEFT":
        this.#handOver.left(from);
        return;
      case "GATE_SHUT":
        void this.flow("GATE_SHUT", () => participant.gateShutAsked(from, message.reason));
        return;
      case "GATE_IS_SHUT":
        this.#handOver.gateIsShut(from);
        return;
      case "TAKE_OVER":
        void this.flow("TAKE_OVER", () => this.#handOver.takeOver(from, message));
        return;
      case "TAKEN_OVER":
        this.#handOver.takenOver(from);
        return;
      case "LEASE_RENEW":
        this.#lease.renewed(from, message);
        return;
      case "LEASE_ACK":
        this.#lease.acknowledged(from, message.seq);
        return;
      case "RESYNC":
        if (state.role === Role.HOLDER && memberOf(state.view, from) !== undefined) {
          this.#coordinator.requestResync(message.reason);
        }
        return;
    }
  }

  peerConnected(node: number, incarnation: number): void {
    const state = this.#state;
    if (state.halted) return;
    state.connected.set(node, incarnation);
    state.connectionGeneration.set(node, state.generation(node) + 1);
    const view = state.next ?? state.view;
    const was_broken = this.#broken.delete(node);
    if (was_broken && memberOf(view, node)?.incarnation === incarnation && view !== null) {
      if (state.role === Role.HOLDER) this.#coordinator.peerConnected(node, incarnation);
      else if (node !== view.holder && state.self < node) {
        state.send(view.holder, { kind: "RESYNC", reason: `connection to ${hexNode(node)} came back` });
      }
    }
    state.poke();
  }

  peerLost(node: number): void {
    const state = this.#state;
    if (state.halted) return;
    state.connected.delete(node);
    state.connectionGeneration.set(node, state.generation(node) + 1);
    const in_view = memberOf(state.view, node) !== undefined || memberOf(state.next, node) !== undefined;
    if (in_view) this.#broken.add(node);
    else state.ports.net.disconnect(node);
    this.#coordinator.peerLost(node);
    state.poke();
  }

  heartbeatWritten(atMs: number): void {
    const state = this.#state;
    if (state.halted) return;
    state.heartbeatWrittenAt = atMs;
    this.#lease.heartbeatWritten(atMs);
    state.poke();
  }

  heartbeatFailed(failure: HeartbeatFailure): void {
    const state = this.#state;
    if (state.halted) return;
    if (failure.kind === "conflict") {
      fenceSelf(state, `the target refused our heartbeat (${failure.message}): another node has fenced us`);
    } else {
      state.log("error", "cannot write our heartbeat; the lease is not renewed", { error: failure.message });
    }
  }

  recordsRefused(): void {
    const state = this.#state;
    if (state.halted) return;
    fenceSelf(state, "the target refused our write of a lock record: another node has fenced us");
  }

  heartbeatsRead(records: readonly (HeartbeatRecord | null)[], atMs: number): void {
    if (this.#state.halted) return;
    this.#lease.heartbeatsRead(records, atMs);
    void this.flow("reservation guard", () => this.#guard.look());
    this.#state.poke();
  }

  discovered(packet: Discovered): void {
    if (this.#state.halted) return;
    this.#startup.discovered(packet);
  }

  unmountRequested(requestId: bigint): void {
    const state = this.#state;
    if (state.phase === "stopped" || (state.unmountRequest !== null && state.phase !== "fenced")) return;
    state.unmountRequest = requestId;
    if (state.phase === "fenced") {
      void this.flow("unmount", () => this.leaveFenced(requestId));
      return;
    }
    state.poke();
    void this.flow("unmount", () => this.leave(requestId));
  }

  kernelError(message: string): void {
    fenceSelf(this.#state, `the kernel lost the file system: ${message}`);
  }
}
