// SPDX-License-Identifier: GPL-2.0-only
//
// One measurement of the lock table, in a process of its own (perf/dlm/run.ts starts it):
//
//   table RESOURCES RESIDENT THREADS PAIRS BATCH   prints nanoseconds per request+release pair: wall time, CPU time
//
// A pair is what the daemon does for it: two 64-byte entries decided by LockEngine, and the grant in the outbox.
// BATCH pairs come together, as they do from a netlink or TCP batch, each request followed by its release: the same
// operations in the same order as in map.cc. RESIDENT 1: every resource has a lock already.
//
// Weakness: all of an entry but its inode and lock id is made before the clock runs, and outcomes are not sent anywhere.

import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { COMMAND, LockEngine } from "../../src/dlm/engine.js";
import type { SharedMemory } from "../../src/dlm/memory.js";
import { Outbox } from "../../src/dlm/outbox.js";
import { LockMode, MXFS_LOCK_ENTRY_SIZE } from "../../src/wire/abi.js";
import { encodeLockEntry, LOCK_ENTRY } from "../../src/wire/lock_entry.js";

interface Job {
  readonly memory: SharedMemory;
  readonly first: number;
  readonly share: number;
  readonly pairs: number;
  readonly batch: number;
  readonly thread: number;
}

/** Resources that a thread goes through before it begins again, in random order. */
const ORDER_COUNT = 1 << 16;
const WARM_PAIRS = 500_000;
/** Words of an entry. */
const INO = LOCK_ENTRY.ino / 4;
const LOCK_ID = LOCK_ENTRY.lockId / 4;
const ENTRY_WORDS = MXFS_LOCK_ENTRY_SIZE / 4;

/** Each message twice: to be a request, and its release. Inode and lock id are still to come. */
function blankBatch(thread: number, pairs: number): Uint8Array {
  const bytes = new Uint8Array(2 * pairs * MXFS_LOCK_ENTRY_SIZE);
  for (let index = 0; index < 2 * pairs; index++) {
    encodeLockEntry(
      {
        volume: 77n,
        ino: 0n,
        offset: 0n,
        ag: 0,
        type: 4,
        lockId: BigInt(thread) << 48n,
        epoch: 1n,
        seq: 1,
        mode: LockMode.PR,
        granted: 0,
        flags: 0,
        node: 1,
        status: 0,
      },
      bytes,
      index * MXFS_LOCK_ENTRY_SIZE,
    );
  }
  return bytes;
}

function randomOrder(job: Job): Int32Array {
  let state = job.thread * 7919 + 1;
  return Int32Array.from({ length: ORDER_COUNT }, () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return job.first + ((state >>> 8) % job.share);
  });
}

interface Took {
  readonly wallMs: number;
  readonly cpuMs: number;
}

function work(engine: LockEngine, job: Job): Took {
  const order = randomOrder(job);
  const batch = blankBatch(job.thread, job.batch);
  const words = new Int32Array(batch.buffer);
  const out = new Outbox();
  const commands = Int32Array.from({ length: 2 * job.batch }, (_, index) =>
    index % 2 === 0 ? COMMAND.REQUEST : COMMAND.RELEASE,
  );
  const run = (pairs: number): void => {
    for (let done = 0; done < pairs; done += job.batch) {
      // As if it had just arrived.
      for (let pair = 0; pair < job.batch; pair++) {
        const ino = order[(done + pair) % ORDER_COUNT] as number;
        const at = 2 * pair * ENTRY_WORDS;
        words[at + INO] = ino;
        words[at + LOCK_ID] = done + pair;
        words[at + ENTRY_WORDS + INO] = ino;
        words[at + ENTRY_WORDS + LOCK_ID] = done + pair;
      }
      engine.submitAll(commands, batch, 1, out);
      if (out.count !== job.batch) {
        throw new Error(`${out.count} answers to ${job.batch} requests`);
      }
      out.clear();
    }
  };
  // As in a daemon that has been at work for a while: V8 has compiled what is hot, and is not just about to.
  run(WARM_PAIRS);
  const began = performance.now();
  const cpu = process.cpuUsage();
  run(job.pairs);
  const { user, system } = process.cpuUsage(cpu);
  return { wallMs: performance.now() - began, cpuMs: (user + system) / 1000 };
}

function fill(engine: LockEngine, resources: number): void {
  const out = new Outbox();
  const entry = blankBatch(200, 1).subarray(0, MXFS_LOCK_ENTRY_SIZE);
  const view = new DataView(entry.buffer);
  for (let ino = 0; ino < resources; ino++) {
    view.setBigUint64(LOCK_ENTRY.ino, BigInt(ino), true);
    engine.submit(COMMAND.REQUEST, entry, 0, 1, out);
    out.clear();
  }
}

if (isMainThread) {
  const [resources = 0, resident = 0, threads = 0, pairs = 0, batch = 0] = process.argv.slice(2).map(Number);
  const engine = LockEngine.create(1, {
    resourceCountMax: Math.max(resources, 4096),
    lockCountMax: 2 * resources + 131_072,
  });
  engine.freezeAndClear(1n, [1]);
  engine.resume(1n, new Outbox());
  if (resident === 1) {
    fill(engine, resources);
  }
  const share = Math.floor(resources / threads);
  const jobs = Array.from({ length: threads }, (_, thread) => ({
    memory: engine.memory,
    first: share * thread,
    share,
    pairs,
    batch,
    thread: thread + 1,
  }));
  const took =
    threads === 1
      ? jobs.map((job) => work(engine, job))
      : await Promise.all(
          jobs.map(
            (job) =>
              new Promise<Took>((resolve, reject) => {
                const worker = new Worker(fileURLToPath(import.meta.url), { workerData: job });
                worker.once("message", resolve);
                worker.once("error", reject);
              }),
          ),
        );
  // All threads work at once: the slowest one's times are the process's.
  const each = (ms: readonly number[]): string => ((Math.max(...ms) * 1e6) / (pairs * threads)).toFixed(2);
  process.stdout.write(`${each(took.map((t) => t.wallMs))} ${each(took.map((t) => t.cpuMs))}\n`);
} else if (parentPort !== null) {
  const job = workerData as Job;
  parentPort.postMessage(work(LockEngine.attach(job.memory), job));
}
