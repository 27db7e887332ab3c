"""What the commands say of the backends and their devices, and what they do on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, Minivit, Said, assert_refused
from devices import needs_kernels
from fake_cupy import CUDARuntimeError, fake_cupy, install


def asked(cli: Minivit, *options: str) -> Said:
    said = cli("info", *options)
    assert said.status == 0
    return said


def test_info_lists_the_devices(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake_cupy())
    said = [" ".join(line.split()) for line in asked(cli).out.splitlines()]
    assert "cupy 14.2.0 for CUDA 12.9" in said
    assert "driver supports CUDA 12.8" in said
    assert "cupy:0 Card 0, 80.0 GB, compute capability 9.0" in said
    assert "cupy:1 Card 1, 80.0 GB, compute capability 7.5" in said
    assert any(line.startswith("backends cupy, numpy") for line in said)

    backends = asked(cli, "--json").json()["backends"]
    assert backends["numpy"] == {"version": np.__version__, "devices": [], "reason": None}
    cupy = backends["cupy"]
    assert (cupy["version"], cupy["cuda_runtime"], cupy["cuda_driver"]) == ("14.2.0", "12.9", "12.8")
    assert cupy["devices"][1] == {
        "index": 1, "name": "Card 1", "memory": 80_000_000_000, "compute_capability": "7.5"
    }  # fmt: skip
    assert cupy["reason"] is None


def test_info_says_why_there_is_no_device(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = fake_cupy(CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version"), driver=0)
    install(monkeypatch, missing)
    backends = asked(cli, "--json").json()["backends"]
    assert "there is no NVIDIA driver here" in backends["cupy"]["reason"]
    assert (backends["cupy"]["version"], backends["cupy"]["cuda_driver"]) == ("14.2.0", None)
    assert backends["cupy"]["devices"] == []
    said = asked(cli).out
    assert backends["cupy"]["reason"] in " ".join(said.split())
    (line,) = [line for line in said.splitlines() if line.startswith("backends")]
    assert "cupy" not in line


def test_info_of_a_device_beside_one_that_is_too_old(cli: Minivit, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake_cupy(capabilities=("61", "75")))
    cupy = asked(cli, "--json").json()["backends"]["cupy"]
    assert [device["compute_capability"] for device in cupy["devices"]] == ["6.1", "7.5"]
    assert cupy["reason"] is None


@needs_kernels
def test_gradcheck_proves_the_kernels_of_a_backend(cli: Minivit) -> None:
    said = cli("gradcheck", "softmax", "--backend", "strict", "--json")
    assert said.status == 0
    (check,) = said.json()["checks"]
    assert {row["verdict"] for row in check["rows"]} == {"ok"}
    assert {row["method"] for row in check["rows"]} == {"complex"}


def test_gradcheck_refuses_a_model_on_another_backend(cli: Minivit) -> None:
    said = cli("gradcheck", "vit_micro_patch4_8", "--backend", "strict")
    assert_refused(said, 2, "on strict only ops and layers are checked, not models")


def test_training_runs_on_a_device(cli: Minivit, squares: Path) -> None:
    options = ("--epochs", 1, "--backend", "strict", "--micro-batch", 5)
    said = cli("train", squares, *TINY, *options, "--run", "here")
    assert said.status == 0
    assert "on strict\ninto here" in said.out
    assert json.loads(Path("here/recipe.json").read_text())["micro_batch"] != 5


def test_a_device_measures_and_predicts_what_the_host_does(cli: Minivit, squares: Path, run_folder: Path) -> None:
    def both(*argv: object) -> list[dict[str, Any]]:
        return [cli(*argv, "--json", "--backend", backend).json() for backend in ("strict", "numpy")]

    there, here = both("eval", run_folder)
    for name in ("accuracy", "loss"):
        assert there[name] == pytest.approx(here[name], rel=1e-5)
    there, here = both("predict", run_folder, squares / "test" / "left" / "0.png")
    (one,), (other,) = there["predictions"], here["predictions"]
    assert [top["label"] for top in one["top"]] == [top["label"] for top in other["top"]]
    assert one["top"][0]["probability"] == pytest.approx(other["top"][0]["probability"], rel=1e-5)
