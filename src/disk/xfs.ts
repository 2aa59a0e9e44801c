// SPDX-License-Identifier: GPL-2.0-only
/**
 * Read-only XFS: finds a file by its path on the raw device and tells where its bytes lie, without mounting. A
 * member needs it to find .mxfs/lockstate on a file system that another node has mounted.
 *
 *   superblock -> root inode -> directory (short form | data blocks through the extent map) -> inode -> extents
 *
 * Protocol: fs/xfs/libxfs/xfs_format.h and xfs_da_format.h (Linux 6.1), version 5 file systems only: there every
 * block carries CRC32C, its own place, its owner and the file system's UUID, and all of them are checked before
 * anything in the block is believed. Everything is big endian except the CRCs, which are little endian.
 *
 * Damage never hangs or crashes the reader: every number is checked before it is used as an offset or a count,
 * and every loop is bounded by a count that was checked. The only error thrown is XfsFormatError.
 *
 * Known weakness: the log is not read. What the holder has logged and not yet written in place is invisible here,
 * and a read during a change can show CRC or consistency errors that are gone a moment later (`retriable`). So
 * NOT_FOUND never proves that a file does not exist. Directories are scanned from their start, not by hash.
 */

import { crc32cExcept } from "../wire/crc32c.js";
import { viewOf } from "../wire/error.js";
import { fnv1a64 } from "../wire/fnv.js";
import {
  type BlockReader,
  type XfsErrorCode,
  type XfsExtent,
  type XfsFile,
  type XfsFileKind,
  XfsFormatError,
  type XfsRun,
  type XfsSuperblock,
} from "./xfs_types.js";

export * from "./xfs_types.js";

// ---- On-disk constants (xfs_format.h, xfs_da_format.h) ------------------------------------------------------

const SB_MAGIC = 0x58465342; // "XFSB"
const SB_CRC_OFFSET = 224;
const SB_BYTES = 264; // sizeof(struct xfs_dsb)
const SB_VERSION_NUMBITS = 0x000f;

const RO_COMPAT_REFLINK = 1 << 2;
/** FINOBT, RMAPBT, REFLINK, INOBTCNT: none changes what is read here. */
const RO_COMPAT_KNOWN = 0x0f;

const INCOMPAT_FTYPE = 1 << 0;
const INCOMPAT_META_UUID = 1 << 2;
const INCOMPAT_NEEDSREPAIR = 1 << 4;
const INCOMPAT_NREXT64 = 1 << 5;
/** FTYPE, SPINODES, META_UUID, BIGTIME, NEEDSREPAIR, NREXT64; EXCHRANGE and PARENT change nothing read here. */
const INCOMPAT_KNOWN = 0xff;

const DINODE_MAGIC = 0x494e; // "IN"
const DINODE_CRC_OFFSET = 100;
const DINODE_BYTES = 176; // sizeof(struct xfs_dinode): the data fork follows
const DIFLAG_REALTIME = 1 << 0;
const DIFLAG_IMMUTABLE = 1 << 3;
const DIFLAG_NODEFRAG = 1 << 13;
const DIFLAG2_REFLINK = 1n << 1n;
const DIFLAG2_NREXT64 = 1n << 4n;
const FORMAT_LOCAL = 1;
const FORMAT_EXTENTS = 2;
const FORMAT_BTREE = 3;

const S_IFMT = 0o170000;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;

const BMAP_CRC_MAGIC = 0x424d4133; // "BMA3"
const BTREE_LONG_CRC_OFFSET = 64;
const BTREE_LONG_HEADER_BYTES = 72;
/** XFS_BTREE_MAXLEVELS. */
const BTREE_LEVELS_MAX = 9;
const BMBT_REC_BYTES = 16;

const DIR3_BLOCK_MAGIC = 0x58444233; // "XDB3": the whole directory in one block
const DIR3_DATA_MAGIC = 0x58444433; // "XDD3": one of several
const DIR3_CRC_OFFSET = 4;
const DIR3_HEADER_BYTES = 64;
const DIR2_FREE_TAG = 0xffff;
/** XFS_DIR2_LEAF_OFFSET: names live below this logical offset, hash indices above. */
const DIR2_LEAF_OFFSET_BYTES = 2 ** 35;

const DADDR_BYTES = 512;

// ---- Limits of this reader ----------------------------------------------------------------------------------

/** An inode with more extents is refused; lockstate has a handful, a root directory of 10^8 names fewer. */
export const XFS_EXTENTS_MAX = 1_000_000;
/** Components of a path given to findPath(). */
export const XFS_PATH_DEPTH_MAX = 64;
/** How much of a directory one read brings. */
const DIR_READ_BYTES = 1024 * 1024;

const fail = (code: XfsErrorCode, message: string): XfsFormatError => new XfsFormatError(code, message);

const ADVICE_DAMAGE = "read it again; if it stays, unmount everywhere and run xfs_repair -n on it";

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

function hex(value: number): string {
  return `0x${(value >>> 0).toString(16)}`;
}

function uuidText(uuid: Uint8Array): string {
  return Buffer.from(uuid)
    .toString("hex")
    .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** A 64-bit field that must be an exact JavaScript number. */
function safeNumber(value: bigint, what: string): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER))
    throw fail("CORRUPT", `${what} is ${value}, beyond 2^53; ${ADVICE_DAMAGE}`);
  return Number(value);
}

/** The injected reader with every request checked against the device, and every failure made an XfsFormatError. */
async function readBytes(
  reader: BlockReader,
  offset: number,
  length: number,
  what: string,
): Promise<Uint8Array> {
  if (
    offset < 0 ||
    length <= 0 ||
    !Number.isSafeInteger(offset + length) ||
    offset + length > Number(reader.sizeBytes)
  ) {
    throw fail(
      "CORRUPT",
      `${what} would lie at byte ${offset}, outside of the device of ${reader.sizeBytes} bytes; ${ADVICE_DAMAGE}`,
    );
  }
  let bytes: Uint8Array;
  try {
    bytes = await reader.read(offset, length);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new XfsFormatError(
      "IO",
      `reading ${what} (${length} bytes at ${offset}) failed: ${why}; check the path to the disk`,
      { cause },
    );
  }
  if (bytes.length !== length) {
    throw fail(
      "IO",
      `reading ${what} at byte ${offset} gave ${bytes.length} of ${length} bytes; check the path to the disk`,
    );
  }
  return bytes;
}

function verifyCrc(bytes: Uint8Array, crcOffset: number, what: string): void {
  const found = viewOf(bytes).getUint32(crcOffset, true);
  const expected = crc32cExcept(bytes, crcOffset);
  if (found !== expected) {
    throw fail(
      "BAD_CRC",
      `${what}: CRC32C is ${hex(found)}, its contents give ${hex(expected)}; ${ADVICE_DAMAGE}`,
    );
  }
}

function verifyUuid(found: Uint8Array, sb: XfsSuperblock, what: string): void {
  if (!sameBytes(found, sb.metaUuid)) {
    throw fail(
      "CORRUPT",
      `${what} belongs to file system ${uuidText(found)}, expected ${uuidText(sb.metaUuid)}; ${ADVICE_DAMAGE}`,
    );
  }
}

// ---- Superblock ---------------------------------------------------------------------------------------------

/** The sector size that the CRC covers, once the magic and the version are known to be right. */
function superblockSectorSize(bytes: Uint8Array): number {
  if (bytes.length < DADDR_BYTES)
    throw fail("NOT_XFS", `a superblock has at least 512 bytes, got ${bytes.length}`);
  const view = viewOf(bytes);
  const magic = view.getUint32(0);
  if (magic !== SB_MAGIC) {
    throw fail(
      "NOT_XFS",
      `no XFS here: the first word is ${hex(magic)}, expected ${hex(SB_MAGIC)} ("XFSB"); make one with mkfs.xfs`,
    );
  }
  const version = view.getUint16(100) & SB_VERSION_NUMBITS;
  if (version !== 5) {
    throw fail(
      "UNSUPPORTED",
      `this XFS has format version ${version}, MXFS needs 5 (metadata checksums); copy the data away and make it anew with mkfs.xfs -m crc=1`,
    );
  }
  const sector_size = view.getUint16(102);
  if (sector_size < 512 || sector_size > 32768 || (sector_size & (sector_size - 1)) !== 0) {
    throw fail(
      "CORRUPT",
      `superblock: sector size ${sector_size} is not a power of two from 512 to 32768; ${ADVICE_DAMAGE}`,
    );
  }
  return sector_size;
}

/**
 * Decodes and verifies the primary superblock (struct xfs_dsb). `bytes` starts at byte 0 of the device and holds at
 * least sb_sectsize bytes, which the CRC covers.
 * @throws XfsFormatError NOT_XFS, UNSUPPORTED (version 4, unknown features, needs repair), BAD_CRC, CORRUPT.
 */
export function parseSuperblock(bytes: Uint8Array): XfsSuperblock {
  const sector_size = superblockSectorSize(bytes);
  if (bytes.length < sector_size) {
    throw fail(
      "CORRUPT",
      `superblock: ${bytes.length} bytes given, the sector has ${sector_size}; give the whole sector`,
    );
  }
  verifyCrc(bytes.subarray(0, sector_size), SB_CRC_OFFSET, "superblock");
  const view = viewOf(bytes);

  const features_incompat = view.getUint32(216);
  const features_ro_compat = view.getUint32(212);
  refuseFeatures(features_incompat, features_ro_compat);
  if (view.getUint8(126) !== 0)
    throw fail(
      "UNSUPPORTED",
      "superblock: mkfs.xfs has not finished (sb_inprogress is set); wait for it, or run it again",
    );

  const uuid = bytes.slice(32, 48);
  const has_meta_uuid = (features_incompat & INCOMPAT_META_UUID) !== 0;
  const sb: XfsSuperblock = {
    uuid,
    metaUuid: has_meta_uuid ? bytes.slice(248, SB_BYTES) : uuid,
    volumeId: fnv1a64(uuid),
    label: Buffer.from(bytes.subarray(108, 120)).toString("latin1").split("\0", 1)[0] ?? "",
    blockSize: view.getUint32(4),
    blockLog: view.getUint8(120),
    sectorSize: sector_size,
    dataBlocks: safeNumber(view.getBigUint64(8), "superblock: sb_dblocks"),
    agBlocks: view.getUint32(84),
    agCount: view.getUint32(88),
    agBlockLog: view.getUint8(124),
    inodeSize: view.getUint16(104),
    inodesPerBlock: view.getUint16(106),
    inodesPerBlockLog: view.getUint8(123),
    dirBlockSize: view.getUint32(4) * 2 ** view.getUint8(192),
    rootIno: view.getBigUint64(56),
    featuresCompat: view.getUint32(208),
    featuresRoCompat: features_ro_compat,
    featuresIncompat: features_incompat,
    featuresLogIncompat: view.getUint32(220),
    hasFtype: (features_incompat & INCOMPAT_FTYPE) !== 0,
    hasNrext64: (features_incompat & INCOMPAT_NREXT64) !== 0,
    hasReflink: (features_ro_compat & RO_COMPAT_REFLINK) !== 0,
    externalLog: view.getBigUint64(48) === 0n,
    realtimeDevice: view.getBigUint64(16) !== 0n,
  };
  verifyGeometry(sb, view.getUint8(121), view.getUint8(122));
  return sb;
}

function refuseFeatures(incompat: number, roCompat: number): void {
  if ((incompat & INCOMPAT_NEEDSREPAIR) !== 0) {
    throw fail(
      "UNSUPPORTED",
      "this XFS is marked as needing repair; unmount it everywhere and run xfs_repair",
    );
  }
  const unknown = incompat & ~INCOMPAT_KNOWN;
  const unknown_ro = roCompat & ~RO_COMPAT_KNOWN;
  if (unknown !== 0 || unknown_ro !== 0) {
    throw fail(
      "UNSUPPORTED",
      `this XFS uses features that MXFS does not know: incompatible bits ${hex(unknown)}, read-only compatible bits ${hex(unknown_ro)}; make it with the mkfs.xfs of this system, or use a newer MXFS`,
    );
  }
}

/** The rules of xfs_validate_sb_common (xfs_sb.c) on which address arithmetic here rests. */
function verifyGeometry(sb: XfsSuperblock, sectorLog: number, inodeLog: number): void {
  const require = (holds: boolean, what: string): void => {
    if (!holds) throw fail("CORRUPT", `superblock: ${what}; ${ADVICE_DAMAGE}`);
  };
  const { blockSize, blockLog, agBlocks, agCount, agBlockLog, inodeSize, dataBlocks, dirBlockSize } = sb;
  require(blockLog >= 9 &&
    blockLog <= 16 &&
    blockSize ===
      2 ** blockLog, `block size ${blockSize} (log ${blockLog}) is not a power of two from 512 to 65536`);
  require(sb.sectorSize === 2 ** sectorLog, `sector size ${sb.sectorSize} does not fit its log ${sectorLog}`);
  require(blockSize >=
    sb.sectorSize, `block size ${blockSize} is smaller than the sector size ${sb.sectorSize}`);
  require(inodeSize >= 256 &&
    inodeSize <= 2048 &&
    inodeSize ===
      2 ** inodeLog, `inode size ${inodeSize} (log ${inodeLog}) is not a power of two from 256 to 2048`);
  require(sb.inodesPerBlock === blockSize / inodeSize &&
    sb.inodesPerBlock ===
      2 **
        sb.inodesPerBlockLog, `${sb.inodesPerBlock} inodes per block (log ${sb.inodesPerBlockLog}) do not fit blocks of ${blockSize} and inodes of ${inodeSize} bytes`);
  require(dirBlockSize >= blockSize &&
    dirBlockSize <= 65536, `directory block size ${dirBlockSize} is not from ${blockSize} to 65536`);
  require(agBlocks > 0 &&
    agBlockLog <= 31 &&
    agBlocks <= 2 ** agBlockLog &&
    agBlocks >
      2 ** (agBlockLog - 1), `${agBlocks} blocks per allocation group do not fit their log ${agBlockLog}`);
  require(agCount > 0 &&
    dataBlocks > (agCount - 1) * agBlocks &&
    dataBlocks <=
      agCount * agBlocks, `${dataBlocks} blocks do not fit ${agCount} allocation groups of ${agBlocks}`);
  require(Number.isSafeInteger(
    dataBlocks * blockSize,
  ), `${dataBlocks} blocks of ${blockSize} bytes are beyond 2^53 bytes`);
}

/** Reads and verifies the superblock of a device, and that the device is as large as the file system says. */
export async function readSuperblock(reader: BlockReader): Promise<XfsSuperblock> {
  const first_bytes = Math.max(4096, reader.sectorSize);
  const device_bytes = Number(reader.sizeBytes);
  if (device_bytes < first_bytes)
    throw fail("NOT_XFS", `the device has ${device_bytes} bytes, too few for an XFS`);
  let bytes = await readBytes(reader, 0, first_bytes, "superblock");
  const sector_size = superblockSectorSize(bytes);
  if (sector_size > bytes.length) bytes = await readBytes(reader, 0, sector_size, "superblock");
  const sb = parseSuperblock(bytes);
  if (sb.blockSize < reader.sectorSize) {
    throw fail(
      "UNSUPPORTED",
      `the XFS has blocks of ${sb.blockSize} bytes, the device sectors of ${reader.sectorSize}; make the XFS anew on this device`,
    );
  }
  if (sb.dataBlocks * sb.blockSize > device_bytes) {
    throw fail(
      "CORRUPT",
      `the XFS spans ${sb.dataBlocks * sb.blockSize} bytes, the device has ${device_bytes}; was it shrunk, or is this not the whole device?`,
    );
  }
  return sb;
}

// ---- Addresses ----------------------------------------------------------------------------------------------

/**
 * File system block number to byte. An fsblock is AG number << agblklog | block in the AG; AGs are agBlocks apart,
 * which need not be a power of two (XFS_FSB_TO_DADDR).
 */
function fsblockToByte(sb: XfsSuperblock, fsblock: bigint, count: number, what: string): number {
  const log = BigInt(sb.agBlockLog);
  const ag = Number(fsblock >> log);
  const block = Number(fsblock & ((1n << log) - 1n));
  const blocks_here = ag === sb.agCount - 1 ? sb.dataBlocks - ag * sb.agBlocks : sb.agBlocks;
  if (ag >= sb.agCount || block + count > blocks_here) {
    throw fail(
      "CORRUPT",
      `${what}: ${count} blocks at block ${block} of allocation group ${ag} lie outside (${sb.agCount} groups of ${sb.agBlocks}); ${ADVICE_DAMAGE}`,
    );
  }
  return (ag * sb.agBlocks + block) * sb.blockSize;
}

/** Inode number to its block and the inode's offset in it (XFS_INO_TO_AGNO and its neighbours). */
function inodePlace(sb: XfsSuperblock, ino: bigint): { blockByte: number; offset: number } {
  const index_log = BigInt(sb.inodesPerBlockLog);
  const index = Number(ino & ((1n << index_log) - 1n));
  const fsblock = ino >> index_log;
  return { blockByte: fsblockToByte(sb, fsblock, 1, `inode ${ino}`), offset: index * sb.inodeSize };
}

// ---- Inodes -------------------------------------------------------------------------------------------------

/** A verified inode core and its data fork, not yet interpreted. */
interface Inode {
  readonly ino: bigint;
  readonly generation: number;
  readonly mode: number;
  readonly format: number;
  readonly size: number;
  readonly blocks: bigint;
  readonly extentCount: number;
  readonly flags: number;
  readonly flags2: bigint;
  /** Data fork bytes, inside the inode. */
  readonly fork: Uint8Array;
}

/** Reads one inode and verifies magic, version, CRC, number and UUID (xfs_dinode_verify). */
async function readInode(reader: BlockReader, sb: XfsSuperblock, ino: bigint): Promise<Inode> {
  const what = `inode ${ino}`;
  const place = inodePlace(sb, ino);
  const block = await readBytes(reader, place.blockByte, sb.blockSize, what);
  const bytes = block.subarray(place.offset, place.offset + sb.inodeSize);
  const view = viewOf(bytes);
  const magic = view.getUint16(0);
  if (magic !== DINODE_MAGIC)
    throw fail(
      "CORRUPT",
      `${what}: magic is ${hex(magic)}, expected ${hex(DINODE_MAGIC)} ("IN"); ${ADVICE_DAMAGE}`,
    );
  const version = view.getUint8(4);
  if (version !== 3) throw fail("CORRUPT", `${what}: version is ${version}, expected 3; ${ADVICE_DAMAGE}`);
  verifyCrc(bytes, DINODE_CRC_OFFSET, what);
  const own_ino = view.getBigUint64(152);
  if (own_ino !== ino)
    throw fail("CORRUPT", `${what}: the inode there says that it is ${own_ino}; ${ADVICE_DAMAGE}`);
  verifyUuid(bytes.subarray(160, DINODE_BYTES), sb, what);
  return decodeInode(sb, ino, bytes, view);
}

function decodeInode(sb: XfsSuperblock, ino: bigint, bytes: Uint8Array, view: DataView): Inode {
  const what = `inode ${ino}`;
  const mode = view.getUint16(2);
  if (mode === 0) throw fail("CORRUPT", `${what} is free, and a directory names it; ${ADVICE_DAMAGE}`);
  const literal_bytes = sb.inodeSize - DINODE_BYTES;
  const fork_offset = view.getUint8(82) * 8;
  if (fork_offset > literal_bytes)
    throw fail(
      "CORRUPT",
      `${what}: attribute fork at ${fork_offset}, the inode has room for ${literal_bytes}; ${ADVICE_DAMAGE}`,
    );
  const fork_bytes = fork_offset === 0 ? literal_bytes : fork_offset;
  const flags2 = view.getBigUint64(120);
  const large_counters = (flags2 & DIFLAG2_NREXT64) !== 0n;
  if (large_counters && !sb.hasNrext64)
    throw fail(
      "CORRUPT",
      `${what} has large extent counters, the superblock lacks the feature; ${ADVICE_DAMAGE}`,
    );
  const extent_count = large_counters ? view.getBigUint64(24) : BigInt(view.getUint32(76));
  if (extent_count > BigInt(XFS_EXTENTS_MAX))
    throw fail(
      "UNSUPPORTED",
      `${what} has ${extent_count} extents, this reader's limit is ${XFS_EXTENTS_MAX}; defragment it (xfs_fsr)`,
    );
  return {
    ino,
    generation: view.getUint32(92),
    mode,
    format: view.getUint8(5),
    size: safeNumber(view.getBigUint64(56), `${what}: size`),
    blocks: view.getBigUint64(64),
    extentCount: Number(extent_count),
    flags: view.getUint16(90),
    flags2,
    fork: bytes.subarray(DINODE_BYTES, DINODE_BYTES + fork_bytes),
  };
}

// ---- Extent map ---------------------------------------------------------------------------------------------

/**
 * One bmbt record (xfs_bmbt_disk_get_all), 128 bits from the top: unwritten 1, file offset 54, start block 52,
 * count 21, the last two split over the two words.
 */
function decodeExtent(sb: XfsSuperblock, view: DataView, at: number, what: string): XfsExtent {
  const high = view.getBigUint64(at);
  const low = view.getBigUint64(at + 8);
  const file_offset = safeNumber((high >> 9n) & ((1n << 54n) - 1n), `${what}: file offset`);
  const fsblock = ((high & 0x1ffn) << 43n) | (low >> 21n);
  const count = Number(low & 0x1fffffn);
  if (count === 0) throw fail("CORRUPT", `${what} is empty; ${ADVICE_DAMAGE}`);
  return {
    fileOffsetBlocks: file_offset,
    startByte: fsblockToByte(sb, fsblock, count, what),
    lengthBytes: count * sb.blockSize,
    unwritten: high >> 63n !== 0n,
  };
}

/** Appends records in file order, and refuses overlaps and more than the inode announces. */
function appendExtents(
  sb: XfsSuperblock,
  inode: Inode,
  view: DataView,
  at: number,
  count: number,
  extents: XfsExtent[],
): void {
  if (extents.length + count > inode.extentCount) {
    throw fail(
      "CORRUPT",
      `inode ${inode.ino}: its map holds more than the ${inode.extentCount} extents that it announces; ${ADVICE_DAMAGE}`,
    );
  }
  for (let i = 0; i < count; i++) {
    const what = `inode ${inode.ino}, extent ${extents.length}`;
    const extent = decodeExtent(sb, view, at + i * BMBT_REC_BYTES, what);
    const previous = extents[extents.length - 1];
    if (
      previous !== undefined &&
      extent.fileOffsetBlocks < previous.fileOffsetBlocks + previous.lengthBytes / sb.blockSize
    ) {
      throw fail(
        "CORRUPT",
        `${what}: starts at file block ${extent.fileOffsetBlocks}, inside or before the extent in front of it; ${ADVICE_DAMAGE}`,
      );
    }
    extents.push(extent);
  }
}

async function readExtents(reader: BlockReader, sb: XfsSuperblock, inode: Inode): Promise<XfsExtent[]> {
  const extents: XfsExtent[] = [];
  switch (inode.format) {
    case FORMAT_LOCAL:
      return extents;
    case FORMAT_EXTENTS:
      if (inode.extentCount * BMBT_REC_BYTES > inode.fork.length) {
        throw fail(
          "CORRUPT",
          `inode ${inode.ino}: ${inode.extentCount} extents do not fit its data fork of ${inode.fork.length} bytes; ${ADVICE_DAMAGE}`,
        );
      }
      appendExtents(sb, inode, viewOf(inode.fork), 0, inode.extentCount, extents);
      break;
    case FORMAT_BTREE:
      await readBtreeRoot(reader, sb, inode, extents);
      break;
    default:
      throw fail(
        "UNSUPPORTED",
        `inode ${inode.ino}: data fork format ${inode.format} has no extents (a device or socket?)`,
      );
  }
  if (extents.length !== inode.extentCount) {
    throw fail(
      "CORRUPT",
      `inode ${inode.ino}: its map holds ${extents.length} extents, it announces ${inode.extentCount}; ${ADVICE_DAMAGE}`,
    );
  }
  const mapped_blocks = extents.reduce((sum, extent) => sum + extent.lengthBytes / sb.blockSize, 0);
  if (BigInt(mapped_blocks) > inode.blocks) {
    throw fail(
      "CORRUPT",
      `inode ${inode.ino}: its extents hold ${mapped_blocks} blocks, it announces ${inode.blocks}; ${ADVICE_DAMAGE}`,
    );
  }
  return extents;
}

/** The root of a bmap btree sits in the inode (xfs_bmdr_block): level, count, then all keys, then all pointers. */
async function readBtreeRoot(
  reader: BlockReader,
  sb: XfsSuperblock,
  inode: Inode,
  extents: XfsExtent[],
): Promise<void> {
  const what = `inode ${inode.ino}, bmap btree root`;
  const { fork } = inode;
  if (fork.length < 4 + 16)
    throw fail("CORRUPT", `${what}: the data fork has only ${fork.length} bytes; ${ADVICE_DAMAGE}`);
  const view = viewOf(fork);
  const level = view.getUint16(0);
  const count = view.getUint16(2);
  const slots = Math.floor((fork.length - 4) / 16);
  if (level < 1 || level >= BTREE_LEVELS_MAX || count < 1 || count > slots) {
    throw fail(
      "CORRUPT",
      `${what}: level ${level} with ${count} of at most ${slots} records; ${ADVICE_DAMAGE}`,
    );
  }
  for (let i = 0; i < count; i++) {
    await readBtreeBlock(reader, sb, inode, view.getBigUint64(4 + slots * 8 + i * 8), level - 1, extents);
  }
}

/**
 * One block of a bmap btree and what is below it. Ends on any damage: the level falls by one each time, every leaf
 * holds a record at least, and appendExtents() refuses more records than the inode announces.
 */
async function readBtreeBlock(
  reader: BlockReader,
  sb: XfsSuperblock,
  inode: Inode,
  fsblock: bigint,
  level: number,
  extents: XfsExtent[],
): Promise<void> {
  const what = `inode ${inode.ino}, bmap btree block ${fsblock}`;
  const byte = fsblockToByte(sb, fsblock, 1, what);
  const bytes = await readBytes(reader, byte, sb.blockSize, what);
  const view = viewOf(bytes);
  const magic = view.getUint32(0);
  if (magic !== BMAP_CRC_MAGIC)
    throw fail(
      "CORRUPT",
      `${what}: magic is ${hex(magic)}, expected ${hex(BMAP_CRC_MAGIC)} ("BMA3"); ${ADVICE_DAMAGE}`,
    );
  verifyCrc(bytes, BTREE_LONG_CRC_OFFSET, what);
  verifyPlace(view, 24, byte, 56, inode.ino, what);
  verifyUuid(bytes.subarray(40, 56), sb, what);
  const slots = Math.floor((sb.blockSize - BTREE_LONG_HEADER_BYTES) / 16);
  const own_level = view.getUint16(4);
  const count = view.getUint16(6);
  if (own_level !== level || count < 1 || count > slots) {
    throw fail(
      "CORRUPT",
      `${what}: level ${own_level} with ${count} records, expected level ${level} with 1 to ${slots}; ${ADVICE_DAMAGE}`,
    );
  }
  if (level === 0) {
    appendExtents(sb, inode, view, BTREE_LONG_HEADER_BYTES, count, extents);
    return;
  }
  for (let i = 0; i < count; i++) {
    const child = view.getBigUint64(BTREE_LONG_HEADER_BYTES + slots * 8 + i * 8);
    await readBtreeBlock(reader, sb, inode, child, level - 1, extents);
  }
}

/** Every version 5 block names its own 512-byte address and its owner: a stray or old block gives itself away. */
function verifyPlace(
  view: DataView,
  blknoAt: number,
  byte: number,
  ownerAt: number,
  owner: bigint,
  what: string,
): void {
  const blkno = view.getBigUint64(blknoAt);
  if (blkno !== BigInt(byte / DADDR_BYTES)) {
    throw fail(
      "CORRUPT",
      `${what} at sector ${byte / DADDR_BYTES} says that it belongs at ${blkno}; ${ADVICE_DAMAGE}`,
    );
  }
  const own_owner = view.getBigUint64(ownerAt);
  if (own_owner !== owner)
    throw fail("CORRUPT", `${what} says that it belongs to inode ${own_owner}; ${ADVICE_DAMAGE}`);
}

// ---- Directories --------------------------------------------------------------------------------------------

/** Looks a name up. Null when the directory is sound as far as read, and has no such name. */
async function lookup(
  reader: BlockReader,
  sb: XfsSuperblock,
  dir: Inode,
  name: Uint8Array,
): Promise<bigint | null> {
  if (dir.format === FORMAT_LOCAL) return lookupShortForm(sb, dir, name);
  return lookupDataBlocks(reader, sb, dir, name);
}

/** Short form (xfs_dir2_sf_hdr): the entries lie in the inode; inode numbers have 8 bytes when i8count is not 0. */
function lookupShortForm(sb: XfsSuperblock, dir: Inode, name: Uint8Array): bigint | null {
  const what = `directory inode ${dir.ino} (short form)`;
  const { fork, size } = dir;
  if (size > fork.length || size < 6)
    throw fail(
      "CORRUPT",
      `${what}: size ${size} does not fit its data fork of ${fork.length} bytes; ${ADVICE_DAMAGE}`,
    );
  const view = viewOf(fork);
  const i8count = view.getUint8(1);
  const total = view.getUint8(0);
  const ino_bytes = i8count === 0 ? 4 : 8;
  const ftype_bytes = sb.hasFtype ? 1 : 0;
  let at = 2 + ino_bytes;
  for (let i = 0; i < total; i++) {
    const name_bytes = at < size ? view.getUint8(at) : 0;
    const end = at + 3 + name_bytes + ftype_bytes + ino_bytes;
    if (name_bytes === 0 || end > size)
      throw fail(
        "CORRUPT",
        `${what}: entry ${i} of ${total} at ${at} does not fit ${size} bytes; ${ADVICE_DAMAGE}`,
      );
    if (sameBytes(fork.subarray(at + 3, at + 3 + name_bytes), name)) {
      const ino_at = end - ino_bytes;
      return ino_bytes === 8 ? view.getBigUint64(ino_at) : BigInt(view.getUint32(ino_at));
    }
    at = end;
  }
  if (at !== size) {
    throw fail(
      "CORRUPT",
      `${what}: its ${total} entries end at ${at}, its size is ${size}; ${ADVICE_DAMAGE}`,
    );
  }
  return null;
}

/** Block, leaf and node form: all names lie in data blocks below the leaf offset, so these are scanned in order. */
async function lookupDataBlocks(
  reader: BlockReader,
  sb: XfsSuperblock,
  dir: Inode,
  name: Uint8Array,
): Promise<bigint | null> {
  const what = `directory inode ${dir.ino}`;
  const dir_block = sb.dirBlockSize;
  const fsblocks_per_dir_block = dir_block / sb.blockSize;
  if (dir.size === 0 || dir.size % dir_block !== 0 || dir.size > DIR2_LEAF_OFFSET_BYTES) {
    throw fail(
      "CORRUPT",
      `${what}: size ${dir.size} is not whole directory blocks of ${dir_block} bytes; ${ADVICE_DAMAGE}`,
    );
  }
  const extents = await readExtents(reader, sb, dir);
  const data_blocks = dir.size / sb.blockSize;
  const data = extents.filter((extent) => extent.fileOffsetBlocks < DIR2_LEAF_OFFSET_BYTES / sb.blockSize);
  const last = data[data.length - 1];
  if (last === undefined || last.fileOffsetBlocks + last.lengthBytes / sb.blockSize !== data_blocks) {
    throw fail(
      "CORRUPT",
      `${what}: its data blocks do not end where its size of ${dir.size} says; ${ADVICE_DAMAGE}`,
    );
  }
  // One directory block that is the whole directory carries its own index ("block form").
  const magic = dir.size === dir_block && extents.length === data.length ? DIR3_BLOCK_MAGIC : DIR3_DATA_MAGIC;
  for (const run of directoryRuns(sb, data, fsblocks_per_dir_block, what)) {
    const bytes = await readRun(reader, run, what);
    for (let at = 0; at < bytes.length; at += dir_block) {
      const found = searchDirBlock(
        sb,
        dir.ino,
        bytes.subarray(at, at + dir_block),
        run.firstByte + at,
        magic,
        name,
      );
      if (found !== null) return found;
    }
  }
  return null;
}

/** Whole directory blocks to be read together: one contiguous piece, or one block in several pieces. */
interface DirectoryRun {
  readonly firstByte: number;
  readonly pieces: readonly XfsRun[];
}

async function readRun(reader: BlockReader, run: DirectoryRun, what: string): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for (const piece of run.pieces)
    parts.push(await readBytes(reader, piece.startByte, piece.lengthBytes, what));
  return parts.length === 1 ? (parts[0] as Uint8Array) : Buffer.concat(parts);
}

/**
 * Cuts the extents into runs. A directory block of several file system blocks may be spread over extents; it must be
 * mapped wholly or not at all, and written. Blocks within one contiguous extent are read up to 1 MiB at a time. The
 * caller has checked that the extents end with a whole directory block.
 */
function* directoryRuns(
  sb: XfsSuperblock,
  extents: readonly XfsExtent[],
  perBlock: number,
  what: string,
): Generator<DirectoryRun> {
  let pieces: XfsRun[] = [];
  let filled = 0; // fs blocks of the unfinished directory block
  let next_block = 0; // file block that must follow while it is unfinished
  const batch_blocks = Math.max(1, Math.floor(DIR_READ_BYTES / (perBlock * sb.blockSize))) * perBlock;
  for (const extent of extents) {
    if (extent.unwritten)
      throw fail(
        "CORRUPT",
        `${what}: its extent at file block ${extent.fileOffsetBlocks} is unwritten; ${ADVICE_DAMAGE}`,
      );
    let block = extent.fileOffsetBlocks;
    let byte = extent.startByte;
    let left = extent.lengthBytes / sb.blockSize;
    while (left > 0) {
      if (filled === 0 ? block % perBlock !== 0 : block !== next_block) {
        throw fail(
          "CORRUPT",
          `${what}: the directory block at file block ${Math.floor(block / perBlock) * perBlock} is mapped in part; ${ADVICE_DAMAGE}`,
        );
      }
      const whole = filled === 0 && left >= perBlock;
      const take = whole
        ? Math.min(batch_blocks, left - (left % perBlock))
        : Math.min(perBlock - filled, left);
      pieces.push({ startByte: byte, lengthBytes: take * sb.blockSize });
      filled = whole ? perBlock : filled + take;
      block += take;
      byte += take * sb.blockSize;
      left -= take;
      next_block = block;
      if (filled < perBlock) continue;
      yield { firstByte: (pieces[0] as XfsRun).startByte, pieces };
      pieces = [];
      filled = 0;
    }
  }
}

/** Verifies one directory block (xfs_dir3_data_hdr) and searches its entries. */
function searchDirBlock(
  sb: XfsSuperblock,
  ino: bigint,
  bytes: Uint8Array,
  byte: number,
  magic: number,
  name: Uint8Array,
): bigint | null {
  const what = `directory inode ${ino}, block at byte ${byte}`;
  const view = viewOf(bytes);
  const own_magic = view.getUint32(0);
  if (own_magic !== magic)
    throw fail("CORRUPT", `${what}: magic is ${hex(own_magic)}, expected ${hex(magic)}; ${ADVICE_DAMAGE}`);
  verifyCrc(bytes, DIR3_CRC_OFFSET, what);
  verifyPlace(view, 8, byte, 40, ino, what);
  verifyUuid(bytes.subarray(24, 40), sb, what);
  let end = bytes.length;
  if (magic === DIR3_BLOCK_MAGIC) {
    // The tail: count of leaf entries (8 bytes each, in front of it) and of stale ones.
    const leaf_count = view.getUint32(bytes.length - 8);
    if (leaf_count > (bytes.length - DIR3_HEADER_BYTES - 8) / 8)
      throw fail("CORRUPT", `${what}: ${leaf_count} index entries do not fit; ${ADVICE_DAMAGE}`);
    end = bytes.length - 8 - leaf_count * 8;
  }
  return searchEntries(sb, bytes, view, end, name, what);
}

/**
 * Entries (xfs_dir2_data_entry) and free stretches (xfs_dir2_data_unused) fill the block without a gap; each is
 * 8-byte aligned and ends with its own offset as a tag.
 */
function searchEntries(
  sb: XfsSuperblock,
  bytes: Uint8Array,
  view: DataView,
  end: number,
  name: Uint8Array,
  what: string,
): bigint | null {
  const ftype_bytes = sb.hasFtype ? 1 : 0;
  let at = DIR3_HEADER_BYTES;
  // Header, entries, index entries and tail all have multiples of 8 bytes, so 8 bytes are left in each round.
  while (at < end) {
    const unused = view.getUint16(at) === DIR2_FREE_TAG;
    const name_bytes = unused || at + 9 > end ? 0 : view.getUint8(at + 8);
    const length = unused ? view.getUint16(at + 2) : (8 + 1 + name_bytes + ftype_bytes + 2 + 7) & ~7;
    if (length < 8 || length % 8 !== 0 || at + length > end || (!unused && name_bytes === 0)) {
      throw fail(
        "CORRUPT",
        `${what}: the entry at ${at} claims ${length} bytes, ${end - at} are left; ${ADVICE_DAMAGE}`,
      );
    }
    // A directory block has at most 64 KiB, so an offset always fits the 16-bit tag.
    const tag = view.getUint16(at + length - 2);
    if (tag !== at) throw fail("CORRUPT", `${what}: the entry at ${at} is tagged ${tag}; ${ADVICE_DAMAGE}`);
    if (
      !unused &&
      name_bytes === name.length &&
      sameBytes(bytes.subarray(at + 9, at + 9 + name_bytes), name)
    ) {
      return view.getBigUint64(at);
    }
    at += length;
  }
  return null;
}

// ---- Paths --------------------------------------------------------------------------------------------------

function kindOf(mode: number): XfsFileKind {
  if ((mode & S_IFMT) === S_IFREG) return "file";
  if ((mode & S_IFMT) === S_IFDIR) return "directory";
  return "other";
}

async function describeFile(reader: BlockReader, sb: XfsSuperblock, inode: Inode): Promise<XfsFile> {
  if ((inode.flags & DIFLAG_REALTIME) !== 0) {
    throw fail(
      "UNSUPPORTED",
      `inode ${inode.ino} has its data on the realtime device; MXFS needs it on the data device`,
    );
  }
  const extents = await readExtents(reader, sb, inode);
  return {
    ino: inode.ino,
    generation: inode.generation,
    kind: kindOf(inode.mode),
    mode: inode.mode,
    size: inode.size,
    format: inode.format === FORMAT_LOCAL ? "local" : inode.format === FORMAT_EXTENTS ? "extents" : "btree",
    immutable: (inode.flags & DIFLAG_IMMUTABLE) !== 0,
    nodefrag: (inode.flags & DIFLAG_NODEFRAG) !== 0,
    reflinked: (inode.flags2 & DIFLAG2_REFLINK) !== 0n,
    extents,
  };
}

/**
 * Finds a path, given as its components from the root, and tells where its data lies. [] is the root directory.
 * Symbolic links are not followed.
 * @throws XfsFormatError NOT_FOUND when a component does not exist or is no directory; other codes for damage.
 */
export async function findPath(
  reader: BlockReader,
  sb: XfsSuperblock,
  path: readonly string[],
): Promise<XfsFile> {
  if (path.length > XFS_PATH_DEPTH_MAX)
    throw fail("UNSUPPORTED", `a path of ${path.length} components, the limit is ${XFS_PATH_DEPTH_MAX}`);
  let inode = await readInode(reader, sb, sb.rootIno);
  if (kindOf(inode.mode) !== "directory")
    throw fail("CORRUPT", `the root inode ${sb.rootIno} is no directory; ${ADVICE_DAMAGE}`);
  for (const [depth, component] of path.entries()) {
    const here = `/${path.slice(0, depth).join("/")}`;
    if (kindOf(inode.mode) !== "directory") {
      throw fail(
        "NOT_FOUND",
        `${here} (inode ${inode.ino}) is no directory, so /${path.join("/")} does not exist`,
      );
    }
    const name = Buffer.from(component, "utf8");
    const ino = await lookup(reader, sb, inode, name);
    if (ino === null)
      throw fail(
        "NOT_FOUND",
        `no "${component}" in ${here} (inode ${inode.ino}) as it is on the disk; it may still be in the log only`,
      );
    inode = await readInode(reader, sb, ino);
  }
  return describeFile(reader, sb, inode);
}

/**
 * Superblock and path together, read again from the start while the structures look damaged, because the holder may
 * be changing them: an inode and the blocks of its map are not written in one piece. Two reads of one kind of damage
 * in a row prove nothing either, so the caller chooses the attempts and, by `pause`, the time between them.
 * @param attemptsMax at least 1.
 * @throws XfsFormatError of the last attempt; at once when reading again cannot help (not `retriable`).
 */
export async function locateFile(
  reader: BlockReader,
  path: readonly string[],
  attemptsMax: number,
  pause: (attempt: number) => Promise<void>,
): Promise<{ sb: XfsSuperblock; file: XfsFile }> {
  for (let attempt = 1; ; attempt++) {
    try {
      const sb = await readSuperblock(reader);
      return { sb, file: await findPath(reader, sb, path) };
    } catch (error) {
      if (!(error instanceof XfsFormatError) || !error.retriable || attempt >= attemptsMax) throw error;
    }
    await pause(attempt);
  }
}

/**
 * Where bytes [offset, offset + length) of a file lie, as contiguous stretches of the device in file order.
 * @throws XfsFormatError UNSUPPORTED when a part is a hole, unwritten, shared or beyond the end: such a part must
 *   not be read or written raw.
 */
export function mapFileRange(sb: XfsSuperblock, file: XfsFile, offset: number, length: number): XfsRun[] {
  const refuse = (why: string): XfsFormatError =>
    fail(
      "UNSUPPORTED",
      `bytes ${offset} to ${offset + length} of inode ${file.ino} cannot be used on the raw disk: ${why}`,
    );
  if (
    !Number.isSafeInteger(offset) ||
    !Number.isSafeInteger(length) ||
    offset < 0 ||
    length < 0 ||
    offset + length > file.size
  ) {
    throw refuse(`the file has ${file.size} bytes`);
  }
  if (file.reflinked) throw refuse("its blocks may be shared with another file (reflink)");
  const runs: XfsRun[] = [];
  let at = offset;
  for (const extent of file.extents) {
    const extent_start = extent.fileOffsetBlocks * sb.blockSize;
    const extent_end = extent_start + extent.lengthBytes;
    if (extent_end <= at) continue;
    if (at >= offset + length || extent_start > at) break;
    if (extent.unwritten)
      throw refuse(`the extent at byte ${extent_start} is unwritten, its blocks hold garbage`);
    const startByte = extent.startByte + (at - extent_start);
    const lengthBytes = Math.min(extent_end, offset + length) - at;
    const previous = runs[runs.length - 1];
    if (previous !== undefined && previous.startByte + previous.lengthBytes === startByte) {
      runs[runs.length - 1] = {
        startByte: previous.startByte,
        lengthBytes: previous.lengthBytes + lengthBytes,
      };
    } else {
      runs.push({ startByte, lengthBytes });
    }
    at += lengthBytes;
  }
  if (at < offset + length) throw refuse(`there is a hole at byte ${at}`);
  return runs;
}
