// SPDX-License-Identifier: GPL-2.0-only
//
// `npm run perf:persist`: what it costs to have grants on disk before they are told (rule 5), on this machine's own disk.
//
//   npm run perf:persist -- [--file FILE] [--rounds 5] [--seconds 1]
//
// one by one  whole records written to random places, O_DIRECT and O_DSYNC, each after the one before
// depth N     the daemon's lock records (lock_persister's writer over record_disk) with N grants outstanding; each lock is
//             released when it is granted, so half of what is written are releases
//
// Rounds take turns; medians are shown, and the ratio at depth 64, whose goal is 10. Exit status 1: not reached.
//
// Weakness: a plain file on a file system stands for lockstate (its blocks are written beforehand); a disk that is busy
// with other things makes the figures waver, the ratio less.

import { closeSync, mkdirSync, openSync, rmSync } from "node:fs";
import { dirname } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import yargs from "yargs";
import { hideBin } from "yargs/helpers";
import { allocAligned, closeFd, openDirect, pwrite } from "../../native/index.js";
import { type LockRecordIo, LockRecordWriter, type PersistedLock } from "../../src/disk/lock_records.js";
import { lockstateSize } from "../../src/disk/lockstate.js";
import {
  LockMode,
  MXFS_DISK_LOCK_CHUNK_RECORDS,
  MXFS_DISK_LOCK_OFFSET,
  MXFS_DISK_LOCK_RECORD_COUNT_DEFAULT,
} from "../../src/wire/abi.js";
import { RecordDisk } from "../../src/workers/record_disk.js";
import { median } from "../stats.js";

const RECORD_SIZE = 512;
const RECORDS = MXFS_DISK_LOCK_RECORD_COUNT_DEFAULT;
const DEPTHS = [1, 8, 64, 512] as const;
const GOAL_DEPTH = 64;
const GOAL = 10;
const FILL_BYTES = 1 << 20;

const argv = await yargs(hideBin(process.argv))
  .scriptName("perf:persist")
  .option("file", { type: "string", default: ".lab/perf-persist.img", describe: "made, and removed again" })
  .option("rounds", { type: "number", default: 5 })
  .option("seconds", { type: "number", default: 1, describe: "length of one measurement" })
  .strict()
  .parseAsync();
if (!Number.isInteger(argv.rounds) || argv.rounds < 1 || argv.rounds > 100 || !(argv.seconds > 0)) {
  throw new RangeError("--rounds: expected 1 to 100; --seconds: more than 0");
}

/** Records per second. */
function oneByOne(fd: number): number {
  const buffer = allocAligned(RECORD_SIZE, 4096).fill(1);
  const began = performance.now();
  const end = began + argv.seconds * 1000;
  let count = 0;
  for (; performance.now() < end; count++) {
    const place = Math.floor(Math.random() * RECORDS);
    pwrite(fd, buffer, MXFS_DISK_LOCK_OFFSET + place * RECORD_SIZE);
  }
  return (count * 1000) / (performance.now() - began);
}

interface Grouped {
  /** Grants per second. */
  readonly rate: number;
  readonly recordsPerWrite: number;
  /** Milliseconds from request to durable. */
  readonly medianMs: number;
}

async function grouped(disk: RecordDisk, epoch: bigint, depth: number): Promise<Grouped> {
  const io: LockRecordIo = {
    write: (pieces) => disk.write(pieces),
    recallUnused: () => Promise.resolve(),
    moreChunks: () => Promise.resolve([]),
    pause: (ms) => pause(ms),
  };
  const options = { volume: 1n, recordSize: RECORD_SIZE, writer: 1, writerIncarnation: 1 };
  const writer = new LockRecordWriter(options, io);
  // Half of it, as one of two nodes has.
  const chunks = RECORDS / MXFS_DISK_LOCK_CHUNK_RECORDS / 2;
  writer.begin(
    epoch,
    Array.from({ length: chunks }, (_, chunk) => chunk),
  );
  const began = performance.now();
  const end = began + argv.seconds * 1000;
  const times: number[] = [];
  let next = 0;
  const client = async (): Promise<void> => {
    while (performance.now() < end) {
      const id = BigInt(++next);
      const resource = { volume: 1n, ino: id, offset: 0n, ag: 0, type: 1 };
      const lock: PersistedLock = { resource, lockId: id, owner: 1, ownerIncarnation: 1, mode: LockMode.EX };
      const asked = performance.now();
      const outcome = await writer.persist(lock);
      if (outcome.kind !== "ok") throw new Error(`persist: ${JSON.stringify(outcome)}`);
      times.push(performance.now() - asked);
      writer.release(lock);
    }
  };
  await Promise.all(Array.from({ length: depth }, client));
  const rate = (times.length * 1000) / (performance.now() - began);
  await writer.idle();
  return { rate, recordsPerWrite: writer.recordsWritten / writer.writes, medianMs: median(times) };
}

mkdirSync(dirname(argv.file), { recursive: true });
rmSync(argv.file, { force: true });
closeSync(openSync(argv.file, "w"));
const fd = openDirect(argv.file, { write: true, exclusive: false, dsync: true });
try {
  const size = lockstateSize(RECORD_SIZE, RECORDS);
  const zeros = allocAligned(FILL_BYTES, 4096);
  for (let at = 0; at < size; at += FILL_BYTES) pwrite(fd, zeros, at);
  const disk = new RecordDisk(fd, RECORD_SIZE);
  const extents = [{ fileOffset: 0, deviceOffset: 0, length: size }];
  const location = { ino: 1n, generation: 1, size, recordSize: RECORD_SIZE, extents };
  disk.place = { location, recordCount: RECORDS };

  const single: number[] = [];
  const group = new Map<number, Grouped[]>(DEPTHS.map((depth) => [depth, []]));
  let epoch = 0n;
  for (let round = 0; round < argv.rounds; round++) {
    single.push(oneByOne(fd));
    for (const depth of DEPTHS) group.get(depth)?.push(await grouped(disk, ++epoch, depth));
  }
  disk.close();
  const alone = median(single);
  const rows = DEPTHS.map((depth) => {
    const runs = group.get(depth) ?? [];
    const rate = median(runs.map((run) => run.rate));
    return {
      depth,
      rate,
      ratio: rate / alone,
      recordsPerWrite: median(runs.map((run) => run.recordsPerWrite)),
      medianMs: median(runs.map((run) => run.medianMs)),
    };
  });
  console.log(`one by one, O_DSYNC   ${alone.toFixed(0).padStart(8)} records/s`);
  for (const row of rows) {
    console.log(
      `group commit, depth ${String(row.depth).padStart(3)} ${row.rate.toFixed(0).padStart(8)} grants/s ` +
        `ratio ${row.ratio.toFixed(1).padStart(5)}  ${row.recordsPerWrite.toFixed(1).padStart(5)} records a write  ` +
        `median ${row.medianMs.toFixed(2)} ms`,
    );
  }
  const reached = (rows.find((row) => row.depth === GOAL_DEPTH)?.ratio ?? 0) >= GOAL;
  console.log(`goal at depth ${GOAL_DEPTH}: ratio ${GOAL} or more: ${reached ? "reached" : "NOT REACHED"}`);
  process.exitCode = reached ? 0 : 1;
} finally {
  closeFd(fd);
  rmSync(argv.file, { force: true });
}
