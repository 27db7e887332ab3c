"""Find the image files of a data set: its parts, its classes, and the files of each class.

A folder holds the parts train/, test/ and val/, each with one folder for each class, or the folders of the classes
themselves. Names of parts may be in upper case, or longer (`PARTS`). Class folders are searched with their subfolders.
Images without labels may be in any folders (`minivit.data.unlabelled`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from itertools import takewhile
from pathlib import Path

from minivit.data.search import (
    PARTS,
    Classes,
    Scan,
    entries_of,
    first_by_checksum,
    images_in,
    is_image,
    part_of,
    shown_name,
    some,
    sortable,
)
from minivit.data.unlabelled import scan_unlabelled
from minivit.errors import UserError

_TEST_SHARE = 5  # one image in five, where a data set has no test part


class NoClassesError(UserError):
    """A folder has no folders for classes."""


def scan_folder(path: Path, labels: bool = True) -> Scan:
    """Find the image files under `path`.

    A missing test part is split from the training part: of each class one image in five, at least one if it has two,
    chosen by a checksum of the file names, which does not depend on where the folder is. Without test/, val/ is the
    test part.

    Parameters
    ----------
    path : Path
        The folder.
    labels : bool
        Whether the images must have classes. Otherwise `scan_unlabelled` finds those of a folder without two or more
        classes that can be used. A folder with them has the same parts and classes in both cases, so that images for
        tests are in no training part.

    Raises
    ------
    UserError
        There are no classes, the parts have different classes, a class has no image, or a folder cannot be read.
    """
    others: list[str] = []
    try:
        found = _scan_classes(path, others)
    except UserError as error:
        if labels:
            raise
        found = scan_unlabelled(path)
        if not isinstance(error, NoClassesError):
            found.notes.insert(0, f"the images of {path} are used without their classes: {error}")
        return found
    names = [os.path.basename(name) for name in others]  # noqa: PTH119 - a Path for each of many files is slow
    if not labels:
        if not _are_classes(found.train):
            return scan_unlabelled(path)
        loose = [name for name in names if is_image(name) and not name.startswith(".")]
        if loose:
            found.notes.append(f"images of {path} outside the folders of its classes are not read {some(loose)}")
            names = [name for name in names if name.startswith(".") or not is_image(name)]
    elif len(found.train) == 1:
        (name,) = found.train
        found.notes.append(f"{path} has one class alone, {name}: every answer is right, so nothing is learnt")
    if names:
        found.notes.append(f"skipped files that are not images {some(names)}")
    return found


def _scan_classes(path: Path, others: list[str]) -> Scan:
    path = _unpacked(path)
    folders, files = entries_of(path)
    parts = _parts(path, folders)
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
    others += [str(path / name) for name in files]
    return found


def _unpacked(path: Path) -> Path:
    """Return the folder in `path` if it alone has the parts: an archive was unpacked into a folder of its own name."""
    folders, _ = entries_of(path)
    if len(folders) == 1 and not _parts(path, folders) and _parts(path / folders[0], entries_of(path / folders[0])[0]):
        return path / folders[0]
    return path


def _scan_parts(path: Path, parts: dict[str, str], others: list[str]) -> Scan:
    if "train" not in parts:
        raise UserError(
            f"{path} has {_listed(parts.values())}, but no train/; expected it beside them, with a folder a class"
        )
    found = {}
    notes = []
    for part, name in parts.items():
        folders, files = entries_of(path / name)
        if part != "train" and not folders and any(map(is_image, files)):
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
        notes.append(f"{path / parts['val']} holds the {count:,} validation images")
    if "test" in found:
        return Scan(train, found["test"], found.get("val", {}), notes)
    if "val" in found:
        return Scan(train, found["val"], notes=notes)
    train, test = _split_test(path / parts["train"], train)
    return Scan(train, test, notes=[*notes, _split_note(path, train, test)])


def _parts(path: Path, folders: list[str]) -> dict[str, str]:
    """Return the folder of each part, or nothing if `path` holds class folders of these names."""
    parts: dict[str, str] = {}
    for part, names in PARTS.items():
        of_part = [name for name in folders if name.lower() in names]
        if len(of_part) > 1:
            raise UserError(f"{path} has {_listed(of_part)}; expected one of them")
        if of_part:
            parts[part] = of_part[0]
    if len(folders) == len(parts) or any(entries_of(path / name)[0] for name in parts.values()):
        return parts
    are_classes = any(is_image(file) for name in parts.values() for file in entries_of(path / name)[1])
    return {} if are_classes else parts


def _listed(names: Iterable[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


def _classes(folder: Path, names: list[str], others: list[str]) -> Classes:
    if not names:
        hint = "; `minivit pretrain` takes images without labels" if any(map(is_image, entries_of(folder)[1])) else ""
        raise NoClassesError(f"{folder} has no class folders; expected a folder of images for each class in it{hint}")
    classes: Classes = {}
    for name in names:
        classes.setdefault(shown_name(name), []).extend(images_in(folder / name, others))
    for name, files in classes.items():
        if not files:
            raise UserError(f"the class folder {folder / name} has no images; put images into it or remove it")
        files.sort(key=lambda file: sortable(file.name))
    return dict(sorted(classes.items()))


def _split_test(folder: Path, classes: Classes) -> tuple[Classes, Classes]:
    train: Classes = {}
    test: Classes = {}
    for name, files in classes.items():
        count = max(len(files) // _TEST_SHARE, int(len(files) > 1))
        chosen = first_by_checksum(files, count, f"{name}/")
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


def _are_classes(names: Collection[str]) -> bool:
    """Return whether there are two classes or more, and they are not parts whose images have no classes."""
    parts = {part_of(name) for name in names} - {""}
    return len(names) > 1 and not ("train" in parts and len(parts) > 1)


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
        path = _unpacked(path)
        folders, _ = entries_of(path)
        parts = _parts(path, folders)
        names = entries_of(path / parts["train"])[0] if parts else folders
    except (UserError, KeyError):
        return ()
    return tuple(sorted({shown_name(name) for name in names}))
