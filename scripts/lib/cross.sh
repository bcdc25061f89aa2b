# Compiles the programs of an edge node for machines that are older than this one, or of another kind.
# Sourced after common.sh and packages.sh.

# Compiler and linker of C for any glibc: PyPI's ziglang.
ZIG_VERSION=0.17.1
ZIG_SHA256=ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54
# Ubuntu 20.04 and Debian 11 have 2.31.
GLIBC_MAX=2.28
# A rustc whose standard library can be had for ARM is Debian sid's. Its folder is cached.
RUST_ROOT=$CACHE/rust-sid

# Prints the mirror that this machine's own packages come from.
debian_mirror() { apt-get indextargets --format '$(REPO_URI)' | awk '!/security/ && !found++'; }

# rust_target ARCHITECTURE: rustc's name for Debian's.
rust_target() {
  case $1 in
    amd64) echo x86_64-unknown-linux-gnu ;;
    arm64) echo aarch64-unknown-linux-gnu ;;
    armhf) echo armv7-unknown-linux-gnueabihf ;;
    *) die "there are no packages for '$1'; there are for amd64, arm64 and armhf" ;;
  esac
}

# Debian's armhf is ARMv7 with a VFPv3 of 16 registers, and may have no NEON.
zig_target() {
  case $1 in
    amd64) echo "x86_64-linux-gnu.$GLIBC_MAX" ;;
    arm64) echo "aarch64-linux-gnu.$GLIBC_MAX" ;;
    armhf) echo "arm-linux-gnueabihf.$GLIBC_MAX -mcpu=generic+v7a+vfp3d16-neon-d32-vfp3" ;;
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

# Debian sid with rustc, and what programs for ARM need to run in it.
install_rust_root() {
  [ ! -e "$RUST_ROOT/whole" ] || return 0
  under_lock packages install_packages debootstrap
  under_lock rust-root install_rust_root_now
}

install_rust_root_now() {
  [ ! -e "$RUST_ROOT/whole" ] || return 0
  rm -rf "$RUST_ROOT"
  mkdir -p "$CACHE"
  step "making a Debian sid in $RUST_ROOT" debootstrap --variant=minbase sid "$RUST_ROOT" "$(debian_mirror)" >&2
  step "installing rustc for ARM there" install_rust
  touch "$RUST_ROOT/whole"
}

install_rust() {
  # The lists of a mirror may be old.
  echo 'Acquire::Check-Valid-Until "false";' >"$RUST_ROOT/etc/apt/apt.conf.d/90holdfast"
  in_rust_root bash -euc '
    export DEBIAN_FRONTEND=noninteractive
    dpkg --add-architecture arm64
    dpkg --add-architecture armhf
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends rustc cargo libstd-rust-dev:arm64 libstd-rust-dev:armhf gcc libc6-dev \
      protobuf-compiler ca-certificates libc6:arm64 libc6:armhf libgcc-s1:arm64 libgcc-s1:armhf >/dev/null
    apt-get clean'
}

# in_rust_root CMD...: there, in a namespace of mounts that ends with it. The checkout, the cache and what cargo has
# fetched are where they are here.
in_rust_root() {
  need_root
  unshare --mount --propagation private bash -euc '
    root=$1 shared=$2; shift 2
    for path in /proc /dev /dev/pts /etc/resolv.conf $shared; do
      if [ -d "$path" ]; then mkdir -p "$root$path"; else touch "$root$path"; fi
      mount --bind "$path" "$root$path"
    done
    exec chroot "$root" env PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"' \
    - "$RUST_ROOT" "$CACHE $(cargo_home) $CHECKOUT ${source_dir:-}" "$@"
}

cargo_home() { echo "${CARGO_HOME:-$HOME/.cargo}"; }

# --- cargo -----------------------------------------------------------------------------------------------

# cargo_for ARCHITECTURE SOURCE TARGET_DIR ARGS...: cargo in the folder SOURCE, for machines of that kind. What is
# made does not tell in which folders.
cargo_for() {
  local arch=$1 source_dir=$2 target_dir=$3 target env folders here=(in_rust_root)
  shift 3
  target=$(rust_target "$arch")
  env=${target//-/_}
  folders=("$source_dir=/holdfast" "$(cargo_home)=/cargo" "$target_dir=/target")
  [ "$arch" != "$(dpkg --print-architecture)" ] || here=()
  "${here[@]}" env -C "$source_dir" \
    CARGO_HOME="$(cargo_home)" CARGO_TARGET_DIR="$target_dir" CARGO_INCREMENTAL=0 \
    ZIG_GLOBAL_CACHE_DIR="$CACHE/zig-cache" ZIG_LOCAL_CACHE_DIR="$CACHE/zig-cache" \
    HOLDFAST_ZIG="$(zig_dir)/ziglang/zig" HOLDFAST_ZIG_TARGET="$(zig_target "$arch")" \
    "CC_$env=$CHECKOUT/scripts/lib/zig-cc" "AR_$env=$CHECKOUT/scripts/lib/zig-ar" \
    "CFLAGS_$env=$(printf -- '-ffile-prefix-map=%s ' "${folders[@]}")" \
    "CARGO_TARGET_${env^^}_LINKER=$CHECKOUT/scripts/lib/zig-cc" \
    "CARGO_TARGET_${env^^}_RUSTFLAGS=$(printf -- '--remap-path-prefix=%s ' "${folders[@]}")" \
    cargo "$@" --target "$target" --locked --offline
}

# run_program ARCHITECTURE PROGRAM ARGS...: here, of another architecture in qemu's emulator.
run_program() {
  local arch=$1 emulator=()
  shift
  case $arch in
    "$(dpkg --print-architecture)") ;;
    arm64) emulator=(qemu-aarch64-static -L "$RUST_ROOT") ;;
    armhf) emulator=(qemu-arm-static -L "$RUST_ROOT") ;;
  esac
  if [ ${#emulator[@]} -gt 0 ] && ! command -v "${emulator[0]}" >/dev/null; then
    under_lock packages install_packages qemu-user-static
  fi
  "${emulator[@]}" "$@"
}
