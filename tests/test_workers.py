"""The engine's workers: processes and threads alike, their errors, their end, and interruptions."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from contract import assert_close, assert_same_bits, normal
from small_vit import CONFIG, batch, model, step

from minivit import Engine, RunError, ViT, ViTConfig, ops, team
from minivit.arrays import Array
from minivit.layers import Dropout, EncoderBlock

needs_fork = pytest.mark.skipif(not team.can_fork(), reason="this system, or this process, cannot fork")


@pytest.fixture(params=[pytest.param("processes", marks=needs_fork), "threads"])
def members(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the workers beside the caller are; threads where a system cannot fork."""
    if request.param == "threads":
        monkeypatch.setattr(team, "can_fork", lambda: False)
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

    seen: dict[int, Array] = {}

    def failing(self: ViT, dy: Array, cache: Any, release: bool) -> Array:
        if images[2 * index, 0, 0, 0] == seen[id(self)][0, 0, 0, 0]:
            raise MemoryError("no room for this micro-batch")
        return original(self, dy, cache, release)

    forward = ViT.forward

    def noting(self: ViT, x: Array, *args: Any) -> Any:
        seen[id(self)] = x
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


@needs_fork
def test_a_worker_that_dies_is_an_error_and_the_engine_works_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_view_that_was_held_from_the_beginning_can_be_written_to() -> None:
    """A step by hand on the flat vectors reaches all workers, at every step."""
    images, labels, key = batch()
    results = []
    for threads in (1, 2):
        vit = ViT(CONFIG, seed=3)
        values, gradients = vit.parameters.store.values, vit.parameters.store.gradients
        with Engine(vit, threads, 2) as engine:
            for _ in range(3):
                loss = engine.loss_and_gradients(images, labels, key)
                values -= 0.1 * gradients
        results.append([loss, values])
    assert_same_bits(*results)


def test_a_prediction_leaves_the_gradients_alone() -> None:
    vit, (images, labels, key) = model(), batch()
    with Engine(vit, 2, 2) as engine:
        engine.loss_and_gradients(images[:4], labels[:4], key[:4])
        gradients = vit.parameters.store.gradients.copy()
        assert gradients.any()
        engine.predict(images)  # for more images than before, so by a new crew
        assert_same_bits([vit.parameters.store.gradients], [gradients])


def test_calls_from_two_threads_do_not_mix() -> None:
    images = np.random.default_rng(1).standard_normal((8, len(batch()[0]), 4, 9, 3), dtype=np.float32)
    vit = model()
    with Engine(vit, 2, 2) as engine, ThreadPoolExecutor(4) as pool:
        expected = [engine.predict(each) for each in images]
        for _ in range(3):
            assert_same_bits(list(pool.map(engine.predict, images)), expected)


@needs_fork
def test_workers_end_with_an_engine_that_nobody_closed() -> None:
    """Without the garbage collector, which large arrays do not wake; and at the end of the program, without a word."""
    images, _, _ = batch()
    gc.collect()
    gc.disable()
    try:
        engine = Engine(model(), 3, 2)
        engine.predict(images)
        assert len(multiprocessing.active_children()) == 2
        del engine
        assert multiprocessing.active_children() == []
    finally:
        gc.enable()
    program = """
import numpy as np, minivit
engine = minivit.Engine(minivit.create_model("vit_tiny_patch4_32", embed_dim=12, depth=1, num_heads=3), 2, 1)
print(engine.predict(np.ones((2, 32, 32, 3), np.float32)).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "(2, 10)\n")


@needs_fork
def test_a_polite_kill_of_all_processes_is_the_callers_alone() -> None:
    images, labels, key = batch()
    with Engine(model(), 2, 2) as engine:
        expected = engine.loss_and_gradients(images, labels, key)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGTERM)
        assert_same_bits([engine.loss_and_gradients(images, labels, key)], [expected])
        assert [child.pid for child in multiprocessing.active_children()] == [worker.pid]


class Odd(Exception):  # noqa: N818 - errors of other people have such names
    """It can be pickled and not unpickled."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} {where}")


def in_a_worker(caller: tuple[int, int]) -> bool:
    return (os.getpid(), threading.get_ident()) != caller


def test_an_error_that_cannot_be_pickled_surfaces_as_its_words(members: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, key = batch()
    caller, forward = (os.getpid(), threading.get_ident()), ViT.forward

    def failing(self: ViT, *args: Any) -> Any:
        if in_a_worker(caller):
            raise Odd("no", "luck")
        return forward(self, *args)

    with Engine(model(), 2, 2) as engine, monkeypatch.context() as patch:
        patch.setattr(ViT, "forward", failing)
        with pytest.raises(RunError, match="a worker failed: Odd: no luck") as caught:
            engine.loss_and_gradients(images, labels, key)
        assert "in failing" in caught.value.__notes__[0]


@needs_fork
def test_a_workers_warnings_are_treated_as_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _, _ = batch()
    caller, forward = (os.getpid(), threading.get_ident()), ViT.forward

    def warning(self: ViT, *args: Any, **kwargs: Any) -> Any:
        if in_a_worker(caller):
            warnings.warn("overflow", RuntimeWarning, stacklevel=2)
        return forward(self, *args, **kwargs)

    with Engine(model(), 2, 2) as engine, monkeypatch.context() as patch:
        patch.setattr(ViT, "forward", warning)
        with pytest.raises(RuntimeWarning, match="overflow"):
            engine.predict(images)


def test_complex_values_take_soft_targets() -> None:
    """For the complex step, on several workers as on one."""
    images, labels, _ = batch(dtype="float64")
    targets = np.eye(7)[labels]
    results = []
    for threads in (1, 2):
        vit = model("float64").astype("complex128")
        with Engine(vit, threads, 3) as engine:
            loss = engine.loss_and_gradients(images.astype("complex128"), targets)
        results.append([loss, vit.parameters.store.gradients])
    assert_same_bits(*results)


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


@needs_fork
def test_a_process_forked_by_the_user_uses_workers_of_its_own() -> None:
    images, labels, key = batch()
    with Engine(model(), 2, 2) as engine:
        expected = engine.loss_and_gradients(images, labels, key)
        here, there = multiprocessing.Pipe()
        if (child := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                here.close()
                there.recv_bytes()  # until the workers of the parent have ended
                there.send_bytes(engine.loss_and_gradients(images, labels, key).tobytes())
            os._exit(0)
        there.close()
        assert_same_bits([engine.loss_and_gradients(images, labels, key)], [expected])
        engine.close()
        here.send_bytes(b"go on")
        assert here.recv_bytes() == expected.tobytes()
        os.waitpid(child, 0)
        assert_same_bits([engine.loss_and_gradients(images, labels, key)], [expected])


@needs_fork
def test_a_library_that_warns_of_every_fork_is_not_heard() -> None:
    """JAX does so once it has started; it cannot be taken back, so a process of its own says it."""
    program = """
import os, warnings, numpy as np, minivit
os.register_at_fork(before=lambda: warnings.warn("os.fork() may deadlock", RuntimeWarning, stacklevel=2))
model = minivit.create_model("vit_tiny_patch4_32", embed_dim=12, depth=1, num_heads=3)
with minivit.Engine(model, threads=2, micro_batch=1) as engine:
    print(engine.predict(np.ones((2, 32, 32, 3), np.float32)).shape)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "(2, 10)\n")


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


def wide_model() -> ViT:
    vit = ViT(WIDE, seed=3)
    for seed, parameter in enumerate(vit.parameters.values()):
        parameter.value[...] += 0.1 * normal(parameter.value, seed)
    return vit


def test_who_shares_tokens_depends_on_the_whole_batch_alone() -> None:
    """The last few images of a batch are computed in the same way for any number of workers."""
    images = np.random.default_rng(0).standard_normal((17, 24, 33, 3), dtype=np.float32)
    vit = wide_model()
    expected = Engine(vit, 1, 2).predict(images)
    for threads in (2, 3):
        with Engine(vit, threads, 2) as engine:
            assert_same_bits([engine.predict(images)], [expected])


class Halved(EncoderBlock):
    """A block that somebody else wrote."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y, cache = super().forward(*args, **kwargs)
        return 0.5 * y, cache


class Doubled(Dropout):
    """A layer that somebody else wrote."""

    def forward(self, x: Array, *args: Any, **kwargs: Any) -> Any:
        return 2.0 * x, None


@pytest.mark.parametrize("place", ["block", "norm", "pos_drop", "watched"])
def test_workers_share_no_tokens_of_a_model_that_was_changed(place: str) -> None:
    images = np.random.default_rng(0).standard_normal((1, 24, 33, 3), dtype=np.float32)
    vit = wide_model()
    plain = vit(images)
    if place == "block":
        vit.blocks[1].__class__ = Halved
    elif place == "norm":
        vit.blocks[1].norm1.forward = lambda x, *args, **kwargs: (0.5 * x, None)  # type: ignore[method-assign]
    elif place == "pos_drop":
        vit.pos_drop = Doubled(0.0)
    else:
        forward = vit.forward
        vit.forward = lambda *args, **kwargs: (0.5 * forward(*args, **kwargs)[0], None)  # type: ignore[method-assign]
    changed = vit(images)
    assert np.abs(changed - plain).max() > 1e-3
    with Engine(vit, 2, 4) as engine:
        assert_close([engine.predict(images)], [changed], 1e-5)


@pytest.mark.parametrize("who", ["the caller", "another"])
def test_an_error_while_tokens_are_shared_surfaces(who: str, members: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).standard_normal((1, 24, 33, 3), dtype=np.float32)
    caller, attention = (os.getpid(), threading.get_ident()), ops.attention

    def failing(*args: Any, **kwargs: Any) -> Any:
        if in_a_worker(caller) == (who == "another"):
            raise MemoryError("no room for these tokens")
        return attention(*args, **kwargs)

    with Engine(ViT(WIDE, seed=3), 2, 4) as engine:
        expected = engine.predict(images)
        with monkeypatch.context() as patch:
            engine.close()
            patch.setattr(ops, "attention", failing)
            with pytest.raises(MemoryError, match="no room for these tokens"):
                engine.predict(images)
        assert_same_bits([engine.predict(images)], [expected])


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
