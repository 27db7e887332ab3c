"""Find the image files of a data set: its parts, its classes, and the files of each class.

A folder holds the parts train/, test/ and val/, each with one folder for each class, or the folders of the classes
themselves. Names of parts may be in upper case, or longer (`PARTS`). Class folders are searched with their subfolders.

Names are compared, sorted and reported in the Unicode form NFC, because a Mac writes an accent in another form than
other systems; so two folders whose names look the same are one class. Bytes that are not UTF-8 are
shown as hexadecimal escapes.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from minivit.data.image_files import IMAGE_SUFFIXES
from minivit.errors import UserError

PARTS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "dev"),
}
_NOT_CLASSES = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_DEEPEST = 32  # levels of folders
_TEST_SHARE = 5  # one image in five, where a data set has no test part


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


def scan_folder(path: Path) -> Scan:
    """Find the image files under `path`.

    A missing test part is split from the training part: of each class one image in five, at least one if it has two,
    chosen by a checksum of the file names, which does not depend on where the folder is. Without test/, val/ is the
    test part.

    Raises
    ------
    UserError
        There are no classes, the parts have different classes, a class has no image, or a folder cannot be read.
    """
    folders, files = _entries(path)
    if len(folders) == 1 and not _parts(path, folders) and _parts(path / folders[0], _entries(path / folders[0])[0]):
        path = path / folders[0]  # an archive that was unpacked into a folder of its own name
        folders, files = _entries(path)
    parts = _parts(path, folders)
    others: list[str] = []
    if not parts:
        classes = _classes(path, folders, others)
        _check_one_class(path, classes)
        train, test = _split_test(path, classes)
        found = Scan(train, test, notes=[_split_note(path, train, test)])
    else:
        found = _scan_parts(path, parts, others)
        unread = [name for name in folders if name not in parts.values()]
        if unread:
            found.notes.append(f"folders of {path} that are not read {some(unread)}")
    if len(found.train) == 1:
        (name,) = found.train
        found.notes.append(f"{path} has one class alone, {name}: every answer is right, so nothing is learnt")
    others += [str(path / name) for name in files]
    if others:
        names = [os.path.basename(name) for name in others]  # noqa: PTH119 - a Path for each of many files is slow
        found.notes.append(f"skipped files that are not images {some(names)}")
    return found


def _scan_parts(path: Path, parts: dict[str, str], others: list[str]) -> Scan:
    if "train" not in parts:
        raise UserError(
            f"{path} has {_listed(parts.values())}, but no train/; expected it beside them, with a folder a class"
        )
    found = {}
    notes = []
    for part, name in parts.items():
        folders, files = _entries(path / name)
        if part != "train" and not folders and any(map(_is_image, files)):
            notes.append(f"{path / name} has images, but no class folders, so it is not used")
            continue
        found[part] = _classes(path / name, folders, others)
        others += [str(path / name / file) for file in files]
    train = found["train"]
    _check_one_class(path / parts["train"], train)
    for part in ("test", "val"):
        if part in found:
            notes += _check_same_classes(path / parts["train"], train, path / parts[part], found[part])
    if "test" in found and "val" in found:
        count = sum(map(len, found["val"].values()))
        notes.append(f"{path / parts['val']} holds the {count:,} validation images; --validation is not used")
    if "test" in found:
        return Scan(train, found["test"], found.get("val", {}), notes)
    if "val" in found:
        return Scan(train, found["val"], notes=notes)
    train, test = _split_test(path / parts["train"], train)
    return Scan(train, test, notes=[*notes, _split_note(path, train, test)])


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the folders and of the other files in `folder`, without hidden ones."""
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    if not entry.name.startswith(".") and entry.name not in _NOT_CLASSES:
                        folders.append(entry.name)
                else:
                    files.append(entry.name)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error
    return sorted(folders, key=_sortable), sorted(files, key=_sortable)


def _parts(path: Path, folders: list[str]) -> dict[str, str]:
    """Return the folder of each part, or nothing if `path` holds class folders of these names."""
    parts: dict[str, str] = {}
    for part, names in PARTS.items():
        of_part = [name for name in folders if name.lower() in names]
        if len(of_part) > 1:
            raise UserError(f"{path} has {_listed(of_part)}; expected one of them")
        if of_part:
            parts[part] = of_part[0]
    if len(folders) == len(parts) or any(_entries(path / name)[0] for name in parts.values()):
        return parts
    are_classes = any(_is_image(file) for name in parts.values() for file in _entries(path / name)[1])
    return {} if are_classes else parts


def _listed(names: Iterable[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


def _classes(folder: Path, names: list[str], others: list[str]) -> Classes:
    if not names:
        raise UserError(f"{folder} has no class folders; expected a folder of images for each class in it")
    classes: Classes = {}
    for name in names:
        classes.setdefault(shown_name(name), []).extend(images_in(folder / name, others))
    for name, files in classes.items():
        if not files:
            raise UserError(f"the class folder {folder / name} has no images; put images into it or remove it")
        files.sort(key=lambda file: _sortable(file.name))
    return dict(sorted(classes.items()))


def images_in(
    folder: str | Path, others: list[str], unreadable: list[tuple[str, str]] | None = None
) -> list[ImageFile]:
    """Return the image files in `folder` and its subfolders, sorted by their names below it.

    Hidden files and folders are left out, and folders that systems make beside images; links to files and folders are
    followed, except to a folder above.

    Parameters
    ----------
    folder : str or Path
        The folder.
    others : list of str
        Gets the paths of the files that are no images.
    unreadable : list of (str, str), optional
        Gets the path of each folder that cannot be read, and the message; the rest is searched.

    Raises
    ------
    UserError
        A folder cannot be read, and there is no list `unreadable`.
    """
    found: list[ImageFile] = []
    skipped: list[str] = []
    _search(os.fspath(folder), "", found, skipped, unreadable, ())
    others += sorted(skipped, key=_sortable)
    return sorted(found, key=lambda file: _sortable(file.name))


def _search(
    folder: str,
    below: str,
    found: list[ImageFile],
    others: list[str],
    unreadable: list[tuple[str, str]] | None,
    above: tuple[object, ...],
) -> None:
    """Add the images in `folder` and its subfolders to `found`, and other files to `others`."""
    subfolders = []
    try:
        status = os.stat(folder)  # noqa: PTH116 - a Path for each of many files is slow
        this = status.st_dev, status.st_ino
        if this in above or len(above) > _DEEPEST:  # a link to a folder above
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir():
                    if not name.startswith(".") and name not in _NOT_CLASSES:
                        subfolders.append(name)
                elif name.startswith(".") or not _is_image(name):
                    others.append(entry.path)
                else:
                    found.append(_image_file(entry, below + name))
    except OSError as error:
        message = f"cannot read {folder}: {error.strerror or error}"
        if unreadable is None:
            raise UserError(message) from error
        unreadable.append((folder, message))
        return
    for name in subfolders:
        inner = os.path.join(folder, name)  # noqa: PTH118 - as above
        _search(inner, f"{below}{name}/", found, others, unreadable, (*above, this))


def _image_file(entry: os.DirEntry[str], name: str) -> ImageFile:
    try:
        status = entry.stat()
    except OSError:  # a broken link; its reader says so
        return ImageFile(entry.path, name, 0, 0, 0)
    return ImageFile(entry.path, name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _sortable(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def some(names: Sequence[str]) -> str:
    """Return the number of names and the first three, for a message: ``(12): a, b, c, ...``."""
    return f"({len(names):,}): {', '.join(map(shown_name, names[:3]))}{', ...' if len(names) > 3 else ''}"


def shown_name(name: str) -> str:
    """Return the name of a file as text that can be stored: in NFC, with bytes that are not UTF-8 as escapes."""
    return _sortable(os.fsencode(name).decode("utf-8", "backslashreplace"))


def _split_test(folder: Path, classes: Classes) -> tuple[Classes, Classes]:
    def score(label: str, file: ImageFile) -> bytes:
        text = f"{label}/{_sortable(file.name)}"
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()

    train: Classes = {}
    test: Classes = {}
    for name, files in classes.items():
        count = max(len(files) // _TEST_SHARE, int(len(files) > 1))
        chosen = set(sorted(files, key=partial(score, name))[:count])
        train[name] = [file for file in files if file not in chosen]
        if chosen:
            test[name] = [file for file in files if file in chosen]
    if not test:
        raise UserError(f"{folder} has one image in each class; expected two or more, one of them for the test part")
    return train, test


def _split_note(path: Path, train: Classes, test: Classes) -> str:
    counts = [sum(map(len, part.values())) for part in (train, test)]
    return (
        f"{path} has no test part: a fifth of each class, chosen by a checksum of the file names, is used as one "
        f"({counts[0]:,} training and {counts[1]:,} test images)"
    )


def _check_same_classes(train_folder: Path, train: Classes, folder: Path, classes: Classes) -> list[str]:
    odd = sorted(classes.keys() - train.keys())
    missing = sorted(train.keys() - classes.keys())
    if odd:
        also = f"; the first alone has classes {some(missing)}" if missing else ""
        raise UserError(
            f"{train_folder} and {folder} must have the same classes, but only one of them has: {', '.join(odd)}{also}"
        )
    return [f"{folder} has no images of classes of {train_folder} {some(missing)}"] if missing else []


def _check_one_class(folder: Path, classes: Classes) -> None:
    """Refuse a single class whose images are in folders of their own: a folder level too many."""
    if len(classes) > 1:
        return
    ((name, files),) = classes.items()
    above = [file.name.split("/")[:-1] for file in files]  # the folders of each image
    same = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*above, strict=False))]
    below = sorted({names[len(same)] for names in above if len(names) > len(same)})
    if len(below) > 1 and same not in above:
        where = "/".join([name, *same])
        raise UserError(
            f"{folder} holds one class alone, {name}, with folders in it {some(below)}: a folder level too many? "
            f"Expected the folders of the classes in {folder}, not in {folder / where}"
        )


def class_names(path: Path) -> tuple[str, ...]:
    """Return the names of the classes under `path`, without a search for their images; () if there are none."""
    try:
        folders = _entries(path)[0] if path.is_dir() else []
        parts = _parts(path, folders)
        names = _entries(path / parts["train"])[0] if parts else folders
    except (UserError, KeyError):
        return ()
    return tuple(sorted({shown_name(name) for name in names}))
