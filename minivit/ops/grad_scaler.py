"""The grad scaler: gradient clipping, and the loss scale of float16 (Micikevicius et al. 2018).

    factor = min(1, clip_norm / norm) / loss_scale          norm: that of the gradients, divided by loss_scale

The optimiser multiplies the gradients by this factor. From the first loss or gradient that is not finite on, the factor
is NaN and no step changes anything. With float16 a gradient can also overflow only because of the loss scale: then one
step is skipped and the scale is halved; 2000 good steps double it. At a scale of 1 such a gradient also stops the run.
All of this is computed on the device of the gradients, so that the host does not have to wait for it.
The steps are in docs/derivations/grad_scaler.md.
"""

from __future__ import annotations

from minivit.arrays import Array, namespace
from minivit.ops.registry import op
from minivit.ops.update_rules import clip_factor

STOPPED, SCALE, GOOD, FACTOR = range(4)  # indices into the state of a grad scaler

FIRST_SCALE = float(1 << 16)
LARGEST_SCALE = float(1 << 24)
GROWTH_STEPS = 2000


@op
def update_grad_scaler(
    state: Array, loss: Array, norm: Array, *, clip_norm: float, scaled: bool, growth_steps: int, largest_scale: float
) -> None:
    """Update the state of a grad scaler after a step, in place.

    Parameters
    ----------
    state : Array
        (4,): whether the run has stopped (0 or 1), the loss scale, the good steps since it last changed, the factor.
    loss, norm : Array
        0-d, of the dtype of `state`: the step's loss, and the norm of its gradients, times the loss scale.
    clip_norm : float
        Largest norm; 0 for no clipping.
    scaled : bool
        Whether the loss scale changes; otherwise it is 1.
    growth_steps : int
        The number of good steps after which the loss scale doubles.
    largest_scale : float
        The largest loss scale.
    """
    xp = namespace(state, loss, norm)
    scale, good, finite = state[SCALE], state[GOOD], xp.isfinite(norm)
    overflow = ~finite & (scale > 1.0)
    going_on = xp.isfinite(loss) & (finite | overflow) & (state[STOPPED] == 0.0)
    factor = (clip_factor(norm / scale, clip_norm) if clip_norm else xp.ones_like(norm)) / scale
    if scaled:
        grows = finite & (good >= growth_steps - 1.0)
        good = xp.where(finite & ~grows, good + 1.0, 0.0)
        scale = xp.where(overflow, scale * 0.5, xp.where(grows, xp.minimum(scale * 2.0, largest_scale), scale))
        state[SCALE], state[GOOD] = scale, good
    state[STOPPED] = xp.where(going_on, xp.zeros_like(norm), xp.ones_like(norm))
    state[FACTOR] = xp.where(going_on & finite, factor, xp.nan)
