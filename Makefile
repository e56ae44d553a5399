# Every target sets up what it needs in the virtual environment .venv, with the torch of constraints/cpu.txt. Where pip
# prefers a CUDA build: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make run. For another torch: make run
# CONSTRAINT=
PYTHON ?= python3
CONSTRAINT ?= -c constraints/cpu.txt
BIN := .venv/bin
SOURCES := pyproject.toml constraints/cpu.txt $(wildcard src/maisi/splitting/cpu/native/*)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINT)

.PHONY: run test check bench bundle clean
.DEFAULT_GOAL := help

help:
	@echo "make run | test | check | bench | bundle MANIFEST=manifest.json | clean"

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/core: $(SOURCES) | $(BIN)/python
	$(PIP) -e .
	touch $@

.venv/test: $(SOURCES) | $(BIN)/python
	$(PIP) -e '.[test]'
	touch .venv/core $@

.venv/check: $(SOURCES) | $(BIN)/python
	$(PIP) -e '.[dev]'
	touch .venv/core .venv/test $@

run: .venv/core
	$(BIN)/maisi generate --out out --overwrite

test: .venv/test
	$(BIN)/python -m pytest $(ARGS)

check: .venv/check
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: .venv/test
	$(BIN)/python benchmarks/splitting.py $(ARGS)

bundle: .venv/core
	$(BIN)/maisi train recipe ct-small --manifest $(MANIFEST) --out runs/ct-small

clean:
	rm -rf .venv out build dist
