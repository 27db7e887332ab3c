"""Small functions with right backward passes, and arrays for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.arrays import Array


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def linear(x: Array, weight: Array, bias: Array) -> Any:
    return x @ weight + bias, (x, weight)


def linear_backward(dy: Array, cache: Any) -> Any:
    x, weight = cache
    return dy @ weight.T, x.T @ dy, dy.sum(0)


def tanh(x: Array) -> Any:
    y = np.tanh(x)
    return y, y


def tanh_backward(dy: Array, y: Array) -> Any:
    return dy * (1 - y * y)


def self_sum(x: Array) -> Any:
    return x * x.sum(), x


def self_sum_backward(dy: Array, x: Array) -> Any:
    return dy * x.sum() + np.sum(dy * x)


def layer_norm(x: Array, eps: float = 1e-5) -> Any:
    """Layer norm without weight and bias."""
    centred = x - x.mean(-1, keepdims=True)
    inv = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    return centred * inv, (centred * inv, inv)


def layer_norm_backward(dy: Array, cache: Any) -> Array:
    x_hat, inv = cache
    d: Array = inv * (dy - dy.mean(-1, keepdims=True) - x_hat * (dy * x_hat).mean(-1, keepdims=True))
    return d


def norm(x: Array, weight: Array) -> Any:
    x_hat, (_, inv) = layer_norm(x, eps=1e-6)
    return x_hat * weight, (x_hat, inv, weight)


def norm_backward(dy: Array, cache: Any) -> Any:
    x_hat, inv, weight = cache
    return layer_norm_backward(dy * weight, (x_hat, inv)), (dy * x_hat).sum(0)


def square_matrix(a: Array) -> Any:
    return a @ a, a


def square_matrix_backward(dy: Array, a: Array) -> Any:
    return dy @ a.T + a.T @ dy


X, W, B = normal(7, 5), normal(5, 3), normal(3)
