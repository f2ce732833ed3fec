#!/bin/sh
# Runs `go` on the module of the published conmon-rs client's tests.
set -eu
cd "$(dirname "$0")/../tests/go"
exec go "$@"
