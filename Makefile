# Two commands for a fresh machine: `make demo` and `make test`. Both make their own environment in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PYTEST  = $(BIN)/pytest -n 2 --dist worksteal
SHORT   = -m "not slow and not real and not gpu"
# In these tests processes start or die under conditions in which coverage cannot write its own data.
COVERED = not full_for_everybody and not workers_cut_the_same_crops and not workers_change_nothing

.PHONY: demo test test-all slow fuzz valid faults coverage mutants lint docs docs-links clean

demo: $(VENV)/.installed  ## simulate a scan, process it, compare methods
	$(BIN)/chisep demo demo-out

test: lint  ## style, types, import contract, and the tests that take minutes
	$(PYTEST) $(SHORT)

test-all: lint  ## all tests, with shapes and types of every call checked; real data where ../shared has them
	CHISEP_TYPECHECK=1 $(PYTEST)

slow: $(VENV)/.installed-dev  ## the tests that `make test` leaves out
	$(PYTEST) -m "slow or real or gpu"

fuzz: $(VENV)/.installed-dev  ## thousands of malformed files, names and calls
	CHISEP_FUZZ=long $(PYTEST) tests/hostile -k "not valid and not private and not offline"

valid: $(VENV)/.installed-dev  ## the validator of BIDS on all that chisep writes
	CHISEP_FUZZ=long $(PYTEST) tests/hostile/test_valid.py

faults: $(VENV)/.installed-dev  ## processes killed, frozen and cut off at more moments
	CHISEP_FUZZ=long $(PYTEST) tests/execution/test_faults.py tests/pipeline/test_session.py -k "faults or killed"

coverage: $(VENV)/.installed-dev  ## which lines and branches the tests of `make test` run
	$(PYTEST) $(SHORT) -k "$(COVERED)" --cov --cov-report=term:skip-covered

mutants: $(VENV)/.installed-dev  ## plant faults one by one; `make test` has to notice each
	$(BIN)/python tools/mutants.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs  ## the documentation as a site; the build needs no network, and warnings are errors
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo docs/_build/html/index.html

docs-links:  ## list links to other hosts; nothing is opened
	$(PYTHON) tools/external_links.py

$(VENV)/.installed-docs: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[docs,train,slurm]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) demo-out docs/_build docs/reference/_api
