"""The state of a run between two steps, except for the parameters and the optimiser's vectors."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Self

from minivit.errors import UserError
from minivit.ops.grad_scaler import FIRST_SCALE, LARGEST_SCALE


@dataclass
class TrainState:
    """The progress of a run and its metrics so far.

    Attributes
    ----------
    step : int
        The number of steps that were started.
    best_accuracy, best_epoch
        The best epoch, and its accuracy on the validation images.
    seconds : float
        The time of all steps of the run.
    epoch_seconds, epoch_loss, epoch_correct, epoch_images
        Sums over the images of the current epoch.
    scaling : tuple
        The loss scale of float16, and the number of good steps since it last changed.
    """

    step: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    epoch_loss: float = 0.0
    epoch_correct: int = 0
    epoch_images: int = 0
    scaling: tuple[float, int] = (FIRST_SCALE, 0)

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
            The text is something else, or its loss scale is out of range.
        """
        try:
            values = {"scaling": cls.scaling, **json.loads(text)}  # older checkpoints have no loss scale
            scale, good = values["scaling"] = float(values["scaling"][0]), int(values["scaling"][1])
            state = cls(**{field.name: values[field.name] for field in fields(cls)})
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            raise UserError(f"it does not say how far the run was ({error})") from error
        if not (1 <= scale <= LARGEST_SCALE and good >= 0):
            raise UserError(
                f"its loss scale is {scale:g} after {good} good steps; expected 1 to {LARGEST_SCALE:.0f}, and 0 or more"
            )
        return state
