#!/usr/bin/env bash
# TCP over a tap and streams over vsock: Hull's devices, and QEMU's in microvm and q35 (a tap without and with vhost-net; for vsock
# QEMU has the host kernel's device only). Without arguments both.
#   streams.sh [tcp] [vsock]
# The same kernel and guest program, one vCPU, 192 MiB. Prints a table; see steps.sh.
# Called by `make bench`.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=steps.sh
. "$here/steps.sh"
build=${HULL_PREFIX:-$here/../build}
program=$here/../target/x86_64-unknown-linux-gnu/release/bench-streams
dir=$(mktemp -d /tmp/bench.XXXXXX)
children=()
end() {
  local pid
  for pid in "${children[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
  ip link delete hull-bench 2>/dev/null || true
  rm -rf "$dir"
}
trap end EXIT

mkdir -p "$dir/root"/{bin,dev,proc,sys}
cp "$(command -v busybox)" "$dir/root/bin/busybox"
cp "$program" "$dir/root/bin/bench-streams"
cat >"$dir/root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
if [ -e /sys/class/net/eth0 ]; then
  /bin/busybox ip addr add 10.78.0.2/24 dev eth0
  /bin/busybox ip link set eth0 up
  endpoint=tcp:10.78.0.1:7000
else
  endpoint=vsock:2:7000
fi
/bin/bench-streams drive $endpoint >/dev/hvc0 2>&1
/bin/busybox sleep 1000
INIT
chmod 755 "$dir/root/init"
(cd "$dir/root" && find . | cpio -o -H newc --quiet) >"$dir/initramfs"

# measure NAME COMMAND...: the console is $dir/console.
measure() {
  local name=$1 monitor
  shift
  : >"$dir/console"
  "$@" </dev/null >"$dir/log" 2>&1 &
  monitor=$!
  children+=("$monitor")
  watch "$name" "$monitor" "$dir/console" 4 || { tail "$dir/log" >&2; exit 1; }
  kill -9 "$monitor"
  wait "$monitor" 2>/dev/null || true
}

serve() {
  "$program" serve "$1" 2>>"$dir/serve" &
  children+=($!)
}

# hull DEVICE: a part of the configuration.
hull() {
  cat >"$dir/vm.json" <<JSON
{ "boot-source": { "kernel_image_path": "$build/lib/hull/vmlinux", "initrd_path": "$dir/initramfs" },
  "machine-config": { "vcpu_count": 1, "mem_size_mib": 192 }, "console": { "log_path": "$dir/console" }, $1 }
JSON
  exec "$build/bin/hull-vmm" run --config "$dir/vm.json"
}

# qemu MACHINE ARGUMENTS...
qemu() {
  local machine=$1
  shift
  exec qemu-system-x86_64 -M "$machine" -enable-kvm -cpu host,pmu=off -nodefaults -no-user-config -nographic -no-reboot \
    -serial none -monitor none -m 192M -smp 1 -kernel "$build/lib/hull/vmlinux" -initrd "$dir/initramfs" \
    -append "console=hvc0 loglevel=2 reboot=t panic=-1" -device virtio-serial-pci \
    -chardev "file,id=log,path=$dir/console" -device virtconsole,chardev=log "$@"
}

microvm=microvm,pcie=on,acpi=on,pic=off,pit=off,rtc=off,isa-serial=off
[ $# -gt 0 ] || set -- tcp vsock
header us "${TESTBED_SHARE:-$here/results}/streams.txt"

tcp() {
  local interface vhost machine name
  ip tuntap add hull-bench mode tap vnet_hdr
  ip addr add 10.78.0.1/24 dev hull-bench
  ip link set hull-bench up
  serve tcp:10.78.0.1:7000
  interface='"iface_id": "eth0", "host_dev_name": "hull-bench"'
  measure "tcp hull" hull "\"network-interfaces\": [ { $interface } ]"
  for vhost in off on; do
    [ "$vhost" = off ] || measure "tcp hull vhost" hull "\"network-interfaces\": [ { $interface, \"vhost\": true } ]"
    for machine in "$microvm" q35; do
      name="tcp qemu ${machine%%,*}"
      [ "$vhost" = off ] || name="$name vhost"
      measure "$name" qemu "$machine" -netdev "tap,id=n,ifname=hull-bench,script=no,downscript=no,vhost=$vhost" \
        -device virtio-net-pci,netdev=n,romfile=
    done
  done
}

vsock() {
  local machine
  serve "unix:$dir/v_7000"
  measure "vsock hull" hull "\"vsock\": { \"guest_cid\": 3, \"uds_path\": \"$dir/v\" }"
  serve vsock:2:7000
  for machine in "$microvm" q35; do
    measure "vsock qemu ${machine%%,*}" qemu "$machine" -device vhost-vsock-pci,guest-cid=3
  done
}

for part in "$@"; do "$part"; done
