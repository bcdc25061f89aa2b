# Compiles the programs of an edge node for machines that are older than this one.
# Sourced after common.sh and packages.sh.

# Compiler and linker of C for any glibc: PyPI's ziglang.
ZIG_VERSION=0.17.1
ZIG_SHA256=ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54
# Ubuntu 20.04 and Debian 11 have 2.31.
GLIBC_MAX=2.28
DEBIAN=http://deb.debian.org/debian

# rust_target ARCHITECTURE: rustc's name for Debian's.
rust_target() {
  case $1 in
    amd64) echo x86_64-unknown-linux-gnu ;;
    *) die "there are no packages for '$1'; there are for amd64" ;;
  esac
}

zig_target() {
  case $1 in
    amd64) echo "x86_64-linux-gnu.$GLIBC_MAX" ;;
  esac
}

# --- what compiles -------------------------------------------------------------------------------------

zig_dir() { printf '%s/zig-%s\n' "$CACHE" "$ZIG_VERSION"; }

install_zig() {
  [ ! -x "$(zig_dir)/ziglang/zig" ] || return 0
  python3 -m pip --version >/dev/null 2>&1 || under_lock packages install_packages python3-pip
  under_lock zig install_zig_now
}

install_zig_now() {
  local work
  [ ! -x "$(zig_dir)/ziglang/zig" ] || return 0
  mkdir -p "$CACHE"
  work=$(mktemp -d "$CACHE/zig.XXXXXX")
  step "fetching zig $ZIG_VERSION" python3 -m pip download --quiet --no-deps --only-binary :all: \
    --platform manylinux_2_12_x86_64 --dest "$work" "ziglang==$ZIG_VERSION"
  sha256sum --quiet --check <<<"$ZIG_SHA256  $(echo "$work"/*.whl)" || die "the package ziglang $ZIG_VERSION is not what it was"
  python3 -m zipfile -e "$work"/*.whl "$work/out"
  chmod +x "$work/out/ziglang/zig"
  rm -rf "$(zig_dir)"
  mv "$work/out" "$(zig_dir)"
  rm -rf "$work"
}

cargo_home() { echo "${CARGO_HOME:-$HOME/.cargo}"; }

# --- cargo -----------------------------------------------------------------------------------------------

# cargo_for ARCHITECTURE SOURCE TARGET_DIR ARGS...: cargo in the folder SOURCE, for machines of that kind. What is
# made does not tell in which folders.
cargo_for() {
  local arch=$1 source_dir=$2 target_dir=$3 target env folders
  shift 3
  target=$(rust_target "$arch")
  env=${target//-/_}
  folders=("$source_dir=/holdfast" "$(cargo_home)=/cargo" "$target_dir=/target")
  env -C "$source_dir" \
    CARGO_HOME="$(cargo_home)" CARGO_TARGET_DIR="$target_dir" CARGO_INCREMENTAL=0 \
    ZIG_GLOBAL_CACHE_DIR="$CACHE/zig-cache" ZIG_LOCAL_CACHE_DIR="$CACHE/zig-cache" \
    HOLDFAST_ZIG="$(zig_dir)/ziglang/zig" HOLDFAST_ZIG_TARGET="$(zig_target "$arch")" \
    "CC_$env=$CHECKOUT/scripts/lib/zig-cc" "AR_$env=$CHECKOUT/scripts/lib/zig-ar" \
    "CFLAGS_$env=$(printf -- '-ffile-prefix-map=%s ' "${folders[@]}")" \
    "CARGO_TARGET_${env^^}_LINKER=$CHECKOUT/scripts/lib/zig-cc" \
    "CARGO_TARGET_${env^^}_RUSTFLAGS=$(printf -- '--remap-path-prefix=%s ' "${folders[@]}")" \
    cargo "$@" --target "$target" --locked --offline
}
