#!/usr/bin/env bash
# Installs what is needed to build and test Hull on Debian 12 and is not there yet. Changes nothing when all is there.
# Without root it prints the one command to run.
set -euo pipefail

# package | what for
packages=$(cat <<'LIST'
build-essential    | C compiler and make: guest kernel, testbed, C code in Rust crates
pkg-config         | guest kernel: finds libelf
libelf-dev         | guest kernel (objtool)
libseccomp-dev     | guest agent: seccomp filters of containers, linked statically
libcap-ng-dev      | monitor: rights of the thread that serves shared directories, linked statically
linux-source-6.12  | source of the guest kernel
xz-utils           | unpacks the kernel source
flex               | guest kernel configuration
bison              | guest kernel configuration
bc                 | guest kernel
cpio               | initramfs of guest and testbed
busybox-static     | test image; testbed
qemu-system-x86    | testbed: emulated machine with AMD-V; peer in the benchmark
linux-image-amd64  | testbed: its kernel, with kvm_amd and 9p
kmod               | testbed: finds kernel modules and their dependencies
mmdebstrap         | test image with Debian and Python
uidmap             | test image with Debian, made without root
erofs-utils        | tests: fsck.erofs checks the images that Hull writes; disks with programs for guests
e2fsprogs          | tests: a guest makes an ext4 file system, the host checks it
fio                | tests: a guest writes to a disk with many requests at once, and verifies
qemu-utils         | tests: qemu-img makes qcow2 images
util-linux         | tests: losetup, for block devices and direct I/O
acpica-tools       | tests: iasl reads the ACPI tables of a VM
curl               | tests: talks to the control API as people do
docker-registry    | tests: a real registry to pull from
skopeo             | tests: pushes images to it
containerd         | tests: runs containers with Hull as its runtime
runc               | tests: containerd's own runtime, with which Hull is compared
iperf3             | tests: traffic between guest and host
containernetworking-plugins | tests: containers of containerd in a network of CNI
iptables           | tests: ports that Docker and CNI publish
redis-tools        | tests: redis-benchmark talks to a Redis in a container
ethtool            | tests: offloads of network interfaces
iproute2           | tests: tap interfaces, traffic control
passt              | tests: the peer of a network interface without a tap
shellcheck         | make lint
LIST
)
readonly packages
readonly rust_minimum=1.88

missing=()
check_packages() {
  local name reason
  while IFS='|' read -r name reason; do
    name=${name// /}
    # Root makes the image without user namespaces.
    [ "$name" != uidmap ] || [ "$(id -u)" != 0 ] || continue
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null || true)" = installed ] && continue
    printf 'setup: %-27s is missing: %s\n' "$name" "${reason# }"
    missing+=("$name")
  done <<<"$packages"
}

install_packages() {
  local command=(apt-get install --quiet --yes --no-install-recommends "${missing[@]}")
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
