# hepar: `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
IMAGE ?= hepar:latest
BASE_IMAGE ?= python:3.11-slim
UV_VERSION := 0.13.9
TORCH := torch==2.13.0
# uv finds local wheels where pip does
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: help setup demo test check bench compile images lock clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv from the lock file

$(READY): requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet requirements-dev.lock
	$(BIN)/uv pip install --quiet -r requirements-dev.lock uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --no-deps --editable .
	touch $@

demo: setup ## run the whole pipeline on phantoms; results in runs/demo
	$(BIN)/hepar run --params params/demo.yaml --workdir runs/demo
	@echo "pool                       version $$($(BIN)/hepar pool push --pool runs/demo/pool --remote runs/demo/remote), in runs/demo/remote"

test: setup ## run the tests
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

check: setup ## check lint, format, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## repeat the README's measurements
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

compile: setup ## compile the pipeline to build/two_stage.yaml
	mkdir -p build
	$(BIN)/kfp dsl compile --py pipelines/two_stage.py --output build/two_stage.yaml

images: ## build the container image of the stages
	DOCKER_BUILDKIT=0 docker build --network host --build-arg BASE_IMAGE=$(BASE_IMAGE) -f containers/Dockerfile -t $(IMAGE) .

lock: ## resolve the dependencies into the lock files
	test -x $(BIN)/uv || ($(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet uv==$(UV_VERSION))
	sed -i '/^torch==/d' requirements.lock requirements-dev.lock
	$(BIN)/uv pip compile --quiet --no-header --no-emit-find-links -c <(echo $(TORCH)) pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --no-header --no-emit-find-links --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	sed -i -E 's/^(torch==[0-9.]+)\+[a-z0-9]+/\1/' requirements.lock requirements-dev.lock

clean: ## remove runs, builds and caches, but not .venv
	rm -rf build runs .pytest_cache .mypy_cache .ruff_cache
