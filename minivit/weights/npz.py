"""Read and write .npz files: zip archives of NumPy arrays, in which Google publishes its Vision Transformers.

A file is checked before memory is taken: the sizes of its arrays come from their headers, which must agree with the
archive's directory, and object arrays (pickles) are refused. bfloat16, which NumPy lacks, is stored as two raw bytes.
Files that minivit writes have its configuration as the comment of the archive, which other programs ignore.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.files import atomic_write
from minivit.weights.archive import COMMENT, opened_archive
from minivit.weights.tensors import from_bfloat16

_AXES = 8
_RATIO, _SMALL = 20, 1 << 26  # arrays that unpack to more than _SMALL bytes are at most _RATIO times their archive


class _Member(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int  # of the numbers, after the header


def read_npz_shapes(path: Path) -> tuple[dict[str, tuple[int, ...]], str]:
    """Return the shapes of the arrays of an .npz file by name, without reading them, and the archive's comment.

    Raises
    ------
    UserError
        The file is truncated, damaged, not an archive of arrays of real numbers, or unpacks to far more than its size.
    """
    with opened_archive(path, ".npz") as archive:
        members = {_name(info): _member(path, archive, info) for info in archive.infolist()}
        unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > max(_SMALL, _RATIO * path.stat().st_size):
            raise UserError(f"{path} unpacks to {unpacked:,} bytes, far more than its own size: it is not a model")
        comment = archive.comment.decode("utf-8", "replace")
    return {name: member.shape for name, member in members.items()}, comment


def read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz file by name; bfloat16 becomes float32 exactly.

    Whole numbers, such as the steps in the state of an optimiser, stay whole numbers.

    Raises
    ------
    UserError
        As in `read_npz_shapes`, or an array does not hold real numbers.
    """
    read_npz_shapes(path)  # refuses a file before an array is unpacked
    arrays = {}
    with opened_archive(path, ".npz") as archive:
        for info in archive.infolist():
            name, member = _name(info), _member(path, archive, info)
            is_bfloat16 = member.dtype.kind == "V" and member.dtype.itemsize == 2
            if member.dtype.kind not in "fiub" and not is_bfloat16:
                raise UserError(f"{path}: {name} is {member.dtype}; expected real numbers")
            with archive.open(info) as file:
                file.read(member.start)
                content = file.read(info.file_size - member.start)
                file.read(1)  # verifies the archive's checksum at its end
            value = np.frombuffer(content, "<u2" if is_bfloat16 else member.dtype)
            value = value.reshape(member.shape, order="F" if member.fortran else "C")
            arrays[name] = from_bfloat16(value) if is_bfloat16 else value.astype(value.dtype.newbyteorder("="))
    return arrays


def write_npz(path: Path, arrays: Mapping[str, Array], comment: str = "") -> None:
    """Write host arrays to an .npz file, atomically; equal arrays give equal files.

    Raises
    ------
    RunError
        The file cannot be written; an existing file is not changed.
    UserError
        The comment has more than 65,535 bytes.
    """
    text = comment.encode()
    if len(text) > COMMENT:
        raise UserError(
            f"{path} has room for {COMMENT:,} bytes of metadata, and these are {len(text):,}; shorten extra"
        )

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.comment = text
            for name, value in arrays.items():
                info = zipfile.ZipInfo(f"{name}.npy")  # of a fixed date
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(value), allow_pickle=False)

    atomic_write(path, write)


def _name(info: zipfile.ZipInfo) -> str:
    return info.filename.removesuffix(".npy")


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    """Return what the header of an array says, which must agree with the archive's directory."""
    if not info.filename.endswith(".npy"):
        raise UserError(f"{path} holds {info.filename!r:.60}, which is not an array: it is another kind of file")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"a compression of kind {info.compress_type}")  # the others unpack without a limit
    with archive.open(info) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers of Python 2
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        start = file.tell()
    if dtype.hasobject:
        raise UserError(
            f"{path}: {_name(info)!r:.60} holds Python objects, which could run any program; it is not read"
        )
    if len(shape) > _AXES or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"{_name(info)!r:.60} has the shape {shape!r:.60}")
    if start + math.prod(shape) * dtype.itemsize != info.file_size or math.prod(max(1, n) for n in shape) >= 1 << 48:
        raise ValueError(f"{_name(info)!r:.60} has the shape {shape!r:.60}, but {info.file_size:,} bytes")
    return _Member(shape, dtype, fortran, start)
