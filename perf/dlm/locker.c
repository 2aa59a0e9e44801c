// SPDX-License-Identifier: GPL-2.0-only
/*
 * The client of the rows beside the kernel's dlm (lab.ts): the same locks by mxfsd's control socket, or by libdlm.
 *
 *   locker mxfs SOCKET hold|write|read     names of resources on standard input, one a line, then an empty line
 *   locker dlm LOCKSPACE hold|write|read   the same
 *
 * hold  takes each in NL, says "held", and keeps them until standard input ends: so this node is their master
 * write takes each in EX, converts it to NL and back to EX, gives it up; prints the medians of the time for a new lock,
 *       a conversion up and one down, microseconds
 * read  the same with PR: mxfs keeps no record of such a lock on disk
 *
 * Weakness: one request at a time; the control socket's JSON is in mxfs's figures, libdlm's device in the dlm's.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* What is used of libdlm(3); found when it runs, so that building needs no package. */
struct dlm_lksb {
	int sb_status;
	uint32_t sb_lkid;
	char sb_flags;
	char *sb_lvbptr;
};
#define LIBDLM "libdlm_lt.so.3"
/* Both number the modes alike. */
#define LKM_NLMODE 0
#define LKM_PRMODE 3
#define LKM_EXMODE 5
#define LKF_CONVERT 4
static void *(*dlm_create_lockspace)(const char *name, mode_t mode);
static void *(*dlm_open_lockspace)(const char *name);
static int (*dlm_ls_lock_wait)(void *space, uint32_t mode, struct dlm_lksb *lksb, uint32_t flags, const void *name,
			       unsigned int length, uint32_t parent, void *bast_argument, void *bast, void *range);
static int (*dlm_ls_unlock_wait)(void *space, uint32_t id, uint32_t flags, struct dlm_lksb *lksb);

#define NAMES_MAX 1024
#define NAME_MAX_LEN 64

static char names[NAMES_MAX][NAME_MAX_LEN];
static struct dlm_lksb lksbs[NAMES_MAX];
static char ids[NAMES_MAX][32];
static double took[3][NAMES_MAX];
static FILE *in, *out;
static void *space;

static void die(const char *what, const char *more)
{
	fprintf(stderr, "locker: %s: %s (%s)\n", what, more, strerror(errno));
	exit(1);
}

static double now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* ---- mxfs ---- */

static void open_mxfs(const char *path)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	const int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	if (strlen(path) >= sizeof(to.sun_path))
		die("socket path too long", path);
	strcpy(to.sun_path, path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
		die("connect", path);
	in = fdopen(fd, "r");
	out = fdopen(dup(fd), "w");
	if (in == NULL || out == NULL)
		die("fdopen", path);
}

/* Sends a request whose id is 1, waits for its answer; events come between. */
static const char *ask(void)
{
	static char line[4096];

	fflush(out);
	while (fgets(line, sizeof(line), in) != NULL) {
		if (strstr(line, "\"event\"") != NULL)
			continue;
		if (strstr(line, "\"ok\":true") == NULL)
			die("refused", line);
		return line;
	}
	die("the daemon is gone", "");
	return NULL;
}

static void lock_mxfs(unsigned i, int mode)
{
	const char *at;

	fprintf(out, "{\"id\":1,\"op\":\"lock\",\"resource\":\"%s\",\"mode\":%d}\n", names[i], mode);
	at = strstr(ask(), "\"lock\":\"");
	if (at == NULL || sscanf(at + 8, "%31[0-9]", ids[i]) != 1)
		die("no lock id", names[i]);
}

static void convert_mxfs(unsigned i, int mode)
{
	fprintf(out, "{\"id\":1,\"op\":\"convert\",\"lock\":\"%s\",\"mode\":%d}\n", ids[i], mode);
	ask();
}

static void release_mxfs(unsigned i)
{
	fprintf(out, "{\"id\":1,\"op\":\"release\",\"lock\":\"%s\"}\n", ids[i]);
	ask();
}

/* ---- the kernel's dlm ---- */

static void load(void *library, const char *name, void *function)
{
	void *found = dlsym(library, name);

	if (found == NULL)
		die(LIBDLM " lacks", name);
	memcpy(function, &found, sizeof(found));
}

static void open_dlm(const char *name)
{
	void *library = dlopen(LIBDLM, RTLD_NOW);

	if (library == NULL)
		die("dlopen", LIBDLM);
	load(library, "dlm_create_lockspace", &dlm_create_lockspace);
	load(library, "dlm_open_lockspace", &dlm_open_lockspace);
	load(library, "dlm_ls_lock_wait", &dlm_ls_lock_wait);
	load(library, "dlm_ls_unlock_wait", &dlm_ls_unlock_wait);
	space = dlm_create_lockspace(name, 0600);
	if (space == NULL)
		space = dlm_open_lockspace(name);
	if (space == NULL)
		die("lockspace", name);
}

static void lock_dlm(unsigned i, int mode, uint32_t flags)
{
	if (dlm_ls_lock_wait(space, (uint32_t)mode, &lksbs[i], flags, names[i], (unsigned)strlen(names[i]), 0, NULL, NULL,
			     NULL) != 0 ||
	    lksbs[i].sb_status != 0)
		die("dlm lock", names[i]);
}

/* ---- both ---- */

static int by_size(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	unsigned count = 0;

	if (argc != 4)
		return 2;
	const int mxfs = strcmp(argv[1], "mxfs") == 0;
	const int hold = strcmp(argv[3], "hold") == 0;
	const int mode = strcmp(argv[3], "read") == 0 ? LKM_PRMODE : LKM_EXMODE;

	while (count < NAMES_MAX && fgets(names[count], NAME_MAX_LEN, stdin) != NULL && names[count][0] != '\n') {
		names[count][strcspn(names[count], "\n")] = 0;
		count++;
	}
	if (count == 0)
		die("no names", "");
	if (mxfs)
		open_mxfs(argv[2]);
	else
		open_dlm(argv[2]);
	for (unsigned i = 0; i < count; i++) {
		const double began = now_us();

		if (mxfs)
			lock_mxfs(i, hold ? LKM_NLMODE : mode);
		else
			lock_dlm(i, hold ? LKM_NLMODE : mode, 0);
		const double held = now_us();

		took[0][i] = held - began;
		if (hold)
			continue;
		if (mxfs)
			convert_mxfs(i, LKM_NLMODE);
		else
			lock_dlm(i, LKM_NLMODE, LKF_CONVERT);
		const double down = now_us();

		took[2][i] = down - held;
		if (mxfs)
			convert_mxfs(i, mode);
		else
			lock_dlm(i, mode, LKF_CONVERT);
		took[1][i] = now_us() - down;
		if (mxfs)
			release_mxfs(i);
		else if (dlm_ls_unlock_wait(space, lksbs[i].sb_lkid, 0, &lksbs[i]) != 0)
			die("dlm unlock", names[i]);
	}
	if (hold) {
		puts("held");
		fflush(stdout);
		while (getchar() != EOF)
			;
		return 0;
	}
	for (int row = 0; row < 3; row++) {
		qsort(took[row], count, sizeof(double), by_size);
		printf("%.1f%c", took[row][count / 2], row < 2 ? ' ' : '\n');
	}
	return 0;
}
