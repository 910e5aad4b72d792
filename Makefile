# Two commands do everything on a fresh clone with only Python there:
#   make demo   trains a small network on real digits and logs its modes and basins
#   make test   runs the tests, but for the slow ones
# Both keep to a virtual environment in .venv and install the versions in constraints.txt.

PYTHON ?= python3
VENV ?= .venv
# Passed to pytest: make test ARGS="-k basin -x"
ARGS ?=
# Processes that run tests, each a file at a time: make test WORKERS=4. 0 runs them in pytest's own.
WORKERS ?= 2

BIN := $(VENV)/bin
LOWEST := .venv-lowest
PIP_INSTALL := -m pip --disable-pip-version-check install

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo reproduce test test-slow test-lowest test-matrix package mutants lint types docs bench screenshots format clean distclean

help:
	@echo "make demo         train the quickstart and print its report"
	@echo "make reproduce    put the papers' claims to the test on MNIST (MNIST_DIR; ARGS=--quick)"
	@echo "make test         run the tests, but for the slow ones (ARGS is passed to pytest)"
	@echo "make test-slow    run the slow tests"
	@echo "make test-lowest  run all tests with the oldest supported versions"
	@echo "make test-matrix  run them with the lowest, a middle and the newest versions, and write the table (ARGS=--help)"
	@echo "make package      build what an index gets, install it into an empty environment and run the quickstart there"
	@echo "make mutants      change the numeric files in one place at a time; see tests/mutants.md (ARGS: which files)"
	@echo "make lint         check style"
	@echo "make types        check types"
	@echo "make docs         build the documentation in build/docs"
	@echo "make bench        measure what netdyn costs and write docs/benchmarks.md (a quarter of an hour)"
	@echo "make screenshots  take the picture of TensorBoard in docs/images (needs Chromium)"
	@echo "make format       rewrite the code in the project's style"
	@echo "make clean        remove caches and build results"
	@echo "make distclean    remove these, the environments and the logs too"

# A stamp is touched last, so an interrupted installation starts again; it is older than pyproject.toml or
# the constraints only when one of them has changed since.
# The package takes Python 3.10 too, but not what constraints.txt pins.
$(LOWEST)/.stamp-venv: OLDEST := 10
$(VENV)/.stamp-venv: OLDEST := 11
$(VENV)/.stamp-venv $(LOWEST)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, $(OLDEST)))' \
		|| { echo "this needs Python 3.$(OLDEST) or newer; choose one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(@D) \
		|| { echo "no virtual environment could be made; Debian and Ubuntu keep it in the package python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.stamp-examples: pyproject.toml constraints.txt | $(VENV)/.stamp-venv
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[examples]"
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(VENV)/.stamp-venv
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[dev]"
	@touch $@

$(LOWEST)/.stamp-dev: pyproject.toml constraints-lowest.txt | $(LOWEST)/.stamp-venv
	$(LOWEST)/bin/python $(PIP_INSTALL) -c constraints-lowest.txt -e ".[test]"
	@touch $@

demo: $(VENV)/.stamp-examples
	$(BIN)/python examples/quickstart.py

# One thread: the tests are many small steps, and threads that wait for each other by spinning slow them down.
# A file's tests stay together, since they share fixtures. The files keep their order, in which the long ones stand
# before many short ones; pytest-xdist would take first what has most tests, and last what takes longest.
PYTEST := -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m slow $(ARGS)

# Old releases may warn of what they have since repaired, so here a warning is no error.
test-lowest: $(LOWEST)/.stamp-dev
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python $(PYTEST) -W default $(ARGS)

# Pythons 3.10, 3.12 and 3.13, each with an environment in .venv-matrix; torch brings gigabytes of CUDA.
test-matrix:
	$(PYTHON) tests/matrix.py --workers $(WORKERS) $(ARGS)

# What an index would get, in dist, and what one would have who installs it from there: the quickstart runs outside of
# the checkout. PACKAGE_ARGS= without constraints installs the newest version of everything.
PACKAGE_ARGS ?= -c constraints.txt
package: $(VENV)/.stamp-dev
	rm -rf dist build/package
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/package
	build/package/bin/python $(PIP_INSTALL) $(PACKAGE_ARGS) "$$(echo dist/*.whl)[examples]"
	cp examples/quickstart.py build/package
	cd build/package && bin/python -c "import netdyn; print(netdyn.__version__, netdyn.__file__)" && bin/python quickstart.py --epochs 3

# A random part of some thousands of changes, in WORKERS processes. ARGS="modes/shares.py" takes some files, --all all
# changes.
mutants: $(VENV)/.stamp-dev
	$(BIN)/python tests/mutants.py --workers $(WORKERS) $(ARGS)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.stamp-dev
	$(BIN)/mypy

reproduce: $(VENV)/.stamp-examples
	$(BIN)/python examples/reproduce/all.py $(ARGS)

# Strict: a warning, a link that leads nowhere or a tag that no page explains is an error. Not with --quiet, which
# silences warnings before they are counted.
docs: $(VENV)/.stamp-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open build/docs/index.html"

# What netdyn is compared with goes into environments of its own, build/peers.
bench: $(VENV)/.stamp-dev
	$(BIN)/python benchmarks/run.py

screenshots: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 NETDYN_BROWSER=required NETDYN_SCREENSHOTS=docs/images $(BIN)/python -m pytest -k screenshots tests/integration/test_browser.py

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests examples benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(LOWEST) .venv-matrix checkpoints lightning_logs logs runs
