# Everything a newcomer or CI types. `make tune` and `make test` need nothing but Python and an index.
PYTHON ?= python3
BIN := .venv/bin
# Two processes, each with half of the tests in their order, until one is done and takes over some of
# the other's. So one of them has the tests of the shared Ray cluster, which come first.
TWO := -n 2 --dist worksteal

.PHONY: tune train test recovery launcher browser gpu gpu-bench check bench clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

tune: .venv/installed  ## search dropout, learning rate and momentum on MNIST, at most 5 minutes
	$(BIN)/python -m mnist_ray.tune --time-budget 4.5m

train: .venv/installed  ## the reference recipe: 20 epochs
	$(BIN)/python -m mnist_ray.train

test: .venv/installed  ## two at a time, about five minutes; `.venv/bin/python -m pytest -k test_NAME` runs one
	$(BIN)/python -m pytest $(TWO)

recovery: .venv/installed  ## kills runs in every way and goes on with them, on odd machines too
	$(BIN)/python -m pytest $(TWO) -m recovery

launcher: .venv/installed  ## a cluster of one node over ssh, and jobs on it; needs root, Debian's openssh-server and rsync
	$(BIN)/python -m pytest -n 2 --dist loadfile -m launcher

browser: .venv/installed  ## opens reports and the dashboard in headless Chromium; needs Debian's chromium, or Google Chrome
	$(BIN)/python -m pytest -m browser

gpu: .venv/installed  ## trains on this machine's GPU
	$(BIN)/python -m pytest -m gpu

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed  ## measures speed, about ten minutes; needs an idle machine
	$(BIN)/python experiments/benchmarks/bench.py

gpu-bench: .venv/installed  ## measures this machine's GPU, at most 8 minutes
	$(BIN)/python experiments/benchmarks/gpu.py

clean:
	rm -rf .venv
