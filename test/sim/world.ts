// SPDX-License-Identifier: GPL-2.0-only
/**
 * The simulated world: virtual time, seeded randomness, the shared disk, the storage target's persistent
 * reservations, and the network. Deterministic: one seed, one run.
 *
 * Time moves from event to event; after each event all promises that are ready run (a macrotask turn) before the
 * next is taken, so that a flow of the core never lags behind the clock.
 */
import { decodeLockRecord, type LockRecord } from "../../src/disk/lock_records.js";
import {
  chooseHeader,
  type DiskHeader,
  encodeHeader,
  type LockstateLocation,
  tryDecodeHeader,
} from "../../src/disk/lockstate.js";
import type { HeartbeatRecord, JournalRecord } from "../../src/disk/record.js";
import {
  DiskFormatError,
  decodeHeartbeat,
  decodeJournal,
  encodeHeartbeat,
  encodeJournal,
} from "../../src/disk/record.js";

export const VOLUME = 0x1122334455667788n;
export const VOLUME_UUID = "11223344-5566-4788-9900-aabbccddeeff";
export const RECORD_SIZE = 512;

/** mulberry32. */
export class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = (seed ^ 0x9e3779b9) >>> 0;
  }
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  }
  /** A whole number from min to max, both included. */
  int(min: number, max: number): number {
    return min + Math.floor(this.next() * (max - min + 1));
  }
  chance(probability: number): boolean {
    return this.next() < probability;
  }
  pick<T>(items: readonly T[]): T | undefined {
    return items[this.int(0, items.length - 1)];
  }
}

interface Scheduled {
  at: number;
  serial: number;
  action: () => void;
  cancelled: boolean;
}

/** A virtual-time event queue (binary heap by time, then order of scheduling). */
export class Timeline {
  now = 1_000_000;
  events = 0;
  #heap: Scheduled[] = [];
  #serial = 0;

  at(delayMs: number, action: () => void): Scheduled {
    const item = { at: this.now + Math.max(0, delayMs), serial: ++this.#serial, action, cancelled: false };
    this.#heap.push(item);
    let i = this.#heap.length - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (before(this.#heap[parent] as Scheduled, item)) break;
      this.#heap[i] = this.#heap[parent] as Scheduled;
      i = parent;
    }
    this.#heap[i] = item;
    return item;
  }

  sleep(delayMs: number): Promise<void> {
    return new Promise((resolve) => this.at(delayMs, resolve));
  }

  #pop(): Scheduled | undefined {
    const top = this.#heap[0];
    const last = this.#heap.pop();
    if (top === undefined || last === undefined || this.#heap.length === 0) return top;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= this.#heap.length) break;
      const right = this.#heap[child + 1];
      if (right !== undefined && before(right, this.#heap[child] as Scheduled)) child++;
      if (before(last, this.#heap[child] as Scheduled)) break;
      this.#heap[i] = this.#heap[child] as Scheduled;
      i = child;
    }
    this.#heap[i] = last;
    return top;
  }

  /** Runs events until stop() says so. `after` is called when the promises of an event have settled. */
  async run(stop: () => boolean, after: () => void): Promise<void> {
    while (!stop()) {
      const item = this.#pop();
      if (item === undefined) return;
      if (item.cancelled) continue;
      this.now = item.at;
      this.events++;
      item.action();
      await new Promise<void>((resolve) => setImmediate(resolve));
      after();
    }
  }
}

function before(a: Scheduled, b: Scheduled): boolean {
  return a.at < b.at || (a.at === b.at && a.serial < b.serial);
}

/** The project's safety rules, by number (docs/architecture.md). What a check reports begins with "rule N: ". */
export const RULES: Readonly<Record<number, string>> = {
  1: "one log writer",
  2: "no key, no I/O",
  3: "no lock, no cache",
  4: "clean before let go",
  5: "persist before grant",
  6: "acknowledged means it stays",
  7: "exactly once",
  8: "old epochs are void",
  9: "lease or freeze",
  10: "nothing silent",
};

/** "rule 5: ..." becomes "rule 5 (persist before grant): ...". */
export function named(what: string): string {
  return what.replace(/^rule (\d+):/, (all, rule: string) => {
    const name = RULES[Number(rule)];
    return name === undefined ? all : `rule ${rule} (${name}):`;
  });
}

/** A broken rule: what every check throws or reports. */
export class Violation extends Error {}

/**
 * How a host's nexus outlives its reboot: "kept"; "new", another one each time (QEMU's initiator); "new, by port", the same at a
 * target that keeps one mark for all of a port's nexuses (LIO): set when one registers, gone when any of them loses its registration. Who
 * lacks it is unregistered to the target, and so is another nexus of the port that has the reservation.
 */
export const NEXUS_KINDS = ["kept", "new", "new, by port"] as const;
export type NexusKind = (typeof NEXUS_KINDS)[number];

const portOf = (nexus: string): string => nexus.split(".")[0] ?? "";

/** SPC-4 persistent reservations of type 5. A nexus is named PORT or PORT.NUMBER. */
export class PrTarget {
  readonly keys = new Map<string, bigint>();
  readonly #marked = new Set<string>();
  reservation: { nexus: string; key: bigint } | null = null;
  /** Keys that were preempted at some time. */
  readonly preempted = new Set<bigint>();
  generation = 0;
  constructor(
    readonly lacksAbort: boolean,
    readonly byPort = false,
  ) {}

  mayWrite(nexus: string): boolean {
    return this.reservation === null || this.counts(nexus);
  }
  /** Registered, as the target sees it. */
  private counts(nexus: string): boolean {
    if (!this.keys.has(nexus) || !this.byPort) return this.keys.has(nexus);
    const holder = this.reservation?.nexus ?? "";
    if (holder === nexus) return true;
    return portOf(holder) !== portOf(nexus) && this.#marked.has(portOf(nexus));
  }
  private remove(nexus: string): void {
    this.keys.delete(nexus);
    this.#marked.delete(portOf(nexus));
  }
  register(nexus: string, key: bigint): void {
    if (!this.keys.has(nexus)) this.#marked.add(portOf(nexus));
    if (this.reservation?.nexus === nexus) this.reservation = { nexus, key };
    this.keys.set(nexus, key);
    this.generation++;
  }
  /** REGISTER with reservation key 0. */
  registerAgain(nexus: string, key: bigint): boolean {
    if (this.keys.has(nexus)) return false;
    this.register(nexus, key);
    return true;
  }
  /** A restart of a target that keeps nothing. */
  restart(): void {
    this.keys.clear();
    this.reservation = null;
    this.generation = 0;
  }
  unregister(nexus: string, key: bigint): boolean {
    if (this.keys.get(nexus) !== key) return false;
    this.remove(nexus);
    this.generation++;
    if (this.reservation?.nexus === nexus) this.reservation = null;
    return true;
  }
  reserve(nexus: string, key: bigint): boolean {
    if (this.keys.get(nexus) !== key) return false;
    if (this.reservation !== null) return this.reservation.nexus === nexus;
    this.reservation = { nexus, key };
    return true;
  }
  release(nexus: string, key: bigint): boolean {
    if (this.keys.get(nexus) !== key) return false;
    if (this.reservation?.nexus === nexus) this.reservation = null;
    return true;
  }
  preempt(nexus: string, key: bigint, victim: bigint): boolean {
    if (this.keys.get(nexus) !== key || ![...this.keys.values()].includes(victim)) return false;
    if (this.reservation !== null && !this.counts(nexus)) return false;
    const takes = this.reservation?.key === victim;
    for (const [other, its] of [...this.keys]) if (its === victim && other !== nexus) this.remove(other);
    this.preempted.add(victim);
    this.generation++;
    if (takes) this.reservation = { nexus, key };
    return true;
  }
}

/** The lock area of the shared disk, in sectors; what each decodes to is kept beside it. */
export class LockArea {
  readonly bytes: Uint8Array;
  readonly records: (LockRecord | null)[];
  constructor(readonly count: number) {
    this.bytes = new Uint8Array(count * RECORD_SIZE);
    this.records = new Array<LockRecord | null>(count).fill(null);
  }

  /** A sector, or as much of it as landed. */
  put(index: number, bytes: Uint8Array): void {
    this.bytes.set(bytes, index * RECORD_SIZE);
    const sector = this.bytes.subarray(index * RECORD_SIZE, (index + 1) * RECORD_SIZE);
    try {
      this.records[index] = decodeLockRecord(sector, RECORD_SIZE, VOLUME);
    } catch (error) {
      if (!(error instanceof DiskFormatError)) throw error;
      this.records[index] = null;
    }
  }

  /** What the records of an epoch say about a lock. */
  modeOf(owner: number, lockId: bigint, epoch: bigint): number {
    let latest: LockRecord | null = null;
    for (const record of this.records) {
      if (record?.owner !== owner || record.lockId !== lockId || record.epoch !== epoch) continue;
      if (latest === null || latest.sequence < record.sequence) latest = record;
    }
    return latest?.mode ?? 0;
  }
}

/** The shared disk: lockstate's header copies and heartbeat slots, as bytes through the real codecs. */
export class SharedDisk {
  lockstate = false;
  /** At any time. */
  wasDamaged = false;
  readonly locks = new LockArea(1024);
  #headers: [Uint8Array, Uint8Array] = [new Uint8Array(4096), new Uint8Array(4096)];
  /** What the bytes of each slot decode to: decoded once, when written. */
  #journals: (JournalRecord | null)[] = new Array<JournalRecord | null>(64).fill(null);
  #slots: (HeartbeatRecord | null)[] = new Array<HeartbeatRecord | null>(64).fill(null);
  lastHeaderEpoch = 0n;
  lastHeaderSequence = 0n;
  #chosen: DiskHeader | null = null;

  readonly location: LockstateLocation = {
    ino: 131n,
    generation: 7,
    size: 1048576 + 512 * 1024,
    recordSize: RECORD_SIZE,
    extents: [{ fileOffset: 0, deviceOffset: 1 << 20, length: 1048576 + 512 * 1024 }],
  };

  /** What a reader chooses: decoded once, when a copy changes. */
  header(): DiskHeader | null {
    return this.#chosen;
  }
  #setHeader(header: DiskHeader, bytes: Uint8Array): void {
    this.#headers[Number(header.sequence & 1n) as 0 | 1] = bytes;
    const [a, b] = this.#headers;
    this.#chosen = chooseHeader(tryDecodeHeader(a, VOLUME), tryDecodeHeader(b, VOLUME));
  }
  /** Half of it has landed: that copy holds nothing. */
  tearHeader(header: DiskHeader): void {
    const bytes = encodeHeader(header);
    bytes.fill(0xa5, bytes.length / 2);
    this.#setHeader(header, bytes);
    const other = this.header();
    if (other === null && header.sequence > 1n) {
      throw new Violation(`rule 8: header ${header.sequence} was written over the only good copy`);
    }
  }
  /** Half of it has landed. */
  tearHeartbeat(slot: number): void {
    this.#slots[slot] = null;
  }
  tearJournal(slot: number): void {
    this.#journals[slot] = null;
  }
  writeHeader(header: DiskHeader): void {
    // The same one again is a repeated write of which nobody knew whether it had landed.
    const again = header.epoch === this.lastHeaderEpoch && header.sequence === this.lastHeaderSequence;
    if (header.epoch <= this.lastHeaderEpoch && !again) {
      throw new Violation(`rule 8: header epoch ${header.epoch} written after ${this.lastHeaderEpoch}`);
    }
    this.lastHeaderEpoch = header.epoch;
    this.lastHeaderSequence = header.sequence;
    this.#setHeader(header, encodeHeader(header));
    if (this.header()?.sequence !== header.sequence) {
      throw new Violation(`rule 8: header sequence ${header.sequence} written below the other copy's`);
    }
  }
  /** Both copies of the header are overwritten with garbage, and all heartbeats. */
  damage(): void {
    this.wasDamaged = true;
    this.#headers = [new Uint8Array(4096).fill(0x41), new Uint8Array(4096).fill(0x42)];
    this.#chosen = null;
    this.#slots = this.#slots.map(() => null);
  }
  /** What is wrong with the copies of the header, those that were never written apart. */
  headerProblems(): string[] {
    return this.#headers
      .map((bytes) => tryDecodeHeader(bytes, VOLUME))
      .filter((copy) => copy instanceof DiskFormatError)
      .filter((problem) => problem.code !== "EMPTY")
      .map((problem) => problem.message);
  }
  journals(): (JournalRecord | null)[] {
    return [...this.#journals];
  }
  writeJournal(slot: number, record: JournalRecord): void {
    this.#journals[slot] = decodeJournal(encodeJournal(record, RECORD_SIZE), RECORD_SIZE, VOLUME);
  }
  heartbeats(): (HeartbeatRecord | null)[] {
    return [...this.#slots];
  }
  writeHeartbeat(slot: number, record: HeartbeatRecord): void {
    this.#slots[slot] = decodeHeartbeat(encodeHeartbeat(record, RECORD_SIZE), RECORD_SIZE, VOLUME);
  }
  clearHeartbeat(slot: number): void {
    this.#slots[slot] = null;
  }
}
