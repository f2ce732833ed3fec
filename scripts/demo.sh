#!/bin/sh
# podinit's main job on a terminal: each step says what happened and proves it
# (a pid, an inode, a path, an exit code). A step whose proof fails ends the
# demonstration with a non-zero status, and whatever was started is stopped.
#
#   scripts/demo.sh target/podinit
#
# To add a step, write a function beside the others and name it in `steps`.
set -eu

steps='
    start_a_pod
    namespaces_are_pinned
    pid_1_is_podinit
    inside_the_pod
    a_hook_inside
    two_containers
    follow_the_logs
    run_an_exec
    orphans_are_reaped
    exit_code_42
    a_plugin_decides
    stop_the_pod
    nothing_is_left
'

binary=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)

if [ "${PODINIT_DEMO_IS_PRIVATE:-}" != yes ]; then
    [ "$(id -u)" = 0 ] || {
        echo 'demo: containers and namespaces need root' >&2
        exit 1
    }
    # Pins stay in a mount namespace of the demonstration's own.
    PODINIT_DEMO_IS_PRIVATE=yes exec "$here/private-mounts.sh" "$0" "$@"
fi

work=$(mktemp -d /tmp/podinit-demo-XXXXXX)
pod=demo-${work##*-}
PODINIT_ROOT=$work/run
export PODINIT_ROOT
pod_dir=$PODINIT_ROOT/pods/$pod
plugin=''

if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); else bold='' plain=''; fi
number=0

did() {
    number=$((number + 1))
    printf '%s%2d. %s%s\n' "$bold" "$number" "$1" "$plain"
}
proof() { printf '      %s\n' "$*"; }
fail() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}
# shown COMMAND...: what a person would type, then what it does.
shown() {
    command=$1
    shift
    printf '      $ %s' "$(basename "$command")"
    for argument in "$@"; do
        case $argument in
        *[!A-Za-z0-9/_.,=:-]*) printf " '%s'" "$argument" ;;
        *) printf ' %s' "$argument" ;;
        esac
    done
    printf '\n'
    rm -f "$work/failed"
    # Line by line, for what is followed shows as it comes.
    { "$command" "$@" 2>&1 || echo "$?" >"$work/failed"; } | while IFS= read -r line; do proof "$line"; done
    [ ! -e "$work/failed" ] || fail "$(basename "$command") $1 failed with status $(cat "$work/failed")"
}
# Text of a key of the pod's description, which is JSON.
inspect() { "$binary" pod inspect "$pod" --output json | grep -o "\"$1\": *[^,}]*" | head -n 1 | sed 's/^[^:]*: *//; s/"//g'; }
inode() { stat --dereference --format %i "$1"; }

clean_up() {
    status=$?
    trap - EXIT
    if [ -n "$plugin" ]; then kill "$plugin" 2>/dev/null || true; fi
    if [ -e "$pod_dir" ]; then "$binary" pod rm --force "$pod" >/dev/null 2>&1 || true; fi
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

start_a_pod() {
    did 'a pod, started by `podinit pod create`'
    write_a_hook
    shown "$binary" pod create "$pod" --runtime crun --hostname a-pod --hooks-dir "$work/hooks"
    keeper=$(inspect keeper_pid)
    proof "keeper: pid $keeper, $(tr '\0' ' ' <"/proc/$keeper/cmdline" | cut -c 1-60)…"
    [ -S "$pod_dir/conmon.sock" ] || fail "no socket in $pod_dir"
    proof "socket: $pod_dir/conmon.sock, mode $(stat -c %a "$pod_dir/conmon.sock")"
}

namespaces_are_pinned() {
    did 'its namespaces, pinned: none of them is the host'"'"'s'
    for kind in net ipc uts pid; do
        path=$(grep -o " $pod_dir/[^ ]*${kind}ns[^ ]*" /proc/self/mountinfo | head -n 1 | tr -d ' ')
        [ -n "$path" ] || fail "$kind is not pinned below $pod_dir"
        host=$(inode "/proc/self/ns/$kind")
        [ "$(inode "$path")" != "$host" ] || fail "$kind is the host's"
        proof "$(printf '%-3s inode %s (host: %s) at %s' "$kind" "$(inode "$path")" "$host" "$path")"
    done
}

pid_1_is_podinit() {
    init=$(inspect init_pid)
    did 'PID 1 of the pod is podinit'
    name=$(tr '\0' ' ' <"/proc/$init/cmdline" | sed 's/ *$//')
    inner=$(awk '/^NSpid:/ { print $NF }' "/proc/$init/status")
    [ "$inner" = 1 ] || fail "process $init is pid $inner inside"
    case $name in podinit*) ;; *) fail "PID 1 is $name" ;; esac
    proof "host pid $init is pid $inner inside: $name"
}

inside_the_pod() {
    did 'a container inside: loopback is up, the host name is the pod'"'"'s'
    "$binary" create --pod "$pod" --name probe --rootfs "$work/rootfs" -- sleep 600 >/dev/null
    "$binary" start probe >/dev/null
    shown "$binary" exec probe -- hostname
    [ "$("$binary" exec probe -- hostname)" = a-pod ] || fail 'another host name'
    shown "$binary" exec probe -- ip -o link show lo
    "$binary" exec probe -- ip link show lo | grep -q 'LOOPBACK,UP' || fail 'loopback is down'
}

# A hook of hooks.d 1.0.0: it runs when the pod's namespaces are there, in the pod.
write_a_hook() {
    mkdir "$work/hooks"
    script='cat /proc/sys/kernel/hostname; exec busybox ip -o address'
    printf '{"version": "1.0.0", "hook": {"path": "/bin/sh", "args": ["sh", "-c", "%s"]},' "$script" >"$work/hooks/addresses.json"
    printf ' "when": {"always": true}, "stages": ["podCreate"]}\n' >>"$work/hooks/addresses.json"
}

a_hook_inside() {
    did 'a hook that prints the pod'"'"'s own addresses, from inside'
    shown "$binary" hook results "$pod"
    "$binary" hook results "$pod" | grep -q 'addresses.json  podCreate' || fail 'the hook did not run'
    shown "$binary" hook run --pod "$pod" addresses.json
    said=$("$binary" hook run --pod "$pod" addresses.json)
    case $said in a-pod*127.0.0.1*) ;; *) fail "the hook said $said" ;; esac
    [ "$(printf '%s\n' "$said" | grep -c ' inet ')" = 1 ] || fail 'it saw more than loopback'
    proof 'host name and addresses are the pod'"'"'s; the program is the host'"'"'s'
}

two_containers() {
    did 'two more containers, created and started with crun'
    for name in red green; do
        "$binary" create --pod "$pod" --name $name --rootfs "$work/rootfs" -- \
            sh -c "for i in 1 2 3; do echo $name \$i; sleep 0.2; done; echo $name warns >&2; [ $name = red ] || exit 42" >/dev/null
        "$binary" start $name >/dev/null
    done
    shown "$binary" ps
}

follow_the_logs() {
    did 'their logs, followed until they end'
    shown "$binary" logs -f red
    shown "$binary" logs -f green
    log=$pod_dir/logs/red.log
    [ "$(grep -c ' F ' "$log")" = 4 ] || fail "4 records in $log: $(cat "$log")"
    proof "the CRI file behind it: $log"
    while IFS= read -r line; do proof "$line"; done <"$log"
}

run_an_exec() {
    did 'an exec in a running container, with its own exit code'
    code=0
    "$binary" exec probe -- sh -c 'echo said inside; exit 7' >"$work/said" || code=$?
    proof "$(cat "$work/said")"
    [ "$code" = 7 ] || fail "exit code $code instead of 7"
    proof "exit code $code"
}

orphans_are_reaped() {
    did 'forty orphans, and no zombie'
    # A double fork each: their parent has gone when they end.
    "$binary" exec probe -- sh -c 'for i in $(seq 40); do sh -c "sh -c true & true"; done'
    processes=$("$binary" exec probe -- ps -o pid,stat,comm)
    zombies=$(printf '%s\n' "$processes" | awk '$2 ~ /^Z/' | wc -l)
    [ "$zombies" = 0 ] || fail "zombies: $processes"
    proof "zombies: $zombies of $(($(printf '%s\n' "$processes" | wc -l) - 1)) processes in the pod"
}

exit_code_42() {
    did 'a container'"'"'s exit code, read back'
    # What `wait` prints and what it exits with are the same number.
    code=0
    "$binary" wait green >"$work/code" || code=$?
    proof "podinit wait green: $(cat "$work/code")"
    grep -qw 42 "$work/code" || [ "$code" = 42 ] || fail "exit code $(cat "$work/code") instead of 42"
}

a_plugin_decides() {
    did "a container's mkdir is decided by a plugin, in a process of its own"
    mkdir "$work/asks"
    cat >"$work/asks/config.json" <<EOF
{ "ociVersion": "1.0.2", "root": { "path": "$work/rootfs" },
  "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "env": ["PATH=/bin"],
               "args": ["sh", "-c", "mkdir /tmp/made 2>&1 || true"] },
  "mounts": [{ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" }],
  "linux": { "namespaces": [{ "type": "mount" }],
             "seccomp": { "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "$pod_dir/seccomp.sock",
                          "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }] } } }
EOF
    mkfifo "$work/ready"
    "$binary" seccomp answer --socket "$pod_dir/plugins.sock" --name demo --syscall mkdir --syscall mkdirat \
        --verdict errno:EDQUOT >"$work/ready" &
    plugin=$!
    read -r said <"$work/ready"
    proof "a plugin, pid $plugin, has $said: mkdir shall fail with EDQUOT"
    "$binary" create --pod "$pod" --name asks --bundle "$work/asks" >/dev/null
    "$binary" start asks >/dev/null
    "$binary" wait asks >/dev/null
    shown "$binary" logs asks
    "$binary" logs asks | grep -q 'uota exceeded' || fail 'the plugin was not asked'
    shown "$binary" seccomp stats "$pod"
    kill "$plugin"
    wait "$plugin" 2>/dev/null || true
    plugin=''
}
stop_the_pod() {
    did 'the pod, stopped'
    # What must be gone, noted while it is there.
    ls /proc/[0-9]*/ns/pid -d 2>/dev/null | while read -r link; do
        [ "$(inode "$link" 2>/dev/null)" = "$(inode "/proc/$init/ns/pid")" ] && echo "$link"
    done | cut -d / -f 3 >"$work/pids" || true
    echo "$keeper" "$(cat "/proc/$keeper/task/$keeper/children")" | tr ' ' '\n' | grep . >>"$work/pids"
    sort -u -o "$work/pids" "$work/pids"
    shown "$binary" pod stop --time 1 "$pod"
}

nothing_is_left() {
    did 'nothing is left'
    for pid in $(cat "$work/pids"); do
        # Ended, but perhaps not collected yet by its parent, the machine's init.
        for _ in $(seq 50); do
            [ -e "/proc/$pid" ] || break
            sleep 0.1
        done
        [ ! -e "/proc/$pid" ] || fail "process $pid is there: $(tr '\0' ' ' <"/proc/$pid/cmdline")"
    done
    proof "processes: 0 of $(wc -l <"$work/pids") that there were"
    ! grep "$work" /proc/self/mountinfo || fail 'a mount is left'
    proof "mounts below $work: 0"
    ! grep "$work" /proc/net/unix || fail 'a socket is left'
    [ -z "$(find "$work/run" -type s)" ] || fail 'a socket is left'
    proof 'sockets: 0'
    trees=$(awk '$3 ~ /^cgroup/ { print $2 }' /proc/self/mounts)
    # shellcheck disable=SC2086
    left=$(find $trees -maxdepth 4 -name "*$pod*" 2>/dev/null)
    [ -z "$left" ] || fail "cgroups: $left"
    proof 'cgroups: 0'
    [ ! -e "$pod_dir" ] || fail "$pod_dir is left: $(ls "$pod_dir")"
    proof "files: $pod_dir is gone"
}

. "$here/rootfs.sh"
make_rootfs "$work/rootfs"
began=$(date +%s)
for step in $steps; do $step; done
printf '%s%s steps, each proven, in %s s.%s\n' "$bold" "$number" "$(($(date +%s) - began))" "$plain"
