// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS regular files: open and close, read and write, O_DIRECT, fsync, fallocate, seek, copies and clones.
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
 * O_DIRECT goes straight to the disk on a member (mxfs_direct.c), and to the lower file with O_DIRECT on the holder; i_rwsem is
 * held, shared for reading, so that nobody changes the file's blocks meanwhile. Where that cannot be (a file that is not to be
 * mapped, small holes, pages that cannot be dropped) it is cached I/O followed by write-out.
 *
 * Copies and clones are done by the holder: both files are written out first, and what is known of their blocks is forgotten.
 *
 * Lock order here: i_rwsem, DLM lock, invalidate_lock, gate.
 *
 * Known weakness: a large append that is interrupted by a page fault in its buffer can be split by an append of another node.
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
#define MXFS_COPY_BYTES SZ_16M	      /* most that one copy_file_range copies: the holder's worker and the lock are ours that long */

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
	int err, mode;

	if (S_ISREG(inode->i_mode)) {
		err = file_write_and_wait_range(file, start, end);
		/* What the disk has refused is dirty again, and goes through the holder now. */
		if (!err && mapping_tagged(inode->i_mapping, PAGECACHE_TAG_DIRTY) && READ_ONCE(sbi->direct_off))
			err = file_write_and_wait_range(file, start, end);
		if (err)
			return err;
		if (datasync) {
			err = mxfs_map_commit(inode);
			if (err)
				return file_check_and_advance_wb_err(file) ?: err;
		} else if (mxfs_is_local(inode)) {
			/* Times kept under CW are sent under CW. */
			mode = mxfs_lock_get(&mi->lock, MXFS_MODE_CW, MXFS_LOCK_CACHED) ? MXFS_MODE_EX : MXFS_MODE_CW;
			err = mode == MXFS_MODE_EX ? mxfs_lock_get(&mi->lock, MXFS_MODE_EX, 0) : 0;
			if (err)
				return err;
			err = mxfs_push_times(inode); /* with what is to be committed */
			mxfs_lock_put(&mi->lock, mode);
			if (err)
				return file_check_and_advance_wb_err(file) ?: err;
		}
	}
	if (test_bit(MXFS_VN_GONE, &MXFS_VN(inode)->state))
		return 0;
	err = mxfs_gate_enter(sbi);
	if (err)
		return err;
	err = -EAGAIN;
	/* A member's own writes need the disk's cache flushed; what the holder did for it, writes among it, is durable, or kept. */
	if (S_ISREG(inode->i_mode) && sbi->be == &mxfs_remote_backend)
		err = mxfs_data_flush(inode) ?: mxfs_remote_settle(sbi);
	if (err)
		err = sbi->be->fsync(sbi, &mi->fh, datasync);
	mxfs_gate_leave(sbi);
	return err;
}

/* ------------------------------------------------------------------ read */

/* PR held. Bytes, -EFAULT if none could be copied, or MXFS_USE_PAGES. */
static ssize_t mxfs_read_through(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	ssize_t n;

	n = mxfs_gate_enter(sbi);
	if (n)
		return n;
	if (sbi->be != &mxfs_local_backend || inode->i_mapping->nrpages) {
		mxfs_gate_leave(sbi);
		return MXFS_USE_PAGES;
	}
	n = mxfs_lower_fresh(inode);
	if (n) {
		mxfs_gate_leave(sbi);
		return n;
	}
	pagefault_disable();
	n = sbi->be->read(sbi, &MXFS_I(inode)->fh, iocb->ki_pos, to);
	pagefault_enable();
	if (n > 0)
		iocb->ki_pos += n;
	mxfs_gate_leave(sbi);
	return n;
}

ssize_t mxfs_lower_direct(struct kiocb *iocb, struct iov_iter *iter, bool write, struct mxfs_attr *attr)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct iov_iter before = *iter; /* advancing leaves the array behind it alone */
	ssize_t n;

	pagefault_disable();
	iter->nofault = true;
	n = mxfs_local_direct(mxfs_inode_sbi(inode), &MXFS_I(inode)->fh, iocb->ki_pos, iter, write, attr);
	iter->nofault = false;
	pagefault_enable();
	if (n > 0)
		iocb->ki_pos += n;
	else
		*iter = before;
	return n;
}

/* PR and i_rwsem held. */
static ssize_t mxfs_read_direct(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	ssize_t n;

	n = mxfs_direct_io(iocb, to, false, false);
	if (n != MXFS_USE_PAGES)
		return n;
	/* The holder's own pages are written to the lower file; its page cache is XFS's business. */
	n = filemap_write_and_wait_range(inode->i_mapping, iocb->ki_pos, iocb->ki_pos + iov_iter_count(to) - 1);
	if (n)
		return n;
	n = mxfs_gate_enter(sbi);
	if (n)
		return n;
	n = sbi->be == &mxfs_local_backend ? mxfs_lower_fresh(inode) : MXFS_USE_PAGES;
	if (!n)
		n = mxfs_lower_direct(iocb, to, false, NULL);
	mxfs_gate_leave(sbi);
	return n;
}

static ssize_t mxfs_read_round(struct kiocb *iocb, struct iov_iter *to)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	size_t hidden;
	ssize_t n;

	if (iocb->ki_pos >= i_size_read(inode))
		return 0;
	hidden = mxfs_iter_window(to, MXFS_ROUND_BYTES);
	n = iocb->ki_flags & IOCB_DIRECT ? mxfs_read_direct(iocb, to) : mxfs_read_through(iocb, to);
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
	bool direct = iocb->ki_flags & IOCB_DIRECT;
	size_t before, fault_in;
	ssize_t done = 0, n = 0;

	if (direct) {
		n = mxfs_aio_start(iocb, to, false);
		if (n != -ENOTBLK)
			return n;
		done = mxfs_range_io(iocb, to, false);
		if (done < 0)
			return done;
		inode_lock_shared(inode);
	}
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
			fault_in = min_t(size_t, iov_iter_count(to), n > 0 || direct ? MXFS_ROUND_BYTES : PAGE_SIZE);
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
	if (direct) {
		mxfs_range_used(inode);
		inode_unlock_shared(inode);
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
	bool direct = iocb->ki_flags & IOCB_DIRECT;
	struct mxfs_attr attr = {};
	ssize_t n = 0;

	if (READ_ONCE(sbi->be) != &mxfs_local_backend)
		return MXFS_USE_PAGES;
	if (inode->i_mapping->nrpages && (!direct || mxfs_pages_drop(inode, 0, -1)))
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
	n = mxfs_lower_fresh(inode);
	if (n)
		goto out_gate;
	if (direct) {
		n = mxfs_lower_direct(iocb, from, true, &attr);
	} else {
		pagefault_disable();
		n = sbi->be->write(sbi, &mi->fh, iocb->ki_pos, from, false, NULL, &attr);
		pagefault_enable();
		if (n > 0)
			iocb->ki_pos += n;
	}
	if (n > 0) {
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
	return n;
}

/* EX and i_rwsem held, on a member. */
static ssize_t mxfs_write_direct(struct kiocb *iocb, struct iov_iter *from)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	ssize_t n;

	if (READ_ONCE(mxfs_inode_sbi(inode)->be) != &mxfs_remote_backend)
		return MXFS_USE_PAGES;
	n = mxfs_remove_privs(inode);
	if (n)
		return n;
	if (iocb->ki_pos > i_size_read(inode))
		mxfs_pages_zero_tail(inode, i_size_read(inode));
	return mxfs_direct_io(iocb, from, true, false);
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
	if (n == MXFS_USE_PAGES && iocb->ki_flags & IOCB_DIRECT)
		n = mxfs_write_direct(iocb, from);
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

	if (iocb->ki_flags & IOCB_DIRECT) {
		n = mxfs_aio_start(iocb, from, true);
		if (n > 0)
			return generic_write_sync(iocb, n);
		if (n != -ENOTBLK)
			return n;
		done = mxfs_range_io(iocb, from, true);
		if (done < 0)
			return done;
		if (done && !iov_iter_count(from))
			return generic_write_sync(iocb, done);
		mxfs_range_used(inode);
	}
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
			fault_in = min_t(size_t, iov_iter_count(from),
					 n > 0 || iocb->ki_flags & IOCB_DIRECT ? MXFS_ROUND_BYTES : PAGE_SIZE);
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

/* PR held: the XFS knows what is data when everything has been written out and committed. */
static loff_t mxfs_seek_locked(struct inode *inode, loff_t offset, int whence)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	loff_t pos;

	if (offset < 0 || offset >= i_size_read(inode))
		return -ENXIO;
	pos = filemap_write_and_wait(inode->i_mapping);
	if (!pos)
		pos = mxfs_map_commit(inode);
	if (!pos)
		pos = mxfs_gate_enter(sbi);
	if (pos)
		return pos;
	pos = mxfs_lower_fresh(inode);
	if (!pos)
		pos = sbi->be->seek(sbi, &MXFS_I(inode)->fh, offset, whence);
	mxfs_gate_leave(sbi);
	return pos;
}

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
	if (!pos && (whence == SEEK_DATA || whence == SEEK_HOLE))
		pos = mxfs_seek_locked(inode, offset, whence);
	else if (!pos)
		pos = generic_file_llseek(file, offset, whence);
	mxfs_lock_put(&mi->lock, MXFS_MODE_PR);
	if (pos < 0 || whence == SEEK_END)
		return pos;
	return vfs_setpos(file, pos, inode->i_sb->s_maxbytes);
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
	err = mxfs_map_change_begin(inode);
	if (!err)
		err = sbi->be->fallocate(sbi, &mi->fh, mode, pos, len, &attr);
	mxfs_map_change_end(inode);
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

/* ------------------------------------------------------------------ copies and clones */

/* EX of both (PR of `in` for a copy), i_rwsem of both. */
static ssize_t mxfs_copy_locked(struct inode *in, loff_t in_pos, struct inode *out, loff_t out_pos, loff_t len, u32 flags)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(out);
	struct mxfs_inode *mo = MXFS_I(out);
	loff_t old_size = i_size_read(out), end = len ? out_pos + len : LLONG_MAX;
	struct mxfs_attr attr = {};
	ssize_t n;

	n = filemap_write_and_wait(in->i_mapping);
	if (!n)
		n = mxfs_map_commit(in);
	if (!n && in != out)
		n = filemap_write_and_wait(out->i_mapping);
	if (!n && !(flags & MXFS_COPY_DEDUPE))
		n = mxfs_remove_privs(out);
	if (n)
		return n;
	filemap_invalidate_lock(out->i_mapping);
	n = mxfs_pages_drop(out, out_pos >> PAGE_SHIFT, end == LLONG_MAX ? -1 : (end - 1) >> PAGE_SHIFT);
	if (!n)
		n = mxfs_gate_enter(sbi);
	if (n)
		goto unlock;
	n = mxfs_map_change_begin(out);
	if (in != out)
		n = mxfs_map_change_begin(in) ?: n;
	if (!n)
		n = sbi->be->copy(sbi, &MXFS_I(in)->fh, in_pos, &mo->fh, out_pos, len, flags, &attr);
	if (in != out)
		mxfs_map_change_end(in);
	mxfs_map_change_end(out);
	mxfs_gate_leave(sbi);
	if (n < 0)
		goto unlock;
	mxfs_lock_dirtied(&mo->lock);
	if (flags)
		mxfs_lock_dirtied(&MXFS_I(in)->lock);
	if (attr.fh.ino)
		mxfs_attr_apply(out, &attr, MXFS_APPLY_FORCE);
	else
		WRITE_ONCE(mo->attr_gen, 0);
	if (i_size_read(out) > old_size)
		mxfs_pages_zero_tail(out, old_size);
unlock:
	filemap_invalidate_unlock(out->i_mapping);
	return n;
}

static ssize_t mxfs_copy(struct inode *in, loff_t in_pos, struct inode *out, loff_t out_pos, loff_t len, u32 flags)
{
	struct mxfs_inode *first = MXFS_I(in), *second = MXFS_I(out);
	int in_mode = flags ? MXFS_MODE_EX : MXFS_MODE_PR, first_mode = in_mode, second_mode = MXFS_MODE_EX;
	ssize_t n;

	if (in == out) {
		first_mode = MXFS_MODE_EX;
		second = NULL;
	} else if (first->fh.ino > second->fh.ino) {
		swap(first, second);
		swap(first_mode, second_mode);
	}
	lock_two_nondirectories(in, out);
	n = mxfs_lock_get(&first->lock, first_mode, 0);
	if (n)
		goto unlock;
	n = second ? mxfs_lock_get(&second->lock, second_mode, 0) : 0;
	if (n)
		goto put_first;
	n = mxfs_attr_refresh(in);
	if (!n)
		n = mxfs_attr_refresh(out);
	if (!n)
		n = mxfs_copy_locked(in, in_pos, out, out_pos, len, flags);
	if (second)
		mxfs_lock_put(&second->lock, second_mode);
put_first:
	mxfs_lock_put(&first->lock, first_mode);
unlock:
	unlock_two_nondirectories(in, out);
	return n;
}

static ssize_t mxfs_file_copy_range(struct file *file_in, loff_t in_pos, struct file *file_out, loff_t out_pos, size_t len,
				    unsigned int flags)
{
	struct inode *in = file_inode(file_in), *out = file_inode(file_out);

	/* Of different mounts: through this node's memory. */
	if (in->i_sb != out->i_sb)
		return generic_copy_file_range(file_in, in_pos, file_out, out_pos, len, flags);
	return mxfs_copy(in, in_pos, out, out_pos, min_t(size_t, len, MXFS_COPY_BYTES), 0);
}

static loff_t mxfs_file_remap_range(struct file *file_in, loff_t in_pos, struct file *file_out, loff_t out_pos, loff_t len,
				    unsigned int flags)
{
	ssize_t n;

	if (flags & ~(REMAP_FILE_DEDUP | REMAP_FILE_ADVISORY))
		return -EINVAL;
	n = mxfs_copy(file_inode(file_in), in_pos, file_inode(file_out), out_pos, len,
		      flags & REMAP_FILE_DEDUP ? MXFS_COPY_DEDUPE : MXFS_COPY_CLONE);
	return n == -EILSEQ ? -EBADE : n;
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
	.copy_file_range = mxfs_file_copy_range,
	.remap_file_range = mxfs_file_remap_range,
	.lock = mxfs_file_lock,
	.flock = mxfs_file_flock,
	.setlease = simple_nosetlease,
};
