# make run    serves etc/forkd.toml in the foreground
# make test   lint, types and all tests
# make docs   the documentation as a website, in build/site
# make bench  forkd beside other servers, and the page of it; make scaling  how the cost grows
# Each installs what it needs into $(VENV), can be repeated, and touches nothing outside the clone.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test lint types pytest machine chaos bench scaling coverage reference docs clean

run: $(VENV)/installed
	$(BIN)/forkd run etc/forkd.toml

test: lint types pytest

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/tested
	$(BIN)/mypy
	$(BIN)/mypy --strict examples/keyvalue.py
	$(BIN)/mypy --strict examples/policy.py
	$(BIN)/mypy --strict -p bench

# PYTEST='tests/rooms -k line' selects some of them.
pytest: $(VENV)/tested
	$(BIN)/pytest $(PYTEST)

# The tests inside their own systemd, with fifty restarts instead of five. Needs root.
machine: $(VENV)/tested
	RESTARTS=50 $(BIN)/pytest -v -rs tests/machine

# Every promise of reliability under load, with every kind of worker, and the page of the results: two hours. Needs root.
# CHAOS='--kind sync' takes half an hour; CHAOS='--rows FILE' resumes an interrupted run.
chaos: $(VENV)/tested
	$(BIN)/python -m tests.chaos --page docs/explanation/reliability.md $(CHAOS)

# forkd beside C, Perl and other Python servers, and the benchmarks page: half an hour. BENCH='--only sync-64' does a part.
# It needs libnet-server-perl, redis-tools and ucspi-tcp on Debian, and reports which are missing.
bench: $(VENV)/benched $(patsubst %,bench/build/%,prefork epoll filter client)
	$(BIN)/python -m bench $(BENCH)

# How the cost grows, and the scaling page: a quarter of an hour.
scaling: $(VENV)/benched
	$(BIN)/python -m bench.scaling $(SCALING)

bench/build/%: bench/c/%.c bench/c/lines.h bench/c/listen.h
	@command -v $(CC) >/dev/null \
	    || { echo "the benchmark needs a C compiler (on Debian: apt-get install gcc libc6-dev)" >&2; exit 1; }
	@mkdir -p $(@D)
	$(CC) -O2 -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -o $@ $< -lm

PURE := $(addprefix forkd/,lifecycle/*.py serving/framing.py serving/holding.py serving/delimited_framings.py serving/counted_framings.py ipc/worker_kinds.py \
    settings/config.py settings/reading.py settings/toml_lines.py workers/tenure.py workers/account.py log/record.py \
    systemd/reports.py sockets/rpcbind/protocol.py cli/install/plan.py cli/load/plan.py cli/load/schedule.py \
    cli/load/open_loop.py cli/load/replies.py cli/load/tally.py)
empty :=
comma := ,
coverage: $(VENV)/tested
	$(BIN)/coverage run -m pytest tests/rooms
	$(BIN)/coverage report -m --fail-under=100 --include='$(subst $(empty) ,$(comma),$(strip $(PURE)))'

# Every file that is made from the code.
reference: $(VENV)/installed
	$(BIN)/python -m docs.tools.settings_page > docs/reference/settings.md
	$(BIN)/python -m docs.tools.manual man
	_FORKD_COMPLETE=bash_source $(BIN)/forkd > completion/forkd
	_FORKD_COMPLETE=zsh_source $(BIN)/forkd > completion/_forkd
	_FORKD_COMPLETE=fish_source $(BIN)/forkd > completion/forkd.fish
	$(BIN)/python -m docs.tools.states
	$(BIN)/python -m docs.tools.picture
	$(BIN)/python -m docs.tools.tables

# A link that leads nowhere fails the build; with --quiet it would not. `python -m` finds docs.tools in the clone.
docs: $(VENV)/documented
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "see build/site/index.html, or with search: $(PYTHON) -m http.server --bind 127.0.0.1 --directory build/site"

clean:
	rm -rf .venv* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage bench/build

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "forkd needs Python 3.11 or newer; name one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' \
	    || { echo "this Python cannot make virtual environments (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --config-settings editable_mode=compat
	touch $@

$(VENV)/tested: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' --config-settings editable_mode=compat
	touch $(VENV)/installed $@

$(VENV)/benched: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' --config-settings editable_mode=compat
	touch $(VENV)/installed $@

$(VENV)/documented: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]' --config-settings editable_mode=compat
	touch $(VENV)/installed $@
