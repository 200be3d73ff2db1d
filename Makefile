# For users: `make demo` trains and evaluates a Dit-CNN, `make test` runs the tests. The rest is for maintainers.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-all lint conformance compatibility benchmark-cpu benchmark-gpu clean

demo: $(VENV)/demo-installed
	$(BIN)/python scripts/train.py

PYTEST = $(BIN)/python -m pytest --numprocesses auto
test: $(VENV)/installed
	$(PYTEST) -m 'not slow'

# These too: whole systems, killed runs, the page, a Hub, kernels compiled for GPUs.
test-all: test
	$(PYTEST) -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/python scripts/make_tables.py --check

# timm's own tests of its models, run against ours. Needs the package index, for timm's source distribution.
conformance: $(VENV)/installed
	$(BIN)/python scripts/conformance.py

# The package with older and newer releases beneath it. A set that the Python at hand is too new for needs another:
# `make compatibility-oldest PYTHON=python3.10`.
SETS = oldest middle newest
COMPATIBILITY_TESTS ?= tests/ops tests/layers tests/models tests/test_registration.py tests/pretrained/test_checked_loading.py
compatibility: $(SETS:%=compatibility-%)
$(SETS:%=compatibility-%): compatibility-%: $(VENV)-%/installed
	$(VENV)-$*/bin/python -m pytest --numprocesses auto $(COMPATIBILITY_TESTS)

# Every number for a CPU, on one that does nothing else.
BENCHMARK = $(BIN)/python scripts/benchmark.py
ON_CPU = $(BENCHMARK) --device cpu
CPU_RESULTS = hub/results/benchmark_cpu
FEW_FLOAT64 = 4000x50x1 4000x2x1 4000x8x8 500x196x8 16x196x8 1x96x96 8x32x32
FEW = 1024x784x1 1024x784x2 25088x96x2 500x196x8 25088x32x8 13x784x1 1x96x96 16x96x96 16x256x64 8x32x32 64x256x256
benchmark-cpu: $(VENV)/installed
	$(ON_CPU) --part op --backends chunked --csv $(CPU_RESULTS)_op.csv
	$(ON_CPU) --part op --backends chunked --only 16384x32x32 6272x128x128 --no-memory --busy 0 2 \
		--csv $(CPU_RESULTS)_op_busy.csv
	$(ON_CPU) --part op --dtype bfloat16 --backends chunked --only 16384x32x32 3136x96x96 6272x128x128 --rounds 10 \
		--csv $(CPU_RESULTS)_op_bfloat16.csv
	$(ON_CPU) --part op --backends native chunked contracted --only $(FEW) --no-memory --rounds 10 \
		--csv $(CPU_RESULTS)_op_few.csv
	$(ON_CPU) --part op --dtype float64 --backends chunked contracted --only $(FEW_FLOAT64) \
		--no-memory --rounds 10 --csv $(CPU_RESULTS)_op_few_float64.csv
	$(ON_CPU) --part scaling --rounds 10 --csv $(CPU_RESULTS)_scaling.csv --plot $(CPU_RESULTS)_scaling.png
	$(ON_CPU) --part model --rounds 10 --csv $(CPU_RESULTS)_model.csv

# Every number for a GPU, on one that does nothing else: first the tests that run on it, then what matters most, so that
# a machine lent for minutes has measured that. Kernels are compiled by all cores at once.
ON_GPU = $(BENCHMARK) --device cuda
NETWORKS = $(ON_GPU) --part model --amp bfloat16 --channels-last
GPU_RESULTS = hub/results/benchmark_gpu
benchmark-gpu: $(VENV)/installed
	$(PYTEST) -v -m 'not slow' tests/ops/test_triton_kernels.py tests/ops/test_triton_layouts.py \
		tests/pretrained/test_shipped_weights.py
	$(ON_GPU) --part op --dtype bfloat16 --backends triton chunked --csv $(GPU_RESULTS)_op_bfloat16.csv
	$(NETWORKS) --csv $(GPU_RESULTS)_model.csv
	$(NETWORKS) --torchcompile --rounds 10 --csv $(GPU_RESULTS)_model_compiled.csv
	$(ON_GPU) --part scaling --dtype bfloat16 --rounds 10 --csv $(GPU_RESULTS)_scaling.csv --plot $(GPU_RESULTS)_scaling.png
	$(ON_GPU) --part op --tf32 --rounds 10 --csv $(GPU_RESULTS)_op_tf32.csv
	$(ON_GPU) --part op --dtype float16 --rounds 10 --csv $(GPU_RESULTS)_op_float16.csv
	$(NETWORKS) --only dit_convnext_tiny --batch-size 256 --rounds 10 --csv $(GPU_RESULTS)_model_256.csv

# Made again when the dependencies or the compiled kernels change.
SOURCES = pyproject.toml setup.py dit_timm/ops/native/kernels.c dit_timm/ops/native/kernels.h
$(VENV)/demo-installed: EXTRA = demo
$(VENV)/installed: EXTRA = dev
$(VENV)/demo-installed $(VENV)/installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	rm -f dit_timm/ops/native/_kernels.*
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRA)]'
	touch $@

$(SETS:%=$(VENV)-%/installed): $(VENV)-%/installed: tests/compatibility/%.txt $(SOURCES)
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-$*/bin/python -m pip install --quiet --constraint $< --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(SETS:%=$(VENV)-%) build dist output *.egg-info dit_timm/ops/native/*.so
