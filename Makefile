# Every target sets up what it needs in the virtual environment .venv, with the torch of constraints/cpu.txt. Where pip
# prefers a CUDA build: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make run. For another torch: make run
# CONSTRAINT=
PYTHON ?= python3
CONSTRAINT ?= -c constraints/cpu.txt
BIN := .venv/bin
SOURCES := pyproject.toml constraints/cpu.txt $(wildcard src/maisi/splitting/cpu/native/*)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINT)

# What may change the last bits or the choice of a default, each in one of the runs; `make matrix ARGS=tests` runs the
# whole suite under each.
CIRCUMSTANCES := MAISI_PRECISION=float32,MAISI_TEST_KERNEL=off MAISI_PRECISION=bfloat16,ONEDNN_MAX_CPU_ISA=AVX2,OMP_NUM_THREADS=2
SHORT := tests/e2e/test_plan.py tests/unit/test_pipelines.py tests/unit/test_splitting_precision.py

# Processes of tests would else wait for each other's threads.
test matrix: export OMP_NUM_THREADS ?= 1

.PHONY: run test matrix check bench bundle clean
.DEFAULT_GOAL := help

help:
	@echo "make run | test | matrix | check | bench | bundle MANIFEST=manifest.json | clean"

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
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile $(ARGS)

matrix: .venv/test
	@for circumstance in $(CIRCUMSTANCES); do \
		echo "== $$circumstance"; \
		env $$(echo $$circumstance | tr , ' ') $(BIN)/python -m pytest --numprocesses 3 --dist loadfile $(or $(ARGS),$(SHORT)) || exit 1; \
	done

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
