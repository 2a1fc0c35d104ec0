/* SPDX-License-Identifier: GPL-2.0 */
/* C helpers for what bindgen cannot see: macros and inline functions. */
#ifndef XEN_TPMFRONT_HELPERS_H
#define XEN_TPMFRONT_HELPERS_H

#include <linux/types.h>

struct device;
struct page;

bool rust_helper_xen_has_pv_devices(void);
struct page *rust_helper_virt_to_page(const void *address);
unsigned int rust_helper_memalloc_noio_save(void);
void rust_helper_memalloc_noio_restore(unsigned int flags);
bool rust_helper_trace_command_enabled(void);
void rust_helper_trace_command(struct device *dev, u32 ordinal, u8 locality,
			       u32 request, s32 response, u64 us);
void rust_helper_trace_connection(struct device *dev, u32 state);

#endif
