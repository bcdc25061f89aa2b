# A site's way to the cluster by IPv6, beside IPv4 or in its place. Sourced by edge-site.

# name_ipv6: the addresses, made of the cluster's slot and the site's index.
name_ipv6() {
  # Not zero, which is written otherwise.
  prefix6=fd00:6866:$(printf '%x' $((slot + 1)))
  address6=$prefix6::$(printf '%x' "$index")
  gateway6=$prefix6::1
}

# make_ipv6: from the bridge to the site. The gateway's address stays with the bridge.
make_ipv6() {
  sysctl -qw "net.ipv6.conf.hf$slot.disable_ipv6=0" || die "this machine has no IPv6"
  in_site sysctl -qw net.ipv6.conf.all.disable_ipv6=0
  # Nobody else has these: they are usable at once.
  ip -6 addr replace "$gateway6/64" dev "hf$slot" nodad
  in_site ip -6 addr replace "$address6/64" dev eth0 nodad
  in_site ip -6 route replace default via "$gateway6" dev eth0
}
