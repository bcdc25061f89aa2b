# Builds a newer container runtime than Debian's from its Go modules: containerd, its shim, ctr and runc.
# Sourced after common.sh and packages.sh.

RUNTIME_MODULE=$CHECKOUT/tests/runtime
CONTAINERD_MODULE=github.com/containerd/containerd/v2
CONTAINERD_PROGRAMS="containerd containerd-shim-runc-v2 ctr"
CONTAINERD_GO_MOD_VERSION=$(sed -nE "s#^[[:space:]]*$CONTAINERD_MODULE v([^ ]+).*#\1#p" "$RUNTIME_MODULE/go.mod")

# runtime_dir VERSION: prints the folder with the programs of that containerd.
runtime_dir() {
  printf '%s/containerd-%s-%s\n' "$CACHE" "$1" "$(cat "$RUNTIME_MODULE"/go.{mod,sum} | sha256sum | cut -c1-12)"
}

# build_runtime VERSION
build_runtime() {
  [[ $1 =~ ^2\.[0-9]+\.[0-9]+$ ]] || die "'$1' is not a version of containerd such as $CONTAINERD_GO_MOD_VERSION"
  [ ! -x "$(runtime_dir "$1")/containerd" ] || return 0
  command -v go >/dev/null || die "go is needed to build containerd $1; install Go 1.25 or newer"
  under_lock packages install_packages libseccomp-dev pkg-config gcc libc6-dev
  under_lock runtime build_runtime_now "$1"
}

build_runtime_now() {
  local work dir
  dir=$(runtime_dir "$1")
  [ ! -x "$dir/containerd" ] || return 0
  mkdir -p "$CACHE"
  work=$(mktemp -d "$CACHE/build-runtime.XXXXXX")
  step "building containerd $1, minutes, once" compile_runtime "$work" "$1"
  rm -rf "$dir"
  mv "$work/out" "$dir"
  rm -rf "$work"
}

# compile_runtime WORK VERSION: into WORK/out.
compile_runtime() {
  local program
  cp "$RUNTIME_MODULE"/go.{mod,sum} "$1"
  cd "$1" || exit
  [ "$2" = "$CONTAINERD_GO_MOD_VERSION" ] || go get "$CONTAINERD_MODULE@v$2"
  mkdir out
  for program in $CONTAINERD_PROGRAMS; do
    CGO_ENABLED=0 go build -trimpath -tags "no_btrfs no_zfs no_devmapper" \
      -ldflags "-s -w -X $CONTAINERD_MODULE/version.Version=v$2" -o "out/$program" "$CONTAINERD_MODULE/cmd/$program"
  done
  CGO_ENABLED=1 go build -trimpath -tags seccomp -ldflags "-s -w" -o out/runc github.com/opencontainers/runc
}
