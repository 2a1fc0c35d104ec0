# SPDX-License-Identifier: GPL-2.0
# Shared by the scripts that run on the host: paths, messages, user namespaces. Sourced by POSIX sh.

top=$(cd "$(dirname "$0")/../.." && pwd -P)
cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/xen-tpmfront

# Raise this when the way the root is made changes; a changed package list makes a new root by itself.
version=1
key=$( { echo $version; grep -v '^#' "$top/tools/env/packages"; } | sha256sum | cut -c1-12)
root=$cache/root-$key

die() {
	echo "error: $*" >&2
	exit 1
}

step_start() {
	step_name=$1 step_time=$(date +%s)
	echo "==> $step_name"
}

step_end() {
	echo "    done in $(($(date +%s) - step_time)) s: $step_name"
}

need() {
	for tool; do
		command -v "$tool" >/dev/null || die "this host has no '$tool': install it and run this again"
	done
}

# Fails unless the disk under folder $1 has $2 GB free for $3.
need_disk() {
	free=$(($(df -Pk "$1" | awk 'NR == 2 { print $4 }') / 1048576))
	[ "$free" -ge "$2" ] ||
		die "$3 needs $2 GB under $1, and only $free GB are free (XDG_CACHE_HOME chooses another disk)"
}

# Runs a command with the rights to mount and to own files: as root just so, else in a user namespace.
privileged() {
	if [ "$(id -u)" = 0 ]; then
		unshare --mount --pid --fork --kill-child "$@"
	else
		unshare --user --map-root-user --map-auto --mount --pid --fork --kill-child "$@"
	fi
}

check_privileged() {
	need unshare
	[ "$(id -u)" = 0 ] || command -v newuidmap >/dev/null ||
		die "an ordinary user needs 'newuidmap' here: install the package uidmap, or run as root"
	[ "$(id -u)" = 0 ] || grep -q "^$(id -un):" /etc/subuid 2>/dev/null ||
		die "user $(id -un) has no line in /etc/subuid: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)"
	privileged true 2>/dev/null ||
		die "this host does not let $(id -un) make a namespace (see the sysctls user.max_user_namespaces and kernel.unprivileged_userns_clone)"
}
