# Everything here works on a fresh clone: the first target that needs it makes .venv and installs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The warning silenced is of setuptools, about editable installs of several packages.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt
# One stamp for what running needs, one for what testing needs on top.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

# What `make demo` trains and where it leaves the results. Runs that are there are not trained again,
# so a demo of another length needs another folder: make demo DEMO_STEPS=50000 DEMO_OUT=short
DEMO_OUT ?= demo-output
DEMO_STEPS ?= 150000
DEMO_SEEDS ?= 1
DEMO_EPISODES ?= 200
DEMO_TASKS := DoorKey-5x5,DoorKey-6x6,DoorKey-8x8

# Bytecode is kept: the tests start many processes, which would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: install demo claims test test-long test-all test-lowest test-newest test-processors lint bench clean

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, '$(PYTHON)' is older; try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(PIP) --editable '.[envpool]'
	$(BIN)/rims warmup
	@touch $(INSTALLED)

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) --editable '.[envpool,video,sweep,slurm,jax,dev,examples]'
	@touch $(INSTALLED_DEV)

demo: $(INSTALLED)
	$(BIN)/rims compare --suite doorkey --tasks $(DEMO_TASKS) --cores rim_lstm,lstm \
	  --seeds $(DEMO_SEEDS) --total-steps $(DEMO_STEPS) --episodes $(DEMO_EPISODES) \
	  --run-root $(DEMO_OUT)
	$(BIN)/rims record $(DEMO_OUT)/rim_lstm-seed0 --env MiniGrid-DoorKey-6x6-v0 \
	  --out $(DEMO_OUT)/rim_lstm-on-DoorKey-6x6.gif
	@echo
	@echo "Table:   $(DEMO_OUT)/comparison.md"
	@echo "Curves:  $(DEMO_OUT)/learning_curves.png, $(DEMO_OUT)/tasks.png"
	@echo "Episode: $(DEMO_OUT)/rim_lstm-on-DoorKey-6x6.gif"

test: $(INSTALLED_DEV)
	$(PYTEST) -m "not long"

# Files or tests among the long ones: make test-long LONG=tests/test_native_histories.py
LONG ?=
test-long: $(INSTALLED_DEV)
	$(PYTEST) -m long $(LONG)

test-all: test test-long

test-lowest test-newest: test-%: $(INSTALLED_DEV)
	tests/versions.sh $*

# The numerical tests as other processors would round.
test-processors: $(INSTALLED_DEV)
	PYTHON=$(BIN)/python tests/processors.sh --numprocesses auto --dist loadfile

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The state of every published claim; docs/claims.md. make claims RUN=1 first trains what is missing.
claims: $(INSTALLED)
	$(BIN)/python -m benchmarks.claims --write $(if $(RUN),--run)

bench: $(INSTALLED)
	$(BIN)/rims bench cells --out benchmarks/results

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
