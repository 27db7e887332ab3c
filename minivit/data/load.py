"""Load a data set by its name or from a path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from minivit.data.cifar import CLASS_NAMES, archive_of, batches_in, load_cifar
from minivit.data.dataset import Dataset, ProgressCallback
from minivit.data.digits import load_digits
from minivit.data.download import download_archive
from minivit.data.folder import load_folder
from minivit.data.images import Decoding
from minivit.data.prepared import is_prepared, load_prepared
from minivit.data.read import height_width
from minivit.data.scan import class_names
from minivit.errors import UserError, did_you_mean

NAMES = ("digits", "cifar10", "cifar100")

# The names to look for in a data folder; the original pixels are preferred to JPEG files.
_ON_DISK = {
    "cifar10": (
        "cifar-10-batches-bin",
        "cifar-10-batches-py",
        "cifar-10-binary.tar.gz",
        "cifar-10-python.tar.gz",
        "cifar10",
        "cifar10-jpeg",
    ),
    "cifar100": (
        "cifar-100-binary",
        "cifar-100-python",
        "cifar-100-binary.tar.gz",
        "cifar-100-python.tar.gz",
        "cifar100",
        "cifar100-jpeg",
    ),
}
_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tar.xz")
_MOST_ENTRIES = 200  # of a folder that is searched for CIFAR


class NotOnDiskError(UserError):
    """A data set is not on disk, and was not to be downloaded."""


def load_dataset(
    name_or_path: str | Path,
    *,
    data_dir: str | Path | None = None,
    download: bool = True,
    progress: ProgressCallback | None = None,
    image_size: int | Sequence[int] | None = None,
    crop_fraction: float = 1.0,
    interpolation: str = "bicubic",
    fit: str = "crop",
    channels: int | None = None,
    skip_bad: bool = False,
    stream: bool | None = None,
    labels: bool = True,
) -> Dataset:
    """Return a data set by its name or from a path.

    Parameters
    ----------
    name_or_path : str or Path
        "digits", "cifar10", "cifar100", or the path of a tar archive of CIFAR, of a folder of its batch files, or of a
        folder of images: one folder for each class, or train/, test/ and val/, each with one folder for each class; or
        of a folder that `minivit prepare` wrote.
    data_dir : str or Path, optional
        The folder to search for CIFAR, whatever its archive or folder is called, and to download it to. By default:
        search $MINIVIT_DATA, or ./data if it is not set, then the user's cache folder; download to $MINIVIT_DATA, or to
        the cache folder if it is not set.
    download : bool
        Whether to download CIFAR if it is not on disk.
    progress : callable, optional
        Called as progress(what, done, total) during a download and while image files are read.
    image_size : int or (height, width), optional
        The size to which images are resized: those of a folder when they are decoded, and all others when they are
        read (`minivit.data.on_demand`). By default all images must have one size, which they keep.
    crop_fraction, interpolation, fit
        How images are resized; as in `minivit.data.images.decode`.
    channels : 1 or 3, optional
        Convert the images of a folder to greyscale or to RGB. By default: greyscale if every file is, else RGB.
    skip_bad : bool
        Leave out the images of a folder that cannot be read, with one warning.
    stream : bool, optional
        Whether the images of a folder stay in their files, and each batch is read when it is needed
        (`minivit.data.on_demand`). By default they do if the pixels of all images take more than 1 GB in the size
        `image_size`, or in that of a prepared folder; without a size, they are read into memory. It changes no bit.
    labels : bool
        Whether the images of a folder must have classes. Without, any folder of images will do: one without two or
        more classes gives a data set whose `has_labels` is False. One with them, and any other data set, is the same
        as with labels, so that no image for tests is in the training part.

    Raises
    ------
    UserError
        The name or path is unknown, the data cannot be read, or the download fails.
    """
    decoding = Decoding(height_width(image_size), channels, crop_fraction, interpolation, fit)
    name = str(name_or_path)
    if name == "digits":
        dataset = load_digits()
    elif name in _ON_DISK:
        as_stored = replace(decoding, size=None, channels=None)
        dataset = _find_or_download(name, data_dir, download, progress, as_stored, skip_bad, stream)
    else:
        dataset = _load_path(Path(name_or_path).expanduser(), progress, decoding, skip_bad, stream, labels)
    return dataset if decoding.size in (None, dataset.train_images.shape[1:3]) else dataset.resized(decoding)


def _load_path(
    path: Path,
    progress: ProgressCallback | None,
    decoding: Decoding,
    skip_bad: bool,
    stream: bool | None,
    labels: bool = True,
) -> Dataset:
    if is_prepared(path):
        return load_prepared(path, decoding, stream, labels)
    if path.is_dir() and not batches_in(path):
        return load_folder(path, decoding, skip_bad=skip_bad, progress=progress, stream=stream, labels=labels)
    if path.is_dir() or path.is_file():
        return load_cifar(path)
    near = did_you_mean(str(path).lower().replace("-", ""), NAMES)
    raise UserError(
        f"{str(path)!r} is neither a data set nor a file or folder;{f'{near} Expected' if near else ' expected'} "
        f"{', '.join(NAMES)}, or the path of a folder of images or of a CIFAR archive"
    )


def _find_or_download(
    name: str,
    data_dir: str | Path | None,
    download: bool,
    progress: ProgressCallback | None,
    decoding: Decoding,
    skip_bad: bool,
    stream: bool | None,
) -> Dataset:
    folders, target = _data_folders(data_dir)
    for folder in folders:
        for found in _candidates(folder, name):
            dataset = _load_path(found, progress, decoding, skip_bad, stream)
            if dataset.name != name and dataset.name in _ON_DISK:
                raise UserError(f"{found} holds {dataset.name}, not {name}; rename it")
            return dataset
    if download:
        return load_cifar(download_archive(name, target, progress))
    places = " or ".join(str(folder) for folder in folders)
    raise NotOnDiskError(
        f"{name} is not in {places} and download is off; put {' or '.join(_ON_DISK[name][2:4])} there, "
        "or set MINIVIT_DATA to its folder; `minivit train digits` needs no download"
    )


def _candidates(folder: Path, name: str) -> Iterator[Path]:
    """Yield where the data set may be: `folder` itself, its entries of known names, then those of the right content."""
    if batches_in(folder) == name:
        yield folder
    yield from (path for entry in _ON_DISK[name] if _is_dataset(path := folder / entry))
    entries = [path for entry in _entries(folder) for path in (entry, *_entries(entry))]
    yield from (entry for entry in entries if batches_in(entry) == name)
    archives = (entry for entry in entries if entry.name.lower().endswith(_ARCHIVES) and entry.is_file())
    yield from (archive for archive in archives if archive_of(archive) == name)
    yield from (entry for entry in (folder, *entries) if class_names(entry) == CLASS_NAMES[name])


def _is_dataset(path: Path) -> bool:
    """Return whether `path` is a file, which may be an archive, or a folder of batch files, prepared or of classes."""
    return path.is_file() or batches_in(path) is not None or is_prepared(path) or len(class_names(path)) > 1


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder in the order of their names; none of a folder that has very many."""
    try:
        entries = sorted(folder.iterdir(), key=str) if folder.is_dir() else []
    except OSError:
        return []
    return entries if len(entries) <= _MOST_ENTRIES else []


def _data_folders(data_dir: str | Path | None) -> tuple[list[Path], Path]:
    """Return the folders to search, in order, and the folder to download to."""
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
        return [folder], folder
    import pooch

    cache = Path(pooch.os_cache("minivit"))
    if chosen := os.environ.get("MINIVIT_DATA"):
        folder = Path(chosen).expanduser()
        return [folder, cache], folder
    return [Path("data"), cache], cache
