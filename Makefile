# raftkv: make setup, make up, make test. Needs python3 >= 3.11 and make, nothing else.
.DEFAULT_GOAL := help
.PHONY: help setup tools browser up down status test quick toxiproxy chaos sim soak mutants check format generate bench bench-check clean

PY := .venv/bin/python
# What a cluster was made with is remembered in its folder: only what is given is passed on.
NODES ?=
GROUPS ?=
PORT ?=
DATA ?= ./data
ARGS ?=
SEED ?=
N ?= 1000
TIME ?= 35
FIRST ?= 1
# Most tests wait for processes, so that more of them than there are cores run side by side; a part of them needs no more
# than one process. Files stay together, for what their tests share, and the longest come first
# (tests/conftest.py).
WORKERS ?= $(if $(ARGS),0,5)
# Hundreds of processes are started: what is compiled once is kept, whatever the environment says.
test quick: export PYTHONDONTWRITEBYTECODE =
SPREAD = $(if $(filter-out 0,$(WORKERS)),-n $(WORKERS) --dist loadfile --no-loadscope-reorder)

help:
	@echo "make setup     prepare .venv (PYTHON=... to choose the interpreter)"
	@echo "make browser   install Chromium for the tests that look at pages, where apt-get can"
	@echo "make up        start a local cluster and wait for it (NODES=3 GROUPS=3 PORT=7401 DATA=./data)"
	@echo "make status    show the local cluster"
	@echo "make down      stop the local cluster; its data stay"
	@echo "make test      all tests, by five processes (ARGS=... goes to pytest, then by one; WORKERS=n)"
	@echo "make quick     all tests but the slow ones"
	@echo "make toxiproxy build Toxiproxy's server for chaos runs and tests, with Go of this machine or of PyPI"
	@echo "make chaos     real processes, partitions and kills: all scenarios, about 10 minutes (TIME=35 SEED=1 SECURE=1)"
	@echo "make sim       simulated clusters in storms of faults, fixed seeds (SEED=n: that one, with its story)"
	@echo "make soak      many seeds on all cores (N=1000 FIRST=1)"
	@echo "make mutants   plant faults in the code and see that the simulator notices each"
	@echo "make check     format, lint, types, import contracts, generated code"
	@echo "make format    format the sources and fix what ruff can fix"
	@echo "make generate  make raftkv/v1 from proto/"
	@echo "make bench     a short measurement on a cluster of its own (ARGS=... goes to python -m bench load)"
	@echo "make bench-check compare ratios of rates with the committed baseline, a minute (ARGS=--update writes it)"
	@echo "make clean     remove caches and .venv; data stay"

setup:
	@PYTHON="$(PYTHON)" sh .ci/setup

browser:
	@sh .ci/browser

toxiproxy: setup
	@sh .ci/toxiproxy

# What tests need besides .venv. Says what cannot be had, and goes on: its tests are skipped, but for those of .ci/run.
tools: toxiproxy browser

up: setup
	@$(PY) -m raftkv.cli.main up $(if $(NODES),--nodes $(NODES)) $(if $(GROUPS),--groups $(GROUPS)) $(if $(PORT),--port $(PORT)) $(if $(SECURE),--secure) --data-dir $(DATA)

down: setup
	@$(PY) -m raftkv.cli.main down --data-dir $(DATA)

status: setup
	@$(PY) -m raftkv.cli.main status --data-dir $(DATA)

test: tools
	$(PY) -m pytest $(SPREAD) $(ARGS)

quick: setup
	$(PY) -m pytest $(SPREAD) -m "not slow" $(ARGS)

chaos: toxiproxy
	@$(PY) -m faults run --all --time $(TIME) $(if $(SEED),--seed $(SEED)) $(if $(SECURE),--secure) $(ARGS)

sim: setup
	@$(PY) -m faults sim $(if $(SEED),--seed $(SEED)) $(ARGS)

soak: setup
	@$(PY) -m faults soak --count $(N) --first $(FIRST) $(ARGS)

mutants: setup
	@$(PY) -m faults mutants $(ARGS)

check: setup
	@sh .ci/check

format: setup
	$(PY) -m ruff check --fix --quiet . || true
	$(PY) -m ruff format .

generate: setup
	PATH="$(CURDIR)/.venv/bin:$$PATH" .ci/generate

bench: setup
	$(PY) -m bench load --cluster 3 --groups 3 --op set $(ARGS)
	$(PY) -m bench load --cluster 3 --groups 3 --op get $(ARGS)

bench-check: setup
	$(PY) -m bench check $(ARGS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
