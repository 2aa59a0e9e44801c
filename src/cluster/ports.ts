// SPDX-License-Identifier: GPL-2.0-only
/**
 * What the cluster core asks of the world, and nothing else: clock, persistent reservations, kernel, disk, network,
 * lock service. The lease worker implements these over real things, the simulator (test/sim) over virtual ones.
 *
 * Conventions: times are CLOCK_BOOTTIME milliseconds (numbers); epochs, keys, volume ids are bigints; expected
 * failures are results with a `kind`, not exceptions. A port that rejects all the same is treated as a failure of
 * the daemon: it is logged and the daemon exits, to be started again by the kernel.
 *
 * Known weakness: one network path per peer; the reservation port hides multipath (it registers on all paths).
 */

import type { AreaReport, LockRecord } from "../disk/lock_records.js";
import type { DiskHeader, LockstateLocation } from "../disk/lockstate.js";
import type { HeartbeatRecord, JournalRecord } from "../disk/record.js";
import type { NodeState, Role } from "../wire/abi.js";
import type { ClusterMessage, MemberInfo } from "../wire/messages.js";

/** A view: members in order of rank (longest in the view first). Mastering sorts by node id by itself. */
export interface View {
  readonly epoch: bigint;
  readonly holder: number;
  readonly members: readonly MemberInfo[];
}

export interface TimerHandle {
  readonly id: number;
}

export interface ClockPort {
  /** CLOCK_BOOTTIME, milliseconds. */
  now(): number;
  setTimer(delayMs: number, action: () => void): TimerHandle;
  clearTimer(timer: TimerHandle): void;
}

export type PrOutcome =
  | { readonly kind: "ok" }
  /** RESERVATION CONFLICT: the target refused. Nothing has changed. */
  | { readonly kind: "conflict" }
  /** The target lacks the service action; nothing has changed. */
  | { readonly kind: "unsupported"; readonly message: string }
  /** Anything else, after the port's own retries; nobody knows whether it was done. */
  | { readonly kind: "error"; readonly message: string };

export type PrKeysOutcome =
  /** generation: PRGENERATION; it falls only when the target has forgotten everything (restarted). */
  | { readonly kind: "ok"; readonly keys: readonly bigint[]; readonly generation: number }
  | { readonly kind: "error"; readonly message: string };

export type PrReservationOutcome =
  | { readonly kind: "none" }
  | { readonly kind: "held"; readonly key: bigint; readonly type: number }
  | { readonly kind: "error"; readonly message: string };

export type PrProbeOutcome =
  /** `way`: how reservations are made on this device, for the log. */
  | { readonly kind: "ok"; readonly way: string }
  /** The device cannot be fenced: the mount fails with this message. */
  | { readonly kind: "refused"; readonly message: string }
  | { readonly kind: "error"; readonly message: string };

/** Persistent reservations, type 5. All commands act with this node's own key. Absent with fence=none. */
export interface PrPort {
  /** Finds out how, and whether, reservations work on this device. Before all else. */
  probe(): Promise<PrProbeOutcome>;
  /** REGISTER AND IGNORE EXISTING KEY on all paths. */
  register(key: bigint): Promise<PrOutcome>;
  /** REGISTER on paths that have no key, for a target that has forgotten ours; conflict where there is another key. */
  registerAgain(key: bigint): Promise<PrOutcome>;
  readKeys(): Promise<PrKeysOutcome>;
  readReservation(): Promise<PrReservationOutcome>;
  reserve(key: bigint): Promise<PrOutcome>;
  preempt(key: bigint, victim: bigint): Promise<PrOutcome>;
  preemptAndAbort(key: bigint, victim: bigint): Promise<PrOutcome>;
  /**
   * LOGICAL UNIT RESET: every command queued at the target is aborted, reservations stay. unsupported: it does not
   * surely reach the target from here (a hypervisor may answer in its place).
   */
  resetUnit(): Promise<PrOutcome>;
  release(key: bigint): Promise<PrOutcome>;
  /** REGISTER with 0, on all paths. */
  unregister(key: bigint): Promise<PrOutcome>;
}

export interface RoleChangeResult {
  /** Positive errno, 0 is well. */
  readonly error: number;
  readonly message: string;
}

/** One mount of one node. */
export interface NodeMount {
  readonly node: number;
  readonly incarnation: number;
}

export interface KernelPort {
  /** ROLE_CHANGE; resolves at DONE. */
  roleChange(role: Role, holder: number, epoch: bigint): Promise<RoleChangeResult>;
  /** GATE; resolves at DONE (shut: everybody inside has left). `force`: fsops waiting for the holder do not count. */
  gate(open: boolean, reason: string, force: boolean): Promise<RoleChangeResult>;
  /**
   * LOCK_DUMP: resolves when the kernel said DONE *and* every dumped lock was handed to the connection of its master
   * (in the view last given to locks.freezeAndClear), so that a REBUILD_SENT sent afterwards arrives behind them.
   * `solo`: the kernel tells none, since it has no other node to share them with in the view that comes.
   */
  lockDump(epoch: bigint, solo: boolean): Promise<RoleChangeResult>;
  /**
   * `holder`: a later incarnation of the same node is another holder, which knows nothing of what the earlier was asked.
   * `solo` as in the lockDump() before: the kernel grants its locks itself until the next one.
   */
  view(epoch: bigint, holder: NodeMount, resend: boolean, solo: boolean): void;
  /** RECOVERY_START and RECOVERY_DONE: the dead holder `node` is being taken over, operations wait. */
  recovery(begin: boolean, node: number, epoch: bigint): void;
  lease(untilMs: number, epoch: bigint): void;
  /** DAEMON_READY. `leaseUntilMs` is what lease() would say. */
  ready(role: Role, epoch: bigint, holder: NodeMount, leaseUntilMs: number): void;
  /** DAEMON_READY with ERROR: the mount fails with that errno. */
  failed(errno: number, message: string): void;
  nodeStatus(node: number, incarnation: number, state: NodeState): void;
  fenced(message: string): void;
  /** DONE to VOLUME_UNMOUNT. */
  unmountDone(requestId: bigint, errno: number, message: string): void;
}

export type LocateOutcome =
  | { readonly kind: "found"; readonly location: LockstateLocation }
  /** The structures on the path are sound and the file is not there. */
  | { readonly kind: "not-found" }
  | { readonly kind: "unreadable"; readonly message: string };

export type HeaderOutcome =
  /** No sound header: never written (`problems` empty), or both copies bad. */
  | { readonly kind: "none"; readonly problems: readonly string[] }
  | { readonly kind: "found"; readonly header: DiskHeader; readonly problems: readonly string[] }
  | { readonly kind: "error"; readonly message: string };

export type WriteOutcome =
  | { readonly kind: "ok" }
  /** The target refused the write (EBADE): our key is gone. */
  | { readonly kind: "conflict" }
  | { readonly kind: "error"; readonly message: string };

export type HeartbeatsOutcome =
  | {
      readonly kind: "ok";
      /** By slot; null where empty or not sound (reported by the port). */
      readonly records: readonly (HeartbeatRecord | null)[];
    }
  | { readonly kind: "error"; readonly message: string };

export type JournalsOutcome =
  | {
      readonly kind: "ok";
      /** By slot; null where never written or not sound (reported by the port). */
      readonly records: readonly (JournalRecord | null)[];
    }
  | { readonly kind: "error"; readonly message: string };

export type LockAreaOutcome =
  | { readonly kind: "ok"; readonly report: AreaReport }
  | { readonly kind: "error"; readonly message: string };

/** Everything of a heartbeat record but sequence and epoch counting, which the heartbeat worker does. */
export type HeartbeatContents = Omit<HeartbeatRecord, "sequence">;

export interface DiskPort {
  readonly volume: bigint;
  readonly volumeUuid: string;
  /** Reads the raw XFS; retries reads that caught the holder in the middle of a write, a bounded number of times. */
  locateLockstate(): Promise<LocateOutcome>;
  /**
   * Another mxfs volume that is in use on the same LUN (another partition of it), as a text for people; null: none.
   * A reservation covers the LUN, so the two would fence each other.
   */
  otherVolumeOnLun(): Promise<string | null>;
  /** All of these after locateLockstate() found it, at the place it found. */
  readHeader(location: LockstateLocation): Promise<HeaderOutcome>;
  /** Writes the copy that header.sequence says (headerOffset()). Durable when it resolves. */
  writeHeader(location: LockstateLocation, header: DiskHeader): Promise<WriteOutcome>;
  readHeartbeats(location: LockstateLocation): Promise<HeartbeatsOutcome>;
  readJournals(location: LockstateLocation): Promise<JournalsOutcome>;
  /** What the lock records of this header's view say. */
  readLockArea(location: LockstateLocation, header: DiskHeader): Promise<LockAreaOutcome>;
  /** Journal slots are written by the holder, and by who has just won the reservation of a dead one. Durable. */
  writeJournal(location: LockstateLocation, slot: number, record: JournalRecord): Promise<WriteOutcome>;
  /**
   * From now on the heartbeat worker writes these contents to the slot every heartbeat period with a rising sequence
   * (at once, too), and reads all slots each period; it reports heartbeatWritten, heartbeatFailed, heartbeatsRead.
   */
  setHeartbeat(location: LockstateLocation, slot: number, contents: HeartbeatContents): void;
  /** Resolves when no write is under way any more; `clear`: the slot was zeroed (as far as the key allows). */
  stopHeartbeat(clear: boolean): Promise<void>;
}

export interface NetPort {
  /** Key that peers and discovery authenticate with. Until it is set nothing can connect. */
  setClusterKey(key: Uint8Array): void;
  /** Keep a connection to this peer up: dial, and again whenever it breaks, until disconnect(). Idempotent. */
  connect(node: number, address: string, port: number): void;
  /** Stop dialling and close after what is queued was sent; peerLost follows when there was a connection. */
  disconnect(node: number): void;
  /** Queues the message; silently dropped when there is no authenticated connection (peerLost will say, or said). */
  send(node: number, message: ClusterMessage): void;
  /** Ask who is there (UDP); answers come as discovered(). */
  query(): void;
}

/** What the lock records say that a dead node held for writing. */
export interface HeldByDead {
  readonly node: number;
  readonly incarnation: number;
  /** null: not known. */
  readonly locks: readonly LockRecord[] | null;
}

export interface LocksPort {
  /**
   * Stop the lock service, forget the lock table and what is under way, and adopt `view` (mastering included) for
   * the reclaims that now come. Lock messages of the new epoch other than reclaims wait until resume().
   */
  freezeAndClear(view: View): void;
  /**
   * No lock record is written any more until makeRecords(): from here on our chunks may be another's, or our key be gone.
   * Resolves when no write is under way. freezeAndClear() begins it as well. Grants that need a record wait for the next view.
   */
  freezeRecords(): Promise<void>;
  /**
   * The view's header is on disk, and everybody's locks are in the table: writes the lock records of those mastered here.
   * After an error it may be tried again. Nothing to do in a view of one.
   */
  makeRecords(view: View, location: LockstateLocation): Promise<WriteOutcome>;
  /** The control clients' locks go to their new masters, as lockDump() does for the kernel's. */
  reclaimControl(epoch: bigint): Promise<void>;
  /** Masters grant what can be granted, BAST what is in the way. */
  resume(epoch: bigint): void;
  /** A node is gone for good: forget what is kept by its id beyond the table. */
  purge(node: number): void;
  /** What dead nodes held for writing, as the lock records had it, for `status`. */
  died(held: readonly HeldByDead[]): void;
}

export type LogLevel = "debug" | "info" | "warn" | "error";
export type LogFields = Readonly<Record<string, string | number | bigint | boolean>>;

/** Where the time of a takeover went; whole milliseconds. */
export interface RecoveryReport {
  /** The dead holder, hexadecimal. */
  readonly holder: string;
  readonly epoch: bigint;
  readonly survivors: number;
  /** From its last sign of life to the decision: the node timeout, and how late this node looked. */
  readonly silentMs: number;
  /** Until the reservation was ours. */
  readonly electMs: number;
  /** Waiting for leases that may still have run. */
  readonly leaseMs: number;
  /** Everybody else's keys, and the gate. */
  readonly fenceMs: number;
  /** The XFS mounted, its log replayed. */
  readonly mountMs: number;
  readonly headerMs: number;
  /** View change: locks gathered, unanswered operations sent again, gates opened. */
  readonly viewMs: number;
  /** From its last sign of life until operations went on. */
  readonly totalMs: number;
}

export interface Ports {
  readonly clock: ClockPort;
  /** null with fence=none. */
  readonly pr: PrPort | null;
  readonly kernel: KernelPort;
  readonly disk: DiskPort;
  readonly net: NetPort;
  readonly locks: LocksPort;
  log(level: LogLevel, text: string, fields: LogFields): void;
  /** This node has taken a dead holder over, and everybody works again: for who asks how it went. */
  recovered(report: RecoveryReport): void;
  /** Unpredictable bytes, for the cluster key. */
  random(count: number): Uint8Array;
  /** The core is done; the daemon ends with this exit code. Nothing is called on any port afterwards. */
  exit(code: number): void;
}

export interface Discovered {
  readonly node: number;
  readonly incarnation: number;
  readonly role: Role;
  readonly address: string;
  readonly port: number;
  readonly epoch: bigint;
}

export interface HeartbeatFailure {
  /** conflict: the target refused the write (EBADE), our key is gone: final. error: anything else. */
  readonly kind: "conflict" | "error";
  readonly message: string;
}

/** What ATTACH answered when the kernel already had a role: the daemon was restarted, the mount lives on. */
export interface Rejoin {
  readonly role: Role;
  readonly epoch: bigint;
  readonly fenced: boolean;
}

export interface NodeIdentity {
  readonly node: number;
  readonly incarnation: number;
  /** Lower case with dashes. */
  readonly uuid: string;
  readonly address: string;
  readonly port: number;
  readonly hostName: string;
}

/** Events into the core; all are synchronous and only note and wake. */
export interface ClusterEvents {
  message(from: number, message: ClusterMessage): void;
  peerConnected(node: number, incarnation: number): void;
  peerLost(node: number): void;
  /** `atMs`: when the write was *started*. */
  heartbeatWritten(atMs: number): void;
  heartbeatFailed(failure: HeartbeatFailure): void;
  /** The target refused to write a lock record (EBADE): our key is gone: final. */
  recordsRefused(): void;
  heartbeatsRead(records: readonly (HeartbeatRecord | null)[], atMs: number): void;
  discovered(packet: Discovered): void;
  /** VOLUME_UNMOUNT. */
  unmountRequested(requestId: bigint): void;
  /** VOLUME_ERROR: the kernel lost the file system. */
  kernelError(message: string): void;
}

/** PR key (docs/interfaces.md section 4). */
export function prKey(node: number, incarnation: number): bigint {
  return (BigInt(node) << 32n) | BigInt(incarnation);
}

export function keyNode(key: bigint): number {
  return Number(key >> 32n);
}

export function keyIncarnation(key: bigint): number {
  return Number(key & 0xffff_ffffn);
}
