// SPDX-License-Identifier: GPL-2.0-only
/*
 * mxfs-load: a load that says what it does, for a checker outside of the guests (lab/ledger.ts).
 *
 *   mxfs-load run DIR ID PAUSE_MS [WORKER...]   workers until standard input ends; default: all of them. Between two
 *                                               operations they rest; below 10 ms (tests) file and lazy no longer
 *   mxfs-load dump DIR                          every name below DIR: "d PATH" or "f PATH SIZE FNV1A32"
 *
 * A worker is a process. It writes one line before an operation begins and one when it has been answered, each by a
 * single write(2), so lines of several workers never mix, and a line that is there was written before the power went:
 *
 *   WORKER b N    operation N has begun        WORKER a N    it was answered: acknowledged
 *   WORKER s N    answered, and synced: it and all before it survive everything
 *   WORKER u N    N is about to be removed     WORKER d N    its removal was answered and synced
 *   WORKER e N WHAT ERRNO                      an operation failed; the worker has ended
 *
 * What operation N is (ID is unique for every start of a load):
 *   file     DIR/files/ID-N.tmp is made, written, synced, renamed to ID-N, the directory synced. Every third goes again
 *   lazy     DIR/lazy-ID/N is made and written, renamed from N.new, nothing synced
 *   append   a record of 64 bytes is appended to DIR/appended, which all nodes share; every fourth is synced
 *   direct   block N % 64 of DIR/direct-ID is written with O_DIRECT|O_DSYNC, all of it saying (ID, N)
 *   fcntl, flock   under the lock, the number in DIR/count-WORKER rises by one, synced: N is the new number
 *
 * Contents come from (ID, N) alone: see bytes_of(), and lab/ledger.ts which makes the same.
 *
 * Weakness: a worker that hangs in the kernel keeps its parent waiting for it; the caller has a time limit.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FILE_BYTES_MAX 8192
#define RECORD_BYTES 64
#define BLOCK_BYTES 4096
#define BLOCK_COUNT 64
#define WORKERS_MAX 16
#define FILE_PAUSE_MS 700
#define PATH_BYTES 4096

static const char *dir, *id, *worker;
static unsigned int pause_ms;
static volatile int *stop;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *format, ...)
{
	char line[256];
	va_list args;
	int used = snprintf(line, sizeof(line), "%s ", worker);

	va_start(args, format);
	used += vsnprintf(line + used, sizeof(line) - (size_t)used - 1, format, args);
	va_end(args);
	line[used++] = '\n';
	if (write(1, line, (size_t)used) != used)
		_exit(2); /* nobody listens any more */
}

static void failed(unsigned long number, const char *what) __attribute__((noreturn));

static void failed(unsigned long number, const char *what)
{
	say("e %lu %s %s", number, what, strerrorname_np(errno));
	_exit(1);
}

static uint32_t fnv(uint32_t hash, const void *data, size_t size)
{
	const unsigned char *at = data;

	for (size_t i = 0; i < size; i++)
		hash = (hash ^ at[i]) * 16777619u;
	return hash;
}

/* The contents of file `number`; returns its size, 1 to FILE_BYTES_MAX. */
static size_t bytes_of(unsigned long number, unsigned char *into)
{
	uint32_t state = fnv(2166136261u, id, strlen(id)) + (uint32_t)number * 2654435761u;
	size_t size = 1 + (state >> 8) % FILE_BYTES_MAX;

	for (size_t at = 0; at < size; at++) {
		state = state * 1664525u + 1013904223u;
		into[at] = (unsigned char)(state >> 24);
	}
	return size;
}

/* Files are made more rarely (FILE_PAUSE_MS), since each is looked at by every node in the end. */
static void rest(unsigned int least_ms)
{
	unsigned int ms = pause_ms > least_ms || pause_ms < 10 ? pause_ms : least_ms;
	struct timespec pause = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };

	nanosleep(&pause, NULL);
}

static void write_all(int fd, const void *data, size_t size, unsigned long number)
{
	const char *at = data;

	while (size > 0) {
		ssize_t done = write(fd, at, size);

		if (done <= 0)
			failed(number, "write");
		at += done;
		size -= (size_t)done;
	}
}

static void sync_directory(const char *path, unsigned long number)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY);

	if (fd < 0)
		failed(number, "open-directory");
	if (fsync(fd))
		failed(number, "fsync-directory");
	close(fd);
}

static void make_file(const char *path, unsigned long number, int sync)
{
	static unsigned char data[FILE_BYTES_MAX];
	int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);

	if (fd < 0)
		failed(number, "create");
	write_all(fd, data, bytes_of(number, data), number);
	if (sync && fsync(fd))
		failed(number, "fsync");
	if (close(fd))
		failed(number, "close");
}

static void files(void)
{
	char names[PATH_BYTES], path[PATH_BYTES + 64], old[PATH_BYTES + 64];

	snprintf(names, sizeof(names), "%s/files", dir);
	if (mkdir(names, 0755) && errno != EEXIST)
		failed(0, "mkdir");
	for (unsigned long n = 0; !*stop; n++) {
		say("b %lu", n);
		snprintf(old, sizeof(old), "%s/%s-%lu.tmp", names, id, n);
		snprintf(path, sizeof(path), "%s/%s-%lu", names, id, n);
		make_file(old, n, 1);
		if (rename(old, path))
			failed(n, "rename");
		sync_directory(names, n);
		say("s %lu", n);
		if (n % 3 == 2) {
			say("u %lu", n - 1);
			snprintf(path, sizeof(path), "%s/%s-%lu", names, id, n - 1);
			if (unlink(path))
				failed(n - 1, "unlink");
			sync_directory(names, n - 1);
			say("d %lu", n - 1);
		}
		rest(FILE_PAUSE_MS);
	}
}

static void lazy(void)
{
	char names[PATH_BYTES], path[PATH_BYTES + 64], old[PATH_BYTES + 64];

	snprintf(names, sizeof(names), "%s/lazy-%s", dir, id);
	if (mkdir(names, 0755))
		failed(0, "mkdir");
	for (unsigned long n = 0; !*stop; n++) {
		say("b %lu", n);
		snprintf(old, sizeof(old), "%s/%lu.new", names, n);
		snprintf(path, sizeof(path), "%s/%lu", names, n);
		make_file(old, n, 0);
		if (rename(old, path))
			failed(n, "rename");
		say("a %lu", n);
		rest(FILE_PAUSE_MS);
	}
}

static void append(void)
{
	char record[RECORD_BYTES + 1], path[PATH_BYTES];
	int fd;

	snprintf(path, sizeof(path), "%s/appended", dir);
	fd = open(path, O_CREAT | O_WRONLY | O_APPEND, 0644);
	if (fd < 0)
		failed(0, "open");
	for (unsigned long n = 0; !*stop; n++) {
		int used = snprintf(record, sizeof(record), "%s %lu ", id, n);

		memset(record + used, '.', (size_t)(RECORD_BYTES - used));
		record[RECORD_BYTES - 1] = '\n';
		say("b %lu", n);
		if (write(fd, record, RECORD_BYTES) != RECORD_BYTES)
			failed(n, "append");
		if (n % 4 == 3) {
			if (fsync(fd))
				failed(n, "fsync");
			say("s %lu", n);
		} else {
			say("a %lu", n);
		}
		rest(0);
	}
}

static void direct(void)
{
	char path[PATH_BYTES];
	char *block;
	int fd;

	snprintf(path, sizeof(path), "%s/direct-%s", dir, id);
	fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_DIRECT | O_DSYNC, 0644);
	if (fd < 0)
		failed(0, "open");
	if (posix_memalign((void **)&block, BLOCK_BYTES, BLOCK_BYTES))
		failed(0, "memory");
	for (unsigned long n = 0; !*stop; n++) {
		for (size_t at = 0; at < BLOCK_BYTES; at += RECORD_BYTES) {
			int used = snprintf(block + at, RECORD_BYTES, "%s %lu ", id, n);

			memset(block + at + used, '.', (size_t)(RECORD_BYTES - used));
			block[at + RECORD_BYTES - 1] = '\n';
		}
		say("b %lu", n);
		if (pwrite(fd, block, BLOCK_BYTES, (off_t)(n % BLOCK_COUNT) * BLOCK_BYTES) != BLOCK_BYTES)
			failed(n, "direct-write");
		say("s %lu", n);
		rest(0);
	}
}

static void count(void)
{
	int by_fcntl = !strcmp(worker, "fcntl");
	char path[PATH_BYTES];
	int fd;

	snprintf(path, sizeof(path), "%s/count-%s", dir, worker);
	fd = open(path, O_CREAT | O_RDWR, 0644);
	if (fd < 0)
		failed(0, "open");
	while (!*stop) {
		struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
		char text[32] = "";
		unsigned long value;

		if (by_fcntl ? fcntl(fd, F_SETLKW, &lock) : flock(fd, LOCK_EX))
			failed(0, "lock");
		if (pread(fd, text, sizeof(text) - 1, 0) < 0)
			failed(0, "read");
		value = strtoul(text, NULL, 10) + 1;
		say("b %lu", value);
		snprintf(text, sizeof(text), "%020lu\n", value);
		if (pwrite(fd, text, 21, 0) != 21)
			failed(value, "write");
		if (fsync(fd))
			failed(value, "fsync");
		say("s %lu", value);
		lock.l_type = F_UNLCK;
		if (by_fcntl ? fcntl(fd, F_SETLK, &lock) : flock(fd, LOCK_UN))
			failed(value, "unlock");
		rest(0);
	}
}

static const struct {
	const char *name;
	void (*run)(void);
} workers[] = {
	{ "file", files }, { "lazy", lazy },   { "append", append },
	{ "direct", direct }, { "fcntl", count }, { "flock", count },
};

#define WORKER_COUNT (sizeof(workers) / sizeof(workers[0]))

static int run(char **names, int name_count)
{
	pid_t pids[WORKERS_MAX];
	int bad = 0, status, started = 0;
	char byte;

	stop = mmap(NULL, sizeof(*stop), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (stop == MAP_FAILED)
		return 1;
	for (size_t w = 0; w < WORKER_COUNT; w++) {
		int wanted = name_count == 0;

		for (int i = 0; i < name_count; i++)
			wanted |= !strcmp(names[i], workers[w].name);
		if (!wanted)
			continue;
		pids[started] = fork();
		if (pids[started] == 0) {
			worker = workers[w].name;
			workers[w].run();
			_exit(0);
		}
		started += pids[started] > 0;
	}
	while (read(0, &byte, 1) > 0)
		;
	*stop = 1;
	/* Who waits for a lock that its own sibling or another node will not give back any more. */
	for (int i = 0; i < started; i++) {
		if (waitpid(pids[i], &status, 0) == pids[i])
			bad |= status;
	}
	return bad != 0;
}

static void dump(const char *path, const char *shown)
{
	struct dirent **entries;
	int entry_count = scandir(path, &entries, NULL, alphasort);

	if (entry_count < 0) {
		fprintf(stderr, "mxfs-load: %s: %s\n", path, strerror(errno));
		exit(1);
	}
	for (int i = 0; i < entry_count; i++) {
		char child[PATH_BYTES], child_shown[PATH_BYTES];
		const char *name = entries[i]->d_name;
		struct stat st;

		if (!strcmp(name, ".") || !strcmp(name, ".."))
			continue;
		snprintf(child, sizeof(child), "%s/%s", path, name);
		snprintf(child_shown, sizeof(child_shown), "%s%s%s", shown, *shown ? "/" : "", name);
		if (lstat(child, &st)) {
			printf("? %s %s\n", child_shown, strerrorname_np(errno));
		} else if (S_ISDIR(st.st_mode)) {
			printf("d %s\n", child_shown);
			dump(child, child_shown);
		} else {
			static unsigned char data[65536];
			uint32_t hash = 2166136261u;
			int fd = open(child, O_RDONLY);
			ssize_t got = -1;

			while (fd >= 0 && (got = read(fd, data, sizeof(data))) > 0)
				hash = fnv(hash, data, (size_t)got);
			if (got < 0)
				printf("? %s %s\n", child_shown, strerrorname_np(errno));
			else
				printf("f %s %lld %08x\n", child_shown, (long long)st.st_size, hash);
			if (fd >= 0)
				close(fd);
		}
		free(entries[i]);
	}
	free(entries);
}

int main(int argc, char **argv)
{
	if (argc >= 5 && !strcmp(argv[1], "run") && strlen(argv[3]) < 24) {
		dir = argv[2];
		id = argv[3];
		pause_ms = (unsigned int)strtoul(argv[4], NULL, 10);
		worker = "load";
		return run(argv + 5, argc - 5);
	}
	if (argc == 3 && !strcmp(argv[1], "dump")) {
		dump(argv[2], "");
		return 0;
	}
	fprintf(stderr, "usage: mxfs-load run DIR ID PAUSE_MS [WORKER...] | dump DIR\n");
	return 2;
}
