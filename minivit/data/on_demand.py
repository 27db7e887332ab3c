"""uint8 images that are read when they are needed, some at a time; the whole set is never in memory.

The images of a data set can take more memory than there is: 20,000 of 224 x 224 pixels are 3 GB. `OnDemandImages`
stands in for an array of them: an index selects images and reads none, and ``np.asarray`` reads those selected.

    images = OnDemandImages(Resized(pixels, decoding))
    np.asarray(images[i:j])

A source reads the images: `Resized` from images of another size, `Stored` from a file .npy, and `ImageFiles` in
`minivit.data.read` from image files. `read_ahead` reads the next batch while the caller works on one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minivit.arrays import Array
from minivit.data.images import Decoding, fitted
from minivit.engine.machine import cores
from minivit.errors import UserError

Pixels: TypeAlias = NDArray[np.uint8]
_FEW = 32  # images, for which no threads are started
BLOCK = 256  # images that are read together by what goes through all of them


class LostImagesError(UserError):
    """Images that were there when the data set was loaded cannot be read any more."""


class Source(Protocol):
    """Where images come from; `read` may be called on any thread."""

    background: bool  # whether images may be read while other threads write to standard error

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, height, width, C)."""

    def read(self, index: NDArray[np.int64]) -> Pixels:
        """Return the images of the indices, (len(index), height, width, C)."""


class OnDemandImages:
    """Images (n, height, width, C) of a source, which ``np.asarray`` reads.

    Parameters
    ----------
    source : Source
        Reads the images.
    index : NDArray[np.int64], optional
        The indices of these images in the source; by default all.
    """

    def __init__(self, source: Source, index: NDArray[np.int64] | None = None) -> None:
        self.source = source
        self.index = np.arange(source.shape[0]) if index is None else index
        self.shape = (len(self.index), *source.shape[1:])
        self.ndim, self.dtype = 4, np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> OnDemandImages:
        """Return the images of the indices, a slice, a list or an array; IndexError for a single number."""
        selected = self.index[index]
        if selected.ndim != 1:
            raise IndexError("images that are read when they are needed take a slice or a list, such as images[3:4]")
        return OnDemandImages(self.source, selected)

    def __iter__(self) -> Iterator[Pixels]:
        """Yield the pixels (height, width, C) of each image."""
        return (np.asarray(self[i : i + 1])[0] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the pixels (n, height, width, C)."""
        pixels = self.source.read(self.index)
        return pixels if dtype is None else pixels.astype(dtype, copy=False)


def as_on_demand(images: object) -> OnDemandImages | None:
    """Return `images` if they are read when they are needed, else None."""
    return images if isinstance(images, OnDemandImages) else None


def stored(images: Array) -> Array:
    """Return images in the size in which they are stored."""
    on_demand = as_on_demand(images)
    if on_demand is None or not isinstance(on_demand.source, Resized):
        return images
    return on_demand.source.images[on_demand.index]


def blocks(images: Array | OnDemandImages) -> Iterator[Pixels]:
    """Yield the pixels of all images in order, `BLOCK` images at a time."""
    parts = (slice(start, start + BLOCK) for start in range(0, len(images), BLOCK))
    return (np.asarray(images[part]) for part in parts)


def read_ahead(images: Array | OnDemandImages, parts: Sequence[Any]) -> Iterator[Pixels]:
    """Yield the pixels of each index of `parts`; a thread reads the next while the caller works on one, if it may.

    There is no thread while the caller works on the first part or the last: the engine may fork its workers then. Of
    images in memory the parts are selected.
    """
    if not isinstance(images, OnDemandImages):
        yield from (images[part] for part in parts)
        return
    last = len(parts) - 1 if images.source.background else 0
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[Pixels] | None = None
        for i, part in enumerate(parts):
            pixels = np.asarray(images[part]) if ahead is None else ahead.result()
            ahead = pool.submit(np.asarray, images[parts[i + 1]]) if 0 < i < last else None
            if i >= last:
                pool.shutdown()
            yield pixels


class Resized:
    """The source of images that are resized when they are read.

    Parameters
    ----------
    images : Array
        (n, height, width, C), uint8, greyscale or RGB; an array or `OnDemandImages`.
    decoding : Decoding
        The size and how it is reached; it has a size.

    Raises
    ------
    UserError
        The images do not have 1 or 3 channels.
    """

    def __init__(self, images: Array, decoding: Decoding) -> None:
        n, _, _, C = images.shape
        if C not in (1, 3):
            raise UserError(f"images of {C} channels cannot be resized; expected 1 or 3")
        assert decoding.size is not None
        self.images, self.decoding = images, decoding
        on_demand = as_on_demand(images)
        self.background = on_demand is None or on_demand.source.background
        self.shape = (n, *decoding.size, C)

    def read(self, index: NDArray[np.int64]) -> Pixels:
        """Return the resized images of the indices."""
        from PIL import Image

        assert self.decoding.size is not None
        found, size, grey = np.asarray(self.images[index]), self.decoding.size, self.shape[3] == 1
        pixels = np.empty((len(index), *self.shape[1:]), np.uint8)

        def resize(i: int) -> None:
            image = Image.fromarray(found[i, :, :, 0] if grey else found[i])
            pixels[i] = np.asarray(fitted(image, size, self.decoding)).reshape(self.shape[1:])

        if len(index) <= _FEW:
            for i in range(len(index)):
                resize(i)
        else:
            with ThreadPoolExecutor(cores()) as pool:  # it ends before the engine forks
                for _ in pool.map(resize, range(len(index)), chunksize=_FEW):
                    pass
        return pixels


class Stored:
    """The source of images (n, height, width, C) in a file .npy, which is mapped into memory for each read.

    A file that stayed mapped would count as memory of the process, page by page, until all of it does.

    Parameters
    ----------
    path : Path
        The file.
    channels : int, optional
        3 repeats the one channel of greyscale images.

    Raises
    ------
    UserError
        The file is missing or damaged, or holds no such images.
    """

    background = True

    def __init__(self, path: Path, channels: int | None = None) -> None:
        self.path = path.absolute()
        self._stored = self._load().shape
        self._stamp = stamp_of(self.path)
        if channels not in (None, self._stored[3]) and self._stored[3] != 1:
            raise UserError(f"{path} has images of {self._stored[3]} channels, not of {channels}: prepare them again")
        self._channels = channels or self._stored[3]
        self.shape = (*self._stored[:3], self._channels)

    def read(self, index: NDArray[np.int64]) -> Pixels:
        """Return the images of the indices."""
        try:
            mapped, stamp = self._load(), stamp_of(self.path)
        except (UserError, OSError) as error:
            raise LostImagesError(str(error)) from error
        if mapped.shape != self._stored:
            raise LostImagesError(f"{self.path} was replaced: it has images {mapped.shape}, and had {self._stored}")
        if stamp != self._stamp:
            raise LostImagesError(f"{self.path} was replaced or changed while it was read; put the original back")
        return self._expanded(np.asarray(mapped[index]))

    def whole(self) -> Pixels:
        """Return all images, in memory."""
        return self._expanded(np.array(self._load()))

    def _expanded(self, images: Pixels) -> Pixels:
        return images if images.shape[3] == self._channels else images.repeat(self._channels, axis=3)

    def _load(self) -> Pixels:
        images = load_array(self.path)
        if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
            raise UserError(f"{self.path} holds no uint8 images (n, height, width, C)")
        return images


def stamp_of(path: Path) -> list[int]:
    """Return the size of a file and the time of its last change, which show that it is another one."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def load_array(path: Path) -> NDArray[Any]:
    """Return the array in a file .npy, mapped into memory, so that it is no larger than its file; UserError if none."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # whatever a damaged header causes
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} cannot be read as an array: {reason}") from error
