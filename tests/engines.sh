#!/usr/bin/env bash
# Container engines of newer Debian suites, for the tests only: unpacked into the cache, unless they are there already.
#   engines.sh          all of them
#   engines.sh SUITE    prints the directory of that suite's
set -euo pipefail

[ $# -le 1 ] || { echo "usage: engines.sh [SUITE]" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# suite | packages. Beside them the tests use this machine's own containerd and runc.
engines=$(cat <<'LIST'
trixie | containerd docker.io docker-cli
sid    | containerd
LIST
)

found=
while IFS='| ' read -r suite packages; do
  [ "${1:-$suite}" = "$suite" ] || continue
  found=1
  read -ra packages <<<"$packages"
  unpacked=$("$here/packages.sh" "$suite" "${packages[@]}")
  [ $# = 0 ] || echo "$unpacked"
done <<<"$engines"
[ -n "$found" ] || { echo "engines: there is none of $1" >&2; exit 2; }
