# `make demo` and `make test` set up all they need in .venv, from nothing but Python, a C++ compiler and pip.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell git ls-files csrc pycooldown)

.PHONY: demo smoke test types bench core clean

.venv/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt pip
	$(BIN)/pip install --quiet --constraint constraints.txt '.[all]' --group test --group lint
	touch $@

test: .venv/.installed
	$(BIN)/pytest

types: .venv/.installed
	$(BIN)/mypy

core:  ## builds the C++ core in place, for development
	cmake -S . -B build/dev -G Ninja -DPYCOOLDOWN_WERROR=ON -DPython_EXECUTABLE=$$(command -v $(PYTHON)) \
	  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/pycooldown
	cmake --build build/dev

clean:
	rm -rf .venv .nox build
