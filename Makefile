# Meshlog. `make mesh` shows it at work on this machine; `make test` proves it.
#
#   make mesh        install what is needed, build, start two clusters, tell the story
#   make mesh-down   remove every trace of that mesh
#   make test        lint, types, import rules, all tests
#   make simulate    whole meshes on virtual time under faults: SEEDS=17, 1..500, or 1.. for as long as asked
#   make bench       the figures of docs/bench.md
#   make build       the BPF objects
#   make venv        the virtual environment, without test tools
#   make lint        lint, types, import rules
#   make clean       what was built; the virtual environment stays

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
STAMPS := .make
TEST_PROCESSES ?= $(shell nproc | awk '{print ($$1 < 4 ? $$1 : 4)}')
PACKAGES := clang libbpf-dev libbpf1 linux-libc-dev etcd-server iproute2 ethtool util-linux procps openssl make python3-venv
TOOLS := clang etcd ip ethtool nsenter setpriv sysctl openssl
QUIET_PIP := PYTHONWARNINGS=ignore $(VENV)/bin/python -m pip --disable-pip-version-check --quiet install

.PHONY: help mesh mesh-down test simulate bench build venv venv-test lint clean root
.NOTPARALLEL:

help:
	@sed -n 's/^#   //p' Makefile

mesh: root venv build
	@$(VENV)/bin/meshlog lab story

mesh-down: root
	@if [ -x $(VENV)/bin/meshlog ]; then $(VENV)/bin/meshlog lab down; \
	elif [ -e /run/meshlog-lab ] || ls /run/netns/mlab-* >/dev/null 2>&1; then $(MAKE) venv && $(VENV)/bin/meshlog lab down; \
	else echo "No trace of a lab is left."; fi

test: lint build
	@$(VENV)/bin/python -m pytest -n $(TEST_PROCESSES)

SEEDS ?= 1..100
simulate: venv-test
	@$(VENV)/bin/python -m tests.simulation $(SEEDS)

bench: venv-test build
	@$(VENV)/bin/python -m tests.bench --write docs/bench.md

lint: venv-test
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-cache

build: $(STAMPS)/packages
	@$(MAKE) -s -C bpf

venv: $(STAMPS)/venv
venv-test: $(STAMPS)/venv-test

root:
	@if [ "$$(id -u)" != 0 ]; then \
	  echo "make $(MAKECMDGOALS): the mesh makes network namespaces and loads programs: run it as root (sudo make $(MAKECMDGOALS))" >&2; \
	  exit 1; fi

# Only what is missing is installed, and a service that comes with a package is not started: policy-rc.d is put up for
# the time of the installation only, and never in place of one that is there already.
$(STAMPS)/packages:
	@mkdir -p $(STAMPS)
	@missing=""; for tool in $(TOOLS); do PATH="$$PATH:/usr/sbin:/sbin" command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	[ -e /usr/include/bpf/bpf_helpers.h ] || missing="$$missing libbpf-dev"; \
	[ -e /usr/include/linux/bpf.h ] || missing="$$missing linux-libc-dev"; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -z "$$missing" ]; then touch $@; exit 0; fi; \
	if ! command -v apt-get >/dev/null; then \
	  echo "missing:$$missing; install them (on Debian: $(PACKAGES))" >&2; exit 1; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "missing:$$missing; run as root, or install: $(PACKAGES)" >&2; exit 1; fi; \
	echo "installing packages (missing:$$missing) ..."; \
	policy=/usr/sbin/policy-rc.d; \
	if [ ! -e $$policy ]; then printf '#!/bin/sh\nexit 101\n' > $$policy; chmod +x $$policy; trap "rm -f $$policy" EXIT; fi; \
	export DEBIAN_FRONTEND=noninteractive; log=$(STAMPS)/apt.log; \
	{ apt-get update -q && apt-get install -y -q --no-install-recommends $(PACKAGES); } >$$log 2>&1 \
	  || { tail -5 $$log >&2; echo "the packages could not be installed; see $$log" >&2; exit 1; }; \
	touch $@

$(VENV)/bin/python: | $(STAMPS)/packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Meshlog needs Python 3.11 or newer; %s is %s (choose another with make PYTHON=...)" % (sys.executable, sys.version.split()[0]))'
	@echo "making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(STAMPS)/venv: pyproject.toml | $(VENV)/bin/python
	@echo "installing Python packages ..."
	@$(QUIET_PIP) -e .
	@touch $@

$(STAMPS)/venv-test: pyproject.toml | $(VENV)/bin/python
	@echo "installing Python packages, test tools too ..."
	@$(QUIET_PIP) -e '.[test]'
	@touch $@ $(STAMPS)/venv

clean:
	@$(MAKE) -s -C bpf clean
	@rm -rf $(STAMPS) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
