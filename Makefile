# README's two commands: `make demo` sets up and runs the main job, `make test` sets up and runs the tests.
# Both install the pinned, hashed set of requirements/ (Python 3.11 on Linux x86_64); `make lock` makes it anew.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile
PROJECT := --no-deps --no-build-isolation --editable .
export OMP_NUM_THREADS ?= 1
# Real benchmark files for the tests that can use them, where a folder of them is at hand.
export HARNESS_BENCH_FILES ?= $(wildcard ../shared/bench)

.PHONY: demo setup lock cluster test tests test-all nightly nightly-gate nightly-runs nightly-chaos nightly-benchmarks \
	nightly-matrix nightly-oldest nightly-newest lint types wheel clean

demo: $(VENV)/.installed
	$(BIN)/harness eval --defense rece --bench ring-a-bell-k77 --profile shapes

setup: $(VENV)/.dev

$(VENV)/.installed: requirements/run.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v == (3, 11) or sys.exit(f"the pinned set is for Python 3.11, and this is {v[0]}.{v[1]}: make PYTHON=PATH, or pip install -e .[dev]")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes -r requirements/run.txt
	$(PIP) $(PROJECT)
	touch $@

$(VENV)/.dev: $(VENV)/.installed requirements/dev.txt
	$(PIP) --require-hashes -r requirements/dev.txt
	touch $@

# The pinned sets, from the ranges in pyproject.toml: dev.txt holds all, run.txt what a run needs,
# cluster.txt what the image of a cluster needs besides.
# `make lock UPGRADE=--upgrade` takes the newest release of everything but what requirements/held.in holds.
UV := .venv-lock/bin/uv
COMPILE = $(UV) pip compile pyproject.toml requirements/build.in --quiet --generate-hashes --no-annotate \
	--custom-compile-command "make lock" --python-version 3.11 --python-platform x86_64-manylinux_2_28
lock: $(UV)
	$(COMPILE) $(UPGRADE) --extra dev --constraints requirements/held.in -o requirements/dev.txt
	$(COMPILE) $(UPGRADE) --constraints requirements/dev.txt -o requirements/run.txt
	$(COMPILE) $(UPGRADE) --constraints requirements/dev.txt --extra cluster --extra s3 -o requirements/cluster.txt

$(UV):
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet uv

# cluster.yaml and cluster/ from cluster/settings.yaml.
cluster: $(VENV)/.dev
	$(BIN)/python tools/cluster/generate.py

# A file of tests stays in one process; those that start Ray use all cores themselves. Both halves run and are reported.
TESTS = $(BIN)/python -m pytest -rs
test: $(VENV)/.dev tests
tests:
	@$(TESTS) -m "not slow and not ray" -n auto --dist loadfile; without=$$?; \
	$(TESTS) -m "not slow and ray"; with=$$?; \
	echo "exit codes of pytest: $$without without Ray, $$with with Ray"; \
	test $$without -eq 0 && test $$with -eq 0

# The nightly, one test after another.
test-all: $(VENV)/.dev
	$(TESTS)

# Every night on the shapes world: runs of every defense, kills, speed. What they leave lies in nightly/.
nightly: nightly-gate nightly-runs nightly-chaos nightly-benchmarks

NIGHTLY = OMP_NUM_THREADS=1 HARNESS_STORE=nightly/store
# Every defense that needs no training, row by row beside the committed baseline: see docs/nightly.md.
GATE = none,sd-np,sld-medium,sld-max,uce,rece,safree
nightly-gate: $(VENV)/.installed
	$(NIGHTLY) HARNESS_OUT=nightly/gate $(BIN)/harness eval --defense $(GATE) --bench ring-a-bell-k77,benign --concept nudity --profile shapes --limit 24
	$(BIN)/harness baseline check nightly/gate/*

nightly-runs: NIGHTLY += HARNESS_OUT=nightly/runs
nightly-runs: $(VENV)/.installed
	$(NIGHTLY) $(BIN)/harness eval --defense all --bench ring-a-bell-k77,benign --concept nudity --profile shapes --limit 16

nightly-chaos: $(VENV)/.dev
	$(TESTS) -m slow tests/pipeline/test_chaos.py tests/pipeline/stages/test_build.py

nightly-benchmarks: $(VENV)/.dev
	mkdir -p nightly
	$(BIN)/python -m benchmarks.overhead | tee nightly/overhead.md

# The nightly's oldest and newest libraries that pyproject.toml allows: every test but the long ones, in an environment
# of their own each.
nightly-matrix:
	@$(MAKE) nightly-oldest; oldest=$$?; $(MAKE) nightly-newest; newest=$$?; \
	echo "exit codes: $$oldest with the oldest libraries, $$newest with the newest"; test $$oldest -eq 0 && test $$newest -eq 0

nightly-oldest: RESOLUTION = lowest-direct
nightly-newest: RESOLUTION = highest
nightly-oldest nightly-newest: nightly-%: $(UV)
	$(UV) pip compile pyproject.toml requirements/build.in --quiet --no-annotate --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --extra dev --resolution $(RESOLUTION) -o .venv-lock/$*.txt
	test -d .venv-$* || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --no-compile -r .venv-lock/$*.txt
	.venv-$*/bin/python -m pip install --quiet --no-compile $(PROJECT)
	.venv-$*/bin/python -m pip list | grep -iE "^(ray|torch|diffusers|transformers|pydantic|numpy|pyarrow) "
	$(MAKE) --no-print-directory tests BIN=.venv-$*/bin

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf dist build .venv .venv-* runs nightly .harness
