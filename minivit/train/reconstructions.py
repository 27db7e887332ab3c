"""The figure of what a masked model reconstructs. It needs matplotlib (extra: plots)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minivit.arrays import Array, namespace, on_device_of, to_backend, to_host
from minivit.errors import UserError
from minivit.nn.masked import MaskedModel
from minivit.ops.augment import normalize
from minivit.tracing.figures import in_words, new_figure, save_figure, shown

_MOST_IMAGES = 8
_LONGEST = 16  # characters of a name
_LARGE = 96  # pixels of the longer side of an image
_SIDE, _LARGE_SIDE, _GAP = 1.0, 1.5, 0.06  # inches: the longer side of an image, of a large one, between images
_LEAST_TILE, _LEAST_WIDTH = 0.8, 2.2  # for the labels, and for the title
_GREY = 128


def draw_reconstructions(
    model: MaskedModel,
    pixels: Array,
    mean: Sequence[float],
    std: Sequence[float],
    path: str | Path,
    names: Sequence[str] | None = None,
) -> str | None:
    """Draw images, what a model sees of them and what it makes of the rest, into a PNG file.

    A row has the images, one these without the predicted patches, and one with the predictions in their places. The
    model is in evaluation, where all images have one mask.

    Parameters
    ----------
    model : MaskedModel
        The model.
    pixels : Array
        (n, height, width, C), uint8. The first eight are drawn.
    mean, std : sequence of float
        Of each channel, or one number for all, for pixels from 0 to 1: those that the model was trained with.
    path : path
        The file, ``*.png``.
    names : sequence of str, optional
        A title for each image.

    Returns
    -------
    str or None
        The path, or None where matplotlib is not installed.

    Raises
    ------
    ValueError, TypeError
        The images' shape or dtype is not the model's.
    RunError
        The file cannot be written.
    """
    pixels = np.asarray(pixels[:_MOST_IMAGES])
    n, config = len(pixels), model.encoder.config
    side = _SIDE if max(config.height, config.width) < _LARGE else _LARGE_SIDE
    scale = side / max(config.height, config.width)
    width, height = max(_LEAST_TILE, scale * config.width), max(_LEAST_TILE, scale * config.height)
    try:
        figure = new_figure(
            max(_LEAST_WIDTH, 0.35 + n * (width + _GAP)), 0.25 + 0.2 * bool(names) + 3 * (height + _GAP)
        )
    except UserError:  # matplotlib is not installed
        return None
    rows = _images(model, pixels, mean, std)
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=_GAP / 2, h_pad=_GAP / 2, wspace=0, hspace=0)
    figure.suptitle(f"{model.num_masked} of {config.num_patches} patches are predicted", fontsize=8)
    grid = figure.subplots(3, n, squeeze=False)
    for row, (label, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(shown(image), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(label, fontsize=8)
    for axes, name in zip(grid[0], names or (), strict=False):
        axes.set_title(in_words(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"), fontsize=8, pad=3)
    return str(save_figure(figure, path))


def _images(model: MaskedModel, pixels: Array, mean: Sequence[float], std: Sequence[float]) -> dict[str, Array]:
    """Return the rows of images (n, height, width, C), uint8, by their labels."""
    config, values = model.encoder.config, model.parameters.store.values
    means, stds = (tuple(given) * (config.in_chans if len(given) == 1 else 1) for given in (mean, std))
    with on_device_of(values):
        x = to_backend(normalize(pixels, means, stds, values.dtype), namespace(values))
        found = model.reconstruct(x)
    grid = to_host(found.is_predicted).reshape(-1, *config.grid)
    hidden = grid.repeat(config.patch_height, axis=1).repeat(config.patch_width, axis=2)
    # One grey for all: the mean of an image of one colour would not be seen in it.
    masked = np.where(hidden[..., None], np.uint8(_GREY), pixels)
    return {"original": pixels, "masked": masked, "reconstruction": _as_pixels(to_host(found.predicted), means, stds)}


def _as_pixels(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """Return normalised images (n, height, width, C) as uint8; what is not a number is black."""
    values = np.nan_to_num(images.astype(np.float64) * std + mean)
    return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
