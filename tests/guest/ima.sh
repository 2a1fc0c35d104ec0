# SPDX-License-Identifier: GPL-2.0
# Who wants a TPM when the kernel starts: IMA, keys, the random number generator. For guests whose kernel has the
# driver built in and IMA with ima_policy=tcb; that kernel is told nothing else.

ima=/sys/kernel/security/ima
bypass='ima: No TPM chip found, activating TPM-bypass!'

check_ima_has_a_tpm() {
	dmesg >log
	grep -q 'ima: Allocated hash algorithm' log || fail "IMA does not run: $(grep ima: log)"
	if grep "$bypass" log; then fail "IMA has no TPM: $(grep ' vtpm vtpm-0: ' log)"; fi
	grep -q 'early: PCRs 0 to 9 extended (0)' log || fail "$(grep early: log)"
}

# The stock kernel has IMA, and our driver as a module.
check_ima_has_none_of_a_module() {
	dmesg | grep -q "$bypass" || fail "IMA does not say so: $(dmesg | grep ima:)"
}

check_ima_boot_aggregate() { python /bed/ima.py boot_aggregate; }

check_ima_replay() { python /bed/ima.py replay; }

# The same by IMA's own tool. It reads the PCRs of a TPM 2.0 by a program that is not here, so it is given them.
check_ima_evmctl() {
	set --
	for folder in /sys/class/tpm/tpm0/pcr-*; do
		bank=${folder##*/pcr-}
		for pcr in $(seq 0 23); do
			printf 'PCR-%02d: %s\n' "$pcr" "$(cat "$folder/$pcr")"
		done >"pcrs-$bank"
		set -- "$@" --pcrs "$bank,pcrs-$bank"
	done
	evmctl ima_measurement --ignore-violations "$@" $ima/binary_runtime_measurements >out 2>&1 || fail "$(cat out)"
	grep -q 'Matched per TPM bank calculated digest' out || fail "$(cat out)"
	tail -n 1 out
	# boot_aggregate is over what was measured before IMA, and not of zeroes any more.
	first=$(sed -n '1s/.* ima-ng \([^ ]*\) boot_aggregate$/\1/p' $ima/ascii_runtime_measurements)
	evmctl ima_boot_aggregate "$@" >out 2>&1 || fail "$(cat out)"
	[ -n "$first" ] && grep -qx "$first" out || fail "boot_aggregate is '$first', and evmctl says: $(cat out)"
}

# A file system that ima_policy=tcb measures all of: it leaves out what is read from a tmpfs.
measured() {
	! grep -q ' /mnt ' /proc/mounts || return 0
	mkdir -p /mnt
	dd if=/dev/zero of=/tmp/disk bs=1M count=64 2>/dev/null
	mke2fs -F -i 4096 /tmp/disk >/dev/null
	mount -t ext2 -o loop /tmp/disk /mnt
}

# ima.py's `load`, or `timed` for make bench: over so many files.
ima_files() {
	measured
	mkdir "/mnt/$1"
	python /bed/ima.py "$1" "/mnt/$1" "$2"
}

check_ima_load_500() { ima_files load 500; }

check_ima_load_5000() { ima_files load 5000; }

check_ima_violation() {
	measured
	python /bed/ima.py violation /mnt
}

# A policy of one's own takes the place of the built-in one: files of one owner, and on a tmpfs.
check_ima_custom_policy() {
	echo 'measure func=FILE_CHECK mask=MAY_READ fowner=4711' >$ima/policy
	like "the policy" "$(cat $ima/policy)" 'measure func=FILE_CHECK mask=MAY_READ fowner=4711 *'
	before=$(cat $ima/runtime_measurements_count)
	for name in one two three; do
		echo $name $$ >$name
		cat $name >/dev/null
		chown 4711 $name
		cat $name >/dev/null
	done
	is "how many were measured" $(($(cat $ima/runtime_measurements_count) - before)) 3
	python /bed/ima.py replay
}

# Without anybody's choosing it.
check_hwrng_at_boot() {
	is rng_current "$(cat /sys/class/misc/hw_random/rng_current)" tpm-rng-0
}

# A key that only this TPM opens has another one in its keeping, which EVM takes.
check_evm_by_a_trusted_key() {
	tpm2 createprimary -Q -C o -G ecc -c primary.ctx
	tpm2 evictcontrol -Q -C o -c primary.ctx 0x81000002
	keyctl add trusted kmk "new 32 keyhandle=0x81000002" @u
	keyctl add encrypted evm-key "new trusted:kmk 64" @u
	echo 1 >/sys/kernel/security/evm
	is "evm" $(($(cat /sys/kernel/security/evm) & 1)) 1
}

# With that key: what was changed on the disk while the guest did not look is refused, whatever digest it has.
check_ima_appraisal() {
	measured
	echo 'appraise func=FILE_CHECK fowner=4712' >$ima/policy
	python /bed/ima.py appraisal /mnt /tmp/disk
}

# The backend came too late: IMA goes on without a TPM, and the TPM is there for all who look for it later.
check_ima_came_too_early() {
	dmesg | grep -q 'has no vTPM for us yet' || fail "the driver does not say that it went on without the backend"
	check_ima_has_none_of_a_module
	python /bed/ima.py bypassed
	wait_for 60 test -c /dev/tpm0
	python /bed/tpm.py works
	python /bed/ima.py bypassed
}

# The line of the log with $3 came between $1 and $2 seconds after the start of the initcall that it is of: initcall_debug.
waited() {
	dmesg | sed 's/^\[ *//' | awk -v from="$1" -v to="$2" -v line="$3" '
		/ calling / { last = $1 + 0 }
		/ vtpm vtpm-0: / && !call { call = last }
		call && index($0, line) { found = 1; exit }
		END {
			if (!found) { print "the log has no line: " line; exit 1 }
			printf "%.1f s until: %s\n", $1 - call, line
			exit !($1 - call >= from && $1 - call <= to)
		}'
}

# The driver gives a backend that is there 20 s.
check_wait_of_1_s() { waited 0.7 19.5 'served by domain 0'; }

check_wait_of_5_s() { waited 4.5 19.5 'served by domain 0'; }

check_wait_of_20_s() { waited 19.5 23 'has no vTPM for us yet'; }

# With xenbus's own wait behind it.
check_boot_ends_within_45_s() { waited 0 45 'Run /init as init process'; }

# A kernel with CONFIG_TCG_TPM2_HMAC shows the name of its null key, which is another one after the TPM was reset.
check_hmac_is_used() {
	name=$(cat /sys/class/tpm/tpm0/null_name)
	like null_name "$name" '[0-9a-f]{64,}'
	echo "$name"
}
