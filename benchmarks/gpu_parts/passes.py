"""minivit's CUDA kernels on large arrays, with the memory that each must read and write, whatever it does.

The arrays are as wide as those of the models, and so many rows long that they are several times what a cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu_parts.arrays import bytes_of, numbers
from minivit import ops
from minivit.arrays import Array
from minivit.kernels.cuda.columns import column_sums
from minivit.kernels.cuda.gelu import bias_gelu, bias_gelu_backward
from minivit.kernels.cuda.heads import merge_heads, split_heads
from minivit.kernels.cuda.layer_norm import normalize, normalize_backward
from minivit.kernels.cuda.linear import add_bias
from minivit.kernels.cuda.runtime import acc_dtype, whole_packs
from minivit.kernels.cuda.softmax import scaled_softmax, scaled_softmax_backward
from minivit.ops.augment import channel_scale, training_images
from minivit.ops.update_rules import Group, adam_step, gradient_norm
from minivit.random import Key

WIDTHS = (192, 768)  # D of the models
HIDDEN_WIDTHS = (768, 3072)
TOKENS = (65, 197)
HEAD_WIDTH = 64
CLASSES = 1000
IMAGES = ((32, 4), (224, 16))  # side of an image and of a patch
_CROP = 4


class Pass(NamedTuple):
    """A kernel's work: a call, and the arrays that it must read or write, each as often as it must."""

    run: Callable[[], object]
    moved: tuple[Array, ...]

    @property
    def bytes(self) -> int:
        """What it must move."""
        return bytes_of(*self.moved)


def passes(xp: Any, dtype: Any, size: int) -> Iterator[tuple[str, Callable[[], Pass]]]:
    """Yield the name of each pass, and what makes it.

    Parameters
    ----------
    xp : module
        The array library.
    dtype : dtype
        Of the arrays: a 16-bit one, float32 or float64.
    size : int
        Bytes of the largest array, about.
    """
    maker = _Maker(xp, np.dtype(dtype), size)
    for width in WIDTHS:
        yield f"layer norm, {width}", partial(maker.layer_norm, width)
        yield f"residual sum and layer norm, {width}", partial(maker.residual_layer_norm, width)
        yield f"layer norm backward, {width}", partial(maker.layer_norm_backward, width)
    for width in HIDDEN_WIDTHS:
        yield f"bias and GELU, {width}", partial(maker.gelu, width)
        yield f"bias and GELU backward, {width}", partial(maker.gelu_backward, width)
    for width, tokens in zip(WIDTHS, TOKENS, strict=True):
        yield f"bias and heads apart, {width}", partial(maker.split_heads, width, tokens)
        yield f"heads together and column sums, {width}", partial(maker.merge_heads, width, tokens)
    for tokens in TOKENS:
        yield f"softmax, {tokens}", partial(maker.softmax, tokens)
        yield f"softmax backward, {tokens}", partial(maker.softmax_backward, tokens)
    yield f"cross-entropy, {CLASSES}", maker.cross_entropy
    yield f"cross-entropy backward, {CLASSES}", maker.cross_entropy_backward
    yield "dropout", maker.dropout
    yield "dropout mask", maker.dropout_mask
    for width in WIDTHS:
        yield f"bias, {width}", partial(maker.bias, width, False)
        yield f"bias and residual sum, {width}", partial(maker.bias, width, True)
        yield f"column sums, {width}", partial(maker.column_sums, width)
    yield "embed", maker.embed
    for side, patch in IMAGES:
        yield f"patches of {patch}", partial(maker.patches, side, patch)
        yield f"patches of {patch} backward", partial(maker.patches_backward, side, patch)
    yield "training images", maker.training_images
    yield "AdamW (float32)", maker.adamw
    yield "gradient norm (float32)", maker.gradient_norm


class _Maker:
    def __init__(self, xp: Any, dtype: Any, size: int) -> None:
        self.xp, self.dtype, self.size = xp, dtype, size
        self.new = partial(numbers, xp, dtype)
        self.acc = acc_dtype(dtype)

    def rows(self, columns: int) -> int:
        return max(1, self.size // (columns * self.dtype.itemsize))

    def empty_like(self, x: Array) -> Array:
        return self.xp.empty(x.shape, dtype=x.dtype)

    def layer_norm(self, width: int) -> Pass:
        x, weight, bias = self.new(self.rows(width), width), self.new(width), self.new(width)
        y = self.empty_like(x)
        statistics = normalize(x, weight, bias, 1e-6, y)
        return Pass(lambda: normalize(x, weight, bias, 1e-6, y), (x, weight, bias, y, *statistics))

    def residual_layer_norm(self, width: int) -> Pass:
        x, weight, bias, h_bias = self.new(self.rows(width), width), *(self.new(width) for _ in range(3))
        h, total, y = self.new(*x.shape), self.empty_like(x), self.empty_like(x)
        residual = (h, h_bias, total)
        statistics = normalize(x, weight, bias, 1e-6, y, residual)
        moved = (x, h, h_bias, weight, bias, total, y, *statistics)
        return Pass(lambda: normalize(x, weight, bias, 1e-6, y, residual), moved)

    def layer_norm_backward(self, width: int) -> Pass:
        x, weight, dy = self.new(self.rows(width), width), self.new(width), self.new(self.rows(width), width)
        residual, dx = self.new(*x.shape), self.empty_like(x)
        statistics = normalize(x, weight, weight, 1e-6, dx)
        moved = (dy, x, weight, *statistics, residual, dx)
        return Pass(lambda: normalize_backward(dy, x, weight, statistics, residual, dx), moved)

    def gelu(self, width: int) -> Pass:
        x, bias = self.new(self.rows(width), width), self.new(width)
        y = self.empty_like(x)
        return Pass(lambda: bias_gelu(x, bias, False, y), (x, bias, y))

    def gelu_backward(self, width: int) -> Pass:
        x, bias, dy = self.new(self.rows(width), width), self.new(width), self.new(self.rows(width), width)
        dx = self.empty_like(x)
        return Pass(lambda: bias_gelu_backward(dy, x, bias, False, dx), (dy, x, bias, dx))

    def split_heads(self, width: int, tokens: int) -> Pass:
        x, bias = self.new(self.rows(tokens * 3 * width), tokens, 3 * width), self.new(3 * width)
        return Pass(lambda: split_heads(x, bias, 3, width // HEAD_WIDTH), (x, bias, x))

    def merge_heads(self, width: int, tokens: int) -> Pass:
        x = self.new(3, self.rows(tokens * 3 * width), width // HEAD_WIDTH, tokens, HEAD_WIDTH)
        return Pass(lambda: merge_heads(x, sums=True), (x, x))

    def _scores(self, tokens: int) -> tuple[Array, Array]:
        """Return scores as attention has them, not rounded and in rows of whole packs, and what becomes of them."""
        stride = whole_packs(tokens, self.dtype)
        x = numbers(self.xp, self.acc, self.rows(stride), stride)
        return x, self.xp.empty(x.shape, dtype=self.dtype)

    def softmax(self, tokens: int) -> Pass:
        x, y = self._scores(tokens)
        return Pass(lambda: scaled_softmax(x, 1.0, y, tokens), (x[:, :tokens], y[:, :tokens]))

    def softmax_backward(self, tokens: int) -> Pass:
        (dy, dx), (x, y) = self._scores(tokens), self._scores(tokens)
        scaled_softmax(x, 1.0, y, tokens)
        moved = tuple(x[:, :tokens] for x in (dy, y, dx))
        return Pass(lambda: scaled_softmax_backward(dy, y, 0.125, dx, tokens), moved)

    def _logits(self) -> tuple[Array, Array, Array]:
        """Return logits, labels, and an array as large as the softmax that is kept."""
        rows = self.rows(CLASSES)
        labels = self.xp.arange(rows, dtype=np.int64) % CLASSES
        return self.new(rows, CLASSES), labels, self.xp.empty((rows, CLASSES), dtype=self.acc)

    def cross_entropy(self) -> Pass:
        logits, labels, p = self._logits()
        return Pass(lambda: ops.cross_entropy(logits, labels), (logits, labels, p))

    def cross_entropy_backward(self) -> Pass:
        logits, labels, p = self._logits()
        cache = ops.cross_entropy(logits, labels)[1]
        return Pass(lambda: ops.cross_entropy_backward(1.0, cache), (p, labels, logits))

    def dropout(self) -> Pass:
        x = self.new(self.rows(WIDTHS[0]), WIDTHS[0])
        mask = self._key(len(x)).keep_mask(x.shape, 0.1, self.dtype)
        return Pass(lambda: ops.dropout(x, mask), (x, mask, x))

    def dropout_mask(self) -> Pass:
        shape = self.rows(WIDTHS[0]), WIDTHS[0]
        key = self._key(shape[0])
        mask = key.keep_mask(shape, 0.1, self.dtype)
        return Pass(lambda: key.keep_mask(shape, 0.1, self.dtype), (mask,))

    def _key(self, samples: int) -> Key:
        return Key(0, 0, self.xp.arange(samples, dtype=np.int64))

    def bias(self, width: int, residual: bool) -> Pass:
        x, bias = self.new(self.rows(width), width), self.new(width)
        past, y = self.new(*x.shape) if residual else None, self.empty_like(x)
        return Pass(lambda: add_bias(x, bias, past, y), (x, bias, y) if past is None else (x, bias, past, y))

    def column_sums(self, width: int) -> Pass:
        x, out = self.new(self.rows(width), width), self.xp.empty(width, dtype=self.acc)
        return Pass(lambda: column_sums(x, out), (x, out))

    def embed(self) -> Pass:
        tokens, width = TOKENS[0], WIDTHS[0]
        pos_embed, cls_token = self.new(1, tokens, width), self.new(1, 1, width)
        x = self.new(self.rows((tokens - 1) * width), tokens - 1, width)
        y, _ = ops.embed(x, pos_embed, cls_token, keep=False)
        return Pass(lambda: ops.embed(x, pos_embed, cls_token, keep=False), (x, pos_embed, cls_token, y))

    def patches(self, side: int, patch: int) -> Pass:
        x = self.new(self.rows(side * side * 3), side, side, 3)
        return Pass(lambda: ops.patches(x, (patch, patch)), (x, x))

    def patches_backward(self, side: int, patch: int) -> Pass:
        x = self.new(self.rows(side * side * 3), side, side, 3)
        dy, cache = ops.patches(x, (patch, patch))
        return Pass(lambda: ops.patches_backward(dy, cache), (dy, x))

    def training_images(self) -> Pass:
        side = IMAGES[0][0]
        count = self.rows(side * side * 3)
        images = self.xp.zeros((count, side, side, 3), dtype=np.uint8)
        scale, shift = channel_scale((0.5,) * 3, (0.25,) * 3, self.acc, self.xp)
        options = {"crop_padding": _CROP, "flip": True, "scale": scale, "shift": shift, "dtype": self.dtype}
        key = self._key(count)
        y = training_images(images, key, **options)
        return Pass(lambda: training_images(images, key, **options), (images, key.sample_ids, y))

    def adamw(self) -> Pass:
        count = max(1, self.size // 4 // 64) * 64  # whole blocks of 256 bytes
        p, g = (numbers(self.xp, np.float32, count) for _ in range(2))
        m, v = (self.xp.zeros(count, dtype=np.float32) for _ in range(2))
        groups = (Group(slice(0, count), 1e-3, 0.05),)
        options: dict[str, Any] = {"lr_scale": 1.0, "betas": (0.9, 0.999), "eps": 1e-8, "steps": 1, "decoupled": True}
        return Pass(lambda: adam_step(p, g, m, v, groups, **options), (p, g, m, v, p, m, v))

    def gradient_norm(self) -> Pass:
        g = numbers(self.xp, np.float32, max(1, self.size // 4))
        return Pass(lambda: gradient_norm(g), (g,))
