/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * MXFS kernel module: what its parts know of each other.
 *
 * Shape: a VFS operation does three things: take the DLM lock, pass the gate, call the back end.
 *
 *	err = mxfs_op_begin(sbi, &MXFS_I(dir)->lock, MXFS_MODE_EX);   (lock, then gate)
 *	if (!err) {
 *		err = sbi->be->make(sbi, ...);
 *		mxfs_op_end(sbi, &MXFS_I(dir)->lock, MXFS_MODE_EX);    (gate, then lock)
 *	}
 *
 * Lock order: mxfs i_rwsem -> DLM locks by (inode, type, offset) -> gate -> lower locks. Nobody waits for a
 * DLM lock while inside the gate. Recall, release and invalidation take no i_rwsem, s_umount or mmap_lock.
 * No user page fault under a DLM lock. evict_inode and shrinkers never wait for the daemon.
 *
 * Parts and files:
 *	mxfs_main.c     module init and exit
 *	mxfs_super.c    fs_context, options, mount and unmount, role change, daemon lifecycle
 *	mxfs_netlink.c  the generic netlink family, sender thread, request ids
 *	mxfs_gate.c     the gate, the lease, the final "fenced" state
 *	mxfs_dlm.c      the lock cache
 *	mxfs_cache.c    invalidation of inodes (demote call-backs of the INODE lock)
 *	mxfs_lower.c    the internal XFS mount, .mxfs/lockstate
 *	mxfs_local.c    back end over the lower XFS
 *	mxfs_blocks.c   its block maps: where a member may read and write on the disk
 *	mxfs_remote.c   back end that sends fsops
 *	mxfs_exec.c     executor on the holder, reply cache, lock owner bookkeeping
 *	mxfs_sock.c     fsops straight to another kernel, by connections that the daemons have made
 *	mxfs_fsop.c     encoding and decoding of fsops
 *	mxfs_inode.c mxfs_dir.c mxfs_file.c mxfs_aops.c mxfs_xattr.c mxfs_flock.c   VFS operations
 *	mxfs_ahead.c    a directory's names, their locks and attributes in portions, for lookups to come
 *	mxfs_map.c      a member's block maps, and what is to be committed
 *	mxfs_direct.c   pages and O_DIRECT straight from and to the disk
 *	mxfs_aio.c      O_DIRECT that does not wait
 *	mxfs_range.c    O_DIRECT of several nodes in different parts of one file
 */
#ifndef MXFS_KERNEL_H
#define MXFS_KERNEL_H

#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/percpu-refcount.h>
#include <linux/refcount.h>
#include <linux/spinlock.h>
#include <linux/statfs.h>
#include <linux/uio.h>
#include <linux/uuid.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "../include/mxfs/abi.h"
#include "../include/mxfs/netlink.h"
#include "../include/mxfs/disk.h"
#include "../include/mxfs/fsop.h"

struct mxfs_sb_info;
struct mxfs_backend;

/* ---------------------------------------------------------------- handles and attributes (host order) */

struct mxfs_fh {
	u64 ino;
	u32 gen;
};

struct mxfs_attr {
	struct mxfs_fh fh;
	u32 mode, nlink, uid, gid; /* ids in the initial user namespace */
	dev_t rdev;
	u32 blksize, flags;	   /* MXFS_ATTR_* */
	u64 size, blocks, change;
	struct timespec64 atime, mtime, ctime, btime;
	u32 numbering;		   /* of its handle, mxfs_remote_numbering(); local: 0 */
	u32 holders;		   /* `change` counts for this holder: mxfs_remote_holders(); 0: not told */
	u64 seen;		   /* with a question that changes this directory: mxfs_attr_seen(); 0: not known */
};

/* ---------------------------------------------------------------- gate (mxfs_gate.c) */

struct mxfs_gate {
	struct percpu_ref inside;	/* one for each operation inside; dead while shut */
	wait_queue_head_t wait;		/* openings, drained, lease renewals, the end */
	atomic_t shut;			/* count of reasons why it is shut; starts at 1 */
	bool overdue;			/* the lease's end has been noticed */
	bool force;			/* a shut in progress does not wait for those inside any longer */
	atomic64_t lease_until;		/* CLOCK_BOOTTIME ms; 0: none yet */
	u64 lease_until_ns;		/* the same, a tick earlier: for the clock of the last tick */
	atomic_t fenced;		/* 1: final */
	struct mutex mutex;		/* shut against open */
	struct delayed_work zap;	/* at the lease's end: unmaps what user space sees */
	struct work_struct fence_work;
	char reason[128];
};

int mxfs_gate_init(struct mxfs_gate *gate);
void mxfs_gate_destroy(struct mxfs_gate *gate);
/* Waits, killable, until the gate is open and the lease is valid. 0, -EIO (fenced), -ERESTARTSYS. */
int mxfs_gate_enter(struct mxfs_sb_info *sbi);
/* The same without waiting for anything: -EAGAIN. */
int mxfs_gate_try_enter(struct mxfs_sb_info *sbi);
/* As enter, but waits uninterruptibly (write-back, recall); still ends with -EIO when fenced. */
int mxfs_gate_enter_wait(struct mxfs_sb_info *sbi);
void mxfs_gate_leave(struct mxfs_sb_info *sbi);
/* Shut: returns when everybody inside has left (force: at once). Nestable; each shut has its open. Sleeps. */
int mxfs_gate_shut(struct mxfs_sb_info *sbi, const char *reason, bool force);
void mxfs_gate_open(struct mxfs_sb_info *sbi);
/* Lets a shut that waits return at once. */
void mxfs_gate_force(struct mxfs_sb_info *sbi);
void mxfs_gate_lease(struct mxfs_sb_info *sbi, u64 until_ms);
bool mxfs_gate_lease_valid(struct mxfs_sb_info *sbi);
/* Final: wakes everybody with -EIO, zaps mappings, fails pending lock requests and fsops. Process context. */
void mxfs_fence(struct mxfs_sb_info *sbi, const char *why);
static inline bool mxfs_gate_fenced(struct mxfs_gate *gate)
{
	return atomic_read(&gate->fenced) != 0;
}

/* ---------------------------------------------------------------- lock cache (mxfs_dlm.c) */

struct mxfs_lock;

struct mxfs_lock_ops {
	/*
	 * Before a cached mode is lowered from `from` to `to`, when no user above `to` is left: write out,
	 * invalidate (to < PR), force the holder's log if anything changed under EX (mxfs_lock_dirtied).
	 * Runs in the demote workqueue, outside the gate; may call mxfs_gate_enter_wait and the back end, and
	 * may take OPEN locks; takes no i_rwsem, s_umount, mmap_lock. The owner object is pinned (see get/put).
	 */
	void (*demote)(struct mxfs_lock *lk, int from, int to);
	/* Pins / unpins the object around asynchronous work: igrab / iput for inodes. get: false = going away. */
	bool (*get)(struct mxfs_lock *lk);
	void (*put)(struct mxfs_lock *lk);
	/* Whether an unused lock may go when the cache is too large: nothing needs it soon. No function: yes. No sleep. */
	bool (*idle)(struct mxfs_lock *lk);
	/* Whether nothing has to be written before it goes from EX to PR but the log. No function: no. Must not sleep. */
	bool (*clean)(struct mxfs_lock *lk);
	/* Whether it could go altogether at the cost of one answer, should it be wanted again. Wherever `clean` is. Must not sleep. */
	bool (*bare)(struct mxfs_lock *lk);
	/*
	 * How long, in jiffies, a use that has just ended may be followed by another one in spite of a BAST, because
	 * the two are parts of one thing (a fault and its page_mkwrite). 0, or no function: not at all. Must not sleep.
	 */
	unsigned long (*hold)(struct mxfs_lock *lk);
};

/*
 * One cached lock. Embedded in its owner (inode: INODE and OPEN; super: RENAME).
 * `mode` is what the cluster granted; users hold it in modes at most that. While a BAST is pending new
 * users of a mode above the target wait, except for a short time after a grant, so that it is used at least
 * once (no livelock).
 */
struct mxfs_lock {
	struct mxfs_sb_info *sbi;
	const struct mxfs_lock_ops *ops;
	void *owner;
	struct hlist_node hash;		/* by lock id */
	struct list_head all;		/* of the mount, for dumps */
	struct list_head send;		/* queued for the daemon */
	u64 lock_id;
	u64 ino, offset;
	u32 type;
	u32 inode_gen;			/* the inode's generation: part of what is locked, since inode numbers come again */
	struct mxfs_lock *cover;	/* MXFS_LF_COVERED: whose EX stands for this lock, too; under cover_spin */
	struct list_head cover_list;	/* in cover's `covered` or `telling` */
	struct list_head covered;	/* locks that this one's EX stands for, */
	struct list_head telling;	/* and those that are being asked for now; under cover_spin */
	unsigned int telling_count;
	u64 ahead_of;			/* the directory with a portion of which it came, or whose newborn it was; 0 once it has been used */
	struct list_head ahead_list;	/* of the mount, perhaps without being one any more; under ahead_spin */
	bool sync_all;			/* something was changed under a covered lock that is gone: a sync of all, not of this inode */
	bool dead;			/* the inode is gone for good */
	bool given;			/* the trimming of the cache has asked for it back */
	bool recent;			/* used since the trimming of the cache came by */
	spinlock_t spin;
	wait_queue_head_t wait;
	u32 seq;			/* of the outstanding request */
	u8 mode;			/* granted by the cluster */
	u8 want;			/* asked for; NL: nothing outstanding */
	u8 bast;			/* the mode somebody needs; NL: nobody */
	u8 flags;
	int users[MXFS_MODE_COUNT];
	u16 waiters[MXFS_MODE_COUNT];	/* callers inside mxfs_lock_get's slow path, by mode */
	u32 credits;			/* waiters that a pending BAST has to let use the lock once */
	u8 graces;			/* how often more that may be after this grant */
	u32 deny_seq;			/* the request that `error` denied */
	u32 stamp;			/* number of the last dump that listed it */
	u64 gen;			/* rises at each step to or from PR and more, and from CW down: facts cached under an older gen are void */
	bool dirtied;			/* something was changed under EX since it was granted or last made durable */
	int error;			/* of the last denial */
	unsigned long granted_at;	/* jiffies */
	unsigned long hold_until;	/* jiffies: users are let in until then in spite of a BAST */
	struct work_struct work;	/* demote; the owner is pinned while it is queued */
};

#define MXFS_LOCK_TRY 1	   /* NOQUEUE: -EAGAIN instead of waiting for other nodes */
#define MXFS_LOCK_CACHED 2 /* only from the cache: -EAGAIN instead of any message */
#define MXFS_LOCK_NOINTR 4 /* not killable: recall and write-back contexts */

/* `lk` is zeroed memory. */
void mxfs_lock_init(struct mxfs_sb_info *sbi, struct mxfs_lock *lk, const struct mxfs_lock_ops *ops, void *owner,
		    u32 type, u64 ino, u64 offset);
/* Forgets the lock; releases it at the daemon asynchronously. No users may be left. Never sleeps for the daemon. */
void mxfs_lock_destroy(struct mxfs_lock *lk);
/* 0, -EAGAIN, -ERESTARTSYS, -EIO (fenced), -EDEADLK, -ETIMEDOUT never by itself. Not inside the gate. */
int mxfs_lock_get(struct mxfs_lock *lk, int mode, unsigned int flags);
void mxfs_lock_put(struct mxfs_lock *lk, int mode);
/*
 * The lock of an inode that was just made under `parent`, which the caller holds in EX: as mxfs_lock_get() in `mode`, without
 * asking anybody, since nobody else can reach the inode. False: not now, ask for it.
 */
bool mxfs_lock_get_born(struct mxfs_lock *lk, struct mxfs_lock *parent, int mode);
/*
 * Its inode was lost before it was durable, and has been made again with another number: nobody but this node knows it. The lock stays
 * what it is here; tell_moved has the cluster told of it under the new number, and before any lock that is known is given up it is.
 */
void mxfs_lock_rename(struct mxfs_lock *lk, u64 ino, u32 inode_gen);
void mxfs_dlm_tell_moved(struct mxfs_sb_info *sbi);
/* Its inode has a name under `parent` now instead; the caller holds both parents in EX. */
void mxfs_lock_moved(struct mxfs_lock *lk, struct mxfs_lock *parent);
/*
 * Before the inode can be reached by another way than through the lock that covers its own: makes its lock known to the
 * cluster. The caller holds it. 0, -ERESTARTSYS, -ENOLCK, -EIO.
 */
int mxfs_lock_tell(struct mxfs_lock *lk);
/*
 * What was changed under `lk` need not be durable yet when it is given up: others can reach it only behind another lock
 * (the cover), or there are none (solo), and who gives that up sees to it.
 */
bool mxfs_lock_defer_clean(struct mxfs_lock *lk);
/*
 * Asks for a lock without waiting: the get that follows finds the answer, or waits for it. Not for one that is held already.
 * of: 0, or the inode number of the directory for whose lookups it is asked: then nobody may ever use it, and when another node wants one
 * such lock, all that came for that directory and have not been used are given up together.
 */
void mxfs_lock_ask_ahead(struct mxfs_lock *lk, int mode, u64 of);
/* Sends what was asked ahead. */
void mxfs_lock_ask_flush(struct mxfs_sb_info *sbi);
/* Waits until it is answered, killable, to `deadline` (jiffies). 0, -ERESTARTSYS, -ETIME: it stays asked for. */
int mxfs_lock_ask_wait(struct mxfs_lock *lk, unsigned long deadline);
/* Whether asking ahead for that many locks makes sense: there is another node, and room in the cache. A hint. */
bool mxfs_lock_ask_room(struct mxfs_sb_info *sbi, unsigned int count);
/* True while `mode` is cached, no BAST is pending and the lease is valid. A hint without get; RCU-safe. */
bool mxfs_lock_is_cached(struct mxfs_lock *lk, int mode);
static inline u64 mxfs_lock_gen(struct mxfs_lock *lk)
{
	return READ_ONCE(lk->gen);
}
static inline void mxfs_lock_dirtied(struct mxfs_lock *lk)
{
	WRITE_ONCE(lk->dirtied, true);
}
/* After a use that took no lock: it shall not be the first to go. */
static inline void mxfs_lock_used(struct mxfs_lock *lk)
{
	if (!READ_ONCE(lk->recent))
		WRITE_ONCE(lk->recent, true);
	if (unlikely(READ_ONCE(lk->ahead_of)))
		WRITE_ONCE(lk->ahead_of, 0);
}
/* Give the lock up to `mode` now, as if a BAST had come; waits until done (MXFS_LOCK_NOINTR honoured). */
int mxfs_lock_drop(struct mxfs_lock *lk, int mode, unsigned int flags);

/* Lock then gate; on error nothing is held. flags: MXFS_LOCK_*. */
int mxfs_op_begin(struct mxfs_sb_info *sbi, struct mxfs_lock *lk, int mode);
void mxfs_op_end(struct mxfs_sb_info *sbi, struct mxfs_lock *lk, int mode);
/*
 * Several locks, sorted by (ino, type, offset), duplicates merged to the stronger mode: reqs is reordered, merged entries
 * get lk = NULL. Entries whose lk is NULL are skipped.
 */
struct mxfs_lock_req {
	struct mxfs_lock *lk;
	int mode;
};
int mxfs_op_begin_many(struct mxfs_sb_info *sbi, struct mxfs_lock_req *reqs, int count);
void mxfs_op_end_many(struct mxfs_sb_info *sbi, struct mxfs_lock_req *reqs, int count);

/* Per mount; private to mxfs_dlm.c. */
struct mxfs_lockspace;
int mxfs_dlm_init(struct mxfs_sb_info *sbi);
void mxfs_dlm_destroy(struct mxfs_sb_info *sbi);
/* From netlink (queued by it, in order): entries in host memory, little endian. */
void mxfs_dlm_receive(struct mxfs_sb_info *sbi, int cmd, const struct mxfs_lock_entry *entries, int count);
/* Freezes, sends LOCK_DUMP messages. solo: tells nothing, the next view has no other node. */
int mxfs_dlm_dump(struct mxfs_sb_info *sbi, u64 epoch, bool solo);
void mxfs_dlm_view(struct mxfs_sb_info *sbi, u64 epoch, bool solo); /* resume */
void mxfs_dlm_ready(struct mxfs_sb_info *sbi, u64 epoch); /* resume, unless the view is still to come */
/* "name value\n" lines for the status; returns the length. */
int mxfs_dlm_describe(struct mxfs_sb_info *sbi, char *text, int size);
void mxfs_dlm_fence(struct mxfs_sb_info *sbi);		/* fail everything */
/* Drops every lock to NL with write-out (unmount). */
int mxfs_dlm_drop_all(struct mxfs_sb_info *sbi);
void mxfs_dlm_freeze(struct mxfs_sb_info *sbi); /* the daemon is gone: hold messages back until the next view */
/* Unmount begins: no recall pins an inode from now on (evict gives the locks up); running ones are waited for. */
void mxfs_dlm_stop(struct mxfs_sb_info *sbi);

/* ---------------------------------------------------------------- netlink (mxfs_netlink.c) */

struct sk_buff;
int mxfs_netlink_init(void);
void mxfs_netlink_exit(void);
struct mxfs_nl; /* per mount */
int mxfs_nl_mount_init(struct mxfs_sb_info *sbi);
void mxfs_nl_mount_destroy(struct mxfs_sb_info *sbi);
/* Build: mxfs_nl_new puts the header and MOUNT_ID; nla_put* the rest; mxfs_nl_send queues it (never lost while the daemon
 * lives; when it is detached the message is dropped: what matters is sent again after the dump). Consumes skb. */
struct sk_buff *mxfs_nl_new(struct mxfs_sb_info *sbi, int cmd, size_t payload, gfp_t gfp);
void mxfs_nl_send(struct mxfs_sb_info *sbi, struct sk_buff *skb);
void mxfs_nl_done(struct mxfs_sb_info *sbi, u64 req_id, int error, const char *message);
int mxfs_nl_send_locks(struct mxfs_sb_info *sbi, int cmd, const struct mxfs_lock_entry *entries, int count, gfp_t gfp);
u32 mxfs_nl_port(struct mxfs_sb_info *sbi); /* 0: no daemon is bound */
void mxfs_nl_unbind(struct mxfs_sb_info *sbi);
void mxfs_nl_flush(struct mxfs_sb_info *sbi); /* everything that the daemon has sent so far has been worked on */
/* One part or all of an fsop payload, split as needed. node: 0 to the holder. */
int mxfs_nl_send_fsop(struct mxfs_sb_info *sbi, int cmd, u32 node, u64 id, const void *payload, u32 len, gfp_t gfp);

/* ---------------------------------------------------------------- lower XFS (mxfs_lower.c) */

struct mxfs_lower; /* private */
struct mxfs_lockstate_info {
	u64 ino, size;
	u32 gen;
	bool created;
};
/* Mounts the XFS internally, read-write; makes sure of .mxfs with lockstate, orphans, pool. */
int mxfs_lower_mount(struct mxfs_sb_info *sbi, u64 lockstate_size, struct mxfs_lockstate_info *info, const char **why);
/* Unmounts it for real: returns when the block device can be claimed exclusively. */
int mxfs_lower_unmount(struct mxfs_sb_info *sbi);
/* Log force: everything done before is durable. datawait: dirty file data of the lower XFS first. */
int mxfs_lower_sync(struct mxfs_sb_info *sbi);
/* Log force alone: what was changed in metadata is durable. One for many callers. */
int mxfs_lower_commit(struct mxfs_sb_info *sbi);
/* At the end of a mount as holder: removes what was left parked, as far as nobody has it open. Not inside the gate. */
void mxfs_lower_sweep_orphans(struct mxfs_sb_info *sbi);
/* mxfs_blocks.c: the lower page cache of a file is written out and empty: members may change the data on the disk. */
int mxfs_lower_pages_drop(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh);
/* O_DIRECT on the holder: bytes or -errno. */
ssize_t mxfs_local_direct(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, struct iov_iter *iter, bool write,
			  struct mxfs_attr *attr);
void mxfs_lower_shutdown(struct mxfs_sb_info *sbi); /* XFS_IOC_GOINGDOWN, no log flush */

/* ---------------------------------------------------------------- back ends (mxfs_local.c, mxfs_remote.c) */

struct mxfs_dirent_sink { /* filled with struct mxfs_wire_dirent */
	void *buf;
	size_t size, used;
	u64 next; /* cookie behind the last entry */
	bool eof;
};

struct mxfs_setattr {
	unsigned int valid; /* ATTR_MODE UID GID SIZE ATIME MTIME CTIME ATIME_SET MTIME_SET KILL_SUID KILL_SGID FORCE */
	umode_t mode;
	kuid_t uid;
	kgid_t gid;
	u64 size;
	struct timespec64 atime, mtime;
	bool durable; /* on a member: when it is answered, not later */
};

struct mxfs_lk { /* one flock or fcntl operation */
	bool flock, wait;
	bool reclaim; /* had from an earlier holder: not inside the gate, does not wait */
	int type; /* F_RDLCK F_WRLCK F_UNLCK */
	u64 owner, start, end;
	u32 pid, node;
};

/*
 * Called inside the gate with the DLM locks held, as the calling process (the executor has taken its identity).
 * Return 0 or -errno. `attr` (object) and `dattr` (parent) may be NULL. Names are not zero terminated. ".mxfs" in the root is
 * hidden and untouchable: -ENOENT, for making -EPERM.
 */
struct mxfs_backend {
	const char *name;
	/*
	 * Everything answered to this node is durable afterwards: for who has given nothing but metadata to do. NULL: only syncfs and
	 * fsync do that.
	 */
	int (*settle)(struct mxfs_sb_info *sbi);
	int (*getroot)(struct mxfs_sb_info *sbi, struct mxfs_attr *attr);
	int (*lookup)(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len,
		      struct mxfs_attr *attr);
	int (*getattr)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, struct mxfs_attr *attr);
	int (*setattr)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_setattr *set,
		       struct mxfs_attr *attr);
	int (*make)(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len, umode_t mode,
		    dev_t rdev, bool excl, struct mxfs_attr *attr, struct mxfs_attr *dattr);
	int (*symlink)(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len,
		       const char *target, struct mxfs_attr *attr, struct mxfs_attr *dattr);
	int (*link)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_fh *dir, const char *name,
		    u32 len, struct mxfs_attr *attr, struct mxfs_attr *dattr);
	int (*unlink)(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len,
		      u32 flags, struct mxfs_attr *attr, struct mxfs_attr *dattr); /* MXFS_UNLINK_* */
	int (*rename)(struct mxfs_sb_info *sbi, const struct mxfs_fh *odir, const char *oname, u32 olen,
		      const struct mxfs_fh *ndir, const char *nname, u32 nlen, u32 flags, struct mxfs_attr *odattr,
		      struct mxfs_attr *ndattr);
	int (*readlink)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, char *buf, u32 size); /* length */
	int (*readdir)(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, u64 cookie, struct mxfs_dirent_sink *sink);
	/* The same with struct mxfs_wire_name, at most `max` of them, for which the sink has MXFS_NAMES_BYTES each; as the kernel. */
	int (*names)(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, u64 cookie, u32 max, struct mxfs_dirent_sink *sink);
	/*
	 * Attributes of up to MXFS_NAMES_MAX objects, with where small files are on the disk; as the kernel. *block: the block size
	 * of the extents.
	 */
	int (*getattrs)(struct mxfs_sb_info *sbi, const struct mxfs_handle *handles, u32 count, struct mxfs_wire_brief *briefs,
			u32 *block);
	/* At most MXFS_FSOP_DATA_MAX bytes each. Bytes done (short: end of file) or -errno. */
	ssize_t (*read)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, struct iov_iter *to);
	/*
	 * kernel: write-back, no permission or set-id handling. mtime: what it is afterwards, NULL: the time of the write. *attr: after. On
	 * a member data, size and time are on the disk when it is answered, as after fsync.
	 */
	ssize_t (*write)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, struct iov_iter *from,
			 bool kernel, const struct timespec64 *mtime, struct mxfs_attr *attr);
	int (*fsync)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, bool datasync);
	/* Everything acknowledged before is durable after: dirty data that came by write() included. */
	int (*syncfs)(struct mxfs_sb_info *sbi);
	int (*statfs)(struct mxfs_sb_info *sbi, struct kstatfs *st);
	ssize_t (*getxattr)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const char *name, void *buf, size_t size);
	int (*setxattr)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const char *name, const void *value,
			size_t size, int flags, struct mxfs_attr *attr);
	ssize_t (*listxattr)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, char *buf, size_t size);
	int (*removexattr)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const char *name, struct mxfs_attr *attr);
	int (*fallocate)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, int mode, u64 pos, u64 len,
			 struct mxfs_attr *attr);
	/*
	 * Where the blocks of [pos, pos + len) are: at most `*count` extents from one that has pos in it, in rising order without
	 * gaps; *block: the block size. MXFS_MAP_WRITE gives blocks to holes, for `need` bytes at least (or -ENOSPC, -EDQUOT): the
	 * allocation is durable when this returns on a member. -ENXIO: this file is not to be mapped.
	 */
	int (*map)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, u64 len, u64 need, u32 flags,
		   struct mxfs_wire_extent *extents, u32 *count, u32 *block);
	/* Written by map: the ranges are valid data from now on, the size is at least `size`, mtime as told. */
	int (*commit)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_wire_range *ranges, u32 count,
		      u64 size, const struct timespec64 *mtime, struct mxfs_attr *attr);
	/* MXFS_COPY_*: bytes done or -errno. `attr`: of `to`. */
	ssize_t (*copy)(struct mxfs_sb_info *sbi, const struct mxfs_fh *from, u64 from_pos, const struct mxfs_fh *to,
			u64 to_pos, u64 len, u32 flags, struct mxfs_attr *attr);
	loff_t (*seek)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, int whence);
	int (*reap)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh);
	/* flock and fcntl, decided on the holder. wait: blocks killably (outside the gate: the back end leaves it
	 * around the wait and enters again). */
	int (*setlk)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_lk *lk);
	int (*getlk)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, struct mxfs_lk *lk);
	/* An mxfs inode on this node is evicted: forget what is cached for it. Never sleeps for the daemon. */
	void (*forget)(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh);
};

extern const struct mxfs_backend mxfs_local_backend;
extern const struct mxfs_backend mxfs_remote_backend;

int mxfs_remote_init(struct mxfs_sb_info *sbi);
void mxfs_remote_destroy(struct mxfs_sb_info *sbi);
/* From netlink: a part of a reply. */
void mxfs_remote_receive(struct mxfs_sb_info *sbi, u64 id, u32 offset, u32 total, const void *data, u32 len);
/* After follow, at the end of every view. all: what is pending is sent again. Opens the gate that hold_gate has shut, in time. */
void mxfs_remote_resend(struct mxfs_sb_info *sbi, bool all);
/* Everything answered to this node until now is durable afterwards. Inside the gate. 0, or -EIO (fenced). */
int mxfs_remote_settle(struct mxfs_sb_info *sbi);
/*
 * Who is asked from now on. True: another one than before, or a later incarnation of it, which knows nothing of what that one was
 * asked: what is pending is to be sent again.
 */
bool mxfs_remote_follow(struct mxfs_sb_info *sbi, u32 holder, u32 incarnation);
/*
 * In the handler of the message that names another holder: whether there is something to be done again before the gate may open. Then
 * it is shut once more here, and opened when that is done.
 */
void mxfs_remote_hold_gate(struct mxfs_sb_info *sbi, u32 holder, u32 incarnation);
/* From hold_gate until that is done: a lock may not go before what was answered under it is there again. */
bool mxfs_remote_redoing(struct mxfs_sb_info *sbi);
/* The gate is shut for a hand-over: returns when nothing is kept, or the gate is forced. */
void mxfs_remote_drain(struct mxfs_sb_info *sbi);
/*
 * An inode that this node made, and that was lost and made again with another number: what it is called now. For mxfs_inodes_moved().
 * numbering: rises when that has happened; handles that were asked for before may mean another inode.
 */
bool mxfs_remote_translate(struct mxfs_sb_info *sbi, struct mxfs_fh *fh);
u32 mxfs_remote_numbering(struct mxfs_sb_info *sbi);
/* How many holders this node has followed: versions that different ones have told do not compare. */
u32 mxfs_remote_holders(struct mxfs_sb_info *sbi);
void mxfs_remote_fail(struct mxfs_sb_info *sbi, int error); /* every waiting fsop ends */

/* What is pending may have been lost on its way: it is sent again, and again for a while. */
void mxfs_remote_in_doubt(struct mxfs_sb_info *sbi);

/* mxfs_sock.c. add: takes the connection over. send: 0, or not sent (it goes by the daemons then). */
struct mxfs_socks;
int mxfs_socks_init(struct mxfs_sb_info *sbi);
void mxfs_socks_stop(struct mxfs_sb_info *sbi);
void mxfs_socks_destroy(struct mxfs_sb_info *sbi);
int mxfs_sock_add(struct mxfs_sb_info *sbi, u32 node, u32 incarnation, u32 fd);
void mxfs_sock_drop(struct mxfs_sb_info *sbi, u32 node, u32 incarnation);
int mxfs_sock_send(struct mxfs_sb_info *sbi, u32 node, u32 kind, u64 id, const void *payload, u32 len);

extern unsigned int mxfs_commit_ms; /* module parameter commit_ms */

int mxfs_exec_init(struct mxfs_sb_info *sbi);
void mxfs_exec_destroy(struct mxfs_sb_info *sbi);
/* From netlink: a part of a request of `node`. Bounded: -ENOBUFS beyond the limit (the sender is told RETRY). */
int mxfs_exec_receive(struct mxfs_sb_info *sbi, u32 node, u64 id, u32 offset, u32 total, const void *data, u32 len);
/* Nothing is begun for the node any more; gone: and what had begun is over. settle_gone: of all that are gone, and durable. */
void mxfs_exec_node_stop(struct mxfs_sb_info *sbi, u32 node, u32 incarnation);
void mxfs_exec_node_gone(struct mxfs_sb_info *sbi, u32 node, u32 incarnation);
void mxfs_exec_node_back(struct mxfs_sb_info *sbi, u32 node, u32 incarnation);
void mxfs_exec_settle_gone(struct mxfs_sb_info *sbi);
/* A member that has become the holder does what it had kept; `reply` is filled whatever is returned. Under role_mutex. */
int mxfs_exec_replay_own(struct mxfs_sb_info *sbi, const void *payload, u32 len, struct mxfs_fsop_reply *reply);
/* Before the lower XFS is unmounted: waiting SETLKs are answered RETRY, running ones finish. */
void mxfs_exec_quiesce(struct mxfs_sb_info *sbi);

/* ---------------------------------------------------------------- inodes (mxfs_inode.c, mxfs_cache.c) */

struct mxfs_inode {
	struct inode vfs_inode;
	struct mxfs_fh fh;
	struct mxfs_lock lock;	/* MXFS_RES_INODE */
	struct mxfs_lock open;	/* MXFS_RES_OPEN; taken only when the INODE lock is lost while files are open */
	u64 attr_gen;		/* lock.gen at which the attributes were fetched; 0: never */
	atomic_t open_count;	/* files open on this node */
	struct mutex lazy;	/* members that are written rarely */
	bool open_held, parked;
	u32 lower_flags;	/* MXFS_ATTR_* */
	u32 change_of;		/* mxfs_remote_holders() of `change`; 0: not known */
	u64 change;		/* i_version on the lower XFS, as the attributes had it */
	struct timespec64 btime;
	void *private;		/* mxfs_file.c / mxfs_aops.c */
};

static inline struct mxfs_inode *MXFS_I(struct inode *inode)
{
	return container_of(inode, struct mxfs_inode, vfs_inode);
}

int mxfs_inode_cache_init(void);
void mxfs_inode_cache_exit(void);
struct inode *mxfs_alloc_inode(struct super_block *sb);
void mxfs_free_inode(struct inode *inode);
void mxfs_evict_inode(struct inode *inode);
int mxfs_write_inode(struct inode *inode, struct writeback_control *wbc); /* times that were kept here */
struct inode *mxfs_iget(struct super_block *sb, const struct mxfs_attr *attr);
/* Gives those of the inodes in memory that have been made again their new numbers (mxfs_remote_translate). */
void mxfs_inodes_moved(struct mxfs_sb_info *sbi);
extern const struct super_operations mxfs_super_ops; /* mxfs_super.c; uses the ones above and mxfs_statfs, mxfs_sync_fs */
extern const struct dentry_operations mxfs_dentry_ops;	  /* mxfs_dir.c */
extern const struct xattr_handler *mxfs_xattr_handlers[]; /* mxfs_xattr.c */
int mxfs_statfs(struct dentry *dentry, struct kstatfs *st);
int mxfs_sync_fs(struct super_block *sb, int wait);
extern const struct mxfs_lock_ops mxfs_inode_lock_ops; /* mxfs_cache.c */
extern const struct mxfs_lock_ops mxfs_open_lock_ops;
/* Drops attributes, names, pages of one inode (0: of all) without giving up locks. */
void mxfs_cache_invalidate(struct mxfs_sb_info *sbi, u64 ino);
int mxfs_cache_init(void);
void mxfs_cache_exit(void);

/* ---------------------------------------------------------------- the mount (mxfs_super.c) */

struct mxfs_options {
	char *device, *iface, *multicast, *broadcast, *peers, *config, *encrypt, *persist;
	unsigned int port, fence, heartbeat_ms, renew_ms, lease_ms, node_timeout_ms, lock_wait_ms, bast_ms, startup_ms;
	unsigned int drain_ms, lock_records, profile;
};

struct mxfs_sb_info {
	struct super_block *sb;
	struct list_head list;	/* of all mounts */
	refcount_t ref;		/* netlink handlers */
	struct completion unreferenced;
	u32 mount_id;
	dev_t dev;
	uuid_t uuid;		/* of the XFS */
	u64 volume;		/* FNV-1a-64 of uuid */
	struct mxfs_options opt;
	char mountpoint[256];

	u32 node, incarnation;
	u32 role, holder;	/* enum mxfs_role; node id */
	u32 locks_at, locks_at_incarnation; /* the holder that knows this node's flock and fcntl locks */
	u64 epoch;
	u32 kstate;
	bool stopping;		/* unmount, or a mount that failed, is under way */
	bool daemon_shut;	/* the gate is shut by the daemon's wish (or has never been opened); under role_mutex */
	bool recovery_shut;	/* ... between RECOVERY_START and RECOVERY_DONE */
	struct mutex role_mutex;
	struct mxfs_lockstate_info lockstate;
	struct mxfs_gate gate;
	const struct mxfs_backend *be; /* swapped under a shut gate */

	struct block_device *bdev;     /* claimed exclusively while this node is a member */
	u64 disk_bytes;		       /* its size when it was claimed last; stays: answers come when it may be let go again */
	/* mxfs_map.c: one reference for each use of the disk by a map; dead while the disk is not to be used */
	struct percpu_ref io;
	wait_queue_head_t io_wait;
	atomic64_t map_epoch;	       /* maps of an earlier one are void */
	unsigned long direct_off;      /* jiffies until which data goes through the holder, after an error of the disk; 0: never */
	bool direct_told, block_told;  /* said once */
	struct vfsmount *lower_mnt;    /* while this node is the holder */
	struct mxfs_lower *lower;
	struct mxfs_lockspace *ls;
	struct mxfs_nl *nl;
	struct mxfs_remote *remote;
	struct mxfs_exec *exec;
	struct mxfs_socks *socks;
	struct mxfs_daemon *daemon;    /* mxfs_super.c */
	unsigned long cleaned_at;	/* jiffies of the last give-up that made changes durable */
	atomic_t cleaned_run;		/* how many of them came in quick succession */
	atomic_t ahead_names;		/* mxfs_ahead.c: names kept for lookups to come */
	bool ahead_lucky;		/* the last portion had what was looked for */
	struct mxfs_lock rename_lock;  /* MXFS_RES_SUPER, offset MXFS_SUPER_RENAME */
	u64 __percpu *counters;	       /* by enum mxfs_counter */
};

static inline struct mxfs_sb_info *MXFS_SB(struct super_block *sb)
{
	return sb->s_fs_info;
}

enum mxfs_counter {
	MXFS_COUNT_LOCK_HIT,	/* lock served from the cache */
	MXFS_COUNT_LOCK_ASK,	/* request or up-conversion sent */
	MXFS_COUNT_BAST,
	MXFS_COUNT_DEMOTE,
	MXFS_COUNT_FSOP_SENT,
	MXFS_COUNT_FSOP_RESENT,
	MXFS_COUNT_FSOP_EXECUTED,
	MXFS_COUNT_FSOP_REPLAYED,
	MXFS_COUNT_FSOP_EARLY,	/* executed for a member and answered before the log was forced */
	MXFS_COUNT_SOCK_OUT,	/* fsops and answers that went straight to another kernel, */
	MXFS_COUNT_SOCK_IN,	/* and that came so */
	MXFS_COUNT_COMMIT_ASK,	/* asked the holder to force it */
	MXFS_COUNT_REDONE,	/* answered early, lost with the holder, done again by the next one */
	MXFS_COUNT_GATE_WAIT,
	MXFS_COUNT_LEASE_WAIT,
	MXFS_COUNT_DAEMON_STARTS,
	MXFS_COUNT_NL_IN,
	MXFS_COUNT_NL_OUT,
	MXFS_COUNT_REVALIDATE_HIT,
	MXFS_COUNT_REVALIDATE_MISS,
	MXFS_COUNT_INVALIDATE,
	MXFS_COUNT_SOLO_GRANT,	  /* locks granted here, since there is no other node */
	MXFS_COUNT_COVERED,	  /* newborns whose lock was not asked for */
	MXFS_COUNT_COVER_TOLD,	  /* covered locks asked for after all */
	MXFS_COUNT_COVER_FULL,	  /* newborns that found no room under the bound */
	MXFS_COUNT_ASK_AHEAD,	  /* requests sent together with another one of the same operation */
	MXFS_COUNT_LOCK_BATCH,	  /* messages with requests, conversions or releases */
	MXFS_COUNT_LOCK_ITEM,	  /* requests, conversions and releases in them */
	MXFS_COUNT_CACHE_EVICTED, /* unused locks given up because there were too many, or memory was short */
	MXFS_COUNT_MAP_ASK,
	MXFS_COUNT_MAP_COMMIT,
	MXFS_COUNT_DISK_READ,	/* 4 KiB pages, or direct I/O operations, straight from the disk */
	MXFS_COUNT_DISK_WRITE,
	MXFS_COUNT_HOLDER_READ,	/* the same through the holder */
	MXFS_COUNT_HOLDER_WRITE,
	MXFS_COUNT_DISK_ERROR,	/* errors of the disk, after which the holder was asked */
	MXFS_COUNT_RANGE_IO,	/* rounds of direct I/O under EXTENT locks */
	MXFS_COUNT_AIO,		/* direct I/O that the caller did not wait for */
	MXFS_COUNT_RANGE_REFUSED, /* direct I/O that took the whole file after all */
	MXFS_COUNT_AHEAD_FETCH,	/* portions of a directory fetched for lookups to come */
	MXFS_COUNT_AHEAD_NAME,	/* lookups that such a portion answered */
	MXFS_COUNT_AHEAD_ATTR,	/* inodes whose attributes came with one, under their locks */
	MXFS_COUNT_AHEAD_MAP,	/* files whose first extent came with them */
	MXFS_COUNT_AHEAD_GIVEN,	/* locks that had come ahead and were given up unused, since another one of the directory was wanted elsewhere */
	MXFS_COUNT_COVER_LOWERED, /* covered locks told as PR, since who wants the directory will want to read them */
	MXFS_COUNT_COVER_DROPPED, /* and those given up instead, never told */
	MXFS_COUNT_MAX,
};
extern const char *const mxfs_counter_names[MXFS_COUNT_MAX]; /* mxfs_main.c */
static inline void mxfs_count_add(struct mxfs_sb_info *sbi, enum mxfs_counter which, u64 more)
{
	this_cpu_add(sbi->counters[which], more);
}
static inline void mxfs_count(struct mxfs_sb_info *sbi, enum mxfs_counter which)
{
	mxfs_count_add(sbi, which, 1);
}

/* Mounts by id, referenced. */
struct mxfs_sb_info *mxfs_mount_find(u32 mount_id);
void mxfs_mount_put(struct mxfs_sb_info *sbi);
/* Called by netlink, queued on the mount's ordered workqueue, never in the handler itself. */
void mxfs_super_role_change(struct mxfs_sb_info *sbi, u64 req_id, u32 role, u32 node, u32 incarnation, u32 holder,
			    u64 epoch, u64 lockstate_size);
/* incarnation: here and in mxfs_super_view the holder's. */
void mxfs_super_daemon_ready(struct mxfs_sb_info *sbi, int error, const char *message, u32 role, u64 epoch, u32 holder,
			     u32 incarnation, u64 lease_until);
void mxfs_super_gate(struct mxfs_sb_info *sbi, u64 req_id, bool open, const char *reason, bool force);
void mxfs_super_recovery(struct mxfs_sb_info *sbi, bool start, u32 node);
/* In the handler of ATTACH, as the daemon: 0 or -errno. */
int mxfs_super_daemon_attached(struct mxfs_sb_info *sbi);
u32 mxfs_super_daemon_pid(struct mxfs_sb_info *sbi);
void mxfs_super_daemon_gone(struct mxfs_sb_info *sbi); /* any context */
/* The mount with the lowest id above `after`, referenced, or NULL. */
struct mxfs_sb_info *mxfs_mount_next(u32 after);
/* No renewal for so long behind the lease's end means a daemon that hangs. */
unsigned int mxfs_super_patience_ms(struct mxfs_sb_info *sbi);
void mxfs_super_daemon_stuck(struct mxfs_sb_info *sbi);
void mxfs_super_unmount_done(struct mxfs_sb_info *sbi, int error);
void mxfs_super_view(struct mxfs_sb_info *sbi, u64 epoch, u32 holder, u32 incarnation, bool resend, bool solo);

/* mxfs_map.c: use of the disk by maps. stop: nobody uses it any more when this returns, maps are void; start: again. */
int mxfs_maps_init(struct mxfs_sb_info *sbi);
void mxfs_maps_destroy(struct mxfs_sb_info *sbi);
void mxfs_maps_start(struct mxfs_sb_info *sbi);
void mxfs_maps_stop(struct mxfs_sb_info *sbi);
int mxfs_aio_init(void);
void mxfs_aio_exit(void);
int mxfs_direct_init(void);
void mxfs_direct_exit(void);

/* mxfs_flock.c: tells a new holder what locks this node's processes have. Before the gates are open again. */
void mxfs_flock_reclaim(struct mxfs_sb_info *sbi);
/* `count` locks with `reclaim` set, to the local table or to the holder; how many were refused or not answered in time. */
int mxfs_reclaim_locks(struct mxfs_sb_info *sbi, const struct mxfs_fh *fhs, const struct mxfs_lk *lks, int count);

extern struct file_system_type mxfs_fs_type;

#define mxfs_err(sbi, fmt, ...) pr_err("mxfs: %s: " fmt "\n", (sbi)->opt.device, ##__VA_ARGS__)
#define mxfs_warn(sbi, fmt, ...) pr_warn("mxfs: %s: " fmt "\n", (sbi)->opt.device, ##__VA_ARGS__)
#define mxfs_info(sbi, fmt, ...) pr_info("mxfs: %s: " fmt "\n", (sbi)->opt.device, ##__VA_ARGS__)

#endif /* MXFS_KERNEL_H */
