#!/usr/bin/env bash
# Builds the guest kernel and prints the path of its vmlinux on standard output; everything else goes to standard error.
# The result is cached by the checksum of the source, the fragments and this script. Callers may run at the same time.
#   build.sh         build, or find the earlier build
#   build.sh --pin   write the installed source's version and checksum into the file `version`
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
readonly fragments=(base.config virtio.config container.config debug.config)
readonly size_limit_bytes=$((20 * 1024 * 1024))

package='' package_version='' sha256=''
# shellcheck source=/dev/null
. "$here/version"
readonly tarball="/usr/src/$package.tar.xz"

say() { printf 'kernel: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

installed_version() { dpkg-query -W -f '${Version}' "$package" 2>/dev/null || echo unknown; }

# The version in the top of the tarball's Makefile, without unpacking it all.
tarball_kernel_version() {
  xz -dc "$tarball" 2>/dev/null | tar -xf - --occurrence=1 -O "$package/Makefile" 2>/dev/null |
    awk '$1 == "VERSION" {v = $3} $1 == "PATCHLEVEL" {p = $3} $1 == "SUBLEVEL" {print v "." p "." $3; exit}' || true
}

pin() {
  local sum
  sum=$(sha256sum "$tarball" | cut -d ' ' -f 1)
  sed -i -e "s/^package_version=.*/package_version=$(installed_version)/" \
    -e "s/^kernel_version=.*/kernel_version=$(tarball_kernel_version)/" -e "s/^sha256=.*/sha256=$sum/" "$here/version"
  say "pinned $package $(installed_version)"
}

# Debian's archive offers only the current point release, so a fresh machine may have a newer one than the pinned.
# That build works, but it is not the one that was tested: say so, every time.
warn_if_not_pinned() {
  [ "$1" = "$sha256" ] && return
  cat >&2 <<WARNING
kernel: WARNING: the kernel source is not the pinned one.
kernel:   pinned:    $package $package_version, sha256 $sha256
kernel:   installed: $package $(installed_version), sha256 $1
kernel:   The build continues with the installed source. After testing it, pin it: kernel-config/build.sh --pin
WARNING
}

# Every line of every fragment must be in the final configuration: an option that another one turns off is an error.
verify() {
  local config=$1 fragment line symbol bad=0
  for fragment in "${fragments[@]}"; do
    while read -r line; do
      case $line in
        CONFIG_*) grep -qxF -- "$line" "$config" && continue ;;
        '# CONFIG_'*' is not set') symbol=${line#\# }; grep -q "^${symbol%% *}=" "$config" || continue ;;
        *) continue ;;
      esac
      symbol=${line#\# }; symbol=${symbol%%[ =]*}
      say "$fragment asks for '$line' but the result is '$(grep -m 1 -w "$symbol" "$config" || echo "no such option")'"
      bad=1
    done < "$here/$fragment"
  done
  [ "$bad" = 0 ] || die "the configuration did not take effect"
}

build() {
  local output=$1 work source_tree start=$SECONDS
  rm -rf "$output"/build.*  # of a build that was killed
  work=$(mktemp -d "$output/build.XXXXXX")
  # shellcheck disable=SC2064  # expand now: the trap runs when the variable is gone
  trap "rm -rf '$work'" EXIT
  say "building $package $(installed_version) in $work (5 to 15 minutes, once)"
  tar -C "$work" -xf "$tarball"
  source_tree="$work/$package"

  # Names and dates go into the binary: the same source gives the same bytes.
  export ARCH=x86_64 KBUILD_BUILD_USER=hull KBUILD_BUILD_HOST=hull KBUILD_BUILD_VERSION=1
  KBUILD_BUILD_TIMESTAMP=$(LC_ALL=C TZ=UTC date -u -d "@$(stat -c %Y "$source_tree/Makefile")")
  export KBUILD_BUILD_TIMESTAMP
  unset MAKEFLAGS MFLAGS

  make -C "$source_tree" tinyconfig >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; die "tinyconfig failed"; }
  (cd "$source_tree" && scripts/kconfig/merge_config.sh -m .config "${fragments[@]/#/$here/}" && make olddefconfig) \
    >>"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; die "merging the fragments failed"; }
  verify "$source_tree/.config"

  nice make -C "$source_tree" -j "$(nproc)" vmlinux >>"$work/log" 2>&1 || {
    grep -n -i -m 5 'error' "$work/log" >&2 || true
    tail -n 30 "$work/log" >&2
    die "the build failed"
  }
  strip --strip-all -o "$work/vmlinux" "$source_tree/vmlinux"
  local size_bytes
  size_bytes=$(stat -c %s "$work/vmlinux")
  [ "$size_bytes" -lt "$size_limit_bytes" ] || die "vmlinux has $size_bytes bytes; the limit is $size_limit_bytes"

  cp "$source_tree/.config" "$output/config"
  cp "$source_tree/System.map" "$output/System.map"
  mv "$work/vmlinux" "$output/vmlinux"
  say "built in $((SECONDS - start)) s: $size_bytes bytes"
}

[ -r "$tarball" ] || die "$tarball is missing; run: make setup"
if [ "${1:-}" = --pin ]; then pin; exit; fi
[ $# = 0 ] || die "usage: build.sh [--pin]"

tarball_sum=$(sha256sum "$tarball" | cut -d ' ' -f 1)
warn_if_not_pinned "$tarball_sum"
key=$({ echo "$tarball_sum"; cd "$here"; cat "${fragments[@]}" build.sh; gcc --version | head -n 1; } | sha256sum | cut -c 1-16)
output="${XDG_CACHE_HOME:-$HOME/.cache}/hull/kernel/$key"
mkdir -p "$output"
exec 9>"$output/lock"
flock 9
[ -s "$output/vmlinux" ] || build "$output"
echo "$output/vmlinux"
