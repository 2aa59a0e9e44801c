// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proves the persistent reservation commands against a target model, byte for byte where SPC-4 gives the layout, and
 * against every kind of bad answer. The fuzz invariant: a decoder gives a value or throws ScsiError, nothing else.
 */

import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  decodeCapabilities,
  decodeFullStatus,
  decodeReadKeys,
  decodeReadReservation,
  encodeReserveInCdb,
  encodeReserveOutCdb,
  encodeReserveOutParameters,
  PersistentReservations,
  type PersistentReservationsOptions,
  PR_TYPE,
  RESPONSE_BYTES_MAX,
  ScsiError,
  type ScsiErrorCode,
  type ScsiResult,
  type ScsiTransport,
} from "../../src/disk/reservation.js";
import { decodeSense, describeSense, SENSE_KEY } from "../../src/disk/sense.js";
import { FakePrTarget, fixedSense, type PrTargetQuirks } from "../support/pr_target.js";
import { failsWith } from "../support/scsi.js";

const KEY_A = 0xa0000001_00000001n;
const KEY_B = 0xb0000002_00000001n;
const KEY_C = 0xc0000003_00000001n;

interface Nodes {
  target: FakePrTarget;
  a: PersistentReservations;
  b: PersistentReservations;
  c: PersistentReservations;
}

function threeNodes(quirks: PrTargetQuirks = {}, options: PersistentReservationsOptions = {}): Nodes {
  const target = new FakePrTarget(quirks);
  const of = (name: string): PersistentReservations =>
    new PersistentReservations(target.transport(name), options);
  return { target, a: of("a"), b: of("b"), c: of("c") };
}

async function registered(quirks: PrTargetQuirks = {}): Promise<Nodes> {
  const nodes = threeNodes(quirks);
  await nodes.a.register(KEY_A);
  await nodes.b.register(KEY_B);
  await nodes.c.register(KEY_C);
  return nodes;
}

function throwsBadResponse(action: () => unknown): void {
  assert.throws(action, (error: unknown) => error instanceof ScsiError && error.code === "BAD_RESPONSE");
}

/** A transport that answers with the given results in turn, and repeats the last one. */
function scripted(
  results: readonly Partial<ScsiResult & { fill: Uint8Array }>[],
): ScsiTransport & { calls: number } {
  const transport = {
    calls: 0,
    submit(_cdb: Uint8Array, _direction: string, data: Uint8Array): Promise<ScsiResult> {
      const { fill, ...result } = results[Math.min(transport.calls, results.length - 1)] ?? {};
      transport.calls++;
      if (fill !== undefined) data.set(fill.subarray(0, data.length));
      const residual = fill === undefined ? 0 : Math.max(0, data.length - fill.length);
      return Promise.resolve({
        status: 0,
        hostStatus: 0,
        driverStatus: 0,
        sense: new Uint8Array(0),
        residual,
        ...result,
      });
    },
  };
  return transport;
}

const senseResult = (key: number, asc: number, ascq: number): Partial<ScsiResult> => ({
  status: 0x02,
  driverStatus: 0x08,
  sense: fixedSense({ key, asc, ascq }),
});

// ---- Bytes ---------------------------------------------------------------------------------------------------

test("PERSISTENT RESERVE OUT carries action, type and list length where SPC-4 6.16 puts them", () => {
  const cdb = encodeReserveOutCdb(4, PR_TYPE.WRITE_EXCLUSIVE_REGISTRANTS_ONLY);
  assert.equal([...cdb], [0x5f, 4, 5, 0, 0, 0, 0, 0, 24, 0]);
  const list = encodeReserveOutParameters(0x0102030405060708n, 0x1112131415161718n, {
    allTargetPorts: true,
    persistThroughPowerLoss: true,
  });
  assert.equal(
    [...list],
    [1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0, 0, 0, 0, 5, 0, 0, 0],
  );
  assert.equal([...encodeReserveInCdb(1, 0x1234)], [0x5e, 1, 0, 0, 0, 0, 0, 0x12, 0x34, 0]);
});

test("READ RESERVATION of a holder gives key, scope and type from their bytes", () => {
  const bytes = Uint8Array.from([0, 0, 0, 7, 0, 0, 0, 16, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0x05, 0, 0]);
  assert.equal(decodeReadReservation(bytes), {
    generation: 7,
    holderKey: 0x0102030405060708n,
    type: 5,
    scope: 0,
  });
});

test("REPORT CAPABILITIES gives flags and types, and no types when the mask is not valid", () => {
  const bytes = Uint8Array.from([0, 8, 0x1d, 0x81, 0xea, 0x01, 0, 0]);
  assert.equal(decodeCapabilities(bytes), {
    persistThroughPowerLossCapable: true,
    allTargetPortsCapable: true,
    specifyInitiatorPortsCapable: true,
    compatibleReservationHandling: true,
    persistThroughPowerLossActive: true,
    types: [1, 3, 5, 6, 7, 8],
  });
  assert.is(decodeCapabilities(Uint8Array.from([0, 8, 0, 0, 0xea, 0x01, 0, 0])).types, null);
});

// ---- Behaviour against the target model ----------------------------------------------------------------------

test("of three nodes that reserve, the first gets it and the others are refused", async () => {
  const { target, a, b, c } = await registered();
  await b.reserve(KEY_B);
  await failsWith("RESERVATION_CONFLICT", () => a.reserve(KEY_A));
  await failsWith("RESERVATION_CONFLICT", () => c.reserve(KEY_C));
  await b.reserve(KEY_B);
  assert.is(target.holder, "b");
  const seen = await a.readReservation();
  assert.equal(seen, { generation: 3, holderKey: KEY_B, type: 5, scope: 0 });
});

test("readKeys gives every registered key and a generation that rises with registrations", async () => {
  const { a, b } = threeNodes();
  assert.equal(await a.readKeys(), { generation: 0, keys: [] });
  await a.register(KEY_A);
  await b.register(KEY_B);
  assert.equal(await b.readKeys(), { generation: 2, keys: [KEY_A, KEY_B] });
});

test("without a reservation readReservation is null", async () => {
  const { a } = await registered();
  assert.is(await a.readReservation(), null);
});

test("preempting the holder moves the reservation and takes its right to write", async () => {
  const { target, a, b } = await registered();
  await a.reserve(KEY_A);
  assert.ok(target.mayWrite("b"), "a registrant writes beside the holder");
  assert.not.ok(target.mayWrite("stranger"));
  assert.ok(target.mayRead("stranger"));
  await b.preempt(KEY_B, KEY_A);
  assert.is(target.holder, "b");
  assert.not.ok(target.mayWrite("a"));
  assert.ok(target.mayRead("a"));
  assert.equal((await b.readKeys()).keys, [KEY_B, KEY_C]);
  await failsWith("RESERVATION_CONFLICT", () => a.reserve(KEY_A));
});

test("of two nodes that preempt the same dead holder, the second is refused and nothing changes", async () => {
  const { target, a, b, c } = await registered();
  await a.reserve(KEY_A);
  await b.preempt(KEY_B, KEY_A);
  await failsWith("RESERVATION_CONFLICT", () => c.preempt(KEY_C, KEY_A));
  assert.is(target.holder, "b");
  assert.is(target.keyOf("c"), KEY_C);
});

test("preempting a plain registrant leaves the reservation where it is", async () => {
  const { target, a, b } = await registered();
  await a.reserve(KEY_A);
  await b.preempt(KEY_B, KEY_C);
  assert.is(target.holder, "a");
  assert.is(target.keyOf("c"), null);
});

test("PREEMPT AND ABORT names the victims whose commands are aborted", async () => {
  const { target, a, b } = await registered();
  await a.reserve(KEY_A);
  const aborted: string[] = [];
  target.onAbort = (victims) => aborted.push(...victims);
  await b.preemptAndAbort(KEY_B, KEY_A);
  assert.equal(aborted, ["a"]);
  assert.is(target.holder, "b");
});

test("a target without PREEMPT AND ABORT answers unsupported, and has changed nothing", async () => {
  const { target, a, b } = await registered({ noPreemptAndAbort: true });
  await a.reserve(KEY_A);
  const error = await failsWith("ILLEGAL_REQUEST", () => b.preemptAndAbort(KEY_B, KEY_A));
  assert.ok(error.unsupported);
  assert.is(target.holder, "a");
  await b.preempt(KEY_B, KEY_A);
  assert.is(target.holder, "b");
});

test("what a poor target lacks is null, what a good one has is decoded", async () => {
  const poor = await registered({ noReportCapabilities: true, noReadFullStatus: true });
  assert.is(await poor.a.reportCapabilities(), null);
  assert.is(await poor.a.readFullStatus(), null);

  const fine = await registered();
  await fine.b.reserve(KEY_B);
  assert.equal((await fine.a.reportCapabilities())?.types, [1, 3, 5, 6]);
  const status = await fine.a.readFullStatus();
  assert.equal(
    status?.registrants.map(({ key, holder, type }) => ({ key, holder, type })),
    [
      { key: KEY_A, holder: false, type: 0 },
      { key: KEY_B, holder: true, type: 5 },
      { key: KEY_C, holder: false, type: 0 },
    ],
  );
  assert.match(new TextDecoder().decode(status?.registrants[1]?.transportId), /b/);
});

test("REGISTER with a wrong old key is a conflict, where REGISTER AND IGNORE replaces it", async () => {
  const { target, a } = threeNodes();
  await a.registerFrom(0n, KEY_A);
  await failsWith("RESERVATION_CONFLICT", () => a.registerFrom(KEY_B, KEY_C));
  assert.is(target.keyOf("a"), KEY_A);
  await a.registerFrom(KEY_A, KEY_B);
  assert.is(target.keyOf("a"), KEY_B);
  await a.register(KEY_C);
  assert.is(target.keyOf("a"), KEY_C);
});

test("a fenced node that registers from its old key learns that it was fenced", async () => {
  const { a, b } = await registered();
  await a.reserve(KEY_A);
  await b.preempt(KEY_B, KEY_A);
  await failsWith("RESERVATION_CONFLICT", () => a.registerFrom(KEY_A, KEY_A));
});

test("unregistering the holder releases the reservation", async () => {
  const { target, a, b } = await registered();
  await a.reserve(KEY_A);
  await a.unregister(KEY_A);
  assert.is(target.holder, null);
  assert.is(target.keyOf("a"), null);
  await b.reserve(KEY_B);
});

test("release is good and without effect for a registrant that does not hold", async () => {
  const { target, a, b } = await registered();
  await a.reserve(KEY_A);
  await b.release(KEY_B);
  assert.is(target.holder, "a");
  await a.release(KEY_A);
  assert.is(target.holder, null);
});

test("releasing with another type is refused with a hint at the type", async () => {
  const { a } = await registered();
  await a.reserve(KEY_A);
  const error = await failsWith("ILLEGAL_REQUEST", () => a.release(KEY_A, PR_TYPE.WRITE_EXCLUSIVE));
  assert.not.ok(error.unsupported);
  assert.match(error.message, /another type/);
});

test("clear removes everybody", async () => {
  const { target, a, b } = await registered();
  await a.reserve(KEY_A);
  await b.clear(KEY_B);
  assert.is(target.holder, null);
  assert.equal((await b.readKeys()).keys, []);
});

test("a power cycle forgets everything, unless registered to persist", async () => {
  const plain = await registered();
  await plain.a.reserve(KEY_A);
  plain.target.powerCycle();
  assert.equal(await plain.a.readKeys(), { generation: 0, keys: [] });

  const lasting = threeNodes({}, { persistThroughPowerLoss: true });
  await lasting.a.register(KEY_A);
  await lasting.a.reserve(KEY_A);
  lasting.target.powerCycle();
  assert.equal((await lasting.a.readKeys()).keys, [KEY_A]);
  assert.is(lasting.target.holder, "a");
});

test("APTPL refused by the target is an illegal request that names the feature bits", async () => {
  const { a } = threeNodes({ noPersistThroughPowerLoss: true }, { persistThroughPowerLoss: true });
  const error = await failsWith("ILLEGAL_REQUEST", () => a.register(KEY_A));
  assert.ok(error.unsupported);
  assert.match(error.message, /APTPL/);
});

test("a full target says that stale keys have to go", async () => {
  const { a, b } = threeNodes({ registrationsMax: 1 });
  await a.register(KEY_A);
  const error = await failsWith("ILLEGAL_REQUEST", () => b.register(KEY_B));
  assert.match(error.message, /stale keys/);
});

test("a list longer than the first buffer is read whole", async () => {
  const target = new FakePrTarget();
  const expected: bigint[] = [];
  for (let i = 1; i <= 300; i++) {
    await new PersistentReservations(target.transport(`node${i}`)).register(BigInt(i) << 32n);
    expected.push(BigInt(i) << 32n);
  }
  const reader = new PersistentReservations(target.transport("node1"));
  assert.equal((await reader.readKeys()).keys, expected);
  assert.is((await reader.readFullStatus())?.registrants.length, 300);
});

test("key 0 and keys beyond 64 bits are refused before anything is sent", async () => {
  const { target, a } = threeNodes();
  for (const key of [0n, -1n, 1n << 64n]) {
    for (const action of [() => a.register(key), () => a.reserve(key), () => a.preempt(KEY_A, key)]) {
      try {
        await action();
        assert.unreachable("a bad key was accepted");
      } catch (error) {
        assert.instance(error, RangeError);
      }
    }
  }
  assert.equal(target.journal, []);
});

// ---- Conditions and retries ----------------------------------------------------------------------------------

test("queued unit attentions are retried, reported, and the command executed once", async () => {
  const seen: string[] = [];
  const { target, a, b } = threeNodes({}, { onUnitAttention: (sense) => seen.push(sense.name) });
  await a.register(KEY_A);
  await b.register(KEY_B);
  await a.reserve(KEY_A);
  await b.preempt(KEY_B, KEY_A);
  target.powerCycle();
  await a.register(KEY_A);
  assert.equal(seen, ["REGISTRATIONS PREEMPTED", "POWER ON OCCURRED"]);
  assert.is(target.journal.filter((line) => line === "a REGISTER").length, 2);
});

test("endless unit attentions end in an error after the limit", async () => {
  const transport = scripted([senseResult(6, 0x29, 0x00)]);
  const pr = new PersistentReservations(transport, { unitAttentionRetriesMax: 3 });
  await failsWith("UNIT_ATTENTION", () => pr.register(KEY_A));
  assert.is(transport.calls, 4);
});

test("a busy target is retried with pauses, and given up after the limit", async () => {
  const pauses: number[] = [];
  const pause = (attempt: number): Promise<void> => {
    pauses.push(attempt);
    return Promise.resolve();
  };
  const recovers = scripted([{ status: 0x08 }, { status: 0x28 }, { status: 0 }]);
  await new PersistentReservations(recovers, { pause }).register(KEY_A);
  assert.equal(pauses, [1, 2]);
  const stuck = scripted([{ status: 0x28 }]);
  await failsWith("BUSY", () => new PersistentReservations(stuck, { busyRetriesMax: 5 }).register(KEY_A));
  assert.is(stuck.calls, 6);
});

test("each failure has its code and is not retried", async () => {
  const cases: readonly (readonly [Partial<ScsiResult>, ScsiErrorCode])[] = [
    [{ status: 0x18 }, "RESERVATION_CONFLICT"],
    [{ status: 0x18, hostStatus: 0x11 }, "RESERVATION_CONFLICT"],
    [{ hostStatus: 1 }, "TRANSPORT"],
    [{ hostStatus: 99 }, "TRANSPORT"],
    [{ driverStatus: 6 }, "TRANSPORT"],
    [{ status: 0x40 }, "ABORTED"],
    [{ status: 0x55 }, "CHECK_CONDITION"],
    [{ status: 0x02 }, "CHECK_CONDITION"],
    [{ status: 0x02, sense: Uint8Array.from([0x70, 0]) }, "CHECK_CONDITION"],
    [
      { status: 0x02, sense: Uint8Array.from([0x7f, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0]) },
      "CHECK_CONDITION",
    ],
    [senseResult(SENSE_KEY.NOT_READY, 0x04, 0x01), "NOT_READY"],
    [senseResult(SENSE_KEY.MEDIUM_ERROR, 0x11, 0), "MEDIUM_ERROR"],
    [senseResult(SENSE_KEY.HARDWARE_ERROR, 0x44, 0), "HARDWARE_ERROR"],
    [senseResult(SENSE_KEY.ILLEGAL_REQUEST, 0x26, 0), "ILLEGAL_REQUEST"],
    [senseResult(SENSE_KEY.DATA_PROTECT, 0x27, 0), "DATA_PROTECT"],
    [senseResult(SENSE_KEY.ABORTED_COMMAND, 0x47, 0), "ABORTED"],
    [senseResult(SENSE_KEY.MISCOMPARE, 0x1d, 0), "CHECK_CONDITION"],
    [{ ...senseResult(SENSE_KEY.NOT_READY, 0x04, 0), status: 0 }, "NOT_READY"],
  ];
  for (const [result, code] of cases) {
    const transport = scripted([result]);
    await failsWith(code, () => new PersistentReservations(transport).reserve(KEY_A));
    assert.is(transport.calls, 1);
  }
});

test("a recovered error counts as executed, a deferred one does not", async () => {
  await new PersistentReservations(scripted([senseResult(SENSE_KEY.RECOVERED_ERROR, 0x17, 0)])).register(
    KEY_A,
  );
  const sense = fixedSense({ key: SENSE_KEY.RECOVERED_ERROR, asc: 0x17, ascq: 0 });
  sense[0] = 0x71;
  const deferred = scripted([{ status: 2, sense }]);
  await failsWith("CHECK_CONDITION", () => new PersistentReservations(deferred).register(KEY_A));
});

test("a transport that cannot submit is a TRANSPORT error with its cause", async () => {
  const cause = new Error("ENXIO");
  const transport: ScsiTransport = { submit: () => Promise.reject(cause) };
  const error = await failsWith("TRANSPORT", () => new PersistentReservations(transport).readKeys());
  assert.is(error.cause, cause);
});

test("a probe that fails for another reason than lacking support is an error, not null", async () => {
  const pr = new PersistentReservations(scripted([{ status: 0x18 }]));
  await failsWith("RESERVATION_CONFLICT", () => pr.reportCapabilities());
  await failsWith("RESERVATION_CONFLICT", () => pr.readFullStatus());
});

// ---- Bad answers ---------------------------------------------------------------------------------------------

test("every truncation of a sound answer is refused", () => {
  const keys = Uint8Array.from([0, 0, 0, 1, 0, 0, 0, 16, ...new Array<number>(16).fill(9)]);
  const reservation = Uint8Array.from([0, 0, 0, 7, 0, 0, 0, 16, ...new Array<number>(16).fill(1)]);
  const capabilities = Uint8Array.from([0, 8, 0, 0, 0, 0, 0, 0]);
  const full = Uint8Array.from([
    0,
    0,
    0,
    1,
    0,
    0,
    0,
    28,
    ...new Array<number>(20).fill(0),
    0,
    0,
    0,
    4,
    5,
    0,
    0,
    0,
  ]);
  const cases: readonly (readonly [Uint8Array, (bytes: Uint8Array) => unknown])[] = [
    [keys, decodeReadKeys],
    [reservation, decodeReadReservation],
    [capabilities, decodeCapabilities],
    [full, decodeFullStatus],
  ];
  for (const [bytes, decode] of cases) {
    decode(bytes);
    for (let length = 0; length < bytes.length; length++)
      throwsBadResponse(() => decode(bytes.subarray(0, length)));
  }
});

test("lengths that contradict the layout are refused", () => {
  throwsBadResponse(() => decodeReadKeys(Uint8Array.from([0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0])));
  throwsBadResponse(() =>
    decodeReadReservation(Uint8Array.from([0, 0, 0, 0, 0, 0, 0, 8, ...new Array<number>(16).fill(0)])),
  );
  throwsBadResponse(() => decodeCapabilities(Uint8Array.from([0, 4, 0, 0, 0, 0, 0, 0])));
  const full = new Uint8Array(8 + 24);
  full[7] = 24;
  new DataView(full.buffer).setUint32(8 + 20, 0xffffffff);
  throwsBadResponse(() => decodeFullStatus(full));
});

test("an answer beyond the largest buffer is refused, and one that keeps growing too", async () => {
  const header = (additional: number): Uint8Array => {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setUint32(4, additional);
    return bytes;
  };
  const huge = new PersistentReservations(scripted([{ fill: header(RESPONSE_BYTES_MAX) }]));
  assert.match((await failsWith("BAD_RESPONSE", () => huge.readKeys())).message, /stale registrations/);
  const growing = scripted([2048, 4096, 8192, 16384, 32768].map((bytes) => ({ fill: header(bytes) })));
  await failsWith("BAD_RESPONSE", () => new PersistentReservations(growing).readKeys());
  assert.is(growing.calls, 4);
});

test("a residual that cannot be is refused", async () => {
  for (const residual of [-1, 513, 0.5]) {
    await failsWith("BAD_RESPONSE", () => new PersistentReservations(scripted([{ residual }])).readKeys());
  }
});

test("decoders of random bytes give a value or a ScsiError", () => {
  const next = generator(20260101);
  for (let round = 0; round < 20000; round++) {
    const bytes = Uint8Array.from({ length: next() % 80 }, () => next() & 0xff);
    if (bytes.length > 8 && next() % 2 === 0) bytes.fill(0, 4, 7);
    for (const decode of [decodeReadKeys, decodeReadReservation, decodeCapabilities, decodeFullStatus]) {
      try {
        decode(bytes);
      } catch (error) {
        if (!(error instanceof ScsiError)) throw error;
      }
    }
    describeSense(decodeSense(bytes));
  }
});

// ---- Sense ---------------------------------------------------------------------------------------------------

test("fixed and descriptor sense of the same condition read the same", () => {
  const fixed = decodeSense(fixedSense({ key: 6, asc: 0x2a, ascq: 0x05 }));
  const descriptor = decodeSense(Uint8Array.from([0x72, 6, 0x2a, 0x05, 0, 0, 0, 0]));
  for (const sense of [fixed, descriptor]) {
    assert.is(sense?.key, SENSE_KEY.UNIT_ATTENTION);
    assert.is(sense?.name, "REGISTRATIONS PREEMPTED");
    assert.is(sense?.deferred, false);
  }
  assert.is(decodeSense(Uint8Array.from([0x73, 6, 0x2a, 0x05]))?.deferred, true);
});

test("the field pointer is read in both formats, and only when it is valid", () => {
  const fixed = fixedSense({ key: 5, asc: 0x24, ascq: 0 });
  assert.is(decodeSense(fixed)?.fieldPointer, null);
  fixed.set([0xc0, 0, 2], 15);
  assert.equal(decodeSense(fixed)?.fieldPointer, { inCdb: true, byte: 2 });
  const descriptor = Uint8Array.from([
    0x72,
    5,
    0x26,
    0,
    0,
    0,
    0,
    20,
    0x00,
    10,
    ...new Array<number>(10).fill(0),
    2,
    6,
    0,
    0,
    0x80,
    0,
    20,
    0,
  ]);
  assert.equal(decodeSense(descriptor)?.fieldPointer, { inCdb: false, byte: 20 });
  assert.match(
    describeSense(decodeSense(descriptor)),
    /ILLEGAL REQUEST: INVALID FIELD IN PARAMETER LIST \(26h\/00h, byte 20/,
  );
});

test("sense cut short gives what is there or null, and unknown codes are shown in hex", () => {
  assert.is(decodeSense(new Uint8Array(0)), null);
  assert.is(decodeSense(Uint8Array.from([0x70, 0])), null);
  assert.is(decodeSense(Uint8Array.from([0x72, 5, 0])), null);
  assert.equal(decodeSense(Uint8Array.from([0x70, 0, 2]))?.asc, 0);
  // ADDITIONAL SENSE LENGTH 2 ends before ASC: the byte behind it is old and must not be believed.
  assert.is(decodeSense(Uint8Array.from([0x70, 0, 5, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0x20, 0]))?.asc, 0);
  assert.match(describeSense(decodeSense(Uint8Array.from([0x72, 9, 0x80, 0x81]))), /80h\/81h/);
});

function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 8;
  };
}

test.run();
