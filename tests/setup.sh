#!/usr/bin/env bash
# Installs what is needed on Debian 12 and is not there yet. Changes nothing when all is there, and removes nothing: where a
# package is in the way of another, apt says so and this ends. Without root it prints the one command to run.
#   setup.sh build|run|test   each with what is needed for those before it
set -euo pipefail

case ${1:-test} in
  build) stages=build ;;
  run) stages="build run" ;;
  test) stages="build run test" ;;
  *) echo "usage: setup.sh [build|run|test]" >&2; exit 2 ;;
esac
readonly stages

# package | first needed for: build, run (images and testbed), test | what for
packages=$(cat <<'LIST'
build-essential    | build | C compiler and make: guest kernel, testbed, C code in Rust crates
pkg-config         | build | guest kernel: finds libelf
libelf-dev         | build | guest kernel (objtool)
libseccomp-dev     | build | guest agent: seccomp filters of containers, linked statically
libcap-ng-dev      | build | monitor: rights of the thread that serves shared directories, linked statically
linux-source-6.12  | build | source of the guest kernel
xz-utils           | build | unpacks the kernel source
flex               | build | guest kernel configuration
bison              | build | guest kernel configuration
bc                 | build | guest kernel
cpio               | build | initramfs of guest and testbed
busybox-static     | run   | test image; testbed
qemu-system-x86    | run   | testbed: emulated machine with AMD-V; peer in the benchmark
linux-image-amd64  | run   | testbed: its kernel, with kvm_amd and 9p
kmod               | run   | testbed: finds kernel modules and their dependencies
mmdebstrap         | run   | test image with Debian and Python
uidmap             | run   | test image with Debian, made without root
erofs-utils        | test  | fsck.erofs checks the images that Hull writes; disks with programs for guests
e2fsprogs          | test  | a guest makes an ext4 file system, the host checks it
fio                | test  | a guest writes to a disk with many requests at once, and verifies
qemu-utils         | test  | qemu-img makes qcow2 images
util-linux         | test  | losetup, for block devices and direct I/O
acpica-tools       | test  | iasl reads the ACPI tables of a VM
curl               | test  | talks to the control API as people do
docker-registry    | test  | a real registry to pull from
skopeo             | test  | pushes images to it
containerd         | test  | runs containers with Hull as its runtime
runc               | test  | containerd's own runtime, with which Hull is compared
iperf3             | test  | traffic between guest and host
containernetworking-plugins | test | containers of containerd in a network of CNI
iptables           | test  | ports that Docker and CNI publish
redis-tools        | test  | redis-benchmark talks to a Redis in a container
ethtool            | test  | offloads of network interfaces
iproute2           | test  | tap interfaces, traffic control
passt              | test  | the peer of a network interface without a tap
shellcheck         | test  | make lint
LIST
)
readonly packages
readonly rust_minimum=1.88

missing=()
check_packages() {
  local name stage reason
  while IFS='|' read -r name stage reason; do
    name=${name// /}
    [[ " $stages " == *" ${stage// /} "* ]] || continue
    # Root makes the image without user namespaces.
    [ "$name" != uidmap ] || [ "$(id -u)" != 0 ] || continue
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null || true)" = installed ] && continue
    printf 'setup: %-27s is missing: %s\n' "$name" "${reason# }"
    missing+=("$name")
  done <<<"$packages"
}

install_packages() {
  local command=(apt-get install --quiet --yes --no-remove --no-install-recommends "${missing[@]}")
  if [ "$(id -u)" != 0 ]; then
    printf 'setup: run this, then make again:\n\n  sudo apt-get update && sudo %s\n\n' "${command[*]}"
    exit 1
  fi
  echo "setup: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update --quiet
  "${command[@]}" -o Dpkg::Use-Pty=0 -o Dpkg::Progress-Fancy=0 </dev/null
}

check_rust() {
  local version
  if ! version=$(cargo --version 2>/dev/null); then
    echo "setup: cargo is not on the PATH. Hull needs Rust $rust_minimum or newer; Debian 12's own is too old."
    if [ -x "$HOME/.cargo/bin/cargo" ]; then
      echo "setup: there is one in ~/.cargo/bin: run   export PATH=\$HOME/.cargo/bin:\$PATH   and make again"
    else
      echo "setup: install it with rustup (https://rustup.rs), then make again"
    fi
    exit 1
  fi
  version=$(cut -d ' ' -f 2 <<<"$version")
  if [ "$(printf '%s\n' "$rust_minimum" "$version" | sort -V | head -n 1)" != "$rust_minimum" ]; then
    echo "setup: cargo is version $version, Hull needs $rust_minimum or newer: run   rustup update"
    exit 1
  fi
}

if [ "$(uname -m)" != x86_64 ]; then echo "setup: Hull runs on x86_64 only"; exit 1; fi
if command -v dpkg-query >/dev/null; then
  check_packages
  [ "${#missing[@]}" = 0 ] || install_packages
else
  echo "setup: this is not Debian. These packages, by Debian's names, have to be there:"
  printf '%s\n' "$packages"
fi
check_rust
