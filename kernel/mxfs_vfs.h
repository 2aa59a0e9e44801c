/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * MXFS: what the VFS side (inode, dir, file, aops, xattr, flock, cache) knows of itself alone.
 *
 * Attributes have two possible owners. Usually the lower XFS is right, and what an inode shows is a copy that
 * is valid while `attr_gen` equals the lock's generation. While MXFS_VN_LOCAL is set (only under EX: dirty
 * pages, or times of writes that have not been sent) size, mtime and ctime of the *inode* are right, and an
 * answer of the back end must not touch them. `attr_seq` counts local changes, so that a slow getattr that was
 * overtaken by one is thrown away.
 *
 * Known weakness: ctime cannot be set through the back end, so it moves to the time of write-out when
 * locally kept times are sent.
 */
#ifndef MXFS_VFS_H
#define MXFS_VFS_H

#include <linux/xarray.h>

#include "mxfs.h"

/* Part of a file on the disk; under map->lock, or a copy. */
struct mxfs_extent {
	u64 offset, length, addr;
	u32 state; /* enum mxfs_extent_state */
};

struct mxfs_batch;
struct mxfs_ahead;

/* mxfs_map.c */
struct mxfs_map {
	spinlock_t lock; /* interrupts off */
	wait_queue_head_t wait;
	unsigned int users; /* I/O under the extents */
	bool changing;	    /* the blocks are being changed: users wait */
	bool refused;	    /* not to be mapped */
	u64 gen, epoch;	    /* of the lock, and of the mount's maps, under which all this was learned */
	u64 seq;	    /* rises when something is forgotten */
	unsigned int count, room;
	struct mxfs_extent *ext; /* sorted, apart from each other */
	struct mxfs_batch *batch; /* being filled */
	struct mutex commit_mutex;
	u64 written_to, grow; /* of sequential writing: where it has come to, what it was given last */
	bool beyond;	      /* blocks beyond the end of file may be there */
	bool unflushed;	      /* written to the disk since its cache was flushed last */
	u64 lower_gen;	      /* of the lock under which the lower page cache is known to be right (on the holder) */
};

struct mxfs_vnode {
	struct mxfs_inode mi; /* first: MXFS_I() and the slab agree on the address */
	/* Opens of this node against unlinks of this node; taken after the DLM locks, before the gate. */
	struct mutex open_mutex;
	u64 attr_seq;	/* under i_lock */
	u32 renumbered;	/* mxfs_remote_numbering() when it got its number by a takeover; 0: never */
	u64 names_seq;	/* rises when names are to be looked up again though the lock was not lost */
	unsigned long state;
	struct work_struct last_close;
	u64 disk_size; /* of the lower file, under i_lock: as the last answer had it */
	struct {
		u64 seq; /* what attr_seq was when a write took the time of this inode to the holder; 0: none did */
		u64 change;
		u32 change_of;
		struct timespec64 ctime;
	} sent; /* under i_lock: and what it has become by that */
	struct mxfs_ahead *ahead; /* directories: mxfs_ahead.c */
	struct mxfs_map map;
	struct xarray ranges;	    /* of struct mxfs_range (mxfs_range.c) */
	unsigned long direct_at;    /* jiffies: O_DIRECT was used last; 0: never */
	unsigned long ranges_until; /* jiffies: O_DIRECT takes ranges instead of the whole file; 0: no */
};

/* mxfs_vnode.state */
#define MXFS_VN_LOCAL 0	   /* size and times here are newer than in the lower XFS; under i_lock */
#define MXFS_VN_GONE 1	   /* freed by an operation of this node: only what is cached here can be told of it */
#define MXFS_VN_UNPRIVED 2 /* neither set-id bits nor file capabilities: a write has nothing to take away */
#define MXFS_VN_OURS 3	   /* EX since it was made here: no other node can have it open */

static inline struct mxfs_vnode *MXFS_VN(struct inode *inode)
{
	return container_of(MXFS_I(inode), struct mxfs_vnode, mi);
}

static inline struct mxfs_sb_info *mxfs_inode_sbi(struct inode *inode)
{
	return MXFS_SB(inode->i_sb);
}

static inline bool mxfs_is_local(struct inode *inode)
{
	return test_bit(MXFS_VN_LOCAL, &MXFS_VN(inode)->state);
}

/* What a dentry's d_time must be to be true without asking: the parent's lock is held or cached. */
static inline unsigned long mxfs_names_token(struct inode *dir)
{
	return mxfs_lock_gen(&MXFS_I(dir)->lock) + (READ_ONCE(MXFS_VN(dir)->names_seq) << 40);
}

/* Every open regular file or directory of ours. */
struct mxfs_file {
	u64 owner; /* of flock locks: unique within this mount */
	/* The last buffer of names that was not used up (directories); under f_pos_lock. */
	void *names;
	size_t names_used, names_at;
	u64 names_cookie, names_next;
	unsigned long names_token;
	bool names_eof;
};

/* mxfs_inode.c */
extern const struct cred *mxfs_kernel_cred; /* acts for the kernel: write-out, pending times, removal of set-id bits */
extern struct workqueue_struct *mxfs_inode_wq;
enum mxfs_apply {
	MXFS_APPLY_REPLY, /* of a changing operation: size and times stay if they are local */
	MXFS_APPLY_FORCE, /* of one that set size or times after everything had been written out */
};
/* EX is held (or PR, by an operation that changed nothing but what was asked of it). */
void mxfs_attr_apply(struct inode *inode, const struct mxfs_attr *attr, enum mxfs_apply how);
/* CR or stronger held. Attributes are valid afterwards. The first is called outside the gate, the second inside. */
int mxfs_attr_refresh(struct inode *inode);
int mxfs_attr_refresh_gated(struct inode *inode);
/* After the lower inode went away by our own hand. */
void mxfs_inode_gone(struct inode *inode);
/* A page was dirtied or a time changed under EX. size < 0: unchanged. */
void mxfs_local_changed(struct inode *inode, loff_t size);
/* Sends pending times if nothing is dirty any more. Outside the gate; EX is cached. */
int mxfs_push_times(struct inode *inode);
int mxfs_permission(struct user_namespace *userns, struct inode *inode, int mask);
int mxfs_getattr(struct user_namespace *userns, const struct path *path, struct kstat *stat, u32 mask,
		 unsigned int flags);
int mxfs_setattr(struct user_namespace *userns, struct dentry *dentry, struct iattr *attr);
/* EX held, outside the gate: what file_remove_privs() does, without taking the lock once more. */
int mxfs_remove_privs(struct inode *inode);
/* Opened files of this node, and what becomes of the inode at the last close. */
int mxfs_open_count_get(struct inode *inode);
int mxfs_open_count_get_held(struct inode *inode);
void mxfs_open_count_put(struct inode *inode);
void mxfs_last_close_queue(struct inode *inode);
/* Waits for the work of last closes; without it unmount finds inodes busy. */
void mxfs_inode_drain(void);

/*
 * Before an operation that changes this directory, under its EX: the version of it that the operation finds, as far as this node
 * knows without asking. 0: not known.
 */
u64 mxfs_attr_seen(struct inode *inode);
/*
 * An answer of getattr that was asked for when the lock's generation was `gen` and attr_seq `seq`: taken if the lock is still cached and
 * nothing has changed here since. No message, no wait.
 */
bool mxfs_attr_given(struct inode *inode, const struct mxfs_attr *attr, u64 gen, u64 seq);
/* On the holder: the inode is open here, mapped or written to, under EX. Inside the gate; a hint. */
bool mxfs_inode_is_busy(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh);

/*
 * mxfs_ahead.c. Before a lookup of `name` in `dir` that nothing cached answers; before the lock or the attributes of `inode` are
 * asked for: fetches what will probably be wanted next, too. No lock of ours held, outside the gate; nothing need come of it.
 */
void mxfs_ahead_lookup(struct inode *dir, const struct qstr *name);
void mxfs_ahead_inode(struct inode *inode);
/* PR of `dir` held: what a portion has said of the name, its handle and type, once. Else the back end is asked, and tells by `found`. */
bool mxfs_ahead_find(struct inode *dir, const struct qstr *name, struct mxfs_attr *attr);
void mxfs_ahead_found(struct inode *dir, const struct mxfs_attr *attr);
/* This node has made, moved or removed the name, or tried to. */
void mxfs_ahead_changed(struct inode *dir, const struct qstr *name);
/* The directory's lock is given up, or its inode evicted. */
void mxfs_ahead_forget(struct inode *dir);
/* Inodes of this node have got other numbers. */
void mxfs_ahead_moved(struct inode *dir);
void mxfs_ahead_destroy(struct inode *dir);

/* mxfs_dir.c */
extern const struct inode_operations mxfs_dir_inode_ops;
extern const struct file_operations mxfs_dir_fops;
extern const struct inode_operations mxfs_symlink_inode_ops;
extern const struct inode_operations mxfs_special_inode_ops;

/* mxfs_file.c */
extern const struct inode_operations mxfs_file_inode_ops;
extern const struct file_operations mxfs_file_fops;
int mxfs_file_open(struct inode *inode, struct file *file);
int mxfs_file_open_held(struct inode *inode, struct file *file); /* INODE is held, the attributes are valid */
int mxfs_file_release(struct inode *inode, struct file *file);
int mxfs_file_fsync(struct file *file, loff_t start, loff_t end, int datasync);
/* Hides all but `bytes` of the iterator from what runs between these two. */
static inline size_t mxfs_iter_window(struct iov_iter *iter, size_t bytes)
{
	size_t hidden = iov_iter_count(iter) - min(bytes, iov_iter_count(iter));

	iov_iter_truncate(iter, bytes);
	return hidden;
}

static inline void mxfs_iter_unhide(struct iov_iter *iter, size_t hidden)
{
	iov_iter_reexpand(iter, iov_iter_count(iter) + hidden);
}

/* As the lower file's own O_DIRECT, inside the gate; the iterator is put back if a page of it was not there (-EFAULT). */
ssize_t mxfs_lower_direct(struct kiocb *iocb, struct iov_iter *iter, bool write, struct mxfs_attr *attr);

/*
 * mxfs_map.c. use, ask, commit_gated, change_begin, data_flush: inside the gate.
 *
 * use: what is known of [pos, pos + len), from pos on. 0; -ENOENT: unknown, ask; -ENXIO: not to be mapped; -EAGAIN: not now (both:
 * through the holder). What has blocks to read from (or, to write, any blocks) is in use then: unuse at the end of the I/O, from
 * any context.
 */
void mxfs_map_init(struct mxfs_map *map);
void mxfs_map_destroy(struct inode *inode);
int mxfs_map_use(struct inode *inode, u64 pos, u64 len, bool write, struct mxfs_extent *ext);
void mxfs_map_unuse(struct inode *inode);
/* Asks the holder for `len` bytes; MXFS_MAP_WRITE: blocks for them, `need` at least. Use may still find nothing: try again. */
int mxfs_map_ask(struct inode *inode, u64 pos, u64 len, u64 need, u32 flags);
/*
 * The first extent of a file, fetched ahead with the attributes of many: `ticket` before it is asked for (false: not wanted), `given`
 * when it has come. True: it is still true, and known.
 */
struct mxfs_map_ticket {
	u64 gen, epoch, seq;
};
bool mxfs_map_ticket(struct inode *inode, struct mxfs_map_ticket *ticket);
bool mxfs_map_given(struct inode *inode, const struct mxfs_map_ticket *ticket, const struct mxfs_wire_extent *wire, u32 block);
/* EX held, since it was made here: it has no blocks. */
void mxfs_map_newborn(struct inode *inode);
/* [pos, pos + len), U64_MAX: all; the answers on their way too. */
void mxfs_map_forget(struct inode *inode, u64 pos, u64 len);
/*
 * The extent (in use) is being written; the file reaches to `size` by it. *batch: to be put when the write is on the disk, or NULL
 * if there is nothing to commit. -EBUSY: commit first; for O_DIRECT (`direct`) make_room, before the data is written, prevents that.
 */
int mxfs_map_written(struct inode *inode, const struct mxfs_extent *ext, u64 size, bool direct, struct mxfs_batch **batch);
void mxfs_map_make_room(struct inode *inode);
void mxfs_batch_put(struct mxfs_batch *batch);
void mxfs_batch_failed(struct inode *inode, struct mxfs_batch *batch, u64 pos, u64 len);
/* 1: committed, *attr filled. 0: nothing was to be done. */
int mxfs_map_commit_gated(struct inode *inode, struct mxfs_attr *attr);
int mxfs_map_commit(struct inode *inode);
/*
 * Around an operation that takes blocks away or moves them; i_rwsem and EX held, no page of the file is waited for in between. On the
 * holder the lower pages are fresh then. After an error end as well.
 */
int mxfs_map_change_begin(struct inode *inode);
void mxfs_map_change_end(struct inode *inode);
/* An error of the disk: told, counted; data goes through the holder for a while, or (-EBADE) the mount is fenced. */
void mxfs_disk_failed(struct mxfs_sb_info *sbi, int err);
/* What was written is safe from a power cut at the disk. */
int mxfs_data_flush(struct inode *inode);
int mxfs_disk_flush(struct mxfs_sb_info *sbi);
/* EX held, nobody writes, outside the gate: gives blocks beyond the end of file back, if there are any and all data is committed. */
void mxfs_map_trim(struct inode *inode);
/* What was written directly is safe from a power cut at the disk, before another node can read it. Outside the gate; warns. */
void mxfs_data_settle(struct inode *inode);
/* Before EX is given up, outside the gate: pages and times are written, committed, and safe from a power cut at the disk. */
void mxfs_data_clean(struct inode *inode);
/*
 * On the holder, inside the gate, before the lower page cache is used: what it has of the time before this node had the lock is
 * dropped (an evicted inode leaves it behind, and a member may have changed the data since).
 */
int mxfs_lower_fresh(struct inode *inode);
/* Before the lock goes below PR: maps are void, and on the holder the lower pages are dropped. */
void mxfs_data_forget(struct inode *inode);

/* mxfs_direct.c; inside the gate. */
struct mxfs_reader { /* neighbours that become one bio */
	struct inode *inode;
	struct bio *bio;
	u64 pos, left; /* behind the bio; pages that are left of its extent */
};
/* A locked page. 0: taken over (it is unlocked when it is read, not uptodate after an error); else ask the holder. */
int mxfs_direct_read_page(struct mxfs_reader *reader, struct page *page, u64 ahead);
void mxfs_direct_read_end(struct mxfs_reader *reader);
/* The same for one page that stays locked: 0: uptodate. */
int mxfs_direct_read_wait(struct inode *inode, struct page *page);
/*
 * Neighbouring pages under write-back from pos; `len`: to the end of file at most. How many were taken over (their write-back
 * ends with the I/O), 0: the first `*part` go through the holder; -ENOSPC, -EDQUOT: there is no room for the first `*part`.
 */
int mxfs_direct_write(struct inode *inode, struct page **pages, unsigned int count, u64 pos, u64 len, bool sync,
		      unsigned int *part);
#define MXFS_DIO_PIECES 16
struct mxfs_dio {
	struct kiocb iocb; /* a copy, without syncing under the lock */
	struct inode *inode;
	bool write, written;
	unsigned int count;
	struct mxfs_extent pieces[MXFS_DIO_PIECES]; /* in use */
};
/*
 * O_DIRECT on a member, the locks held, page faults disabled: bytes, -errno, -ENOTBLK (take the other way). With `done`: also
 * -EIOCBQUEUED, and the answer by that, called with &dio->iocb from any context.
 */
ssize_t mxfs_direct_run(struct mxfs_dio *dio, struct kiocb *iocb, struct iov_iter *iter, bool write, bool written,
			void (*done)(struct kiocb *iocb, long result));
/* Such an answer is the disk's, and the holder may know better. */
bool mxfs_direct_disk_error(long result);
/* O_DIRECT on a member. Blocks that are written only (`written`), or any. -ENOTBLK: take the other way. */
ssize_t mxfs_direct_io(struct kiocb *iocb, struct iov_iter *iter, bool write, bool written);

/* mxfs_range.c */
/* O_DIRECT under EXTENT locks, as far as that is called for. Takes i_rwsem and locks by itself. Bytes, perhaps none; -errno. */
ssize_t mxfs_range_io(struct kiocb *iocb, struct iov_iter *iter, bool write);
/* The locks of such an I/O. */
#define MXFS_ROUND_RANGES 2
struct mxfs_range_use {
	struct inode *inode;
	struct mxfs_lock *parts[MXFS_ROUND_RANGES];
	int mode, part_mode, count;
};
/* Those that are here already, or none; i_rwsem held. -EAGAIN: not all are; -ENOTBLK: not in this way. */
int mxfs_range_get(struct kiocb *iocb, struct iov_iter *iter, bool write, struct mxfs_range_use *use);
void mxfs_range_put(struct mxfs_range_use *use);
/* Direct I/O was done. */
void mxfs_range_used(struct inode *inode);
/* The file is being given up to somebody who wants it in that mode. */
void mxfs_range_contended(struct inode *inode, int wanted);
void mxfs_ranges_destroy(struct inode *inode);

/* mxfs_aio.c */
/* Of an iocb that need not be waited for. -EIOCBQUEUED, bytes, or -ENOTBLK: nothing was done, take the other ways. */
ssize_t mxfs_aio_start(struct kiocb *iocb, struct iov_iter *iter, bool write);

/* mxfs_aops.c; the DLM lock is held by the caller, the gate is entered inside */
extern const struct address_space_operations mxfs_aops;
extern const struct vm_operations_struct mxfs_vm_ops;
ssize_t mxfs_pages_write(struct inode *inode, loff_t pos, struct iov_iter *from);
/* The page with the old end of file: nothing written beyond it through mappings may become visible. */
void mxfs_pages_zero_tail(struct inode *inode, loff_t old_size);

/* mxfs_cache.c: of every lock whose owner is an inode. */
bool mxfs_inode_pin(struct mxfs_lock *lk);
void mxfs_inode_unpin(struct mxfs_lock *lk);
/* Writes and drops pages; -EBUSY if stores through mappings win. last -1: all */
int mxfs_pages_drop(struct inode *inode, pgoff_t first, pgoff_t last);

/* mxfs_xattr.c */
ssize_t mxfs_listxattr(struct dentry *dentry, char *buf, size_t size);
struct posix_acl *mxfs_get_acl(struct inode *inode, int type, bool rcu);
/* Inside the gate with the lock held: makes the access ACL known to generic_permission(). */
int mxfs_acl_fill(struct inode *inode);

/* mxfs_flock.c */
int mxfs_file_lock(struct file *file, int cmd, struct file_lock *fl);
int mxfs_file_flock(struct file *file, int cmd, struct file_lock *fl);
int mxfs_flock_init(void);

#endif /* MXFS_VFS_H */
