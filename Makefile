# make train | test | test-all | chaos | image-test | docs | lint | format. Each sets up what it needs and is quick the second time.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# The S3 server of the tests. In an environment of its own, because its dependencies are none of emc2dist's, and the tests
# only talk to it over HTTP. It runs on Linux; elsewhere the tests that need it are skipped.
SWIFT := $(if $(filter Linux,$(shell uname)),.swift/.ready)

.PHONY: train test test-all chaos image-test docs lint format clean

train: $(READY)
	$(BIN)/emc2dist train jobs/quickstart.yaml

# Two files at a time: tests of whole runs wait for one process after another, which leaves a core idle.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: lint $(SWIFT)
	$(PYTEST)

test-all: lint $(SWIFT)
	$(PYTEST) -m "slow or not slow" --ignore tests/chaos
	$(MAKE) chaos

# Alone: without root its cluster has the addresses that other tests' clusters have as well.
chaos: $(READY)
	$(BIN)/python -m pytest -m slow -s tests/chaos

image-test: $(READY)
	PYTHON=$(BIN)/python docker/test.sh

# The pages as a site, from build/site/index.html on; to look at them while writing: .venv/bin/mkdocs serve
docs: $(READY)
	$(BIN)/mkdocs build

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "emc2dist needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

.swift/.ready: Makefile
	$(PYTHON) -m venv .swift
	.swift/bin/python -m pip install --quiet swift==2.38.3
	touch $@

clean:
	rm -rf .venv .swift
