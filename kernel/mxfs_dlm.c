// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: the lock cache.
 *
 * Responsible for: what this node's kernel holds of the cluster's locks, who on this node uses it, asking for
 * more, giving up on demand, and telling all of it to a new view.
 *
 *	mxfs_lock_get ── cached? ──► users[mode]++
 *	     │ no: item REQUEST / CONVERT in the send list ─► flush ─► daemon ─► master
 *	     └ waits on lk->wait ◄── GRANT, DENY (mxfs_dlm_receive)
 *	     or nobody need be asked: the view has no other node (solo), or the inode is a newborn (covered)
 *	BAST ─► lk->bast ─► last conflicting user leaves ─► demote work ─► ops->demote ─► item CONVERT / RELEASE
 *
 * Rules. At most one request is outstanding for a lock (`want`, `seq`). From NL a request queues at the
 * master (unless MXFS_LOCK_TRY); an up-conversion is always NOQUEUE, and if it is denied the lock is dropped to NL and
 * asked for anew, so that two upgraders never wait for each other. A lock at NL is released at the master;
 * the next request has a new id. While a BAST is pending only users that it does not disturb, and those that
 * were waiting when the grant came (`credits`), may use the lock.
 *
 * Sending: every message is an item in the mount's list, put there under lk->spin, so that the list has the
 * order of the state changes. An item carries the number of the dump after which it was made (`stamp`): a later dump
 * tells the same as the item would have, so the item is dropped. Between dump and view nothing is sent.
 * The list is bounded by the locks: one request and the statements about modes that were granted.
 *
 * Lifetime: a lock is embedded in its owner. Whoever comes from the daemon finds it by id and touches it under
 * rcu_read_lock (owners are freed by RCU) and lk->spin only; work pins the owner by ops->get first. If that fails the owner
 * is being evicted, and its mxfs_lock_destroy gives the lock up. A lock destroyed while `dirtied` lives on as a "zombie"
 * until the holder's log is forced.
 *
 * Solo: between a VIEW that says so and the next dump every lock is granted here, and no item is made. The dump clears ls->solo
 * before it looks at the locks, one by one under lk->spin, and who grants looks at ls->solo under lk->spin: so a grant is
 * either in the dump or asked for. Covers: see there.
 *
 * The cache is bounded (lock_cache_max): beyond it unused locks are given up, the least recently used first, or nearly so.
 *
 * Order of spinlocks: ls->spin -> lk->spin -> ls->hash_spin, ls->send_spin, ls->cover_spin, ls->ahead_spin. None is held around call-backs but
 * ops->get (igrab: i_lock is inside lk->spin's level, never around it).
 *
 * Known weakness: a dump holds ls->spin while it walks all locks (some 0.1 us each).
 */
#include "mxfs.h"

#include <linux/hashtable.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>

/* Uses in a row that a BAST waits for after one grant, where ops->hold says that they belong together. */
#define MXFS_LOCK_GRACES 4
/* How long after a grant a writer keeps the lock in spite of a BAST, while his pauses are no longer than the gap. */
#define MXFS_LOCK_TENURE_MS 60
#define MXFS_LOCK_GAP_MS 8

#define MXFS_LF_WORK 1	     /* demote work is queued or running, the owner is pinned */
#define MXFS_LF_DEMOTING 2   /* ops->demote runs */
#define MXFS_LF_CANCELLED 4  /* the outstanding request was given up */
#define MXFS_LF_NOQUEUE 8    /* the outstanding request does not wait at the master */
#define MXFS_LF_ZOMBIE 16
#define MXFS_LF_COVERED 32   /* granted by us, known to nobody: `cover` stands for it */
#define MXFS_LF_TELLING 64   /* covered, and its request is outstanding (`want` is `mode`) */

#define MXFS_DLM_KILLABLE (TASK_KILLABLE | TASK_FREEZABLE_UNSAFE)
#define MXFS_DLM_NOINTR (TASK_UNINTERRUPTIBLE | TASK_FREEZABLE_UNSAFE)
#define MXFS_DLM_HASH_BITS 14
#define MXFS_COVERED_MAX 65536	     /* per mount */
#define MXFS_TELL_WINDOW 1024	     /* covered locks asked for at a time */
#define MXFS_NEWBORN_BUSY HZ	     /* jiffies for which who has made a file will probably go on with it, */
#define MXFS_NEWBORN_RECENT 8	     /* unless he has made so many others in the same directory since */
#define MXFS_TELL_AGAIN_MS 50	     /* after a refusal */
#define MXFS_CACHE_MAX_DEFAULT 131072
#define MXFS_CACHE_BYTES_PER_LOCK 8192 /* at most one cached lock for so much memory */
#define MXFS_BURST_WORKS 8		     /* so many locks being given up at a time are a burst */
#define MXFS_BURST_JIFFIES 2	     /* how long a lock that was given up waits for others, if there are some */
#define MXFS_ZOMBIE_MS 20		     /* how long zombies are gathered for one log force, unless one is wanted; */
#define MXFS_ZOMBIE_MEMBER_MS 500    /* on a member, where that is a message */
#define MXFS_TRIM_PAUSE HZ	     /* jiffies between rounds that give up too little, since all are in use */
#define MXFS_AHEAD_GIVE 32		     /* unused locks given up at a time */
#define MXFS_TRIM_LOOK 256	     /* locks looked at in one turn */

struct mxfs_lock_item {
	struct list_head list;
	u8 cmd;
	u32 stamp;
	struct mxfs_lock_entry entry; /* epoch and node are filled in on sending */
};

struct mxfs_zombie {
	struct mxfs_lock lock;
	struct list_head list;
	struct rcu_head rcu;
};

struct mxfs_lockspace {
	struct mxfs_sb_info *sbi;
	spinlock_t spin;	/* all, count, stamp */
	struct list_head all;
	unsigned int count;
	u32 stamp;
	u64 epoch;
	bool frozen, fenced, stopping;
	bool solo;		/* no other node in the view: locks are granted here, and told to nobody */
	bool dump_solo;		/* the last dump told nothing: only a solo view may follow */
	bool solo_dirty;	/* something was changed under a lock given up in solo: sync before others come */
	spinlock_t cover_spin;	/* cover, cover_list, covered, telling, cover_count */
	unsigned int cover_count;
	atomic_t cover_events;	/* something that a flush waits for */
	unsigned int cover_refusals;
	wait_queue_head_t cover_wait;
	spinlock_t ahead_spin;	/* ahead */
	struct list_head ahead;	/* locks with `ahead_of`, and some that have been used since */
	struct mxfs_lock moved;	/* stands for the locks of inodes that were made again, until they are known; locks nothing */
	atomic_t held;		/* locks above NL, */
	atomic_t giving;	/* and those of them that trimming has asked back */
	struct shrinker shrinker;
	struct work_struct trim_work;
	unsigned long trim_after; /* jiffies: the last round found too little to give up */
	atomic64_t next_id;
	spinlock_t hash_spin;
	DECLARE_HASHTABLE(hash, MXFS_DLM_HASH_BITS);
	spinlock_t send_spin;	/* send, zombies */
	struct list_head send;
	struct list_head zombies;
	struct mutex send_mutex; /* one flush, or dump, at a time */
	struct mxfs_lock_entry *batch;
	struct work_struct send_work;
	struct delayed_work send_soon; /* of a burst of locks given up */
	atomic_t works;		       /* demote works queued or running */
	struct delayed_work zombie_work;
	struct workqueue_struct *wq;	  /* demotes; they may wait for each other's locks */
	struct workqueue_struct *send_wq;
};

static unsigned int lock_cache_max;
module_param(lock_cache_max, uint, 0644);
MODULE_PARM_DESC(lock_cache_max, "most locks that a mount keeps though nobody uses them (0: 131072, or one for each 8 KiB of memory if that is less)");

static unsigned int mxfs_cache_limit(void)
{
	unsigned int limit = READ_ONCE(lock_cache_max);

	if (limit)
		return limit;
	return min_t(u64, MXFS_CACHE_MAX_DEFAULT, ((u64)totalram_pages() << PAGE_SHIFT) / MXFS_CACHE_BYTES_PER_LOCK);
}

/* ---------------------------------------------------------------- modes */

/* covers[held][wanted]: who holds the one may do what the other allows. */
static const bool mxfs_mode_covers[MXFS_MODE_COUNT][MXFS_MODE_COUNT] = {
	/*		NL CR CW PR PW EX */
	[MXFS_MODE_NL] = { 1, 0, 0, 0, 0, 0 },
	[MXFS_MODE_CR] = { 1, 1, 0, 0, 0, 0 },
	[MXFS_MODE_CW] = { 1, 1, 1, 0, 0, 0 },
	[MXFS_MODE_PR] = { 1, 1, 0, 1, 0, 0 },
	[MXFS_MODE_PW] = { 1, 1, 1, 1, 1, 0 },
	[MXFS_MODE_EX] = { 1, 1, 1, 1, 1, 1 },
};

/* The VMS matrix. */
static const bool mxfs_mode_compatible[MXFS_MODE_COUNT][MXFS_MODE_COUNT] = {
	/*		NL CR CW PR PW EX */
	[MXFS_MODE_NL] = { 1, 1, 1, 1, 1, 1 },
	[MXFS_MODE_CR] = { 1, 1, 1, 1, 1, 0 },
	[MXFS_MODE_CW] = { 1, 1, 1, 0, 0, 0 },
	[MXFS_MODE_PR] = { 1, 1, 0, 1, 0, 0 },
	[MXFS_MODE_PW] = { 1, 1, 0, 0, 0, 0 },
	[MXFS_MODE_EX] = { 1, 0, 0, 0, 0, 0 },
};

/* The mode to go down to from `mode` when somebody needs `bast`. */
static int mxfs_mode_target(int mode, int bast)
{
	static const u8 target[MXFS_MODE_COUNT] = {
		[MXFS_MODE_NL] = MXFS_MODE_EX, [MXFS_MODE_CR] = MXFS_MODE_PR, [MXFS_MODE_CW] = MXFS_MODE_CW,
		[MXFS_MODE_PR] = MXFS_MODE_PR, [MXFS_MODE_PW] = MXFS_MODE_CR, [MXFS_MODE_EX] = MXFS_MODE_NL,
	};

	if (mxfs_mode_compatible[mode][bast])
		return mode;
	if (mxfs_mode_covers[mode][target[bast]])
		return target[bast];
	/* PR and CW for each other. */
	return mxfs_mode_compatible[MXFS_MODE_CR][bast] && mode != MXFS_MODE_NL ? MXFS_MODE_CR : MXFS_MODE_NL;
}

/* Two needs at once. */
static int mxfs_mode_join(int a, int b)
{
	if (mxfs_mode_covers[a][b])
		return a;
	if (mxfs_mode_covers[b][a])
		return b;
	return MXFS_MODE_EX;
}

/* ---------------------------------------------------------------- items and sending */

static struct mxfs_lock_item *mxfs_item_new(void)
{
	/* Under memory pressure too: what is not told to the master blocks other nodes. */
	return kmalloc(sizeof(struct mxfs_lock_item), GFP_NOFS | __GFP_NOFAIL);
}

/* Nobody but us knows the lock, and nothing is sent about it. Stays so under lk->spin, but for the end of solo. */
static bool mxfs_lock_unknown(struct mxfs_lock *lk)
{
	return READ_ONCE(lk->sbi->ls->solo) ||
	       (READ_ONCE(lk->flags) & (MXFS_LF_COVERED | MXFS_LF_TELLING)) == MXFS_LF_COVERED;
}

/*
 * Under lk->spin. Takes the item over. True: there is something to send. No item: the lock was unknown a moment ago; if solo has ended since, the dump looks at
 * the lock after us.
 */
static bool mxfs_item_add(struct mxfs_lock *lk, struct mxfs_lock_item *item, int cmd, int mode, int granted, u32 flags)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;

	if (!item || mxfs_lock_unknown(lk)) {
		kfree(item);
		return false;
	}
	memset(&item->entry, 0, sizeof(item->entry));
	item->cmd = cmd;
	item->stamp = lk->stamp;
	item->entry.resource.volume = cpu_to_le64(lk->sbi->volume);
	item->entry.resource.ino = cpu_to_le64(lk->ino);
	item->entry.resource.offset = cpu_to_le64(lk->offset);
	item->entry.resource.ag = cpu_to_le32(lk->inode_gen);
	item->entry.resource.type = cpu_to_le32(lk->type);
	item->entry.lock_id = cpu_to_le64(lk->lock_id);
	item->entry.seq = cpu_to_le32(lk->seq);
	item->entry.mode = mode;
	item->entry.granted = granted;
	item->entry.flags = cpu_to_le16(flags);
	spin_lock(&ls->send_spin);
	list_add_tail(&item->list, &ls->send);
	spin_unlock(&ls->send_spin);
	return true;
}

/* Up to MXFS_NL_LOCKS_MAX items of one command from the head of the list. Under send_mutex. */
static int mxfs_dlm_take_batch(struct mxfs_lockspace *ls, int *cmd)
{
	u32 stamp = READ_ONCE(ls->stamp), node = READ_ONCE(ls->sbi->node);
	struct mxfs_lock_item *item, *next;
	LIST_HEAD(taken);
	int count = 0;

	spin_lock(&ls->send_spin);
	list_for_each_entry_safe(item, next, &ls->send, list) {
		if (item->stamp == stamp) {
			if (count == MXFS_NL_LOCKS_MAX || (count && item->cmd != *cmd))
				break;
			*cmd = item->cmd;
			ls->batch[count] = item->entry;
			ls->batch[count].epoch = cpu_to_le64(ls->epoch);
			ls->batch[count].node = cpu_to_le32(node);
			count++;
		}
		list_move_tail(&item->list, &taken);
	}
	spin_unlock(&ls->send_spin);
	list_for_each_entry_safe(item, next, &taken, list)
		kfree(item);
	return count;
}

/* Memory in smaller pieces is easier to get; single entries must be got. */
static void mxfs_dlm_send_batch(struct mxfs_lockspace *ls, int cmd, struct mxfs_lock_entry *entries, int count)
{
	int part_max = count, part;

	while (count) {
		part = min(count, part_max);
		if (mxfs_nl_send_locks(ls->sbi, cmd, entries, part,
				       part > 1 ? GFP_NOFS | __GFP_NORETRY : GFP_NOFS | __GFP_NOFAIL)) {
			if (WARN_ON_ONCE(part == 1)) /* not for lack of memory: one less would be lost without a word */
				return;
			part_max = max(part / 2, 1);
			continue;
		}
		entries += part;
		count -= part;
	}
}

static void mxfs_dlm_flush_locked(struct mxfs_lockspace *ls)
{
	int cmd = 0, count;

	while (!READ_ONCE(ls->frozen)) {
		count = mxfs_dlm_take_batch(ls, &cmd);
		if (!count)
			return;
		mxfs_count(ls->sbi, MXFS_COUNT_LOCK_BATCH);
		mxfs_count_add(ls->sbi, MXFS_COUNT_LOCK_ITEM, count);
		mxfs_dlm_send_batch(ls, cmd, ls->batch, count);
	}
}

static void mxfs_dlm_send_work(struct work_struct *work)
{
	struct mxfs_lockspace *ls = container_of(work, struct mxfs_lockspace, send_work);

	mutex_lock(&ls->send_mutex);
	mxfs_dlm_flush_locked(ls);
	mutex_unlock(&ls->send_mutex);
}

/* For callers that must not wait for room. */
static void mxfs_dlm_flush_later(struct mxfs_lockspace *ls)
{
	queue_work(ls->send_wq, &ls->send_work);
}

static void mxfs_dlm_flush(struct mxfs_lockspace *ls)
{
	if (!mutex_trylock(&ls->send_mutex)) {
		/* Whoever has it may have seen the list empty already. */
		mxfs_dlm_flush_later(ls);
		return;
	}
	mxfs_dlm_flush_locked(ls);
	mutex_unlock(&ls->send_mutex);
}

static void mxfs_dlm_send_soon(struct work_struct *work)
{
	struct mxfs_lockspace *ls = container_of(to_delayed_work(work), struct mxfs_lockspace, send_soon);

	mutex_lock(&ls->send_mutex);
	mxfs_dlm_flush_locked(ls);
	mutex_unlock(&ls->send_mutex);
}

/* A lock was given up. While many others are just being given up as well, what there is to say of them goes in one message. */
static void mxfs_dlm_flush_burst(struct mxfs_lockspace *ls)
{
	if (atomic_read(&ls->works) > MXFS_BURST_WORKS)
		queue_delayed_work(ls->send_wq, &ls->send_soon, MXFS_BURST_JIFFIES);
	else
		mxfs_dlm_flush(ls);
}

/* ---------------------------------------------------------------- the hash of ids */

static void mxfs_lock_hash(struct mxfs_lockspace *ls, struct mxfs_lock *lk)
{
	spin_lock(&ls->hash_spin);
	hash_add(ls->hash, &lk->hash, lk->lock_id);
	spin_unlock(&ls->hash_spin);
}

static void mxfs_lock_unhash(struct mxfs_lockspace *ls, struct mxfs_lock *lk)
{
	spin_lock(&ls->hash_spin);
	hash_del(&lk->hash);
	spin_unlock(&ls->hash_spin);
	lk->lock_id = 0;
}

/* Inside rcu_read_lock. The id may be gone again when lk->spin is taken: look at lk->lock_id then. */
static struct mxfs_lock *mxfs_lock_find(struct mxfs_lockspace *ls, u64 id)
{
	struct mxfs_lock *lk, *found = NULL;

	spin_lock(&ls->hash_spin);
	hash_for_each_possible(ls->hash, lk, hash, id) {
		if (lk->lock_id == id) {
			found = lk;
			break;
		}
	}
	spin_unlock(&ls->hash_spin);
	return found;
}

/* ---------------------------------------------------------------- states of one lock (under lk->spin) */

static bool mxfs_lock_users_above(struct mxfs_lock *lk, int to)
{
	int mode;

	for (mode = MXFS_MODE_CR; mode < MXFS_MODE_COUNT; mode++)
		if (lk->users[mode] && !mxfs_mode_covers[to][mode])
			return true;
	return false;
}

static u32 mxfs_lock_waiters_served(struct mxfs_lock *lk)
{
	u32 count = 0;
	int mode;

	for (mode = MXFS_MODE_CR; mode < MXFS_MODE_COUNT; mode++)
		if (mxfs_mode_covers[lk->mode][mode])
			count += lk->waiters[mode];
	return count;
}

static void mxfs_lock_stop_waiting(struct mxfs_lock *lk, int mode)
{
	lk->waiters[mode]--;
	lk->credits = min(lk->credits, mxfs_lock_waiters_served(lk));
}

/* Jiffies for which users are still let in in spite of a BAST; under lk->spin, or as a hint. */
static unsigned long mxfs_lock_held_for(struct mxfs_lock *lk)
{
	unsigned long until = READ_ONCE(lk->hold_until), now = jiffies;

	return time_before(now, until) ? until - now : 0;
}

static bool mxfs_lock_demotable(struct mxfs_lock *lk)
{
	int to;

	if (lk->bast == MXFS_MODE_NL || lk->want != MXFS_MODE_NL || (lk->flags & (MXFS_LF_DEMOTING | MXFS_LF_ZOMBIE)))
		return false;
	to = mxfs_mode_target(lk->mode, lk->bast);
	return to == lk->mode || (!lk->credits && !mxfs_lock_users_above(lk, to));
}

/* How many locks too many are cached. */
static int mxfs_cache_excess(struct mxfs_lockspace *ls)
{
	return atomic_read(&ls->held) - atomic_read(&ls->giving) - (int)min_t(unsigned int, mxfs_cache_limit(), INT_MAX);
}

/* The state was changed to `mode`. */
static void mxfs_lock_set_mode(struct mxfs_lock *lk, int mode)
{
	bool had = mxfs_mode_covers[lk->mode][MXFS_MODE_PR], has = mxfs_mode_covers[mode][MXFS_MODE_PR];
	bool wrote = mxfs_mode_covers[lk->mode][MXFS_MODE_CW], writes = mxfs_mode_covers[mode][MXFS_MODE_CW];
	struct mxfs_lockspace *ls = lk->sbi->ls;

	if (lk->mode == MXFS_MODE_NL && mode != MXFS_MODE_NL) {
		WRITE_ONCE(lk->recent, true);
		atomic_inc(&ls->held);
		if (mxfs_cache_excess(ls) > 0 && !READ_ONCE(ls->stopping) &&
		    time_after_eq(jiffies, READ_ONCE(ls->trim_after)))
			queue_work(ls->wq, &ls->trim_work);
	} else if (lk->mode != MXFS_MODE_NL && mode == MXFS_MODE_NL) {
		atomic_dec(&ls->held);
		if (lk->given)
			atomic_dec(&ls->giving);
		lk->given = false;
		lk->ahead_of = 0;
	}
	WRITE_ONCE(lk->mode, mode);
	if (had != has || (wrote && !writes && !has))
		WRITE_ONCE(lk->gen, lk->gen + 1);
	if (lk->bast != MXFS_MODE_NL && mxfs_mode_compatible[mode][lk->bast])
		WRITE_ONCE(lk->bast, MXFS_MODE_NL);
}

/* May be used in `mode` now: granted, and not wanted by others, or not before this use. */
static bool mxfs_lock_admits(struct mxfs_lock *lk, int mode)
{
	if (!mxfs_mode_covers[lk->mode][mode])
		return false;
	if (lk->bast == MXFS_MODE_NL || mxfs_mode_covers[mxfs_mode_target(lk->mode, lk->bast)][mode])
		return true;
	return !(lk->flags & MXFS_LF_DEMOTING) && (lk->credits || mxfs_lock_held_for(lk));
}

/* A mode that needs nobody's leave: alone in the view, or more of what is covered. */
static bool mxfs_lock_alone(struct mxfs_lock *lk)
{
	return READ_ONCE(lk->sbi->ls->solo) || (lk->flags & MXFS_LF_COVERED);
}

static void mxfs_lock_self_grant(struct mxfs_lock *lk, int mode)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;

	mode = mxfs_mode_join(mode, lk->mode);
	if (mode == MXFS_MODE_CR && lk->type == MXFS_RES_INODE)
		mode = MXFS_MODE_PR;
	if (lk->mode == MXFS_MODE_NL) {
		lk->lock_id = atomic64_inc_return(&ls->next_id);
		mxfs_lock_hash(ls, lk);
	}
	mxfs_lock_set_mode(lk, mode);
	lk->granted_at = jiffies;
	lk->graces = MXFS_LOCK_GRACES;
}

/* ---------------------------------------------------------------- covers */

/*
 * Newborn cover: an inode made under a directory that is held in EX can be reached by its name there alone, so the
 * directory's EX stands for its lock as well, and nobody is asked. Before that EX is lowered the covered locks are
 * asked for, many in one message, and the grants awaited (mxfs_cover_flush); they come at once, since a resource with the
 * newborn's generation is new to the cluster. A dump tells them as held, which makes them known, too. Until then the name
 * must stay the only way there: link and parking ask first (mxfs_lock_tell), rename moves the cover to the new directory.
 *
 * Should a master have no room, the covered lock is given up as soon as nobody uses it, and asked for again until then.
 */
static void mxfs_cover_event(struct mxfs_lockspace *ls)
{
	atomic_inc(&ls->cover_events);
	wake_up_all(&ls->cover_wait);
}

/* Under lk->spin. It stands for what directory `of` leads to, and nobody here has a use for it yet; 0: for nothing of the kind. */
static void mxfs_lock_set_unused(struct mxfs_lock *lk, u64 of)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;

	lk->ahead_of = of;
	if (!of)
		return;
	spin_lock(&ls->ahead_spin);
	if (list_empty(&lk->ahead_list))
		list_add_tail(&lk->ahead_list, &ls->ahead);
	spin_unlock(&ls->ahead_spin);
}

/* The lock is known to the cluster now, or gone. Under lk->spin. */
static void mxfs_cover_end(struct mxfs_lock *lk)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;
	bool last = true;

	if (!(lk->flags & MXFS_LF_COVERED))
		return;
	spin_lock(&ls->cover_spin);
	list_del_init(&lk->cover_list);
	if (lk->flags & MXFS_LF_TELLING)
		last = !--lk->cover->telling_count;
	lk->cover = NULL;
	ls->cover_count--;
	spin_unlock(&ls->cover_spin);
	lk->flags &= ~(MXFS_LF_COVERED | MXFS_LF_TELLING);
	if (last) /* else a flush waits for more */
		mxfs_cover_event(ls);
}

/* Its request was refused. Under lk->spin. */
static void mxfs_cover_untold(struct mxfs_lock *lk)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;

	spin_lock(&ls->cover_spin);
	list_move_tail(&lk->cover_list, &lk->cover->covered);
	lk->cover->telling_count--;
	WRITE_ONCE(ls->cover_refusals, ls->cover_refusals + 1);
	spin_unlock(&ls->cover_spin);
	lk->flags &= ~MXFS_LF_TELLING;
	mxfs_cover_event(ls);
}

/* What `from` stands for is `to`'s from now on; NULL: its own cover's. */
static void mxfs_cover_inherit(struct mxfs_lockspace *ls, struct mxfs_lock *from, struct mxfs_lock *to)
{
	struct mxfs_lock *child;

	spin_lock(&ls->cover_spin);
	if (!to) /* which may just be handing on what it covers by itself */
		to = from->cover;
	list_for_each_entry(child, &from->covered, cover_list)
		child->cover = to;
	list_for_each_entry(child, &from->telling, cover_list)
		child->cover = to;
	list_splice_tail_init(&from->covered, &to->covered);
	list_splice_tail_init(&from->telling, &to->telling);
	to->telling_count += from->telling_count;
	from->telling_count = 0;
	to->sync_all |= from->sync_all;
	spin_unlock(&ls->cover_spin);
	mxfs_cover_event(ls);
}

static bool mxfs_cover_any(struct mxfs_lockspace *ls, struct mxfs_lock *lk)
{
	bool any;

	spin_lock(&ls->cover_spin);
	any = !list_empty(&lk->covered) || !list_empty(&lk->telling);
	spin_unlock(&ls->cover_spin);
	return any;
}

/* Puts the request for a covered lock on the send list. True: the item is used up. The caller keeps `lk` in memory. */
static bool mxfs_cover_ask(struct mxfs_lock *lk, struct mxfs_lock_item *item)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;
	bool ask;

	spin_lock(&lk->spin);
	ask = (lk->flags & (MXFS_LF_COVERED | MXFS_LF_TELLING | MXFS_LF_DEMOTING)) == MXFS_LF_COVERED &&
	      !READ_ONCE(ls->fenced);
	if (ask) {
		spin_lock(&ls->cover_spin);
		list_move_tail(&lk->cover_list, &lk->cover->telling);
		lk->cover->telling_count++;
		spin_unlock(&ls->cover_spin);
		lk->flags |= MXFS_LF_TELLING;
		lk->want = lk->mode;
		if (!++lk->seq)
			lk->seq = 1;
		mxfs_item_add(lk, item, MXFS_CMD_LOCK_REQUEST, lk->want, MXFS_MODE_NL, 0);
		mxfs_count(lk->sbi, MXFS_COUNT_COVER_TOLD);
	}
	spin_unlock(&lk->spin);
	return ask;
}

static void mxfs_lock_demote(struct mxfs_lock *lk);

/*
 * Who wants to read the directory will want to read what is in it: a covered lock that nobody uses, with nothing to be
 * written but the log, is not told as EX, which would have to be recalled then; unless it is so young, and among the last ones, that its maker will
 * rename, write or remove it next, as where two nodes work in one directory. With data in the cache it is told as PR. Without it is given up and
 * not told at all: what its maker may want to know of it later costs him no more to ask for than it costs to tell now, and mostly he does not ask. What
 * was changed under it is the cover's business, before whose EX is given up it becomes durable. The owner is pinned.
 */
static void mxfs_cover_lower(struct mxfs_lock *lk, bool recent)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;
	bool lower, bare;
	u64 of;

	spin_lock(&lk->spin);
	lower = (lk->flags & ~MXFS_LF_WORK) == MXFS_LF_COVERED && mxfs_mode_covers[lk->mode][MXFS_MODE_PR] && lk->want == MXFS_MODE_NL &&
		(!recent || time_after(jiffies, lk->granted_at + MXFS_NEWBORN_BUSY)) && lk->bast == MXFS_MODE_NL && !lk->credits &&
		!mxfs_lock_users_above(lk, MXFS_MODE_PR) && lk->ops->clean &&
		lk->ops->clean(lk) && list_empty(&lk->covered) && list_empty(&lk->telling);
	bare = lower && !mxfs_lock_users_above(lk, MXFS_MODE_NL) && lk->ops->bare(lk);
	lower = bare || (lower && lk->mode == MXFS_MODE_EX);
	if (lower)
		WRITE_ONCE(lk->bast, bare ? MXFS_MODE_EX : MXFS_MODE_PR);
	spin_unlock(&lk->spin);
	if (!lower)
		return;
	mxfs_lock_demote(lk);
	/* Its maker may never look at it again; if others begin to change what is there, all such go together. */
	spin_lock(&lk->spin);
	if (lk->flags & MXFS_LF_COVERED && lk->mode == MXFS_MODE_PR) {
		spin_lock(&ls->cover_spin);
		of = lk->cover->ino;
		spin_unlock(&ls->cover_spin);
		mxfs_lock_set_unused(lk, of);
	}
	spin_unlock(&lk->spin);
	mxfs_count(lk->sbi, bare ? MXFS_COUNT_COVER_DROPPED : MXFS_COUNT_COVER_LOWERED);
}

/* Under cover_spin. The list is in the order of birth, but for those that could not be asked for. */
static bool mxfs_cover_is_recent(const struct mxfs_lock *cover, const struct mxfs_lock *child)
{
	const struct list_head *younger = &child->cover_list;
	int count;

	for (count = 0; count < MXFS_NEWBORN_RECENT; count++) {
		younger = younger->next;
		if (younger == &cover->covered)
			return true;
	}
	return false;
}

/* Asks for up to MXFS_TELL_WINDOW of the locks that `lk` covers; in PR where that is enough, if `lower`. */
static void mxfs_cover_ask_some(struct mxfs_lockspace *ls, struct mxfs_lock *lk, bool lower)
{
	struct mxfs_lock_item *item = NULL;
	struct mxfs_lock *child;
	bool pinned, asked, recent;
	int count;

	for (count = 0; count < MXFS_TELL_WINDOW; count++) {
		if (!item)
			item = mxfs_item_new();
		rcu_read_lock();
		spin_lock(&ls->cover_spin);
		child = list_first_entry_or_null(&lk->covered, struct mxfs_lock, cover_list);
		recent = child && mxfs_cover_is_recent(lk, child);
		if (child) /* one that cannot be asked for now does not stand in the way of the next */
			list_move_tail(&child->cover_list, &lk->covered);
		spin_unlock(&ls->cover_spin);
		pinned = lower && child && child->ops && child->ops->get && child->ops->get(child);
		if (pinned) {
			rcu_read_unlock();
			mxfs_cover_lower(child, recent);
			rcu_read_lock();
		}
		asked = child && mxfs_cover_ask(child, item);
		rcu_read_unlock();
		if (asked)
			item = NULL;
		if (pinned)
			child->ops->put(child);
		if (!child)
			break;
		cond_resched();
	}
	kfree(item);
	mxfs_dlm_flush(ls);
}

static bool mxfs_cover_asked(struct mxfs_lockspace *ls, struct mxfs_lock *lk)
{
	bool answered;

	spin_lock(&ls->cover_spin);
	answered = !lk->telling_count;
	spin_unlock(&ls->cover_spin);
	return answered || READ_ONCE(ls->fenced);
}

static bool mxfs_dlm_trim(struct mxfs_lockspace *ls, int count);
static void mxfs_lock_refused(struct mxfs_lockspace *ls, struct mxfs_lock *lk, int error);

/*
 * Before what covers others is given up: returns when all of them are known to the cluster. Nobody uses `lk` in EX, so none
 * is added; the caller keeps it in memory.
 */
static void mxfs_cover_flush(struct mxfs_lock *lk, bool lower)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;
	unsigned int refusals;
	int seen;

	while (mxfs_cover_any(ls, lk) && !READ_ONCE(ls->fenced)) {
		seen = atomic_read(&ls->cover_events);
		refusals = READ_ONCE(ls->cover_refusals);
		mxfs_cover_ask_some(ls, lk, lower);
		wait_event(ls->cover_wait, mxfs_cover_asked(ls, lk));
		if (refusals != READ_ONCE(ls->cover_refusals)) {
			/* A full table: what nobody uses here goes, and it is tried again after a while. */
			mxfs_dlm_trim(ls, MXFS_TELL_WINDOW);
			schedule_timeout_uninterruptible(msecs_to_jiffies(MXFS_TELL_AGAIN_MS));
		} else if (seen == atomic_read(&ls->cover_events) && mxfs_cover_any(ls, lk)) {
			/* What is left is being given up. */
			wait_event(ls->cover_wait, seen != atomic_read(&ls->cover_events) || READ_ONCE(ls->fenced));
		}
	}
}

/*
 * Inodes that this node had made, that were lost with the holder and made again: their locks are known under numbers that do not
 * exist any more. Their names are under locks of ours that are known; before one of those is given up they are made known, too. Who is
 * covered by such a lock makes nothing reachable, and waits for nobody here: it may be one of them.
 */
static void mxfs_cover_flush_moved(struct mxfs_lock *lk)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;

	if (READ_ONCE(lk->flags) & MXFS_LF_COVERED)
		return;
	mxfs_cover_flush(&ls->moved, false);
	spin_lock(&ls->cover_spin);
	lk->sync_all |= ls->moved.sync_all;
	spin_unlock(&ls->cover_spin);
}

void mxfs_dlm_tell_moved(struct mxfs_sb_info *sbi)
{
	struct mxfs_lockspace *ls = sbi->ls;

	if (mxfs_cover_any(ls, &ls->moved) && !READ_ONCE(ls->fenced))
		mxfs_cover_ask_some(ls, &ls->moved, false);
}

void mxfs_lock_rename(struct mxfs_lock *lk, u64 ino, u32 inode_gen)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;
	struct mxfs_lock_item *item = mxfs_item_new();

	spin_lock(&lk->spin);
	if (lk->lock_id) {
		/* Held, or asked for: nobody else has ever heard of the old number, and nobody will. */
		mxfs_item_add(lk, item, MXFS_CMD_LOCK_RELEASE, MXFS_MODE_NL, lk->mode, 0);
		item = NULL;
		mxfs_lock_unhash(ls, lk);
	}
	if (lk->flags & MXFS_LF_TELLING) {
		spin_lock(&ls->cover_spin);
		list_move_tail(&lk->cover_list, &lk->cover->covered);
		lk->cover->telling_count--;
		spin_unlock(&ls->cover_spin);
		lk->flags &= ~MXFS_LF_TELLING;
		lk->want = MXFS_MODE_NL;
		mxfs_cover_event(ls);
	} else if (lk->want != MXFS_MODE_NL) {
		mxfs_lock_refused(ls, lk, ECANCELED);
	}
	lk->ino = ino;
	lk->inode_gen = inode_gen;
	if (lk->mode != MXFS_MODE_NL) {
		lk->lock_id = atomic64_inc_return(&ls->next_id);
		mxfs_lock_hash(ls, lk);
		if (!READ_ONCE(ls->solo) && !(lk->flags & MXFS_LF_COVERED)) {
			spin_lock(&ls->cover_spin);
			ls->cover_count++;
			lk->cover = &ls->moved;
			list_add_tail(&lk->cover_list, &ls->moved.covered);
			spin_unlock(&ls->cover_spin);
			lk->flags |= MXFS_LF_COVERED;
		}
	}
	spin_unlock(&lk->spin);
	kfree(item);
	wake_up_all(&lk->wait);
	mxfs_dlm_flush_later(ls);
}

bool mxfs_lock_defer_clean(struct mxfs_lock *lk)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;
	bool deferred = false;

	/* What a dead holder has lost is not in our XFS yet: the next dump must still tell of the lock, not of a sync. */
	if (READ_ONCE(ls->solo) && !mxfs_remote_redoing(lk->sbi)) {
		smp_store_mb(ls->solo_dirty, true);
		if (READ_ONCE(ls->solo)) /* else the end of solo may have looked already */
			return true;
	}
	spin_lock(&lk->spin);
	if (lk->flags & MXFS_LF_COVERED) {
		spin_lock(&ls->cover_spin);
		lk->cover->sync_all = true;
		spin_unlock(&ls->cover_spin);
		deferred = true;
	}
	spin_unlock(&lk->spin);
	return deferred;
}

/* ---------------------------------------------------------------- giving up */

/*
 * Lowers the lock as far as the pending BAST wants, as long as nothing is in the way. The caller makes
 * sure that the owner stays.
 */
static void mxfs_lock_demote(struct mxfs_lock *lk)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;
	struct mxfs_lock_item *item;
	int from, to;
	bool send;

	for (;;) {
		item = mxfs_item_new();
		spin_lock(&lk->spin);
		if (!mxfs_lock_demotable(lk))
			break;
		from = lk->mode;
		to = mxfs_mode_target(from, lk->bast);
		if (to == from) {
			WRITE_ONCE(lk->bast, MXFS_MODE_NL);
			break;
		}
		lk->flags |= MXFS_LF_DEMOTING;
		spin_unlock(&lk->spin);

		if (from == MXFS_MODE_EX) {
			mxfs_cover_flush(lk, mxfs_mode_covers[to][MXFS_MODE_PR]);
			mxfs_cover_flush_moved(lk);
		}
		if (lk->ops && lk->ops->demote)
			lk->ops->demote(lk, from, to);
		if (from == MXFS_MODE_EX) /* it may have waited for a takeover */
			mxfs_cover_flush_moved(lk);

		spin_lock(&lk->spin);
		lk->flags &= ~MXFS_LF_DEMOTING;
		lk->dirtied = false;
		send = mxfs_item_add(lk, item, to == MXFS_MODE_NL ? MXFS_CMD_LOCK_RELEASE : MXFS_CMD_LOCK_CONVERT, to, from,
				     to == MXFS_MODE_NL ? 0 : MXFS_LKF_CONVERT);
		mxfs_lock_set_mode(lk, to);
		if (to == MXFS_MODE_NL) {
			mxfs_lock_unhash(ls, lk);
			mxfs_cover_end(lk);
		}
		if (lk->flags & MXFS_LF_COVERED)
			mxfs_cover_event(ls); /* can be asked for again */
		spin_unlock(&lk->spin);
		wake_up_all(&lk->wait);
		mxfs_count(lk->sbi, MXFS_COUNT_DEMOTE);
		if (send)
			mxfs_dlm_flush_burst(ls);
	}
	spin_unlock(&lk->spin);
	wake_up_all(&lk->wait);
	kfree(item);
}

static void mxfs_lock_work(struct work_struct *work)
{
	struct mxfs_lock *lk = container_of(work, struct mxfs_lock, work);
	void (*put)(struct mxfs_lock *lk) = lk->ops ? lk->ops->put : NULL;
	bool again;

	do {
		unsigned long hold = mxfs_lock_held_for(lk);

		if (hold)
			schedule_timeout_uninterruptible(hold);
		mxfs_lock_demote(lk);
		spin_lock(&lk->spin);
		again = mxfs_lock_demotable(lk);
		if (!again)
			lk->flags &= ~MXFS_LF_WORK;
		spin_unlock(&lk->spin);
	} while (again);
	if (atomic_dec_and_test(&lk->sbi->ls->works) && delayed_work_pending(&lk->sbi->ls->send_soon))
		mxfs_dlm_flush(lk->sbi->ls);
	/* May evict the owner, which destroys this very lock. */
	if (put)
		put(lk);
}

/* Has the demote work run if there is something for it. The lock must stay until this returns (RCU or a reference). */
static bool mxfs_lock_kick(struct mxfs_lock *lk)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;
	bool queue;

	spin_lock(&lk->spin);
	queue = mxfs_lock_demotable(lk) && !(lk->flags & MXFS_LF_WORK) && !READ_ONCE(ls->stopping);
	if (queue)
		lk->flags |= MXFS_LF_WORK;
	spin_unlock(&lk->spin);
	if (!queue)
		return false;
	if (lk->ops && lk->ops->get && !lk->ops->get(lk)) {
		spin_lock(&lk->spin);
		lk->flags &= ~MXFS_LF_WORK;
		spin_unlock(&lk->spin);
		return false;
	}
	atomic_inc(&ls->works);
	queue_work(ls->wq, &lk->work);
	return true;
}

static bool mxfs_lock_is_down(struct mxfs_lock *lk, int mode, bool *runnable)
{
	bool down;

	spin_lock(&lk->spin);
	down = mxfs_mode_covers[mode][lk->mode] && lk->want == MXFS_MODE_NL && !(lk->flags & MXFS_LF_DEMOTING);
	*runnable = !down && mxfs_lock_demotable(lk) && !(lk->flags & MXFS_LF_WORK);
	spin_unlock(&lk->spin);
	return down;
}

int mxfs_lock_drop(struct mxfs_lock *lk, int mode, unsigned int flags)
{
	static const u8 need[MXFS_MODE_COUNT] = {
		[MXFS_MODE_NL] = MXFS_MODE_EX, [MXFS_MODE_CR] = MXFS_MODE_PW, [MXFS_MODE_PR] = MXFS_MODE_PR,
	};
	unsigned int state = flags & MXFS_LOCK_NOINTR ? MXFS_DLM_NOINTR : MXFS_DLM_KILLABLE;
	bool runnable;
	int err;

	if (WARN_ON_ONCE(mode < 0 || mode >= MXFS_MODE_COUNT || !need[mode]))
		return -EINVAL;
	while (!mxfs_lock_is_down(lk, mode, &runnable)) {
		spin_lock(&lk->spin);
		if (!mxfs_mode_covers[mode][lk->mode])
			WRITE_ONCE(lk->bast, mxfs_mode_join(lk->bast, need[mode]));
		spin_unlock(&lk->spin);
		/* An owner that is being evicted, or an unmount: in the caller's own context. */
		if (!mxfs_lock_kick(lk))
			mxfs_lock_demote(lk);
		err = wait_event_state(lk->wait, mxfs_lock_is_down(lk, mode, &runnable) || runnable, state);
		if (err)
			return err;
	}
	return 0;
}

/* ---------------------------------------------------------------- asking */

struct mxfs_lock_wait {
	struct mxfs_lock *lk;
	struct mxfs_lock_item *item; /* for the next message */
	int mode;
	unsigned int flags;
	u32 seq;		     /* the request whose answer concerns us; 0: none */
	bool upgrade;		     /* it was one */
	bool kick;
};

enum { MXFS_STEP_WAIT = 1, MXFS_STEP_ASKED = 2, MXFS_STEP_AGAIN = 3 };

/* Sends the request for w->mode; under lk->spin. */
static void mxfs_lock_ask(struct mxfs_lock_wait *w)
{
	struct mxfs_lock *lk = w->lk;
	struct mxfs_lockspace *ls = lk->sbi->ls;
	int want = w->mode, mode;
	u32 flags = 0;

	if (lk->mode == MXFS_MODE_NL) {
		/* One request for all who wait; PR costs hardly anybody more than CR (only direct I/O in ranges takes CW). */
		for (mode = MXFS_MODE_CR; mode < MXFS_MODE_COUNT && !(w->flags & MXFS_LOCK_TRY); mode++)
			if (lk->waiters[mode])
				want = mxfs_mode_join(want, mode);
		if (want == MXFS_MODE_CR && lk->type == MXFS_RES_INODE)
			want = MXFS_MODE_PR;
		lk->lock_id = atomic64_inc_return(&ls->next_id);
		mxfs_lock_hash(ls, lk);
		if (w->flags & MXFS_LOCK_TRY)
			flags |= MXFS_LKF_NOQUEUE;
	} else {
		want = mxfs_mode_join(want, lk->mode);
		flags |= MXFS_LKF_CONVERT | MXFS_LKF_NOQUEUE;
	}
	w->upgrade = lk->mode != MXFS_MODE_NL;
	lk->want = want;
	lk->flags &= ~(MXFS_LF_CANCELLED | MXFS_LF_NOQUEUE);
	if (flags & MXFS_LKF_NOQUEUE)
		lk->flags |= MXFS_LF_NOQUEUE;
	if (!++lk->seq)
		lk->seq = 1;
	w->seq = lk->seq;
	mxfs_item_add(lk, w->item, w->upgrade ? MXFS_CMD_LOCK_CONVERT : MXFS_CMD_LOCK_REQUEST, want, lk->mode, flags);
	w->item = NULL;
	mxfs_count(lk->sbi, MXFS_COUNT_LOCK_ASK);
}

/* What the answer "no" means to us; under lk->spin. 0: go on. */
static int mxfs_lock_denied(struct mxfs_lock_wait *w)
{
	struct mxfs_lock *lk = w->lk;

	w->seq = 0;
	switch (lk->error) {
	case EDEADLK: /* of up-conversions: whoever is refused gives way, as below; callers never wait in a circle */
	case EAGAIN:
		if (w->flags & MXFS_LOCK_TRY)
			return -EAGAIN;
		if (w->upgrade && lk->mode != MXFS_MODE_NL && !mxfs_mode_covers[lk->mode][w->mode]) {
			/* Somebody shares it who may want the same: give up and queue for it. */
			WRITE_ONCE(lk->bast, MXFS_MODE_EX);
			lk->credits = 0;
			lk->graces = 0;
			WRITE_ONCE(lk->hold_until, jiffies);
			w->kick = true;
		}
		return 0;
	case ECANCELED: /* by another caller who has gone since */
		return 0;
	default:
		return -lk->error;
	}
}

/* One try. 0: the lock is ours. < 0: it will not be. */
static int mxfs_lock_step(struct mxfs_lock_wait *w)
{
	struct mxfs_lock *lk = w->lk;
	struct mxfs_lockspace *ls = lk->sbi->ls;
	bool cached_only = w->flags & MXFS_LOCK_CACHED, try = w->flags & (MXFS_LOCK_TRY | MXFS_LOCK_CACHED);
	int ret;

	spin_lock(&lk->spin);
	if (READ_ONCE(ls->fenced)) {
		ret = -EIO;
		goto out;
	}
	if (w->seq && lk->deny_seq == w->seq) {
		ret = mxfs_lock_denied(w);
		if (ret)
			goto out;
		if (w->kick) {
			ret = MXFS_STEP_AGAIN;
			goto out;
		}
	}
	if (mxfs_mode_covers[lk->mode][w->mode]) {
		if (mxfs_lock_admits(lk, w->mode)) {
			if (lk->credits)
				lk->credits--;
			lk->users[w->mode]++;
			ret = 0;
		} else {
			ret = try ? -EAGAIN : MXFS_STEP_WAIT;
		}
		goto out;
	}
	ret = -EAGAIN;
	if (cached_only)
		goto out;
	if (lk->want != MXFS_MODE_NL) {
		if (!(w->flags & MXFS_LOCK_TRY) || w->seq == lk->seq)
			ret = MXFS_STEP_WAIT;
		if (!w->seq && !(lk->flags & (MXFS_LF_CANCELLED | MXFS_LF_NOQUEUE | MXFS_LF_TELLING)) && ret == MXFS_STEP_WAIT &&
		    mxfs_mode_covers[lk->want][w->mode]) {
			w->seq = lk->seq;
			w->upgrade = false;
		}
	} else if ((lk->flags & MXFS_LF_DEMOTING) || (lk->bast != MXFS_MODE_NL && lk->mode != MXFS_MODE_NL)) {
		if (!try)
			ret = MXFS_STEP_WAIT;
	} else if (mxfs_lock_alone(lk)) {
		mxfs_lock_self_grant(lk, w->mode);
		if (!(lk->flags & MXFS_LF_COVERED))
			mxfs_count(lk->sbi, MXFS_COUNT_SOLO_GRANT);
		lk->users[w->mode]++;
		ret = 0;
	} else {
		mxfs_lock_ask(w);
		ret = MXFS_STEP_ASKED;
	}
out:
	if (ret <= 0)
		mxfs_lock_stop_waiting(lk, w->mode);
	if (!ret && !cached_only)
		lk->ahead_of = 0;
	spin_unlock(&lk->spin);
	return ret;
}

/* Killed while waiting. */
static void mxfs_lock_give_up(struct mxfs_lock_wait *w)
{
	struct mxfs_lock *lk = w->lk;
	u32 others = 0;
	int mode;

	spin_lock(&lk->spin);
	mxfs_lock_stop_waiting(lk, w->mode);
	for (mode = MXFS_MODE_CR; mode < MXFS_MODE_COUNT; mode++)
		others += lk->waiters[mode];
	if (!others && lk->want != MXFS_MODE_NL &&
	    !(lk->flags & (MXFS_LF_CANCELLED | MXFS_LF_NOQUEUE | MXFS_LF_TELLING))) {
		/* Answered by a denial, or a grant that crossed it: that one stays cached. */
		lk->flags |= MXFS_LF_CANCELLED;
		mxfs_item_add(lk, w->item, MXFS_CMD_LOCK_RELEASE, lk->want, lk->mode, MXFS_LKF_CANCEL);
		w->item = NULL;
	}
	spin_unlock(&lk->spin);
	mxfs_dlm_flush_later(lk->sbi->ls);
}

/* From the first request on a dump must find the lock. */
static void mxfs_lock_list(struct mxfs_lockspace *ls, struct mxfs_lock *lk)
{
	if (!list_empty_careful(&lk->all))
		return;
	spin_lock(&ls->spin);
	if (list_empty(&lk->all)) {
		lk->stamp = ls->stamp;
		list_add_tail(&lk->all, &ls->all);
		ls->count++;
	}
	spin_unlock(&ls->spin);
}

static int mxfs_lock_get_slow(struct mxfs_lock *lk, int mode, unsigned int flags)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;
	struct mxfs_lock_wait w = { .lk = lk, .mode = mode, .flags = flags };
	unsigned int state = flags & MXFS_LOCK_NOINTR ? MXFS_DLM_NOINTR : MXFS_DLM_KILLABLE;
	int step, err = 0;

	mxfs_lock_list(ls, lk);
	spin_lock(&lk->spin);
	lk->waiters[mode]++;
	spin_unlock(&lk->spin);
	for (;;) {
		if (!w.item)
			w.item = mxfs_item_new();
		step = mxfs_lock_step(&w);
		if (step == MXFS_STEP_ASKED) {
			mxfs_dlm_flush(ls);
			continue;
		}
		if (step == MXFS_STEP_WAIT) {
			/* Steps inside the condition: what it returns is acted upon. */
			err = wait_event_state(lk->wait, (step = mxfs_lock_step(&w)) != MXFS_STEP_WAIT, state);
			if (err) {
				mxfs_lock_give_up(&w);
				step = -ERESTARTSYS;
			} else if (step == MXFS_STEP_ASKED) {
				mxfs_dlm_flush(ls);
				continue;
			}
		}
		if (w.kick) {
			w.kick = false;
			mxfs_lock_kick(lk);
		}
		if (step <= 0)
			break;
	}
	kfree(w.item);
	/* A credit that was not used, or a use that took no time: the BAST need not wait for another event. */
	if (step < 0)
		mxfs_lock_kick(lk);
	return step;
}

int mxfs_lock_get(struct mxfs_lock *lk, int mode, unsigned int flags)
{
	bool got = false;

	if (WARN_ON_ONCE(mode <= MXFS_MODE_NL || mode >= MXFS_MODE_COUNT))
		return -EINVAL;
	spin_lock(&lk->spin);
	/* Credits are for those who wait. */
	if (mxfs_mode_covers[lk->mode][mode] && !mxfs_gate_fenced(&lk->sbi->gate) &&
	    (lk->bast == MXFS_MODE_NL || (!(lk->flags & MXFS_LF_DEMOTING) && mxfs_lock_held_for(lk)) ||
	     mxfs_mode_covers[mxfs_mode_target(lk->mode, lk->bast)][mode])) {
		lk->users[mode]++;
		if (flags & MXFS_LOCK_CACHED) /* perhaps a portion's own attributes that are put in */
			WRITE_ONCE(lk->recent, true);
		else
			mxfs_lock_used(lk);
		got = true;
	}
	spin_unlock(&lk->spin);
	if (got) {
		mxfs_count(lk->sbi, MXFS_COUNT_LOCK_HIT);
		return 0;
	}
	return mxfs_lock_get_slow(lk, mode, flags);
}

bool mxfs_lock_get_born(struct mxfs_lock *lk, struct mxfs_lock *parent, int mode)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;
	bool got = false, full = false;

	if (WARN_ON_ONCE(READ_ONCE(parent->users[MXFS_MODE_EX]) <= 0))
		return false;
	mxfs_lock_list(ls, lk);
	spin_lock(&lk->spin);
	if (lk->mode != MXFS_MODE_NL || lk->want != MXFS_MODE_NL || lk->bast != MXFS_MODE_NL || lk->flags ||
	    READ_ONCE(ls->fenced))
		goto out;
	if (READ_ONCE(ls->solo)) {
		mxfs_count(lk->sbi, MXFS_COUNT_SOLO_GRANT);
		got = true;
	} else {
		spin_lock(&ls->cover_spin);
		full = ls->cover_count >= MXFS_COVERED_MAX;
		if (!full) {
			ls->cover_count++;
			lk->cover = parent;
			list_add_tail(&lk->cover_list, &parent->covered);
			got = true;
		}
		spin_unlock(&ls->cover_spin);
		if (got)
			lk->flags |= MXFS_LF_COVERED;
		mxfs_count(lk->sbi, got ? MXFS_COUNT_COVERED : MXFS_COUNT_COVER_FULL);
	}
	if (got) {
		mxfs_lock_self_grant(lk, mode);
		lk->users[mode]++;
	}
out:
	spin_unlock(&lk->spin);
	if (full) /* room for the next ones; nobody waits for it here */
		mxfs_cover_ask_some(ls, parent, false);
	return got;
}

void mxfs_lock_moved(struct mxfs_lock *lk, struct mxfs_lock *parent)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;

	spin_lock(&lk->spin);
	if (lk->flags & MXFS_LF_COVERED) {
		bool telling = lk->flags & MXFS_LF_TELLING;

		spin_lock(&ls->cover_spin);
		lk->cover->telling_count -= telling;
		parent->telling_count += telling;
		lk->cover = parent;
		list_move_tail(&lk->cover_list, telling ? &parent->telling : &parent->covered);
		spin_unlock(&ls->cover_spin);
	}
	spin_unlock(&lk->spin);
}

/* Not covered, or an answer has come. */
static bool mxfs_lock_told(struct mxfs_lock *lk)
{
	bool told;

	spin_lock(&lk->spin);
	told = !(lk->flags & MXFS_LF_TELLING);
	spin_unlock(&lk->spin);
	return told;
}

int mxfs_lock_tell(struct mxfs_lock *lk)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;
	struct mxfs_lock_item *item;
	int err;

	if (!(READ_ONCE(lk->flags) & MXFS_LF_COVERED)) /* our use of it keeps it from becoming so */
		return 0;
	item = mxfs_item_new();
	if (mxfs_cover_ask(lk, item))
		item = NULL;
	kfree(item);
	mxfs_dlm_flush(ls);
	err = wait_event_state(lk->wait, mxfs_lock_told(lk), MXFS_DLM_KILLABLE);
	if (!err && READ_ONCE(lk->flags) & MXFS_LF_COVERED)
		err = READ_ONCE(ls->fenced) ? -EIO : -ENOLCK;
	return err;
}

void mxfs_lock_ask_ahead(struct mxfs_lock *lk, int mode, u64 of)
{
	struct mxfs_lock_wait w = { .lk = lk, .mode = mode };
	struct mxfs_lockspace *ls = lk->sbi->ls;
	bool ask;

	if (READ_ONCE(lk->mode) != MXFS_MODE_NL || READ_ONCE(ls->solo))
		return;
	mxfs_lock_list(ls, lk);
	w.item = mxfs_item_new();
	spin_lock(&lk->spin);
	ask = lk->mode == MXFS_MODE_NL && lk->want == MXFS_MODE_NL && !(lk->flags & MXFS_LF_DEMOTING) &&
	      !READ_ONCE(ls->fenced) && !READ_ONCE(ls->solo);
	if (ask) {
		mxfs_lock_ask(&w);
		mxfs_lock_set_unused(lk, of);
		mxfs_count(lk->sbi, MXFS_COUNT_ASK_AHEAD);
	}
	spin_unlock(&lk->spin);
	kfree(w.item);
}

/* Inside rcu_read_lock. Gives it up if nobody has used it yet. */
static void mxfs_ahead_give_one(struct mxfs_lock *lk, u64 of)
{
	bool give;

	spin_lock(&lk->spin);
	give = lk->ahead_of == of && lk->mode != MXFS_MODE_NL && lk->want == MXFS_MODE_NL && lk->bast == MXFS_MODE_NL &&
	       !lk->flags && !mxfs_lock_users_above(lk, MXFS_MODE_NL);
	if (give) {
		lk->ahead_of = 0;
		WRITE_ONCE(lk->bast, MXFS_MODE_EX);
	}
	spin_unlock(&lk->spin);
	if (give && mxfs_lock_kick(lk))
		mxfs_count(lk->sbi, MXFS_COUNT_AHEAD_GIVEN);
}

/*
 * Another node wants a lock of what directory `of` leads to that nobody here has used since it came, or was told: it will want
 * more of them, and nobody here looks at what they are for. Inside rcu_read_lock: locks that have left the list stay in memory.
 */
static void mxfs_ahead_give(struct mxfs_lockspace *ls, u64 of)
{
	struct mxfs_lock *some[MXFS_AHEAD_GIVE], *lk, *next;
	int count, i;
	u64 which;

	do {
		count = 0;
		spin_lock(&ls->ahead_spin);
		list_for_each_entry_safe(lk, next, &ls->ahead, ahead_list) {
			which = READ_ONCE(lk->ahead_of);
			if (which && which != of)
				continue;
			list_del_init(&lk->ahead_list);
			if (which)
				some[count++] = lk;
			if (count == MXFS_AHEAD_GIVE)
				break;
		}
		spin_unlock(&ls->ahead_spin);
		for (i = 0; i < count; i++)
			mxfs_ahead_give_one(some[i], of);
	} while (count == MXFS_AHEAD_GIVE);
}

void mxfs_lock_ask_flush(struct mxfs_sb_info *sbi)
{
	mxfs_dlm_flush(sbi->ls);
}

int mxfs_lock_ask_wait(struct mxfs_lock *lk, unsigned long deadline)
{
	long left = deadline - jiffies;

	if (READ_ONCE(lk->want) == MXFS_MODE_NL)
		return 0;
	if (left <= 0)
		return -ETIME;
	left = wait_event_killable_timeout(lk->wait, READ_ONCE(lk->want) == MXFS_MODE_NL, left);
	return left > 0 ? 0 : left < 0 ? left : -ETIME;
}

bool mxfs_lock_ask_room(struct mxfs_sb_info *sbi, unsigned int count)
{
	struct mxfs_lockspace *ls = sbi->ls;

	return !READ_ONCE(ls->solo) && !READ_ONCE(ls->fenced) && !READ_ONCE(ls->frozen) && !READ_ONCE(ls->stopping) &&
	       mxfs_cache_excess(ls) + (int)count <= -(int)(mxfs_cache_limit() / 8);
}

/*
 * A use has ended and somebody else wants the lock. Uses that belong together are let through; and who writes piece
 * after piece keeps the lock for a tenure, since handing it over costs a hundred times what a piece does. Reading
 * does not count: who waits to read another node's answer must not keep that node from writing it.
 */
static void mxfs_lock_hold(struct mxfs_lock *lk, int mode)
{
	unsigned long hold;

	if (mode > MXFS_MODE_PR && time_before(jiffies, lk->granted_at + msecs_to_jiffies(MXFS_LOCK_TENURE_MS))) {
		WRITE_ONCE(lk->hold_until, jiffies + msecs_to_jiffies(MXFS_LOCK_GAP_MS));
		return;
	}
	hold = lk->graces ? lk->ops->hold(lk) : 0;
	if (hold) {
		lk->graces--;
		WRITE_ONCE(lk->hold_until, jiffies + hold);
	}
}

void mxfs_lock_put(struct mxfs_lock *lk, int mode)
{
	bool recall;

	spin_lock(&lk->spin);
	if (!WARN_ON_ONCE(lk->users[mode] <= 0))
		lk->users[mode]--;
	if (lk->bast != MXFS_MODE_NL && lk->ops && lk->ops->hold)
		mxfs_lock_hold(lk, mode);
	recall = mxfs_lock_demotable(lk);
	spin_unlock(&lk->spin);
	if (recall && !mxfs_lock_kick(lk))
		wake_up_all(&lk->wait); /* somebody in mxfs_lock_drop */
}

bool mxfs_lock_is_cached(struct mxfs_lock *lk, int mode)
{
	int held = READ_ONCE(lk->mode), bast = READ_ONCE(lk->bast);

	return mxfs_mode_covers[held][mode] && mxfs_mode_covers[mxfs_mode_target(held, bast)][mode] &&
	       !mxfs_gate_fenced(&lk->sbi->gate) && mxfs_gate_lease_valid(lk->sbi);
}

/* ---------------------------------------------------------------- several parts of one operation */

int mxfs_op_begin(struct mxfs_sb_info *sbi, struct mxfs_lock *lk, int mode)
{
	int err = mxfs_lock_get(lk, mode, 0);

	if (err)
		return err;
	err = mxfs_gate_enter(sbi);
	if (err)
		mxfs_lock_put(lk, mode);
	return err;
}

void mxfs_op_end(struct mxfs_sb_info *sbi, struct mxfs_lock *lk, int mode)
{
	mxfs_gate_leave(sbi);
	mxfs_lock_put(lk, mode);
}

static bool mxfs_lock_before(const struct mxfs_lock *a, const struct mxfs_lock *b)
{
	if (a->ino != b->ino)
		return a->ino < b->ino;
	if (a->type != b->type)
		return a->type < b->type;
	return a->offset < b->offset;
}

int mxfs_op_begin_many(struct mxfs_sb_info *sbi, struct mxfs_lock_req *reqs, int count)
{
	int i, j, err = 0;

	for (i = 1; i < count; i++)
		for (j = i; j > 0 && reqs[j].lk && (!reqs[j - 1].lk || mxfs_lock_before(reqs[j].lk, reqs[j - 1].lk)); j--)
			swap(reqs[j], reqs[j - 1]);
	for (i = 0; i + 1 < count; i++) {
		if (!reqs[i].lk || reqs[i].lk != reqs[i + 1].lk)
			continue;
		reqs[i + 1].mode = mxfs_mode_join(reqs[i].mode, reqs[i + 1].mode);
		reqs[i].lk = NULL;
	}
	for (i = 0; i < count && !err; i++)
		if (reqs[i].lk)
			err = mxfs_lock_get(reqs[i].lk, reqs[i].mode, 0);
	if (!err) {
		err = mxfs_gate_enter(sbi);
		if (!err)
			return 0;
		i++; /* all of them are held */
	}
	for (j = i - 2; j >= 0; j--)
		if (reqs[j].lk)
			mxfs_lock_put(reqs[j].lk, reqs[j].mode);
	return err;
}

void mxfs_op_end_many(struct mxfs_sb_info *sbi, struct mxfs_lock_req *reqs, int count)
{
	int i;

	mxfs_gate_leave(sbi);
	for (i = count - 1; i >= 0; i--)
		if (reqs[i].lk)
			mxfs_lock_put(reqs[i].lk, reqs[i].mode);
}

/* ---------------------------------------------------------------- birth and death of a lock */

void mxfs_lock_init(struct mxfs_sb_info *sbi, struct mxfs_lock *lk, const struct mxfs_lock_ops *ops, void *owner,
		    u32 type, u64 ino, u64 offset)
{
	lk->sbi = sbi;
	lk->ops = ops;
	lk->owner = owner;
	lk->type = type;
	lk->ino = ino;
	lk->offset = offset;
	lk->gen = 1; /* 0 is "never fetched" */
	INIT_HLIST_NODE(&lk->hash);
	INIT_LIST_HEAD(&lk->all);
	INIT_LIST_HEAD(&lk->send);
	INIT_LIST_HEAD(&lk->cover_list);
	INIT_LIST_HEAD(&lk->covered);
	INIT_LIST_HEAD(&lk->telling);
	INIT_LIST_HEAD(&lk->ahead_list);
	spin_lock_init(&lk->spin);
	init_waitqueue_head(&lk->wait);
	INIT_WORK(&lk->work, mxfs_lock_work);
}

static void mxfs_lock_unlist(struct mxfs_lockspace *ls, struct mxfs_lock *lk)
{
	spin_lock(&ls->spin);
	if (!list_empty(&lk->all)) {
		list_del_init(&lk->all);
		ls->count--;
	}
	spin_unlock(&ls->spin);
}

/* What was changed under it is not durable yet: the lock goes on without its owner until it is. */
static void mxfs_lock_leave_zombie(struct mxfs_lockspace *ls, struct mxfs_lock *lk)
{
	struct mxfs_zombie *zombie = kzalloc(sizeof(*zombie), GFP_NOFS | __GFP_NOFAIL);
	struct mxfs_lock *heir = &zombie->lock;
	bool wanted;

	mxfs_lock_init(lk->sbi, heir, NULL, NULL, lk->type, lk->ino, lk->offset);
	heir->inode_gen = lk->inode_gen;
	mxfs_cover_inherit(ls, lk, heir);
	spin_lock(&ls->spin);
	spin_lock(&lk->spin);
	heir->flags = MXFS_LF_ZOMBIE;
	heir->mode = lk->mode;
	heir->lock_id = lk->lock_id;
	heir->seq = lk->seq;
	heir->stamp = lk->stamp;
	heir->dead = lk->dead;
	heir->given = lk->given;
	wanted = lk->bast != MXFS_MODE_NL && !lk->given;
	list_replace_init(&lk->all, &heir->all);
	spin_lock(&ls->hash_spin);
	hash_del(&lk->hash);
	hash_add(ls->hash, &heir->hash, heir->lock_id);
	spin_unlock(&ls->hash_spin);
	lk->lock_id = 0;
	lk->mode = MXFS_MODE_NL; /* one of both is counted as held */
	spin_lock(&ls->send_spin);
	list_add_tail(&zombie->list, &ls->zombies);
	spin_unlock(&ls->send_spin);
	spin_unlock(&lk->spin);
	spin_unlock(&ls->spin);
	if (wanted)
		mod_delayed_work(ls->wq, &ls->zombie_work, 0);
	else
		queue_delayed_work(ls->wq, &ls->zombie_work,
				   msecs_to_jiffies(READ_ONCE(lk->sbi->role) == MXFS_ROLE_HOLDER ? MXFS_ZOMBIE_MS : MXFS_ZOMBIE_MEMBER_MS));
}

/* Something has to be done before the lock may be given up, which an eviction must not wait for. */
static bool mxfs_lock_needs_heir(struct mxfs_lockspace *ls, struct mxfs_lock *lk)
{
	if (!mxfs_mode_covers[lk->mode][MXFS_MODE_CW] || READ_ONCE(ls->fenced))
		return false;
	/* Known by name only behind the cover, whose business all of it is then; that it is gone has changed the cover's names. */
	if (READ_ONCE(lk->flags) & MXFS_LF_COVERED && (!lk->dirtied || lk->dead || mxfs_lock_defer_clean(lk)))
		return false;
	if (lk->want != MXFS_MODE_NL)
		return false;
	return mxfs_cover_any(ls, lk) || (lk->dirtied && !mxfs_lock_defer_clean(lk));
}

/* Fenced, else there are none: nobody is told anything any more. */
static void mxfs_cover_forget(struct mxfs_lockspace *ls, struct mxfs_lock *lk)
{
	struct mxfs_lock *child;
	bool any;

	do {
		rcu_read_lock();
		spin_lock(&ls->cover_spin);
		child = list_first_entry_or_null(&lk->covered, struct mxfs_lock, cover_list) ?:
			list_first_entry_or_null(&lk->telling, struct mxfs_lock, cover_list);
		spin_unlock(&ls->cover_spin);
		any = child;
		if (child) {
			WARN_ON_ONCE(!READ_ONCE(ls->fenced));
			spin_lock(&child->spin);
			if (child->cover == lk)
				mxfs_cover_end(child);
			spin_unlock(&child->spin);
		}
		rcu_read_unlock();
	} while (any);
}

void mxfs_lock_destroy(struct mxfs_lock *lk)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;
	struct mxfs_lock_item *item;
	bool told, unknown;
	int mode;

	if (list_empty_careful(&lk->all)) /* never asked for */
		return;
	for (mode = MXFS_MODE_CR; mode < MXFS_MODE_COUNT; mode++)
		WARN_ON_ONCE(lk->users[mode]);
	WARN_ON_ONCE(lk->flags & MXFS_LF_DEMOTING);
	if (!list_empty_careful(&lk->ahead_list)) {
		spin_lock(&ls->ahead_spin);
		list_del_init(&lk->ahead_list);
		spin_unlock(&ls->ahead_spin);
	}
	if (mxfs_lock_needs_heir(ls, lk)) {
		mxfs_lock_leave_zombie(ls, lk);
		return;
	}
	/* Mostly nobody knows the lock, and nothing will be said. */
	unknown = mxfs_lock_unknown(lk);
again:
	item = unknown ? NULL : mxfs_item_new();
	spin_lock(&lk->spin);
	if (unknown && !mxfs_lock_unknown(lk)) {
		spin_unlock(&lk->spin);
		unknown = false;
		goto again;
	}
	if (lk->flags & MXFS_LF_COVERED && mxfs_cover_any(ls, lk)) /* they are reached through what covers this one */
		mxfs_cover_inherit(ls, lk, NULL);
	if (lk->lock_id) {
		/* Whatever is outstanding goes with it; a grant that crosses this is answered as unknown. */
		mxfs_item_add(lk, item, MXFS_CMD_LOCK_RELEASE, MXFS_MODE_NL, lk->mode, 0);
		item = NULL;
		lk->want = MXFS_MODE_NL;
		mxfs_lock_unhash(ls, lk);
		mxfs_lock_set_mode(lk, MXFS_MODE_NL);
	}
	mxfs_cover_end(lk);
	told = !list_empty_careful(&ls->send);
	spin_unlock(&lk->spin);
	mxfs_cover_forget(ls, lk);
	mxfs_lock_unlist(ls, lk);
	kfree(item);
	if (told)
		mxfs_dlm_flush_later(ls);
}

static void mxfs_dlm_zombie_work(struct work_struct *work)
{
	struct mxfs_lockspace *ls = container_of(to_delayed_work(work), struct mxfs_lockspace, zombie_work);
	struct mxfs_zombie *zombie, *next;
	struct mxfs_lock_item *item;
	LIST_HEAD(dead);
	bool gone = true;
	int err;

	spin_lock(&ls->send_spin);
	list_splice_init(&ls->zombies, &dead);
	spin_unlock(&ls->send_spin);
	if (list_empty(&dead))
		return;
	list_for_each_entry(zombie, &dead, list) {
		mxfs_cover_flush(&zombie->lock, false);
		mxfs_cover_flush_moved(&zombie->lock);
		gone &= zombie->lock.dead;
	}
	/* One log force for all of them; what is only gone has no data to write. */
	err = mxfs_gate_enter_wait(ls->sbi);
	if (!err) {
		if (ls->sbi->be->settle)
			err = ls->sbi->be->settle(ls->sbi);
		else
			err = gone && ls->sbi->lower ? mxfs_lower_commit(ls->sbi) : ls->sbi->be->syncfs(ls->sbi);
		mxfs_gate_leave(ls->sbi);
	}
	/* A takeover may have come in between. */
	list_for_each_entry(zombie, &dead, list)
		mxfs_cover_flush_moved(&zombie->lock);
	if (err && !mxfs_gate_fenced(&ls->sbi->gate)) {
		mxfs_fence(ls->sbi, "changes could not be made durable before their locks are given up");
	}
	list_for_each_entry_safe(zombie, next, &dead, list) {
		item = mxfs_item_new();
		spin_lock(&zombie->lock.spin);
		mxfs_item_add(&zombie->lock, item, MXFS_CMD_LOCK_RELEASE, MXFS_MODE_NL, zombie->lock.mode, 0);
		mxfs_lock_unhash(ls, &zombie->lock);
		mxfs_lock_set_mode(&zombie->lock, MXFS_MODE_NL);
		spin_unlock(&zombie->lock.spin);
		mxfs_cover_forget(ls, &zombie->lock);
		mxfs_lock_unlist(ls, &zombie->lock);
		kfree_rcu(zombie, rcu);
	}
	mxfs_dlm_flush(ls);
}

/* ---------------------------------------------------------------- from the daemon */

static void mxfs_dlm_answer_unknown(struct mxfs_lockspace *ls, const struct mxfs_lock_entry *e)
{
	struct mxfs_lock_item *item = mxfs_item_new();

	item->cmd = MXFS_CMD_LOCK_RELEASE;
	item->entry = *e;
	item->entry.mode = MXFS_MODE_NL;
	item->entry.flags = 0;
	item->entry.status = 0;
	item->stamp = READ_ONCE(ls->stamp);
	spin_lock(&ls->send_spin);
	list_add_tail(&item->list, &ls->send);
	spin_unlock(&ls->send_spin);
	mxfs_dlm_flush_later(ls);
}

/* Both under lk->spin. */
static void mxfs_lock_granted(struct mxfs_lock *lk, int mode)
{
	lk->want = MXFS_MODE_NL;
	lk->flags &= ~(MXFS_LF_CANCELLED | MXFS_LF_NOQUEUE);
	mxfs_cover_end(lk);
	mxfs_lock_set_mode(lk, mode);
	lk->granted_at = jiffies;
	lk->graces = MXFS_LOCK_GRACES;
	lk->credits = mxfs_lock_waiters_served(lk);
}

static void mxfs_lock_refused(struct mxfs_lockspace *ls, struct mxfs_lock *lk, int error)
{
	lk->want = MXFS_MODE_NL;
	lk->flags &= ~(MXFS_LF_CANCELLED | MXFS_LF_NOQUEUE);
	if (lk->flags & MXFS_LF_TELLING) {
		/* No room for it at its master: given up as soon as nobody uses it. */
		mxfs_cover_untold(lk);
		WRITE_ONCE(lk->bast, MXFS_MODE_EX);
		return;
	}
	lk->error = error;
	lk->deny_seq = lk->seq;
	if (lk->mode == MXFS_MODE_NL) {
		mxfs_lock_unhash(ls, lk);
		WRITE_ONCE(lk->bast, MXFS_MODE_NL);
	}
}

static void mxfs_lock_recalled(struct mxfs_lock *lk, const struct mxfs_lock_entry *e)
{
	if (!mxfs_mode_compatible[lk->mode][e->mode] ||
	    /* It overtook the grant that it is about. */
	    (lk->want != MXFS_MODE_NL && !mxfs_mode_compatible[lk->want][e->mode] &&
	     !mxfs_mode_covers[lk->mode][e->granted]))
		WRITE_ONCE(lk->bast, mxfs_mode_join(lk->bast, e->mode));
	/* Else a convert or release on its way has answered it. */
}

static void mxfs_dlm_receive_one(struct mxfs_lockspace *ls, int cmd, const struct mxfs_lock_entry *e)
{
	u64 epoch = le64_to_cpu(e->epoch);
	bool current_epoch = epoch == READ_ONCE(ls->epoch);
	struct mxfs_lock *lk;
	u64 unused = 0;

	if (e->mode >= MXFS_MODE_COUNT || e->granted >= MXFS_MODE_COUNT) {
		pr_warn_ratelimited("mxfs: lock message %d with mode %u, granted %u: there are %d modes; ignored\n", cmd,
				    e->mode, e->granted, MXFS_MODE_COUNT);
		return;
	}
	if (cmd == MXFS_CMD_BAST ? epoch < READ_ONCE(ls->epoch) : !current_epoch)
		return;

	rcu_read_lock();
	lk = mxfs_lock_find(ls, le64_to_cpu(e->lock_id));
	if (!lk) {
		rcu_read_unlock();
		if (cmd != MXFS_CMD_LOCK_DENY)
			mxfs_dlm_answer_unknown(ls, e);
		return;
	}
	spin_lock(&lk->spin);
	if (lk->lock_id != le64_to_cpu(e->lock_id)) {
		; /* released a moment ago, and the daemon was told so */
	} else if (cmd == MXFS_CMD_BAST) {
		mxfs_count(ls->sbi, MXFS_COUNT_BAST);
		mxfs_lock_recalled(lk, e);
		if (lk->bast != MXFS_MODE_NL && lk->mode != MXFS_MODE_NL) {
			unused = lk->ahead_of;
			lk->ahead_of = 0;
		}
		if (lk->flags & MXFS_LF_ZOMBIE)
			mod_delayed_work(ls->wq, &ls->zombie_work, 0);
	} else if (lk->want != MXFS_MODE_NL && lk->seq == le32_to_cpu(e->seq)) {
		if (cmd == MXFS_CMD_LOCK_GRANT)
			mxfs_lock_granted(lk, e->mode);
		else
			mxfs_lock_refused(ls, lk, le32_to_cpu(e->status) && le32_to_cpu(e->status) <= MAX_ERRNO ?
							  le32_to_cpu(e->status) : EIO);
	}
	spin_unlock(&lk->spin);
	wake_up_all(&lk->wait);
	mxfs_lock_kick(lk);
	if (unused)
		mxfs_ahead_give(ls, unused);
	rcu_read_unlock();
}

void mxfs_dlm_receive(struct mxfs_sb_info *sbi, int cmd, const struct mxfs_lock_entry *entries, int count)
{
	int i;

	for (i = 0; i < count; i++)
		mxfs_dlm_receive_one(sbi->ls, cmd, &entries[i]);
}

/* ---------------------------------------------------------------- views */

/* One lock's line in the dump; under ls->spin. False: nothing is held or wanted. */
static bool mxfs_lock_describe(struct mxfs_lockspace *ls, struct mxfs_lock *lk, struct mxfs_lock_entry *e)
{
	bool wake = false, there;

	spin_lock(&lk->spin);
	lk->stamp = ls->stamp;
	if (lk->flags & MXFS_LF_COVERED) {
		/* Told as held: that makes it known. */
		if (lk->flags & MXFS_LF_TELLING)
			lk->want = MXFS_MODE_NL;
		mxfs_cover_end(lk);
		wake = true;
	}
	if (lk->want != MXFS_MODE_NL && (lk->flags & MXFS_LF_CANCELLED)) {
		/* The new master never hears of it. */
		mxfs_lock_refused(ls, lk, ECANCELED);
		wake = true;
	}
	there = lk->mode != MXFS_MODE_NL || lk->want != MXFS_MODE_NL;
	if (there) {
		memset(e, 0, sizeof(*e));
		e->resource.volume = cpu_to_le64(lk->sbi->volume);
		e->resource.ino = cpu_to_le64(lk->ino);
		e->resource.offset = cpu_to_le64(lk->offset);
		e->resource.ag = cpu_to_le32(lk->inode_gen);
		e->resource.type = cpu_to_le32(lk->type);
		e->lock_id = cpu_to_le64(lk->lock_id);
		e->epoch = cpu_to_le64(ls->epoch);
		e->seq = cpu_to_le32(lk->seq);
		e->node = cpu_to_le32(lk->sbi->node);
		e->granted = lk->mode;
		e->mode = lk->want != MXFS_MODE_NL ? lk->want : lk->mode;
		e->flags = cpu_to_le16((lk->want != MXFS_MODE_NL ? MXFS_LKF_WAITING : 0) |
				       (lk->want != MXFS_MODE_NL && (lk->flags & MXFS_LF_NOQUEUE) ? MXFS_LKF_NOQUEUE : 0) |
				       (lk->want != MXFS_MODE_NL && lk->mode != MXFS_MODE_NL ? MXFS_LKF_CONVERT : 0));
	}
	spin_unlock(&lk->spin);
	if (wake)
		wake_up_all(&lk->wait);
	return there;
}

/* Under ls->spin, with room for all. */
static size_t mxfs_dlm_describe_all(struct mxfs_lockspace *ls, struct mxfs_lock_entry *entries)
{
	struct mxfs_lock *lk;
	size_t count = 0;

	list_for_each_entry(lk, &ls->all, all)
		if (mxfs_lock_describe(ls, lk, &entries[count]))
			count++;
	return count;
}

/*
 * The end of solo: what was changed under locks that nobody has any more becomes durable before another node can be
 * granted one. The XFS stays meanwhile: roles change under role_mutex. Not through the gate, which a view change may have shut.
 */
static int mxfs_dlm_end_solo(struct mxfs_lockspace *ls)
{
	struct mxfs_sb_info *sbi = ls->sbi;
	int err = 0;

	if (!READ_ONCE(ls->solo_dirty))
		return 0;
	smp_store_mb(ls->solo_dirty, false);
	mutex_lock(&sbi->role_mutex);
	if (sbi->lower && !mxfs_gate_fenced(&sbi->gate))
		err = mxfs_lower_sync(sbi);
	mutex_unlock(&sbi->role_mutex);
	if (err)
		mxfs_fence(sbi, "changes could not be made durable before another node joins");
	return err;
}

int mxfs_dlm_dump(struct mxfs_sb_info *sbi, u64 epoch, bool solo)
{
	struct mxfs_lockspace *ls = sbi->ls;
	struct mxfs_lock_entry *entries = NULL;
	size_t room = 0, count = 0, i, part;
	int err;

	if (READ_ONCE(ls->solo) && !solo) { /* most of it before anybody has to wait for it */
		err = mxfs_dlm_end_solo(ls);
		if (err)
			return err;
	}
	mutex_lock(&ls->send_mutex);
	WRITE_ONCE(ls->frozen, true);
	for (;;) {
		spin_lock(&ls->spin);
		if (solo || ls->count <= room)
			break; /* with ls->spin */
		room = ls->count + 64;
		spin_unlock(&ls->spin);
		kvfree(entries);
		entries = kvmalloc_array(room, sizeof(*entries), GFP_KERNEL);
		if (!entries) {
			mutex_unlock(&ls->send_mutex);
			return -ENOMEM;
		}
	}
	ls->stamp++;
	WRITE_ONCE(ls->epoch, epoch);
	ls->dump_solo = solo;
	/* Whoever holds a lock's spinlock and still sees solo is found by the walk, or by the look at solo_dirty. */
	smp_store_mb(ls->solo, false);
	if (!solo)
		count = mxfs_dlm_describe_all(ls, entries);
	spin_unlock(&ls->spin);

	for (i = 0; i < count; i += part) {
		part = min_t(size_t, count - i, MXFS_NL_LOCKS_MAX);
		mxfs_dlm_send_batch(ls, MXFS_CMD_LOCK_DUMP, entries + i, part);
	}
	mutex_unlock(&ls->send_mutex);
	kvfree(entries);
	return solo ? 0 : mxfs_dlm_end_solo(ls);
}

/* Nobody else is there: what is held stays, what was asked for is granted, what was to be sent concerns nobody. */
static void mxfs_dlm_begin_solo(struct mxfs_lockspace *ls)
{
	struct mxfs_lock *lk;

	spin_lock(&ls->spin);
	ls->stamp++;
	smp_store_mb(ls->solo, true);
	list_for_each_entry(lk, &ls->all, all) {
		spin_lock(&lk->spin);
		lk->stamp = ls->stamp;
		if (lk->flags & MXFS_LF_TELLING)
			lk->want = MXFS_MODE_NL;
		mxfs_cover_end(lk);
		if (lk->want != MXFS_MODE_NL && (lk->flags & MXFS_LF_CANCELLED))
			mxfs_lock_refused(ls, lk, ECANCELED);
		else if (lk->want != MXFS_MODE_NL)
			mxfs_lock_granted(lk, mxfs_mode_join(lk->want, lk->mode));
		spin_unlock(&lk->spin);
		wake_up_all(&lk->wait);
	}
	spin_unlock(&ls->spin);
}

void mxfs_dlm_view(struct mxfs_sb_info *sbi, u64 epoch, bool solo)
{
	struct mxfs_lockspace *ls = sbi->ls;

	if (solo != READ_ONCE(ls->dump_solo)) {
		mxfs_err(sbi, "the daemon's view is %s and its lock dump was not: locks wait for the next one",
			 solo ? "solo" : "shared");
		return;
	}
	WRITE_ONCE(ls->epoch, epoch);
	if (solo)
		mxfs_dlm_begin_solo(ls);
	WRITE_ONCE(ls->frozen, false);
	mxfs_dlm_flush_later(ls);
}

void mxfs_dlm_ready(struct mxfs_sb_info *sbi, u64 epoch)
{
	if (!READ_ONCE(sbi->ls->dump_solo))
		mxfs_dlm_view(sbi, epoch, false);
}

void mxfs_dlm_freeze(struct mxfs_sb_info *sbi)
{
	WRITE_ONCE(sbi->ls->frozen, true);
}

/* Ends every outstanding request here; under ls->spin. */
static void mxfs_dlm_refuse_all(struct mxfs_lockspace *ls, int error)
{
	struct mxfs_lock *lk;

	list_for_each_entry(lk, &ls->all, all) {
		spin_lock(&lk->spin);
		if (lk->want != MXFS_MODE_NL)
			mxfs_lock_refused(ls, lk, error);
		spin_unlock(&lk->spin);
		wake_up_all(&lk->wait);
	}
	mxfs_cover_event(ls);
}

void mxfs_dlm_fence(struct mxfs_sb_info *sbi)
{
	struct mxfs_lockspace *ls = sbi->ls;

	spin_lock(&ls->spin);
	WRITE_ONCE(ls->fenced, true);
	mxfs_dlm_refuse_all(ls, EIO);
	spin_unlock(&ls->spin);
}

/* ---------------------------------------------------------------- the cache's size */

/*
 * Second chance: the list of all locks is the clock's face, its head the hand. What was used since the hand came by goes
 * to the end once more; what was not, and nobody uses, is given up as if another node wanted it. Returns how many.
 */
static int mxfs_dlm_trim_turn(struct mxfs_lockspace *ls, int count)
{
	struct mxfs_lock *lk;
	int look, given = 0;
	bool idle;

	spin_lock(&ls->spin);
	for (look = min_t(unsigned int, ls->count, MXFS_TRIM_LOOK); look > 0 && given < count; look--) {
		lk = list_first_entry(&ls->all, struct mxfs_lock, all);
		list_move_tail(&lk->all, &ls->all);
		spin_lock(&lk->spin);
		idle = lk->mode != MXFS_MODE_NL && lk->want == MXFS_MODE_NL && lk->bast == MXFS_MODE_NL &&
		       !(lk->flags & ~MXFS_LF_COVERED) && lk->ops && !mxfs_lock_users_above(lk, MXFS_MODE_NL) &&
		       list_empty(&lk->covered) && list_empty(&lk->telling) && !READ_ONCE(ls->stopping);
		if (idle && READ_ONCE(lk->recent)) {
			WRITE_ONCE(lk->recent, false);
			idle = false;
		}
		idle = idle && (!lk->ops->idle || lk->ops->idle(lk));
		if (idle) {
			WRITE_ONCE(lk->bast, MXFS_MODE_EX);
			lk->given = true;
			atomic_inc(&ls->giving);
		}
		spin_unlock(&lk->spin);
		/* It is listed, so it stays for as long as ls->spin is held; the work has a reference of its own. */
		if (idle && mxfs_lock_kick(lk))
			given++;
	}
	spin_unlock(&ls->spin);
	return given;
}

/* Gives up to `count` locks up, asynchronously. The hand goes round twice at most. False: that was not enough. */
static bool mxfs_dlm_trim(struct mxfs_lockspace *ls, int count)
{
	long looks = 2 * (long)READ_ONCE(ls->count) + MXFS_TRIM_LOOK;
	int given;

	while (count > 0 && looks > 0) {
		given = mxfs_dlm_trim_turn(ls, count);
		mxfs_count_add(ls->sbi, MXFS_COUNT_CACHE_EVICTED, given);
		count -= given;
		looks -= MXFS_TRIM_LOOK;
		cond_resched();
	}
	return count <= 0;
}

static void mxfs_dlm_trim_work(struct work_struct *work)
{
	struct mxfs_lockspace *ls = container_of(work, struct mxfs_lockspace, trim_work);
	int excess = mxfs_cache_excess(ls);

	/* A little below the limit, so that not every new lock does this. */
	if (excess > 0 && !mxfs_dlm_trim(ls, excess + (int)(mxfs_cache_limit() / 16)))
		WRITE_ONCE(ls->trim_after, jiffies + MXFS_TRIM_PAUSE);
}

static unsigned long mxfs_dlm_shrink_count(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct mxfs_lockspace *ls = container_of(shrinker, struct mxfs_lockspace, shrinker);

	return atomic_read(&ls->held) ?: SHRINK_EMPTY;
}

/* Nothing is waited for here. */
static unsigned long mxfs_dlm_shrink_scan(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct mxfs_lockspace *ls = container_of(shrinker, struct mxfs_lockspace, shrinker);
	unsigned long given;

	if (READ_ONCE(ls->stopping))
		return SHRINK_STOP;
	given = mxfs_dlm_trim_turn(ls, min_t(unsigned long, sc->nr_to_scan, MXFS_TRIM_LOOK));
	mxfs_count_add(ls->sbi, MXFS_COUNT_CACHE_EVICTED, given);
	return given;
}

int mxfs_dlm_describe(struct mxfs_sb_info *sbi, char *text, int size)
{
	struct mxfs_lockspace *ls = sbi->ls;

	return scnprintf(text, size, "locks_held %d\nlocks_limit %u\nlocks_covered %u\nlocks_solo %d\n",
			 atomic_read(&ls->held), mxfs_cache_limit(), READ_ONCE(ls->cover_count), READ_ONCE(ls->solo));
}

/* ---------------------------------------------------------------- unmount */

void mxfs_dlm_stop(struct mxfs_sb_info *sbi)
{
	WRITE_ONCE(sbi->ls->stopping, true);
	mxfs_nl_flush(sbi);
	flush_workqueue(sbi->ls->wq);
}

int mxfs_dlm_drop_all(struct mxfs_sb_info *sbi)
{
	struct mxfs_lockspace *ls = sbi->ls;
	struct mxfs_lock *lk, *found;
	unsigned int tries;
	int err = 0;

	/* Nobody waits for them any more; the answers will be for unknown ids. */
	spin_lock(&ls->spin);
	mxfs_dlm_refuse_all(ls, ECANCELED);
	spin_unlock(&ls->spin);

	/* Each turn pins the first one that still holds something, drops it, and puts it to the tail. */
	spin_lock(&ls->spin);
	tries = ls->count;
	spin_unlock(&ls->spin);
	while (tries--) {
		found = NULL;
		spin_lock(&ls->spin);
		list_for_each_entry(lk, &ls->all, all) {
			if (READ_ONCE(lk->mode) != MXFS_MODE_NL && !(lk->flags & MXFS_LF_ZOMBIE) &&
			    (!lk->ops || !lk->ops->get || lk->ops->get(lk))) {
				found = lk;
				list_move_tail(&lk->all, &ls->all);
				break;
			}
		}
		spin_unlock(&ls->spin);
		if (!found)
			break;
		err = mxfs_lock_drop(found, MXFS_MODE_NL, MXFS_LOCK_NOINTR) ?: err;
		if (found->ops && found->ops->put)
			found->ops->put(found);
	}
	flush_delayed_work(&ls->zombie_work);
	flush_delayed_work(&ls->send_soon);
	flush_work(&ls->send_work);
	return err;
}

int mxfs_dlm_init(struct mxfs_sb_info *sbi)
{
	struct mxfs_lockspace *ls = kvzalloc(sizeof(*ls), GFP_KERNEL);

	if (!ls)
		return -ENOMEM;
	ls->sbi = sbi;
	spin_lock_init(&ls->spin);
	spin_lock_init(&ls->hash_spin);
	spin_lock_init(&ls->send_spin);
	spin_lock_init(&ls->cover_spin);
	spin_lock_init(&ls->ahead_spin);
	INIT_LIST_HEAD(&ls->ahead);
	init_waitqueue_head(&ls->cover_wait);
	INIT_WORK(&ls->trim_work, mxfs_dlm_trim_work);
	ls->trim_after = jiffies;
	mutex_init(&ls->send_mutex);
	INIT_LIST_HEAD(&ls->all);
	INIT_LIST_HEAD(&ls->send);
	INIT_LIST_HEAD(&ls->zombies);
	hash_init(ls->hash);
	INIT_WORK(&ls->send_work, mxfs_dlm_send_work);
	INIT_DELAYED_WORK(&ls->send_soon, mxfs_dlm_send_soon);
	INIT_DELAYED_WORK(&ls->zombie_work, mxfs_dlm_zombie_work);
	ls->frozen = true; /* until the first view */
	mxfs_lock_init(sbi, &ls->moved, NULL, NULL, MXFS_RES_INODE, 0, 0);
	/* Ids never come twice, in later mounts of this node neither: the time of the mount in front. */
	atomic64_set(&ls->next_id, (ktime_get_real_seconds() << 24) & GENMASK_ULL(MXFS_LOCK_CLIENT_SHIFT - 1, 0));
	ls->batch = kmalloc_array(MXFS_NL_LOCKS_MAX, sizeof(*ls->batch), GFP_KERNEL);
	ls->wq = alloc_workqueue("mxfs-demote/%u", WQ_UNBOUND | WQ_MEM_RECLAIM, 256, sbi->mount_id);
	ls->send_wq = alloc_ordered_workqueue("mxfs-ask/%u", WQ_MEM_RECLAIM | WQ_HIGHPRI, sbi->mount_id);
	ls->shrinker.count_objects = mxfs_dlm_shrink_count;
	ls->shrinker.scan_objects = mxfs_dlm_shrink_scan;
	ls->shrinker.seeks = DEFAULT_SEEKS;
	sbi->ls = ls;
	if (ls->batch && ls->wq && ls->send_wq && !register_shrinker(&ls->shrinker, "mxfs-locks:%u", sbi->mount_id))
		return 0;
	mxfs_dlm_destroy(sbi);
	return -ENOMEM;
}

void mxfs_dlm_destroy(struct mxfs_sb_info *sbi)
{
	struct mxfs_lockspace *ls = sbi->ls;
	struct mxfs_lock_item *item, *next;

	if (!ls)
		return;
	unregister_shrinker(&ls->shrinker); /* one that was not registered, too */
	flush_delayed_work(&ls->zombie_work);
	if (ls->wq)
		destroy_workqueue(ls->wq);
	flush_delayed_work(&ls->send_soon);
	if (ls->send_wq)
		destroy_workqueue(ls->send_wq);
	WARN_ON_ONCE(!list_empty(&ls->all));
	list_for_each_entry_safe(item, next, &ls->send, list)
		kfree(item);
	kfree(ls->batch);
	kvfree(ls);
	sbi->ls = NULL;
}
