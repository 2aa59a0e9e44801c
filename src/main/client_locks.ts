// SPDX-License-Identifier: GPL-2.0-only
//
// The locks of control clients (mxfs_lock and its like): this daemon is their owner node, and this registry is what
// they are reclaimed from at a view change.
//
//   request ──► waiting ──grant──► held ──unlock / client gone──► released
//                  ├──deny, time out (cancel)──► refused          held ──BAST──► the client is told, and decides
//                  └──a while──► the deadlock detector looks, and again; a circle's youngest is refused EDEADLK
//
// A lock on a named (USER) resource comes with the resource's value; who gives up PW or EX may write it. A client
// that is gone without a word, holding PW or EX, leaves it invalid.
//
// The kernel takes locks of every type but USER: before the first one of such a type is asked for, solo ends (`share`).
//
// While the lock service is frozen by a view change, new requests and releases wait here for `resumed`; what was
// sent before the change is told again as a reclaim.
//
// Limits: LOCKS_MAX locks in all (ENOLCK), LOCKS_PER_CLIENT_MAX for one client.
//
// Known weakness: the locks die with the daemon; clients see their connection close and exit with "lost".

import { type DeadlockDetector, describeCircle, type Wait, type WaitingClient } from "../dlm/deadlock.js";
import { COMMAND, type Command, ECANCELED } from "../dlm/engine.js";
import { isDownConversion } from "../dlm/modes.js";
import {
  MXFS_LKF_CANCEL,
  MXFS_LKF_CONVERT,
  MXFS_LKF_LOST,
  MXFS_LKF_NOQUEUE,
  MXFS_LKF_RECLAIM,
  MXFS_LKF_WAITING,
  MXFS_LOCK_CLIENT_CONTROL,
  MXFS_LOCK_CLIENT_SHIFT,
  MXFS_LVB_LEN,
  MXFS_MODE_NL,
  MXFS_MODE_PW,
  MXFS_RES_USER,
  WireType,
} from "../wire/abi.js";
import {
  decodeValuedEntries,
  type EntryValue,
  type LockEntry,
  type ValuedEntry,
} from "../wire/lock_entry.js";
import type { ProbeWait } from "../wire/probe.js";
import type { WireTypeNumber } from "../workers/protocol.js";
import { type ControlClient, ControlError, type JsonObject } from "./control.js";
import { formatResource, NameError, parseResource, type ResourceName } from "./resource_name.js";

export const LOCKS_MAX = 65_536;
export const LOCKS_PER_CLIENT_MAX = 4_096;
const ENTRIES_MAX = 1 << 20;
/** How long a wait lasts before somebody asks whether it is a deadlock, and how often then. */
const DEADLOCK_FIRST_MS = 300;
const DEADLOCK_AGAIN_MS = 2000;

const ERRNO_NAME: Readonly<Record<number, string>> = {
  5: "EIO",
  11: "EAGAIN",
  12: "ENOMEM",
  22: "EINVAL",
  35: "EDEADLK",
  37: "ENOLCK",
  110: "ETIMEDOUT",
  125: "ECANCELED",
};

interface Waiter {
  readonly resolve: (mode: number) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout | null;
  /** Asks the detector; null once the wait was given up. */
  look: NodeJS.Timeout | null;
  readonly sinceMs: number;
}

/** A lock as its client sees it. */
export interface Granted {
  readonly id: bigint;
  readonly mode: number;
  /** null: not a named resource. */
  readonly value: EntryValue | null;
}

interface ClientLock {
  readonly id: bigint;
  readonly name: string;
  readonly resource: ResourceName;
  readonly client: ControlClient;
  granted: number;
  want: number;
  seq: number;
  noqueue: boolean;
  waiter: Waiter | null;
  timedOut: boolean;
  /** The circle that this wait was denied for. */
  circle: readonly ProbeWait[] | null;
  /** The resource's value as far as this lock knows it. */
  value: EntryValue | null;
  /** The client is gone: release as soon as nothing is outstanding. */
  condemned: boolean;
}

export interface ClientLocksTargets {
  readonly self: number;
  readonly volume: bigint;
  epoch(): bigint;
  /** To the lock engine of the main thread. */
  submit(command: Command, entries: readonly ValuedEntry[]): void;
  detector(): DeadlockDetector | null;
  /** Resolves when the lock table knows the locks of this node's kernel, which it does not while the node is alone. */
  share(): Promise<void>;
}

const plain = (entry: LockEntry): ValuedEntry => ({ entry, value: null });

export class ClientLocks {
  readonly #targets: ClientLocksTargets;
  readonly #locks = new Map<bigint, ClientLock>();
  /** How many of them each client has. */
  readonly #counts = new Map<ControlClient, number>();
  #nextId: bigint;
  #frozen = true;
  /** The kernel takes locks of the types in question, too: `share` has been asked for, and has not resolved. */
  #sharing = false;
  #shared = false;
  /** Statements made while frozen or sharing. */
  #held: (() => void)[] = [];

  /** @param idBase lock ids start here: higher with every start of the daemon. */
  constructor(targets: ClientLocksTargets, idBase: bigint) {
    this.#targets = targets;
    this.#nextId = (BigInt(MXFS_LOCK_CLIENT_CONTROL) << BigInt(MXFS_LOCK_CLIENT_SHIFT)) | idBase;
  }

  /**
   * Takes a lock for a client; resolves when it is granted.
   * @throws ControlError EAGAIN (noqueue), ETIMEDOUT, EDEADLK, ENOLCK, EINVAL, ECANCELED (the client is gone).
   */
  async lock(
    client: ControlClient,
    name: string,
    mode: number,
    noqueue: boolean,
    timeoutMs: number | null,
  ): Promise<Granted> {
    const resource = this.#resource(name);
    if (resource.type !== MXFS_RES_USER) {
      this.#share();
    }
    const mine = this.#counts.get(client) ?? 0;
    if (this.#locks.size >= LOCKS_MAX || mine >= LOCKS_PER_CLIENT_MAX) {
      throw new ControlError(
        "ENOLCK",
        `too many locks: ${this.#locks.size} of ${LOCKS_MAX}, ${mine} by this client`,
      );
    }
    const lock: ClientLock = {
      id: this.#nextId++,
      name,
      resource,
      client,
      granted: MXFS_MODE_NL,
      want: mode,
      seq: 1,
      noqueue,
      waiter: null,
      timedOut: false,
      circle: null,
      value: null,
      condemned: false,
    };
    this.#locks.set(lock.id, lock);
    this.#counts.set(client, mine + 1);
    const granted = await this.#wait(lock, COMMAND.REQUEST, timeoutMs, null);
    return { id: lock.id, mode: granted, value: lock.value };
  }

  /**
   * Converts a lock that the client holds. @param value written as PW or EX is given up; null: stays as it is.
   * @throws ControlError as `lock`; the old mode stays then.
   */
  async convert(
    client: ControlClient,
    id: bigint,
    mode: number,
    noqueue: boolean,
    timeoutMs: number | null,
    value: Uint8Array | null,
  ): Promise<Granted> {
    const lock = this.#own(client, id);
    if (lock.waiter !== null) {
      throw new ControlError("EBUSY", `a request on lock ${id} is outstanding`);
    }
    const written = this.#newValue(lock, value);
    if (written !== null && !isDownConversion(lock.granted, mode)) {
      throw new ControlError("EINVAL", `${lock.name}: a value is written when PW or EX is given up`);
    }
    lock.want = mode;
    lock.seq++;
    lock.noqueue = noqueue;
    const granted = await this.#wait(lock, COMMAND.CONVERT, timeoutMs, written);
    return { id, mode: granted, value: lock.value };
  }

  /** Releases one lock of a client. @param value as for `convert` */
  unlock(client: ControlClient, id: bigint, value: Uint8Array | null): void {
    const lock = this.#own(client, id);
    this.#release(lock, this.#newValue(lock, value), false);
  }

  /** The value that a client's lock knows. */
  value(client: ControlClient, id: bigint): Granted {
    const lock = this.#own(client, id);
    return { id, mode: lock.granted, value: lock.value };
  }

  #own(client: ControlClient, id: bigint): ClientLock {
    const lock = this.#locks.get(id);
    if (lock === undefined || lock.client !== client || lock.condemned) {
      throw new ControlError("EINVAL", `lock ${id} is not this client's`);
    }
    return lock;
  }

  #newValue(lock: ClientLock, value: Uint8Array | null): EntryValue | null {
    if (value === null) {
      return null;
    }
    if (lock.granted < MXFS_MODE_PW || lock.value === null || value.length > MXFS_LVB_LEN) {
      throw new ControlError(
        "EINVAL",
        `${lock.name}: a value is at most ${MXFS_LVB_LEN} bytes, of a named resource, written by who holds PW or EX`,
      );
    }
    const bytes = new Uint8Array(MXFS_LVB_LEN);
    bytes.set(value);
    return { bytes, seq: lock.value.seq + 1n, valid: true };
  }

  /** Makes clients of this node let go of a resource; the oldest one, or all. Returns how many. */
  unlockByName(name: string, all: boolean): number {
    const wanted = formatResource(this.#resource(name));
    let count = 0;
    for (const lock of this.#locks.values()) {
      if (lock.waiter === null && !lock.condemned && formatResource(lock.resource) === wanted) {
        this.#release(lock, null, false);
        lock.client.event({ event: "released", lock: lock.id.toString() });
        count++;
        if (!all) {
          break;
        }
      }
    }
    return count;
  }

  /** The client's connection closed. What it still holds it has not let go itself. */
  clientGone(client: ControlClient): void {
    for (const lock of Array.from(this.#locks.values())) {
      if (lock.client === client) {
        if (lock.waiter !== null) {
          lock.condemned = true;
          this.#giveUp(lock);
        } else {
          this.#release(lock, null, true);
        }
      }
    }
  }

  /** Grants, denials and BASTs from masters. */
  receive(type: WireTypeNumber, entries: Uint8Array): void {
    for (const { entry, value } of decodeValuedEntries(entries, ENTRIES_MAX)) {
      const lock = this.#locks.get(entry.lockId);
      if (entry.epoch !== this.#targets.epoch()) {
        continue;
      }
      if (lock === undefined) {
        if (type !== WireType.LOCK_DENY) {
          this.#state(() =>
            this.#targets.submit(COMMAND.RELEASE, [plain({ ...entry, flags: 0, mode: MXFS_MODE_NL })]),
          );
        }
      } else if (type === WireType.LOCK_BAST) {
        lock.client.event({ event: "bast", lock: lock.id.toString(), mode: entry.mode });
      } else if (entry.seq === lock.seq && lock.waiter !== null) {
        lock.value = value ?? lock.value;
        this.#answered(lock, type === WireType.LOCK_GRANT, entry);
      }
    }
  }

  /** A view change began: nothing is sent until `resumed`. */
  frozen(): void {
    this.#frozen = true;
  }

  /** Tells every lock to its new master. */
  reclaim(epoch: bigint): void {
    const entries = Array.from(this.#locks.values(), (lock) => ({
      entry: {
        ...this.#entry(lock),
        epoch,
        flags:
          (lock.granted !== MXFS_MODE_NL ? MXFS_LKF_RECLAIM : 0) |
          (lock.waiter === null ? 0 : MXFS_LKF_WAITING) |
          (lock.noqueue && lock.waiter !== null ? MXFS_LKF_NOQUEUE : 0),
        mode: lock.waiter === null ? lock.granted : lock.want,
      },
      value: lock.value,
    }));
    if (entries.length > 0) {
      this.#targets.submit(COMMAND.RECLAIM, entries);
    }
  }

  resumed(): void {
    this.#frozen = false;
    this.#act();
  }

  #act(): void {
    if (this.#frozen || this.#sharing) {
      return;
    }
    for (const action of this.#held.splice(0)) {
      action();
    }
  }

  /** Nothing is sent until the lock table knows what the kernel holds. */
  #share(): void {
    if (this.#shared) {
      return;
    }
    this.#shared = true;
    this.#sharing = true;
    void this.#targets.share().then(() => {
      this.#sharing = false;
      this.#act();
    });
  }

  /** The client that owns a lock of this node, and what it waits for; for the deadlock detector. */
  clientOf(id: bigint): WaitingClient | null {
    const lock = this.#locks.get(id);
    if (lock === undefined || this.#frozen) {
      return null;
    }
    const waits: Wait[] = [];
    for (const other of this.#locks.values()) {
      if (other.client === lock.client && other.waiter !== null && !this.#isOver(other)) {
        waits.push(this.#waitOf(other, other.waiter));
      }
    }
    return { client: lock.client.id, waits };
  }

  /** The detector: this wait stands in a circle, and is the youngest there. */
  breakWait(id: bigint, seq: number, circle: readonly ProbeWait[]): void {
    const lock = this.#locks.get(id);
    if (lock !== undefined && lock.waiter !== null && lock.seq === seq && !this.#isOver(lock)) {
      lock.circle = circle;
      this.#giveUp(lock);
    }
  }

  /** Its request is being withdrawn. */
  #isOver(lock: ClientLock): boolean {
    return lock.circle !== null || lock.timedOut || lock.condemned;
  }

  #waitOf(lock: ClientLock, waiter: Waiter): Wait {
    return {
      volume: this.#targets.volume,
      ...lock.resource,
      node: this.#targets.self,
      lockId: lock.id,
      seq: lock.seq,
      sinceMs: waiter.sinceMs,
      name: lock.name,
    };
  }

  /** What its client calls the resource of a lock. */
  nameOf(id: bigint): string | null {
    return this.#locks.get(id)?.name ?? null;
  }

  list(): JsonObject[] {
    return Array.from(this.#locks.values(), (lock) => ({
      lock: lock.id.toString(),
      resource: lock.name,
      mode: lock.granted,
      want: lock.waiter === null ? null : lock.want,
      client: lock.client.id,
    }));
  }

  #resource(name: string): ResourceName {
    try {
      return parseResource(name);
    } catch (error) {
      throw error instanceof NameError ? new ControlError("EINVAL", error.message) : error;
    }
  }

  #entry(lock: ClientLock): LockEntry {
    return {
      volume: this.#targets.volume,
      ...lock.resource,
      lockId: lock.id,
      epoch: this.#targets.epoch(),
      seq: lock.seq,
      mode: lock.want,
      granted: lock.granted,
      flags: (lock.noqueue ? MXFS_LKF_NOQUEUE : 0) | (lock.granted !== MXFS_MODE_NL ? MXFS_LKF_CONVERT : 0),
      node: this.#targets.self,
      status: 0,
    };
  }

  #wait(
    lock: ClientLock,
    command: Command,
    timeoutMs: number | null,
    written: EntryValue | null,
  ): Promise<number> {
    return new Promise((resolve, reject) => {
      const timer =
        timeoutMs === null
          ? null
          : setTimeout(() => {
              lock.timedOut = true;
              this.#giveUp(lock);
            }, timeoutMs);
      lock.timedOut = false;
      lock.circle = null;
      const waiter: Waiter = { resolve, reject, timer, look: null, sinceMs: Date.now() };
      lock.waiter = waiter;
      if (!lock.noqueue) {
        waiter.look = setTimeout(() => this.#look(lock, waiter), DEADLOCK_FIRST_MS);
      }
      const down = command === COMMAND.CONVERT && isDownConversion(lock.granted, lock.want);
      // While frozen the reclaim tells it, or (it came too late for that) `resumed`.
      this.#state(() => {
        if (lock.waiter !== null && this.#locks.get(lock.id) === lock) {
          this.#targets.submit(command, [{ entry: this.#entry(lock), value: written }]);
          if (down) {
            // A conversion to a weaker mode is a statement: nobody answers it.
            lock.value = written ?? lock.value;
            this.#answered(lock, true, this.#entry(lock));
          }
        }
      });
    });
  }

  /** Has waited a while: perhaps for itself? */
  #look(lock: ClientLock, waiter: Waiter): void {
    if (lock.waiter !== waiter || this.#isOver(lock)) {
      return;
    }
    waiter.look = setTimeout(() => this.#look(lock, waiter), DEADLOCK_AGAIN_MS);
    if (!this.#frozen) {
      this.#targets.detector()?.start(this.#waitOf(lock, waiter));
    }
  }

  /** Does something now, or after the view change. */
  #state(action: () => void): void {
    if (this.#frozen || this.#sharing) {
      this.#held.push(action);
    } else {
      action();
    }
  }

  /** Withdraws the outstanding request; its answer says how that went. */
  #giveUp(lock: ClientLock): void {
    this.#state(() => {
      if (lock.waiter !== null) {
        this.#targets.submit(COMMAND.RELEASE, [plain({ ...this.#entry(lock), flags: MXFS_LKF_CANCEL })]);
      }
    });
  }

  #forget(lock: ClientLock): void {
    if (!this.#locks.delete(lock.id)) {
      return;
    }
    const left = (this.#counts.get(lock.client) ?? 0) - 1;
    if (left > 0) {
      this.#counts.set(lock.client, left);
    } else {
      this.#counts.delete(lock.client);
    }
  }

  /** @param lost the client is gone without a word. */
  #release(lock: ClientLock, written: EntryValue | null, lost: boolean): void {
    lock.condemned = true;
    this.#state(() => {
      const entry = { ...this.#entry(lock), mode: MXFS_MODE_NL, flags: lost ? MXFS_LKF_LOST : 0 };
      this.#targets.submit(COMMAND.RELEASE, [{ entry, value: written }]);
      this.#forget(lock);
    });
  }

  #answered(lock: ClientLock, granted: boolean, entry: LockEntry): void {
    const waiter = lock.waiter;
    lock.waiter = null;
    clearTimeout(waiter?.timer ?? undefined);
    clearTimeout(waiter?.look ?? undefined);
    this.#targets.detector()?.forget({ lockId: lock.id, seq: entry.seq });
    if (granted) {
      const before = lock.granted;
      lock.granted = entry.mode;
      if (lock.condemned) {
        this.#release(lock, null, true);
        waiter?.reject(new ControlError("ECANCELED", "the client is gone"));
      } else if (lock.timedOut && before === MXFS_MODE_NL) {
        // Granted in the moment the time ran out: the client has been promised a time limit, not a lock.
        this.#release(lock, null, false);
        waiter?.reject(new ControlError("ETIMEDOUT", `${lock.name}: not granted in time`));
      } else {
        waiter?.resolve(entry.mode);
      }
      return;
    }
    if (lock.granted === MXFS_MODE_NL) {
      this.#forget(lock);
    } else if (lock.condemned) {
      this.#release(lock, null, true);
    }
    if (lock.circle !== null && entry.status === ECANCELED) {
      const story = `waiting would be a deadlock: ${describeCircle(lock.circle)}`;
      waiter?.reject(new ControlError("EDEADLK", `${lock.name}: ${story}`));
      return;
    }
    const errno = lock.timedOut ? "ETIMEDOUT" : (ERRNO_NAME[entry.status] ?? "EIO");
    const reason: Readonly<Record<string, string>> = {
      EAGAIN: "held by somebody else",
      ETIMEDOUT: "not granted in time",
      EDEADLK: "waiting would be a deadlock",
      ENOLCK:
        "no room for it: the lock table, or its records on disk, are full (mxfsd's log says which): release locks",
    };
    waiter?.reject(new ControlError(errno, `${lock.name}: ${reason[errno] ?? "refused"}`));
  }
}
