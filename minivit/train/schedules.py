"""Learning rates over a run: a linear warmup and a decay to zero, of the whole run or its end, or none; or one cycle.

warmup   lr * (step + 1) / warmup_steps                              step = 0, 1, ... warmup_steps - 1
cosine   lr * (1 + cos(pi * progress)) / 2                           (Loshchilov and Hutter 2017)
linear   lr * (1 - progress)                                         progress from 0 to 1 over the other steps
wsd      lr, then over the last decay_steps the decay: lr * (1 - progress) or lr * (1 - sqrt(progress)), with progress
         from 0 to 1 over these: warmup, stable, decay (Hu et al. 2024, MiniCPM; the root: Haegele et al. 2024)

onecycle rises by half a cosine from lr / 25 to lr, at the last step of the warmup, and falls by another to lr / 250,000
at the last step of the run (Smith and Topin 2018; torch.optim.lr_scheduler.OneCycleLR without cycles of the momentum).
"""

from __future__ import annotations

import math

from minivit.errors import UserError

SCHEDULES = ("cosine", "linear", "constant", "onecycle", "wsd")
DECAY_SHAPES = ("linear", "1-sqrt")


def learning_rate(
    step: int,
    total_steps: int,
    lr: float,
    warmup_steps: int = 0,
    schedule: str = "cosine",
    decay_steps: int = 0,
    decay_shape: str = "linear",
) -> float:
    """Return the learning rate of `step`, which counts from 0 to ``total_steps - 1``.

    `decay_steps` and `decay_shape` ("linear" or "1-sqrt") are those of "wsd". A decay that is longer than the rest of
    the run begins after the warmup.

    Raises
    ------
    UserError
        There is no such schedule or shape.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    if decay_shape not in DECAY_SHAPES:
        raise UserError(f"decay_shape is {decay_shape!r}; expected one of {', '.join(DECAY_SHAPES)}")
    if schedule == "onecycle":
        top = max(1, warmup_steps) - 1  # the step with the largest rate
        if step < top:
            return annealed(lr / 25, lr, step, top)
        return annealed(lr, lr / 25e4, step - top, total_steps - 1 - top)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    first = max(warmup_steps, total_steps - decay_steps) if schedule == "wsd" else warmup_steps  # step of the decay
    if step < first:
        return lr
    progress = (step - first) / max(1, total_steps - first)
    if schedule == "cosine":
        return lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule == "wsd" and decay_shape == "1-sqrt":
        return lr * (1.0 - math.sqrt(progress))
    return lr if schedule == "constant" else lr * (1.0 - progress)


def annealed(start: float, end: float, time: int, duration: int) -> float:
    """Return the rate at `time` of a fall or rise from `start` to `end` by half a cosine; `end` after `duration`."""
    share = 0.5 - 0.5 * math.cos(math.pi * min(1.0, time / duration)) if duration > 0 else 1.0
    return end * share + start * (1.0 - share)
