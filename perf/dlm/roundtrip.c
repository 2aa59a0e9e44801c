// SPDX-License-Identifier: GPL-2.0-only
/*
 * A stand-in for "kernel to daemon and back": two processes, one 64-byte entry each way, so two wake-ups.
 *
 *   roundtrip netlink|pair COUNT PROGRAM [ARGS...]
 *       starts PROGRAM with its end as file descriptor 3, and prints the median round trip, microseconds.
 *       netlink: two NETLINK_USERSOCK sockets that talk to each other, so all that netlink costs but the kernel as the
 *       other side; pair: a datagram socketpair.
 *   roundtrip echo
 *       the daemon's loop in C: receive, answer
 *
 * Weakness: the other side is a process, where the real one is the kernel on behalf of a process.
 */
#include <linux/netlink.h>
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

/* Two netlink sockets, each connected to the other. */
static int netlink_pair(int pair[2])
{
	struct sockaddr_nl address[2];

	for (int i = 0; i < 2; i++) {
		socklen_t length = sizeof(address[i]);

		memset(&address[i], 0, sizeof(address[i]));
		address[i].nl_family = AF_NETLINK;
		pair[i] = socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK);
		/* The port id is the kernel's choice. */
		if (pair[i] < 0 || bind(pair[i], (struct sockaddr *)&address[i], sizeof(address[i])) < 0 ||
		    getsockname(pair[i], (struct sockaddr *)&address[i], &length) < 0)
			return -1;
	}
	for (int i = 0; i < 2; i++)
		if (connect(pair[i], (struct sockaddr *)&address[1 - i], sizeof(address[0])) < 0)
			return -1;
	return 0;
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
	if (argc < 4)
		return 2;
	const int netlink = strcmp(argv[1], "netlink") == 0;

	if ((netlink ? netlink_pair(pair) : socketpair(AF_UNIX, SOCK_DGRAM, 0, pair)) < 0) {
		perror("roundtrip: sockets");
		return 1;
	}
	const size_t count = strtoul(argv[2], NULL, 10);
	double *took = malloc((count + 1) * sizeof(*took));

	if (took == NULL)
		return 1;
	const pid_t child = fork();

	if (child == 0) {
		dup2(pair[1], 3);
		execvp(argv[3], argv + 3);
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
