#!/usr/bin/env bash
# Runs a command where KVM can run guests: here if it can, otherwise in the testbed.
#   run.sh [--timeout SECONDS] [--share DIRECTORY] [--count-instructions] COMMAND [ARGS...]
# HULL_FORCE_TESTBED=1 takes the testbed even where it isn't needed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
options=()
while [ $# -gt 0 ]; do
  case $1 in
    --timeout | --share) options+=("$1" "${2:?}"); shift 2 ;;
    --count-instructions) options+=("$1"); shift ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || { echo "usage: run.sh [--timeout SECONDS] [--share DIRECTORY] [--count-instructions] COMMAND [ARGS...]" >&2; exit 2; }

if [ -z "${HULL_FORCE_TESTBED:-}" ] && reason=$("$here/../build/bin/hull-vmm" probe 2>&1); then
  echo "KVM on this machine runs guests: running natively." >&2
  exec "$@"
fi
# The probe tells all that it checked; the first that failed is enough here.
reason=${reason:-HULL_FORCE_TESTBED is set}
reason=$(grep -m 1 '^FAIL' <<<"$reason" || tail -n 1 <<<"$reason")
echo "KVM on this machine can't run guests (${reason#FAIL  }): using the testbed." >&2
exec "$here/testbed/run" "${options[@]}" -- "$@"
