# Two commands for a fresh machine: `make demo` and `make test`. Both make their own environment in .venv.
# `make fuzz`, `make valid` and `make faults` are the long forms of tests that `make test` has in a short one.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

.PHONY: demo test lint fuzz valid faults clean

demo: $(VENV)/.installed  ## simulate a scan, process it, compare all methods
	$(BIN)/chisep demo demo-out

test: lint  ## style, types, import contract, tests
	$(BIN)/pytest -n 2 --dist worksteal

fuzz: $(VENV)/.installed-dev  ## thousands of hostile files, names and calls
	CHISEP_FUZZ=long $(BIN)/pytest -n 2 tests/hostile -k "not valid and not private and not offline"

valid: $(VENV)/.installed-dev  ## the validator of BIDS on all that chisep writes
	CHISEP_FUZZ=long $(BIN)/pytest -n 2 tests/hostile/test_valid.py

faults: $(VENV)/.installed-dev  ## processes killed, frozen and cut off at more moments
	CHISEP_FUZZ=long $(BIN)/pytest -n 2 tests/test_faults.py tests/test_pipeline.py -k "faults or killed"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) demo-out
