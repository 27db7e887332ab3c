"""Every layer keeps the contract."""

from __future__ import annotations

import numpy as np
import pytest
from contract import *  # noqa: F403 - the tests of every case

from minivit import Layer, layers
from minivit.cases import LAYERS, Case


@pytest.fixture(scope="module", params=LAYERS, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.MLP(6, 7), (2, 5, 6)),
        (layers.Attention(6, 2), (2, 5, 6)),
        (layers.EncoderBlock(6, 2, 7), (2, 5, 6)),
        (layers.PatchEmbed((2, 3), 1, 6), (2, 4, 6, 1)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Layer) else "",
)
def test_backward_without_a_cache_says_why(layer: Layer, shape: tuple[int, ...]) -> None:
    y, cache = layer.initialize().forward(np.ones(shape, np.float32), keep=False)
    with pytest.raises(ValueError, match=f"{type(layer).__name__}.backward needs a cache, but the forward pass ran"):
        layer.backward(y, cache)
