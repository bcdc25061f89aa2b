# Installs what the test bed runs on, from Debian. Sourced after common.sh.

PACKAGES="etcd-server etcd-client containerd runc containernetworking-plugins iptables iproute2
  protobuf-compiler umoci skopeo busybox-static openssl jq curl strace dbus-daemon systemd procps util-linux e2fsprogs gcc libc6-dev"

# install_packages [PACKAGE...]: of the given ones, else of all, those that are missing.
install_packages() {
  local wanted missing program
  command -v dpkg-query >/dev/null || die "this machine has no dpkg: the test bed needs Debian 12 or newer"
  wanted=$(printf '%s\n' "${@:-$PACKAGES}" | tr -s ' ' '\n' | sed '/^$/d' | sort)
  # Another vendor's packages of these would be removed for Debian's.
  for program in containerd runc; do ! command -v "$program" >/dev/null || wanted=$(grep -vx "$program" <<<"$wanted"); done
  # shellcheck disable=SC2086
  missing=$(comm -23 <(echo "$wanted") <({ dpkg-query -W -f '${Package} ${Status}\n' $wanted 2>/dev/null || true; } |
    awk '/ok installed/ { print $1 }' | sort))
  # shellcheck disable=SC2086
  [ -z "$missing" ] || step "installing $(tr '\n' ' ' <<<"$missing")" apt_install $missing
}

apt_install() {
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
