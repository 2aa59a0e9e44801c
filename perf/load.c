// SPDX-License-Identifier: GPL-2.0-only
/*
 * mxfs-perf: the perf harness's own loads inside a guest, beside fio: metadata in one directory, and strict turns of
 * two nodes on one file. Static, because starting anything larger takes seconds in an emulated guest.
 *
 *   mxfs-perf meta DIR PREFIX COUNT SECONDS PHASE...
 *   mxfs-perf turns FILE 0|1 plain|fcntl|direct SECONDS
 *
 * Before each phase (turns have one) it prints "ready NAME" and waits for a line on standard input, so that two nodes
 * begin at the same time; then it prints one line of JSON:
 *
 *   {"phase": "create", "ops": 200, "seconds": 0.512, "longest_ms": 3.1}
 *   {"phase": "turns", "ops": 40, "seconds": 3.0, "longest_ms": 80.2, "last": 79, "looks": 912}
 *
 * A phase ends after COUNT operations or after SECONDS (0: no limit), whichever is first: rates stay right, and a
 * slow file system does not hold the run up. Nothing is removed but by the phase "unlink": the harness makes a new
 * file system each time. Every operation is checked; exit status 0 done, 1 an operation failed or showed something
 * else than expected, 2 wrong usage.
 *
 * Weakness: one process, one operation at a time; an operation in progress when the time is up is waited for.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TOOL_NAME "mxfs-perf"
#include "../lab/tool.h"

#define COUNT_MAX 1000000
#define SECONDS_MAX 86400
#define SMALL_BYTES 4096
#define TURN_BYTES 4096

/* Says that `phase` may begin, and waits until the harness says so, too. */
static void barrier(const char *phase)
{
	char byte;

	printf("ready %s\n", phase);
	fflush(stdout);
	do {
		if (read(0, &byte, 1) != 1)
			die("%s: standard input ended, expected a line that starts it", phase);
	} while (byte != '\n');
}

struct clock {
	double start, deadline, last, longest;
};

static void clock_start(struct clock *clock, double seconds)
{
	clock->start = clock->last = now_seconds();
	clock->deadline = seconds > 0 ? clock->start + seconds : 1e300;
	clock->longest = 0;
}

/* After each operation. Returns whether there is time for another one. */
static int clock_op(struct clock *clock)
{
	double now = now_seconds();

	if (now - clock->last > clock->longest)
		clock->longest = now - clock->last;
	clock->last = now;
	return now < clock->deadline;
}

struct meta {
	const char *dir, *prefix;
	/* Files of this process by number: [unlinked, made); those below `renamed` have their second name. */
	unsigned long count, made, renamed, unlinked, small;
};

static void file_name(char *into, size_t size, const struct meta *meta, const char *kind, unsigned long i)
{
	int used = snprintf(into, size, "%s/%s%s%06lu", meta->dir, meta->prefix, kind, i);

	if (used < 0 || (size_t)used >= size)
		die("%s: name too long", meta->dir);
}

static unsigned long phase_create(struct meta *meta, struct clock *clock)
{
	char path[4096];
	int more = 1;

	for (; more && meta->made < meta->count; more = clock_op(clock)) {
		file_name(path, sizeof(path), meta, "f", meta->made);
		int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);

		if (fd < 0 || close(fd))
			die("create %s: %s", path, strerror(errno));
		meta->made++;
	}
	return meta->made;
}

static unsigned long phase_stat(struct meta *meta, struct clock *clock)
{
	unsigned long done = 0;
	char path[4096];
	int more = 1;

	for (; more && done < meta->made; more = clock_op(clock), done++) {
		struct stat st;

		file_name(path, sizeof(path), meta, done < meta->renamed ? "r" : "f", done);
		if (stat(path, &st))
			die("stat %s: %s", path, strerror(errno));
		if (!S_ISREG(st.st_mode) || st.st_size != 0 || st.st_nlink != 1)
			die("stat %s: mode %o, size %lld, %lu links, expected an empty file with 1 link", path, st.st_mode,
			    (long long)st.st_size, (unsigned long)st.st_nlink);
	}
	return done;
}

/* What ls -l does: all entries, each with its attributes. */
static unsigned long phase_list(struct meta *meta, struct clock *clock)
{
	unsigned long done = 0, mine = 0;
	DIR *dir = opendir(meta->dir);
	struct dirent *entry;
	int more = 1;

	if (!dir)
		die("opendir %s: %s", meta->dir, strerror(errno));
	errno = 0;
	while (more && (entry = readdir(dir))) {
		struct stat st;

		if (entry->d_name[0] == '.')
			continue;
		if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW))
			die("stat %s/%s: %s", meta->dir, entry->d_name, strerror(errno));
		mine += !strncmp(entry->d_name, meta->prefix, strlen(meta->prefix));
		done++;
		more = clock_op(clock);
		errno = 0;
	}
	if (errno)
		die("readdir %s: %s", meta->dir, strerror(errno));
	closedir(dir);
	if (more && mine != meta->made - meta->unlinked + meta->small)
		die("readdir %s: %lu files %s*, expected %lu", meta->dir, mine, meta->prefix,
		    meta->made - meta->unlinked + meta->small);
	return done;
}

static unsigned long phase_rename(struct meta *meta, struct clock *clock)
{
	char from[4096], to[4096];
	int more = 1;

	for (; more && meta->renamed < meta->made; more = clock_op(clock)) {
		file_name(from, sizeof(from), meta, "f", meta->renamed);
		file_name(to, sizeof(to), meta, "r", meta->renamed);
		if (rename(from, to))
			die("rename %s %s: %s", from, to, strerror(errno));
		meta->renamed++;
	}
	return meta->renamed;
}

static unsigned long phase_small(struct meta *meta, struct clock *clock)
{
	static char data[SMALL_BYTES];
	char path[4096];
	int more = 1;

	memset(data, 'm', sizeof(data));
	for (; more && meta->small < meta->count; more = clock_op(clock)) {
		file_name(path, sizeof(path), meta, "s", meta->small);
		int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);

		if (fd < 0 || write(fd, data, sizeof(data)) != (ssize_t)sizeof(data) || close(fd))
			die("write %s: %s", path, strerror(errno));
		meta->small++;
	}
	return meta->small;
}

static unsigned long phase_unlink(struct meta *meta, struct clock *clock)
{
	char path[4096];
	int more = 1;

	for (; more && meta->unlinked < meta->made; more = clock_op(clock)) {
		file_name(path, sizeof(path), meta, meta->unlinked < meta->renamed ? "r" : "f", meta->unlinked);
		if (unlink(path))
			die("unlink %s: %s", path, strerror(errno));
		meta->unlinked++;
	}
	return meta->unlinked;
}

/* Not timed: "these files are there already, another node made them". */
static unsigned long phase_theirs(struct meta *meta, struct clock *clock)
{
	meta->made = meta->count;
	clock_op(clock);
	return meta->made;
}

static const struct phase {
	const char *name;
	unsigned long (*run)(struct meta *meta, struct clock *clock);
} PHASES[] = {
	{ "create", phase_create }, { "stat", phase_stat },	{ "list", phase_list },	    { "rename", phase_rename },
	{ "small", phase_small },   { "unlink", phase_unlink }, { "theirs", phase_theirs },
};

static const struct phase *find_phase(const char *name)
{
	for (size_t i = 0; i < sizeof(PHASES) / sizeof(PHASES[0]); i++) {
		if (!strcmp(PHASES[i].name, name))
			return &PHASES[i];
	}
	fprintf(stderr, "mxfs-perf: no phase \"%s\": expected create, stat, list, rename, small, unlink or theirs\n",
		name);
	exit(2);
}

static int meta(const char *dir, const char *prefix, unsigned long count, unsigned long seconds, char **names,
		int name_count)
{
	struct meta meta = { .dir = dir, .prefix = prefix, .count = count };
	struct clock clock;

	for (int i = 0; i < name_count; i++)
		find_phase(names[i]);
	if (mkdir(dir, 0755) && errno != EEXIST)
		die("mkdir %s: %s", dir, strerror(errno));
	for (int i = 0; i < name_count; i++) {
		const struct phase *phase = find_phase(names[i]);

		barrier(phase->name);
		clock_start(&clock, (double)seconds);
		unsigned long ops = phase->run(&meta, &clock);

		printf("{\"phase\": \"%s\", \"ops\": %lu, \"seconds\": %.6f, \"longest_ms\": %.3f}\n", phase->name, ops,
		       clock.last - clock.start, clock.longest * 1e3);
		fflush(stdout);
	}
	return 0;
}

enum turn_kind { TURN_PLAIN, TURN_FCNTL, TURN_DIRECT };

static void turn_lock(int fd, short type, const char *path)
{
	struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = 0, .l_len = TURN_BYTES };

	while (fcntl(fd, F_SETLKW, &lock)) {
		if (errno != EINTR)
			die("lock %s: %s", path, strerror(errno));
	}
}

/*
 * Strict turns: a process adds one when the value's parity is its own, and looks again and again until then. With
 * "fcntl" every look is made under a write lock; with "direct" past the page cache. Parity 0 makes the file.
 */
static int turns(const char *path, unsigned long parity, enum turn_kind kind, unsigned long seconds)
{
	size_t size = kind == TURN_DIRECT ? TURN_BYTES : sizeof(uint64_t);
	int flags = O_RDWR | (parity == 0 ? O_CREAT : 0);
	unsigned long mine = 0, looks = 0;
	struct clock clock;
	uint64_t last = 0;
	uint64_t *block;
	void *memory;
	int fd;

	if (posix_memalign(&memory, TURN_BYTES, TURN_BYTES))
		die("out of memory");
	block = memory;
	memset(block, 0, TURN_BYTES);
	fd = open(path, flags, 0644);
	if (fd < 0)
		die("open %s: %s", path, strerror(errno));
	if (parity == 0 && (pwrite(fd, block, TURN_BYTES, 0) != TURN_BYTES || fsync(fd)))
		die("write %s: %s", path, strerror(errno));
	if (kind == TURN_DIRECT) {
		close(fd);
		fd = open(path, O_RDWR | O_DIRECT);
		if (fd < 0)
			die("open %s with O_DIRECT: %s", path, strerror(errno));
	}
	barrier("turns");
	clock_start(&clock, (double)seconds);
	do {
		int my_turn;

		if (kind == TURN_FCNTL)
			turn_lock(fd, F_WRLCK, path);
		if (pread(fd, block, size, 0) != (ssize_t)size)
			die("read %s: %s", path, strerror(errno));
		if (block[0] < last)
			die("%s: the value is %llu, and was %llu before: expected it only to rise", path,
			    (unsigned long long)block[0], (unsigned long long)last);
		my_turn = block[0] % 2 == parity;
		last = block[0];
		if (my_turn) {
			last = ++block[0];
			if (pwrite(fd, block, size, 0) != (ssize_t)size)
				die("write %s: %s", path, strerror(errno));
			mine++;
		}
		if (kind == TURN_FCNTL)
			turn_lock(fd, F_UNLCK, path);
		looks++;
		if (!my_turn)
			sched_yield();
	} while (clock_op(&clock));
	printf("{\"phase\": \"turns\", \"ops\": %lu, \"seconds\": %.6f, \"longest_ms\": %.3f, \"last\": %llu, "
	       "\"looks\": %lu}\n",
	       mine, clock.last - clock.start, clock.longest * 1e3, (unsigned long long)last, looks);
	return close(fd) ? 1 : 0;
}

static unsigned long number(const char *text, unsigned long max)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end != '\0' || value > max) {
		fprintf(stderr, "mxfs-perf: \"%s\": expected a number from 0 to %lu\n", text, max);
		exit(2);
	}
	return value;
}

static int turn_kind(const char *name)
{
	static const char *const names[] = { "plain", "fcntl", "direct" };

	for (int kind = TURN_PLAIN; kind <= TURN_DIRECT; kind++) {
		if (!strcmp(names[kind], name))
			return kind;
	}
	fprintf(stderr, "mxfs-perf: \"%s\": expected plain, fcntl or direct\n", name);
	exit(2);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "meta") && argc >= 7)
		return meta(argv[2], argv[3], number(argv[4], COUNT_MAX), number(argv[5], SECONDS_MAX), argv + 6,
			    argc - 6);
	if (!strcmp(what, "turns") && argc == 6)
		return turns(argv[2], number(argv[3], 1), (enum turn_kind)turn_kind(argv[4]),
			     number(argv[5], SECONDS_MAX));
	fprintf(stderr, "usage: mxfs-perf meta DIR PREFIX COUNT SECONDS PHASE... |\n"
			"  turns FILE 0|1 plain|fcntl|direct SECONDS\n");
	return 2;
}
