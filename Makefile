# One entry point for people and CI. `make help` lists what there is.
SHELL := /bin/bash
CARGO ?= cargo
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin
TARGET := $(or $(CARGO_TARGET_DIR),target)
# The crate whose tests start containers; they share the machine, so they run one at a time.
LAB := hyperion-lab

.PHONY: help demo demo-stop build build-debug test test-unit test-lab lint fmt bench setup

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Run the demo; KEEP=1 leaves it running
	@.ci/setup lab
	$(CARGO) build --release --workspace --bins --locked
	KEEP=$(KEEP) $(TARGET)/release/hyperion-demo

demo-stop: ## Stop what `make demo KEEP=1` left running
	@test -x $(TARGET)/release/hyperion-demo || { echo "nothing was built, so nothing was left running"; exit 0; }; \
	$(TARGET)/release/hyperion-demo stop

build: ## Build the programs (release)
	@.ci/setup build
	$(CARGO) build --release --workspace --bins --locked

build-debug:
	$(CARGO) build --workspace --bins --locked

test: setup build-debug test-unit test-lab ## Run all tests, those with containers too

setup:
	@.ci/setup lab

test-unit: ## Run the tests that need nothing but a compiler
	$(CARGO) test --workspace --exclude $(LAB) --locked

test-lab: build-debug ## Run the end-to-end tests: real containerd, agents, control plane, kubectl
	$(CARGO) test -p $(LAB) --locked -- --test-threads=1 --nocapture

lint: ## Check formatting, lints and the arrows between crates
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	.ci/arrows --self-test
	.ci/arrows

bench: build ## Measure: the link, start-up, the agent (JSON on standard output)
	$(TARGET)/release/hyperion-bench link --agents 10000 --interval 1s --seconds 60 --json
	$(TARGET)/release/hyperion-bench start --workloads 100 --json
	$(TARGET)/release/hyperion-bench agent --seconds 60 --containers 10 --json
