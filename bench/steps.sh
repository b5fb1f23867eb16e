#!/usr/bin/env bash
# Sourced by measurements whose guest says a line for each step: "bench STEP COUNT TIME INTERRUPTS".
# Exits are KVM's count for the VM (debugfs), interrupts the guest's own for the device.

# KVM's number of exits so far of the VM of a process.
exits() { cat /sys/kernel/debug/kvm/"$1"-*/exits 2>/dev/null || echo 0; }

# header TIME FILE: a new table in a file, with the names of the columns.
header() {
  table=$2
  : >"$table"
  row monitor step count "$1" exits interrupts
}

row() { printf '%-30s %-13s %6s %10s %8s %10s\n' "$@" | tee -a "$table"; }

# watch NAME PID CONSOLE STEPS: a line for each step of the guest's behind the first, until there are as many.
watch() {
  local name=$1 pid=$2 console=$3 wanted=$4 seen=0 last=0 now lines tries=0 words
  while [ "$seen" -lt "$wanted" ] && kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 3000 ]; do
    tries=$((tries + 1))
    lines=$(tr -d '\r' <"$console" 2>/dev/null | grep -c '^bench .* [0-9]* [0-9]*$' || true)
    if [ "$lines" -gt "$seen" ]; then
      now=$(exits "$pid")
      read -ra words < <(tr -d '\r' <"$console" | grep '^bench ' | sed -n "${lines}p")
      [ "$seen" = 0 ] || row "$name" "${words[@]:1:3}" "$((now - last))" "${words[4]}"
      seen=$lines last=$now
    fi
    sleep 0.2
  done
  [ "$seen" -ge "$wanted" ] || { echo "$name: only $seen of $wanted steps:" >&2; tail -n 20 "$console" >&2; return 1; }
}
