"""The check of the images that enter a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.nn.config import ViTConfig


def check_input(x: Array, config: ViTConfig, dtype: np.dtype[Any]) -> None:
    """Check that `x` are images (B, height, width, C) for a model of `config` with parameters of `dtype`.

    Raises
    ------
    ValueError
        Their shape is another, or there is no image.
    TypeError
        Their dtype is another.
    """
    expected = (config.height, config.width, config.in_chans)
    if x.ndim != 4 or x.shape[1:] != expected or x.shape[0] == 0:
        if x.ndim == 4 and x.shape[2:] + x.shape[1:2] == expected:
            hint = "; the channels come first here, as in PyTorch: use images.transpose(0, 2, 3, 1)"
        elif x.shape == expected:
            hint = "; this is one image: use images[None]"
        else:
            hint = ""
        raise ValueError(
            f"images have shape {x.shape}; this model takes (B, {', '.join(map(str, expected))}): "
            f"batch, height, width, channels, and at least one image{hint}"
        )
    if x.dtype != dtype:
        if x.dtype.kind in "iub":
            hint = (
                f"use (images.astype({dtype.name!r}) / 255 - mean) / std, with the mean and std of the "
                "training, which minivit.weights.model_metadata returns"
            )
        else:
            hint = f"use images.astype({dtype.name!r})"
        raise TypeError(f"images have dtype {x.dtype}; this model computes in {dtype}: {hint}")
