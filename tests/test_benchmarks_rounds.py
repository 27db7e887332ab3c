"""Rounds of processes, ratios with their noise, and the report of a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare as compare_module
from benchmarks.ratios import ratio_of_times, spread
from benchmarks.rounds import Outcome, WorkerError, fastest_of, run_rounds
from benchmarks.sides.limit import layouts
from benchmarks.works import WORKS


def test_a_ratio_is_the_peers_time_over_ours() -> None:
    ours = [[1.0, 3.0, 1.1], [2.0], [1.0], [1.0], [0.9]]
    ratio = ratio_of_times(ours, [[2.0], [2.2], [1.8], [2.0], [2.1]])
    assert ratio.of_medians == pytest.approx(2.0)  # rounds of ours: 1.1, 2, 1, 1, 0.9
    assert ratio.of_bests == pytest.approx(1.8 / 0.9)


def test_the_same_slowness_of_both_in_a_round_is_no_noise() -> None:
    speeds = [1.0, 3.0, 1.0, 2.0, 1.5]
    ratio = ratio_of_times([[s] for s in speeds], [[1.2 * s] for s in speeds])
    assert ratio.interval is not None
    assert not ratio.noisy
    assert ratio.reaches(1.1) is True
    assert ratio.reaches(1.3) is False


def test_noise_leaves_open_only_what_lies_within_it() -> None:
    ratio = ratio_of_times([[1.0]] * 5, [[0.9], [1.1], [1.0], [1.2], [1.3]])
    assert ratio.interval is not None
    assert list(ratio.interval) == pytest.approx([0.9, 1.3])
    assert ratio.noisy
    assert [ratio.reaches(bar) for bar in (0.8, 1.0, 1.05, 1.2, 1.4)] == [True, None, None, None, False]


def test_a_narrow_interval_lets_the_ratio_decide() -> None:
    ratio = ratio_of_times([[1.0]] * 5, [[0.98], [0.99], [1.01], [1.02], [1.03]])
    assert not ratio.noisy
    assert ratio.reaches(1.0) is True
    assert ratio.reaches(1.02) is False


def test_few_rounds_tell_nothing_about_noise() -> None:
    ratio = ratio_of_times([[1.0]] * 4, [[2.0]] * 4)
    assert ratio.interval is None
    assert not ratio.noisy
    assert ratio.reaches(1.0) is None
    with pytest.raises(ValueError, match="4 rounds of ours and 5 of theirs"):
        ratio_of_times([[1.0]] * 4, [[2.0]] * 5)


def test_the_spread_is_the_range_of_the_medians() -> None:
    assert spread([[1.0, 5.0, 1.0], [2.0], [4.0]]) == pytest.approx((4.0 - 1.0) / 2.0)


def fake_run(milliseconds: dict[str, list[float]], peaks: dict[str, float]) -> Any:
    """Return a stand-in for `run_worker` with the times of each system's rounds; without any left it fails."""
    left = {system: list(times) for system, times in milliseconds.items()}

    def run(system: str, work: str = "", options: Any = ()) -> dict[str, Any]:
        if not left[system]:
            raise WorkerError("RuntimeError: no more")
        seconds = [1e-3 * left[system].pop(0)] * 3
        return {"seconds": seconds, "peak_bytes": peaks.get(system, 1e8), "versions": {system: "1.0"}}

    return run


def test_rounds_take_turns_leave_out_the_slow_and_survive_failures() -> None:
    run = fake_run({"a": [1.0] * 5, "b": [2.0] * 5, "c": [3.0] * 5, "d": [1.0]}, {})
    order: list[str] = []
    groups = {"ours": ["a"], "theirs": ["b", "c"], "broken": ["d"]}

    def measure(system: str) -> Any:
        order.append(system)
        return run(system)

    outcomes = run_rounds(groups, 5, measure)
    assert [len(outcomes[system].results) for system in "abcd"] == [5, 5, 2, 1]
    assert order[:8] == ["a", "b", "c", "d", "b", "c", "d", "a"]
    assert outcomes["c"].stopped == "left out after 2 rounds: 1.50 times as long as b"
    assert outcomes["d"].stopped == "failed: RuntimeError: no more"
    assert [fastest_of(group, outcomes) for group in groups.values()] == ["a", "b", None]


def test_an_outcome_is_the_median_over_the_rounds() -> None:
    results = [{"seconds": s, "peak_bytes": p} for s, p in (([1.0, 9.0, 2.0], 5), ([4.0], 7), ([3.0], 6))]
    outcome = Outcome(results)
    assert (outcome.median, outcome.best, outcome.peak_bytes) == (3.0, 1.0, 6)


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
    assert compare_module.main([*arguments, "--json", str(out), "--markdown", str(table)]) == 0

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
    printed, written = capsys.readouterr().out, table.read_text()
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


def test_too_few_or_noisy_rounds_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compare_module, "missing", lambda system: [])
    times = {"minivit": [100.0] * 5, "jax": [160.0, 170.0, 185.0, 190.0, 230.0]}
    monkeypatch.setattr(compare_module, "run_worker", fake_run(times, {}))
    compare_module.main(["train-tiny", "--against", "jax"])
    printed = capsys.readouterr().out
    assert "1.8 (2.3): open; too noisy to tell" in printed
    assert "the machine was too noisy to tell the ratio, which lies in 1.60 to 2.30" in printed
    monkeypatch.setattr(compare_module, "run_worker", fake_run(times, {}))
    compare_module.main(["train-tiny", "--against", "jax", "--processes", "3"])
    assert "fewer than 5 rounds cannot tell" in capsys.readouterr().out
