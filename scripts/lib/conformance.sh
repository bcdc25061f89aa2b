# Builds Kubernetes' end-to-end suite from its Go module, and stand-ins for the images its tests run.
# Sourced after common.sh, controlplane.sh and images.sh.

SUITE=$CHECKOUT/tests/conformance
SUITE_VERSION=$(sed -nE 's#^[[:space:]]*k8s.io/kubernetes v##p' "$SUITE/go.mod")
# Where the recipes of the suite's images say they are from.
# shellcheck disable=SC2034
E2E_IMAGES=registry.k8s.io/e2e-test-images

# Prints the folder with the suite's programs.
suite_dir() {
  printf '%s/conformance-%s-%s\n' "$CACHE" "$SUITE_VERSION" "$(cat "$SUITE"/{programs.go,go.sum} | sha256sum | cut -c1-12)"
}

build_suite() {
  [ ! -x "$(suite_dir)/nnp" ] || return 0
  command -v go >/dev/null || die "go is needed to build Kubernetes' test suite; install Go 1.25 or newer"
  under_lock kubernetes build_suite_now
}

build_suite_now() {
  local work
  [ ! -x "$(suite_dir)/nnp" ] || return 0
  mkdir -p "$CACHE"
  work=$(mktemp -d "$CACHE/build.XXXXXX")
  step "building Kubernetes' test suite $SUITE_VERSION, minutes, once" compile_suite "$work"
  rm -rf "$(suite_dir)"
  mv "$work" "$(suite_dir)"
}

# compile_suite FOLDER. The flags are those of the control plane: most packages are compiled already then.
compile_suite() {
  local test=k8s.io/kubernetes/test
  cd "$SUITE" || exit
  export CGO_ENABLED=0
  go test -c -trimpath -ldflags "-s -w" -o "$1/e2e.test" $test/e2e
  go build -trimpath -ldflags "-s -w" -o "$1/ginkgo" github.com/onsi/ginkgo/v2/ginkgo
  go build -trimpath -ldflags "-s -w" -o "$1/agnhost" $test/images/agnhost
  go build -trimpath -ldflags "-s -w" -o "$1/nnp" $test/images/nonewprivs
}

# Builds what is missing and prints the archives, one a line.
suite_images() { image_archives "$SUITE/images" "$(suite_dir) $(cat "${BASH_SOURCE[0]}" "$SUITE/sh.c")"; }

# suite_root DIR: as busybox_root, with a shell that hands on variables which are no names, such as a-b.
suite_root() {
  busybox_root "$1"
  rm "$1/bin/sh"
  gcc -static -Os -s -o "$1/bin/sh" "$SUITE/sh.c"
}

# with_libraries DIR PROGRAM: the program and what it is linked with, as they are on this machine.
with_libraries() {
  local file
  mkdir -p "$1/usr/bin"
  cp -L "$2" "$1/usr/bin/"
  for file in $(linked_with "$2") /lib/*/libnss_{files,dns}.so.2; do
    mkdir -p "$1$(dirname "$file")"
    cp -Ln "$file" "$1$file"
  done
  printf 'hosts: files dns\n' >"$1/etc/nsswitch.conf"
}
