# raylet-uring: see README.md. `make help` lists what there is.

PY := .venv/bin/python
BIN := target/release/raylet-uring
CARGO ?= cargo
# What `make fuzz` gives to each target.
FUZZ_SECONDS ?= 60
# What `make sim-nightly` plays: the first seed, and steps of each simulator.
SIM_SEED ?= $(shell date +%Y%m%d)000
SIM_STEPS ?= 100000000
# Passed on to pytest, such as PYTEST="-k fairness".
PYTEST ?=

export RAYLET_TEST_PYTHON := $(abspath $(PY))

.DEFAULT_GOAL := help
.PHONY: help setup build attach detach run test lint test-rust test-ray test-ray-stock package test-package test-otel test-netns test-systemd test-shuffle sim-nightly fuzz bench-ray bench-native bench-scaling miri clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

setup: ## install what is missing: system packages, .venv with Ray
	@./scripts/setup.sh

# hwloc is linked in, so that what is built is also what is packaged, and runs where another hwloc or none is installed.
build: setup ## build the release executables
	@./scripts/static_hwloc.sh target/hwloc
	PKG_CONFIG_PATH=$(abspath target/hwloc) $(CARGO) build --locked --release --workspace --bins

attach: build ## make the Ray in .venv use raylet-uring
	@$(BIN) attach $(PY) >/dev/null

detach: ## give the Ray in .venv its own raylet back
	@$(BIN) detach $(PY)

run: attach ## start Ray on raylet-uring, run the programs in tests/programs, print a table
	@$(PY) scripts/run.py

test: lint test-rust test-ray test-package ## everything that CI runs

lint: setup ## formatting and clippy, warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

test-rust: setup ## tests of the crates, and 10 million steps of the simulators
	$(CARGO) test --locked --workspace
	$(CARGO) test --locked --release -p raylet-shard --test sim_store --test sim_sched --test sim_cluster --test sim_pull -- --nocapture

test-ray: attach ## the end-to-end suite on raylet-uring
	$(CARGO) build --locked --release -p raylet-transport --example beside_ray
	RAYLET_UNDER_TEST=ours $(PY) -m pytest tests/ray $(PYTEST)

test-ray-stock: setup ## the same suite on Ray's own raylet: what the suite may ask for
	@if [ -x $(BIN) ] && $(BIN) attach --status $(PY) >/dev/null 2>&1; then $(BIN) detach $(PY); fi
	RAYLET_UNDER_TEST=stock $(PY) -m pytest tests/ray $(PYTEST)

package: build ## a Debian package and a wheel, in target/package
	@./scripts/setup.sh package
	@$(PY) scripts/package/package.py --binary $(BIN) --out target/package

test-package: package ## install and remove the packages in clean places, check the unit, completions and man pages
	$(PY) -m pytest tests/package $(PYTEST)

test-otel: setup ## the feature `otel`: lint, and spans that reach a collector (not part of `make test`)
	$(CARGO) clippy --locked --features otel --all-targets -- -D warnings
	$(CARGO) test --locked --features otel --test otel

test-netns: attach ## hosts in network namespaces: cables that are pulled, and wires that carry little (needs root; not part of `make test`)
	RAYLET_UNDER_TEST=ours $(PY) -m pytest tests/netns $(PYTEST)

test-systemd: build ## the packages' unit under a systemd of its own, in namespaces (needs root; not part of `make test`)
	@./scripts/setup.sh package
	$(PY) -m pytest tests/systemd $(PYTEST)

test-shuffle: attach ## Ray Data shuffles 2 GiB through a store of 512 MiB (minutes; not part of `make test`, which shuffles less)
	RAYLET_UNDER_TEST=ours RAYLET_SHUFFLE_MIB=2048 $(PY) -m pytest tests/ray/test_data_shuffle.py $(PYTEST)

sim-nightly: setup ## the simulators for SIM_STEPS steps each (100 million) from SIM_SEED on (the day's date): hours; not part of `make test`
	@echo "simulators: seed $(SIM_SEED), $(SIM_STEPS) steps each; again with SIM_SEED=$(SIM_SEED) SIM_STEPS=$(SIM_STEPS)"
	RAYLET_SIM_SEED=$(SIM_SEED) RAYLET_SIM_STEPS=$(SIM_STEPS) $(CARGO) test --locked --release --no-fail-fast -p raylet-shard --test sim_store --test sim_sched --test sim_cluster --test sim_pull -- --nocapture

fuzz: setup ## fuzz the socket protocols, FUZZ_SECONDS each (needs rustup)
	@./scripts/fuzz_tools.sh
	./fuzz/run.sh $(FUZZ_SECONDS)

bench-ray: build ## the stock raylet beside ours: table, JSON and plot in bench-results/
	$(PY) benches/ray/bench_ray.py --out bench-results/

bench-native: build ## the native door beside the machine's limits and stock: table, JSON and plot in bench-results/
	$(PY) benches/ray/bench_native.py --out bench-results/

bench-scaling: build ## native leases and puts from 1 to 16 cores: JSON and plot in bench-results/
	$(PY) benches/ray/bench_scaling.py --out bench-results/

miri: ## the rings' code under Miri (needs a nightly toolchain with miri)
	MIRIFLAGS=-Zmiri-disable-isolation $(CARGO) +nightly miri test --locked -p raylet-transport --no-default-features --lib ring:: -- --skip uring::

clean: ## remove what was built; the stock raylet is put back first
	@if [ -x $(BIN) ] && [ -x $(PY) ] && $(BIN) attach --status $(PY) >/dev/null 2>&1; then $(BIN) detach $(PY); fi
	$(CARGO) clean
	rm -rf .venv bench-results fuzz/target fuzz/corpus fuzz/artifacts
