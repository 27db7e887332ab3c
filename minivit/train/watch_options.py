"""What of a run is recorded beside its metrics: none of it changes a bit of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from minivit.errors import UserError
from minivit.train.records import COUNT, short


@dataclass(frozen=True)
class WatchOptions:
    """The records of a run. They are stored in recipe.json, so that a resumed run goes on with them.

    Parameters
    ----------
    keep_every : int
        The weights of every so many steps are kept, and those before the first step and after the last; 0 for none.
    every : int
        Statistics by layer are logged at every so many steps, and at the first; 0 for none.
    tensorboard : bool
        Whether metrics and statistics are written for TensorBoard too.
    """

    keep_every: int = 0
    every: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for option, value in (("--keep-every", self.keep_every), ("--watch", self.every)):
            if not COUNT.fits(value):
                raise UserError(f"{option} is {short(value)}; expected a number of steps, or 0 for none")
        if not isinstance(self.tensorboard, bool):
            raise UserError(f"tensorboard is {short(self.tensorboard)}; expected true or false")

    def to_dict(self) -> dict[str, Any]:
        """Return the options that are not their defaults, as plain values for a file."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Return the options that `to_dict` wrote.

        Raises
        ------
        UserError
            It is something else.
        """
        if not isinstance(values, Mapping) or not set(values) <= set(asdict(cls())):
            raise UserError(f"watch is {short(values)}; expected keep_every, every and tensorboard")
        return cls(**values)

    def keeps(self, step: int, total_steps: int) -> bool:
        """Whether the weights after `step`, from 0, are kept."""
        return bool(self.keep_every) and (step % self.keep_every == 0 or step == total_steps)

    def watches(self, step: int) -> bool:
        """Whether statistics of `step`, from 1, are logged."""
        return bool(self.every) and (step % self.every == 0 or step == 1)
