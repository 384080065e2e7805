# Short names for what people and CI do. Anything with an `if` in it is a script under scripts/.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready-dev
ONCE ?=
COV ?=
ARGS ?=
NAMES ?=
PEERS ?=
# Test files at once: end-to-end tests wait half of their time. 0 runs them in one process, as a debugger needs.
JOBS ?= 3
# In the order of testpaths: long files begin early, and short ones fill the end.
PYTEST_JOBS := -n $(JOBS) --dist loadfile --no-loadscope-reorder

# What runs for every request, and its callers' view of it.
COMPILED_TESTS := tests/e2e/serving tests/e2e/attacks tests/unit/core/test_requests.py tests/unit/engine tests/unit/protocol tests/unit/serving tests/unit/observe tests/unit/runtimes

# src's bytecode is compiled by hand: an editable install never is, and where
# PYTHONDONTWRITEBYTECODE is set every process start would parse it again. `make test` unsets it, as
# each worker would also rewrite the assertions of all tests again, which doubles its collection.
COMPILE := $(BIN)/python -m compileall -q -j 1 src

# mkdocs-material advertises its successor on every build.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

##@ Run
.PHONY: demo
demo: setup ## start the whole system on a real model and use it; ONCE=1 stops by itself
	$(BIN)/python scripts/demo.py $(if $(ONCE),--once) $(ARGS)

.PHONY: setup
setup: $(READY) ## fill .venv with the locked requirements and this package
	@$(COMPILE)

.venv/.ready-%: requirements/%.txt requirements/uv.txt pyproject.toml scripts/setup.sh
	PYTHON=$(PYTHON) scripts/setup.sh $*
	@touch $@

##@ Test
.PHONY: test
test: setup ## every test but long ones, twenty minutes, for each change; ARGS="-k gateway" narrows, JOBS=0 debugs
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m scripts.run_tests -m "not long" $(PYTEST_JOBS) $(ARGS)

.PHONY: test-long
test-long: setup ## the long ones, 40 minutes: before a release, and after changes to what they are about
	$(BIN)/pytest -m long $(PYTEST_JOBS) $(ARGS)

.PHONY: test-full
test-full: setup ## test and test-long in one; COV=1 fails below 95 % coverage, in twice the time
	$(if $(COV),scripts/coverage.sh,$(BIN)/pytest) $(PYTEST_JOBS) $(ARGS)

.PHONY: test-all
test-all: setup ## as test-full, and what needs PyTorch or TensorFlow: installs them into .venv-all, 2 GB
	scripts/test_all.sh $(PYTEST_JOBS) $(ARGS)

.PHONY: frameworks
frameworks: setup ## only the tests that need PyTorch or TensorFlow, in .venv-all
	ONLY=frameworks scripts/test_all.sh $(PYTEST_JOBS) $(ARGS)

.PHONY: ray
ray: setup ## only the tests of jobs on Ray, in .venv-ray: 270 MB, three minutes
	scripts/ray.sh $(ARGS)

.PHONY: kube
kube: setup ## only the tests that need Helm and its like, in .venv-kube: 500 MB, three minutes
	scripts/setup_kube.sh
	$(BIN)/pytest -m kube $(PYTEST_JOBS) $(ARGS)

.PHONY: nightly
nightly: export HYPOTHESIS_PROFILE = nightly
nightly: unit test-compiled test-long frameworks ray ## what CI leaves out at each change: long tests, PyTorch, Ray, more examples; 90 minutes

.PHONY: unit
unit: setup ## only the tests that start nothing
	$(BIN)/pytest -m "not e2e and not long" $(PYTEST_JOBS) $(ARGS)

.PHONY: e2e
e2e: setup ## of test, only those that start real processes
	$(BIN)/pytest -m "e2e and not long" $(PYTEST_JOBS) $(ARGS)

.PHONY: wheel
wheel: setup ## build dist/headrace-*.whl with compiled modules: a minute, and a C compiler
	$(BIN)/python -m scripts.compiled

.PHONY: test-compiled
test-compiled: wheel ## the tests of the request path, on compiled modules: two minutes, and a C compiler
	PYTHONPATH=$(CURDIR)/build/site $(BIN)/pytest -m "not long" $(PYTEST_JOBS) $(if $(ARGS),$(ARGS),$(COMPILED_TESTS))

.PHONY: images
images: ## build the container images; NAMES="replica gateway" only those, BASE=debian without a registry
	PYTHON=$(PYTHON) scripts/images.sh $(NAMES)

.PHONY: test-images
test-images: setup ## build the images and run them: twenty minutes, Docker, and root where no daemon runs
	$(BIN)/pytest -s tests/images -m "not long" $(ARGS)

.PHONY: test-images-all
test-images-all: setup ## as test-images, and the image for GPUs, which downloads 2 GB and takes 25 GB of disk for a while
	$(BIN)/pytest -s tests/images $(ARGS)

.PHONY: chaos
chaos: setup ## kill streams and jobs many times at full size: twenty minutes and more, not in `make test`
	CHAOS_JOB_KILLS=20 CHAOS_CALL_S=31 $(BIN)/pytest -s tests/chaos tests/e2e/jobs/test_kills.py tests/e2e/streaming/test_failures.py -k "at_random or longer_than" $(ARGS)

.PHONY: bench
bench: setup .venv/.ready-bench ## measure speed; prints a table and writes bench/results/
	$(BIN)/python -m bench $(ARGS)

.PHONY: bench-peers
bench-peers: setup .venv/.ready-bench ## measure beside other model servers, an hour, 4 GB; PEERS="mosec fastapi" only those
	$(BIN)/python -m bench.peers $(if $(PEERS),--peers $(PEERS)) $(ARGS)

.PHONY: feast
feast: .venv-feast/.ready ## install Feast in an environment of its own, to be compared with

.venv-feast/.ready: scripts/setup_feast.sh | setup
	scripts/setup_feast.sh
	@touch $@

.PHONY: test-feast
test-feast: setup feast ## the tests of the adapter, also on what Feast itself writes now
	$(BIN)/pytest tests/contract/test_feast.py tests/unit/features/feast $(ARGS)

.PHONY: feast-fixtures
feast-fixtures: setup feast ## let Feast write anew what the tests of the adapter read
	$(BIN)/python -m tests.contract.feast_repositories

.PHONY: mutants
mutants: setup .venv/.ready-mutants ## change the engine and the rollouts on purpose: do tests notice? half an hour
	HYPOTHESIS_PROFILE=dev $(BIN)/python scripts/mutants.py $(ARGS)

##@ Check
.PHONY: check
check: setup ## format, lint, types, layers, locks, docs: what CI and the pre-commit hook run
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_locks.py
	$(BIN)/mkdocs build --strict --quiet

.PHONY: fmt
fmt: setup ## format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: lint
lint: setup ## ruff
	$(BIN)/ruff check .

.PHONY: type
type: setup ## mypy, strict
	$(BIN)/mypy

.PHONY: layers
layers: setup ## imports point down
	$(BIN)/lint-imports

##@ Docs
.PHONY: docs
docs: setup ## build the documentation into site/
	$(BIN)/mkdocs build --strict

.PHONY: docs-serve
docs-serve: setup ## the documentation on http://127.0.0.1:8090, rebuilt on change
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8090

.PHONY: reference
reference: setup ## write what is generated from code: reference pages, the chart's rules and dashboards
	$(BIN)/python -m scripts.gen_reference
	$(BIN)/python -m scripts.gen_chart

##@ Maintain
.PHONY: lock
lock: setup ## resolve pyproject.toml anew into requirements/*.txt; ARGS=--upgrade for newer versions
	scripts/lock.sh $(ARGS)

.PHONY: pin-images
pin-images: ## renew the digests of base images in deploy/images/Dockerfile; needs Docker and a registry
	scripts/pin_images.sh

.PHONY: proto
proto: setup .venv/.ready-build ## regenerate the protobuf descriptors
	$(BIN)/python scripts/generate_proto.py

.PHONY: clean
clean: ## remove .venv and its like, caches and built documentation; models in .headrace stay
	rm -rf .venv .venv-all .venv-peers .venv-kube .venv-ray site dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache \
		.ruff_cache .import_linter_cache .headrace-demo
	find src tests scripts examples bench -name __pycache__ -type d -prune -exec rm -rf {} + \
		2>/dev/null || true

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
