"""Small models for masked pre-training, and their files as transformers writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.nn.config import ViTConfig
from minivit.nn.masked import MaskedModel
from minivit.nn.pretraining import masked_model
from minivit.nn.vit import ViT
from minivit.ops.sincos_positions import sincos_table
from minivit.random import Key
from minivit.weights import write_tensors

D, P, C, N, DD = 12, 4, 3, 16, 8
CONFIG = ViTConfig(
    img_size=16, patch_size=P, embed_dim=D, depth=2, num_heads=3, mlp_ratio=1.5, num_classes=0, norm_eps=1e-5
)
MAE: dict[str, Any] = {
    "ratio": 0.6, "decoder_dim": DD, "decoder_depth": 3, "decoder_heads": 2, "decoder_mlp": 20, "norm_pixels": True,
    "eps": 1e-5,
}  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {
    "mpp": {"target": "small", "ratio": 0.3, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
    "mae": MAE,
    "simmim": {"ratio": 0.4},
}


def made(task: str, config: ViTConfig = CONFIG, dtype: str = "float32") -> MaskedModel:
    """Return a small model with random parameters."""
    model = masked_model(task, config, None, dtype, **TASKS[task])
    generator = np.random.default_rng(3)
    for parameter in model.parameters.values():
        parameter.value[...] = generator.normal(0.0, 0.3, parameter.shape)
    return model


def losses(model: MaskedModel) -> Array:
    dtype = model.parameters.store.values.dtype
    x = np.random.default_rng(1).standard_normal((3, 16, 16, C)).astype(dtype)
    return model.forward(x, Key(1, 2, np.arange(3)), keep=False)[0]


def assert_equal_models(a: MaskedModel, b: MaskedModel) -> None:
    assert (type(a), a.config, a.options) == (type(b), b.config, b.options)
    first, second = a.state_dict(), b.state_dict()
    assert list(first) == list(second)
    for name in first:
        assert first[name].dtype == second[name].dtype
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def torch_linear(state: dict[str, Array], ours: str, theirs: str) -> dict[str, Array]:
    return {f"{theirs}.weight": state[f"{ours}.weight"].T, f"{theirs}.bias": state[f"{ours}.bias"]}


def torch_norm(state: dict[str, Array], ours: str, theirs: str) -> dict[str, Array]:
    return {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for kind in ("weight", "bias")}


def torch_block(state: dict[str, Array], ours: str, theirs: str) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for i, part in enumerate(("query", "key", "value")):
        weight, bias = (np.split(state[f"{ours}.attn.qkv.{kind}"], 3, axis=-1)[i] for kind in ("weight", "bias"))
        found |= {f"{theirs}.attention.attention.{part}.weight": weight.T}
        found |= {f"{theirs}.attention.attention.{part}.bias": bias}
    pairs = {"attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    for name, other in pairs.items():
        found |= torch_linear(state, f"{ours}.{name}", f"{theirs}.{other}")
    found |= torch_norm(state, f"{ours}.norm1", f"{theirs}.layernorm_before")
    return found | torch_norm(state, f"{ours}.norm2", f"{theirs}.layernorm_after")


def positions(table: Callable[..., Array]) -> Array:
    return np.concatenate([np.zeros((1, DD)), table((4, 4), DD, "mae")])[None].astype(np.float32)


def rows_first(*args: Any) -> Array:
    return np.roll(sincos_table(*args), DD // 2, axis=1)


def of_transformers(model: MaskedModel) -> dict[str, Array]:
    """Return the tensors of transformers' file of the model."""
    state, vit = model.state_dict(), "vit.embeddings"
    patch = state["encoder.patch_embed.proj.weight"].reshape(P, P, C, D)
    tensors = {
        f"{vit}.cls_token": state["encoder.cls_token"],
        f"{vit}.position_embeddings": state["encoder.pos_embed"],
        f"{vit}.patch_embeddings.projection.weight": patch.transpose(3, 2, 0, 1),
        f"{vit}.patch_embeddings.projection.bias": state["encoder.patch_embed.proj.bias"],
        **torch_norm(state, "encoder.norm", "vit.layernorm"),
    }
    for i in range(2):
        tensors |= torch_block(state, f"encoder.blocks.{i}", f"vit.encoder.layer.{i}")
    if model.task == "simmim":
        weight = state["head.weight"].reshape(D, P, P, C).transpose(3, 1, 2, 0).reshape(-1, D, 1, 1)
        bias = state["head.bias"].reshape(P, P, C).transpose(2, 0, 1).reshape(-1)
        return tensors | {
            f"{vit}.mask_token": state["mask_token"], "decoder.0.weight": weight, "decoder.0.bias": bias
        }  # fmt: skip
    tensors |= {"decoder.mask_token": state["mask_token"], "decoder.decoder_pos_embed": positions(sincos_table)}
    for name in ("decoder_embed", "decoder_pred"):
        tensors |= torch_linear(state, name, f"decoder.{name}")
    for i in range(MAE["decoder_depth"]):
        tensors |= torch_block(state, f"decoder_blocks.{i}", f"decoder.decoder_layers.{i}")
    return tensors | torch_norm(state, "decoder_norm", "decoder.decoder_norm")


SAID: dict[str, Any] = {
    "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 18, "image_size": 16,
    "patch_size": P, "num_channels": C, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
}  # fmt: skip
OF_MAE: dict[str, Any] = {
    "model_type": "vit_mae", "mask_ratio": 0.6, "norm_pix_loss": True, "decoder_num_attention_heads": 2,
    "decoder_hidden_size": DD, "decoder_num_hidden_layers": 3, "decoder_intermediate_size": 20,
}  # fmt: skip
FOREIGN: dict[str, dict[str, Any]] = {"mae": SAID | OF_MAE, "simmim": SAID | {"model_type": "vit", "encoder_stride": P}}
Change = Callable[[dict[str, Array]], object]


def foreign_folder(path: Path, task: str, change: Change = lambda tensors: None, **said: Any) -> Path:
    """Write a folder as transformers does, after `change` of its tensors."""
    tensors = of_transformers(made(task))
    change(tensors)
    write_tensors(path / "model.safetensors", tensors, {"format": "pt"})
    (path / "config.json").write_text(json.dumps(FOREIGN[task] | said))
    return path


def encoder_of(task: str) -> ViT:
    """Return the encoder of `made` as a plain ViT."""
    model = made(task)
    vit = ViT(model.config, None)
    vit.load_state_dict(model.encoder.state_dict())
    return vit
