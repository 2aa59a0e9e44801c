// SPDX-License-Identifier: GPL-2.0-only
//
// mxfsd-launch: what the kernel module starts (call_usermodehelper) as the daemon. Prepares the process so that
// the daemon can work for a file system under memory pressure, then execs node with dist/daemon/mxfsd.js and
// all arguments.
//
// In order: stdio from /dev/null where closed; every other fd closed; a session of its own; PR_SET_IO_FLUSHER and
// oom_score_adj -1000, both inherited by every thread of node (a refusal is reported, not fatal: it costs safety
// under memory pressure only); PATH, HOME, LANG where unset; node and the project are looked up; exec.
//
// node:    $MXFS_NODE, else node= in /etc/mxfs/launcher.conf, else /usr/bin/node, else /usr/local/bin/node.
// project: $MXFS_HOME, else home= there, else two directories above the directory of this file (/proc/self/exe,
//          symbolic links resolved: native/build/mxfsd-launch), else /usr/lib/mxfs.
// node_flag= lines (--max-old-space-size=..., one each) go before the script.
//
// Exit status: 127 with a message on stderr and in /dev/kmsg when node or the project is not found or the
// configuration is wrong; else node's own.
//
// Known weakness: an installed *copy* (not a link) finds the project only by MXFS_HOME, home= or /usr/lib/mxfs.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/prctl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXIT_NOT_FOUND 127
#define CONF_PATH "/etc/mxfs/launcher.conf"
#define FALLBACK_HOME "/usr/lib/mxfs"
#define SCRIPT "dist/daemon/mxfsd.js"
#define NODE_FLAGS_MAX 16
#define KMSG_ERR 3
#define KMSG_WARNING 4

struct config {
	char node[PATH_MAX];
	char home[PATH_MAX];
	char flags[NODE_FLAGS_MAX][PATH_MAX];
	int flag_count;
};

/* To stderr, for who runs it by hand, and to the kernel log, for who runs mount. */
__attribute__((format(printf, 2, 3)))
static void report(int level, const char *format, ...)
{
	char text[512];
	va_list args;
	int fd;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fprintf(stderr, "mxfsd-launch: %s\n", text);
	fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;	/* not root, or no /dev: stderr has it */
	dprintf(fd, "<%d>mxfsd-launch[%d]: %s\n", level, (int)getpid(), text);
	close(fd);
}

static void open_stdio(void)
{
	int fd;

	/* open() gives the lowest free number, so this fills exactly the holes below 3. */
	do {
		fd = open("/dev/null", O_RDWR);
	} while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd > STDERR_FILENO)
		close(fd);
	else
		report(KMSG_WARNING, "cannot open /dev/null: %s", strerror(errno));
}

static void close_others(void)
{
	long fd, limit;

	if (close_range(STDERR_FILENO + 1, UINT_MAX, 0) == 0)
		return;
	limit = sysconf(_SC_OPEN_MAX);	/* kernels before 5.9 */
	for (fd = STDERR_FILENO + 1; fd < limit; fd++)
		close((int)fd);
}

static void protect_from_memory_pressure(void)
{
	static const char score[] = "-1000";
	int fd;

	if (prctl(PR_SET_IO_FLUSHER, 1UL, 0UL, 0UL, 0UL) < 0)
		report(KMSG_WARNING, "PR_SET_IO_FLUSHER refused: %s (CAP_SYS_RESOURCE is needed); going on",
		       strerror(errno));
	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, score, sizeof(score) - 1) < 0)
		report(KMSG_WARNING, "oom_score_adj -1000 refused: %s (CAP_SYS_RESOURCE is needed); going on",
		       strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* call_usermodehelper gives nearly no environment. */
static void set_environment(void)
{
	setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 0);
	setenv("HOME", "/", 0);
	setenv("LANG", "C.UTF-8", 0);
	/* One hung disk command must not starve the others. */
	setenv("UV_THREADPOOL_SIZE", "16", 0);
	/* Memory: threads share two heaps of libc's, and one thread is enough to compile and sweep for V8. */
	setenv("MALLOC_ARENA_MAX", "2", 0);
	setenv("NODE_OPTIONS", "--v8-pool-size=1", 0);
}

static void copy_value(char *to, const char *value, const char *name)
{
	if (strlen(value) >= PATH_MAX) {
		report(KMSG_ERR, "%s is longer than %d bytes", name, PATH_MAX - 1);
		exit(EXIT_NOT_FOUND);
	}
	strcpy(to, value);
}

static void read_config_line(struct config *config, const char *line, int number)
{
	if (line[0] == '\0' || line[0] == '#')
		return;
	if (strncmp(line, "node=", 5) == 0) {
		copy_value(config->node, line + 5, CONF_PATH " node=");
	} else if (strncmp(line, "home=", 5) == 0) {
		copy_value(config->home, line + 5, CONF_PATH " home=");
	} else if (strncmp(line, "node_flag=", 10) == 0 && config->flag_count < NODE_FLAGS_MAX) {
		copy_value(config->flags[config->flag_count++], line + 10, CONF_PATH " node_flag=");
	} else {
		report(KMSG_ERR, "%s line %d: \"%.100s\": expected node=, home= or node_flag= (at most %d)",
		       CONF_PATH, number, line, NODE_FLAGS_MAX);
		exit(EXIT_NOT_FOUND);
	}
}

static void read_config(struct config *config)
{
	char line[PATH_MAX + 32];
	int number = 0;
	FILE *file = fopen(CONF_PATH, "re");

	if (!file) {
		if (errno != ENOENT)
			report(KMSG_WARNING, "cannot read %s: %s", CONF_PATH, strerror(errno));
		return;
	}
	while (fgets(line, sizeof(line), file)) {
		line[strcspn(line, "\r\n")] = '\0';
		read_config_line(config, line, ++number);
	}
	fclose(file);
}

static bool is_program(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

/* A node that was asked for by name must be the one: no falling back to another. */
static void find_node(struct config *config)
{
	const char *env = getenv("MXFS_NODE");

	if (env && env[0] != '\0')
		copy_value(config->node, env, "MXFS_NODE");
	if (config->node[0] == '\0')
		strcpy(config->node, is_program("/usr/bin/node") ? "/usr/bin/node" : "/usr/local/bin/node");
	if (is_program(config->node))
		return;
	report(KMSG_ERR, "no node at %s: install Node.js 20 or later, or set node= in %s or MXFS_NODE",
	       config->node, CONF_PATH);
	exit(EXIT_NOT_FOUND);
}

/* <home>/native/build/mxfsd-launch -> <home>; empty when this file lies elsewhere. */
static void home_of_executable(char *home)
{
	char exe[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	int level;

	home[0] = '\0';
	if (length <= 0)
		return;
	exe[length] = '\0';
	for (level = 0; level < 3; level++) {
		char *slash = strrchr(exe, '/');

		if (!slash)
			return;
		*slash = '\0';
	}
	strcpy(home, exe);
}

static bool has_script(const char *home, char *script)
{
	return snprintf(script, PATH_MAX, "%s/" SCRIPT, home) < PATH_MAX && access(script, R_OK) == 0;
}

static void find_script(struct config *config, char *script)
{
	const char *env = getenv("MXFS_HOME");

	if (env && env[0] != '\0')
		copy_value(config->home, env, "MXFS_HOME");
	if (config->home[0] != '\0') {
		if (has_script(config->home, script))
			return;
	} else {
		home_of_executable(config->home);
		if (has_script(config->home, script) || has_script(FALLBACK_HOME, script))
			return;
	}
	report(KMSG_ERR, "no %s under %s: build the project, or set home= in %s or MXFS_HOME", SCRIPT,
	       config->home, CONF_PATH);
	exit(EXIT_NOT_FOUND);
}

int main(int argc, char **argv)
{
	static struct config config;
	static char script[PATH_MAX];
	char **args;
	int count = 0, index;

	open_stdio();
	close_others();
	setsid();	/* fails only where we lead a process group already, which is as good */
	protect_from_memory_pressure();
	set_environment();
	read_config(&config);
	find_node(&config);
	find_script(&config, script);

	args = calloc((size_t)argc + NODE_FLAGS_MAX + 2, sizeof(*args));
	if (!args) {
		report(KMSG_ERR, "out of memory");
		return EXIT_NOT_FOUND;
	}
	args[count++] = config.node;
	for (index = 0; index < config.flag_count; index++)
		args[count++] = config.flags[index];
	args[count++] = script;
	for (index = 1; index < argc; index++)
		args[count++] = argv[index];
	execv(config.node, args);
	report(KMSG_ERR, "cannot start %s: %s", config.node, strerror(errno));
	return EXIT_NOT_FOUND;
}
