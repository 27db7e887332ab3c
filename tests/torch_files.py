"""Files as PyTorch writes them, .pt and .pth, made without PyTorch: a pickle by its opcodes, in a zip archive."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array

_STORAGES = {"float64": "Double", "float32": "Float", "float16": "Half", "int64": "Long"}


class Name(NamedTuple):
    """What a pickle asks for by its name, such as a function."""

    module: str
    name: str


class Call(NamedTuple):
    """A call of a function with arguments, which the reader of a pickle makes."""

    function: Any
    arguments: tuple[Any, ...]


class Built(NamedTuple):
    """An object of which the reader of a pickle sets the state."""

    target: Any
    state: Any


class Reference(NamedTuple):
    """A reference to something outside of the pickle, such as a storage."""

    value: Any


class Opcodes(NamedTuple):
    """Opcodes as they are."""

    content: bytes


def pickled(value: Any) -> bytes:
    """Return a pickle of plain values and of those above, in protocol 2, as PyTorch writes it."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    match value:
        case Opcodes(content):
            return content
        case Name(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return _opcodes(function) + _opcodes(tuple(arguments)) + b"R"
        case Built(target, state):
            return _opcodes(target) + _opcodes(state) + b"b"
        case Reference(inner):
            return _opcodes(inner) + b"Q"
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(digits)]) + digits
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(_opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_opcodes, value)) + b"e"
        case dict():
            return b"}(" + b"".join(_opcodes(item) for pair in value.items() for item in pair) + b"u"
    raise TypeError(type(value))


def storage(key: str, numbers: Any, kind: str = "FloatStorage", module: str = "torch") -> Reference:
    """Return a reference to the entry data/KEY of the archive."""
    return Reference(("storage", Name(module, kind), key, "cpu", numbers))


def rebuilt(
    source: Any, shape: Any, strides: Any, offset: Any = 0, version: str = "_v2", others: tuple[Any, ...] = ()
) -> Call:
    """Return the call that makes a tensor of a storage."""
    function = Name("torch._utils", f"_rebuild_tensor{version}")
    return Call(
        function, (source, offset, shape, strides, False, Call(Name("collections", "OrderedDict"), ()), *others)
    )


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a tensor of this shape, in numbers."""
    return tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))


def state_of(tensors: Mapping[str, Array]) -> tuple[dict[str, Call], dict[str, bytes]]:
    """Return a state dict for `pickled`, and the bytes of its storages by key."""
    state, contents = {}, {}
    for number, (name, value) in enumerate(tensors.items()):
        key = str(number)
        source = storage(key, value.size, f"{_STORAGES[str(value.dtype)]}Storage")
        state[name] = rebuilt(source, value.shape, contiguous(value.shape))
        contents[key] = np.ascontiguousarray(value).tobytes()
    return state, contents


def torch_archive(content: bytes, storages: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive of a pickle and storages by key."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("model/data.pkl", content)
        archive.writestr("model/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"model/data/{key}", data)
        archive.writestr("model/version", "3\n")
    return file.getvalue()


def write_torch(path: Path, tensors: Mapping[str, Array], within: str = "") -> Path:
    """Write the state dict of `tensors` as torch.save does; `within` names the keys around it, such as "model"."""
    state, storages = state_of(tensors)
    # A dict with an attribute, to which the tensors are added.
    ordered = Built(Call(Name("collections", "OrderedDict"), ()), {"_metadata": {"": {"version": 1}}})
    items = b"".join(_opcodes(item) for pair in state.items() for item in pair)
    content: Any = Opcodes(_opcodes(ordered) + b"(" + items + b"u")
    for key in reversed(within.split(".") if within else []):
        content = {"epoch": 3, "args": {"lr": 0.5, "name": "x"}, key: content}
    path.write_bytes(torch_archive(pickled(content), storages))
    return path
