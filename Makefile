# README's two commands: `make demo` sets up and runs the main job, `make test` sets up and runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
# Real benchmark files for the tests that can use them, where a folder of them is at hand.
export HARNESS_BENCH_FILES ?= $(wildcard ../shared/bench)

.PHONY: demo setup test test-all lint types wheel clean

demo: $(VENV)/.installed
	$(BIN)/harness eval --defense rece --bench ring-a-bell-k77 --profile shapes

setup: $(VENV)/.dev

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

# A file of tests stays in one process; those that start Ray use all cores themselves.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow and not ray" -n auto --dist loadfile
	$(BIN)/python -m pytest -m "not slow and ray"

# The nightly, one test after another.
test-all: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf dist build .venv runs .harness
