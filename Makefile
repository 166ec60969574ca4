# Pointsman: `make run` to see it work, `make test` to check it. Both prepare everything themselves.
PYTHON ?= python3
VENV := .venv
PROTOS_VENV := .venv-protos
BIN := $(VENV)/bin
PROTO_FILES := $(wildcard protos/pointsman/v1/*.proto)

.DEFAULT_GOAL := help
.PHONY: help setup run test fuzz simulate mutants bench chaos lint protos clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo
	@echo 'Variables:'
	@echo '  DATA=DIR    make run: keep the data in DIR; other commands find the router by --dev DIR or POINTSMAN_DEV=DIR'
	@echo '  ARGS="..."  more arguments: of pointsman dev (make run ARGS="--port 0"), of pytest (make test ARGS="-k lanes")'
	@echo '              or of the benchmark (make bench ARGS="--quick --cases point_read"; ARGS=--help lists them)'
	@echo '  CASES=a,b   make chaos: only those cases; HOURS=8: random faults for so long instead; ARGS="--large", "--quick", "--list"'
	@echo '  PYTHON=...  the Python that the virtual environments are made with (3.11 or newer)'

setup: $(VENV)/.ready $(PROTOS_VENV)/.ready ## make both virtual environments (quiet when nothing changed)
	@:

$(VENV)/.ready: pyproject.toml clients/python/pyproject.toml deploy/constraints.txt
	@echo "setup: installing into $(VENV) (about half a minute, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Pointsman needs Python 3.11 or newer: make setup PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e clients/python -e '.[dev]'
	@touch $@

$(PROTOS_VENV)/.ready: deploy/constraints-protos.txt
	@echo "setup: installing the stub generator into $(PROTOS_VENV)"
	@$(PYTHON) -m venv $(PROTOS_VENV)
	@$(PROTOS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c deploy/constraints-protos.txt \
		grpcio grpcio-tools mypy-protobuf protobuf setuptools types-protobuf
	@touch $@

run: setup ## start PostgreSQL (one primary, two replicas), the router and two demo tenants; DATA=DIR keeps the data
	@$(BIN)/pointsman dev $(if $(DATA),--data $(DATA)) $(ARGS)

# Two at a time, in two parts: beside tests that compute all the time, what times failovers, kills and workers on real
# servers would time those; among themselves these mostly wait. Modules in the order of tests/conftest.py, see there.
TIMED := tests/chaos tests/failover tests/workers
# Some machines forbid to keep what was compiled; the tests start a hundred routers, of 200 modules each.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -rsR --rerun-show-tracebacks --durations=8 \
	-n 2 --dist loadscope --no-loadscope-reorder
NONE_IS_FINE := || { status=$$?; [ $$status = 5 ] || exit $$status; } # pytest's 5: ARGS chose no test of this part

test: setup ## run all tests, in two parts: what computes, then what times real servers
	@$(PYTEST) $(addprefix --ignore=,$(TIMED)) tests $(ARGS) $(NONE_IS_FINE)
	@$(PYTEST) $(TIMED) $(ARGS) $(NONE_IS_FINE)

simulate: setup ## failover on virtual time, from seeds: SEEDS=5000 JOBS=2 [FIRST=1] [JSON=file], or SEED=7 VERBOSE=1
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED) $(if $(VERBOSE),--verbose),--seeds $(or $(SEEDS),200) \
		--first $(or $(FIRST),1) --jobs $(or $(JOBS),1) $(if $(JSON),--json $(JSON)))

fuzz: setup ## a router is sent requests, and bytes, that nobody would write: N=100000 [SEED=7]
	@FUZZ_REQUESTS=$(or $(N),100000) FUZZ_SEED=$(or $(SEED),0) $(BIN)/python -m pytest -q -s tests/hardening/test_fuzz.py

mutants: setup ## plant known kinds of bugs, one after the other, and see which test notices: NAMES="..." [JSON=file]
	@$(BIN)/python -m tests.mutants $(NAMES) $(if $(JSON),--json $(JSON))

$(VENV)/.bench-ready: $(VENV)/.ready
	@echo "setup: installing the benchmark's peers into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e '.[bench]'
	@touch $@

bench: setup $(VENV)/.bench-ready ## the router beside PgBouncer, psycopg, asyncpg and pgbench on this machine (about 25 minutes)
	@$(BIN)/python -m tests.benchmarks $(ARGS)

chaos: setup ## real servers and a router under faults, the survivors checked; CASES=a,b  HOURS=8  ARGS="--large --seed 7"
	@$(BIN)/python -m tests.chaos $(if $(CASES),--cases $(CASES)) $(if $(HOURS),--hours $(HOURS)) $(ARGS)

lint: setup ## ruff, mypy strict, buf
	@$(BIN)/ruff check router clients tests
	@$(BIN)/mypy
	@$(BIN)/buf lint protos

protos: $(PROTOS_VENV)/.ready ## generate the stubs in clients/python/pointsman/v1 again
	@PATH="$(abspath $(PROTOS_VENV)/bin):$$PATH" $(PROTOS_VENV)/bin/python -m grpc_tools.protoc -I protos \
		--python_out=$(or $(OUT),clients/python) --grpc_python_out=$(or $(OUT),clients/python) \
		--mypy_out=$(or $(OUT),clients/python) --mypy_grpc_out=$(or $(OUT),clients/python) \
		$(PROTO_FILES)

clean: ## remove both virtual environments
	@rm -rf $(VENV) $(PROTOS_VENV)
