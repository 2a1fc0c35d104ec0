# SPDX-License-Identifier: GPL-2.0
# The host has stopped swtpm, which the backend gets along with, or the backend itself.

check_stall_kill() { python /bed/cancel.py killed; }

check_stall_cancel() { python /bed/cancel.py stalled; }

# The kernel's own reader of random numbers would be waited for, too, as long as its command lasts.
check_stall_no_reader() { echo none >/sys/class/misc/hw_random/rng_current; }

check_stall_times_out() { python /bed/cancel.py times_out; }

# The backend does not even answer a cancel: the page is wedged.
check_stall_wedged() {
	python /bed/cancel.py refused EPIPE
	dmesg | grep -q 'not even to a cancel: reconnecting' || fail "the kernel log does not say so"
}

# What the whole scenario did: cancelled once, killed twice, two that timed out, one page lost.
check_stall_counted() {
	python /bed/counters.py are cancelled=1 'interrupted=2' timed_out=2 wedges=1 'no_backend>1' connections=2
}

# The driver is unbound though nobody hears the TPM core's last words.
check_stall_unbind() {
	start=$(cut -d. -f1 /proc/uptime)
	echo vtpm-0 >/sys/bus/xen/drivers/vtpm/unbind
	seconds=$(($(cut -d. -f1 /proc/uptime) - start))
	[ ! -e /dev/tpm0 ] || fail "/dev/tpm0 is there without a driver"
	# A second, and what the busy testbed makes of it.
	[ $seconds -le $((1 + 2 * SLOWNESS)) ] || fail "it took $seconds s"
}

check_stall_bind() {
	echo vtpm-0 >/sys/bus/xen/drivers/vtpm/bind
	works_as_tpm0
	echo none >/sys/class/misc/hw_random/rng_current
}

# The last guest of this TPM told it that it would lose its power, or did not.
check_orderly() { like "the TPM's last end" "$(orderly)" '.*orderly: *1.*'; }

orderly() { tpm2 getcap properties-variable | grep -i orderly; }

check_stall_over() { works_as_tpm0; }
