# What every script of the test bed shares: where state lives, how to speak, how to own processes.
# Sourced, never run. The sourcing script has set -euo pipefail.
shopt -s inherit_errexit

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Survives the checkout: built control planes and images, keyed by what they are made from.
CACHE=${HOLDFAST_CACHE:-$HOME/.cache/holdfast}
# Everything that runs: one folder a cluster, one a site.
STATE=${HOLDFAST_STATE:-/var/lib/holdfast-dev}
# What a reboot would empty. Sockets live here: their paths must stay short.
RUN=/run/holdfast-dev
# How often a long step says that it still works.
PROGRESS_SECONDS=15

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() { say "$*"; exit 1; }

# --- long steps ------------------------------------------------------------------------------------

doing='' ticker=''
trap 'ended $?' EXIT

ended() {
  [ -z "$ticker" ] || kill "$ticker" 2>/dev/null || true
  [ "$1" = 0 ] || [ -z "$doing" ] || say "$doing: failed"
}

# step WHAT CMD...: says what is happening, that it still is, and how long it took. CMD runs under
# errexit: no || here, which would turn that off.
step() {
  local began=$SECONDS
  doing=$1; shift
  say "$doing ..."
  tick "$doing" "$began" >/dev/null 9>&- &
  ticker=$!
  "$@"
  kill "$ticker" 2>/dev/null || true
  say "$doing: $((SECONDS - began)) s"
  doing='' ticker=''
}

# Sleeps without a child process, which would hold the caller's pipes open after the end.
tick() {
  local pipe
  trap - EXIT
  exec {pipe}<> <(:)
  while kill -0 $$ 2>/dev/null; do
    read -r -t "$PROGRESS_SECONDS" -u "$pipe" || true
    say "$1 ... $((SECONDS - $2)) s"
  done
}

# The control plane's kubectl, else the machine's: where a cluster elsewhere is used, none was built.
kubectl_program() {
  local program
  program=$("$CHECKOUT/scripts/dev-cluster" programs)/kubectl
  [ -x "$program" ] || program=$(type -P kubectl) || die "kubectl is needed to use a cluster elsewhere; install it"
  printf '%s\n' "$program"
}

need_root() { [ "$(id -u)" = 0 ] || die "must run as root: it makes network namespaces and mounts"; }

# under_lock NAME CMD...: one at a time on this machine.
under_lock() {
  local name=$1; shift
  mkdir -p "$STATE/locks"
  ( doing='' ticker=''; trap 'ended $?' EXIT; flock 9; "$@" 9>&- ) 9>"$STATE/locks/$name"
}

# check_name NAME: names become file, namespace and interface names.
check_name() { [[ $1 =~ ^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || die "'$1' is not a name: use a-z, 0-9 and -, at most 40"; }

# wait_for SECONDS CMD...: until CMD succeeds.
wait_for() {
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt "$end" ] || return 1
    sleep 0.1
  done
}

# --- processes: known by pid and start time, so that a reused pid is never taken for ours ---------

# One field of /proc/PID/stat, counted behind the name, which may hold spaces: 1 state, 20 start time.
stat_field() { awk -v field="$2" '{ sub(/^.*\) /, ""); print $field }' "/proc/$1/stat" 2>/dev/null; }

# start_daemon PIDFILE LOG CMD... The daemon carries $dir in its environment, for owned_processes.
start_daemon() {
  local pidfile=$1 log=$2 pid; shift 2
  HOLDFAST_OWNER=$dir setsid "$@" </dev/null >>"$log" 2>&1 9>&- &
  pid=$!
  printf '%s %s\n' "$pid" "$(stat_field "$pid" 20)" >"$pidfile.new"
  mv "$pidfile.new" "$pidfile"
}

# daemon_pid PIDFILE: prints the pid if that very process still runs.
daemon_pid() {
  local pid began
  [ -s "$1" ] || return 1
  read -r pid began <"$1"
  [ -n "$began" ] && [ "$(stat_field "$pid" 20)" = "$began" ] || return 1
  [ "$(stat_field "$pid" 1)" != Z ] || return 1
  printf '%s\n' "$pid"
}

gone() { ! daemon_pid "$1"; }

# stop_daemon PIDFILE [SIGNAL]: asks, then insists.
stop_daemon() {
  local pid signal=${2:-TERM}
  if pid=$(daemon_pid "$1"); then
    kill "-$signal" "$pid" 2>/dev/null || true
    wait_for 10 gone "$1" || kill -KILL "$pid" 2>/dev/null || true
    wait_for 5 gone "$1" || die "process $pid does not die"
  fi
  rm -f "$1"
}

# owned_processes DIR: every process started on behalf of the cluster or site that lives in DIR, also
# when its pid file is lost.
owned_processes() {
  local file
  { grep -lzxsF "HOLDFAST_OWNER=$1" /proc/[0-9]*/environ || true; } | while read -r file; do
    file=${file#/proc/}; file=${file%/environ}
    [ "$file" = $$ ] || printf '%s\n' "$file"
  done
}

# kill_all FUNCTION: SIGKILL to every process that FUNCTION prints, at once, until it prints none.
kill_all() {
  local pids tries
  for ((tries = 0; tries < 50; tries++)); do
    pids=$("$1")
    [ -n "$pids" ] || return 0
    # The pids are words.
    # shellcheck disable=SC2086
    kill -KILL $pids 2>/dev/null || true
    sleep 0.1
  done
  die "processes do not die: $(tr '\n' ' ' <<<"$pids")"
}
