# asgkit: two commands from a bare machine, `make reproduce` and `make test`.
# Needs Linux, make and python3 (3.11 or newer) with pip; never root, never `activate`.
# Every path below is relative, so the folder may have a space in its name.

PY ?= python3
# Set on the command line only: a variable of the same name in your shell must not redirect what is deleted.
VENV := .venv
PROFILE := smoke
WORKERS := 2

TORCH := 2.13.0
CPU_INDEX := https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
LOGS := $(VENV)/logs
PIP := $(BIN)/python -m pip --disable-pip-version-check
ifneq ($(findstring /,$(VENV))$(filter-out .venv%,$(or $(VENV),empty)),)
$(error VENV must be the name of a folder here that starts with .venv)
endif
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9]*.ipynb)) $(sort $(wildcard notebooks/batch/*.ipynb))

# Quiet, offline, repeatable. A value already in your environment wins: `HF_HUB_OFFLINE=0 make lab` downloads.
export HF_HUB_OFFLINE ?= 1
export HF_DATASETS_OFFLINE ?= $(HF_HUB_OFFLINE)
export HF_HUB_DISABLE_TELEMETRY ?= 1
export HF_HUB_DISABLE_PROGRESS_BARS ?= 1
export TRANSFORMERS_VERBOSITY ?= error
export TOKENIZERS_PARALLELISM ?= false
export PYTHONHASHSEED ?= 0
# A python3 kernel that you registered for yourself must not shadow the one of this environment.
export JUPYTER_PREFER_ENV_PATH := 1
# Nor may a personal matplotlibrc or IPython start-up file change what notebooks print; and a home folder that
# cannot be written, as in many containers, is then no trouble either.
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/state/matplotlib
export IPYTHONDIR := $(CURDIR)/$(VENV)/state/ipython
export JUPYTER_RUNTIME_DIR := $(CURDIR)/$(VENV)/state/jupyter
# MPLBACKEND is set for the tests alone: in a kernel it would switch the pictures of the notebooks off.
# Two workers share two cores: one thread each is faster than two threads fighting, and sums in one order.
test test-fast notebooks: export OMP_NUM_THREADS := 1
test reproduce notebooks: export JUPYTER_NO_CONFIG := 1

# Said before anything starts, so that a first run does not look stuck while it installs.
FIRST_TIME := installing takes a few more the first time
ifneq ($(filter reproduce,$(MAKECMDGOALS)),)
$(info make reproduce: $(if $(filter smoke,$(PROFILE)),about 10 minutes on 2 cores; $(FIRST_TIME).,$\
  profile $(PROFILE) takes hours on 2 cores or minutes on a GPU.))
endif
ifneq ($(filter test,$(MAKECMDGOALS)),)
$(info make test: up to 15 minutes on 2 cores; $(FIRST_TIME).)
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup reproduce test test-fast lint notebooks lab clean FORCE

help: ## show this list (less than a second)
	@echo "asgkit: make <target>"
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do \
	  printf '  %-10s  %s\n' "$$name" "$$text"; done
	@echo "Options: PY=python3.12 (interpreter), PROFILE=smoke|small (reproduce), WORKERS=2 (tests), VENV=.venv"

setup: $(STAMP) ## create the environment in .venv (1-5 minutes the first time, then a second)
	@echo "Environment ready: $(VENV) ($$($(BIN)/python -c 'import sys, importlib.metadata as m; \
	print("Python", sys.version.split()[0] + ", torch", m.version("torch"))'))"

reproduce: $(STAMP) ## run PROFILE=smoke end to end into results/ and figures/ (about 10 minutes)
	@$(BIN)/asgkit reproduce --profile $(PROFILE)

# run_logged(name, command): the output is shown and kept, and the exit status survives the pipe in any sh.
run_logged = { $(2); echo $$? > $(LOGS)/$(1).rc; } 2>&1 | tee $(LOGS)/$(1).log

# A worker that died is replaced, but not for ever: the test that killed it is started again.
XDIST := -n $(WORKERS) --dist loadfile --max-worker-restart=2

PYTEST_NOTEBOOKS := $(BIN)/python -m pytest --nbval --nbval-current-env \
  --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout=300 --timeout=360 \
  $(XDIST) $(NOTEBOOKS)

test: $(STAMP) ## run every test, then re-run the notebooks and compare (up to 15 minutes)
	@mkdir -p $(LOGS)
	@$(call run_logged,tests,MPLBACKEND=agg $(BIN)/python -m pytest $(XDIST) tests)
	@$(call run_logged,notebooks,$(if $(NOTEBOOKS),$(PYTEST_NOTEBOOKS),echo "no notebooks to check yet"))
	@line() { tail -n 1 $(LOGS)/$$1.log | sed 's/^=* *//; s/ *=*$$//'; }; \
	echo "make test: tests: $$(line tests) | notebooks: $$(line notebooks)"; \
	exit $$(( $$(cat $(LOGS)/tests.rc) | $$(cat $(LOGS)/notebooks.rc) ))

test-fast: $(STAMP) ## run the quick tests only, without notebooks (about 2 minutes)
	@MPLBACKEND=agg $(BIN)/python -m pytest $(XDIST) -m "not slow" tests

lint: $(STAMP) ## check style with ruff and the arrows between the rooms (a few seconds)
	@$(BIN)/python -m ruff check asgkit tests notebooks
	@$(BIN)/lint-imports --no-cache --no-logo

# First pass: run, without timings. Second pass: drop what differs between machines or was left by papermill,
# so that a second `make notebooks` leaves nothing for git to see.
NBCONVERT := $(BIN)/python -m nbconvert --log-level=WARN --to notebook --inplace
NB_EXECUTE := $(NBCONVERT) --execute --ExecutePreprocessor.kernel_name=python3 \
  --ExecutePreprocessor.timeout=600 --ExecutePreprocessor.record_timing=False \
  --KernelManager.transport_encryption=auto $(NOTEBOOKS)
NB_CLEAN := $(NBCONVERT) --coalesce-streams --ClearMetadataPreprocessor.enabled=True \
  --ClearMetadataPreprocessor.preserve_cell_metadata_mask="{'tags'}" \
  --ClearMetadataPreprocessor.preserve_nb_metadata_mask="{'kernelspec', ('language_info', 'name')}" $(NOTEBOOKS)

notebooks: $(STAMP) ## re-run notebooks/*.ipynb in place, the same bytes each time (about 15 minutes)
	@echo "make notebooks: $(if $(NOTEBOOKS),up to 3 minutes for each of $(NOTEBOOKS),nothing to run yet)"
	@$(if $(NOTEBOOKS),$(NB_EXECUTE))
	@$(if $(NOTEBOOKS),$(NB_CLEAN))

lab: $(STAMP) ## open the notebooks in JupyterLab (until you press Ctrl-C)
	@$(BIN)/python -m jupyterlab notebooks

clean: ## delete the environment and caches; runs, results and figures stay (a second)
	@rm -rf .venv .venv-ci .boot .pytest_cache .ruff_cache .hypothesis build dist asgkit.egg-info
	@find asgkit tests notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# --- the environment -------------------------------------------------------------------------------------------

# The stamp holds the folder it was made in: a clone that was moved, or whose interpreter vanished, is set up
# again (offline, in seconds: everything is there already, only the links are renewed).
ifneq ("$(shell $(BIN)/python -c '' 2>/dev/null && cat $(STAMP) 2>/dev/null)","$(CURDIR)")
$(STAMP): FORCE
endif
FORCE:

define check_python
command -v "$(PY)" >/dev/null 2>&1 || { \
  echo "error: '$(PY)' was not found. Install Python 3.11 or newer, or name it: make setup PY=/path/to/python3" >&2; \
  exit 1; }; \
"$(PY)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "error: asgkit needs Python 3.11 or newer, and '$(PY)' is $$("$(PY)" --version 2>&1)." >&2; \
  echo "       Install a newer one beside it and name it: make setup PY=python3.12" >&2; exit 1; }
endef

# Some systems ship python3 without venv's own pip; virtualenv brings one, and --target needs no root.
define create_venv
rm -rf $(VENV); \
"$(PY)" -m venv $(VENV) >/dev/null 2>&1 || { \
  echo "  'python3 -m venv' does not work here; using virtualenv from .boot instead"; rm -rf $(VENV); \
  "$(PY)" -m pip install -q --disable-pip-version-check --upgrade --target .boot virtualenv && \
  PYTHONPATH=.boot "$(PY)" -m virtualenv -q $(VENV); } || { \
  echo "error: no virtual environment could be made. Install python3-venv, or pip for '$(PY)'." >&2; exit 1; }
endef

# With an NVIDIA GPU the plain wheel brings CUDA. Without, the CPU build is a twentieth of the size: first from
# the indexes pip is configured with, then from PyTorch's own address, and the plain wheel if neither has it.
define install_torch
have=$$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null | cut -d+ -f1); \
if [ "$$have" = "$(TORCH)" ]; then :; \
elif command -v nvidia-smi >/dev/null 2>&1; then \
  echo "  torch $(TORCH) with CUDA (nvidia-smi found)"; \
  $(PIP) install -q -c requirements-lock.txt "torch==$(TORCH)"; \
else \
  echo "  torch $(TORCH), CPU build (no nvidia-smi)"; \
  $(PIP) install -q -c requirements-lock.txt "torch==$(TORCH)+cpu" 2>/dev/null || \
  $(PIP) install -q -c requirements-lock.txt --timeout 15 --retries 1 --extra-index-url $(CPU_INDEX) \
    "torch==$(TORCH)+cpu" 2>/dev/null || { \
  echo "  no CPU build in reach; taking the plain wheel, which is several gigabytes"; \
  $(PIP) install -q -c requirements-lock.txt "torch==$(TORCH)"; }; \
fi
endef

$(STAMP): requirements-lock.txt pyproject.toml
	@echo "Setting up $(VENV): 1-5 minutes the first time, mostly download."
	@$(BIN)/python -c '' 2>/dev/null || { $(check_python); $(create_venv); }
	@$(install_torch)
	@echo "  the locked packages (about 160)"
	@$(PIP) install -q -r requirements-lock.txt
	@PYTHONWARNINGS="ignore:Editable installation" $(PIP) install -q --no-deps --no-build-isolation -e .
	@mkdir -p "$$MPLCONFIGDIR" "$$IPYTHONDIR" "$$JUPYTER_RUNTIME_DIR"
	@$(BIN)/python -c 'import matplotlib.font_manager' 2>/dev/null  # its first import warns while it lists fonts
	@pwd -P > $@
