// SPDX-License-Identifier: GPL-2.0
/*
 * Preloaded into xen-vtpmd: counts the calls into Xen's libraries in the mapped file faults, makes
 * one of them fail, once, or delays each, as the test says there. Each kind of process has its own
 * counts. The library behind is the real libxenstore, or another of the stand-ins.
 *
 * In the mapped file takeover a test writes what a process that an attacker has taken over tries,
 * and how far the clock is ahead.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xenevtchn.h>
#include <xengnttab.h>
#include <xenstore.h>

#define FAULT(type, bad, name, parameters, arguments) FAULT_INSIDE(name)
#define FAULT_INSIDE(name) NR_##name,
enum {
#include "faults.def"
	NR_CALLS
};
#undef FAULT_INSIDE

#define FAULT_INSIDE(name) #name,
static const char *const NAMES[] = {
#include "faults.def"
};
#undef FAULT_INSIDE
#undef FAULT

/* As faults.rs has it. */
static const char *const KINDS[] = { "run", "serve", "io", "broker" };

struct slot {
	_Atomic uint32_t calls, fail_at, error, delay_ms;
};

static struct slot *slots;

/* As takeover.rs has it: what is tried, on what, and the error that came of it. */
struct attempt {
	char how, on[251];
	int32_t error;
};

static struct takeover {
	_Atomic int32_t pid;
	/* How far the monotonic clock is ahead of the kernel's. */
	_Atomic int32_t seconds;
	struct attempt attempts[31];
} *takeover;

/* An I/O process may not ask for it later. */
static pid_t own_pid;

static void *map_file(const char *name, size_t size)
{
	char path[256];
	void *map;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", getenv("XEN_STANDIN_DIR"), name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return map == MAP_FAILED ? NULL : map;
}

__attribute__((constructor)) static void map_slots(void)
{
	size_t kinds = sizeof(KINDS) / sizeof(KINDS[0]), row = NR_CALLS * sizeof(struct slot);
	char line[4096] = "";
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t len = read(fd, line, sizeof(line) - 1);
	char *all;

	close(fd);
	if (!getenv("XEN_STANDIN_DIR"))
		return;
	own_pid = getpid();
	takeover = map_file("takeover", sizeof(*takeover));
	all = map_file("faults", kinds * row);
	if (!all)
		return;
	for (const char *arg = line; arg < line + len; arg += strlen(arg) + 1)
		for (size_t kind = 0; kind < kinds && !slots; kind++)
			if (!strcmp(arg, KINDS[kind]))
				slots = (struct slot *)(all + kind * row);
}

/* Tries one thing: the error number, 0 for success. */
static int try(const struct attempt *attempt)
{
	char *const arguments[] = { (char *)attempt->on, NULL };
	int done = -1;

	errno = ENOSYS;
	switch (attempt->how) {
	case 'r':
		done = open(attempt->on, O_RDONLY | O_CLOEXEC);
		break;
	case 'w':
		done = open(attempt->on, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
		break;
	case 'u':
		done = unlink(attempt->on);
		break;
	case 'x':
		done = execv(attempt->on, arguments);
		break;
	case 'k':
		done = kill(atoi(attempt->on), 0);
		break;
	case 't':
		done = ptrace(PTRACE_ATTACH, atoi(attempt->on), NULL, NULL);
		break;
	case 'i':
		done = socket(AF_INET, SOCK_STREAM, 0);
		break;
	case 'n':
		done = unshare(CLONE_NEWNS);
		break;
	}
	return done < 0 ? errno : 0;
}

static void try_all(void)
{
	if (!takeover || takeover->pid != own_pid)
		return;
	for (struct attempt *attempt = takeover->attempts; attempt->how; attempt++)
		attempt->error = try(attempt);
	takeover->pid = 0;
}

static bool fails(int nr)
{
	bool fails;

	if (!slots)
		return false;
	try_all();
	fails = atomic_fetch_add(&slots[nr].calls, 1) + 1 == slots[nr].fail_at;
	if (slots[nr].delay_ms)
		usleep(slots[nr].delay_ms * 1000);
	if (fails)
		errno = slots[nr].error;
	return fails;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	static int (*next)(clockid_t, struct timespec *);
	int done;

	if (!next)
		next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	done = next(clock, time);
	if (!done && clock == CLOCK_MONOTONIC && takeover)
		time->tv_sec += takeover->seconds;
	return done;
}

/* For the other stand-ins. */
bool standin_fails(const char *name)
{
	for (int nr = 0; nr < NR_CALLS; nr++)
		if (!strcmp(name, NAMES[nr]))
			return fails(nr);
	return false;
}

#define FAULT_INSIDE(name)
#define FAULT(type, bad, name, parameters, arguments)				\
	type name parameters							\
	{									\
		static type (*next) parameters;					\
										\
		if (fails(NR_##name))						\
			return bad;						\
		if (!next)							\
			next = (type (*) parameters)dlsym(RTLD_NEXT, #name);	\
		return next arguments;						\
	}
#include "faults.def"
