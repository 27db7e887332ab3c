"""The layout of Hugging Face transformers: ViTForImageClassification, and ViTModel with and without its pooler.

The encoders of ViTMAE and of ViTForMaskedImageModeling are the same; `minivit.weights.huggingface_masked` has their
decoders.

Queries, keys and values are separate linear layers; weights are (out, in), as in PyTorch. A classifier has the prefix
``vit.`` before all other names, a ViTModel has none. Version 5 has other names in memory and writes these.
``config.json`` and ``preprocessor_config.json`` define the rest.

https://github.com/huggingface/transformers, src/transformers/models/vit.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.vit import ViT
from minivit.weights.deduce import expect_axes, heads, image_pair, mlp_ratio, size_of_images, warn_of_assumed
from minivit.weights.entries import Entry, Tensors, convolution, linear, linear_side_by_side, norm, renamed, same
from minivit.weights.huggingface_config import (
    class_names,
    image_metadata,
    model_config,
    preprocessor_config,
    said_of,
)
from minivit.weights.layout import Layout, WeightsFile

_PATCH = "embeddings.patch_embeddings.projection"
_BLOCK = "encoder.layer.{}."
_POOLER = "pooler.dense"
_FAMILIES = ("vit", "vit_msn", "vit_mae")  # the types of models with this layout
# Beside the encoder: the decoder of ViTForMaskedImageModeling, and that of ViTMAEForPreTraining.
_DECODER = re.compile(r"decoder\.(0\.|mask_token$|decoder_(embed|pos_embed|layers|encoder|norm|pred)(\.|$))")
# The names of version 5 in memory, and those in files.
_NEWER: tuple[tuple[str, str], ...] = (
    (r"^layers\.", "encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),  # 5.24 writes them like the encoder's
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_USUAL: dict[str, Any] = {"act_layer": "gelu", "norm_eps": 1e-12}  # what config.json need not say
_HEAD_WIDTH = 64


class HuggingFace(Layout):
    """The Vision Transformers of Hugging Face transformers."""

    name = "huggingface"
    program = "Hugging Face transformers"
    expresses: ClassVar[Mapping[str, Collection[Any] | None]] = {
        **dict.fromkeys(("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads")),
        **dict.fromkeys(("head_dim", "mlp_ratio", "norm_eps", "qkv_bias", "act_layer")),
        **dict.fromkeys(("representation_size", "representation_act")),
        "fc_norm": (None, False),
    }

    def recognises(self, names: Collection[str]) -> bool:
        """Return whether there is a projection of patches of their name."""
        return any(f"{prefix}{_PATCH}.weight" in names for prefix in ("", "vit."))

    def prepare(self, tensors: dict[str, Array]) -> dict[str, Array]:
        """Return the tensors with the names in files, and the prefix that belongs to them, without a decoder."""
        tensors = {name: value for name, value in tensors.items() if not is_of_decoder(name)}
        bare = {name.removeprefix("vit.") for name in tensors}
        prefix = _prefix(f"{_POOLER}.weight" in bare and "classifier.weight" not in bare)

        def rename(name: str) -> str:
            name = written(name.removeprefix("vit."))
            return name if name.startswith("classifier.") else prefix + name

        return renamed(tensors, rename)

    def sizes(self, file: WeightsFile) -> dict[str, Any]:
        """Return the sizes that the shapes determine."""
        shapes = {name.removeprefix("vit."): shape for name, shape in file.shapes.items()}
        model_type = file.config_json.get("model_type", "vit")
        if model_type not in _FAMILIES:
            raise UserError(
                f"{file.path} holds a model of the type {model_type!r:.40} of {self.program}, which minivit does not "
                "support"
            )
        hidden = _BLOCK.format(0) + "intermediate.dense.weight"
        query = _BLOCK.format(0) + "attention.attention.query.weight"
        axes = {f"{_PATCH}.weight": 4, query: 2, hidden: 2}
        axes |= {name: 2 for name in ("classifier.weight", f"{_POOLER}.weight") if name in shapes}
        expect_axes(file, self.program, shapes, axes)
        D, C, P, Q = shapes[f"{_PATCH}.weight"]
        return {
            "patch_size": (P, Q),
            "in_chans": C,
            "embed_dim": D,
            "num_classes": shapes.get("classifier.weight", (0,))[0],
            "depth": len({match[1] for name in shapes if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}),
            "hidden_dim": shapes[hidden][0],
        }

    def fields(self, file: WeightsFile, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the configuration of a file beside its ``config.json``, or without it."""
        sizes = self.sizes(file)
        shapes = {name.removeprefix("vit."): shape for name, shape in file.shapes.items()}
        said = said_of(file)
        query = _BLOCK.format(0) + "attention.attention.query"
        count, assumed_heads = heads(
            file, shapes[f"{query}.weight"][0], sizes["embed_dim"], said | dict(given), 0 if said else _HEAD_WIDTH
        )
        positions = shapes.get("embeddings.position_embeddings", (1, 1, 1))
        patches = (positions[1] if len(positions) == 3 else 1) - 1
        wanted = given.get("img_size"), said.get("img_size")
        has_pooler = f"{_POOLER}.weight" in file.shapes
        values = {name: value for name, value in sizes.items() if name != "hidden_dim"}
        values |= {
            "mlp_ratio": mlp_ratio(sizes),
            "qkv_bias": f"{query}.bias" in shapes,
            "img_size": size_of_images(file, patches, sizes["patch_size"], *wanted),
            "representation_size": shapes[f"{_POOLER}.weight"][0] if has_pooler else 0,
        }
        assumed = {} if said else {**({"num_heads": count["num_heads"]} if assumed_heads else {}), **_USUAL}
        warn_of_assumed(file, {k: v for k, v in assumed.items() if k not in given}, f"as in {self.program}")
        if "img_size" in said and values["img_size"] != image_pair(said["img_size"]):
            warnings.warn(
                f"{file.path.with_name('config.json')} says image_size {said['img_size']!r:.40}, but the positions in "
                f"{file.path.name} are for images of {' x '.join(map(str, values['img_size']))}, which are used",
                stacklevel=3,
            )
        contradicted = {name: said[name] for name in ("embed_dim", "depth", "in_chans") if name in said}
        return _USUAL | said | values | count | contradicted

    def entries(self, model: ViT) -> list[Entry]:
        """Return an entry for each parameter, under the names of a ViTModel if there is a pooler."""
        config = model.config
        prefix = _prefix(config.representation_size > 0)
        embeddings = f"{prefix}embeddings."
        patch = config.patch_height, config.patch_width
        ours = linear("patch_embed.proj", prefix + _PATCH)
        ours["patch_embed.proj.weight"] = convolution(
            "patch_embed.proj.weight", f"{prefix}{_PATCH}.weight", patch, config.in_chans
        )
        ours["cls_token"] = _class_token(f"{embeddings}cls_token", model.unused)
        ours["pos_embed"] = same("pos_embed", f"{embeddings}position_embeddings")
        for i in range(config.depth):
            ours |= block_entries(f"blocks.{i}.", prefix + _BLOCK.format(i))
        ours |= norm("norm", f"{prefix}layernorm") | linear("pre_logits.fc", _POOLER) | linear("head", "classifier")
        return [ours[name] for name in model.declared() if name in ours]

    def unused(self, tensors: Tensors, config: ViTConfig) -> dict[str, Array]:
        """Return the mask token, and a pooler that the classifier does not read."""
        return {name: value for name, value in tensors.items() if name in _UNUSED}

    def metadata(self, file: WeightsFile) -> dict[str, Any]:
        """Return the names of the classes and the preprocessing; without a file, that of their ViTImageProcessor."""
        classes = self.sizes(file)["num_classes"]
        size = image_pair(file.config_json.get("image_size"))
        return class_names(file.config_json, classes) | image_metadata(file.path, size)

    def side_files(self, config: ViTConfig, extra: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return ``config.json`` and ``preprocessor_config.json``."""
        return {
            "config.json": model_config(config, extra),
            "preprocessor_config.json": preprocessor_config(config, extra),
        }

    def refusals(self, config: ViTConfig) -> list[str]:
        """Return what transformers cannot express: its pooler is not part of a classifier."""
        found = super().refusals(config)
        if config.representation_size and config.num_classes:
            found.append(f"representation_size={config.representation_size} with num_classes={config.num_classes}")
        return found


def is_of_decoder(name: str) -> bool:
    """Return whether a tensor of this name is of the decoder of a model for masked pre-training."""
    return _DECODER.match(name) is not None


def written(name: str) -> str:
    """Return the name in files, without ``vit.``, for the one that version 5 has in memory; others stay."""
    for newer, older in _NEWER:
        name = re.sub(newer, older, name)
    return name


def block_entries(ours: str, theirs: str) -> dict[str, Entry]:
    """Return the entries of a block, by our names; the arguments are its prefixes here and there."""
    parts = [f"{theirs}attention.attention.{part}" for part in ("query", "key", "value")]
    return {
        **norm(f"{ours}norm1", f"{theirs}layernorm_before"),
        **linear_side_by_side(f"{ours}attn.qkv", parts),
        **linear(f"{ours}attn.proj", f"{theirs}attention.output.dense"),
        **norm(f"{ours}norm2", f"{theirs}layernorm_after"),
        **linear(f"{ours}mlp.fc1", f"{theirs}intermediate.dense"),
        **linear(f"{ours}mlp.fc2", f"{theirs}output.dense"),
    }


_UNUSED = {"embeddings.mask_token", "vit.embeddings.mask_token", "vit.pooler.dense.weight", "vit.pooler.dense.bias"}


def _prefix(has_pooler: bool) -> str:
    return "" if has_pooler else "vit."


def _class_token(theirs: str, unused: Tensors) -> Entry:
    """Return the entry of the class token, which carries the unused tensors of the file."""
    others = {name: value for name, value in unused.items() if name in _UNUSED}
    return Entry("cls_token", (theirs, *others), lambda values: values[0], lambda value: [value, *others.values()])
