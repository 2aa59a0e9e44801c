// SPDX-License-Identifier: GPL-2.0-only
//
// The netlink worker: blocks in the mount's genetlink socket, takes what the kernel says in batches, decides the
// locks that are mastered here on the spot, and hands the rest on.
//
//   LOCK_REQUEST, CONVERT, RELEASE ──► engine ──► grants to the kernel, forwards to the peer worker
//   LOCK_DUMP ──► engine (as reclaims); its DONE ──► a mark behind them on the peer worker's port
//   FSOP_* ──► peer worker        everything else ──► lease worker or main
//
// It never waits for anything else: other threads send to the kernel by themselves, and stop it by GenlSocket.wake.
//
// Known weakness: ENOBUFS (the socket overran) should not happen, since the kernel waits for room; if it does,
// acknowledgements were lost and the daemon ends, to be started with a dump of everything.

import { GENL_BATCH_MAX, GenlSocket } from "../../native/index.js";
import { LockEngine } from "../dlm/engine.js";
import { WireType } from "../wire/abi.js";
import { WireError } from "../wire/error.js";
import { encodeFsopPart } from "../wire/messages.js";
import { decodeDatagram, NETLINK_MESSAGE_MAX, type ToDaemon } from "../wire/netlink.js";
import { LockDispatch } from "./dispatch.js";
import { KernelLink } from "./kernel_link.js";
import { type KernelEvent, NodeWords, type OutFrame, type ToLease, type ToPeer } from "./protocol.js";
import { openShell } from "./shell.js";

const KERNEL_THREAD = 1;
const SLOT_BYTES = NETLINK_MESSAGE_MAX;

const shell = openShell("netlink");
const { setup } = shell;
const peer = shell.port("peer");
const lease = shell.port("lease");
const records = setup.kernel === null ? null : shell.port("records");
if (setup.kernel === null) {
  throw new Error("the netlink worker needs a mount");
}
const link = new KernelLink(setup.kernel, KERNEL_THREAD);
const socket = GenlSocket.attach(setup.kernel.socket);
const familyId = setup.kernel.familyId;
const words = new NodeWords(setup.words);
const engine = LockEngine.attach(setup.engine);

/** Frames of this batch of datagrams: posted together. */
let frames: OutFrame[] = [];
const dispatch = new LockDispatch({
  self: setup.self,
  words,
  kernel: link,
  sendFrames: (more) => {
    frames.push(...more);
  },
  toRecords: records === null ? null : (message) => records.postMessage(message),
  toControl: (type, entries) => shell.toMain({ kind: "control-locks", type, entries }),
  log: shell.log,
});

function postFrames(): void {
  if (frames.length > 0) {
    const message: ToPeer = { kind: "frames", frames };
    peer.postMessage(message);
    frames = [];
  }
}

function toLease(event: KernelEvent): void {
  const message: ToLease = { kind: "kernel", event };
  lease.postMessage(message);
}

function take(message: ToDaemon): void {
  switch (message.cmd) {
    case "LOCK_REQUEST":
      dispatch.submit(engine, WireType.LOCK_REQUEST, message.locks, setup.self);
      return;
    case "LOCK_CONVERT":
      dispatch.submit(engine, WireType.LOCK_CONVERT, message.locks, setup.self);
      return;
    case "LOCK_RELEASE":
      dispatch.submit(engine, WireType.LOCK_RELEASE, message.locks, setup.self);
      return;
    case "LOCK_DUMP":
      dispatch.submit(engine, WireType.LOCK_RECLAIM, message.locks, setup.self);
      return;
    case "FSOP_REQUEST":
    case "FSOP_REPLY": {
      const request = message.cmd === "FSOP_REQUEST";
      const node = request ? words.holder : message.node;
      const body = encodeFsopPart({
        id: message.fsopId,
        offset: message.fsopOffset,
        total: message.fsopTotal,
        data: message.fsopData,
      });
      frames.push({
        node,
        type: request ? WireType.FSOP_REQUEST : WireType.FSOP_REPLY,
        epoch: words.epoch,
        body,
      });
      return;
    }
    case "DONE": {
      // A dump's locks were all before it: this mark follows them to the peer worker.
      dispatch.end();
      postFrames();
      const mark: ToPeer = { kind: "mark", id: `netlink:${message.reqId}` };
      peer.postMessage(mark);
      toLease({ cmd: "DONE", reqId: message.reqId, error: message.error, message: message.message ?? "" });
      return;
    }
    case "VOLUME_UNMOUNT":
      toLease({ cmd: "VOLUME_UNMOUNT", reqId: message.reqId });
      return;
    case "VOLUME_ERROR":
      toLease({ cmd: "VOLUME_ERROR", error: message.error, message: message.message ?? "" });
      return;
    case "STATUS":
      shell.toMain({
        kind: "status",
        part: "kernel",
        status: { ...message, cmd: undefined, counters: undefined, ...parseCounters(message.counters ?? "") },
      });
      return;
    case "DAEMON_ATTACH":
    case "VOLUME_MOUNT":
      return;
  }
}

function parseCounters(text: string): Record<string, string> {
  return Object.fromEntries(
    text
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => {
        const [name = "", value = ""] = line.split(" ");
        return [`count_${name}`, value];
      }),
  );
}

function takeDatagram(datagram: Uint8Array): void {
  let events: ReturnType<typeof decodeDatagram>;
  try {
    events = decodeDatagram(datagram, familyId);
  } catch (error) {
    if (!(error instanceof WireError)) {
      throw error;
    }
    shell.log("error", `a message of the kernel is not understood: ${error.message}`);
    return;
  }
  for (const event of events) {
    if (event.kind === "message") {
      take(event.message);
    } else if (event.kind === "ack" && event.error !== 0) {
      toLease({ cmd: "REFUSED", seq: event.seq, error: event.error, message: event.message ?? "" });
    }
  }
}

function receiveForever(): void {
  const buffer = new Uint8Array(SLOT_BYTES * GENL_BATCH_MAX);
  const lengths = new Int32Array(GENL_BATCH_MAX);
  while (!words.stopping) {
    const count = socket.recvBatch(buffer, SLOT_BYTES, lengths, null, -1);
    for (let slot = 0; slot < count; slot++) {
      const length = lengths[slot] ?? 0;
      if (length > 0) {
        takeDatagram(buffer.subarray(slot * SLOT_BYTES, slot * SLOT_BYTES + length));
      }
    }
    dispatch.end();
    postFrames();
  }
}

shell.toMain({ kind: "started", part: "netlink" });
try {
  receiveForever();
} catch (error) {
  shell.fatal(error);
}
peer.close();
lease.close();
records?.close();
