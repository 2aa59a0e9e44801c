/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tools of the guests share: how they end in failure, and their clock. Define TOOL_NAME before.
 */
#ifndef MXFS_LAB_TOOL_H
#define MXFS_LAB_TOOL_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* What was printed before comes first; exit status 1. */
static void die(const char *format, ...)
{
	va_list args;

	fflush(stdout);
	fprintf(stderr, "%s: ", TOOL_NAME);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

/* Seconds of a clock that nobody sets. */
static inline double now_seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

#endif
