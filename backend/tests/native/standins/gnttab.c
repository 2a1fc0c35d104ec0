// SPDX-License-Identifier: GPL-2.0
/*
 * libxengnttab.so.1 without Xen: a grant is the file grants/DOMID/REF, which both ends map. A
 * handle keeps the file gntdev open, so that a test sees who holds one; each call leaves a line
 * in the file grants.log.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xengnttab.h>

enum { PAGE = 4096 };

struct xengntdev_handle {
	int fd;
};

static const char *path(char *out, size_t len, const char *format, ...)
{
	int n = snprintf(out, len, "%s/", getenv("XEN_STANDIN_DIR"));
	va_list args;

	va_start(args, format);
	vsnprintf(out + n, len - n, format, args);
	va_end(args);
	return out;
}

static void note(const char *what, uint32_t domid, uint32_t ref)
{
	char name[256], line[64];
	int fd = open(path(name, sizeof(name), "grants.log"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
	int n = snprintf(line, sizeof(line), "%s %u %u %d\n", what, domid, ref, getpid());

	if (write(fd, line, n) != n)
		perror(name);
	close(fd);
}

xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned int flags)
{
	xengnttab_handle *xgt = malloc(sizeof(*xgt));
	char name[256];

	xgt->fd = open(path(name, sizeof(name), "gntdev"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (xgt->fd < 0) {
		free(xgt);
		return NULL;
	}
	note("open", 0, 0);
	return xgt;
}

int xengnttab_close(xengnttab_handle *xgt)
{
	int r = close(xgt->fd);

	free(xgt);
	return r;
}

int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t nr_grants)
{
	return 0;
}

void *xengnttab_map_grant_ref(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot)
{
	char name[256];
	int fd = open(path(name, sizeof(name), "grants/%u/%u", domid, ref), O_RDWR | O_CLOEXEC);
	void *page;

	note("map", domid, ref);
	if (fd < 0) {
		errno = EINVAL;
		return NULL;
	}
	page = mmap(NULL, PAGE, prot, MAP_SHARED, fd, 0);
	close(fd);
	return page == MAP_FAILED ? NULL : page;
}

int xengnttab_unmap(xengnttab_handle *xgt, void *start, uint32_t count)
{
	return munmap(start, (size_t)count * PAGE);
}
