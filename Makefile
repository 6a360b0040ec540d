# SPDX-License-Identifier: MIT
#
# `make demo` and `make test` need python3 >= 3.11 with venv and headers, gcc, make, libc headers and
# PyPI; nothing else has to be there.  `make VENV=0 PYTHON=python3 demo` uses that Python and what it
# has, and installs nothing.

PYTHON ?= python3
VENV   ?= .venv

ifeq ($(VENV),0)
PY   := $(PYTHON)
DEPS :=
else
PY   := $(VENV)/bin/python
DEPS := $(VENV)/.deps
export PATH := $(abspath $(VENV)/bin):$(PATH)
endif

BUILT   := build/.built-$(subst /,-,$(PY))
SOURCES := setup.py pyproject.toml ptx/variants.toml \
           $(shell find ptx cysrc deepep_ptx/include deepep_ptx/toolchain deepep_ptx/emu tools \
                   -name gen -prune -o -type f -name '*.[chp]*' -print -o -type f -name '*.inc' -print)
CFLAGS_LINT := -std=gnu11 -O2 -Wall -Wextra -Werror -Icysrc -Icysrc/gen -Ideepep_ptx/include

# Two workers where pytest-xdist is there to make them.
PYTEST_JOBS = $(shell $(PY) -c 'import xdist; print("-n 2")' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help demo test build gen lint lint-python lint-c lint-ptx check-gen lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(BUILT)  ## the main job: real text dispatched, computed on and combined, on the CPU executor
	$(PY) -m deepep_ptx demo $(ARGS)

test: $(BUILT)  ## every test that this machine can run; ARGS="-k layout" and the like go to pytest
	$(PY) -m pytest $(PYTEST_JOBS) $(ARGS)

build: $(BUILT)  ## the generated files and the extension modules, in place

gen: $(DEPS)  ## the generated files alone: layouts, isa.h, rendered PTX
	$(PY) tools/ptxgen.py

lint: lint-python lint-c lint-ptx  ## all of the next three

lint-python: $(DEPS)  ## ruff and cython-lint
	$(PY) -m ruff check .
	cython-lint cysrc

lint-c: $(BUILT)  ## the plain C sources without one warning
	set -e; for c in cysrc/core/*.c cysrc/emu/*.c; do $(CC) $(CFLAGS_LINT) -c $$c -o /dev/null; done

lint-ptx: $(DEPS)  ## every variant assembled: no spills, no lost polls, the promised instructions
	$(PY) tools/ptxlint.py

check-gen: $(DEPS)  ## fails when ptx/variants.lock is not what the tree renders and assembles to
	$(PY) tools/check_gen.py

lock: $(DEPS)  ## rewrites ptx/variants.lock
	$(PY) tools/check_gen.py --write

clean:  ## removes what was built and generated; the environment stays
	rm -rf build dist *.egg-info deepep_ptx/*.so deepep_ptx/_ptx ptx/gen cysrc/gen

$(BUILT): $(DEPS) $(SOURCES)
	$(PY) -W ignore setup.py --quiet build_ext --inplace
	@mkdir -p $(@D) && touch $@

$(VENV)/.deps: pyproject.toml tools/requirements.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is older than 3.11; say make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) tools/requirements.py build base dev >$(VENV)/requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt
	$(PY) tools/requirements.py ptxas >$(VENV)/requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r $(VENV)/requirements.txt
	@touch $@
