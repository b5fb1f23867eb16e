#!/usr/bin/env bash
# What a pod costs the host beside the memory of its containers: the monitor with its guest, and the shim, before the pod's first
# container, with one container that does nothing, and with two. Prints a table; it belongs into results/pod.txt, and into
# docs/kubernetes.md, from where deploy/kubernetes/runtimeclass.yaml has its overhead.
#   HULL_TEST_IMAGES=DIRECTORY tests/run.sh --count-instructions bench/pod.sh        after make
# Needs root, KVM and containerd. Memory is the proportional set size (Pss of smaps_rollup) in MiB; each process alone.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=containerd-start.sh
. "$here/containerd-start.sh"
end() { end_containerd two one pod; }

trap end EXIT
start_containerd

# make ID ROLE COMMAND...
make() {
  local id=$1 role=$2
  shift 2
  ctr run --detach --null-io --runtime io.containerd.kata.v2 --annotation "io.kubernetes.cri.container-type=$role" \
    --annotation io.kubernetes.cri.sandbox-id=pod "$image" "$id" "$@"
}

# mib PID
mib() { awk '/^Pss:/ { printf "%.1f", $2 / 1024 }' "/proc/$1/smaps_rollup"; }

report() {
  local monitor shim
  # What a boot needed only once is given back within seconds.
  sleep "${POD_BENCH_SETTLE:-30}"
  monitor=$(ctr task ls | awk '$1 == "pod" { print $2 }')
  shim=$(awk '/^PPid:/ { print $2 }' "/proc/$monitor/status")
  printf '%-16s %8s %8s\n' "$1" "$(mib "$monitor")" "$(mib "$shim")"
}

printf '%-16s %8s %8s\n' '' hull-vmm shim
make pod sandbox true
report 'empty pod'
make one container sleep 10000
report 'one container'
make two container sleep 10000
report 'two containers'
