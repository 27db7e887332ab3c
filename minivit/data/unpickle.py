"""Read the python version of CIFAR's batches, which are pickles, without running any code that a pickle names.

Unpickling calls the functions and classes that the pickle names. Here only the names of NumPy's array constructors are
allowed, and they are resolved to the classes below, which only store their arguments. The array is created afterwards
from the checked arguments, so that NumPy's own constructors are never called with unchecked data.
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


class _Function:
    """Replaces a function; a pickle can set attributes of a function, but not of this."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets attributes of a function")


class _FromBuffer(_Function):
    def __call__(self, data: object, dtype: object, shape: object, order: object, *_: object) -> _Array:
        array = _Array()
        array.state = 1, shape, dtype, order == "F", data
        return array


class _Encode(_Function):
    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError("bytes in an encoding other than latin1")
        return text.encode("latin1")


_ALLOWED: dict[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    "_codecs.encode": _Encode(),  # Python 3 writes bytes this way in the older protocols
}
for _core in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
    _ALLOWED[f"{_core}.multiarray._reconstruct"] = _Array
    _ALLOWED[f"{_core}.numeric._frombuffer"] = _FromBuffer()


_LARGEST_MEMO_INDEX = 10**6  # the largest batch, train of CIFAR-100, uses about 50,000
_MOST_OPCODES = 600_000  # that batch has 200,000, or 500,000 if Python 3 wrote it in an old protocol
_DEEPEST = 100  # levels of nested tuples, lists and dicts; a batch has 5
_ADDING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")


def _check_opcodes(data: bytes) -> None:
    """Refuse what would take the unpickler gigabytes or minutes, or crash it: long and deeply nested pickles.

    The loop follows the depth of each object on the stack. The depth of a list that is changed after it was put into
    the memo is not followed; this is enough, because the recursion that can crash is the hash of a tuple, in which a
    list is an error.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    simple = {name for name, effect in _EFFECTS.items() if effect == (0, 1)} - {*_GETTING, *_PUTTING, "MARK", "DUP"}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):  # it refuses lengths beyond the end
        name = opcode.name
        if count > _MOST_OPCODES:
            raise pickle.UnpicklingError(f"it has more than {_MOST_OPCODES:,} opcodes")
        if name in simple:
            stack.append(0)
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _PUTTING:
            index = len(memo) if name == "MEMOIZE" else int(argument or 0)
            if index > _LARGEST_MEMO_INDEX:
                raise pickle.UnpicklingError(f"its memo index {index} is too large")
            memo[index] = stack[-1]
        elif name in _GETTING:
            stack.append(memo[int(argument or 0)])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        else:
            before, results = _EFFECTS[name]
            start = marks.pop() if before is None else len(stack) - before
            if name in _ADDING and before is None:
                start -= 1  # the container below the mark
            if start < (marks[-1] if marks else 0):
                raise pickle.UnpicklingError("it takes more from its stack than there is")
            depth = 0
            if len(stack) > start:
                inner = stack[start + 1 :] if name in _ADDING else stack[start:]
                depth = 1 + max(inner, default=-1)
                if name in _ADDING:
                    depth = max(depth, stack[start])
            if depth > _DEEPEST:
                raise pickle.UnpicklingError(f"it is nested more than {_DEEPEST} levels deep")
            stack[start:] = [depth] * results


_PUTTING = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GETTING = ("GET", "BINGET", "LONG_BINGET")


def _effect(opcode: pickletools.OpcodeInfo) -> tuple[int | None, int]:
    """Return how many objects an opcode takes from the stack (None: all above the last mark), and how many it puts."""
    takes = None if pickletools.markobject in opcode.stack_before else len(opcode.stack_before)
    return takes, len(opcode.stack_after)


_EFFECTS = {opcode.name: _effect(opcode) for opcode in pickletools.opcodes}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[f"{module}.{name}"]
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
        _check_opcodes(data)
        batch = _BatchUnpickler(io.BytesIO(data), encoding="bytes").load()
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
