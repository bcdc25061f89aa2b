# What cloudcore asked API servers for, compared with what it may ask for. Sourced after common.sh.

# used FOLDER: NAMESPACE GROUP/RESOURCE VERB of all audit logs in FOLDER; the namespace is - if there is none.
used() {
  cat "$1"/*.log | jq -r 'select(.annotations["authorization.k8s.io/decision"] == "allow" and .objectRef.resource) |
    "\(.objectRef.namespace // "-") \(.objectRef.apiGroup // "")/\(.objectRef.resource)\(if .objectRef.subresource then "/" + .objectRef.subresource else "" end) \(.verb)"' |
    sort -u
}

# granted: the same of the roles in the cluster; the namespace is * for the ClusterRole.
granted() {
  local namespace
  kubectl() { "$(kubectl_program)" --kubeconfig "$STATE/clusters/$HOLDFAST_TEST_CLUSTER/admin.kubeconfig" "$@"; }
  kubectl get clusterrole holdfast:cloudcore -o json | rules_of '*'
  for namespace in holdfast kube-node-lease; do
    kubectl get role holdfast:cloudcore --namespace "$namespace" -o json | rules_of "$namespace"
  done
}
rules_of() {
  jq -r --arg namespace "$1" '.rules[] | .apiGroups[] as $group | .resources[] as $resource | .verbs[] as $verb | "\($namespace) \($group)/\($resource) \($verb)"'
}

# compare_rights FOLDER: fails with what is granted and was not asked for.
compare_rights() {
  local all rights scope right verb unused=''
  all=$(used "$1")
  rights=$(granted)
  [ "$(grep -c . <<<"$all")" -gt 20 ] || die "the audit logs in $1 say too little: $all"
  while read -r scope right verb; do
    awk -v scope="$scope" -v right="$right" -v verb="$verb" \
      '(scope == "*" || $1 == scope) && $2 == right && $3 == verb { found = 1 } END { exit !found }' <<<"$all" ||
      unused+="$scope $right $verb"$'\n'
  done <<<"$rights"
  [ -z "$unused" ] || die "granted to cloudcore by helm/holdfast, and asked for in no test:"$'\n'"$unused"
}
