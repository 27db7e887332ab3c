"""The learning-rate finder: the loss while the learning rate rises from step to step (Smith 2017).

    rate of step i, of n      lr = first * (last / first)**(i / (n - 1))

The loss of a step is that before its update. It is smoothed by a Hann window around each step, which does not shift the
curve as a moving average of the past would. Two rates are suggested: that of the steepest descent of the smoothed loss
over the logarithm of the rate, and a tenth of the rate at which the smoothed loss is smallest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minivit.arrays import Array, on_device_of
from minivit.errors import UserError
from minivit.tracing.figures import COLOURS, new_figure, plain
from minivit.train.curves import loss_name
from minivit.train.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, FIRST, LAST = 100, 1e-6, 1.0
_DIVERGED = 4.0  # times the smallest loss, as in fast.ai
_MEMORY = 0.8  # of the moving average of the past that finds where the loss diverges
_LEAST_STEPS = 10


@dataclass(frozen=True)
class LearningRateSearch:
    """The losses of `find_learning_rate`, and what they suggest.

    Attributes
    ----------
    rates, losses : list of float
        The learning rate and the loss of each step; a last loss that was not finite is left out.
    diverged : float or None
        The learning rate at which the search was stopped, or None if it reached its end.
    """

    rates: list[float]
    losses: list[float]
    diverged: float | None

    @property
    def smoothed(self) -> list[float]:
        """The smoothed losses."""
        losses, half = np.array(self.losses), max(1, len(self.losses) // 20)
        window = np.hanning(2 * half + 3)[1:-1]
        weights = np.convolve(np.ones(len(losses)), window, "full")[half : half + len(losses)]
        return [float(each) for each in np.convolve(losses, window, "full")[half : half + len(losses)] / weights]

    @property
    def best(self) -> int:
        """The number of the step with the smallest smoothed loss, from 0."""
        return int(np.argmin(self.smoothed))

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls fastest before its minimum; None if it never falls."""
        if self.best == 0:
            return None
        slopes = np.gradient(np.array(self.smoothed), np.log(self.rates))[: self.best + 1]
        return self.rates[int(np.argmin(slopes))]

    @property
    def tenth(self) -> float | None:
        """A tenth of the rate with the smallest smoothed loss; None if the loss never falls."""
        return self.rates[self.best] / 10 if self.best else None


def find_learning_rate(
    trainer: Trainer,
    steps: int = STEPS,
    first: float = FIRST,
    last: float = LAST,
    stepped: Callable[[int, float, float], object] = lambda step, lr, loss: None,
) -> LearningRateSearch:
    """Return the loss of each step while the learning rate rises exponentially from `first` to `last`.

    The search stops where the loss is not finite, or its moving average is four times the smallest one. It trains as
    the recipe says, but for the learning rate.

    Parameters
    ----------
    trainer : Trainer
        A new trainer. Its model is changed and its run folder is not: throw both away.
    steps : int
        The number of steps, at least 10.
    first, last : float
        The first and the last learning rate.
    stepped : callable
        Is called after each step with its number, from 1, its learning rate and its loss.

    Raises
    ------
    UserError
        A number is out of range, or the loss is not finite, or grows fourfold, in fewer than ten steps.
    """
    if steps < _LEAST_STEPS:
        raise UserError(f"{steps} steps are too few for a search; expected at least {_LEAST_STEPS}")
    if not 0 < first < last < math.inf:
        raise UserError(f"the learning rate cannot rise from {first:g} to {last:g}; expected 0 < first < last")
    rates = [first * (last / first) ** (i / (steps - 1)) for i in range(steps)]
    losses: list[float] = []
    diverged, grown = None, False
    past, smallest = 0.0, math.inf
    with on_device_of(trainer.model.parameters.store.values), trainer.engine:
        for i, (lr, samples) in enumerate(zip(rates, _samples(trainer), strict=False)):
            trainer.train_step.run(i, samples, lr)
            (step,) = trainer.train_step.metrics.read()
            if step.stopped or not math.isfinite(step.loss):
                diverged = lr
                break
            losses.append(step.loss)
            stepped(i + 1, lr, step.loss)
            past = _MEMORY * past + (1 - _MEMORY) * step.loss
            average = past / (1 - _MEMORY ** (i + 1))
            smallest = min(smallest, average)
            if grown := average > _DIVERGED * smallest:
                diverged = lr
                break
    if len(losses) < _LEAST_STEPS:
        grew = f"has grown {_DIVERGED:g}-fold" if grown else "is not finite"
        advice = "begin with a smaller one" + ("" if grown else ", and look at the images and the model")
        raise UserError(f"the loss {grew} after {len(losses)} steps, at a learning rate of {diverged:.2g}; {advice}")
    return LearningRateSearch(rates[: len(losses)], losses, diverged)


def _samples(trainer: Trainer) -> Iterator[Array]:
    """Yield the batches of one epoch after another."""
    for epoch in itertools.count():
        yield from trainer.batches(epoch)


def plot_learning_rates(found: LearningRateSearch, of_labels: bool = True) -> Figure:
    """Return the figure of a search: the loss and the smoothed loss by learning rate, and the two suggestions.

    `of_labels` is whether the loss is that of labels; that of a masked model is not.
    """
    figure = new_figure(6.4, 4.0)
    axes: Any = plain(figure.subplots())
    axes.plot(found.rates, found.losses, ".", ms=3, color="#999999", label="loss of a step")
    axes.plot(found.rates, found.smoothed, color=COLOURS[0], label="smoothed")
    for rate, style, words in (
        (found.steepest, "-", "steepest descent"),
        (found.tenth, "--", "a tenth of the minimum's"),
    ):
        if rate is not None:
            axes.axvline(rate, ls=style, lw=1, color=COLOURS[1], label=f"{words}: {rate:.2g}")
    low, high = min(found.smoothed), found.smoothed[0]
    axes.set_ylim(low - 0.1 * (high - low) - 0.05, high + 0.5 * (high - low) + 0.05)  # not the height of the divergence
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel(loss_name(of_labels))
    axes.legend(frameon=False, fontsize=8)
    return figure
