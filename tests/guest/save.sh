# SPDX-License-Identifier: GPL-2.0
# What a TPM 2.0 has to keep while its guest is saved, or moved: PCRs, NV, a counter, an object and a session
# that are loaded.

counter() { tpm2 nvread -C o -s 8 0x1500021 | od -An -tx1; }

save_state() {
	tpm2 pcrread sha256:16
	tpm2 nvread -C o -s 16 0x1500020
	counter
	tpm2 getcap handles-transient
	tpm2 readpublic -c 0x80000000
	tpm2 getcap handles-loaded-session
	python /bed/session.py digest
}

check_save_prepare() {
	export TPM2TOOLS_TCTI=device:/dev/tpm0
	tpm2 pcrextend 16:sha256="$(echo measured | sha256sum | cut -d' ' -f1)"
	tpm2 nvdefine -Q -C o -s 16 -a 'ownerread|ownerwrite' 0x1500020
	echo 'kept in the TPM' | tpm2 nvwrite -Q -C o -i - 0x1500020
	tpm2 nvdefine -Q -C o -s 8 -a 'ownerread|ownerwrite|nt=counter' 0x1500021
	tpm2 nvincrement -Q -C o 0x1500021
	tpm2 createprimary -Q -C o -G ecc
	python /bed/session.py start
	save_state >/run/save.before
	grep -q 0x80000000 /run/save.before || fail "no object is loaded: $(cat /run/save.before)"
	grep -iq 0x3000000 /run/save.before || fail "no session is loaded: $(cat /run/save.before)"
}

check_save_kept() {
	export TPM2TOOLS_TCTI=device:/dev/tpm0
	wait_for 30 tpm2 pcrread -Q sha256:16
	save_state >/run/save.after
	cmp /run/save.before /run/save.after || fail "$(diff /run/save.before /run/save.after)"
}

# The TPM does not only show what it had, it goes on from there: the counter goes up by one, the session
# takes another policy, the hash chain of a PCR has no gap.
check_save_goes_on() {
	export TPM2TOOLS_TCTI=device:/dev/tpm0
	old=$(counter | tr -d ' ')
	tpm2 nvincrement -Q -C o 0x1500021
	is "the counter" "$(counter | tr -d ' ')" "$(printf '%016x' $((0x$old + 1)))"
	python /bed/tpm.py extend 16
	python /bed/session.py more
	save_state >/run/save.before
}

# After a start that is no restore: the PCR is zero, no object and no session is there, and NV is kept.
check_save_was_reset() {
	export TPM2TOOLS_TCTI=device:/dev/tpm0
	is "PCR 16" "$(tpm2 pcrread sha256:16 | sed -n 's/.*16: *0x//p')" "$(printf '%064d' 0)"
	is "the loaded objects" "$(tpm2 getcap handles-transient)" ""
	is "the loaded sessions" "$(tpm2 getcap handles-loaded-session)" ""
	is "NV" "$(tpm2 nvread -C o -s 16 0x1500020)" "kept in the TPM"
}

# With /dev/tpm0 open while the guest is saved: extends one after the other.
check_saved_work() {
	python /bed/saved.py work
	wait_for 10 grep -q ok /run/saved
}

# One that does not end before the guest is saved: the host has stopped the TPM.
check_saved_wait() {
	python /bed/saved.py wait
	wait_for 10 grep -q ready /run/saved
}

check_saved_runs() {
	touch /run/saved.go
	wait_for 10 grep -q sent /run/saved
	sleep 0.3
}

# Restored, or never gone: not one command failed, from before the save to the first one after it and on.
check_saved_without_a_failure() {
	python /bed/saved.py ended ok
	# It is the same TPM.
	unsaid 'TPM was reset' 'another TPM'
}

# Restored: the running command fails once and tells so. It counts once or not at all.
check_saved_in_the_midst() {
	python /bed/saved.py ended ready sent EPIPE ok
	is "the number of errors in the kernel log" "$(dmesg | grep -c 'tpm tpm0.*error')" 0
}

# Never gone: the running command has its answer.
check_saved_in_vain() { python /bed/saved.py ended ready sent ok; }

# Restored with another TPM in its configuration: that one does not pretend to be the old one.
check_saved_other_tpm() {
	wait_for 20 sh -c 'dmesg | grep -q "another TPM than before: refused"'
	python /bed/cancel.py refused EPIPE
	echo vtpm-0 >/sys/bus/xen/drivers/vtpm/unbind
	echo vtpm-0 >/sys/bus/xen/drivers/vtpm/bind
	works_as_tpm0
}

check_saved_not_frozen() { dmesg | grep 'Freezing user space processes failed'; }
