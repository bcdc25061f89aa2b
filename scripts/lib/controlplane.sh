# Builds the Kubernetes programs from their Go module. Sourced after common.sh.

CONTROLPLANE=$CHECKOUT/tests/controlplane
GO_MOD_VERSION=$(sed -nE 's#^[[:space:]]*k8s.io/kubernetes v##p' "$CONTROLPLANE/go.mod")
KUBERNETES_VERSION=${HOLDFAST_KUBERNETES_VERSION:-$GO_MOD_VERSION}
KUBERNETES_PROGRAMS="kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl"

# keep_version DIR: the version of the first up is that of the cluster in DIR until down.
keep_version() {
  mkdir -p "$1"
  [ -s "$1/version" ] || echo "$KUBERNETES_VERSION" >"$1/version"
  [ -z "${HOLDFAST_KUBERNETES_VERSION:-}" ] || [ "$HOLDFAST_KUBERNETES_VERSION" = "$(cat "$1/version")" ] ||
    die "the cluster is of Kubernetes $(cat "$1/version"); take it down before starting $HOLDFAST_KUBERNETES_VERSION"
  use_version "$1"
}
use_version() { [ ! -s "$1/version" ] || KUBERNETES_VERSION=$(cat "$1/version"); }

# Prints the folder with the programs of the version.
kubernetes_dir() {
  printf '%s/kubernetes-%s-%s\n' "$CACHE" "$KUBERNETES_VERSION" "$(cat "$CONTROLPLANE"/{main.go,go.sum} | sha256sum | cut -c1-12)"
}

build_controlplane() {
  [ ! -x "$(kubernetes_dir)/kubernetes" ] || return 0
  command -v go >/dev/null || die "go is needed to build Kubernetes $KUBERNETES_VERSION; install Go 1.25 or newer"
  under_lock kubernetes build_controlplane_now
}

build_controlplane_now() {
  local work
  [ ! -x "$(kubernetes_dir)/kubernetes" ] || return 0
  mkdir -p "$CACHE"
  rm -rf "$CACHE"/build.*
  work=$(mktemp -d "$CACHE/build.XXXXXX")
  step "building Kubernetes $KUBERNETES_VERSION, minutes, once" compile_kubernetes "$work"
  rm -rf "$(kubernetes_dir)"
  mv "$work/out" "$(kubernetes_dir)"
  rm -rf "$work"
}

# compile_kubernetes WORK: into WORK/out.
compile_kubernetes() {
  local version=$KUBERNETES_VERSION component=k8s.io/component-base/version flags program
  cp "$CONTROLPLANE"/{main.go,go.mod,go.sum} "$1"
  cd "$1" || exit
  [ "$version" = "$GO_MOD_VERSION" ] || change_version "$version"
  flags="-s -w -X $component.gitVersion=v$version -X $component.gitTreeState=clean -X $component.gitMajor=1"
  flags+=" -X $component.gitMinor=$(cut -d. -f2 <<<"$version")"
  mkdir out
  CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o out/kubernetes .
  for program in $KUBERNETES_PROGRAMS; do ln -s kubernetes "out/$program"; done
}

# Rewrites the module for another version; what it needs indirectly is worked out anew.
change_version() {
  # The kubelet takes a context since 1.34.
  [[ $1 != 1.33.* ]] || sed -i 's/(context.Background())/()/; /^\t"context"$/d' main.go
  sed -i "/\/\/ indirect/d; s#v$GO_MOD_VERSION\$#v$1#; s#v0\.${GO_MOD_VERSION#1.}\$#v0.${1#1.}#" go.mod
  go mod tidy
}
