# Every target sets up what it needs on a fresh machine. Needs Python 3.10 or newer and pip's network or cache.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.efficient-sam2-ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
VERSION = $(BIN)/python -c 'from importlib.metadata import version as v; print(v("$(1)"))'
# processes for the tests; each holds about 1.5 GB
JOBS ?= 2
# a test that hangs ends the run, which names it
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --max-worker-restart 0 -o faulthandler_timeout=480 -o faulthandler_exit_on_timeout=true

.DEFAULT_GOAL := help
.PHONY: help setup demo check test lint lab clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 10

setup: $(STAMP) ## make .venv with torch, sam2, this project and its tools (does nothing when it is there)

# torch comes first and sam2 is built against it: an isolated build would fetch a second torch, and an
# unconstrained torchvision would replace the first.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$$($(PYTHON) --version) found; Python 3.10 or newer is needed; run: make PYTHON=python3.11 setup" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) setuptools wheel numpy
	SAM2_BUILD_CUDA=0 $(PIP) --no-build-isolation sam2 torchvision
	$(PIP) --no-build-isolation --editable '.[notebooks,tables,dev]'
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || echo "torchvision $$($(call VERSION,torchvision)) does not fit torch $$($(call VERSION,torch)): sam2's image predictor and automatic masks won't import (video needs neither); install both from one index: $(BIN)/python -m pip install --force-reinstall torch torchvision" >&2
	@touch $@

demo: $(STAMP) ## probe, calibrate and track made clips; a table, and demo-output/report.html
	$(BIN)/efficient-sam2 demo --out demo-output

lint: $(STAMP) ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint ## style, format, types and every test that starts no process, browser, kernel or cluster
	$(PYTEST) --dist worksteal -m "not process"

test: lint ## style, format, types and every test
	$(PYTEST) --dist loadfile

lab: $(STAMP) ## open the notebooks
	$(BIN)/jupyter lab notebooks

clean: ## remove the environment and everything that was generated
	rm -rf $(VENV) demo-output build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
