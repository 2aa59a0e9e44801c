// SPDX-License-Identifier: GPL-2.0-only
//
// The peer worker: all TCP of the daemon. It decides the locks mastered here that other nodes ask for, and takes
// grants, BASTs and fsops straight to the kernel; cluster messages go to the lease worker.
//
// Protocol: what the other threads post is sent in the order of each port; a `mark` is answered when everything
// posted before it on the same port is with its connection. Lock messages name their sender: entries that claim
// another owner than the connection's node are dropped and logged.
//
// Known weakness: a frame for a node that is not connected is dropped; the view change that follows a broken
// connection reclaims every lock and sends every fsop again.

import { type Command, LockEngine } from "../dlm/engine.js";
import { MXFS_LOCK_ENTRY_SIZE, MXFS_WIRE_BODY_MAX, WireType } from "../wire/abi.js";
import { WireError } from "../wire/error.js";
import type { Frame } from "../wire/frame.js";
import { checkLockEntries } from "../wire/lock_entry.js";
import {
  clusterType,
  decodeClusterMessage,
  decodeFsopPart,
  encodeClusterMessage,
  isClusterType,
} from "../wire/messages.js";
import { decodeProbe } from "../wire/probe.js";
import { LockDispatch } from "./dispatch.js";
import { KernelLink } from "./kernel_link.js";
import { checkOwner, LockBatch } from "./lock_batch.js";
import { PeerNetwork } from "./peer_net.js";
import { NodeWords, type OutFrame, type ToLease, type ToPeer } from "./protocol.js";
import { openShell } from "./shell.js";

const KERNEL_THREAD = 2;
const ENTRIES_MAX = Math.floor(MXFS_WIRE_BODY_MAX / MXFS_LOCK_ENTRY_SIZE);

const shell = openShell("peer");
const { setup } = shell;
const lease = shell.port("lease");
const main = shell.port("main");
const records = setup.kernel === null ? null : shell.port("records");
const words = new NodeWords(setup.words);
const engine = LockEngine.attach(setup.engine);
const link = setup.kernel === null ? null : new KernelLink(setup.kernel, KERNEL_THREAD);

const toLease = (message: ToLease): void => lease.postMessage(message);

function sendFrame(frame: OutFrame): void {
  net.send(frame.node, frame.type, frame.epoch, frame.body);
}

const dispatch = new LockDispatch({
  self: setup.self,
  words,
  kernel: link,
  sendFrames: (frames) => frames.forEach(sendFrame),
  toRecords: records === null ? null : (message) => records.postMessage(message),
  toControl: (type, entries) => shell.toMain({ kind: "control-locks", type, entries }),
  log: shell.log,
});

let ending = false;

/** What all frames of one read brought is sent together. */
function endSoon(): void {
  if (!ending) {
    ending = true;
    process.nextTick(() => {
      ending = false;
      decide();
      dispatch.end();
    });
  }
}

/** Lock messages of frames that have come since the last decision. */
const batch = new LockBatch(ENTRIES_MAX);

function decide(): void {
  if (batch.slots > 0) {
    dispatch.submit(engine, batch.commands, batch.bytes, batch.from);
    batch.clear();
  }
}

function takeFrame(node: number, frame: Frame): void {
  switch (frame.type) {
    case WireType.LOCK_REQUEST:
    case WireType.LOCK_CONVERT:
    case WireType.LOCK_RELEASE:
    case WireType.LOCK_RECLAIM:
      if (!batch.fits(frame, node)) {
        decide();
      }
      batch.add(frame.type, frame, node);
      endSoon();
      return;
    default:
      // Nothing overtakes a lock message.
      decide();
      takeOther(node, frame);
  }
}

/** As takeFrame, for whole frames of plain lock messages. */
function takeLocks(node: number, type: WireType, words: Int32Array, at: number, count: number): boolean {
  if (!batch.hasRoom(count, node)) {
    decide();
  }
  const taken = batch.addWords(type as Command, words, at, count, node);
  if (taken) {
    endSoon();
  }
  return taken;
}

function takeOther(node: number, frame: Frame): void {
  if (isClusterType(frame.type)) {
    toLease({ kind: "message", node, message: decodeClusterMessage(frame.type, frame.body) });
    return;
  }
  switch (frame.type) {
    case WireType.LOCK_GRANT:
    case WireType.LOCK_DENY:
    case WireType.LOCK_BAST:
      checkLockEntries(frame.body, ENTRIES_MAX, true);
      checkOwner(frame.body, setup.self);
      dispatch.deliver(frame.type, frame.body);
      return;
    case WireType.DEADLOCK_ASK:
    case WireType.DEADLOCK_CHASE:
    case WireType.DEADLOCK_BREAK:
      // Of another epoch: every wait is told anew, and asked about anew.
      if (frame.epoch === words.epoch) {
        shell.toMain({ kind: "probe", node, probe: decodeProbe(frame.type, frame.body) });
      }
      return;
    case WireType.FSOP_REQUEST:
    case WireType.FSOP_REPLY: {
      const part = decodeFsopPart(frame.body);
      link?.send({
        cmd: frame.type === WireType.FSOP_REQUEST ? "FSOP_REQUEST" : "FSOP_REPLY",
        node,
        fsopId: part.id,
        fsopOffset: part.offset,
        fsopTotal: part.total,
        fsopData: part.data,
      });
      return;
    }
    default:
      throw new WireError("WIRE_TYPE", `frame of type ${frame.type} is not expected here`);
  }
}

const net = new PeerNetwork(
  {
    self: setup.self,
    incarnation: setup.incarnation,
    volume: setup.volume,
    port: setup.port,
    iface: setup.iface,
    encrypt: setup.encrypt,
    // Before the holder judges: who cannot be reached is named in the renewals.
    silenceMs: setup.cluster.timings.nodeTimeoutMs / 2,
    fsops:
      link === null
        ? null
        : (node, incarnation, fd) => link.send({ cmd: "FSOP_SOCKET", node, incarnation, fd }),
  },
  {
    up(node, incarnation) {
      shell.log("info", "connected", { node: node.toString(16), incarnation });
      toLease({ kind: "connected", node, incarnation });
      showPeers();
    },
    lost(node, reason) {
      shell.log("warn", `connection lost: ${reason}`, { node: node.toString(16) });
      toLease({ kind: "lost", node });
      showPeers();
    },
    frame: takeFrame,
    locks: takeLocks,
    log(level, text, fields) {
      shell.log(level, text, fields);
      showPeers();
    },
  },
);

function showPeers(): void {
  shell.toMain({
    kind: "status",
    part: "peers",
    status: {
      refused: net.refusedCount,
      peers: net.peers().map((entry) => ({ ...entry, node: entry.node.toString(16) })),
    },
  });
}

function take(message: ToPeer): void {
  switch (message.kind) {
    case "frames":
      message.frames.forEach(sendFrame);
      return;
    case "mark":
      toLease({ kind: "marked", id: message.id });
      return;
    case "key":
      net.key = message.key;
      return;
    case "connect":
      net.connect(message.node, message.address, message.port);
      return;
    case "disconnect":
      net.disconnect(message.node, "not needed any more");
      return;
    case "message":
      net.send(
        message.node,
        clusterType(message.message),
        message.epoch,
        encodeClusterMessage(message.message),
      );
      return;
    case "stop":
      net.close().catch(shell.fatal);
      return;
    default:
      shell.fatal(new Error(`unknown message ${JSON.stringify(message)}`));
  }
}

lease.on("message", take);
main.on("message", take);
if (setup.kernel !== null) {
  shell.port("netlink").on("message", take);
  records?.on("message", take);
}
net
  .listen()
  .then((port) => {
    shell.log("info", "listening", { port });
    toLease({ kind: "listening", port });
    shell.toMain({ kind: "status", part: "listen", status: { port } });
    shell.toMain({ kind: "started", part: "peer" });
  })
  .catch(shell.fatal);
