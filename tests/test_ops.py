"""Every op keeps the contract, computes its formula and rejects invalid arguments."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from contract import *  # noqa: F403 - the tests of every case
from contract import assert_close, assert_same_bits, normal, ways
from hypothesis import given
from hypothesis import strategies as st
from strict import strict

from minivit import ops
from minivit.arrays import Array, to_backend, to_host
from minivit.checking.cases import OPS, Case
from minivit.ops import registry

SIZE = st.integers(1, 6)


@pytest.fixture(scope="module", params=[way for case in OPS for way in ways(case)], ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def test_linear_is_a_matrix_product_of_each_row() -> None:
    x, weight, bias = draw(2, 5, 3), draw(3, 7), draw(7)
    y, _ = ops.linear(x, weight, bias)
    expected = [[[sum(x[b, n] * weight[:, o]) + bias[o] for o in range(7)] for n in range(5)] for b in range(2)]
    assert_close([y], [np.array(expected)])


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 5, 4, 3)])
def test_linear_takes_any_leading_axes(shape: tuple[int, ...]) -> None:
    y, cache = ops.linear(draw(*shape), draw(3, 7), draw(7))
    assert y.shape == (*shape[:-1], 7)
    assert cache is not None
    assert ops.linear_backward(y, cache)[0].shape == shape


def test_layer_norm_gives_each_token_the_mean_bias_and_the_standard_deviation_weight() -> None:
    x, weight, bias, eps = draw(2, 5, 7), draw(7), draw(7), 0.1
    y, _ = ops.layer_norm(x, weight, bias, eps)
    expected = [
        [(row - row.mean()) / math.sqrt(sum((row - row.mean()) ** 2) / 7 + eps) * weight + bias for row in image]
        for image in x
    ]
    assert_close([y], [np.array(expected)])


def test_layer_norm_sums_its_gradients_over_many_tokens_with_little_rounding() -> None:
    """Rows that are added one by one in float32 have an error of 8e-7 here."""
    gradients = {}
    for dtype in ("float32", "float64"):
        x, dy = (draw(8, 197, 64, seed=seed).astype(dtype) for seed in (0, 1))
        with ops.reference_only():
            _, cache = ops.layer_norm(x, np.ones(64, dtype), np.zeros(64, dtype))
            assert cache is not None
            gradients[dtype] = ops.layer_norm_backward(dy, cache)[1:]
    for got, expected in zip(gradients["float32"], gradients["float64"], strict=True):
        assert np.linalg.norm(got - expected) <= 2.5e-7 * np.linalg.norm(expected)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (0, 7), (2, 5, 7), (2, 3, 5, 7), (0, 3, 5, 7), (2, 0, 3, 5, 7)])
def test_layer_norm_takes_any_leading_axes(shape: tuple[int, ...]) -> None:
    x, dy = draw(*shape), draw(*shape, seed=1)
    with ops.reference_only():
        _, cache = ops.layer_norm(x, np.ones(7), np.zeros(7))
        assert cache is not None
        _, dweight, dbias = ops.layer_norm_backward(dy, cache)
    assert_close([dweight, dbias], [(dy * cache.x_hat).reshape(-1, 7).sum(axis=0), dy.reshape(-1, 7).sum(axis=0)])


def test_layer_norm_eps_has_the_value_of_the_published_weights() -> None:
    x, one, zero = 1e-3 * draw(2, 7), np.ones(7), np.zeros(7)
    assert_same_bits([ops.layer_norm(x, one, zero)[0]], [ops.layer_norm(x, one, zero, 1e-6)[0]])


@given(B=SIZE, N=SIZE, D=st.integers(2, 9), eps=st.sampled_from([1e-30, 1e-6, 0.1]), seed=st.integers(0, 99))
def test_layer_norm_dx_is_orthogonal_to_one_and_to_x_hat(B: int, N: int, D: int, eps: float, seed: int) -> None:
    """With eps > 0, dx has a component along x_hat: mean(dx x_hat) = inv_std mean(dx_hat x_hat) eps inv_std**2."""
    x, weight, dy = draw(B, N, D, seed=seed), draw(D, seed=seed + 1), draw(B, N, D, seed=seed + 2)
    _, cache = ops.layer_norm(x, weight, np.zeros(D), eps)
    assert cache is not None
    dx, _, _ = ops.layer_norm_backward(dy, cache)
    inv_std = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    dx_hat, x_hat = dy * weight, (x - x.mean(axis=-1, keepdims=True)) * inv_std
    rounding = 1e-13 * D * inv_std * np.abs(dx_hat).max(axis=-1, keepdims=True)
    assert (np.abs(dx.mean(axis=-1, keepdims=True)) <= rounding).all()
    along = inv_std * (dx_hat * x_hat).mean(axis=-1, keepdims=True) * eps * inv_std**2
    assert (np.abs((dx * x_hat).mean(axis=-1, keepdims=True) - along) <= rounding).all()


def test_gelu_is_x_times_the_normal_distribution_function() -> None:
    x = np.linspace(-6, 6, 101)
    y, _ = ops.gelu(x)
    assert_close([y], [np.array([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x])])


def test_gelu_with_tanh_is_the_published_formula() -> None:
    x = np.linspace(-6, 6, 101)
    y, _ = ops.gelu(x, "tanh")
    expected = [v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x]
    assert_close([y], [np.array(expected)])


def test_gelu_forms_differ_and_so_do_their_backward_passes() -> None:
    x = np.linspace(-4, 4, 101)
    (exact, exact_cache), (tanh, tanh_cache) = ops.gelu(x), ops.gelu(x, "tanh")
    assert exact_cache is not None
    assert tanh_cache is not None
    assert 1e-4 < np.abs(exact - tanh).max() < 1e-3
    assert 1e-4 < np.abs(ops.gelu_backward(x, exact_cache) - ops.gelu_backward(x, tanh_cache)).max() < 1e-2


@given(B=SIZE, C=SIZE, shift=st.sampled_from([0.0, -7.0, 1e4]))
def test_softmax_is_a_distribution_and_invariant_to_shifts(B: int, C: int, shift: float) -> None:
    x = draw(B, C)
    y, _ = ops.softmax(x + shift)
    expected = [[math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in x]
    assert_close([y], [np.array(expected)], 1e-11)
    assert_close([y.sum(axis=-1)], [np.ones(B)])


@given(B=SIZE, C=SIZE, scale=st.sampled_from([1e-3, 1.0, 30.0]))
def test_softmax_gradient_rows_sum_to_zero(B: int, C: int, scale: float) -> None:
    y, cache = ops.softmax(scale * draw(B, C))
    assert cache is not None
    dy = normal(y)
    assert (np.abs(ops.softmax_backward(dy, cache).sum(axis=-1)) <= 1e-14 * np.abs(dy).max()).all()


def attention_by_loops(qkv: Array, num_heads: int, mask: Array | None = None) -> Array:
    """Compute attention one query at a time; columns are q, k, v, each head by head; scores are divided by sqrt(K)."""
    B, N, D3 = qkv.shape
    K = D3 // 3 // num_heads
    y = np.zeros((B, N, D3 // 3))
    for b, h, n in np.ndindex(B, num_heads, N):
        q, k, v = (qkv[b, :, D3 // 3 * part + h * K :][:, :K] for part in range(3))
        scores = [float(q[n] @ k[m]) / math.sqrt(K) for m in range(N)]
        total = sum(map(math.exp, scores))
        for m in range(N):
            weight = math.exp(scores[m]) / total * (1.0 if mask is None else mask[b, h, n, m])
            y[b, n, h * K : (h + 1) * K] += weight * v[m]
    return y


def test_attention_weights_values_by_the_softmax_of_scaled_scores() -> None:
    qkv, mask = draw(2, 5, 3 * 21), draw(2, 3, 5, 5, seed=1)
    assert_close([ops.attention(qkv, 3)[0]], [attention_by_loops(qkv, 3)])
    assert_close([ops.attention(qkv, 3, mask)[0]], [attention_by_loops(qkv, 3, mask)])


@given(B=SIZE, N=st.integers(2, 6), K=SIZE, H=SIZE, seed=st.integers(0, 99))
def test_attention_and_its_gradient_are_equivariant_to_permutations(B: int, N: int, K: int, H: int, seed: int) -> None:
    qkv, order = draw(B, N, 3 * H * K, seed=seed), np.random.default_rng(seed).permutation(N)
    y, cache = ops.attention(qkv, H)
    permuted_y, permuted_cache = ops.attention(qkv[:, order], H)
    assert cache is not None
    assert permuted_cache is not None
    assert_close([permuted_y], [y[:, order]])
    dy = normal(y)
    dqkv, permuted_dqkv = ops.attention_backward(dy, cache), ops.attention_backward(dy[:, order], permuted_cache)
    assert_close([permuted_dqkv], [dqkv[:, order]])


def test_attention_gives_the_key_bias_a_zero_gradient() -> None:
    """A vector added to every key shifts all scores of a query equally, and softmax is invariant to that."""
    y, cache = ops.attention(draw(2, 5, 3 * 21), 3)
    assert cache is not None
    dbias = ops.attention_backward(normal(y), cache).sum(axis=(0, 1))
    assert np.abs(dbias[21:42]).max() <= 1e-13 * np.abs(dbias).max()


def test_dropout_multiplies_by_its_mask() -> None:
    x, mask = draw(2, 5, 7), draw(2, 1, 1, seed=1)
    y, cache = ops.dropout(x, mask)
    assert cache is not None
    assert_same_bits([y, ops.dropout_backward(x, cache)], [x * mask, x * mask])


def test_patches_are_cut_row_by_row_and_flattened_row_column_channel() -> None:
    x = draw(2, 6, 15, 7)
    y, cache = ops.patches(x, (2, 5))
    assert y.shape == (2, 9, 70)
    for b, row, column in np.ndindex(2, 3, 3):
        patch = x[b, 2 * row : 2 * row + 2, 5 * column : 5 * column + 5]
        assert_same_bits([y[b, 3 * row + column]], [patch.reshape(-1)])
    assert cache is not None
    assert_same_bits([ops.patches_backward(y, cache)], [x])


def test_tokens_embed_puts_the_class_token_in_front_and_adds_positions() -> None:
    x, pos_embed, cls_token = draw(2, 5, 7), draw(1, 6, 7, seed=1), draw(1, 1, 7, seed=2)
    y, _ = ops.embed(x, pos_embed, cls_token)
    assert_same_bits([y[:, 1:].copy()], [x + pos_embed[:, 1:]])
    assert_same_bits([y[0, 0], y[1, 0]], [cls_token[0, 0] + pos_embed[0, 0]] * 2)


def test_tokens_embed_sums_its_gradients_over_the_batch() -> None:
    y, cache = ops.embed(draw(2, 5, 7), draw(1, 6, 7), draw(1, 1, 7))
    assert cache is not None
    dy = normal(y)
    _, dpos_embed, dcls_token, _ = ops.embed_backward(dy, cache)
    assert dpos_embed is not None
    assert_same_bits([dpos_embed[0]], [dy[0] + dy[1]])
    assert dcls_token is not None
    assert_same_bits([dcls_token[0, 0]], [dy[0, 0] + dy[1, 0]])


def test_tokens_pool_reads_the_class_token_or_the_mean_of_the_patches() -> None:
    x = draw(2, 6, 7)
    assert_close([ops.pool(x, "token", 1)[0]], [x[:, 0]])
    assert_close([ops.pool(x, "avg", 1)[0]], [(x[:, 1] + x[:, 2] + x[:, 3] + x[:, 4] + x[:, 5]) / 5])
    assert_close([ops.pool(x, "avg", 0)[0]], [x.sum(axis=1) / 6])


def cross_entropy_by_loops(logits: Array, targets: Array) -> float:
    log_sums = [math.log(sum(map(math.exp, row))) for row in logits]
    terms = [targets[b, c] * (logits[b, c] - log_sums[b]) for b, c in np.ndindex(*logits.shape)]
    return -float(sum(terms)) / len(logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_mean_of_the_negative_log_probabilities(smoothing: float) -> None:
    logits, labels, one_hot = draw(5, 7), np.array([6, 0, 3, 3, 1]), np.zeros((5, 7))
    one_hot[range(5), labels] = 1
    expected = cross_entropy_by_loops(logits, one_hot * (1 - smoothing) + smoothing / 7)
    for targets in (labels, one_hot, labels.astype("uint8")):
        loss, _ = ops.cross_entropy(logits, targets, smoothing)
        assert loss.shape == ()
        assert abs(loss - expected) < 1e-14


def test_cross_entropy_takes_targets_that_do_not_sum_to_one() -> None:
    logits, targets = draw(5, 7), np.abs(draw(5, 7, seed=1))
    assert_close([ops.cross_entropy(logits, targets)[0]], [np.array(cross_entropy_by_loops(logits, targets))])


def test_cross_entropy_gradient_is_scaled_by_dloss_and_its_rows_sum_to_zero() -> None:
    _, cache = ops.cross_entropy(draw(5, 7), np.array([6, 0, 3, 3, 1]))
    assert cache is not None
    dlogits = ops.cross_entropy_backward(1.0, cache)
    assert np.abs(dlogits.sum(axis=-1)).max() < 1e-16
    assert_close([ops.cross_entropy_backward(-3.0, cache)], [-3.0 * dlogits])
    assert_same_bits([ops.cross_entropy_backward(np.asarray(-3.0), cache)], [ops.cross_entropy_backward(-3.0, cache)])


def test_cross_entropy_leaves_out_classes_whose_logits_are_minus_infinity() -> None:
    logits = draw(5, 7)
    masked = np.concatenate([logits, np.full((5, 2), -np.inf)], axis=1)
    labels = np.array([6, 0, 3, 3, 1])
    (loss, cache), (expected, expected_cache) = (ops.cross_entropy(x, labels) for x in (masked, logits))
    assert cache is not None
    assert expected_cache is not None
    assert_close([loss], [expected])
    dlogits = ops.cross_entropy_backward(1.0, cache)
    assert_close([dlogits[:, :7]], [ops.cross_entropy_backward(1.0, expected_cache)])
    assert not dlogits[:, 7:].any()
    losses = (ops.token_cross_entropy(x[None], labels[None])[0] for x in (masked, logits))
    assert_close([next(losses)], [next(losses)])
    assert ops.cross_entropy(masked, labels, 0.1)[0] == np.inf


def test_a_label_out_of_range_gives_nan_on_a_device() -> None:
    logits, labels = to_backend(draw(2, 3, 4), strict), to_backend(np.array([[0, 1, 3], [0, 4, 1]]), strict)
    losses = to_host(ops.token_cross_entropy(logits, labels)[0])
    assert np.isnan(losses).tolist() == [False, True]


@pytest.mark.parametrize("values", [[1.0, np.nan], [np.nan, 1.0]])
def test_max_pool_gives_nan_for_a_window_with_nan(values: list[float]) -> None:
    y, cache = ops.max_pool(np.array(values).reshape(1, 1, 2, 1), (1, 2), (1, 2), (0, 0))
    assert cache is not None
    assert np.isnan(y).all()
    assert ops.max_pool_backward(np.ones_like(y), cache).ravel().tolist() == np.isnan(values).tolist()


def test_the_arguments_of_an_op_may_have_names_in_any_order() -> None:
    x = draw(2, 5, 12)
    assert_same_bits([ops.gelu(approximate="none", x=x)[0]], [ops.gelu(x, "none")[0]])
    assert_same_bits([ops.attention(num_heads=2, qkv=x)[0]], [ops.attention(x, 2)[0]])
    with pytest.raises(TypeError, match=r"attention\(\) missing 1 required positional argument: 'num_heads'"):
        ops.attention(x)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"gelu\(\) missing 1 required positional argument: 'x'"):
        ops.gelu()  # type: ignore[call-arg]


def test_a_wrong_argument_of_an_op_with_kernels_is_named_as_the_op_names_it() -> None:
    x, ones = np.ones((2, 3)), np.ones(3)
    with pytest.raises(TypeError, match=r"^gelu\(\) got an unexpected keyword argument 'approx'"):
        ops.gelu(x, approx="tanh")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^layer_norm\(\) takes from 3 to 4 positional arguments but 5"):
        ops.layer_norm(x, ones, ones, 1e-6, True)  # type: ignore[call-arg]


def test_a_numpy_number_does_not_change_the_dtype() -> None:
    x, ones, small = np.ones((2, 4), "f4"), np.ones(4, "f4"), np.float64(1e-6)
    with ops.reference_only():
        results = [
            ops.layer_norm(x, ones, ones, small),
            ops.group_norm(x[:, None, None], ones, ones, 2, small),
            ops.standardize(x, small),
            ops.cross_entropy(x, np.array([0, 3]), np.float64(0.1)),
        ]
    assert {y.dtype.name for y, _ in results} == {"float32"}


def test_a_numpy_number_of_heads_is_checked_as_a_number() -> None:
    with pytest.raises(ValueError, match=r"mask has shape \(2, 1, 5, 5\); expected \(2, 3, 5, 5\)"):
        ops.attention(np.ones((2, 5, 18)), np.int64(3), np.ones((2, 1, 5, 5)))  # type: ignore[arg-type]


def test_references_alone_are_of_ops_that_exist() -> None:
    with pytest.raises(ValueError, match="there is no op called 'atention'"), ops.reference_only("atention"):
        pass


INVALID: dict[str, tuple[Callable[[], Any], str]] = {
    "cross_entropy-smoothing": (
        lambda: ops.cross_entropy(draw(2, 3), np.array([0, 1]), 1.0),
        r"label_smoothing is 1.0; expected at least 0 and below 1",
    ),
    "linear-rows": (lambda: ops.linear(draw(2, 5), draw(3, 7), draw(7)), r"x has shape \(2, 5\); expected \(..., 3\)"),
    "linear-weight": (lambda: ops.linear(draw(2, 3), draw(3), draw(7)), r"weight has shape \(3,\); expected \(I, O\)"),
    "linear-bias": (lambda: ops.linear(draw(2, 3), draw(3, 7), draw(3)), r"bias has shape \(3,\); expected \(7,\)"),
    "linear-dtypes": (
        lambda: ops.linear(draw(2, 3).astype("f4"), draw(3, 7), draw(7)),
        "differ in dtype .*x float32, weight float64.*astype",
    ),
    "linear-integers": (
        lambda: ops.linear(np.ones((2, 3), int), draw(3, 7), draw(7)),
        "x has dtype int64; expected fl",
    ),
    "linear-list": (
        lambda: ops.linear([[1.0]], draw(1, 7), draw(7)),  # type: ignore[arg-type]
        "array of NumPy or CuPy, got list; convert it with numpy.asarray",
    ),
    "linear-libraries": (
        lambda: ops.linear(draw(2, 3), to_backend(draw(3, 7), strict), draw(7)),
        "cannot mix arrays of numpy on the host and strict on device 0; move one",
    ),
    "layer_norm-weight": (
        lambda: ops.layer_norm(draw(2, 5), draw(7), draw(7)),
        r"x has shape \(2, 5\); expected \(..., 7\), the size of weight",
    ),
    "layer_norm-weight-axes": (lambda: ops.layer_norm(draw(2, 5), draw(2, 5), draw(5)), r"weight has shape \(2, 5\)"),
    "layer_norm-number": (lambda: ops.layer_norm(np.array(1.0), draw(5), draw(5)), r"x has shape \(\)"),
    "gelu-form": (lambda: ops.gelu(draw(3), "erf"), "approximate is 'erf'; expected 'none' or 'tanh'"),
    "gelu-integers": (lambda: ops.gelu(np.arange(3)), "gelu: x has dtype int64; expected floating point"),
    "softmax-integers": (lambda: ops.softmax(np.arange(3)), "softmax: x has dtype int64; expected floating point"),
    "attention-axes": (lambda: ops.attention(draw(5, 21), 1), r"qkv has shape \(5, 21\); expected \(B, N, 3 D\)"),
    "attention-number": (lambda: ops.attention(draw(), 1), r"qkv has shape \(\); expected \(B, N, 3 D\)"),
    "attention-number-32": (lambda: ops.attention(draw().astype("f4"), 1), r"qkv has shape \(\)"),
    "attention-heads": (
        lambda: ops.attention(draw(2, 5, 21), 2),
        r"qkv has 21 columns; expected a multiple of 3 \* 2, q, k and v by head",
    ),
    "attention-mask": (
        lambda: ops.attention(draw(2, 5, 21), 7, draw(2, 1, 5, 5)),
        r"mask has shape \(2, 1, 5, 5\); expected \(2, 7, 5, 5\)",
    ),
    "attention-mask-dtype": (
        lambda: ops.attention(draw(2, 5, 21).astype("f4"), 1, draw(2, 1, 5, 5)),
        "mask has dtype float64; expected float32",
    ),
    "dropout-mask": (lambda: ops.dropout(draw(2, 5), draw(5)), r"mask has shape \(5,\); expected \(2, 5\), or 1 on ax"),
    "dropout-mask-dtype": (
        lambda: ops.dropout(draw(2, 5).astype("f4"), draw(2, 5)),
        "mask has dtype float64; expected float32",
    ),
    "patches-axes": (lambda: ops.patches(draw(6, 6, 3), (2, 2)), r"expected \(B, height, width, C\)"),
    "patches-size": (lambda: ops.patches(draw(2, 6, 7, 3), (2, 2)), "6 x 7 pixels cannot be cut into patches of 2 x 2"),
    "tokens-embed": (
        lambda: ops.embed(draw(2, 5, 7), draw(1, 7, 7), draw(1, 1, 7)),
        r"pos_embed has shape \(1, 7, 7\); expected \(1, 6, 7\), or \(1, 5, 7\) for the patches alone",
    ),
    "tokens-embed-cls": (
        lambda: ops.embed(draw(2, 5, 7), draw(1, 6, 7), draw(1, 7)),
        r"cls_token has shape \(1, 7\); expected \(1, 1, 7\)",
    ),
    "tokens-pool": (lambda: ops.pool(draw(2, 5, 7), "max", 1), "mode is 'max'; expected 'token' or 'avg'"),
    "cross_entropy-labels": (
        lambda: ops.cross_entropy(draw(5, 7), np.zeros(4, int)),
        r"labels have shape \(4,\) and dtype int64; expected \(5,\) integers",
    ),
    "cross_entropy-soft": (
        lambda: ops.cross_entropy(draw(5, 7), np.zeros((5, 6))),
        r"labels have shape \(5, 6\) and dtype float64; expected .* \(5, 7\) soft targets of float64",
    ),
    "cross_entropy-dtype": (
        lambda: ops.cross_entropy(draw(5, 7).astype("f4"), np.zeros((5, 7))),
        r"dtype float64; expected \(5,\) integers or \(5, 7\) soft targets of float32: use labels.astype\('float32'\)",
    ),
    "metrics": (
        lambda: ops.metrics.record_metrics(np.zeros(3), np.ones(()), draw(5, 7), np.zeros((5, 1), int), np.zeros(())),
        r"labels has shape \(5, 1\); expected \(5,\)",
    ),
    "cross_entropy-empty": (
        lambda: ops.cross_entropy(draw(0, 7), np.zeros(0, int)),
        r"logits has shape \(0, 7\); expected at least one image and one class",
    ),
    "cross_entropy-label": (
        lambda: ops.cross_entropy(draw(3, 7), np.array([0, 7, 9])),
        "label 7 of image 1 is out of range; 7 classes have the labels 0 to 6$",
    ),
    "cross_entropy-negative": (
        lambda: ops.cross_entropy(draw(3, 7), np.array([0, 1, -1]), 0.1),
        "label -1 of image 2 is out of range",
    ),
    "cross_entropy-from-one": (
        lambda: ops.cross_entropy(draw(3, 7), np.array([7, 1, 2], "uint8")),
        r"label 7 of image 0 is out of range; .* \(do the labels start at 1\?\)",
    ),
    "cross_entropy-negative-target": (
        lambda: ops.cross_entropy(draw(2, 3), np.array([[0.5, 0.5, 0.0], [1.0, 0.5, -0.5]])),
        "soft target of image 1 for class 2 is -0.5; expected a finite number that is not negative",
    ),
    "cross_entropy-nan-target": (
        lambda: ops.cross_entropy(draw(2, 3), np.array([[0.5, np.nan, 0.0], [1.0, 0.0, -0.0]])),
        "soft target of image 0 for class 1 is nan",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_error_says_what_came_and_what_was_expected(name: str) -> None:
    call, message = INVALID[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("case_", OPS, ids=str)
def test_backward_without_a_cache_says_why(case_: Case) -> None:
    with pytest.raises(
        ValueError, match=f"{case_.op}_backward needs a cache, but the forward pass ran with keep=False"
    ):
        case_.backward(np.zeros(1), None)


class DoubledCache(tuple[()]):
    """The cache of a kernel of softmax whose result is twice that of the reference."""


def double(x: Array, *, keep: bool = True) -> tuple[Array, DoubledCache | None]:
    return 2.0 * inspect.unwrap(ops.softmax)(x)[0], DoubledCache() if keep else None


def test_a_kernel_runs_on_the_arguments_it_covers_and_its_cache_selects_the_backward_function() -> None:
    x = draw(2, 5)
    reference, reference_cache = ops.softmax(x)
    assert reference_cache is not None
    dx = ops.softmax_backward(x, reference_cache)
    kernel = ops.Kernel("numpy", lambda x, keep=True: x.ndim == 2, double, lambda dy, cache: 2.0 * dy, DoubledCache)
    before = registry.kernels_of("softmax")
    ops.register_kernel("softmax", kernel)
    try:
        y, cache = ops.softmax(x)
        assert cache is not None
        assert_same_bits([y, ops.softmax_backward(x, cache)], [2.0 * reference, 2.0 * x])
        assert_same_bits([ops.softmax_backward(x, reference_cache)], [dx])
        assert_same_bits([ops.softmax(x[None])[0][0]], [reference])
        assert_same_bits([ops.softmax(x=x)[0]], [2.0 * reference])
        with ops.reference_only():
            assert_same_bits([ops.softmax(x)[0]], [reference])
            assert_same_bits([ops.softmax_backward(x, cache)], [2.0 * x])
    finally:
        registry._kernels["softmax"][:] = before
    with pytest.raises(ValueError, match=r"no op called 'softmin'; the ops are .*attention, .*cross_entropy"):
        ops.register_kernel("softmin", kernel)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gelu_of_any_large_argument_is_zero_or_the_argument(approximate: str, dtype: str) -> None:
    largest = np.finfo(dtype).max
    x = np.array([-largest, -1e20, -40.0, 40.0, 1e20, largest], dtype)
    y, cache = ops.gelu(x, approximate)
    assert (y == [0, 0, 0, 40, x[4], largest]).all()
    assert (ops.gelu_backward(np.ones_like(x), cache) == [0, 0, 0, 1, 1, 1]).all()
