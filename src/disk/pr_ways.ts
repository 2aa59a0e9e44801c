// SPDX-License-Identifier: GPL-2.0-only
/**
 * The ways to make persistent reservations on a device, and which one a device needs, found out by asking it:
 *
 *   way        commands (OUT)                          questions (IN)                   needs
 *   scsi       SG_IO                                   SG_IO                            a SCSI disk
 *   multipath  the kernel's PR ioctls: REGISTER goes   SG_IO through the map; the       a device-mapper multipath map,
 *              to every path, all or none              ioctls cannot read (Linux 6.1)   and a target that takes APTPL
 *   nvme       the kernel's PR ioctls                  Reservation Report, by NVMe      a namespace with reservations
 *                                                      pass-through
 *
 * The PR ioctls tell nobody's key: without a way to ask who holds, nobody could be elected or followed, so a device
 * that takes the ioctls and can not be read is refused. The ioctls give a status and no sense: a CHECK CONDITION may be
 * a unit attention (the command was not executed), so it is tried again a few times, and is then taken for a refusal.
 *
 * What else each cannot do: multipath knows the paths that are there when the key is registered; a path that is added
 * later has no key, and a write that takes it is refused, which fences the node. PREEMPT on NVMe has no queue to reset.
 * Other device-mapper devices (a partition of a multipath map, LVM, crypt) are refused: their LUN is somebody else's too.
 *
 * Protocol: SPC-4 5.13; NVM Express base specification 2.0, 7.2 to 7.5 (Reservation Acquire to Report) and 8.19;
 * linux/pr.h. NVMe's numbers are little endian.
 *
 * Known weakness: the kernel's SCSI driver asks for APTPL with every REGISTER, so multipath over a target without it
 * (tgt) is refused. Not tried on NVMe hardware: proven against models only.
 */
import {
  hexKey,
  PersistentReservations,
  type PersistentReservationsOptions,
  type PrReservation,
  SCSI_STATUS,
  ScsiError,
  type ScsiErrorCode,
  type ScsiTransport,
} from "./reservation.js";

/** One ioctl of linux/pr.h; the type is always Write Exclusive, Registrants Only. */
export type KernelPrOperation =
  | { readonly op: "register"; readonly oldKey: bigint; readonly newKey: bigint; readonly ignoreKey: boolean }
  | { readonly op: "reserve"; readonly key: bigint }
  | { readonly op: "release"; readonly key: bigint }
  | {
      readonly op: "preempt" | "preemptAbort";
      readonly ownKey: bigint;
      readonly victimKey: bigint;
    };

/** A device, as far as reservations are concerned. Injected: the native calls in life, models in tests. */
export interface ReservationDevice {
  readonly path: string;
  /** The device-mapper UUID, "" for a map without one; null: no device-mapper device. */
  readonly dmUuid: string | null;
  readonly scsi: ScsiTransport;
  /** 0, or the driver's status; rejects with an error that has a `code` (ENOTTY, EOPNOTSUPP, EBADE, ...). */
  pr(operation: KernelPrOperation): Promise<number>;
  /** One NVMe I/O command with its data: 0, or the NVMe status; rejects with ENOTTY where there is no NVMe. */
  nvme(opcode: number, cdw10: number, cdw11: number, data: Uint8Array): Promise<number>;
  /** LOGICAL UNIT RESET; null where it does not surely reach the target. */
  readonly resetUnit: (() => Promise<void>) | null;
}

/** What the cluster needs; every method throws ScsiError. */
export interface ReservationWay {
  readonly name: "scsi" | "multipath" | "nvme";
  readKeys(): Promise<{ readonly generation: number; readonly keys: readonly bigint[] }>;
  readReservation(): Promise<PrReservation | null>;
  register(key: bigint): Promise<void>;
  /** Only where there is no key: RESERVATION_CONFLICT otherwise. */
  registerAgain(key: bigint): Promise<void>;
  unregister(key: bigint): Promise<void>;
  reserve(key: bigint): Promise<void>;
  release(key: bigint): Promise<void>;
  preempt(key: bigint, victim: bigint): Promise<void>;
  preemptAndAbort(key: bigint, victim: bigint): Promise<void>;
}

/** The device cannot be fenced at all; the message says why and what to do. */
export class NoReservationsError extends Error {
  override name = "NoReservationsError";
}

const NEEDED =
  "MXFS needs persistent reservations (Write Exclusive, Registrants Only) to keep failed nodes from writing";

function codeOf(error: unknown): string {
  const code = typeof error === "object" && error !== null ? (error as { code?: unknown }).code : undefined;
  return typeof code === "string" ? code : "";
}

/** The device does not know the ioctl at all. EINVAL: what virtio-blk and others answer to SG_IO. */
function isUnknownIoctl(error: unknown): boolean {
  return ["ENOTTY", "EOPNOTSUPP", "ENOSYS", "EINVAL"].includes(codeOf(error));
}

// ---- scsi -------------------------------------------------------------------------------------------------

/** What a target answers that does not want the APTPL bit, or cannot store what it asks for. */
const APTPL_REFUSALS: readonly ScsiErrorCode[] = [
  "ILLEGAL_REQUEST",
  "NOT_READY",
  "HARDWARE_ERROR",
  "CHECK_CONDITION",
];

/** SG_IO for everything. Asks the target to keep registrations through a restart (APTPL), if it will. */
class ScsiWay implements ReservationWay {
  readonly name = "scsi";
  readonly #persistent: PersistentReservations;
  readonly #plain: PersistentReservations;
  #chosen: PersistentReservations;

  constructor(transport: ScsiTransport, options: PersistentReservationsOptions) {
    this.#persistent = new PersistentReservations(transport, { ...options, persistThroughPowerLoss: true });
    this.#plain = new PersistentReservations(transport, options);
    this.#chosen = this.#persistent;
  }

  /** Both kinds of REGISTER: with APTPL, and if the target refuses that without. */
  async #registering(action: (pr: PersistentReservations) => Promise<void>): Promise<void> {
    try {
      return await action(this.#chosen);
    } catch (error) {
      const refused = error instanceof ScsiError && APTPL_REFUSALS.includes(error.code);
      if (!refused || this.#chosen === this.#plain) throw error;
    }
    await action(this.#plain);
    this.#chosen = this.#plain;
  }

  readKeys = () => this.#plain.readKeys();
  readReservation = () => this.#plain.readReservation();
  register = (key: bigint) => this.#registering((pr) => pr.register(key));
  registerAgain = (key: bigint) => this.#registering((pr) => pr.registerFrom(0n, key));
  /** With the same APTPL bit as before: the last REGISTER's counts for all. */
  unregister = (key: bigint) => this.#registering((pr) => pr.unregister(key));
  reserve = (key: bigint) => this.#plain.reserve(key);
  release = (key: bigint) => this.#plain.release(key);
  preempt = (key: bigint, victim: bigint) => this.#plain.preempt(key, victim);
  preemptAndAbort = (key: bigint, victim: bigint) => this.#plain.preemptAndAbort(key, victim);
}

// ---- the kernel's PR ioctls -------------------------------------------------------------------------------

/** NVMe Reservation Conflict (generic status 83h); status code type and code without DNR and More. */
const NVME_CONFLICT = 0x083;
const NVME_STATUS_MASK = 0x7ff;
/** Tries of a command that ended with CHECK CONDITION, BUSY or TASK SET FULL: none of these was executed. */
const KERNEL_TRIES = 4;

/** What an ioctl's status means for a SCSI disk: the SCSI result, status in the low byte, DID_... in bits 23:16. */
function judgeScsi(command: string, status: number): ScsiError | "again" {
  const host = (status >> 16) & 0xff;
  const low = status & 0xff;
  if (low === SCSI_STATUS.RESERVATION_CONFLICT) return conflict(command);
  if (host !== 0) {
    return new ScsiError(
      "TRANSPORT",
      command,
      `a path failed (host status ${host}): the command may or may not have been executed; look at the paths`,
    );
  }
  return "again";
}

function judgeNvme(command: string, status: number): ScsiError | "again" {
  const code = status & NVME_STATUS_MASK;
  if (code === NVME_CONFLICT || code === SCSI_STATUS.RESERVATION_CONFLICT) return conflict(command);
  const text = `NVMe status ${code.toString(16)}h`;
  // Invalid Command Opcode, Invalid Field in Command.
  if (code === 0x001 || code === 0x002) return refusal(command, text);
  return new ScsiError("TRANSPORT", command, `${text}: look at the kernel log of this device`);
}

function conflict(command: string): ScsiError {
  const what =
    "RESERVATION CONFLICT: a path is not registered with the key it named, or another node holds the reservation";
  return new ScsiError("RESERVATION_CONFLICT", command, what, { status: SCSI_STATUS.RESERVATION_CONFLICT });
}

/** Sense INVALID FIELD IN CDB, which the ioctl keeps to itself: ScsiError.unsupported is true. */
function refusal(command: string, text: string): ScsiError {
  const what = `${text}: the target refuses the command, its type, or APTPL, which the kernel always asks for`;
  return new ScsiError("ILLEGAL_REQUEST", command, what, {
    status: SCSI_STATUS.CHECK_CONDITION,
    sense: {
      format: "fixed",
      deferred: false,
      key: 5,
      keyName: "ILLEGAL REQUEST",
      asc: 0x24,
      ascq: 0,
      name: "not told by the ioctl",
      fieldPointer: null,
    },
  });
}

/** The two ways to ask. */
interface Reader {
  readKeys(): Promise<{ readonly generation: number; readonly keys: readonly bigint[] }>;
  readReservation(): Promise<PrReservation | null>;
}

class KernelWay implements ReservationWay {
  constructor(
    readonly name: "multipath" | "nvme",
    readonly device: ReservationDevice,
    readonly reader: Reader,
    readonly pause: (attempt: number) => Promise<void>,
  ) {}

  readKeys = () => this.reader.readKeys();
  readReservation = () => this.reader.readReservation();

  register(key: bigint): Promise<void> {
    // An old key makes of it NVMe's "replace", which together with IEKEY takes whatever is there, or nothing.
    return this.out("REGISTER AND IGNORE EXISTING KEY", {
      op: "register",
      oldKey: this.name === "nvme" ? key : 0n,
      newKey: key,
      ignoreKey: true,
    });
  }
  registerAgain(key: bigint): Promise<void> {
    return this.out("REGISTER", { op: "register", oldKey: 0n, newKey: key, ignoreKey: false });
  }
  unregister(key: bigint): Promise<void> {
    // Linux 6.1 makes "replace" of it on NVMe, with key 0: not what is wanted.
    if (this.name === "nvme") return nvmeUnregister(this.device, key);
    return this.out("REGISTER (unregister)", { op: "register", oldKey: key, newKey: 0n, ignoreKey: false });
  }
  reserve(key: bigint): Promise<void> {
    return this.out("RESERVE", { op: "reserve", key });
  }
  release(key: bigint): Promise<void> {
    return this.out("RELEASE", { op: "release", key });
  }
  preempt(ownKey: bigint, victimKey: bigint): Promise<void> {
    return this.out(`PREEMPT of ${hexKey(victimKey)}`, { op: "preempt", ownKey, victimKey });
  }
  preemptAndAbort(ownKey: bigint, victimKey: bigint): Promise<void> {
    return this.out(`PREEMPT AND ABORT of ${hexKey(victimKey)}`, { op: "preemptAbort", ownKey, victimKey });
  }

  private async out(command: string, operation: KernelPrOperation): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      let status: number;
      try {
        status = await this.device.pr(operation);
      } catch (cause) {
        if (codeOf(cause) === "EBADE") throw conflict(command);
        const text = cause instanceof Error ? cause.message : String(cause);
        if (isUnknownIoctl(cause)) throw refusal(command, text);
        throw new ScsiError("TRANSPORT", command, text, { cause });
      }
      if (status === 0) return;
      const verdict = this.name === "nvme" ? judgeNvme(command, status) : judgeScsi(command, status);
      if (verdict !== "again") throw verdict;
      if (attempt === KERNEL_TRIES) {
        if ((status & 0xff) === SCSI_STATUS.CHECK_CONDITION) {
          throw refusal(command, `CHECK CONDITION ${KERNEL_TRIES} times`);
        }
        throw new ScsiError(
          "BUSY",
          command,
          `the target stayed busy (status ${(status & 0xff).toString(16)}h)`,
        );
      }
      await this.pause(attempt);
    }
  }
}

// ---- NVMe -------------------------------------------------------------------------------------------------

const NVME_RESV_REGISTER = 0x0d;
const NVME_RESV_REPORT = 0x0e;
/** RREGA: unregister. */
const NVME_UNREGISTER = 1;
/** Host Identifier Inconsistent Format: the other data structure is in use. */
const NVME_INCONSISTENT_FORMAT = 0x024;
const NVME_REPORT_BYTES = 4096;
/** Reservation Status, NVMe base 2.0 figure 424 and 425: header, one registered controller. */
const NVME_STATUS_BYTES = { plain: 24, extended: 64 } as const;
const NVME_CONTROLLER_BYTES = { plain: 24, extended: 64 } as const;

export interface NvmeReport {
  readonly generation: number;
  /** 0: no reservation. NVMe's numbers: 3 is Write Exclusive, Registrants Only. */
  readonly type: number;
  readonly registrants: readonly { readonly key: bigint; readonly holder: boolean }[];
}

/** Reservation Status data structure (NVMe base 2.0, 7.5). @throws ScsiError BAD_RESPONSE when it contradicts itself. */
export function decodeNvmeReport(bytes: Uint8Array, extended: boolean): NvmeReport {
  const bad = (what: string): ScsiError =>
    new ScsiError("BAD_RESPONSE", "Reservation Report", `${what}; the device or its driver is faulty`);
  const kind = extended ? "extended" : "plain";
  const header_bytes = NVME_STATUS_BYTES[kind];
  const each_bytes = NVME_CONTROLLER_BYTES[kind];
  if (bytes.length < header_bytes) throw bad(`expected ${header_bytes} bytes, got ${bytes.length}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const count = view.getUint16(5, true);
  if (header_bytes + count * each_bytes > bytes.length) {
    throw bad(`${count} registered controllers do not fit in ${bytes.length} bytes`);
  }
  const registrants = Array.from({ length: count }, (_, i) => {
    const at = header_bytes + i * each_bytes;
    return {
      key: view.getBigUint64(extended ? at + 8 : at + 16, true),
      holder: (view.getUint8(at + 2) & 1) !== 0,
    };
  });
  return { generation: view.getUint32(0, true), type: view.getUint8(4), registrants };
}

class NvmeReader implements Reader {
  /** Fabrics use 128-bit host identifiers, which only the extended structure can tell. */
  #extended = true;

  constructor(readonly device: ReservationDevice) {}

  async report(): Promise<NvmeReport> {
    const command = "Reservation Report";
    let bytes = NVME_REPORT_BYTES;
    for (let round = 0; round < 4; round++) {
      const data = new Uint8Array(bytes);
      let status: number;
      try {
        status = await this.device.nvme(NVME_RESV_REPORT, bytes / 4 - 1, this.#extended ? 1 : 0, data);
      } catch (cause) {
        throw new ScsiError("TRANSPORT", command, cause instanceof Error ? cause.message : String(cause), {
          cause,
        });
      }
      const code = status & NVME_STATUS_MASK;
      if (code === NVME_INCONSISTENT_FORMAT || (code === 0x002 && round === 0)) {
        this.#extended = !this.#extended;
        continue;
      }
      if (status !== 0) {
        const verdict = judgeNvme(command, status);
        throw verdict === "again" ? refusal(command, `NVMe status ${status}`) : verdict;
      }
      const kind = this.#extended ? "extended" : "plain";
      const count = new DataView(data.buffer).getUint16(5, true);
      const needed = NVME_STATUS_BYTES[kind] + count * NVME_CONTROLLER_BYTES[kind];
      if (needed <= bytes) return decodeNvmeReport(data, this.#extended);
      bytes = Math.ceil((needed + NVME_REPORT_BYTES) / 4096) * 4096;
    }
    throw new ScsiError(
      "BAD_RESPONSE",
      command,
      "the host identifier's format, or the list's size, kept changing",
    );
  }

  async readKeys(): Promise<{ generation: number; keys: bigint[] }> {
    const { generation, registrants } = await this.report();
    return { generation, keys: registrants.map((one) => one.key) };
  }

  async readReservation(): Promise<PrReservation | null> {
    const { generation, type, registrants } = await this.report();
    if (type === 0) return null;
    const holder = registrants.find((one) => one.holder);
    if (holder === undefined) {
      throw new ScsiError(
        "BAD_RESPONSE",
        "Reservation Report",
        `type ${type} is reserved, and nobody is its holder`,
      );
    }
    return { generation, holderKey: holder.key, type: scsiType(type), scope: 0 };
  }
}

/** NVMe numbers the types 1 to 6 (figure 415), SPC-4 1, 3, 5, 6, 7, 8. */
function scsiType(nvme: number): number {
  return [0, 1, 3, 5, 6, 7, 8][nvme] ?? nvme;
}

async function nvmeUnregister(device: ReservationDevice, key: bigint): Promise<void> {
  const command = "Reservation Register (unregister)";
  const data = new Uint8Array(16);
  new DataView(data.buffer).setBigUint64(0, key, true);
  let status: number;
  try {
    status = await device.nvme(NVME_RESV_REGISTER, NVME_UNREGISTER, 0, data);
  } catch (cause) {
    throw new ScsiError("TRANSPORT", command, cause instanceof Error ? cause.message : String(cause), {
      cause,
    });
  }
  if (status === 0) return;
  const verdict = judgeNvme(command, status);
  throw verdict === "again" ? refusal(command, `NVMe status ${status}`) : verdict;
}

// ---- which one --------------------------------------------------------------------------------------------

/**
 * Asks the device. @throws NoReservationsError when it cannot be fenced; ScsiError when it could not be asked now.
 */
export async function chooseWay(
  device: ReservationDevice,
  options: PersistentReservationsOptions = {},
): Promise<ReservationWay> {
  const { path, dmUuid } = device;
  if (dmUuid !== null && !dmUuid.startsWith("mpath-")) {
    const found =
      dmUuid === "" ? "a device-mapper device without a UUID" : `the device-mapper device ${dmUuid}`;
    throw new NoReservationsError(
      `${path} is ${found}, no multipath map: a reservation covers the whole LUN below it. ` +
        "Use the LUN itself, or its multipath map as a whole",
    );
  }
  const pause = options.pause ?? (() => Promise.resolve());
  const reader = new PersistentReservations(device.scsi, options);
  try {
    await reader.readKeys();
    return dmUuid === null
      ? new ScsiWay(device.scsi, options)
      : new KernelWay("multipath", device, reader, pause);
  } catch (error) {
    if (!(error instanceof ScsiError)) throw error;
    if (error.unsupported) {
      throw new NoReservationsError(
        `${path} has no SCSI-3 persistent reservations (${error.message}); ${NEEDED}`,
      );
    }
    if (!isUnknownIoctl(error.cause)) throw error;
  }
  const nvme = new NvmeReader(device);
  try {
    await nvme.report();
  } catch (error) {
    if (!(error instanceof ScsiError)) throw error;
    if (isUnknownIoctl(error.cause)) {
      throw new NoReservationsError(
        `${path} is neither a SCSI disk nor an NVMe namespace nor a multipath map of such: nobody can ask it for ` +
          `reservations; ${NEEDED}`,
      );
    }
    if (error.unsupported) {
      throw new NoReservationsError(
        `the NVMe namespace ${path} has no reservations (${error.message}); ${NEEDED}`,
      );
    }
    throw error;
  }
  return new KernelWay("nvme", device, nvme, pause);
}

/** The line for the log: how it is done here. */
export function describeWay(way: ReservationWay): string {
  switch (way.name) {
    case "scsi":
      return "SG_IO on one path";
    case "multipath":
      return "the kernel's PR ioctls on every path of the map, SG_IO to read";
    case "nvme":
      return "the kernel's PR ioctls, NVMe Reservation Report to read";
  }
}
