// SPDX-License-Identifier: GPL-2.0-only
/**
 * A simulated host: its kernel (which survives its daemon), its daemon (a ClusterCore over simulated ports), its
 * heartbeat worker, its side of the network. Faults are methods: powerOff, killDaemon, stall.
 */

import type { Timings } from "../../src/cluster/config.js";
import { ClusterCore } from "../../src/cluster/core.js";
import type {
  HeartbeatContents,
  NodeMount,
  Ports,
  PrOutcome,
  Rejoin,
  RoleChangeResult,
  View,
  WriteOutcome,
} from "../../src/cluster/ports.js";
import { prKey } from "../../src/cluster/ports.js";
import type { Mistake } from "../../src/cluster/state.js";
import type { PersistMistake } from "../../src/disk/lock_persister.js";
import type { Command } from "../../src/dlm/engine.js";
import { NodeState, Role } from "../../src/wire/abi.js";
import type { LockEntry } from "../../src/wire/lock_entry.js";
import {
  type ClusterMessage,
  clusterType,
  decodeClusterMessage,
  encodeClusterMessage,
} from "../../src/wire/messages.js";
import type { Cluster } from "./cluster.js";
import { KernelFiles } from "./files.js";
import { checkDied, KernelLocks, LOCK_FRAMES, LockService, readDisk } from "./locks.js";
import { Violation, VOLUME, VOLUME_UUID } from "./world.js";

const OK: RoleChangeResult = { error: 0, message: "" };

export type KernelState = "off" | "idle" | "starting" | "running" | "stopping";

/** One daemon process. */
export class Daemon {
  alive = true;
  core: ClusterCore | null = null;
  clusterKey: string | null = null;
  readonly wanted = new Set<number>();
  heartbeat: { slot: number; contents: HeartbeatContents } | null = null;
  heartbeatRun = 0;
  sequence = 0n;
  locks: LockService | null = null;
  constructor(readonly serial: number) {}
}

/** What the kernel module knows of its mount. */
export class Kernel {
  state: KernelState = "idle";
  role: Role = Role.NONE;
  xfs = false;
  /** When this mount last had the XFS mounted, which replays its log. */
  xfsMountedAt = -1;
  gateOpen = false;
  epoch = 0n;
  /** As the last VIEW said. */
  holder = 0;
  holderIncarnation = 0;
  /** RECOVERY_START came, and RECOVERY_DONE did not. */
  recovering = false;
  leaseUntil = 0;
  fenced = false;
  /** All locks dropped: unmount under way. */
  unmounting = false;
  unmountRequest: bigint | null = null;
  /** Grants itself locks that nobody else knows of. */
  solo = false;
  dumpSolo = false;
  /** Epoch of the last LOCK_DUMP done. */
  dumpedEpoch = 0n;
  incarnation = 0;
  startedAt = 0;
  locks: KernelLocks | null = null;
  files: KernelFiles | null = null;
  /** The kernel works its messages off in two queues, each in order: lock dumps, and role changes with the gate. */
  readonly queues = { locks: Promise.resolve(), control: Promise.resolve() };

  follow({ node, incarnation }: NodeMount): void {
    this.holder = node;
    this.holderIncarnation = incarnation;
  }
}

export class Host {
  kernel = new Kernel();
  daemon: Daemon | null = null;
  incarnation = 0;
  powered = true;
  /** Its clock is so much ahead of the world's. */
  clockAhead = 0;
  /** Kernel operations take this much longer (a fault). */
  stallUntil = 0;
  /** The whole machine stands still until then (a fault): neither kernel nor daemon do anything. */
  frozenUntil = 0;
  /** Reads and writes of the disk fail until then (a fault). */
  diskLostUntil = 0;
  /** The next heartbeat is reported to the core this much after it was written (a slow thread). */
  beatLagMs = 0;
  /** Lockstate cannot be found on the raw disk (a fault). */
  lockstateUnreadable = false;
  /** LOCK_DUMP is refused (a fault). */
  refuseDump = false;
  /** Another volume that is in use on the LUN (a fault). */
  otherVolume: string | null = null;
  /** What the device says of its reservations (a fault): the mount is refused. */
  noReservations: string | null = null;
  /** How often its daemons have asked who is there. */
  queries = 0;
  /** Last failed mount's message. */
  failure = "";
  /** Wrote to the volume in this incarnation (heartbeat, header or XFS). */
  wrote = false;
  registered = false;
  /** When its last heartbeat was written, and of which incarnation. */
  beatAt = -1_000_000;
  beatBefore = -1_000_000;
  beatAs = 0;
  /** That one said that it has given its part up: a holder that has stepped down. */
  beatGoodbye = false;
  /** What it held when its power was cut. */
  lastWords: {
    readonly incarnation: number;
    readonly epoch: bigint;
    readonly locks: readonly { readonly id: bigint; readonly mode: number; readonly ino: bigint }[];
  } | null = null;
  nexus: string;
  #boots = 0;
  readonly uuid: string;
  #nextRequest = 1n;

  constructor(
    readonly cluster: Cluster,
    readonly index: number,
    public node: number,
    readonly timings: Timings,
    readonly mistakes: ReadonlySet<Mistake>,
    readonly persistMistakes: ReadonlySet<PersistMistake> = new Set(),
  ) {
    this.clockAhead = index * 10_000_019;
    this.nexus = `host${index}`;
    this.uuid = `00000000-0000-4000-8000-${index.toString(16).padStart(12, "0")}`;
  }

  get name(): string {
    return `host${this.index}`;
  }
  get key(): bigint {
    return prKey(this.node, this.kernel.incarnation);
  }

  /** Serves cached locks right now. */
  serving(): boolean {
    const { kernel } = this;
    return (
      this.powered &&
      !this.frozen &&
      (kernel.state === "running" || kernel.state === "stopping") &&
      !kernel.fenced &&
      !kernel.unmounting &&
      !kernel.recovering &&
      kernel.leaseUntil > this.now()
    );
  }

  isRegistered(): boolean {
    return this.cluster.target.keys.get(this.nexus) === this.key;
  }

  /** Has the XFS mounted and its writes reach the disk. */
  writesLog(): boolean {
    // While a restarted target refuses nobody, only who stands still does not write (src/cluster/guard.ts).
    if (this.frozen && this.cluster.target.reservation === null) return false;
    return this.powered && this.kernel.xfs && this.cluster.target.mayWrite(this.nexus);
  }

  // ---- what the scenario does -------------------------------------------------------------------------------

  mount(): void {
    if (!this.powered || this.kernel.state !== "idle") return;
    this.kernel = new Kernel();
    this.kernel.state = "starting";
    this.kernel.incarnation = ++this.incarnation;
    this.kernel.startedAt = this.cluster.time.now;
    this.kernel.locks = new KernelLocks(this);
    const { files } = this.cluster.options;
    if (files !== undefined) this.kernel.files = new KernelFiles(this, this.kernel, files);
    this.wrote = false;
    this.registered = false;
    this.failure = "";
    this.story("mount");
    this.spawn(null);
  }

  unmount(): void {
    const { kernel } = this;
    if (!this.powered || kernel.state !== "running") return;
    kernel.state = "stopping";
    this.story("umount");
    if (kernel.files === null) this.dropLocks(kernel);
    else void kernel.files.drain().then(() => this.dropLocks(kernel));
  }

  private dropLocks(kernel: Kernel): void {
    if (!this.powered || this.kernel !== kernel || kernel.state !== "stopping") return;
    kernel.unmounting = true;
    kernel.unmountRequest = this.#nextRequest++;
    kernel.locks?.unmount();
    this.daemon?.core?.unmountRequested(kernel.unmountRequest);
  }

  powerOff(): void {
    if (!this.powered) return;
    this.story("POWER OFF");
    this.daemon?.locks?.tear();
    const { locks, epoch, fenced } = this.kernel;
    const held = locks === null || locks.dead || locks.epoch !== epoch || fenced ? null : locks.held;
    const { incarnation } = this.kernel;
    this.lastWords = held === null ? null : { incarnation, epoch, locks: held.map((lock) => ({ ...lock })) };
    if (locks !== null) locks.dead = true;
    this.kernel.files?.fail();
    this.powered = false;
    this.endDaemon();
    this.kernel = new Kernel();
    this.kernel.state = "off";
  }

  powerOn(): void {
    if (this.powered) return;
    this.story("power on");
    this.powered = true;
    this.#boots++;
    if ((this.cluster.options.nexus ?? "kept") !== "kept") this.nexus = `${this.name}.${this.#boots}`;
    this.clockAhead = this.cluster.random.int(-900_000, 1_000_000_000);
    this.frozenUntil = 0;
    this.diskLostUntil = 0;
    this.kernel = new Kernel();
  }

  killDaemon(): void {
    if (this.daemon === null) return;
    this.story("daemon killed");
    this.endDaemon();
    this.respawn();
  }

  /** Kernel operations hang until then. */
  stall(ms: number): void {
    this.story(`kernel stalls for ${ms} ms`);
    this.stallUntil = this.cluster.time.now + ms;
  }

  /** CLOCK_BOOTTIME of this host: another one on each, and new at every boot. */
  now(): number {
    return this.cluster.time.now + this.clockAhead;
  }

  /** The clock leaps: what was to last that long is over at once. */
  leap(ms: number): void {
    this.story(`clock leaps by ${ms} ms`);
    this.clockAhead += ms;
  }

  get frozen(): boolean {
    return this.frozenUntil > this.cluster.time.now;
  }

  get diskLost(): boolean {
    return this.diskLostUntil > this.cluster.time.now;
  }

  freeze(ms: number): void {
    this.story(`FREEZES for ${ms} ms`);
    this.frozenUntil = this.cluster.time.now + ms;
    if (ms > 3000) this.cluster.network.hostFrozen(this);
  }

  loseDisk(ms: number): void {
    this.story(`loses its disk for ${ms} ms`);
    this.diskLostUntil = this.cluster.time.now + ms;
  }

  // ---- daemon's life ----------------------------------------------------------------------------------------

  private endDaemon(): void {
    const { daemon } = this;
    if (daemon === null) return;
    daemon.alive = false;
    daemon.core?.stop();
    this.daemon = null;
    this.cluster.network.daemonGone(this);
  }

  private respawn(): void {
    const { kernel } = this;
    if (kernel.state === "starting") {
      kernel.state = "idle";
      kernel.xfs = false;
      kernel.files?.fail();
      this.failure = "daemon died during start-up";
      return;
    }
    if (kernel.state !== "running" && kernel.state !== "stopping") return;
    const mount = kernel;
    this.cluster.time.at(this.cluster.random.int(100, 1500), () => {
      if (!this.powered || this.kernel !== mount || this.daemon !== null || mount.state === "idle") return;
      this.story("daemon restarted");
      this.spawn({ role: mount.role, epoch: mount.epoch, fenced: mount.fenced });
      if (mount.unmountRequest !== null) this.daemonCore()?.unmountRequested(mount.unmountRequest);
    });
  }

  private daemonCore(): ClusterCore | null {
    return (this.daemon as Daemon | null)?.core ?? null;
  }

  private spawn(rejoin: Rejoin | null): void {
    const daemon = new Daemon(this.cluster.nextSerial());
    daemon.sequence = BigInt(this.cluster.time.now);
    this.daemon = daemon;
    const config = {
      self: {
        node: this.node,
        incarnation: this.kernel.incarnation,
        uuid: this.uuid,
        address: `10.0.0.${this.index + 1}`,
        port: 7601,
        hostName: this.name,
      },
      timings: this.timings,
      fence: this.cluster.fence,
      rejoin,
      lockRecordCount: 1024,
    };
    daemon.locks = new LockService(this, daemon, this.persistMistakes);
    daemon.core = new ClusterCore(config, this.ports(daemon, this.kernel), this.mistakes);
    daemon.core.start();
  }

  story(text: string): void {
    this.cluster.story(`${this.name} ${text}`);
  }

  // ---- ports ------------------------------------------------------------------------------------------------

  /** Resolves after a delay, unless the daemon has died: then never. */
  private async take(
    daemon: Daemon,
    minMs: number,
    maxMs: number,
    random = this.cluster.random,
  ): Promise<void> {
    await this.cluster.time.sleep(random.int(minMs, maxMs));
    await this.thawed();
    if (!daemon.alive) await new Promise<never>(() => undefined);
  }

  private async thawed(): Promise<void> {
    while (this.frozen) await this.cluster.time.sleep(this.frozenUntil - this.cluster.time.now);
  }

  /** As take(), in the kernel: it goes on when the daemon dies, and stalls when the host does. */
  private async inKernel(kernel: Kernel, minMs: number, maxMs: number): Promise<void> {
    await this.cluster.time.sleep(this.cluster.random.int(minMs, maxMs));
    while (this.stallUntil > this.cluster.time.now || this.frozen) {
      await this.cluster.time.sleep(Math.max(this.stallUntil, this.frozenUntil) - this.cluster.time.now);
    }
    if (!this.powered || this.kernel !== kernel) await new Promise<never>(() => undefined);
  }

  /** As inKernel(), behind what was sent to the same queue before. */
  private async inOrder(
    kernel: Kernel,
    queue: keyof Kernel["queues"],
    minMs: number,
    maxMs: number,
    work: () => Promise<void> = () => Promise.resolve(),
  ): Promise<void> {
    const before = kernel.queues[queue];
    const mine = before.then(() => this.inKernel(kernel, minMs, maxMs)).then(work);
    kernel.queues[queue] = mine;
    await mine;
  }

  private write(): "ok" | "conflict" {
    if (this.cluster.fence === "none") return "ok";
    if (!this.registered)
      throw new Violation(`rule 2: ${this.name} writes without ever having registered its key`);
    if (!this.cluster.target.mayWrite(this.nexus)) return "conflict";
    this.wrote = true;
    return "ok";
  }

  /**
   * A write takes time: first half of it is on the disk, then all of it. A power cut or a fence between leaves it torn.
   * Now and then it fails, and nobody knows how much of it has landed.
   */
  private async land(tear: () => void, whole: () => void): Promise<WriteOutcome> {
    const { cluster, kernel } = this;
    const attempt = (action: () => void): "ok" | "conflict" | null =>
      cluster.guarded(() => {
        const written = this.write();
        if (written === "ok") action();
        return written;
      });
    if (cluster.calm) return attempt(whole) === "ok" ? { kind: "ok" } : { kind: "conflict" };
    if (attempt(tear) !== "ok") return { kind: "conflict" };
    await cluster.time.sleep(cluster.random.int(1, 4));
    if (!this.powered || this.kernel !== kernel) await new Promise<never>(() => undefined);
    const fault = cluster.random.chance(0.02);
    if (fault && cluster.random.chance(0.5)) return { kind: "error", message: "the write failed" };
    if (attempt(whole) !== "ok") return { kind: "conflict" };
    return fault ? { kind: "error", message: "the write failed, perhaps" } : { kind: "ok" };
  }

  private preempt(key: bigint, victim: bigint): boolean {
    const { target } = this.cluster;
    const was_holder = target.reservation?.key === victim;
    const done = target.preempt(this.nexus, key, victim);
    if (done) this.cluster.preempted(victim);
    if (done && was_holder) this.cluster.holderPreempted(this, victim);
    return done;
  }

  ports(daemon: Daemon, kernel: Kernel): Ports {
    const { cluster } = this;
    const { time, target, disk, random } = cluster;
    const outcome = (done: boolean): PrOutcome => ({ kind: done ? "ok" : "conflict" });
    const command = async (action: () => boolean): Promise<PrOutcome> => {
      await this.take(daemon, 1, 15);
      if (this.diskLost) return { kind: "error", message: "transport error" };
      const result = cluster.guarded(() => outcome(action()));
      await this.take(daemon, 1, 15);
      return result ?? { kind: "error", message: "simulation over" };
    };
    return {
      clock: {
        now: () => this.now(),
        setTimer: (delayMs, action) => {
          const item = { cancelled: false };
          const fire = (): void => {
            if (!daemon.alive || item.cancelled) return;
            if (this.frozen) time.at(this.frozenUntil - time.now, fire);
            else action();
          };
          const { serial } = time.at(delayMs, fire);
          return { id: serial, item } as { id: number };
        },
        clearTimer: (timer) => {
          (timer as unknown as { item: { cancelled: boolean } }).item.cancelled = true;
        },
      },
      pr:
        cluster.fence === "none"
          ? null
          : {
              register: (key) =>
                command(() => {
                  if (target.preempted.has(key) && this.wrote) {
                    throw new Violation(
                      `rule 2: ${this.name} registers a key again that was preempted after it had written`,
                    );
                  }
                  target.register(this.nexus, key);
                  this.registered = true;
                  return true;
                }),
              probe: async () => {
                await this.take(daemon, 1, 5);
                if (this.noReservations !== null) return { kind: "refused", message: this.noReservations };
                return { kind: "ok", way: "simulated" };
              },
              registerAgain: (key) =>
                command(() => {
                  if (target.preempted.has(key)) {
                    throw new Violation(`rule 2: ${this.name} registers a key again that was preempted`);
                  }
                  return target.registerAgain(this.nexus, key);
                }),
              resetUnit: () => Promise.resolve<PrOutcome>({ kind: "unsupported", message: "" }),
              readKeys: async () => {
                await this.take(daemon, 1, 20);
                if (this.diskLost) return { kind: "error", message: "transport error" };
                return { kind: "ok", keys: [...target.keys.values()], generation: target.generation };
              },
              readReservation: async () => {
                await this.take(daemon, 1, 20);
                if (this.diskLost) return { kind: "error", message: "transport error" };
                const { reservation } = target;
                return reservation === null
                  ? { kind: "none" }
                  : { kind: "held", key: reservation.key, type: 5 };
              },
              reserve: (key) => command(() => target.reserve(this.nexus, key)),
              preempt: (key, victim) => command(() => this.preempt(key, victim)),
              preemptAndAbort: (key, victim) =>
                target.lacksAbort
                  ? Promise.resolve<PrOutcome>({ kind: "unsupported", message: "" })
                  : command(() => this.preempt(key, victim)),
              release: (key) => command(() => target.release(this.nexus, key)),
              unregister: (key) => command(() => target.unregister(this.nexus, key)),
            },
      kernel: {
        roleChange: async (role) => {
          const result = await this.changeRole(kernel, role);
          await this.take(daemon, 0, 2);
          return result;
        },
        gate: async (open) => {
          await this.inOrder(kernel, "control", 1, 200);
          kernel.gateOpen = open;
          await this.take(daemon, 0, 2);
          return OK;
        },
        lockDump: async (epoch, solo) => {
          await this.inOrder(kernel, "locks", 1, 120, async () => {
            await kernel.files?.settleGone();
            await kernel.files?.endSolo();
          });
          if (!daemon.alive) await new Promise<never>(() => undefined);
          if (this.refuseDump) return { error: 22, message: "refused by the test" };
          if (epoch > kernel.dumpedEpoch) kernel.dumpedEpoch = epoch;
          // Every dump ends solo: what it tells, or keeps to itself, is for the view that comes.
          kernel.solo = false;
          kernel.dumpSolo = solo;
          kernel.locks?.dump(epoch);
          return OK;
        },
        view: (epoch, holder, resend, solo) => {
          if (epoch <= kernel.epoch)
            cluster.violate(`rule 8: ${this.name}: VIEW ${epoch} after ${kernel.epoch}`);
          const followed = kernel.holder === holder.node && kernel.holderIncarnation === holder.incarnation;
          if (kernel.holder !== 0 && !followed && !resend) {
            cluster.violate(`rule 7: ${this.name} has a new holder and is not told to send again`);
          }
          if (solo !== kernel.dumpSolo) {
            cluster.violate(
              `rule 3: ${this.name}: VIEW ${epoch} ${solo ? "is" : "is not"} solo, its lock dump was not so`,
            );
          }
          kernel.solo = solo;
          kernel.epoch = epoch;
          kernel.follow(holder);
          kernel.gateOpen = true;
          if (kernel.locks !== null) kernel.locks.dumped = false;
          if (resend) kernel.files?.resend();
        },
        recovery: (begin) => {
          kernel.recovering = begin;
        },
        lease: (until) => {
          kernel.leaseUntil = until;
        },
        ready: (role, epoch, holder, until) => {
          kernel.follow(holder);
          if (kernel.recovering)
            cluster.violate(`rule 9: ${this.name} is ready, and its recovery is not over`);
          kernel.leaseUntil = until;
          kernel.gateOpen = true;
          if (kernel.state === "starting") kernel.state = "running";
          this.story(`READY role ${role} epoch ${epoch}`);
        },
        failed: (errno, message) => {
          if (kernel.locks !== null) kernel.locks.dead = true;
          this.failure = `${errno} ${message}`;
          kernel.files?.fail();
          this.story(`MOUNT FAILED ${this.failure}`);
          if (errno <= 0 || message === "")
            cluster.violate(`rule 10: ${this.name}'s mount fails without why`);
          if (kernel.xfs) cluster.violate(`rule 1: ${this.name}: mount failed with XFS still mounted`);
          kernel.state = "idle";
          kernel.xfs = false;
        },
        nodeStatus: (node, incarnation, state) => {
          if (state === NodeState.DEAD || state === NodeState.LEFT) kernel.files?.gone(node, incarnation);
          if (state === NodeState.JOINING) kernel.files?.back(node, incarnation);
        },
        fenced: (message) => {
          this.story(`FENCED ${message}`);
          if (message === "") cluster.violate(`rule 10: ${this.name} is fenced without why`);
          kernel.files?.fail();
          kernel.fenced = true;
          kernel.xfs = false;
        },
        unmountDone: (_request, errno, message) => {
          if (kernel.locks !== null) kernel.locks.dead = true;
          this.story(`UNMOUNTED ${errno} ${message}`);
          if (errno !== 0 && message === "")
            cluster.violate(`rule 10: ${this.name}'s unmount fails without why`);
          kernel.files?.left();
          kernel.files?.fail();
          if (kernel.xfs) cluster.violate(`rule 1: ${this.name}: unmounted with XFS still mounted`);
          kernel.state = "idle";
        },
      },
      disk: {
        volume: VOLUME,
        volumeUuid: VOLUME_UUID,
        locateLockstate: async () => {
          await this.take(daemon, 5, 60);
          if (this.diskLost) return { kind: "unreadable", message: "transport error" };
          if (this.lockstateUnreadable || random.chance(0.02))
            return { kind: "unreadable", message: "read in the middle of a write" };
          return disk.lockstate ? { kind: "found", location: disk.location } : { kind: "not-found" };
        },
        otherVolumeOnLun: async () => {
          await this.take(daemon, 0, 5);
          return this.otherVolume;
        },
        readHeader: async () => {
          await this.take(daemon, 1, 20);
          if (this.diskLost) return { kind: "error", message: "transport error" };
          const header = disk.header();
          return header === null
            ? { kind: "none", problems: disk.headerProblems() }
            : { kind: "found", header, problems: [] };
        },
        writeHeader: async (_location, header) => {
          await this.take(daemon, 1, 40);
          if (this.diskLost) return { kind: "error", message: "transport error" };
          const outcome = await this.land(
            () => disk.tearHeader(header),
            () => disk.writeHeader(header),
          );
          await this.take(daemon, 1, 10);
          return outcome;
        },
        readHeartbeats: async () => {
          await this.take(daemon, 1, 20);
          if (this.diskLost) return { kind: "error", message: "transport error" };
          return { kind: "ok", records: disk.heartbeats() };
        },
        readJournals: async () => {
          await this.take(daemon, 1, 20);
          if (this.diskLost) return { kind: "error", message: "transport error" };
          return { kind: "ok", records: disk.journals() };
        },
        writeJournal: async (_location, slot, record) => {
          await this.take(daemon, 1, 20);
          if (this.diskLost) return { kind: "error", message: "transport error" };
          const outcome = await this.land(
            () => disk.tearJournal(slot),
            () => cluster.journalWritten(this, slot, record),
          );
          await this.take(daemon, 1, 5);
          return outcome;
        },
        readLockArea: async () => {
          await this.take(daemon, 5, 60, cluster.lockRandom);
          if (this.diskLost) return { kind: "error", message: "transport error" };
          return { kind: "ok", report: { locks: readDisk(this) ?? [], problems: [], outdated: 0 } };
        },
        setHeartbeat: (_location, slot, contents) => {
          const running = daemon.heartbeat !== null;
          daemon.heartbeat = { slot, contents };
          if (!running) void this.heartbeatLoop(daemon, ++daemon.heartbeatRun);
        },
        stopHeartbeat: async (clear) => {
          const old = daemon.heartbeat;
          daemon.heartbeat = null;
          await this.take(daemon, 1, 30);
          if (clear && old !== null && target.mayWrite(this.nexus)) disk.clearHeartbeat(old.slot);
        },
      },
      net: {
        setClusterKey: (key) => {
          daemon.clusterKey = Buffer.from(key).toString("hex");
          cluster.network.dialAll(this);
        },
        connect: (node) => {
          daemon.wanted.add(node);
          cluster.network.dial(this, node);
        },
        disconnect: (node) => {
          daemon.wanted.delete(node);
          cluster.network.close(this, node);
        },
        send: (node, message) => cluster.network.send(this, node, this.throughTheWire(message)),
        query: () => {
          this.queries++;
        },
      },
      locks: {
        freezeAndClear: (view) => daemon.locks?.freeze(view),
        freezeRecords: async () => {
          await daemon.locks?.persister.freeze();
          await this.take(daemon, 0, 2, cluster.lockRandom);
        },
        makeRecords: async (view) => {
          await this.take(daemon, 1, 10, cluster.lockRandom);
          return (await daemon.locks?.make(view)) ?? { kind: "ok" };
        },
        reclaimControl: () => this.take(daemon, 0, 10),
        resume: (epoch) => {
          cluster.resumed(this, epoch, this.committedView(epoch));
          daemon.locks?.resume(epoch);
        },
        purge: () => undefined,
        died: (held) => checkDied(this, held, disk.header()?.epoch ?? 0n),
      },
      recovered: () => undefined,
      log: (level, text, fields) => {
        if (level === "debug") return;
        const line = Object.entries(fields).map(([name, value]) => `${name}=${value}`);
        this.story(`[${level}] ${text} ${line.join(" ")}`);
        if (text.startsWith("the cluster core failed"))
          cluster.violate(`rule 10: ${this.name}: ${line.join(" ")}`);
      },
      random: (count) => Uint8Array.from({ length: count }, () => random.int(0, 255)),
      exit: (code) => {
        if (!daemon.alive) return;
        this.story(`daemon exits ${code}`);
        if (this.daemon !== daemon) return;
        this.endDaemon();
        if (code !== 0) this.respawn();
      },
    };
  }

  private committedView(epoch: bigint): View {
    const view = this.daemon?.core?.snapshot().view ?? null;
    if (view === null || view.epoch !== epoch)
      throw new Violation(`rule 8: ${this.name}: resume(${epoch}) without that view`);
    return view;
  }

  /** A lock message of another node. */
  takeLock(type: number, entry: LockEntry, from: number): void {
    if (LOCK_FRAMES.includes(type)) this.daemon?.locks?.submit(type as Command, entry, from);
    else this.kernel.locks?.receive(type, entry);
  }

  private throughTheWire(message: ClusterMessage): ClusterMessage {
    return decodeClusterMessage(clusterType(message), encodeClusterMessage(message));
  }

  private async changeRole(kernel: Kernel, role: Role): Promise<RoleChangeResult> {
    const { cluster } = this;
    if (role === Role.HOLDER) {
      await this.inOrder(kernel, "control", 50, 1500);
      if (
        cluster.fence === "scsi" &&
        cluster.target.reservation?.nexus !== this.nexus &&
        this.isRegistered()
      ) {
        cluster.violate(`rule 1: ${this.name} mounts the XFS without the reservation`);
      }
      if (this.diskLost || cluster.guarded(() => this.write()) !== "ok")
        return { error: 5, message: "XFS: log mount failed" };
      kernel.xfs = true;
      kernel.xfsMountedAt = cluster.time.now;
      kernel.files?.mountXfs();
      cluster.disk.lockstate = true;
    } else {
      await this.inOrder(kernel, "control", 5, kernel.xfs ? 800 : 50);
      kernel.xfs = false;
      kernel.files?.unmountXfs();
    }
    kernel.role = role;
    return OK;
  }

  private async heartbeatLoop(daemon: Daemon, run: number): Promise<void> {
    const { time, disk, random } = this.cluster;
    for (;;) {
      const started_at = this.now();
      await this.take(daemon, 1, 40);
      const beat = daemon.heartbeat;
      if (beat === null || daemon.heartbeatRun !== run) return;
      const lost = this.diskLost;
      const written = lost ? null : this.cluster.guarded(() => this.write());
      if (lost) {
        daemon.core?.heartbeatFailed({ kind: "error", message: "transport error" });
      } else if (written === "conflict") {
        daemon.core?.heartbeatFailed({ kind: "conflict", message: "EBADE" });
      } else if (written === "ok" && !this.cluster.calm && random.chance(0.02)) {
        // Nobody knows what has landed.
        if (random.chance(0.5)) disk.tearHeartbeat(beat.slot);
        daemon.core?.heartbeatFailed({ kind: "error", message: "the write failed" });
      } else if (written === "ok") {
        if (!this.cluster.calm && random.chance(0.1)) {
          disk.tearHeartbeat(beat.slot);
          await time.sleep(random.int(1, 4));
          if (!this.powered || !daemon.alive) return;
        }
        disk.writeHeartbeat(beat.slot, { ...beat.contents, sequence: ++daemon.sequence });
        this.beatBefore = this.beatAt;
        this.beatAt = time.now;
        this.beatAs = beat.contents.incarnation;
        this.beatGoodbye = beat.contents.role === Role.NONE;
        if (this.beatLagMs > 0) {
          await this.take(daemon, this.beatLagMs, this.beatLagMs);
          this.beatLagMs = 0;
        }
        daemon.core?.heartbeatWritten(started_at);
      }
      await this.take(daemon, 1, 20);
      if (daemon.heartbeat === null || daemon.heartbeatRun !== run) return;
      if (!this.diskLost) daemon.core?.heartbeatsRead(disk.heartbeats(), this.now());
      const slow = random.chance(0.01) ? random.int(0, 2500) : 0;
      await this.take(daemon, this.timings.heartbeatMs - 20 + slow, this.timings.heartbeatMs + slow);
      if (daemon.heartbeat === null || daemon.heartbeatRun !== run) return;
    }
  }
}
