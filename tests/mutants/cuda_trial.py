"""Trying mutants of the CUDA sources: what contains one is compiled for a CPU, and the tests that launch it are run.

Which those are is seen while all tests run once without a mutant. Of them, float64 comes first, for it is compiled
first, and then what is quick; half precision is left out. A launch that fails, crashes or never ends kills.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from .cuda_operators import mutants_of_source
from .cuda_text import kernels_with
from .operators import Mutant
from .verdicts import ROOT, Trial, Verdict, first_failure

FOLDER = ROOT / "minivit/kernels/cuda"
TESTS = ("test_cuda_kernels.py", "test_guard.py")
TestsOf: TypeAlias = dict[tuple[str, str], dict[pytest.Item, float]]
CAN_RUN = sys.platform == "linux" and shutil.which("g++") is not None
_SLOWER = 20  # a test that takes so many times as long as without a mutant never ends


def find_cuda_mutants() -> list[Mutant]:
    """Return the mutants of all CUDA sources, file by file."""
    return [mutant for path in sorted(FOLDER.glob("*.cu*")) for mutant in _mutants_in(path)]


def _mutants_in(path: Path) -> list[Mutant]:
    return mutants_of_source(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix(), path.name)


def tests_of(mutants: Sequence[Mutant], session: pytest.Session) -> TestsOf:
    """Return the tests that concern each changed function of a file, with the seconds that they take without a mutant.

    Raises
    ------
    RuntimeError
        A test fails.
    """
    seen = _see(session)
    return {
        (path, function): {item: took for item, took, launched in seen if launched & _kernels_with(path, function)}
        for path, function in dict.fromkeys((mutant.path, mutant.function) for mutant in mutants)
    }


def _kernels_with(path: str, function: str) -> set[str]:
    from minivit.kernels.cuda import runtime

    return set[str]().union(*(kernels_with(runtime.source(name), function) for name in _sources_with(path)))


def _sources_with(path: str) -> list[str]:
    """Return the names of the sources that are, or include, a file."""
    file = Path(path)
    line = f'#include "{file.name}"'
    sources = sorted(FOLDER.glob("*.cu"))
    return [source.stem for source in sources if source.name == file.name or line in source.read_text(encoding="utf-8")]


def _see(session: pytest.Session) -> list[tuple[pytest.Item, float, set[str]]]:
    """Run the tests of the kernels once, and return the seconds and the launched kernels of each."""
    from cuda_on_cpu.emulator import Kernel

    items = [item for item in session.items if item.path.name in TESTS and "float16" not in item.name]
    seen = []
    launched = set[str]()
    call = Kernel.__call__

    def noting(kernel: Kernel, *args: Any, **kwargs: Any) -> None:
        launched.add(kernel.name)
        call(kernel, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernel, "__call__", noting)
        for item in items:
            launched.clear()
            start = time.perf_counter()
            if failed := first_failure(session, [item]):
                raise RuntimeError(f"the tests of the CUDA kernels fail without a mutant: {failed}")
            seen.append((item, time.perf_counter() - start, set(launched)))
    return sorted(seen, key=lambda test: (_compiled_late(test[0]), test[1]))


def _compiled_late(item: pytest.Item) -> int:
    parameters = item.name.partition("[")[2]
    return 0 if "float64" in parameters else 2 if "float32" in parameters else 1


def verdict_of(trial: Trial, session: pytest.Session, tests: TestsOf, scratch: str) -> Verdict:
    """Run the tests of the kernels that contain the mutant in this process."""
    assert trial.mutant is not None
    watchdog = _Watchdog(trial.limit)
    start = time.perf_counter()
    seconds = tests[trial.mutant.path, trial.mutant.function]
    with tempfile.TemporaryDirectory(dir=scratch) as folder, _installed(trial.mutant, folder, watchdog):
        killer = first_failure(session, list(seconds), lambda item: watchdog.watch(seconds[item]))
        watchdog.stop()
    return Verdict(killer, time.perf_counter() - start, compiles=watchdog.compiles)


def verdict_on_death(status: int, seconds: float) -> Verdict:
    """Return the verdict on a mutant with which the process of its trial ended at once."""
    return Verdict("a kernel that never ends" if status == 1 else f"a crash with exit status {status}", seconds)


class _Watchdog:
    """Ends the process when a test takes too long; the compiler may take its time."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.compiles = True
        self._seconds = 0.0
        self._nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - it lives as long as the process

    def watch(self, seconds: float) -> None:
        """Begin with a test that should take so many seconds."""
        self._seconds = max(self.limit, _SLOWER * seconds)
        self.start()

    def start(self) -> None:
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._nowhere)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def _installed(mutant: Mutant, folder: str, watchdog: _Watchdog) -> Iterator[None]:
    """Put a mutant in the place of its source, to be compiled in `folder`."""
    from cuda_on_cpu import compiler

    from minivit.kernels.cuda import runtime

    read, compiled = runtime._text, compiler.kernel_library

    def text(name: str) -> str:
        return mutant.source if name == mutant.op else read(name)

    def library(*args: Any) -> Path:
        watchdog.stop()
        try:
            return compiled(*args)
        except compiler.CompileError:
            watchdog.compiles = False
            raise
        finally:
            watchdog.start()

    sources = _sources_with(mutant.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "_text", text)
        patch.setattr("cuda_on_cpu.emulator.kernel_library", library)
        patch.setattr(compiler, "CACHE", Path(folder))
        for key in [key for key in runtime._functions if not set(sources).isdisjoint(key)]:
            del runtime._functions[key]
        yield
