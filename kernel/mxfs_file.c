// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS regular files: open and close, read and write, fsync, fallocate, seek.
 *
 * Two ways for buffered I/O. On the holder, while the inode has no pages of its own, reads and writes pass through to
 * the lower file. Everywhere else, and as soon as a mapping has brought pages in, they use the inode's own page cache
 * (mxfs_aops.c). A write through holds the mapping's invalidate_lock, under which no page can come in, so that none is
 * left that misses the write.
 *
 * No user page fault happens under a DLM lock, since the buffer may be a mapping of another MXFS file: the copy runs
 * with page faults disabled; when it comes up short, the lock is put back, the buffer faulted in, and the rest done in
 * another round. Position and limits are worked out again in each round, so an append never overwrites what another
 * node appended in between.
 *
 * Lock order here: i_rwsem, DLM lock, invalidate_lock, gate.
 *
 * Known weakness: O_DIRECT is accepted, but is cached I/O followed by write-out. A large append that is
 * interrupted by a page fault in its buffer can be split by an append of another node.
 */
#include <linux/backing-dev.h>
#include <linux/falloc.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/splice.h>
#include <linux/writeback.h>

#include "mxfs_vfs.h"

#define MXFS_ROUND_BYTES SZ_1M	      /* most that is copied in one tenure of the lock */
#define MXFS_USE_PAGES (-ENOTBLK)     /* not an answer of any back end: take the other way */

static atomic64_t mxfs_flock_owner; /* the last one given out */

/* ------------------------------------------------------------------ open and close */

static int mxfs_file_start(struct inode *inode, struct file *file, int (*count)(struct inode *inode))
{
	struct mxfs_file *mf;
	int err;

	err = generic_file_open(inode, file);
	if (err)
		return err;
	mf = kzalloc(sizeof(*mf), GFP_KERNEL);
	if (!mf)
		return -ENOMEM;
	mf->owner = atomic64_inc_return(&mxfs_flock_owner);
	if (S_ISREG(inode->i_mode)) {
		err = count(inode);
		if (err) {
			kfree(mf);
			return err;
		}
		file->f_mode |= FMODE_CAN_ODIRECT;
	}
	file->private_data = mf;
	return 0;
}

int mxfs_file_open(struct inode *inode, struct file *file)
{
	return mxfs_file_start(inode, file, mxfs_open_count_get);
}

int mxfs_file_open_held(struct inode *inode, struct file *file)
{
	return mxfs_file_start(inode, file, mxfs_open_count_get_held);
}

int mxfs_file_release(struct inode *inode, struct file *file)
{
	struct mxfs_file *mf = file->private_data;

	if (S_ISREG(inode->i_mode))
		mxfs_open_count_put(inode);
	kvfree(mf->names);
	kfree(mf);
	return 0;
}

/* Close tells of write-back errors that nobody has been told of, and leaves them for fsync. */
static int mxfs_file_flush(struct file *file, fl_owner_t id)
{
	return errseq_check(&file->f_mapping->wb_err, READ_ONCE(file->f_wb_err));
}

int mxfs_file_fsync(struct file *file, loff_t start, loff_t end, int datasync)
{
	struct inode *inode = file_inode(file);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	int err;

	if (S_ISREG(inode->i_mode)) {
		err = file_write_and_wait_range(file, start, end);
		if (err)
			return err;
		if (!datasync && mxfs_is_local(inode)) {
			err = mxfs_lock_get(&mi->lock, MXFS_MODE_EX, 0);
			if (err)
				return err;
			err = mxfs_push_times(inode);
			mxfs_lock_put(&mi->lock, MXFS_MODE_EX);
			if (err)
				return err;
		}
	}
	if (test_bit(MXFS_VN_GONE, &MXFS_VN(inode)->state))
		return 0;
	err = mxfs_gate_enter(sbi);
	if (err)
		return err;
	err = sbi->be->fsync(sbi, &mi->fh, datasync);
	mxfs_gate_leave(sbi);
	return err;
}

/* ------------------------------------------------------------------ read */

/* Hides all but `bytes` of the iterator from what runs between these two. */
static size_t mxfs_iter_window(struct iov_iter *iter, size_t bytes)
{
	size_t hidden = iov_iter_count(iter) - min(bytes, iov_iter_count(iter));

	iov_iter_truncate(iter, bytes);
	return hidden;
}

static void mxfs_iter_unhide(struct iov_iter *iter, size_t hidden)
{
	iov_iter_reexpand(iter, iov_iter_count(iter) + hidden);
}

/* PR held. Bytes, -EFAULT if none could be copied, or MXFS_USE_PAGES. */
static ssize_t mxfs_read_through(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	ssize_t done = 0, n;
	size_t hidden, want;

	n = mxfs_gate_enter(sbi);
	if (n)
		return n;
	if (sbi->be != &mxfs_local_backend || inode->i_mapping->nrpages) {
		mxfs_gate_leave(sbi);
		return MXFS_USE_PAGES;
	}
	while (iov_iter_count(to)) {
		hidden = mxfs_iter_window(to, MXFS_FSOP_DATA_MAX);
		want = iov_iter_count(to);
		pagefault_disable();
		n = sbi->be->read(sbi, &MXFS_I(inode)->fh, iocb->ki_pos, to);
		pagefault_enable();
		mxfs_iter_unhide(to, hidden);
		if (n > 0) {
			iocb->ki_pos += n;
			done += n;
		}
		if (n < 0 || n < want)
			break;
	}
	mxfs_gate_leave(sbi);
	return done ? done : n;
}

static ssize_t mxfs_read_round(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	size_t hidden;
	ssize_t n;

	if (iocb->ki_pos >= i_size_read(inode))
		return 0;
	hidden = mxfs_iter_window(to, MXFS_ROUND_BYTES);
	n = mxfs_read_through(iocb, to);
	if (n == MXFS_USE_PAGES) {
		pagefault_disable();
		n = filemap_read(iocb, to, 0);
		pagefault_enable();
	}
	mxfs_iter_unhide(to, hidden);
	return n;
}

static ssize_t mxfs_file_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct mxfs_inode *mi = MXFS_I(inode);
	size_t before, fault_in;
	ssize_t done = 0, n = 0;

	while (iov_iter_count(to)) {
		before = iov_iter_count(to);
		n = mxfs_lock_get(&mi->lock, MXFS_MODE_PR, 0);
		if (n)
			break;
		n = mxfs_attr_refresh(inode);
		if (!n)
			n = mxfs_read_round(iocb, to);
		mxfs_lock_put(&mi->lock, MXFS_MODE_PR);
		if (n > 0)
			done += n;
		if (n == 0 || (n < 0 && n != -EFAULT))
			break;
		if (!iov_iter_count(to))
			break;
		if (n == -EFAULT || n < min_t(size_t, before, MXFS_ROUND_BYTES)) {
			/* The end of the file, or a page of the buffer that is not there. */
			fault_in = min_t(size_t, iov_iter_count(to), n > 0 ? MXFS_ROUND_BYTES : PAGE_SIZE);
			if (fault_in_iov_iter_writeable(to, fault_in) == fault_in) {
				n = -EFAULT;
				break;
			}
		}
		if (fatal_signal_pending(current)) {
			n = -EINTR;
			break;
		}
	}
	return done ? done : n;
}

/* ------------------------------------------------------------------ write */

/*
 * EX held. invalidate_lock: no page can come in that would not know of this write, and no store through a
 * mapping can make size and times local before the answer is in the inode.
 */
static ssize_t mxfs_write_through(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	struct mxfs_attr attr = {};
	ssize_t done = 0, n = 0;
	size_t hidden, want;

	if (READ_ONCE(sbi->be) != &mxfs_local_backend || inode->i_mapping->nrpages)
		return MXFS_USE_PAGES;
	n = mxfs_push_times(inode); /* what was kept here must not come behind this write */
	if (n)
		return n;
	filemap_invalidate_lock(inode->i_mapping);
	n = mxfs_gate_enter(sbi);
	if (n)
		goto out;
	if (sbi->be != &mxfs_local_backend || inode->i_mapping->nrpages || mxfs_is_local(inode)) {
		n = MXFS_USE_PAGES;
		goto out_gate;
	}
	while (iov_iter_count(from)) {
		hidden = mxfs_iter_window(from, MXFS_FSOP_DATA_MAX);
		want = iov_iter_count(from);
		pagefault_disable();
		n = sbi->be->write(sbi, &mi->fh, iocb->ki_pos, from, false, &attr);
		pagefault_enable();
		mxfs_iter_unhide(from, hidden);
		if (n > 0) {
			iocb->ki_pos += n;
			done += n;
		}
		if (n < 0 || n < want)
			break;
	}
	if (done) {
		mxfs_lock_dirtied(&mi->lock);
		if (attr.fh.ino)
			mxfs_attr_apply(inode, &attr, MXFS_APPLY_FORCE);
		else
			WRITE_ONCE(mi->attr_gen, 0);
	}
out_gate:
	mxfs_gate_leave(sbi);
out:
	filemap_invalidate_unlock(inode->i_mapping);
	return done ? done : n;
}

static ssize_t mxfs_write_round(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	size_t hidden;
	ssize_t n;

	n = generic_write_checks(iocb, from);
	if (n <= 0)
		return n;
	hidden = mxfs_iter_window(from, MXFS_ROUND_BYTES);
	n = mxfs_write_through(iocb, from);
	if (n == MXFS_USE_PAGES) {
		n = mxfs_remove_privs(inode);
		if (!n)
			n = mxfs_pages_write(inode, iocb->ki_pos, from);
		if (n > 0)
			iocb->ki_pos += n;
	}
	mxfs_iter_unhide(from, hidden);
	return n;
}

static ssize_t mxfs_file_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct mxfs_inode *mi = MXFS_I(inode);
	size_t before, fault_in;
	ssize_t done = 0, n = 0;
	int err;

	inode_lock(inode);
	while (iov_iter_count(from)) {
		before = iov_iter_count(from);
		n = mxfs_lock_get(&mi->lock, MXFS_MODE_EX, 0);
		if (n)
			break;
		n = mxfs_attr_refresh(inode);
		if (!n)
			n = mxfs_write_round(iocb, from);
		mxfs_lock_put(&mi->lock, MXFS_MODE_EX);
		if (n > 0)
			done += n;
		if (n == 0 || (n < 0 && n != -EFAULT))
			break;
		balance_dirty_pages_ratelimited(inode->i_mapping);
		if (!iov_iter_count(from))
			break;
		if (n == -EFAULT || n < min_t(size_t, before, MXFS_ROUND_BYTES)) {
			fault_in = min_t(size_t, iov_iter_count(from), n > 0 ? MXFS_ROUND_BYTES : PAGE_SIZE);
			if (fault_in_iov_iter_readable(from, fault_in) == fault_in) {
				n = -EFAULT;
				break;
			}
		}
		if (fatal_signal_pending(current)) {
			n = -EINTR;
			break;
		}
	}
	inode_unlock(inode);
	if (done <= 0)
		return n;
	if (iocb->ki_flags & IOCB_DIRECT) {
		err = filemap_write_and_wait_range(inode->i_mapping, iocb->ki_pos - done, iocb->ki_pos - 1);
		if (err)
			return err;
	}
	return generic_write_sync(iocb, done);
}

/* ------------------------------------------------------------------ the rest */

static loff_t mxfs_file_llseek(struct file *file, loff_t offset, int whence)
{
	struct inode *inode = file_inode(file);
	struct mxfs_inode *mi = MXFS_I(inode);
	loff_t pos;

	if (whence == SEEK_SET || whence == SEEK_CUR)
		return generic_file_llseek(file, offset, whence);
	pos = mxfs_lock_get(&mi->lock, MXFS_MODE_PR, 0);
	if (pos)
		return pos;
	pos = mxfs_attr_refresh(inode);
	if (!pos)
		pos = generic_file_llseek(file, offset, whence);
	mxfs_lock_put(&mi->lock, MXFS_MODE_PR);
	return pos;
}

static int mxfs_file_mmap(struct file *file, struct vm_area_struct *vma)
{
	vma->vm_ops = &mxfs_vm_ops;
	return 0;
}

/* EX and i_rwsem held. The pages that will not be true any more are dropped before the back end is asked. */
static int mxfs_fallocate_locked(struct inode *inode, int mode, loff_t pos, loff_t len)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	struct mxfs_attr attr = {};
	loff_t old_size, end = pos + len;
	int err;

	err = filemap_write_and_wait(inode->i_mapping);
	if (err)
		return err;
	filemap_invalidate_lock(inode->i_mapping);
	old_size = i_size_read(inode);
	if (!(mode & FALLOC_FL_KEEP_SIZE) && end > old_size)
		err = inode_newsize_ok(inode, end);
	if (!err && mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE))
		err = mxfs_pages_drop(inode, pos >> PAGE_SHIFT, -1);
	else if (!err && mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		err = mxfs_pages_drop(inode, pos >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT);
	if (err)
		goto out;
	err = mxfs_gate_enter(sbi);
	if (err)
		goto out;
	err = sbi->be->fallocate(sbi, &mi->fh, mode, pos, len, &attr);
	mxfs_gate_leave(sbi);
	if (err)
		goto out;
	mxfs_lock_dirtied(&mi->lock);
	if (attr.fh.ino)
		mxfs_attr_apply(inode, &attr, MXFS_APPLY_FORCE);
	else
		WRITE_ONCE(mi->attr_gen, 0);
	if (i_size_read(inode) > old_size)
		mxfs_pages_zero_tail(inode, old_size);
out:
	filemap_invalidate_unlock(inode->i_mapping);
	return err;
}

static long mxfs_file_fallocate(struct file *file, int mode, loff_t pos, loff_t len)
{
	struct inode *inode = file_inode(file);
	struct mxfs_inode *mi = MXFS_I(inode);
	int err;

	if (!S_ISREG(inode->i_mode))
		return -EOPNOTSUPP;
	inode_lock(inode);
	err = mxfs_lock_get(&mi->lock, MXFS_MODE_EX, 0);
	if (!err) {
		err = mxfs_attr_refresh(inode);
		if (!err)
			err = mxfs_fallocate_locked(inode, mode, pos, len);
		mxfs_lock_put(&mi->lock, MXFS_MODE_EX);
	}
	inode_unlock(inode);
	return err;
}

const struct inode_operations mxfs_file_inode_ops = {
	.permission = mxfs_permission,
	.getattr = mxfs_getattr,
	.setattr = mxfs_setattr,
	.listxattr = mxfs_listxattr,
	.get_acl = mxfs_get_acl,
};

const struct file_operations mxfs_file_fops = {
	.owner = THIS_MODULE,
	.open = mxfs_file_open,
	.release = mxfs_file_release,
	.flush = mxfs_file_flush,
	.read_iter = mxfs_file_read_iter,
	.write_iter = mxfs_file_write_iter,
	.splice_read = generic_file_splice_read,
	.splice_write = iter_file_splice_write,
	.llseek = mxfs_file_llseek,
	.mmap = mxfs_file_mmap,
	.fsync = mxfs_file_fsync,
	.fallocate = mxfs_file_fallocate,
	.lock = mxfs_file_lock,
	.flock = mxfs_file_flock,
	.setlease = simple_nosetlease,
};
