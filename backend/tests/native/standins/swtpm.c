// SPDX-License-Identifier: GPL-2.0
/*
 * Takes swtpm's place. Where the state directory has a file "behaviour", it is a TPM that says yes
 * to everything and then does what that file says; else it becomes the real swtpm, or stays that
 * TPM where the file "trivial" is beside the real one (a thousand of it fit on a small machine).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define REAL "/usr/lib/real/"

enum { GET_CAPABILITY = 1, INIT = 2, SHUTDOWN = 3, GET_TPMESTABLISHED = 4, SET_DATAFD = 16, SET_BUFFERSIZE = 17 };

static char behaviour[32];
static int control = -1, data = -1;

static bool is(const char *name)
{
	return !strcmp(behaviour, name);
}

/* Never ends what goes wrong on purpose. */
static void put(int fd, const void *bytes, size_t n)
{
	if (send(fd, bytes, n, MSG_NOSIGNAL) < 0)
		usleep(1000);
}

static void flood(int fd, bool is_socket)
{
	static char line[4096];

	for (size_t i = 0; i < sizeof(line); i += 32)
		memcpy(line + i, "\n<0>forged\x1b[2J swtpm says it all ", 32);
	for (;;) {
		if (is_socket)
			put(fd, line, sizeof(line));
		else if (write(fd, line, sizeof(line)) < 0)
			usleep(1000);
	}
}

/* What a guest that took its swtpm over might do. */
static void *misbehave(void *unused)
{
	char name[32];

	if (is("memory"))
		for (int fd; (fd = memfd_create("x", 0)) >= 0;)
			for (int mib = 0; mib < 60; mib++)
				if (write(fd, calloc(1, 1 << 20), 1 << 20) < 0)
					break;
	if (is("heap"))
		for (char *mib; (mib = malloc(1 << 20));)
			memset(mib, 1, 1 << 20);
	while (is("processor"))
		;
	if (is("tasks"))
		for (int pid; (pid = fork()) >= 0;)
			if (!pid)
				for (;;)
					pause();
	if (is("descriptors"))
		while (dup(0) >= 0)
			;
	for (int n = 0; is("disk") && n < 8; n++) {
		int fd;

		snprintf(name, sizeof(name), "junk-%d", n);
		fd = open(name, O_CREAT | O_WRONLY, 0600);
		for (int mib = 0; mib < 8; mib++)
			if (write(fd, calloc(1, 1 << 20), 1 << 20) < 0)
				break;
	}
	for (int fd = 0; is("lock") && fd < 64; fd++) {
		char path[64], target[256] = "";

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		flock(fd, LOCK_UN);
		if (readlink(path, target, sizeof(target) - 1) > 0 && strstr(target, "lock"))
			for (int n = 0; n < 256; n++)
				if (write(fd, "\n<0>forged\x1b[2J\n", 16) < 0)
					break;
	}
	if (is("log"))
		flood(2, false);
	if (is("control"))
		flood(control, true);
	if (is("data"))
		flood(data, true);
	return NULL;
}

static void start_misbehaviour(void)
{
	pthread_t thread;
	pthread_attr_t small;

	signal(SIGPIPE, SIG_IGN);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 64 << 10);
	if (behaviour[0])
		pthread_create(&thread, &small, misbehave, NULL);
}

static void take_control_message(void)
{
	char ancillary[CMSG_SPACE(sizeof(int))];
	uint32_t in[64], out[4] = { 0 };
	struct iovec iov = { in, sizeof(in) };
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = ancillary, .msg_controllen = sizeof(ancillary),
	};
	size_t reply = 4;

	if (recvmsg(control, &message, 0) <= 0) {
		close(control);
		control = -1;
		return;
	}
	switch (ntohl(in[0])) {
	case GET_CAPABILITY:
		out[1] = htonl(0xffff);
		reply = 8;
		break;
	case GET_TPMESTABLISHED:
		reply = 8;
		break;
	case SET_BUFFERSIZE:
		out[1] = out[3] = htonl(4096);
		out[2] = htonl(1024);
		reply = 16;
		break;
	case SET_DATAFD:
		close(data);
		if (CMSG_FIRSTHDR(&message))
			memcpy(&data, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(data));
		break;
	case INIT:
		start_misbehaviour();
		break;
	case SHUTDOWN:
		put(control, out, reply);
		exit(0);
	}
	put(control, out, reply);
}

static void take_command(void)
{
	/* TPM2_GetCapability of TPM_CAP_PCRS: SHA-256 is the active bank. */
	static const unsigned char banks[] = { 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 11, 3, 255, 255, 255 };
	unsigned char command[4096], response[25] = { 0x80, 1, 0, 0, 0, 10 };
	size_t n = 10;

	if (recv(data, command, sizeof(command), 0) <= 0) {
		close(data);
		data = -1;
		return;
	}
	if (command[1] == 2) {
		/* No parameters, and a password session's end. */
		response[1] = 2;
		response[5] = n = 19;
		response[16] = 1;
	} else if (command[8] == 1 && command[9] == 0x7a) {
		response[5] = n = 25;
		memcpy(response + 10, banks, sizeof(banks));
	}
	put(data, response, n);
}

int main(int argc, char **argv)
{
	int fd = open("behaviour", O_RDONLY | O_CLOEXEC), listener = -1, is_listening = 0;
	socklen_t len = sizeof(is_listening);
	const char *number = NULL;

	if (fd >= 0 && read(fd, behaviour, sizeof(behaviour) - 1) < 0)
		return 1;
	close(fd);
	for (int i = 1; i < argc; i++)
		if (!strncmp(argv[i], "type=unixio,fd=", 15) ||
		    (!strncmp(argv[i], "type=unixio,clientfd=", 21)))
			number = strrchr(argv[i], '=') + 1;
	if (!number || (!behaviour[0] && access(REAL "trivial", F_OK))) {
		execv(REAL "swtpm", argv);
		perror(REAL "swtpm");
		return 1;
	}

	fd = atoi(number);
	getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &len);
	*(is_listening ? &listener : &control) = fd;
	for (;;) {
		struct pollfd fds[] = {
			{ control < 0 ? listener : control, POLLIN, 0 },
			{ data, POLLIN, 0 },
		};

		if (control < 0 && listener < 0)
			return 0;
		poll(fds, 2, -1);
		if (is("silent") && data >= 0)
			pause();
		if (fds[0].revents && control < 0)
			control = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		else if (fds[0].revents)
			take_control_message();
		if (fds[1].revents && data >= 0)
			take_command();
	}
}
