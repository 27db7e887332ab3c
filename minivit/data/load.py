"""Load a data set by its name or from a path."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from minivit.data.cifar import batches_in, load_cifar
from minivit.data.dataset import Dataset, ProgressCallback
from minivit.data.digits import load_digits
from minivit.data.download import download_archive
from minivit.data.folder import load_folder
from minivit.errors import UserError

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


def load_dataset(
    name_or_path: str | Path,
    *,
    data_dir: str | Path | None = None,
    download: bool = True,
    progress: ProgressCallback | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Dataset:
    """Return a data set by its name or from a path.

    Parameters
    ----------
    name_or_path : str or Path
        "digits", "cifar10", "cifar100", or the path of a tar.gz archive of CIFAR, of a folder of its batch files, or of
        a folder with train/ and test/ (or val/), each with a folder of images for each class.
    data_dir : str or Path, optional
        The folder to search for CIFAR and to download it to. By default: search $MINIVIT_DATA, or ./data if it is not
        set, then the user's cache folder; download to $MINIVIT_DATA, or to the cache folder if it is not set.
    download : bool
        Whether to download CIFAR if it is not on disk.
    progress : callable, optional
        Called as progress(what, done, total) during a download and while image files are read.
    image_size : int or (height, width), optional
        The size to which the images of a folder are resized. The images of named data sets are never resized.

    Raises
    ------
    UserError
        The name or path is unknown, the data cannot be read, or the download fails.
    """
    name = str(name_or_path)
    if name == "digits":
        dataset = load_digits()
    elif name in _ON_DISK:
        dataset = _find_or_download(name, data_dir, download, progress, image_size)
    else:
        dataset = _load_path(Path(name_or_path).expanduser(), progress, image_size)
    height, width = dataset.train_images.shape[1:3]
    if image_size not in (None, (height, width), height if height == width else None):
        raise UserError(f"{dataset.name} has images of {height} x {width}; only a folder of images can be resized")
    return dataset


def _load_path(path: Path, progress: ProgressCallback | None, image_size: int | tuple[int, int] | None) -> Dataset:
    if path.is_file() or (path.is_dir() and batches_in(path)):
        return load_cifar(path)
    if path.is_dir():
        return load_folder(path, image_size=image_size, progress=progress)
    near = difflib.get_close_matches(str(path).lower().replace("-", ""), NAMES, n=1)
    hint = f"did you mean {near[0]}? Expected" if near else "expected"
    raise UserError(
        f"{str(path)!r} is neither a data set nor a file or folder; {hint} {', '.join(NAMES)}, "
        "or the path of a folder of images or of a CIFAR archive"
    )


def _find_or_download(
    name: str,
    data_dir: str | Path | None,
    download: bool,
    progress: ProgressCallback | None,
    image_size: int | tuple[int, int] | None,
) -> Dataset:
    folders, target = _data_folders(data_dir)
    for folder in folders:
        if batches_in(folder) == name:
            return load_cifar(folder)
        for found in (folder / entry for entry in _ON_DISK[name] if (folder / entry).exists()):
            dataset = _load_path(found, progress, image_size)
            if dataset.name != name and dataset.name in _ON_DISK:
                raise UserError(f"{found} holds {dataset.name}, not {name}; rename it")
            return dataset
    if download:
        return load_cifar(download_archive(name, target, progress))
    places = " or ".join(str(folder) for folder in folders)
    raise UserError(
        f"{name} is not in {places} and download is off; put {' or '.join(_ON_DISK[name][2:4])} there, "
        "or set MINIVIT_DATA to its folder; `minivit train digits` needs no download"
    )


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
