"""Image files in one folder for each class: train/CLASS/image.jpg, and test/ (or val/) in the same way.

Names that begin with a dot are ignored. Otherwise train/ and test/ may hold only class folders, and class folders may
hold only images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minivit.data.dataset import Dataset, ProgressCallback, channel_statistics
from minivit.errors import UserError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FILES_PER_TASK = 32


def load_folder(
    path: Path, *, image_size: int | tuple[int, int] | None = None, progress: ProgressCallback | None = None
) -> Dataset:
    """Return the images under `path`; the test set is test/ or, if that does not exist, val/.

    The classes are the names of the folders, sorted. Mean and standard deviation are those of the training images.
    Images are decoded by `read_images`, which describes the other parameters.

    Raises
    ------
    UserError
        A folder is missing or empty, train/ and test/ have different classes, or `read_images` refuses a file.
    """
    test_folder = path / "test" if (path / "test").is_dir() else path / "val"
    for folder, role in ((path / "train", "train/"), (test_folder, "test/ or val/")):
        if not folder.is_dir():
            raise UserError(
                f"{path} has no folder {role}; expected train/ and test/ or val/ in it, with one folder for each class"
            )
    train, test = _files_by_class(path / "train"), _files_by_class(test_folder)
    if train.keys() != test.keys():
        odd = ", ".join(sorted(train.keys() ^ test.keys()))
        raise UserError(
            f"{path / 'train'} and {test_folder} must have the same classes, but only one of them has: {odd}"
        )
    files = [file for part in (train, test) for members in part.values() for file in members]
    images = read_images(files, image_size=image_size, progress=progress)
    train_labels, test_labels = _labels(train), _labels(test)
    train_images, test_images = images[: len(train_labels)], images[len(train_labels) :]
    mean, std = channel_statistics(train_images)
    return Dataset(path.resolve().name, train_images, train_labels, test_images, test_labels, tuple(train), mean, std)


def _files_by_class(folder: Path) -> dict[str, list[Path]]:
    files = {}
    for entry in _visible(folder):
        if not entry.is_dir():
            raise UserError(f"{entry} is not a folder; {folder} must hold one folder for each class and nothing else")
        files[entry.name] = list(_visible(entry))
        if not files[entry.name]:
            raise UserError(f"the class folder {entry} is empty; put images into it or remove it")
        for file in files[entry.name]:
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                raise UserError(
                    f"{file} is not an image ({', '.join(IMAGE_SUFFIXES)}); remove it from the class folder"
                )
    if not files:
        raise UserError(f"{folder} has no class folders; expected a folder of images for each class in it")
    return files


def _visible(folder: Path) -> Iterator[Path]:
    return (entry for entry in sorted(folder.iterdir()) if not entry.name.startswith("."))


def _labels(files: dict[str, list[Path]]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(files), dtype=np.int64), [len(members) for members in files.values()])


def read_images(
    paths: Sequence[Path | str],
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    progress: ProgressCallback | None = None,
) -> NDArray[np.uint8]:
    """Decode image files.

    Parameters
    ----------
    paths : sequence of Path or str
        At least one.
    image_size : int or (height, width), optional
        Resize all images to this size (bicubic, without keeping the aspect ratio). By default all must have one size.
    channels : 1 or 3, optional
        Convert to greyscale or to RGB. By default: greyscale if every file is greyscale, else RGB.
    progress : callable, optional
        Called as progress("reading images", done, total).

    Returns
    -------
    NDArray[np.uint8]
        (n, height, width, C).

    Raises
    ------
    UserError
        A file is not an image, is damaged, has more than 8 bits per channel, or has another size than the first file;
        the message names the file.
    """
    if not paths:
        raise UserError("there are no image files to read")
    files = [Path(path) for path in paths]
    height, width = _decode(files[0], None, channels).shape[:2] if image_size is None else _height_width(image_size)
    images = np.empty((len(files), height, width, channels or 3), np.uint8)

    def read(start: int) -> bool:
        all_grey = True
        for i in range(start, min(start + _FILES_PER_TASK, len(files))):
            pixels = _decode(files[i], None if image_size is None else (height, width), channels)
            if pixels.shape[:2] != (height, width):
                raise UserError(
                    f"{files[i]} is {pixels.shape[0]} x {pixels.shape[1]} pixels, but {files[0]} is {height} x {width}"
                    "; give an image size to resize all of them"
                )
            images[i] = pixels
            all_grey &= pixels.shape[2] == 1
        return all_grey

    all_grey = True
    with ThreadPoolExecutor() as pool:
        starts = range(0, len(files), _FILES_PER_TASK)
        for start, grey in zip(starts, pool.map(read, starts), strict=True):
            all_grey &= grey
            if progress is not None:
                progress("reading images", min(start + _FILES_PER_TASK, len(files)), len(files))
    return images[..., :1].copy() if all_grey else images


def _height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise UserError(f"the image size is {height} x {width}; expected at least 1 x 1")
    return height, width


def _decode(path: Path, size: tuple[int, int] | None, channels: int | None) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    try:
        if path.exists() and not path.is_file():  # reading from a pipe would block
            raise ValueError("it is not a file")
        with Image.open(path) as file:
            if file.mode[0] in "IF":
                raise ValueError(f"its pixels have the mode {file.mode}; save it with 8 bits per channel")
            grey = file.mode in ("1", "L", "LA") if channels is None else channels == 1
            image = ImageOps.exif_transpose(file).convert("L" if grey else "RGB")  # applies the EXIF orientation
            if size is not None and image.size != (size[1], size[0]):
                image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
            pixels = np.asarray(image)
    except Exception as error:  # decoders raise many types of exception on invalid data
        raise UserError(f"{path} cannot be read as an image: {error}; replace it or remove it") from error
    return pixels[..., None] if grey else pixels
