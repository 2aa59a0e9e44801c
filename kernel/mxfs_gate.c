// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: the gate, the lease, the end.
 *
 * Responsible for: letting operations in only while the gate is open, the lease runs and the mount is not
 * fenced; telling when everybody has left.
 *
 * Protocol: a percpu_ref counts who is inside (as blk-mq counts who uses a queue): entering is one tryget on a live
 * reference, shutting kills it and waits for zero, opening resurrects it. Shuts are counted (the daemon's,
 * a recovery's); the gate starts shut. The lease is a CLOCK_BOOTTIME time in ms that the daemon moves on;
 * behind it nobody passes, and mappings are zapped when it is reached; a daemon that then does nothing for long is
 * started again. Fenced is final.
 *
 * Known weakness: an operation that entered just before the lease's end may still be served from the cache
 * after it; others wait lease + 10 % for that. A fault whose page is already found when mappings are zapped
 * installs it afterwards. The zap timer does not run during a suspend, but the check on entry sees that time.
 */
#include "mxfs.h"

#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/timekeeping.h>
#include <net/netlink.h>

#define MXFS_GATE_KILLABLE (TASK_KILLABLE | TASK_FREEZABLE_UNSAFE)

static struct mxfs_sb_info *mxfs_gate_sbi(struct mxfs_gate *gate)
{
	return container_of(gate, struct mxfs_sb_info, gate);
}

static u64 mxfs_gate_now_ms(void)
{
	return div_u64(ktime_get_boottime_ns(), NSEC_PER_MSEC);
}

/* Asked several times in each operation: by the clock of the last tick, which is behind by one tick at most. */
bool mxfs_gate_lease_valid(struct mxfs_sb_info *sbi)
{
	return ktime_to_ns(ktime_get_coarse_boottime()) < READ_ONCE(sbi->gate.lease_until_ns);
}

static void mxfs_gate_drained(struct percpu_ref *ref)
{
	struct mxfs_gate *gate = container_of(ref, struct mxfs_gate, inside);

	wake_up_all(&gate->wait);
}

/* Takes the pages of every inode out of user space's page tables; the pages stay cached. */
static void mxfs_gate_zap_mappings(struct super_block *sb)
{
	struct inode *inode, *previous = NULL;

	spin_lock(&sb->s_inode_list_lock);
	list_for_each_entry(inode, &sb->s_inodes, i_sb_list) {
		spin_lock(&inode->i_lock);
		if ((inode->i_state & (I_FREEING | I_WILL_FREE | I_NEW)) || !mapping_mapped(inode->i_mapping)) {
			spin_unlock(&inode->i_lock);
			continue;
		}
		__iget(inode);
		spin_unlock(&inode->i_lock);
		spin_unlock(&sb->s_inode_list_lock);
		unmap_mapping_range(inode->i_mapping, 0, 0, 0);
		iput(previous);
		previous = inode;
		cond_resched();
		spin_lock(&sb->s_inode_list_lock);
	}
	spin_unlock(&sb->s_inode_list_lock);
	iput(previous);
}

static void mxfs_gate_zap(struct work_struct *work)
{
	struct mxfs_gate *gate = container_of(to_delayed_work(work), struct mxfs_gate, zap);
	struct mxfs_sb_info *sbi = mxfs_gate_sbi(gate);

	if (mxfs_gate_lease_valid(sbi) || mxfs_gate_fenced(gate) || READ_ONCE(sbi->stopping))
		return;
	if (READ_ONCE(gate->overdue)) {
		mxfs_super_daemon_stuck(sbi);
		return;
	}
	WRITE_ONCE(gate->overdue, true);
	mxfs_warn(sbi, "the lease has run out: operations wait until it is renewed");
	queue_delayed_work(system_unbound_wq, &gate->zap, msecs_to_jiffies(mxfs_super_patience_ms(sbi)));
	/* s_umount: an unmount must not meet the inode pinned here; it cancels this work when it has s_umount. */
	if (down_read_trylock(&sbi->sb->s_umount)) {
		mxfs_gate_zap_mappings(sbi->sb);
		up_read(&sbi->sb->s_umount);
	}
}

static void mxfs_gate_fence_work(struct work_struct *work)
{
	struct mxfs_gate *gate = container_of(work, struct mxfs_gate, fence_work);
	struct mxfs_sb_info *sbi = mxfs_gate_sbi(gate);
	struct sk_buff *skb;

	mutex_lock(&sbi->role_mutex);
	if (sbi->lower_mnt)
		mxfs_lower_shutdown(sbi);
	mutex_unlock(&sbi->role_mutex);

	skb = mxfs_nl_new(sbi, MXFS_CMD_VOLUME_ERROR, nla_total_size(4) + nla_total_size(sizeof(gate->reason)),
			  GFP_KERNEL);
	if (skb) {
		if (nla_put_u32(skb, MXFS_A_ERROR, EIO) || nla_put_string(skb, MXFS_A_MESSAGE, gate->reason))
			kfree_skb(skb);
		else
			mxfs_nl_send(sbi, skb);
	}

	/* An unmount evicts all inodes anyway, and must not find them pinned. */
	if (!READ_ONCE(sbi->stopping) && down_read_trylock(&sbi->sb->s_umount)) {
		mxfs_cache_invalidate(sbi, 0);
		mxfs_gate_zap_mappings(sbi->sb);
		up_read(&sbi->sb->s_umount);
	}
}

int mxfs_gate_init(struct mxfs_gate *gate)
{
	init_waitqueue_head(&gate->wait);
	mutex_init(&gate->mutex);
	atomic_set(&gate->shut, 1);
	atomic_set(&gate->fenced, 0);
	atomic64_set(&gate->lease_until, 0);
	gate->force = false;
	gate->overdue = false;
	strscpy(gate->reason, "start-up", sizeof(gate->reason));
	INIT_DELAYED_WORK(&gate->zap, mxfs_gate_zap);
	INIT_WORK(&gate->fence_work, mxfs_gate_fence_work);
	return percpu_ref_init(&gate->inside, mxfs_gate_drained, PERCPU_REF_INIT_DEAD, GFP_KERNEL);
}

void mxfs_gate_destroy(struct mxfs_gate *gate)
{
	cancel_delayed_work_sync(&gate->zap);
	cancel_work_sync(&gate->fence_work);
	percpu_ref_exit(&gate->inside);
}

static bool mxfs_gate_passable(struct mxfs_sb_info *sbi)
{
	return mxfs_gate_fenced(&sbi->gate) || (!atomic_read(&sbi->gate.shut) && mxfs_gate_lease_valid(sbi));
}

int mxfs_gate_try_enter(struct mxfs_sb_info *sbi)
{
	struct mxfs_gate *gate = &sbi->gate;

	if (unlikely(mxfs_gate_fenced(gate)))
		return -EIO;
	if (unlikely(!percpu_ref_tryget_live(&gate->inside)))
		return -EAGAIN;
	if (likely(mxfs_gate_lease_valid(sbi) && !mxfs_gate_fenced(gate)))
		return 0;
	percpu_ref_put(&gate->inside);
	return mxfs_gate_fenced(gate) ? -EIO : -EAGAIN;
}

static int mxfs_gate_enter_state(struct mxfs_sb_info *sbi, unsigned int state)
{
	int err;

	for (;;) {
		err = mxfs_gate_try_enter(sbi);
		if (likely(err != -EAGAIN))
			return err;
		mxfs_count(sbi, atomic_read(&sbi->gate.shut) ? MXFS_COUNT_GATE_WAIT : MXFS_COUNT_LEASE_WAIT);
		err = wait_event_state(sbi->gate.wait, mxfs_gate_passable(sbi), state);
		if (err)
			return err;
	}
}

int mxfs_gate_enter(struct mxfs_sb_info *sbi)
{
	return mxfs_gate_enter_state(sbi, MXFS_GATE_KILLABLE);
}

int mxfs_gate_enter_wait(struct mxfs_sb_info *sbi)
{
	return mxfs_gate_enter_state(sbi, TASK_UNINTERRUPTIBLE | TASK_FREEZABLE_UNSAFE);
}

void mxfs_gate_leave(struct mxfs_sb_info *sbi)
{
	percpu_ref_put(&sbi->gate.inside);
}

int mxfs_gate_shut(struct mxfs_sb_info *sbi, const char *reason, bool force)
{
	struct mxfs_gate *gate = &sbi->gate;

	mutex_lock(&gate->mutex);
	if (atomic_inc_return(&gate->shut) == 1) {
		WRITE_ONCE(gate->force, false);
		if (!mxfs_gate_fenced(gate))
			strscpy(gate->reason, reason && *reason ? reason : "no reason given", sizeof(gate->reason));
		percpu_ref_kill(&gate->inside);
	}
	mutex_unlock(&gate->mutex);
	if (!force)
		wait_event(gate->wait, percpu_ref_is_zero(&gate->inside) || READ_ONCE(gate->force));
	return 0;
}

void mxfs_gate_force(struct mxfs_sb_info *sbi)
{
	if (atomic_read(&sbi->gate.shut)) {
		WRITE_ONCE(sbi->gate.force, true);
		wake_up_all(&sbi->gate.wait);
	}
}

void mxfs_gate_open(struct mxfs_sb_info *sbi)
{
	struct mxfs_gate *gate = &sbi->gate;

	mutex_lock(&gate->mutex);
	if (!WARN_ON_ONCE(atomic_read(&gate->shut) <= 0)) {
		if (atomic_read(&gate->shut) == 1)
			percpu_ref_resurrect(&gate->inside);
		atomic_dec(&gate->shut);
	}
	mutex_unlock(&gate->mutex);
	wake_up_all(&gate->wait);
}

void mxfs_gate_lease(struct mxfs_sb_info *sbi, u64 until_ms)
{
	struct mxfs_gate *gate = &sbi->gate;
	u64 now = mxfs_gate_now_ms(), left = until_ms > now ? until_ms - now : 0;

	atomic64_set(&gate->lease_until, until_ms);
	until_ms = min_t(u64, until_ms, U64_MAX / NSEC_PER_MSEC / 2);
	WRITE_ONCE(gate->lease_until_ns, max_t(u64, until_ms * NSEC_PER_MSEC, TICK_NSEC) - TICK_NSEC);
	WRITE_ONCE(gate->overdue, false);
	wake_up_all(&gate->wait);
	if (!READ_ONCE(sbi->stopping))
		mod_delayed_work(system_unbound_wq, &gate->zap,
				 msecs_to_jiffies(min_t(u64, left, 86400000)) + 1);
}

void mxfs_fence(struct mxfs_sb_info *sbi, const char *why)
{
	struct mxfs_gate *gate = &sbi->gate;

	if (atomic_xchg(&gate->fenced, 1))
		return;
	strscpy(gate->reason, why && *why ? why : "no reason given", sizeof(gate->reason));
	mxfs_err(sbi, "fenced, every operation fails with EIO until this mount is unmounted: %s", gate->reason);
	if (sbi->kstate != MXFS_KSTATE_STOPPING)
		WRITE_ONCE(sbi->kstate, MXFS_KSTATE_FENCED);
	wake_up_all(&gate->wait);
	mxfs_dlm_fence(sbi);
	mxfs_remote_fail(sbi, -EIO);
	queue_work(system_unbound_wq, &gate->fence_work);
}
