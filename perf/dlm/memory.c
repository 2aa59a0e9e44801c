// SPDX-License-Identifier: GPL-2.0-only
/*
 * memory PID: resident memory of a daemon, KiB, and how much of it is its lock table: two numbers. Exit status 1 where
 * the table is not found.
 *
 * The table is the one mapping without a file that begins with its magic and version (src/dlm/layout.ts, CTL.MAGIC): V8
 * gives a shared WebAssembly.Memory a mapping of its own.
 *
 * Weakness: that number is written here a second time; a table with another is not found, and that is an error.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TABLE_MAGIC 0x4d584c54

int main(int argc, char **argv)
{
	char path[64], line[512];
	uint64_t start = 0, end;
	long resident = 0, table = -1, kib;
	int in_table = 0;

	if (argc != 2)
		return 2;
	snprintf(path, sizeof(path), "/proc/%d/mem", atoi(argv[1]));
	const int memory = open(path, O_RDONLY);

	snprintf(path, sizeof(path), "/proc/%d/smaps", atoi(argv[1]));
	FILE *maps = fopen(path, "r");

	if (memory < 0 || maps == NULL) {
		perror(path);
		return 1;
	}
	while (fgets(line, sizeof(line), maps) != NULL) {
		char access[8];
		uint64_t inode;
		uint32_t magic = 0;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %*s %*s %" SCNu64, &start, &end, access, &inode) == 4) {
			in_table = inode == 0 && access[0] == 'r' && access[1] == 'w' &&
				   pread(memory, &magic, sizeof(magic), (off_t)start) == sizeof(magic) &&
				   magic == TABLE_MAGIC;
		} else if (sscanf(line, "Rss: %ld kB", &kib) == 1) {
			resident += kib;
			if (in_table)
				table = (table < 0 ? 0 : table) + kib;
		}
	}
	if (table < 0) {
		fprintf(stderr, "memory: process %s has no lock table\n", argv[1]);
		return 1;
	}
	printf("%ld %ld\n", resident, table);
	return 0;
}
