// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: module init and exit.
 *
 * Responsible for: the order in which the parts come up (inode cache, invalidation, netlink family, file
 * system type) and the reverse on exit, and the names of the counters.
 *
 * Protocol: the type is registered last, so that no mount meets a part that is not there yet. A mount holds
 * a reference on the module, so that exit finds no mount; the netlink family goes after the type, since an
 * unmount needs it to the end.
 *
 * Known weakness: none known.
 */
#include "mxfs.h"

#include <linux/genetlink.h>
#include <linux/module.h>

const char *const mxfs_counter_names[MXFS_COUNT_MAX] = {
	[MXFS_COUNT_LOCK_HIT] = "lock_hit",
	[MXFS_COUNT_LOCK_ASK] = "lock_ask",
	[MXFS_COUNT_BAST] = "bast",
	[MXFS_COUNT_DEMOTE] = "demote",
	[MXFS_COUNT_FSOP_SENT] = "fsop_sent",
	[MXFS_COUNT_FSOP_RESENT] = "fsop_resent",
	[MXFS_COUNT_FSOP_EXECUTED] = "fsop_executed",
	[MXFS_COUNT_FSOP_REPLAYED] = "fsop_replayed",
	[MXFS_COUNT_FSOP_EARLY] = "fsop_early",
	[MXFS_COUNT_SOCK_OUT] = "sock_out",
	[MXFS_COUNT_SOCK_IN] = "sock_in",
	[MXFS_COUNT_COMMIT_ASK] = "commit_ask",
	[MXFS_COUNT_REDONE] = "redone",
	[MXFS_COUNT_GATE_WAIT] = "gate_wait",
	[MXFS_COUNT_LEASE_WAIT] = "lease_wait",
	[MXFS_COUNT_DAEMON_STARTS] = "daemon_starts",
	[MXFS_COUNT_NL_IN] = "netlink_in",
	[MXFS_COUNT_NL_OUT] = "netlink_out",
	[MXFS_COUNT_REVALIDATE_HIT] = "revalidate_hit",
	[MXFS_COUNT_REVALIDATE_MISS] = "revalidate_miss",
	[MXFS_COUNT_INVALIDATE] = "invalidate",
	[MXFS_COUNT_SOLO_GRANT] = "solo_grants",
	[MXFS_COUNT_COVERED] = "covered",
	[MXFS_COUNT_COVER_TOLD] = "cover_told",
	[MXFS_COUNT_COVER_FULL] = "cover_full",
	[MXFS_COUNT_ASK_AHEAD] = "ask_ahead",
	[MXFS_COUNT_LOCK_BATCH] = "lock_batches",
	[MXFS_COUNT_LOCK_ITEM] = "lock_items",
	[MXFS_COUNT_CACHE_EVICTED] = "cache_evicted",
	[MXFS_COUNT_MAP_ASK] = "map_ask",
	[MXFS_COUNT_MAP_COMMIT] = "map_commit",
	[MXFS_COUNT_DISK_READ] = "disk_read",
	[MXFS_COUNT_DISK_WRITE] = "disk_write",
	[MXFS_COUNT_HOLDER_READ] = "holder_read",
	[MXFS_COUNT_HOLDER_WRITE] = "holder_write",
	[MXFS_COUNT_DISK_ERROR] = "disk_error",
	[MXFS_COUNT_RANGE_IO] = "range_io",
	[MXFS_COUNT_AIO] = "direct_async",
	[MXFS_COUNT_RANGE_REFUSED] = "range_refused",
	[MXFS_COUNT_AHEAD_FETCH] = "ahead_fetch",
	[MXFS_COUNT_AHEAD_NAME] = "ahead_name",
	[MXFS_COUNT_AHEAD_ATTR] = "ahead_attr",
	[MXFS_COUNT_AHEAD_MAP] = "ahead_map",
	[MXFS_COUNT_AHEAD_GIVEN] = "ahead_given",
	[MXFS_COUNT_COVER_LOWERED] = "cover_lowered",
	[MXFS_COUNT_COVER_DROPPED] = "cover_dropped",
};

static int __init mxfs_init(void)
{
	int err;

	static_assert(sizeof(struct mxfs_resource) == MXFS_RESOURCE_SIZE);
	static_assert(sizeof(struct mxfs_lock_entry) == MXFS_LOCK_ENTRY_SIZE);

	err = mxfs_inode_cache_init();
	if (err)
		return err;
	err = mxfs_direct_init();
	if (err)
		goto out_inode_cache;
	err = mxfs_aio_init();
	if (err)
		goto out_direct;
	err = mxfs_cache_init();
	if (err)
		goto out_aio;
	err = mxfs_netlink_init();
	if (err) {
		pr_err("mxfs: cannot register the generic netlink family \"%s\": error %d\n", MXFS_GENL_NAME, err);
		goto out_cache;
	}
	err = register_filesystem(&mxfs_fs_type);
	if (err) {
		pr_err("mxfs: cannot register the file system type: error %d\n", err);
		goto out_netlink;
	}
	return 0;

out_netlink:
	mxfs_netlink_exit();
out_cache:
	mxfs_cache_exit();
out_aio:
	mxfs_aio_exit();
out_direct:
	mxfs_direct_exit();
out_inode_cache:
	mxfs_inode_cache_exit();
	return err;
}

static void __exit mxfs_exit(void)
{
	unregister_filesystem(&mxfs_fs_type);
	mxfs_netlink_exit();
	mxfs_cache_exit();
	/* Inodes are freed by RCU call-backs. */
	rcu_barrier();
	mxfs_inode_cache_exit();
	mxfs_aio_exit();
	mxfs_direct_exit();
}

module_init(mxfs_init);
module_exit(mxfs_exit);

MODULE_DESCRIPTION("MXFS: one XFS on a shared disk, mounted by many hosts at once");
MODULE_LICENSE("GPL");
MODULE_VERSION("1");
MODULE_ALIAS_FS("mxfs");
MODULE_ALIAS_GENL_FAMILY(MXFS_GENL_NAME);
