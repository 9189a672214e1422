# `make demo` and `make test` set up everything they need in .venv; `make core` builds the C++ core in place.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test core clean

core:
	cmake -S . -B build/dev -G Ninja -DPYCOOLDOWN_WERROR=ON -DPython_EXECUTABLE=$$(command -v $(PYTHON)) -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/pycooldown
	cmake --build build/dev
