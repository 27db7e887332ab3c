"""What a data set is, the checks on its values, and the validation split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.random import Key

# Called as progress(what, done, total); total is 0 where it is not known.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels, on the host, checked when it is made.

    Parameters
    ----------
    name : str
        What to call it in reports.
    train_images, test_images : NDArray[np.uint8]
        (n, height, width, C), the same height, width and C in both.
    train_labels, test_labels : NDArray[np.int64]
        (n,), from 0 to one less than the number of classes.
    class_names : tuple of str
        The name of each label.
    mean, std : tuple of float
        For each channel, of training pixels divided by 255.

    Raises
    ------
    UserError
        A shape, dtype or label is not as said above, or a part is empty.
    """

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        self._check_part("training", self.train_images, self.train_labels)
        self._check_part("test", self.test_images, self.test_labels)
        train, test = self.train_images.shape[1:], self.test_images.shape[1:]
        if train != test:
            raise UserError(f"{self.name}: training images are {train}, but test images {test}; they must agree")
        if not len(self.mean) == len(self.std) == train[2]:
            raise UserError(f"{self.name}: expected mean and std for {train[2]} channels, got {self.mean}, {self.std}")

    def fingerprint(self) -> str:
        """Return a checksum of all images, labels and class names: another for other data."""
        digest = hashlib.blake2b(repr((self.class_names, self.train_images.shape)).encode(), digest_size=16)
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _check_part(self, part: str, images: Array, labels: Array) -> None:
        where = f"{self.name}: {part}"
        check_images(images, f"{where} images")
        if images.dtype != np.uint8:
            raise UserError(f"{where} images are {images.dtype}; expected uint8")
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise UserError(
                f"{where} labels are {labels.dtype} {labels.shape}; expected int64 {images.shape[:1]}, one an image"
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.class_names)))
        if len(wrong):
            first, last = wrong[0], len(self.class_names) - 1
            raise UserError(f"{where} image {first} has the label {labels[first]}; expected 0 to {last}")


def check_images(images: Array, name: str = "images") -> None:
    """Refuse host images that are not (B, height, width, C), are empty, or hold NaN or infinity.

    Raises
    ------
    UserError
        Says which; a bad value is named by its index.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise UserError(f"{name} have shape {images.shape}; expected (B, height, width, C) with no size 0")
    if images.dtype == np.uint8:
        return
    if images.dtype.kind != "f":
        raise UserError(f"{name} are {images.dtype}; expected uint8 or a float type")
    for b, image in enumerate(images):
        bad = np.argwhere(~np.isfinite(image))
        if len(bad):
            index = (b, *bad[0].tolist())
            raise UserError(f"{name} hold {images[index]} at {list(index)}; every value must be finite")


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel of `images` / 255.

    They come from exact counts of the 256 values. A constant channel has the deviation 1, so that it can be divided by.
    """
    C = images.shape[3]
    counts = np.zeros((C, 256), np.int64)
    for start in range(0, len(images), 64):  # bincount makes 8 bytes of each pixel
        part = images[start : start + 64]
        for c in range(C):
            counts[c] += np.bincount(part[..., c].ravel(), minlength=256)
    values = np.arange(256) / 255.0
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(axis=1)
    std = np.where(counts.astype(bool).sum(axis=1) == 1, 1.0, np.sqrt(variance))
    return tuple(mean.tolist()), tuple(std.tolist())


def split_validation(dataset: Dataset, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the training images in two, with `fraction` of each class, rounded, in the second part.

    Returns
    -------
    train_index, validation_index : NDArray[np.int64]
        Ascending; together they hold every training image once. The choice depends on `seed` alone.

    Raises
    ------
    UserError
        `fraction` is not in [0, 1), or it is positive and leaves one of the parts empty.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"the validation fraction is {fraction}; expected at least 0 and less than 1")
    labels = dataset.train_labels
    scores = Key(seed, 0, np.arange(len(labels))).fold("validation").bits((len(labels),))
    held_out = np.zeros(len(labels), bool)
    for label in range(len(dataset.class_names)):
        members = np.flatnonzero(labels == label)
        chosen = np.argsort(scores[members], kind="stable")[: round(fraction * len(members))]
        held_out[members[chosen]] = True
    if fraction > 0 and (held_out.all() or not held_out.any()):
        empty = "training" if held_out.all() else "validation"
        raise UserError(
            f"a validation fraction of {fraction} leaves no {empty} image of the {len(labels)} in {dataset.name}; "
            "use another fraction, or 0 for none"
        )
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
