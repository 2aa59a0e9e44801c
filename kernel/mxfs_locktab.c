// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: flock and fcntl locks, decided on the holder.
 *
 * The locks themselves stand in the kernel's own lists of the lower inode (fs/locks.c keeps ranges, splits and merges them).
 * Each owner, (node, its owner number, flock or fcntl) on one inode, is an object here with a lower file of its own: flock
 * tells owners apart by their file, fcntl by the object's address. Nobody else can reach these inodes' lists, the XFS is hidden.
 *
 * Nothing ever sleeps in fs/locks.c: a request that cannot be granted and wants to wait is put on the inode's own queue, and
 * the queue is tried again, in order, after each change on that inode. So one mechanism serves processes of this node and
 * requests of members, a wait can be cancelled or ended by a role change, and a grant is an answer, not a wake-up. A request
 * that can be granted is granted past those that wait, as fs/locks.c does it.
 *
 * Deadlock of fcntl waiters (EDEADLK): an owner waits for the owner of the first lock in its way; that chain is followed from
 * queue to queue before a request is queued, over nodes, up to the same depth as in fs/locks.c.
 *
 * One mutex per mount: lock calls are rare beside everything else.
 *
 * Limits: owners and waits per mount; beyond them ENOLCK.
 *
 * The locks live with the holder's mount. When the holder changes, waits are answered with "ask again", and every node tells
 * the new holder what its processes hold (mxfs_flock_reclaim) before the gates open.
 */
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/slab.h>

#include "mxfs_lower.h"

#define MXFS_LOCK_OWNERS_MAX 65536
#define MXFS_LOCK_WAITS_MAX 16384
#define MXFS_DEADLOCK_DEPTH_MAX 10
#define MXFS_LOCKTAB_HASH_BITS 8

struct lock_inode {
	struct hlist_node hash;
	struct mxfs_lower_node *node; /* pinned */
	struct list_head owners;
	struct list_head waits; /* in the order they came */
};

struct lock_owner {
	struct list_head list; /* of the inode */
	struct lock_inode *li;
	struct file *file;
	u32 node, incarnation;
	u64 owner;
	bool flock;
	int waits;
};

struct lock_wait {
	struct list_head list; /* of the inode; when ended, of the ended */
	struct lock_owner *owner;
	struct mxfs_locktab_request req;
	int error; /* when ended */
};

struct mxfs_locktab {
	struct mutex mutex;
	DECLARE_HASHTABLE(inodes, MXFS_LOCKTAB_HASH_BITS);
	unsigned int owner_count, wait_count;
};

/* ---------------------------------------------------------------- inodes and owners */

static struct lock_inode *find_inode(struct mxfs_locktab *tab, const struct mxfs_fh *fh)
{
	struct lock_inode *li;

	hash_for_each_possible(tab->inodes, li, hash, fh->ino) {
		if (li->node->fh.ino == fh->ino && li->node->fh.gen == fh->gen)
			return li;
	}
	return NULL;
}

static struct lock_inode *get_inode(struct mxfs_lower *lower, const struct mxfs_fh *fh)
{
	struct lock_inode *li = find_inode(lower->locks, fh);
	struct mxfs_lower_node *node;

	if (li)
		return li;
	node = mxfs_lower_node_get(lower, fh);
	if (IS_ERR(node))
		return ERR_CAST(node);
	li = kzalloc(sizeof(*li), GFP_KERNEL);
	if (!li) {
		mxfs_lower_node_put(lower, node);
		return ERR_PTR(-ENOMEM);
	}
	li->node = node;
	INIT_LIST_HEAD(&li->owners);
	INIT_LIST_HEAD(&li->waits);
	hash_add(lower->locks->inodes, &li->hash, fh->ino);
	return li;
}

static void trim_inode(struct mxfs_lower *lower, struct lock_inode *li)
{
	if (!list_empty(&li->owners))
		return;
	hash_del(&li->hash);
	mxfs_lower_node_put(lower, li->node);
	kfree(li);
}

static struct lock_owner *find_owner(struct lock_inode *li, const struct mxfs_locktab_request *req)
{
	struct lock_owner *owner;

	list_for_each_entry(owner, &li->owners, list) {
		if (owner->node == req->lk.node && owner->incarnation == req->incarnation &&
		    owner->owner == req->lk.owner && owner->flock == req->lk.flock)
			return owner;
	}
	return NULL;
}

static struct lock_owner *get_owner(struct mxfs_lower *lower, struct lock_inode *li,
				    const struct mxfs_locktab_request *req)
{
	struct path path = { .mnt = lower->mnt, .dentry = li->node->dentry };
	struct lock_owner *owner = find_owner(li, req);
	int flags = O_LARGEFILE | O_NOATIME | O_RDONLY;

	if (owner)
		return owner;
	if (lower->locks->owner_count >= MXFS_LOCK_OWNERS_MAX)
		return ERR_PTR(-ENOLCK);
	if (d_is_dir(path.dentry))
		flags |= O_DIRECTORY;
	else if (!d_is_reg(path.dentry))
		return ERR_PTR(-EINVAL); /* locks on devices and pipes are each node's own */
	owner = kzalloc(sizeof(*owner), GFP_KERNEL);
	if (!owner)
		return ERR_PTR(-ENOMEM);
	owner->file = dentry_open(&path, flags, lower->kcred);
	if (IS_ERR(owner->file)) {
		struct file *failed = owner->file;

		kfree(owner);
		return ERR_CAST(failed);
	}
	owner->li = li;
	owner->node = req->lk.node;
	owner->incarnation = req->incarnation;
	owner->owner = req->lk.owner;
	owner->flock = req->lk.flock;
	list_add(&owner->list, &li->owners);
	lower->locks->owner_count++;
	return owner;
}

/* Whether fs/locks.c has anything of this owner on the inode. */
static bool holds_any(const struct lock_owner *owner)
{
	struct file_lock_context *ctx = locks_inode_context(file_inode(owner->file));
	struct file_lock *fl;
	bool found = false;

	if (!ctx)
		return false;
	spin_lock(&ctx->flc_lock);
	list_for_each_entry(fl, owner->flock ? &ctx->flc_flock : &ctx->flc_posix, fl_list) {
		if (fl->fl_file == owner->file) {
			found = true;
			break;
		}
	}
	spin_unlock(&ctx->flc_lock);
	return found;
}

static void free_owner(struct mxfs_lower *lower, struct lock_owner *owner)
{
	list_del(&owner->list);
	lower->locks->owner_count--;
	mxfs_lower_close(lower, owner->file);
	kfree(owner);
}

static void trim_owner(struct mxfs_lower *lower, struct lock_owner *owner)
{
	if (!owner->waits && !holds_any(owner))
		free_owner(lower, owner);
}

/* ---------------------------------------------------------------- fs/locks.c */

static void set_file_lock(struct file_lock *fl, const struct lock_owner *owner, const struct mxfs_lk *lk)
{
	locks_init_lock(fl);
	fl->fl_file = owner->file;
	fl->fl_pid = lk->pid;
	fl->fl_type = lk->type;
	if (owner->flock) {
		fl->fl_flags = FL_FLOCK;
		fl->fl_owner = owner->file;
		fl->fl_start = 0;
		fl->fl_end = OFFSET_MAX;
	} else {
		fl->fl_flags = FL_POSIX;
		fl->fl_owner = (fl_owner_t)owner;
		fl->fl_start = lk->start;
		fl->fl_end = lk->end;
	}
}

/* Without waiting. `in_the_way` (fcntl): the owner of the first conflicting lock. */
static int try_lock(const struct lock_owner *owner, const struct mxfs_lk *lk, const struct lock_owner **in_the_way)
{
	struct file_lock fl, conflict;
	int err;

	set_file_lock(&fl, owner, lk);
	if (owner->flock)
		return locks_lock_inode_wait(file_inode(owner->file), &fl);
	locks_init_lock(&conflict);
	err = posix_lock_file(owner->file, &fl, &conflict);
	if (err == -EAGAIN && in_the_way)
		*in_the_way = (const struct lock_owner *)conflict.fl_owner;
	return err;
}

/* They go here and now; the file's closing, later, finds none left. */
static void drop_locks(struct lock_owner *owner)
{
	struct mxfs_lk all = { .type = F_UNLCK, .end = OFFSET_MAX };
	int err = try_lock(owner, &all, NULL);

	/* Releasing everything needs no memory in fs/locks.c. */
	WARN_ON_ONCE(err);
}

/* ---------------------------------------------------------------- waiting */

static bool same_process(const struct lock_owner *a, const struct lock_owner *b)
{
	return a->node == b->node && a->incarnation == b->incarnation && a->owner == b->owner && !a->flock && !b->flock;
}

/* For whom an fcntl owner waits somewhere, or NULL. */
static const struct lock_owner *waits_for(struct mxfs_locktab *tab, const struct lock_owner *who)
{
	const struct lock_owner *in_the_way = NULL;
	struct file_lock fl;
	struct lock_inode *li;
	struct lock_wait *wait;
	int bucket;

	hash_for_each(tab->inodes, bucket, li, hash) {
		list_for_each_entry(wait, &li->waits, list) {
			if (!same_process(wait->owner, who))
				continue;
			set_file_lock(&fl, wait->owner, &wait->req.lk);
			posix_test_lock(wait->owner->file, &fl);
			if (fl.fl_type == F_UNLCK)
				continue;
			in_the_way = (const struct lock_owner *)fl.fl_owner;
			return in_the_way;
		}
	}
	return NULL;
}

static bool would_deadlock(struct mxfs_locktab *tab, const struct lock_owner *asking, const struct lock_owner *in_the_way)
{
	int depth;

	for (depth = 0; in_the_way && depth < MXFS_DEADLOCK_DEPTH_MAX; depth++) {
		if (same_process(in_the_way, asking))
			return true;
		in_the_way = waits_for(tab, in_the_way);
	}
	return false;
}

/* Takes a wait out of its queue; `done` is called by finish(), when the mutex is released. */
static void end_wait(struct mxfs_locktab *tab, struct lock_wait *wait, int error, struct list_head *ended)
{
	wait->error = error;
	wait->owner->waits--;
	tab->wait_count--;
	list_move_tail(&wait->list, ended);
}

static void finish(struct list_head *ended)
{
	struct lock_wait *wait, *next;

	list_for_each_entry_safe(wait, next, ended, list) {
		wait->req.done(wait->req.arg, wait->error);
		kfree(wait);
	}
}

/* After a change on this inode: grants what can be granted, in order; then lets go of owners that have nothing. */
static void settle(struct mxfs_lower *lower, struct lock_inode *li, struct list_head *ended)
{
	struct lock_wait *wait, *next;
	struct lock_owner *owner, *next_owner;
	int err;

	list_for_each_entry_safe(wait, next, &li->waits, list) {
		err = try_lock(wait->owner, &wait->req.lk, NULL);
		if (err != -EAGAIN)
			end_wait(lower->locks, wait, err, ended);
	}
	list_for_each_entry_safe(owner, next_owner, &li->owners, list)
		trim_owner(lower, owner);
	trim_inode(lower, li);
}

/* ---------------------------------------------------------------- what others call */

int mxfs_locktab_init(struct mxfs_lower *lower)
{
	struct mxfs_locktab *tab = kzalloc(sizeof(*tab), GFP_KERNEL);

	if (!tab)
		return -ENOMEM;
	mutex_init(&tab->mutex);
	hash_init(tab->inodes);
	lower->locks = tab;
	return 0;
}

static int check(const struct mxfs_lk *lk)
{
	if (lk->type != F_RDLCK && lk->type != F_WRLCK && lk->type != F_UNLCK)
		return -EINVAL;
	if (!lk->flock && (lk->start > lk->end || lk->end > OFFSET_MAX))
		return -EINVAL;
	return 0;
}

int mxfs_locktab_set(struct mxfs_lower *lower, const struct mxfs_locktab_request *req)
{
	struct mxfs_locktab *tab = lower->locks;
	const struct lock_owner *in_the_way = NULL;
	struct lock_owner *owner;
	struct lock_inode *li;
	struct lock_wait *wait = NULL;
	LIST_HEAD(ended);
	int err = check(&req->lk);

	if (err)
		return err;
	mutex_lock(&tab->mutex);
	if (req->lk.type == F_UNLCK) {
		/* Nothing is opened or kept for an owner that has nothing. */
		li = find_inode(tab, &req->fh);
		owner = li ? find_owner(li, req) : NULL;
		if (owner) {
			err = try_lock(owner, &req->lk, NULL);
			settle(lower, li, &ended);
		}
		goto out;
	}
	li = get_inode(lower, &req->fh);
	if (IS_ERR(li)) {
		err = PTR_ERR(li);
		goto out;
	}
	owner = get_owner(lower, li, req);
	if (IS_ERR(owner)) {
		err = PTR_ERR(owner);
		trim_inode(lower, li);
		goto out;
	}
	err = try_lock(owner, &req->lk, &in_the_way);
	if (err == -EAGAIN && req->lk.wait) {
		if (!owner->flock && would_deadlock(tab, owner, in_the_way))
			err = -EDEADLK;
		else if (tab->wait_count >= MXFS_LOCK_WAITS_MAX)
			err = -ENOLCK;
		else
			wait = kzalloc(sizeof(*wait), GFP_KERNEL);
		if (wait) {
			wait->owner = owner;
			wait->req = *req;
			owner->waits++;
			tab->wait_count++;
			list_add_tail(&wait->list, &li->waits);
			err = -EINPROGRESS;
		} else if (err == -EAGAIN) {
			err = -ENOMEM;
		}
	}
	/*
	 * Also when nothing was granted: a flock that changes its type gives the old one up first. This may end the new wait as
	 * well; then `done` answers it, as it does any other.
	 */
	settle(lower, li, &ended);
out:
	mutex_unlock(&tab->mutex);
	finish(&ended);
	return err;
}

int mxfs_locktab_get(struct mxfs_lower *lower, const struct mxfs_fh *fh, struct mxfs_lk *lk)
{
	struct mxfs_locktab *tab = lower->locks;
	struct lock_owner asking = { .node = lk->node, .owner = lk->owner };
	const struct lock_owner *in_the_way;
	struct lock_owner *owner;
	struct lock_inode *li;
	struct file_lock fl;
	int err = check(lk);

	if (err)
		return err;
	if (lk->flock)
		return -EINVAL;
	mutex_lock(&tab->mutex);
	li = find_inode(tab, fh);
	if (!li) {
		lk->type = F_UNLCK;
		goto out;
	}
	/* The owner's own locks are not in its way, if it has any. */
	list_for_each_entry(owner, &li->owners, list) {
		if (owner->node == lk->node && owner->owner == lk->owner && !owner->flock) {
			set_file_lock(&fl, owner, lk);
			goto test;
		}
	}
	owner = list_first_entry(&li->owners, struct lock_owner, list);
	asking.file = owner->file; /* any file of that inode */
	set_file_lock(&fl, &asking, lk);
test:
	posix_test_lock(owner->file, &fl);
	lk->type = fl.fl_type;
	if (fl.fl_type != F_UNLCK) {
		in_the_way = (const struct lock_owner *)fl.fl_owner;
		lk->node = in_the_way->node;
		lk->pid = fl.fl_pid;
		lk->start = fl.fl_start;
		lk->end = fl.fl_end;
	}
out:
	mutex_unlock(&tab->mutex);
	return 0;
}

static bool wait_is(const struct lock_wait *wait, u32 node, u32 incarnation, u64 seq)
{
	return wait->req.lk.node == node && wait->req.incarnation == incarnation && wait->req.seq == seq;
}

static struct lock_wait *find_wait(struct mxfs_locktab *tab, u32 node, u32 incarnation, u64 seq)
{
	struct lock_inode *li;
	struct lock_wait *wait;
	int bucket;

	hash_for_each(tab->inodes, bucket, li, hash) {
		list_for_each_entry(wait, &li->waits, list) {
			if (wait_is(wait, node, incarnation, seq))
				return wait;
		}
	}
	return NULL;
}

bool mxfs_locktab_is_waiting(struct mxfs_lower *lower, u32 node, u32 incarnation, u64 seq)
{
	bool found;

	mutex_lock(&lower->locks->mutex);
	found = find_wait(lower->locks, node, incarnation, seq) != NULL;
	mutex_unlock(&lower->locks->mutex);
	return found;
}

bool mxfs_locktab_cancel(struct mxfs_lower *lower, u32 node, u32 incarnation, u64 seq)
{
	struct mxfs_locktab *tab = lower->locks;
	struct lock_wait *wait;
	struct lock_inode *li;
	LIST_HEAD(ended);

	mutex_lock(&tab->mutex);
	wait = find_wait(tab, node, incarnation, seq);
	if (wait) {
		li = wait->owner->li;
		end_wait(tab, wait, -EINTR, &ended);
		settle(lower, li, &ended);
	}
	mutex_unlock(&tab->mutex);
	finish(&ended);
	return wait != NULL;
}

void mxfs_locktab_drop_node(struct mxfs_lower *lower, u32 node, u32 incarnation)
{
	struct mxfs_locktab *tab = lower->locks;
	struct lock_owner *owner, *next_owner;
	struct lock_wait *wait, *next;
	struct hlist_node *tmp;
	struct lock_inode *li;
	LIST_HEAD(ended);
	bool changed;
	int bucket;

	mutex_lock(&tab->mutex);
	hash_for_each_safe(tab->inodes, bucket, tmp, li, hash) {
		changed = false;
		list_for_each_entry_safe(wait, next, &li->waits, list) {
			if (wait->owner->node == node && wait->owner->incarnation == incarnation) {
				end_wait(tab, wait, -EIO, &ended);
				changed = true;
			}
		}
		list_for_each_entry_safe(owner, next_owner, &li->owners, list) {
			if (owner->node == node && owner->incarnation == incarnation) {
				drop_locks(owner);
				changed = true;
			}
		}
		if (changed)
			settle(lower, li, &ended);
	}
	mutex_unlock(&tab->mutex);
	finish(&ended);
}

static void end_all_waits(struct mxfs_locktab *tab, int error, struct list_head *ended)
{
	struct lock_wait *wait, *next;
	struct lock_inode *li;
	int bucket;

	hash_for_each(tab->inodes, bucket, li, hash) {
		list_for_each_entry_safe(wait, next, &li->waits, list)
			end_wait(tab, wait, error, ended);
	}
}

void mxfs_locktab_end_waits(struct mxfs_lower *lower, int error)
{
	struct mxfs_locktab *tab = lower->locks;
	struct hlist_node *tmp;
	struct lock_inode *li;
	LIST_HEAD(ended);
	int bucket;

	mutex_lock(&tab->mutex);
	end_all_waits(tab, error, &ended);
	hash_for_each_safe(tab->inodes, bucket, tmp, li, hash)
		settle(lower, li, &ended);
	mutex_unlock(&tab->mutex);
	finish(&ended);
}

void mxfs_locktab_destroy(struct mxfs_lower *lower)
{
	struct mxfs_locktab *tab = lower->locks;
	struct lock_owner *owner, *next;
	struct hlist_node *tmp;
	struct lock_inode *li;
	LIST_HEAD(ended);
	int bucket;

	mutex_lock(&tab->mutex);
	end_all_waits(tab, MXFS_LOCKTAB_RETRY, &ended);
	hash_for_each_safe(tab->inodes, bucket, tmp, li, hash) {
		list_for_each_entry_safe(owner, next, &li->owners, list) {
			drop_locks(owner);
			free_owner(lower, owner);
		}
		trim_inode(lower, li);
	}
	mutex_unlock(&tab->mutex);
	finish(&ended);
	lower->locks = NULL;
	kfree(tab);
}
