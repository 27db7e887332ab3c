"""A work made concrete: the same weights, images and labels for every side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import minivit
from benchmarks.works import Work
from minivit.arrays import Array

LR = 1e-3
BETAS = (0.9, 0.999)
EPS = 1e-8
WEIGHT_DECAY = 0.05


@dataclass(frozen=True)
class Task:
    """What a side gets to work on.

    Parameters
    ----------
    work : Work
        The sizes, and whether to train or predict.
    threads : int
        How many threads to use.
    state : mapping
        Each parameter's value by name, in minivit's layout.
    decay : frozenset of str
        The parameters on which weight decay acts.
    images : Array
        (B, height, width, C), float32.
    labels : Array
        (B,), int64.
    """

    work: Work
    threads: int
    state: Mapping[str, Array]
    decay: frozenset[str]
    images: Array
    labels: Array


def make_task(work: Work, threads: int) -> Task:
    """Return the task of a work; it is the same in every process."""
    model = minivit.create_model(work.preset, **work.overrides)
    config = model.config
    generator = np.random.default_rng(0)
    state = model.state_dict()
    for value in state.values():  # so that no bias is zero and no norm one: a side that left one out would show
        value += 0.02 * generator.standard_normal(value.shape, dtype=value.dtype)
    shape = (work.batch_size, config.height, config.width, config.in_chans)
    return Task(
        work,
        threads,
        state,
        frozenset(name for name, parameter in model.parameters.items() if parameter.decay),
        generator.standard_normal(shape, dtype=np.float32),
        generator.integers(0, config.num_classes, work.batch_size),
    )
