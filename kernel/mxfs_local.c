// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: the local back end: file system operations on the holder, by VFS helpers on the lower XFS.
 *
 * Objects are named by (inode, generation) only, decoded through XFS's export operations, so nothing here depends on a path
 * or survives a role change. The upper half of the file is a bounded cache of lower nodes (dentry and one open file per
 * inode); the lower half is the operations, each of which holds lower locks exactly as the VFS would: directory i_rwsem with
 * I_MUTEX_PARENT, lock_rename with both trap checks, mnt_want_write around changes.
 *
 * Identity: operations run with the credentials and the umask of current: the calling process, or the executor that
 * has put on a member's. Lower files are opened with the kernel's credentials, since mxfs checked the open.
 *
 * A cached dentry pins its inode, so an inode whose last name goes is dropped from the cache at once; by handle an inode
 * without links is stale, whoever still holds it in memory.
 *
 * Parking (unlink while somebody has the file open): first a second link in .mxfs/orphans, then the plain unlink or
 * rename as the caller. So the checks are the VFS's own, and a crash in between leaves only a spare link, which the sweep
 * removes. Attributes of what is parked leave that link out of nlink.
 *
 * Known weakness: the lower inode's own write path removes a file capability (security.capability) also on write-back by
 * the kernel, so `setcap` on a file that still has dirty pages elsewhere may be undone by their write-back.
 */
#include <linux/cred.h>
#include <linux/exportfs.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/iversion.h>
#include <linux/mount.h>
#include <linux/namei.h>
#include <linux/pagemap.h>
#include <linux/posix_acl.h>
#include <linux/slab.h>
#include <linux/xattr.h>

#include "mxfs_fsop_codec.h"
#include "mxfs_lower.h"
#include "mxfs_vfs.h"

/* XFS's file handle: FILEID_INO32_GEN with XFS_FILEID_TYPE_64FLAG, three words: 64-bit inode number, generation. */
#define MXFS_XFS_FID_TYPE 0x81
#define MXFS_XFS_FID_WORDS 3

/* ---------------------------------------------------------------- the cache of lower nodes */

static void doom(struct mxfs_lower *lower, struct mxfs_lower_node *node)
{
	if (llist_add(&node->doomed, &lower->doomed))
		queue_work(lower->wq, &lower->doom_work);
}

/* The only place where lower files are closed: a kernel thread, so __fput_sync is allowed and the close is real. */
static void doom_work(struct work_struct *work)
{
	struct mxfs_lower *lower = container_of(work, struct mxfs_lower, doom_work);
	struct mxfs_lower_node *node, *next;
	struct llist_node *list = llist_del_all(&lower->doomed);

	llist_for_each_entry_safe(node, next, list, doomed) {
		if (node->file)
			__fput_sync(node->file);
		dput(node->dentry);
		kfree(node);
		cond_resched();
	}
}

int mxfs_lower_cache_init(struct mxfs_lower *lower)
{
	spin_lock_init(&lower->lock);
	hash_init(lower->hash);
	INIT_LIST_HEAD(&lower->lru);
	init_llist_head(&lower->doomed);
	INIT_WORK(&lower->doom_work, doom_work);
	mutex_init(&lower->sync_mutex);
	return 0;
}

static struct mxfs_lower_node *new_node(struct dentry *dentry)
{
	struct mxfs_lower_node *node = kzalloc(sizeof(*node), GFP_KERNEL);

	if (!node)
		return NULL;
	refcount_set(&node->ref, 1);
	INIT_LIST_HEAD(&node->lru);
	mutex_init(&node->dir_mutex);
	node->dentry = dentry;
	if (dentry) {
		node->fh.ino = d_inode(dentry)->i_ino;
		node->fh.gen = d_inode(dentry)->i_generation;
	}
	return node;
}

void mxfs_lower_close(struct mxfs_lower *lower, struct file *file)
{
	/* Worth never failing: without memory for the queue's entry the file would be lost, and the unmount with it. */
	struct mxfs_lower_node *node = kzalloc(sizeof(*node), GFP_KERNEL | __GFP_NOFAIL);

	node->file = file;
	doom(lower, node);
}

/* May sleep. Only what has an open file is the worker's: the rest goes here and now, as in any other use of the XFS. */
void mxfs_lower_node_put(struct mxfs_lower *lower, struct mxfs_lower_node *node)
{
	if (!refcount_dec_and_test(&node->ref))
		return;
	if (node->file) {
		doom(lower, node);
		return;
	}
	dput(node->dentry);
	kfree(node);
}

/* Under lower->lock. The caller drops the reference of the hash. */
static void unhash_node(struct mxfs_lower *lower, struct mxfs_lower_node *node)
{
	hash_del(&node->hash);
	list_del_init(&node->lru);
	node->hashed = false;
	lower->count--;
}

static struct mxfs_lower_node *find_node(struct mxfs_lower *lower, const struct mxfs_fh *fh)
{
	struct mxfs_lower_node *node;

	hash_for_each_possible(lower->hash, node, hash, fh->ino) {
		if (node->fh.ino == fh->ino && node->fh.gen == fh->gen)
			return node;
	}
	return NULL;
}

/* Under lower->lock: the least recently used node that nobody uses, if there are too many. */
static struct mxfs_lower_node *pick_victim(struct mxfs_lower *lower)
{
	struct mxfs_lower_node *node;
	int looked = 0;

	if (lower->count <= MXFS_LOWER_CACHE_MAX)
		return NULL;
	list_for_each_entry(node, &lower->lru, lru) {
		if (refcount_read(&node->ref) == 1) {
			unhash_node(lower, node);
			return node;
		}
		/* All in use at the old end: the cache grows by what is in use, and no further. */
		if (++looked == 64)
			break;
	}
	return NULL;
}

/* Takes over the caller's reference to `dentry`, whatever happens; a referenced node or ERR_PTR. */
static struct mxfs_lower_node *add_node(struct mxfs_lower *lower, struct dentry *dentry)
{
	struct mxfs_lower_node *node, *there, *victim;

	node = new_node(dentry);
	if (!node) {
		dput(dentry);
		return ERR_PTR(-ENOMEM);
	}
	spin_lock(&lower->lock);
	there = find_node(lower, &node->fh);
	if (there) {
		refcount_inc(&there->ref);
		spin_unlock(&lower->lock);
		dput(dentry);
		kfree(node);
		return there;
	}
	refcount_inc(&node->ref);
	node->hashed = true;
	hash_add(lower->hash, &node->hash, node->fh.ino);
	list_add_tail(&node->lru, &lower->lru);
	lower->count++;
	victim = pick_victim(lower);
	spin_unlock(&lower->lock);
	if (victim)
		mxfs_lower_node_put(lower, victim);
	return node;
}

/* A dentry that was just looked up: will be wanted by its handle next. Failing to remember it costs time only. */
static void remember(struct mxfs_lower *lower, struct dentry *dentry)
{
	struct mxfs_lower_node *node = add_node(lower, dget(dentry));

	if (!IS_ERR(node))
		mxfs_lower_node_put(lower, node);
}

static bool is_hidden(const struct mxfs_lower *lower, u64 ino)
{
	int i;

	for (i = 0; i < MXFS_LOWER_HIDDEN_MAX; i++)
		if (lower->hidden[i] == ino)
			return true;
	return false;
}

static int accept_any(void *context, struct dentry *dentry)
{
	return 1;
}

static struct dentry *decode(struct mxfs_lower *lower, const struct mxfs_fh *fh)
{
	u32 raw[MXFS_XFS_FID_WORDS];
	const struct cred *old_cred;
	struct dentry *dentry;
	struct inode *inode;

	memcpy(raw, &fh->ino, sizeof(fh->ino));
	raw[2] = fh->gen;
	/* Reconnecting a directory looks names up on the way: as the kernel. */
	old_cred = override_creds(lower->kcred);
	dentry = exportfs_decode_fh_raw(lower->mnt, (struct fid *)raw, MXFS_XFS_FID_WORDS, MXFS_XFS_FID_TYPE, accept_any,
					NULL);
	revert_creds(old_cred);
	if (!dentry)
		return ERR_PTR(-ESTALE);
	if (IS_ERR(dentry))
		return PTR_ERR(dentry) == -ENOENT ? ERR_PTR(-ESTALE) : dentry;
	inode = d_inode(dentry);
	if (inode->i_ino != fh->ino || inode->i_generation != fh->gen || !inode->i_nlink) {
		dput(dentry);
		return ERR_PTR(-ESTALE);
	}
	return dentry;
}

struct mxfs_lower_node *mxfs_lower_node_get(struct mxfs_lower *lower, const struct mxfs_fh *fh)
{
	struct mxfs_lower_node *node;
	struct dentry *dentry;

	if (is_hidden(lower, fh->ino))
		return ERR_PTR(-ESTALE);
	spin_lock(&lower->lock);
	node = find_node(lower, fh);
	if (node) {
		refcount_inc(&node->ref);
		list_move_tail(&node->lru, &lower->lru);
	}
	spin_unlock(&lower->lock);
	if (node)
		return node;
	if (fh->ino == lower->root_ino && fh->gen == d_inode(lower->mnt->mnt_root)->i_generation)
		dentry = dget(lower->mnt->mnt_root);
	else
		dentry = decode(lower, fh);
	if (IS_ERR(dentry))
		return ERR_CAST(dentry);
	return add_node(lower, dentry);
}

struct file *mxfs_lower_node_file(struct mxfs_lower *lower, struct mxfs_lower_node *node)
{
	struct path path = { .mnt = lower->mnt, .dentry = node->dentry };
	struct file *file = READ_ONCE(node->file);
	int flags = O_LARGEFILE | O_NOATIME;

	if (file)
		return file;
	if (d_is_dir(node->dentry))
		flags |= O_RDONLY | O_DIRECTORY;
	else if (d_is_reg(node->dentry))
		flags |= O_RDWR;
	else
		return ERR_PTR(-EINVAL);
	file = dentry_open(&path, flags, lower->kcred);
	if (IS_ERR(file))
		return file;
	if (cmpxchg(&node->file, NULL, file)) {
		mxfs_lower_close(lower, file);
		file = READ_ONCE(node->file);
	}
	return file;
}

/* The reference of the hash becomes the caller's; NULL: it is not cached. */
static struct mxfs_lower_node *take_out(struct mxfs_lower *lower, const struct mxfs_fh *fh)
{
	struct mxfs_lower_node *node;

	spin_lock(&lower->lock);
	node = find_node(lower, fh);
	if (node)
		unhash_node(lower, node);
	spin_unlock(&lower->lock);
	return node;
}

void mxfs_lower_forget(struct mxfs_lower *lower, const struct mxfs_fh *fh)
{
	struct mxfs_lower_node *node = take_out(lower, fh);

	if (node)
		mxfs_lower_node_put(lower, node);
}

void mxfs_lower_cache_drain(struct mxfs_lower *lower)
{
	struct mxfs_lower_node *node;

	for (;;) {
		spin_lock(&lower->lock);
		node = list_first_entry_or_null(&lower->lru, struct mxfs_lower_node, lru);
		if (node)
			unhash_node(lower, node);
		spin_unlock(&lower->lock);
		if (!node)
			break;
		WARN_ON_ONCE(refcount_read(&node->ref) != 1);
		mxfs_lower_node_put(lower, node);
	}
	flush_work(&lower->doom_work);
}

/* ---------------------------------------------------------------- helpers of the operations */

static struct mxfs_lower *lower_get(struct mxfs_sb_info *sbi)
{
	struct mxfs_lower *lower = READ_ONCE(sbi->lower);

	if (!lower || atomic_read(&lower->dead))
		return NULL;
	return lower;
}

/* The lower XFS and the node of `fh`; on success the node is to be put. */
static int begin(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, struct mxfs_lower **lower,
		 struct mxfs_lower_node **node)
{
	*lower = lower_get(sbi);
	if (!*lower)
		return -EIO;
	*node = mxfs_lower_node_get(*lower, fh);
	if (IS_ERR(*node))
		mxfs_lower_failed(*lower, PTR_ERR(*node));
	return PTR_ERR_OR_ZERO(*node);
}

static int begin_dir(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, struct mxfs_lower **lower,
		     struct mxfs_lower_node **node)
{
	int err = begin(sbi, fh, lower, node);

	if (!err && !d_is_dir((*node)->dentry)) {
		mxfs_lower_node_put(*lower, *node);
		return -ENOTDIR;
	}
	return err;
}

/* As begin, with the open file of a regular file. */
static int begin_file(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, struct mxfs_lower **lower,
		      struct mxfs_lower_node **node, struct file **file)
{
	int err = begin(sbi, fh, lower, node);

	if (err)
		return err;
	if (d_is_reg((*node)->dentry))
		*file = mxfs_lower_node_file(*lower, *node);
	else
		*file = ERR_PTR(d_is_dir((*node)->dentry) ? -EISDIR : -EINVAL);
	if (IS_ERR(*file))
		mxfs_lower_node_put(*lower, *node);
	return PTR_ERR_OR_ZERO(*file);
}

static void data_changed(struct mxfs_lower *lower)
{
	atomic64_inc(&lower->data_changes);
	atomic64_inc(&lower->meta_changes);
}

static void meta_changed(struct mxfs_lower *lower)
{
	atomic64_inc(&lower->meta_changes);
}

static bool is_mxfs_name(const struct mxfs_lower *lower, const struct mxfs_lower_node *dir, const char *name, u32 len)
{
	return dir->fh.ino == lower->root_ino && len == sizeof(MXFS_DIR_NAME) - 1 && !memcmp(name, MXFS_DIR_NAME, len);
}

static bool is_parked(struct mxfs_lower *lower, const struct inode *inode)
{
	void *entry = xa_load(&lower->parked, inode->i_ino);

	return entry && xa_to_value(entry) == inode->i_generation;
}

static bool has_acl(struct inode *inode, int type)
{
	struct posix_acl *acl = get_acl(inode, type);

	if (IS_ERR(acl))
		return PTR_ERR(acl) != -EOPNOTSUPP; /* unreadable: let the reader of the ACL find out */
	posix_acl_release(acl);
	return acl != NULL;
}

static int fill_attr(struct mxfs_lower *lower, struct dentry *dentry, struct mxfs_attr *attr)
{
	struct path path = { .mnt = lower->mnt, .dentry = dentry };
	struct inode *inode = d_inode(dentry);
	struct kstat stat;
	int err;

	if (!attr)
		return 0;
	err = vfs_getattr_nosec(&path, &stat, STATX_BASIC_STATS | STATX_BTIME, AT_STATX_SYNC_AS_STAT);
	if (err)
		return err;
	memset(attr, 0, sizeof(*attr));
	attr->fh.ino = inode->i_ino;
	attr->fh.gen = inode->i_generation;
	attr->mode = stat.mode;
	/* The root's subdirectory .mxfs is not there for anybody. */
	attr->nlink = stat.nlink - (inode->i_ino == lower->root_ino && stat.nlink > 2);
	attr->uid = from_kuid(&init_user_ns, stat.uid);
	attr->gid = from_kgid(&init_user_ns, stat.gid);
	attr->rdev = stat.rdev;
	attr->blksize = stat.blksize;
	attr->size = stat.size;
	attr->blocks = stat.blocks;
	attr->change = inode_query_iversion(inode);
	attr->atime = stat.atime;
	attr->mtime = stat.mtime;
	attr->ctime = stat.ctime;
	if (stat.result_mask & STATX_BTIME)
		attr->btime = stat.btime;
	if (IS_IMMUTABLE(inode))
		attr->flags |= MXFS_ATTR_IMMUTABLE;
	if (IS_APPEND(inode))
		attr->flags |= MXFS_ATTR_APPEND;
	if (is_parked(lower, inode)) {
		attr->flags |= MXFS_ATTR_PARKED;
		if (attr->nlink)
			attr->nlink--;
	}
	if (IS_POSIXACL(inode) && !S_ISLNK(inode->i_mode) &&
	    (has_acl(inode, ACL_TYPE_ACCESS) || (S_ISDIR(inode->i_mode) && has_acl(inode, ACL_TYPE_DEFAULT))))
		attr->flags |= MXFS_ATTR_HAS_ACL;
	return 0;
}

/* The attributes that an operation answers with: failing to read them does not undo it, so they are marked absent. */
static void answer_attr(struct mxfs_lower *lower, struct dentry *dentry, struct mxfs_attr *attr)
{
	if (attr && fill_attr(lower, dentry, attr))
		memset(attr, 0, sizeof(*attr));
}

/* ---------------------------------------------------------------- parking */

/* "<ino>-<generation>" */
#define MXFS_ORPHAN_NAME_MAX 32
static int orphan_name(char *buf, u64 ino, u32 gen)
{
	return scnprintf(buf, MXFS_ORPHAN_NAME_MAX, "%llu-%u", ino, gen);
}

/* Gives the inode a name in .mxfs/orphans. As the kernel: the caller may not look there. */
static int park(struct mxfs_lower *lower, struct dentry *victim)
{
	struct inode *inode = d_inode(victim), *dir = d_inode(lower->orphans);
	const struct cred *old_cred;
	char name[MXFS_ORPHAN_NAME_MAX];
	struct dentry *dentry;
	int err;

	err = xa_err(xa_store(&lower->parked, inode->i_ino, xa_mk_value(inode->i_generation), GFP_KERNEL));
	if (err)
		return err;
	old_cred = override_creds(lower->kcred);
	inode_lock_nested(dir, I_MUTEX_PARENT2); /* inside a parent's lock, outside a file's */
	dentry = lookup_one_len(name, lower->orphans, orphan_name(name, inode->i_ino, inode->i_generation));
	if (IS_ERR(dentry)) {
		err = PTR_ERR(dentry);
	} else {
		if (d_really_is_negative(dentry))
			err = vfs_link(victim, &init_user_ns, dir, dentry, NULL);
		else if (d_inode(dentry) != inode)
			err = -EIO; /* same number and generation, another inode: the XFS is damaged */
		dput(dentry);
	}
	inode_unlock(dir);
	revert_creds(old_cred);
	if (err)
		xa_erase(&lower->parked, inode->i_ino);
	else
		meta_changed(lower);
	return err;
}

/* Takes the name in .mxfs/orphans away again; that is the end of the inode if it was the last. */
static int unpark(struct mxfs_lower *lower, u64 ino, u32 gen)
{
	struct inode *dir = d_inode(lower->orphans);
	const struct cred *old_cred;
	char name[MXFS_ORPHAN_NAME_MAX];
	struct dentry *dentry;
	int err = 0;

	old_cred = override_creds(lower->kcred);
	inode_lock_nested(dir, I_MUTEX_PARENT2); /* inside a parent's lock, outside a file's */
	dentry = lookup_one_len(name, lower->orphans, orphan_name(name, ino, gen));
	if (IS_ERR(dentry)) {
		err = PTR_ERR(dentry);
	} else {
		if (d_really_is_positive(dentry))
			err = vfs_unlink(&init_user_ns, dir, dentry, NULL);
		dput(dentry);
	}
	inode_unlock(dir);
	revert_creds(old_cred);
	if (!err) {
		xa_erase(&lower->parked, ino);
		meta_changed(lower);
	}
	return err;
}

static bool wants_parking(struct dentry *victim)
{
	return d_really_is_positive(victim) && !d_is_dir(victim) && d_inode(victim)->i_nlink == 1;
}

static void undo_park(struct mxfs_lower *lower, struct inode *inode)
{
	int err = unpark(lower, inode->i_ino, inode->i_generation);

	if (err)
		mxfs_warn(lower->sbi, "inode %lu keeps a spare name in .mxfs/orphans (%d): the next sweep removes it",
			  inode->i_ino, err);
}

/* ---------------------------------------------------------------- names */

static int local_getroot(struct mxfs_sb_info *sbi, struct mxfs_attr *attr)
{
	struct mxfs_lower *lower = lower_get(sbi);

	return lower ? fill_attr(lower, lower->mnt->mnt_root, attr) : -EIO;
}

static int local_lookup(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len,
			struct mxfs_attr *attr)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct dentry *dentry;
	int err = begin_dir(sbi, dir, &lower, &node);

	if (err)
		return err;
	err = -ENOENT;
	if (is_mxfs_name(lower, node, name, len))
		goto out;
	if (len == 2 && !memcmp(name, "..", 2)) {
		/* Connected up to the root, where the parent is the root itself. */
		dentry = dget_parent(node->dentry);
	} else {
		dentry = lookup_one_len_unlocked(name, node->dentry, len);
		err = PTR_ERR(dentry);
		if (IS_ERR(dentry))
			goto out;
	}
	if (d_really_is_negative(dentry)) {
		err = -ENOENT;
	} else {
		err = fill_attr(lower, dentry, attr);
		if (!err)
			remember(lower, dentry);
	}
	dput(dentry);
out:
	mxfs_lower_node_put(lower, node);
	return err;
}

/*
 * Begins a change of one name: the directory is locked, the name looked up. Ends by end_name. Making `.mxfs` in the root is
 * EPERM, removing it ENOENT: `hidden` says which.
 */
static int begin_name(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len, int hidden,
		      struct mxfs_lower **lower, struct mxfs_lower_node **node, struct dentry **dentry)
{
	int err = begin_dir(sbi, dir, lower, node);

	if (err)
		return err;
	if (is_mxfs_name(*lower, *node, name, len)) {
		err = hidden;
		goto out_put;
	}
	err = mnt_want_write((*lower)->mnt);
	if (err)
		goto out_put;
	inode_lock_nested(d_inode((*node)->dentry), I_MUTEX_PARENT);
	*dentry = lookup_one_len(name, (*node)->dentry, len);
	if (!IS_ERR(*dentry))
		return 0;
	err = PTR_ERR(*dentry);
	inode_unlock(d_inode((*node)->dentry));
	mnt_drop_write((*lower)->mnt);
out_put:
	mxfs_lower_node_put(*lower, *node);
	return err;
}

static void end_name(struct mxfs_lower *lower, struct mxfs_lower_node *node, struct dentry *dentry, int err,
		     struct mxfs_attr *dattr)
{
	inode_unlock(d_inode(node->dentry));
	if (!err) {
		meta_changed(lower);
		answer_attr(lower, node->dentry, dattr);
	}
	dput(dentry);
	mnt_drop_write(lower->mnt);
	mxfs_lower_failed(lower, err);
	mxfs_lower_node_put(lower, node);
}

static int local_make(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len, umode_t mode,
		      dev_t rdev, bool excl, struct mxfs_attr *attr, struct mxfs_attr *dattr)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct dentry *dentry;
	struct inode *parent;
	int err = begin_name(sbi, dir, name, len, -EPERM, &lower, &node, &dentry);

	if (err)
		return err;
	parent = d_inode(node->dentry);
	if (d_really_is_positive(dentry)) {
		if (excl || !S_ISREG(mode) || !d_is_reg(dentry))
			err = -EEXIST;
	} else {
		switch (mode & S_IFMT) {
		case S_IFREG:
			err = vfs_create(&init_user_ns, parent, dentry, mode, true);
			break;
		case S_IFDIR:
			err = vfs_mkdir(&init_user_ns, parent, dentry, mode);
			break;
		case S_IFCHR:
		case S_IFBLK:
		case S_IFIFO:
		case S_IFSOCK:
			err = vfs_mknod(&init_user_ns, parent, dentry, mode, rdev);
			break;
		default:
			err = -EINVAL;
		}
	}
	if (!err) {
		answer_attr(lower, dentry, attr);
		remember(lower, dentry);
	}
	end_name(lower, node, dentry, err, dattr);
	return err;
}

static int local_symlink(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len,
			 const char *target, struct mxfs_attr *attr, struct mxfs_attr *dattr)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct dentry *dentry;
	int err = begin_name(sbi, dir, name, len, -EPERM, &lower, &node, &dentry);

	if (err)
		return err;
	if (d_really_is_positive(dentry))
		err = -EEXIST;
	else
		err = vfs_symlink(&init_user_ns, d_inode(node->dentry), dentry, target);
	if (!err) {
		answer_attr(lower, dentry, attr);
		remember(lower, dentry);
	}
	end_name(lower, node, dentry, err, dattr);
	return err;
}

static int local_link(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_fh *dir, const char *name,
		      u32 len, struct mxfs_attr *attr, struct mxfs_attr *dattr)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node, *object;
	struct dentry *dentry;
	int err = begin(sbi, fh, &lower, &object);

	if (err)
		return err;
	err = -ENOENT;
	if (is_parked(lower, d_inode(object->dentry)))
		goto out; /* its last name is gone: it does not come back */
	err = begin_name(sbi, dir, name, len, -EPERM, &lower, &node, &dentry);
	if (err)
		goto out;
	if (d_really_is_positive(dentry))
		err = -EEXIST;
	else
		err = vfs_link(object->dentry, &init_user_ns, d_inode(node->dentry), dentry, NULL);
	if (!err)
		answer_attr(lower, object->dentry, attr);
	end_name(lower, node, dentry, err, dattr);
out:
	mxfs_lower_node_put(lower, object);
	return err;
}

static int local_unlink(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len, u32 flags,
			struct mxfs_attr *attr, struct mxfs_attr *dattr)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct dentry *dentry;
	struct inode *parent, *inode = NULL;
	struct mxfs_fh fh = {};
	bool parked = false, gone = false;
	int err = begin_name(sbi, dir, name, len, -ENOENT, &lower, &node, &dentry);

	if (err)
		return err;
	parent = d_inode(node->dentry);
	if (d_really_is_negative(dentry)) {
		err = -ENOENT;
		goto out;
	}
	/* Two references on the dentry, so that d_delete unhashes it and leaves the inode to read from. */
	dget(dentry);
	inode = d_inode(dentry);
	ihold(inode);
	fh.ino = inode->i_ino;
	fh.gen = inode->i_generation;
	if (flags & MXFS_UNLINK_DIR) {
		err = vfs_rmdir(&init_user_ns, parent, dentry);
	} else {
		if ((flags & MXFS_UNLINK_PARK) && wants_parking(dentry)) {
			err = park(lower, dentry);
			parked = !err;
		}
		if (!err)
			err = vfs_unlink(&init_user_ns, parent, dentry, NULL);
	}
	if (!err) {
		answer_attr(lower, dentry, attr);
		gone = !inode->i_nlink || d_is_dir(dentry);
	}
	dput(dentry);
	if (parked && err)
		undo_park(lower, inode);
out:
	end_name(lower, node, dentry, err, dattr);
	if (gone)
		mxfs_lower_forget(lower, &fh);
	/* Last: may be the end of the inode, which needs no lock of ours. */
	iput(inode);
	return err;
}

static int local_rename(struct mxfs_sb_info *sbi, const struct mxfs_fh *odir, const char *oname, u32 olen,
			const struct mxfs_fh *ndir, const char *nname, u32 nlen, u32 flags, struct mxfs_attr *odattr,
			struct mxfs_attr *ndattr)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *from, *to;
	struct dentry *odentry, *ndentry, *trap, *early;
	struct inode *victim = NULL;
	struct mxfs_fh victim_fh = {};
	bool parked = false, gone = false;
	struct renamedata rename = {};
	int err = begin_dir(sbi, odir, &lower, &from);

	if (err)
		return err;
	err = begin_dir(sbi, ndir, &lower, &to);
	if (err)
		goto out_put_from;
	err = -ENOENT;
	if (is_mxfs_name(lower, from, oname, olen))
		goto out_put;
	err = -EPERM;
	if (is_mxfs_name(lower, to, nname, nlen))
		goto out_put;
	err = mnt_want_write(lower->mnt);
	if (err)
		goto out_put;

	if (flags & MXFS_RENAME_PARK) {
		/* Before the directories are locked: parking locks a third. The DLM keeps the name as it is meanwhile. */
		early = lookup_one_len_unlocked(nname, to->dentry, nlen);
		err = PTR_ERR(early);
		if (IS_ERR(early))
			goto out_drop;
		err = 0;
		if (wants_parking(early)) {
			victim = d_inode(early);
			ihold(victim);
			err = park(lower, early);
			parked = !err;
		}
		dput(early);
		if (err)
			goto out_drop;
	}

	trap = lock_rename(to->dentry, from->dentry);
	odentry = lookup_one_len(oname, from->dentry, olen);
	err = PTR_ERR(odentry);
	if (IS_ERR(odentry))
		goto out_unlock;
	err = -ENOENT;
	if (d_really_is_negative(odentry))
		goto out_dput_old;
	/* The source must not be an ancestor of the target, nor the target one of the source. */
	err = -EINVAL;
	if (odentry == trap)
		goto out_dput_old;
	ndentry = lookup_one_len(nname, to->dentry, nlen);
	err = PTR_ERR(ndentry);
	if (IS_ERR(ndentry))
		goto out_dput_old;
	err = (flags & RENAME_EXCHANGE) ? -EINVAL : -ENOTEMPTY;
	if (ndentry == trap)
		goto out_dput_new;
	err = -EEXIST;
	if ((flags & RENAME_NOREPLACE) && d_really_is_positive(ndentry))
		goto out_dput_new;
	err = -ENOENT;
	if ((flags & RENAME_EXCHANGE) && d_really_is_negative(ndentry))
		goto out_dput_new;
	if (parked && d_inode(ndentry) != victim) {
		err = -ESTALE; /* the name moved under a held DLM lock: never */
		goto out_dput_new;
	}
	if (!victim && d_really_is_positive(ndentry)) {
		victim = d_inode(ndentry);
		ihold(victim);
	}
	if (victim) {
		victim_fh.ino = victim->i_ino;
		victim_fh.gen = victim->i_generation;
	}
	rename.old_mnt_userns = &init_user_ns;
	rename.new_mnt_userns = &init_user_ns;
	rename.old_dir = d_inode(from->dentry);
	rename.new_dir = d_inode(to->dentry);
	rename.old_dentry = odentry;
	rename.new_dentry = ndentry;
	rename.flags = flags & (RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT);
	err = vfs_rename(&rename);
	if (!err) {
		meta_changed(lower);
		gone = victim && !(flags & RENAME_EXCHANGE) && (!victim->i_nlink || S_ISDIR(victim->i_mode));
	}
out_dput_new:
	dput(ndentry);
out_dput_old:
	dput(odentry);
out_unlock:
	unlock_rename(to->dentry, from->dentry);
	if (!err) {
		answer_attr(lower, from->dentry, odattr);
		answer_attr(lower, to->dentry, ndattr);
	}
	/* A source that is another name of the victim: the rename did nothing, and neither has parking. */
	if (parked && (err || victim->i_nlink > 1))
		undo_park(lower, victim);
	if (gone)
		mxfs_lower_forget(lower, &victim_fh);
out_drop:
	mnt_drop_write(lower->mnt);
out_put:
	mxfs_lower_node_put(lower, to);
out_put_from:
	mxfs_lower_node_put(lower, from);
	/* Last: may be the end of the inode, which needs no lock of ours. */
	iput(victim);
	return err;
}

static int local_readlink(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, char *buf, u32 size)
{
	DEFINE_DELAYED_CALL(done);
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	const char *link;
	int err = begin(sbi, fh, &lower, &node);

	if (err)
		return err;
	link = vfs_get_link(node->dentry, &done);
	if (IS_ERR(link)) {
		err = PTR_ERR(link);
	} else {
		err = min_t(size_t, strlen(link), size);
		memcpy(buf, link, err);
		do_delayed_call(&done);
	}
	mxfs_lower_node_put(lower, node);
	return err;
}

/* ---------------------------------------------------------------- readdir */

struct readdir_fill {
	struct dir_context ctx;
	struct mxfs_dirent_sink *sink;
	struct mxfs_wire_dirent *last; /* its cookie is known only when the next entry comes */
	bool root, full;
};

static bool readdir_actor(struct dir_context *ctx, const char *name, int len, loff_t offset, u64 ino, unsigned int type)
{
	struct readdir_fill *fill = container_of(ctx, struct readdir_fill, ctx);
	struct mxfs_dirent_sink *sink = fill->sink;
	size_t reclen = ALIGN(sizeof(struct mxfs_wire_dirent) + len, 8);
	struct mxfs_wire_dirent *entry;

	if (fill->last)
		fill->last->cookie = cpu_to_le64(offset);
	if (fill->root && len == sizeof(MXFS_DIR_NAME) - 1 && !memcmp(name, MXFS_DIR_NAME, len))
		return true;
	if (reclen > sink->size - sink->used) {
		fill->full = true;
		return false;
	}
	entry = sink->buf + sink->used;
	memset(entry, 0, reclen);
	entry->ino = cpu_to_le64(ino);
	entry->reclen = cpu_to_le16(reclen);
	entry->name_len = cpu_to_le16(len);
	entry->type = type;
	memcpy(entry + 1, name, len);
	sink->used += reclen;
	fill->last = entry;
	return true;
}

static int local_readdir(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, u64 cookie, struct mxfs_dirent_sink *sink)
{
	struct readdir_fill fill = { .ctx.actor = readdir_actor, .sink = sink };
	const struct cred *old_cred;
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct file *file;
	loff_t before;
	int err;

	if (cookie > S64_MAX)
		return -EINVAL;
	err = begin_dir(sbi, dir, &lower, &node);
	if (err)
		return err;
	file = mxfs_lower_node_file(lower, node);
	if (IS_ERR(file)) {
		err = PTR_ERR(file);
		goto out;
	}
	fill.root = node->fh.ino == lower->root_ino;
	sink->used = 0;
	sink->eof = false;
	mutex_lock(&node->dir_mutex);
	old_cred = override_creds(lower->kcred);
	file->f_pos = cookie;
	do {
		before = file->f_pos;
		err = iterate_dir(file, &fill.ctx);
		/* XFS returns after a block's worth as well: go on while there is room and it moves. */
	} while (!err && !fill.full && file->f_pos != before);
	sink->next = file->f_pos;
	revert_creds(old_cred);
	mutex_unlock(&node->dir_mutex);
	if (fill.last && !fill.full)
		fill.last->cookie = cpu_to_le64(sink->next);
	if (fill.full && fill.last)
		sink->next = le64_to_cpu(fill.last->cookie);
	sink->eof = !err && !fill.full;
	if (!err && fill.full && !sink->used)
		err = -EINVAL; /* not room for a single entry */
out:
	mxfs_lower_node_put(lower, node);
	return err;
}

/* Adds the entry with its handle; false: its inode is not to be had. */
static bool put_name(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const struct mxfs_wire_dirent *from,
		     struct mxfs_dirent_sink *sink)
{
	const char *name = (const char *)(from + 1);
	u32 len = le16_to_cpu(from->name_len);
	struct mxfs_wire_name *entry = sink->buf + sink->used;
	size_t reclen = ALIGN(sizeof(*entry) + len, 8);
	struct mxfs_attr attr;

	if (reclen > sink->size - sink->used || local_lookup(sbi, dir, name, len, &attr))
		return false;
	memset(entry, 0, reclen);
	mxfs_fsop_put_handle(&entry->handle, &attr.fh);
	entry->cookie = from->cookie;
	entry->mode = cpu_to_le32(attr.mode & S_IFMT);
	entry->flags = cpu_to_le32(mxfs_inode_is_busy(sbi, &attr.fh) ? MXFS_NAME_BUSY : 0);
	entry->reclen = cpu_to_le16(reclen);
	entry->name_len = cpu_to_le16(len);
	memcpy(entry + 1, name, len);
	sink->used += reclen;
	return true;
}

/* As many names as fit into MXFS_NAMES_BYTES each when they have their handles: fewer than `max` if they are long. */
static int local_names(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, u64 cookie, u32 max, struct mxfs_dirent_sink *sink)
{
	/* The shortest entry has 32 bytes: so there are `max` at most. A long one must fit, too. */
	struct mxfs_dirent_sink plain = { .size = max_t(size_t, max * 32, 512) };
	const struct mxfs_wire_dirent *from;
	const struct cred *old;
	size_t at;
	int err;

	if (!max || max > MXFS_NAMES_MAX || sink->size < (size_t)max * MXFS_NAMES_BYTES)
		return -EINVAL;
	plain.buf = kvmalloc(plain.size, GFP_KERNEL);
	if (!plain.buf)
		return -ENOMEM;
	sink->used = 0;
	old = override_creds(mxfs_kernel_cred);
	err = local_readdir(sbi, dir, cookie, &plain);
	for (at = 0; !err && at < plain.used; at += le16_to_cpu(from->reclen)) {
		const char *name;

		from = plain.buf + at;
		name = (const char *)(from + 1);
		if (name[0] == '.' && (le16_to_cpu(from->name_len) == 1 || (le16_to_cpu(from->name_len) == 2 && name[1] == '.')))
			continue;
		put_name(sbi, dir, from, sink);
		cond_resched();
	}
	revert_creds(old);
	sink->next = plain.next;
	sink->eof = plain.eof;
	kvfree(plain.buf);
	return err;
}

/* ---------------------------------------------------------------- attributes */

static int local_getattrs(struct mxfs_sb_info *sbi, const struct mxfs_handle *handles, u32 count, struct mxfs_wire_brief *briefs,
			  u32 *block)
{
	const struct cred *old = override_creds(mxfs_kernel_cred);
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct mxfs_attr attr;
	struct mxfs_fh fh;
	int err = 0;
	u32 i;

	*block = 0;
	memset(briefs, 0, count * sizeof(*briefs));
	for (i = 0; i < count; i++) {
		mxfs_fsop_get_handle(&fh, &handles[i]);
		err = begin(sbi, &fh, &lower, &node);
		if (err == -ESTALE)
			continue;
		if (err)
			break;
		err = fill_attr(lower, node->dentry, &attr);
		if (!err) {
			mxfs_fsop_put_attr(&briefs[i].attr, &attr);
			/* Asking drops the file's pages here: worth it for small ones alone. */
			if (S_ISREG(attr.mode) && attr.size && attr.size <= MXFS_BRIEF_BYTES_MAX &&
			    mxfs_local_first_extent(node, &briefs[i].extent, block))
				memset(&briefs[i].extent, 0, sizeof(briefs[i].extent));
		}
		mxfs_lower_node_put(lower, node);
		cond_resched();
	}
	revert_creds(old);
	return err == -ESTALE ? 0 : err;
}

static int local_getattr(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, struct mxfs_attr *attr)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	int err = begin(sbi, fh, &lower, &node);

	if (err)
		return err;
	err = fill_attr(lower, node->dentry, attr);
	mxfs_lower_node_put(lower, node);
	return err;
}

static int local_setattr(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_setattr *set,
			 struct mxfs_attr *attr)
{
	const unsigned int known = ATTR_MODE | ATTR_UID | ATTR_GID | ATTR_SIZE | ATTR_ATIME | ATTR_MTIME | ATTR_CTIME |
				   ATTR_ATIME_SET | ATTR_MTIME_SET | ATTR_FORCE | ATTR_KILL_SUID | ATTR_KILL_SGID |
				   ATTR_KILL_PRIV;
	struct iattr iattr = {
		.ia_valid = set->valid & known,
		.ia_mode = set->mode & S_IALLUGO,
		.ia_uid = set->uid,
		.ia_gid = set->gid,
		.ia_size = set->size,
		.ia_atime = set->atime,
		.ia_mtime = set->mtime,
	};
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct inode *inode;
	int err = begin(sbi, fh, &lower, &node);

	if (err)
		return err;
	inode = d_inode(node->dentry);
	/* notify_change works the mode out of these itself, and insists on doing so. */
	if (iattr.ia_valid & (ATTR_KILL_SUID | ATTR_KILL_SGID))
		iattr.ia_valid &= ~ATTR_MODE;
	if (iattr.ia_valid & ATTR_MODE)
		iattr.ia_mode |= inode->i_mode & S_IFMT;
	err = -EINVAL;
	if (iattr.ia_valid & ATTR_SIZE) {
		if (set->size > S64_MAX || !S_ISREG(inode->i_mode)) {
			err = S_ISDIR(inode->i_mode) ? -EISDIR : -EINVAL;
			goto out;
		}
		err = -EPERM;
		if (IS_IMMUTABLE(inode) || IS_APPEND(inode))
			goto out;
	}
	err = mnt_want_write(lower->mnt);
	if (err)
		goto out;
	inode_lock(inode);
	err = notify_change(&init_user_ns, node->dentry, &iattr, NULL);
	inode_unlock(inode);
	mnt_drop_write(lower->mnt);
	if (!err) {
		if (iattr.ia_valid & ATTR_SIZE)
			data_changed(lower);
		else
			meta_changed(lower);
		answer_attr(lower, node->dentry, attr);
	}
out:
	mxfs_lower_node_put(lower, node);
	return err;
}

/* ---------------------------------------------------------------- data */

static ssize_t local_read(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, struct iov_iter *to)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct file *file;
	loff_t at = pos;
	ssize_t done;

	if (pos > S64_MAX)
		return -EINVAL;
	done = begin_file(sbi, fh, &lower, &node, &file);
	if (done)
		return done;
	done = vfs_iter_read(file, to, &at, 0);
	mxfs_lower_failed(lower, done);
	mxfs_lower_node_put(lower, node);
	return done;
}

static ssize_t local_write(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, struct iov_iter *from,
			   bool kernel, const struct timespec64 *mtime, struct mxfs_attr *attr)
{
	struct iattr times = { .ia_valid = ATTR_MTIME | ATTR_MTIME_SET };
	const struct cred *old_cred = NULL;
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct file *file;
	loff_t at = pos;
	ssize_t done;

	if (pos > S64_MAX)
		return -EINVAL;
	done = begin_file(sbi, fh, &lower, &node, &file);
	if (done)
		return done;
	/* With CAP_FSETID set-id bits stay; otherwise the XFS removes them as for any writer. */
	if (kernel)
		old_cred = override_creds(lower->kcred);
	file_start_write(file);
	done = vfs_iter_write(file, from, &at, 0);
	if (done > 0 && mtime) { /* refused: the answer tells */
		times.ia_mtime = *mtime;
		inode_lock(d_inode(node->dentry));
		notify_change(&init_user_ns, node->dentry, &times, NULL);
		inode_unlock(d_inode(node->dentry));
	}
	file_end_write(file);
	if (old_cred)
		revert_creds(old_cred);
	if (done > 0) {
		data_changed(lower);
		answer_attr(lower, node->dentry, attr);
	}
	mxfs_lower_failed(lower, done);
	mxfs_lower_node_put(lower, node);
	return done;
}

int mxfs_local_begin_file(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, struct mxfs_lower **lower,
			  struct mxfs_lower_node **node, struct file **file)
{
	return begin_file(sbi, fh, lower, node, file);
}

void mxfs_local_answer(struct mxfs_lower *lower, struct mxfs_lower_node *node, struct mxfs_attr *attr)
{
	answer_attr(lower, node->dentry, attr);
}

void mxfs_local_changed_data(struct mxfs_lower *lower)
{
	data_changed(lower);
}

static int local_fsync(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, bool datasync)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct file *file;
	int err = begin(sbi, fh, &lower, &node);

	if (err)
		return err;
	if (d_is_reg(node->dentry) || d_is_dir(node->dentry)) {
		file = mxfs_lower_node_file(lower, node);
		err = IS_ERR(file) ? PTR_ERR(file) : vfs_fsync(file, datasync);
		mxfs_lower_failed(lower, err);
	} else {
		err = mxfs_lower_sync(sbi);
	}
	mxfs_lower_node_put(lower, node);
	return err;
}

static int local_syncfs(struct mxfs_sb_info *sbi)
{
	return mxfs_lower_sync(sbi);
}

static int local_statfs(struct mxfs_sb_info *sbi, struct kstatfs *st)
{
	struct mxfs_lower *lower = lower_get(sbi);
	struct path path;

	if (!lower)
		return -EIO;
	path.mnt = lower->mnt;
	path.dentry = lower->mnt->mnt_root;
	return vfs_statfs(&path, st);
}

static int local_fallocate(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, int mode, u64 pos, u64 len,
			   struct mxfs_attr *attr)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	struct file *file;
	int err;

	if (pos > S64_MAX || len > S64_MAX)
		return -EINVAL;
	err = begin_file(sbi, fh, &lower, &node, &file);
	if (err)
		return err;
	err = vfs_fallocate(file, mode, pos, len);
	if (!err) {
		data_changed(lower);
		answer_attr(lower, node->dentry, attr);
	}
	mxfs_lower_node_put(lower, node);
	return err;
}

/* ---------------------------------------------------------------- extended attributes */

static ssize_t local_getxattr(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const char *name, void *buf,
			      size_t size)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	ssize_t len = begin(sbi, fh, &lower, &node);

	if (len)
		return len;
	len = vfs_getxattr(&init_user_ns, node->dentry, name, buf, size);
	mxfs_lower_node_put(lower, node);
	return len;
}

static int local_setxattr(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const char *name, const void *value,
			  size_t size, int flags, struct mxfs_attr *attr)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	int err = begin(sbi, fh, &lower, &node);

	if (err)
		return err;
	err = mnt_want_write(lower->mnt);
	if (err)
		goto out;
	err = vfs_setxattr(&init_user_ns, node->dentry, name, value, size, flags);
	mnt_drop_write(lower->mnt);
	if (!err) {
		meta_changed(lower);
		answer_attr(lower, node->dentry, attr);
	}
out:
	mxfs_lower_node_put(lower, node);
	return err;
}

static ssize_t local_listxattr(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, char *buf, size_t size)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	ssize_t len = begin(sbi, fh, &lower, &node);

	if (len)
		return len;
	len = vfs_listxattr(node->dentry, buf, size);
	mxfs_lower_node_put(lower, node);
	return len;
}

static int local_removexattr(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const char *name,
			     struct mxfs_attr *attr)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;
	int err = begin(sbi, fh, &lower, &node);

	if (err)
		return err;
	err = mnt_want_write(lower->mnt);
	if (err)
		goto out;
	err = vfs_removexattr(&init_user_ns, node->dentry, name);
	mnt_drop_write(lower->mnt);
	if (!err) {
		meta_changed(lower);
		answer_attr(lower, node->dentry, attr);
	}
out:
	mxfs_lower_node_put(lower, node);
	return err;
}

/* ---------------------------------------------------------------- orphans, locks */

static int local_reap(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh)
{
	struct mxfs_lower *lower = lower_get(sbi);
	void *entry;
	int err;

	if (!lower)
		return -EIO;
	entry = xa_load(&lower->parked, fh->ino);
	if (!entry || xa_to_value(entry) != fh->gen)
		return 0; /* reaped already: asking twice is no error */
	err = mnt_want_write(lower->mnt);
	if (err)
		return err;
	err = unpark(lower, fh->ino, fh->gen);
	mnt_drop_write(lower->mnt);
	if (!err)
		mxfs_lower_forget(lower, fh);
	return err;
}

/* A process of this node that waits for a lock; the table and the process hold a reference each. */
struct local_wait {
	refcount_t ref;
	struct mxfs_sb_info *sbi;
	bool done;
	int error;
};

static void local_wait_put(struct local_wait *wait)
{
	if (refcount_dec_and_test(&wait->ref))
		kfree(wait);
}

static void local_wait_done(void *arg, int error)
{
	struct local_wait *wait = arg;

	wait->error = error;
	smp_store_release(&wait->done, true);
	wake_up_all(&wait->sbi->gate.wait);
	local_wait_put(wait);
}

static atomic64_t local_wait_seq = ATOMIC64_INIT(0);

static int local_setlk(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_lk *lk)
{
	struct mxfs_locktab_request req = {
		.fh = *fh,
		.lk = *lk,
		.incarnation = sbi->incarnation,
		/* Apart from a member's sequence numbers. */
		.seq = BIT_ULL(63) | atomic64_inc_return(&local_wait_seq),
		.done = local_wait_done,
	};
	struct mxfs_lower *lower = lower_get(sbi);
	struct local_wait *wait = NULL;
	int err, entered;

	if (!lower)
		return -EIO;
	req.lk.node = sbi->node;
	if (lk->wait && lk->type != F_UNLCK) {
		wait = kzalloc(sizeof(*wait), GFP_KERNEL);
		if (!wait)
			return -ENOMEM;
		refcount_set(&wait->ref, 2);
		wait->sbi = sbi;
		req.arg = wait;
	}
	err = mxfs_locktab_set(lower, &req);
	if (err != -EINPROGRESS) {
		kfree(wait);
		return err;
	}

	/* From here on the table may answer at any time, and the holder may change: outside the gate. */
	mxfs_gate_leave(sbi);
	err = wait_event_state(sbi->gate.wait, smp_load_acquire(&wait->done) || mxfs_gate_fenced(&sbi->gate),
			       (TASK_INTERRUPTIBLE | TASK_FREEZABLE));
	entered = mxfs_gate_rejoin(sbi);
	if (err && !entered) {
		lower = lower_get(sbi);
		if (lower && !smp_load_acquire(&wait->done))
			mxfs_locktab_cancel(lower, req.lk.node, req.incarnation, req.seq);
	}
	if (entered)
		err = entered;
	else if (smp_load_acquire(&wait->done))
		err = wait->error;
	else if (!err)
		err = -EIO;
	local_wait_put(wait);
	if (!entered && err == MXFS_LOCKTAB_RETRY)
		return sbi->be->setlk(sbi, fh, lk); /* of whatever role this node has now */
	return err;
}

static int local_getlk(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, struct mxfs_lk *lk)
{
	struct mxfs_lower *lower = lower_get(sbi);

	if (!lower)
		return -EIO;
	lk->node = sbi->node;
	return mxfs_locktab_get(lower, fh, lk);
}

static void local_forget(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh)
{
	struct mxfs_lower *lower;
	struct mxfs_lower_node *node;

	/*
	 * Not inside the gate: the unmount of the lower XFS waits for this by synchronize_rcu. The last reference goes to the worker, with
	 * or without an open file: dput() may sleep, and the unmount waits for the worker, too.
	 */
	rcu_read_lock();
	lower = READ_ONCE(sbi->lower);
	node = lower ? take_out(lower, fh) : NULL;
	if (node && refcount_dec_and_test(&node->ref))
		doom(lower, node);
	rcu_read_unlock();
}

const struct mxfs_backend mxfs_local_backend = {
	.name = "local",
	.getroot = local_getroot,
	.lookup = local_lookup,
	.getattr = local_getattr,
	.setattr = local_setattr,
	.make = local_make,
	.symlink = local_symlink,
	.link = local_link,
	.unlink = local_unlink,
	.rename = local_rename,
	.readlink = local_readlink,
	.readdir = local_readdir,
	.names = local_names,
	.getattrs = local_getattrs,
	.read = local_read,
	.write = local_write,
	.fsync = local_fsync,
	.syncfs = local_syncfs,
	.statfs = local_statfs,
	.getxattr = local_getxattr,
	.setxattr = local_setxattr,
	.listxattr = local_listxattr,
	.removexattr = local_removexattr,
	.fallocate = local_fallocate,
	.map = mxfs_local_map,
	.commit = mxfs_local_commit,
	.copy = mxfs_local_copy,
	.seek = mxfs_local_seek,
	.reap = local_reap,
	.setlk = local_setlk,
	.getlk = local_getlk,
	.forget = local_forget,
};
