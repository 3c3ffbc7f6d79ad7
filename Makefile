# make demo   the example app under gunicorn, on real input: unbatched, then batched
# make test   all tests, plain and under gevent's monkey patching
# Both make the virtual environment first. PYTHON=python3.12 VENV=.venv-3.12 choose another.

PYTHON ?= python3
VENV ?= .venv
ALSO ?= -e examples/flask_app
BIN := $(VENV)/bin
PYTEST ?= -q
TRACING := tests/field/test_nothing_stays_stuck.py

.DEFAULT_GOAL := help
.PHONY: help install demo serve test field test-core test-patched test-bare coverage quality quality-tools test-libuv test-example test-servers test-docker check lint soak bench clean

help:
	@sed -n '1,3s/^# //p' Makefile
	@echo 'make check  lint, format and types, then all tests'
	@echo 'make coverage  the core tests, with the branches counted'
	@echo 'make serve  leave the example app running, and print a curl line to try'
	@echo 'make soak   a million calls with faults at random'
	@echo 'make bench  all benchmarks, with their plots (ONLY=cost: one of them)'

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml examples/flask_app/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python must be 3.10 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]' $(ALSO)
	@touch $@

demo: install
	$(BIN)/python -m digits_demo.demo

serve: install
	$(BIN)/python -m digits_demo.serve

test: test-servers test-example test-docker field test-core

# What real programs use; other environments do without it, and tests/field skips what needs it.
field: install
	@$(BIN)/python -c 'import requests, pydantic, lxml, pandas, sklearn, flask_sock, cffi; from importlib.util import find_spec; assert find_spec("eventlet")' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[field]'

# In both worlds: they differ (a patched lock in a native thread fails only in the second).
test-core: install
	$(BIN)/python -m pytest $(PYTEST) tests --ignore=tests/servers
	$(MAKE) test-patched

test-patched: install
	$(BIN)/python -m gevent.monkey --module pytest $(PYTEST) tests --ignore=tests/servers

# The same, in the first world with the branches of ubatch/ counted: gevent is there too, and counting takes as long as
# the tests themselves. Below the floor in pyproject.toml it fails. One module traces the package itself, which beside
# coverage's own tracer crashes the interpreter: it runs by itself.
coverage: install
	@test -x $(BIN)/coverage || $(BIN)/python -m pip install -q --disable-pip-version-check 'coverage>=7.6'
	rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest $(PYTEST) tests --ignore=tests/servers --ignore=$(TRACING)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report
	$(BIN)/python -m pytest $(PYTEST) $(TRACING)
	$(MAKE) test-patched

# With gevent and nothing else of what pyproject.toml names.
test-bare:
	$(PYTHON) -m venv $(VENV)-bare
	$(VENV)-bare/bin/python -m pip install -q --disable-pip-version-check . pytest pytest-timeout
	cd tests/bare && ../../$(VENV)-bare/bin/python -I -m pytest $(PYTEST) -c pytest.ini --rootdir=. .

# On gevent's other loop, what a loop can matter to. Its watchers crash the process where one is dropped and not closed.
test-libuv: field
	GEVENT_LOOP=libuv-cffi $(BIN)/python -m gevent.monkey --module pytest $(PYTEST) tests --ignore=tests/servers \
		--ignore-glob='*/test_bench*' --ignore-glob='*documentation*' --ignore=tests/test_page.py \
		--ignore=tests/test_docker.py

test-example: install
	cd examples/flask_app && $(abspath $(BIN))/python -m pytest $(PYTEST)

# uWSGI is built from source; where there is no compiler its cells are skipped.
test-servers: install
	@$(BIN)/python -c 'import waitress' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check waitress
	@test -x $(BIN)/uwsgi || $(BIN)/python -m pip install -q --disable-pip-version-check uwsgi || echo 'uWSGI cannot be built here'
	$(BIN)/python -m pytest $(PYTEST) tests/servers

# The schemas of Kubernetes are large, so other environments do without them.
test-docker: install
	@$(BIN)/python -c 'import check_jsonschema, kubernetes_validate' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[manifests]'
	$(BIN)/python -m pytest $(PYTEST) tests/test_docker.py

check: lint test

quality-tools: install
	@test -x $(BIN)/shellcheck -a -x $(BIN)/pyright -a -x $(BIN)/towncrier -a -x $(BIN)/coverage || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[quality]'

# Shell scripts; whether the types of the public interface are complete; the news. pyright looks at what is installed, so
# it is called from elsewhere.
quality: quality-tools
	$(BIN)/shellcheck --external-sources .ci/run .ci/newest docker/verify docker/measure docker/lab.sh docker/build_and_check
	cd docs && PATH=$(abspath $(BIN)):$$PATH pyright --verifytypes ubatch --ignoreexternal
	$(BIN)/towncrier build --draft --version next >/dev/null

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd examples/flask_app && $(abspath $(BIN))/mypy digits_app digits_demo tests gunicorn.conf.py

soak: install
	$(BIN)/python -m benchmarks.soak

# Matplotlib draws the plots and torch is measured; other environments do without them. ONLY='cost hub' chooses.
bench: install
	@$(BIN)/python -c 'import matplotlib, torch' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks $(ONLY)

clean:
	rm -rf $(VENV) $(VENV)-bare .bench .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
