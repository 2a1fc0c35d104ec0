/* SPDX-License-Identifier: GPL-2.0 */
/* C helpers for what bindgen cannot see: macros and inline functions. */
#ifndef XEN_TPMFRONT_HELPERS_H
#define XEN_TPMFRONT_HELPERS_H

#include <linux/types.h>

struct completion;

bool rust_helper_xen_has_pv_devices(void);
void rust_helper_reinit_completion(struct completion *x);

#endif
