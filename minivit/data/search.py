"""Find image files in folders, and name them in the same way on every system.

Names are compared, sorted and reported in the Unicode form NFC, because a Mac writes an accent in another form than
other systems; so two folders whose names look the same are one class. Bytes that are not UTF-8 are
shown as hexadecimal escapes.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from minivit.data.image_files import IMAGE_SUFFIXES
from minivit.errors import UserError

PARTS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "dev"),
}
_PART_OF = {name: part for part, names in PARTS.items() for name in names}
_NOT_SEARCHED = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_DEEPEST = 32  # levels of folders


class ImageFile(NamedTuple):
    """An image file, its name below the class folder, and what shows that it has changed."""

    path: str
    name: str
    bytes: int
    content_ns: int  # when the content changed last, in ns since 1970
    entry_ns: int  # when the file changed last in any way; a program cannot set it


Classes = dict[str, list[ImageFile]]


@dataclass
class Scan:
    """The files of each class in each part, and notes for the user, one line each."""

    train: Classes
    test: Classes
    val: Classes = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def training_images(self) -> int:
        """The number of images of the training part."""
        return sum(map(len, self.train.values()))


def entries_of(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the folders and of the other files in `folder`, without hidden ones."""
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    if not entry.name.startswith(".") and entry.name not in _NOT_SEARCHED:
                        folders.append(entry.name)
                else:
                    files.append(entry.name)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error
    return sorted(folders, key=sortable), sorted(files, key=sortable)


def images_in(
    folder: str | Path, others: list[str], unreadable: list[tuple[str, str]] | None = None
) -> list[ImageFile]:
    """Return the image files in `folder` and its subfolders, sorted by their names below it.

    Hidden files and folders are left out, and folders that systems make beside images. Links to files and folders are
    followed; a folder is read once, under the first of its names in their order.

    Parameters
    ----------
    folder : str or Path
        The folder.
    others : list of str
        Gets the paths of the files that are not images.
    unreadable : list of (str, str), optional
        Gets the path of each folder that cannot be read, and the message; the rest is searched.

    Raises
    ------
    UserError
        A folder cannot be read, and there is no list `unreadable`.
    """
    found: list[ImageFile] = []
    skipped: list[str] = []
    _search(os.fspath(folder), "", found, skipped, unreadable, set())
    others += sorted(skipped, key=sortable)
    return sorted(found, key=lambda file: sortable(file.name))


def _search(
    folder: str,
    below: str,
    found: list[ImageFile],
    others: list[str],
    unreadable: list[tuple[str, str]] | None,
    seen: set[tuple[int, int]],
) -> None:
    """Add the images in `folder` and its subfolders to `found`, and other files to `others`; not of folders `seen`."""
    subfolders = []
    try:
        status = os.stat(folder)  # noqa: PTH116 - a Path for each of many files is slow
        this = status.st_dev, status.st_ino
        if this in seen or below.count("/") > _DEEPEST:
            return
        seen.add(this)
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir():
                    if not name.startswith(".") and name not in _NOT_SEARCHED:
                        subfolders.append(name)
                elif name.startswith(".") or not is_image(name):
                    others.append(entry.path)
                else:
                    found.append(_image_file(entry, below + name))
    except OSError as error:
        message = f"cannot read {folder}: {error.strerror or error}"
        if unreadable is None:
            raise UserError(message) from error
        unreadable.append((folder, message))
        return
    for name in sorted(subfolders, key=sortable):
        inner = os.path.join(folder, name)  # noqa: PTH118 - as above
        _search(inner, f"{below}{name}/", found, others, unreadable, seen)


def _image_file(entry: os.DirEntry[str], name: str) -> ImageFile:
    try:
        status = entry.stat()
    except OSError:  # a broken link; its reader says so
        return ImageFile(entry.path, name, 0, 0, 0)
    return ImageFile(entry.path, name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def is_image(name: str) -> bool:
    """Return whether a file of this name is an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def part_of(folder: str) -> str:
    """Return the part whose images are in a folder of this name, or "" if it is the folder of none."""
    return _PART_OF.get(folder.lower(), "")


def sortable(name: str) -> str:
    """Return the name of a file in the form in which names are compared and sorted: NFC."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def some(names: Sequence[str]) -> str:
    """Return the number of names and the first three, for a message: ``(12): a, b, c, ...``."""
    return f"({len(names):,}): {', '.join(map(shown_name, names[:3]))}{', ...' if len(names) > 3 else ''}"


def shown_name(name: str) -> str:
    """Return the name of a file as text that can be stored: in NFC, with bytes that are not UTF-8 as escapes."""
    return sortable(os.fsencode(name).decode("utf-8", "backslashreplace"))


def first_by_checksum(files: Sequence[ImageFile], count: int, above: str = "") -> set[ImageFile]:
    """Return `count` of the files, chosen by a checksum of their names, which does not depend on where they are.

    Parameters
    ----------
    files : sequence of ImageFile
        The files.
    count : int
        The number of files to choose.
    above : str
        What is put before each name.
    """

    def score(file: ImageFile) -> bytes:
        text = above + sortable(file.name)
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()

    return set(sorted(files, key=score)[:count])
