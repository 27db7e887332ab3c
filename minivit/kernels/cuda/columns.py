"""Sums over the rows of a matrix, which are the gradients of biases.

Each block adds some of the rows; then the sums of the blocks are added. The order is fixed, so a repeated call gives
the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

from minivit.arrays import Array, namespace
from minivit.kernels.cuda.runtime import MAX_BLOCKS, TALL, WARP, acc_dtype, blocks, launch, pack

_TALLER = 32  # warps of a block that adds the sums of blocks
_MAX_BLOCKS = 1024  # blocks that sum rows, about 8 for each multiprocessor of an H100 or H200


class Grid(NamedTuple):
    """The grid of kernels in which each lane has fixed columns."""

    across: int
    down: int

    @property
    def block(self) -> tuple[int, int]:
        """The lanes and warps of a block."""
        return WARP, TALL


def grid_of(rows: int, columns: int, dtype: object, together: int | None = None, sums: bool = False) -> Grid:
    """Return the grid for a matrix.

    Parameters
    ----------
    rows, columns : int
        The shape of the matrix.
    dtype : dtype
        The dtype of the matrix.
    together : int, optional
        How many columns are contiguous in every array of the kernel; all by default.
    sums : bool
        Whether each block sums its rows; then there are fewer blocks.
    """
    width = pack(dtype) if (together or columns) % pack(dtype) == 0 else 1
    across = blocks(columns, WARP * width)
    most = max(1, _MAX_BLOCKS // across) if sums else MAX_BLOCKS
    return Grid(across, min(blocks(rows, TALL), most))


def column_sums(x: Array, out: Array, add: bool = False) -> None:
    """Set `out` (columns,), of `acc_dtype`, to the sums of `x` (rows, columns) over the rows, or add them."""
    rows, columns = x.shape
    grid = grid_of(rows, columns, x.dtype, sums=True)
    partial = namespace(x).empty((grid.down, columns), dtype=acc_dtype(x.dtype))
    launch("columns", "column_sums", x, grid, grid.block, x, partial, rows, columns)
    column_totals(partial, out, add)


def column_totals(partial: Array, out: Array, add: bool = False) -> None:
    """Set `out` (columns,) to the sums of `partial` (blocks, columns) over the blocks, or add them.

    The rows of `partial` may have any stride.
    """
    count, columns = partial.shape
    stride = partial.strides[0] // partial.itemsize
    launch("columns", "column_totals", partial, (blocks(columns, WARP),), (WARP, _TALLER), partial, out, count, columns,
           stride, int(add))  # fmt: skip
