"""Comparison with Google's JAX programs, written here in PyTorch from their published code, in float64.

The forward passes follow vit_jax/models_vit.py of google-research/vision_transformer and big_vision/models/vit.py of
google-research/big_vision line by line, with the names of their parameters; the layers are those of Flax: its layer
norm has an eps of 1e-6, its GELU is the tanh form. The parameters are read from the file that minivit writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minivit import ops
from minivit.nn.config import ViTConfig
from minivit.weights import load_model, save_model
from minivit.weights.entries import exported
from minivit.weights.google import Google

from .test_timm import assert_equal, batch, random_model

pytestmark = pytest.mark.conformance

SMALL: dict[str, Any] = {
    "img_size": (22, 21), "patch_size": (11, 3), "in_chans": 2, "num_classes": 5, "embed_dim": 36, "depth": 2,
    "num_heads": 3, "mlp_ratio": 1.8, "act_layer": "gelu_tanh", "fc_norm": False,
}  # fmt: skip
GAP: dict[str, Any] = {"class_token": False, "global_pool": "avg"}
MODELS: dict[str, ViTConfig] = {
    "original": ViTConfig(**SMALL),
    "original, pre-logits": ViTConfig(**SMALL, representation_size=13),
    "original, mean": ViTConfig(**SMALL, **GAP),
    "big_vision, class token": ViTConfig(**SMALL, no_embed_class=True),
    "big_vision, sincos2d, pre-logits": ViTConfig(**SMALL, **GAP, pos_embed="sincos_2d", representation_size=13),
    "big_vision, MAP head": ViTConfig(**SMALL, class_token=False, global_pool="map"),
}

Params = Callable[[str], Any]


class Flax:
    """The layers of Flax, with parameters by name."""

    def __init__(self, torch: Any, params: dict[str, Any]) -> None:
        self.torch, self.params = torch, params

    def dense(self, name: str, x: Any) -> Any:
        return x @ self.params[f"{name}/kernel"] + self.params[f"{name}/bias"]

    def layer_norm(self, name: str, x: Any) -> Any:
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / (variance + 1e-6).sqrt() * self.params[f"{name}/scale"] + self.params[f"{name}/bias"]

    def attention(self, name: str, inputs_q: Any, inputs_kv: Any) -> Any:
        einsum = self.torch.einsum
        q, k, v = (
            einsum("bnd,dhk->bnhk", x, self.params[f"{name}/{part}/kernel"]) + self.params[f"{name}/{part}/bias"]
            for part, x in (("query", inputs_q), ("key", inputs_kv), ("value", inputs_kv))
        )
        weights = (einsum("bqhk,bnhk->bhqn", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
        y = einsum("bhqn,bnhk->bqhk", weights, v)
        return einsum("bqhk,hkd->bqd", y, self.params[f"{name}/out/kernel"]) + self.params[f"{name}/out/bias"]

    def mlp(self, name: str, x: Any) -> Any:
        x = self.torch.nn.functional.gelu(self.dense(f"{name}/Dense_0", x), approximate="tanh")
        return self.dense(f"{name}/Dense_1", x)

    def embedding(self, x: Any) -> Any:
        kernel = self.params["embedding/kernel"]
        y = self.torch.nn.functional.conv2d(
            x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), self.params["embedding/bias"], stride=kernel.shape[:2]
        )
        return y.permute(0, 2, 3, 1)


def original(flax: Flax, x: Any, config: ViTConfig) -> Any:
    """models_vit.VisionTransformer with classifier "token" or "gap"."""
    x = flax.embedding(x)
    n, h, w, c = x.shape
    x = x.reshape(n, h * w, c)
    if config.global_pool == "token":
        x = flax.torch.cat([flax.params["cls"].expand(n, -1, -1), x], 1)
    x = x + flax.params["Transformer/posembed_input/pos_embedding"]
    for i in range(config.depth):
        block = f"Transformer/encoderblock_{i}"
        y = flax.layer_norm(f"{block}/LayerNorm_0", x)
        x = x + flax.attention(f"{block}/MultiHeadDotProductAttention_1", y, y)
        x = x + flax.mlp(f"{block}/MlpBlock_3", flax.layer_norm(f"{block}/LayerNorm_2", x))
    x = flax.layer_norm("Transformer/encoder_norm", x)
    x = x[:, 0] if config.global_pool == "token" else x.mean(1)
    if config.representation_size:
        x = flax.torch.tanh(flax.dense("pre_logits", x))
    return flax.dense("head", x)


def posemb_sincos_2d(torch: Any, h: int, w: int, width: int) -> Any:
    y, x = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
    omega = torch.arange(width // 4).double() / (width // 4 - 1)
    omega = 1.0 / 10_000.0**omega
    y, x = torch.outer(y.flatten(), omega), torch.outer(x.flatten(), omega)
    return torch.cat([torch.sin(x), torch.cos(x), torch.sin(y), torch.cos(y)], 1)[None]


def big_vision(flax: Flax, x: Any, config: ViTConfig) -> Any:
    """models/vit._Model with pool_type "tok", "gap" or "map"."""
    torch, params = flax.torch, flax.params
    x = flax.embedding(x)
    n, h, w, c = x.shape
    x = x.reshape(n, h * w, c)
    x = x + (params["pos_embedding"] if config.pos_embed == "learn" else posemb_sincos_2d(torch, h, w, c).to(x.dtype))
    if config.global_pool == "token":
        x = torch.cat([params["cls"].expand(n, -1, -1), x], 1)
    for i in range(config.depth):
        block = f"Transformer/encoderblock_{i}"
        y = flax.layer_norm(f"{block}/LayerNorm_0", x)
        x = x + flax.attention(f"{block}/MultiHeadDotProductAttention_0", y, y)
        x = x + flax.mlp(f"{block}/MlpBlock_0", flax.layer_norm(f"{block}/LayerNorm_1", x))
    x = flax.layer_norm("Transformer/encoder_norm", x)
    if config.global_pool == "map":
        probe = params["MAPHead_0/probe"].expand(n, -1, -1)
        x = flax.attention("MAPHead_0/MultiHeadDotProductAttention_0", probe, x)
        x = (x + flax.mlp("MAPHead_0/MlpBlock_0", flax.layer_norm("MAPHead_0/LayerNorm_0", x)))[:, 0]
    else:
        x = x[:, 0] if config.global_pool == "token" else x.mean(1)
    if config.representation_size:
        x = torch.tanh(flax.dense("pre_logits", x))
    return flax.dense("head", x)


def program_of(name: str) -> Any:
    return big_vision if name.startswith("big_vision") else original


@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_all_gradients(torch: Any, tmp_path: Path, name: str) -> None:
    config = MODELS[name]
    model = random_model(config)
    save_model(model, tmp_path / "x.npz", format="google")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        params = {key: torch.tensor(value, requires_grad=True) for key, value in file.items()}
    images, labels = batch(config)
    logits, cache = model.forward(images)
    loss, loss_cache = ops.cross_entropy(logits, labels)
    assert loss_cache is not None
    dimages = model.backward(ops.cross_entropy_backward(1.0, loss_cache), cache)

    x = torch.tensor(images, requires_grad=True)
    their_logits = program_of(name)(Flax(torch, params), x, config)
    their_loss = torch.nn.functional.cross_entropy(their_logits, torch.tensor(labels))
    their_loss.backward()

    assert_equal(logits, their_logits, 1e-10, "logits")
    assert_equal(loss, their_loss, 1e-10, "loss")
    assert_equal(dimages, x.grad, 1e-10, "images")
    ours = exported({key: parameter.grad for key, parameter in model.parameters.items()}, Google().entries(model))
    assert ours.keys() == params.keys()
    scale = 1e-3 * np.sqrt(sum(float((value.grad**2).sum()) for value in params.values()))
    for key, gradient in ours.items():
        assert_equal(gradient, params[key].grad, 1e-10, key, scale)


@pytest.mark.parametrize("name", MODELS)
def test_float32_is_no_worse_than_twice_the_distance_of_the_program(torch: Any, tmp_path: Path, name: str) -> None:
    config = MODELS[name]
    model = random_model(config)
    save_model(model.astype("float32"), tmp_path / "x.npz", format="google")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        params = {key: torch.tensor(value) for key, value in file.items()}
    images = batch(config)[0].astype(np.float32)
    exact = program_of(name)(
        Flax(torch, {key: value.double() for key, value in params.items()}), torch.tensor(images).double(), config
    ).numpy()
    theirs = program_of(name)(Flax(torch, params), torch.tensor(images), config).double().numpy()
    ours = load_model(tmp_path / "x.npz")(images).astype(np.float64)
    assert np.linalg.norm(ours - exact) <= 2 * np.linalg.norm(theirs - exact)


@pytest.mark.parametrize("name", ["original", "original, mean", "big_vision, MAP head"])
def test_timm_reads_what_we_write_and_computes_the_same(timm: Any, torch: Any, tmp_path: Path, name: str) -> None:
    config = replace(MODELS[name], in_chans=3)  # timm reads no other number
    model = random_model(config)
    save_model(model, tmp_path / "x.npz", format="google")
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=config.img_size, patch_size=config.patch_size, in_chans=3, num_classes=5, embed_dim=36, depth=2,
        num_heads=3, mlp_ratio=1.8, class_token=config.class_token, global_pool=config.global_pool, fc_norm=False,
        act_layer="gelu_tanh",
    ).double().eval()  # fmt: skip
    theirs.load_pretrained(str(tmp_path / "x.npz"))
    images, _ = batch(config)
    assert_equal(model(images), theirs(torch.tensor(images).permute(0, 3, 1, 2)), 1e-10, "logits")
