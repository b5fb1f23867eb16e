#!/usr/bin/env bash
# Unpacks Debian packages of a suite that this machine doesn't install from, for the tests only: nothing is installed.
#   packages.sh SUITE PACKAGE...    prints the directory that they are unpacked in
# SUITE is a suite's name (trixie, sid), or "backports" for this release's own. The mirror is the one in this machine's apt
# configuration, apt checks the signatures. Kept until the recipe changes: remove the directory for newer versions.
set -euo pipefail

die() { echo "packages: $*" >&2; exit 1; }

[ $# -ge 2 ] || { echo "usage: packages.sh SUITE PACKAGE..." >&2; exit 2; }
suite=$1
shift
command -v apt-get >/dev/null || die "this is not Debian"
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
[ "$suite" != backports ] || suite=$release-backports

key=$({ cat "${BASH_SOURCE[0]}"; echo "$suite $*"; } | sha256sum | cut -c 1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/hull/packages
unpacked=$cache/$suite-$key
mkdir -p "$cache"
exec 9>"$unpacked.lock"
flock 9
if [ -d "$unpacked" ]; then echo "$unpacked"; exit 0; fi

# Where this machine gets this release's packages from.
# shellcheck disable=SC2016  # apt's fields
mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
  awk -v release="$release" '$1 == release && $2 == "main" {print $3; exit}')
[ -n "$mirror" ] || die "apt has no source for $release: is /etc/apt/sources.list there?"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keyring" ] || die "$keyring is missing: install debian-archive-keyring"

echo "packages: getting $* of $suite from $mirror" >&2
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/unpacked"
echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
apt=(apt-get --quiet --quiet -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$work/lists"
  -o "Dir::Cache=$work" -o "Dir::Cache::Archives=$work/archives" -o Acquire::Retries=3 -o APT::Sandbox::User=root)
"${apt[@]}" update >&2
# Only what is named: the libraries are this machine's.
(cd "$work/archives" && "${apt[@]}" download "$@" >&2)
for package in "$work"/archives/*.deb; do
  dpkg-deb --extract "$package" "$work/unpacked"
  # shellcheck disable=SC2016  # its fields
  dpkg-deb --show --showformat '${Package} ${Version}\n' "$package" >>"$work/unpacked/packages"
done
mv "$work/unpacked" "$unpacked"
echo "$unpacked"
