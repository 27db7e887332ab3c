"""Trials of Python mutants: each replaces its function, and the tests of its op are run."""

from __future__ import annotations

import ast
import contextlib
import faulthandler
import functools
import importlib
import inspect
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from .operators import Mutant, mutants_of
from .verdicts import ROOT, Trial, Verdict, first_failure

DETAILS = "test_backward_details.py"
OP_TESTS = (DETAILS, "test_ops.py")
LAYER_TESTS = (DETAILS, "test_layers.py", "test_model.py", "test_masked.py")
KERNEL_TESTS = (
    *(DETAILS, "test_kernels.py", "test_kernels_extremes.py", "test_kernels_conv_stem.py"),
    *("test_ops.py", "test_layers.py"),
)
TESTS = tuple(dict.fromkeys(KERNEL_TESTS + OP_TESTS + LAYER_TESTS))
KERNELS = "minivit/kernels/numpy/"
LAYERS = "minivit/nn"
PARTS = {"winograd": "conv_stem"}  # files of a kernel that has its tests
BASES = ("layer.py", "interception.py")  # base classes, which compute nothing


@functools.cache
def find_mutants() -> list[Mutant]:
    """Return the mutants of all backward passes and derivatives, file by file."""
    files = [path for folder in ("minivit/ops", KERNELS, LAYERS) for path in sorted((ROOT / folder).glob("*.py"))]
    return [mutant for path in files for mutant in _mutants_in(path) if path.name not in BASES]


def _mutants_in(file: Path) -> Iterator[Mutant]:
    path = file.relative_to(ROOT).as_posix()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name.endswith("backward"):
                    yield from mutants_of(method, path, f"{node.name}.{method.name}", node.name)
        elif isinstance(node, ast.FunctionDef) and node.name.endswith(("_backward", "_derivative")):
            of_the_file = path.startswith(KERNELS) or node.name.endswith("_derivative")
            op = PARTS.get(file.stem, file.stem) if of_the_file else node.name.removesuffix("_backward")
            if file.parent.name in ("ops", "numpy") and node.name != "op_backward":
                yield from mutants_of(node, path, node.name, op)


def target(mutant: Mutant) -> FunctionType:
    """Return the function that is mutated, without decorators."""
    function: Any = importlib.import_module(mutant.path.removesuffix(".py").replace("/", "."))
    for name in mutant.function.split("."):
        function = getattr(function, name)
    unwrapped = inspect.unwrap(function)
    assert isinstance(unwrapped, FunctionType)
    return unwrapped


def install(mutant: Mutant) -> None:
    """Set the code of the function to the mutant's, so that every module that imported the function runs it."""
    function, scope = target(mutant), dict[str, Any]()
    exec(compile(mutant.source, mutant.path, "exec"), function.__globals__, scope)
    (changed,) = (value for value in scope.values() if isinstance(value, FunctionType))
    function.__code__ = changed.__code__


def belongs(test: str, op: str, known: Sequence[str]) -> bool:
    """Return whether the test with the node id `test` is a test of `op`, which is one of the `known` names.

    The op is found in the parameters of the test, as in ``test_gradient[layer_norm-float32]``, or, if they contain no
    known name, in the test's own name. All tests of test_model.py are tests of ViT.
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


def _draws_examples(item: pytest.Item) -> bool:
    return bool(getattr(getattr(item, "function", None), "is_hypothesis_test", False))


def verdict_of(trial: Trial, session: pytest.Session) -> Verdict:
    """Run the tests of the trial's op in this process."""
    from minivit import layers, ops

    known = [*ops.__all__, *layers.__all__, "ViT"]
    of_an_op = trial.path.startswith("minivit/ops/")
    files = OP_TESTS if of_an_op else KERNEL_TESTS if trial.path.startswith(KERNELS) else LAYER_TESTS
    own = [item for item in session.items if item.path.name in files and belongs(item.nodeid, trial.op, known)]
    items = [item for item in own if "-strict" not in item.name]  # those run the CUDA kernels
    # The order is by test function, so that the gradient of each case comes early; tests that draw examples come last.
    functions = list(dict.fromkeys(item.name.partition("[")[0] for item in items))
    items.sort(key=lambda item: (_draws_examples(item), functions.index(item.name.partition("[")[0])))
    if not items:
        raise RuntimeError(f"{trial.op} has no test in {' or '.join(files)}")
    # The mutant of an op is its reference, so kernels must not run; layers and kernels run as they are used.
    with Path(os.devnull).open("w") as nowhere, ops.reference_only() if of_an_op else contextlib.nullcontext():
        start = time.perf_counter()
        faulthandler.dump_traceback_later(trial.limit, exit=True, file=nowhere)
        if trial.mutant:
            install(trial.mutant)
        killer = first_failure(session, items)
        faulthandler.cancel_dump_traceback_later()
    return Verdict(killer, time.perf_counter() - start)
