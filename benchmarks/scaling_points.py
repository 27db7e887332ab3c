"""What the scaling curves are made of: the axes, their points, and how each point changes the base work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.products import Weights, products
from benchmarks.works import Work, get_work
from minivit.engine.machine import cores

BASE = "train-w96"
BATCH_SIZE = 64
HEAD_SIZE = 24  # kept the same at every width
PATCH_SIZE = 4


@dataclass(frozen=True)
class Setting:
    """One thing to measure: changes to the base work, and how many threads."""

    kind: str
    changes: tuple[tuple[str, Any], ...]
    threads: int

    @property
    def options(self) -> list[str]:
        """The options of benchmarks.worker that make this of the base work."""
        assignments = [f"{name}={value}" for name, value in (("kind", self.kind), *self.changes)]
        return [*(text for a in assignments for text in ("--set", a)), "--threads", str(self.threads)]

    @property
    def work(self) -> Work:
        """The work that is measured."""
        return get_work(BASE).changed(kind=self.kind, **dict(self.changes))

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two settings the same measurement."""
        work = self.work
        return work.kind, work.config, work.batch_size, self.threads

    @property
    def flops_an_image(self) -> int:
        """The floating-point operations of the matrix products that the mathematics needs."""
        config = self.work.config
        return sum(product.flops for product in products(config, Weights(config), 1, self.kind == "training"))


@dataclass(frozen=True)
class Axis:
    """A quantity that is varied while the others stay.

    Parameters
    ----------
    name : str
        Of files and tables.
    label : str
        With its unit.
    values, quick : tuple of int
        What it is varied over, and in a quick run.
    changes : callable
        The fields of the work that give it a value.
    """

    name: str
    label: str
    values: tuple[int, ...]
    quick: tuple[int, ...]
    changes: Callable[[int], Mapping[str, Any]]

    def setting(self, value: int, kind: str) -> Setting:
        """Return what to measure at `value`."""
        changes = {"batch_size": BATCH_SIZE, **self.changes(value)}
        threads = value if self.name == "threads" else cores()
        return Setting(kind, tuple(sorted(changes.items())), threads)


def axes() -> tuple[Axis, ...]:
    """Return the axes; that of threads ends with this machine's cores."""
    threads = tuple(sorted({1 << i for i in range(cores().bit_length())} | {cores()}))
    return (
        Axis("batch", "images in a batch", (32, 64, 128, 256, 512, 1024), (32, 64, 256), lambda v: {"batch_size": v}),
        Axis(
            "tokens",
            "tokens of an image",
            (17, 37, 65, 145, 257),
            (17, 65, 257),
            lambda v: {"img_size": PATCH_SIZE * math.isqrt(v - 1)},
        ),
        Axis(
            "width",
            "width of the model",
            (48, 96, 192, 384),
            (48, 96, 192),
            lambda v: {"embed_dim": v, "num_heads": v // HEAD_SIZE},
        ),
        Axis("depth", "blocks of the model", (1, 3, 6, 12), (1, 6, 12), lambda v: {"depth": v}),
        Axis("threads", "threads", threads, threads, lambda v: {}),
    )


def base(kind: str) -> Setting:
    """Return the setting which the axes share."""
    return axes()[0].setting(BATCH_SIZE, kind)
