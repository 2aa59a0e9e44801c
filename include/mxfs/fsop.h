/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * MXFS: file system operations (fsops) that a member sends to the holder.
 *
 * Request payload:  struct mxfs_fsop_request, groups (ngroups * u32), op arguments (struct mxfs_fsop_args),
 *                   name (name_len), name2 (name2_len), data (data_len); no padding between them, nothing behind.
 * Reply payload:    struct mxfs_fsop_reply, data (data_len).
 * The daemon does not look inside. All integers little endian; sizes asserted in mxfs_fsop.c.
 *
 * Exactly once: (node, incarnation, seq) names a request. The holder keeps the reply of an operation that changes
 * anything until the member's `acked` passes it (all seq < acked have been answered and seen, waiting SETLKs apart);
 * a repeated request gets the kept reply. Operations that only read are executed again when they are repeated, and so
 * is SETLK: taking a lock that the owner has got already is granted. A member sends no seq of MXFS_FSOP_WINDOW_MAX or
 * more above its `acked`, so what the holder keeps is bounded.
 *
 * Durable: the holder forces its log before it answers, unless it says MXFS_REPLY_EARLY. What was answered early is durable
 * when a reply of the same `session` says `committed` >= its `stamp`; until then the member keeps the request, and after a
 * takeover, if it was lost, sends it to the next holder. docs/interfaces.md, "Early answers".
 *
 * Order: the holder executes one member's operations on one object (h, h2) in the order in which they arrive; those that
 * only read may overlap each other.
 */
#ifndef MXFS_FSOP_H
#define MXFS_FSOP_H

#include <linux/types.h>

#define MXFS_FSOP_MAGIC 0x46534F50
#define MXFS_FSOP_DATA_MAX 131072   /* most data bytes of one fsop */
#define MXFS_FSOP_PAYLOAD_MAX 147456 /* with headers, names and groups */
#define MXFS_FSOP_GROUPS_MAX 1024
#define MXFS_FSOP_INFLIGHT_MAX 256  /* per mount, waiting SETLKs apart; further callers wait */
#define MXFS_FSOP_WINDOW_MAX 1024   /* how far a seq may be ahead of `acked`; further callers wait */
#define MXFS_FSOP_LOCK_WAITS_MAX 4096 /* waiting SETLKs per mount; further ones get ENOLCK */
#define MXFS_FSOP_RETRY_MS 1000     /* a RETRY of the same epoch is obeyed after this time, or at the next view */
#define MXFS_FSOP_VERSION 2
#define MXFS_FSOP_KEPT_MAX 256      /* answered operations that a member keeps until they are committed; further ones wait */
#define MXFS_FSOP_COMMIT_MS 1000    /* a member asks for a commit so long after the first of them, at the latest */

enum mxfs_fsop_op {
	MXFS_FSOP_GETROOT = 1,
	MXFS_FSOP_LOOKUP = 2,
	MXFS_FSOP_GETATTR = 3,
	MXFS_FSOP_SETATTR = 4,
	MXFS_FSOP_MAKE = 5,      /* create, mkdir, mknod, by mode's type; MXFS_MAKE_* in flags */
	MXFS_FSOP_SYMLINK = 6,
	MXFS_FSOP_LINK = 7,
	MXFS_FSOP_UNLINK = 8,    /* MXFS_UNLINK_* in flags */
	MXFS_FSOP_RENAME = 9,    /* RENAME_* of the VFS in flags, MXFS_RENAME_PARK beside them */
	MXFS_FSOP_READLINK = 10,
	MXFS_FSOP_READDIR = 11,
	MXFS_FSOP_READ = 12,
	MXFS_FSOP_WRITE = 13,
	MXFS_FSOP_FSYNC = 14,
	MXFS_FSOP_SYNCFS = 15,   /* log force: everything answered before is on disk afterwards */
	MXFS_FSOP_STATFS = 16,
	MXFS_FSOP_GETXATTR = 17,
	MXFS_FSOP_SETXATTR = 18, /* XATTR_CREATE / XATTR_REPLACE in flags; size in data */
	MXFS_FSOP_LISTXATTR = 19,
	MXFS_FSOP_REMOVEXATTR = 20,
	MXFS_FSOP_SETLK = 21,    /* flock and fcntl; may stay unanswered for long (MXFS_LK_WAIT) */
	MXFS_FSOP_GETLK = 22,
	MXFS_FSOP_CANCELLK = 23, /* gives up the waiting SETLK with seq `arg_seq` */
	MXFS_FSOP_REAP = 24,     /* frees a parked (orphaned) inode */
	MXFS_FSOP_FALLOCATE = 25,
	MXFS_FSOP_MAP = 26,      /* where a file's blocks are on the disk; MXFS_MAP_* in flags; ENXIO: not to be mapped */
	MXFS_FSOP_COMMIT = 27,   /* what was written by a map is valid from now on: size, mtime, and ranges in data */
	MXFS_FSOP_COPY = 28,     /* from h2 at `size` to h at `offset`; MXFS_COPY_* in flags */
	MXFS_FSOP_SEEK = 29,     /* SEEK_DATA or SEEK_HOLE in flags, from `offset`; the position in `value` */
	MXFS_FSOP_FORCE = 30,    /* the log alone: every change of metadata executed before is durable afterwards */
	MXFS_FSOP_NAMES = 31,    /* names with handles from cookie `offset` on, at most `length` of them */
	MXFS_FSOP_GETATTRS = 32, /* attributes of many: data is up to MXFS_NAMES_MAX struct mxfs_handle; the block size in `value` */
};
#define MXFS_FSOP_OP_MAX 32

#define MXFS_UNLINK_DIR 1    /* rmdir */
#define MXFS_UNLINK_PARK 2   /* somebody has it open: move to .mxfs/orphans instead of freeing */
#define MXFS_MAKE_EXCL 1     /* EEXIST if there; without it an existing regular file is answered */
#define MXFS_RENAME_PARK 0x10000 /* the victim at the target is open somewhere: park it */
#define MXFS_FSYNC_DATA 1    /* fdatasync */
#define MXFS_MAP_WRITE 1     /* every hole in the range gets blocks, not yet written; arg_seq: how much of it at least */
#define MXFS_COPY_CLONE 1    /* share the blocks (reflink), all of `length`, or fail */
#define MXFS_COPY_DEDUPE 2   /* the same, but only if both ranges are equal: EILSEQ otherwise */

/* Blocks may be asked for, and are given, in these portions. */
#define MXFS_MAP_EXTENTS_MAX 128
#define MXFS_MAP_BYTES_MAX 1073741824
#define MXFS_COMMIT_RANGES_MAX 1024

#define MXFS_NAMES_MAX 512   /* names of one NAMES, handles of one GETATTRS */
#define MXFS_BRIEF_BYTES_MAX 1048576 /* of files up to this size GETATTRS tells the first extent */
#define MXFS_NAMES_BYTES 48  /* room for the data of a NAMES, for each name that was asked for */

/* SETATTR's `valid`. Without _SET a time becomes the holder's now. */
#define MXFS_SET_MODE 1
#define MXFS_SET_UID 2
#define MXFS_SET_GID 4
#define MXFS_SET_SIZE 8
#define MXFS_SET_ATIME 16
#define MXFS_SET_MTIME 32
#define MXFS_SET_CTIME 64
#define MXFS_SET_ATIME_SET 128
#define MXFS_SET_MTIME_SET 256
#define MXFS_SET_FORCE 512
#define MXFS_SET_KILL_SUID 1024
#define MXFS_SET_KILL_SGID 2048
#define MXFS_SET_KILL_PRIV 4096

/*
 * An answer that is not an errno of the operation: not executed, send it again; at once if the view has changed since it was
 * sent, else at the next view or after MXFS_FSOP_RETRY_MS.
 */
#define MXFS_FSOP_E_RETRY 0x10000

/* 16 bytes. */
struct mxfs_handle {
	__le64 ino;
	__le32 generation;
	__le32 pad;
};

/*
 * Between two kernels, on a connection that the daemons have authenticated (MXFS_CMD_FSOP_SOCKET): a request or reply payload behind each.
 * 24 bytes. What is longer than MXFS_FSOP_FRAME_MAX goes by the daemons, and so does everything where there is no such
 * connection, or `encrypt` is on. A connection that breaks loses what is on its way: the member sends it again.
 */
struct mxfs_fsop_frame {
	__le32 magic;    /* MXFS_FSOP_FRAME_MAGIC */
	__le32 kind;     /* enum mxfs_fsop_frame_kind */
	__le64 id;       /* seq */
	__le32 length;   /* of the payload, 1..MXFS_FSOP_FRAME_MAX */
	__le32 pad;
};
enum mxfs_fsop_frame_kind {
	MXFS_FRAME_REQUEST = 1,
	MXFS_FRAME_REPLY = 2,
};
#define MXFS_FSOP_FRAME_MAGIC 0x4652414D
#define MXFS_FSOP_FRAME_MAX 65536

/* Attributes as the lower XFS has them. 128 bytes. */
struct mxfs_wire_attr {
	struct mxfs_handle handle;
	__le32 mode;
	__le32 nlink;     /* parked inodes: without the name in .mxfs/orphans */
	__le32 uid;
	__le32 gid;
	__le32 rdev_major;
	__le32 rdev_minor;
	__le32 blksize;
	__le32 flags;     /* MXFS_ATTR_* */
	__le64 size;
	__le64 blocks;    /* 512-byte units */
	__le64 change;    /* i_version */
	__le64 atime_sec;
	__le64 mtime_sec;
	__le64 ctime_sec;
	__le64 btime_sec;
	__le32 atime_nsec;
	__le32 mtime_nsec;
	__le32 ctime_nsec;
	__le32 btime_nsec;
	__le64 reserved;
};
#define MXFS_ATTR_PARKED 1
#define MXFS_ATTR_IMMUTABLE 2
#define MXFS_ATTR_APPEND 4
#define MXFS_ATTR_HAS_ACL 8

/* 96 bytes. */
struct mxfs_fsop_request {
	__le32 magic;
	__le16 op;
	__le16 version;
	__le64 seq;
	__le64 acked;
	__le64 epoch;
	__le32 node;
	__le32 incarnation;
	__le32 fsuid;       /* the caller's, in the initial user namespace */
	__le32 fsgid;
	__le64 caps;        /* effective capabilities that matter to a file system; none from other user namespaces */
	__le32 umask;
	__le32 ngroups;
	__le32 name_len;
	__le32 name2_len;
	__le32 data_len;
	__le32 flags;       /* MXFS_REQ_* */
	__le64 reserved[2];
};
#define MXFS_REQ_KERNEL 1 /* written back by the kernel, not on behalf of a process: no permission checks */
#define MXFS_REQ_REPLAY 2 /* sent to an earlier holder, which may have executed it: what is done already is well done */
#define MXFS_REQ_DURABLE 4 /* not to be answered early; SETLK: what was done before is durable first */

/*
 * Arguments, one shape for all operations; 136 bytes. Fields an operation does not use are zero.
 * `name` is the entry's or attribute's name, `name2` rename's new name or symlink's target.
 */
struct mxfs_fsop_args {
	struct mxfs_handle h;    /* the object, or the parent directory */
	struct mxfs_handle h2;   /* second object: link's target, rename's new parent */
	__le32 flags;            /* per operation: MXFS_MAKE_*, MXFS_UNLINK_*, RENAME_*, XATTR_*, MXFS_LK_*, fallocate's mode */
	__le32 mode;
	__le32 rdev_major;
	__le32 rdev_minor;
	__le64 offset;           /* read, write, readdir cookie, lock start */
	__le64 length;           /* read, getxattr, readdir, names: most data wanted; lock end */
	__le64 arg_seq;
	/* setattr */
	__le32 valid;            /* MXFS_SET_* */
	__le32 uid;
	__le32 gid;
	__le32 pad;
	__le64 size;             /* make, symlink, link, unlink, rename: h's `change` as the member knows it before; 0: it does not */
	__le64 atime_sec;
	__le64 mtime_sec;
	__le32 atime_nsec;
	__le32 mtime_nsec;
	/* locks */
	__le64 owner;            /* unique for an open file or process within the node */
	__le32 pid;
	__le32 lock_type;        /* F_RDLCK, F_WRLCK, F_UNLCK */
};
#define MXFS_LK_FLOCK 1
#define MXFS_LK_WAIT 2
#define MXFS_LK_RECLAIM 4 /* granted by the holder before this one; executed while the gates are still shut */

/* 320 bytes, then data. RENAME: attr is the old parent, attr2 the new one. */
struct mxfs_fsop_reply {
	__le32 magic;
	__le16 op;
	__le16 version;
	__le64 seq;
	__le32 error;            /* positive errno, MXFS_FSOP_E_RETRY, or 0 */
	__le32 data_len;
	__le64 value;            /* bytes done, next cookie, xattr size */
	__le32 flags;            /* MXFS_REPLY_* */
	__le32 holder;           /* who answers */
	struct mxfs_wire_attr attr;  /* the object, after the operation; handle.ino 0: absent */
	struct mxfs_wire_attr attr2; /* the parent, after the operation; handle.ino 0: absent */
	__le64 session;              /* names one mount of the XFS by one holder; never 0 */
	__le64 stamp;                /* how many changes of metadata this session had seen when this one was done */
	__le64 committed;            /* how many of them are durable */
};

#define MXFS_REPLY_EOF 1   /* READDIR: nothing behind these entries */
#define MXFS_REPLY_EARLY 2 /* done, durable when `committed` reaches `stamp` */

/* Directory entries in READDIR's data, packed; 24 bytes and the name, each padded to 8 bytes. */
struct mxfs_wire_dirent {
	__le64 ino;
	__le64 cookie;   /* where to go on behind this entry */
	__le16 reclen;
	__le16 name_len;
	__u8 type;       /* DT_* */
	__u8 pad[3];
	/* char name[name_len], no terminating zero */
};

/* STATFS's data; 56 bytes. */
struct mxfs_wire_statfs {
	__le64 blocks;
	__le64 bfree;
	__le64 bavail;
	__le64 files;
	__le64 ffree;
	__le32 bsize;
	__le32 frsize;
	__le32 namelen;
	__le32 pad;
};

/* GETLK's data, 32 bytes: F_UNLCK in lock_type means free. */
struct mxfs_wire_lock {
	__le64 start;
	__le64 end;
	__le32 pid;
	__le32 node;
	__le32 lock_type;
	__le32 pad;
};

/*
 * MAP's data: extents in rising order without gaps, from one that has `offset` in it; all multiples of the block size, which is
 * in `value`. 32 bytes.
 */
struct mxfs_wire_extent {
	__le64 offset;
	__le64 length;
	__le64 addr;  /* in bytes from the beginning of the device; a hole has none */
	__le32 state; /* enum mxfs_extent_state */
	__le32 pad;
};
enum mxfs_extent_state {
	MXFS_EXTENT_HOLE = 0,
	MXFS_EXTENT_UNWRITTEN = 1, /* has blocks, reads as zeros until it is committed */
	MXFS_EXTENT_WRITTEN = 2,
};

/* COMMIT's data; 16 bytes each. */
struct mxfs_wire_range {
	__le64 offset;
	__le64 length;
};

/*
 * Entries in NAMES's data, without "." and "..", packed; 40 bytes and the name, each padded to 8 bytes. A name that is not there any
 * more, or whose inode cannot be read, is left out.
 */
struct mxfs_wire_name {
	struct mxfs_handle handle;
	__le64 cookie;   /* where to go on behind this entry */
	__le32 mode;     /* the type alone */
	__le32 flags;    /* MXFS_NAME_* */
	__le16 reclen;
	__le16 name_len;
	__le32 pad;
	/* char name[name_len], no terminating zero */
};
#define MXFS_NAME_BUSY 1 /* in use for writing on the holder: who does not need it leaves it alone */

/* GETATTRS's data, one for each handle, in their order; 160 bytes. */
struct mxfs_wire_brief {
	struct mxfs_wire_attr attr;     /* handle.ino 0: gone */
	struct mxfs_wire_extent extent; /* of a small regular file with data, what MAP would tell first from 0 on; length 0: nothing is told */
};

#endif /* MXFS_FSOP_H */
