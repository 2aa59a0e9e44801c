// SPDX-License-Identifier: GPL-2.0-only
//
// The lease worker: runs the cluster core (src/cluster) over the real world. It is the only thread that decides
// about views, leases, reservations and the header on disk.
//
// Responsible for: the core's ports (clock, reservations, kernel, disk, network, lock service), and for turning
// the other threads' messages into the core's events. No decision is made in this file.
//
// Known weakness: a rejected port call ends the daemon (the kernel starts it again).

import { randomBytes } from "node:crypto";
import type { Server } from "node:net";
import { bootTimeMs } from "../../native/index.js";
import { ClusterCore } from "../cluster/core.js";
import type {
  ClockPort,
  DiskPort,
  KernelPort,
  LocksPort,
  NetPort,
  Ports,
  RoleChangeResult,
  TimerHandle,
  View,
  WriteOutcome,
} from "../cluster/ports.js";
import { PERSIST } from "../disk/lock_persister.js";
import { type LockstateLocation, lockstateSize } from "../disk/lockstate.js";
import { type JournalRecord, journalStateName } from "../disk/record.js";
import { LockEngine } from "../dlm/engine.js";
import { LockModeName, Role } from "../wire/abi.js";
import { BulkLocks } from "./bulk.js";
import {
  locateLockstate,
  RawDevice,
  readHeader,
  readHeartbeats,
  readJournals,
  readLockArea,
  writeHeader,
  writeJournal,
} from "./disk_io.js";
import { LockDispatch } from "./dispatch.js";
import { type KernelCommand, KernelLink } from "./kernel_link.js";
import { LanDisk, serviceKey } from "./lan_disk.js";
import { lockLun, otherVolumeOnLun } from "./lun.js";
import {
  type KernelEvent,
  NodeWords,
  type OutFrame,
  type ToHeartbeat,
  type ToLease,
  type ToPeer,
  type ToRecords,
} from "./protocol.js";
import { openReservations } from "./reservations.js";
import { openShell } from "./shell.js";

const KERNEL_THREAD = 3;
const EXIT_DRAIN_MS = 50;
/** Resources of a dead node that `status` names. */
const DEAD_SHOWN_MAX = 64;

const shell = openShell("lease");
const { setup } = shell;
const peer = shell.port("peer");
const netlink = shell.port("netlink");
const heartbeat = shell.port("heartbeat");
const main = shell.port("main");
const records = setup.kernel === null ? null : shell.port("records");
const words = new NodeWords(setup.words);
const engine = LockEngine.attach(setup.engine);
const device = new RawDevice(setup.device, true);
const link = setup.kernel === null ? null : new KernelLink(setup.kernel, KERNEL_THREAD);

const toPeer = (message: ToPeer): void => peer.postMessage(message);
const toRecords = (message: ToRecords): void => records?.postMessage(message);
const toHeartbeat = (message: ToHeartbeat): void => heartbeat.postMessage(message);

/** A promise kept by number until its answer comes. */
class Waiting<T> {
  readonly #waiting = new Map<string, (answer: T) => void>();

  wait(id: string): Promise<T> {
    return new Promise((resolve) => this.#waiting.set(id, resolve));
  }

  answer(id: string, answer: T): boolean {
    const resolve = this.#waiting.get(id);
    this.#waiting.delete(id);
    resolve?.(answer);
    return resolve !== undefined;
  }
}

const kernelAnswers = new Waiting<RoleChangeResult>();
const marks = new Waiting<void>();
const reclaims = new Waiting<void>();
const recordsFrozen = new Waiting<void>();
const recordsMade = new Waiting<WriteOutcome>();
const heartbeatStops: (() => void)[] = [];
const sentRequests = new Map<number, bigint>();
let nextRequest = BigInt(Math.floor(bootTimeMs())) << 20n;
let nextMark = 1;

const dispatch = new LockDispatch({
  self: setup.self,
  words,
  kernel: link,
  sendFrames: (frames: readonly OutFrame[]) => toPeer({ kind: "frames", frames }),
  toRecords: records === null ? null : toRecords,
  toControl: (type, entries) => shell.toMain({ kind: "control-locks", type, entries }),
  log: shell.log,
});

const bulk = new BulkLocks(engine, { fatal: shell.fatal, warn: (text) => shell.log("warn", text) });

/** A request to the kernel that is answered by DONE; without a kernel it is well at once. */
function ask(command: (reqId: bigint) => KernelCommand, reqId = ++nextRequest): Promise<RoleChangeResult> {
  if (link === null) {
    return Promise.resolve({ error: 0, message: "" });
  }
  const answer = kernelAnswers.wait(reqId.toString());
  sentRequests.set(link.send(command(reqId)), reqId);
  return answer;
}

const clock: ClockPort = {
  now: () => bootTimeMs(),
  setTimer(delayMs, action) {
    const id = ++timerCount;
    timers.set(
      id,
      setTimeout(
        () => {
          timers.delete(id);
          action();
        },
        Math.max(0, delayMs),
      ),
    );
    return { id };
  },
  clearTimer(timer: TimerHandle) {
    clearTimeout(timers.get(timer.id));
    timers.delete(timer.id);
  },
};
const timers = new Map<number, NodeJS.Timeout>();
let timerCount = 0;

const kernel: KernelPort = {
  roleChange: (role, holder, epoch) =>
    ask((reqId) => ({
      cmd: "ROLE_CHANGE",
      reqId,
      role,
      node: setup.self,
      incarnation: setup.incarnation,
      holder,
      epoch,
      lockstateSize: BigInt(lockstateSize(device.recordSize, setup.cluster.lockRecordCount)),
    })),
  gate: (open, reason, force) =>
    ask((reqId) => ({ cmd: "GATE", reqId, gateOpen: open ? 1 : 0, reason, force: force ? 1 : 0 })),
  async lockDump(epoch, solo) {
    const reqId = ++nextRequest;
    if (link === null) {
      return { error: 0, message: "" };
    }
    // The netlink worker marks the peer worker's port behind the last dumped lock.
    const marked = marks.wait(`netlink:${reqId}`);
    const done = await ask((id) => ({ cmd: "LOCK_DUMP", reqId: id, epoch, solo: solo ? 1 : 0 }), reqId);
    if (done.error === 0) {
      await marked;
    }
    return done;
  },
  view(epoch, holder, resend, solo) {
    words.holder = holder.node;
    words.epoch = epoch;
    words.nextEpoch = epoch;
    const { node, incarnation } = holder;
    link?.send({
      cmd: "VIEW",
      epoch,
      holder: node,
      incarnation,
      resend: resend ? 1 : 0,
      solo: solo ? 1 : 0,
    });
  },
  recovery(begin, node, epoch) {
    link?.send({ cmd: begin ? "RECOVERY_START" : "RECOVERY_DONE", node, epoch });
    shell.toMain({
      kind: "status",
      part: "recovery",
      status: { underWay: begin, node: node.toString(16), epoch: epoch.toString() },
    });
  },
  lease(untilMs, epoch) {
    words.leaseUntilMs = untilMs;
    link?.send({ cmd: "LEASE", leaseUntil: BigInt(Math.floor(untilMs)), epoch });
  },
  ready(role, epoch, holder, leaseUntilMs) {
    words.holder = holder.node;
    words.leaseUntilMs = leaseUntilMs;
    const { node, incarnation } = holder;
    const lease_until = BigInt(Math.floor(leaseUntilMs));
    link?.send({ cmd: "DAEMON_READY", role, epoch, holder: node, incarnation, leaseUntil: lease_until });
    shell.toMain({ kind: "started", part: "cluster" });
  },
  failed(errno, message) {
    shell.log("error", `the mount fails: ${message}`, { errno });
    link?.send({ cmd: "DAEMON_READY", error: errno, message });
  },
  nodeStatus(node, incarnation, state) {
    link?.send({ cmd: "NODE_STATUS", node, incarnation, nodeState: state });
  },
  fenced(message) {
    shell.log("error", `fenced, finally: ${message}`, {});
    if (link === null) {
      shell.toMain({ kind: "exit", code: 1 });
      return;
    }
    link.send({ cmd: "FENCED", message });
  },
  unmountDone(requestId, errno, message) {
    link?.send({ cmd: "DONE", reqId: requestId, error: errno, message });
  },
};

/** Without a mount nothing on the device is touched. */
const lanDisk =
  link === null
    ? new LanDisk({
        volume: setup.volume,
        volumeUuid: setup.volumeUuid,
        self: setup.self,
        heartbeatMs: setup.heartbeatMs,
        nodeTimeoutMs: setup.cluster.timings.nodeTimeoutMs,
      })
    : null;

/** The socket that holds the LUN against other volumes of this host. */
let lunLock: Server | null = null;

const rawDisk: DiskPort = {
  volume: setup.volume,
  volumeUuid: setup.volumeUuid,
  locateLockstate: () => locateLockstate(device),
  async otherVolumeOnLun() {
    const other = await otherVolumeOnLun(setup.device);
    if (other !== null || setup.cluster.fence === "none") return other;
    lunLock ??= await lockLun(setup.device);
    return lunLock === null ? "another mount of this host, on another partition of the disk" : null;
  },
  readHeader(location) {
    lockstateAt = location;
    return readHeader(device, location, setup.volume);
  },
  writeHeader: (location, header) => writeHeader(device, location, header),
  readHeartbeats: (location) =>
    readHeartbeats(device, location, setup.volume, (slot, problem) =>
      shell.log("warn", `heartbeat slot ${slot} counts as empty: ${problem}`, { slot }),
    ),
  readJournals: (location) =>
    readJournals(device, location, setup.volume, (slot, problem) =>
      shell.log("warn", `journal slot ${slot} counts as never claimed: ${problem}`, { slot }),
    ),
  writeJournal: (location, slot, record) => writeJournal(device, location, slot, record),
  readLockArea: (location, header) => readLockArea(device, location, header),
  setHeartbeat(location, slot, contents) {
    toHeartbeat({ kind: "set", location, slot, contents });
    shell.toMain({ kind: "status", part: "heartbeat", status: { slot, role: contents.role } });
  },
  stopHeartbeat(clear) {
    return new Promise((resolve) => {
      heartbeatStops.push(resolve);
      toHeartbeat({ kind: "stop", clear });
    });
  },
};

/** Where lockstate was found last. */
let lockstateAt: LockstateLocation | null = null;

/** The journal slots as they are on the disk, whoever wrote them. */
async function showJournals(): Promise<void> {
  if (lockstateAt === null) {
    return;
  }
  const outcome = await rawDisk.readJournals(lockstateAt);
  const slots = outcome.kind === "error" ? [] : outcome.records.map(journalRow).filter((row) => row !== null);
  const error = outcome.kind === "error" ? outcome.message : null;
  shell.toMain({ kind: "status", part: "journals", status: { slots, error } });
}

function journalRow(record: JournalRecord | null, slot: number): Readonly<Record<string, unknown>> | null {
  return record === null
    ? null
    : {
        slot,
        node: record.node.toString(16),
        incarnation: record.incarnation,
        state: journalStateName(record.state),
        epoch: record.epoch.toString(),
        recoverer: record.recoverer === 0 ? null : record.recoverer.toString(16),
      };
}

const net: NetPort = {
  setClusterKey(key) {
    toPeer({ kind: "key", key });
    clusterKey = key;
    announce();
  },
  connect: (node, address, port) => toPeer({ kind: "connect", node, address, port }),
  disconnect: (node) => toPeer({ kind: "disconnect", node }),
  send: (node, message) => toPeer({ kind: "message", node, epoch: words.epoch, message }),
  query: () => shell.toMain({ kind: "query" }),
};
let clusterKey: Uint8Array | null = null;

function announce(): void {
  if (clusterKey !== null) {
    const role = words.epoch === 0n ? Role.NONE : words.holder === setup.self ? Role.HOLDER : Role.MEMBER;
    shell.toMain({ kind: "announce", key: clusterKey, epoch: words.epoch, role });
  }
}

let currentView: View | null = null;

function showView(): void {
  const view = currentView;
  shell.toMain({
    kind: "status",
    part: "view",
    status: {
      epoch: view === null ? "0" : view.epoch.toString(),
      holder: view === null ? null : view.holder.toString(16),
      role: view === null ? "none" : view.holder === setup.self ? "holder" : "member",
      members: (view?.members ?? []).map((member) => ({
        node: member.node.toString(16),
        incarnation: member.incarnation,
        slot: member.slot,
        address: member.address,
        port: member.port,
        role: member.node === view?.holder ? "holder" : "member",
      })),
    },
  });
}

const locks: LocksPort = {
  freezeAndClear(view) {
    // In a view of one nobody is told anything that another could need to know.
    words.persistModes = records !== null && view.members.length > 1 ? PERSIST[setup.persist] : 0;
    words.nextEpoch = view.epoch;
    engine.freezeAndClear(
      view.epoch,
      view.members.map((member) => member.node),
    );
    currentView = view;
    shell.toMain({ kind: "frozen", epoch: view.epoch });
    toRecords({ kind: "freeze", id: 0 });
  },
  freezeRecords() {
    if (records === null) {
      return Promise.resolve();
    }
    const id = nextMark++;
    const frozen = recordsFrozen.wait(String(id));
    toRecords({ kind: "freeze", id });
    return frozen;
  },
  makeRecords(view, location) {
    const slot = view.members.find((member) => member.node === setup.self)?.slot;
    if (records === null || view.members.length < 2 || slot === undefined) {
      return Promise.resolve({ kind: "ok" });
    }
    const id = nextMark++;
    const made = recordsMade.wait(String(id));
    const members = view.members.map(({ node, incarnation }) => [node, incarnation] as const);
    toRecords({ kind: "make", id, location, epoch: view.epoch, slot, members });
    return made;
  },
  async reclaimControl(epoch) {
    const id = nextMark++;
    const reclaimed = reclaims.wait(String(id));
    const marked = marks.wait(`main:${id}`);
    shell.toMain({ kind: "reclaim", id, epoch });
    await reclaimed;
    await marked;
  },
  resume(epoch) {
    words.epoch = epoch;
    words.nextEpoch = epoch;
    words.holder = currentView?.holder ?? 0;
    // What a large table still has to do is done by the bulk pool; the service runs meanwhile.
    bulk.resume(epoch, dispatch).catch(shell.fatal);
    toRecords({ kind: "resumed" });
    shell.toMain({ kind: "resumed", epoch });
    announce();
    showView();
  },
  purge(node) {
    bulk.purge(node, dispatch).catch(shell.fatal);
  },
  died(held) {
    shell.toMain({
      kind: "status",
      part: "dead",
      status: {
        nodes: held.map(({ node, incarnation, locks: found }) => ({
          node: node.toString(16),
          incarnation,
          heldForWriting: found?.length ?? null,
          resources: (found ?? []).slice(0, DEAD_SHOWN_MAX).map(({ resource, mode }) => ({
            type: resource.type,
            ino: resource.ino.toString(),
            mode: LockModeName[mode] ?? String(mode),
          })),
        })),
      },
    });
  },
};

const ports: Ports = {
  clock,
  pr:
    setup.cluster.fence === "none"
      ? null
      : openReservations(setup.device, device.fd, (text) =>
          shell.log("info", `device: ${text}, command repeated`),
        ),
  kernel,
  disk: lanDisk ?? rawDisk,
  net,
  locks,
  log: (level, text, fields) => shell.log(level, text, fields),
  recovered: (report) => shell.toMain({ kind: "status", part: "lastRecovery", status: { ...report } }),
  // Its one use is the cluster key; without a mount that is derived, not drawn.
  random: (count) =>
    lanDisk === null ? new Uint8Array(randomBytes(count)) : serviceKey(setup.volumeUuid).subarray(0, count),
  exit(code) {
    // What was posted to the peer worker before (LEFT, say) gets a moment to reach the wire.
    setTimeout(() => shell.toMain({ kind: "exit", code }), EXIT_DRAIN_MS);
  },
};

let core: ClusterCore;

/** @param port that peers are told. Until here nobody but the peer worker is listened to; what the others post waits. */
function start(port: number): void {
  shell.log("info", "cluster core starts", {
    node: setup.self.toString(16),
    incarnation: setup.incarnation,
  });
  core = new ClusterCore({ ...setup.cluster, self: { ...setup.cluster.self, port } }, ports);
  if (lanDisk !== null) {
    lanDisk.events = core;
    net.setClusterKey(serviceKey(setup.volumeUuid));
  }
  for (const other of [netlink, heartbeat, main, records]) {
    other?.on("message", take);
  }
  core.start();
}

function takeKernel(event: KernelEvent): void {
  switch (event.cmd) {
    case "DONE":
      if (!kernelAnswers.answer(event.reqId.toString(), { error: event.error, message: event.message })) {
        shell.log("warn", "the kernel answered a request that nobody made", { request: event.reqId });
      }
      return;
    case "REFUSED": {
      const reqId = sentRequests.get(event.seq);
      if (reqId !== undefined) {
        kernelAnswers.answer(reqId.toString(), { error: event.error, message: event.message });
      }
      shell.log("warn", `the kernel refused a message: ${event.message}`, {
        errno: event.error,
        seq: event.seq,
      });
      return;
    }
    case "VOLUME_UNMOUNT":
      core.unmountRequested(event.reqId);
      return;
    case "VOLUME_ERROR":
      core.kernelError(event.message);
      return;
  }
}

function take(message: ToLease): void {
  switch (message.kind) {
    case "listening":
      start(message.port);
      return;
    case "kernel":
      takeKernel(message.event);
      return;
    case "connected":
      core.peerConnected(message.node, message.incarnation);
      return;
    case "lost":
      core.peerLost(message.node);
      return;
    case "message":
      core.message(message.node, message.message);
      return;
    case "marked":
      marks.answer(message.id, undefined);
      return;
    case "heartbeat-written":
      core.heartbeatWritten(message.atMs);
      return;
    case "heartbeat-failed":
      core.heartbeatFailed(message.failure);
      return;
    case "heartbeats-read":
      core.heartbeatsRead(message.records, message.atMs);
      return;
    case "heartbeat-stopped":
      heartbeatStops.shift()?.();
      return;
    case "discovered":
      lanDisk?.note(message.packet);
      core.discovered(message.packet);
      return;
    case "reclaimed":
      reclaims.answer(String(message.id), undefined);
      return;
    case "look":
      if (lanDisk === null) {
        showJournals().catch(shell.fatal);
      }
      return;
    case "share":
      core.endSolo().then(
        () => shell.toMain({ kind: "shared" }),
        () => undefined, // halted: the daemon ends, and its clients are told by that
      );
      return;
    case "records-frozen":
      recordsFrozen.answer(String(message.id), undefined);
      return;
    case "records-made":
      recordsMade.answer(String(message.id), message.outcome);
      return;
    case "records-conflict":
      core.recordsRefused();
      return;
    case "stop":
      core.unmountRequested(0n);
      return;
    default:
      shell.fatal(new Error(`unknown message ${JSON.stringify(message)}`));
  }
}

peer.on("message", take);
