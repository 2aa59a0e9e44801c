// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: mount, options, unmount, role changes, and the life of the daemon.
 *
 * Responsible for: everything that happens once in a mount. Reading top to bottom: options; the XFS on the
 * device; the list of mounts; the daemon (spawned, watched, started again); role changes; gate and view
 * commands; mount (mxfs_get_tree); unmount (mxfs_kill_sb).
 *
 * Protocol: docs/interfaces.md section 3. The mount spawns /usr/sbin/mxfsd and waits for DAEMON_READY; in
 * between the daemon attaches and changes the role. The daemon is watched by its struct pid (taken in the child before exec,
 * or at ATTACH): its exit wakes gone_work, as does the release of its bound socket. Unmount: local inodes are flushed and
 * evicted first, while the gate and the executor go on; then VOLUME_UNMOUNT, during which the daemon changes the role to NONE;
 * without a daemon the kernel does that by itself.
 *
 * The type needs no device to the VFS: on the holder the hidden XFS claims the disk, otherwise mxfs claims it itself, so
 * that nobody mounts the XFS beside it.
 *
 * Known weakness: mxfsd must not fork itself away: the mount takes the exit of the process it started for the
 * daemon's end. DIR is not known when the daemon starts ("--mountpoint -").
 */
#include "mxfs.h"

#include <linux/backing-dev.h>
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/fs_parser.h>
#include <linux/genetlink.h>
#include <linux/module.h>
#include <linux/namei.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/umh.h>
#include <asm/unaligned.h>
#include <net/netlink.h>

#define MXFS_DAEMON_PATH "/usr/sbin/mxfsd"
#define MXFS_SUPER_MAGIC 0x4D584653
#define MXFS_RESTARTS_MAX 5	 /* within MXFS_RESTARTS_MS */
#define MXFS_RESTARTS_MS 60000
#define MXFS_EXIT_MS 10000	 /* how long a daemon that is done may take to exit */
#define MXFS_KILL_MS 5000	 /* and one that was killed */
#define MXFS_FAILED_MS 10000	 /* how long a daemon may take to undo a mount that failed */

struct mxfs_daemon {
	struct mxfs_sb_info *sbi;
	spinlock_t lock;	       /* pid, watched */
	struct pid *pid;	       /* of the process spawned or attached; NULL: none */
	struct pid *child;	       /* set by the child before exec */
	wait_queue_entry_t exit_entry; /* in pid->wait_pidfd */
	struct work_struct gone_work;
	struct delayed_work silent_work; /* a daemon that was started again, and says nothing */
	struct delayed_work late_work;
	struct workqueue_struct *wq;
	wait_queue_head_t wait;	       /* ready, the daemon's end, DONE of the unmount */
	unsigned long starts[MXFS_RESTARTS_MAX]; /* jiffies of the last restarts */
	unsigned int start_count;
	bool attached;		       /* since it was spawned */
	bool ready, start_failed, unmount_done;
	int error;
	char message[512];
};

/* ---------------------------------------------------------------- options */

enum { MXFS_PROFILE_DEFAULT = 1, MXFS_PROFILE_FAST };

enum {
	Opt_source, Opt_iface, Opt_port, Opt_multicast, Opt_broadcast, Opt_peer, Opt_fence, Opt_config, Opt_heartbeat,
	Opt_renew, Opt_lease, Opt_node_timeout, Opt_lock_wait, Opt_bast, Opt_startup, Opt_drain, Opt_lock_records,
	Opt_profile, Opt_encrypt, Opt_persist,
};

static const struct fs_parameter_spec mxfs_parameters[] = {
	fsparam_string("source", Opt_source),
	fsparam_string("iface", Opt_iface),
	fsparam_string("port", Opt_port),
	fsparam_string("multicast", Opt_multicast),
	fsparam_string("broadcast", Opt_broadcast),
	fsparam_string("peer", Opt_peer),
	fsparam_string("fence", Opt_fence),
	fsparam_string("encrypt", Opt_encrypt),
	fsparam_string("config", Opt_config),
	fsparam_string("heartbeat", Opt_heartbeat),
	fsparam_string("renew", Opt_renew),
	fsparam_string("lease", Opt_lease),
	fsparam_string("node_timeout", Opt_node_timeout),
	fsparam_string("lock_wait", Opt_lock_wait),
	fsparam_string("bast", Opt_bast),
	fsparam_string("startup", Opt_startup),
	fsparam_string("drain", Opt_drain),
	fsparam_string("lock_records", Opt_lock_records),
	fsparam_string("profile", Opt_profile),
	fsparam_string("persist", Opt_persist),
	{}
};

/* Options that are numbers: name, unit, where they are kept, limits, default, the daemon's argument. */
struct mxfs_number {
	int opt;
	const char *name, *unit, *argument;
	size_t offset;
	unsigned int min, max, fallback;
};

#define MXFS_NUMBER(_opt, _name, _unit, _argument, _field, _min, _max, _fallback)                                        \
	{ .opt = (_opt), .name = (_name), .unit = (_unit), .argument = (_argument),                                       \
	  .offset = offsetof(struct mxfs_options, _field), .min = (_min), .max = (_max), .fallback = (_fallback) }

static const struct mxfs_number mxfs_numbers[] = {
	MXFS_NUMBER(Opt_port, "port", "", "--port", port, 1, 65535, MXFS_PORT_DEFAULT),
	MXFS_NUMBER(Opt_heartbeat, "heartbeat", " ms", "--heartbeat-ms", heartbeat_ms, 50, 600000, MXFS_HEARTBEAT_MS_DEFAULT),
	MXFS_NUMBER(Opt_renew, "renew", " ms", "--renew-ms", renew_ms, 50, 600000, MXFS_LEASE_RENEW_MS_DEFAULT),
	MXFS_NUMBER(Opt_lease, "lease", " ms", "--lease-ms", lease_ms, 100, 3600000, MXFS_LEASE_MS_DEFAULT),
	MXFS_NUMBER(Opt_node_timeout, "node_timeout", " ms", "--node-timeout-ms", node_timeout_ms, 200, 3600000,
		    MXFS_NODE_TIMEOUT_MS_DEFAULT),
	MXFS_NUMBER(Opt_lock_wait, "lock_wait", " ms", "--lock-wait-ms", lock_wait_ms, 100, 3600000,
		    MXFS_LOCK_WAIT_MS_DEFAULT),
	MXFS_NUMBER(Opt_bast, "bast", " ms", "--bast-ms", bast_ms, 100, 3600000, MXFS_BAST_MS_DEFAULT),
	MXFS_NUMBER(Opt_startup, "startup", " ms", "--startup-ms", startup_ms, 1000, 3600000, MXFS_STARTUP_MS_DEFAULT),
	MXFS_NUMBER(Opt_drain, "drain", " ms", "--drain-ms", drain_ms, 100, 600000, MXFS_DRAIN_MS_DEFAULT),
	MXFS_NUMBER(Opt_lock_records, "lock_records", "", "--lock-records", lock_records, 1024, 16777216,
		    MXFS_DISK_LOCK_RECORD_COUNT_DEFAULT),
};

static unsigned int *mxfs_number_of(struct mxfs_options *opt, const struct mxfs_number *number)
{
	return (void *)opt + number->offset;
}

static void mxfs_options_free(struct mxfs_options *opt)
{
	kfree(opt->device);
	kfree(opt->iface);
	kfree(opt->multicast);
	kfree(opt->broadcast);
	kfree(opt->peers);
	kfree(opt->config);
	kfree(opt->encrypt);
	kfree(opt->persist);
	memset(opt, 0, sizeof(*opt));
}

static int mxfs_parse_number(struct fs_context *fc, struct mxfs_options *opt, int which, const char *text)
{
	const struct mxfs_number *number;
	unsigned int value;

	for (number = mxfs_numbers; number < mxfs_numbers + ARRAY_SIZE(mxfs_numbers); number++) {
		if (number->opt != which)
			continue;
		if (kstrtouint(text, 10, &value) || value < number->min || value > number->max)
			return invalf(fc, "mxfs: %s=%s: expected a number from %u to %u%s (default %u)", number->name, text,
				      number->min, number->max, number->unit, number->fallback);
		*mxfs_number_of(opt, number) = value;
		return 0;
	}
	return -ENOPARAM;
}

static bool mxfs_is_address(const char *text)
{
	return *text && strlen(text) < 64 && strspn(text, "0123456789abcdefABCDEF.:%[]") == strlen(text);
}

/* "a:b" and repeated peer= make "a,b"; an IPv6 address stands in brackets. */
static int mxfs_parse_peers(struct fs_context *fc, struct mxfs_options *opt, const char *text)
{
	size_t len = strlen(text), i;
	char *peers, *added;
	bool inside = false;

	if (!len || strspn(text, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-_:[]%") != len)
		return invalf(fc, "mxfs: peer=%s: expected addresses or host names, separated by ':' (IPv6 in [])", text);
	peers = kasprintf(GFP_KERNEL, "%s%s%s", opt->peers ?: "", opt->peers ? "," : "", text);
	if (!peers)
		return -ENOMEM;
	if (strlen(peers) > 2048) {
		kfree(peers);
		return invalf(fc, "mxfs: peer: more than 2048 characters of addresses");
	}
	added = peers + strlen(peers) - len;
	for (i = 0; i < len; i++) {
		if (added[i] == '[')
			inside = true;
		else if (added[i] == ']')
			inside = false;
		else if (added[i] == ':' && !inside)
			added[i] = ',';
	}
	kfree(opt->peers);
	opt->peers = peers;
	return 0;
}

static int mxfs_parse_param(struct fs_context *fc, struct fs_parameter *param)
{
	struct mxfs_options *opt = fc->fs_private;
	struct fs_parse_result result;
	char **text = NULL;
	int which;

	which = fs_parse(fc, mxfs_parameters, param, &result);
	if (which < 0)
		return which;
	switch (which) {
	case Opt_source:
		return -ENOPARAM; /* the VFS keeps it */
	case Opt_iface:
		if (!*param->string || strlen(param->string) > 15 || strpbrk(param->string, "/ \t"))
			return invalf(fc, "mxfs: iface=%s: expected the name of a network interface (1 to 15 characters)",
				      param->string);
		text = &opt->iface;
		break;
	case Opt_multicast:
		if (!mxfs_is_address(param->string))
			return invalf(fc, "mxfs: multicast=%s: expected a multicast address (default " MXFS_MULTICAST_DEFAULT ")",
				      param->string);
		text = &opt->multicast;
		break;
	case Opt_broadcast:
		if (!mxfs_is_address(param->string))
			return invalf(fc, "mxfs: broadcast=%s: expected a broadcast address", param->string);
		text = &opt->broadcast;
		break;
	case Opt_encrypt:
		if (strcmp(param->string, "on") && strcmp(param->string, "off"))
			return invalf(fc, "mxfs: encrypt=%s: expected on or off", param->string);
		text = &opt->encrypt;
		break;
	case Opt_peer:
		return mxfs_parse_peers(fc, opt, param->string);
	case Opt_config:
		if (param->string[0] != '/' || strlen(param->string) >= PATH_MAX)
			return invalf(fc, "mxfs: config=%s: expected the absolute path of a file", param->string);
		text = &opt->config;
		break;
	case Opt_persist:
		if (strcmp(param->string, "writing") && strcmp(param->string, "all"))
			return invalf(fc, "mxfs: persist=%s: expected writing (locks that allow writing are on disk before they are used; default), or all (reading ones as well)",
				      param->string);
		text = &opt->persist;
		break;
	case Opt_fence:
		if (!strcmp(param->string, "scsi"))
			opt->fence = MXFS_FENCE_SCSI;
		else if (!strcmp(param->string, "none"))
			opt->fence = MXFS_FENCE_NONE;
		else if (!strcmp(param->string, "lease"))
			return invalf(fc, "mxfs: fence=lease is not supported: without reservations nothing at the disk stops a node that hangs and wakes up; use fence=scsi, on a disk that has them");
		else
			return invalf(fc, "mxfs: fence=%s: expected scsi (default), or none (tests only)", param->string);
		return 0;
	case Opt_profile:
		if (!strcmp(param->string, "fast"))
			opt->profile = MXFS_PROFILE_FAST;
		else if (!strcmp(param->string, "default"))
			opt->profile = MXFS_PROFILE_DEFAULT;
		else
			return invalf(fc, "mxfs: profile=%s: expected default, or fast (short timings, for a good network)",
				      param->string);
		return 0;
	default:
		return mxfs_parse_number(fc, opt, which, param->string);
	}
	kfree(*text);
	*text = param->string;
	param->string = NULL;
	return 0;
}

/* A profile is a set of timings. Those given by themselves come before it; the daemon and /proc/mounts see timings only. */
static void mxfs_options_profile(struct mxfs_options *opt)
{
	if (opt->profile != MXFS_PROFILE_FAST)
		return;
	opt->heartbeat_ms = opt->heartbeat_ms ?: MXFS_HEARTBEAT_MS_FAST;
	opt->renew_ms = opt->renew_ms ?: MXFS_LEASE_RENEW_MS_FAST;
	opt->lease_ms = opt->lease_ms ?: MXFS_LEASE_MS_FAST;
	opt->node_timeout_ms = opt->node_timeout_ms ?: MXFS_NODE_TIMEOUT_MS_FAST;
	opt->drain_ms = opt->drain_ms ?: MXFS_DRAIN_MS_FAST;
}

/* What was not given has its default; what depends on each other must fit. */
static int mxfs_options_check(struct fs_context *fc, const struct mxfs_options *given)
{
	struct mxfs_options opt = *given;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(mxfs_numbers); i++)
		if (!*mxfs_number_of(&opt, &mxfs_numbers[i]))
			*mxfs_number_of(&opt, &mxfs_numbers[i]) = mxfs_numbers[i].fallback;
	if (opt.heartbeat_ms > opt.renew_ms)
		return invalf(fc, "mxfs: heartbeat=%u ms is above renew=%u ms: a lease is renewed only after a heartbeat was written, so heartbeat <= renew",
			      opt.heartbeat_ms, opt.renew_ms);
	if (opt.renew_ms >= opt.lease_ms)
		return invalf(fc, "mxfs: renew=%u ms is not below lease=%u ms: the lease would end before it is renewed, so renew < lease",
			      opt.renew_ms, opt.lease_ms);
	if ((u64)opt.lease_ms * 11 >= (u64)opt.node_timeout_ms * 10)
		return invalf(fc, "mxfs: lease=%u ms and 10%% are not below node_timeout=%u ms: a node would be declared dead while its lease still runs, so lease * 1.1 < node_timeout",
			      opt.lease_ms, opt.node_timeout_ms);
	return 0;
}

static bool mxfs_text_equal(const char *a, const char *b)
{
	return !a || !b ? a == b : !strcmp(a, b);
}

static bool mxfs_options_equal(struct mxfs_options *a, struct mxfs_options *b)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(mxfs_numbers); i++)
		if (*mxfs_number_of(a, &mxfs_numbers[i]) != *mxfs_number_of(b, &mxfs_numbers[i]))
			return false;
	return a->fence == b->fence && mxfs_text_equal(a->iface, b->iface) && mxfs_text_equal(a->multicast, b->multicast) &&
	       mxfs_text_equal(a->broadcast, b->broadcast) && mxfs_text_equal(a->peers, b->peers) &&
	       mxfs_text_equal(a->config, b->config) && mxfs_text_equal(a->encrypt, b->encrypt) &&
	       mxfs_text_equal(a->persist, b->persist);
}

/* A remount repeats options; it may not change one. Returns the name of the first that differs. */
static const char *mxfs_options_changed(struct mxfs_options *now, struct mxfs_options *given)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(mxfs_numbers); i++)
		if (*mxfs_number_of(given, &mxfs_numbers[i]) &&
		    *mxfs_number_of(given, &mxfs_numbers[i]) != *mxfs_number_of(now, &mxfs_numbers[i]))
			return mxfs_numbers[i].name;
	if (given->fence && given->fence != now->fence)
		return "fence";
	if (given->iface && !mxfs_text_equal(given->iface, now->iface))
		return "iface";
	if (given->multicast && !mxfs_text_equal(given->multicast, now->multicast))
		return "multicast";
	if (given->broadcast && !mxfs_text_equal(given->broadcast, now->broadcast))
		return "broadcast";
	if (given->peers && !mxfs_text_equal(given->peers, now->peers))
		return "peer";
	if (given->config && !mxfs_text_equal(given->config, now->config))
		return "config";
	if (given->encrypt && !mxfs_text_equal(given->encrypt, now->encrypt))
		return "encrypt";
	if (given->persist && !mxfs_text_equal(given->persist, now->persist))
		return "persist";
	return NULL;
}

static int mxfs_show_options(struct seq_file *m, struct dentry *root)
{
	struct mxfs_options *opt = &MXFS_SB(root->d_sb)->opt;
	unsigned int i;
	char *c;

	if (opt->iface)
		seq_show_option(m, "iface", opt->iface);
	if (opt->multicast)
		seq_show_option(m, "multicast", opt->multicast);
	if (opt->broadcast)
		seq_show_option(m, "broadcast", opt->broadcast);
	if (opt->config)
		seq_show_option(m, "config", opt->config);
	if (opt->encrypt)
		seq_show_option(m, "encrypt", opt->encrypt);
	if (opt->persist)
		seq_show_option(m, "persist", opt->persist);
	if (opt->peers) {
		seq_puts(m, ",peer=");
		for (c = opt->peers; *c; c++)
			seq_putc(m, *c == ',' ? ':' : *c);
	}
	if (opt->fence)
		seq_show_option(m, "fence", opt->fence == MXFS_FENCE_SCSI ? "scsi" : "none");
	for (i = 0; i < ARRAY_SIZE(mxfs_numbers); i++)
		if (*mxfs_number_of(opt, &mxfs_numbers[i]))
			seq_printf(m, ",%s=%u", mxfs_numbers[i].name, *mxfs_number_of(opt, &mxfs_numbers[i]));
	return 0;
}

static int mxfs_show_devname(struct seq_file *m, struct dentry *root)
{
	seq_escape(m, MXFS_SB(root->d_sb)->opt.device, " \t\n\\");
	return 0;
}

/* ---------------------------------------------------------------- the XFS on the device */

/* Not through the block device's page cache, which may be older than another node's mkfs. */
static int mxfs_read_first_sector(struct block_device *bdev, void *buf)
{
	struct bio_vec vec;
	struct bio bio;

	bio_init(&bio, bdev, &vec, 1, REQ_OP_READ);
	bio.bi_iter.bi_sector = 0;
	__bio_add_page(&bio, virt_to_page(buf), bdev_logical_block_size(bdev), offset_in_page(buf));
	return submit_bio_wait(&bio);
}

static u64 mxfs_fnv1a_64(const u8 *bytes, size_t count)
{
	u64 hash = 0xcbf29ce484222325ULL;

	while (count--)
		hash = (hash ^ *bytes++) * 0x100000001b3ULL;
	return hash;
}

/* Finds dev, uuid and volume; complains in words that say what to do. */
static int mxfs_probe(struct fs_context *fc, struct mxfs_sb_info *sbi)
{
	struct block_device *bdev;
	unsigned int version;
	u8 *sector;
	int err;

	err = lookup_bdev(fc->source, &sbi->dev);
	if (err == -ENOTBLK) {
		errorf(fc, "mxfs: %s is not a block device", fc->source);
		return err;
	}
	if (err) {
		errorf(fc, "mxfs: %s: no such device (error %d)", fc->source, err);
		return err;
	}
	bdev = blkdev_get_by_dev(sbi->dev, FMODE_READ, NULL);
	if (IS_ERR(bdev)) {
		errorf(fc, "mxfs: %s cannot be opened: error %ld", fc->source, PTR_ERR(bdev));
		return PTR_ERR(bdev);
	}
	sector = (u8 *)get_zeroed_page(GFP_KERNEL);
	if (!sector) {
		err = -ENOMEM;
		goto out;
	}
	if (bdev_read_only(bdev)) {
		errorf(fc, "mxfs: %s is read-only; mxfs needs to write to it", fc->source);
		err = -EROFS;
		goto out_page;
	}
	err = mxfs_read_first_sector(bdev, sector);
	if (err) {
		errorf(fc, "mxfs: %s: the first sector cannot be read: error %d", fc->source, err);
		goto out_page;
	}
	err = -EINVAL;
	if (memcmp(sector, "XFSB", 4)) {
		errorf(fc, "mxfs: %s carries no XFS (its first bytes are %*ph, expected \"XFSB\"): run mkfs.xfs first",
		       fc->source, 4, sector);
		goto out_page;
	}
	version = get_unaligned_be16(sector + 100) & 0xf;
	if (version != 5) {
		errorf(fc, "mxfs: %s carries an XFS of version %u; mxfs needs version 5 (checksums): make it anew with mkfs.xfs -m crc=1",
		       fc->source, version);
		goto out_page;
	}
	import_uuid(&sbi->uuid, sector + 32);
	sbi->volume = mxfs_fnv1a_64(sector + 32, 16);
	err = 0;
out_page:
	free_page((unsigned long)sector);
out:
	blkdev_put(bdev, FMODE_READ);
	return err;
}

/* Claimed by mxfs_fs_type for this mount, so that nobody mounts the XFS beside it. */
static int mxfs_claim(struct mxfs_sb_info *sbi)
{
	struct block_device *bdev;

	if (sbi->bdev)
		return 0;
	bdev = blkdev_get_by_dev(sbi->dev, FMODE_READ | FMODE_WRITE | FMODE_EXCL, sbi);
	if (IS_ERR(bdev))
		return PTR_ERR(bdev);
	WRITE_ONCE(sbi->disk_bytes, bdev_nr_bytes(bdev));
	sbi->bdev = bdev;
	return 0;
}

static void mxfs_unclaim(struct mxfs_sb_info *sbi)
{
	if (!sbi->bdev)
		return;
	mxfs_maps_stop(sbi); /* what this node has under way is over before another role begins */
	blkdev_put(sbi->bdev, FMODE_READ | FMODE_WRITE | FMODE_EXCL);
	sbi->bdev = NULL;
}

/* ---------------------------------------------------------------- the list of mounts */

static LIST_HEAD(mxfs_mounts); /* by rising id */
static DEFINE_SPINLOCK(mxfs_mounts_lock);
static u32 mxfs_last_mount_id;

static void mxfs_mount_list(struct mxfs_sb_info *sbi)
{
	spin_lock(&mxfs_mounts_lock);
	list_add_tail(&sbi->list, &mxfs_mounts);
	spin_unlock(&mxfs_mounts_lock);
}

static u32 mxfs_mount_new_id(void)
{
	u32 id;

	spin_lock(&mxfs_mounts_lock);
	id = ++mxfs_last_mount_id;
	spin_unlock(&mxfs_mounts_lock);
	return id;
}

struct mxfs_sb_info *mxfs_mount_find(u32 mount_id)
{
	struct mxfs_sb_info *sbi, *found = NULL;

	spin_lock(&mxfs_mounts_lock);
	list_for_each_entry(sbi, &mxfs_mounts, list)
		if (sbi->mount_id == mount_id && refcount_inc_not_zero(&sbi->ref))
			found = sbi;
	spin_unlock(&mxfs_mounts_lock);
	return found;
}

struct mxfs_sb_info *mxfs_mount_next(u32 after)
{
	struct mxfs_sb_info *sbi, *found = NULL;

	spin_lock(&mxfs_mounts_lock);
	list_for_each_entry(sbi, &mxfs_mounts, list) {
		if (sbi->mount_id > after && (!found || sbi->mount_id < found->mount_id) &&
		    refcount_inc_not_zero(&sbi->ref)) {
			/* The list need not be sorted: two mounts may list themselves the other way round. */
			if (found && refcount_dec_and_test(&found->ref))
				complete(&found->unreferenced);
			found = sbi;
		}
	}
	spin_unlock(&mxfs_mounts_lock);
	return found;
}

void mxfs_mount_put(struct mxfs_sb_info *sbi)
{
	if (refcount_dec_and_test(&sbi->ref))
		complete(&sbi->unreferenced);
}

/* Nobody finds the mount any more, and who had found it has let go. */
static void mxfs_mount_unlist(struct mxfs_sb_info *sbi)
{
	spin_lock(&mxfs_mounts_lock);
	list_del_init(&sbi->list);
	spin_unlock(&mxfs_mounts_lock);
	mxfs_mount_put(sbi);
	wait_for_completion(&sbi->unreferenced);
}

/* ---------------------------------------------------------------- the daemon */

static int mxfs_daemon_exit_wake(wait_queue_entry_t *entry, unsigned int mode, int flags, void *key)
{
	struct mxfs_daemon *daemon = container_of(entry, struct mxfs_daemon, exit_entry);

	queue_work(daemon->wq, &daemon->gone_work);
	return 0;
}

static bool mxfs_daemon_alive(struct mxfs_daemon *daemon)
{
	struct pid *pid;
	bool alive;

	spin_lock(&daemon->lock);
	pid = get_pid(daemon->pid);
	spin_unlock(&daemon->lock);
	alive = pid && !thread_group_exited(pid);
	put_pid(pid);
	return alive;
}

/* Takes over the reference. NULL: watches nobody. */
static void mxfs_daemon_watch(struct mxfs_daemon *daemon, struct pid *pid)
{
	struct pid *old;

	spin_lock(&daemon->lock);
	old = daemon->pid;
	if (old)
		remove_wait_queue(&old->wait_pidfd, &daemon->exit_entry);
	daemon->pid = pid;
	if (pid) {
		init_waitqueue_func_entry(&daemon->exit_entry, mxfs_daemon_exit_wake);
		add_wait_queue(&pid->wait_pidfd, &daemon->exit_entry);
	}
	spin_unlock(&daemon->lock);
	put_pid(old);
	if (pid && thread_group_exited(pid))
		queue_work(daemon->wq, &daemon->gone_work);
}

static void mxfs_daemon_kill(struct mxfs_daemon *daemon)
{
	struct pid *pid;

	spin_lock(&daemon->lock);
	pid = get_pid(daemon->pid);
	spin_unlock(&daemon->lock);
	if (pid)
		kill_pid(pid, SIGKILL, 1);
	put_pid(pid);
}

/* In the child, before it becomes the daemon. */
static int mxfs_daemon_child(struct subprocess_info *info, struct cred *new)
{
	struct mxfs_daemon *daemon = info->data;

	daemon->child = get_pid(task_tgid(current));
	return 0;
}

#define MXFS_ARGV_MAX 48

static int mxfs_daemon_spawn(struct mxfs_sb_info *sbi)
{
	static char *envp[] = { "HOME=/", "TERM=linux", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
				NULL };
	struct { const char *argument, *value; } texts[] = {
		{ "--iface", sbi->opt.iface },
		{ "--multicast", sbi->opt.multicast },
		{ "--broadcast", sbi->opt.broadcast },
		{ "--peer", sbi->opt.peers },
		{ "--config", sbi->opt.config },
		{ "--encrypt", sbi->opt.encrypt },
		{ "--persist", sbi->opt.persist },
		{ "--fence", sbi->opt.fence == MXFS_FENCE_SCSI ? "scsi" : sbi->opt.fence == MXFS_FENCE_NONE ? "none" : NULL },
	};
	char numbers[ARRAY_SIZE(mxfs_numbers)][12], uuid[UUID_STRING_LEN + 1], mount_id[12];
	struct mxfs_daemon *daemon = sbi->daemon;
	struct subprocess_info *info;
	const char **argv;
	unsigned int i, n = 0, value;
	int err;

	BUILD_BUG_ON(9 + 2 * (ARRAY_SIZE(texts) + ARRAY_SIZE(mxfs_numbers)) >= MXFS_ARGV_MAX);
	argv = kcalloc(MXFS_ARGV_MAX, sizeof(*argv), GFP_KERNEL);
	if (!argv)
		return -ENOMEM;
	snprintf(uuid, sizeof(uuid), "%pUb", &sbi->uuid);
	snprintf(mount_id, sizeof(mount_id), "%u", sbi->mount_id);
	argv[n++] = MXFS_DAEMON_PATH;
	argv[n++] = "--device";
	argv[n++] = sbi->opt.device;
	argv[n++] = "--mountpoint";
	argv[n++] = sbi->mountpoint;
	argv[n++] = "--uuid";
	argv[n++] = uuid;
	argv[n++] = "--mount-id";
	argv[n++] = mount_id;
	for (i = 0; i < ARRAY_SIZE(texts); i++) {
		if (texts[i].value) {
			argv[n++] = texts[i].argument;
			argv[n++] = texts[i].value;
		}
	}
	for (i = 0; i < ARRAY_SIZE(mxfs_numbers); i++) {
		value = *mxfs_number_of(&sbi->opt, &mxfs_numbers[i]);
		if (value) {
			snprintf(numbers[i], sizeof(numbers[i]), "%u", value);
			argv[n++] = mxfs_numbers[i].argument;
			argv[n++] = numbers[i];
		}
	}

	daemon->child = NULL;
	WRITE_ONCE(daemon->attached, false);
	mxfs_count(sbi, MXFS_COUNT_DAEMON_STARTS);
	info = call_usermodehelper_setup(MXFS_DAEMON_PATH, (char **)argv, envp, GFP_KERNEL, mxfs_daemon_child, NULL, daemon);
	err = info ? call_usermodehelper_exec(info, UMH_WAIT_EXEC) : -ENOMEM;
	kfree(argv);
	if (err) {
		put_pid(daemon->child);
		daemon->child = NULL;
		return err;
	}
	/* It may have attached already, as itself or by a process that its launcher left it to. */
	if (READ_ONCE(daemon->attached))
		put_pid(daemon->child);
	else
		mxfs_daemon_watch(daemon, daemon->child);
	daemon->child = NULL;
	return 0;
}

int mxfs_super_daemon_attached(struct mxfs_sb_info *sbi)
{
	if (READ_ONCE(sbi->kstate) == MXFS_KSTATE_STOPPING)
		return -ESHUTDOWN;
	mxfs_daemon_watch(sbi->daemon, get_pid(task_tgid(current)));
	WRITE_ONCE(sbi->daemon->attached, true);
	return 0;
}

u32 mxfs_super_daemon_pid(struct mxfs_sb_info *sbi)
{
	struct mxfs_daemon *daemon = sbi->daemon;
	u32 nr;

	spin_lock(&daemon->lock);
	nr = pid_nr(daemon->pid);
	spin_unlock(&daemon->lock);
	return nr;
}

void mxfs_super_daemon_gone(struct mxfs_sb_info *sbi)
{
	queue_work(sbi->daemon->wq, &sbi->daemon->gone_work);
}

static void mxfs_daemon_start_failed(struct mxfs_sb_info *sbi, int error, const char *message)
{
	struct mxfs_daemon *daemon = sbi->daemon;

	spin_lock(&daemon->lock);
	if (!daemon->start_failed && !daemon->ready) {
		daemon->error = error;
		strscpy(daemon->message, message, sizeof(daemon->message));
		daemon->start_failed = true;
	}
	spin_unlock(&daemon->lock);
	wake_up_all(&daemon->wait);
}

static bool mxfs_daemon_may_restart(struct mxfs_daemon *daemon)
{
	unsigned long *oldest = &daemon->starts[daemon->start_count % MXFS_RESTARTS_MAX];

	if (daemon->start_count >= MXFS_RESTARTS_MAX &&
	    time_before(jiffies, *oldest + msecs_to_jiffies(MXFS_RESTARTS_MS)))
		return false;
	*oldest = jiffies;
	daemon->start_count++;
	return true;
}

/* The process ended, or its bound socket was closed. Runs alone (ordered). */
static void mxfs_daemon_gone_work(struct work_struct *work)
{
	struct mxfs_daemon *daemon = container_of(work, struct mxfs_daemon, gone_work);
	struct mxfs_sb_info *sbi = daemon->sbi;
	bool had_pid;
	int err;

	if (mxfs_daemon_alive(daemon)) {
		/* Without its socket it is of no use; its exit comes back here. */
		if (!mxfs_nl_port(sbi) && READ_ONCE(daemon->attached) && !READ_ONCE(daemon->start_failed) &&
		    READ_ONCE(sbi->kstate) != MXFS_KSTATE_STOPPING)
			mxfs_daemon_kill(daemon);
		wake_up_all(&daemon->wait);
		return;
	}
	spin_lock(&daemon->lock);
	had_pid = daemon->pid;
	spin_unlock(&daemon->lock);
	mxfs_nl_unbind(sbi);
	mxfs_daemon_watch(daemon, NULL);
	wake_up_all(&daemon->wait);
	if (!had_pid || READ_ONCE(sbi->kstate) == MXFS_KSTATE_STOPPING || mxfs_gate_fenced(&sbi->gate))
		return;
	if (READ_ONCE(sbi->kstate) == MXFS_KSTATE_STARTING) {
		mxfs_daemon_start_failed(sbi, -EIO, MXFS_DAEMON_PATH " ended before it was ready; its log says why");
		return;
	}

	WRITE_ONCE(sbi->kstate, MXFS_KSTATE_DETACHED);
	mxfs_dlm_freeze(sbi);
	if (!mxfs_daemon_may_restart(daemon)) {
		mxfs_fence(sbi, MXFS_DAEMON_PATH " ended more than 5 times within a minute; its log says why");
		return;
	}
	mxfs_warn(sbi, MXFS_DAEMON_PATH " ended; it is started again");
	err = mxfs_daemon_spawn(sbi);
	if (err) {
		mxfs_err(sbi, MXFS_DAEMON_PATH " cannot be started: error %d", err);
		mxfs_fence(sbi, MXFS_DAEMON_PATH " ended and cannot be started again");
		return;
	}
	mod_delayed_work(daemon->wq, &daemon->silent_work, msecs_to_jiffies(sbi->opt.startup_ms ?: MXFS_STARTUP_MS_DEFAULT));
}

static void mxfs_daemon_silent_work(struct work_struct *work)
{
	struct mxfs_daemon *daemon = container_of(to_delayed_work(work), struct mxfs_daemon, silent_work);
	struct mxfs_sb_info *sbi = daemon->sbi;

	if (READ_ONCE(sbi->kstate) != MXFS_KSTATE_DETACHED)
		return;
	mxfs_err(sbi, MXFS_DAEMON_PATH " did not rejoin within the start-up time; it is ended");
	mxfs_daemon_kill(daemon);
}

unsigned int mxfs_super_patience_ms(struct mxfs_sb_info *sbi)
{
	return max(sbi->opt.startup_ms ?: MXFS_STARTUP_MS_DEFAULT,
		   2 * (sbi->opt.node_timeout_ms ?: MXFS_NODE_TIMEOUT_MS_DEFAULT));
}

void mxfs_super_daemon_stuck(struct mxfs_sb_info *sbi)
{
	/* One that was just started again has its own time limit (silent_work). */
	if (READ_ONCE(sbi->kstate) != MXFS_KSTATE_RUNNING)
		return;
	mxfs_err(sbi, MXFS_DAEMON_PATH " (pid %u) has neither renewed the lease nor given up for %u ms; it is ended and started again",
		 mxfs_super_daemon_pid(sbi), mxfs_super_patience_ms(sbi));
	mxfs_daemon_kill(sbi->daemon);
}

/* An unmount cannot write out without a lease; nor may it wait for one for ever. */
static void mxfs_unmount_late_work(struct work_struct *work)
{
	struct mxfs_daemon *daemon = container_of(to_delayed_work(work), struct mxfs_daemon, late_work);

	if (!mxfs_gate_lease_valid(daemon->sbi))
		mxfs_fence(daemon->sbi, "unmount: the lease was not renewed within the start-up time");
	else /* slow, but under way */
		queue_delayed_work(system_unbound_wq, &daemon->late_work, msecs_to_jiffies(MXFS_EXIT_MS));
}

void mxfs_super_unmount_done(struct mxfs_sb_info *sbi, int error)
{
	if (error)
		mxfs_err(sbi, "the daemon could not leave the cluster in order: error %d", error);
	WRITE_ONCE(sbi->daemon->unmount_done, true);
	wake_up_all(&sbi->daemon->wait);
}

static struct mxfs_daemon *mxfs_daemon_alloc(struct mxfs_sb_info *sbi)
{
	struct mxfs_daemon *daemon = kzalloc(sizeof(*daemon), GFP_KERNEL);

	if (!daemon)
		return NULL;
	daemon->sbi = sbi;
	spin_lock_init(&daemon->lock);
	init_waitqueue_head(&daemon->wait);
	INIT_WORK(&daemon->gone_work, mxfs_daemon_gone_work);
	INIT_DELAYED_WORK(&daemon->silent_work, mxfs_daemon_silent_work);
	INIT_DELAYED_WORK(&daemon->late_work, mxfs_unmount_late_work);
	daemon->wq = alloc_ordered_workqueue("mxfs-life/%u", 0, sbi->mount_id);
	if (!daemon->wq) {
		kfree(daemon);
		return NULL;
	}
	return daemon;
}

static void mxfs_daemon_free(struct mxfs_daemon *daemon)
{
	if (!daemon)
		return;
	mxfs_daemon_watch(daemon, NULL);
	cancel_delayed_work_sync(&daemon->silent_work);
	cancel_delayed_work_sync(&daemon->late_work);
	cancel_work_sync(&daemon->gone_work);
	destroy_workqueue(daemon->wq);
	kfree(daemon);
}

/* ---------------------------------------------------------------- the daemon's hand on the gate (control workqueue) */

/* Under role_mutex, but for the wait. Sets, does not count: the daemon says how it shall be. */
static void mxfs_daemon_gate(struct mxfs_sb_info *sbi, bool *shut, bool open, const char *reason, bool force)
{
	bool was;

	mutex_lock(&sbi->role_mutex);
	was = *shut;
	if (open)
		*shut = false;
	mutex_unlock(&sbi->role_mutex);
	if (open && was)
		mxfs_gate_open(sbi);
	if (open)
		return;
	if (!was)
		mxfs_gate_shut(sbi, reason, force);
	mutex_lock(&sbi->role_mutex);
	*shut = true; /* only when all have left */
	mutex_unlock(&sbi->role_mutex);
}

/* ---------------------------------------------------------------- roles (control workqueue, or an unmount without daemon) */

/* From any role to none; afterwards mxfs itself has the disk. Under role_mutex. */
static int mxfs_role_none(struct mxfs_sb_info *sbi, const char **why)
{
	int err;

	if (sbi->role == MXFS_ROLE_HOLDER) {
		mxfs_exec_quiesce(sbi);
		err = mxfs_lower_unmount(sbi);
		if (err) {
			*why = "the XFS cannot be unmounted";
			return err;
		}
	}
	sbi->be = &mxfs_remote_backend;
	WRITE_ONCE(sbi->role, MXFS_ROLE_NONE);
	/* The proof that the XFS is gone. */
	err = mxfs_claim(sbi);
	if (err)
		*why = "the XFS is unmounted, but the disk cannot be claimed: somebody else has it";
	return err;
}

static int mxfs_role_holder(struct mxfs_sb_info *sbi, u64 lockstate_size, const char **why)
{
	int err;

	mxfs_unclaim(sbi);
	*why = "the XFS cannot be mounted";
	err = mxfs_lower_mount(sbi, lockstate_size, &sbi->lockstate, why);
	if (err) {
		if (mxfs_claim(sbi))
			mxfs_warn(sbi, "the disk cannot be claimed again after the XFS could not be mounted");
		return err;
	}
	sbi->be = &mxfs_local_backend;
	WRITE_ONCE(sbi->role, MXFS_ROLE_HOLDER);
	return 0;
}

static int mxfs_role_member(struct mxfs_sb_info *sbi, const char **why)
{
	int err = mxfs_claim(sbi);

	if (err) {
		*why = "the disk cannot be claimed: somebody else on this host has it";
		return err;
	}
	sbi->be = &mxfs_remote_backend;
	WRITE_ONCE(sbi->role, MXFS_ROLE_MEMBER);
	mxfs_maps_start(sbi);
	return 0;
}

static void mxfs_role_done(struct mxfs_sb_info *sbi, u64 req_id)
{
	struct sk_buff *skb;

	skb = mxfs_nl_new(sbi, MXFS_CMD_DONE, 3 * nla_total_size_64bit(8) + 3 * nla_total_size(4),
			  GFP_KERNEL | __GFP_NOFAIL);
	if (!skb || nla_put_u64_64bit(skb, MXFS_A_REQ_ID, req_id, MXFS_A_PAD) || nla_put_u32(skb, MXFS_A_ERROR, 0) ||
	    nla_put_u64_64bit(skb, MXFS_A_INO, sbi->lockstate.ino, MXFS_A_PAD) ||
	    nla_put_u32(skb, MXFS_A_GENERATION, sbi->lockstate.gen) ||
	    nla_put_u64_64bit(skb, MXFS_A_SIZE, sbi->lockstate.size, MXFS_A_PAD) ||
	    nla_put_u32(skb, MXFS_A_CREATED, sbi->lockstate.created)) {
		kfree_skb(skb);
		mxfs_nl_done(sbi, req_id, -EMSGSIZE, "the answer does not fit");
		return;
	}
	mxfs_nl_send(sbi, skb);
}

void mxfs_super_role_change(struct mxfs_sb_info *sbi, u64 req_id, u32 role, u32 node, u32 incarnation, u32 holder,
			    u64 epoch, u64 lockstate_size)
{
	const char *why = NULL;
	int err = 0;

	/* An unmount has no operations of its own left; those of members end here. */
	if (role == MXFS_ROLE_NONE && !sbi->daemon_shut && READ_ONCE(sbi->kstate) == MXFS_KSTATE_STOPPING)
		mxfs_daemon_gate(sbi, &sbi->daemon_shut, false, "unmount", false);
	mutex_lock(&sbi->role_mutex);
	if (!sbi->daemon_shut) {
		err = -EBUSY;
		why = "the gate is open: a role changes behind a shut gate only";
	} else if (mxfs_gate_fenced(&sbi->gate) && role != MXFS_ROLE_NONE) {
		err = -EIO;
		why = "this mount is fenced";
	} else if (sbi->node && sbi->node != node) {
		err = -EINVAL;
		why = "this mount belongs to another node id";
	}
	if (err)
		goto out;
	sbi->node = node;
	sbi->incarnation = incarnation;
	WRITE_ONCE(sbi->holder, role == MXFS_ROLE_HOLDER ? node : holder);
	WRITE_ONCE(sbi->epoch, epoch);
	if (role == sbi->role && role != MXFS_ROLE_NONE)
		goto out;
	/* Even from NONE: the disk is claimed then, and that it can be is worth knowing. */
	err = mxfs_role_none(sbi, &why);
	if (!err && role == MXFS_ROLE_HOLDER)
		err = mxfs_role_holder(sbi, lockstate_size, &why);
	else if (!err && role == MXFS_ROLE_MEMBER)
		err = mxfs_role_member(sbi, &why);
out:
	if (err)
		mxfs_err(sbi, "role change to %s failed: error %d: %s",
			 role == MXFS_ROLE_HOLDER ? "holder" : role == MXFS_ROLE_MEMBER ? "member" : "none", err, why ?: "");
	else
		mxfs_info(sbi, "role: %s",
			  role == MXFS_ROLE_HOLDER ? "holder" : role == MXFS_ROLE_MEMBER ? "member" : "none");
	mutex_unlock(&sbi->role_mutex);
	if (err || role != MXFS_ROLE_HOLDER)
		mxfs_nl_done(sbi, req_id, err, why);
	else
		mxfs_role_done(sbi, req_id);
}

/* ---------------------------------------------------------------- gate, view, ready */

void mxfs_super_gate(struct mxfs_sb_info *sbi, u64 req_id, bool open, const char *reason, bool force)
{
	mxfs_daemon_gate(sbi, &sbi->daemon_shut, open, reason, force);
	/* A hand-over: what this holder has answered shall not be the next one's to find out. */
	if (!open && !force)
		mxfs_remote_drain(sbi);
	mxfs_nl_done(sbi, req_id, 0, NULL);
}

void mxfs_super_recovery(struct mxfs_sb_info *sbi, bool start, u32 node)
{
	char reason[64];

	snprintf(reason, sizeof(reason), "recovery of node %u", node);
	/* Not drained: those inside wait for the very node that is recovered. */
	mxfs_daemon_gate(sbi, &sbi->recovery_shut, !start, reason, true);
}

/* incarnation: the holder's. */
static void mxfs_view_taken(struct mxfs_sb_info *sbi, u64 epoch, u32 holder, u32 incarnation, bool resend)
{
	bool followed;

	WRITE_ONCE(sbi->epoch, epoch);
	WRITE_ONCE(sbi->holder, holder);
	followed = mxfs_remote_follow(sbi, holder, incarnation);
	/* Before the gate opens, here and at the holder: nobody else can be granted them in between. */
	if (sbi->locks_at && (sbi->locks_at != holder || sbi->locks_at_incarnation != incarnation))
		mxfs_flock_reclaim(sbi);
	sbi->locks_at = holder;
	sbi->locks_at_incarnation = incarnation;
	if (resend && READ_ONCE(sbi->role) == MXFS_ROLE_MEMBER) {
		/* Another holder: maps of the one before are void, and nothing is on its way by them. */
		mxfs_maps_stop(sbi);
		mxfs_maps_start(sbi);
	}
	mxfs_remote_resend(sbi, resend || followed);
	cmpxchg(&sbi->kstate, MXFS_KSTATE_DETACHED, MXFS_KSTATE_RUNNING);
}

void mxfs_super_view(struct mxfs_sb_info *sbi, u64 epoch, u32 holder, u32 incarnation, bool resend, bool solo)
{
	mxfs_dlm_view(sbi, epoch, solo);
	mxfs_view_taken(sbi, epoch, holder, incarnation, resend);
}

void mxfs_super_daemon_ready(struct mxfs_sb_info *sbi, int error, const char *message, u32 role, u64 epoch, u32 holder,
			     u32 incarnation, u64 lease_until)
{
	struct mxfs_daemon *daemon = sbi->daemon;

	if (!error && role != sbi->role) {
		error = -EPROTO;
		message = "the daemon is ready for another role than the kernel has";
	}
	if (error) {
		if (READ_ONCE(sbi->kstate) == MXFS_KSTATE_STARTING)
			mxfs_daemon_start_failed(sbi, error, *message ? message : "no reason given");
		else
			mxfs_err(sbi, "the daemon could not rejoin: error %d: %s", error, message);
		return;
	}
	if (mxfs_gate_fenced(&sbi->gate))
		return;
	mxfs_gate_lease(sbi, lease_until);
	if (READ_ONCE(sbi->kstate) == MXFS_KSTATE_STARTING) {
		mxfs_dlm_ready(sbi, epoch);
		mxfs_view_taken(sbi, epoch, holder, incarnation, false);
		WRITE_ONCE(sbi->kstate, MXFS_KSTATE_RUNNING);
	} else if (READ_ONCE(sbi->kstate) == MXFS_KSTATE_DETACHED) {
		mxfs_dlm_ready(sbi, epoch);
		mxfs_view_taken(sbi, epoch, holder, incarnation, true);
	}
	mxfs_daemon_gate(sbi, &sbi->daemon_shut, true, "", false);
	spin_lock(&daemon->lock);
	daemon->ready = true;
	spin_unlock(&daemon->lock);
	wake_up_all(&daemon->wait);
}

/* ---------------------------------------------------------------- the RENAME lock: nothing is cached under it */

static bool mxfs_rename_lock_get(struct mxfs_lock *lk)
{
	return true; /* part of the mount, which outlives the lock cache's work */
}

static const struct mxfs_lock_ops mxfs_rename_lock_ops = { .get = mxfs_rename_lock_get };

/* ---------------------------------------------------------------- mount */

static void mxfs_sbi_free(struct mxfs_sb_info *sbi)
{
	mxfs_options_free(&sbi->opt);
	free_percpu(sbi->counters);
	kfree(sbi);
}

/* All parts of a mount, none started. Undone by mxfs_sbi_stop. */
static int mxfs_sbi_start(struct mxfs_sb_info *sbi, struct super_block *sb)
{
	int err;

	sbi->sb = sb;
	sbi->mount_id = mxfs_mount_new_id();
	sbi->kstate = MXFS_KSTATE_STARTING;
	sbi->be = &mxfs_remote_backend;
	sbi->daemon_shut = true;
	err = mxfs_gate_init(&sbi->gate);
	if (!err)
		err = mxfs_maps_init(sbi);
	if (err)
		return err;
	sbi->counters = __alloc_percpu(MXFS_COUNT_MAX * sizeof(u64), __alignof__(u64));
	if (!sbi->counters)
		return -ENOMEM;
	sbi->daemon = mxfs_daemon_alloc(sbi);
	err = sbi->daemon ? mxfs_nl_mount_init(sbi) : -ENOMEM;
	if (!err)
		err = mxfs_dlm_init(sbi);
	if (!err)
		err = mxfs_remote_init(sbi);
	if (!err)
		err = mxfs_exec_init(sbi);
	if (!err)
		err = mxfs_socks_init(sbi);
	if (err)
		return err;
	mxfs_lock_init(sbi, &sbi->rename_lock, &mxfs_rename_lock_ops, sbi, MXFS_RES_SUPER, 0, MXFS_SUPER_RENAME);
	mxfs_mount_list(sbi);
	return 0;
}

static void mxfs_sbi_stop(struct mxfs_sb_info *sbi)
{
	if (!list_empty(&sbi->list))
		mxfs_mount_unlist(sbi);
	if (sbi->nl)
		mxfs_nl_flush(sbi);
	if (sbi->daemon)
		flush_workqueue(sbi->daemon->wq);
	mxfs_socks_stop(sbi);
	if (sbi->exec)
		mxfs_exec_destroy(sbi);
	if (sbi->remote)
		mxfs_remote_destroy(sbi);
	mxfs_socks_destroy(sbi);
	if (sbi->ls) {
		if (sbi->rename_lock.sbi)
			mxfs_lock_destroy(&sbi->rename_lock);
		mxfs_dlm_destroy(sbi);
	}
	mxfs_daemon_free(sbi->daemon);
	sbi->daemon = NULL;
	cancel_work_sync(&sbi->gate.fence_work);
	mxfs_nl_mount_destroy(sbi);
	mxfs_gate_destroy(&sbi->gate);
	mxfs_unclaim(sbi);
	mxfs_maps_destroy(sbi);
}

const struct super_operations mxfs_super_ops = {
	.alloc_inode = mxfs_alloc_inode,
	.free_inode = mxfs_free_inode,
	.write_inode = mxfs_write_inode,
	.evict_inode = mxfs_evict_inode,
	.statfs = mxfs_statfs,
	.sync_fs = mxfs_sync_fs,
	.show_options = mxfs_show_options,
	.show_devname = mxfs_show_devname,
};

static int mxfs_fill_super(struct fs_context *fc, struct super_block *sb)
{
	struct mxfs_sb_info *sbi = MXFS_SB(sb);
	int err;

	sb->s_magic = MXFS_SUPER_MAGIC;
	sb->s_maxbytes = MAX_LFS_FILESIZE;
	sb->s_blocksize = PAGE_SIZE;
	sb->s_blocksize_bits = PAGE_SHIFT;
	sb->s_time_gran = 1;
	sb->s_op = &mxfs_super_ops;
	sb->s_d_op = &mxfs_dentry_ops;
	sb->s_xattr = mxfs_xattr_handlers;
	sb->s_flags |= SB_POSIXACL;
	sb->s_uuid = sbi->uuid;
	snprintf(sb->s_id, sizeof(sb->s_id), "%u:%u", MAJOR(sbi->dev), MINOR(sbi->dev));

	err = super_setup_bdi(sb);
	if (err)
		return err;
	/* Write-back needs the daemon: dirty pages are limited for each mount, as FUSE does. */
	sb->s_bdi->capabilities |= BDI_CAP_STRICTLIMIT;
	return 0;
}

/* mount -t xfs, a raid, a swap on it: said before the daemon has touched anything. */
static int mxfs_check_unclaimed(struct fs_context *fc, struct mxfs_sb_info *sbi)
{
	int err = mxfs_claim(sbi);

	if (err == -EBUSY)
		errorf(fc, "mxfs: %s is in use on this host (mounted as xfs, part of a raid or volume group, or swap): stop that first",
		       fc->source);
	else if (err)
		errorf(fc, "mxfs: %s cannot be opened for writing: error %d", fc->source, err);
	return err;
}

static bool mxfs_daemon_answered(struct mxfs_daemon *daemon)
{
	return READ_ONCE(daemon->ready) || READ_ONCE(daemon->start_failed) || mxfs_gate_fenced(&daemon->sbi->gate);
}

static int mxfs_start_daemon(struct fs_context *fc, struct mxfs_sb_info *sbi)
{
	unsigned int startup_ms = sbi->opt.startup_ms ?: MXFS_STARTUP_MS_DEFAULT;
	struct mxfs_daemon *daemon = sbi->daemon;
	long left;
	int err;

	err = mxfs_daemon_spawn(sbi);
	if (err == -ENOENT || err == -EACCES) {
		errorf(fc, "mxfs: " MXFS_DAEMON_PATH " cannot be executed (error %d): is the daemon installed, and what it runs on?",
		       err);
		return err;
	}
	if (err) {
		errorf(fc, "mxfs: " MXFS_DAEMON_PATH " cannot be started: error %d", err);
		return err;
	}
	left = wait_event_killable_timeout(daemon->wait, mxfs_daemon_answered(daemon), msecs_to_jiffies(startup_ms));
	if (left < 0)
		return -EINTR;
	if (!left) {
		errorf(fc, "mxfs: %s: " MXFS_DAEMON_PATH " was not ready within %u ms (option startup); its log says what it waited for",
		       fc->source, startup_ms);
		return -ETIMEDOUT;
	}
	if (READ_ONCE(daemon->ready))
		return 0;
	if (mxfs_gate_fenced(&sbi->gate)) {
		errorf(fc, "mxfs: %s: fenced during start-up: %s", fc->source, sbi->gate.reason);
		return -EIO;
	}
	errorf(fc, "mxfs: %s: %s", fc->source, daemon->message);
	return daemon->error;
}

static int mxfs_mount_root(struct fs_context *fc, struct mxfs_sb_info *sbi)
{
	struct super_block *sb = sbi->sb;
	struct mxfs_attr attr = {};
	struct inode *inode;
	int err;

	err = mxfs_gate_enter(sbi);
	if (!err) {
		/* What is remembered of it are type and generation only: a root keeps these. */
		err = sbi->be->getroot(sbi, &attr);
		mxfs_gate_leave(sbi);
	}
	if (err) {
		errorf(fc, "mxfs: %s: the root directory cannot be read: error %d", fc->source, err);
		return err;
	}
	inode = mxfs_iget(sb, &attr);
	if (IS_ERR(inode))
		return PTR_ERR(inode);
	sb->s_root = d_make_root(inode);
	return sb->s_root ? 0 : -ENOMEM;
}

static int mxfs_test_super(struct super_block *sb, struct fs_context *fc)
{
	struct mxfs_sb_info *sbi = MXFS_SB(sb), *wanted = fc->s_fs_info;

	return sbi && sbi->dev == wanted->dev;
}

static int mxfs_get_tree(struct fs_context *fc)
{
	struct mxfs_options *opt = fc->fs_private;
	struct mxfs_sb_info *sbi;
	struct super_block *sb;
	int err;

	if (!fc->source || !*fc->source)
		return invalf(fc, "mxfs: no device given: mount -t mxfs DEVICE DIRECTORY");
	mxfs_options_profile(opt);
	err = mxfs_options_check(fc, opt);
	if (err)
		return err;
	sbi = kzalloc(sizeof(*sbi), GFP_KERNEL);
	if (!sbi)
		return -ENOMEM;
	INIT_LIST_HEAD(&sbi->list);
	refcount_set(&sbi->ref, 1);
	init_completion(&sbi->unreferenced);
	mutex_init(&sbi->role_mutex);
	strscpy(sbi->mountpoint, "-", sizeof(sbi->mountpoint));
	err = mxfs_probe(fc, sbi);
	if (err) {
		kfree(sbi);
		return err;
	}

	fc->s_fs_info = sbi;
	sb = sget_fc(fc, mxfs_test_super, set_anon_super_fc);
	if (IS_ERR(sb)) {
		fc->s_fs_info = NULL;
		kfree(sbi);
		return PTR_ERR(sb);
	}
	if (sb->s_root) {
		fc->s_fs_info = NULL;
		kfree(sbi);
		if ((fc->sb_flags ^ sb->s_flags) & SB_RDONLY) {
			errorf(fc, "mxfs: %s is mounted %s already: remount that, or use a bind mount", fc->source,
			       sb_rdonly(sb) ? "ro" : "rw");
			deactivate_locked_super(sb);
			return -EBUSY;
		}
		if (!mxfs_options_equal(&MXFS_SB(sb)->opt, opt)) {
			errorf(fc, "mxfs: %s is mounted already with other options: give the same ones, or unmount it first",
			       fc->source);
			deactivate_locked_super(sb);
			return -EBUSY;
		}
		fc->root = dget(sb->s_root);
		return 0;
	}

	/* The superblock is new and has sbi; from here on mxfs_kill_sb undoes everything. */
	sbi->opt = *opt;
	memset(opt, 0, sizeof(*opt));
	sbi->opt.device = kstrdup(fc->source, GFP_KERNEL);
	err = sbi->opt.device ? mxfs_sbi_start(sbi, sb) : -ENOMEM;
	if (!err)
		err = mxfs_fill_super(fc, sb);
	if (!err)
		err = mxfs_check_unclaimed(fc, sbi);
	if (!err) {
		if (sbi->opt.fence == MXFS_FENCE_NONE)
			mxfs_warn(sbi, "fence=none: nothing keeps a node that is taken for dead from writing; for tests only");
		err = mxfs_start_daemon(fc, sbi);
	}
	if (!err)
		err = mxfs_mount_root(fc, sbi);
	if (err) {
		deactivate_locked_super(sb);
		return err;
	}
	sb->s_flags |= SB_ACTIVE;
	if (READ_ONCE(sbi->role) == MXFS_ROLE_HOLDER)
		mxfs_lower_sweep_orphans(sbi);
	fc->root = dget(sb->s_root);
	return 0;
}

static int mxfs_reconfigure(struct fs_context *fc)
{
	struct super_block *sb = fc->root->d_sb;
	const char *changed;

	mxfs_options_profile(fc->fs_private);
	changed = mxfs_options_changed(&MXFS_SB(sb)->opt, fc->fs_private);
	if (changed)
		return invalf(fc, "mxfs: %s cannot be changed while mounted: unmount, and mount with the new value", changed);
	/* Read-only is what processes here may do; the node goes on taking part in the cluster. */
	if (fc->sb_flags & SB_RDONLY && !sb_rdonly(sb))
		return sync_filesystem(sb);
	return 0;
}

static void mxfs_free_fc(struct fs_context *fc)
{
	struct mxfs_options *opt = fc->fs_private;

	if (opt) {
		mxfs_options_free(opt);
		kfree(opt);
	}
}

static const struct fs_context_operations mxfs_context_ops = {
	.free = mxfs_free_fc,
	.parse_param = mxfs_parse_param,
	.get_tree = mxfs_get_tree,
	.reconfigure = mxfs_reconfigure,
};

static int mxfs_init_fs_context(struct fs_context *fc)
{
	fc->fs_private = kzalloc(sizeof(struct mxfs_options), GFP_KERNEL);
	if (!fc->fs_private)
		return -ENOMEM;
	fc->ops = &mxfs_context_ops;
	return 0;
}

/* ---------------------------------------------------------------- unmount */

static bool mxfs_daemon_ended(struct mxfs_daemon *daemon)
{
	bool ended;

	spin_lock(&daemon->lock);
	ended = !daemon->pid;
	spin_unlock(&daemon->lock);
	return ended;
}

/* Leave the cluster by the daemon; returns when the daemon is gone, one way or the other. */
static void mxfs_stop_daemon(struct mxfs_sb_info *sbi, unsigned int leave_ms)
{
	struct mxfs_daemon *daemon = sbi->daemon;
	struct sk_buff *skb;

	if (mxfs_nl_port(sbi) && !mxfs_gate_fenced(&sbi->gate)) {
		skb = mxfs_nl_new(sbi, MXFS_CMD_VOLUME_UNMOUNT, nla_total_size_64bit(8), GFP_KERNEL | __GFP_NOFAIL);
		if (skb && !nla_put_u64_64bit(skb, MXFS_A_REQ_ID, 1, MXFS_A_PAD))
			mxfs_nl_send(sbi, skb);
		else
			kfree_skb(skb);
		if (!wait_event_timeout(daemon->wait, READ_ONCE(daemon->unmount_done) || mxfs_daemon_ended(daemon),
					msecs_to_jiffies(leave_ms)))
			mxfs_err(sbi, "the daemon did not leave the cluster within %u ms; the unmount goes on without it",
				 leave_ms);
	}
	/* It is on its way out by itself. */
	if ((READ_ONCE(daemon->unmount_done) || READ_ONCE(daemon->start_failed)) &&
	    wait_event_timeout(daemon->wait, mxfs_daemon_ended(daemon), msecs_to_jiffies(MXFS_EXIT_MS)))
		return;
	if (mxfs_daemon_ended(daemon))
		return;
	mxfs_daemon_kill(daemon);
	if (!wait_event_timeout(daemon->wait, mxfs_daemon_ended(daemon), msecs_to_jiffies(MXFS_KILL_MS)))
		mxfs_err(sbi, MXFS_DAEMON_PATH " (pid %u) does not end", mxfs_super_daemon_pid(sbi));
}

/* The daemon has not done it. */
static void mxfs_leave_role(struct mxfs_sb_info *sbi)
{
	const char *why = "";
	int err = 0;

	/* The daemon is gone and what it sent is worked on: nobody else moves the gate. */
	if (!sbi->daemon_shut)
		mxfs_gate_shut(sbi, "unmount", false);
	sbi->daemon_shut = true;
	mutex_lock(&sbi->role_mutex);
	if (sbi->role != MXFS_ROLE_NONE)
		err = mxfs_role_none(sbi, &why);
	if (err)
		mxfs_err(sbi, "unmount: error %d: %s", err, why);
	mutex_unlock(&sbi->role_mutex);
}

static void mxfs_kill_sb(struct super_block *sb)
{
	struct mxfs_sb_info *sbi = MXFS_SB(sb);
	bool was_mounted = sb->s_root, started;
	unsigned int leave_ms;

	if (!sbi) {
		kill_anon_super(sb);
		return;
	}
	started = sbi->socks; /* the last of the parts */
	leave_ms = was_mounted ? sbi->opt.startup_ms ?: MXFS_STARTUP_MS_DEFAULT : MXFS_FAILED_MS;
	if (started) {
		/* From here on nothing of ours pins an inode. */
		WRITE_ONCE(sbi->stopping, true);
		if (was_mounted)
			queue_delayed_work(system_unbound_wq, &sbi->daemon->late_work, msecs_to_jiffies(leave_ms));
		mxfs_dlm_stop(sbi);
		cancel_delayed_work_sync(&sbi->gate.zap);
		flush_work(&sbi->gate.fence_work);
	}
	/* Flushes and evicts; the gate is open, and the holder goes on executing what members send. */
	generic_shutdown_super(sb);
	if (started) {
		if (was_mounted && mxfs_dlm_drop_all(sbi))
			mxfs_err(sbi, "not every lock could be given up in order");
		cancel_delayed_work_sync(&sbi->daemon->late_work);
		WRITE_ONCE(sbi->kstate, MXFS_KSTATE_STOPPING);
		mxfs_stop_daemon(sbi, leave_ms);
		mxfs_nl_flush(sbi);
		mxfs_leave_role(sbi);
	}
	if (sbi->mount_id)
		mxfs_sbi_stop(sbi);
	free_anon_bdev(sb->s_dev);
	mxfs_sbi_free(sbi);
}

struct file_system_type mxfs_fs_type = {
	.owner = THIS_MODULE,
	.name = "mxfs",
	.init_fs_context = mxfs_init_fs_context,
	.parameters = mxfs_parameters,
	.kill_sb = mxfs_kill_sb,
};
