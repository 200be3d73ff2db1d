# The two commands: `make demo` trains and evaluates a Dit-CNN, `make test` runs the tests.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint conformance benchmark-gpu clean

demo: $(VENV)/installed
	$(BIN)/python scripts/train.py

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses auto

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/python scripts/model_table.py --check
	$(BIN)/python scripts/benchmark_table.py --check
	$(BIN)/python scripts/make_tables.py --check

# timm's own tests of its models, run against ours. Needs the package index, for timm's source distribution.
conformance: $(VENV)/installed
	$(BIN)/python scripts/conformance.py

# Every number for a GPU, on one that does nothing else. First the tests that need one.
BENCHMARK = $(BIN)/python scripts/benchmark.py --device cuda
RESULTS = hub/results/benchmark_gpu
benchmark-gpu: $(VENV)/installed
	$(BIN)/python -m pytest -v tests/ops/test_triton_kernels.py tests/ops/test_triton_layouts.py \
		tests/models/test_shipped_weights.py
	$(BENCHMARK) --part op --dtype bfloat16 --backends chunked --csv $(RESULTS)_op_bfloat16.csv
	$(BENCHMARK) --part op --tf32 --csv $(RESULTS)_op_tf32.csv
	$(BENCHMARK) --part model --amp bfloat16 --channels-last --csv $(RESULTS)_model.csv
	$(BENCHMARK) --part model --amp bfloat16 --channels-last --torchcompile --csv $(RESULTS)_model_compiled.csv
	$(BENCHMARK) --part model --only dit_convnext_tiny --batch-size 256 --amp bfloat16 --channels-last \
		--csv $(RESULTS)_model_256.csv
	$(BENCHMARK) --part scaling --dtype bfloat16 --csv $(RESULTS)_scaling.csv --plot $(RESULTS)_scaling.png

# Made again when the dependencies or the compiled kernels change.
$(VENV)/installed: pyproject.toml setup.py dit_timm/ops/native_kernels.c dit_timm/ops/native_kernels.h
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist output *.egg-info dit_timm/ops/*.so
