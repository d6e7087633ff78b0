# Every target does its own set-up (tools/setup) and needs nothing but make, bash and python3 3.11 beforehand.

SHELL := /bin/bash
PYTHON ?= python3
PY := .venv/bin/python
TESTS ?= tests
export PYTHON

.PHONY: help setup run demo test lint bench sim soak fuzz clean

help:
	@echo "make run     start a pair on this machine and show a failure; Ctrl-C ends it"
	@echo "make demo    the same once, checked: exits 0, or 1 with what differed"
	@echo "make test    the whole suite       make lint    ruff and mypy --strict"
	@echo "make bench   speed and size, beside the peers'"
	@echo "make sim SEEDS=n    n simulated runs       make sim SEED=n    one, with its story"
	@echo "make soak    100,000 simulated runs, then fifty rounds of random faults over real daemons (SEEDS=n ROUNDS=n SEED=n)"
	@echo "make fuzz    the decoders of SNMP for SECONDS=n (600), then REQUESTS=n (100000) generated ones beside snmpd"
	@echo "make setup   only the set-up       make clean   remove what the others made"

setup:
	@tools/setup debian venv

run:
	@tools/setup venv console
	@exec .venv/bin/hasnmp demo

demo:
	@tools/setup venv console
	@exec .venv/bin/hasnmp demo --once

# First what the processors set the pace of; then what waits most of its time, as real daemons and whole machines do; at last what
# wants the machine to itself. All always run, so that one report tells all.
test:
	@tools/setup debian venv
ifeq ($(TESTS),tests)
	@failed=0; \
	$(PY) -m pytest -q -n 2 --dist loadfile -m "not serial" --ignore tests/cluster tests || failed=1; \
	$(PY) -m pytest -q -n 2 --dist loadfile -m "serial and not alone" tests || failed=1; \
	$(PY) -m pytest -q -m alone tests || failed=1; \
	exit $$failed
else
	@$(PY) -m pytest -q $(TESTS)
endif

lint:
	@tools/setup venv
	@failed=0; \
	$(PY) -m ruff check . || failed=1; \
	$(PY) -m ruff format --check . || failed=1; \
	$(PY) -m mypy --strict hasnmp || failed=1; \
	exit $$failed

bench:
	@tools/setup debian venv bench
	@$(PY) -m tests.bench

sim:
	@tools/setup venv
	@$(PY) -m hasnmp.simulator $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),2000))

soak:
	@tools/setup debian venv
	@failed=0; \
	$(PY) -m hasnmp.simulator --seeds $(or $(SEEDS),100000) || failed=1; \
	$(PY) -m tests.cluster.nemesis --rounds $(or $(ROUNDS),50) --seed $(or $(SEED),0) || failed=1; \
	HASNMP_CRASHES=10 HASNMP_CRASH_FS=ext4 $(PY) -m pytest -q -s -k crashes tests/cluster/test_postgresql.py || failed=1; \
	HASNMP_CRASHES=10 HASNMP_CRASH_FS=xfs $(PY) -m pytest -q -s -k crashes tests/cluster/test_postgresql.py || failed=1; \
	exit $$failed

# What an input breaks is left in the current folder as crash-*; a run with that file as its only argument repeats it.
fuzz:
	@tools/setup debian venv
	@$(PY) -m tests.hostile.fuzz -max_total_time=$(or $(SECONDS),600)
	@$(PY) -m tests.snmp.differential --requests $(or $(REQUESTS),100000) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
