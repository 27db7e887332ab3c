"""Positions of patch tokens in their grid: learned by row and column, or fixed sines and cosines."""

from __future__ import annotations

from typing import Any

from minivit import ops
from minivit.arrays import Array
from minivit.nn.initializers import scheme_named
from minivit.nn.layer import Layer
from minivit.nn.parameters import Parameter
from minivit.ops.sincos_positions import sincos_table
from minivit.random import Key


class GridPositions(Layer):
    """A learned vector for each row and each column of patches: (B, N, D) to (B, N, D), tokens row by row.

    Parameters
    ----------
    grid : tuple of int
        Numbers of rows and columns.
    dim : int
        Width D of a token.
    concat : bool
        Whether the position is the concatenation of two vectors of width D / 2, that of the row first, and not the sum
        of two vectors of width D.
    init : str
        "timm" or "jax": the initialisation of the parameters.
    """

    def __init__(self, grid: tuple[int, int], dim: int, concat: bool = False, init: str = "jax") -> None:
        if concat and dim % 2:
            raise ValueError(f"a width of {dim} cannot be halved for rows and columns; use concat=False")
        width = dim // 2 if concat else dim
        self.concat = concat
        self.rows = Parameter((grid[0], width), scheme_named(init).pos_embed)
        self.columns = Parameter((grid[1], width), scheme_named(init).pos_embed)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Add the positions to the patch tokens `x`."""
        return ops.grid_positions(x, self.rows.value, self.columns.value, self.concat, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        dx, drows, dcolumns = ops.grid_positions_backward(dy, cache)
        self.rows.add_grad(drows)
        self.columns.add_grad(dcolumns)
        return dx


class SinCosPositions(Layer):
    """Fixed sines and cosines of the row and column of each patch: (B, N, D) to (B, N, D), tokens row by row.

    Parameters
    ----------
    grid : tuple of int
        Numbers of rows and columns.
    dim : int
        Width D of a token, a multiple of 4.
    form : str
        "simple" for the frequencies of SimpleViT, which need a width of at least 8; "mae" for those of MAE.
    """

    def __init__(self, grid: tuple[int, int], dim: int, form: str = "simple") -> None:
        sincos_table((1, 1), dim, form)  # refuses what it cannot compute
        self.grid = grid
        self.form = form

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Add the positions to the patch tokens `x`."""
        return ops.sincos_positions(x, self.grid, self.form, keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``."""
        return ops.sincos_positions_backward(dy, cache)
