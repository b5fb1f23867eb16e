#!/usr/bin/env bash
# Runs the end-to-end tests in one go: natively where KVM runs guests, otherwise in one testbed.
#   e2e.sh [ARGUMENTS OF THE TEST PROGRAM...]   e.g. e2e.sh lifecycle --nocapture
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.."
HULL_PREFIX=$PWD/build
HULL_TEST_IMAGES=${HULL_TEST_IMAGES:-${XDG_CACHE_HOME:-$HOME/.cache}/hull/images}
export HULL_PREFIX HULL_TEST_IMAGES

program=$("${CARGO:-cargo}" test --release --locked -p hull-tests --no-run --message-format=json |
  sed -n '/"name":"e2e"/s/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -x "$program" ] || { echo "e2e: cargo built no test program" >&2; exit 1; }
# The testbed is about ten times slower than hardware.
exec "$here/run.sh" --timeout "${HULL_E2E_TIMEOUT:-3000}" "$program" "$@"
