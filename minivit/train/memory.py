"""The error of a device with too little memory, which says how many images at a time would fit."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minivit.arrays import free_memory, is_out_of_memory
from minivit.errors import RunError
from minivit.nn.config import ViTConfig
from minivit.nn.summary import summarize
from minivit.train.run_folder import RunFolder

_WORK = 1.5  # memory of a training step, as a multiple of what its forward pass keeps


class OutOfMemoryError(RunError):
    """A device has too little memory; `micro_batch` images at a time would fit, or it is None if not even one would."""

    def __init__(self, message: str, micro_batch: int | None = None) -> None:
        super().__init__(message)
        self.micro_batch = micro_batch


def image_bytes(config: ViTConfig, dtype: Any) -> int:
    """Return an estimate of the memory that one image of a training step takes in arrays of `dtype`."""
    return int(_WORK * summarize(config, dtype).memory)


def images_that_fit(tried: int, per_image: int, free: int | None) -> int | None:
    """Return how many images to take at a time if `tried` did not fit.

    Parameters
    ----------
    tried : int
        The images at a time for which the memory was too small.
    per_image : int
        The bytes that an image takes; see `image_bytes`.
    free : int or None
        The bytes that are free; None if that is not known.

    Returns
    -------
    int or None
        A power of two, at most half of `tried`; None if not even one image fits.
    """
    most = tried // 2
    if most and free is not None:
        most = min(most, free // per_image)
    return 1 << most.bit_length() - 1 if most else None


@contextmanager
def explain_out_of_memory(library: Any, per_image: int, tried: int, when: str, run: RunFolder) -> Iterator[None]:
    """Replace an out-of-memory error of a device, raised in the block, by one with advice.

    Parameters
    ----------
    library : module
        The array library; NumPy's own error is not replaced.
    per_image : int
        See `image_bytes`.
    tried : int
        The images that are taken at a time; 0 if the memory is not needed for images.
    when : str
        For the message.
    run : RunFolder
        The run; the message names its last checkpoint if there is one.

    Raises
    ------
    OutOfMemoryError
        In place of the library's error.
    """
    try:
        yield
    except Exception as error:
        if library is np or not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # frees the arrays of the failed step
        free = free_memory(library)
        words = f"the device ran out of memory {when}"
        if tried:
            words += f", taking {tried} images at a time"
        if free is not None:
            words += f"; {free / 2**20:,.0f} MiB are free" + (" without them" if tried else "")
        fits = images_that_fit(tried, per_image, free)
        resume = f"The last checkpoint is in {run.path / 'last'}, and --resume goes on from it"
        if fits is not None:
            advice = f"About {fits} would fit: --micro-batch {fits} cuts each step into such pieces"
            raise OutOfMemoryError(f"{words}. {advice}, with the same result up to rounding. {resume}", fits) from error
        if run.has_state():
            advice = (
                f"{resume} where more memory is free, or with --backend numpy; a new run can take a smaller --model"
            )
        else:
            advice = "Take a smaller --model, or --backend numpy"
        raise OutOfMemoryError(f"{words}. {advice}") from error
