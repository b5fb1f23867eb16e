#!/usr/bin/env bash
# Makes an OCI image of Debian's static busybox: busybox.sh OUTPUT_DIRECTORY
set -euo pipefail

[ $# = 1 ] || { echo "usage: busybox.sh OUTPUT_DIRECTORY" >&2; exit 2; }
# shellcheck source=oci.sh
. "$(dirname "${BASH_SOURCE[0]}")/oci.sh"

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
busybox_root "$root"
image_begin "$1"
image_layer "$root"
image_end '{"Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["/bin/sh"],"WorkingDir":"/"}'
