#!/bin/sh
# Fails unless the given program is statically linked: it names no interpreter
# and needs no shared object, so it runs in an empty image and on any node.
set -eu

if readelf --program-headers --wide "$1" | grep -q INTERP || readelf --dynamic "$1" | grep -q NEEDED; then
    echo "$1 is not statically linked:" >&2
    readelf --dynamic "$1" | grep NEEDED >&2
    exit 1
fi
echo "$1: static, $(stat -c %s "$1") bytes"
