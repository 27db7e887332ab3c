"""Everything runs on strict arrays as on NumPy, without transfers; and the strict library detects faults."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from contract import assert_close, normal
from cuda_on_cpu.memory import MixError
from devices import nothing_crosses
from strict import LeakError, StrictArray, strict, watch

from minivit import SGD, Adam, AdamW, Engine, Key, Muon, ViT, ViTConfig, arrays, ops
from minivit.arrays import Array, to_backend, to_host
from minivit.checking.cases import CASES, Case
from minivit.train.optimizers import clip_gradients

CONFIG = ViTConfig(
    img_size=(4, 9), patch_size=(2, 3), embed_dim=6, depth=2, num_heads=2, num_classes=7,
    drop_rate=0.1, pos_drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.1,
)  # fmt: skip
IMAGES = np.random.default_rng(0).standard_normal((5, 4, 9, 3)).astype("float32")
LABELS = np.array([6, 0, 3, 3, 1])


def host(x: Any) -> Array:
    """Return the NumPy array of a strict array without a transfer."""
    assert isinstance(x, StrictArray)
    array: Array = x._array
    return array


def strict_of(x: Array) -> Array:
    return to_backend(x, strict)


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_runs_on_strict_arrays(case: Case) -> None:
    given = case.make(0, "float32")
    y, cache = case.forward(*given)
    dy = normal(y)
    expected = y, *case.backward(dy, cache)
    moved, moved_dy = [strict_of(x) for x in given], strict_of(dy)
    case.forward(*moved, keep=False)  # the first call copies the values of a layer from the host
    with nothing_crosses("strict"):
        y, cache = case.forward(*moved)
        gradients = case.backward(moved_dy, cache)
    assert {x.dtype.name for x in (y, *gradients)} == {"float32"}
    assert_close([host(x) for x in (y, *gradients)], expected, 2e-6)


def model(backend: str, **fields: Any) -> ViT:
    return ViT(replace(CONFIG, **fields), seed=1, backend=backend)


def step(
    backend: str, pool: str, make: Callable[[ViT], Any], max_norm: float | None
) -> tuple[ViT, Engine, tuple[Array, ...]]:
    """Return a model after three training steps; on the strict backend, no step may copy to the host or wait.

    The first step may copy constants to the device; the later steps have equal allocations.
    """
    library = arrays.backend(backend)
    vit = model(backend, global_pool=pool)
    engine, optimizer = Engine(vit, threads=1, micro_batch=5), make(vit)
    images, labels, ids = (to_backend(x, library) for x in (IMAGES, LABELS, np.arange(5)))
    steps = []
    for number in range(3):
        with watch() as counts:
            loss = engine.loss_and_gradients(images, labels, Key(0, number, ids), label_smoothing=0.1)
            norm = clip_gradients(vit.parameters.store, max_norm)
            optimizer.step()
        steps.append(counts)
        assert (counts.to_host, counts.synchronisations) == (0, 0)
    assert steps[1] == steps[2]
    with watch() as counts:
        logits = engine.predict(images)
    assert counts.to_device == counts.to_host == counts.synchronisations == steps[2].to_device == 0
    return vit, engine, (loss, norm, logits, vit.parameters.store.gradients, vit.parameters.store.values)


@pytest.mark.usefixtures("computed")
@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW, Muon])
@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_training_steps_and_prediction_run_on_strict_arrays(
    pool: str, optimizer: Callable[..., Any], max_norm: float | None
) -> None:
    def make(vit: ViT) -> Any:
        return optimizer(vit, lr=0.01, weight_decay=0.1)

    *_, expected = step("numpy", pool, make, max_norm)
    *_, results = step("strict", pool, make, max_norm)
    assert {x.dtype.name for x in results} == {"float32"}
    for one, other in zip(results, expected, strict=True):
        assert_close([host(one)], [np.asarray(other)], 1e-4)


def test_soft_labels_run_on_strict_arrays() -> None:
    targets = np.full((5, 7), 1 / 7, np.float32)
    expected = Engine(model("numpy"), threads=1).loss_and_gradients(IMAGES, targets)
    engine = Engine(model("strict"))
    images, labels = strict_of(IMAGES), strict_of(targets)
    with watch() as counts:
        loss = engine.loss_and_gradients(images, labels)
    assert counts.to_host == counts.synchronisations == 0
    assert_close([host(loss)], [np.asarray(expected)], 1e-6)


def test_few_images_of_many_tokens_run_on_strict_arrays() -> None:
    """Workers share the tokens of an image on the host alone."""
    config = ViTConfig(img_size=24, patch_size=3, embed_dim=12, depth=2, num_heads=3, num_classes=7)
    images = np.random.default_rng(0).standard_normal((2, 24, 24, 3), dtype=np.float32)
    expected = Engine(ViT(config), threads=1).predict(images)
    with watch() as counts:
        logits = Engine(ViT(config, backend="strict"), micro_batch=4).predict(strict_of(images))
    assert counts.to_host == counts.synchronisations == 0
    assert_close([host(logits)], [expected], 1e-5)


def test_a_key_gives_the_same_bits_on_every_library() -> None:
    key = Key(3, 5, np.arange(7, 12), "place")
    moved = Key(3, 5, strict_of(np.arange(7, 12)), "place")
    assert (host(moved.bits((5, 3, 2))) == key.bits((5, 3, 2))).all()
    assert (host(moved.keep_mask((5, 3, 2), 0.3, "float32")) == key.keep_mask((5, 3, 2), 0.3, "float32")).all()


def test_a_model_can_be_moved_between_libraries() -> None:
    vit = model("numpy")
    there = vit.to("strict")
    assert isinstance(there.parameters["head.weight"].value, StrictArray)
    back = there.to("numpy")
    for name, value in vit.state_dict().items():
        assert (back.state_dict()[name] == value).all()
        assert (there.state_dict()[name] == value).all()


X = strict_of(np.ones((2, 3), np.float32))
X64 = strict_of(np.ones((2, 3)))

LEAKS: dict[str, Callable[[], Any]] = {
    "zeros without dtype": lambda: strict.zeros((2, 3)),
    "integers divided": lambda: strict.arange(3) / 2,
    "mean of integers": lambda: strict.arange(3).mean(),
    "an integer times a float": lambda: strict.arange(3) * 0.5,
    "astype": lambda: X.astype("float64"),
    "a sum in float64": lambda: X.sum(dtype=np.float64),
    "complex": lambda: X.astype("complex128"),
}

MIXES: dict[str, Callable[[], Any]] = {
    "host array": lambda: X + np.ones((2, 3), np.float32),
    "host array on the left": lambda: np.ones((2, 3), np.float32) + X,
    "NumPy scalar": lambda: X * np.float32(2),
    "NumPy scalar on the left": lambda: np.float64(2) * X,
    "host array assigned": lambda: X.__setitem__(0, np.ones(3, np.float32)),
    "host array as an index": lambda: X[np.array([0, 1])],
    "host array in a function": lambda: strict.maximum(X, np.zeros((2, 3), np.float32)),
    "list as an index": lambda: X[[0, 1]],
    "two precisions": lambda: X + X64,
    "two precisions in place": lambda: X.__iadd__(X64),
    "two precisions by out": lambda: strict.exp(X64, out=X),
    "two precisions assigned": lambda: X.__setitem__(..., X64),
}

CONVERSIONS: dict[str, Callable[[], Any]] = {
    "asarray": lambda: np.asarray(X),
    "function": lambda: np.sum(X),
    "ufunc": lambda: np.exp(X),
    "ufunc with out": lambda: np.exp(np.ones((2, 3)), out=X),
    "host array updated": lambda: np.ones((2, 3)).__iadd__(X),
    "concatenate": lambda: np.concatenate([X, X]),
    "iteration over numbers": lambda: list(X[0]),
}

WAITS: dict[str, Callable[[], Any]] = {
    "float": lambda: float(X[0, 0]),
    "bool": lambda: bool((X > 0).all()),
    "branch": lambda: 1 if (X > 0).any() else 0,
    "int": lambda: int(X[0, 0]),
    "index": lambda: [1, 2][strict.argmax(X)],
    "item": lambda: X[0, 0].item(),
    "tolist": lambda: X.tolist(),
    "to_host": lambda: to_host(X),
    "mask as an index": lambda: X[X > 0],
}


@pytest.mark.parametrize("fault", LEAKS)
def test_a_float64_leak_is_an_error(fault: str) -> None:
    with pytest.raises(LeakError, match=r"returns (float64|complex128)"):
        LEAKS[fault]()


@pytest.mark.parametrize("fault", MIXES)
def test_a_mix_is_an_error(fault: str) -> None:
    with pytest.raises(MixError):
        MIXES[fault]()


@pytest.mark.parametrize("fault", CONVERSIONS)
def test_numpy_on_a_strict_array_is_an_error(fault: str) -> None:
    with pytest.raises(TypeError):
        CONVERSIONS[fault]()


@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_for_the_device_is_counted(wait: str) -> None:
    with watch() as counts:
        WAITS[wait]()
    assert counts.synchronisations == 1


def test_a_transfer_to_the_device_is_counted() -> None:
    with watch() as counts:
        strict_of(np.ones(3))
        strict.asarray([1.0, 2.0], dtype="float32")
        strict.asarray(X)
    assert (counts.to_device, counts.to_host) == (2, 0)


def test_functions_of_numpy_alone_are_missing() -> None:
    with pytest.raises(AttributeError, match="no 'testing'"):
        strict.testing  # noqa: B018 - the access itself raises


def test_float64_arguments_may_give_float64() -> None:
    assert {(X64 * 2.0).dtype, X64.sum().dtype, strict.zeros(2, dtype="float64").dtype} == {np.dtype("float64")}
    assert strict.arange(3).astype("float64").dtype == np.float64


def test_views_share_memory_and_updates_are_in_place() -> None:
    x = strict_of(np.zeros((2, 3), np.float32))
    row, number = x[0], x[1, 2]
    row += 1.0
    number += 5.0
    x.T[1] *= 3.0
    strict.multiply(row, 2.0, out=row)
    x.reshape(-1)[0] = 7.0
    assert host(x).tolist() == [[7, 6, 2], [0, 0, 5]]


def test_a_numpy_constant_in_an_op_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """On NumPy such a constant turns float32 into float64 without an error."""
    case = next(case for case in CASES if case.name == "gelu")
    x = case.make(0, "float32")[0]
    monkeypatch.setattr(sys.modules["minivit.ops.gelu"], "_DENSITY", np.float64(0.398942280401))
    with ops.reference_only():
        assert case.forward(x)[1].slope.dtype == np.float64
    with ops.reference_only(), pytest.raises(MixError):
        case.forward(strict_of(x))


def test_ops_reject_a_mix_of_libraries() -> None:
    with pytest.raises(TypeError, match="cannot mix arrays of strict on device 0 and numpy on the host"):
        ops.dropout(X, np.ones((2, 3), np.float32))
