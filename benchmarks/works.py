"""The works that are measured: which model, training or prediction, how many images at a time."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import minivit
from minivit.nn.config import ViTConfig


@dataclass(frozen=True)
class Work:
    """One thing to measure: a step of training, or a prediction, of a batch of images, in float32.

    Parameters
    ----------
    name : str
        Its key in `WORKS`.
    kind : str
        "training" or "prediction".
    preset : str
        A preset of minivit.
    overrides : mapping
        Fields of `ViTConfig` that differ from the preset's.
    batch_size : int
        Images in a step.
    """

    name: str
    kind: str
    preset: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("training", "prediction"):
            raise ValueError(f"kind is {self.kind!r}; expected 'training' or 'prediction'")
        if not isinstance(self.batch_size, int) or isinstance(self.batch_size, bool) or self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size!r}; expected a whole number of at least 1")

    @property
    def config(self) -> ViTConfig:
        """The sizes of the model, which every side takes from here."""
        return minivit.get_config(self.preset, **self.overrides)

    @property
    def trains(self) -> bool:
        """Whether this is a step of training."""
        return self.kind == "training"

    def changed(self, **values: Any) -> Work:
        """Return this work with `kind`, `batch_size` or fields of its model replaced."""
        own = {name: values.pop(name) for name in ("kind", "batch_size") if name in values}
        return replace(self, overrides={**self.overrides, **values}, **own)


_TINY = "vit_tiny_patch4_32"
_W96 = {"embed_dim": 96, "depth": 6, "num_heads": 4, "mlp_ratio": 2.0}
_W64 = {"embed_dim": 64, "depth": 4, "num_heads": 8, "mlp_ratio": 2.0}

WORKS: dict[str, Work] = {
    work.name: work
    for work in (
        Work("train-tiny", "training", _TINY, batch_size=128),
        Work("train-tiny-1024", "training", _TINY, batch_size=1024),
        Work("train-w96", "training", _TINY, _W96, batch_size=128),
        Work("train-w64", "training", _TINY, _W64, batch_size=64),
        Work("predict-224", "prediction", "vit_tiny_patch16_224", batch_size=32),
        Work("predict-one", "prediction", "vit_tiny_patch16_224", batch_size=1),
    )
}

# What an assignment may change, and whether only True and False will do.
_FIELDS = {"kind": False, "batch_size": False} | {f.name: isinstance(f.default, bool) for f in fields(ViTConfig)}


def get_work(name: str, assignments: Sequence[str] = ()) -> Work:
    """Return the work called `name`, changed by ``field=value`` texts, such as ``depth=2`` or ``img_size=(32,48)``.

    Raises
    ------
    ValueError
        There is no such work or field, a text is no assignment, or there is no model of these sizes.
    """
    if name not in WORKS:
        raise ValueError(f"there is no work called {name!r}; there are {', '.join(WORKS)}")
    values = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{assignment!r} is no assignment; expected field=value")
        if key not in _FIELDS:
            raise ValueError(f"a work has no field {key!r}; there are {', '.join(_FIELDS)}")
        values[key] = _value(text)
        if _FIELDS[key] and not isinstance(values[key], bool):
            raise ValueError(f"{key} is {text!r}; expected True or False")
    work = WORKS[name].changed(**values)
    try:
        _ = work.config  # which refuses what is no model
    except OverflowError as error:
        raise ValueError(f"{', '.join(assignments)}: a number is too large") from error
    return work


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # all that literal_eval may raise
        return text  # a word, such as prediction
