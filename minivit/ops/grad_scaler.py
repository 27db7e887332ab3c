"""What the gradients of a step are multiplied by: clipping, and the loss scale of float16 (Micikevicius et al. 2018).

    factor = min(1, clip_norm / norm) / loss_scale          norm of the gradients with the loss scale undone

The factor is NaN, and the step changes nothing, from the first loss or gradient on that is not finite. With float16,
gradients can also be too large for the loss scale alone: then this one step is left out and the scale is halved; 2000
good steps double it. At a scale of 1 such a gradient stops the run too. All of it is decided where the gradients are,
so that a device does not wait for the host.
"""

from __future__ import annotations

from minivit.arrays import Array, namespace
from minivit.ops.registry import op
from minivit.ops.update_rules import clip_factor

STOPPED, SCALE, GOOD, FACTOR = range(4)  # of the state of a grad scaler


@op
def update_grad_scaler(
    state: Array, loss: Array, norm: Array, *, clip_norm: float, scaled: bool, growth_steps: int, largest_scale: float
) -> None:
    """Bring the state of a grad scaler up to date, in place.

    Parameters
    ----------
    state : Array
        (4,): whether the run has stopped (0 or 1), the loss scale, the good steps since it last changed, the factor.
    loss, norm : Array
        0-d, of the dtype of `state`: the step's loss, and the norm of its gradients, times the loss scale.
    clip_norm : float
        Largest norm; 0 for no clipping.
    scaled : bool
        Whether the loss scale changes; else it is 1.
    growth_steps : int
        Good steps after which the loss scale doubles.
    largest_scale : float
        Which it does not exceed.
    """
    xp = namespace(state, loss, norm)
    scale, good, finite = state[SCALE], state[GOOD], xp.isfinite(norm)
    excused = ~finite & (scale > 1.0)
    going_on = xp.isfinite(loss) & (finite | excused) & (state[STOPPED] == 0.0)
    factor = (clip_factor(norm / scale, clip_norm) if clip_norm else xp.ones_like(norm)) / scale
    if scaled:
        grows = finite & (good >= growth_steps - 1.0)
        good = xp.where(finite & ~grows, good + 1.0, 0.0)
        scale = xp.where(excused, scale * 0.5, xp.where(grows, xp.minimum(scale * 2.0, largest_scale), scale))
        state[SCALE], state[GOOD] = scale, good
    state[STOPPED] = xp.where(going_on, xp.zeros_like(norm), xp.ones_like(norm))
    state[FACTOR] = xp.where(going_on & finite, factor, xp.nan)
