"""The largest error of each comparison of a whole model, for ``pytest tests/conformance -m conformance --errors``."""

from __future__ import annotations

KINDS = ("logits", "loss", "gradients")
largest: dict[str, float] = {}  # of the test that runs


def record(name: str, error: float) -> None:
    """Note the error of what a test calls "logits" or "loss", and of a gradient under any other name."""
    kind = name if name in KINDS else "gradients"
    largest[kind] = max(float(error), largest.get(kind, 0.0))  # a plain number: xdist sends it to another process
