"""Decode image files into uint8 pixels that mean what an image viewer shows.

- The EXIF orientation is applied.
- Transparent pixels are shown on white.
- 16 bits per channel are reduced to the upper 8. Pixels that are floats or 32-bit integers have no known range and are
  refused.
- Of an animation or a document of several pages, the first is read. Colour profiles are not applied.
- An image is resized, with its proportions kept, to the smallest size that covers the model's, then cropped around its
  centre: the rule of torchvision and timm. The pixels of an upright, opaque image of 8 bits are theirs; a JPEG is
  decoded at a smaller size, which changes sharp edges, only if it has more than 40 million pixels.
"""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minivit.data.image_files import FORMATS, check_file, halvings, is_jpeg, load, opened
from minivit.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_nowhere = logging.NullHandler()
_UPRIGHT = {  # EXIF orientation: the name of Pillow's transposition that undoes it
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@dataclass(frozen=True)
class Decoding:
    """How image files become pixels; `decode` describes the fields. The constructor checks them."""

    size: tuple[int, int] | None = None
    channels: int | None = None
    crop_fraction: float = 1.0
    interpolation: str = "bicubic"
    fit: str = "crop"

    def __post_init__(self) -> None:
        from PIL import Image

        if self.size is not None and min(self.size) < 1:
            raise UserError(f"the image size is {self.size[0]} x {self.size[1]}; expected at least 1 x 1")
        if self.channels not in (None, 1, 3):
            raise UserError(f"images are read with 1 or 3 channels, not {self.channels}")
        if not 0 < self.crop_fraction <= 1:
            raise UserError(f"the crop fraction is {self.crop_fraction}; expected more than 0 and at most 1")
        names = [resampling.name.lower() for resampling in Image.Resampling]
        if self.interpolation not in names:
            raise UserError(f"there is no interpolation {self.interpolation!r}; expected one of {', '.join(names)}")
        if self.fit not in ("crop", "squash"):
            raise UserError(f"fit is {self.fit!r}; expected 'crop' or 'squash'")


def decode(
    path: Path | str,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    crop_fraction: float = 1.0,
    interpolation: str = "bicubic",
    fit: str = "crop",
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode one image file.

    Parameters
    ----------
    path : Path or str
        The file.
    size : (height, width), optional
        The size of the pixels that are returned. By default the image is not resized.
    channels : 1 or 3, optional
        Convert to greyscale or to RGB. By default: greyscale if the file is, else RGB.
    crop_fraction : float
        The part of the resized image's height and width that the crop keeps; timm's ``crop_pct``.
    interpolation : str
        Name of a filter of Pillow, such as "bicubic", "bilinear", "nearest" or "lanczos"; all are antialiased.
    fit : "crop" or "squash"
        Keep the proportions and cut off what is too much, or change the proportions.

    Returns
    -------
    pixels : NDArray[np.uint8]
        (height, width, C).
    upright_size : (int, int)
        Height and width of the image as a viewer shows it, before it is resized.

    Raises
    ------
    UserError
        The file is missing, damaged, too large, or of a format or pixel type that is not read; the message names it.
    """
    decoding = Decoding(size, channels, crop_fraction, interpolation, fit)
    with quiet_pillow():
        return decode_file(Path(path), decoding)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Hide Pillow's warnings and log: they are about metadata, or repeat for each file; faults of pixels are errors.

    A thread besides the main one cannot change what is shown for a while; see `mute_pillow`.
    """
    logging.getLogger("PIL").addHandler(_nowhere)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def mute_pillow() -> None:
    """Hide Pillow's warnings from now on, for images that threads read."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_file(path: Path, decoding: Decoding) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Do what `decode` does, on any thread.

    The caller has called `quiet_pillow`, because filters of warnings belong to the whole process.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        check_file(path)
        with path.open("rb") as file, opened(file) as image:
            stored = image.size
            if is_jpeg(image) and decoding.size is not None and (times := halvings(image)):
                image.draft(None, (image.width >> times, image.height >> times))
            load(file, image)
            orientation = _orientation(image)
            shown = _as_shown(image, decoding.channels)
            if orientation in _UPRIGHT:
                shown = shown.transpose(Image.Transpose[_UPRIGHT[orientation]])
            if decoding.size is not None:
                shown = fitted(shown, decoding.size, decoding)
            pixels = np.asarray(shown)
    except UnidentifiedImageError as error:
        names = ", ".join(FORMATS)
        raise UserError(f"{path} cannot be read as an image: its content is none of {names}") from error
    except Exception as error:  # decoders raise many types of exception on invalid data
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read as an image: {reason}") from error
    turned = stored if orientation in (5, 6, 7, 8) else stored[::-1]
    return pixels if pixels.ndim == 3 else pixels[..., None], turned


def _orientation(image: Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))  # after load(): Pillow turns a TIFF itself and removes the tag
    except Exception:  # broken metadata; the pixels can be right
        return 1


def _as_shown(image: Image, channels: int | None) -> Image:
    """Return a loaded image in the mode L or RGB, with its transparency on white."""
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = "floats" if image.mode == "F" else "32-bit integers"
        raise ValueError(f"its pixels are {kind}; save it with 8 or 16 bits per channel")
    if image.mode[0] == "I":
        image = _from_16_bits(image)
    grey = _is_grey(image) if channels is None else channels == 1
    if image.has_transparency_data:
        image = _converted(image, "RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    elif image.mode == "P":
        image = image.convert("RGB")
    return _converted(image, "L" if grey else "RGB")


def _converted(image: Image, mode: str) -> Image:
    return image if image.mode == mode else image.convert(mode)


def _is_grey(image: Image) -> bool:
    if image.mode in ("P", "PA"):
        colours = image.getpalette("RGB") or []
        palette = np.array([*colours, *[0] * (768 - len(colours))]).reshape(256, 3)
        used = palette[np.flatnonzero(image.getchannel(0).histogram())]
        return bool((used == used[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La")


def _from_16_bits(image: Image) -> Image:
    """Return a greyscale image of 8 bits; the upper 8 bits are also what Pillow keeps of 16 bits per colour."""
    from PIL import Image

    values = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})  # of TIFF
    bits = int(np.max(tags.get(258, 16)))  # BitsPerSample: 12 bits are stored in 16 too
    grey = (values >> max(bits - 8, 0)).clip(0, 255).astype(np.uint8)
    if image.format == "TIFF" and tags.get(262) == 0:  # PhotometricInterpretation: white is 0
        grey = 255 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey)


def fitted(image: Image, size: tuple[int, int], decoding: Decoding) -> Image:
    """Resize so that `size` is `crop_fraction` of the result, and crop around the centre.

    The longer side is rounded as in timm: down to a square, to the nearest number otherwise.
    """
    from PIL import Image

    height, width = size
    target_height = math.floor(height / decoding.crop_fraction)
    target_width = math.floor(width / decoding.crop_fraction)
    whole = int if target_height == target_width else round
    if decoding.fit == "crop":
        image = _without_far_ends(image, size)
        if image.width * target_height > image.height * target_width:  # too wide: the height decides
            target_width = whole(target_height * image.width / image.height)
        else:
            target_height = whole(target_width * image.height / image.width)
    if image.size != (target_width, target_height):
        image = image.resize((target_width, target_height), Image.Resampling[decoding.interpolation.upper()])
    top, left = round((target_height - height) / 2), round((target_width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _without_far_ends(image: Image, size: tuple[int, int]) -> Image:
    """Crop an image that is more than 64 times too wide or too high, which would be very long when resized."""
    height, width = size
    kept_width = min(image.width, math.ceil(64 * image.height * width / height))
    kept_height = min(image.height, math.ceil(64 * image.width * height / width))
    if (kept_width, kept_height) == image.size:
        return image
    left, top = (image.width - kept_width) // 2, (image.height - kept_height) // 2
    return image.crop((left, top, left + kept_width, top + kept_height))
