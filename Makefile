# Two commands from a fresh clone: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Tests in lanes, see tests/support/lanes.py. One thread a worker: more would only wait for one another.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --durations 15
QUICK = not system and not nightly and not jetson and not gpu
VERSION = -c 'import sys; print("%d.%d" % sys.version_info[:2])'
IS_RECENT = -c 'import sys; sys.exit(sys.version_info < (3, 10))'

.PHONY: help demo demo-full install test test-gpu test-system test-nightly nightly-endurance nightly-installs nightly-models \
	coverage soak bench bench-smoke lint docs clean recent-python

help:  ## List the targets.
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/light.done  ## The whole pipeline on 1,000 real images, from the bundle in the repository (no torch).
	.venv/bin/devit demo

demo-full: .venv/full.done  ## The same, but exporting from the trained checkpoints first.
	.venv/bin/devit demo --models examples/fashion-mnist

install: .venv/full.done  ## Everything: training, export, tests.

# Style and types are checked meanwhile, and told at the end.
test: .venv/full.done  ## Style, types, and all tests that need neither root nor minutes.
	@$(MAKE) --no-print-directory --keep-going lint >.venv/lint.log 2>&1 & lint=$$!; \
	$(PYTEST) -m "$(QUICK)"; tests=$$?; \
	wait $$lint; style=$$?; cat .venv/lint.log; exit $$((tests | style))

# No network once .venv is there. The light set has no pytest; its checks are the same, so only the simulation is not held
# to the real driver then.
test-gpu: .venv/light.done  ## The ways to CUDA on this machine's NVIDIA GPU, in minutes; keeps a log in tests/data/gpu.
	@.venv/bin/devit selftest --device --out tests/data/gpu/$$(date -u +%Y-%m-%dT%H%M).json; checks=$$?; \
	if .venv/bin/python -c 'import hypothesis, pytest, pytest_timeout, xdist' 2>/dev/null; then \
		OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 0 -m gpu --timeout 60 tests/engines/cuda; tests=$$?; \
	else echo "pytest is not installed: run make install, then this again, to hold the simulated driver to this one"; \
		tests=0; fi; exit $$((checks | tests))

test-system: .venv/full.done  ## What else has to pass before a change lands; needs root and apt packages.
	$(PYTEST) -m system --timeout 900 -rP

test-nightly: nightly-endurance nightly-installs nightly-models  ## Tests that take minutes and change rarely.

# One after the other: they measure time, and have both cores to themselves.
nightly-endurance: .venv/full.done  ## A third of them: load, bad networks, fuzzing, benchmarks.
	$(PYTEST) --numprocesses 1 -m "nightly(part='endurance')" --timeout 900 -rP

nightly-installs: .venv/full.done  ## A third: fresh environments, other Pythons, arm64, NVIDIA's real packages.
	$(PYTEST) -m "nightly(part='installs')" --timeout 900 -rP

nightly-models: .venv/full.done  ## A third: all recipes, a hundred virtual runs, exports, many examples of each property.
	$(PYTEST) -m "nightly(part='models') or hypothesis and $(QUICK)" --hypothesis-profile thorough --timeout 900 -rP

coverage: .venv/full.done  ## Lines that the tests of make test run, in the processes that they start too.
	rm -f .coverage .coverage.*
	$(subst -m pytest,-m coverage run -m pytest,$(PYTEST)) -m "$(QUICK)"
	.venv/bin/python -m coverage combine --quiet
	.venv/bin/python -m coverage report --skip-covered --sort cover

soak: .venv/full.done  ## Ten minutes at 200 frames/s: does the memory of node and agents stay flat?
	.venv/bin/python tests/network/soak.py --seconds 600 --rate 200

bench: .venv/bench.done  ## Every benchmark in full, an hour on a quiet machine; writes benchmarks/RESULTS.md and results.json.
	.venv/bin/python -m benchmarks.all

bench-smoke: .venv/bench.done  ## Every benchmark so briefly that only a broken one shows; keeps no figures.
	.venv/bin/python -m benchmarks.all --smoke

lint: .venv/full.done  ## Style and types.
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs: .venv/full.done  ## The documentation, as docs/_build/html/index.html.
	.venv/bin/python docs/generated.py
	.venv/bin/python -m sphinx --fresh-env --fail-on-warning --keep-going --nitpicky -q -b html docs docs/_build/html

clean:  ## Remove the virtual environment and caches.
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage docs/_build

# Before anything is installed: pip would refuse an older Python in its own words, and PYTHON would change nothing.
recent-python:
	@python="$(PYTHON)"; [ ! -x .venv/bin/python ] || python=.venv/bin/python; \
	found=$$($$python $(VERSION)) || exit 1; \
	$$python $(IS_RECENT) || { echo "error: $$python is Python $$found, expected 3.10 or later: run make clean," \
		"then name a later one, e.g. make demo PYTHON=python3.12" >&2; exit 1; }; \
	[ "$(origin PYTHON)" = file ] || wanted=$$($(PYTHON) $(VERSION)) || exit 1; \
	[ "$${wanted:-$$found}" = "$$found" ] || { echo "error: .venv has Python $$found, $(PYTHON) is $$wanted:" \
		"run make clean, then this again" >&2; exit 1; }

.venv/bin/python: | recent-python
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/light.done: .venv/bin/python pyproject.toml constraints.txt | recent-python
	@echo "Installing the light set (no torch, about 300 MB) into .venv"
	$(PIP) --editable '.[demo]'
	@touch $@

.venv/full.done: .venv/bin/python pyproject.toml constraints.txt | recent-python
	@echo "Installing everything (about 1.4 GB) into .venv"
	$(PIP) --editable '.[test]'
	@touch $@ .venv/light.done

.venv/bench.done: .venv/full.done benchmarks/requirements.txt constraints.txt
	@echo "Installing what the cell is measured against (about 450 MB) into .venv"
	$(PIP) --requirement benchmarks/requirements.txt
	@touch $@
