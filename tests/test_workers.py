"""The engine's workers, as processes and as threads: results, errors and interruptions."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from contract import assert_same_bits
from forks import needs_fork
from small_vit import batch, in_a_worker, model, step

from minivit import Engine, RunError, ViT, ops
from minivit.arrays import Array
from minivit.engine import worker_pool


def test_processes_and_threads_give_the_same_bits(worker_kind: str) -> None:
    assert_same_bits(step(model(), 3, 2), step(model(), 1, 2))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("index", [0, 2, 3])
def test_an_error_in_a_worker_is_raised_and_the_engine_works_afterwards(
    threads: int, index: int, worker_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error occurs in one micro-batch, which the caller or another worker computes."""
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


def test_calls_from_several_threads_do_not_interfere() -> None:
    images = np.random.default_rng(1).standard_normal((8, len(batch()[0]), 4, 9, 3), dtype=np.float32)
    vit = model()
    with Engine(vit, 2, 2) as engine, ThreadPoolExecutor(4) as pool:
        expected = [engine.predict(each) for each in images]
        for _ in range(3):
            assert_same_bits(list(pool.map(engine.predict, images)), expected)


def test_workers_disable_the_kernels_that_the_caller_disables() -> None:
    """Kernels that were disabled when the workers started are enabled again afterwards."""
    images, _, _ = batch()
    vit = model()
    with Engine(vit, 1, 2) as alone, Engine(vit, 3, 2) as together:
        kernels = alone.predict(images)
        with ops.reference_only():
            reference = alone.predict(images)
            assert np.abs(reference - kernels).max() > 0
            assert_same_bits([together.predict(images)], [reference])
        assert_same_bits([together.predict(images)], [kernels])
        with ops.reference_only("gelu"):
            without_gelu = alone.predict(images)
            assert np.abs(without_gelu - kernels).max() > 0
            assert_same_bits([together.predict(images)], [without_gelu])


class Odd(Exception):  # noqa: N818 - users' errors may have such names
    """An error that can be pickled but not unpickled."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} {where}")


def test_an_error_that_cannot_be_pickled_becomes_one_with_its_message(
    worker_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_closing_waits_for_a_call_from_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, key = batch()
    expected = step(model(), 1, 2)[0]
    begun, forward = threading.Event(), ViT.forward

    def slow(self: ViT, *args: Any) -> Any:
        begun.set()
        time.sleep(0.02)
        return forward(self, *args)

    monkeypatch.setattr(ViT, "forward", slow)
    with Engine(model(), 2, 2) as engine, ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.loss_and_gradients, images, labels, key, 0.1)
        begun.wait()
        engine.close()
        assert_same_bits([running.result()], [expected])


def test_no_more_workers_than_micro_batches() -> None:
    images, _, _ = batch()
    with Engine(model(), 9, 5) as engine:
        engine.predict(images)
        assert len(multiprocessing.active_children()) == (2 if worker_pool.can_fork() else 0)


def test_complex_values_take_soft_targets() -> None:
    """The complex step needs them, on one worker and on several."""
    images, labels, _ = batch(dtype="float64")
    targets = np.eye(7)[labels]
    results = []
    for threads in (1, 2):
        vit = model("float64").astype("complex128")
        with Engine(vit, threads, 3) as engine:
            loss = engine.loss_and_gradients(images.astype("complex128"), targets)
        results.append([loss, vit.parameters.store.gradients])
    assert_same_bits(*results)


@pytest.mark.parametrize("moment", ["in its own part", "while it waits"])
def test_an_interrupted_step_does_not_spoil_the_next(
    moment: str, worker_kind: str, monkeypatch: pytest.MonkeyPatch
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

    def interrupted_wait(self: Connection) -> None:
        raise KeyboardInterrupt

    with Engine(vit, 2, 1) as engine:
        engine.loss_and_gradients(images, labels, key)
        expected = vit.parameters.store.gradients.copy()
        with monkeypatch.context() as patch:
            engine.close()
            patch.setattr(ViT, "forward", interrupted)
            if moment == "while it waits":
                patch.setattr(Connection, "recv_bytes", interrupted_wait)
            with pytest.raises(KeyboardInterrupt):
                engine.loss_and_gradients(images, labels, key)
        for _ in range(3):
            engine.loss_and_gradients(images, labels, key)
            assert_same_bits([vit.parameters.store.gradients], [expected])
