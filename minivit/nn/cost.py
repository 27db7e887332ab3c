"""The cost of a forward pass, as layers report it for `minivit.nn.summary`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Cost(NamedTuple):
    """What a forward pass costs for one image.

    Attributes
    ----------
    flops : int
        2 for each multiply-add of a matrix product, 0 for the rest.
    kept : int
        Numbers that the forward pass of training keeps for the backward pass.
    """

    flops: int = 0
    kept: int = 0


def total_cost(costs: Iterable[Cost]) -> Cost:
    """Return the sum of `costs`."""
    return Cost(*map(sum, zip(*costs, strict=True)))
