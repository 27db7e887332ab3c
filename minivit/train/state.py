"""The state of a run between two steps, except for the parameters and the optimiser's vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from minivit.errors import UserError
from minivit.files import parse_json
from minivit.ops.grad_scaler import FIRST_SCALE, LARGEST_SCALE
from minivit.train.evaluation import Score
from minivit.train.recipe import Recipe
from minivit.train.records import COUNT, LOSS, SECONDS, STEP, Number, expect_values, short

_RULES = {
    "step": STEP,
    "best_accuracy": Number(-1, 1),
    "best_loss": LOSS._replace(null=True),
    "best_epoch": COUNT,
    "seconds": SECONDS,
    "epoch_seconds": SECONDS,
    "epoch_loss": LOSS,
    "epoch_correct": STEP,
    "epoch_images": STEP,
    "averaged": COUNT,
    "rollbacks": COUNT,
}


@dataclass
class TrainState:
    """The progress of a run and its metrics so far.

    Attributes
    ----------
    step : int
        The number of steps that were started.
    best_accuracy, best_loss, best_epoch
        The best epoch, and its accuracy and loss on the validation images; -1 and None without them.
    seconds : float
        The time of all steps of the run.
    epoch_seconds, epoch_loss, epoch_correct, epoch_images
        Sums over the images of the current epoch.
    scaling : tuple
        The loss scale of float16, and the number of good steps since it last changed.
    averaged : int
        `Averaging.count`.
    rollbacks : int
        How often the run went back to the end of an epoch after NaN; each time the learning rate is halved.
    """

    step: int = 0
    best_accuracy: float = -1.0
    best_loss: float | None = None
    best_epoch: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    epoch_loss: float = 0.0
    epoch_correct: int = 0
    epoch_images: int = 0
    scaling: tuple[float, int] = (FIRST_SCALE, 0)
    averaged: int = 0
    rollbacks: int = 0

    def choose(self, epoch: int, validation: Score | None, by: str) -> None:
        """Make `epoch` the best if none was better by "accuracy" or "loss", or if there are no validation images."""
        if validation is None:
            self.best_epoch = epoch
            return
        if by == "loss" or validation.accuracy is None:
            is_best = self.best_loss is None or validation.loss <= self.best_loss
        else:
            is_best = validation.accuracy >= self.best_accuracy
        if is_best:
            self.best_epoch, self.best_loss = epoch, validation.loss
            self.best_accuracy = -1.0 if validation.accuracy is None else validation.accuracy

    def forget_best(self) -> None:
        """Let the next epoch be the best so far."""
        self.best_accuracy, self.best_loss = -1.0, None

    def begin_epoch(self) -> None:
        """Set the sums over an epoch to zero."""
        self.epoch_loss = self.epoch_seconds = 0.0
        self.epoch_correct = self.epoch_images = 0

    def to_json(self) -> str:
        """Return the state as text for a file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the state that `to_json` wrote.

        Raises
        ------
        UserError
            The text is something else, or a value is out of range.
        """
        try:
            added = {
                "scaling": list(cls.scaling),
                "best_loss": None,
                "averaged": 0,
                "rollbacks": 0,
            }  # after the first version
            values = {**added, **parse_json(text, "its progress")}
            expect_values(values, _RULES)
            if not (isinstance(values["scaling"], list) and len(values["scaling"]) == 2):
                raise UserError(f"scaling is {short(values['scaling'])}; expected two numbers")
        except UserError as error:
            raise UserError(f"it does not say how far the run was ({error})") from error
        scaling = dict(zip(("loss scale", "number of good steps"), values["scaling"], strict=True))
        rules = {"loss scale": Number(1, LARGEST_SCALE), "number of good steps": COUNT}
        for name, rule in rules.items():
            if not rule.fits(scaling[name]):
                raise UserError(f"its {name} is {short(scaling[name])}; expected {rule}")
        state = cls(**{field.name: values[field.name] for field in fields(cls)})
        state.scaling = float(values["scaling"][0]), int(values["scaling"][1])
        return state


def best_line(
    recipe: Recipe, metrics: Sequence[dict[str, Any]], result: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Return the line of metrics.jsonl of the best epoch so far.

    Parameters
    ----------
    recipe : Recipe
        The recipe of the run: how the best epoch is chosen, and from which epoch on, with an average.
    metrics : sequence of dict
        The lines so far.
    result : mapping, optional
        The result of a finished run, which knows its best epoch.

    Returns
    -------
    dict or None
        None if there is no such line.
    """
    state = TrainState()
    for line in metrics:
        if recipe.swa_start and line["epoch"] == recipe.swa_epochs_before + 1:
            state.forget_best()
        score = Score(line["val_loss"], line.get("val_accuracy"), 0) if "val_loss" in line else None
        state.choose(line["epoch"], score, recipe.choose_by)
    best = state.best_epoch if result is None else result["best_epoch"]
    return next((line for line in metrics if line["epoch"] == best), None)
