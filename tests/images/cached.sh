#!/usr/bin/env bash
# Makes a test image unless it is there already, made by the same recipe: cached.sh NAME OUTPUT_DIRECTORY
set -euo pipefail

[ $# = 2 ] || { echo "usage: cached.sh NAME OUTPUT_DIRECTORY" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=$1 output=$2
mkdir -p "$(dirname "$output")"
exec 9>"$output.lock"
flock 9
key=$(cat "$here/$name.sh" "$here/oci.sh" "$(command -v busybox)" | sha256sum)
[ "$(cat "$output.key" 2>/dev/null || true)" != "$key" ] || exit 0
echo "images: making $name" >&2
rm -rf "$output.new"
"$here/$name.sh" "$output.new"
rm -rf "$output"
mv "$output.new" "$output"
echo "$key" >"$output.key"
