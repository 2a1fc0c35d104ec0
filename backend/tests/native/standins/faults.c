// SPDX-License-Identifier: GPL-2.0
/*
 * Preloaded into xen-vtpmd: counts the calls into Xen's libraries in the mapped file faults, makes
 * one of them fail, once, or delays each, as the test says there. Each kind of process has its own
 * counts. The library behind is the real libxenstore, or another of the stand-ins.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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
static const char *const KINDS[] = { "run", "serve", "io" };

struct slot {
	_Atomic uint32_t calls, fail_at, error, delay_ms;
};

static struct slot *slots;

__attribute__((constructor)) static void map_slots(void)
{
	size_t kinds = sizeof(KINDS) / sizeof(KINDS[0]), row = NR_CALLS * sizeof(struct slot);
	char name[256], line[4096] = "";
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t len = read(fd, line, sizeof(line) - 1);
	void *all;

	close(fd);
	if (!getenv("XEN_STANDIN_DIR"))
		return;
	snprintf(name, sizeof(name), "%s/faults", getenv("XEN_STANDIN_DIR"));
	fd = open(name, O_RDWR | O_CLOEXEC);
	all = mmap(NULL, kinds * row, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (all == MAP_FAILED)
		return;
	for (const char *arg = line; arg < line + len; arg += strlen(arg) + 1)
		for (size_t kind = 0; kind < kinds && !slots; kind++)
			if (!strcmp(arg, KINDS[kind]))
				slots = (struct slot *)((char *)all + kind * row);
}

static bool fails(int nr)
{
	bool fails;

	if (!slots)
		return false;
	fails = atomic_fetch_add(&slots[nr].calls, 1) + 1 == slots[nr].fail_at;
	if (slots[nr].delay_ms)
		usleep(slots[nr].delay_ms * 1000);
	if (fails)
		errno = slots[nr].error;
	return fails;
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
