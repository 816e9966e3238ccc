# Two commands from a fresh clone: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo demo-full install test test-system soak lint docs clean

help:  ## List the targets.
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/light.done  ## The whole pipeline on 1,000 real images, from the bundle in the repository (no torch).
	.venv/bin/devit demo

demo-full: .venv/full.done  ## The same, but exporting from the trained checkpoints first.
	.venv/bin/devit demo --models examples/fashion-mnist

install: .venv/full.done  ## Everything: training, export, tests.

test: .venv/full.done lint  ## All tests that need neither root nor minutes.
	.venv/bin/python -m pytest -m "not system and not jetson" --durations 15

test-system: .venv/full.done  ## Tests that need root, apt packages or minutes.
	.venv/bin/python -m pytest -m "system" --timeout 900 -rP --durations 30

soak: .venv/full.done  ## Ten minutes at 200 frames/s: does the memory of node and agents stay flat?
	.venv/bin/python tests/network/soak.py --seconds 600 --rate 200

lint: .venv/full.done  ## Style and types.
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs: .venv/full.done  ## The documentation, as docs/_build/html/index.html.
	.venv/bin/python -m sphinx --fresh-env --fail-on-warning --keep-going --nitpicky -q -b html docs docs/_build/html

clean:  ## Remove the virtual environment and caches.
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis docs/_build

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/light.done: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing the light set (no torch, about 300 MB) into .venv"
	$(PIP) --editable '.[demo]'
	@touch $@

.venv/full.done: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing everything (about 1.4 GB) into .venv"
	$(PIP) --editable '.[test]'
	@touch $@ .venv/light.done
