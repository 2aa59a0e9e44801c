// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: a member's data straight from and to the disk: pages (for mxfs_aops.c) and O_DIRECT (for mxfs_file.c), by the maps of
 * mxfs_map.c.
 *
 * What is on its way to or from the disk: pages are locked (read) or under write-back (written), so whoever gives up the
 * DLM lock waits for them through the page cache; a use of the map is counted until the I/O ends. The holder is never waited for
 * while a use is counted: a takeover first waits for the uses.
 *
 * Errors of the disk. A page that could not be read is left for read_folio, which asks the holder; pages that could not be written
 * become dirty again and go through the holder in the next round (mxfs_data_clean, or the flusher). Refused by the reservation
 * means fenced. The lease is looked at again when a read completes.
 */
#include <linux/backing-dev.h>
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/highmem.h>
#include <linux/iomap.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/sizes.h>
#include <linux/uio.h>

#include "mxfs_vfs.h"

#define MXFS_IO_PAGES 256
#define MXFS_IO_POOL 64
#define MXFS_TRIES 16
/* Holes up to this are filled through the holder: one message instead of two. */
#define MXFS_SMALL_BYTES SZ_64K
#define MXFS_GROW_MIN SZ_4M
#define MXFS_GROW_MAX SZ_64M

struct mxfs_io {
	struct inode *inode;
	u64 pos, len;
	u64 size; /* reading: the file's end, behind which pages are zero */
	struct mxfs_batch *batch;
	struct completion *done; /* reading one page: it stays locked */
	struct work_struct work; /* errors of writing */
	struct bio bio;		 /* last */
};

static struct bio_set mxfs_bios;

int mxfs_direct_init(void)
{
	return bioset_init(&mxfs_bios, MXFS_IO_POOL, offsetof(struct mxfs_io, bio), BIOSET_NEED_BVECS);
}

void mxfs_direct_exit(void)
{
	bioset_exit(&mxfs_bios);
}

static struct mxfs_io *io_of(struct bio *bio)
{
	return container_of(bio, struct mxfs_io, bio);
}

static struct bio *io_new(struct inode *inode, const struct mxfs_extent *ext, unsigned int pages, blk_opf_t op)
{
	struct bio *bio = bio_alloc_bioset(mxfs_inode_sbi(inode)->bdev, pages, op, GFP_NOFS, &mxfs_bios);
	struct mxfs_io *io = io_of(bio);

	bio->bi_iter.bi_sector = ext->addr >> SECTOR_SHIFT;
	io->inode = inode;
	io->pos = ext->offset;
	io->len = 0;
	io->batch = NULL;
	io->done = NULL;
	return bio;
}

static void io_count(struct inode *inode, enum mxfs_counter which, u64 n)
{
	mxfs_count_add(mxfs_inode_sbi(inode), which, n);
}

/* ------------------------------------------------------------------ reading pages */

/* Interrupt context. The pages pin the inode until they are unlocked. */
static void read_end(struct bio *bio)
{
	struct mxfs_io *io = io_of(bio);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(io->inode);
	bool good = !bio->bi_status && mxfs_gate_lease_valid(sbi) && !mxfs_gate_fenced(&sbi->gate);
	struct bvec_iter_all iter;
	struct bio_vec *vec;
	u64 pos = io->pos;

	if (bio->bi_status)
		mxfs_disk_failed(sbi, -EIO);
	bio_for_each_segment_all(vec, bio, iter) {
		if (good) {
			if (pos + PAGE_SIZE > io->size)
				zero_user_segment(vec->bv_page, io->size > pos ? io->size - pos : 0, PAGE_SIZE);
			flush_dcache_page(vec->bv_page);
			SetPageUptodate(vec->bv_page);
		}
		pos += PAGE_SIZE;
	}
	mxfs_map_unuse(io->inode);
	if (io->done) {
		complete(io->done);
	} else {
		bio_for_each_segment_all(vec, bio, iter)
			unlock_page(vec->bv_page);
	}
	bio_put(bio);
}

void mxfs_direct_read_end(struct mxfs_reader *reader)
{
	if (!reader->bio)
		return;
	io_count(reader->inode, MXFS_COUNT_DISK_READ, reader->bio->bi_vcnt);
	submit_bio(reader->bio);
	reader->bio = NULL;
}

/* What is known of a page: 0, with a use if it has data on the disk. Asks the holder. */
static int read_extent(struct inode *inode, u64 pos, u64 len, struct mxfs_extent *ext)
{
	int err, tries;

	for (tries = 0; tries < MXFS_TRIES; tries++) {
		err = mxfs_map_use(inode, pos, len, false, ext);
		if (err != -ENOENT)
			return err;
		err = mxfs_map_ask(inode, pos, MXFS_MAP_BYTES_MAX, 0, 0);
		if (err)
			return err;
	}
	return -EAGAIN;
}

static void read_zeros(struct page *page)
{
	zero_user_segment(page, 0, PAGE_SIZE);
	flush_dcache_page(page);
	SetPageUptodate(page);
}

static struct bio *read_begin(struct inode *inode, const struct mxfs_extent *ext, unsigned int pages, bool ahead)
{
	struct bio *bio = io_new(inode, ext, pages, REQ_OP_READ | (ahead ? REQ_RAHEAD : 0));

	io_of(bio)->size = i_size_read(inode);
	bio->bi_end_io = read_end;
	return bio;
}

int mxfs_direct_read_page(struct mxfs_reader *reader, struct page *page, u64 ahead)
{
	struct inode *inode = reader->inode;
	u64 pos = page_offset(page);
	struct mxfs_extent ext;
	int err;

	if (reader->bio && (reader->pos != pos || !reader->left || reader->bio->bi_vcnt == reader->bio->bi_max_vecs))
		mxfs_direct_read_end(reader);
	if (!reader->bio) {
		err = read_extent(inode, pos, max_t(u64, ahead, PAGE_SIZE), &ext);
		if (err)
			return err;
		if (ext.state != MXFS_EXTENT_WRITTEN) {
			read_zeros(page);
			unlock_page(page);
			return 0;
		}
		reader->left = ext.length >> PAGE_SHIFT;
		reader->bio = read_begin(inode, &ext, min_t(u64, reader->left, MXFS_IO_PAGES), true);
	}
	__bio_add_page(reader->bio, page, PAGE_SIZE, 0);
	reader->pos = pos + PAGE_SIZE;
	reader->left--;
	return 0;
}

int mxfs_direct_read_wait(struct inode *inode, struct page *page)
{
	DECLARE_COMPLETION_ONSTACK(done);
	struct mxfs_extent ext;
	struct bio *bio;
	int err;

	err = read_extent(inode, page_offset(page), PAGE_SIZE, &ext);
	if (err)
		return err;
	if (ext.state != MXFS_EXTENT_WRITTEN) {
		read_zeros(page);
		return 0;
	}
	bio = read_begin(inode, &ext, 1, false);
	io_of(bio)->done = &done;
	__bio_add_page(bio, page, PAGE_SIZE, 0);
	io_count(inode, MXFS_COUNT_DISK_READ, 1);
	submit_bio(bio);
	wait_for_completion_io(&done);
	return PageUptodate(page) ? 0 : -EIO;
}

/* ------------------------------------------------------------------ writing pages */

static void write_release(struct mxfs_io *io)
{
	struct bvec_iter_all iter;
	struct bio_vec *vec;

	WRITE_ONCE(MXFS_VN(io->inode)->map.unflushed, true);
	mxfs_batch_put(io->batch);
	mxfs_map_unuse(io->inode);
	bio_for_each_segment_all(vec, &io->bio, iter)
		end_page_writeback(vec->bv_page);
	bio_put(&io->bio);
}

static void write_error_work(struct work_struct *work)
{
	struct mxfs_io *io = container_of(work, struct mxfs_io, work);
	struct inode *inode = io->inode;
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	int err = blk_status_to_errno(io->bio.bi_status);
	struct bvec_iter_all iter;
	struct bio_vec *vec;

	mxfs_disk_failed(sbi, err);
	mxfs_batch_failed(inode, io->batch, io->pos, io->len);
	if (mxfs_gate_fenced(&sbi->gate)) {
		mapping_set_error(inode->i_mapping, -EIO);
	} else {
		bio_for_each_segment_all(vec, &io->bio, iter)
			filemap_dirty_folio(inode->i_mapping, page_folio(vec->bv_page));
	}
	write_release(io);
}

/* Interrupt context. */
static void write_end(struct bio *bio)
{
	struct mxfs_io *io = io_of(bio);

	if (!bio->bi_status) {
		write_release(io);
		return;
	}
	INIT_WORK(&io->work, write_error_work);
	queue_work(system_unbound_wq, &io->work);
}

/* How much to ask for, to fill a hole of which `need` bytes are wanted; 0: through the holder. */
static u64 blocks_wanted(struct inode *inode, u64 pos, u64 need, bool direct)
{
	struct mxfs_map *map = &MXFS_VN(inode)->map;
	bool sequential = !pos || pos == READ_ONCE(map->written_to);
	u64 size = i_size_read(inode), want = need, grow;

	if (need <= MXFS_SMALL_BYTES && !(sequential && (direct || READ_ONCE(map->grow))))
		return 0;
	if (!sequential)
		return need;
	/* What is dirty behind it comes next. */
	if (size > pos)
		want = max_t(u64, want, min_t(u64, size - pos, MXFS_GROW_MAX));
	if (pos + need < size || !atomic_read(&MXFS_I(inode)->open_count))
		return want;
	grow = clamp_t(u64, 4 * READ_ONCE(map->grow), need <= MXFS_SMALL_BYTES ? MXFS_SMALL_BYTES : MXFS_GROW_MIN,
		       MXFS_GROW_MAX);
	grow = min_t(u64, grow, max_t(u64, 2 * size, need <= MXFS_SMALL_BYTES ? MXFS_SMALL_BYTES : MXFS_GROW_MIN));
	WRITE_ONCE(map->grow, grow);
	WRITE_ONCE(map->beyond, true);
	return max(want, grow);
}

/* A part of [pos, pos + len) that has blocks, in use. -ENOTBLK and such: through the holder, *through bytes of it. */
static int write_extent(struct inode *inode, u64 pos, u64 len, bool direct, struct mxfs_extent *ext, u64 *through)
{
	u64 want;
	int err, tries;

	*through = len;
	for (tries = 0; tries < MXFS_TRIES; tries++) {
		err = mxfs_map_use(inode, pos, len, true, ext);
		if (err == -ENOENT) {
			err = mxfs_map_ask(inode, pos, MXFS_MAP_BYTES_MAX, 0, 0);
			if (err)
				return err;
			continue;
		}
		if (err || ext->state != MXFS_EXTENT_HOLE)
			return err;
		want = blocks_wanted(inode, pos, ext->length, direct);
		if (!want) {
			*through = ext->length;
			return -ENOTBLK;
		}
		*through = ext->length;
		err = mxfs_map_ask(inode, pos, want, ext->length, MXFS_MAP_WRITE);
		if (err)
			return err;
	}
	return -EAGAIN;
}

int mxfs_direct_write(struct inode *inode, struct page **pages, unsigned int count, u64 pos, u64 len, bool sync,
		      unsigned int *part)
{
	u64 size = pos + len, through;
	struct mxfs_batch *batch;
	struct mxfs_extent ext;
	unsigned int n = 0, i;
	struct mxfs_io *io;
	struct bio *bio;
	int err, tries;

	for (tries = 0; tries < MXFS_TRIES; tries++) {
		err = write_extent(inode, pos, (u64)min_t(unsigned int, count, MXFS_IO_PAGES) << PAGE_SHIFT, false, &ext,
				   &through);
		if (err) {
			*part = max_t(u64, min_t(u64, through >> PAGE_SHIFT, count), 1);
			/* XFS has freed what it can before it said so: the data would be refused as well. */
			return err == -ENOSPC || err == -EDQUOT ? err : 0;
		}
		n = ext.length >> PAGE_SHIFT;
		err = mxfs_map_written(inode, &ext, min(size, ext.offset + ext.length), false, &batch);
		if (!err)
			break;
		mxfs_map_unuse(inode);
		mxfs_map_commit_gated(inode, NULL);
	}
	if (err) {
		*part = count;
		return 0;
	}
	bio = io_new(inode, &ext, n, REQ_OP_WRITE | (sync ? REQ_SYNC : 0));
	bio->bi_end_io = write_end;
	io = io_of(bio);
	io->batch = batch;
	io->len = ext.length;
	for (i = 0; i < n; i++)
		__bio_add_page(bio, pages[i], PAGE_SIZE, 0);
	WRITE_ONCE(MXFS_VN(inode)->map.written_to, ext.offset + ext.length);
	io_count(inode, MXFS_COUNT_DISK_WRITE, n);
	submit_bio(bio);
	return n;
}

/* ------------------------------------------------------------------ O_DIRECT */

/* Only what is known: the holder must not be waited for with pieces in use. */
static int dio_begin(struct inode *inode, loff_t pos, loff_t length, unsigned int flags, struct iomap *iomap,
		     struct iomap *srcmap)
{
	struct mxfs_dio *dio = container_of(iomap, struct iomap_iter, iomap)->private;
	bool write = flags & IOMAP_WRITE;
	struct mxfs_extent ext;
	int err;

	if (dio->count == MXFS_DIO_PIECES)
		return -ENOTBLK;
	err = mxfs_map_use(inode, pos, length, write, &ext);
	if (err)
		return -ENOTBLK;
	iomap->offset = ext.offset;
	iomap->length = ext.length;
	iomap->addr = ext.addr;
	iomap->bdev = mxfs_inode_sbi(inode)->bdev;
	iomap->flags = 0;
	if (dio->written && ext.state != MXFS_EXTENT_WRITTEN) {
		if (write && ext.state == MXFS_EXTENT_UNWRITTEN)
			mxfs_map_unuse(inode);
		return -ENOTBLK;
	}
	switch (ext.state) {
	case MXFS_EXTENT_WRITTEN:
		iomap->type = IOMAP_MAPPED;
		break;
	case MXFS_EXTENT_UNWRITTEN:
		iomap->type = IOMAP_UNWRITTEN;
		break;
	default:
		if (write)
			return -ENOTBLK;
		iomap->type = IOMAP_HOLE;
		iomap->addr = IOMAP_NULL_ADDR;
	}
	if (ext.state == MXFS_EXTENT_WRITTEN || (write && ext.state == MXFS_EXTENT_UNWRITTEN))
		dio->pieces[dio->count++] = ext;
	return 0;
}

static const struct iomap_ops mxfs_dio_iomap_ops = { .iomap_begin = dio_begin };

/* Whole blocks: what of a block was not written has been zeroed (fresh ones), or was valid before. */
static void dio_written(struct mxfs_dio *dio, u64 end)
{
	struct inode *inode = dio->inode;
	struct mxfs_batch *batch;
	struct mxfs_extent ext;
	unsigned int i;
	u64 stop;

	for (i = 0; i < dio->count; i++) {
		ext = dio->pieces[i];
		stop = round_up(min(end, ext.offset + ext.length), PAGE_SIZE);
		if (stop <= ext.offset)
			continue;
		ext.addr -= offset_in_page(ext.offset);
		ext.offset = round_down(ext.offset, PAGE_SIZE);
		ext.length = stop - ext.offset;
		/* Has room: dio_prepare() saw to it, and i_rwsem keeps others out. */
		WARN_ON_ONCE(mxfs_map_written(inode, &ext, min(end, stop), true, &batch) && ext.state == MXFS_EXTENT_UNWRITTEN);
		mxfs_batch_put(batch);
	}
	WRITE_ONCE(MXFS_VN(inode)->map.unflushed, true);
	WRITE_ONCE(MXFS_VN(inode)->map.written_to, round_down(end, PAGE_SIZE));
	mxfs_local_changed(inode, end > i_size_read(inode) ? end : -1);
}

/* Before the pages of the range are dropped once more: who reads them in again must find what was written. */
static int dio_end(struct kiocb *iocb, ssize_t size, int error, unsigned int flags)
{
	struct mxfs_dio *dio = container_of(iocb, struct mxfs_dio, iocb);
	unsigned int i;

	if (dio->write && !error && size > 0)
		dio_written(dio, iocb->ki_pos + size);
	for (i = 0; i < dio->count; i++)
		mxfs_map_unuse(dio->inode);
	dio->count = 0;
	return error;
}

static const struct iomap_dio_ops mxfs_dio_ops = { .end_io = dio_end };

/* Inside the gate: all of the range, or its first pieces, are known (and have blocks). */
static int dio_prepare(struct inode *inode, u64 pos, u64 len, bool write, bool written)
{
	u64 end = pos + len, at = pos, through;
	struct mxfs_extent ext;
	unsigned int pieces;
	int err;

	if (write && !written)
		mxfs_map_make_room(inode);
	for (pieces = 0; at < end && pieces < MXFS_DIO_PIECES; pieces++) {
		err = write && !written ? write_extent(inode, at, end - at, true, &ext, &through) :
					  read_extent(inode, at, end - at, &ext);
		if (err)
			return err;
		if ((write && !written) || ext.state == MXFS_EXTENT_WRITTEN)
			mxfs_map_unuse(inode);
		else if (written)
			return -ENOTBLK;
		at = ext.offset + ext.length;
	}
	return 0;
}

ssize_t mxfs_direct_run(struct mxfs_dio *dio, struct kiocb *iocb, struct iov_iter *iter, bool write, bool written,
			void (*done)(struct kiocb *iocb, long result))
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	u64 pos = iocb->ki_pos, len = iov_iter_count(iter);
	ssize_t n;

	if (READ_ONCE(sbi->be) != &mxfs_remote_backend)
		return -ENOTBLK;
	n = mxfs_gate_enter(sbi);
	if (n)
		return n;
	n = dio_prepare(inode, pos, len, write, written);
	mxfs_gate_leave(sbi);
	if (n)
		return n == -ENOSPC || n == -EDQUOT || n == -EINTR || n == -ERESTARTSYS ? n : -ENOTBLK;
	dio->iocb = *iocb;
	dio->iocb.ki_complete = done;
	dio->iocb.ki_flags &= ~(IOCB_DSYNC | IOCB_SYNC | IOCB_HIPRI | IOCB_NOWAIT);
	dio->inode = inode;
	dio->write = write;
	dio->written = written;
	return iomap_dio_rw(&dio->iocb, iter, &mxfs_dio_iomap_ops, &mxfs_dio_ops,
			    IOMAP_DIO_PARTIAL | (done ? 0 : IOMAP_DIO_FORCE_WAIT), dio, 0);
}

bool mxfs_direct_disk_error(long result)
{
	switch (result) {
	case -EFAULT:
	case -EINVAL:
	case -ENOMEM:
	case -ENOSPC:
	case -EDQUOT:
	case -EINTR:
	case -ERESTARTSYS:
	case -ENOTBLK:
	case -EIOCBQUEUED:
		return false;
	}
	return result < 0;
}

ssize_t mxfs_direct_io(struct kiocb *iocb, struct iov_iter *iter, bool write, bool written)
{
	struct inode *inode = file_inode(iocb->ki_filp);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	u64 pos = iocb->ki_pos, len = iov_iter_count(iter);
	struct mxfs_dio *dio;
	ssize_t n;

	if (READ_ONCE(sbi->be) != &mxfs_remote_backend)
		return -ENOTBLK;
	/* Here and not inside iomap_dio_rw(): write-back enters the gate, and changes what is known. */
	n = filemap_write_and_wait_range(inode->i_mapping, pos, pos + len - 1);
	if (n)
		return n;
	dio = kzalloc(sizeof(*dio), GFP_KERNEL);
	if (!dio)
		return -ENOMEM;
	pagefault_disable();
	iter->nofault = true;
	n = mxfs_direct_run(dio, iocb, iter, write, written, NULL);
	iter->nofault = false;
	pagefault_enable();
	WARN_ON_ONCE(dio->count);
	kfree(dio);
	if (n > 0) {
		io_count(inode, write ? MXFS_COUNT_DISK_WRITE : MXFS_COUNT_DISK_READ, 1);
		if (!write && !mxfs_gate_lease_valid(sbi)) {
			/* Read, but who knows when: once more, behind the gate. */
			iov_iter_revert(iter, n);
			return -EFAULT;
		}
		iocb->ki_pos += n;
		return n;
	}
	if (mxfs_direct_disk_error(n))
		mxfs_disk_failed(sbi, n);
	else if (n && n != -ENOTBLK)
		return n;
	return mxfs_gate_fenced(&sbi->gate) ? -EIO : -ENOTBLK;
}
