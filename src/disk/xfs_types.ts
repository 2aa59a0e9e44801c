// SPDX-License-Identifier: GPL-2.0-only
/**
 * What the XFS reader (xfs.ts) takes and gives: the injected block reader, the decoded superblock, a file with
 * its extents, and the one error class. Kept apart so that callers can name the types without the decoder.
 *
 * Units: everything called ...Byte(s) is bytes from the start of the device; ...Blocks is file system blocks.
 * Known weakness: byte positions are JavaScript numbers, exact to 2^53 (8 PiB); larger devices are refused.
 */

/** Reads from the raw device. Injected, so that the reader can be tested on images and on damaged memory. */
export interface BlockReader {
  /** Logical sector size of the device: every offset and length passed to read() is a multiple of it. */
  readonly sectorSize: number;
  readonly sizeBytes: bigint | number;
  /** Gives exactly lengthBytes bytes, or rejects. */
  read(offsetBytes: number, lengthBytes: number): Promise<Uint8Array>;
}

export type XfsErrorCode =
  /** No XFS superblock here. */
  | "NOT_XFS"
  /** A checksum does not match: damaged, or read while the journal holder was writing it (read again). */
  | "BAD_CRC"
  /** A sound XFS that this reader, or MXFS, cannot work with; the message says what to do. */
  | "UNSUPPORTED"
  /** The structures on the path are sound, and the name is not there. Says nothing of what the log holds. */
  | "NOT_FOUND"
  /** A structure contradicts itself, its place or its owner (also seen when read during a change). */
  | "CORRUPT"
  /** The device failed to give the bytes. */
  | "IO";

/** The only error that the XFS reader throws. `code` is stable; the message names object, found and expected. */
export class XfsFormatError extends Error {
  readonly code: XfsErrorCode;
  constructor(code: XfsErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = "XfsFormatError";
    this.code = code;
  }
  /** True when the same read may succeed a moment later, because the holder writes in place while we read. */
  get retriable(): boolean {
    return this.code === "BAD_CRC" || this.code === "CORRUPT" || this.code === "IO";
  }
}

/** A verified version 5 superblock (struct xfs_dsb). */
export interface XfsSuperblock {
  /** sb_uuid: what the user sees, and what the volume id is made of. */
  readonly uuid: Uint8Array;
  /** The UUID that metadata blocks carry: sb_meta_uuid when the META_UUID feature is set, else sb_uuid. */
  readonly metaUuid: Uint8Array;
  /** FNV-1a-64 of sb_uuid. */
  readonly volumeId: bigint;
  readonly label: string;
  readonly blockSize: number;
  readonly blockLog: number;
  readonly sectorSize: number;
  readonly dataBlocks: number;
  readonly agBlocks: number;
  readonly agCount: number;
  readonly agBlockLog: number;
  readonly inodeSize: number;
  readonly inodesPerBlock: number;
  readonly inodesPerBlockLog: number;
  /** Bytes of one directory block: block size << sb_dirblklog. */
  readonly dirBlockSize: number;
  readonly rootIno: bigint;
  readonly featuresCompat: number;
  readonly featuresRoCompat: number;
  readonly featuresIncompat: number;
  readonly featuresLogIncompat: number;
  readonly hasFtype: boolean;
  readonly hasNrext64: boolean;
  readonly hasReflink: boolean;
  /** sb_logstart is 0: the log is on a device of its own. */
  readonly externalLog: boolean;
  /** sb_rblocks is not 0: there is a realtime device. */
  readonly realtimeDevice: boolean;
}

export interface XfsExtent {
  /** Position in the file, in file system blocks. */
  readonly fileOffsetBlocks: number;
  /** Position on the device, in bytes. */
  readonly startByte: number;
  readonly lengthBytes: number;
  /** Preallocated and never written: the file reads as zeros, the raw blocks hold garbage. */
  readonly unwritten: boolean;
}

export type XfsFileKind = "file" | "directory" | "other";

/** One inode found by its path, with all extents of its data fork in file order. */
export interface XfsFile {
  readonly ino: bigint;
  readonly generation: number;
  readonly kind: XfsFileKind;
  /** di_mode: type and permission bits. */
  readonly mode: number;
  readonly size: number;
  readonly format: "local" | "extents" | "btree";
  readonly immutable: boolean;
  readonly nodefrag: boolean;
  /** Blocks may be shared with another file (reflink): writing them raw would change both. */
  readonly reflinked: boolean;
  readonly extents: readonly XfsExtent[];
}

/** A stretch of the device that holds a stretch of a file. */
export interface XfsRun {
  readonly startByte: number;
  readonly lengthBytes: number;
}
