# Everything the project does, one line each; CI calls the same targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check bench docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/core ## train, test and report two models on phantoms that the package makes itself
	$(BIN)/mmrun 0.0 --all
	@echo "open  $(CURDIR)/work_dirs/0.0.Phantom/report.html"

test: $(VENV)/test ## all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/test ## style, import contracts, examples in the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/check_docs.py
	$(BIN)/python tools/make_reference.py --check

bench: $(VENV)/test ## measurements side by side (but for bench_hippocampus.py, which trains for half an hour)
	for script in $(filter-out tools/bench_hippocampus.py,$(wildcard tools/bench_*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(VENV)/core ## reference pages from the registries and the table of commands
	$(BIN)/python tools/make_reference.py

clean:
	rm -rf $(VENV) work_dirs build *.egg-info

$(VENV)/pip:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/core: $(VENV)/pip setup.cfg constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/test: $(VENV)/core
	$(PIP) -e '.[test,check]'
	@touch $@
