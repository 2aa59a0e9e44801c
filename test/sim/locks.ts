// SPDX-License-Identifier: GPL-2.0-only
/**
 * The locks of a simulated host: what its kernel holds and wants (KernelLocks, which outlives the daemon), and the lock
 * service of its daemon (LockService): the real lock engine, the real persister and lock record writer, over a shared disk
 * whose writes take time, fail, and are torn by a power cut.
 *
 * Rule 5, checked here:
 *   a. What is told of a mode that allows writing is in a record on the disk at that moment (in a view of two or more).
 *   b. A record is written only by who owns its chunk.
 *   c. When a holder commits a view, every such lock of its living members is in the records that a reader finds.
 *   d. What a reader finds of a dead node covers everything that it had been told it holds for writing.
 * Rule 3: whom a mode is granted, nobody who serves his locks holds one beside that it does not go with.
 *
 * Rule 10: no lock is waited for in vain (late).
 *
 * Known weakness: one lock a resource and kernel, a handful of resources; demands are random, not those of a file system.
 */
import type { HeldByDead, View, WriteOutcome } from "../../src/cluster/ports.js";
import { LockPersister, PERSIST, type PersistMistake } from "../../src/disk/lock_persister.js";
import {
  type LockRecord,
  type RecordWrite,
  type RecordWriteOutcome,
  readLockArea,
} from "../../src/disk/lock_records.js";
import { chunkCount, HEADER_MEMBER_STATE } from "../../src/disk/lockstate.js";
import { COMMAND, type Command, LockEngine, RESULT } from "../../src/dlm/engine.js";
import { isDownConversion, modeAfterBast, modesCompatible } from "../../src/dlm/modes.js";
import { OUTCOME, Outbox, type Outcome } from "../../src/dlm/outbox.js";
import {
  LockMode,
  MXFS_DISK_LOCK_CHUNK_RECORDS,
  MXFS_LKF_CONVERT,
  MXFS_LKF_NOQUEUE,
  MXFS_LKF_RECLAIM,
  MXFS_LKF_WAITING,
  MXFS_LOCK_ENTRY_SIZE,
  MXFS_NL_LOCKS_MAX,
  MXFS_RES_INODE,
  WireType,
} from "../../src/wire/abi.js";
import { decodeLockEntry, encodeLockEntry, LOCK_ENTRY, type LockEntry } from "../../src/wire/lock_entry.js";
import type { Change } from "./files.js";
import type { Daemon, Host } from "./host.js";
import { RECORD_SIZE, Violation, VOLUME } from "./world.js";

const INODES = 6;
const { NL, CR, CW, PR, PW, EX } = LockMode;
const CAPACITY = { resourceCountMax: 256, lockCountMax: 1024 };
const writes = (mode: number): boolean => (PERSIST.writing & (1 << mode)) !== 0;

export interface KernelLock {
  readonly id: bigint;
  readonly ino: bigint;
  mode: number;
  want: number;
  /** When it began to wait. */
  since: number;
  seq: number;
  noqueue: boolean;
  bast: number;
  /** Operations under it that have not ended. */
  users: number;
  /** What was read under it. */
  cache: readonly Change[] | null;
  /** What was changed under it, as long as it has been EX. */
  changes: Change[];
  /** Some of that may only be in the holder's memory. */
  dirty: boolean;
}

/** What a kernel holds and wants. */
export class KernelLocks {
  readonly #byIno = new Map<bigint, KernelLock>();
  readonly #byId = new Map<bigint, KernelLock>();
  #nextId: bigint;
  /** As of the last dump. */
  epoch = 0n;
  /** From a dump to its VIEW nothing is sent. */
  dumped = true;
  dead = false;

  constructor(readonly host: Host) {
    this.#nextId = BigInt(host.cluster.nextSerial()) << 16n;
    this.wish();
  }

  get held(): readonly KernelLock[] {
    return [...this.#byId.values()].filter((lock) => lock.mode !== NL);
  }

  modeOn(ino: bigint): number {
    return this.#byIno.get(ino)?.mode ?? NL;
  }

  /** A lock that has been waited for, for longer than that. */
  late(ms: number): string | null {
    const { now } = this.host.cluster.time;
    for (const { ino, want, since } of this.#byId.values()) {
      if (want !== NL && now - since > ms) return `${want} on ${ino} for ${now - since} ms`;
    }
    return null;
  }

  /** Now and then somebody on this host wants something. */
  private wish(): void {
    const { time, lockRandom: random } = this.host.cluster;
    time.at(random.int(200, 3000), () => {
      if (this.dead) return;
      if (this.host.serving() && !this.dumped) {
        for (let i = random.int(1, 4); i > 0; i--) {
          const mode = random.pick([CR, PR, PR, PW, CW, EX, EX, EX]) ?? EX;
          this.use(BigInt(random.int(1, INODES)), mode);
        }
        if (random.chance(0.1)) this.evict(BigInt(random.int(1, INODES)));
      }
      this.wish();
    });
  }

  private use(ino: bigint, mode: number): void {
    const known = this.#byIno.get(ino);
    if (known === undefined) {
      const lock: KernelLock = {
        id: ++this.#nextId,
        ino,
        mode: NL,
        want: mode,
        since: this.host.cluster.time.now,
        seq: 1,
        noqueue: false,
        bast: NL,
        users: 0,
        cache: null,
        changes: [],
        dirty: false,
      };
      this.#byIno.set(ino, lock);
      this.#byId.set(lock.id, lock);
      this.say(COMMAND.REQUEST, lock, mode, 0);
      return;
    }
    if (known.want !== NL || known.bast !== NL) return;
    if (isDownConversion(known.mode, mode)) {
      this.host.kernel.files?.work(known);
      return;
    }
    known.since = this.host.cluster.time.now;
    known.want = isDownConversion(mode, known.mode) ? mode : EX;
    known.seq++;
    known.noqueue = true;
    this.say(COMMAND.CONVERT, known, known.want, MXFS_LKF_CONVERT | MXFS_LKF_NOQUEUE);
  }

  /** Nobody has asked for it: the memory is wanted. */
  private evict(ino: bigint): void {
    const lock = this.#byIno.get(ino);
    if (lock === undefined || lock.want !== NL || lock.bast !== NL) return;
    lock.bast = EX;
    this.demoteSoon(lock);
  }

  /** All memory is wanted. */
  evictAll(): void {
    for (const lock of [...this.#byId.values()]) this.evict(lock.ino);
  }

  /** All locks are dropped: the mount goes. */
  unmount(): void {
    for (const lock of [...this.#byId.values()]) this.release(lock);
    this.dead = true;
  }

  receive(type: number, entry: LockEntry): void {
    if (this.dead) return;
    if (type === OUTCOME.BAST ? entry.epoch < this.epoch : entry.epoch !== this.epoch) return;
    const lock = this.#byId.get(entry.lockId);
    if (lock === undefined) {
      if (type !== OUTCOME.DENY) this.send(COMMAND.RELEASE, { ...entry, mode: NL, flags: 0, status: 0 });
      return;
    }
    if (type === OUTCOME.BAST) {
      const overtook =
        lock.want !== NL &&
        !modesCompatible(lock.want, entry.mode) &&
        !isDownConversion(lock.mode, entry.granted);
      if (modesCompatible(lock.mode, entry.mode) && !overtook) return;
      lock.bast = Math.max(lock.bast, entry.mode);
      this.demoteSoon(lock);
    } else if (lock.want !== NL && lock.seq === entry.seq) {
      lock.want = NL;
      lock.noqueue = false;
      if (type === OUTCOME.GRANT) {
        this.granted(lock, entry);
      } else if (lock.mode === NL) {
        this.forget(lock);
      } else {
        lock.bast = EX;
      }
      if (lock.bast !== NL) this.demoteSoon(lock);
    }
  }

  private granted(lock: KernelLock, entry: LockEntry): void {
    const { host } = this;
    lock.mode = entry.mode;
    for (const other of host.cluster.hosts) {
      if (other === host || !other.serving() || !host.serving()) continue;
      for (const beside of other.kernel.locks?.held ?? []) {
        if (beside.ino === lock.ino && !modesCompatible(beside.mode, lock.mode)) {
          host.cluster.violate(
            `rule 3: ${host.name} is granted ${lock.mode} on ${lock.ino} beside ${other.name}'s ${beside.mode}`,
          );
        }
      }
    }
    host.kernel.files?.work(lock);
  }

  private demoteSoon(lock: KernelLock): void {
    const { time, lockRandom: random } = this.host.cluster;
    time.at(random.int(1, 200), () => {
      if (this.dead || this.#byId.get(lock.id) !== lock || lock.bast === NL || lock.want !== NL) return;
      if (this.dumped || this.host.frozen || lock.users > 0) {
        this.demoteSoon(lock);
        return;
      }
      const target = modeAfterBast(lock.mode, lock.bast);
      const { files } = this.host.kernel;
      if (target !== EX && files?.clean(lock, () => this.demoteSoon(lock)) === false) return;
      lock.bast = NL;
      if (target === NL) {
        this.release(lock);
      } else if (target !== lock.mode) {
        const held = lock.mode;
        lock.mode = target;
        files?.lowered(lock, target);
        this.say(COMMAND.CONVERT, lock, target, MXFS_LKF_CONVERT, held);
      }
    });
  }

  private release(lock: KernelLock): void {
    this.forget(lock);
    this.host.kernel.files?.lowered(lock, NL);
    this.say(COMMAND.RELEASE, lock, NL, 0);
  }

  private forget(lock: KernelLock): void {
    this.#byId.delete(lock.id);
    this.#byIno.delete(lock.ino);
  }

  /** Everything is told anew. */
  dump(epoch: bigint): void {
    this.epoch = epoch;
    this.dumped = true;
    for (const lock of this.#byId.values()) {
      const waiting = lock.want !== NL;
      if (waiting && lock.mode === NL && this.host.cluster.filesMistakes.has("lost-waiter")) continue;
      const flags =
        MXFS_LKF_RECLAIM |
        (waiting ? MXFS_LKF_WAITING : 0) |
        (waiting && lock.noqueue ? MXFS_LKF_NOQUEUE : 0) |
        (waiting && lock.mode !== NL ? MXFS_LKF_CONVERT : 0);
      this.say(COMMAND.RECLAIM, lock, waiting ? lock.want : lock.mode, flags);
    }
  }

  private say(command: Command, lock: KernelLock, mode: number, flags: number, granted = lock.mode): void {
    const rest = { offset: 0n, ag: 0, type: MXFS_RES_INODE, status: 0 };
    const { id: lockId, ino, seq } = lock;
    const node = this.host.node;
    this.send(command, {
      volume: VOLUME,
      ino,
      lockId,
      epoch: this.epoch,
      seq,
      mode,
      granted,
      flags,
      node,
      ...rest,
    });
  }

  private send(command: Command, entry: LockEntry): void {
    this.host.daemon?.locks?.submit(command, entry, this.host.node);
  }
}

/** The lock service of one daemon. */
export class LockService {
  readonly engine: LockEngine;
  readonly persister: LockPersister;
  readonly #out = new Outbox();
  #modes = 0;
  #underWay = new Set<{ landed: boolean; pieces: readonly RecordWrite[] }>();

  constructor(
    readonly host: Host,
    readonly daemon: Daemon,
    mistakes: ReadonlySet<PersistMistake>,
  ) {
    this.engine = LockEngine.create(host.node, CAPACITY);
    this.persister = new LockPersister(
      this.engine,
      {
        volume: VOLUME,
        recordSize: RECORD_SIZE,
        writer: host.node,
        writerIncarnation: host.kernel.incarnation,
        persist: "writing",
        mistakes,
      },
      {
        write: (pieces) => this.write(pieces),
        tell: (node, type, entries) => this.tell(node, type, entries, true),
        pause: (ms) => host.cluster.time.sleep(ms),
        log: (_level, text) => host.story(text),
        conflict: () => daemon.core?.recordsRefused(),
      },
    );
  }

  // ---- as LocksPort says ------------------------------------------------------------------------------------

  freeze(view: View): void {
    this.#modes = view.members.length > 1 && this.host.cluster.fence === "scsi" ? PERSIST.writing : 0;
    const nodes = view.members.map((member) => member.node);
    const { host } = this;
    if (host.cluster.filesMistakes.has("two-masters") && host.node !== view.holder && nodes.length > 1) {
      nodes.splice(nodes.indexOf(view.holder), 1);
    }
    this.engine.freezeAndClear(view.epoch, nodes);
    void this.persister.freeze();
  }

  async make(view: View): Promise<WriteOutcome> {
    const { cluster, node } = this.host;
    if (this.#modes === 0) return { kind: "ok" };
    const slot = view.members.find((member) => member.node === node)?.slot ?? -1;
    const header = cluster.disk.header();
    if (header?.epoch !== view.epoch) return { kind: "error", message: "the header is of another epoch" };
    const chunks: number[] = [];
    header.chunkOwners.forEach((owner, chunk) => {
      if (owner === slot + 1) chunks.push(chunk);
    });
    const members = new Map(view.members.map((member) => [member.node, member.incarnation]));
    const outcome = await this.persister.begin(view.epoch, chunks, members);
    return outcome.kind === "void" ? { kind: "error", message: "superseded" } : outcome;
  }

  resume(epoch: bigint): void {
    this.engine.resume(epoch, this.#out);
    this.drain();
    this.persister.resumed();
  }

  // ---- messages ---------------------------------------------------------------------------------------------

  submit(command: Command, entry: LockEntry, from: number): void {
    const result = this.engine.submitEntry(command, entry, from, this.#out);
    if (result === RESULT.CONFLICT) {
      this.host.cluster.violate(`rule 3: ${this.host.name} is told of modes that conflict on ${entry.ino}`);
    }
    if ((this.#modes & (1 << this.engine.gaveUp)) !== 0) this.persister.gave(bytesOf(entry));
    this.drain();
  }

  private drain(): void {
    const told: { node: number; type: Outcome; entries: Uint8Array }[] = [];
    this.#out.drain(MXFS_NL_LOCKS_MAX, (node, type, entries) => {
      told.push({ node, type, entries: entries.slice() });
    });
    for (const { node, type, entries } of told) {
      for (let at = 0; at < entries.length; at += MXFS_LOCK_ENTRY_SIZE) {
        const entry = entries.slice(at, at + MXFS_LOCK_ENTRY_SIZE);
        const kept =
          type === OUTCOME.GRANT && (this.#modes & (1 << (entry[LOCK_ENTRY.mode] as number))) !== 0;
        if (kept) this.persister.grants(entry);
        else this.tell(node, type, entry, false);
      }
    }
  }

  private tell(node: number, type: number, entries: Uint8Array, persisted: boolean): void {
    const { host } = this;
    const { cluster } = host;
    for (let at = 0; at < entries.length; at += MXFS_LOCK_ENTRY_SIZE) {
      const entry = decodeLockEntry(entries, at);
      if (type === OUTCOME.GRANT && persisted) this.checkRecord(entry);
      if (node === host.node) host.kernel.locks?.receive(type, entry);
      else
        cluster.network.post(
          host,
          node,
          (to) => to.host.takeLock(type, entry, host.node),
          cluster.lockRandom,
        );
    }
  }

  /** Rule 5 a. */
  private checkRecord(entry: LockEntry): void {
    const { cluster } = this.host;
    if (!writes(entry.mode)) return;
    // Woken up late: its chunk is another's by now, and nobody obeys it.
    if (!this.host.isRegistered()) return;
    // Released meanwhile: the owner will say that it does not know it.
    if (this.engine.heldMode(bytesOf(entry), 0) !== entry.mode) return;
    const found = cluster.disk.locks.modeOf(entry.node, entry.lockId, entry.epoch);
    if (found !== entry.mode) {
      cluster.violate(
        `rule 5: ${this.host.name} tells ${entry.mode} on ${entry.ino} and the disk has ${found} in its record`,
      );
    }
  }

  // ---- the disk ---------------------------------------------------------------------------------------------

  /** Lands some time later, sector by sector; a power cut meanwhile tears it. */
  private async write(pieces: readonly RecordWrite[]): Promise<RecordWriteOutcome> {
    const { host, daemon } = this;
    const { cluster } = host;
    const { lockRandom: random, time } = cluster;
    // A process that is gone writes nothing more.
    if (!daemon.alive) return await new Promise<never>(() => undefined);
    const write = { landed: false, pieces };
    this.#underWay.add(write);
    await time.sleep(random.chance(0.03) ? random.int(40, 90) : random.int(1, 15));
    this.#underWay.delete(write);
    if (!host.powered || write.landed) return await new Promise<never>(() => undefined);
    let outcome: RecordWriteOutcome = { kind: "ok" };
    if (!cluster.target.mayWrite(host.nexus)) {
      outcome = { kind: "conflict" };
    } else if (host.diskLost || random.chance(0.01)) {
      outcome = { kind: "error", message: "transport error" };
      if (!host.diskLost) this.land(pieces, true);
    } else {
      this.land(pieces, false);
    }
    while (host.frozen) await time.sleep(host.frozenUntil - time.now);
    return daemon.alive ? outcome : await new Promise<never>(() => undefined);
  }

  /** @param torn each sector may have landed, not at all, or in part. */
  private land(pieces: readonly RecordWrite[], torn: boolean): void {
    const { host } = this;
    const { cluster } = host;
    for (const { index, bytes } of pieces) {
      for (let at = 0; at < bytes.length; at += RECORD_SIZE) {
        const place = index + at / RECORD_SIZE;
        this.checkOwner(place);
        const length = torn
          ? cluster.lockRandom.pick([0, RECORD_SIZE, cluster.lockRandom.int(1, RECORD_SIZE - 1)])
          : RECORD_SIZE;
        cluster.disk.locks.put(place, bytes.subarray(at, at + (length ?? 0)));
      }
    }
  }

  /** Rule 5 b. */
  private checkOwner(place: number): void {
    const { host } = this;
    // Who takes over without a header deals anew, and the survivors write on until they are asked to stop.
    if (host.cluster.disk.wasDamaged) return;
    const header = host.cluster.disk.header();
    const owner = (header?.chunkOwners[Math.floor(place / MXFS_DISK_LOCK_CHUNK_RECORDS)] ?? 0) - 1;
    const member = header?.members.find((m) => m.slot === owner && m.state === HEADER_MEMBER_STATE.ACTIVE);
    if (member?.node !== host.node) {
      const name = host.cluster.hostOf(member?.node ?? 0)?.name ?? "nobody";
      host.cluster.violate(`rule 5: ${host.name} writes lock record ${place}, whose chunk is ${name}'s`);
    }
  }

  /** The power is cut: what is under way lands in part. */
  tear(): void {
    for (const write of this.#underWay) {
      write.landed = true;
      if (this.host.cluster.target.mayWrite(this.host.nexus)) this.land(write.pieces, true);
    }
  }
}

function bytesOf(entry: LockEntry): Uint8Array {
  const bytes = new Uint8Array(MXFS_LOCK_ENTRY_SIZE);
  encodeLockEntry(entry, bytes, 0);
  return bytes;
}

/** What a reader finds on the disk now, or null without a header. */
export function readDisk(host: Host): readonly LockRecord[] | null {
  const { disk } = host.cluster;
  const header = disk.header();
  if (header === null) return null;
  if (chunkCount(header.lockRecordCount) === 0) throw new Violation("a lock area without a chunk");
  return readLockArea(disk.locks.bytes, RECORD_SIZE, VOLUME, header.epoch, (chunk) => {
    const slot = (header.chunkOwners[chunk] ?? 0) - 1;
    return header.members.find((m) => m.slot === slot && m.state === HEADER_MEMBER_STATE.ACTIVE) ?? null;
  }).locks;
}

/** Rule 5 c, when a holder commits. */
export function checkCommitted(holder: Host, view: View): void {
  const { cluster } = holder;
  if (cluster.fence === "none" || view.members.length < 2 || cluster.disk.header()?.epoch !== view.epoch)
    return;
  const locks = readDisk(holder) ?? [];
  for (const member of view.members) {
    const host = cluster.hostOf(member.node);
    if (host === undefined || !host.powered || host.kernel.incarnation !== member.incarnation) continue;
    if (host.kernel.locks?.epoch !== view.epoch) continue;
    for (const { id, mode, ino } of host.kernel.locks.held) {
      if (!writes(mode)) continue;
      const record = locks.find((lock) => lock.owner === host.node && lock.lockId === id);
      if (record?.mode !== mode) {
        cluster.violate(
          `rule 5: view ${view.epoch} is committed, and the disk has ${record?.mode ?? NL} for ${host.name}'s ${mode} on ${ino}`,
        );
      }
    }
  }
}

/** Rule 5 d: what was told of dead nodes. */
export function checkDied(reader: Host, held: readonly HeldByDead[], epoch: bigint): void {
  if (reader.cluster.fence === "none") return;
  for (const { node, incarnation, locks } of held) {
    const dead = reader.cluster.hostOf(node);
    const last = dead?.lastWords;
    if (locks === null || last == null || last.incarnation !== incarnation || last.epoch !== epoch) continue;
    for (const { id, mode, ino } of last.locks) {
      if (!writes(mode)) continue;
      const record = locks.find((lock) => lock.lockId === id);
      if (record === undefined || !isDownConversion(record.mode, mode)) {
        reader.cluster.violate(
          `rule 5: ${dead?.name} died with ${mode} on ${ino}, and the records say ${record?.mode ?? NL}`,
        );
      }
    }
  }
}

export const LOCK_FRAMES: readonly number[] = [
  WireType.LOCK_REQUEST,
  WireType.LOCK_CONVERT,
  WireType.LOCK_RELEASE,
  WireType.LOCK_RECLAIM,
];
