"""Decode many image files, several at a time: into one array, block by block, or a batch when it is needed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minivit.data.dataset import ProgressCallback
from minivit.data.images import Decoding, decode_file, mute_pillow, quiet_pillow
from minivit.data.on_demand import LostImagesError, Pixels
from minivit.engine.machine import cores
from minivit.errors import UserError
from minivit.nn.config_checks import pair, plain

_FILES_PER_TASK = 32


def read_images(
    paths: Sequence[Path | str],
    *,
    image_size: int | Sequence[int] | None = None,
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


def height_width(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Return (height, width) of a size that may be one number; UserError if it is not a size."""
    return None if image_size is None else pair("image_size", plain(image_size))


def all_named(errors: Sequence[UserError]) -> str:
    """Return one message for the errors of several files; it holds the first five of them."""
    if len(errors) == 1:
        return f"{errors[0]}; replace it or remove it"
    more = f"; and {len(errors) - 5:,} more" if len(errors) > 5 else ""
    shown = "; ".join(str(error) for error in errors[:5])
    return f"{len(errors):,} images cannot be read; replace them or remove them: {shown}{more}"


class Block(NamedTuple):
    """Some decoded files; the pixels of an unreadable one are zeros."""

    start: int  # the index of the first file
    pixels: Pixels  # (n, height, width, C), of `Decoding.channels` or 3
    errors: dict[int, UserError]  # of the files that cannot be read, by their index
    grey: bool  # whether every readable file was decoded to one channel


class Gathered:
    """Blocks in one array of `count` images."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._whole: Pixels = np.empty((0, 0, 0, 0), np.uint8)

    def keep(self, block: Block) -> None:
        """Copy a block to its place."""
        if not self._whole.size:
            self._whole = np.empty((self._count, *block.pixels.shape[1:]), np.uint8)
        self._whole[block.start : block.start + len(block.pixels)] = block.pixels

    @property
    def channels(self) -> int:
        """The number of channels of the blocks."""
        return self._whole.shape[3]

    def images(self, channels: int) -> Pixels:
        """Return the images (count, height, width, channels): all channels, or the first, where they are alike."""
        return self._whole if channels == self.channels else self._whole[..., :channels].copy()


def read_what_can_be(
    files: Sequence[Path], decoding: Decoding, progress: ProgressCallback | None = None
) -> tuple[Pixels, dict[int, UserError]]:
    """Return the images, with zeros for each unreadable file, and the errors of those files, by their index.

    Raises
    ------
    UserError
        No file can be read, or the files have different sizes and `decoding` gives no size.
    """
    gathered = Gathered(len(files))
    errors, grey = decode_blocks(files, decoding, gathered.keep, progress)
    return gathered.images(1 if grey else gathered.channels), errors


def decode_blocks(
    files: Sequence[Path],
    decoding: Decoding,
    keep: Callable[[Block], object],
    progress: ProgressCallback | None = None,
) -> tuple[dict[int, UserError], bool]:
    """Decode the files on threads, and call `keep` for one block after another, in the order of the files.

    Returns
    -------
    errors : dict
        Those of the files that cannot be read, by their index.
    grey : bool
        Whether every readable file was decoded to one channel.

    Raises
    ------
    UserError
        As in `read_what_can_be`.
    """
    if not files:
        raise UserError("there are no image files to read")
    errors: dict[int, UserError] = {}
    all_grey = True
    with quiet_pillow(), _stopped_at_once() as (pool, stop):
        first, shape = _first_size(files, decoding)

        def read(start: int) -> Block:
            some = files[start : start + size]
            images = np.zeros((len(some), *shape, decoding.channels or 3), np.uint8)
            failed: dict[int, UserError] = {}
            grey = True
            for i, file in enumerate(some):
                if stop.is_set():
                    break
                try:
                    pixels, _ = decode_file(file, decoding)
                except UserError as error:
                    failed[start + i] = error
                    continue
                if pixels.shape[:2] != shape:
                    raise UserError(
                        f"{file} is {pixels.shape[0]} x {pixels.shape[1]} pixels, but {first} is {shape[0]} x "
                        f"{shape[1]}; give an image size to resize all of them"
                    )
                images[i] = pixels
                grey &= pixels.shape[2] == 1
            return Block(start, images, failed, grey)

        size = min(_FILES_PER_TASK, -(-len(files) // (4 * cores())))
        starts = iter(range(0, len(files), size))
        waiting = deque(pool.submit(read, start) for start in islice(starts, 4 * cores()))
        while waiting:
            block = waiting.popleft().result()
            waiting.extend(pool.submit(read, start) for start in islice(starts, 1))
            keep(block)
            errors |= block.errors
            all_grey &= block.grey
            if progress is not None:
                progress("reading images", block.start + len(block.pixels), len(files))
    if len(errors) == len(files):
        raise UserError(all_named([errors[i] for i in range(len(files))]))
    return errors, all_grey


class ImageFiles:
    """The source of the images in files, which are decoded when they are read; see `minivit.data.on_demand`.

    Parameters
    ----------
    files : sequence of Path
        Readable files.
    decoding : Decoding
        Has a size and a number of channels.
    """

    def __init__(self, files: Sequence[Path], decoding: Decoding) -> None:
        assert decoding.size is not None
        assert decoding.channels is not None
        self._files, self._decoding = [file.absolute() for file in files], decoding
        self.background = not any(file.suffix.lower() in (".tif", ".tiff") for file in files)  # `image_files.load`
        self.shape = (len(files), *decoding.size, decoding.channels)
        mute_pillow()

    def read(self, index: NDArray[np.int64]) -> Pixels:
        """Return the images of the indices; LostImagesError if a file has become unreadable."""
        if not len(index):
            return np.empty((0, *self.shape[1:]), np.uint8)
        try:
            images, errors = read_what_can_be([self._files[i] for i in index.tolist()], self._decoding)
        except UserError as error:  # none can be read
            raise LostImagesError(_put_back(str(error))) from error
        if errors:
            raise LostImagesError(_put_back("; ".join(map(str, list(errors.values())[:5]))))
        return images


def _put_back(text: str) -> str:
    return f"{text.removesuffix('; replace it or remove it')}: put back what was there when the images were loaded"


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
