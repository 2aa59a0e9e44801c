// SPDX-License-Identifier: GPL-2.0-only
//
// The heartbeat worker: writes this node's slot every heartbeat period, reads everybody's, and reports both to
// the lease worker. It does nothing else, so that nothing else can delay it.
//
// Protocol: `set` starts (or changes) the heartbeat and writes at once; `stop` ends it, after the write under way,
// and clears the slot if asked. A write that fails is reported and tried again at the next period.
//
// Known weakness: reads and writes share one path; a hung read delays the next write (the lease then runs out,
// which is what should happen to a node that lost its disk).

import { bootTimeMs, isNativeError } from "../../native/index.js";
import type { HeartbeatContents } from "../cluster/ports.js";
import { heartbeatOffset, type LockstateLocation } from "../disk/lockstate.js";
import { encodeHeartbeat } from "../disk/record.js";
import { RawDevice, readHeartbeats, writeLockstate } from "./disk_io.js";
import type { ToHeartbeat, ToLease } from "./protocol.js";
import { openShell } from "./shell.js";

const shell = openShell("heartbeat");
const lease = shell.port("lease");
const device = new RawDevice(shell.setup.device, true);

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
