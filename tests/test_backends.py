"""What the commands say of the backends and their devices, and what they do on one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from devices import needs_kernels
from fake_cupy import CUDARuntimeError, fake_cupy, install

from minivit.cli import main


def asked(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["info", *options]) == 0
    return capsys.readouterr().out


def test_info_lists_the_devices(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch, fake_cupy())
    said = [" ".join(line.split()) for line in asked(capsys).splitlines()]
    assert "cupy 14.2.0 for CUDA 12.9" in said
    assert "driver knows CUDA 12.8" in said
    assert "cupy:0 Card 0, 80.0 GB, compute capability 9.0" in said
    assert "cupy:1 Card 1, 80.0 GB, compute capability 7.5" in said
    assert any(line.startswith("backends cupy, numpy") for line in said)

    backends = json.loads(asked(capsys, "--json"))["backends"]
    assert backends["numpy"] == {"version": np.__version__, "devices": [], "reason": None}
    cupy = backends["cupy"]
    assert (cupy["version"], cupy["cuda_runtime"], cupy["cuda_driver"]) == ("14.2.0", "12.9", "12.8")
    assert cupy["devices"][1] == {
        "index": 1, "name": "Card 1", "memory": 80_000_000_000, "compute_capability": "7.5"
    }  # fmt: skip
    assert cupy["reason"] is None


def test_info_says_why_there_is_no_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    missing: Any = fake_cupy(CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version"), driver=0)
    install(monkeypatch, missing)
    backends = json.loads(asked(capsys, "--json"))["backends"]
    assert "there is no NVIDIA driver here" in backends["cupy"]["reason"]
    assert (backends["cupy"]["version"], backends["cupy"]["cuda_driver"]) == ("14.2.0", None)
    assert backends["cupy"]["devices"] == []
    said = asked(capsys)
    assert backends["cupy"]["reason"] in said
    (line,) = [line for line in said.splitlines() if line.startswith("backends")]
    assert "cupy" not in line


def test_info_of_a_device_beside_one_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, fake_cupy(capabilities=("61", "75")))
    cupy = json.loads(asked(capsys, "--json"))["backends"]["cupy"]
    assert [device["compute_capability"] for device in cupy["devices"]] == ["6.1", "7.5"]
    assert cupy["reason"] is None


@needs_kernels
def test_gradcheck_proves_the_kernels_of_a_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gradcheck", "softmax", "--backend", "strict", "--json"]) == 0
    (check,) = json.loads(capsys.readouterr().out)["checks"]
    assert {row["verdict"] for row in check["rows"]} == {"ok"}
    assert {row["method"] for row in check["rows"]} == {"complex"}


def test_gradcheck_refuses_a_model_on_another_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gradcheck", "vit_micro_patch4_8", "--backend", "strict"]) == 2
    assert "the cases run on strict, whole models on NumPy alone" in capsys.readouterr().err
