"""Averages of the parameters over the steps of a run: the weights that are evaluated, chosen and saved in their place.

With p the parameters and a their average, two flat vectors:

    Polyak averaging                a = decay * a + (1 - decay) * p     after every step; before the first, a = p
    stochastic weight averaging     a = a + (p - a) / (n + 1)           after every epoch from `swa_start` on, the n-th
                                                                        of which counts from 0 (Izmailov et al. 2018)

The first is that of the paper's ImageNet models (factor 0.9999) and of timm's ModelEmaV3; both are those of
torch.optim.swa_utils. Training goes on from the parameters themselves. A ViT has no batch norm, whose statistics would
have to be computed anew for the average. Nothing in this file waits for a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minivit.arrays import Array, namespace, on_device_of, to_backend, to_host
from minivit.errors import UserError
from minivit.nn.store import FlatStore
from minivit.ops.update_rules import average_step
from minivit.train.recipe import Recipe


class Averaging:
    """The average of the parameters that the recipe of a run asks for, if it asks for one.

    Parameters
    ----------
    store : FlatStore
        The store of the model's parameters.
    recipe : Recipe
        Its `ema_decay`, or its `swa_start`; without both the average is the parameters themselves.

    Attributes
    ----------
    count : int
        The number of averaged epochs; 1 throughout Polyak averaging. While it is 0 there is no average.
    """

    def __init__(self, store: FlatStore, recipe: Recipe) -> None:
        self._store, self._decay = store, recipe.ema_decay
        self._first = recipe.swa_epochs_before if recipe.swa_start else recipe.epochs
        self._average: Array | None = None
        self.count = 0
        if recipe.ema_decay or recipe.swa_start:
            with on_device_of(store.values):
                self._average = namespace(store.values).zeros_like(store.values)

    def begin(self) -> None:
        """Begin Polyak averaging with the parameters before the first step; other averages begin later."""
        if self._decay:
            self._add(1.0)
            self.count = 1

    def after_step(self) -> None:
        """Add the parameters after a step to the Polyak average."""
        if self._decay:
            self._add(1.0 - self._decay)

    def after_epoch(self, epoch: int) -> bool:
        """Add the parameters after `epoch`, from 1, to the stochastic weight average; return whether it begins.

        An average with an epoch that is not one of the last of a run that was made longer is dropped, and begins anew.
        """
        if self._decay or self._average is None:
            return False
        if epoch - self.count <= self._first:  # the first averaged epoch: it is too early for the run
            self.count = 0
        if epoch > self._first:
            self._add(1.0 / (self.count + 1))
            self.count += 1
        return self.count == 1

    def _add(self, weight: float) -> None:
        assert self._average is not None
        with on_device_of(self._store.values):
            average_step(self._average, self._store.values, weight=weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged parameters inside the block, and its own again after it."""
        if self._average is None or not self.count:
            yield
            return
        values = self._store.values
        with on_device_of(values):
            kept = values.copy()
            values[...] = self._average
        try:
            yield
        finally:
            with on_device_of(values):
                values[...] = kept

    def state(self) -> dict[str, Array]:
        """Return a copy of the average on the host, by name; nothing if the recipe asks for none."""
        return {} if self._average is None else {"average": to_host(self._average).copy()}

    def load_state(self, average: Array | None, count: int) -> None:
        """Set the average to what `state` returned.

        Raises
        ------
        UserError
            The average is missing, or there is one that the recipe does not ask for.
        """
        if (average is None) != (self._average is None):
            raise UserError(f"the average of the parameters is {'missing' if average is None else 'not in the recipe'}")
        if average is not None and self._average is not None:
            with on_device_of(self._average):
                self._average[...] = to_backend(average, namespace(self._average))
        self.count = count
