# Two commands do everything: `make quickstart` trains a model, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt
# A process per core and one more, since many tests wait for others, up to eight; each takes tests from another when it
# has none left.
WORKERS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) + 1 )))
# The only places of tests that run alone: others need not be collected for them.
ALONE = tests/slurm $(shell grep -rl 'mark\.alone' tests --include='test_*.py')
# Tests start many processes, each of which would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE
PARALLEL := $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal

.PHONY: help quickstart test test-slow test-all parity-full lint format install constraints clean

help:  ## Show what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

quickstart: $(VENV)/.installed  ## Install, then train a small GPT on the Python library's own sources
	$(BIN)/llmscale train configs/quickstart.yaml

test: $(VENV)/.installed-test  ## Run the tests that are not slow
	$(PARALLEL) -m "not slow and not alone"
	$(BIN)/python -m pytest -m "not slow and alone" $(ALONE)

test-slow: $(VENV)/.installed-oracles  ## Install what slow tests compare with, and run them
	$(PARALLEL) -m "slow and not alone"
	$(BIN)/python -m pytest -m "slow and alone" $(ALONE)

test-all: test test-slow  ## Run all tests

parity-full: $(VENV)/.installed-test  ## Compare every family in every legal layout with one process (over an hour)
	$(BIN)/python -m tests.parity.full

lint: $(VENV)/.installed-test  ## Check style, types, and that nothing stands twice
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.repeated_lines
	$(BIN)/mypy

format: $(VENV)/.installed-test  ## Rewrite the files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed  ## Install into .venv

# torch comes first and by the constraint: installed as somebody's dependency it would be whatever is newest.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "llmscale needs Python 3.10 or newer, but $(PYTHON) is $$($(PYTHON) --version); run make with PYTHON=python3.12" >&2; exit 2; }
	@echo "installing into $(VENV), which takes one to three minutes ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch uv
	@$(INSTALL) --editable '.[plots]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@$(INSTALL) --editable '.[test]'
	@touch $@

$(VENV)/.installed-oracles: $(VENV)/.installed-test
	@$(INSTALL) --editable '.[oracles]'
	@touch $@

constraints: $(VENV)/.installed  ## Bring constraints.txt up to date; torch and deepspeed stay where they are
	@grep -E '^(torch|deepspeed)==' constraints.txt > constraints.pinned
	@{ grep '^#' constraints.txt; \
	   $(BIN)/uv pip compile pyproject.toml --extra test --extra oracles --universal --python-version 3.10 --quiet \
	     --no-header --no-annotate --constraint constraints.pinned | grep -vE '^(nvidia-|cuda-|triton)'; \
	   echo "uv==$$($(BIN)/uv --version | cut -d' ' -f2)"; } > constraints.new
	@mv constraints.new constraints.txt && rm constraints.pinned

clean:  ## Remove the environment and caches; runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
