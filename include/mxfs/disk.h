/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * MXFS: the layout of .mxfs/lockstate, read and written raw (O_DIRECT) by every node.
 *
 * A record is max(512, logical block size) bytes: "R". Little endian. Every record begins with
 * {magic u32, version u16, type u16, crc32c u32 (of the whole record or header with this field zero),
 * reserved u32, volume u64, epoch u64, sequence u64}: 40 bytes (MXFS_DISK_PREFIX_SIZE).
 * A record has one writer. Torn, corrupt or foreign: reported, and treated as absent.
 *
 *   0        header A   (MXFS_DISK_HEADER_SIZE bytes)
 *   64 KiB   header B   (the valid one with the higher sequence is the header)
 *   128 KiB  heartbeat slots: MXFS_NODE_COUNT_MAX * R
 *   512 KiB  journal slots: MXFS_NODE_COUNT_MAX * R
 *   1 MiB    lock records: lock_record_count * R
 */
#ifndef MXFS_DISK_H
#define MXFS_DISK_H

#define MXFS_DISK_MAGIC 0x5346584D /* "MXFS" read as bytes */
#define MXFS_DISK_VERSION 1
#define MXFS_DISK_PREFIX_SIZE 40
#define MXFS_DISK_RECORD_SIZE_MIN 512
#define MXFS_DISK_RECORD_SIZE_MAX 4096
#define MXFS_DISK_HEADER_SIZE 4096
#define MXFS_DISK_HEADER_A_OFFSET 0
#define MXFS_DISK_HEADER_B_OFFSET 65536
#define MXFS_DISK_HEARTBEAT_OFFSET 131072
#define MXFS_DISK_JOURNAL_OFFSET 524288
#define MXFS_DISK_LOCK_OFFSET 1048576
#define MXFS_DISK_LOCK_RECORD_COUNT_DEFAULT 65536
#define MXFS_DISK_EXTENT_COUNT_MAX 32
#define MXFS_DISK_CLUSTER_KEY_SIZE 32

#define MXFS_DIR_NAME ".mxfs"
#define MXFS_LOCKSTATE_NAME "lockstate"
#define MXFS_ORPHANS_NAME "orphans"
#define MXFS_POOL_NAME "pool"

enum mxfs_disk_record_type {
	MXFS_DISK_HEADER = 1,
	MXFS_DISK_HEARTBEAT = 2,
	MXFS_DISK_JOURNAL = 3,
	MXFS_DISK_LOCK = 4,
};

/*
 * Header, after the prefix:
 *   40 volume uuid[16]   56 lockstate ino u64   64 generation u32   68 record size u32
 *   72 lock record count u64   80 holder node u32   84 holder incarnation u32
 *   88 cluster key[32]   120 member count u32   124 extent count u32
 *   128 members[64] {node u32, incarnation u32, slot u32, state u32 (enum mxfs_node_state)}: 1024 bytes
 *   1152 extents[32] {file offset u64, device offset u64, length u64} in bytes: 768 bytes
 *   1920 owners of the lock record chunks[2048] u8: heartbeat slot + 1; 0: nobody's
 *   3968.. zero
 */
#define MXFS_DISK_HEADER_MEMBERS_OFFSET 128
#define MXFS_DISK_HEADER_EXTENTS_OFFSET 1152
#define MXFS_DISK_HEADER_CHUNKS_OFFSET 1920
#define MXFS_DISK_LOCK_CHUNK_COUNT_MAX 2048
#define MXFS_DISK_LOCK_CHUNK_RECORDS 256

/*
 * Heartbeat, after the prefix (prefix.sequence is the counter; it moves, so the node lives):
 *   40 node u32   44 incarnation u32   48 node uuid[16]   64 role u32 (enum mxfs_role)   68 port u16
 *   70 address family u16 (4 or 6; 0 none)   72 address[16] (IPv4 in the first four bytes, network order)
 *   88 unreachable nodes: u64 bit mask of slots   96 host name[64], zero padded UTF-8
 */
/*
 * Journal slot, after the prefix:
 *   40 node u32   44 incarnation u32   48 state u32 (enum mxfs_journal_state)   52 recoverer node u32
 */
enum mxfs_journal_state {
	MXFS_JOURNAL_FREE = 0,
	MXFS_JOURNAL_MEMBER = 1,
	MXFS_JOURNAL_HOLDER = 2,
	MXFS_JOURNAL_NEEDS_RECOVERY = 3,
	MXFS_JOURNAL_RECOVERING = 4,
};

/*
 * Lock record, after the prefix:
 *   40 resource (struct mxfs_resource)   72 lock id u64   80 owner node u32   84 mode u32 (enum mxfs_mode; NL: released)
 *   88 writer node u32   92 writer incarnation u32   96 owner incarnation u32
 * A node's chunks, in order, are its area: a ring of segments of MXFS_DISK_LOCK_SEGMENT_RECORDS (in a large area of a whole
 * chunk each), and slots behind it; a reader need not know which is which. Of
 * the sound records of the header's epoch, written by the chunk's owner, the one with the highest sequence is the state of a
 * (owner node, lock id).
 */
#define MXFS_DISK_LOCK_SEGMENT_RECORDS 64
#define MXFS_DISK_LOCK_RING_SEGMENTS_MAX 16

#endif /* MXFS_DISK_H */
