"""Every system in the benchmarks computes the same as minivit from the same weights and images.

    pip install 'minivit[test,peers]'
    pytest tests/conformance/test_peers.py -m conformance

The losses of six steps are compared: after the first step they depend on the gradients and the optimiser. The bound is
small enough to distinguish GELU from its tanh form, and weight decay from none.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.bars import PEERS
from benchmarks.sides import find_side, missing
from benchmarks.task import make_task
from benchmarks.works import Work, get_work
from minivit.arrays import Array

# The warnings are those of the other systems.
pytestmark = [pytest.mark.conformance, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]

SMALL = ["img_size=(8,12)", "embed_dim=12", "depth=2", "num_heads=3", "num_classes=5", "batch_size=6"]
SYSTEMS = [(system, peer.trains) for peer in PEERS.values() for system in peer.systems]


@functools.cache
def work_of(kind: str) -> Work:
    return get_work("train-w64", [*SMALL, f"kind={kind}"])


def results(system: str, work: Work, steps: int) -> Sequence[Array]:
    """Return what each of the first steps gives, in float64."""
    side, variant = find_side(system)
    task = make_task(work, threads=1)
    larger = {name: np.float32(3.0) * value for name, value in task.state.items()}  # so that GELU is no straight line
    step = side.prepare(replace(task, state=larger), variant)
    return [np.asarray(step(), dtype=np.float64).copy() for _ in range(steps)]


def assert_like_ours(system: str, kind: str, steps: int) -> None:
    if packages := missing(system):
        pytest.fail(f"{system} needs {', '.join(packages)}: pip install 'minivit[test,peers]'")
    bound = 2e-2 if system == "pytorch:bf16" else 2e-5
    ours, theirs = (results(name, work_of(kind), steps) for name in ("minivit", system))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert np.linalg.norm(other - mine) <= bound * np.linalg.norm(mine)
    if steps > 1:
        assert ours[0] - ours[-1] > 0.5, "the loss hardly moves: the optimiser is not compared"


@pytest.mark.parametrize("system", [system for system, trains in SYSTEMS if trains])
def test_the_losses_of_training_are_ours(system: str) -> None:
    assert_like_ours(system, "training", 6)


@pytest.mark.parametrize("system", [system for system, _ in SYSTEMS])
def test_the_logits_of_prediction_are_ours(system: str) -> None:
    assert_like_ours(system, "prediction", 1)
