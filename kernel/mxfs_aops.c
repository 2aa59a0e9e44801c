// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS page cache: reading pages, writing into them, writing them back, mappings.
 *
 * Who holds what (docs/caching.md has the tables): the DLM lock is held by whoever calls in here (read and fault PR,
 * write and page_mkwrite EX; write-back none: a dirty page means that EX is cached, and it is not given up before the
 * page is written). The gate is entered in here, around each call of the back end, with folios locked or
 * under write-back; so nobody inside the gate may wait for a folio of mxfs.
 *
 * Pages travel in runs of neighbours of at most MXFS_FSOP_DATA_MAX bytes. Write-back marks a run and unlocks it before
 * it waits for the gate. What could not be sent because the sender was killed or out of memory stays
 * dirty; any other error is kept in the mapping and reported by fsync and close.
 *
 * Known weakness: a member's buffered write reserves no space; that the volume is full comes out at write-out, and is
 * told by fsync and close, as with NFS. Runs of one file are written one after the other. On the holder mapped
 * pages exist twice, here and in the lower page cache.
 */
#include <linux/backing-dev.h>
#include <linux/bvec.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/writeback.h>

#include "mxfs_vfs.h"

#define MXFS_RUN_PAGES (MXFS_FSOP_DATA_MAX / PAGE_SIZE)

/* ------------------------------------------------------------------ reading */

/* Locked neighbours; uptodate afterwards, zeros behind the end of the lower file. */
static int mxfs_pages_read(struct inode *inode, struct page **pages, unsigned int count)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct bio_vec bv[MXFS_RUN_PAGES];
	size_t len = (size_t)count * PAGE_SIZE, from;
	struct iov_iter iter;
	unsigned int i;
	ssize_t done;
	int err;

	for (i = 0; i < count; i++) {
		bv[i].bv_page = pages[i];
		bv[i].bv_offset = 0;
		bv[i].bv_len = PAGE_SIZE;
	}
	iov_iter_bvec(&iter, READ, bv, count, len);
	err = mxfs_gate_enter(sbi);
	if (err)
		return err;
	done = sbi->be->read(sbi, &MXFS_I(inode)->fh, page_offset(pages[0]), &iter);
	mxfs_gate_leave(sbi);
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

static int mxfs_read_folio(struct file *file, struct folio *folio)
{
	struct page *page = &folio->page;
	int err;

	err = mxfs_pages_read(folio->mapping->host, &page, 1);
	folio_unlock(folio);
	return err;
}

/* Failed pages are left for read_folio, which has somebody to tell. */
static void mxfs_readahead(struct readahead_control *rac)
{
	struct page *pages[MXFS_RUN_PAGES];
	unsigned int count, i;
	int err = 0;

	while ((count = readahead_page_batch(rac, pages))) {
		if (!err)
			err = mxfs_pages_read(rac->mapping->host, pages, count);
		for (i = 0; i < count; i++) {
			unlock_page(pages[i]);
			put_page(pages[i]);
		}
	}
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
	return mxfs_pages_read(inode, &page, 1);
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

struct mxfs_run { /* neighbours, all under write-back */
	struct inode *inode;
	struct bio_vec bv[MXFS_RUN_PAGES];
	unsigned int count;
	loff_t pos;
	size_t len;
	int err; /* the first */
};

static bool mxfs_error_passes(int err)
{
	return err == -ERESTARTSYS || err == -EINTR || err == -EAGAIN || err == -ENOMEM;
}

static int mxfs_run_write(struct mxfs_run *run)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(run->inode);
	struct mxfs_inode *mi = MXFS_I(run->inode);
	const struct cred *old;
	struct mxfs_attr attr;
	struct iov_iter iter;
	unsigned int nofs;
	size_t done = 0;
	ssize_t n;
	int err;

	err = mxfs_gate_enter_wait(sbi);
	if (err)
		return err;
	nofs = memalloc_nofs_save();
	old = override_creds(mxfs_kernel_cred);
	while (done < run->len) {
		iov_iter_bvec(&iter, WRITE, run->bv, run->count, run->len);
		iov_iter_advance(&iter, done);
		attr.fh.ino = 0;
		n = sbi->be->write(sbi, &mi->fh, run->pos + done, &iter, true, &attr);
		if (n <= 0) {
			err = n ? n : -EIO;
			break;
		}
		done += n;
	}
	revert_creds(old);
	memalloc_nofs_restore(nofs);
	mxfs_gate_leave(sbi);
	if (done)
		mxfs_lock_dirtied(&mi->lock);
	if (!err && attr.fh.ino) {
		spin_lock(&run->inode->i_lock);
		run->inode->i_blocks = attr.blocks;
		spin_unlock(&run->inode->i_lock);
	}
	return err;
}

static void mxfs_run_send(struct mxfs_run *run)
{
	struct address_space *mapping = run->inode->i_mapping;
	struct page *page;
	unsigned int i;
	int err = 0;

	if (!run->count)
		return;
	if (!test_bit(MXFS_VN_GONE, &MXFS_VN(run->inode)->state))
		err = mxfs_run_write(run);
	if (err && !run->err)
		run->err = err;
	if (err && !mxfs_error_passes(err)) {
		mapping_set_error(mapping, err);
		if (err != -EIO || !mxfs_gate_fenced(&mxfs_inode_sbi(run->inode)->gate))
			mxfs_err(mxfs_inode_sbi(run->inode),
				 "inode %llu: write-back of %zu bytes at %lld failed with %d: they are lost, fsync tells",
				 MXFS_I(run->inode)->fh.ino, run->len, run->pos, err);
	}
	for (i = 0; i < run->count; i++) {
		page = run->bv[i].bv_page;
		if (err && mxfs_error_passes(err))
			set_page_dirty(page);
		end_page_writeback(page);
	}
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
	run->bv[run->count].bv_page = page;
	run->bv[run->count].bv_offset = 0;
	run->bv[run->count].bv_len = len;
	run->count++;
	run->len += len;
	return 0;
}

static int mxfs_writepages(struct address_space *mapping, struct writeback_control *wbc)
{
	struct mxfs_run run = { .inode = mapping->host };
	int err;

	err = write_cache_pages(mapping, wbc, mxfs_run_add, &run);
	mxfs_run_send(&run);
	return err ? err : run.err;
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
