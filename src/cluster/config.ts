// SPDX-License-Identifier: GPL-2.0-only
/**
 * The core's configuration and the inequalities between its timings: heartbeat <= renewal < lease, and
 * lease * 1.1 < node timeout, so that a lease is surely out before anybody takes a node for dead.
 *
 * Known weakness: all nodes must use the same timings; nothing on disk says which they are.
 */
import {
  MXFS_DRAIN_MS_DEFAULT,
  MXFS_HEARTBEAT_MS_DEFAULT,
  MXFS_LEASE_MS_DEFAULT,
  MXFS_LEASE_RENEW_MS_DEFAULT,
  MXFS_NODE_TIMEOUT_MS_DEFAULT,
  MXFS_STARTUP_MS_DEFAULT,
} from "../wire/abi.js";
import type { NodeIdentity, Rejoin } from "./ports.js";

export interface Timings {
  readonly heartbeatMs: number;
  readonly renewMs: number;
  readonly leaseMs: number;
  readonly nodeTimeoutMs: number;
  readonly startupMs: number;
  /** How long writes that a fenced node has queued at the target may still land, where they cannot be aborted. */
  readonly drainMs: number;
}

export const TIMINGS_DEFAULT: Timings = {
  heartbeatMs: MXFS_HEARTBEAT_MS_DEFAULT,
  renewMs: MXFS_LEASE_RENEW_MS_DEFAULT,
  leaseMs: MXFS_LEASE_MS_DEFAULT,
  nodeTimeoutMs: MXFS_NODE_TIMEOUT_MS_DEFAULT,
  startupMs: MXFS_STARTUP_MS_DEFAULT,
  drainMs: MXFS_DRAIN_MS_DEFAULT,
};

export interface ClusterConfig {
  readonly self: NodeIdentity;
  readonly timings: Timings;
  readonly fence: "scsi" | "none";
  /** null: a fresh mount. */
  readonly rejoin: Rejoin | null;
  /** How many lock records lockstate is made with (it is the kernel that makes it; the header repeats it). */
  readonly lockRecordCount: number;
}

/** @throws RangeError that names the two settings and says which one to change. */
export function checkTimings(t: Timings): void {
  for (const [name, value] of Object.entries(t)) {
    if (!Number.isInteger(value) || value < 1 || value > 3_600_000) {
      throw new RangeError(`${name} is ${value}; expected whole milliseconds from 1 to 3600000`);
    }
  }
  if (t.heartbeatMs > t.renewMs) {
    throw new RangeError(
      `heartbeat (${t.heartbeatMs} ms) must not be longer than lease renewal (${t.renewMs} ms): ` +
        "a renewal follows a written heartbeat; lower the heartbeat or raise the renewal",
    );
  }
  if (t.renewMs >= t.leaseMs) {
    throw new RangeError(
      `lease renewal (${t.renewMs} ms) must be shorter than the lease (${t.leaseMs} ms), ` +
        "or the lease runs out between two renewals; raise the lease",
    );
  }
  if (t.leaseMs * 1.1 >= t.nodeTimeoutMs) {
    throw new RangeError(
      `lease (${t.leaseMs} ms) plus 10 % must be shorter than the node timeout (${t.nodeTimeoutMs} ms), ` +
        "or a node could be taken for dead while its lease runs; raise the node timeout",
    );
  }
  if (t.startupMs < t.nodeTimeoutMs) {
    throw new RangeError(
      `start-up (${t.startupMs} ms) must not be shorter than the node timeout (${t.nodeTimeoutMs} ms), ` +
        "or no mount could outwait a dead holder; raise the start-up time-out",
    );
  }
}

/** How long others wait after the receipt of a renewal before they take the lease for run out: lease + 10 %. */
export function leaseGraceMs(t: Timings): number {
  return Math.ceil(t.leaseMs * 1.1);
}
