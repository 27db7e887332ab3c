"""A trace beside PyTorch's hooks on timm's model of the same weights, in float64: x, y, dy and dx of every layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minivit.nn.presets import create_model
from minivit.nn.vit import ViT
from minivit.tracing import trace
from minivit.weights import load_model

from .test_timm import assert_equal, batch, channels_first, timm_model
from .test_timm_options import save, timm_vit

pytestmark = pytest.mark.conformance

VARIANT: dict[str, Any] = {"reg_tokens": 3, "qk_norm": True, "init_values": 0.3, "global_pool": "avg"}


def tiny(timm: Any, torch: Any, folder: Path) -> tuple[Any, ViT]:
    """Return vit_tiny with patches of 4 pixels, with weights that are as large as those of a trained model."""
    model = create_model("vit_tiny_patch4_32", num_classes=10, dtype="float64")
    generator = np.random.default_rng(1)
    for parameter in model.parameters.values():
        parameter.value[...] += generator.normal(0.0, 0.05, parameter.shape)
    return timm_model(model, folder), model


def variant(timm: Any, torch: Any, folder: Path) -> tuple[Any, ViT]:
    """Return a model with register tokens, norms of queries and keys, layer scale and mean pooling."""
    theirs = timm_vit(timm, torch, VARIANT)
    save(timm, theirs, folder, VARIANT)
    return theirs, load_model(folder, dtype="float64")


class Hooks:
    """Records x, y, dy and dx of every module."""

    def __init__(self, theirs: Any) -> None:
        self.seen: dict[str, dict[str, Any]] = {}
        for name, module in theirs.named_modules():
            self.seen[name] = {}
            module.register_forward_hook(self._forward(name))
            module.register_full_backward_hook(self._backward(name))

    def _forward(self, name: str) -> Any:
        return lambda module, args, y: self.seen[name].update(x=args[0], y=y)

    def _backward(self, name: str) -> Any:
        return lambda module, dx, dy: self.seen[name].update(dx=dx[0], dy=dy[0])


@pytest.mark.parametrize("make", [tiny, variant])
def test_every_layer(timm: Any, torch: Any, tmp_path: Path, make: Callable[..., tuple[Any, ViT]]) -> None:
    theirs, model = make(timm, torch, tmp_path)
    for module in theirs.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # so that the weights pass attn_drop
    images, labels = batch(model.config, 2)
    found = trace(model, images, labels)
    hooks = Hooks(theirs)
    loss = torch.nn.functional.cross_entropy(theirs(channels_first(torch, images)), torch.tensor(labels))
    loss.backward()

    assert found.loss is not None
    assert_equal(found.loss, loss, 1e-10, "loss")
    names, others = {name for name, seen in hooks.seen.items() if {"y", "dy"} <= seen.keys()} & {*found.names}, set()
    for layer in names:
        for quantity in ("x", "y", "dx", "dy"):
            ours, reference = getattr(found[layer], quantity), hooks.seen[layer][quantity].detach()
            if layer == "norm" and ours.ndim == 2:  # of the class token alone
                reference = reference[:, 0]
            if layer.endswith("attn.q_norm") or layer.endswith("attn.k_norm"):
                reference = reference.transpose(1, 2)
            if ours.shape == reference.shape:
                assert_equal(ours, reference, 1e-10, f"{layer}.{quantity}")
            else:
                others.add((layer, quantity))
    assert len(names) > 14 * model.config.depth
    # Images and the result of the convolution have their channels first.
    convolution = {("patch_embed.proj", quantity) for quantity in ("x", "y", "dx", "dy")}
    assert others == convolution | {("patch_embed", "x"), ("patch_embed", "dx")}
    for i in range(model.config.depth):
        seen = hooks.seen[f"blocks.{i}.attn.attn_drop"]
        record = found[f"blocks.{i}.attn"]
        assert_equal(record.weights, seen["y"], 1e-10, f"blocks.{i}.attn.weights")
        assert_equal(record.dweights, seen["dy"], 1e-10, f"blocks.{i}.attn.dweights")
