"""Position grids and pixels, compared with timm, PyTorch and SciPy."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import ndimage

from minivit.data.images import decode
from minivit.weights.resample import resampled

pytestmark = pytest.mark.conformance

GRIDS = [((14, 14), (24, 24)), ((14, 14), (7, 7)), ((7, 7), (12, 9)), ((5, 9), (13, 4)), ((3, 8), (8, 3))]


@pytest.mark.parametrize(("old", "new"), GRIDS)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_positions_are_resampled_as_by_timm(
    torch: Any, timm: Any, old: tuple[int, int], new: tuple[int, int], prefix: int
) -> None:
    values = np.random.default_rng(0).normal(0.0, 1.0, (1, prefix + old[0] * old[1], 6)).astype(np.float32)
    theirs = timm.layers.resample_abs_pos_embed(
        torch.from_numpy(values), list(new), list(old), num_prefix_tokens=prefix
    ).numpy()
    ours = resampled(values[0, prefix:].reshape(*old, 6), new, "timm").reshape(1, -1, 6)
    assert_allclose(ours, theirs[:, prefix:], atol=1e-6)
    assert_array_equal(theirs[:, :prefix], values[:, :prefix])


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_positions_are_resampled_as_by_the_original_code(old: tuple[int, int], new: tuple[int, int]) -> None:
    grid = np.random.default_rng(0).normal(0.0, 1.0, (*old, 6)).astype(np.float32)
    theirs = ndimage.zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1)
    assert_allclose(resampled(grid, new, "google"), theirs, atol=1e-6)


def test_every_size_is_resampled_as_by_scipy_where_it_stays_inside_the_grid() -> None:
    outside = 0
    for old, new in itertools.product(range(1, 33), range(1, 49)):
        values = np.random.default_rng(0).normal(1.0, 0.1, (old, 1, 1))
        theirs = ndimage.zoom(values, (new / old, 1, 1), order=1)
        if theirs[-1] == 0:  # its last coordinate was rounded up
            outside += 1
            theirs[-1] = values[-1]
        assert_allclose(resampled(values, (new, 1), "google"), theirs, atol=1e-9)
    assert outside < 40


SIZES = [(224, 224), (32, 32), (250, 188), (188, 250), (225, 224), (33, 257), (640, 427)]


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("target", "crop_pct"), [((224, 224), 0.9), ((96, 96), 0.875), ((64, 128), 0.9), ((64, 64), 1)]
)
def test_pixels_are_those_of_timm(
    timm: Any, tmp_path: Path, target: tuple[int, int], crop_pct: float, interpolation: str, crop_mode: str
) -> None:
    transform = timm.data.create_transform(
        (3, *target), is_training=False, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode,
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
    )  # fmt: skip
    fit = {"center": "crop", "squash": "squash"}[crop_mode]
    for seed, (width, height) in enumerate(SIZES):
        path = tmp_path / f"{seed}.{'jpg' if seed % 2 else 'png'}"
        Image.fromarray(picture(seed, height, width)).save(path)
        assert_pixels_of(transform, path, decode(path, target, 3, crop_pct, interpolation, fit)[0])


def test_a_large_jpeg_of_sharp_edges_has_the_pixels_of_timm(timm: Any, tmp_path: Path) -> None:
    blocks = np.random.default_rng(1).integers(0, 2, (40, 30, 3)) * 255
    pixels = np.kron(blocks, np.ones((40, 40, 1))).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=85)
    transform = timm.data.create_transform((3, 96, 96), is_training=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert_pixels_of(transform, tmp_path / "x.jpg", decode(tmp_path / "x.jpg", (96, 96), 3, 0.875, "bilinear")[0])


def assert_pixels_of(transform: Any, path: Path, pixels: np.ndarray) -> None:
    theirs = transform(Image.open(path).convert("RGB")).numpy().transpose(1, 2, 0)
    assert abs(pixels / 255 - theirs).max() < 1 / 255 + 1e-6


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Return waves with noise: details of all sizes, as in a photograph."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [
        generator.uniform(10, 40) * np.sin(rows * a + columns * b + c)
        for a, b, c in generator.normal(0.0, [[0.02, 0.02, 3.0], [0.2, 0.2, 3.0], [0.6, 0.6, 3.0]])
    ]
    values = 128 + sum(waves)[..., None] + generator.normal(0.0, 12.0, (height, width, 3))
    return np.asarray(values).clip(0, 255).astype(np.uint8)
