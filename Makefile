# Sets up a virtual environment in .venv and works in it; needs no root. From Debian or Ubuntu it takes
# python3 (3.11 or later) with python3-venv, python3-dev, a C compiler and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SOURCES = pyproject.toml $(wildcard hwwatch/_core/*) $(shell find hwwatch -type d ! -name __pycache__)

.PHONY: quickstart test quick denied stress lint bench lab binder newer clean

# Build, run the quickstart notebook without a browser, and print what it found.
quickstart: $(VENV)/installed
	$(BIN)/python notebooks/show.py notebooks/01-who-wrote-this.ipynb

# Build and run all tests.
test: $(VENV)/installed
	$(BIN)/python -m pytest

# The part of the tests that takes less than two minutes.
quick: $(VENV)/installed
	$(BIN)/python -m pytest -m "not slow"

# The hardware tests as in a container: perf_event_open refused; run by root, as an ordinary user.
denied: $(VENV)/installed
	HWWATCH_BACKEND=ptrace $(BIN)/python tests/denied.py $(if $(filter 0,$(shell id -u)),--uid 65534) -- \
	  $(BIN)/python -m pytest -p no:cacheprovider tests/hardware

# Everything at once, at random.
stress: $(VENV)/installed
	$(BIN)/python tests/stress.py $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

lint: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror hwwatch/_core/*.[ch] benchmarks/*.c benchmarks/peers/*.c

# Measured side by side with other tools; those that are not installed are named in the table.
bench: $(VENV)/installed
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	OPENBLAS_NUM_THREADS=1 $(BIN)/python benchmarks/run.py

lab: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lab]'
	$(BIN)/jupyter lab notebooks/01-who-wrote-this.ipynb

# The build steps of binder/ in a fresh Debian root, and the quickstart there without perf events; needs root.
binder:
	.ci/binder

# The quick part of the tests on the Pythons of Debian testing; needs root.
newer:
	.ci/newer

$(VENV)/installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hwwatch needs Python 3.11 or later; $(PYTHON) is older. Name another: make PYTHON=python3.12 …"; exit 1; }
	@command -v "$${CC:-cc}" >/dev/null || { echo "No C compiler: sudo apt install gcc"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { echo "No ensurepip: sudo apt install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
	  { echo "No Python.h: sudo apt install python3-dev"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build
