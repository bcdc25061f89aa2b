# A stock kubelet as a site's agent: the healthy other node of a test, and what ours is compared with.
# Sourced by edge-site, which has loaded the site.

. "$CHECKOUT/scripts/lib/controlplane.sh"
. "$CHECKOUT/scripts/lib/pki.sh"

pki=$STATE/clusters/$cluster/pki
use_version "$STATE/clusters/$cluster"
admin() { "$(kubernetes_dir)/kubectl" --kubeconfig "$STATE/clusters/$cluster/admin.kubeconfig" "$@"; }
node_ready() { admin get node "$name" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' | grep -qx True; }

# The disk of the machine may be fuller than a node's should be: no eviction for that.
kubelet_config() {
  cat <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$socket
cgroupDriver: cgroupfs
clusterDomain: cluster.local
eventRecordQPS: 1000
eventBurst: 1000
cgroupRoot: /$netns
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
enforceNodeAllocatable: [pods]
podLogsDir: $dir/log/pods
staticPodPath: $dir/static-pods
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: Webhook}
evictionHard: {memory.available: 100Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}
imageGCHighThresholdPercent: 100
C
}

kubelet_up() {
  local group began=$SECONDS
  daemon_pid "$dir/containerd.pid" >/dev/null || die "site $name has no runtime; start it: scripts/edge-site up --name $name"
  if [ ! -s "$dir/kubelet.kubeconfig" ]; then
    certificate "node-$name" "/O=system:nodes/CN=system:node:$name"
    kubeconfig_of "node-$name" "https://$gateway:6443" "$dir/kubelet.kubeconfig"
    rm "$pki/node-$name".*
  fi
  kubelet_config >"$dir/kubelet.yaml"
  for group in /sys/fs/cgroup/*/; do
    [ "$(stat -f -c %T "$group")" != cgroupfs ] || mkdir -p "$group$netns"
  done
  # The group has no processors of its own until it is given some.
  [ ! -d "/sys/fs/cgroup/cpuset/$netns" ] || for group in cpus mems; do
    cat "/sys/fs/cgroup/cpuset/cpuset.$group" >"/sys/fs/cgroup/cpuset/$netns/cpuset.$group"
  done
  daemon_pid "$dir/kubelet.pid" >/dev/null ||
    start_daemon "$dir/kubelet.pid" "$dir/kubelet.log" nsenter --net="/run/netns/$netns" \
      "$(kubernetes_dir)/kubelet" --config "$dir/kubelet.yaml" --kubeconfig "$dir/kubelet.kubeconfig" \
      --root-dir "$dir/kubelet" --cert-dir "$dir/kubelet-pki" --hostname-override "$name" --node-ip "$address"
  wait_for 60 node_ready || die "node $name is not Ready after 60 s; see $dir/kubelet.log"
  say "node $name is Ready ($((SECONDS - began)) s)"
}

# Its containers stay, as when any kubelet goes; the site's down takes them.
kubelet_down() {
  stop_daemon "$dir/kubelet.pid"
  [ ! -e "$STATE/clusters/$cluster/admin.kubeconfig" ] || admin delete node "$name" --ignore-not-found --wait=false >/dev/null
}
