// SPDX-License-Identifier: GPL-2.0-only
//
// One daemon: start-up in order (log, config, volume, dlm, netlink, peer, lease, heartbeat), service, and
// shutdown in reverse.
//
//            options ─► log ─► attach to the mount ─► identity ─► volume ─► lock table
//                   ─► workers, all at once: peer, lease, netlink, heartbeat ─► discovery ─► control socket ─► (serve)
//
// Whatever fails before the cluster core runs is told to the waiting mount (DAEMON_READY with an error).
// A worker that fails ends the daemon with status 1; the kernel starts another, which reclaims every lock.
//
// Known weakness: one process, so a crash of any thread is a crash of all.

import { existsSync, lstatSync, readlinkSync, rmSync, symlinkSync } from "node:fs";
import { hostname, networkInterfaces } from "node:os";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { MessageChannel, type MessagePort, Worker } from "node:worker_threads";
import { bootTimeMs, GenlSocket, trimProgram } from "../../native/index.js";
import type { ClusterConfig } from "../cluster/config.js";
import { DeadlockDetector } from "../dlm/deadlock.js";
import { type Command, LockEngine, type LockInfo } from "../dlm/engine.js";
import { MXFS_DISK_LOCK_RECORD_COUNT_DEFAULT, type Role, Role as RoleNumber } from "../wire/abi.js";
import { messageOf } from "../wire/error.js";
import { type EntryValue, encodeValuedEntries, type ValuedEntry } from "../wire/lock_entry.js";
import { encodeProbe } from "../wire/probe.js";
import { BulkLocks } from "../workers/bulk.js";
import { LockDispatch } from "../workers/dispatch.js";
import { KernelLink } from "../workers/kernel_link.js";
import { serviceVolume } from "../workers/lan_disk.js";
import { interfaceAddress } from "../workers/peer_net.js";
import {
  type LogFields,
  type LogLevel,
  NodeWords,
  type ToLease,
  type ToMain,
  type ToPeer,
  type WorkerSetup,
} from "../workers/protocol.js";
import { ClientLocks, type Granted } from "./client_locks.js";
import { type Config, reloadable } from "./config.js";
import {
  answers,
  type ControlClient,
  ControlError,
  ControlServer,
  type Json,
  type JsonObject,
} from "./control.js";
import { Discovery } from "./discovery.js";
import { loadIdentity, type NodeIdentity, nextIncarnation } from "./identity.js";
import { type Attached, attach } from "./kernel_attach.js";
import { Log } from "./log.js";
import { type DaemonOptions, readConfig } from "./options.js";
import { formatResource, NameError, parseResource, type ResourceName } from "./resource_name.js";
import { probeVolume, type Volume, VolumeRegistry } from "./volume.js";

/** Capacity of the lock table; memory is used as it fills. */
const RESOURCES_MAX = 1 << 22;
const LOCKS_MAX = 1 << 22;
const KERNEL_THREAD = 4;
const DUMP_PAGE = 200;
const SOCKET_DIRECTORY = "/run/mxfs";
const SOCKET_DEFAULT = "/var/run/mxfsd.sock";
const WORKER_END_MS = 3_000;
const KERNEL_STATUS_MS = 500;
const LINK_WAIT_MS = 10_000;
const LINK_POLL_MS = 100;

const RULE = {
  signals: ["SIGTERM", "SIGINT", "SIGHUP"],
} as const;

/**
 * Address that peers are told: the interface's, or the first one that is not loopback. An interface whose link is
 * just coming up (a mount at boot) is waited for; the system gives no event that Node could hear.
 */
async function ownAddress(iface: string | null): Promise<string> {
  if (iface !== null) {
    for (const endMs = bootTimeMs() + LINK_WAIT_MS; ; await pause(LINK_POLL_MS)) {
      const address = interfaceAddress(iface);
      if (address !== null) {
        return address;
      }
      if (bootTimeMs() >= endMs) {
        throw new Error(
          `interface ${iface} has no IPv4 address, or its link is down: bring it up, or choose another with iface=`,
        );
      }
    }
  }
  for (const entries of Object.values(networkInterfaces())) {
    const found = entries?.find((entry) => entry.family === "IPv4" && !entry.internal);
    if (found !== undefined) {
      return found.address;
    }
  }
  return "127.0.0.1";
}

function json(value: unknown): Json {
  // Through text: bigints as decimal strings, and nothing that JSON cannot say.
  return JSON.parse(
    JSON.stringify(value, (_key, part: unknown) => (typeof part === "bigint" ? part.toString() : part)),
  );
}

function valueJson(value: EntryValue | null): Json {
  return value === null
    ? null
    : { hex: Buffer.from(value.bytes).toString("hex"), valid: value.valid, seq: value.seq.toString() };
}

function grantedJson({ id, mode, value }: Granted): JsonObject {
  return { lock: id.toString(), mode, value: valueJson(value) };
}

/** @throws ControlError EINVAL */
function resourceOf(name: string): ResourceName {
  try {
    return parseResource(name);
  } catch (error) {
    throw error instanceof NameError ? new ControlError("EINVAL", error.message) : error;
  }
}

class Daemon {
  readonly #options: DaemonOptions;
  #config: Config;
  readonly #log: Log;
  readonly #volumes = new VolumeRegistry();
  readonly #words = new NodeWords(new SharedArrayBuffer(NodeWords.BYTES));
  readonly #workers = new Map<string, Worker>();
  readonly #ports = new Map<string, MessagePort>();
  readonly #status = new Map<string, Readonly<Record<string, unknown>>>();
  readonly #started = new Set<string>();
  readonly #startedMs = bootTimeMs();
  #exit: (code: number) => void = () => undefined;
  readonly #ended: Promise<number>;
  #control: ControlServer[] = [];
  #discovery: Discovery | null = null;
  #locks: ClientLocks | null = null;
  #detector: DeadlockDetector | null = null;
  #bulk: BulkLocks | null = null;
  #engine: LockEngine | null = null;
  #link: KernelLink | null = null;
  #attached: Attached | null = null;
  #identity: NodeIdentity | null = null;
  #volume: Volume | null = null;
  #defaultSocket = false;
  #statusWaiters: (() => void)[] = [];

  #mountTold = false;

  constructor(options: DaemonOptions) {
    this.#options = options;
    this.#config = options.config;
    this.#log = new Log(options.config.logging, "mxfsd", options.foreground);
    this.#ended = new Promise((resolve) => {
      this.#exit = resolve;
    });
  }

  #say(level: LogLevel, text: string, fields: LogFields = {}): void {
    this.#log.log(level, "main", text, fields);
  }

  async run(): Promise<number> {
    const { device, mountId, mountpoint } = this.#options;
    this.#say("info", "mxfsd starts", { device, mountpoint, mount: mountId, pid: process.pid });
    let code: number;
    try {
      await this.#start();
      code = await this.#ended;
    } catch (error) {
      this.#say(
        "error",
        `start-up failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
      );
      this.#failMount(messageOf(error));
      code = 1;
    }
    await this.#stop(code);
    return code;
  }

  // ---- start-up

  async #start(): Promise<void> {
    const options = this.#options;
    for (const signal of RULE.signals) {
      process.on(signal, () => this.#signal(signal));
    }
    if (options.mountId !== null) {
      this.#attached = attach(options.mountId);
      this.#link = new KernelLink(this.#attached.setup, KERNEL_THREAD);
    }
    const { node: nodeConfig, timing, peers } = this.#config;
    const identity = loadIdentity(nodeConfig.uuidFile);
    this.#identity = identity;
    const known = this.#attached?.answer.incarnation ?? 0;
    const rejoining = known !== 0;
    const incarnation = rejoining ? known : nextIncarnation(nodeConfig.incarnationFile);
    const probed = await probeVolume(options.device, options.mountpoint, options.uuid);
    const volume = options.mountId === null ? { ...probed, id: serviceVolume(probed.id) } : probed;
    this.#volumes.add(volume);
    this.#volume = volume;
    const engine = LockEngine.create(identity.node, {
      resourceCountMax: RESOURCES_MAX,
      lockCountMax: LOCKS_MAX,
    });
    this.#engine = engine;
    const address = await ownAddress(nodeConfig.iface);
    const setup: WorkerSetup = {
      self: identity.node,
      incarnation,
      volume: volume.id,
      volumeUuid: volume.uuid,
      device: options.device,
      port: nodeConfig.port,
      iface: nodeConfig.iface,
      encrypt: nodeConfig.encrypt,
      kernel: this.#attached?.setup ?? null,
      engine: engine.memory,
      words: this.#words.buffer,
      heartbeatMs: timing.heartbeatMs,
      cluster: this.#clusterConfig(identity, incarnation, address, rejoining),
      persist: options.persist,
    };
    // All at once: a thread takes as long to start as the rest of this together. The lease worker begins when it hears
    // from the peer worker on which port it listens.
    const links = this.#makePorts();
    this.#spawn("peer", setup, links.peer);
    this.#spawn("lease", setup, links.lease);
    if (options.mountId !== null) {
      this.#spawn("netlink", setup, links.netlink);
      this.#spawn("heartbeat", setup, links.heartbeat);
      this.#spawn("records", setup, links.records);
    }
    this.#locks = new ClientLocks(
      {
        self: identity.node,
        volume: volume.id,
        epoch: () => this.#words.nextEpoch,
        submit: (command, entries) => this.#submitControl(command, entries),
        detector: () => this.#detector,
        share: () => this.#share(),
      },
      BigInt(Math.floor(bootTimeMs())) << 20n,
    );
    const locks = this.#locks;
    this.#detector = new DeadlockDetector({
      self: identity.node,
      masterOf: (wait) => engine.masterOf(wait),
      blockersOf: (wait, countMax) => engine.blockersOf(wait, countMax),
      clientOf: (lockId) => locks.clientOf(lockId),
      send: (node, probe) =>
        this.#toPeer({
          kind: "frames",
          frames: [{ node, type: probe.type, epoch: this.#words.epoch, body: encodeProbe(probe) }],
        }),
      break: (lockId, seq, circle) => {
        this.#say("warn", "a client's request is denied: deadlock", { lock: lockId, waits: circle.length });
        locks.breakWait(lockId, seq, circle);
      },
    });
    await this.#until(() => this.#started.has("peer"));
    const port = Number(this.#status.get("listen")?.port);
    const discovery = new Discovery({
      volume: volume.id,
      self: identity.node,
      incarnation,
      uuid: identity.uuidBytes,
      port,
      address,
      iface: nodeConfig.iface,
      multicast: nodeConfig.multicast,
      broadcast: nodeConfig.broadcast,
      peers,
      periodMs: timing.heartbeatMs,
      log: (level, text, fields) => this.#log.log(level, "discovery", text, fields),
      found: (packet) => this.#toLease({ kind: "discovered", packet }),
    });
    await discovery.open(nodeConfig.port);
    this.#discovery = discovery;
    await this.#listenControl(volume);
    // From here on the cluster core tells the mount how it went.
    await this.#until(() => this.#started.has("cluster"));
    volume.state = "running";
    this.#say("info", "serving", {
      volume: volume.id.toString(16),
      ms: Math.round(bootTimeMs() - this.#startedMs),
    });
    this.#trim();
    if (process.send !== undefined) {
      process.send(`volume ${volume.id.toString(16)}`);
    }
  }

  /**
   * What only starting has needed is given back. Code that is used from here on stays: a lease must be renewed also while
   * the disk that node was read from does not answer.
   */
  #trim(): void {
    try {
      trimProgram(this.#options.mountId !== null);
    } catch (error) {
      this.#say("warn", `code may have to be read from disk again: ${messageOf(error)}`);
    }
  }

  #clusterConfig(
    identity: NodeIdentity,
    incarnation: number,
    address: string,
    rejoining: boolean,
  ): ClusterConfig {
    const { timing, node } = this.#config;
    const answer = this.#attached?.answer;
    return {
      self: {
        node: identity.node,
        incarnation,
        uuid: identity.uuid,
        address,
        // As asked for; the lease worker puts in what the peer worker got.
        port: node.port,
        hostName: hostname().slice(0, 63),
      },
      timings: {
        heartbeatMs: timing.heartbeatMs,
        renewMs: timing.renewMs,
        leaseMs: timing.leaseMs,
        nodeTimeoutMs: timing.nodeTimeoutMs,
        startupMs: timing.startupMs,
        drainMs: timing.drainMs,
      },
      fence: this.#options.mountId === null ? "none" : this.#options.fence,
      rejoin:
        rejoining && answer !== undefined && answer.role !== RoleNumber.NONE
          ? { role: answer.role as Role, epoch: answer.epoch, fenced: answer.fenced !== 0 }
          : null,
      lockRecordCount: this.#options.lockRecords ?? MXFS_DISK_LOCK_RECORD_COUNT_DEFAULT,
    };
  }

  /** A port pair for every two threads that talk. */
  #makePorts(): Record<"peer" | "lease" | "netlink" | "heartbeat" | "records", Record<string, MessagePort>> {
    const pair = (): [MessagePort, MessagePort] => {
      const { port1, port2 } = new MessageChannel();
      return [port1, port2];
    };
    const [mainPeer, peerMain] = pair();
    const [mainLease, leaseMain] = pair();
    const [netlinkPeer, peerNetlink] = pair();
    const [netlinkLease, leaseNetlink] = pair();
    const [leasePeer, peerLease] = pair();
    const [leaseHeartbeat, heartbeatLease] = pair();
    const [mainRecords, recordsMain] = pair();
    const [netlinkRecords, recordsNetlink] = pair();
    const [peerRecords, recordsPeer] = pair();
    const [leaseRecords, recordsLease] = pair();
    this.#ports.set("peer", mainPeer);
    this.#ports.set("lease", mainLease);
    this.#ports.set("records", mainRecords);
    return {
      peer: { main: peerMain, netlink: peerNetlink, lease: peerLease, records: peerRecords },
      lease: {
        main: leaseMain,
        netlink: leaseNetlink,
        peer: leasePeer,
        heartbeat: leaseHeartbeat,
        records: leaseRecords,
      },
      netlink: { peer: netlinkPeer, lease: netlinkLease, records: netlinkRecords },
      heartbeat: { lease: heartbeatLease },
      records: { main: recordsMain, netlink: recordsNetlink, peer: recordsPeer, lease: recordsLease },
    };
  }

  #spawn(name: string, setup: WorkerSetup, ports: Record<string, MessagePort>): void {
    const worker = new Worker(fileURLToPath(new URL(`../workers/${name}.js`, import.meta.url)), {
      name,
      workerData: { setup, ports },
      transferList: Object.values(ports),
    });
    this.#workers.set(name, worker);
    worker.on("message", (message: ToMain) => this.#take(message));
    worker.on("error", (error) => this.#fatal(name, error.stack ?? error.message));
    worker.on("exit", (code) => {
      if (this.#workers.delete(name)) {
        this.#fatal(name, `the worker ended with code ${code}`);
      }
    });
  }

  /** Waits for something that a message brings; a fatal error ends the wait. */
  async #until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      const code = await Promise.race([
        new Promise<null>((resolve) => this.#statusWaiters.push(() => resolve(null))),
        this.#ended,
      ]);
      if (code !== null) {
        throw new Error("a worker failed at start-up; its error is in the log");
      }
    }
  }

  #failMount(message: string): void {
    if (this.#link !== null && !this.#mountTold && !this.#started.has("cluster")) {
      try {
        this.#link.send({ cmd: "DAEMON_READY", error: 5, message });
      } catch (error) {
        this.#say("warn", `the mount could not be told: ${messageOf(error)}`);
      }
    }
  }

  // ---- service

  #toLease(message: ToLease): void {
    this.#ports.get("lease")?.postMessage(message);
  }

  #toPeer(message: ToPeer): void {
    this.#ports.get("peer")?.postMessage(message);
  }

  #submitControl(command: Command, entries: readonly ValuedEntry[]): void {
    const engine = this.#engine;
    if (engine === null) {
      return;
    }
    this.#dispatch ??= new LockDispatch({
      self: engine.self,
      words: this.#words,
      kernel: this.#link,
      sendFrames: (frames) => this.#toPeer({ kind: "frames", frames }),
      toRecords: this.#link === null ? null : (message) => this.#ports.get("records")?.postMessage(message),
      toControl: (type, bytes) => queueMicrotask(() => this.#locks?.receive(type, bytes)),
      log: (level, text, fields) => this.#say(level, text, fields),
    });
    this.#dispatch.submit(engine, command, encodeValuedEntries(entries), engine.self);
    this.#dispatch.end();
  }
  #dispatch: LockDispatch | null = null;

  #take(message: ToMain): void {
    switch (message.kind) {
      case "log":
        this.#log.write(message.record);
        return;
      case "fatal":
        this.#fatal(message.part, message.error);
        return;
      case "control-locks":
        this.#locks?.receive(message.type, message.entries);
        return;
      case "probe":
        this.#detector?.receive(message.node, message.probe);
        return;
      case "reclaim":
        this.#locks?.reclaim(message.epoch);
        this.#toPeer({ kind: "mark", id: `main:${message.id}` });
        this.#toLease({ kind: "reclaimed", id: message.id });
        return;
      case "frozen":
        this.#locks?.frozen();
        return;
      case "resumed":
        this.#locks?.resumed();
        return;
      case "shared":
        for (const resolve of this.#shareWaiters.splice(0)) {
          resolve();
        }
        return;
      case "announce":
        this.#discovery?.announce(message.key, message.epoch, message.role as Role);
        return;
      case "query":
        this.#discovery?.query();
        return;
      case "status":
        this.#status.set(message.part, message.status);
        this.#wakeWaiters();
        return;
      case "started":
        this.#started.add(message.part);
        this.#wakeWaiters();
        return;
      case "exit":
        // The cluster core has told the mount why, before it asked for this.
        this.#mountTold = true;
        this.#exit(message.code);
        return;
      default:
        this.#fatal("main", `unknown message ${JSON.stringify(message)}`);
    }
  }

  /** While this node is alone its kernel grants its own locks: they are in the table before a client asks for one. */
  #share(): Promise<void> {
    return new Promise((resolve) => {
      this.#shareWaiters.push(resolve);
      this.#toLease({ kind: "share" });
    });
  }
  readonly #shareWaiters: (() => void)[] = [];

  #wakeWaiters(): void {
    for (const waiter of this.#statusWaiters.splice(0)) {
      waiter();
    }
  }

  #fatal(part: string, error: string): void {
    this.#say("error", `the ${part} thread failed: ${error}`);
    this.#exit(1);
  }

  #signal(signal: NodeJS.Signals): void {
    if (signal === "SIGHUP") {
      this.#reload();
      return;
    }
    if (this.#options.mountId !== null) {
      this.#say(
        "warn",
        `${signal}: ending; the volume stays mounted, so the kernel starts another daemon (umount ends it)`,
      );
      this.#exit(0);
      return;
    }
    this.#toLease({ kind: "stop" });
  }

  #reload(): void {
    try {
      const next = readConfig(this.#options.configFile);
      const { applied, needRestart } = reloadable(this.#config, {
        ...next,
        node: this.#config.node,
        timing: this.#config.timing,
      });
      this.#log.reload(next.logging);
      this.#config = { ...this.#config, logging: next.logging };
      this.#say("info", "configuration read again", {
        applied: applied.join(",") || "nothing",
        needRemount: needRestart.join(",") || "nothing",
      });
    } catch (error) {
      this.#say("error", `the configuration stays as it was: ${messageOf(error)}`);
    }
  }

  // ---- control socket

  async #listenControl(volume: Volume): Promise<void> {
    const service = {
      request: (client: ControlClient, op: string, body: JsonObject) => this.#request(client, op, body),
      gone: (client: ControlClient) => this.#locks?.clientGone(client),
    };
    const path = `${SOCKET_DIRECTORY}/${volume.id.toString(16)}.sock`;
    this.#control.push(await ControlServer.listen(path, service));
    // The first daemon of the host is also reached by the plain name.
    if (!(await answers(SOCKET_DEFAULT))) {
      rmSync(SOCKET_DEFAULT, { force: true });
      symlinkSync(path, SOCKET_DEFAULT);
      this.#defaultSocket = true;
    }
  }

  async #request(client: ControlClient, op: string, body: JsonObject): Promise<JsonObject> {
    const locks = this.#locks;
    if (locks === null) {
      throw new ControlError("EAGAIN", "mxfsd is still starting");
    }
    const mode = (): number => {
      if (typeof body.mode !== "number" || !Number.isInteger(body.mode) || body.mode < 0 || body.mode > 5) {
        throw new ControlError("EINVAL", `mode ${JSON.stringify(body.mode)}: expected 0 to 5`);
      }
      return body.mode;
    };
    const timeout = (): number | null => {
      if (body.timeoutMs === undefined || body.timeoutMs === null) {
        return null;
      }
      if (typeof body.timeoutMs !== "number" || body.timeoutMs < 0 || body.timeoutMs > 1e9) {
        throw new ControlError("EINVAL", "timeoutMs: expected milliseconds from 0 to 1000000000, or null");
      }
      return body.timeoutMs;
    };
    const lockId = (): bigint => {
      if (typeof body.lock !== "string" || !/^[0-9]{1,20}$/.test(body.lock)) {
        throw new ControlError("EINVAL", "lock: expected a lock id, decimal, as a string");
      }
      return BigInt(body.lock);
    };
    const value = (): Uint8Array | null => {
      if (body.value === undefined || body.value === null) {
        return null;
      }
      if (typeof body.value !== "string" || !/^([0-9a-f]{2}){0,32}$/.test(body.value)) {
        throw new ControlError("EINVAL", "value: expected up to 32 bytes, hexadecimal, as a string");
      }
      return Uint8Array.from(Buffer.from(body.value, "hex"));
    };
    const resource = String(body.resource ?? "");
    switch (op) {
      case "lock": {
        return grantedJson(await locks.lock(client, resource, mode(), body.noqueue === true, timeout()));
      }
      case "convert": {
        const noqueue = body.noqueue === true;
        return grantedJson(await locks.convert(client, lockId(), mode(), noqueue, timeout(), value()));
      }
      case "value":
        return grantedJson(locks.value(client, lockId()));
      case "release":
        locks.unlock(client, lockId(), value());
        return {};
      case "unlock": {
        const count = locks.unlockByName(resource, body.all === true);
        if (count === 0) {
          throw new ControlError("ENOENT", `no mxfs_lock of this node holds ${resource}`);
        }
        return { count };
      }
      case "status":
        return { status: await this.#describe() };
      case "dump":
        return await this.#dump(body);
      case "stop":
        if (this.#options.mountId !== null) {
          throw new ControlError(
            "EBUSY",
            `${this.#options.device} is mounted: umount it, that stops the daemon`,
          );
        }
        this.#toLease({ kind: "stop" });
        return {};
      default:
        throw new ControlError("EINVAL", `unknown operation "${op}"`);
    }
  }

  async #describe(): Promise<JsonObject> {
    const volume = this.#volume;
    const view = this.#status.get("view") ?? {};
    if (this.#link !== null) {
      // The answers come to the netlink and the lease worker, and from there as status messages.
      const parts = ["kernel", "journals"];
      const before = parts.map((part) => this.#status.get(part));
      this.#link.send({ cmd: "STATUS" });
      this.#toLease({ kind: "look" });
      const endMs = bootTimeMs() + KERNEL_STATUS_MS;
      while (bootTimeMs() < endMs && parts.some((part, at) => this.#status.get(part) === before[at])) {
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, endMs - bootTimeMs());
          this.#statusWaiters.push(() => {
            clearTimeout(timer);
            resolve();
          });
        });
      }
    }
    const now = bootTimeMs();
    const text = json({
      node: this.#identity?.node.toString(16) ?? null,
      uuid: this.#identity?.uuid ?? null,
      host: hostname(),
      pid: process.pid,
      volume: volume?.id.toString(16) ?? null,
      volumeUuid: volume?.uuid ?? null,
      device: volume?.device ?? null,
      mountpoint: volume?.mountpoint ?? null,
      state: volume?.state ?? null,
      ...view,
      leaseMs: Math.round(this.#words.leaseUntilMs - now),
      uptimeMs: Math.round(now - this.#startedMs),
      peers: this.#status.get("peers")?.peers ?? [],
      refusedConnections: this.#status.get("peers")?.refused ?? 0,
      volumes: this.#volumes.all().map((entry) => ({
        volume: entry.id.toString(16),
        device: entry.device,
        mountpoint: entry.mountpoint,
        state: entry.state,
      })),
      clientLocks: this.#locks?.list() ?? [],
      engine: this.#engine?.counters ?? {},
      journals: this.#status.get("journals")?.slots ?? [],
      recovery: this.#status.get("recovery") ?? { underWay: false },
      lastRecovery: this.#status.get("lastRecovery") ?? null,
      kernel: this.#status.get("kernel") ?? {},
      lockRecords: this.#status.get("records") ?? {},
      dead: this.#status.get("dead")?.nodes ?? [],
      discovery: { dropped: this.#discovery?.droppedCount ?? 0 },
    });
    return typeof text === "object" && text !== null && !Array.isArray(text) ? (text as JsonObject) : {};
  }

  async #dump(body: JsonObject): Promise<JsonObject> {
    const engine = this.#engine;
    const volume = this.#volume;
    if (engine === null || volume === null) {
      throw new ControlError("EAGAIN", "mxfsd is still starting");
    }
    const after =
      typeof body.after === "number" && Number.isInteger(body.after) && body.after >= 0 ? body.after : 0;
    const filter = {
      ...(typeof body.resource === "string"
        ? { resource: { volume: volume.id, ...resourceOf(body.resource) } }
        : {}),
      ...(body.contended === true ? { contended: true } : {}),
    };
    this.#bulk ??= new BulkLocks(engine, {
      threadsMax: 1,
      fatal: (error) => this.#fatal("bulk", messageOf(error)),
      warn: (text) => this.#say("warn", text),
    });
    const page = await this.#bulk.dumpPage(filter, after, DUMP_PAGE);
    return { locks: page.locks.map((lock) => this.#row(lock)), next: page.next };
  }

  #row(lock: LockInfo): Json {
    const known = lock.node === this.#identity?.node ? this.#locks?.nameOf(lock.lockId) : null;
    return {
      resource: known ?? formatResource(lock),
      key: formatResource(lock),
      state: lock.queue,
      mode: lock.queue === "granted" ? lock.granted : lock.mode,
      granted: lock.granted,
      node: lock.node.toString(16),
      lock: lock.lockId.toString(),
      blocking: lock.blocking,
      value: valueJson(lock.value),
    };
  }

  // ---- shutdown

  async #stop(code: number): Promise<void> {
    if (this.#volume !== null) {
      this.#volume.state = "stopping";
    }
    for (const server of this.#control) {
      await server.close();
    }
    if (this.#volume !== null && this.#control.length > 0) {
      rmSync(`${SOCKET_DIRECTORY}/${this.#volume.id.toString(16)}.sock`, { force: true });
    }
    if (
      this.#defaultSocket &&
      existsLink(SOCKET_DEFAULT) &&
      readlinkSync(SOCKET_DEFAULT).includes(this.#volume?.id.toString(16) ?? "?")
    ) {
      rmSync(SOCKET_DEFAULT, { force: true });
    }
    await this.#discovery?.close();
    await this.#bulk?.close();
    this.#words.stopping = true;
    if (this.#attached !== null) {
      GenlSocket.attach(this.#attached.setup.socket).wake();
    }
    const workers = Array.from(this.#workers.values());
    this.#workers.clear();
    await Promise.race([
      Promise.all(workers.map((worker) => worker.terminate())),
      new Promise((resolve) => setTimeout(resolve, WORKER_END_MS)),
    ]);
    this.#say(code === 0 ? "info" : "error", "mxfsd ends", { code });
    await this.#log.close();
  }
}

function existsLink(path: string): boolean {
  return existsSync(path) || lstatSync(path, { throwIfNoEntry: false }) !== undefined;
}

/** Runs until told to end. Returns the exit status. */
export async function runDaemon(options: DaemonOptions): Promise<number> {
  return await new Daemon(options).run();
}
