# A newcomer types `make demo` or `make test`; both set up what they need in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: setup demo test test-all matrix lint bench clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade --quiet pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	# Compiled now, for environments that never write bytecode, and on all cores, which pip does not.
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null || true
	touch $@

# Another data set: make demo ARGS='--data-dir path/to/images'
demo: setup
	$(BIN)/timm-molly demo $(ARGS)

test: setup
	$(BIN)/python -m pytest -n auto -m 'not train and not hub_faults and not slow' $(ARGS)

test-all: setup
	$(BIN)/python -m pytest -n auto $(ARGS)

# One environment: make matrix ARGS='-s oldest'
matrix: setup
	$(BIN)/nox $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rows that need more than is installed here say so. The authors' code: pip install lightning torch-dct, then
# MOLLY_AUTHORS_CODE=path/to/checkout make bench. timm's own script: TIMM_TRAIN_SCRIPT=path/to/train.py make bench
bench: $(VENV)/.bench
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds -rs $(ARGS)

$(VENV)/.bench: $(VENV)/.done
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) .nox build dist output .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
