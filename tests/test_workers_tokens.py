"""Prediction of a few images, whose tokens the workers share."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from contract import assert_close, assert_same_bits, normal
from forks import ended_well, forked, needs_fork
from small_vit import in_a_worker

from minivit import Engine, ViT, ViTConfig, ops
from minivit.arrays import Array
from minivit.engine.threads import take_turns
from minivit.kernels.numpy.block_inference import covers_inference
from minivit.layers import Dropout, EncoderBlock

WIDE = ViTConfig(img_size=(24, 33), patch_size=3, embed_dim=12, depth=3, num_heads=3, num_classes=7)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"embed_dim": 36},
        {"embed_dim": 36, "reg_tokens": 2},
        {"global_pool": "avg"},
        {"global_pool": "avg", "class_token": False},
    ],
    ids=str,
)
def test_workers_share_the_tokens_of_few_images(fields: dict[str, Any], worker_kind: str) -> None:
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


@pytest.mark.parametrize("queries", [slice(None), slice(0, 1)], ids=str)
def test_the_kernel_of_few_tokens_equals_that_of_many(queries: slice) -> None:
    block = EncoderBlock(36, 3, 72).initialize(0)
    for seed, parameter in enumerate(block.parameters.values()):
        parameter.value[...] += 0.3 * normal(parameter.value, seed)
    x = 2 * normal(np.empty((2, 44, 36), np.float32))
    assert covers_inference(x, block)
    expected, _ = block.forward(x, keep=False, queries=queries)
    few, _ = block.forward(x, keep=False, queries=queries, gather=lambda qkv, tokens: (qkv, tokens))
    assert few.dtype == expected.dtype
    assert_close([few], [expected], 2e-6)


def test_a_worker_waits_long_for_another_and_both_go_on() -> None:
    """Workers poll, then let others run, then sleep; the last look is at a worker that has replied."""
    image = np.random.default_rng(0).standard_normal((1, 24, 33, 3), dtype=np.float32)
    vit, caller = ViT(dataclasses.replace(WIDE, embed_dim=36), seed=3), os.getpid()
    expected = Engine(vit, 1, 4).predict(image)
    for slow in (True, False):

        def late(*args: Any, slow: bool = slow, embed: Any = ViT.embed, **kwargs: Any) -> Any:
            time.sleep(0.02 * ((os.getpid() == caller) == slow))
            return embed(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch, Engine(vit, 2, 4) as engine:
            patch.setattr(ViT, "embed", late)
            for _ in range(3):
                assert_same_bits([engine.predict(image)], [expected])


def wide_model() -> ViT:
    vit = ViT(WIDE, seed=3)
    for seed, parameter in enumerate(vit.parameters.values()):
        parameter.value[...] += 0.1 * normal(parameter.value, seed)
    return vit


def test_whether_tokens_are_shared_depends_on_the_whole_batch_alone() -> None:
    """The last few images of a batch are computed in the same way for any number of workers."""
    images = np.random.default_rng(0).standard_normal((17, 24, 33, 3), dtype=np.float32)
    vit = wide_model()
    expected = Engine(vit, 1, 2).predict(images)
    for threads in (2, 3):
        with Engine(vit, threads, 2) as engine:
            assert_same_bits([engine.predict(images)], [expected])


def test_hooks_give_the_bits_of_the_references_for_few_images() -> None:
    """Workers share no tokens where the references run, since pieces of other sizes round in another way."""
    image = np.random.default_rng(0).standard_normal((1, 24, 33, 3), dtype=np.float32)
    vit = wide_model()
    for threads in (1, 2):
        with Engine(vit, threads, 2) as engine:
            with ops.reference_only():
                reference = engine.predict(image)
            with vit.blocks[0].register_forward_hook(lambda layer, x, y: None):
                assert_same_bits([engine.predict(image)], [reference])


class Halved(EncoderBlock):
    """A block that a user wrote."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y, cache = super().forward(*args, **kwargs)
        return 0.5 * y, cache


class Doubled(Dropout):
    """A layer that a user wrote."""

    def forward(self, x: Array, *args: Any, **kwargs: Any) -> Any:
        return 2.0 * x, None


@pytest.mark.parametrize("place", ["block", "norm", "pos_drop", "model"])
def test_workers_share_no_tokens_of_a_model_that_was_changed(place: str) -> None:
    images = np.random.default_rng(0).standard_normal((1, 24, 33, 3), dtype=np.float32)
    vit = wide_model()
    plain = vit(images)
    if place == "block":
        vit.blocks[1].__class__ = Halved
    elif place == "norm":
        vit.blocks[1].norm1.register_forward_hook(lambda layer, x, y: 0.5 * x)
    elif place == "pos_drop":
        vit.pos_drop = Doubled(0.0)
    else:
        vit.register_forward_hook(lambda layer, x, y: 0.5 * y)
    changed = vit(images)
    assert np.abs(changed - plain).max() > 1e-3
    with Engine(vit, 2, 4) as engine:
        assert_close([engine.predict(images)], [changed], 1e-5)


@pytest.mark.parametrize("error", [MemoryError, OSError])
@pytest.mark.parametrize("who", ["the caller", "another"])
def test_an_error_while_tokens_are_shared_is_raised(
    who: str, error: type[Exception], worker_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).standard_normal((1, 24, 33, 3), dtype=np.float32)
    caller, attention = (os.getpid(), threading.get_ident()), ops.attention

    def failing(*args: Any, **kwargs: Any) -> Any:
        if in_a_worker(caller) == (who == "another"):
            raise error("no room for these tokens")
        return attention(*args, **kwargs)

    with Engine(ViT(WIDE, seed=3), 2, 4) as engine:
        expected = engine.predict(images)
        with monkeypatch.context() as patch:
            engine.close()
            patch.setattr(ops, "attention", failing)
            with pytest.raises(error, match="no room for these tokens"):
                engine.predict(images)
        assert_same_bits([engine.predict(images)], [expected])


@needs_fork
@pytest.mark.parametrize("place", ["start", "first turn", "later turn"])
def test_an_interrupt_while_threads_take_turns_ends_them_all(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller waits for its turn when the signal comes. A process of its own: a thread that hangs would stay."""
    start, main = threading.Thread.start, threading.main_thread()

    def late(thread: threading.Thread) -> None:
        start(thread)
        time.sleep(0.05)  # the other thread begins
        if place == "start":
            raise KeyboardInterrupt

    def work(number: int, wait: Any) -> None:
        for turn in range(4):
            if number == 1 and turn == (0 if place == "first turn" else 2) and main.ident is not None:
                time.sleep(0.05)
                signal.pthread_kill(main.ident, signal.SIGINT)
                time.sleep(0.05)
            wait()

    def interrupted() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(20)  # ends a process that hangs
        others = threading.active_count()
        monkeypatch.setattr(threading.Thread, "start", late)
        with pytest.raises(KeyboardInterrupt):
            take_turns(work, 2)
        assert threading.active_count() == others

    assert ended_well(forked(interrupted))


@needs_fork
def test_an_interrupted_prediction_on_one_core_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).standard_normal((1, 24, 33, 3), dtype=np.float32)
    embed, main = ViT.embed, threading.main_thread()

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.05)
        if threading.current_thread() is not main and main.ident is not None:
            signal.pthread_kill(main.ident, signal.SIGINT)
            time.sleep(0.05)
        return embed(*args, **kwargs)

    def interrupted() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(20)
        engine = Engine(ViT(WIDE, seed=3), 1, 4)
        expected = engine.predict(image)
        with monkeypatch.context() as patch:
            patch.setattr(ViT, "embed", slow)
            with pytest.raises(KeyboardInterrupt):
                engine.predict(image)
        assert_same_bits([engine.predict(image)], [expected])

    assert ended_well(forked(interrupted))
