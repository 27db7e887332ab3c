"""Rounds of processes, and ratios with their noise."""

from __future__ import annotations

from typing import Any

import pytest
from fake_runs import fake_run

from benchmarks.ratios import ratio_of_times, spread
from benchmarks.rounds import Outcome, fastest_of, run_rounds


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


def test_an_interval_that_contains_the_bar_does_not_decide() -> None:
    """However narrow it is."""
    ratio = ratio_of_times([[1.0]] * 5, [[0.98], [0.99], [1.01], [1.02], [1.03]])
    assert not ratio.noisy
    assert ratio.interval == pytest.approx((0.98, 1.03))
    assert ratio.reaches(0.98) is True
    assert ratio.reaches(1.0) is None
    assert ratio.reaches(1.02) is None
    assert ratio.reaches(1.04) is False


def test_few_rounds_tell_nothing_about_noise() -> None:
    ratio = ratio_of_times([[1.0]] * 4, [[2.0]] * 4)
    assert ratio.interval is None
    assert not ratio.noisy
    assert ratio.reaches(1.0) is None
    with pytest.raises(ValueError, match="4 rounds of ours and 5 of theirs"):
        ratio_of_times([[1.0]] * 4, [[2.0]] * 5)


def test_the_spread_is_the_range_of_the_medians() -> None:
    assert spread([[1.0, 5.0, 1.0], [2.0], [4.0]]) == pytest.approx((4.0 - 1.0) / 2.0)


def test_rounds_take_turns_leave_out_the_slow_and_survive_failures() -> None:
    run = fake_run({"a": [1.0] * 5, "b": [2.0] * 5, "c": [3.0] * 5, "d": [1.0]}, {})
    order: list[str] = []
    groups = {"ours": ["a"], "theirs": ["b", "c"], "broken": ["d"]}

    def measure(system: str) -> Any:
        order.append(system)
        return run(system)

    outcomes = run_rounds(groups, 5, measure)
    assert [len(outcomes[system].results) for system in "abcd"] == [5, 5, 2, 1]
    assert sorted(order[:4]) == sorted(order[4:8]) == ["a", "b", "c", "d"]
    assert outcomes["c"].stopped == "left out after 2 rounds: 1.50 times as long as b"
    assert outcomes["d"].stopped == "failed: RuntimeError: no more"
    assert [fastest_of(group, outcomes) for group in groups.values()] == ["a", "b", None]


def test_no_system_keeps_its_predecessor_and_the_order_is_the_same_every_time() -> None:
    def order() -> list[str]:
        ran: list[str] = []

        def run(system: str) -> dict[str, Any]:
            ran.append(system)
            return {"seconds": [1.0]}

        run_rounds({"ours": ["a"], "theirs": ["b"], "more": ["c"]}, 10, run)
        return ran

    rounds = [order()[i : i + 3] for i in range(0, 30, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    before = [each[each.index("a") - 1] for each in rounds if each[0] != "a"]
    assert set(before) == {"b", "c"}
    assert len({tuple(each) for each in rounds}) > 3
    assert order() == order()


def test_an_outcome_is_the_median_over_the_rounds() -> None:
    results = [{"seconds": s, "peak_bytes": p} for s, p in (([1.0, 9.0, 2.0], 5), ([4.0], 7), ([3.0], 6))]
    outcome = Outcome(results)
    assert (outcome.median, outcome.best, outcome.peak_bytes) == (3.0, 1.0, 6)
