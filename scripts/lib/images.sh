# Builds the images of tests/images without a container engine or registry. Sourced after common.sh.
#
# A recipe sets name (words, if it has several names), optionally user, entrypoint and command (words),
# and make_root DIR.

# image_archives [FOLDER [MADE_OF]]: builds what is missing and prints the archives, one a line. MADE_OF
# names what the recipes of FOLDER use besides their own files.
image_archives() {
  local recipe key archive folder=${1:-$CHECKOUT/tests/images} made_of=${2:-}
  mkdir -p "$CACHE/images"
  for recipe in "$folder"/*/; do
    recipe=${recipe%/}
    key=$({ cat "$recipe"/* "$CHECKOUT/scripts/lib/images.sh"; printf %s "$made_of"; } | sha256sum | cut -c1-12)
    archive=$CACHE/images/$(basename "$recipe")-$key.tar
    [ -s "$archive" ] || under_lock images build_image "$recipe" "$archive"
    printf '%s\n' "$archive"
  done
}

build_image() {
  local recipe=$1 archive=$2 work
  [ ! -s "$archive" ] || return 0
  work=$(mktemp -d)
  step "building image $(basename "$recipe")" assemble "$recipe" "$work" "$archive.new"
  mv "$archive.new" "$archive"
  rm -rf "$work"
}

# assemble RECIPE WORK ARCHIVE. What the tools say is of interest only if one fails.
assemble() {
  local recipe=$1 work=$2 archive=$3 code
  set +e
  ( set -e; assemble_now ) >"$work/log" 2>&1
  code=$?
  set -e
  [ $code = 0 ] || { cat "$work/log" >&2; return $code; }
}

assemble_now() {
  local name='' user='' entrypoint='' command='' word config names
  . "$recipe/recipe"
  mkdir "$work/root"; chmod 755 "$work/root"
  make_root "$work/root"
  umoci init --layout "$work/oci"
  umoci new --image "$work/oci:x"
  umoci insert --rootless --image "$work/oci:x" "$work/root" /
  config=(--config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
  [ -z "$user" ] || config+=(--config.user "$user")
  for word in $entrypoint; do config+=(--config.entrypoint "$word"); done
  for word in $command; do config+=(--config.cmd "$word"); done
  umoci config --image "$work/oci:x" "${config[@]}"
  rm -f "$archive"
  names=()
  for word in $name; do names+=(--additional-tag "$word"); done
  skopeo copy --insecure-policy "${names[@]}" "oci:$work/oci:x" "docker-archive:$archive"
}

# linked_with PROGRAM: the files of the libraries it is linked with, and of their loader.
linked_with() { ldd "$1" | grep -oE '/[^ ]+'; }

busybox_root() {
  local applet
  mkdir -p "$1"/{bin,etc,tmp,root}
  chmod 1777 "$1/tmp"
  cp /bin/busybox "$1/bin/busybox"
  for applet in $(/bin/busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"; done
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$1/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$1/etc/group"
}
