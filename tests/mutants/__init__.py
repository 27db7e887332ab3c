"""The mutation test of the backward passes and of the CUDA sources.

What is changed is in operators.py and cuda_operators.py, whether a test fails in python_trial.py and cuda_trial.py.
Imports in here are relative, since pytest knows this package as `mutants` and ``python -m`` as `tests.mutants`.
"""
