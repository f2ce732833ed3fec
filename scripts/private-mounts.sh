#!/bin/sh
# Runs a command in a mount namespace of its own, so that nothing it mounts (the
# pins of a test or of the demo) is ever seen by the machine, whatever happens.
#
#   scripts/private-mounts.sh COMMAND [ARGUMENT]...
#
# It also puts a hybrid cgroup tree out of sight. Where the v1 controllers and a
# v2 tree are mounted side by side, Debian 12's crun 1.8.1 refuses every
# container ("invalid file system type on '/sys/fs/cgroup'"); with the v2 tree
# unmounted it does not. Machines with only v1 or only v2 are left as they are.
# Network, processes and files stay the machine's.
set -eu

if [ "${PODINIT_PRIVATE_MOUNTS:-}" != "$$" ]; then
    # exec keeps the pid, so the second pass knows that it is one.
    PODINIT_PRIVATE_MOUNTS=$$ exec unshare --mount --propagation private "$0" "$@"
fi
unset PODINIT_PRIVATE_MOUNTS

v2=$(awk '$3 == "cgroup2" && $2 != "/sys/fs/cgroup" { print $2 }' /proc/self/mounts)
v1=$(awk '$3 == "cgroup" { print $2; exit }' /proc/self/mounts)
if [ -n "$v1" ] && [ -n "$v2" ]; then
    for tree in $v2; do
        umount "$tree"
        # crun makes its directories in what lies beneath; that shall not be the machine's.
        mount -t tmpfs -o mode=755,size=16m podinit-private "$tree"
    done
fi
exec "$@"
