# Builds the Kubernetes programs from their Go module. Sourced after common.sh.

# The version the tests run against, unless HOLDFAST_KUBERNETES_VERSION says another.
KUBERNETES_VERSION=${HOLDFAST_KUBERNETES_VERSION:-1.35.4}
KUBERNETES_PROGRAMS="kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl"

# Prints the folder with the programs of the version.
kubernetes_dir() {
  local key
  key=$(cat "$CHECKOUT"/tests/controlplane/{main.go,go.sum} | sha256sum | cut -c1-12)
  printf '%s/kubernetes-%s-%s\n' "$CACHE" "$KUBERNETES_VERSION" "$key"
}

build_kubernetes() {
  [ -x "$(kubernetes_dir)/kubernetes" ] && return
  command -v go >/dev/null || die "go is needed to build Kubernetes $KUBERNETES_VERSION; install Go 1.25 or newer"
  step "building Kubernetes $KUBERNETES_VERSION (minutes, once)" under_lock kubernetes build_kubernetes_now
}

build_kubernetes_now() {
  local dir work version=$KUBERNETES_VERSION flags program
  dir=$(kubernetes_dir)
  [ -x "$dir/kubernetes" ] && return
  mkdir -p "$CACHE"
  work=$(mktemp -d "$CACHE/build.XXXXXX")
  cp "$CHECKOUT"/tests/controlplane/{main.go,go.mod,go.sum} "$work"
  flags="-s -w -X k8s.io/component-base/version.gitVersion=v$version"
  flags+=" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitTreeState=clean"
  flags+=" -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$version")"
  (
    cd "$work"
    if ! grep -q "k8s.io/kubernetes v$version" go.mod; then
      sed -i -E "s#(k8s.io/kubernetes) v[0-9.]+#\1 v$version#; s#(=> k8s.io/[a-z-]+) v0\.[0-9.]+#\1 v0.${version#1.}#" go.mod
      go mod tidy
    fi
    mkdir out
    CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o out/kubernetes .
  )
  for program in $KUBERNETES_PROGRAMS; do ln -s kubernetes "$work/out/$program"; done
  rm -rf "$dir"
  mv "$work/out" "$dir"
  rm -rf "$work"
}
