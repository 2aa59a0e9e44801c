// SPDX-License-Identifier: GPL-2.0-only
/*
 * mxfs-work: the workloads of the demo, the lab tests and the perf harness, as one small static program,
 * because starting anything larger takes seconds in an emulated guest.
 *
 * Every subcommand checks what it does and says on standard error what was expected and what was found; exit
 * status 0 done, 1 something was wrong, 2 wrong usage. Contents are made from (seed, file number), so that another
 * node can verify them without having seen them.
 *
 * Weakness: figures are wall time of one process.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define TOOL_NAME "mxfs-work"
#include "tool.h"
#include "../include/mxfs/netlink.h"

#define FILE_BYTES_MAX 16384
#define RECORD_BYTES 64
#define DIR_FILES 100

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static size_t contents(unsigned long seed, unsigned long number, unsigned char *into)
{
	uint64_t state = mix((seed << 32) ^ number);
	size_t size = state % FILE_BYTES_MAX;

	for (size_t at = 0; at < size; at++) {
		if (at % 8 == 0)
			state = mix(state);
		into[at] = (unsigned char)(state >> (8 * (at % 8)));
	}
	return size;
}

static void tree_path(char *into, size_t size, const char *dir, unsigned long number)
{
	snprintf(into, size, "%s/d%03lu/f%05lu", dir, number / DIR_FILES, number);
}

static void write_all(int fd, const void *data, size_t size, const char *path)
{
	const char *at = data;

	while (size > 0) {
		ssize_t done = write(fd, at, size);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			die("write %s: %s", path, done < 0 ? strerror(errno) : "nothing written");
		at += done;
		size -= (size_t)done;
	}
}

static size_t read_all(const char *path, unsigned char *into, size_t size)
{
	int fd = open(path, O_RDONLY);
	size_t got = 0;

	if (fd < 0)
		die("open %s: %s", path, strerror(errno));
	while (got < size) {
		ssize_t done = read(fd, into + got, size - got);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			die("read %s: %s", path, strerror(errno));
		if (done == 0)
			break;
		got += (size_t)done;
	}
	close(fd);
	return got;
}

static void tree_make(const char *dir, unsigned long from, unsigned long to, unsigned long seed)
{
	static unsigned char data[FILE_BYTES_MAX];
	char path[4096];

	snprintf(path, sizeof(path), "%s/d%03lu", dir, from / DIR_FILES);
	if (mkdir(path, 0755) && errno != EEXIST)
		die("mkdir %s: %s", path, strerror(errno));
	for (unsigned long i = from; i < to; i++) {
		tree_path(path, sizeof(path), dir, i);
		int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);

		if (fd < 0)
			die("create %s: %s", path, strerror(errno));
		write_all(fd, data, contents(seed, i, data), path);
		if (close(fd))
			die("close %s: %s", path, strerror(errno));
	}
}

struct tree_total {
	_Atomic unsigned long files, bytes;
	_Atomic uint64_t sum;
};

static void tree_check(const char *dir, unsigned long from, unsigned long to, unsigned long seed,
		       struct tree_total *total)
{
	static unsigned char want[FILE_BYTES_MAX], got[FILE_BYTES_MAX + 1];
	char path[4096];

	for (unsigned long i = from; i < to; i++) {
		uint64_t sum = i;

		tree_path(path, sizeof(path), dir, i);
		size_t want_size = contents(seed, i, want);
		size_t got_size = read_all(path, got, sizeof(got));

		if (got_size != want_size)
			die("%s: %zu bytes, expected %zu", path, got_size, want_size);
		for (size_t at = 0; at < want_size; at++) {
			if (got[at] != want[at])
				die("%s: byte %zu is %02x, expected %02x", path, at, got[at], want[at]);
			sum = sum * 31 + got[at];
		}
		total->files++;
		total->bytes += want_size;
		total->sum += sum;
	}
}

/* Makes or checks a tree, its directories dealt out to `jobs` processes. */
static int tree(int check, const char *dir, unsigned long count, unsigned long seed, unsigned long jobs)
{
	struct tree_total *total = mmap(NULL, sizeof(*total), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int failed = 0, status;

	if (total == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	if (jobs < 1 || jobs > 64)
		die("%lu jobs: expected 1 to 64", jobs);
	if (!check && mkdir(dir, 0755) && errno != EEXIST)
		die("mkdir %s: %s", dir, strerror(errno));
	for (unsigned long job = 0; job < jobs; job++) {
		pid_t pid = fork();

		if (pid < 0)
			die("fork: %s", strerror(errno));
		if (pid)
			continue;
		for (unsigned long from = job * DIR_FILES; from < count; from += jobs * DIR_FILES) {
			unsigned long to = from + DIR_FILES < count ? from + DIR_FILES : count;

			if (check)
				tree_check(dir, from, to, seed, total);
			else
				tree_make(dir, from, to, seed);
		}
		_exit(0);
	}
	while (wait(&status) > 0)
		failed |= status;
	if (failed)
		die("a job failed, see above");
	if (!check)
		printf("made %lu files\n", count);
	else if (total->files != count)
		die("%lu files checked, expected %lu", total->files, count);
	else
		printf("checked %lu files, %lu bytes, sum %016llx\n", total->files, total->bytes,
		       (unsigned long long)total->sum);
	return 0;
}

/*
 * Files that only grow, for a watcher on another node: record k of a file says k, and a file is replaced (by rename) by a longer one
 * only.
 */
#define GROW_BYTES 16
#define GROW_RECORDS 512

static void grow_path(char *path, size_t size, const char *dir, unsigned long number)
{
	snprintf(path, size, "%s/grow%05lu", dir, number);
}

static void grow_add(int fd, const char *path, unsigned long from, unsigned long to)
{
	char record[32];

	for (unsigned long k = from; k < to; k++) {
		snprintf(record, sizeof(record), "%15lu\n", k);
		write_all(fd, record, GROW_BYTES, path);
	}
}

static int grow(const char *dir, unsigned long count, unsigned long changes, unsigned long seed)
{
	char path[4096], fresh[4096];
	struct stat st;
	int fd;

	for (unsigned long i = 0; i < count; i++) {
		grow_path(path, sizeof(path), dir, i);
		fd = open(path, O_CREAT | O_WRONLY, 0644);
		if (fd < 0 || close(fd))
			die("create %s: %s", path, strerror(errno));
	}
	for (unsigned long n = 0; n < changes; n++) {
		uint64_t random = mix((seed << 32) ^ n);

		grow_path(path, sizeof(path), dir, random % count);
		if (stat(path, &st))
			die("stat %s: %s", path, strerror(errno));
		unsigned long records = (unsigned long)st.st_size / GROW_BYTES;

		if (records >= GROW_RECORDS)
			continue;
		if (random >> 32 & 1) {
			fd = open(path, O_WRONLY | O_APPEND);
			if (fd < 0)
				die("open %s: %s", path, strerror(errno));
			grow_add(fd, path, records, records + 1);
		} else {
			snprintf(fresh, sizeof(fresh), "%s/new", dir);
			fd = open(fresh, O_CREAT | O_EXCL | O_WRONLY, 0644);
			if (fd < 0)
				die("create %s: %s", fresh, strerror(errno));
			grow_add(fd, fresh, 0, records + 2);
			if (rename(fresh, path))
				die("rename %s to %s: %s", fresh, path, strerror(errno));
		}
		if (close(fd))
			die("close %s: %s", path, strerror(errno));
	}
	printf("grown\n");
	return 0;
}

/* Looks at the files of `grow` until somebody has made DIR/stop, and once more behind that. */
static int grow_watch(const char *dir, unsigned long count)
{
	static unsigned char got[(GROW_RECORDS + 2) * GROW_BYTES + 1];
	off_t *seen = calloc(count, sizeof(*seen));
	unsigned long passes = 0, total = 0;
	char path[4096], want[32];
	struct stat st;
	int stop = 0;

	if (!seen)
		die("out of memory");
	for (;; passes++) {
		snprintf(path, sizeof(path), "%s/stop", dir);
		stop = !stat(path, &st);
		total = 0;
		for (unsigned long i = 0; i < count; i++) {
			grow_path(path, sizeof(path), dir, i);
			if (stat(path, &st))
				die("stat %s: %s", path, strerror(errno));
			if (st.st_size < seen[i])
				die("%s: %lld bytes, and %lld before", path, (long long)st.st_size, (long long)seen[i]);
			seen[i] = st.st_size;
			if ((i + passes) % 3) {
				total += (unsigned long)st.st_size;
				continue;
			}
			off_t bytes = (off_t)read_all(path, got, sizeof(got));

			if (bytes < seen[i] || bytes % GROW_BYTES)
				die("%s: %lld bytes read, its size had been %lld", path, (long long)bytes, (long long)seen[i]);
			for (off_t at = 0; at < bytes; at += GROW_BYTES) {
				snprintf(want, sizeof(want), "%15lu\n", (unsigned long)(at / GROW_BYTES));
				if (memcmp(got + at, want, GROW_BYTES))
					die("%s: at %lld stands \"%.16s\", expected \"%s\"", path, (long long)at, got + at, want);
			}
			seen[i] = bytes;
			total += (unsigned long)bytes;
		}
		if (stop)
			break;
	}
	printf("%lu passes, %lu bytes\n", passes, total);
	free(seen);
	return 0;
}

/* Appends `count` records of 64 bytes "ID NUMBER....\n" by O_APPEND. */
static int append(const char *path, const char *id, unsigned long count)
{
	char record[RECORD_BYTES + 1];
	int fd = open(path, O_CREAT | O_WRONLY | O_APPEND, 0644);

	if (fd < 0)
		die("open %s: %s", path, strerror(errno));
	for (unsigned long i = 0; i < count; i++) {
		int used = snprintf(record, sizeof(record), "%s %lu ", id, i);

		memset(record + used, '.', (size_t)(RECORD_BYTES - used));
		record[RECORD_BYTES - 1] = '\n';
		write_all(fd, record, RECORD_BYTES, path);
	}
	if (close(fd))
		die("close %s: %s", path, strerror(errno));
	return 0;
}

/* Every record whole, each id's records complete and in order. */
static int append_check(const char *path, char **ids, int id_count, unsigned long count)
{
	size_t size = (size_t)id_count * count * RECORD_BYTES;
	unsigned char *data = malloc(size + 1);
	unsigned long *next = calloc((size_t)id_count, sizeof(*next));

	if (!data || !next)
		die("out of memory");
	size_t got = read_all(path, data, size + 1);

	if (got != size)
		die("%s: %zu bytes, expected %zu: %ld bytes lost", path, got, size, (long)size - (long)got);
	for (size_t at = 0; at < size; at += RECORD_BYTES) {
		char id[33];
		unsigned long number;
		int which;

		if (sscanf((char *)data + at, "%32s %lu ", id, &number) != 2 || data[at + RECORD_BYTES - 1] != '\n')
			die("%s: record at %zu is torn", path, at);
		for (which = 0; which < id_count && strcmp(ids[which], id); which++)
			;
		if (which == id_count || number != next[which])
			die("%s: record at %zu is %s %lu, expected number %lu", path, at, id, number,
			    which == id_count ? 0 : next[which]);
		next[which]++;
	}
	printf("checked %d x %lu records\n", id_count, count);
	return 0;
}

/* Creates, renames, links and removes `count` names in a directory that others work in, too. Every fourth stays. */
static int churn(const char *dir, const char *id, unsigned long count)
{
	char a[4096], b[4096], c[4096];

	for (unsigned long i = 0; i < count; i++) {
		snprintf(a, sizeof(a), "%s/%s-new-%lu", dir, id, i);
		snprintf(b, sizeof(b), "%s/%s-%lu", dir, id, i);
		snprintf(c, sizeof(c), "%s/%s-link-%lu", dir, id, i);
		int fd = open(a, O_CREAT | O_EXCL | O_WRONLY, 0600);

		if (fd < 0)
			die("create %s: %s", a, strerror(errno));
		close(fd);
		if (rename(a, b))
			die("rename %s: %s", a, strerror(errno));
		if (!access(a, F_OK))
			die("%s is still there after its rename", a);
		if (i % 8 == 0 && link(b, c))
			die("link %s: %s", c, strerror(errno));
		if (i % 4 && unlink(b))
			die("unlink %s: %s", b, strerror(errno));
	}
	return 0;
}

/* Tries to make a file that is there, and its like as a directory, until `stop` is there: it must not succeed, nor fail otherwise. */
static int taken(const char *path, const char *stop)
{
	unsigned long tries = 0;
	char dir[4096];

	snprintf(dir, sizeof(dir), "%s.d", path);
	while (access(stop, F_OK)) {
		for (int i = 0; i < 50; i++, tries++) {
			if (open(path, O_CREAT | O_EXCL | O_WRONLY, 0644) >= 0)
				die("try %lu: %s was made, and had been there", tries, path);
			if (errno != EEXIST)
				die("create %s: %s", path, strerror(errno));
			if (!mkdir(dir, 0755))
				die("try %lu: %s was made, and had been there", tries, dir);
			if (errno != EEXIST)
				die("mkdir %s: %s", dir, strerror(errno));
		}
	}
	printf("%lu tries\n", tries);
	return 0;
}

static volatile uint64_t *map_word(const char *path, unsigned long offset, int write)
{
	int fd = open(path, write ? O_RDWR : O_RDONLY);
	long page = sysconf(_SC_PAGESIZE);
	char *base;

	if (fd < 0)
		die("open %s: %s", path, strerror(errno));
	base = mmap(NULL, (size_t)page, write ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd,
		    (off_t)(offset / (unsigned long)page * (unsigned long)page));
	if (base == MAP_FAILED)
		die("mmap %s: %s", path, strerror(errno));
	return (volatile uint64_t *)(base + offset % (unsigned long)page);
}

static void nap(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

/* Waits, reading through a shared mapping, until a word has a value. */
static int mmap_wait(const char *path, unsigned long offset, unsigned long value, double seconds)
{
	volatile uint64_t *word = map_word(path, offset, 0);
	double end = now_seconds() + seconds;

	while (*word != value) {
		if (now_seconds() > end)
			die("%s: word at %lu is %llu after %.1f s, expected %lu", path, offset,
			    (unsigned long long)*word, seconds, value);
		nap();
	}
	return 0;
}

/* Two nodes add in turns through shared mappings: `parity` says whose turn an even value is. */
static int mmap_turns(const char *path, unsigned long parity, unsigned long turns, double seconds)
{
	volatile uint64_t *word = map_word(path, 0, 1);
	double end = now_seconds() + seconds;
	unsigned long mine = 0;

	while (mine < turns) {
		uint64_t value = *word;

		if (value % 2 == parity) {
			*word = value + 1;
			mine++;
		} else if (now_seconds() > end) {
			die("%s: stuck at %llu after %lu turns", path, (unsigned long long)value, mine);
		} else {
			nap();
		}
	}
	return 0;
}

/* Strict turns through read and write: each waits to read the other's value. Prints turns per second. */
static int file_turns(const char *path, unsigned long parity, unsigned long turns, double seconds)
{
	int fd = open(path, O_RDWR | O_CREAT, 0644);
	double start = now_seconds(), end = start + seconds;
	unsigned long mine = 0;

	if (fd < 0)
		die("open %s: %s", path, strerror(errno));
	while (mine < turns) {
		uint64_t value = 0;

		if (pread(fd, &value, sizeof(value), 0) < 0)
			die("read %s: %s", path, strerror(errno));
		if (value % 2 == parity) {
			value++;
			if (pwrite(fd, &value, sizeof(value), 0) != sizeof(value))
				die("write %s: %s", path, strerror(errno));
			mine++;
		} else if (now_seconds() > end) {
			die("%s: stuck at %llu after %lu turns", path, (unsigned long long)value, mine);
		}
	}
	printf("{\"turns_per_second\": %.2f}\n", (double)mine / (now_seconds() - start));
	return 0;
}

/* Increments a counter in a file under a lock, `count` times. */
static int locked_add(const char *path, const char *kind, unsigned long count)
{
	int fd = open(path, O_RDWR | O_CREAT, 0644);

	if (fd < 0)
		die("open %s: %s", path, strerror(errno));
	for (unsigned long i = 0; i < count; i++) {
		struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 8 };
		uint64_t value = 0;
		int failed = strcmp(kind, "flock") ? fcntl(fd, F_SETLKW, &lock) : flock(fd, LOCK_EX);

		if (failed)
			die("lock %s: %s", path, strerror(errno));
		if (pread(fd, &value, sizeof(value), 0) < 0)
			die("read %s: %s", path, strerror(errno));
		value++;
		if (pwrite(fd, &value, sizeof(value), 0) != sizeof(value))
			die("write %s: %s", path, strerror(errno));
		lock.l_type = F_UNLCK;
		failed = strcmp(kind, "flock") ? fcntl(fd, F_SETLK, &lock) : flock(fd, LOCK_UN);
		if (failed)
			die("unlock %s: %s", path, strerror(errno));
	}
	return 0;
}

/* Takes a lock, says "held", and keeps it until standard input ends. */
static int hold(const char *path, const char *kind)
{
	int fd = open(path, O_RDWR | O_CREAT, 0644);
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	char byte;

	if (fd < 0)
		die("open %s: %s", path, strerror(errno));
	if (strcmp(kind, "flock") ? fcntl(fd, F_SETLKW, &lock) : flock(fd, LOCK_EX))
		die("lock %s: %s", path, strerror(errno));
	puts("held");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}

/* Tries a lock without waiting: prints "free" or "busy TYPE PID" (fcntl only: F_GETLK). */
static int try_lock(const char *path, const char *kind)
{
	int fd = open(path, O_RDWR | O_CREAT, 0644);
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	if (fd < 0)
		die("open %s: %s", path, strerror(errno));
	if (!strcmp(kind, "flock")) {
		if (!flock(fd, LOCK_EX | LOCK_NB))
			puts("free");
		else if (errno == EWOULDBLOCK)
			puts("busy");
		else
			die("flock %s: %s", path, strerror(errno));
		return 0;
	}
	if (fcntl(fd, F_GETLK, &lock))
		die("F_GETLK %s: %s", path, strerror(errno));
	if (lock.l_type == F_UNLCK)
		puts("free");
	else
		printf("busy %s %ld\n", lock.l_type == F_WRLCK ? "write" : "read", (long)lock.l_pid);
	return 0;
}

/* Creates, stats and unlinks `count` empty files; prints rates. */
static int rates(const char *dir, unsigned long count)
{
	char path[4096];
	struct stat st;
	double t[5];

	t[0] = now_seconds();
	for (unsigned long i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "%s/r%lu", dir, i);
		int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);

		if (fd < 0)
			die("create %s: %s", path, strerror(errno));
		close(fd);
	}
	t[1] = now_seconds();
	for (unsigned long i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "%s/r%lu", dir, i);
		if (stat(path, &st))
			die("stat %s: %s", path, strerror(errno));
	}
	t[2] = now_seconds();
	for (unsigned long i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "%s/r%lu", dir, i);
		if (unlink(path))
			die("unlink %s: %s", path, strerror(errno));
	}
	t[3] = now_seconds();
	printf("{\"create\": %.1f, \"stat\": %.1f, \"unlink\": %.1f}\n", (double)count / (t[1] - t[0]),
	       (double)count / (t[2] - t[1]), (double)count / (t[3] - t[2]));
	return 0;
}

/* An open file goes on after its unlink: writes, unlinks, reads back, then waits for standard input to end. */
static int open_unlinked(const char *path)
{
	static unsigned char want[FILE_BYTES_MAX], got[FILE_BYTES_MAX];
	size_t size = contents(1, 1, want);
	int fd = open(path, O_RDWR);
	struct stat st;
	char byte;

	if (fd < 0)
		die("open %s: %s", path, strerror(errno));
	puts("open");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	if (fstat(fd, &st) || st.st_nlink != 0)
		die("%s: nlink %lu after its unlink, expected 0", path, (unsigned long)st.st_nlink);
	write_all(fd, want, size, path);
	if (pread(fd, got, size, 0) != (ssize_t)size || memcmp(want, got, size))
		die("%s: what was written after its unlink is not read back", path);
	return 0;
}

static void put_text(const char *path, const char *text, int flags)
{
	int fd = open(path, O_WRONLY | O_CREAT | flags, 0644);

	if (fd < 0)
		die("create %s: %s", path, strerror(errno));
	write_all(fd, text, strlen(text), path);
	close(fd);
}

/* What the other one has handed over into `dir`: each file says its own name; reads and removes up to `max` of them. */
static unsigned long take_over(const char *dir, unsigned long max)
{
	unsigned char got[300];
	char path[4096], inner[4200];
	unsigned long taken = 0;
	struct dirent *entry;
	DIR *list = opendir(dir);

	if (!list)
		die("opendir %s: %s", dir, strerror(errno));
	while (taken < max && (entry = readdir(list))) {
		struct stat st;
		size_t size;

		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		if (lstat(path, &st))
			die("stat %s, which only this process removes: %s", path, strerror(errno));
		snprintf(inner, sizeof(inner), "%s%s", path, S_ISDIR(st.st_mode) ? "/in" : "");
		size = read_all(inner, got, sizeof(got) - 1);
		got[size] = 0;
		if (strcmp((char *)got, entry->d_name))
			die("%s: contains \"%s\", expected its name", inner, got);
		if (S_ISDIR(st.st_mode) && unlink(inner))
			die("unlink %s: %s", inner, strerror(errno));
		if (S_ISDIR(st.st_mode) ? rmdir(path) : unlink(path))
			die("remove %s: %s", path, strerror(errno));
		taken++;
	}
	closedir(list);
	return taken;
}

/*
 * Makes files and directories in DIR/ID-out, gives them a second name in DIR/both, and moves them to DIR/OTHER-in, while
 * another process does the same the other way round and each takes over what it is given. Until COUNT have been
 * taken, within `seconds`.
 */
static int hand_over(const char *dir, const char *id, const char *other, unsigned long count, unsigned long seconds)
{
	char out[1024], in[1024], name[64], from[1200], to[1200], both[1300];
	double until = now_seconds() + (double)seconds;
	unsigned long taken = 0;

	snprintf(out, sizeof(out), "%s/%s-out", dir, id);
	snprintf(in, sizeof(in), "%s/%s-in", dir, id);
	for (unsigned long i = 0; i < count; i++) {
		snprintf(name, sizeof(name), "%s-%lu", id, i);
		snprintf(from, sizeof(from), "%s/%s", out, name);
		snprintf(to, sizeof(to), "%s/%s-in/%s", dir, other, name);
		if (i % 3 == 2) {
			if (mkdir(from, 0755))
				die("mkdir %s: %s", from, strerror(errno));
			snprintf(both, sizeof(both), "%s/in", from);
			put_text(both, name, O_EXCL);
		} else {
			put_text(from, name, O_EXCL);
			snprintf(both, sizeof(both), "%s/both/%s", dir, name);
			if (i % 3 == 1 && link(from, both))
				die("link %s to %s: %s", from, both, strerror(errno));
		}
		if (rename(from, to))
			die("rename %s to %s: %s", from, to, strerror(errno));
		taken += take_over(in, count);
	}
	while (taken < count) {
		if (now_seconds() > until)
			die("%s: %lu of %lu were handed over within %lu s", in, taken, count, seconds);
		taken += take_over(in, count);
		usleep(20000);
	}
	return 0;
}

/* Creates `count` empty files PREFIX0000, PREFIX0001, ... */
static int names(const char *dir, const char *prefix, unsigned long count)
{
	char path[4096];

	for (unsigned long i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "%s/%s%04lu", dir, prefix, i);
		int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);

		if (fd < 0)
			die("create %s: %s", path, strerror(errno));
		close(fd);
	}
	return 0;
}

/* renameat2: "noreplace" or "exchange". */
static int rename_flags(const char *from, const char *to, const char *flags)
{
	unsigned int bits = !strcmp(flags, "noreplace") ? RENAME_NOREPLACE :
			    !strcmp(flags, "exchange")	? RENAME_EXCHANGE :
							  0;

	if (renameat2(AT_FDCWD, from, AT_FDCWD, to, bits))
		die("rename %s %s %s: %s", from, to, flags, strerror(errno));
	return 0;
}

/* A private mapping shows the file, keeps its changes to itself, and shows the file's end as zeros. */
static int mmap_private(const char *path)
{
	long page = sysconf(_SC_PAGESIZE);
	int fd = open(path, O_RDWR);
	struct stat st;
	char first, *base;

	if (fd < 0 || fstat(fd, &st) || st.st_size < 1)
		die("%s: expected a file that is not empty", path);
	base = mmap(NULL, (size_t)page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (base == MAP_FAILED)
		die("mmap %s: %s", path, strerror(errno));
	if (pread(fd, &first, 1, 0) != 1 || base[0] != first)
		die("%s: mapping begins with %02x, file with %02x", path, base[0], first);
	for (off_t at = st.st_size; at < page; at++) {
		if (base[at])
			die("%s: byte %ld behind the end of the file is %02x, expected 0", path, (long)at, base[at]);
	}
	base[0] = (char)~first;
	if (msync(base, (size_t)page, MS_SYNC) || pread(fd, &base[1], 1, 0) != 1 || base[1] != first)
		die("%s: a private change reached the file", path);
	return 0;
}

/* Reads a block of a disk past the page cache and writes it back: prints "written" or "refused ERRNO". */
static int raw_write(const char *path, unsigned long offset)
{
	int fd = open(path, O_RDWR | O_DIRECT | O_SYNC);
	void *block;

	if (fd < 0)
		die("open %s: %s", path, strerror(errno));
	if (posix_memalign(&block, 4096, 4096) || pread(fd, block, 4096, (off_t)offset) != 4096)
		die("read %s at %lu: %s", path, offset, strerror(errno));
	if (pwrite(fd, block, 4096, (off_t)offset) == 4096)
		puts("written");
	else
		printf("refused %s\n", strerror(errno));
	return 0;
}

/* One netlink exchange: returns the errno of the answer, or 0 and the answer's generic netlink family id. */
static int netlink_ask(int fd, struct nlmsghdr *request, unsigned short *family)
{
	union {
		struct nlmsghdr header;
		char bytes[8192];
	} answer;
	ssize_t got;

	if (send(fd, request, request->nlmsg_len, 0) < 0)
		die("netlink send: %s", strerror(errno));
	got = recv(fd, &answer, sizeof(answer), 0);
	if (got < (ssize_t)NLMSG_LENGTH(0))
		die("netlink receive: %s", got < 0 ? strerror(errno) : "short answer");
	if (answer.header.nlmsg_type == NLMSG_ERROR)
		return -((struct nlmsgerr *)NLMSG_DATA(&answer.header))->error;
	for (char *at = (char *)NLMSG_DATA(&answer.header) + GENL_HDRLEN; at + NLA_HDRLEN <= answer.bytes + got;) {
		struct nlattr *attr = (struct nlattr *)at;

		if (attr->nla_len < NLA_HDRLEN)
			break;
		if (attr->nla_type == CTRL_ATTR_FAMILY_ID)
			memcpy(family, at + NLA_HDRLEN, sizeof(*family));
		at += NLA_ALIGN(attr->nla_len);
	}
	return 0;
}

struct genl_request {
	struct nlmsghdr header;
	struct genlmsghdr genl;
	char attrs[64];
};

/* A generic netlink socket, and the number of a family. */
static int genl_open(const char *name, unsigned short *family)
{
	struct genl_request request = { .genl = { .cmd = CTRL_CMD_GETFAMILY, .version = 1 } };
	struct nlattr *attr = (struct nlattr *)request.attrs;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
	int failed;

	if (fd < 0 || strlen(name) > 15)
		die("netlink socket: %s", strerror(errno));
	attr->nla_type = CTRL_ATTR_FAMILY_NAME;
	attr->nla_len = (unsigned short)(NLA_HDRLEN + strlen(name) + 1);
	strcpy(request.attrs + NLA_HDRLEN, name);
	request.header.nlmsg_len = (unsigned int)(NLMSG_LENGTH(GENL_HDRLEN) + NLA_ALIGN(attr->nla_len));
	request.header.nlmsg_type = GENL_ID_CTRL;
	request.header.nlmsg_flags = NLM_F_REQUEST;
	*family = 0;
	failed = netlink_ask(fd, &request.header, family);
	if (failed || !*family)
		die("no netlink family \"%s\": %s", name, strerror(failed));
	return fd;
}

static struct genl_request genl_command(unsigned short family, unsigned long command, int flags)
{
	struct genl_request request = { .genl = { .cmd = (unsigned char)command, .version = 1 } };

	request.header.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN);
	request.header.nlmsg_type = family;
	request.header.nlmsg_flags = (unsigned short)(NLM_F_REQUEST | flags);
	return request;
}

/* Sends a command of the module's netlink family: prints "allowed" or "refused ERRNO". */
static int genl(const char *name, unsigned long command)
{
	unsigned short family;
	int fd = genl_open(name, &family);
	struct genl_request request = genl_command(family, command, NLM_F_ACK);
	int failed = netlink_ask(fd, &request.header, &family);

	if (failed)
		printf("refused %s\n", strerror(failed));
	else
		puts("allowed");
	return 0;
}

struct mount {
	const char *device;
	uint32_t id, role, state, pid;
};

/* Calls `each` for the mxfs mounts, as the kernel knows them. */
static void each_mount(int fd, unsigned short family, void (*each)(const struct mount *mount, void *arg), void *arg)
{
	struct genl_request request = genl_command(family, MXFS_CMD_VOLUME_MOUNT, NLM_F_DUMP);
	union {
		struct nlmsghdr header;
		char bytes[32768];
	} answer;

	if (send(fd, &request, request.header.nlmsg_len, 0) < 0)
		die("netlink send: %s", strerror(errno));
	for (;;) {
		ssize_t got = recv(fd, &answer, sizeof(answer), 0);
		struct nlmsghdr *message = &answer.header;

		if (got < 0)
			die("netlink receive: %s", strerror(errno));
		for (; NLMSG_OK(message, (size_t)got); message = NLMSG_NEXT(message, got)) {
			const char *end = (char *)message + message->nlmsg_len;
			struct mount mount = { .device = "?" };

			if (message->nlmsg_type == NLMSG_DONE)
				return;
			if (message->nlmsg_type == NLMSG_ERROR)
				die("mounts: %s", strerror(-((struct nlmsgerr *)NLMSG_DATA(message))->error));
			for (char *at = (char *)NLMSG_DATA(message) + GENL_HDRLEN; at + NLA_HDRLEN <= end;) {
				struct nlattr *attr = (struct nlattr *)at;

				if (attr->nla_len < NLA_HDRLEN)
					break;
				if (attr->nla_type == MXFS_A_DEVICE)
					mount.device = at + NLA_HDRLEN;
				else if (attr->nla_type == MXFS_A_MOUNT_ID)
					memcpy(&mount.id, at + NLA_HDRLEN, sizeof(mount.id));
				else if (attr->nla_type == MXFS_A_ROLE)
					memcpy(&mount.role, at + NLA_HDRLEN, sizeof(mount.role));
				else if (attr->nla_type == MXFS_A_STATE)
					memcpy(&mount.state, at + NLA_HDRLEN, sizeof(mount.state));
				else if (attr->nla_type == MXFS_A_PID)
					memcpy(&mount.pid, at + NLA_HDRLEN, sizeof(mount.pid));
				at += NLA_ALIGN(attr->nla_len);
			}
			each(&mount, arg);
		}
	}
}

static void print_mount(const struct mount *mount, void *arg)
{
	static const char *const roles[] = { "none", "holder", "member" };
	static const char *const states[] = { "none", "starting", "running", "detached", "fenced", "stopping" };

	(void)arg;
	printf("%s %s %s %u\n", mount->device, mount->role < 3 ? roles[mount->role] : "?",
	       mount->state < 6 ? states[mount->state] : "?", mount->pid);
}

/* Lists the mxfs mounts: "DEVICE ROLE STATE PID" each. */
static int mounts(void)
{
	unsigned short family;
	int fd = genl_open(MXFS_GENL_NAME, &family);

	each_mount(fd, family, print_mount, NULL);
	return 0;
}

static void first_id(const struct mount *mount, void *arg)
{
	uint32_t *id = arg;

	if (!*id)
		*id = mount->id;
}

/* The kernel's counters of the first mxfs mount, as it tells them: "NAME NUMBER" each. */
static int counters(void)
{
	unsigned short family;
	int fd = genl_open(MXFS_GENL_NAME, &family);
	struct genl_request request = genl_command(family, MXFS_CMD_STATUS, 0);
	struct nlattr *attr = (struct nlattr *)request.attrs;
	union {
		struct nlmsghdr header;
		char bytes[16384];
	} answer;
	uint32_t id = 0;
	ssize_t got;

	each_mount(fd, family, first_id, &id);
	if (!id)
		die("counters: no mxfs mount");
	attr->nla_type = MXFS_A_MOUNT_ID;
	attr->nla_len = NLA_HDRLEN + sizeof(id);
	memcpy(request.attrs + NLA_HDRLEN, &id, sizeof(id));
	request.header.nlmsg_len += NLA_ALIGN(attr->nla_len);
	if (send(fd, &request, request.header.nlmsg_len, 0) < 0)
		die("netlink send: %s", strerror(errno));
	got = recv(fd, &answer, sizeof(answer), 0);
	if (got < (ssize_t)NLMSG_LENGTH(GENL_HDRLEN) || answer.header.nlmsg_type == NLMSG_ERROR)
		die("counters: the kernel does not tell them");
	for (char *at = (char *)NLMSG_DATA(&answer.header) + GENL_HDRLEN; at + NLA_HDRLEN <= answer.bytes + got;) {
		attr = (struct nlattr *)at;
		if (attr->nla_len < NLA_HDRLEN)
			break;
		if (attr->nla_type == MXFS_A_COUNTERS)
			fputs(at + NLA_HDRLEN, stdout);
		at += NLA_ALIGN(attr->nla_len);
	}
	return 0;
}

static unsigned long number(const char *text)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (*text == '\0' || *end != '\0') {
		fprintf(stderr, "mxfs-work: \"%s\" is not a number\n", text);
		exit(2);
	}
	return value;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if ((!strcmp(what, "tree-make") || !strcmp(what, "tree-check")) && (argc == 5 || argc == 6))
		return tree(!strcmp(what, "tree-check"), argv[2], number(argv[3]), number(argv[4]),
			    argc == 6 ? number(argv[5]) : 1);
	if (!strcmp(what, "grow") && argc == 6)
		return grow(argv[2], number(argv[3]), number(argv[4]), number(argv[5]));
	if (!strcmp(what, "grow-watch") && argc == 4)
		return grow_watch(argv[2], number(argv[3]));
	if (!strcmp(what, "append") && argc == 5)
		return append(argv[2], argv[3], number(argv[4]));
	if (!strcmp(what, "append-check") && argc >= 5)
		return append_check(argv[2], argv + 4, argc - 4, number(argv[3]));
	if (!strcmp(what, "churn") && argc == 5)
		return churn(argv[2], argv[3], number(argv[4]));
	if (!strcmp(what, "taken") && argc == 4)
		return taken(argv[2], argv[3]);
	if (!strcmp(what, "mmap-set") && argc == 5) {
		*map_word(argv[2], number(argv[3]), 1) = number(argv[4]);
		return 0;
	}
	if (!strcmp(what, "mmap-wait") && argc == 6)
		return mmap_wait(argv[2], number(argv[3]), number(argv[4]), (double)number(argv[5]));
	if (!strcmp(what, "mmap-turns") && argc == 6)
		return mmap_turns(argv[2], number(argv[3]), number(argv[4]), (double)number(argv[5]));
	if (!strcmp(what, "file-turns") && argc == 6)
		return file_turns(argv[2], number(argv[3]), number(argv[4]), (double)number(argv[5]));
	if (!strcmp(what, "locked-add") && argc == 5)
		return locked_add(argv[2], argv[3], number(argv[4]));
	if (!strcmp(what, "hold") && argc == 4)
		return hold(argv[2], argv[3]);
	if (!strcmp(what, "try-lock") && argc == 4)
		return try_lock(argv[2], argv[3]);
	if (!strcmp(what, "rates") && argc == 4)
		return rates(argv[2], number(argv[3]));
	if (!strcmp(what, "open-unlinked") && argc == 3)
		return open_unlinked(argv[2]);
	if (!strcmp(what, "names") && argc == 5)
		return names(argv[2], argv[3], number(argv[4]));
	if (!strcmp(what, "hand-over") && argc == 7)
		return hand_over(argv[2], argv[3], argv[4], number(argv[5]), number(argv[6]));
	if (!strcmp(what, "rename") && argc == 5)
		return rename_flags(argv[2], argv[3], argv[4]);
	if (!strcmp(what, "mmap-private") && argc == 3)
		return mmap_private(argv[2]);
	if (!strcmp(what, "raw-write") && argc == 4)
		return raw_write(argv[2], number(argv[3]));
	if (!strcmp(what, "genl") && argc == 4)
		return genl(argv[2], number(argv[3]));
	if (!strcmp(what, "mounts") && argc == 2)
		return mounts();
	if (!strcmp(what, "counters") && argc == 2)
		return counters();
	fprintf(stderr, "usage: mxfs-work tree-make|tree-check DIR COUNT SEED [JOBS] |\n  append FILE ID COUNT |\n"
			"  grow DIR COUNT CHANGES SEED | grow-watch DIR COUNT |\n"
			"  append-check FILE COUNT ID... | churn DIR ID COUNT | taken PATH STOP | mmap-set FILE OFFSET VALUE |\n"
			"  mmap-wait FILE OFFSET VALUE SECONDS | mmap-turns FILE PARITY TURNS SECONDS |\n"
			"  file-turns FILE PARITY TURNS SECONDS | locked-add FILE flock|fcntl COUNT |\n"
			"  hold FILE flock|fcntl | try-lock FILE flock|fcntl | rates DIR COUNT | open-unlinked FILE |\n"
			"  hand-over DIR ID OTHER COUNT SECONDS | names DIR PREFIX COUNT | rename FROM TO noreplace|exchange | mmap-private FILE |\n"
			"  raw-write DEVICE OFFSET | genl FAMILY COMMAND | mounts | counters\n");
	return 2;
}
