# Every entry point sets up what it needs; `make help` lists them.
# Nothing but Rust, Go and make has to be there before; Kubernetes itself is built from its Go modules.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

CARGO ?= cargo
CACHE := $(or $(BACKSTEP_TESTBED_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME)/backstep,$(HOME)/.cache/backstep))
# Asked only when a recipe needs it: a folder set by the environment or by a cargo configuration counts.
BIN = $$($(CARGO) metadata --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/debug

CARGO_DENY_VERSION := 0.20.2
CARGO_DENY_ROOT := $(CACHE)/tools/cargo-deny-$(CARGO_DENY_VERSION)
CARGO_DENY := $(CARGO_DENY_ROOT)/bin/cargo-deny

.PHONY: help demo test programs bench lint generate build fmt advisories image testbed clean-testbed rust go

help: ## List what can be made
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: testbed ## Roll a bad release back, under approval, on a real control plane that is gone afterwards (BACKSTEP_DEMO_CONTEXT=… uses yours)
	@BIN="$(BIN)" demo/run.sh

test: programs ## Run every test, against real Kubernetes components where it takes them
	.ci/test --workspace --locked

programs: rust go
	$(CARGO) test --workspace --locked --no-run
	"$(BIN)/testbed" build

bench: rust go ## Measure the performance goals of docs/performance.md (release build), ARGS=--quick for a short run
	$(CARGO) bench --locked --bench yardstick -- $(ARGS)

lint: rust $(CARGO_DENY) ## Check format, clippy, dependencies, generated files and that the pure rooms stay pure
	$(CARGO) fmt --all --check
	$(CARGO_DENY) --log-level warn check --hide-inclusion-graph bans licenses sources
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) check --lib --no-default-features --locked
	@# Built as the tests are, so that `make test` finds it done.
	$(CARGO) test --workspace --locked --no-run
	"$(BIN)/generate" --check

generate: build ## Write CRDs, chart copies and reference pages from the sources
	"$(BIN)/generate"

build: rust ## Build the operator, the kubectl plugin and the tools
	$(CARGO) build --workspace --bins --locked

fmt: rust ## Format the sources
	$(CARGO) fmt --all

advisories: rust $(CARGO_DENY) ## Compare the dependencies with the RustSec advisories (needs GitHub; changes with the day, so no part of lint)
	$(CARGO_DENY) check advisories

image: ## Build the operator's container image, IMAGE=backstep:dev (needs docker or podman)
	$$(command -v docker || command -v podman || { echo "make image: neither docker nor podman is installed" >&2; exit 1; }) \
	  build --tag $(or $(IMAGE),backstep:dev) .

testbed: build go ## Build the Kubernetes programs that tests and the demo run (once per version, kept in the cache folder)
	"$(BIN)/testbed" build

clean-testbed: build ## End every running test bed
	"$(BIN)/testbed" down --all

rust:
	@command -v $(CARGO) >/dev/null || { echo "make: Rust is missing: install it from https://rustup.rs" >&2; exit 1; }
	@for component in rustfmt clippy; do \
	  case $$component in rustfmt) tool=fmt ;; *) tool=$$component ;; esac; \
	  $(CARGO) $$tool --version >/dev/null 2>&1 || rustup component add $$component \
	    || { echo "make: $$component is missing and rustup could not add it: install it with your Rust toolchain" >&2; exit 1; }; \
	done

go:
	@command -v go >/dev/null || { echo "make: Go is missing (it builds the Kubernetes programs of the tests): install 1.26 or newer from https://go.dev/dl" >&2; exit 1; }

# Without optimisation: it runs for seconds and would take minutes longer to build.
$(CARGO_DENY):
	@echo "Building cargo-deny $(CARGO_DENY_VERSION) into $(CARGO_DENY_ROOT): once, some minutes"
	@CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install --quiet --locked --debug --version $(CARGO_DENY_VERSION) --root "$(CARGO_DENY_ROOT)" cargo-deny
