// SPDX-License-Identifier: GPL-2.0-only
/*
 * One C client for all lock servers of `npm run perf:dlm`: takes and releases locks as fast as it is answered.
 *
 *   client mxfs  PORT DEPTH SECONDS BATCHED KEY   mxfsd's peer protocol, as node 1 of a view {1, 2}; BATCHED 0: a frame
 *                                                 for each 64-byte entry; 1: the entries of one write in one frame
 *   client redis PORT DEPTH SECONDS               SET key 1 NX, then DEL key
 *   client etcd  PORT 1 SECONDS                   a transaction that creates the key, then its deletion (HTTP gateway)
 *
 * DEPTH requests are outstanding. Prints: lock+unlock pairs per second, p50 and p99 of the time from a lock's request
 * to its answer, microseconds. A release of mxfs is a statement without an answer; it goes with the next request.
 *
 * Weakness: the client runs on the same two cores as the server.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DEPTH_MAX 1024
#define SAMPLES_MAX 4000000
#define RESOURCES 65536
#define BUFFER (1 << 20)

static int fd;
static uint8_t out[BUFFER], in[BUFFER];
static size_t out_len, in_len;
static double sent_at[DEPTH_MAX];
static float *samples;
static uint64_t pairs, sample_count;
static unsigned depth;

static void die(const char *what)
{
	fprintf(stderr, "client: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void flush_out(void)
{
	size_t done = 0;

	while (done < out_len) {
		ssize_t n = write(fd, out + done, out_len - done);

		if (n <= 0)
			die("write");
		done += (size_t)n;
	}
	out_len = 0;
}

static void put(const void *bytes, size_t len)
{
	if (out_len + len > BUFFER)
		die("output buffer");
	memcpy(out + out_len, bytes, len);
	out_len += len;
}

/* Adds to `in` what has arrived, at least one byte. */
static void fill_in(void)
{
	ssize_t n = read(fd, in + in_len, BUFFER - in_len);

	if (n <= 0)
		die("read");
	in_len += (size_t)n;
}

static void consume(size_t len)
{
	memmove(in, in + len, in_len - len);
	in_len -= len;
}

static void answered(unsigned slot, double now)
{
	if (sample_count < SAMPLES_MAX)
		samples[sample_count++] = (float)(now - sent_at[slot]);
}

/* ---- SHA-256 (FIPS 180-4) and HMAC (RFC 2104), for the handshake ---- */

static const uint32_t K[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotr(uint32_t x, int n)
{
	return x >> n | x << (32 - n);
}

static void sha_block(uint32_t h[8], const uint8_t *p)
{
	uint32_t w[64], s[8];

	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + (rotr(w[i - 15], 7) ^ rotr(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
		       (rotr(w[i - 2], 17) ^ rotr(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(s, h, sizeof(s));
	for (int i = 0; i < 64; i++) {
		uint32_t a = s[7] + (rotr(s[4], 6) ^ rotr(s[4], 11) ^ rotr(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) +
			     K[i] + w[i];
		uint32_t b = (rotr(s[0], 2) ^ rotr(s[0], 13) ^ rotr(s[0], 22)) +
			     ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));

		memmove(s + 1, s, 7 * sizeof(*s));
		s[4] += a;
		s[0] = a + b;
	}
	for (int i = 0; i < 8; i++)
		h[i] += s[i];
}

static void sha256(const uint8_t *p, size_t len, uint8_t digest[32])
{
	uint32_t h[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
	uint8_t last[128] = { 0 };
	size_t rest = len % 64, size = rest < 56 ? 64 : 128;

	for (size_t at = 0; at + 64 <= len; at += 64)
		sha_block(h, p + at);
	memcpy(last, p + len - rest, rest);
	last[rest] = 0x80;
	for (int i = 0; i < 8; i++)
		last[size - 1 - (size_t)i] = (uint8_t)((uint64_t)len * 8 >> (8 * i));
	for (size_t at = 0; at < size; at += 64)
		sha_block(h, last + at);
	for (int i = 0; i < 32; i++)
		digest[i] = (uint8_t)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void hmac(const uint8_t key[32], const uint8_t *p, size_t len, uint8_t mac[32])
{
	uint8_t inner[64 + 256], outer[64 + 32];

	memset(inner, 0x36, 64);
	memset(outer, 0x5c, 64);
	for (int i = 0; i < 32; i++) {
		inner[i] ^= key[i];
		outer[i] ^= key[i];
	}
	memcpy(inner + 64, p, len);
	sha256(inner, 64 + len, outer + 64);
	sha256(outer, 96, mac);
}

/* ---- mxfs (include/mxfs/wire.h; the machine is little endian) ---- */

#include "../../include/mxfs/abi.h"
#include "../../include/mxfs/wire.h"

#define VOLUME 77
#define SELF 1
#define SERVER 2
#define INCARNATION 1

static uint64_t frame_seq;
static uint64_t inos[RESOURCES];
static struct mxfs_lock_entry held[DEPTH_MAX];
static uint64_t next_ino, next_turn;

static void put_frame(uint16_t type, uint32_t target, const void *body, uint32_t len)
{
	uint8_t head[MXFS_WIRE_HEADER_SIZE] = { 0 };
	const uint32_t magic = MXFS_WIRE_MAGIC, sender = SELF;
	const uint16_t version = MXFS_WIRE_VERSION;
	const uint64_t epoch = 1;

	frame_seq++;
	memcpy(head, &magic, 4);
	memcpy(head + 4, &version, 2);
	memcpy(head + 6, &type, 2);
	memcpy(head + 8, &len, 4);
	memcpy(head + 16, &frame_seq, 8);
	memcpy(head + 24, &sender, 4);
	memcpy(head + 28, &target, 4);
	memcpy(head + 32, &epoch, 8);
	put(head, sizeof(head));
	put(body, len);
}

/* Waits for a whole frame at the head of `in`; returns its type. */
static unsigned whole_frame(uint32_t *len)
{
	uint16_t type;

	for (;;) {
		if (in_len >= MXFS_WIRE_HEADER_SIZE) {
			memcpy(&type, in + 6, 2);
			memcpy(len, in + 8, 4);
			if (in_len >= MXFS_WIRE_HEADER_SIZE + *len)
				return type;
		}
		fill_in();
	}
}

static void auth_code(const uint8_t key[32], uint32_t from, uint32_t to, uint32_t from_incarnation,
		      uint32_t to_incarnation, const uint8_t *from_nonce, const uint8_t *to_nonce, uint8_t mac[32])
{
	uint8_t text[9 + 24 + 64];
	const uint64_t volume = VOLUME;

	memcpy(text, "mxfs-auth", 9);
	memcpy(text + 9, &volume, 8);
	memcpy(text + 17, &from, 4);
	memcpy(text + 21, &to, 4);
	memcpy(text + 25, &from_incarnation, 4);
	memcpy(text + 29, &to_incarnation, 4);
	memcpy(text + 33, from_nonce, 32);
	memcpy(text + 65, to_nonce, 32);
	hmac(key, text, sizeof(text), mac);
}

static void handshake(const char *hex)
{
	uint8_t key[32], hello[56] = { 0 }, nonce[32] = { 7 }, mac[32], peer_nonce[32];
	const uint32_t version = MXFS_WIRE_VERSION, self = SELF, incarnation = INCARNATION;
	const uint64_t volume = VOLUME;
	uint32_t len, peer_incarnation;

	for (int i = 0; i < 32; i++)
		if (sscanf(hex + 2 * i, "%2hhx", key + i) != 1)
			die("key");
	memcpy(hello, &version, 4);
	memcpy(hello + 8, &volume, 8);
	memcpy(hello + 16, &self, 4);
	memcpy(hello + 20, &incarnation, 4);
	memcpy(hello + 24, nonce, 32);
	put_frame(MXFS_MSG_HELLO, SERVER, hello, sizeof(hello));
	flush_out();
	if (whole_frame(&len) != MXFS_MSG_HELLO)
		die("expected HELLO");
	memcpy(&peer_incarnation, in + MXFS_WIRE_HEADER_SIZE + 20, 4);
	memcpy(peer_nonce, in + MXFS_WIRE_HEADER_SIZE + 24, 32);
	consume(MXFS_WIRE_HEADER_SIZE + len);
	auth_code(key, SELF, SERVER, INCARNATION, peer_incarnation, nonce, peer_nonce, mac);
	put_frame(MXFS_MSG_AUTH, SERVER, mac, 32);
	flush_out();
	if (whole_frame(&len) != MXFS_MSG_AUTH)
		die("expected AUTH");
	auth_code(key, SERVER, SELF, peer_incarnation, INCARNATION, peer_nonce, nonce, mac);
	if (memcmp(in + MXFS_WIRE_HEADER_SIZE, mac, 32) != 0)
		die("the server does not know the key");
	consume(MXFS_WIRE_HEADER_SIZE + len);
	/* The lower node id selects the connection. */
	put_frame(MXFS_MSG_PING, SERVER, "", 0);
	flush_out();
	if (whole_frame(&len) != MXFS_MSG_PONG)
		die("expected PONG");
	consume(MXFS_WIRE_HEADER_SIZE + len);
}

static void choose_inos(void)
{
	uint64_t ino = 1;

	for (unsigned i = 0; i < RESOURCES; ino++) {
		struct mxfs_resource key = { .volume = VOLUME, .ino = ino, .type = MXFS_RES_INODE };
		const uint8_t *bytes = (const uint8_t *)&key;
		uint32_t hash = 0x811c9dc5;

		for (size_t b = 0; b < sizeof(key); b++)
			hash = (hash ^ bytes[b]) * 0x01000193;
		/* Of {1, 2} the server is the second. */
		if (hash % 2 == 1)
			inos[i++] = ino;
	}
}

static void next_request(unsigned slot)
{
	held[slot] = (struct mxfs_lock_entry){
		.resource = { .volume = VOLUME, .ino = inos[next_ino++ % RESOURCES], .type = MXFS_RES_INODE },
		.lock_id = ++next_turn * DEPTH_MAX + slot,
		.epoch = 1,
		.seq = 1,
		.mode = MXFS_MODE_EX,
		.node = SELF,
	};
}

static void run_mxfs(double until, int batched)
{
	static struct mxfs_lock_entry releases[DEPTH_MAX], requests[DEPTH_MAX];
	unsigned count = depth;

	/* Lock ids never come twice, over all runs against one server. */
	next_turn = (uint64_t)time(NULL) << 16;
	for (unsigned slot = 0; slot < depth; slot++) {
		next_request(slot);
		requests[slot] = held[slot];
	}
	unsigned released = 0, outstanding = 0;
	int stopping = 0;

	for (;;) {
		double now = now_us();

		/* What is granted behind the end is only given back: the next run finds an empty table. */
		if (now > until)
			stopping = 1;
		if (stopping)
			count = 0;
		if (batched) {
			if (released > 0)
				put_frame(MXFS_MSG_LOCK_RELEASE, SERVER, releases, released * 64);
			if (count > 0)
				put_frame(MXFS_MSG_LOCK_REQUEST, SERVER, requests, count * 64);
		} else {
			for (unsigned i = 0; i < (count > released ? count : released); i++) {
				if (i < released)
					put_frame(MXFS_MSG_LOCK_RELEASE, SERVER, &releases[i], 64);
				if (i < count)
					put_frame(MXFS_MSG_LOCK_REQUEST, SERVER, &requests[i], 64);
			}
		}
		for (unsigned i = 0; i < count; i++)
			sent_at[requests[i].lock_id % DEPTH_MAX] = now;
		outstanding += count;
		flush_out();
		if (outstanding == 0)
			return;
		count = released = 0;
		while (released == 0) {
			uint32_t len;
			size_t at = 0;

			whole_frame(&len);
			now = now_us();
			while (in_len - at >= MXFS_WIRE_HEADER_SIZE) {
				uint16_t type;

				memcpy(&type, in + at + 6, 2);
				memcpy(&len, in + at + 8, 4);
				if (in_len - at < MXFS_WIRE_HEADER_SIZE + len)
					break;
				const uint8_t *body = in + at + MXFS_WIRE_HEADER_SIZE;

				at += MXFS_WIRE_HEADER_SIZE + len;
				if (type == MXFS_MSG_PING)
					put_frame(MXFS_MSG_PONG, SERVER, "", 0);
				else if (type != MXFS_MSG_LOCK_GRANT && type != MXFS_MSG_PONG)
					die("a request was not granted");
				for (uint32_t e = 0; type == MXFS_MSG_LOCK_GRANT && e < len; e += 64) {
					struct mxfs_lock_entry grant;

					memcpy(&grant, body + e, 64);
					const unsigned slot = grant.lock_id % DEPTH_MAX;

					if (grant.lock_id != held[slot].lock_id)
						die("a grant nobody asked for");
					answered(slot, now);
					pairs++;
					outstanding--;
					releases[released++] = held[slot];
					next_request(slot);
					requests[count++] = held[slot];
				}
			}
			consume(at);
		}
	}
}

/* ---- Redis ---- */

static void run_redis(double until)
{
	static struct { unsigned slot; int set; uint64_t key; } queue[DEPTH_MAX];
	unsigned head = 0, length = 0;
	uint64_t key = 0;
	char text[128];
	double now;

	put("FLUSHALL\r\n", 10);
	flush_out();
	fill_in();
	consume(in_len);
	now = now_us();
	for (unsigned slot = 0; slot < depth; slot++) {
		int n = snprintf(text, sizeof(text), "*4\r\n$3\r\nSET\r\n$15\r\nlock:%010u\r\n$1\r\n1\r\n$2\r\nNX\r\n",
				 (unsigned)(key % RESOURCES));

		put(text, (size_t)n);
		queue[length].slot = slot;
		queue[length].set = 1;
		queue[length++].key = key++;
		sent_at[slot] = now;
	}
	for (;;) {
		size_t at = 0;

		flush_out();
		if (now > until)
			return;
		fill_in();
		now = now_us();
		for (;;) {
			const uint8_t *end = memchr(in + at, '\n', in_len - at);
			int n;

			if (end == NULL)
				break;
			if (in[at] != '+' && memcmp(in + at, ":1", 2) != 0)
				die("redis refused");
			at = (size_t)(end - in) + 1;
			const unsigned slot = queue[head % DEPTH_MAX].slot;
			const int set = queue[head % DEPTH_MAX].set;
			uint64_t of = queue[head % DEPTH_MAX].key;

			head++;
			if (set) {
				answered(slot, now);
				n = snprintf(text, sizeof(text), "*2\r\n$3\r\nDEL\r\n$15\r\nlock:%010u\r\n", (unsigned)(of % RESOURCES));
			} else {
				pairs++;
				of = key++;
				n = snprintf(text, sizeof(text), "*4\r\n$3\r\nSET\r\n$15\r\nlock:%010u\r\n$1\r\n1\r\n$2\r\nNX\r\n",
					     (unsigned)(of % RESOURCES));
				sent_at[slot] = now;
			}
			put(text, (size_t)n);
			queue[(head + depth - 1) % DEPTH_MAX].slot = slot;
			queue[(head + depth - 1) % DEPTH_MAX].set = !set;
			queue[(head + depth - 1) % DEPTH_MAX].key = of;
		}
		consume(at);
	}
}

/* ---- etcd ---- */

static void http(const char *path, const char *body)
{
	char text[1024];
	const char *end, *length;
	int n = snprintf(text, sizeof(text), "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n%s", path, strlen(body), body);

	put(text, (size_t)n);
	flush_out();
	for (;;) {
		fill_in();
		in[in_len] = 0;
		end = strstr((char *)in, "\r\n\r\n");
		length = strstr((char *)in, "Content-Length: ");
		if (end != NULL && length != NULL && in_len >= (size_t)(end - (char *)in) + 4 + (size_t)atoi(length + 16))
			break;
	}
	if (strncmp((char *)in, "HTTP/1.1 200", 12) != 0)
		die("etcd refused");
	in_len = 0;
}

static void run_etcd(double until)
{
	/* "lock": a key that must not exist yet. */
	static const char create[] = "{\"compare\":[{\"key\":\"bG9jaw==\",\"target\":\"VERSION\",\"version\":\"0\"}],"
				     "\"success\":[{\"requestPut\":{\"key\":\"bG9jaw==\",\"value\":\"MQ==\"}}]}";
	double now;

	while ((now = now_us()) < until) {
		sent_at[0] = now;
		http("/v3/kv/txn", create);
		answered(0, now_us());
		http("/v3/kv/deleterange", "{\"key\":\"bG9jaw==\"}");
		pairs++;
	}
}

static int by_size(const void *a, const void *b)
{
	const float x = *(const float *)a, y = *(const float *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	const int on = 1;

	if (argc < 5)
		return 2;
	depth = (unsigned)atoi(argv[3]);
	if (depth < 1 || depth >= DEPTH_MAX)
		return 2;
	samples = malloc(SAMPLES_MAX * sizeof(*samples));
	to.sin_port = htons((uint16_t)atoi(argv[2]));
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (samples == NULL || fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
		die("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	const int mxfs = strcmp(argv[1], "mxfs") == 0;

	if (mxfs && argc == 7) {
		choose_inos();
		handshake(argv[6]);
	}
	const double began = now_us(), until = began + atof(argv[4]) * 1e6;

	if (mxfs && argc == 7)
		run_mxfs(until, atoi(argv[5]));
	else if (strcmp(argv[1], "redis") == 0)
		run_redis(until);
	else if (strcmp(argv[1], "etcd") == 0)
		run_etcd(until);
	else
		return 2;
	const double took = (now_us() - began) / 1e6;

	qsort(samples, sample_count, sizeof(*samples), by_size);
	if (sample_count == 0)
		die("no lock was granted");
	printf("%.0f %.1f %.1f\n", (double)pairs / took, (double)samples[sample_count / 2],
	       (double)samples[sample_count * 99 / 100]);
	return 0;
}
