"""A data set of image files, found by `minivit.data.scan`, decoded by `minivit.data.read` and cached."""

from __future__ import annotations

import warnings
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from minivit.data import cache
from minivit.data.dataset import Dataset, ProgressCallback, channel_statistics
from minivit.data.images import Decoding
from minivit.data.read import all_named, read_what_can_be
from minivit.data.scan import Classes, scan_folder, shown_name, some
from minivit.errors import UserError


def load_folder(
    path: Path, decoding: Decoding, *, skip_bad: bool = False, progress: ProgressCallback | None = None
) -> Dataset:
    """Return the images under `path`; `minivit.data.scan` says which parts and classes they have.

    The classes are the names of the folders, sorted. Mean and standard deviation are those of the training images. The
    decoded images are kept in the user's cache folder (`minivit.data.cache`).

    Raises
    ------
    UserError
        The folder has no classes or no images, its parts have different classes, or images cannot be read.

    Warns
    -----
    UserWarning
        For what the user may not expect: a part that was split, a class alone, files that were skipped.
    """
    found = scan_folder(path)
    for note in found.notes:
        warnings.warn(note, UserWarning, stacklevel=3)
    names = tuple(found.train)
    parts = [found.train, found.val, found.test]
    files = [file for part in parts for members in part.values() for file in members]
    labels = np.concatenate([_labels(part, names) for part in parts])
    part_of = np.repeat(np.arange(3), [sum(map(len, part.values())) for part in parts])

    times = np.fromiter((number for file in files for number in file[2:]), np.int64, 3 * len(files))
    key = cache.key(path.resolve(), "\0".join([file.name for file in files]), times, labels, part_of, decoding)
    kept = cache.load(key)
    if kept is None or (kept.bad and not skip_bad):
        kept = _decode(key, [Path(file.path) for file in files], part_of, decoding, skip_bad, progress)
    images = kept.images
    if kept.bad:
        bad = [files[i].path for i in kept.bad]
        warnings.warn(f"left out images that cannot be read {some(bad)}", UserWarning, stacklevel=3)
        good = np.ones(len(files), bool)
        good[list(kept.bad)] = False
        images, labels, part_of = images[good], labels[good], part_of[good]
    train, end = np.searchsorted(part_of, [1, 2])  # training images, then those of val/, then the test images
    if train == 0 or end == len(labels):
        raise UserError(f"{path} has no {'test' if train else 'training'} images that can be read")
    return Dataset(
        shown_name(path.resolve().name),
        images[:end],
        labels[:end],
        images[end:],
        labels[end:],
        names,
        kept.mean,
        kept.std,
        validation_index=np.arange(train, end) if train < end else None,
    )


def _decode(
    key: str,
    files: list[Path],
    part_of: NDArray[np.int64],
    decoding: Decoding,
    skip_bad: bool,
    progress: ProgressCallback | None,
) -> cache.Kept:
    start = perf_counter()
    images, errors = read_what_can_be(files, decoding, progress)
    if errors and not skip_bad:
        raise UserError(f"{all_named(list(errors.values()))}, or leave them out with --skip-bad (skip_bad=True)")
    good = part_of == 0
    good[list(errors)] = False
    mean, std = channel_statistics(images[good])
    kept = cache.Kept(images, tuple(errors), mean, std)
    if perf_counter() - start > cache.WORTH_SECONDS:
        cache.store(key, kept)
    return kept


def _labels(part: Classes, names: tuple[str, ...]) -> NDArray[np.int64]:
    counts = [len(part.get(name, ())) for name in names]
    return np.repeat(np.arange(len(names), dtype=np.int64), counts)
