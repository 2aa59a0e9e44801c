// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proves where lock records go on the device, in one piece or many, over the borders of extents; and what a disk that fails
 * is told as. Over plain files.
 */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { closeFd, openDirect } from "../../native/index.js";
import { MXFS_DISK_LOCK_OFFSET } from "../../src/wire/abi.js";
import { RecordDisk } from "../../src/workers/record_disk.js";

const SIZE = 512;
const COUNT = 512;
const folder = mkdtempSync(join(tmpdir(), "mxfs-record-disk-"));
const file = join(folder, "device");
/** Two extents of lockstate, the second one before the first on the device. */
const FIRST = MXFS_DISK_LOCK_OFFSET + 100 * SIZE;
const LENGTH = MXFS_DISK_LOCK_OFFSET + COUNT * SIZE;
const location = {
  ino: 1n,
  generation: 1,
  size: LENGTH,
  recordSize: SIZE,
  extents: [
    { fileOffset: 0, deviceOffset: 1 << 20, length: FIRST },
    { fileOffset: FIRST, deviceOffset: 0, length: LENGTH - FIRST },
  ],
};

test.before(() => writeFileSync(file, new Uint8Array(3 << 20)));
test.after(() => rmSync(folder, { recursive: true }));

const record = (byte: number, count = 1): Uint8Array => new Uint8Array(count * SIZE).fill(byte);
const at = (index: number): number => {
  const place = MXFS_DISK_LOCK_OFFSET + index * SIZE;
  return readFileSync(file)[place < FIRST ? (1 << 20) + place : place - FIRST] ?? -1;
};

test("records land where the extents say, in one piece and in many, and a run over a border in two", async () => {
  const fd = openDirect(file, { write: true, exclusive: false, dsync: true });
  const disk = new RecordDisk(fd, SIZE);
  disk.place = { location, recordCount: COUNT };
  assert.is((await disk.write([{ index: 3, bytes: record(1) }])).kind, "ok");
  assert.is(at(3), 1);
  assert.is((await disk.write([{ index: 98, bytes: record(2, 4) }])).kind, "ok");
  assert.equal([97, 98, 99, 100, 101, 102].map(at), [0, 2, 2, 2, 2, 0]);
  const many = Array.from({ length: 300 }, (_, i) => ({ index: 110 + i, bytes: record(10 + (i % 200)) }));
  assert.is((await disk.write(many)).kind, "ok");
  assert.ok(many.every(({ index, bytes }) => at(index) === bytes[0]));
  disk.close();
  closeFd(fd);
});

test("a place beyond the area, and a disk that cannot be written, are errors with a sentence; nothing is thrown", async () => {
  const fd = openDirect(file, { write: true, exclusive: false, dsync: true });
  const disk = new RecordDisk(fd, SIZE);
  const nowhere = await disk.write([{ index: 0, bytes: record(1) }]);
  assert.match(nowhere.kind === "error" ? nowhere.message : "", /before lockstate was found/);
  disk.place = { location, recordCount: COUNT };
  const beyond = await disk.write([{ index: COUNT, bytes: record(1) }]);
  assert.match(beyond.kind === "error" ? beyond.message : "", /lock record 512, expected 0 to 511/);
  closeFd(fd);
  const reading = openSync(file, "r");
  const deaf = new RecordDisk(reading, SIZE);
  deaf.place = { location, recordCount: COUNT };
  for (const pieces of [
    [{ index: 0, bytes: record(1) }],
    [
      { index: 0, bytes: record(1) },
      { index: 5, bytes: record(1) },
    ],
  ]) {
    const outcome = await deaf.write(pieces);
    assert.is(outcome.kind, "error");
  }
  closeSync(reading);
  disk.close();
  deaf.close();
});

test.run();
