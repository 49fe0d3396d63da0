# make train | test | test-all | lint | bench | setup. Needs Python 3.10, 3.11 or 3.12; everything else goes into .venv.

CONFIG ?= configs/cartpole.yaml
ARGS ?=
WORKERS ?= -n auto --maxprocesses 4 --dist loadgroup
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10 python; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' >/dev/null 2>&1 \
	&& echo $$python && break; done)
BIN := .venv/bin
SETUP := .venv/.setup-done

.DEFAULT_GOAL := help
.PHONY: help train test test-all lint bench setup clean minigrid-chain minigrid-novice minigrid-expert

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

train: $(SETUP)  ## train CONFIG (configs/cartpole.yaml); more flags in ARGS
	$(BIN)/ppo-lightning fit --config $(CONFIG) $(ARGS)

# side by side, two threads each take twice as long
minigrid-chain minigrid-novice minigrid-expert: export OMP_NUM_THREADS ?= 1
minigrid-chain: minigrid-novice minigrid-expert  ## novice, expert, coordinator and their comparison (-j2: side by side)
	$(BIN)/ppo-lightning fit --config configs/minigrid_coordination.yaml --resume=auto $(ARGS)
	$(BIN)/ppo-lightning compare --ckpt_path lightning_logs/minigrid_coordination/checkpoints/best_test_hard.ckpt \
		--out lightning_logs/minigrid_coordination/comparison.png

minigrid-novice minigrid-expert: minigrid-%: $(SETUP)
	$(BIN)/ppo-lightning fit --config configs/minigrid_$*.yaml --resume=auto $(ARGS)

test: $(SETUP)  ## every test but the slow ones, on all cores (WORKERS= for one process)
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-all: $(SETUP)  ## the slow tests too: whole learning runs
	$(BIN)/python -m pytest $(WORKERS) -m "slow or not slow" $(ARGS)

lint: $(SETUP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(SETUP)  ## speed and memory beside the peers; ARGS="--help" tells more
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/bench.py $(ARGS)

setup: $(SETUP)  ## .venv with the package, the extras that configs/ need, and the development tools

$(SETUP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.10, 3.11 or 3.12 was found: install one, or name it with make PYTHON=/path/to/python."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[procgen,box2d,minigrid,mujoco,atari,envpool,video,plot,export,dev]'
	touch $@

clean:  ## remove .venv and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
