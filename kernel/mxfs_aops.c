// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS page cache: reading pages, writing into them, writing them back, mappings.
 *
 * Who holds what (docs/caching.md has the tables): the DLM lock is held by whoever calls in here (read and fault PR,
 * write and page_mkwrite EX; write-back none: a dirty page means that EX is cached, and it is not given up before the
 * page is written). The gate is entered in here, around each call of the back end, with folios locked or
 * under write-back; so nobody inside the gate may wait for a folio of mxfs.
 *
 * On a member pages go straight from and to the disk where that is possible (mxfs_direct.c), asynchronously; the others travel
 * in runs of neighbours of at most MXFS_FSOP_DATA_MAX bytes, through the holder on a member, through the lower file on the holder.
 * Write-back marks a run and unlocks it before it waits for the gate. What could not be sent because the sender was killed or out of memory stays
 * dirty; any other error is kept in the mapping and reported by fsync and close.
 *
 * Known weakness: a member's buffered write reserves no space; that the volume is full comes out at write-out, and is
 * told by fsync and close, as with NFS. What goes through the holder goes one run after the other. On the holder mapped
 * pages exist twice, here and in the lower page cache.
 */
#include <linux/backing-dev.h>
#include <linux/blkdev.h>
#include <linux/bvec.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/ratelimit.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/writeback.h>

#include "mxfs_vfs.h"

#define MXFS_PART_PAGES (MXFS_FSOP_DATA_MAX / PAGE_SIZE) /* of what goes through the back end at once */
#define MXFS_RUN_PAGES 256

/* ------------------------------------------------------------------ reading */

/* Locked neighbours, by the back end, inside the gate; uptodate afterwards, zeros behind the end of the lower file. */
static int mxfs_pages_fetch(struct inode *inode, struct page **pages, unsigned int count)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct bio_vec bv[MXFS_PART_PAGES];
	size_t len = (size_t)count * PAGE_SIZE, from;
	struct iov_iter iter;
	unsigned int i;
	ssize_t done;

	for (i = 0; i < count; i++) {
		bv[i].bv_page = pages[i];
		bv[i].bv_offset = 0;
		bv[i].bv_len = PAGE_SIZE;
	}
	/* What this node has written to the disk itself the lower XFS does not know of yet. */
	done = mxfs_map_commit_gated(inode, NULL);
	if (done >= 0)
		done = mxfs_lower_fresh(inode);
	if (done < 0)
		return done;
	iov_iter_bvec(&iter, READ, bv, count, len);
	mxfs_count_add(sbi, MXFS_COUNT_HOLDER_READ, count);
	done = sbi->be->read(sbi, &MXFS_I(inode)->fh, page_offset(pages[0]), &iter);
	if (done < 0)
		return done;
	for (i = 0; i < count; i++) {
		from = (size_t)i * PAGE_SIZE;
		if (done < from + PAGE_SIZE)
			zero_user_segment(pages[i], done > from ? done - from : 0, PAGE_SIZE);
		flush_dcache_page(pages[i]);
		SetPageUptodate(pages[i]);
	}
	return 0;
}

/* One locked page, which stays locked. */
static int mxfs_page_read(struct inode *inode, struct page *page)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	int err;

	err = mxfs_gate_enter(sbi);
	if (err)
		return err;
	err = mxfs_direct_read_wait(inode, page);
	if (err && err != -EINTR && err != -ERESTARTSYS)
		err = mxfs_pages_fetch(inode, &page, 1);
	mxfs_gate_leave(sbi);
	return err;
}

static int mxfs_read_folio(struct file *file, struct folio *folio)
{
	int err = mxfs_page_read(folio->mapping->host, &folio->page);

	folio_unlock(folio);
	return err;
}

static void mxfs_pages_release(struct page **pages, unsigned int count)
{
	while (count--)
		unlock_page(*pages++);
}

/* Failed pages are left for read_folio, which has somebody to tell. */
static void mxfs_readahead(struct readahead_control *rac)
{
	struct inode *inode = rac->mapping->host;
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_reader reader = { .inode = inode };
	struct page *pages[MXFS_PART_PAGES];
	unsigned int count, i;
	u64 ahead;

	if (mxfs_gate_enter(sbi))
		return; /* the VFS unlocks them */
	for (;;) {
		ahead = readahead_length(rac);
		count = readahead_page_batch(rac, pages);
		if (!count)
			break;
		/* Locked: they stay in the page cache, and the inode with them. */
		for (i = 0; i < count; i++)
			put_page(pages[i]);
		for (i = 0; i < count; i++) {
			if (mxfs_direct_read_page(&reader, pages[i], ahead - (u64)i * PAGE_SIZE))
				break;
		}
		if (i < count) {
			mxfs_direct_read_end(&reader);
			mxfs_pages_fetch(inode, pages + i, count - i);
			mxfs_pages_release(pages + i, count - i);
		}
	}
	mxfs_direct_read_end(&reader);
	mxfs_gate_leave(sbi);
}

/* ------------------------------------------------------------------ writing into pages */

void mxfs_pages_zero_tail(struct inode *inode, loff_t old_size)
{
	unsigned int offset = offset_in_page(old_size);
	struct page *page;

	if (!offset)
		return;
	page = find_lock_page(inode->i_mapping, old_size >> PAGE_SHIFT);
	if (!page)
		return;
	if (PageUptodate(page)) {
		zero_user_segment(page, offset, PAGE_SIZE);
		flush_dcache_page(page);
	}
	unlock_page(page);
	put_page(page);
}

/* Makes the part of a page that a write leaves alone right. */
static int mxfs_page_prepare(struct inode *inode, struct page *page, unsigned int offset, unsigned int bytes)
{
	loff_t size = i_size_read(inode), pos = page_offset(page);

	if (PageUptodate(page) || bytes == PAGE_SIZE)
		return 0;
	if (pos >= size || (!offset && pos + bytes >= size)) {
		zero_user_segments(page, 0, offset, offset + bytes, PAGE_SIZE);
		return 0;
	}
	return mxfs_page_read(inode, page);
}

/*
 * Copies without page faults: the caller has faulted `from` in, and on a short count or -EFAULT drops
 * its locks and does so again. i_rwsem and EX are held.
 */
ssize_t mxfs_pages_write(struct inode *inode, loff_t pos, struct iov_iter *from)
{
	struct address_space *mapping = inode->i_mapping;
	unsigned int offset, bytes, copied;
	ssize_t written = 0;
	struct page *page;
	loff_t size;
	int err = 0;

	if (pos > i_size_read(inode))
		mxfs_pages_zero_tail(inode, i_size_read(inode));
	while (iov_iter_count(from)) {
		offset = offset_in_page(pos);
		bytes = min_t(size_t, PAGE_SIZE - offset, iov_iter_count(from));
		if (fatal_signal_pending(current)) {
			err = -EINTR;
			break;
		}
		page = grab_cache_page_write_begin(mapping, pos >> PAGE_SHIFT);
		if (!page) {
			err = -ENOMEM;
			break;
		}
		err = mxfs_page_prepare(inode, page, offset, bytes);
		if (err) {
			unlock_page(page);
			put_page(page);
			break;
		}
		pagefault_disable();
		copied = copy_page_from_iter_atomic(page, offset, bytes, from);
		pagefault_enable();
		flush_dcache_page(page);
		if (!PageUptodate(page)) {
			if (copied == bytes) {
				SetPageUptodate(page);
			} else { /* nothing to show for the rest of the page */
				iov_iter_revert(from, copied);
				copied = 0;
			}
		}
		if (copied) {
			set_page_dirty(page);
			size = pos + copied > i_size_read(inode) ? pos + copied : -1;
			mxfs_local_changed(inode, size);
		}
		unlock_page(page);
		put_page(page);
		pos += copied;
		written += copied;
		if (copied < bytes) {
			err = -EFAULT;
			break;
		}
		cond_resched();
	}
	return written ? written : err;
}

/* ------------------------------------------------------------------ write-back */

struct mxfs_run { /* neighbours, all under write-back; the last may end inside its page */
	struct inode *inode;
	struct page *pages[MXFS_RUN_PAGES];
	unsigned int count;
	loff_t pos;
	size_t len;
	bool sync;
	int err; /* the first */
};

static bool mxfs_error_passes(int err)
{
	return err == -ERESTARTSYS || err == -EINTR || err == -EAGAIN || err == -ENOMEM;
}

/* Through the back end, inside the gate. */
static int mxfs_part_write(struct inode *inode, struct page **pages, unsigned int count, loff_t pos, size_t len)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_vnode *vn = MXFS_VN(inode);
	struct bio_vec bv[MXFS_PART_PAGES];
	struct timespec64 mtime;
	const struct cred *old;
	struct mxfs_attr attr;
	struct iov_iter iter;
	unsigned int nofs, i;
	size_t done = 0;
	u64 seq;
	ssize_t n;
	int err = 0;

	for (i = 0; i < count; i++) {
		bv[i].bv_page = pages[i];
		bv[i].bv_offset = 0;
		bv[i].bv_len = min_t(size_t, PAGE_SIZE, len - (size_t)i * PAGE_SIZE);
	}
	mxfs_count_add(sbi, MXFS_COUNT_HOLDER_WRITE, count);
	nofs = memalloc_nofs_save();
	old = override_creds(mxfs_kernel_cred);
	attr.fh.ino = 0;
	/* The time goes along: if nothing else is changed before all is written, there is nothing left to send (mxfs_push_times). */
	spin_lock(&inode->i_lock);
	mtime = inode->i_mtime;
	seq = vn->attr_seq;
	spin_unlock(&inode->i_lock);
	/*
	 * The lower file's end first has to reach as far as this node has written by itself: a write behind its end makes XFS zero
	 * what lies between, also in a block that has our data already.
	 */
	err = min(mxfs_map_commit_gated(inode, NULL), 0);
	if (!err)
		err = mxfs_lower_fresh(inode);
	while (!err && done < len) {
		iov_iter_bvec(&iter, WRITE, bv, count, len);
		iov_iter_advance(&iter, done);
		n = sbi->be->write(sbi, &vn->mi.fh, pos + done, &iter, true, &mtime, &attr);
		if (n <= 0) {
			err = n ? n : -EIO;
			break;
		}
		done += n;
	}
	revert_creds(old);
	memalloc_nofs_restore(nofs);
	/* It may have blocks now where there was a hole, and data where there were blocks. */
	mxfs_map_forget(inode, pos, len);
	WRITE_ONCE(vn->map.written_to, round_up(pos + len, PAGE_SIZE));
	if (done)
		mxfs_lock_dirtied(&vn->mi.lock);
	if (!err && attr.fh.ino) {
		spin_lock(&inode->i_lock);
		inode->i_blocks = attr.blocks;
		vn->disk_size = attr.size;
		vn->sent.seq = timespec64_equal(&attr.mtime, &mtime) ? seq : 0;
		vn->sent.change = attr.change;
		vn->sent.change_of = attr.holders;
		vn->sent.ctime = attr.ctime;
		spin_unlock(&inode->i_lock);
	}
	return err;
}

/* What has not been taken over by the disk's I/O: how it went. */
static void mxfs_part_end(struct mxfs_run *run, unsigned int from, unsigned int count, int err)
{
	static DEFINE_RATELIMIT_STATE(often, DEFAULT_RATELIMIT_INTERVAL, DEFAULT_RATELIMIT_BURST);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(run->inode);
	loff_t pos = run->pos + (loff_t)from * PAGE_SIZE;
	unsigned int i;

	if (err && !run->err)
		run->err = err;
	if (err && !mxfs_error_passes(err)) {
		mapping_set_error(run->inode->i_mapping, err);
		if ((err != -EIO || !mxfs_gate_fenced(&sbi->gate)) && __ratelimit(&often))
			mxfs_err(sbi, "inode %llu: write-back of %u pages at %lld failed with %d: they are lost, fsync tells",
				 MXFS_I(run->inode)->fh.ino, count, pos, err);
	}
	for (i = from; i < from + count; i++) {
		if (err && mxfs_error_passes(err))
			set_page_dirty(run->pages[i]);
		end_page_writeback(run->pages[i]);
	}
}

static void mxfs_run_send(struct mxfs_run *run)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(run->inode);
	unsigned int at = 0, part, from;
	size_t len;
	int n, err;

	if (!run->count)
		return;
	if (test_bit(MXFS_VN_GONE, &MXFS_VN(run->inode)->state)) {
		mxfs_part_end(run, 0, run->count, 0);
		goto out;
	}
	err = mxfs_gate_enter_wait(sbi);
	if (err) {
		mxfs_part_end(run, 0, run->count, err);
		goto out;
	}
	while (at < run->count) {
		len = run->len - (size_t)at * PAGE_SIZE;
		n = mxfs_direct_write(run->inode, run->pages + at, run->count - at, run->pos + (loff_t)at * PAGE_SIZE, len,
				      run->sync, &part);
		if (n > 0) {
			at += n;
			continue;
		}
		if (n < 0) {
			mxfs_part_end(run, at, part, n);
			at += part;
			continue;
		}
		for (from = at; from < at + part; from += n) {
			n = min_t(unsigned int, at + part - from, MXFS_PART_PAGES);
			len = min_t(size_t, run->len - (size_t)from * PAGE_SIZE, (size_t)n * PAGE_SIZE);
			err = mxfs_part_write(run->inode, run->pages + from, n, run->pos + (loff_t)from * PAGE_SIZE, len);
			mxfs_part_end(run, from, n, err);
		}
		at += part;
	}
	mxfs_gate_leave(sbi);
out:
	run->count = 0;
	run->len = 0;
}

/* The page is locked and no longer dirty. */
static int mxfs_run_add(struct page *page, struct writeback_control *wbc, void *data)
{
	struct mxfs_run *run = data;
	loff_t size = i_size_read(run->inode), pos = page_offset(page);
	unsigned int len = PAGE_SIZE;

	set_page_writeback(page);
	if (pos >= size) { /* a truncation is on its way to it */
		unlock_page(page);
		end_page_writeback(page);
		return 0;
	}
	if (size - pos < PAGE_SIZE) {
		len = size - pos;
		zero_user_segment(page, len, PAGE_SIZE);
		flush_dcache_page(page);
	}
	unlock_page(page);
	if (run->count && (run->count == MXFS_RUN_PAGES || run->pos + run->len != pos))
		mxfs_run_send(run);
	if (!run->count)
		run->pos = pos;
	run->pages[run->count] = page;
	run->count++;
	run->len += len;
	return 0;
}

static int mxfs_writepages(struct address_space *mapping, struct writeback_control *wbc)
{
	struct mxfs_run *run = kzalloc(sizeof(*run), GFP_NOFS | __GFP_NOFAIL);
	struct blk_plug plug;
	int err;

	run->inode = mapping->host;
	run->sync = wbc->sync_mode == WB_SYNC_ALL;
	blk_start_plug(&plug);
	err = write_cache_pages(mapping, wbc, mxfs_run_add, run);
	mxfs_run_send(run);
	blk_finish_plug(&plug);
	if (!err)
		err = run->err;
	kfree(run);
	return err;
}

const struct address_space_operations mxfs_aops = {
	.read_folio = mxfs_read_folio,
	.readahead = mxfs_readahead,
	.writepages = mxfs_writepages,
	.dirty_folio = filemap_dirty_folio,
	.migrate_folio = filemap_migrate_folio,
	.error_remove_page = generic_error_remove_page,
};

/* ------------------------------------------------------------------ mappings */

/*
 * filemap_fault() may drop mmap_lock, and with it the vma's hold on the file: the inode is pinned until the lock is put
 * back. A killed task gets SIGBUS; it dies before it sees it.
 */
static vm_fault_t mxfs_fault(struct vm_fault *vmf)
{
	struct inode *inode = file_inode(vmf->vma->vm_file);
	struct mxfs_inode *mi = MXFS_I(inode);
	/* A store goes on to page_mkwrite: an upgrade there would have to give the page back first. */
	bool store = (vmf->flags & FAULT_FLAG_WRITE) && (vmf->vma->vm_flags & VM_SHARED);
	int mode = store ? MXFS_MODE_EX : MXFS_MODE_PR;
	vm_fault_t ret;
	int err;

	ihold(inode);
	err = mxfs_lock_get(&mi->lock, mode, 0);
	if (err) {
		ret = vmf_error(err);
	} else {
		err = mxfs_attr_refresh(inode);
		ret = err ? vmf_error(err) : filemap_fault(vmf);
		mxfs_lock_put(&mi->lock, mode);
	}
	iput(inode);
	return ret;
}

/* Faults around: only what is served without asking anybody. */
static vm_fault_t mxfs_map_pages(struct vm_fault *vmf, pgoff_t start, pgoff_t end)
{
	struct mxfs_inode *mi = MXFS_I(file_inode(vmf->vma->vm_file));

	if (!mxfs_lock_is_cached(&mi->lock, MXFS_MODE_PR) || READ_ONCE(mi->attr_gen) != mxfs_lock_gen(&mi->lock))
		return 0;
	return filemap_map_pages(vmf, start, end);
}

/*
 * The page is dirtied while EX is held and stays locked until the fault has made it writable; so a demote that
 * comes in between finds it dirty, waits for its lock, and write-protects it again as it cleans it.
 */
static vm_fault_t mxfs_page_mkwrite(struct vm_fault *vmf)
{
	struct page *page = vmf->page;
	struct inode *inode = file_inode(vmf->vma->vm_file);
	struct mxfs_inode *mi = MXFS_I(inode);
	vm_fault_t ret = VM_FAULT_LOCKED;
	int err;

	sb_start_pagefault(inode->i_sb);
	err = mxfs_lock_get(&mi->lock, MXFS_MODE_EX, 0);
	if (err) {
		ret = vmf_error(err);
		goto out;
	}
	err = mxfs_attr_refresh(inode);
	if (err) {
		ret = vmf_error(err);
		goto out_put;
	}
	lock_page(page);
	if (page->mapping != inode->i_mapping || !PageUptodate(page) || page_offset(page) >= i_size_read(inode)) {
		unlock_page(page);
		ret = VM_FAULT_NOPAGE; /* invalidated or truncated meanwhile: the fault starts again */
		goto out_put;
	}
	set_page_dirty(page);
	mxfs_local_changed(inode, -1);
	wait_for_stable_page(page);
out_put:
	mxfs_lock_put(&mi->lock, MXFS_MODE_EX);
out:
	sb_end_pagefault(inode->i_sb);
	return ret;
}

const struct vm_operations_struct mxfs_vm_ops = {
	.fault = mxfs_fault,
	.map_pages = mxfs_map_pages,
	.page_mkwrite = mxfs_page_mkwrite,
};
