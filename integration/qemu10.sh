#!/bin/bash
# qemu10.sh DIR: unpacks into DIR a qemu-utils that knows NBD's extended headers (8.2 or later), from the backports of
# Debian 12, and leaves the installed one alone. Nothing is done where DIR has one or the installed one is new enough.
set -euo pipefail
dir=$1
[ -x "$dir/usr/bin/qemu-img" ] && exit 0
installed=$(qemu-img --version 2>/dev/null | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
dpkg --compare-versions "${installed:-0}" ge 8.2 && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists/partial,cache/archives/partial}
# From wherever this machine gets bookworm itself.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Codename: bookworm' 'Component: main' | sed -n 1p)
if [ -z "$mirror" ]; then
	echo "qemu10.sh: no source of Debian bookworm here; install qemu-utils 8.2 or later" >&2
	exit 1
fi
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" >"$work/sources.list"
apt=(apt-get -q -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
	-o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
"${apt[@]}" update
cd "$work"
"${apt[@]}" download qemu-utils/bookworm-backports
mkdir unpacked
dpkg -x qemu-utils_*.deb unpacked
unpacked/usr/bin/qemu-img --version
cd - >/dev/null
mkdir -p "$(dirname "$dir")"
rm -rf "$dir"
mv "$work/unpacked" "$dir"
