# Installs what the test bed runs on, from Debian. Sourced after common.sh.

PACKAGES="etcd-server etcd-client containerd runc containernetworking-plugins iptables iproute2
  protobuf-compiler umoci skopeo busybox-static openssl jq strace procps util-linux gcc libc6-dev"

install_packages() {
  local missing=() package
  for package in $PACKAGES; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] || step "installing ${missing[*]}" apt_install "${missing[@]}"
}

apt_install() {
  apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
