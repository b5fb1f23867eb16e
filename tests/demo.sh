#!/usr/bin/env bash
# What `make run` shows: a container in a microVM, seen from inside.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
hull=$(readlink -f "$here/../build/bin/hull")
image=${HULL_TEST_IMAGES:?is set by make}/busybox
HULL_ROOT=$(mktemp -d)
export HULL_ROOT
trap 'rm -rf "$HULL_ROOT"' EXIT

# shellcheck disable=SC2016  # expanded in the container
look_around='
echo "kernel         $(uname -sr)"
echo "process 1      $(tr "\0\n" "  " </proc/1/cmdline | cut -c 1-40)..."
echo "hostname       $(hostname)"
echo "processors     $(grep -c ^processor /proc/cpuinfo)"
for file in memory.max cpu.max pids.max; do
  echo "$file" | sed "s/$/               /; s/^\(.\{15\}\).*/\1/" | tr -d "\n"
  cat "/sys/fs/cgroup/$file"
done
'
echo
echo "\$ hull run --timings --memory 128m --cpus 1 oci:busybox sh -c '...'"
echo
"$hull" run --timings --memory 128m --cpus 1 "oci:$image" sh -c "$look_around"
