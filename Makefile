# make train: a model trained on real text, from nothing. make test: the tests. Thin: what counts is printed.

# The first Python of a supported line; name another with make PYTHON=...
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11 python; do \
  $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
ifeq ($(strip $(PYTHON)),)
  $(error llamax needs Python 3.11, 3.12 or 3.13: install one, then make PYTHON=/path/to/python3.12)
endif
LINE := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
VENV ?= .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints/$(LINE).txt
LLAMAX := $(VENV)/bin/llamax
CONFIG := configs/quickstart.py
DATA := data/stdlib
WORKDIR := runs/quickstart
NEEDS := setup.py constraints/$(LINE).txt

.PHONY: train test faults soak check lint types imports benchmark clean

train: $(VENV)/llamax.stamp
	$(LLAMAX) prepare stdlib --out=$(DATA) --vocab_size=2048
	$(LLAMAX) train --config=$(CONFIG) --workdir=$(WORKDIR)
	$(LLAMAX) generate --workdir=$(WORKDIR) \
	  --prompt='def __init__(self, ' --prompt='class ' --prompt='The ' --prompt='    return '
	@echo
	@echo 'What next:'
	@echo '  go on, or see that it is complete   make train'
	@echo '  a longer run                        $(LLAMAX) train --config=configs/quickstart.py:long --workdir=runs/long'
	@echo '  your own text                       $(LLAMAX) prepare FOLDER --out=data/mine   (docs/data.md)'
	@echo "  a GPU, a TPU                        $(VENV)/bin/pip install -c constraints/$(LINE).txt -e '.[cuda]' (or tpu)"
	@echo '  a pod, before paying for it         $(LLAMAX) train --config=configs/llama3_8b.py --dry_run --topology=v5e:16x16'

test: $(VENV)/test.stamp
	$(VENV)/bin/python -m pytest -n 2 $(TESTS)

# What make test tries a few times of, tried often: some 20 minutes; then for hours (docs/faults.md).
faults: $(VENV)/test.stamp
	$(VENV)/bin/python -m pytest -n 2 --scale=ci $(or $(TESTS),tests/faults)

soak: $(VENV)/test.stamp
	$(VENV)/bin/python -m pytest -n 2 --scale=soak $(or $(TESTS),tests/faults)

check: lint imports types

lint: $(VENV)/lint.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

imports: $(VENV)/lint.stamp
	$(VENV)/bin/lint-imports

types: $(VENV)/lint.stamp
	$(VENV)/bin/mypy

benchmark: $(VENV)/llamax.stamp
	$(VENV)/bin/python benchmarks/train_step.py

$(VENV)/llamax.stamp: $(NEEDS)
	@echo 'Installing llamax into $(VENV) with the versions of constraints/$(LINE).txt (once, some minutes) ...'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/test.stamp: $(VENV)/llamax.stamp
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/lint.stamp: $(VENV)/llamax.stamp
	$(PIP) --editable '.[lint]'
	@touch $@

$(VENV)/tpu.stamp: $(VENV)/llamax.stamp
	$(PIP) --editable '.[tpu]'
	@touch $@

# torch's CPU build is not to be had everywhere: without it the parity tests are skipped with that reason.
$(VENV)/parity.stamp: $(VENV)/llamax.stamp
	$(PIP) --editable '.[parity]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
