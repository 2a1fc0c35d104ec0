// SPDX-License-Identifier: GPL-2.0
/*
 * Makes the mistake that its parameter names, for the debug kernel to report.
 * Only for a guest that is thrown away afterwards.
 */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>

static char *mistake = "";
module_param(mistake, charp, 0);
MODULE_PARM_DESC(mistake, "leak, bounds, freed, index, sleep or order");

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static DEFINE_SPINLOCK(lock);
static int table[4];
/* The address right behind a table is one that may be taken. */
static unsigned int place = ARRAY_SIZE(table) + 1;

/* Many: SLUB's sheaves keep pointers to the last ones that they gave out. */
static noinline void leak(void)
{
	int left;

	for (left = 1000; left; left--) {
		void *lost = kmalloc(100, GFP_KERNEL);

		OPTIMIZER_HIDE_VAR(lost);
	}
}

static noinline void touch(size_t offset, bool freed)
{
	char *bytes = kmalloc(32, GFP_KERNEL);

	if (!bytes)
		return;
	if (freed)
		kfree(bytes);
	OPTIMIZER_HIDE_VAR(bytes);
	(void)READ_ONCE(bytes[offset]);
	if (!freed)
		kfree(bytes);
}

static int __init mistakes_init(void)
{
	if (!strcmp(mistake, "leak")) {
		leak();
	} else if (!strcmp(mistake, "bounds")) {
		touch(32, false);
	} else if (!strcmp(mistake, "freed")) {
		touch(0, true);
	} else if (!strcmp(mistake, "index")) {
		WRITE_ONCE(table[READ_ONCE(place) % 8], 1);
	} else if (!strcmp(mistake, "sleep")) {
		spin_lock(&lock);
		might_sleep();
		spin_unlock(&lock);
	} else if (!strcmp(mistake, "order")) {
		mutex_lock(&first);
		mutex_lock(&second);
		mutex_unlock(&second);
		mutex_unlock(&first);
		mutex_lock(&second);
		mutex_lock(&first);
		mutex_unlock(&first);
		mutex_unlock(&second);
	} else {
		return -EINVAL;
	}
	return 0;
}

static void __exit mistakes_exit(void)
{
}

module_init(mistakes_init);
module_exit(mistakes_exit);
MODULE_DESCRIPTION("Makes mistakes");
MODULE_LICENSE("GPL");
