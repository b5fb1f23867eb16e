#!/usr/bin/env bash
# Boots the guest kernel in QEMU (emulated, no KVM needed) and asks it for what containers need: test.sh VMLINUX
set -euo pipefail

[ $# = 1 ] || { echo "usage: test.sh VMLINUX" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/root/bin" "$work/files"
cp "$(command -v busybox)" "$work/root/bin/busybox"
gcc -O1 -static -o "$work/root/bin/check" "$here/check.c"
# A 32-bit program without a library: exit(42).
# shellcheck disable=SC2016  # assembler
printf '.globl _start\n_start: mov $1, %%eax\nmov $42, %%ebx\nint $0x80\n' |
  gcc -m32 -nostdlib -static -x assembler -o "$work/root/i386" -
echo hello >"$work/files/hello"
PATH=$PATH:/sbin mkfs.erofs --quiet "$work/root/erofs.img" "$work/files" >/dev/null 2>&1 ||
  PATH=$PATH:/sbin mkfs.erofs "$work/root/erofs.img" "$work/files" >/dev/null
cp "$here/check-init" "$work/root/init"
chmod 755 "$work/root/init"
(cd "$work/root" && find . | cpio --quiet -o -H newc) >"$work/initramfs"

# Emulation has no KVM clock, so that this machine keeps the timer chip of a PC. Time is counted in instructions: on a
# busy host the kernel would otherwise fail to find out how fast its processor is.
timeout 60 qemu-system-x86_64 -M microvm,pcie=on,acpi=on -accel tcg,thread=single -icount shift=0 -cpu max -m 512 -smp 2 \
  -nodefaults -no-user-config -nographic -no-reboot -serial none -monitor none \
  -device virtio-serial-pci -chardev "file,id=log,path=$work/log" -device virtconsole,chardev=log \
  -kernel "$1" -initrd "$work/initramfs" -append "console=hvc0 loglevel=4 reboot=t panic=-1" </dev/null || true

tr -d '\r' <"$work/log"
grep -q '^check: done' "$work/log" || { echo "kernel: the check did not come to its end"; exit 1; }
! grep -q '^FAIL' "$work/log" || { echo "kernel: it lacks something"; exit 1; }
echo "kernel: it has all that containers need"
