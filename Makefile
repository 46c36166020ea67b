# Everything is run from here; bare `make` lists the tasks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# text of help and tables must not depend on the terminal that make was started in
export COLUMNS := 100

.PHONY: help demo test lint bench bench-accuracy fuzz completions clean
.DEFAULT_GOAL := help

help: ## list the tasks
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spectralift needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## run the whole pipeline on a real scene and print what it made
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/quickstart.sh demo

lint: $(STAMP) ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# the tests share the CPUs among processes: threads of the linear algebra would wait for each other
test: lint ## lint, types and tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

bench: $(STAMP) ## measure speed and memory; BENCH=name runs one, BENCH_DIR=folder holds the files
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.bench $(BENCH)

bench-accuracy: $(STAMP) ## accuracy of auto against paper; SPECTRALIFT_SCENES=folder adds scenes to Indian Pines
	$(BIN)/python -m tests.bench.accuracy --csv accuracy.csv --table examples/accuracy.md

fuzz: $(STAMP) ## mutate files of every kind and read them, FUZZ_SECONDS=600 a kind (4.5 h of a processor), TARGET=names
	$(BIN)/python -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),600) $(TARGET)

completions: $(STAMP) ## write the completion scripts
	_SPECTRALIFT_COMPLETE=source_bash $(BIN)/spectralift > completions/spectralift.bash
	_SPECTRALIFT_COMPLETE=source_zsh $(BIN)/spectralift > completions/_spectralift
	_SPECTRALIFT_COMPLETE=source_fish $(BIN)/spectralift > completions/spectralift.fish

clean: ## remove what the other tasks made
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
