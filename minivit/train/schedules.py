"""Learning rates over a run: a linear warmup, then cosine or linear decay to zero, or no decay; or one cycle.

warmup   lr * (step + 1) / warmup_steps                              step = 0, 1, ... warmup_steps - 1
cosine   lr * (1 + cos(pi * progress)) / 2                           (Loshchilov and Hutter 2017)
linear   lr * (1 - progress)                                         progress from 0 to 1 over the other steps

onecycle rises by half a cosine from lr / 25 to lr, at the last step of the warmup, and falls by another to lr / 250,000
at the last step of the run (Smith and Topin 2018; torch.optim.lr_scheduler.OneCycleLR without cycles of the momentum).
"""

from __future__ import annotations

import math

from minivit.errors import UserError

SCHEDULES = ("cosine", "linear", "constant", "onecycle")


def learning_rate(step: int, total_steps: int, lr: float, warmup_steps: int = 0, schedule: str = "cosine") -> float:
    """Return the learning rate of `step`, which counts from 0 to ``total_steps - 1``.

    Raises
    ------
    UserError
        There is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    if schedule == "onecycle":
        top = max(1, warmup_steps) - 1  # the step with the largest rate
        if step < top:
            return annealed(lr / 25, lr, step, top)
        return annealed(lr, lr / 25e4, step - top, total_steps - 1 - top)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "cosine":
        return lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    return lr * (1.0 - progress) if schedule == "linear" else lr


def annealed(start: float, end: float, time: int, duration: int) -> float:
    """Return the rate at `time` of a fall or rise from `start` to `end` by half a cosine; `end` after `duration`."""
    share = 0.5 - 0.5 * math.cos(math.pi * min(1.0, time / duration)) if duration > 0 else 1.0
    return end * share + start * (1.0 - share)
