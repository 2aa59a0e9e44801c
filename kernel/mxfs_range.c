// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: O_DIRECT in parallel: threads of one node, and nodes that read and write different parts of one file.
 *
 * Usually a file belongs to one writer as a whole: INODE in EX, one grant for all of it. When two nodes take it from each other
 * while they use it with O_DIRECT, both go over to ranges: INODE in CW, which they can hold together, and EXTENT locks (EX to
 * write, PR to read) for the part at hand. All of them stay cached, so nodes that keep to their parts send nothing.
 *
 *	whole ── INODE given up during direct I/O, or somebody asks for CW ──► ranges, for MXFS_RANGE_MS after the last such event
 *	ranges ── nobody contends any more, or an operation that CW does not allow ──► whole
 *
 * CW promises that nobody else changes size, mode, owner, ACL or blocks (that takes EX), and that nobody has pages of the file.
 * So what is done here is what changes none of them: I/O inside i_size, on a member over blocks that are allocated and written
 * ("written" is a state that only EX takes back; holes and unwritten extents are not believed, since the holder may be filling
 * them in CW). Everything else goes on under EX or PR, as if there were no ranges. Times are kept locally and sent when CW goes.
 *
 * The same writes, when the whole file is this node's (EX), need i_rwsem only shared.
 *
 * A part is a power of two, so large that a file has at most MXFS_RANGES_MAX; it follows from i_size, which is the same on all
 * nodes that hold CW. Its lock is given up after the disk's cache has been flushed: what another node reads then stays.
 *
 * Locks: i_rwsem shared -> INODE CW -> EXTENT by offset -> gate. `ranges` grows under i_rwsem shared (and the xarray's own lock),
 * and is emptied at eviction only, so that a lock stays where it is while anybody can have it.
 *
 * Known weakness: parts are not joined or split: two nodes that write everywhere in a large file take whole parts from each other.
 */
#include <linux/log2.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <linux/xarray.h>

#include "mxfs_vfs.h"

#define MXFS_RANGE_MS 30000    /* how long after the last contention */
#define MXFS_RANGE_DIO_MS 2000 /* direct I/O so short ago counts as under way */
#define MXFS_RANGE_BYTES SZ_1M /* the smallest part, and most that is done in one round: so a round has two of them at most */
#define MXFS_RANGES_MAX 4096   /* parts of a file */

struct mxfs_range {
	struct mxfs_lock lock;
	struct rcu_head rcu;
};

/* ------------------------------------------------------------------ the locks */

static void range_demote(struct mxfs_lock *lk, int from, int to)
{
	mxfs_range_contended(lk->owner, MXFS_MODE_CW);
	if (from > MXFS_MODE_PR)
		mxfs_data_settle(lk->owner);
}

static const struct mxfs_lock_ops range_lock_ops = {
	.demote = range_demote,
	.get = mxfs_inode_pin,
	.put = mxfs_inode_unpin,
};

static struct mxfs_lock *range_lock(struct inode *inode, unsigned int shift, u64 index)
{
	struct xarray *ranges = &MXFS_VN(inode)->ranges;
	struct mxfs_inode *mi = MXFS_I(inode);
	struct mxfs_range *range, *there;
	/* By where it begins: parts of another size have been forgotten, or are the same. */
	unsigned long key = (index << shift) / MXFS_RANGE_BYTES;

	range = xa_load(ranges, key);
	if (range)
		return &range->lock;
	range = kzalloc(sizeof(*range), GFP_KERNEL);
	if (!range)
		return NULL;
	mxfs_lock_init(mxfs_inode_sbi(inode), &range->lock, &range_lock_ops, inode, MXFS_RES_EXTENT, mi->fh.ino, index << shift);
	range->lock.inode_gen = mi->fh.gen;
	there = xa_cmpxchg(ranges, key, NULL, range, GFP_KERNEL);
	if (!there)
		return &range->lock;
	kfree(range); /* never asked for: nobody knows it */
	return xa_is_err(there) ? NULL : &there->lock;
}

void mxfs_ranges_destroy(struct inode *inode)
{
	struct mxfs_vnode *vn = MXFS_VN(inode);
	struct mxfs_range *range;
	unsigned long key;

	xa_for_each(&vn->ranges, key, range) {
		mxfs_lock_destroy(&range->lock);
		kfree_rcu(range, rcu);
	}
	xa_destroy(&vn->ranges);
}

/* ------------------------------------------------------------------ when */

void mxfs_range_used(struct inode *inode)
{
	WRITE_ONCE(MXFS_VN(inode)->direct_at, jiffies | 1);
}

void mxfs_range_contended(struct inode *inode, int wanted)
{
	struct mxfs_vnode *vn = MXFS_VN(inode);
	unsigned long last = READ_ONCE(vn->direct_at);

	if (wanted == MXFS_MODE_CW || (last && time_before(jiffies, last + msecs_to_jiffies(MXFS_RANGE_DIO_MS))))
		WRITE_ONCE(vn->ranges_until, (jiffies + msecs_to_jiffies(MXFS_RANGE_MS)) | 1);
}

/* INODE's mode for the next round: EX, the whole file, which is here already; CW; NL: none of this. A hint. */
static int range_mode(struct inode *inode, const struct kiocb *iocb, bool write)
{
	struct mxfs_vnode *vn = MXFS_VN(inode);
	unsigned long until = READ_ONCE(vn->ranges_until);

	if (iocb->ki_flags & IOCB_APPEND || mapping_mapped(inode->i_mapping))
		return MXFS_MODE_NL;
	if (mxfs_lock_is_cached(&vn->mi.lock, write ? MXFS_MODE_EX : MXFS_MODE_PR))
		return write ? MXFS_MODE_EX : MXFS_MODE_NL; /* reading is parallel anyway */
	if (until && time_after(jiffies, until))
		WRITE_ONCE(vn->ranges_until, until = 0);
	return until ? MXFS_MODE_CW : MXFS_MODE_NL;
}

/* ------------------------------------------------------------------ a round */

/* On the holder: the lower file's own O_DIRECT. CW and the range held. */
static ssize_t range_lower(struct kiocb *iocb, struct iov_iter *iter, bool write)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_attr attr = {};
	ssize_t n;

	n = mxfs_push_times(inode); /* from the time as a member: they must not come behind this write */
	if (n)
		return n;
	n = mxfs_gate_enter(sbi);
	if (n)
		return n;
	n = sbi->be == &mxfs_local_backend ? mxfs_lower_fresh(inode) : -ENOTBLK;
	if (!n)
		n = mxfs_lower_direct(iocb, iter, write, &attr);
	if (write && n > 0) {
		mxfs_lock_dirtied(&MXFS_I(inode)->lock);
		WRITE_ONCE(MXFS_VN(inode)->map.unflushed, true);
		WRITE_ONCE(MXFS_I(inode)->attr_gen, 0);
	}
	mxfs_gate_leave(sbi);
	return n;
}

/* INODE is held in use->mode, the attributes are valid. Takes what else the I/O needs. -ENOTBLK: not in this way. */
static int range_parts_get(struct kiocb *iocb, struct iov_iter *iter, bool write, unsigned int flags,
			   struct mxfs_range_use *use)
{
	u64 pos = iocb->ki_pos, end = pos + iov_iter_count(iter), size = i_size_read(use->inode);
	struct inode *inode = use->inode;
	struct mxfs_lock *lk;
	unsigned int shift;
	int err = 0;

	if (end > size || inode->i_mapping->nrpages || (write && !test_bit(MXFS_VN_UNPRIVED, &MXFS_VN(inode)->state)))
		return -ENOTBLK;
	if (use->mode != MXFS_MODE_CW) /* the whole file */
		return 0;
	shift = ilog2(roundup_pow_of_two(max_t(u64, DIV_ROUND_UP_ULL(size, MXFS_RANGES_MAX), MXFS_RANGE_BYTES)));
	if (((end - 1) >> shift) - (pos >> shift) >= MXFS_ROUND_RANGES)
		return -ENOTBLK;
	use->part_mode = write ? MXFS_MODE_EX : MXFS_MODE_PR;
	while ((pos >> shift) + use->count <= (end - 1) >> shift) {
		lk = range_lock(inode, shift, (pos >> shift) + use->count);
		err = lk ? mxfs_lock_get(lk, use->part_mode, flags) : -ENOMEM;
		if (err)
			break;
		use->parts[use->count++] = lk;
	}
	return err;
}

static void range_parts_put(struct mxfs_range_use *use)
{
	while (use->count)
		mxfs_lock_put(use->parts[--use->count], use->part_mode);
}

int mxfs_range_get(struct kiocb *iocb, struct iov_iter *iter, bool write, struct mxfs_range_use *use)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct mxfs_inode *mi = MXFS_I(inode);
	int err;

	if (iocb->ki_flags & IOCB_APPEND || mapping_mapped(inode->i_mapping))
		return -ENOTBLK;
	*use = (struct mxfs_range_use){ .inode = inode, .mode = write ? MXFS_MODE_EX : MXFS_MODE_PR };
	err = mxfs_lock_get(&mi->lock, use->mode, MXFS_LOCK_CACHED);
	if (err == -EAGAIN) {
		use->mode = MXFS_MODE_CW;
		err = mxfs_lock_get(&mi->lock, use->mode, MXFS_LOCK_CACHED);
	}
	if (err)
		return err;
	err = mxfs_attr_refresh(inode);
	if (!err && mxfs_is_local(inode) && READ_ONCE(mxfs_inode_sbi(inode)->be) == &mxfs_local_backend)
		err = -ENOTBLK; /* pending times must go first */
	if (!err)
		err = range_parts_get(iocb, iter, write, MXFS_LOCK_CACHED, use);
	if (err)
		mxfs_range_put(use);
	else
		mxfs_range_used(inode);
	return err;
}

void mxfs_range_put(struct mxfs_range_use *use)
{
	range_parts_put(use);
	mxfs_lock_put(&MXFS_I(use->inode)->lock, use->mode);
}

/* INODE held, the attributes are valid. -ENOTBLK: not in this way. */
static ssize_t range_locked(struct kiocb *iocb, struct iov_iter *iter, bool write, int mode)
{
	struct mxfs_range_use use = { .inode = file_inode(iocb->ki_filp), .mode = mode };
	ssize_t n = range_parts_get(iocb, iter, write, 0, &use);

	if (!n && READ_ONCE(mxfs_inode_sbi(use.inode)->be) == &mxfs_local_backend)
		n = range_lower(iocb, iter, write);
	else if (!n)
		n = mxfs_direct_io(iocb, iter, write, true);
	range_parts_put(&use);
	return n;
}

/* Bytes; -EFAULT: a page of the buffer is not there; -ENOTBLK: not in this way; -EAGAIN: what was here is wanted by others. */
static ssize_t range_round(struct kiocb *iocb, struct iov_iter *iter, bool write, int mode)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct mxfs_inode *mi = MXFS_I(inode);
	size_t hidden;
	ssize_t n;

	n = mxfs_lock_get(&mi->lock, mode, mode == MXFS_MODE_EX ? MXFS_LOCK_CACHED : 0);
	if (n)
		return n;
	n = mxfs_attr_refresh(inode);
	if (!n && write) {
		n = generic_write_checks(iocb, iter);
		n = n < 0 ? n : 0;
	}
	if (!n && write && !test_bit(MXFS_VN_UNPRIVED, &MXFS_VN(inode)->state) && !is_sxid(inode->i_mode))
		n = mxfs_remove_privs(inode); /* file capabilities alone: of most files there are none */
	if (!n && iov_iter_count(iter)) {
		hidden = mxfs_iter_window(iter, MXFS_RANGE_BYTES);
		n = range_locked(iocb, iter, write, mode);
		mxfs_iter_unhide(iter, hidden);
	}
	mxfs_lock_put(&mi->lock, mode);
	return n;
}

ssize_t mxfs_range_io(struct kiocb *iocb, struct iov_iter *iter, bool write)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	size_t fault_in, left;
	ssize_t done = 0, n = 0;
	int mode;

	if (range_mode(inode, iocb, write) == MXFS_MODE_NL)
		return 0;
	inode_lock_shared(inode);
	while (iov_iter_count(iter)) {
		mode = range_mode(inode, iocb, write);
		if (mode == MXFS_MODE_NL)
			break;
		n = range_round(iocb, iter, write, mode);
		mxfs_range_used(inode);
		if (n > 0) {
			done += n;
			if (mode == MXFS_MODE_CW)
				mxfs_count(sbi, MXFS_COUNT_RANGE_IO);
			continue;
		}
		if (n == -EAGAIN)
			continue;
		if (n == -ENOTBLK && mode == MXFS_MODE_CW)
			mxfs_count(sbi, MXFS_COUNT_RANGE_REFUSED);
		if (n != -EFAULT)
			break;
		fault_in = min_t(size_t, iov_iter_count(iter), MXFS_RANGE_BYTES);
		left = write ? fault_in_iov_iter_readable(iter, fault_in) : fault_in_iov_iter_writeable(iter, fault_in);
		if (left == fault_in)
			break;
		if (fatal_signal_pending(current)) {
			n = -EINTR;
			break;
		}
	}
	inode_unlock_shared(inode);
	return done || n == -ENOTBLK ? done : min_t(ssize_t, n, 0);
}
