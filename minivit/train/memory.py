"""What to do where a device has too little memory: how many images of a batch would fit."""

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
from minivit.train.run_folder import Run

_WORK = 1.5  # what a pass needs beside what the forward pass keeps, as a factor


class OutOfMemoryError(RunError):
    """A device has too little memory; `micro_batch` images at a time would fit, or None does not help."""

    def __init__(self, message: str, micro_batch: int | None = None) -> None:
        super().__init__(message)
        self.micro_batch = micro_batch


def image_bytes(config: ViTConfig, dtype: Any) -> int:
    """Return about how much memory an image of a training step takes in arrays of `dtype`."""
    return int(_WORK * summarize(config, dtype).memory)


def images_that_fit(tried: int, per_image: int, free: int | None) -> int | None:
    """Return how many images to take at a time where `tried` did not fit.

    Parameters
    ----------
    tried : int
        Images at a time for which the memory was too small.
    per_image : int
        Bytes that an image takes; see `image_bytes`.
    free : int or None
        Bytes that are free; None if that is not known.

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
def room(library: Any, per_image: int, tried: int, when: str, run: Run) -> Iterator[None]:
    """Say what would help where a device runs out of memory in the block.

    Parameters
    ----------
    library : module
        The array library; on NumPy its own error goes on.
    per_image : int
        See `image_bytes`.
    tried : int
        How many images are taken at a time; 0 where it is not images that need the memory.
    when : str
        For the message.
    run : Run
        Where the last checkpoint is, if there is one.

    Raises
    ------
    OutOfMemoryError
        In the place of the library's error.
    """
    try:
        yield
    except Exception as error:
        if library is np or not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the arrays of the step, which are free memory now
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
