# SPDX-License-Identifier: MIT
#
# `make demo` and `make test` need python3 >= 3.11 with venv and headers, gcc, make, libc headers and
# PyPI; nothing else has to be there.  The environment that they make in .venv sees this clone:
# .venv/bin/python and .venv/bin/deepep-ptx work from anywhere.  `make VENV=0 PYTHON=python3 demo`
# uses that Python and what it has, and installs nothing.

PYTHON ?= python3
VENV   ?= .venv

# DEPS: what the build needs; DEV: tests, linters and packaging besides; BUILT: the package, built in
# place, and with an environment of the clone's own installed there.
# `| ready`: checked every time, and makes nothing out of date.
ifeq ($(VENV),0)
PY    := $(PYTHON)
DEPS  := | ready
DEV   := | ready
BUILT  = $(IN_PLACE)
else
PY    := $(VENV)/bin/python
DEPS  := $(VENV)/.deps
DEV   := $(VENV)/.dev
BUILT := $(VENV)/.installed
export PATH := $(abspath $(VENV)/bin):$(PATH)
endif

define CHECK_PYTHON
@command -v $(PYTHON) >/dev/null || \
    { echo "$(PYTHON): not found; say make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
    { echo "$(PYTHON) is older than 3.11; say make PYTHON=python3.11 ..." >&2; exit 1; }
endef

IN_PLACE := build/.built-$(subst /,-,$(PY))

# Names of modules: of what builds, and of what the package imports.
define CHECK_PACKAGES
@$(PY) -c 'import sys; from importlib.util import find_spec; \
    missing = ", ".join(name for name in sys.argv[1:] if not find_spec(name)); \
    missing and sys.exit(f"{sys.executable} lacks {missing}: install it there, or leave out " \
                         "VENV=0 for an environment that make sets up")' \
    setuptools Cython numpy ml_dtypes tqdm
endef

PIP     := $(PY) -m pip install --disable-pip-version-check
SOURCES := setup.py pyproject.toml ptx/variants.toml ptx/variants.lock \
           $(shell find ptx cysrc deepep_ptx/include deepep_ptx/toolchain deepep_ptx/emu tools \
                   -name gen -prune -o -type f -name '*.[chp]*' -print -o -type f -name '*.inc' -print)

# Two workers where pytest-xdist is there to make them.
PYTEST_JOBS = $(shell $(PY) -c 'import xdist; print("-n 2")' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help demo test check sanitize gpu-test gpu-bench build wheel gen lint lint-python lint-c lint-ptx check-gen \
        counts mutate lock clean ready

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(BUILT)  ## the main job: real text dispatched, computed on and combined, on the CPU executor
	$(PY) -m deepep_ptx demo $(ARGS)

test: $(BUILT) $(DEV)  ## every test that this machine can run; ARGS="-k layout" and the like go to pytest
	$(PY) -m pytest $(PYTEST_JOBS) $(ARGS)

check: $(BUILT)  ## every kernel under the race checker; ARGS="combine --seeds 20" and the like
	$(PY) -m deepep_ptx check $(ARGS)

sanitize: $(BUILT) $(DEV)  ## tests of the C code under ASan and UBSan, on a build of their own
	$(PY) tools/sanitize.py --cc '$(CC)' -- -q $(PYTEST_JOBS) $(ARGS)

gpu-test: $(BUILT) $(DEV)  ## what only GPUs can show, and the round trips of the CPU executor on them
	$(PY) -m pytest tests/gpu $(ARGS)
	CUDA_DEVICE_MAX_CONNECTIONS=32 DEEPEP_PTX_EXECUTOR=cuda $(PY) -m pytest tests/test_roundtrip.py $(ARGS)

gpu-bench: $(BUILT)  ## times of all calls beside the links' of the same run; ARGS="--out FILE" keeps them
	PYTHONPATH=. $(PY) -m deepep_ptx bench intranode --executor cuda $(ARGS)

build: $(BUILT)  ## the generated files and the extension modules, in place

wheel: $(BUILT) $(DEV)  ## sdist and manylinux wheel in dist/, checked and tried where nothing else is installed
	$(PY) tools/make_wheel.py $(ARGS)

gen: $(DEPS)  ## the generated files alone: layouts, isa.h, rendered PTX
	$(PY) tools/ptxgen.py

lint: lint-python lint-c lint-ptx  ## all of the next three

lint-python: $(DEV)  ## ruff and cython-lint
	$(PY) -m ruff check .
	PATH="$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$$PATH" \
	    $(PY) -m cython_lint.cython_lint cysrc

lint-c: $(DEPS)  ## the plain C sources without one warning
	$(PY) tools/lint_c.py --cc '$(CC)'

lint-ptx: $(DEV)  ## every variant assembled: no spills, no lost polls, the promised instructions
	$(PY) tools/ptxlint.py

check-gen: $(DEV)  ## fails when ptx/variants.lock is not what the tree renders and assembles to
	$(PY) tools/check_gen.py

counts: $(BUILT)  ## rewrites tests/counts.json, the bounds of tests/test_counts.py
	PYTHONPATH=. $(PY) tests/counts.py --write

mutate: $(BUILT)  ## every synchronising instruction made weaker, one by one: rewrites tests/mutants.json
	PYTHONPATH=. $(PY) tools/mutate.py $(ARGS)

lock: $(DEV)  ## rewrites ptx/variants.lock
	$(PY) tools/check_gen.py --write

clean:  ## removes what was built and generated; the environment stays
	rm -rf build dist *.egg-info deepep_ptx/*.so deepep_ptx/_ptx ptx/gen cysrc/gen

$(IN_PLACE): $(SOURCES) $(DEPS)
	$(PY) -W ignore setup.py --quiet build_ext --inplace
	@mkdir -p $(@D) && touch $@

ready:
	$(CHECK_PYTHON)
	$(CHECK_PACKAGES)

# Debian 12 has pip 23.0 and Ubuntu 24.04 24.0; 25.1 is the first that knows groups.
$(VENV)/.deps: pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade 'pip>=25.1'
	$(PIP) --group build
	@touch $@

# What ptxas and nvdisasm would bring with them is a compiler, of 200 MB.
$(VENV)/.dev: $(VENV)/.deps
	$(PIP) --group dev
	$(PIP) --no-deps --group ptxas
	@touch $@

# Editable: links the objects that are there, and what is built in place stays the only build.
$(VENV)/.installed: pyproject.toml | $(IN_PLACE)
	$(PIP) --no-build-isolation --editable .
	@touch $@
