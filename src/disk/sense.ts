// SPDX-License-Identifier: GPL-2.0-only
/**
 * SCSI sense data: decodes fixed (70h/71h) and descriptor (72h/73h) format into key, ASC, ASCQ and a name.
 * Protocol: SPC-4 clause 4.5 (sense data), tables of sense keys (4.5.6) and of additional sense codes (annex D).
 *
 * Sense comes from storage of all makes and through drivers that cut it short, so decoding never throws:
 * what is too short or of an unknown format is null, and a code without a name is shown in hex.
 * Known weakness: only the codes that matter to reservations and to a path's health have names.
 */

/** Sense keys, SPC-4 table 48. */
export const SENSE_KEY = {
  NO_SENSE: 0x0,
  RECOVERED_ERROR: 0x1,
  NOT_READY: 0x2,
  MEDIUM_ERROR: 0x3,
  HARDWARE_ERROR: 0x4,
  ILLEGAL_REQUEST: 0x5,
  UNIT_ATTENTION: 0x6,
  DATA_PROTECT: 0x7,
  BLANK_CHECK: 0x8,
  VENDOR_SPECIFIC: 0x9,
  COPY_ABORTED: 0xa,
  ABORTED_COMMAND: 0xb,
  RESERVED: 0xc,
  VOLUME_OVERFLOW: 0xd,
  MISCOMPARE: 0xe,
  COMPLETED: 0xf,
} as const;

const SENSE_KEY_NAMES: readonly string[] = Object.keys(SENSE_KEY).map((name) => name.replaceAll("_", " "));

export interface Sense {
  readonly format: "fixed" | "descriptor";
  /** The error belongs to an earlier command (response codes 71h and 73h). */
  readonly deferred: boolean;
  readonly key: number;
  readonly keyName: string;
  /** Additional sense code and qualifier; 0/0 when the data ends before them. */
  readonly asc: number;
  readonly ascq: number;
  readonly name: string;
  /** For ILLEGAL REQUEST with a valid field pointer (SKSV): which byte of the CDB or the data was refused. */
  readonly fieldPointer: { readonly inCdb: boolean; readonly byte: number } | null;
}

/** Names of ASC << 8 | ASCQ, SPC-4 annex D. */
const ASC_NAMES: ReadonlyMap<number, string> = new Map([
  [0x0000, "NO ADDITIONAL SENSE INFORMATION"],
  [0x0400, "LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE"],
  [0x0401, "LOGICAL UNIT IS IN PROCESS OF BECOMING READY"],
  [0x0402, "LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED"],
  [0x0403, "LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED"],
  [0x0404, "LOGICAL UNIT NOT READY, FORMAT IN PROGRESS"],
  [0x040a, "LOGICAL UNIT NOT ACCESSIBLE, ASYMMETRIC ACCESS STATE TRANSITION"],
  [0x040b, "LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN STANDBY STATE"],
  [0x040c, "LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN UNAVAILABLE STATE"],
  [0x0800, "LOGICAL UNIT COMMUNICATION FAILURE"],
  [0x0c00, "WRITE ERROR"],
  [0x1100, "UNRECOVERED READ ERROR"],
  [0x1400, "RECORDED ENTITY NOT FOUND"],
  [0x1a00, "PARAMETER LIST LENGTH ERROR"],
  [0x2000, "INVALID COMMAND OPERATION CODE"],
  [0x2100, "LOGICAL BLOCK ADDRESS OUT OF RANGE"],
  [0x2400, "INVALID FIELD IN CDB"],
  [0x2500, "LOGICAL UNIT NOT SUPPORTED"],
  [0x2600, "INVALID FIELD IN PARAMETER LIST"],
  [0x2604, "INVALID RELEASE OF PERSISTENT RESERVATION"],
  [0x2700, "WRITE PROTECTED"],
  [0x2800, "NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED"],
  [0x2900, "POWER ON, RESET, OR BUS DEVICE RESET OCCURRED"],
  [0x2901, "POWER ON OCCURRED"],
  [0x2902, "SCSI BUS RESET OCCURRED"],
  [0x2903, "BUS DEVICE RESET FUNCTION OCCURRED"],
  [0x2904, "DEVICE INTERNAL RESET"],
  [0x2907, "I_T NEXUS LOSS OCCURRED"],
  [0x2a00, "PARAMETERS CHANGED"],
  [0x2a01, "MODE PARAMETERS CHANGED"],
  [0x2a03, "RESERVATIONS PREEMPTED"],
  [0x2a04, "RESERVATIONS RELEASED"],
  [0x2a05, "REGISTRATIONS PREEMPTED"],
  [0x2a06, "ASYMMETRIC ACCESS STATE CHANGED"],
  [0x2a09, "CAPACITY DATA HAS CHANGED"],
  [0x2c00, "COMMAND SEQUENCE ERROR"],
  [0x2f00, "COMMANDS CLEARED BY ANOTHER INITIATOR"],
  [0x3a00, "MEDIUM NOT PRESENT"],
  [0x3f03, "INQUIRY DATA HAS CHANGED"],
  [0x3f0e, "REPORTED LUNS DATA HAS CHANGED"],
  [0x4400, "INTERNAL TARGET FAILURE"],
  [0x4700, "SCSI PARITY ERROR"],
  [0x4b00, "DATA PHASE ERROR"],
  [0x4e00, "OVERLAPPED COMMANDS ATTEMPTED"],
  [0x5500, "SYSTEM RESOURCE FAILURE"],
  [0x5502, "INSUFFICIENT RESERVATION RESOURCES"],
  [0x5503, "INSUFFICIENT RESOURCES"],
  [0x5504, "INSUFFICIENT REGISTRATION RESOURCES"],
]);

/** The name of an additional sense code, or its two bytes in hex when it has none here. */
export function ascName(asc: number, ascq: number): string {
  const hex = `${asc.toString(16).padStart(2, "0")}h/${ascq.toString(16).padStart(2, "0")}h`;
  return ASC_NAMES.get((asc << 8) | ascq) ?? `ADDITIONAL SENSE CODE ${hex}`;
}

/**
 * SENSE KEY SPECIFIC bytes for ILLEGAL REQUEST (SPC-4 4.5.2.4.2): SKSV in bit 7, C/D in bit 6 (1: in the CDB),
 * field pointer in the two bytes that follow.
 */
function decodeFieldPointer(sense: Uint8Array, at: number, key: number): Sense["fieldPointer"] {
  if (key !== SENSE_KEY.ILLEGAL_REQUEST || at + 3 > sense.length) return null;
  const flags = sense[at] ?? 0;
  if ((flags & 0x80) === 0) return null;
  return { inCdb: (flags & 0x40) !== 0, byte: ((sense[at + 1] ?? 0) << 8) | (sense[at + 2] ?? 0) };
}

/** Fixed format (SPC-4 4.5.3): key in byte 2, ASC/ASCQ in 12 and 13, key specific in 15 to 17. */
function decodeFixed(sense: Uint8Array, deferred: boolean): Sense | null {
  if (sense.length < 3) return null;
  const key = (sense[2] ?? 0) & 0x0f;
  // ADDITIONAL SENSE LENGTH (byte 7) says how much of the rest is meaningful; drivers pad with old bytes.
  const valid_bytes = sense.length < 8 ? sense.length : Math.min(sense.length, 8 + (sense[7] ?? 0));
  const asc = valid_bytes > 12 ? (sense[12] ?? 0) : 0;
  const ascq = valid_bytes > 13 ? (sense[13] ?? 0) : 0;
  const fieldPointer = decodeFieldPointer(sense.subarray(0, valid_bytes), 15, key);
  return {
    format: "fixed",
    deferred,
    key,
    keyName: keyNameOf(key),
    asc,
    ascq,
    name: ascName(asc, ascq),
    fieldPointer,
  };
}

/** Descriptor format (SPC-4 4.5.2): key, ASC, ASCQ in bytes 1 to 3, descriptors from byte 8. */
function decodeDescriptor(sense: Uint8Array, deferred: boolean): Sense | null {
  if (sense.length < 4) return null;
  const key = (sense[1] ?? 0) & 0x0f;
  const asc = sense[2] ?? 0;
  const ascq = sense[3] ?? 0;
  let fieldPointer: Sense["fieldPointer"] = null;
  const end = sense.length < 8 ? 0 : Math.min(sense.length, 8 + (sense[7] ?? 0));
  // Each descriptor is at least 2 bytes, so this ends.
  for (let at = 8; at + 2 <= end; at += 2 + (sense[at + 1] ?? 0)) {
    // 02h: sense key specific, its three bytes start at 4 of the descriptor.
    if (sense[at] === 0x02) fieldPointer = decodeFieldPointer(sense.subarray(0, end), at + 4, key);
  }
  return {
    format: "descriptor",
    deferred,
    key,
    keyName: keyNameOf(key),
    asc,
    ascq,
    name: ascName(asc, ascq),
    fieldPointer,
  };
}

function keyNameOf(key: number): string {
  return SENSE_KEY_NAMES[key] ?? `SENSE KEY ${key.toString(16)}h`;
}

/** Decodes sense data. Null when there is none, or when it is cut short or of an unknown response code. */
export function decodeSense(sense: Uint8Array): Sense | null {
  const response_code = (sense[0] ?? 0) & 0x7f;
  switch (response_code) {
    case 0x70:
    case 0x71:
      return decodeFixed(sense, response_code === 0x71);
    case 0x72:
    case 0x73:
      return decodeDescriptor(sense, response_code === 0x73);
    default:
      return null;
  }
}

/** One line for a message: key, name, codes, and the refused byte when the target tells it. */
export function describeSense(sense: Sense | null): string {
  if (sense === null) return "no sense data";
  const pointer =
    sense.fieldPointer === null
      ? ""
      : `, byte ${sense.fieldPointer.byte} of the ${sense.fieldPointer.inCdb ? "CDB" : "parameter list"}`;
  const codes = `${sense.asc.toString(16).padStart(2, "0")}h/${sense.ascq.toString(16).padStart(2, "0")}h`;
  return `${sense.keyName}: ${sense.name} (${codes}${pointer})${sense.deferred ? ", deferred" : ""}`;
}
