// SPDX-License-Identifier: GPL-2.0-only
/**
 * Devices as src/disk/pr_ways.ts sees them, over models: a plain SCSI disk, a device-mapper multipath map of several
 * paths with the kernel's PR ioctls as Linux 6.1 does them (drivers/md/dm.c, drivers/scsi/sd.c), and an NVMe namespace
 * with its own reservations (NVM Express base 2.0, 8.19), reached by the ioctls of drivers/nvme/host/core.c.
 *
 * Known weakness: written from the same reading of the kernel as what it tests.
 */
import type { KernelPrOperation, ReservationDevice } from "../../src/disk/pr_ways.js";
import {
  encodeReserveOutCdb,
  encodeReserveOutParameters,
  MXFS_PR_TYPE,
  PR_OUT,
} from "../../src/disk/reservation.js";
import type { FakePrTarget } from "./pr_target.js";

export function errno(code: string): Error {
  return Object.assign(new Error(code), { code });
}
const unknownIoctl = (): Promise<never> => Promise.reject(errno("ENOTTY"));

/** sd: one initiator port, one path. */
export function scsiDisk(target: FakePrTarget, initiator: string): ReservationDevice {
  return {
    path: `/dev/${initiator}`,
    dmUuid: null,
    scsi: target.transport(initiator),
    pr: unknownIoctl,
    nvme: unknownIoctl,
    resetUnit: null,
  };
}

/** sd_pr_command: the SCSI result as it is, with the sense kept to itself; REGISTER asks for APTPL. */
function sdPr(target: FakePrTarget, path: string, operation: KernelPrOperation): number {
  const run = (action: number, key: bigint, actionKey: bigint): number => {
    const registering = action === PR_OUT.REGISTER || action === PR_OUT.REGISTER_AND_IGNORE_EXISTING_KEY;
    const cdb = encodeReserveOutCdb(action, registering ? 0 : MXFS_PR_TYPE);
    const flags = { allTargetPorts: false, persistThroughPowerLoss: registering };
    const { status, hostStatus } = target.execute(
      path,
      cdb,
      encodeReserveOutParameters(key, actionKey, flags),
    );
    return (hostStatus << 16) | status;
  };
  switch (operation.op) {
    case "register":
      return operation.ignoreKey
        ? run(PR_OUT.REGISTER_AND_IGNORE_EXISTING_KEY, operation.oldKey, operation.newKey)
        : run(PR_OUT.REGISTER, operation.oldKey, operation.newKey);
    case "reserve":
      return run(PR_OUT.RESERVE, operation.key, 0n);
    case "release":
      return run(PR_OUT.RELEASE, operation.key, 0n);
    case "preempt":
      return run(PR_OUT.PREEMPT, operation.ownKey, operation.victimKey);
    case "preemptAbort":
      return run(PR_OUT.PREEMPT_AND_ABORT, operation.ownKey, operation.victimKey);
  }
}

/** dm-multipath: `paths` are the initiator ports; questions go through the first one. */
export function multipathMap(
  target: FakePrTarget,
  paths: readonly string[],
  uuid = "mpath-3600140500000001",
): ReservationDevice {
  const [first = ""] = paths;
  const pr = (operation: KernelPrOperation): number => {
    if (operation.op === "register") {
      for (const path of paths) {
        const status = sdPr(target, path, operation);
        if (status === 0) continue;
        if (operation.newKey !== 0n) {
          const undo = { op: "register", oldKey: operation.newKey, newKey: 0n, ignoreKey: false } as const;
          for (const other of paths) sdPr(target, other, undo);
        }
        return status;
      }
      return 0;
    }
    let status = 0;
    for (const path of paths) {
      status = sdPr(target, path, operation);
      // RELEASE goes to every path until one refuses, the others to the first path that takes them.
      if ((status === 0) !== (operation.op === "release")) break;
    }
    return status;
  };
  return {
    path: "/dev/mapper/mpatha",
    dmUuid: uuid,
    scsi: target.transport(first),
    pr: (operation) => Promise.resolve(pr(operation)),
    nvme: unknownIoctl,
    resetUnit: null,
  };
}

const CONFLICT = 0x4083; // with DNR
const INVALID_OPCODE = 0x4001;

/** One namespace, for any number of hosts. */
export class FakeNvmeNamespace {
  generation = 0;
  readonly keys = new Map<string, bigint>();
  holder: string | null = null;
  /** The namespace has no reservations at all. */
  lacksReservations = false;
  /** Hosts have 64-bit identifiers: the extended data structure is refused. */
  plainIdentifiers = false;

  mayWrite(host: string): boolean {
    return this.holder === null || this.keys.has(host);
  }

  device(host: string): ReservationDevice {
    return {
      path: "/dev/nvme0n1",
      dmUuid: null,
      scsi: { submit: unknownIoctl },
      pr: (operation) =>
        Promise.resolve(this.lacksReservations ? INVALID_OPCODE : this.#ioctl(host, operation)),
      nvme: (opcode, cdw10, cdw11, data) =>
        Promise.resolve(
          this.lacksReservations ? INVALID_OPCODE : this.#command(host, opcode, cdw10, cdw11, data),
        ),
      resetUnit: null,
    };
  }

  /** nvme_pr_register and its kin of Linux 6.1: which cdw10 they make of the arguments. */
  #ioctl(host: string, operation: KernelPrOperation): number {
    switch (operation.op) {
      case "register": {
        const action = operation.oldKey !== 0n ? 2 : 0;
        return this.#register(host, action, operation.ignoreKey, operation.oldKey, operation.newKey);
      }
      case "reserve":
        if (this.keys.get(host) !== operation.key) return CONFLICT;
        if (this.holder !== null && this.holder !== host) return CONFLICT;
        this.holder = host;
        return 0;
      case "release":
        if (this.keys.get(host) !== operation.key) return CONFLICT;
        if (this.holder === host) this.holder = null;
        return 0;
      case "preempt":
      case "preemptAbort": {
        if (this.keys.get(host) !== operation.ownKey) return CONFLICT;
        const victims = [...this.keys].filter(([, key]) => key === operation.victimKey).map(([name]) => name);
        if (victims.length === 0) return CONFLICT;
        this.generation++;
        for (const victim of victims) if (victim !== host) this.keys.delete(victim);
        if (this.holder !== null && victims.includes(this.holder)) this.holder = host;
        return 0;
      }
    }
  }

  /** Reservation Register: 0 register, 1 unregister, 2 replace. */
  #register(host: string, action: number, ignoreKey: boolean, oldKey: bigint, newKey: bigint): number {
    const existing = this.keys.get(host);
    if (action === 0 && existing !== undefined && existing !== newKey) return CONFLICT;
    if (action !== 0 && !ignoreKey && existing !== oldKey) return CONFLICT;
    this.generation++;
    if (action === 1) {
      this.keys.delete(host);
      if (this.holder === host) this.holder = null;
    } else this.keys.set(host, newKey);
    return 0;
  }

  #command(host: string, opcode: number, cdw10: number, cdw11: number, data: Uint8Array): number {
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    if (opcode === 0x0d) {
      const ignore = (cdw10 & 8) !== 0;
      return this.#register(host, cdw10 & 7, ignore, view.getBigUint64(0, true), view.getBigUint64(8, true));
    }
    if (opcode !== 0x0e) return INVALID_OPCODE;
    const extended = (cdw11 & 1) !== 0;
    if (extended === this.plainIdentifiers) return 0x4024;
    const [header, each] = extended ? [64, 64] : [24, 24];
    const bytes = new Uint8Array(header + each * this.keys.size);
    const answer = new DataView(bytes.buffer);
    answer.setUint32(0, this.generation, true);
    answer.setUint8(4, this.holder === null ? 0 : 3);
    answer.setUint16(5, this.keys.size, true);
    let at = header;
    for (const [name, key] of this.keys) {
      answer.setUint8(at + 2, name === this.holder ? 1 : 0);
      answer.setBigUint64(at + (extended ? 8 : 16), key, true);
      at += each;
    }
    data.set(bytes.subarray(0, Math.min(bytes.length, (cdw10 + 1) * 4, data.length)));
    return 0;
  }
}
