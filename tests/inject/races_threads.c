// SPDX-License-Identifier: GPL-2.0
/*
 * Two threads add to one number, by Rust code (races_add.rs) that nothing
 * orders, for the kernel that looks for data races to report.
 */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/kthread.h>
#include <linux/module.h>

#define THREADS 2

void races_add(unsigned long *number);

static struct task_struct *threads[THREADS];
static unsigned long number;

static int add(void *unused)
{
	while (!kthread_should_stop()) {
		int left;

		for (left = 1000; left; left--)
			races_add(&number);
		cond_resched();
	}
	return 0;
}

static void races_exit(void)
{
	int i;

	for (i = 0; i < THREADS; i++)
		if (!IS_ERR_OR_NULL(threads[i]))
			kthread_stop(threads[i]);
}

static int __init races_init(void)
{
	int i;

	for (i = 0; i < THREADS; i++) {
		threads[i] = kthread_run(add, NULL, "races/%d", i);
		if (IS_ERR(threads[i])) {
			int error = PTR_ERR(threads[i]);

			races_exit();
			return error;
		}
	}
	return 0;
}

module_init(races_init);
module_exit(races_exit);
MODULE_DESCRIPTION("Makes a data race");
MODULE_LICENSE("GPL");
