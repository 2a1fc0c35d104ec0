# SPDX-License-Identifier: GPL-2.0
# A secret that is sealed to PCRs 4 and 5: it opens for what xl boots, and nothing else.

sealed=0x81000005

check_measured_seal() {
	tpm2 createpolicy -Q --policy-pcr -l sha256:4,5 -L policy
	tpm2 createprimary -Q -C o -G ecc -c primary.ctx
	echo secret | tpm2 create -Q -C primary.ctx -L policy -i - -u public -r private
	tpm2 load -Q -C primary.ctx -u public -r private -c sealed.ctx
	tpm2 evictcontrol -Q -C o -c sealed.ctx $sealed
}

check_measured_opens() {
	wait_for 30 tpm2 pcrread -Q sha256:4
	is "what was sealed" "$(tpm2 unseal -c $sealed -p pcr:sha256:4,5)" secret
}

check_measured_stays_shut() {
	if tpm2 unseal -c $sealed -p pcr:sha256:4,5 2>error; then fail "it opens"; fi
	grep -q 'a policy check failed' error || fail "$(cat error)"
}
