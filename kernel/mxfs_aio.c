// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: O_DIRECT that does not wait (AIO, io_uring): many operations of one process are at the disk at once.
 *
 * Started in the caller, ended by a work item:
 *
 *	mxfs_aio_start ── locks that are here already ── member: block maps, the disk ─┐
 *	     │ not in this way                         └ holder: gate, lower file ─────┤
 *	     ▼ the synchronous ways                                                     ▼ completion, any context
 *	                                                    aio_work: lease, locks put, O_SYNC's sync, ki_complete
 *
 * Only what changes neither size nor blocks is done so: inside i_size, on a member over blocks that are written. The lock (INODE in EX
 * or PR, or CW with EXTENT locks) counts as used until the end, so nobody is given it meanwhile; i_rwsem is held at the start
 * only: whoever changes the file's blocks waits for the uses of the maps (member), or in XFS (holder).
 *
 * What was read is told when the lease runs: while the lock is used and this mount is not fenced nobody else can have had it.
 *
 * What the disk refused, and what met a page of the buffer that had just gone, is done once more by the work item, in the
 * process's memory and in the ways that wait.
 *
 * Known weakness: where the locks have to be asked for first, or blocks to be allocated, the caller waits as if it had asked for that.
 */
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/kthread.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <linux/workqueue.h>

#include "mxfs_vfs.h"
#include "mxfs_lower.h"

struct mxfs_aio {
	struct mxfs_dio dio;	/* first; the lower file's iocb is dio.iocb as well */
	struct kiocb *user;
	bool write;
	long result;
	struct mxfs_range_use use;
	struct work_struct work;
	struct mxfs_lower *lower; /* on the holder, inside the gate */
	struct mxfs_lower_node *node;
	struct iov_iter iter;	/* of the whole, to do it once more, */
	const void *vec;	/* with an array of its own, */
	struct mm_struct *mm;	/* in this memory, if it is a process's */
};

static struct workqueue_struct *mxfs_aio_wq;

int mxfs_aio_init(void)
{
	/* No WQ_MEM_RECLAIM: what is done once more runs in XFS, which may wait for work that is not for memory reclaim. */
	mxfs_aio_wq = alloc_workqueue("mxfs-aio", WQ_HIGHPRI, 0);
	return mxfs_aio_wq ? 0 : -ENOMEM;
}

void mxfs_aio_exit(void)
{
	destroy_workqueue(mxfs_aio_wq);
}

/* What is left to do when the I/O is over; the answer. Process context. */
static long aio_finish(struct mxfs_aio *aio, long result)
{
	struct inode *inode = file_inode(aio->user->ki_filp);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);

	if (aio->lower) {
		if (aio->write && result > 0) {
			mxfs_local_changed_data(aio->lower);
			mxfs_lock_dirtied(&MXFS_I(inode)->lock);
			WRITE_ONCE(MXFS_VN(inode)->map.unflushed, true);
			WRITE_ONCE(MXFS_I(inode)->attr_gen, 0);
		}
		mxfs_lower_failed(aio->lower, result);
		mxfs_lower_node_put(aio->lower, aio->node);
		mxfs_gate_leave(sbi);
	} else if (result > 0) {
		mxfs_count(sbi, aio->write ? MXFS_COUNT_DISK_WRITE : MXFS_COUNT_DISK_READ);
	} else if (mxfs_direct_disk_error(result)) {
		mxfs_disk_failed(sbi, result);
	}
	if (result > 0 && !aio->write && !mxfs_gate_lease_valid(sbi)) {
		if (mxfs_gate_enter_wait(sbi))
			result = -EIO;
		else
			mxfs_gate_leave(sbi);
	}
	if (result < 0 && mxfs_gate_fenced(&sbi->gate))
		result = -EIO;
	mxfs_range_put(&aio->use);
	if (result > 0)
		aio->user->ki_pos += result;
	return result;
}

static struct mxfs_aio *aio_new(struct kiocb *iocb, struct iov_iter *iter, bool write)
{
	struct mxfs_aio *aio = kzalloc(sizeof(*aio), GFP_KERNEL);

	if (!aio)
		return NULL;
	aio->user = iocb;
	aio->write = write;
	aio->vec = dup_iter(&aio->iter, iter, GFP_KERNEL);
	if (!aio->vec && !iter_is_ubuf(iter)) {
		kfree(aio);
		return NULL;
	}
	if (user_backed_iter(iter)) {
		aio->mm = current->mm;
		mmgrab(aio->mm);
	}
	return aio;
}

static void aio_free(struct mxfs_aio *aio)
{
	if (aio->mm)
		mmdrop(aio->mm);
	kfree(aio->vec);
	kfree(aio);
}

/* The synchronous ways, by a kernel thread in the process's place. */
static long aio_again(struct mxfs_aio *aio)
{
	struct file *file = aio->user->ki_filp;
	const struct cred *old;
	struct kiocb iocb;
	long result;

	if (aio->mm) {
		if (!mmget_not_zero(aio->mm))
			return -EFAULT; /* nobody is left who could want it */
		kthread_use_mm(aio->mm);
	}
	init_sync_kiocb(&iocb, file);
	iocb.ki_pos = aio->user->ki_pos;
	iocb.ki_flags = aio->user->ki_flags & ~(IOCB_NOWAIT | IOCB_HIPRI);
	old = override_creds(file->f_cred);
	result = aio->write ? call_write_iter(file, &iocb, &aio->iter) : call_read_iter(file, &iocb, &aio->iter);
	revert_creds(old);
	aio->user->ki_pos = iocb.ki_pos;
	if (aio->mm) {
		kthread_unuse_mm(aio->mm);
		mmput(aio->mm);
	}
	return result;
}

static void aio_work(struct work_struct *work)
{
	struct mxfs_aio *aio = container_of(work, struct mxfs_aio, work);
	struct kiocb *user = aio->user;
	bool local = aio->lower;
	long result = aio_finish(aio, aio->result);

	if (result == -EFAULT || result == -ENOTBLK ||
	    (!local && mxfs_direct_disk_error(result) && !mxfs_gate_fenced(&mxfs_inode_sbi(file_inode(user->ki_filp))->gate)))
		result = aio_again(aio);
	else if (result > 0 && aio->write)
		result = generic_write_sync(user, result);
	aio_free(aio);
	user->ki_complete(user, result);
}

/* Any context. */
static void aio_done(struct kiocb *iocb, long result)
{
	struct mxfs_aio *aio = container_of(iocb, struct mxfs_aio, dio.iocb);

	aio->result = result;
	INIT_WORK(&aio->work, aio_work);
	queue_work(mxfs_aio_wq, &aio->work);
}

/* Freezing the lower file system waits for writes that are under way. */
static void aio_lower_written(struct kiocb *iocb, long result)
{
	struct super_block *sb = file_inode(iocb->ki_filp)->i_sb;

	__sb_writers_acquired(sb, SB_FREEZE_WRITE); /* for lockdep: begun by another task */
	sb_end_write(sb);
	aio_done(iocb, result);
}

static ssize_t aio_lower(struct mxfs_aio *aio, struct inode *inode, struct iov_iter *iter)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct kiocb *iocb = &aio->dio.iocb;
	struct file *file;
	ssize_t n;

	n = mxfs_gate_enter(sbi);
	if (n)
		return n;
	n = sbi->be == &mxfs_local_backend ? mxfs_lower_fresh(inode) : -ENOTBLK;
	if (!n)
		n = mxfs_local_begin_file(sbi, &MXFS_I(inode)->fh, &aio->lower, &aio->node, &file);
	if (n) {
		aio->lower = NULL;
		mxfs_gate_leave(sbi);
		return n;
	}
	*iocb = (struct kiocb){
		.ki_filp = file,
		.ki_pos = aio->user->ki_pos,
		.ki_flags = IOCB_DIRECT | (aio->write ? IOCB_WRITE : 0),
		.ki_ioprio = aio->user->ki_ioprio,
		.ki_complete = aio->write ? aio_lower_written : aio_done,
	};
	if (!aio->write)
		return call_read_iter(file, iocb, iter);
	file_start_write(file);
	__sb_writers_release(file_inode(file)->i_sb, SB_FREEZE_WRITE);
	n = call_write_iter(file, iocb, iter);
	if (n != -EIOCBQUEUED) {
		__sb_writers_acquired(file_inode(file)->i_sb, SB_FREEZE_WRITE);
		file_end_write(file);
	}
	return n;
}

/* The locks are held. Bytes, -EIOCBQUEUED (it has ended, or will), or what kept it from being done at all. */
static ssize_t aio_submit(struct mxfs_aio *aio, struct inode *inode, struct iov_iter *iter)
{
	ssize_t n;

	pagefault_disable();
	iter->nofault = true;
	if (READ_ONCE(mxfs_inode_sbi(inode)->be) == &mxfs_local_backend)
		n = aio_lower(aio, inode, iter);
	else
		n = mxfs_direct_run(&aio->dio, aio->user, iter, aio->write, true, aio_done);
	iter->nofault = false;
	pagefault_enable();
	return n;
}

ssize_t mxfs_aio_start(struct kiocb *iocb, struct iov_iter *iter, bool write)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct iov_iter before = *iter;
	struct mxfs_aio *aio;
	ssize_t n = -ENOTBLK;
	size_t left;

	if (is_sync_kiocb(iocb) || !iov_iter_count(iter) || (user_backed_iter(iter) && !current->mm))
		return -ENOTBLK;
	if (write && generic_write_checks(iocb, iter) != iov_iter_count(&before)) {
		*iter = before;
		return -ENOTBLK;
	}
	/* No page is faulted in under the locks. */
	left = write ? fault_in_iov_iter_readable(iter, iov_iter_count(iter)) :
		       fault_in_iov_iter_writeable(iter, iov_iter_count(iter));
	if (left || !inode_trylock_shared(inode))
		return -ENOTBLK;
	aio = aio_new(iocb, iter, write);
	if (!aio)
		goto out;
	if (mxfs_range_get(iocb, iter, write, &aio->use)) {
		aio_free(aio);
		goto out;
	}
	n = aio_submit(aio, inode, iter);
	if (n != -EIOCBQUEUED) {
		n = aio_finish(aio, n);
		aio_free(aio);
		if (n <= 0) {
			/* Once more, and in the ways that can wait. */
			*iter = before;
			n = -ENOTBLK;
		}
	} else {
		mxfs_count(mxfs_inode_sbi(inode), MXFS_COUNT_AIO);
	}
out:
	inode_unlock_shared(inode);
	return n;
}
