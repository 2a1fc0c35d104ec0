// SPDX-License-Identifier: GPL-2.0
/*
 * Names the functions by which xen-tpmfront works to fail_function, which takes
 * none but those that are listed like this. Only for the debug kernel's guests.
 *
 * Not here is what cannot fail without the failure being this module's own
 * doing: a xenbus_transaction_end() that is not carried out leaves the
 * transaction open, and what returns nothing has no error to return.
 */
#include <linux/device.h>
#include <linux/error-injection.h>
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/sysfs.h>
#include <xen/events.h>
#include <xen/grant_table.h>
#include <xen/xenbus.h>

#include "tpm.h"

ALLOW_ERROR_INJECTION(xenbus_setup_ring, ERRNO);
ALLOW_ERROR_INJECTION(gnttab_alloc_grant_references, ERRNO);
ALLOW_ERROR_INJECTION(xenbus_alloc_evtchn, ERRNO);
ALLOW_ERROR_INJECTION(bind_evtchn_to_irqhandler_lateeoi, ERRNO);
ALLOW_ERROR_INJECTION(request_threaded_irq, ERRNO);
ALLOW_ERROR_INJECTION(xenbus_transaction_start, ERRNO);
ALLOW_ERROR_INJECTION(xenbus_write, ERRNO);
ALLOW_ERROR_INJECTION(xenbus_read, ERRNO);
ALLOW_ERROR_INJECTION(tpm_chip_alloc, ERRNO);
ALLOW_ERROR_INJECTION(tpm_chip_start, ERRNO);
ALLOW_ERROR_INJECTION(tpm2_probe, ERRNO);
ALLOW_ERROR_INJECTION(tpm_chip_bootstrap, ERRNO);
ALLOW_ERROR_INJECTION(tpm_chip_register, ERRNO);
ALLOW_ERROR_INJECTION(device_create_file, ERRNO);
ALLOW_ERROR_INJECTION(compat_only_sysfs_link_entry_to_kobj, ERRNO);

MODULE_DESCRIPTION("Lets the calls of xen-tpmfront fail");
MODULE_LICENSE("GPL");
