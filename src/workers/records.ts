// SPDX-License-Identifier: GPL-2.0-only
//
// The records worker: makes grants durable in .mxfs/lockstate before they are told (rule 5), and tells them. It has a disk
// fd and a thread of its own, so that no other work delays a grant, and nothing here delays a heartbeat.
//
// Protocol: the other threads send what the lock engine decided (`locks`); the lease worker freezes it at the beginning of
// a view change, and has it make the records of the next view when all locks are in the table. Decisions are made in
// src/disk/lock_persister.ts.
//
// Writes are made on this very thread (record_disk.ts): what comes meanwhile waits in the ports and goes out with the next
// write, all in one piece.
//
// Known weakness: while a write hangs (a lost path: 30 s by default) this thread hangs with it, and a view change waits; the
// node is evicted then, since its heartbeats do not get through either.

import { setTimeout as pause } from "node:timers/promises";
import type { WriteOutcome } from "../cluster/ports.js";
import { LockPersister } from "../disk/lock_persister.js";
import { LockEngine } from "../dlm/engine.js";
import { RawDevice, readHeader } from "./disk_io.js";
import { LockDispatch } from "./dispatch.js";
import { KernelLink } from "./kernel_link.js";
import { NodeWords, type ToLease, type ToPeer, type ToRecords } from "./protocol.js";
import { RecordDisk } from "./record_disk.js";
import { openShell } from "./shell.js";

const KERNEL_THREAD = 5;
const STATUS_MS = 1_000;

const shell = openShell("records");
const { setup } = shell;
const lease = shell.port("lease");
const peer = shell.port("peer");
const device = new RawDevice(setup.device, true);
const disk = new RecordDisk(device.fd, device.recordSize);

const toLease = (message: ToLease): void => lease.postMessage(message);

const dispatch = new LockDispatch({
  self: setup.self,
  words: new NodeWords(setup.words),
  kernel: setup.kernel === null ? null : new KernelLink(setup.kernel, KERNEL_THREAD),
  sendFrames(frames) {
    const message: ToPeer = { kind: "frames", frames };
    peer.postMessage(message);
  },
  toRecords: null,
  toControl: (type, entries) => shell.toMain({ kind: "control-locks", type, entries }),
  log: shell.log,
});

const persister = new LockPersister(
  LockEngine.attach(setup.engine),
  {
    volume: setup.volume,
    recordSize: device.recordSize,
    writer: setup.self,
    writerIncarnation: setup.incarnation,
    persist: setup.persist,
  },
  {
    write: (pieces) => disk.write(pieces),
    tell: (node, type, entries, client) =>
      dispatch.sendRuns([{ node, type, client, entries: entries.slice() }]),
    pause: (ms) => pause(ms),
    log: shell.log,
    conflict: () => toLease({ kind: "records-conflict" }),
  },
);

async function make(message: Extract<ToRecords, { kind: "make" }>): Promise<WriteOutcome> {
  const { location, epoch, slot, members } = message;
  const found = await readHeader(device, location, setup.volume);
  if (found.kind !== "found") {
    const why = found.kind === "error" ? found.message : `no sound header: ${found.problems.join("; ")}`;
    return { kind: "error", message: why };
  }
  const { header } = found;
  if (header.epoch !== epoch) {
    return { kind: "error", message: `the header is of epoch ${header.epoch}, not ${epoch}` };
  }
  const chunks: number[] = [];
  header.chunkOwners.forEach((owner, chunk) => {
    if (owner === slot + 1) {
      chunks.push(chunk);
    }
  });
  disk.place = { location, recordCount: header.lockRecordCount };
  const outcome = await persister.begin(epoch, chunks, new Map(members));
  return outcome.kind === "void" ? { kind: "error", message: "another view change has begun" } : outcome;
}

let shown = "";
function show(): void {
  const status = persister.status();
  const text = JSON.stringify(status);
  if (text !== shown) {
    shown = text;
    shell.toMain({ kind: "status", part: "records", status: { ...status } });
  }
}

function take(message: ToRecords): void {
  switch (message.kind) {
    case "locks":
      // What was given up first: it may be the room for what is granted.
      if (message.gave !== null) {
        persister.gave(message.gave);
      }
      if (message.grants !== null) {
        persister.grants(message.grants);
      }
      return;
    case "freeze":
      persister
        .freeze()
        .then(() => {
          if (message.id !== 0) {
            toLease({ kind: "records-frozen", id: message.id });
          }
        })
        .catch(shell.fatal);
      return;
    case "make":
      make(message)
        .then((outcome) => toLease({ kind: "records-made", id: message.id, outcome }))
        .catch(shell.fatal);
      return;
    case "resumed":
      persister.resumed();
      return;
    default:
      shell.fatal(new Error(`unknown message ${JSON.stringify(message)}`));
  }
}

for (const port of [lease, peer, shell.port("netlink"), shell.port("main")]) {
  port.on("message", take);
}
setInterval(show, STATUS_MS);
show();
shell.toMain({ kind: "started", part: "records" });
