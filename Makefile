# check: lint and types    test: the suite    slow, conformance, mutants: the longer proofs    lock: renew the pins
PYTHON ?= python

.PHONY: check format test slow conformance mutants bench lock

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

test:
	$(PYTHON) -m pytest

slow:
	$(PYTHON) -m pytest -m slow

conformance:
	$(PYTHON) -m pytest -m conformance tests/conformance

mutants:
	$(PYTHON) -m tests.mutants

bench:
	$(PYTHON) -m benchmarks.step

lock:
	$(PYTHON) -m piptools compile -q --extra dev --strip-extras --no-annotate --no-header --no-emit-index-url \
		--no-emit-find-links --no-emit-trusted-host -o constraints.txt pyproject.toml
	sed -i '/^minivit @/d' constraints.txt
