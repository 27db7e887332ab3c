"""A data set of image files, found by `minivit.data.scan` and decoded by `minivit.data.read`.

Images that fit into `MOST_IN_MEMORY`, or to which no size is given, are decoded once and cached. Those of a larger data
set are read once to find the unreadable ones and the statistics, which are cached, and are then decoded batch by batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import cast

import numpy as np
from numpy.typing import NDArray

from minivit.arrays import Array
from minivit.data import cache
from minivit.data.cache import Kept, Survey
from minivit.data.dataset import Dataset, ProgressCallback, dataset_of_parts, statistics_of, value_counts
from minivit.data.images import Decoding
from minivit.data.on_demand import OnDemandImages
from minivit.data.read import Block, Gathered, ImageFiles, all_named, decode_blocks
from minivit.data.scan import scan_folder
from minivit.data.search import Classes, shown_name, some
from minivit.errors import UserError

MOST_IN_MEMORY = 1_000_000_000  # bytes of the pixels, in the given size, of a data set that is not streamed by default


@dataclass(frozen=True)
class Found:
    """The image files of a folder: those of the training part, then those of val/, then those for tests."""

    path: Path
    class_names: tuple[str, ...]
    files: list[Path]
    labels: NDArray[np.int64]
    part_of: NDArray[np.int64]  # 0 for training, 1 for val/, 2 for tests
    stamps: tuple[str, NDArray[np.int64]]  # the names of the files; their sizes and times

    def without(self, bad: tuple[int, ...]) -> Found:
        """Return these files without the unreadable ones, which are named in a warning.

        Raises
        ------
        UserError
            No training image or no test image is left.
        """
        found = self
        if bad:
            words = some([str(self.files[i]) for i in bad])
            warnings.warn(f"left out images that cannot be read {words}", UserWarning, stacklevel=4)
            good = np.delete(np.arange(len(self.files)), bad)
            files = [self.files[i] for i in good]
            found = replace(self, files=files, labels=self.labels[good], part_of=self.part_of[good])
        if not {0, 2} <= set(found.part_of.tolist()):
            part = "test" if 0 in found.part_of else "training"
            raise UserError(f"{self.path} has no {part} images that can be read")
        return found

    def dataset(self, images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Dataset:
        """Return the data set whose `images` are those of the files."""
        name = shown_name(self.path.resolve().name)
        return dataset_of_parts(name, self.class_names, images, self.labels, self.part_of, mean, std)


def find_images(path: Path, labels: bool = True) -> Found:
    """Return the image files under `path`; `minivit.data.scan` says which parts and classes they have.

    The classes are the names of the folders, sorted. Without `labels`, images need no class folders.

    Raises
    ------
    UserError
        The folder has no classes or no images, or its parts have different classes.

    Warns
    -----
    UserWarning
        For what the user may not expect: a part that was split, a class alone, files that are not images.
    """
    found = scan_folder(path, labels)
    for note in found.notes:
        warnings.warn(note, UserWarning, stacklevel=4)
    names = tuple(found.train)
    parts = [found.train, found.val, found.test]
    files = [file for part in parts for members in part.values() for file in members]
    classes = np.concatenate([_labels(part, names) for part in parts])
    part_of = np.repeat(np.arange(3), [sum(map(len, part.values())) for part in parts])
    times = np.fromiter((number for file in files for number in file[2:]), np.int64, 3 * len(files))
    stamps = "\0".join([file.name for file in files]), times
    return Found(path, names, [Path(file.path) for file in files], classes, part_of, stamps)


def load_folder(
    path: Path,
    decoding: Decoding,
    *,
    skip_bad: bool = False,
    progress: ProgressCallback | None = None,
    stream: bool | None = None,
    labels: bool = True,
) -> Dataset:
    """Return the images under `path`; without `labels`, they need no class folders.

    Mean and standard deviation are those of the training images. The decoded images, or what is known about
    those of a large data set, are kept in the user's cache folder (`minivit.data.cache`).

    Raises
    ------
    UserError
        As in `find_images`, or images cannot be read.

    Warns
    -----
    UserWarning
        As in `find_images`, and for files that were skipped.
    """
    found = find_images(path, labels)
    key = cache.key(path.resolve(), *found.stamps, found.labels, found.part_of, found.class_names, decoding)
    if streams(len(found.files), decoding, stream):
        return _on_demand(found, key, decoding, skip_bad, progress)
    kept = cache.load(key)
    if kept is None or (kept.bad and not skip_bad):
        kept = _decode(key, found, decoding, skip_bad, progress)
    images = np.delete(kept.images, kept.bad, axis=0) if kept.bad else kept.images
    return found.without(kept.bad).dataset(images, kept.mean, kept.std)


def streams(count: int, decoding: Decoding, stream: bool | None) -> bool:
    """Return whether `count` images are read batch by batch: if asked for, or if they are large and have a size."""
    if stream is not None:
        return stream
    return decoding.size is not None and count * math.prod(decoding.size) * (decoding.channels or 3) > MOST_IN_MEMORY


def survey(
    found: Found,
    decoding: Decoding,
    skip_bad: bool,
    progress: ProgressCallback | None,
    keep: Callable[[Block], object] = lambda block: None,
) -> Survey:
    """Decode all images, block by block, each of which is given to `keep`, and return what is known about them.

    Raises
    ------
    UserError
        Images cannot be read, and they are not to be skipped; or none can be read.
    """
    counts = np.zeros((decoding.channels or 3, 256), np.int64)
    size = decoding.size or (0, 0)

    def count(block: Block) -> None:
        nonlocal counts, size
        size = block.pixels.shape[1], block.pixels.shape[2]
        good = found.part_of[block.start : block.start + len(block.pixels)] == 0
        good[[i - block.start for i in block.errors]] = False
        counts += value_counts(block.pixels[good])
        keep(block)

    errors, grey = decode_blocks(found.files, decoding, count, progress)
    if errors and not skip_bad:
        raise UserError(f"{all_named(list(errors.values()))}, or leave them out with --skip-bad (skip_bad=True)")
    counts = counts[:1] if grey else counts
    return Survey(size, len(counts), tuple(errors), *statistics_of(counts))


def _decode(
    key: str, found: Found, decoding: Decoding, skip_bad: bool, progress: ProgressCallback | None
) -> cache.Kept:
    start = perf_counter()
    gathered = Gathered(len(found.files))
    about = survey(found, decoding, skip_bad, progress, gathered.keep)
    kept = Kept(gathered.images(about.channels), about.bad, about.mean, about.std)
    if perf_counter() - start > cache.WORTH_SECONDS:
        cache.store(key, kept)
    return kept


def _on_demand(
    found: Found, key: str, decoding: Decoding, skip_bad: bool, progress: ProgressCallback | None
) -> Dataset:
    about = cache.load_survey(key)
    if about is None or (about.bad and not skip_bad):
        about = survey(found, decoding, skip_bad, progress)
    found = found.without(about.bad)
    source = ImageFiles(found.files, replace(decoding, size=about.size, channels=about.channels))
    dataset = found.dataset(cast("Array", OnDemandImages(source)), about.mean, about.std)
    if not about.fingerprint:
        about = about._replace(fingerprint=dataset.fingerprint())
        cache.store_survey(key, about)
    return replace(dataset, known_fingerprint=about.fingerprint)


def _labels(part: Classes, names: tuple[str, ...]) -> NDArray[np.int64]:
    counts = [len(part.get(name, ())) for name in names]
    return np.repeat(np.arange(len(names), dtype=np.int64), counts)
