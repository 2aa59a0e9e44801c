// SPDX-License-Identifier: GPL-2.0-only
/**
 * Bodies of the DEADLOCK_* frames: JSON objects, rare (src/dlm/deadlock.ts says what they are for).
 *
 *   {round, path: [wait...], blockers: [lock id...]}
 *   wait = {node, lockId, seq, sinceMs, via, volume, ino, offset, ag, type, name}
 *
 * Protocol: 64-bit numbers are strings of decimal digits. Every field is checked on the way in; path has 1 to
 * PROBE_PATH_MAX waits, blockers 1 to PROBE_BLOCKERS_MAX ids in CHASE and none otherwise.
 * Known weakness: names are what a client called the resource, up to NAME_MAX characters of it.
 */
import { MXFS_WIRE_BODY_MAX, type WireType } from "./abi.js";
import { decodeUtf8, encodeUtf8, excerpt, U32_MAX, U64_MAX, WireError } from "./error.js";
import type { Resource } from "./lock_entry.js";

export const PROBE_PATH_MAX = 32;
export const PROBE_BLOCKERS_MAX = 64;
const NAME_MAX = 64;

/** One outstanding request of a control client. */
export interface ProbeWait extends Resource {
  readonly node: number;
  readonly lockId: bigint;
  readonly seq: number;
  /** When the client asked: its node's wall clock, ms. Tells who is youngest, nothing else. */
  readonly sinceMs: number;
  /** Lock of the same client that the wait before this one is blocked by; 0 in the first. */
  readonly via: bigint;
  /** What the client calls the resource. */
  readonly name: string;
}

export const PROBE = { ASK: 80, CHASE: 81, BREAK: 82 } as const satisfies Record<string, WireType>;
export type ProbeType = (typeof PROBE)[keyof typeof PROBE];

export interface Probe {
  readonly type: ProbeType;
  /** Counts the initiator's looks around, so that each visits a client once. */
  readonly round: number;
  readonly path: readonly ProbeWait[];
  readonly blockers: readonly bigint[];
}

/** @throws RangeError when it does not fit a frame. */
export function encodeProbe(probe: Probe): Uint8Array<ArrayBuffer> {
  const path = probe.path.map((wait) => ({
    node: wait.node,
    lockId: wait.lockId.toString(),
    seq: wait.seq,
    sinceMs: wait.sinceMs,
    via: wait.via.toString(),
    volume: wait.volume.toString(),
    ino: wait.ino.toString(),
    offset: wait.offset.toString(),
    ag: wait.ag,
    type: wait.type,
    name: wait.name.slice(0, NAME_MAX),
  }));
  const bytes = encodeUtf8(
    JSON.stringify({ round: probe.round, path, blockers: probe.blockers.map((id) => id.toString()) }),
  );
  if (bytes.length > MXFS_WIRE_BODY_MAX) {
    throw new RangeError(`deadlock probe: ${bytes.length} bytes, at most ${MXFS_WIRE_BODY_MAX}`);
  }
  return bytes;
}

type Fields = Readonly<Record<string, unknown>>;

function isFields(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function wrong(what: string, found: unknown): WireError {
  return new WireError(
    "WIRE_FIELD",
    `deadlock probe: ${what}, found ${excerpt(JSON.stringify(found) ?? "nothing")}`,
  );
}

function whole(fields: Fields, name: string, max: number): number {
  const value = fields[name];
  if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || value > max) {
    throw wrong(`${name} is a number from 0 to ${max}`, value);
  }
  return value;
}

function wide(value: unknown, name: string): bigint {
  if (typeof value !== "string" || !/^[0-9]{1,20}$/.test(value) || BigInt(value) > U64_MAX) {
    throw wrong(`${name} is an unsigned 64-bit number in decimal`, value);
  }
  return BigInt(value);
}

function list(value: unknown, name: string, min: number, max: number): readonly unknown[] {
  if (!Array.isArray(value) || value.length < min || value.length > max) {
    throw wrong(`${name} is a list of ${min} to ${max}`, value);
  }
  return value;
}

function decodeWait(fields: unknown): ProbeWait {
  if (!isFields(fields)) throw wrong("a wait is an object", fields);
  if (typeof fields.name !== "string" || fields.name.length > NAME_MAX) {
    throw wrong(`name has at most ${NAME_MAX} characters`, fields.name);
  }
  return {
    node: whole(fields, "node", U32_MAX),
    lockId: wide(fields.lockId, "lockId"),
    seq: whole(fields, "seq", U32_MAX),
    sinceMs: whole(fields, "sinceMs", Number.MAX_SAFE_INTEGER),
    via: wide(fields.via, "via"),
    volume: wide(fields.volume, "volume"),
    ino: wide(fields.ino, "ino"),
    offset: wide(fields.offset, "offset"),
    ag: whole(fields, "ag", U32_MAX),
    type: whole(fields, "type", U32_MAX),
    name: fields.name,
  };
}

/** @throws WireError WIRE_JSON, WIRE_FIELD */
export function decodeProbe(type: ProbeType, body: Uint8Array): Probe {
  let parsed: unknown;
  try {
    parsed = JSON.parse(decodeUtf8(body, "deadlock probe"));
  } catch (error) {
    if (error instanceof WireError) throw error;
    throw new WireError("WIRE_JSON", `deadlock probe: ${String(error)}`);
  }
  if (!isFields(parsed)) throw new WireError("WIRE_JSON", "deadlock probe: expected an object");
  const chase = type === PROBE.CHASE;
  const blockers = list(parsed.blockers, "blockers", chase ? 1 : 0, chase ? PROBE_BLOCKERS_MAX : 0);
  return {
    type,
    round: whole(parsed, "round", U32_MAX),
    path: list(parsed.path, "path", 1, PROBE_PATH_MAX).map(decodeWait),
    blockers: blockers.map((id) => wide(id, "blocker")),
  };
}
