# `make demo` trains a small sparse network; `make test` runs the tests. Both create an
# environment in .venv, which needs only python3 >= 3.11 and the package index.

PYTHON ?= python3
VENV ?= .venv
GPU_PYTHON ?= $(PYTHON)
BIN := $(VENV)/bin
SUM := $(shell cksum pyproject.toml | cut -d ' ' -f 1)
STAMP := $(VENV)/installed-$(SUM)
LOWEST := .venv-lowest
LOWEST_STAMP := $(LOWEST)/installed-$(SUM)
DOCS := .venv-docs
DOCS_STAMP := $(DOCS)/installed-$(SUM)
WHEEL := .venv-wheel

# Most of the tests' time is compilation, so they use flags for fast compilation;
# `make test QUICK_CODE=` compiles as for users. Programs are cached in .compiled/ for a
# month.
QUICK_CODE = $$($(1)/python .ci/quick_code.py)
PYTEST = XLA_FLAGS="$(strip $(XLA_FLAGS) $(QUICK_CODE))" $(1)/python -m pytest
COMPILED := .compiled

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-slow test-lowest lint format docs wheel benchmark gpu paper paper-accuracy clean

help:
	@echo 'make demo       train a small ResNet dense and sparse, and compare'
	@echo 'make test       run the test suite'
	@echo 'make test-slow  run the slow tests: whole programs, devices, processes, more cases'
	@echo 'make test-lowest  run the suite at the lowest supported versions'
	@echo 'make lint       check format, lint, types and imports between rooms'
	@echo 'make format     format the code'
	@echo 'make docs       build the documentation into site/'
	@echo 'make wheel      build the distributions into dist/ and test the wheel'
	@echo 'make benchmark  run the benchmarks and store their results'
	@echo 'make gpu        measure on an accelerator what fits into nine minutes'
	@echo 'make paper      reproduce figures of the SparseOpt paper'
	@echo 'make paper-accuracy  reproduce its accuracies over epochs, in an hour or two'
	@echo 'make clean      remove the environment and all caches'

demo: $(STAMP)
	$(BIN)/python -m examples.digits $(ARGS)

test: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/$(COMPILED)
test: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
test: $(STAMP)
	@$(BIN)/python .ci/versions.py
	@mkdir -p $(COMPILED) && find $(COMPILED) -type f -mtime +30 -delete
	$(call PYTEST,$(BIN)) -n auto --dist loadfile $(ARGS)

test-slow: $(STAMP) $(DOCS_STAMP)
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
	$(DOCS)/bin/python -m doctest -o NORMALIZE_WHITESPACE docs/hooks/*.py
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet

# The quickstart runs isolated (-I), so that it can import only the wheel.
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
	$(WHEEL)/bin/python -I examples/quickstart/linen.py

benchmark: $(STAMP)
	$(BIN)/python -m benchmarks.selection
	$(BIN)/python -m benchmarks.step_overhead
	$(BIN)/python -m benchmarks.collectives
	$(BIN)/python -m benchmarks.packed_masks
	$(BIN)/python -m benchmarks.compile_time
	$(BIN)/python -m benchmarks.devices
	$(BIN)/python -m benchmarks.methods
	$(BIN)/python -m benchmarks.mask_changes
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.placement
	$(BIN)/python -m benchmarks.removed_neurons
	$(BIN)/python -m benchmarks.compact_parameters
	$(BIN)/python -m benchmarks.sparse_products
	$(BIN)/python -m studies.large_batch
	$(BIN)/python -m studies.large_batch.text
	$(BIN)/python -m studies.convergence
	$(BIN)/python -m studies.convergence.further
	$(BIN)/python -m studies.convergence.same_rate
	$(BIN)/python -m studies.neuron_scales
	$(BIN)/python -m studies.block_accuracy
	$(BIN)/python -m studies.photographs
	$(BIN)/python -m studies.photographs.neurons
	$(BIN)/python -m studies.reliability
	$(BIN)/python -m reporting

# GPU_PYTHON must have jax for the device.
gpu:
	$(GPU_PYTHON) -m benchmarks.gpu $(ARGS)

paper: $(STAMP)
	$(BIN)/python -m studies.paper.gradient_ratio
	$(BIN)/python -m studies.paper.skew
	$(BIN)/python -m studies.paper.student_teacher
	$(BIN)/python -m studies.paper.explored
	$(BIN)/python -m reporting

paper-accuracy: $(STAMP)
	$(BIN)/python -m studies.paper.accuracy
	$(BIN)/python -m reporting

clean:
	rm -rf $(VENV) .venv-newest $(LOWEST) $(DOCS) $(WHEEL) $(COMPILED) dist site .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment serves every target; a changed pyproject.toml installs anew.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed, for example: make $(MAKECMDGOALS) PYTHON=python3.12'; exit 1; }
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

# Pages are built from sources alone; the package is not installed.
$(DOCS_STAMP): pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(DOCS)/bin/python -m pip install --quiet --group docs
	@rm -f $(DOCS)/installed-*
	@touch $@
