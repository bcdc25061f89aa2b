#!/usr/bin/env bash
# Checks the test bed itself, with stock kubelets: what the system tests take for granted. Two clusters
# and six sites at once; names start with "selfcheck".
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib/common.sh

one=selfcheck-1 two=selfcheck-2
a=$one-a b=$one-b c=$two-c n=$one-n v=$one-v w=$one-w

cluster() { scripts/dev-cluster "$1" --name "$2" "${@:3}" 2>/dev/null; }
site() { scripts/edge-site "$1" --name "$2" "${@:3}" 2>/dev/null; }
kubectl() { "$(scripts/dev-cluster programs)/kubectl" --kubeconfig "$(scripts/dev-cluster kubeconfig --name "$1")" "${@:2}"; }
fact() { site status "$1" | sed -n "s/^$2=//p"; }
milliseconds() { echo $(($(date +%s%N) / 1000000)); }

check() {
  local what=$1 began; shift
  began=$(milliseconds)
  "$@" || die "FAILED: $what"
  say "ok: $what ($(($(milliseconds) - began)) ms)"
}
not() { ! "$@" 2>/dev/null; }
soon() { wait_for 60 "$@"; }
all_down() { for name in $one $two; do cluster down $name; cluster assert-clean $name; done; for name in $a $b $c $n $v $w; do site down $name; site assert-clean $name; done; }

web() {
  kubectl "$1" apply -f - >/dev/null <<P
{ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "$2", "labels": { "app": "$2" } }, "spec": { "nodeName": "$2", "tolerations": [{ "operator": "Exists" }],
  "terminationGracePeriodSeconds": 0, "containers": [{ "name": "web", "image": "holdfast.dev/test/busybox:1", "command": ["httpd", "-f", "-p", "80", "-h", "/etc"],
  "readinessProbe": { "httpGet": { "port": 80, "path": "/group" }, "periodSeconds": 1 },
  "volumeMounts": [{ "name": "memory", "mountPath": "/memory" }] }], "volumes": [{ "name": "memory", "emptyDir": { "medium": "Memory" } }] } }
P
  kubectl "$1" wait pod "$2" --for condition=Ready --timeout 60s >/dev/null
}
absent() { [ -z "$(kubectl $one get "$@" --ignore-not-found)" ]; }
pod_ip() { kubectl "$1" get pod "$2" -o 'jsonpath={.status.podIP}'; }
# An exchange of a few bytes, so that silence is told from refusal by the time it takes: 1 is refused, 124 silent.
talks() { timeout 2 bash -c "exec 3<>/dev/tcp/$1/${2:-80}; printf 'GET /group HTTP/1.0\r\n\r\n' >&3; grep -q nogroup <&3" 2>/dev/null; }
silent() { local code=0; talks "$@" || code=$?; [ $code = 124 ]; }
node_is() { kubectl "$1" get node "$2" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' | grep -qx "$3"; }
running() { [ "$(site containers "$1")" = "$1/web" ]; }
restart_everything() { site up $b && site kubelet $b up; }

kill_by_hand() { # the crash of a machine's operator: processes gone or orphaned, files half there
  local pid
  for pid in $(grep -lzxsF -e "HOLDFAST_OWNER=$STATE/clusters/$two" -e "HOLDFAST_OWNER=$STATE/sites/$c" /proc/[0-9]*/environ | cut -d/ -f3); do
    [ "$(cat "/proc/$pid/comm")" = etcd ] || kill -KILL "$pid"
  done
  rm -f "$STATE/clusters/$two"/{etcd.pid,slot} "$STATE/sites/$c"/{index,address,slot,containerd.pid}
}

all_down
export HOLDFAST_CONTROLLER_MANAGER_ARGS=--node-monitor-grace-period=12s
# A stock kubelet also says Hostname, which comes first and does not resolve here.
export HOLDFAST_APISERVER_ARGS=--kubelet-preferred-address-types=InternalIP
check "a cluster" cluster up $one --no-site
check "the same again" cluster up $one --no-site
check "two more sites and another cluster at once" eval "
  site up $a --cluster $one & x=\$!; HOLDFAST_POD_SUBNET=28 site up $b --cluster $one & y=\$!
  cluster up $two --no-site && site up $c --cluster $two && wait \$x && wait \$y"
check "addresses differ" eval "[ \"\$(fact $a POD_SUBNET)\" != \"\$(fact $b POD_SUBNET)\" ]"
for name in $a $b $c; do check "a stock kubelet in $name" site kubelet $name up; done
check "a pod in $a is Ready" web $one $a
check "a pod in $b is Ready" web $one $b
check "a pod in $c is Ready" web $two $c
ip_a=$(pod_ip $one $a) ip_b=$(pod_ip $one $b)
check "this machine reaches $ip_a" talks "$ip_a"
check "kubectl exec" kubectl $one exec $a -- true
check "etcd is out of a site's reach" not site exec $a -- timeout 2 bash -c "exec 3<>/dev/tcp/$(fact $a GATEWAY)/2379"

check "Services in $a" site proxy $a up
api_from_pod() { kubectl $one exec $a -- timeout 2 sh -c 'echo | nc 10.96.0.1 443' >/dev/null; }
check "a pod reaches 10.96.0.1" soon api_from_pod
kubectl $one expose pod $a --type NodePort --port 80 >/dev/null
node_port() { kubectl $one get service $a -o 'jsonpath={.spec.ports[0].nodePort}'; }
check "a NodePort answers" soon talks "$(fact $a ADDRESS)" "$(node_port)"

check "a site behind NAT" site up $n --cluster $one --nat
dial() { site exec $n -- timeout 2 bash -c "exec 3<>/dev/tcp/$1/$2"; }
check "it reaches the API server" dial "$(fact $n GATEWAY)" 6443
check "it reaches the NodePort" dial "$(fact $a ADDRESS)" "$(node_port)"
site exec $n -- busybox httpd -f -p 80 -h /etc &
check "it reaches itself" soon dial "$(fact $n ADDRESS)" 80
check "nothing reaches into it" not talks "$(cat "$STATE/sites/$n/address")"
check "nothing knows its address" not talks "$(fact $n ADDRESS)"
check "cut behind NAT" site cut $n
check "it reaches nothing" not dial "$(fact $n GATEWAY)" 6443
check "restore behind NAT" site restore $n
check "it reaches the API server again" dial "$(fact $n GATEWAY)" 6443

pings() { site exec "$1" -- busybox ping -c 1 -w 3 "${@:2}" >/dev/null; }
check "a site with IPv6 alone" env HOLDFAST_SITE_IPV6=only scripts/edge-site up --name $v --cluster $one
check "it reaches the bridge" soon pings $v "$(fact $v GATEWAY6)"
check "it has no way by IPv4" not pings $v "$(fact $v GATEWAY)"
check "cut with IPv6" site cut $v
check "it reaches no bridge" not pings $v "$(fact $v GATEWAY6)"
check "a site behind a narrow way" env HOLDFAST_SITE_MTU=1280 scripts/edge-site up --name $w --cluster $one
check "small packets pass" soon pings $w -s 1200 "$(fact $w GATEWAY)"
check "large packets get lost" not pings $w -s 1300 "$(fact $w GATEWAY)"

pull() { site exec $a -- /usr/bin/ctr --address "$(fact $a RUNTIME | sed s#unix://##)" --namespace k8s.io images pull --hosts-dir "$STATE/sites/$a/registries" "$@" registry.holdfast.test/private/busybox:1 >/dev/null; }
check "a registry" site registry $a up
check "it wants a password" not pull
check "it gives an image" pull --user holdfast:secret

check "cut" site cut $a
check "cut twice" site cut $a
check "the cut is silent" silent "$ip_a"
check "the registry is away" not site exec $a -- timeout 2 bash -c "exec 3<>/dev/tcp/$(fact $a GATEWAY)/$((5000 + $(cat "$STATE/sites/$a/index")))"
check "the site itself works" site exec $a -- bash -c "$(declare -f talks); talks $ip_a"
check "the other site is not cut" talks "$ip_b"
check "the node is Unknown" soon node_is $one $a Unknown
check "restore" site restore $a
check "restore twice" site restore $a
check "the pod answers" talks "$ip_a"
check "the node is Ready" soon node_is $one $a True

boot=$(cat "$(fact $b BOOT_ID_FILE)")
established() { ss -Htn state established src "$(fact $b GATEWAY)" dst "$(fact $b ADDRESS)" | grep -c . ; }
before=$(established)
check "power cut" site powercut $b
check "its peers were not told" test "$(established)" -ge "$before"
check "no process, mount or group is left" eval "[ -z \"\$(ip netns pids hf-$b; grep -F $STATE/sites/$b /proc/self/mountinfo; find /sys/fs/cgroup -name hf-$b)\" ]"
check "another boot id" test "$boot" != "$(cat "$(fact $b BOOT_ID_FILE)")"
check "leases are kept" test -e "$STATE/sites/$b/ipam/hf-$b/$ip_b"
check "power on" restart_everything
check "the pod runs again" soon running $b

snapshot=$(mktemp)
check "backup" cluster backup $one "$snapshot"
kubectl $one create configmap later >/dev/null
check "restore of the backup" cluster restore $one "$snapshot"
rm -f "$snapshot"
check "what came later is gone" absent configmap later
check "kill of the API server" cluster kill $one apiserver
check "it is away" not kubectl $one get nodes
check "start" cluster start $one apiserver
check "it is back" kubectl $one get nodes
check "an empty cluster" cluster empty $one
check "the pods are gone" absent pod $a

kill_by_hand
check "down after a crash" cluster down $two
check "the site of the crashed cluster goes" site down $c
check "the other cluster lives" kubectl $one get nodes
check "down" cluster down $one
for name in $one $two; do check "$name leaves nothing" scripts/dev-cluster assert-clean --name $name; done
for name in $a $b $c $n $v $w; do check "$name leaves nothing" scripts/edge-site assert-clean --name $name; done
