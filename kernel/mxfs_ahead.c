// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: names, locks and attributes in portions, for lookups to come.
 *
 * Who looks at a second thing in a directory that nothing cached answers will look at more of them (find, ls -l, tar, a shell's
 * pattern). So the third miss, or the second of who has just gone through another directory, fetches a portion of it:
 *
 *	1. names with their handles, under PR of the directory       one message to the holder (NAMES)
 *	2. PR of their inodes, all in one message, and their grants   one to each master
 *	3. attributes and first extents of those that were granted    one to the holder (GETATTRS)
 *
 * What is learned is true by the same rules as what is asked for one by one. A name is kept in the directory's table for as long as
 * the directory's token (generation of its lock) stays the same, and handed out by the lookup that wants it. Attributes are asked
 * for when the lock is there, and taken if its generation, and attr_seq, are still what they were then (mxfs_attr_given); an extent by
 * the same rules (mxfs_map_given). Locks are asked for ahead, never used here, and no lock is held while an answer is waited for.
 *
 * On the holder itself only locks are messages: steps 1 and 2 alone.
 *
 * When a portion has been used up, the next one is followed by the names and the requests for locks of that behind it, before the attributes
 * are fetched: its locks are granted while this one is being used.
 *
 * Portions begin with MXFS_AHEAD_FIRST names (MXFS_AHEAD_FIRST_LUCKY if the last one was of use) and grow to MXFS_NAMES_MAX.
 * One that does not have what was missed in it was of no use; after MXFS_AHEAD_USELESS of them in a row the directory is left alone for MXFS_AHEAD_PAUSE_MS. Names of files that the holder
 * has open for writing come without their locks. One process of a node fetches for a directory at a time; others go their own way.
 *
 * Limits: MXFS_AHEAD_NAMES_MAX names kept of a directory, MXFS_AHEAD_MOUNT_MAX of a mount; an eighth of the lock cache stays free.
 * Beyond them nothing is fetched ahead. The next grant is waited for MXFS_AHEAD_WAIT_MS at most, all of
 * them MXFS_AHEAD_WAIT_ALL_MS: what has not come by then is left to its user.
 *
 * Locks: a->mutex (tried, never waited for) -> DLM locks -> gate; a->lock is innermost.
 *
 * Known weakness: a file that a third node (neither this one nor the holder) is writing to is recalled from there, though perhaps
 * nobody here looks at it.
 */
#include <linux/hashtable.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/stringhash.h>

#include "mxfs_fsop_codec.h"
#include "mxfs_vfs.h"

#define MXFS_AHEAD_MISSES 2 /* so many before a portion is fetched; one if the last portion of the mount was of use */
#define MXFS_AHEAD_FIRST 64
#define MXFS_AHEAD_FIRST_LUCKY 256
#define MXFS_AHEAD_GROWTH 8
#define MXFS_AHEAD_USELESS 2
#define MXFS_AHEAD_LEFT 4 /* a portion of which no more than this part is left is used up */
#define MXFS_AHEAD_PAUSE_MS 2000
#define MXFS_AHEAD_BUSY HZ	  /* jiffies: a directory that is lost to other nodes again so soon is left alone as well */
#define MXFS_AHEAD_WAIT_MS 2000  /* for the next grant, */
#define MXFS_AHEAD_WAIT_ALL_MS 10000 /* and for all of a portion */
#define MXFS_AHEAD_NAMES_MAX 4096
#define MXFS_AHEAD_MOUNT_MAX 65536
#define MXFS_AHEAD_HASH_BITS 6

static unsigned int ahead_max = MXFS_NAMES_MAX;
module_param(ahead_max, uint, 0644);
MODULE_PARM_DESC(ahead_max, "most names of a directory that are fetched at once for lookups to come (default and limit: 512; 0: none)");

static bool ahead_overlap = true;
module_param(ahead_overlap, bool, 0644);
MODULE_PARM_DESC(ahead_overlap, "whether locks of the names behind a portion are asked for before it is used, where the one before was used up (default: Y)");

/* Names as the back end has given them. */
struct ahead_list {
	struct mxfs_dirent_sink sink; /* no buffer: none */
	u64 cookie;	     /* where they begin */
	unsigned long token; /* of the directory then, */
	u64 changes;	     /* and how often this node had changed it */
};

struct mxfs_ahead {
	struct mutex mutex; /* whoever fetches; next */
	struct ahead_list next; /* the portion to come, whose locks have been asked for */
	u32 next_max;
	spinlock_t lock;    /* everything below */
	unsigned long token; /* of the directory's names; of another one all is void */
	DECLARE_HASHTABLE(names, MXFS_AHEAD_HASH_BITS);
	unsigned int count;
	unsigned int misses, useless;
	u64 missed;  /* the inode that was missed last: looking at one again and again is no reason to fetch others */
	u64 changes; /* by this node's own operations: rises with each */
	u32 portion;
	u32 added;  /* names that the last one has brought */
	u64 cookie; /* where the next portion begins */
	bool eof;
	unsigned long pause_until; /* jiffies; 0: no pause */
	unsigned long token_since; /* jiffies */
};

struct ahead_name {
	struct hlist_node hash;
	struct mxfs_fh fh;
	umode_t type;
	u8 len;
	char name[];
};

/* One inode of a portion on its way. */
struct ahead_child {
	struct inode *inode; /* pinned */
	u64 gen, attr_seq;
	struct mxfs_map_ticket map;
	bool want_map;
};

struct ahead_portion {
	struct ahead_list list;
	struct ahead_child children[MXFS_NAMES_MAX];
	unsigned int count;
	struct mxfs_handle handles[MXFS_NAMES_MAX];
	u32 asked[MXFS_NAMES_MAX]; /* which child a handle is of */
	struct mxfs_wire_brief briefs[MXFS_NAMES_MAX];
};

/* ---------------------------------------------------------------- the table of names (under a->lock) */

static u32 ahead_hash(const char *name, u32 len)
{
	return full_name_hash(NULL, name, len);
}

static void ahead_drop_names(struct mxfs_sb_info *sbi, struct mxfs_ahead *a)
{
	struct ahead_name *n;
	struct hlist_node *next;
	int bucket;

	if (!a->count)
		return;
	hash_for_each_safe(a->names, bucket, next, n, hash) {
		hash_del(&n->hash);
		kfree(n);
	}
	atomic_sub(a->count, &sbi->ahead_names);
	a->count = 0;
}

/* Under a->mutex, or at the end. */
static void ahead_drop_next(struct mxfs_sb_info *sbi, struct mxfs_ahead *a)
{
	if (!a->next.sink.buf)
		return;
	kvfree(a->next.sink.buf);
	a->next.sink.buf = NULL;
	atomic_sub(a->next_max, &sbi->ahead_names);
}

/* All that is known was of another state of the directory. */
static void ahead_restart(struct mxfs_sb_info *sbi, struct mxfs_ahead *a, unsigned long token)
{
	ahead_drop_names(sbi, a);
	a->token = token;
	a->misses = 0;
	a->missed = 0;
	a->useless = 0;
	a->portion = READ_ONCE(sbi->ahead_lucky) ? MXFS_AHEAD_FIRST_LUCKY : MXFS_AHEAD_FIRST;
	a->added = 0;
	a->cookie = 0;
	a->eof = false;
	a->pause_until = 0;
}

static struct ahead_name *ahead_search(struct mxfs_ahead *a, const char *name, u32 len)
{
	struct ahead_name *n;

	hash_for_each_possible(a->names, n, hash, ahead_hash(name, len)) {
		if (n->len == len && !memcmp(n->name, name, len))
			return n;
	}
	return NULL;
}

/* Takes `n` over. */
static void ahead_add(struct mxfs_sb_info *sbi, struct mxfs_ahead *a, struct ahead_name *n)
{
	if (a->count >= MXFS_AHEAD_NAMES_MAX || ahead_search(a, n->name, n->len)) {
		kfree(n);
		return;
	}
	hash_add(a->names, &n->hash, ahead_hash(n->name, n->len));
	a->count++;
	atomic_inc(&sbi->ahead_names);
}

/* The caller's from now on. */
static void ahead_take_out(struct mxfs_sb_info *sbi, struct mxfs_ahead *a, struct ahead_name *n)
{
	hash_del(&n->hash);
	a->count--;
	atomic_dec(&sbi->ahead_names);
}

static struct mxfs_ahead *ahead_of(struct inode *dir)
{
	return READ_ONCE(MXFS_VN(dir)->ahead);
}

/* NULL: no memory, which is no error here. */
static struct mxfs_ahead *ahead_make(struct inode *dir)
{
	struct mxfs_ahead *a = ahead_of(dir);

	if (a)
		return a;
	a = kzalloc(sizeof(*a), GFP_NOFS | __GFP_NOWARN); /* inside the gate */
	if (!a)
		return NULL;
	mutex_init(&a->mutex);
	spin_lock_init(&a->lock);
	hash_init(a->names);
	a->portion = MXFS_AHEAD_FIRST;
	if (cmpxchg_release(&MXFS_VN(dir)->ahead, NULL, a))
		kfree(a);
	return ahead_of(dir);
}

bool mxfs_ahead_find(struct inode *dir, const struct qstr *name, struct mxfs_attr *attr)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	struct mxfs_ahead *a = ahead_of(dir);
	struct ahead_name *n = NULL;

	if (!a || !READ_ONCE(a->count))
		return false;
	spin_lock(&a->lock);
	if (a->token == mxfs_names_token(dir) && mxfs_gate_lease_valid(sbi))
		n = ahead_search(a, name->name, name->len);
	if (n) /* the dentry has it from now on */
		ahead_take_out(sbi, a, n);
	spin_unlock(&a->lock);
	if (!n)
		return false;
	/* What an inode that is new here has to be; its attributes are another matter. */
	memset(attr, 0, sizeof(*attr));
	attr->fh = n->fh;
	attr->mode = n->type;
	attr->nlink = 1;
	kfree(n);
	mxfs_count(sbi, MXFS_COUNT_AHEAD_NAME);
	return true;
}

void mxfs_ahead_changed(struct inode *dir, const struct qstr *name)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	struct mxfs_ahead *a = ahead_of(dir);
	struct ahead_name *n;

	if (!a)
		return;
	spin_lock(&a->lock);
	a->changes++;
	n = ahead_search(a, name->name, name->len);
	if (n)
		ahead_take_out(sbi, a, n);
	spin_unlock(&a->lock);
	kfree(n);
}

/* `ino` was not cached, and is there. */
static void ahead_missed(struct inode *dir, u64 ino)
{
	unsigned long token = mxfs_names_token(dir);
	struct mxfs_ahead *a;
	bool busy;

	a = mxfs_lock_ask_room(mxfs_inode_sbi(dir), 0) ? ahead_make(dir) : NULL;
	if (!a)
		return;
	spin_lock(&a->lock);
	if (a->token != token) {
		busy = a->token_since && time_before(jiffies, a->token_since + MXFS_AHEAD_BUSY);
		ahead_restart(mxfs_inode_sbi(dir), a, token);
		a->token_since = jiffies | 1;
		/* Others are changing it: locks of what is in it would only have to be given back. */
		if (busy)
			a->pause_until = (jiffies + msecs_to_jiffies(MXFS_AHEAD_PAUSE_MS)) | 1;
	}
	a->misses += a->missed != ino;
	a->missed = ino;
	spin_unlock(&a->lock);
}

void mxfs_ahead_found(struct inode *dir, const struct mxfs_attr *attr)
{
	ahead_missed(dir, attr->fh.ino);
}

void mxfs_ahead_forget(struct inode *dir)
{
	struct mxfs_ahead *a = ahead_of(dir);

	if (!a)
		return;
	spin_lock(&a->lock);
	ahead_restart(mxfs_inode_sbi(dir), a, 0);
	spin_unlock(&a->lock);
}

void mxfs_ahead_moved(struct inode *dir)
{
	struct mxfs_ahead *a = ahead_of(dir);

	if (!a)
		return;
	spin_lock(&a->lock);
	a->changes++; /* what is on its way is not taken */
	ahead_restart(mxfs_inode_sbi(dir), a, 0);
	spin_unlock(&a->lock);
}

void mxfs_ahead_destroy(struct inode *dir)
{
	struct mxfs_ahead *a = ahead_of(dir);

	if (!a)
		return;
	ahead_drop_names(mxfs_inode_sbi(dir), a);
	ahead_drop_next(mxfs_inode_sbi(dir), a);
	MXFS_VN(dir)->ahead = NULL;
	kfree(a);
}

/* ---------------------------------------------------------------- one portion */

/* Whether the last misses are worth a portion; *cookie and *max: which. */
static bool ahead_wants(struct inode *dir, struct mxfs_ahead *a, const struct inode *wanted, u64 *cookie, u32 *max)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	bool wants;

	spin_lock(&a->lock);
	if (a->pause_until && time_after(jiffies, a->pause_until)) {
		a->pause_until = 0;
		a->useless = 0;
		a->portion = MXFS_AHEAD_FIRST;
	}
	wants = a->misses >= (READ_ONCE(sbi->ahead_lucky) ? 1 : MXFS_AHEAD_MISSES) && a->token == mxfs_names_token(dir) && !a->pause_until &&
		(!wanted || a->missed != wanted->i_ino);
	*max = min3(a->portion, READ_ONCE(ahead_max), (u32)MXFS_NAMES_MAX);
	*cookie = a->eof ? 0 : a->cookie;
	wants = wants && a->count + *max <= MXFS_AHEAD_NAMES_MAX;
	spin_unlock(&a->lock);
	return wants && *max && atomic_read(&sbi->ahead_names) + *max <= MXFS_AHEAD_MOUNT_MAX && mxfs_lock_ask_room(sbi, *max);
}

/* Puts one entry's name into the table and its inode into the portion. True: it is what was missed. */
static bool ahead_take(struct inode *dir, struct mxfs_ahead *a, struct ahead_portion *portion, const struct mxfs_wire_name *entry,
		       const struct qstr *name, const struct inode *wanted)
{
	struct mxfs_attr attr = { .mode = le32_to_cpu(entry->mode) & S_IFMT, .nlink = 1 };
	u32 len = le16_to_cpu(entry->name_len);
	struct ahead_name *n;
	struct inode *inode;
	bool is_it;

	/* A device's number comes with its attributes only; whatever is no file, directory or symlink is rare. */
	if (!S_ISREG(attr.mode) && !S_ISDIR(attr.mode) && !S_ISLNK(attr.mode))
		return false;
	mxfs_fsop_get_handle(&attr.fh, &entry->handle);
	is_it = name ? name->len == len && !memcmp(name->name, entry + 1, len) :
		       attr.fh.ino == MXFS_I((struct inode *)wanted)->fh.ino && attr.fh.gen == MXFS_I((struct inode *)wanted)->fh.gen;
	/* Who misses attributes has the names already. */
	n = name ? kmalloc(sizeof(*n) + len, GFP_KERNEL | __GFP_NOWARN) : NULL;
	if (n) {
		n->fh = attr.fh;
		n->type = attr.mode;
		n->len = len;
		memcpy(n->name, entry + 1, len);
		spin_lock(&a->lock);
		if (a->token == portion->list.token && a->changes == portion->list.changes)
			ahead_add(mxfs_inode_sbi(dir), a, n);
		else
			kfree(n);
		spin_unlock(&a->lock);
	}
	if (le32_to_cpu(entry->flags) & MXFS_NAME_BUSY && !is_it)
		return false;
	inode = mxfs_iget(dir->i_sb, &attr);
	if (!IS_ERR(inode))
		portion->children[portion->count++].inode = inode;
	return is_it;
}

/* Asks for the locks of all, what directory `of` leads to, and waits for the answers. */
static void ahead_lock(struct mxfs_sb_info *sbi, struct ahead_portion *portion, u64 of)
{
	unsigned long end = jiffies + msecs_to_jiffies(MXFS_AHEAD_WAIT_ALL_MS), next;
	unsigned int i;

	for (i = 0; i < portion->count; i++)
		mxfs_lock_ask_ahead(&MXFS_I(portion->children[i].inode)->lock, MXFS_MODE_PR, of);
	mxfs_lock_ask_flush(sbi);
	for (i = 0; i < portion->count; i++) {
		next = jiffies + msecs_to_jiffies(MXFS_AHEAD_WAIT_MS);
		if (mxfs_lock_ask_wait(&MXFS_I(portion->children[i].inode)->lock, time_before(end, next) ? end : next))
			break;
	}
}

/* The lock is there and the attributes are not: notes by what their answer will be judged. */
static bool ahead_ticket(struct ahead_child *child)
{
	struct inode *inode = child->inode;
	struct mxfs_inode *mi = MXFS_I(inode);

	if (!mxfs_lock_is_cached(&mi->lock, MXFS_MODE_PR) || test_bit(MXFS_VN_GONE, &MXFS_VN(inode)->state))
		return false;
	child->gen = mxfs_lock_gen(&mi->lock);
	spin_lock(&inode->i_lock);
	child->attr_seq = MXFS_VN(inode)->attr_seq;
	spin_unlock(&inode->i_lock);
	child->want_map = S_ISREG(inode->i_mode) && mxfs_map_ticket(inode, &child->map);
	return READ_ONCE(mi->attr_gen) != child->gen;
}

static void ahead_attrs(struct mxfs_sb_info *sbi, struct ahead_portion *portion)
{
	u32 i, block, count = 0;
	struct mxfs_attr attr;

	for (i = 0; i < portion->count; i++) {
		if (!ahead_ticket(&portion->children[i]))
			continue;
		mxfs_fsop_put_handle(&portion->handles[count], &MXFS_I(portion->children[i].inode)->fh);
		portion->asked[count++] = i;
	}
	if (!count || mxfs_gate_enter(sbi))
		return;
	/* On the holder an answer is no message: then it is got when it is needed. */
	if (sbi->be == &mxfs_remote_backend && !sbi->be->getattrs(sbi, portion->handles, count, portion->briefs, &block)) {
		for (i = 0; i < count; i++) {
			const struct mxfs_wire_brief *brief = &portion->briefs[i];
			struct ahead_child *child = &portion->children[portion->asked[i]];

			mxfs_fsop_get_attr(&attr, &brief->attr);
			if (!attr.fh.ino || !mxfs_attr_given(child->inode, &attr, child->gen, child->attr_seq))
				continue;
			mxfs_count(sbi, MXFS_COUNT_AHEAD_ATTR);
			if (child->want_map && brief->extent.length &&
			    mxfs_map_given(child->inode, &child->map, &brief->extent, block))
				mxfs_count(sbi, MXFS_COUNT_AHEAD_MAP);
		}
	}
	mxfs_gate_leave(sbi);
}

/* Step 1. 0: the names are there; the caller's buffer in any case. */
static int ahead_names(struct inode *dir, struct mxfs_ahead *a, u64 cookie, u32 max, struct ahead_list *list)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	struct mxfs_inode *di = MXFS_I(dir);
	struct mxfs_dirent_sink *sink = &list->sink;
	int err;

	memset(list, 0, sizeof(*list));
	list->cookie = cookie;
	sink->size = (size_t)max * MXFS_NAMES_BYTES;
	sink->buf = kvmalloc(sink->size, GFP_KERNEL | __GFP_NOWARN);
	if (!sink->buf)
		return -ENOMEM;
	err = mxfs_op_begin(sbi, &di->lock, MXFS_MODE_PR);
	if (err)
		return err;
	list->token = mxfs_names_token(dir);
	spin_lock(&a->lock);
	list->changes = a->changes;
	spin_unlock(&a->lock);
	err = sbi->be->names(sbi, &di->fh, cookie, max, sink);
	mxfs_op_end(sbi, &di->lock, MXFS_MODE_PR);
	if (err)
		return err;
	/* The local back end's own is as well formed. */
	return mxfs_fsop_check_names(sink->buf, sink->used);
}

/* Step 1 was done with the portion before, and nothing has changed since: as if it were done now. */
static bool ahead_names_there(struct inode *dir, struct mxfs_ahead *a, u64 cookie, struct ahead_list *list)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	bool there;

	if (!a->next.sink.buf)
		return false;
	spin_lock(&a->lock);
	there = a->next.cookie == cookie && a->next.token == mxfs_names_token(dir) && a->next.changes == a->changes;
	spin_unlock(&a->lock);
	if (!there) {
		ahead_drop_next(sbi, a);
		return false;
	}
	*list = a->next;
	a->next.sink.buf = NULL;
	atomic_sub(a->next_max, &sbi->ahead_names);
	return true;
}

/*
 * Names and locks of the portion behind `list`, while attributes of that one are fetched and it is used up. The locks are asked for and not
 * waited for; inodes are not pinned: one that goes takes its request along.
 */
static void ahead_begin_next(struct inode *dir, struct mxfs_ahead *a, const struct ahead_list *list)
{
	u32 max = min3(2 * a->portion, READ_ONCE(ahead_max), (u32)MXFS_NAMES_MAX);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	const struct mxfs_wire_name *entry;
	struct mxfs_attr attr = { .nlink = 1 };
	struct inode *inode;
	size_t at;

	if (!READ_ONCE(ahead_overlap) || list->sink.eof || a->next.sink.buf || !max || atomic_read(&sbi->ahead_names) + max > MXFS_AHEAD_MOUNT_MAX ||
	    !mxfs_lock_ask_room(sbi, max))
		return;
	if (ahead_names(dir, a, list->sink.next, max, &a->next)) {
		kvfree(a->next.sink.buf);
		a->next.sink.buf = NULL;
		return;
	}
	a->next_max = max;
	atomic_add(max, &sbi->ahead_names);
	for (at = 0; at < a->next.sink.used; at += le16_to_cpu(entry->reclen)) {
		entry = a->next.sink.buf + at;
		attr.mode = le32_to_cpu(entry->mode) & S_IFMT;
		if ((!S_ISREG(attr.mode) && !S_ISDIR(attr.mode) && !S_ISLNK(attr.mode)) || le32_to_cpu(entry->flags) & MXFS_NAME_BUSY)
			continue;
		mxfs_fsop_get_handle(&attr.fh, &entry->handle);
		inode = mxfs_iget(dir->i_sb, &attr);
		if (IS_ERR(inode))
			continue;
		mxfs_lock_ask_ahead(&MXFS_I(inode)->lock, MXFS_MODE_PR, MXFS_I(dir)->fh.ino);
		iput(inode);
	}
	mxfs_lock_ask_flush(sbi);
}

/* What became of a portion. */
static void ahead_judge(struct mxfs_ahead *a, const struct ahead_list *list, const struct inode *wanted, bool useful, u32 added, int err)
{
	spin_lock(&a->lock);
	if (a->token == list->token || err) {
		if (wanted)
			a->missed = wanted->i_ino;
		a->useless = useful ? 0 : a->useless + 1;
		a->portion = min_t(u32, a->portion * MXFS_AHEAD_GROWTH, MXFS_NAMES_MAX);
		a->added = added;
		a->cookie = list->sink.next;
		a->eof = list->sink.eof;
		if (err || a->useless >= MXFS_AHEAD_USELESS)
			a->pause_until = (jiffies + msecs_to_jiffies(MXFS_AHEAD_PAUSE_MS)) | 1;
	}
	spin_unlock(&a->lock);
}

/* Under a->mutex. */
static void ahead_fetch(struct inode *dir, struct mxfs_ahead *a, u64 cookie, u32 max, const struct qstr *name,
			const struct inode *wanted)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(dir);
	struct ahead_portion *portion = kvzalloc(sizeof(*portion), GFP_KERNEL | __GFP_NOWARN);
	const struct mxfs_wire_name *entry;
	bool useful = false, used_up;
	struct ahead_list *list;
	u32 added = 0;
	size_t at;
	int err;

	if (!portion)
		return;
	list = &portion->list;
	spin_lock(&a->lock);
	/* The one before was for somebody who goes through all of it. */
	used_up = name && a->added && a->count <= a->added / MXFS_AHEAD_LEFT;
	spin_unlock(&a->lock);
	err = ahead_names_there(dir, a, cookie, list) ? 0 : ahead_names(dir, a, cookie, max, list);
	if (!err) {
		mxfs_count(sbi, MXFS_COUNT_AHEAD_FETCH);
		for (at = 0; at < list->sink.used && portion->count < MXFS_NAMES_MAX; at += le16_to_cpu(entry->reclen)) {
			entry = list->sink.buf + at;
			if (ahead_take(dir, a, portion, entry, name, wanted))
				useful = true;
			added++;
		}
		ahead_lock(sbi, portion, MXFS_I(dir)->fh.ino);
		if (useful && used_up)
			ahead_begin_next(dir, a, list);
		ahead_attrs(sbi, portion);
		while (portion->count)
			iput(portion->children[--portion->count].inode);
	}
	WRITE_ONCE(sbi->ahead_lucky, useful);
	ahead_judge(a, list, wanted, useful, added, err);
	kvfree(list->sink.buf);
	kvfree(portion);
}

static void ahead_try(struct inode *dir, const struct qstr *name, const struct inode *wanted)
{
	struct mxfs_ahead *a = ahead_of(dir);
	u64 cookie;
	u32 max;

	if (!a || !ahead_wants(dir, a, wanted, &cookie, &max) || !mutex_trylock(&a->mutex))
		return;
	if (ahead_wants(dir, a, wanted, &cookie, &max))
		ahead_fetch(dir, a, cookie, max, name, wanted);
	mutex_unlock(&a->mutex);
}

void mxfs_ahead_lookup(struct inode *dir, const struct qstr *name)
{
	struct mxfs_ahead *a = ahead_of(dir);
	bool known;

	if (!a)
		return;
	spin_lock(&a->lock);
	known = a->token == mxfs_names_token(dir) && ahead_search(a, name->name, name->len);
	spin_unlock(&a->lock);
	if (!known)
		ahead_try(dir, name, NULL);
}

void mxfs_ahead_inode(struct inode *inode)
{
	struct mxfs_inode *mi = MXFS_I(inode);
	struct dentry *dentry, *parent;
	struct inode *dir;

	/* Held by us: only the attributes are missing, as after a change of our own. Or asked for already. */
	if (READ_ONCE(mi->lock.mode) != MXFS_MODE_NL || READ_ONCE(mi->lock.want) != MXFS_MODE_NL || S_ISDIR(inode->i_mode) || !mxfs_lock_ask_room(mxfs_inode_sbi(inode), 0))
		return;
	dentry = d_find_any_alias(inode);
	if (!dentry)
		return;
	parent = dget_parent(dentry);
	dir = d_inode(parent);
	if (dir && dir != inode && mxfs_lock_is_cached(&MXFS_I(dir)->lock, MXFS_MODE_PR)) {
		ahead_try(dir, NULL, inode);
		if (READ_ONCE(mi->lock.mode) == MXFS_MODE_NL)
			ahead_missed(dir, mi->fh.ino);
	}
	dput(parent);
	dput(dentry);
}
