/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * MXFS: what mxfs_lower.c, mxfs_local.c, mxfs_locktab.c and mxfs_exec.c share about the lower XFS.
 *
 * A struct mxfs_lower lives from mxfs_lower_mount to mxfs_lower_unmount. Whoever is inside the gate may use
 * sbi->lower; everybody else (forget) reads it under RCU and does not sleep.
 *
 * Lower files are never closed by fput() of a process (it would happen at that process's return to user space, and keep
 * the XFS mounted until then): closing is queued to lower->wq, whose thread may use __fput_sync.
 */
#ifndef MXFS_LOWER_H
#define MXFS_LOWER_H

#include <linux/hashtable.h>
#include <linux/llist.h>
#include <linux/xarray.h>

#include "mxfs.h"

#define MXFS_LOWER_HASH_BITS 12
/* Cached lower objects; beyond it the least recently used idle one is let go. About 1 KiB each with an open file. */
#define MXFS_LOWER_CACHE_MAX 8192
/* .mxfs, lockstate, orphans, pool. */
#define MXFS_LOWER_HIDDEN_MAX 4

/* One lower inode in use or cached: a dentry (connected, for directories) and, on demand, one open file. */
struct mxfs_lower_node {
	struct hlist_node hash;
	struct list_head lru;
	struct llist_node doomed;
	refcount_t ref; /* users, and one while hashed */
	bool hashed;
	struct mxfs_fh fh;
	struct dentry *dentry;
	struct file *file; /* set once, by cmpxchg */
	struct mutex dir_mutex; /* f_pos of a directory's file */
};

struct mxfs_locktab;

struct mxfs_lower {
	struct mxfs_sb_info *sbi;
	struct vfsmount *mnt;
	struct super_block *sb;
	const struct cred *kcred; /* the kernel's own */
	struct dentry *dir;	  /* .mxfs */
	struct dentry *orphans;	  /* .mxfs/orphans */
	u64 root_ino;
	u64 hidden[MXFS_LOWER_HIDDEN_MAX];
	atomic_t dead; /* shut down: every call fails with EIO */

	struct xarray parked; /* ino -> generation, of what is named in orphans */

	spinlock_t lock; /* hash, lru, count */
	DECLARE_HASHTABLE(hash, MXFS_LOWER_HASH_BITS);
	struct list_head lru;
	unsigned int count;

	struct workqueue_struct *wq;
	struct llist_head doomed;
	struct work_struct doom_work;

	u64 session; /* a random name of this mount of the XFS, not 0 */
	struct mutex sync_mutex;
	atomic64_t data_changes, meta_changes; /* since the mount */
	s64 data_synced, meta_synced;	       /* how many of them are durable; under sync_mutex */

	struct mxfs_locktab *locks;
};

/*
 * Back into the gate after a wait outside it: the caller will leave it, whatever happens. So a fenced mount (-EIO: touch nothing)
 * is counted as inside as well.
 */
static inline int mxfs_gate_rejoin(struct mxfs_sb_info *sbi)
{
	int err = mxfs_gate_enter_wait(sbi);

	if (err)
		percpu_ref_get(&sbi->gate.inside);
	return err;
}

/* mxfs_lower.c */
int mxfs_lower_cache_init(struct mxfs_lower *lower);
/* Drops everything cached, closes the files; nobody may be using the cache. */
void mxfs_lower_cache_drain(struct mxfs_lower *lower);

/*
 * An operation failed with `err`. If that is because the XFS has shut itself down (a log write failed, damage found) this
 * mount is fenced: whoever waits for an answer shall get it from the next holder.
 */
void mxfs_lower_failed(struct mxfs_lower *lower, int err);

/* mxfs_local.c: the cache */
struct mxfs_lower_node *mxfs_lower_node_get(struct mxfs_lower *lower, const struct mxfs_fh *fh);
void mxfs_lower_node_put(struct mxfs_lower *lower, struct mxfs_lower_node *node);
/* The node's one file; it lives as long as the node. */
struct file *mxfs_lower_node_file(struct mxfs_lower *lower, struct mxfs_lower_node *node);
void mxfs_lower_forget(struct mxfs_lower *lower, const struct mxfs_fh *fh);
/*
 * mxfs_local.c for mxfs_blocks.c: the lower XFS, a node to be put, the open file of a regular file; the attributes after a change;
 * that data was changed.
 */
int mxfs_local_begin_file(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, struct mxfs_lower **lower,
			  struct mxfs_lower_node **node, struct file **file);
void mxfs_local_answer(struct mxfs_lower *lower, struct mxfs_lower_node *node, struct mxfs_attr *attr);
void mxfs_local_changed_data(struct mxfs_lower *lower);

/* mxfs_blocks.c: parts of the local back end */
int mxfs_local_map(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, u64 len, u64 need, u32 flags,
		   struct mxfs_wire_extent *extents, u32 *count, u32 *block);
int mxfs_local_commit(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_wire_range *ranges, u32 count,
		      u64 size, const struct timespec64 *mtime, struct mxfs_attr *attr);
/* Of a regular file: the extent that its first byte is in, or a hole. -ENXIO: not to be mapped. */
int mxfs_local_first_extent(struct mxfs_lower_node *node, struct mxfs_wire_extent *extent, u32 *block);
ssize_t mxfs_local_copy(struct mxfs_sb_info *sbi, const struct mxfs_fh *from, u64 from_pos, const struct mxfs_fh *to,
			u64 to_pos, u64 len, u32 flags, struct mxfs_attr *attr);
loff_t mxfs_local_seek(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, int whence);

/* Closes by the worker; the only way a lower file is closed. Takes any context that may queue work. */
void mxfs_lower_close(struct mxfs_lower *lower, struct file *file);

/*
 * mxfs_locktab.c: flock and fcntl on the holder.
 * `done` is called once, without the table's mutex, when a waiting request ends: 0, -EINTR (cancelled), -EDEADLK...,
 * or MXFS_LOCKTAB_RETRY (the holder stops being one: ask again).
 */
#define MXFS_LOCKTAB_RETRY 1
struct mxfs_locktab_request {
	struct mxfs_fh fh;
	struct mxfs_lk lk;
	u32 incarnation;
	u64 seq; /* names a waiting request of (lk.node, incarnation) */
	void (*done)(void *arg, int error);
	void *arg;
};
int mxfs_locktab_init(struct mxfs_lower *lower);
/* Ends every wait with `error`, drops every lock. */
void mxfs_locktab_destroy(struct mxfs_lower *lower);
/* 0: granted or released. -EAGAIN: taken, and not to wait. -EINPROGRESS: waiting, `done` will be called. */
int mxfs_locktab_set(struct mxfs_lower *lower, const struct mxfs_locktab_request *req);
int mxfs_locktab_get(struct mxfs_lower *lower, const struct mxfs_fh *fh, struct mxfs_lk *lk);
/* True if it was waiting: its `done` has been called with -EINTR. */
bool mxfs_locktab_cancel(struct mxfs_lower *lower, u32 node, u32 incarnation, u64 seq);
bool mxfs_locktab_is_waiting(struct mxfs_lower *lower, u32 node, u32 incarnation, u64 seq);
void mxfs_locktab_drop_node(struct mxfs_lower *lower, u32 node, u32 incarnation);
/* Ends every wait with `error`; what is held stays. */
void mxfs_locktab_end_waits(struct mxfs_lower *lower, int error);

#endif /* MXFS_LOWER_H */
