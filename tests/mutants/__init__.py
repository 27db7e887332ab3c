"""The mutation test of the backward passes and of the CUDA sources.

operators.py and cuda_operators.py make the mutants, python_trial.py and cuda_trial.py run the tests on them. Imports in
this package are relative, since it is called `mutants` under pytest and `tests.mutants` under ``python -m``.
"""
