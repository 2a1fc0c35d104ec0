# SPDX-License-Identifier: GPL-2.0
# Checks of a TPM 2.0: tpm2-tools, the kernel's selftests, and the kernel's own users of a TPM.

check_tpm20_is_found() {
	is tpm_version_major "$(cat $tpm/tpm_version_major)" 2
	[ -c /dev/tpmrm0 ] || fail "no /dev/tpmrm0"
	[ ! -e $tpm/pubek ] || fail "a TPM 2.0 has no pubek"
}

check_tpm2_getcap() {
	tpm2 getcap properties-fixed >properties
	grep -A2 TPM2_PT_FAMILY_INDICATOR properties | grep -q '"2.0"' || fail "$(head -n 5 properties)"
}

# The kernel's own view of a PCR is the tools'.
check_tpm2_pcrread() {
	tpm2 pcrread sha256:10 >pcr
	is "PCR 10 in sysfs" "$(cat $tpm/pcr-sha256/10)" "$(sed -n 's/.*10: 0x//p' pcr)"
}

check_tpm2_pcrextend() { python /bed/tpm.py pcr_extend; }

check_tpm2_getrandom() {
	tpm2 getrandom --hex 32 >one
	tpm2 getrandom --hex 32 >two
	like "the random bytes" "$(cat one)" '[0-9a-f]{64}'
	cmp -s one two && fail "the same bytes twice"
	:
}

check_tpm2_createprimary() {
	tpm2 createprimary -C o -g sha256 -G ecc -c primary.ctx >out
	grep -q 'value: ecc' out || fail "$(cat out)"
	tpm2 readpublic -c primary.ctx >out
	grep -q 'value: ecc' out || fail "$(cat out)"
}

# A secret under a PCR policy opens, and no more once the PCR has changed.
check_tpm2_seal_unseal_pcr_policy() {
	tpm2 createprimary -Q -C o -G ecc -c primary.ctx
	tpm2 pcrread -Q -o pcr.bin sha256:16
	tpm2 createpolicy -Q --policy-pcr -l sha256:16 -f pcr.bin -L policy
	echo 'a secret of this guest' >secret
	tpm2 create -Q -C primary.ctx -L policy -i secret -u seal.pub -r seal.priv
	tpm2 load -Q -C primary.ctx -u seal.pub -r seal.priv -c seal.ctx
	is "the secret" "$(tpm2 unseal -c seal.ctx -p pcr:sha256:16)" "$(cat secret)"
	tpm2 pcrextend 16:sha256="$(echo other | sha256sum | cut -d' ' -f1)"
	if tpm2 unseal -c seal.ctx -p pcr:sha256:16 2>error; then fail "it opens though its PCR has changed"; fi
	grep -q 'policy' error || fail "$(cat error)"
}

check_tpm2_nv() {
	echo 'kept in the TPM' >data
	tpm2 nvdefine -Q -C o -s 16 -a 'ownerread|ownerwrite' 0x1500016
	tpm2 nvwrite -Q -C o -i data 0x1500016
	tpm2 nvread -C o -s 16 0x1500016 >back
	cmp data back
	tpm2 nvundefine -Q -C o 0x1500016
}

# The signature is checked by OpenSSL on this side, not by the TPM that made it.
check_tpm2_quote() {
	tpm2 createprimary -Q -C e -G ecc -c primary.ctx
	tpm2 create -Q -C primary.ctx -G ecc256:ecdsa-sha256:null -u ak.pub -r ak.priv \
		-a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda'
	tpm2 load -Q -C primary.ctx -u ak.pub -r ak.priv -c ak.ctx
	tpm2 readpublic -Q -c ak.ctx -f pem -o ak.pem
	tpm2 quote -Q -c ak.ctx -l sha256:0,10,16 -q 0123456789abcdef -m message -s signature -o pcrs -g sha256
	tpm2 checkquote -Q -u ak.pem -m message -s signature -f pcrs -g sha256 -q 0123456789abcdef
	if tpm2 checkquote -Q -u ak.pem -m message -s signature -f pcrs -g sha256 -q ffff 2>error; then
		fail "the quote is good for another nonce"
	fi
}

selftest() {
	cd /selftests || exit
	python -c 'import sys, unittest; unittest.main("tpm2_tests", argv=["", "-v", sys.argv[1]])' "$1" 2>&1
}

check_kernel_selftest_smoke() { selftest SmokeTest; }

check_kernel_selftest_space() { selftest SpaceTest; }

check_kernel_selftest_async() { selftest AsyncTest; }

check_trusted_keys() {
	modprobe -q trusted || grep -q key_type_trusted /proc/kallsyms ||
		skip "this kernel was built without CONFIG_TRUSTED_KEYS"
	tpm2 createprimary -Q -C o -G ecc -c primary.ctx
	tpm2 evictcontrol -Q -C o -c primary.ctx 0x81000001
	keyctl new_session
	key=$(keyctl add trusted vtpm "new 32 keyhandle=0x81000001" @s)
	keyctl pipe "$key" >blob
	keyctl clear @s
	keyctl add trusted vtpm "load $(cat blob) keyhandle=0x81000001" @s
}

check_hwrng() {
	misc=/sys/class/misc/hw_random
	grep -q tpm-rng-0 $misc/rng_available || fail "available: $(cat $misc/rng_available)"
	echo tpm-rng-0 >$misc/rng_current
	is rng_current "$(cat $misc/rng_current)" tpm-rng-0
	dd if=/dev/hwrng of=one bs=32 count=1 2>/dev/null
	dd if=/dev/hwrng of=two bs=32 count=1 2>/dev/null
	is "the length" "$(wc -c <one)" 32
	cmp -s one two && fail "the same bytes twice"
	:
}

check_tpm20_cancel_while_a_key_is_made() { python /bed/cancel.py cancel20; }
