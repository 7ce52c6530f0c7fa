# Two commands do everything: `make demo` and `make test`. uv is used where it is installed, else fetched into .tools.
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
ROBUSTKIT := .venv/bin/robustkit

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint format types check bench curves requirements clean

help:
	@echo "make demo   train, attack, verify and report on the embedded dataset (about three minutes)"
	@echo "make test   run the tests        make check   lint, types and tests"
	@echo "make bench  run the benchmarks   make clean   remove the environment"

.tools/bin/uv:
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet uv

install: .venv/.installed

.venv/.installed: pyproject.toml uv.lock $(filter .tools/%,$(UV))
	$(UV) sync --quiet --locked
	@touch $@

demo: install
	$(ROBUSTKIT) run

test: install
	.venv/bin/pytest

test-slow: install
	.venv/bin/pytest -m slow

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: install
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

types: install
	.venv/bin/mypy

check: lint types test

bench: install
	.venv/bin/python -m benchmarks

curves: install
	.venv/bin/python -m benchmarks.attack_curves --image docs/images/attack-curves.png

requirements:
	$(UV) export --quiet --locked --no-dev --no-emit-project --format requirements-txt --no-header -o requirements.txt

clean:
	rm -rf .venv .tools
