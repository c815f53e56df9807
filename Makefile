# `make` is `make check`. `make help` prints the targets.
PYTHON ?= python3
# the Pythons that dist/agentlab carries bytecode for; a release is built with
# BYTECODE="python3.11 python3.12 python3.13"
BYTECODE ?= $(VENV)/bin/python
# how many run tests at once: on two cores three, for one of them mostly waits (tests/workers.py)
WORKERS ?= 3

VENV := .venv
READY := $(VENV)/ready
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest

.DEFAULT_GOAL := check
.PHONY: help check test soak demo dist docs bench clean need

help: ## print this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

check: $(READY) ## format, lint, types, unit and contract tests, docs fresh; minutes, no VM (the default)
	scripts/need check
	$(PYTEST) -n $(WORKERS) -q -m "not vm and not slow" tests/lint tests/unit tests/contract

test: need dist ## everything, with real VMs: under 30 minutes on 2 cores; of the fault matrix some cases
	-$(PY) -m tests.templates
	$(PYTEST) -n $(WORKERS) -m "not soak" tests

soak: $(READY) ## 1,000 random operations with faults and kills, the whole fault matrix, 1 GB in a workspace; SEED=, OPS=, KILL_EACH=
	$(PY) scripts/soak $(if $(SEED),--seed $(SEED)) --ops $(or $(OPS),1000) --kill-each $(or $(KILL_EACH),50)
	$(if $(SEED),,$(PYTEST) -n $(WORKERS) -m soak tests/faults tests/e2e tests/contract)

demo: ## the main job in a real VM, all traces taken away; HYPERVISOR=proxmox BACKEND=api|shell: on a lab node
	@$(PYTHON) scripts/demo --check-user
	@$(MAKE) --no-print-directory need dist
	@$(PY) scripts/demo

dist: $(READY) ## build dist/agentlab, the one file, and its sha256
	@scripts/need dist
	$(PY) packaging/build.py $(foreach python,$(BYTECODE),--python $(python))

docs: $(READY) ## write the reference pages under docs/ from the tables in the code
	$(PY) -m agentlab docs

bench: need dist ## measure the numbers that we hold ourselves to
	$(PY) scripts/bench

clean: ## remove what was built here; the template cache stays (`make demo` says where)
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

need:
	@scripts/need

# pip builds PyYAML from source, so that tests run the code that is packed
$(READY): packaging/requirements.txt packaging/requirements-dev.txt
	@scripts/need dist
	$(PYTHON) -m venv --clear $(VENV)
	PYYAML_FORCE_LIBYAML=0 $(PY) -m pip --disable-pip-version-check install -q --no-deps --require-hashes -r packaging/requirements.txt
	$(PY) -m pip --disable-pip-version-check install -q --no-deps -r packaging/requirements-dev.txt
	@touch $(READY)
