# Commands for people and CI. Anything with a condition is a script in scripts/.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready-dev
# A development environment can run the demo too.
DEMO_READY := $(or $(wildcard $(READY)),.venv/.ready-demo)
SUITE ?=
ENV ?=
ARGS ?=
NAMES ?=

# An editable install is never byte-compiled; where PYTHONDONTWRITEBYTECODE is set, every process
# start would parse the sources again.
COMPILE := $(BIN)/python -m compileall -q -j 1 src

# mkdocs-material advertises its successor on every build.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

##@ Run
.PHONY: demo
demo: $(DEMO_READY) ## start the system on a small model and send requests; ONCE=1 stops after the checks
	@$(COMPILE)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python scripts/demo.py $(if $(ONCE),--once) $(ARGS)

.PHONY: setup
setup: $(READY) ## create .venv; ENV=frameworks, ray, kube, clients or feast creates another environment
	@$(if $(ENV),PYTHON=$(PYTHON) scripts/setup.sh $(ENV))
	@$(COMPILE)

.venv/.ready-%: requirements/%.txt requirements/uv.txt pyproject.toml scripts/setup.sh
	PYTHON=$(PYTHON) scripts/setup.sh $*
	@touch $@

##@ Test
.PHONY: test
test: setup ## run a test suite: SUITE=fast (default), unit, long, all, ... (CONTRIBUTING.md); ARGS="-k gateway"
	scripts/test.sh $(or $(SUITE),fast) $(ARGS)

.PHONY: kube-server
kube-server: setup ## start a Kubernetes API server, built by Go at the first time; ARGS=--build only builds
	$(BIN)/python -m scripts.kube_server $(ARGS)

.PHONY: brokers
brokers: setup ## start Apache Kafka and Pulsar, from Maven Central; ARGS="--kafka 3 --secure --pulsar", ARGS=--build
	$(BIN)/python -m scripts.brokers $(ARGS)

.PHONY: bench
bench: setup .venv/.ready-bench ## measure speed; SUITE=peers compares with other model servers; ARGS
	$(BIN)/python -m bench$(if $(SUITE),.$(SUITE)) $(ARGS)

.PHONY: check
check: setup ## check format, lint, types, layers, locks and documentation, as CI does
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_locks.py
	$(BIN)/python -m mkdocs build --strict

.PHONY: fmt
fmt: setup ## format the code and apply automatic lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

##@ Build
.PHONY: docs
docs: setup ## build the documentation into site/; ARGS="serve -a 127.0.0.1:8090" serves it
	$(BIN)/python -m mkdocs $(or $(ARGS),build --strict)

.PHONY: wheel
wheel: setup ## build dist/headrace-*.whl with compiled modules; needs a C compiler
	$(BIN)/python -m scripts.compiled

.PHONY: images
images: ## build container images; NAMES="replica gateway"; NAMES=--pin renews the digests of base images
	PYTHON=$(PYTHON) scripts/images.sh $(NAMES)

.PHONY: push
push: ## build images for x86-64 and ARM and push them and the chart: PREFIX=registry.example/ml; NAMES
	PYTHON=$(PYTHON) scripts/images.sh --push $(NAMES)

.PHONY: generate
generate: setup .venv/.ready-build ## write generated files: protobuf descriptors, the chart's rules and dashboards
	$(BIN)/python -m scripts.generate

.PHONY: lock
lock: setup ## resolve pyproject.toml into requirements/*.txt; ARGS=--upgrade takes newer versions
	scripts/lock.sh $(ARGS)

.PHONY: clean
clean: ## remove environments, caches and built files; models in .headrace stay
	rm -rf .venv .venv-all .venv-clients .venv-peers .venv-kube .venv-ray site dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache \
		.ruff_cache .import_linter_cache .headrace-demo
	find src tests scripts examples bench -name __pycache__ -type d -prune -exec rm -rf {} + \
		2>/dev/null || true

.PHONY: help
help:
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
