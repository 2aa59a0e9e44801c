// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS invalidation: what must happen to a node's caches before a lock is given up.
 *
 * From EX: write dirty pages and pending times to the holder, and if anything was changed under the lock make the
 * holder's log durable (rule 4: what another node has once seen never rolls back). To less than PR: unmap and drop the
 * pages, forget attributes and ACLs (names go by themselves: the lock's generation rises); CW has no pages, but times to send and
 * attributes to forget. To less than CR with
 * files open: take OPEN in PR, so that an unlinker elsewhere parks the file instead of freeing it.
 *
 * This runs in the demote work queue: nobody uses the lock above the new mode, new users wait. It takes no
 * i_rwsem, s_umount or mmap_lock, and waits for folios, for write-back, for `lazy`, and for the gate.
 *
 * A member asks the holder for that once for all that is given up at a time (settle).
 *
 * Known weakness: on the holder each give-up forces the log by itself; many at once are not batched here (XFS joins forces of the
 * same log position).
 */
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/posix_acl.h>
#include <linux/writeback.h>

#include "mxfs_vfs.h"

#define MXFS_MAPPED_HOLD_MS 10
#define MXFS_CLEAN_RUN 4       /* so many give-ups in a row, */
#define MXFS_CLEAN_RUN_MS 250  /* each no longer than this after the one before: sync everything */
#define MXFS_DROP_TRIES 16 /* rounds of writing out and dropping, against stores through mappings */

/*
 * Writes and drops the pages `first` to `last` (-1: all from there). -EBUSY when stores through mappings kept
 * dirtying them; pages whose lock is being given up cannot be, since page_mkwrite waits for EX.
 */
int mxfs_pages_drop(struct inode *inode, pgoff_t first, pgoff_t last)
{
	struct address_space *mapping = inode->i_mapping;
	loff_t start = (loff_t)first << PAGE_SHIFT;
	loff_t end = last == (pgoff_t)-1 ? LLONG_MAX : ((loff_t)(last + 1) << PAGE_SHIFT) - 1;
	int tries, err = 0;

	if (!mapping->nrpages)
		return 0;
	mxfs_count(mxfs_inode_sbi(inode), MXFS_COUNT_INVALIDATE);
	for (tries = 0; tries < MXFS_DROP_TRIES; tries++) {
		/* Shared and unchanged private pages; what a private mapping has changed is its own. */
		unmap_mapping_range(mapping, start, end == LLONG_MAX ? 0 : end - start + 1, 0);
		err = filemap_write_and_wait_range(mapping, start, end);
		if (err)
			return err;
		err = invalidate_inode_pages2_range(mapping, first, last);
		if (err != -EBUSY)
			return err;
		cond_resched();
	}
	return err;
}

/*
 * One inode after the other is given up when another node walks through what was made here: then one sync of the whole
 * file system makes all of them durable, and the next ones find nothing left to do. A single one is synced by itself.
 */
static bool mxfs_clean_all(struct mxfs_sb_info *sbi)
{
	unsigned long last = READ_ONCE(sbi->cleaned_at);

	WRITE_ONCE(sbi->cleaned_at, jiffies);
	if (time_after(jiffies, last + msecs_to_jiffies(MXFS_CLEAN_RUN_MS))) {
		atomic_set(&sbi->cleaned_run, 0);
		return false;
	}
	return atomic_inc_return(&sbi->cleaned_run) > MXFS_CLEAN_RUN;
}

/* Everything that was done under EX reaches the holder, and its disk. */
static void mxfs_inode_clean(struct mxfs_lock *lk, struct inode *inode)
{
	struct mxfs_sb_info *sbi = lk->sbi;
	struct mxfs_inode *mi = MXFS_I(inode);
	bool all;
	int err = 0;

	if (S_ISREG(inode->i_mode)) {
		/* Failed pages are lost and told of by who wrote them; fsync and close report it. */
		mxfs_data_clean(inode);
	}
	if ((!READ_ONCE(lk->dirtied) && !READ_ONCE(lk->sync_all)) || mxfs_lock_defer_clean(lk))
		return;
	WRITE_ONCE(lk->dirtied, false);
	all = READ_ONCE(lk->sync_all);
	WRITE_ONCE(lk->sync_all, false);
	err = mxfs_gate_enter_wait(sbi);
	if (!err && sbi->be->settle) {
		err = sbi->be->settle(sbi);
		mxfs_gate_leave(sbi);
	} else if (!err) {
		err = -ESTALE;
		/* The one inode where that is enough; it carries the log with everything before it. */
		if ((S_ISREG(inode->i_mode) || S_ISDIR(inode->i_mode)) &&
		    !test_bit(MXFS_VN_GONE, &MXFS_VN(inode)->state) && !all && !mxfs_clean_all(sbi))
			err = sbi->be->fsync(sbi, &mi->fh, false);
		if (err)
			err = sbi->be->syncfs(sbi);
		mxfs_gate_leave(sbi);
	}
	if (err && !mxfs_gate_fenced(&sbi->gate)) {
		mxfs_err(sbi, "inode %llu: making its changes durable failed with %d; giving up the volume here, "
			 "since other nodes must not see what could roll back", mi->fh.ino, err);
		mxfs_fence(sbi, "log force before giving up a lock failed");
	}
}

static void mxfs_inode_forget(struct mxfs_lock *lk, struct inode *inode)
{
	struct mxfs_sb_info *sbi = lk->sbi;
	int err;

	if (S_ISREG(inode->i_mode)) {
		err = mxfs_pages_drop(inode, 0, -1);
		if (err) {
			/* Clean or lost by now: nothing may stay that other nodes are about to change. */
			if (!mxfs_gate_fenced(&sbi->gate))
				mxfs_err(sbi, "inode %llu: dropping its pages failed with %d; dropping them by force",
					 MXFS_I(inode)->fh.ino, err);
			truncate_inode_pages(inode->i_mapping, 0);
		}
		mxfs_data_forget(inode);
	} else if (S_ISDIR(inode->i_mode)) {
		mxfs_ahead_forget(inode);
	}
	spin_lock(&inode->i_lock);
	WRITE_ONCE(MXFS_I(inode)->attr_gen, 0);
	MXFS_VN(inode)->attr_seq++;
	clear_bit(MXFS_VN_LOCAL, &MXFS_VN(inode)->state);
	clear_bit(MXFS_VN_UNPRIVED, &MXFS_VN(inode)->state);
	spin_unlock(&inode->i_lock);
	forget_all_cached_acls(inode);
}

/* Open files keep an unlinked file alive on other nodes' behalf only through OPEN once INODE is gone. */
static void mxfs_inode_take_open(struct inode *inode)
{
	struct mxfs_inode *mi = MXFS_I(inode);
	bool keep = false;
	int err;

	if (!atomic_read(&mi->open_count) || mi->open_held)
		return;
	err = mxfs_lock_get(&mi->open, MXFS_MODE_PR, MXFS_LOCK_NOINTR);
	if (err) {
		if (!mxfs_gate_fenced(&mi->lock.sbi->gate))
			mxfs_err(mi->lock.sbi, "inode %llu: OPEN lock refused with %d; it may be freed while open here",
				 mi->fh.ino, err);
		return;
	}
	spin_lock(&inode->i_lock);
	if (atomic_read(&mi->open_count))
		keep = mi->open_held = true;
	spin_unlock(&inode->i_lock);
	if (!keep) { /* closed meanwhile; its work item gives the cached OPEN back */
		mxfs_lock_put(&mi->open, MXFS_MODE_PR);
		mxfs_last_close_queue(inode);
	}
}

static void mxfs_inode_demote(struct mxfs_lock *lk, int from, int to)
{
	struct inode *inode = lk->owner;

	if (S_ISREG(inode->i_mode))
		mxfs_range_contended(inode, READ_ONCE(lk->bast));
	if (from > MXFS_MODE_PR || from == MXFS_MODE_CW) {
		clear_bit(MXFS_VN_OURS, &MXFS_VN(inode)->state);
		mxfs_inode_clean(lk, inode);
	}
	if (to < MXFS_MODE_PR && from >= MXFS_MODE_CW)
		mxfs_inode_forget(lk, inode);
	if (to < MXFS_MODE_CR)
		mxfs_inode_take_open(inode);
}

bool mxfs_inode_pin(struct mxfs_lock *lk)
{
	return igrab(lk->owner) != NULL;
}

void mxfs_inode_unpin(struct mxfs_lock *lk)
{
	iput(lk->owner);
}

/*
 * A store through a mapping takes a fault and then page_mkwrite, each under a lock of its own. If every BAST came
 * between the two, two nodes that store in turns would take the page from each other for ever.
 */
static unsigned long mxfs_inode_hold(struct mxfs_lock *lk)
{
	struct inode *inode = lk->owner;

	return mapping_mapped(inode->i_mapping) ? msecs_to_jiffies(MXFS_MAPPED_HOLD_MS) : 0;
}

/* An open file would have its lock asked for again soon, and OPEN until then. */
static bool mxfs_inode_idle(struct mxfs_lock *lk)
{
	struct inode *inode = lk->owner;

	return !atomic_read(&MXFS_I(inode)->open_count) && !mapping_mapped(inode->i_mapping);
}

static bool mxfs_inode_is_clean(struct mxfs_lock *lk)
{
	struct inode *inode = lk->owner;
	struct mxfs_map *map = &MXFS_VN(inode)->map;

	return mxfs_inode_idle(lk) && !mxfs_is_local(inode) && !mapping_tagged(inode->i_mapping, PAGECACHE_TAG_DIRTY) &&
	       !mapping_tagged(inode->i_mapping, PAGECACHE_TAG_WRITEBACK) && !READ_ONCE(map->batch) && !READ_ONCE(map->beyond) &&
	       !READ_ONCE(map->unflushed);
}

/* Nothing is lost with the lock but what one answer brings back. */
static bool mxfs_inode_is_bare(struct mxfs_lock *lk)
{
	struct inode *inode = lk->owner;

	return !inode->i_mapping->nrpages && (!S_ISREG(inode->i_mode) || !i_size_read(inode));
}

const struct mxfs_lock_ops mxfs_inode_lock_ops = {
	.demote = mxfs_inode_demote,
	.get = mxfs_inode_pin,
	.put = mxfs_inode_unpin,
	.idle = mxfs_inode_idle,
	.clean = mxfs_inode_is_clean,
	.bare = mxfs_inode_is_bare,
	.hold = mxfs_inode_hold,
};

/* OPEN protects no cache: there is nothing to do before it is lowered. */
static void mxfs_open_demote(struct mxfs_lock *lk, int from, int to)
{
}

const struct mxfs_lock_ops mxfs_open_lock_ops = {
	.demote = mxfs_open_demote,
	.get = mxfs_inode_pin,
	.put = mxfs_inode_unpin,
};

/* ------------------------------------------------------------------ without giving up locks */

/* PR or stronger may be held by others meanwhile: they fetch again what they need next. */
static void mxfs_inode_invalidate(struct inode *inode)
{
	struct mxfs_vnode *vn = MXFS_VN(inode);
	int err = 0;

	spin_lock(&inode->i_lock);
	WRITE_ONCE(vn->mi.attr_gen, 0);
	vn->attr_seq++;
	WRITE_ONCE(vn->names_seq, vn->names_seq + 1);
	spin_unlock(&inode->i_lock);
	clear_bit(MXFS_VN_UNPRIVED, &vn->state);
	forget_all_cached_acls(inode);
	if (S_ISREG(inode->i_mode))
		err = mxfs_pages_drop(inode, 0, -1);
	if (err && mxfs_gate_fenced(&mxfs_inode_sbi(inode)->gate))
		truncate_inode_pages(inode->i_mapping, 0); /* dirty ones are lost, as the fence has said; fsync tells */
	else if (err)
		mxfs_warn(mxfs_inode_sbi(inode), "inode %lu: dropping its pages failed with %d", inode->i_ino, err);
}

void mxfs_cache_invalidate(struct mxfs_sb_info *sbi, u64 ino)
{
	struct inode *inode, *last = NULL;

	spin_lock(&sbi->sb->s_inode_list_lock);
	list_for_each_entry(inode, &sbi->sb->s_inodes, i_sb_list) {
		spin_lock(&inode->i_lock);
		if ((ino && inode->i_ino != ino) || inode->i_state & (I_FREEING | I_WILL_FREE | I_NEW)) {
			spin_unlock(&inode->i_lock);
			continue;
		}
		__iget(inode);
		spin_unlock(&inode->i_lock);
		spin_unlock(&sbi->sb->s_inode_list_lock);
		iput(last); /* its place in the list was needed until now */
		mxfs_inode_invalidate(inode);
		last = inode;
		cond_resched();
		spin_lock(&sbi->sb->s_inode_list_lock);
	}
	spin_unlock(&sbi->sb->s_inode_list_lock);
	iput(last);
}

int mxfs_cache_init(void)
{
	return 0;
}

void mxfs_cache_exit(void)
{
}
