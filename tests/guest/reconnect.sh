# SPDX-License-Identifier: GPL-2.0
# The backend goes and comes back while /dev/tpm0 is open.

check_reconnect_hold() {
	python /bed/reconnect.py hold
	wait_for 10 grep -q ok /run/reconnect.log
}

check_reconnect_waits() { wait_for 20 sh -c 'tail -n 1 /run/reconnect.log | grep -q EPIPE'; }

check_reconnect_goes_on() {
	wait_for 40 sh -c 'tail -n 1 /run/reconnect.log | grep -q ok'
	python /bed/reconnect.py seen
	# Of a command that the daemon gave up as it ended, which is ECANCELED, the core says so.
	is "the number of errors in the kernel log" "$(dmesg | grep 'tpm tpm0.*error' | grep -vc 'error -125$')" 0
	dmesg | grep -q 'the TPM was reset' || fail "the kernel log does not say that the TPM was reset"
	[ -c /dev/tpmrm0 ] || fail "/dev/tpmrm0 is gone"
	tpm2 getrandom --hex 8
}
