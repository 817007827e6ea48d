# Everything a checkout needs, in `.venv` beside this file. No recipe names an absolute path, and every variable is
# quoted: a checkout may lie in a path with spaces.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := help
.PHONY: help check test lint bench clean environment

PYTHON ?= python3
ARGS ?=

# What runs on Python >= 3.9 (see pyproject.toml); mypy knows no version before 3.10.
OLD_PYTHON := $(wildcard $(patsubst %,src/probe/worker/%.py,child cuda exec files leave model nccl services tensor zygote)) \
	$(wildcard src/probe/measure/programs/*.py $(patsubst %,src/probe/rank/%.py,collective facts measure pattern store torchrun))

# Used only to make the environment, so that the words of pip never come between a verdict and its reader.
define PREPARE
exec 9< . && flock 9  # one `make` at a time; the lock is the folder's, and goes with this shell

pip() { .venv/bin/python -m pip --disable-pip-version-check "$$@"; }
# Contents and names, not times: a file that was removed, or put back from an older commit, counts too.
digest() { find "$$@" -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum; }
fresh() { [ -f ".venv/$$1" ] && [ "$$(cat ".venv/$$1")" = "$$2" ]; }

# An environment knows its own path and its interpreter: moved or orphaned, it is made anew.
if ! { fresh made-in "$$(pwd -P)" && [ -x .venv/bin/python ]; }; then
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
		echo "probe: needs Python 3.11 or newer; '$(PYTHON)' is not. Name one: make PYTHON=/path/to/python3.11"
		exit 1
	}
	"$(PYTHON)" -c 'import ensurepip, venv' || {
		echo "probe: '$(PYTHON)' cannot make environments. On Debian and Ubuntu: apt-get install python3-venv"
		exit 1
	}
	echo "probe: making .venv with torch and the tools for tests; some minutes, once"
	"$(PYTHON)" -m venv --clear .venv
	pwd -P > .venv/made-in
fi

# One list of requirements: pyproject.toml's.
needed="$$(digest constraints.txt pyproject.toml)"
if ! fresh has "$$needed"; then
	.venv/bin/python -c 'import tomllib; given = tomllib.load(open("pyproject.toml", "rb")); project = given["project"]; \
		print(*given["build-system"]["requires"], *project["dependencies"], *project["optional-dependencies"]["torch"], \
		*given["dependency-groups"]["dev"], sep="\n")' > .venv/requirements.txt
	pip install -qq -c constraints.txt -r .venv/requirements.txt
	echo "$$needed" > .venv/has
fi

# The project as users get it: a wheel, compiled, so that tests and timings are of what is delivered.
needed="$$(digest src pyproject.toml README.md LICENSE)"
if ! fresh holds "$$needed"; then
	pip install -qq --force-reinstall --no-deps --no-build-isolation .
	.venv/bin/python -m compileall -q .venv/lib/python*/site-packages/probe
	echo "$$needed" > .venv/holds
fi
endef

help:
	echo 'make check   make .venv and run "probe check" on this machine   (ARGS="--profile node")'
	echo 'make test    run the tests                                      (ARGS="-k state -x")'
	echo '             with SYSTEM=1 those too that need root and Debian packages'
	echo 'make lint    ruff and mypy'
	echo 'make bench   the figures of bench/                              (ARGS=...)'
	echo 'make clean   remove .venv and every cache'

environment:
	{ $(PREPARE)
	} >&2

check: environment
	.venv/bin/probe check $(ARGS)

test: environment
	.venv/bin/python -m pytest $(ARGS)

lint: environment
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy src tests bench docs
	[ -z "$(OLD_PYTHON)" ] || .venv/bin/python -m mypy --python-version 3.10 $(OLD_PYTHON)

bench: environment
	.venv/bin/python bench/run.py $(ARGS)

clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
