# SPDX-License-Identifier: GPL-2.0
# What the driver shows to those who watch it.

check_traced_command() { python /bed/observe.py command; }

# From here on until the backend has gone and come back.
check_watching() {
	python /bed/observe.py listen
	python /bed/observe.py trace
	dmesg >/run/before
}

check_traced_connection() { python /bed/observe.py states; }

check_uevent_of_reset() { python /bed/observe.py changed; }

# A backend that goes leaves one line, and one that comes back another.
check_one_line_for_each() {
	dmesg | tail -n +$(($(wc -l </run/before) + 1)) | grep 'vtpm vtpm-0' >lines
	cat lines
	is "the number of lines on a backend that has gone" "$(grep -c 'closed the connection' lines)" 1
	is "the number of lines on one that has come" "$(grep -c 'connected again' lines)" 1
}

check_interrupt_has_the_device_name() {
	grep -q ' vtpm-0$' /proc/interrupts || fail "$(grep -i -e tpm /proc/interrupts)"
}

check_no_spurious_events() { python /bed/observe.py spurious; }
