// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: fsops straight between two kernels.
 *
 * The daemons connect and authenticate each other, then give the connection away (MXFS_CMD_FSOP_SOCKET). From then on requests and
 * replies travel by it, without a process on either side in between:
 *
 *	mxfs_remote.c ──► mxfs_sock_send ──► TCP ──► receive work of the peer's ──► mxfs_exec_receive
 *	mxfs_remote_receive ◄── receive work ◄── TCP ◄── mxfs_sock_send ◄── mxfs_exec.c
 *
 * It is a short cut, never needed: what cannot be sent by it (no connection, a full one, a long payload) goes by the daemons, with the
 * same number, and who executes knows a request by that. A connection that breaks may take with it what was on its way, in either
 * direction; the member then sends everything that is pending again, and once more every MXFS_FSOP_RETRY_MS for a while
 * (mxfs_remote_in_doubt), since the other side may notice later.
 *
 * Limits: one connection for each node (a new one replaces it); a payload of MXFS_FSOP_FRAME_MAX; MXFS_SOCK_BUFFER bytes on
 * their way. Nobody waits for room.
 *
 * Trust: what comes is from a node that knows the cluster's key, as what the daemons forward; every length is checked before it is used.
 *
 * Known weakness: a connection that broke while that of the daemons lives is not made again before theirs is.
 */
#include <linux/file.h>
#include <linux/net.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/tcp.h>
#include <net/sock.h>
#include <net/tcp.h>

#include "mxfs.h"

#define MXFS_SOCK_BUFFER (4 * 1024 * 1024)

static_assert(sizeof(struct mxfs_fsop_frame) == 24);

struct mxfs_sock {
	struct list_head list;
	refcount_t ref; /* list, receive work, who sends */
	struct mxfs_sb_info *sbi;
	u32 node, incarnation;
	struct file *file;
	struct socket *sock;
	struct mutex send_mutex;
	bool broken;
	struct work_struct work;
	u8 *buf;
};

struct mxfs_socks {
	spinlock_t lock;
	struct list_head list;
	bool stopping;
	struct workqueue_struct *wq;
};

static void peer_put(struct mxfs_sock *peer)
{
	if (!refcount_dec_and_test(&peer->ref))
		return;
	fput(peer->file);
	kvfree(peer->buf);
	kfree(peer);
}

/* Its receive work ends by this, and everything sent by it from now on fails. */
static void peer_break(struct mxfs_sock *peer)
{
	WRITE_ONCE(peer->broken, true);
	kernel_sock_shutdown(peer->sock, SHUT_RDWR);
}

static struct mxfs_sock *peer_find(struct mxfs_socks *socks, u32 node)
{
	struct mxfs_sock *peer, *found = NULL;

	spin_lock(&socks->lock);
	list_for_each_entry(peer, &socks->list, list) {
		if (peer->node == node && !READ_ONCE(peer->broken)) {
			refcount_inc(&peer->ref);
			found = peer;
			break;
		}
	}
	spin_unlock(&socks->lock);
	return found;
}

/* ---------------------------------------------------------------- outwards */

int mxfs_sock_send(struct mxfs_sb_info *sbi, u32 node, u32 kind, u64 id, const void *payload, u32 len)
{
	struct mxfs_fsop_frame frame = {
		.magic = cpu_to_le32(MXFS_FSOP_FRAME_MAGIC),
		.kind = cpu_to_le32(kind),
		.id = cpu_to_le64(id),
		.length = cpu_to_le32(len),
	};
	struct kvec vec[2] = { { &frame, sizeof(frame) }, { (void *)payload, len } };
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL };
	struct mxfs_sock *peer;
	unsigned int nofs;
	int sent;

	if (!sbi->socks || !len || len > MXFS_FSOP_FRAME_MAX)
		return -EMSGSIZE;
	peer = peer_find(sbi->socks, node);
	if (!peer)
		return -ENOTCONN;
	nofs = memalloc_nofs_save();
	mutex_lock(&peer->send_mutex);
	sent = READ_ONCE(peer->broken) ? -EPIPE : kernel_sendmsg(peer->sock, &msg, vec, 2, sizeof(frame) + len);
	/* Half a frame cannot be taken back. */
	if (sent != (int)(sizeof(frame) + len) && sent != -EAGAIN)
		peer_break(peer);
	mutex_unlock(&peer->send_mutex);
	memalloc_nofs_restore(nofs);
	peer_put(peer);
	if (sent < 0)
		return sent;
	if (sent != (int)(sizeof(frame) + len))
		return -EPIPE;
	mxfs_count(sbi, MXFS_COUNT_SOCK_OUT);
	return 0;
}

/* ---------------------------------------------------------------- inwards */

static int receive_bytes(struct mxfs_sock *peer, void *to, size_t len)
{
	struct kvec vec = { to, len };
	struct msghdr msg = {};
	int got = kernel_recvmsg(peer->sock, &msg, &vec, 1, len, MSG_WAITALL);

	return got == (int)len ? 0 : got < 0 ? got : -ECONNRESET;
}

static int receive_frame(struct mxfs_sock *peer)
{
	struct mxfs_sb_info *sbi = peer->sbi;
	struct mxfs_fsop_frame frame;
	u32 len, kind;
	int err;

	err = receive_bytes(peer, &frame, sizeof(frame));
	if (err)
		return err;
	len = le32_to_cpu(frame.length);
	kind = le32_to_cpu(frame.kind);
	if (le32_to_cpu(frame.magic) != MXFS_FSOP_FRAME_MAGIC || !len || len > MXFS_FSOP_FRAME_MAX ||
	    (kind != MXFS_FRAME_REQUEST && kind != MXFS_FRAME_REPLY))
		return -EPROTO;
	err = receive_bytes(peer, peer->buf, len);
	if (err)
		return err;
	mxfs_count(sbi, MXFS_COUNT_SOCK_IN);
	if (kind == MXFS_FRAME_REQUEST)
		mxfs_exec_receive(sbi, peer->node, le64_to_cpu(frame.id), 0, len, peer->buf, len); /* refusals are answered */
	else
		mxfs_remote_receive(sbi, le64_to_cpu(frame.id), 0, len, peer->buf, len);
	return 0;
}

static void receive_work(struct work_struct *work)
{
	struct mxfs_sock *peer = container_of(work, struct mxfs_sock, work);
	struct mxfs_sb_info *sbi = peer->sbi;
	struct mxfs_socks *socks = sbi->socks;
	bool stopping;
	int err;

	do
		err = receive_frame(peer);
	while (!err);
	peer_break(peer);
	spin_lock(&socks->lock);
	stopping = socks->stopping;
	list_del_init(&peer->list);
	spin_unlock(&socks->lock);
	if (err == -EPROTO)
		mxfs_err(sbi, "node %08x sends what is no fsop on its connection: it is closed, fsops go by the daemons", peer->node);
	else if (!stopping)
		mxfs_info(sbi, "the connection for fsops with node %08x has ended (%d)", peer->node, err);
	if (!stopping)
		mxfs_remote_in_doubt(sbi);
	peer_put(peer); /* the list's */
	peer_put(peer);
}

/* ---------------------------------------------------------------- connections come and go */

/*
 * For lockdep: the socket came from user space, but nobody there uses it any more, and what is sent here lies in the kernel.
 * Other sockets are locked around copies from user memory, and a fault on a mapping of ours sends by this one: as one class the two
 * would make a circle that cannot be. Not held by anybody: it is established, and its daemon has left it to us.
 */
static void sock_set_class(struct sock *sk)
{
	static struct lock_class_key key;

	local_bh_disable();
	spin_lock(&sk->sk_lock.slock);
	if (!sock_owned_by_user_nocheck(sk))
		lockdep_init_map(&sk->sk_lock.dep_map, "sk_lock-mxfs", &key, 0);
	spin_unlock(&sk->sk_lock.slock);
	local_bh_enable();
}

int mxfs_sock_add(struct mxfs_sb_info *sbi, u32 node, u32 incarnation, u32 fd)
{
	struct mxfs_socks *socks = sbi->socks;
	struct mxfs_sock *peer, *old;
	struct sock *sk;
	int err = -ENOMEM;

	peer = kzalloc(sizeof(*peer), GFP_KERNEL);
	if (!peer)
		return -ENOMEM;
	refcount_set(&peer->ref, 2);
	peer->sbi = sbi;
	peer->node = node;
	peer->incarnation = incarnation;
	mutex_init(&peer->send_mutex);
	INIT_WORK(&peer->work, receive_work);
	peer->buf = kvmalloc(MXFS_FSOP_FRAME_MAX, GFP_KERNEL);
	if (!peer->buf)
		goto out_free;
	err = -EBADF;
	peer->file = fget(fd);
	if (!peer->file)
		goto out_free;
	peer->sock = sock_from_file(peer->file);
	err = -ENOTSOCK;
	if (!peer->sock)
		goto out_fput;
	sk = peer->sock->sk;
	err = -EPROTONOSUPPORT;
	if (sk->sk_protocol != IPPROTO_TCP || sk->sk_type != SOCK_STREAM || sk->sk_state != TCP_ESTABLISHED)
		goto out_fput;
	sock_set_class(sk);
	tcp_sock_set_nodelay(sk);
	lock_sock(sk);
	sk->sk_allocation = GFP_NOFS; /* write-back and reclaim send by it */
	sk->sk_userlocks |= SOCK_SNDBUF_LOCK;
	WRITE_ONCE(sk->sk_sndbuf, MXFS_SOCK_BUFFER);
	release_sock(sk);

	old = peer_find(socks, node);
	spin_lock(&socks->lock);
	err = socks->stopping ? -ESHUTDOWN : 0;
	if (!err)
		list_add(&peer->list, &socks->list); /* before an older one */
	spin_unlock(&socks->lock);
	if (!err)
		queue_work(socks->wq, &peer->work);
	if (old && !err)
		peer_break(old);
	if (old)
		peer_put(old);
	if (!err)
		return 0;
out_fput:
	fput(peer->file);
out_free:
	kvfree(peer->buf);
	kfree(peer);
	return err;
}

void mxfs_sock_drop(struct mxfs_sb_info *sbi, u32 node, u32 incarnation)
{
	struct mxfs_sock *peer = sbi->socks ? peer_find(sbi->socks, node) : NULL;

	if (!peer)
		return;
	if (peer->incarnation <= incarnation)
		peer_break(peer);
	peer_put(peer);
}

int mxfs_socks_init(struct mxfs_sb_info *sbi)
{
	struct mxfs_socks *socks = kzalloc(sizeof(*socks), GFP_KERNEL);

	if (!socks)
		return -ENOMEM;
	spin_lock_init(&socks->lock);
	INIT_LIST_HEAD(&socks->list);
	socks->wq = alloc_workqueue("mxfs-sock/%u", WQ_UNBOUND | WQ_HIGHPRI | WQ_MEM_RECLAIM, 0, sbi->mount_id);
	if (!socks->wq) {
		kfree(socks);
		return -ENOMEM;
	}
	sbi->socks = socks;
	return 0;
}

/* Returns when nothing is received any more. Executor and remote back end are still there, and may try to send. */
void mxfs_socks_stop(struct mxfs_sb_info *sbi)
{
	struct mxfs_socks *socks = sbi->socks;
	struct mxfs_sock *peer;

	if (!socks)
		return;
	spin_lock(&socks->lock);
	socks->stopping = true;
	spin_unlock(&socks->lock);
	for (;;) {
		spin_lock(&socks->lock);
		peer = NULL;
		list_for_each_entry(peer, &socks->list, list) {
			if (!READ_ONCE(peer->broken)) {
				refcount_inc(&peer->ref);
				break;
			}
		}
		if (list_entry_is_head(peer, &socks->list, list))
			peer = NULL;
		spin_unlock(&socks->lock);
		if (!peer)
			break;
		peer_break(peer);
		peer_put(peer);
	}
	flush_workqueue(socks->wq);
}

void mxfs_socks_destroy(struct mxfs_sb_info *sbi)
{
	struct mxfs_socks *socks = sbi->socks;

	if (!socks)
		return;
	destroy_workqueue(socks->wq);
	sbi->socks = NULL;
	kfree(socks);
}
