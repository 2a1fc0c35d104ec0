# SPDX-License-Identifier: GPL-2.0
# Shared by the checks of a guest. A check is a function check_NAME: it passes unless something in it
# fails; skip says why it cannot be made.

modules=/lib/modules/$(uname -r)
stock=$modules/kernel/drivers/char/tpm/xen-tpmfront.ko
tpm=/sys/class/tpm/tpm0
device=/sys/devices/vtpm-0
export TPM2TOOLS_TCTI=device:/dev/tpmrm0 PYTHONPATH=/bed PYTHONDONTWRITEBYTECODE=1
# How much slower than a stock kernel on a usual host this one is here, and how much slower than usual the host is, as the
# testbed says.
export SLOWNESS=${SLOWNESS:-1} HOST=${HOST:-1}
work=/tmp/check
mkdir -p $work
cd "$work" || exit

fail() {
	echo "$*"
	exit 1
}

skip() {
	echo "$*"
	exit 77
}

# is WHAT VALUE WANTED
is() {
	[ "$2" = "$3" ] || fail "$1 is '$2', and should be '$3'"
}

# like WHAT VALUE PATTERN: an extended regular expression for the whole value.
like() {
	echo "$2" | grep -Eqx -- "$3" || fail "$1 is '$2', and should be like '$3'"
}

# wait_for SECONDS COMMAND...
wait_for() {
	left=$(($1 * 10 * HOST))
	shift
	until "$@" 2>/dev/null; do
		left=$((left - 1))
		[ $left -gt 0 ] || fail "timed out waiting for: $*"
		sleep 0.1
	done
}

# The one TPM that there is, is tpm0 and answers.
works_as_tpm0() {
	wait_for 30 python /bed/tpm.py works
	is "the TPMs" "$(ls /sys/class/tpm)" tpm0
}

# Which driver this guest is to use: rust, or c for the stock one.
driver() {
	case " $(cat /proc/cmdline) " in
	*" bed.driver=c "*) echo c ;;
	*) echo rust ;;
	esac
}

# unsaid PATTERN...: the driver has not said any of this, and each is something that it could say: a message that was reworded
# would never be found. A driver that is built in has no file to look through.
unsaid() {
	ours=$modules/updates/xen-tpmfront.ko
	for pattern; do
		[ ! -e "$ours" ] || grep -q -- "$pattern" "$ours" || fail "the driver has no message '$pattern' any more"
		if dmesg | grep -- "$pattern"; then fail "the driver has said that"; fi
	done
}

load_driver() {
	seeded=$(sed -n 's/.*bed\.module=\([^ ]*\).*/\1/p' /proc/cmdline)
	if [ "$(driver)" = c ]; then
		insmod "$stock"
	elif [ -n "$seeded" ]; then
		insmod "$seeded"
	else
		modprobe xen-tpmfront
	fi
}

python() {
	python3 -E -s "$@"
}
