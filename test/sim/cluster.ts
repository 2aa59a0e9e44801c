// SPDX-License-Identifier: GPL-2.0-only
/**
 * The simulated cluster. After every event, and where something is granted, told, written or committed, the project's ten
 * safety rules are checked, each by name (RULES in world.ts); here, in host.ts, locks.ts and files.ts:
 *
 *   1. one log writer: at most one host has the XFS mounted whose writes still reach the disk; nobody mounts without the
 *      reservation, nor writes to a log that somebody else has replayed since.
 *   2. no key, no I/O: nobody writes before it has registered; a key that was preempted after its node wrote never comes
 *      back; nobody preempts a holder whose heartbeat moves, and nobody from outside of the last view while one of it lives.
 *   3. no lock, no cache: modes that do not go together are never held at once; nobody grants itself locks beside others; an
 *      epoch's grants begin when all have told theirs; what is served is what the holder has.
 *   4. clean before let go: when EX goes, what was done under it is on the disk; what others have seen is never lost.
 *   5. persist before grant: locks.ts.
 *   6. acknowledged means it stays: an answered change is on the disk, or kept while its node lives; an fsynced one on the disk.
 *   7. exactly once: no change twice, none left out, none out of order; a new holder is sent again what was unanswered.
 *   8. old epochs are void: epochs rise, in the header and on every kernel; an epoch is one view, the same for all.
 *   9. lease or freeze: when a view is committed no lease runs outside of it, and who was put out is fenced; nobody serves
 *      until the dead holder's journal is replayed.
 *  10. nothing silent: no flow of the core ends in an unexpected exception; whatever is refused says why; every operation
 *      and every wait for a lock ends.
 * At the end liveness: everybody serves in one view, and everybody can leave.
 *
 * Known weakness: what files.ts and locks.ts say of theirs.
 */
import { checkTimings, TIMINGS_DEFAULT, type Timings } from "../../src/cluster/config.js";
import { prKey, type View } from "../../src/cluster/ports.js";
import type { Mistake } from "../../src/cluster/state.js";
import type { PersistMistake } from "../../src/disk/lock_persister.js";
import { JOURNAL_STATE, type JournalRecord } from "../../src/disk/record.js";
import { type FilesMistake, Volume, type Way } from "./files.js";
import { Host } from "./host.js";
import { checkCommitted } from "./locks.js";
import { Network } from "./network.js";
import { type NexusKind, named, PrTarget, Random, SharedDisk, Timeline, Violation } from "./world.js";

export interface ClusterOptions {
  readonly seed: number;
  readonly hostCount: number;
  readonly mistakes?: ReadonlySet<Mistake>;
  readonly persistMistakes?: ReadonlySet<PersistMistake>;
  /** How holders answer operations on files; without it there are none. */
  readonly files?: Way;
  readonly filesMistakes?: ReadonlySet<FilesMistake>;
  readonly timings?: Timings;
  /** none: no keys, so what rests on them is not checked. */
  readonly fence?: "scsi" | "none";
  /** Left out: "kept". */
  readonly nexus?: NexusKind;
  /** 0 silent, 1 story, 2 with messages. */
  readonly verbose?: number;
}

const STORY_MAX = 20_000;

export class Cluster {
  readonly time = new Timeline();
  readonly random: Random;
  /** For the locks, so that what they do does not change what happens to the rest. */
  readonly lockRandom: Random;
  /** For files, likewise. */
  readonly fileRandom: Random;
  readonly filesMistakes: ReadonlySet<FilesMistake>;
  readonly volume: Volume;
  readonly target: PrTarget;
  readonly disk = new SharedDisk();
  readonly network: Network;
  readonly hosts: Host[] = [];
  readonly verbose: number;
  readonly fence: "scsi" | "none";
  readonly storyLines: string[] = [];
  violation: string | null = null;
  commits = 0;
  /** Since when writes have not failed, nor been seen half done; infinite: they do. */
  calmSince = 0;
  /** How often the scenario has brought about what is worth counting. */
  readonly situations = new Map<string, number>();
  #serial = 0;
  readonly #journalStates = new Map<number, { readonly state: number; readonly since: number }>();
  /** When a key was first preempted: from then on its node writes no log. */
  readonly #preemptedAt = new Map<bigint, number>();
  readonly #views = new Map<bigint, string>();
  #lastView: View | null = null;

  constructor(readonly options: ClusterOptions) {
    this.random = new Random(options.seed);
    this.lockRandom = new Random(~options.seed);
    this.fileRandom = new Random(options.seed ^ 0x2545f491);
    this.filesMistakes = options.filesMistakes ?? new Set();
    this.volume = new Volume(this);
    this.verbose = options.verbose ?? 0;
    this.fence = options.fence ?? "scsi";
    this.target = new PrTarget(this.random.chance(0.5), options.nexus === "new, by port");
    this.network = new Network(this);
    const timings = options.timings ?? TIMINGS_DEFAULT;
    checkTimings(timings);
    for (let i = 0; i < options.hostCount; i++) {
      const node = (Math.imul(i + 1, 0x9e3779b1) ^ options.seed) >>> 0;
      this.hosts.push(
        new Host(this, i, node, timings, options.mistakes ?? new Set(), options.persistMistakes),
      );
    }
  }

  get calm(): boolean {
    return Number.isFinite(this.calmSince);
  }
  set calm(calm: boolean) {
    this.calmSince = calm ? this.time.now : Number.POSITIVE_INFINITY;
  }

  count(situation: string): void {
    this.situations.set(situation, (this.situations.get(situation) ?? 0) + 1);
  }

  /** Who has the XFS, and can write to it. */
  holder(): Host | undefined {
    return this.hosts.find((host) => host.writesLog());
  }

  nextSerial(): number {
    return ++this.#serial;
  }
  hostOf(node: number): Host | undefined {
    return this.hosts.find((host) => host.node === node);
  }

  story(line: string): void {
    if (this.storyLines.length >= STORY_MAX) this.storyLines.splice(0, STORY_MAX / 2);
    const text = `${((this.time.now - 1_000_000) / 1000).toFixed(3).padStart(9)} ${line}`;
    this.storyLines.push(text);
    if (this.verbose > 0) console.log(text);
  }

  violate(what: string): void {
    if (this.violation !== null) return;
    this.violation = named(what);
    this.story(`VIOLATION ${this.violation}`);
  }

  /** Runs an action of the world whose own checks throw Violation. */
  guarded<T>(action: () => T): T | null {
    try {
      return action();
    } catch (error) {
      if (!(error instanceof Violation)) throw error;
      this.violate(error.message);
      return null;
    }
  }

  /** Virtual milliseconds pass; every event is followed by the checks. Stops at the first violation. */
  async pass(ms: number, until: () => boolean = () => false): Promise<void> {
    let over = false;
    const end = this.time.at(ms, () => {
      over = true;
    });
    await this.time.run(
      () => over || this.violation !== null || until(),
      () => this.check(),
    );
    end.cancelled = true;
  }

  private check(): void {
    this.checkSolo();
    if (this.fence === "none") return;
    const writers = this.hosts.filter((host) => host.writesLog());
    if (writers.length > 1) {
      this.violate(`rule 1: XFS mounted and writing on ${writers.map((host) => host.name).join(" and ")}`);
    }
  }

  /** Who grants itself locks that nobody else knows of is the only one who serves. Without fencing nothing keeps it so. */
  private checkSolo(): void {
    if (this.fence === "none") return;
    const solo = this.hosts.find((host) => host.kernel.solo && host.serving() && host.isRegistered());
    const other = this.hosts.find((host) => host !== solo && host.serving());
    if (solo !== undefined && other !== undefined) {
      this.violate(`rule 3: ${solo.name} grants itself locks while ${other.name} serves`);
    }
  }

  /** Who may take the reservation of a holder, and when. */
  holderPreempted(by: Host, victim: bigint): void {
    const view = this.#lastView;
    if (view === null) return;
    const now = this.time.now;
    const { nodeTimeoutMs } = by.timings;
    const beats = (member: { node: number; incarnation: number }): boolean => {
      const host = this.hostOf(member.node);
      if (host === undefined || !host.powered || host.beatAs !== member.incarnation) return false;
      if (host.beatGoodbye) return false;
      // An unmounting node may be taken over by agreement.
      if (host.kernel.incarnation !== member.incarnation || host.kernel.unmounting) return false;
      if (prKey(member.node, member.incarnation) !== victim && !host.isRegistered()) return false;
      // Its beats are seen by who reads: one that has just begun again cannot have been.
      return (
        now - host.beatAt < nodeTimeoutMs / 2 && now - host.beatBefore < nodeTimeoutMs && !host.kernel.fenced
      );
    };
    const inside = view.members.some((m) => prKey(m.node, m.incarnation) === by.key);
    const living = view.members.find((m) => prKey(m.node, m.incarnation) !== victim && beats(m));
    if (!inside && living !== undefined) {
      const name = this.hostOf(living.node)?.name;
      this.violate(
        `rule 2: ${by.name}, not of the last view, preempts the holder while ${name} of it heartbeats`,
      );
    }
    const holder = view.members.find((m) => prKey(m.node, m.incarnation) === victim);
    if (inside && holder !== undefined && beats(holder)) {
      this.violate(
        `rule 2: ${by.name} preempts holder ${this.hostOf(holder.node)?.name}, whose heartbeat moves`,
      );
    }
  }

  preempted(victim: bigint): void {
    if (!this.#preemptedAt.has(victim)) this.#preemptedAt.set(victim, this.time.now);
  }

  journalWritten(by: Host, slot: number, record: JournalRecord): void {
    // The slot itself may be torn.
    const before = this.#journalStates.get(slot);
    const recovered =
      before?.state === JOURNAL_STATE.RECOVERING || before?.state === JOURNAL_STATE.NEEDS_RECOVERY;
    // A mount that a daemon before this one had asked for may have replayed the log before it was marked.
    const fenced_at = this.#preemptedAt.get(prKey(record.node, record.incarnation));
    const since = recovered ? before.since : Math.min(this.time.now, fenced_at ?? this.time.now);
    this.#journalStates.set(slot, { state: record.state, since });
    const done = record.state !== JOURNAL_STATE.RECOVERING && record.state !== JOURNAL_STATE.NEEDS_RECOVERY;
    if (recovered && done && by.kernel.xfsMountedAt < since) {
      this.violate(
        `rule 9: ${by.name} says that journal slot ${slot} is recovered before it has mounted the XFS`,
      );
    }
    this.disk.writeJournal(slot, record);
  }

  /** A host's lock service resumes in a view. */
  resumed(host: Host, epoch: bigint, view: View): void {
    this.commits++;
    const text = `holder ${view.holder} members ${view.members.map((m) => `${m.node}.${m.incarnation}@${m.slot}`).join()}`;
    const known = this.#views.get(epoch);
    if (known !== undefined && known !== text) {
      this.violate(`rule 8: epoch ${epoch} is [${known}] and on ${host.name} [${text}]`);
    }
    this.#views.set(epoch, text);
    if (view.holder !== host.node) return;
    // A fenced holder that does not know it yet may commit among its own; its lease is what keeps that harmless.
    if (!host.isRegistered()) return;
    for (const other of this.hosts) {
      const { incarnation } = other.kernel;
      if (view.members.some((m) => m.node === other.node && m.incarnation === incarnation)) continue;
      if (other.serving()) this.violate(`rule 9: ${other.name} is not in view ${epoch}, and its lease runs`);
    }
    for (const old of this.#lastView?.members ?? []) {
      if (view.members.some((m) => m.node === old.node && m.incarnation === old.incarnation)) continue;
      const gone = this.hostOf(old.node);
      if (gone === undefined || gone.kernel.incarnation !== old.incarnation || gone.kernel.unmounting)
        continue;
      if ([...this.target.keys.values()].includes(prKey(old.node, old.incarnation))) {
        this.violate(`rule 9: ${gone.name} was put out in epoch ${epoch} and is not fenced`);
      }
    }
    for (const member of view.members) {
      const of = this.hostOf(member.node);
      if (of === undefined || !of.powered || of.kernel.incarnation !== member.incarnation) continue;
      if (of.kernel.dumpedEpoch !== epoch) {
        this.violate(
          `rule 3: epoch ${epoch} granted before ${of.name} told its locks (${of.kernel.dumpedEpoch})`,
        );
      }
    }
    this.#lastView = view;
    checkCommitted(host, view);
  }
}
