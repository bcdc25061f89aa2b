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
  in_router iptables-restore <<R
*nat
-A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
*filter
-A FORWARD -i eth0 -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP
COMMIT
R
}
