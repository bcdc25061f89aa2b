# A router before a site, as at home: it hides the site behind its own address, and lets nobody in.
# Sourced by edge-site.

# The same behind every router: nothing outside has a route there.
NAT_INSIDE=192.168.77.2
NAT_ROUTER=192.168.77.1

in_router() { nsenter --net="/run/netns/$router" "$@"; }

# make_router: from the bridge to the site. The veth on the bridge is the router's.
make_router() {
  if [ ! -e "/run/netns/$router" ]; then
    ip netns add "$router"
    in_router ip link set lo up
    in_router sysctl -qw net.ipv4.ip_forward=1
  fi
  if ! in_router ip link show eth0 >/dev/null 2>&1; then
    ip link add "$veth" type veth peer name eth0 netns "$router"
    in_router ip addr add "$outside/24" dev eth0
    in_router ip link set eth0 up
    in_router ip route add default via "$gateway"
  fi
  if ! in_site ip link show eth0 >/dev/null 2>&1; then
    in_router ip link add inside type veth peer name eth0 netns "$netns"
    in_router ip addr add "$NAT_ROUTER/24" dev inside
    in_router ip link set inside up
    in_site ip addr add "$NAT_INSIDE/24" dev eth0
    in_site ip link set eth0 up
    in_site ip route add default via "$NAT_ROUTER"
  fi
  [ -z "$mtu" ] || make_bottleneck
  in_router iptables-restore <<R
*nat
-A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
*filter
-A FORWARD -i eth0 -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP
${mtu:+-A OUTPUT -p icmp -j DROP}
COMMIT
R
}

# make_bottleneck: larger packets get lost in both directions, and nobody says so. The router's end of the link
# takes none from the site and sends none there; what ICMP would tell is dropped (above). The site believes in 1500
# bytes, and hands over no packets that are cut only later, which would pass.
make_bottleneck() {
  in_router ip link set inside mtu "$mtu"
  in_site ip link set eth0 gso_max_segs 1
}
