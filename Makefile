# make setup - the environment: .venv with an installed `edgepack`
# make demo  - builds a real model for rk3588, proves it, runs what this machine can run
# make test  - everything that this machine can test
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
BIN := .venv/bin

.PHONY: setup demo test lint tidy fuzz clean

setup: .venv/.ready

.venv/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgepack needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable . --group dev 2>/dev/null || \
	  ( $(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' && $(BIN)/python -m pip install --quiet --editable . --group dev )
	touch $@

demo: setup
	$(BIN)/edgepack demo

test: setup lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files 'cpp_runtime/*.cpp' 'cpp_runtime/*.h' 'cpp_runtime/*.c')

# Searches the C++ for bugs; some 40 CPU-seconds, so not a part of lint. ncnn.cpp needs ncnn's headers: a test checks it.
tidy: setup
	git ls-files 'cpp_runtime/*.cpp' | grep -v backends/ncnn.cpp | xargs -n 1 -P $$(nproc) $(BIN)/clang-tidy --quiet

# Feeds the C++ readers with made-up bytes for SECONDS in all. What is found is kept in cpp_runtime/tests/fuzz/corpus.
SECONDS ?= 600
fuzz: setup
	EDGEPACK_FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest tests/integration/test_fuzz.py

clean:
	rm -rf .venv demo .mypy_cache .ruff_cache .pytest_cache
