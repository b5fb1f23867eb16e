#!/usr/bin/env bash
# Prints the QEMU of the testbed, one word of its command line a line: this machine's when it is new enough, otherwise the
# one of Debian's backports. Nested AMD-V has faults in 7.2, see README.md.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here own=qemu-system-x86_64 minimum=10

version=$("$own" --version | sed -n '1s/.*version \([0-9]*\)\..*/\1/p')
if [ "${version:-0}" -ge "$minimum" ]; then
  echo "$own"
elif unpacked=$("$here/../packages.sh" backports qemu-system-x86 qemu-system-common qemu-system-data seabios); then
  printf '%s\n' "$unpacked/usr/bin/$own" -L "$unpacked/usr/share/qemu" -L "$unpacked/usr/share/seabios"
else
  echo "testbed: using QEMU $version of this machine: guests may crash or stand still now and then" >&2
  echo "$own"
fi
