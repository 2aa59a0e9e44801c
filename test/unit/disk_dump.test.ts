// SPDX-License-Identifier: GPL-2.0-only
/** Proves the offline dump against images made by mkfs.xfs, sound and damaged. */
import { closeSync, openSync, writeSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { encodeLockRecord } from "../../src/disk/lock_records.js";
import {
  encodeHeader,
  HEADER_MEMBER_STATE,
  headerOffset,
  heartbeatOffset,
  journalOffset,
  type LockstateLocation,
  lockRecordOffset,
  lockstateSize,
  mapRecord,
} from "../../src/disk/lockstate.js";
import { encodeHeartbeat, encodeJournal, formatUuid, JOURNAL_STATE } from "../../src/disk/record.js";
import { findPath, readSuperblock } from "../../src/disk/xfs.js";
import { dumpDisk, formatDump } from "../../src/main/disk_dump.js";
import { MXFS_RES_INODE } from "../../src/wire/abi.js";
import { fnv1a64 } from "../../src/wire/fnv.js";
import { FileReader, ImageDirectory } from "../support/xfs_image.js";

const RECORD = 512;
const LOCKS = 512;
const test = suite<{ images: ImageDirectory }>("offline dump", { images: new ImageDirectory() });
test.after(({ images }) => images.remove());

/** An XFS with lockstate in place, and where that lies. */
async function volume(images: ImageDirectory): Promise<{
  image: string;
  id: bigint;
  uuid: string;
  location: LockstateLocation;
}> {
  const content = new Uint8Array(lockstateSize(RECORD, LOCKS));
  const image = images.makeXfs(
    400 << 20,
    [],
    [{ name: ".mxfs", content: null, children: [{ name: "lockstate", content }] }],
  );
  const reader = new FileReader(image);
  const sb = await readSuperblock(reader);
  const file = await findPath(reader, sb, [".mxfs", "lockstate"]);
  return {
    image,
    id: fnv1a64(sb.uuid),
    uuid: formatUuid(sb.uuid),
    location: {
      ino: file.ino,
      generation: file.generation,
      size: file.size,
      recordSize: RECORD,
      extents: file.extents.map((extent) => ({
        fileOffset: extent.fileOffsetBlocks * sb.blockSize,
        deviceOffset: extent.startByte,
        length: extent.lengthBytes,
      })),
    },
  };
}

function put(image: string, location: LockstateLocation, offset: number, bytes: Uint8Array): void {
  const fd = openSync(image, "r+");
  writeSync(fd, bytes, 0, bytes.length, mapRecord(location.extents, offset, bytes.length));
  closeSync(fd);
}

test("the dump shows header, heartbeats, journal slots and granted locks, and no cluster key", async ({
  images,
}) => {
  const { image, id, uuid, location } = await volume(images);
  const chunk_owners = new Uint8Array(2048);
  chunk_owners[0] = 1;
  chunk_owners[1] = 2;
  const header = {
    volume: id,
    epoch: 12n,
    sequence: 4n,
    volumeUuid: uuid,
    ino: location.ino,
    generation: location.generation,
    recordSize: RECORD,
    lockRecordCount: LOCKS,
    holder: 0xaa,
    holderIncarnation: 3,
    clusterKey: new Uint8Array(32).fill(0x5a),
    members: [
      { node: 0xaa, incarnation: 3, slot: 0, state: HEADER_MEMBER_STATE.ACTIVE },
      { node: 0xbb, incarnation: 8, slot: 1, state: HEADER_MEMBER_STATE.ACTIVE },
    ],
    extents: location.extents,
    chunkOwners: chunk_owners,
  };
  put(image, location, headerOffset(4n), encodeHeader(header));
  const beat = {
    volume: id,
    epoch: 12n,
    sequence: 99n,
    node: 0xbb,
    incarnation: 8,
    uuid,
    role: 2,
    port: 7601,
    address: "10.0.0.2",
    unreachableSlots: 0n,
    hostName: "second",
  };
  put(image, location, heartbeatOffset(1, RECORD), encodeHeartbeat(beat, RECORD));
  const journal = { volume: id, epoch: 12n, sequence: 1n, node: 0xaa, incarnation: 3, recoverer: 0xbb };
  put(
    image,
    location,
    journalOffset(0, RECORD),
    encodeJournal({ ...journal, state: JOURNAL_STATE.RECOVERING }, RECORD),
  );
  const lock = {
    volume: id,
    epoch: 12n,
    sequence: 7n,
    resource: { volume: id, ino: 133n, offset: 0n, ag: 0, type: MXFS_RES_INODE },
    lockId: 0x10n,
    owner: 0xaa,
    ownerIncarnation: 3,
    mode: 5,
    writer: 0xbb,
    writerIncarnation: 8,
  };
  put(image, location, lockRecordOffset(300, RECORD, LOCKS), encodeLockRecord(lock, RECORD));
  const old = encodeLockRecord({ ...lock, epoch: 11n }, RECORD);
  put(image, location, lockRecordOffset(301, RECORD, LOCKS), old);

  const dump = await dumpDisk(image);
  assert.is(dump.volume.uuid, uuid);
  assert.is(dump.header?.epoch, "12");
  assert.is(dump.heartbeats[0]?.hostName, "second");
  assert.is(dump.journals[0]?.state, "being recovered");
  assert.is(dump.journals[0]?.recoverer, "000000bb");
  assert.equal(
    dump.locks.map((l) => `${l.resource} ${l.mode} ${l.node} ${l.master}`),
    ["inode:133 EX 000000aa 000000bb"],
  );
  assert.is(dump.outdatedLockRecords, 1);
  assert.equal(dump.problems, []);
  const text = formatDump(dump);
  assert.match(text, /^member node=000000bb incarnation=8 slot=1 state=active lockChunks=1$/m);
  assert.match(text, /^lock resource=inode:133 mode=EX /m);
  assert.not.match(JSON.stringify(dump) + text, /5a5a5a|90,90,90/, "the cluster key is shown");
});

test("damaged records are told as problems, and the rest is shown all the same", async ({ images }) => {
  const { image, id, location } = await volume(images);
  const torn = encodeJournal(
    {
      volume: id,
      epoch: 1n,
      sequence: 1n,
      node: 1,
      incarnation: 1,
      recoverer: 0,
      state: JOURNAL_STATE.HOLDER,
    },
    RECORD,
  );
  torn.fill(0, 44);
  put(image, location, journalOffset(2, RECORD), torn);
  put(image, location, 0, new Uint8Array(4096).fill(1));
  const dump = await dumpDisk(image);
  assert.is(dump.header, null);
  assert.is(dump.problems.length, 2);
  assert.match(dump.problems.join("\n"), /journal slot 2: .*/);
  assert.match(formatDump(dump), /^problem: /m);
});

test("a device that is no XFS, or was never mounted with mxfs, is refused with that reason", async ({
  images,
}) => {
  let said = "";
  try {
    await dumpDisk(images.makeXfs(400 << 20, [], []));
  } catch (error) {
    said = String(error);
  }
  assert.match(said, /without \.mxfs\/lockstate/);
  said = "";
  try {
    await dumpDisk(images.file(new Uint8Array(1 << 20)));
  } catch (error) {
    said = String(error);
  }
  assert.match(said, /XFS/);
});

test.run();
