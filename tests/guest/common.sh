# SPDX-License-Identifier: GPL-2.0
# Checks that are the same for both versions of a TPM.

check_locality_values() { python /bed/locality.py values; }

check_locality_arrives() { python /bed/locality.py arrives; }

check_locality_link() {
	[ -e $tpm/locality ] || fail "no $tpm/locality"
	is "the place of $device/locality" "$(readlink -f $device/locality)" "$(readlink -f $tpm/locality)"
}

check_request_sizes() { python /bed/requests.py sizes; }

check_partial_reads() { python /bed/requests.py partial_reads; }

check_busy_device() { python /bed/requests.py busy; }

# The kernel's own reader of random numbers would be counted, too.
check_counters() {
	[ "$(driver)" = rust ] || skip "the C driver counts nothing"
	echo none >/sys/class/misc/hw_random/rng_current
	sleep 0.5
	python /bed/counters.py commands
	[ -d /sys/kernel/debug/vtpm-0 ] || fail "no vtpm-0"
}

check_two_vtpms() {
	is "tpm0's place" "$(readlink -f /sys/class/tpm/tpm0/device)" /sys/devices/vtpm-0
	is "tpm1's place" "$(readlink -f /sys/class/tpm/tpm1/device)" /sys/devices/vtpm-1
	python /bed/two.py
}
