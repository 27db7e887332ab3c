"""Trying mutants: each takes its function's place in a process of its own, where the tests of its op are run.

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
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from .operators import Mutant, mutants_of

ROOT = Path(__file__).parent.parent.parent
DETAILS = "test_backward_details.py"
OP_TESTS = (DETAILS, "test_ops.py")
LAYER_TESTS = (DETAILS, "test_layers.py", "test_model.py")
KERNEL_TESTS = (DETAILS, "test_kernels.py", "test_kernels_extremes.py", "test_ops.py", "test_layers.py")
KERNELS = "minivit/kernels/"


@dataclass(frozen=True)
class Trial:
    """The tests of one op, run with a mutant or, as the baseline, without."""

    op: str
    path: str  # of the file that holds the op or its rival
    limit: float  # seconds
    mutant: Mutant | None = None


@dataclass(frozen=True)
class Verdict:
    """The test that failed first, or None; `late` says that the time ran out."""

    killer: str | None
    seconds: float
    late: bool = False


def find_mutants() -> list[Mutant]:
    """Return the mutants of all backward passes and derivatives, file by file."""
    ops, kernels = (sorted((ROOT / folder).glob("*.py")) for folder in ("minivit/ops", KERNELS))
    files = [*ops, *kernels, ROOT / "minivit/layers.py", ROOT / "minivit/vit.py"]
    return [mutant for path in files for mutant in _mutants_in(path)]


def _mutants_in(file: Path) -> Iterator[Mutant]:
    path = file.relative_to(ROOT).as_posix()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "backward":
                    yield from mutants_of(method, path, f"{node.name}.backward", node.name)
        elif isinstance(node, ast.FunctionDef) and node.name.endswith(("_backward", "_derivative")):
            of_the_file = path.startswith(KERNELS) or node.name.endswith("_derivative")
            op = file.stem if of_the_file else node.name.removesuffix("_backward")
            if file.parent.name in ("ops", "kernels") and node.name != "op_backward":
                yield from mutants_of(node, path, node.name, op)


def target(mutant: Mutant) -> FunctionType:
    """Return the function that is mutated, as it stands under any decorator."""
    function: Any = importlib.import_module(mutant.path.removesuffix(".py").replace("/", "."))
    for name in mutant.function.split("."):
        function = getattr(function, name)
    unwrapped = inspect.unwrap(function)
    assert isinstance(unwrapped, FunctionType)
    return unwrapped


def install(mutant: Mutant) -> None:
    """Give the function the mutant's code, so that whoever has imported it runs that."""
    function, scope = target(mutant), dict[str, Any]()
    exec(compile(mutant.source, mutant.path, "exec"), function.__globals__, scope)
    (changed,) = (value for value in scope.values() if isinstance(value, FunctionType))
    function.__code__ = changed.__code__


def belongs(test: str, op: str, known: Sequence[str]) -> bool:
    """Tell whether the test with the node id `test` is one of `op`, itself one of the `known` names.

    The parameters of a test, as in ``test_gradient[layer_norm-float32]``, say whose it is; where they name nothing
    known, its own name does. The tests of test_model.py are ViT's though they do not name it.
    """
    file, _, name = test.rpartition("::")
    function, _, parameters = name.rstrip("]").partition("[")
    plain = {_plain(name) for name in known}
    named = {part for part in map(_plain, re.split("[-:.]", parameters)) if part in plain}
    if op == "ViT" and file.endswith("test_model.py"):
        return True
    return _plain(op) in named if named else _plain(op) in _plain(function)


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


def run_trials(trials: Sequence[Trial], workers: int, report: Callable[[Trial, Verdict], None]) -> None:
    """Run the trials, `workers` at a time, and report each verdict when it is known.

    Raises
    ------
    RuntimeError
        The tests cannot be collected, an op has none, or a process ends without a verdict.
    """
    if "fork" in multiprocessing.get_all_start_methods():
        _collect(lambda session: _conduct(multiprocessing.get_context("fork"), session, trials, workers, report))
    else:
        _conduct(multiprocessing.get_context("spawn"), None, trials, workers, report)


def _conduct(
    context: Any,
    session: pytest.Session | None,
    trials: Sequence[Trial],
    workers: int,
    report: Callable[[Trial, Verdict], None],
) -> None:
    waiting, running = list(reversed(trials)), dict[Connection, tuple[Trial, Any, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                trial = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_play, args=(trial, session, theirs))
                process.start()
                theirs.close()
                running[ours] = trial, process, time.perf_counter()
            ready: list[Any] = wait(list(running))
            for connection in ready:
                trial, process, start = running.pop(connection)
                report(trial, _heard(connection, trial, process, start))
    finally:
        for _, process, _ in running.values():
            process.terminate()


def _heard(connection: Connection, trial: Trial, process: Any, start: float) -> Verdict:
    try:
        answer: Verdict | RuntimeError = connection.recv()
    except EOFError:
        answer = Verdict(None, time.perf_counter() - start, late=True)
    process.join()
    if isinstance(answer, RuntimeError):
        raise answer
    if answer.late and answer.seconds < trial.limit:
        raise RuntimeError(f"the process of a trial died with exit status {process.exitcode}: {trial}")
    return answer


def _play(trial: Trial, session: pytest.Session | None, answer: Connection) -> None:
    """Run a trial in a process of its own."""
    try:
        if session is None:
            _collect(lambda session: answer.send(_verdict(trial, session)))
        else:
            answer.send(_verdict(trial, session))
    except RuntimeError as error:
        answer.send(error)


def _verdict(trial: Trial, session: pytest.Session) -> Verdict:
    from minivit import layers, ops

    known = [*ops.__all__, *layers.__all__, "ViT"]
    of_an_op = trial.path.startswith("minivit/ops/")
    files = OP_TESTS if of_an_op else KERNEL_TESTS if trial.path.startswith(KERNELS) else LAYER_TESTS
    items = [item for item in session.items if item.path.name in files and belongs(item.nodeid, trial.op, known)]
    # A test for all its parameters, and then the next: the gradient of each case comes early.
    functions = list(dict.fromkeys(item.name.partition("[")[0] for item in items))
    items.sort(key=lambda item: functions.index(item.name.partition("[")[0]))
    if not items:
        raise RuntimeError(f"{trial.op} has no test in {' or '.join(files)}")
    failures = _Failures()
    session.config.pluginmanager.register(failures)
    # An op is mutated in its reference, which rivals would hide; a layer and a rival run as they are used.
    with Path(os.devnull).open("w") as nowhere, ops.reference_only() if of_an_op else contextlib.nullcontext():
        start = time.perf_counter()
        faulthandler.dump_traceback_later(trial.limit, exit=True, file=nowhere)
        if trial.mutant:
            install(trial.mutant)
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if failures.first:
                break
        faulthandler.cancel_dump_traceback_later()
    return Verdict(failures.first, time.perf_counter() - start)


class _Failures:
    """A pytest plugin that notes the first test that fails."""

    first: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.first is None:
            self.first = report.nodeid


class _Stage:
    """A pytest plugin that does something else with the collected tests than running them all."""

    error: Exception | None = None

    def __init__(self, then: Callable[[pytest.Session], None]) -> None:
        self.then = then

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        import hypothesis  # not before pytest, which rewrites its assertions

        # The same examples for every mutant, and the first failing one is enough.
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile(
            "mutants", hypothesis.settings.default, phases=phases, derandomize=True, database=None, deadline=None
        )
        hypothesis.settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed:
            return None
        try:
            self.then(session)
        except Exception as error:
            self.error = error
        return True


def _collect(then: Callable[[pytest.Session], None]) -> None:
    stage, output = _Stage(then), io.StringIO()
    files = [str(ROOT / "tests" / name) for name in dict.fromkeys(KERNEL_TESTS + OP_TESTS + LAYER_TESTS)]
    options = ["-n", "0", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-s", "--tb=native", f"--rootdir={ROOT}"]
    with contextlib.redirect_stdout(output):
        status = pytest.main([*options, *files], plugins=[stage])
    if stage.error:
        raise stage.error
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest cannot collect the tests\n{output.getvalue()}")
