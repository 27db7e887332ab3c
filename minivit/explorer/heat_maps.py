"""Heat maps: arrays reduced to a few cells of 8 bits with their scale, and the table of all maps of a page."""

from __future__ import annotations

import base64
import re
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np

from minivit.arrays import Array
from minivit.errors import count_of
from minivit.tracing.measures import Floats, host

MOST_CELLS = 64  # rows, and columns, of a map


class HeatMap(TypedDict):
    """One map as the page has it; ``value = low + byte / 255 * (high - low)``. schema.json describes the fields.

    With `row_high` each row has a scale of its own, of the same sign: high is ``row_high[row]``, low is 0 or -high.
    """

    rows: int
    cols: int
    low: float
    high: float
    data: str
    of: list[int]
    how: str
    row_high: NotRequired[list[float]]


class Plane(NamedTuple):
    """An array as a picture: its numbers in rows and columns, and what these are."""

    values: Floats
    rows: str
    columns: str
    over: str = ""  # "mean over 3 heads", if an axis is not shown


class NoRoomError(Exception):
    """The maps of a page are more than it may hold."""


class HeatMaps:
    """The table of maps. Maps that are equal in everything are in it once.

    Parameters
    ----------
    most : int
        The largest number of rows, and of columns, of a map that `add` makes.
    room : int or None
        The largest number of characters of all data; beyond it `add` and `add_exactly` raise NoRoomError.

    Attributes
    ----------
    table : list of HeatMap
        The maps; everything else refers to them by index.
    size : int
        The characters of their data.
    """

    def __init__(self, most: int = MOST_CELLS, room: int | None = None) -> None:
        self.most, self.room = most, room
        self.table: list[HeatMap] = []
        self.size = 0
        self._index: dict[tuple[object, ...], int] = {}

    def add(self, plane: Plane, shape: tuple[int, ...]) -> int | None:
        """Return the index of the map of a plane of an array of `shape`; None if a number in it is not finite."""
        values = plane.values
        if not values.size or not np.isfinite(values).all():
            return None
        factors = [-(-length // self.most) for length in values.shape]
        cells = _means(_means(values, factors[0], 0), factors[1], 1)
        each = f"cells are means of {factors[0]} x {factors[1]} numbers" if max(factors) > 1 else "a cell is a number"
        words = [f"{plane.rows} by {plane.columns}", *([plane.over] if plane.over else []), each]
        return self._put(cells, shape, "; ".join(words))

    def add_exactly(self, values: Array, how: str) -> int | None:
        """Return the index of the map that has a cell for each number of `values` (rows, columns), or None as `add`.

        Each row has its own scale, for rows may differ by much: of the gradient of attention weights, that of the class
        token is often a hundred times larger than those of patches.
        """
        cells = host(values)
        if not np.isfinite(cells).all():
            return None
        row_high = np.abs(cells).max(axis=1)
        return self._put(cells, cells.shape, how, row_high)

    def _put(self, cells: Floats, shape: tuple[int, ...], how: str, row_high: Floats | None = None) -> int:
        low, high = scale(cells)
        rows, cols = cells.shape
        if row_high is None:
            data = in_bytes(cells, low, high)
        else:
            of_row = np.divide(cells, row_high[:, None], out=np.zeros_like(cells), where=row_high[:, None] > 0)
            data = in_bytes(of_row, -1.0 if low < 0 else 0.0, 1.0)
        row_scales = None if row_high is None else tuple(row_high.tolist())
        key = (rows, cols, low, high, row_scales, data, shape, how)
        if key not in self._index:
            self._index[key] = len(self.table)
            text = base64.b64encode(data).decode("ascii")
            self.size += len(text)
            if self.room is not None and self.size > self.room:
                raise NoRoomError
            heat_map: HeatMap = {
                "rows": rows,
                "cols": cols,
                "low": low,
                "high": high,
                "data": text,
                "of": list(shape),
                "how": how,
            }
            if row_scales is not None:
                heat_map["row_high"] = list(row_scales)
            self.table.append(heat_map)
        return self._index[key]


def scale(cells: Floats) -> tuple[float, float]:
    """Return the ends of the scale: from 0 if no cell is negative, else symmetric so that zero is the middle."""
    largest = float(np.abs(cells).max())
    return (-largest if cells.min() < 0 else 0.0), largest


def in_bytes(cells: Floats, low: float, high: float) -> bytes:
    """Return the cells, row by row, as whole numbers of 8 bits from `low` to `high`."""
    if low == high:
        return bytes(cells.size)
    share = (cells / 2 - low / 2) / (high / 2 - low / 2)  # halves: high - low may be too large for a float
    return np.rint(255 * share).astype(np.uint8).tobytes()


def plane_of(array: Array, quantity: str = "", kind: str = "", layer: str = "") -> Plane:
    """Return an array of a layer or an op as a picture.

    Parameters
    ----------
    array : Array
        Of a batch of one, or a parameter: (1, N, D), (1, H, N, K), (1, height, width, C), (D, F), (D,), ...
    quantity : str
        The name that the record has for it, such as "q" or "dweights".
    kind : str
        The kind of the layer or op.
    layer : str
        Its name.
    """
    values = host(array)
    is_parameter = values.ndim < 3 and not (values.ndim == 2 and len(values) == 1)
    if values.ndim > 1 and len(values) == 1:
        values = values[0]
    if values.ndim == 0:
        return Plane(values.reshape(1, 1), "one number", "one number")
    if values.ndim == 1:
        return Plane(values[None], "one row", "features")
    if values.ndim == 2 and is_parameter and kind == "GridPositions":
        return Plane(values, f"{quantity.removeprefix('d')} of the grid", "features")
    if values.ndim == 2:
        return Plane(values, *(("inputs", "outputs") if is_parameter else ("tokens", "features")))
    if values.ndim == 3 and quantity.removeprefix("d") in ("q", "k", "v"):
        return Plane(values.swapaxes(0, 1).reshape(values.shape[1], -1), "tokens", "features of all heads")
    if values.ndim == 3 and (quantity.removeprefix("d") in ("scores", "weights") or kind == "softmax"):
        return Plane(values.mean(axis=0), "queries", "keys", f"mean over {count_of(len(values), 'head')}")
    if values.ndim == 3 and re.search(r"\.[qk]_norm(\.|$)", layer):
        return Plane(values.reshape(len(values), -1), "tokens", "features of all heads")
    if values.ndim == 3:
        over = f"mean over {count_of(values.shape[2], 'channel')}"
        return Plane(values.mean(axis=2), "rows of the image", "columns", over)
    return Plane(values.reshape(len(values), -1), "first axis", "all others")


def _means(values: Floats, factor: int, axis: int) -> Floats:
    """Return the means of `factor` neighbours along an axis; the last of them may be of fewer."""
    if factor == 1:
        return values
    length = values.shape[axis]
    starts = np.arange(0, length, factor)
    counts = np.minimum(factor, length - starts)
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    return np.add.reduceat(values / counts.repeat(counts).reshape(shape), starts, axis=axis)
