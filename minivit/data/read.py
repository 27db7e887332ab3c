"""Decode many image files, several at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minivit.data.dataset import ProgressCallback
from minivit.data.images import Decoding, decode_file, quiet_pillow
from minivit.engine.machine import cores
from minivit.errors import UserError

_FILES_PER_TASK = 32


def read_images(
    paths: Sequence[Path | str],
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    crop_fraction: float = 1.0,
    interpolation: str = "bicubic",
    fit: str = "crop",
    progress: ProgressCallback | None = None,
) -> NDArray[np.uint8]:
    """Decode image files; `minivit.data.images.decode` describes the other parameters.

    Parameters
    ----------
    paths : sequence of Path or str
        At least one.
    image_size : int or (height, width), optional
        The size of all images that are returned. By default all files must have one size.
    channels : 1 or 3, optional
        Convert to greyscale or to RGB. By default: greyscale if every file is greyscale, else RGB.
    progress : callable, optional
        Called as progress("reading images", done, total).

    Returns
    -------
    NDArray[np.uint8]
        (n, height, width, C).

    Raises
    ------
    UserError
        A file cannot be read, or has another size than the first one. The message names the first five such files.
    """
    decoding = Decoding(height_width(image_size), channels, crop_fraction, interpolation, fit)
    images, errors = read_what_can_be([Path(path) for path in paths], decoding, progress)
    if errors:
        raise UserError(all_named(list(errors.values())))
    return images


def height_width(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (height, width) of a size that may be one number."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def all_named(errors: Sequence[UserError]) -> str:
    """Return one message for the errors of several files; it holds the first five of them."""
    if len(errors) == 1:
        return f"{errors[0]}; replace it or remove it"
    more = f"; and {len(errors) - 5:,} more" if len(errors) > 5 else ""
    shown = "; ".join(str(error) for error in errors[:5])
    return f"{len(errors):,} images cannot be read; replace them or remove them: {shown}{more}"


def read_what_can_be(
    files: Sequence[Path], decoding: Decoding, progress: ProgressCallback | None = None
) -> tuple[NDArray[np.uint8], dict[int, UserError]]:
    """Return the images, with zeros for each unreadable file, and the errors of those files, by their index.

    Raises
    ------
    UserError
        No file can be read, or the files have different sizes and `decoding` gives no size.
    """
    if not files:
        raise UserError("there are no image files to read")
    errors: dict[int, UserError] = {}
    with quiet_pillow(), _stopped_at_once() as (pool, stop):
        first, shape = _first_size(files, decoding)
        images = np.zeros((len(files), *shape, decoding.channels or 3), np.uint8)

        def read(start: int) -> bool:
            all_grey = True
            for i in range(start, min(start + _FILES_PER_TASK, len(files))):
                if stop.is_set():
                    break
                try:
                    pixels, _ = decode_file(files[i], decoding)
                except UserError as error:
                    errors[i] = error
                    continue
                if pixels.shape[:2] != shape:
                    raise UserError(
                        f"{files[i]} is {pixels.shape[0]} x {pixels.shape[1]} pixels, but {first} is {shape[0]} x "
                        f"{shape[1]}; give an image size to resize all of them"
                    )
                images[i] = pixels
                all_grey &= pixels.shape[2] == 1
            return all_grey

        all_grey = True
        starts = range(0, len(files), _FILES_PER_TASK)
        for start, grey in zip(starts, pool.map(read, starts), strict=True):
            all_grey &= grey
            if progress is not None:
                progress("reading images", min(start + _FILES_PER_TASK, len(files)), len(files))
    if len(errors) == len(files):
        raise UserError(all_named([errors[i] for i in range(len(files))]))
    return images[..., :1].copy() if all_grey else images, dict(sorted(errors.items()))


def _first_size(files: Sequence[Path], decoding: Decoding) -> tuple[Path, tuple[int, int]]:
    """Return the size that all images must have, and the first file that has it."""
    if decoding.size is not None:
        return files[0], decoding.size
    errors = []
    for file in files:
        try:
            return file, decode_file(file, decoding)[1]
        except UserError as error:
            errors.append(error)
    raise UserError(all_named(errors))


@contextmanager
def _stopped_at_once() -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Yield a pool of threads, and an event that is set when the block is left, by Ctrl-C too."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(cores())
    try:
        yield pool, stop
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
