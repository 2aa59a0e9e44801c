// SPDX-License-Identifier: GPL-2.0-only
//
// The locks of control clients (mxfs_lock and its like): this daemon is their owner node, and this registry is what
// they are reclaimed from at a view change.
//
//   request ──► waiting ──grant──► held ──unlock / client gone──► released
//                  └──deny, time out (cancel)──► refused          held ──BAST──► the client is told, and decides
//
// While the lock service is frozen by a view change, new requests and releases wait here for `resumed`; what was
// sent before the change is told again as a reclaim.
//
// Limits: LOCKS_MAX locks in all (ENOLCK), LOCKS_PER_CLIENT_MAX for one client.
//
// Known weakness: the locks die with the daemon; clients see their connection close and exit with "lost".

import { COMMAND, type Command } from "../dlm/engine.js";
import { isDownConversion } from "../dlm/modes.js";
import {
  MXFS_LKF_CANCEL,
  MXFS_LKF_CONVERT,
  MXFS_LKF_NOQUEUE,
  MXFS_LKF_RECLAIM,
  MXFS_LKF_WAITING,
  MXFS_LOCK_CLIENT_CONTROL,
  MXFS_LOCK_CLIENT_SHIFT,
  MXFS_MODE_NL,
  WireType,
} from "../wire/abi.js";
import { decodeLockEntries, type LockEntry } from "../wire/lock_entry.js";
import type { WireTypeNumber } from "../workers/protocol.js";
import { type ControlClient, ControlError, type JsonObject } from "./control.js";
import { formatResource, NameError, parseResource, type ResourceName } from "./resource_name.js";

export const LOCKS_MAX = 65_536;
export const LOCKS_PER_CLIENT_MAX = 4_096;
const ENTRIES_MAX = 1 << 20;

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
  /** The client is gone: release as soon as nothing is outstanding. */
  condemned: boolean;
}

export interface ClientLocksTargets {
  readonly self: number;
  readonly volume: bigint;
  epoch(): bigint;
  /** To the lock engine of the main thread. */
  submit(command: Command, entries: readonly LockEntry[]): void;
}

export class ClientLocks {
  readonly #targets: ClientLocksTargets;
  readonly #locks = new Map<bigint, ClientLock>();
  #nextId: bigint;
  #frozen = true;
  /** Statements made while frozen. */
  #held: (() => void)[] = [];

  /** @param idBase lock ids start here: higher with every start of the daemon. */
  constructor(targets: ClientLocksTargets, idBase: bigint) {
    this.#targets = targets;
    this.#nextId = (BigInt(MXFS_LOCK_CLIENT_CONTROL) << BigInt(MXFS_LOCK_CLIENT_SHIFT)) | idBase;
  }

  /**
   * Takes a lock for a client; resolves with its id and mode.
   * @throws ControlError EAGAIN (noqueue), ETIMEDOUT, EDEADLK, ENOLCK, EINVAL, ECANCELED (the client is gone).
   */
  async lock(
    client: ControlClient,
    name: string,
    mode: number,
    noqueue: boolean,
    timeoutMs: number | null,
  ): Promise<{ id: bigint; mode: number }> {
    const resource = this.#resource(name);
    const mine = Array.from(this.#locks.values()).filter((lock) => lock.client === client).length;
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
      condemned: false,
    };
    this.#locks.set(lock.id, lock);
    const granted = await this.#wait(lock, COMMAND.REQUEST, timeoutMs);
    return { id: lock.id, mode: granted };
  }

  /** Converts a lock that the client holds. @throws ControlError as `lock`; the old mode stays then. */
  async convert(
    client: ControlClient,
    id: bigint,
    mode: number,
    noqueue: boolean,
    timeoutMs: number | null,
  ): Promise<number> {
    const lock = this.#locks.get(id);
    if (lock === undefined || lock.client !== client) {
      throw new ControlError("EINVAL", `lock ${id} is not this client's`);
    }
    if (lock.waiter !== null) {
      throw new ControlError("EBUSY", `a request on lock ${id} is outstanding`);
    }
    lock.want = mode;
    lock.seq++;
    lock.noqueue = noqueue;
    return await this.#wait(lock, COMMAND.CONVERT, timeoutMs);
  }

  /** Releases one lock of a client. */
  unlock(client: ControlClient, id: bigint): void {
    const lock = this.#locks.get(id);
    if (lock === undefined || lock.client !== client) {
      throw new ControlError("EINVAL", `lock ${id} is not this client's`);
    }
    this.#release(lock);
  }

  /** Makes clients of this node let go of a resource; the oldest one, or all. Returns how many. */
  unlockByName(name: string, all: boolean): number {
    const wanted = formatResource(this.#resource(name));
    let count = 0;
    for (const lock of this.#locks.values()) {
      if (lock.waiter === null && !lock.condemned && formatResource(lock.resource) === wanted) {
        this.#release(lock);
        lock.client.event({ event: "released", lock: lock.id.toString() });
        count++;
        if (!all) {
          break;
        }
      }
    }
    return count;
  }

  /** The client's connection closed. */
  clientGone(client: ControlClient): void {
    for (const lock of Array.from(this.#locks.values())) {
      if (lock.client === client) {
        if (lock.waiter !== null) {
          lock.condemned = true;
          this.#cancel(lock);
        } else {
          this.#release(lock);
        }
      }
    }
  }

  /** Grants, denials and BASTs from masters. */
  receive(type: WireTypeNumber, entries: Uint8Array): void {
    for (const entry of decodeLockEntries(entries, ENTRIES_MAX)) {
      const lock = this.#locks.get(entry.lockId);
      if (entry.epoch !== this.#targets.epoch()) {
        continue;
      }
      if (lock === undefined) {
        if (type !== WireType.LOCK_DENY) {
          this.#state(() =>
            this.#targets.submit(COMMAND.RELEASE, [{ ...entry, flags: 0, mode: MXFS_MODE_NL }]),
          );
        }
      } else if (type === WireType.LOCK_BAST) {
        lock.client.event({ event: "bast", lock: lock.id.toString(), mode: entry.mode });
      } else if (entry.seq === lock.seq && lock.waiter !== null) {
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
      ...this.#entry(lock),
      epoch,
      flags:
        (lock.granted !== MXFS_MODE_NL ? MXFS_LKF_RECLAIM : 0) |
        (lock.waiter === null ? 0 : MXFS_LKF_WAITING) |
        (lock.noqueue && lock.waiter !== null ? MXFS_LKF_NOQUEUE : 0),
      mode: lock.waiter === null ? lock.granted : lock.want,
    }));
    if (entries.length > 0) {
      this.#targets.submit(COMMAND.RECLAIM, entries);
    }
  }

  resumed(): void {
    this.#frozen = false;
    for (const action of this.#held.splice(0)) {
      action();
    }
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

  #wait(lock: ClientLock, command: Command, timeoutMs: number | null): Promise<number> {
    return new Promise((resolve, reject) => {
      const timer =
        timeoutMs === null
          ? null
          : setTimeout(() => {
              lock.timedOut = true;
              this.#cancel(lock);
            }, timeoutMs);
      lock.timedOut = false;
      lock.waiter = { resolve, reject, timer };
      const down = command === COMMAND.CONVERT && isDownConversion(lock.granted, lock.want);
      // While frozen the reclaim tells it, or (it came too late for that) `resumed`.
      this.#state(() => {
        if (lock.waiter !== null && this.#locks.get(lock.id) === lock) {
          this.#targets.submit(command, [this.#entry(lock)]);
          if (down) {
            // A conversion to a weaker mode is a statement: nobody answers it.
            this.#answered(lock, true, this.#entry(lock));
          }
        }
      });
    });
  }

  /** Does something now, or after the view change. */
  #state(action: () => void): void {
    if (this.#frozen) {
      this.#held.push(action);
    } else {
      action();
    }
  }

  #cancel(lock: ClientLock): void {
    this.#state(() => {
      if (lock.waiter !== null) {
        this.#targets.submit(COMMAND.RELEASE, [{ ...this.#entry(lock), flags: MXFS_LKF_CANCEL }]);
      }
    });
  }

  #release(lock: ClientLock): void {
    lock.condemned = true;
    this.#state(() => {
      this.#targets.submit(COMMAND.RELEASE, [{ ...this.#entry(lock), mode: MXFS_MODE_NL, flags: 0 }]);
      this.#locks.delete(lock.id);
    });
  }

  #answered(lock: ClientLock, granted: boolean, entry: LockEntry): void {
    const waiter = lock.waiter;
    lock.waiter = null;
    if (waiter?.timer) {
      clearTimeout(waiter.timer);
    }
    if (granted) {
      const before = lock.granted;
      lock.granted = entry.mode;
      if (lock.condemned) {
        this.#release(lock);
        waiter?.reject(new ControlError("ECANCELED", "the client is gone"));
      } else if (lock.timedOut && before === MXFS_MODE_NL) {
        // Granted in the moment the time ran out: the client has been promised a time limit, not a lock.
        this.#release(lock);
        waiter?.reject(new ControlError("ETIMEDOUT", `${lock.name}: not granted in time`));
      } else {
        waiter?.resolve(entry.mode);
      }
      return;
    }
    if (lock.granted === MXFS_MODE_NL) {
      this.#locks.delete(lock.id);
    } else if (lock.condemned) {
      this.#release(lock);
    }
    const errno = lock.timedOut ? "ETIMEDOUT" : (ERRNO_NAME[entry.status] ?? "EIO");
    const reason: Readonly<Record<string, string>> = {
      EAGAIN: "held by somebody else",
      ETIMEDOUT: "not granted in time",
      EDEADLK: "waiting would be a deadlock",
      ENOLCK: "the lock table is full: release locks, or start mxfsd with more memory for it",
    };
    waiter?.reject(new ControlError(errno, `${lock.name}: ${reason[errno] ?? "refused"}`));
  }
}
