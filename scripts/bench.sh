#!/bin/sh
# What a pod costs: memory of its processes, and the time that podinit adds to
# the OCI runtime. Prints one table; numbers of one run on a busy machine are
# good for ratios only.
#
#   scripts/bench.sh target/podinit [RUNS]
set -eu

binary=$(realpath "$1")
runs=${2:-20}
here=$(cd "$(dirname "$0")" && pwd)

if [ "${PODINIT_BENCH_IS_PRIVATE:-}" != yes ]; then
    [ "$(id -u)" = 0 ] || {
        echo 'bench: containers and namespaces need root' >&2
        exit 1
    }
    PODINIT_BENCH_IS_PRIVATE=yes exec "$here/private-mounts.sh" "$0" "$@"
fi

work=$(mktemp -d /tmp/podinit-bench-XXXXXX)
pod=$(basename "$work")
PODINIT_ROOT=$work/run
export PODINIT_ROOT
trap '"$binary" pod rm --force "$pod" >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

. "$here/rootfs.sh"
make_rootfs "$work/rootfs"

# memory NAME PID: kilobytes, as the kernel counts them.
memory() {
    awk -v name="$1" '/^Rss:/ { rss = $2 } /^Pss:/ { pss = $2 } /^Anonymous:/ { anon = $2 }
        END { printf "| %-34s | %6d | %6d | %6d |\n", name, rss, pss, anon }' "/proc/$2/smaps_rollup"
}

# median COMMAND...: of `runs` runs, in milliseconds.
median() {
    run=0
    while [ "$run" -lt "$runs" ]; do
        run=$((run + 1))
        began=$(date +%s%N)
        "$@" >/dev/null
        echo $((($(date +%s%N) - began) / 1000))
    done | sort -n | awk '{ value[NR] = $1 } END { printf "%.1f", value[int((NR + 1) / 2)] / 1000 }'
}

inspect() { "$binary" pod inspect "$pod" --output json | grep -o "\"$1\": *[^,}]*" | head -n 1 | sed 's/^[^:]*: *//'; }

"$binary" pod create "$pod" --runtime crun >/dev/null
keeper=$(inspect keeper_pid)
# The pod's init is a child of the keeper or the monitor; the monitor is called so.
monitor=$(for pid in $(cat "/proc/$keeper/task/$keeper/children"); do
    if tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q ' monitor '; then echo "$pid"; fi
done)

echo "podinit, $(stat -c %s "$binary") bytes, $("$binary" --version | head -n 1); $runs runs each"
echo
echo '| memory (kB)                        |    RSS |    PSS |   anon |'
echo '| ---------------------------------- | -----: | -----: | -----: |'
memory 'keeper, idle' "$keeper"
memory 'monitor, idle' "$monitor"
memory 'PID 1 of the pod' "$(inspect init_pid)"
for n in 1 2 3 4 5 6 7 8 9 10; do
    "$binary" create --pod "$pod" --name "c$n" --rootfs "$work/rootfs" -- sleep 600 >/dev/null
    "$binary" start "c$n" >/dev/null
done
memory 'monitor, 10 containers' "$monitor"

through_podinit() {
    "$binary" create --pod "$pod" --name one --rootfs "$work/rootfs" -- true
    "$binary" start one
    "$binary" wait one
    "$binary" rm one
}
state=$(find "$PODINIT_ROOT" -type d -name c1 -path '*runtime*' | head -n 1)
through_crun() { crun --root "$(dirname "$state")" exec c1 true; }

echo
echo '| time (ms, median)                  | podinit | bare crun |'
echo '| ---------------------------------- | ------: | --------: |'
printf '| %-34s | %7s | %9s |\n' 'exec true' "$(median "$binary" exec c1 -- true)" "$(median through_crun)"
printf '| %-34s | %7s | %9s |\n' 'create, start, wait, rm' "$(median through_podinit)" '-'
printf '| %-34s | %7s | %9s |\n' 'ps' "$(median "$binary" ps)" '-'
