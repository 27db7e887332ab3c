"""timm's layout, which has the same names and PyTorch's shapes; minivit's own files are in it.

    weights of linear layers  minivit (in, out)     timm (out, in)
    weights of convolutions   minivit (P P C, D)    timm (D, C, P, P); also patch_embed.proj.weight
    everything else           the same

A patch is flattened in the order row, column, channel. Parameters that timm's Vision Transformer does not have are
stored under our names. Without a configuration, the shapes determine the sizes.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import fields as dataclass_fields
from typing import Any, ClassVar

from minivit.arrays import Array
from minivit.errors import UserError, counted
from minivit.nn.config import ViTConfig
from minivit.nn.hybrid_embed import feature_patch, feature_stride
from minivit.nn.vit import ViT
from minivit.weights.deduce import PASS_HEADS, PASS_SIZE, image_pair, mlp_ratio, square, warn_of_assumed
from minivit.weights.entries import Entry, convolution, same, transposed
from minivit.weights.layout import Layout, WeightsFile
from minivit.weights.preprocessing import pretrained_part, timm_metadata
from minivit.weights.recognise import unsupported_parts
from minivit.weights.timm_config import arguments, config_json, family, hybrid_architecture, is_known, warn_of_depth

_PATCH = "patch_embed.proj.weight"
_BACKBONE = "patch_embed.backbone."  # of a hybrid
_FIRST = "blocks.0."
# Numbers of axes of other tensors that define the model, where a file has them.
_RANKS = {
    "head.weight": 2,
    "pre_logits.fc.weight": 2,
    _FIRST + "attn.qkv.weight": 2,
    _FIRST + "attn.q_norm.weight": 1,
}
_TABLES = re.compile(r"^pos_embed\.|\.rel_pos$")  # with two axes and no weight of a linear layer
_FIELDS = {field.name for field in dataclass_fields(ViTConfig)}


class Timm(Layout):
    """timm's VisionTransformer."""

    name = "timm"
    program = "timm"
    # What timm's model can express; our own files hold any model.
    expresses: ClassVar[Mapping[str, Collection[Any] | None]] = dict.fromkeys(_FIELDS) | {
        "head_dim": (0,),
        "patch_stride": (0,),
        "conv_stem": ((),),
        "embed_norm": ("none", "after"),
        "pos_embed": ("learn", "none"),
        "pos_embed_layers": ("first",),
        "representation_size": (0,),
    }

    def recognises(self, names: Collection[str]) -> bool:
        """Return whether there is a projection of patches of timm's name."""
        return _PATCH in names

    def prepare(self, tensors: dict[str, Array]) -> dict[str, Array]:
        """Return the tensors with the present names of LayerScale, which DeiT III called ``gamma_1``.

        Without positions they are those of EVA, whose rotary positions have no tensors; `sizes` refuses them.
        """
        if "pos_embed" not in tensors:
            return tensors
        return {
            re.sub(r"(^blocks\.\d+\.)gamma_([12])$", r"\1ls\2.gamma", name): value for name, value in tensors.items()
        }

    def entries(self, model: ViT) -> list[Entry]:
        """Return an entry for each parameter, also those of a user's own layers."""
        return [entry(name, parameter.shape, model.config) for name, parameter in model.declared().items()]

    def sizes(self, file: WeightsFile) -> dict[str, Any]:
        """Return the sizes of a model of timm or of ours."""
        shapes = file.shapes
        patch, fc1 = shapes.get(_PATCH, ()), shapes.get(_FIRST + "mlp.fc1.weight", ())
        if parts := unsupported_parts(shapes):
            raise UserError(
                f"{file.path} holds a Vision Transformer with {' and '.join(parts)}, which minivit does not support"
            )
        wrong = [] if len(patch) in (2, 4) else [_PATCH]
        wrong += [] if len(fc1) == 2 else [_FIRST + "mlp.fc1.weight"]
        wrong += [name for name, rank in _RANKS.items() if name in shapes and len(shapes[name]) != rank]
        if wrong:
            found = counted(list(shapes), "tensor")
            raise UserError(
                f"{file.path} is not a Vision Transformer of timm: it has no {', '.join(wrong)} of timm's shape, but "
                f"{found}"
            )
        sizes: dict[str, Any] = {
            "num_classes": shapes.get("head.weight", (0,))[0],
            "embed_dim": patch[0],
            "depth": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
            "hidden_dim": fc1[0],
        }
        if len(patch) == 4:  # not a stem of convolutions
            sizes |= _resnet(file, shapes) or {"in_chans": patch[1], "patch_size": (patch[2], patch[3])}
        return sizes

    def fields(self, file: WeightsFile, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the configuration of a file of timm."""
        sizes, shapes = self.sizes(file), file.shapes
        if "patch_size" not in sizes:
            raise UserError(
                f"{file.path} is not a Vision Transformer of timm: it has no {_PATCH} of timm's shape, but "
                f"{counted(list(shapes), 'tensor')}"
            )
        said = arguments(file, given)
        if "resnet" in sizes:
            said.pop("patch_size", None)  # of the features
        known, usual = said | dict(given), family(file, sizes["embed_dim"])
        values = _parts(shapes) | {name: value for name, value in sizes.items() if name in _FIELDS}
        values |= {"mlp_ratio": mlp_ratio(sizes)} | _pooling(shapes, known)
        values |= {name: value for name, value in (usual | known).items() if name not in values}
        values.setdefault("init_values", 1e-5)  # replaced by those of the file
        values |= _positions(file, sizes, said, given, values)
        values |= _head_width(file, values)
        warn_of_depth(file, sizes, known)
        if not is_known(file):
            warn_of_assumed(file, {name: values[name] for name in usual if name not in known})
        return values | {name: said[name] for name in ("embed_dim", "depth", "patch_size", "in_chans") if name in said}

    def metadata(self, file: WeightsFile) -> dict[str, Any]:
        """Return what timm's ``config.json`` says of images and classes."""
        return timm_metadata(file.config_json, self.sizes(file)["num_classes"])

    def side_files(self, config: ViTConfig, extra: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the ``config.json`` from which timm builds the model, which is empty where timm has no such model."""
        return {"config.json": {} if self.refusals(config) else config_json(config, extra)}

    def refusals(self, config: ViTConfig) -> list[str]:
        """Return what timm's Vision Transformer cannot express."""
        found = super().refusals(config)
        if config.resnet and not hybrid_architecture(config):
            found.append(f"resnet={config.resnet!r}")
        if config.mlp_bias != config.proj_bias:
            found.append(f"mlp_bias={config.mlp_bias} with proj_bias={config.proj_bias}")
        return found


def entry(name: str, shape: tuple[int, ...], config: ViTConfig) -> Entry:
    """Return the entry of the parameter `name` of a model of `config`."""
    if name.startswith(_BACKBONE):
        theirs = name if config.resnet_depths else name.replace(".stem.", ".")
        if len(shape) == 1:
            return same(name, theirs)
        kernel = 7 if ".stem." in name else 3 if name.endswith(".conv2.weight") else 1
        return convolution(name, theirs, (kernel, kernel), shape[0] // kernel**2)
    patch, channels = (config.patch_height, config.patch_width), config.in_chans
    if config.resnet:
        patch = feature_patch(patch, config.resnet_depths)
        channels = shape[0] // (patch[0] * patch[1])
    if name == _PATCH and shape == (patch[0] * patch[1] * channels, config.embed_dim):
        return convolution(name, name, patch, channels)
    return same(name) if len(shape) != 2 or _TABLES.search(name) else transposed(name)


def _resnet(file: WeightsFile, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the sizes of a hybrid, or nothing for another model."""
    names = [name.removeprefix(_BACKBONE).split(".") for name in shapes if name.startswith(_BACKBONE)]
    if not names:
        return {}
    stem = shapes.get(f"{_BACKBONE}stem.conv.weight") or shapes.get(f"{_BACKBONE}conv.weight") or ()
    places = {tuple(name[1:4:2]) for name in names if name[0] == "stages" and len(name) > 3}
    counts = Counter(stage for stage, _ in places)
    depths = tuple(counts[str(i)] for i in range(len(counts)))
    if len(stem) != 4 or len(shapes[_PATCH]) != 4 or 0 in depths:
        raise UserError(f"{file.path} is not a hybrid of timm: it has no ResNet of timm's names")
    stride = feature_stride(depths)
    rows, columns = shapes[_PATCH][2:]
    return {"in_chans": stem[1], "patch_size": (stride * rows, stride * columns), "resnet": depths or (0,)}


def _parts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the fields that follow from which tensors there are."""
    return {
        "class_token": "cls_token" in shapes,
        "reg_tokens": shapes["reg_token"][1] if len(shapes.get("reg_token", ())) == 3 else 0,
        "embed_norm": "after" if "patch_embed.norm.weight" in shapes else "none",
        "qkv_bias": _FIRST + "attn.qkv.bias" in shapes,
        "proj_bias": _FIRST + "attn.proj.bias" in shapes,
        "mlp_bias": _FIRST + "mlp.fc1.bias" in shapes,
        "qk_norm": _FIRST + "attn.q_norm.weight" in shapes,
        "pre_norm": "norm_pre.weight" in shapes,
        "representation_size": shapes.get("pre_logits.fc.weight", (0,))[0],
    } | ({} if _FIRST + "ls1.gamma" in shapes else {"init_values": 0.0})


def _pooling(shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, Any]) -> dict[str, Any]:
    tokens, pooled = "norm.weight" in shapes, "fc_norm.weight" in shapes
    usual = "avg" if pooled or "cls_token" not in shapes else "token"
    pool = "map" if "attn_pool.latent" in shapes else known.get("global_pool", usual)
    values = {"global_pool": pool, "final_norm": tokens or pooled}
    return values | ({"fc_norm": pooled} if (tokens or pooled) and pooled != (pool == "avg") else {})


def _head_width(file: WeightsFile, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the number of heads, which their norms say if there are some, and `head_dim` if it is not D / H."""
    width, heads = file.shapes.get(_FIRST + "attn.qkv.weight", (0,))[0] // 3, values["num_heads"]
    norm = file.shapes.get(_FIRST + "attn.q_norm.weight", (0,))[0]
    if norm and width % norm == 0:
        heads = width // norm
    if heads == 0:
        raise UserError(
            f"{file.path} does not define the number of heads for embed_dim {values['embed_dim']}; {PASS_HEADS}"
        )
    if type(heads) is not int or width == values["embed_dim"]:
        return {"num_heads": heads}
    return {"num_heads": heads, "head_dim": max(1, width // heads)}


def _positions(
    file: WeightsFile,
    sizes: Mapping[str, Any],
    said: Mapping[str, Any],
    given: Mapping[str, Any],
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """Return `img_size`, and whether there are positions and which tokens they cover.

    The size is that of ``config.json``, else a square, as timm assumes, else the given one.
    """
    P, Q = sizes["patch_size"]
    shape = file.shapes.get("pos_embed", ())
    input_size = pretrained_part(file.config_json).get("input_size")
    from_json = said.get("img_size"), input_size[1:] if isinstance(input_size, list) else None
    asked = image_pair(given.get("img_size"))
    if len(shape) != 3:
        for size in (*map(image_pair, from_json), asked):
            if size and size[0] % P == 0 and size[1] % Q == 0:
                return {"pos_embed": "none", "img_size": size, "no_embed_class": False}
        raise UserError(f"{file.path} has no positions, so it does not define the image size; {PASS_SIZE}")
    prefix = int(values["class_token"]) + values["reg_tokens"]
    covers = {shape[1] - prefix: False, shape[1]: True}  # the number of patches, and so no_embed_class
    if (known := given.get("no_embed_class", said.get("no_embed_class"))) is not None:
        covers = {patches: excluded for patches, excluded in covers.items() if excluded == known}
    covers = covers if prefix else {shape[1]: False}
    first = next(iter(covers), 0)
    squares = [(square(patches) * P, square(patches) * Q) for patches in covers if patches > 0]
    for size in (*map(image_pair, from_json), None if square(max(first, 0)) else asked, *squares):
        patches = size[0] // P * (size[1] // Q) if size and not (size[0] % P or size[1] % Q) else 0
        if not (size and patches in covers and patches > 0):
            continue
        if input_size is not None and size not in map(image_pair, from_json):
            warnings.warn(
                f"{file.path.with_name('config.json')} says input_size {input_size!r:.40}, but the positions in "
                f"{file.path.name} are for images of {size[0]} x {size[1]}, which are used",
                stacklevel=5,
            )
        return {"img_size": size, "no_embed_class": covers[patches]}
    raise UserError(f"{file.path} has positions for {first} patches, not a square; {PASS_SIZE}")
