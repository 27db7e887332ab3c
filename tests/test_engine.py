"""The step engine: the same bits for any number of threads, the gradient of the whole batch, and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contract import assert_close, assert_same_bits
from small_vit import B, batch, model, step

from minivit import Engine, Key, UserError, ViTConfig, masked_model, ops
from minivit.arrays import Array


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 13, 64])
def test_any_number_of_threads_gives_the_same_bits(micro_batch: int) -> None:
    expected = step(model(), 1, micro_batch)
    assert np.abs(expected[1]).max() > 0
    for threads in (1, 2, 3, 2, 3):
        assert_same_bits(step(model(), threads, micro_batch), expected)


def test_a_second_step_of_an_engine_gives_the_same_bits() -> None:
    vit, (images, labels, key) = model(), batch()
    with Engine(vit, 2, 3) as engine:
        results = []
        for _ in range(3):
            loss = engine.loss_and_gradients(images, labels, key)
            results.append((loss, vit.parameters.store.gradients.copy()))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.parametrize("global_pool", ["token", "avg"])
@pytest.mark.parametrize(
    ("threads", "micro_batch", "size"), [(1, 4, 13), (2, 4, 13), (2, 5, 1), (3, 2, 4), (2, 64, 13)]
)
def test_the_gradient_is_that_of_the_whole_batch(global_pool: str, threads: int, micro_batch: int, size: int) -> None:
    vit = model("float64", global_pool=global_pool)
    loss, gradients = step(vit, threads, micro_batch, size=size)
    whole = model("float64", global_pool=global_pool)
    images, labels, key = batch(size, "float64")
    logits, cache = whole.forward(images, key)
    whole_loss, loss_cache = ops.cross_entropy(logits, labels, 0.1)
    assert loss_cache is not None
    whole.backward(ops.cross_entropy_backward(1.0, loss_cache), cache)
    assert loss.shape == ()
    assert_close([loss], [whole_loss])
    assert_close([gradients], [whole.parameters.store.gradients])


def test_dropout_is_the_same_for_any_micro_batch() -> None:
    whole = step(model("float64"), 1, B)
    for micro_batch in (1, 4, 7):
        parts = step(model("float64"), 2, micro_batch)
        assert_close([parts[0]], [whole[0]])
        assert_close([parts[1]], [whole[1]])
    without = step(model("float64"), 1, B, rng=False)
    assert abs(float(without[0]) - float(whole[0])) > 1e-3


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_are_set_not_added(threads: int) -> None:
    """In every step, also in the gaps between the parameters of the flat vector."""
    images, labels, key = batch()
    vit = model()
    gradients = vit.parameters.store.gradients
    with Engine(vit, threads, 3) as engine:
        for _ in range(2):
            gradients[...] = np.nan
            loss = engine.loss_and_gradients(images, labels, key, 0.1)
            assert_same_bits([loss, gradients], step(model(), threads, 3))


def test_soft_targets_of_the_labels_give_the_same_step() -> None:
    images, labels, key = batch(dtype="float64")
    hard, soft = model("float64"), model("float64")
    targets = np.eye(7)[labels]
    with Engine(hard, 2, 3) as engine:
        loss = engine.loss_and_gradients(images, labels, key, 0.1)
    with Engine(soft, 2, 3) as engine:
        assert_close([engine.loss_and_gradients(images, targets, key, 0.1)], [loss])
    assert_close([soft.parameters.store.gradients], [hard.parameters.store.gradients])


def test_training_step_returns_the_logits_of_training() -> None:
    images, labels, key = batch(dtype="float64")
    vit = model("float64")
    with Engine(vit, 2, 3) as engine:
        loss, logits = engine.training_step(images, labels, key)
    assert_close([logits], [vit.forward(images, key)[0]])
    assert_close([loss], [ops.cross_entropy(logits, labels)[0]])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 13])
def test_prediction_is_evaluation_for_any_batch_size(size: int) -> None:
    vit, (images, _, _) = model("float64"), batch(dtype="float64")
    with Engine(vit, 2, 3) as engine:
        logits = np.concatenate([engine.predict(images[at : at + size]) for at in range(0, B, size)])
    assert logits.shape == (B, 7)
    assert_close([logits], [vit(images)])


def test_prediction_has_the_same_bits_for_any_number_of_threads() -> None:
    images, _, _ = batch()
    expected = Engine(model(), 1, 4).predict(images)
    for threads in (2, 3):
        with Engine(model(), threads, 4) as engine:
            assert_same_bits([engine.predict(images)], [expected])


def soft_targets(value: float) -> Array:
    """Return the targets of B images and 7 classes, of which one is `value`."""
    targets = np.full((B, 7), 1 / 7, "float32")
    targets[2, 3] = value
    return targets


IMAGES, LABELS, KEY = batch()
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "label too large": (
        {"labels": np.where(np.arange(B) == 4, 7, 0)},
        UserError,
        "label 7 of image 4 is out of range",
    ),
    "label negative": (
        {"labels": np.where(np.arange(B) == 2, -1, 0)},
        UserError,
        "label -1 of image 2 is out of range; 7 classes have the labels 0 to 6",
    ),
    "too few labels": (
        {"labels": LABELS[:-1]},
        UserError,
        r"labels have shape \(12,\) and dtype int64; expected \(13,\) integers",
    ),
    "labels of two axes": ({"labels": LABELS[:, None]}, UserError, r"shape \(13, 1\) .* use labels\[:, 0\]"),
    "labels that are floats": ({"labels": LABELS.astype("f4")}, UserError, r"float32; .* use labels.astype\(int\)"),
    "labels that are booleans": ({"labels": LABELS > 3}, UserError, r"dtype bool; expected \(13,\) integers"),
    "labels from 1": (
        {"labels": np.arange(B) % 7 + 1},
        UserError,
        r"label 7 of image 6 .* labels 0 to 6 \(do the labels start at 1\?\)",
    ),
    "one-hot integers": (
        {"labels": np.zeros((B, 7), int)},
        UserError,
        r"int64; expected .* use labels.astype\('float32'\)",
    ),
    "negative soft target": (
        {"labels": soft_targets(-0.5)},
        UserError,
        "soft target of image 2 for class 3 is -0.5; expected a finite number that is not negative",
    ),
    "infinite soft target": ({"labels": soft_targets(np.inf)}, UserError, "image 2 for class 3 is inf"),
    "soft target that is NaN": ({"labels": soft_targets(np.nan)}, UserError, "image 2 for class 3 is nan"),
    "soft targets of another size": (
        {"labels": np.ones((B, 6), "float32")},
        UserError,
        r"shape \(13, 6\) and dtype float32; expected \(13,\) integers or \(13, 7\) soft targets of float32",
    ),
    "soft targets of another dtype": ({"labels": np.ones((B, 7))}, UserError, "dtype float64; expected .* of float32"),
    "no images": (
        {"images": IMAGES[:0], "labels": LABELS[:0]},
        ValueError,
        r"images have shape \(0, 4, 9, 3\); .*at least one image",
    ),
    "a number": (
        {"images": np.float32(1.0) * np.ones(())},
        ValueError,
        r"images have shape \(\); this model takes \(B, 4",
    ),
    "images of another dtype": (
        {"images": IMAGES.astype("float64")},
        TypeError,
        "images have dtype float64; this model",
    ),
    "bytes": (
        {"images": np.zeros((B, 4, 9, 3), "uint8")},
        TypeError,
        "images have dtype uint8; this model computes in",
    ),
    "images of another shape": (
        {"images": IMAGES.swapaxes(1, 2)},
        ValueError,
        r"\(13, 9, 4, 3\); this model takes \(B, 4",
    ),
    "a key of too few samples": ({"rng": Key(0, 0, np.arange(12))}, UserError, "the key names 12 samples; expected 13"),
    "a key of too many samples": (
        {"rng": Key(0, 0, np.arange(14))},
        UserError,
        "the key names 14 samples; expected 13",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("threads", [1, 2])
def test_an_invalid_batch_is_refused(name: str, threads: int) -> None:
    given, error, message = REFUSED[name]
    with Engine(model(), threads, 4) as engine, pytest.raises(error, match=message):
        engine.loss_and_gradients(**{"images": IMAGES, "labels": LABELS, "rng": KEY, **given})


@pytest.mark.parametrize("number", [0, -2, "2", 1.5, True])
@pytest.mark.parametrize("name", ["threads", "micro_batch", "reduction_groups"])
def test_an_engine_needs_a_thread_and_an_image(name: str, number: Any) -> None:
    with pytest.raises(UserError, match=f"{name} is {number!r}; expected a whole number of at least 1"):
        Engine(model(), **{name: number})


def test_the_default_micro_batch_is_the_models() -> None:
    vit = model()
    with Engine(vit) as engine:
        assert engine.micro_batch == vit.config.micro_batch
        assert engine.threads >= 1
    with Engine(masked_model("mae", vit.config, decoder_dim=12), 1) as engine:
        assert engine.micro_batch == 2 * vit.config.micro_batch
    configs = [ViTConfig(img_size=32, patch_size=4, embed_dim=D, num_heads=1) for D in (48, 96, 192, 384, 768)]
    assert [config.micro_batch for config in configs] == [16, 16, 16, 8, 4]


def test_memory_does_not_grow_with_the_batch() -> None:
    """The cache of a micro-batch is freed before the next one."""
    import tracemalloc

    peaks = []
    for size in (8, 64):
        images, labels, key = batch(size)
        with Engine(model(), 1, 4) as engine:
            engine.loss_and_gradients(images, labels, key)
            tracemalloc.start()
            engine.loss_and_gradients(images, labels, key)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_the_check_of_values_takes_no_memory_that_grows_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are looked at in pieces, and the one with NaN is found in each of them."""
    seen, isfinite = [], np.isfinite
    monkeypatch.setattr("minivit.engine.engine._CHECKED_NUMBERS", 3 * 4 * 9 * 3)

    def noted(x: Array) -> Array:
        seen.append(x.size)
        return isfinite(x)

    with Engine(model(), 1) as engine:
        for bad in range(B):
            images, _, _ = batch()
            images[bad, 1, 2, 0] = np.nan
            monkeypatch.setattr(np, "isfinite", noted)
            with pytest.raises(UserError, match=f"image {bad} of the batch holds NaN"):
                engine.predict(images)
            monkeypatch.setattr(np, "isfinite", isfinite)
    assert max(seen) == 3 * 4 * 9 * 3


def test_numbers_of_numpy_are_those_of_python() -> None:
    """A loss of float64 would show otherwise that the share of a micro-batch is a number of NumPy."""
    images, labels, _ = batch()
    with Engine(model(), np.int64(1), np.int64(3), reduction_groups=np.int64(2)) as engine:  # type: ignore[arg-type]  # no int
        assert {type(n) for n in (engine.threads, engine.micro_batch, engine.reduction_groups)} == {int}
        assert engine.loss_and_gradients(images, labels).dtype == np.float32


@pytest.mark.parametrize("number", [-1, 1.5, "1", True])
def test_the_first_block_is_a_whole_number(number: Any) -> None:
    with Engine(model(), 1) as engine:
        with pytest.raises(UserError, match=f"first_block is {number!r}; expected a whole number of at least 0"):
            engine.first_block = number
        engine.first_block = 2
        assert engine.first_block == 2


def test_a_masked_model_has_no_first_block() -> None:
    with Engine(masked_model("mae", model().config, decoder_dim=12), 1) as engine:
        engine.first_block = 0
        with pytest.raises(
            UserError, match="first_block is 1; expected 0, because backward of MAE takes no first_block"
        ):
            engine.first_block = 1


def test_values_are_checked_where_they_enter() -> None:
    images, labels, _ = batch()
    images[3, 1, 2, 0] = np.nan
    with Engine(model(), 1) as engine:
        with pytest.raises(UserError, match="image 3 of the batch holds NaN or infinity"):
            engine.predict(images)
        with pytest.raises(UserError, match="image 3 of the batch holds NaN or infinity"):
            engine.loss_and_gradients(images, labels)
        with pytest.raises(TypeError, match="expected an array of NumPy or CuPy, got list"):
            engine.predict([[1.0]])  # type: ignore[arg-type]


def test_an_engine_runs_a_model_and_no_layer_of_one() -> None:
    block: Any = model().blocks[0]
    with pytest.raises(UserError, match="Engine was given a EncoderBlock; expected a ViT or a model of masked pre-tra"):
        Engine(block)
