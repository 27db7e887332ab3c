"""Images in another size than they are stored in: a batch is resized when it is read, and the whole is never in memory.

The images of a named data set are small and many: 50,000 of 32 x 32 pixels are 150 MB, at 224 x 224 they are 7.5 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minivit.arrays import Array
from minivit.data.images import Decoding, fitted
from minivit.engine.machine import cores
from minivit.errors import UserError

_FEW = 32  # images, for which no threads are started


def stored(images: Array) -> NDArray[np.uint8]:
    """Return images in the size in which they are stored."""
    return images if (resized := as_resized(images)) is None else resized.source


def as_resized(images: object) -> ResizedImages | None:
    """Return `images` if they are resized when they are read, else None."""
    return images if isinstance(images, ResizedImages) else None


class ResizedImages:
    """uint8 images that are resized as `decoding` says when they are read, by ``np.asarray(images)``.

    An index selects images and reads none: ``np.asarray(images[i:j])`` resizes these images.

    Parameters
    ----------
    source : NDArray[np.uint8]
        (n, height, width, C), greyscale or RGB.
    decoding : Decoding
        The size and how it is reached; it has a size.

    Raises
    ------
    UserError
        The images do not have 1 or 3 channels.
    """

    def __init__(self, source: NDArray[np.uint8], decoding: Decoding) -> None:
        if source.shape[3] not in (1, 3):
            raise UserError(f"images of {source.shape[3]} channels cannot be resized; expected 1 or 3")
        assert decoding.size is not None
        self.source, self.decoding = source, decoding
        self.shape = (len(source), *decoding.size, source.shape[3])
        self.ndim, self.dtype = 4, np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> ResizedImages:
        """Return the images of the indices, an array or a slice."""
        return ResizedImages(self.source[index], self.decoding)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the pixels (n, height, width, C)."""
        from PIL import Image

        assert self.decoding.size is not None
        pixels = np.empty(self.shape, np.uint8)
        size, grey = self.decoding.size, self.shape[3] == 1

        def resize(i: int) -> None:
            image = Image.fromarray(self.source[i, :, :, 0] if grey else self.source[i])
            pixels[i] = np.asarray(fitted(image, size, self.decoding)).reshape(self.shape[1:])

        if len(self) <= _FEW:
            for i in range(len(self)):
                resize(i)
        else:
            with ThreadPoolExecutor(cores()) as pool:  # it ends before the engine forks
                for _ in pool.map(resize, range(len(self)), chunksize=_FEW):
                    pass
        return pixels if dtype is None else pixels.astype(dtype, copy=False)
