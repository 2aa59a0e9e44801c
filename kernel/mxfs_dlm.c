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
 * Order of spinlocks: ls->spin -> lk->spin -> ls->hash_spin, ls->send_spin. None is held around call-backs but
 * ops->get (igrab: i_lock is inside lk->spin's level, never around it).
 *
 * Known weakness: a dump holds ls->spin while it walks all locks (some 0.1 us each).
 */
#include "mxfs.h"

#include <linux/hashtable.h>
#include <linux/sched/signal.h>
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

#define MXFS_DLM_KILLABLE (TASK_KILLABLE | TASK_FREEZABLE_UNSAFE)
#define MXFS_DLM_NOINTR (TASK_UNINTERRUPTIBLE | TASK_FREEZABLE_UNSAFE)
#define MXFS_DLM_HASH_BITS 14

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
	atomic64_t next_id;
	spinlock_t hash_spin;
	DECLARE_HASHTABLE(hash, MXFS_DLM_HASH_BITS);
	spinlock_t send_spin;	/* send, zombies */
	struct list_head send;
	struct list_head zombies;
	struct mutex send_mutex; /* one flush, or dump, at a time */
	struct mxfs_lock_entry *batch;
	struct work_struct send_work, zombie_work;
	struct workqueue_struct *wq;	  /* demotes; they may wait for each other's locks */
	struct workqueue_struct *send_wq;
};

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
		[MXFS_MODE_NL] = MXFS_MODE_EX, [MXFS_MODE_CR] = MXFS_MODE_PR, [MXFS_MODE_CW] = MXFS_MODE_CR,
		[MXFS_MODE_PR] = MXFS_MODE_PR, [MXFS_MODE_PW] = MXFS_MODE_CR, [MXFS_MODE_EX] = MXFS_MODE_NL,
	};

	if (mxfs_mode_compatible[mode][bast])
		return mode;
	return mxfs_mode_covers[mode][target[bast]] ? target[bast] : MXFS_MODE_NL;
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

/* Under lk->spin. */
static void mxfs_item_add(struct mxfs_lock *lk, struct mxfs_lock_item *item, int cmd, int mode, int granted, u32 flags)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;

	memset(&item->entry, 0, sizeof(item->entry));
	item->cmd = cmd;
	item->stamp = lk->stamp;
	item->entry.resource.volume = cpu_to_le64(lk->sbi->volume);
	item->entry.resource.ino = cpu_to_le64(lk->ino);
	item->entry.resource.offset = cpu_to_le64(lk->offset);
	item->entry.resource.type = cpu_to_le32(lk->type);
	item->entry.lock_id = cpu_to_le64(lk->lock_id);
	item->entry.seq = cpu_to_le32(lk->seq);
	item->entry.mode = mode;
	item->entry.granted = granted;
	item->entry.flags = cpu_to_le16(flags);
	spin_lock(&ls->send_spin);
	list_add_tail(&item->list, &ls->send);
	spin_unlock(&ls->send_spin);
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

/* The state was changed to `mode`. */
static void mxfs_lock_set_mode(struct mxfs_lock *lk, int mode)
{
	bool had = mxfs_mode_covers[lk->mode][MXFS_MODE_PR], has = mxfs_mode_covers[mode][MXFS_MODE_PR];

	WRITE_ONCE(lk->mode, mode);
	if (had != has)
		WRITE_ONCE(lk->gen, lk->gen + 1);
	if (lk->bast != MXFS_MODE_NL && mxfs_mode_compatible[mode][lk->bast])
		WRITE_ONCE(lk->bast, MXFS_MODE_NL);
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

		if (lk->ops && lk->ops->demote)
			lk->ops->demote(lk, from, to);

		spin_lock(&lk->spin);
		lk->flags &= ~MXFS_LF_DEMOTING;
		lk->dirtied = false;
		mxfs_item_add(lk, item, to == MXFS_MODE_NL ? MXFS_CMD_LOCK_RELEASE : MXFS_CMD_LOCK_CONVERT, to, from,
			      to == MXFS_MODE_NL ? 0 : MXFS_LKF_CONVERT);
		mxfs_lock_set_mode(lk, to);
		if (to == MXFS_MODE_NL)
			mxfs_lock_unhash(ls, lk);
		spin_unlock(&lk->spin);
		wake_up_all(&lk->wait);
		mxfs_count(lk->sbi, MXFS_COUNT_DEMOTE);
		mxfs_dlm_flush(ls);
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
		/* One request for all who wait; PR costs nobody more than CR (nobody takes CW or PW on INODE). */
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
		if (lk->bast == MXFS_MODE_NL || lk->credits || mxfs_lock_held_for(lk) ||
		    mxfs_mode_covers[mxfs_mode_target(lk->mode, lk->bast)][w->mode]) {
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
		if (!w->seq && !(lk->flags & (MXFS_LF_CANCELLED | MXFS_LF_NOQUEUE)) && ret == MXFS_STEP_WAIT &&
		    mxfs_mode_covers[lk->want][w->mode]) {
			w->seq = lk->seq;
			w->upgrade = false;
		}
	} else if ((lk->flags & MXFS_LF_DEMOTING) || (lk->bast != MXFS_MODE_NL && lk->mode != MXFS_MODE_NL)) {
		if (!try)
			ret = MXFS_STEP_WAIT;
	} else {
		mxfs_lock_ask(w);
		ret = MXFS_STEP_ASKED;
	}
out:
	if (ret <= 0)
		mxfs_lock_stop_waiting(lk, w->mode);
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
	if (!others && lk->want != MXFS_MODE_NL && !(lk->flags & (MXFS_LF_CANCELLED | MXFS_LF_NOQUEUE))) {
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
	if (mxfs_mode_covers[lk->mode][mode] && !mxfs_gate_fenced(&lk->sbi->gate) &&
	    (lk->bast == MXFS_MODE_NL || mxfs_lock_held_for(lk) ||
	     mxfs_mode_covers[mxfs_mode_target(lk->mode, lk->bast)][mode])) {
		lk->users[mode]++;
		got = true;
	}
	spin_unlock(&lk->spin);
	if (got) {
		mxfs_count(lk->sbi, MXFS_COUNT_LOCK_HIT);
		return 0;
	}
	return mxfs_lock_get_slow(lk, mode, flags);
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
	memset(lk, 0, sizeof(*lk));
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
	struct mxfs_zombie *zombie = kmalloc(sizeof(*zombie), GFP_NOFS | __GFP_NOFAIL);
	struct mxfs_lock *heir = &zombie->lock;

	mxfs_lock_init(lk->sbi, heir, NULL, NULL, lk->type, lk->ino, lk->offset);
	spin_lock(&ls->spin);
	spin_lock(&lk->spin);
	heir->flags = MXFS_LF_ZOMBIE;
	heir->mode = lk->mode;
	heir->lock_id = lk->lock_id;
	heir->seq = lk->seq;
	heir->stamp = lk->stamp;
	list_replace_init(&lk->all, &heir->all);
	spin_lock(&ls->hash_spin);
	hash_del(&lk->hash);
	hash_add(ls->hash, &heir->hash, heir->lock_id);
	spin_unlock(&ls->hash_spin);
	lk->lock_id = 0;
	mxfs_lock_set_mode(lk, MXFS_MODE_NL);
	spin_lock(&ls->send_spin);
	list_add_tail(&zombie->list, &ls->zombies);
	spin_unlock(&ls->send_spin);
	spin_unlock(&lk->spin);
	spin_unlock(&ls->spin);
	queue_work(ls->wq, &ls->zombie_work);
}

void mxfs_lock_destroy(struct mxfs_lock *lk)
{
	struct mxfs_lockspace *ls = lk->sbi->ls;
	struct mxfs_lock_item *item;
	int mode;

	if (list_empty_careful(&lk->all)) /* never asked for */
		return;
	for (mode = MXFS_MODE_CR; mode < MXFS_MODE_COUNT; mode++)
		WARN_ON_ONCE(lk->users[mode]);
	WARN_ON_ONCE(lk->flags & MXFS_LF_DEMOTING);
	if (lk->dirtied && mxfs_mode_covers[lk->mode][MXFS_MODE_CW] && lk->want == MXFS_MODE_NL &&
	    !READ_ONCE(ls->fenced)) {
		mxfs_lock_leave_zombie(ls, lk);
		return;
	}
	item = mxfs_item_new();
	spin_lock(&lk->spin);
	if (lk->lock_id) {
		/* Whatever is outstanding goes with it; a grant that crosses this is answered as unknown. */
		mxfs_item_add(lk, item, MXFS_CMD_LOCK_RELEASE, MXFS_MODE_NL, lk->mode, 0);
		item = NULL;
		lk->want = MXFS_MODE_NL;
		mxfs_lock_unhash(ls, lk);
		mxfs_lock_set_mode(lk, MXFS_MODE_NL);
	}
	spin_unlock(&lk->spin);
	mxfs_lock_unlist(ls, lk);
	kfree(item);
	mxfs_dlm_flush_later(ls);
}

static void mxfs_dlm_zombie_work(struct work_struct *work)
{
	struct mxfs_lockspace *ls = container_of(work, struct mxfs_lockspace, zombie_work);
	struct mxfs_zombie *zombie, *next;
	struct mxfs_lock_item *item;
	LIST_HEAD(dead);
	int err;

	spin_lock(&ls->send_spin);
	list_splice_init(&ls->zombies, &dead);
	spin_unlock(&ls->send_spin);
	if (list_empty(&dead))
		return;
	/* One log force for all of them. */
	err = mxfs_gate_enter_wait(ls->sbi);
	if (!err) {
		err = ls->sbi->be->syncfs(ls->sbi);
		mxfs_gate_leave(ls->sbi);
	}
	if (err && !mxfs_gate_fenced(&ls->sbi->gate)) {
		mxfs_fence(ls->sbi, "changes could not be made durable before their locks are given up");
	}
	list_for_each_entry_safe(zombie, next, &dead, list) {
		item = mxfs_item_new();
		spin_lock(&zombie->lock.spin);
		mxfs_item_add(&zombie->lock, item, MXFS_CMD_LOCK_RELEASE, MXFS_MODE_NL, zombie->lock.mode, 0);
		mxfs_lock_unhash(ls, &zombie->lock);
		zombie->lock.mode = MXFS_MODE_NL;
		spin_unlock(&zombie->lock.spin);
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
	mxfs_lock_set_mode(lk, mode);
	lk->granted_at = jiffies;
	lk->graces = MXFS_LOCK_GRACES;
	lk->credits = mxfs_lock_waiters_served(lk);
}

static void mxfs_lock_refused(struct mxfs_lockspace *ls, struct mxfs_lock *lk, int error)
{
	lk->want = MXFS_MODE_NL;
	lk->flags &= ~(MXFS_LF_CANCELLED | MXFS_LF_NOQUEUE);
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

int mxfs_dlm_dump(struct mxfs_sb_info *sbi, u64 epoch)
{
	struct mxfs_lockspace *ls = sbi->ls;
	struct mxfs_lock_entry *entries = NULL;
	struct mxfs_lock *lk;
	size_t room = 0, count = 0, i, part;
	int err = 0;

	mutex_lock(&ls->send_mutex);
	WRITE_ONCE(ls->frozen, true);
	for (;;) {
		spin_lock(&ls->spin);
		if (ls->count <= room)
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
	list_for_each_entry(lk, &ls->all, all)
		if (mxfs_lock_describe(ls, lk, &entries[count]))
			count++;
	spin_unlock(&ls->spin);

	for (i = 0; i < count; i += part) {
		part = min_t(size_t, count - i, MXFS_NL_LOCKS_MAX);
		mxfs_dlm_send_batch(ls, MXFS_CMD_LOCK_DUMP, entries + i, part);
	}
	mutex_unlock(&ls->send_mutex);
	kvfree(entries);
	return err;
}

void mxfs_dlm_view(struct mxfs_sb_info *sbi, u64 epoch)
{
	struct mxfs_lockspace *ls = sbi->ls;

	WRITE_ONCE(ls->epoch, epoch);
	WRITE_ONCE(ls->frozen, false);
	mxfs_dlm_flush_later(ls);
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
}

void mxfs_dlm_fence(struct mxfs_sb_info *sbi)
{
	struct mxfs_lockspace *ls = sbi->ls;

	spin_lock(&ls->spin);
	WRITE_ONCE(ls->fenced, true);
	mxfs_dlm_refuse_all(ls, EIO);
	spin_unlock(&ls->spin);
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
	flush_work(&ls->zombie_work);
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
	mutex_init(&ls->send_mutex);
	INIT_LIST_HEAD(&ls->all);
	INIT_LIST_HEAD(&ls->send);
	INIT_LIST_HEAD(&ls->zombies);
	hash_init(ls->hash);
	INIT_WORK(&ls->send_work, mxfs_dlm_send_work);
	INIT_WORK(&ls->zombie_work, mxfs_dlm_zombie_work);
	ls->frozen = true; /* until the first view */
	/* Ids never come twice, in later mounts of this node neither: the time of the mount in front. */
	atomic64_set(&ls->next_id, (ktime_get_real_seconds() << 24) & GENMASK_ULL(MXFS_LOCK_CLIENT_SHIFT - 1, 0));
	ls->batch = kmalloc_array(MXFS_NL_LOCKS_MAX, sizeof(*ls->batch), GFP_KERNEL);
	ls->wq = alloc_workqueue("mxfs-demote/%u", WQ_UNBOUND | WQ_MEM_RECLAIM, 256, sbi->mount_id);
	ls->send_wq = alloc_ordered_workqueue("mxfs-ask/%u", WQ_MEM_RECLAIM | WQ_HIGHPRI, sbi->mount_id);
	sbi->ls = ls;
	if (ls->batch && ls->wq && ls->send_wq)
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
	if (ls->wq)
		destroy_workqueue(ls->wq);
	if (ls->send_wq)
		destroy_workqueue(ls->send_wq);
	WARN_ON_ONCE(!list_empty(&ls->all));
	list_for_each_entry_safe(item, next, &ls->send, list)
		kfree(item);
	kfree(ls->batch);
	kvfree(ls);
	sbi->ls = NULL;
}
