// SPDX-License-Identifier: GPL-2.0-only
/**
 * Fencing: keeping another node from writing, and finding out that we are kept from it ourselves.
 *
 * Fence = PREEMPT AND ABORT; where the target lacks it PREEMPT (the victim's queued writes may then still land, which
 * is logged). A key that is gone already is as good as fenced. If in the course of it our own key turns out to be
 * gone, or the target refuses a write, we are the fenced one: final for this mount.
 *
 * Known weakness: with plain PREEMPT nothing waits for the victim's queued writes; the lease wait that precedes every
 * eviction (lease + 10 %) is what drains them in practice.
 */
import { hexKey } from "../disk/reservation.js";
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
  for (const node of [...state.connected.keys()]) state.ports.net.disconnect(node);
  state.connected.clear();
}

/** fenceSelf() from within a flow. */
export function fenceSelfAndHalt(state: ClusterState, why: string): never {
  fenceSelf(state, why);
  throw new Halted();
}

/** Removes `victim`'s registration at the target. Our own loss of it ends in fenceSelf() and Halted. */
export async function fenceKey(state: ClusterState, victim: bigint, why: string): Promise<FenceOutcome> {
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
    if (outcome.kind === "ok") {
      state.log("warn", "target lacks PREEMPT AND ABORT: writes the fenced node has queued may still land", {
        victim: hexKey(victim),
      });
    }
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
export async function fenceForSure(state: ClusterState, victim: bigint, why: string): Promise<void> {
  const deadline = state.now() + state.timings.nodeTimeoutMs;
  for (;;) {
    if ((await fenceKey(state, victim, why)) !== "failed") return;
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
