// SPDX-License-Identifier: GPL-2.0-only
/*
 * mxfs-fsx: random operations on one file, each checked against a model in memory, after the idea of Apple's fsx.
 *
 *	mxfs-fsx FILE MODEL SEED OPERATIONS [KINDS]     whole file; the model is read from MODEL and written back at the end,
 *	                                                so that another node can go on where this one stopped
 *	mxfs-fsx region FILE OFFSET BYTES SEED OPERATIONS   only that part of a file that others write to as well: no size changes
 *	mxfs-fsx power FILE SECONDS                     writes blocks in rounds, tells each round that fsync has acknowledged
 *	mxfs-fsx power-check FILE ROUNDS                every block is of that round or a later one
 *
 * KINDS is a word of letters: r w (buffered), R W (O_DIRECT), m M (mapped read, store), t (truncate), p z Z c i f u (fallocate: punch,
 * zero, zero beyond the end, collapse, insert, allocate, unshare), s (seek), y (copy within the file), k (clone within the file),
 * e (dedupe within the file), S (fsync), o (open anew), d (drop clean pages). All of them but k u e if it is missing. The same seed does
 * the same operations.
 *
 * What it checks: every byte read is the model's; the size is the model's; SEEK_HOLE's holes are zeros; after each run the whole file.
 *
 * Weakness: one operation at a time in a process; what races is what two nodes do at once (region), or one after the other.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SIZE_MAX_BYTES (1536 * 1024)
#define OP_MAX_BYTES (200 * 1024)
#define PAGE 4096
#define SECTOR 512
#define LOG_LINES 40
#define POWER_BLOCKS 64
#define POWER_BLOCK 16384

static unsigned char model[SIZE_MAX_BYTES];
static unsigned char *buffer; /* aligned */
static size_t size;
static const char *path;
static int fd = -1, direct_fd = -1;
static uint64_t state;
static unsigned long step;
static char history[LOG_LINES][120];

static void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void die(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "mxfs-fsx: %s: operation %lu: ", path, step);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputs("\nthe last operations:\n", stderr);
	for (unsigned long i = step >= LOG_LINES ? step - LOG_LINES + 1 : 0; i <= step; i++)
		fprintf(stderr, "  %lu %s\n", i, history[i % LOG_LINES]);
	exit(1);
}

static void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void note(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(history[step % LOG_LINES], sizeof(history[0]), format, args);
	va_end(args);
}

static uint64_t random64(void)
{
	uint64_t x = state += 0x9e3779b97f4a7c15ULL;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static size_t below(size_t limit)
{
	return limit ? random64() % limit : 0;
}

/* Mostly small, sometimes large; at least 1. */
static size_t some_length(size_t limit)
{
	size_t most = below(4) ? 9000 : OP_MAX_BYTES;

	if (most > limit)
		most = limit;
	return most ? 1 + below(most) : 0;
}

static void open_files(int flags)
{
	if (fd >= 0)
		close(fd);
	if (direct_fd >= 0)
		close(direct_fd);
	fd = open(path, O_RDWR | flags, 0644);
	if (fd < 0)
		die("open: %s", strerror(errno));
	direct_fd = open(path, O_RDWR | O_DIRECT);
	if (direct_fd < 0)
		die("open with O_DIRECT: %s", strerror(errno));
}

static void compare(size_t pos, size_t len, const unsigned char *found, const char *by)
{
	for (size_t i = 0; i < len; i++) {
		if (found[i] != model[pos + i])
			die("%s at %zu of %zu bytes: byte %zu (block %zu): expected %02x, found %02x", by, pos, len, pos + i,
			    (pos + i) / PAGE, model[pos + i], found[i]);
	}
}

static void read_check(int from, size_t pos, size_t len, size_t want, const char *by)
{
	size_t got = 0;

	memset(buffer, 0xee, len);
	while (got < len) {
		ssize_t n = pread(from, buffer + got, len - got, (off_t)(pos + got));

		if (n < 0)
			die("%s at %zu: %s", by, pos + got, strerror(errno));
		if (n == 0)
			break;
		got += (size_t)n;
		if (from == direct_fd)
			break;
	}
	if (got != want && !(from == direct_fd && got > 0 && got < want))
		die("%s at %zu: expected %zu bytes, found %zu", by, pos, want, got);
	compare(pos, got, buffer, by);
}

static void fill(size_t len)
{
	uint64_t word = random64();

	for (size_t i = 0; i < len; i++)
		buffer[i] = (unsigned char)((word >> (8 * (i % 8))) + i / 509) | 1;
}

static void grow_model(size_t to)
{
	if (to <= size)
		return;
	memset(model + size, 0, to - size);
	size = to;
}

static void do_write(int to, size_t pos, size_t len, const char *by)
{
	size_t done = 0;

	fill(len);
	while (done < len) {
		ssize_t n = pwrite(to, buffer + done, len - done, (off_t)(pos + done));

		if (n <= 0)
			die("%s at %zu of %zu bytes: %s", by, pos + done, len - done, n ? strerror(errno) : "nothing");
		done += (size_t)n;
	}
	if (pos + len > size)
		grow_model(pos + len);
	memcpy(model + pos, buffer, len);
}

static void do_mapped(size_t pos, size_t len, int store)
{
	size_t start = pos / PAGE * PAGE;
	unsigned char *map = mmap(NULL, pos + len - start, PROT_READ | (store ? PROT_WRITE : 0), MAP_SHARED, fd, (off_t)start);

	if (map == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	if (store) {
		fill(len);
		memcpy(map + pos - start, buffer, len);
		memcpy(model + pos, buffer, len);
	} else {
		compare(pos, len, map + pos - start, "mapped read");
	}
	munmap(map, pos + len - start);
}

static void do_fallocate(int mode, size_t pos, size_t len, const char *name)
{
	if (fallocate(fd, mode, (off_t)pos, (off_t)len))
		die("fallocate %s at %zu of %zu bytes: %s", name, pos, len, strerror(errno));
}

static void do_seek(void)
{
	size_t pos = below(size);
	off_t hole, data;

	if (!size)
		return;
	hole = lseek(fd, (off_t)pos, SEEK_HOLE);
	if (hole < (off_t)pos || (size_t)hole > size)
		die("SEEK_HOLE from %zu: found %lld, size %zu: %s", pos, (long long)hole, size, strerror(errno));
	if ((size_t)hole == size)
		return;
	data = lseek(fd, hole, SEEK_DATA);
	if (data < 0 && errno == ENXIO)
		data = (off_t)size;
	if (data < hole)
		die("SEEK_DATA from %lld: found %lld: %s", (long long)hole, (long long)data, strerror(errno));
	for (off_t i = hole; i < data; i++)
		if (model[i])
			die("SEEK_HOLE says hole from %lld to %lld, the model has %02x at %lld", (long long)hole,
			    (long long)data, model[i], (long long)i);
}

static void do_copy(size_t from, size_t to, size_t len)
{
	loff_t in = (loff_t)from, out = (loff_t)to;
	size_t left = len;

	while (left) {
		ssize_t n = copy_file_range(fd, &in, fd, &out, left, 0);

		if (n <= 0)
			die("copy_file_range %zu to %zu of %zu bytes: %s", from, to, left, n ? strerror(errno) : "nothing");
		left -= (size_t)n;
	}
	if (to + len > size)
		grow_model(to + len);
	memmove(model + to, model + from, len);
}

static void one_operation(char kind)
{
	size_t pos = below(size), len, to;
	size_t blocks = size / PAGE;

	switch (kind) {
	case 'r':
		len = some_length(size - pos);
		note("read %zu %zu", pos, len);
		if (len)
			read_check(fd, pos, len, len, "read");
		break;
	case 'R':
		pos = pos / SECTOR * SECTOR;
		len = (some_length(OP_MAX_BYTES) + SECTOR - 1) / SECTOR * SECTOR;
		note("read direct %zu %zu", pos, len);
		if (pos < size)
			read_check(direct_fd, pos, len, len < size - pos ? len : size - pos, "direct read");
		break;
	case 'w':
		pos = below(SIZE_MAX_BYTES / 3 + size * 2 / 3);
		len = some_length(SIZE_MAX_BYTES - pos);
		note("write %zu %zu", pos, len);
		do_write(fd, pos, len, "write");
		break;
	case 'W':
		to = below(2) ? PAGE : SECTOR;
		pos = below(SIZE_MAX_BYTES / 3 + size * 2 / 3) / to * to;
		len = (some_length(SIZE_MAX_BYTES - pos) + to - 1) / to * to;
		if (pos + len > SIZE_MAX_BYTES)
			len = SIZE_MAX_BYTES - pos;
		note("write direct %zu %zu", pos, len);
		if (len)
			do_write(direct_fd, pos, len, "direct write");
		break;
	case 'm':
	case 'M':
		len = some_length(size - pos);
		note("%s %zu %zu", kind == 'm' ? "mapped read" : "store", pos, len);
		if (len)
			do_mapped(pos, len, kind == 'M');
		break;
	case 't':
		to = below(3) ? below(size + 1) : below(SIZE_MAX_BYTES);
		note("truncate %zu to %zu", size, to);
		if (ftruncate(fd, (off_t)to))
			die("truncate: %s", strerror(errno));
		grow_model(to);
		size = to;
		break;
	case 'p':
	case 'z':
		len = some_length(size - pos);
		note("%s %zu %zu", kind == 'p' ? "punch" : "zero", pos, len);
		if (!len)
			break;
		do_fallocate((kind == 'p' ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE, pos, len,
			     kind == 'p' ? "punch" : "zero");
		memset(model + pos, 0, len);
		break;
	case 'Z':
	case 'u':
		pos = below(SIZE_MAX_BYTES / 3 + size * 2 / 3);
		len = some_length(SIZE_MAX_BYTES - pos);
		note("%s %zu %zu", kind == 'Z' ? "zero beyond" : "unshare", pos, len);
		if (!len)
			break;
		do_fallocate(kind == 'Z' ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_UNSHARE_RANGE, pos, len,
			     kind == 'Z' ? "zero beyond" : "unshare");
		if (pos + len > size)
			grow_model(pos + len);
		if (kind == 'Z')
			memset(model + pos, 0, len);
		break;
	case 'c':
		pos = below(blocks);
		len = blocks ? 1 + below(blocks - pos < 8 ? blocks - pos : 8) : 0;
		note("collapse %zu %zu", pos * PAGE, len * PAGE);
		if (!len || (pos + len) * PAGE >= size)
			break;
		do_fallocate(FALLOC_FL_COLLAPSE_RANGE, pos * PAGE, len * PAGE, "collapse");
		memmove(model + pos * PAGE, model + (pos + len) * PAGE, size - (pos + len) * PAGE);
		size -= len * PAGE;
		break;
	case 'i':
		pos = below(blocks) * PAGE;
		len = (1 + below(8)) * PAGE;
		note("insert %zu %zu", pos, len);
		if (pos >= size || size + len > SIZE_MAX_BYTES)
			break;
		do_fallocate(FALLOC_FL_INSERT_RANGE, pos, len, "insert");
		memmove(model + pos + len, model + pos, size - pos);
		memset(model + pos, 0, len);
		size += len;
		break;
	case 'f':
		pos = below(SIZE_MAX_BYTES / 2 + size / 2);
		len = some_length(SIZE_MAX_BYTES - pos);
		to = below(2);
		note("allocate %zu %zu%s", pos, len, to ? " keeping the size" : "");
		do_fallocate(to ? FALLOC_FL_KEEP_SIZE : 0, pos, len, "allocate");
		if (!to)
			grow_model(pos + len);
		break;
	case 's':
		note("seek");
		do_seek();
		break;
	case 'y':
		len = some_length(size - pos);
		to = below(SIZE_MAX_BYTES - len);
		note("copy %zu to %zu %zu", pos, to, len);
		if (len && (to + len <= pos || to >= pos + len))
			do_copy(pos, to, len);
		break;
	case 'k': {
		struct file_clone_range range = { .src_fd = fd };

		pos = below(blocks);
		len = blocks ? 1 + below(blocks - pos < 16 ? blocks - pos : 16) : 0;
		to = below(SIZE_MAX_BYTES / PAGE - len);
		note("clone %zu to %zu %zu", pos * PAGE, to * PAGE, len * PAGE);
		if (!len || (to < pos + len && pos < to + len))
			break;
		range.src_offset = pos * PAGE;
		range.src_length = len * PAGE;
		range.dest_offset = to * PAGE;
		if (ioctl(fd, FICLONERANGE, &range))
			die("clone: %s", strerror(errno));
		grow_model((to + len) * PAGE);
		memcpy(model + to * PAGE, model + pos * PAGE, len * PAGE);
		break;
	}
	case 'e': {
		union {
			struct file_dedupe_range range;
			char room[sizeof(struct file_dedupe_range) + sizeof(struct file_dedupe_range_info)];
		} ask = { .range = { .dest_count = 1 } };
		struct file_dedupe_range_info *info = ask.range.info;

		pos = below(blocks);
		len = blocks ? 1 + below(blocks - pos < 4 ? blocks - pos : 4) : 0;
		to = len ? below(blocks - len + 1) : 0;
		note("dedupe %zu and %zu %zu", pos * PAGE, to * PAGE, len * PAGE);
		if (!len || (to < pos + len && pos < to + len))
			break;
		ask.range.src_offset = pos * PAGE;
		ask.range.src_length = len * PAGE;
		info->dest_fd = fd;
		info->dest_offset = to * PAGE;
		if (ioctl(fd, FIDEDUPERANGE, &ask.range) || info->status < 0)
			die("dedupe: %s", strerror(info->status < 0 ? -info->status : errno));
		if ((info->status == FILE_DEDUPE_RANGE_SAME) != !memcmp(model + pos * PAGE, model + to * PAGE, len * PAGE))
			die("dedupe says that the ranges are %s", info->status == FILE_DEDUPE_RANGE_SAME ? "equal" : "not equal");
		break;
	}
	case 'S':
		note("fsync");
		if (below(2) ? fsync(fd) : fdatasync(fd))
			die("fsync: %s", strerror(errno));
		break;
	case 'o':
		note("open");
		open_files(0);
		break;
	case 'd':
		note("drop");
		if (fsync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
			die("dropping pages: %s", strerror(errno));
		break;
	default:
		fprintf(stderr, "mxfs-fsx: no kind of operation is called '%c'\n", kind);
		exit(2);
	}
}

static void check_all(void)
{
	struct stat st;

	if (fstat(fd, &st))
		die("stat: %s", strerror(errno));
	if ((size_t)st.st_size != size)
		die("expected a size of %zu, found %lld", size, (long long)st.st_size);
	for (size_t at = 0; at < size; at += OP_MAX_BYTES)
		read_check(fd, at, size - at < OP_MAX_BYTES ? size - at : OP_MAX_BYTES,
			   size - at < OP_MAX_BYTES ? size - at : OP_MAX_BYTES, "last read");
}

static int whole(const char *model_path, unsigned long operations, const char *kinds)
{
	int mfd = open(model_path, O_RDWR | O_CREAT, 0644);
	ssize_t n = 0;

	if (mfd < 0)
		die("model %s: %s", model_path, strerror(errno));
	while ((n = read(mfd, model + size, sizeof(model) - size)) > 0)
		size += (size_t)n;
	if (n < 0)
		die("model %s: %s", model_path, strerror(errno));
	open_files(O_CREAT);
	note("begin");
	check_all();
	for (step = 1; step <= operations; step++)
		one_operation(kinds[below(strlen(kinds))]);
	check_all();
	if (ftruncate(mfd, 0))
		die("model %s: %s", model_path, strerror(errno));
	for (size_t at = 0; at < size; at += (size_t)n) {
		n = pwrite(mfd, model + at, size - at, (off_t)at);
		if (n <= 0)
			die("model %s: %s", model_path, strerror(errno));
	}
	close(mfd);
	return 0;
}

/* The model begins at `offset` of the file here, as it is found. */
static int region(size_t offset, size_t bytes, unsigned long operations)
{
	if (bytes > SIZE_MAX_BYTES)
		die("a region of %zu bytes is too large", bytes);
	size_t pos, len;
	ssize_t n;

	open_files(O_CREAT);
	size = bytes;
	for (pos = 0; pos < bytes; pos += (size_t)n) {
		n = pread(fd, model + pos, bytes - pos, (off_t)(offset + pos));
		if (n <= 0)
			die("first read: %zd of %zu at %zu: the file must be there", n, bytes - pos, pos);
	}
	for (step = 1; step <= operations; step++) {
		int how = (int)below(4);

		pos = below(bytes);
		len = some_length(bytes - pos);
		if (how >= 2) { /* direct */
			pos = pos / PAGE * PAGE;
			len = (len + PAGE - 1) / PAGE * PAGE;
			if (pos + len > bytes)
				len = bytes - pos;
		}
		note("%s%s %zu %zu", how >= 2 ? "direct " : "", how % 2 ? "write" : "read", pos, len);
		if (how % 2) {
			fill(len);
			n = pwrite(how >= 2 ? direct_fd : fd, buffer, len, (off_t)(offset + pos));
			if (n != (ssize_t)len)
				die("write: %zd of %zu: %s", n, len, strerror(errno));
			memcpy(model + pos, buffer, len);
		} else {
			n = pread(how >= 2 ? direct_fd : fd, buffer, len, (off_t)(offset + pos));
			if (n != (ssize_t)len)
				die("read: %zd of %zu: %s", n, len, strerror(errno));
			compare(pos, len, buffer, "read");
		}
	}
	for (pos = 0; pos < bytes; pos += len) {
		len = bytes - pos < OP_MAX_BYTES ? bytes - pos : OP_MAX_BYTES;
		n = pread(fd, buffer, len, (off_t)(offset + pos));
		if (n != (ssize_t)len)
			die("read: %zd of %zu", n, len);
		compare(pos, len, buffer, "last read");
	}
	return 0;
}

static void power_block(uint64_t round, unsigned int block)
{
	uint64_t *words = (uint64_t *)(void *)buffer;

	for (unsigned int i = 0; i < POWER_BLOCK / 8; i++)
		words[i] = i % 2 ? block : round;
}

static int power(unsigned long seconds)
{
	time_t until = time(NULL) + (time_t)seconds;
	uint64_t round;

	open_files(O_CREAT);
	for (round = 1; time(NULL) < until; round++) {
		for (unsigned int block = 0; block < POWER_BLOCKS; block++) {
			power_block(round, block);
			if (pwrite(round % 2 ? direct_fd : fd, buffer, POWER_BLOCK, (off_t)block * POWER_BLOCK) != POWER_BLOCK)
				die("write of round %llu: %s", (unsigned long long)round, strerror(errno));
		}
		if (fsync(fd))
			die("fsync of round %llu: %s", (unsigned long long)round, strerror(errno));
		printf("%llu\n", (unsigned long long)round);
		fflush(stdout);
	}
	return 0;
}

static int power_check(unsigned long rounds)
{
	const uint64_t *words = (const uint64_t *)(const void *)buffer;

	open_files(0);
	for (unsigned int block = 0; block < POWER_BLOCKS; block++) {
		if (pread(fd, buffer, POWER_BLOCK, (off_t)block * POWER_BLOCK) != POWER_BLOCK)
			die("block %u: short: %s", block, strerror(errno));
		for (unsigned int i = 0; i < POWER_BLOCK / 8; i++) {
			uint64_t want = i % 2 ? block : rounds;

			if (i % 2 ? words[i] != want : words[i] < want)
				die("block %u, word %u: expected %llu%s, found %llu", block, i, (unsigned long long)want,
				    i % 2 ? "" : " or more", (unsigned long long)words[i]);
		}
	}
	return 0;
}

static unsigned long number(const char *text)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (*text == '\0' || *end != '\0') {
		fprintf(stderr, "mxfs-fsx: \"%s\" is not a number\n", text);
		exit(2);
	}
	return value;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (posix_memalign((void **)&buffer, PAGE, OP_MAX_BYTES + PAGE))
		return 1;
	path = argc > 2 ? argv[2] : "";
	if (!strcmp(what, "region") && argc == 7) {
		state = number(argv[5]);
		return region(number(argv[3]), number(argv[4]), number(argv[6]));
	}
	if (!strcmp(what, "power") && argc == 4)
		return power(number(argv[3]));
	if (!strcmp(what, "power-check") && argc == 4)
		return power_check(number(argv[3]));
	if (argc == 5 || argc == 6) {
		path = argv[1];
		state = number(argv[3]);
		return whole(argv[2], number(argv[4]), argc == 6 ? argv[5] : "rrwwRRWWmMtpzZcifsySod");
	}
	fprintf(stderr, "usage: mxfs-fsx FILE MODEL SEED OPERATIONS [KINDS] | region FILE OFFSET BYTES SEED OPERATIONS |\n"
			"  power FILE SECONDS | power-check FILE ROUNDS\n");
	return 2;
}
