"""Relative attention, cross attention and attention pooling compute what their sources say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from contract import assert_close, normal
from hypothesis import given
from hypothesis import strategies as st

from minivit import layers, ops
from minivit.arrays import Array

SIZE = st.integers(1, 5)


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def relative_by_loops(qkv: Array, rel_pos: Array, num_heads: int) -> Array:
    """Compute relative attention one score at a time."""
    B, N, D3 = qkv.shape
    K = D3 // 3 // num_heads
    q, k, v = (qkv[:, :, part * D3 // 3 :][:, :, : D3 // 3].reshape(B, N, num_heads, K) for part in range(3))
    y = np.zeros((B, N, num_heads, K))
    for b, i, h in np.ndindex(B, N, num_heads):
        keys = [k[b, j, h] + rel_pos[i - j + N - 1] for j in range(N)]
        exponentials = [math.exp(float(q[b, i, h] @ key) / math.sqrt(K)) for key in keys]
        y[b, i, h] = sum(e / sum(exponentials) * v[b, j, h] for j, e in enumerate(exponentials))
    return y.reshape(B, N, D3 // 3)


def test_a_relative_score_is_that_of_a_key_with_the_vector_of_its_distance() -> None:
    qkv, rel_pos = draw(2, 5, 3 * 21), draw(9, 7, seed=1)
    assert_close([ops.relative_attention(qkv, rel_pos, 3)[0]], [relative_by_loops(qkv, rel_pos, 3)])


@given(B=SIZE, N=SIZE, K=SIZE, H=SIZE)
def test_relative_attention_without_relative_positions_is_attention(B: int, N: int, K: int, H: int) -> None:
    qkv, rel_pos, mask = draw(B, N, 3 * H * K), np.zeros((2 * N - 1, K)), draw(B, H, N, N, seed=1)
    y, cache = ops.relative_attention(qkv, rel_pos, H, mask)
    expected, plain_cache = ops.attention(qkv, H, mask)
    dy = normal(y)
    dqkv = ops.relative_attention_backward(dy, cache)[0]
    assert_close([y, dqkv], [expected, ops.attention_backward(dy, plain_cache)])


@given(B=SIZE, N=st.integers(2, 6), K=SIZE, data=st.data())
def test_some_queries_of_relative_attention_are_rows_of_all(B: int, N: int, K: int, data: st.DataObject) -> None:
    queries = data.draw(st.slices(N).filter(lambda s: np.arange(N)[s].size > 0))
    qkv, rel_pos = draw(B, N, 6 * K), draw(2 * N - 1, K, seed=1)
    y, cache = ops.relative_attention(qkv, rel_pos, 2)
    some, some_cache = ops.relative_attention(qkv, rel_pos, 2, None, queries)
    assert_close([some], [y[:, queries]])
    dy = np.zeros_like(y)
    dy[:, queries] = normal(some)
    expected = ops.relative_attention_backward(dy, cache)
    assert_close(ops.relative_attention_backward(normal(some), some_cache), expected)


def test_a_vector_for_every_distance_changes_nothing_and_gets_no_gradient_in_sum() -> None:
    """It shifts all scores of a query equally, as the key bias does."""
    qkv, rel_pos = draw(2, 5, 3 * 21), draw(9, 7, seed=1)
    y, cache = ops.relative_attention(qkv, rel_pos, 3)
    assert_close([ops.relative_attention(qkv, rel_pos + draw(7, seed=2), 3)[0]], [y])
    drel_pos = ops.relative_attention_backward(normal(y), cache)[1]
    assert np.abs(drel_pos.sum(axis=0)).max() <= 1e-13 * np.abs(drel_pos).max()


@given(B=SIZE, M=SIZE, N=SIZE, K=SIZE, H=SIZE)
def test_cross_attention_of_an_images_own_queries_is_attention(B: int, M: int, N: int, K: int, H: int) -> None:
    q, kv = draw(B, N, H * K), draw(B, N, 2 * H * K, seed=1)
    y, cache = ops.cross_attention(q, kv, H)
    expected, plain_cache = ops.attention(np.concatenate([q, kv], axis=2), H)
    dqkv = ops.attention_backward(normal(y), plain_cache)
    assert_close([y, *ops.cross_attention_backward(normal(y), cache)], [expected, *np.split(dqkv, [H * K], axis=2)])
    fewer = ops.cross_attention(q[:, :M], kv, H)[0]
    assert_close([fewer], [y[:, :M]])


@given(B=SIZE, M=SIZE, N=SIZE)
def test_shared_queries_are_the_same_queries_for_each_image(B: int, M: int, N: int) -> None:
    q, kv = draw(1, M, 6), draw(B, N, 12, seed=1)
    y, cache = ops.cross_attention(q, kv, 2)
    repeated, repeated_cache = ops.cross_attention(np.repeat(q, B, axis=0), kv, 2)
    assert_close([y], [repeated])
    (dq, dkv), (dq_each, dkv_each) = (ops.cross_attention_backward(normal(y), c) for c in (cache, repeated_cache))
    assert dq.shape == q.shape
    assert_close([dq, dkv], [dq_each.sum(axis=0, keepdims=True), dkv_each])


@given(N=SIZE, H=SIZE)
def test_attention_pooling_does_not_depend_on_the_order_of_the_tokens(N: int, H: int) -> None:
    pool = layers.AttentionPool(3 * H, H, 7).initialize(0, "float64")
    x, order = draw(2, N, 3 * H), np.random.default_rng(N).permutation(N)
    assert pool(x).shape == (2, 3 * H)
    assert_close([pool(x[:, order])], [pool(x)])


def test_attention_pooling_adds_the_mlp_to_the_projected_mean_of_the_values() -> None:
    """With a latent query of zero and no biases, all tokens have equal weights."""
    pool = layers.AttentionPool(6, 2, 7, act="relu").initialize(0, "float64")
    pool.latent.value[...] = 0
    x = draw(2, 5, 6)
    h = x.mean(axis=1) @ pool.kv.weight.value[:, 6:] @ pool.proj.weight.value
    hidden = np.maximum(pool.norm(h) @ pool.mlp.fc1.weight.value + pool.mlp.fc1.bias.value, 0)
    assert_close([pool(x)], [h + hidden @ pool.mlp.fc2.weight.value + pool.mlp.fc2.bias.value])


def test_attention_pooling_starts_as_its_scheme_says() -> None:
    """Query, key and value are (D, D) matrices of their own in the original code, and so is each bound."""
    bound = math.sqrt(6 / 200)
    jax = layers.AttentionPool(100, 4, 400, init="jax").initialize()
    assert 0.99 * bound < np.abs(jax.kv.weight.value).max() <= bound
    assert 0.99 * bound < np.abs(jax.q.weight.value).max() <= bound
    assert 0.8 * math.sqrt(6 / 101) < np.abs(jax.latent.value).max() <= math.sqrt(6 / 101)
    assert 0 < np.abs(jax.mlp.fc1.bias.value).max() < 1e-5
    timm = layers.AttentionPool(100, 4, 400, init="timm").initialize()
    assert abs(timm.kv.weight.value.std() / 0.02 - 1) < 0.05
    assert 0.1 < np.abs(timm.latent.value).max() <= 0.2
    assert not timm.latent.decay
    assert jax.kv.weight.parts == ("k", "v")


def test_the_gradient_of_the_latent_query_is_summed_over_the_images() -> None:
    pool = layers.AttentionPool(6, 2, 7).initialize(0, "float64")
    x = draw(3, 5, 6)
    dy = draw(3, 6, seed=1)
    parts = []
    for part in (slice(0, 3), slice(0, 1), slice(1, 3)):
        pool.zero_grad()
        _, cache = pool.forward(x[part])
        pool.backward(dy[part], cache)
        parts.append(pool.latent.grad.copy())
    assert np.abs(parts[0]).max() > 0
    assert_close([parts[1] + parts[2]], [parts[0]])


def test_the_flops_of_attention_pooling_are_those_of_its_products() -> None:
    cost = layers.AttentionPool(6, 2, 7).cost((5, 6))
    maps = 2 * (5 * 6 * 12 + 6 * 6 + 6 * 6 + 6 * 7 + 7 * 6)  # kv, q, proj, fc1, fc2
    assert cost.flops == maps + 2 * 2 * 5 * 6  # q @ k.T and weights @ v


INVALID: dict[str, tuple[Any, str]] = {
    "relative_attention heads": (lambda: ops.relative_attention(draw(2, 5, 21), draw(9, 7), 2), "qkv has 21 columns"),
    "relative_attention distances": (
        lambda: ops.relative_attention(draw(2, 5, 21), draw(5, 7), 1),
        r"relative_attention: rel_pos has shape \(5, 7\); expected \(9, 7\)",
    ),
    "relative_attention mask": (
        lambda: ops.relative_attention(draw(2, 5, 21), draw(9, 7), 1, draw(2, 1, 5, 4)),
        r"relative_attention: mask has shape \(2, 1, 5, 4\); expected \(2, 1, 5, 5\)",
    ),
    "relative_attention dtype": (
        lambda: ops.relative_attention(draw(2, 5, 21), draw(9, 7).astype("f4"), 1),
        "differ in dtype .qkv float64, rel_pos float32",
    ),
    "cross_attention axes": (lambda: ops.cross_attention(draw(5, 6), draw(2, 5, 12), 2), r"q has shape \(5, 6\)"),
    "cross_attention heads": (
        lambda: ops.cross_attention(draw(2, 1, 6), draw(2, 5, 12), 4),
        "q has 6 columns; expected a multiple of 4",
    ),
    "cross_attention batch": (
        lambda: ops.cross_attention(draw(2, 1, 6), draw(3, 5, 12), 2),
        r"kv has shape \(3, 5, 12\); expected \(2, N, 12\)",
    ),
    "cross_attention columns": (
        lambda: ops.cross_attention(draw(1, 1, 6), draw(3, 5, 18), 2),
        r"kv has shape \(3, 5, 18\); expected \(B, N, 12\)",
    ),
    "cross_attention tokens": (lambda: ops.cross_attention(draw(1, 1, 6), draw(3, 0, 12), 2), "at least one token"),
    "AttentionPool heads": (lambda: layers.AttentionPool(6, 4, 7), "a width of 6 cannot be split evenly among 4 heads"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_error_says_what_came_and_what_was_expected(name: str) -> None:
    call, message = INVALID[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
