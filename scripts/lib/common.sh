# What every script of the test bed shares: where state lives, how to speak, how to own processes.
# Sourced, never run. The sourcing script has set -euo pipefail.

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Survives the checkout: built control planes and images, keyed by what they are made from.
CACHE=${HOLDFAST_CACHE:-$HOME/.cache/holdfast}
# Everything that runs: one folder a cluster, one a site.
STATE=${HOLDFAST_STATE:-/var/lib/holdfast-dev}

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() { say "$*"; exit 1; }

# step WHAT CMD...: says what is happening and how long it took.
step() {
  local what=$1 begin=$SECONDS; shift
  say "$what ..."
  "$@" || die "$what failed"
  say "$what: $((SECONDS - begin)) s"
}

need_root() { [ "$(id -u)" = 0 ] || die "must run as root: it makes network namespaces and mounts"; }

# under_lock NAME CMD...: one at a time on this machine.
under_lock() {
  local name=$1; shift
  mkdir -p "$STATE/locks"
  ( flock 9; "$@" 9>&- ) 9>"$STATE/locks/$name"
}

# check_name NAME: names become file, namespace and interface names.
check_name() { [[ $1 =~ ^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || die "'$1' is not a name: use a-z, 0-9 and -, at most 40"; }

# wait_for SECONDS WHAT CMD...: until CMD succeeds.
wait_for() {
  local limit=$1 what=$2 end; shift 2
  end=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.1
  done
}

# --- processes: known by pid and start time, so that a reused pid is never taken for ours ---------

start_time() { awk '{ sub(/^.*\) /, ""); print $20 }' "/proc/$1/stat" 2>/dev/null; }

# start_daemon PIDFILE LOG CMD...
start_daemon() {
  local pidfile=$1 log=$2 pid; shift 2
  setsid "$@" </dev/null >>"$log" 2>&1 9>&- &
  pid=$!
  printf '%s %s\n' "$pid" "$(start_time "$pid")" >"$pidfile.new"
  mv "$pidfile.new" "$pidfile"
}

# daemon_pid PIDFILE: prints the pid if that very process still runs.
daemon_pid() {
  local pid began
  [ -s "$1" ] || return 1
  read -r pid began <"$1"
  [ -n "$began" ] && [ "$(start_time "$pid")" = "$began" ] || return 1
  [ "$(awk '{ sub(/^.*\) /, ""); print $1 }' "/proc/$pid/stat" 2>/dev/null)" != Z ] || return 1
  printf '%s\n' "$pid"
}

# stop_daemon PIDFILE [SIGNAL]: asks, then insists.
stop_daemon() {
  local pid signal=${2:-TERM}
  if pid=$(daemon_pid "$1"); then
    kill "-$signal" "$pid" 2>/dev/null || true
    wait_for 10 "end of $pid" gone "$1" || kill -KILL "$pid" 2>/dev/null || true
    wait_for 5 "end of $pid" gone "$1" || die "process $pid does not die"
  fi
  rm -f "$1"
}
gone() { ! daemon_pid "$1"; }
