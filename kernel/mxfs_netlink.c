// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: the generic netlink family "mxfs" (include/mxfs/netlink.h says what each command means).
 *
 * Responsible for: checking what a daemon sends and handing it on; sending what the kernel has to say, in
 * order and without loss.
 *
 * Protocol, inwards: a handler runs in the daemon's own sendmsg(2), in parallel with others; it checks, copies and
 * queues. Two ordered workqueues for each mount: "control" (role changes, gate: slow) and "locks" (grants,
 * recalls, dump, view: never wait for the daemon or for room). Leases, answers and fsops are taken in the
 * handler itself, since there they only set or copy. A queue holds at most MXFS_NL_QUEUED_MAX messages; then
 * the sender waits in sendmsg(2), killable.
 *
 * Outwards: one queue for each mount, emptied by a thread that waits for room in the daemon's socket. Beyond
 * MXFS_NL_BYTES_MAX callers wait, but for answers and lock messages, whose
 * number is bounded by the requests and the locks. Without
 * a daemon messages are dropped and counted: what matters is in the next dump, or sent again after the next view.
 *
 * Known weakness: the session number is all that tells a daemon's further sockets from another process with
 * CAP_NET_ADMIN.
 */
#include "mxfs.h"

#include <linux/genetlink.h>
#include <linux/kthread.h>
#include <linux/netlink.h>
#include <linux/random.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <net/genetlink.h>
#include <net/net_namespace.h>

#define MXFS_NL_QUEUED_MAX 1024
#define MXFS_NL_BYTES_MAX (8 << 20)
#define MXFS_NL_MESSAGE_LEN 512
#define MXFS_NL_REASON_LEN 128

struct mxfs_nl {
	struct mxfs_sb_info *sbi;
	spinlock_t lock;		/* portid, session, queue against unbind */
	u32 portid;			/* 0: no daemon */
	u64 session;
	struct sk_buff_head queue;
	atomic_long_t bytes;		/* in queue */
	wait_queue_head_t more;		/* the thread waits for messages */
	wait_queue_head_t room;		/* callers wait for the queue, senders for the workqueues */
	struct task_struct *thread;
	struct workqueue_struct *control, *locks;
	atomic_t queued;		/* messages in the workqueues */
	atomic64_t dropped, failed;
};

/* One message on its way to a workqueue. */
struct mxfs_nl_msg {
	struct work_struct work;
	struct mxfs_sb_info *sbi;
	u8 cmd;
	bool has_ino;
	u32 error, role, node, incarnation, holder, open, force, resend, solo, node_state;
	u64 req_id, epoch, lease_until, ino, lockstate_size;
	int count;
	char text[MXFS_NL_MESSAGE_LEN];
	struct mxfs_lock_entry entries[];
};

static struct genl_family mxfs_genl_family;

static struct netlink_range_validation mxfs_nl_nonzero = { .min = 1, .max = U64_MAX };
static struct netlink_range_validation mxfs_nl_boottime = { .min = 0, .max = S64_MAX };
static struct netlink_range_validation mxfs_nl_payload = { .min = 0, .max = MXFS_FSOP_PAYLOAD_MAX };
/* NLA_POLICY_RANGE keeps limits in 16 signed bits. */
static struct netlink_range_validation mxfs_nl_data = { .min = 1, .max = MXFS_NL_DATA_MAX };
static struct netlink_range_validation mxfs_nl_total = { .min = 1, .max = MXFS_FSOP_PAYLOAD_MAX };

static const struct nla_policy mxfs_nl_policy[MXFS_A_MAX + 1] = {
	[MXFS_A_MOUNT_ID] = NLA_POLICY_MIN(NLA_U32, 1),
	[MXFS_A_SESSION] = NLA_POLICY_FULL_RANGE(NLA_U64, &mxfs_nl_nonzero),
	[MXFS_A_ABI_VERSION] = { .type = NLA_U32 },
	[MXFS_A_PID] = NLA_POLICY_MIN(NLA_U32, 1),
	[MXFS_A_REQ_ID] = NLA_POLICY_FULL_RANGE(NLA_U64, &mxfs_nl_nonzero),
	[MXFS_A_ERROR] = NLA_POLICY_MAX(NLA_U32, MAX_ERRNO),
	[MXFS_A_MESSAGE] = { .type = NLA_STRING, .len = MXFS_NL_MESSAGE_LEN - 1 },
	[MXFS_A_VOLUME] = { .type = NLA_U64 },
	[MXFS_A_NODE] = { .type = NLA_U32 },
	[MXFS_A_INCARNATION] = { .type = NLA_U32 },
	[MXFS_A_HOLDER] = { .type = NLA_U32 },
	[MXFS_A_ROLE] = NLA_POLICY_MAX(NLA_U32, MXFS_ROLE_MEMBER),
	[MXFS_A_EPOCH] = { .type = NLA_U64 },
	[MXFS_A_STATE] = NLA_POLICY_RANGE(NLA_U32, MXFS_KSTATE_STARTING, MXFS_KSTATE_STOPPING),
	[MXFS_A_FENCED] = NLA_POLICY_MAX(NLA_U32, 1),
	[MXFS_A_LEASE_UNTIL] = NLA_POLICY_FULL_RANGE(NLA_U64, &mxfs_nl_boottime),
	[MXFS_A_GATE_OPEN] = NLA_POLICY_MAX(NLA_U32, 1),
	[MXFS_A_REASON] = { .type = NLA_STRING, .len = MXFS_NL_REASON_LEN - 1 },
	[MXFS_A_FORCE] = NLA_POLICY_MAX(NLA_U32, 1),
	[MXFS_A_RESEND] = NLA_POLICY_MAX(NLA_U32, 1),
	/* At most 16 KiB: that it is whole entries is checked by hand. */
	[MXFS_A_LOCKS] = NLA_POLICY_RANGE(NLA_BINARY, MXFS_LOCK_ENTRY_SIZE, MXFS_LOCK_ENTRY_SIZE * MXFS_NL_LOCKS_MAX),
	[MXFS_A_INO] = { .type = NLA_U64 },
	[MXFS_A_GENERATION] = { .type = NLA_U32 },
	[MXFS_A_SIZE] = { .type = NLA_U64 },
	[MXFS_A_CREATED] = NLA_POLICY_MAX(NLA_U32, 1),
	[MXFS_A_LOCKSTATE_SIZE] = { .type = NLA_U64 },
	[MXFS_A_NODE_STATE] = NLA_POLICY_MAX(NLA_U32, MXFS_NODE_LEFT),
	[MXFS_A_FSOP_ID] = { .type = NLA_U64 },
	[MXFS_A_FSOP_OFFSET] = NLA_POLICY_FULL_RANGE(NLA_U32, &mxfs_nl_payload),
	[MXFS_A_FSOP_TOTAL] = NLA_POLICY_FULL_RANGE(NLA_U32, &mxfs_nl_total),
	[MXFS_A_FSOP_DATA] = NLA_POLICY_FULL_RANGE(NLA_BINARY, &mxfs_nl_data),
	[MXFS_A_COUNTERS] = { .type = NLA_REJECT },
	[MXFS_A_DEVICE] = { .type = NLA_REJECT },
	[MXFS_A_PAD] = { .type = NLA_REJECT },
	[MXFS_A_SOLO] = NLA_POLICY_MAX(NLA_U32, 1),
	[MXFS_A_FD] = { .type = NLA_U32 },
};

/* Whole sentences: an extack message is not copied. */
static const char *const mxfs_nl_missing[MXFS_A_MAX + 1] = {
	[MXFS_A_MOUNT_ID] = "mxfs: attribute MOUNT_ID is missing",
	[MXFS_A_SESSION] = "mxfs: attribute SESSION is missing",
	[MXFS_A_ABI_VERSION] = "mxfs: attribute ABI_VERSION is missing",
	[MXFS_A_PID] = "mxfs: attribute PID is missing",
	[MXFS_A_REQ_ID] = "mxfs: attribute REQ_ID is missing",
	[MXFS_A_ERROR] = "mxfs: attribute ERROR is missing",
	[MXFS_A_NODE] = "mxfs: attribute NODE is missing",
	[MXFS_A_INCARNATION] = "mxfs: attribute INCARNATION is missing",
	[MXFS_A_HOLDER] = "mxfs: attribute HOLDER is missing",
	[MXFS_A_ROLE] = "mxfs: attribute ROLE is missing",
	[MXFS_A_EPOCH] = "mxfs: attribute EPOCH is missing",
	[MXFS_A_LEASE_UNTIL] = "mxfs: attribute LEASE_UNTIL is missing",
	[MXFS_A_GATE_OPEN] = "mxfs: attribute GATE_OPEN is missing",
	[MXFS_A_LOCKS] = "mxfs: attribute LOCKS is missing",
	[MXFS_A_NODE_STATE] = "mxfs: attribute NODE_STATE is missing",
	[MXFS_A_FSOP_ID] = "mxfs: attribute FSOP_ID is missing",
	[MXFS_A_FSOP_OFFSET] = "mxfs: attribute FSOP_OFFSET is missing",
	[MXFS_A_FSOP_TOTAL] = "mxfs: attribute FSOP_TOTAL is missing",
	[MXFS_A_FSOP_DATA] = "mxfs: attribute FSOP_DATA is missing",
	[MXFS_A_FD] = "mxfs: attribute FD is missing",
};

/* ---------------------------------------------------------------- outwards */

struct sk_buff *mxfs_nl_new(struct mxfs_sb_info *sbi, int cmd, size_t payload, gfp_t gfp)
{
	struct sk_buff *skb = genlmsg_new(nla_total_size(sizeof(u32)) + payload, gfp);

	if (!skb)
		return NULL;
	if (!genlmsg_put(skb, 0, 0, &mxfs_genl_family, 0, cmd) || nla_put_u32(skb, MXFS_A_MOUNT_ID, sbi->mount_id)) {
		kfree_skb(skb);
		return NULL;
	}
	return skb;
}

static void mxfs_nl_enqueue(struct mxfs_nl *nl, struct sk_buff *skb)
{
	/* The header's length; the message begins at the buffer's data. */
	nlmsg_end(skb, nlmsg_hdr(skb));
	spin_lock(&nl->lock);
	if (!nl->portid) {
		spin_unlock(&nl->lock);
		atomic64_inc(&nl->dropped);
		kfree_skb(skb);
		return;
	}
	atomic_long_add(skb->len, &nl->bytes);
	skb_queue_tail(&nl->queue, skb);
	spin_unlock(&nl->lock);
	wake_up(&nl->more);
}

static bool mxfs_nl_has_room(struct mxfs_nl *nl)
{
	return atomic_long_read(&nl->bytes) < MXFS_NL_BYTES_MAX || !READ_ONCE(nl->portid);
}

void mxfs_nl_send(struct mxfs_sb_info *sbi, struct sk_buff *skb)
{
	struct mxfs_nl *nl = sbi->nl;

	wait_event(nl->room, mxfs_nl_has_room(nl));
	mxfs_nl_enqueue(nl, skb);
}

void mxfs_nl_done(struct mxfs_sb_info *sbi, u64 req_id, int error, const char *message)
{
	struct sk_buff *skb;

	/* Small, and the daemon would wait for it for ever. */
	skb = mxfs_nl_new(sbi, MXFS_CMD_DONE, nla_total_size_64bit(8) + nla_total_size(4) +
			  nla_total_size(MXFS_NL_MESSAGE_LEN), GFP_KERNEL | __GFP_NOFAIL);
	if (WARN_ON_ONCE(!skb))
		return;
	if (nla_put_u64_64bit(skb, MXFS_A_REQ_ID, req_id, MXFS_A_PAD) || nla_put_u32(skb, MXFS_A_ERROR, abs(error)) ||
	    (message && nla_put(skb, MXFS_A_MESSAGE, min_t(size_t, strlen(message), MXFS_NL_MESSAGE_LEN - 1), message))) {
		kfree_skb(skb);
		return;
	}
	mxfs_nl_enqueue(sbi->nl, skb);
}

int mxfs_nl_send_locks(struct mxfs_sb_info *sbi, int cmd, const struct mxfs_lock_entry *entries, int count, gfp_t gfp)
{
	struct sk_buff *skb;

	if (WARN_ON_ONCE(count < 1 || count > MXFS_NL_LOCKS_MAX))
		return -EINVAL;
	skb = mxfs_nl_new(sbi, cmd, nla_total_size(count * sizeof(*entries)), gfp | __GFP_NOWARN);
	if (!skb)
		return -ENOMEM;
	if (nla_put(skb, MXFS_A_LOCKS, count * sizeof(*entries), entries)) {
		kfree_skb(skb);
		return -EMSGSIZE;
	}
	/* Bounded by the number of locks; and the locks workqueue must not wait for the daemon to read. */
	mxfs_nl_enqueue(sbi->nl, skb);
	return 0;
}

int mxfs_nl_send_fsop(struct mxfs_sb_info *sbi, int cmd, u32 node, u64 id, const void *payload, u32 len, gfp_t gfp)
{
	u32 offset = 0, part_max = MXFS_NL_DATA_MAX, part;
	struct sk_buff *skb;

	if (WARN_ON_ONCE(!len || len > MXFS_FSOP_PAYLOAD_MAX))
		return -EINVAL;
	while (offset < len) {
		part = min(len - offset, part_max);
		skb = mxfs_nl_new(sbi, cmd, nla_total_size_64bit(8) + 3 * nla_total_size(4) + nla_total_size(part),
				  gfp | __GFP_NOWARN | __GFP_NORETRY);
		if (!skb && part > 2048) { /* memory in smaller pieces is easier to get */
			part_max = part / 2;
			continue;
		}
		if (!skb)
			skb = mxfs_nl_new(sbi, cmd, nla_total_size_64bit(8) + 3 * nla_total_size(4) +
					  nla_total_size(part), gfp | __GFP_NOFAIL);
		if (!skb)
			return -ENOMEM;
		if (nla_put_u64_64bit(skb, MXFS_A_FSOP_ID, id, MXFS_A_PAD) || nla_put_u32(skb, MXFS_A_NODE, node) ||
		    nla_put_u32(skb, MXFS_A_FSOP_OFFSET, offset) || nla_put_u32(skb, MXFS_A_FSOP_TOTAL, len) ||
		    nla_put(skb, MXFS_A_FSOP_DATA, part, payload + offset)) {
			kfree_skb(skb);
			return -EMSGSIZE;
		}
		mxfs_nl_send(sbi, skb);
		offset += part;
	}
	return 0;
}

static int mxfs_nl_thread(void *data)
{
	struct mxfs_nl *nl = data;
	struct sk_buff *skb;
	u32 portid;
	int err;

	allow_signal(SIGKILL); /* only from mxfs_nl_mount_destroy: ends a wait for room */
	while (!kthread_should_stop()) {
		if (wait_event_interruptible(nl->more, kthread_should_stop() || !skb_queue_empty_lockless(&nl->queue)))
			break;
		while ((skb = skb_dequeue(&nl->queue))) {
			atomic_long_sub(skb->len, &nl->bytes);
			if (waitqueue_active(&nl->room))
				wake_up_all(&nl->room);
			portid = READ_ONCE(nl->portid);
			if (!portid) {
				atomic64_inc(&nl->dropped);
				kfree_skb(skb);
				continue;
			}
			/* Blocking: waits for room in the daemon's socket. Consumes skb. */
			err = netlink_unicast(init_net.genl_sock, skb, portid, 0);
			if (err < 0)
				atomic64_inc(&nl->failed); /* the socket is gone: its release is on the way here */
			else
				mxfs_count(nl->sbi, MXFS_COUNT_NL_OUT);
			if (signal_pending(current))
				goto out;
		}
	}
out:
	while (!kthread_should_stop()) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		if (!kthread_should_stop())
			schedule();
		__set_current_state(TASK_RUNNING);
	}
	return 0;
}

/* ---------------------------------------------------------------- inwards: the workqueues */

static void mxfs_nl_work(struct work_struct *work)
{
	struct mxfs_nl_msg *msg = container_of(work, struct mxfs_nl_msg, work);
	struct mxfs_sb_info *sbi = msg->sbi;
	struct mxfs_nl *nl = sbi->nl;
	int err;

	switch (msg->cmd) {
	case MXFS_CMD_DAEMON_READY:
		mxfs_super_daemon_ready(sbi, -(int)msg->error, msg->text, msg->role, msg->epoch, msg->holder,
					msg->incarnation, msg->lease_until);
		break;
	case MXFS_CMD_ROLE_CHANGE:
		mxfs_super_role_change(sbi, msg->req_id, msg->role, msg->node, msg->incarnation, msg->holder, msg->epoch,
				       msg->lockstate_size);
		break;
	case MXFS_CMD_GATE:
		mxfs_super_gate(sbi, msg->req_id, msg->open, msg->text, msg->force);
		break;
	case MXFS_CMD_LOCK_DUMP:
		mxfs_exec_settle_gone(sbi);
		err = mxfs_dlm_dump(sbi, msg->epoch, msg->solo);
		mxfs_nl_done(sbi, msg->req_id, err, err ? "not enough memory for the list of locks" : NULL);
		break;
	case MXFS_CMD_VIEW:
		mxfs_super_view(sbi, msg->epoch, msg->holder, msg->incarnation, msg->resend, msg->solo);
		break;
	case MXFS_CMD_LOCK_GRANT:
	case MXFS_CMD_LOCK_DENY:
	case MXFS_CMD_BAST:
		mxfs_dlm_receive(sbi, msg->cmd, msg->entries, msg->count);
		break;
	case MXFS_CMD_CACHE_INVALIDATE:
		mxfs_cache_invalidate(sbi, msg->has_ino ? msg->ino : 0);
		break;
	case MXFS_CMD_NODE_STATUS:
		if (msg->node_state == MXFS_NODE_DEAD || msg->node_state == MXFS_NODE_LEFT)
			mxfs_exec_node_gone(sbi, msg->node, msg->incarnation);
		else if (msg->node_state == MXFS_NODE_JOINING)
			mxfs_exec_node_back(sbi, msg->node, msg->incarnation);
		if (msg->node_state == MXFS_NODE_DEAD)
			mxfs_sock_drop(sbi, msg->node, msg->incarnation);
		break;
	case MXFS_CMD_RECOVERY_START:
	case MXFS_CMD_RECOVERY_DONE:
		mxfs_super_recovery(sbi, msg->cmd == MXFS_CMD_RECOVERY_START, msg->node);
		break;
	}
	kfree(msg);
	if (atomic_dec_return(&nl->queued) < MXFS_NL_QUEUED_MAX)
		wake_up(&nl->room);
}

/* ---------------------------------------------------------------- inwards: the handlers */

static int mxfs_nl_require(struct genl_info *info, u64 mask)
{
	int id;

	for (id = 1; id <= MXFS_A_MAX; id++) {
		if (!(mask & BIT_ULL(id)) || info->attrs[id])
			continue;
		if (info->extack)
			info->extack->_msg = mxfs_nl_missing[id] ?: "mxfs: an attribute is missing";
		return -EINVAL;
	}
	return 0;
}

static struct mxfs_sb_info *mxfs_nl_mount(struct genl_info *info)
{
	struct mxfs_sb_info *sbi;
	int err;

	err = mxfs_nl_require(info, BIT_ULL(MXFS_A_MOUNT_ID));
	if (err)
		return ERR_PTR(err);
	sbi = mxfs_mount_find(nla_get_u32(info->attrs[MXFS_A_MOUNT_ID]));
	if (!sbi) {
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[MXFS_A_MOUNT_ID], "mxfs: no such mount");
		return ERR_PTR(-ENOENT);
	}
	return sbi;
}

/* The mount of a message that only its daemon may send. */
static struct mxfs_sb_info *mxfs_nl_mount_of_daemon(struct genl_info *info)
{
	struct mxfs_sb_info *sbi = mxfs_nl_mount(info);
	struct mxfs_nl *nl;
	bool ours;

	if (IS_ERR(sbi))
		return sbi;
	nl = sbi->nl;
	spin_lock(&nl->lock);
	ours = nl->portid && (info->snd_portid == nl->portid ||
			      (info->attrs[MXFS_A_SESSION] && nla_get_u64(info->attrs[MXFS_A_SESSION]) == nl->session));
	spin_unlock(&nl->lock);
	if (!ours) {
		NL_SET_ERR_MSG(info->extack,
			       "mxfs: neither the port that is attached to this mount nor its session number");
		mxfs_mount_put(sbi);
		return ERR_PTR(-EPERM);
	}
	mxfs_count(sbi, MXFS_COUNT_NL_IN);
	return sbi;
}

static u32 mxfs_nl_u32(struct genl_info *info, int id)
{
	return info->attrs[id] ? nla_get_u32(info->attrs[id]) : 0;
}

static u64 mxfs_nl_u64(struct genl_info *info, int id)
{
	return info->attrs[id] ? nla_get_u64(info->attrs[id]) : 0;
}

static u64 mxfs_nl_required(u8 cmd)
{
	switch (cmd) {
	case MXFS_CMD_DAEMON_ATTACH:
		return BIT_ULL(MXFS_A_ABI_VERSION) | BIT_ULL(MXFS_A_PID);
	case MXFS_CMD_ROLE_CHANGE:
		return BIT_ULL(MXFS_A_REQ_ID) | BIT_ULL(MXFS_A_ROLE) | BIT_ULL(MXFS_A_NODE) | BIT_ULL(MXFS_A_INCARNATION);
	case MXFS_CMD_GATE:
		return BIT_ULL(MXFS_A_REQ_ID) | BIT_ULL(MXFS_A_GATE_OPEN);
	case MXFS_CMD_LEASE:
		return BIT_ULL(MXFS_A_LEASE_UNTIL);
	case MXFS_CMD_LOCK_DUMP:
		return BIT_ULL(MXFS_A_REQ_ID) | BIT_ULL(MXFS_A_EPOCH);
	case MXFS_CMD_VIEW:
		return BIT_ULL(MXFS_A_EPOCH) | BIT_ULL(MXFS_A_HOLDER) | BIT_ULL(MXFS_A_INCARNATION);
	case MXFS_CMD_LOCK_GRANT:
	case MXFS_CMD_LOCK_DENY:
	case MXFS_CMD_BAST:
		return BIT_ULL(MXFS_A_LOCKS);
	case MXFS_CMD_NODE_STATUS:
		return BIT_ULL(MXFS_A_NODE) | BIT_ULL(MXFS_A_INCARNATION) | BIT_ULL(MXFS_A_NODE_STATE);
	case MXFS_CMD_RECOVERY_START:
	case MXFS_CMD_RECOVERY_DONE:
		return BIT_ULL(MXFS_A_NODE);
	case MXFS_CMD_FSOP_REQUEST:
		return BIT_ULL(MXFS_A_NODE) | BIT_ULL(MXFS_A_FSOP_ID) | BIT_ULL(MXFS_A_FSOP_OFFSET) |
		       BIT_ULL(MXFS_A_FSOP_TOTAL) | BIT_ULL(MXFS_A_FSOP_DATA);
	case MXFS_CMD_FSOP_REPLY:
		return BIT_ULL(MXFS_A_FSOP_ID) | BIT_ULL(MXFS_A_FSOP_OFFSET) | BIT_ULL(MXFS_A_FSOP_TOTAL) |
		       BIT_ULL(MXFS_A_FSOP_DATA);
	case MXFS_CMD_FSOP_SOCKET:
		return BIT_ULL(MXFS_A_NODE) | BIT_ULL(MXFS_A_INCARNATION) | BIT_ULL(MXFS_A_FD);
	case MXFS_CMD_DONE:
		return BIT_ULL(MXFS_A_REQ_ID);
	default:
		return 0;
	}
}

static bool mxfs_nl_is_control(u8 cmd)
{
	switch (cmd) {
	case MXFS_CMD_LOCK_GRANT:
	case MXFS_CMD_LOCK_DENY:
	case MXFS_CMD_BAST:
	case MXFS_CMD_LOCK_DUMP:
	case MXFS_CMD_VIEW:
		return false;
	default:
		return true;
	}
}

/* Whatever is worked on in one of the two workqueues. */
static int mxfs_nl_queue(struct sk_buff *skb, struct genl_info *info)
{
	struct nlattr *locks = info->attrs[MXFS_A_LOCKS];
	u8 cmd = info->genlhdr->cmd;
	struct mxfs_sb_info *sbi;
	struct mxfs_nl_msg *msg;
	struct mxfs_nl *nl;
	int len = 0, err;

	sbi = mxfs_nl_mount_of_daemon(info);
	if (IS_ERR(sbi))
		return PTR_ERR(sbi);
	nl = sbi->nl;
	err = mxfs_nl_require(info, mxfs_nl_required(cmd));
	if (err)
		goto out;
	if (locks) {
		len = nla_len(locks);
		if (len % sizeof(struct mxfs_lock_entry)) {
			NL_SET_ERR_MSG_ATTR(info->extack, locks, "mxfs: LOCKS is not a whole number of 64-byte entries");
			err = -EINVAL;
			goto out;
		}
	}
	if (cmd == MXFS_CMD_DAEMON_READY && !info->attrs[MXFS_A_ERROR]) {
		err = mxfs_nl_require(info, BIT_ULL(MXFS_A_ROLE) | BIT_ULL(MXFS_A_EPOCH) | BIT_ULL(MXFS_A_HOLDER) |
				      BIT_ULL(MXFS_A_INCARNATION) | BIT_ULL(MXFS_A_LEASE_UNTIL));
		if (err)
			goto out;
	}
	if (atomic_read(&nl->queued) >= MXFS_NL_QUEUED_MAX) {
		err = wait_event_killable(nl->room, atomic_read(&nl->queued) < MXFS_NL_QUEUED_MAX);
		if (err)
			goto out;
	}
	/* That a drain ends is not to wait behind the drain. */
	if (cmd == MXFS_CMD_GATE && !mxfs_nl_u32(info, MXFS_A_GATE_OPEN) && mxfs_nl_u32(info, MXFS_A_FORCE))
		mxfs_gate_force(sbi);

	msg = kzalloc(struct_size(msg, entries, len / sizeof(struct mxfs_lock_entry)), GFP_KERNEL);
	if (!msg) {
		err = -ENOMEM;
		goto out;
	}
	INIT_WORK(&msg->work, mxfs_nl_work);
	msg->sbi = sbi;
	msg->cmd = cmd;
	msg->error = mxfs_nl_u32(info, MXFS_A_ERROR);
	msg->role = mxfs_nl_u32(info, MXFS_A_ROLE);
	msg->node = mxfs_nl_u32(info, MXFS_A_NODE);
	msg->incarnation = mxfs_nl_u32(info, MXFS_A_INCARNATION);
	msg->holder = mxfs_nl_u32(info, MXFS_A_HOLDER);
	msg->open = mxfs_nl_u32(info, MXFS_A_GATE_OPEN);
	msg->force = mxfs_nl_u32(info, MXFS_A_FORCE);
	msg->resend = mxfs_nl_u32(info, MXFS_A_RESEND);
	msg->solo = mxfs_nl_u32(info, MXFS_A_SOLO);
	msg->node_state = mxfs_nl_u32(info, MXFS_A_NODE_STATE);
	msg->req_id = mxfs_nl_u64(info, MXFS_A_REQ_ID);
	msg->epoch = mxfs_nl_u64(info, MXFS_A_EPOCH);
	msg->lease_until = mxfs_nl_u64(info, MXFS_A_LEASE_UNTIL);
	msg->ino = mxfs_nl_u64(info, MXFS_A_INO);
	msg->has_ino = info->attrs[MXFS_A_INO];
	msg->lockstate_size = mxfs_nl_u64(info, MXFS_A_LOCKSTATE_SIZE);
	if (info->attrs[MXFS_A_MESSAGE])
		nla_strscpy(msg->text, info->attrs[MXFS_A_MESSAGE], sizeof(msg->text));
	else if (info->attrs[MXFS_A_REASON])
		nla_strscpy(msg->text, info->attrs[MXFS_A_REASON], sizeof(msg->text));
	if (locks) {
		memcpy(msg->entries, nla_data(locks), len);
		msg->count = len / sizeof(struct mxfs_lock_entry);
	}
	/* In the order of the messages, which the two queues do not keep: before the locks are dumped, and before the gate is opened. */
	if (cmd == MXFS_CMD_NODE_STATUS && (msg->node_state == MXFS_NODE_DEAD || msg->node_state == MXFS_NODE_LEFT))
		mxfs_exec_node_stop(sbi, msg->node, msg->incarnation);
	if (cmd == MXFS_CMD_VIEW)
		mxfs_remote_hold_gate(sbi, msg->holder, msg->incarnation);
	atomic_inc(&nl->queued);
	queue_work(mxfs_nl_is_control(cmd) ? nl->control : nl->locks, &msg->work);
out:
	mxfs_mount_put(sbi);
	return err;
}

static int mxfs_nl_put_state(struct sk_buff *skb, struct mxfs_sb_info *sbi)
{
	if (nla_put_u64_64bit(skb, MXFS_A_VOLUME, sbi->volume, MXFS_A_PAD) ||
	    nla_put_u32(skb, MXFS_A_STATE, READ_ONCE(sbi->kstate)) ||
	    nla_put_u32(skb, MXFS_A_ROLE, READ_ONCE(sbi->role)) ||
	    nla_put_u64_64bit(skb, MXFS_A_EPOCH, READ_ONCE(sbi->epoch), MXFS_A_PAD) ||
	    nla_put_u32(skb, MXFS_A_NODE, READ_ONCE(sbi->node)) ||
	    nla_put_u32(skb, MXFS_A_INCARNATION, READ_ONCE(sbi->incarnation)) ||
	    nla_put_u32(skb, MXFS_A_HOLDER, READ_ONCE(sbi->holder)) ||
	    nla_put_u32(skb, MXFS_A_FENCED, mxfs_gate_fenced(&sbi->gate)) ||
	    nla_put_u64_64bit(skb, MXFS_A_LEASE_UNTIL, atomic64_read(&sbi->gate.lease_until), MXFS_A_PAD) ||
	    nla_put_u32(skb, MXFS_A_GATE_OPEN, !atomic_read(&sbi->gate.shut)) ||
	    nla_put_u32(skb, MXFS_A_PID, mxfs_super_daemon_pid(sbi)))
		return -EMSGSIZE;
	return 0;
}

#define MXFS_NL_STATE_SIZE (3 * nla_total_size_64bit(8) + 9 * nla_total_size(4) + nla_total_size_64bit(8))

static int mxfs_nl_attach(struct sk_buff *skb, struct genl_info *info)
{
	struct mxfs_sb_info *sbi;
	struct sk_buff *reply;
	struct mxfs_nl *nl;
	u64 session;
	int err;

	err = mxfs_nl_require(info, mxfs_nl_required(MXFS_CMD_DAEMON_ATTACH));
	if (err)
		return err;
	if (mxfs_nl_u32(info, MXFS_A_ABI_VERSION) != MXFS_ABI_VERSION) {
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[MXFS_A_ABI_VERSION],
				    "mxfs: mxfsd and mxfs.ko speak different ABI versions: install both of one release");
		return -EPROTO;
	}
	if (mxfs_nl_u32(info, MXFS_A_PID) != task_tgid_nr(current)) {
		NL_SET_ERR_MSG_ATTR(info->extack, info->attrs[MXFS_A_PID], "mxfs: PID is not the sender's");
		return -EINVAL;
	}
	sbi = mxfs_nl_mount(info);
	if (IS_ERR(sbi))
		return PTR_ERR(sbi);
	nl = sbi->nl;
	err = -ENOMEM;
	reply = genlmsg_new(nla_total_size(4) + MXFS_NL_STATE_SIZE + nla_total_size_64bit(8), GFP_KERNEL);
	if (!reply)
		goto out;

	do {
		session = get_random_u64();
	} while (!session);
	spin_lock(&nl->lock);
	if (nl->portid) {
		err = -EBUSY;
	} else {
		nl->portid = info->snd_portid;
		nl->session = session;
		err = 0;
	}
	spin_unlock(&nl->lock);
	if (err) {
		NL_SET_ERR_MSG(info->extack, "mxfs: another daemon is attached to this mount");
		goto out_free;
	}
	err = mxfs_super_daemon_attached(sbi);
	if (err) {
		NL_SET_ERR_MSG(info->extack, "mxfs: this mount is being unmounted");
		mxfs_nl_unbind(sbi);
		goto out_free;
	}
	if (!genlmsg_put_reply(reply, info, &mxfs_genl_family, 0, MXFS_CMD_DAEMON_ATTACH) ||
	    nla_put_u32(reply, MXFS_A_MOUNT_ID, sbi->mount_id) ||
	    nla_put_u64_64bit(reply, MXFS_A_SESSION, session, MXFS_A_PAD) || mxfs_nl_put_state(reply, sbi)) {
		mxfs_nl_unbind(sbi);
		err = -EMSGSIZE;
		goto out_free;
	}
	nlmsg_end(reply, nlmsg_hdr(reply));
	err = genlmsg_reply(reply, info);
	goto out;

out_free:
	kfree_skb(reply);
out:
	mxfs_mount_put(sbi);
	return err;
}

static int mxfs_nl_lease(struct sk_buff *skb, struct genl_info *info)
{
	struct mxfs_sb_info *sbi = mxfs_nl_mount_of_daemon(info);
	int err;

	if (IS_ERR(sbi))
		return PTR_ERR(sbi);
	err = mxfs_nl_require(info, mxfs_nl_required(MXFS_CMD_LEASE));
	if (!err)
		mxfs_gate_lease(sbi, nla_get_u64(info->attrs[MXFS_A_LEASE_UNTIL]));
	mxfs_mount_put(sbi);
	return err;
}

static int mxfs_nl_fenced(struct sk_buff *skb, struct genl_info *info)
{
	struct mxfs_sb_info *sbi = mxfs_nl_mount_of_daemon(info);
	char why[MXFS_NL_REASON_LEN] = "the daemon says so";

	if (IS_ERR(sbi))
		return PTR_ERR(sbi);
	if (info->attrs[MXFS_A_MESSAGE])
		nla_strscpy(why, info->attrs[MXFS_A_MESSAGE], sizeof(why));
	mxfs_fence(sbi, why);
	mxfs_mount_put(sbi);
	return 0;
}

static int mxfs_nl_fsop(struct sk_buff *skb, struct genl_info *info)
{
	struct mxfs_sb_info *sbi = mxfs_nl_mount_of_daemon(info);
	u32 offset, total, len, node;
	const void *data;
	u64 id;
	int err;

	if (IS_ERR(sbi))
		return PTR_ERR(sbi);
	err = mxfs_nl_require(info, mxfs_nl_required(info->genlhdr->cmd));
	if (err)
		goto out;
	id = nla_get_u64(info->attrs[MXFS_A_FSOP_ID]);
	node = mxfs_nl_u32(info, MXFS_A_NODE);
	offset = nla_get_u32(info->attrs[MXFS_A_FSOP_OFFSET]);
	total = nla_get_u32(info->attrs[MXFS_A_FSOP_TOTAL]);
	data = nla_data(info->attrs[MXFS_A_FSOP_DATA]);
	len = nla_len(info->attrs[MXFS_A_FSOP_DATA]);
	if (offset > total || len > total - offset) {
		NL_SET_ERR_MSG(info->extack, "mxfs: FSOP_OFFSET and the length of FSOP_DATA go beyond FSOP_TOTAL");
		err = -EINVAL;
	} else if (info->genlhdr->cmd == MXFS_CMD_FSOP_REQUEST) {
		err = mxfs_exec_receive(sbi, node, id, offset, total, data, len);
	} else {
		mxfs_remote_receive(sbi, id, offset, total, data, len);
	}
out:
	mxfs_mount_put(sbi);
	return err;
}

/* In the daemon's context: the descriptor is its own. */
static int mxfs_nl_fsop_socket(struct sk_buff *skb, struct genl_info *info)
{
	struct mxfs_sb_info *sbi = mxfs_nl_mount_of_daemon(info);
	int err;

	if (IS_ERR(sbi))
		return PTR_ERR(sbi);
	err = mxfs_nl_require(info, mxfs_nl_required(MXFS_CMD_FSOP_SOCKET));
	if (!err)
		err = mxfs_sock_add(sbi, mxfs_nl_u32(info, MXFS_A_NODE), mxfs_nl_u32(info, MXFS_A_INCARNATION),
				    mxfs_nl_u32(info, MXFS_A_FD));
	mxfs_mount_put(sbi);
	return err;
}

static int mxfs_nl_done_received(struct sk_buff *skb, struct genl_info *info)
{
	struct mxfs_sb_info *sbi = mxfs_nl_mount_of_daemon(info);
	int err;

	if (IS_ERR(sbi))
		return PTR_ERR(sbi);
	err = mxfs_nl_require(info, mxfs_nl_required(MXFS_CMD_DONE));
	/* The unmount is the only request of the kernel. */
	if (!err)
		mxfs_super_unmount_done(sbi, -(int)mxfs_nl_u32(info, MXFS_A_ERROR));
	mxfs_mount_put(sbi);
	return err;
}

static u64 mxfs_nl_counter(struct mxfs_sb_info *sbi, int which)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += per_cpu_ptr(sbi->counters, cpu)[which];
	return sum;
}

static int mxfs_nl_status(struct sk_buff *skb, struct genl_info *info)
{
	struct mxfs_sb_info *sbi = mxfs_nl_mount(info);
	struct sk_buff *reply = NULL;
	struct mxfs_nl *nl;
	char *text = NULL;
	int i, len = 0, err = -ENOMEM;

	if (IS_ERR(sbi))
		return PTR_ERR(sbi);
	nl = sbi->nl;
	text = kmalloc(4096, GFP_KERNEL);
	reply = genlmsg_new(nla_total_size(4) + MXFS_NL_STATE_SIZE + nla_total_size(4096) + nla_total_size(PATH_MAX),
			    GFP_KERNEL);
	if (!text || !reply)
		goto out;
	for (i = 0; i < MXFS_COUNT_MAX; i++)
		len += scnprintf(text + len, 4096 - len, "%s %llu\n", mxfs_counter_names[i], mxfs_nl_counter(sbi, i));
	len += mxfs_dlm_describe(sbi, text + len, 4096 - len);
	len += scnprintf(text + len, 4096 - len, "netlink_dropped %lld\nnetlink_failed %lld\nnetlink_queued_bytes %ld\n",
			 (long long)atomic64_read(&nl->dropped), (long long)atomic64_read(&nl->failed),
			 atomic_long_read(&nl->bytes));
	err = -EMSGSIZE;
	if (!genlmsg_put_reply(reply, info, &mxfs_genl_family, 0, MXFS_CMD_STATUS) ||
	    nla_put_u32(reply, MXFS_A_MOUNT_ID, sbi->mount_id) || mxfs_nl_put_state(reply, sbi) ||
	    nla_put_string(reply, MXFS_A_COUNTERS, text) || nla_put_string(reply, MXFS_A_DEVICE, sbi->opt.device))
		goto out;
	nlmsg_end(reply, nlmsg_hdr(reply));
	err = genlmsg_reply(reply, info);
	reply = NULL;
out:
	kfree_skb(reply);
	kfree(text);
	mxfs_mount_put(sbi);
	return err;
}

static int mxfs_nl_mounts_dump(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct mxfs_sb_info *sbi;
	void *head;

	while ((sbi = mxfs_mount_next(cb->args[0]))) {
		head = genlmsg_put(skb, NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq, &mxfs_genl_family, NLM_F_MULTI,
				   MXFS_CMD_VOLUME_MOUNT);
		if (!head || nla_put_u32(skb, MXFS_A_MOUNT_ID, sbi->mount_id) || mxfs_nl_put_state(skb, sbi) ||
		    nla_put_string(skb, MXFS_A_DEVICE, sbi->opt.device)) {
			if (head)
				genlmsg_cancel(skb, head);
			mxfs_mount_put(sbi);
			return skb->len ?: -EMSGSIZE;
		}
		genlmsg_end(skb, head);
		cb->args[0] = sbi->mount_id;
		mxfs_mount_put(sbi);
	}
	return skb->len;
}

#define MXFS_NL_OP(_cmd, _doit) { .cmd = (_cmd), .doit = (_doit), .flags = GENL_ADMIN_PERM }

static const struct genl_ops mxfs_genl_ops[] = {
	MXFS_NL_OP(MXFS_CMD_DAEMON_ATTACH, mxfs_nl_attach),
	MXFS_NL_OP(MXFS_CMD_DAEMON_READY, mxfs_nl_queue),
	MXFS_NL_OP(MXFS_CMD_ROLE_CHANGE, mxfs_nl_queue),
	MXFS_NL_OP(MXFS_CMD_GATE, mxfs_nl_queue),
	MXFS_NL_OP(MXFS_CMD_LEASE, mxfs_nl_lease),
	MXFS_NL_OP(MXFS_CMD_LOCK_DUMP, mxfs_nl_queue),
	MXFS_NL_OP(MXFS_CMD_VIEW, mxfs_nl_queue),
	MXFS_NL_OP(MXFS_CMD_LOCK_GRANT, mxfs_nl_queue),
	MXFS_NL_OP(MXFS_CMD_LOCK_DENY, mxfs_nl_queue),
	MXFS_NL_OP(MXFS_CMD_BAST, mxfs_nl_queue),
	MXFS_NL_OP(MXFS_CMD_CACHE_INVALIDATE, mxfs_nl_queue),
	MXFS_NL_OP(MXFS_CMD_NODE_STATUS, mxfs_nl_queue),
	MXFS_NL_OP(MXFS_CMD_RECOVERY_START, mxfs_nl_queue),
	MXFS_NL_OP(MXFS_CMD_RECOVERY_DONE, mxfs_nl_queue),
	MXFS_NL_OP(MXFS_CMD_FSOP_REQUEST, mxfs_nl_fsop),
	MXFS_NL_OP(MXFS_CMD_FSOP_REPLY, mxfs_nl_fsop),
	MXFS_NL_OP(MXFS_CMD_FSOP_SOCKET, mxfs_nl_fsop_socket),
	MXFS_NL_OP(MXFS_CMD_FENCED, mxfs_nl_fenced),
	MXFS_NL_OP(MXFS_CMD_STATUS, mxfs_nl_status),
	MXFS_NL_OP(MXFS_CMD_DONE, mxfs_nl_done_received),
	{ .cmd = MXFS_CMD_VOLUME_MOUNT, .dumpit = mxfs_nl_mounts_dump, .flags = GENL_ADMIN_PERM },
};

static struct genl_family mxfs_genl_family __ro_after_init = {
	.name = MXFS_GENL_NAME,
	.version = MXFS_GENL_VERSION,
	.maxattr = MXFS_A_MAX,
	.policy = mxfs_nl_policy,
	.ops = mxfs_genl_ops,
	.n_ops = ARRAY_SIZE(mxfs_genl_ops),
	.parallel_ops = true,
	.netnsok = false,
	.module = THIS_MODULE,
};

/* ---------------------------------------------------------------- binding, and the end of a daemon's socket */

u32 mxfs_nl_port(struct mxfs_sb_info *sbi)
{
	return READ_ONCE(sbi->nl->portid);
}

void mxfs_nl_unbind(struct mxfs_sb_info *sbi)
{
	struct mxfs_nl *nl = sbi->nl;
	struct sk_buff *skb;

	spin_lock(&nl->lock);
	WRITE_ONCE(nl->portid, 0);
	nl->session = 0;
	while ((skb = skb_dequeue(&nl->queue))) {
		atomic_long_sub(skb->len, &nl->bytes);
		atomic64_inc(&nl->dropped);
		kfree_skb(skb);
	}
	spin_unlock(&nl->lock);
	wake_up_all(&nl->room);
}

static int mxfs_nl_notify(struct notifier_block *nb, unsigned long event, void *data)
{
	struct netlink_notify *notify = data;
	struct mxfs_sb_info *sbi;
	u32 after = 0;

	if (event != NETLINK_URELEASE || notify->protocol != NETLINK_GENERIC || !net_eq(notify->net, &init_net))
		return NOTIFY_DONE;
	while ((sbi = mxfs_mount_next(after))) {
		after = sbi->mount_id;
		if (mxfs_nl_port(sbi) == notify->portid) {
			mxfs_nl_unbind(sbi);
			mxfs_super_daemon_gone(sbi);
		}
		mxfs_mount_put(sbi);
	}
	return NOTIFY_DONE;
}

static struct notifier_block mxfs_nl_notifier = { .notifier_call = mxfs_nl_notify };

void mxfs_nl_flush(struct mxfs_sb_info *sbi)
{
	flush_workqueue(sbi->nl->control);
	flush_workqueue(sbi->nl->locks);
}

int mxfs_nl_mount_init(struct mxfs_sb_info *sbi)
{
	struct mxfs_nl *nl = kzalloc(sizeof(*nl), GFP_KERNEL);
	int err = -ENOMEM;

	if (!nl)
		return -ENOMEM;
	nl->sbi = sbi;
	spin_lock_init(&nl->lock);
	skb_queue_head_init(&nl->queue);
	init_waitqueue_head(&nl->more);
	init_waitqueue_head(&nl->room);
	nl->control = alloc_ordered_workqueue("mxfs-ctl/%u", WQ_MEM_RECLAIM, sbi->mount_id);
	nl->locks = alloc_ordered_workqueue("mxfs-locks/%u", WQ_MEM_RECLAIM | WQ_HIGHPRI, sbi->mount_id);
	if (!nl->control || !nl->locks)
		goto out;
	nl->thread = kthread_run(mxfs_nl_thread, nl, "mxfs-send/%u", sbi->mount_id);
	if (IS_ERR(nl->thread)) {
		err = PTR_ERR(nl->thread);
		goto out;
	}
	sbi->nl = nl;
	return 0;
out:
	if (nl->locks)
		destroy_workqueue(nl->locks);
	if (nl->control)
		destroy_workqueue(nl->control);
	kfree(nl);
	return err;
}

/* No handler may find the mount any more. */
void mxfs_nl_mount_destroy(struct mxfs_sb_info *sbi)
{
	struct mxfs_nl *nl = sbi->nl;

	if (!nl)
		return;
	destroy_workqueue(nl->control);
	destroy_workqueue(nl->locks);
	mxfs_nl_unbind(sbi);
	send_sig(SIGKILL, nl->thread, 1);
	kthread_stop(nl->thread);
	skb_queue_purge(&nl->queue);
	sbi->nl = NULL;
	kfree(nl);
}

int mxfs_netlink_init(void)
{
	int err = genl_register_family(&mxfs_genl_family);

	if (err)
		return err;
	err = netlink_register_notifier(&mxfs_nl_notifier);
	if (err)
		genl_unregister_family(&mxfs_genl_family);
	return err;
}

void mxfs_netlink_exit(void)
{
	netlink_unregister_notifier(&mxfs_nl_notifier);
	genl_unregister_family(&mxfs_genl_family);
}
