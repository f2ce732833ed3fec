#!/bin/sh
# Makes a Python with what the example plugins need, once, and prints its path.
#
#   scripts/python.sh target/python
set -eu
directory=$1
wanted=$(cd "$(dirname "$0")/.." && pwd)/examples/plugins/python/requirements.txt
if ! cmp -s "$wanted" "$directory/made-of"; then
    python3 -m venv --clear "$directory" >&2
    "$directory/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted" >&2
    cp "$wanted" "$directory/made-of"
fi
printf '%s\n' "$(cd "$directory" && pwd)/bin/python3"
