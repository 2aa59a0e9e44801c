// SPDX-License-Identifier: GPL-2.0-only
//
// The heartbeat worker: writes this node's slot every heartbeat period, reads everybody's, and reports both to
// the lease worker. It does nothing else, so that nothing else can delay it.
//
// Protocol: `set` starts (or changes) the heartbeat and writes at once; `stop` ends it, after the write under way,
// and clears the slot if asked. A write that fails is reported and tried again at the next period.
//
// A beat is written only while the mount answers: before each one the kernel is asked for its status, and a kernel that
// does not answer, or whose mount is fenced, gets no heartbeat, so that others may take over.
//
// Known weakness: reads and writes share one path; a hung read delays the next write (the lease then runs out,
// which is what should happen to a node that lost its disk).

import { bootTimeMs, GenlSocket, isNativeError } from "../../native/index.js";
import type { HeartbeatContents } from "../cluster/ports.js";
import { heartbeatOffset, type LockstateLocation } from "../disk/lockstate.js";
import { encodeHeartbeat } from "../disk/record.js";
import { decodeDatagram, encodeToKernel, NETLINK_MESSAGE_MAX, NLM_F_REQUEST } from "../wire/netlink.js";
import { RawDevice, readHeartbeats, writeLockstate } from "./disk_io.js";
import type { ToHeartbeat, ToLease } from "./protocol.js";
import { openShell } from "./shell.js";

const shell = openShell("heartbeat");
const lease = shell.port("lease");
const device = new RawDevice(shell.setup.device, true);

const KERNEL_ANSWER_MS = 1_000;
const KERNEL_BUFFER_BYTES = 256 * 1024;

/** Asks the mount whether it lives, on a socket of its own. Null: yes; otherwise why not. */
class KernelProbe {
  readonly #socket = GenlSocket.open({
    receiveBufferBytes: KERNEL_BUFFER_BYTES,
    sendBufferBytes: KERNEL_BUFFER_BYTES,
  });
  readonly #buffer = new Uint8Array(NETLINK_MESSAGE_MAX);
  readonly #lengths = new Int32Array(1);
  #seq = 0;

  ask(mountId: number, session: bigint, familyId: number): string | null {
    const seq = ++this.#seq;
    this.#socket.send(
      encodeToKernel({ cmd: "STATUS", mountId, session }, { familyId, flags: NLM_F_REQUEST, seq, portId: 0 }),
    );
    for (;;) {
      const count = this.#socket.recvBatch(
        this.#buffer,
        NETLINK_MESSAGE_MAX,
        this.#lengths,
        null,
        KERNEL_ANSWER_MS,
      );
      if (count < 1) {
        return `the kernel did not answer within ${KERNEL_ANSWER_MS} ms`;
      }
      for (const event of decodeDatagram(this.#buffer.subarray(0, this.#lengths[0] ?? 0), familyId)) {
        // An answer that came too late for the beat before is passed over.
        if (event.seq !== seq) {
          continue;
        }
        if (event.kind === "ack" && event.error !== 0) {
          return `the kernel refused: errno ${event.error} ${event.message ?? ""}`;
        }
        if (event.kind === "message" && event.message.cmd === "STATUS") {
          return event.message.fenced === 1 ? "the mount is fenced" : null;
        }
      }
    }
  }
}

const probe = shell.setup.kernel === null ? null : new KernelProbe();

function kernelTrouble(): string | null {
  const { kernel } = shell.setup;
  if (probe === null || kernel === null) {
    return null;
  }
  try {
    return probe.ask(kernel.mountId, kernel.session, kernel.familyId);
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

interface Beat {
  readonly location: LockstateLocation;
  readonly slot: number;
  readonly contents: HeartbeatContents;
}

let beat: Beat | null = null;
let sequence = BigInt(Math.floor(bootTimeMs()));
let timer: NodeJS.Timeout | null = null;
let running: Promise<void> | null = null;
const reported = new Map<number, string>();

function tell(message: ToLease): void {
  lease.postMessage(message);
}

async function writeSlot({ location, slot, contents }: Beat): Promise<void> {
  const trouble = kernelTrouble();
  if (trouble !== null) {
    tell({
      kind: "heartbeat-failed",
      failure: { kind: "error", message: `no heartbeat is written: ${trouble}` },
    });
    return;
  }
  const startedMs = bootTimeMs();
  sequence += 1n;
  try {
    await writeLockstate(
      device,
      location,
      heartbeatOffset(slot, location.recordSize),
      encodeHeartbeat({ ...contents, sequence }, location.recordSize),
    );
    tell({ kind: "heartbeat-written", atMs: startedMs });
  } catch (error) {
    const conflict = isNativeError(error) && error.code === "EBADE";
    const message = error instanceof Error ? error.message : String(error);
    tell({ kind: "heartbeat-failed", failure: { kind: conflict ? "conflict" : "error", message } });
  }
}

async function readAll(location: LockstateLocation): Promise<void> {
  const atMs = bootTimeMs();
  const outcome = await readHeartbeats(device, location, shell.setup.volume, (slot, problem) => {
    if (reported.get(slot) !== problem) {
      reported.set(slot, problem);
      shell.log("warn", `heartbeat slot ${slot} is not sound and counts as empty: ${problem}`, { slot });
    }
  });
  if (outcome.kind === "ok") {
    tell({ kind: "heartbeats-read", atMs, records: outcome.records });
  } else {
    tell({ kind: "heartbeat-failed", failure: { kind: "error", message: outcome.message } });
  }
}

/** One beat at a time: a slow disk makes beats late, not many. */
function tick(): void {
  const current = beat;
  if (current === null || running !== null) {
    return;
  }
  running = writeSlot(current)
    .then(() => readAll(current.location))
    .catch(shell.fatal)
    .finally(() => {
      running = null;
    });
}

function start(): void {
  if (timer === null) {
    timer = setInterval(tick, shell.setup.heartbeatMs);
  }
  tick();
}

async function stop(clear: boolean): Promise<void> {
  const last = beat;
  beat = null;
  if (timer !== null) {
    clearInterval(timer);
    timer = null;
  }
  await (running ?? Promise.resolve());
  if (clear && last !== null) {
    try {
      const { location, slot } = last;
      await writeLockstate(
        device,
        location,
        heartbeatOffset(slot, location.recordSize),
        new Uint8Array(location.recordSize),
      );
    } catch (error) {
      shell.log("warn", "the heartbeat slot could not be cleared", { error: String(error) });
    }
  }
  tell({ kind: "heartbeat-stopped" });
}

lease.on("message", (message: ToHeartbeat) => {
  switch (message.kind) {
    case "set":
      beat = { location: message.location, slot: message.slot, contents: message.contents };
      start();
      return;
    case "stop":
      stop(message.clear).catch(shell.fatal);
      return;
    default:
      shell.fatal(new Error(`unknown message ${JSON.stringify(message)}`));
  }
});
shell.toMain({ kind: "started", part: "heartbeat" });
