"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their archives or batch files, in the binary or the python version.

The files in an archive or a folder are known by their base names (`minivit.data.archive` reads archives). A record
of the binary version is a label byte (CIFAR-100: a coarse and a fine one) and 3072 pixels, channel by channel, row by
row. The metadata files are not read; the class names are constants in this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minivit.data.archive import first_member, read_members
from minivit.data.dataset import Dataset
from minivit.data.unpickle import load_batch
from minivit.errors import UserError
from minivit.files import read_bytes

_PIXELS = 3 * 32 * 32

_CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CLASS_NAMES = {"cifar10": tuple(_CIFAR10_NAMES.split()), "cifar100": tuple(_CIFAR100_NAMES.split())}
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@dataclass(frozen=True)
class _Version:
    dataset: str
    train: tuple[str, ...]
    test: str
    label_bytes: int = 0  # in a record of the binary version
    label_key: str = ""  # in a batch of the python version

    def parse(self, data: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return pixels (n, 3072) and labels (n,) of one file."""
        pixels, labels = self._batch(data, where) if self.label_key else self._records(data, where)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(CLASS_NAMES[self.dataset])))
        if len(wrong):
            raise UserError(
                f"{where}: record {wrong[0]} has the label {labels[wrong[0]]}; "
                f"expected 0 to {len(CLASS_NAMES[self.dataset]) - 1}"
            )
        return pixels, labels

    def _batch(self, data: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        pixels, numbers = load_batch(data, self.label_key, where)
        return pixels, np.array(numbers, np.int64)

    def _records(self, data: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        length = self.label_bytes + _PIXELS
        if not data or len(data) % length:
            raise UserError(
                f"{where} has {len(data)} bytes; expected a multiple of {length}, the size of a record of "
                f"{self.dataset}: the file is truncated or of another kind"
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, length)
        return records[:, self.label_bytes :], records[:, self.label_bytes - 1].astype(np.int64)


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_VERSIONS = (
    _Version("cifar10", tuple(f"{name}.bin" for name in _BATCHES), "test_batch.bin", label_bytes=1),
    _Version("cifar10", _BATCHES, "test_batch", label_key="labels"),
    _Version("cifar100", ("train.bin",), "test.bin", label_bytes=2),
    _Version("cifar100", ("train",), "test", label_key="fine_labels"),
)
_VERSION_OF = {name: version for version in _VERSIONS for name in (*version.train, version.test)}
# Bytes; of the data sets' own files the largest, train of CIFAR-100's python version, has 155 million, others 31.
_LARGEST = {name: 160_000_000 if name.startswith("train") else 33_000_000 for name in _VERSION_OF}

_Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


def batches_in(folder: Path) -> str | None:
    """Return "cifar10" or "cifar100" if `folder` holds any of its batch files, else None."""
    names = {name for name in _VERSION_OF if (folder / name).is_file()}
    return next((version.dataset for version in _VERSIONS if names & {*version.train, version.test}), None)


def archive_of(path: Path) -> str | None:
    """Return "cifar10" or "cifar100" if the archive `path` holds any of its batch files, else None."""
    name = first_member(path, _LARGEST)
    return None if name is None else _VERSION_OF[name].dataset


def cifar_in(path: Path) -> str | None:
    """Return "cifar10" or "cifar100" if `path` is a folder of its batch files or an archive of them, else None."""
    if path.is_dir():
        return batches_in(path)
    return archive_of(path) if path.is_file() else None


def load_cifar(path: Path) -> Dataset:
    """Return the data set in `path`, a tar archive or a folder of batch files.

    Raises
    ------
    UserError
        The archive or a batch file is missing, truncated, or not from CIFAR; or a label is out of range.
    """
    parts: dict[str, _Part] = {}
    for name, content in _read_folder(path) if path.is_dir() else _read_archive(path):
        if name in parts:
            raise UserError(f"{path}: {name} occurs twice; this is not an archive of CIFAR")
        parts[name] = _VERSION_OF[name].parse(content, f"{path}: {name}")
    version = _version_of(parts, path)
    train_images = _as_images(np.concatenate([parts[name][0] for name in version.train]))
    train_labels = np.concatenate([parts[name][1] for name in version.train])
    test_pixels, test_labels = parts[version.test]
    classes = CLASS_NAMES[version.dataset]
    mean, std = STATISTICS[version.dataset]
    return Dataset(
        version.dataset, train_images, train_labels, _as_images(test_pixels), test_labels, classes, mean, std
    )


def _as_images(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _version_of(files: dict[str, _Part], path: Path) -> _Version:
    for version in _VERSIONS:
        expected = {*version.train, version.test}
        if expected <= files.keys():
            return version
    for version in _VERSIONS:
        expected = {*version.train, version.test}
        if expected & files.keys():
            missing = ", ".join(sorted(expected - files.keys()))
            raise UserError(f"{path} holds a part of {version.dataset}, but not {missing}; download all of it again")
    raise UserError(f"{path} holds no batches of CIFAR; expected files such as data_batch_1.bin in it")


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    return ((name, read_bytes(folder / name, limit)) for name, limit in _LARGEST.items() if (folder / name).is_file())


def _read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        yield from read_members(path, _LARGEST)
    except Exception as error:  # decompressors raise many types of exception
        raise UserError(
            f"{path} cannot be read as a tar archive of CIFAR: {error or type(error).__name__}. If it is an archive of "
            "images, unpack it and pass the folder; otherwise it is damaged or another kind of file"
        ) from error
