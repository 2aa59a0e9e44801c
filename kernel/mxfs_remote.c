// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: the remote back end: on a member, each call becomes an fsop that the holder executes.
 *
 *	caller                    pending                     holder
 *	 call_start  ── seq ──►  [ ]  ── FSOP_REQUEST ──►   executes (mxfs_exec.c)
 *	 call_wait    sleeps      [ ]  ◄─ FSOP_REPLY ───     kept there until `acked`
 *	 call_finish ◄─ copies ── [x]
 *
 * A call stays in `pending` from the number that it gets until its answer has come; the view change (RESEND) and an
 * answer RETRY send it again, unchanged but for acked and epoch. `acked` is the lowest number that is pending, waiting
 * SETLKs apart: those stand in a list of their own, may be there for days, and their answers are not kept by the holder.
 *
 * Who may give up: what only reads is killable; its call stays pending without a caller until the answer comes.
 * What changes something is not: the DLM lock over it must not go while it may still be executed. It ends by the
 * answer, or by the fence. A killed wait for a lock sends CANCELLK and takes what has become of it.
 *
 * Early answers: a change of metadata may be answered before it is durable at the holder (MXFS_REPLY_EARLY). Its call stays in
 * `kept`, by seq, until an answer says that the holder's log has come that far. mxfs_remote_settle() asks for that and waits: fsync,
 * and whoever gives up a lock under which something was changed. A timer asks `commit_ms` after the first.
 *
 *	VIEW: another holder ──► replay_work, with the gate shut
 *	    1. judge: GETATTR of each object: at the version that was answered, or gone: it was durable. Else it is lost, with all
 *	       that came behind it on that object: a log gives back a beginning of what it was told.
 *	    2. what is lost is done again, one after the other, in order. What was made has another number then: whatever names
 *	       it by the old one is changed (calls, inodes, locks). Nobody else can know it: its name is under a lock of ours.
 *	       Old and new numbers are two numberings: XFS counts an inode's generation up when it is freed, so what was (7, 3)
 *	       may be another file's new number. So each handle of a call says which numbering it is of (`ns`, the `gen` of then).
 *	    3. what is pending is sent again; the gate opens.
 *
 * Waiting is inside the gate, so a gate is shut when every answer is there; waiting SETLKs leave it while they wait.
 *
 * Limits: MXFS_FSOP_INFLIGHT_MAX calls, MXFS_FSOP_WINDOW_MAX numbers above acked: further callers wait.
 * MXFS_FSOP_LOCK_WAITS_MAX waiting SETLKs: further ones get ENOLCK. MXFS_FSOP_KEPT_MAX kept calls: what could become one more
 * asks for a commit and waits.
 *
 * Another holder (a later incarnation of the same node is one): what is pending is sent to it, marked REPLAY, since the earlier one
 * may have executed it. If this node itself has become the holder the requests go to its own executor, from the VIEW on that says so,
 * and the answers come back, without the daemon; waiting SETLKs end, and their callers ask the local back end. What it has kept it
 * does itself, and forces its log.
 *
 * Known weakness: st_ino of a file made in the last second may change by a takeover. What the next holder refuses to do again (no
 * space is left, say) is lost: that is logged, syncfs tells it, and the caches are dropped.
 */
#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/hashtable.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/xattr.h>

#include "mxfs_fsop_codec.h"
#include "mxfs_lower.h"
#include "mxfs_vfs.h"

#define MXFS_REMOTE_HASH_BITS 8
#define MXFS_FORCE_ROOM 16 /* numbers below MXFS_FSOP_WINDOW_MAX that only FORCE may take: it makes the others free */
#define MXFS_COMMIT_PAUSE_MS 100 /* when a commit is due and the gate is shut */
#define MXFS_REDO_PAUSE_MS 200	 /* before what was refused for want of space is tried again, */
#define MXFS_REDO_SPACE_MS 5000	 /* for so long */
#define DOUBT_MS 20000 /* how long after the end of a connection answers may be lost at its other end */
#define ANOTHER_HOLDER (-ERESTARTNOINTR) /* not an errno of an answer: it has to begin again */

unsigned int mxfs_commit_ms = MXFS_FSOP_COMMIT_MS;
module_param_named(commit_ms, mxfs_commit_ms, uint, 0644);
MODULE_PARM_DESC(commit_ms, "how long what a member was answered may stay uncommitted: then the holder forces its log, and the member asks, in ms; 0 on the holder: nothing is answered before it is durable; default: " __stringify(MXFS_FSOP_COMMIT_MS));

struct call {
	refcount_t ref; /* pending, caller, whoever sends it */
	struct hlist_node hash;
	struct list_head list; /* of pending, lock_waits or kept, by seq */
	u64 seq, epoch;	       /* epoch: of the last sending */
	u32 op;
	bool lock_wait;
	bool retry; /* answered RETRY, to be sent again */
	bool ended; /* no longer pending */
	bool urgent; /* not held back while what was lost is done again */
	u32 gen, first_gen; /* remote->gen when it was sent last, and first; 0: not yet */
	/* Answered early, and kept since: */
	bool kept;
	u32 kept_gen;
	u64 stamp;
	u64 change; /* the version of h that the answer told; 0: lost, to be done again */
	struct mxfs_fh made, known; /* what it has made; as the inodes of this node call it */
	u32 ns, ns2; /* the numbering of its handles h and h2 */
	u32 numbering; /* of the inodes of this node when it was answered */
	struct call *origin; /* this is a replay of that one, whose payload it sends */
	int error;  /* without an answer */
	struct completion done;
	void *payload;
	u32 len;
	void *reply; /* parts */
	u32 reply_total, reply_got;
};

struct mxfs_remote {
	struct mxfs_sb_info *sbi;
	spinlock_t lock;
	DECLARE_HASHTABLE(calls, MXFS_REMOTE_HASH_BITS);
	struct list_head pending, lock_waits, kept;
	struct list_head starting; /* without a number yet */
	unsigned int pending_count, lock_wait_count, kept_count;
	u64 next_seq;
	int error; /* final */
	wait_queue_head_t room;
	struct mutex send_mutex;    /* headers are changed and sent by one at a time */
	struct mutex receive_mutex; /* parts are put together by one at a time */
	struct delayed_work retry;
	unsigned long doubt; /* jiffies until which everything pending is sent again every MXFS_FSOP_RETRY_MS; 0: never */

	u32 holder, incarnation; /* who is asked */
	u32 gen; /* how often that has changed, its mounts of the XFS included; from 1 */
	struct work_struct drain;
	u64 session, committed; /* as the last answers had them; 0: none has come yet */
	bool replaying;	 /* no new call gets a number */
	bool forcing;	 /* somebody asks for a commit */
	atomic_t held;	 /* how often the gate is shut by this */
	struct delayed_work commit;
	struct work_struct replay;
	struct list_head moved; /* of the replay that runs */
	atomic_t numbering;	/* how often inodes have got new numbers */
};

struct moved {
	struct list_head list;
	struct mxfs_fh from, to;
};

/* ---------------------------------------------------------------- pending calls */

static void call_put(struct call *call)
{
	if (!refcount_dec_and_test(&call->ref))
		return;
	if (call->origin)
		call_put(call->origin);
	else
		kvfree(call->payload);
	kvfree(call->reply);
	kfree(call);
}

/* Under remote->lock: all below have been answered and seen, and are durable. */
static u64 acked(struct mxfs_remote *remote)
{
	const struct call *first = list_first_entry_or_null(&remote->pending, struct call, list);
	const struct call *kept = list_first_entry_or_null(&remote->kept, struct call, list);
	u64 low = first ? first->seq : remote->next_seq;

	return kept ? min(low, kept->seq) : low;
}

/* What may be answered early, see may_answer_early in mxfs_exec.c. */
static bool may_be_kept(u32 op)
{
	switch (op) {
	case MXFS_FSOP_SETATTR:
	case MXFS_FSOP_MAKE:
	case MXFS_FSOP_SYMLINK:
	case MXFS_FSOP_LINK:
	case MXFS_FSOP_UNLINK:
	case MXFS_FSOP_RENAME:
		return true;
	}
	return false;
}

/* Under remote->lock. FORCE makes room for others, and an urgent call is part of what they wait for: both have some of their own. */
static bool fits(struct mxfs_remote *remote, const struct call *call)
{
	unsigned int more = call->urgent ? MXFS_FSOP_INFLIGHT_MAX : call->op == MXFS_FSOP_FORCE ? MXFS_FORCE_ROOM : 0;

	if (!call->urgent && (remote->replaying ||
			      remote->next_seq - acked(remote) >= MXFS_FSOP_WINDOW_MAX - MXFS_FORCE_ROOM + more))
		return false;
	if (call->lock_wait)
		return true;
	if (remote->kept_count >= MXFS_FSOP_KEPT_MAX && may_be_kept(call->op))
		return false;
	return remote->pending_count < MXFS_FSOP_INFLIGHT_MAX + more;
}

static bool has_room(struct mxfs_remote *remote, const struct call *call)
{
	bool room;

	spin_lock(&remote->lock);
	room = remote->error || fits(remote, call);
	spin_unlock(&remote->lock);
	return room;
}

/* Under remote->lock: has the holder asked for a commit before anybody has to wait for one. */
static void commit_soon(struct mxfs_remote *remote)
{
	const struct call *kept = list_first_entry_or_null(&remote->kept, struct call, list);

	if (!kept || remote->error)
		return;
	if (remote->kept_count >= MXFS_FSOP_KEPT_MAX / 2 || remote->next_seq - kept->seq >= MXFS_FSOP_WINDOW_MAX / 2)
		mod_delayed_work(system_unbound_wq, &remote->commit, 0);
	else
		queue_delayed_work(system_unbound_wq, &remote->commit, msecs_to_jiffies(READ_ONCE(mxfs_commit_ms)));
}

/* Gives the call its number and enters it. -EAGAIN: no room. */
static int call_enter(struct mxfs_remote *remote, struct call *call)
{
	int err = 0;

	spin_lock(&remote->lock);
	if (remote->error) {
		err = remote->error;
	} else if (call->lock_wait && remote->lock_wait_count >= MXFS_FSOP_LOCK_WAITS_MAX) {
		err = -ENOLCK;
	} else if (!fits(remote, call)) {
		commit_soon(remote);
		err = -EAGAIN;
	} else {
		commit_soon(remote);
		call->seq = remote->next_seq++;
		list_del_init(&call->list);
		refcount_inc(&call->ref);
		hash_add(remote->calls, &call->hash, call->seq);
		if (call->lock_wait) {
			list_add_tail(&call->list, &remote->lock_waits);
			remote->lock_wait_count++;
		} else {
			list_add_tail(&call->list, &remote->pending);
			remote->pending_count++;
		}
	}
	spin_unlock(&remote->lock);
	return err;
}

/* Under remote->lock. The reference of `pending` goes to the caller of this function. */
static void call_leave(struct mxfs_remote *remote, struct call *call)
{
	hash_del(&call->hash);
	list_del_init(&call->list);
	if (call->lock_wait)
		remote->lock_wait_count--;
	else
		remote->pending_count--;
	call->ended = true;
}

static void call_end(struct mxfs_remote *remote, struct call *call, int error)
{
	bool was_pending;

	spin_lock(&remote->lock);
	was_pending = !call->ended;
	if (was_pending) {
		call_leave(remote, call);
		call->error = error;
	}
	spin_unlock(&remote->lock);
	if (!was_pending)
		return;
	complete_all(&call->done);
	wake_up_all(&remote->room);
	call_put(call);
}

static void call_send(struct mxfs_remote *remote, struct call *call)
{
	struct mxfs_sb_info *sbi = remote->sbi;
	struct mxfs_fsop_request *req = call->payload;
	unsigned int nofs;
	u32 holder, gen;
	bool own;
	u64 low;
	int err;

	mutex_lock(&remote->send_mutex);
	spin_lock(&remote->lock);
	low = min(acked(remote), call->seq);
	gen = call->gen = remote->gen;
	holder = remote->holder;
	spin_unlock(&remote->lock);
	WRITE_ONCE(call->retry, false);
	own = READ_ONCE(sbi->role) == MXFS_ROLE_HOLDER;
	/*
	 * This node has mounted the XFS, and no VIEW has said so yet. Sent now it would not be marked, and its later copy not be looked
	 * at. The VIEW has it sent.
	 */
	if (own && holder != sbi->node) {
		mutex_unlock(&remote->send_mutex);
		return;
	}
	call->epoch = READ_ONCE(sbi->epoch);
	if (!call->first_gen)
		call->first_gen = gen;
	else if (call->first_gen != gen)
		req->flags |= cpu_to_le32(MXFS_REQ_REPLAY);
	req->seq = cpu_to_le64(call->seq);
	req->acked = cpu_to_le64(low);
	req->epoch = cpu_to_le64(call->epoch);
	req->node = cpu_to_le32(sbi->node);
	req->incarnation = cpu_to_le32(sbi->incarnation);
	/* Write-back and reclaim come here. */
	nofs = memalloc_nofs_save();
	if (own)
		err = mxfs_exec_receive(sbi, sbi->node, call->seq, 0, call->len, call->payload, call->len);
	else if (!mxfs_sock_send(sbi, holder, MXFS_FRAME_REQUEST, call->seq, call->payload, call->len))
		err = 0;
	else
		err = mxfs_nl_send_fsop(sbi, MXFS_CMD_FSOP_REQUEST, 0, call->seq, call->payload, call->len, GFP_NOFS);
	memalloc_nofs_restore(nofs);
	mutex_unlock(&remote->send_mutex);
	if (err) {
		/* Nothing was lost that cannot be sent once more. */
		WRITE_ONCE(call->retry, true);
		queue_delayed_work(system_unbound_wq, &remote->retry, msecs_to_jiffies(MXFS_FSOP_RETRY_MS));
	}
}

static struct call *call_new(const struct mxfs_fsop_build *build, bool lock_wait)
{
	struct call *call = kzalloc(sizeof(*call), GFP_NOFS);
	int err;

	if (!call)
		return ERR_PTR(-ENOMEM);
	refcount_set(&call->ref, 1);
	INIT_LIST_HEAD(&call->list);
	init_completion(&call->done);
	call->op = build->op;
	call->urgent = build->op == MXFS_FSOP_SETLK && (le32_to_cpu(build->args.flags) & MXFS_LK_RECLAIM);
	call->lock_wait = lock_wait;
	err = mxfs_fsop_build_request(build, GFP_NOFS, &call->payload, &call->len);
	if (err) {
		kfree(call);
		return ERR_PTR(err);
	}
	return call;
}

/* Waits for room, sends. Nothing is left behind on failure. */
static struct call *call_start(struct mxfs_sb_info *sbi, const struct mxfs_fsop_build *build, bool lock_wait,
			       unsigned int state)
{
	struct mxfs_remote *remote = sbi->remote;
	struct call *call = call_new(build, lock_wait);
	int err;

	if (IS_ERR(call))
		return call;
	if (sbi->sb->s_flags & (SB_SYNCHRONOUS | SB_DIRSYNC))
		((struct mxfs_fsop_request *)call->payload)->flags |= cpu_to_le32(MXFS_REQ_DURABLE);
	spin_lock(&remote->lock);
	call->ns = call->ns2 = remote->gen;
	list_add_tail(&call->list, &remote->starting);
	spin_unlock(&remote->lock);
	while ((err = call_enter(remote, call)) == -EAGAIN) {
		err = wait_event_state(remote->room, has_room(remote, call), state);
		if (err)
			break;
	}
	if (err) {
		spin_lock(&remote->lock);
		list_del_init(&call->list);
		spin_unlock(&remote->lock);
		call_put(call);
		return ERR_PTR(err);
	}
	mxfs_count(sbi, MXFS_COUNT_FSOP_SENT);
	call_send(remote, call);
	return call;
}

/* Under remote->lock. What was sent to an earlier holder waits until what it had answered is done again. */
static bool may_be_sent(struct mxfs_remote *remote, const struct call *call)
{
	return !remote->replaying || call->gen == remote->gen;
}

/* Sends again what is pending: all of it, or what was answered RETRY. */
static void send_again(struct mxfs_remote *remote, bool all)
{
	struct call *call, **calls;
	unsigned int max, count = 0, i;

	spin_lock(&remote->lock);
	max = remote->pending_count + remote->lock_wait_count;
	spin_unlock(&remote->lock);
	if (!max)
		return;
	calls = kvmalloc_array(max, sizeof(*calls), GFP_NOFS | __GFP_NOFAIL);
	spin_lock(&remote->lock);
	list_for_each_entry(call, &remote->pending, list) {
		if (count < max && (all || READ_ONCE(call->retry)) && may_be_sent(remote, call)) {
			refcount_inc(&call->ref);
			calls[count++] = call;
		}
	}
	list_for_each_entry(call, &remote->lock_waits, list) {
		if (count < max && (all || READ_ONCE(call->retry)) && may_be_sent(remote, call)) {
			refcount_inc(&call->ref);
			calls[count++] = call;
		}
	}
	spin_unlock(&remote->lock);
	for (i = 0; i < count; i++) {
		if (!READ_ONCE(calls[i]->ended)) {
			mxfs_count(remote->sbi, MXFS_COUNT_FSOP_RESENT);
			call_send(remote, calls[i]);
		}
		call_put(calls[i]);
	}
	kvfree(calls);
}

static void retry_work(struct work_struct *work)
{
	struct mxfs_remote *remote = container_of(to_delayed_work(work), struct mxfs_remote, retry);
	unsigned long doubt = READ_ONCE(remote->doubt);

	send_again(remote, doubt && time_before(jiffies, doubt));
	if (doubt && time_before(jiffies, doubt) && READ_ONCE(remote->pending_count))
		queue_delayed_work(system_unbound_wq, &remote->retry, msecs_to_jiffies(MXFS_FSOP_RETRY_MS));
}

void mxfs_remote_in_doubt(struct mxfs_sb_info *sbi)
{
	struct mxfs_remote *remote = sbi->remote;

	if (!remote || READ_ONCE(remote->error))
		return;
	WRITE_ONCE(remote->doubt, (jiffies + msecs_to_jiffies(DOUBT_MS)) | 1);
	mod_delayed_work(system_unbound_wq, &remote->retry, 0);
}

static void end_all(struct mxfs_remote *remote, struct list_head *list, int error)
{
	struct call *call;

	for (;;) {
		spin_lock(&remote->lock);
		call = list_first_entry_or_null(list, struct call, list);
		if (call)
			refcount_inc(&call->ref);
		spin_unlock(&remote->lock);
		if (!call)
			break;
		call_end(remote, call, error);
		call_put(call);
	}
}

/* ---------------------------------------------------------------- answers */

static struct call *find_call(struct mxfs_remote *remote, u64 seq)
{
	struct call *call;

	spin_lock(&remote->lock);
	hash_for_each_possible(remote->calls, call, hash, seq) {
		if (call->seq == seq) {
			refcount_inc(&call->ref);
			spin_unlock(&remote->lock);
			return call;
		}
	}
	spin_unlock(&remote->lock);
	return NULL;
}

/* Under receive_mutex. True when the reply is whole. */
static bool add_part(struct mxfs_sb_info *sbi, struct call *call, u32 offset, u32 total, const void *data, u32 len)
{
	if (offset == 0) {
		/* The first part, or the first again, of an answer to a repeated request. */
		kvfree(call->reply);
		call->reply_got = 0;
		call->reply_total = total;
		call->reply = kvmalloc(total, GFP_KERNEL | __GFP_NOFAIL);
	} else if (!call->reply || offset != call->reply_got || total != call->reply_total) {
		mxfs_warn(sbi, "answer %llu: a part at %u of %u, expected one at %u of %u; dropped", call->seq, offset,
			  total, call->reply_got, call->reply_total);
		return false;
	}
	memcpy(call->reply + offset, data, len);
	call->reply_got += len;
	return call->reply_got == total;
}

static void open_gate(struct mxfs_remote *remote);

/* Under remote->lock: kept calls whose changes are durable, to be put by the caller. */
static void take_committed(struct mxfs_remote *remote, struct list_head *done)
{
	struct call *call, *next;

	list_for_each_entry_safe(call, next, &remote->kept, list) {
		if (call->kept_gen != remote->gen || call->stamp > remote->committed)
			continue;
		list_move_tail(&call->list, done);
		remote->kept_count--;
	}
}

static void put_all(struct list_head *done)
{
	struct call *call, *next;

	list_for_each_entry_safe(call, next, done, list) {
		list_del_init(&call->list);
		call_put(call);
	}
}

/* Under remote->lock, with the answer of this holder to a call that has just left `pending`; a reference is the list's. */
static void keep(struct mxfs_remote *remote, struct call *call, const struct mxfs_fsop_reply *reply)
{
	bool in_h = call->op == MXFS_FSOP_SETATTR || call->op == MXFS_FSOP_RENAME;
	struct call *before;

	call->kept = true;
	call->kept_gen = remote->gen;
	call->stamp = le64_to_cpu(reply->stamp);
	call->change = le64_to_cpu(in_h ? reply->attr.change : reply->attr2.change);
	if (call->op == MXFS_FSOP_MAKE || call->op == MXFS_FSOP_SYMLINK)
		mxfs_fsop_get_handle(&call->made, &reply->attr.handle);
	call->known = call->made;
	list_for_each_entry_reverse(before, &remote->kept, list)
		if (before->seq < call->seq)
			break;
	list_add(&call->list, &before->list);
	remote->kept_count++;
	refcount_inc(&call->ref);
	commit_soon(remote);
}

/*
 * What the answer tells of the holder's log. Under remote->lock. False: not an answer of the holder that is asked now; the call is
 * sent again. *changed: the holder has mounted the XFS anew, which no view has told of.
 */
static bool take_news(struct mxfs_remote *remote, const struct call *call, const struct mxfs_fsop_reply *reply, bool *changed,
		      struct list_head *done)
{
	u64 session = le64_to_cpu(reply->session);

	*changed = false;
	if (le32_to_cpu(reply->holder) != remote->holder || call->gen != remote->gen)
		return false;
	if (!session)
		return true;
	if (remote->session && session != remote->session) {
		remote->gen++;
		remote->session = 0;
		if (remote->kept_count)
			remote->replaying = true;
		*changed = true;
		return false;
	}
	if (!remote->session)
		remote->committed = 0;
	remote->session = session;
	if (le64_to_cpu(reply->committed) > remote->committed) {
		remote->committed = le64_to_cpu(reply->committed);
		take_committed(remote, done);
	}
	return true;
}

static void answered(struct mxfs_remote *remote, struct call *call)
{
	struct mxfs_sb_info *sbi = remote->sbi;
	bool taken, changed, early, retry, was_pending = false;
	struct mxfs_fsop_reply reply;
	const void *data;
	LIST_HEAD(done);
	int err;

	err = mxfs_fsop_parse_reply(call->reply, call->reply_total, call->op, call->seq, &reply, &data);
	if (err) {
		mxfs_err(sbi, "the holder's answer to operation %u number %llu cannot be read: expected %zu bytes and data, found %u bytes",
			 call->op, call->seq, sizeof(reply), call->reply_total);
		call_end(remote, call, -EIO);
		return;
	}
	retry = le32_to_cpu(reply.error) == MXFS_FSOP_E_RETRY;
	early = !reply.error && (le32_to_cpu(reply.flags) & MXFS_REPLY_EARLY) && may_be_kept(call->op) && !call->origin;
	spin_lock(&remote->lock);
	taken = take_news(remote, call, &reply, &changed, &done);
	if (taken && !retry && !call->ended) {
		was_pending = true;
		call->numbering = atomic_read(&remote->numbering);
		call_leave(remote, call);
		if (early && le64_to_cpu(reply.stamp) > remote->committed)
			keep(remote, call, &reply);
	}
	spin_unlock(&remote->lock);
	put_all(&done);
	if (changed) {
		mxfs_warn(sbi, "the holder has mounted the XFS anew: what it had not committed is done again");
		mxfs_remote_resend(sbi, true);
	}
	if (was_pending) {
		complete_all(&call->done);
		call_put(call);
	}
	if (taken)
		wake_up_all(&remote->room);
	if (was_pending)
		return;
	kvfree(call->reply);
	call->reply = NULL;
	call->reply_got = 0;
	if (!taken) /* it has been, or is being, sent to the holder of now */
		return;
	WRITE_ONCE(call->retry, true);
	/* Of an earlier view: its time has come already. */
	mod_delayed_work(system_unbound_wq, &remote->retry,
			 call->epoch != READ_ONCE(sbi->epoch) ? 0 : msecs_to_jiffies(MXFS_FSOP_RETRY_MS));
}

void mxfs_remote_receive(struct mxfs_sb_info *sbi, u64 id, u32 offset, u32 total, const void *data, u32 len)
{
	struct mxfs_remote *remote = sbi->remote;
	struct call *call;

	if (!remote)
		return;
	if (!len || total > MXFS_FSOP_PAYLOAD_MAX || offset > total || len > total - offset) {
		mxfs_warn(sbi, "answer %llu: a part of %u bytes at %u of %u cannot be; dropped", id, len, offset, total);
		return;
	}
	/* Unknown: answered before, by the answer to an earlier sending. */
	call = find_call(remote, id);
	if (!call)
		return;
	mutex_lock(&remote->receive_mutex);
	if (!READ_ONCE(call->ended) && add_part(sbi, call, offset, total, data, len))
		answered(remote, call);
	mutex_unlock(&remote->receive_mutex);
	call_put(call);
}

/* ---------------------------------------------------------------- one operation */

struct result {
	struct mxfs_fsop_reply head;
	const void *data; /* inside the call */
	u32 data_len;
	struct call *call;
};

static void result_put(struct result *result)
{
	if (result->call)
		call_put(result->call);
	result->call = NULL;
}

/* After `done`: what the holder said, as 0 or -errno; the data stays until result_put. */
static int call_result(struct call *call, struct result *result)
{
	int err = READ_ONCE(call->error);

	result->call = call;
	if (err)
		return err;
	err = mxfs_fsop_parse_reply(call->reply, call->reply_total, call->op, call->seq, &result->head, &result->data);
	if (err)
		return -EIO;
	result->data_len = le32_to_cpu(result->head.data_len);
	return mxfs_fsop_get_error(le32_to_cpu(result->head.error));
}

/* Runs one operation to its answer. result_put afterwards, whatever it returns. */
static int run(struct mxfs_sb_info *sbi, struct mxfs_fsop_build *build, struct result *result)
{
	bool killable = (mxfs_fsop_is_readonly(build->op) || build->op == MXFS_FSOP_GETLK) && !(build->flags & MXFS_REQ_KERNEL);
	/* Nothing has been sent yet; only what releases or writes back must not fail for a signal. */
	bool must = ((build->flags & MXFS_REQ_KERNEL) && !killable) || build->op == MXFS_FSOP_REAP ||
		    build->op == MXFS_FSOP_CANCELLK ||
		    (build->op == MXFS_FSOP_SETLK && le32_to_cpu(build->args.lock_type) == F_UNLCK);
	struct call *call;
	int err;

	memset(result, 0, sizeof(*result));
	call = call_start(sbi, build, false, (must ? TASK_UNINTERRUPTIBLE : TASK_KILLABLE) | TASK_FREEZABLE_UNSAFE);
	if (IS_ERR(call))
		return PTR_ERR(call);
	err = wait_for_completion_state(&call->done,
					(killable ? TASK_KILLABLE : TASK_UNINTERRUPTIBLE) | TASK_FREEZABLE_UNSAFE);
	if (err) {
		/* Stays pending, so that `acked` does not pass it. */
		call_put(call);
		return err;
	}
	return call_result(call, result);
}

static void give_attrs(const struct result *result, struct mxfs_attr *attr, struct mxfs_attr *dattr)
{
	if (attr) {
		mxfs_fsop_get_attr(attr, &result->head.attr);
		attr->numbering = result->call->numbering;
		attr->holders = result->call->gen;
	}
	if (dattr) {
		mxfs_fsop_get_attr(dattr, &result->head.attr2);
		dattr->holders = result->call->gen;
	}
}

/* Runs an operation of which only the attributes are wanted. */
static int run_simple(struct mxfs_sb_info *sbi, struct mxfs_fsop_build *build, struct mxfs_attr *attr,
		      struct mxfs_attr *dattr)
{
	struct result result;
	int err = run(sbi, build, &result);

	if (!err)
		give_attrs(&result, attr, dattr);
	result_put(&result);
	return err;
}

/* The same where the attributes are the answer, and must be there. */
static int run_attr(struct mxfs_sb_info *sbi, struct mxfs_fsop_build *build, struct mxfs_attr *attr)
{
	int err = run_simple(sbi, build, attr, NULL);

	if (!err && attr && !attr->fh.ino)
		err = -EIO;
	return err;
}

#define BUILD(_op, _fh)                                                          \
	struct mxfs_fsop_build build = { .op = (_op) };                          \
	const struct mxfs_fh *build_fh = (_fh);                                  \
	if (build_fh)                                                            \
	mxfs_fsop_put_handle(&build.args.h, build_fh)

static void set_name(struct mxfs_fsop_build *build, const char *name, u32 len)
{
	build->name = name;
	build->name_len = len;
}

/* By which a replay tells done from not done. */
static void set_seen(struct mxfs_fsop_build *build, const struct mxfs_attr *dattr)
{
	build->args.size = cpu_to_le64(dattr ? dattr->seen : 0);
}

static int remote_getroot(struct mxfs_sb_info *sbi, struct mxfs_attr *attr)
{
	BUILD(MXFS_FSOP_GETROOT, NULL);

	return run_attr(sbi, &build, attr);
}

static int remote_lookup(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len,
			 struct mxfs_attr *attr)
{
	BUILD(MXFS_FSOP_LOOKUP, dir);

	set_name(&build, name, len);
	return run_attr(sbi, &build, attr);
}

static int remote_getattr(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, struct mxfs_attr *attr)
{
	BUILD(MXFS_FSOP_GETATTR, fh);

	return run_attr(sbi, &build, attr);
}

static int remote_setattr(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_setattr *set,
			  struct mxfs_attr *attr)
{
	BUILD(MXFS_FSOP_SETATTR, fh);

	mxfs_fsop_put_setattr(&build.args, set);
	build.flags = set->durable ? MXFS_REQ_DURABLE : 0;
	return run_simple(sbi, &build, attr, NULL);
}

static int remote_make(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len, umode_t mode,
		       dev_t rdev, bool excl, struct mxfs_attr *attr, struct mxfs_attr *dattr)
{
	BUILD(MXFS_FSOP_MAKE, dir);

	set_name(&build, name, len);
	build.args.flags = cpu_to_le32(excl ? MXFS_MAKE_EXCL : 0);
	build.args.mode = cpu_to_le32(mode);
	build.args.rdev_major = cpu_to_le32(MAJOR(rdev));
	build.args.rdev_minor = cpu_to_le32(MINOR(rdev));
	set_seen(&build, dattr);
	return run_simple(sbi, &build, attr, dattr);
}

static int remote_symlink(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len,
			  const char *target, struct mxfs_attr *attr, struct mxfs_attr *dattr)
{
	BUILD(MXFS_FSOP_SYMLINK, dir);

	set_name(&build, name, len);
	build.name2 = target;
	build.name2_len = strlen(target);
	if (build.name2_len >= MXFS_PATH_LEN_MAX)
		return -ENAMETOOLONG;
	set_seen(&build, dattr);
	return run_simple(sbi, &build, attr, dattr);
}

static int remote_link(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_fh *dir, const char *name,
		       u32 len, struct mxfs_attr *attr, struct mxfs_attr *dattr)
{
	BUILD(MXFS_FSOP_LINK, dir);

	mxfs_fsop_put_handle(&build.args.h2, fh);
	set_name(&build, name, len);
	set_seen(&build, dattr);
	return run_simple(sbi, &build, attr, dattr);
}

static int remote_unlink(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len, u32 flags,
			 struct mxfs_attr *attr, struct mxfs_attr *dattr)
{
	BUILD(MXFS_FSOP_UNLINK, dir);

	set_name(&build, name, len);
	build.args.flags = cpu_to_le32(flags);
	set_seen(&build, dattr);
	return run_simple(sbi, &build, attr, dattr);
}

static int remote_rename(struct mxfs_sb_info *sbi, const struct mxfs_fh *odir, const char *oname, u32 olen,
			 const struct mxfs_fh *ndir, const char *nname, u32 nlen, u32 flags, struct mxfs_attr *odattr,
			 struct mxfs_attr *ndattr)
{
	BUILD(MXFS_FSOP_RENAME, odir);

	mxfs_fsop_put_handle(&build.args.h2, ndir);
	set_name(&build, oname, olen);
	if (nlen > MXFS_NAME_LEN_MAX)
		return -ENAMETOOLONG;
	build.name2 = nname;
	build.name2_len = nlen;
	build.args.flags = cpu_to_le32(flags);
	set_seen(&build, odattr);
	return run_simple(sbi, &build, odattr, ndattr);
}

/* An operation that answers with up to `size` bytes; how many, or -errno. */
static ssize_t run_bytes(struct mxfs_sb_info *sbi, struct mxfs_fsop_build *build, void *buf, size_t size)
{
	struct result result;
	ssize_t len;

	build->args.length = cpu_to_le64(size);
	len = run(sbi, build, &result);
	if (!len) {
		/* Asked for the length only, or the bytes themselves. */
		len = size ? result.data_len : le64_to_cpu(result.head.value);
		if (size && result.data_len > size)
			len = -EIO;
		else if (size)
			memcpy(buf, result.data, result.data_len);
	}
	result_put(&result);
	return len;
}

static int remote_readlink(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, char *buf, u32 size)
{
	BUILD(MXFS_FSOP_READLINK, fh);

	return size ? run_bytes(sbi, &build, buf, min_t(u32, size, MXFS_PATH_LEN_MAX)) : -EINVAL;
}

/* READDIR, NAMES: entries of a directory. */
static int run_entries(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, struct mxfs_fsop_build *build, u64 cookie, u64 length,
		       int (*check)(const void *data, u32 len), struct mxfs_dirent_sink *sink)
{
	struct result result;
	int err;

	build->args.offset = cpu_to_le64(cookie);
	build->args.length = cpu_to_le64(length);
	sink->used = 0;
	err = run(sbi, build, &result);
	if (!err && (result.data_len > sink->size || check(result.data, result.data_len))) {
		mxfs_err(sbi, "the holder's list of the names in directory %llu is damaged", dir->ino);
		err = -EIO;
	}
	if (!err) {
		memcpy(sink->buf, result.data, result.data_len);
		sink->used = result.data_len;
		sink->next = le64_to_cpu(result.head.value);
		sink->eof = le32_to_cpu(result.head.flags) & MXFS_REPLY_EOF;
	}
	result_put(&result);
	return err;
}

static int remote_readdir(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, u64 cookie, struct mxfs_dirent_sink *sink)
{
	BUILD(MXFS_FSOP_READDIR, dir);

	return run_entries(sbi, dir, &build, cookie, min_t(size_t, sink->size, MXFS_FSOP_DATA_MAX), mxfs_fsop_check_dirents,
			   sink);
}

static int remote_names(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, u64 cookie, u32 max, struct mxfs_dirent_sink *sink)
{
	BUILD(MXFS_FSOP_NAMES, dir);

	build.flags = MXFS_REQ_KERNEL;
	return run_entries(sbi, dir, &build, cookie, max, mxfs_fsop_check_names, sink);
}

static int remote_getattrs(struct mxfs_sb_info *sbi, const struct mxfs_handle *handles, u32 count, struct mxfs_wire_brief *briefs,
			   u32 *block)
{
	struct kvec vec = { .iov_base = (void *)handles, .iov_len = count * sizeof(*handles) };
	struct iov_iter iter;
	struct result result;
	int err;
	BUILD(MXFS_FSOP_GETATTRS, NULL);

	build.flags = MXFS_REQ_KERNEL;
	iov_iter_kvec(&iter, ITER_SOURCE, &vec, 1, vec.iov_len);
	build.data = &iter;
	build.data_len = vec.iov_len;
	err = run(sbi, &build, &result);
	if (!err) {
		*block = min_t(u64, le64_to_cpu(result.head.value), U32_MAX);
		if (mxfs_fsop_check_briefs(result.data, result.data_len, handles, count, *block, READ_ONCE(sbi->disk_bytes))) {
			mxfs_err(sbi, "the holder's attributes of %u inodes are damaged", count);
			err = -EIO;
		} else {
			memcpy(briefs, result.data, result.data_len);
		}
	}
	result_put(&result);
	return err;
}

static ssize_t remote_read(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, struct iov_iter *to)
{
	size_t want = min_t(size_t, iov_iter_count(to), MXFS_FSOP_DATA_MAX);
	struct result result;
	ssize_t done;
	BUILD(MXFS_FSOP_READ, fh);

	/* A page fault in here would wait for DLM locks inside the gate. */
	if (WARN_ON_ONCE(user_backed_iter(to)))
		return -EFAULT;
	build.args.offset = cpu_to_le64(pos);
	build.args.length = cpu_to_le64(want);
	done = run(sbi, &build, &result);
	if (!done) {
		if (result.data_len > want)
			done = -EIO;
		else
			done = copy_to_iter(result.data, result.data_len, to);
	}
	result_put(&result);
	return done;
}

static ssize_t remote_write(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, struct iov_iter *from,
			    bool kernel, const struct timespec64 *mtime, struct mxfs_attr *attr)
{
	size_t count = min_t(size_t, iov_iter_count(from), MXFS_FSOP_DATA_MAX), before = iov_iter_count(from);
	struct result result;
	ssize_t done;
	BUILD(MXFS_FSOP_WRITE, fh);

	if (WARN_ON_ONCE(user_backed_iter(from)))
		return -EFAULT;
	build.flags = kernel ? MXFS_REQ_KERNEL : 0;
	build.args.offset = cpu_to_le64(pos);
	if (mtime) {
		build.args.valid = cpu_to_le32(MXFS_SET_MTIME | MXFS_SET_MTIME_SET);
		build.args.mtime_sec = cpu_to_le64(mtime->tv_sec);
		build.args.mtime_nsec = cpu_to_le32(mtime->tv_nsec);
	}
	build.data = from;
	build.data_len = count;
	done = run(sbi, &build, &result);
	if (!done) {
		done = le64_to_cpu(result.head.value);
		if (done < 0 || done > count)
			done = -EIO;
		else
			give_attrs(&result, attr, NULL);
	}
	result_put(&result);
	/* The iterator stands behind what was written, however much was sent. */
	iov_iter_revert(from, before - iov_iter_count(from) - max_t(ssize_t, done, 0));
	return done;
}

static int remote_fsync(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, bool datasync)
{
	BUILD(MXFS_FSOP_FSYNC, fh);

	build.args.flags = cpu_to_le32(datasync ? MXFS_FSYNC_DATA : 0);
	return run_simple(sbi, &build, NULL, NULL);
}

int mxfs_remote_settle(struct mxfs_sb_info *sbi)
{
	struct mxfs_remote *remote = sbi->remote;
	const struct call *first;
	bool done, ask;
	u64 until;
	int err;

	spin_lock(&remote->lock);
	until = remote->next_seq;
	spin_unlock(&remote->lock);
	for (;;) {
		spin_lock(&remote->lock);
		err = remote->error;
		first = list_first_entry_or_null(&remote->kept, struct call, list);
		done = err || !first || first->seq >= until;
		ask = !done && !remote->forcing;
		if (ask)
			remote->forcing = true;
		spin_unlock(&remote->lock);
		if (done)
			return err;
		if (ask) {
			BUILD(MXFS_FSOP_FORCE, NULL);

			build.flags = MXFS_REQ_KERNEL;
			mxfs_count(sbi, MXFS_COUNT_COMMIT_ASK);
			err = run_simple(sbi, &build, NULL, NULL);
			spin_lock(&remote->lock);
			remote->forcing = false;
			spin_unlock(&remote->lock);
			wake_up_all(&remote->room);
			if (err)
				return err;
		} else {
			/* One commit for many. If it began too early for us, we ask for the next. */
			wait_event_state(remote->room, !READ_ONCE(remote->forcing),
					 (TASK_UNINTERRUPTIBLE | TASK_FREEZABLE_UNSAFE));
		}
	}
}

static void commit_work(struct work_struct *work)
{
	struct mxfs_remote *remote = container_of(to_delayed_work(work), struct mxfs_remote, commit);
	struct mxfs_sb_info *sbi = remote->sbi;
	int err = mxfs_gate_try_enter(sbi);

	if (err == -EAGAIN && READ_ONCE(remote->kept_count) && !READ_ONCE(remote->error))
		queue_delayed_work(system_unbound_wq, &remote->commit, msecs_to_jiffies(MXFS_COMMIT_PAUSE_MS));
	if (err)
		return;
	mxfs_remote_settle(sbi); /* an error is the fence's, or told by the next who asks */
	mxfs_gate_leave(sbi);
}

static int remote_syncfs(struct mxfs_sb_info *sbi)
{
	int err;
	BUILD(MXFS_FSOP_SYNCFS, NULL);

	err = run_simple(sbi, &build, NULL, NULL);
	/* What this node has written itself; -EAGAIN: nothing, it has not got the disk. */
	if (!err)
		err = mxfs_disk_flush(sbi);
	return err == -EAGAIN ? 0 : err;
}

static int remote_statfs(struct mxfs_sb_info *sbi, struct kstatfs *st)
{
	struct mxfs_wire_statfs wire;
	ssize_t len;
	BUILD(MXFS_FSOP_STATFS, NULL);

	len = run_bytes(sbi, &build, &wire, sizeof(wire));
	if (len < 0)
		return len;
	if (len != sizeof(wire))
		return -EIO;
	mxfs_fsop_get_statfs(st, &wire);
	return 0;
}

static ssize_t remote_getxattr(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const char *name, void *buf,
			       size_t size)
{
	BUILD(MXFS_FSOP_GETXATTR, fh);

	set_name(&build, name, strlen(name));
	return run_bytes(sbi, &build, buf, min_t(size_t, size, XATTR_SIZE_MAX));
}

static int remote_setxattr(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const char *name, const void *value,
			   size_t size, int flags, struct mxfs_attr *attr)
{
	struct kvec vec = { .iov_base = (void *)value, .iov_len = size };
	struct iov_iter iter;
	BUILD(MXFS_FSOP_SETXATTR, fh);

	if (size > XATTR_SIZE_MAX)
		return -E2BIG;
	set_name(&build, name, strlen(name));
	iov_iter_kvec(&iter, ITER_SOURCE, &vec, 1, size);
	build.data = &iter;
	build.data_len = size;
	build.args.flags = cpu_to_le32(flags);
	return run_simple(sbi, &build, attr, NULL);
}

static ssize_t remote_listxattr(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, char *buf, size_t size)
{
	BUILD(MXFS_FSOP_LISTXATTR, fh);

	return run_bytes(sbi, &build, buf, min_t(size_t, size, XATTR_LIST_MAX));
}

static int remote_removexattr(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const char *name,
			      struct mxfs_attr *attr)
{
	BUILD(MXFS_FSOP_REMOVEXATTR, fh);

	set_name(&build, name, strlen(name));
	return run_simple(sbi, &build, attr, NULL);
}

static int remote_fallocate(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, int mode, u64 pos, u64 len,
			    struct mxfs_attr *attr)
{
	BUILD(MXFS_FSOP_FALLOCATE, fh);

	build.args.flags = cpu_to_le32(mode);
	build.args.offset = cpu_to_le64(pos);
	build.args.length = cpu_to_le64(len);
	return run_simple(sbi, &build, attr, NULL);
}

/* Only what a disk of this size can have gets past this. */
static int remote_map(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, u64 len, u64 need, u32 flags,
		      struct mxfs_wire_extent *extents, u32 *count, u32 *block)
{
	struct result result;
	int err;
	BUILD(MXFS_FSOP_MAP, fh);

	/* What allocates is waited for: the lock must not go before. */
	build.flags = flags & MXFS_MAP_WRITE ? MXFS_REQ_KERNEL : 0;
	build.args.flags = cpu_to_le32(flags);
	build.args.offset = cpu_to_le64(pos);
	build.args.length = cpu_to_le64(len);
	build.args.arg_seq = cpu_to_le64(need);
	err = run(sbi, &build, &result);
	if (!err) {
		*block = min_t(u64, le64_to_cpu(result.head.value), U32_MAX);
		if (mxfs_fsop_check_extents(result.data, result.data_len, pos, *block, READ_ONCE(sbi->disk_bytes)) ||
		    result.data_len / sizeof(*extents) > *count) {
			mxfs_err(sbi, "the holder's map of inode %llu at %llu is damaged", fh->ino, pos);
			err = -EIO;
		} else {
			memcpy(extents, result.data, result.data_len);
			*count = result.data_len / sizeof(*extents);
		}
	}
	result_put(&result);
	return err;
}

static int remote_commit(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_wire_range *ranges, u32 count,
			 u64 size, const struct timespec64 *mtime, struct mxfs_attr *attr)
{
	struct kvec vec = { .iov_base = (void *)ranges, .iov_len = count * sizeof(*ranges) };
	struct mxfs_setattr set = { .valid = ATTR_SIZE | ATTR_MTIME | ATTR_MTIME_SET, .size = size, .mtime = *mtime };
	struct iov_iter iter;
	BUILD(MXFS_FSOP_COMMIT, fh);

	mxfs_fsop_put_setattr(&build.args, &set);
	build.flags = MXFS_REQ_KERNEL;
	iov_iter_kvec(&iter, ITER_SOURCE, &vec, 1, vec.iov_len);
	build.data = &iter;
	build.data_len = vec.iov_len;
	return run_attr(sbi, &build, attr);
}

static ssize_t remote_copy(struct mxfs_sb_info *sbi, const struct mxfs_fh *from, u64 from_pos, const struct mxfs_fh *to,
			   u64 to_pos, u64 len, u32 flags, struct mxfs_attr *attr)
{
	struct result result;
	ssize_t done;
	BUILD(MXFS_FSOP_COPY, to);

	mxfs_fsop_put_handle(&build.args.h2, from);
	build.args.flags = cpu_to_le32(flags);
	build.args.offset = cpu_to_le64(to_pos);
	build.args.size = cpu_to_le64(from_pos);
	build.args.length = cpu_to_le64(len);
	done = run(sbi, &build, &result);
	if (!done) {
		done = le64_to_cpu(result.head.value);
		if (done < 0 || (len && done > len)) /* 0: to the end of the file */
			done = -EIO;
		else
			give_attrs(&result, attr, NULL);
	}
	result_put(&result);
	return done;
}

static loff_t remote_seek(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, int whence)
{
	struct result result;
	loff_t found;
	BUILD(MXFS_FSOP_SEEK, fh);

	build.args.flags = cpu_to_le32(whence);
	build.args.offset = cpu_to_le64(pos);
	found = run(sbi, &build, &result);
	if (!found) {
		found = le64_to_cpu(result.head.value);
		if (found < 0)
			found = -EIO;
	}
	result_put(&result);
	return found;
}

static int remote_reap(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh)
{
	BUILD(MXFS_FSOP_REAP, fh);

	return run_simple(sbi, &build, NULL, NULL);
}

/* ---------------------------------------------------------------- flock and fcntl */

/* Made by this node, and not durable yet. */
static bool is_new(struct mxfs_remote *remote, const struct mxfs_fh *fh)
{
	const struct call *call;
	bool found = false;

	spin_lock(&remote->lock);
	list_for_each_entry(call, &remote->kept, list) {
		found = call->made.ino == fh->ino && call->made.gen == fh->gen;
		if (found)
			break;
	}
	spin_unlock(&remote->lock);
	return found;
}

static int cancel_lock_wait(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 seq)
{
	BUILD(MXFS_FSOP_CANCELLK, fh);

	build.args.arg_seq = cpu_to_le64(seq);
	return run_simple(sbi, &build, NULL, NULL);
}

static int wait_for_lock(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_lk *lk,
			 struct mxfs_fsop_build *build)
{
	struct result result = {};
	struct call *call;
	int err, killed, entered;

	call = call_start(sbi, build, true, TASK_KILLABLE | TASK_FREEZABLE_UNSAFE);
	if (IS_ERR(call))
		return PTR_ERR(call);
	/* May take days; the holder may change meanwhile: outside the gate. */
	mxfs_gate_leave(sbi);
	killed = wait_for_completion_state(&call->done, TASK_INTERRUPTIBLE | TASK_FREEZABLE_UNSAFE);
	entered = mxfs_gate_rejoin(sbi);
	if (killed && !entered && !completion_done(&call->done)) {
		/* Granted or cancelled, the holder decides which; if this node has become the holder the call has ended. */
		err = cancel_lock_wait(sbi, fh, call->seq);
		if (err)
			mxfs_warn(sbi, "giving up the wait for a lock on inode %llu failed (%d)", fh->ino, err);
		wait_for_completion_state(&call->done, TASK_UNINTERRUPTIBLE | TASK_FREEZABLE_UNSAFE);
	}
	if (entered) {
		call_put(call);
		return entered;
	}
	err = call_result(call, &result);
	result_put(&result);
	if (err == MXFS_LOCKTAB_RETRY)
		return sbi->be->setlk(sbi, fh, lk); /* of the role that this node has now */
	return err;
}

static int remote_setlk(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_lk *lk)
{
	BUILD(MXFS_FSOP_SETLK, fh);

	mxfs_fsop_put_lk(&build.args, lk);
	/* What could get another number by a takeover could not be found again by its lock. */
	if (lk->type != F_UNLCK && is_new(sbi->remote, fh))
		build.flags = MXFS_REQ_DURABLE;
	if (lk->wait && lk->type != F_UNLCK)
		return wait_for_lock(sbi, fh, lk, &build);
	build.args.flags &= ~cpu_to_le32(MXFS_LK_WAIT);
	return run_simple(sbi, &build, NULL, NULL);
}

/* How long a view change waits for all answers. */
#define MXFS_RECLAIM_MS 5000

static int reclaim_from_holder(struct mxfs_sb_info *sbi, const struct mxfs_fh *fhs, const struct mxfs_lk *lks, int count)
{
	struct call **calls = kvcalloc(count, sizeof(*calls), GFP_NOFS | __GFP_NOFAIL);
	unsigned long until = jiffies + msecs_to_jiffies(MXFS_RECLAIM_MS);
	struct result result;
	int i, err, failed = 0;

	for (i = 0; i < count; i++) {
		BUILD(MXFS_FSOP_SETLK, &fhs[i]);

		mxfs_fsop_put_lk(&build.args, &lks[i]);
		calls[i] = call_start(sbi, &build, false, TASK_UNINTERRUPTIBLE);
	}
	for (i = 0; i < count; i++) {
		if (IS_ERR(calls[i])) {
			failed++;
			continue;
		}
		if (!wait_for_completion_timeout(&calls[i]->done, max_t(long, until - jiffies, 1))) {
			/* Stays pending, and may still succeed. */
			call_put(calls[i]);
			failed++;
			continue;
		}
		memset(&result, 0, sizeof(result));
		err = call_result(calls[i], &result);
		result_put(&result);
		if (err) {
			mxfs_err(sbi, "the new holder refuses a lock on inode %llu that process %u has (%d)", fhs[i].ino,
				 lks[i].pid, err);
			failed++;
		}
	}
	kvfree(calls);
	return failed;
}

int mxfs_reclaim_locks(struct mxfs_sb_info *sbi, const struct mxfs_fh *fhs, const struct mxfs_lk *lks, int count)
{
	struct mxfs_locktab_request req;
	int i, failed = 0;

	if (READ_ONCE(sbi->role) != MXFS_ROLE_HOLDER)
		return reclaim_from_holder(sbi, fhs, lks, count);
	mutex_lock(&sbi->role_mutex);
	for (i = 0; i < count; i++) {
		req = (struct mxfs_locktab_request){ .fh = fhs[i], .lk = lks[i], .incarnation = sbi->incarnation };
		req.lk.node = sbi->node;
		req.lk.wait = false;
		if (!sbi->lower || mxfs_locktab_set(sbi->lower, &req))
			failed++;
	}
	mutex_unlock(&sbi->role_mutex);
	return failed;
}

static int remote_getlk(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, struct mxfs_lk *lk)
{
	const struct mxfs_wire_lock *wire;
	struct result result;
	int err;
	BUILD(MXFS_FSOP_GETLK, fh);

	mxfs_fsop_put_lk(&build.args, lk);
	err = run(sbi, &build, &result);
	if (!err && result.data_len != sizeof(*wire))
		err = -EIO;
	if (!err) {
		wire = result.data;
		lk->type = le32_to_cpu(wire->lock_type);
		if (lk->type != F_UNLCK) {
			lk->start = le64_to_cpu(wire->start);
			lk->end = le64_to_cpu(wire->end);
			lk->pid = le32_to_cpu(wire->pid);
			lk->node = le32_to_cpu(wire->node);
		}
	}
	result_put(&result);
	return err;
}

static void remote_forget(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh)
{
	/* Nothing is kept per object. */
}

const struct mxfs_backend mxfs_remote_backend = {
	.name = "remote",
	.settle = mxfs_remote_settle,
	.getroot = remote_getroot,
	.lookup = remote_lookup,
	.getattr = remote_getattr,
	.setattr = remote_setattr,
	.make = remote_make,
	.symlink = remote_symlink,
	.link = remote_link,
	.unlink = remote_unlink,
	.rename = remote_rename,
	.readlink = remote_readlink,
	.readdir = remote_readdir,
	.names = remote_names,
	.getattrs = remote_getattrs,
	.read = remote_read,
	.write = remote_write,
	.fsync = remote_fsync,
	.syncfs = remote_syncfs,
	.statfs = remote_statfs,
	.getxattr = remote_getxattr,
	.setxattr = remote_setxattr,
	.listxattr = remote_listxattr,
	.removexattr = remote_removexattr,
	.fallocate = remote_fallocate,
	.map = remote_map,
	.commit = remote_commit,
	.copy = remote_copy,
	.seek = remote_seek,
	.reap = remote_reap,
	.setlk = remote_setlk,
	.getlk = remote_getlk,
	.forget = remote_forget,
};

/* ---------------------------------------------------------------- another holder: what was kept, and lost, is done again */

static void *args_of(const struct call *call)
{
	const struct mxfs_fsop_request *req = call->payload;

	return call->payload + sizeof(*req) + le32_to_cpu(req->ngroups) * sizeof(__le32);
}

static void get_objects(const struct call *call, struct mxfs_fh *h, struct mxfs_fh *h2)
{
	struct mxfs_fsop_args args;

	memcpy(&args, args_of(call), sizeof(args));
	mxfs_fsop_get_handle(h, &args.h);
	mxfs_fsop_get_handle(h2, &args.h2);
}

static bool same_fh(const struct mxfs_fh *a, const struct mxfs_fh *b)
{
	return a->ino == b->ino && a->gen == b->gen;
}

/* Under send_mutex and remote->lock: what `by`, of the numbering `was`, had made is called `to` from now on, in numbering `now`. */
static void rename_in_call(struct call *call, const struct mxfs_fh *from, const struct mxfs_fh *to, u32 was, u32 now)
{
	struct mxfs_fsop_args args;
	struct mxfs_fh h, h2;

	get_objects(call, &h, &h2);
	memcpy(&args, args_of(call), sizeof(args));
	if (call->ns == was && same_fh(&h, from)) {
		mxfs_fsop_put_handle(&args.h, to);
		call->ns = now;
	}
	if (call->ns2 == was && same_fh(&h2, from)) {
		mxfs_fsop_put_handle(&args.h2, to);
		call->ns2 = now;
	}
	memcpy(args_of(call), &args, sizeof(args));
}

bool mxfs_remote_translate(struct mxfs_sb_info *sbi, struct mxfs_fh *fh)
{
	const struct moved *moved;

	/* Made and read by the replay alone. */
	list_for_each_entry(moved, &sbi->remote->moved, list) {
		if (same_fh(&moved->from, fh)) {
			*fh = moved->to;
			return true;
		}
	}
	return false;
}

u32 mxfs_remote_numbering(struct mxfs_sb_info *sbi)
{
	return atomic_read(&sbi->remote->numbering);
}

u32 mxfs_remote_holders(struct mxfs_sb_info *sbi)
{
	return READ_ONCE(sbi->remote->gen);
}

static void forget_moved(struct mxfs_remote *remote)
{
	struct moved *moved, *next;

	list_for_each_entry_safe(moved, next, &remote->moved, list)
		kfree(moved);
	INIT_LIST_HEAD(&remote->moved);
}

/* What the kept call had made has been made again as `to`, in the numbering of `gen`. */
static void note_moved(struct mxfs_remote *remote, struct call *by, const struct mxfs_fh *to, u32 gen)
{
	struct moved *moved, *new = kzalloc(sizeof(*new), GFP_NOFS | __GFP_NOFAIL);
	struct call *call;

	list_for_each_entry(moved, &remote->moved, list) {
		if (same_fh(&moved->from, &by->known)) { /* of an earlier try of this replay */
			moved->to = *to;
			kfree(new);
			new = NULL;
			break;
		}
	}
	if (new) {
		new->from = by->known;
		new->to = *to;
		list_add_tail(&new->list, &remote->moved);
	}
	/* Calls are built behind the gate, which is shut: all there are stand in these lists. */
	mutex_lock(&remote->send_mutex);
	spin_lock(&remote->lock);
	list_for_each_entry(call, &remote->kept, list)
		rename_in_call(call, &by->made, to, by->kept_gen, gen);
	list_for_each_entry(call, &remote->pending, list)
		if (!call->origin)
			rename_in_call(call, &by->made, to, by->kept_gen, gen);
	list_for_each_entry(call, &remote->starting, list)
		rename_in_call(call, &by->made, to, by->kept_gen, gen);
	spin_unlock(&remote->lock);
	mutex_unlock(&remote->send_mutex);
}

/* Enters the call in its place by seq, sends it, and waits for its answer. ANOTHER_HOLDER: there is another holder meanwhile. */
static int run_in_replay(struct mxfs_remote *remote, struct call *call, bool numbered, u32 gen)
{
	struct call *before;
	bool ended;
	int err = 0;

	spin_lock(&remote->lock);
	if (remote->error) {
		err = remote->error;
	} else if (remote->gen != gen) {
		err = ANOTHER_HOLDER;
	} else {
		if (!numbered)
			call->seq = remote->next_seq++;
		list_for_each_entry_reverse(before, &remote->pending, list)
			if (before->seq < call->seq)
				break;
		refcount_inc(&call->ref);
		hash_add(remote->calls, &call->hash, call->seq);
		list_add(&call->list, &before->list);
		remote->pending_count++;
	}
	spin_unlock(&remote->lock);
	if (err)
		return err;
	call_send(remote, call);
	wait_event_idle(remote->room, READ_ONCE(call->ended) || READ_ONCE(remote->gen) != gen);
	spin_lock(&remote->lock);
	ended = call->ended;
	if (!ended)
		call_leave(remote, call);
	spin_unlock(&remote->lock);
	if (!ended) {
		call_put(call); /* the list's reference */
		return ANOTHER_HOLDER;
	}
	return 0;
}

/* What the holder, perhaps this node itself, says to a call. The reply's head is filled if it has said something. */
static int ask_holder(struct mxfs_remote *remote, struct call *call, bool numbered, u32 gen, struct mxfs_fsop_reply *head)
{
	struct mxfs_sb_info *sbi = remote->sbi;
	struct mxfs_fsop_request *req = call->payload;
	struct result result = {};
	int err = ANOTHER_HOLDER;

	memset(head, 0, sizeof(*head));
	mutex_lock(&sbi->role_mutex);
	if (READ_ONCE(sbi->role) == MXFS_ROLE_HOLDER && sbi->lower) {
		if (!numbered)
			call->seq = U64_MAX; /* of no list */
		req->seq = cpu_to_le64(call->seq);
		req->acked = 0;
		req->node = cpu_to_le32(sbi->node);
		req->incarnation = cpu_to_le32(sbi->incarnation);
		err = mxfs_exec_replay_own(sbi, call->payload, call->len, head);
		mutex_unlock(&sbi->role_mutex);
		return err;
	}
	mutex_unlock(&sbi->role_mutex);
	err = run_in_replay(remote, call, numbered, gen);
	if (err)
		return err;
	err = call_result(call, &result);
	*head = result.head;
	return err;
}

/* 0: *change is its version. -ESTALE: there is no such object. */
static int ask_version(struct mxfs_remote *remote, const struct mxfs_fh *fh, u32 gen, u64 *change)
{
	struct mxfs_fsop_reply head;
	struct call *call;
	int err;
	BUILD(MXFS_FSOP_GETATTR, fh);

	build.flags = MXFS_REQ_KERNEL;
	call = call_new(&build, false);
	if (IS_ERR(call))
		return PTR_ERR(call);
	err = ask_holder(remote, call, false, gen, &head);
	call_put(call);
	*change = le64_to_cpu(head.attr.change);
	return err == -ENOENT ? -ESTALE : err;
}

/* The first kept call that has not been judged, or not been done again, in this generation; with a reference. */
static struct call *next_kept(struct mxfs_remote *remote, u32 gen, bool judged, int *err)
{
	struct call *call, *found = NULL;

	spin_lock(&remote->lock);
	*err = remote->error ? remote->error : remote->gen != gen ? ANOTHER_HOLDER : 0;
	list_for_each_entry(call, &remote->kept, list) {
		if (*err || call->kept_gen == gen || (call->change == 0) != judged)
			continue;
		refcount_inc(&call->ref);
		found = call;
		break;
	}
	spin_unlock(&remote->lock);
	return found;
}

static void drop_kept(struct mxfs_remote *remote, struct call *call)
{
	spin_lock(&remote->lock);
	if (!list_empty(&call->list)) {
		list_del_init(&call->list);
		remote->kept_count--;
		refcount_dec(&call->ref); /* the caller has one */
	}
	spin_unlock(&remote->lock);
}

/* Whether one of its objects was made by a kept call that is lost: then it is lost as well. */
static bool is_of_lost(struct mxfs_remote *remote, struct call *call)
{
	struct mxfs_fh h, h2;
	struct call *other;
	bool lost = false;

	get_objects(call, &h, &h2);
	spin_lock(&remote->lock);
	list_for_each_entry(other, &remote->kept, list) {
		if (other == call)
			break;
		if (other->change || !other->made.ino)
			continue;
		lost = lost || (call->ns == other->kept_gen && same_fh(&other->made, &h)) ||
		       (call->ns2 == other->kept_gen && same_fh(&other->made, &h2));
	}
	spin_unlock(&remote->lock);
	return lost;
}

/*
 * Done or lost, of all before anything is done again. An answer for an object serves all calls of the same object, which stand
 * together mostly.
 */
static int judge_kept(struct mxfs_remote *remote, u32 gen)
{
	struct mxfs_fh h, h2, asked = {};
	struct call *call;
	u64 change = 0;
	int err, said = 0;
	bool lost;

	while ((call = next_kept(remote, gen, false, &err))) {
		get_objects(call, &h, &h2);
		lost = is_of_lost(remote, call);
		if (!lost && !same_fh(&h, &asked)) {
			said = ask_version(remote, &h, gen, &change);
			if (said == ANOTHER_HOLDER || READ_ONCE(remote->error)) {
				call_put(call);
				return READ_ONCE(remote->error) ?: said;
			}
			if (said && said != -ESTALE)
				mxfs_err(remote->sbi, "inode %llu: the new holder does not tell its version (%d): what was done to it is done again",
					 h.ino, said);
			asked = h;
		}
		/* Gone is what was removed by an operation behind it, which is there as well then. */
		if (lost || (said ? said != -ESTALE : change < call->change))
			call->change = 0; /* read by this work alone from here on */
		else
			drop_kept(remote, call); /* a log that was replayed is durable */
		call_put(call);
	}
	return err;
}

/* It was acknowledged, and cannot be had again. Not silent, and not seen by anybody else. */
static void replay_failed(struct mxfs_remote *remote, struct call *call, int error)
{
	struct mxfs_sb_info *sbi = remote->sbi;
	struct mxfs_fh h, h2;

	get_objects(call, &h, &h2);
	mxfs_err(sbi, "operation %u on inode %llu, answered by the earlier holder and lost with it, fails with %d at the new one: it is undone here",
		 call->op, h.ino, error);
	errseq_set(&sbi->sb->s_wb_err, error);
}

/* A call that asks for what `call` had asked for. Takes a reference on it. */
static struct call *call_again(struct call *call)
{
	struct call *again = kzalloc(sizeof(*again), GFP_NOFS | __GFP_NOFAIL);

	refcount_set(&again->ref, 1);
	refcount_inc(&call->ref);
	INIT_LIST_HEAD(&again->list);
	init_completion(&again->done);
	again->op = call->op;
	again->seq = call->seq;
	again->origin = call;
	again->payload = call->payload;
	again->len = call->len;
	return again;
}

/*
 * As ask_holder. Each node does again what it had kept, in its own order: space that one of them had made may not be free again
 * when another one needs it. So that is waited for a while, once in a replay.
 */
static int ask_again(struct mxfs_remote *remote, struct call *call, u32 gen, unsigned long until, struct mxfs_fsop_reply *reply)
{
	bool numbered = true; /* the refusal is the answer to that number */
	struct call *again;
	int said;

	for (;;) {
		again = call_again(call);
		said = ask_holder(remote, again, numbered, gen, reply);
		call_put(again);
		if ((said != -ENOSPC && said != -EDQUOT) || time_after(jiffies, until))
			return said;
		schedule_timeout_idle(msecs_to_jiffies(MXFS_REDO_PAUSE_MS));
		numbered = false;
	}
}

static int redo_kept(struct mxfs_remote *remote, u32 gen, bool *failed)
{
	unsigned long until = jiffies + msecs_to_jiffies(MXFS_REDO_SPACE_MS);
	struct mxfs_fsop_reply reply;
	struct mxfs_fh made;
	struct call *call;
	int err, said;

	while ((call = next_kept(remote, gen, true, &err))) {
		mutex_lock(&remote->send_mutex);
		((struct mxfs_fsop_request *)call->payload)->flags |= cpu_to_le32(MXFS_REQ_REPLAY);
		if (call->op != MXFS_FSOP_SETATTR) /* of a directory that has lost changes since: tells nothing now */
			memset(args_of(call) + offsetof(struct mxfs_fsop_args, size), 0, sizeof(__le64));
		mutex_unlock(&remote->send_mutex);
		said = ask_again(remote, call, gen, until, &reply);
		if (said == ANOTHER_HOLDER || READ_ONCE(remote->error)) {
			call_put(call);
			return said == ANOTHER_HOLDER ? said : READ_ONCE(remote->error);
		}
		mxfs_count(remote->sbi, MXFS_COUNT_REDONE);
		if (said) {
			replay_failed(remote, call, said);
			*failed = true;
		}
		mxfs_fsop_get_handle(&made, &reply.attr.handle);
		if (!said && call->made.ino && made.ino && !same_fh(&call->made, &made)) {
			note_moved(remote, call, &made, gen);
			call->made = made;
		}
		if (!said && (le32_to_cpu(reply.flags) & MXFS_REPLY_EARLY)) {
			spin_lock(&remote->lock);
			if (remote->gen == gen) {
				call->kept_gen = gen;
				call->stamp = le64_to_cpu(reply.stamp);
				call->change = le64_to_cpu(call->op == MXFS_FSOP_SETATTR || call->op == MXFS_FSOP_RENAME ?
								   reply.attr.change :
								   reply.attr2.change);
			}
			spin_unlock(&remote->lock);
		} else {
			drop_kept(remote, call);
		}
		call_put(call);
	}
	return err;
}

/* This node is the holder, and what it had kept is done: its own log takes it over. */
static int commit_own(struct mxfs_remote *remote)
{
	struct mxfs_sb_info *sbi = remote->sbi;
	struct call *call, *next;
	LIST_HEAD(done);
	bool own;
	int err = 0;

	mutex_lock(&sbi->role_mutex);
	own = READ_ONCE(sbi->role) == MXFS_ROLE_HOLDER && sbi->lower;
	if (own)
		err = mxfs_lower_commit(sbi);
	mutex_unlock(&sbi->role_mutex);
	if (!own || err)
		return err;
	spin_lock(&remote->lock);
	list_for_each_entry_safe(call, next, &remote->kept, list) {
		if (call->kept_gen != remote->gen)
			continue;
		list_move_tail(&call->list, &done);
		remote->kept_count--;
	}
	spin_unlock(&remote->lock);
	put_all(&done);
	return 0;
}

/* The inodes have their new numbers. */
static void known_now(struct mxfs_remote *remote)
{
	struct call *call;

	forget_moved(remote);
	spin_lock(&remote->lock);
	list_for_each_entry(call, &remote->kept, list)
		call->known = call->made;
	spin_unlock(&remote->lock);
}

static void open_gate(struct mxfs_remote *remote)
{
	int count = atomic_xchg(&remote->held, 0);

	while (count-- > 0)
		mxfs_gate_open(remote->sbi);
}

static void replay_work(struct work_struct *work)
{
	struct mxfs_remote *remote = container_of(work, struct mxfs_remote, replay);
	struct mxfs_sb_info *sbi = remote->sbi;
	ktime_t began = ktime_get();
	unsigned int count;
	bool failed = false;
	int err;
	u32 gen;

	do {
		spin_lock(&remote->lock);
		gen = remote->gen;
		count = remote->kept_count;
		spin_unlock(&remote->lock);
		err = judge_kept(remote, gen);
		if (!err)
			err = redo_kept(remote, gen, &failed);
		if (!err && !list_empty(&remote->moved)) {
			atomic_inc(&remote->numbering);
			mxfs_inodes_moved(sbi);
			mxfs_dlm_tell_moved(sbi);
			known_now(remote);
		}
		if (!err)
			err = commit_own(remote);
		spin_lock(&remote->lock);
		if (!err && remote->gen != gen)
			err = ANOTHER_HOLDER;
		if (err != ANOTHER_HOLDER)
			remote->replaying = false;
		spin_unlock(&remote->lock);
	} while (err == ANOTHER_HOLDER);
	if (err && !mxfs_gate_fenced(&sbi->gate))
		mxfs_fence(sbi, "what the earlier holder had acknowledged could not be done again");
	if (count)
		mxfs_info(sbi, "another holder: %u operations were not known to be durable; looked at, and those that were lost done again, in %lld ms",
			  count, ktime_ms_delta(ktime_get(), began));
	send_again(remote, true);
	wake_up_all(&remote->room);
	open_gate(remote);
	if (failed && !mxfs_gate_fenced(&sbi->gate))
		mxfs_cache_invalidate(sbi, 0); /* writes pages out, by the gate */
}

/* Under remote->lock. */
static bool is_asked(const struct mxfs_remote *remote, u32 holder, u32 incarnation)
{
	return remote->holder == holder && remote->incarnation == incarnation;
}

bool mxfs_remote_follow(struct mxfs_sb_info *sbi, u32 holder, u32 incarnation)
{
	struct mxfs_remote *remote = sbi->remote;
	bool changed;

	spin_lock(&remote->lock);
	changed = !is_asked(remote, holder, incarnation);
	if (changed) {
		remote->holder = holder;
		remote->incarnation = incarnation;
		remote->gen++;
		remote->session = 0;
		remote->committed = 0;
		if (remote->kept_count)
			remote->replaying = true;
	}
	spin_unlock(&remote->lock);
	if (changed)
		wake_up_all(&remote->room);
	return changed;
}

void mxfs_remote_hold_gate(struct mxfs_sb_info *sbi, u32 holder, u32 incarnation)
{
	struct mxfs_remote *remote = sbi->remote;
	bool hold;

	if (!remote)
		return;
	spin_lock(&remote->lock);
	hold = !is_asked(remote, holder, incarnation) && (remote->kept_count || remote->replaying);
	spin_unlock(&remote->lock);
	if (!hold)
		return;
	/* Those inside wait for answers that come when this is over. */
	mxfs_gate_shut(sbi, "operations of the earlier holder are done again", true);
	atomic_inc(&remote->held);
}

bool mxfs_remote_redoing(struct mxfs_sb_info *sbi)
{
	return sbi->remote && atomic_read(&sbi->remote->held) > 0;
}

void mxfs_remote_drain(struct mxfs_sb_info *sbi)
{
	struct mxfs_remote *remote = sbi->remote;

	if (!remote || !READ_ONCE(remote->kept_count) || READ_ONCE(sbi->role) != MXFS_ROLE_MEMBER)
		return;
	queue_work(system_unbound_wq, &remote->drain);
	wait_event(sbi->gate.wait, !READ_ONCE(remote->kept_count) || READ_ONCE(sbi->gate.force) || READ_ONCE(remote->error));
}

static void drain_work(struct work_struct *work)
{
	struct mxfs_remote *remote = container_of(work, struct mxfs_remote, drain);

	mxfs_remote_settle(remote->sbi); /* without the gate: it is shut, but at the holder it is open yet */
	wake_up_all(&remote->sbi->gate.wait);
}

/* ---------------------------------------------------------------- the mount */

int mxfs_remote_init(struct mxfs_sb_info *sbi)
{
	struct mxfs_remote *remote = kzalloc(sizeof(*remote), GFP_KERNEL);

	if (!remote)
		return -ENOMEM;
	remote->sbi = sbi;
	remote->next_seq = 1;
	remote->gen = 1;
	spin_lock_init(&remote->lock);
	hash_init(remote->calls);
	INIT_LIST_HEAD(&remote->pending);
	INIT_LIST_HEAD(&remote->lock_waits);
	INIT_LIST_HEAD(&remote->kept);
	INIT_LIST_HEAD(&remote->starting);
	atomic_set(&remote->numbering, 1);
	INIT_LIST_HEAD(&remote->moved);
	INIT_DELAYED_WORK(&remote->commit, commit_work);
	INIT_WORK(&remote->replay, replay_work);
	INIT_WORK(&remote->drain, drain_work);
	init_waitqueue_head(&remote->room);
	mutex_init(&remote->send_mutex);
	mutex_init(&remote->receive_mutex);
	INIT_DELAYED_WORK(&remote->retry, retry_work);
	sbi->remote = remote;
	return 0;
}

void mxfs_remote_destroy(struct mxfs_sb_info *sbi)
{
	struct mxfs_remote *remote = sbi->remote;

	if (!remote)
		return;
	mxfs_remote_fail(sbi, -EIO);
	cancel_delayed_work_sync(&remote->retry);
	cancel_work_sync(&remote->replay);
	cancel_work_sync(&remote->drain);
	cancel_delayed_work_sync(&remote->commit);
	forget_moved(remote);
	sbi->remote = NULL;
	kfree(remote);
}

void mxfs_remote_resend(struct mxfs_sb_info *sbi, bool all)
{
	struct mxfs_remote *remote = sbi->remote;
	bool replay;

	if (all && sbi->role == MXFS_ROLE_HOLDER)
		end_all(remote, &remote->lock_waits, MXFS_LOCKTAB_RETRY);
	if (all)
		send_again(remote, true);
	spin_lock(&remote->lock);
	replay = remote->replaying;
	spin_unlock(&remote->lock);
	if (replay)
		queue_work(system_unbound_wq, &remote->replay); /* ends with the rest of what is pending, and the gate */
	else
		open_gate(remote);
}

void mxfs_remote_fail(struct mxfs_sb_info *sbi, int error)
{
	struct mxfs_remote *remote = sbi->remote;
	struct call *call;

	if (!remote)
		return;
	spin_lock(&remote->lock);
	remote->error = error;
	spin_unlock(&remote->lock);
	wake_up_all(&remote->room);
	end_all(remote, &remote->pending, error);
	end_all(remote, &remote->lock_waits, error);
	/* What was acknowledged and not committed is for the holder that has it; or lost with that one, and this node. */
	for (;;) {
		spin_lock(&remote->lock);
		call = list_first_entry_or_null(&remote->kept, struct call, list);
		if (call) {
			list_del_init(&call->list);
			remote->kept_count--;
		}
		spin_unlock(&remote->lock);
		if (!call)
			break;
		call_put(call);
	}
	wake_up_all(&sbi->gate.wait);
}
