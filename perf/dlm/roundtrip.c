// SPDX-License-Identifier: GPL-2.0-only
/*
 * A stand-in for "kernel to daemon and back": two processes and a datagram socketpair, one 64-byte entry each way, so two
 * wake-ups. It is not netlink: what netlink itself costs is in neither figure.
 *
 *   roundtrip COUNT PROGRAM [ARGS...]   starts PROGRAM with the socket as file descriptor 3, and prints the median
 *                                       round trip, microseconds
 *   roundtrip echo                      the daemon's loop in C: receive, answer
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../include/mxfs/abi.h"

static double now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int by_size(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	struct mxfs_lock_entry entry;
	int pair[2];

	if (argc == 2 && strcmp(argv[1], "echo") == 0) {
		while (recv(3, &entry, sizeof(entry), 0) == sizeof(entry) && entry.lock_id != 0)
			if (send(3, &entry, sizeof(entry), 0) != sizeof(entry))
				return 1;
		return 0;
	}
	if (argc < 3 || socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) < 0)
		return 2;
	const size_t count = strtoul(argv[1], NULL, 10);
	double *took = malloc((count + 1) * sizeof(*took));

	if (took == NULL)
		return 1;
	const pid_t child = fork();

	if (child == 0) {
		dup2(pair[1], 3);
		execvp(argv[2], argv + 2);
		_exit(127);
	}
	/* Warm first. */
	for (size_t i = 0; i < 2 * count; i++) {
		const double began = now_us();

		entry = (struct mxfs_lock_entry){
			.resource = { .volume = 77, .ino = 1 + i % 4096, .type = MXFS_RES_INODE },
			.lock_id = i + 1,
			.epoch = 1,
			.seq = 1,
			.mode = MXFS_MODE_EX,
			.node = 1,
		};
		if (send(pair[0], &entry, sizeof(entry), 0) != sizeof(entry) ||
		    recv(pair[0], &entry, sizeof(entry), 0) != sizeof(entry) || entry.lock_id != i + 1)
			return 1;
		if (i >= count)
			took[i - count] = now_us() - began;
	}
	entry.lock_id = 0;
	send(pair[0], &entry, sizeof(entry), 0);
	waitpid(child, NULL, 0);
	qsort(took, count, sizeof(*took), by_size);
	printf("%.2f\n", took[count / 2]);
	return 0;
}
