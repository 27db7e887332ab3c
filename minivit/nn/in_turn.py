"""Layers in turn: both passes, the cost, and the shape of the result, for layers that consist of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minivit.arrays import Array
from minivit.nn.cost import Cost, total_cost
from minivit.nn.layer import Layer
from minivit.random import Key, fold


def forward_in_turn(layers: Sequence[Layer], x: Array, rng: Key | None, keep: bool) -> tuple[Array, Any]:
    """Pass `x` through layers in turn, and return the result and a list of their caches."""
    caches = []
    for i, layer in enumerate(layers):
        x, cache = layer.forward(x, fold(rng, str(i)), keep)
        caches.append(cache)
    return x, caches if keep else None


def backward_in_turn(layers: Sequence[Layer], dy: Array, caches: Sequence[Any]) -> Array:
    """Return the gradient of the input of the first layer."""
    for layer, cache in zip(reversed(layers), reversed(caches), strict=True):
        dy = layer.backward(dy, cache)
    return dy


def result_in_turn(layers: Sequence[Layer], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an image of `shape` after layers."""
    for layer in layers:
        shape = layer.result(shape)
    return shape


def cost_in_turn(layers: Sequence[Layer], shape: tuple[int, ...]) -> Cost:
    """Return the cost of the layers for one image of `shape`."""
    costs = [Cost()]
    for layer in layers:
        costs.append(layer.cost(shape))
        shape = layer.result(shape)
    return total_cost(costs)
