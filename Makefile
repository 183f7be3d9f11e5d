# Every target sets up what it needs: on a fresh machine, `make demo` is the only command.

PYTHON ?= python3
# Test processes. Each keeps to one thread, so this is the number of cores to use.
JOBS ?= 2
# Passed on to pytest: make test ARGS="-k beit"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo real test lint format docs zoo bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## the main job on the built-in models and images; report in out/demo
	$(BIN)/hooked-vit demo --out out/demo

real: $(READY) ## the same of a pretrained model and photographs, from the hub; report in out/real
	$(BIN)/hooked-vit demo --real --out out/real

test: $(READY) ## all tests
	$(BIN)/pytest -n $(JOBS) --dist loadgroup $(ARGS)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY) ## what ruff can put right by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY) ## the documentation as a site, in out/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 HF_HUB_OFFLINE=1 $(BIN)/python -m mkdocs build --strict

zoo: $(READY) ## train the built-in models again
	$(BIN)/python -m zoo_training.train_zoo

bench: $(READY) ## speed beside transformers, into docs/benchmarks.md; under ten minutes where nothing else runs
	$(BIN)/python -m benchmarks --page docs/benchmarks.md

clean: ## forget the environment, caches and outputs
	rm -rf $(VENV) out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes in alone and by its exact version. Left free, it is the newest build with gigabytes of CUDA libraries;
# asked for first, a CPU build of that version that is already there, or that pip is set up to prefer, is kept.
# timm, which tests compare with, needs torchvision, whose wheel on the package index fits torch's CUDA build only: beside
# a CPU build it cannot be imported, and transformers with it. So both stand in a folder that only those tests look into.
$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -c constraints.txt --no-deps --upgrade --target $(VENV)/timm timm torchvision
	@touch $@

# Also runs when the interpreter behind an old .venv has gone; hence --clear.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("hooked-vit needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; say which with: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv --clear $(VENV)
