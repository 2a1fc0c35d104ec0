# SPDX-License-Identifier: GPL-2.0
# Shared by the scripts that run on the host: paths, messages, user namespaces. Sourced by POSIX sh.

# An ordinary user's PATH has no sbin on Debian, where pivot_root is.
PATH=$PATH:/usr/sbin:/sbin
top=$(cd "$(dirname "$0")/../.." && pwd -P)
cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/xen-tpmfront

# Raise this when the way the root is made changes; a changed package list makes a new root by itself.
version=1
# An archive that somebody chose, as a snapshot is, has a root of its own.
host=$(dpkg --print-architecture)
packages="$top/tools/env/packages $top/tools/env/packages.$host"
key=$( { echo $version; grep -hv '^#' $packages
	[ -z "${DEBIAN_MIRROR:-}" ] || echo "$DEBIAN_MIRROR"; } | sha256sum | cut -c1-12)
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

# Holds a lock on the cache's users while this run lasts: with others, or alone where COLD=1 is about to take away what
# they use (prepare.py shares it again).
use_cache() {
	need flock
	mkdir -p "$cache" || die "cannot write to $cache"
	exec 8>>"$cache/users"
	kind=-s
	[ -z "${COLD:-}" ] || kind=-x
	flock -n $kind 8 || {
		echo "    another run uses $cache, and one of the two has COLD=1: waiting for it"
		flock $kind 8
	}
}

# Runs a command with the rights to mount and to own files: as root just so, else in a user namespace. It takes this shell's
# place, and ends when the shell's parent does: in a subshell or in the background, that is the script.
privileged() {
	if [ "$(id -u)" = 0 ]; then
		exec setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child "$@"
	else
		exec setpriv --pdeathsig KILL unshare --user --map-root-user --map-auto --mount --pid --fork --kill-child "$@"
	fi
}

check_privileged() {
	need unshare setpriv pivot_root
	[ "$(id -u)" = 0 ] || command -v newuidmap >/dev/null ||
		die "an ordinary user needs 'newuidmap' here: install the package uidmap, or run as root"
	[ "$(id -u)" = 0 ] || grep -q "^$(id -un):" /etc/subuid 2>/dev/null ||
		die "user $(id -un) has no line in /etc/subuid: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)"
	(privileged true) 2>/dev/null ||
		die "this host does not let $(id -un) make a namespace (see the sysctls user.max_user_namespaces and kernel.unprivileged_userns_clone)"
}
