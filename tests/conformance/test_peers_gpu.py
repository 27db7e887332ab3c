"""PyTorch as benchmarks/gpu.py runs it, here on the CPU."""

from __future__ import annotations

import pytest

from benchmarks.gpu_parts import minivit as minivit_side
from benchmarks.gpu_parts.works import WORKS
from benchmarks.task import make_task


@pytest.mark.conformance
@pytest.mark.parametrize("name", ["rehearsed-train", "rehearsed-predict"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pytorch_computes_what_minivit_computes(name: str, precision: str) -> None:
    from benchmarks.gpu_parts import pytorch

    task = make_task(WORKS[name], 1)
    ours, theirs = minivit_side.prepare(task, "float32", "numpy"), pytorch.prepare(task, precision, device="cpu")
    rel = 1e-4 if precision == "float32" else 0.02
    for _ in range(3):
        assert theirs.number(theirs.run()) == pytest.approx(ours.number(ours.run()), rel=rel)
