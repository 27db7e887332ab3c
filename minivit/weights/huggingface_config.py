"""The JSON files of Hugging Face transformers: ``config.json`` of a ViT, and ``preprocessor_config.json``.

Its ViTImageProcessor resizes without keeping the proportions; other processors resize the shorter side and crop around
the centre. ``size`` and ``crop_size`` say how large, ``resample`` is Pillow's number of a filter.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minivit.errors import UserError
from minivit.files import read_json
from minivit.nn.config import ViTConfig
from minivit.weights.deduce import image_pair
from minivit.weights.layout import WeightsFile
from minivit.weights.preprocessing import IMAGE_KEYS, class_names_of, imagenet_names, preprocessing_of

_FILE = "preprocessor_config.json"
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's numbers
# Their names of activations, and ours; the first name of each of ours is written.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
_WRITTEN = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
_LARGEST = 1 << 20  # pixels
_USUAL = {"image_mean": [0.5], "image_std": [0.5], "resample": 2}  # of ViTImageProcessor


def said_of(file: WeightsFile) -> dict[str, Any]:
    """Return the fields that ``config.json`` of transformers defines.

    Raises
    ------
    UserError
        It asks for an activation that minivit does not have.
    """
    config = file.config_json
    if "hidden_size" not in config and "model_type" not in config:
        return {}
    acts = {"act_layer": config.get("hidden_act", "gelu")}
    if "pooler.dense.weight" in file.tensors:
        acts["representation_act"] = config.get("pooler_act", "tanh")
    known = {"act_layer": _ACTIVATIONS, "representation_act": {"tanh": "tanh", "relu": "relu"}}
    for field, act in acts.items():
        if not isinstance(act, str) or act not in known[field]:
            raise UserError(
                f"{file.path.with_name('config.json')} asks for the activation {act!r:.40}, which minivit does not have"
            )
    ours = {
        "hidden_size": "embed_dim",
        "num_hidden_layers": "depth",
        "num_attention_heads": "num_heads",
        "num_channels": "in_chans",
        "head_dim": "head_dim",
        "image_size": "img_size",
        "layer_norm_eps": "norm_eps",
        "hidden_dropout_prob": "proj_drop_rate",
        "attention_probs_dropout_prob": "attn_drop_rate",
    }
    # The defaults of their configurations.
    said: dict[str, Any] = {"num_heads": 12, "norm_eps": 1e-6 if config.get("model_type") == "vit_msn" else 1e-12}
    said |= {field: config[name] for name, field in ours.items() if config.get(name) is not None}
    said |= {"pos_drop_rate": said["proj_drop_rate"]} if "proj_drop_rate" in said else {}
    return said | {field: known[field][act] for field, act in acts.items()}


def model_config(config: ViTConfig, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``config.json`` from which transformers builds the model."""

    def pair(height: int, width: int) -> int | list[int]:
        return height if height == width else [height, width]

    names = class_names_of(Path("extra"), extra, config) or [f"LABEL_{i}" for i in range(config.num_classes)]
    pooler = {"pooler_output_size": config.representation_size, "pooler_act": config.representation_act}
    return {
        "architectures": ["ViTModel" if config.representation_size else "ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden_dim,
        "hidden_act": _WRITTEN[config.act_layer],
        "layer_norm_eps": config.norm_eps,
        "image_size": pair(config.height, config.width),
        "patch_size": pair(config.patch_height, config.patch_width),
        "num_channels": config.in_chans,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": config.proj_drop_rate,
        "attention_probs_dropout_prob": config.attn_drop_rate,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        **({"head_dim": config.head_dim} if config.head_dim else {}),
        **(pooler if config.representation_size else {}),
    }


def class_names(config_json: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Return ``class_names`` from the labels of ``config.json``, else for 1,000 classes those of ImageNet-1k."""
    labels = config_json.get("id2label")
    labels = labels if isinstance(labels, dict) else {}
    keys = [str(i) for i in range(classes)]
    names = [labels[key] for key in keys if isinstance(labels.get(key), str)]
    if classes and len(names) == len(labels) == classes and names != [f"LABEL_{key}" for key in keys]:
        return {"class_names": names}
    return {"class_names": list(imagenet_names())} if classes == 1000 else {}


def image_metadata(path: Path, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return the preprocessing that the file beside the model `path` defines, as `save_model` takes it.

    `size` is that of the model's images. Without a file, the values are those of ViTImageProcessor.

    Raises
    ------
    UserError
        The file is not valid, or has a value that cannot be used.
    """
    file = path.with_name(_FILE)
    said = read_json(file) if file.exists() else {}
    said = {**_USUAL, **{key: value for key, value in said.items() if value is not None}}
    mean, std = _numbers(file, said, "image_mean"), _numbers(file, said, "image_std")
    if said.get("do_normalize") is False:
        mean, std = [0.0], [1.0]
    factor = _numbers(file, {"rescale_factor": 1 / 255} | said, "rescale_factor")[0]
    scale = 255.0 if said.get("do_rescale") is False else 255.0 * factor
    if abs(scale - 1.0) > 1e-9:  # their pixels are `scale` times ours
        if not scale:
            raise UserError(f"{file}: its rescale_factor is 0")
        mean, std = [value / scale for value in mean], [value / scale for value in std]
    resample = said["resample"]
    if type(resample) is not int or not 0 <= resample < len(_FILTERS):
        raise UserError(f"{file}: its resample is {resample!r:.40}; expected a number of Pillow, from 0 to 5")
    images = {"mean": mean, "std": std, "interpolation": _FILTERS[resample]}
    return images | _crop(said, size)


def _crop(said: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """Return the mode and the fraction of the crop."""
    resized, cropped = said.get("size"), _pair(said.get("crop_size")) or _pair(size)
    shortest = resized.get("shortest_edge") if isinstance(resized, dict) else None
    before = _pair(shortest) or _pair(resized)
    mode = "center" if _pair(shortest) else "squash"
    cut = said.get("do_center_crop") or mode == "center"
    fraction = min(map(_fraction, cropped, before)) if cut and cropped and before else 1.0
    return {"crop_mode": mode, "crop_pct": min(1.0, fraction)}


def _fraction(side: int, edge: int) -> float:
    """Return `side` / `edge`, rounded so that `edge` is ``floor(side / fraction)``, as images are resized."""
    fraction = side / edge
    return fraction if math.floor(side / fraction) == edge else math.nextafter(fraction, 0.0)


def _pair(size: Any) -> tuple[int, int] | None:
    pair = image_pair([size.get("height"), size.get("width")] if isinstance(size, dict) else size)
    return pair if pair and max(pair) <= _LARGEST else None


def _numbers(file: Path, said: Mapping[str, Any], key: str) -> list[float]:
    value = said[key] if isinstance(said[key], list) else [said[key]]
    if not value or any(type(number) not in (int, float) or abs(number) > 1e6 for number in value):
        raise UserError(f"{file}: its {key} is {said[key]!r:.60}; expected numbers")
    return [float(number) for number in value]


def preprocessor_config(config: ViTConfig, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``preprocessor_config.json`` for the preprocessing in `extra`, as `save_model` takes it.

    Raises
    ------
    UserError
        A value in `extra` cannot be used.

    Warns
    -----
    UserWarning
        transformers has no such crop.
    """
    height, width = config.height, config.width
    rule = preprocessing_of(Path("extra"), {"mean": [0.5], "std": [0.5]} | dict(extra), config)
    whole = {"height": height, "width": width}
    before = {name: int(length / rule.crop_fraction) for name, length in whole.items()}
    crop = {"do_center_crop": True, "crop_size": whole}
    said: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": before}
    if rule.fit == "squash":
        said |= crop if before != whole else {}
    elif height == width:  # the processor of CLIP keeps the proportions, in all versions
        said |= {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": before["height"]}, **crop}
        said |= {"do_convert_rgb": config.in_chans == 3}
    else:
        said["size"] = whole
    if rule.fit == "crop" and height != width and set(IMAGE_KEYS) & extra.keys():
        warnings.warn(
            f"Hugging Face transformers cannot crop to {height} x {width} pixels and keep the proportions; its "
            f"{_FILE} says that images are resized without keeping them",
            UserWarning,
            stacklevel=4,
        )
    return said | {
        "resample": _FILTERS.index(rule.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(rule.mean),
        "image_std": list(rule.std),
    }
