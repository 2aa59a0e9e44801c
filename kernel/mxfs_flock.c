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
 * Known weakness: the number made from a files_struct can come again when its memory is used again; an unlock that is still
 * with the work item would then hit the new owner's locks on the same file.
 */
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

static int mxfs_lk_send(struct inode *inode, const struct mxfs_lk *lk)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	int err;

	err = mxfs_gate_enter(sbi);
	if (err)
		return err;
	err = sbi->be->setlk(sbi, &MXFS_I(inode)->fh, lk);
	mxfs_gate_leave(sbi);
	return err;
}

static int mxfs_unlock(struct file *file, struct file_lock *fl, const struct mxfs_lk *lk)
{
	struct inode *inode = file_inode(file);
	int local, err;

	local = locks_lock_file_wait(file, fl);
	err = mxfs_lk_send(inode, lk);
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
	int err;

	if (fl->fl_lmops && fl->fl_lmops->lm_grant)
		return -ENOLCK; /* a lock manager wants to be called back later */
	mxfs_lk_fill(&lk, file, fl, flock, wait);
	if (fl->fl_type == F_UNLCK)
		return mxfs_unlock(file, fl, &lk);
	if (fl->fl_flags & FL_ACCESS)
		return locks_lock_file_wait(file, fl);

	err = mxfs_lk_send(inode, &lk);
	if (mxfs_interrupted(err) && fatal_signal_pending(current))
		mxfs_unlock_later(inode, &lk);
	if (err)
		return err == -EINTR ? -ERESTARTSYS : err; /* locking is restartable */
	err = locks_lock_file_wait(file, fl);
	if (err) /* without the entry nobody would unlock it */
		mxfs_unlock_later(inode, &lk);
	return err;
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
