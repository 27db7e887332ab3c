"""Read safetensors files into NumPy arrays, and write them atomically.

A file (https://github.com/huggingface/safetensors) consists of the length of a JSON header, the header, and the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import numpy as np

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.files import atomic_write, read_bytes

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Read all tensors of a safetensors file.

    Returns
    -------
    tensors : dict
        Arrays by name, of the dtypes in the file; bfloat16, which NumPy lacks, is converted to float32 exactly.
    about : dict
        The metadata of the file, strings by name.

    Raises
    ------
    UserError
        The file is missing, truncated, not a safetensors file, or holds tensors that are not floating-point.
    """
    from safetensors import SafetensorError, deserialize

    content = read_bytes(path)
    try:
        entries = deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise _incomplete(path, error) from error
    # The header is valid, because deserialize has accepted it.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    del content
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise UserError(f"{path}: {name} is {entry['dtype']}; expected one of {', '.join(_DTYPES)}")
        value = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = _from_bfloat16(value) if entry["dtype"] == "BF16" else value
    return tensors, header.get("__metadata__") or {}


def read_about(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of a safetensors file without reading its tensors.

    Raises
    ------
    UserError
        The file is missing, truncated or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise _incomplete(path, error) from error


def _incomplete(path: str | os.PathLike[str], error: Exception) -> UserError:
    return UserError(f"{path} is not a complete safetensors file ({error}): it is truncated or another kind of file")


def _from_bfloat16(bits: Array) -> Array:
    # bfloat16 is the upper half of float32.
    widened: Array = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return widened


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Array], about: Mapping[str, str]) -> None:
    """Write host arrays and metadata to a safetensors file, atomically.

    Raises
    ------
    RunError
        The file cannot be written; an existing file is not changed.
    """
    from safetensors.numpy import save

    content = save({name: np.ascontiguousarray(value) for name, value in tensors.items()}, metadata=dict(about))
    start = 8 + int.from_bytes(content[:8], "little")
    # The library writes the metadata in an arbitrary order; sort it, so that equal models give equal files.
    header = json.dumps(json.loads(content[8:start]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    atomic_write(path, lambda file: file.write(len(header).to_bytes(8, "little") + header + content[start:]))
