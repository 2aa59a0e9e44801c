// SPDX-License-Identifier: GPL-2.0-only
//
// What the daemon's threads say to each other: every message, typed. An unknown message throws.
//
//            ┌────────────────────────── log, fatal ───────────────────────────┐
//   netlink ─┤  frames, marks ──► peer ◄── frames, marks, net commands ── lease ├──► main
//            └─ kernel events ──► lease ◄── heartbeats ── heartbeat             ┘
//   netlink, peer, lease, main ── grants, what was given up ──► records ── frames ──► peer
//
// Payloads are transferred or copied, never shared, except the two shared buffers of `WorkerSetup`.
// Order: messages on one port arrive in the order they were sent; that is what `mark` relies on.

import type { MessagePort } from "node:worker_threads";
import type { GenlHandle } from "../../native/index.js";
import type { ClusterConfig } from "../cluster/config.js";
import type { Discovered, HeartbeatContents, HeartbeatFailure, WriteOutcome } from "../cluster/ports.js";
import type { PersistChoice } from "../disk/lock_persister.js";
import type { LockstateLocation } from "../disk/lockstate.js";
import type { HeartbeatRecord } from "../disk/record.js";
import type { SharedMemory } from "../dlm/memory.js";
import type { WireType } from "../wire/abi.js";
import type { ClusterMessage } from "../wire/messages.js";
import type { Probe } from "../wire/probe.js";

export type LogLevel = "error" | "warn" | "info" | "debug";
export type LogFields = Readonly<Record<string, string | number | bigint | boolean | null>>;

/** One record of the log. */
export interface LogRecord {
  readonly timeMs: number;
  readonly level: LogLevel;
  /** The part that speaks: 'lease', 'peer', ... */
  readonly part: string;
  readonly text: string;
  readonly fields: LogFields;
}

export type WireTypeNumber = (typeof WireType)[keyof typeof WireType];

/** The kernel's side of the mount; null for a lock service without a mount. */
export interface KernelSetup {
  readonly socket: GenlHandle;
  readonly familyId: number;
  readonly mountId: number;
  readonly session: bigint;
}

/** What every worker is started with (workerData). */
export interface WorkerSetup {
  readonly self: number;
  readonly incarnation: number;
  readonly volume: bigint;
  readonly volumeUuid: string;
  readonly device: string;
  /** TCP port that was asked for. */
  readonly port: number;
  readonly iface: string | null;
  /** Connections to peers are sealed. */
  readonly encrypt: boolean;
  readonly kernel: KernelSetup | null;
  /** The lock table. */
  readonly engine: SharedMemory;
  /** NodeWords. */
  readonly words: SharedArrayBuffer;
  readonly heartbeatMs: number;
  readonly cluster: ClusterConfig;
  /** Which modes' grants are persisted before they are told. */
  readonly persist: PersistChoice;
}

/** Ports to the other workers, by the other's name; posted to each worker as its first message. */
export interface WorkerPorts {
  readonly [name: string]: MessagePort;
}

// ---- to main -----------------------------------------------------------------------------------------------

export type ToMain =
  | { readonly kind: "log"; readonly record: LogRecord }
  /** The thread cannot go on: the daemon ends (and the kernel starts it again). */
  | { readonly kind: "fatal"; readonly part: string; readonly error: string }
  /** Lock messages for control clients: entries of type LOCK_GRANT, LOCK_DENY or LOCK_BAST. */
  | { readonly kind: "control-locks"; readonly type: WireTypeNumber; readonly entries: Uint8Array }
  /** A peer's message about a deadlock of control clients. */
  | { readonly kind: "probe"; readonly node: number; readonly probe: Probe }
  /** Lease worker: send your control clients' locks to their masters, then answer `reclaimed`. */
  | { readonly kind: "reclaim"; readonly id: number; readonly epoch: bigint }
  | { readonly kind: "resumed"; readonly epoch: bigint }
  /** Lease worker: the lock table knows the kernel's locks, and will. */
  | { readonly kind: "shared" }
  | { readonly kind: "frozen"; readonly epoch: bigint }
  /** Lease worker: what discovery announces from now on; key null: nothing yet. */
  | { readonly kind: "announce"; readonly key: Uint8Array; readonly epoch: bigint; readonly role: number }
  | { readonly kind: "query" }
  /** What `status` shows of the part; sent when it changes. */
  | { readonly kind: "status"; readonly part: string; readonly status: Readonly<Record<string, unknown>> }
  /** The core is done. */
  | { readonly kind: "exit"; readonly code: number }
  | { readonly kind: "started"; readonly part: string };

// ---- to the peer worker ------------------------------------------------------------------------------------

export interface OutFrame {
  readonly node: number;
  readonly type: WireTypeNumber;
  readonly epoch: bigint;
  readonly body: Uint8Array;
}

export type ToPeer =
  | { readonly kind: "frames"; readonly frames: readonly OutFrame[] }
  /** Everything posted on this port before is with its connection: tell the lease worker `marked`. */
  | { readonly kind: "mark"; readonly id: string }
  | { readonly kind: "key"; readonly key: Uint8Array }
  | { readonly kind: "connect"; readonly node: number; readonly address: string; readonly port: number }
  | { readonly kind: "disconnect"; readonly node: number }
  | {
      readonly kind: "message";
      readonly node: number;
      readonly epoch: bigint;
      readonly message: ClusterMessage;
    }
  | { readonly kind: "stop" };

// ---- to the lease worker -----------------------------------------------------------------------------------

/** A message of the kernel that concerns the cluster core. */
export type KernelEvent =
  | {
      readonly cmd: "DONE";
      readonly reqId: bigint;
      readonly error: number;
      readonly message: string;
    }
  | { readonly cmd: "REFUSED"; readonly seq: number; readonly error: number; readonly message: string }
  | { readonly cmd: "VOLUME_UNMOUNT"; readonly reqId: bigint }
  | { readonly cmd: "VOLUME_ERROR"; readonly error: number; readonly message: string };

export type ToLease =
  /** The peer worker's first word: the TCP port that it got. The core starts with it. */
  | { readonly kind: "listening"; readonly port: number }
  | { readonly kind: "kernel"; readonly event: KernelEvent }
  | { readonly kind: "connected"; readonly node: number; readonly incarnation: number }
  | { readonly kind: "lost"; readonly node: number }
  | { readonly kind: "message"; readonly node: number; readonly message: ClusterMessage }
  | { readonly kind: "marked"; readonly id: string }
  | { readonly kind: "heartbeat-written"; readonly atMs: number }
  | { readonly kind: "heartbeat-failed"; readonly failure: HeartbeatFailure }
  | {
      readonly kind: "heartbeats-read";
      readonly atMs: number;
      readonly records: readonly (HeartbeatRecord | null)[];
    }
  | { readonly kind: "heartbeat-stopped" }
  | { readonly kind: "records-frozen"; readonly id: number }
  | { readonly kind: "records-made"; readonly id: number; readonly outcome: WriteOutcome }
  /** The target refused to write a lock record. */
  | { readonly kind: "records-conflict" }
  | { readonly kind: "discovered"; readonly packet: Discovered }
  | { readonly kind: "reclaimed"; readonly id: number }
  /** Somebody asks for the status: the journal slots are read, and told as a part of it. */
  | { readonly kind: "look" }
  /** A control client is about to ask for a lock that the kernel takes: end solo, then answer `shared`. */
  | { readonly kind: "share" }
  /** SIGTERM, SIGINT or `mxfsd stop`. */
  | { readonly kind: "stop" };

// ---- to the heartbeat worker -------------------------------------------------------------------------------

export type ToHeartbeat =
  | {
      readonly kind: "set";
      readonly location: LockstateLocation;
      readonly slot: number;
      readonly contents: HeartbeatContents;
    }
  | { readonly kind: "stop"; readonly clear: boolean };

// ---- to the records worker ---------------------------------------------------------------------------------

export type ToRecords =
  /** What the lock engine decided: GRANT entries to be persisted and told; locks given up, as their owners said it. */
  | { readonly kind: "locks"; readonly grants: Uint8Array | null; readonly gave: Uint8Array | null }
  /** Lease worker: nothing is written until `make`; answered `records-frozen` when no write is under way. Id 0: no answer. */
  | { readonly kind: "freeze"; readonly id: number }
  /** Lease worker: every lock of the next view is in the table; answered `records-made`. */
  | {
      readonly kind: "make";
      readonly id: number;
      readonly location: LockstateLocation;
      readonly epoch: bigint;
      readonly slot: number;
      /** Node and incarnation of each member. */
      readonly members: readonly (readonly [number, number])[];
    }
  | { readonly kind: "resumed" };

// ---- shared words ------------------------------------------------------------------------------------------

/** Facts that every thread may look up without asking. One writer: the lease worker. */
export class NodeWords {
  static readonly BYTES = 64;
  readonly #u32: Uint32Array;
  readonly #u64: BigUint64Array;

  constructor(readonly buffer: SharedArrayBuffer) {
    this.#u32 = new Uint32Array(buffer);
    this.#u64 = new BigUint64Array(buffer);
  }

  /** The journal holder's node id; 0: none known. */
  get holder(): number {
    return Atomics.load(this.#u32, 0);
  }
  set holder(node: number) {
    Atomics.store(this.#u32, 0, node);
  }

  /** Epoch of the view in force. */
  get epoch(): bigint {
    return Atomics.load(this.#u64, 1);
  }
  set epoch(epoch: bigint) {
    Atomics.store(this.#u64, 1, epoch);
  }

  /** Epoch of the view being changed to; equal to `epoch` when none is. */
  get nextEpoch(): bigint {
    return Atomics.load(this.#u64, 2);
  }
  set nextEpoch(epoch: bigint) {
    Atomics.store(this.#u64, 2, epoch);
  }

  /** The daemon ends: the netlink worker leaves its loop. */
  get stopping(): boolean {
    return Atomics.load(this.#u32, 1) !== 0;
  }
  set stopping(stop: boolean) {
    Atomics.store(this.#u32, 1, stop ? 1 : 0);
  }

  /** Modes (1 << mode) whose grants go by the records worker before they are told; 0: none. */
  get persistModes(): number {
    return Atomics.load(this.#u32, 8);
  }
  set persistModes(modes: number) {
    Atomics.store(this.#u32, 8, modes);
  }

  /** CLOCK_BOOTTIME ms at which the lease ends. */
  get leaseUntilMs(): number {
    return Number(Atomics.load(this.#u64, 3));
  }
  set leaseUntilMs(untilMs: number) {
    Atomics.store(this.#u64, 3, BigInt(Math.max(0, Math.floor(untilMs))));
  }
}
