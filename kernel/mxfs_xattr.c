// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS extended attributes and POSIX ACLs.
 *
 * Values are not cached here: get takes PR, set takes EX, both ask the back end, with the caller's identity, so that
 * the lower XFS decides what is allowed. ACLs are stored by the lower XFS as system.posix_acl_*; the access ACL is also
 * kept in the VFS's ACL cache, for permission checks, while the INODE lock is held (mxfs_cache.c forgets it). An inode whose attributes say that it has none costs no message.
 *
 * Known weakness: every getxattr is a message on a member; only ACLs are cached.
 */
#include <linux/fs.h>
#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <linux/slab.h>
#include <linux/xattr.h>

#include "mxfs_vfs.h"

static int mxfs_xattr_get(const struct xattr_handler *handler, struct dentry *dentry, struct inode *inode,
			  const char *name, void *buf, size_t size)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	ssize_t ret;

	ret = mxfs_op_begin(sbi, &mi->lock, MXFS_MODE_PR);
	if (ret)
		return ret;
	ret = sbi->be->getxattr(sbi, &mi->fh, xattr_full_name(handler, name), buf, size);
	mxfs_op_end(sbi, &mi->lock, MXFS_MODE_PR);
	return ret;
}

static int mxfs_xattr_set(const struct xattr_handler *handler, struct user_namespace *userns, struct dentry *dentry,
			  struct inode *inode, const char *name, const void *value, size_t size, int flags)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	const char *full = xattr_full_name(handler, name);
	struct mxfs_inode *mi = MXFS_I(inode);
	struct mxfs_attr attr = {};
	int err;

	err = mxfs_op_begin(sbi, &mi->lock, MXFS_MODE_EX);
	if (err)
		return err;
	if (value)
		err = sbi->be->setxattr(sbi, &mi->fh, full, value, size, flags, &attr);
	else
		err = sbi->be->removexattr(sbi, &mi->fh, full, &attr);
	if (!err) {
		mxfs_lock_dirtied(&mi->lock);
		clear_bit(MXFS_VN_UNPRIVED, &MXFS_VN(inode)->state);
		forget_all_cached_acls(inode);
		if (attr.fh.ino)
			mxfs_attr_apply(inode, &attr, MXFS_APPLY_REPLY);
		else
			WRITE_ONCE(mi->attr_gen, 0);
	}
	mxfs_op_end(sbi, &mi->lock, MXFS_MODE_EX);
	return err;
}

ssize_t mxfs_listxattr(struct dentry *dentry, char *buf, size_t size)
{
	struct inode *inode = d_inode(dentry);
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	ssize_t ret;

	ret = mxfs_op_begin(sbi, &mi->lock, MXFS_MODE_PR);
	if (ret)
		return ret;
	ret = sbi->be->listxattr(sbi, &mi->fh, buf, size);
	mxfs_op_end(sbi, &mi->lock, MXFS_MODE_PR);
	return ret;
}

/* ------------------------------------------------------------------ ACLs */

/* Inside the gate. NULL: there is none. */
static struct posix_acl *mxfs_acl_read(struct inode *inode, int type)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	const char *name = type == ACL_TYPE_ACCESS ? XATTR_NAME_POSIX_ACL_ACCESS : XATTR_NAME_POSIX_ACL_DEFAULT;
	struct posix_acl *acl;
	const struct cred *old;
	ssize_t size;
	void *buf;

	buf = kvmalloc(XATTR_SIZE_MAX, GFP_KERNEL);
	if (!buf)
		return ERR_PTR(-ENOMEM);
	old = override_creds(mxfs_kernel_cred);
	size = sbi->be->getxattr(sbi, &mi->fh, name, buf, XATTR_SIZE_MAX);
	revert_creds(old);
	if (size == -ENODATA || size == -EOPNOTSUPP || size == 0)
		acl = NULL;
	else if (size < 0)
		acl = ERR_PTR(size);
	else
		acl = posix_acl_from_xattr(&init_user_ns, buf, size);
	kvfree(buf);
	return acl;
}

int mxfs_acl_fill(struct inode *inode)
{
	struct posix_acl *acl;

	if (!is_uncached_acl(READ_ONCE(inode->i_acl)))
		return 0;
	if (!(MXFS_I(inode)->lower_flags & MXFS_ATTR_HAS_ACL)) {
		set_cached_acl(inode, ACL_TYPE_ACCESS, NULL);
		return 0;
	}
	acl = mxfs_acl_read(inode, ACL_TYPE_ACCESS);
	if (IS_ERR(acl))
		return PTR_ERR(acl);
	set_cached_acl(inode, ACL_TYPE_ACCESS, acl);
	posix_acl_release(acl);
	return 0;
}

/* For callers that hold no lock of ours; mxfs_permission() has filled the cache before it gets here. */
struct posix_acl *mxfs_get_acl(struct inode *inode, int type, bool rcu)
{
	struct mxfs_sb_info *sbi = mxfs_inode_sbi(inode);
	struct mxfs_inode *mi = MXFS_I(inode);
	struct posix_acl *acl;
	int err;

	if (rcu)
		return ERR_PTR(-ECHILD);
	err = mxfs_op_begin(sbi, &mi->lock, MXFS_MODE_PR);
	if (err)
		return ERR_PTR(err);
	acl = mxfs_acl_read(inode, type);
	mxfs_op_end(sbi, &mi->lock, MXFS_MODE_PR);
	return acl;
}

static const struct xattr_handler mxfs_xattr_user = {
	.prefix = XATTR_USER_PREFIX,
	.get = mxfs_xattr_get,
	.set = mxfs_xattr_set,
};

static const struct xattr_handler mxfs_xattr_trusted = {
	.prefix = XATTR_TRUSTED_PREFIX,
	.get = mxfs_xattr_get,
	.set = mxfs_xattr_set,
};

static const struct xattr_handler mxfs_xattr_security = {
	.prefix = XATTR_SECURITY_PREFIX,
	.get = mxfs_xattr_get,
	.set = mxfs_xattr_set,
};

static const struct xattr_handler mxfs_xattr_acl_access = {
	.name = XATTR_NAME_POSIX_ACL_ACCESS,
	.flags = ACL_TYPE_ACCESS,
	.get = mxfs_xattr_get,
	.set = mxfs_xattr_set,
};

static const struct xattr_handler mxfs_xattr_acl_default = {
	.name = XATTR_NAME_POSIX_ACL_DEFAULT,
	.flags = ACL_TYPE_DEFAULT,
	.get = mxfs_xattr_get,
	.set = mxfs_xattr_set,
};

const struct xattr_handler *mxfs_xattr_handlers[] = {
	&mxfs_xattr_user,	&mxfs_xattr_trusted,	 &mxfs_xattr_security,
	&mxfs_xattr_acl_access, &mxfs_xattr_acl_default, NULL,
};
