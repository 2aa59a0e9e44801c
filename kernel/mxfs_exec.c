// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: the executor: does on the holder what members ask for by fsops.
 *
 *	parts ──► whole request ──► queue of its member ──► worker: gate, identity, local back end ──► reply
 *	                                  ▲    │                                                    │
 *	                 known already? ──┘    └─ waits for earlier ones on the same object          └─► kept, if it changed anything
 *
 * Exactly once: a request is known by (node, incarnation, seq) from its arrival until its reply is acknowledged
 * (operations that change something), or until it is answered (the others, which may run again). One that is known is not started
 * again: its kept reply is sent, or nothing while it is on its way.
 *
 * Order: operations of one member on one object run in the order of arrival, one at a time; those that only read may
 * overlap each other. Locks are ordered among themselves. A SETLK that waits leaves the queue, and is answered by the lock table.
 *
 * Identity: fsuid, fsgid, groups and capabilities by override_creds; the umask in an fs_struct of the worker's own, put
 * back at the end.
 *
 * Nothing is executed for a node that has been declared gone: what waits is dropped, and mxfs_exec_node_gone returns when what
 * had begun is over. A request of an earlier epoch is answered RETRY, and so is one of a node that is gone, since a newcomer
 * in a view change that died with its holder is declared gone and comes in later.
 *
 * Limits, per member: MXFS_EXEC_PARTIAL_MAX requests in parts, MXFS_EXEC_KNOWN_MAX known ones; beyond them RETRY. What
 * a well-behaved member may send stays below.
 *
 * Acknowledged means it stays: what is one change of metadata is answered early, and the member keeps it until this holder's log
 * has been forced (may_answer_early; docs/interfaces.md, "Early answers"). Before any other change is answered, the data of a
 * write is written out and the log forced, one force for all that wait for one. So after the holder's death unanswered operations
 * and those that the members have kept are in doubt. They come again to the next holder, marked REPLAY, while the member still has
 * its DLM locks: nobody else can have changed the object since. Of what was answered only that comes which the member has found
 * lost, by the object's version. "Exists already" (and is what was to be made), "is gone already" and the like mean that the earlier holder
 * had done it.
 *
 * Known weakness: two kinds of operations cannot be told done from not done, and are refused with EIO when they are replayed: an
 * exchanging rename, and inserting or collapsing a range. What a member reads through the holder is read without read-ahead that
 * lasts, since the lower pages are dropped with the answer.
 */
#include <linux/cred.h>
#include <linux/falloc.h>
#include <linux/fs_struct.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/xattr.h>

#include "mxfs_fsop_codec.h"
#include "mxfs_lower.h"

#define MXFS_EXEC_WORKERS 8
#define MXFS_EXEC_COMMIT_PAUSE_MS 100 /* when a commit is due and the gate is shut */
#define MXFS_EXEC_PARTIAL_MAX (2 * MXFS_FSOP_INFLIGHT_MAX)
#define MXFS_EXEC_KNOWN_MAX (MXFS_FSOP_WINDOW_MAX + MXFS_FSOP_LOCK_WAITS_MAX)
/* Members remembered, the dead ones included. */
#define MXFS_EXEC_MEMBERS_MAX (4 * MXFS_NODE_COUNT_MAX)

enum request_state {
	REQUEST_QUEUED,
	REQUEST_RUNNING,
	REQUEST_LOCK_WAIT, /* in the lock table */
	REQUEST_DONE,	   /* only the reply is left */
};

struct request {
	refcount_t ref; /* known, worker, lock table */
	struct list_head queue; /* of the member, while QUEUED or RUNNING */
	struct member *member;
	u64 seq;
	u32 op;
	enum request_state state;
	bool readonly, lock;
	u64 ino, ino2;
	void *payload; /* until it is done */
	u32 len;
	struct mxfs_fsop_parsed parsed;
	struct mxfs_fsop_reply *kept; /* DONE */
	struct work_struct work;
};

struct partial {
	struct list_head list;
	u64 id;
	u32 total, got;
	u8 *payload;
};

struct member {
	struct list_head list;
	struct mxfs_exec *exec;
	u32 node, incarnation;
	u64 acked;
	bool gone, asked;
	struct xarray known; /* seq -> request */
	unsigned int known_count;
	struct list_head queue;
	unsigned int inside; /* requests between gate and reply */
	unsigned int pins;   /* somebody waits for that to become 0 */
};

/* Parts come before the incarnation is known: by node. */
struct sender {
	struct list_head list;
	u32 node;
	struct list_head partials;
	unsigned int count;
};

struct mxfs_exec {
	struct mxfs_sb_info *sbi;
	struct mutex mutex; /* everything below, and the requests' states */
	struct list_head members, senders;
	unsigned int member_count;
	struct workqueue_struct *wq;
	wait_queue_head_t idle;
	struct delayed_work commit; /* some time after something was answered early */
	bool unsettled; /* who has gone had asked for something; mxfs_exec_settle_gone has not seen to it yet */
	bool stopping;
};

/* ---------------------------------------------------------------- replies */

static void send_reply(struct mxfs_exec *exec, u32 node, u64 seq, const void *reply, u32 len)
{
	int err;

	if (node == exec->sbi->node) {
		/* Left over from when this node was a member. */
		mxfs_remote_receive(exec->sbi, seq, 0, len, reply, len);
		return;
	}
	if (!mxfs_sock_send(exec->sbi, node, MXFS_FRAME_REPLY, seq, reply, len))
		return;
	err = mxfs_nl_send_fsop(exec->sbi, MXFS_CMD_FSOP_REPLY, node, seq, reply, len, GFP_KERNEL);
	/* The member asks again after the next view; said, because until then somebody waits. */
	if (err)
		mxfs_warn(exec->sbi, "the reply %llu to node %08x could not be sent (%d)", seq, node, err);
}

static void init_reply(struct mxfs_sb_info *sbi, struct mxfs_fsop_reply *reply, u32 op, u64 seq, u32 wire_error)
{
	memset(reply, 0, sizeof(*reply));
	reply->holder = cpu_to_le32(sbi->node);
	reply->magic = cpu_to_le32(MXFS_FSOP_MAGIC);
	reply->version = cpu_to_le16(MXFS_FSOP_VERSION);
	reply->op = cpu_to_le16(op);
	reply->seq = cpu_to_le64(seq);
	reply->error = cpu_to_le32(wire_error);
}

static void send_error(struct mxfs_exec *exec, u32 node, u32 op, u64 seq, u32 wire_error)
{
	struct mxfs_fsop_reply reply;

	init_reply(exec->sbi, &reply, op, seq, wire_error);
	send_reply(exec, node, seq, &reply, sizeof(reply));
}

/* ---------------------------------------------------------------- requests */

static void request_put(struct request *req)
{
	if (!refcount_dec_and_test(&req->ref))
		return;
	kvfree(req->payload);
	kfree(req->kept);
	kfree(req);
}

/* Under exec->mutex: no longer known. */
static void request_forget(struct request *req)
{
	if (xa_erase(&req->member->known, req->seq)) {
		req->member->known_count--;
		request_put(req);
	}
}

static bool same_object(const struct request *a, const struct request *b)
{
	return (a->ino && (a->ino == b->ino || a->ino == b->ino2)) ||
	       (a->ino2 && (a->ino2 == b->ino || a->ino2 == b->ino2));
}

/* Whether `later` has to wait for `earlier`. */
static bool in_the_way(const struct request *earlier, const struct request *later)
{
	if (earlier->lock != later->lock || (earlier->readonly && later->readonly))
		return false;
	return same_object(earlier, later);
}

/* Under exec->mutex: starts what has nothing before it. The queue is short: MXFS_FSOP_INFLIGHT_MAX. */
static void dispatch(struct member *member)
{
	struct request *req, *earlier;
	bool blocked;

	list_for_each_entry(req, &member->queue, queue) {
		if (req->state != REQUEST_QUEUED)
			continue;
		blocked = false;
		list_for_each_entry(earlier, &member->queue, queue) {
			if (earlier == req)
				break;
			if (in_the_way(earlier, req)) {
				blocked = true;
				break;
			}
		}
		if (blocked)
			continue;
		req->state = REQUEST_RUNNING;
		refcount_inc(&req->ref);
		queue_work(member->exec->wq, &req->work);
	}
}

/* Under exec->mutex: the request is over, or goes on in the lock table. */
static void leave_queue(struct request *req)
{
	list_del_init(&req->queue);
	dispatch(req->member);
}

/* ---------------------------------------------------------------- identity */

static struct cred *cred_of(const struct mxfs_fsop_parsed *p)
{
	struct cred *cred = prepare_kernel_cred(NULL);
	struct group_info *groups;
	kernel_cap_t caps = CAP_EMPTY_SET;
	__le32 gid;
	u32 i;

	if (!cred)
		return ERR_PTR(-ENOMEM);
	if (p->flags & MXFS_REQ_KERNEL)
		return cred;
	cred->fsuid = make_kuid(&init_user_ns, p->fsuid);
	cred->fsgid = make_kgid(&init_user_ns, p->fsgid);
	groups = groups_alloc(p->ngroups);
	if (!groups || !uid_valid(cred->fsuid) || !gid_valid(cred->fsgid))
		goto bad;
	for (i = 0; i < p->ngroups; i++) {
		memcpy(&gid, p->groups + i * sizeof(gid), sizeof(gid));
		groups->gid[i] = make_kgid(&init_user_ns, le32_to_cpu(gid));
		if (!gid_valid(groups->gid[i]))
			goto bad;
	}
	groups_sort(groups);
	set_groups(cred, groups);
	put_group_info(groups);
	for (i = 0; i <= CAP_LAST_CAP; i++)
		if (p->caps & BIT_ULL(i))
			cap_raise(caps, i);
	cred->cap_effective = caps;
	return cred;
bad:
	if (groups)
		put_group_info(groups);
	put_cred(cred);
	return ERR_PTR(groups ? -EPERM : -ENOMEM);
}

/* Workers share init's fs_struct until one of them needs a umask. */
static int own_fs(void)
{
	return current->fs->users == 1 ? 0 : unshare_fs_struct();
}

/* ---------------------------------------------------------------- execution */

struct outcome {
	struct mxfs_fsop_reply *reply; /* with room for the data behind it */
	u32 data_max, data_len;
	struct mxfs_attr attr, attr2;
};

static char *copy_name(const char *name, u32 len)
{
	char *copy = kmalloc(len + 1, GFP_KERNEL);

	if (!copy)
		return NULL;
	memcpy(copy, name, len);
	copy[len] = 0;
	return copy;
}

/* How many bytes of data the answer may have. */
static u32 answer_room(const struct mxfs_fsop_parsed *p)
{
	u64 length = le64_to_cpu(p->args.length);

	switch (p->op) {
	case MXFS_FSOP_READ:
	case MXFS_FSOP_READDIR:
	case MXFS_FSOP_READLINK:
	case MXFS_FSOP_GETXATTR:
	case MXFS_FSOP_LISTXATTR:
		return min_t(u64, length, MXFS_FSOP_DATA_MAX);
	case MXFS_FSOP_STATFS:
		return sizeof(struct mxfs_wire_statfs);
	case MXFS_FSOP_GETLK:
		return sizeof(struct mxfs_wire_lock);
	case MXFS_FSOP_MAP:
		return MXFS_MAP_EXTENTS_MAX * sizeof(struct mxfs_wire_extent);
	case MXFS_FSOP_NAMES:
		return min_t(u64, length, MXFS_NAMES_MAX) * MXFS_NAMES_BYTES;
	case MXFS_FSOP_GETATTRS:
		return min_t(u32, p->data_len / sizeof(struct mxfs_handle), MXFS_NAMES_MAX) * sizeof(struct mxfs_wire_brief);
	default:
		return 0;
	}
}

static ssize_t execute_read(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 pos, struct outcome *out)
{
	struct kvec vec = { .iov_base = out->reply + 1, .iov_len = out->data_max };
	struct iov_iter iter;

	iov_iter_kvec(&iter, ITER_DEST, &vec, 1, out->data_max);
	return mxfs_local_backend.read(sbi, fh, pos, &iter);
}

static ssize_t execute_write(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_fsop_parsed *p,
			     struct outcome *out)
{
	struct kvec vec = { .iov_base = (void *)p->data, .iov_len = p->data_len };
	bool kernel = p->flags & MXFS_REQ_KERNEL;
	struct mxfs_setattr set;
	struct iov_iter iter;
	int err;

	err = mxfs_fsop_get_setattr(&set, &p->args);
	if (err || (set.valid && (set.valid != (ATTR_MTIME | ATTR_MTIME_SET) || !kernel)))
		return -EINVAL;
	iov_iter_kvec(&iter, ITER_SOURCE, &vec, 1, p->data_len);
	return mxfs_local_backend.write(sbi, fh, le64_to_cpu(p->args.offset), &iter, kernel, set.valid ? &set.mtime : NULL,
					&out->attr);
}

static int execute_readdir(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, u64 cookie, struct outcome *out)
{
	struct mxfs_dirent_sink sink = { .buf = out->reply + 1, .size = out->data_max };
	int err = mxfs_local_backend.readdir(sbi, fh, cookie, &sink);

	if (err)
		return err;
	out->data_len = sink.used;
	out->reply->value = cpu_to_le64(sink.next);
	out->reply->flags = cpu_to_le32(sink.eof ? MXFS_REPLY_EOF : 0);
	return 0;
}

static int execute_names(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_fsop_parsed *p, struct outcome *out)
{
	struct mxfs_dirent_sink sink = { .buf = out->reply + 1, .size = out->data_max };
	int err;

	if (!out->data_max || out->data_max != le64_to_cpu(p->args.length) * MXFS_NAMES_BYTES)
		return -EINVAL;
	err = mxfs_local_backend.names(sbi, fh, le64_to_cpu(p->args.offset), le64_to_cpu(p->args.length), &sink);
	if (err)
		return err;
	out->data_len = sink.used;
	out->reply->value = cpu_to_le64(sink.next);
	out->reply->flags = cpu_to_le32(sink.eof ? MXFS_REPLY_EOF : 0);
	return 0;
}

static int execute_getattrs(struct mxfs_sb_info *sbi, const struct mxfs_fsop_parsed *p, struct outcome *out)
{
	u32 count = p->data_len / sizeof(struct mxfs_handle), block = 0;
	struct mxfs_handle *handles;
	int err;

	if (!count || count > MXFS_NAMES_MAX || p->data_len % sizeof(*handles))
		return -EINVAL;
	/* Groups before the data may have left it unaligned. */
	handles = kvmalloc(p->data_len, GFP_KERNEL);
	if (!handles)
		return -ENOMEM;
	memcpy(handles, p->data, p->data_len);
	err = mxfs_local_backend.getattrs(sbi, handles, count, (struct mxfs_wire_brief *)(out->reply + 1), &block);
	kvfree(handles);
	if (err)
		return err;
	out->data_len = count * sizeof(struct mxfs_wire_brief);
	out->reply->value = cpu_to_le64(block);
	return 0;
}

static int execute_xattr(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_fsop_parsed *p,
			 struct outcome *out)
{
	const struct mxfs_backend *be = &mxfs_local_backend;
	void *buf = out->data_max ? (void *)(out->reply + 1) : NULL;
	char *name = copy_name(p->name, p->name_len);
	ssize_t len;

	if (!name)
		return -ENOMEM;
	switch (p->op) {
	case MXFS_FSOP_GETXATTR:
		len = be->getxattr(sbi, fh, name, buf, out->data_max);
		break;
	case MXFS_FSOP_LISTXATTR:
		len = be->listxattr(sbi, fh, buf, out->data_max);
		break;
	case MXFS_FSOP_SETXATTR:
		len = be->setxattr(sbi, fh, name, p->data, p->data_len, le32_to_cpu(p->args.flags), &out->attr);
		break;
	default:
		len = be->removexattr(sbi, fh, name, &out->attr);
		break;
	}
	kfree(name);
	if (len < 0)
		return len;
	out->reply->value = cpu_to_le64(len);
	out->data_len = out->data_max ? len : 0;
	return 0;
}

static int execute_symlink(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_fsop_parsed *p,
			   struct outcome *out)
{
	char *target = copy_name(p->name2, p->name2_len);
	int err;

	if (!target)
		return -ENOMEM;
	err = mxfs_local_backend.symlink(sbi, fh, p->name, p->name_len, target, &out->attr, &out->attr2);
	kfree(target);
	return err;
}

static int execute_statfs(struct mxfs_sb_info *sbi, struct outcome *out)
{
	struct kstatfs st;
	int err = mxfs_local_backend.statfs(sbi, &st);

	if (err)
		return err;
	mxfs_fsop_put_statfs((struct mxfs_wire_statfs *)(out->reply + 1), &st);
	out->data_len = sizeof(struct mxfs_wire_statfs);
	return 0;
}

static int execute_getlk(struct mxfs_lower *lower, const struct mxfs_fh *fh, const struct mxfs_fsop_parsed *p,
			 struct outcome *out)
{
	struct mxfs_wire_lock *wire = (struct mxfs_wire_lock *)(out->reply + 1);
	struct mxfs_lk lk;
	int err = mxfs_fsop_get_lk(&lk, &p->args);

	if (err)
		return err;
	lk.node = p->node;
	err = mxfs_locktab_get(lower, fh, &lk);
	if (err)
		return err;
	memset(wire, 0, sizeof(*wire));
	wire->lock_type = cpu_to_le32(lk.type);
	wire->start = cpu_to_le64(lk.start);
	wire->end = cpu_to_le64(lk.end);
	wire->pid = cpu_to_le32(lk.pid);
	wire->node = cpu_to_le32(lk.node);
	out->data_len = sizeof(*wire);
	return 0;
}

static int execute_map(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_fsop_parsed *p,
		       struct outcome *out)
{
	u32 count = MXFS_MAP_EXTENTS_MAX, block;
	int err;

	err = mxfs_local_backend.map(sbi, fh, le64_to_cpu(p->args.offset), le64_to_cpu(p->args.length),
				     le64_to_cpu(p->args.arg_seq), le32_to_cpu(p->args.flags),
				     (struct mxfs_wire_extent *)(out->reply + 1), &count, &block);
	if (err)
		return err;
	out->data_len = count * sizeof(struct mxfs_wire_extent);
	out->reply->value = cpu_to_le64(block);
	return 0;
}

static int execute_commit(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_fsop_parsed *p,
			  struct outcome *out)
{
	struct mxfs_setattr set;
	struct mxfs_wire_range *ranges;
	int err;

	if (p->data_len % sizeof(*ranges))
		return -EINVAL;
	err = mxfs_fsop_get_setattr(&set, &p->args);
	if (err)
		return err;
	/* Names before the data may have left it unaligned. */
	ranges = kvmalloc(max_t(size_t, p->data_len, sizeof(*ranges)), GFP_KERNEL);
	if (!ranges)
		return -ENOMEM;
	memcpy(ranges, p->data, p->data_len);
	err = mxfs_local_backend.commit(sbi, fh, ranges, p->data_len / sizeof(*ranges), set.size, &set.mtime, &out->attr);
	kvfree(ranges);
	return err;
}

static void lock_wait_done(void *arg, int error);

/* 0, -errno, or -EINPROGRESS: the lock table answers, and has a reference on the request. */
static int execute_setlk(struct mxfs_lower *lower, const struct mxfs_fh *fh, struct request *req)
{
	struct mxfs_locktab_request ask = {
		.fh = *fh,
		.incarnation = req->parsed.incarnation,
		.seq = req->seq,
		.done = lock_wait_done,
		.arg = req,
	};
	int err = mxfs_fsop_get_lk(&ask.lk, &req->parsed.args);

	if (err)
		return err;
	ask.lk.node = req->parsed.node;
	refcount_inc(&req->ref);
	err = mxfs_locktab_set(lower, &ask);
	if (err != -EINPROGRESS)
		request_put(req);
	return err;
}

static int execute(struct mxfs_sb_info *sbi, struct mxfs_lower *lower, struct request *req, struct outcome *out)
{
	const struct mxfs_backend *be = &mxfs_local_backend;
	const struct mxfs_fsop_parsed *p = &req->parsed;
	u32 flags = le32_to_cpu(p->args.flags);
	struct mxfs_setattr set;
	struct mxfs_fh fh, fh2;
	ssize_t done;
	int err;

	mxfs_fsop_get_handle(&fh, &p->args.h);
	mxfs_fsop_get_handle(&fh2, &p->args.h2);
	switch (p->op) {
	case MXFS_FSOP_GETROOT:
		return be->getroot(sbi, &out->attr);
	case MXFS_FSOP_LOOKUP:
		return be->lookup(sbi, &fh, p->name, p->name_len, &out->attr);
	case MXFS_FSOP_GETATTR:
		return be->getattr(sbi, &fh, &out->attr);
	case MXFS_FSOP_SETATTR:
		err = mxfs_fsop_get_setattr(&set, &p->args);
		return err ? err : be->setattr(sbi, &fh, &set, &out->attr);
	case MXFS_FSOP_MAKE:
		return be->make(sbi, &fh, p->name, p->name_len, le32_to_cpu(p->args.mode),
				MKDEV(le32_to_cpu(p->args.rdev_major), le32_to_cpu(p->args.rdev_minor)),
				flags & MXFS_MAKE_EXCL, &out->attr, &out->attr2);
	case MXFS_FSOP_SYMLINK:
		return execute_symlink(sbi, &fh, p, out);
	case MXFS_FSOP_LINK:
		return be->link(sbi, &fh2, &fh, p->name, p->name_len, &out->attr, &out->attr2);
	case MXFS_FSOP_UNLINK:
		return be->unlink(sbi, &fh, p->name, p->name_len, flags, &out->attr, &out->attr2);
	case MXFS_FSOP_RENAME:
		if (p->name2_len > MXFS_NAME_LEN_MAX)
			return -ENAMETOOLONG;
		return be->rename(sbi, &fh, p->name, p->name_len, &fh2, p->name2, p->name2_len, flags, &out->attr,
				  &out->attr2);
	case MXFS_FSOP_READLINK:
		done = be->readlink(sbi, &fh, (char *)(out->reply + 1), out->data_max);
		out->data_len = max_t(ssize_t, done, 0);
		return min_t(ssize_t, done, 0);
	case MXFS_FSOP_READDIR:
		return execute_readdir(sbi, &fh, le64_to_cpu(p->args.offset), out);
	case MXFS_FSOP_NAMES:
		return execute_names(sbi, &fh, p, out);
	case MXFS_FSOP_GETATTRS:
		return execute_getattrs(sbi, p, out);
	case MXFS_FSOP_READ:
		done = execute_read(sbi, &fh, le64_to_cpu(p->args.offset), out);
		out->data_len = max_t(ssize_t, done, 0);
		return min_t(ssize_t, done, 0);
	case MXFS_FSOP_WRITE:
		done = execute_write(sbi, &fh, p, out);
		out->reply->value = cpu_to_le64(max_t(ssize_t, done, 0));
		return min_t(ssize_t, done, 0);
	case MXFS_FSOP_FSYNC:
		/* The names that lead there as well; then the disk's cache, which a log with nothing to write does not flush. */
		err = mxfs_lower_commit(sbi);
		return err ? err : be->fsync(sbi, &fh, flags & MXFS_FSYNC_DATA);
	case MXFS_FSOP_FORCE:
		return mxfs_lower_commit(sbi);
	case MXFS_FSOP_SYNCFS:
		return be->syncfs(sbi);
	case MXFS_FSOP_STATFS:
		return execute_statfs(sbi, out);
	case MXFS_FSOP_GETXATTR:
	case MXFS_FSOP_SETXATTR:
	case MXFS_FSOP_LISTXATTR:
	case MXFS_FSOP_REMOVEXATTR:
		return execute_xattr(sbi, &fh, p, out);
	case MXFS_FSOP_SETLK:
		return execute_setlk(lower, &fh, req);
	case MXFS_FSOP_GETLK:
		return execute_getlk(lower, &fh, p, out);
	case MXFS_FSOP_CANCELLK:
		/* Not waiting any more: its answer is on the way, which is as good. */
		mxfs_locktab_cancel(lower, p->node, p->incarnation, le64_to_cpu(p->args.arg_seq));
		return 0;
	case MXFS_FSOP_REAP:
		return be->reap(sbi, &fh);
	case MXFS_FSOP_FALLOCATE:
		return be->fallocate(sbi, &fh, flags, le64_to_cpu(p->args.offset), le64_to_cpu(p->args.length),
				     &out->attr);
	case MXFS_FSOP_MAP:
		return execute_map(sbi, &fh, p, out);
	case MXFS_FSOP_COMMIT:
		return execute_commit(sbi, &fh, p, out);
	case MXFS_FSOP_COPY:
		done = be->copy(sbi, &fh2, le64_to_cpu(p->args.size), &fh, le64_to_cpu(p->args.offset),
				le64_to_cpu(p->args.length), flags, &out->attr);
		out->reply->value = cpu_to_le64(max_t(ssize_t, done, 0));
		return min_t(ssize_t, done, 0);
	case MXFS_FSOP_SEEK:
		done = be->seek(sbi, &fh, le64_to_cpu(p->args.offset), flags);
		out->reply->value = cpu_to_le64(max_t(ssize_t, done, 0));
		return min_t(ssize_t, done, 0);
	}
	return -EOPNOTSUPP;
}

/* ---------------------------------------------------------------- replay */

static bool cannot_be_replayed(const struct mxfs_fsop_parsed *p)
{
	u32 flags = le32_to_cpu(p->args.flags);

	return (p->op == MXFS_FSOP_RENAME && (flags & RENAME_EXCHANGE)) ||
	       (p->op == MXFS_FSOP_FALLOCATE && (flags & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE)));
}

/* What stands under the name is new, and as the request would have made it. */
static bool looks_made(const struct mxfs_fsop_parsed *p, const struct mxfs_attr *attr)
{
	u32 type = le32_to_cpu(p->args.mode) & S_IFMT;

	if ((attr->mode & S_IFMT) != type || (!(p->flags & MXFS_REQ_KERNEL) && attr->uid != p->fsuid))
		return false;
	return attr->nlink == (type == S_IFDIR ? 2 : 1) && (type != S_IFREG || !attr->size);
}

static bool is_target(struct mxfs_sb_info *sbi, const struct mxfs_fh *fh, const struct mxfs_fsop_parsed *p)
{
	char *buf = kmalloc(MXFS_PATH_LEN_MAX, GFP_KERNEL);
	bool same;
	int len;

	if (!buf)
		return false;
	len = mxfs_local_backend.readlink(sbi, fh, buf, MXFS_PATH_LEN_MAX);
	same = len == p->name2_len && !memcmp(buf, p->name2, len);
	kfree(buf);
	return same;
}

/*
 * The directory is still what its member knew before it asked: the earlier holder has done nothing, and the error stands. Without
 * this an empty file, or a directory, of the same owner under that name would be taken for the one that was to be made.
 */
static bool is_unchanged(struct mxfs_sb_info *sbi, const struct mxfs_fsop_parsed *p, const struct mxfs_fh *dir)
{
	u64 seen = le64_to_cpu(p->args.size);
	struct mxfs_attr now;

	switch (p->op) {
	case MXFS_FSOP_MAKE:
	case MXFS_FSOP_SYMLINK:
	case MXFS_FSOP_LINK:
	case MXFS_FSOP_UNLINK:
	case MXFS_FSOP_RENAME:
		return seen && !mxfs_local_backend.getattr(sbi, dir, &now) && now.change <= seen;
	}
	return false;
}

/* A replayed operation failed with `err`: 0 if it had been done by the earlier holder, else `err`. */
static int done_before(struct mxfs_sb_info *sbi, const struct mxfs_fsop_parsed *p, struct outcome *out, int err)
{
	const struct mxfs_backend *be = &mxfs_local_backend;
	struct mxfs_fh dir, fh2;
	struct mxfs_attr there;
	bool done = false;

	mxfs_fsop_get_handle(&dir, &p->args.h);
	mxfs_fsop_get_handle(&fh2, &p->args.h2);
	if (is_unchanged(sbi, p, &dir))
		return err;
	switch (p->op) {
	case MXFS_FSOP_MAKE:
	case MXFS_FSOP_SYMLINK:
	case MXFS_FSOP_LINK:
		if (err != -EEXIST || be->lookup(sbi, &dir, p->name, p->name_len, &there))
			return err;
		if (p->op == MXFS_FSOP_MAKE)
			done = looks_made(p, &there);
		else if (p->op == MXFS_FSOP_SYMLINK)
			done = S_ISLNK(there.mode) && is_target(sbi, &there.fh, p);
		else
			done = there.fh.ino == fh2.ino && there.fh.gen == fh2.gen;
		if (done)
			out->attr = there;
		break;
	case MXFS_FSOP_UNLINK:
		done = err == -ENOENT;
		break;
	case MXFS_FSOP_RENAME:
		done = err == -ENOENT && !be->lookup(sbi, &fh2, p->name2, p->name2_len, &there);
		break;
	case MXFS_FSOP_SETXATTR:
		return err == -EEXIST ? 0 : err;
	case MXFS_FSOP_REMOVEXATTR:
		return err == -ENODATA ? 0 : err;
	default:
		return err;
	}
	if (!done)
		return err;
	if (p->op == MXFS_FSOP_RENAME) {
		if (be->getattr(sbi, &dir, &out->attr))
			out->attr.fh.ino = 0;
		if (be->getattr(sbi, &fh2, &out->attr2))
			out->attr2.fh.ino = 0;
	} else if (be->getattr(sbi, &dir, &out->attr2)) {
		out->attr2.fh.ino = 0;
	}
	return 0;
}

/*
 * One transaction that changes metadata alone, and the answer tells the version by which a replay can see if it was lost. An
 * inherited or changed ACL is a transaction of its own.
 */
static bool may_answer_early(const struct request *req, const struct outcome *out)
{
	const struct mxfs_fsop_parsed *p = &req->parsed;
	u32 flags = le32_to_cpu(p->args.flags), valid = le32_to_cpu(p->args.valid), mode = le32_to_cpu(p->args.mode);

	if ((p->flags & MXFS_REQ_DURABLE) || !READ_ONCE(mxfs_commit_ms))
		return false;
	switch (p->op) {
	case MXFS_FSOP_MAKE:
		return (flags & MXFS_MAKE_EXCL) && (S_ISREG(mode) || S_ISDIR(mode)) && out->attr.fh.ino && out->attr2.change &&
		       !(out->attr.flags & MXFS_ATTR_HAS_ACL);
	case MXFS_FSOP_SYMLINK:
		return out->attr.fh.ino && out->attr2.change;
	case MXFS_FSOP_LINK:
		return out->attr2.change;
	case MXFS_FSOP_UNLINK:
		return !(flags & MXFS_UNLINK_PARK) && out->attr2.change;
	case MXFS_FSOP_RENAME:
		return !(flags & ~RENAME_NOREPLACE) && out->attr.change && out->attr2.change;
	case MXFS_FSOP_SETATTR:
		return !(valid & (MXFS_SET_SIZE | MXFS_SET_KILL_PRIV)) && out->attr.change &&
		       !(out->attr.flags & MXFS_ATTR_HAS_ACL);
	}
	return false;
}

/* What was done is durable before it is answered, or the member keeps it until then. */
static int make_durable(struct mxfs_sb_info *sbi, const struct request *req, const struct outcome *out)
{
	struct mxfs_fh fh;
	int err = 0;

	if (may_answer_early(req, out)) {
		out->reply->flags |= cpu_to_le32(MXFS_REPLY_EARLY);
		queue_delayed_work(system_unbound_wq, &sbi->exec->commit, msecs_to_jiffies(READ_ONCE(mxfs_commit_ms)));
		mxfs_count(sbi, MXFS_COUNT_FSOP_EARLY);
		return 0;
	}
	if (req->op == MXFS_FSOP_MAP && (le32_to_cpu(req->parsed.args.flags) & MXFS_MAP_WRITE))
		return mxfs_lower_commit(sbi); /* on every answer, whoever allocated: else a crash gives the blocks to another file */
	if (req->readonly || req->lock || req->op == MXFS_FSOP_FSYNC || req->op == MXFS_FSOP_SYNCFS)
		return 0;
	mxfs_fsop_get_handle(&fh, &req->parsed.args.h);
	/*
	 * Its data may be in the lower page cache only, or in the disk's, which a log that has nothing to write does not flush. The file
	 * first: then one force of the log, behind the data, mostly does for all.
	 */
	if (req->op == MXFS_FSOP_COPY || (req->op == MXFS_FSOP_WRITE && out->reply->value))
		err = mxfs_local_backend.fsync(sbi, &fh, false);
	return err ? err : mxfs_lower_commit(sbi);
}

/*
 * The member may use the disk by maps: nothing of the file stays in the lower page cache, where its writes would not be seen.
 * Whatever the answer is: what failed may have read pages in before.
 */
static int drop_lower_pages(struct mxfs_sb_info *sbi, const struct request *req)
{
	const struct mxfs_fsop_args *args = &req->parsed.args;
	struct mxfs_fh fh;
	int err;

	switch (req->op) {
	case MXFS_FSOP_SETATTR:
		if (!(le32_to_cpu(args->valid) & MXFS_SET_SIZE))
			return 0;
		break;
	case MXFS_FSOP_READ:
	case MXFS_FSOP_WRITE:
	case MXFS_FSOP_FALLOCATE:
	case MXFS_FSOP_COPY:
		break;
	default:
		return 0;
	}
	mxfs_fsop_get_handle(&fh, &args->h);
	err = mxfs_lower_pages_drop(sbi, &fh);
	if (!err && req->op == MXFS_FSOP_COPY) {
		mxfs_fsop_get_handle(&fh, &args->h2);
		err = mxfs_lower_pages_drop(sbi, &fh);
	}
	if (err)
		mxfs_err(sbi, "inode %llu: dropping its pages for node %08x failed with %d", fh.ino, req->parsed.node, err);
	return err;
}

/* Puts the caller's identity on, executes, takes it off. */
static int execute_as(struct mxfs_sb_info *sbi, struct mxfs_lower *lower, struct request *req, struct outcome *out)
{
	const struct cred *old_cred;
	struct cred *cred;
	int err, old_umask;

	err = own_fs();
	if (err)
		return err;
	cred = cred_of(&req->parsed);
	if (IS_ERR(cred))
		return PTR_ERR(cred);
	old_umask = current->fs->umask;
	current->fs->umask = req->parsed.umask;
	old_cred = override_creds(cred);
	if ((req->parsed.flags & MXFS_REQ_REPLAY) && cannot_be_replayed(&req->parsed)) {
		err = -EIO;
	} else {
		err = execute(sbi, lower, req, out);
		if (err < 0 && (req->parsed.flags & MXFS_REQ_REPLAY))
			err = done_before(sbi, &req->parsed, out, err);
	}
	revert_creds(old_cred);
	current->fs->umask = old_umask;
	put_cred(cred);
	return err;
}

/* ---------------------------------------------------------------- workers */

/* Under exec->mutex: answered with nothing to keep, or dropped. */
static void finish_request(struct request *req)
{
	req->state = REQUEST_DONE;
	kvfree(req->payload);
	req->payload = NULL;
	if (!req->kept || req->member->gone)
		request_forget(req);
}

/* A waiting SETLK has ended; in the context of whoever let the lock go. */
static void lock_wait_done(void *arg, int error)
{
	struct request *req = arg;
	struct mxfs_exec *exec = req->member->exec;
	bool gone;

	mutex_lock(&exec->mutex);
	gone = req->member->gone;
	if (!list_empty(&req->queue))
		leave_queue(req);
	finish_request(req);
	mutex_unlock(&exec->mutex);
	if (!gone)
		send_error(exec, req->parsed.node, req->op, req->seq,
			   error == MXFS_LOCKTAB_RETRY ? MXFS_FSOP_E_RETRY : mxfs_fsop_put_error(error));
	request_put(req);
}

/* The request's reply, ready to be sent; NULL: none is due, by this worker. */
static struct mxfs_fsop_reply *do_request(struct mxfs_sb_info *sbi, struct request *req, struct outcome *out)
{
	struct mxfs_lower *lower = READ_ONCE(sbi->lower);
	int err, dropped;

	out->data_max = answer_room(&req->parsed);
	out->reply = kvmalloc(sizeof(*out->reply) + out->data_max, GFP_KERNEL | __GFP_NOFAIL);
	if (!lower) {
		/* Not the holder any more, or not yet. */
		init_reply(sbi, out->reply, req->op, req->seq, MXFS_FSOP_E_RETRY);
		return out->reply;
	}
	init_reply(sbi, out->reply, req->op, req->seq, 0);
	/* A lock on a file that could still vanish could not be had again. */
	err = req->lock && (req->parsed.flags & MXFS_REQ_DURABLE) ? mxfs_lower_commit(sbi) : 0;
	if (!err)
		err = execute_as(sbi, lower, req, out);
	out->reply->stamp = cpu_to_le64(atomic64_read(&lower->meta_changes));
	mxfs_count(sbi, MXFS_COUNT_FSOP_EXECUTED);
	if (err == -EINPROGRESS && req->op == MXFS_FSOP_SETLK) {
		kvfree(out->reply);
		return NULL;
	}
	if (!err)
		err = make_durable(sbi, req, out);
	dropped = drop_lower_pages(sbi, req);
	if (!err)
		err = dropped;
	mxfs_lower_failed(lower, err);
	out->reply->error = cpu_to_le32(mxfs_fsop_put_error(err));
	if (err) {
		out->data_len = 0;
		out->reply->flags = 0;
	}
	out->reply->session = cpu_to_le64(lower->session);
	out->reply->committed = cpu_to_le64(READ_ONCE(lower->meta_synced));
	out->reply->data_len = cpu_to_le32(out->data_len);
	mxfs_fsop_put_attr(&out->reply->attr, &out->attr);
	mxfs_fsop_put_attr(&out->reply->attr2, &out->attr2);
	return out->reply;
}

/*
 * This node is the holder now, and what the earlier one had answered it early is done here. Not inside the gate: it is shut until
 * all of it is done. Under role_mutex, with the XFS mounted.
 */
int mxfs_exec_replay_own(struct mxfs_sb_info *sbi, const void *payload, u32 len, struct mxfs_fsop_reply *reply)
{
	struct request req = {};
	struct outcome out = {};
	const char *why;

	memset(reply, 0, sizeof(*reply));
	if (mxfs_fsop_parse_request(payload, len, &req.parsed, &why))
		return -EIO;
	req.seq = req.parsed.seq;
	req.op = req.parsed.op;
	*reply = *do_request(sbi, &req, &out); /* never a lock, so always an answer */
	kvfree(out.reply);
	return mxfs_fsop_get_error(le32_to_cpu(reply->error));
}

/* As mxfs_gate_enter_wait, but ends with -EIO as well when the mount goes. */
static int enter_gate(struct mxfs_exec *exec)
{
	struct mxfs_sb_info *sbi = exec->sbi;
	int err;

	wait_event_idle(sbi->gate.wait, (err = mxfs_gate_try_enter(sbi)) != -EAGAIN || READ_ONCE(exec->stopping));
	return err ? -EIO : 0;
}

/* Whoever was answered early may have died since: then only this node has it. */
static void commit_work(struct work_struct *work)
{
	struct mxfs_exec *exec = container_of(to_delayed_work(work), struct mxfs_exec, commit);
	struct mxfs_sb_info *sbi = exec->sbi;
	int err = mxfs_gate_try_enter(sbi);

	if (err == -EAGAIN && !READ_ONCE(exec->stopping))
		queue_delayed_work(system_unbound_wq, &exec->commit, msecs_to_jiffies(MXFS_EXEC_COMMIT_PAUSE_MS));
	if (err)
		return;
	if (sbi->lower)
		mxfs_lower_commit(sbi); /* a failure that matters fences, by itself */
	mxfs_gate_leave(sbi);
}

static void request_work(struct work_struct *work)
{
	struct request *req = container_of(work, struct request, work);
	struct member *member = req->member;
	struct mxfs_exec *exec = member->exec;
	struct mxfs_sb_info *sbi = exec->sbi;
	struct mxfs_fsop_reply *reply = NULL;
	struct outcome out = {};
	bool gone;

	if (enter_gate(exec)) {
		/* Fenced or unmounted: this node has nothing to say about the volume any more. */
		mutex_lock(&exec->mutex);
		leave_queue(req);
		finish_request(req);
		mutex_unlock(&exec->mutex);
		request_put(req);
		return;
	}
	mutex_lock(&exec->mutex);
	gone = member->gone;
	if (!gone)
		member->inside++;
	if (!gone && req->op == MXFS_FSOP_SETLK)
		req->state = REQUEST_LOCK_WAIT; /* before the lock table can answer */
	mutex_unlock(&exec->mutex);

	if (!gone)
		reply = do_request(sbi, req, &out);

	mutex_lock(&exec->mutex);
	if (reply && !req->readonly && !req->lock && le32_to_cpu(reply->error) != MXFS_FSOP_E_RETRY)
		req->kept = kmemdup(reply, sizeof(*reply), GFP_KERNEL | __GFP_NOFAIL);
	if (!list_empty(&req->queue))
		leave_queue(req);
	if (reply || gone)
		finish_request(req);
	if (!gone && !--member->inside)
		wake_up_all(&exec->idle);
	/* Fenced meanwhile: what failed by that is for the next holder to answer. */
	gone = member->gone || mxfs_gate_fenced(&sbi->gate);
	mutex_unlock(&exec->mutex);
	mxfs_gate_leave(sbi);

	if (reply && !gone)
		send_reply(exec, member->node, req->seq, reply, sizeof(*reply) + out.data_len);
	kvfree(reply);
	request_put(req);
}

/* ---------------------------------------------------------------- arrival */

/* Under exec->mutex. What stands in the lock table or has a worker goes when it is over. */
static void drop_member(struct member *member)
{
	struct request *req, *next;
	unsigned long seq;

	member->gone = true;
	if (member->asked)
		member->exec->unsettled = true;
	list_for_each_entry_safe(req, next, &member->queue, queue) {
		if (req->state == REQUEST_QUEUED) {
			list_del_init(&req->queue);
			request_forget(req);
		}
	}
	xa_for_each(&member->known, seq, req) {
		if (req->state == REQUEST_DONE)
			request_forget(req);
	}
}

/* Under exec->mutex. */
static struct member *find_member(struct mxfs_exec *exec, u32 node, u32 incarnation)
{
	struct member *member;

	list_for_each_entry(member, &exec->members, list) {
		if (member->node == node && member->incarnation == incarnation)
			return member;
	}
	return NULL;
}

static void free_member(struct mxfs_exec *exec, struct member *member)
{
	list_del(&member->list);
	exec->member_count--;
	xa_destroy(&member->known);
	kfree(member);
}

/* Under exec->mutex. NULL: of an incarnation that has a successor, or too many. */
static struct member *get_member(struct mxfs_exec *exec, u32 node, u32 incarnation)
{
	struct member *member = find_member(exec, node, incarnation), *next;

	if (member)
		return member;
	list_for_each_entry_safe(member, next, &exec->members, list) {
		if (member->node == node && member->incarnation > incarnation)
			return NULL;
		/* The oldest dead ones make room. */
		if (exec->member_count >= MXFS_EXEC_MEMBERS_MAX && member->gone && xa_empty(&member->known) &&
		    !member->inside && !member->pins)
			free_member(exec, member);
	}
	if (exec->member_count >= MXFS_EXEC_MEMBERS_MAX)
		return NULL;
	member = kzalloc(sizeof(*member), GFP_KERNEL);
	if (!member)
		return NULL;
	member->exec = exec;
	member->node = node;
	member->incarnation = incarnation;
	xa_init(&member->known);
	INIT_LIST_HEAD(&member->queue);
	list_add_tail(&member->list, &exec->members);
	exec->member_count++;
	return member;
}

/* Under exec->mutex. */
static void acknowledge(struct member *member, u64 acked)
{
	struct request *req;
	unsigned long seq;

	if (acked <= member->acked)
		return;
	member->acked = acked;
	xa_for_each_range(&member->known, seq, req, 0, acked - 1) {
		if (req->state == REQUEST_DONE)
			request_forget(req);
	}
}

/*
 * What a member's process was granted by an earlier holder. In the context of arrival and not inside the gate: it is shut, and
 * opens only when all members have reclaimed.
 */
static void reclaim_lock(struct mxfs_exec *exec, struct request *req)
{
	struct mxfs_sb_info *sbi = exec->sbi;
	struct mxfs_locktab_request ask = { .incarnation = req->parsed.incarnation };
	struct member *member;
	u32 answer;
	int err;

	mutex_lock(&exec->mutex);
	member = get_member(exec, req->parsed.node, req->parsed.incarnation);
	if (!member || member->gone) {
		mutex_unlock(&exec->mutex);
		return;
	}
	acknowledge(member, req->parsed.acked);
	mutex_unlock(&exec->mutex);

	err = mxfs_fsop_get_lk(&ask.lk, &req->parsed.args);
	mxfs_fsop_get_handle(&ask.fh, &req->parsed.args.h);
	ask.lk.node = req->parsed.node;
	mutex_lock(&sbi->role_mutex);
	if (!err && sbi->lower)
		err = mxfs_locktab_set(sbi->lower, &ask);
	answer = sbi->lower ? mxfs_fsop_put_error(err) : MXFS_FSOP_E_RETRY;
	mutex_unlock(&sbi->role_mutex);
	send_error(exec, req->parsed.node, req->op, req->seq, answer);
}

/* Takes the payload over. */
static void submit(struct mxfs_exec *exec, u32 node, u64 id, void *payload, u32 len)
{
	struct mxfs_sb_info *sbi = exec->sbi;
	struct request *req, *known;
	struct mxfs_fsop_reply kept;
	struct member *member;
	const char *why;
	u32 answer = 0;

	req = kzalloc(sizeof(*req), GFP_KERNEL | __GFP_NOFAIL);
	refcount_set(&req->ref, 1);
	INIT_LIST_HEAD(&req->queue);
	INIT_WORK(&req->work, request_work);
	req->payload = payload;
	req->len = len;
	if (mxfs_fsop_parse_request(payload, len, &req->parsed, &why)) {
		pr_warn_ratelimited("mxfs: %s: request %llu of node %08x is not well formed (%s): refused\n",
				    sbi->opt.device, id, node, why);
		/* Whoever sent it waits for (op, seq), if it got that far. */
		if (req->parsed.op && req->parsed.seq == id)
			send_error(exec, node, req->parsed.op, id, EPROTO);
		goto out;
	}
	if (req->parsed.node != node || req->parsed.seq != id) {
		pr_warn_ratelimited("mxfs: %s: request %llu of node %08x says it is %llu of node %08x: dropped\n",
				    sbi->opt.device, id, node, req->parsed.seq, req->parsed.node);
		goto out;
	}
	req->seq = id;
	req->op = req->parsed.op;
	req->readonly = mxfs_fsop_is_readonly(req->op);
	req->lock = mxfs_fsop_is_lock(req->op);
	req->ino = le64_to_cpu(req->parsed.args.h.ino);
	req->ino2 = le64_to_cpu(req->parsed.args.h2.ino);
	if (req->op == MXFS_FSOP_SETLK && (le32_to_cpu(req->parsed.args.flags) & MXFS_LK_RECLAIM)) {
		reclaim_lock(exec, req);
		goto out;
	}

	mutex_lock(&exec->mutex);
	member = get_member(exec, node, req->parsed.incarnation);
	if (!member)
		goto out_unlock; /* of the dead: nobody waits for an answer */
	if (member->gone) {
		/* Most likely nobody does here either, unless it is about to be let in. */
		answer = MXFS_FSOP_E_RETRY;
		goto out_unlock;
	}
	member->asked = true;
	acknowledge(member, req->parsed.acked);
	known = xa_load(&member->known, id);
	if (known) {
		if (known->state == REQUEST_DONE) {
			kept = *known->kept;
			mutex_unlock(&exec->mutex);
			mxfs_count(sbi, MXFS_COUNT_FSOP_REPLAYED);
			send_reply(exec, node, id, &kept, sizeof(kept));
			goto out;
		}
		goto out_unlock; /* on its way */
	}
	if (id < member->acked && !req->lock)
		goto out_unlock; /* a late copy of what was answered and seen */
	if (req->parsed.epoch < READ_ONCE(sbi->epoch) || member->known_count >= MXFS_EXEC_KNOWN_MAX ||
	    READ_ONCE(sbi->role) != MXFS_ROLE_HOLDER) {
		answer = MXFS_FSOP_E_RETRY;
		goto out_unlock;
	}
	if (xa_err(xa_store(&member->known, id, req, GFP_KERNEL))) {
		answer = MXFS_FSOP_E_RETRY;
		goto out_unlock;
	}
	member->known_count++;
	req->member = member;
	list_add_tail(&req->queue, &member->queue);
	dispatch(member);
	mutex_unlock(&exec->mutex);
	return;

out_unlock:
	mutex_unlock(&exec->mutex);
	if (answer)
		send_error(exec, node, req->op, id, answer);
out:
	request_put(req);
}

static void free_partial(struct sender *sender, struct partial *part)
{
	list_del(&part->list);
	sender->count--;
	kvfree(part->payload);
	kfree(part);
}

/* Under exec->mutex. */
static struct sender *get_sender(struct mxfs_exec *exec, u32 node)
{
	struct sender *sender;

	list_for_each_entry(sender, &exec->senders, list) {
		if (sender->node == node)
			return sender;
	}
	sender = kzalloc(sizeof(*sender), GFP_KERNEL);
	if (!sender)
		return NULL;
	sender->node = node;
	INIT_LIST_HEAD(&sender->partials);
	list_add_tail(&sender->list, &exec->senders);
	return sender;
}

static struct partial *find_partial(struct sender *sender, u64 id)
{
	struct partial *part;

	list_for_each_entry(part, &sender->partials, list) {
		if (part->id == id)
			return part;
	}
	return NULL;
}

/* Under exec->mutex. 0 with *whole set when the request is complete. */
static int add_part(struct mxfs_exec *exec, u32 node, u64 id, u32 offset, u32 total, const void *data, u32 len,
		    void **whole)
{
	struct sender *sender = get_sender(exec, node);
	struct partial *part;

	if (!sender)
		return -ENOBUFS;
	part = find_partial(sender, id);
	if (part && (offset == 0 || offset != part->got || total != part->total)) {
		/* Sent anew from the beginning, or torn by a lost connection. */
		free_partial(sender, part);
		part = NULL;
	}
	if (!part) {
		if (offset)
			return 0; /* its beginning went missing: it comes again after the next view */
		if (sender->count >= MXFS_EXEC_PARTIAL_MAX)
			return -ENOBUFS;
		part = kzalloc(sizeof(*part), GFP_KERNEL);
		if (!part)
			return -ENOBUFS;
		part->payload = kvmalloc(total, GFP_KERNEL);
		if (!part->payload) {
			kfree(part);
			return -ENOBUFS;
		}
		part->id = id;
		part->total = total;
		list_add_tail(&part->list, &sender->partials);
		sender->count++;
	}
	memcpy(part->payload + offset, data, len);
	part->got += len;
	if (part->got == total) {
		*whole = part->payload;
		part->payload = NULL;
		free_partial(sender, part);
	}
	return 0;
}

int mxfs_exec_receive(struct mxfs_sb_info *sbi, u32 node, u64 id, u32 offset, u32 total, const void *data, u32 len)
{
	struct mxfs_exec *exec = sbi->exec;
	const struct mxfs_fsop_request *head = data;
	void *whole = NULL;
	int err;

	if (!exec)
		return -ENODEV;
	if (!len || total > MXFS_FSOP_PAYLOAD_MAX || offset > total || len > total - offset)
		return -EINVAL;
	mutex_lock(&exec->mutex);
	err = add_part(exec, node, id, offset, total, data, len, &whole);
	mutex_unlock(&exec->mutex);
	if (err == -ENOBUFS && offset == 0 && len >= sizeof(*head))
		send_error(exec, node, le16_to_cpu(head->op), id, MXFS_FSOP_E_RETRY);
	if (whole)
		submit(exec, node, id, whole, total);
	return err;
}

/* ---------------------------------------------------------------- departures, role changes, the mount */

static void drop_partials(struct mxfs_exec *exec, u32 node)
{
	struct partial *part, *next;
	struct sender *sender, *next_sender;

	list_for_each_entry_safe(sender, next_sender, &exec->senders, list) {
		if (node && sender->node != node)
			continue;
		list_for_each_entry_safe(part, next, &sender->partials, list)
			free_partial(sender, part);
		list_del(&sender->list);
		kfree(sender);
	}
}

void mxfs_exec_node_stop(struct mxfs_sb_info *sbi, u32 node, u32 incarnation)
{
	struct mxfs_exec *exec = sbi->exec;
	struct member *member;

	if (!exec)
		return;
	mutex_lock(&exec->mutex);
	drop_partials(exec, node);
	/* Also one that has never asked for anything: it shall not begin now. */
	member = get_member(exec, node, incarnation);
	if (member)
		drop_member(member);
	mutex_unlock(&exec->mutex);
}

/* What is inside the gate is doing it right now; what is not will find its member gone. */
static void wait_for_gone(struct mxfs_exec *exec)
{
	struct member *member;

	mutex_lock(&exec->mutex);
again:
	list_for_each_entry(member, &exec->members, list) {
		if (!member->gone || !member->inside)
			continue;
		member->pins++;
		mutex_unlock(&exec->mutex);
		wait_event(exec->idle, !READ_ONCE(member->inside));
		mutex_lock(&exec->mutex);
		member->pins--;
		goto again;
	}
	mutex_unlock(&exec->mutex);
}

/*
 * Before a view change passes on what a dead member held: nothing of it runs any more, and what it had done, answered early
 * perhaps, is durable. Roles change under role_mutex; not through the gate, which the view change may have shut.
 */
void mxfs_exec_settle_gone(struct mxfs_sb_info *sbi)
{
	struct mxfs_exec *exec = sbi->exec;
	bool unsettled;
	int err = 0;

	if (!exec || READ_ONCE(sbi->role) != MXFS_ROLE_HOLDER)
		return;
	mutex_lock(&exec->mutex);
	unsettled = exec->unsettled;
	exec->unsettled = false;
	mutex_unlock(&exec->mutex);
	if (!unsettled)
		return; /* most view changes: nobody has to wait for a log force */
	wait_for_gone(exec);
	mutex_lock(&sbi->role_mutex);
	if (sbi->lower && !mxfs_gate_fenced(&sbi->gate))
		err = mxfs_lower_commit(sbi);
	mutex_unlock(&sbi->role_mutex);
	if (err)
		mxfs_fence(sbi, "changes could not be made durable before a dead node's locks are passed on");
}

void mxfs_exec_node_gone(struct mxfs_sb_info *sbi, u32 node, u32 incarnation)
{
	struct mxfs_exec *exec = sbi->exec;

	if (!exec)
		return;
	mxfs_exec_node_stop(sbi, node, incarnation);
	wait_for_gone(exec);
	mutex_lock(&sbi->role_mutex);
	if (sbi->lower)
		mxfs_locktab_drop_node(sbi->lower, node, incarnation);
	mutex_unlock(&sbi->role_mutex);
}

/* A newcomer that was declared gone in a view change that was never finished: it has asked for nothing yet. */
void mxfs_exec_node_back(struct mxfs_sb_info *sbi, u32 node, u32 incarnation)
{
	struct mxfs_exec *exec = sbi->exec;
	struct member *member;

	if (!exec)
		return;
	mutex_lock(&exec->mutex);
	member = find_member(exec, node, incarnation);
	if (member)
		member->gone = false;
	mutex_unlock(&exec->mutex);
}

/* The gate is shut: nobody is inside, and what is queued waits in front of it and will be answered RETRY. */
void mxfs_exec_quiesce(struct mxfs_sb_info *sbi)
{
	struct mxfs_exec *exec = sbi->exec;
	struct member *member;
	struct request *req;
	unsigned long seq;

	if (!exec)
		return;
	if (sbi->lower && sbi->lower->locks)
		mxfs_locktab_end_waits(sbi->lower, MXFS_LOCKTAB_RETRY);
	mutex_lock(&exec->mutex);
	/* The replies were for a holder that this node is not any longer. */
	list_for_each_entry(member, &exec->members, list) {
		xa_for_each(&member->known, seq, req) {
			if (req->state == REQUEST_DONE)
				request_forget(req);
		}
	}
	mutex_unlock(&exec->mutex);
}

int mxfs_exec_init(struct mxfs_sb_info *sbi)
{
	struct mxfs_exec *exec = kzalloc(sizeof(*exec), GFP_KERNEL);

	if (!exec)
		return -ENOMEM;
	/* No WQ_MEM_RECLAIM: XFS, short of space, waits for work of its own that is not for memory reclaim either. */
	exec->wq = alloc_workqueue("mxfs_exec", WQ_UNBOUND, MXFS_EXEC_WORKERS);
	if (!exec->wq) {
		kfree(exec);
		return -ENOMEM;
	}
	exec->sbi = sbi;
	mutex_init(&exec->mutex);
	INIT_LIST_HEAD(&exec->members);
	INIT_LIST_HEAD(&exec->senders);
	INIT_DELAYED_WORK(&exec->commit, commit_work);
	init_waitqueue_head(&exec->idle);
	sbi->exec = exec;
	return 0;
}

/* The lower XFS is unmounted: what is still queued goes unanswered. */
void mxfs_exec_destroy(struct mxfs_sb_info *sbi)
{
	struct mxfs_exec *exec = sbi->exec;
	struct member *member, *next;
	struct request *req;
	unsigned long seq;

	if (!exec)
		return;
	mutex_lock(&exec->mutex);
	list_for_each_entry(member, &exec->members, list)
		drop_member(member);
	drop_partials(exec, 0);
	mutex_unlock(&exec->mutex);
	WRITE_ONCE(exec->stopping, true);
	wake_up_all(&sbi->gate.wait);
	destroy_workqueue(exec->wq);
	cancel_delayed_work_sync(&exec->commit);
	mutex_lock(&exec->mutex);
	list_for_each_entry_safe(member, next, &exec->members, list) {
		xa_for_each(&member->known, seq, req)
			request_forget(req);
		free_member(exec, member);
	}
	mutex_unlock(&exec->mutex);
	sbi->exec = NULL;
	kfree(exec);
}
