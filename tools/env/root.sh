#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Makes the Debian root that holds every tool, once for each package list, in the cache.
# COLD=1 makes it anew. DEBIAN_MIRROR= chooses the archive; without it, the one that apt uses here.
set -eu
. "$(dirname "$0")/lib.sh"

suite=trixie
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
new=$cache/new-root-$key
tools=$cache/tools

apt="apt-get -q"

# On a fresh machine apt has no lists yet, and only root could fill the host's: then they are ours.
fill_lists() {
	[ -z "$($apt indextargets --format x)" ] || return 0
	mkdir -p "$tools/lists/partial" "$tools/archives/partial"
	apt="$apt -o Dir::State::lists=$tools/lists -o Dir::Cache=$tools/archives -o APT::Sandbox::User=root"
	# What else but Debian is among the host's sources may fail; what is needed is looked for below.
	$apt update >/dev/null 2>&1 || :
}

find_mirror() {
	mirror=${DEBIAN_MIRROR:-}
	[ -n "$mirror" ] || mirror=$($apt indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' |
		awk -F'|' '$1 == "Debian" && $2 == "Debian" { print $3; exit }')
	[ -n "$mirror" ] || die "apt knows no Debian archive here, or it does not answer: see /etc/apt, or set DEBIAN_MIRROR="
	mirror=${mirror%/}
	eval "$(apt-config shell proxy Acquire::http::Proxy)"
	/usr/lib/apt/apt-helper -o Acquire::http::Timeout=20 -o Acquire::Retries=6 \
		download-file "$mirror/dists/$suite/Release" "$new.release" >/dev/null 2>&1 ||
		die "the Debian archive does not answer, or has no $suite: $mirror"
	rm -f "$new.release"
}

# A package's files for use from the cache, where the host has not installed it.
from_package() {
	mkdir -p "$tools/debs"
	(cd "$tools/debs" && $apt download "$1" >/dev/null 2>&1) ||
		die "'$1' is not installed, and apt cannot download it: install it"
	dpkg-deb -x "$tools/debs/$1"_*.deb "$tools"
	rm -f "$tools/debs/$1"_*.deb
}

find_mmdebstrap() {
	mmdebstrap=$(command -v mmdebstrap) && return
	mmdebstrap=$tools/usr/bin/mmdebstrap
	[ -e "$mmdebstrap" ] || from_package mmdebstrap
}

find_keyring() {
	[ -e $keyring ] && return
	keyring=$tools$keyring
	[ -e "$keyring" ] || from_package debian-archive-keyring
}

remove() {
	[ ! -e "$1" ] || (privileged rm -rf --one-file-system "$1")
}

make_root() {
	include=$(grep -hv '^#' $packages | tr -s ' \n' ',')
	remove "$new"
	for part in $suite $suite-updates $suite-backports; do
		echo "deb [signed-by=$keyring] $mirror $part main"
	done >"$cache/sources"
	set -- --mode=root --variant=apt --architectures="$host" --include="${include#,}" \
		--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Retries "12"' \
		--aptopt='APT::Sandbox::User "root"'
	# A snapshot's index is valid for ever.
	[ -z "${DEBIAN_MIRROR:-}" ] || set -- "$@" --aptopt='Acquire::Check-Valid-Until "false"'
	[ -z "${proxy:-}" ] || set -- "$@" --aptopt="Acquire::http::Proxy \"$proxy\""
	# Nothing here reads documentation and translations, a fifth of the whole. Not --dpkgopt: it wants Python here.
	hook='mkdir -p "$1/etc/dpkg/dpkg.cfg.d"; for part in man doc locale; do echo "path-exclude=/usr/share/$part/*"; done \
		>"$1/etc/dpkg/dpkg.cfg.d/small"'
	set -- "$@" --setup-hook="$hook"
	(privileged perl "$mmdebstrap" "$@" $suite "$new" "$cache/sources") ||
		die "the root could not be made: see the lines above; running this again starts the step anew"
	(privileged sh -c 'cp "$1" "$2$1" 2>/dev/null; :' sh "$keyring" "$new")
	remove "$root"
	mv "$new" "$root"
	# Roots of other package lists that nobody used for two weeks.
	find "$cache" -maxdepth 1 -name 'root-*' ! -path "$root" -mtime +14 | while read -r old; do remove "$old"; done
}

use_what_is_there() {
	[ -z "${COLD:-}" ] && [ -e "$root/usr/bin/python3" ] || return 0
	touch -c "$root"
	exit 0
}

use_what_is_there
need apt-get apt-config dpkg-deb perl awk flock
check_privileged
need_disk "$cache" 8 "the first run (root, kernel sources, build trees)"
need_disk "$top" 4 "the build"
exec 9>"$cache/lock"
flock -n 9 || { echo "    another run works in $cache: waiting for it"; flock 9; }
# The run that was waited for may have made it, and may be at work in it.
use_what_is_there
step_start "making the Debian $suite root in $root (about 800 MB to download, 2 to 10 minutes)"
fill_lists
find_mirror
find_mmdebstrap
find_keyring
make_root
step_end
