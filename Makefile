# make demo   fine-tune a real chat model on this machine and see that it got better
# make test   all tests that need no GPU (make test-fast: the quick ones, in two minutes)
# make check  lint, format and types
# make dist   wheel and source distribution, into dist/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
MODEL := smollm2-135m
RUN := runs/demo
# Groups of tests in the order of tests/conftest.py, the longest first.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

.PHONY: demo test test-fast test-light check format dist clean
.DELETE_ON_ERROR:

# One line per command, printed as a user would type it.
llmft = @printf '\n\033[1m$$ llmft %s\033[0m\n' '$(1)'; $(BIN)/llmft $(1)

demo: $(VENV)/installed
	@rm -rf $(RUN)
	$(call llmft,prepare sample_data/chat.jsonl --run $(RUN) --model $(MODEL))
	$(call llmft,train $(RUN))
	$(call llmft,eval $(RUN) --prompts sample_data/prompts.jsonl --max-new-tokens 48 --eval-batch-size 16)
	$(call llmft,merge $(RUN))
	$(call llmft,chat $(RUN) --compare --max-new-tokens 48 --prompt "My station blinks amber. What is it telling me?")

test: $(VENV)/installed-test
	$(PYTEST)

# For between edits: what is neither slow nor a whole command.
test-fast: $(VENV)/installed-test
	$(PYTEST) -m "unit and not slow"

# Everything that needs no torch, on another Python: make test-light PYTHON=python3.13
LIGHT := .venv-light
LIGHT_PACKAGES := charset-normalizer datasets GPUtil huggingface_hub Jinja2 numpy psutil py3langid pyarrow PyYAML rensa requests rich rouge-score sacrebleu safetensors scipy setuptools \
	transformers typer hypothesis pytest
test-light:
	rm -rf $(LIGHT)
	$(PYTHON) -m venv $(LIGHT)
	$(LIGHT)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(LIGHT_PACKAGES)
	$(LIGHT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(LIGHT)/bin/llmft --help
	$(LIGHT)/bin/llmft gpu-check
	$(LIGHT)/bin/python -m pytest tests/unit

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The build has an environment of its own; of ours it needs nothing but its front end.
dist: $(VENV)/bin/python
	$(PIP) build
	rm -rf dist
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(f"llmft needs Python 3.11 or later, {sys.executable} is {sys.version.split()[0]}" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-test
	$(PIP) --editable '.[test,dev]'
	@touch $@
