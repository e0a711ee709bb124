# Each target sets up all that it needs on a fresh machine: Python 3.11 or newer, make, network.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
SOURCES := proto/modscope client server tests examples benchmarks docs
FOLDERS = $(wildcard $(SOURCES))
GENERATE := -m grpc_tools.protoc -I proto --plugin=protoc-gen-mypy=.venv-proto/bin/protoc-gen-mypy
PROTOS = $(wildcard proto/modscope/v1/*.proto)
# Each worker trains models of its own; more than four gain little and take memory.
WORKERS ?= auto --maxprocesses 4
LAST_TAG = $(shell git describe --tags --abbrev=0 2>/dev/null)

.PHONY: help demo test stress lint type proto proto-check check bench docs format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.demo ## Train a digits classifier and look inside it from another process
	$(BIN)/python examples/demo.py

test: .venv/.ok ## Run all tests, with coverage
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term $(PYTEST_ARGS)

stress: .venv/.ok ## 5,000 random changes under each kind of loop, 20,000 reads that may not be torn
	MODSCOPE_STRESS=34 $(BIN)/python -m pytest --timeout 1800 tests/end_to_end/test_loops.py tests/end_to_end/test_torn_reads.py

lint: .venv/.ok ## Style, formatting, layers, file lengths
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache
	@find $(FOLDERS) \( -name '*.py' -o -name '*.proto' \) ! -name '*_pb2.py' -exec awk \
		'END { if (NR > 400) { print FILENAME ": " NR " lines, 400 at most: split it"; exit 1 } }' {} \; \
		| { ! grep .; }

type: .venv/.ok ## mypy --strict
	$(BIN)/mypy

proto: .venv-proto/.ok ## Generate the message classes from the .proto files
	.venv-proto/bin/python $(GENERATE) --python_out=proto --mypy_out=quiet:proto $(PROTOS)

proto-check: .venv-proto/.ok .venv/.ok ## Generated files are current; buf lint, format, breaking
	@rm -rf .venv-proto/fresh && mkdir -p .venv-proto/fresh/modscope/v1
	.venv-proto/bin/python $(GENERATE) --python_out=.venv-proto/fresh --mypy_out=quiet:.venv-proto/fresh $(PROTOS)
	@touch .venv-proto/fresh/modscope/v1/__init__.py
	diff -r -x '*.proto' -x __pycache__ proto/modscope/v1 .venv-proto/fresh/modscope/v1 \
		|| { echo "generated files are not current: run make proto"; exit 1; }
	$(BIN)/buf lint proto
	$(BIN)/buf format proto --diff --exit-code
ifeq ($(LAST_TAG),)
	@echo "buf breaking: skipped, there is no tag to compare with"
else
	$(BIN)/buf breaking proto --against '.git#tag=$(LAST_TAG),subdir=proto'
endif

check: lint type proto-check ## lint + type + proto-check

bench: .venv/.bench ## Ratios against peers, side by side
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

docs: .venv/.ok ## Rebuild docs/cli.md; check links and run the pages' Python
	$(BIN)/python docs/build.py

format: .venv/.ok ## Format the sources
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format proto --write

clean: ## Remove environments, caches and reports
	rm -rf .venv .venv-proto .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo]'
	@touch $@

.venv/.ok: .venv/.demo
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

.venv/.bench: .venv/.demo
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	@touch $@

.venv-proto/.ok: proto/requirements.txt
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/python -m pip install --quiet -r proto/requirements.txt
	@touch $@
