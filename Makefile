# Everything here works on a fresh clone: the first target that needs it makes .venv and installs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# What `make demo` trains and where it leaves the results; override to make it shorter or longer.
DEMO_OUT ?= demo-output
DEMO_STEPS ?= 150000
DEMO_SEEDS ?= 1
DEMO_EPISODES ?= 200
DEMO_TASKS := DoorKey-5x5,DoorKey-6x6,DoorKey-8x8

.PHONY: install demo test lint bench clean

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, '$(PYTHON)' is older; try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[envpool,dev,examples]'
	@touch $(INSTALLED)

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

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/cells.py --out benchmarks/results

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
