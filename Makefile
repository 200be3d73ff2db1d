# The two commands: `make demo` trains and evaluates a Dit-CNN, `make test` runs the tests.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint conformance clean

demo: $(VENV)/installed
	$(BIN)/python scripts/train.py

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses auto

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/python scripts/model_table.py --check
	$(BIN)/python scripts/benchmark_table.py --check

# timm's own tests of its models, run against ours. Needs the package index, for timm's source distribution.
conformance: $(VENV)/installed
	$(BIN)/python scripts/conformance.py

# Made again when the dependencies or the compiled kernels change.
$(VENV)/installed: pyproject.toml setup.py dit_timm/ops/native_kernels.c dit_timm/ops/native_kernels.h
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist output *.egg-info dit_timm/ops/*.so
