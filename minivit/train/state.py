"""The place of a run between two steps."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Self

from minivit.errors import UserError
from minivit.train.grad_scaler import FIRST_SCALING, LARGEST_SCALE


@dataclass
class Progress:
    """The place of a run between two steps; with the parameters and the optimiser's vectors, its whole state."""

    step: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    epoch_loss: float = 0.0
    epoch_correct: int = 0
    epoch_images: int = 0
    scaling: tuple[float, int] = FIRST_SCALING  # of the loss, in float16

    def add(self, images: int, loss: float, correct: int, seconds: float) -> None:
        """Count what a step of this epoch came to; `step` counts the steps that were begun."""
        self.seconds += seconds
        self.epoch_seconds += seconds
        self.epoch_images += images
        self.epoch_loss += loss * images
        self.epoch_correct += correct

    def begin_epoch(self) -> None:
        """Count from zero what an epoch comes to."""
        self.epoch_loss = self.epoch_seconds = 0.0
        self.epoch_correct = self.epoch_images = 0

    def to_json(self) -> str:
        """Return it as a text for a file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` wrote.

        Raises
        ------
        UserError
            The text is another, or its loss scale is none that a run can have.
        """
        try:
            values = {"scaling": FIRST_SCALING, **json.loads(text)}  # which older checkpoints do not have
            scale, good = values["scaling"] = float(values["scaling"][0]), int(values["scaling"][1])
            progress = cls(**{field.name: values[field.name] for field in fields(cls)})
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            raise UserError(f"it does not say how far the run was ({error})") from error
        if not (1 <= scale <= LARGEST_SCALE and good >= 0):
            raise UserError(
                f"its loss scale is {scale:g} after {good} good steps; expected 1 to {LARGEST_SCALE:.0f}, and 0 or more"
            )
        return progress
