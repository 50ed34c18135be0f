# `make demo` and `make test` do all the set-up on a fresh machine with Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench lint clean

demo: $(STAMP)
	$(BIN)/workspace demo

test: $(STAMP)
	$(BIN)/pytest

check: $(STAMP) lint
	$(BIN)/pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/source_tree.py
	MYPYPATH=.build/src $(BIN)/mypy .build/src/workspace
	cd .build/src && PYTHONPATH=. ../../$(BIN)/lint-imports --config ../../pyproject.toml

bench: $(STAMP)
	$(BIN)/python -m benchmarks

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .build build *.egg-info
