// SPDX-License-Identifier: GPL-2.0-only
//
// Writes lock records to the raw device, synchronously: several pieces in one submission, one piece in one command.
//
// Whoever writes blocks until it is durable (the file is open with O_DSYNC). So nothing of it goes over libuv's pool, which
// the heartbeat needs, and what asks for a write meanwhile gathers for the next one.
//
// Known weakness: while a write hangs (a lost path: 30 s by default), so does the thread.

import { setImmediate as turn } from "node:timers/promises";
import { allocAligned, BatchIo, type BatchSpan, isNativeError, pwrite } from "../../native/index.js";
import type { RecordWrite, RecordWriteOutcome } from "../disk/lock_records.js";
import { type LockstateLocation, lockRecordOffset, mapToDevice } from "../disk/lockstate.js";

const ALIGNMENT = 4096;
const BATCH_DEPTH = 256;

/** Where the records lie. */
export interface RecordPlace {
  readonly location: LockstateLocation;
  /** Records in the area. */
  readonly recordCount: number;
}

export class RecordDisk {
  place: RecordPlace | null = null;
  readonly #batch = new BatchIo(BATCH_DEPTH);
  #buffer: Uint8Array<ArrayBuffer>;

  /** @param fd open for O_DIRECT and O_DSYNC writes. */
  constructor(
    readonly fd: number,
    recordSize: number,
  ) {
    this.#buffer = allocAligned(BATCH_DEPTH * recordSize, ALIGNMENT);
  }

  /** Resolves a turn of the event loop after the write, so that what arrived meanwhile is taken before the next one. */
  async write(pieces: readonly RecordWrite[]): Promise<RecordWriteOutcome> {
    const outcome = this.#writeNow(pieces);
    await turn();
    return outcome;
  }

  #writeNow(pieces: readonly RecordWrite[]): RecordWriteOutcome {
    try {
      const spans = this.#gather(pieces);
      for (let from = 0; from < spans.length; from += BATCH_DEPTH) {
        const part = spans.slice(from, from + BATCH_DEPTH);
        const [only] = part;
        if (part.length === 1 && only !== undefined) {
          const { dataOffset, length, fileOffset } = only;
          pwrite(this.fd, this.#buffer.subarray(dataOffset, dataOffset + length), fileOffset);
        } else {
          this.#batch.write(this.fd, this.#buffer, part);
        }
      }
      return { kind: "ok" };
    } catch (error) {
      // What a write refused by a reservation ends with.
      if (isNativeError(error) && error.code === "EBADE") {
        return { kind: "conflict" };
      }
      return { kind: "error", message: error instanceof Error ? error.message : String(error) };
    }
  }

  /** The pieces one behind the other in the aligned buffer, and where on the device each goes. */
  #gather(pieces: readonly RecordWrite[]): BatchSpan[] {
    if (this.place === null) {
      throw new Error("lock records are written before lockstate was found");
    }
    const { location, recordCount } = this.place;
    const length = pieces.reduce((sum, { bytes }) => sum + bytes.length, 0);
    if (length > this.#buffer.length) {
      this.#buffer = allocAligned(length, ALIGNMENT);
    }
    const spans: BatchSpan[] = [];
    let dataOffset = 0;
    for (const { index, bytes } of pieces) {
      this.#buffer.set(bytes, dataOffset);
      const offset = lockRecordOffset(index, location.recordSize, recordCount);
      for (const run of mapToDevice(location.extents, offset, bytes.length)) {
        spans.push({ dataOffset, length: run.length, fileOffset: run.deviceOffset });
        dataOffset += run.length;
      }
    }
    return spans;
  }

  close(): void {
    this.#batch.close();
  }
}
