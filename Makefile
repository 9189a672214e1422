# `make demo` and `make test` set up all they need in .venv, from nothing but Python, a C++ compiler and pip.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(shell git ls-files csrc pycooldown)

.PHONY: demo demo-ten-languages demo-documents smoke test core clean

.venv/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt pip
	$(BIN)/pip install --quiet --constraint constraints.txt '.[all]' --group test --group lint
	touch $@

test: .venv/.installed
	$(BIN)/pytest --numprocesses 2 --dist worksteal
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m slow

# Each step continues where an interrupted run stopped, and does nothing when its result is there.
PAIR := temperature1 temperature5 temperature100 cooldown unimax
LANGUAGES := zh-Hans,de,fr,ro,uk,gl,sl,hr,is,fa
RUNS := temperature1 temperature5 cooldown
DOCUMENT_LANGUAGES := en,de,nl,ru,fr,zh-Hans,sl,hr,is,fa
DOCUMENT_RUNS := temperature1 cooldown

demo: .venv/.installed  ## five mixtures of a frequent and a rare language, 100:1, three seeds
	$(BIN)/python -m reproduction corpus demo/corpus --languages $(LANGUAGES)
	$(BIN)/pycooldown pack demo/corpus demo/packed
	$(BIN)/pycooldown sweep $(PAIR:%=recipes/pair/%.yaml) --seeds 0,1,2 --workers 2 --output demo/pair-runs
	$(BIN)/python -m reproduction demo demo/pair-runs demo/pair-report

demo-ten-languages: .venv/.installed
	$(BIN)/python -m reproduction corpus demo/corpus --languages $(LANGUAGES)
	$(BIN)/pycooldown pack demo/corpus demo/packed
	for run in $(RUNS); do $(BIN)/pycooldown train recipes/demo/$$run.yaml --output demo/runs/$$run --resume || exit 1; done
	$(BIN)/pycooldown report $(RUNS:%=demo/runs/%) --figures demo/report

demo-documents: .venv/.installed  ## mixtures of monolingual documents, with a tokenizer trained in the run
	$(BIN)/python -m reproduction documents demo/documents --languages $(DOCUMENT_LANGUAGES)
	$(BIN)/pycooldown tokenize demo/tokens demo/documents --train-tokenizer bpe --vocabulary-size 8000 --validation 20 --workers 2
	for run in $(DOCUMENT_RUNS); do \
	  $(BIN)/pycooldown train recipes/documents/$$run.yaml --output demo/documents-runs/$$run --resume || exit 1; done
	$(BIN)/pycooldown report $(DOCUMENT_RUNS:%=demo/documents-runs/%) --figures demo/documents-report

smoke: .venv/.installed  ## the demo of ten languages with few steps
	$(BIN)/python -m reproduction corpus demo/corpus --languages $(LANGUAGES)
	$(BIN)/pycooldown pack demo/corpus demo/packed
	rm -rf demo/smoke
	$(BIN)/pycooldown train recipes/demo/cooldown.yaml --output demo/smoke/cooldown \
	  training.steps=30 training.eval_every=15 training.save_every=15 training.log_every=5
	$(BIN)/pycooldown report demo/smoke/cooldown --figures demo/smoke/report

core:  ## builds the C++ core in place, for development
	cmake -S . -B build/dev -G Ninja -DPYCOOLDOWN_WERROR=ON -DPython_EXECUTABLE=$$(command -v $(PYTHON)) \
	  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/pycooldown
	cmake --build build/dev

clean:
	rm -rf .venv .nox build
