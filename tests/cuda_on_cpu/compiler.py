"""Compilation of CUDA sources to shared libraries for the CPU, by g++; the libraries are cached on disk."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
# None: the tests that run CUDA kernels are skipped.
COMPILER = shutil.which("g++") if sys.platform == "linux" and os.environ.get("CUDA_ON_CPU") != "off" else None
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minivit" / "cuda_on_cpu"
# Every memory access calls access.cpp. Multiplications and additions are not fused. Libraries do not share statics.
KERNEL_FLAGS = (
    "-O1", "-fPIC", "-w", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-fno-gnu-unique",
    "-fsanitize=kernel-address", "--param", "asan-instrumentation-with-call-threshold=0", "--param", "asan-stack=0",
    "--param", "asan-globals=0", "-fsanitize=bounds-strict",
)  # fmt: skip

_IN_PARENTHESES = r"\(((?:[^()]|\([^()]*\))*)\)"
_BOUNDS = rf"(?:__launch_bounds__\s*{_IN_PARENTHESES}\s*)?"
_KERNEL = re.compile(rf"__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)")
_SHARED = re.compile(
    rf"__shared__\s+(?:(?:alignas|__align__)\s*{_IN_PARENTHESES}\s*)?([^;=,\[]*?)(\w+)\s*((?:\[[^];]*\])*)\s*;"
)


class CompileError(AssertionError):
    """The compiler rejected a source."""


@functools.cache
def block_library() -> Path:
    """Return the library that runs the threads of a block."""
    text = '#include "block.cpp"\n#include "access.cpp"\n'
    allow_longjmp = "-U_FORTIFY_SOURCE"  # some distributions define it, and it rejects jumps between fibers
    return _library(text, ("-std=c++17", "-O2", "-fPIC", allow_longjmp, f"-I{FOLDER}", "-x", "c++"))


def kernel_library(code: str, options: Sequence[str]) -> Path:
    """Return the library of the kernels of a CUDA source.

    Options other than macros, include folders and the language standard are ignored.
    """
    used = tuple(option for option in options if option.startswith(("-D", "-I", "-std=")))
    include = (f"-I{FOLDER}", "-include", "cuda_on_cpu.h", *used)
    return _library(f'{code}\n#include "launcher.h"\n', (*KERNEL_FLAGS, "-std=c++17", *used), include)


def translated(text: str) -> str:
    """Return preprocessed CUDA as C++: shared memory comes from the block, and kernels are described at the end."""
    descriptions: dict[str, str] = {}

    def kernel(match: re.Match[str]) -> str:
        before, after, name = match.groups()
        descriptions[name] = f"cuda_on_cpu::kernel_of<{name}>({before or after or 1024})"
        return f"void {name}"

    text = _KERNEL.sub(kernel, text)
    text = _SHARED.sub(r"static cuda_on_cpu::Shared<\2\4> \3_storage; auto& \3 = \3_storage.here();", text)
    if "__shared__" in text:
        raise CompileError(
            "shared memory must be declared one at a time as __shared__ TYPE NAME[SIZE]; or DYNAMIC_SHARED(TYPE, NAME);"
        )
    return text + "".join(
        f'extern "C" cuda_on_cpu::Kernel cuda_on_cpu_{name} = {description};\n'
        for name, description in descriptions.items()
    )


def _library(text: str, flags: Sequence[str], preprocess: Sequence[str] = ()) -> Path:
    """Return the shared library of a C++ text, or, with options for the preprocessor, of a CUDA text."""
    headers = [path.read_bytes() for path in _headers(preprocess)]
    parts = [os.path.realpath(str(COMPILER)).encode(), text.encode(), repr((*flags, *preprocess)).encode(), *headers]
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    path = CACHE / f"{digest[:32]}.so"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    if preprocess:
        text = translated(_run(["-E", *preprocess, "-x", "c++", "-"], text))
        flags = (*flags, "-x", "c++-cpp-output")
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:  # another process may compile the same text
        built = Path(folder, "kernels")
        _run([*flags, "-c", "-o", f"{built}.o", "-"], text)
        _run(["-shared", "-Wl,-Bsymbolic", "-o", f"{built}.so", f"{built}.o"])
        Path(f"{built}.so").replace(path)
    return path


def _headers(preprocess: Sequence[str]) -> Iterator[Path]:
    folders = [FOLDER, *(Path(option[2:]) for option in preprocess if option.startswith("-I"))]
    for folder in folders:
        yield from sorted(path for path in folder.glob("*") if path.suffix in (".h", ".cuh", ".cpp", ".py"))


def _run(arguments: Sequence[str], text: str = "") -> str:
    done = subprocess.run([str(COMPILER), *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"g++ rejects the source:\n{done.stderr}")
    return done.stdout
