// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: the internal mount of the XFS, and the directory .mxfs on it.
 *
 * Mounting: vfs_kern_mount with SB_KERNMOUNT (no namespace, and the last mntput tears down at once, not at somebody's
 * return to user space) and SB_NOUSER (a mount(2) of the same device finds this superblock and is refused). The mount
 * is noatime: mxfs keeps atime itself. If the device is already mounted as XFS on this host the VFS would share that
 * superblock with us; it lacks SB_NOUSER, and is refused.
 *
 * .mxfs/lockstate is made under a temporary name, allocated in one piece if XFS can, written with zeros, synced, renamed,
 * flagged immutable and no-defrag; then the XFS is frozen and thawed once, so that everything that leads to it is in
 * its place on the raw disk and not only in the log. A crash at any point leaves either no lockstate or a whole one.
 *
 * Unmounting: cached objects are dropped and their files closed by the worker before the mntput; afterwards the
 * device must be claimable exclusively, which proves that the XFS let go.
 *
 * Durability: two counters, changes of data and of metadata, tell whether there is anything to sync; callers that
 * wait for the mutex find their changes covered by the one that went before them (one log force for many).
 *
 * Known weakness: 6.1's XFS takes XFS_IOC_GOINGDOWN's argument from user memory only, so mxfs_lower_shutdown borrows the
 * daemon's. Without a daemon every call fails from then on all the same; but what XFS already has in memory can still reach the
 * disk until the disk refuses it (fenced by the reservation: XFS then shuts itself down) or the node unmounts.
 */
#include <linux/blkdev.h>
#include <linux/cred.h>
#include <linux/delay.h>
#include <linux/exportfs.h>
#include <linux/fileattr.h>
#include <linux/falloc.h>
#include <linux/kthread.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/namei.h>
#include <linux/random.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "mxfs_lower.h"
#include "mxfs_vfs.h"

#define MXFS_LOCKSTATE_TEMP_NAME "lockstate.new"
#define MXFS_ZERO_CHUNK (256 * 1024)
/* What the directory .mxfs must not hand on to what is made in it: other devices, quota trees, odd allocation. */
#define MXFS_XFLAGS_NOT_INHERITED \
	(FS_XFLAG_RTINHERIT | FS_XFLAG_PROJINHERIT | FS_XFLAG_EXTSZINHERIT | FS_XFLAG_NOSYMLINKS)
/* How often, and how long apart, the device is tried for after the unmount: another opener (udev) may hold it shortly. */
#define MXFS_CLAIM_TRIES 50
#define MXFS_CLAIM_PAUSE_MS 100

static const char *mount_failure(int error)
{
	switch (error) {
	case -EBUSY:
		return "the device is mounted or claimed by something else on this host: unmount that first";
	case -EROFS:
	case -EACCES:
		return "the device is read-only: the journal holder must be able to write";
	case -EUCLEAN:
		return "the XFS is damaged: run xfs_repair on the device while no node has it mounted";
	case -EINVAL:
		return "no XFS that this kernel can mount is on the device: see the kernel log; make one with mkfs.xfs";
	case -EBADE:
		return "the disk refused a write by its reservation: this node is not the reservation's holder";
	case -ENODEV:
		return "this kernel has no XFS: load the module xfs";
	case -ENOENT:
		return "the device is not there";
	default:
		return "mounting the XFS internally failed: see the kernel log";
	}
}

/* ---------------------------------------------------------------- .mxfs */

static int set_xflags(struct dentry *dentry, u32 set, u32 clear)
{
	struct fileattr old = {}, fa = {};
	u32 want;
	int err;

	err = vfs_fileattr_get(dentry, &old);
	if (err)
		return err;
	want = (old.fsx_xflags & ~clear) | set;
	if (want == old.fsx_xflags && (!(clear & FS_XFLAG_PROJINHERIT) || !old.fsx_projid))
		return 0;
	fileattr_fill_xflags(&fa, want & ~FS_XFLAG_HASATTR);
	if (!(clear & FS_XFLAG_PROJINHERIT))
		fa.fsx_projid = old.fsx_projid;
	return vfs_fileattr_set(&init_user_ns, dentry, &fa);
}

/* A directory of ours, made if it is not there. */
static int make_dir(struct mxfs_lower *lower, struct dentry *parent, const char *name, struct dentry **out)
{
	struct inode *dir = d_inode(parent);
	struct dentry *dentry;
	int err = 0;

	inode_lock_nested(dir, I_MUTEX_PARENT);
	dentry = lookup_one_len(name, parent, strlen(name));
	if (IS_ERR(dentry)) {
		err = PTR_ERR(dentry);
		goto out_unlock;
	}
	if (d_really_is_negative(dentry)) {
		err = vfs_mkdir(&init_user_ns, dir, dentry, 0700);
		if (!err)
			atomic64_inc(&lower->meta_changes);
	} else if (!d_is_dir(dentry)) {
		mxfs_err(lower->sbi, "%s is there and is not a directory: move it away (mount the XFS without mxfs)", name);
		err = -ENOTDIR;
	}
out_unlock:
	inode_unlock(dir);
	if (err) {
		if (!IS_ERR(dentry))
			dput(dentry);
		return err;
	}
	err = set_xflags(dentry, 0, MXFS_XFLAGS_NOT_INHERITED);
	if (err) {
		dput(dentry);
		return err;
	}
	*out = dentry;
	return 0;
}

static int write_zeros(struct file *file, u64 size)
{
	void *zeros = kvzalloc(MXFS_ZERO_CHUNK, GFP_KERNEL);
	loff_t pos = 0;
	int err = 0;

	if (!zeros)
		return -ENOMEM;
	/* One extent if there is room for it; where this is not possible the writes allocate. */
	err = vfs_fallocate(file, 0, 0, size);
	if (err == -EOPNOTSUPP)
		err = 0;
	while (!err && pos < size) {
		ssize_t done = kernel_write(file, zeros, min_t(u64, MXFS_ZERO_CHUNK, size - pos), &pos);

		if (done <= 0)
			err = done ? done : -EIO;
		cond_resched();
	}
	if (!err)
		err = vfs_fsync(file, 0);
	kvfree(zeros);
	return err;
}

static int create_lockstate(struct mxfs_lower *lower, u64 size, struct dentry **out)
{
	struct inode *dir = d_inode(lower->dir);
	struct dentry *dentry, *target;
	struct path path = { .mnt = lower->mnt };
	struct renamedata rename = {};
	struct file *file;
	int err;

	inode_lock_nested(dir, I_MUTEX_PARENT);
	dentry = lookup_one_len(MXFS_LOCKSTATE_TEMP_NAME, lower->dir, strlen(MXFS_LOCKSTATE_TEMP_NAME));
	if (!IS_ERR(dentry) && d_really_is_positive(dentry)) {
		/* Left by a crash half-way. */
		err = vfs_unlink(&init_user_ns, dir, dentry, NULL);
		dput(dentry);
		if (err) {
			inode_unlock(dir);
			return err;
		}
		dentry = lookup_one_len(MXFS_LOCKSTATE_TEMP_NAME, lower->dir, strlen(MXFS_LOCKSTATE_TEMP_NAME));
	}
	if (IS_ERR(dentry)) {
		inode_unlock(dir);
		return PTR_ERR(dentry);
	}
	err = vfs_create(&init_user_ns, dir, dentry, S_IFREG | 0600, true);
	inode_unlock(dir);
	if (err)
		goto out;

	err = set_xflags(dentry, FS_XFLAG_NODEFRAG, 0);
	if (err)
		goto out;
	path.dentry = dentry;
	file = dentry_open(&path, O_RDWR | O_LARGEFILE | O_NOATIME, lower->kcred);
	if (IS_ERR(file)) {
		err = PTR_ERR(file);
		goto out;
	}
	err = write_zeros(file, size);
	mxfs_lower_close(lower, file);
	if (err)
		goto out;

	inode_lock_nested(dir, I_MUTEX_PARENT);
	target = lookup_one_len(MXFS_LOCKSTATE_NAME, lower->dir, strlen(MXFS_LOCKSTATE_NAME));
	if (IS_ERR(target)) {
		err = PTR_ERR(target);
	} else {
		rename.old_mnt_userns = &init_user_ns;
		rename.new_mnt_userns = &init_user_ns;
		rename.old_dir = dir;
		rename.new_dir = dir;
		rename.old_dentry = dentry;
		rename.new_dentry = target;
		rename.flags = RENAME_NOREPLACE;
		err = d_really_is_positive(target) ? -EEXIST : vfs_rename(&rename);
		dput(target);
	}
	inode_unlock(dir);
out:
	if (err)
		dput(dentry);
	else
		*out = dentry;
	return err;
}

static int ensure_lockstate(struct mxfs_lower *lower, u64 size, struct mxfs_lockstate_info *info, const char **why)
{
	struct dentry *dentry;
	struct inode *inode;
	int err;

	dentry = lookup_one_len_unlocked(MXFS_LOCKSTATE_NAME, lower->dir, strlen(MXFS_LOCKSTATE_NAME));
	if (IS_ERR(dentry)) {
		*why = ".mxfs/lockstate cannot be looked up: see the kernel log";
		return PTR_ERR(dentry);
	}
	info->created = d_really_is_negative(dentry);
	if (info->created) {
		dput(dentry);
		err = create_lockstate(lower, size, &dentry);
		if (err) {
			*why = err == -ENOSPC ? "the file system is too full for .mxfs/lockstate: free some space" :
						".mxfs/lockstate cannot be made: see the kernel log";
			return err;
		}
	}
	inode = d_inode(dentry);
	err = -EINVAL;
	if (!S_ISREG(inode->i_mode)) {
		*why = ".mxfs/lockstate is not a regular file: remove it (mount the XFS without mxfs)";
		goto out;
	}
	if (i_size_read(inode) < size) {
		mxfs_err(lower->sbi, ".mxfs/lockstate has %lld bytes, %llu are needed", i_size_read(inode), size);
		*why = ".mxfs/lockstate is smaller than the lock records asked for: mount with fewer, or have every node unmount, remove it (chattr -i) and mount again";
		goto out;
	}
	err = set_xflags(dentry, FS_XFLAG_IMMUTABLE | FS_XFLAG_NODEFRAG, 0);
	if (err) {
		*why = ".mxfs/lockstate cannot be made immutable: see the kernel log";
		goto out;
	}
	info->ino = inode->i_ino;
	info->gen = inode->i_generation;
	info->size = i_size_read(inode);
	lower->hidden[1] = inode->i_ino;
	if (info->created) {
		/* In place on the raw disk, not only in the log: other nodes read it there. */
		err = freeze_super(lower->sb);
		if (!err)
			err = thaw_super(lower->sb);
		if (err)
			*why = "freezing the XFS once, to bring .mxfs/lockstate in place on the disk, failed";
	}
out:
	dput(dentry);
	return err;
}

/* ---------------------------------------------------------------- orphans */

struct orphan_scan {
	struct dir_context ctx;
	struct mxfs_lower *lower;
	int error;
};

static bool orphan_actor(struct dir_context *ctx, const char *name, int len, loff_t offset, u64 ino, unsigned int type)
{
	struct orphan_scan *scan = container_of(ctx, struct orphan_scan, ctx);
	unsigned long long named_ino;
	unsigned int gen;
	char copy[40];

	if ((len == 1 && name[0] == '.') || (len == 2 && name[0] == '.' && name[1] == '.'))
		return true;
	if (len < sizeof(copy)) {
		memcpy(copy, name, len);
		copy[len] = 0;
	}
	if (len >= sizeof(copy) || sscanf(copy, "%llu-%u", &named_ino, &gen) != 2 || named_ino != ino) {
		mxfs_warn(scan->lower->sbi, ".mxfs/orphans has an entry that mxfs did not make (inode %llu): left alone",
			  ino);
		return true;
	}
	scan->error = xa_err(xa_store(&scan->lower->parked, ino, xa_mk_value(gen), GFP_NOFS));
	return !scan->error;
}

/* What stands in .mxfs/orphans is parked, whoever parked it. */
static int note_orphans(struct mxfs_lower *lower)
{
	struct orphan_scan scan = { .ctx.actor = orphan_actor, .lower = lower };
	struct path path = { .mnt = lower->mnt, .dentry = lower->orphans };
	struct file *file;
	loff_t before;
	int err;

	file = dentry_open(&path, O_RDONLY | O_DIRECTORY | O_LARGEFILE | O_NOATIME, lower->kcred);
	if (IS_ERR(file))
		return PTR_ERR(file);
	do {
		before = scan.ctx.pos;
		err = iterate_dir(file, &scan.ctx);
	} while (!err && !scan.error && scan.ctx.pos != before);
	mxfs_lower_close(lower, file);
	return err ? err : scan.error;
}

/*
 * Opens and closes every orphan as a process would. The last close of a parked file takes its locks in EX, and removes it if
 * nobody in the cluster has it open: so this is safe at any time while the DLM works, whoever else is mounted.
 */
void mxfs_lower_sweep_orphans(struct mxfs_sb_info *sbi)
{
	struct mxfs_fh fh = {};
	struct mxfs_attr attr;
	struct inode *inode;
	unsigned long ino = 0;
	void *entry;
	int err, count = 0;

	for (;;) {
		err = mxfs_gate_enter(sbi);
		if (err)
			break;
		entry = sbi->lower ? xa_find_after(&sbi->lower->parked, &ino, ULONG_MAX, XA_PRESENT) : NULL;
		if (entry) {
			fh.ino = ino;
			fh.gen = xa_to_value(entry);
			err = mxfs_local_backend.getattr(sbi, &fh, &attr);
		}
		mxfs_gate_leave(sbi);
		if (!entry)
			break;
		inode = err ? ERR_PTR(err) : mxfs_iget(sbi->sb, &attr);
		if (IS_ERR(inode)) {
			err = PTR_ERR(inode);
		} else {
			err = mxfs_open_count_get(inode);
			if (!err)
				mxfs_open_count_put(inode);
			iput(inode);
		}
		if (err)
			mxfs_warn(sbi, "orphan %llu-%u cannot be looked at (%d): it stays in .mxfs/orphans until the next mount of a first node",
				  fh.ino, fh.gen, err);
		else
			count++;
	}
	if (count)
		mxfs_info(sbi, "%d files were unlinked while open when the volume was last used: removed unless still open", count);
}

/* ---------------------------------------------------------------- mount */

static int prepare_volume(struct mxfs_lower *lower, u64 lockstate_size, struct mxfs_lockstate_info *info,
			  const char **why)
{
	struct dentry *pool;
	int err;

	lower->root_ino = d_inode(lower->mnt->mnt_root)->i_ino;
	err = mnt_want_write(lower->mnt);
	if (err) {
		*why = "the XFS came up read-only: see the kernel log (xfs_repair may be needed)";
		return err;
	}
	*why = "the directory .mxfs cannot be made: see the kernel log";
	err = make_dir(lower, lower->mnt->mnt_root, MXFS_DIR_NAME, &lower->dir);
	if (err)
		goto out;
	lower->hidden[0] = d_inode(lower->dir)->i_ino;
	err = make_dir(lower, lower->dir, MXFS_ORPHANS_NAME, &lower->orphans);
	if (err)
		goto out;
	lower->hidden[2] = d_inode(lower->orphans)->i_ino;
	err = make_dir(lower, lower->dir, MXFS_POOL_NAME, &pool);
	if (err)
		goto out;
	lower->hidden[3] = d_inode(pool)->i_ino;
	dput(pool);
	/* The freeze in it waits for writers: it must not run under our own want_write. */
	mnt_drop_write(lower->mnt);
	err = ensure_lockstate(lower, lockstate_size, info, why);
	if (err)
		return err;
	err = note_orphans(lower);
	if (err) {
		*why = ".mxfs/orphans cannot be read: run xfs_repair";
		return err;
	}
	return 0;
out:
	mnt_drop_write(lower->mnt);
	return err;
}

static void free_lower(struct mxfs_lower *lower)
{
	xa_destroy(&lower->parked);
	if (lower->wq)
		destroy_workqueue(lower->wq);
	if (lower->kcred)
		put_cred(lower->kcred);
	kfree(lower);
}

/* Everything of ours that keeps the XFS mounted, then the mount itself. */
static void tear_down(struct mxfs_lower *lower)
{
	if (lower->locks)
		mxfs_locktab_destroy(lower);
	mxfs_lower_cache_drain(lower);
	dput(lower->orphans);
	dput(lower->dir);
	lower->orphans = NULL;
	lower->dir = NULL;
	flush_workqueue(lower->wq);
	mntput(lower->mnt);
	lower->mnt = NULL;
}

int mxfs_lower_mount(struct mxfs_sb_info *sbi, u64 lockstate_size, struct mxfs_lockstate_info *info, const char **why)
{
	struct file_system_type *type;
	const struct cred *old_cred;
	struct mxfs_lower *lower;
	struct vfsmount *mnt;
	int err;

	memset(info, 0, sizeof(*info));
	*why = NULL;
	if (WARN_ON_ONCE(sbi->lower)) {
		*why = "the XFS is mounted already";
		return -EBUSY;
	}
	lower = kzalloc(sizeof(*lower), GFP_KERNEL);
	if (!lower)
		return -ENOMEM;
	lower->sbi = sbi;
	lower->session = get_random_u64() | 1;
	xa_init(&lower->parked);
	err = -ENOMEM;
	lower->kcred = prepare_kernel_cred(NULL);
	lower->wq = alloc_workqueue("mxfs_lower", WQ_MEM_RECLAIM | WQ_UNBOUND, 1);
	if (!lower->kcred || !lower->wq)
		goto out_free;
	err = mxfs_lower_cache_init(lower);
	if (err)
		goto out_free;

	old_cred = override_creds(lower->kcred);
	type = get_fs_type("xfs");
	if (!type) {
		err = -ENODEV;
		*why = mount_failure(err);
		goto out_revert;
	}
	mnt = vfs_kern_mount(type, SB_KERNMOUNT | SB_NOUSER, sbi->opt.device, NULL);
	/* put_filesystem is not exported; this is what it does. The superblock holds its own reference. */
	module_put(type->owner);
	if (IS_ERR(mnt)) {
		err = PTR_ERR(mnt);
		*why = mount_failure(err);
		goto out_revert;
	}
	lower->mnt = mnt;
	lower->sb = mnt->mnt_sb;
	mnt->mnt_flags |= MNT_NOATIME | MNT_NODEV | MNT_NOEXEC;
	if (!(lower->sb->s_flags & SB_NOUSER)) {
		err = -EBUSY;
		*why = "the device is mounted as XFS on this host: unmount it first";
		goto out_unmount;
	}
	if (sb_rdonly(lower->sb)) {
		err = -EROFS;
		*why = mount_failure(err);
		goto out_unmount;
	}
	err = mxfs_locktab_init(lower);
	if (err)
		goto out_unmount;
	err = prepare_volume(lower, lockstate_size, info, why);
	if (err)
		goto out_unmount;
	revert_creds(old_cred);
	sbi->lower_mnt = mnt;
	/* Whoever sees it sees it complete. */
	smp_store_release(&sbi->lower, lower);
	return 0;

out_unmount:
	tear_down(lower);
out_revert:
	revert_creds(old_cred);
out_free:
	free_lower(lower);
	if (!*why)
		*why = err == -ENOMEM ? "not enough memory" : mount_failure(err);
	return err;
}

/* The XFS has let go of the disk when somebody else can claim it. */
static int prove_unmounted(struct mxfs_sb_info *sbi)
{
	struct block_device *bdev;
	int try;

	for (try = 0; try < MXFS_CLAIM_TRIES; try++) {
		bdev = blkdev_get_by_path(sbi->opt.device, FMODE_READ | FMODE_EXCL, sbi);
		if (!IS_ERR(bdev)) {
			blkdev_put(bdev, FMODE_READ | FMODE_EXCL);
			return 0;
		}
		if (PTR_ERR(bdev) != -EBUSY) {
			/* Gone, or unreadable: then nobody has it mounted through it either. */
			mxfs_warn(sbi, "opening the device after the unmount failed (%ld)", PTR_ERR(bdev));
			return PTR_ERR(bdev);
		}
		/* Nothing announces a claim's end; the last mntput above is synchronous, so this is for strangers. */
		msleep(MXFS_CLAIM_PAUSE_MS);
	}
	mxfs_err(sbi, "the XFS is unmounted, but the device is still claimed by something: expected nobody; look with lsblk and fuser");
	return -EBUSY;
}

int mxfs_lower_unmount(struct mxfs_sb_info *sbi)
{
	struct mxfs_lower *lower = sbi->lower;

	if (!lower)
		return 0;
	WRITE_ONCE(sbi->lower, NULL);
	sbi->lower_mnt = NULL;
	/* forget() comes from outside the gate. */
	synchronize_rcu();
	tear_down(lower);
	free_lower(lower);
	return prove_unmounted(sbi);
}

/* ---------------------------------------------------------------- durability */

void mxfs_lower_failed(struct mxfs_lower *lower, int err)
{
	if ((err != -EIO && err != -EBADE) || mxfs_gate_fenced(&lower->sbi->gate))
		return;
	if (err == -EBADE)
		mxfs_fence(lower->sbi, "the disk refused a write by its reservation: another node has fenced us");
	else if (lower->sb->s_op->sync_fs(lower->sb, 1) == -EIO) /* a log force: 6.1's XFS answers EIO once it is shut down */
		mxfs_fence(lower->sbi, "the XFS has shut itself down, see the kernel log: the disk failed, or damage was found");
}

int mxfs_lower_sync(struct mxfs_sb_info *sbi)
{
	struct mxfs_lower *lower = sbi->lower;
	s64 data, meta, want_data, want_meta;
	int err = 0;

	if (!lower || atomic_read(&lower->dead))
		return -EIO;
	want_data = atomic64_read(&lower->data_changes);
	want_meta = atomic64_read(&lower->meta_changes);
	mutex_lock(&lower->sync_mutex);
	if (lower->data_synced >= want_data && lower->meta_synced >= want_meta)
		goto out; /* covered by the sync that this one waited for, or nothing changed */
	data = atomic64_read(&lower->data_changes);
	meta = atomic64_read(&lower->meta_changes);
	if (lower->data_synced < want_data) {
		down_read(&lower->sb->s_umount);
		err = sync_filesystem(lower->sb);
		up_read(&lower->sb->s_umount);
	} else {
		/* On 6.1 this is XFS's log force. */
		data = lower->data_synced;
		err = lower->sb->s_op->sync_fs(lower->sb, 1);
	}
	if (!err) {
		lower->data_synced = data;
		WRITE_ONCE(lower->meta_synced, meta);
	}
out:
	mutex_unlock(&lower->sync_mutex);
	mxfs_lower_failed(lower, err);
	return err;
}

int mxfs_lower_commit(struct mxfs_sb_info *sbi)
{
	struct mxfs_lower *lower = sbi->lower;
	s64 meta, want;
	int err = 0;

	if (!lower || atomic_read(&lower->dead))
		return -EIO;
	want = atomic64_read(&lower->meta_changes);
	mutex_lock(&lower->sync_mutex);
	if (lower->meta_synced < want) {
		meta = atomic64_read(&lower->meta_changes);
		err = lower->sb->s_op->sync_fs(lower->sb, 1);
		if (!err)
			WRITE_ONCE(lower->meta_synced, meta);
	}
	mutex_unlock(&lower->sync_mutex);
	mxfs_lower_failed(lower, err);
	return err;
}

/* From fs/xfs/libxfs/xfs_fs.h, which is not among the headers of the kernel's packages. */
#define MXFS_XFS_IOC_GOINGDOWN _IOR('X', 125, u32)
#define MXFS_XFS_GOING_NOLOGFLUSH 0x2

/* The argument lies on a page of the daemon's that is there for this call only. */
static long going_down_in(struct mm_struct *mm, struct file *root)
{
	unsigned long page;
	long err;

	kthread_use_mm(mm);
	page = vm_mmap(NULL, 0, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0);
	if (IS_ERR_VALUE(page)) {
		err = (long)page;
	} else {
		err = put_user((u32)MXFS_XFS_GOING_NOLOGFLUSH, (u32 __user *)page);
		if (!err)
			err = root->f_op->unlocked_ioctl(root, MXFS_XFS_IOC_GOINGDOWN, page);
		vm_munmap(page, PAGE_SIZE);
	}
	kthread_unuse_mm(mm);
	return err;
}

/* Nothing of what XFS has in memory reaches the disk any more, its log neither. */
static long going_down(struct mxfs_lower *lower)
{
	struct path path = { .mnt = lower->mnt, .dentry = lower->mnt->mnt_root };
	struct task_struct *task;
	struct mm_struct *mm;
	struct file *root;
	struct pid *pid;
	long err;

	pid = find_get_pid((pid_t)mxfs_super_daemon_pid(lower->sbi));
	task = get_pid_task(pid, PIDTYPE_PID);
	put_pid(pid);
	if (!task)
		return -ESRCH;
	mm = get_task_mm(task);
	put_task_struct(task);
	if (!mm)
		return -ESRCH;
	root = dentry_open(&path, O_RDONLY | O_DIRECTORY, lower->kcred);
	if (IS_ERR(root)) {
		err = PTR_ERR(root);
	} else {
		err = root->f_op->unlocked_ioctl ? going_down_in(mm, root) : -ENOTTY;
		__fput_sync(root); /* no file of the XFS may outlive this call: it would keep it mounted */
	}
	mmput(mm);
	return err;
}

/* On a kernel thread, under role_mutex: the XFS stays mounted meanwhile. */
void mxfs_lower_shutdown(struct mxfs_sb_info *sbi)
{
	struct mxfs_lower *lower = READ_ONCE(sbi->lower);
	long err;

	if (!lower || atomic_xchg(&lower->dead, 1))
		return;
	mxfs_err(sbi, "the XFS is given up: every further operation on it fails");
	err = going_down(lower);
	/* Its root cannot be opened (EIO) once it has shut itself down: the disk was faster. */
	if (err && err != -EIO)
		mxfs_warn(sbi, "the XFS could not be told to shut down (%ld): it does when the disk refuses its next write", err);
}
