"""Every layer keeps the contract, with kernels and with references, and its gradient is right in both cases."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import contract
import numpy as np
import pytest
from contract import *  # noqa: F403 - the tests of every case
from contract import normal

from minivit import Key, Layer, layers, ops
from minivit.arrays import Array
from minivit.checking.cases import LAYERS, Case


@pytest.fixture(scope="module", params=LAYERS, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


# They consist of layers that are here themselves, and a report on each of their parameters takes seconds. The first
# test below replaces that of the contract.
MODELS = ("ViT", "MAE", "SimMIM", "MaskedPatches", "ResNet", "ResNetFeatures")


@pytest.mark.parametrize("case", [case for case in LAYERS if case.op not in MODELS], ids=str)  # type: ignore[no-redef]  # on purpose
def test_the_taylor_remainder_has_slope_2_or_the_function_is_linear(case: Case) -> None:
    contract.test_the_taylor_remainder_has_slope_2_or_the_function_is_linear(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in LAYERS if case.op in MODELS], ids=str)
def test_the_taylor_remainder_of_a_whole_model_has_slope_2_too(case: Case) -> None:
    contract.test_the_taylor_remainder_has_slope_2_or_the_function_is_linear(case)


def test_gradient_by_the_references(case: Case) -> None:
    contract.test_gradient(contract.by_reference(case))


composite = pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.MLP(6, 7), (2, 5, 6)),
        (layers.Attention(6, 2), (2, 5, 6)),
        (layers.AttentionPool(6, 2, 7), (2, 5, 6)),
        (layers.HiddenHead(6, 7), (2, 6)),
        (layers.EncoderBlock(6, 2, 7), (2, 5, 6)),
        (layers.PatchEmbed((2, 3), 1, 6), (2, 4, 6, 1)),
        (layers.Convolution(1, 6), (2, 4, 6, 1)),
        (layers.ConvUnit(1, 6, 2), (2, 4, 6, 1)),
        (layers.ConvStem((2, 2), (3, 5), 1, 6), (2, 4, 6, 1)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Layer) else "",
)


@composite
def test_backward_without_a_cache_says_why(layer: Layer, shape: tuple[int, ...]) -> None:
    y, cache = layer.initialize().forward(np.ones(shape, np.float32), keep=False)
    with pytest.raises(ValueError, match=f"{type(layer).__name__}.backward needs a cache, but the forward pass ran"):
        layer.backward(y, cache)


@composite
def test_a_replica_can_read_the_cache_of_another(layer: Layer, shape: tuple[int, ...]) -> None:
    """A layer keeps nothing between the passes; the gradients are added to the layer whose backward pass runs."""
    layer = layer.initialize()
    replica = layer.replica()
    y, cache = layer.forward(normal(np.zeros(shape, "float32")))
    layer.zero_grad()
    replica.backward(normal(y), cache)
    assert (layer.parameters.store.gradients == 0).all()
    gradients = replica.parameters.store.gradients
    layer.backward(normal(y), cache)
    contract.assert_same_bits([gradients], [layer.parameters.store.gradients])


class Twice(Layer):
    """Another layer, with twice its result."""

    def __init__(self, inner: Layer) -> None:
        self.inner = inner

    def forward(self, x: Array, *args: Any, **options: Any) -> tuple[Array, Any]:
        y, cache = self.inner.forward(x, *args, **options)
        return 2 * y, cache

    def backward(self, dy: Array, cache: Any) -> Array:
        return self.inner.backward(2 * dy, cache)


def replaced(layer: Layer) -> Layer:
    return Twice(layer)


def hooked_forward(layer: Layer) -> Layer:
    layer.register_forward_hook(lambda layer, x, y: 2 * y)
    return layer


def hooked_backward(layer: Layer) -> Layer:
    layer.register_backward_hook(lambda layer, dx, dy: 2 * dx)
    return layer


def small_block() -> layers.EncoderBlock:
    return layers.EncoderBlock(6, 2, 8).initialize(0, "float64")


@pytest.mark.parametrize("key", [None, Key(0, 1, np.arange(2))], ids=["evaluation", "training"])
@pytest.mark.parametrize("change", [replaced, hooked_forward, hooked_backward])
@pytest.mark.parametrize(
    "name", [name for name, _ in small_block().named_layers() if name not in ("", "attn.attn_drop")]
)
def test_a_block_calls_the_layers_in_it_that_were_changed(
    name: str, change: Callable[[Layer], Layer], key: Key | None
) -> None:
    """A kernel of a whole block does not run where a layer in it was replaced or has hooks."""
    x = normal(np.zeros((2, 5, 6)))
    results = []
    for run in (contextlib.nullcontext, ops.reference_only):
        block = small_block()
        path, _, last = name.rpartition(".")
        holder = dict(block.named_layers())[path]
        setattr(holder, last, change(getattr(holder, last)))
        with run():
            y, cache = block.forward(x, key)
            dx = block.backward(normal(y), cache)
        results.append([y, dx])
    contract.assert_close(results[0], results[1])
    plain = small_block()
    y, cache = plain.forward(x, key)
    changed = [
        not np.allclose(one, other)
        for one, other in zip([y, plain.backward(normal(y), cache)], results[0], strict=True)
    ]
    assert any(changed)


def test_a_dropout_rate_that_is_set_later_counts() -> None:
    """A block decides anew whether its kernel runs after each change of a layer in it."""
    x = normal(np.zeros((2, 5, 6)))
    key = Key(0, 1, np.arange(2))
    block = small_block()
    plain = block.forward(x, key)[0]
    block.mlp.drop1.rate = 0.5
    dropped = block.forward(x, key)[0]
    assert not np.allclose(dropped, plain)
    assert np.allclose(block.forward(x)[0], plain), "in evaluation nothing is dropped"
    block.mlp.drop1.rate = 0.0
    contract.assert_same_bits([block.forward(x, key)[0]], [plain])
