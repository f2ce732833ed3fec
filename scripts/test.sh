#!/bin/sh
# Runs every test against the given podinit binary and ends with one line of
# counts; what failed is printed last.
#
#   scripts/test.sh target/podinit
#
# Rust's tests come first, then those with the published Go client, which need
# `go`: without it they are skipped, except in CI, where that is a failure.
set -eu

# nohup, and a shell that runs us in the background, have signals ignored. Tests send
# these, and wait for what they do; a shell cannot undo it itself.
if [ "${PODINIT_SIGNALS:-}" != "$$" ]; then
    PODINIT_SIGNALS=$$ exec env --default-signal "$0" "$@"
fi
unset PODINIT_SIGNALS

binary=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."

[ "$(id -u)" = 0 ] || {
    echo 'test: containers and namespaces need root' >&2
    exit 1
}

log=$(mktemp)
trap 'rm -f "$log" "$log.go" "$log.output" "$log.skipped"' EXIT

# Each test that a machine cannot have adds a line: its name, a colon, the reason. The test
# runner knows no skipping at run time, and counts it as passed.
PODINIT_SKIPPED=$log.skipped
: >"$PODINIT_SKIPPED"
export PODINIT_SKIPPED

LIBSECCOMP_LINK_TYPE=static
LIBSECCOMP_LIB_PATH=$(dirname "$(realpath "$(cc -print-file-name=libseccomp.a)")")
PODINIT_BINARY=$binary
export LIBSECCOMP_LINK_TYPE LIBSECCOMP_LIB_PATH PODINIT_BINARY

# For the example plugins in Python; without it their tests are skipped, except in CI.
if PODINIT_PYTHON=$("$here/python.sh" "${CARGO_TARGET_DIR:-target}/python"); then
    export PODINIT_PYTHON
else
    unset PODINIT_PYTHON
    echo 'test: no Python with pycapnp' >&2
fi

# Runs a command, shows its output, keeps it in the log; notes a failure in
# `failed`. The command stays in the foreground: in the background a shell would
# have it ignore SIGINT, which tests send. A process that a test left behind holds
# the output open; that is a failure, and must not become a wait without end.
failed=''
run() {
    name=$1
    shift
    output=$log.output
    mkfifo "$output"
    tee -a "$log" <"$output" &
    shown=$!
    "$@" >"$output" 2>&1 || failed="$failed $name"
    rest=100
    while kill -0 "$shown" 2>/dev/null && [ "$rest" -gt 0 ]; do
        sleep 0.1
        rest=$((rest - 1))
    done
    if [ "$rest" = 0 ]; then
        kill "$shown"
        echo "test: $name left a process behind that holds its output" | tee -a "$log"
        failed="$failed $name"
    fi
    wait "$shown" || true
    rm -f "$output"
}

# Spans need a build with their feature, and have `make test-tracing`.
go_tests() {
    (cd tests/go && go test -c -o "$log.go" . && "$here/private-mounts.sh" "$log.go" -test.v -test.parallel 8 -test.skip '^TestTracing$')
}

run rust "$here/private-mounts.sh" cargo test --locked --no-fail-fast
if command -v go >/dev/null; then
    run go go_tests
elif [ "${CI:-}" = true ]; then
    echo 'test: go is not in PATH' >&2
    failed="$failed go"
else
    echo 'test: skipped the tests with the Go client (no go in PATH)'
fi

echo
sum() { awk "$1" "$log"; }
passed=$(sum '/^test result:/ { n += $4 } /^--- PASS/ { n++ } END { print n + 0 }')
broken=$(sum '/^test result:/ { n += $6 } /^--- FAIL/ { n++ } END { print n + 0 }')
skipped=$(sum '/^test result:/ { n += $8 } /^--- SKIP/ { n++ } END { print n + 0 }')
inside=$(sed 's/: .*//' "$PODINIT_SKIPPED" | sort -u | wc -l)
passed=$((passed - inside))
skipped=$((skipped + inside))
[ "$inside" = 0 ] || { echo 'skipped:' && sed 's/^/  /' "$PODINIT_SKIPPED" | sort -u; }

if [ -n "$failed" ] || [ "$broken" != 0 ]; then
    echo 'failed:'
    grep -E '^test .* \.\.\. FAILED$|^ *--- FAIL' "$log" | sed 's/^test /  /; s/ \.\.\. FAILED$//' | sort -u || true
    # A test program that did not come to its summary (it did not compile, or it died) counts once.
    [ "$broken" != 0 ] || broken=1
    echo "podinit: $passed passed, $broken failed, $skipped skipped"
    exit 1
fi
echo "podinit: $passed passed, $broken failed, $skipped skipped"
