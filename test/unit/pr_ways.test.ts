// SPDX-License-Identifier: GPL-2.0-only
/** Proves that each way to make reservations keeps the same promises, and that a device gets the way it needs. */

import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  chooseWay,
  decodeNvmeReport,
  NoReservationsError,
  type ReservationDevice,
  type ReservationWay,
} from "../../src/disk/pr_ways.js";
import { ScsiError } from "../../src/disk/reservation.js";
import { openReservations } from "../../src/workers/reservations.js";
import { errno, FakeNvmeNamespace, multipathMap, scsiDisk } from "../support/pr_devices.js";
import { FakePrTarget } from "../support/pr_target.js";
import { Random } from "../support/random.js";
import { failsWith } from "../support/scsi.js";

const KEY_A = 0xa0000001_00000001n;
const KEY_B = 0xb0000002_00000001n;
const TGT = { noPersistThroughPowerLoss: true, noPreemptAndAbort: true, noReportCapabilities: true };

async function refused(device: ReservationDevice, message: RegExp): Promise<void> {
  try {
    await chooseWay(device);
  } catch (error) {
    assert.instance(error, NoReservationsError);
    assert.match((error as Error).message, message);
    return;
  }
  throw new Error(`${device.path} was not refused`);
}

interface World {
  readonly name: string;
  readonly way: ReservationWay["name"];
  readonly abort: boolean;
  make(): { a: ReservationDevice; b: ReservationDevice; mayWrite(node: "a" | "b"): boolean };
}

const WORLDS: readonly World[] = [
  ...[{}, TGT].map(
    (quirks, i): World => ({
      name: `a SCSI disk like ${i === 0 ? "LIO" : "tgt"}`,
      way: "scsi",
      abort: i === 0,
      make: () => {
        const target = new FakePrTarget(quirks);
        return {
          a: scsiDisk(target, "a"),
          b: scsiDisk(target, "b"),
          mayWrite: (node) => target.mayWrite(node),
        };
      },
    }),
  ),
  {
    name: "a multipath map",
    way: "multipath",
    abort: true,
    make: () => {
      const target = new FakePrTarget();
      return {
        a: multipathMap(target, ["a1", "a2"]),
        b: multipathMap(target, ["b1", "b2"]),
        mayWrite: (node) => target.mayWrite(`${node}1`) && target.mayWrite(`${node}2`),
      };
    },
  },
  ...[true, false].map(
    (plain): World => ({
      name: `an NVMe namespace with ${plain ? 64 : 128}-bit host identifiers`,
      way: "nvme",
      abort: true,
      make: () => {
        const space = new FakeNvmeNamespace();
        space.plainIdentifiers = plain;
        return { a: space.device("a"), b: space.device("b"), mayWrite: (node) => space.mayWrite(node) };
      },
    }),
  ),
];

for (const world of WORLDS) {
  test(`${world.name}: one is elected, the other follows, is fenced, and finds its key gone`, async () => {
    const { a: device_a, b: device_b, mayWrite } = world.make();
    const a = await chooseWay(device_a);
    const b = await chooseWay(device_b);
    assert.is(a.name, world.way);
    await a.register(KEY_A);
    await b.register(KEY_B);
    assert.equal(new Set((await a.readKeys()).keys), new Set([KEY_A, KEY_B]));
    assert.is(await a.readReservation(), null);
    await a.reserve(KEY_A);
    await failsWith("RESERVATION_CONFLICT", () => b.reserve(KEY_B));
    const found = await b.readReservation();
    assert.is(found?.holderKey, KEY_A);
    assert.is(found?.type, 5);
    assert.ok(mayWrite("a") && mayWrite("b"));

    const { generation } = await b.readKeys();
    if (world.abort) await b.preemptAndAbort(KEY_B, KEY_A);
    else {
      assert.ok((await failsWith("ILLEGAL_REQUEST", () => b.preemptAndAbort(KEY_B, KEY_A))).unsupported);
      await b.preempt(KEY_B, KEY_A);
    }
    assert.not(mayWrite("a"));
    assert.ok(mayWrite("b"));
    assert.is((await b.readReservation())?.holderKey, KEY_B);
    assert.equal(new Set((await a.readKeys()).keys), new Set([KEY_B]));
    assert.ok((await a.readKeys()).generation > generation);
    await failsWith("RESERVATION_CONFLICT", () => b.preempt(KEY_B, KEY_A));
    await failsWith("RESERVATION_CONFLICT", () => a.reserve(KEY_A));
    await failsWith("RESERVATION_CONFLICT", () => a.unregister(KEY_A));

    await b.release(KEY_B);
    assert.is(await b.readReservation(), null);
    await b.unregister(KEY_B);
    assert.equal((await b.readKeys()).keys, []);
  });

  test(`${world.name}: a new incarnation's key takes the old one's place, and REGISTER again does not`, async () => {
    const { a: device_a } = world.make();
    const a = await chooseWay(device_a);
    await a.register(KEY_A);
    await failsWith("RESERVATION_CONFLICT", () => a.registerAgain(KEY_A + 1n));
    await a.register(KEY_A + 1n);
    assert.equal(new Set((await a.readKeys()).keys), new Set([KEY_A + 1n]));
    await a.unregister(KEY_A + 1n);
    await a.registerAgain(KEY_A + 2n);
    assert.equal(new Set((await a.readKeys()).keys), new Set([KEY_A + 2n]));
  });
}

test("SG_IO asks for registrations that outlive the target, and does without where they are refused", async () => {
  for (const [quirks, kept] of [
    [{}, true],
    [TGT, false],
  ] as const) {
    const target = new FakePrTarget(quirks);
    const a = await chooseWay(scsiDisk(target, "a"));
    await a.register(KEY_A);
    await a.reserve(KEY_A);
    target.powerCycle();
    assert.equal((await a.readKeys()).keys, kept ? [KEY_A] : []);
    assert.is((await a.readReservation()) !== null, kept);
    if (!kept) await a.registerAgain(KEY_A);
    await a.unregister(KEY_A);
  }
});

test("multipath registers every path or none, and takes a unit attention for what it is", async () => {
  const target = new FakePrTarget();
  const a = await chooseWay(multipathMap(target, ["a1", "a2"]));
  target.raiseUnitAttention("a2", { key: 6, asc: 0x29, ascq: 0 });
  await a.register(KEY_A);
  assert.is(target.keyOf("a1"), KEY_A);
  assert.is(target.keyOf("a2"), KEY_A);
  await a.unregister(KEY_A);
  target.injectFault("a2", { hostStatus: 1 });
  await failsWith("TRANSPORT", () => a.register(KEY_A));
  assert.is(target.keyOf("a1"), null, "a path kept the key of a REGISTER that failed");
});

test("multipath over a target without APTPL is refused at REGISTER, with APTPL named", async () => {
  const a = await chooseWay(multipathMap(new FakePrTarget(TGT), ["a1", "a2"]));
  const error = await failsWith("ILLEGAL_REQUEST", () => a.register(KEY_A));
  assert.ok(error.unsupported);
  assert.match(error.message, /APTPL/);
});

test("devices that cannot be fenced are refused with the reason", async () => {
  const target = new FakePrTarget();
  await refused(multipathMap(target, ["a1"], "part1-mpath-3600140500000001"), /no multipath map.*whole LUN/);
  await refused(multipathMap(target, ["a1"], "LVM-abc"), /LVM-abc, no multipath map/);
  await refused(multipathMap(target, ["a1"], ""), /without a UUID/);
  const bare = new FakeNvmeNamespace();
  bare.lacksReservations = true;
  await refused(bare.device("a"), /NVMe namespace .* has no reservations/);
  const disk = scsiDisk(target, "a");
  for (const code of ["ENOTTY", "EINVAL", "EOPNOTSUPP"]) {
    const submit = (): Promise<never> => Promise.reject(errno(code));
    await refused({ ...disk, scsi: { submit } }, /neither a SCSI disk nor an NVMe namespace/);
  }
  const nothing = (): Promise<never> => Promise.reject(errno("ENOTTY"));
  const unsupported = scsiDisk(target, "b");
  target.injectFault("b", {
    status: 2,
    driverStatus: 8,
    sense: Uint8Array.from([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0]),
  });
  await refused({ ...unsupported, nvme: nothing }, /no SCSI-3 persistent reservations/);
});

test("a path that fails while it is probed refuses nothing: it is asked again", async () => {
  const target = new FakePrTarget();
  target.injectFault("a", { hostStatus: 1 });
  const port = openReservations("/dev/a", -1, () => undefined, scsiDisk(target, "a"));
  assert.is((await port.probe()).kind, "error");
  assert.is((await port.probe()).kind, "ok");
});

test("the port gives outcomes in place of errors, whatever the way", async () => {
  const target = new FakePrTarget(TGT);
  const port = openReservations("/dev/a", -1, () => undefined, scsiDisk(target, "a"));
  assert.equal(await port.probe(), { kind: "ok", way: "SG_IO on one path" });
  assert.is((await port.reserve(KEY_A)).kind, "conflict");
  assert.is((await port.register(KEY_A)).kind, "ok");
  assert.is((await port.reserve(KEY_A)).kind, "ok");
  assert.is((await port.preemptAndAbort(KEY_A, KEY_B)).kind, "unsupported");
  assert.is((await port.preempt(KEY_A, KEY_B)).kind, "conflict");
  assert.is((await port.resetUnit()).kind, "unsupported");
  const keys = await port.readKeys();
  assert.ok(keys.kind === "ok" && keys.keys.length === 1 && keys.generation === target.generation);
  assert.equal(await port.readReservation(), { kind: "held", key: KEY_A, type: 5 });
  const failing = { ...scsiDisk(target, "a"), resetUnit: () => Promise.reject(new Error("EIO")) };
  const other = openReservations("/dev/a", -1, () => undefined, failing);
  assert.equal(await other.resetUnit(), { kind: "error", message: "EIO" });
});

test("a Reservation Report that contradicts itself is refused, whatever its bytes", () => {
  const random = new Random(1);
  for (let round = 0; round < 2000; round++) {
    const bytes = Uint8Array.from({ length: random.below(200) }, () => random.below(256));
    try {
      const report = decodeNvmeReport(bytes, round % 2 === 0);
      assert.ok(report.registrants.length <= 7);
    } catch (error) {
      assert.ok(error instanceof ScsiError && error.code === "BAD_RESPONSE", String(error));
    }
  }
});

test("a Reservation Report longer than the first buffer is read again in full", async () => {
  const space = new FakeNvmeNamespace();
  const a = await chooseWay(space.device("a"));
  for (let i = 0; i < 300; i++) space.keys.set(`h${i}`, BigInt(i + 1));
  assert.is((await a.readKeys()).keys.length, 300);
});

test.run();
