"""The scaling curves: fit, tables and figures of made-up points."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import scaling
from benchmarks.command import ended
from benchmarks.rounds import WorkerError
from benchmarks.scaling_points import axes
from benchmarks.scaling_tables import Point, fit_exponent, fit_line, growth_table, memory_table, rate_table
from benchmarks.surroundings import surroundings


def squeezed(text: str) -> str:
    return re.sub(" +", " ", text)


def made_up(kinds: tuple[str, ...] = ("training", "prediction")) -> list[Point]:
    return [
        Point(axis.name, kind, side, value, (900.0 * k / value, 1000.0 * k / value), 10**8 + value * 10**5, value**2)
        for axis in axes()
        for kind in kinds
        for side, k in ((scaling.OURS, 2), (scaling.THEIRS, 1))
        for value in axis.values
    ]


def test_the_exponent_of_a_power_is_found() -> None:
    x = [16, 64, 128, 512]
    fit = fit_exponent(x, [3.0 * v**1.7 for v in x])
    assert fit.exponent == pytest.approx(1.7)
    assert fit.last == pytest.approx(1.7)
    assert fit.error == pytest.approx(0.0, abs=1e-9)


def test_the_error_of_an_exponent_is_that_of_the_line_and_the_end_may_differ() -> None:
    x = [1.0, 2.0, 4.0]
    fit = fit_exponent(x, [1.0, 2.0, 8.0])  # logarithms 0, 1, 3 over 0, 1, 2: slope 1.5, residuals 1, -2, 1 sixths
    assert fit.exponent == pytest.approx(1.5)
    assert fit.last == pytest.approx(2.0)
    assert fit.error == pytest.approx(math.sqrt(6 / 36 / 1 / 2))
    assert math.isnan(fit_exponent(x[:2], [1.0, 3.0]).error)


@pytest.mark.parametrize(("x", "y"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [1.0, 0.0])])
def test_an_exponent_needs_two_points_above_zero(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more points above 0"):
        fit_exponent(x, y)


def test_the_line_of_memory() -> None:
    assert fit_line([32, 64, 128], [60 + 0.5 * v for v in (32, 64, 128)]) == pytest.approx((60.0, 0.5))


def test_tables_of_made_up_points() -> None:
    points = made_up()
    assert "| 65 | 31 | 15 | 2.00x | 10.0 % |" in squeezed(rate_table(points, "tokens", "tokens"))
    growth = squeezed(growth_table(points, ["depth"]))
    assert "| depth | training | minivit | 1 to 12 | 1.00 ± 0.00 | 2.00 | 6 to 12 | 1.00 | 2.00 |" in growth
    memory = squeezed(memory_table(points))
    assert "| 1024 | 202 | 202 |" in memory
    assert "minivit: 100 MB and 0.100 MB for each image." in memory


def test_a_side_that_is_missing_somewhere_leaves_a_gap() -> None:
    points = [p for p in made_up() if (p.side, p.value) != (scaling.THEIRS, 1024)]
    assert "| 1024 | 2 | | | 10.0 % |" in squeezed(rate_table(points, "batch", "batch"))
    assert "| 1024 | 202 | |" in squeezed(memory_table(points))
    ours = [p for p in made_up() if p.side == scaling.OURS]
    assert "| 65 | 31 | 10.0 % |" in squeezed(rate_table(ours, "tokens", "tokens"))


def test_a_folder_with_tables_figures_and_all_numbers_is_written(tmp_path: Path) -> None:
    points = made_up(("training",))
    about = {
        "surroundings": surroundings(),
        "versions": {"NumPy": np.__version__},
        "rounds": 2,
        "systems": {"training": {scaling.OURS: "minivit", scaling.THEIRS: "pytorch:plain"}},
        "left_out": {"pytorch:timm, training": "No module named 'timm'"},
    }
    scaling.write(points, about, tmp_path)
    text = (tmp_path / "scaling.md").read_text()
    assert "pytorch:timm, training was left out: No module named 'timm'." in text
    values: Any = json.loads((tmp_path / "scaling.json").read_text())
    assert len(values["points"]) == len(points)
    for name in ("rate_by_tokens", "rate_by_threads", "memory_by_batch"):
        picture = (tmp_path / f"{name}.svg").read_text()
        assert "PyTorch eager" in picture
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_settings_that_are_the_same_are_measured_once() -> None:
    keys = [axis.setting(value, "training").key for axis in axes() for value in axis.values]
    assert len(keys) - len(set(keys)) == len(axes()) - 1  # the base lies on every axis


def fake_run(stop_after: int | None = None, broken: str = "") -> Any:
    """Return a stand-in for `run_worker`: the side `broken` fails, and Ctrl-C comes after some processes."""
    calls: list[str] = []

    def run(system: str, work: str, options: list[str]) -> dict[str, Any]:
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(system)
        if system == broken:
            raise WorkerError("MemoryError")
        return {"batch_size": 64, "seconds": [0.1], "peak_bytes": 10**8, "versions": {"NumPy": np.__version__}}

    return run


def test_ctrl_c_keeps_the_rounds_that_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "run_worker", fake_run(stop_after=2 + 6 + 1))  # both variants, a round, one more
    arguments = ["--quick", "--axes", "depth", "--rounds", "3", "--out", str(tmp_path)]
    assert ended(lambda: scaling.main(arguments)) == 130
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert found["rounds"] == 1
    assert {(p["axis"], len(p["images_a_second"])) for p in found["points"]} == {("depth", 1)}
    assert len(found["points"]) == 6
    assert "## Memory" not in (tmp_path / "scaling.md").read_text()  # which is along batch


@pytest.mark.parametrize(("broken", "status"), [("", 0), ("minivit", 1), ("pytorch:timm", 1)])
def test_a_side_that_does_not_run_is_an_error(
    broken: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "run_worker", fake_run(broken=broken))
    assert scaling.main(["--quick", "--axes", "depth", "batch", "--rounds", "1", "--out", str(tmp_path)]) == status
    text = (tmp_path / "scaling.md").read_text()
    assert ("was left out: MemoryError." in text) == bool(broken)
