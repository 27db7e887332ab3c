"""A whole step on a device: the host's results in every precision, no transfers, and no growth of memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import contract
import numpy as np
import pytest
from contract import assert_same_bits
from devices import DEVICES, SIXTEEN_BITS, nothing_crosses
from strict import watch

from minivit import AdamW, Engine, Key, ViT, ViTConfig
from minivit.arrays import Array, backend, to_backend, to_host
from minivit.errors import UserError
from minivit.nn.pretraining import TASKS, masked_model
from minivit.train.step import GradScaler

CONFIG = ViTConfig(img_size=(8, 8), patch_size=(2, 4), embed_dim=48, depth=2, num_heads=3, num_classes=7)
DROPS = dict.fromkeys(("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"), 0.2)
B = 5
IMAGES = np.random.default_rng(0).standard_normal((B, 8, 8, 3)).astype("float32")
LABELS = np.array([6, 0, 3, 3, 1])
# Tolerances relative to the norm of the gradients, for the rounding of a step in 16 bits and in TF32.
NEAR = {None: 1e-5, "float32": 1e-5, "tf32": 5e-3, "float16": 1e-2, "bfloat16": 5e-2}

on_devices = pytest.mark.parametrize("device", DEVICES)
in_every_precision = pytest.mark.parametrize("precision", NEAR)


def model(device: str, **fields: Any) -> ViT:
    return ViT(replace(CONFIG, **fields), seed=1, backend=device)


def batch(device: str) -> tuple[Array, Array, Key]:
    images, labels, samples = (to_backend(x, device) for x in (IMAGES, LABELS, np.arange(B)))
    return images, labels, Key(0, 1, samples)


def step(device: str, **options: Any) -> list[Array]:
    """Return the loss, the logits of a step and of a prediction, and the gradients, on the host."""
    fields = options.pop("fields", {})
    loss_scale = options.pop("loss_scale", None)
    vit = model(device, **fields)
    images, labels, key = batch(device)
    with Engine(vit, threads=1, **options) as engine:
        scale = None if loss_scale is None else to_backend(np.asarray(loss_scale, "float32"), device)
        loss, logits = engine.training_step(images, labels, key, 0.1, scale)
        predicted = engine.predict(images)
    return [to_host(x) for x in (loss, logits, predicted, vit.parameters.store.gradients)]


def assert_near(got: list[Array], expected: list[Array], limit: float) -> None:
    assert {x.dtype.name for x in got} == {"float32"}
    contract.assert_near(got, expected, limit)


@on_devices
@in_every_precision
@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("drops", [{}, DROPS], ids=["plain", "drops"])
def test_a_step_computes_what_the_host_does(
    device: str, precision: str | None, pool: str, drops: dict[str, float]
) -> None:
    fields: dict[str, Any] = {"global_pool": pool, **drops}
    expected = step("numpy", fields=fields)
    assert_near(step(device, fields=fields, precision=precision), expected, NEAR[precision])


@on_devices
@in_every_precision
@pytest.mark.parametrize("task", TASKS)
def test_a_step_of_pretraining_computes_what_the_host_does(device: str, precision: str | None, task: str) -> None:
    def results(backend: str, precision: str | None = None) -> list[Array]:
        learner = masked_model(task, CONFIG, seed=1, backend=backend)
        images, _, key = batch(backend)
        with Engine(learner, threads=1, precision=precision) as engine:
            loss, losses = engine.training_step(images, None, key)
            predicted = engine.predict(images)
        return [to_host(x) for x in (loss, losses, predicted, learner.parameters.store.gradients)]

    got, expected = results(device, precision), results("numpy")
    assert_near(got[:3], expected[:3], NEAR[precision])
    # The gradients of mpp and simmim have jumps, where rounding changes a class or the sign of an error.
    assert_near(got[3:], expected[3:], NEAR[precision] * (1 if task == "mae" else 4))


@on_devices
def test_a_lower_precision_is_used(device: str) -> None:
    exact, *others = (step(device, precision=precision)[3] for precision in ("float32", "tf32", "float16", "bfloat16"))
    distances = [float(np.linalg.norm(other - exact) / np.linalg.norm(exact)) for other in others]
    assert 1e-5 < distances[0] < distances[2]
    assert 1e-4 < distances[1] < distances[2]


@on_devices
@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_micro_batches_add_up_to_the_batch(device: str, precision: str | None) -> None:
    limit = {None: 1e-5, "bfloat16": 1e-2}[precision]
    assert_near(step(device, precision=precision, micro_batch=2), step(device, precision=precision), limit)


@on_devices
@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_gradients_are_set_not_added_in_the_gaps_of_the_vector_too(device: str, precision: str | None) -> None:
    """NaN there would be in the norm of the gradients."""
    vit = model(device)
    images, labels, key = batch(device)
    engine = Engine(vit, precision=precision)
    engine.training_step(images, labels, key, 0.1)
    expected = to_host(vit.parameters.store.gradients)
    vit.parameters.store.gradients[...] = float("nan")
    engine.training_step(images, labels, key, 0.1)
    assert_same_bits([to_host(vit.parameters.store.gradients)], [expected])


@on_devices
def test_the_loss_scale_is_in_the_gradients_alone(device: str) -> None:
    loss, logits, _, gradients = step(device)
    scaled_loss, scaled_logits, _, scaled = step(device, loss_scale=1024.0)
    assert_same_bits([scaled_loss, scaled_logits], [loss, logits])
    assert_near([scaled / 1024], [gradients], 1e-6)


@on_devices
@in_every_precision
def test_nothing_crosses_or_waits_in_a_step(device: str, precision: str | None) -> None:
    vit = model(device, **DROPS)
    images, labels, key = batch(device)
    engine, optimizer = Engine(vit, precision=precision), AdamW(vit)
    guard = GradScaler(vit.parameters.store.values, clip_norm=1.0, scaled=precision == "float16")

    def one() -> None:
        loss, _ = engine.training_step(images, labels, key, 0.1, guard.loss_scale)
        optimizer.step(guard.factor(loss, vit.parameters.store.gradients))

    one()  # compiles kernels, and makes the tables of the optimiser
    before = to_host(vit.parameters.store.values)
    with nothing_crosses(device):
        one()
        engine.predict(images)
    assert not np.array_equal(to_host(vit.parameters.store.values), before)


@pytest.mark.parametrize("precision", [None, "float32", "tf32", *SIXTEEN_BITS])
def test_each_step_asks_for_the_same_memory(precision: str | None) -> None:
    vit = model("strict", **DROPS)
    images, labels, key = batch("strict")
    engine = Engine(vit, precision=precision)
    asked = []
    for _ in range(3):
        with watch() as counts:
            engine.training_step(images, labels, key)
        asked.append(counts.allocations)
    assert asked[1] == asked[2] != []


@on_devices
def test_parameters_stay_float32_and_what_changes_them_is_seen(device: str) -> None:
    vit = model(device)
    images, _, _ = batch(device)
    engine = Engine(vit, precision="bfloat16")
    before = to_host(engine.predict(images))
    vit.parameters["head.bias"].value[...] += 1.0
    assert vit.parameters.store.values.dtype == np.float32
    np.testing.assert_allclose(to_host(engine.predict(images)), before + 1.0, atol=0.02)


@pytest.mark.parametrize("precision", [None, *SIXTEEN_BITS])
def test_memory_does_not_grow_with_how_many_are_predicted(precision: str | None) -> None:
    engine = Engine(model("strict"), micro_batch=2, precision=precision)
    largest = []
    for count in (2, 20):
        images = to_backend(np.zeros((count, 8, 8, 3), np.float32), "strict")
        with watch() as counts:
            engine.predict(images)
        largest.append(max(counts.allocations))
    assert largest[0] == largest[1]


@pytest.mark.parametrize(
    ("device", "dtype", "precision", "message"),
    [
        ("numpy", "float32", "bfloat16", "precision bfloat16 needs a GPU, and this model is on the CPU"),
        ("strict", "float64", "tf32", "precision tf32 is for models of float32, and this one is float64"),
        ("strict", "float32", "int8", "precision is 'int8'; expected one of float32, tf32, bfloat16, float16"),
    ],
)
def test_an_unsupported_precision_is_refused(device: str, dtype: str, precision: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Engine(ViT(CONFIG, dtype=dtype, backend=device), precision=precision)


def test_images_of_the_host_or_another_dtype_are_refused() -> None:
    engine = Engine(model("strict"), precision="bfloat16")
    with pytest.raises(TypeError, match=r"numpy on the host .* strict on device 0"):
        engine.predict(IMAGES)
    with pytest.raises(TypeError, match=r"images have dtype float64; this model computes in float32"):
        engine.predict(to_backend(IMAGES.astype("float64"), "strict"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [None, "tf32", "bfloat16", "float16"])
def test_a_hundred_steps_follow_the_losses_of_the_host(precision: str | None) -> None:
    """Rounding differs between devices, and its effect grows during training."""

    def losses(device: str, precision: str | None) -> Array:
        vit = model(device)
        generator = np.random.default_rng(2)
        optimizer = AdamW(vit, lr=1e-3)
        engine = Engine(vit, precision=precision)
        guard = GradScaler(vit.parameters.store.values, 1.0, precision == "float16")
        seen = []
        for _ in range(100):
            labels = generator.integers(0, 7, 32)
            images = generator.standard_normal((32, 8, 8, 3)).astype("float32") + labels[:, None, None, None] / 3
            given = to_backend(images.astype("float32"), device), to_backend(labels, device)
            loss, _ = engine.training_step(*given, loss_scale=guard.loss_scale)
            optimizer.step(guard.factor(loss, vit.parameters.store.gradients))
            seen.append(float(to_host(loss)))
        return np.array(seen)

    expected, got = losses("numpy", None), losses("cupy", precision)
    assert expected[-10:].mean() < 0.7 * expected[:10].mean()
    limit = 0.01 if precision is None else 0.05
    assert np.abs(got - expected).max() <= limit * expected[0]


@pytest.mark.gpu
def test_a_step_takes_no_memory_from_the_driver_after_the_first_ones() -> None:
    cupy = backend("cupy")
    vit = model("cupy", **DROPS)
    images, labels, key = batch("cupy")
    engine, optimizer = Engine(vit, precision="bfloat16"), AdamW(vit)
    held = []
    for _ in range(6):
        engine.training_step(images, labels, key)
        optimizer.step()
        held.append(cupy.get_default_memory_pool().total_bytes())
    assert len(set(held[2:])) == 1
