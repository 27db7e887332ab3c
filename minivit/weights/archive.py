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
        file.seek(max(0, size - COMMENT - 22))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise ValueError("it has no directory at its end")
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    if length == 0xFFFFFFFF and (at := tail.rfind(b"PK\x06\x06", 0, at)) >= 0:  # its size is in the record of zip64
        length = int.from_bytes(tail[at + 40 : at + 48], "little")
    if length > _LARGEST_DIRECTORY:
        raise ValueError(f"its directory has {length:,} bytes")
