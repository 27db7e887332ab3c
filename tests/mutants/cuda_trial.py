"""Trials of mutants of the CUDA sources: the mutant is compiled for a CPU, and the tests that launch it are run.

All tests run once without a mutant to record the kernels that each launches. The first tests in a trial are those that
have killed most mutants of the same function, then those in float64, which is compiled first, then the fastest. float16
is left out, since bfloat16 runs the same code. A launch that fails, crashes or does not end kills the mutant.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from .cuda_operators import mutants_of_source
from .cuda_text import kernels_with
from .operators import Mutant
from .verdicts import ROOT, Trial, Verdict, first_failure

FOLDER = ROOT / "minivit/kernels/cuda"
TESTS = ("test_cuda_kernels.py", "test_grad_scaler.py")
TestsOf: TypeAlias = dict[tuple[str, str], dict[pytest.Item, float]]
KillsOf: TypeAlias = Counter[tuple[str, str, str]]  # mutants killed, by file, function and test
CAN_RUN = sys.platform == "linux" and shutil.which("g++") is not None
_SLOWER = 20  # a test that takes this many times as long as without a mutant is taken not to end


@functools.cache
def find_cuda_mutants() -> list[Mutant]:
    """Return the mutants of all CUDA sources, file by file."""
    return [mutant for path in sorted(FOLDER.glob("*.cu*")) for mutant in _mutants_in(path)]


def _mutants_in(path: Path) -> list[Mutant]:
    return mutants_of_source(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix(), path.name)


def tests_of(mutants: Sequence[Mutant], session: pytest.Session) -> TestsOf:
    """Return the tests of each changed function of a file, with the seconds that they take without a mutant.

    Raises
    ------
    RuntimeError
        A test fails without a mutant, or a function has no test.
    """
    seen = _see(session)
    tests: TestsOf = {}
    for path, function in dict.fromkeys((mutant.path, mutant.function) for mutant in mutants):
        kernels = _kernels_with(path, function)
        tests[path, function] = {item: took for item, took, launched in seen if launched & kernels}
        if not tests[path, function]:
            raise RuntimeError(f"{function} of {path} has no test in {' or '.join(TESTS)}")
    return tests


def _kernels_with(path: str, function: str) -> set[str]:
    from minivit.kernels.cuda import runtime

    return set[str]().union(*(kernels_with(runtime.source(name), function) for name in _sources_with(path)))


def _sources_with(path: str) -> list[str]:
    """Return the names of the sources that are or include the file."""
    file = Path(path)
    line = f'#include "{file.name}"'
    sources = sorted(FOLDER.glob("*.cu"))
    return [source.stem for source in sources if source.name == file.name or line in source.read_text(encoding="utf-8")]


def _see(session: pytest.Session) -> list[tuple[pytest.Item, float, set[str]]]:
    """Run the tests of the kernels once, and return the seconds and the launched kernels of each."""
    from cuda_on_cpu.emulator import Kernel

    own = [item for item in session.items if item.path.name in TESTS]
    items = [item for item in own if "float16" not in item.name.replace("bfloat16", "")]
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
    turns = {"float64": 0, "float32": 2, "bfloat16": 3}
    return next((turn for dtype, turn in turns.items() if dtype in parameters), 1)


def in_turn(trial: Trial, seconds: dict[pytest.Item, float], kills: KillsOf) -> list[pytest.Item]:
    """Return the tests of a trial, frequent killers first; for an equivalent mutant, as many as the limit allows."""
    assert trial.mutant is not None
    if trial.is_equivalent:
        return [item for item, until in zip(seconds, accumulate(seconds.values()), strict=True) if until <= trial.limit]
    path, function = trial.mutant.path, trial.mutant.function
    return sorted(seconds, key=lambda item: -kills[path, function, item.nodeid])


def verdict_of(trial: Trial, session: pytest.Session, tests: TestsOf, kills: KillsOf, scratch: str) -> Verdict:
    """Run the tests of the kernels that contain the mutant, in this process."""
    assert trial.mutant is not None
    watchdog = _Watchdog(trial.limit)
    start = time.perf_counter()
    seconds = tests[trial.mutant.path, trial.mutant.function]
    with tempfile.TemporaryDirectory(dir=scratch) as folder, _installed(trial.mutant, folder, watchdog):
        killer = first_failure(session, in_turn(trial, seconds, kills), lambda item: watchdog.watch(seconds[item]))
        watchdog.stop()
    return Verdict(killer, time.perf_counter() - start, compiles=watchdog.compiles)


def verdict_on_death(status: int, seconds: float) -> Verdict:
    """Return the verdict on a mutant whose process ended without one."""
    return Verdict("a kernel that does not end" if status == 1 else f"a crash with exit status {status}", seconds)


class _Watchdog:
    """Ends the process if a test takes too long; the time of the compiler does not count."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.compiles = True
        self._seconds = 0.0
        self._nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends

    def watch(self, seconds: float) -> None:
        """Start the clock for a test that takes this many seconds without a mutant."""
        self._seconds = max(self.limit, _SLOWER * seconds)
        self.start()

    def start(self) -> None:
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._nowhere)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def _installed(mutant: Mutant, folder: str, watchdog: _Watchdog) -> Iterator[None]:
    """Replace the source by the mutant, to be compiled in `folder`."""
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
