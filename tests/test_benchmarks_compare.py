"""The command that compares: its table, its report, its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake_run

from benchmarks import compare as compare_module
from benchmarks.command import ended
from benchmarks.sides.limit import layouts
from benchmarks.works import WORKS


def test_a_comparison_of_fake_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {
        "minivit": [100.0] * 5,
        "pytorch:plain": [140.0, 141.0, 139.0, 140.0, 142.0],
        "pytorch:timm": [170.0] * 5,
        "jax": [],
        **{f"limit:{layout}": [90.0 + i] * 5 for i, layout in enumerate(layouts(WORKS["train-tiny"], 2))},
    }
    monkeypatch.setattr(compare_module, "run_worker", fake_run(times, {"pytorch:plain": 2.5e9}))
    monkeypatch.setattr(compare_module, "missing", lambda system: ["torch"] if "compile" in system else [])
    out, table = tmp_path / "deep" / "report.json", tmp_path / "report.md"
    arguments = ["train-tiny", "--threads", "2", "--against", "eager", "compile", "jax", "limit", "onnx"]
    assert compare_module.main([*arguments, "--json", str(out), "--markdown", str(table)]) == 1

    report = json.loads(out.read_text())
    work = report["works"][0]
    ours, eager, limit = work["rows"]
    assert [row["title"] for row in work["rows"]] == ["minivit", "PyTorch eager (plain)", "limit (threaded)"]
    assert ours["images_per_second"] == pytest.approx(1280.0)
    assert eager["ratio"]["of_medians"] == pytest.approx(1.4)
    assert eager["memory_ratio"] == pytest.approx(25.0)
    assert [verdict["aim_reached"] for verdict in eager["verdicts"]] == [True]
    assert (limit["ratio"]["of_medians"], limit["memory_ratio"]) == (pytest.approx(0.9), None)
    assert report["surroundings"]["commit"]
    assert report["versions"]["pytorch:plain"] == "1.0"
    assert len(work["systems"]["pytorch:plain"]["results"]) == 5
    assert work["notes"] == [
        "pytorch:compile-plain: not measured: torch not installed",
        "pytorch:compile-timm: not measured: torch not installed",
        "ONNX Runtime: not measured: it does not train",
        "pytorch:timm: left out after 2 rounds: 1.21 times as long as pytorch:plain",
        "jax: failed: RuntimeError: no more",
    ]
    (printed, told), written = capsys.readouterr(), table.read_text()
    assert told.splitlines()[-1] == "failed: train-tiny: jax", "what is not installed did not fail"
    for text in (printed, written):
        assert "1 (1.3): aim reached" in text
        assert "0.65 (0.85): aim reached" in text
        assert "jax: failed: RuntimeError: no more" in text
        assert report["surroundings"]["commit"] in text
    assert "…" not in printed, "a cell is cut off"


def test_a_changed_work_has_no_bars_and_our_own_failure_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare_module, "missing", lambda system: [])
    arguments = ["train-tiny-1024", "--against", "eager"]
    times = {"pytorch:plain": [5.0] * 5, "pytorch:timm": [5.0] * 5}
    monkeypatch.setattr(compare_module, "run_worker", fake_run(times | {"minivit": [1.0] * 5}, {}))
    assert compare_module.main([*arguments, "--set", "depth=1"]) == 0
    assert "reached" not in capsys.readouterr().out
    monkeypatch.setattr(compare_module, "run_worker", fake_run(times | {"minivit": [1.0] * 5}, {}))
    assert compare_module.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 (2.6): aim reached; memory 20 (30): missed" in printed
    monkeypatch.setattr(compare_module, "run_worker", fake_run(times | {"minivit": [1.0]}, {}))
    assert compare_module.main(arguments) == 1
    assert "minivit: failed: RuntimeError: no more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "nosuch=1"], "nosuch"),
        (["--set", "batch_size=abc"], "batch_size"),
        (["--processes", "0"], "at least 1"),
        (["--threads", "0"], "at least 1"),
        (["--threads", "99999"], "lets a process use"),
        (["--json", "{folder}"], "cannot write"),
        (["--markdown", "{folder}/file/table.md"], "cannot write"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compare_module, "run_rounds", lambda *arguments: pytest.fail("something was measured"))
    with pytest.raises(SystemExit) as caught:
        compare_module.main(["train-w64", *(text.format(folder=tmp_path) for text in arguments)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_an_interrupted_comparison_keeps_the_works_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(system: str, work: str, options: Any) -> dict[str, Any]:
        if work == "train-w96":
            raise KeyboardInterrupt
        return {"seconds": [1.0], "peak_bytes": 1e8, "versions": {}}

    monkeypatch.setattr(compare_module, "missing", lambda system: [])
    monkeypatch.setattr(compare_module, "run_worker", run)
    out = tmp_path / "report.json"
    arguments = ["train-w64", "train-w96", "--against", "jax", "--json", str(out)]
    assert ended(lambda: compare_module.main(arguments)) == 130
    assert [entry["work"]["name"] for entry in json.loads(out.read_text())["works"]] == ["train-w64"]


def test_too_few_or_noisy_rounds_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compare_module, "missing", lambda system: [])
    times = {"minivit": [100.0] * 5, "jax": [160.0, 170.0, 185.0, 190.0, 230.0]}
    monkeypatch.setattr(compare_module, "run_worker", fake_run(times, {}))
    compare_module.main(["train-tiny", "--against", "jax"])
    printed = capsys.readouterr().out
    assert "1.8 (2.3): open; ratio uncertain" in printed
    assert "the machine was too noisy to tell the ratio, which lies in 1.60 to 2.30" in printed
    monkeypatch.setattr(compare_module, "run_worker", fake_run(times, {}))
    compare_module.main(["train-tiny", "--against", "jax", "--processes", "3"])
    assert "fewer than 5 rounds cannot tell" in capsys.readouterr().out
