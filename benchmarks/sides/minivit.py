"""minivit: the engine, and AdamW on training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import threadpoolctl

import minivit
from benchmarks.sides.same_model import check_no_dropout
from benchmarks.task import BETAS, EPS, LR, WEIGHT_DECAY, Task
from minivit.arrays import Array


def prepare(task: Task, variant: str) -> Callable[[], Array]:
    """Return a step of training or a prediction."""
    check_no_dropout(task.work.config)
    model = minivit.create_model(task.work.preset, **task.work.overrides)
    model.load_state_dict(task.state)
    engine = minivit.Engine(model, task.threads)
    images, labels = task.images, task.labels
    if not task.work.trains:
        return lambda: engine.predict(images)
    optimizer = minivit.AdamW(model, LR, BETAS, EPS, WEIGHT_DECAY)

    def step() -> Array:
        loss = engine.loss_and_gradients(images, labels)
        optimizer.step()
        return loss

    return step


def versions() -> Mapping[str, str]:
    """Return the versions of minivit, NumPy and its BLAS."""
    blas = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
    names = [" ".join(filter(None, (b["internal_api"], b["version"], b.get("architecture")))) for b in blas]
    return {"minivit": minivit.__version__, "NumPy": np.__version__, "BLAS": ", ".join(names) or "unknown"}
