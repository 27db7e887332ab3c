"""The decoded images of folders, kept so that the next command on a folder starts at once.

Of images that are not kept, because they are many, what is known about them is: `Survey`.

A file in the user's cache folder holds the images as an array that is mapped into memory, then a JSON object and a
checksum. Its name is a checksum of the names, sizes and times of the image files and of how they are decoded. What is
written or read here is never needed: a cache that is full, damaged or not writable means that images are decoded again.

MINIVIT_CACHE names another folder; MINIVIT_CACHE=off keeps nothing. The oldest files beyond `LARGEST` are deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minivit.errors import RunError, UserError
from minivit.files import TEMPORARY, atomic_write, expect_checksum, read_json, with_checksum, write_json

LARGEST = 8_000_000_000  # bytes of all files
WORTH_SECONDS = 0.5  # images that are decoded in less time are not kept
_FORMAT = 2
_LARGEST_ABOUT = 1 << 24


@dataclass(frozen=True)
class Kept:
    """Decoded images (n, height, width, C), the indices of unreadable ones, and the statistics of the training part."""

    images: NDArray[np.uint8]
    bad: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Survey(NamedTuple):
    """What is known about images that are not kept: they are read when they are needed."""

    size: tuple[int, int]
    channels: int
    bad: tuple[int, ...]  # indices of unreadable images
    mean: tuple[float, ...]  # of the training part
    std: tuple[float, ...]
    fingerprint: str = ""  # of the data set


def folder() -> Path | None:
    """Return the folder of the cache, or None if it is switched off."""
    chosen = os.environ.get("MINIVIT_CACHE")
    if chosen is not None:
        return None if chosen.lower() in ("", "0", "no", "off") else Path(chosen).expanduser()
    import platformdirs  # as in pooch, whose import takes longer

    return Path(platformdirs.user_cache_dir("minivit"))


def key(*things: object) -> str:
    """Return a checksum of the things on which a data set depends: files with their times, classes, and decoding."""
    import PIL

    has_heif = importlib.util.find_spec("pillow_heif") is not None
    digest = hashlib.blake2b(repr((_FORMAT, np.__version__, PIL.__version__, has_heif)).encode(), digest_size=16)
    for thing in things:
        content = thing.tobytes() if isinstance(thing, np.ndarray) else repr(thing).encode("utf-8", "surrogateescape")
        digest.update(content)
    return digest.hexdigest()


def load(key: str) -> Kept | None:
    """Return what was kept under `key`, or None if there is nothing or it is damaged."""
    try:
        path = _path(key)
        with path.open("rb") as file:
            end = file.seek(-12, os.SEEK_END)
            length, checksum = struct.unpack("<QI", file.read(12))
            if length > min(end, _LARGEST_ABOUT):
                return None
            file.seek(end - length)
            text = file.read(length)
        try:
            images: NDArray[np.uint8] = np.asarray(np.load(path, mmap_mode="r"))
        except OSError:  # a system without mapped files
            images = np.load(path)
        about = json.loads(text)
        if images.dtype != np.uint8 or list(images.shape) != about["shape"] or checksum != _checksum(images, text):
            return None
        _mark_as_used(path)
        return Kept(images, tuple(about["bad"]), tuple(about["mean"]), tuple(about["std"]))
    except Exception:  # whatever a damaged file causes
        return None


def store(key: str, kept: Kept) -> None:
    """Keep images under `key`, if there is room for them."""
    images = np.ascontiguousarray(kept.images)
    text = json.dumps({"shape": images.shape, "bad": kept.bad, "mean": kept.mean, "std": kept.std}).encode()

    def write(file: BinaryIO) -> None:
        np.save(file, images)
        file.write(text + struct.pack("<QI", len(text), _checksum(images, text)))

    with contextlib.suppress(OSError, RunError):
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        if images.nbytes > min(LARGEST, shutil.disk_usage(path.parent).free // 2):
            return
        _make_room(path.parent, LARGEST - images.nbytes)
        atomic_write(path, write)


def load_survey(key: str) -> Survey | None:
    """Return what was kept by `store_survey`, or None if there is nothing or it is damaged."""
    try:
        path = _path(key).with_suffix(".json")
        values = expect_checksum(read_json(path), path)
        _mark_as_used(path)
        height, width = values["size"]
        bad, mean, std = (tuple(values[name]) for name in ("bad", "mean", "std"))
        return Survey((height, width), values["channels"], bad, mean, std, values["fingerprint"])
    except Exception:  # whatever a damaged file causes
        return None


def store_survey(key: str, survey: Survey) -> None:
    """Keep what is known about images under `key`."""
    with contextlib.suppress(OSError, RunError, UserError):
        write_json(_path(key).with_suffix(".json"), with_checksum(survey._asdict()))


def _checksum(images: NDArray[np.uint8], text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(images.data))


def _path(key: str) -> Path:
    chosen = folder()
    if chosen is None:
        raise FileNotFoundError
    return chosen / f"images-{key}.npy"


def _mark_as_used(path: Path) -> None:
    with contextlib.suppress(OSError):  # of another user, or on a disk that is only readable
        os.utime(path)


def _make_room(chosen: Path, room: int) -> None:
    """Delete the files that were used longest ago, also those of killed processes, until the others fit into `room`."""
    files = []
    for path in (*chosen.glob("images-*"), *chosen.glob(TEMPORARY.format(token="*"))):
        with contextlib.suppress(OSError):  # another process has deleted it
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
    for _, size, path in sorted(files, reverse=True):
        room -= size
        if room < 0:
            path.unlink(missing_ok=True)
