# One entry point for people and CI. `make help` lists what there is.
SHELL := /bin/bash
CARGO ?= cargo
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin
# More flags for cargo test, for example --no-fail-fast.
TEST_FLAGS ?=
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Of cargo, for the demo: dev where nobody waits for an optimised build.
PROFILE ?= release
PROGRAMS = $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

.PHONY: help demo demo-stop build test test-unit test-lab test-cluster lint bench cross cross-tests deb qemu-image qemu-device

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Run the demo; KEEP=1 leaves it running
	@.ci/setup lab
	$(CARGO) build --profile $(PROFILE) --workspace --bins --locked
	KEEP=$(KEEP) $(PROGRAMS)/hyperion-demo

demo-stop: ## Stop what `make demo KEEP=1` left running
	@test -x $(PROGRAMS)/hyperion-demo || { echo "nothing was built, so nothing was left running"; exit 0; }; \
	$(PROGRAMS)/hyperion-demo stop

build: ## Build the programs (release)
	@.ci/setup build
	$(CARGO) build --release --workspace --bins --locked

# Programs and test programs in one call: cargo then builds each dependency once, with one set of
# features. `--workspace` everywhere for the same reason.
test: ## Run all tests, those with containers too
	@.ci/setup lab || echo "tests that need what is missing say SKIPPED"
	$(CARGO) build --workspace --bins --tests --locked
	CARGO="$(CARGO)" .ci/tests $(TEST_FLAGS)

test-unit: ## Run the tests inside the crates: nothing but a compiler is needed
	@.ci/setup build
	$(CARGO) test --workspace --lib --bins --locked

test-lab: ## Run the end-to-end tests: real containerd, agents, control plane, kubectl
	@.ci/setup lab
	$(CARGO) build --workspace --bins --tests --locked
	. .ci/lib && HYPERION_LAB_REQUIRED=1 $(CARGO) test --workspace "$${lab_tests[@]}" --locked -- --nocapture

# Not part of `make test`: the API server takes long to build, once, and each fleet starts one.
test-cluster: ## Run them on a real Kubernetes API server too (built with Go, once)
	@.ci/setup lab
	$(CARGO) build --workspace --bins --tests --locked
	@TEST_FLAGS="$(TEST_FLAGS)" .ci/test-cluster

lint: ## Check formatting, lints and the arrows between crates
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	.ci/arrows --self-test
	.ci/arrows

bench: build ## Measure: the link, start-up, the agent (JSON on standard output)
	$(TARGET)/release/hyperion-bench link --agents 10000 --interval 1s --seconds 60 --json
	$(TARGET)/release/hyperion-bench start --workloads 100 --json
	$(TARGET)/release/hyperion-bench agent --seconds 60 --containers 10 --json

cross: ## Build the agent for Jetson boards (aarch64, glibc 2.31) and check it
	CARGO_TARGET_DIR=$(TARGET) .ci/cross

# Not part of CI: half an hour, most of it builds.
cross-tests: ## Run the agent's unit tests for aarch64 under qemu, and compare two builds
	CARGO_TARGET_DIR=$(TARGET) .ci/cross --tests --twice

# Architecture of the package.
ARCH ?= $(shell dpkg --print-architecture 2>/dev/null)
DEB_PROGRAM = $(TARGET)/$(if $(filter arm64,$(ARCH)),aarch64-unknown-linux-gnu/)device/hyperion-agent

deb: ## Make the agent's Debian package in target/deb; ARCH=arm64 for Jetson boards
	@.ci/setup build
	$(if $(filter arm64,$(ARCH)),CARGO_TARGET_DIR=$(TARGET) .ci/cross,$(CARGO) build --profile device -p hyperion-agent --locked)
	images/deb/build $(DEB_PROGRAM) $(TARGET)/deb

qemu-image: cross build ## Make the disk image of the emulated device (arm64) in target/qemu
	images/qemu/preload $(TARGET)/release/hyperion-image $(TARGET)/qemu/preload
	images/qemu/build --preload $(TARGET)/qemu/preload \
		"$$(images/deb/build $(TARGET)/aarch64-unknown-linux-gnu/device/hyperion-agent $(TARGET)/deb)" $(TARGET)/qemu/device.img

qemu-device: cross build ## Boot one: it enrols by itself and runs a workload; KEEP=1 leaves it running, UPDATE=1 updates it, CUTS=10 cuts its power
	@.ci/setup lab
	CARGO_TARGET_DIR=$(TARGET) .ci/qemu-device $(if $(KEEP),--keep) $(if $(UPDATE),--update) $(if $(CUTS),--cuts $(CUTS))
