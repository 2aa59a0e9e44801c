// SPDX-License-Identifier: GPL-2.0-only
/**
 * SCSI-3 persistent reservations: builds PERSISTENT RESERVE IN and OUT, reads the answers, and turns every
 * failure into one ScsiError with a stable code. What to do with a reservation is the cluster floor's policy.
 *
 * Protocol: SPC-4 clauses 5.13 (what reservations mean), 6.15 (PERSISTENT RESERVE IN) and 6.16 (OUT).
 * Numbers in SCSI are big endian; keys are 64 bit and are bigints here.
 *
 * Retried inside, a bounded number of times: UNIT ATTENTION, BUSY and TASK SET FULL, since with these the target
 * has not executed the command. A transport error is not retried: the command may or may not have been executed,
 * and only READ KEYS / READ RESERVATION can tell.
 *
 * Known weakness: one instance speaks over one I_T nexus (one path). A node with several paths makes one instance
 * per path and registers on each.
 */
import { viewOf } from "../wire/error.js";
import { decodeSense, describeSense, SENSE_KEY, type Sense } from "./sense.js";

export interface ScsiResult {
  /** SCSI status byte (SAM-5 5.3). */
  readonly status: number;
  /** Linux host byte (DID_...), 0 is good. */
  readonly hostStatus: number;
  /** Linux driver byte; its low nibble 8 means "sense is valid". */
  readonly driverStatus: number;
  readonly sense: Uint8Array;
  /** Bytes asked for and not transferred. */
  readonly residual: number;
}

/** One command on one path. Injected; the native SG_IO binding in life, a model in tests. */
export interface ScsiTransport {
  /** direction "in" fills data, "out" sends it. Rejects only when the command could not be submitted at all. */
  submit(cdb: Uint8Array, direction: "none" | "in" | "out", data: Uint8Array): Promise<ScsiResult>;
}

export type ScsiErrorCode =
  /** Status 18h: the target's reservation forbids this to us, or our registration is not what we think. */
  | "RESERVATION_CONFLICT"
  /** Conditions kept coming beyond the retry limit. */
  | "UNIT_ATTENTION"
  /** The target does not know the command or refuses a field; `unsupported` says which of the two. */
  | "ILLEGAL_REQUEST"
  | "NOT_READY"
  | "MEDIUM_ERROR"
  | "HARDWARE_ERROR"
  | "DATA_PROTECT"
  | "ABORTED"
  /** BUSY, TASK SET FULL or ACA ACTIVE beyond the retry limit. */
  | "BUSY"
  /** Nobody knows whether the command was executed. */
  | "TRANSPORT"
  /** The target said GOOD and gave bytes that contradict themselves. */
  | "BAD_RESPONSE"
  /** CHECK CONDITION with any other or no sense, or an unknown status. */
  | "CHECK_CONDITION";

/** The only error that PersistentReservations throws for what the target or the path did. */
export class ScsiError extends Error {
  readonly code: ScsiErrorCode;
  readonly command: string;
  readonly status: number;
  readonly sense: Sense | null;
  constructor(
    code: ScsiErrorCode,
    command: string,
    what: string,
    more?: { status?: number; sense?: Sense | null; cause?: unknown },
  ) {
    super(`${command}: ${what}`, more?.cause === undefined ? undefined : { cause: more.cause });
    this.name = "ScsiError";
    this.code = code;
    this.command = command;
    this.status = more?.status ?? 0;
    this.sense = more?.sense ?? null;
  }
  /**
   * The target lacks this command, service action or type (INVALID OPERATION CODE or INVALID FIELD IN CDB). Some
   * (tgt) answer so to the APTPL bit too.
   */
  get unsupported(): boolean {
    return this.code === "ILLEGAL_REQUEST" && (this.sense?.asc === 0x20 || this.sense?.asc === 0x24);
  }
}

export const SCSI_STATUS = {
  GOOD: 0x00,
  CHECK_CONDITION: 0x02,
  CONDITION_MET: 0x04,
  BUSY: 0x08,
  RESERVATION_CONFLICT: 0x18,
  TASK_SET_FULL: 0x28,
  ACA_ACTIVE: 0x30,
  TASK_ABORTED: 0x40,
} as const;

/** Operation codes, SPC-4 6.15 and 6.16. */
export const PERSISTENT_RESERVE_IN = 0x5e;
export const PERSISTENT_RESERVE_OUT = 0x5f;

/** PERSISTENT RESERVE IN service actions, SPC-4 6.15.1. */
export const PR_IN = {
  READ_KEYS: 0,
  READ_RESERVATION: 1,
  REPORT_CAPABILITIES: 2,
  READ_FULL_STATUS: 3,
} as const;

/** PERSISTENT RESERVE OUT service actions, SPC-4 6.16.2. */
export const PR_OUT = {
  REGISTER: 0,
  RESERVE: 1,
  RELEASE: 2,
  CLEAR: 3,
  PREEMPT: 4,
  PREEMPT_AND_ABORT: 5,
  REGISTER_AND_IGNORE_EXISTING_KEY: 6,
} as const;

/** Reservation types, SPC-4 6.15.3.3. */
export const PR_TYPE = {
  WRITE_EXCLUSIVE: 1,
  EXCLUSIVE_ACCESS: 3,
  WRITE_EXCLUSIVE_REGISTRANTS_ONLY: 5,
  EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: 6,
  WRITE_EXCLUSIVE_ALL_REGISTRANTS: 7,
  EXCLUSIVE_ACCESS_ALL_REGISTRANTS: 8,
} as const;

/** The type MXFS uses: who is registered writes, everybody reads, one registrant holds it. */
export const MXFS_PR_TYPE = PR_TYPE.WRITE_EXCLUSIVE_REGISTRANTS_ONLY;

export interface PrKeys {
  /** PRGENERATION: rises with every successful REGISTER, CLEAR and PREEMPT (SPC-4 6.15.2). */
  readonly generation: number;
  /** One entry per registered I_T nexus: a node with two paths appears twice. */
  readonly keys: readonly bigint[];
}

export interface PrReservation {
  readonly generation: number;
  readonly holderKey: bigint;
  /** PR_TYPE value. */
  readonly type: number;
  readonly scope: number;
}

/** REPORT CAPABILITIES, SPC-4 6.15.4. */
export interface PrCapabilities {
  readonly persistThroughPowerLossCapable: boolean;
  readonly persistThroughPowerLossActive: boolean;
  readonly allTargetPortsCapable: boolean;
  readonly specifyInitiatorPortsCapable: boolean;
  readonly compatibleReservationHandling: boolean;
  /** Supported types, or null when the target does not tell (TMV is 0). */
  readonly types: readonly number[] | null;
}

export interface PrRegistrant {
  readonly key: bigint;
  readonly holder: boolean;
  /** PR_TYPE of the reservation held, 0 when not a holder. */
  readonly type: number;
  readonly allTargetPorts: boolean;
  readonly relativeTargetPort: number;
  /** TransportID (SPC-4 7.6.4) as given; names the initiator port. */
  readonly transportId: Uint8Array;
}

/** READ FULL STATUS, SPC-4 6.15.5. */
export interface PrFullStatus {
  readonly generation: number;
  readonly registrants: readonly PrRegistrant[];
}

export interface PersistentReservationsOptions {
  /** ALL_TG_PT: one registration counts on all target ports. Default false; see allTargetPortsCapable. */
  allTargetPorts?: boolean;
  /** APTPL: survive a power loss of the target. Default false, because some targets (tgt) refuse the bit. */
  persistThroughPowerLoss?: boolean;
  /** Retries after UNIT ATTENTION, default 8: a target queues several (reset, preempted, released). */
  unitAttentionRetriesMax?: number;
  /** Retries after BUSY or TASK SET FULL, default 10. */
  busyRetriesMax?: number;
  /** Waits before a BUSY retry; attempt counts from 1. Default: no wait. */
  pause?: (attempt: number) => Promise<void>;
  /** Told of every unit attention that was retried: the caller may learn there that it was preempted. */
  onUnitAttention?: (sense: Sense) => void;
}

/** First allocation: 8 byte header and 63 keys. */
const RESPONSE_BYTES_DEFAULT = 512;
/** ALLOCATION LENGTH is 16 bit (SPC-4 6.15.1). A multiple of 8, the size of a key. */
export const RESPONSE_BYTES_MAX = 65528;
/** A list that grows while it is read: give up after so many rounds. */
const RESPONSE_GROW_ROUNDS_MAX = 4;
const PARAMETER_LIST_BYTES = 24;

const KEY_MAX = (1n << 64n) - 1n;

const HOST_STATUS_NAMES: readonly string[] = [
  "DID_OK",
  "DID_NO_CONNECT",
  "DID_BUS_BUSY",
  "DID_TIME_OUT",
  "DID_BAD_TARGET",
  "DID_ABORT",
  "DID_PARITY",
  "DID_ERROR",
  "DID_RESET",
  "DID_BAD_INTR",
  "DID_PASSTHROUGH",
  "DID_SOFT_ERROR",
  "DID_IMM_RETRY",
  "DID_REQUEUE",
  "DID_TRANSPORT_DISRUPTED",
  "DID_TRANSPORT_FAILFAST",
  "DID_TARGET_FAILURE",
  "DID_NEXUS_FAILURE",
  "DID_ALLOC_FAILURE",
  "DID_MEDIUM_ERROR",
  "DID_TRANSPORT_MARGINAL",
];

/** A key as messages show it: 0x and 16 digits, node id then incarnation. */
export const hexKey = (key: bigint): string => `0x${key.toString(16).padStart(16, "0")}`;

function assertKey(name: string, key: bigint, zeroAllowed = false): void {
  if (key < 0n || key > KEY_MAX || (key === 0n && !zeroAllowed)) {
    throw new RangeError(`${name} must be a 64-bit reservation key other than 0, not ${key}`);
  }
}

/** What the SCSI result means: done, again, or an error to throw. */
type Verdict =
  | { readonly kind: "good" }
  | { readonly kind: "unit-attention"; readonly sense: Sense; readonly error: ScsiError }
  | { readonly kind: "busy"; readonly error: ScsiError }
  | { readonly kind: "error"; readonly error: ScsiError };

/** Judges one result. RESERVATION CONFLICT comes first: some kernels also set DID_NEXUS_FAILURE for it. */
function judge(command: string, result: ScsiResult): Verdict {
  const { status, hostStatus, driverStatus } = result;
  const fail = (code: ScsiErrorCode, what: string, sense: Sense | null = null): Verdict => ({
    kind: "error",
    error: new ScsiError(code, command, what, { status, sense }),
  });
  if (status === SCSI_STATUS.RESERVATION_CONFLICT) {
    return fail(
      "RESERVATION_CONFLICT",
      "the target answered RESERVATION CONFLICT: this path is not registered with the key it named, or another node holds the reservation; read the keys and the reservation to see who",
    );
  }
  if (hostStatus !== 0) {
    const name = HOST_STATUS_NAMES[hostStatus] ?? `host status ${hostStatus}`;
    return fail(
      "TRANSPORT",
      `the path to the target failed (${name}): the command may or may not have been executed; check cabling, zoning or the iSCSI session, then read the keys back`,
    );
  }
  const driver = driverStatus & 0x0f;
  const sense_valid = status === SCSI_STATUS.CHECK_CONDITION || driver === 0x08;
  if (!sense_valid && driver !== 0) {
    return fail(
      "TRANSPORT",
      `the kernel's driver reports status ${driverStatus} (6 is a timeout): the command may or may not have been executed; read the keys back`,
    );
  }
  if (sense_valid) return judgeSense(command, status, decodeSense(result.sense));
  switch (status) {
    case SCSI_STATUS.GOOD:
    case SCSI_STATUS.CONDITION_MET:
      return { kind: "good" };
    case SCSI_STATUS.BUSY:
    case SCSI_STATUS.TASK_SET_FULL:
    case SCSI_STATUS.ACA_ACTIVE: {
      const what = `the target stayed busy (status ${status.toString(16)}h) after all retries; its queue is full or it is overloaded`;
      return { kind: "busy", error: new ScsiError("BUSY", command, what, { status }) };
    }
    case SCSI_STATUS.TASK_ABORTED:
      return fail(
        "ABORTED",
        "the target aborted the command because of another node (TASK ABORTED); this node may be fenced, read the keys",
      );
    default:
      return fail("CHECK_CONDITION", `the target answered the unknown status ${status.toString(16)}h`);
  }
}

function judgeSense(command: string, status: number, sense: Sense | null): Verdict {
  const text = describeSense(sense);
  const fail = (code: ScsiErrorCode, advice: string): Verdict => ({
    kind: "error",
    error: new ScsiError(code, command, `${text}; ${advice}`, { status, sense }),
  });
  if (sense === null) {
    // Without sense nothing says that the command was executed; never take it for success.
    return fail(
      "CHECK_CONDITION",
      "the target reported a condition and the sense data is missing or cut short; look at the kernel log of this device",
    );
  }
  switch (sense.key) {
    case SENSE_KEY.NO_SENSE:
    case SENSE_KEY.RECOVERED_ERROR:
    case SENSE_KEY.COMPLETED:
      // The command was executed; a deferred error belongs to an earlier one, so this one was not (SPC-4 4.5.7).
      if (!sense.deferred) return { kind: "good" };
      return fail(
        "CHECK_CONDITION",
        "it belongs to an earlier command and this one was not executed; try again",
      );
    case SENSE_KEY.UNIT_ATTENTION: {
      const what = `${text}; still after all retries, so something keeps resetting or preempting at the target`;
      return {
        kind: "unit-attention",
        sense,
        error: new ScsiError("UNIT_ATTENTION", command, what, { status, sense }),
      };
    }
    case SENSE_KEY.ILLEGAL_REQUEST:
      return fail("ILLEGAL_REQUEST", illegalRequestAdvice(sense));
    case SENSE_KEY.NOT_READY:
      return fail("NOT_READY", "wait for the storage to come up, or repair the path");
    case SENSE_KEY.MEDIUM_ERROR:
      return fail("MEDIUM_ERROR", "the storage is damaged; look at the array's own log");
    case SENSE_KEY.HARDWARE_ERROR:
      return fail("HARDWARE_ERROR", "the storage is damaged; look at the array's own log");
    case SENSE_KEY.DATA_PROTECT:
      return fail("DATA_PROTECT", "the LUN is write protected at the target; export it writable");
    case SENSE_KEY.ABORTED_COMMAND:
      return fail(
        "ABORTED",
        "the target gave the command up; read the keys to see what holds, then try again",
      );
    default:
      return fail("CHECK_CONDITION", "look at the kernel log of this device and at the target's log");
  }
}

function illegalRequestAdvice(sense: Sense): string {
  switch ((sense.asc << 8) | sense.ascq) {
    case 0x2000:
      return "the target does not offer this command";
    case 0x2400:
      return "the target does not offer this service action, type or feature bit (APTPL, ALL_TG_PT)";
    case 0x2604:
      return "the reservation has another type or scope than the one released; read the reservation";
    case 0x5502:
    case 0x5504:
      return "the target has no room for another registration; remove stale keys (read the keys, preempt those of nodes that are gone)";
    default:
      return "the target refuses the parameters; a lacking feature bit (APTPL, ALL_TG_PT) is the usual cause";
  }
}

/** Big-endian reading of a PR IN answer with every length checked. */
class Answer {
  readonly view: DataView;
  constructor(
    readonly command: string,
    readonly bytes: Uint8Array,
  ) {
    this.view = viewOf(bytes);
  }
  bad(what: string): ScsiError {
    return new ScsiError(
      "BAD_RESPONSE",
      this.command,
      `${what}; the target or its driver is faulty, update or report it`,
    );
  }
  need(length: number, what: string): void {
    if (this.bytes.length < length) {
      throw this.bad(`${what}: expected at least ${length} bytes, got ${this.bytes.length}`);
    }
  }
}

/** READ KEYS parameter data (SPC-4 6.15.2): PRGENERATION, ADDITIONAL LENGTH, keys of 8 bytes. */
export function decodeReadKeys(bytes: Uint8Array): PrKeys {
  const answer = new Answer("READ KEYS", bytes);
  answer.need(8, "header");
  const additional = answer.view.getUint32(4);
  if (additional % 8 !== 0) throw answer.bad(`ADDITIONAL LENGTH ${additional} is not a multiple of 8`);
  answer.need(8 + additional, "keys");
  const keys: bigint[] = [];
  for (let at = 8; at < 8 + additional; at += 8) keys.push(answer.view.getBigUint64(at));
  return { generation: answer.view.getUint32(0), keys };
}

/** READ RESERVATION parameter data (SPC-4 6.15.3): 8 bytes when there is none, else 16 more. */
export function decodeReadReservation(bytes: Uint8Array): PrReservation | null {
  const answer = new Answer("READ RESERVATION", bytes);
  answer.need(8, "header");
  const additional = answer.view.getUint32(4);
  if (additional === 0) return null;
  if (additional !== 16) throw answer.bad(`ADDITIONAL LENGTH is ${additional}, expected 0 or 16`);
  answer.need(24, "reservation descriptor");
  const scope_type = answer.view.getUint8(21);
  return {
    generation: answer.view.getUint32(0),
    holderKey: answer.view.getBigUint64(8),
    type: scope_type & 0x0f,
    scope: scope_type >> 4,
  };
}

/** REPORT CAPABILITIES parameter data (SPC-4 6.15.4). Type mask bits: byte 4 (7 6 5 3 1), byte 5 bit 0. */
export function decodeCapabilities(bytes: Uint8Array): PrCapabilities {
  const answer = new Answer("REPORT CAPABILITIES", bytes);
  answer.need(8, "parameter data");
  const length = answer.view.getUint16(0);
  if (length < 8) throw answer.bad(`LENGTH is ${length}, expected 8`);
  const flags = answer.view.getUint8(2);
  const flags2 = answer.view.getUint8(3);
  const mask = answer.view.getUint16(4);
  const types: number[] = [];
  const bits: readonly (readonly [number, number])[] = [
    [0x0200, PR_TYPE.WRITE_EXCLUSIVE],
    [0x0800, PR_TYPE.EXCLUSIVE_ACCESS],
    [0x2000, PR_TYPE.WRITE_EXCLUSIVE_REGISTRANTS_ONLY],
    [0x4000, PR_TYPE.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY],
    [0x8000, PR_TYPE.WRITE_EXCLUSIVE_ALL_REGISTRANTS],
    [0x0001, PR_TYPE.EXCLUSIVE_ACCESS_ALL_REGISTRANTS],
  ];
  for (const [bit, type] of bits) if ((mask & bit) !== 0) types.push(type);
  return {
    persistThroughPowerLossCapable: (flags & 0x01) !== 0,
    allTargetPortsCapable: (flags & 0x04) !== 0,
    specifyInitiatorPortsCapable: (flags & 0x08) !== 0,
    compatibleReservationHandling: (flags & 0x10) !== 0,
    persistThroughPowerLossActive: (flags2 & 0x01) !== 0,
    types: (flags2 & 0x80) !== 0 ? types : null,
  };
}

/** READ FULL STATUS parameter data (SPC-4 6.15.5): descriptors of 24 bytes and a TransportID each. */
export function decodeFullStatus(bytes: Uint8Array): PrFullStatus {
  const answer = new Answer("READ FULL STATUS", bytes);
  answer.need(8, "header");
  const end = 8 + answer.view.getUint32(4);
  answer.need(end, "descriptors");
  const registrants: PrRegistrant[] = [];
  let at = 8;
  while (at < end) {
    if (at + 24 > end)
      throw answer.bad(`descriptor ${registrants.length} ends after ${end - at} of 24 bytes`);
    const transport_bytes = answer.view.getUint32(at + 20);
    if (transport_bytes > end - at - 24) {
      throw answer.bad(
        `descriptor ${registrants.length} claims a TransportID of ${transport_bytes} bytes, ${end - at - 24} are left`,
      );
    }
    const flags = answer.view.getUint8(at + 12);
    const holder = (flags & 0x01) !== 0;
    registrants.push({
      key: answer.view.getBigUint64(at),
      holder,
      // SCOPE and TYPE mean something only for a holder (SPC-4 6.15.5).
      type: holder ? answer.view.getUint8(at + 13) & 0x0f : 0,
      allTargetPorts: (flags & 0x02) !== 0,
      relativeTargetPort: answer.view.getUint16(at + 18),
      transportId: bytes.slice(at + 24, at + 24 + transport_bytes),
    });
    at += 24 + transport_bytes;
  }
  return { generation: answer.view.getUint32(0), registrants };
}

/** PERSISTENT RESERVE OUT (SPC-4 6.16): the 10-byte CDB. Scope is always LU_SCOPE (0). */
export function encodeReserveOutCdb(serviceAction: number, type: number): Uint8Array {
  const cdb = new Uint8Array(10);
  cdb[0] = PERSISTENT_RESERVE_OUT;
  cdb[1] = serviceAction & 0x1f;
  cdb[2] = type & 0x0f;
  viewOf(cdb).setUint32(5, PARAMETER_LIST_BYTES);
  return cdb;
}

/** Basic PERSISTENT RESERVE OUT parameter list (SPC-4 6.16.3), 24 bytes. */
export function encodeReserveOutParameters(
  key: bigint,
  serviceActionKey: bigint,
  flags: { allTargetPorts: boolean; persistThroughPowerLoss: boolean },
): Uint8Array {
  const list = new Uint8Array(PARAMETER_LIST_BYTES);
  const view = viewOf(list);
  view.setBigUint64(0, key);
  view.setBigUint64(8, serviceActionKey);
  view.setUint8(20, (flags.allTargetPorts ? 0x04 : 0) | (flags.persistThroughPowerLoss ? 0x01 : 0));
  return list;
}

/** PERSISTENT RESERVE IN (SPC-4 6.15): the 10-byte CDB. */
export function encodeReserveInCdb(serviceAction: number, allocationBytes: number): Uint8Array {
  const cdb = new Uint8Array(10);
  cdb[0] = PERSISTENT_RESERVE_IN;
  cdb[1] = serviceAction & 0x1f;
  viewOf(cdb).setUint16(7, allocationBytes);
  return cdb;
}

/** Persistent reservations of one LUN over one path. Every method throws ScsiError; see the codes there. */
export class PersistentReservations {
  readonly #transport: ScsiTransport;
  readonly #flags: { allTargetPorts: boolean; persistThroughPowerLoss: boolean };
  readonly #unitAttentionRetriesMax: number;
  readonly #busyRetriesMax: number;
  readonly #pause: ((attempt: number) => Promise<void>) | null;
  readonly #onUnitAttention: ((sense: Sense) => void) | null;

  constructor(transport: ScsiTransport, options: PersistentReservationsOptions = {}) {
    this.#transport = transport;
    this.#flags = {
      allTargetPorts: options.allTargetPorts ?? false,
      persistThroughPowerLoss: options.persistThroughPowerLoss ?? false,
    };
    this.#unitAttentionRetriesMax = options.unitAttentionRetriesMax ?? 8;
    this.#busyRetriesMax = options.busyRetriesMax ?? 10;
    this.#pause = options.pause ?? null;
    this.#onUnitAttention = options.onUnitAttention ?? null;
  }

  /** All registered keys, one per I_T nexus (SPC-4 6.15.2). */
  async readKeys(): Promise<PrKeys> {
    return decodeReadKeys(await this.#readList("READ KEYS", PR_IN.READ_KEYS));
  }

  /** The reservation, or null when there is none (SPC-4 6.15.3). */
  async readReservation(): Promise<PrReservation | null> {
    return decodeReadReservation(await this.#readList("READ RESERVATION", PR_IN.READ_RESERVATION));
  }

  /** What the target can do (SPC-4 6.15.4), or null when it does not offer the command. */
  async reportCapabilities(): Promise<PrCapabilities | null> {
    const command = "REPORT CAPABILITIES";
    return nullWhenUnsupported(async () => {
      const { bytes } = await this.#readOnce(command, PR_IN.REPORT_CAPABILITIES, 8);
      return decodeCapabilities(bytes);
    });
  }

  /** Keys with holder flag and initiator names (SPC-4 6.15.5), or null when the target does not offer it. */
  async readFullStatus(): Promise<PrFullStatus | null> {
    return nullWhenUnsupported(async () =>
      decodeFullStatus(await this.#readList("READ FULL STATUS", PR_IN.READ_FULL_STATUS)),
    );
  }

  /** REGISTER AND IGNORE EXISTING KEY (SPC-4 5.13.7): this nexus has `key` afterwards, whatever it had. */
  async register(key: bigint): Promise<void> {
    assertKey("key", key);
    await this.#out("REGISTER AND IGNORE EXISTING KEY", PR_OUT.REGISTER_AND_IGNORE_EXISTING_KEY, 0n, key, 0);
  }

  /**
   * REGISTER (SPC-4 5.13.7): `oldKey` must be what this nexus is registered with, 0 when it is not; otherwise
   * RESERVATION_CONFLICT, and nothing has changed. So it fails, where register() would hide a fencing.
   */
  async registerFrom(oldKey: bigint, newKey: bigint): Promise<void> {
    assertKey("old key", oldKey, true);
    assertKey("new key", newKey);
    await this.#out("REGISTER", PR_OUT.REGISTER, oldKey, newKey, 0);
  }

  /** REGISTER with new key 0 (SPC-4 5.13.11.2): removes our registration, and releases if we are the holder. */
  async unregister(key: bigint): Promise<void> {
    assertKey("key", key);
    await this.#out("REGISTER (unregister)", PR_OUT.REGISTER, key, 0n, 0);
  }

  /**
   * RESERVE (SPC-4 5.13.9). Atomic at the target: of several nodes one gets it, the others RESERVATION_CONFLICT.
   * Good as well when this nexus already holds it with this type.
   */
  async reserve(key: bigint, type: number = MXFS_PR_TYPE): Promise<void> {
    assertKey("key", key);
    await this.#out("RESERVE", PR_OUT.RESERVE, key, 0n, type);
  }

  /** RELEASE (SPC-4 5.13.11.2). Good, without effect, when this nexus is registered and not the holder. */
  async release(key: bigint, type: number = MXFS_PR_TYPE): Promise<void> {
    assertKey("key", key);
    await this.#out("RELEASE", PR_OUT.RELEASE, key, 0n, type);
  }

  /**
   * PREEMPT (SPC-4 5.13.11.3): removes all registrations of `victim`; when it held the reservation, we hold it
   * now, with `type`. RESERVATION_CONFLICT when we are not registered with `key`, or nobody has `victim` (another
   * node was faster). Writes that the victim has queued at the target may still land.
   */
  async preempt(key: bigint, victim: bigint, type: number = MXFS_PR_TYPE): Promise<void> {
    assertKey("key", key);
    assertKey("victim key", victim);
    await this.#out(`PREEMPT of ${hexKey(victim)}`, PR_OUT.PREEMPT, key, victim, type);
  }

  /**
   * PREEMPT AND ABORT (SPC-4 5.13.11.4): as preempt(), and the victim's queued commands are aborted.
   * A target that lacks it gives ILLEGAL_REQUEST with `unsupported` true, and has changed nothing.
   */
  async preemptAndAbort(key: bigint, victim: bigint, type: number = MXFS_PR_TYPE): Promise<void> {
    assertKey("key", key);
    assertKey("victim key", victim);
    await this.#out(`PREEMPT AND ABORT of ${hexKey(victim)}`, PR_OUT.PREEMPT_AND_ABORT, key, victim, type);
  }

  /** CLEAR (SPC-4 5.13.11.5): removes the reservation and every registration, of all nodes. */
  async clear(key: bigint): Promise<void> {
    assertKey("key", key);
    await this.#out("CLEAR", PR_OUT.CLEAR, key, 0n, 0);
  }

  async #out(command: string, action: number, key: bigint, actionKey: bigint, type: number): Promise<void> {
    const registering = action === PR_OUT.REGISTER || action === PR_OUT.REGISTER_AND_IGNORE_EXISTING_KEY;
    // ALL_TG_PT and APTPL are defined for the two register actions only (SPC-4 6.16.3).
    const flags = registering ? this.#flags : { allTargetPorts: false, persistThroughPowerLoss: false };
    await this.#submit(command, encodeReserveOutCdb(action, type), "out", () =>
      encodeReserveOutParameters(key, actionKey, flags),
    );
  }

  /** One PERSISTENT RESERVE IN: the bytes that were really transferred. */
  async #readOnce(command: string, action: number, allocationBytes: number): Promise<{ bytes: Uint8Array }> {
    const cdb = encodeReserveInCdb(action, allocationBytes);
    const { data, result } = await this.#submit(command, cdb, "in", () => new Uint8Array(allocationBytes));
    const { residual } = result;
    if (!Number.isInteger(residual) || residual < 0 || residual > data.length) {
      throw new ScsiError(
        "BAD_RESPONSE",
        command,
        `residual ${residual} of ${data.length} bytes; the driver is faulty`,
      );
    }
    return { bytes: data.subarray(0, data.length - residual) };
  }

  /** Reads an answer whose ADDITIONAL LENGTH (bytes 4 to 7) may say that the buffer was too small. */
  async #readList(command: string, action: number): Promise<Uint8Array> {
    let allocation_bytes = RESPONSE_BYTES_DEFAULT;
    for (let round = 0; round < RESPONSE_GROW_ROUNDS_MAX; round++) {
      const { bytes } = await this.#readOnce(command, action, allocation_bytes);
      if (bytes.length < 8) return bytes; // the decoder says what is missing
      const total_bytes = 8 + viewOf(bytes).getUint32(4);
      if (total_bytes <= allocation_bytes) return bytes.subarray(0, Math.min(bytes.length, total_bytes));
      if (total_bytes > RESPONSE_BYTES_MAX) {
        throw new ScsiError(
          "BAD_RESPONSE",
          command,
          `the target announces ${total_bytes} bytes, the limit is ${RESPONSE_BYTES_MAX}; remove stale registrations`,
        );
      }
      // Room for a few registrations that arrive between the two commands.
      allocation_bytes = Math.min(RESPONSE_BYTES_MAX, total_bytes + RESPONSE_BYTES_DEFAULT);
    }
    throw new ScsiError(
      "BAD_RESPONSE",
      command,
      `the list kept growing over ${RESPONSE_GROW_ROUNDS_MAX} reads; try again`,
    );
  }

  /** Submits with bounded retries. `makeData` gives a fresh buffer, so that a retry never sees old bytes. */
  async #submit(
    command: string,
    cdb: Uint8Array,
    direction: "in" | "out",
    makeData: () => Uint8Array,
  ): Promise<{ data: Uint8Array; result: ScsiResult }> {
    let unit_attentions = 0;
    let busies = 0;
    for (;;) {
      const data = makeData();
      let result: ScsiResult;
      try {
        result = await this.#transport.submit(cdb, direction, data);
      } catch (cause) {
        throw new ScsiError(
          "TRANSPORT",
          command,
          `the command could not be submitted (${cause instanceof Error ? cause.message : String(cause)}); check the device node and its permissions`,
          { cause },
        );
      }
      const verdict = judge(command, result);
      switch (verdict.kind) {
        case "good":
          return { data, result };
        case "error":
          throw verdict.error;
        case "unit-attention":
          this.#onUnitAttention?.(verdict.sense);
          if (++unit_attentions > this.#unitAttentionRetriesMax) throw verdict.error;
          break;
        case "busy":
          if (++busies > this.#busyRetriesMax) throw verdict.error;
          await this.#pause?.(busies);
          break;
      }
    }
  }
}

async function nullWhenUnsupported<T>(action: () => Promise<T>): Promise<T | null> {
  try {
    return await action();
  } catch (error) {
    if (error instanceof ScsiError && error.unsupported) return null;
    throw error;
  }
}
