#!/usr/bin/env bash
# Tests of the testbed itself. Takes about a minute.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
run=$here/run
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

check() {
  if [ "$2" = "$3" ]; then echo "ok    $1"; else
    echo "FAIL  $1: expected '$2', found '$3'"
    failures=$((failures + 1))
  fi
}

# Whether a QEMU of ours with this share is still running, waiting a moment for it to go.
qemu_of_share() {
  local tries
  for tries in 1 2 3 4 5 6 7 8 9 10; do
    if ! grep -lsz "path=$1," /proc/[0-9]*/cmdline >/dev/null 2>&1; then echo gone; return; fi
    sleep 0.2
  done
  echo "still running after try $tries"
}

wait_for_file() {
  local tries
  for tries in $(seq 600); do [ -e "$1" ] && return; sleep 0.1; done
  echo "FAIL  $1 did not appear in $((tries / 10)) s"
  return 1
}

# One boot for everything that can share it.
head -c 8388608 /dev/urandom >"$work/input"
mkdir "$work/share"
status=0
# shellcheck disable=SC2016  # expanded in the testbed
(cd "$here" && HULL_MARK='with  space' HIDDEN=1 "$run" --share "$work/share" -- bash -c '
  pwd >$TESTBED_SHARE/pwd
  echo "$HULL_MARK/${HIDDEN-unset}/$HULL_TESTBED" >$TESTBED_SHARE/environment
  printf "%s|" "$@" >$TESTBED_SHARE/words
  head -c 4194304
  cat >&2
  test -c /dev/kvm && grep -c svm /proc/cpuinfo >$TESTBED_SHARE/svm
  touch /tmp/.testbed-mark /etc/.testbed-mark && echo yes >$TESTBED_SHARE/writable
  exit 42' name 'a b' '' '$x"') <"$work/input" >"$work/out" 2>"$work/err" || status=$?
check "exit status" 42 "$status"
check "stdin to stdout, 4 MiB" "$(head -c 4194304 "$work/input" | sha256sum)" "$(sha256sum <"$work/out")"
check "stdin to stderr, 4 MiB" "$(tail -c 4194304 "$work/input" | sha256sum)" "$(tail -c 4194304 "$work/err" | sha256sum)"
check "working directory" "$here" "$(cat "$work/share/pwd")"
check "environment" "with  space/unset/1" "$(cat "$work/share/environment")"
# shellcheck disable=SC2016  # as it was given
check "arguments" 'a b||$x"|' "$(cat "$work/share/words")"
check "one processor with AMD-V" 1 "$(cat "$work/share/svm")"
check "/ and /tmp can be written" yes "$(cat "$work/share/writable")"
check "what is written there stays there" "" "$(ls /tmp/.testbed-mark /etc/.testbed-mark 2>/dev/null || true)"

status=0
"$run" --share "$work/share" -- sh -c 'kill -9 $$' </dev/null 2>"$work/err" || status=$?
check "exit status of a killed command" 137 "$status"
# A boot that had to be repeated is said, and no failure.
check "nothing else is said" "" "$(grep -v '^testbed: the machine did not boot; .* Trying again\.$' "$work/err" || true)"

status=0
"$run" -- /no/such/command </dev/null 2>"$work/err" || status=$?
check "command not found" 127 "$status"

status=0
"$run" --timeout 20 --share "$work/share" -- sleep 600 </dev/null 2>"$work/err" || status=$?
check "time limit" 124 "$status"
check "time limit, message" 1 "$(grep -c 'time limit' "$work/err")"
check "time limit leaves nothing" gone "$(qemu_of_share "$work/share")"

for signal in TERM INT KILL; do
  rm -f "$work/share/started"
  # In a session of its own, so that INT is not ignored as in background jobs of a script.
  env --default-signal=INT "$run" --share "$work/share" -- sh -c 'touch /testbed-share/started; sleep 600' </dev/null 2>/dev/null &
  pid=$!
  wait_for_file "$work/share/started"
  # A terminal sends INT to all of them; here it goes to the child that waits for QEMU.
  if [ "$signal" = INT ]; then pkill -INT -P "$pid"; else kill "-$signal" "$pid"; fi
  wait "$pid" 2>/dev/null || true
  check "SIG$signal leaves nothing" gone "$(qemu_of_share "$work/share")"
done

[ "$failures" = 0 ] || { echo "testbed: $failures checks failed"; exit 1; }
echo "testbed: all checks passed"
