# The two commands: `make demo` shows Genie, `make test` is everything that must pass.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PROMPT ?= The capital of France is
TOKENS ?= 48
CARGO ?= cargo
# Where rustup puts cargo: for a shell that has not been told, and before a distribution's older one.
export PATH := $(HOME)/.cargo/bin:$(PATH)
# What `make` builds it builds whole: incremental state doubles what a build takes on the disk, for a build that CI makes once.
export CARGO_INCREMENTAL ?= 0
# Processes that the tests kill, of each side and over each link: half of what they do by themselves.
export GENIE_CHAOS_KILLS ?= 50

NATIVE ?=
ONLY ?=
BUILT = $(abspath $(or $(CARGO_TARGET_DIR),target))/debug

PREFIX ?= /usr/local
DESTDIR ?=

.PHONY: help setup install-c model build demo test test-python test-torch test-rdma kernels lint bench figures peers golden clean

help: ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: ## Installs what is missing (and says what)
	@tools/setup

model: setup ## Fetches SmolLM2-135M-Instruct once, into the user's cache
	@tools/fetch-smollm2 > /dev/null

build: setup ## Builds the `genie` command
	@echo "building genie (release)"
	@$(CARGO) build --release --locked -p genie

install-c: setup ## Installs the C library: header, shared and static library, pkg-config file. PREFIX=/usr/local DESTDIR=
	@tools/install-c --prefix "$(PREFIX)" $(if $(DESTDIR),--destdir "$(DESTDIR)")

demo: build model ## A real model answers from a server process; then the semantic-gap table. PROMPT="..." TOKENS=n
	@TOKENS=$(TOKENS) tools/demo

test: setup model lint ## Everything that must pass; CI runs this
	@$(CARGO) build --locked --workspace --all-targets
	@$(CARGO) test --locked --workspace
	@GENIE_COMMAND=$(BUILT)/genie tools/test-python
	@GENIE_COMMAND=$(BUILT)/genie tools/test-python --torch
	@if [ -n "$(NATIVE)" ] || tools/soft-roce --can > /dev/null; then $(MAKE) --no-print-directory test-rdma ONLY=tests; fi
	@if tools/soft-roce --can > /dev/null; then tools/setup --rdma && tools/shaped --far --once; fi
	@NATIVE=$(NATIVE) tools/untested

test-rdma: model ## The tests over RDMA, in a guest with soft-RoCE; NATIVE=1: over this machine's own device. ONLY=tests or ONLY=figures: a part
	@tools/setup --rdma$(if $(NATIVE),-native)
	@NATIVE=$(NATIVE) ONLY=$(ONLY) tools/test-rdma

test-python: model ## The tests of the Python package alone
	@tools/test-python
	@tools/test-python --torch

kernels: setup ## Makes cuda-kernels/ptx and its table from the sources, with a pinned compiler that needs no GPU
	@tools/build-kernels

lint:
	@tools/setup --lint
	@tools/build-kernels --check
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps -q

bench: build ## The criterion benches: codec, small round trip, put; floors beside them
	@$(CARGO) bench --locked -p genie-benches

figures: build model ## Prints every figure of docs/performance.md, each with its command and goal. ONLY=links or ONLY=rest: a part
	@ONLY="$(ONLY)" tools/figures

peers: build ## Genie beside UCX, NIXL, Mooncake, gRPC and others: installs them, writes docs/performance.md's table. ONLY=ucx,raw prints these
	@tools/peers/run $(if $(ONLY),--only $(ONLY),--page docs/performance.md --json docs/peers.json)

golden: model ## Makes the golden files again with the transformers library (installs PyTorch into a scratch environment)
	@tools/golden/make

# As it was typed: dollars and quotes are the prompt's. Make would expand PROMPT itself for the environment.
unexport PROMPT
export GENIE_PROMPT := $(value PROMPT)
