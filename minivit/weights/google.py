"""Google's layouts, .npz files of JAX programs: that of vision_transformer (Dosovitskiy et al. 2020) and of big_vision.

Both have minivit's shapes, except that heads have an axis of their own. big_vision counts the layers of a block anew,
adds positions before the class token, and may stack all blocks along a first axis. Files of a training run have the
model under ``opt/target/`` or ``params/``, and the state of the optimiser beside it.

https://github.com/google-research/vision_transformer, vit_jax/models_vit.py, and
https://github.com/google-research/big_vision, big_vision/models/vit.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.hybrid_embed import feature_patch, feature_stride
from minivit.nn.resnet import CHANNELS
from minivit.nn.vit import ViT
from minivit.weights.deduce import expect_axes, image_pair, mlp_ratio, size_of_images, warn_of_assumed
from minivit.weights.entries import Entry, reshaped, same, side_by_side
from minivit.weights.layout import Layout, WeightsFile
from minivit.weights.preprocessing import imagenet_names

_PATCH, _BLOCK, _STACKED = "embedding/kernel", "Transformer/encoderblock_{}/", "Transformer/encoderblock/"
_POSITIONS = {False: "Transformer/posembed_input/pos_embedding", True: "pos_embedding"}  # of the original, big_vision
# The names in a block of the original and of big_vision: attention, the norm before the MLP, and the MLP.
_ATTENTION = {False: "MultiHeadDotProductAttention_1", True: "MultiHeadDotProductAttention_0"}
_NORM2 = {False: "LayerNorm_2", True: "LayerNorm_1"}
_MLP = {False: "MlpBlock_3", True: "MlpBlock_0"}
_MAP = "MAPHead_0/"
_BACKBONE = "patch_embed.backbone."  # of a hybrid, here
_ROOTS = ("opt/target/", "params/")
_BESIDE = ("opt/", "chrono/", "step", "extra/")  # the state of a training run
_DEEPEST = 1000
_USUAL_SIZE = 224  # the images of big_vision's models, whose fixed positions do not say it


class Google(Layout):
    """The Vision Transformers of Google's JAX programs."""

    name = "google"
    program = "Google's JAX programs"
    suffix = ".npz"
    family: ClassVar[Mapping[str, Any]] = {"act_layer": "gelu_tanh", "norm_eps": 1e-6}  # GELU and layer norm of Flax
    expresses: ClassVar[Mapping[str, Collection[Any] | None]] = {
        **dict.fromkeys(("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads")),
        **dict.fromkeys(
            ("mlp_ratio", "class_token", "no_embed_class", "representation_size", "global_pool", "fc_norm", "resnet")
        ),
        "norm_eps": None,
        "act_layer": ("gelu_tanh", "gelu"),
        "pos_embed": ("learn", "sincos_2d"),
    }

    def recognises(self, names: Collection[str]) -> bool:
        """Return whether there are a projection of patches and a block of Google's names."""
        return any(name.endswith(_PATCH) for name in names) and any(
            "Transformer/encoderblock" in name for name in names
        )

    def prepare(self, tensors: dict[str, Array]) -> dict[str, Array]:
        """Return the model's tensors without those of a training run, with the blocks one by one.

        A model that both programs have is given the names of the original.
        """
        root = next((root for root in _ROOTS if root + _PATCH in tensors), "")
        if root:
            tensors = {
                name.removeprefix(root): value
                for name, value in tensors.items()
                if name.startswith(root) or not name.startswith(_BESIDE)
            }
        blocks: dict[str, Array] = {}
        for name, value in tensors.items():
            if name.startswith(_STACKED) and value.ndim and len(value) <= _DEEPEST:
                rest = name.removeprefix(_STACKED)
                blocks |= {_BLOCK.format(i) + rest: one for i, one in enumerate(value)}
            elif value.shape[:3] == (1, 1, 1) and name.rpartition("/")[0].rpartition("/")[2].startswith("gn"):
                blocks[name] = value.reshape(-1)  # of a group norm, in the published files
            else:
                blocks[name] = value
        if not _is_big_vision(blocks) or _MAP + "probe" in blocks or "cls" in blocks or _POSITIONS[True] not in blocks:
            return blocks
        return {_original(name): value for name, value in blocks.items()}

    def sizes(self, file: WeightsFile) -> dict[str, Any]:
        """Return the sizes that the shapes determine."""
        shapes, big_vision = file.shapes, _is_big_vision(file.tensors)
        query = f"{_BLOCK.format(0)}{_ATTENTION[big_vision]}/query/kernel"
        hidden = f"{_BLOCK.format(0)}{_MLP[big_vision]}/Dense_0/kernel"
        axes = {_PATCH: 4, query: 3, hidden: 2}
        axes |= {name: 2 for name in ("head/kernel", "pre_logits/kernel") if name in shapes}
        expect_axes(file, self.program, shapes, axes)
        P, Q, C, D = shapes[_PATCH]
        return (_resnet(file, shapes) or {"patch_size": (P, Q), "in_chans": C}) | {
            "embed_dim": D,
            "num_classes": shapes.get("head/kernel", (0, 0))[1],
            "depth": len(
                {match[1] for name in shapes if (match := re.match(r"Transformer/encoderblock_(\d+)/", name))}
            ),
            "num_heads": shapes[query][1],
            "hidden_dim": shapes[hidden][1],
        }

    def fields(self, file: WeightsFile, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the configuration; the activation and the eps are those of Flax."""
        sizes, shapes = self.sizes(file), file.shapes
        big_vision, class_token = _is_big_vision(shapes), "cls" in shapes
        positions = shapes.get(_POSITIONS[big_vision], ())
        values = {name: value for name, value in sizes.items() if name != "hidden_dim"}
        values |= {
            "mlp_ratio": mlp_ratio(sizes),
            "class_token": class_token,
            "no_embed_class": big_vision and class_token and len(positions) == 3,
            "global_pool": "map" if _MAP + "probe" in shapes else "token" if class_token else "avg",
            "fc_norm": False,
            "representation_size": shapes.get("pre_logits/kernel", (0, 0))[-1],
            "pos_embed": "learn" if len(positions) == 3 else "sincos_2d" if big_vision else "none",
        }
        assumed = dict(self.family)
        P, Q = sizes["patch_size"]
        image = image_pair(given.get("img_size"))
        if len(positions) == 3:
            patches = positions[1] - (class_token and not big_vision)
            image = size_of_images(file, patches, (P, Q), image)
        elif image is None:
            image = (_USUAL_SIZE // P * P, _USUAL_SIZE // Q * Q)
            assumed["img_size"] = image
        values |= assumed | {"img_size": image}
        warn_of_assumed(file, {k: v for k, v in assumed.items() if k not in given}, "as Google's programs have")
        return values

    def metadata(self, file: WeightsFile) -> dict[str, Any]:
        """Return the preprocessing of both programs in evaluation, and the names of 1,000 classes, ImageNet's."""
        names = {"class_names": list(imagenet_names())} if file.shapes.get("head/bias") == (1000,) else {}
        crop = {"crop_pct": 0.875} if "cls" not in file.tensors else {"crop_pct": 1.0, "crop_mode": "squash"}
        return {"mean": [0.5], "std": [0.5], "interpolation": "bilinear"} | crop | names

    def entries(self, model: ViT) -> list[Entry]:
        """Return an entry for each parameter, under the names of big_vision where the original has no such part."""
        config, big_vision = model.config, _needs_big_vision(model.config)
        declared = model.declared()
        fan_in = declared["patch_embed.proj.weight"].shape[0]
        rows, columns = size = config.patch_height, config.patch_width
        if config.resnet:
            rows, columns = feature_patch(size, config.resnet_depths)
        patch = rows, columns, fan_in // (rows * columns), config.embed_dim
        names = {
            "cls_token": "cls",
            "pos_embed": _POSITIONS[big_vision],
            **_norm("norm", "Transformer/encoder_norm"),
            **_dense("pre_logits.fc", "pre_logits"),
            **_dense("head", "head"),
            "patch_embed.proj.bias": "embedding/bias",
            "attn_pool.latent": _MAP + "probe",
            **_norm("attn_pool.norm", _MAP + "LayerNorm_0"),
            **_dense("attn_pool.mlp.fc1", _MAP + "MlpBlock_0/Dense_0"),
            **_dense("attn_pool.mlp.fc2", _MAP + "MlpBlock_0/Dense_1"),
        }
        entries = [reshaped("patch_embed.proj.weight", _PATCH, (-1, config.embed_dim), patch)]
        for name, parameter in declared.items():
            if name.startswith(_BACKBONE):
                entries.append(_of_resnet(name, parameter.shape))
        for i in range(config.depth):
            ours, theirs = f"blocks.{i}.", _BLOCK.format(i)
            names |= _norm(ours + "norm1", theirs + "LayerNorm_0") | _norm(ours + "norm2", theirs + _NORM2[big_vision])
            for j in (0, 1):
                names |= _dense(f"{ours}mlp.fc{j + 1}", f"{theirs}{_MLP[big_vision]}/Dense_{j}")
            attention = theirs + _ATTENTION[big_vision]
            entries += _heads(ours + "attn.qkv", attention, ("query", "key", "value"), config)
            entries += _heads(ours + "attn.proj", attention, ("out",), config)
        if config.global_pool == "map":
            attention = _MAP + "MultiHeadDotProductAttention_0"
            entries += _heads("attn_pool.q", attention, ("query",), config)
            entries += _heads("attn_pool.kv", attention, ("key", "value"), config)
            entries += _heads("attn_pool.proj", attention, ("out",), config)
        entries += [same(name, theirs) for name, theirs in names.items()]
        return [entry for entry in entries if entry.name in declared]

    def refusals(self, config: ViTConfig) -> list[str]:
        """Return what Google's programs cannot express."""
        found = super().refusals(config)
        if config.norms_pooled:
            found.append("a norm of the pooled vector (fc_norm=True)")
        if config.class_token and config.global_pool != "token":
            found.append(f"class_token=True with global_pool={config.global_pool!r}")
        return found


def _is_big_vision(names: Collection[str]) -> bool:
    return f"{_BLOCK.format(0)}{_ATTENTION[True]}/query/kernel" in names


def _original(name: str) -> str:
    """Return the original's name for a name of big_vision."""
    for parts in (_ATTENTION, _NORM2, _MLP):
        name = re.sub(rf"^(Transformer/encoderblock_\d+/){parts[True]}/", rf"\1{parts[False]}/", name)
    return _POSITIONS[False] if name == _POSITIONS[True] else name


def _needs_big_vision(config: ViTConfig) -> bool:
    return config.pos_embed == "sincos_2d" or config.no_embed_class or config.global_pool == "map"


def _resnet(file: WeightsFile, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the sizes of a hybrid, or nothing for another model."""
    root = shapes.get("conv_root/kernel")
    if root is None:
        return {}
    units = {match.groups() for name in shapes if (match := re.match(r"block(\d+)/unit(\d+)/", name))}
    counts = Counter(int(stage) for stage, _ in units)
    depths = tuple(counts[i] for i in range(1, len(counts) + 1))
    expect_axes(file, Google.program, shapes, {"conv_root/kernel": 4})
    if 0 in depths or len(depths) > len(CHANNELS):
        raise UserError(f"{file.path} is not a hybrid of Google's: its ResNet has the blocks {sorted(counts)}")
    stride = feature_stride(depths)
    P, Q = shapes[_PATCH][:2]
    return {"resnet": depths or (0,), "patch_size": (stride * P, stride * Q), "in_chans": root[2]}


def _of_resnet(name: str, shape: tuple[int, ...]) -> Entry:
    """Return the entry of a parameter of the ResNet; kernels have the axes of a window, then inputs and outputs."""
    parts = name.removeprefix(_BACKBONE).split(".")
    if parts[0] == "stem":
        layer, folder = "_root", ""
    else:
        _, stage, _, block, *rest = parts
        layer = "_proj" if rest[0] == "downsample" else rest[0][-1]
        folder = f"block{int(stage) + 1}/unit{int(block) + 1}/"
    if parts[-2].startswith("norm"):
        return same(name, f"{folder}gn{layer}/{'scale' if parts[-1] == 'weight' else 'bias'}")
    side = {"_root": 7, "2": 3}.get(layer, 1)
    return reshaped(name, f"{folder}conv{layer}/kernel", shape, (side, side, shape[0] // side**2, shape[1]))


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.weight": f"{theirs}/scale", f"{ours}.bias": f"{theirs}/bias"}


def _dense(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.weight": f"{theirs}/kernel", f"{ours}.bias": f"{theirs}/bias"}


def _heads(ours: str, attention: str, parts: tuple[str, ...], config: ViTConfig) -> list[Entry]:
    """Return the entries of a weight and a bias with an axis for the heads: the last one, or the first one of "out"."""
    D, H = config.embed_dim, config.num_heads
    K = D // H
    weights, biases = [], []
    for part in parts:
        shape = (H, K, D) if part == "out" else (D, H, K)
        weights.append(reshaped("", f"{attention}/{part}/kernel", (D, D), shape))
        biases.append(reshaped("", f"{attention}/{part}/bias", (D,), (D,) if part == "out" else (H, K)))
    return [side_by_side(f"{ours}.weight", weights), side_by_side(f"{ours}.bias", biases)]
