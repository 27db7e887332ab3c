"""NVIDIA's compilers, nvcc and NVRTC, from their wheels: neither a GPU nor an installed CUDA toolkit is needed.

    pip install 'minivit[test]' cupy-cuda13x 'cuda-toolkit[cccl,nvcc,nvrtc]==13.*'
    python tests/cuda/compilers.py softmax

prints the registers and memory that each kernel of softmax.cu uses; without a name, those of all files. This folder has
no ``__init__.py``: a package called cuda would hide NVIDIA's, which CuPy imports.
"""

from __future__ import annotations

import importlib
import inspect
import io
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from minivit.arrays import dtype_named
from minivit.kernels.cuda import runtime

INSTALL = "pip install cupy-cuda13x 'cuda-toolkit[cccl,nvcc,nvrtc]==13.*'"
ARCHITECTURES = ("80", "90")

# Warnings and spilled registers are errors.
STRICT = ("-Werror=all-warnings", *(f"--ptxas-options={option}" for option in ("-v", "--warn-on-spills", "-Werror")))
# The option that CuPy adds for every kernel: denormal float32 numbers are flushed to zero.
CUPYS_OWN = ("-ftz=true",)


class CompileError(Exception):
    """The compiler rejected a source; the message is the compiler's."""


class Kernel(NamedTuple):
    """The resources of a kernel: registers and bytes of stack of a thread, bytes of static shared memory of a block."""

    name: str
    registers: int
    stack: int
    shared: int


def variants(name: str, dtype: str) -> list[tuple[str, ...]]:
    """Return the options of all variants of the file `name` for `dtype`."""
    of_rows = "Row<" in (runtime.FOLDER / f"{name}.cu").read_text(encoding="utf-8")
    lanes = runtime.lanes_of(dtype_named(dtype)) if of_rows else []
    return [runtime.options(dtype, one) for one in (None, *lanes)]


def find_nvcc() -> Path:
    """Return the nvcc that is installed as a Python package."""
    files = metadata.files("nvidia-cuda-nvcc") or []
    return next(Path(str(file.locate())) for file in files if file.name == "nvcc")


def nvcc(source: str, options: tuple[str, ...], arch: str) -> list[Kernel]:
    """Compile `source` with nvcc and return its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cu"
        file.write_text(source, encoding="utf-8")
        command = [str(find_nvcc()), "-cubin", f"-arch=sm_{arch}", *options, *CUPYS_OWN, *STRICT, file.name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise CompileError(done.stdout + done.stderr)
    return _kernels(done.stdout + done.stderr)


def nvrtc(source: str, options: tuple[str, ...], arch: str) -> list[Kernel]:
    """Compile `source` with NVRTC as CuPy's RawModule does, without loading it, and return its kernels."""
    compiler = importlib.import_module("cupy.cuda.compiler")
    core = importlib.import_module("cupy._core.core")
    log = io.StringIO()
    # CuPy caches this function for each device, and the cache would need a device.
    choose = mock.patch.object(
        compiler,
        "_get_arch_for_options_for_nvrtc",
        inspect.unwrap(compiler._get_arch_for_options_for_nvrtc),
    )
    options = core.assemble_cupy_compiler_options(options) + CUPYS_OWN + STRICT
    try:
        with choose:
            compiler.compile_using_nvrtc(source, options, arch, "kernels.cu", log_stream=log)
    except compiler.CompileException as error:
        raise CompileError(str(error)) from error
    return _kernels(log.getvalue())


COMPILERS = {"nvcc": nvcc, "nvrtc": nvrtc}


def _kernels(log: str) -> list[Kernel]:
    """Return the kernels in the log of the assembler."""
    kernels = []
    for name, report in re.findall(r"Compiling entry function '(\w+)'(.*?)Compile time", log, re.DOTALL):
        numbers = [
            re.search(pattern, report) for pattern in (r"Used (\d+) reg", r"(\d+) bytes stack", r"(\d+) bytes smem")
        ]
        kernels.append(Kernel(name, *(int(number[1]) if number else 0 for number in numbers)))
    return kernels


def report(name: str, dtype: str, arch: str) -> str:
    """Return a table of the resources of the kernels of a file."""
    kernels = nvrtc(runtime.source(name), runtime.options(dtype), arch)
    rows = [f"  {kernel.name:40}{kernel.registers:5}{kernel.stack:7}{kernel.shared:7}" for kernel in kernels]
    return "\n".join([f"{name}.cu, {dtype}, sm_{arch}: registers, stack, static shared memory", *rows, "\n"])


if __name__ == "__main__":
    for file, dtype, arch in product(sys.argv[1:] or runtime.sources(), runtime.TYPES, ARCHITECTURES):
        sys.stdout.write(report(file, dtype, arch))
