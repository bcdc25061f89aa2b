# Installs a package into a Debian 11, with its oldest glibc, dpkg and systemd that are supported. Nothing runs
# there: what happens beside an agent that runs, the system tests test. Sourced after cross.sh.

OLDEST=bullseye
OLDEST_ROOT=$CACHE/debian-$OLDEST

install_oldest_root() {
  [ -e "$OLDEST_ROOT/whole" ] && return
  under_lock packages install_packages debootstrap
  under_lock "$OLDEST" install_oldest_root_now
}

install_oldest_root_now() {
  [ -e "$OLDEST_ROOT/whole" ] && return
  rm -rf "$OLDEST_ROOT"
  mkdir -p "$CACHE"
  step "making a Debian 11 in $OLDEST_ROOT" debootstrap --variant=minbase --include=systemd "$OLDEST" "$OLDEST_ROOT" "$(debian_mirror)" >&2
  touch "$OLDEST_ROOT/whole"
}

# check_package DEB
check_package() {
  local root
  need_root
  install_oldest_root
  root=$(mktemp -d "$CACHE/install.XXXXXX")
  cp -a --reflink=auto "$OLDEST_ROOT/." "$root"
  cp "$1" "$root/this.deb"
  another_version "$1" "$root/another.deb"
  unshare --mount --propagation private bash -euc '
    mount --bind /proc "$1/proc"
    mount --rbind /sys "$1/sys"
    exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive bash -euc "$2"' \
    - "$root" "$INSTALLED" >"$root/log" 2>&1 ||
    die "the package does not do in Debian 11 what it should, see $root:"$'\n'"$(tail -n 20 "$root/log")"
  rm -rf "$root"
  say "in Debian 11 the package installs, upgrades, and is removed and purged"
}

# another_version DEB FILE: one that is newer, with another agent.
another_version() {
  local work
  work=$(mktemp -d)
  dpkg-deb --raw-extract "$1" "$work"
  # Nobody reads what comes after the sections.
  echo >>"$work/usr/lib/holdfast/edgecore"
  sed -i 's/^Version: .*/&.another/' "$work/DEBIAN/control"
  dpkg-deb --root-owner-group -Znone --build "$work" "$2" >/dev/null
  rm -rf "$work"
}

INSTALLED='
set -x
dpkg --install /this.deb
test -z "$(dpkg --verify holdfast-edge)"
same() { cmp /usr/lib/holdfast/edgecore /usr/bin/edgecore; }
same
# The oldest systemd knows every line of the unit.
test -z "$(systemd-analyze verify --man=no edgecore.service 2>&1 | tee /dev/stderr)"
edgecore --version
edgecore config example >/tmp/example
edgeadm --version
edgeadm check >/tmp/check 2>&1 || test $? = 1
grep -q runtime /tmp/check
test ! -e /etc/systemd/system/multi-user.target.wants/edgecore.service
test ! -e /etc/holdfast
# A node with its state, beside the configuration of a cloudcore.
mkdir -p /etc/holdfast /var/lib/holdfast
touch /etc/holdfast/{edgecore.yaml,node.pem,ca.crt,cloudcore.yaml} /var/lib/holdfast/state.db
kept() { test -e /etc/holdfast/edgecore.yaml && test -e /etc/holdfast/node.pem && test -e /var/lib/holdfast/state.db; }
before=$(sha256sum </usr/bin/edgecore)
dpkg --install /another.deb
same
kept
test "$before" != "$(sha256sum </usr/bin/edgecore)"
dpkg --install /this.deb
same
test "$before" = "$(sha256sum </usr/bin/edgecore)"
dpkg --remove holdfast-edge
kept
test ! -e /usr/bin/edgecore
test ! -e /usr/bin/edgeadm
test ! -e /usr/lib/holdfast
dpkg --install /this.deb
same
kept
dpkg --purge holdfast-edge
test "$(ls -A /etc/holdfast)" = cloudcore.yaml
test ! -e /var/lib/holdfast
test ! -e /usr/bin/edgecore
test -z "$(dpkg-query --show holdfast-edge 2>/dev/null)"
'
