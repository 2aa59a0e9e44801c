// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's process 1: serves the lab's exec channel and reaps orphans.
 *
 * The host runs commands in a guest without any network: QEMU gives the guest
 * EXEC_PORTS virtio-serial ports named exec.0, exec.1, ..., each one a unix
 * socket on the host. One child of this process serves each port, one command
 * at a time, so several commands run at once, and one that produces or takes
 * data slowly holds up no other.
 *
 * A frame, both ways, little endian:
 *   u32 magic "MXLB" | u8 type | 3 zero bytes | u32 session | u32 length | payload
 * One command:
 *   host:  HELLO, ARGS..., GO, then STDIN... (length 0 = end of file), SIGNAL
 *   guest: HELLO, then STDOUT/STDERR..., and EXIT or ERROR
 * ARGS accumulates NUL-terminated strings: working directory, number of
 * environment strings, those strings, then argv. GO starts the command.
 *
 * The host picks a session number at random. A HELLO with a new one ends the
 * old session (its process group gets SIGKILL), and so does a hang-up of the
 * host's end. Frames of another session are dropped. Bytes that do not start
 * with the magic are skipped, so a host that died in the middle of a frame
 * costs the next one at most a frame's worth of padding, which it sends when
 * its HELLO stays unanswered.
 *
 * A command ends when its first process ends: what is in the pipes by then is
 * sent, and a process left in the background loses its pipes (redirect them).
 *
 * Weakness: while a command does not read its stdin and the pipe is full, the
 * port is not read, so a SIGNAL waits; only a hang-up is noticed at once.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FRAME_MAGIC 0x424c584dU /* "MXLB" */
#define PAYLOAD_BYTES_MAX 16384
#define ARGS_BYTES_MAX (1024 * 1024)
#define ARGS_COUNT_MAX 16384
#define PORT_COUNT_MAX 64
#define HELLO_TRIES 10
#define HELLO_PAUSE_MS 50

enum frame_type {
	FRAME_HELLO = 1,
	FRAME_ARGS = 2,
	FRAME_GO = 3,
	FRAME_STDIN = 4,
	FRAME_SIGNAL = 5,
	FRAME_STDOUT = 6,
	FRAME_STDERR = 7,
	FRAME_EXIT = 8,
	FRAME_ERROR = 9,
};

struct frame_header {
	uint32_t magic;
	uint8_t type;
	uint8_t zero[3];
	uint32_t session;
	uint32_t length;
};

struct frame {
	struct frame_header head;
	unsigned char payload[PAYLOAD_BYTES_MAX];
};

struct server {
	int port; /* the virtio-serial port */
	uint32_t session; /* 0: none */

	struct frame in; /* the frame being received */
	size_t in_have; /* bytes of it that are here */

	char *args; /* what ARGS frames brought */
	size_t args_bytes;

	pid_t child; /* 0: none */
	int to_stdin; /* -1: closed */
	int from_out[2]; /* stdout, stderr; -1: closed */
	unsigned char pending[PAYLOAD_BYTES_MAX]; /* stdin the pipe did not take */
	size_t pending_off, pending_len;
	int stdin_eof; /* close to_stdin when pending is empty */
};

static int sigchld_pipe[2] = { -1, -1 };
static sigset_t sigio; /* the signal that says: the host connected, or sent something */

static void die(const char *what)
{
	fprintf(stderr, "mxfs-lab agent: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static void on_sigchld(int sig)
{
	int saved = errno;
	ssize_t n = write(sigchld_pipe[1], "", 1);

	(void)sig;
	(void)n; /* full: somebody will look anyway */
	errno = saved;
}

static void set_nonblock(int fd)
{
	if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
		die("fcntl O_NONBLOCK");
}

/* Returns 0, or -1 when the host has hung up. */
static int port_write(struct server *s, const void *data, size_t bytes)
{
	const char *at = data;

	while (bytes) {
		ssize_t n = write(s->port, at, bytes);
		struct pollfd p = { .fd = s->port, .events = POLLOUT };

		if (n > 0) {
			at += n;
			bytes -= (size_t)n;
			continue;
		}
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return -1;
		if (poll(&p, 1, -1) > 0 && (p.revents & POLLHUP))
			return -1;
	}
	return 0;
}

static int send_frame(struct server *s, int type, const void *payload, size_t bytes)
{
	struct frame out = {
		.head = {
			.magic = FRAME_MAGIC,
			.type = (uint8_t)type,
			.session = s->session,
			.length = (uint32_t)bytes,
		},
	};

	if (bytes)
		memcpy(out.payload, payload, bytes);
	return port_write(s, &out, sizeof(out.head) + bytes);
}

static int send_error(struct server *s, int err, const char *what)
{
	char text[512];
	int n = snprintf(text, sizeof(text), "%s: %s", what, strerror(err));

	if (n < 0)
		return -1;
	if ((size_t)n >= sizeof(text))
		n = (int)sizeof(text) - 1;
	return send_frame(s, FRAME_ERROR, text, (size_t)n);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void session_end(struct server *s)
{
	if (s->child) {
		/* Not waited for: it may be stuck in the kernel for good. reap() takes it later. */
		kill(-s->child, SIGKILL);
		s->child = 0;
	}
	close_fd(&s->to_stdin);
	close_fd(&s->from_out[0]);
	close_fd(&s->from_out[1]);
	s->args_bytes = 0;
	s->pending_off = s->pending_len = 0;
	s->stdin_eof = 0;
	s->session = 0;
}

/* In the child: never returns. */
static void run_child(char *cwd, char **env, char **argv, int in, int out, int err, int report)
{
	sigset_t none;
	int e;

	setsid();
	signal(SIGCHLD, SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
		goto fail;
	if (chdir(cwd) < 0)
		goto fail;
	for (; *env; env++)
		putenv(*env);
	execvp(argv[0], argv);
fail:
	e = errno;
	if (write(report, &e, sizeof(e)) != sizeof(e))
		_exit(126);
	_exit(127);
}

/* Splits s->args into cwd, environment and argv. Returns 0 or -1 (malformed). */
static int split_args(struct server *s, char **cwd, char ***env, char ***argv, char **table)
{
	char *at = s->args, *end = s->args + s->args_bytes;
	size_t count = 0, env_count;

	if (!s->args_bytes || end[-1])
		return -1;
	*cwd = at;
	at += strlen(at) + 1;
	if (at >= end)
		return -1;
	env_count = (size_t)strtoul(at, NULL, 10);
	at += strlen(at) + 1;
	if (env_count > ARGS_COUNT_MAX)
		return -1;
	*env = table;
	while (at < end && count < ARGS_COUNT_MAX) {
		if (count == env_count)
			table[count++ + 1] = at;
		else
			table[count + (count > env_count)] = at, count++;
		at += strlen(at) + 1;
	}
	if (at < end || count <= env_count)
		return -1;
	table[env_count] = NULL;
	*argv = table + env_count + 1;
	table[count + 1] = NULL;
	return 0;
}

/* Returns 0, or -1 when the host has hung up. */
static int start_command(struct server *s)
{
	static char *table[ARGS_COUNT_MAX + 2];
	int in[2] = { -1, -1 }, out[2] = { -1, -1 }, err[2] = { -1, -1 }, report[2] = { -1, -1 };
	char *cwd, **env, **argv;
	int failed = 0, e, ret = 0;
	ssize_t n;

	if (s->child)
		return send_error(s, EBUSY, "the session already runs a command");
	if (split_args(s, &cwd, &env, &argv, table) < 0)
		return send_error(s, EINVAL, "malformed command arguments");
	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0 ||
	    pipe2(report, O_CLOEXEC) < 0) {
		failed = errno;
		goto out;
	}
	s->child = fork();
	if (s->child == 0)
		run_child(cwd, env, argv, in[0], out[1], err[1], report[1]);
	if (s->child < 0) {
		failed = errno;
		s->child = 0;
		goto out;
	}
	close_fd(&report[1]);
	do {
		n = read(report[0], &e, sizeof(e));
	} while (n < 0 && errno == EINTR);
	if (n == sizeof(e)) {
		failed = e;
		while (waitpid(s->child, NULL, 0) < 0 && errno == EINTR)
			;
		s->child = 0;
		goto out;
	}
	s->to_stdin = in[1];
	s->from_out[0] = out[0];
	s->from_out[1] = err[0];
	in[1] = out[0] = err[0] = -1;
	set_nonblock(s->to_stdin);
	set_nonblock(s->from_out[0]);
	set_nonblock(s->from_out[1]);
out:
	close_fd(&in[0]);
	close_fd(&in[1]);
	close_fd(&out[0]);
	close_fd(&out[1]);
	close_fd(&err[0]);
	close_fd(&err[1]);
	close_fd(&report[0]);
	close_fd(&report[1]);
	if (failed)
		ret = send_error(s, failed, argv[0]);
	s->args_bytes = 0;
	return ret;
}

static void flush_stdin(struct server *s)
{
	while (s->to_stdin >= 0 && s->pending_len) {
		ssize_t n = write(s->to_stdin, s->pending + s->pending_off, s->pending_len);

		if (n > 0) {
			s->pending_off += (size_t)n;
			s->pending_len -= (size_t)n;
		} else if (errno == EAGAIN) {
			return;
		} else if (errno != EINTR) { /* the command closed its stdin */
			close_fd(&s->to_stdin);
		}
	}
	s->pending_off = s->pending_len = 0;
	if (s->stdin_eof)
		close_fd(&s->to_stdin);
}

/*
 * The kernel learns of data and of the host's connecting on different paths, so that a HELLO may be here
 * before its sender counts as connected: then wait for that. Returns 0, or -1 when the host has hung up.
 */
static int answer_hello(struct server *s)
{
	const struct timespec at_most = { .tv_nsec = HELLO_PAUSE_MS * 1000 * 1000 };

	for (int tries = 0; tries < HELLO_TRIES; tries++) {
		if (send_frame(s, FRAME_HELLO, NULL, 0) == 0)
			return 0;
		sigtimedwait(&sigio, NULL, &at_most);
	}
	return -1;
}

/* Returns 0, or -1 when the host has hung up. */
static int handle_frame(struct server *s)
{
	struct frame *f = &s->in;
	uint32_t number;

	if (f->head.type == FRAME_HELLO) {
		session_end(s);
		s->session = f->head.session;
		return answer_hello(s);
	}
	if (!s->session || f->head.session != s->session)
		return 0;
	switch (f->head.type) {
	case FRAME_ARGS:
		if (s->args_bytes + f->head.length > ARGS_BYTES_MAX)
			return send_error(s, E2BIG, "command arguments");
		memcpy(s->args + s->args_bytes, f->payload, f->head.length);
		s->args_bytes += f->head.length;
		return 0;
	case FRAME_GO:
		return start_command(s);
	case FRAME_STDIN:
		if (!f->head.length) {
			s->stdin_eof = 1;
		} else if (s->to_stdin >= 0) {
			memcpy(s->pending, f->payload, f->head.length);
			s->pending_off = 0;
			s->pending_len = f->head.length;
		}
		flush_stdin(s);
		return 0;
	case FRAME_SIGNAL:
		if (f->head.length != sizeof(number))
			return send_error(s, EINVAL, "SIGNAL frame");
		memcpy(&number, f->payload, sizeof(number));
		if (s->child && kill(-s->child, (int)number) < 0)
			return send_error(s, errno, "signal");
		return 0;
	default:
		return send_error(s, EPROTO, "unknown frame type");
	}
}

/* Reads what is there, at most to the end of one frame. Returns 0, 1 = nothing there, -1 = hung up. */
static int receive(struct server *s)
{
	unsigned char *raw = (unsigned char *)&s->in;
	size_t want = sizeof(s->in.head);
	ssize_t n;

	if (s->in_have >= want)
		want += s->in.head.length;
	n = read(s->port, raw + s->in_have, want - s->in_have);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 1 : -1;
	if (n == 0)
		return -1;
	s->in_have += (size_t)n;
	while (s->in_have >= sizeof(s->in.head) && (s->in.head.magic != FRAME_MAGIC ||
						    s->in.head.length > PAYLOAD_BYTES_MAX)) {
		memmove(raw, raw + 1, --s->in_have); /* out of step: find the next magic */
	}
	if (s->in_have < sizeof(s->in.head) || s->in_have < sizeof(s->in.head) + s->in.head.length)
		return 0;
	s->in_have = 0;
	return handle_frame(s);
}

/* Sends what one output pipe holds. Returns 0, or -1 when the host has hung up. */
static int forward(struct server *s, int which, int until_empty)
{
	unsigned char buffer[PAYLOAD_BYTES_MAX];

	do {
		ssize_t n = read(s->from_out[which], buffer, sizeof(buffer));

		if (n > 0) {
			if (send_frame(s, which ? FRAME_STDERR : FRAME_STDOUT, buffer, (size_t)n) < 0)
				return -1;
		} else if (n == 0) {
			close_fd(&s->from_out[which]);
		} else if (errno == EAGAIN) {
			return 0;
		} else if (errno != EINTR) {
			close_fd(&s->from_out[which]);
		}
	} while (until_empty && s->from_out[which] >= 0);
	return 0;
}

/* Returns 0, or -1 when the host has hung up. */
static int reap(struct server *s)
{
	char drop[64];
	int status = 0, ended;
	int32_t result[2];
	pid_t pid;

	while (read(sigchld_pipe[0], drop, sizeof(drop)) > 0)
		;
	do {
		pid = waitpid(-1, &status, WNOHANG);
		ended = pid > 0 && pid == s->child;
	} while (pid > 0 && !ended);
	if (!ended)
		return 0;
	s->child = 0;
	for (int i = 0; i < 2; i++)
		if (s->from_out[i] >= 0 && forward(s, i, 1) < 0)
			return -1;
	close_fd(&s->to_stdin);
	close_fd(&s->from_out[0]);
	close_fd(&s->from_out[1]);
	result[0] = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	result[1] = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
	return send_frame(s, FRAME_EXIT, result, sizeof(result));
}

static void serve(const char *device)
{
	static struct server s = { .to_stdin = -1, .from_out = { -1, -1 } };
	struct sigaction chld = { .sa_handler = on_sigchld, .sa_flags = SA_NOCLDSTOP };

	s.port = open(device, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (s.port < 0)
		die(device);
	s.args = malloc(ARGS_BYTES_MAX);
	if (!s.args)
		die("malloc");
	if (pipe2(sigchld_pipe, O_CLOEXEC | O_NONBLOCK) < 0)
		die("pipe2");
	sigaction(SIGCHLD, &chld, NULL);
	signal(SIGPIPE, SIG_IGN);
	/* SIGIO tells when a host connects: poll() has POLLHUP for its absence, but no event for its coming. */
	sigemptyset(&sigio);
	sigaddset(&sigio, SIGIO);
	if (sigprocmask(SIG_BLOCK, &sigio, NULL) < 0 || fcntl(s.port, F_SETOWN, getpid()) < 0 ||
	    fcntl(s.port, F_SETFL, O_NONBLOCK | O_ASYNC) < 0)
		die("SIGIO");

	for (;;) {
		struct pollfd p[5] = {
			{ .fd = s.port, .events = s.pending_len ? 0 : POLLIN },
			{ .fd = sigchld_pipe[0], .events = POLLIN },
			{ .fd = s.from_out[0], .events = POLLIN },
			{ .fd = s.from_out[1], .events = POLLIN },
			{ .fd = s.pending_len ? s.to_stdin : -1, .events = POLLOUT },
		};
		int gone = 0;

		if (poll(p, 5, -1) < 0) {
			if (errno == EINTR)
				continue;
			die("poll");
		}
		if (p[0].revents & POLLIN)
			gone = receive(&s) < 0;
		else if (p[0].revents & POLLHUP)
			gone = 1;
		if (!gone && p[4].revents)
			flush_stdin(&s);
		for (int i = 0; i < 2; i++)
			if (!gone && s.from_out[i] >= 0 && p[2 + i].revents)
				gone = forward(&s, i, 0) < 0;
		if (!gone && (p[1].revents & POLLIN))
			gone = reap(&s) < 0;
		if (gone) {
			struct timespec at_most = { .tv_sec = 5 };

			session_end(&s);
			s.in_have = 0;
			sigtimedwait(&sigio, NULL, &at_most);
		}
	}
}

/* Finds the ports by name in sysfs. Returns how many there are. */
static int find_ports(char devices[][64])
{
	DIR *dir = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	int count = 0;

	if (!dir)
		return 0;
	while ((entry = readdir(dir)) && count < PORT_COUNT_MAX) {
		char path[512], name[64] = "";
		FILE *file;

		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
		file = fopen(path, "r");
		if (!file)
			continue;
		if (fgets(name, sizeof(name), file) && !strncmp(name, "exec.", 5))
			snprintf(devices[count++], 64, "/dev/%.50s", entry->d_name);
		fclose(file);
	}
	closedir(dir);
	return count;
}

static pid_t start_server(const char *device)
{
	pid_t pid = fork();

	if (pid == 0)
		serve(device);
	if (pid < 0)
		die("fork");
	return pid;
}

int main(int argc, char **argv)
{
	static char devices[PORT_COUNT_MAX][64];
	pid_t servers[PORT_COUNT_MAX];
	struct timespec pause = { .tv_nsec = 10 * 1000 * 1000 };
	int want = argc > 1 ? atoi(argv[1]) : 1;
	int count;

	setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
	setenv("HOME", "/root", 1);
	/* The ports appear one by one, and sysfs has no event for "all are there". */
	while ((count = find_ports(devices)) < want)
		nanosleep(&pause, NULL);
	for (int i = 0; i < count; i++)
		servers[i] = start_server(devices[i]);
	for (;;) {
		pid_t pid = waitpid(-1, NULL, 0);

		for (int i = 0; i < count; i++)
			if (pid == servers[i]) {
				fprintf(stderr, "mxfs-lab agent: server of %s died, restarting\n", devices[i]);
				servers[i] = start_server(devices[i]);
			}
		if (pid < 0 && errno != EINTR)
			nanosleep(&pause, NULL);
	}
}
