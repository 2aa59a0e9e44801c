// SPDX-License-Identifier: GPL-2.0-only
/**
 * What a dead node held for writing: read from the lock records by whoever drives the recovery, once the dead are fenced
 * and before the header of the next view voids the records.
 *
 * It is told (log, status): what is listed here waits until the dead node is fenced and, when it was the holder, its log is
 * replayed; and these are the files to look at when an application asks what it may have lost. No decision rests on it:
 * the locks of the next view are what the living tell, and nobody is served before the replay is over.
 *
 * After that the records are void: they carry an epoch that is over, and (once the node is back) an incarnation that is.
 *
 * Known weakness: a node that dies in the middle of a view change has told its locks to their new masters only in part;
 * the header's epoch is not the committed one then, and the list is said to be incomplete.
 */
import type { DiskHeader } from "../disk/lockstate.js";
import { LockMode, LockModeName } from "../wire/abi.js";
import type { HeldByDead } from "./ports.js";
import { activeMembers, type ClusterState, hexNode } from "./state.js";

const EXAMPLES_MAX = 4;

interface Dead {
  readonly node: number;
  readonly incarnation: number;
}

/** Reads the records of this header's view; what cannot be read is not known, and is said to be so. */
export async function heldByDead(
  state: ClusterState,
  header: DiskHeader | null,
  dead: readonly Dead[],
): Promise<HeldByDead[]> {
  const { location } = state;
  const unknown = (why: string): HeldByDead[] => {
    state.log("warn", "what the dead held for writing is not known", { why });
    return dead.map(({ node, incarnation }) => ({ node, incarnation, locks: null }));
  };
  if (header === null || location === null) return unknown("no header was read");
  if (activeMembers(header).length < 2) return unknown("it was alone, and nothing is recorded then");
  const outcome = await state.ports.disk.readLockArea(location, header);
  state.alive();
  if (outcome.kind === "error") return unknown(outcome.message);
  const { locks, problems } = outcome.report;
  if (problems.length > 0) {
    state.log("warn", "lock records that are not sound count as absent", {
      count: problems.length,
      first: problems[0] ?? "",
    });
  }
  return dead.map(({ node, incarnation }) => ({
    node,
    incarnation,
    locks: locks.filter(
      (lock) =>
        lock.owner === node &&
        (lock.ownerIncarnation === incarnation || lock.ownerIncarnation === 0) &&
        lock.mode >= LockMode.CW &&
        lock.mode !== LockMode.PR,
    ),
  }));
}

/** heldByDead(), into log and status. */
export async function tellHeldByDead(
  state: ClusterState,
  header: DiskHeader | null,
  dead: readonly Dead[],
): Promise<void> {
  const epoch = header?.epoch ?? 0n;
  const held = await heldByDead(state, header, dead);
  for (const { node, incarnation, locks } of held) {
    if (locks === null) continue;
    state.log("warn", "what the dead node held for writing waits for its recovery", {
      node: hexNode(node),
      incarnation,
      locks: locks.length,
      complete: state.view?.epoch === epoch,
      examples: locks
        .slice(0, EXAMPLES_MAX)
        .map(
          ({ resource, mode }) => `type ${resource.type} ino ${resource.ino} ${LockModeName[mode] ?? mode}`,
        )
        .join(", "),
    });
  }
  state.ports.locks.died(held);
}
