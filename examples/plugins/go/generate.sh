#!/bin/sh
# Writes plugin/plugin.capnp.go anew, after a change of schema/plugin.capnp. Needs
# `capnp` and `go`.
#
# The schema names no Go package, so that compiling it needs no file of Go's; a
# copy that does is what the generator is given.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The generator needs more modules than the plugins do.
cp go.mod go.sum "$work"
library=$(go list -m -f '{{.Dir}}' capnproto.org/go/capnp/v3)
go build -mod=mod -modfile="$work/go.mod" -o "$work/capnpc-go" capnproto.org/go/capnp/v3/capnpc-go
{
    sed 1q ../../../schema/plugin.capnp
    printf 'using Go = import "/go.capnp";\n'
    printf '$Go.package("plugin");\n$Go.import("podinit.example/plugins/plugin");\n'
    sed 1d ../../../schema/plugin.capnp
} >"$work/plugin.capnp"
capnp compile --import-path="$library/std" --src-prefix="$work" -o"$work/capnpc-go:plugin" "$work/plugin.capnp"
