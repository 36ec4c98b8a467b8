# On a new machine with Python 3.11 and make, `make demo` and `make test` install everything that they need, once, into
# .cache/ (ignored by git); `make clean` removes it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
CACHE := $(CURDIR)/.cache
VENV := $(CACHE)/venv
BIN := $(VENV)/bin
MINIO_VERSION := v0.0.0-20260212201848-7aac2a2c5b7c
NATS_VERSION := v2.12.15
TOXIPROXY_VERSION := v2.5.0
STATICCHECK_VERSION := v0.8.2
UV_VERSION := 0.13.9
OUTPUT ?= demo

export PATH := $(BIN):$(PATH)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

$(VENV)/.installed: pyproject.toml clients/python/pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11, or give its path with make PYTHON=..." >&2; exit 1; }
	@echo "installing into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e clients/python -e '.[dev]'
	@touch $@

setup: $(VENV)/.installed ## install the Python packages into .cache/venv

minio: setup ## build the pinned MinIO for the tests of the object store (once, some minutes)
	@scripts/go-tool github.com/minio/minio@$(MINIO_VERSION)

nats: setup ## build the pinned nats-server for the tests of the trainer's queue (once)
	@scripts/go-tool github.com/nats-io/nats-server/v2@$(NATS_VERSION)

toxiproxy: setup ## build the pinned toxiproxy for the robustness test (once)
	@scripts/go-tool github.com/Shopify/toxiproxy/v2/cmd/server@$(TOXIPROXY_VERSION) toxiproxy

staticcheck: setup ## build the pinned staticcheck for `make check` (once)
	@scripts/go-tool honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)

triton: setup ## install the pinned Triton Inference Server for its tests (once, 60 MB)
	@scripts/triton

up: setup ## start the three servers on loopback
	@$(BIN)/pseudoword up

demo: setup ## learn a word from four pictures and draw it in six prompts
	@$(BIN)/pseudoword demo -o $(OUTPUT)

check: setup staticcheck ## check formatting, lint, types, layers, protos, generated code, docs, Go
	@scripts/check

unit: setup ## run the fast tests: no server process, no MinIO, no NATS, no Triton (under two minutes; ARGS="-k name")
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not (process or compute or slow or gpu)" $(ARGS)

test: setup minio nats toxiproxy triton ## run all tests except the slow ones, Python and Go
	@scripts/test

miniature: setup ## train the bundled model and its judges into .cache/miniature (hours; ARGS=--help)
	@$(BIN)/python -m miniature train $(ARGS)

slow: setup minio toxiproxy triton ## run the slow tests, which take minutes each
	@$(BIN)/python -m pytest -m slow

robustness: setup minio toxiproxy ## run three registries under random faults for MINUTES (10) and check their responses
	@$(BIN)/python -m tests.robustness.run --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

docs: setup ## build the documentation site into .cache/site; fails for a broken link
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

generate: setup ## generate the stubs from protos/
	@scripts/generate

clean: ## remove everything that was installed or generated
	rm -rf $(CACHE) demo .mypy_cache .ruff_cache .pytest_cache

.PHONY: help setup minio nats toxiproxy staticcheck triton up demo check unit test miniature slow robustness docs generate clean
