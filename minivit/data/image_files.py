"""Open and load image files that may be damaged or made to do harm: formats, and limits of memory and time.

Only the formats in `FORMATS` are decoded, whatever the file is called: some other decoders of Pillow start programs.
What would take too much memory or too long is refused from the file's headers.
"""

from __future__ import annotations

import math
import os
import re
import stat
import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from minivit.errors import install

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF", "HEIF")
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".avif", ".heic", ".heif"),
)
_LARGEST_FILE = 160_000_000  # bytes
_LARGEST_IMAGE = 40_000_000  # pixels to decode; Pillow takes 4 bytes for each
_LARGEST_SCANS = 2_000_000_000  # pixels of a progressive JPEG, times its scans
_MOST_CHUNKS = 50_000  # of a PNG
_LARGEST_TEXT = 1_000_000  # bytes of a PPM, PGM or PBM whose pixels are text
_LONGEST_HEADER = 10_000  # bytes of the others' headers
_LONGEST_BRANDS = 256  # bytes of the box that begins a HEIC or AVIF
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_AVIF_BRANDS = {b"avif", b"avis"}


def check_file(path: Path) -> None:
    """Raise ValueError, or OSError, unless `path` is a regular file of a size that is read."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might not end
        raise ValueError("it is not a regular file")
    if status.st_size > _LARGEST_FILE:
        raise ValueError(f"it has {status.st_size:,} bytes; an image file may have {_LARGEST_FILE:,}")


def opened(file: BinaryIO) -> Image:
    """Return the image in an open file, whose pixels are not read yet; the caller closes it.

    Raises
    ------
    ValueError
        It would take too long, or its decoder is not installed.
    PIL.UnidentifiedImageError
        It has none of the `FORMATS`.
    """
    from PIL import Image

    head = file.read(_LONGEST_BRANDS)
    file.seek(0)
    if head.startswith(b"\x89PNG"):
        _check_chunks(file)
    elif head[:1] == b"P" and head[1:2].isdigit():
        _check_netpbm(file)
    formats = [name for name in FORMATS if name not in ("AVIF", "HEIF")]  # each needs what may not be installed
    brands = _brands(head)
    if brands and brands[0] in _HEIF_BRANDS and not _AVIF_BRANDS & set(brands):
        try:
            from pillow_heif import register_heif_opener
        except ImportError as error:
            raise ValueError(
                f"it is a HEIC image; install its decoder ({install('pillow-heif')}), or save it as JPEG"
            ) from error
        register_heif_opener()
        formats = ["HEIF"]
    elif brands:
        Image.init()
        if "AVIF" not in Image.OPEN:
            raise ValueError("it is an AVIF image, which needs Pillow 11.3; upgrade it, or save the image as JPEG")
        formats = ["AVIF"]
    return Image.open(file, formats=formats)


def _brands(head: bytes) -> list[bytes]:
    """Return the brands in the first box of a HEIC or AVIF, the main one first; none of another file."""
    if head[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[8:12], *(head[start : start + 4] for start in range(16, end, 4))]


def _check_chunks(file: BinaryIO) -> None:
    """Refuse a PNG of very many chunks, which Pillow reads one by one in Python."""
    file.seek(8)
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    else:
        raise ValueError(f"it is a PNG of more than {_MOST_CHUNKS:,} chunks; save it again")
    file.seek(0)


def _check_netpbm(file: BinaryIO) -> None:
    """Refuse long texts, which Pillow reads character by character in Python."""
    head = file.read(_LARGEST_TEXT)
    if head[1:2] in (b"1", b"2", b"3"):
        if len(head) == _LARGEST_TEXT:
            raise ValueError(f"its pixels are a text of more than {_LARGEST_TEXT:,} bytes; save it in another format")
    elif len(re.sub(rb"#[^\n]*", b"", head[:_LONGEST_HEADER]).split(maxsplit=4)) < 4:
        raise ValueError("its header is incomplete, or has very long comments")
    file.seek(0)


def halvings(image: Image) -> int:
    """Return how often a JPEG must be halved to have no more pixels than are decoded; its decoder does that."""
    width, height = image.size
    return max(0, math.ceil(math.log2(max(1, width * height) / _LARGEST_IMAGE) / 2))


def load(file: BinaryIO, image: Image) -> None:
    """Decode the pixels of an image that `opened` returned for `file`.

    Raises
    ------
    ValueError
        It would take too much memory or too long.
    """
    _check_pixels(image)
    if is_jpeg(image) and image.info.get("progressive"):
        _check_scans(file, image)
    with _silent_errors if image.format == "TIFF" else nullcontext():
        image.load()


def is_jpeg(image: Image) -> bool:
    """Return whether an open image is a JPEG, perhaps with a second picture (MPO), as phones add."""
    return image.format in ("JPEG", "MPO")


def _check_pixels(image: Image) -> None:
    """Refuse sizes for which a decoder would allocate too much, from the header alone."""
    width, height = image.size
    if width * height > _LARGEST_IMAGE:
        raise ValueError(f"it has {width:,} x {height:,} pixels; make it smaller, at most {_LARGEST_IMAGE:,} are read")
    tags: Any = getattr(image, "tag_v2", {})  # of TIFF
    tile = int(tags.get(322, 0)) * int(tags.get(323, 0))
    if tile > _LARGEST_IMAGE:
        raise ValueError(f"it has tiles of {tile:,} pixels; at most {_LARGEST_IMAGE:,} are read")


def _check_scans(file: BinaryIO, image: Image) -> None:
    """Refuse a progressive JPEG with so many scans that decoding it would take minutes."""
    position = file.tell()
    file.seek(0)
    scans = file.read().count(b"\xff\xda")
    file.seek(position)
    if scans * image.size[0] * image.size[1] > _LARGEST_SCANS:
        raise ValueError(f"it is a JPEG of {scans:,} scans; save it again")


class _SilentErrors:
    """Discards what is written to file descriptor 2 while any thread is in the block: libtiff prints its errors."""

    def __init__(self) -> None:
        self._lock, self._threads, self._kept = threading.Lock(), 0, -1

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                with suppress(OSError):  # there is no descriptor 2
                    self._kept = os.dup(2)
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, 2)
                    os.close(nowhere)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0 and self._kept >= 0:
                os.dup2(self._kept, 2)
                os.close(self._kept)
                self._kept = -1


_silent_errors = _SilentErrors()
