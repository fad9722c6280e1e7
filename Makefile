# hepar: `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
IMAGE ?= hepar:latest
DATA_IMAGE ?= hepar-data:latest
# where `make images` pushes: HOST/NAME; not at all if it is empty
PUSH ?=
# the digests that compiling reads, unless HEPAR_IMAGE names one image for all steps
HEPAR_IMAGES ?= $(wildcard build/images.json)
# an image to release names its base by digest: make release-image BASE_IMAGE=python:3.11-slim@sha256:…
BASE_IMAGE ?= python:3.11-slim
SERVICES_IMAGE ?= hepar-services:latest
SERVICES_BASE_IMAGE ?= python:3.11-slim-bookworm
OVERLAY ?= cpu
UV := uv==0.13.9
TORCH := 2.13.0
CPU_WHEELS := https://download.pytorch.org/whl/cpu/torch
# uv finds local wheels where pip does
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# PyPI's torch brings CUDA, some gigabytes; a CPU build among the local wheels is preferred. Each has its lock.
TORCH_LOCK ?= requirements-torch$(if $(wildcard $(addsuffix /torch-$(TORCH)+cpu-*,$(UV_FIND_LINKS))),-cpu).lock
LOCKS = requirements-build.lock requirements-dev.lock $(TORCH_LOCK)
# the commit of an image; a build of changed files says so
COMMIT = $(shell git describe --always --dirty --abbrev=40 --exclude '*')
BUILD = DOCKER_BUILDKIT=0 docker build --network host --build-arg GIT_COMMIT=$(COMMIT)
COMPILE = $(BIN)/uv pip compile --quiet --generate-hashes --no-header --no-emit-find-links

.PHONY: help setup demo test check bench compile images release-image services-image manifests sbom lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv from the lock files

$(READY): $(LOCKS) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements-build.lock
	$(BIN)/uv pip sync --quiet --require-hashes --build-constraints requirements-build.lock $(LOCKS)
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup ## run the whole pipeline on phantoms; results in runs/demo
	$(BIN)/hepar run --params params/demo.yaml --workdir runs/demo
	@echo "pool                       version $$($(BIN)/hepar pool push --pool runs/demo/pool --remote runs/demo/remote), in runs/demo/remote"

# tests and runs start hundreds of processes: with compiled modules each imports torch and MLflow in half the time
unexport PYTHONDONTWRITEBYTECODE

# one process more than cores, at most four: tests wait for servers, browsers and each other's fixtures
TESTERS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) < 3 ? $$(getconf _NPROCESSORS_ONLN) + 1 : 4 )))

test: setup ## run the tests
	$(BIN)/pytest --numprocesses $(TESTERS) --dist worksteal --durations 30

check: setup ## check lint, format, types, import contracts and licences
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/licences.py requirements-dev.lock requirements-torch.lock requirements-build.lock

bench: setup ## run all benchmarks, among them the README's measurements, but none that takes hours or needs real scans or a finished run
	for script in $$(grep -l __main__ benchmarks/*.py | grep -vE '/(real_folds|normalisation|promotion)\.py'); do $(BIN)/python $$script || exit 1; done

compile: setup ## compile the pipeline to build/two_stage.yaml, with the digests of HEPAR_IMAGE or of build/images.json
	mkdir -p build
	HEPAR_IMAGES=$(HEPAR_IMAGES) $(BIN)/kfp dsl compile --py pipelines/two_stage.py --output build/two_stage.yaml

images: ## build both images of the stages; PUSH=HOST/NAME pushes them and writes their digests to build/images.json
	$(BUILD) --build-arg BASE_IMAGE=$(BASE_IMAGE) -f containers/Dockerfile --target data -t $(DATA_IMAGE) .
	$(BUILD) --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg TORCH_LOCK=$(TORCH_LOCK) \
	  -f containers/Dockerfile --target compute -t $(IMAGE) .
	$(if $(PUSH),$(PYTHON) containers/push_images.py --to $(PUSH) --out build/images.json data=$(DATA_IMAGE) compute=$(IMAGE))

release-image: ## build an image to release: its base must be given by digest
	@[[ "$(BASE_IMAGE)" =~ @sha256:[0-9a-f]{64}$$ ]] || \
	  { echo "BASE_IMAGE is $(BASE_IMAGE), must name a digest: NAME@sha256:…" >&2; exit 2; }
	$(MAKE) images

services-image: ## build the image of MLflow, S3 and backups (infra/)
	$(BUILD) --build-arg BASE_IMAGE=$(SERVICES_BASE_IMAGE) -t $(SERVICES_IMAGE) infra/services

manifests: setup ## render infra/kubernetes/overlays/$(OVERLAY) to build/; its images must be named by digest
	mkdir -p build
	rm -f build/kubernetes-$(OVERLAY).yaml
	$(BIN)/kubectl kustomize infra/kubernetes/overlays/$(OVERLAY) > build/.kubernetes-$(OVERLAY).yaml
	$(BIN)/python infra/kubernetes/rules.py --release build/.kubernetes-$(OVERLAY).yaml
	$(BIN)/kubernetes-validate --strict --quiet build/.kubernetes-$(OVERLAY).yaml
	mv build/.kubernetes-$(OVERLAY).yaml build/kubernetes-$(OVERLAY).yaml

sbom: setup ## list what the images of the stages hold, as CycloneDX, in build/sbom-data.cdx.json and build/sbom-compute.cdx.json
	mkdir -p build
	$(BIN)/python .ci/sbom.py --image $(DATA_IMAGE) --out build/sbom-data.cdx.json requirements-build.lock requirements.lock
	$(BIN)/python .ci/sbom.py --image $(IMAGE) --out build/sbom-compute.cdx.json \
	  requirements-build.lock requirements.lock $(TORCH_LOCK)

# resolved from PyPI alone, so that the locks do not depend on the machine; torch apart, since its two builds differ
lock: ## resolve the dependencies into the lock files
	test -x $(BIN)/uv || ($(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet $(UV))
	UV_FIND_LINKS= $(COMPILE) --excludes <(echo torch) pyproject.toml -o requirements.lock
	UV_FIND_LINKS= $(COMPILE) --excludes <(echo torch) --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	echo torch==$(TORCH) | UV_FIND_LINKS= $(COMPILE) -c requirements-dev.lock - -o requirements-torch.lock
	echo torch==$(TORCH)+cpu | UV_FIND_LINKS=$(or $(UV_FIND_LINKS),$(CPU_WHEELS)) $(COMPILE) -c requirements-dev.lock - -o requirements-torch-cpu.lock
	printf '%s\n' $(UV) setuptools wheel | UV_FIND_LINKS= $(COMPILE) -c requirements-dev.lock - -o requirements-build.lock
	UV_FIND_LINKS= $(COMPILE) -c requirements-dev.lock - -o infra/services/requirements.lock < infra/services/requirements.in

clean: ## remove runs, builds and caches, but not .venv
	rm -rf build runs .pytest_cache .mypy_cache .ruff_cache
