# Everything runs from .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUNS ?= runs
TESTS ?= tests
# PyTorch keeps CPU-only builds in an index of its own, named in its install guide. Where no NVIDIA
# GPU is present and pip's own sources offer no CPU build, set this to save gigabytes of CUDA.
TORCH_CPU_INDEX ?=
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | head -n 1)
TORCH_INDEX := $(if $(GPU),,$(if $(TORCH_CPU_INDEX),--extra-index-url $(TORCH_CPU_INDEX)))
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: install demo test check format bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	@echo "installing torch ($(if $(GPU),for $(GPU),no NVIDIA GPU found))"
	$(PIP) install --constraint constraints.txt $(TORCH_INDEX) torch
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/llm-pretrain train experiment=demo run.root=$(RUNS)
	$(BIN)/llm-pretrain branch apply parent=$(RUNS)/demo
	$(BIN)/llm-pretrain train experiment=demo_cosine run.root=$(RUNS)
	$(BIN)/llm-pretrain tree $(RUNS)
	$(BIN)/llm-pretrain report $(RUNS)

test: install
	sh tests/system-packages.sh
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(TESTS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m benchmarks.collect

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
