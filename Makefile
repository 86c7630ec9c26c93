# Two commands on a fresh machine: `make demo` and `make test`. Everything else is for people who work on Fulgurite.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHEEL_VENV := .venv-wheel
ARGS ?=

.PHONY: demo test test-sources test-wheel check lint bench proto clean help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.installed-demo  ## install into .venv, start everything, open the viewer; ARGS="--headless --seconds 15 --out demo.mp4"
	@$(BIN)/fulgurite demo $(ARGS)

test: test-sources test-wheel  ## install, run every test that this machine can run, and those that packaging can break on the wheel

# Most tests keep one core busy or wait for programs that they start: so many files are tested at a time, `JOBS=0` for one
# after the other in one process. `-ra` (pyproject.toml) names every test that this machine cannot run, with what it lacks.
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
test-sources: $(VENV)/.installed-dev
	$(PYTEST) $(ARGS)

# What packaging can break: what is installed, entry points, commands, and every file that is read as data (the page,
# shaders, fonts, the bundled model). The arithmetic is the same in both, and so is how people use what is there.
WHEEL_TESTS := tests/architecture tests/cli tests/deploy \
  $(addprefix tests/system/test_,demo.py observe.py run.py) \
  $(addprefix tests/viewer/test_,browser.py desktop.py film.py notebook.py panel.py remote.py view_command.py website.py) \
  --ignore=tests/cli/test_bundled_model.py

# The wheel has an environment of its own: its dependencies, and the programs that they bring, are those of .venv, its code
# is what was built.
# tests/architecture/test_installed.py fails there if the code comes from the sources.
test-wheel: $(WHEEL_VENV)/.installed
	OMP_NUM_THREADS=1 $(WHEEL_VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile $(WHEEL_TESTS) $(ARGS)

.PHONY: $(WHEEL_VENV)/.installed
$(WHEEL_VENV)/.installed: $(VENV)/.installed-dev
	@rm -rf $(WHEEL_VENV) dist
	@echo "building the wheel, installing it into $(WHEEL_VENV)"
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist . > /dev/null
	@$(BIN)/python -m venv --without-pip $(WHEEL_VENV)
	@$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > $$($(WHEEL_VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/dependencies.pth
	@for name in transformers opentelemetry-instrument; do \
	  sed '1s|.*|#!$(CURDIR)/$(WHEEL_VENV)/bin/python|' $(BIN)/$$name > $(WHEEL_VENV)/bin/$$name && chmod +x $(WHEEL_VENV)/bin/$$name; done
	@$(BIN)/python -m pip --python $(WHEEL_VENV)/bin/python install --quiet --no-deps --no-index --force-reinstall dist/*.whl

.PHONY: test-engines
test-engines: | $(BIN)/python  ## the real serving engines, in an environment of their own under build/engines
	@PYTHON=$(BIN)/python scripts/engines-environment.sh; status=$$?; \
	  if [ $$status -eq 3 ]; then echo "test-engines: skipped, see the line above"; exit 0; fi; \
	  [ $$status -eq 0 ] || exit $$status; scripts/sglang-environment.sh || true; \
	  build/engines/bin/python -m pytest tests/engines $(ARGS)

check: $(VENV)/.installed-dev lint  ## ruff, mypy, import-linter and pytest
	$(PYTEST) $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev  ## the benchmarks; results go to benchmarks/results
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: chaos fuzz soak
chaos: $(VENV)/.installed-dev  ## hundreds of seeded runs with faults: docs/faults.md; ARGS="--runs 40", ARGS="--seed 17"
	$(BIN)/python -m tests.chaos --runs 240 $(ARGS)

fuzz: $(VENV)/.installed-dev  ## hostile messages at every parser, guided by coverage (needs atheris)
	@$(BIN)/python -c "import atheris" 2>/dev/null || $(BIN)/python -m pip install --quiet atheris
	$(BIN)/python -m tests.fuzz $(ARGS)

soak: $(VENV)/.installed-dev  ## half an hour of load with random faults: memory, threads, files; ARGS="--minutes 5", ARGS=--calm
	$(BIN)/python -m benchmarks.soak $(ARGS)

.PHONY: bench-pipeline
bench-pipeline: $(VENV)/.installed-dev  ## from agent to viewer: every row of its targets, beside OpenTelemetry and Rerun
	$(BIN)/python -m benchmarks pipeline $(ARGS)

proto:  ## generate the wire code, with the oldest toolchain that we serve
	$(PYTHON) -m venv build/protoc
	build/protoc/bin/pip install --quiet "grpcio-tools==1.62.3" "mypy-protobuf==3.6.0" "setuptools<80"
	cd proto && PATH=$(CURDIR)/build/protoc/bin:$$PATH python -m grpc_tools.protoc -I. \
	  --python_out=. --mypy_out=. --grpc_python_out=. --mypy_grpc_out=. fulgurite/v1/*.proto
	rm -f proto/fulgurite/v1/frame_pb2_grpc.py*

clean:
	rm -rf $(VENV) $(WHEEL_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
	  || { echo "Fulgurite needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	@scripts/system-packages.sh demo
	@echo "installing Fulgurite and what its demo needs into $(VENV) (some minutes the first time)"
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-demo pyproject.toml constraints.txt
	@scripts/system-packages.sh test
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
