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
 * Waiting is inside the gate, so a gate is shut when every answer is there; waiting SETLKs leave it while they wait.
 *
 * Limits: MXFS_FSOP_INFLIGHT_MAX calls, MXFS_FSOP_WINDOW_MAX numbers above acked: further callers wait.
 * MXFS_FSOP_LOCK_WAITS_MAX waiting SETLKs: further ones get ENOLCK.
 *
 * Another holder: what is pending is sent to it, marked REPLAY, since the earlier one may have executed it. If this node
 * itself has become the holder the requests go to its own executor, and the answers come back, without the daemon; waiting
 * SETLKs end, and their callers ask the local back end.
 */
#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/hashtable.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/xattr.h>

#include "mxfs_fsop_codec.h"
#include "mxfs_lower.h"
#include "mxfs_vfs.h"

#define MXFS_REMOTE_HASH_BITS 8

struct call {
	refcount_t ref; /* pending, caller, whoever sends it */
	struct hlist_node hash;
	struct list_head list; /* of pending or lock_waits, by seq */
	u64 seq, epoch;	       /* epoch: of the last sending */
	u32 first_holder;      /* that it was sent to */
	u32 op;
	bool lock_wait;
	bool retry; /* answered RETRY, to be sent again */
	bool ended; /* no longer pending */
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
	struct list_head pending, lock_waits;
	unsigned int pending_count, lock_wait_count;
	u64 next_seq;
	int error; /* final */
	wait_queue_head_t room;
	struct mutex send_mutex;    /* headers are changed and sent by one at a time */
	struct mutex receive_mutex; /* parts are put together by one at a time */
	struct delayed_work retry;
};

/* ---------------------------------------------------------------- pending calls */

static void call_put(struct call *call)
{
	if (!refcount_dec_and_test(&call->ref))
		return;
	kvfree(call->payload);
	kvfree(call->reply);
	kfree(call);
}

/* Under remote->lock: all below have been answered and seen. */
static u64 acked(struct mxfs_remote *remote)
{
	const struct call *first = list_first_entry_or_null(&remote->pending, struct call, list);

	return first ? first->seq : remote->next_seq;
}

static bool has_room(struct mxfs_remote *remote)
{
	bool room;

	spin_lock(&remote->lock);
	room = remote->error || (remote->pending_count < MXFS_FSOP_INFLIGHT_MAX &&
				 remote->next_seq - acked(remote) < MXFS_FSOP_WINDOW_MAX);
	spin_unlock(&remote->lock);
	return room;
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
	} else if (remote->next_seq - acked(remote) >= MXFS_FSOP_WINDOW_MAX ||
		   (!call->lock_wait && remote->pending_count >= MXFS_FSOP_INFLIGHT_MAX)) {
		err = -EAGAIN;
	} else {
		call->seq = remote->next_seq++;
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
	u32 holder;
	u64 low;
	int err;

	mutex_lock(&remote->send_mutex);
	spin_lock(&remote->lock);
	low = min(acked(remote), call->seq);
	spin_unlock(&remote->lock);
	WRITE_ONCE(call->retry, false);
	call->epoch = READ_ONCE(sbi->epoch);
	holder = READ_ONCE(sbi->holder);
	if (!call->first_holder)
		call->first_holder = holder;
	else if (call->first_holder != holder)
		req->flags |= cpu_to_le32(MXFS_REQ_REPLAY);
	req->seq = cpu_to_le64(call->seq);
	req->acked = cpu_to_le64(low);
	req->epoch = cpu_to_le64(call->epoch);
	req->node = cpu_to_le32(sbi->node);
	req->incarnation = cpu_to_le32(sbi->incarnation);
	/* Write-back and reclaim come here. */
	nofs = memalloc_nofs_save();
	if (READ_ONCE(sbi->role) == MXFS_ROLE_HOLDER)
		err = mxfs_exec_receive(sbi, sbi->node, call->seq, 0, call->len, call->payload, call->len);
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
	while ((err = call_enter(remote, call)) == -EAGAIN) {
		err = wait_event_state(remote->room, has_room(remote), state);
		if (err)
			break;
	}
	if (err) {
		call_put(call);
		return ERR_PTR(err);
	}
	mxfs_count(sbi, MXFS_COUNT_FSOP_SENT);
	call_send(remote, call);
	return call;
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
		if (count < max && (all || READ_ONCE(call->retry))) {
			refcount_inc(&call->ref);
			calls[count++] = call;
		}
	}
	list_for_each_entry(call, &remote->lock_waits, list) {
		if (count < max && (all || READ_ONCE(call->retry))) {
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
	send_again(container_of(to_delayed_work(work), struct mxfs_remote, retry), false);
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

static void answered(struct mxfs_remote *remote, struct call *call)
{
	struct mxfs_sb_info *sbi = remote->sbi;
	struct mxfs_fsop_reply reply;
	const void *data;
	int err;

	err = mxfs_fsop_parse_reply(call->reply, call->reply_total, call->op, call->seq, &reply, &data);
	if (err) {
		mxfs_err(sbi, "the holder's answer to operation %u number %llu cannot be read: expected %zu bytes and data, found %u bytes",
			 call->op, call->seq, sizeof(reply), call->reply_total);
		call_end(remote, call, -EIO);
		return;
	}
	if (le32_to_cpu(reply.error) != MXFS_FSOP_E_RETRY) {
		call_end(remote, call, 0);
		return;
	}
	kvfree(call->reply);
	call->reply = NULL;
	call->reply_got = 0;
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
	bool killable = (mxfs_fsop_is_readonly(build->op) || build->op == MXFS_FSOP_GETLK) &&
			!(build->op == MXFS_FSOP_MAP && (build->flags & MXFS_REQ_KERNEL));
	/* Nothing has been sent yet; only what releases or writes back must not fail for a signal. */
	bool must = (build->flags & MXFS_REQ_KERNEL) || build->op == MXFS_FSOP_REAP ||
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
	if (attr)
		mxfs_fsop_get_attr(attr, &result->head.attr);
	if (dattr)
		mxfs_fsop_get_attr(dattr, &result->head.attr2);
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
	return run_simple(sbi, &build, attr, dattr);
}

static int remote_link(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_fh *dir, const char *name,
		       u32 len, struct mxfs_attr *attr, struct mxfs_attr *dattr)
{
	BUILD(MXFS_FSOP_LINK, dir);

	mxfs_fsop_put_handle(&build.args.h2, fh);
	set_name(&build, name, len);
	return run_simple(sbi, &build, attr, dattr);
}

static int remote_unlink(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, const char *name, u32 len, u32 flags,
			 struct mxfs_attr *attr, struct mxfs_attr *dattr)
{
	BUILD(MXFS_FSOP_UNLINK, dir);

	set_name(&build, name, len);
	build.args.flags = cpu_to_le32(flags);
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

static int remote_readdir(struct mxfs_sb_info *sbi, const struct mxfs_fh *dir, u64 cookie, struct mxfs_dirent_sink *sink)
{
	struct result result;
	int err;
	BUILD(MXFS_FSOP_READDIR, dir);

	build.args.offset = cpu_to_le64(cookie);
	build.args.length = cpu_to_le64(min_t(size_t, sink->size, MXFS_FSOP_DATA_MAX));
	sink->used = 0;
	err = run(sbi, &build, &result);
	if (!err && (result.data_len > sink->size || mxfs_fsop_check_dirents(result.data, result.data_len))) {
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
			    bool kernel, struct mxfs_attr *attr)
{
	size_t count = min_t(size_t, iov_iter_count(from), MXFS_FSOP_DATA_MAX), before = iov_iter_count(from);
	struct result result;
	ssize_t done;
	BUILD(MXFS_FSOP_WRITE, fh);

	if (WARN_ON_ONCE(user_backed_iter(from)))
		return -EFAULT;
	build.flags = kernel ? MXFS_REQ_KERNEL : 0;
	build.args.offset = cpu_to_le64(pos);
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
	.answers_durable = true,
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

/* ---------------------------------------------------------------- the mount */

int mxfs_remote_init(struct mxfs_sb_info *sbi)
{
	struct mxfs_remote *remote = kzalloc(sizeof(*remote), GFP_KERNEL);

	if (!remote)
		return -ENOMEM;
	remote->sbi = sbi;
	remote->next_seq = 1;
	spin_lock_init(&remote->lock);
	hash_init(remote->calls);
	INIT_LIST_HEAD(&remote->pending);
	INIT_LIST_HEAD(&remote->lock_waits);
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
	sbi->remote = NULL;
	kfree(remote);
}

void mxfs_remote_resend(struct mxfs_sb_info *sbi)
{
	struct mxfs_remote *remote = sbi->remote;

	if (sbi->role == MXFS_ROLE_HOLDER)
		end_all(remote, &remote->lock_waits, MXFS_LOCKTAB_RETRY);
	send_again(remote, true);
}

void mxfs_remote_fail(struct mxfs_sb_info *sbi, int error)
{
	struct mxfs_remote *remote = sbi->remote;

	if (!remote)
		return;
	spin_lock(&remote->lock);
	remote->error = error;
	spin_unlock(&remote->lock);
	wake_up_all(&remote->room);
	end_all(remote, &remote->pending, error);
	end_all(remote, &remote->lock_waits, error);
}
