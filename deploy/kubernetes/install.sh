#!/bin/sh
# Runs in the image of deploy/Containerfile, as daemonset.yaml says: puts Hull's files on the node, and labels the node io.hull/ready as
# long as it can run pods with Hull: the files are in order, there is /dev/kvm, and containerd has the runtime. It changes nothing of
# containerd's and restarts nothing.
#
# FILES, ROOT and INTERVAL_S are for tests: what is installed, where, and how often the node is looked at.
set -eu

files=${FILES:-/hull}
root=${ROOT:-}
label=io.hull/ready
node=${NODE_NAME:?is set by daemonset.yaml}

# Each file replaces its older one in one step: who runs that keeps it.
install_files() {
  (cd "$files" && find . -type f) | while IFS= read -r file; do
    mkdir -p "$root/${file%/*}"
    cp -p "$files/$file" "$root/$file.new"
    mv -f "$root/$file.new" "$root/$file"
  done
}

# Prints why the node can't run pods with Hull; nothing if it can.
reason() {
  if [ ! -e "$root/host/dev/kvm" ]; then
    echo "the node has no /dev/kvm"
  elif ! grep -Eqrs '^[^#]*runtimes\.hull\]' "$root/host/etc/containerd"; then
    echo "containerd's configuration has no runtime hull yet (deploy/containerd)"
  elif ! said=$("$root/usr/local/bin/containerd-shim-kata-v2" -info </dev/null 2>&1 >/dev/null); then
    echo "$said"
  fi
}

unlabel() { kubectl label node "$node" "$label-" >/dev/null; }

trap 'unlabel; exit 0' TERM INT
install_files
before=unknown
while :; do
  now=$(reason)
  if [ "$now" != "$before" ]; then
    if [ -n "$now" ]; then
      echo "$node is not ready: $now"
      unlabel && before=$now || echo "the label of $node can't be removed; trying again"
    else
      echo "$node is ready"
      kubectl label node "$node" --overwrite "$label=true" >/dev/null && before=$now || echo "$node can't be labelled; trying again"
    fi
  fi
  sleep "${INTERVAL_S:-30}" &
  wait $! || true
done
