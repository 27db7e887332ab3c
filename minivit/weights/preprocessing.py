"""How a model file wants its images, and what its classes are called: its metadata, checked."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from minivit.errors import UserError, counted
from minivit.nn.config import ViTConfig

IMAGE_KEYS = ("mean", "std", "crop_pct", "crop_mode", "interpolation")  # what timm's configuration says of images
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
FITS = {"center": "crop", "squash": "squash"}  # timm's crop_mode
_USUAL = {"mean": [0.5], "std": [0.5]}  # of Google's weights, and of most Vision Transformers of timm
_CROP_PCT = 0.875  # timm's, where a configuration has none
_STD = (1e-6, 1e6)
# A class of ImageNet as its folder is called. Sorted, they are in the order of the heads of all models of ImageNet-1k.
_SYNSET = re.compile(r"n\d{8}")
_IMAGENET_1K = 1000  # classes


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes the input of a model.

    Parameters
    ----------
    mean, std : tuple of float
        One number for each channel: ``(pixels / 255 - mean) / std``.
    crop_fraction : float
        The part of the resized image that the crop keeps, along each axis.
    interpolation : str
        The filter of the resizing, by Pillow's name.
    fit : str
        "crop" keeps the proportions of the image and crops around its centre; "squash" does not keep them.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float = 1.0
    interpolation: str = "bicubic"
    fit: str = "crop"

    @property
    def decoding(self) -> dict[str, Any]:
        """The arguments of `minivit.data.images.decode` and `load_dataset`."""
        return {"crop_fraction": self.crop_fraction, "interpolation": self.interpolation, "fit": self.fit}


def preprocessing_of(path: Path | str, about: Mapping[str, Any], config: ViTConfig) -> Preprocessing:
    """Return the preprocessing in the metadata `about` of the model file `path`.

    Raises
    ------
    UserError
        A value has the wrong type or length, or cannot be used.

    Warns
    -----
    UserWarning
        The metadata lack mean or std, and those of timm's Vision Transformers are assumed.
    """
    assumed = {key: value for key, value in _USUAL.items() if key not in about}
    if assumed:
        words = ", ".join(f"{key} {value}" for key, value in assumed.items())
        warnings.warn(f"{path} does not say how its images were normalised; assumed: {words}", stacklevel=2)
    mean, std = (_numbers(path, key, about.get(key, _USUAL[key]), config.in_chans) for key in ("mean", "std"))
    if not all(_STD[0] <= value <= _STD[1] for value in std):
        raise UserError(f"{path}: its std is {list(std)}; expected numbers above 0, from {_STD[0]} to {_STD[1]}")
    fraction = about.get("crop_pct", 1.0)
    if type(fraction) not in (int, float) or not 0.05 <= fraction <= 1.0:
        raise UserError(f"{path}: its crop_pct is {fraction!r:.40}; expected a number from 0.05 to 1")
    interpolation = _one_of(path, "interpolation", about.get("interpolation", "bicubic"), INTERPOLATIONS)
    mode = _one_of(path, "crop_mode", about.get("crop_mode", "center"), tuple(FITS))
    return Preprocessing(mean, std, float(fraction), interpolation, FITS[mode])


def _numbers(path: Path | str, key: str, value: Any, channels: int) -> tuple[float, ...]:
    right = isinstance(value, list | tuple) and all(type(number) in (int, float) for number in value)
    if not right or len(value) not in (1, channels) or not all(abs(number) <= 1e6 for number in value):
        expected = f"a list of {channels} numbers, one for each channel"
        raise UserError(f"{path}: its {key} is {value!r:.60}; expected {expected}")
    return tuple(map(float, value)) * (channels // len(value))


def _one_of(path: Path | str, key: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UserError(f"{path}: its {key} is {value!r:.40}; expected one of {', '.join(known)}")
    return str(value)


def class_names_of(path: Path, about: Mapping[str, Any], config: ViTConfig) -> tuple[str, ...] | None:
    """Return the names of the classes in the metadata `about` of the model file `path`, or None if it has none.

    Raises
    ------
    UserError
        They are not a list of texts, or their number is not that of the model's classes.
    """
    if "class_names" not in about:
        return None
    names = about["class_names"]
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: its class_names are {names!r:.60}; expected a list of texts")
    if len(names) != config.num_classes:
        raise UserError(f"{path} has {counted(names, 'class name')}, but its head has {config.num_classes} classes")
    return tuple(names)


def order_of_classes(known: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Return for each of `names` its number in a model whose classes have the names `known`, or None if they differ.

    1,000 WordNet IDs, as of the folders of ImageNet-1k, are not compared with names of another kind: the heads of all
    its models are in the order of these IDs.
    """
    ours, theirs = in_one_form(known), in_one_form(names)
    of_imagenet = len(ours) == len(theirs) == _IMAGENET_1K and _are_synsets(theirs) and not _are_synsets(ours)
    if ours == theirs or of_imagenet:
        return list(range(len(ours)))
    numbers = {name: number for number, name in enumerate(ours)}
    if sorted(ours) != sorted(theirs) or len(numbers) != len(ours):
        return None
    return [numbers[name] for name in theirs]


def in_one_form(names: Sequence[str]) -> list[str]:
    """Return names in one Unicode form, to compare them: file systems differ in the form of an accent."""
    return [unicodedata.normalize("NFC", name) for name in names]


def _are_synsets(names: Sequence[str]) -> bool:
    return all(map(_SYNSET.fullmatch, names))


def timm_metadata(config_json: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Return class_names and the values of `IMAGE_KEYS` of a file of timm, as far as ``config.json`` has them.

    Without names, 1,000 classes are those of ImageNet-1k, as in all models of timm.
    """
    pretrained = pretrained_part(config_json)
    names = config_json.get("label_names") or pretrained.get("label_names")
    if names is None and classes == _IMAGENET_1K:
        names = list(imagenet_names())
    found = {"class_names": names, "crop_pct": _CROP_PCT}
    found |= {key: pretrained[key] for key in IMAGE_KEYS if pretrained.get(key) is not None}
    return {key: value for key, value in found.items() if value is not None}


def pretrained_part(config_json: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of timm's ``config.json`` about weights and images; older files have a single level."""
    part = config_json.get("pretrained_cfg")
    return part if isinstance(part, dict) and part else config_json


def imagenet_names() -> tuple[str, ...]:
    """Return the first lemma of each class of ImageNet-1k (ILSVRC 2012), in the order of the heads of timm's models.

    The classes are in the order of their WordNet identifiers; the names are those of WordNet.
    """
    text = (resources.files("minivit.weights") / "imagenet.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
