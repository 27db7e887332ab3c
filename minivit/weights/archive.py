"""Open the zip archives of model files, .npz and .pt, with errors of one line."""

from __future__ import annotations

import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from minivit.errors import UserError

COMMENT = (1 << 16) - 1  # bytes, the most that an archive has room for
_LARGEST_DIRECTORY = 1 << 22  # bytes
_BROKEN: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, NotImplementedError),
    *(RuntimeError, TypeError, KeyError, SyntaxError, tokenize.TokenError),  # of a header, which is a text of Python
)


@contextmanager
def opened_archive(path: Path, kind: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; `kind`, such as ".npz", is that of the file in messages.

    Raises
    ------
    UserError
        The archive cannot be read, or the block raised an error that a damaged file causes.
    """
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            if len(set(archive.namelist())) != len(archive.infolist()):
                raise ValueError("two entries have one name")
            yield archive
    except UserError:
        raise
    except _BROKEN as error:
        words = " ".join(str(error).split())
        raise UserError(
            f"{path} is not a complete {kind} file ({words:.100}): it is truncated, damaged or another kind of file"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _check_directory(path: Path) -> None:
    """Raise ValueError if the archive's directory, which `zipfile` reads whole, is too large for a model."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        tail = _bytes_at(file, start := max(0, size - COMMENT - 22), COMMENT + 22)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) < at + 22:
            raise ValueError("it has no directory at its end")
        lengths = _zip64_lengths(file, start + at)
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    if length != 0xFFFFFFFF or not lengths:
        lengths.append(length)
    if max(lengths) > _LARGEST_DIRECTORY:
        raise ValueError(f"its directory has {max(lengths):,} bytes")


def _zip64_lengths(file: BinaryIO, end: int) -> list[int]:
    """Return the length of the directory in each record of zip64 that `zipfile` may read; the end record is at `end`.

    It reads one wherever there is its locator, whatever the end record says; its version decides which.
    """
    locator = _bytes_at(file, end - 20, 20) if end >= 20 else b""
    if not locator.startswith(b"PK\x06\x07"):
        return []
    places = {int.from_bytes(locator[8:16], "little"), max(0, end - 76)}
    records = [_bytes_at(file, place, 56) for place in places]
    return [int.from_bytes(record[40:48], "little") for record in records if record.startswith(b"PK\x06\x06")]


def _bytes_at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)
