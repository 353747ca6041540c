# One screen. `make demo` shows the product working; `make test` passes the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test check crds lock bench clean

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: $(VENV)/.installed  ## the whole story on one laptop, in under two minutes
	$(BIN)/sluice demo

.tools/helm: $(VENV)/.installed hack/tools.py
	$(BIN)/python hack/tools.py

test: $(VENV)/.installed .tools/helm  ## every test that needs no cluster
	$(BIN)/pytest -n auto

check: $(VENV)/.installed  ## lint, types, import contracts, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python hack/generate.py --check

crds: $(VENV)/.installed  ## regenerate crds/ and the docs that are made from code
	$(BIN)/python hack/generate.py

bench: $(VENV)/.installed  ## the benchmark table and CSV
	$(BIN)/python -m bench

lock: $(VENV)/.installed  ## renew the pinned requirements
	$(BIN)/python hack/lock.py

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
