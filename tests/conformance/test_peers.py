"""Every system in the benchmarks computes the same as minivit from the same weights and images.

    pip install 'minivit[test,peers]'
    pytest tests/conformance/test_peers.py -m conformance

The losses of six steps are compared: after the first step they depend on the gradients and the optimiser. The bound is
small enough to distinguish GELU from its tanh form, and weight decay from none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import systems
from benchmarks.baselines import BASELINES
from benchmarks.workloads import REHEARSAL, WORKLOADS, Workload, make_task
from minivit.arrays import Array

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is:DeprecationWarning"),  # of torch.compile itself
    pytest.mark.timeout(300),
]

SMALL = {"img_size": (8, 12), "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 5}
SYSTEMS = [(system, baseline.trains) for baseline in BASELINES.values() for system in baseline.systems]


def workload_of(kind: str) -> Workload:
    return replace(WORKLOADS["train-w64"].changed(**SMALL), kind=kind, batch_size=6)


def results(system: str, workload: Workload, steps: int) -> Sequence[Array]:
    """Return the result of each of the first steps, in float64."""
    task = make_task(workload, threads=1)
    larger = {name: np.float32(3.0) * value for name, value in task.state.items()}  # so that GELU is no straight line
    step = systems.prepare(system, replace(task, state=larger))
    return [np.asarray(step.to_host(step.run()), dtype=np.float64).copy() for _ in range(steps)]


def assert_like_ours(system: str, kind: str, steps: int) -> None:
    bound = 2e-2 if system == "pytorch:bf16" else 2e-5
    ours, theirs = (results(name, workload_of(kind), steps) for name in ("minivit", system))
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


@pytest.mark.parametrize("name", REHEARSAL)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pytorch_computes_on_a_gpu_what_minivit_computes(name: str, precision: str) -> None:
    """As benchmarks/gpu.py runs it, here on the CPU."""
    task = make_task(replace(REHEARSAL[name], precision=precision), 1)
    ours, theirs = systems.prepare("minivit", task), systems.prepare("pytorch:plain", task)
    bound = 1e-4 if precision == "float32" else 0.02
    for _ in range(3):
        mine, other = (np.asarray(step.to_host(step.run()), np.float64) for step in (ours, theirs))
        assert np.linalg.norm(other - mine) <= bound * np.linalg.norm(mine)
