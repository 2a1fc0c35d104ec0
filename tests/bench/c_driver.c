// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel's own C driver, as its source has it, under another name on the bus:
 * so it can be in a guest together with ours.
 */
#include <tpm.h>	/* drivers/char/tpm/tpm.h */
#include <xen/xenbus.h>

#ifdef C_DRIVER_IRQ
#define C_DRIVER_NAME "vtpm-c-irq"

/* The line that the driver lacks: with it, it sleeps until the event comes. */
static struct tpm_chip *alloc_with_irq(struct device *dev, const struct tpm_class_ops *ops)
{
	struct tpm_chip *chip = tpmm_chip_alloc(dev, ops);

	if (!IS_ERR(chip))
		chip->flags |= TPM_CHIP_FLAG_IRQ;
	return chip;
}

#define tpmm_chip_alloc alloc_with_irq
#else
#define C_DRIVER_NAME "vtpm-c"
#endif

#undef xenbus_register_frontend
#define xenbus_register_frontend(driver) \
	((driver)->name = C_DRIVER_NAME, \
	 __xenbus_register_frontend(driver, THIS_MODULE, KBUILD_MODNAME))

#include <xen-tpmfront.c>
