"""Reads the python version of CIFAR's batches, which are pickles, and runs nothing that a pickle asks for.

A pickle builds its objects by calling what it names. Here it can name only the constructors of a NumPy array, and what
it gets for those names are the inert classes below, which keep what they are given. The array is made afterwards, from
checked parts, so that not even NumPy's own constructors see a foreign file.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minivit.errors import UserError


class _DType:
    """Stands for numpy.dtype: keeps the type code."""

    code: object = None

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment, which bytes have none of."""


class _Array:
    """Stands for numpy.ndarray and its constructor: keeps shape, dtype, order and bytes."""

    state: Any = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_numpy(self) -> NDArray[np.uint8]:
        """Make the array of uint8; raise ValueError or TypeError where the state is not one."""
        _, shape, dtype, is_fortran, data = self.state
        if not isinstance(dtype, _DType) or dtype.code not in ("u1", b"u1"):
            raise TypeError("an array is not of uint8")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _from_buffer(data: object, dtype: object, shape: object, order: object, *_: object) -> _Array:
    array = _Array()
    array.state = 1, shape, dtype, order == "F", data
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_ADMITTED: dict[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    "_codecs.encode": _encode,  # how Python 3 writes bytes in the older protocols
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _ADMITTED[f"{_core}.multiarray._reconstruct"] = _Array
    _ADMITTED[f"{_core}.numeric._frombuffer"] = _from_buffer


_MOST_OBJECTS = 10**6  # that a pickle may number; the largest real one, CIFAR-100's train, numbers some 50,000


def _refuse_bombs(data: bytes) -> None:
    """Check the lengths and numbers in a pickle, for which the unpickler would allocate gigabytes on faith."""
    for opcode, argument, _ in pickletools.genops(data):  # itself refuses a length beyond the end of the data
        if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > _MOST_OBJECTS:
            raise pickle.UnpicklingError(f"it numbers an object {argument}")


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs") from None


def load_batch(data: bytes, label_key: str, where: str) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the pixels (n, 3072) and the labels of a pickled batch.

    Parameters
    ----------
    data : bytes
        The file's content.
    label_key : str
        "labels" in CIFAR-10, "fine_labels" in CIFAR-100.
    where : str
        The file's name, for the error.

    Raises
    ------
    UserError
        The pickle is damaged, is no batch, or asks for anything but a NumPy array of uint8.
    """
    try:
        _refuse_bombs(data)
        batch = _BatchUnpickler(io.BytesIO(data), encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        pixels, labels = batch["data"].to_numpy(), batch[label_key]
        if pixels.ndim != 2 or pixels.shape[1] != 3072:
            raise ValueError(f"pixels of shape {pixels.shape}")
        if not isinstance(labels, list) or len(labels) != len(pixels) or not all(type(x) is int for x in labels):
            raise ValueError(f"expected a list of {len(pixels)} integers as {label_key!r}")
    except Exception as error:  # foreign bytes make the unpickler raise almost anything
        raise UserError(
            f"{where} is not a python batch of CIFAR: {type(error).__name__}: {error}. Nothing in it was run; "
            "fetch the file again from its source"
        ) from error
    return pixels, labels
