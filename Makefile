# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-slow lint clean

install: $(VENV)/installed

$(VENV)/installed: setup.py pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: python3 is missing: apt-get install python3 python3-venv" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old: Python 3.11 or newer is needed (make PYTHON=python3.12)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: python3-venv is missing: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# make demo DATA=SPEC TEACHER=DIR uses your own text and teacher.
demo: install
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m demo.run $(if $(DATA),--data '$(DATA)') $(if $(TEACHER),--teacher '$(TEACHER)')

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 15

test-slow: install
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) runs *.egg-info .pytest_cache .ruff_cache .mypy_cache
