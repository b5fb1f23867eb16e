#!/usr/bin/env bash
# Makes an OCI image of Debian's Redis with the libraries that it needs, and busybox: redis.sh OUTPUT_DIRECTORY
set -euo pipefail

[ $# = 1 ] || { echo "usage: redis.sh OUTPUT_DIRECTORY" >&2; exit 2; }
# shellcheck source=oci.sh
. "$(dirname "${BASH_SOURCE[0]}")/oci.sh"
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mode=()
[ "$(id -u)" = 0 ] || mode=(--mode=unshare)
# Nothing is installed: no maintainer script runs.
mmdebstrap --quiet --variant=extract --include=redis-server "${mode[@]}" "$suite" "$work/packages.tar" >&2
mkdir -m 755 "$work/root"
busybox_root "$work/root"
# The one is a link to the other.
tar -C "$work/root" -xf "$work/packages.tar" --wildcards --no-wildcards-match-slash --exclude='*/libperl*' --exclude='*/libdb*' \
  ./usr/bin/redis-server ./usr/bin/redis-check-rdb './lib64/*' './lib/x86_64-linux-gnu/*.so*' './usr/lib/x86_64-linux-gnu/*.so*'
image_begin "$1"
image_layer "$work/root"
image_end '{"Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["redis-server"],"WorkingDir":"/"}'
