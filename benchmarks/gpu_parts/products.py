"""The rate of minivit's matrix products in the shapes of the models, beside that of a large square product."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from benchmarks.gpu_parts.arrays import numbers
from benchmarks.gpu_parts.errors import answered
from benchmarks.gpu_parts.works import TRAIN_BASE, TRAIN_TINY
from minivit.arrays import Array
from minivit.kernels.cuda.products import product
from minivit.kernels.cuda.runtime import acc_dtype, whole_packs
from minivit.nn.config import ViTConfig

SQUARE = 8192


class Multiplication(NamedTuple):
    """Products of one kind: a call that does them all, and how many there are in a step of training."""

    run: Callable[[], object]
    flops: int
    times: int  # that a step does the call; the last block, which reads one token, is counted as the others


def linear_products(
    xp: Any, dtype: Any, config: ViTConfig, B: int
) -> Iterator[tuple[str, Callable[[], Multiplication]]]:
    """Yield the name of each product of a linear map, forward and backward, and what makes it."""
    D, F, L = config.embed_dim, config.hidden_dim, config.depth
    pixels = config.patch_height * config.patch_width * config.in_chans
    rows = B * config.num_tokens
    for name, m, k, n, times in (
        ("patch embedding", B * config.num_patches, pixels, D, 1),
        ("qkv", rows, D, 3 * D, L),
        ("proj", rows, D, D, L),
        ("fc1", rows, D, F, L),
        ("fc2", rows, F, D, L),
    ):
        for which in ("forward", "dx", "dweight"):
            yield f"{name} {which}", partial(_linear, xp, dtype, which, m, k, n, times)


def _linear(xp: Any, dtype: Any, which: str, m: int, k: int, n: int, times: int) -> Multiplication:
    if which == "forward":
        a, b, out = numbers(xp, dtype, m, k), numbers(xp, dtype, k, n), xp.empty((m, n), dtype=dtype)
    elif which == "dx":
        a, b, out = numbers(xp, dtype, m, n), numbers(xp, dtype, k, n).T, xp.empty((m, k), dtype=dtype)
    else:
        a, b, out = numbers(xp, dtype, m, k).T, numbers(xp, dtype, m, n), xp.empty((k, n), dtype=acc_dtype(dtype))
    return Multiplication(lambda: product(a, b, out), 2 * m * k * n, times)


def attention_products(
    xp: Any, dtype: Any, config: ViTConfig, B: int
) -> Iterator[tuple[str, Callable[[], Multiplication]]]:
    """Yield the name of each product of attention, all heads of all images together, and what makes it."""
    for name in ("scores", "gathered", "dv", "dweights", "dq", "dk"):
        yield f"attention {name}", partial(_attention, xp, dtype, config, B, name)


def _attention(xp: Any, dtype: Any, config: ViTConfig, B: int, which: str) -> Multiplication:
    N, D, H = config.num_tokens, config.embed_dim, config.num_heads
    q, k, v, y = (numbers(xp, dtype, B * H, N, D // H) for _ in range(4))
    stride = whole_packs(N, dtype)  # rows lie apart, as in a step, and scores are not rounded
    weights = numbers(xp, dtype, B * H, N, stride)[..., :N]
    scores = xp.empty((B * H, N, stride), dtype=acc_dtype(dtype))[..., :N]
    operands: dict[str, tuple[Array, Array, Array]] = {
        "scores": (q, k.swapaxes(1, 2), scores),
        "gathered": (weights, v, y),
        "dv": (weights.swapaxes(1, 2), y, v),
        "dweights": (y, v.swapaxes(1, 2), scores),
        "dq": (weights, k, q),
        "dk": (weights.swapaxes(1, 2), q, k),
    }
    a, b, out = operands[which]
    return Multiplication(lambda: product(a, b, out), 2 * B * N * N * D, config.depth)


def measure_products(
    xp: Any,
    dtype: Any,
    seconds: Callable[..., list[list[float]]],
    works: Any = (TRAIN_TINY, TRAIN_BASE),
    square: int = SQUARE,
) -> dict[str, Any]:
    """Return the rates of the square product and of the products of each work.

    Parameters
    ----------
    xp, dtype
        Library and dtype of the arrays.
    seconds : callable
        As for `kernels.measure_passes`.
    works : sequence of Work
        Whose models and batches have the shapes.
    square : int
        Rows and columns of the large matrices.
    """
    whole = _linear(xp, dtype, "forward", square, square, square, 1)
    best = whole.flops / statistics.median(seconds(whole.run)[0])
    del whole
    found: dict[str, Any] = {"square": square, "square_flops_a_second": best, "works": []}
    for work in works:
        rows = []
        kinds = (linear_products, attention_products)
        for name, make in (pair for kind in kinds for pair in kind(xp, dtype, work.config, work.batch_size)):
            rows.append(_row(name, make, seconds, best))
        done = [row for row in rows if "error" not in row]
        total = {"name": work.name, "preset": work.preset, "batch_size": work.batch_size, "rows": rows}
        total["seconds_a_step"] = sum(row["times"] * row["seconds"] for row in done)
        if total["seconds_a_step"]:
            flops = sum(row["times"] * row["flops"] for row in done)
            total["of_square"] = flops / total["seconds_a_step"] / best
        found["works"].append(total)
    return found


def _row(
    name: str, make: Callable[[], Multiplication], seconds: Callable[..., list[list[float]]], best: float
) -> dict[str, Any]:
    def figures() -> dict[str, Any]:
        one = make()
        median = statistics.median(seconds(one.run)[0])
        rate = one.flops / median
        of_one = {"flops": one.flops, "times": one.times, "seconds": median}
        return {**of_one, "flops_a_second": rate, "of_square": rate / best}

    return {"name": name, **answered(figures)}
