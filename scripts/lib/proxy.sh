# kube-proxy in a site, beside a stock kubelet: Services as on any node of a cluster.
# Sourced by edge-site, which has loaded the site.

. "$CHECKOUT/scripts/lib/controlplane.sh"
. "$CHECKOUT/scripts/lib/pki.sh"

pki=$STATE/clusters/$cluster/pki
use_version "$STATE/clusters/$cluster"

# Zeros leave the kernel's limits of connections alone: they are the machine's, and not to be set from here.
proxy_config() {
  cat <<C
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: $name
bindAddress: $address
healthzBindAddress: $address:10256
metricsBindAddress: 127.0.0.1:10249
clusterCIDR: $pod_subnet
clientConnection: {kubeconfig: $dir/proxy.kubeconfig}
iptables: {localhostNodePorts: false}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
C
}

proxy_answers() { curl -fs "http://$address:10256/healthz"; }

proxy_up() {
  local began=$SECONDS
  if [ ! -s "$dir/proxy.kubeconfig" ]; then
    certificate "proxy-$name" "/CN=system:kube-proxy"
    kubeconfig_of "proxy-$name" "https://$gateway:6443" "$dir/proxy.kubeconfig"
    rm "$pki/proxy-$name".*
  fi
  proxy_config >"$dir/proxy.yaml"
  daemon_pid "$dir/proxy.pid" >/dev/null ||
    start_daemon "$dir/proxy.pid" "$dir/proxy.log" nsenter --net="/run/netns/$netns" \
      "$(kubernetes_dir)/kube-proxy" --config "$dir/proxy.yaml"
  wait_for 30 proxy_answers || die "kube-proxy of site $name is not healthy after 30 s; see $dir/proxy.log"
  say "Services work in site $name ($((SECONDS - began)) s)"
}

proxy_down() { stop_daemon "$dir/proxy.pid"; }
