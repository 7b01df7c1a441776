# The two commands of the README: `make demo` and `make test`. Everything they need, they install.
PYTHON ?= python3
VENV   ?= .venv
# Test processes side by side, each with a broker of its own. Most of a fault test is waiting: more than cores pays.
WORKERS ?= 3
# A file's tests share what they start. The files that take longest begin, so that none is left over at the end.
LONGEST_FIRST := --dist loadfile --no-loadscope-reorder
BIN    := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev

AUDIT := $(VENV)-audit
AUDIT_STAMP := $(AUDIT)/.installed

.PHONY: help demo run test check lint format types unit contract integration model fuzz hostile chaos chaos-bugs guard audit install install-dev lock image clean

help:  ## What can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# pip is told each hash, so a changed file at the index is refused.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): requirements.lock pyproject.toml | $(BIN)/python
	@echo "Installing Ouzel and TensorFlow into $(VENV) (about 300 MB, once)"
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV_STAMP): requirements-dev.lock $(RUN_STAMP)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

install: $(RUN_STAMP)  ## Ouzel, TensorFlow and the default model's weights in .venv
install-dev: $(DEV_STAMP)  ## ... and what the tests need

demo: $(RUN_STAMP)  ## Broker, model, photographs, labels, a page: everything at once
	$(BIN)/ouzel demo

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV_STAMP)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV_STAMP)
	$(BIN)/mypy

unit: $(DEV_STAMP)
	$(BIN)/pytest -q tests/unit

contract: $(DEV_STAMP)
	$(BIN)/pytest -q tests/contract

check: lint types  ## Lint, types, unit, contract and model tests, without a broker: some four minutes on two cores
	$(BIN)/pytest -q -n $(WORKERS) -m "not kafka" tests/unit tests/contract tests/model/test_protocols.py

integration: $(DEV_STAMP)
	$(BIN)/pytest -q -n $(WORKERS) $(LONGEST_FIRST) tests/chaos tests/integration

model: $(DEV_STAMP)  ## The protocol's model, state by state, at larger sizes than the tests': some minutes
	$(BIN)/python -m tests.model

# Goes on where an earlier count stopped; the tally and the culprits are in build/fuzz.
COUNT ?= 1000000
fuzz: $(DEV_STAMP)  ## Damaged messages through parser and decoder, COUNT of them in all (1,000,000)
	$(BIN)/python -m tests.fuzz.campaign --count $(COUNT)

# Prints what each kind became, the time and the replica's peak memory.
GOOD ?= 10000
BAD ?= 10000
SEED ?= 1
hostile: $(DEV_STAMP)  ## BAD hostile messages among GOOD ones, through a real broker and the service (10,000 each)
	$(BIN)/python -m tests.fuzz.pipeline --good $(GOOD) --bad $(BAD) --seed $(SEED)

# Goes on where an earlier run stopped; tallies, plans and the histories of broken promises are in build/chaos.
FAULTS ?= 1000
GUARANTEE ?= at_least_once
REPLICAS ?= 1-6
PARTITIONS ?= 1-12
PLATFORM ?= auto
chaos: $(DEV_STAMP)  ## FAULTS random faults on three brokers (1,000); GUARANTEE=, SEED=, REPLICAS=, PARTITIONS=, PLATFORM=
	$(BIN)/python -m tests.chaos --guarantee $(GUARANTEE) --seed $(SEED) --faults $(FAULTS) \
	  --replicas $(REPLICAS) --partitions $(PARTITIONS) --platform $(PLATFORM)

chaos-bugs: $(DEV_STAMP)  ## Every seeded bug, by the schedule that shows it, and that schedule without the bug
	$(BIN)/python -m tests.chaos bugs

test: lint types  ## Everything, on a real Apache Kafka fetched by Maven
	@# Hundreds of child processes: each would compile Ouzel anew where PYTHONDONTWRITEBYTECODE is set.
	$(BIN)/python -m compileall -q consumer tests
	$(BIN)/pytest -q -n $(WORKERS) $(LONGEST_FIRST) tests/chaos tests/integration tests/contract tests/fuzz tests/model tests/unit

guard: $(DEV_STAMP)  ## Ratios of one short `ouzel bench` against wide bounds: has the stream become slow?
	$(BIN)/python -m benchmarks.guard

$(AUDIT_STAMP): requirements-audit.lock
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --require-hashes -r requirements-audit.lock
	@touch $@

audit: $(DEV_STAMP) $(AUDIT_STAMP)  ## Security rules, vulnerabilities, licences, SBOM; offline: ADVISORIES=DIR
	$(BIN)/python -m scripts.audit --tools $(AUDIT)/bin $(if $(ADVISORIES),--advisories $(ADVISORIES))

# The largest first: what it settles holds for the others, so that what is tested is what is installed.
COMPILE := uv pip compile --universal --generate-hashes --no-emit-index-url --no-annotate --quiet
lock:  ## Resolve the lock files anew (needs uv)
	$(COMPILE) pyproject.toml --extra tensorflow --extra openvino --extra onnxruntime --extra litert --extra optimize \
	  --extra wandb --extra s3 --extra bench --extra simd --extra inventory --extra registry --extra demo --group build --group dev \
	  --output-file requirements-dev.lock
	$(COMPILE) pyproject.toml --extra tensorflow --extra openvino --extra wandb --extra s3 --extra bench --extra simd --extra demo --group build \
	  --constraints requirements-dev.lock --output-file requirements.lock
	$(COMPILE) pyproject.toml --extra openvino --extra wandb --extra s3 --extra bench --extra simd --group build \
	  --constraints requirements-dev.lock --output-file requirements-openvino.lock
	$(COMPILE) pyproject.toml --extra gpu --extra wandb --extra s3 --extra bench --extra simd --extra demo --group build \
	  --constraints requirements.lock --output-file requirements-gpu.lock
	$(COMPILE) --python-version 3.11 --group pyproject.toml:audit --output-file requirements-audit.lock

image:  ## Build the container image and try it (docker, else buildah and debootstrap as root)
	scripts/build_image.sh

clean:  ## Remove what was built here
	rm -rf $(VENV) $(AUDIT) .kafka .pytest_cache .mypy_cache .ruff_cache build dist
