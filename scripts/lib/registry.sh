# An image registry on the cluster's side of a site's link, so that a cut takes it away too. Its images
# are pulled as registry.holdfast.test/..., with user "holdfast" and password "secret".
# Sourced by edge-site, which has loaded the site.

. "$CHECKOUT/scripts/lib/images.sh"

registry=$gateway:$((5000 + index))
# "holdfast" with "secret", by bcrypt, the only kind the registry takes.
# shellcheck disable=SC2016
REGISTRY_USER='holdfast:$2y$05$XYF2zuVmsNgo8.gVpcc8nuCjwFo10pq2L3dDA4eZx4WWaRBBsuyvS'

registry_config() {
  cat <<C
version: 0.1
storage: {filesystem: {rootdirectory: $folder/data}, delete: {enabled: true}}
http: {addr: "$registry", secret: test-bed}
auth: {htpasswd: {realm: test-bed, path: $folder/users}}
log: {level: warn}
C
}

registry_answers() { curl -fs -u holdfast:secret "http://$registry/v2/"; }

registry_up() {
  local folder=$dir/registry archive began=$SECONDS
  under_lock packages install_packages docker-registry curl
  mkdir -p "$folder" "$dir/registries/registry.holdfast.test"
  printf '%s\n' "$REGISTRY_USER" >"$folder/users"
  registry_config >"$folder/config.yml"
  # An owner of its own: it is not in the site, and survives the site's power cut.
  daemon_pid "$folder/registry.pid" >/dev/null ||
    dir=$folder start_daemon "$folder/registry.pid" "$folder/log" docker-registry serve "$folder/config.yml"
  wait_for 30 registry_answers || die "the registry does not answer at $registry after 30 s; see $folder/log"
  archive=$(image_archives | grep /busybox-)
  skopeo copy -q --insecure-policy --dest-tls-verify=false --dest-creds holdfast:secret \
    "docker-archive:$archive" "docker://$registry/private/busybox:1"
  printf 'server = "http://%s"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$registry" "$registry" \
    >"$dir/registries/registry.holdfast.test/hosts.toml"
  say "registry.holdfast.test/private/busybox:1 can be pulled ($((SECONDS - began)) s)"
}

registry_down() { stop_daemon "$dir/registry/registry.pid"; }
