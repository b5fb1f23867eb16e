# shellcheck shell=bash
# Writes OCI image layouts with nothing but tar, gzip and coreutils. Sourced by the scripts beside it.
#   image_begin DIRECTORY              an empty layout
#   image_layer ROOT [TAR_OPTIONS...]  adds a layer from the directory ROOT
#   image_layer_file FILE              adds a layer from an uncompressed tar file
#   image_end CONFIG_JSON              writes configuration and manifest, tagged "latest"

image_begin() {
  image=$1 layers='' diff_ids=''
  rm -rf "$image"
  mkdir -p "$image/blobs/sha256"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$image/oci-layout"
}

# Moves a file into the store under its checksum; prints the descriptor's fields.
image_blob() {
  local file=$1 type=$2 sum
  sum=$(sha256sum "$file" | cut -d ' ' -f 1)
  printf '"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s' "$type" "$sum" "$(stat -c %s "$file")"
  mv "$file" "$image/blobs/sha256/$sum"
}

image_layer_file() {
  local descriptor
  diff_ids+="${diff_ids:+,}\"sha256:$(sha256sum "$1" | cut -d ' ' -f 1)\""
  gzip -n -6 <"$1" >"$image/layer.gz"
  descriptor=$(image_blob "$image/layer.gz" layer.v1.tar+gzip)
  layers+="${layers:+,}{$descriptor}"
}

# Sorted, with one time and root as the owner: the same directory gives the same layer.
image_layer() {
  local root=$1
  shift
  tar -C "$root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner "$@" -cf "$image/layer.tar" .
  image_layer_file "$image/layer.tar"
  rm "$image/layer.tar"
}

image_end() {
  local config manifest
  printf '{"architecture":"amd64","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":[%s]}}' \
    "$1" "$diff_ids" >"$image/config"
  config=$(image_blob "$image/config" config.v1+json)
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{%s},"layers":[%s]}' \
    "$config" "$layers" >"$image/manifest"
  manifest=$(image_blob "$image/manifest" manifest.v1+json)
  printf '{"schemaVersion":2,"manifests":[{%s,"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}' \
    "$manifest" >"$image/index.json"
}

# Puts busybox and a name for each of its programs into a root directory.
busybox_root() {
  local root=$1 busybox program
  busybox=$(command -v busybox) || { echo "busybox is missing; run: make setup" >&2; return 1; }
  if readelf -lW "$busybox" | grep -q INTERP; then
    echo "$busybox is not static; install busybox-static" >&2
    return 1
  fi
  mkdir -p "$root"/{bin,dev,etc,home,proc,root,run,sys,usr/bin,var/tmp}
  mkdir "$root/tmp"
  chmod 1777 "$root/tmp"
  cp "$busybox" "$root/bin/busybox"
  for program in $("$busybox" --list); do
    [ "$program" = busybox ] || ln -s busybox "$root/bin/$program"
  done
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
}
