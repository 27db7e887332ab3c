"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their archives or batch files, in the binary or the python version.

An archive is read in memory; its members are identified by their base names, and nothing is written to disk. A record
of the binary version is a label byte (CIFAR-100: a coarse and a fine one) and 3072 pixels, channel by channel, row by
row. The metadata files are not read; the class names are constants in this file.
"""

from __future__ import annotations

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from minivit.data.dataset import Dataset
from minivit.data.unpickle import load_batch
from minivit.errors import UserError

_PIXELS = 3 * 32 * 32
_LARGEST_FILE = 2**28  # bytes; the largest file of the data sets, train of CIFAR-100's python version, has 155 million

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
        if self.label_key:
            pixels, numbers = load_batch(data, self.label_key, where)
            return pixels, np.array(numbers, np.int64)
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
_KNOWN_NAMES = {name for version in _VERSIONS for name in (*version.train, version.test)}


def batches_in(folder: Path) -> str | None:
    """Return "cifar10" or "cifar100" if `folder` holds any of its batch files, else None."""
    names = {name for name in _KNOWN_NAMES if (folder / name).is_file()}
    return next((version.dataset for version in _VERSIONS if names & {*version.train, version.test}), None)


def load_cifar(path: Path) -> Dataset:
    """Return the data set in `path`, a tar.gz archive or a folder of batch files.

    Raises
    ------
    UserError
        The archive or a batch file is missing, truncated, or not from CIFAR; or a label is out of range.
    """
    files = _read_folder(path) if path.is_dir() else _read_archive(path)
    version = _version_of(files, path)
    parts = {name: version.parse(files[name], f"{path}: {name}") for name in (*version.train, version.test)}
    classes = CLASS_NAMES[version.dataset]
    for name, (_, labels) in parts.items():
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(wrong):
            label = labels[wrong[0]]
            raise UserError(
                f"{path}: {name}: record {wrong[0]} has the label {label}; expected 0 to {len(classes) - 1}"
            )
    train_images = _as_images(np.concatenate([parts[name][0] for name in version.train]))
    train_labels = np.concatenate([parts[name][1] for name in version.train])
    test_pixels, test_labels = parts[version.test]
    mean, std = STATISTICS[version.dataset]
    return Dataset(
        version.dataset, train_images, train_labels, _as_images(test_pixels), test_labels, classes, mean, std
    )


def _as_images(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _version_of(files: dict[str, bytes], path: Path) -> _Version:
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


def _read_folder(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in _KNOWN_NAMES if (folder / name).is_file()}


def _read_archive(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name not in _KNOWN_NAMES or not member.isfile():
                    continue
                if name in files or member.size > _LARGEST_FILE:
                    raise UserError(f"{path}: {name} occurs twice or is too large; this is not an archive of CIFAR")
                content = archive.extractfile(member)
                assert content is not None  # the member is a file
                files[name] = content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as a tar.gz archive of CIFAR: {error}. It is truncated or another kind of file; "
            "download it again, or unpack it and pass the folder"
        ) from error
    return files
