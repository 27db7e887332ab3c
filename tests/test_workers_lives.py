"""Start and end of the engine's workers, with forks, signals and the end of the program."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import assert_same_bits
from forks import ended_well, forked, needs_fork
from small_vit import batch, in_a_worker, model

from minivit import Engine, ViT
from minivit.engine import worker_pool


@needs_fork
def test_workers_end_with_an_engine_that_was_not_closed() -> None:
    """They end without the garbage collector, which large arrays do not trigger, and silently with the program."""
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
def test_workers_ignore_sigterm() -> None:
    images, labels, key = batch()
    with Engine(model(), 2, 2) as engine:
        expected = engine.loss_and_gradients(images, labels, key)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGTERM)
        assert_same_bits([engine.loss_and_gradients(images, labels, key)], [expected])
        assert [child.pid for child in multiprocessing.active_children()] == [worker.pid]


@needs_fork
def test_an_interrupt_waits_for_all_busy_workers_together() -> None:
    def work(number: int, job: object, barrier: worker_pool.Barrier) -> None:
        if number == 0:
            raise KeyboardInterrupt
        time.sleep(60)

    pool = worker_pool.WorkerPool(12, work)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pool.run(None)
    assert time.monotonic() - start < 1.5  # 11 times 0.2 seconds would be more
    assert multiprocessing.active_children() == []


def test_workers_end_with_their_engine() -> None:
    images, labels, key = batch()
    engine = Engine(model(), 3, 2)
    engine.loss_and_gradients(images, labels, key)
    assert len(multiprocessing.active_children()) >= 2 or not worker_pool.can_fork()
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

        def compute() -> None:
            here.close()
            there.recv_bytes()  # until the workers of the parent have ended
            there.send_bytes(engine.loss_and_gradients(images, labels, key).tobytes())

        child = forked(compute)
        there.close()
        assert_same_bits([engine.loss_and_gradients(images, labels, key)], [expected])
        engine.close()
        here.send_bytes(b"go on")
        assert here.recv_bytes() == expected.tobytes()
        assert ended_well(child)
        assert_same_bits([engine.loss_and_gradients(images, labels, key)], [expected])


@needs_fork
def test_warnings_about_forks_are_suppressed() -> None:
    """JAX registers such a warning. It cannot be unregistered, so the test runs a process of its own."""
    program = """
import os, warnings, numpy as np, minivit
os.register_at_fork(before=lambda: warnings.warn("os.fork() may deadlock", RuntimeWarning, stacklevel=2))
model = minivit.create_model("vit_tiny_patch4_32", embed_dim=12, depth=1, num_heads=3)
with minivit.Engine(model, threads=2, micro_batch=1) as engine:
    print(engine.predict(np.ones((2, 32, 32, 3), np.float32)).shape)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "(2, 10)\n")


@needs_fork
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_of_multiprocessing_ends_with_the_engine_it_holds(method: str, tmp_path: Path) -> None:
    """Multiprocessing sends SIGTERM to children and waits for them, after it has run its own finalizers alone."""
    program = f"""
import multiprocessing, numpy as np, minivit
from concurrent.futures import ProcessPoolExecutor

def begin():
    global engine
    engine = minivit.Engine(minivit.create_model("vit_tiny_patch4_32", embed_dim=12, depth=1, num_heads=3), 2, 1)

def shape():
    return engine.predict(np.ones((2, 32, 32, 3), np.float32)).shape

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("{method}"), begin) as pool:
        print(pool.submit(shape).result())
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "(2, 10)\n")


@needs_fork
def test_a_daemon_thread_that_goes_on_computing_does_not_block_the_end_of_the_program() -> None:
    """Four programs run at once, since the order of a fork and the end of other workers depends on timing."""
    program = """
import threading, time, numpy as np, minivit
engine = minivit.Engine(minivit.create_model("vit_tiny_patch4_32", embed_dim=12, depth=1, num_heads=3), 2, 1)
images = np.ones((4, 32, 32, 3), np.float32)
engine.predict(images)

def for_ever():
    while True:
        try:
            engine.predict(images)
        except Exception:
            pass

threading.Thread(target=for_ever, daemon=True).start()
time.sleep(0.3)
"""
    command = [sys.executable, "-c", program]
    programs = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(4)]
    try:
        assert [each.wait(timeout=30) for each in programs] == [0] * 4
    finally:
        for each in programs:
            each.kill()
            each.wait()


@needs_fork
def test_workers_of_one_engine_do_not_keep_those_of_another_alive() -> None:
    """They hold no ends of its pipes, so its workers see the pipes close and end by themselves."""
    images, _, _ = batch()
    first, second = Engine(model(), 2, 2), Engine(model(), 2, 2)
    first.predict(images)
    (worker,) = multiprocessing.active_children()
    second.predict(images)
    first.close()
    assert worker.exitcode == 0
    second.close()


@needs_fork
def test_workers_view_the_models_own_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy is made, neither when workers start nor when values change."""
    images, labels, key = batch()
    vit = model()
    caller, forward = (os.getpid(), threading.get_ident()), ViT.forward

    def writing(self: ViT, *args: Any) -> Any:
        if in_a_worker(caller):
            self.head.bias.value[...] = np.arange(7)
        return forward(self, *args)

    with Engine(vit, 2, 2) as engine:
        engine.loss_and_gradients(images, labels, key)
        engine.close()
        monkeypatch.setattr(ViT, "forward", writing)
        engine.loss_and_gradients(images, labels, key)
    assert list(vit.head.bias.value) == list(range(7))


def test_a_closed_engine_frees_its_arrays(worker_kind: str) -> None:
    """They are freed without the garbage collector, which large arrays do not trigger."""
    images, _, _ = batch()
    engine = Engine(model(), 2, 2)
    engine.predict(images)
    assert engine._parallel is not None
    arrays = weakref.ref(engine._parallel._arrays)
    gc.collect()
    gc.disable()
    try:
        engine.close()
        for _ in range(100):  # a thread may still be at its last statement
            if arrays() is None:
                break
            time.sleep(0.01)
        assert arrays() is None
    finally:
        gc.enable()
