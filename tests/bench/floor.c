// SPDX-License-Identifier: GPL-2.0
/*
 * The least that an exchange of a command for an answer costs in a guest: a frontend that
 * copies the command into the page, notifies, sleeps until the event, and copies the answer
 * out. It checks nothing, waits for ever, and is for measuring only.
 *
 * /dev/vtpm-floor: a write carries out the command, a read gives the answer. In debugfs,
 * vtpm-floor/exchange runs the last command once more, and gives the ns that it took, and
 * vtpm-floor/chip does so with the kernel's first TPM; vtpm-floor/clock gives the ns between
 * two readings of the clock, and vtpm-floor/running those that this vCPU has run by Xen's
 * account.
 */
#include <linux/completion.h>
#include <linux/debugfs.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/tpm.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <asm/xen/hypercall.h>
#include <xen/events.h>
#include <xen/interface/io/tpmif.h>
#include <xen/interface/vcpu.h>
#include <xen/page.h>
#include <xen/xenbus.h>

#define PACKET_OFFSET	sizeof(struct vtpm_shared_page)
#define MAX_PACKET	(PAGE_SIZE - PACKET_OFFSET)

static struct {
	struct xenbus_device *dev;
	struct vtpm_shared_page *page;
	grant_ref_t ref;
	evtchn_port_t port;
	int irq;
	struct completion event;
	struct mutex lock;
	size_t command_length, answer_length;
	u8 command[MAX_PACKET], answer[PAGE_SIZE];
} floor;

static irqreturn_t floor_interrupt(int irq, void *unused)
{
	complete(&floor.event);
	return IRQ_HANDLED;
}

static int exchange(void)
{
	struct vtpm_shared_page *page = floor.page;
	u8 *packet = (u8 *)page + PACKET_OFFSET;

	if (!page || floor.dev->state != XenbusStateConnected)
		return -ENOTCONN;
	memcpy(packet, floor.command, floor.command_length);
	page->length = floor.command_length;
	smp_store_release(&page->state, VTPM_STATE_SUBMIT);
	notify_remote_via_irq(floor.irq);
	while (smp_load_acquire(&page->state) != VTPM_STATE_FINISH)
		wait_for_completion(&floor.event);
	floor.answer_length = min_t(size_t, READ_ONCE(page->length), MAX_PACKET);
	memcpy(floor.answer, packet, floor.answer_length);
	return 0;
}

static ssize_t floor_write(struct file *file, const char __user *from, size_t count, loff_t *pos)
{
	int ret;

	if (count > MAX_PACKET)
		return -E2BIG;
	guard(mutex)(&floor.lock);
	if (copy_from_user(floor.command, from, count))
		return -EFAULT;
	floor.command_length = count;
	ret = exchange();
	return ret ?: count;
}

static ssize_t floor_read(struct file *file, char __user *to, size_t count, loff_t *pos)
{
	guard(mutex)(&floor.lock);
	count = min(count, floor.answer_length);
	return copy_to_user(to, floor.answer, count) ? -EFAULT : count;
}

static const struct file_operations floor_operations = {
	.owner = THIS_MODULE,
	.write = floor_write,
	.read = floor_read,
};

static struct miscdevice floor_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "vtpm-floor",
	.fops = &floor_operations,
};

static int exchange_get(void *unused, u64 *ns)
{
	u64 start;
	int ret;

	guard(mutex)(&floor.lock);
	start = ktime_get_ns();
	ret = exchange();
	*ns = ktime_get_ns() - start;
	return ret;
}
DEFINE_DEBUGFS_ATTRIBUTE(exchange_attribute, exchange_get, NULL, "%llu\n");

/* The core's buffer; from 7.3 on its data is behind its header. */
static struct tpm_buf *buffer(void)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 3, 0)
	struct tpm_buf *buf = kzalloc(TPM_BUFSIZE, GFP_KERNEL);

	if (buf)
		tpm_buf_init(buf, TPM_BUFSIZE);
#else
	struct tpm_buf *buf = kzalloc(sizeof(*buf), GFP_KERNEL);

	if (buf)
		buf->data = floor.answer;
#endif
	return buf;
}

static int chip_get(void *unused, u64 *ns)
{
	struct tpm_buf *buf __free(kfree) = buffer();
	struct tpm_chip *chip;
	u64 start;
	int ret;

	if (!buf)
		return -ENOMEM;
	chip = tpm_default_chip();
	if (!chip)
		return -ENODEV;
	guard(mutex)(&floor.lock);
	memcpy(buf->data, floor.command, floor.command_length);
	ret = tpm_try_get_ops(chip);
	if (!ret) {
		start = ktime_get_ns();
		ret = tpm_transmit_cmd(chip, buf, 0, NULL);
		*ns = ktime_get_ns() - start;
		tpm_put_ops(chip);
	}
	put_device(&chip->dev);
	return ret > 0 ? -EIO : ret;
}
DEFINE_DEBUGFS_ATTRIBUTE(chip_attribute, chip_get, NULL, "%llu\n");

static int clock_get(void *unused, u64 *ns)
{
	u64 start = ktime_get_ns();

	*ns = ktime_get_ns() - start;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(clock_attribute, clock_get, NULL, "%llu\n");

static int running_get(void *unused, u64 *ns)
{
	struct vcpu_runstate_info info;
	int ret = HYPERVISOR_vcpu_op(VCPUOP_get_runstate_info, 0, &info);

	*ns = info.time[RUNSTATE_running];
	return ret;
}
DEFINE_DEBUGFS_ATTRIBUTE(running_attribute, running_get, NULL, "%llu\n");

static int offer(struct xenbus_device *dev)
{
	struct xenbus_transaction transaction;
	int ret;

	do {
		ret = xenbus_transaction_start(&transaction);
		if (ret)
			return ret;
		ret = xenbus_printf(transaction, dev->nodename, "ring-ref", "%u", floor.ref) ?:
		      xenbus_printf(transaction, dev->nodename, "event-channel", "%u", floor.port) ?:
		      xenbus_printf(transaction, dev->nodename, "feature-protocol-v2", "1") ?:
		      xenbus_printf(transaction, dev->nodename, "state", "%d", XenbusStateInitialised);
		if (ret) {
			xenbus_transaction_end(transaction, 1);
			return ret;
		}
		ret = xenbus_transaction_end(transaction, 0);
	} while (ret == -EAGAIN);
	return ret ?: xenbus_switch_state(dev, XenbusStateInitialised);
}

static void take_down(struct xenbus_device *dev)
{
	if (floor.irq > 0)
		unbind_from_irqhandler(floor.irq, &floor);
	else if (floor.port)
		xenbus_free_evtchn(dev, floor.port);
	if (floor.page)
		xenbus_teardown_ring((void **)&floor.page, 1, &floor.ref);
	floor.irq = 0;
	floor.port = 0;
	floor.page = NULL;
	floor.dev = NULL;
}

static int floor_probe(struct xenbus_device *dev, const struct xenbus_device_id *id)
{
	int ret;

	/* One at a time: whoever measures has one of these and binds it to what is measured. */
	if (floor.dev)
		return -EBUSY;
	floor.dev = dev;
	ret = xenbus_setup_ring(dev, GFP_KERNEL, (void **)&floor.page, 1, &floor.ref);
	if (ret)
		goto out;
	ret = xenbus_alloc_evtchn(dev, &floor.port);
	if (ret)
		goto out;
	floor.irq = bind_evtchn_to_irqhandler(floor.port, floor_interrupt, 0, "vtpm-floor", &floor);
	ret = floor.irq < 0 ? floor.irq : offer(dev);
	if (!ret)
		return 0;
out:
	take_down(dev);
	return ret;
}

static void floor_remove(struct xenbus_device *dev)
{
	take_down(dev);
}

static void backend_changed(struct xenbus_device *dev, enum xenbus_state state)
{
	if (state == XenbusStateConnected)
		xenbus_switch_state(dev, XenbusStateConnected);
	else if (state == XenbusStateClosing || state == XenbusStateClosed)
		xenbus_frontend_closed(dev);
}

static const struct xenbus_device_id floor_ids[] = {
	{ "vtpm" },
	{ "" }
};

static struct xenbus_driver floor_driver = {
	.name = "vtpm-floor",
	.ids = floor_ids,
	.probe = floor_probe,
	.remove = floor_remove,
	.otherend_changed = backend_changed,
};

static struct dentry *folder;

static int __init floor_init(void)
{
	int ret;

	init_completion(&floor.event);
	mutex_init(&floor.lock);
	ret = xenbus_register_frontend(&floor_driver);
	if (ret)
		return ret;
	ret = misc_register(&floor_device);
	if (ret) {
		xenbus_unregister_driver(&floor_driver);
		return ret;
	}
	folder = debugfs_create_dir("vtpm-floor", NULL);
	debugfs_create_file("exchange", 0400, folder, NULL, &exchange_attribute);
	debugfs_create_file("chip", 0400, folder, NULL, &chip_attribute);
	debugfs_create_file("clock", 0400, folder, NULL, &clock_attribute);
	debugfs_create_file("running", 0400, folder, NULL, &running_attribute);
	return 0;
}
module_init(floor_init);

static void __exit floor_exit(void)
{
	debugfs_remove(folder);
	misc_deregister(&floor_device);
	xenbus_unregister_driver(&floor_driver);
}
module_exit(floor_exit);

MODULE_DESCRIPTION("The least that an exchange with a vTPM backend costs");
MODULE_AUTHOR("The xen-tpmfront developers");
MODULE_LICENSE("GPL");
