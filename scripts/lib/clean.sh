# Removes what processes leave behind, and tells what is left. Sourced after common.sh.

# mounts_below DIR...: what is mounted at or under, deepest first.
mounts_below() {
  local root
  for root in "$@"; do
    awk -v root="$root" '$5 == root || index($5, root "/") == 1 { print $5 }' /proc/self/mountinfo
  done | sort -r
}

unmount_below() {
  local mount
  mounts_below "$@" | while read -r mount; do umount -l "$mount" 2>/dev/null || true; done
}

# remove_folder DIR...: never through a mount, which might be somebody's data.
remove_folder() {
  unmount_below "$@"
  [ -z "$(mounts_below "$@")" ] || die "still mounted: $(mounts_below "$@" | tr '\n' ' ')"
  rm -rf --one-file-system "$@"
}

# cgroups_of ROOT: folders of the control group ROOT in every hierarchy, deepest first.
cgroups_of() {
  find /sys/fs/cgroup -depth -type d \( -path "/sys/fs/cgroup$1" -o -path "/sys/fs/cgroup/*$1" -o -path "/sys/fs/cgroup*$1/*" \) 2>/dev/null || true
}

remove_cgroups() {
  local group
  cgroups_of "$1" | while read -r group; do rmdir "$group" 2>/dev/null || true; done
}

# links_of DIR: interfaces made for the cluster that lives in DIR carry it as their alias.
links_of() {
  local file
  { grep -lsxF "$1" /sys/class/net/*/ifalias || true; } | while read -r file; do basename "$(dirname "$file")"; done
}

# tell_left KIND: names the kind of each thing on stdin.
tell_left() {
  local line
  while read -r line; do [ -z "$line" ] || printf '%s: %s\n' "$1" "$line"; done
}

# cluster_leftovers DIR
cluster_leftovers() {
  owned_processes "$1" | tell_left process
  links_of "$1" | tell_left interface
  mounts_below "$1" | tell_left mount
  [ ! -e "$1" ] || echo "folder: $1"
}

# site_leftovers DIR NAME; NAME is the site's
site_leftovers() {
  local netns=hf-$2 router=hfr-$2 run=$RUN/$2 folder
  { owned_processes "$1"; owned_processes "$1/registry"; } | tell_left process
  [ ! -e "/run/netns/$netns" ] || { echo "network namespace: $netns"; ip netns pids "$netns" | tell_left process; }
  [ ! -e "/run/netns/$router" ] || echo "network namespace: $router"
  links_of "$1" | tell_left interface
  mounts_below "$1" "$run" | tell_left mount
  cgroups_of "/$netns" | tell_left cgroup
  stray_routes | tell_left route
  cni_results "$run" | tell_left "CNI result"
  # There is none where no stock kubelet or agent ever ran.
  { find /var/log/containers -lname "$1/*" 2>/dev/null || true; } | tell_left "log link"
  for folder in "$1" "$run"; do [ ! -e "$folder" ] || echo "folder: $folder"; done
}

# Routes through an address that no site has.
stray_routes() {
  local subnet via site known=' '
  for site in "$STATE"/sites/*/; do [ ! -s "$site/address" ] || known+="$(cat "$site/address") "; done
  ip -json route show | jq -r '.[] | select(.gateway != null and (.dev | test("^hf[0-9]+$"))) | "\(.dst) \(.gateway)"' |
    while read -r subnet via; do [[ $known = *" $via "* ]] || echo "$subnet via $via"; done
}

# cni_results RUN: libcni's cache is one for the machine; its files name the pod's namespace, which is
# in the site's run folder.
cni_results() { grep -lsF "$1/" /var/lib/cni/results/* || true; }

# assert_clean FUNCTION DIR WHAT
assert_clean() {
  local left
  left=$("$1" "$2" "$3")
  [ -z "$left" ] || die "$3 has left behind:"$'\n'"$left"
}
