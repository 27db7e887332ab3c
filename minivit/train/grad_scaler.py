"""Clips gradients, notices the first that is not finite, and keeps the loss scale of float16; see `ops.grad_scaler`."""

from __future__ import annotations

from typing import Any

from minivit.arrays import Array, namespace, on_device_of, to_host
from minivit.ops.grad_scaler import FACTOR, GOOD, SCALE, STOPPED, update_grad_scaler
from minivit.ops.update_rules import gradient_norm

FIRST_SCALING = 2.0**16, 0  # the loss scale, and the good steps since it last changed
LARGEST_SCALE = 2.0**24
GROWTH_STEPS = 2000


class GradScaler:
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
            update_grad_scaler(state, loss, norm, clip_norm=self._clip_norm, scaled=self._scaled, **limits)
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
