#!/usr/bin/env bash
# Installs what `make build` built into a directory, and from there onto a node that is another directory, as the DaemonSet does, with
# a kubectl that writes down what it is asked.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
installer=
end() {
  [ -z "$installer" ] || kill "$installer" 2>/dev/null || true
  rm -rf "$work"
}
trap end EXIT
fail() {
  echo "deploy: $*" >&2
  cat "$work/log" >&2 || true
  exit 1
}

mkdir -p "$work/bin" "$work/node/host/dev" "$work/node/host/etc/containerd" "$work/node/etc/hull"
cat >"$work/bin/kubectl" <<'KUBECTL'
#!/bin/sh
echo "$*" >>"$ASKED"
KUBECTL
chmod 755 "$work/bin/kubectl"
export ASKED=$work/asked

make --silent install DESTDIR="$work/image" PREFIX=/usr/local >/dev/null
cmp -s shim/config.toml.example "$work/image/etc/hull/config.toml.example" || fail "the example is not installed"
[ ! -e "$work/image/etc/hull/config.toml" ] || fail "a configuration is installed"
echo '# mine' >"$work/node/etc/hull/config.toml"

PATH=$work/bin:$PATH NODE_NAME=node-1 FILES=$work/image ROOT=$work/node INTERVAL_S=0.1 HULL_CONFIG=$work/node/etc/hull/config.toml \
  "$work/image/usr/local/share/hull/deploy/kubernetes/install.sh" >"$work/log" 2>&1 &
installer=$!

# wait_for FILE TEXT
wait_for() {
  for _ in $(seq 300); do
    ! grep -qF -- "$2" "$1" 2>/dev/null || return 0
    sleep 0.1
  done
  fail "\"$2\" does not appear"
}

wait_for "$work/log" "no /dev/kvm"
touch "$work/node/host/dev/kvm"
wait_for "$work/log" "no runtime hull"
cp deploy/containerd/config-v3.toml "$work/node/host/etc/containerd/config.toml"
wait_for "$work/asked" "label node node-1 --overwrite io.hull/ready=true"
echo 'speed = 1' >"$work/node/etc/hull/config.toml"
wait_for "$work/log" "speed: There is no such key"
echo '# mine' >"$work/node/etc/hull/config.toml"
kill "$installer"
wait "$installer" || fail "the installer did not end in order"
installer=
[ "$(tail -n 1 "$work/asked")" = "label node node-1 io.hull/ready-" ] || fail "the label stays"
[ "$(cat "$work/node/etc/hull/config.toml")" = '# mine' ] || fail "the node's configuration was replaced"
(cd "$work/image" && find . -type f -exec cmp {} "$work/node/{}" \;) || fail "the node has other files"

make --silent uninstall DESTDIR="$work/image" PREFIX=/usr/local >/dev/null
[ -z "$(find "$work/image" -type f)" ] || fail "uninstall leaves $(find "$work/image" -type f | head -n 3)"

if command -v containerd >/dev/null; then
  containerd --config deploy/containerd/config-v2.toml config dump | grep -q 'runtimes\.hull\]' || fail "containerd has no runtime hull"
fi
echo "deploy: ok"
