"""The command that measures on a GPU: its works, its time, the card, and what it reports."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.command import ended
from benchmarks.gpu_parts import works
from benchmarks.gpu_parts.budget import Budget
from benchmarks.gpu_parts.card import card
from benchmarks.gpu_parts.profile import summed
from benchmarks.gpu_parts.works import MEASURED, WORKS, Job
from benchmarks.rounds import WorkerError
from minivit.errors import UserError

TRAINING = Job(WORKS["gpu-train-tiny"], "bfloat16")


def test_the_works_are_those_of_the_bars() -> None:
    sizes = {name: (WORKS[name].preset, WORKS[name].kind, WORKS[name].batch_size) for name in MEASURED}
    assert sizes == {
        "gpu-train-tiny": ("vit_tiny_patch4_32", "training", 1024),
        "gpu-train-base": ("vit_base_patch16_224", "training", 128),
        "gpu-predict-224": ("vit_tiny_patch16_224", "prediction", 256),
        "gpu-predict-32": ("vit_tiny_patch4_32", "prediction", 1024),
    }
    assert set(works.BARS) < set(MEASURED)
    assert [(bar.peer, bar.at_least, bar.aim) for bar in TRAINING.bars] == [("eager", 1.0, 1.6), ("compile", 0.9, 1.2)]
    assert Job(TRAINING.work, "tf32").bars == ()
    assert Job(TRAINING.work, "tf32").title.endswith("65 tokens, batch 1024, float32 (TF32)")


def test_what_no_longer_fits_is_left_out_with_the_reason() -> None:
    now = [100.0]
    budget = Budget(60, lambda: now[0])
    assert budget.allows("kernels", 60)
    now[0] = 145.0
    assert (budget.spent, budget.left) == (45.0, 15.0)
    assert not budget.allows("products", 16)
    assert budget.skipped == ["products: skipped: 15 of 60 s were left, about 16 are needed"]
    now[0] = 1000.0
    assert budget.left == 0


def test_the_card_is_described_by_the_drivers_tool() -> None:
    said = "NVIDIA H200, 580.159.03, 143771 MiB, 700.00 W, 1980 MHz"
    about = card((sys.executable, "-c", f"print('{said}')"))
    assert about == {
        "name": "NVIDIA H200",
        "driver": "580.159.03",
        "memory": "143771 MiB",
        "power_limit": "700.00 W",
        "clock_at_most": "1980 MHz",
    }


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("no-such-nvidia-smi",), r"no NVIDIA driver here \(no nvidia-smi\)"),
        ((sys.executable, "-c", "print('No devices were found'); exit(6)"), "No devices were found"),
        ((sys.executable, "-c", ""), "lists no GPU"),
    ],
)
def test_without_a_card_there_is_one_message_with_the_way_out(command: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UserError, match=f"{reason}.*--rehearse"):
        card(command)


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))


@pytest.mark.usefixtures("without_torch")
def test_a_rehearsal_goes_through_all_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--rehearse", "--quick", "--only", "prediction", "kernels", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["rehearsal"]
    assert [entry["work"]["name"] for entry in report["steps"]] == ["rehearsed-predict"]
    assert report["steps"][0]["rows"][0]["title"] == "minivit"
    assert len(report["steps"][0]["systems"]["minivit"]["results"]) == 5
    assert report["versions"]["NumPy"] == np.__version__
    assert report["not_measured"] == ["eager: not measured: torch is not installed"]
    assert {"card", "surroundings", "seconds", "skipped", "failed", "kernels", "products", "claims", "profile"} < set(
        report
    )
    shown = capsys.readouterr().out
    assert "rehearsed-predict: prediction" in shown
    assert "eager: not measured: torch is not installed" in shown


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "card", lambda: card(("no-such-nvidia-smi",)))
    assert ended(functools.partial(gpu.main, [])) == 2
    assert "no NVIDIA driver here" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--only", "everything"], ["--seconds", "0"]])
def test_a_wrong_option_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert arguments[1] in capsys.readouterr().err


def figures_of(part: str) -> Any:
    """Return what a part may say."""
    times = {"host_seconds": 8e-3, "device_seconds": 5e-3, "ahead": True, "seconds": 8.2e-3, "bound_by_launches": True}
    memory = {"steps": 5, "allocations": 900, "driver_allocations": 0, "pool_growth_bytes": 0, "peak_used_bytes": 3e9}
    reads = {"found": False, "where": ""}
    kernel = {"name": "dropout", "bytes": 3e8, "seconds": [1e-4], "copy_seconds": [9e-5], "bytes_a_second": 3e12}
    product = {"name": "qkv dx", "flops": 1e12, "times": 12, "seconds": 2e-3, "flops_a_second": 5e14, "of_square": 0.7}
    work = {"preset": "vit", "batch_size": 8, "rows": [product], "seconds_a_step": 0.024, "of_square": 0.7}
    return {
        "kernels": [kernel | {"of_copy": 0.6}, {"name": "embed", "error": "MemoryError: none left"}],
        "products": {"square": 8192, "square_flops_a_second": 7e14, "works": [work]},
        "claims": {"tiny": {"launches": {"adam": 1, "products": 60}, "memory": memory, "reads": reads, "times": times}},
        "profile": {"tiny": summed([("gemm", 3e-3)])},
    }[part]


@pytest.mark.usefixtures("without_torch")
def test_parts_are_shown_and_written_and_their_failures_end_in_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(part: str, precision: str, timeout: float, command: tuple[str, ...]) -> dict[str, Any]:
        if (part, precision) == ("products", "tf32"):
            raise WorkerError("RuntimeError: no cuBLAS")
        return {"figures": figures_of(part), "versions": {"CuPy": "14.2"}}

    monkeypatch.setattr(gpu, "card", lambda: {"name": "NVIDIA H200", "driver": "580"})
    monkeypatch.setattr(gpu, "run_worker", run)
    monkeypatch.setitem(gpu._NEEDS, "profile", "numpy")
    out = tmp_path / "gpu.json"
    assert gpu.main(["--only", "claims", "kernels", "products", "profile", "--out", str(out)]) == 1
    report = json.loads(out.read_text())
    assert set(report["kernels"]) == set(report["products"]) == {"bfloat16", "tf32"}
    assert set(report["claims"]) == set(report["profile"]) == {"bfloat16"}
    assert report["failed"] == ["kernels, bfloat16: embed", "kernels, tf32: embed", "products, tf32"]
    assert report["products"]["tf32"] == {"error": "RuntimeError: no cuBLAS"}
    shown = capsys.readouterr().out
    for words in (
        "MemoryError: none left",
        "below the bar",
        "square product, 8192 x 8192: 700 TFLOP/s",
        "1 of minivit's kernels, 60 products",
        "0 allocations from the driver in 5 steps after warm-up",
        "host 8.00 ms, device 5.00 ms, together 8.20 ms: bound by launches",
        "1 kernels and copies, busy for 3.00 ms",
        "NVIDIA H200, 580; CuPy 14.2; commit",
    ):
        assert words in shown


def test_a_part_for_which_no_time_is_left_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "card", lambda: {"name": "NVIDIA H200"})
    assert gpu.main(["--quick", "--seconds", "1", "--only", "kernels"]) == 0
    (line,) = json.loads(next(tmp_path.glob("build/gpu-*.json")).read_text())["skipped"]
    assert line == "kernels, bfloat16: skipped: 1 of 1 s were left, about 35 are needed"
    assert line in capsys.readouterr().out
