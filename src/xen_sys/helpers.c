// SPDX-License-Identifier: GPL-2.0
/*
 * C helpers for what bindgen cannot see, and the check that our own view of
 * the wire is the kernel's.
 */
#include <linux/build_bug.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/stddef.h>
#include <xen/interface/io/tpmif.h>
#include <xen/platform_pci.h>
#include <xen/xen.h>

#include <tpmif.h>

#include "helpers.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

static_assert(sizeof(struct tpmif_page) == sizeof(struct vtpm_shared_page));
static_assert(offsetof(struct tpmif_page, length) ==
	      offsetof(struct vtpm_shared_page, length));
static_assert(offsetof(struct tpmif_page, state) ==
	      offsetof(struct vtpm_shared_page, state));
static_assert(offsetof(struct tpmif_page, locality) ==
	      offsetof(struct vtpm_shared_page, locality));
static_assert(offsetof(struct tpmif_page, pad) ==
	      offsetof(struct vtpm_shared_page, pad));
static_assert(offsetof(struct tpmif_page, nr_extra_pages) ==
	      offsetof(struct vtpm_shared_page, nr_extra_pages));
static_assert(offsetof(struct tpmif_page, extra_pages) ==
	      offsetof(struct vtpm_shared_page, extra_pages));

static_assert(TPMIF_IDLE == (int)VTPM_STATE_IDLE);
static_assert(TPMIF_SUBMIT == (int)VTPM_STATE_SUBMIT);
static_assert(TPMIF_FINISH == (int)VTPM_STATE_FINISH);
static_assert(TPMIF_CANCEL == (int)VTPM_STATE_CANCEL);

bool rust_helper_xen_has_pv_devices(void)
{
	/* Without CONFIG_XEN_PVHVM the latter alone is a constant. */
	return xen_domain() && xen_has_pv_devices();
}

struct page *rust_helper_virt_to_page(const void *address)
{
	return virt_to_page(address);
}

unsigned int rust_helper_memalloc_noio_save(void)
{
	return memalloc_noio_save();
}

void rust_helper_memalloc_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

bool rust_helper_trace_command_enabled(void)
{
	return trace_xen_tpmfront_command_enabled();
}

void rust_helper_trace_command(struct device *dev, u32 ordinal, u8 locality,
			       u32 request, s32 response, u64 us)
{
	trace_xen_tpmfront_command(dev, ordinal, locality, request, response, us);
}

void rust_helper_trace_connection(struct device *dev, u32 state)
{
	trace_xen_tpmfront_connection(dev, state);
}
