"""Learned positions of the rows and columns of patches (Dosovitskiy et al. 2020, appendix D.4).

    y[b, r, c] = x[b, r, c] + rows[r] + columns[c]              the sum
    y[b, r, c] = x[b, r, c] + [rows[r]; columns[c]]             the concatenation, of two vectors of width D / 2

    dx = dy        drows = sum of dy over images and columns        dcolumns = sum of dy over images and rows

The concatenation takes the first half of dy for drows, and the second half for dcolumns. The steps are in
docs/derivations/embeddings.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minivit.arrays import Array, namespace
from minivit.ops.registry import op, op_backward
from minivit.ops.shapes import expect, expect_gradient, same_dtype


class GridPositionsCache(NamedTuple):
    """What the backward pass of `grid_positions` reads."""

    shape: tuple[int, int, int, int]  # (B, R, C, D), with the tokens as a grid
    width: int  # of rows and columns: D, or D / 2
    dtype: Any


@op
def grid_positions(
    x: Array, rows: Array, columns: Array, concat: bool = False, *, keep: bool = True
) -> tuple[Array, GridPositionsCache | None]:
    """Return patch tokens with the positions of their rows and columns added.

    Parameters
    ----------
    x : Array
        (B, R * C, D), floating, row by row.
    rows, columns : Array
        (R, D) and (C, D), or (R, D / 2) and (C, D / 2) with `concat`.
    concat : bool
        Whether the position is the concatenation of both vectors, and not their sum.
    keep : bool
        Whether to return the cache that `grid_positions_backward` reads.

    Returns
    -------
    y : Array
        (B, R * C, D), of the dtype of `x`.
    cache : GridPositionsCache or None
    """
    namespace(x, rows, columns)
    same_dtype("grid_positions", x=x, rows=rows, columns=columns)
    expect("grid_positions", "x", x, ("B", "N", "D"))
    B, N, D = x.shape
    if concat and D % 2:
        raise ValueError(f"grid_positions: a width of {D} cannot be halved for rows and columns; use concat=False")
    width = D // 2 if concat else D
    expect("grid_positions", "rows", rows, ("R", width))
    expect("grid_positions", "columns", columns, ("C", width))
    R, C = len(rows), len(columns)
    if R * C != N:
        raise ValueError(f"grid_positions: x has {N} tokens; expected {R} * {C}, for {R} rows and {C} columns")
    y = x.reshape(B, R, C, D).copy()
    y[..., :width] += rows[:, None]
    y[..., -width:] += columns
    return y.reshape(B, N, D), GridPositionsCache((B, R, C, D), width, x.dtype) if keep else None


@op_backward
def grid_positions_backward(dy: Array, cache: GridPositionsCache) -> tuple[Array, Array, Array]:
    """Return ``dx, drows, dcolumns`` for the gradient `dy` (B, R * C, D) of `grid_positions`' result."""
    (B, R, C, D), width, dtype = cache
    expect_gradient("grid_positions", dy, (B, R * C, D), dtype)
    dpositions = dy.reshape(B, R, C, D).sum(axis=0)
    return dy, dpositions[..., :width].sum(axis=1), dpositions[..., -width:].sum(axis=0)
