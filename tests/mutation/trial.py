"""Trying mutants: each replaces the code of its function in a process of its own, and the tests of its op are run there.

pytest collects once. Where there is fork, a child starts from the collected tests, so that its time is that of the
tests alone; elsewhere it collects anew before its clock starts.
"""

from __future__ import annotations

import ast
import contextlib
import faulthandler
import importlib
import inspect
import io
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from tests.mutation.operators import Mutant, mutants_of

ROOT = Path(__file__).parent.parent.parent
TESTS = {
    "minivit/ops": ("tests/test_ops.py", "tests/test_backward_details.py"),
    "minivit": ("tests/test_layers.py", "tests/test_model.py", "tests/test_backward_details.py"),
}
_FORKS = "fork" in multiprocessing.get_all_start_methods()


@dataclass(frozen=True)
class Verdict:
    """What the tests said of a mutant: the one that failed, or none, or that they took too long."""

    killer: str | None
    seconds: float
    late: bool = False


@dataclass(frozen=True)
class Trial:
    """The tests of one op, run with a mutant or, for the baseline, without."""

    op: str
    mutant: Mutant | None
    limit: float


def find_mutants() -> list[Mutant]:
    """Return the mutants of all backward passes and derivatives, file by file."""
    files = [*sorted((ROOT / "minivit/ops").glob("*.py")), ROOT / "minivit/layers.py", ROOT / "minivit/vit.py"]
    return [mutant for path in files for mutant in _mutants_in(path)]


def _mutants_in(path: Path) -> Iterator[Mutant]:
    name = path.relative_to(ROOT).as_posix()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and path.parent.name == "ops":
            if node.name.endswith("_backward") or node.name.endswith("_derivative"):
                op = node.name.removesuffix("_backward") if node.name.endswith("_backward") else path.stem
                yield from mutants_of(node, name, node.name, op)
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "backward":
                    yield from mutants_of(method, name, f"{node.name}.backward", node.name)


def install(mutant: Mutant) -> None:
    """Make the function behave as the mutant, for everyone who has imported it, under whatever decorator."""
    module = importlib.import_module(mutant.path.removesuffix(".py").replace("/", "."))
    function: Any = module
    for name in mutant.function.split("."):
        function = getattr(function, name)
    function = inspect.unwrap(function)
    scope: dict[str, Any] = {}
    exec(compile(mutant.source, mutant.path, "exec"), vars(module).copy(), scope)
    changed = next(value for value in scope.values() if isinstance(value, FunctionType))
    function.__code__ = changed.__code__


def tests_of(op: str, ops: Sequence[str], names: Sequence[str]) -> list[bool]:
    """Tell which of the tests called `names` are those of `op`, one of `ops`.

    The parameters of a test, as in ``test_gradient[layer_norm-float32]``, say whose it is; where they name no op, its
    own name does. The tests of a model belong to it though they do not name it.
    """
    plain = {_plain(name) for name in ops}

    def belongs(name: str) -> bool:
        function, _, parameters = name.rpartition("::")[2].rstrip("]").partition("[")
        named = {part for part in map(_plain, parameters.split("-")) if part in plain}
        return _plain(op) in named if named else _plain(op) in _plain(function)

    return [belongs(name) or (op == "ViT" and "test_model.py" in name) for name in names]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def run_trials(trials: Sequence[Trial], workers: int, report: Callable[[Trial, Verdict], None]) -> None:
    """Run the trials, some at a time, and report each verdict when it is known.

    Raises
    ------
    RuntimeError
        The tests cannot be collected, or an op has none.
    """
    if _FORKS:
        _pytest(_Conductor(trials, workers, report))
    else:
        _conduct("spawn", _try_afresh, trials, workers, report)


@dataclass
class _Player:
    """A pytest plugin that runs the tests of one trial after collection."""

    trial: Trial
    failed: str | None = field(default=None, init=False)
    verdict: Verdict | None = field(default=None, init=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        trial = self.trial
        items = _items_of(trial.op, session)
        session.config.pluginmanager.register(self) if not session.config.pluginmanager.is_registered(self) else None
        faulthandler.dump_traceback_later(trial.limit, exit=True, file=Path(os.devnull).open("w"))
        start = time.perf_counter()
        if trial.mutant:
            install(trial.mutant)
        from minivit.ops import reference_only

        with reference_only():
            for item, following in zip(items, [*items[1:], None], strict=True):
                session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.failed:
                    break
        faulthandler.cancel_dump_traceback_later()
        self.verdict = Verdict(self.failed, time.perf_counter() - start)
        return True
