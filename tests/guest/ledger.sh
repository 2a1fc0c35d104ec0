# SPDX-License-Identifier: GPL-2.0
# The books of a TPM whose backend is killed.

check_ledger_counter() {
	tpm2 nvdefine -Q -C o -s 8 -a 'authread|authwrite|no_da|nt=counter' 0x1500020
}

# After a restart of the guest: PCRs are as at power-on.
check_ledger_reset() { python /bed/held.py pcr reset; }
