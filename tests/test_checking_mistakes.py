"""Typical mistakes in backward passes of seven kinds of layers: each is found, and named or left without a name."""

# ruff: noqa: E501 - one mistake a line

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from small_passes import layer_norm, layer_norm_backward, normal

from minivit import ops
from minivit.arrays import Array
from minivit.checking import gradcheck

B, N, D, F, H, K = 2, 5, 7, 11, 2, 3


def rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def linear(x: Array, w: Array, b: Array) -> Any:
    return x @ w + b, (x, w)


def linear_backward(dy: Array, c: Any, **wrong: Any) -> Any:
    x, w = c
    dx = dy @ (w if wrong.get("w") else w.T)
    dw = rows(x).T @ rows(dy)
    db = dy.sum((0, 1))
    if wrong.get("mean"):
        dw = dw / (x.shape[0] * x.shape[1])
    if wrong.get("transposed"):
        dw = rows(dy).T @ rows(x)
    if wrong.get("reshaped"):
        dw = (rows(dy).T @ rows(x)).reshape(w.shape)
    if wrong.get("decay"):
        dw = dw + 0.1 * w
    if wrong.get("first"):
        db = dy[0].sum(0)
    if wrong.get("last token"):
        db = dy[:, -1].sum(0)
    if wrong.get("not last"):
        dw = rows(x[:, :-1]).T @ rows(dy[:, :-1])
    if wrong.get("ones"):
        db = np.full_like(db, x.shape[0] * x.shape[1])
    if wrong.get("swapped"):
        return dw.reshape(x.shape) if dw.size == x.size else dx, dx, db
    return dx, dw, db


def attention(q: Array, k: Array, v: Array) -> Any:
    s = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    e = np.exp(s - s.real.max(-1, keepdims=True))
    a = e / e.sum(-1, keepdims=True)
    return a @ v, (q, k, v, a)


def attention_backward(dy: Array, c: Any, **wrong: Any) -> Any:
    q, k, v, a = c
    scale = 1.0 if wrong.get("no scale") else 1 / np.sqrt(q.shape[-1])
    scale = scale**2 if wrong.get("scale twice") else scale
    dv = (a if wrong.get("a") else a.swapaxes(-1, -2)) @ dy
    da = dy @ v.swapaxes(-1, -2)
    ds = a * da if wrong.get("no sum") else a * (da - (da * a).sum(-1, keepdims=True))
    if wrong.get("no softmax"):
        ds = da
    dq = ds @ k * scale
    dk = (ds if wrong.get("ds") else ds.swapaxes(-1, -2)) @ q * scale
    if wrong.get("exchanged"):
        dq, dk = dk, dq
    return dq, dk, dv


def norm(x: Array, w: Array, b: Array) -> Any:
    c = x - x.mean(-1, keepdims=True)
    r = 1 / np.sqrt((c * c).mean(-1, keepdims=True) + 1e-5)
    return c * r * w + b, (c * r, r, w, x)


def norm_backward(dy: Array, c: Any, **wrong: Any) -> Any:
    h, r, w, x = c
    d = dy if wrong.get("no weight") else dy * w
    dx = d * 1.0
    if not wrong.get("no mean"):
        dx = dx - d.mean(-1, keepdims=True)
    if not wrong.get("no variance"):
        dx = dx + (1 if wrong.get("sign") else -1) * h * (d * h).mean(-1, keepdims=True)
    dx = dx if wrong.get("no r") else dx * r
    return dx, (dy * (x if wrong.get("x") else h)).sum((0, 1)), dy.sum((0, 1))


def gelu_slope(x: Array, tanh: bool) -> Array:
    if tanh:
        u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        t = np.tanh(u)
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    erf = np.vectorize(math.erf)
    return 0.5 * (1 + erf(x / math.sqrt(2))) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def gelu(x: Array) -> Any:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), x


def gelu_backward(dy: Array, x: Array, **wrong: Any) -> Any:
    return dy * gelu_slope(gelu(x)[0] if wrong.get("y") else x, not wrong.get("erf"))


def mlp(x: Array, w1: Array, w2: Array) -> Any:
    h = x @ w1
    g = gelu(h)[0]
    return g @ w2, (x, w1, w2, h, g)


def mlp_backward(dy: Array, c: Any, **wrong: Any) -> Any:
    x, w1, w2, h, g = c
    dg = dy @ w2.T
    dh = dg if wrong.get("linear") else dg * gelu_slope(h, not wrong.get("erf"))
    return dh @ w1.T, rows(x).T @ rows(dh), rows(h if wrong.get("h") else g).T @ rows(dy)


def softmax(x: Array) -> Any:
    e = np.exp(x - x.real.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    return y, y


def softmax_backward(dy: Array, y: Array, **wrong: Any) -> Any:
    if wrong.get("diagonal"):
        return dy * y * (1 - y)
    return y * dy if wrong.get("no sum") else y * (dy - (dy * y).sum(0 if wrong.get("axis") else -1, keepdims=True))


TARGETS = np.array([4, 0, 2, 6, 2])


def cross_entropy(z: Array, t: Array) -> Any:
    p = softmax(z)[0]
    return -np.log(p[np.arange(len(t)), t]).mean(), (p, t)


def cross_entropy_backward(dy: Array, c: Any, **wrong: Any) -> Any:
    p, t = c
    d = p.copy()
    if wrong.get("shifted"):
        t = (t + 1) % p.shape[1]
    if not wrong.get("no target"):
        d[np.arange(len(t)), t] -= -1 if wrong.get("plus") else 1
    return (1 if wrong.get("no dy") else dy) * d / (1 if wrong.get("sum") else len(t))


def embedding(table: Array, ids: Array) -> Any:
    return table[ids], (table, ids)


def embedding_backward(dy: Array, c: Any, **wrong: Any) -> Any:
    table, ids = c
    d = np.zeros_like(table)
    if wrong.get("overwritten"):
        d[ids] += dy
    else:
        np.add.at(d, ids - 1 if wrong.get("shifted") else ids, dy)
    return d


MASK = np.random.default_rng(7).random((B, N, D)) < 0.7


def dropout_residual(x: Array, w: Array) -> Any:
    t = np.tanh(x @ w)
    return x + t * MASK / 0.7, (x, w, t)


def dropout_residual_backward(dy: Array, c: Any, **wrong: Any) -> Any:
    x, w, t = c
    d = dy * (1 - t * t) if wrong.get("linear") else dy * MASK * (1 - t * t) / 0.7
    dx = d @ w.T
    if wrong.get("twice"):
        dx = dx + dy
    return (dx if wrong.get("no skip") else dx - dy if wrong.get("minus") else dx + dy), rows(x).T @ rows(d)


def dropout(x: Array) -> Any:
    return x * MASK / 0.7, None


def patches(x: Array) -> Any:
    b, h, w, c = x.shape
    y = x.reshape(b, h // 2, 2, w // 3, 3, c).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(b, h * w // 6, 6 * c), x.shape


def patches_backward(dy: Array, shape: Any, **wrong: Any) -> Any:
    if wrong:
        return dy.reshape(shape)
    b, h, w, c = shape
    return dy.reshape(b, h // 2, w // 3, 2, 3, c).transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def convolution(x: Array, w: Array) -> Any:
    n = x.shape[1] - len(w) + 1
    return sum(x[:, k : k + n] * w[k] for k in range(len(w))), (x, w)


def convolution_backward(dy: Array, c: Any, **wrong: Any) -> Any:
    x, w = c
    n, dx = dy.shape[1], np.zeros_like(x)
    for k in range(len(w)):
        dx[:, k : k + n] += dy * w[-1 - k if wrong.get("kernel") else k]
    dw = np.array([(dy * x[:, k : k + n]).sum() for k in range(len(w))])
    return dx, dw[::-1].copy() if wrong.get("flipped") else dw


def changed_after(x: Array, w: Array) -> Any:
    h = np.tanh(x @ w)
    cache = x, w, h
    h *= 3.0
    return h, cache


def changed_after_backward(dy: Array, c: Any) -> Any:
    x, w, h = c
    d = 3 * dy * (1 - h * h)
    return d @ w.T, rows(x).T @ rows(d)


def mean_after(x: Array) -> Any:
    e = np.exp(x)
    cache = e
    e /= x.shape[-1]
    return e, cache


def fused(qkv: Array) -> Any:
    return ops.attention(qkv, 2)


def fused_backward(dy: Array, c: Any, **wrong: Any) -> Any:
    d = ops.attention_backward(dy, c)
    q, k, v = (part.copy() for part in np.split(d, 3, axis=-1))
    if wrong.get("exchanged"):
        q, k = k, q
    scale = np.sqrt(7) if wrong.get("scale") else 1
    return np.concatenate([(-q if wrong.get("sign") else q) * scale, k * scale, v * (not wrong.get("no v"))], axis=-1)


def first_token(x: Array) -> Any:
    return x[:, 0], x.shape


def sigmoid(x: Array) -> Any:
    y = 1 / (1 + np.exp(-x))
    return y, y


def batch_norm(x: Array) -> Any:
    c = x - x.mean(0)
    r = 1 / np.sqrt((c * c).mean(0) + 1e-5)
    return c * r, (c * r, r)


def variance(x: Array) -> Any:
    c = x - x.mean(-1, keepdims=True)
    return (c * c).sum(-1) / (x.shape[1] - 1), c


def log_softmax(x: Array) -> Any:
    p = softmax(x)[0]
    return np.log(p), p


def scaled_residual(x: Array, w: Array, scale: Array) -> Any:
    t = np.tanh(x @ w)
    return x + scale * t, (w, scale, t)


def scaled_residual_backward(dy: Array, c: Any, **wrong: Any) -> Any:
    w, scale, t = c
    dx = (dy * scale * (1 - t * t)) @ w.T + (dy * scale if wrong.get("skip") else dy)
    return dx, None, (dy * t).sum((0, 1))


def class_token(x: Array, token: Array) -> Any:
    return np.concatenate([np.broadcast_to(token, (x.shape[0], 1, x.shape[2])), x], axis=1), None


def class_token_backward(dy: Array, c: Any, **wrong: Any) -> Any:
    return dy[:, 1:], (dy[:, -1:] if wrong.get("last") else dy[:, :1]).sum(0, keepdims=True)


ANGLES = np.linspace(0, 2, N)[:, None] * [1.0, 0.1, 0.01]


def rotary(x: Array, back: int = 1) -> Any:
    a, b, cos, sin = x[..., :3], x[..., 3:], np.cos(ANGLES), back * np.sin(ANGLES)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1), None


def rotary_backward(dy: Array, c: Any, **wrong: Any) -> Any:
    return rotary(dy, 1 if wrong.get("forward") else -1)[0]


X, W, BIAS = normal(B, N, D), normal(D, F), normal(F)
SQUARE = normal(D, D)
QKV = normal(B, H, N, K), normal(B, H, N, K, seed=1), normal(B, H, N, K, seed=2)
NORM = X, normal(D), normal(D, seed=1)
MLP = X, W, normal(F, 3)
LOGITS = normal(5, 7)

# name: forward, backward, arrays, the wrong option, and a pattern of the explanation, or "" if it has no name yet
MISTAKES: dict[str, tuple[Any, Any, tuple[Array, ...], str, str]] = {
    "linear: mean over batch and tokens": (linear, linear_backward, (X, W, BIAS), "mean", "a mean where forward"),
    "linear: dx with w": (linear, linear_backward, (X, SQUARE, normal(D)), "w", "w transposed|not transposed"),
    "linear: dw transposed": (linear, linear_backward, (X, SQUARE, normal(D)), "transposed", "axes 0 and 1 are swapped"),
    "linear: dw reshaped": (linear, linear_backward, (X, W, BIAS), "reshaped", "reshaped where it should"),
    "linear: weight decay in dw": (linear, linear_backward, (X, W, BIAS), "decay", "0.1 times w"),
    "linear: db of the first sample": (linear, linear_backward, (X, W, BIAS), "first", "not summed over"),
    "linear: db of the last token": (linear, linear_backward, (X, W, BIAS), "last token", "index 4 .*axis 1: not summed"),
    "linear: dw without the last token": (linear, linear_backward, (X, W, BIAS), "not last", "without index 4|first 4 of 5"),
    "linear: db without dy": (linear, linear_backward, (X, W, BIAS), "ones", "does not use dy"),
    "attention: exchanged": (attention, attention_backward, QKV, "exchanged", "the two are exchanged"),
    "attention: no scale": (attention, attention_backward, QKV, "no scale", r"1/sqrt\(3\) is missing"),
    "attention: scale twice": (attention, attention_backward, QKV, "scale twice", r"1/sqrt\(3\) is extra"),
    "attention: no row sum": (attention, attention_backward, QKV, "no sum", "row sum is missing"),
    "attention: ds": (attention, attention_backward, QKV, "ds", "not transposed"),
    "attention: a": (attention, attention_backward, QKV, "a", "not transposed"),
    "attention: no softmax": (attention, attention_backward, QKV, "no softmax", "the backward pass of softmax is missing"),
    "layer norm: no mean": (norm, norm_backward, NORM, "no mean", "through the mean, is missing"),
    "layer norm: no variance": (norm, norm_backward, NORM, "no variance", "through the variance is missing"),
    "layer norm: sign of the variance": (norm, norm_backward, NORM, "sign", "variance is missing or wrong"),
    "layer norm: no weight": (norm, norm_backward, NORM, "no weight", "the factor w is missing"),
    "layer norm: no 1/std": (norm, norm_backward, NORM, "no r", r"cache\[1\]"),
    "layer norm: x for x_hat": (norm, norm_backward, NORM, "x", r"sum\(dy \* x\)"),
    "gelu: the other derivative": (gelu, gelu_backward, (X,), "erf", r"the derivative of GELU \(erf\) at x"),
    "gelu: at y": (gelu, gelu_backward, (X,), "y", "at y in place of x"),
    "mlp: the other derivative": (mlp, mlp_backward, MLP, "erf", r"GELU \(erf\) at cache\[3\]"),
    "mlp: no derivative": (mlp, mlp_backward, MLP, "linear", r"backward returns \(?dy @ w2.T\)? @ w1.T"),
    "mlp: before the activation": (mlp, mlp_backward, MLP, "h", r"cache\[3\].T @ dy, the derivative is cache\[4\].T @ dy"),
    "softmax: no row sum": (softmax, softmax_backward, (X,), "no sum", "softmax's row sum"),
    "softmax: diagonal": (softmax, softmax_backward, (X,), "diagonal", r"returns dy \* y \* \(1 - y\)"),
    "cross-entropy: sum": (cross_entropy, cross_entropy_backward, (LOGITS, TARGETS), "sum", "a sum where forward takes a mean"),
    "cross-entropy: no target": (cross_entropy, cross_entropy_backward, (LOGITS, TARGETS), "no target", "one-hot"),
    "cross-entropy: sign of the target": (cross_entropy, cross_entropy_backward, (LOGITS, TARGETS), "plus", "one-hot"),
    "residual: no mask on the branch": (dropout_residual, dropout_residual_backward, (X, SQUARE), "linear", r"dy \+ .* @ w.T"),
    "cross-entropy: shifted": (cross_entropy, cross_entropy_backward, (LOGITS, TARGETS), "shifted", r"shifted"),
    "cross-entropy: no dy": (cross_entropy, cross_entropy_backward, (LOGITS, TARGETS), "no dy", "does not use dy"),
    "embedding: overwritten": (embedding, embedding_backward, (normal(7, 5), TARGETS), "overwritten", "np.add.at"),
    "embedding: shifted": (embedding, embedding_backward, (normal(7, 5), TARGETS), "shifted", "shifted by|indices are shifted"),
    "residual: no skip": (dropout_residual, dropout_residual_backward, (X, SQUARE), "no skip", "the term dy is missing"),
    "residual: twice": (dropout_residual, dropout_residual_backward, (X, SQUARE), "twice", "dy is added once too often"),
    "residual: minus": (dropout_residual, dropout_residual_backward, (X, SQUARE), "minus", "dy has the wrong sign"),
    "dropout: no scale": (dropout, lambda dy, c, **_: dy * MASK, (X,), "-", r"1/0.7 .* is missing"),
    "dropout: no mask": (dropout, lambda dy, c, **_: dy / 0.7, (X,), "-", "is not left out"),
    "dropout: the other mask": (dropout, lambda dy, c, **_: dy * ~MASK / 0.7, (X,), "-", "inverted"),
    "patches: reshape alone": (patches, patches_backward, (normal(2, 10, 21, 1),), "-", "numbers at other places|reshape"),
    "convolution: kernel": (convolution, convolution_backward, (normal(2, 13), normal(3)), "kernel", ""),
    "convolution: flipped": (convolution, convolution_backward, (normal(2, 13), normal(3)), "flipped", "reversed along axis 0"),
    "fused qkv: scale of q and k": (fused, fused_backward, (normal(2, 5, 42),), "scale", r"indices 0 to 27 .*1/sqrt\(7\)"),
    "fused qkv: exchanged": (fused, fused_backward, (normal(2, 5, 42),), "exchanged", "thirds .* exchanged"),
    "fused qkv: no v": (fused, fused_backward, (normal(2, 5, 42),), "no v", "indices 28 to 41 of axis 2: it is 0"),
    "fused qkv: sign of q": (fused, fused_backward, (normal(2, 5, 42),), "sign", "indices 0 to 13 .*a sign is flipped"),
    "pool: all tokens": (first_token, lambda dy, s, **_: np.repeat(dy[:, None], s[1], 1), (X,), "-", "an index"),
    "pool: another token": (first_token, lambda dy, s, **_: np.pad(dy[:, None], ((0, 0), (1, s[1] - 2), (0, 0))), (X,), "-", "shifted by 1 along axis 1"),
    "two factors": (lambda x: (x * [2, 2, 5], 0), lambda dy, _, **__: dy * [5, 5, 2], (normal(4, 3),), "-", "axis 1 alone"),
    "square: 2": (lambda x: ((x * x).sum(), x), lambda dy, x, **_: dy * x, (X,), "-", "a factor 2 missing"),
    "sigmoid: 1 - y": (sigmoid, lambda dy, y, **_: dy * y, (X,), "-", r"returns dy \* y, the derivative is dy \* y \* \(1 - y\)"),
    "batch norm: wrong in both terms": (batch_norm, lambda dy, c, **_: dy * c[1], (normal(7, 5),), "-", "are both missing"),
    "variance: n": (variance, lambda dy, c, **_: dy[:, None] * 2 * c / c.shape[1], (normal(3, 7),), "-", "n and n - 1"),
    "changed in place": (changed_after, lambda dy, c, **_: changed_after_backward(dy, c), (X, SQUARE), "-", r"forward changes cache\[2\] in place"),
    "log softmax: no sum": (log_softmax, lambda dy, p, **_: dy, (LOGITS,), "-", r"the term the cache \* sum\(dy\), as of the logarithm"),
    "log softmax: 1 for the sum": (log_softmax, lambda dy, p, **_: dy - p, (LOGITS,), "-", r": a term the cache \* sum\(\.\.\.\) over it"),
    "clip: one end": (lambda x: (np.where(x.real > 1, 1, np.where(x.real > 0, x, 0 * x)), x), lambda dy, x, **_: dy * (x > 0), (X,), "-", "forward leaves out more"),
    "residual: scaled": (scaled_residual, scaled_residual_backward, (X, SQUARE, normal(D)), "skip", "the term dy is multiplied by scale"),
    "class token: last": (class_token, class_token_backward, (X, normal(1, 1, D)), "last", "from index 5 .* where forward uses index 0"),
    "rotary: forward": (rotary, rotary_backward, (normal(B, N, 6),), "forward", "the transpose is needed"),
    "cumsum: forward": (lambda x: (np.cumsum(x, 1), 0), lambda dy, _, **__: np.cumsum(dy, 1), (LOGITS,), "-", "the transpose is needed"),
    "pool: mean over the batch": (lambda x: (x.mean(1), 0), lambda dy, _, **__: np.repeat(dy[:, None], N, 1) / 3, (normal(3, N, D),), "-", "5/3.*length of the wrong axis"),
    "float16": (lambda x: (x * x, x), lambda dy, x, **_: (2 * dy * x).astype(np.float16).astype(x.dtype), (X,), "-", "one of float16"),
    "a whole root": (lambda x: (x / 8, 0), lambda dy, _, **__: dy, (normal(7, 3),), "-", r"square root of 64\): perhaps a scale 1/sqrt\(64\).*is missing"),
    "a whole number": (lambda x: (x / 5, 0), lambda dy, _, **__: dy, (normal(7, 3),), "-", "everywhere 5 times the derivative$"),
    "mean in place": (mean_after, lambda dy, c, **_: dy * c / 7, (X,), "-", "forward changes the cache in place"),
}  # fmt: skip


def explanation(name: str) -> str:
    forward, backward, arrays, option, _ = MISTAKES[name]
    report = gradcheck(forward, lambda dy, c: backward(dy, c, **{option: True}), *arrays)
    assert not report
    notes = [row.note for row in report.rows if row.verdict == "FAILED"]
    return "\n".join(note.partition("; ")[2] for note in notes)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_typical_mistake_is_found_and_named(name: str) -> None:
    pattern = MISTAKES[name][-1]
    told = explanation(name)
    assert re.search(pattern, told) if pattern else not told, told


@pytest.mark.parametrize(
    "right",
    {name: case[:3] for name, case in MISTAKES.items() if case[1].__name__ != "<lambda>"}.values(),
    ids=lambda case: case[0].__name__,
)
def test_the_same_backward_pass_without_the_mistake_passes(right: tuple[Any, Any, tuple[Array, ...]]) -> None:
    forward, backward, arrays = right
    assert gradcheck(forward, backward, *arrays, directions=1)


@pytest.mark.parametrize("method", ["auto", "central"])
@pytest.mark.parametrize("factor", [12345.678, 1e4, math.pi * 1e-5, 23.4567, 1 / 23.4567, 70.5, 1e9])
def test_a_number_that_is_no_root_of_a_width_gets_no_meaning(factor: float, method: Any) -> None:
    report = gradcheck(lambda x: (factor * x, 0), lambda dy, _: dy, normal(7, 3), method=method)
    assert report.rows[0].note.endswith(f"everywhere {1 / factor:.6g} times the derivative")


@pytest.mark.parametrize("method", ["auto", "central"])
@pytest.mark.parametrize("width", [48, 80, 64])
def test_the_root_of_a_width_is_named(width: int, method: Any) -> None:
    report = gradcheck(lambda x: (x / math.sqrt(width), 0), lambda dy, _: dy, normal(7, 3), method=method)
    assert f"a scale 1/sqrt({width}), as of the width of a head, is missing" in report.rows[0].note


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "spoil",
    [
        lambda g, dx: dx + g.standard_normal(dx.shape),
        lambda g, dx: dx * g.standard_normal(dx.shape),
        lambda g, dx: g.standard_normal(dx.shape),
        lambda g, dx: dx + 1e-2 * g.standard_normal(dx.shape),
    ],
    ids=["added", "multiplied", "replaced", "small"],
)
def test_a_random_error_gets_no_name(spoil: Callable[[Any, Array], Array], seed: int) -> None:
    for forward, backward, arrays in ((linear, linear_backward, (X, W, BIAS)), (attention, attention_backward, QKV)):

        def wrong(dy: Array, c: Any, backward: Any = backward) -> Any:
            generator = np.random.default_rng([seed, 100])
            return tuple(spoil(generator, dx) for dx in backward(dy, c))

        report = gradcheck(forward, wrong, *arrays)
        assert [row.note.partition("; ")[2] for row in report.rows] == ["", "", ""]


@pytest.mark.parametrize("seed", range(6))
def test_a_few_rows_of_a_large_table_are_not_called_independent_of_it(seed: int) -> None:
    ids = np.random.default_rng(seed).integers(1, 1000, 40)
    report = gradcheck(
        embedding, lambda dy, c: embedding_backward(dy, c, shifted=True), normal(1000, 16), ids, seed=seed
    )
    assert not report
    assert "does not depend" not in report.rows[0].note


def test_an_array_that_forward_does_not_use_is_named_if_it_is_large() -> None:
    report = gradcheck(lambda x, w: (x * x, x), lambda dy, x: (2 * dy * x, dy), normal(40, 50), normal(40, 50))
    assert "forward does not depend on this array" in report.rows[1].note


@pytest.mark.parametrize("scale", [[1, 1, 1e-8, 1], [1, 1e-8, 1e-8, 1e-8]])
def test_a_wrong_sign_of_small_elements_is_not_called_rounding(scale: Any) -> None:
    flipped = np.where(np.array(scale) < 1, -1, 1)
    report = gradcheck(lambda x: (x * x * scale, x), lambda dy, x: 2 * dy * x * scale * flipped, normal(5, 4))
    assert not report
    assert "rounding" not in report.rows[0].note


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_of_a_single_element_none_is_called_right(shape: tuple[int, ...]) -> None:
    report = gradcheck(lambda x: (x * x, x), lambda dy, x: 2.5 * dy * x, normal(*shape))
    assert not report
    assert "the others right" not in report.rows[0].note


@pytest.mark.parametrize(("rows", "word"), [(20, "worst"), (40, "wrong")])
def test_an_element_is_called_the_worst_only_if_all_were_measured(rows: int, word: str) -> None:
    error = normal(rows, 20, seed=1)
    report = gradcheck(lambda x: (x * x, x), lambda dy, x: 2 * dy * x + error, normal(rows, 20))
    assert report.rows[0].note.startswith(f"{word} at [")
    worst = abs(error[report.rows[0].worst_index or (0, 0)]) == np.max(np.abs(error))
    assert worst or word == "wrong"


@pytest.mark.parametrize("result", ["float64", "float32"])
def test_a_forward_pass_in_float32_is_named(result: str) -> None:
    def forward(x: Array) -> Any:
        return np.tanh(x.astype(np.float32)).astype(result), x

    report = gradcheck(forward, lambda dy, x: dy * (1 - np.tanh(x) ** 2), normal(3, 5))
    assert not report
    assert "forward computes in float32: every number of its result is one of float32" in report.rows[0].note
    assert "kinks" not in report.rows[0].note


def test_whole_numbers_are_no_rounding() -> None:
    report = gradcheck(lambda x: (np.floor(x.real) * 1.0, x), lambda dy, x: dy * 1.0, normal(3, 5))
    assert not report
    assert "float32" not in report.rows[0].note


def times(factor: Any) -> Callable[[Array, Array], Array]:
    return lambda dy, y: dy * (1 - y * y) * factor


@pytest.mark.parametrize(
    ("backward", "words"),
    [
        (lambda dy, y: dy * (1 - y * y) + 1e-10 * np.eye(5, 7), "5 of 35 elements are wrong, the others right"),
        (
            times(1 + 5e-11 * (np.arange(5) == 1)[:, None]),
            "index 1 of axis 0: 1.00000000005 times the derivative there",
        ),
        (times(1 + 1e-8 * (np.arange(5) == 1)[:, None]), "index 1 of axis 0: 1.00000001 times the derivative there"),
        (times(1 + 5e-11), "everywhere 1.00000000005 times the derivative"),
        (times(1 - 3e-9), "right to about 8 digits only: float32 rounding or a truncated constant"),
        (lambda dy, y: dy * (1 + 5e-11 - y * y), "the difference from the derivative is 5e-11 times dy"),
    ],
)
def test_an_explanation_fits_the_error_and_not_only_the_gradient(backward: Any, words: str) -> None:
    x = np.random.default_rng(0).standard_normal((5, 7))
    report = gradcheck(lambda x: (np.tanh(x), np.tanh(x)), backward, x)
    assert not report
    assert words in report.rows[0].note


def test_the_transpose_is_named_as_missing_of_a_linear_forward_pass_only() -> None:
    def reversed_order(dy: Array, cache: Any) -> Array:
        weight, x_hat, inv = cache
        d: Array = inv * (dy - dy.mean(-1, keepdims=True) - x_hat * (dy * x_hat).mean(-1, keepdims=True))
        return weight * d

    def norm(x: Array) -> Any:
        weight, centred = np.linspace(1, 2, 6), x - x.mean(-1, keepdims=True)
        inv = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-6)
        return centred * inv * weight, (weight, centred * inv, inv)

    note = gradcheck(norm, reversed_order, normal(3, 6)).rows[0].note
    assert note.endswith("backward takes the factors in the order of forward and needs the reverse order")
    note = gradcheck(lambda x: (np.cumsum(x, 1) + 1, None), lambda dy, _: np.cumsum(dy, 1), normal(3, 6)).rows[0].note
    assert "the transpose is needed, such as" in note


def test_where_forward_at_y_gives_y_again_y_is_not_named_in_place_of_x() -> None:
    note = gradcheck(lambda x: (np.abs(x), x), lambda dy, x: dy, normal(3, 5)).rows[0].note
    assert "in place of x" not in note
    assert note.endswith("backward returns dy, the derivative is dy * sign(x)")


def mean_of(x: Array) -> Any:
    return x.mean((1, 2)), x.shape


def repeated(dy: Array, shape: Any) -> Array:
    return np.broadcast_to(dy[:, None, None], shape) / shape[1]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 4, 6, 3), "the length of axis 2 of the array or the size of the output)"),
        ((2, 4, 5, 3), "the length of axis 2 of the array)"),
        (
            (7, 4, 3, 2),
            "(the length of axis 2 of the array): a sum where forward takes a mean, or the reverse, or (a f",
        ),
    ],
)
def test_the_length_of_an_axis_comes_before_a_product_of_lengths(shape: Any, words: str) -> None:
    assert words in gradcheck(mean_of, repeated, normal(*shape)).rows[0].note


def test_a_product_of_lengths_that_is_the_length_of_an_axis_too_is_named() -> None:
    def backward(dy: Array, shape: Any) -> Array:
        return np.broadcast_to(dy[:, None, None], shape) * 1.0

    words = "the length of axis 3 of the array or the lengths of axes 1 and 2 of the array multiplied"
    note = gradcheck(lambda x: (x.mean((1, 2)), x.shape), backward, normal(5, 2, 3, 6)).rows[0].note
    assert words.replace("axis 3 of the array", "axis 1 of the output") in note


@pytest.mark.parametrize("offset", [0, 1e9])
def test_the_digits_that_an_offset_costs_are_named(offset: float) -> None:
    def backward(dy: Array, cache: Any) -> Array:
        return layer_norm_backward(dy, cache) * (1 - 3e-8)

    note = gradcheck(layer_norm, backward, normal(3, 6) + offset).rows[0].note
    assert "float32 rounding or a truncated constant" in note
    assert ("rounding beside the offset of x" in note) == bool(offset)


def test_a_factor_of_3_may_be_that_of_a_cube() -> None:
    note = gradcheck(lambda x: (x**3, x), lambda dy, x: dy * x * x, normal(5, 7)).rows[0].note
    assert note.endswith("(a factor 3 missing, as of a cube)")
