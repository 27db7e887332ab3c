"""The mutation test of the backward passes: what is changed (operators.py), and whether a test fails (trial.py).

Imports in here are relative, since pytest knows this package as `mutants` and ``python -m`` as `tests.mutants`.
"""
