// SPDX-License-Identifier: GPL-2.0-only
/** Proves the codecs of heartbeat and journal records against good, bad and random bytes. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  DiskFormatError,
  decodeHeartbeat,
  decodeJournal,
  encodeHeartbeat,
  encodeJournal,
  type HeartbeatRecord,
  type JournalRecord,
  sealRecord,
} from "../../src/disk/record.js";
import { codeOfError } from "../support/code_of.js";

const VOLUME = 42n;

function heartbeat(): HeartbeatRecord {
  return {
    volume: VOLUME,
    epoch: 3n,
    sequence: 0xffffffffffn,
    node: 0xfffffffe,
    incarnation: 9,
    uuid: "01234567-89ab-4cde-8f01-23456789abcd",
    role: 2,
    port: 7601,
    address: "10.1.2.3",
    unreachableSlots: 1n << 63n,
    hostName: "knoten-ä",
  };
}

function journal(): JournalRecord {
  return { volume: VOLUME, epoch: 3n, sequence: 2n, node: 5, incarnation: 6, state: 3, recoverer: 7 };
}

const codeOf = codeOfError(DiskFormatError, "none");

test("heartbeats survive encoding and decoding at both record sizes and with every kind of address", () => {
  for (const size of [512, 4096]) {
    for (const address of ["10.1.2.3", "fe80::1", ""]) {
      const record = { ...heartbeat(), address };
      const bytes = encodeHeartbeat(record, size);
      assert.is(bytes.length, size);
      assert.equal(decodeHeartbeat(bytes, size, VOLUME), record);
    }
  }
});

test("the fields of a heartbeat lie where include/mxfs/disk.h says", () => {
  const bytes = encodeHeartbeat(heartbeat(), 512);
  const view = new DataView(bytes.buffer);
  assert.is(view.getUint16(6, true), 2);
  assert.is(view.getBigUint64(32, true), 0xffffffffffn);
  assert.is(view.getUint32(40, true), 0xfffffffe);
  assert.is(view.getUint16(68, true), 7601);
  assert.is(view.getUint16(70, true), 4);
  assert.equal([...bytes.subarray(72, 76)], [10, 1, 2, 3]);
  assert.is(view.getBigUint64(88, true), 1n << 63n);
});

test("a host name that is too long is cut between characters", () => {
  const bytes = encodeHeartbeat({ ...heartbeat(), hostName: "ä".repeat(40) }, 512);
  assert.is(decodeHeartbeat(bytes, 512, VOLUME).hostName, "ä".repeat(32));
});

test("journal slots survive encoding and decoding", () => {
  assert.equal(decodeJournal(encodeJournal(journal(), 512), 512, VOLUME), journal());
});

test("bad records are refused with a code that says why", () => {
  assert.is(
    codeOf(() => decodeHeartbeat(new Uint8Array(512), 512, VOLUME)),
    "EMPTY",
  );
  assert.is(
    codeOf(() => decodeHeartbeat(encodeHeartbeat(heartbeat(), 512), 4096, VOLUME)),
    "SHORT",
  );
  assert.is(
    codeOf(() => decodeHeartbeat(encodeHeartbeat(heartbeat(), 512), 512, 43n)),
    "FOREIGN",
  );
  assert.is(
    codeOf(() => decodeHeartbeat(encodeJournal(journal(), 512), 512, VOLUME)),
    "BAD_TYPE",
  );
  const bad_role = encodeHeartbeat(heartbeat(), 512);
  bad_role[64] = 9;
  assert.is(
    codeOf(() => decodeHeartbeat(bad_role, 512, VOLUME)),
    "BAD_CRC",
  );
  assert.is(
    codeOf(() => decodeHeartbeat(sealRecord(bad_role), 512, VOLUME)),
    "BAD_FIELD",
  );
  const bad_state = encodeJournal(journal(), 512);
  bad_state[48] = 5;
  assert.is(
    codeOf(() => decodeJournal(sealRecord(bad_state), 512, VOLUME)),
    "BAD_FIELD",
  );
});

test("what could not be read back is not written", () => {
  assert.is(
    codeOf(() => encodeHeartbeat({ ...heartbeat(), address: "10.0.0.256" }, 512)),
    "BAD_FIELD",
  );
  assert.is(
    codeOf(() => encodeHeartbeat({ ...heartbeat(), uuid: "x" }, 512)),
    "BAD_FIELD",
  );
  assert.is(
    codeOf(() => encodeHeartbeat({ ...heartbeat(), port: 65536 }, 512)),
    "BAD_FIELD",
  );
  assert.is(
    codeOf(() => encodeHeartbeat({ ...heartbeat(), sequence: -1n }, 512)),
    "BAD_FIELD",
  );
  assert.is(
    codeOf(() => encodeHeartbeat(heartbeat(), 1000)),
    "BAD_FIELD",
  );
});

test("random damage is refused, or decodes to a record within its limits, and nothing else happens", () => {
  let seed = 4;
  let refused = 0;
  for (let round = 0; round < 2000; round++) {
    const bytes = encodeHeartbeat(heartbeat(), 512);
    for (let i = 0; i < 1 + (round % 5); i++) {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      bytes[seed % 160] = seed >>> 24;
    }
    if (round % 3 === 0) sealRecord(bytes);
    try {
      assert.ok(decodeHeartbeat(bytes, 512, VOLUME).role <= 2);
    } catch (error) {
      if (!(error instanceof DiskFormatError)) throw error;
      refused++;
    }
  }
  assert.ok(refused > 1000, `only ${refused} refused`);
});

test.run();
