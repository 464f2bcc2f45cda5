# `make demo` trains a real network sparse; `make test` runs the tests. Each makes its
# own environment in .venv, from python3 >= 3.11 and the package index alone.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SUM := $(shell cksum pyproject.toml | cut -d ' ' -f 1)
STAMP := $(VENV)/installed-$(SUM)
LOWEST := .venv-lowest
LOWEST_STAMP := $(LOWEST)/installed-$(SUM)
DOCS := .venv-docs
DOCS_STAMP := $(DOCS)/installed-$(SUM)
WHEEL := .venv-wheel

# Most of the tests' time is compiling. `make test QUICK_CODE=` takes the time to make
# the code that users run.
QUICK_CODE = $$($(1)/python .ci/quick_code.py)
PYTEST = XLA_FLAGS="$(strip $(XLA_FLAGS) $(QUICK_CODE))" $(1)/python -m pytest

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-slow test-lowest lint format docs wheel benchmark paper paper-accuracy clean

help:
	@echo 'make demo       train a small ResNet dense and sparse, and compare'
	@echo 'make test       run the test suite'
	@echo 'make test-slow  run the tests that start programs, devices and processes'
	@echo 'make test-lowest  run it at the lowest versions that are supported'
	@echo 'make lint       check format, lint, types and imports between rooms'
	@echo 'make format     format the code'
	@echo 'make docs       build the pages about it into site/'
	@echo 'make wheel      build the distributions into dist/ and try the wheel'
	@echo 'make benchmark  run the benchmarks and store their results'
	@echo 'make paper      measure what figures of the SparseOpt paper show'
	@echo 'make paper-accuracy  and its accuracies against epochs, which takes an hour or two'
	@echo 'make clean      remove the environment and all caches'

demo: $(STAMP)
	$(BIN)/python examples/digits.py $(ARGS)

test: $(STAMP)
	@$(BIN)/python .ci/versions.py
	$(call PYTEST,$(BIN)) -n auto --dist loadfile $(ARGS)

test-slow: $(STAMP)
	@$(BIN)/python .ci/versions.py
	$(call PYTEST,$(BIN)) -n auto --dist loadfile -m slow $(ARGS)

test-lowest: $(LOWEST_STAMP)
	@$(LOWEST)/bin/python .ci/versions.py
	$(call PYTEST,$(LOWEST)/bin) -n auto --dist loadfile $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache --no-logo

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DOCS_STAMP)
	$(DOCS)/bin/python -m doctest docs/site_hooks.py
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet

# The quickstart runs isolated (-I), so that only the wheel can be what it imports.
wheel:
	rm -rf dist
	$(PYTHON) -m venv --clear $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(WHEEL)/bin/python -m pip install --quiet --group release
	$(WHEEL)/bin/python -m build --outdir dist
	$(WHEEL)/bin/python .ci/distributions.py dist
	$(PYTHON) -m venv --clear $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet dist/*.whl scikit-learn
	$(WHEEL)/bin/python -m pip check
	$(WHEEL)/bin/python -I examples/quickstart_linen.py

benchmark: $(STAMP)
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/collectives.py
	$(BIN)/python benchmarks/packed_masks.py
	$(BIN)/python benchmarks/devices.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/mask_changes.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/placement.py
	$(BIN)/python benchmarks/large_batch.py
	$(BIN)/python benchmarks/large_batch_text.py
	$(BIN)/python benchmarks/convergence.py
	$(BIN)/python benchmarks/convergence_further.py
	$(BIN)/python benchmarks/neuron_scales.py
	$(BIN)/python benchmarks/tables.py

paper: $(STAMP)
	$(BIN)/python benchmarks/paper/gradient_ratio.py
	$(BIN)/python benchmarks/paper/skew.py
	$(BIN)/python benchmarks/paper/student_teacher.py
	$(BIN)/python benchmarks/paper/explored.py
	$(BIN)/python benchmarks/tables.py

paper-accuracy: $(STAMP)
	$(BIN)/python benchmarks/paper/accuracy.py
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf $(VENV) .venv-newest $(LOWEST) $(DOCS) $(WHEEL) dist site .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment serves every target; a changed pyproject.toml installs anew.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[examples]' --group dev
	@rm -f $(VENV)/installed-*
	@touch $@

$(LOWEST_STAMP): pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(PYTHON) .ci/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt \
	  --editable '.[examples]' --group test
	@rm -f $(LOWEST)/installed-*
	@touch $@

# Pages are built from sources alone: what they describe is not installed.
$(DOCS_STAMP): pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(DOCS)/bin/python -m pip install --quiet --group docs
	@rm -f $(DOCS)/installed-*
	@touch $@
