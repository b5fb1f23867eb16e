#!/usr/bin/env bash
# Makes the guest's initramfs: the agent as /init and the empty directories it mounts over.
#   build.sh AGENT_BINARY OUTPUT
# The same agent gives the same bytes, whoever builds it and wherever: fixed times, owner and order. Not compressed: the
# monitor copies it into the guest as it is, and unpacking in the guest would take longer than copying.
#
# There is no /dev/console node (only root could make one): the kernel says that it cannot open a console, and the agent
# opens it when it has mounted devtmpfs.
set -euo pipefail

[ $# = 2 ] || { echo "usage: build.sh AGENT_BINARY OUTPUT" >&2; exit 2; }
agent=$(readlink -f "$1")
[ -f "$agent" ] || { echo "rootfs: $1: no such file" >&2; exit 1; }
mkdir -p "$(dirname "$2")"
output=$(readlink -f "$2")

# An agent that needs a loader would never start.
if readelf -lW "$agent" | grep -q INTERP; then
  echo "rootfs: $agent is not static; the guest has no libraries" >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -m 755 "$work/root" "$work/root/"{dev,mnt,proc,run,sys}
mkdir -m 1777 "$work/root/tmp"
strip --strip-all -o "$work/root/init" "$agent"
chmod 755 "$work/root/init"
find "$work/root" -exec touch -h -d @0 {} +
(cd "$work/root" && find . -mindepth 1 | LC_ALL=C sort |
  cpio --quiet -o -H newc --reproducible --owner=+0:+0) >"$work/initramfs"
chmod 644 "$work/initramfs"
mv "$work/initramfs" "$output"
echo "rootfs: $(stat -c %s "$output") bytes, sha256 $(sha256sum "$output" | cut -d ' ' -f 1): $output"
