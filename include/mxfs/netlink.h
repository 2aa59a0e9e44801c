/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * MXFS: the generic netlink family "mxfs" between the kernel module and mxfsd.
 *
 * One daemon (one port id) per mount, bound by MXFS_CMD_DAEMON_ATTACH; every message carries
 * MXFS_A_MOUNT_ID. All commands need CAP_NET_ADMIN. A message from a port other than the bound one is
 * accepted as well when MXFS_A_SESSION equals the session number that ATTACH answered (each thread of
 * the daemon sends by a socket of its own; the kernel sends to the bound port only).
 *
 * D->K: daemon to kernel; the kernel's handler only checks and queues, the netlink ACK says whether the
 * message was taken. K->D: kernel to daemon, unicast to the bound port, never lost: the kernel waits for
 * room in the socket (in a thread of its own).
 *
 * D->K commands marked (req) carry MXFS_A_REQ_ID and are answered later by the K->D command MXFS_CMD_DONE
 * {REQ_ID, ERROR, ...}; K->D commands marked (req) are answered by D->K MXFS_CMD_DONE.
 */
#ifndef MXFS_NETLINK_H
#define MXFS_NETLINK_H

#define MXFS_GENL_NAME "mxfs"
#define MXFS_GENL_VERSION 1

/* No attribute's payload is larger than this; larger fsops travel in parts. */
#define MXFS_NL_DATA_MAX 32768
/* Most lock entries in one message. */
#define MXFS_NL_LOCKS_MAX 256

enum mxfs_cmd {
	MXFS_CMD_UNSPEC = 0,
	/*
	 * D->K: binds this port to the mount MOUNT_ID. Attributes: MOUNT_ID, ABI_VERSION, PID.
	 * Answered at once by a message of the same command: SESSION, VOLUME, STATE (MXFS_KSTATE_*), ROLE,
	 * EPOCH, NODE and INCARNATION (0 if never told), FENCED. EBUSY if a live daemon is bound, ENOENT if
	 * there is no such mount, EPROTO on another ABI version.
	 */
	MXFS_CMD_DAEMON_ATTACH = 1,
	/*
	 * D->K: start-up is over. ROLE, EPOCH, HOLDER and its INCARNATION, LEASE_UNTIL; or ERROR and MESSAGE: the mount fails
	 * with that errno and the message goes to the mount's log. The gate opens.
	 */
	MXFS_CMD_DAEMON_READY = 2,
	/*
	 * D->K (req): become ROLE: HOLDER mounts the XFS and makes sure of .mxfs/lockstate
	 * (LOCKSTATE_SIZE bytes if it must be created); MEMBER claims the disk and attaches to HOLDER; NONE
	 * unmounts, lets go. NODE, INCARNATION, HOLDER, EPOCH. The gate must be shut (it is at start).
	 * DONE carries ERROR, MESSAGE, and for HOLDER also INO, GENERATION, SIZE, CREATED of lockstate.
	 */
	MXFS_CMD_ROLE_CHANGE = 3,
	/*
	 * D->K (req): GATE_OPEN 0 or 1, REASON. Shut: DONE when every operation inside has left. Member
	 * operations that wait for the holder's answer count as inside, unless FORCE is set.
	 */
	MXFS_CMD_GATE = 4,
	/* D->K: LEASE_UNTIL (CLOCK_BOOTTIME ms), EPOCH. The kernel stops serving at that time. */
	MXFS_CMD_LEASE = 5,
	/*
	 * D->K (req): view change, first half: stop the lock service, move to EPOCH, tell every lock held
	 * or waited for: K->D MXFS_CMD_LOCK_DUMP messages with LOCKS, then DONE. Answers of earlier epochs
	 * are void from now on; new requests wait in the kernel. With SOLO nothing is told: the view that
	 * comes has no other node.
	 */
	MXFS_CMD_LOCK_DUMP = 6,
	/*
	 * D->K: view change, second half: EPOCH, HOLDER and its INCARNATION (a later one of the same node is another holder), RESEND 0/1
	 * (fsops unanswered are sent again), SOLO as in the LOCK_DUMP before. Resume. With SOLO the kernel grants its locks itself, tells none, until the next LOCK_DUMP.
	 */
	MXFS_CMD_VIEW = 7,
	/* K->D: LOCKS: new requests (flags NOQUEUE). */
	MXFS_CMD_LOCK_REQUEST = 8,
	/* K->D: LOCKS: conversions; to a lower mode it is a statement, and not answered. */
	MXFS_CMD_LOCK_CONVERT = 9,
	/* K->D: LOCKS: released, or (flag CANCEL) the outstanding request is given up: answered by grant or deny. */
	MXFS_CMD_LOCK_RELEASE = 10,
	/* D->K: LOCKS. */
	MXFS_CMD_LOCK_GRANT = 11,
	/* D->K: LOCKS with status. */
	MXFS_CMD_LOCK_DENY = 12,
	/* D->K: LOCKS: somebody needs `mode` on a lock that is held as `granted`. Answered by convert or release. */
	MXFS_CMD_BAST = 13,
	/* D->K: drop caches of INO, or of everything when INO is absent. Locks stay. */
	MXFS_CMD_CACHE_INVALIDATE = 14,
	/* D->K: NODE, INCARNATION, NODE_STATE. DEAD and LEFT: the executor forgets what it kept for that node. */
	MXFS_CMD_NODE_STATUS = 15,
	/* D->K: a node's recovery begins / is over: NODE, EPOCH. In between operations wait, killable. */
	MXFS_CMD_RECOVERY_START = 16,
	MXFS_CMD_RECOVERY_DONE = 17,
	/*
	 * Both ways. FSOP_ID, NODE, FSOP_OFFSET, FSOP_TOTAL, FSOP_DATA. K->D on a member: to the holder.
	 * D->K on the holder: from NODE. A payload above MXFS_NL_DATA_MAX comes in parts, in order.
	 */
	MXFS_CMD_FSOP_REQUEST = 18,
	/* Both ways. K->D on the holder: to NODE. D->K on the member: the answer. */
	MXFS_CMD_FSOP_REPLY = 19,
	/* K->D (req): the mount is going: leave the view, hand over; DONE, then the daemon exits. */
	MXFS_CMD_VOLUME_UNMOUNT = 20,
	/* D->K: this mount is fenced, finally: MESSAGE. */
	MXFS_CMD_FENCED = 21,
	/* D->K: asks; answered at once by a message of the same command with STATE, ROLE, ... and COUNTERS. */
	MXFS_CMD_STATUS = 22,
	/* Both ways: the answer to a (req): REQ_ID, ERROR (positive errno, 0 is well), MESSAGE. */
	MXFS_CMD_DONE = 23,
	/* K->D: the kernel lost the file system: ERROR, MESSAGE (XFS shut down, reservation conflict). */
	MXFS_CMD_VOLUME_ERROR = 24,
	/* D->K: lists the mounts: one answer for each (dump): MOUNT_ID, DEVICE, VOLUME, STATE, ROLE, PID. */
	MXFS_CMD_VOLUME_MOUNT = 25,
	/*
	 * D->K: NODE, INCARNATION, FD: a TCP connection with that node, both ends authenticated, nothing on its way. The kernel takes it
	 * over, in place of one it has already, and sends fsops by it (struct mxfs_fsop_frame). The daemon closes its descriptor.
	 */
	MXFS_CMD_FSOP_SOCKET = 26,
};
#define MXFS_CMD_MAX 26

enum mxfs_attr_id {
	MXFS_A_UNSPEC = 0,
	MXFS_A_MOUNT_ID = 1,       /* u32 */
	MXFS_A_SESSION = 2,        /* u64 */
	MXFS_A_ABI_VERSION = 3,    /* u32 */
	MXFS_A_PID = 4,            /* u32 */
	MXFS_A_REQ_ID = 5,         /* u64, nonzero */
	MXFS_A_ERROR = 6,          /* u32, positive errno */
	MXFS_A_MESSAGE = 7,        /* string, at most 511 bytes */
	MXFS_A_VOLUME = 8,         /* u64 */
	MXFS_A_NODE = 9,           /* u32 */
	MXFS_A_INCARNATION = 10,   /* u32 */
	MXFS_A_HOLDER = 11,        /* u32, node id */
	MXFS_A_ROLE = 12,          /* u32, enum mxfs_role */
	MXFS_A_EPOCH = 13,         /* u64 */
	MXFS_A_STATE = 14,         /* u32, enum mxfs_kstate */
	MXFS_A_FENCED = 15,        /* u32, 0 or 1 */
	MXFS_A_LEASE_UNTIL = 16,   /* u64, CLOCK_BOOTTIME milliseconds */
	MXFS_A_GATE_OPEN = 17,     /* u32, 0 or 1 */
	MXFS_A_REASON = 18,        /* string, at most 127 bytes */
	MXFS_A_FORCE = 19,         /* u32, 0 or 1 */
	MXFS_A_RESEND = 20,        /* u32, 0 or 1 */
	MXFS_A_LOCKS = 21,         /* binary: struct mxfs_lock_entry[1..MXFS_NL_LOCKS_MAX] */
	MXFS_A_INO = 22,           /* u64 */
	MXFS_A_GENERATION = 23,    /* u32 */
	MXFS_A_SIZE = 24,          /* u64, bytes */
	MXFS_A_CREATED = 25,       /* u32, 0 or 1 */
	MXFS_A_LOCKSTATE_SIZE = 26, /* u64, bytes */
	MXFS_A_NODE_STATE = 27,    /* u32, enum mxfs_node_state */
	MXFS_A_FSOP_ID = 28,       /* u64: the member's sequence number */
	MXFS_A_FSOP_OFFSET = 29,   /* u32: where this part begins */
	MXFS_A_FSOP_TOTAL = 30,    /* u32: bytes of the whole payload */
	MXFS_A_FSOP_DATA = 31,     /* binary, 1..MXFS_NL_DATA_MAX */
	MXFS_A_COUNTERS = 32,      /* string: "name value\n" lines, at most 4095 bytes */
	MXFS_A_DEVICE = 33,        /* string */
	MXFS_A_PAD = 34,
	MXFS_A_SOLO = 35,          /* u32, 0 or 1 */
	MXFS_A_FD = 36,            /* u32: a descriptor of the sending process */
};
#define MXFS_A_MAX 36

/* The kernel's state of a mount. */
enum mxfs_kstate {
	MXFS_KSTATE_STARTING = 1,  /* mount(2) waits for DAEMON_READY */
	MXFS_KSTATE_RUNNING = 2,
	MXFS_KSTATE_DETACHED = 3,  /* daemon gone, being started again; operations go on by cached locks until the lease ends */
	MXFS_KSTATE_FENCED = 4,    /* final: every operation EIO */
	MXFS_KSTATE_STOPPING = 5,  /* unmount under way */
};

#endif /* MXFS_NETLINK_H */
