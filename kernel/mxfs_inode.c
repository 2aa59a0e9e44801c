// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS inodes: their life, attributes, permission, setattr, and what happens when the last file is closed.
 *
 * Attributes are valid while attr_gen equals the INODE lock's generation, and only looked at with the lock
 * held. They come from getattr under the lock, or with the answer of an operation that changed them. Answers can
 * overtake each other: a getattr is used only if nothing changed here since it was asked (attr_seq, under
 * i_lock); changing operations are serialized by i_rwsem and by EX.
 *
 * Unlinked while open (docs/interfaces.md section 1): whoever closes last takes INODE in EX, then OPEN in EX
 * without queueing, and reaps the parked inode. That waits for the daemon, so release() leaves it to a work item.
 *
 * Known weakness: atime is not kept (all inodes are noatime). ctime of a write that was cached moves to the
 * time of its write-out. A FIFO or device node that is unlinked while open elsewhere is not parked.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/iversion.h>
#include <linux/pagemap.h>
#include <linux/posix_acl.h>
#include <linux/slab.h>
#include <linux/statfs.h>
#include <linux/writeback.h>
#include <linux/xattr.h>

#include "mxfs_fsop_codec.h"
#include "mxfs_vfs.h"

#define MXFS_REFRESH_TRIES 64 /* how often a getattr may be overtaken by local changes */

static struct kmem_cache *mxfs_inode_cachep;
struct workqueue_struct *mxfs_inode_wq;
const struct cred *mxfs_kernel_cred;

static void mxfs_last_close(struct work_struct *work);

/* ------------------------------------------------------------------ life */

static void mxfs_inode_once(void *object)
{
	struct mxfs_vnode *vn = object;

	inode_init_once(&vn->mi.vfs_inode);
}

int mxfs_inode_cache_init(void)
{
	int err = -ENOMEM;

	mxfs_inode_cachep = kmem_cache_create("mxfs_inode", sizeof(struct mxfs_vnode), 0,
					      SLAB_RECLAIM_ACCOUNT | SLAB_MEM_SPREAD | SLAB_ACCOUNT, mxfs_inode_once);
	if (!mxfs_inode_cachep)
		return err;
	mxfs_inode_wq = alloc_workqueue("mxfs_inode", WQ_UNBOUND, 0);
	if (!mxfs_inode_wq)
		goto out_cache;
	mxfs_kernel_cred = prepare_kernel_cred(NULL);
	if (!mxfs_kernel_cred)
		goto out_wq;
	err = mxfs_flock_init();
	if (err)
		goto out_cred;
	return 0;

out_cred:
	put_cred(mxfs_kernel_cred);
out_wq:
	destroy_workqueue(mxfs_inode_wq);
out_cache:
	kmem_cache_destroy(mxfs_inode_cachep);
	return err;
}

void mxfs_inode_cache_exit(void)
{
	destroy_workqueue(mxfs_inode_wq);
	put_cred(mxfs_kernel_cred);
	rcu_barrier(); /* inodes are freed after a grace period */
	kmem_cache_destroy(mxfs_inode_cachep);
}

void mxfs_inode_drain(void)
{
	flush_workqueue(mxfs_inode_wq);
}

struct inode *mxfs_alloc_inode(struct super_block *sb)
{
	struct mxfs_vnode *vn = alloc_inode_sb(sb, mxfs_inode_cachep, GFP_KERNEL);

	if (!vn)
		return NULL;
	memset((char *)vn + sizeof(struct inode), 0, sizeof(*vn) - sizeof(struct inode));
	BUILD_BUG_ON(offsetof(struct mxfs_vnode, mi.vfs_inode) != 0);
	mutex_init(&vn->open_mutex);
	mutex_init(&vn->mi.lazy);
	INIT_WORK(&vn->last_close, mxfs_last_close);
	mxfs_map_init(&vn->map);
	xa_init(&vn->ranges);
	return &vn->mi.vfs_inode;
}

void mxfs_free_inode(struct inode *inode)
{
	if (S_ISLNK(inode->i_mode))
		kfree(inode->i_link);
	kmem_cache_free(mxfs_inode_cachep, MXFS_VN(inode));
}

/* Never waits for the daemon: dirty inodes were written by the VFS before it came here, or have no name left. */
void mxfs_evict_inode(struct inode *inode)
{
	struct mxfs_inode *mi = MXFS_I(inode);
	const struct mxfs_backend *be;

	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
	mxfs_map_destroy(inode);
	mxfs_ahead_destroy(inode);
	if (!mi->lock.sbi) /* never became one of ours */
		return;
	if (mi->open_held) {
		mi->open_held = false;
		mxfs_lock_put(&mi->open, MXFS_MODE_PR);
	}
	mxfs_ranges_destroy(inode);
	mxfs_lock_destroy(&mi->open);
	mxfs_lock_destroy(&mi->lock);
	be = READ_ONCE(mxfs_inode_sbi(inode)->be);
	if (be && be->forget)
		be->forget(mxfs_inode_sbi(inode), &mi->fh);
}

static int mxfs_iget_test(struct inode *inode, void *data)
{
	const struct mxfs_attr *attr = data;

	return MXFS_I(inode)->fh.ino == attr->fh.ino && MXFS_I(inode)->fh.gen == attr->fh.gen;
}

static int mxfs_iget_set(struct inode *inode, void *data)
{
	const struct mxfs_attr *attr = data;

	MXFS_I(inode)->fh = attr->fh;
	inode->i_ino = attr->fh.ino;
	inode->i_generation = attr->fh.gen;
	return 0;
}

static void mxfs_attr_copy(struct inode *inode, const struct mxfs_attr *attr, bool content);

/* Attributes given here only make a new inode what it is; they count as valid after a refresh under its own lock. */
struct inode *mxfs_iget(struct super_block *sb, const struct mxfs_attr *attr)
{
	struct mxfs_sb_info *sbi = MXFS_SB(sb);
	struct mxfs_inode *mi;
	struct inode *inode;

	/* A takeover came between the answer and this: it is looked up again. */
	if (unlikely(attr->numbering && attr->numbering != mxfs_remote_numbering(sbi)))
		return ERR_PTR(-ESTALE);
	inode = iget5_locked(sb, attr->fh.ino, mxfs_iget_test, mxfs_iget_set, (void *)attr);
	if (!inode)
		return ERR_PTR(-ENOMEM);
	/* Or between the line above and this, which mxfs_inodes_moved() cannot have seen then. */
	if (unlikely(inode->i_state & I_NEW && attr->numbering && attr->numbering != mxfs_remote_numbering(sbi))) {
		iget_failed(inode);
		return ERR_PTR(-ESTALE);
	}
	if (!(inode->i_state & I_NEW)) {
		if (((inode->i_mode ^ attr->mode) & S_IFMT) == 0)
			return inode;
		mxfs_err(sbi, "inode %llu generation %u: was of type %o, is %o: unmount and check the XFS",
			 attr->fh.ino, attr->fh.gen, inode->i_mode & S_IFMT, attr->mode & S_IFMT);
		iput(inode);
		return ERR_PTR(-ESTALE);
	}

	mi = MXFS_I(inode);
	mxfs_lock_init(sbi, &mi->lock, &mxfs_inode_lock_ops, inode, MXFS_RES_INODE, attr->fh.ino, 0);
	mxfs_lock_init(sbi, &mi->open, &mxfs_open_lock_ops, inode, MXFS_RES_OPEN, attr->fh.ino, 0);
	mi->lock.inode_gen = attr->fh.gen;
	mi->open.inode_gen = attr->fh.gen;
	inode->i_mode = attr->mode;
	inode->i_flags |= S_NOATIME | S_NOCMTIME;
	mxfs_attr_copy(inode, attr, true);
	switch (attr->mode & S_IFMT) {
	case S_IFREG:
		inode->i_op = &mxfs_file_inode_ops;
		inode->i_fop = &mxfs_file_fops;
		inode->i_mapping->a_ops = &mxfs_aops;
		break;
	case S_IFDIR:
		inode->i_op = &mxfs_dir_inode_ops;
		inode->i_fop = &mxfs_dir_fops;
		break;
	case S_IFLNK:
		inode->i_op = &mxfs_symlink_inode_ops;
		inode->i_link = NULL;
		break;
	case S_IFIFO:
	case S_IFSOCK:
	case S_IFCHR:
	case S_IFBLK:
		inode->i_op = &mxfs_special_inode_ops;
		init_special_inode(inode, attr->mode, attr->rdev);
		break;
	default:
		mxfs_err(sbi, "inode %llu: type %o is none that exists: check the XFS", attr->fh.ino,
			 attr->mode & S_IFMT);
		iget_failed(inode);
		return ERR_PTR(-EUCLEAN);
	}
	unlock_new_inode(inode);
	return inode;
}

/* Nobody else can know it by either number: its name is under a lock of ours. */
static void mxfs_inode_rename(struct inode *inode, const struct mxfs_fh *to)
{
	struct mxfs_inode *mi = MXFS_I(inode);

	remove_inode_hash(inode);
	spin_lock(&inode->i_lock);
	mi->fh = *to;
	inode->i_ino = to->ino;
	inode->i_generation = to->gen;
	WRITE_ONCE(mi->attr_gen, 0);
	MXFS_VN(inode)->attr_seq++;
	spin_unlock(&inode->i_lock);
	insert_inode_hash(inode);
	mxfs_lock_rename(&mi->lock, to->ino, to->gen);
	mxfs_lock_rename(&mi->open, to->ino, to->gen);
}

void mxfs_inodes_moved(struct mxfs_sb_info *sbi)
{
	struct super_block *sb = sbi->sb;
	u32 numbering = mxfs_remote_numbering(sbi);
	struct inode *inode, *last = NULL;
	struct mxfs_fh fh;

	spin_lock(&sb->s_inode_list_lock);
	list_for_each_entry(inode, &sb->s_inodes, i_sb_list) {
		if (S_ISDIR(inode->i_mode)) /* names that were fetched ahead may lead to the old numbers */
			mxfs_ahead_moved(inode);
		fh = MXFS_I(inode)->fh;
		if (!mxfs_remote_translate(sbi, &fh) || MXFS_VN(inode)->renumbered == numbering)
			continue;
		spin_lock(&inode->i_lock);
		/* One that is going needs no number any more. */
		if (inode->i_state & (I_FREEING | I_WILL_FREE)) {
			spin_unlock(&inode->i_lock);
			continue;
		}
		__iget(inode);
		spin_unlock(&inode->i_lock);
		spin_unlock(&sb->s_inode_list_lock);
		iput(last); /* its place in the list was needed until now */
		last = inode;
		wait_on_inode(inode); /* one that is coming; its maker waits for nothing meanwhile */
		if (is_bad_inode(inode)) {
			spin_lock(&sb->s_inode_list_lock);
			continue;
		}
		MXFS_VN(inode)->renumbered = numbering;
		mxfs_inode_rename(inode, &fh);
		cond_resched();
		spin_lock(&sb->s_inode_list_lock);
	}
	spin_unlock(&sb->s_inode_list_lock);
	iput(last);
}

/* ------------------------------------------------------------------ attributes */

/* Under i_lock, or on an inode that nobody else sees. */
static void mxfs_attr_copy(struct inode *inode, const struct mxfs_attr *attr, bool content)
{
	struct mxfs_inode *mi = MXFS_I(inode);
	struct mxfs_vnode *vn = MXFS_VN(inode);
	umode_t mode = (inode->i_mode & S_IFMT) | (attr->mode & ~S_IFMT);
	unsigned int flags = 0;

	if (inode->i_mode != mode) {
		clear_bit(MXFS_VN_UNPRIVED, &vn->state);
		inode->i_mode = mode;
	}
	inode->i_uid = make_kuid(&init_user_ns, attr->uid);
	inode->i_gid = make_kgid(&init_user_ns, attr->gid);
	if (!test_bit(MXFS_VN_GONE, &vn->state) && inode->i_nlink != attr->nlink)
		set_nlink(inode, attr->nlink);
	if (attr->flags & MXFS_ATTR_IMMUTABLE)
		flags |= S_IMMUTABLE;
	if (attr->flags & MXFS_ATTR_APPEND)
		flags |= S_APPEND;
	inode_set_flags(inode, flags, S_IMMUTABLE | S_APPEND);
	mi->lower_flags = attr->flags;
	mi->parked = attr->flags & MXFS_ATTR_PARKED;
	mi->btime = attr->btime;
	mi->change = attr->change;
	mi->change_of = attr->holders;
	inode->i_atime = attr->atime;
	vn->disk_size = attr->size;
	if (!content)
		return;
	i_size_write(inode, attr->size);
	inode->i_blocks = attr->blocks;
	inode->i_mtime = attr->mtime;
	inode->i_ctime = attr->ctime;
}

void mxfs_attr_apply(struct inode *inode, const struct mxfs_attr *attr, enum mxfs_apply how)
{
	struct mxfs_inode *mi = MXFS_I(inode);

	if (!attr->fh.ino) /* the answer had none */
		return;
	if (attr->fh.ino != mi->fh.ino || attr->fh.gen != mi->fh.gen) {
		WRITE_ONCE(mi->attr_gen, 0);
		return;
	}
	spin_lock(&inode->i_lock);
	mxfs_attr_copy(inode, attr, how == MXFS_APPLY_FORCE || !mxfs_is_local(inode));
	MXFS_VN(inode)->attr_seq++;
	WRITE_ONCE(mi->attr_gen, mxfs_lock_gen(&mi->lock));
	spin_unlock(&inode->i_lock);
}

u64 mxfs_attr_seen(struct inode *inode)
{
	struct mxfs_inode *mi = MXFS_I(inode);
	u64 seen = 0;

	spin_lock(&inode->i_lock);
	if (mi->change_of && mi->change_of == mxfs_remote_holders(mxfs_inode_sbi(inode)) &&
	    READ_ONCE(mi->attr_gen) == mxfs_lock_gen(&mi->lock))
		seen = mi->change;
	spin_unlock(&inode->i_lock);
	return seen;
}

/* A member that asks for the attributes of a file gets the map of a small one with them. */
static int mxfs_attr_ask(struct inode *inode, struct mxfs_attr *attr)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	struct mxfs_map_ticket ticket;
	struct mxfs_wire_brief brief;
	struct mxfs_handle handle;
	u32 block;
	int err;

	if (sbi->be != &mxfs_remote_backend || !S_ISREG(inode->i_mode) || !mxfs_map_ticket(inode, &ticket))
		return sbi->be->getattr(sbi, &mi->fh, attr);
	mxfs_fsop_put_handle(&handle, &mi->fh);
	err = sbi->be->getattrs(sbi, &handle, 1, &brief, &block);
	if (err == -EPROTO) /* a holder of an earlier release does not know the operation */
		return sbi->be->getattr(sbi, &mi->fh, attr);
	if (err)
		return err;
	mxfs_fsop_get_attr(attr, &brief.attr);
	if (!attr->fh.ino)
		return -ESTALE;
	if (brief.extent.length && mxfs_map_given(inode, &ticket, &brief.extent, block))
		mxfs_count(sbi, MXFS_COUNT_AHEAD_MAP);
	return 0;
}

int mxfs_attr_refresh_gated(struct inode *inode)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_vnode *vn = MXFS_VN(inode);
	struct mxfs_inode *mi = &vn->mi;
	struct mxfs_attr attr;
	int tries, err;
	u64 gen, seq;

	for (tries = 0; tries < MXFS_REFRESH_TRIES; tries++) {
		gen = mxfs_lock_gen(&mi->lock);
		if (READ_ONCE(mi->attr_gen) == gen || test_bit(MXFS_VN_GONE, &vn->state))
			return 0;
		spin_lock(&inode->i_lock);
		seq = vn->attr_seq;
		spin_unlock(&inode->i_lock);
		err = mxfs_attr_ask(inode, &attr);
		if (err)
			return err == -ENOENT ? -ESTALE : err;
		if (attr.fh.ino != mi->fh.ino || attr.fh.gen != mi->fh.gen || ((attr.mode ^ inode->i_mode) & S_IFMT))
			return -ESTALE;
		spin_lock(&inode->i_lock);
		if (vn->attr_seq == seq) {
			mxfs_attr_copy(inode, &attr, !mxfs_is_local(inode));
			WRITE_ONCE(mi->attr_gen, gen);
			spin_unlock(&inode->i_lock);
			return 0;
		}
		spin_unlock(&inode->i_lock);
	}
	mxfs_err(sbi, "inode %llu: attributes changed %d times while they were read: try again", mi->fh.ino, tries);
	return -EBUSY;
}

int mxfs_attr_refresh(struct inode *inode)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	int err;

	/* A cached lock is worth nothing without a lease: then wait at the gate. */
	if (READ_ONCE(mi->attr_gen) == mxfs_lock_gen(&mi->lock) && mxfs_gate_lease_valid(sbi))
		return 0;
	err = mxfs_gate_enter(sbi);
	if (err)
		return err;
	err = mxfs_attr_refresh_gated(inode);
	mxfs_gate_leave(sbi);
	return err;
}

bool mxfs_attr_given(struct inode *inode, const struct mxfs_attr *attr, u64 gen, u64 seq)
{
	struct mxfs_vnode *vn = MXFS_VN(inode);
	struct mxfs_inode *mi = &vn->mi;
	bool taken;

	if (attr->fh.ino != mi->fh.ino || attr->fh.gen != mi->fh.gen || ((attr->mode ^ inode->i_mode) & S_IFMT) ||
	    mxfs_lock_get(&mi->lock, MXFS_MODE_PR, MXFS_LOCK_CACHED))
		return false;
	spin_lock(&inode->i_lock);
	taken = vn->attr_seq == seq && mxfs_lock_gen(&mi->lock) == gen && !test_bit(MXFS_VN_GONE, &vn->state);
	if (taken) {
		mxfs_attr_copy(inode, attr, !mxfs_is_local(inode));
		WRITE_ONCE(mi->attr_gen, gen);
	}
	spin_unlock(&inode->i_lock);
	/* Needs no message, and a permission check would ask for it. */
	if (taken && IS_POSIXACL(inode) && !(attr->flags & MXFS_ATTR_HAS_ACL) && is_uncached_acl(READ_ONCE(inode->i_acl)))
		set_cached_acl(inode, ACL_TYPE_ACCESS, NULL);
	mxfs_lock_put(&mi->lock, MXFS_MODE_PR);
	return taken;
}

struct mxfs_busy {
	const struct mxfs_fh *fh;
	bool busy;
};

/* Under the hash's spinlock: no reference is taken, and nobody who is leaving is waited for. */
static int mxfs_busy_look(struct inode *inode, unsigned long hash, void *data)
{
	struct mxfs_busy *look = data;
	struct mxfs_inode *mi = MXFS_I(inode);
	int mode = READ_ONCE(mi->lock.mode);

	if (inode->i_ino != hash || mi->fh.ino != look->fh->ino || mi->fh.gen != look->fh->gen)
		return 0;
	look->busy = (mode > MXFS_MODE_PR || mode == MXFS_MODE_CW) &&
		     (atomic_read(&mi->open_count) || mapping_mapped(inode->i_mapping) || mxfs_is_local(inode) ||
		      READ_ONCE(mi->lock.users[MXFS_MODE_EX]));
	return -1;
}

bool mxfs_inode_is_busy(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh)
{
	struct mxfs_busy look = { .fh = fh };

	find_inode_nowait(sbi->sb, fh->ino, mxfs_busy_look, &look);
	return look.busy;
}

void mxfs_inode_gone(struct inode *inode)
{
	struct mxfs_vnode *vn = MXFS_VN(inode);

	spin_lock(&inode->i_lock);
	set_bit(MXFS_VN_GONE, &vn->state);
	WRITE_ONCE(vn->mi.lock.dead, true);
	clear_bit(MXFS_VN_LOCAL, &vn->state);
	vn->attr_seq++;
	vn->mi.parked = false;
	if (inode->i_nlink)
		clear_nlink(inode);
	spin_unlock(&inode->i_lock);
}

/*
 * The page that goes with it is dirty already (and locked, if the size rises), so write-out cannot find the
 * file clean and hand size and times back to the lower XFS before this is counted.
 */
void mxfs_local_changed(struct inode *inode, loff_t size)
{
	struct mxfs_vnode *vn = MXFS_VN(inode);
	struct timespec64 now = current_time(inode);
	bool was;

	spin_lock(&inode->i_lock);
	was = test_and_set_bit(MXFS_VN_LOCAL, &vn->state);
	vn->attr_seq++;
	inode->i_mtime = now;
	inode->i_ctime = now;
	if (size >= 0)
		i_size_write(inode, size);
	spin_unlock(&inode->i_lock);
	if (!was)
		mark_inode_dirty_sync(inode);
}

static bool mxfs_pages_clean(struct inode *inode)
{
	return !mapping_tagged(inode->i_mapping, PAGECACHE_TAG_DIRTY) &&
	       !mapping_tagged(inode->i_mapping, PAGECACHE_TAG_WRITEBACK);
}

/* The last write through the holder took the time along, and the size; under i_lock. */
static bool mxfs_times_sent(struct inode *inode)
{
	struct mxfs_vnode *vn = MXFS_VN(inode);

	return vn->sent.seq && vn->sent.seq == vn->attr_seq && vn->disk_size == i_size_read(inode) && mxfs_pages_clean(inode);
}

/*
 * `lazy` makes a second caller wait until a setattr under way has been answered: nothing of ours may arrive at
 * the holder after EX was given up.
 */
int mxfs_push_times(struct inode *inode)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_vnode *vn = MXFS_VN(inode);
	struct mxfs_setattr set = { .valid = ATTR_MTIME | ATTR_MTIME_SET, .durable = true };
	bool unflushed = false, sent = false;
	const struct cred *old;
	struct mxfs_attr attr;
	int err = 0;
	u64 seq;

	mutex_lock(&vn->mi.lazy);
	if (!mxfs_is_local(inode) || test_bit(MXFS_VN_GONE, &vn->state))
		goto out;
	spin_lock(&inode->i_lock);
	seq = vn->attr_seq;
	set.mtime = inode->i_mtime;
	spin_unlock(&inode->i_lock);
	if (!mxfs_pages_clean(inode)) {
		mark_inode_dirty_sync(inode); /* comes again when the pages are written */
		goto out;
	}
	err = mxfs_gate_enter_wait(sbi);
	if (err)
		goto out;
	/* A commit takes the time along. */
	err = mxfs_map_commit_gated(inode, &attr);
	if (!err) {
		spin_lock(&inode->i_lock);
		sent = mxfs_times_sent(inode);
		if (sent) {
			inode->i_ctime = vn->sent.ctime;
			vn->mi.change = vn->sent.change;
			vn->mi.change_of = vn->sent.change_of;
			vn->sent.seq = 0;
			clear_bit(MXFS_VN_LOCAL, &vn->state);
			vn->attr_seq++;
		}
		spin_unlock(&inode->i_lock);
	}
	if (!err && !sent) {
		/* A member has it durable: that log force also flushes the disk behind what was written before. */
		unflushed = sbi->be == &mxfs_remote_backend && xchg(&vn->map.unflushed, false);
		old = override_creds(mxfs_kernel_cred);
		err = sbi->be->setattr(sbi, &vn->mi.fh, &set, &attr);
		revert_creds(old);
		if (err && unflushed)
			WRITE_ONCE(vn->map.unflushed, true);
	}
	mxfs_gate_leave(sbi);
	if (err < 0) {
		mxfs_err(sbi, "inode %llu: sending its modification time failed with %d; it stays pending",
			 vn->mi.fh.ino, err);
		mark_inode_dirty_sync(inode);
		goto out;
	}
	if (sent)
		goto out;
	mxfs_lock_dirtied(&vn->mi.lock);
	spin_lock(&inode->i_lock);
	if (vn->attr_seq == seq && mxfs_pages_clean(inode)) {
		clear_bit(MXFS_VN_LOCAL, &vn->state);
		mxfs_attr_copy(inode, &attr, true);
		vn->attr_seq++;
	}
	spin_unlock(&inode->i_lock);
	if (mxfs_is_local(inode))
		mark_inode_dirty_sync(inode);
	err = 0;
out:
	mutex_unlock(&vn->mi.lazy);
	return err;
}

/* Pages were written by the caller; what is left is the time. EX is cached: whoever takes it away does this first. */
int mxfs_write_inode(struct inode *inode, struct writeback_control *wbc)
{
	if (!S_ISREG(inode->i_mode))
		return 0;
	return mxfs_push_times(inode);
}

/* ------------------------------------------------------------------ permission, getattr, setattr */

int mxfs_permission(struct user_namespace *userns, struct inode *inode, int mask)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	int err;

	if (mask & MAY_NOT_BLOCK) {
		if (!mxfs_lock_is_cached(&mi->lock, MXFS_MODE_CR) ||
		    READ_ONCE(mi->attr_gen) != mxfs_lock_gen(&mi->lock))
			return -ECHILD;
		return generic_permission(userns, inode, mask);
	}
	/* True at this moment, as in an RCU walk. (An ACL that is not here yet is asked for under a lock of its own.) */
	if (mxfs_lock_is_cached(&mi->lock, MXFS_MODE_CR) && READ_ONCE(mi->attr_gen) == mxfs_lock_gen(&mi->lock)) {
		mxfs_lock_used(&mi->lock);
		return generic_permission(userns, inode, mask);
	}
	mxfs_ahead_inode(inode);
	err = mxfs_lock_get(&mi->lock, MXFS_MODE_CR, 0);
	if (err)
		return err;
	err = mxfs_attr_refresh(inode);
	/* get_acl() would take the lock once more under ours: so the ACL is brought in first. */
	if (!err && IS_POSIXACL(inode) && is_uncached_acl(READ_ONCE(inode->i_acl))) {
		err = mxfs_gate_enter(sbi);
		if (!err) {
			err = mxfs_acl_fill(inode);
			mxfs_gate_leave(sbi);
		}
	}
	if (!err)
		err = generic_permission(userns, inode, mask);
	mxfs_lock_put(&mi->lock, MXFS_MODE_CR);
	return err;
}

/* Under i_lock. */
static void mxfs_fill_stat(struct user_namespace *userns, struct inode *inode, struct kstat *stat)
{
	struct mxfs_inode *mi = MXFS_I(inode);

	generic_fillattr(userns, inode, stat);
	stat->btime = mi->btime;
	if (mi->lower_flags & MXFS_ATTR_IMMUTABLE)
		stat->attributes |= STATX_ATTR_IMMUTABLE;
	if (mi->lower_flags & MXFS_ATTR_APPEND)
		stat->attributes |= STATX_ATTR_APPEND;
	stat->result_mask |= STATX_BTIME;
	stat->attributes_mask |= STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND;
	/* Not yet allocated below: a file with data must not look empty to du and tar. */
	if (mxfs_is_local(inode) && stat->size && !stat->blocks)
		stat->blocks = (stat->size + 511) >> 9;
}

/*
 * Without taking the lock: attributes are made void under i_lock before the lock is lowered, so if they are valid here, with
 * i_lock held, the lock is cached at this very moment.
 */
static bool mxfs_getattr_cached(struct user_namespace *userns, struct inode *inode, struct kstat *stat)
{
	struct mxfs_inode *mi = MXFS_I(inode);
	bool valid;

	spin_lock(&inode->i_lock);
	valid = mxfs_lock_is_cached(&mi->lock, MXFS_MODE_PR) && READ_ONCE(mi->attr_gen) == mxfs_lock_gen(&mi->lock);
	if (valid)
		mxfs_fill_stat(userns, inode, stat);
	spin_unlock(&inode->i_lock);
	return valid;
}

int mxfs_getattr(struct user_namespace *userns, const struct path *path, struct kstat *stat, u32 mask,
		 unsigned int flags)
{
	struct inode *inode = d_inode(path->dentry);
	struct mxfs_inode *mi = MXFS_I(inode);
	int err;

	if (mxfs_getattr_cached(userns, inode, stat)) {
		mxfs_lock_used(&mi->lock);
		return 0;
	}
	mxfs_ahead_inode(inode);
	err = mxfs_lock_get(&mi->lock, MXFS_MODE_PR, 0);
	if (err)
		return err;
	err = mxfs_attr_refresh(inode);
	if (err == -ESTALE) { /* removed elsewhere after it was found: that is told by its link count */
		mxfs_inode_gone(inode);
		err = 0;
	}
	if (!err) {
		spin_lock(&inode->i_lock);
		mxfs_fill_stat(userns, inode, stat);
		spin_unlock(&inode->i_lock);
	}
	mxfs_lock_put(&mi->lock, MXFS_MODE_PR);
	return err;
}

#define MXFS_SETATTR_VALID                                                                                        \
	(ATTR_MODE | ATTR_UID | ATTR_GID | ATTR_SIZE | ATTR_ATIME | ATTR_MTIME | ATTR_CTIME | ATTR_ATIME_SET |     \
	 ATTR_MTIME_SET | ATTR_FORCE)

/*
 * EX held. A smaller size drops the pages first, so that no write-out extends the file again behind the
 * answer; should the back end refuse, the attributes are fetched anew (the data had been written out).
 */
static int mxfs_setattr_locked(struct user_namespace *userns, struct dentry *dentry, struct iattr *iattr)
{
	struct inode *inode = d_inode(dentry);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	bool size = iattr->ia_valid & ATTR_SIZE;
	struct mxfs_setattr set = {};
	struct mxfs_attr attr;
	loff_t old_size;
	int err;

	/* notify_change() worked out the mode from what it saw before the lock was taken. */
	if (iattr->ia_valid & (ATTR_KILL_SUID | ATTR_KILL_SGID) && iattr->ia_valid & ATTR_MODE) {
		iattr->ia_mode = inode->i_mode;
		if (iattr->ia_valid & ATTR_KILL_SUID)
			iattr->ia_mode &= ~S_ISUID;
		if (iattr->ia_valid & ATTR_KILL_SGID)
			iattr->ia_mode &= ~S_ISGID;
	}
	set.valid = iattr->ia_valid & MXFS_SETATTR_VALID;
	set.mode = iattr->ia_mode;
	if (set.valid & ATTR_UID)
		set.uid = from_vfsuid(userns, i_user_ns(inode), iattr->ia_vfsuid);
	if (set.valid & ATTR_GID)
		set.gid = from_vfsgid(userns, i_user_ns(inode), iattr->ia_vfsgid);
	set.size = iattr->ia_size;
	set.atime = iattr->ia_atime;
	set.mtime = iattr->ia_mtime;

	if (size) {
		err = filemap_write_and_wait(inode->i_mapping);
		if (err)
			return err;
		filemap_invalidate_lock(inode->i_mapping);
		old_size = i_size_read(inode);
		if (iattr->ia_size < old_size)
			truncate_setsize(inode, iattr->ia_size);
	}
	err = mxfs_gate_enter(sbi);
	if (!err) {
		if (size)
			err = mxfs_map_change_begin(inode);
		if (!err)
			err = sbi->be->setattr(sbi, &mi->fh, &set, &attr);
		if (err == -ENOENT)
			err = -ESTALE;
		if (size)
			mxfs_map_change_end(inode);
		mxfs_gate_leave(sbi);
	}
	if (!err) {
		mxfs_lock_dirtied(&mi->lock);
		mxfs_attr_apply(inode, &attr, size ? MXFS_APPLY_FORCE : MXFS_APPLY_REPLY);
		if (!size && set.valid & ATTR_MTIME && mxfs_is_local(inode)) {
			/* Write-out will touch the lower file's times: this one is sent once more behind it. */
			spin_lock(&inode->i_lock);
			inode->i_mtime = attr.mtime;
			inode->i_ctime = attr.ctime;
			MXFS_VN(inode)->attr_seq++;
			spin_unlock(&inode->i_lock);
		}
		if (set.valid & ATTR_MODE)
			forget_all_cached_acls(inode); /* chmod changes the ACL's mask */
	} else if (size) {
		WRITE_ONCE(mi->attr_gen, 0);
	}
	if (size) {
		if (!err && iattr->ia_size > old_size) {
			mxfs_pages_zero_tail(inode, old_size);
			pagecache_isize_extended(inode, old_size, iattr->ia_size);
		}
		filemap_invalidate_unlock(inode->i_mapping);
		if (err) {
			/* Put the size back while EX is ours. When that fails too the mount is fenced. */
			clear_bit(MXFS_VN_LOCAL, &MXFS_VN(inode)->state);
			mxfs_attr_refresh(inode);
		}
	}
	return err;
}

/* Inside the gate, EX held: file capabilities go whoever asks, as cap_inode_killpriv() does it. */
static int mxfs_kill_caps(struct inode *inode)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	const struct cred *old = override_creds(mxfs_kernel_cred);
	struct mxfs_attr attr = {};
	ssize_t size;
	int err = 0;

	size = sbi->be->getxattr(sbi, &mi->fh, XATTR_NAME_CAPS, NULL, 0);
	if (size > 0) {
		err = sbi->be->removexattr(sbi, &mi->fh, XATTR_NAME_CAPS, &attr);
		if (!err) {
			mxfs_lock_dirtied(&mi->lock);
			mxfs_attr_apply(inode, &attr, MXFS_APPLY_REPLY);
		}
	} else if (size < 0 && size != -ENODATA && size != -EOPNOTSUPP) {
		err = size;
	}
	revert_creds(old);
	return err;
}

int mxfs_setattr(struct user_namespace *userns, struct dentry *dentry, struct iattr *iattr)
{
	struct inode *inode = d_inode(dentry);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	struct iattr prepared = *iattr;
	int kill, err;

	prepared.ia_valid &= ~ATTR_KILL_PRIV; /* would take the lock once more under ours */
	err = mxfs_lock_get(&mi->lock, MXFS_MODE_EX, 0);
	if (err)
		return err;
	err = mxfs_attr_refresh(inode);
	/* do_truncate() decided on the set-id bits by what it saw before the lock was taken. */
	if (!err && prepared.ia_valid & ATTR_SIZE &&
	    !(prepared.ia_valid & (ATTR_MODE | ATTR_KILL_SUID | ATTR_KILL_SGID))) {
		kill = setattr_should_drop_suidgid(userns, inode);
		if (kill)
			prepared.ia_valid |= kill | ATTR_MODE | ATTR_FORCE;
	}
	if (!err)
		err = setattr_prepare(userns, dentry, &prepared);
	if (!err && IS_IMMUTABLE(inode))
		err = -EPERM;
	if (!err && iattr->ia_valid & ATTR_KILL_PRIV) {
		err = mxfs_gate_enter(sbi);
		if (!err) {
			err = mxfs_kill_caps(inode);
			mxfs_gate_leave(sbi);
		}
	}
	if (!err)
		err = mxfs_setattr_locked(userns, dentry, &prepared);
	mxfs_lock_put(&mi->lock, MXFS_MODE_EX);
	return err;
}

int mxfs_remove_privs(struct inode *inode)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_vnode *vn = MXFS_VN(inode);
	struct mxfs_setattr set = { .valid = ATTR_MODE };
	const struct cred *old;
	struct mxfs_attr attr;
	int kill, err;

	if (test_bit(MXFS_VN_UNPRIVED, &vn->state))
		return 0;
	kill = setattr_should_drop_suidgid(&init_user_ns, inode);
	err = mxfs_gate_enter(sbi);
	if (err)
		return err;
	err = mxfs_kill_caps(inode);
	if (!err && kill) {
		set.mode = inode->i_mode;
		if (kill & ATTR_KILL_SUID)
			set.mode &= ~S_ISUID;
		if (kill & ATTR_KILL_SGID)
			set.mode &= ~S_ISGID;
		old = override_creds(mxfs_kernel_cred);
		err = sbi->be->setattr(sbi, &vn->mi.fh, &set, &attr);
		revert_creds(old);
		if (!err) {
			mxfs_lock_dirtied(&vn->mi.lock);
			mxfs_attr_apply(inode, &attr, MXFS_APPLY_REPLY);
		}
	}
	mxfs_gate_leave(sbi);
	if (!err && !is_sxid(inode->i_mode))
		set_bit(MXFS_VN_UNPRIVED, &vn->state);
	return err;
}

/* ------------------------------------------------------------------ open files */

/*
 * A file is only opened while INODE is held: who unlinks (EX) has recalled it from the other nodes, whose
 * demote took OPEN for them; on this node open_mutex decides which came first.
 */
int mxfs_open_count_get_held(struct inode *inode)
{
	struct mxfs_vnode *vn = MXFS_VN(inode);
	int err = 0;

	mutex_lock(&vn->open_mutex);
	if (test_bit(MXFS_VN_GONE, &vn->state) || (!inode->i_nlink && !vn->mi.parked))
		err = -ESTALE;
	else
		atomic_inc(&vn->mi.open_count);
	mutex_unlock(&vn->open_mutex);
	return err;
}

int mxfs_open_count_get(struct inode *inode)
{
	struct mxfs_inode *mi = MXFS_I(inode);
	int err;

	err = mxfs_lock_get(&mi->lock, MXFS_MODE_CR, 0);
	if (err)
		return err;
	err = mxfs_attr_refresh(inode);
	if (!err)
		err = mxfs_open_count_get_held(inode);
	mxfs_lock_put(&mi->lock, MXFS_MODE_CR);
	return err;
}

/* Called from release(): the open file still pins the inode, and nothing here waits. */
void mxfs_open_count_put(struct inode *inode)
{
	struct mxfs_vnode *vn = MXFS_VN(inode);
	bool work;

	spin_lock(&inode->i_lock);
	work = atomic_dec_and_test(&vn->mi.open_count) &&
	       (vn->mi.open_held || vn->mi.parked || READ_ONCE(vn->map.beyond));
	spin_unlock(&inode->i_lock);
	if (work)
		mxfs_last_close_queue(inode);
}

/* The caller pins the inode; so neither igrab nor iput is the last word on it. */
void mxfs_last_close_queue(struct inode *inode)
{
	if (igrab(inode) && !queue_work(mxfs_inode_wq, &MXFS_VN(inode)->last_close))
		iput(inode);
}

/* With INODE in EX and nothing open here: nobody can park or reap it beside us. */
static void mxfs_reap(struct inode *inode)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	int err;

	err = mxfs_lock_get(&mi->open, MXFS_MODE_EX, MXFS_LOCK_TRY | MXFS_LOCK_NOINTR);
	if (err == -EAGAIN)
		return; /* open on another node: its last closer reaps */
	if (!err) {
		err = mxfs_gate_enter_wait(sbi);
		if (!err) {
			err = sbi->be->reap(sbi, &mi->fh);
			mxfs_gate_leave(sbi);
		}
		if (err == -ENOENT || err == -ESTALE)
			err = 0;
		if (!err) {
			mxfs_lock_dirtied(&mi->lock);
			mxfs_inode_gone(inode);
		}
		mxfs_lock_put(&mi->open, MXFS_MODE_EX);
	}
	if (err && err != -EIO)
		mxfs_err(sbi, "orphan %llu-%u: reaping failed with %d; it stays in .mxfs/orphans until the next sweep",
			 mi->fh.ino, mi->fh.gen, err);
}

static void mxfs_last_close(struct work_struct *work)
{
	struct mxfs_vnode *vn = container_of(work, struct mxfs_vnode, last_close);
	struct inode *inode = &vn->mi.vfs_inode;
	bool held, trim = READ_ONCE(vn->map.beyond);
	int err;

	if (trim) /* against who opens and extends it meanwhile */
		inode_lock(inode);
	err = mxfs_lock_get(&vn->mi.lock, MXFS_MODE_EX, MXFS_LOCK_NOINTR);
	if (err) { /* fenced: every lock is gone */
		if (trim)
			inode_unlock(inode);
		goto out;
	}
	if (trim && !atomic_read(&vn->mi.open_count) && inode->i_nlink && !filemap_write_and_wait(inode->i_mapping) &&
	    !mxfs_push_times(inode))
		mxfs_map_trim(inode);
	if (trim)
		inode_unlock(inode);
	mutex_lock(&vn->open_mutex);
	if (!atomic_read(&vn->mi.open_count)) {
		spin_lock(&inode->i_lock);
		held = vn->mi.open_held;
		vn->mi.open_held = false;
		spin_unlock(&inode->i_lock);
		if (held)
			mxfs_lock_put(&vn->mi.open, MXFS_MODE_PR);
		if (!test_bit(MXFS_VN_GONE, &vn->state)) {
			err = mxfs_attr_refresh(inode);
			if (err == -ESTALE)
				mxfs_inode_gone(inode);
			else if (!err && vn->mi.parked)
				mxfs_reap(inode);
		}
		mxfs_lock_drop(&vn->mi.open, MXFS_MODE_NL, MXFS_LOCK_NOINTR);
	}
	mutex_unlock(&vn->open_mutex);
	mxfs_lock_put(&vn->mi.lock, MXFS_MODE_EX);
out:
	iput(inode);
}

/* ------------------------------------------------------------------ the file system as a whole */

int mxfs_statfs(struct dentry *dentry, struct kstatfs *st)
{
	struct mxfs_sb_info *sbi = MXFS_SB(dentry->d_sb);
	int err;

	err = mxfs_gate_enter(sbi);
	if (err)
		return err;
	err = sbi->be->statfs(sbi, st);
	mxfs_gate_leave(sbi);
	st->f_type = dentry->d_sb->s_magic;
	st->f_fsid = u64_to_fsid(sbi->volume);
	return err;
}

/* Dirty inodes were written by the VFS before. */
int mxfs_sync_fs(struct super_block *sb, int wait)
{
	struct mxfs_sb_info *sbi = MXFS_SB(sb);
	int err;

	if (!wait)
		return 0;
	mxfs_inode_drain();
	if (!READ_ONCE(sbi->be))
		return 0;
	err = mxfs_gate_enter_wait(sbi);
	if (err)
		return err;
	err = sbi->be->syncfs(sbi);
	mxfs_gate_leave(sbi);
	return err;
}
