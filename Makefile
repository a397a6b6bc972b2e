# `make` lists the targets. `demo`, `test` and `lint` set everything up on their first call, in .venv.
#
# Variables, on the command line:
#   PYTHON=python3.12   the interpreter .venv is made from (default: the first suitable one of PYTHONS)
#   CORES=2             cores of the demo; JOBS=2: processes of the tests
#   EXTRAS=...          what is installed with the package; `EXTRAS=gpu,demo,test` searches on a CUDA GPU
#   TORCH_ARGS=...      further arguments of `pip install torch==...`, e.g. the index of a build for this machine

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# 3.11 first: what everything was tested with
PYTHONS    := python3.11 python3.12 python3.13 python3.14 python3
PYTHON     ?= $(firstword $(foreach name,$(PYTHONS),$(shell $(name) -c 'import sys, venv; print("$(name)" * (sys.version_info >= (3, 11)))' 2>/dev/null)))
CORES      ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
JOBS       ?= 2
EXTRAS     ?= cpu,demo,test
TORCH_ARGS ?=
DATASET    ?= demo
BENCH      ?=
DEMO_RUNS  ?= bm25 pretrained_teacher student_aligned aligned_more lead_best student student_more rd_cb lead_cb teacher_de teacher_cb

# The environment is as old as what it was made from: the stamp's name holds the checksum of that.
# Every path is relative and no prerequisite holds a blank, so the checkout may stand in a folder with blanks in its name.
VENV  := .venv
BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.lead-$(shell cat pyproject.toml constraints.txt - <<< '$(EXTRAS) $(TORCH_ARGS)' | cksum | cut -d' ' -f1)
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
# Rules call `lead`, tests call `snakemake`: both from .venv.
IN_VENV := PATH="$$PWD/$(BIN):$$PATH"

# Runs a set-up step: $(call step,what it does,the command). One line, with the seconds it took.
step = printf '%s ... ' '$(1)'; SECONDS=0; $(2); printf '%d s\n' "$$SECONDS"

.PHONY: help demo reproduce bench gpu-check test test-fast test-slurm lint docs clean constraints setup

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(STAMP) ## distil on the built-in collection, end to end, and print the table
	@$(IN_VENV) snakemake --cores $(CORES) -- $(DEMO_RUNS:%=results/demo/%.json) || \
	{ s=$$?; [ -z "$$(ls .snakemake/locks 2>/dev/null)" ] || \
	echo 'error: this directory is locked; if no other Snakemake works in it: $(BIN)/snakemake --unlock && make demo' >&2; exit $$s; }
	@$(IN_VENV) lead table $(DEMO_RUNS:%=results/demo/%.json)

reproduce: $(STAMP) ## make the documented values of the demo again (8 minutes with bf16), and compare each (DATASET=pydocs: another)
	@$(IN_VENV) python benchmarks/reproduce.py docs/values/$(DATASET).json --cores $(CORES)

# With the python at hand (GPU_PYTHON), whatever torch it holds: nothing is installed.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
gpu-check: ## on a machine with a CUDA GPU: results against the CPU's, then time, MFU and memory at the paper's size
	@HF_HUB_OFFLINE=1 $(GPU_PYTHON) benchmarks/gpu_check.py

bench: $(STAMP) ## LEAD beside its peers, stage by stage: processor time and ratios (BENCH='--only search --rounds 9')
	@$(IN_VENV) python benchmarks/bench $(BENCH)

test-fast: export HF_HUB_OFFLINE = 1
test-fast: $(STAMP) ## the tests of the daily loop: losses, layers, scores, configuration, plan, the DAG's dry runs
	@$(IN_VENV) python -m pytest -n $(JOBS) --dist worksteal -m fast

test: export HF_HUB_OFFLINE = 1
test: $(STAMP) ## all tests, file by file: those that take longest first (tests/conftest.py)
	@bash tests/browser/install.sh || [ -z "$${CI:-}" ]
	@$(IN_VENV) python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not slurm'

test-slurm: export HF_HUB_OFFLINE = 1
test-slurm: $(STAMP) ## the workflow through a real one-node Slurm, which is installed and started (needs root, Debian)
	@$(PIP) install -qq --no-build-isolation -c constraints.txt -e '.[$(EXTRAS),slurm]'
	@if bash tests/slurm/start.sh; then :; else [ $$? = 77 ] && [ -z "$${CI:-}" ] && exit 0; exit 1; fi; \
	trap 'bash tests/slurm/stop.sh' EXIT; $(IN_VENV) python -m pytest -m slurm tests/test_slurm.py

lint: $(STAMP) ## style, types and workflow; the findings of `snakemake --lint` are shown, but do not fail it
	@failed=; check() { echo "> $$*"; $(IN_VENV) "$$@" || failed+=" '$$*'"; }; \
	check ruff check; check ruff format --check; check mypy; check snakefmt --check workflow; \
	echo '> snakemake --lint'; $(IN_VENV) snakemake --lint || echo 'docs/design.md says which of these findings we accept, and why'; \
	if [ -n "$$failed" ]; then echo "lint failed:$$failed" >&2; exit 1; fi

docs: $(STAMP) ## the documentation as a site, in build/site; warnings are errors
	@$(IN_VENV) NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict

clean: ## remove results of demo and reproduce, logs, caches and build files; keep .venv and all other results
	@rm -rf results/demo results/reproduced logs build dist .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage *.egg-info
	@find . -name $(VENV) -prune -o -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

setup: $(STAMP) ## only make .venv
	@:

$(STAMP):
	@[ -n '$(PYTHON)' ] && $(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo 'error: found no working Python 3.11 or newer (tried: $(or $(PYTHON),$(PYTHONS))); install one, or say make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@rm -f $(VENV)/.lead-*
	@$(call step,Making $(VENV) with $(PYTHON) ($(shell $(PYTHON) -V 2>&1)),[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV))
	@# exactly one faiss package may be there
	@$(PIP) uninstall -qq --yes $(if $(findstring gpu,$(EXTRAS)),faiss-cpu,faiss-gpu) 2>/dev/null || true
	@# alone and before all else: a CPU build that pip was told of is taken, before another package asks for a torch
	@$(call step,Installing $(TORCH),$(PIP) install -qq -c constraints.txt pip setuptools $(TORCH) $(TORCH_ARGS))
	@$(call step,Installing lead[$(EXTRAS)] and what it needs,$(PIP) install -qq --no-build-isolation -c constraints.txt -e '.[$(EXTRAS)]')
	@touch $@

# All extras but `gpu`, newest versions, in an environment of its own. CUDA's packages are torch's to choose.
constraints: ## write constraints.txt anew: the newest versions of everything but torch (TORCH=torch==X to move it)
	@new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT; \
	$(PYTHON) -m venv "$$new/venv"; \
	"$$new/venv/bin/python" -m pip install -qq --upgrade pip setuptools $(TORCH) $(TORCH_ARGS); \
	"$$new/venv/bin/python" -m pip install -qq --no-build-isolation -e '.[cpu,demo,slurm,test]'; \
	sed -n '/^#/p' constraints.txt > "$$new/constraints.txt"; \
	"$$new/venv/bin/python" -m pip freeze --all --exclude-editable \
	| sed -E 's/\+[a-z0-9.]+$$//; /^(nvidia-|cuda-|triton)/d' | LC_ALL=C sort -f >> "$$new/constraints.txt"; \
	if grep -nE '@|://' "$$new/constraints.txt" | grep -v ':#'; then echo 'error: not from a package index (above)' >&2; exit 1; fi; \
	cp "$$new/constraints.txt" constraints.txt; git --no-pager diff --stat -- constraints.txt || true
