"""The layout of the package: one order of its parts, no import that runs upward, and one file that imports CuPy."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "minivit"

# A part imports from itself and from those after it.
ORDER = (
    "cli",
    "explorer",
    "train",
    "tracing",
    "weights",
    "data",
    "checking",
    "engine",
    "nn",
    "kernels",
    "ops",
    "random",
    "arrays",
    "files",
    "errors",
)
# Modules that users import and the package does not.
PUBLIC = ("__main__", "layers", "testing")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports_of(path: Path) -> frozenset[str]:
    """Return the modules of minivit that a file imports, anywhere in it."""
    return imports_in(parsed(path))


def imports_in(tree: ast.Module) -> frozenset[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".", 1) for alias in node.names]
            found.update(name[1] for name in names if name[0] == "minivit" and len(name) == 2)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import: {ast.unparse(node)}"
            package, _, base = (node.module or "").partition(".")
            if package == "minivit":
                inside = [f"{base}.{alias.name}".strip(".") for alias in node.names]
                modules = [name for name in inside if is_module(name)]
                found.update(modules or [base])
    return frozenset(found - {""})


def is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


FILES = sorted(path for path in PACKAGE.rglob("*.py") if name_of(path))
PARTS = sorted(path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())


def test_the_top_level_has_at_most_twelve_packages_and_five_modules() -> None:
    packages = [path.name for path in PARTS if path.is_dir()]
    modules = [path.stem for path in PARTS if path.is_file() and path.stem not in ("__init__", "__main__")]
    assert {*packages, *modules} <= {*ORDER, *PUBLIC}
    assert len(packages) <= 12
    assert len(modules) <= 5


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_import_runs_upward(path: Path) -> None:
    part = name_of(path).partition(".")[0]
    allowed = ORDER[ORDER.index(part) :] if part in ORDER else ORDER
    assert {name for name in imports_of(path) if name.partition(".")[0] not in allowed} == set()


def test_every_form_of_an_import_is_found() -> None:
    code = "import minivit.nn.vit as vit, minivit, minivitx.y\nfrom minivit import ops, UserError"
    assert imports_in(ast.parse(code)) == {"nn.vit", "ops"}
    assert imports_in(ast.parse("from minivit.nn import vit\nfrom minivitx.y import z")) == {"nn.vit"}
    for relative in ("from . import errors", "from ..errors import UserError"):
        with pytest.raises(AssertionError, match="a relative import: from"):
            imports_in(ast.parse(relative))


def test_no_two_modules_import_each_other() -> None:
    """Modules whose imports are all removed are removed, repeatedly; a circle would remain."""
    imports = {name_of(path): imports_of(path) - {name_of(path)} for path in FILES}
    while free := {name for name, needs in imports.items() if not needs & imports.keys()}:
        imports = {name: needs for name, needs in imports.items() if name not in free}
    assert imports == {}


def test_only_one_file_of_arrays_and_the_kernels_import_cupy() -> None:
    """The name in a string, such as the choice of a backend, is not an import."""
    found = set()
    for path in FILES:
        tree = parsed(path)
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
            found.add(name_of(path))
    assert {name for name in found if not name.startswith("kernels")} == {"arrays.cuda"}


def powers_in(tree: ast.Module) -> list[str]:
    """Return the exponents in a file."""
    return [
        ast.unparse(node.value if isinstance(node, ast.AugAssign) else node.right)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Pow)
    ]


def test_no_op_raises_an_array_to_a_whole_power() -> None:
    """x**3 takes a hundred times as long as x * x * x."""
    assert sorted(powers_in(ast.parse("y = x**3\ny **= 2"))) == ["2", "3"]
    for path in (PACKAGE / "ops").glob("*.py"):
        assert {*powers_in(parsed(path))} <= {"-0.5", "steps"}, path.name  # powers of scalars


def test_importing_minivit_needs_numpy_and_threadpoolctl_alone() -> None:
    """Other libraries are imported only when they are used."""
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


def test_importing_minivit_does_not_import_the_gradient_check_and_traces() -> None:
    """They are half of the time of the import; their public names are imported on use, and are listed."""
    code = (
        "import sys\n"
        "import minivit\n"
        "print(any(name.startswith(('minivit.checking', 'minivit.tracing')) for name in sys.modules))\n"
        "print(set(minivit.__all__) <= set(dir(minivit)), all(hasattr(minivit, name) for name in minivit.__all__))\n"
        "print(minivit.trace.__module__, minivit.testing.__name__, hasattr(minivit, 'nothing'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False", "True True", "minivit.tracing.trace minivit.testing False"]
