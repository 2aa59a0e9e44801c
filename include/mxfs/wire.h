/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * MXFS: what peers send each other (TCP frames, UDP discovery packets). Little endian.
 *
 * Frame header, 40 bytes:
 *   0 magic u32   4 version u16   6 type u16   8 length u32 (of the body behind the header)
 *   12 flags u32 (0)   16 seq u64 (per connection and direction, from 1, without gaps)
 *   24 sender u32   28 target u32   32 epoch u64
 *
 * Header and ERROR are the same in all versions: whoever meets another version says so and closes.
 *
 * Connection: either side may dial. Both send HELLO first, 56 bytes:
 *   0 version u32   4 flags u32 (MXFS_HELLO_*)   8 volume u64   16 node u32   20 incarnation u32   24 nonce[32]
 * then AUTH, 32 bytes: HMAC-SHA256(cluster key, "mxfs-auth" || volume || sender || target || sender's
 * incarnation || target's incarnation || sender's nonce || target's nonce), and behind these, if either side's
 * flags are not 0, sender's flags || target's flags. Anything else before a valid AUTH closes the connection, and
 * so does a body above MXFS_HANDSHAKE_BODY_MAX. When both dial at once the side with the lower node id chooses.
 *
 * If either side has said MXFS_HELLO_ENCRYPT, everything behind AUTH, in both directions, is sealed in records:
 *   0 length u32 of the plain text   4 AES-256-GCM cipher text   4 + length: tag[16]
 * The plain texts, one after another, are the stream of frames. Key[32] and iv[12] of a direction are
 * HKDF-SHA256(cluster key, salt: sender's nonce || target's nonce, info: "mxfs-seal" || volume || sender || target
 * || sender's incarnation || target's incarnation), the sender being who seals. Additional data: the 4 bytes of
 * the length. Nonce of record n (from 0): iv XOR n, big endian in the last 8 bytes. After MXFS_SEAL_KEY_RECORDS
 * records: HKDF-SHA256(key, no salt, info: "mxfs-rekey") gives the next key and iv, and n begins at 0.
 */
#ifndef MXFS_WIRE_H
#define MXFS_WIRE_H

#define MXFS_WIRE_MAGIC 0x4D584653
#define MXFS_WIRE_VERSION 1
#define MXFS_WIRE_HEADER_SIZE 40
/* Longest body of a frame, bytes. */
#define MXFS_WIRE_BODY_MAX 65536
#define MXFS_WIRE_NONCE_SIZE 32
#define MXFS_WIRE_MAC_SIZE 32
/* Longest body of a frame before AUTH was right, bytes. */
#define MXFS_HANDSHAKE_BODY_MAX 2048

/* Flags of HELLO; any other is refused. */
#define MXFS_HELLO_ENCRYPT 0x1
/*
 * Said by who dialled: this connection is for the kernels. Who was dialled gives it to its own when AUTH was right, then sends PING;
 * at that the other side does. Nothing else is sent on it before. Not with MXFS_HELLO_ENCRYPT on either side: then it is closed.
 */
#define MXFS_HELLO_FSOP 0x2

/* Sealed records: longest plain text, tag, bytes; records under one key. */
#define MXFS_SEAL_PLAIN_MAX 131072
#define MXFS_SEAL_TAG_SIZE 16
#define MXFS_SEAL_KEY_RECORDS 4194304

enum mxfs_wire_type {
	MXFS_MSG_HELLO = 1,
	MXFS_MSG_AUTH = 2,
	MXFS_MSG_ERROR = 3,        /* {errno u32, utf-8 message}: said before closing */
	MXFS_MSG_PING = 4,
	MXFS_MSG_PONG = 5,

	/* Locks: bodies are struct mxfs_lock_entry[]. To the master: */
	MXFS_MSG_LOCK_REQUEST = 16,
	MXFS_MSG_LOCK_CONVERT = 17,
	MXFS_MSG_LOCK_RELEASE = 18, /* flag CANCEL: gives up a waiting request */
	MXFS_MSG_LOCK_RECLAIM = 19, /* between PREPARE and COMMIT only */
	/* From the master: */
	MXFS_MSG_LOCK_GRANT = 20,
	MXFS_MSG_LOCK_DENY = 21,
	MXFS_MSG_LOCK_BAST = 22,

	/* Fsops: {fsop id u64, offset u32, total u32} and the part's bytes. */
	MXFS_MSG_FSOP_REQUEST = 32,
	MXFS_MSG_FSOP_REPLY = 33,

	/* Membership; bodies are JSON objects (rare, and easy to extend), see docs/interfaces.md. */
	MXFS_MSG_JOIN = 48,
	MXFS_MSG_JOIN_REFUSED = 49,
	MXFS_MSG_PREPARE = 50,
	MXFS_MSG_PREPARED = 51,
	MXFS_MSG_REBUILD = 52,
	MXFS_MSG_REBUILD_SENT = 53,
	MXFS_MSG_REBUILT = 54,
	MXFS_MSG_COMMIT = 55,
	MXFS_MSG_COMMITTED = 56,
	MXFS_MSG_LEAVE = 57,
	MXFS_MSG_LEFT = 58,
	MXFS_MSG_GATE_SHUT = 59,
	MXFS_MSG_GATE_IS_SHUT = 60,
	MXFS_MSG_TAKE_OVER = 61,
	MXFS_MSG_TAKEN_OVER = 62,
	MXFS_MSG_LEASE_RENEW = 63,
	MXFS_MSG_LEASE_ACK = 64,
	MXFS_MSG_RESYNC = 65,

	/* Deadlocks of control clients; bodies are JSON objects, see docs/dlm.md. */
	MXFS_MSG_DEADLOCK_ASK = 80,   /* to the master: who is in the way of the last wait of this path? */
	MXFS_MSG_DEADLOCK_CHASE = 81, /* to the owner of locks in the way: what does their client wait for? */
	MXFS_MSG_DEADLOCK_BREAK = 82, /* to the owner of the youngest wait of a circle: deny it */
};

/*
 * Discovery packet (UDP), 112 bytes:
 *   0 magic u32   4 version u16   6 type u16 (1 announce, 2 query)   8 volume u64   16 node u32
 *   20 incarnation u32   24 role u32   28 port u16   30 family u16   32 address[16]
 *   48 epoch u64   56 counter u64 (rises within an incarnation)   64 node uuid[16]
 *   80 HMAC-SHA256(cluster key, bytes 0..79)
 */
#define MXFS_DISCOVERY_SIZE 112
#define MXFS_DISCOVERY_ANNOUNCE 1
#define MXFS_DISCOVERY_QUERY 2

#endif /* MXFS_WIRE_H */
