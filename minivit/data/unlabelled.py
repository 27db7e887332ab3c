"""Find the image files of a data set without labels, for pre-training: all images below a folder, in one class.

Images in folders train/, test/ and val/ are of these parts (`PARTS`), whatever the folders in them are.
"""

from __future__ import annotations

from pathlib import Path

from minivit.data.dataset import UNLABELLED
from minivit.data.search import (
    PARTS,
    ImageFile,
    Scan,
    entries_of,
    first_by_checksum,
    images_in,
    is_image,
    part_of,
    some,
)
from minivit.errors import UserError

_TEST_SHARE = 20  # one image in twenty, where a data set has no test part
_DEEPEST = 32  # folders that hold one folder alone


def scan_unlabelled(path: Path) -> Scan:
    """Find all image files under `path`, as one class `UNLABELLED`.

    Without train/, the training part is all images outside test/ and val/. Without test/, val/ is the test part.
    Without both, one training image in twenty is the test part, at least one, chosen by a checksum of the file names.

    Raises
    ------
    UserError
        There is no image, or none for a part, or a folder cannot be read.
    """
    others: list[str] = []
    parts: dict[str, list[ImageFile]] = {"": [], **{part: [] for part in PARTS}}
    for file in images_in(_inner(path), others):
        part, rest = _part_and_name(file.name)
        parts[part].append(file._replace(name=rest))
    train, test, val = (parts[part] for part in ("train", "test", "val"))
    if not any(parts.values()):
        raise UserError(f"{path} has no images; expected image files in it, or in folders in it")
    notes = []
    if not train:
        train = parts[""]
    elif parts[""]:
        names = [file.name for file in parts[""]]
        notes.append(f"images of {path} beside its part for training are not read {some(names)}")
    if not train:
        raise UserError(
            f"{path} has images for tests or validation, but none for training; put them into train/, "
            "or give the folder whose images are to be trained on"
        )
    if test and val:
        notes.append(f"{path} holds the {len(val):,} validation images")
    elif val:
        test, val = val, []
    elif not test:
        train, test = _split_test(path, train)
        notes.append(
            f"{path} has no test part: one image in {_TEST_SHARE}, chosen by a checksum of the file names, is used as "
            f"one ({len(train):,} training and {len(test):,} test images)"
        )
    if others:
        names = [Path(name).name for name in others]
        notes.append(f"skipped files that are not images {some(names)}")
    return Scan({UNLABELLED: train}, {UNLABELLED: test}, {UNLABELLED: val} if val else {}, notes)


def _inner(path: Path) -> Path:
    """Return the folder with the images or their folders, where each folder above it holds one folder alone."""
    inner = path
    for _ in range(_DEEPEST):
        folders, files = entries_of(inner)
        if len(folders) != 1 or part_of(folders[0]) or any(map(is_image, files)):
            return inner
        inner = inner / folders[0]
    return path


def _part_and_name(name: str) -> tuple[str, str]:
    """Return the part of the image file `name`, "" if it is in none, and the name below the folder of the part."""
    folder, slash, rest = name.partition("/")
    part = part_of(folder) if slash else ""
    return part, rest if part else name


def _split_test(path: Path, files: list[ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
    if len(files) == 1:
        raise UserError(f"{path} has one image; expected two or more, one of them for the test part")
    chosen = first_by_checksum(files, max(1, len(files) // _TEST_SHARE))
    return [file for file in files if file not in chosen], [file for file in files if file in chosen]
