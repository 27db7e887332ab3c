"""The layout of labml's annotated Vision Transformer.

Queries, keys and values are separate linear layers; tokens come before the batch, so that positions are (5000, 1, D).
The model uses as many positions as it has tokens, and the rest is kept for export. The head has a hidden layer with
ReLU. The file does not define heads, images and the activation: the last two are those of labml's CIFAR-10 experiment.

https://github.com/labmlai/annotated_deep_learning_paper_implementations, labml_nn/transformers/vit.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import numpy as np

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.vit import ViT
from minivit.weights.deduce import PASS_SIZE, expect_axes, heads, image_pair, mlp_ratio, warn_of_assumed
from minivit.weights.entries import Entry, Tensors, convolution, linear, linear_side_by_side, norm, same
from minivit.weights.layout import Layout, WeightsFile

_PATCH, _POSITIONS = "patch_emb.conv", "pos_emb.positional_encodings"
_BLOCK = "transformer_layers.{}."
_ROWS = 5000  # labml's default
_IMAGE = 32  # CIFAR-10


class Labml(Layout):
    """labml's VisionTransformer."""

    name = "labml"
    program = "labml"
    family: ClassVar[Mapping[str, Any]] = {"act_layer": "relu", "norm_eps": 1e-5}
    expresses: ClassVar[Mapping[str, Collection[Any] | None]] = {
        **dict.fromkeys(("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads")),
        **dict.fromkeys(("mlp_ratio", "act_layer", "norm_eps", "representation_size")),
        "representation_act": ("relu",),
        "fc_norm": (None, False),
    }

    def recognises(self, names: Collection[str]) -> bool:
        """Return whether there are a projection of patches and a block of labml's names."""
        return f"{_PATCH}.weight" in names and f"{_BLOCK.format(0)}norm_self_attn.weight" in names

    def sizes(self, file: WeightsFile) -> dict[str, Any]:
        """Return the sizes that the shapes determine."""
        shapes = file.shapes
        patch, hidden = f"{_PATCH}.weight", f"{_BLOCK.format(0)}feed_forward.layer1.weight"
        first, last = (f"classification.linear{i}.weight" for i in (1, 2))
        expect_axes(file, self.program, shapes, {patch: 4, hidden: 2, first: 2, last: 2})
        if f"{_BLOCK.format(0)}feed_forward.linear_v.weight" in shapes:
            raise UserError(
                f"{file.path} holds a model of labml with a gated MLP (GLU), which minivit does not support"
            )
        D, C, P, Q = shapes[patch]
        return {
            "patch_size": (P, Q),
            "in_chans": C,
            "embed_dim": D,
            "num_classes": shapes[last][0],
            "depth": len({match[1] for name in shapes if (match := re.match(r"transformer_layers\.(\d+)\.", name))}),
            "representation_size": shapes[first][0],
            "hidden_dim": shapes[hidden][0],
        }

    def fields(self, file: WeightsFile, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the configuration; the number of heads must be given."""
        sizes = self.sizes(file)
        D, (P, Q) = sizes["embed_dim"], sizes["patch_size"]
        count, _ = heads(file, D, D, {"num_heads": given.get("num_heads")})
        assumed = {"img_size": (_IMAGE, _IMAGE), **self.family}
        image = image_pair(given.get("img_size"))
        if image is None and (_IMAGE % P or _IMAGE % Q):
            raise UserError(f"{file.path} does not define the size of images; {PASS_SIZE}")
        warn_of_assumed(file, {k: v for k, v in assumed.items() if k not in given}, "as in labml's CIFAR-10 experiment")
        values = {name: value for name, value in sizes.items() if name != "hidden_dim"} | count
        values |= {"mlp_ratio": mlp_ratio(sizes), "representation_act": "relu"}
        return assumed | values | {"img_size": image or assumed["img_size"]}

    def entries(self, model: ViT) -> list[Entry]:
        """Return an entry for each parameter."""
        config = model.config
        patch = config.patch_height, config.patch_width
        ours = linear("patch_embed.proj", _PATCH)
        ours["patch_embed.proj.weight"] = convolution(
            "patch_embed.proj.weight", f"{_PATCH}.weight", patch, config.in_chans
        )
        ours["cls_token"] = same("cls_token", "cls_token_emb")
        ours["pos_embed"] = _positions(config, model.unused)
        for i in range(config.depth):
            block, theirs = f"blocks.{i}.", _BLOCK.format(i)
            ours |= norm(f"{block}norm1", f"{theirs}norm_self_attn") | norm(f"{block}norm2", f"{theirs}norm_ff")
            parts = [f"{theirs}self_attn.{part}.linear" for part in ("query", "key", "value")]
            ours |= linear_side_by_side(f"{block}attn.qkv", parts)
            ours |= linear(f"{block}attn.proj", f"{theirs}self_attn.output")
            ours |= linear(f"{block}mlp.fc1", f"{theirs}feed_forward.layer1")
            ours |= linear(f"{block}mlp.fc2", f"{theirs}feed_forward.layer2")
        ours |= norm("norm", "ln") | linear("pre_logits.fc", "classification.linear1")
        ours |= linear("head", "classification.linear2")
        return [ours[name] for name in model.declared() if name in ours]

    def unused(self, tensors: Tensors, config: ViTConfig) -> dict[str, Array]:
        """Return the positions after those of the model's tokens."""
        positions = tensors.get(_POSITIONS)
        return {} if positions is None or positions.ndim == 0 else {_POSITIONS: positions[config.num_tokens :]}

    def metadata(self, file: WeightsFile) -> dict[str, Any]:
        """Return the preprocessing of labml's CIFAR-10 experiment."""
        return {"mean": [0.5], "std": [0.5]}

    def refusals(self, config: ViTConfig) -> list[str]:
        """Return what labml cannot express: its head always has a hidden layer."""
        found = super().refusals(config)
        found += [f"{name}=0" for name in ("representation_size", "num_classes") if not getattr(config, name)]
        return found


def _positions(config: ViTConfig, unused: Tensors) -> Entry:
    """Return the entry of the positions of the model's tokens, before those that it does not use."""
    N, D = config.num_tokens, config.embed_dim
    rest = unused.get(_POSITIONS)
    if rest is None or rest.shape[1:] != (1, D):
        rest = np.zeros((max(0, _ROWS - N), 1, D), np.float32)  # as labml initialises them

    def split(value: Array) -> list[Array]:
        rows = value.reshape(N, 1, D)  # a view: of a hollow array it is hollow too
        return [np.concatenate([rows, rest.astype(value.dtype)]) if len(rest) else rows]

    return Entry("pos_embed", (_POSITIONS,), lambda values: values[0][:N].reshape(1, N, D), split)
