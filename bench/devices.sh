#!/usr/bin/env bash
# Measures the block device: fio in the same guest, with hull-vmm (both engines) and with QEMU's microvm and q35.
# Called by `make bench`, in the testbed where the local KVM can't run guests. Needs root, KVM, tracefs and loop devices.
#   devices.sh [ROW...]   only these rows, e.g. randread-4k-32
# Each line of results/blk.jsonl is one row of one monitor in one of RUNS (3) rounds: fio's numbers, interrupts as the guest
# counts them, and exits by reason (SVM exit codes: AMD64 Architecture Programmer's Manual volume 2, appendix C).
# results/blk.txt has the medians. Times are emulated in the testbed: compare rows of one run, never across runs.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${TESTBED_SHARE:-$here/results}
prefix=${HULL_PREFIX:-$here/../build}
hist=/sys/kernel/tracing/events/kvm/kvm_exit
rows=("$@")
[ $# -gt 0 ] || rows=({read,write,randread,randwrite}-{4k,128k}-{1,32})
work=$(mktemp -d)
device=''
monitor=''
clean_up() {
  [ -z "$monitor" ] || kill -9 "$monitor" 2>/dev/null || true
  [ -z "$device" ] || losetup --detach "$device"
  echo '!hist:keys=exit_reason' >"$hist/trigger" 2>/dev/null || true
  rm -rf "$work"
}
trap clean_up EXIT

# A disk with fio, too large for an initramfs.
make_tools() {
  mkdir "$work/fio"
  { command -v fio; ldd "$(command -v fio)" | grep -o '/[^ ]*'; } | while read -r file; do cp -L "$file" "$work/fio/"; done
  {
    printf '[global]\nfilename=/dev/vda\nsize=64m\nioengine=io_uring\ndirect=1\nthread\nrandseed=1\n'
    local row kind size depth
    for row in warm-up "${rows[@]}"; do
      IFS=- read -r kind size depth <<<"$row"
      [ "$row" != warm-up ] || { kind=randrw size=4k depth=32; }
      printf '[%s]\nstonewall\nrw=%s\nbs=%s\niodepth=%s\nnumber_ios=%s\n' "$row" "$kind" "$size" "$depth" "$(operations "$row")"
      printf 'exec_prerun=sh /mark begin %s\nexec_postrun=sh /mark end %s\n' "$row" "$row"
    done
  } >"$work/fio/jobs"
  mkfs.erofs "$work/tools" "$work/fio" >/dev/null 2>&1
}

operations() { case $1 in *-128k-*) echo 256 ;; *) echo 1024 ;; esac; }

make_initramfs() {
  local root=$work/root
  mkdir -p "$root"/{bin,dev,proc,sys,tmp,mnt}
  cp "$(command -v busybox)" "$root/bin/busybox"
  ln -s busybox "$root/bin/sh"
  mknod "$root/dev/console" c 5 1
  cat >"$root/init" <<'INIT'
#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t erofs -o ro /dev/vdb /mnt
cd /tmp
/mnt/ld-linux-x86-64.so.2 --library-path /mnt /mnt/fio --output-format=terse --output=/tmp/out /mnt/jobs >/tmp/log 2>&1
cat /tmp/log /tmp/out >/dev/console
echo all done >/dev/console
sleep 1000
INIT
  # The pauses give the host time to read its counters; an idle guest has next to no exits.
  cat >"$root/mark" <<'MARK'
echo "mark $1 $2 $(awk '/req/ {sum += $2} END {print sum + 0}' /proc/interrupts)" >/dev/console
sleep 2
MARK
  chmod +x "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet) >"$work/initramfs"
}

hull() {
  cat >"$work/vm.json" <<JSON
{ "boot-source": { "kernel_image_path": "$prefix/lib/hull/vmlinux", "initrd_path": "$work/initramfs" },
  "machine-config": { "vcpu_count": 1, "mem_size_mib": 192 }, "console": { "log_path": "$work/console" },
  "drives": [{ "drive_id": "tested", "path_on_host": "$device", "direct": true, "io_engine": "$1" },
             { "drive_id": "tools", "path_on_host": "$work/tools", "is_read_only": true }] }
JSON
  exec "$prefix/bin/hull-vmm" run --config "$work/vm.json"
}

qemu() {
  exec qemu-system-x86_64 -M "$1" -enable-kvm -cpu host,pmu=off -nodefaults -no-user-config -nographic -no-reboot \
    -serial none -monitor none -m 192M -smp 1 -kernel "$prefix/lib/hull/vmlinux" -initrd "$work/initramfs" \
    -append "console=hvc0 loglevel=2 reboot=t panic=-1" -object iothread,id=io \
    -drive "id=tested,file=$device,format=raw,if=none,cache=none,aio=io_uring" \
    -device virtio-blk-pci,drive=tested,iothread=io,num-queues=1 \
    -drive "id=tools,file=$work/tools,format=raw,if=none,readonly=on" -device virtio-blk-pci,drive=tools,num-queues=1 \
    -device virtio-serial-pci -chardev "file,id=log,path=$work/console" -device virtconsole,chardev=log
}

# Keeps the counters at each mark of the guest.
watch_marks() {
  local deadline=$((SECONDS + 600)) seen=0 mark
  while ! grep -q 'all done' "$work/console"; do
    if [ "$SECONDS" -ge "$deadline" ] || ! kill -0 "$monitor" 2>/dev/null; then
      cat "$work/console" "$work/log" >&2
      return 1
    fi
    mark=$(awk -v wanted=$((seen + 1)) '/^mark / && ++count == wanted { sub(/\r/, ""); print }' "$work/console")
    if [ -z "$mark" ]; then sleep 0.1; continue; fi
    seen=$((seen + 1))
    # shellcheck disable=SC2086 # the words of the mark
    set -- $mark
    grep '^{' "$hist/hist" >"$work/$2.$3" || true
    echo "$4" >"$work/$2.$3.interrupts"
  done
}

# One line of results; the fields of fio's terse format (version 3) are counted from 1.
result() {
  local name=$1 row=$2 exits interrupts
  exits=$(awk '{ count = $0; sub(/.*hitcount: */, "", count); code = $0; sub(/.*exit_reason: */, "", code); sub(/ .*/, "", code) }
    FNR == NR { before[code] = count + 0; next }
    count + 0 > before[code] { printf "%s\"0x%x\": %d", sep, code, count - before[code]; sep = ", " }' \
    "$work/begin.$row" "$work/end.$row")
  interrupts=$(($(cat "$work/end.$row.interrupts") - $(cat "$work/begin.$row.interrupts")))
  tr -d '\r' <"$work/console" | awk -F';' -v monitor="$name" -v row="$row" -v exits="$exits" -v interrupts="$interrupts" \
    -v operations="$(operations "$row")" -v run="$run" '
    $1 == 3 && $3 == row {
      first = row ~ /read/ ? 6 : 47
      printf "{\"monitor\": \"%s\", \"row\": \"%s\", \"run\": %d, \"operations\": %d, \"iops\": %d, \"kib_per_second\": %d, ", monitor, row, run, operations, $(first + 2), $(first + 1)
      printf "\"latency_us_mean\": %d, \"interrupts\": %d, \"exits\": {%s}}\n", $(first + 34), interrupts, exits
    }'
}

measure() {
  local name=$1 row
  shift
  rm -f "$work"/{begin,end}.*
  : >"$work/console"
  "$@" </dev/null >"$work/log" 2>&1 &
  monitor=$!
  watch_marks
  kill -9 "$monitor"
  wait "$monitor" 2>/dev/null || true
  monitor=''
  for row in "${rows[@]}"; do
    if [ ! -e "$work/end.$row" ]; then
      cat "$work/console" "$work/log" >&2
      return 1
    fi
  done
  for row in "${rows[@]}"; do result "$name" "$row"; done | tee -a "$out/blk.jsonl"
}

# A table of medians: requests a second, exits and interrupts of one.
summary() {
  awk '
    function field(name, text) {
      match($0, "\"" name "\": \"?[^,\"]*")
      text = substr($0, RSTART, RLENGTH)
      sub(/^[^:]*: "?/, "", text)
      return text
    }
    function median(values, count, i, j, keep) {
      for (i = 2; i <= count; i++) {
        keep = values[i]
        for (j = i - 1; j > 0 && values[j] > keep; j--) values[j + 1] = values[j]
        values[j + 1] = keep
      }
      return values[int((count + 1) / 2)]
    }
    {
      key = field("row") SUBSEP field("monitor")
      if (!(field("row") in seen)) { seen[field("row")] = 1; rows[++row_count] = field("row") }
      if (!(field("monitor") in known)) { known[field("monitor")] = 1; monitors[++monitor_count] = field("monitor") }
      sum = 0
      list = $0
      sub(/.*"exits": /, "", list)
      while (match(list, /": [0-9]+/)) { sum += substr(list, RSTART + 3, RLENGTH - 3); list = substr(list, RSTART + RLENGTH) }
      n = ++count[key]
      iops[key, n] = field("iops") + 0; exits[key, n] = sum / field("operations"); interrupts[key, n] = field("interrupts") / field("operations")
    }
    END {
      printf "%-29s", "requests/s, exits, interrupts"
      for (m = 1; m <= monitor_count; m++) printf " %20s", monitors[m]
      print ""
      for (r = 1; r <= row_count; r++) {
        printf "%-29s", rows[r]
        for (m = 1; m <= monitor_count; m++) {
          key = rows[r] SUBSEP monitors[m]
          for (i = 1; i <= count[key]; i++) { a[i] = iops[key, i]; b[i] = exits[key, i]; c[i] = interrupts[key, i] }
          printf " %8d %5.2f %5.2f", median(a, count[key]), median(b, count[key]), median(c, count[key])
        }
        print ""
      }
    }' "$out/blk.jsonl"
}

make_tools
make_initramfs
truncate -s 64M "$work/image"
device=$(losetup --find --show "$work/image")
dd if=/dev/urandom of="$device" bs=1M count=64 status=none
echo 'hist:keys=exit_reason' >"$hist/trigger"
: >"$out/blk.jsonl"
for ((run = 1; run <= ${RUNS:-3}; run++)); do
  measure hull-sync hull Sync
  measure hull-async hull Async
  measure qemu-microvm qemu microvm,pcie=on,acpi=on,pic=off,pit=off,rtc=off,isa-serial=off
  measure qemu-q35 qemu q35
done
summary | tee "$out/blk.txt"
