#!/usr/bin/env bash
# Runs the end-to-end tests: natively where KVM runs guests, otherwise in as many testbeds at once as there are processors
# (at most 4), each with its part of the tests.
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
run=("$here/run.sh" --timeout "${HULL_E2E_TIMEOUT:-3000}" "$program")
mapfile -t tests < <("$program" "$@" --list --format terse | sed -n 's/: test$//p')
[ "${#tests[@]}" -gt 0 ] || { echo "e2e: no test is called $*" >&2; exit 2; }
parts=$(nproc)
[ "$parts" -le 4 ] || parts=4
[ "$parts" -le "${#tests[@]}" ] || parts=${#tests[@]}
if [ "$parts" -lt 2 ] || { [ -z "${HULL_FORCE_TESTBED:-}" ] && build/bin/hull-vmm probe >/dev/null 2>&1; }; then
  exec "${run[@]}" "$@"
fi

flags=()
for argument in "$@"; do
  case $argument in
    --nocapture | --show-output | --test-threads=*) flags+=("$argument") ;;
    # They have chosen already.
    --exact | --skip) ;;
    -*) echo "e2e: $argument can't be given to several testbeds at once" >&2; exit 2 ;;
  esac
done
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
echo "e2e: ${#tests[@]} tests in $parts testbeds"
pids=()
for ((part = 0; part < parts; part++)); do
  own=()
  for ((test = part; test < ${#tests[@]}; test += parts)); do own+=("${tests[test]}"); done
  # What a test says as it ends is shown at once, the rest when all have ended.
  (
    set +e
    "${run[@]}" --exact "${flags[@]}" "${own[@]}" 2>&1 | tee "$logs/$part" | grep --line-buffered '^test .* \.\.\. '
    exit "${PIPESTATUS[0]}"
  ) &
  pids+=($!)
done
status=0
for ((part = 0; part < parts; part++)); do
  wait "${pids[part]}" || status=$?
  echo "== testbed $((part + 1)) of $parts"
  grep -v '^test .* \.\.\. ok$' "$logs/$part" || true
done
exit "$status"
