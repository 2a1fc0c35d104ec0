// SPDX-License-Identifier: GPL-2.0
/*
 * Preloaded into xenstored: what it opens below /proc/xen (the port and the page of dom0's own
 * ring, which nobody uses here) is in the stand-ins' directory.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROC_XEN "/proc/xen/"

int open(const char *path, int flags, ...)
{
	char name[256];
	va_list args;
	int mode;

	va_start(args, flags);
	mode = va_arg(args, int);
	va_end(args);
	if (!strncmp(path, PROC_XEN, strlen(PROC_XEN))) {
		snprintf(name, sizeof(name), "%s/%s", getenv("XEN_STANDIN_DIR"),
			 path + strlen(PROC_XEN));
		path = name;
	}
	return openat(AT_FDCWD, path, flags, mode);
}
