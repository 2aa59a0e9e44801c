// SPDX-License-Identifier: GPL-2.0-only
/** Proves the lockstate header's codec, the choice between its copies, and the mapping of places to the device. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  chooseHeader,
  type DiskHeader,
  decodeHeader,
  encodeHeader,
  headerMismatch,
  headerOffset,
  heartbeatOffset,
  journalOffset,
  lockRecordOffset,
  lockstateSize,
  mapRecord,
  mapToDevice,
  tryDecodeHeader,
} from "../../src/disk/lockstate.js";
import { DiskFormatError, sealRecord } from "../../src/disk/record.js";
import { codeOfError } from "../support/code_of.js";

const VOLUME = 0xfedcba9876543210n;

function sample(sequence = 5n): DiskHeader {
  return {
    volume: VOLUME,
    epoch: 12n,
    sequence,
    volumeUuid: "01234567-89ab-4cde-8f01-23456789abcd",
    ino: 133n,
    generation: 0xdeadbeef,
    recordSize: 512,
    lockRecordCount: 65536,
    holder: 0xffffffff,
    holderIncarnation: 3,
    clusterKey: Uint8Array.from({ length: 32 }, (_, i) => i * 7),
    members: [
      { node: 0xffffffff, incarnation: 3, slot: 0, state: 2 },
      { node: 7, incarnation: 1, slot: 63, state: 2 },
      { node: 9, incarnation: 4, slot: 63, state: 4 },
    ],
    chunkOwners: Uint8Array.from({ length: 2048 }, (_, chunk) => (chunk < 256 ? 1 + (chunk % 2) : 0)),
    extents: [
      { fileOffset: 0, deviceOffset: 1048576, length: 65536 },
      { fileOffset: 65536, deviceOffset: 8388608, length: 40000000 },
    ],
  };
}

const codeOf = codeOfError(DiskFormatError, "none");

/** The encoded sample with a change, its checksum made right again. */
function forged(change: (view: DataView) => void): Uint8Array {
  const bytes = encodeHeader(sample());
  change(new DataView(bytes.buffer));
  return sealRecord(bytes);
}

test("a header survives encoding and decoding", () => {
  assert.equal(decodeHeader(encodeHeader(sample()), VOLUME), sample());
});

test("the fields of the header lie where include/mxfs/disk.h says", () => {
  const bytes = encodeHeader(sample());
  const view = new DataView(bytes.buffer);
  assert.is(bytes.length, 4096);
  assert.is(String.fromCharCode(...bytes.subarray(0, 4)), "MXFS");
  assert.is(view.getUint16(4, true), 1);
  assert.is(view.getUint16(6, true), 1);
  assert.is(view.getBigUint64(24, true), 12n);
  assert.is(view.getBigUint64(32, true), 5n);
  assert.is(bytes[40], 0x01);
  assert.is(view.getUint32(80, true), 0xffffffff);
  assert.is(view.getUint32(120, true), 3);
  assert.is(view.getUint32(128 + 16 + 8, true), 63);
  assert.is(view.getBigUint64(1152 + 24 + 8, true), 8388608n);
});

test("each kind of bad header is refused with its own code", () => {
  assert.is(
    codeOf(() => decodeHeader(new Uint8Array(4096), VOLUME)),
    "EMPTY",
  );
  assert.is(
    codeOf(() => decodeHeader(new Uint8Array(512), VOLUME)),
    "SHORT",
  );
  assert.is(
    codeOf(() => decodeHeader(encodeHeader(sample()), VOLUME + 1n)),
    "FOREIGN",
  );
  assert.is(
    codeOf(() =>
      decodeHeader(
        forged((v) => v.setUint32(0, 1)),
        VOLUME,
      ),
    ),
    "BAD_MAGIC",
  );
  assert.is(
    codeOf(() =>
      decodeHeader(
        forged((v) => v.setUint16(4, 2, true)),
        VOLUME,
      ),
    ),
    "BAD_VERSION",
  );
  assert.is(
    codeOf(() =>
      decodeHeader(
        forged((v) => v.setUint16(6, 2, true)),
        VOLUME,
      ),
    ),
    "BAD_TYPE",
  );
  assert.is(
    codeOf(() =>
      decodeHeader(
        forged((v) => v.setUint32(120, 65, true)),
        VOLUME,
      ),
    ),
    "BAD_FIELD",
  );
  assert.is(
    codeOf(() =>
      decodeHeader(
        forged((v) => v.setUint32(124, 33, true)),
        VOLUME,
      ),
    ),
    "BAD_FIELD",
  );
  assert.is(
    codeOf(() =>
      decodeHeader(
        forged((v) => v.setUint32(68, 500, true)),
        VOLUME,
      ),
    ),
    "BAD_FIELD",
  );
  assert.is(
    codeOf(() =>
      decodeHeader(
        forged((v) => v.setUint32(136, 64, true)),
        VOLUME,
      ),
    ),
    "BAD_FIELD",
  );
  const same_slot = forged((v) => v.setUint32(128 + 16 + 8, 0, true));
  assert.is(
    codeOf(() => decodeHeader(same_slot, VOLUME)),
    "BAD_FIELD",
  );
});

test("a header torn at any sector border is refused", () => {
  const old = encodeHeader(sample(5n));
  const fresh = encodeHeader({ ...sample(7n), epoch: 13n, members: [], extents: [] });
  for (let cut = 512; cut < 4096; cut += 512) {
    const torn = new Uint8Array(4096);
    torn.set(fresh.subarray(0, cut));
    torn.set(old.subarray(cut), cut);
    const same = torn.every((byte, i) => byte === fresh[i]);
    assert.is(
      codeOf(() => decodeHeader(torn, VOLUME)),
      same ? "none" : "BAD_CRC",
    );
  }
});

test("no single flipped byte is accepted as a header", () => {
  const good = encodeHeader(sample());
  for (let i = 0; i < 2048; i++) {
    const bad = good.slice();
    bad[i] = (bad[i] ?? 0) ^ 0x41;
    assert.is.not(
      codeOf(() => decodeHeader(bad, VOLUME)),
      "none",
      `byte ${i}`,
    );
  }
});

test("random bytes never decode and never fail in another way", () => {
  let seed = 99;
  for (let round = 0; round < 300; round++) {
    const bytes = round % 2 === 0 ? new Uint8Array(4096) : encodeHeader(sample());
    for (let i = 0; i < 40; i++) {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      bytes[seed % 2048] = seed >>> 24;
    }
    sealRecord(bytes);
    const result = tryDecodeHeader(bytes, VOLUME);
    if (!(result instanceof DiskFormatError)) assert.ok(result.members.length <= 64);
  }
});

test("the sound copy with the higher sequence is the header", () => {
  const a = tryDecodeHeader(encodeHeader(sample(6n)), VOLUME);
  const b = tryDecodeHeader(encodeHeader(sample(7n)), VOLUME);
  const bad = new DiskFormatError("BAD_CRC", "torn");
  assert.is(chooseHeader(a, b)?.sequence, 7n);
  assert.is(chooseHeader(b, a)?.sequence, 7n);
  assert.is(chooseHeader(a, bad)?.sequence, 6n);
  assert.is(chooseHeader(bad, b)?.sequence, 7n);
  assert.is(chooseHeader(bad, bad), null);
});

test("successive headers go to different copies", () => {
  assert.is.not(headerOffset(6n), headerOffset(7n));
  assert.is(headerOffset(6n), 0);
  assert.is(headerOffset(7n), 65536);
});

test("records do not overlap, at either record size", () => {
  for (const size of [512, 4096]) {
    assert.is(heartbeatOffset(0, size), 131072);
    assert.ok(heartbeatOffset(63, size) + size <= journalOffset(0, size));
    assert.ok(journalOffset(63, size) + size <= lockRecordOffset(0, size, 1));
    assert.is(lockRecordOffset(9, size, 10) + size, lockstateSize(size, 10));
  }
  assert.is(
    codeOf(() => heartbeatOffset(64, 512)),
    "BAD_FIELD",
  );
  assert.is(
    codeOf(() => lockRecordOffset(10, 512, 10)),
    "BAD_FIELD",
  );
  assert.is(
    codeOf(() => heartbeatOffset(0, 1000)),
    "BAD_FIELD",
  );
});

test("a place in the file is found on the device, across extents", () => {
  const { extents } = sample();
  assert.equal(mapToDevice(extents, 65024, 1024), [
    { deviceOffset: 1048576 + 65024, length: 512 },
    { deviceOffset: 8388608, length: 512 },
  ]);
  assert.is(mapRecord(extents, 131072, 512), 8388608 + 65536);
  assert.is(
    codeOf(() => mapRecord(extents, 65024, 1024)),
    "UNMAPPED",
  );
  assert.is(
    codeOf(() => mapToDevice(extents, 40065530, 512)),
    "UNMAPPED",
  );
});

test("a header that belongs to another file is told apart", () => {
  const header = sample();
  const found = { ino: 133n, generation: 0xdeadbeef, size: 1, recordSize: 512, extents: header.extents };
  assert.is(headerMismatch(header, found), null);
  assert.match(headerMismatch(header, { ...found, ino: 134n }) ?? "", /inode/);
  assert.match(headerMismatch(header, { ...found, generation: 1 }) ?? "", /generation/);
  assert.match(headerMismatch(header, { ...found, recordSize: 4096 }) ?? "", /records of 512/);
  assert.match(headerMismatch(header, { ...found, extents: header.extents.slice(1) }) ?? "", /extents/);
});

test("a header that could not be read back is not written", () => {
  assert.is(
    codeOf(() => encodeHeader({ ...sample(), clusterKey: new Uint8Array(16) })),
    "BAD_FIELD",
  );
  const many = Array.from({ length: 33 }, (_, i) => ({ fileOffset: i, deviceOffset: i, length: 1 }));
  assert.is(
    codeOf(() => encodeHeader({ ...sample(), extents: many })),
    "BAD_FIELD",
  );
  assert.is(
    codeOf(() => encodeHeader({ ...sample(), volumeUuid: "nonsense" })),
    "BAD_FIELD",
  );
});

test.run();
