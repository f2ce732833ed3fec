#!/bin/sh
# Boots Debian with systemd and cgroup v2 in a virtual machine and runs test
# programs in it against the given podinit binary. What the cgroups of a machine
# with v1, or without systemd, cannot show can be shown there. KVM is not needed.
#
#   scripts/vm.sh PODINIT TEST-PROGRAM[=FILTER[,FILTER]...]...
#
# A FILTER is a part of the names of tests to be run. The guest's root file system
# is made once, below target/vm (or $PODINIT_VM_DIR), from the packages of a
# Debian mirror ($PODINIT_VM_MIRROR), and is never written to by a run. The guest has no
# network. Its console is the log; its last line tells how it went. Everything is bounded in time
# ($PODINIT_VM_TIMEOUT seconds in all), and nothing is left running.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${PODINIT_VM_DIR:-$here/../target/vm}
timeout=${PODINIT_VM_TIMEOUT:-1500}
mirror=${PODINIT_VM_MIRROR:-http://deb.debian.org/debian}

packages=systemd,systemd-sysv,dbus,crun,runc,busybox-static,util-linux,iproute2,kmod,strace,procps
packages=$packages,linux-image-cloud-amd64
# In the order in which the kernel wants them.
modules='virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk'

die() {
    printf 'vm: %s\n' "$*" >&2
    exit 1
}

[ "$#" -ge 2 ] || die 'usage: vm.sh PODINIT TEST-PROGRAM[=FILTER[,FILTER]...]...'
[ "$(id -u)" = 0 ] || die 'making the file systems of the guest needs root'
[ "$(uname -m)" = x86_64 ] || die 'the guest is an x86_64 machine, and so must be this one: the tests are its programs'
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
work=$(mktemp -d "$cache/run-XXXXXX")
trap 'rm -rf "$work"' EXIT

# The smallest init that brings virtio's drivers to a kernel that has them as modules.
make_initramfs() {
    mkdir -p "$work/early/bin" "$work/early/dev" "$work/early/root" "$work/early/modules"
    cp "$1/bin/busybox" "$work/early/bin/busybox"
    for module in $modules; do
        find "$1/lib/modules" -name "$module.ko" -exec cp {} "$work/early/modules/" \;
        [ -e "$work/early/modules/$module.ko" ] || die "the guest's kernel has no module $module"
    done
    {
        echo '#!/bin/busybox sh'
        echo 'busybox mount -t devtmpfs dev /dev'
        for module in $modules; do echo "busybox insmod /modules/$module.ko"; done
        echo 'busybox mount -t ext4 /dev/vda /root'
        echo 'exec busybox switch_root /root /lib/systemd/systemd "$@"'
    } >"$work/early/init"
    chmod 755 "$work/early/init"
    (cd "$work/early" && find . | "$1/bin/busybox" cpio -o -H newc 2>/dev/null) >"$2"
}

# What runs the tests in the guest: the second disk brings them, so that the root
# file system need not be made anew when they change.
make_service() {
    cat >"$1/etc/systemd/system/podinit-tests.service" <<'UNIT'
[Unit]
Description=The tests of podinit
Requires=dbus.socket
After=dbus.socket
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
Delegate=yes
ExecStart=/bin/sh -c 'mount -o ro /dev/vdb /mnt && exec /mnt/run'
StandardOutput=tty
StandardError=inherit
TTYPath=/dev/ttyS0
UNIT
}

make_root() {
    root=$work/root
    echo "vm: making the guest's root file system from $mirror"
    mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$root" "$mirror"
    make_initramfs "$root" "$work/initramfs"
    make_service "$root"
    # Nothing of the host's; and no check of a file system that is never written to.
    : >"$root/etc/fstab"
    : >"$root/etc/machine-id"
    cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
    rm -rf "$root"/boot/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
    mke2fs -q -t ext4 -O ^has_journal -d "$root" "$work/root.img" 1G
    rm -rf "$root"
    mv "$work/vmlinuz" "$work/initramfs" "$work/root.img" "$cache/"
    echo "$key" >"$cache/key"
}

# Made anew when this script, which says all that goes into it, has changed.
key=$(sha256sum "$here/vm.sh" | cut -d ' ' -f 1)
if [ "$(cat "$cache/key" 2>/dev/null || true)" != "$key" ] || [ ! -e "$cache/root.img" ]; then
    make_root
fi

# The second disk: the binary, the test programs, and the script that runs them.
payload=$work/payload
mkdir -p "$payload"
binary=$1
shift
cp "$binary" "$payload/podinit"
{
    echo '#!/bin/sh'
    echo 'export PATH=/usr/sbin:/usr/bin PODINIT_BINARY=/mnt/podinit PODINIT_VM=1'
    echo 'failed=0'
    for test in "$@"; do
        program=${test%%=*}
        name=$(basename "$program")
        cp "$program" "$payload/$name"
        filters=''
        [ "$test" = "$program" ] || filters=$(printf %s "${test#*=}" | tr , ' ')
        echo "echo '== $name $filters'"
        echo "/mnt/$name --color never $filters || failed=1"
    done
    echo 'echo "vm: the tests ended with status $failed"'
    echo 'exit $failed'
} >"$payload/run"
chmod 755 "$payload/run"
strip --strip-debug "$payload"/* 2>/dev/null || true
size=$(du -sm "$payload" | cut -f 1)
mke2fs -q -t ext4 -O ^has_journal -d "$payload" "$work/payload.img" "$((size + size / 4 + 16))M"

# Emulated, unless told otherwise: a /dev/kvm that is there need not work (nested
# machines). -no-reboot: a kernel that panics ends the machine.
started=$(date +%s)
timeout --kill-after=10 "$timeout" qemu-system-x86_64 \
    -machine q35 -accel "${PODINIT_VM_ACCELERATOR:-tcg}" -cpu max -smp 2 -m 1024 \
    -kernel "$cache/vmlinuz" -initrd "$cache/initramfs" \
    -append 'console=ttyS0 loglevel=3 panic=-1 systemd.unit=podinit-tests.service systemd.show_status=error' \
    -drive "file=$cache/root.img,if=virtio,format=raw,snapshot=on" \
    -drive "file=$work/payload.img,if=virtio,format=raw,readonly=on" \
    -nic none -display none -monitor none -no-reboot -serial stdio </dev/null |
    sed -u 's|\r||g' | tee "$work/console" || true
echo "vm: $(($(date +%s) - started)) s"
grep -q '^vm: the tests ended with status 0$' "$work/console" || die 'the tests failed, or did not end in time'
