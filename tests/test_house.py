"""The house: a file imports only from its own floor and those below it, and CuPy has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "minivit"

# From the ground up; a name stands for a module or for all modules of a package.
FLOORS = [
    ["errors"],
    ["arrays"],
    ["keys", "ops.shapes", "ops.registry", "precision"],
    ["ops", "kernels"],
    ["parameters"],
    ["initializers", "layer"],
    ["layers", "config"],
    ["vit"],
    ["presets", "machine", "files"],
    ["checking", "testing", "cases"],
    ["data", "weights"],
    ["team", "micro_batches"],
    ["crew", "device_step"],
    ["engine"],
    ["train.updates"],
    ["train.optim", "train.schedules"],
    ["train.recipe", "train.guard", "train.tally"],
    ["train.progress"],
    ["runs", "inspect"],
    ["train.evaluate", "train.feed", "train.interrupt", "train.memory", "train.reporter", "train.setup"],
    ["train.not_finite"],
    ["train.steps"],
    ["train.measures"],
    ["train.loop"],
    ["reporters", "terminal"],
    ["commands"],
    ["cli", "__main__"],
]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def floor_of(module: str) -> int:
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next(floor for name in names for floor, rooms in enumerate(FLOORS) if name in rooms)


def imports_of(path: Path) -> set[str]:
    """Return the modules of minivit that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minivit"):
            base = node.module.removeprefix("minivit").strip(".")
            inside = [f"{base}.{alias.name}".strip(".") for alias in node.names]
            modules = [name for name in inside if is_module(name)]
            found.update(modules or [base])
    return found - {""}


def is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


# The package's own front doors gather what is inside.
FILES = sorted(path for path in PACKAGE.rglob("*.py") if name_of(path) not in ("", "train"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_from_its_own_floor_and_those_below(path: Path) -> None:
    floor = floor_of(name_of(path))
    assert {name for name in imports_of(path) if floor_of(name) > floor} == set()


def test_only_one_file_of_arrays_and_kernels_import_cupy() -> None:
    """Names in texts, such as the choice of a backend, are no imports."""
    doors = set()
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported += [
            str(argument.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("importlib.")
            for argument in node.args
            if isinstance(argument, ast.Constant)
        ]
        if any(name.partition(".")[0] == "cupy" for name in imported):
            doors.add(name_of(path))
    assert {name for name in doors if not name.startswith("kernels")} == {"arrays.cuda"}


def test_no_op_raises_an_array_to_a_whole_power() -> None:
    """x**3 takes a hundred times as long as x * x * x."""
    for path in (PACKAGE / "ops").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
                assert ast.unparse(node.right) == "-0.5", f"{path.name}: {ast.unparse(node)}"


def test_importing_minivit_needs_numpy_and_threadpoolctl_alone() -> None:
    """Whatever else is imported would be missing where only these two are installed."""
    code = (
        "import sys\n"
        "import numpy.random, threadpoolctl\n"
        "before = set(sys.modules)\n"
        "import minivit\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names - {'minivit', 'numpy', 'threadpoolctl'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
