# Every target explains itself: `make help`. All of them work from a fresh clone; set-up runs when pyproject.toml or constraints.txt changed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
READY := .venv/.ready
KILLS := 1000
RELEASE := tests/chaos/test_power.py tests/e2e/test_replicas.py
PROTOS := $(sort $(wildcard protos/fedscale/proto/v1/*.proto))
CODE := fedscale server client simulations tests benchmarks

# Message and service code with its types, into folder $(1); the generators come from the environment only.
generate = $(BIN)/python -m grpc_tools.protoc -I protos \
	--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)

.PHONY: help setup demo test release-tests check fix docs bench proto

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name what; do printf '  make %-13s %s\n' "$$name" "$$what"; done

setup: $(READY) ## install everything into .venv (Python 3.11 or newer)

# The processor build of torch comes first, so that a package index which offers one is asked for it before anything else wants torch.
$(READY): pyproject.toml constraints.txt
	@python=; for name in python3.11 python3 python3.12 python3.13; do \
		if "$$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	[ -n "$$python" ] || { echo "make setup: no Python 3.11 or newer with its venv module found; on Debian: apt-get install python3-venv" >&2; exit 2; }; \
	[ -x $(BIN)/python ] || "$$python" -m venv .venv
	@echo 'installing into .venv; the first time takes a few minutes'
	$(BIN)/python -m pip install -qq --constraint constraints.txt torch
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[all]'
	@touch $@

demo: setup ## a coordinator and hospital nodes on this machine, trained on real medical data
	$(BIN)/fedscale demo

test: setup ## all tests; a part of them: make test ONLY=tests/fedscale
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ONLY)

release-tests: setup ## faults at full size, hours; the first part shorter: make release-tests KILLS=150
	@{ for words in "kill --kills $(KILLS)" "pause --faults 60" "clock --faults 60" "partition --faults 100" "disk --faults 100"; do \
		echo "fedscale chaos $$words --nodes 8 --json"; $(BIN)/fedscale chaos $$words --nodes 8 --json; \
	done; \
	echo "pytest --release $(RELEASE)"; $(BIN)/python -m pytest --release -q -s $(RELEASE); } | tee docs/release-tests.txt

check: setup ## formatting, lint, types, the law of the layers, freshness of generated code
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; $(call generate,"$$fresh"); \
	diff -r -x __init__.py -x __pycache__ "$$fresh/fedscale/proto/v1" fedscale/proto/v1 || { echo "make check: generated code is stale; run: make proto" >&2; exit 1; }

fix: setup ## format and mend what can be mended without thought
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

docs: setup ## the documentation as pages, in build/docs
	$(BIN)/python -m sphinx -q -W -b html docs build/docs
	@echo build/docs/index.html

bench: setup ## measure: throughput, memory, accuracy (benchmarks/)
	$(BIN)/python -m benchmarks

proto: setup ## regenerate fedscale/proto/v1 from protos/
	$(call generate,.)
