// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel's own C driver, as its source has it, under another name on the bus:
 * so it can be in a guest together with ours.
 */
#include <xen/xenbus.h>

#undef xenbus_register_frontend
#define xenbus_register_frontend(driver) \
	((driver)->name = "vtpm-c", \
	 __xenbus_register_frontend(driver, THIS_MODULE, KBUILD_MODNAME))

#include <xen-tpmfront.c>
