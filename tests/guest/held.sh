# SPDX-License-Identifier: GPL-2.0
# What a TPM 2.0 keeps, and what it does not, when its guest goes and comes back.

check_held_make() {
	python /bed/held.py extend
	echo 'kept in the TPM' >data
	tpm2 nvdefine -Q -C o -s 16 -a 'ownerread|ownerwrite' 0x1500016
	tpm2 nvwrite -Q -C o -i data 0x1500016
}

# After a restart of the guest: PCRs are as at power-on, what is in NV is kept.
check_held_restarted() {
	python /bed/held.py pcr reset
	is "the NV index" "$(tpm2 nvread -C o -s 16 0x1500016)" 'kept in the TPM'
}

check_held_open() {
	wait_for 30 test -c /dev/tpm1
	python /bed/held.py hold /dev/tpm1
	wait_for 10 grep -qx 0 /run/held
}

# The command that the end catches, or the next one, fails; the device goes when it is closed.
check_held_gone() {
	wait_for 30 sh -c 'tail -n 1 /run/held | grep -Eqx "32|19|125"'
	wait_for 10 sh -c '[ ! -e /sys/bus/xen/devices/vtpm-1 ]'
	wait_for 10 sh -c '[ "$(ls /sys/class/tpm)" = tpm0 ]'
}

check_held_second() {
	wait_for 30 test -c /dev/tpm1
	python /bed/held.py works /dev/tpm1
}
