"""The mutation test of the backward passes: what is changed (operators.py), and what notices (trial.py)."""
