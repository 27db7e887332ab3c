"""The mutation test makes the expected mutants, installs and runs them correctly, and kills all mutants of softmax."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mutants import cuda_trial
from mutants.__main__ import EQUIVALENT, CannotJudgeError, main, read_equivalent, summary
from mutants.cuda_operators import mutants_of_source
from mutants.cuda_text import kernels_with
from mutants.cuda_trial import KillsOf, find_cuda_mutants, in_turn
from mutants.operators import Mutant, mutants_of
from mutants.python_trial import KERNELS, PARTS, belongs, find_mutants, install, target
from mutants.trial import _run_trial
from mutants.verdicts import Trial, Verdict

from minivit import Layer, layers, ops
from minivit.kernels.cuda.runtime import source, sources
from minivit.nn.vit import ViT
from minivit.ops import registry


@pytest.fixture(scope="module")
def mutants() -> list[Mutant]:
    return find_mutants()


def mutated(body: str) -> list[str]:
    """Return the changed statements of a function with the given body."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (function,) = ast.parse(f'def f(dy, cache):\n    """Return."""\n{lines}').body
    assert isinstance(function, ast.FunctionDef)
    return [mutant.after for mutant in mutants_of(function, "f.py", "f", "f")]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("x = a - b + c", ["x = a - b - c", "x = a - b", "x = a + b + c", "x = a + c", "x = -a - b + c", "x = -b + c"]),
        ("x = a * b / 2.0", ["x = a * b", "x = 1 / 2.0", "x = a * b / 3.0", "x = a / 2.0", "x = b / 2.0"]),
        ("x = K ** -0.5", ["x = K", "x = K ** -1.5", "x = K ** 0.5"]),
        ("x = -a", ["x = a"]),
        ("dx = f(a)", ["dx = -f(a)"]),
        ("dx = xp.empty(shape)", []),
        ("dx = np.zeros_like(x)", []),
        ("dx[...] = 0", ["pass"]),
        ("np.multiply(a, b, out=c)", ["pass", "np.multiply(1, b, out=c)", "np.multiply(a, 1, out=c)"]),
        ("np.add(a, b, out=c)", ["pass", "np.subtract(a, b, out=c)"]),
        ("x = np.subtract(a, b)", ["x = np.add(a, b)"]),
        ("x = np.vecdot(a, b)", ["x = np.vecdot(a, a)", "x = np.vecdot(b, b)"]),
        ("x = np.einsum('i,i->', a, b)", ["x = np.einsum('i,i->', a, a)", "x = np.einsum('i,i->', b, b)"]),
        ("for piece in pieces(n, 4 * D):\n    x *= b", ["pass"]),
        ("x += a", ["x -= a", "pass"]),
        ("x *= 3", ["x *= 4", "pass"]),
        ("x = a @ b.T", ["x = a", "x = b.T", "x = b.T @ a", "x = a @ b"]),
        ("xp.matmul(a, b, out=c)", ["pass", "xp.matmul(b, a, out=c)", "xp.matmul(-a, b, out=c)"]),
        ("x = a.transpose(0, 2, 1)", ["x = a.transpose(2, 0, 1)", "x = a.transpose(0, 1, 2)"]),
        ("x = a.swapaxes(-1, -2)", ["x = a", "x = a.swapaxes(-3, -2)", "x = a.swapaxes(-1, -3)"]),
        ("x = a.swapaxes(1, 2)", ["x = a", "x = a.swapaxes(0, 2)", "x = a.swapaxes(1, 0)"]),
        ("x = a.reshape(B, -1)", ["x = a.reshape(-1, B)"]),
        ("x = a.sum(axis=0)", ["x = a.mean(axis=0)", "x = a.sum()", "x = a.sum(axis=1)", "x = a.sum(axis=-1)"]),
        ("x = g(a, axis=tokens, keepdims=True)", ["x = g(a, axis=-1, keepdims=True)",
                                                   "x = g(a, axis=tokens, keepdims=False)"]),
        ("x = a.shape[-1]", ["x = a.shape[-2]", "x = a.shape[0]"]),
        ("x = a[:, 1:]", ["x = a[1:, :]", "x = a[:, :1]", "x = a[:, 2:]"]),
        ("dq, dk = g(cache)", ["dk, dq = g(cache)"]),
        ("return dx, None", ["return -dx, None", "return None, dx"]),
        ("return dx", ["return -dx"]),
        ("self.bias.add_grad(dbias)", ["pass", "self.bias.add_grad(-dbias)"]),
        ("self.weight.add_product(a, b)", ["pass", "self.weight.add_product(-a, b)"]),
        ("x = self.drop1.backward(dh, cache3)", ["x = dh"]),
        ("for block in reversed(blocks):\n    x *= b", ["for block in blocks:\n    x *= b", "pass"]),
        ("raise ValueError(1 + 2)", []),
    ],
)  # fmt: skip
def test_a_statement_has_these_mutants(statement: str, expected: list[str]) -> None:
    assert sorted(mutated(statement)) == sorted(ast.unparse(ast.parse(change)) for change in expected)


def mutated_cuda(statement: str) -> list[str]:
    """Return the changed statements of a kernel with the given one."""
    text = f"""// a - b
#define N 8
template <int V = 2> struct alignas(V) Pack {{ int v[V - 1]; }};
extern "C" __global__ void f(const double *x, int n = 1) {{
  {statement} // x - 1
}}
"""
    return [mutant.after for mutant in mutants_of_source(text, "f.cu", "f.cu")]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("const acc y = a + b * c - d;", ["const acc y = a - b * c - d;", "const acc y = a - d;",
                                         "const acc y = a + b / c - d;", "const acc y = a + b * c + d;",
                                         "const acc y = a + b * c;"]),
        ("const acc y = acc(-0.5) * *x;", ["const acc y = acc(0.5) * *x;", "const acc y = acc(-1.5) * *x;",
                                           "const acc y = acc(-0.5) / *x;"]),
        ("const int y = 16 / n % 2;", ["const int y = 32 / n % 2;", "const int y = 16 * n % 2;",
                                       "const int y = 16 / n / 2;", "const int y = 16 / n % 3;"]),
        ("h *= 0x21F0AAADu;", ["h /= 0x21F0AAADu;", "h *= 0x21F0AAACu;"]),
        ("h ^= h >> n;", ["h |= h >> n;", "h ^= h << n;"]),
        ("y += x[i];", ["y -= x[i];", "y = x[i];"]),
        ("y -= x[i];", ["y += x[i];"]),
        ("y[i] = a;", [";"]),
        ("*y = a;", [";"]),
        ("load<V>(x + at, a);", ["load<V>(x, a);"]),
        ("else store<V>(a - n, y + at);", ["else ;", "else store<V>(a + n, y + at);", "else store<V>(a, y + at);",
                                           "else store<V>(a - n, y);"]),
        ("if (a <= b && b > c) return;", ["if (a < b && b > c) return;", "if (a <= b || b > c) return;",
                                          "if (a <= b && b < c) return;"]),
        ("if (a >= b || a == c) return;", ["if (a > b || a == c) return;", "if (a >= b && a == c) return;",
                                           "if (a >= b || a != c) return;"]),
        ("if (packed(n)) return;", ["if (!packed(n)) return;"]),
        ("if (!n) return;", ["if (n) return;"]),
        ("if constexpr (N) return;", ["if constexpr (!N) return;"]),
        ("const acc y = soft ? a : b;", ["const acc y = !soft ? a : b;"]),
        ("for (int i = threadIdx.x * V; i < n; i += WARP * V) f<V>(i);",
         ["for (int i = 0 * V; i < n; i += WARP * V) f<V>(i);",
          "for (int i = threadIdx.x / V; i < n; i += WARP * V) f<V>(i);",
          "for (int i = threadIdx.x * V; i <= n; i += WARP * V) f<V>(i);",
          "for (int i = threadIdx.x * V; i < n; i += 2 * WARP * V) f<V>(i);",
          "for (int i = threadIdx.x * V; i < n; i += WARP * V) ;"]),
        ("for (int j = 0; j < V; ++j) f(j);", ["for (int j = 0; j < V; ++j) ;"]),
        ("const int i = n * blockIdx.x + threadIdx.x;", ["const int i = n / blockIdx.x + threadIdx.x;",
                                                        "const int i = n * 0 + threadIdx.x;",
                                                        "const int i = n * blockIdx.x;"]),
        ("return size(gridDim.x) * blockDim.x;", []),
        ("if (threadIdx.x == 0) *y = a;", ["if (threadIdx.x == 0) ;"]),
        ("x = __shfl_xor_sync(ALL, x, n);", [";", "x = __shfl_xor_sync(ALL, x, 1);"]),
        ("__shared__ acc shared[8];", []),
        ("__syncthreads();", [";"]),
        ("return;", []),
    ],
)  # fmt: skip
def test_a_statement_of_cuda_has_these_mutants(statement: str, expected: list[str]) -> None:
    assert sorted(mutated_cuda(statement)) == sorted(expected)


def test_a_constant_of_cuda_has_mutants() -> None:
    (mutant,) = mutants_of_source("constexpr int TALL = 8;", "f.cu", "f.cu")
    assert (mutant.function, mutant.kind, mutant.after) == ("TALL", "number", "constexpr int TALL = 9;")


def test_code_for_the_cuda_compiler_alone_has_no_mutants() -> None:
    text = "void f(int *x) {\n#ifdef __CUDACC__\n  if (x < 0) return;\n#endif\n#pragma unroll\n  *x = 0;\n}"
    assert [mutant.before for mutant in mutants_of_source(text, "f.cu", "f.cu")] == ["*x = 0;"] * 2


def test_functions_of_structures_have_mutants() -> None:
    text = "struct S {\n  int k;\n  __device__ S(int a) : k(a * 2) {}\n  __device__ int of() { return k; }\n};"
    assert [mutant.after for mutant in mutants_of_source(text, "f.cu", "f.cu")] == [
        "__device__ S(int a) : k(a / 2) {}", "__device__ S(int a) : k(a * 3) {}",
    ]  # fmt: skip


def test_a_change_affects_the_kernels_that_use_it_directly_or_indirectly() -> None:
    text = """constexpr int N = 8;
__device__ int near() { return N; }
template <class T> __device__ T far() { return near(); }
extern "C" __global__ void one(int *x) { *x = far<int>(); }
extern "C" __global__ void other(int *x) { *x = 0; }
"""
    assert kernels_with(text, "N") == kernels_with(text, "far") == {"one"}
    assert kernels_with(text, "other") == {"other"}


def test_every_kernel_has_mutants() -> None:
    mutants = find_cuda_mutants()
    assert len({(mutant.path, mutant.source) for mutant in mutants}) == len(mutants)
    functions = {mutant.function for mutant in mutants}
    for name in sources():
        code = source(name)
        changed = {kernel for function in functions for kernel in kernels_with(code, function)}
        assert changed == set(re.findall(r"__global__ void (\w+)", code))


@dataclass(frozen=True)
class Item:
    """A stand-in for a test, with a name alone."""

    nodeid: str


def test_frequent_killers_run_first_and_fast_tests_run_for_equivalent_mutants() -> None:
    mutant = mutants_of_source("constexpr int TALL = 8;", "f.cu", "f.cu")[0]
    seconds: dict[Any, float] = {Item(name): took for name, took in (("quick", 0.1), ("other", 0.3), ("slow", 1.8))}
    kills = KillsOf({("f.cu", "TALL", "slow"): 2, ("f.cu", "TALL", "other"): 1, ("f.cu", "f", "quick"): 9})
    trial = Trial("f.cu", "f.cu", 2.0, mutant)
    assert [item.nodeid for item in in_turn(trial, seconds, kills)] == ["slow", "other", "quick"]
    equivalent = replace(trial, is_equivalent=True)
    assert [item.nodeid for item in in_turn(equivalent, seconds, kills)] == ["quick", "other"]


def test_a_function_that_no_test_runs_cannot_be_judged() -> None:
    session: Any = SimpleNamespace(items=[])
    with pytest.raises(RuntimeError, match=r"\w+ of .*columns.cu has no test"):
        cuda_trial.tests_of([mutant for mutant in find_cuda_mutants() if mutant.op == "columns.cu"], session)


def test_an_error_in_a_trial_is_not_a_verdict() -> None:
    ours, theirs = Pipe(duplex=False)
    _run_trial(Trial("columns.cu", "columns.cu", 2.0), lambda trial: Verdict(str([][0]), 0.0), theirs)
    answer = ours.recv()
    assert isinstance(answer, RuntimeError)
    assert "IndexError" in str(answer)


def test_a_mutant_is_the_whole_function_with_one_change() -> None:
    function = ast.parse("@op\ndef f(dy: Array) -> Array:\n    y = dy * 2\n    return y").body[0]
    assert isinstance(function, ast.FunctionDef)
    source = "def f(dy):\n    y = dy\n    return y"
    assert mutants_of(function, "f.py", "f", "f")[0] == Mutant(
        "f.py", 3, "f", "f", "factor", "y = dy * 2", "y = dy", source
    )


def test_every_backward_pass_has_mutants(mutants: list[Mutant]) -> None:
    backward = {name for name in ops.__all__ if name.endswith("_backward")}
    derivatives = {"_derivative", "_exact_derivative", "_tanh_derivative", "products_derivative"}
    known = [*(getattr(layers, name) for name in layers.__all__), ViT]
    classes = {base for each in known for base in each.__mro__ if issubclass(base, Layer) and base is not Layer}
    own = {value.__qualname__ for each in classes for value in vars(each).values() if isinstance(value, FunctionType)}
    methods = {name for name in own if name.endswith("backward")} - {"Layer.backward"}  # which computes nothing
    kernel_files = {mutant.path for mutant in mutants if mutant.path.startswith(KERNELS)}
    assert {
        mutant.function for mutant in mutants if mutant.path not in kernel_files
    } == backward | derivatives | methods
    kernels = [kernel for name in registry._kernels for kernel in registry.kernels_of(name)]
    of_numpy = [kernel for kernel in kernels if kernel.library == "numpy"]
    of_kernels = {f"{kernel.backward.__module__.replace('.', '/')}.py" for kernel in of_numpy}
    assert kernel_files == of_kernels | {f"{KERNELS}{part}.py" for part in PARTS}
    assert len({(mutant.path, mutant.function, mutant.source) for mutant in mutants}) == len(mutants)


@pytest.fixture
def softmax_backward_raises() -> Iterator[None]:
    mutant = Mutant("minivit/ops/softmax.py", 1, "softmax_backward", "softmax", "call", "", "", "def f(a, b): 1 / 0")
    function = target(mutant)
    code = function.__code__
    install(mutant)
    yield
    function.__code__ = code


@pytest.mark.usefixtures("softmax_backward_raises")
def test_an_installed_mutant_runs_wherever_its_function_is_used() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 12))
    y, softmax_cache = ops.softmax(x)
    layer = layers.Attention(12, 2).initialize(dtype="float64")
    with ops.reference_only():
        z, attention_cache = ops.attention(x, 2)
        h, layer_cache = layer.forward(x)
    passes: list[tuple[Any, Any, Any]] = [
        (ops.softmax_backward, y, softmax_cache),
        (ops.attention_backward, z, attention_cache),
        (layer.backward, h, layer_cache),
    ]
    for backward, dy, cache in passes:
        with pytest.raises(ZeroDivisionError):
            backward(dy, cache)


def test_every_mutant_can_be_installed(mutants: list[Mutant]) -> None:
    for mutant in mutants:
        function = target(mutant)
        code = function.__code__
        try:
            install(mutant)
            assert function.__code__.co_code != code.co_code or function.__code__.co_consts != code.co_consts
        finally:
            function.__code__ = code


@pytest.mark.parametrize(
    ("test", "op", "expected"),
    [
        ("tests/test_ops.py::test_gradient[layer_norm]", "layer_norm", True),
        ("tests/test_ops.py::test_gradient[attention-mask]", "attention", True),
        ("tests/test_ops.py::test_backward_is_linear_in_dy[softmax]", "linear", False),
        ("tests/test_ops.py::test_softmax_rows_sum_to_0[float32]", "softmax", True),
        ("tests/test_layers.py::test_gradient[PatchEmbed]", "PatchEmbed", True),
        ("tests/test_layers.py::test_patch_embed_takes_images", "PatchEmbed", True),
        ("tests/test_layers.py::test_gradient[MLP]", "Linear", False),
        ("tests/test_model.py::test_gradients_of_positions", "ViT", True),
    ],
)
def test_an_op_is_judged_by_its_own_tests(test: str, op: str, expected: bool) -> None:
    assert belongs(test, op, ["layer_norm", "attention", "softmax", "linear", "MLP", "PatchEmbed", "ViT"]) is expected


def equivalent(folder: Path, mutant: Mutant, proof: str = "It is the same.") -> Path:
    path = folder / "equivalent.toml"
    entry = {name: getattr(mutant, name) for name in ("path", "function", "before", "after")} | {"proof": proof}
    path.write_text("[[equivalent]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items()))
    return path


def test_an_equivalent_mutant_is_found_by_its_change(tmp_path: Path, mutants: list[Mutant]) -> None:
    assert read_equivalent(equivalent(tmp_path, mutants[7]), mutants) == {mutants[7]: "It is the same."}


def test_a_stale_entry_is_an_error(tmp_path: Path, mutants: list[Mutant]) -> None:
    with pytest.raises(CannotJudgeError, match="stale"):
        read_equivalent(equivalent(tmp_path, replace(mutants[7], after="x = 1")), mutants)


@pytest.mark.parametrize("proof", ["", "One line.\nAnd another."])
def test_a_proof_that_is_not_one_line_is_an_error(tmp_path: Path, mutants: list[Mutant], proof: str) -> None:
    with pytest.raises(CannotJudgeError, match="one line"):
        read_equivalent(equivalent(tmp_path, mutants[7], proof), mutants)


def test_the_list_of_equivalent_mutants_is_up_to_date(mutants: list[Mutant]) -> None:
    read_equivalent(EQUIVALENT, [*mutants, *find_cuda_mutants()])


def test_a_survivor_or_too_many_equivalents_fail(mutants: list[Mutant]) -> None:
    mutants = mutants[:50]
    killed = {mutant: Verdict("test_it", 0.5) for mutant in mutants}
    assert summary(killed, {})["passed"]
    late = summary({**killed, mutants[0]: Verdict(None, 2.0, late=True)}, {})
    assert (late["killed"], late["survived"], late["passed"]) == (49, 1, False)
    unkillable = {**killed, mutants[0]: Verdict(None, 0.5), mutants[1]: Verdict(None, 0.5)}
    assert summary(unkillable, {mutants[0]: "", mutants[1]: ""})["equivalent_percent"] == 4.0
    assert not summary(unkillable, {mutants[0]: "", mutants[1]: ""})["passed"]
    one = {**killed, mutants[0]: Verdict(None, 0.5)}
    assert summary(one, {mutants[0]: ""})["passed"]


def test_a_mutant_that_cannot_be_compiled_does_not_count(mutants: list[Mutant]) -> None:
    refused, killed = Verdict("test_it", 0.5, compiles=False), Verdict("test_it", 0.5)
    result = summary({mutants[0]: refused, mutants[1]: killed}, {})
    assert (result["mutants"], result["killed"], result["refused"]) == (1, 1, 1)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = EQUIVALENT.parent.parent
    command = [sys.executable, "-m", "tests.mutants", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_every_mutant_of_softmax_is_killed() -> None:
    done = run("softmax", "--json", "--limit", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["mutants"] == result["killed"] > 10


def test_mutants_are_chosen_by_their_folder_too(capsys: pytest.CaptureFixture[str]) -> None:
    count = len(find_cuda_mutants())
    assert main(["minivit/kernels/cuda", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{count} mutants"


def test_an_unknown_op_is_an_error_of_one_line_that_lists_the_ops(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["softmin"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("mutants: unknown op softmin; the ops and layers are attention, cross_attention, ")
