# make demo    install into .venv (no torch) and run the main job on the embedded chats
# make test    install what the tests need (torch 2.13.0, CPU) and run them
# Needs python3 >= 3.11 with venv and headers, a C++20 compiler, make.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CORE   := $(wildcard csrc/*.cpp csrc/*.h) setup.py pyproject.toml
PIP    := $(BIN)/python -m pip install -q --disable-pip-version-check
SANITIZED := tests/properties tests/test_core_stub.py tests/test_core_boundary.py tests/test_core_facts.py tests/test_pack.py

.PHONY: demo test lint types sanitize fuzz faults hostile bench fmt check clean-build

demo: $(VENV)/core
	$(BIN)/maskpipe demo

test: $(VENV)/tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h

types: $(VENV)/lint
	$(BIN)/mypy

# The core's tests under AddressSanitizer and UBSan; -s, because pytest would swallow the report.
sanitize: $(VENV)/tests
	MASKPIPE_SANITIZE=1 $(BIN)/python setup.py -q build --build-base build/sanitize-tmp --build-lib build/sanitize
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m pytest -q -s -o pythonpath=build/sanitize $(SANITIZED)

# The long campaigns; a short selection of each is in `make test`. docs/RELIABILITY.md says what they do.
FUZZ := nice $(BIN)/python -P -m tests.attacks.fuzz

fuzz: $(VENV)/tests
	MASKPIPE_SANITIZE=1 $(BIN)/python setup.py -q build --build-base build/sanitize-tmp --build-lib build/sanitize
	export LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 ARROW_DEFAULT_MEMORY_POOL=system \
	PYTHONPATH=build/sanitize:. TOKENIZERS_PARALLELISM=false; \
	$(FUZZ) lines 50000 && $(FUZZ) shards 100000 && $(FUZZ) loads 30000 && $(FUZZ) manifests 100000

faults: $(VENV)/tests
	nice $(BIN)/python -m tests.faults.campaign
	MASKPIPE_LONG=1 $(BIN)/python -m pytest -q -s tests/faults

hostile: $(VENV)/tests
	$(BIN)/python -m tests.attacks.hostile

bench: $(VENV)/tests
	$(BIN)/python benchmarks/bench_pack.py

fmt: $(VENV)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.cpp csrc/*.h

check: lint types test

$(VENV)/bin/python:
	@echo "making $(VENV) and installing into it; this takes a minute or two"
	$(PYTHON) -m venv $(VENV)

# A changed source or header reinstalls, so that no stale binary is ever tested.
$(VENV)/core: $(VENV)/bin/python $(CORE)
	$(PIP) -e .
	touch $@

$(VENV)/tests: $(VENV)/core
	@echo "installing what the tests need, torch among it; this takes some minutes"
	$(PIP) torch==2.13.0
	$(PIP) -e '.[test]' setuptools 'pybind11>=3.1,<4'
	touch $@

$(VENV)/lint: $(VENV)/core
	$(PIP) 'ruff==0.17.6' 'mypy==2.4.1' types-PyYAML 'clang-format==23.1.5'
	touch $@
