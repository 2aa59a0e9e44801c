// SPDX-License-Identifier: GPL-2.0-only
/*
 * MXFS: encoding and decoding of fsops.
 *
 * Everything that comes from another node is checked here, before anybody reads it: magic, version, every length against the
 * payload's, the sum of all against the whole (nothing may be left over), counts against their limits, names for what
 * they are used as. Behind parse_request() pointers are inside the payload and names can be names. Numbers of objects are
 * checked by the XFS, permissions by the VFS helpers.
 *
 * Known weakness: a member's kernel is trusted with the identity that it sends (as with NFS and AUTH_SYS); the cluster's key
 * decides who may be a member.
 */
#include <linux/build_bug.h>
#include <linux/cred.h>
#include <linux/fs_struct.h>
#include <linux/kdev_t.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <linux/user_namespace.h>
#include <linux/xattr.h>

#include "mxfs_fsop_codec.h"

static_assert(sizeof(struct mxfs_handle) == 16);
static_assert(sizeof(struct mxfs_wire_attr) == 128);
static_assert(sizeof(struct mxfs_fsop_request) == 96);
static_assert(sizeof(struct mxfs_fsop_args) == 136);
static_assert(sizeof(struct mxfs_fsop_reply) == 320);
static_assert(sizeof(struct mxfs_wire_dirent) == 24);
static_assert(sizeof(struct mxfs_wire_statfs) == 56);
static_assert(sizeof(struct mxfs_wire_lock) == 32);
static_assert(sizeof(struct mxfs_wire_extent) == 32);
static_assert(sizeof(struct mxfs_wire_range) == 16);
static_assert(sizeof(struct mxfs_wire_name) == 40);
static_assert(sizeof(struct mxfs_wire_brief) == 160);
static_assert(sizeof(struct mxfs_wire_brief) * MXFS_NAMES_MAX <= MXFS_FSOP_DATA_MAX);
static_assert(MXFS_NAMES_BYTES * MXFS_NAMES_MAX <= MXFS_FSOP_DATA_MAX);
static_assert(sizeof(struct mxfs_wire_extent) * MXFS_MAP_EXTENTS_MAX <= MXFS_FSOP_DATA_MAX);
static_assert(sizeof(struct mxfs_wire_range) * MXFS_COMMIT_RANGES_MAX <= MXFS_FSOP_DATA_MAX);
static_assert(sizeof(struct mxfs_fsop_request) + MXFS_FSOP_GROUPS_MAX * 4 + sizeof(struct mxfs_fsop_args) +
		      MXFS_NAME_LEN_MAX + MXFS_PATH_LEN_MAX + MXFS_FSOP_DATA_MAX <=
	      MXFS_FSOP_PAYLOAD_MAX);
static_assert(XATTR_SIZE_MAX <= MXFS_FSOP_DATA_MAX && XATTR_LIST_MAX <= MXFS_FSOP_DATA_MAX);

/* What an operation's name and name2 are. */
enum name_kind { NAME_NONE, NAME_ENTRY, NAME_ENTRY_OR_DOTS, NAME_XATTR, NAME_TARGET };

struct op_shape {
	u8 name, name2; /* enum name_kind */
	bool data, readonly, lock;
};

static const struct op_shape shapes[MXFS_FSOP_OP_MAX + 1] = {
	[MXFS_FSOP_GETROOT] = { .readonly = true },
	[MXFS_FSOP_LOOKUP] = { .name = NAME_ENTRY_OR_DOTS, .readonly = true },
	[MXFS_FSOP_GETATTR] = { .readonly = true },
	[MXFS_FSOP_MAKE] = { .name = NAME_ENTRY },
	[MXFS_FSOP_SYMLINK] = { .name = NAME_ENTRY, .name2 = NAME_TARGET },
	[MXFS_FSOP_LINK] = { .name = NAME_ENTRY },
	[MXFS_FSOP_UNLINK] = { .name = NAME_ENTRY },
	[MXFS_FSOP_RENAME] = { .name = NAME_ENTRY, .name2 = NAME_ENTRY },
	[MXFS_FSOP_READLINK] = { .readonly = true },
	[MXFS_FSOP_READDIR] = { .readonly = true },
	[MXFS_FSOP_READ] = { .readonly = true },
	[MXFS_FSOP_WRITE] = { .data = true },
	[MXFS_FSOP_STATFS] = { .readonly = true },
	[MXFS_FSOP_GETXATTR] = { .name = NAME_XATTR, .readonly = true },
	[MXFS_FSOP_SETXATTR] = { .name = NAME_XATTR, .data = true },
	[MXFS_FSOP_LISTXATTR] = { .readonly = true },
	[MXFS_FSOP_REMOVEXATTR] = { .name = NAME_XATTR },
	[MXFS_FSOP_SETLK] = { .lock = true },
	[MXFS_FSOP_GETLK] = { .lock = true },
	[MXFS_FSOP_CANCELLK] = { .lock = true },
	/* May run again when it is repeated, also where it allocates; so its extents need not be kept. */
	[MXFS_FSOP_MAP] = { .readonly = true },
	[MXFS_FSOP_COMMIT] = { .data = true },
	[MXFS_FSOP_SEEK] = { .readonly = true },
	[MXFS_FSOP_FORCE] = { .readonly = true },
	[MXFS_FSOP_NAMES] = { .readonly = true },
	[MXFS_FSOP_GETATTRS] = { .data = true, .readonly = true },
};

bool mxfs_fsop_is_readonly(u32 op)
{
	return op <= MXFS_FSOP_OP_MAX && shapes[op].readonly;
}

bool mxfs_fsop_is_lock(u32 op)
{
	return op <= MXFS_FSOP_OP_MAX && shapes[op].lock;
}

/* ---------------------------------------------------------------- pieces */

void mxfs_fsop_put_handle(struct mxfs_handle *wire, const struct mxfs_fh *fh)
{
	wire->ino = cpu_to_le64(fh->ino);
	wire->generation = cpu_to_le32(fh->gen);
	wire->pad = 0;
}

void mxfs_fsop_get_handle(struct mxfs_fh *fh, const struct mxfs_handle *wire)
{
	fh->ino = le64_to_cpu(wire->ino);
	fh->gen = le32_to_cpu(wire->generation);
}

void mxfs_fsop_put_attr(struct mxfs_wire_attr *wire, const struct mxfs_attr *attr)
{
	memset(wire, 0, sizeof(*wire));
	if (!attr->fh.ino)
		return;
	mxfs_fsop_put_handle(&wire->handle, &attr->fh);
	wire->mode = cpu_to_le32(attr->mode);
	wire->nlink = cpu_to_le32(attr->nlink);
	wire->uid = cpu_to_le32(attr->uid);
	wire->gid = cpu_to_le32(attr->gid);
	wire->rdev_major = cpu_to_le32(MAJOR(attr->rdev));
	wire->rdev_minor = cpu_to_le32(MINOR(attr->rdev));
	wire->blksize = cpu_to_le32(attr->blksize);
	wire->flags = cpu_to_le32(attr->flags);
	wire->size = cpu_to_le64(attr->size);
	wire->blocks = cpu_to_le64(attr->blocks);
	wire->change = cpu_to_le64(attr->change);
	wire->atime_sec = cpu_to_le64(attr->atime.tv_sec);
	wire->mtime_sec = cpu_to_le64(attr->mtime.tv_sec);
	wire->ctime_sec = cpu_to_le64(attr->ctime.tv_sec);
	wire->btime_sec = cpu_to_le64(attr->btime.tv_sec);
	wire->atime_nsec = cpu_to_le32(attr->atime.tv_nsec);
	wire->mtime_nsec = cpu_to_le32(attr->mtime.tv_nsec);
	wire->ctime_nsec = cpu_to_le32(attr->ctime.tv_nsec);
	wire->btime_nsec = cpu_to_le32(attr->btime.tv_nsec);
}

static struct timespec64 get_time(__le64 sec, __le32 nsec)
{
	struct timespec64 time = { .tv_sec = le64_to_cpu(sec), .tv_nsec = le32_to_cpu(nsec) };

	if (time.tv_nsec >= NSEC_PER_SEC)
		time.tv_nsec = NSEC_PER_SEC - 1;
	return time;
}

void mxfs_fsop_get_attr(struct mxfs_attr *attr, const struct mxfs_wire_attr *wire)
{
	memset(attr, 0, sizeof(*attr));
	mxfs_fsop_get_handle(&attr->fh, &wire->handle);
	if (!attr->fh.ino)
		return;
	attr->mode = le32_to_cpu(wire->mode);
	attr->nlink = le32_to_cpu(wire->nlink);
	attr->uid = le32_to_cpu(wire->uid);
	attr->gid = le32_to_cpu(wire->gid);
	attr->rdev = MKDEV(le32_to_cpu(wire->rdev_major), le32_to_cpu(wire->rdev_minor));
	attr->blksize = le32_to_cpu(wire->blksize);
	attr->flags = le32_to_cpu(wire->flags);
	attr->size = le64_to_cpu(wire->size);
	attr->blocks = le64_to_cpu(wire->blocks);
	attr->change = le64_to_cpu(wire->change);
	attr->atime = get_time(wire->atime_sec, wire->atime_nsec);
	attr->mtime = get_time(wire->mtime_sec, wire->mtime_nsec);
	attr->ctime = get_time(wire->ctime_sec, wire->ctime_nsec);
	attr->btime = get_time(wire->btime_sec, wire->btime_nsec);
}

/* The VFS's numbers may differ between kernels; ours do not. */
static const struct {
	u32 wire;
	unsigned int vfs;
} valid_bits[] = {
	{ MXFS_SET_MODE, ATTR_MODE },
	{ MXFS_SET_UID, ATTR_UID },
	{ MXFS_SET_GID, ATTR_GID },
	{ MXFS_SET_SIZE, ATTR_SIZE },
	{ MXFS_SET_ATIME, ATTR_ATIME },
	{ MXFS_SET_MTIME, ATTR_MTIME },
	{ MXFS_SET_CTIME, ATTR_CTIME },
	{ MXFS_SET_ATIME_SET, ATTR_ATIME_SET },
	{ MXFS_SET_MTIME_SET, ATTR_MTIME_SET },
	{ MXFS_SET_FORCE, ATTR_FORCE },
	{ MXFS_SET_KILL_SUID, ATTR_KILL_SUID },
	{ MXFS_SET_KILL_SGID, ATTR_KILL_SGID },
	{ MXFS_SET_KILL_PRIV, ATTR_KILL_PRIV },
};

void mxfs_fsop_put_setattr(struct mxfs_fsop_args *args, const struct mxfs_setattr *set)
{
	u32 valid = 0;
	int i;

	for (i = 0; i < ARRAY_SIZE(valid_bits); i++)
		if (set->valid & valid_bits[i].vfs)
			valid |= valid_bits[i].wire;
	args->valid = cpu_to_le32(valid);
	args->mode = cpu_to_le32(set->mode);
	args->uid = cpu_to_le32(from_kuid(&init_user_ns, set->uid));
	args->gid = cpu_to_le32(from_kgid(&init_user_ns, set->gid));
	args->size = cpu_to_le64(set->size);
	args->atime_sec = cpu_to_le64(set->atime.tv_sec);
	args->mtime_sec = cpu_to_le64(set->mtime.tv_sec);
	args->atime_nsec = cpu_to_le32(set->atime.tv_nsec);
	args->mtime_nsec = cpu_to_le32(set->mtime.tv_nsec);
}

int mxfs_fsop_get_setattr(struct mxfs_setattr *set, const struct mxfs_fsop_args *args)
{
	u32 valid = le32_to_cpu(args->valid), known = 0;
	int i;

	memset(set, 0, sizeof(*set));
	for (i = 0; i < ARRAY_SIZE(valid_bits); i++) {
		known |= valid_bits[i].wire;
		if (valid & valid_bits[i].wire)
			set->valid |= valid_bits[i].vfs;
	}
	if (valid & ~known)
		return -EINVAL;
	set->mode = le32_to_cpu(args->mode);
	set->uid = make_kuid(&init_user_ns, le32_to_cpu(args->uid));
	set->gid = make_kgid(&init_user_ns, le32_to_cpu(args->gid));
	if ((set->valid & ATTR_UID) && !uid_valid(set->uid))
		return -EINVAL;
	if ((set->valid & ATTR_GID) && !gid_valid(set->gid))
		return -EINVAL;
	set->size = le64_to_cpu(args->size);
	set->atime = get_time(args->atime_sec, args->atime_nsec);
	set->mtime = get_time(args->mtime_sec, args->mtime_nsec);
	return 0;
}

void mxfs_fsop_put_statfs(struct mxfs_wire_statfs *wire, const struct kstatfs *st)
{
	memset(wire, 0, sizeof(*wire));
	wire->blocks = cpu_to_le64(st->f_blocks);
	wire->bfree = cpu_to_le64(st->f_bfree);
	wire->bavail = cpu_to_le64(st->f_bavail);
	wire->files = cpu_to_le64(st->f_files);
	wire->ffree = cpu_to_le64(st->f_ffree);
	wire->bsize = cpu_to_le32(st->f_bsize);
	wire->frsize = cpu_to_le32(st->f_frsize);
	wire->namelen = cpu_to_le32(st->f_namelen);
}

void mxfs_fsop_get_statfs(struct kstatfs *st, const struct mxfs_wire_statfs *wire)
{
	st->f_blocks = le64_to_cpu(wire->blocks);
	st->f_bfree = le64_to_cpu(wire->bfree);
	st->f_bavail = le64_to_cpu(wire->bavail);
	st->f_files = le64_to_cpu(wire->files);
	st->f_ffree = le64_to_cpu(wire->ffree);
	st->f_bsize = le32_to_cpu(wire->bsize);
	st->f_frsize = le32_to_cpu(wire->frsize);
	st->f_namelen = le32_to_cpu(wire->namelen);
}

void mxfs_fsop_put_lk(struct mxfs_fsop_args *args, const struct mxfs_lk *lk)
{
	args->flags = cpu_to_le32((lk->flock ? MXFS_LK_FLOCK : 0) | (lk->wait ? MXFS_LK_WAIT : 0) |
				  (lk->reclaim ? MXFS_LK_RECLAIM : 0));
	args->offset = cpu_to_le64(lk->start);
	args->length = cpu_to_le64(lk->end);
	args->owner = cpu_to_le64(lk->owner);
	args->pid = cpu_to_le32(lk->pid);
	args->lock_type = cpu_to_le32(lk->type);
}

int mxfs_fsop_get_lk(struct mxfs_lk *lk, const struct mxfs_fsop_args *args)
{
	u32 flags = le32_to_cpu(args->flags), type = le32_to_cpu(args->lock_type);

	if ((flags & ~(MXFS_LK_FLOCK | MXFS_LK_WAIT | MXFS_LK_RECLAIM)) || (type != F_RDLCK && type != F_WRLCK && type != F_UNLCK))
		return -EINVAL;
	memset(lk, 0, sizeof(*lk));
	lk->flock = flags & MXFS_LK_FLOCK;
	lk->reclaim = flags & MXFS_LK_RECLAIM;
	lk->wait = (flags & MXFS_LK_WAIT) && type != F_UNLCK && !lk->reclaim;
	lk->start = le64_to_cpu(args->offset);
	lk->end = le64_to_cpu(args->length);
	lk->owner = le64_to_cpu(args->owner);
	lk->pid = le32_to_cpu(args->pid);
	lk->type = type;
	return 0;
}

u32 mxfs_fsop_put_error(int error)
{
	if (error >= 0)
		return 0;
	/* ERESTARTSYS and its kin mean something in the kernel that says them only. */
	return -error < 512 ? -error : EIO;
}

int mxfs_fsop_get_error(u32 wire)
{
	if (!wire)
		return 0;
	return wire < 512 ? -(int)wire : -EIO;
}

/* ---------------------------------------------------------------- requests */

/* The capabilities that the VFS and XFS ask for on behalf of a file operation. */
static u64 caps_of(const struct cred *cred)
{
	static const u8 wanted[] = {
		CAP_CHOWN,	 CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER,	   CAP_FSETID,	  CAP_SETFCAP,
		CAP_SYS_RESOURCE, CAP_SYS_ADMIN,	   CAP_MKNOD,		CAP_LINUX_IMMUTABLE, CAP_LEASE, CAP_MAC_OVERRIDE,
	};
	u64 caps = 0;
	int i;

	/* Capabilities of another user namespace are over its own ids only, which the holder cannot tell. */
	if (cred->user_ns != &init_user_ns)
		return 0;
	for (i = 0; i < ARRAY_SIZE(wanted); i++)
		if (cap_raised(cred->cap_effective, wanted[i]))
			caps |= BIT_ULL(wanted[i]);
	return caps;
}

int mxfs_fsop_build_request(const struct mxfs_fsop_build *build, gfp_t gfp, void **payload, u32 *len)
{
	const struct cred *cred = current_cred();
	const struct group_info *groups = cred->group_info;
	u32 ngroups = (build->flags & MXFS_REQ_KERNEL) ? 0 : groups->ngroups;
	struct mxfs_fsop_request *req;
	u32 size, i;
	u8 *at;

	if (ngroups > MXFS_FSOP_GROUPS_MAX) {
		pr_warn_ratelimited("mxfs: process %d is in %u groups, at most %u can be sent to the holder\n",
				    task_pid_nr(current), ngroups, MXFS_FSOP_GROUPS_MAX);
		return -E2BIG;
	}
	if (build->name_len > MXFS_NAME_LEN_MAX)
		return -ENAMETOOLONG;
	if (build->name2_len > MXFS_PATH_LEN_MAX)
		return -ENAMETOOLONG;
	if (build->data_len > MXFS_FSOP_DATA_MAX)
		return -EINVAL;
	size = sizeof(*req) + ngroups * sizeof(__le32) + sizeof(build->args) + build->name_len + build->name2_len +
	       build->data_len;
	req = kvmalloc(size, gfp);
	if (!req)
		return -ENOMEM;
	memset(req, 0, sizeof(*req));
	req->magic = cpu_to_le32(MXFS_FSOP_MAGIC);
	req->op = cpu_to_le16(build->op);
	req->version = cpu_to_le16(MXFS_FSOP_VERSION);
	req->fsuid = cpu_to_le32(from_kuid(&init_user_ns, cred->fsuid));
	req->fsgid = cpu_to_le32(from_kgid(&init_user_ns, cred->fsgid));
	req->caps = cpu_to_le64(caps_of(cred));
	/* A process that is exiting has none any more. */
	req->umask = cpu_to_le32(current->fs ? current_umask() : 0);
	req->ngroups = cpu_to_le32(ngroups);
	req->name_len = cpu_to_le32(build->name_len);
	req->name2_len = cpu_to_le32(build->name2_len);
	req->data_len = cpu_to_le32(build->data_len);
	req->flags = cpu_to_le32(build->flags);
	at = (u8 *)(req + 1);
	for (i = 0; i < ngroups; i++) {
		__le32 gid = cpu_to_le32(from_kgid(&init_user_ns, groups->gid[i]));

		memcpy(at, &gid, sizeof(gid));
		at += sizeof(gid);
	}
	memcpy(at, &build->args, sizeof(build->args));
	at += sizeof(build->args);
	memcpy(at, build->name, build->name_len);
	at += build->name_len;
	memcpy(at, build->name2, build->name2_len);
	at += build->name2_len;
	if (build->data_len && !copy_from_iter_full(at, build->data_len, build->data)) {
		kvfree(req);
		return -EFAULT;
	}
	*payload = req;
	*len = size;
	return 0;
}

static bool good_name(const char *name, u32 len, enum name_kind kind)
{
	switch (kind) {
	case NAME_NONE:
		return len == 0;
	case NAME_ENTRY:
		if ((len == 1 && name[0] == '.') || (len == 2 && name[0] == '.' && name[1] == '.'))
			return false;
		fallthrough;
	case NAME_ENTRY_OR_DOTS:
		return len >= 1 && len <= MXFS_NAME_LEN_MAX && !memchr(name, 0, len) && !memchr(name, '/', len);
	case NAME_XATTR:
		return len >= 1 && len <= XATTR_NAME_MAX && !memchr(name, 0, len);
	case NAME_TARGET:
		return len >= 1 && len < MXFS_PATH_LEN_MAX && !memchr(name, 0, len);
	}
	return false;
}

int mxfs_fsop_parse_request(const void *payload, u32 len, struct mxfs_fsop_parsed *out, const char **why)
{
	struct mxfs_fsop_request req;
	const struct op_shape *shape;
	const u8 *at = payload;
	u64 expected;

	memset(out, 0, sizeof(*out));
	*why = "shorter than its header";
	if (len < sizeof(req) + sizeof(out->args) || len > MXFS_FSOP_PAYLOAD_MAX)
		return -EPROTO;
	memcpy(&req, payload, sizeof(req));
	*why = "wrong magic";
	if (le32_to_cpu(req.magic) != MXFS_FSOP_MAGIC)
		return -EPROTO;
	*why = "another version of mxfs";
	if (le16_to_cpu(req.version) != MXFS_FSOP_VERSION)
		return -EPROTO;
	out->op = le16_to_cpu(req.op);
	out->seq = le64_to_cpu(req.seq);
	out->acked = le64_to_cpu(req.acked);
	out->epoch = le64_to_cpu(req.epoch);
	out->node = le32_to_cpu(req.node);
	out->incarnation = le32_to_cpu(req.incarnation);
	out->fsuid = le32_to_cpu(req.fsuid);
	out->fsgid = le32_to_cpu(req.fsgid);
	out->caps = le64_to_cpu(req.caps);
	out->umask = le32_to_cpu(req.umask) & 0777;
	out->flags = le32_to_cpu(req.flags);
	out->ngroups = le32_to_cpu(req.ngroups);
	out->name_len = le32_to_cpu(req.name_len);
	out->name2_len = le32_to_cpu(req.name2_len);
	out->data_len = le32_to_cpu(req.data_len);
	*why = "unknown operation";
	if (!out->op || out->op > MXFS_FSOP_OP_MAX)
		return -EPROTO;
	*why = "sequence number 0, or acknowledged beyond itself";
	if (!out->seq || out->acked > out->seq)
		return -EPROTO;
	*why = "a count beyond its limit";
	if (out->ngroups > MXFS_FSOP_GROUPS_MAX || out->name_len > MXFS_NAME_LEN_MAX ||
	    out->name2_len > MXFS_PATH_LEN_MAX || out->data_len > MXFS_FSOP_DATA_MAX)
		return -EPROTO;
	*why = "its parts do not add up to its length";
	expected = sizeof(req) + (u64)out->ngroups * sizeof(__le32) + sizeof(out->args) + out->name_len +
		   out->name2_len + out->data_len;
	if (expected != len)
		return -EPROTO;
	at += sizeof(req);
	out->groups = at;
	at += out->ngroups * sizeof(__le32);
	memcpy(&out->args, at, sizeof(out->args));
	at += sizeof(out->args);
	out->name = (const char *)at;
	at += out->name_len;
	out->name2 = (const char *)at;
	at += out->name2_len;
	out->data = at;

	shape = &shapes[out->op];
	*why = "a name that cannot be one";
	if (!good_name(out->name, out->name_len, shape->name) || !good_name(out->name2, out->name2_len, shape->name2))
		return -EPROTO;
	*why = "data for an operation that takes none";
	if (out->data_len && !shape->data)
		return -EPROTO;
	*why = NULL;
	return 0;
}

/* ---------------------------------------------------------------- replies */

int mxfs_fsop_parse_reply(const void *payload, u32 len, u32 op, u64 seq, struct mxfs_fsop_reply *reply,
			  const void **data)
{
	if (len < sizeof(*reply) || len > MXFS_FSOP_PAYLOAD_MAX)
		return -EPROTO;
	memcpy(reply, payload, sizeof(*reply));
	if (le32_to_cpu(reply->magic) != MXFS_FSOP_MAGIC || le16_to_cpu(reply->version) != MXFS_FSOP_VERSION ||
	    le16_to_cpu(reply->op) != op || le64_to_cpu(reply->seq) != seq)
		return -EPROTO;
	if (le32_to_cpu(reply->data_len) != len - sizeof(*reply) ||
	    le32_to_cpu(reply->data_len) > MXFS_FSOP_DATA_MAX)
		return -EPROTO;
	*data = payload + sizeof(*reply);
	return 0;
}

/* An entry of a directory, `head` bytes and its name, padded; `left` bytes are there. */
static bool good_entry(const void *entry, size_t head, u32 left, u32 reclen, u32 name_len, enum name_kind kind)
{
	return reclen <= left && reclen == ALIGN(head + name_len, 8) && good_name(entry + head, name_len, kind);
}

int mxfs_fsop_check_dirents(const void *data, u32 len)
{
	const struct mxfs_wire_dirent *entry;
	u32 at = 0, reclen;

	while (at < len) {
		entry = data + at;
		if (len - at < sizeof(*entry))
			return -EPROTO;
		reclen = le16_to_cpu(entry->reclen);
		if (!good_entry(entry, sizeof(*entry), len - at, reclen, le16_to_cpu(entry->name_len), NAME_ENTRY_OR_DOTS))
			return -EPROTO;
		at += reclen;
	}
	return 0;
}

int mxfs_fsop_check_extents(const void *data, u32 len, u64 pos, u32 block, u64 disk_bytes)
{
	const struct mxfs_wire_extent *ext = data;
	u32 i, count = len / sizeof(*ext), state;
	u64 offset, length, addr, next = 0;

	if (!count || len % sizeof(*ext) || count > MXFS_MAP_EXTENTS_MAX || !is_power_of_2(block))
		return -EPROTO;
	for (i = 0; i < count; i++) {
		offset = le64_to_cpu(ext[i].offset);
		length = le64_to_cpu(ext[i].length);
		addr = le64_to_cpu(ext[i].addr);
		state = le32_to_cpu(ext[i].state);
		if ((offset | length | addr) & (block - 1) || !length || offset > S64_MAX || length > S64_MAX - offset ||
		    state > MXFS_EXTENT_WRITTEN)
			return -EPROTO;
		if (i ? offset != next : (offset > pos || offset + length <= pos))
			return -EPROTO;
		if (state == MXFS_EXTENT_HOLE ? addr : (addr >= disk_bytes || length > disk_bytes - addr))
			return -EPROTO;
		next = offset + length;
	}
	return 0;
}

int mxfs_fsop_check_names(const void *data, u32 len)
{
	const struct mxfs_wire_name *entry;
	u32 at = 0, reclen;

	while (at < len) {
		entry = data + at;
		if (len - at < sizeof(*entry))
			return -EPROTO;
		reclen = le16_to_cpu(entry->reclen);
		if (!good_entry(entry, sizeof(*entry), len - at, reclen, le16_to_cpu(entry->name_len), NAME_ENTRY) || !le64_to_cpu(entry->handle.ino))
			return -EPROTO;
		at += reclen;
	}
	return 0;
}

int mxfs_fsop_check_briefs(const void *data, u32 len, const struct mxfs_handle *handles, u32 count, u32 block, u64 disk_bytes)
{
	const struct mxfs_wire_brief *briefs = data;
	u32 i;

	if (len != count * sizeof(*briefs))
		return -EPROTO;
	for (i = 0; i < count; i++) {
		const struct mxfs_handle *handle = &briefs[i].attr.handle;

		if (handle->ino && (handle->ino != handles[i].ino || handle->generation != handles[i].generation))
			return -EPROTO;
		if (briefs[i].extent.length &&
		    mxfs_fsop_check_extents(&briefs[i].extent, sizeof(briefs[i].extent), 0, block, disk_bytes))
			return -EPROTO;
	}
	return 0;
}
