// SPDX-License-Identifier: GPL-2.0-only
//
// A daemon's peer worker, the real one (src/workers/peer.js), over a lock table of its own: node 2 of a view {1, 2},
// all alone. Prints "port N" and serves until its standard input ends. Arguments: the cluster key, and "encrypt" for
// sealed connections.
//
// Weakness: heartbeat, lease and netlink workers are not there; they have nothing to do with a lock request.

import { fileURLToPath } from "node:url";
import { MessageChannel, Worker } from "node:worker_threads";
import { LockEngine } from "../../src/dlm/engine.js";
import { Outbox } from "../../src/dlm/outbox.js";
import { NodeWords, type ToMain, type ToPeer, type WorkerSetup } from "../../src/workers/protocol.js";

const SELF = 2;
const VOLUME = 77n;
const key = new Uint8Array(Buffer.from(process.argv[2] ?? "", "hex"));

const engine = LockEngine.create(SELF, { resourceCountMax: 1 << 20, lockCountMax: 1 << 20 });
engine.freezeAndClear(1n, [1, SELF]);
engine.resume(1n, new Outbox());
const words = new NodeWords(new SharedArrayBuffer(NodeWords.BYTES));
words.epoch = 1n;
words.nextEpoch = 1n;
const setup: WorkerSetup = {
  self: SELF,
  incarnation: 1,
  volume: VOLUME,
  volumeUuid: "00000000-0000-0000-0000-000000000000",
  device: "none",
  port: 0,
  iface: null,
  encrypt: process.argv[3] === "encrypt",
  kernel: null,
  engine: engine.memory,
  words: words.buffer,
  persist: "writing",
  heartbeatMs: 2000,
  cluster: {
    self: {
      node: SELF,
      incarnation: 1,
      uuid: "00000000-0000-0000-0000-000000000000",
      address: "127.0.0.1",
      port: 0,
      hostName: "perf",
    },
    timings: {
      heartbeatMs: 2000,
      renewMs: 2000,
      leaseMs: 5000,
      nodeTimeoutMs: 12_000,
      startupMs: 60_000,
      drainMs: 2000,
    },
    fence: "none",
    rejoin: null,
    lockRecordCount: 1024,
  },
};
const lease = new MessageChannel();
const main = new MessageChannel();
const worker = new Worker(fileURLToPath(new URL("../../src/workers/peer.js", import.meta.url)), {
  workerData: { setup, ports: { lease: lease.port1, main: main.port1 } },
  transferList: [lease.port1, main.port1],
});
worker.on("message", (message: ToMain) => {
  if (message.kind === "status" && message.part === "listen") {
    const tell: ToPeer = { kind: "key", key };
    main.port2.postMessage(tell);
    process.stdout.write(`port ${String(message.status.port)}\n`);
  } else if (message.kind === "fatal") {
    process.stderr.write(`${message.error}\n`);
    process.exit(1);
  }
});
worker.on("error", (error) => {
  throw error;
});
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
