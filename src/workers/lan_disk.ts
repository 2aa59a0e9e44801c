// SPDX-License-Identifier: GPL-2.0-only
//
// The "disk" of a lock service without a mount: header and heartbeats as discovery tells them.
//
// A lock service touches nothing on the device, so it has neither reservation nor lockstate. What the cluster core
// wants to read there is made from the signed announcements of the others: who is the coordinator, who is alive. The
// cluster key is derived from the XFS UUID, so who can read the disk can join.
//
// Known weakness: without the disk as arbiter, a split network leaves a coordinator on each side, and both grant.
// That is why a mounted volume never works this way.

import { createHash } from "node:crypto";
import { bootTimeMs } from "../../native/index.js";
import type {
  ClusterEvents,
  Discovered,
  DiskPort,
  HeaderOutcome,
  HeartbeatContents,
  HeartbeatsOutcome,
  JournalsOutcome,
  LocateOutcome,
  LockAreaOutcome,
  WriteOutcome,
} from "../cluster/ports.js";
import {
  type DiskHeader,
  HEADER_MEMBER_STATE,
  type LockstateLocation,
  lockstateSize,
} from "../disk/lockstate.js";
import type { HeartbeatRecord } from "../disk/record.js";
import {
  MXFS_DISK_LOCK_CHUNK_COUNT_MAX,
  MXFS_DISK_LOCK_RECORD_COUNT_DEFAULT,
  MXFS_DISK_RECORD_SIZE_MIN,
  MXFS_NODE_COUNT_MAX,
  Role,
} from "../wire/abi.js";

/** Lock services are kept apart from the mounted volume of the same XFS. */
const SERVICE_MARK = 0x6c6f636b73707663n;

export function serviceVolume(volume: bigint): bigint {
  return volume ^ SERVICE_MARK;
}

export function serviceKey(volumeUuid: string): Uint8Array {
  return new Uint8Array(createHash("sha256").update(`mxfs lock service ${volumeUuid}`).digest());
}

interface Heard {
  readonly packet: Discovered;
  readonly packets: bigint;
  readonly atMs: number;
}

export interface LanDiskOptions {
  readonly volume: bigint;
  readonly volumeUuid: string;
  readonly self: number;
  readonly heartbeatMs: number;
  readonly nodeTimeoutMs: number;
}

export class LanDisk implements DiskPort {
  readonly volume: bigint;
  readonly volumeUuid: string;
  readonly #options: LanDiskOptions;
  readonly #heard = new Map<number, Heard>();
  readonly #location: LockstateLocation;
  #own: DiskHeader | null = null;
  #timer: NodeJS.Timeout | null = null;
  /** Set before the core starts. */
  events: Pick<ClusterEvents, "heartbeatWritten" | "heartbeatsRead"> | null = null;

  constructor(options: LanDiskOptions) {
    this.#options = options;
    this.volume = options.volume;
    this.volumeUuid = options.volumeUuid;
    const size = lockstateSize(MXFS_DISK_RECORD_SIZE_MIN, MXFS_DISK_LOCK_RECORD_COUNT_DEFAULT);
    this.#location = {
      ino: 1n,
      generation: 1,
      size,
      recordSize: MXFS_DISK_RECORD_SIZE_MIN,
      extents: [{ fileOffset: 0, deviceOffset: 0, length: size }],
    };
  }

  /** An announcement came. */
  note(packet: Discovered): void {
    const before = this.#heard.get(packet.node);
    if (before === undefined && this.#heard.size >= MXFS_NODE_COUNT_MAX) {
      return;
    }
    this.#heard.set(packet.node, { packet, packets: (before?.packets ?? 0n) + 1n, atMs: bootTimeMs() });
  }

  locateLockstate(): Promise<LocateOutcome> {
    return Promise.resolve({ kind: "found", location: this.#location });
  }

  otherVolumeOnLun(): Promise<string | null> {
    return Promise.resolve(null);
  }

  readHeader(): Promise<HeaderOutcome> {
    const { self, nodeTimeoutMs } = this.#options;
    const now = bootTimeMs();
    const holders = Array.from(this.#heard.values()).filter(
      (heard) => heard.packet.role === Role.HOLDER && now - heard.atMs < nodeTimeoutMs,
    );
    holders.sort((a, b) => a.packet.node - b.packet.node);
    const holder = holders[0]?.packet;
    if (this.#own !== null && this.#own.holder === self) {
      return Promise.resolve({ kind: "found", header: this.#own, problems: [] });
    }
    if (holder === undefined) {
      return Promise.resolve({ kind: "none", problems: [] });
    }
    const { node, incarnation, epoch } = holder;
    return Promise.resolve({
      kind: "found",
      problems: [],
      header: {
        volume: this.volume,
        epoch,
        sequence: epoch,
        volumeUuid: this.volumeUuid,
        ino: this.#location.ino,
        generation: this.#location.generation,
        recordSize: this.#location.recordSize,
        lockRecordCount: MXFS_DISK_LOCK_RECORD_COUNT_DEFAULT,
        holder: node,
        holderIncarnation: incarnation,
        clusterKey: serviceKey(this.volumeUuid),
        members: [{ node, incarnation, slot: 0, state: HEADER_MEMBER_STATE.ACTIVE }],
        extents: this.#location.extents,
        chunkOwners: new Uint8Array(MXFS_DISK_LOCK_CHUNK_COUNT_MAX),
      },
    });
  }

  writeHeader(_location: LockstateLocation, header: DiskHeader): Promise<WriteOutcome> {
    this.#own = header;
    return Promise.resolve({ kind: "ok" });
  }

  readHeartbeats(): Promise<HeartbeatsOutcome> {
    return Promise.resolve({ kind: "ok", records: this.#records() });
  }

  /** A lock service has no XFS, so no journal. */
  readJournals(): Promise<JournalsOutcome> {
    return Promise.resolve({ kind: "ok", records: [] });
  }

  readLockArea(): Promise<LockAreaOutcome> {
    return Promise.resolve({ kind: "error", message: "a lock service without a mount has no lock records" });
  }

  writeJournal(): Promise<WriteOutcome> {
    return Promise.resolve({ kind: "ok" });
  }

  setHeartbeat(_location: LockstateLocation, _slot: number, _contents: HeartbeatContents): void {
    const beat = (): void => {
      const now = bootTimeMs();
      this.events?.heartbeatWritten(now);
      this.events?.heartbeatsRead(this.#records(), now);
    };
    this.#timer ??= setInterval(beat, this.#options.heartbeatMs);
    setImmediate(beat);
  }

  stopHeartbeat(): Promise<void> {
    if (this.#timer !== null) {
      clearInterval(this.#timer);
      this.#timer = null;
    }
    return Promise.resolve();
  }

  /** The coordinator first: its slot in the header above is 0. */
  #records(): (HeartbeatRecord | null)[] {
    const records = Array.from(this.#heard.values(), ({ packet, packets }) => ({
      volume: this.volume,
      epoch: packet.epoch,
      sequence: packets,
      node: packet.node,
      incarnation: packet.incarnation,
      uuid: "00000000-0000-0000-0000-000000000000",
      role: packet.role,
      port: packet.port,
      address: packet.address,
      unreachableSlots: 0n,
      hostName: "",
    }));
    return records.sort((a, b) => Number(b.role === Role.HOLDER) - Number(a.role === Role.HOLDER));
  }
}
