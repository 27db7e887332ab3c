"""The `Dataset` class, checks of images and labels, channel statistics, and the validation split."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from minivit.arrays import Array
from minivit.data.images import Decoding
from minivit.data.on_demand import OnDemandImages, Resized, blocks, stored
from minivit.errors import UserError
from minivit.random import Key

UNLABELLED = "unlabelled"  # the class of images without labels

# Called as progress(what, done, total); total is 0 if it is not known.
ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images with labels, on the host; the constructor checks them.

    Parameters
    ----------
    name : str
        Name of the data set in reports.
    train_images, test_images : NDArray[np.uint8]
        (n, height, width, C), with the same height, width and C in both. `OnDemandImages` may be in their place.
    train_labels, test_labels : NDArray[np.int64]
        (n,), from 0 to the number of classes - 1.
    class_names : tuple of str
        The name of each label.
    mean, std : tuple of float
        Mean and standard deviation of each channel of the training pixels divided by 255.
    validation_index : NDArray[np.int64], optional
        Ascending indices of the training images that are for validation alone, where a data set has such a part.
    known_fingerprint : str, optional
        What `fingerprint` returns, where it is known, for images that are read when they are needed.

    Raises
    ------
    UserError
        A shape, dtype or label differs from this description, or an array is empty.
    """

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation_index: NDArray[np.int64] | None = None
    known_fingerprint: str | None = None

    def __post_init__(self) -> None:
        self._check_part("training", self.train_images, self.train_labels)
        self._check_part("test", self.test_images, self.test_labels)
        train, test = self.train_images.shape[1:], self.test_images.shape[1:]
        if train != test:
            raise UserError(f"{self.name}: training images are {train}, test images are {test}; they must agree")
        if not len(self.mean) == len(self.std) == train[2]:
            raise UserError(f"{self.name}: expected mean and std for {train[2]} channels, got {self.mean}, {self.std}")
        index, count = self.validation_index, len(self.train_images)
        if index is not None and not (
            index.dtype == np.int64
            and index.ndim == 1
            and 0 < len(index) < count
            and 0 <= index[0] <= index[-1] < count
            and (np.diff(index) > 0).all()
        ):
            raise UserError(f"{self.name}: expected ascending indices of some of the training images for validation")

    @property
    def has_labels(self) -> bool:
        """Whether the images have classes. Without classes, all have the label 0, whose class name is `UNLABELLED`."""
        return self.class_names != (UNLABELLED,)

    def fingerprint(self) -> str:
        """Return a checksum of all images, as they are stored, labels and class names."""
        if self.known_fingerprint is not None:
            return self.known_fingerprint
        digest = hashlib.blake2b(repr((self.class_names, self.train_images.shape)).encode(), digest_size=16)
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            for block in blocks(stored(images)):
                digest.update(np.ascontiguousarray(block).data)
            digest.update(labels.tobytes())
        if self.validation_index is not None:
            digest.update(self.validation_index.tobytes())
        return digest.hexdigest()

    def resized(self, decoding: Decoding) -> Dataset:
        """Return the data set with images of the size of `decoding`, which are resized when they are read."""
        sources = (Resized(stored(images), decoding) for images in (self.train_images, self.test_images))
        train, test = (cast("NDArray[np.uint8]", OnDemandImages(source)) for source in sources)
        return replace(self, train_images=train, test_images=test, known_fingerprint=None)

    def _check_part(self, part: str, images: Array, labels: Array) -> None:
        where = f"{self.name}: {part}"
        check_images(images, f"{where} images")
        if images.dtype != np.uint8:
            raise UserError(f"{where} images are {images.dtype}; expected uint8")
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise UserError(
                f"{where} labels are {labels.dtype} {labels.shape}; expected int64 {images.shape[:1]}, one per image"
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.class_names)))
        if len(wrong):
            first, last = wrong[0], len(self.class_names) - 1
            raise UserError(f"{where} image {first} has the label {labels[first]}; expected 0 to {last}")


def dataset_of_parts(
    name: str,
    class_names: tuple[str, ...],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    part_of: NDArray[np.int64],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    """Return the data set of images whose parts, 0 for training, 1 for validation and 2 for tests, are `part_of`.

    The images for tests are the last.
    """
    end = int((part_of < 2).sum())
    index = np.flatnonzero(part_of[:end] == 1)
    validation = index if len(index) else None
    return Dataset(name, images[:end], labels[:end], images[end:], labels[end:], class_names, mean, std, validation)


class TrainingSet(Dataset):
    """A data set without a test part: its `test_images` are empty."""

    @classmethod
    def of(
        cls,
        name: str,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        class_names: tuple[str, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        validation_index: NDArray[np.int64] | None = None,
    ) -> TrainingSet:
        """Return a data set of training images alone; see `Dataset`."""
        return cls(name, images, labels, images[:0], labels[:0], class_names, mean, std, validation_index)

    def _check_part(self, part: str, images: Array, labels: Array) -> None:
        if part == "training":
            super()._check_part(part, images, labels)


def check_images(images: Array, name: str = "images") -> None:
    """Check that host images are (B, height, width, C), not empty, uint8 or float, and finite.

    Raises
    ------
    UserError
        They are not; the message names the problem, and the index of a value that is not finite.
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

    They are computed from the exact counts of the 256 values. The standard deviation of a constant channel is set to 1,
    so that images can be divided by it.
    """
    counts = np.zeros((images.shape[3], 256), np.int64)
    for block in blocks(images):
        counts += value_counts(block)
    return statistics_of(counts)


def value_counts(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each of the 256 values occurs in each channel of images (n, height, width, C): (C, 256)."""
    counts = np.zeros((pixels.shape[3], 256), np.int64)
    for start in range(0, len(pixels), 64):  # in pieces, because bincount converts each pixel to 8 bytes
        for c, own in enumerate(counts):
            own += np.bincount(pixels[start : start + 64, ..., c].ravel(), minlength=256)
    return counts


def statistics_of(counts: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what `channel_statistics` does for images with these `value_counts`."""
    values = np.arange(256) / 255.0
    weights = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(axis=1)
    std = np.where(counts.astype(bool).sum(axis=1) == 1, 1.0, np.sqrt(variance))
    return tuple(mean.tolist()), tuple(std.tolist())


def split_validation(dataset: Dataset, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the training images into training and validation images.

    The latter are `fraction` of each class, rounded. Where that is not a single image, because each class has few, they
    are `fraction` of all images, at least one; no class loses its only image. A data set that has a validation part of
    its own is split there, whatever the fraction.

    Returns
    -------
    train_index, validation_index : NDArray[np.int64]
        Ascending; together they hold every training image once. For the same labels they depend on `seed` only.

    Raises
    ------
    UserError
        `fraction` is not in [0, 1), or it leaves no training image.

    Warns
    -----
    UserWarning
        `fraction` is positive, but no class has two images.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"the validation fraction is {fraction}; expected at least 0 and less than 1")
    labels = dataset.train_labels
    held_out = np.zeros(len(labels), bool)
    if dataset.validation_index is not None:
        held_out[dataset.validation_index] = True
        return np.flatnonzero(~held_out), dataset.validation_index
    scores = Key(seed, 0, np.arange(len(labels))).fold("validation").bits((len(labels),))
    for label in range(len(dataset.class_names)):
        members = np.flatnonzero(labels == label)
        chosen = np.argsort(scores[members], kind="stable")[: round(fraction * len(members))]
        held_out[members[chosen]] = True
    if fraction > 0 and not held_out.any():
        _hold_out_a_few(held_out, labels, scores, max(1, round(fraction * len(labels))))
        if not held_out.any():
            warnings.warn(
                f"no class of {dataset.name} has two images, so none is held out for validation",
                UserWarning,
                stacklevel=2,
            )
    if held_out.all():
        raise UserError(
            f"a validation fraction of {fraction} leaves no training images out of the {len(labels)} in "
            f"{dataset.name}; use another fraction, or 0 for no validation"
        )
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _hold_out_a_few(held_out: NDArray[np.bool], labels: NDArray[np.int64], scores: Array, count: int) -> None:
    left = np.bincount(labels)
    for i in np.argsort(scores, kind="stable"):
        if count > 0 and left[labels[i]] > 1:
            held_out[i] = True
            left[labels[i]] -= 1
            count -= 1
