"""Learning rates over a run: a linear warmup, then cosine or linear decay to zero, or no decay.

warmup   lr * (step + 1) / warmup_steps                              step = 0, 1, ... warmup_steps - 1
cosine   lr * (1 + cos(pi * progress)) / 2                           (Loshchilov and Hutter 2017)
linear   lr * (1 - progress)                                         progress from 0 to 1 over the other steps
"""

from __future__ import annotations

import math

from minivit.errors import UserError

SCHEDULES = ("cosine", "linear", "constant")


def learning_rate(step: int, total_steps: int, lr: float, warmup_steps: int = 0, schedule: str = "cosine") -> float:
    """Return the learning rate of `step`, which counts from 0 to ``total_steps - 1``."""
    if schedule not in SCHEDULES:
        raise UserError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "cosine":
        return lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    return lr * (1.0 - progress) if schedule == "linear" else lr
