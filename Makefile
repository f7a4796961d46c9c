# Every target installs what it needs in .venv, from hash-pinned requirements. Nothing is installed elsewhere.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
# The number of test processes: one more than two processors, because many tests wait for other processes to start.
WORKERS ?= 3
# The tests of a file run in one process, so that a browser or a `keyman dev` that they share is started only once. The
# files run in the order of tests/conftest.py.
DIST := --dist loadfile --no-loadscope-reorder

# Bytecode is kept, also where the shell forbids it. Without it every worker rewrites the asserts of all tests, which takes
# 9 s of a processor, and every program that a test starts compiles keyman again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help dev test test-fast attack sdks lint types format lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

dev: $(VENV)/dev.stamp ## set everything up, then run keyman on this machine (make dev PORT=9000)
	@$(VENV)/bin/keyman dev $(if $(PORT),--port $(PORT)) $(ARGS)

test: $(VENV)/test.stamp ## set everything up, then run the whole test suite (make test ARGS="-k masks")
	@$(VENV)/bin/python -m pytest -n $(WORKERS) $(DIST) $(ARGS)

# A third process would not wait for others, and each has a Vault of its own and imports everything.
test-fast: WORKERS = 2
test-fast: $(VENV)/test.stamp ## the shorter part of it, 90 s on two idle processors: SQLite, no browser, no Docker
	@KEYMAN_TEST_FAST=1 $(VENV)/bin/python -m pytest -n $(WORKERS) $(DIST) $(ARGS)

# Checks the files in the repository and those that `git add --all` would add. The last two steps fail if git fails.
FILES = git ls-files --cached --others --exclude-standard --deduplicate

attack: $(VENV)/test.stamp ## send a million hostile requests to both planes on both databases, in at most 60 minutes
	@KEYMAN_TEST_SLOW=1 KEYMAN_ATTACK_REQUESTS=1000000 KEYMAN_ATTACK_SECONDS=3480 $(VENV)/bin/python -m pytest -q -s tests/attack $(ARGS)

sdks: $(VENV)/sdks.stamp ## install the SDKs of providers, which tests of the gateway use (KEYMAN_TEST_SLOW=1)

lint: $(VENV)/test.stamp ## ruff (rules and formatting), spelling, secrets
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@files=$$($(FILES)) && $(VENV)/bin/codespell $$files
	@files=$$($(FILES)) && $(VENV)/bin/detect-secrets-hook --no-verify --baseline .secrets.baseline $$files

types: $(VENV)/test.stamp ## mypy, strict
	@$(VENV)/bin/mypy
	@$(VENV)/bin/mypy docs/examples/*.py docs/examples/sdks/*.py .ci/*.py

format: $(VENV)/test.stamp ## let ruff rewrite what it can
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

lock: ## pin the newest allowed versions, with hashes (needs uv on the PATH)
	uv pip compile pyproject.toml --extra dev --group build --upgrade \
	  --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -o requirements/dev.txt
	uv pip compile pyproject.toml --extra dev --group build --group test --group lint --group stack \
	  -c requirements/dev.txt \
	  --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -o requirements/test.txt
	uv pip compile pyproject.toml --extra server -c requirements/test.txt \
	  --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -o requirements/image.txt
	uv pip compile pyproject.toml -c requirements/test.txt \
	  --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -o requirements/client.txt
	uv pip compile --group stack -c requirements/test.txt \
	  --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -o requirements/stack.txt
	uv pip compile --group build -c requirements/test.txt \
	  --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -o requirements/build.txt
	uv pip compile --group sdks --upgrade \
	  --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 -o requirements/sdks.txt

clean: ## remove the environment and caches; .keyman, where `keyman dev` keeps its data, stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find bench docker keyman tests -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "keyman needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# requirements/test.txt has the versions of requirements/dev.txt and more, so that an installation of it has both.
$(VENV)/dev.stamp: requirements/dev.txt pyproject.toml keyman/version.py | $(VENV)/bin/python
	@echo "Installing what keyman needs into $(VENV). The first time, this takes a minute or more."
	$(PIP) install --require-hashes -r requirements/dev.txt
	$(PIP) install --no-deps --no-build-isolation --no-index -e .
	@touch $@

$(VENV)/test.stamp: requirements/test.txt requirements/dev.txt pyproject.toml keyman/version.py | $(VENV)/bin/python
	@echo "Installing what the tests need into $(VENV). The first time, this takes a minute or more."
	$(PIP) install --require-hashes -r requirements/test.txt
	$(PIP) install --no-deps --no-build-isolation --no-index -e .
	@touch $(VENV)/dev.stamp $@

# The SDKs have an environment of their own: no other test needs them, and their versions are none of keyman's.
$(VENV)/sdks.stamp: requirements/sdks.txt | $(VENV)/bin/python
	@echo "Installing the SDKs of providers into $(VENV)/sdks. The first time, this takes a minute or more."
	$(VENV)/bin/python -m venv $(VENV)/sdks
	$(VENV)/sdks/bin/python -m pip --disable-pip-version-check --quiet install --no-compile --require-hashes -r requirements/sdks.txt
	@touch $@
