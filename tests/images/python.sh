#!/usr/bin/env bash
# Makes an OCI image of a minimal Debian with Python: python.sh OUTPUT_DIRECTORY
# Takes about a minute; the root file system is cached by the recipe (this file) and the Debian release.
set -euo pipefail

[ $# = 1 ] || { echo "usage: python.sh OUTPUT_DIRECTORY" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=oci.sh
. "$here/oci.sh"
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")

key=$({ cat "$here/python.sh"; echo "$suite"; } | sha256sum | cut -c 1-16)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/hull/images/python-$key"
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ ! -s "$cache/root.tar" ]; then
  echo "images: making a Debian $suite with Python (once)" >&2
  trap 'rm -f "$cache/root.tmp.tar"' EXIT
  mode=()
  [ "$(id -u)" = 0 ] || mode=(--mode=unshare)
  # The machine's own package sources; no documentation, no translations.
  # shellcheck disable=SC2016  # the hook's own $1
  mmdebstrap --quiet --variant=minbase --include=python3-minimal "${mode[@]}" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' \
    "$suite" "$cache/root.tmp.tar" >&2
  mv "$cache/root.tmp.tar" "$cache/root.tar"
fi
image_begin "$1"
image_layer_file "$cache/root.tar"
image_end '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["python3"],"WorkingDir":"/"}'
