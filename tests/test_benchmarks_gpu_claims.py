"""Clocks, allocations, launches and reads of a step, on devices that do not exist."""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from devices import needs_kernels

from benchmarks.gpu_parts import claims, step
from benchmarks.gpu_parts import minivit as minivit_side
from benchmarks.gpu_parts.clock import DeviceClock
from benchmarks.gpu_parts.memory import watched_memory
from benchmarks.gpu_parts.profile import summed
from benchmarks.task import make_task
from benchmarks.works import Work
from minivit.kernels.cuda import runtime


class FakeDevice:
    """A CuPy whose device works one call after the other, in a time of its own."""

    def __init__(self) -> None:
        self.host = self.device = 0.0
        self.cuda = SimpleNamespace(Event=functools.partial(FakeEvent, self), get_elapsed_time=self.elapsed)
        self.spins: list[float] = []

    def RawKernel(self, code: str, name: str) -> Callable[..., None]:  # noqa: N802 - as in CuPy
        def spin(grid: object, block: object, args: tuple[int]) -> None:
            self.spins.append(1e-9 * args[0])
            self.work(1e-9 * args[0])

        return spin

    def work(self, seconds: float, host: float = 0.0) -> None:
        """Ask for work, which takes the host and the device their time."""
        self.host += host
        self.device = max(self.device, self.host) + seconds

    @staticmethod
    def elapsed(first: FakeEvent, last: FakeEvent) -> float:
        return 1e3 * (last.at - first.at)


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self.at = 0.0

    def record(self) -> None:
        self.at = self._device.device

    def synchronize(self) -> None:
        self._device.host = max(self._device.host, self.at)

    @property
    def done(self) -> bool:
        return self.at <= self._device.host


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    fake = FakeDevice()
    monkeypatch.setattr(time, "perf_counter", lambda: fake.host)
    return fake


def test_the_clock_sees_the_device_alone_however_slow_the_host(device: FakeDevice) -> None:
    timing = DeviceClock(device).time(lambda: device.work(1e-4, host=5e-3), 10)
    assert timing.seconds == pytest.approx(1e-3)
    assert timing.host == pytest.approx(50e-3)
    assert timing.ahead
    assert device.spins[-1] > 50e-3


def test_the_clock_notices_a_step_that_waits(device: FakeDevice) -> None:
    def waiting() -> None:
        device.work(1e-3)
        device.host = device.device

    timing = DeviceClock(device).time(waiting)
    assert not timing.ahead
    assert max(device.spins) <= 0.5


def test_the_clock_takes_turns_and_makes_samples_long_enough(device: FakeDevice) -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        device.work(seconds)

    fast, slow = DeviceClock(device).seconds(lambda: call("fast", 1e-3), lambda: call("slow", 9e-3))
    assert fast == pytest.approx([1e-3] * 7)
    assert slow == pytest.approx([9e-3] * 7)
    assert "".join(name[0] for name in order[-10:]) == "ffffsffffs"


def test_steps_are_timed_from_idle_to_idle_in_samples(device: FakeDevice) -> None:
    def wait() -> None:
        device.host = max(device.host, device.device)

    nothing: Any = dict
    timed = step.Step(lambda: device.work(0.03, host=0.001), wait, float, nothing, nothing)
    times = step.step_times(timed, 0.9)
    assert len(times) == 8  # of 4 steps
    assert statistics.median(times) == pytest.approx(0.03, rel=0.02)


class FakeHook:
    current: Any = None

    def __enter__(self) -> None:
        FakeHook.current = self

    def __exit__(self, *_: object) -> None:
        FakeHook.current = None


def fake_memory() -> Any:
    pool = SimpleNamespace(used_bytes=lambda: 100, total_bytes=lambda: 512)
    return SimpleNamespace(cuda=SimpleNamespace(MemoryHook=FakeHook), get_default_memory_pool=lambda: pool)


def test_allocations_are_counted_and_the_peak_is_kept() -> None:
    with watched_memory(fake_memory()) as traffic:
        FakeHook.current.alloc_preprocess(device_id=0, mem_size=512)
        for _ in range(2):
            FakeHook.current.malloc_postprocess(device_id=0, size=40, mem_size=50, mem_ptr=1, pmem_id=1)
        FakeHook.current.free_postprocess(device_id=0, mem_size=50, mem_ptr=1, pmem_id=1)
    assert (traffic.allocations, traffic.driver_allocations) == (2, 1)
    assert (traffic.used, traffic.peak) == (150, 200)


class DeviceSynchronizedError(RuntimeError):
    """As in CuPy."""


def fake_cupyx(allowed: list[bool]) -> ModuleType:
    @contextmanager
    def allow_synchronize(allow: bool) -> Iterator[None]:
        allowed.append(allow)
        yield
        allowed.append(True)

    module: Any = ModuleType("cupyx")
    module.allow_synchronize, module.DeviceSynchronized = allow_synchronize, DeviceSynchronizedError
    return module


def test_a_read_of_the_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[bool] = []
    monkeypatch.setitem(sys.modules, "cupyx", fake_cupyx(allowed))

    def reading() -> None:
        assert not allowed[-1]
        raise DeviceSynchronizedError

    assert claims.reads_of_device(reading)["found"]
    assert claims.reads_of_device(lambda: None) == {"found": False, "where": ""}


@needs_kernels
def test_launches_are_counted_and_nothing_stays_changed() -> None:
    task = make_task(Work("small", "training", "vit_micro_patch4_8", {"depth": 1}, 2), 1)
    one = minivit_side.prepare(task, "float32", "strict")
    losses = [one.number(one.run()) for _ in range(3)]
    assert losses[-1] < losses[0]
    before = dict(runtime._functions), dict(runtime._blas)
    counts = claims.counted_launches(one.run)
    assert (runtime._functions, runtime._blas) == before
    assert counts["adam"] == 1
    assert counts["products"] == 3 * 6 + 6  # of each linear map, and of the block's attention


@needs_kernels
def test_a_claim_that_cannot_be_checked_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupyx", fake_cupyx([]))
    task = make_task(Work("small", "training", "vit_micro_patch4_8", {"depth": 1}, 2), 1)
    found = claims.check_claims(minivit_side.prepare(task, "float32", "strict"), fake_memory())
    assert found["launches"]["adam"] == 1
    assert found["memory"]["driver_allocations"] == found["memory"]["pool_growth_bytes"] == 0
    assert not found["reads"]["found"]
    assert "AttributeError" in found["times"]["error"]  # the fake has no events


def test_the_work_of_a_device_is_summed_by_name() -> None:
    found = summed([("softmax", 2e-3), ("copy", 1e-3), ("softmax", 3e-3)])
    assert (found["launches"], found["busy_seconds"]) == (3, pytest.approx(6e-3))
    assert [(k["name"], k["calls"], k["seconds"]) for k in found["kernels"]] == [
        ("softmax", 2, pytest.approx(5e-3)),
        ("copy", 1, pytest.approx(1e-3)),
    ]
