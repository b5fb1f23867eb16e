#!/usr/bin/env bash
# Makes an OCI image of three layers that hide parts of one another: layers.sh OUTPUT_DIRECTORY
#
#   layer 1   busybox; /data/{kept, removed, replaced}, /data/opaque/{old, older/file}, /data/gone/{file, deep/file}
#   layer 2   removes /data/removed and /data/gone; /data/opaque is opaque and holds only "between"; /data/replaced
#   layer 3   /data/opaque is opaque again and holds only "new"; /data/replaced; its files belong to 1234:5678
#
# What a container sees under /data: kept, replaced ("layer 3"), opaque/new.
set -euo pipefail

[ $# = 1 ] || { echo "usage: layers.sh OUTPUT_DIRECTORY" >&2; exit 2; }
# shellcheck source=oci.sh
. "$(dirname "${BASH_SOURCE[0]}")/oci.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -m 755 "$work/1" "$work/2" "$work/3"

busybox_root "$work/1"
mkdir -p "$work/1/data/opaque/older" "$work/1/data/gone/deep"
for file in kept removed replaced opaque/old opaque/older/file gone/file gone/deep/file; do
  echo "layer 1" >"$work/1/data/$file"
done

mkdir -p "$work/2/data/opaque"
touch "$work/2/data/.wh.removed" "$work/2/data/.wh.gone" "$work/2/data/opaque/.wh..wh..opq"
echo "layer 2" >"$work/2/data/replaced"
echo "layer 2" >"$work/2/data/opaque/between"

mkdir -p "$work/3/data/opaque"
touch "$work/3/data/opaque/.wh..wh..opq"
echo "layer 3" >"$work/3/data/replaced"
echo "layer 3" >"$work/3/data/opaque/new"

image_begin "$1"
image_layer "$work/1"
image_layer "$work/2"
image_layer "$work/3" --owner=1234 --group=5678
image_end '{"Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["/bin/sh"],"WorkingDir":"/"}'
