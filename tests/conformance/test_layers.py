"""Activations, LayerScale and attention pooling compute what PyTorch's and timm's layers compute, with every gradient.

pip install 'minivit[test,conformance]'
pytest tests/conformance/test_layers.py -m conformance
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from minivit import Layer, layers
from minivit.arrays import Array
from minivit.nn.activations import activation

pytestmark = pytest.mark.conformance

B, N, D, H, F = 3, 5, 21, 3, 39

# timm's module with our layer's parameters, and our layer
Pair = tuple[Layer, Callable[[Any, Any], Any]]
PAIRS: dict[str, Pair] = {
    "relu": (activation("relu"), lambda torch, timm: torch.nn.ReLU()),
    "tanh": (activation("tanh"), lambda torch, timm: torch.nn.Tanh()),
    "quick_gelu": (activation("quick_gelu"), lambda torch, timm: timm.layers.activations.QuickGELU()),
    "layer scale": (layers.LayerScale(D), lambda torch, timm: timm.layers.LayerScale(D)),
    "attention pool": (
        layers.AttentionPool(D, H, F, eps=1e-5),
        lambda torch, timm: timm.layers.AttentionPoolLatent(
            D, num_heads=H, mlp_ratio=F / D, norm_layer=torch.nn.LayerNorm
        ),
    ),
    "attention pool, quick GELU": (
        layers.AttentionPool(D, H, F, eps=1e-3, act="quick_gelu"),
        lambda torch, timm: timm.layers.AttentionPoolLatent(
            D, num_heads=H, mlp_ratio=F / D, act_layer=timm.layers.activations.QuickGELU,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-3),
        ),
    ),
    "hidden head": (
        layers.HiddenHead(D, F),
        lambda torch, timm: torch.nn.Sequential(fc(torch), torch.nn.Tanh()),
    ),
    "hidden head, ReLU": (
        layers.HiddenHead(D, F, "relu"),
        lambda torch, timm: torch.nn.Sequential(fc(torch), torch.nn.ReLU()),
    ),
}  # fmt: skip


def fc(torch: Any) -> Any:
    return torch.nn.Linear(D, F)


def norm(x: Array) -> float:
    return float(np.linalg.norm(x))


def as_theirs(value: Array) -> Array:
    return value.T if value.ndim == 2 else value


def results(layer: Layer, x: Array, dy: Array) -> list[Array]:
    """Return the result of a layer and its gradients, in PyTorch's shapes."""
    y, cache = layer.forward(x)
    layer.zero_grad()
    dx = layer.backward(dy, cache)
    return [y, dx, *(as_theirs(parameter.grad) for parameter in layer.parameters.values())]


def their_results(torch: Any, module: Any, x: Array, dy: Array) -> list[Array]:
    given = torch.from_numpy(x.copy()).requires_grad_()
    y = module(given)
    y.backward(torch.from_numpy(dy.copy()))
    return [y.detach().numpy(), given.grad.numpy(), *(p.grad.numpy() for p in module.parameters())]


def with_values_of(torch: Any, module: Any, layer: Layer) -> Any:
    """Return the module in float64 with the layer's values; both have their parameters in the same order."""
    module = module.double()
    parameters = list(layer.parameters.values())
    with torch.no_grad():
        for theirs, ours in zip(module.parameters(), parameters, strict=True):
            assert tuple(theirs.shape) == as_theirs(ours.value).shape, ours.name
            theirs.copy_(torch.from_numpy(as_theirs(ours.value).copy()))
    return module


@pytest.mark.parametrize("name", PAIRS)
def test_a_layer_is_theirs_in_result_and_gradients(name: str, torch: Any, timm: Any) -> None:
    layer, make = PAIRS[name]
    layer.initialize(0, "float64")
    generator = np.random.default_rng(1)
    for parameter in layer.parameters.values():
        parameter.value[...] = generator.normal(0.0, 0.5, parameter.shape)
    module = with_values_of(torch, make(torch, timm), layer)
    x = generator.normal(0.0, 2.0, (B, N, D))
    dy = generator.normal(size=layer(x).shape)
    for ours, theirs in zip(results(layer, x, dy), their_results(torch, module, x, dy), strict=True):
        assert ours.shape == theirs.shape
        assert norm(ours - theirs) <= 1e-10 * norm(theirs)


@pytest.mark.parametrize("name", PAIRS)
def test_in_float32_a_layer_is_as_near_to_float64_as_theirs(name: str, torch: Any, timm: Any) -> None:
    layer, make = PAIRS[name]
    layer.initialize(0, "float64")
    generator = np.random.default_rng(1)
    for parameter in layer.parameters.values():
        parameter.value[...] = generator.normal(0.0, 0.5, parameter.shape).astype("float32")
    x = generator.normal(0.0, 2.0, (64, N, D)).astype("float32")
    dy = generator.normal(size=layer(x.astype("float64")).shape).astype("float32")
    exact = results(layer, x.astype("float64"), dy.astype("float64"))
    single = layer.astype("float32")
    module = with_values_of(torch, make(torch, timm), layer).float()
    ours, theirs = results(single, x, dy), their_results(torch, module, x, dy)
    for truth, mine, other in zip(exact, ours, theirs, strict=True):
        scale = max(norm(truth), 1e-3 * max(map(norm, exact[1:])))
        assert norm(mine - truth) <= max(2 * norm(other - truth), 1e-7 * scale)


def test_a_latent_query_starts_as_timms(torch: Any, timm: Any) -> None:
    torch.manual_seed(0)
    theirs = timm.layers.AttentionPoolLatent(1024).latent.detach().numpy()
    ours = layers.AttentionPool(1024, 8, 8, init="timm").initialize().latent.value
    assert ours.shape == theirs.shape
    assert abs(ours.std() / theirs.std() - 1) < 0.1
