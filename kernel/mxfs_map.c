// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: a member's block maps: where a file's data is on the disk, and what has been written there that the XFS does not know of.
 *
 *	mxfs_map_use ── known? ──► a use is counted, the caller does its I/O, mxfs_map_unuse at its completion
 *	     │ no: mxfs_map_ask ── MAP fsop ──► holder           (nothing is counted while the holder is waited for)
 *	mxfs_map_written ── blocks not yet written, or beyond the lower file's end? ──► batch ──► mxfs_map_commit: COMMIT fsop
 *
 * Valid is a map while three numbers are the present ones: the generation of the INODE lock (which rises whenever the lock has
 * been below PR), the mount's map epoch (which rises when the holder changes), and `seq` of an answer on its way (which rises
 * when blocks are changed by this node's own operations). Reading takes PR, writing EX; both are held by the caller, or
 * implied by a page that is dirty.
 *
 * Three things wait for I/O under maps: whoever gives the lock up (through the pages and i_rwsem), whoever changes the file's
 * blocks (mxfs_map_change_begin), and whoever takes the disk away or follows another holder (mxfs_maps_stop).
 *
 * Batches: the ranges that were written into blocks not yet valid, each I/O with a reference, so that a commit sends a range only
 * when it is on the disk. A range whose write failed is taken out. The newest size that was reached goes along.
 * The commit's log force also flushes the disk's cache, behind the data.
 *
 * Limits: MXFS_MAP_ROOM extents per inode, or fewer until it asks for its map itself (beyond: all are forgotten and asked for again), MXFS_BATCH_RANGES ranges in a batch
 * (beyond: it is committed first).
 *
 * Locks: gate -> commit_mutex -> map->lock (taken at the end of I/O, with interrupts off).
 *
 * Known weakness: an XFS whose blocks are smaller than a page is not mapped; its data goes through the holder.
 */
#include <linux/blkdev.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "mxfs_vfs.h"

#define MXFS_MAP_ROOM 512
#define MXFS_MAP_ROOM_SMALL 4 /* of a file that only one extent is known of: there may be many such files */
#define MXFS_BATCH_RANGES 256
#define MXFS_BATCH_PAGES 192 /* of these for pages: O_DIRECT must find room when its data is on the disk already */
#define MXFS_BATCH_FAILED 32
#define MXFS_DIRECT_OFF_MS 30000 /* how long an error of the disk sends data through the holder */

struct mxfs_batch {
	refcount_t ref; /* being filled, and each I/O */
	struct completion idle;
	u64 size; /* the file's end, as far as it was written */
	u32 count, failed_count;
	bool all_failed;
	struct mxfs_wire_range ranges[MXFS_BATCH_RANGES]; /* little endian, as they travel */
	struct mxfs_extent failed[MXFS_BATCH_FAILED];
};

static struct mxfs_map *map_of(struct inode *inode)
{
	return &MXFS_VN(inode)->map;
}

/* ---------------------------------------------------------------- the mount's use of the disk */

static void io_released(struct percpu_ref *ref)
{
	struct mxfs_sb_info *sbi = container_of(ref, struct mxfs_sb_info, io);

	wake_up_all(&sbi->io_wait);
}

int mxfs_maps_init(struct mxfs_sb_info *sbi)
{
	init_waitqueue_head(&sbi->io_wait);
	atomic64_set(&sbi->map_epoch, 1);
	return percpu_ref_init(&sbi->io, io_released, PERCPU_REF_INIT_DEAD | PERCPU_REF_ALLOW_REINIT, GFP_KERNEL);
}

void mxfs_maps_destroy(struct mxfs_sb_info *sbi)
{
	percpu_ref_exit(&sbi->io);
}

void mxfs_maps_start(struct mxfs_sb_info *sbi)
{
	if (sbi->bdev && percpu_ref_is_dying(&sbi->io))
		percpu_ref_resurrect(&sbi->io);
}

void mxfs_maps_stop(struct mxfs_sb_info *sbi)
{
	atomic64_inc(&sbi->map_epoch);
	if (!sbi->io.data || percpu_ref_is_dying(&sbi->io)) /* a mount that failed early; or stopped already */
		return;
	percpu_ref_kill(&sbi->io);
	wait_event(sbi->io_wait, percpu_ref_is_zero(&sbi->io));
}

void mxfs_disk_failed(struct mxfs_sb_info *sbi, int err)
{
	mxfs_count(sbi, MXFS_COUNT_DISK_ERROR);
	if (mxfs_gate_fenced(&sbi->gate))
		return;
	if (err == -EBADE) {
		mxfs_fence(sbi, "the disk refused a write by its reservation: another node has fenced us");
		return;
	}
	WRITE_ONCE(sbi->direct_off, (jiffies + msecs_to_jiffies(MXFS_DIRECT_OFF_MS)) | 1);
	if (!xchg(&sbi->direct_told, true))
		mxfs_warn(sbi, "the disk answered %d: file data goes through the holder for as long as that lasts (counter disk_error)",
			  err);
}

/* ---------------------------------------------------------------- the extents (under map->lock) */

void mxfs_map_init(struct mxfs_map *map)
{
	spin_lock_init(&map->lock);
	init_waitqueue_head(&map->wait);
	mutex_init(&map->commit_mutex);
}

void mxfs_map_destroy(struct inode *inode)
{
	struct mxfs_map *map = map_of(inode);

	WARN_ON_ONCE(map->users);
	kvfree(map->ext);
	map->ext = NULL;
	map->room = 0;
	map->count = 0;
	kfree(map->batch); /* of a mount that was fenced: told by the pages' errors */
	map->batch = NULL;
}

/* The first extent that ends behind pos. */
static unsigned int map_search(const struct mxfs_map *map, u64 pos)
{
	unsigned int low = 0, high = map->count, mid;

	while (low < high) {
		mid = (low + high) / 2;
		if (map->ext[mid].offset + map->ext[mid].length <= pos)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static void map_drop(struct mxfs_map *map)
{
	map->count = 0;
	map->seq++;
}

static void map_remove(struct mxfs_map *map, unsigned int at, unsigned int n)
{
	memmove(map->ext + at, map->ext + at + n, (map->count - at - n) * sizeof(*map->ext));
	map->count -= n;
}

static void map_cut_front(struct mxfs_extent *ext, u64 to)
{
	if (ext->state != MXFS_EXTENT_HOLE)
		ext->addr += to - ext->offset;
	ext->length -= to - ext->offset;
	ext->offset = to;
}

/* Forgets [pos, end). False: no room to split, everything was forgotten. */
static bool map_clear(struct mxfs_map *map, u64 pos, u64 end)
{
	unsigned int at = map_search(map, pos), n;
	struct mxfs_extent *ext;

	if (at < map->count && map->ext[at].offset < pos) {
		ext = &map->ext[at];
		if (ext->offset + ext->length > end) { /* in the middle of one */
			if (map->count == map->room) {
				map_drop(map);
				return false;
			}
			memmove(ext + 1, ext, (map->count - at) * sizeof(*ext));
			map->count++;
			map_cut_front(ext + 1, end);
			ext->length = pos - ext->offset;
			return true;
		}
		ext->length = pos - ext->offset;
		at++;
	}
	for (n = 0; at + n < map->count && map->ext[at + n].offset + map->ext[at + n].length <= end; n++)
		;
	map_remove(map, at, n);
	if (at < map->count && map->ext[at].offset < end)
		map_cut_front(&map->ext[at], end);
	return true;
}

static bool map_joins(const struct mxfs_extent *a, const struct mxfs_extent *b)
{
	return a->state == b->state && a->offset + a->length == b->offset &&
	       (a->state == MXFS_EXTENT_HOLE || a->addr + a->length == b->addr);
}

/* From now on this is what is known of its range. */
static void map_replace(struct mxfs_map *map, const struct mxfs_extent *new)
{
	unsigned int at;

	if (!map_clear(map, new->offset, new->offset + new->length))
		return;
	if (map->count == map->room)
		map_drop(map);
	at = map_search(map, new->offset);
	memmove(map->ext + at + 1, map->ext + at, (map->count - at) * sizeof(*new));
	map->ext[at] = *new;
	map->count++;
	if (at + 1 < map->count && map_joins(&map->ext[at], &map->ext[at + 1])) {
		map->ext[at].length += map->ext[at + 1].length;
		map_remove(map, at + 1, 1);
	}
	if (at && map_joins(&map->ext[at - 1], &map->ext[at])) {
		map->ext[at - 1].length += map->ext[at].length;
		map_remove(map, at, 1);
	}
}

/* An answer of the holder: what is known here already is newer, apart from holes that may have been filled. */
static void map_learn(struct mxfs_map *map, struct mxfs_extent ext)
{
	u64 end = ext.offset + ext.length, at = ext.offset, stop;
	struct mxfs_extent part;
	unsigned int i;

	while (at < end) {
		stop = end;
		for (i = map_search(map, at); i < map->count; i++) {
			if (map->ext[i].state == MXFS_EXTENT_HOLE)
				continue;
			stop = min(end, map->ext[i].offset);
			break;
		}
		if (stop > at) {
			part = ext;
			map_cut_front(&part, at);
			part.length = stop - at;
			map_replace(map, &part);
			at = stop;
		} else {
			at = min(end, map->ext[i].offset + map->ext[i].length);
		}
	}
}

/* What was known under another lock or another holder is void. */
static void map_validate(struct inode *inode, struct mxfs_map *map)
{
	u64 gen = mxfs_lock_gen(&MXFS_I(inode)->lock), epoch = atomic64_read(&mxfs_inode_sbi(inode)->map_epoch);

	if (map->gen == gen && map->epoch == epoch)
		return;
	map_drop(map);
	map->refused = false;
	map->gen = gen;
	map->epoch = epoch;
}

/* ---------------------------------------------------------------- use */

int mxfs_map_use(struct inode *inode, u64 pos, u64 len, bool write, struct mxfs_extent *ext)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_map *map = map_of(inode);
	unsigned long off = READ_ONCE(sbi->direct_off);
	unsigned int at;
	int err = -ENOENT;

	if (READ_ONCE(sbi->be) != &mxfs_remote_backend || (off && time_before(jiffies, off)))
		return -EAGAIN;
	spin_lock_irq(&map->lock);
	wait_event_lock_irq(map->wait, !map->changing, map->lock);
	map_validate(inode, map);
	if (map->refused) {
		err = -ENXIO;
		goto out;
	}
	at = map_search(map, pos);
	if (at == map->count || map->ext[at].offset > pos)
		goto out;
	*ext = map->ext[at];
	map_cut_front(ext, pos);
	ext->length = min(ext->length, len);
	err = 0;
	if (ext->state == MXFS_EXTENT_WRITTEN || (write && ext->state == MXFS_EXTENT_UNWRITTEN)) {
		if (percpu_ref_tryget_live(&sbi->io))
			map->users++;
		else
			err = -EAGAIN;
	}
out:
	spin_unlock_irq(&map->lock);
	return err;
}

void mxfs_map_unuse(struct inode *inode)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_map *map = map_of(inode);
	unsigned long flags;

	spin_lock_irqsave(&map->lock, flags);
	if (!--map->users && map->changing)
		wake_up_all(&map->wait);
	spin_unlock_irqrestore(&map->lock, flags);
	percpu_ref_put(&sbi->io);
}

static void map_get_extent(struct mxfs_extent *ext, const struct mxfs_wire_extent *wire)
{
	ext->offset = le64_to_cpu(wire->offset);
	ext->length = le64_to_cpu(wire->length);
	ext->addr = le64_to_cpu(wire->addr);
	ext->state = le32_to_cpu(wire->state);
}

/* Room for that many extents at least; it never shrinks. */
static int map_make_room(struct mxfs_map *map, unsigned int want)
{
	struct mxfs_extent *room;

	if (READ_ONCE(map->room) >= want)
		return 0;
	room = kvmalloc_array(want, sizeof(*room), GFP_NOFS);
	if (!room)
		return -ENOMEM;
	spin_lock_irq(&map->lock);
	if (map->room < want) {
		memcpy(room, map->ext, map->count * sizeof(*room));
		swap(map->ext, room);
		map->room = want;
	}
	spin_unlock_irq(&map->lock);
	kvfree(room);
	return 0;
}

int mxfs_map_ask(struct inode *inode, u64 pos, u64 len, u64 need, u32 flags)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_map *map = map_of(inode);
	u32 count = MXFS_MAP_EXTENTS_MAX, block, i;
	struct mxfs_wire_extent *wire;
	struct mxfs_extent ext;
	u64 seq;
	int err;

	/* What is not committed would be told as not written. */
	err = mxfs_map_commit_gated(inode, NULL);
	if (err < 0)
		return err;
	wire = kvmalloc_array(count, sizeof(*wire), GFP_NOFS);
	err = -ENOMEM;
	if (!wire || map_make_room(map, MXFS_MAP_ROOM))
		goto out;
	spin_lock_irq(&map->lock);
	map_validate(inode, map);
	seq = map->seq;
	spin_unlock_irq(&map->lock);

	mxfs_count(sbi, MXFS_COUNT_MAP_ASK);
	err = sbi->be->map(sbi, &MXFS_I(inode)->fh, pos, len, need, flags, wire, &count, &block);
	if (!err && block != PAGE_SIZE) {
		if (!xchg(&sbi->block_told, true))
			mxfs_info(sbi, "the XFS has blocks of %u bytes, only %lu are mapped: file data of this node goes through the holder",
				  block, PAGE_SIZE);
		err = -ENXIO;
	}
	if (err && err != -ENXIO)
		goto out;
	spin_lock_irq(&map->lock);
	map_validate(inode, map);
	if (map->seq == seq && err == -ENXIO)
		map->refused = true;
	for (i = 0; !err && map->seq == seq && i < count; i++) {
		map_get_extent(&ext, &wire[i]);
		map_learn(map, ext);
	}
	/* The last ones may have pushed all out; the next look-up asks again. */
	spin_unlock_irq(&map->lock);
out:
	kvfree(wire);
	return err;
}

bool mxfs_map_ticket(struct inode *inode, struct mxfs_map_ticket *ticket)
{
	struct mxfs_map *map = map_of(inode);
	bool wanted;

	spin_lock_irq(&map->lock);
	map_validate(inode, map);
	ticket->gen = map->gen;
	ticket->epoch = map->epoch;
	ticket->seq = map->seq;
	wanted = !map->count && !map->batch && !map->changing && !map->refused;
	spin_unlock_irq(&map->lock);
	return wanted;
}

bool mxfs_map_given(struct inode *inode, const struct mxfs_map_ticket *ticket, const struct mxfs_wire_extent *wire, u32 block)
{
	struct mxfs_map *map = map_of(inode);
	struct mxfs_extent ext;
	bool taken;

	if (block != PAGE_SIZE || map_make_room(map, MXFS_MAP_ROOM_SMALL))
		return false;
	map_get_extent(&ext, wire);
	spin_lock_irq(&map->lock);
	map_validate(inode, map);
	taken = map->gen == ticket->gen && map->epoch == ticket->epoch && map->seq == ticket->seq && !map->batch &&
		!map->changing;
	if (taken)
		map_learn(map, ext);
	spin_unlock_irq(&map->lock);
	return taken;
}

void mxfs_map_newborn(struct inode *inode)
{
	struct mxfs_wire_extent hole = { .length = cpu_to_le64(S64_MAX & PAGE_MASK), .state = cpu_to_le32(MXFS_EXTENT_HOLE) };
	struct mxfs_map_ticket ticket;

	if (READ_ONCE(mxfs_inode_sbi(inode)->be) == &mxfs_remote_backend && mxfs_map_ticket(inode, &ticket))
		mxfs_map_given(inode, &ticket, &hole, PAGE_SIZE);
}

void mxfs_map_forget(struct inode *inode, u64 pos, u64 len)
{
	struct mxfs_map *map = map_of(inode);
	unsigned long flags;

	spin_lock_irqsave(&map->lock, flags);
	if (map->ext && map->count)
		map_clear(map, round_down(pos, PAGE_SIZE), len > S64_MAX - pos ? S64_MAX : round_up(pos + len, PAGE_SIZE));
	if (len > S64_MAX - pos)
		map->refused = false;
	map->seq++;
	spin_unlock_irqrestore(&map->lock, flags);
}

/* ---------------------------------------------------------------- what is to be committed */

void mxfs_batch_put(struct mxfs_batch *batch)
{
	/* The one that waits frees it. */
	if (batch && refcount_dec_and_test(&batch->ref))
		complete(&batch->idle);
}

/* The range was not written, neither will it be valid. Process context. */
void mxfs_batch_failed(struct inode *inode, struct mxfs_batch *batch, u64 pos, u64 len)
{
	struct mxfs_map *map = map_of(inode);

	if (!batch)
		return;
	spin_lock_irq(&map->lock);
	if (batch->failed_count == MXFS_BATCH_FAILED)
		batch->all_failed = true;
	else
		batch->failed[batch->failed_count++] = (struct mxfs_extent){ .offset = pos, .length = len };
	spin_unlock_irq(&map->lock);
}

static struct mxfs_batch *batch_new(void)
{
	struct mxfs_batch *batch = kzalloc(sizeof(*batch), GFP_NOFS | __GFP_NOFAIL);

	refcount_set(&batch->ref, 1);
	init_completion(&batch->idle);
	return batch;
}

static bool batch_add(struct mxfs_batch *batch, u64 pos, u64 len, u32 room)
{
	struct mxfs_wire_range *last = batch->count ? &batch->ranges[batch->count - 1] : NULL;

	if (last && le64_to_cpu(last->offset) + le64_to_cpu(last->length) == pos) {
		le64_add_cpu(&last->length, len);
		return true;
	}
	if (batch->count >= room)
		return false;
	batch->ranges[batch->count].offset = cpu_to_le64(pos);
	batch->ranges[batch->count++].length = cpu_to_le64(len);
	return true;
}

int mxfs_map_written(struct inode *inode, const struct mxfs_extent *ext, u64 size, bool direct, struct mxfs_batch **batch)
{
	struct mxfs_map *map = map_of(inode);
	bool fresh = ext->state == MXFS_EXTENT_UNWRITTEN;
	struct mxfs_batch *new = NULL;
	struct mxfs_extent now = *ext;
	int err = 0;

	*batch = NULL;
	if (!fresh && size <= READ_ONCE(MXFS_VN(inode)->disk_size))
		return 0;
	if (!READ_ONCE(map->batch))
		new = batch_new();
	spin_lock_irq(&map->lock);
	if (!map->batch && new)
		swap(map->batch, new);
	if (!map->batch || (fresh && !batch_add(map->batch, ext->offset, ext->length, direct ? MXFS_BATCH_RANGES : MXFS_BATCH_PAGES))) {
		err = -EBUSY;
		goto out;
	}
	map->batch->size = max(map->batch->size, size);
	refcount_inc(&map->batch->ref);
	*batch = map->batch;
	if (fresh) {
		now.state = MXFS_EXTENT_WRITTEN;
		/* Not if it was forgotten meanwhile: who asks again commits first. */
		if (map->gen == mxfs_lock_gen(&MXFS_I(inode)->lock) && map->ext)
			map_replace(map, &now);
	}
out:
	spin_unlock_irq(&map->lock);
	kfree(new);
	return err;
}

void mxfs_map_make_room(struct inode *inode)
{
	struct mxfs_map *map = map_of(inode);
	bool full;

	spin_lock_irq(&map->lock);
	full = map->batch && map->batch->count >= MXFS_BATCH_PAGES;
	spin_unlock_irq(&map->lock);
	if (full)
		mxfs_map_commit_gated(inode, NULL);
}

/* Takes what failed out of the ranges; they may become more by that, so into a new array. */
static u32 batch_sound_ranges(const struct mxfs_batch *batch, struct mxfs_wire_range *out)
{
	u64 pos, end, cut, cut_end, next;
	u32 i, j, n = 0;

	for (i = 0; i < batch->count && !batch->all_failed; i++) {
		pos = le64_to_cpu(batch->ranges[i].offset);
		end = pos + le64_to_cpu(batch->ranges[i].length);
		while (pos < end) {
			/* The failed range that comes first behind pos. */
			cut = cut_end = end;
			for (j = 0; j < batch->failed_count; j++) {
				next = batch->failed[j].offset + batch->failed[j].length;
				if (next > pos && batch->failed[j].offset < cut) {
					cut = batch->failed[j].offset;
					cut_end = next;
				}
			}
			if (cut > pos) {
				out[n].offset = cpu_to_le64(pos);
				out[n++].length = cpu_to_le64(cut - pos);
			}
			pos = max(cut_end, pos);
		}
	}
	return n;
}

/* Under commit_mutex. */
static int batch_commit(struct inode *inode, struct mxfs_batch *batch, struct mxfs_attr *attr)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	bool failed = batch->failed_count || batch->all_failed;
	struct mxfs_wire_range *ranges = batch->ranges, *sound = NULL;
	u64 size = batch->size, last = READ_ONCE(MXFS_VN(inode)->disk_size);
	u32 count = batch->count, part, at = 0, i;
	struct timespec64 mtime;
	const struct cred *old;
	unsigned int nofs;
	int err = 0;

	if (failed) {
		/* Their pages are dirty again, or told as lost; until they are rewritten they read as zeros. */
		sound = kcalloc(MXFS_BATCH_RANGES + MXFS_BATCH_FAILED, sizeof(*sound), GFP_NOFS | __GFP_NOFAIL);
		count = batch_sound_ranges(batch, sound);
		ranges = sound;
		for (i = 0; i < count; i++)
			last = max(last, le64_to_cpu(sound[i].offset) + le64_to_cpu(sound[i].length));
		size = min(size, last);
		mxfs_map_forget(inode, 0, U64_MAX);
	}
	/* The commit's log force flushes the disk's cache behind all that has been written until now. */
	WRITE_ONCE(map_of(inode)->unflushed, false);
	spin_lock(&inode->i_lock);
	mtime = inode->i_mtime;
	spin_unlock(&inode->i_lock);
	nofs = memalloc_nofs_save();
	old = override_creds(mxfs_kernel_cred);
	do {
		part = min_t(u32, count - at, MXFS_COMMIT_RANGES_MAX);
		mxfs_count(sbi, MXFS_COUNT_MAP_COMMIT);
		err = sbi->be->commit(sbi, &mi->fh, ranges + at, part, size, &mtime, attr);
		at += part;
	} while (!err && at < count);
	revert_creds(old);
	memalloc_nofs_restore(nofs);
	kfree(sound);
	if (err) {
		WRITE_ONCE(map_of(inode)->unflushed, true);
		mapping_set_error(inode->i_mapping, err);
		mxfs_map_forget(inode, 0, U64_MAX);
		if (!mxfs_gate_fenced(&sbi->gate))
			mxfs_err(sbi, "inode %llu: making %u written ranges valid failed with %d: they are lost, fsync tells",
				 mi->fh.ino, count, err);
		return err;
	}
	mxfs_lock_dirtied(&mi->lock);
	spin_lock(&inode->i_lock);
	MXFS_VN(inode)->disk_size = attr->size;
	inode->i_blocks = attr->blocks;
	spin_unlock(&inode->i_lock);
	return 1;
}

int mxfs_map_commit_gated(struct inode *inode, struct mxfs_attr *attr)
{
	struct mxfs_map *map = map_of(inode);
	struct mxfs_batch *batch;
	struct mxfs_attr own;
	int err = 0;

	mutex_lock(&map->commit_mutex);
	spin_lock_irq(&map->lock);
	batch = map->batch;
	map->batch = NULL;
	spin_unlock_irq(&map->lock);
	if (batch) {
		mxfs_batch_put(batch);
		wait_for_completion(&batch->idle);
		if (test_bit(MXFS_VN_GONE, &MXFS_VN(inode)->state))
			err = 0;
		else
			err = batch_commit(inode, batch, attr ?: &own);
		kfree(batch);
	}
	mutex_unlock(&map->commit_mutex);
	return err;
}

int mxfs_map_commit(struct inode *inode)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	int err;

	if (!READ_ONCE(map_of(inode)->batch) && !mutex_is_locked(&map_of(inode)->commit_mutex))
		return 0;
	err = mxfs_gate_enter_wait(sbi);
	if (err)
		return err;
	err = mxfs_map_commit_gated(inode, NULL);
	mxfs_gate_leave(sbi);
	return min(err, 0);
}

/* ---------------------------------------------------------------- changes of the blocks by other means */

int mxfs_map_change_begin(struct inode *inode)
{
	struct mxfs_map *map = map_of(inode);

	spin_lock_irq(&map->lock);
	WARN_ON_ONCE(map->changing);
	map->changing = true;
	wait_event_lock_irq(map->wait, !map->users, map->lock);
	spin_unlock_irq(&map->lock);
	/* Told by the mapping if it fails. */
	mxfs_map_commit_gated(inode, NULL);
	return mxfs_lower_fresh(inode);
}

void mxfs_map_change_end(struct inode *inode)
{
	struct mxfs_map *map = map_of(inode);

	mxfs_map_forget(inode, 0, U64_MAX);
	spin_lock_irq(&map->lock);
	map->changing = false;
	map->beyond = false;
	map->grow = 0;
	wake_up_all(&map->wait);
	spin_unlock_irq(&map->lock);
}

/* ---------------------------------------------------------------- what other parts ask for */

int mxfs_disk_flush(struct mxfs_sb_info *sbi)
{
	int err = -EAGAIN;

	if (percpu_ref_tryget_live(&sbi->io)) {
		err = blkdev_issue_flush(sbi->bdev);
		percpu_ref_put(&sbi->io);
		if (err)
			mxfs_disk_failed(sbi, err);
	}
	return err;
}

int mxfs_data_flush(struct inode *inode)
{
	struct mxfs_map *map = map_of(inode);
	int err;

	if (!xchg(&map->unflushed, false))
		return 0;
	err = mxfs_disk_flush(mxfs_inode_sbi(inode));
	if (err)
		WRITE_ONCE(map->unflushed, true);
	return err;
}

void mxfs_map_trim(struct inode *inode)
{
	struct mxfs_setattr set = { .valid = ATTR_SIZE, .size = i_size_read(inode) };
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_vnode *vn = MXFS_VN(inode);
	const struct cred *old;
	struct mxfs_attr attr;
	int err;

	/* What is not there yet would be cut off. */
	if (!READ_ONCE(vn->map.beyond) || test_bit(MXFS_VN_GONE, &vn->state) || mxfs_is_local(inode) ||
	    set.size != READ_ONCE(vn->disk_size) || mxfs_gate_enter_wait(sbi))
		return;
	err = mxfs_map_change_begin(inode);
	if (!err) {
		/* To the size that it has: that frees the blocks behind it, and changes no time. */
		old = override_creds(mxfs_kernel_cred);
		err = sbi->be->setattr(sbi, &vn->mi.fh, &set, &attr);
		revert_creds(old);
	}
	mxfs_map_change_end(inode);
	if (!err) {
		mxfs_lock_dirtied(&vn->mi.lock);
		mxfs_attr_apply(inode, &attr, MXFS_APPLY_REPLY);
	}
	mxfs_gate_leave(sbi);
	if (err && !mxfs_gate_fenced(&sbi->gate))
		mxfs_warn(sbi, "inode %llu: giving back blocks beyond its end failed with %d; its next truncation does", vn->mi.fh.ino,
			  err);
}

void mxfs_data_settle(struct inode *inode)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);

	if (!READ_ONCE(map_of(inode)->unflushed) || mxfs_gate_enter_wait(sbi))
		return;
	if (mxfs_data_flush(inode)) {
		WRITE_ONCE(map_of(inode)->unflushed, false);
		if (sbi->be->fsync(sbi, &MXFS_I(inode)->fh, true) && !mxfs_gate_fenced(&sbi->gate))
			mxfs_warn(sbi, "inode %llu: flushing the disk's cache failed", MXFS_I(inode)->fh.ino);
	}
	mxfs_gate_leave(sbi);
}

void mxfs_data_clean(struct inode *inode)
{
	int tries;

	/* What the disk has refused is dirty again, and goes through the holder in the next round. */
	for (tries = 0; tries < 3; tries++) {
		filemap_write_and_wait(inode->i_mapping);
		if (!mapping_tagged(inode->i_mapping, PAGECACHE_TAG_DIRTY))
			break;
	}
	mxfs_push_times(inode);
	mxfs_map_trim(inode);
	/* The next owner shall not see what a power cut at the disk would take back. */
	mxfs_data_settle(inode);
}

int mxfs_lower_fresh(struct inode *inode)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	u64 gen = mxfs_lock_gen(&MXFS_I(inode)->lock);
	struct mxfs_map *map = map_of(inode);
	int err;

	if (likely(READ_ONCE(map->lower_gen) == gen) || sbi->be != &mxfs_local_backend)
		return 0;
	err = mxfs_lower_pages_drop(sbi, &MXFS_I(inode)->fh);
	if (!err)
		WRITE_ONCE(map->lower_gen, gen);
	return err;
}

void mxfs_data_forget(struct inode *inode)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	int err;

	mxfs_map_forget(inode, 0, U64_MAX);
	if (test_bit(MXFS_VN_GONE, &MXFS_VN(inode)->state) || mxfs_gate_enter_wait(sbi))
		return;
	if (sbi->be == &mxfs_local_backend) {
		err = mxfs_lower_pages_drop(sbi, &MXFS_I(inode)->fh);
		if (err && !mxfs_gate_fenced(&sbi->gate)) {
			mxfs_err(sbi, "inode %llu: dropping the lower pages failed with %d; giving up the volume here, since other nodes may change what they show",
				 MXFS_I(inode)->fh.ino, err);
			mxfs_fence(sbi, "lower pages could not be dropped before giving up a lock");
		}
	}
	mxfs_gate_leave(sbi);
}
