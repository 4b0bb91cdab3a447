# Each target makes what it needs; `make help` lists them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
FAMILY ?= bloom
INSTALLED := $(VENV)/.installed
PROTOS := $(wildcard proto/neuroglot/v1/*.proto)
STUBS := client/neuroglot/v1

.DEFAULT_GOAL := help
.PHONY: help install demo test check format proto bench train constraints clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

install: $(INSTALLED)  ## make .venv with everything that development needs

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[analysis,cpu,exporter,dev]'
	@touch $@

demo: $(INSTALLED)  ## the main job on an embedded model: export, serve, analyse, report (FAMILY=llama for another)
	@$(BIN)/neuroglot demo --family $(FAMILY) --out build/demo

test: $(INSTALLED)  ## every test
	$(BIN)/pytest

check: $(INSTALLED)  ## style, types, the contract, and that the stubs are those of the contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	@rm -rf build/stubs && mkdir -p build/stubs
	@$(MAKE) --no-print-directory stubs-into OUT=build/stubs
	diff -r -x __init__.py -x __pycache__ build/stubs/neuroglot/v1 $(STUBS)

format: $(INSTALLED)  ## bring code and contract into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

proto: $(INSTALLED)  ## write the stubs anew from the contract
	@$(MAKE) --no-print-directory stubs-into OUT=client

.PHONY: stubs-into
stubs-into: export PATH := $(CURDIR)/$(BIN):$(PATH)
stubs-into:
	python -m grpc_tools.protoc --proto_path proto --python_out $(OUT) --mypy_out quiet:$(OUT) $(PROTOS)
	python -m grpc_tools.protoc --proto_path proto --grpc_python_out $(OUT) --mypy_grpc_out quiet:$(OUT) \
		proto/neuroglot/v1/service.proto

bench: $(INSTALLED)  ## the benchmarks, as JSON and a table under build/bench
	$(BIN)/python -m tests.benchmarks --out build/bench

train: $(INSTALLED)  ## train an embedded model anew, tens of minutes on two cores (FAMILY=llama for another)
	$(BIN)/python -m neuroglot_exporter.embedded.train $(FAMILY)

constraints:  ## pin what development installs, from a fresh environment
	rm -rf build/pins && $(PYTHON) -m venv build/pins
	build/pins/bin/pip install --quiet --constraint constraints.in '.[analysis,cpu,exporter,dev]'
	build/pins/bin/pip freeze --exclude neuroglot | sed 's/ @ .*//; s/+cpu//' > constraints.txt

clean:  ## remove what was built, but for .venv
	rm -rf build
