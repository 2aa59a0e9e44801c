// SPDX-License-Identifier: GPL-2.0-only
/**
 * Files in the simulation: the holder's XFS with its log, and the operations by which nodes change and read a few objects
 * under the INODE locks of locks.ts.
 *
 * An XFS is its log: a list of changes, of which a prefix is on the disk (Volume.disk). A force takes time and is shared
 * by all who wait; a power cut leaves any part of what was under way; who mounts begins with what the disk has. An object is
 * the history of changes on it, its length is its i_version.
 *
 * Two ways of answering (Way): "forced", the holder forces its log before it answers a member; "kept", it answers as soon as
 * it has executed, and the member keeps the change until the holder reports it committed, sends it to the next holder again
 * otherwise, and asks for the commit at fsync and before it gives EX up. Changes of the holder itself are forced at fsync
 * and before it gives EX up; in a view of one by the lock dump that ends it.
 *
 * Checked here, by the numbers of the project's safety rules:
 *   rule 3   what is served under a lock is what the holder has; a change is executed while its node has EX and nobody else
 *            holds anything; a view of a file that its lock protects is never out of date
 *   rule 4   at the time EX goes, all that was done under it is on the disk; nothing that another node has seen is lost
 *   rule 6   answered: on the disk, or kept by who asked while it lives; fsynced: on the disk; whoever leaves in good order
 *            leaves nothing behind
 *   rule 7   no change is in a history twice, and one node's changes on one object are in order and without gaps
 *   rule 10  every operation ends, done or refused, with the truth
 *
 * Known weakness: no data apart from the log (a write is a change of the log), no names beside the objects, one object an
 * operation, no covers. Messages are references, not bytes. A log write that was under way when its node was fenced lands
 * wholly or not at all.
 */
import { LockMode, Role } from "../../src/wire/abi.js";
import type { Cluster } from "./cluster.js";
import type { Host, Kernel } from "./host.js";
import type { KernelLock } from "./locks.js";

export type Way = "forced" | "kept";

/** Mistakes that tests plant in the simulated kernels, to prove that the checks bite. */
export type FilesMistake =
  /** EX goes, and what was done under it is only in the holder's memory. */
  | "release-without-force"
  /** The lock dump that ends a view of one does not force the log. */
  | "solo-dump-without-force"
  /** In a view of one EX goes before what a dead holder has lost is done again. */
  | "solo-release-before-redo"
  /** A dead node's locks pass on, and what it has done is only in the holder's memory. */
  | "dead-without-force"
  /** Forced way: the answer goes out before the force. */
  | "answer-unforced"
  /** Kept way: dropped at the answer. */
  | "not-kept"
  /** Kept way: a committed number also drops what this holder has not answered. */
  | "committed-by-another"
  /** fsync is answered without a force. */
  | "fsync-unforced"
  /** A resent change is executed, done or not. */
  | "resend-executed-again"
  /** A later incarnation of the node that was asked counts as the one that was asked. */
  | "holder-by-node"
  /** A holder keeps no replies. */
  | "replies-forgotten"
  /** Changes of one object are resent without waiting for the one before. */
  | "resend-at-once"
  /** What a node asked for is executed after it was declared dead. */
  | "execute-for-the-dead"
  /** What was read under a lock is served under the next one, too. */
  | "cache-outlives-lock"
  /** Unanswered operations are not sent again. */
  | "no-resend"
  /** A lock dump does not tell what is waited for. */
  | "lost-waiter"
  /** One node works out masters from another list. */
  | "two-masters";

const { NL, PR, EX } = LockMode;
/** An answer "not now" is obeyed after this time. */
const RETRY_MS = 200;
/** In the quiet an unmount does not wait as long as this for what is under way. */
const UNMOUNT_MAX_MS = 60_000;
/** In the quiet nothing takes as long as this. */
export const PATIENCE_MS = 45_000;
/** A commit of everything. */
const ALL = 0n;
/** Of one mount: a bug of the simulation rather than load. */
const CALLS_MAX = 256;

type Kind = "create" | "append" | "unlink";

/** One change of one object, asked for once. */
export interface Change {
  readonly serial: number;
  readonly by: KernelFiles;
  readonly ino: bigint;
  readonly kind: Kind;
  /** What the same mount had last done to that object under the same lock. */
  readonly before: Change | null;
  /** Its caller has been told that it is done. */
  acked: boolean;
  /** Why it must never be lost, whoever dies; empty: it may. */
  promise: string;
}

type History = readonly Change[];

function exists(history: History): boolean {
  const last = history.at(-1);
  return last !== undefined && last.kind !== "unlink";
}

/** The shared disk's part: what a log replay finds. */
export class Volume {
  readonly disk: Change[] = [];
  readonly #onDisk = new Set<Change>();
  /** The last that was mounted. */
  mounted: Xfs | null = null;
  changes = 0;
  replayed = 0;
  /** Answered, lost with a holder, and kept by who asked. */
  saved = 0;
  /** What is to happen while an operation is under way on that host: a fault. */
  #victim: { readonly host: Host; readonly action: () => void } | null = null;
  #moment: { readonly host: Host; readonly action: () => void; left: number } | null = null;

  constructor(readonly cluster: Cluster) {}

  has(change: Change): boolean {
    return this.#onDisk.has(change);
  }

  /** `action` comes in the middle of an operation on that holder, or after `atMostMs`. */
  inTheMiddle(host: Host, atMostMs: number, action: () => void): void {
    const moment = { host, action, left: this.cluster.fileRandom.int(1, 6) };
    this.#moment = moment;
    this.cluster.time.at(atMostMs, () => {
      if (this.#moment !== moment) return;
      this.#moment = null;
      action();
    });
  }

  /** The next operation of that host hangs on the holder, and the host dies: `action`. */
  diesWaiting(host: Host, atMostMs: number, action: () => void): void {
    const victim = { host, action };
    this.#victim = victim;
    this.cluster.time.at(atMostMs, () => {
      if (this.#victim !== victim) return;
      this.#victim = null;
      action();
    });
  }

  /** Is this the operation that hangs? */
  hangs(host: Host): boolean {
    const victim = this.#victim;
    if (victim?.host !== host) return false;
    this.#victim = null;
    this.cluster.time.at(1, victim.action);
    return true;
  }

  /** A step of an operation on that host. */
  step(host: Host): void {
    const moment = this.#moment;
    if (moment?.host !== host || --moment.left > 0) return;
    this.#moment = null;
    this.cluster.time.at(this.cluster.fileRandom.int(0, 8), moment.action);
  }

  mount(host: Host): Xfs {
    const before = this.mounted;
    this.mounted = new Xfs(this, host, [...this.disk]);
    for (const change of before?.log.slice(this.disk.length) ?? []) this.checkLost(change, before as Xfs);
    return this.mounted;
  }

  /** A piece of a log is on the disk. */
  land(xfs: Xfs, end: number): void {
    if (this.mounted !== xfs) {
      this.cluster.violate(`rule 1: ${xfs.host.name} writes to the log after another node has replayed it`);
      return;
    }
    for (let i = this.disk.length; i < end; i++) {
      const change = xfs.log[i] as Change;
      this.disk.push(change);
      this.#onDisk.add(change);
    }
  }

  private checkLost(change: Change, before: Xfs): void {
    const what = `the change ${change.serial} of ${change.ino} by ${change.by.host.name}`;
    if (change.promise !== "") {
      this.cluster.violate(`rule ${change.promise}: ${what} is lost with ${before.host.name}'s log`);
    } else if (change.acked && change.by.keeps(change)) {
      this.saved++;
    } else if (change.acked && change.by.lives() && change.by.host !== before.host) {
      this.cluster.violate(
        `rule 6: ${what} was answered and is lost with ${before.host.name}, though its node lives`,
      );
    }
  }
}

/** A mounted XFS: gone with its kernel. */
export class Xfs {
  readonly #histories = new Map<bigint, Change[]>();
  readonly #places = new Map<Change, number>();
  /** The write that is under way ends here. */
  #writing = 0;
  #write: Promise<void> | null = null;
  dead = false;

  constructor(
    readonly volume: Volume,
    readonly host: Host,
    readonly log: Change[],
  ) {
    log.forEach((change, place) => {
      this.note(change, place);
    });
    this.#writing = log.length;
  }

  private note(change: Change, place: number): void {
    this.#places.set(change, place);
    const history = this.#histories.get(change.ino);
    if (history === undefined) this.#histories.set(change.ino, [change]);
    else history.push(change);
  }

  history(ino: bigint): History {
    return this.#histories.get(ino) ?? [];
  }
  /** Where it is in the log, or undefined. */
  place(change: Change): number | undefined {
    return this.#places.get(change);
  }
  /** So much of the log is on the disk, or was when this XFS was cut off. */
  get durable(): number {
    return this.volume.mounted === this ? this.volume.disk.length : 0;
  }

  execute(change: Change): void {
    const { cluster } = this.volume;
    const { by, ino } = change;
    const what = `${this.host.name} executes change ${change.serial} of ${ino} for ${by.host.name}`;
    if (this.#places.has(change)) cluster.violate(`rule 7: ${what} twice`);
    const history = this.history(ino);
    if (history.some((other) => other.by === by && other.serial > change.serial)) {
      cluster.violate(`rule 7: ${what} after a later one`);
    }
    if (change.before !== null && !this.#places.has(change.before)) {
      cluster.violate(`rule 7: ${what} without ${change.before.serial} before it`);
    }
    const own = by.host.serving() && by.lives() ? (by.host.kernel.locks?.modeOn(ino) ?? NL) : EX;
    if (own !== EX) cluster.violate(`rule 3: ${what}, which holds ${own}`);
    for (const other of cluster.hosts) {
      if (other === by.host && other.kernel.files === by) continue;
      const held = other.serving() ? (other.kernel.locks?.modeOn(ino) ?? NL) : NL;
      if (held > NL) cluster.violate(`rule 3: ${what} while ${other.name} holds ${held}`);
    }
    this.note(change, this.log.length);
    this.log.push(change);
    this.volume.changes++;
    this.volume.step(this.host);
  }

  /** Resolves when all that is in the log now is on the disk; false: that can never be. */
  async force(): Promise<boolean> {
    const end = this.log.length;
    while (!this.dead && this.durable < end) {
      this.#write ??= this.write().finally(() => {
        this.#write = null;
      });
      await this.#write;
    }
    return !this.dead;
  }

  private async write(): Promise<void> {
    const { cluster } = this.volume;
    const { host } = this;
    this.#writing = this.log.length;
    await cluster.time.sleep(cluster.fileRandom.int(1, 25));
    while (host.powered && (host.frozen || host.diskLost)) {
      await cluster.time.sleep(Math.max(host.frozenUntil, host.diskLostUntil) - cluster.time.now);
    }
    if (this.dead) return;
    if (!cluster.target.mayWrite(host.nexus)) this.dead = true;
    else this.volume.land(this, this.#writing);
  }

  /** Unmounted: everything is written, if the target takes it. */
  unmount(): void {
    if (!this.dead && this.volume.cluster.target.mayWrite(this.host.nexus)) {
      this.volume.land(this, this.log.length);
    }
    this.dead = true;
  }

  /** The power is cut: some of what was under way has landed. */
  cut(): void {
    const { cluster } = this.volume;
    if (!this.dead && this.#write !== null && cluster.target.mayWrite(this.host.nexus)) {
      const from = this.volume.disk.length;
      this.volume.land(this, Math.max(from, cluster.fileRandom.int(from, Math.max(from, this.#writing))));
    }
    this.dead = true;
  }
}

interface Call {
  readonly seq: number;
  readonly kind: "change" | "read" | "commit";
  readonly ino: bigint;
  readonly change: Change | null;
  readonly begunAt: number;
  /** Length of the history behind it, as the first answer said; 0: not answered yet. */
  version: number;
  /** The caller has its answer; a change that stays is kept. */
  acked: boolean;
  /** Answered since the last "send again". */
  answered: boolean;
  /** Under way since the last "send again". */
  sent: boolean;
  /** Whoever got it first: another one knows nothing of what that one has done with it. */
  first: Xfs | null;
  /** Executed by this node's own XFS. */
  local: boolean;
  readonly end: (history: History | null) => void;
}

interface Request {
  readonly from: KernelFiles;
  readonly call: Call;
  readonly version: number;
  readonly epoch: bigint;
  /** All below have been answered. */
  readonly acked: number;
}

interface Reply {
  readonly retry: boolean;
  readonly version: number;
  /** Every change of this mount up to this number that has been answered is on the disk. */
  readonly committed: number;
  readonly history: History;
}

/** What a holder knows of one mount's requests. */
class Served {
  dead = false;
  acked = 0;
  /** By number: null while it is under way. */
  readonly known = new Map<number, Omit<Reply, "committed"> | null>();
  /** Changes that may not be on the disk yet. */
  readonly executed = new Map<number, Change>();
}

/** The files' side of one mount's kernel: what it asks for, and, on the holder, what it does for others. */
export class KernelFiles {
  xfs: Xfs | null = null;
  readonly incarnation: number;
  #over = false;
  #seq = 0;
  /** Unanswered, and kept ones, by number. */
  readonly #calls = new Map<number, Call>();
  readonly #served = new Map<KernelFiles, Served>();
  readonly #dead = new Set<string>();
  /** Done in a view of one under locks that have been given up since. */
  #soloChanges: Change[] = [];
  /** Only by mistake: what was read under locks that are gone. */
  readonly #stale = new Map<bigint, History>();
  #retryAt = 0;

  constructor(
    readonly host: Host,
    readonly kernel: Kernel,
    readonly way: Way,
  ) {
    this.incarnation = kernel.incarnation;
  }

  private get cluster(): Cluster {
    return this.host.cluster;
  }
  /** Seldom where much is to be in doubt when a holder dies. */
  private get fsyncs(): number {
    return this.way === "kept" ? 0.08 : 0.2;
  }
  private mistaken(name: FilesMistake): boolean {
    return this.cluster.filesMistakes.has(name);
  }

  /** Its processes run, and nobody has thrown it out. */
  lives(): boolean {
    const { host, kernel } = this;
    return !this.#over && host.powered && host.kernel === kernel && !kernel.fenced && host.isRegistered();
  }
  keeps(change: Change): boolean {
    for (const call of this.#calls.values()) if (call.change === change) return true;
    return false;
  }
  private keepsAny(): boolean {
    for (const call of this.#calls.values()) if (call.acked) return true;
    return false;
  }
  /** May anything be begun or executed here? */
  private passes(): boolean {
    return !this.#over && this.host.kernel === this.kernel && this.host.serving() && this.kernel.gateOpen;
  }

  // ---- what processes do --------------------------------------------------------------------------------------

  /** Somebody uses a lock that is there. */
  work(lock: KernelLock): void {
    const { fileRandom: random, calm } = this.cluster;
    if (this.kernel.state !== "running" || !this.passes() || lock.users > 0) return;
    if (lock.bast !== NL || lock.want !== NL || lock.mode < PR || !random.chance(calm ? 0.1 : 0.8)) return;
    lock.users++;
    void this.use(lock).finally(() => {
      lock.users--;
    });
  }

  private async use(lock: KernelLock): Promise<void> {
    const { fileRandom: random } = this.cluster;
    lock.cache ??= this.#stale.get(lock.ino) ?? null;
    if (lock.cache === null) {
      const read = await this.ask("read", lock.ino, null);
      if (read === null) return;
      lock.cache = read;
    }
    if (!this.passes()) return;
    this.observe(lock);
    for (let i = lock.mode === EX ? random.int(0, 5) : 0; i > 0 && this.passes(); i--) {
      if (!(await this.change(lock))) return;
    }
    if (lock.changes.length > 0 && this.passes() && random.chance(this.fsyncs)) await this.fsync(lock);
  }

  private async change(lock: KernelLock): Promise<boolean> {
    const { cluster } = this;
    const known = lock.cache as History;
    const kind = !exists(known) ? "create" : cluster.fileRandom.chance(0.3) ? "unlink" : "append";
    const { ino } = lock;
    const before = lock.changes.at(-1) ?? null;
    const serial = cluster.nextSerial();
    const change: Change = { serial, by: this, ino, kind, before, acked: false, promise: "" };
    lock.changes.push(change);
    lock.dirty = true;
    const history = await this.ask("change", ino, change);
    if (history === null) return false;
    if (history.length !== known.length + 1) {
      cluster.violate(
        `rule 3: ${this.host.name}'s change ${serial} of ${ino} is number ${history.length}, it knew of ${known.length}`,
      );
    }
    lock.cache = [...known, change];
    return true;
  }

  private async fsync(lock: KernelLock): Promise<void> {
    const changes = [...lock.changes];
    if ((await this.ask("commit", lock.ino, null)) === null) return;
    for (const change of changes) {
      if (!this.cluster.volume.has(change)) {
        this.cluster.violate(
          `rule 6: ${this.host.name}'s fsync of ${lock.ino} is done and change ${change.serial} is not on the disk`,
        );
      }
      change.promise = "6 (fsynced)";
    }
  }

  /** What a process sees. */
  private observe(lock: KernelLock): void {
    const { cluster, host } = this;
    const seen = lock.cache as History;
    const now = cluster.volume.mounted;
    if (now !== null && !now.dead && now.host.writesLog()) {
      const truth = now.history(lock.ino);
      const shared = Math.min(truth.length, seen.length);
      // Longer: what a new holder has not been sent again yet.
      if (seen.length < truth.length || seen[shared - 1] !== truth[shared - 1]) {
        cluster.violate(
          `rule 3: ${host.name} serves ${lock.ino} at ${seen.length} changes, ${now.host.name} has ${truth.length}`,
        );
      }
    }
    let i = seen.length - 1;
    while (i >= 0 && seen[i]?.by === this) i--;
    for (; i >= 0 && (seen[i] as Change).promise === ""; i--) {
      (seen[i] as Change).promise = `4 (seen by ${host.name})`;
    }
  }

  // ---- locks --------------------------------------------------------------------------------------------------

  /** Before EX goes: true when it may. Otherwise `again` is called later. */
  clean(lock: KernelLock, again: () => void): boolean {
    if (!lock.dirty || this.mistaken("release-without-force")) return true;
    // In a view of one the next dump forces the log; what is still to be done again is not in it yet.
    if (this.kernel.solo && (!this.keepsAny() || this.mistaken("solo-release-before-redo"))) return true;
    lock.users++;
    void this.ask("commit", lock.ino, null).then((done) => {
      lock.users--;
      if (done !== null) lock.dirty = false;
      again();
    });
    return false;
  }

  /** A lock goes below EX, or altogether. */
  lowered(lock: KernelLock, mode: number): void {
    if (mode < PR) {
      if (lock.cache !== null && this.mistaken("cache-outlives-lock")) this.#stale.set(lock.ino, lock.cache);
      lock.cache = null;
    }
    if (mode === EX || this.#over) return;
    const { changes } = lock;
    lock.changes = [];
    lock.dirty = false;
    if (this.kernel.solo) this.#soloChanges.push(...changes);
    else this.checkClean(changes, `gives EX on ${lock.ino} up`);
  }

  private checkClean(changes: readonly Change[], when: string): void {
    for (const change of changes) {
      if (this.cluster.volume.has(change)) continue;
      this.cluster.violate(
        `rule 4: ${this.host.name} ${when} and its change ${change.serial} is not on the disk`,
      );
    }
  }

  /** Before a lock dump: what a dead node was answered, and nobody keeps any more, is made durable, since its locks pass on. */
  async settleGone(): Promise<void> {
    const { xfs } = this;
    if (xfs === null || this.#over || this.mistaken("dead-without-force")) return;
    for (const served of this.#served.values()) {
      if (served.dead && served.executed.size > 0 && !(await xfs.force())) return;
    }
  }

  /** Before a lock dump is done: nobody knew of the locks of a view of one, nor that they were given up. */
  async endSolo(): Promise<void> {
    while (this.#soloChanges.length > 0 && this.xfs !== null && !this.#over) {
      const changes = this.#soloChanges;
      this.#soloChanges = [];
      if (!this.mistaken("solo-dump-without-force") && !(await this.xfs.force())) return;
      this.checkClean(changes, "ends its view of one");
    }
  }

  // ---- calls --------------------------------------------------------------------------------------------------

  /** Resolves with the history behind it, or null: EIO. */
  private ask(kind: Call["kind"], ino: bigint, change: Change | null): Promise<History | null> {
    if (this.#over) return Promise.resolve(null);
    if (this.#calls.size >= CALLS_MAX) throw new Error("simulation: too many calls of one mount");
    return new Promise((resolve) => {
      const call: Call = {
        seq: ++this.#seq,
        kind,
        ino,
        change,
        begunAt: this.cluster.time.now,
        version: 0,
        acked: false,
        answered: false,
        sent: false,
        first: null,
        local: false,
        end: resolve,
      };
      this.#calls.set(call.seq, call);
      this.pump();
    });
  }

  /** Sends what has nothing unanswered on the same object before it. */
  private pump(): void {
    const { kernel, host } = this;
    if (this.#over || kernel.holder === 0) return;
    const busy = new Set<bigint>();
    let acked = 0;
    for (const call of this.#calls.values()) {
      if (call.answered) continue;
      if (!call.acked && acked === 0) acked = call.seq;
      const behind = busy.has(call.ino) || (call.ino === ALL && busy.size > 0);
      const waits = behind && !this.mistaken("resend-at-once");
      busy.add(call.ino);
      if (call.sent || waits) continue;
      call.sent = true;
      const { version } = call;
      const request = { from: this, call, version, epoch: kernel.epoch, acked: acked || call.seq };
      if (kernel.holder === host.node) {
        call.local = true;
        this.serve(request, (reply) => this.answered(call, host, reply));
      } else {
        call.local = false;
        this.cluster.network.post(
          host,
          kernel.holder,
          (to) => {
            const { files } = to.host.kernel;
            files?.serve(request, (reply) => {
              this.cluster.network.post(
                to.host,
                host.node,
                () => this.answered(call, to.host, reply),
                this.cluster.fileRandom,
              );
            });
          },
          this.cluster.fileRandom,
        );
      }
    }
  }

  private retrySoon(): void {
    const { time } = this.cluster;
    if (this.#retryAt > time.now) return;
    this.#retryAt = time.now + RETRY_MS;
    const again = (): void => {
      if (this.host.frozen) time.at(this.host.frozenUntil - time.now, again);
      else this.pump();
    };
    time.at(RETRY_MS, again);
  }

  private answered(call: Call, from: Host, reply: Reply): void {
    if (this.#over || this.host.kernel !== this.kernel || from.node !== this.kernel.holder) return;
    if (!this.#calls.has(call.seq) || call.answered) return;
    if (reply.retry) {
      call.sent = false;
      this.retrySoon();
      return;
    }
    call.answered = true;
    const first = !call.acked;
    call.acked = true;
    if (first) call.version = reply.version;
    const keep = call.kind === "change" && this.way === "kept" && !call.local && !this.mistaken("not-kept");
    if (!keep) this.#calls.delete(call.seq);
    if (first && call.change !== null) this.acknowledged(call.change, keep || call.local);
    this.dropCommitted(reply.committed);
    if (first) call.end(reply.history);
    this.pump();
  }

  private acknowledged(change: Change, mayBeLost: boolean): void {
    change.acked = true;
    if (mayBeLost) return;
    if (!this.cluster.volume.has(change)) {
      this.cluster.violate(
        `rule 6: ${this.host.name}'s change ${change.serial} is answered, and neither on the disk nor kept`,
      );
    }
    change.promise = "6 (answered)";
  }

  private dropCommitted(committed: number): void {
    for (const call of this.#calls.values()) {
      if (call.seq > committed || !call.acked) continue;
      if (!call.answered && !this.mistaken("committed-by-another")) continue;
      this.#calls.delete(call.seq);
      if (call.change !== null && !this.cluster.volume.has(call.change)) {
        this.cluster.violate(
          `rule 6: ${this.host.name} stops keeping change ${call.change.serial}, which is not on the disk`,
        );
      }
    }
  }

  /** VIEW or a new daemon says: what is not answered may be lost; what is kept goes to whoever is the holder now. */
  resend(): void {
    if (this.mistaken("no-resend")) return;
    for (const call of this.#calls.values()) {
      call.sent = false;
      call.answered = false;
    }
    this.pump();
  }

  /** The first call that has waited for longer. */
  late(ms: number): string | null {
    for (const call of this.#calls.values()) {
      const waits = this.cluster.time.now - call.begunAt;
      if (!call.acked && waits > ms) return `${call.kind} ${call.seq} of ${call.ino} for ${waits} ms`;
    }
    return null;
  }

  private unanswered(): boolean {
    for (const call of this.#calls.values()) if (!call.answered) return true;
    return false;
  }

  // ---- the holder's executor ----------------------------------------------------------------------------------

  private serve(request: Request, answer: (reply: Reply) => void): void {
    const { time, fileRandom: random } = this.cluster;
    const { from, call } = request;
    const { seq } = call;
    this.cluster.volume.step(this.host);
    const retry = (): void => answer({ retry: true, version: 0, committed: 0, history: [] });
    const careless = this.mistaken("execute-for-the-dead");
    const stale = request.epoch < this.kernel.epoch && !careless;
    if (this.xfs === null || this.kernel.role !== Role.HOLDER || stale || !this.passes()) {
      retry();
      return;
    }
    const served = this.servedOf(from);
    if (served.dead && !careless) {
      retry();
      return;
    }
    this.acknowledge(served, request.acked);
    const known = served.known.get(seq);
    if (known !== undefined) {
      if (known !== null) answer({ ...known, committed: this.committed(served) });
      return;
    }
    // A late copy of what was answered and seen.
    if (seq < served.acked && request.version === 0) return;
    served.known.set(seq, null);
    const { xfs } = this;
    const run = (): void => {
      if (this.host.frozen) {
        time.at(this.host.frozenUntil - time.now, run);
      } else if (served.dead && !careless) {
        served.known.delete(seq);
      } else if (this.xfs !== xfs || xfs.dead || !this.passes()) {
        served.known.delete(seq);
        retry();
      } else {
        void this.execute(xfs, served, request, answer);
      }
    };
    // Now and then one hangs, beyond the end of its own node perhaps.
    if (call.change !== null && this.cluster.volume.hangs(from.host))
      time.at(random.int(14_000, 40_000), run);
    else if (!this.cluster.calm && random.chance(0.003)) time.at(random.int(500, 40_000), run);
    else time.at(random.int(1, 6), run);
  }

  private async execute(
    xfs: Xfs,
    served: Served,
    request: Request,
    answer: (reply: Reply) => void,
  ): Promise<void> {
    const { from, call } = request;
    const { change, ino, seq } = call;
    let version = 0;
    if (change !== null) {
      const place = xfs.place(change);
      // By i_version where that is known; else it is what was to be made.
      const again = call.first !== null;
      const asked = this.mistaken("holder-by-node") ? call.first?.host === xfs.host : call.first === xfs;
      const replay = again && !asked;
      call.first ??= xfs;
      const done =
        request.version > 0 ? xfs.history(ino).length >= request.version : replay && place !== undefined;
      if (done && !this.mistaken("resend-executed-again")) {
        this.cluster.volume.replayed++;
      } else {
        const there = exists(xfs.history(ino));
        const rule = again ? 7 : 3;
        if (there !== (change.kind !== "create")) {
          this.cluster.violate(
            `rule ${rule}: ${from.host.name} asks to ${change.kind} ${ino}, which does ${there ? "" : "not "}exist`,
          );
        }
        xfs.execute(change);
      }
      served.executed.set(seq, change);
      version = xfs.history(ino).indexOf(change) + 1;
    }
    const remote = from !== this;
    const forced =
      (call.kind === "commit" && !this.mistaken("fsync-unforced")) ||
      (change !== null && remote && this.way === "forced" && !this.mistaken("answer-unforced"));
    // A log is written now and then without anybody's asking.
    if (!forced && change !== null && this.cluster.fileRandom.chance(0.04)) void xfs.force();
    const history = [...xfs.history(ino)];
    if (change !== null) history.length = version;
    if (forced && !(await xfs.force())) return;
    const reply = { retry: false, version, history };
    if (served.known.has(seq)) {
      if (change === null || this.mistaken("replies-forgotten")) served.known.delete(seq);
      else served.known.set(seq, reply);
    }
    answer({ ...reply, committed: this.committed(served) });
  }

  private servedOf(from: KernelFiles): Served {
    let served = this.#served.get(from);
    if (served === undefined) {
      served = new Served();
      served.dead = this.#dead.has(`${from.host.node} ${from.incarnation}`);
      this.#served.set(from, served);
    }
    return served;
  }

  private acknowledge(served: Served, acked: number): void {
    if (acked <= served.acked) return;
    served.acked = acked;
    for (const [seq, reply] of served.known) if (seq < acked && reply !== null) served.known.delete(seq);
  }

  private committed(served: Served): number {
    let first = Number.MAX_SAFE_INTEGER;
    let last = 0;
    for (const [seq, change] of served.executed) {
      last = Math.max(last, seq);
      if ((this.xfs?.place(change) ?? first) < (this.xfs?.durable ?? 0)) served.executed.delete(seq);
      else first = Math.min(first, seq);
    }
    return Math.min(first - 1, last);
  }

  /** NODE_STATUS: dead, or it has left. */
  gone(node: number, incarnation: number): void {
    this.#dead.add(`${node} ${incarnation}`);
    for (const [from, served] of this.#served) {
      if (from.host.node === node && from.incarnation === incarnation) served.dead = true;
    }
  }

  /** NODE_STATUS: joining. Declared dead as a newcomer, in a change that was not finished, it has come in after all. */
  back(node: number, incarnation: number): void {
    this.#dead.delete(`${node} ${incarnation}`);
    for (const [from, served] of this.#served) {
      if (from.host.node === node && from.incarnation === incarnation) served.dead = false;
    }
  }

  // ---- the mount's life ---------------------------------------------------------------------------------------

  mountXfs(): void {
    this.xfs = this.cluster.volume.mount(this.host);
    this.#served.clear();
  }

  unmountXfs(): void {
    this.xfs?.unmount();
    this.xfs = null;
  }

  /** Before the locks go: everything is answered, and on the disk. */
  async drain(): Promise<void> {
    const locks = this.kernel.locks?.held ?? [];
    await this.wait(() => !this.unanswered() && locks.every((lock) => lock.users === 0));
    if (this.#over || !locks.some((lock) => lock.dirty)) return;
    let ended = false;
    void this.ask("commit", ALL, null).then(() => {
      ended = true;
    });
    await this.wait(() => ended);
  }

  private async wait(over: () => boolean): Promise<void> {
    const { cluster, host } = this;
    const { time } = cluster;
    const began_at = time.now;
    while (!this.#over && cluster.violation === null && !over()) {
      if (time.now - Math.max(began_at, cluster.calmSince) > UNMOUNT_MAX_MS) {
        cluster.violate(`rule 10: ${host.name}'s unmount waits for ${this.late(0)}`);
      }
      await time.sleep(100);
    }
  }

  /** In good order: nothing is left behind. */
  left(): void {
    if (this.#over || this.kernel.fenced) return;
    for (const call of this.#calls.values()) {
      if (call.change !== null && !this.cluster.volume.has(call.change)) {
        this.cluster.violate(
          `rule 6: ${this.host.name} has left, and its change ${call.change.serial} is not on the disk`,
        );
      }
    }
  }

  /** Power cut, fenced, or the mount is over: nobody gets an answer any more, or EIO. */
  fail(): void {
    if (this.#over) return;
    this.#over = true;
    if (this.xfs !== null) this.xfs.cut();
    this.xfs = null;
    for (const call of [...this.#calls.values()]) if (!call.acked) call.end(null);
    this.#calls.clear();
  }
}
