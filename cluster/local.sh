#!/usr/bin/env bash
# A real Ray of several nodes on this machine (Linux), to try the whole path on, behind a token.
#
#     cluster/local.sh [start [WORKERS]]     a head without work on it, and WORKERS nodes, 2 by default
#     cluster/local.sh stop                  ends exactly what `start` started
#
# RAY is the `ray` to run, by default that of .venv, else of PATH. EMC2DIST_CLUSTER is the folder where everything lies,
# by default /tmp/emc2dist-UID: token, a pid file and a log for each node, what Ray writes. Two folders, two clusters.
#
# Nodes have loopback addresses, and the dashboard listens there alone. But Ray opens its other ports on every interface
# and has no option for it: they ask for the token, except that anybody may read the metrics.
set -euo pipefail
umask 077

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${EMC2DIST_CLUSTER:-/tmp/emc2dist-$(id -u)}
ray=${RAY:-$root/.venv/bin/ray}

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$folder/token}
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
unset RAY_ADDRESS RAY_AUTH_TOKEN  # those of another cluster would win

fail() {
    echo "local.sh: $*" >&2
    exit 1
}

# A node is a session of its own: whatever its processes do, `ps` finds them by the one pid that was written down.
launch() { # NAME ARGUMENTS...
    local name=$1
    shift
    rm -f "$folder/$name.log"  # of an earlier start, which `await` would take for this one
    setsid "$ray" start --block --temp-dir="$folder" --object-store-memory=200000000 --dashboard-agent-listen-port=0 \
        "$@" </dev/null &>"$folder/$name.log" &
    echo $! >"$folder/$name.pid"
}

await() { # NAME
    local deadline=$((SECONDS + 60))
    until grep -qs "will now block forever" "$folder/$1.log"; do
        kill -0 "$(<"$folder/$1.pid")" 2>/dev/null || fail "$1 did not start: $(tail -n 5 "$folder/$1.log")"
        ((SECONDS < deadline)) || fail "$1 is not up after a minute; see $folder/$1.log"
        sleep 0.2
    done
}

leads() { # PID: whether it lives
    processes "$1" | grep -qx "$1"
}

processes() { # PID: those of that node that live; none where the pid has become somebody else's
    [[ $(ps -o stat=,args= -p "$1") =~ ^$|^Z|"start --block" ]] || return 0
    ps -o stat=,pid= -s "$1" | awk '$1 !~ /^Z/ { print $2 + 0 }'
}

stop() {
    local file pid
    for file in "$folder"/*.pid; do
        [[ -e $file ]] || return 0
        pid=$(<"$file")
        ! leads "$pid" || kill -TERM "$pid"
    done
    SECONDS=0
    for file in "$folder"/*.pid; do
        pid=$(<"$file")
        while leads "$pid" && ((SECONDS < 15)); do sleep 0.2; done
        while [[ -n $(processes "$pid") ]]; do  # Ray's agents outlive their raylet by some seconds
            processes "$pid" | xargs -r kill -KILL 2>/dev/null || true
            sleep 0.1
        done
        rm "$file"
    done
}

start() {
    local workers=${1:-2} address number
    [[ $workers =~ ^[1-9][0-9]*$ ]] || fail "WORKERS is a whole number above 0, not '$workers'"
    [[ -x $ray ]] || ray=$(command -v ray) || fail "no ray here; \`make train\` sets up .venv"
    ((${#folder} <= 38)) || fail "$folder: sockets lie in it, whose paths end at 107 characters; use 38 at most"
    mkdir -p "$folder"
    [[ -O $folder ]] || fail "$folder is somebody else's; set EMC2DIST_CLUSTER"
    chmod 700 "$folder"
    ! compgen -G "$folder/*.pid" >/dev/null || fail "one runs in $folder; end it with: $0 stop"
    [[ -s $RAY_AUTH_TOKEN_PATH ]] || od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"

    trap stop EXIT
    # Ray takes 127.0.0.1 for a mistake and listens on the machine's own address instead; the rest of 127/8 it believes.
    launch head --head --num-cpus=0 --memory=0 --node-ip-address=127.0.0.2 --dashboard-host=127.0.0.1 \
        --port=0 --ray-client-server-port=$((20000 + RANDOM % 10000))
    await head
    address=$(<"$folder/ray_current_cluster")
    for ((number = 1; number <= workers; number++)); do
        launch "worker-$number" --address="$address" --node-ip-address="127.0.0.$((number + 2))"
        await "worker-$number"  # one after another: two at once take the same names for their sockets
    done
    trap - EXIT

    echo "export RAY_ADDRESS=$address RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH"
    echo "# A head and $workers workers are up. To end them: ${EMC2DIST_CLUSTER:+EMC2DIST_CLUSTER=$folder }$0 stop"
}

case ${1:-start} in
    start | stop) "${1:-start}" "${@:2}" ;;
    *) fail "start [WORKERS] or stop, not '$1'" ;;
esac
