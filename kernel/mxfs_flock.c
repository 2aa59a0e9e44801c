// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS flock and fcntl locks: decided on the holder, recorded here.
 *
 * The holder's answer counts. What it granted is also entered into the VFS's own lists of this node, since only
 * those make the VFS call us with an unlock when a file is closed or a process ends. Locking asks the
 * holder first, unlocking clears the own list first: so a lock that the holder grants never meets an
 * outdated entry here.
 *
 * Owners are numbers unique within the node: of flock the open file's, of fcntl made from the files_struct (or, of
 * open file description locks, the file) that owns the lock.
 *
 * Nothing is lost to a signal: an unlock that a dying process cannot wait for is done by a work item; so is the
 * undoing of a lock whose grant may have crossed the kill.
 *
 * When the holder changes, this node's own lists tell the new one what was granted by the old one (mxfs_flock_reclaim).
 *
 * Known weakness: the number made from a files_struct can come again when its memory is used again; an unlock that is still
 * with the work item would then hit the new owner's locks on the same file.
 */
#include <linux/mm.h>
#include <linux/random.h>
#include <linux/sched/signal.h>
#include <linux/siphash.h>
#include <linux/slab.h>

#include "mxfs_vfs.h"

static siphash_key_t mxfs_owner_key; /* kernel addresses do not leave this node */

int mxfs_flock_init(void)
{
	get_random_bytes(&mxfs_owner_key, sizeof(mxfs_owner_key));
	return 0;
}

struct mxfs_unlock {
	struct work_struct work;
	struct inode *inode; /* pinned */
	struct mxfs_lk lk;
};

static void mxfs_unlock_work(struct work_struct *work)
{
	struct mxfs_unlock *unlock = container_of(work, struct mxfs_unlock, work);
	struct inode *inode = unlock->inode;
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	int err;

	err = mxfs_gate_enter_wait(sbi);
	if (!err) {
		err = sbi->be->setlk(sbi, &MXFS_I(inode)->fh, &unlock->lk);
		mxfs_gate_leave(sbi);
	}
	if (err && !mxfs_gate_fenced(&sbi->gate))
		mxfs_err(sbi, "inode %lu: unlocking for process %u, which was killed, failed with %d: others may wait until "
			 "this node unmounts", inode->i_ino, unlock->lk.pid, err);
	iput(inode);
	kfree(unlock);
}

/* For a process that was killed. */
static void mxfs_unlock_later(struct inode *inode, const struct mxfs_lk *lk)
{
	struct mxfs_unlock *unlock = kzalloc(sizeof(*unlock), GFP_KERNEL | __GFP_NOFAIL);

	ihold(inode);
	unlock->inode = inode;
	unlock->lk = *lk;
	unlock->lk.type = F_UNLCK;
	unlock->lk.wait = false;
	INIT_WORK(&unlock->work, mxfs_unlock_work);
	queue_work(mxfs_inode_wq, &unlock->work);
}

static void mxfs_lk_fill(struct mxfs_lk *lk, struct file *file, const struct file_lock *fl, bool flock, bool wait)
{
	struct mxfs_file *mf = file->private_data;
	u64 owner = (unsigned long)fl->fl_owner;

	*lk = (struct mxfs_lk){
		.flock = flock,
		.wait = wait && fl->fl_type != F_UNLCK,
		.type = fl->fl_type,
		.owner = flock ? mf->owner : siphash_1u64(owner, &mxfs_owner_key),
		.start = flock ? 0 : fl->fl_start,
		.end = flock ? OFFSET_MAX : fl->fl_end,
		.pid = fl->fl_pid,
		.node = mxfs_inode_sbi(file_inode(file))->node,
	};
}

static bool mxfs_interrupted(int err)
{
	return err == -ERESTARTSYS || err == -EINTR;
}

/*
 * Asks the holder; what it grants is entered in the own list (`fl`) before the gate is left, so that a change of the
 * holder, which shuts the gate, finds every lock there. *entered: how that went.
 */
static int mxfs_lk_send(struct inode *inode, const struct mxfs_lk *lk, struct file *file, struct file_lock *fl,
			int *entered)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	int err;

	err = mxfs_gate_enter(sbi);
	if (err)
		return err;
	err = sbi->be->setlk(sbi, &MXFS_I(inode)->fh, lk);
	if (!err && fl)
		*entered = locks_lock_file_wait(file, fl);
	mxfs_gate_leave(sbi);
	return err;
}

static int mxfs_unlock(struct file *file, struct file_lock *fl, const struct mxfs_lk *lk)
{
	struct inode *inode = file_inode(file);
	int local, err;

	local = locks_lock_file_wait(file, fl);
	err = mxfs_lk_send(inode, lk, NULL, NULL, NULL);
	if (mxfs_interrupted(err)) {
		mxfs_unlock_later(inode, lk);
		err = 0;
	}
	return err ? err : local;
}

static int mxfs_setlk(struct file *file, struct file_lock *fl, bool flock, bool wait)
{
	struct inode *inode = file_inode(file);
	struct mxfs_lk lk;
	int err, entered = 0;

	if (fl->fl_lmops && fl->fl_lmops->lm_grant)
		return -ENOLCK; /* a lock manager wants to be called back later */
	mxfs_lk_fill(&lk, file, fl, flock, wait);
	if (fl->fl_type == F_UNLCK)
		return mxfs_unlock(file, fl, &lk);
	if (fl->fl_flags & FL_ACCESS)
		return locks_lock_file_wait(file, fl);

	err = mxfs_lk_send(inode, &lk, file, fl, &entered);
	if (mxfs_interrupted(err) && fatal_signal_pending(current))
		mxfs_unlock_later(inode, &lk);
	if (err)
		return err == -EINTR ? -ERESTARTSYS : err; /* locking is restartable */
	if (entered) /* without the entry nobody would unlock it */
		mxfs_unlock_later(inode, &lk);
	return entered;
}

static int mxfs_getlk(struct file *file, struct file_lock *fl)
{
	struct inode *inode = file_inode(file);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_lk lk;
	int err;

	mxfs_lk_fill(&lk, file, fl, false, false);
	err = mxfs_gate_enter(sbi);
	if (err)
		return err;
	err = sbi->be->getlk(sbi, &MXFS_I(inode)->fh, &lk);
	mxfs_gate_leave(sbi);
	if (err)
		return err;
	fl->fl_type = lk.type;
	if (lk.type == F_UNLCK)
		return 0;
	fl->fl_start = lk.start;
	fl->fl_end = lk.end;
	/* Not above zero: a process elsewhere, whose number means nothing in this node's pid namespaces. */
	fl->fl_pid = lk.node == sbi->node ? (pid_t)lk.pid : -(pid_t)lk.pid;
	return 0;
}

int mxfs_file_lock(struct file *file, int cmd, struct file_lock *fl)
{
	if (cmd == F_CANCELLK)
		return 0;
	if (cmd == F_GETLK)
		return mxfs_getlk(file, fl);
	return mxfs_setlk(file, fl, false, cmd == F_SETLKW);
}

int mxfs_file_flock(struct file *file, int cmd, struct file_lock *fl)
{
	if (!(fl->fl_flags & FL_FLOCK))
		return -ENOLCK;
	return mxfs_setlk(file, fl, true, cmd == F_SETLKW);
}

/* ---------------------------------------------------------------- a new holder */

struct mxfs_reclaim {
	struct mxfs_fh *fhs;
	struct mxfs_lk *lks;
	int count, max;
};

/* Under flc_lock: the file lives as long as its lock is listed. */
static void mxfs_reclaim_add(struct mxfs_reclaim *reclaim, struct inode *inode, const struct file_lock *fl, bool flock)
{
	if (reclaim->count < reclaim->max) {
		reclaim->fhs[reclaim->count] = MXFS_I(inode)->fh;
		mxfs_lk_fill(&reclaim->lks[reclaim->count], fl->fl_file, fl, flock, false);
		reclaim->lks[reclaim->count].reclaim = true;
	}
	reclaim->count++;
}

/* Counts all locks of this node, and lists as many as there is room for. */
static void mxfs_reclaim_scan(struct mxfs_sb_info *sbi, struct mxfs_reclaim *reclaim)
{
	struct super_block *sb = sbi->sb;
	struct file_lock_context *ctx;
	struct file_lock *fl;
	struct inode *inode;

	reclaim->count = 0;
	spin_lock(&sb->s_inode_list_lock);
	list_for_each_entry(inode, &sb->s_inodes, i_sb_list) {
		/* An inode with locks has open files, and stays while its locks are looked at. */
		ctx = locks_inode_context(inode);
		if (!ctx)
			continue;
		spin_lock(&ctx->flc_lock);
		list_for_each_entry(fl, &ctx->flc_posix, fl_list)
			mxfs_reclaim_add(reclaim, inode, fl, false);
		list_for_each_entry(fl, &ctx->flc_flock, fl_list)
			mxfs_reclaim_add(reclaim, inode, fl, true);
		spin_unlock(&ctx->flc_lock);
	}
	spin_unlock(&sb->s_inode_list_lock);
}

void mxfs_flock_reclaim(struct mxfs_sb_info *sbi)
{
	struct mxfs_reclaim reclaim = {};
	int failed;

	/* The gate is shut: none is added; one may go between counting and listing. */
	mxfs_reclaim_scan(sbi, &reclaim);
	reclaim.max = reclaim.count;
	if (!reclaim.max)
		return;
	reclaim.fhs = kvmalloc_array(reclaim.max, sizeof(*reclaim.fhs), GFP_NOFS | __GFP_NOFAIL);
	reclaim.lks = kvmalloc_array(reclaim.max, sizeof(*reclaim.lks), GFP_NOFS | __GFP_NOFAIL);
	mxfs_reclaim_scan(sbi, &reclaim);
	failed = mxfs_reclaim_locks(sbi, reclaim.fhs, reclaim.lks, min(reclaim.count, reclaim.max));
	if (failed)
		mxfs_err(sbi, "%d of %d file locks could not be had again from the new holder: other nodes may take them although processes here believe to have them",
			 failed, reclaim.count);
	kvfree(reclaim.fhs);
	kvfree(reclaim.lks);
}
