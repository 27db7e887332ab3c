"""Stand-ins for a GPU that is measured: its clock, its memory pool, and processes that measure there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

from benchmarks.harness import WorkerError


class FakeWorker:
    """A process with a time of its own, or with an error."""

    def __init__(self, milliseconds: float | str) -> None:
        self._milliseconds = milliseconds
        self.closed = False

    def reply(self, seconds: float) -> dict[str, Any]:
        if isinstance(self._milliseconds, str):
            raise WorkerError(self._milliseconds)
        return {"answer": 2.3, "seconds_to_first": 1.0, "versions": {"PyTorch": "2"}}

    def measure(self, duration: float, seconds: float) -> dict[str, Any]:
        assert isinstance(self._milliseconds, float)
        return {"seconds": [1e-3 * self._milliseconds] * 3, "peak_bytes": 1e9}

    def close(self) -> None:
        self.closed = True


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
        """Queue work, which takes the host and the device their time."""
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


class FakeHook:
    current: Any = None

    def __enter__(self) -> None:
        FakeHook.current = self

    def __exit__(self, *_: object) -> None:
        FakeHook.current = None


class DeviceSynchronizedError(RuntimeError):
    """As in CuPy."""


def fake_cupyx() -> Any:
    """Return a cupyx that notes in `allowed` whether the host may wait for the device."""
    module: Any = ModuleType("cupyx")
    module.allowed = [True]

    @contextmanager
    def allow_synchronize(allow: bool) -> Iterator[None]:
        module.allowed[:] = [allow]
        yield
        module.allowed[:] = [True]

    module.allow_synchronize, module.DeviceSynchronized = allow_synchronize, DeviceSynchronizedError
    return module


FIGURES: dict[str, Any] = {
    "kernels": {"tiny": [{"name": "gelu", "of_copy": 0.6, "bar": "below"}, {"name": "embed", "error": "MemoryError"}]},
    "products": {"tiny": {"square_flops_a_second": 7e14, "rows": [{"name": "1 x (8, 8) @ (8, 8)", "times": 12}]}},
    "claims": {"tiny": {"launches": {"adam": 1, "product": 60}, "reads": {"found": False, "where": ""}}},
}


class FakePart:
    """The process of a part."""

    def __init__(self, module: str, part: str, precision: str) -> None:
        self.part, self.precision = part, precision

    def reply(self, timeout: float) -> dict[str, Any]:
        if (self.part, self.precision) == ("products", "tf32"):
            raise WorkerError("RuntimeError: no cuBLAS")
        return {"figures": FIGURES[self.part], "versions": {"cupy": "14.2"}}

    def close(self) -> None:
        """End."""
