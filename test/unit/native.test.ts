// SPDX-License-Identifier: GPL-2.0-only
//
// The native addon against the real kernel: the nlctrl netlink family, O_DIRECT files beside the build (tmpfs
// refuses O_DIRECT), a loop device, the boot clock. Needs root, loop devices and a file system with O_DIRECT; where
// a capability is missing from the sandbox the documented errno is what is asserted, not success.
//
// Known weakness: a real SCSI disk and NVMe are not here; SG_IO and reservations that succeed are the lab's.

import { execFileSync } from "node:child_process";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { test } from "uvu";
import * as assert from "uvu/assert";
import * as native from "../../native/index.js";

const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLMSG_ERROR = 2;
const GENL_ID_CTRL = 16;
const CTRL_CMD_NEWFAMILY = 1;
const CTRL_CMD_GETFAMILY = 3;
const CTRL_ATTR_FAMILY_ID = 1;
const SLOT_BYTES = 32768;
const BLOCK = 4096;
const BUFFERS: native.GenlOptions = { receiveBufferBytes: 1 << 20, sendBufferBytes: 1 << 20 };

/** A CTRL_CMD_GETFAMILY by id: nlmsghdr 16, genlmsghdr 4, attribute 8 bytes. */
function getFamilyMessage(familyId: number, sequence: number, flags: number): Uint8Array {
  const message = Buffer.alloc(28);
  message.writeUInt32LE(message.length, 0);
  message.writeUInt16LE(GENL_ID_CTRL, 4);
  message.writeUInt16LE(flags, 6);
  message.writeUInt32LE(sequence, 8);
  message.writeUInt8(CTRL_CMD_GETFAMILY, 16);
  message.writeUInt8(2, 17);
  message.writeUInt16LE(6, 20);
  message.writeUInt16LE(CTRL_ATTR_FAMILY_ID, 22);
  message.writeUInt16LE(familyId, 24);
  return message;
}

interface WorkerOrder {
  readonly handle: native.GenlHandle;
  readonly wakeFd: number;
  readonly slots: SharedArrayBuffer;
  readonly lengths: SharedArrayBuffer;
}

/** Receives until it is woken, then tells what each receive returned. */
function receiveUntilWoken(order: WorkerOrder): void {
  const socket = native.GenlSocket.attach(order.handle);
  const returned: number[] = [];
  parentPort?.postMessage("ready");
  do {
    const slots = new Uint8Array(order.slots);
    const lengths = new Int32Array(order.lengths);
    const wakeFd = order.wakeFd < 0 ? null : order.wakeFd;
    returned.push(socket.recvBatch(slots, SLOT_BYTES, lengths, wakeFd, -1));
    // Without a wake fd: until something comes that is not from the kernel.
    if (wakeFd === null && lengths[(returned.at(-1) ?? 0) - 1] === 0) break;
  } while (returned.at(-1) !== native.RECV_WOKEN);
  parentPort?.postMessage(returned);
}

interface DiskOrder {
  readonly path: string;
}

/** Keeps disk operations in flight for ever: it is terminated before it can be told a result. */
function workOnDisk(order: DiskOrder): void {
  const fd = native.openDirect(order.path, { write: true, exclusive: false, dsync: true });
  const bytes = native.allocAligned(BLOCK, BLOCK);
  const batch = new native.BatchIo(1);
  const span = { dataOffset: 0, length: BLOCK, fileOffset: 0 };
  const repeat = async (run: () => Promise<unknown>) => {
    for (;;) {
      await run();
    }
  };
  for (let chain = 0; chain < 4; chain++) {
    repeat(() => native.preadAsync(fd, bytes, 0));
    repeat(() => refusalAsync(() => native.preadAsync(-1, bytes, 0)));
    repeat(() => batch.writeAsync(fd, bytes, [span]));
  }
  parentPort?.postMessage("started");
}

/** What an error must say; a failure that is no NativeError fails the test. */
function refusal(run: () => unknown): native.NativeError {
  try {
    run();
  } catch (error) {
    if (native.isNativeError(error)) {
      return error;
    }
    throw error;
  }
  throw new Error("expected a NativeError, but the call succeeded");
}

async function refusalAsync(run: () => Promise<unknown>): Promise<native.NativeError> {
  try {
    await run();
  } catch (error) {
    if (native.isNativeError(error)) {
      return error;
    }
    throw error;
  }
  throw new Error("expected a NativeError, but the call succeeded");
}

function withDirectory<T>(run: (directory: string) => T): T {
  const directory = mkdtempSync(fileURLToPath(new URL("../../../native/build/test-", import.meta.url)));
  const remove = () => rmSync(directory, { recursive: true });
  let result: T;
  try {
    result = run(directory);
  } catch (error) {
    remove();
    throw error;
  }
  if (result instanceof Promise) {
    return result.finally(remove) as T;
  }
  remove();
  return result;
}

/** Runs with a zeroed file of `blocks` blocks, opened for direct writing. */
function withDirectFile<T>(blocks: number, run: (fd: number) => T): T {
  return withDirectory((directory) => {
    writeFileSync(`${directory}/file`, Buffer.alloc(blocks * BLOCK));
    return run(native.openDirect(`${directory}/file`, { write: true, exclusive: false, dsync: true }));
  });
}

function statusField(name: string): string {
  const line = readFileSync("/proc/thread-self/status", "utf8")
    .split("\n")
    .find((one) => one.startsWith(`${name}:`));
  if (line === undefined) {
    throw new Error(`no ${name} in /proc/thread-self/status`);
  }
  return line.slice(name.length + 1).trim();
}

function defineTests(): void {
  // ---- generic netlink ----

  test("nlctrl resolves itself to id 16 with its notify group", () => {
    const family = native.resolveFamily("nlctrl");
    assert.is(family.name, "nlctrl");
    assert.is(family.id, GENL_ID_CTRL);
    assert.is(family.version, 2);
    assert.is(family.headerBytes, 0);
    assert.ok(Number.isInteger(family.attrMax));
    assert.ok(family.groups.some((group) => group.name === "notify" && group.id > 0));
  });

  test("an unknown family is ENOENT and the message asks for the module", () => {
    const error = refusal(() => native.resolveFamily("no_such_family"));
    assert.is(error.code, "ENOENT");
    assert.is(error.errno, -2);
    assert.is(error.syscall, "CTRL_CMD_GETFAMILY");
    assert.match(error.message, /"no_such_family" is not registered: is its kernel module loaded/);
  });

  test("a batch of requests is answered into a shared buffer, acknowledgements included", () => {
    const socket = native.GenlSocket.open(BUFFERS);
    const answers = new Map<number, number[]>();
    try {
      assert.ok(socket.portId > 0);
      assert.ok(socket.bufferSizes().receive >= BUFFERS.receiveBufferBytes);
      const first = getFamilyMessage(GENL_ID_CTRL, 7, NLM_F_REQUEST);
      const second = getFamilyMessage(0xfff0, 8, NLM_F_REQUEST | NLM_F_ACK);
      const sent = socket.sendBatch(
        Buffer.concat([first, second]),
        Int32Array.of(0, first.length, first.length, second.length),
        2,
      );
      assert.is(sent, 2);
      const bytes = new Uint8Array(new SharedArrayBuffer(SLOT_BYTES * 4));
      const view = new DataView(bytes.buffer);
      const lengths = new Int32Array(new SharedArrayBuffer(16));
      while (answers.size < 2) {
        const count = socket.recvBatch(bytes, SLOT_BYTES, lengths, null, 5000);
        assert.ok(count > 0, "both requests are answered within 5 s");
        for (let slot = 0; slot < count; slot++) {
          const base = slot * SLOT_BYTES;
          assert.ok((lengths[slot] ?? 0) >= 16);
          assert.is(view.getUint32(base + 12, true), socket.portId);
          const detail = view.getInt32(base + 16, true);
          answers.set(view.getUint32(base + 8, true), [view.getUint16(base + 4, true), detail]);
        }
      }
    } finally {
      socket.close();
    }
    const found = answers.get(7);
    assert.is(found?.[0], GENL_ID_CTRL);
    assert.is((found?.[1] ?? 0) & 0xff, CTRL_CMD_NEWFAMILY);
    assert.equal(answers.get(8), [NLMSG_ERROR, -2], "ENOENT as a raw NLMSG_ERROR");
  });

  test("a receive without messages times out, at once with 0", () => {
    const socket = native.GenlSocket.open(BUFFERS);
    const slots = new Uint8Array(SLOT_BYTES);
    const lengths = new Int32Array(1);
    assert.is(socket.recvBatch(slots, SLOT_BYTES, lengths, null, 0), native.RECV_TIMEOUT);
    const before = native.bootTimeMs();
    assert.is(socket.recvBatch(slots, SLOT_BYTES, lengths, null, 30), native.RECV_TIMEOUT);
    assert.ok(native.bootTimeMs() - before >= 29);
    socket.close();
  });

  test("a datagram longer than its slot is an error that leaves the others usable", () => {
    const socket = native.GenlSocket.open(BUFFERS);
    socket.send(getFamilyMessage(GENL_ID_CTRL, 1, NLM_F_REQUEST));
    socket.send(getFamilyMessage(0xfff0, 2, NLM_F_REQUEST));
    const lengths = new Int32Array(4);
    let thrown: unknown;
    try {
      socket.recvBatch(new Uint8Array(4 * 48), 48, lengths, null, 5000);
    } catch (error) {
      thrown = error;
    }
    socket.close();
    assert.instance(thrown, native.TruncatedError);
    if (thrown instanceof native.TruncatedError) {
      assert.is(thrown.code, "EMSGSIZE");
      assert.is(thrown.received, 2);
    }
    assert.ok((lengths[0] ?? 0) < -48, "the truncated one tells minus its length");
    assert.ok((lengths[1] ?? 0) > 0 && (lengths[1] ?? 0) <= 48, "the short one was received");
  });

  test("an overrun of the receive buffer is reported as ENOBUFS", () => {
    const socket = native.GenlSocket.open({ receiveBufferBytes: 4096, sendBufferBytes: 65536 });
    for (let sequence = 1; sequence <= 100; sequence++) {
      socket.send(getFamilyMessage(GENL_ID_CTRL, sequence, NLM_F_REQUEST));
    }
    const error = refusal(() =>
      socket.recvBatch(new Uint8Array(SLOT_BYTES), SLOT_BYTES, new Int32Array(1), null, 5000),
    );
    socket.close();
    assert.is(error.code, "ENOBUFS");
    assert.match(error.message, /messages were lost/);
  });

  test("joining a multicast group that no family has is refused", () => {
    const socket = native.GenlSocket.open(BUFFERS);
    const notify = native.resolveFamily("nlctrl").groups.find((group) => group.name === "notify");
    socket.joinGroup(notify?.id ?? 0);
    assert.is(refusal(() => socket.joinGroup(1_000_000)).code, "EINVAL");
    socket.close();
  });

  test("a worker blocked in a receive gets a message sent by another thread, and is woken by an eventfd", async () => {
    const socket = native.GenlSocket.open(BUFFERS);
    const wakeFd = native.createWakeFd();
    const order: WorkerOrder = {
      handle: socket.handle,
      wakeFd,
      slots: new SharedArrayBuffer(SLOT_BYTES),
      lengths: new SharedArrayBuffer(4),
    };
    const worker = new Worker(new URL(import.meta.url), { workerData: order });
    const exit = once(worker, "exit"); // from the start: it may come right behind the last message
    assert.equal(await once(worker, "message"), ["ready"]);
    socket.send(getFamilyMessage(GENL_ID_CTRL, 42, NLM_F_REQUEST));
    native.signalWakeFd(wakeFd);
    const [returned] = await once(worker, "message");
    await exit;
    assert.equal(returned, [1, native.RECV_WOKEN], "the message goes before the wake-up");
    assert.ok((new Int32Array(order.lengths)[0] ?? 0) > 20);
    assert.is(new DataView(order.slots).getUint32(8, true), 42);
    native.closeFd(wakeFd);
    socket.close();
  });

  test("four workers load the addon at once and each is woken through its own eventfd", async () => {
    const socket = native.GenlSocket.open(BUFFERS);
    const runs = [1, 2, 3, 4].map(async () => {
      const wakeFd = native.createWakeFd();
      const slots = new SharedArrayBuffer(SLOT_BYTES);
      const order: WorkerOrder = { handle: socket.handle, wakeFd, slots, lengths: new SharedArrayBuffer(4) };
      const worker = new Worker(new URL(import.meta.url), { workerData: order });
      const exit = once(worker, "exit"); // from the start: it may come right behind the last message
      await once(worker, "message");
      native.signalWakeFd(wakeFd);
      const [returned] = await once(worker, "message");
      await exit;
      native.closeFd(wakeFd);
      return returned as unknown;
    });
    assert.equal(await Promise.all(runs), [[-1], [-1], [-1], [-1]]);
    socket.close();
  });

  test("a wake-up before the wait is not lost, and many count as one", () => {
    const socket = native.GenlSocket.open(BUFFERS);
    const wakeFd = native.createWakeFd();
    native.signalWakeFd(wakeFd);
    native.signalWakeFd(wakeFd);
    const receive = () =>
      socket.recvBatch(new Uint8Array(SLOT_BYTES), SLOT_BYTES, new Int32Array(1), wakeFd, 0);
    assert.is(receive(), native.RECV_WOKEN);
    assert.is(receive(), native.RECV_TIMEOUT);
    native.closeFd(wakeFd);
    socket.close();
  });

  test("who waits in the receive itself is woken by a datagram of length 0, messages first", async () => {
    const socket = native.GenlSocket.open(BUFFERS);
    const slots = new SharedArrayBuffer(4 * SLOT_BYTES);
    const lengths = new SharedArrayBuffer(16);
    const order: WorkerOrder = { handle: socket.handle, wakeFd: -1, slots, lengths };
    const worker = new Worker(new URL(import.meta.url), { workerData: order });
    const exit = once(worker, "exit"); // from the start: it may come right behind the last message
    await once(worker, "message");
    socket.send(getFamilyMessage(GENL_ID_CTRL, 1, NLM_F_REQUEST));
    socket.wake();
    const [returned] = (await once(worker, "message")) as [number[]];
    await exit;
    assert.is(
      returned.reduce((sum, count) => sum + count, 0),
      2,
      "the answer, and what woke it",
    );
    // What is not from the kernel is not to be looked at.
    assert.is(new Int32Array(lengths)[(returned.at(-1) ?? 0) - 1], 0);
    socket.wake();
    const lengths2 = Int32Array.of(77);
    assert.is(socket.recvBatch(new Uint8Array(SLOT_BYTES), SLOT_BYTES, lengths2, null, 0), 1);
    assert.is(lengths2[0], 0);
    socket.close();
  });

  // ---- bad descriptors and arguments ----

  test("every call on a bad descriptor is EBADF", async () => {
    const bytes = native.allocAligned(BLOCK, BLOCK);
    const cdb = new Uint8Array(6);
    const batch = new native.BatchIo(1);
    const span = { dataOffset: 0, length: BLOCK, fileOffset: 0 };
    const calls: (() => unknown)[] = [
      () => native.GenlSocket.attach({ fd: -1, portId: 0 }).send(bytes),
      () =>
        native.GenlSocket.attach({ fd: -1, portId: 0 }).recvBatch(bytes, BLOCK, new Int32Array(1), null, -1),
      () => native.GenlSocket.attach({ fd: -1, portId: 1 }).wake(),
      () => native.signalWakeFd(-1),
      () => native.closeFd(-1),
      () => native.sgIo(-1, cdb, "none", null, 1000),
      () => native.prIoctl(-1, { op: "clear", key: 1n }),
      () => native.pread(-1, bytes, 0),
      () => native.pwrite(-1, bytes, 0),
      () => batch.write(-1, bytes, [span]),
      () => batch.read(-1, bytes, [span]),
      () => native.fsync(-1),
      () => native.fdatasync(-1),
      () => native.blockDeviceBytes(-1),
      () => native.setBindToDevice(-1, "lo"),
      () => native.xfsGoingDown(-1, native.XFS_GOING.noLogFlush),
    ];
    for (const call of calls) {
      const error = refusal(call);
      assert.is(error.code, "EBADF", call.toString());
      assert.is(error.errno, -9);
    }
    const asyncCalls: (() => Promise<unknown>)[] = [
      () => native.sgIoAsync(-1, cdb, "none", null, 1000),
      () => native.prIoctlAsync(-1, { op: "clear", key: 1n }),
      () => native.preadAsync(-1, bytes, 0),
      () => native.pwriteAsync(-1, bytes, 0),
      () => batch.writeAsync(-1, bytes, [span]),
      () => batch.readAsync(-1, bytes, [span]),
      () => native.fsyncAsync(-1),
      () => native.fdatasyncAsync(-1),
    ];
    for (const call of asyncCalls) {
      assert.is((await refusalAsync(call)).code, "EBADF", call.toString());
    }
    batch.close();
  });

  test("arguments that would reach outside a buffer are refused before the kernel sees them", () => {
    const socket = native.GenlSocket.open(BUFFERS);
    const bytes = new Uint8Array(64);
    const batch = new native.BatchIo(1);
    const outside: (() => unknown)[] = [
      () => socket.sendBatch(bytes, Int32Array.of(60, 8), 1),
      () => socket.sendBatch(bytes, Int32Array.of(-4, 8), 1),
      () => socket.sendBatch(bytes, Int32Array.of(0, 8), 2),
      () => socket.recvBatch(bytes, 128, new Int32Array(1), null, 0),
      () => socket.recvBatch(bytes, 0, new Int32Array(1), null, 0),
      () => socket.recvBatch(bytes, 64, new Int32Array(0), null, 0),
      () => batch.read(0, bytes, [{ dataOffset: 32, length: 33, fileOffset: 0 }]),
      () => batch.read(0, bytes, [{ dataOffset: 0, length: 64, fileOffset: -1 }]),
      () => batch.read(0, bytes, [{ dataOffset: 0.5, length: 8, fileOffset: 0 }]),
      () => batch.read(0, bytes, []),
      () => native.pread(0, bytes, Number.NaN),
      () => native.sgIo(0, new Uint8Array(33), "none", null, 1000),
      () => native.sgIo(0, new Uint8Array(6), "in", null, 1000),
      () => native.sgIo(0, new Uint8Array(6), "none", null, 0),
      () => native.prIoctl(0, { op: "clear", key: 1n << 64n }),
      () => native.openDirect("a\0b", { write: false, exclusive: false, dsync: false }),
    ];
    for (const call of outside) {
      assert.throws(call, (error: unknown) => error instanceof TypeError, call.toString());
    }
    batch.close();
    socket.close();
  });

  // ---- SCSI ----

  test("SG_IO and the reservation ioctls are ENOTTY on a regular file", async () => {
    await withDirectFile(1, async (fd) => {
      const error = refusal(() => native.sgIo(fd, new Uint8Array(6), "in", new Uint8Array(96), 1000));
      assert.is(error.code, "ENOTTY");
      assert.is(error.syscall, "SG_IO");
      const operations: native.PrOperation[] = [
        { op: "register", oldKey: 0n, newKey: 0xffff_ffff_ffff_ffffn, ignoreKey: true },
        { op: "reserve", key: 1n, type: native.PR_TYPE.writeExclusiveRegistrantsOnly },
        { op: "release", key: 1n, type: native.PR_TYPE.writeExclusiveRegistrantsOnly },
        { op: "preempt", ownKey: 1n, victimKey: 2n, type: native.PR_TYPE.writeExclusiveRegistrantsOnly },
        { op: "preemptAbort", ownKey: 1n, victimKey: 2n, type: native.PR_TYPE.writeExclusiveRegistrantsOnly },
        { op: "clear", key: 1n },
      ];
      const names = ["REGISTER", "RESERVE", "RELEASE", "PREEMPT", "PREEMPT_ABORT", "CLEAR"];
      for (const [index, operation] of operations.entries()) {
        const refused = refusal(() => native.prIoctl(fd, operation));
        assert.is(refused.code, "ENOTTY");
        assert.is(refused.syscall, `IOC_PR_${names[index]}`);
      }
      native.closeFd(fd);
    });
  });

  // ---- direct I/O ----

  test("aligned buffers are aligned and zeroed, in private and in shared memory", () => {
    for (const alignment of [512, 4096, 65536]) {
      assert.is(native.allocAligned(alignment, alignment).length, alignment);
      assert.ok(native.allocAlignedShared(512, alignment).buffer instanceof SharedArrayBuffer);
    }
    assert.ok(native.allocAligned(8192, 4096).every((byte) => byte === 0));
    assert.throws(() => native.allocAligned(512, 500), /power of two/);
  });

  test("what is written directly is read back, blocking and asynchronously, from private and shared memory", async () => {
    await withDirectFile(4, async (fd) => {
      const written = native.allocAligned(2 * BLOCK, BLOCK).map((_, index) => index % 251);
      const source = native.allocAlignedShared(2 * BLOCK, BLOCK);
      source.set(written);
      native.pwrite(fd, source, BLOCK);
      const back = native.allocAligned(2 * BLOCK, BLOCK);
      assert.is(native.pread(fd, back, BLOCK), 2 * BLOCK);
      assert.equal(Buffer.from(back), Buffer.from(written));
      await native.pwriteAsync(fd, source.subarray(0, BLOCK), 0);
      const first = native.allocAligned(BLOCK, BLOCK);
      assert.is(await native.preadAsync(fd, first, 0), BLOCK);
      assert.equal(Buffer.from(first), Buffer.from(written.subarray(0, BLOCK)));
      assert.is(
        native.pread(fd, native.allocAligned(4 * BLOCK, BLOCK), 2 * BLOCK),
        2 * BLOCK,
        "short at the end",
      );
      assert.is(native.pread(fd, first, 4 * BLOCK), 0, "nothing behind the end");
      native.fsync(fd);
      await native.fdatasyncAsync(fd);
      native.closeFd(fd);
    });
  });

  test("terminating workers with disk operations in flight harms nobody else", async () => {
    await withDirectory(async (directory) => {
      const order: DiskOrder = { path: `${directory}/file` };
      writeFileSync(order.path, Buffer.alloc(BLOCK));
      for (let round = 0; round < 10; round++) {
        const worker = new Worker(new URL(import.meta.url), { workerData: order });
        assert.equal(await once(worker, "message"), ["started"]);
        assert.is(await worker.terminate(), 1);
      }
    });
  });

  test("misaligned direct I/O is EINVAL and the message says what was misaligned", () => {
    withDirectFile(2, (fd) => {
      const bytes = native.allocAligned(2 * BLOCK, BLOCK);
      const offset = refusal(() => native.pwrite(fd, bytes.subarray(0, BLOCK), 100));
      assert.is(offset.code, "EINVAL");
      assert.match(offset.message, /4096 bytes at 100, .*multiples of the logical block size/);
      const memory = refusal(() => native.pread(fd, bytes.subarray(3, BLOCK + 3), 0));
      assert.is(memory.code, "EINVAL");
      assert.match(memory.message, /address modulo 4096 is 3/);
      native.closeFd(fd);
    });
  });

  test("openDirect refuses a missing file, and a file system without O_DIRECT by EINVAL", () => {
    const options = { write: false, exclusive: false, dsync: false };
    assert.is(refusal(() => native.openDirect("/no/such/file", options)).code, "ENOENT");
    const error = refusal(() => native.openDirect("/proc/self/status", options));
    assert.is(error.code, "EINVAL");
    assert.match(error.message, /does not support O_DIRECT/);
  });

  test("a batch writes each span to its own place and leaves the rest alone, then reads them back", async () => {
    await withDirectFile(64, async (fd) => {
      const batch = new native.BatchIo(32);
      const data = native.allocAlignedShared(32 * BLOCK, BLOCK);
      const spans = Array.from({ length: 32 }, (_, index) => ({
        dataOffset: index * BLOCK,
        length: BLOCK,
        fileOffset: (63 - 2 * index) * BLOCK,
      }));
      for (const [index, span] of spans.entries()) {
        data.fill(index + 1, span.dataOffset, span.dataOffset + BLOCK);
      }
      batch.write(fd, data, spans);
      const whole = native.allocAligned(64 * BLOCK, BLOCK);
      assert.is(native.pread(fd, whole, 0), whole.length);
      for (let block = 0; block < 64; block++) {
        const expected = block % 2 === 0 ? 0 : (63 - block) / 2 + 1;
        const found = whole.subarray(block * BLOCK, (block + 1) * BLOCK);
        assert.ok(
          found.every((byte) => byte === expected),
          `block ${block} holds ${expected}`,
        );
      }
      const back = native.allocAligned(32 * BLOCK, BLOCK);
      await batch.readAsync(fd, back, spans);
      assert.ok(Buffer.from(back).equals(Buffer.from(data)));
      batch.close();
      native.closeFd(fd);
    });
  });

  test("batches started together on one context do not mix their results", async () => {
    await withDirectFile(8, async (fd) => {
      const batch = new native.BatchIo(4);
      const data = native.allocAligned(8 * BLOCK, BLOCK).fill(9);
      const half = (from: number) =>
        [0, 1, 2, 3].map((index) => ({
          dataOffset: (from + index) * BLOCK,
          length: BLOCK,
          fileOffset: (from + index) * BLOCK,
        }));
      await Promise.all([batch.writeAsync(fd, data, half(0)), batch.writeAsync(fd, data, half(4))]);
      const back = native.allocAligned(8 * BLOCK, BLOCK);
      await Promise.all([batch.readAsync(fd, back, half(0)), batch.readAsync(fd, back, half(4))]);
      assert.ok(back.every((byte) => byte === 9));
      batch.close();
      native.closeFd(fd);
    });
  });

  test("one bad span of a batch is named, and the good ones are done", () => {
    withDirectFile(4, (fd) => {
      const batch = new native.BatchIo(4);
      const data = native.allocAligned(4 * BLOCK, BLOCK).fill(5);
      const spans = [0, 1, 2].map((index) => ({
        dataOffset: index * BLOCK,
        length: BLOCK,
        fileOffset: index * BLOCK + (index === 1 ? 100 : 0),
      }));
      let thrown: unknown;
      try {
        batch.write(fd, data, spans);
      } catch (error) {
        thrown = error;
      }
      assert.instance(thrown, native.BatchError);
      if (thrown instanceof native.BatchError) {
        assert.is(thrown.code, "EINVAL");
        assert.match(thrown.message, /span 1 of 3: 4096 bytes at 4196/);
        assert.equal([...thrown.results], [BLOCK, -22, BLOCK]);
      }
      const back = native.allocAligned(4 * BLOCK, BLOCK);
      native.pread(fd, back, 0);
      assert.equal(
        [0, 1, 2, 3].map((index) => back[index * BLOCK]),
        [5, 0, 5, 0],
      );
      const short = [{ dataOffset: 0, length: BLOCK, fileOffset: 4 * BLOCK }];
      assert.is(
        refusal(() => batch.read(fd, back, short)).code,
        "EIO",
        "reading behind the end is no success",
      );
      batch.close();
      assert.is(refusal(() => batch.read(fd, back, short)).code, "EINVAL", "a closed context is refused");
      native.closeFd(fd);
    });
  });

  test("a block device tells its sizes, flushes, and is claimed exclusively only once", () => {
    withDirectory((directory) => {
      writeFileSync(`${directory}/disk`, Buffer.alloc(1 << 20));
      const device = execFileSync("losetup", ["--find", "--show", `${directory}/disk`], {
        encoding: "utf8",
      }).trim();
      try {
        const options = { write: true, exclusive: true, dsync: true };
        const fd = native.openDirect(device, options);
        assert.is(native.blockDeviceBytes(fd), 1 << 20);
        assert.is(native.logicalBlockBytes(fd), 512);
        assert.ok(native.physicalBlockBytes(fd) >= 512);
        assert.is(refusal(() => native.openDirect(device, options)).code, "EBUSY");
        native.pwrite(fd, native.allocAligned(512, 512).fill(1), (1 << 20) - 512);
        assert.is(refusal(() => native.pwrite(fd, native.allocAligned(512, 512), 1 << 20)).code, "ENOSPC");
        native.flushBuffers(fd);
        native.closeFd(fd);
      } finally {
        execFileSync("losetup", ["--detach", device]);
      }
    });
  });

  test("the size of something that is no block device is ENOTTY", () => {
    withDirectFile(1, (fd) => {
      for (const ask of [native.blockDeviceBytes, native.logicalBlockBytes, native.physicalBlockBytes]) {
        const error = refusal(() => ask(fd));
        assert.is(error.code, "ENOTTY");
        assert.match(error.message, /is not a block device/);
      }
      assert.is(refusal(() => native.flushBuffers(fd)).code, "ENOTTY");
      native.closeFd(fd);
    });
  });

  // ---- host ----

  test("UDP and TCP sockets are bound to an interface by name, and an unknown interface is ENODEV", async () => {
    const udp = createSocket("udp4");
    assert.throws(() => native.socketFd(udp), /not yet bound/);
    udp.bind(0, "127.0.0.1");
    await once(udp, "listening");
    native.setBindToDevice(native.socketFd(udp), "lo");
    const error = refusal(() => native.setBindToDevice(native.socketFd(udp), "nosuch0"));
    assert.is(error.code, "ENODEV");
    assert.match(error.message, /interface "nosuch0"/);
    native.setBindToDevice(native.socketFd(udp), "");
    udp.close();
    const tcp = createServer().listen(0, "127.0.0.1");
    await once(tcp, "listening");
    native.setBindToDevice(native.socketFd(tcp), "lo");
    tcp.close();
    const file = openSync("/dev/null", "r");
    assert.is(refusal(() => native.setBindToDevice(file, "lo")).code, "ENOTSOCK");
    closeSync(file);
  });

  test("lockRange pins the pages of the buffer and unlockRange lets them go", () => {
    const locked = () => Number.parseInt(statusField("VmLck"), 10);
    const bytes = native.allocAlignedShared(1 << 20, BLOCK);
    const before = locked();
    native.lockRange(bytes);
    assert.is(locked() - before, 1024);
    native.unlockRange(bytes);
    assert.is(locked(), before);
  });

  test("trimProgram gives the program's code back, and pins what is used of it afterwards where it is to be kept", () => {
    // In a process of its own: what is pinned stays so.
    const script = `
      import { trimProgram } from ${JSON.stringify(import.meta.resolve("../../native/index.js"))};
      import { readFileSync } from "node:fs";
      const field = (name) => Number(new RegExp(name + ":\\\\s+(\\\\d+)").exec(readFileSync("/proc/self/status", "utf8"))[1]);
      const pinned = () => [...readFileSync("/proc/self/smaps", "utf8").matchAll(/^Locked: +(\\d+)/gm)]
        .reduce((sum, [, kib]) => sum + Number(kib), 0);
      const start = field("RssFile");
      trimProgram(false);
      const trimmed = field("RssFile");
      const before = pinned();
      let refused = null;
      try {
        trimProgram(true);
      } catch (error) {
        refused = error.code;
      }
      console.log(JSON.stringify({ start, trimmed, before, after: pinned(), refused }));`;
    const text = execFileSync(process.execPath, ["--input-type=module", "-e", script], { encoding: "utf8" });
    const { start, trimmed, before, after, refused } = JSON.parse(text) as Record<string, number | string>;
    assert.ok(Number(trimmed) < Number(start) / 2, `${start} KiB before, ${trimmed} KiB after`);
    assert.is(before, 0);
    const capable = ((BigInt(`0x${statusField("CapEff")}`) >> 14n) & 1n) === 1n;
    if (capable) {
      assert.is(refused, null);
      assert.ok(Number(after) > 0, "nothing is pinned");
    } else {
      assert.match(String(refused), /^(EPERM|ENOMEM)$/);
    }
  });

  test("the I/O flusher flag is set with CAP_SYS_RESOURCE and refused with EPERM without", () => {
    const capable = ((BigInt(`0x${statusField("CapEff")}`) >> 24n) & 1n) === 1n;
    if (capable) {
      native.setIoFlusher(true);
      assert.is(native.getIoFlusher(), true);
      native.setIoFlusher(false);
      assert.is(native.getIoFlusher(), false);
    } else {
      for (const call of [() => native.setIoFlusher(true), () => native.getIoFlusher()]) {
        const error = refusal(call);
        assert.is(error.code, "EPERM");
        assert.is(error.syscall, "prctl");
      }
    }
  });

  test("the boot clock is monotonic, agrees in both units, and with /proc/uptime", () => {
    let last = 0n;
    for (let round = 0; round < 1000; round++) {
      const now = native.bootTimeNs();
      assert.ok(now >= last);
      last = now;
    }
    assert.ok(native.bootTimeMs() - Number(last) / 1e6 < 1000);
    const uptime = Number.parseFloat(readFileSync("/proc/uptime", "utf8"));
    assert.ok(Math.abs(native.bootTimeMs() / 1000 - uptime) < 1);
  });

  // On procfs and nothing else: were the check for XFS broken, a disk file system would be shut down for real.
  test("XFS_IOC_GOINGDOWN is refused on anything that is not XFS", () => {
    const fd = openSync("/proc/self/status", "r");
    const error = refusal(() => native.xfsGoingDown(fd, native.XFS_GOING.noLogFlush));
    closeSync(fd);
    assert.is(error.code, "ENOTTY");
    assert.match(error.message, /is not on an XFS/);
  });

  test.run();
}

if (isMainThread) {
  defineTests();
} else {
  const order = workerData as WorkerOrder | DiskOrder;
  if ("path" in order) {
    workOnDisk(order);
  } else {
    receiveUntilWoken(order);
  }
}
