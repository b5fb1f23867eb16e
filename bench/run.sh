#!/usr/bin/env bash
# Runs the measurements where KVM can run guests and keeps the raw samples in bench/results/.
# Called by `make bench`, in the testbed where the local KVM can't run guests.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${TESTBED_SHARE:-$here/results}
bench=$here/../target/x86_64-unknown-linux-gnu/release/hull-bench
export HULL_PREFIX=${HULL_PREFIX:-$here/../build}

"$bench" --runs "${HULL_BENCH_RUNS:-5}" --out "$out/boot-1vcpu.jsonl" | tee "$out/boot-1vcpu.txt"
"$bench" --runs "${HULL_BENCH_RUNS:-5}" --vcpus 2 --memory-mib 512 --out "$out/boot-2vcpu.jsonl" | tee "$out/boot-2vcpu.txt"
