"""The breakdown by op and the start-up, on tiny models."""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minivit
from benchmarks import breakdown, startup, startup_report
from benchmarks.clock import Clock
from benchmarks.command import ended
from benchmarks.recorded_products import Notes, Operand, plain
from benchmarks.task import make_task
from benchmarks.works import Work
from minivit import ops
from minivit.nn.summary import summarize

MICRO = Work("micro", "training", "vit_micro_patch4_8", {"depth": 2}, batch_size=150)


def squeezed(text: str) -> str:
    return re.sub(" +", " ", text)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_breakdown_names_every_op_of_all_workers_and_sums_to_the_time_of_the_step(threads: int) -> None:
    begun = time.perf_counter()
    (seconds, calls), _ = breakdown.timed_steps(make_task(MICRO, threads), 2)
    assert 0 < sum(seconds.values()) < threads * (time.perf_counter() - begun)
    per_part = {"patches": 1, "embed": 1, "pool": 1, "cross_entropy": 1, "linear": 10, "layer_norm": 5}
    per_part |= {"attention": 2, "gelu": 2}
    parts = 150 / MICRO.config.micro_batch
    both = {f"{name}{suffix}": math.ceil(parts) * n for name, n in per_part.items() for suffix in ("", "_backward")}
    assert {name: count for name, count in calls.items() if name in breakdown.OPS} == both
    assert {breakdown.ADDING, breakdown.OPTIMISER, breakdown.ELSE, breakdown.WAITING} <= set(seconds)
    assert min(seconds.values()) > -1e-4


def test_after_a_breakdown_the_ops_are_themselves() -> None:
    before = {name: getattr(ops, name) for name in breakdown.OPS}
    breakdown.timed_steps(make_task(MICRO, 1), 1)
    assert {name: getattr(ops, name) for name in breakdown.OPS} == before


def test_a_clock_counts_what_is_inside_once_and_adds_up_threads() -> None:
    clock = Clock(["outer", "inner"])

    def work() -> None:
        with clock.section("outer"):
            time.sleep(0.01)
            clock.timed("inner", time.sleep)(0.02)

    begun = time.perf_counter()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    work()
    total = time.perf_counter() - begun
    seconds, calls = clock.take()
    assert calls == {"outer": 2, "inner": 2}
    assert seconds["outer"] >= 0.02
    assert seconds["inner"] >= 0.04
    assert sum(seconds.values()) < total
    assert clock.take() == ({}, {})


def test_the_table_of_a_breakdown_ends_with_the_sum() -> None:
    figures = breakdown.breakdown(make_task(MICRO.changed(kind="prediction"), 1), steps=3)
    assert sum(row["ms_an_image"] for row in figures["rows"]) == pytest.approx(figures["ms_an_image"])
    assert sum(row["share"] for row in figures["rows"]) == pytest.approx(1.0)
    assert breakdown.OPTIMISER not in {row["name"] for row in figures["rows"]}
    linear = next(row for row in figures["rows"] if row["name"] == "linear")
    assert linear["calls"] == 10 * math.ceil(150 / MICRO.config.micro_batch)
    assert linear["products_ms_an_image"] > 0
    assert f"| linear | {linear['calls']} | " in squeezed(breakdown.table(figures))


def test_the_products_of_a_prediction_are_those_of_the_summary() -> None:
    """A model with mean pooling, which has no token that nobody reads."""
    changes = {"global_pool": "avg", "class_token": False, "depth": 3}
    task = make_task(Work("mean", "prediction", "vit_micro_patch4_8", changes, batch_size=8), 1)
    products = breakdown.products_of(task)
    assert set(products) == {"linear", "attention"}
    flops = sum(count * product.flops for found in products.values() for product, count in found.items())
    assert flops == 8 * summarize(task.work.config).flops


def test_products_are_noted_with_their_layout_and_sums_are_none() -> None:
    notes = Notes()
    x, y = notes.noting((np.ones((2, 3, 4), np.float32), np.ones((3, 2), np.float32)))
    out = np.empty((2, 4, 2), np.float32)
    assert np.matmul(x.swapaxes(1, 2), y, out=out) is out
    (2 * x) @ np.ones(4, np.float32)
    (product,) = notes.products
    assert product == (Operand((2, 4, 3), True), Operand((3, 2), False), "float32")
    assert product.flops == 2 * 2 * 4 * 3 * 2
    assert product.a.array("float32").strides == x.swapaxes(1, 2).strides
    assert type(plain(x)) is np.ndarray


def test_the_answer_of_minivit_predict_is_read_and_timed(tmp_path: Path) -> None:
    config = minivit.get_config("vit_micro_patch4_8", in_chans=3)
    everyone = startup.sides(*startup.prepare(tmp_path, config))
    ours = everyone[0]
    assert 0 < startup.measure(ours) < 60
    assert not ours.failure
    assert ours.answer is not None
    assert ours.answer[0] in {f"class{i}" for i in range(10)}
    assert 10 < ours.answer[1] <= 100


def test_start_up_tables_give_ratios_and_name_what_did_not_run() -> None:
    everyone = [
        startup_report.Side("minivit predict", [], ("class1", 50.0), 0.3, [0.2, 0.1, 0.3]),
        startup_report.Side("timm", [], ("class1", 50.1), 3.0, [2.0, 1.0, 2.0]),
        startup_report.Side("PyTorch alone", [], failure="No module named 'torch'"),
    ]
    text = startup_report.table(startup_report.report(everyone))
    assert "| timm | 2.000 | 1.000 | 50.0 % | 3.000 | 10.00x | | 10.00x |" in squeezed(text)
    assert "PyTorch alone did not run: No module named 'torch'" in text
    assert "10.00x: bar 4x" in startup_report.verdict(startup_report.report(everyone))


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([0.9, 1.0, 1.0, 1.0, 1.1], "10.00x: bar 4x reached, aim 8x reached."),
        ([0.3, 0.3, 0.4, 0.5, 0.5], "4.00x: bar 4x open, aim 8x missed."),
        ([1.0], "10.00x: bar 4x open (too few rounds), aim 8x open (too few rounds)."),
    ],
)
def test_the_bar_of_the_start_up_is_reached_missed_or_open(times: list[float], words: str) -> None:
    ours = startup_report.Side("minivit predict", [], ("class1", 50.0), 0.3, [0.1] * len(times))
    theirs = startup_report.Side("timm", [], ("class1", 50.0), 3.0, times)
    figures = startup_report.report([ours, theirs])
    assert startup_report.verdict(figures).endswith(words)
    assert ("Ratio uncertain" in startup_report.table(figures)) == (len(times) == 5)


def scripted(*answers: str) -> list[startup_report.Side]:
    """Return sides that print an answer each, and fail where it is empty."""
    code = "import sys; sys.exit('broken') if not sys.argv[1] else print(sys.argv[1])"
    return [startup_report.Side(f"side {i}", [sys.executable, "-c", code, a]) for i, a in enumerate(answers)]


@pytest.mark.parametrize(
    ("answers", "status", "line"),
    [
        (("50.0 %  class1", "50.1 %  class1"), 0, ""),
        (("50.0 %  class1", ""), 1, ""),
        (("", "50.0 %  class1"), 1, "side 0 failed: broken"),
        (("hello", "50.0 %  class1"), 1, "side 0 failed: it printed no answer"),
        (("50.0 %  class1", "50.0 %  class2"), 1, "the sides give different answers"),
    ],
)
def test_the_start_up_fails_where_a_side_does_or_the_answers_differ(
    answers: tuple[str, ...],
    status: int,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(startup, "prepare", lambda folder, config: (folder, folder))
    monkeypatch.setattr(startup, "sides", lambda *_: scripted(*answers))
    out = tmp_path / "startup.json"
    assert ended(lambda: startup.main(["vit_micro_patch4_8", "--repeats", "1", "--json", str(out)])) == status
    assert capsys.readouterr().err.startswith(line)
    assert out.exists() == (not line)


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (startup.main, ["nosuch"]),
        (startup.main, ["--repeats", "0"]),
        (breakdown.main, ["--steps", "0"]),
        (breakdown.main, ["--set", "depth=two"]),
        (breakdown.main, ["--json", "/dev/null/deep"]),
    ],
)
def test_a_wrong_option_ends_a_command_at_once(main: Callable[[list[str]], Any], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
