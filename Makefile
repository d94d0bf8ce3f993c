# make demo        a body mesh on a picture, with the light runtime only
# make test        lint, types and the fast tests
# make test-slow   the long tests       make test-gpu   the tests that need an NVIDIA GPU
# make test-cuda   the CUDA kernels, on a stand-in for the GPU (a part of make test)
# make lint        ruff and mypy        make clean      remove .venv and caches

PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
EXTRAS ?= train,export,rtx,openvino,dev
# Types of TensorRT for mypy alone, outside the environment: the package requires the real library.
TENSORRT_STUBS ?= tensorrt-stubs==10.13.0.35.1
VENV_ARGS ?=
PYTEST_ARGS ?=

VIDEO_TESTS := tests/metro_edge/video tests/metro_edge/cli/test_run_video.py
LONGEST := tests/engines/test_whole_networks.py tests/engines/test_cpu_speed.py
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-gpu test-cuda coverage-cuda compute-sanitizer ptx lint clean

help:
	@sed -n '1,5s/^# //p' Makefile

demo: $(RUNTIME)
	@echo "metro-edge demo: one picture and a short clip, on the CPU (about half a minute)"
	@$(BIN)/metro-edge demo

# In three processes: TensorRT-RTX, OpenVINO and ONNX Runtime in one that goes on to fork rendering workers crashed once, and
# once where a live stream was ended by a signal behind a thousand tests of engines.
test: lint
	@echo "pytest: the fast tests"
	@$(BIN)/python -m pytest -q --ignore tests/training $(VIDEO_TESTS:%=--ignore %) $(PYTEST_ARGS)
	@$(BIN)/python -m pytest -q $(VIDEO_TESTS) $(PYTEST_ARGS)
	@$(BIN)/python -m pytest -q tests/training $(PYTEST_ARGS)
	@$(MAKE) --no-print-directory test-cuda

# Twice: the second time under AddressSanitizer and UndefinedBehaviorSanitizer. Builds PyCUDA first (two minutes, once).
test-cuda: $(DEV)
	@echo "pytest: the CUDA kernels on a stand-in for the GPU"
	@$(BIN)/python -m tests.virtual_gpu $(PYTEST_ARGS)
	@$(BIN)/python -m tests.virtual_gpu --sanitize $(PYTEST_ARGS)

# Which lines of the launchers and of the TensorRT session the stand-in runs.
coverage-cuda: $(DEV)
	@$(BIN)/python -m coverage erase
	@COVERAGE_RUN=1 $(BIN)/python -m tests.virtual_gpu $(PYTEST_ARGS)
	@$(BIN)/python -m coverage report --include 'metro_edge/cuda/*,metro_edge/backends/tensorrt.py'

# The conversions of the whole released networks, a third of the time, come last.
test-slow: $(DEV)
	@echo "pytest: the slow tests (an hour)"
	@$(BIN)/python -m pytest -q -m "slow and not gpu" --durations=10 --ignore tests/training $(LONGEST:%=--ignore %) $(PYTEST_ARGS)
	@$(BIN)/python -m pytest -q -m "slow and not gpu" --durations=10 tests/training $(PYTEST_ARGS)
	@$(BIN)/python -m pytest -q -m "slow and not gpu" --durations=10 $(LONGEST) $(PYTEST_ARGS)

test-gpu: $(DEV)
	@$(BIN)/python -m pytest -q -m gpu $(PYTEST_ARGS)

# On a machine with a GPU and the CUDA toolkit.
compute-sanitizer: $(DEV)
	@compute-sanitizer --error-exitcode 1 $(BIN)/python -m pytest -q -m "gpu and not slow" tests/metro_edge/cuda $(PYTEST_ARGS)

# The PTX that ships in the wheel, after a change to a kernel; needs nvcc.
ptx: $(DEV)
	@$(BIN)/python -m metro_edge.cuda.prebuilt

lint: $(DEV)
	@echo "ruff and mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: metro-edge needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make PYTHON=python3.12" >&2; exit 2; }
	@echo "creating $(VENV) (a few seconds)"
	@$(PYTHON) -m venv $(VENV_ARGS) $(VENV)

# The runtime is installed editable, so that the demo always runs the checkout.
$(RUNTIME): setup.py pyproject.toml | $(BIN)/python
	@echo "installing the runtime: numpy, OpenCV, ONNX Runtime (about 150 MB, half a minute)"
	@$(PIP) --editable .
	@touch $@

# PyTorch comes first and only if there is none, so that a vendor's build (VENV_ARGS=--system-site-packages) is kept.
$(DEV): setup.py pyproject.toml | $(BIN)/python
	@$(BIN)/python -c 'import torch, torchvision' 2>/dev/null || { \
	  echo "installing $(TORCH) (several minutes, about 5 GB)"; $(PIP) $(TORCH); }
	@echo "installing metro-edge[$(EXTRAS)] (a few minutes)"
	@$(PIP) --editable ".[$(EXTRAS)]"
	@$(PIP) --quiet --no-deps --upgrade --target $(VENV)/stubs $(TENSORRT_STUBS)
	@$(BIN)/python -m tests.tensorrt_types $(VENV)/stubs $(VENV)/types
	@touch $@ $(RUNTIME)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find metro_edge training engines benchmarks tests -type d -name __pycache__ -prune -exec rm -rf {} +
