"""The kernels and the products that are timed alone: what they move and compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from devices import needs_kernels
from strict import strict

from benchmarks.gpu_parts import claims, kernels, part, products
from benchmarks.gpu_parts import minivit as minivit_side
from benchmarks.gpu_parts.passes import passes
from benchmarks.rounds import WorkerError, run_worker
from benchmarks.task import make_task
from benchmarks.works import Work
from minivit.arrays import dtype_named
from minivit.arrays.precision import tf32_allowed
from minivit.nn.summary import summarize

SIZE = 160_000


def instant(*runs: Callable[[], object]) -> list[list[float]]:
    """Return what stands for the times of calls, each done once: 1 ms, 2 ms and so on."""
    for run in runs:
        run()
    return [[1e-3 * (i + 1)] * 3 for i in range(len(runs))]


def no_copy(xp: Any, size: int) -> Callable[[], None]:
    return lambda: None


@pytest.mark.parametrize(
    ("name", "columns", "numbers"),
    [
        ("layer norm, 192", 192, 2),
        ("residual sum and layer norm, 768", 768, 4),
        ("layer norm backward, 768", 768, 4),
        ("bias and GELU, 768", 768, 2),
        ("bias and GELU backward, 3072", 3072, 3),
        ("bias and heads apart, 192", 65 * 3 * 192, 2),
        ("heads together and column sums, 192", 65 * 3 * 192, 2),
        ("dropout", 192, 3),
        ("dropout mask", 192, 1),
        ("bias, 192", 192, 2),
        ("bias and residual sum, 192", 192, 3),
        ("column sums, 768", 768, 1),
        ("AdamW (float32)", 64, 7),
        ("gradient norm (float32)", 1, 1),
    ],
)
@needs_kernels
def test_a_pass_moves_its_arrays_and_little_else(name: str, columns: int, numbers: int) -> None:
    moved = dict(passes(strict, np.float32, SIZE))[name]().bytes
    large = numbers * (SIZE // (4 * columns)) * columns * 4
    assert large <= moved < 1.35 * large  # the rest: what is per row and per column


@needs_kernels
def test_a_softmax_moves_no_padding_and_reads_float32_and_a_loss_keeps_it() -> None:
    bfloat16 = dtype_named("bfloat16")
    make = dict(passes(strict, bfloat16, SIZE))
    rows = SIZE // (72 * 2)  # whose 65 numbers are padded to whole 16 bytes
    assert make["softmax, 65"]().bytes == rows * 65 * (4 + 2)
    assert make["softmax backward, 65"]().bytes == rows * 65 * (4 + 2 + 2)
    rows = SIZE // (1000 * 2)
    assert make["cross-entropy, 1000"]().bytes == rows * (1000 * (2 + 4) + 8)
    images = SIZE // (32 * 32 * 3 * 2)
    assert make["training images"]().bytes == images * (32 * 32 * 3 * (1 + 2) + 8)


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_pass_runs_and_is_compared_with_a_copy_that_moves_as_much(dtype: str) -> None:
    copied = []

    def copy(xp: Any, size: int) -> Callable[[], None]:
        copied.append(size)
        return lambda: None

    rows = kernels.measure_passes(strict, dtype_named(dtype), instant, copy, SIZE)
    assert [row for row in rows if "error" in row] == []
    assert [row["bytes"] for row in rows] == copied
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        assert row["bytes_a_second"] == pytest.approx(row["bytes"] / 1e-3)
        assert row["of_copy"] == pytest.approx(2.0)


@needs_kernels
def test_the_kernels_of_a_step_are_all_among_the_passes() -> None:
    task = make_task(Work("small", "training", "vit_micro_patch4_8", {"depth": 1}, 2), 1)
    one = minivit_side.prepare(task, "float32", "strict")
    one.run()
    measured: Counter[str] = Counter()
    for _, make in passes(strict, np.float32, SIZE):
        one_pass = make()
        one_pass.run()
        measured += claims.counted_launches(one_pass.run)
    small = {"column_totals", "cross_entropy_total", "pool", "pool_backward", "products"}  # of few bytes, or no pass
    assert set(claims.counted_launches(one.run)) - small <= set(measured)


@needs_kernels
def test_a_pass_that_fails_does_not_take_the_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise MemoryError("no more memory")

    monkeypatch.setattr("benchmarks.gpu_parts.passes.bias_gelu", refuse)
    rows = {row["name"]: row for row in kernels.measure_passes(strict, np.float32, instant, no_copy, SIZE)}
    assert rows["bias and GELU, 768"] == {"name": "bias and GELU, 768", "error": "MemoryError: no more memory"}
    assert "of_copy" in rows["bias and GELU backward, 768"]


@needs_kernels
def test_the_products_are_those_of_the_model() -> None:
    pooled = {"global_pool": "avg", "class_token": False, "depth": 3}
    work = Work("mean", "training", "vit_micro_patch4_8", pooled, batch_size=2)
    found = products.measure_products(strict, np.dtype(np.float32), instant, (work,), square=16)
    (model,) = found["works"]
    rows = {row["name"]: row for row in model["rows"]}
    config = work.config
    forward = [name for name in rows if name.endswith("forward")] + ["attention scores", "attention gathered"]
    flops = sum(rows[name]["flops"] * rows[name]["times"] for name in forward)
    head = 2 * config.embed_dim * config.num_classes
    assert flops == 2 * (summarize(config).flops - head)
    backward = sum(row["flops"] * row["times"] for name, row in rows.items() if name not in forward)
    assert backward == 2 * flops
    assert found["square_flops_a_second"] == pytest.approx(2 * 16**3 / 1e-3)
    assert model["of_square"] == pytest.approx(3 * flops / model["seconds_a_step"] / found["square_flops_a_second"])


@needs_kernels
@pytest.mark.parametrize(("precision", "dtype", "rounds"), [("bfloat16", "bfloat16", False), ("tf32", "float32", True)])
def test_a_part_takes_the_dtype_and_the_products_of_its_precision(
    precision: str, dtype: str, rounds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def measure(xp: Any, dtype: np.dtype[Any], seconds: object) -> None:
        seen.append((xp, dtype.name, tf32_allowed()))

    monkeypatch.setattr(part, "backend", lambda name: strict)
    monkeypatch.setattr(part, "DeviceClock", lambda xp: SimpleNamespace(seconds=instant))
    monkeypatch.setattr(part, "measure_passes", measure)
    monkeypatch.setattr(part, "measure_products", measure)
    part.PARTS["kernels"](precision)
    part.PARTS["products"](precision)
    assert seen == [(strict, dtype, False), (strict, dtype, rounds)]


@pytest.mark.parametrize("name", ["kernels", "products"])
def test_a_part_needs_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(WorkerError, match="UserError: backend 'cupy'"):
        run_worker(name, "bfloat16", command=("benchmarks.gpu_parts.part",))


def test_a_part_goes_on_with_the_next_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(task: Any, precision: str) -> Any:
        if task.work.batch_size == 1:
            raise MemoryError("none left")
        return SimpleNamespace(rest=lambda: None)

    work = Work("small", "training", "vit_micro_patch4_8")
    monkeypatch.setattr(part, "WORKS", {"one": work, "two": work.changed(batch_size=2)})
    monkeypatch.setattr(minivit_side, "prepare", prepare)
    monkeypatch.setattr(part, "backend", lambda name: strict)
    monkeypatch.setattr(part, "check_claims", lambda step, cupy: {"reads": cupy is strict})
    assert part.PARTS["claims"]("bfloat16") == {"one": {"error": "MemoryError: none left"}, "two": {"reads": True}}
