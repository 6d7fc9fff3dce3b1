# `make demo` sets up and runs the main job; `make test` sets up and runs the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint types check atlas grid clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

demo: $(READY)
	$(BIN)/quantize sweep zoo/resnet8 --space demo --out runs/demo
	@echo "Open runs/demo/report.html"

test: $(READY)
	$(BIN)/python -m nox -s tests

lint types: $(READY)
	$(BIN)/python -m nox -s $@

check: lint types test

# Every integer and minifloat of 3 to 8 bits on the residual net (about 5 minutes).
grid: $(READY)
	$(BIN)/quantize sweep zoo/resnet8 --space diagonal --out runs/diagonal

# Synthesize the unit library again (about 20 minutes); it compares equal or says what differs.
atlas: $(READY)
	$(BIN)/quantize atlas --out cost_models/data

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
