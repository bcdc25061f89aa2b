# Builds helm from its Go module. Sourced after common.sh.

HELM_MODULE=$CHECKOUT/tests/helm
HELM_VERSION=$(sed -nE 's#^[[:space:]]*helm.sh/helm/v3 v([^ ]+).*#\1#p' "$HELM_MODULE/go.mod")

# helm_program: prints where it is.
helm_program() {
  printf '%s/helm-%s-%s/helm\n' "$CACHE" "$HELM_VERSION" "$(cat "$HELM_MODULE"/go.{mod,sum} | sha256sum | cut -c1-12)"
}

build_helm() {
  [ ! -x "$(helm_program)" ] || return 0
  command -v go >/dev/null || die "go is needed to build helm $HELM_VERSION; install Go 1.25 or newer"
  # The lock is that of the control plane: both keep two processors busy, and share Go's build cache.
  under_lock kubernetes build_helm_now
}

build_helm_now() {
  local work folder
  folder=$(dirname "$(helm_program)")
  [ ! -x "$folder/helm" ] || return 0
  mkdir -p "$CACHE"
  work=$(mktemp -d "$CACHE/build-helm.XXXXXX")
  step "building helm $HELM_VERSION, a minute, once" compile_helm "$work"
  rm -rf "$folder"
  mv "$work" "$folder"
}

# compile_helm FOLDER. The flags are those of the control plane: most packages are compiled already then.
compile_helm() {
  cd "$HELM_MODULE" || exit
  CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X helm.sh/helm/v3/internal/version.version=v$HELM_VERSION" \
    -o "$1/helm" helm.sh/helm/v3/cmd/helm
}

# helm ARGS: with nothing of the user's own configuration.
helm() {
  HELM_CACHE_HOME=$CACHE/helm-home HELM_CONFIG_HOME=$CACHE/helm-home HELM_DATA_HOME=$CACHE/helm-home "$(helm_program)" "$@"
}
