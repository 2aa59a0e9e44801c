/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * MXFS: fsops between wire and memory (mxfs_fsop.c), for the remote back end and the executor.
 */
#ifndef MXFS_FSOP_CODEC_H
#define MXFS_FSOP_CODEC_H

#include "mxfs.h"

/* What a request says, after all its lengths were checked. Pointers go into the payload. */
struct mxfs_fsop_parsed {
	u32 op, node, incarnation, fsuid, fsgid, umask, flags;
	u64 seq, acked, epoch, caps;
	u32 ngroups, name_len, name2_len, data_len;
	const u8 *groups; /* ngroups * le32, not aligned */
	const char *name, *name2;
	const void *data;
	struct mxfs_fsop_args args;
};

/* What a request is made of. Identity is that of current. */
struct mxfs_fsop_build {
	u32 op, flags; /* MXFS_REQ_* */
	struct mxfs_fsop_args args;
	const char *name, *name2;
	u32 name_len, name2_len;
	struct iov_iter *data; /* read on */
	u32 data_len;
};

void mxfs_fsop_put_handle(struct mxfs_handle *wire, const struct mxfs_fh *fh);
void mxfs_fsop_get_handle(struct mxfs_fh *fh, const struct mxfs_handle *wire);
void mxfs_fsop_put_attr(struct mxfs_wire_attr *wire, const struct mxfs_attr *attr);
/* All zero if absent. */
void mxfs_fsop_get_attr(struct mxfs_attr *attr, const struct mxfs_wire_attr *wire);
void mxfs_fsop_put_setattr(struct mxfs_fsop_args *args, const struct mxfs_setattr *set);
/* -EINVAL: ids or times that cannot be. */
int mxfs_fsop_get_setattr(struct mxfs_setattr *set, const struct mxfs_fsop_args *args);
void mxfs_fsop_put_statfs(struct mxfs_wire_statfs *wire, const struct kstatfs *st);
void mxfs_fsop_get_statfs(struct kstatfs *st, const struct mxfs_wire_statfs *wire);
void mxfs_fsop_put_lk(struct mxfs_fsop_args *args, const struct mxfs_lk *lk);
int mxfs_fsop_get_lk(struct mxfs_lk *lk, const struct mxfs_fsop_args *args);

/* -errno to what travels and back; what is not an errno of user space becomes EIO. */
u32 mxfs_fsop_put_error(int error);
int mxfs_fsop_get_error(u32 wire);

/* Allocates (kvfree) and fills the payload; seq, acked, epoch, node, incarnation are left zero. */
int mxfs_fsop_build_request(const struct mxfs_fsop_build *build, gfp_t gfp, void **payload, u32 *len);
/* -EPROTO and a reason if anything is out of bounds. */
int mxfs_fsop_parse_request(const void *payload, u32 len, struct mxfs_fsop_parsed *out, const char **why);
/* Copies the header; -EPROTO if it is not the answer to (op, seq) or its lengths are wrong. */
int mxfs_fsop_parse_reply(const void *payload, u32 len, u32 op, u64 seq, struct mxfs_fsop_reply *reply,
			  const void **data);
/* Checks READDIR's data: every entry inside, names that may stand in a directory. */
int mxfs_fsop_check_dirents(const void *data, u32 len);

/* Checks MAP's data against what was asked for, and what the disk has; -EPROTO. */
int mxfs_fsop_check_extents(const void *data, u32 len, u64 pos, u32 block, u64 disk_bytes);

/* Checks NAMES's data: every entry inside, names that may stand in a directory; -EPROTO. */
int mxfs_fsop_check_names(const void *data, u32 len);
/* Checks GETATTRS's data: one for each handle, of that inode or none, extents from 0 on that the disk has; -EPROTO. */
int mxfs_fsop_check_briefs(const void *data, u32 len, const struct mxfs_handle *handles, u32 count, u32 block, u64 disk_bytes);

bool mxfs_fsop_is_readonly(u32 op);
bool mxfs_fsop_is_lock(u32 op);

#endif /* MXFS_FSOP_CODEC_H */
