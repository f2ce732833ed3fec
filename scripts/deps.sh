#!/bin/sh
# Installs what is missing to build, check, test, measure or demonstrate podinit, and
# nothing else. Presence is judged by the thing itself (a command, an archive),
# not by a package database, so any way of having it will do.
#
#   scripts/deps.sh build|demo|test|vm|crio|bench|check...
#
# Debian and Ubuntu (apt-get) and Fedora and its kin (dnf) are known. Rust is
# taken as given.
set -eu

say() { printf '%s\n' "deps: $*"; }
die() {
    printf '%s\n' "deps: $*" >&2
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

# `cc` answers the bare name when it does not find the archive on its path.
has_archive() {
    has cc && [ "$(cc -print-file-name="$1")" != "$1" ]
}

missing_apt=''
missing_dnf=''

# need NAME "PACKAGES OF APT" "PACKAGES OF DNF" CHECK...: notes the packages if CHECK fails.
need() {
    name=$1 apt=$2 dnf=$3
    shift 3
    if ! "$@"; then
        say "missing: $name"
        missing_apt="$missing_apt $apt"
        missing_dnf="$missing_dnf $dnf"
    fi
}

certificates() { [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ]; }
static_busybox() { has busybox && ! readelf -l "$(command -v busybox)" 2>/dev/null | grep -q INTERP; }

# Distributions have them in one of these directories.
has_cni() { [ -x /usr/lib/cni/bridge ] || [ -x /usr/libexec/cni/bridge ] || [ -x /opt/cni/bin/bridge ]; }

has_venv() { has python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; }

need_rust() {
    has cargo || die 'cargo is not in PATH. Install Rust with rustup (https://rustup.rs); the version is in rust-toolchain.toml.'
}

for purpose in "$@"; do
    case $purpose in
    build)
        need_rust
        need 'a C linker' gcc gcc has cc
        need 'the static C library' libc6-dev 'glibc-devel glibc-static' has_archive libc.a
        need 'the static libseccomp' libseccomp-dev 'libseccomp-devel libseccomp-static' has_archive libseccomp.a
        need 'TLS root certificates, for crates' ca-certificates ca-certificates certificates
        ;;
    demo)
        need 'crun, an OCI runtime' crun crun has crun
        need 'a static busybox, for root file systems' busybox-static busybox static_busybox
        need unshare util-linux util-linux has unshare
        ;;
    test)
        need 'crun, an OCI runtime' crun crun has crun
        need 'runc, an OCI runtime' runc runc has runc
        need 'a static busybox, for root file systems' busybox-static busybox static_busybox
        need 'unshare and nsenter' util-linux util-linux has nsenter
        need 'capnp, to compare the generated code' capnproto capnproto has capnp
        need 'strace, to make system calls fail' strace strace has strace
        need 'plugins of CNI' containernetworking-plugins containernetworking-plugins has_cni
        need ip iproute2 iproute has ip
        need 'podman, the reference for hook files' podman podman has podman
        need 'Python, for an example hook' python3 python3 has python3
        need 'Python with venv, for example plugins' python3-venv python3 has_venv
        ;;
    vm)
        need 'qemu, for x86_64 machines' qemu-system-x86 qemu-system-x86-core has qemu-system-x86_64
        need 'mmdebstrap, to make a root file system' mmdebstrap mmdebstrap has mmdebstrap
        need 'mke2fs, to make a disk of it' e2fsprogs e2fsprogs has mke2fs
        ;;
    crio)
        has go || die 'go is not in PATH. CRI-O is built with it (https://go.dev/dl).'
        need 'a C compiler' gcc gcc has cc
        need 'pkg-config, to find libseccomp' pkgconf pkgconf-pkg-config has pkg-config
        need 'libseccomp' libseccomp-dev libseccomp-devel pkg-config --exists libseccomp
        need 'conmon, for pods without a monitor of their own' conmon conmon has conmon
        need 'script, for terminals' bsdutils util-linux-script has script
        ;;
    bench)
        need 'crun, an OCI runtime' crun crun has crun
        need 'conmon, to compare with' conmon conmon has conmon
        need 'a static busybox, for root file systems' busybox-static busybox static_busybox
        need unshare util-linux util-linux has unshare
        ;;
    check)
        need 'capnp, to compare the generated code' capnproto capnproto has capnp
        ;;
    *) die "unknown purpose '$purpose': build, demo, test, vm, crio, bench or check" ;;
    esac
done

install_missing() {
    [ "$(id -u)" = 0 ] || die "not root: install by hand:$1"
    if has apt-get; then
        say "apt-get install$missing_apt"
        apt-get update -qq
        # Packages only, in words that split; nothing recommended.
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing_apt >/dev/null
    elif has dnf; then
        say "dnf install$missing_dnf"
        # shellcheck disable=SC2086
        dnf install -y -q $missing_dnf >/dev/null
    else
        die "neither apt-get nor dnf is here: install by hand (Debian's names):$missing_apt"
    fi
}

if [ -n "$missing_apt" ]; then
    if has dnf && ! has apt-get; then install_missing "$missing_dnf"; else install_missing "$missing_apt"; fi
fi
say 'complete'
