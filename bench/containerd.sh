#!/usr/bin/env bash
# What a container costs through containerd, with runc and with Hull one after the other: `ctr run --rm` to its first byte of
# output and to its end, a process in a running container (`ctr task exec`) to its end, and what the shim holds before and after
# many of those. Prints a table; it belongs into results/containerd.txt. Called by `make bench`.
#   containerd.sh [RUNS [EXECS]]   (10, 100)
# Needs root, KVM and containerd; HULL_TEST_IMAGES names the directory of the test images.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
runs=${1:-10} execs=${2:-100}
# shellcheck source-path=SCRIPTDIR source=containerd-start.sh
. "$here/containerd-start.sh"
out=${TESTBED_SHARE:-$here/results}/containerd.txt
runtimes=(io.containerd.runc.v2 io.containerd.kata.v2)
end() { end_containerd "${runtimes[@]}"; }

trap end EXIT
start_containerd

now() { echo "${EPOCHREALTIME/./}"; }
# median FILE COLUMN: of microseconds, in milliseconds.
median() { awk -v column="$2" '{ print $column }' "$1" | sort -n | awk '{ v[NR] = $1 } END { printf "%.0f", v[int((NR + 1) / 2)] / 1000 }'; }

# time_run RUNTIME ID: adds "FIRST END" in microseconds to the runtime's file.
time_run() {
  local start first
  start=$(now)
  ctr run --rm --runtime "$1" "$image" "$2" echo out >"$work/pipe" &
  read -r _ <"$work/pipe"
  first=$(now)
  wait $!
  echo $((first - start)) $(($(now) - start)) >>"$work/run.$1"
}

time_exec() {
  local start
  start=$(now)
  ctr task exec --exec-id "$2" "$1" true
  echo $(($(now) - start)) >>"$work/exec.$1"
}

# held RUNTIME: the shim's resident memory in KiB, its threads and its descriptors.
held() {
  local pid
  # runc's shim is the container's parent, Hull's that of the monitor, which containerd is told of.
  pid=$(awk '/^PPid:/ { print $2 }' "/proc/$(ctr task ls | awk -v id="$1" '$1 == id { print $2 }')/status")
  awk '/^VmRSS:/ { rss = $2 } /^Threads:/ { threads = $2 } END { printf "%s %s ", rss, threads }' "/proc/$pid/status"
  find "/proc/$pid/fd" -mindepth 1 | wc -l
}

mkfifo "$work/pipe"
for ((i = 0; i <= runs; i++)); do
  for runtime in "${runtimes[@]}"; do
    time_run "$runtime" "run-$i"
    # The first fills caches.
    [ "$i" != 0 ] || rm "$work/run.$runtime"
  done
done
for runtime in "${runtimes[@]}"; do
  ctr run --detach --null-io --runtime "$runtime" "$image" "$runtime" sleep 100000
  time_exec "$runtime" warm-up
  rm "$work/exec.$runtime"
  held "$runtime" >"$work/before.$runtime"
done
for ((i = 0; i < execs; i++)); do
  for runtime in "${runtimes[@]}"; do time_exec "$runtime" "exec-$i"; done
done
{
  printf 'Medians of %s runs and %s execs, in ms; the shim before and after the execs.\n\n' "$runs" "$execs"
  printf '%-22s %11s %8s %6s  %24s\n' '' 'first byte' 'run end' exec 'KiB, threads, descriptors'
  for runtime in "${runtimes[@]}"; do
    printf '%-22s %11s %8s %6s  %12s -> %s\n' "$runtime" "$(median "$work/run.$runtime" 1)" "$(median "$work/run.$runtime" 2)" \
      "$(median "$work/exec.$runtime" 1)" "$(cat "$work/before.$runtime")" "$(held "$runtime")"
  done
} | tee "$out"
