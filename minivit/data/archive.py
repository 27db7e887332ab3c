"""Read files out of a tar archive in memory, within bounds; nothing is written to disk.

A small archive can unpack to terabytes, or claim lengths and names of any size. Here only the files that are asked for
are kept, and the number of files, their sizes and the whole unpacked size are bounded.
"""

from __future__ import annotations

import bz2
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

_LARGEST = 200_000_000  # bytes of an unpacked archive; those of CIFAR have 187 million
_LONGEST_NAME = 1 << 16
_MOST_FILES = 1000
_PIECE = 1 << 20
_WITHOUT_CONTENT = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class _Gzip:
    """zlib's decompressor with the attributes of those of bz2 and lzma."""

    def __init__(self) -> None:
        self._object = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._object.eof

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._object.decompress(self._object.unconsumed_tail + data, max_length)

    @property
    def needs_input(self) -> bool:
        return not self._object.unconsumed_tail


class _Unpacked:
    """The decompressed bytes of a file, read from the start to the end of the first compressed stream in it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        head = file.read(6)
        file.seek(0)
        self._decompressor: _Gzip | bz2.BZ2Decompressor | lzma.LZMADecompressor | None = None
        if head.startswith(b"\x1f\x8b"):
            self._decompressor = _Gzip()
        elif head.startswith(b"BZh"):
            self._decompressor = bz2.BZ2Decompressor()
        elif head == b"\xfd7zXZ\0":
            self._decompressor = lzma.LZMADecompressor(memlimit=100_000_000)
        elif head.startswith(b"PK"):
            raise ValueError("it is a zip archive")
        self._ready = bytearray()
        self._read = 0

    def read(self, size: int) -> bytes:
        """Return `size` bytes, or fewer at the end."""
        while len(self._ready) < size and (piece := self._piece()):
            self._ready += piece
        content = bytes(self._ready[:size])
        del self._ready[:size]
        self._read += len(content)
        if self._read > _LARGEST:
            raise ValueError(f"it unpacks to more than {_LARGEST:,} bytes")
        return content

    def _piece(self) -> bytes:
        if self._decompressor is None:
            return self._file.read(_PIECE)
        while not self._decompressor.eof:
            more = self._file.read(_PIECE // 16) if self._decompressor.needs_input else b""
            piece = self._decompressor.decompress(more, _PIECE)
            if piece:
                return piece
            if not more and self._decompressor.needs_input and not self._decompressor.eof:
                raise EOFError("it ends in the middle")
        return b""


def read_members(path: Path, largest: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield (base name, content) of the files in an archive whose base names are keys of `largest`.

    Parameters
    ----------
    path : Path
        A tar archive, plain or compressed by gzip, bzip2 or xz.
    largest : mapping of str to int
        The largest size of each file in bytes.

    Raises
    ------
    Exception
        The archive is damaged, or larger than the bounds; decompressors raise many types of exception.
    """
    with path.open("rb") as file:
        stream = _Unpacked(file)
        for name, kind, size in _headers(stream):
            if name not in largest or kind not in _FILES:
                _skip(stream, size + -size % tarfile.BLOCKSIZE)
                continue
            if size > largest[name]:
                raise ValueError(f"{name} has {size:,} bytes; expected at most {largest[name]:,}")
            content = io.BytesIO()
            for piece in _pieces(stream, size):
                content.write(piece)
            _skip(stream, -size % tarfile.BLOCKSIZE)
            yield name, content.getvalue()


def first_member(path: Path, names: Mapping[str, int]) -> str | None:
    """Return the base name of the first file in an archive that is a key of `names`, or None, also if it is damaged."""
    try:
        with path.open("rb") as file:
            stream = _Unpacked(file)
            for name, kind, size in _headers(stream):
                if name in names and kind in _FILES:
                    return name
                _skip(stream, size + -size % tarfile.BLOCKSIZE)
    except Exception:  # decompressors raise many types of exception
        return None
    return None


def _headers(stream: _Unpacked) -> Iterator[tuple[str, bytes, int]]:
    """Yield (base name, type, size) of each member; the caller reads or skips its content and padding."""
    long_name = None
    for first in [True, *[False] * _MOST_FILES]:
        header = stream.read(tarfile.BLOCKSIZE)
        if not header and first:
            raise EOFError("it is empty")
        if not header or header == bytes(tarfile.BLOCKSIZE):
            return
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        size = 0 if member.type in _WITHOUT_CONTENT else member.size
        if size < 0 or member.type == tarfile.GNUTYPE_SPARSE:
            raise ValueError("it holds a file of negative size, or with holes")
        if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            if size > _LONGEST_NAME:
                raise ValueError(f"it holds a name of {size:,} bytes")
            text = stream.read(size + -size % tarfile.BLOCKSIZE)[:size]
            if member.type == tarfile.GNUTYPE_LONGNAME:
                long_name = text.rstrip(b"\0")
            elif found := re.search(rb"(?:^|\n)\d+ path=([^\n]*)\n", text):
                long_name = found[1]
            continue
        name = member.name if long_name is None else long_name.decode("utf-8", "surrogateescape")
        long_name = None
        yield PurePosixPath(name).name, member.type, size
    raise ValueError(f"it holds more than {_MOST_FILES:,} files")


def _pieces(stream: _Unpacked, size: int) -> Iterator[bytes]:
    while size > 0:
        piece = stream.read(min(size, _PIECE))
        if not piece:
            raise EOFError("it ends in the middle of a file")
        size -= len(piece)
        yield piece


def _skip(stream: _Unpacked, size: int) -> None:
    for _ in _pieces(stream, size):
        pass
