"""What becomes of a step's gradients: decided where they are, so that a device goes on without asking the host.

    factor = min(1, clip_norm / norm) / loss_scale          norm of the gradients with the loss scale undone

is what the optimiser multiplies the gradients by. It is NaN, and the step changes nothing, from the first loss or
gradient on that is not finite. With float16, gradients can also be too large for the loss scale alone: then this one
step is left out and the scale halved; 2000 good steps double it. At a scale of 1 such a gradient stops the run too.
"""

from __future__ import annotations

from typing import Any

from minivit.arrays import Array, namespace, on_device_of, to_host
from minivit.ops.registry import routine
from minivit.train.optim import clip_factor, gradient_norm

STOPPED, SCALE, GOOD, FACTOR = range(4)  # of the state of a guard
FIRST_SCALING = 2.0**16, 0  # the loss scale, and the good steps since it last changed
LARGEST_SCALE = 2.0**24
GROWTH_STEPS = 2000


@routine
def judge(
    state: Array, loss: Array, norm: Array, *, clip_norm: float, scaled: bool, growth_steps: int, largest_scale: float
) -> None:
    """Bring the state of a guard up to date, in place.

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


class Guard:
    """Clips gradients, notices the first that is not finite, and keeps the loss scale of float16.

    Parameters
    ----------
    values : Array
        The flat vector of parameters; its library, device and dtype are those of all that is kept here.
    clip_norm : float
        Largest global norm of the gradients; 0 for no clipping.
    scaled : bool
        Whether the loss is scaled.
    """

    def __init__(self, values: Array, clip_norm: float, scaled: bool) -> None:
        self._clip_norm, self._scaled = clip_norm, scaled
        with on_device_of(values):
            self._state = namespace(values).zeros(4, dtype=values.dtype)
            self._state[SCALE] = 1.0
        self.go_on_with(FIRST_SCALING)

    @property
    def loss_scale(self) -> Array | None:
        """What the next step's loss is multiplied by, 0-d, or None."""
        return self._state[SCALE] if self._scaled else None

    @property
    def stopped(self) -> Array:
        """1 after a loss or gradient that was not finite, else 0; a 0-d array."""
        return self._state[STOPPED]

    def factor(self, loss: Array, gradients: Array) -> Array:
        """Return what the flat vector `gradients` is to be multiplied by, 0-d; NaN where nothing may be updated."""
        state = self._state
        limits: dict[str, Any] = {"growth_steps": GROWTH_STEPS, "largest_scale": LARGEST_SCALE}
        with on_device_of(state):
            norm = gradient_norm(gradients)
            judge(state, loss, norm, clip_norm=self._clip_norm, scaled=self._scaled, **limits)
        return state[FACTOR]

    def scaling(self) -> tuple[float, int] | None:
        """Return the loss scale and the good steps since it last changed, or None; waits for the device."""
        if not self._scaled:
            return None
        state = to_host(self._state)
        return float(state[SCALE]), int(state[GOOD])

    def go_on_with(self, scaling: tuple[float, int]) -> None:
        """Take over what `scaling` returned; without effect where nothing is scaled."""
        if self._scaled:
            with on_device_of(self._state):
                self._state[SCALE], self._state[GOOD] = scaling
