// SPDX-License-Identifier: GPL-2.0-only
/**
 * Fencing: keeping another node from writing, and finding out that we are kept from it ourselves.
 *
 * Fence = PREEMPT AND ABORT; where the target lacks it PREEMPT, and then, since writes that the victim has queued at the
 * target may still land: LUN RESET where it surely reaches the target, otherwise a drain time (`drain`), which
 * whoever passes on what the victim held waits for with waitForDrain(): a takeover and a start before they mount the
 * XFS, an eviction before the header and the locks. A key that is gone already is as good as fenced. If in the course
 * of it our own key turns out to be gone, or the target refuses a write, we are the fenced one: final for this mount.
 *
 * Known weakness: the drain time is a guess. A target that holds an accepted write back for longer needs a longer one.
 */
import { hexKey } from "../disk/reservation.js";
import type { PrPort } from "./ports.js";
import { type ClusterState, Halted } from "./state.js";

export type FenceOutcome = "fenced" | "was-gone" | "failed";

/** This node is fenced, finally: everything stops, the kernel answers EIO from now on. */
export function fenceSelf(state: ClusterState, why: string): void {
  if (state.halted) return;
  state.log("error", "fenced: this mount is over; unmount it and mount again", { why });
  state.halt("fenced");
  state.ports.kernel.fenced(why);
  state.ports.disk.stopHeartbeat(false).catch((error: unknown) => {
    state.log("error", "the heartbeat could not be stopped; the target refuses it anyway", {
      error: String(error),
    });
  });
  state.ports.locks.freezeRecords().catch((error: unknown) => {
    state.log("error", "the lock records could not be stopped; the target refuses them anyway", {
      error: String(error),
    });
  });
  for (const node of [...state.connected.keys()]) state.ports.net.disconnect(node);
  state.connected.clear();
}

/** fenceSelf() from within a flow. */
export function fenceSelfAndHalt(state: ClusterState, why: string): never {
  fenceSelf(state, why);
  throw new Halted();
}

/** Whether the victim may have writes queued at the target: not when it has just unmounted in good order. */
export type VictimQueue = "may-have-writes" | "is-empty";

/** The victim's queued writes were not aborted by PREEMPT: abort them, or note how long they may still land. */
async function drainQueue(state: ClusterState, pr: PrPort, victim: bigint): Promise<void> {
  const reset = await pr.resetUnit();
  state.alive();
  if (reset.kind === "ok") {
    state.log(
      "info",
      "target lacks PREEMPT AND ABORT: a LUN RESET has aborted what the fenced node had queued",
      {
        victim: hexKey(victim),
      },
    );
    return;
  }
  const { drainMs } = state.timings;
  state.drainedAt = Math.max(state.drainedAt, state.now() + drainMs);
  const why = reset.kind === "error" ? reset.message : "a LUN RESET does not surely reach the target";
  state.log(
    "warn",
    "target lacks PREEMPT AND ABORT: writes the fenced node has queued may still land for a while",
    { victim: hexKey(victim), drainMs, why },
  );
}

/** Before anything that a fenced node held is passed on. */
export async function waitForDrain(state: ClusterState): Promise<void> {
  const ms = state.drainedAt - state.now();
  if (ms <= 0) return;
  state.log("info", "waiting for the drain time of fenced nodes", { ms });
  await state.pause(ms);
}

/** Removes `victim`'s registration at the target. Our own loss of it ends in fenceSelf() and Halted. */
export async function fenceKey(
  state: ClusterState,
  victim: bigint,
  why: string,
  queue: VictimQueue = "may-have-writes",
): Promise<FenceOutcome> {
  const { pr } = state.ports;
  if (pr === null) {
    state.log("warn", "fence=none: nothing keeps this node from writing", { victim: hexKey(victim), why });
    return "fenced";
  }
  if (state.mistakes.has("skip-fence")) return "fenced";
  const started_at = state.now();
  let outcome = await pr.preemptAndAbort(state.key, victim);
  state.alive();
  let command = "PREEMPT AND ABORT";
  if (outcome.kind === "unsupported") {
    command = "PREEMPT";
    outcome = await pr.preempt(state.key, victim);
    state.alive();
    if (outcome.kind === "ok" && queue === "may-have-writes") await drainQueue(state, pr, victim);
  }
  if (outcome.kind === "ok") {
    const ms = state.now() - started_at;
    state.log("info", "fenced a node's key", { victim: hexKey(victim), command, why, ms });
    return "fenced";
  }
  const keys = await pr.readKeys();
  state.alive();
  if (keys.kind === "error") {
    state.log("error", "cannot fence: READ KEYS fails", { victim: hexKey(victim), error: keys.message });
    return "failed";
  }
  if (!keys.keys.includes(state.key)) {
    if (!state.admitted) return "failed";
    fenceSelfAndHalt(
      state,
      `our key ${hexKey(state.key)} is gone from the target: another node has fenced us`,
    );
  }
  if (!keys.keys.includes(victim)) return "was-gone";
  const error = outcome.kind === "error" ? outcome.message : outcome.kind;
  state.log("error", "fencing failed; trying again", { victim: hexKey(victim), command, error });
  return "failed";
}

/** fenceKey() until it has worked; a target that refuses for a whole node timeout fences us instead. */
export async function fenceForSure(
  state: ClusterState,
  victim: bigint,
  why: string,
  queue: VictimQueue = "may-have-writes",
): Promise<void> {
  const deadline = state.now() + state.timings.nodeTimeoutMs;
  for (;;) {
    if ((await fenceKey(state, victim, why, queue)) !== "failed") return;
    if (state.now() >= deadline) {
      fenceSelfAndHalt(
        state,
        `node with key ${hexKey(victim)} could not be fenced for ${state.timings.nodeTimeoutMs} ms; ` +
          "see the SCSI errors above, then check the target",
      );
    }
    await state.pause(state.timings.heartbeatMs);
  }
}
