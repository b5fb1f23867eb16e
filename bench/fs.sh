#!/usr/bin/env bash
# Work that a shared directory costs: Hull's device, and QEMU with the virtiofsd of QEMU 7.2 in a process of its own. The same
# kernel and guest program, one vCPU, 256 MiB. Prints a table; see steps.sh. Called by `make bench`.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=steps.sh
. "$here/steps.sh"
build=${HULL_PREFIX:-$here/../build}
program=$here/../target/x86_64-unknown-linux-gnu/release/share-guest
dir=$(mktemp -d /tmp/fs-bench.XXXXXX)
children=()
end() {
  local pid
  for pid in "${children[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$dir" "$share"
}
# On a tmpfs, so that no disk takes part.
share=$(mktemp -d /dev/shm/fs-bench.XXXXXX)
trap end EXIT
mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug

mkdir -p "$dir/root"/{bin,dev,proc,sys,mnt}
cp "$(command -v busybox)" "$dir/root/bin/busybox"
cp "$program" "$dir/root/bin/share-guest"
cat >"$dir/root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t virtiofs data /mnt || echo no mount >/dev/hvc0
/bin/share-guest bench /mnt >/dev/hvc0 2>&1
/bin/busybox poweroff -f
INIT
chmod 755 "$dir/root/init"
(cd "$dir/root" && find . | cpio -o -H newc --quiet) >"$dir/initramfs"

header ms "${TESTBED_SHARE:-$here/results}/fs.txt"
for cache in auto never; do
  cat >"$dir/vm.json" <<JSON
{ "boot-source": { "kernel_image_path": "$build/lib/hull/vmlinux", "initrd_path": "$dir/initramfs", "boot_args": "" },
  "machine-config": { "vcpu_count": 1, "mem_size_mib": 256 }, "console": { "log_path": "$dir/hull-$cache" },
  "shares": [ { "tag": "data", "path_on_host": "$share", "cache": "$cache" } ] }
JSON
  "$build/bin/hull-vmm" run --id bench --config "$dir/vm.json" >"$dir/hull-out" 2>&1 &
  children+=($!)
  watch "hull cache=$cache" $! "$dir/hull-$cache" 6

  qemu_cache=$cache
  [ "$cache" = auto ] || qemu_cache=none
  /usr/lib/qemu/virtiofsd --socket-path="$dir/fs-$cache" -o source="$share" -o cache="$qemu_cache" >"$dir/fsd-$cache" 2>&1 &
  children+=($!)
  for _ in $(seq 50); do [ -S "$dir/fs-$cache" ] && break; sleep 0.2; done
  qemu-system-x86_64 -M q35,accel=kvm,memory-backend=m -cpu host -smp 1 -m 256 -nodefaults -no-user-config -nographic -no-reboot \
    -object memory-backend-memfd,id=m,size=256M,share=on -kernel "$build/lib/hull/vmlinux" -initrd "$dir/initramfs" \
    -append "console=hvc0 reboot=t panic=-1 quiet" -chardev "file,id=c,path=$dir/qemu-$cache" -device virtio-serial-pci \
    -device virtconsole,chardev=c -chardev "socket,id=f,path=$dir/fs-$cache" \
    -device vhost-user-fs-pci,chardev=f,tag=data,queue-size=512 >"$dir/qemu-out" 2>&1 &
  children+=($!)
  watch "qemu+virtiofsd cache=$cache" $! "$dir/qemu-$cache" 6
  tail -n 3 "$dir/qemu-out" "$dir/fsd-$cache" >&2
done
