// SPDX-License-Identifier: GPL-2.0
/*
 * libxenctrl without Xen: the file domains/DOMID says what the hypervisor knows of a domain:
 * "running", "shutdown REASON" (the numbers of xen/sched.h) or "dying". No file, no domain. What is
 * "restored" has not run since, and its first processor was saved in a hypercall; what is "booted" has
 * not run either.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xenctrl.h>

/* Of faults.c, where that is preloaded. */
extern bool standin_fails(const char *name) __attribute__((weak));

static bool fails(const char *name)
{
	return standin_fails && standin_fails(name);
}

struct xc_interface_core {
	int unused;
};

xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild_logger,
				unsigned int open_flags)
{
	return fails("xc_interface_open") ? NULL : malloc(sizeof(xc_interface));
}

int xc_interface_close(xc_interface *xch)
{
	free(xch);
	return 0;
}

int xc_domain_getinfo_single(xc_interface *xch, uint32_t domid, xc_domaininfo_t *info)
{
	char name[256], what[16] = "";
	unsigned int reason = 0;
	FILE *file;

	if (fails("xc_domain_getinfo_single"))
		return -1;
	snprintf(name, sizeof(name), "%s/domains/%u", getenv("XEN_STANDIN_DIR"), domid);
	file = fopen(name, "re");
	if (!file) {
		errno = ESRCH;
		return -1;
	}
	if (fscanf(file, "%15s %u", what, &reason) < 1)
		what[0] = 0;
	fclose(file);

	memset(info, 0, sizeof(*info));
	info->domain = domid;
	info->cpu_time = 1;
	if (!strcmp(what, "running"))
		info->flags = XEN_DOMINF_running;
	else if (!strcmp(what, "booted") || !strcmp(what, "restored"))
		info->cpu_time = 0;
	else if (!strcmp(what, "shutdown"))
		info->flags = XEN_DOMINF_shutdown | reason << XEN_DOMINF_shutdownshift;
	else if (!strcmp(what, "dying"))
		info->flags = XEN_DOMINF_dying;
	return 0;
}

int xc_vcpu_getcontext(xc_interface *xch, uint32_t domid, uint32_t vcpu,
		       vcpu_guest_context_any_t *context)
{
	char name[256], what[16] = "";
	FILE *file;

	if (fails("xc_vcpu_getcontext"))
		return -1;
	snprintf(name, sizeof(name), "%s/domains/%u", getenv("XEN_STANDIN_DIR"), domid);
	file = fopen(name, "re");
	if (!file || fscanf(file, "%15s", what) < 1) {
		errno = ESRCH;
		return -1;
	}
	fclose(file);
	memset(context, 0, sizeof(context->x64));
	context->x64.user_regs.rip = 0xffffffff81000000;
	context->x64.user_regs.rsi = 0xffffffff83000000;
	if (!strcmp(what, "restored"))
		context->x64.user_regs.rcx = context->x64.user_regs.rip;
	return 0;
}

int xc_domain_getinfolist(xc_interface *xch, uint32_t first_domain, unsigned int max_domains,
			  xc_domaininfo_t *info)
{
	unsigned int found = 0;

	for (uint32_t domid = first_domain; domid < DOMID_FIRST_RESERVED && found < max_domains; domid++)
		found += !xc_domain_getinfo_single(xch, domid, &info[found]);
	return found;
}
