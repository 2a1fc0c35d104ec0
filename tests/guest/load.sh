# SPDX-License-Identifier: GPL-2.0
# Loading the driver, and what the kernel log says at the end.

check_module_loads() {
	load_driver
	number=0
	for version in $(sed -n 's/.*bed\.tpms=\([^ ]*\).*/\1/p' /proc/cmdline | tr ',' ' '); do
		wait_for 30 test -c /dev/tpm$number
		[ -e /sys/bus/xen/drivers/vtpm/vtpm-$number ] || fail "the driver is not bound to vtpm-$number"
		number=$((number + 1))
	done
	[ $number -gt 0 ] || fail "the testbed gave this guest no vTPM"
}

# Beside the stock driver's file, ours is the one that is loaded.
check_ours_is_loaded() {
	# Debian's kernels for arm64 have none.
	[ -e "$stock" ] || [ "$(uname -m)" = aarch64 ] || fail "the stock driver's file is not there: $stock"
	is "what modprobe would take" "$(modinfo -n xen-tpmfront)" "$modules/updates/xen-tpmfront.ko"
	# The stock driver was built with the kernel: it does not taint.
	like "the taint of the loaded module" "$(cat /sys/module/xen_tpmfront/taint)" '[OE]+'
	grep -q xen_tpmfront /proc/modules || fail "no module xen_tpmfront is loaded"
}

check_module_is_pinned_while_bound() {
	rmmod xen_tpmfront 2>/dev/null && fail "rmmod took a module whose device is bound"
	[ -c /dev/tpm0 ] || fail "/dev/tpm0 is gone"
}

unload() {
	for bound in /sys/bus/xen/drivers/vtpm/vtpm-*; do
		echo "${bound##*/}" >/sys/bus/xen/drivers/vtpm/unbind
	done
	[ ! -e /dev/tpm0 ] || fail "/dev/tpm0 is there without a driver"
	rmmod xen_tpmfront || fail "rmmod failed"
	[ ! -e /sys/kernel/debug/vtpm-0 ] || fail "there is still a directory in debugfs"
}

reload() {
	for count in $(seq "$1"); do
		unload
		load_driver || fail "cycle $count: modprobe failed"
		wait_for 30 test -c /dev/tpm0
	done
	python /bed/tpm.py works
}

check_reload_1() { reload 1; }

check_reload_5() { reload 5; }

# Loads the driver when the host has set the device's state back to what it is after boot, for which
# xenbus makes it anew. The kernel log so far is kept for check_kernel_log.
load_fresh() {
	wait_for 10 sh -c 'dmesg | grep -q "state reset occurred"'
	wait_for 10 test -d /sys/bus/xen/devices/vtpm-0
	dmesg -c >>/run/dmesg
	load_driver || fail "modprobe failed"
	wait_for 30 test -c /dev/tpm0
	python /bed/tpm.py works
	if dmesg | grep 'state reset occurred'; then fail "the device was lost while it was bound"; fi
}

# KCSAN's reports are for check_race_reports.
check_kernel_log() {
	touch /run/dmesg
	dmesg | cat /run/dmesg - >/tmp/dmesg
	if grep -E -A 25 -f /bed/complaints /tmp/dmesg; then
		fail "the kernel log has the lines above"
	fi
	# O (out of tree) and E (unsigned) are what our module may set; N is what unit tests set, where they are asked for.
	allowed=$((4096 | 8192))
	! grep -q kunit.enable=1 /proc/cmdline || allowed=$((allowed | 1 << 18))
	# W, for a warning that is known not to be the driver's.
	grep -qsv '^0' /run/known && allowed=$((allowed | 1 << 9))
	is "the taint beside O and E" $(($(cat /proc/sys/kernel/tainted) & ~allowed)) 0
}

check_refused_outside_xen() {
	if modprobe xen-tpmfront 2>error; then fail "it loads where there is no Xen"; fi
	grep -q 'No such device' error || fail "not ENODEV: $(cat error)"
	grep -q xen_tpmfront /proc/modules && fail "it stays loaded"
	:
}

# The kernel's own driver serves the device, not ours.
check_stock_driver() {
	wait_for 30 test -c /dev/tpm0
	is "the taint of the loaded module" "$(cat /sys/module/xen_tpmfront/taint)" ''
}

# The processor's own virtualisation, and the hypervisor's paging, in place of a PV kernel.
check_is_pvh() {
	kind=PVH
	# What arm64's kernels call it.
	[ "$(uname -m)" != aarch64 ] || kind=HVM
	is "the kind of guest" "$(cat /sys/hypervisor/guest_type)" $kind
}

# The backend is stopped, or not there: the driver gives it 20 s at most, and xenbus another 30.
check_loads_without_an_answer() {
	start=$(cut -d. -f1 /proc/uptime)
	load_driver
	took=$(($(cut -d. -f1 /proc/uptime) - start))
	[ $took -le $((60 * HOST)) ] || fail "modprobe took $took s"
	[ ! -e /dev/tpm0 ] || fail "there is a TPM, though nobody answers"
	echo "modprobe took $took s"
}
