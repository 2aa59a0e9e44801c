/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * MXFS: constants and structures that the kernel module, the daemon and the disk share.
 *
 * This header and its neighbours are the one source of these facts. The TypeScript side is
 * generated from them (scripts/gen-abi.mjs writes src/wire/abi.ts; a test fails if it drifts).
 * So: only #define NAME NUMBER-OR-STRING and enum entries with explicit values are constants, and
 * structures are packed by hand (every field naturally aligned, sizes asserted on both sides).
 * All integers are little endian on the wire, on disk and in netlink payload structures.
 */
#ifndef MXFS_ABI_H
#define MXFS_ABI_H

#include <linux/types.h>

#define MXFS_ABI_VERSION 1

/* Limits. */
#define MXFS_NODE_COUNT_MAX 64
#define MXFS_NAME_LEN_MAX 255
#define MXFS_PATH_LEN_MAX 4096
#define MXFS_LVB_LEN 32

/*
 * Default timings, in milliseconds. Checked on use: heartbeat <= renewal < lease; lease * 1.1 < node timeout. Twice that is below
 * it here and with profile=fast, so that a takeover need not wait for the dead holder's lease.
 */
#define MXFS_HEARTBEAT_MS_DEFAULT 2000
#define MXFS_LEASE_RENEW_MS_DEFAULT 2000
#define MXFS_LEASE_MS_DEFAULT 5000
#define MXFS_NODE_TIMEOUT_MS_DEFAULT 12000
#define MXFS_LOCK_WAIT_MS_DEFAULT 30000
#define MXFS_BAST_MS_DEFAULT 10000
#define MXFS_STARTUP_MS_DEFAULT 60000
#define MXFS_DRAIN_MS_DEFAULT 2000

/* The same with profile=fast: for hosts that are never kept waiting for a second by their network or disk. */
#define MXFS_HEARTBEAT_MS_FAST 500
#define MXFS_LEASE_RENEW_MS_FAST 500
#define MXFS_LEASE_MS_FAST 1600
#define MXFS_NODE_TIMEOUT_MS_FAST 3600
#define MXFS_DRAIN_MS_FAST 1000

/* Network defaults. TCP and UDP use the same port number. */
#define MXFS_PORT_DEFAULT 7601
#define MXFS_MULTICAST_DEFAULT "239.66.83.1"

/* Lock modes: the VMS six. The numbers are also the order of strength used for "at least". */
enum mxfs_lock_mode {
	MXFS_MODE_NL = 0,
	MXFS_MODE_CR = 1,
	MXFS_MODE_CW = 2,
	MXFS_MODE_PR = 3,
	MXFS_MODE_PW = 4,
	MXFS_MODE_EX = 5,
};
#define MXFS_MODE_COUNT 6

/* Resource types; the numbers are the order in which locks on one inode are taken. */
enum mxfs_resource_type {
	MXFS_RES_SUPER = 1,
	MXFS_RES_JOURNAL = 2,
	MXFS_RES_AG = 3,
	MXFS_RES_INODE = 4,
	MXFS_RES_EXTENT = 5,
	MXFS_RES_OPEN = 6,
	MXFS_RES_FLOCK = 7,
	MXFS_RES_USER = 8, /* mxfs_lock clients: ino is FNV-1a-64 of the name, or a number */
};

/* MXFS_RES_SUPER, ino 0: the offset says which of the volume's own locks. */
#define MXFS_SUPER_VOLUME 0
#define MXFS_SUPER_RENAME 1

/* What is locked. 32 bytes; this very encoding is what FNV-1a hashes. */
struct mxfs_resource {
	__le64 volume;
	__le64 ino;
	__le64 offset;
	__le32 ag; /* AG: the allocation group. INODE, OPEN: the inode's generation. Else 0 */
	__le32 type;
};

/*
 * One lock, in netlink messages and in TCP frames alike; 64 bytes.
 *
 * lock_id names a lock within (owner node); never used again. Bits 63..60 are the kind of client
 * (MXFS_LOCK_CLIENT_*). seq numbers the requests on that lock: an answer repeats it, and an answer
 * whose (lock_id, seq, epoch) is not the outstanding one is void.
 */
struct mxfs_lock_entry {
	struct mxfs_resource resource;
	__le64 lock_id;
	__le64 epoch;
	__le32 seq;
	__u8 mode;    /* wanted (request, convert), granted (grant), blocking (BAST) */
	__u8 granted; /* mode held at the time of the message */
	__le16 flags; /* MXFS_LKF_* */
	__le32 node;  /* the lock's owner */
	__le32 status; /* deny: errno, positive */
};
#define MXFS_RESOURCE_SIZE 32
#define MXFS_LOCK_ENTRY_SIZE 64

#define MXFS_LOCK_CLIENT_SHIFT 60
#define MXFS_LOCK_CLIENT_KERNEL 0
#define MXFS_LOCK_CLIENT_CONTROL 1

#define MXFS_LKF_NOQUEUE 1  /* deny with EAGAIN instead of waiting */
#define MXFS_LKF_CONVERT 2  /* lock_id holds `granted` already */
#define MXFS_LKF_CANCEL 4   /* give up the outstanding request `seq` */
#define MXFS_LKF_WAITING 8  /* in dumps and reclaims: a request `mode` is outstanding */
#define MXFS_LKF_RECLAIM 16 /* granted before this epoch: enter it as granted */
/* Only between daemons, for control clients' locks on USER resources; the kernel never sees these three. */
#define MXFS_LKF_VALUE 32     /* a struct mxfs_lock_value follows this entry */
#define MXFS_LKF_LOST 64      /* release: the client is gone without a word; PW, EX: the value is invalid now */
#define MXFS_LKF_IS_VALUE 128 /* this is no entry, but the struct mxfs_lock_value of the entry before */

/*
 * A lock value block, 64 bytes, right behind the entry that has MXFS_LKF_VALUE: in a grant the value now, in a
 * release or conversion down from PW or EX the new one, in a reclaim what the owner knows. value_seq rises with
 * every value written. lock_id, seq and node repeat the entry's, in the same places.
 */
struct mxfs_lock_value {
	__u8 value[MXFS_LVB_LEN];
	__le64 lock_id;
	__le64 value_seq;
	__le32 seq;
	__u8 state; /* 0 valid, 1 invalid: a writer was lost */
	__u8 reserved;
	__le16 flags; /* MXFS_LKF_IS_VALUE */
	__le32 node;
	__le32 reserved2;
};

/* Roles of a node on a volume. */
enum mxfs_role {
	MXFS_ROLE_NONE = 0,
	MXFS_ROLE_HOLDER = 1,
	MXFS_ROLE_MEMBER = 2,
};

enum mxfs_node_state {
	MXFS_NODE_UNKNOWN = 0,
	MXFS_NODE_JOINING = 1,
	MXFS_NODE_ACTIVE = 2,
	MXFS_NODE_SUSPECT = 3,
	MXFS_NODE_DEAD = 4,
	MXFS_NODE_RECOVERING = 5,
	MXFS_NODE_LEFT = 6,
};

/* How a node that must go is kept from writing. */
enum mxfs_fence {
	MXFS_FENCE_SCSI = 1,
	MXFS_FENCE_NONE = 2, /* tests only: nothing keeps a dead node from writing */
};

#endif /* MXFS_ABI_H */
