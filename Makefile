# `make demo` and `make test` need only Python 3.10 or newer; each creates its environment in .venv.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

# A crashed process ends the run: pytest-xdist would wait forever for the process that replaces it.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: demo test test-fast robustness lint bench paper clean

demo: $(VENV)/.installed
	$(BIN)/amvur demo demo

test: $(VENV)/.installed-dev
	$(PYTEST)

# Everything but the tests marked as slow.
test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

# All hostile files, then two dozen random kills; `make test` has a few of both.
robustness: $(VENV)/.installed-dev
	$(BIN)/python -m tests.robustness.run_corpus
	$(BIN)/python -m tests.robustness.run_chaos $(PHOTOS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# make bench PHOTOS=folder MODEL=hand_landmarker.task takes at least half an hour on two cores.
bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/all.py $(PHOTOS) $(if $(MODEL),--model $(MODEL))

# The paper's six tables, in OUT/ablations.md. Hours on two cores; if stopped, the same command resumes.
# make paper OUT=paper SIZE=--short takes minutes; SIZE=--full-size needs a GPU.
OUT ?= paper
paper: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/ablations.py $(OUT) $(SIZE)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) demo dist build
