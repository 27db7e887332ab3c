"""Every kernel is in a source file, and Python and CUDA agree on its name and on the width of its scalars."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import minivit
from minivit.kernels.cuda import runtime

KERNEL = re.compile(r'extern "C" __global__ void(?: __launch_bounds__\(.*?\))? (\w+)\((.*?)\)', re.DOTALL)

PARAMETERS = {
    (file, name): [parameter.strip() for parameter in parameters.split(",")]
    for file in runtime.sources()
    for name, parameters in KERNEL.findall(runtime.source(file))
}


def names_in(node: ast.expr) -> list[str]:
    """Return the strings in an expression."""
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def launched() -> set[tuple[str, str]]:
    """Return the file and the name of every kernel that the package launches."""
    found: set[tuple[str, str]] = set()
    for path in Path(minivit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("launch"):
                file, functions = node.args[:2]  # the second may be a choice between two names
                found.update((ast.literal_eval(file), name) for name in names_in(functions))
    return found


def test_every_kernel_is_launched_and_every_launched_kernel_exists() -> None:
    assert launched() == PARAMETERS.keys()


def test_the_pattern_finds_every_kernel() -> None:
    """A kernel declared in another form would be missed by these tests."""
    for file in runtime.sources():
        assert runtime.source(file).count("__global__") == len(KERNEL.findall(runtime.source(file))), file


def test_every_scalar_has_eight_bytes() -> None:
    """CuPy passes a Python int as eight bytes and a float as a double, whatever the type of the parameter."""
    for kernel, parameters in PARAMETERS.items():
        for parameter in parameters:
            assert "*" in parameter or parameter.split()[0] in ("size", "double"), f"{kernel}: {parameter}"


def test_no_kernel_is_generated_by_cupy() -> None:
    """Kernels that CuPy generates could be compiled and tested on a GPU alone."""
    hidden = {"ElementwiseKernel", "ReductionKernel", "RawKernel", "fuse", "vectorize"}
    for path in Path(minivit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            assert name not in hidden, f"{path.name}: {name}"
