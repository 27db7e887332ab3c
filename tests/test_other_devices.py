"""A model on a device that is not the current one: everything of it runs there, and nothing on the current one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from devices import SIXTEEN_BITS, needs_kernels

from minivit import SGD, Adam, AdamW, Engine, Key, ViT, ViTConfig, layers, ops
from minivit.arrays import Array, backend, on_device_of, to_backend, to_host
from minivit.errors import UserError
from minivit.ops.attention import ALL
from minivit.ops.registry import find_kernel
from minivit.train.evaluation import evaluate
from minivit.train.optimizers import clip_gradients
from minivit.train.step import GradScaler

CONFIG = ViTConfig(img_size=(4, 9), patch_size=(2, 3), embed_dim=6, depth=1, num_heads=2, num_classes=7)
IMAGES = np.random.default_rng(0).standard_normal((3, 4, 9, 3)).astype("float32")


@pytest.fixture
def vit() -> Iterator[ViT]:
    """A model on device 1, while 0 is the current one."""
    vit = ViT(CONFIG, seed=1, backend="strict:1")
    backend("strict:0")
    yield vit
    assert index_of(to_backend(np.ones(1), "strict")) == 0


def index_of(x: Any) -> int:
    """Return the index of the device of `x`."""
    return int(x.device.id)


def there(x: Array) -> Any:
    return to_backend(x, "strict:1")


@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW])
@pytest.mark.parametrize("precision", [None, *SIXTEEN_BITS])
def test_a_step_runs_on_the_device_of_the_model(vit: ViT, optimizer: Any, precision: str | None) -> None:
    images, labels, samples = there(IMAGES), there(np.array([6, 0, 3])), there(np.arange(3))
    engine, update = Engine(vit, precision=precision), optimizer(vit, lr=0.1)
    guard = GradScaler(vit.parameters.store.values, 1.0, precision == "float16")
    before = to_host(vit.parameters.store.values)
    loss, logits = engine.training_step(images, labels, Key(0, 0, samples), loss_scale=guard.loss_scale)
    clip_gradients(vit.parameters.store, 1.0)
    update.step(guard.factor(loss, vit.parameters.store.gradients))
    update.load_state(update.state(), 1)
    assert {index_of(x) for x in (loss, logits, engine.predict(images))} == {1}
    assert not np.array_equal(to_host(vit.parameters.store.values), before)


def test_a_model_moves_between_devices_and_dtypes(vit: ViT) -> None:
    state = vit.state_dict()
    vit.load_state_dict(state)
    vit.zero_grad()
    for moved in (vit.to("numpy"), vit.to("strict:0"), vit.astype("float32"), vit.replica()):
        assert all((moved.state_dict()[name] == value).all() for name, value in state.items())
    home = vit.to("strict:0")
    assert index_of(home.parameters.store.values) == 0
    backend("strict:0")
    assert to_host(home(to_backend(IMAGES, "strict"))).shape == (3, 7)


def test_the_model_alone_runs_where_its_device_is_the_current_one(vit: ViT) -> None:
    images = there(IMAGES)
    with on_device_of(images):
        logits, cache = vit.forward(images)
        vit.backward(logits, cache)
        assert index_of(logits) == 1


def test_an_evaluation_runs_on_the_device_of_the_model(vit: ViT) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 9, 3), np.uint8)
    measured = evaluate(Engine(vit), images, np.array([6, 0, 3]), (0.5,) * 3, (0.25,) * 3)
    assert measured.images == 3


def test_16_bits_without_the_kernels_are_refused() -> None:
    engine = Engine(ViT(CONFIG, backend="strict"), precision="bfloat16")
    with ops.reference_only(), pytest.raises(UserError, match="16 bits need the kernels"):
        engine.predict(to_backend(IMAGES, "strict"))


@needs_kernels
def test_a_label_that_is_no_class_makes_the_loss_nan() -> None:
    engine = Engine(ViT(CONFIG, backend="strict"))
    images = to_backend(IMAGES, "strict")
    for label in (7, -1, 10**12):
        labels = to_backend(np.array([0, label, 3]), "strict")
        assert np.isnan(to_host(engine.loss_and_gradients(images, labels)))


@needs_kernels
@pytest.mark.parametrize("name", ["layer_norm", "linear", "attention", "gelu"])
def test_the_kernel_of_a_block_does_not_run_where_an_op_in_it_runs_as_a_reference(name: str) -> None:
    block = layers.EncoderBlock(8, 2, 16).initialize(seed=0, backend="strict")
    x = to_backend(np.ones((2, 5, 8), np.float32), "strict")
    assert find_kernel("EncoderBlock", x, block, ALL) is not None
    with ops.reference_only(name):
        assert find_kernel("EncoderBlock", x, block, ALL) is None
