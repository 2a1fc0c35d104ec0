# SPDX-License-Identifier: GPL-2.0
# Checks of a TPM 1.2: the sysfs attributes where the C driver has them, and TrouSerS' tools.

check_tpm12_is_found() {
	is tpm_version_major "$(cat $tpm/tpm_version_major)" 1
	[ ! -e /dev/tpmrm0 ] || fail "a TPM 1.2 has no resource manager, and /dev/tpmrm0 is there"
}

# Each attribute is at the class device, and as a link on the xenbus device.
attribute() {
	[ -e "$tpm/$1" ] || fail "$tpm/$1 is not there"
	[ -L "$device/$1" ] || fail "$device/$1 is not a link"
	[ "$(readlink -f "$device/$1")" = "$(readlink -f "$tpm/$1")" ] || fail "$device/$1 leads elsewhere"
}

value() {
	attribute "$1"
	cat "$tpm/$1"
}

check_sysfs_pubek() {
	value pubek >pubek
	grep -q '^Algorithm: *00 00 00 01' pubek || fail "no RSA key: $(cat pubek)"
	like "the line of the key's length" "$(grep -i '^Modulus length' pubek)" 'Modulus length: *256'
}

check_sysfs_pcrs() {
	is "the number of PCRs" "$(value pcrs | grep -Ecx 'PCR-[0-9]{2}:( [0-9A-F]{2}){20} ?')" 24
}

check_sysfs_enabled() { is enabled "$(value enabled)" 1; }

check_sysfs_active() { is active "$(value active)" 1; }

check_sysfs_owned() { is owned "$(value owned)" 0; }

check_sysfs_temp_deactivated() { is temp_deactivated "$(value temp_deactivated)" 0; }

check_sysfs_caps() {
	value caps >caps
	like "the manufacturer" "$(sed -n 1p caps)" 'Manufacturer: 0x49424d00'
	like "the TCG version" "$(sed -n 2p caps)" 'TCG version: 1\.2'
	like "the firmware" "$(sed -n 3p caps)" 'Firmware version: [0-9.]+'
}

check_sysfs_cancel() {
	attribute cancel
	is "the mode of cancel" "$(stat -c %a $tpm/cancel)" 200
	echo 1 >$tpm/cancel || fail "a cancel without a command is refused"
	python /bed/tpm.py works || fail "the TPM does not answer after a cancel without a command"
}

check_sysfs_durations() {
	like durations "$(value durations)" '[1-9][0-9]* [1-9][0-9]* [1-9][0-9]* \[(original|adjusted)\]'
}

check_sysfs_timeouts() {
	like timeouts "$(value timeouts)" '[1-9][0-9]* [1-9][0-9]* [1-9][0-9]* [1-9][0-9]* \[(original|adjusted)\]'
}

start_tcsd() {
	pidof tcsd >/dev/null && return
	chgrp tss /etc/tcsd.conf
	chown tss:tss /var/lib/tpm /dev/tpm0
	tcsd
	wait_for 10 sh -c 'netstat -ltn | grep -q :30003'
}

check_tpm_version() {
	start_tcsd
	tpm_version >version
	cat version
	like "the first line" "$(sed -n 1p version)" ' *TPM 1\.2 Version Info:'
	for line in 'Chip Version: +1\.2\.[0-9]+\.[0-9]+' 'Spec Level: +[0-9]+' 'Errata Revision: +[0-9]+' \
		'TPM Vendor ID: +IBM' 'TPM Version: +01010000' 'Manufacturer Info: +49424d00'; do
		grep -Eq "^ +$line" version || fail "no line like '$line'"
	done
}

check_tpm_takeownership() {
	start_tcsd
	tpm_takeownership -y -z
	is owned "$(cat $tpm/owned)" 1
}

check_tpm_getpubek() {
	start_tcsd
	tpm_getpubek -z >pubek
	grep -q 'Public Endorsement Key:' pubek || fail "$(cat pubek)"
	grep -Eq 'Key Size: +2048 bits' pubek || fail "$(cat pubek)"
}

# What is sealed to a PCR opens again, and no more once the PCR has changed.
check_tpm_sealdata() {
	start_tcsd
	echo 'a secret of this guest' >plain
	tpm_sealdata -z -p 15 -i plain -o sealed
	grep -q 'a secret' sealed && fail "the secret is to be read in the sealed file"
	tpm_unsealdata -z -i sealed -o opened
	cmp plain opened
	# shellcheck disable=SC2046 # it may be more than one
	kill $(pidof tcsd)
	wait_for 10 sh -c '! pidof tcsd'
	python /bed/tpm.py extend 15
	start_tcsd
	if tpm_unsealdata -z -i sealed -o again 2>error; then fail "it opens though its PCR has changed"; fi
	cat error
}

check_tpm12_pcr_extend() { python /bed/tpm.py pcr_extend; }

check_tpm12_cancel_while_a_key_is_made() { python /bed/cancel.py cancel12; }
