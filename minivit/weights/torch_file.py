"""Read PyTorch's files .pt, .pth and .bin without PyTorch: a zip archive of a pickle and the bytes of each storage.

A tensor in the pickle names its storage, an entry of the archive, and its place there: offset, shape and strides. No
code that the pickle names is run: the names that state dicts need are resolved to the classes and functions below,
which only store their arguments, and any other name is refused. Shapes are checked before memory is taken.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array
from minivit.data.pickles import Encode, Function, check_opcodes
from minivit.errors import UserError, counted
from minivit.weights.archive import opened_archive
from minivit.weights.tensors import AXES, DTYPES, LARGEST

# The dictionaries in a checkpoint that may be the state dict, in the order in which they are tried.
NESTINGS = ("state_dict", "model_state_dict", "model", "module", "net")
_PICKLE = "data.pkl"
_LARGEST_PICKLE = 1 << 26  # bytes
_MOST_OPCODES = 300_000  # a tensor takes some 25


class _Dtype(NamedTuple):
    """Replaces the type of a storage, or a dtype: its name, in safetensors if it has one, and the size of a number."""

    name: str
    bytes: int


class _Storage(NamedTuple):
    key: str
    dtype: _Dtype
    numbers: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Dict(dict[Any, Any]):
    """Replaces OrderedDict. Its attributes, the versions of modules, are ignored.

    PyTorch pickles an empty OrderedDict and then adds the items. Arguments of the constructor are refused: nested
    OrderedDicts of that kind could multiply the items without limit.
    """

    def __init__(self, *others: object) -> None:
        if others:
            raise pickle.UnpicklingError("an OrderedDict is made of another object")

    def __setstate__(self, state: object) -> None:
        pass


class _Rebuild(Function):
    """Replaces the functions that make a tensor of a storage: with storages of bytes, an argument is the dtype."""

    def __call__(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *others: Any
    ) -> _Tensor:
        dtype = next((value for value in others if isinstance(value, _Dtype)), None)
        if dtype is not None and isinstance(storage, _Storage):
            storage = storage._replace(dtype=dtype, numbers=storage.numbers // dtype.bytes)
        return _Tensor(storage, offset, shape, strides)


class _First(Function):
    """Replaces the functions that make a parameter of a tensor, or a shape of a tuple: returns the first argument."""

    def __call__(self, value: Any, *_: object) -> Any:
        return value


_STORAGES = {
    "Double": _Dtype("F64", 8),
    "Float": _Dtype("F32", 4),
    "Half": _Dtype("F16", 2),
    "BFloat16": _Dtype("BF16", 2),
    **{name: _Dtype(name.lower(), size) for name, size in (("Long", 8), ("Int", 4), ("Short", 2), ("Char", 1))},
    **{name: _Dtype(name.lower(), size) for name, size in (("Byte", 1), ("Bool", 1))},
}
_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": _Dict,
    "torch.Size": _First(),
    "torch._utils._rebuild_tensor": _Rebuild(),
    "torch._utils._rebuild_tensor_v2": _Rebuild(),
    "torch._utils._rebuild_tensor_v3": _Rebuild(),
    "torch._utils._rebuild_parameter": _First(),
    "torch._utils._rebuild_parameter_with_state": _First(),
    "torch.storage.UntypedStorage": _Dtype("bytes", 1),
    "torch.float8_e4m3fn": _Dtype("F8_E4M3", 1),
    "torch.float8_e5m2": _Dtype("F8_E5M2", 1),
    **{f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()},
}


_OTHER_TENSORS = {
    "_rebuild_sparse": "sparse tensors",
    "_rebuild_qtensor": "quantised tensors",
    "_rebuild_meta_tensor": "tensors without values",
    "torch.ComplexFloatStorage": "complex tensors",
    "torch.ComplexDoubleStorage": "complex tensors",
}
# Tensors that share storages, as tied weights do, have at most _MOST_SHARING times their bytes, or _SMALL bytes more.
_MOST_SHARING, _SMALL = 4, 1 << 20
_DEEPEST = 3  # levels of a checkpoint above its state dict


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._allowed = _ALLOWED | {"_codecs.encode": Encode(len(data))}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[f"{module}.{name}"]
        except KeyError:
            raise _NotAllowedError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, numbers = pid
        if kind != "storage" or not isinstance(dtype, _Dtype) or not isinstance(key, str) or not _is_size(numbers):
            raise pickle.UnpicklingError("it refers to something that is not a storage")
        return _Storage(key, dtype, numbers)


class _NotAllowedError(Exception):
    """The pickle asks for a name that is not allowed."""


def read_torch_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a state dict by name, without reading them.

    The state dict is the object in the file, or that under one of `NESTINGS` in it.

    Raises
    ------
    UserError
        The file is truncated, damaged or holds no state dict, or names anything but tensors, numbers, strings and plain
        containers; nothing that it names is run.
    """
    with _opened(path) as (_, _, tensors):
        return {name: tensor.shape for name, tensor in tensors.items()}


def read_torch(path: Path) -> dict[str, Array]:
    """Return the tensors of a state dict by name; bfloat16 and float8 are converted exactly, as in safetensors.

    Raises
    ------
    UserError
        As in `read_torch_shapes`, or a tensor does not hold floating-point numbers.
    """
    with _opened(path) as (archive, folder, tensors):
        byte_order = _byte_order(archive, folder)
        storages: dict[str, bytes] = {}
        arrays = {}
        for name, tensor in tensors.items():
            key, dtype, _ = tensor.storage
            if dtype.name not in DTYPES:
                raise UserError(f"{path}: {name!r:.60} is of {dtype.name}; expected floating-point numbers")
            if key not in storages:
                storages[key] = archive.read(f"{folder}data/{key}")
            stored, convert = DTYPES[dtype.name]
            numbers = np.frombuffer(storages[key], np.dtype(stored).newbyteorder(byte_order))
            strides = tuple(stride * dtype.bytes for stride in tensor.strides)
            view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides)
            value = np.ascontiguousarray(view, np.dtype(stored))
            arrays[name] = (value if convert is None else convert(value)).reshape(tensor.shape)
    return arrays


@contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, str, dict[str, _Tensor]]]:
    """Open the archive; yield it, the folder in it that holds everything, and the tensors, whose places are checked."""
    with opened_archive(path, ".pt") as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.rpartition("/")[2] == _PICKLE]
        if len(pickles) != 1:
            raise ValueError(f"it holds {len(pickles)} files {_PICKLE}")
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise ValueError("its entries are compressed")
        if sum(info.file_size for info in entries.values()) > path.stat().st_size:
            raise ValueError("its entries overlap")
        if entries[pickles[0]].file_size > _LARGEST_PICKLE:
            raise UserError(f"{path} holds a pickle of {entries[pickles[0]].file_size:,} bytes: it is not a model")
        folder = pickles[0].removesuffix(_PICKLE)
        tensors = _state_dict(path, _content(path, archive.read(pickles[0])))
        for name, tensor in tensors.items():
            _check_place(name, tensor, entries.get(f"{folder}data/{getattr(tensor.storage, 'key', None)}"))
        _check_sharing(path, tensors)
        yield archive, folder, tensors


def _content(path: Path, data: bytes) -> Any:
    """Return the object of a pickle, of the classes above."""
    try:
        check_opcodes(data, _MOST_OPCODES)
        return _Unpickler(data).load()
    except _NotAllowedError as error:
        name = str(error)
        if kind := next((kind for part, kind in _OTHER_TENSORS.items() if part in name), None):
            raise UserError(f"{path} holds {kind}, which no model of minivit has; save dense, real ones") from error
        raise UserError(
            f"{path} asks for {name!r:.80}, which could run any program, so it is not read: nothing was run. "
            "Save a state dict alone, in Python with what made the file: torch.save(model.state_dict(), 'model.pt')"
        ) from error
    except Exception as error:  # the unpickler raises many types of exception on invalid data
        words = " ".join(str(error).split())
        raise ValueError(f"its pickle: {type(error).__name__}: {words:.80}") from error


def _state_dict(path: Path, content: Any) -> dict[str, _Tensor]:
    found = _with_tensors(content, _DEEPEST)
    if found is not None:
        others = [
            f"{name!r:.40}" for name, value in found.items() if not (isinstance(value, _Tensor) and type(name) is str)
        ]
        if not others:
            return found
        what = counted(others, "object that is not a tensor", "objects that are not tensors")
        raise UserError(f"{path} holds {what} beside its tensors")
    held = [f"{name!r:.40}" for name in content] if isinstance(content, dict) else []
    what = counted(held, "object") if held else f"an object of type {type(content).__name__.strip('_').lower()}"
    raise UserError(
        f"{path} holds {what}; expected a state dict, which has a tensor for each name, or one called "
        f"{', '.join(NESTINGS)}. Save it alone with PyTorch"
    )


def _with_tensors(content: Any, depth: int) -> dict[Any, Any] | None:
    """Return the first dict with tensors under `NESTINGS` in `content`, else `content` if it is one, else None."""
    if not isinstance(content, dict):
        return None
    for name in NESTINGS if depth else ():
        if (found := _with_tensors(content.get(name), depth - 1)) is not None:
            return found
    return content if any(isinstance(value, _Tensor) for value in content.values()) else None


def _check_place(name: str, tensor: _Tensor, entry: zipfile.ZipInfo | None) -> None:
    """Raise ValueError unless the tensor lies within its storage, and that is an entry of the archive."""
    storage, offset, shape, strides = tensor
    if not isinstance(storage, _Storage) or entry is None or entry.file_size < storage.numbers * storage.dtype.bytes:
        raise ValueError(f"the storage of {name!r:.40} is missing or too short")
    both = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= AXES
    if not both or not all(map(_is_size, (offset, *shape, *strides))):
        raise ValueError(f"it describes {name!r:.40} wrongly")
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    numbers = math.prod(shape)
    if numbers > storage.numbers or (numbers and last >= storage.numbers):
        raise ValueError(f"{name!r:.40} is not within its storage")
    if math.prod(max(1, length) for length in shape) >= LARGEST:
        raise ValueError(f"it describes {name!r:.40} wrongly")


def _check_sharing(path: Path, tensors: Mapping[str, _Tensor]) -> None:
    """Refuse tensors that share storages so often that a small file becomes a large model."""
    stored = sum({storage.key: storage.numbers * storage.dtype.bytes for storage, *_ in tensors.values()}.values())
    total = sum(math.prod(tensor.shape) * tensor.storage.dtype.bytes for tensor in tensors.values())
    if total > _MOST_SHARING * stored + _SMALL:
        raise UserError(
            f"{path} has {len(tensors):,} tensors of {total:,} bytes that share {stored:,} bytes: it is not a model"
        )


def _byte_order(archive: zipfile.ZipFile, folder: str) -> Any:
    name = f"{folder}byteorder"
    written = archive.read(name) if name in archive.namelist() else b"little"
    if written not in (b"little", b"big"):
        raise ValueError(f"a byte order {written!r:.40}")
    return "<" if written == b"little" else ">"


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST
