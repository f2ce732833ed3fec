#!/bin/sh
# Licences, duplicates and sources of all dependencies (deny.toml); advisories
# too, where their database can be reached: no network is no failure.
set -eu

if ! command -v cargo-deny >/dev/null; then
    echo 'deny: installing cargo-deny (some minutes, once)'
    cargo install --quiet --locked cargo-deny
fi
cargo deny --log-level warn --all-features --locked check licenses bans sources

database=https://github.com/RustSec/advisory-db
if GIT_TERMINAL_PROMPT=0 timeout 15 git ls-remote --quiet "$database" HEAD >/dev/null 2>&1; then
    cargo deny --log-level warn --all-features --locked check advisories
else
    echo "deny: skipped advisories ($database cannot be reached)"
fi
