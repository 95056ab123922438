# Four verbs for the project (install, check, test, verify), one for its user (run), two to measure (bench, gpu).
VENV ?= .venv
BOOTSTRAP_PYTHON ?= python3
PYTHON := $(VENV)/bin/python
# Wheels only, but for our own CPU library, which a C++ compiler builds for this very machine in seconds. torch is pinned because other ranges pull gigabytes of CUDA builds.
PIP := $(PYTHON) -m pip --disable-pip-version-check install --quiet --only-binary=:all: -c deploy/constraints.txt

.PHONY: run install check test verify bench gpu clean

run: $(VENV)/.serve
	@$(PYTHON) -m gemline.cli.main up

install: $(VENV)/.dev

$(PYTHON):
	$(BOOTSTRAP_PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml deploy/constraints.txt | $(PYTHON)
	@echo "installing gemline into $(VENV) (a few minutes the first time)"
	$(PIP) torch==2.13.0
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation -e '.[serve]'
	@$(PYTHON) -m gemline_kernels.cpu.build || echo "no native CPU library: gemline computes with torch alone, slower"
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy tests
	$(VENV)/bin/lint-imports

# The fast tests first: a mistake shows in seconds; then GPU kernels interpreted, those that start processes or Ray, and
# last, by itself, what goes by times. Two at a time whatever the machine: each may start a platform of its own. Of those
# that do, three: more than a third of their time is waiting, for a process to start, a lease to end, Ray.
# A file's tests stay together, for they share what they start; among the slow ones some files share a stack, too: they
# and faults, which take longest, come first. To look for a marker in the files that do not name it, or for fast tests in
# those that have none, would mean to import them all.
BESIDE := -n 2 --dist loadfile
BY_STACK := -n 3 --dist loadgroup --no-loadscope-reorder
marked = $(sort $(shell grep -rlE 'mark\.($(1))\b' tests --include='test_*.py'))
SLOW = $(call marked,slow|ray)
SHARING = $(sort $(shell grep -rlF 'xdist_group("shared-stacks")' tests --include='test_*.py'))
LONG = $(SHARING) $(filter tests/faults/%,$(SLOW))
NOT_FAST = $(shell grep -rlE '^pytestmark = .*mark\.(slow|ray|timing)\b' tests --include='test_*.py')
test: export PYTHONDONTWRITEBYTECODE := # hundreds of processes are started, none of which shall compile our modules anew
test: $(VENV)/.dev
	$(PYTHON) -m pytest $(BESIDE) -m "not slow and not ray and not timing" $(addprefix --ignore=,$(NOT_FAST))
	TRITON_INTERPRET=1 $(PYTHON) -m pytest -n 2 --dist worksteal tests/interpreted
	$(PYTHON) -m pytest $(BY_STACK) -m "(slow or ray) and not timing" \
		$(LONG) $(filter-out $(LONG),$(SLOW))
	$(PYTHON) -m pytest -m timing $(call marked,timing)

verify: $(VENV)/.dev
	PYTHON=$(PYTHON) deploy/generate_protos.sh
	$(PYTHON) tests/golden/make.py
	$(PYTHON) tests/golden/chart.py
	git diff --exit-code

bench: $(VENV)/.dev
	$(PYTHON) tests/bench/token_cost.py

# On a machine with an NVIDIA GPU, ten minutes: its kernels' tests, then its figures. Nothing of ours is installed there:
# a Python with torch, triton, transformers and pytest will do. With pytest-xdist kernels are compiled by six processes.
GPU_PYTHON ?= python3
GPU_PYTEST ?= $(shell $(GPU_PYTHON) -c 'import xdist' 2>/dev/null && printf %s -n6)
GPU_BUDGET_S ?= 400
KERNEL_TESTS := $(patsubst %,tests/interpreted/test_%.py,attention divided_sampling linear pointwise sampling transfer)
gpu: export PYTHONPATH := kernels:services:tests
gpu:
	@$(GPU_PYTHON) -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "no NVIDIA GPU here")'
	$(GPU_PYTHON) -m pytest --confcutdir=tests/gpu $(GPU_PYTEST) tests/gpu $(KERNEL_TESTS); tested=$$?; \
	$(GPU_PYTHON) -m bench.gpu --budget-s $(GPU_BUDGET_S) && exit $$tested

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .hypothesis
