/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The kernel headers from which bindgen makes the raw bindings of this directory,
 * and the prototypes of the C helpers.
 */
#include <linux/completion.h>
#include <linux/device.h>
#include <linux/interrupt.h>
#include <linux/kobject.h>
#include <linux/reboot.h>
#include <linux/sysfs.h>
#include <linux/tpm.h>
#include <xen/events.h>
#include <xen/grant_table.h>
#include <xen/interface/io/tpmif.h>
#include <xen/page.h>
#include <xen/platform_pci.h>
#include <xen/xen.h>
#include <xen/xenbus.h>

#include <tpm.h>	/* drivers/char/tpm/tpm.h */
#include <tpmif.h>	/* include/tpmif.h of this project */

#include "helpers.h"
