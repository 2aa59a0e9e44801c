// SPDX-License-Identifier: GPL-2.0-only
//
// The PrPort of the cluster core over a real device: which way its reservations are made is found out at the first
// probe() (src/disk/pr_ways.ts); here are the system calls below it, and outcomes in place of exceptions above.
//
// LUN RESET is offered only where the host's driver hands it to the storage itself. A hypervisor's disk answers it in
// place of the storage, with success, and nothing has been aborted there.
//
// Known weakness: the list of such drivers is by name; one that is not in it costs the drain time, nothing else.

import { readFileSync, realpathSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import { nvmeAsync, PR_TYPE, prIoctlAsync, scsiResetAsync, sgIoAsync } from "../../native/index.js";
import type { PrOutcome, PrPort } from "../cluster/ports.js";
import {
  chooseWay,
  describeWay,
  type KernelPrOperation,
  NoReservationsError,
  type ReservationDevice,
  type ReservationWay,
} from "../disk/pr_ways.js";
import { ScsiError } from "../disk/reservation.js";
import { messageOf } from "../wire/error.js";
import { sysfsPath } from "./lun.js";

const COMMAND_TIMEOUT_MS = 30_000;
/** proc_name of hosts that speak to the storage themselves (drivers/scsi, drivers/infiniband/ulp/iser). */
const DIRECT_HOSTS: readonly string[] = [
  "iscsi_tcp",
  "iscsi_iser",
  "qla2xxx",
  "lpfc",
  "qla4xxx",
  "mpt3sas",
  "fnic",
];

function readLine(path: string): string | null {
  try {
    return readFileSync(path, "utf8").trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    return null;
  }
}

/** proc_name of the SCSI host that a disk hangs on; null: no SCSI disk. */
function hostDriver(sysfs: string): string | null {
  let device: string;
  try {
    device = realpathSync(`${sysfs}/device`);
  } catch {
    return null; // device-mapper and the like have none
  }
  const host = /\/(host[0-9]+)\//.exec(device)?.[1];
  return host === undefined ? null : readLine(`/sys/class/scsi_host/${host}/proc_name`);
}

/** The system calls for one open device. */
function deviceOf(path: string, fd: number): ReservationDevice {
  const sysfs = sysfsPath(path);
  const driver = hostDriver(sysfs);
  const type = PR_TYPE.writeExclusiveRegistrantsOnly;
  const ioctl = (operation: KernelPrOperation): Promise<number> =>
    prIoctlAsync(fd, operation.op === "register" ? operation : { ...operation, type });
  return {
    path,
    dmUuid: readLine(`${sysfs}/dm/uuid`),
    scsi: {
      submit: (cdb, direction, data) =>
        sgIoAsync(fd, cdb, direction, direction === "none" ? null : data, COMMAND_TIMEOUT_MS),
    },
    pr: ioctl,
    nvme: (opcode, cdw10, cdw11, data) => nvmeAsync(fd, opcode, cdw10, cdw11, data, COMMAND_TIMEOUT_MS),
    resetUnit: driver !== null && DIRECT_HOSTS.includes(driver) ? () => scsiResetAsync(fd) : null,
  };
}

async function outcomeOf(action: () => Promise<void>): Promise<PrOutcome> {
  try {
    await action();
    return { kind: "ok" };
  } catch (error) {
    if (error instanceof ScsiError && error.code === "RESERVATION_CONFLICT") return { kind: "conflict" };
    if (error instanceof ScsiError && error.unsupported)
      return { kind: "unsupported", message: error.message };
    return { kind: "error", message: messageOf(error) };
  }
}

/** Reservations on a device that is open; nothing is asked before probe() or the first command. */
export function openReservations(
  path: string,
  fd: number,
  onAttention: (text: string) => void,
  device: ReservationDevice = deviceOf(path, fd),
): PrPort {
  let chosen: ReservationWay | null = null;
  const way = async (): Promise<ReservationWay> => {
    chosen ??= await chooseWay(device, {
      pause: (attempt) => pause(20 * attempt),
      onUnitAttention: (sense) =>
        onAttention(`unit attention ${sense.asc.toString(16)}/${sense.ascq.toString(16)}`),
    });
    return chosen;
  };
  const command = (action: (way: ReservationWay) => Promise<void>): Promise<PrOutcome> =>
    outcomeOf(async () => action(await way()));
  return {
    async probe() {
      try {
        return { kind: "ok", way: describeWay(await way()) };
      } catch (error) {
        return {
          kind: error instanceof NoReservationsError ? "refused" : "error",
          message: messageOf(error),
        };
      }
    },
    register: (key) => command((pr) => pr.register(key)),
    registerAgain: (key) => command((pr) => pr.registerAgain(key)),
    reserve: (key) => command((pr) => pr.reserve(key)),
    preempt: (key, victim) => command((pr) => pr.preempt(key, victim)),
    preemptAndAbort: (key, victim) => command((pr) => pr.preemptAndAbort(key, victim)),
    release: (key) => command((pr) => pr.release(key)),
    unregister: (key) => command((pr) => pr.unregister(key)),
    async resetUnit() {
      const { resetUnit } = device;
      if (resetUnit === null)
        return { kind: "unsupported", message: "a LUN RESET may not reach the target from here" };
      return outcomeOf(resetUnit);
    },
    async readKeys() {
      try {
        const { keys, generation } = await (await way()).readKeys();
        return { kind: "ok", keys, generation };
      } catch (error) {
        return { kind: "error", message: messageOf(error) };
      }
    },
    async readReservation() {
      try {
        const found = await (await way()).readReservation();
        return found === null ? { kind: "none" } : { kind: "held", key: found.holderKey, type: found.type };
      } catch (error) {
        return { kind: "error", message: messageOf(error) };
      }
    },
  };
}
