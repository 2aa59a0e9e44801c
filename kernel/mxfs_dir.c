// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS directories: names, and everything that makes, moves or removes one; symlinks.
 *
 * A dentry is true while its d_time equals its parent's token (the generation of the parent's INODE lock):
 * positive or negative alike. Otherwise the name is looked up again under the parent's lock, and the
 * dentry stays if the answer is the same inode. An RCU walk goes on only with a cached lock and an equal token.
 *
 * Changing operations: EX on the directories and on the objects whose attributes change, in (inode, type, offset)
 * order; then names that may have become stale are looked up once more, and if they lead elsewhere by now it all
 * starts again with what they lead to (with directories by -ESTALE, on which the VFS starts again, once). A directory
 * that changes its parent needs the volume's RENAME lock in EX as well, so that two moves cannot build a loop.
 *
 * The last name of a file: see "Unlinked while open" in mxfs_inode.c and docs/interfaces.md section 1.
 *
 * Known weakness: a rename of a directory whose names other nodes change twice in a row, each time between its lookup
 * and its locks, ends with ESTALE. An open directory that another node removes is not parked: it lists as ENOENT, and
 * names below it are ENOENT or ESTALE. ".." of a working directory that another node has moved is found out only when its
 * path is walked again.
 */
#include <linux/fs.h>
#include <linux/namei.h>
#include <linux/slab.h>

#include "mxfs_vfs.h"

#define MXFS_NAMES_SIZE 32768 /* bytes of one READDIR */
#define MXFS_RACE_TRIES 16    /* how often other nodes may win one name */

/* ------------------------------------------------------------------ several locks */

static bool mxfs_lock_before(const struct mxfs_lock *a, const struct mxfs_lock *b)
{
	if (a->ino != b->ino)
		return a->ino < b->ino;
	if (a->type != b->type)
		return a->type < b->type;
	if (a->offset != b->offset)
		return a->offset < b->offset;
	return a < b;
}

/*
 * More than one is not there: all are asked for in one message. That is no lock out of order: what is granted before its turn
 * is cached, not used, and another node may take it away until then.
 */
static void mxfs_locks_ask_ahead(const struct mxfs_lock_req *reqs, int count)
{
	int i, first = -1;
	bool asked = false;

	for (i = 0; i < count; i++) {
		if (reqs[i].mode == MXFS_MODE_NL || READ_ONCE(reqs[i].lk->mode) != MXFS_MODE_NL)
			continue;
		if (first < 0) {
			first = i;
			continue;
		}
		if (!asked)
			mxfs_lock_ask_ahead(reqs[first].lk, reqs[first].mode, 0);
		mxfs_lock_ask_ahead(reqs[i].lk, reqs[i].mode, 0);
		asked = true;
	}
	if (asked)
		mxfs_lock_ask_flush(reqs[first].lk->sbi);
}

/*
 * As mxfs_op_begin_many(), but stays outside the gate: OPEN may have to be asked for between the locks and
 * the gate. A lock that is named twice is taken once, in the stronger mode; the other entry becomes NL.
 */
static int mxfs_locks_get(struct mxfs_lock_req *reqs, int count)
{
	struct mxfs_lock_req req;
	int i, j, err;

	for (i = 1; i < count; i++) {
		req = reqs[i];
		for (j = i; j > 0 && mxfs_lock_before(req.lk, reqs[j - 1].lk); j--)
			reqs[j] = reqs[j - 1];
		reqs[j] = req;
	}
	for (i = count - 1; i > 0; i--) {
		if (reqs[i].lk != reqs[i - 1].lk)
			continue;
		reqs[i - 1].mode = max(reqs[i - 1].mode, reqs[i].mode);
		reqs[i].mode = MXFS_MODE_NL;
	}
	mxfs_locks_ask_ahead(reqs, count);
	for (i = 0; i < count; i++) {
		if (reqs[i].mode == MXFS_MODE_NL)
			continue;
		err = mxfs_lock_get(reqs[i].lk, reqs[i].mode, 0);
		if (err)
			goto undo;
	}
	return 0;
undo:
	while (--i >= 0)
		if (reqs[i].mode != MXFS_MODE_NL)
			mxfs_lock_put(reqs[i].lk, reqs[i].mode);
	return err;
}

static void mxfs_locks_put(struct mxfs_lock_req *reqs, int count)
{
	while (--count >= 0)
		if (reqs[count].mode != MXFS_MODE_NL)
			mxfs_lock_put(reqs[count].lk, reqs[count].mode);
}

/* ------------------------------------------------------------------ names */

static bool mxfs_same(struct inode *inode, const struct mxfs_attr *attr)
{
	const struct mxfs_fh *fh = &MXFS_I(inode)->fh;

	return fh->ino == attr->fh.ino && fh->gen == attr->fh.gen && !((inode->i_mode ^ attr->mode) & S_IFMT) &&
	       !test_bit(MXFS_VN_GONE, &MXFS_VN(inode)->state);
}

/* Inside the gate, PR or stronger on `dir`: what the name leads to; of a name that was fetched ahead the handle and type alone. */
static int mxfs_ask_name(struct inode *dir, const struct qstr *name, struct mxfs_attr *attr)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	int err;

	if (mxfs_ahead_find(dir, name, attr))
		return 0;
	err = sbi->be->lookup(sbi, &MXFS_I(dir)->fh, name->name, name->len, attr);
	if (!err)
		mxfs_ahead_found(dir, attr);
	return err;
}

/* Inside the gate, PR or stronger on `dir`. 1: the dentry is true, 0: it is not, or an error. */
static int mxfs_name_true(struct inode *dir, struct dentry *dentry, const struct qstr *name)
{
	unsigned long token = mxfs_names_token(dir);
	struct inode *inode = d_inode(dentry);
	struct mxfs_attr attr;
	int err;

	err = mxfs_ask_name(dir, name, &attr);
	if (err && err != -ENOENT)
		return err == -ESTALE ? 0 : err;
	if (inode ? err || !mxfs_same(inode, &attr) : !err)
		return 0;
	WRITE_ONCE(dentry->d_time, token);
	return 1;
}

/*
 * Who may remove a name from a sticky directory depends on the owner, at which the VFS looks before it calls us.
 * No error: what cannot be refreshed now is refused or found out by the operation itself.
 */
static void mxfs_sticky_refresh(struct inode *dir, struct inode *inode)
{
	struct mxfs_inode *mi = MXFS_I(inode);

	if (!(dir->i_mode & S_ISVTX) || mxfs_lock_get(&mi->lock, MXFS_MODE_CR, 0))
		return;
	mxfs_attr_refresh(inode);
	mxfs_lock_put(&mi->lock, MXFS_MODE_CR);
}

static int mxfs_d_revalidate(struct dentry *dentry, unsigned int flags)
{
	struct mxfs_sb_info *sbi = MXFS_SB(dentry->d_sb);
	struct name_snapshot name;
	struct dentry *parent;
	struct inode *dir;
	int ret;

	if (flags & LOOKUP_RCU) {
		dir = d_inode_rcu(READ_ONCE(dentry->d_parent));
		if (!dir || READ_ONCE(dentry->d_time) != mxfs_names_token(dir) ||
		    !mxfs_lock_is_cached(&MXFS_I(dir)->lock, MXFS_MODE_PR))
			return -ECHILD;
		return 1;
	}
	/* The second try of an open that found the file gone: atomic_open holds on to what it finds. */
	if (flags & LOOKUP_REVAL && flags & LOOKUP_OPEN && d_is_reg(dentry) && !d_mountpoint(dentry))
		return 0;
	parent = dget_parent(dentry);
	dir = d_inode(parent);
	if (READ_ONCE(dentry->d_time) != mxfs_names_token(dir) && d_really_is_positive(dentry)) {
		take_dentry_name_snapshot(&name, dentry);
		mxfs_ahead_lookup(dir, &name.name);
		release_dentry_name_snapshot(&name);
	}
	ret = mxfs_lock_get(&MXFS_I(dir)->lock, MXFS_MODE_PR, 0);
	if (ret)
		goto out;
	if (READ_ONCE(dentry->d_time) == mxfs_names_token(dir) && !(flags & LOOKUP_REVAL) &&
	    mxfs_gate_lease_valid(sbi)) {
		mxfs_count(sbi, MXFS_COUNT_REVALIDATE_HIT);
		ret = 1;
	} else {
		mxfs_count(sbi, MXFS_COUNT_REVALIDATE_MISS);
		ret = mxfs_gate_enter(sbi);
		if (!ret) {
			take_dentry_name_snapshot(&name, dentry);
			ret = mxfs_name_true(dir, dentry, &name.name);
			release_dentry_name_snapshot(&name);
			mxfs_gate_leave(sbi);
		}
	}
	mxfs_lock_put(&MXFS_I(dir)->lock, MXFS_MODE_PR);
	if (ret == 1 && d_really_is_positive(dentry))
		mxfs_sticky_refresh(dir, d_inode(dentry));
out:
	dput(parent);
	return ret;
}

const struct dentry_operations mxfs_dentry_ops = {
	.d_revalidate = mxfs_d_revalidate,
};

static struct dentry *mxfs_lookup(struct inode *dir, struct dentry *dentry, unsigned int flags)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	struct mxfs_inode *di = MXFS_I(dir);
	struct inode *inode = NULL;
	struct mxfs_attr attr;
	struct dentry *alias;
	unsigned long token;
	int err;

	if (dentry->d_name.len > MXFS_NAME_LEN_MAX)
		return ERR_PTR(-ENAMETOOLONG);
	/*
	 * Whoever makes a new name is told if it exists by the attempt; asking before would be one message more. The
	 * dentry is not true for anybody else. Without permission the VFS's order of errors wants an answer.
	 */
	if ((flags & (LOOKUP_CREATE | LOOKUP_EXCL)) == (LOOKUP_CREATE | LOOKUP_EXCL) &&
	    !inode_permission(&init_user_ns, dir, MAY_WRITE | MAY_EXEC)) {
		dentry->d_time = 0;
		return d_splice_alias(NULL, dentry);
	}
	mxfs_ahead_lookup(dir, &dentry->d_name);
	err = mxfs_op_begin(sbi, &di->lock, MXFS_MODE_PR);
	if (err)
		return ERR_PTR(err);
	token = mxfs_names_token(dir);
	err = mxfs_ask_name(dir, &dentry->d_name, &attr);
	mxfs_op_end(sbi, &di->lock, MXFS_MODE_PR);

	/* Not inside the gate: iget may wait for an eviction, that for write-back, and that for the gate. */
	if (!err)
		inode = mxfs_iget(dir->i_sb, &attr);
	else if (err != -ENOENT)
		return ERR_PTR(err);
	if (IS_ERR(inode))
		return ERR_CAST(inode);
	if (inode)
		mxfs_sticky_refresh(dir, inode);
	dentry->d_time = token;
	alias = d_splice_alias(inode, dentry);
	if (!IS_ERR_OR_NULL(alias))
		WRITE_ONCE(alias->d_time, token);
	return alias;
}

/* ------------------------------------------------------------------ making */

/*
 * EX on the parent is held: nobody else can have found the new inode, so its lock is ours without asking (covered; beyond the
 * bound of that it is asked for, without queueing, since it is out of order) and its attributes are known, too.
 */
static int mxfs_newborn(struct inode *dir, struct dentry *dentry, const struct mxfs_attr *attr)
{
	bool content = S_ISREG(attr->mode) || S_ISDIR(attr->mode);
	int mode = content ? MXFS_MODE_EX : MXFS_MODE_PR;
	struct inode *inode;

	inode = mxfs_iget(dir->i_sb, attr);
	if (IS_ERR(inode))
		return PTR_ERR(inode);
	if (mxfs_lock_get_born(&MXFS_I(inode)->lock, &MXFS_I(dir)->lock, mode) ||
	    !mxfs_lock_get(&MXFS_I(inode)->lock, mode, MXFS_LOCK_TRY)) {
		mxfs_attr_apply(inode, attr, MXFS_APPLY_FORCE);
		if (!is_sxid(inode->i_mode))
			set_bit(MXFS_VN_UNPRIVED, &MXFS_VN(inode)->state);
		if (mode == MXFS_MODE_EX)
			set_bit(MXFS_VN_OURS, &MXFS_VN(inode)->state);
		if (S_ISREG(attr->mode))
			mxfs_map_newborn(inode);
		mxfs_lock_put(&MXFS_I(inode)->lock, mode);
	}
	dentry->d_time = mxfs_names_token(dir);
	if (d_in_lookup(dentry))
		d_add(dentry, inode);
	else
		d_instantiate(dentry, inode);
	return 0;
}

static int mxfs_make(struct inode *dir, struct dentry *dentry, umode_t mode, dev_t rdev, const char *target)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	struct mxfs_inode *di = MXFS_I(dir);
	const struct qstr *name = &dentry->d_name;
	struct mxfs_attr attr, dattr;
	int err;

	if (name->len > MXFS_NAME_LEN_MAX)
		return -ENAMETOOLONG;
	err = mxfs_lock_get(&di->lock, MXFS_MODE_EX, 0);
	if (err)
		return err;
	err = mxfs_gate_enter(sbi);
	if (err)
		goto out;
	dattr.seen = mxfs_attr_seen(dir);
	if (target)
		err = sbi->be->symlink(sbi, &di->fh, name->name, name->len, target, &attr, &dattr);
	else
		err = sbi->be->make(sbi, &di->fh, name->name, name->len, mode, rdev, true, &attr, &dattr);
	mxfs_ahead_changed(dir, name);
	mxfs_gate_leave(sbi);
	if (err) {
		dentry->d_time = 0;
		goto out;
	}
	mxfs_lock_dirtied(&di->lock);
	mxfs_attr_apply(dir, &dattr, MXFS_APPLY_REPLY);
	err = mxfs_newborn(dir, dentry, &attr);
	if (err == -ESTALE && !mxfs_gate_enter(sbi)) {
		/* A takeover just now has given it another number. */
		err = sbi->be->lookup(sbi, &di->fh, name->name, name->len, &attr);
		mxfs_gate_leave(sbi);
		if (!err)
			err = mxfs_newborn(dir, dentry, &attr);
	}
	if (err)
		d_drop(dentry); /* made, but not known here: the next lookup finds it */
out:
	mxfs_lock_put(&di->lock, MXFS_MODE_EX);
	return err;
}

/*
 * Without O_EXCL too the file is made or there is an error: the VFS takes what comes from here as created,
 * and would not check permissions of a file that was there. -ESTALE makes it look again.
 */
static int mxfs_create(struct user_namespace *userns, struct inode *dir, struct dentry *dentry, umode_t mode, bool excl)
{
	int err = mxfs_make(dir, dentry, (mode & ~S_IFMT) | S_IFREG, 0, NULL);

	return err == -EEXIST && !excl ? -ESTALE : err;
}

/* A regular file that somebody else has made after our lookup said that it was not there. */
static int mxfs_adopt(struct inode *dir, struct dentry *dentry)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	struct mxfs_inode *di = MXFS_I(dir);
	struct mxfs_attr attr;
	struct inode *inode;
	unsigned long token;
	int err;

	err = mxfs_op_begin(sbi, &di->lock, MXFS_MODE_PR);
	if (err)
		return err;
	token = mxfs_names_token(dir);
	err = sbi->be->lookup(sbi, &di->fh, dentry->d_name.name, dentry->d_name.len, &attr);
	mxfs_op_end(sbi, &di->lock, MXFS_MODE_PR);
	if (err)
		return err;
	if (!S_ISREG(attr.mode)) { /* a directory may have a dentry already, a symlink must be followed */
		d_drop(dentry);
		return -ESTALE;
	}
	inode = mxfs_iget(dir->i_sb, &attr);
	if (IS_ERR(inode))
		return PTR_ERR(inode);
	WRITE_ONCE(dentry->d_time, token);
	d_instantiate(dentry, inode);
	return 0;
}

/*
 * Finds the name and opens the regular file that it leads to, without a moment between the two in which another node
 * could remove it: both locks are held. The dentry is in lookup; whatever else the name is, is left to the VFS.
 */
static int mxfs_lookup_open(struct inode *dir, struct dentry *dentry, struct file *file, struct dentry **found)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	struct mxfs_inode *di = MXFS_I(dir);
	const struct qstr *name = &dentry->d_name;
	struct mxfs_lock_req reqs[2];
	struct mxfs_attr attr;
	unsigned long token;
	struct inode *inode;
	int tries, err;

	if (name->len > MXFS_NAME_LEN_MAX)
		return -ENAMETOOLONG;
	mxfs_ahead_lookup(dir, name);
	for (tries = 0; tries < MXFS_RACE_TRIES; tries++) {
		err = mxfs_op_begin(sbi, &di->lock, MXFS_MODE_PR);
		if (err)
			return err;
		token = mxfs_names_token(dir);
		err = mxfs_ask_name(dir, name, &attr);
		mxfs_op_end(sbi, &di->lock, MXFS_MODE_PR);
		if (err && err != -ENOENT)
			return err;
		inode = err ? NULL : mxfs_iget(dir->i_sb, &attr);
		if (IS_ERR_OR_NULL(inode) || !S_ISREG(inode->i_mode)) {
			dentry->d_time = token;
			*found = d_splice_alias(inode, dentry);
			if (!IS_ERR_OR_NULL(*found))
				WRITE_ONCE((*found)->d_time, token);
			return PTR_ERR_OR_ZERO(*found);
		}
		reqs[0] = (struct mxfs_lock_req){ &di->lock, MXFS_MODE_PR };
		reqs[1] = (struct mxfs_lock_req){ &MXFS_I(inode)->lock, MXFS_MODE_PR };
		err = mxfs_locks_get(reqs, ARRAY_SIZE(reqs));
		if (err) {
			iput(inode);
			return err;
		}
		if (mxfs_names_token(dir) != token) {
			token = mxfs_names_token(dir);
			err = mxfs_gate_enter(sbi);
			if (!err) {
				err = sbi->be->lookup(sbi, &di->fh, name->name, name->len, &attr);
				mxfs_gate_leave(sbi);
			}
			if (err == -ENOENT || (!err && !mxfs_same(inode, &attr)))
				err = -ESTALE;
		}
		if (!err)
			err = mxfs_attr_refresh(inode);
		if (!err) {
			dentry->d_time = token;
			d_splice_alias(inode, dentry); /* takes the inode; there are no aliases of files */
			err = finish_open(file, dentry, mxfs_file_open_held);
			mxfs_locks_put(reqs, ARRAY_SIZE(reqs));
			return err;
		}
		mxfs_locks_put(reqs, ARRAY_SIZE(reqs));
		iput(inode);
		if (err != -ESTALE)
			return err;
	}
	return -ESTALE;
}

/*
 * Permission is checked by the VFS behind this, unless the file was made here. In between other nodes may make and
 * remove the file any number of times.
 */
static int mxfs_atomic_open(struct inode *dir, struct dentry *dentry, struct file *file, unsigned int flags,
			    umode_t mode)
{
	struct dentry *found = NULL;
	int tries, err = 0;

	if (d_in_lookup(dentry) && flags & O_CREAT &&
	    (flags & O_EXCL || mxfs_lock_is_cached(&MXFS_I(dir)->lock, MXFS_MODE_EX))) {
		/*
		 * Who made something here last makes something new again: the attempt tells, and a lookup is saved. The VFS
		 * has looked at the permission to make it, or O_CREAT would not have come here.
		 */
		err = mxfs_make(dir, dentry, (mode & ~S_IFMT) | S_IFREG, 0, NULL);
		if (!err) {
			file->f_mode |= FMODE_CREATED;
			return finish_no_open(file, NULL);
		}
		if (err == -EEXIST && !(flags & O_EXCL))
			err = mxfs_lookup_open(dir, dentry, file, &found);
	} else if (d_in_lookup(dentry)) {
		err = mxfs_lookup_open(dir, dentry, file, &found);
	}
	if (err || file->f_mode & FMODE_OPENED)
		return err;
	if (found)
		dentry = found;
	if (!(flags & O_CREAT) || d_really_is_positive(dentry))
		return finish_no_open(file, found);
	for (tries = 0; tries < MXFS_RACE_TRIES; tries++) {
		err = mxfs_make(dir, dentry, (mode & ~S_IFMT) | S_IFREG, 0, NULL);
		if (!err)
			file->f_mode |= FMODE_CREATED;
		if (err != -EEXIST || flags & O_EXCL)
			break;
		err = mxfs_adopt(dir, dentry);
		if (err != -ENOENT)
			break;
	}
	if (!err)
		return finish_no_open(file, found);
	dput(found);
	return err == -ENOENT && tries == MXFS_RACE_TRIES ? -ESTALE : err;
}

static int mxfs_mkdir(struct user_namespace *userns, struct inode *dir, struct dentry *dentry, umode_t mode)
{
	return mxfs_make(dir, dentry, (mode & ~S_IFMT) | S_IFDIR, 0, NULL);
}

static int mxfs_mknod(struct user_namespace *userns, struct inode *dir, struct dentry *dentry, umode_t mode, dev_t rdev)
{
	return mxfs_make(dir, dentry, mode, rdev, NULL);
}

static int mxfs_symlink(struct user_namespace *userns, struct inode *dir, struct dentry *dentry, const char *target)
{
	return mxfs_make(dir, dentry, S_IFLNK | 0777, 0, target);
}

static int mxfs_link(struct dentry *old, struct inode *dir, struct dentry *dentry)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	struct inode *inode = d_inode(old);
	struct mxfs_inode *di = MXFS_I(dir), *mi = MXFS_I(inode);
	struct mxfs_lock_req reqs[] = { { &di->lock, MXFS_MODE_EX }, { &mi->lock, MXFS_MODE_EX } };
	struct mxfs_attr attr, dattr;
	int err;

	if (dentry->d_name.len > MXFS_NAME_LEN_MAX)
		return -ENAMETOOLONG;
	err = mxfs_locks_get(reqs, ARRAY_SIZE(reqs));
	if (err)
		return err;
	err = mxfs_lock_tell(&mi->lock); /* from now on its first directory is not the only way to it */
	if (!err)
		err = mxfs_gate_enter(sbi);
	if (err)
		goto out;
	err = mxfs_attr_refresh_gated(inode);
	if (!err && !inode->i_nlink) /* unlinked meanwhile; parked ones do not come back */
		err = -ENOENT;
	dattr.seen = mxfs_attr_seen(dir);
	if (!err)
		err = sbi->be->link(sbi, &mi->fh, &di->fh, dentry->d_name.name, dentry->d_name.len, &attr, &dattr);
	mxfs_ahead_changed(dir, &dentry->d_name);
	mxfs_gate_leave(sbi);
	if (err) {
		dentry->d_time = 0;
		goto out;
	}
	mxfs_lock_dirtied(&di->lock);
	mxfs_lock_dirtied(&mi->lock);
	mxfs_attr_apply(dir, &dattr, MXFS_APPLY_REPLY);
	mxfs_attr_apply(inode, &attr, MXFS_APPLY_REPLY);
	dentry->d_time = mxfs_names_token(dir);
	ihold(inode);
	d_instantiate(dentry, inode);
out:
	mxfs_locks_put(reqs, ARRAY_SIZE(reqs));
	return err;
}

/* ------------------------------------------------------------------ removing and moving */

/* What must happen to the file whose name goes away, decided under its EX and kept true by open_mutex. */
struct mxfs_victim {
	struct inode *inode; /* NULL: there is none, or it is a directory */
	bool last;	     /* its only name */
	bool park;	     /* open somewhere */
	bool open_ex;	     /* OPEN is held in EX: open nowhere */
};

/* EX on the victim held, outside the gate. */
static int mxfs_victim_begin(struct mxfs_victim *victim, struct inode *inode)
{
	struct mxfs_vnode *vn = MXFS_VN(inode);
	int err;

	err = mxfs_attr_refresh(inode);
	if (err)
		return err;
	mutex_lock(&vn->open_mutex);
	victim->inode = inode;
	victim->last = inode->i_nlink == 1;
	if (!victim->last)
		return 0;
	victim->park = atomic_read(&vn->mi.open_count) > 0;
	if (!victim->park && (!S_ISREG(inode->i_mode) || test_bit(MXFS_VN_OURS, &vn->state)))
		return 0;
	if (!victim->park) {
		err = mxfs_lock_get(&vn->mi.open, MXFS_MODE_EX, MXFS_LOCK_TRY);
		victim->open_ex = !err;
	}
	if (err == -EAGAIN) {
		victim->park = true;
		err = 0;
	}
	if (!err && victim->park)
		err = mxfs_lock_tell(&vn->mi.lock);
	if (err) {
		mutex_unlock(&vn->open_mutex);
		victim->inode = NULL;
	}
	return err;
}

/* attr: after the operation, or NULL when the answer tells nothing of the victim. */
static void mxfs_victim_end(struct mxfs_victim *victim, bool done, const struct mxfs_attr *attr)
{
	struct inode *inode = victim->inode;
	struct mxfs_vnode *vn;

	if (!inode)
		return;
	vn = MXFS_VN(inode);
	if (done) {
		mxfs_lock_dirtied(&vn->mi.lock);
		if (victim->last && !victim->park) {
			mxfs_inode_gone(inode);
		} else {
			spin_lock(&inode->i_lock);
			if (inode->i_nlink)
				drop_nlink(inode);
			vn->attr_seq++;
			WRITE_ONCE(vn->mi.attr_gen, 0);
			spin_unlock(&inode->i_lock);
			if (attr)
				mxfs_attr_apply(inode, attr, MXFS_APPLY_REPLY);
			if (victim->park) {
				spin_lock(&inode->i_lock);
				vn->mi.parked = true;
				if (inode->i_nlink)
					clear_nlink(inode);
				spin_unlock(&inode->i_lock);
				/* The last close may have come before it was parked. */
				if (!atomic_read(&vn->mi.open_count))
					mxfs_last_close_queue(inode);
			}
		}
	}
	if (victim->open_ex) {
		/*
		 * Not kept in the cache, and given up before INODE is: whoever unlinks next (another file, perhaps,
		 * with this inode number) would be refused, take it for open here, and park what nobody reaps.
		 */
		mxfs_lock_put(&vn->mi.open, MXFS_MODE_EX);
		mxfs_lock_drop(&vn->mi.open, MXFS_MODE_NL, MXFS_LOCK_NOINTR);
	}
	mutex_unlock(&vn->open_mutex);
}

/*
 * Removes `inode`'s name. If the name leads to another inode by now, that one comes back in *other, pinned, with
 * -ESTALE.
 */
static int mxfs_remove_try(struct inode *dir, struct dentry *dentry, struct inode *inode, u32 flags,
			   struct inode **other)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	struct mxfs_inode *di = MXFS_I(dir), *mi = MXFS_I(inode);
	struct mxfs_lock_req reqs[] = { { &di->lock, MXFS_MODE_EX }, { &mi->lock, MXFS_MODE_EX } };
	const struct qstr *name = &dentry->d_name;
	struct mxfs_attr attr = {}, dattr = {}, now = {};
	struct mxfs_victim victim = {};
	int err;

	err = mxfs_locks_get(reqs, ARRAY_SIZE(reqs));
	if (err)
		return err;
	if (inode != d_inode(dentry) || READ_ONCE(dentry->d_time) != mxfs_names_token(dir)) {
		err = mxfs_gate_enter(sbi);
		if (err)
			goto out;
		err = sbi->be->lookup(sbi, &di->fh, name->name, name->len, &now);
		mxfs_gate_leave(sbi);
		if (!err && !mxfs_same(inode, &now))
			err = -ESTALE;
		if (err)
			goto out;
	}
	if (!(flags & MXFS_UNLINK_DIR)) {
		err = mxfs_victim_begin(&victim, inode);
		if (err)
			goto out;
		if (victim.park)
			flags |= MXFS_UNLINK_PARK;
	}
	err = mxfs_gate_enter(sbi);
	if (err)
		goto out_victim;
	dattr.seen = mxfs_attr_seen(dir);
	err = sbi->be->unlink(sbi, &di->fh, name->name, name->len, flags, &attr, &dattr);
	mxfs_ahead_changed(dir, name);
	mxfs_gate_leave(sbi);
	if (err) {
		dentry->d_time = 0;
		goto out_victim;
	}
	mxfs_lock_dirtied(&di->lock);
	mxfs_attr_apply(dir, &dattr, MXFS_APPLY_REPLY);
	dentry->d_time = mxfs_names_token(dir); /* the VFS makes it a negative one */
	if (flags & MXFS_UNLINK_DIR) {
		mxfs_lock_dirtied(&mi->lock); /* that it is gone may be seen by who holds on to it elsewhere */
		mxfs_inode_gone(inode);
	}
out_victim:
	mxfs_victim_end(&victim, !err, &attr);
out:
	mxfs_locks_put(reqs, ARRAY_SIZE(reqs));
	if (err != -ESTALE || !now.fh.ino)
		return err;
	*other = mxfs_iget(dir->i_sb, &now);
	return IS_ERR(*other) ? PTR_ERR(*other) : -ESTALE;
}

static int mxfs_remove(struct inode *dir, struct dentry *dentry, u32 flags)
{
	struct inode *inode = d_inode(dentry), *other;
	int tries, err;

	ihold(inode);
	for (tries = 0; tries < MXFS_RACE_TRIES; tries++) {
		other = NULL;
		err = mxfs_remove_try(dir, dentry, inode, flags, &other);
		if (err != -ESTALE || !other)
			break;
		/* What a directory or not may be removed by is the lower XFS's business, as everything else. */
		iput(inode);
		inode = other;
	}
	if (!err && inode != d_inode(dentry))
		d_drop(dentry); /* it was of something that other nodes have removed */
	iput(inode);
	return err;
}

static int mxfs_unlink(struct inode *dir, struct dentry *dentry)
{
	return mxfs_remove(dir, dentry, 0);
}

static int mxfs_rmdir(struct inode *dir, struct dentry *dentry)
{
	return mxfs_remove(dir, dentry, MXFS_UNLINK_DIR);
}

static void mxfs_attr_forget(struct inode *inode)
{
	mxfs_lock_dirtied(&MXFS_I(inode)->lock);
	WRITE_ONCE(MXFS_I(inode)->attr_gen, 0);
}

/* A rename and what its names lead to; the VFS knows what the dentries say. */
struct mxfs_rename {
	struct inode *odir, *ndir;
	struct dentry *odentry, *ndentry;
	struct inode *source, *target; /* pinned; no target: NULL */
	unsigned int flags;
};

/*
 * Inside the gate, EX on `dir`. 0: the name leads to *inode. -ESTALE: *inode is now what it leads to instead (not among
 * directories: for these the VFS has to start again).
 */
static int mxfs_rename_check(struct inode *dir, struct dentry *dentry, struct inode **inode, struct mxfs_attr *now)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	int err;

	now->fh.ino = 0;
	if (*inode == d_inode(dentry) && READ_ONCE(dentry->d_time) == mxfs_names_token(dir))
		return 0;
	err = sbi->be->lookup(sbi, &MXFS_I(dir)->fh, dentry->d_name.name, dentry->d_name.len, now);
	if (err == -ENOENT) {
		now->fh.ino = 0;
		err = 0;
	}
	if (err)
		return err;
	if (*inode ? now->fh.ino && mxfs_same(*inode, now) : !now->fh.ino)
		return 0;
	return -ESTALE;
}

/* Outside the locks: takes what the name leads to. */
static int mxfs_rename_follow(struct super_block *sb, struct inode **inode, const struct mxfs_attr *now)
{
	struct inode *other = now->fh.ino ? mxfs_iget(sb, now) : NULL;

	if (IS_ERR(other))
		return PTR_ERR(other);
	if ((*inode && S_ISDIR((*inode)->i_mode)) || (other && S_ISDIR(other->i_mode))) {
		iput(other);
		return -ESTALE;
	}
	iput(*inode);
	*inode = other;
	return 0;
}

static void mxfs_rename_done(const struct mxfs_rename *r, const struct mxfs_attr *odattr,
			     const struct mxfs_attr *ndattr)
{
	bool exchange = r->flags & RENAME_EXCHANGE;

	mxfs_lock_dirtied(&MXFS_I(r->odir)->lock);
	mxfs_lock_dirtied(&MXFS_I(r->ndir)->lock);
	mxfs_attr_apply(r->odir, odattr, MXFS_APPLY_REPLY);
	mxfs_attr_apply(r->ndir, ndattr, MXFS_APPLY_REPLY);
	mxfs_attr_forget(r->source); /* ctime, and ".." with it */
	mxfs_lock_moved(&MXFS_I(r->source)->lock, &MXFS_I(r->ndir)->lock);
	if (r->target && exchange)
		mxfs_lock_moved(&MXFS_I(r->target)->lock, &MXFS_I(r->odir)->lock);
	if (r->target && exchange)
		mxfs_attr_forget(r->target);
	else if (r->target && S_ISDIR(r->target->i_mode)) {
		mxfs_lock_dirtied(&MXFS_I(r->target)->lock);
		mxfs_inode_gone(r->target);
	}
	/* The VFS moves the dentries when we return; one that was wrong must not be believed where it arrives. */
	r->odentry->d_time = r->source == d_inode(r->odentry) ? mxfs_names_token(r->ndir) : 0;
	r->ndentry->d_time = exchange && r->target == d_inode(r->ndentry) ? mxfs_names_token(r->odir) : 0;
}

/* -EAGAIN: a name leads elsewhere by now, which has been followed. */
static int mxfs_rename_try(struct mxfs_rename *r)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(r->odir);
	struct mxfs_inode *od = MXFS_I(r->odir), *nd = MXFS_I(r->ndir);
	const struct qstr *oname = &r->odentry->d_name, *nname = &r->ndentry->d_name;
	bool exchange = r->flags & RENAME_EXCHANGE;
	struct mxfs_attr odattr = {}, ndattr = {}, onow = {}, nnow = {};
	struct mxfs_victim victim = {};
	struct mxfs_lock_req reqs[5];
	unsigned int flags = r->flags;
	int count = 0, err, ocheck = 0, ncheck = 0;

	if (r->odir != r->ndir && (S_ISDIR(r->source->i_mode) || (exchange && S_ISDIR(r->target->i_mode))))
		reqs[count++] = (struct mxfs_lock_req){ &sbi->rename_lock, MXFS_MODE_EX };
	reqs[count++] = (struct mxfs_lock_req){ &od->lock, MXFS_MODE_EX };
	reqs[count++] = (struct mxfs_lock_req){ &nd->lock, MXFS_MODE_EX };
	reqs[count++] = (struct mxfs_lock_req){ &MXFS_I(r->source)->lock, MXFS_MODE_EX };
	if (r->target)
		reqs[count++] = (struct mxfs_lock_req){ &MXFS_I(r->target)->lock, MXFS_MODE_EX };
	err = mxfs_locks_get(reqs, count);
	if (err)
		return err;

	err = mxfs_gate_enter(sbi);
	if (err)
		goto out;
	ocheck = mxfs_rename_check(r->odir, r->odentry, &r->source, &onow);
	ncheck = mxfs_rename_check(r->ndir, r->ndentry, &r->target, &nnow);
	mxfs_gate_leave(sbi);
	if (ocheck == -ESTALE && !onow.fh.ino)
		ocheck = -ENOENT;
	err = ocheck ? ocheck : ncheck;
	if (err)
		goto out;

	if (r->target && r->target != r->source && !exchange && !S_ISDIR(r->target->i_mode)) {
		err = mxfs_victim_begin(&victim, r->target);
		if (err)
			goto out;
		if (victim.park)
			flags |= MXFS_RENAME_PARK;
	}
	err = mxfs_gate_enter(sbi);
	if (err)
		goto out_victim;
	odattr.seen = mxfs_attr_seen(r->odir);
	err = sbi->be->rename(sbi, &od->fh, oname->name, oname->len, &nd->fh, nname->name, nname->len, flags, &odattr,
			      &ndattr);
	mxfs_ahead_changed(r->odir, oname);
	mxfs_ahead_changed(r->ndir, nname);
	mxfs_gate_leave(sbi);
	if (!err)
		mxfs_rename_done(r, &odattr, &ndattr);
out_victim:
	mxfs_victim_end(&victim, !err, NULL);
out:
	mxfs_locks_put(reqs, count);
	if (ocheck == -ESTALE)
		err = mxfs_rename_follow(r->odir->i_sb, &r->source, &onow);
	if (ncheck == -ESTALE && (!ocheck || (ocheck == -ESTALE && !err)))
		err = exchange && !nnow.fh.ino ? -ENOENT : mxfs_rename_follow(r->odir->i_sb, &r->target, &nnow);
	return !err && (ocheck || ncheck) ? -EAGAIN : err;
}

static int mxfs_rename(struct user_namespace *userns, struct inode *odir, struct dentry *odentry, struct inode *ndir,
		       struct dentry *ndentry, unsigned int flags)
{
	struct mxfs_rename r = { .odir = odir, .ndir = ndir, .odentry = odentry, .ndentry = ndentry, .flags = flags };
	int tries, err;

	if (flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE))
		return -EINVAL;
	if (ndentry->d_name.len > MXFS_NAME_LEN_MAX)
		return -ENAMETOOLONG;
	r.source = d_inode(odentry);
	ihold(r.source);
	r.target = d_inode(ndentry);
	if (r.target)
		ihold(r.target);
	for (tries = 0; tries < MXFS_RACE_TRIES; tries++) {
		err = mxfs_rename_try(&r);
		if (err != -EAGAIN)
			break;
	}
	if (err) {
		odentry->d_time = 0;
		ndentry->d_time = 0;
	}
	iput(r.source);
	iput(r.target);
	return err == -EAGAIN ? -ESTALE : err;
}

/* ------------------------------------------------------------------ reading */

static int mxfs_names_fill(struct inode *dir, struct mxfs_file *mf, u64 cookie)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	struct mxfs_inode *di = MXFS_I(dir);
	struct mxfs_dirent_sink sink = { .size = MXFS_NAMES_SIZE, .next = cookie };
	int err;

	if (!mf->names)
		mf->names = kvmalloc(MXFS_NAMES_SIZE, GFP_KERNEL);
	if (!mf->names)
		return -ENOMEM;
	sink.buf = mf->names;
	mf->names_used = 0;
	mf->names_at = 0;
	err = mxfs_op_begin(sbi, &di->lock, MXFS_MODE_PR);
	if (err)
		return err;
	mf->names_token = mxfs_names_token(dir);
	err = sbi->be->readdir(sbi, &di->fh, cookie, &sink);
	mxfs_op_end(sbi, &di->lock, MXFS_MODE_PR);
	if (err)
		return err == -ESTALE ? -ENOENT : err;
	if (sink.used > sink.size) {
		mxfs_err(sbi, "directory %llu: back end %s filled %zu bytes into %zu", di->fh.ino, sbi->be->name,
			 sink.used, sink.size);
		return -EIO;
	}
	mf->names_used = sink.used;
	mf->names_cookie = cookie;
	mf->names_eof = sink.eof;
	return 0;
}

/* What is left of the last buffer goes on being true while the lock was never lost. */
static bool mxfs_names_left(struct inode *dir, const struct mxfs_file *mf, loff_t pos)
{
	return mf->names && mf->names_at && mf->names_cookie == pos && mf->names_token == mxfs_names_token(dir) &&
	       mxfs_lock_is_cached(&MXFS_I(dir)->lock, MXFS_MODE_PR);
}

/* dir_emit() may fault: so no lock is held meanwhile. */
static int mxfs_iterate(struct file *file, struct dir_context *ctx)
{
	struct inode *dir = file_inode(file);
	struct mxfs_file *mf = file->private_data;
	const struct mxfs_wire_dirent *entry;
	size_t left, name_len;
	int err;

	for (;;) {
		if (!mxfs_names_left(dir, mf, ctx->pos) || (mf->names_at >= mf->names_used && !mf->names_eof)) {
			err = mxfs_names_fill(dir, mf, ctx->pos);
			if (err)
				return err;
			if (!mf->names_used)
				return 0;
		}
		while (mf->names_at < mf->names_used) {
			entry = mf->names + mf->names_at;
			left = mf->names_used - mf->names_at;
			name_len = left < sizeof(*entry) ? 0 : le16_to_cpu(entry->name_len);
			if (!name_len || le16_to_cpu(entry->reclen) < sizeof(*entry) + name_len ||
			    le16_to_cpu(entry->reclen) > left) {
				mxfs_err(mxfs_inode_sbi(dir), "directory %lu: malformed entry behind cookie %lld",
					 dir->i_ino, ctx->pos);
				mf->names_used = 0;
				return -EIO;
			}
			if (!dir_emit(ctx, (const char *)(entry + 1), name_len, le64_to_cpu(entry->ino), entry->type))
				return 0;
			ctx->pos = le64_to_cpu(entry->cookie);
			mf->names_cookie = ctx->pos;
			mf->names_at += le16_to_cpu(entry->reclen);
		}
		if (mf->names_eof)
			return 0;
	}
}

/*
 * A symlink's target never changes while (inode, generation) lives, so it is kept in i_link once it has been
 * read: that a name leads to this inode is under the parent's lock anyhow.
 */
static const char *mxfs_get_link(struct dentry *dentry, struct inode *inode, struct delayed_call *done)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	char *buf, *link;
	int len;

	if (!dentry)
		return ERR_PTR(-ECHILD);
	buf = kmalloc(PATH_MAX, GFP_KERNEL);
	if (!buf)
		return ERR_PTR(-ENOMEM);
	len = mxfs_op_begin(sbi, &mi->lock, MXFS_MODE_PR);
	if (!len) {
		len = sbi->be->readlink(sbi, &mi->fh, buf, PATH_MAX - 1);
		mxfs_op_end(sbi, &mi->lock, MXFS_MODE_PR);
	}
	if (len <= 0 || len >= PATH_MAX) {
		kfree(buf);
		return ERR_PTR(len < 0 ? len : -EUCLEAN);
	}
	link = kmemdup_nul(buf, len, GFP_KERNEL);
	kfree(buf);
	if (!link)
		return ERR_PTR(-ENOMEM);
	if (cmpxchg_release(&inode->i_link, NULL, link))
		kfree(link); /* somebody else was as fast */
	return READ_ONCE(inode->i_link);
}

const struct inode_operations mxfs_dir_inode_ops = {
	.lookup = mxfs_lookup,
	.atomic_open = mxfs_atomic_open,
	.create = mxfs_create,
	.link = mxfs_link,
	.unlink = mxfs_unlink,
	.symlink = mxfs_symlink,
	.mkdir = mxfs_mkdir,
	.rmdir = mxfs_rmdir,
	.mknod = mxfs_mknod,
	.rename = mxfs_rename,
	.permission = mxfs_permission,
	.getattr = mxfs_getattr,
	.setattr = mxfs_setattr,
	.listxattr = mxfs_listxattr,
	.get_acl = mxfs_get_acl,
};

const struct file_operations mxfs_dir_fops = {
	.owner = THIS_MODULE,
	.open = mxfs_file_open,
	.release = mxfs_file_release,
	.iterate_shared = mxfs_iterate,
	.read = generic_read_dir,
	.llseek = generic_file_llseek,
	.fsync = mxfs_file_fsync,
	.lock = mxfs_file_lock,
	.flock = mxfs_file_flock,
	.setlease = simple_nosetlease,
};

const struct inode_operations mxfs_symlink_inode_ops = {
	.get_link = mxfs_get_link,
	.getattr = mxfs_getattr,
	.setattr = mxfs_setattr,
	.listxattr = mxfs_listxattr,
};

const struct inode_operations mxfs_special_inode_ops = {
	.permission = mxfs_permission,
	.getattr = mxfs_getattr,
	.setattr = mxfs_setattr,
	.listxattr = mxfs_listxattr,
	.get_acl = mxfs_get_acl,
};
