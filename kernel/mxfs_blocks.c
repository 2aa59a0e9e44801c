// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: the holder's side of block maps: where members may read and write a file on the disk, by XFS's export operations
 * (map_blocks, commit_blocks: what the kernel's pNFS block layouts use), and the operations on file data beside them.
 *
 * The one rule of this file: the lower page cache of a file is empty whenever a member may be using the disk. A member
 * uses it under its lock on the file; so this node drops the lower pages before it gives up its own lock (mxfs_cache.c), and
 * the executor drops what it brought in before it answers (mxfs_exec.c). map_blocks and commit_blocks do the same themselves.
 *
 * Blocks are given by a keep-size fallocate: that leaves no delayed allocation in the range, and sets XFS's PREALLOC flag,
 * without which XFS would trim blocks beyond the end of file behind the member's back. The executor forces the log before it
 * answers, so a crash cannot give the blocks to somebody else.
 *
 * Known weakness: a file keeps the PREALLOC flag, so XFS does not trim its own speculative preallocation of that file later.
 */
#include <linux/exportfs.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/iomap.h>
#include <linux/pagemap.h>

#include "mxfs_lower.h"

#define MXFS_DROP_TRIES 8

static int drop_pages(struct address_space *mapping)
{
	int err = 0, tries;

	if (!mapping->nrpages)
		return 0;
	for (tries = 0; tries < MXFS_DROP_TRIES; tries++) {
		err = filemap_write_and_wait(mapping);
		if (!err)
			err = invalidate_inode_pages2(mapping);
		if (err != -EBUSY)
			break;
	}
	return err;
}

int mxfs_lower_pages_drop(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct file *file;
	int err = mxfs_local_begin_file(sbi, fh, &lower, &node, &file);

	if (err)
		return err == -ESTALE ? 0 : err; /* gone, and its pages with it */
	err = drop_pages(file->f_mapping);
	mxfs_lower_node_put(lower, node);
	return err;
}

/* One extent of XFS's answer as it travels. */
static void put_extent(struct mxfs_wire_extent *wire, const struct iomap *iomap)
{
	u32 state = iomap->type == IOMAP_MAPPED	    ? MXFS_EXTENT_WRITTEN :
		    iomap->type == IOMAP_UNWRITTEN ? MXFS_EXTENT_UNWRITTEN :
						     MXFS_EXTENT_HOLE;

	/* A delayed allocation can only be there beyond the end of file: nothing to read. */
	memset(wire, 0, sizeof(*wire));
	wire->offset = cpu_to_le64(iomap->offset);
	wire->length = cpu_to_le64(iomap->length);
	wire->addr = cpu_to_le64(state == MXFS_EXTENT_HOLE ? 0 : iomap->addr);
	wire->state = cpu_to_le32(state);
}

static int list_extents(struct inode *inode, u64 pos, u64 end, struct mxfs_wire_extent *extents, u32 *count)
{
	const struct export_operations *ops = inode->i_sb->s_export_op;
	u32 max = *count, generation, n = 0;
	u64 at = pos;
	int err = 0;

	while (at < end && n < max) {
		struct iomap iomap = {};

		err = ops->map_blocks(inode, at, end - at, &iomap, false, &generation);
		if (err)
			break;
		/* Without this no extent could be trusted to lead on to the next. */
		if (iomap.offset > at || iomap.offset + iomap.length <= at) {
			err = -EUCLEAN;
			break;
		}
		/* The whole extent is told only of the first. */
		if (n) {
			iomap.addr += iomap.type == IOMAP_MAPPED || iomap.type == IOMAP_UNWRITTEN ? at - iomap.offset : 0;
			iomap.length -= at - iomap.offset;
			iomap.offset = at;
		}
		put_extent(&extents[n++], &iomap);
		at = iomap.offset + iomap.length;
	}
	*count = n;
	/* What is known is good to have; the rest is asked for when it is needed. */
	return n ? 0 : err;
}

int mxfs_local_map(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, u64 len, u64 need, u32 flags,
		   struct mxfs_wire_extent *extents, u32 *count, u32 *block)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct inode *inode;
	struct file *file;
	u64 max, mask;
	u32 one = 1;
	int err;

	err = mxfs_local_begin_file(sbi, fh, &lower, &node, &file);
	if (err)
		return err;
	inode = file_inode(file);
	*block = i_blocksize(inode);
	mask = *block - 1;
	max = inode->i_sb->s_maxbytes & ~mask;
	err = -EFBIG;
	if (!len || pos >= max)
		goto out;
	/* Whole blocks, and not one more: who writes sequentially goes on where the last piece ended. */
	len = round_up(min_t(u64, (pos & mask) + len, MXFS_MAP_BYTES_MAX), *block);
	need = round_up(min_t(u64, (pos & mask) + need, len), *block);
	pos &= ~mask;
	len = min(len, max - pos);
	err = -ENXIO;
	if (!inode->i_sb->s_export_op->map_blocks || !inode->i_sb->s_export_op->commit_blocks)
		goto out;
	/* Refuses what must not be mapped, before anything is allocated. */
	err = list_extents(inode, pos, pos + 1, extents, &one);
	if (err)
		goto out;
	if (flags & MXFS_MAP_WRITE) {
		need = min(need, len);
		err = vfs_fallocate(file, FALLOC_FL_KEEP_SIZE, pos, len);
		if ((err == -ENOSPC || err == -EDQUOT) && need < len) {
			len = need;
			err = vfs_fallocate(file, FALLOC_FL_KEEP_SIZE, pos, len);
		}
		mxfs_local_changed_data(lower);
		if (err)
			goto out;
	}
	err = list_extents(inode, pos, pos + len, extents, count);
out:
	mxfs_lower_failed(lower, err);
	mxfs_lower_node_put(lower, node);
	return err;
}

int mxfs_local_first_extent(struct mxfs_lower_node *node, struct mxfs_wire_extent *extent, u32 *block)
{
	struct inode *inode = d_inode(node->dentry);
	u32 one = 1;

	if (!inode->i_sb->s_export_op->map_blocks || !inode->i_sb->s_export_op->commit_blocks)
		return -ENXIO;
	*block = i_blocksize(inode);
	return list_extents(inode, 0, round_up(min_t(u64, i_size_read(inode), MXFS_MAP_BYTES_MAX), *block), extent, &one);
}

int mxfs_local_commit(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_wire_range *ranges, u32 count,
		      u64 size, const struct timespec64 *mtime, struct mxfs_attr *attr)
{
	struct iattr iattr = {
		.ia_valid = ATTR_SIZE | ATTR_ATIME | ATTR_MTIME | ATTR_CTIME,
		.ia_size = size,
		.ia_mtime = *mtime,
	};
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct iomap *maps = NULL;
	struct inode *inode;
	struct file *file;
	u32 i;
	int err;

	err = mxfs_local_begin_file(sbi, fh, &lower, &node, &file);
	if (err)
		return err;
	inode = file_inode(file);
	err = -EINVAL;
	if (size > S64_MAX || count > MXFS_COMMIT_RANGES_MAX)
		goto out;
	err = -ENXIO;
	if (!inode->i_sb->s_export_op->commit_blocks)
		goto out;
	err = -ENOMEM;
	maps = kvcalloc(max_t(u32, count, 1), sizeof(*maps), GFP_KERNEL);
	if (!maps)
		goto out;
	for (i = 0; i < count; i++) {
		maps[i].offset = le64_to_cpu(ranges[i].offset);
		maps[i].length = le64_to_cpu(ranges[i].length);
		err = -EINVAL;
		if (maps[i].offset < 0 || maps[i].length > S64_MAX - maps[i].offset)
			goto out;
	}
	iattr.ia_ctime = current_time(inode);
	iattr.ia_atime = inode->i_atime;
	file_start_write(file);
	err = inode->i_sb->s_export_op->commit_blocks(inode, maps, count, &iattr);
	file_end_write(file);
	mxfs_local_changed_data(lower);
	if (!err)
		mxfs_local_answer(lower, node, attr);
out:
	kvfree(maps);
	mxfs_lower_failed(lower, err);
	mxfs_lower_node_put(lower, node);
	return err;
}

/* Reads and writes as the process, past the lower page cache. */
ssize_t mxfs_local_direct(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, struct iov_iter *iter, bool write,
			  struct mxfs_attr *attr)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct kiocb kiocb;
	struct file *file;
	ssize_t done;

	done = mxfs_local_begin_file(sbi, fh, &lower, &node, &file);
	if (done)
		return done;
	init_sync_kiocb(&kiocb, file);
	kiocb.ki_pos = pos;
	kiocb.ki_flags |= IOCB_DIRECT;
	if (write) {
		file_start_write(file);
		done = call_write_iter(file, &kiocb, iter);
		file_end_write(file);
		if (done > 0) {
			mxfs_local_changed_data(lower);
			mxfs_local_answer(lower, node, attr);
		}
	} else {
		done = call_read_iter(file, &kiocb, iter);
	}
	mxfs_lower_failed(lower, done);
	mxfs_lower_node_put(lower, node);
	return done;
}

/* Written out first: XFS counts dirty pages over unwritten blocks as data, but the answer must not depend on who asks. */
loff_t mxfs_local_seek(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, int whence)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct file *file;
	loff_t found;
	int err;

	if (pos > S64_MAX || (whence != SEEK_DATA && whence != SEEK_HOLE))
		return -EINVAL;
	err = mxfs_local_begin_file(sbi, fh, &lower, &node, &file);
	if (err)
		return err;
	/* The position of the shared file is of no meaning to anybody. */
	found = vfs_llseek(file, pos, whence);
	mxfs_lower_node_put(lower, node);
	return found;
}

ssize_t mxfs_local_copy(struct mxfs_sb_info *sbi, const struct mxfs_fh *from, u64 from_pos, const struct mxfs_fh *to,
			u64 to_pos, u64 len, u32 flags, struct mxfs_attr *attr)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *in, *out;
	struct file *file_in, *file_out;
	ssize_t done;

	if (from_pos > S64_MAX || to_pos > S64_MAX || len > S64_MAX)
		return -EINVAL;
	done = mxfs_local_begin_file(sbi, from, &lower, &in, &file_in);
	if (done)
		return done;
	done = mxfs_local_begin_file(sbi, to, &lower, &out, &file_out);
	if (done)
		goto out_in;
	/* Neither may have pages that a member's writes have made old. */
	done = drop_pages(file_in->f_mapping);
	if (!done)
		done = drop_pages(file_out->f_mapping);
	if (done)
		goto out;
	if (flags & MXFS_COPY_DEDUPE)
		done = vfs_dedupe_file_range_one(file_in, from_pos, file_out, to_pos, len, 0);
	else if (flags & MXFS_COPY_CLONE)
		done = vfs_clone_file_range(file_in, from_pos, file_out, to_pos, len, 0);
	else
		done = vfs_copy_file_range(file_in, from_pos, file_out, to_pos, len, 0);
	if ((flags & MXFS_COPY_DEDUPE) && done == -EBADE)
		done = -EILSEQ; /* the ranges differ: everywhere else EBADE means that the disk has refused us */
	if (done >= 0) {
		mxfs_local_changed_data(lower);
		mxfs_local_answer(lower, out, attr);
	}
out:
	mxfs_lower_failed(lower, done);
	mxfs_lower_node_put(lower, out);
out_in:
	mxfs_lower_node_put(lower, in);
	return done;
}
