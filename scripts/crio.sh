#!/bin/sh
# Builds the real CRI-O and crictl, unmodified and in versions that are named here,
# once, and prints the directory of the two programs.
#
#   scripts/crio.sh target/crio
#
# Their sources are modules of Go, and each is built in its own directory: with the
# versions of everything else that it was published with, checked by its own go.sum.
set -eu

crio_version=v1.36.3
crictl_version=v1.36.0
# No C library but libseccomp: a pod's default profile is a promise of CRI-O's.
tags='containers_image_ostree_stub containers_image_openpgp exclude_graphdriver_btrfs seccomp'

mkdir -p "$1"
directory=$(cd "$1" && pwd)
key="$crio_version $crictl_version $tags $(go env GOVERSION)"

# build MODULE VERSION PACKAGE [ARGUMENT]...: the program is named like the package.
build() {
    module=$1 version=$2 package=$3
    shift 3
    source=$(cd "$directory" && GOFLAGS=-mod=mod go mod download -json "$module@$version" |
        sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
    [ -n "$source" ] || {
        echo "crio: $module $version cannot be downloaded" >&2
        exit 1
    }
    (cd "$source" && GOFLAGS='-mod=readonly -trimpath -buildvcs=false' GOWORK=off \
        CGO_CFLAGS="${CGO_CFLAGS:--O1}" go build "$@" -o "$directory/$package" "./cmd/$package")
}

if [ "$(cat "$directory/made-of" 2>/dev/null || true)" != "$key" ]; then
    rm -f "$directory/made-of"
    build github.com/cri-o/cri-o "$crio_version" crio -tags "$tags" >&2
    build sigs.k8s.io/cri-tools "$crictl_version" crictl >&2
    echo "$key" >"$directory/made-of"
fi
printf '%s\n' "$directory"
