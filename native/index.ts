// SPDX-License-Identifier: GPL-2.0-only
//
// The typed face of the native addon (native/src/*.cc): the only file that loads mxfs_native.node.
//
// Responsible for: exact types at the boundary, and the little that is easier said here than in C++ (naming
// errors, flattening batches). No protocol knowledge: netlink messages, CDBs and records are bytes.
//
// Conventions:
//   - Everything is addressed by file descriptor *number*. The addon keeps no state of its own, so a number
//     may be used from any worker thread of the process; exactly one owner closes it (`closeFd`).
//   - Functions block the calling thread; those named `...Async` run on the libuv thread pool and return a
//     Promise. A Uint8Array given to an Async function must not be touched until the Promise settles.
//   - Every Uint8Array may be a view of a SharedArrayBuffer.
//   - Failures throw (or reject with) a NativeError: `code` is the errno name ('ECONNREFUSED'), `errno` the
//     *negative* number as in Node's own system errors (-111), `syscall` what refused.
//   - Absent values are `null`, never `undefined`. File offsets and sizes are bytes.
//
// Known weakness: file descriptors are not closed when a worker thread ends; a thread blocked in `recvBatch`
// without a wake fd, or in a disk call on a hung disk, cannot be stopped by `worker.terminate()`; the thread
// pool has 4 threads unless UV_THREADPOOL_SIZE says otherwise, and a hung disk can occupy all of them.

import type { Socket as UdpSocket } from "node:dgram";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import type { Server as TcpServer, Socket as TcpSocket } from "node:net";
import { fileURLToPath } from "node:url";

/** What every function of the addon throws when the kernel refuses. */
export interface NativeError extends Error {
  /** errno name: 'EBADF', 'ENOBUFS', 'EBADE', ... */
  readonly code: string;
  /** Negative errno, as in Node's system errors. */
  readonly errno: number;
  /** The system call or ioctl that failed: 'recvmmsg', 'SG_IO', ... */
  readonly syscall: string;
}

/** True for an error of this addon (and for Node's own system errors, which have the same three fields). */
export function isNativeError(error: unknown): error is NativeError {
  return (
    error instanceof Error &&
    "code" in error &&
    typeof error.code === "string" &&
    "errno" in error &&
    typeof error.errno === "number" &&
    "syscall" in error &&
    typeof error.syscall === "string"
  );
}

/** Some operations of a batch failed; the others were done. */
export class BatchError extends Error implements NativeError {
  override readonly name = "BatchError";
  constructor(
    message: string,
    readonly code: string,
    readonly errno: number,
    readonly syscall: string,
    /** Per span: the bytes moved, or a negative errno. */
    readonly results: Int32Array,
  ) {
    super(message);
  }
}

/** Some datagrams of a `recvBatch` did not fit into their slots; the others were received. */
export class TruncatedError extends Error implements NativeError {
  override readonly name = "TruncatedError";
  readonly code = "EMSGSIZE";
  readonly errno = -90;
  readonly syscall = "recvmmsg";
  constructor(
    message: string,
    /** Slots filled, the truncated ones included: their entry in `lengths` is minus the full length. */
    readonly received: number,
  ) {
    super(message);
  }
}

// ---- generic netlink ----------------------------------------------------------------------------------

export interface GenlGroup {
  readonly name: string;
  readonly id: number;
}

/** What CTRL_CMD_GETFAMILY tells about a family (linux/genetlink.h). */
export interface GenlFamily {
  readonly name: string;
  /** nlmsg_type of the family's messages. */
  readonly id: number;
  readonly version: number;
  readonly headerBytes: number;
  readonly attrMax: number;
  readonly groups: readonly GenlGroup[];
}

export interface GenlOptions {
  /** SO_RCVBUF in bytes; SO_RCVBUFFORCE is tried first, so root is not bound by rmem_max. */
  readonly receiveBufferBytes: number;
  /** SO_SNDBUF in bytes; it also bounds the largest message that can be sent. */
  readonly sendBufferBytes: number;
}

/** Plain data (may be posted to another thread) from which that thread makes its own GenlSocket. */
export interface GenlHandle {
  readonly fd: number;
  readonly portId: number;
}

/** Most datagrams that one `recvBatch` returns, and that one `sendBatch` takes. */
export const GENL_BATCH_MAX = 64;
/** `recvBatch` result: woken through the wake fd, nothing received. */
export const RECV_WOKEN = -1;
/** `recvBatch` result: the time ran out, nothing received. */
export const RECV_TIMEOUT = 0;

/**
 * Looks a family up by name, on a socket of its own.
 * @throws NativeError ENOENT when no such family is registered (is the module loaded?).
 */
export function resolveFamily(name: string): GenlFamily {
  return addon.genlResolve(name);
}

/**
 * A generic netlink socket. Overruns are reported (ENOBUFS from `recvBatch`: messages were lost, ask again
 * for what matters), acknowledgements are capped (NETLINK_CAP_ACK) and carry extended errors
 * (NETLINK_EXT_ACK); they are returned as raw NLMSG_ERROR messages like any other.
 */
export class GenlSocket {
  private constructor(
    readonly fd: number,
    /** The port id that the kernel chose (nlmsg_pid of our messages). */
    readonly portId: number,
  ) {}

  static open(options: GenlOptions): GenlSocket {
    const { fd, portId } = addon.genlOpen(options.receiveBufferBytes, options.sendBufferBytes);
    return new GenlSocket(fd, portId);
  }

  /** The same socket, used from another thread. Only one of them may close it. */
  static attach(handle: GenlHandle): GenlSocket {
    return new GenlSocket(handle.fd, handle.portId);
  }

  get handle(): GenlHandle {
    return { fd: this.fd, portId: this.portId };
  }

  /** Joins a multicast group by the id that `resolveFamily` gave. */
  joinGroup(groupId: number): void {
    addon.genlJoin(this.fd, groupId);
  }

  /** The sizes that the kernel really set (it doubles what was asked for). */
  bufferSizes(): { readonly receive: number; readonly send: number } {
    return addon.genlBufferSizes(this.fd);
  }

  /** Sends one datagram to the kernel: one whole nlmsg, or several behind one another, each 4-byte aligned. */
  send(datagram: Uint8Array): void {
    addon.genlSend(this.fd, datagram);
  }

  /**
   * Sends several datagrams with one system call.
   * @param spans pairs (offset, length) into `bytes`: datagram i is at spans[2i], spans[2i+1] long.
   * @param count how many pairs to use, 1 to GENL_BATCH_MAX.
   * @returns how many were sent, at least 1. Fewer than `count`: call again with the rest, and the reason is
   *   thrown if the first of them cannot be sent.
   */
  sendBatch(bytes: Uint8Array, spans: Int32Array, count: number): number {
    return addon.genlSendBatch(this.fd, bytes, spans, count);
  }

  /**
   * Waits for datagrams and receives as many as are there (up to slots and GENL_BATCH_MAX) into `into`:
   * datagram i starts at i * slotBytes and is lengths[i] bytes long. A datagram may hold several nlmsgs. A
   * length of 0 is a datagram that did not come from the kernel, and is to be skipped.
   * @param slotBytes at least as long as the longest datagram the kernel sends; a multiple of 4.
   * @param wakeFd from `createWakeFd`, or null. The wake-up is consumed. Look at your ring after *every*
   *   return: messages go before the wake-up.
   * @param timeoutMs 0 polls, -1 waits for ever; without a wakeFd that is the quickest wait, and `wake` ends it.
   * @returns the number of datagrams (> 0), RECV_TIMEOUT or RECV_WOKEN.
   * @throws NativeError ENOBUFS (messages were lost), TruncatedError (slots too small).
   */
  recvBatch(
    into: Uint8Array,
    slotBytes: number,
    lengths: Int32Array,
    wakeFd: number | null,
    timeoutMs: number,
  ): number {
    const received = addon.genlRecvBatch(this.fd, into, slotBytes, lengths, wakeFd, timeoutMs);
    for (let slot = 0; slot < received; slot++) {
      const length = lengths[slot] ?? 0;
      if (length < 0) {
        throw new TruncatedError(
          `netlink datagram of ${-length} bytes does not fit into a receive slot of ${slotBytes} bytes: give larger slots`,
          received,
        );
      }
    }
    return received;
  }

  /**
   * Makes who waits in `recvBatch` on this socket return, from any thread: it finds a datagram of length 0, and may have
   * found others before. Never blocks. Needs CAP_NET_ADMIN. @throws NativeError EPERM, EBADF
   */
  wake(): void {
    addon.genlWake(this.fd, this.portId);
  }

  close(): void {
    addon.close(this.fd);
  }
}

/** An eventfd; its number may be shared with every thread of the process. Free it with `closeFd`. */
export function createWakeFd(): number {
  return addon.wakeCreate();
}

/** Wakes whoever waits on the eventfd, or makes its next wait return at once. Never blocks. */
export function signalWakeFd(fd: number): void {
  addon.wakeSignal(fd);
}

export function closeFd(fd: number): void {
  addon.close(fd);
}

// ---- SCSI -----------------------------------------------------------------------------------------------

/** From the initiator's view: 'in' reads from the device, 'out' writes to it. */
export type SgDirection = "none" | "in" | "out";

/** The undecoded outcome of one SG_IO (scsi/sg.h, sg_io_hdr). The ioctl succeeding says nothing about it. */
export interface SgResult {
  /** SAM status byte: 0 GOOD, 2 CHECK CONDITION, 0x18 RESERVATION CONFLICT, ... */
  readonly status: number;
  /** Kernel host byte, DID_* (scsi/scsi_status.h in the kernel): 0 is fine. */
  readonly hostStatus: number;
  /** Kernel driver byte: 0 is fine, 8 says that sense is there. */
  readonly driverStatus: number;
  /** The sense bytes really written, possibly none. A fresh array. */
  readonly sense: Uint8Array;
  /** Bytes of `data` that were not transferred. */
  readonly residual: number;
  readonly durationMs: number;
}

/**
 * Sends one SCSI command by SG_IO (version 3).
 * @param cdb 6 to 32 bytes.
 * @param data the transfer buffer; null exactly when the direction is 'none'.
 * @param timeoutMs above 0; the kernel aborts the command then (hostStatus DID_TIME_OUT = 3).
 * @throws NativeError ENOTTY when the fd is no SCSI device, EBADF, EPERM (command filter without CAP_SYS_RAWIO).
 */
export function sgIo(
  fd: number,
  cdb: Uint8Array,
  direction: SgDirection,
  data: Uint8Array | null,
  timeoutMs: number,
): SgResult {
  return addon.sgIo(fd, cdb, SG_DIRECTION[direction], data, timeoutMs);
}

export function sgIoAsync(
  fd: number,
  cdb: Uint8Array,
  direction: SgDirection,
  data: Uint8Array | null,
  timeoutMs: number,
): Promise<SgResult> {
  return addon.sgIoAsync(fd, cdb, SG_DIRECTION[direction], data, timeoutMs);
}

/** scsi/sg.h SG_DXFER_*. */
const SG_DIRECTION: Readonly<Record<SgDirection, number>> = { none: -1, out: -2, in: -3 };

/** enum pr_type of linux/pr.h. Not SPC-4's numbers: SCSI type 5 is `writeExclusiveRegistrantsOnly` = 3 here. */
export const PR_TYPE = {
  writeExclusive: 1,
  exclusiveAccess: 2,
  writeExclusiveRegistrantsOnly: 3,
  exclusiveAccessRegistrantsOnly: 4,
  writeExclusiveAllRegistrants: 5,
  exclusiveAccessAllRegistrants: 6,
} as const;
export type PrType = (typeof PR_TYPE)[keyof typeof PR_TYPE];

/** One reservation ioctl of linux/pr.h. Keys are unsigned 64-bit. */
export type PrOperation =
  | {
      readonly op: "register";
      readonly oldKey: bigint;
      readonly newKey: bigint;
      /** PR_FL_IGNORE_KEY: REGISTER AND IGNORE EXISTING KEY; `oldKey` is not looked at. */
      readonly ignoreKey: boolean;
    }
  | { readonly op: "reserve"; readonly key: bigint; readonly type: PrType }
  | { readonly op: "release"; readonly key: bigint; readonly type: PrType }
  | { readonly op: "preempt"; readonly ownKey: bigint; readonly victimKey: bigint; readonly type: PrType }
  | {
      readonly op: "preemptAbort";
      readonly ownKey: bigint;
      readonly victimKey: bigint;
      readonly type: PrType;
    }
  | { readonly op: "clear"; readonly key: bigint };

/**
 * Runs one reservation ioctl, for NVMe and multipath devices where SG_IO does not reach.
 * @returns 0 when done; above 0 the driver's own status: for sd the SCSI result (low byte 0x18 is RESERVATION
 *   CONFLICT, 2 CHECK CONDITION), for NVMe the NVMe status (0x83 is Reservation Conflict).
 * @throws NativeError EOPNOTSUPP or ENOTTY without support, EBADE for a conflict on newer kernels, EPERM, ...
 */
export function prIoctl(fd: number, operation: PrOperation): number {
  const { index, key1, key2, type, flags } = flattenPr(operation);
  return addon.prIoctl(fd, index, key1, key2, type, flags);
}

export function prIoctlAsync(fd: number, operation: PrOperation): Promise<number> {
  const { index, key1, key2, type, flags } = flattenPr(operation);
  return addon.prIoctlAsync(fd, index, key1, key2, type, flags);
}

interface FlatPr {
  /** Offset from IOC_PR_REGISTER (200). */
  readonly index: number;
  readonly key1: bigint;
  readonly key2: bigint;
  readonly type: number;
  readonly flags: number;
}

function flattenPr(operation: PrOperation): FlatPr {
  switch (operation.op) {
    case "register":
      return {
        index: 0,
        key1: operation.oldKey,
        key2: operation.newKey,
        type: 0,
        flags: operation.ignoreKey ? 1 : 0,
      };
    case "reserve":
      return { index: 1, key1: operation.key, key2: 0n, type: operation.type, flags: 0 };
    case "release":
      return { index: 2, key1: operation.key, key2: 0n, type: operation.type, flags: 0 };
    // Trap: pr_preempt.old_key is *our* key (RESERVATION KEY; NVMe CRKEY) and new_key the victim's (SERVICE
    // ACTION RESERVATION KEY; PRKEY): drivers/scsi/sd.c sd_pr_preempt.
    case "preempt":
      return { index: 3, key1: operation.ownKey, key2: operation.victimKey, type: operation.type, flags: 0 };
    case "preemptAbort":
      return { index: 4, key1: operation.ownKey, key2: operation.victimKey, type: operation.type, flags: 0 };
    case "clear":
      return { index: 5, key1: operation.key, key2: 0n, type: 0, flags: 0 };
  }
}

/**
 * LOGICAL UNIT RESET (SG_SCSI_RESET, never escalated): what is queued at the logical unit, from whomever, is aborted.
 * Blocks until the driver's answer, which behind a hypervisor need not come from the storage.
 * @throws NativeError ENOTTY or EINVAL when the fd is no SCSI device, EIO when the driver could not.
 */
export function scsiResetAsync(fd: number): Promise<void> {
  return addon.scsiResetAsync(fd);
}

/**
 * One NVMe I/O command to the namespace that the fd is open on, without metadata (NVME_IOCTL_IO_CMD).
 * @param opcode its low two bits say whether `data` is sent (1) or filled (2).
 * @returns 0, or the NVMe status: code in bits 7:0, code type in 10:8, DNR in 14.
 * @throws NativeError ENOTTY when the fd is no NVMe namespace.
 */
export function nvmeAsync(
  fd: number,
  opcode: number,
  cdw10: number,
  cdw11: number,
  data: Uint8Array,
  timeoutMs: number,
): Promise<number> {
  return addon.nvmeAsync(fd, opcode, cdw10, cdw11, data, timeoutMs);
}

// ---- direct I/O -----------------------------------------------------------------------------------------

export interface OpenDirectOptions {
  /** Read and write, else read only. */
  readonly write: boolean;
  /** O_EXCL: claims a block device exclusively; EBUSY when something else holds it (a mount, say). */
  readonly exclusive: boolean;
  /** O_DSYNC: a write returns when it is on stable storage. */
  readonly dsync: boolean;
}

/** Opens an existing block device or file with O_DIRECT. EINVAL where O_DIRECT does not work (tmpfs). */
export function openDirect(path: string, options: OpenDirectOptions): number {
  return addon.openDirect(path, options.write, options.exclusive, options.dsync);
}

/** A zeroed buffer whose memory starts at a multiple of `alignment` (a power of two, up to 1 MiB). */
export function allocAligned(bytes: number, alignment: number): Uint8Array<ArrayBuffer> {
  const buffer = new ArrayBuffer(bytes + alignment);
  return new Uint8Array(buffer, alignedOffset(new Uint8Array(buffer), alignment), bytes);
}

/** As `allocAligned`, in shared memory: `.buffer` and `.byteOffset` may be posted to other threads. */
export function allocAlignedShared(bytes: number, alignment: number): Uint8Array<SharedArrayBuffer> {
  const buffer = new SharedArrayBuffer(bytes + alignment);
  return new Uint8Array(buffer, alignedOffset(new Uint8Array(buffer), alignment), bytes);
}

function alignedOffset(bytes: Uint8Array, alignment: number): number {
  if (!Number.isInteger(Math.log2(alignment)) || alignment > 1 << 20) {
    throw new RangeError(`alignment ${alignment}: expected a power of two up to 1048576`);
  }
  return (alignment - addon.addressModulo(bytes, alignment)) % alignment;
}

/** Reads until `into` is full or the file ends. Returns the bytes read. Buffer, length and offset must be aligned. */
export function pread(fd: number, into: Uint8Array, offset: number): number {
  return addon.pread(fd, into, offset);
}

export function preadAsync(fd: number, into: Uint8Array, offset: number): Promise<number> {
  return addon.preadAsync(fd, into, offset);
}

/** Writes all of `bytes` or throws. Buffer, length and offset must be aligned. */
export function pwrite(fd: number, bytes: Uint8Array, offset: number): void {
  addon.pwrite(fd, bytes, offset);
}

export function pwriteAsync(fd: number, bytes: Uint8Array, offset: number): Promise<void> {
  return addon.pwriteAsync(fd, bytes, offset);
}

/** One piece of a batch: `length` bytes at `dataOffset` of the buffer, at `fileOffset` of the file. */
export interface BatchSpan {
  readonly dataOffset: number;
  readonly length: number;
  readonly fileOffset: number;
}

/** Most spans that one BatchIo takes at once. */
export const BATCH_DEPTH_MAX = 1024;

/**
 * A kernel AIO context (io_setup): many O_DIRECT transfers submitted together and awaited together. Belongs to
 * the thread that made it; at most one batch is in flight, a further one waits for it. Neither order among the
 * spans nor atomicity of the batch is promised.
 */
export class BatchIo {
  readonly #context: BatchContext;

  /** @param depth the most spans of one batch, 1 to BATCH_DEPTH_MAX. */
  constructor(readonly depth: number) {
    this.#context = addon.batchOpen(depth);
  }

  /** Writes every span of `data`. @throws BatchError when any span failed or was short. */
  write(fd: number, data: Uint8Array, spans: readonly BatchSpan[]): void {
    checkBatch("write", spans, addon.batchRun(this.#context, fd, true, data, flattenSpans(spans)));
  }

  async writeAsync(fd: number, data: Uint8Array, spans: readonly BatchSpan[]): Promise<void> {
    checkBatch("write", spans, await addon.batchRunAsync(this.#context, fd, true, data, flattenSpans(spans)));
  }

  /** Reads every span into `data`. A span beyond the end of the file is short, which is an error here. */
  read(fd: number, data: Uint8Array, spans: readonly BatchSpan[]): void {
    checkBatch("read", spans, addon.batchRun(this.#context, fd, false, data, flattenSpans(spans)));
  }

  async readAsync(fd: number, data: Uint8Array, spans: readonly BatchSpan[]): Promise<void> {
    checkBatch("read", spans, await addon.batchRunAsync(this.#context, fd, false, data, flattenSpans(spans)));
  }

  /**
   * Waits for the batch in flight and frees the context. Later use throws EINVAL. Costs a grace period in the
   * kernel (tens of milliseconds): keep one context for long, not one per batch.
   */
  close(): void {
    addon.batchClose(this.#context);
  }
}

function flattenSpans(spans: readonly BatchSpan[]): Float64Array {
  const flat = new Float64Array(spans.length * 3);
  spans.forEach((span, index) => {
    flat.set([span.dataOffset, span.length, span.fileOffset], index * 3);
  });
  return flat;
}

function checkBatch(verb: "read" | "write", spans: readonly BatchSpan[], results: Int32Array): void {
  spans.forEach((span, index) => {
    const result = results[index] ?? 0;
    if (result === span.length) {
      return;
    }
    const errno = result < 0 ? result : -5;
    const code = addon.errnoName(-errno);
    const found = result < 0 ? code : `only ${result} bytes moved`;
    throw new BatchError(
      `batch ${verb}, span ${index} of ${spans.length}: ${span.length} bytes at ${span.fileOffset}: ${found}`,
      code,
      errno,
      "io_submit",
      results,
    );
  });
}

/** BLKGETSIZE64: bytes of a block device. ENOTTY for anything else. */
export function blockDeviceBytes(fd: number): number {
  return addon.blockDeviceBytes(fd);
}

/** BLKSSZGET: logical block size, the unit of O_DIRECT. */
export function logicalBlockBytes(fd: number): number {
  return addon.logicalBlockBytes(fd);
}

/** BLKPBSZGET: physical block size, the unit that is not torn on most disks. */
export function physicalBlockBytes(fd: number): number {
  return addon.physicalBlockBytes(fd);
}

/** BLKFLSBUF: writes out and drops the block device's page cache on this host. Needs CAP_SYS_ADMIN. */
export function flushBuffers(fd: number): void {
  addon.flushBuffers(fd);
}

export function fsync(fd: number): void {
  addon.fsync(fd);
}

export function fsyncAsync(fd: number): Promise<void> {
  return addon.fsyncAsync(fd);
}

export function fdatasync(fd: number): void {
  addon.fdatasync(fd);
}

export function fdatasyncAsync(fd: number): Promise<void> {
  return addon.fdatasyncAsync(fd);
}

// ---- host -----------------------------------------------------------------------------------------------

/**
 * The fd number behind a Node socket or server (for `setBindToDevice`). Node has no public way: TCP keeps its
 * handle in `_handle`, dgram in a state symbol (its `_handle` warns, DEP0112).
 * @throws Error when there is no fd (yet): a UDP socket has one from bind on, a TCP one from connect or listen.
 */
export function socketFd(socket: TcpSocket | TcpServer | UdpSocket): number {
  const state = Object.getOwnPropertySymbols(socket).find((symbol) => symbol.description === "state symbol");
  const holder: unknown = state === undefined ? socket : Reflect.get(socket, state);
  const handle: unknown = Reflect.get(Object(holder), state === undefined ? "_handle" : "handle");
  const fd: unknown = Reflect.get(Object(handle), "fd");
  if (typeof fd !== "number" || fd < 0) {
    throw new Error("socket has no file descriptor: it is closed, or not yet bound, connected or listening");
  }
  return fd;
}

/**
 * Sends on a connected stream socket, now, without waiting. Only while its owner has nothing to write of his own.
 * @returns how many bytes were taken; fewer than all, even for an error, are the owner's to write, who then meets it.
 */
export function sendNow(fd: number, bytes: Uint8Array): number {
  return addon.sendNow(fd, bytes);
}

/** The same open file under a number of its own, to be closed by itself. */
export function dupFd(fd: number): number {
  return addon.dupFd(fd);
}

/**
 * Nothing is read from a connected socket any more, at once: what comes is for somebody else who has its descriptor. (pause() would go
 * on reading until a buffer is full.)
 */
export function stopReading(socket: TcpSocket): void {
  const handle: unknown = Reflect.get(socket, "_handle");
  const stop: unknown = Reflect.get(Object(handle), "readStop");
  if (typeof stop !== "function") throw new Error("socket cannot be stopped from reading: it is closed");
  Reflect.apply(stop, handle, []);
}

/** SO_BINDTODEVICE on a socket; an empty name undoes it. ENODEV for an unknown interface. */
export function setBindToDevice(fd: number, interfaceName: string): void {
  addon.setBindToDevice(fd, interfaceName);
}

/**
 * mlock2: faults in and pins the pages of this buffer (whole pages, so its neighbours' too). Never lock V8's
 * heap (mlockall breaks it). ENOMEM or EPERM when RLIMIT_MEMLOCK is too small.
 */
export function lockRange(bytes: Uint8Array): void {
  addon.lockRange(bytes);
}

/** munlock. Locks do not nest: one call unlocks the pages for every locker. */
export function unlockRange(bytes: Uint8Array): void {
  addon.unlockRange(bytes);
}

/**
 * Gives back the memory that only starting has needed: free memory of libc's heaps, and from the page tables all code
 * and constants of node and its libraries. What is still used comes back from the page cache, page by page.
 * @param keep code that is used from now on is pinned (mlock2, MLOCK_ONFAULT), so that it never has to be read from the disk
 * again. Once only: what is pinned cannot be given back.
 * @throws EPERM or ENOMEM when RLIMIT_MEMLOCK is too small to pin; given back it is all the same.
 */
export function trimProgram(keep: boolean): void {
  addon.trimProgram(keep);
}

/**
 * PR_SET_IO_FLUSHER for the *calling thread* and the threads it starts later: its allocations never wait for
 * dirty pages that only this process can clean. EPERM without CAP_SYS_RESOURCE. The launcher does it for all.
 */
export function setIoFlusher(on: boolean): void {
  addon.setIoFlusher(on);
}

export function getIoFlusher(): boolean {
  return addon.getIoFlusher();
}

/** CLOCK_BOOTTIME in nanoseconds: the lease clock; it counts suspended time and never steps. */
export function bootTimeNs(): bigint {
  return addon.bootTimeNs();
}

/** CLOCK_BOOTTIME in milliseconds, with fractions. */
export function bootTimeMs(): number {
  return addon.bootTimeMs();
}

/** xfs_fs.h XFS_FSOP_GOING_FLAGS_*. */
export const XFS_GOING = {
  /** Freeze and thaw first: everything is written out. */
  default: 0,
  /** Flush the log, not the data. */
  logFlush: 1,
  /** Stop at once: what is not on disk is lost. */
  noLogFlush: 2,
} as const;
export type XfsGoing = (typeof XFS_GOING)[keyof typeof XFS_GOING];

/**
 * XFS_IOC_GOINGDOWN: shuts the XFS of this fd down. ENOTTY when it is no XFS; that is checked by its magic
 * first, because ext4 and others would obey the same ioctl.
 */
export function xfsGoingDown(fd: number, how: XfsGoing): void {
  addon.xfsGoingDown(fd, how);
}

// ---- loading ----------------------------------------------------------------------------------------------

declare const batchContextBrand: unique symbol;
interface BatchContext {
  readonly [batchContextBrand]: never;
}

/** What native/src/addon.cc exports: keep the two in step. */
interface Addon {
  genlResolve(name: string): GenlFamily;
  genlOpen(receiveBufferBytes: number, sendBufferBytes: number): GenlHandle;
  genlJoin(fd: number, groupId: number): void;
  genlBufferSizes(fd: number): { readonly receive: number; readonly send: number };
  genlSend(fd: number, datagram: Uint8Array): void;
  genlSendBatch(fd: number, bytes: Uint8Array, spans: Int32Array, count: number): number;
  genlWake(fd: number, portId: number): void;
  genlRecvBatch(
    fd: number,
    into: Uint8Array,
    slotBytes: number,
    lengths: Int32Array,
    wakeFd: number | null,
    timeoutMs: number,
  ): number;
  wakeCreate(): number;
  wakeSignal(fd: number): void;
  close(fd: number): void;
  sgIo(fd: number, cdb: Uint8Array, direction: number, data: Uint8Array | null, timeoutMs: number): SgResult;
  sgIoAsync(
    fd: number,
    cdb: Uint8Array,
    direction: number,
    data: Uint8Array | null,
    timeoutMs: number,
  ): Promise<SgResult>;
  prIoctl(fd: number, index: number, key1: bigint, key2: bigint, type: number, flags: number): number;
  prIoctlAsync(
    fd: number,
    index: number,
    key1: bigint,
    key2: bigint,
    type: number,
    flags: number,
  ): Promise<number>;
  scsiResetAsync(fd: number): Promise<void>;
  nvmeAsync(
    fd: number,
    opcode: number,
    cdw10: number,
    cdw11: number,
    data: Uint8Array,
    timeoutMs: number,
  ): Promise<number>;
  openDirect(path: string, write: boolean, exclusive: boolean, dsync: boolean): number;
  addressModulo(bytes: Uint8Array, alignment: number): number;
  pread(fd: number, into: Uint8Array, offset: number): number;
  preadAsync(fd: number, into: Uint8Array, offset: number): Promise<number>;
  pwrite(fd: number, bytes: Uint8Array, offset: number): void;
  pwriteAsync(fd: number, bytes: Uint8Array, offset: number): Promise<void>;
  batchOpen(depth: number): BatchContext;
  batchRun(
    context: BatchContext,
    fd: number,
    write: boolean,
    data: Uint8Array,
    spans: Float64Array,
  ): Int32Array;
  batchRunAsync(
    context: BatchContext,
    fd: number,
    write: boolean,
    data: Uint8Array,
    spans: Float64Array,
  ): Promise<Int32Array>;
  batchClose(context: BatchContext): void;
  blockDeviceBytes(fd: number): number;
  logicalBlockBytes(fd: number): number;
  physicalBlockBytes(fd: number): number;
  flushBuffers(fd: number): void;
  fsync(fd: number): void;
  fsyncAsync(fd: number): Promise<void>;
  fdatasync(fd: number): void;
  fdatasyncAsync(fd: number): Promise<void>;
  sendNow(fd: number, bytes: Uint8Array): number;
  dupFd(fd: number): number;
  setBindToDevice(fd: number, interfaceName: string): void;
  lockRange(bytes: Uint8Array): void;
  unlockRange(bytes: Uint8Array): void;
  trimProgram(keep: boolean): void;
  setIoFlusher(on: boolean): void;
  getIoFlusher(): boolean;
  bootTimeNs(): bigint;
  bootTimeMs(): number;
  xfsGoingDown(fd: number, flags: number): void;
  errnoName(errno: number): string;
}

const addon = loadAddon();

function loadAddon(): Addon {
  // This file runs as dist/native/index.js; the addon stays where node-gyp built it.
  const path = fileURLToPath(new URL("../../native/build/Release/mxfs_native.node", import.meta.url));
  if (!existsSync(path)) {
    throw new Error(
      `native addon ${path} is missing: build it with "npm run build" (node-gyp, g++ and make are needed)`,
    );
  }
  return createRequire(import.meta.url)(path) as Addon;
}
