"""Every NumPy kernel equals its op, in pieces too, and runs on the arguments that it covers and no others.

test_kernels_extremes.py tests attention, GELU and layer norm on values that are hard to compute with.
"""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import contract
import numpy as np
import pytest
from contract import assert_same_bits, by_reference, held, kernel_of_case, kernels_of, normal, ops_of, own, ways
from hypothesis import given
from hypothesis import strategies as st

import minivit
from minivit import Engine, Key, ViT, ViTConfig, layers, ops, testing
from minivit.arrays import Array
from minivit.checking.cases import CASES, OPS, Case
from minivit.kernels.numpy.pieces import pieces
from minivit.ops import registry
from minivit.ops.encoder_block import BlockLike
from minivit.ops.softmax import SoftmaxCache

# Relative to the norm of each gradient. Sums have about ten terms, and each step rounds by half an ulp, 6e-8 in float32
# and 1.1e-16 in float64. The largest measured difference is 4 half ulps for an op, and 20 for a layer of many ops.
TOLERANCE = {"float32": 1e-6, "float64": 1e-14}

ON_NUMPY = [case.on("numpy") for case in CASES]
COVERED = [(case, dtype) for case in ON_NUMPY for dtype in TOLERANCE if kernel_of_case(case, dtype)]
covered = pytest.mark.parametrize(("case", "dtype"), COVERED, ids=lambda value: str(value).replace("-numpy", ""))

LIMITS = [1, 400]  # bytes that fit in cache: one row in each piece, and several rows with fewer in the last piece


def cut_to(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("minivit.kernels.numpy.pieces._CACHE", limit)


def passes(case: Case, arrays: Sequence[Array], keep: bool = True) -> list[Array]:
    """Return the result and the gradients; a write to the arguments, the gradient or the cache raises."""
    for x in arrays:
        x.flags.writeable = False
    y, cache = case.forward(*arrays, keep=keep)
    if not keep:
        return [y]
    dy = normal(y)
    for x in (dy, *held(cache)):
        x.flags.writeable = False
    return [y, *case.backward(dy, cache)]


def tolerance(case: Case, dtype: str) -> float:
    return TOLERANCE[dtype] * ops_of(case)


def assert_near(got: Sequence[Array], expected: Sequence[Array], limit: float) -> None:
    """Assert equal dtypes, and equality to `limit` times each norm, or a thousandth of the largest norm if greater."""
    assert [x.dtype for x in got] == [x.dtype for x in expected]
    contract.assert_near(got, expected, limit, least=1e-3)


def sized(case: Case, sizes: dict[str, int]) -> dict[str, int]:
    """Return those of `sizes` that the case has."""
    return {name: size for name, size in sizes.items() if name in case.sizes}


def test_kernels_run_in_these_dtypes() -> None:
    both = {"float32", "float64"}
    expected = dict.fromkeys(("layer_norm", "attention", "unfold", "EncoderBlock", "ConvStem"), both)
    found = {case.op: {dtype for other, dtype in COVERED if other.op == case.op} for case, _ in COVERED}
    assert found == expected | {"gelu": {"float32"}}


@covered
@pytest.mark.parametrize("sizes", [{}, {"B": 1, "N": 1, "D": 1}, {"B": 1}, {"N": 1}, {"B": 11, "N": 17}], ids=str)
def test_kernel_equals_its_op(case: Case, dtype: str, sizes: dict[str, int]) -> None:
    for seed in range(3):
        arrays = case.make(seed, dtype, sized(case, sizes))
        assert_near(passes(case, arrays), passes(by_reference(case), arrays), tolerance(case, dtype))


@covered
@pytest.mark.parametrize("limit", LIMITS)
def test_kernel_in_pieces_equals_its_op(case: Case, dtype: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = case.make(0, dtype, {"B": 11})
    whole, expected = passes(case, arrays, keep=False), passes(by_reference(case), arrays)
    cut_to(monkeypatch, limit)
    assert_near(passes(case, arrays), expected, tolerance(case, dtype))
    assert_near(passes(case, arrays, keep=False), whole, tolerance(case, dtype))
    assert_same_bits(passes(case, arrays, keep=False), passes(case, arrays)[:1])


@covered
def test_kernel_reads_no_uninitialised_memory(case: Case, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = case.make(0, dtype, sized(case, {"D": 6}))  # fewer heads, and a smaller head width, than tokens
    expected = passes(case, arrays)

    def poisoned(create: Callable[..., Array]) -> Callable[..., Array]:
        def function(*args: Any, **kwargs: Any) -> Array:
            array = create(*args, **kwargs)
            array.fill(np.nan)
            return array

        return function

    monkeypatch.setattr(np, "empty", poisoned(np.empty))
    monkeypatch.setattr(np, "empty_like", poisoned(np.empty_like))
    results = passes(case, arrays)
    monkeypatch.undo()
    assert_same_bits(results, expected)


@pytest.mark.parametrize("case", dict.fromkeys(case for case, _ in COVERED), ids=str)
def test_every_kernel_has_its_own_class_of_cache(case: Case) -> None:
    """The class of the cache selects the backward function."""
    _, cache = by_reference(case).forward(*case.make(0, "float32"))
    classes = [type(own(cache)), *(kernel.cache for kernel in kernels_of(case.op))]
    assert len(set(classes)) == len(classes)


def norm(x: Array, dtype: str) -> Any:
    weight = np.ones(x.shape[-1], dtype)
    return ops.layer_norm(x.astype(dtype), weight, weight)


def block(x: Array, rate: float = 0.0) -> Any:
    layer = layers.EncoderBlock(21, 3, 5, proj_drop_rate=rate).initialize(dtype=x.dtype)
    return layer.forward(x, Key(0, 0, np.arange(len(x))))


ROWS, MASK = np.ones((2, 5, 21)), np.ones((2, 3, 5, 5))

NOT_COVERED: dict[str, Callable[[], Any]] = {
    "gelu-float64": lambda: ops.gelu(ROWS),
    "gelu-complex128": lambda: ops.gelu(ROWS.astype("complex128")),
    "gelu-tanh": lambda: ops.gelu(ROWS.astype("float32"), "tanh"),
    "gelu-empty": lambda: ops.gelu(np.ones((0, 3), "float32")),
    "layer_norm-complex128": lambda: norm(ROWS, "complex128"),
    "layer_norm-float16": lambda: norm(ROWS, "float16"),
    "layer_norm-empty": lambda: norm(ROWS[:0], "float32"),
    "attention-complex128": lambda: ops.attention(ROWS.astype("complex128"), 1),
    "attention-float16": lambda: ops.attention(ROWS.astype("float16"), 1),
    "attention-masked": lambda: ops.attention(np.ones((2, 5, 63)), 3, MASK),
    "attention-masked-float32": lambda: ops.attention(np.ones((2, 5, 63), "float32"), 3, mask=MASK.astype("float32")),
    "attention-empty": lambda: ops.attention(ROWS[:0], 1),
    "EncoderBlock-complex128": lambda: block(ROWS.astype("complex128")),
    "EncoderBlock-dropout": lambda: block(ROWS, 0.1),
    "attention-no-queries": lambda: ops.attention(ROWS, 1, None, slice(2, 2)),
}


@pytest.mark.parametrize("name", NOT_COVERED)
def test_the_reference_runs_where_no_kernel_covers_the_arguments(name: str) -> None:
    y, cache = NOT_COVERED[name]()
    assert type(cache) not in [kernel.cache for kernel in kernels_of(name.partition("-")[0])]
    with ops.reference_only():
        assert_same_bits([y], [NOT_COVERED[name]()[0]])


def test_an_encoder_block_has_what_its_kernels_read() -> None:
    layer: BlockLike = layers.EncoderBlock(21, 3, 5)  # mypy compares the layer with the protocol
    assert layer.attn.num_heads == 3


@pytest.fixture
def restored_softmax_kernels() -> Iterator[None]:
    kernels = registry._kernels["softmax"]
    before = kernels[:]
    kernels[:] = [kernel for kernel in kernels if kernel.library != "strict"]
    yield
    kernels[:] = before


@pytest.mark.usefixtures("restored_softmax_kernels")
def test_a_new_kernel_for_another_library_is_tested_by_the_contract() -> None:
    """The contract tests every registered kernel; here softmax of the strict library, with a wrong backward pass."""

    class StrictCache(SoftmaxCache):
        pass

    def forward(x: Array, *, keep: bool = True) -> tuple[Array, StrictCache | None]:
        y: Array = inspect.unwrap(ops.softmax)(x)[0]
        return y, StrictCache(y) if keep else None

    def backward(dy: Array, cache: StrictCache) -> Array:
        dx: Array = inspect.unwrap(ops.softmax_backward)(dy, cache)
        return dx

    kernel = ops.Kernel("strict", lambda x, keep=True: True, forward, backward, StrictCache)
    softmax = next(case for case in OPS if case.name == "softmax")
    assert [case.name for case in ways(softmax)] == ["softmax-reference"]
    ops.register_kernel("softmax", kernel)
    _, moved = ways(softmax)
    assert moved.name == "softmax-strict"
    arrays = moved.make(0, "float64")
    testing.assert_gradients(moved.forward, moved.backward, *arrays, method="central")
    registry._kernels["softmax"][0] = replace(kernel, backward=lambda dy, cache: dy)
    with pytest.raises(AssertionError):
        testing.assert_gradients(moved.forward, moved.backward, *arrays, method="central")


@given(rows=st.integers(0, 50), row_bytes=st.integers(1, 1 << 22))
def test_pieces_cover_all_rows_once_and_fit_in_cache(rows: int, row_bytes: int) -> None:
    cut = list(pieces(rows, row_bytes))
    assert [row for piece in cut for row in range(rows)[piece]] == list(range(rows))
    assert all(piece.stop - piece.start == 1 or (piece.stop - piece.start) * row_bytes <= 1 << 21 for piece in cut)


CONFIG = ViTConfig(img_size=(4, 9), patch_size=(2, 3), embed_dim=6, depth=2, num_heads=2, num_classes=7)
IMAGES, LABELS = normal(np.zeros((5, 4, 9, 3), "float32")), np.array([6, 0, 3, 3, 1])


def test_reference_only_applies_to_an_engine_that_ran_kernels() -> None:
    def step(engine: Engine) -> list[Array]:
        loss = engine.loss_and_gradients(IMAGES, LABELS)
        return [loss, engine.model.parameters.store.gradients.copy(), engine.predict(IMAGES)]

    def alone() -> Iterator[Array]:
        with Engine(ViT(CONFIG, seed=1), 1, 2) as engine:
            yield from step(engine)

    with_kernels = list(alone())
    with Engine(ViT(CONFIG, seed=1), 2, 2) as engine:
        assert_same_bits(step(engine), with_kernels)
        with ops.reference_only():
            expected = list(alone())
            assert_same_bits(step(engine), expected)
        assert_same_bits(step(engine), with_kernels)
    assert expected[1].tobytes() != with_kernels[1].tobytes()


STEP = """
import json, sys
import numpy as np
import minivit
from minivit.ops.registry import kernels_of
model = minivit.ViT(minivit.ViTConfig(**json.loads(sys.argv[1])), seed=1)
with np.load(sys.argv[2]) as batch, minivit.Engine(model, 2, 2) as engine:
    loss = engine.loss_and_gradients(batch["images"], batch["labels"])
    logits = engine.predict(batch["images"])
np.savez(sys.argv[3], loss=loss, gradients=model.parameters.store.gradients, logits=logits)
print(minivit.__file__, kernels_of("attention"))
"""


def test_minivit_works_without_the_package_of_kernels(tmp_path: Path) -> None:
    package = tmp_path / "minivit"
    shutil.copytree(Path(minivit.__file__).parent, package, ignore=shutil.ignore_patterns("kernels", "__pycache__"))
    np.savez(tmp_path / "batch.npz", images=IMAGES, labels=LABELS)
    command = [sys.executable, "-c", STEP, json.dumps(CONFIG.to_dict()), "batch.npz", "results.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{package / '__init__.py'} ()\n"), done.stderr
    model = ViT(CONFIG, seed=1)
    with Engine(model, 2, 2) as engine, np.load(tmp_path / "results.npz") as got:
        loss = engine.loss_and_gradients(IMAGES, LABELS)
        expected = [loss, model.parameters.store.gradients, engine.predict(IMAGES)]
        assert_near([got["loss"], got["gradients"], got["logits"]], expected, 1e-5)
