# Everything a user or CI runs. `.venv` is made where it is missing; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test check format clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1: /p' $(MAKEFILE_LIST)

demo: .venv/installed  ## draw, train, translate, evaluate and show, in a few minutes on a CPU
	$(BIN)/python -m jobs.demo

test: .venv/installed  ## the whole test suite
	$(BIN)/pytest --numprocesses 2 --dist loadfile

check: .venv/installed  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed  ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what make made
	rm -rf .venv demo

# The marker is written last, so an interrupted installation is taken up again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
