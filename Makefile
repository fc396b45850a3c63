# `make quickstart` and `make test` are the two commands; both begin with `make install`.
# Python 3.11 or newer, pip and make are all that is needed. PYTHON=… chooses another interpreter.

PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.13 python3.14 python,$(shell \
	$(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNELS := $(VENV)/.kernels
# Where pyright finds the folders that install inside the package: an editable install tells only Python itself.
TYPES := $(VENV)/types/instructlit

.PHONY: install test lint types quickstart wheel clean

install: $(STAMP)

# Debian splits ensurepip from Python: there the environment is made without pip and filled from outside.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; name one with PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --clear --without-pip $(VENV)

# pip of the environment, or one from outside that is told of it.
PIP := $$($(BIN)/python -m pip --version >/dev/null 2>&1 && echo "$(BIN)/python -m pip" \
	|| echo "$(PYTHON) -m pip --python $(BIN)/python")

# pip compiles on one core, this on all; of a few libraries some files are templates, which nothing can compile.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --no-compile --constraint constraints.txt --editable '.[dev,wandb,8bit,eval,label]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	mkdir -p $(TYPES)
	for part in callbacks configs tools instructlit/__init__.py; do ln -sfn ../../../$$part $(TYPES)/; done
	touch $@

# Triton comes with torch's builds for CUDA. Beside one for CPUs its interpreter runs the tests of a GPU's kernels; not
# pinned, for each torch has its own, and where there is none the tests say that they are skipped.
$(KERNELS): $(STAMP)
	$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) install triton \
		|| echo "No Triton for this platform: the tests of a GPU's kernels are skipped" >&2
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright --pythonpath $(BIN)/python

# One thread a worker: two workers with a pool of threads each are slower than one. Three workers for two cores, as some
# tests wait for processes of their own. By default one worker is dealt all of the integration tests in advance, and the
# others may have nothing left to do beside them; with worksteal they take half of what it has left.
test: lint types $(KERNELS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal -q

quickstart: install
	$(BIN)/instructlit quickstart

wheel: install
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist *.egg-info
