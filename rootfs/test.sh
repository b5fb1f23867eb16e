#!/usr/bin/env bash
# The initramfs is the same byte for byte when made at another time, in another directory, under another umask.
#   test.sh AGENT_BINARY
set -euo pipefail

[ $# = 1 ] || { echo "usage: test.sh AGENT_BINARY" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/first" "$work/second directory"
(umask 022 && "$here/build.sh" "$1" "$work/first/initramfs") >/dev/null
sleep 1.1
cp "$1" "$work/second directory/agent"
(umask 077 && cd / && TMPDIR="$work/second directory" LC_ALL=C.UTF-8 "$here/build.sh" "$work/second directory/agent" "$work/second directory/initramfs") >/dev/null
cmp "$work/first/initramfs" "$work/second directory/initramfs"

listing=$(cpio --quiet -itv <"$work/first/initramfs")
for entry in dev mnt proc run sys tmp init; do
  grep -q "root *root .* $entry\$" <<<"$listing" || { echo "rootfs: $entry is missing or not root's"; echo "$listing"; exit 1; }
done
echo "rootfs: two builds are identical ($(sha256sum "$work/first/initramfs" | cut -d ' ' -f 1))"
