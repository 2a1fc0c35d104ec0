// SPDX-License-Identifier: GPL-2.0
/*
 * Stands in for a boot loader that measures: extends PCRs 0 to 9 once the
 * drivers are there and before IMA starts, so that IMA's boot_aggregate is not
 * one of zeroes. Built into the test kernel of tools/kernels/intree.py only.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/tpm.h>

static int __init early_measure(struct tpm_chip *chip, u32 pcr)
{
	struct tpm_digest *digests;
	int ret, i;

	digests = kcalloc(chip->nr_allocated_banks, sizeof(*digests), GFP_KERNEL);
	if (!digests)
		return -ENOMEM;
	for (i = 0; i < chip->nr_allocated_banks; i++) {
		digests[i].alg_id = chip->allocated_banks[i].alg_id;
		memset(digests[i].digest, pcr + 1, chip->allocated_banks[i].digest_size);
	}
	ret = tpm_pcr_extend(chip, pcr, digests);
	kfree(digests);
	return ret;
}

static int __init early_init(void)
{
	struct tpm_chip *chip = tpm_default_chip();
	int ret = 0;
	u32 pcr;

	if (!chip) {
		pr_info("early: no TPM\n");
		return 0;
	}
	for (pcr = 0; pcr < 10 && !ret; pcr++)
		ret = early_measure(chip, pcr);
	pr_info("early: PCRs 0 to 9 extended (%d)\n", ret);
	put_device(&chip->dev);
	return ret;
}
device_initcall_sync(early_init);
