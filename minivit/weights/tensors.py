"""Read safetensors files into NumPy arrays, and write them atomically, with a checksum.

A file (https://github.com/huggingface/safetensors) consists of the length of a JSON header, the header, and the data:
the tensors' bytes, one tensor after another. Files that minivit writes have ``checksum`` in their metadata: BLAKE2b of
the whole file with zeros in its place.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.files import atomic_write, parse_json, read_bytes

# The dtypes that are read: that of their bytes in NumPy, and how these become numbers.
DTYPES: dict[str, tuple[str, Callable[[Array], Array] | None]] = {
    "F64": ("<f8", None),
    "F32": ("<f4", None),
    "F16": ("<f2", None),
    "BF16": ("<u2", lambda bits: from_bfloat16(bits)),
    "F8_E5M2": ("<u1", lambda bits: (bits.astype("<u2") << np.uint16(8)).view("<f2")),  # the upper half of float16
    "F8_E4M3": ("<u1", lambda bits: _e4m3()[bits]),
}

_LARGEST_HEADER = 1 << 22  # bytes
LARGEST = 1 << 48  # numbers in a tensor, and bytes in a file
AXES = 8
_UNKNOWN = "0" * 32  # stands in place of the checksum while it is computed


class _Place(NamedTuple):
    """Where a tensor is in a file: its bytes from `begin` to `end`, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Read all tensors of a safetensors file, and verify its checksum if it has one.

    Returns
    -------
    tensors : dict
        Arrays by name, of the dtypes in the file. Those that NumPy lacks are converted exactly: bfloat16 and the
        float8 E4M3 to float32, the float8 E5M2 to float16.
    about : dict
        The metadata of the file, strings by name.

    Raises
    ------
    UserError
        The file is missing, truncated, damaged, not a safetensors file, or holds tensors that are not floating-point.
    """
    places, about = _read_header(path)
    content = read_bytes(path)
    verify(path, content, about)
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, place in places.items():
        if place.dtype not in DTYPES:
            raise UserError(f"{path}: {name} is {place.dtype}; expected one of {', '.join(DTYPES)}")
        stored, convert = DTYPES[place.dtype]
        if start + place.end > len(content):  # another process has cut the file
            raise _incomplete(path, f"{name} is cut off")
        value = np.frombuffer(content, stored, math.prod(place.shape), start + place.begin).reshape(place.shape)
        tensors[name] = value if convert is None else convert(value)
    return tensors, {name: text for name, text in about.items() if name != "checksum"}


def read_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a safetensors file, of any dtype, without reading the tensors.

    Raises
    ------
    UserError
        The file is missing, truncated or not a safetensors file, or its size is not that of its tensors.
    """
    return {name: place.shape for name, place in _read_header(path)[0].items()}


def read_about(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of a safetensors file without reading its tensors, which are not verified.

    Raises
    ------
    UserError
        The file is missing, truncated or not a safetensors file.
    """
    return _read_header(path)[1]


def _read_header(path: str | os.PathLike[str]) -> tuple[dict[str, _Place], dict[str, str]]:
    """Return the places of the tensors, in the order of their bytes, which fill the file, and the metadata."""
    header, size = _parse_header(path)
    about = header.pop("__metadata__", None) or {}
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        raise _incomplete(path, "its metadata are not strings")
    places = sorted(((name, _place(path, name, entry)) for name, entry in header.items()), key=lambda item: item[1][2:])
    end = 0
    for name, place in places:
        if place.begin != end:
            what = "overlaps another tensor" if place.begin < end else "is not where the tensor before it ends"
            raise _incomplete(path, f"{name!r:.40} {what}")
        end = place.end
    if end != size:
        raise _incomplete(path, f"{size:,} bytes follow its header, which describes {end:,}")
    return dict(places), dict(about)


def _place(path: str | os.PathLike[str], name: str, entry: Any) -> _Place:
    try:
        place = _Place(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
        sizes = (*place.shape, place.begin, place.end, place.end - place.begin)
        right = isinstance(place.dtype, str) and all(type(size) is int and 0 <= size < LARGEST for size in sizes)
    except (TypeError, KeyError, ValueError) as error:
        raise _incomplete(path, f"its header does not describe {name!r:.40}") from error
    numbers = math.prod(max(1, length) for length in place.shape) if right and len(place.shape) <= AXES else LARGEST
    if right and place.dtype in DTYPES:
        stored = np.dtype(DTYPES[place.dtype][0]).itemsize
        right = math.prod(place.shape) * stored == place.end - place.begin
    if not right or numbers >= LARGEST:
        raise _incomplete(path, f"its header describes {name!r:.40} wrongly")
    return place


def _parse_header(path: str | os.PathLike[str]) -> tuple[dict[str, Any], int]:
    """Return the JSON header of a safetensors file, and the number of bytes after it."""
    if not (file_path := Path(path)).is_file():
        read_bytes(path, 0)  # says what is wrong
    try:
        with file_path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size - 8 - length
            if size < 0:
                raise _incomplete(path, "it ends within its header")
            if length > _LARGEST_HEADER:
                what = f"has a header of {length:,} bytes, and at most {_LARGEST_HEADER:,} are read"
                raise UserError(f"{path} {what}: it is another kind of file, or holds too much beside its tensors")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return parse_json(text, "its header"), size
    except UserError as error:
        raise _incomplete(path, error) from error


def verify(path: str | os.PathLike[str], content: bytes, about: Mapping[str, str]) -> None:
    """Raise UserError if the content is not that of the checksum in its metadata, if minivit wrote it.

    Foreign files have no checksum, or one that is written in another way.
    """
    if "checksum" not in about:
        return
    start = content.find(_field(about["checksum"]))
    if start < 0 and b'"checksum":"' in content[8 : 8 + int.from_bytes(content[:8], "little")]:
        return  # the compact header of another program
    zeros = _field(_UNKNOWN)
    digest = hashlib.blake2b(content[: max(start, 0)] + zeros, digest_size=16)
    digest.update(memoryview(content)[start + len(zeros) :])
    if start < 0 or digest.hexdigest() != about["checksum"]:
        raise UserError(f"{path} was changed or damaged since minivit wrote it: put the original back")


def _field(checksum: str) -> bytes:
    return f'"checksum": "{checksum}"'.encode()


def _incomplete(path: str | os.PathLike[str], error: object) -> UserError:
    return UserError(f"{path} is not a complete safetensors file ({error}): it is truncated or another kind of file")


def from_bfloat16(bits: Array) -> Array:
    """Return the numbers in float32 whose bfloat16 is given as uint16: it is the upper half of float32."""
    widened: Array = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return widened


def _e4m3() -> Array:
    """Return the number for each byte of the float8 E4M3: four bits of exponent, with bias 7, three of mantissa."""
    bits = np.arange(256)
    exponent, mantissa = (bits >> 3) & 15, bits & 7
    value = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    value[(bits & 127) == 127] = np.nan
    return np.where(bits > 127, -value, value).astype(np.float32)


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    about: Mapping[str, str],
    most_header: int = _LARGEST_HEADER,
) -> None:
    """Write host arrays and metadata to a safetensors file, atomically; its header has at most `most_header` bytes.

    Raises
    ------
    RunError
        The file cannot be written; an existing file is not changed.
    UserError
        The metadata are too long to be read again.
    """
    from safetensors.numpy import save

    named = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    content = save(named, metadata={**about, "checksum": _UNKNOWN})
    start = 8 + int.from_bytes(content[:8], "little")
    # The library writes the metadata in an arbitrary order; sort it, so that equal models give equal files.
    header = json.dumps(json.loads(content[8:start]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > most_header:
        what = f"would have a header of {len(header):,} bytes, and at most {most_header:,} are read"
        raise UserError(f"{os.fspath(path)} {what}; shorten its metadata")
    header = len(header).to_bytes(8, "little") + header
    digest = hashlib.blake2b(header, digest_size=16)
    digest.update(memoryview(content)[start:])
    # In a text of the metadata these quotation marks would be escaped: the field is found, and nothing else.
    header = header.replace(_field(_UNKNOWN), _field(digest.hexdigest()), 1)
    atomic_write(path, lambda file: file.write(header) + file.write(memoryview(content)[start:]))
