#!/usr/bin/env bash
# What an image costs as a virtio block device and as persistent memory with direct access (virtio-pmem, DAX): memory of the
# host with one and with two VMs of the same image, and exits to start, to mount it, to read a file of it, and to read it again.
# Prints a table; it belongs into results/pmem.txt.
#   tests/run.sh bench/pmem.sh        after make
# Needs root, KVM and tracefs. Memory is that of the monitor's process in MiB. Exits are those of the first VM by KVM's
# tracepoint, without external interrupts, interrupt windows, halts and MSR writes, which grow with time under emulation.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
build=$here/../build
hist=/sys/kernel/tracing/events/kvm/kvm_exit
read_mib=32
work=$(mktemp -d /tmp/pmem-bench.XXXXXX)
children=()
end() {
  local pid
  for pid in "${children[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
  echo '!hist:keys=exit_reason' >"$hist/trigger" 2>/dev/null || true
  rm -rf "$work"
}
trap end EXIT

make_guest() {
  local root=$work/root
  mkdir -p "$root"/{bin,dev,proc,sys,image}
  cp "$(command -v busybox)" "$root/bin/busybox"
  mknod "$root/dev/console" c 5 1
  cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
# The pauses give the host time to read its counters; an idle guest has next to no exits.
mark() { echo "mark $1" >/dev/console; sleep 3; }
mark start
if [ -e /dev/pmem0 ]; then mount -t erofs -o ro,dax=always /dev/pmem0 /image; else mount -t erofs -o ro /dev/vda /image; fi
mark mount
cat /image/file >/dev/null
mark read
cat /image/file >/dev/null
mark again
sleep 10000
INIT
  chmod 755 "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet) >"$work/initramfs"
}

# make_image MIB: a file to read, and nothing behind it.
make_image() {
  mkdir -p "$work/tree"
  [ -e "$work/tree/file" ] || dd if=/dev/urandom of="$work/tree/file" bs=1M count="$read_mib" status=none
  mkfs.erofs "$work/image-$1" "$work/tree" >/dev/null 2>&1
  truncate -s "$1M" "$work/image-$1"
}

# start NAME DEVICES: sets `monitor`.
start() {
  : >"$work/$1.console"
  cat >"$work/$1.json" <<JSON
{ "boot-source": { "kernel_image_path": "$build/lib/hull/vmlinux", "initrd_path": "$work/initramfs" },
  "machine-config": { "vcpu_count": 1, "mem_size_mib": 192 }, "console": { "log_path": "$work/$1.console" }, $2 }
JSON
  "$build/bin/hull-vmm" run --id "$1" --config "$work/$1.json" >"$work/$1.log" 2>&1 &
  monitor=$!
  children+=("$monitor")
}

# wait_mark NAME MARK
wait_mark() {
  local tries=0
  until tr -d '\r' <"$work/$1.console" | grep -qx "mark $2"; do
    tries=$((tries + 1))
    if [ "$tries" -gt 3000 ] || ! kill -0 "$monitor" 2>/dev/null; then
      cat "$work/$1.console" "$work/$1.log" >&2
      exit 1
    fi
    sleep 0.1
  done
}

# Exits so far: nested page faults, and all that count. SVM exit codes: AMD64 Architecture Programmer's Manual volume 2, appendix C.
exits() {
  awk '/^\{/ { count = $0; sub(/.*hitcount: */, "", count); code = $0; sub(/.*exit_reason: */, "", code); code += 0
      if (code == 1024) faults += count
      if (code != 96 && code != 100 && code != 120 && code != 124) all += count }
    END { print faults + 0, all + 0 }' "$hist/hist"
}

# memory PID: resident, of it anonymous, and proportional, in MiB.
memory() {
  awk '/^Rss:/ { rss = $2 } /^Pss:/ { pss = $2 } /^Anonymous:/ { anon = $2 }
    END { printf "%6.1f %6.1f %6.1f", rss / 1024, anon / 1024, pss / 1024 }' "/proc/$1/smaps_rollup"
}

measure() {
  local name=$1 devices=$2 mark first
  echo '!hist:keys=exit_reason' >"$hist/trigger" 2>/dev/null || true
  echo 'hist:keys=exit_reason' >"$hist/trigger"
  start "$name-1" "$devices"
  first=$monitor
  local before=(0 0) now
  for mark in start mount read again; do
    wait_mark "$name-1" "$mark"
    sleep 0.5
    read -r -a now < <(exits)
    printf '%-10s %-8s %8d %8d   %s\n' "$name" "$mark" "$((now[0] - before[0]))" "$((now[1] - before[1]))" "$(memory "$first")"
    before=("${now[@]}")
  done
  start "$name-2" "$devices"
  wait_mark "$name-2" again
  printf '%-10s %-8s %8s %8s   %s\n' "$name" "first" "" "" "$(memory "$first")"
  printf '%-10s %-8s %8s %8s   %s\n' "$name" "second" "" "" "$(memory "$monitor")"
  kill -9 "$first" "$monitor"
  wait "$first" "$monitor" 2>/dev/null || true
  rm -f "$work/$name"-*
}

make_guest
printf 'An image with a file of %d MiB; one vCPU, 192 MiB. "first" and "second": both VMs have read it.\n\n' "$read_mib"
printf '%-10s %-8s %8s %8s   %6s %6s %6s\n' device mark faults exits Rss anon Pss
for mib in 64 1024; do
  make_image "$mib"
  measure "blk-$mib" "\"drives\": [{ \"drive_id\": \"image\", \"path_on_host\": \"$work/image-$mib\", \"is_read_only\": true }]"
  measure "pmem-$mib" "\"pmem\": [{ \"id\": \"image\", \"path_on_host\": \"$work/image-$mib\", \"read_only\": true }]"
done
