"""How tensors of other programs become parameters, and back: an `Entry` for each parameter.

An entry converts values, and also shapes: with `hollow` arrays, which occupy no memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from minivit.arrays import Array

Tensors = Mapping[str, Array]  # by name


class Entry(NamedTuple):
    """A parameter of ours, the tensors of another program that hold it, and the conversion both ways."""

    name: str
    theirs: tuple[str, ...]
    join: Callable[[list[Array]], Array]
    split: Callable[[Array], list[Array]]


def hollow(shape: Sequence[int]) -> Array:
    """Return an array of this shape that occupies no memory: every element is the same zero."""
    return np.broadcast_to(np.float32(0.0), tuple(shape))


def renamed(tensors: Tensors, rename: Callable[[str], str]) -> dict[str, Array]:
    """Return the tensors under new names; those that would get the same name keep theirs, and are left over."""
    names = {name: rename(name) for name in tensors}
    taken = Counter(names.values())
    return {names[name] if taken[names[name]] == 1 else name: value for name, value in tensors.items()}


def same(name: str, theirs: str | None = None) -> Entry:
    """Return the entry of a tensor that is equal in both."""
    return Entry(name, (theirs or name,), lambda values: values[0], lambda value: [value])


def transposed(name: str, theirs: str | None = None) -> Entry:
    """Return the entry of a weight (in, out) that is (out, in) there, as in PyTorch."""
    return Entry(name, (theirs or name,), lambda values: values[0].T, lambda value: [value.T])


def reshaped(name: str, theirs: str, ours: tuple[int, ...], shape: tuple[int, ...]) -> Entry:
    """Return the entry of a tensor that is flattened otherwise: `ours` here, `shape` there."""
    return Entry(name, (theirs,), lambda values: values[0].reshape(ours), lambda value: [value.reshape(shape)])


def convolution(name: str, theirs: str, patch: tuple[int, int], channels: int) -> Entry:
    """Return the entry of a weight (P Q C, D) that is PyTorch's weight (D, C, P, Q) of a convolution there."""
    P, Q = patch

    def join(values: list[Array]) -> Array:
        return values[0].transpose(2, 3, 1, 0).reshape(P * Q * channels, -1)

    return Entry(name, (theirs,), join, lambda value: [value.reshape(P, Q, channels, -1).transpose(3, 2, 0, 1)])


def linear(ours: str, theirs: str) -> dict[str, Entry]:
    """Return the entries of a linear layer with PyTorch's names and shapes, by our names."""
    weight, bias = f"{ours}.weight", f"{ours}.bias"
    return {weight: transposed(weight, f"{theirs}.weight"), bias: same(bias, f"{theirs}.bias")}


def norm(ours: str, theirs: str) -> dict[str, Entry]:
    """Return the entries of a layer norm with PyTorch's names, by our names."""
    return {f"{ours}.{part}": same(f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")}


def side_by_side(name: str, parts: Sequence[Entry]) -> Entry:
    """Return the entry of a parameter whose last axis consists of equal parts, such as queries, keys and values."""
    ends = np.cumsum([0, *(len(part.theirs) for part in parts)])

    def join(values: list[Array]) -> Array:
        joined = [part.join(values[begin:end]) for part, begin, end in zip(parts, ends, ends[1:], strict=False)]
        return np.concatenate(joined, axis=-1)

    def split(value: Array) -> list[Array]:
        cut = np.split(value, len(parts), axis=-1)
        return [theirs for part, piece in zip(parts, cut, strict=True) for theirs in part.split(piece)]

    return Entry(name, tuple(theirs for part in parts for theirs in part.theirs), join, split)


def linear_side_by_side(ours: str, theirs: Sequence[str]) -> dict[str, Entry]:
    """Return the entries of a linear layer whose results are those of several layers there, joined."""
    parts = [linear(ours, name) for name in theirs]
    return {name: side_by_side(name, [part[name] for part in parts]) for name in parts[0]}


def exported(state: Tensors, entries: Sequence[Entry]) -> dict[str, Array]:
    """Return the parameters, or their gradients, as the tensors of the layout, by its names."""
    tensors: dict[str, Array] = {}
    for entry in entries:
        tensors |= zip(entry.theirs, entry.split(state[entry.name]), strict=True)
    return tensors
