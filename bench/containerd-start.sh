#!/usr/bin/env bash
# Sourced by measurements of containers of containerd: one of its own, below $work, with the image $image and Hull's programs in the
# PATH. HULL_TEST_IMAGES names the directory of the test images.

PATH=${HULL_PREFIX:-$(dirname "${BASH_SOURCE[0]}")/../build}/bin:$PATH
work=$(mktemp -d /run/containerd-bench.XXXXXX)
image=localhost/busybox:latest
containerd=''
export PATH HULL_BOOT_TIMEOUT=170 HULL_RUNTIME_DIR=$work/h CONTAINERD_ADDRESS=$work/c.sock

start_containerd() {
  cat >"$work/config.toml" <<TOML
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$work/c.sock"
TOML
  containerd --config "$work/config.toml" >"$work/log" 2>&1 &
  containerd=$!
  tar -cf "$work/image.tar" -C "${HULL_TEST_IMAGES:?names the directory of the test images}/busybox" .
  until ctr version >/dev/null 2>&1; do sleep 1; done
  ctr images import --index-name "$image" "$work/image.tar" >/dev/null
}

# end_containerd CONTAINER...: ends these, where they are, and containerd.
end_containerd() {
  local id
  for id in "$@"; do
    ctr task kill --signal KILL "$id" >/dev/null 2>&1 || true
    sleep 1
    ctr task rm --force "$id" >/dev/null 2>&1 || true
  done
  if [ -n "$containerd" ]; then
    kill "$containerd" 2>/dev/null || true
    wait "$containerd" || true
  fi
  rm -rf "$work" 2>/dev/null || true
}
