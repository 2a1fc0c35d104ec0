# SPDX-License-Identifier: GPL-2.0
# On the debug kernels alone: what their own watchmen have to say, and failures that they make.

# kmemleak calls an object leaked that no pointer leads to in two looks, and that is some seconds old.
check_debug_reports() {
	touch /run/dmesg
	dmesg | cat /run/dmesg - >/tmp/dmesg
	if grep -E -f /bed/complaints /tmp/dmesg; then
		fail "the kernel log has the lines above"
	fi
	like "lockdep, which ends at its first report" "$(grep -o 'debug_locks: *[0-9]' /proc/lockdep_stats)" '.* 1'
	sleep 6
	echo scan >/sys/kernel/debug/kmemleak
	sleep 1
	echo scan >/sys/kernel/debug/kmemleak
	cat /sys/kernel/debug/kmemleak >leaks
	[ ! -s leaks ] || fail "$(cat leaks)"
}

# On the kernel that looks for data races, which kernel_log leaves to this. Linux has some of its own. A failure is a report
# where one of the two accesses is by code of ours, or by what Rust has of the kernel's for it.
check_race_reports() {
	watched=$(sed -n 's/setup_watchpoints: *//p' /sys/kernel/debug/kcsan)
	[ "$watched" -gt 100 ] || fail "KCSAN has watched $watched accesses: it does not look"
	touch /run/dmesg
	dmesg | cat /run/dmesg - | awk '
		/BUG: KCSAN/ { within = 1; block = ""; title = $0 }
		within { block = block $0 "\n" }
		function judge() {
			within = 0
			sub(/.* data-race in /, "", title)
			if (block ~ /\[(xen_tpmfront|races)\]/ && title ~ /_R|rust_helper_|\[(xen_tpmfront|races)\]/) {
				printf "%s", block
				ours = 1
			} else others = others "; " title
		}
		within && /\] =====*$/ { judge() }
		# The last one may have been cut off.
		END { if (within) judge(); print others >"others"; exit ours }' || fail "KCSAN has said that"
	echo "$watched accesses watched; races of others$(cat others)"
}

faults() {
	[ -e /proc/self/fail-nth ] || fail "this kernel makes no failures: it is not the debug kernel"
	python /bed/faults.py "$@"
}

check_faults_load() { faults load; }

check_faults_bind() { faults bind; }

check_faults_unbind() { faults unbind; }

check_faults_send() { faults send; }

check_faults_functions() {
	modprobe inject
	faults functions
	rmmod inject
}

# Linux's register_irq_proc() goes on where it cannot make an entry, and the interrupt's end warns that there is none. And
# an allocation of pages that fails is said with a stack. Neither is the driver's; kernel_log finds everything else.
check_faults_known() {
	dmesg -c | awk '
		/page allocation failure|vmalloc error/ { asked = 1 }
		/cut here/ { within = 1; block = "" }
		within { block = block $0 "\n" }
		!within && !asked { print }
		/pages reserved/ { asked = 0 }
		/end trace/ {
			within = 0
			if (block ~ /remove_proc_entry/ && block ~ /irq_proc|free_irq|free_desc/) known++
			else printf "%s", block
		}
		END { if (within) printf "%s", block; print known + 0 >"/run/known" }' >>/run/dmesg
	cat /run/known
}
