"""A folder of small photographs with three parts, for the tests of images that stay on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from minivit.data.images import Decoding

COUNTS = {"train": 10, "val": 3, "test": 4}  # of each class
DECODING = Decoding((4, 4))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_photos(folder: Path) -> Path:
    """Write images of two classes, of different sizes, and return the folder."""
    generator = np.random.default_rng(0)
    for part, count in COUNTS.items():
        for i in range(2 * count):
            shape = (5 + i % 3, 6, 3)
            save(folder / part / "ab"[i % 2] / f"{i}.png", generator.integers(0, 256, shape, np.uint8))
    return folder
