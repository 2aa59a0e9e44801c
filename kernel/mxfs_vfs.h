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

#include "mxfs.h"

struct mxfs_vnode {
	struct mxfs_inode mi; /* first: MXFS_I() and the slab agree on the address */
	/* Opens of this node against unlinks of this node; taken after the DLM locks, before the gate. */
	struct mutex open_mutex;
	u64 attr_seq;	/* under i_lock */
	u64 names_seq;	/* rises when names are to be looked up again though the lock was not lost */
	unsigned long state;
	struct work_struct last_close;
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

/* mxfs_aops.c; the DLM lock is held by the caller, the gate is entered inside */
extern const struct address_space_operations mxfs_aops;
extern const struct vm_operations_struct mxfs_vm_ops;
ssize_t mxfs_pages_write(struct inode *inode, loff_t pos, struct iov_iter *from);
/* The page with the old end of file: nothing written beyond it through mappings may become visible. */
void mxfs_pages_zero_tail(struct inode *inode, loff_t old_size);

/* mxfs_cache.c: writes and drops pages; -EBUSY if stores through mappings win. last -1: all */
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
