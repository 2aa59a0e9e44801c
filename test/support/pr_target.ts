// SPDX-License-Identifier: GPL-2.0-only
/**
 * FakePrTarget: one LUN's persistent reservations in memory, for any number of initiators, with the quirks of real
 * targets. The unit tests drive the encoder and decoder against it, the cluster simulation elects and fences on it.
 *
 * Protocol: SPC-4 5.13 and 6.15/6.16. Types 1, 3, 5 and 6; the all-registrants types (7, 8) are refused with
 * INVALID FIELD IN CDB, as a target without them does. An initiator is named by a string; one name is one I_T nexus.
 *
 * Known weakness: one target port, so ALL_TG_PT and SPEC_I_PT are refused; commands are executed at once and in
 * order, so what PREEMPT AND ABORT aborts is the caller's matter (`onAbort`).
 */
import type { ScsiResult, ScsiTransport } from "../../src/disk/reservation.js";
import {
  PERSISTENT_RESERVE_IN,
  PERSISTENT_RESERVE_OUT,
  PR_IN,
  PR_OUT,
  PR_TYPE,
  SCSI_STATUS,
} from "../../src/disk/reservation.js";

export interface PrTargetQuirks {
  /** PREEMPT AND ABORT is an illegal request, as in tgt. */
  noPreemptAndAbort?: boolean;
  noReportCapabilities?: boolean;
  /** READ FULL STATUS is an illegal request, as in tgt. */
  noReadFullStatus?: boolean;
  /** REGISTER AND IGNORE EXISTING KEY is an illegal request. */
  noRegisterAndIgnore?: boolean;
  /** The APTPL bit is an invalid field in the CDB, as in tgt (by SPC-4 it would be one in the parameter list). */
  noPersistThroughPowerLoss?: boolean;
  /** No unit attentions after preemption or release. */
  noUnitAttentions?: boolean;
  /** How many registrations fit; one more is INSUFFICIENT REGISTRATION RESOURCES. Default 1024. */
  registrationsMax?: number;
}

interface SenseCode {
  readonly key: number;
  readonly asc: number;
  readonly ascq: number;
}

const ILLEGAL = 0x5;
const UNIT_ATTENTION = 0x6;
const INVALID_OPCODE: SenseCode = { key: ILLEGAL, asc: 0x20, ascq: 0x00 };
const INVALID_FIELD_IN_CDB: SenseCode = { key: ILLEGAL, asc: 0x24, ascq: 0x00 };
const INVALID_FIELD_IN_LIST: SenseCode = { key: ILLEGAL, asc: 0x26, ascq: 0x00 };
const INVALID_RELEASE: SenseCode = { key: ILLEGAL, asc: 0x26, ascq: 0x04 };
const PARAMETER_LENGTH_ERROR: SenseCode = { key: ILLEGAL, asc: 0x1a, ascq: 0x00 };
const NO_REGISTRATION_ROOM: SenseCode = { key: ILLEGAL, asc: 0x55, ascq: 0x04 };
export const UA_POWER_ON: SenseCode = { key: UNIT_ATTENTION, asc: 0x29, ascq: 0x01 };
export const UA_RESERVATIONS_PREEMPTED: SenseCode = { key: UNIT_ATTENTION, asc: 0x2a, ascq: 0x03 };
export const UA_RESERVATIONS_RELEASED: SenseCode = { key: UNIT_ATTENTION, asc: 0x2a, ascq: 0x04 };
export const UA_REGISTRATIONS_PREEMPTED: SenseCode = { key: UNIT_ATTENTION, asc: 0x2a, ascq: 0x05 };

const TYPES_KNOWN: readonly number[] = [
  PR_TYPE.WRITE_EXCLUSIVE,
  PR_TYPE.EXCLUSIVE_ACCESS,
  PR_TYPE.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
  PR_TYPE.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
];

function isRegistrantsOnly(type: number): boolean {
  return (
    type === PR_TYPE.WRITE_EXCLUSIVE_REGISTRANTS_ONLY || type === PR_TYPE.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY
  );
}

type Outcome = {
  readonly status: number;
  readonly sense: SenseCode | null;
  readonly data: Uint8Array | null;
};
const good = (data: Uint8Array | null = null): Outcome => ({ status: SCSI_STATUS.GOOD, sense: null, data });
const CONFLICT: Outcome = { status: SCSI_STATUS.RESERVATION_CONFLICT, sense: null, data: null };
const check = (sense: SenseCode): Outcome => ({ status: SCSI_STATUS.CHECK_CONDITION, sense, data: null });

/** Unit attentions that one initiator can have queued; the oldest goes when it is full. */
const UNIT_ATTENTIONS_MAX = 16;

export class FakePrTarget {
  readonly quirks: PrTargetQuirks;
  generation = 0;
  /** Every PR OUT that was executed, as "initiator ACTION", for tests that count. */
  readonly journal: string[] = [];
  /** Told of the initiators whose queued commands PREEMPT AND ABORT aborts. */
  onAbort: (victims: readonly string[]) => void = () => {};

  readonly #registrations = new Map<string, bigint>();
  #reservation: { holder: string; type: number } | null = null;
  #persistThroughPowerLoss = false;
  readonly #unitAttentions = new Map<string, SenseCode[]>();
  readonly #faults = new Map<string, Partial<ScsiResult>[]>();

  constructor(quirks: PrTargetQuirks = {}) {
    this.quirks = quirks;
  }

  /** The path of one initiator. */
  transport(initiator: string): ScsiTransport {
    return {
      submit: (cdb, _direction, data) => Promise.resolve(this.execute(initiator, cdb, data)),
    };
  }

  // ---- What tests and the simulation ask -------------------------------------------------------------------

  keyOf(initiator: string): bigint | null {
    return this.#registrations.get(initiator) ?? null;
  }

  get holder(): string | null {
    return this.#reservation?.holder ?? null;
  }

  get reservationType(): number {
    return this.#reservation?.type ?? 0;
  }

  /** Whether a WRITE of this initiator is executed or conflicts (SPC-4 table 51). */
  mayWrite(initiator: string): boolean {
    if (this.#reservation === null || this.#reservation.holder === initiator) return true;
    return isRegistrantsOnly(this.#reservation.type) && this.#registrations.has(initiator);
  }

  /** Whether a READ of this initiator is executed: the write-exclusive types let everybody read. */
  mayRead(initiator: string): boolean {
    const type = this.#reservation?.type ?? 0;
    if (type === PR_TYPE.EXCLUSIVE_ACCESS || type === PR_TYPE.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY)
      return this.mayWrite(initiator);
    return true;
  }

  /** The target loses power: everything is gone unless the last registration asked for APTPL (SPC-4 5.13.5). */
  powerCycle(): void {
    const initiators = new Set([...this.#registrations.keys(), ...this.#unitAttentions.keys()]);
    if (!this.#persistThroughPowerLoss) {
      this.#registrations.clear();
      this.#reservation = null;
    }
    this.generation = 0;
    for (const initiator of initiators) this.raiseUnitAttention(initiator, UA_POWER_ON);
  }

  /** Queues a unit attention that the next command of the initiator gets instead of being executed. */
  raiseUnitAttention(initiator: string, sense: SenseCode): void {
    if (this.quirks.noUnitAttentions === true) return;
    const queue = this.#unitAttentions.get(initiator) ?? [];
    queue.push(sense);
    if (queue.length > UNIT_ATTENTIONS_MAX) queue.shift();
    this.#unitAttentions.set(initiator, queue);
  }

  /** The next command of the initiator is not executed and answered with this. */
  injectFault(initiator: string, result: Partial<ScsiResult>): void {
    const queue = this.#faults.get(initiator) ?? [];
    queue.push(result);
    this.#faults.set(initiator, queue);
  }

  // ---- Commands --------------------------------------------------------------------------------------------

  /** Executes one command; fills data for PERSISTENT RESERVE IN. Synchronous, so that a simulation can order it. */
  execute(initiator: string, cdb: Uint8Array, data: Uint8Array): ScsiResult {
    const fault = this.#faults.get(initiator)?.shift();
    if (fault !== undefined) {
      return { status: 0, hostStatus: 0, driverStatus: 0, sense: new Uint8Array(0), residual: 0, ...fault };
    }
    const attention = this.#unitAttentions.get(initiator)?.shift();
    const outcome = attention === undefined ? this.#dispatch(initiator, cdb, data) : check(attention);
    const answer = outcome.data ?? new Uint8Array(0);
    const transferred = outcome.data === null ? 0 : Math.min(answer.length, data.length);
    if (outcome.data !== null) data.set(answer.subarray(0, transferred));
    return {
      status: outcome.status,
      hostStatus: 0,
      driverStatus: outcome.sense === null ? 0 : 0x08,
      sense: outcome.sense === null ? new Uint8Array(0) : fixedSense(outcome.sense),
      residual: outcome.data === null ? 0 : data.length - transferred,
    };
  }

  #dispatch(initiator: string, cdb: Uint8Array, data: Uint8Array): Outcome {
    if (cdb.length !== 10) return check(INVALID_OPCODE);
    const action = (cdb[1] ?? 0) & 0x1f;
    switch (cdb[0]) {
      case PERSISTENT_RESERVE_IN:
        return this.#in(action, new DataView(cdb.buffer, cdb.byteOffset).getUint16(7));
      case PERSISTENT_RESERVE_OUT:
        return this.#out(initiator, action, cdb, data);
      default:
        return check(INVALID_OPCODE);
    }
  }

  #in(action: number, allocationBytes: number): Outcome {
    const cut = (bytes: Uint8Array): Outcome => good(bytes.subarray(0, allocationBytes));
    switch (action) {
      case PR_IN.READ_KEYS:
        return cut(this.#readKeys());
      case PR_IN.READ_RESERVATION:
        return cut(this.#readReservation());
      case PR_IN.REPORT_CAPABILITIES:
        return this.quirks.noReportCapabilities === true
          ? check(INVALID_FIELD_IN_CDB)
          : cut(this.#capabilities());
      case PR_IN.READ_FULL_STATUS:
        return this.quirks.noReadFullStatus === true ? check(INVALID_FIELD_IN_CDB) : cut(this.#fullStatus());
      default:
        return check(INVALID_FIELD_IN_CDB);
    }
  }

  #readKeys(): Uint8Array {
    const keys = [...this.#registrations.values()];
    const bytes = new Uint8Array(8 + keys.length * 8);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, this.generation);
    view.setUint32(4, keys.length * 8);
    keys.forEach((key, i) => {
      view.setBigUint64(8 + i * 8, key);
    });
    return bytes;
  }

  #readReservation(): Uint8Array {
    const reservation = this.#reservation;
    const bytes = new Uint8Array(reservation === null ? 8 : 24);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, this.generation);
    if (reservation === null) return bytes;
    view.setUint32(4, 16);
    view.setBigUint64(8, this.#registrations.get(reservation.holder) ?? 0n);
    view.setUint8(21, reservation.type);
    return bytes;
  }

  #capabilities(): Uint8Array {
    const bytes = new Uint8Array(8);
    const view = new DataView(bytes.buffer);
    view.setUint16(0, 8);
    view.setUint8(2, this.quirks.noPersistThroughPowerLoss === true ? 0x10 : 0x11);
    view.setUint8(3, 0x80 | (this.#persistThroughPowerLoss ? 0x01 : 0x00));
    view.setUint16(4, 0x6a00); // types 1, 3, 5 and 6
    return bytes;
  }

  #fullStatus(): Uint8Array {
    const parts: Uint8Array[] = [];
    for (const [initiator, key] of this.#registrations) {
      // An iSCSI TransportID (SPC-4 7.6.4.6): protocol 5, the name NUL-terminated and padded to 4, 20 bytes at least.
      const name = new TextEncoder().encode(initiator);
      const name_bytes = Math.max(20, (name.length + 1 + 3) & ~3);
      const bytes = new Uint8Array(24 + 4 + name_bytes);
      const view = new DataView(bytes.buffer);
      const holds = this.#reservation?.holder === initiator;
      view.setBigUint64(0, key);
      view.setUint8(12, holds ? 0x01 : 0x00);
      view.setUint8(13, holds ? this.reservationType : 0);
      view.setUint16(18, 1);
      view.setUint32(20, 4 + name_bytes);
      view.setUint8(24, 0x05);
      view.setUint16(26, name_bytes);
      bytes.set(name, 28);
      parts.push(bytes);
    }
    const total = parts.reduce((sum, part) => sum + part.length, 0);
    const bytes = new Uint8Array(8 + total);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, this.generation);
    view.setUint32(4, total);
    let at = 8;
    for (const part of parts) {
      bytes.set(part, at);
      at += part.length;
    }
    return bytes;
  }

  #out(initiator: string, action: number, cdb: Uint8Array, data: Uint8Array): Outcome {
    const list_bytes = new DataView(cdb.buffer, cdb.byteOffset).getUint32(5);
    if (list_bytes !== 24 || data.length !== 24) return check(PARAMETER_LENGTH_ERROR);
    const view = new DataView(data.buffer, data.byteOffset);
    const key = view.getBigUint64(0);
    const action_key = view.getBigUint64(8);
    const flags = view.getUint8(20);
    const scope_type = cdb[2] ?? 0;
    switch (action) {
      case PR_OUT.REGISTER:
        return this.#register(initiator, key, action_key, flags, false);
      case PR_OUT.REGISTER_AND_IGNORE_EXISTING_KEY:
        if (this.quirks.noRegisterAndIgnore === true) return check(INVALID_FIELD_IN_CDB);
        return this.#register(initiator, key, action_key, flags, true);
      case PR_OUT.RESERVE:
        return this.#reserve(initiator, key, scope_type);
      case PR_OUT.RELEASE:
        return this.#release(initiator, key, scope_type);
      case PR_OUT.CLEAR:
        return this.#clear(initiator, key);
      case PR_OUT.PREEMPT:
        return this.#preempt(initiator, key, action_key, scope_type, false);
      case PR_OUT.PREEMPT_AND_ABORT:
        if (this.quirks.noPreemptAndAbort === true) return check(INVALID_FIELD_IN_CDB);
        return this.#preempt(initiator, key, action_key, scope_type, true);
      default:
        return check(INVALID_FIELD_IN_CDB);
    }
  }

  /** REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-4 5.13.7, tables 46 and 47). */
  #register(initiator: string, key: bigint, newKey: bigint, flags: number, ignoreExisting: boolean): Outcome {
    const persist = (flags & 0x01) !== 0;
    if ((flags & 0x0c) !== 0) return check(INVALID_FIELD_IN_LIST);
    if (persist && this.quirks.noPersistThroughPowerLoss === true) return check(INVALID_FIELD_IN_CDB);
    const existing = this.#registrations.get(initiator) ?? 0n;
    if (!ignoreExisting && key !== existing) return CONFLICT;
    if (newKey === 0n && existing === 0n) return good();
    if (existing === 0n && this.#registrations.size >= (this.quirks.registrationsMax ?? 1024))
      return check(NO_REGISTRATION_ROOM);
    this.#persistThroughPowerLoss = persist;
    this.generation = (this.generation + 1) >>> 0;
    if (newKey === 0n) {
      this.journal.push(`${initiator} UNREGISTER`);
      this.#registrations.delete(initiator);
      if (this.#reservation?.holder === initiator) this.#dropReservation(initiator);
    } else {
      this.journal.push(`${initiator} REGISTER`);
      this.#registrations.set(initiator, newKey);
    }
    return good();
  }

  /** The reservation goes; the other registrants of a registrants-only type are told (SPC-4 5.13.11.2.2). */
  #dropReservation(by: string): void {
    const type = this.#reservation?.type ?? 0;
    this.#reservation = null;
    if (!isRegistrantsOnly(type)) return;
    for (const other of this.#registrations.keys())
      if (other !== by) this.raiseUnitAttention(other, UA_RESERVATIONS_RELEASED);
  }

  #isRegisteredWith(initiator: string, key: bigint): boolean {
    return key !== 0n && this.#registrations.get(initiator) === key;
  }

  #badType(scopeType: number): boolean {
    return scopeType >> 4 !== 0 || !TYPES_KNOWN.includes(scopeType & 0x0f);
  }

  #reserve(initiator: string, key: bigint, scopeType: number): Outcome {
    if (!this.#isRegisteredWith(initiator, key)) return CONFLICT;
    if (this.#badType(scopeType)) return check(INVALID_FIELD_IN_CDB);
    const type = scopeType & 0x0f;
    if (this.#reservation !== null) {
      return this.#reservation.holder === initiator && this.#reservation.type === type ? good() : CONFLICT;
    }
    this.journal.push(`${initiator} RESERVE`);
    this.#reservation = { holder: initiator, type };
    return good();
  }

  #release(initiator: string, key: bigint, scopeType: number): Outcome {
    if (!this.#isRegisteredWith(initiator, key)) return CONFLICT;
    if (this.#reservation === null || this.#reservation.holder !== initiator) return good();
    if (this.#reservation.type !== scopeType) return check(INVALID_RELEASE);
    this.journal.push(`${initiator} RELEASE`);
    this.#dropReservation(initiator);
    return good();
  }

  #clear(initiator: string, key: bigint): Outcome {
    if (!this.#isRegisteredWith(initiator, key)) return CONFLICT;
    this.journal.push(`${initiator} CLEAR`);
    const others = [...this.#registrations.keys()].filter((other) => other !== initiator);
    this.#registrations.clear();
    this.#reservation = null;
    this.generation = (this.generation + 1) >>> 0;
    for (const other of others) this.raiseUnitAttention(other, UA_RESERVATIONS_PREEMPTED);
    return good();
  }

  /** PREEMPT and PREEMPT AND ABORT (SPC-4 5.13.11.3 and .4). */
  #preempt(initiator: string, key: bigint, victimKey: bigint, scopeType: number, abort: boolean): Outcome {
    if (!this.#isRegisteredWith(initiator, key)) return CONFLICT;
    if (this.#badType(scopeType)) return check(INVALID_FIELD_IN_CDB);
    if (victimKey === 0n) return check(INVALID_FIELD_IN_LIST);
    const matching = [...this.#registrations]
      .filter(([, other]) => other === victimKey)
      .map(([name]) => name);
    if (matching.length === 0) return CONFLICT;
    const victims = matching.filter((name) => name !== initiator);
    const holder = this.#reservation?.holder ?? null;
    const takes_over = holder !== null && matching.includes(holder);
    this.journal.push(`${initiator} ${abort ? "PREEMPT AND ABORT" : "PREEMPT"}`);
    this.generation = (this.generation + 1) >>> 0;
    for (const victim of victims) {
      this.#registrations.delete(victim);
      this.raiseUnitAttention(victim, UA_REGISTRATIONS_PREEMPTED);
    }
    if (takes_over) {
      const type_changed = this.#reservation?.type !== (scopeType & 0x0f);
      this.#reservation = { holder: initiator, type: scopeType & 0x0f };
      if (type_changed) {
        for (const other of this.#registrations.keys())
          if (other !== initiator) this.raiseUnitAttention(other, UA_RESERVATIONS_RELEASED);
      }
    }
    if (abort) this.onAbort(victims);
    return good();
  }
}

/** Fixed format sense data, 18 bytes (SPC-4 4.5.3). */
export function fixedSense(code: SenseCode): Uint8Array {
  const sense = new Uint8Array(18);
  sense[0] = 0x70;
  sense[2] = code.key;
  sense[7] = 10;
  sense[12] = code.asc;
  sense[13] = code.ascq;
  return sense;
}
