# check: lint and types    test: the suite    slow, conformance, cuda, browser, mutants: the longer checks    lock: renew the pins
PYTHON ?= python

.PHONY: check format formulas test slow conformance cuda browser example mutants cifar10 bench lock

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# The MathML of minivit/explorer/formulas.json from its LaTeX; needs Node.js and temml, as the tests of the browser do.
formulas:
	node tests/browser/make_formulas.mjs

test:
	$(PYTHON) -m pytest

slow:
	$(PYTHON) -m pytest -m slow --ignore tests/test_bars.py
	$(PYTHON) -m pytest -m slow -n 0 tests/test_bars.py

conformance:
	$(PYTHON) -m pytest -m conformance tests/conformance

# Compiles every CUDA source; needs CuPy and NVIDIA's compilers (tests/cuda/compilers.py), but no GPU.
cuda:
	$(PYTHON) -m pytest -m cuda tests/cuda

# Opens the page of `minivit inspect` in Chromium; needs `apt-get install chromium`, the extra browser, and the tools of
# tests/browser/package.json in the folder that MINIVIT_NODE_MODULES names.
browser:
	$(PYTHON) -m pytest -m browser -n 2 tests/browser

# The page and the picture in the README, after a change to the page.
example:
	$(PYTHON) -m tests.browser.make_example

mutants:
	$(PYTHON) -m tests.mutants

# 82.5 % of the test set in 10 minutes on two cores of a Zen 5 (docs/recipes.md).
cifar10:
	minivit train cifar10

# Needs the extra peers; about an hour. A baseline that is not installed is left out, and named.
bench:
	$(PYTHON) -m benchmarks.compare --json build/benchmarks.json --markdown build/benchmarks.md

# In a fresh environment with nothing but the extras dev and browser.
lock:
	$(PYTHON) -m pip freeze --exclude-editable --exclude minivit > constraints.txt
