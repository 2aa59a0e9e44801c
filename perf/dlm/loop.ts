// SPDX-License-Identifier: GPL-2.0-only
//
// The netlink worker's loop for roundtrip.c: the native blocking receive, the lock engine, one answer. File descriptor 3
// is a socket of roundtrip.c's choice; what comes is not from the kernel, so the lengths (0 for such) are not looked at.
// Each lock is released before the next request is taken.
//
// Weakness: see roundtrip.c.

import { GENL_BATCH_MAX, GenlSocket } from "../../native/index.js";
import { COMMAND, LockEngine } from "../../src/dlm/engine.js";
import { Outbox } from "../../src/dlm/outbox.js";
import { MXFS_LOCK_ENTRY_SIZE } from "../../src/wire/abi.js";
import { checkLockEntries, LOCK_ENTRY } from "../../src/wire/lock_entry.js";

const FD = 3;
const SLOT_BYTES = 128;
const socket = GenlSocket.attach({ fd: FD, portId: 0 });
const buffer = new Uint8Array(SLOT_BYTES * GENL_BATCH_MAX);
const lengths = new Int32Array(GENL_BATCH_MAX);
const engine = LockEngine.create(1, { resourceCountMax: 1 << 16, lockCountMax: 1 << 16 });
const out = new Outbox();
engine.freezeAndClear(1n, [1]);
engine.resume(1n, out);
const slots = Array.from({ length: GENL_BATCH_MAX }, (_, slot) =>
  buffer.subarray(slot * SLOT_BYTES, slot * SLOT_BYTES + MXFS_LOCK_ENTRY_SIZE),
);
const view = new DataView(buffer.buffer);
for (let over = false; !over; ) {
  const count = socket.recvBatch(buffer, SLOT_BYTES, lengths, null, -1);
  for (let slot = 0; slot < count && !over; slot++) {
    const entry = slots[slot] as Uint8Array;
    const id = slot * SLOT_BYTES + LOCK_ENTRY.lockId;
    // Lock id 0 is the end.
    over = view.getUint32(id, true) === 0 && view.getUint32(id + 4, true) === 0;
    if (!over) {
      checkLockEntries(entry, 1);
      engine.submit(COMMAND.REQUEST, entry, 0, 1, out);
      socket.send(out.entry(0));
      out.clear();
      engine.submit(COMMAND.RELEASE, entry, 0, 1, out);
    }
  }
}
