"""Prepared data sets: images that are decoded and resized already, in a file that training reads batch by batch.

A prepared folder holds arrays that ``np.load(path, mmap_mode="r")`` maps into memory, and what is known about them:

    images.npy     uint8 (n, height, width, C): those of the training part, then those for tests
    labels.npy     int64 (n,)
    parts.npy      int64 (n,): 0 for training, 1 for validation, 2 for tests
    prepared.json  name, classes, mean, std, how the images were resized, the fingerprint of the data set, checksums

The files are written into the subfolder .part, and moved up when all are complete, prepared.json last.
"""

from __future__ import annotations

import shutil
import struct
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from minivit.arrays import Array
from minivit.data.dataset import UNLABELLED, Dataset, ProgressCallback, dataset_of_parts
from minivit.data.folder import find_images, streams, survey
from minivit.data.images import Decoding
from minivit.data.on_demand import OnDemandImages, Pixels, Stored, blocks, load_array, stamp_of
from minivit.data.read import Block
from minivit.errors import RunError, UserError
from minivit.files import (
    checksum,
    expect_checksum,
    locked,
    make_folder,
    read_json,
    refused,
    with_checksum,
    write_json,
)

ABOUT = "prepared.json"
_VERSION = 1
_HEADER = 128  # bytes of the header of images.npy
_PART = ".part"  # where the files are while they are written


def is_prepared(path: Path) -> bool:
    """Return whether `path` is a prepared folder."""
    return (path / ABOUT).is_file()


def prepare_folder(
    path: Path,
    out: Path,
    decoding: Decoding,
    *,
    skip_bad: bool = False,
    progress: ProgressCallback | None = None,
    labels: bool = True,
) -> None:
    """Decode the images under `path` into the prepared folder `out`, a block at a time; see `load_folder`.

    Raises
    ------
    UserError
        As in `load_folder`, there is a file or folder `out` already that is not empty, or it is in `path`.
    RunError
        The system refuses the write.
    """
    if out.resolve().is_relative_to(path.resolve()):
        raise UserError(f"{out} is in {path}, whose images it is made of; give a folder elsewhere")
    with _new_folder(out) as folder:
        found = find_images(path, labels)
        with _ImageFile(folder / "images.npy", out) as file:

            def keep(block: Block) -> None:
                file.append(np.delete(block.pixels, [i - block.start for i in block.errors], axis=0))

            about = survey(found, decoding, skip_bad, progress, keep)
        if about.channels != file.shape[3]:
            _keep_one_channel(folder / "images.npy", out)
        found = found.without(about.bad)
        images = cast("Array", OnDemandImages(Stored(folder / "images.npy")))
        dataset = found.dataset(images, about.mean, about.std)
        _write_rest(folder, out, dataset, replace(decoding, size=about.size, channels=about.channels))


def prepare_dataset(dataset: Dataset, out: Path, decoding: Decoding, progress: ProgressCallback | None = None) -> None:
    """Write a data set, whose images `decoding` has resized, into the prepared folder `out`, a block at a time.

    Raises
    ------
    UserError
        There is a file or folder `out` already that is not empty.
    RunError
        The system refuses the write.
    """
    parts = dataset.train_images, dataset.test_images
    done, total = 0, sum(map(len, parts))
    with _new_folder(out) as folder:
        with _ImageFile(folder / "images.npy", out) as file:
            for block in (block for images in parts for block in blocks(images)):
                file.append(block)
                done += len(block)
                if progress is not None:
                    progress("writing images", done, total)
        _, height, width, channels = dataset.train_images.shape
        _write_rest(folder, out, dataset, replace(decoding, size=(height, width), channels=channels))


def load_prepared(path: Path, decoding: Decoding, stream: bool | None = None, labels: bool = True) -> Dataset:
    """Return the data set of a prepared folder.

    The images are read batch by batch if `stream` is True, or if it is None and they are large; else into memory.

    Raises
    ------
    UserError
        A file is missing or was changed, or the images must have `labels` and have none.

    Warns
    -----
    UserWarning
        The images were resized in another way than `decoding` says.
    """
    about = _about(path)
    if labels and not about.has_labels:
        raise UserError(f"{path} was prepared without classes; `minivit pretrain` takes images without labels")
    if decoding.size is not None:
        _warn_of_another_way(path, about.decoding, decoding)
    source = Stored(path / "images.npy", decoding.channels)
    stamp = stamp_of(path / "images.npy")  # before the images are read
    classes, part_of = (_integers(path / f"{name}.npy", source.shape[0]) for name in ("labels", "parts"))
    if about.checksum != _checksum(classes, part_of):
        raise UserError(f"labels.npy or parts.npy of {path} was changed since it was prepared: put the original back")
    n, height, width, channels = source.shape
    streamed = streams(n, Decoding((height, width), channels), stream)
    images = cast("Array", OnDemandImages(source)) if streamed else source.whole()
    mean, std = (values * (channels // len(values)) for values in (about.mean, about.std))  # of grey read as RGB
    dataset = dataset_of_parts(about.name, about.class_names, images, classes, part_of, mean, std)
    if about.stamp != stamp:  # copied or changed: only the content shows which
        stored = cast("Array", OnDemandImages(Stored(path / "images.npy")))
        as_stored = dataset_of_parts(about.name, about.class_names, stored, classes, part_of, about.mean, about.std)
        if as_stored.fingerprint() != about.fingerprint:
            raise UserError(f"images.npy of {path} was changed since it was prepared: put the original back")
        _keep_stamp(path / ABOUT, stamp)
    is_known = channels == about.decoding.channels
    return replace(dataset, known_fingerprint=about.fingerprint if is_known else None)


class _About(NamedTuple):
    """The content of prepared.json."""

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    decoding: Decoding
    fingerprint: str
    checksum: str  # of labels and parts
    stamp: list[int]  # the size and time of images.npy

    @property
    def has_labels(self) -> bool:
        """As `Dataset.has_labels`."""
        return self.class_names != (UNLABELLED,)


def _about(path: Path) -> _About:
    values = expect_checksum(read_json(path / ABOUT), path / ABOUT)
    if values.get("version") != _VERSION:
        raise UserError(f"{path} was prepared by another version of minivit; prepare it again")
    try:
        fields = values["decoding"]
        decoding = Decoding(**{**fields, "size": tuple(fields["size"]) if fields["size"] else None})
        mean, std = (tuple(map(float, values[name])) for name in ("mean", "std"))
        if not len(mean) == len(std) == decoding.channels:
            raise ValueError
        names = tuple(map(str, values["class_names"]))
        fingerprint, numbers = str(values["fingerprint"]), str(values["numbers"])
        return _About(str(values["name"]), names, mean, std, decoding, fingerprint, numbers, values["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / ABOUT} is damaged: prepare the images again") from error


def _keep_stamp(path: Path, stamp: list[int]) -> None:
    """Write the stamp of images that were checked into prepared.json, so that the next command does not read them."""
    values = expect_checksum(read_json(path), path)
    with suppress(RunError):  # a folder that is only readable is checked each time
        write_json(path, with_checksum({**values, "images": stamp}))


def _warn_of_another_way(path: Path, done: Decoding, asked: Decoding) -> None:
    """Warn where images were not resized as they would be without `minivit prepare`."""
    ways = [
        f"{name} {getattr(done, name)} and not {getattr(asked, name)}"
        for name in ("size", "crop_fraction", "interpolation", "fit")
        if getattr(done, name) != getattr(asked, name)
    ]
    if ways:
        words = f"the images of {path} were prepared with {', '.join(ways)}; prepare them with the options of the run"
        warnings.warn(words, UserWarning, stacklevel=5)


def has_labels(path: Path) -> bool:
    """Return whether the images of a prepared folder have classes; UserError if it is damaged."""
    return _about(path).has_labels


def training_images(path: Path) -> int:
    """Return the number of training images of a prepared folder; UserError if it is damaged."""
    return int((_integers(path / "parts.npy", Stored(path / "images.npy").shape[0]) == 0).sum())


def _checksum(labels: NDArray[np.int64], part_of: NDArray[np.int64]) -> str:
    return checksum(labels.tobytes() + part_of.tobytes())


def _integers(path: Path, count: int) -> NDArray[np.int64]:
    array = load_array(path)
    if array.dtype != np.int64 or array.shape != (count,):
        raise UserError(f"{path} does not hold an int64 number for each of the {count:,} images")
    return np.array(array)


@contextmanager
def _writes_to(out: Path) -> Iterator[None]:
    """Raise RunError for an error of the system in the block, which writes to the prepared folder `out`."""
    try:
        yield
    except OSError as error:
        raise refused(out, error) from error


def _write_rest(folder: Path, out: Path, dataset: Dataset, decoding: Decoding) -> None:
    """Write everything but the images into `folder`, which becomes the prepared folder `out`."""
    train, test = len(dataset.train_labels), len(dataset.test_labels)
    part_of = np.repeat(np.array([0, 2], np.int64), [train, test])
    if dataset.validation_index is not None:
        part_of[dataset.validation_index] = 1
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    about = {
        "version": _VERSION,
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "decoding": asdict(decoding),
        "fingerprint": replace(dataset, known_fingerprint=None).fingerprint(),
        "numbers": _checksum(labels, part_of),
    }
    with _writes_to(out):
        np.save(folder / "labels.npy", labels)
        np.save(folder / "parts.npy", part_of)
        write_json(folder / ABOUT, with_checksum({**about, "images": stamp_of(folder / "images.npy")}))


def expect_new(out: Path) -> None:
    """Raise UserError unless `out` is a new folder, an empty one, or one in which `minivit prepare` was stopped."""
    if out.exists() and not (out.is_dir() and {entry.name for entry in out.iterdir()} <= {_PART}):
        raise UserError(f"{out} exists already and is not an empty folder; give another one")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder in `out` for what is written in the block; it is moved to `out` after the block, or removed."""
    expect_new(out)
    out = out.resolve()
    is_new = make_folder(out)
    part = out / _PART
    try:
        with ExitStack() as held:
            with _writes_to(out):
                held.enter_context(locked(out))
                shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
                make_folder(part)
            try:
                yield part
                with _writes_to(out):
                    for file in sorted(part.iterdir(), key=lambda file: file.name == ABOUT):
                        file.replace(out / file.name)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    finally:
        if is_new and out.exists() and not any(out.iterdir()):
            out.rmdir()


class _ImageFile:
    """A file .npy that grows by blocks of images; RunError, which names the folder `out`, if it cannot be written."""

    def __init__(self, path: Path, out: Path) -> None:
        self._out = out
        self.shape = (0, 0, 0, 0)
        with _writes_to(out):
            self._file: BinaryIO = path.open("wb")

    def __enter__(self) -> _ImageFile:
        self._file.seek(_HEADER)
        return self

    def append(self, pixels: Pixels) -> None:
        """Write images (n, height, width, C) after those before."""
        with _writes_to(self._out):
            self._file.write(np.ascontiguousarray(pixels).data)
        self.shape = (self.shape[0] + len(pixels), *pixels.shape[1:])

    def __exit__(self, *error: object) -> None:
        """Write the header, version 1.0 of the format, now that the number of images is known."""
        text = repr({"descr": "|u1", "fortran_order": False, "shape": self.shape}).encode()
        header = b"\x93NUMPY\x01\x00" + struct.pack("<H", _HEADER - 10) + text.ljust(_HEADER - 11) + b"\n"
        with _writes_to(self._out), self._file:  # which is closed in any case
            self._file.seek(0)
            self._file.write(header)


def _keep_one_channel(path: Path, out: Path) -> None:
    """Write images whose channels are alike with one of them."""
    images = cast("Array", OnDemandImages(Stored(path)))
    with _ImageFile(path.with_suffix(".grey"), out) as file:
        for block in blocks(images):
            file.append(block[..., :1])
    with _writes_to(out):
        path.with_suffix(".grey").replace(path)
