#!/usr/bin/env bash
# Builds the fuzz targets and runs each for FUZZ_SECONDS (60), as many at a time as there are processors. Without arguments
# all targets, else those that are named. Needs cargo-fuzz in the PATH: `make fuzz` sees to that.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
export FUZZ_SECONDS=${FUZZ_SECONDS:-60}
# The stable compiler has all that is needed, but lets only a nightly one ask for the address sanitizer.
export RUSTC_BOOTSTRAP=1
readonly out=target/x86_64-unknown-linux-gnu/release

run_one() {
  local target=$1
  mkdir -p "artifacts/$target" "corpus/$target"
  # A guest's file at its size limit is no crash.
  if "$out/$target" "corpus/$target" -max_total_time="$FUZZ_SECONDS" -timeout=60 -rss_limit_mb=2048 -handle_xfsz=0 \
      -detect_leaks=0 -print_final_stats=1 -artifact_prefix="artifacts/$target/" \
      >"artifacts/$target.log" 2>&1; then
    printf 'fuzz: %-8s %s\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: */executions: /p' "artifacts/$target.log")"
  else
    printf 'fuzz: %-8s FAILED; the input is in fuzz/artifacts/%s:\n' "$target" "$target"
    tail -n 40 "artifacts/$target.log"
    return 1
  fi
}
export -f run_one
export out

cargo fuzz build
if [ $# = 0 ]; then
  mapfile -t targets < <(cargo fuzz list)
  set -- "${targets[@]}"
fi
printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} bash -euo pipefail -c 'run_one {}'
