# Everything a developer, a packager or CI does with podinit. `make help` lists it.

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
DESTDIR ?=

# `target/podinit` is where the release binary is promised to be, wherever cargo builds.
BINARY := target/podinit
CARGO_TARGET := $(or $(CARGO_TARGET_DIR),target)
SHELL := /bin/sh

# Cargo needs the directory of the static libseccomp; the linker knows it. Asked
# for in the recipe, because `deps` may only just have installed it.
cargo = LIBSECCOMP_LINK_TYPE=static \
	LIBSECCOMP_LIB_PATH="$$(dirname "$$(realpath "$$(cc -print-file-name=libseccomp.a)")")" \
	cargo

.PHONY: help deps build static-binary check test test-vm test-crio test-tracing schema demo bench install clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

deps: ## install what is missing to build, check, test and demonstrate (root)
	@scripts/deps.sh build check test demo

build: ## the static release binary: target/podinit
	@scripts/deps.sh build
	@$(MAKE) --no-print-directory static-binary

# The three things that a static binary needs at once: crt-static, a --target
# (without it proc-macros cannot be built), libseccomp's archive. Without the
# third the link succeeds and the result is dynamic, hence the assertion.
# relocation-model=static: a position that is known at link time leaves nothing
# to relocate at the start, which costs every process 58 kB (docs/memory.md).
static-binary:
	@triple="$$(rustc -vV | sed -n 's/^host: //p')" && \
	RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' $(cargo) build --release --locked --bin podinit --target "$$triple" && \
	mkdir -p "$(dir $(BINARY))" && \
	cp "$(CARGO_TARGET)/$$triple/release/podinit" "$(BINARY).new" && mv "$(BINARY).new" "$(BINARY)" && \
	scripts/assert-static.sh "$(BINARY)"

check: ## format, lints, dependencies' licences and advisories, schema drift, house rules
	@scripts/deps.sh build check
	cargo fmt --check
	$(cargo) clippy --locked --all-targets --test real_crio -- -D warnings
	$(cargo) test --locked --quiet --test schema --test house_rules
	@scripts/deny.sh
	@if command -v go >/dev/null; then scripts/go.sh vet ./... && (cd examples/plugins/go && go vet ./...); \
	elif [ "$${CI:-}" = true ]; then echo 'check: go is not in PATH' >&2; exit 1; \
	else echo 'check: skipped go vet (no go in PATH)'; fi

test: ## install what is missing, then run every test (root)
	@scripts/deps.sh build test
	@$(MAKE) --no-print-directory static-binary
	@scripts/test.sh "$(BINARY)"

# The test programs whose subject is containers, their cgroups and the monitor; the
# guest has no network and no Go, so the others stay here.
VM_TESTS := vm crio regression lifecycle

test-vm: ## tests of containers and cgroups in a virtual machine with cgroup v2 and systemd (root)
	@scripts/deps.sh build vm
	@$(MAKE) --no-print-directory static-binary
	@programs="$$($(cargo) test --locked --no-run --message-format=json $(addprefix --test ,$(VM_TESTS)) | \
		sed -n 's|.*"kind":\["test"\].*"executable":"\([^"]*\)".*|\1|p')" && \
	scripts/vm.sh "$(BINARY)" $$programs

# The real CRI-O, in a version that scripts/crio.sh names; building it takes minutes, once.
test-crio: ## podinit under the real CRI-O, asked by crictl as the kubelet would (root, go)
	@scripts/deps.sh build test crio
	@$(MAKE) --no-print-directory static-binary
	PODINIT_CRIO="$$(scripts/crio.sh "$(CARGO_TARGET)/crio")" PODINIT_BINARY="$(abspath $(BINARY))" && \
		export PODINIT_CRIO PODINIT_BINARY && $(cargo) test --locked --no-run --test real_crio && \
		env --default-signal scripts/private-mounts.sh env $(cargo) test --locked --test real_crio

# A debug build in a directory of its own: the feature is not in the released binary.
test-tracing: ## spans of requests, with a real collector and the published Go client (root, go)
	@scripts/deps.sh build test
	@$(MAKE) --no-print-directory static-binary
	$(cargo) build --locked --features tracing-otlp --bin podinit --target-dir "$(CARGO_TARGET)/tracing"
	$(cargo) clippy --locked --features tracing-otlp --lib --target-dir "$(CARGO_TARGET)/tracing" -- -D warnings
	PODINIT_BINARY="$(abspath $(BINARY))" PODINIT_TRACING_BINARY="$(abspath $(CARGO_TARGET))/tracing/debug/podinit" \
		scripts/go.sh test -count=1 -run 'TestTracing' -v .

schema: ## write the generated Cap'n Proto code anew, after a change of schema/*.capnp
	@scripts/deps.sh build check
	PODINIT_UPDATE_SCHEMA=1 $(cargo) test --locked --quiet --test schema

demo: ## the main job on a terminal, in under a minute after the build (root)
	@scripts/deps.sh build demo
	@$(MAKE) --no-print-directory static-binary
	@scripts/demo.sh "$(BINARY)"

bench: ## memory, latency, hooks and seccomp of this build, beside the bare OCI runtime and conmon (root)
	@scripts/deps.sh build bench
	@$(MAKE) --no-print-directory static-binary
	@scripts/bench.sh "$(BINARY)"
	PODINIT_BINARY="$(abspath $(BINARY))" $(cargo) bench --locked --bench memory --bench latency --bench hooks --bench seccomp

install: ## target/podinit to DESTDIR/PREFIX/bin, and the names it also answers to
	@test -x "$(BINARY)" || { echo 'install: run `make build` first' >&2; exit 1; }
	install -D -m 0755 "$(BINARY)" "$(DESTDIR)$(BINDIR)/podinit"
	ln -sf podinit "$(DESTDIR)$(BINDIR)/conmonrs"
	ln -sf podinit "$(DESTDIR)$(BINDIR)/pinns"

clean: ## what was built
	cargo clean
	rm -f "$(BINARY)"
