"""Read the python version of CIFAR's batches, which are pickles, without running any code that a pickle names.

Unpickling calls the functions and classes that the pickle names. Here only the names of NumPy's array constructors are
allowed, and they are resolved to the classes below, which only store their arguments. The array is created afterwards
from the checked arguments, so that NumPy's own constructors are never called with unchecked data.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minivit.data.pickles import Encode, Function, check_opcodes
from minivit.errors import UserError


class _DType:
    """Replaces numpy.dtype; stores the type code."""

    code: object = None

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment, which have no meaning for single bytes."""


class _Array:
    """Replaces numpy.ndarray and its constructor; stores shape, dtype, order and bytes."""

    state: Any = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_numpy(self) -> NDArray[np.uint8]:
        """Return the uint8 array; raise ValueError or TypeError if the state does not describe one."""
        _, shape, dtype, is_fortran, data = self.state
        if not isinstance(dtype, _DType) or dtype.code not in ("u1", b"u1"):
            raise TypeError("an array is not of uint8")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")


class _FromBuffer(Function):
    def __call__(self, data: object, dtype: object, shape: object, order: object, *_: object) -> _Array:
        array = _Array()
        array.state = 1, shape, dtype, order == "F", data
        return array


_ALLOWED: dict[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
}
for _core in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
    _ALLOWED[f"{_core}.multiarray._reconstruct"] = _Array
    _ALLOWED[f"{_core}.numeric._frombuffer"] = _FromBuffer()


class _BatchUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._allowed = _ALLOWED | {"_codecs.encode": Encode(len(data))}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module[:50]}.{name[:50]}; a batch does not need it") from None


def load_batch(data: bytes, label_key: str, where: str) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the pixels (n, 3072) and the labels of a pickled batch.

    Parameters
    ----------
    data : bytes
        The content of the file.
    label_key : str
        "labels" for CIFAR-10, "fine_labels" for CIFAR-100.
    where : str
        The name of the file, for error messages.

    Raises
    ------
    UserError
        The pickle is damaged, is not a batch, or names anything but the constructors of a NumPy array.
    """
    try:
        check_opcodes(data)
        batch = _BatchUnpickler(data).load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        pixels, labels = batch["data"].to_numpy(), batch[label_key]
        if pixels.ndim != 2 or pixels.shape[1] != 3072:
            raise ValueError(f"pixels of shape {pixels.shape}")
        if not isinstance(labels, list) or len(labels) != len(pixels) or not all(map(_is_label, labels)):
            raise ValueError(f"expected a list of {len(pixels)} integers as {label_key!r}")
    except Exception as error:  # the unpickler raises many types of exception on invalid data
        raise UserError(
            f"{where} is not a python batch of CIFAR: {type(error).__name__}: {error}. No code in it was run; "
            "download the file again from its source"
        ) from error
    return pixels, labels


def _is_label(value: object) -> bool:
    return type(value) is int and abs(value) < 2**31
