# Few verbs; `make` prints them. Needs python 3.11 or later, make and git; `make proto` also needs node.

.DEFAULT_GOAL := help
.PHONY: help setup demo cluster run test check lint fmt type cover bench crash chaos failover sim sim-cluster model languages gen gen-check proto lock build clean

VENV  := .venv
BIN   := $(VENV)/bin
PY    := $(BIN)/python
STAMP := $(VENV)/.stamp
GEN   := .tools/gen
BUF   := .tools/buf
ARGS  ?=
JOBS  ?= 2
SEEDS ?= 0-1999
TREES  = $(wildcard src tests bench)
PROTOS = $(shell cd proto && find tickwheel -name '*.proto' | sort)
STUBS := 'src/tickwheel/**/*_pb2*.py' 'src/tickwheel/**/*_pb2*.pyi'

# The first that runs, has venv and pip, and is neither too old nor too new for the locked wheels.
OLDEST := (3, 11)
NEWEST := (3, 14)
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not $(OLDEST) <= sys.version_info[:2] <= $(NEWEST))' \
	2>/dev/null && echo $$p && break; done)

help:      ## print the verbs
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## *(.*)/\1|\2/' \
	  | awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

setup: $(STAMP)      ## make .venv with everything, pinned by hash (quick the second time)

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.14 with venv and pip is needed, and none was found (PYTHON=...)."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup      ## a server, a target and some jobs, on this machine, in one minute
	$(PY) bench/demo.py $(ARGS)

cluster: setup      ## etcd and three nodes on this machine; a leader is killed, another takes over
	$(PY) bench/demo_cluster.py $(ARGS)

run: setup      ## one node on ./data; ctrl-c stops it
	@echo "gRPC on 127.0.0.1:7070, health and metrics on http://127.0.0.1:7080 (/readyz, /metrics), data in ./data; ctrl-c stops it."
	@echo "In another shell:  $(BIN)/tickwheel jobs create --url http://127.0.0.1:9000/ok --in 5s"
	@echo "                   $(BIN)/tickwheel executions list       ($(BIN)/tickwheel --help tells the rest)"
	$(BIN)/tickwheel serve --data-dir ./data $(ARGS)

test: setup      ## every test but the slow ones (ARGS='-k wheel' narrows, ARGS='-m slow' runs those, JOBS=0: one by one)
	$(PY) -m pytest -m 'not slow' -n $(JOBS) --dist loadfile $(ARGS)

check: lint type test      ## lint, type, test

lint: setup      ## style, format, and the floors that imports may not climb
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

fmt: setup      ## put the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: setup      ## mypy strict and pyright strict
	$(BIN)/mypy $(TREES)
	$(BIN)/pyright

# Without the tests that search at random: what they happen to meet is no proof that a test is there.
cover: setup      ## every branch of the pure rooms is taken by a unit test, or this fails
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q -m 'not slow and not hypothesis' -n $(JOBS) --dist loadfile tests/unit $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bench: setup      ## load and lateness (ARGS=--help)
	$(PY) -m bench $(ARGS)

crash: setup      ## kill -9 under load, again and again, and judge (ARGS=--help)
	$(PY) -m tests.e2e.crash $(ARGS)

chaos: setup      ## a cluster under load, one fault after the other, and a judge (ARGS=--help)
	$(PY) -m tests.e2e.chaos $(ARGS)

failover: setup      ## leaders are killed, again and again: how long until their jobs fire (ARGS=--help)
	$(PY) -m tests.e2e.failover $(ARGS)

sim: setup      ## the simulated node, many seeds (SEEDS=0-1999; goes on where the results file ends)
	PYTHONPATH=. nice -n 10 $(PY) -m tests.sim --seeds $(SEEDS) $(ARGS)

sim-cluster: setup      ## simulated clusters, many seeds (SEEDS=0-1999; goes on where the results file ends)
	PYTHONPATH=. nice -n 10 $(PY) -m tests.sim.cluster --seeds $(SEEDS) $(ARGS)

model: setup      ## the model of the cluster's protocol: random walks (ARGS=--help: broken rules, exhaustive)
	PYTHONPATH=. nice -n 10 $(PY) -m tests.model $(ARGS)

# Needs node and npm, go, or java, javac and mvn: what is missing is skipped, and says so.
languages: setup $(GEN)/.stamp      ## programs in Node.js, Go and Java while a node is killed (ARGS='-k java')
	$(PY) -m pytest -m slow -o faulthandler_timeout=690 tests/e2e/test_languages.py $(ARGS)

$(GEN)/.stamp: proto/requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.14 with venv and pip is needed (PYTHON=...)."; exit 1; }
	$(PYTHON) -m venv --clear $(GEN)
	$(GEN)/bin/python -m pip install --quiet --disable-pip-version-check -r proto/requirements.txt
	@touch $@

# google/protobuf comes with protoc; google/rpc and google/api lie in site-packages
PROTOC = PATH="$(CURDIR)/$(GEN)/bin:$$PATH" $(GEN)/bin/python -m grpc_tools.protoc -Iproto \
	-I"$$($(GEN)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

gen: $(GEN)/.stamp      ## the committed stubs of src/tickwheel, from proto/
	find src/tickwheel -type f -name '*_pb2*.py*' -delete
	$(PROTOC) --python_out=src --mypy_out=quiet:src $(PROTOS)
	$(PROTOC) --grpc_python_out=src --mypy_grpc_out=quiet:src $(filter %_service.proto,$(PROTOS))

gen-check: gen      ## fail if the committed stubs are not what proto/ says
	@test -z "$$(git status --porcelain -- $(STUBS))" || { git status --short -- $(STUBS); \
	  echo "The stubs and proto/ differ: commit what 'make gen' wrote."; exit 1; }

$(BUF)/.stamp: proto/package.json proto/package-lock.json
	mkdir -p $(BUF) && cp proto/package.json proto/package-lock.json $(BUF)/
	cd $(BUF) && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

proto: $(BUF)/.stamp $(GEN)/.stamp      ## lint proto/
	@rm -rf .tools/googleapis && mkdir -p .tools/googleapis/google
	@lib=$$($(GEN)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  for d in api rpc; do mkdir .tools/googleapis/google/$$d && cp $$lib/google/$$d/*.proto .tools/googleapis/google/$$d/; done
	$(BUF)/node_modules/.bin/buf lint

lock:      ## resolve requirements.lock anew, on the oldest Python (LOCK_ARGS=--upgrade)
	python3.11 -m venv .tools/lock
	.tools/lock/bin/python -m pip install --quiet --disable-pip-version-check pip-tools==7.6.2
	.tools/lock/bin/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
	  --extra server --extra dev --output-file requirements.lock $(LOCK_ARGS) pyproject.toml >/dev/null

build: setup      ## the sdist, and from it the wheel, into dist/
	rm -rf dist
	$(PY) -m build --no-isolation

clean:      ## remove what the tools made, and no data
	rm -rf dist build htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -not -path './.tools/*' -prune -exec rm -rf {} +
