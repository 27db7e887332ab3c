"""The step engine: the same bits whatever the threads, the whole batch's gradient, and errors that leave it usable."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from contract import assert_close, assert_same_bits, normal

from minivit import Engine, Key, RunError, UserError, ViT, ViTConfig, ops, team
from minivit.arrays import Array

CONFIG = ViTConfig(
    img_size=(4, 9), patch_size=(2, 3), embed_dim=12, depth=3, num_heads=3, num_classes=7,
    drop_rate=0.2, pos_drop_rate=0.2, proj_drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.2,
)  # fmt: skip
B = 13


def model(dtype: str = "float32", **fields: Any) -> ViT:
    vit = ViT(dataclasses.replace(CONFIG, **fields), seed=3, dtype=dtype)
    for seed, parameter in enumerate(vit.parameters.values()):
        parameter.value[...] += 0.2 * normal(parameter.value, seed)
    return vit


def batch(size: int = B, dtype: str = "float32") -> tuple[Array, Array, Key]:
    generator = np.random.default_rng(0)
    images = generator.standard_normal((size, 4, 9, 3)).astype(dtype)
    return images, generator.integers(0, 7, size), Key(5, 8, np.arange(100, 100 + size))


def step(
    vit: ViT, threads: int, micro_batch: int | None, rng: bool = True, size: int = B, smoothing: float = 0.1
) -> tuple[Array, Array]:
    """Return the loss and the flat gradient vector of one step."""
    images, labels, key = batch(size, str(vit.head.weight.value.dtype))
    with Engine(vit, threads, micro_batch) as engine:
        loss = engine.loss_and_gradients(images, labels, key if rng else None, smoothing)
    return loss, vit.parameters.store.gradients


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


def test_gradients_are_set_not_added() -> None:
    vit = model()
    vit.parameters.store.gradients[...] = 100.0
    assert_same_bits(step(vit, 2, 3), step(model(), 2, 3))


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


@pytest.fixture(params=["processes", "threads"])
def members(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the workers beside the caller are; threads where a system cannot fork."""
    if request.param == "threads":
        monkeypatch.setattr(team, "can_fork", lambda: False)
    elif not team.can_fork():
        pytest.skip("this system, or this process, cannot fork")
    return str(request.param)


def test_processes_and_threads_give_the_same_bits(members: str) -> None:
    assert_same_bits(step(model(), 3, 2), step(model(), 1, 2))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("index", [0, 2, 3])
def test_an_error_in_a_worker_surfaces_and_the_engine_works_afterwards(
    threads: int, index: int, members: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is that of a certain micro-batch, so of the caller or of another worker."""
    images, labels, key = batch()
    vit = model()
    original = ViT.backward

    def failing(self: ViT, dy: Array, cache: Any, release: bool) -> Array:
        if images[2 * index, 0, 0, 0] == self.seen[0, 0, 0, 0]:  # type: ignore[attr-defined]
            raise MemoryError("no room for this micro-batch")
        return original(self, dy, cache, release)

    forward = ViT.forward

    def noting(self: ViT, x: Array, *args: Any) -> Any:
        self.seen = x  # type: ignore[attr-defined]
        return forward(self, x, *args)

    with monkeypatch.context() as patch, Engine(vit, threads, 2) as engine:
        patch.setattr(ViT, "forward", noting)
        patch.setattr(ViT, "backward", failing)
        with pytest.raises(MemoryError, match="no room for this micro-batch"):
            engine.loss_and_gradients(images, labels, key)
        patch.undo()
        loss = engine.loss_and_gradients(images, labels, key)
    expected = model()
    with Engine(expected, 1, 2) as engine:
        assert_same_bits([loss], [engine.loss_and_gradients(images, labels, key)])
    assert_same_bits([vit.parameters.store.gradients], [expected.parameters.store.gradients])


def test_a_worker_that_dies_is_an_error_and_the_engine_works_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    if not team.can_fork():
        pytest.skip("this system, or this process, cannot fork")
    images, labels, key = batch()
    caller, backward = os.getpid(), ViT.backward

    def dying(self: ViT, dy: Array, cache: Any, release: bool) -> Array:
        if os.getpid() != caller:
            os.kill(os.getpid(), signal.SIGKILL)
        return backward(self, dy, cache, release)

    for threads in (2, 3):
        with Engine(model(), threads, 2) as engine:
            with monkeypatch.context() as patch:
                patch.setattr(ViT, "backward", dying)
                with pytest.raises(RunError, match="a worker process was ended from outside"):
                    engine.loss_and_gradients(images, labels, key)
            loss = engine.loss_and_gradients(images, labels, key)
        assert_same_bits([loss], [step(model(), 1, 2, smoothing=0.0)[0]])


def test_values_written_between_two_steps_reach_all_workers(members: str) -> None:
    """Through a view kept from before, through load_state_dict, through the flat vector, and by an optimiser."""
    vit, (images, _, _) = model(), batch()
    with Engine(vit, 2, 2) as engine:
        first = engine.predict(images)
        assert_same_bits([engine.predict(images)], [first])
        state = vit.state_dict()
        vit.load_state_dict({name: 0.5 * value for name, value in state.items()})
        assert_same_bits([engine.predict(images)], [Engine(vit, 1, 2).predict(images)])
        vit.parameters.store.values[...] *= 0.7
        halved = engine.predict(images)
        assert_same_bits([halved], [Engine(vit, 1, 2).predict(images)])
        bias = vit.head.bias.value
        engine.predict(images)
        bias += 1.0
        assert_close([engine.predict(images)], [halved + 1.0], 1e-5)
    vit = model()
    replica = vit.replica()
    with Engine(vit, 2, 2) as engine:
        before = engine.predict(images)
        replica.parameters["head.bias"].value[...] += 1.0
        assert_close([engine.predict(images)], [before + 1.0], 1e-5)


def test_workers_end_with_their_engine() -> None:
    images, labels, key = batch()
    engine = Engine(model(), 3, 2)
    engine.loss_and_gradients(images, labels, key)
    assert len(multiprocessing.active_children()) >= 2 or not team.can_fork()
    engine.close()
    engine.close()
    assert multiprocessing.active_children() == []
    engine.loss_and_gradients(images, labels, key)
    del engine
    gc.collect()
    assert multiprocessing.active_children() == []


def test_a_process_forked_by_the_user_uses_workers_of_its_own() -> None:
    if not team.can_fork():
        pytest.skip("this system, or this process, cannot fork")
    images, labels, key = batch()
    with Engine(model(), 2, 2) as engine:
        expected = engine.loss_and_gradients(images, labels, key)
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                os.write(write, engine.loss_and_gradients(images, labels, key).tobytes())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 100) == expected.tobytes()
        assert_same_bits([engine.loss_and_gradients(images, labels, key)], [expected])


WIDE = ViTConfig(img_size=(24, 33), patch_size=3, embed_dim=12, depth=3, num_heads=3, num_classes=7)


@pytest.mark.parametrize("fields", [{}, {"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}], ids=str)
def test_workers_share_the_tokens_of_few_images(fields: dict[str, Any], members: str) -> None:
    """The result is the model's up to rounding, with the same bits for any number of workers."""
    vit = ViT(dataclasses.replace(WIDE, **fields), seed=3)
    images = np.random.default_rng(0).standard_normal((3, 24, 33, 3), dtype=np.float32)
    for size in (1, 2, 3):
        expected = Engine(vit, 1, 4).predict(images[:size])
        assert_close([expected], [vit(images[:size])], 1e-5)
        for threads in (2, 3):
            with Engine(vit, threads, 4) as engine:
                assert_same_bits([engine.predict(images[:size])], [expected])
                assert_same_bits([engine.predict(images[:size])], [expected])


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
        "label -1 of image 2 .* classes 0 to 6",
    ),
    "too few labels": (
        {"labels": LABELS[:-1]},
        UserError,
        r"labels have shape \(12,\); expected \(13,\), one for each im",
    ),
    "labels of two axes": ({"labels": LABELS[:, None]}, UserError, r"labels have shape \(13, 1\)"),
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
def test_a_batch_that_cannot_be_is_refused(name: str, threads: int) -> None:
    given, error, message = REFUSED[name]
    with Engine(model(), threads, 4) as engine, pytest.raises(error, match=message):
        engine.loss_and_gradients(**{"images": IMAGES, "labels": LABELS, "rng": KEY, **given})


@pytest.mark.parametrize("threads", [0, -2])
def test_an_engine_needs_a_thread_and_an_image(threads: int) -> None:
    with pytest.raises(UserError, match=f"threads is {threads}; expected at least 1"):
        Engine(model(), threads=threads)
    with pytest.raises(UserError, match=f"micro_batch is {threads}; expected at least 1"):
        Engine(model(), micro_batch=threads)


def test_the_micro_batch_is_the_models() -> None:
    vit = model()
    with Engine(vit) as engine:
        assert engine.micro_batch == vit.config.micro_batch
        assert engine.threads >= 1
    configs = [ViTConfig(img_size=32, patch_size=4, embed_dim=D, num_heads=1) for D in (48, 96, 192, 384, 768)]
    assert [config.micro_batch for config in configs] == [8, 8, 16, 8, 4]


def test_memory_does_not_grow_with_the_batch() -> None:
    """What one micro-batch keeps for its backward pass is freed before the next."""
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


@pytest.mark.parametrize("moment", ["in its own part", "while it waits"])
def test_an_interrupted_step_does_not_spoil_the_next(
    moment: str, members: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = model()
    images, labels, key = batch()
    caller, forward = threading.current_thread(), ViT.forward

    def interrupted(self: ViT, *args: Any) -> Any:
        if multiprocessing.parent_process() is not None or threading.current_thread() is not caller:
            time.sleep(0.01)
        elif moment == "in its own part":
            raise KeyboardInterrupt
        return forward(self, *args)

    def interrupted_turn(self: team.Together) -> None:
        raise KeyboardInterrupt

    with Engine(vit, 2, 1) as engine:
        engine.loss_and_gradients(images, labels, key)
        expected = vit.parameters.store.gradients.copy()
        with monkeypatch.context() as patch:
            engine.close()
            patch.setattr(ViT, "forward", interrupted)
            if moment == "while it waits":
                patch.setattr(Connection, "recv_bytes", interrupted_turn)
            with pytest.raises(KeyboardInterrupt):
                engine.loss_and_gradients(images, labels, key)
        for _ in range(3):
            engine.loss_and_gradients(images, labels, key)
            assert_same_bits([vit.parameters.store.gradients], [expected])


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
