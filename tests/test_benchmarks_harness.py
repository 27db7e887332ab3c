"""The harness: processes, rounds, ratios with their noise, memory, and the report."""

import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_runs import fake_run

from benchmarks import memory, worker
from benchmarks.command import ended
from benchmarks.harness import Outcome, Worker, WorkerError, fastest_of, run_rounds, run_worker
from benchmarks.ratios import ratio_of_times, spread
from benchmarks.report import Comparison, figures_text, heading, surroundings
from benchmarks.workloads import GPU_WORKLOADS, WORKLOADS, Workload
from minivit.engine.machine import cores
from minivit.errors import RunError, UserError

SMALL = replace(WORKLOADS["train-w64"].changed(img_size=8, embed_dim=8, depth=2, num_heads=2), batch_size=2)


def test_a_ratio_is_the_other_systems_time_over_ours() -> None:
    ours = [[1.0, 3.0, 1.1], [2.0], [1.0], [1.0], [0.9]]
    ratio = ratio_of_times(ours, [[2.0], [2.2], [1.8], [2.0], [2.1]])
    assert ratio.of_medians == pytest.approx(2.0)  # rounds of ours: 1.1, 2, 1, 1, 0.9
    assert ratio.of_bests == pytest.approx(1.8 / 0.9)
    assert spread([[1.0, 5.0, 1.0], [2.0], [4.0]]) == pytest.approx((4.0 - 1.0) / 2.0)
    with pytest.raises(ValueError, match="4 rounds of ours and 5 of theirs"):
        ratio_of_times([[1.0]] * 4, [[2.0]] * 5)


SLOW_TOGETHER = [1.0, 3.0, 1.0, 2.0, 1.5]  # of both systems in the same round


@pytest.mark.parametrize(
    ("ours", "theirs", "interval", "noisy", "reached"),
    [
        (SLOW_TOGETHER, [1.2 * s for s in SLOW_TOGETHER], (1.2, 1.2), False, {1.1: True, 1.3: False}),
        ([1.0] * 5, [0.9, 1.1, 1.0, 1.2, 1.3], (0.9, 1.3), True, {0.8: True, 1.0: None, 1.2: None, 1.4: False}),
        ([1.0] * 5, [0.98, 0.99, 1.01, 1.02, 1.03], (0.98, 1.03), False, {0.98: True, 1.0: None, 1.04: False}),
        ([1.0] * 4, [2.0] * 4, None, False, {1.0: None}),  # too few rounds
    ],
)
def test_noise_leaves_open_only_the_bars_within_the_interval(
    ours: list[float], theirs: list[float], interval: Any, noisy: bool, reached: dict[float, bool | None]
) -> None:
    ratio = ratio_of_times([[s] for s in ours], [[s] for s in theirs])
    assert ratio.interval == (interval and pytest.approx(interval))
    assert ratio.noisy == noisy
    assert {bar: ratio.reaches(bar) for bar in reached} == reached


def test_rounds_take_turns_leave_out_the_slow_and_survive_failures() -> None:
    run = fake_run({"a": [1.0] * 5, "b": [2.0] * 5, "c": [3.0] * 5, "d": [1.0]})
    order: list[str] = []
    groups = {"ours": ["a"], "theirs": ["b", "c"], "broken": ["d"]}

    def measure(system: str) -> Any:
        order.append(system)
        return run(system)

    outcomes = run_rounds(groups, 5, measure, order.count, lambda i, _: order.append(str(i)))
    assert [len(outcomes[system].results) for system in "abcd"] == [5, 5, 2, 1]
    assert sorted(order[:4]) == sorted(order[5:9]) == ["a", "b", "c", "d"]
    assert [name for name in order if name.isdigit()] == ["1", "2", "3", "4", "5"]
    assert outcomes["c"].stopped == "left out after 2 rounds: 1.50 times as long as b"
    assert outcomes["d"].stopped == "failed: RuntimeError: no more"
    assert [fastest_of(group, outcomes) for group in groups.values()] == ["a", "b", None]
    assert Outcome([{"seconds": seconds} for seconds in ([1.0, 9.0, 2.0], [4.0], [3.0])]).median == 3.0


def test_a_system_is_left_out_if_both_of_its_rounds_were_slower() -> None:
    run = fake_run({"a": [1.0, 1.5, 1.0, 1.0, 1.0], "b": [2.0, 1.2, 1.0, 1.0, 1.0]})
    outcomes = run_rounds({"theirs": ["a", "b"]}, 5, run, lambda _: None)
    assert [len(outcomes[system].results) for system in "ab"] == [5, 5]


@pytest.mark.parametrize(
    ("module", "failed"), [("torch", []), ("minivit.nn", ["eager"]), ("benchmarks.plain_vitt", ["eager"])]
)
def test_a_library_that_is_not_installed_is_no_failure_but_a_part_of_ours_is(module: str, failed: list[str]) -> None:
    outcomes = {
        "minivit": Outcome([{"seconds": [1.0], "peak_bytes": 1.0, "versions": {}}]),
        "pytorch:plain": Outcome(stopped=f"failed: ModuleNotFoundError: No module named '{module}'"),
    }
    groups = {"minivit": ["minivit"], "eager": ["pytorch:plain"]}
    assert Comparison(SMALL, groups, outcomes).failed == failed
    outcomes["minivit"] = Outcome(stopped="failed: ModuleNotFoundError: No module named 'numpy'")
    assert "minivit" in Comparison(SMALL, groups, outcomes).failed


def test_the_fastest_steps_are_those_of_as_many_steps() -> None:
    ratio = ratio_of_times([[2.0, 1.9, 1.0]] * 5, [[4.0, 3.8]] * 5)
    assert ratio.of_bests == pytest.approx(2.0)


def test_no_system_keeps_its_predecessor_and_the_order_is_the_same_every_time() -> None:
    def order() -> list[str]:
        ran: list[str] = []
        run_rounds({name: [name] for name in "abc"}, 10, lambda system: {"seconds": [len(ran) + 1]}, ran.append)
        return [line.split()[-3] for line in ran]

    rounds = [order()[i : i + 3] for i in range(0, 30, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert {each[each.index("a") - 1] for each in rounds if each[0] != "a"} == {"b", "c"}
    assert len({tuple(each) for each in rounds}) > 3
    assert order() == order()


@pytest.mark.parametrize("system", ["minivit", "minivit:processes", "limit:threaded"])
def test_a_process_measures(system: str) -> None:
    result = run_worker(system, SMALL, seconds=0, threads=1)
    assert (len(result["seconds"]), result["threads"]) == (worker.STEPS, 1)
    assert min(result["seconds"]) > 0
    assert 1e6 < result["peak_bytes"] < 1e9
    assert (result["answer"] is None) == (system == "limit:threaded")
    assert {"minivit", "numpy", "BLAS"} <= set(result["versions"])


@pytest.mark.parametrize(
    ("lasts", "seconds", "calls"),  # of which one is the warm-up, unless it is slow; 16 s are long enough
    [(1.0, 0.0, 7), (2.6, 2.5, 7), (0.5, 4.2, 11), (7.5, 2.5, 2), (38.0, 2.5, 2), (4.0, 2.5, 5)],
)
def test_slow_steps_are_few_and_their_number_is_even(
    lasts: float, seconds: float, calls: int, monkeypatch: Any
) -> None:
    now = [0.0]
    monkeypatch.setattr("benchmarks.worker.time.perf_counter", lambda: sum(now))
    times = worker.time_steps(lambda: now.append(lasts), seconds)
    assert sum(now) == pytest.approx(calls * lasts)
    assert times == pytest.approx([lasts] * (calls - calls % 2))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the process itself is counted")
def test_what_processes_share_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three arrays of 100 MB: one that the fork inherited, one that both map, and one of the other process's own."""
    script = Path(__file__).with_name("peak_memory.py")
    highest, alone, together, after = map(int, subprocess.check_output([sys.executable, script]).split())
    assert alone == pytest.approx(highest, abs=4e6)
    assert together - alone == pytest.approx(100e6, abs=30e6)
    assert after - alone == pytest.approx(0, abs=10e6)
    # Memory that is freed while it is read does not count less: the maps were read after 2 GB were given back.
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name: jax\nVmHWM: 3100000 kB\nRssAnon: 2900000 kB\nRssShmem: 0 kB\n")
    maps = "Rss: 600000 kB\nPss: 590000 kB\nAnonymous: 500000 kB\nPss_Anon: 500000 kB\nPss_Shmem: 0 kB\n"
    (tmp_path / "self/smaps_rollup").write_text(maps)
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    assert memory._own_peak("self") == 1024 * 3_100_000


@pytest.mark.parametrize(
    ("system", "workload", "timeout", "message"),
    [
        ("minivit", SMALL.changed(num_heads=7), 60, r"UserError: .*embed_dim 8 cannot be split"),
        ("minivit", SMALL, 0.0, "longer than 0 s"),
        ("minivit", GPU_WORKLOADS["gpu-predict-32"], 60, "UserError: backend 'cupy'"),
        ("nosuch", SMALL, 60, "ModuleNotFoundError: No module named 'benchmarks.systems.nosuch'"),
    ],
)
def test_a_process_that_fails_says_why(
    system: str, workload: Workload, timeout: float, message: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(WorkerError, match=message):
        run_worker(system, workload, 0.0, timeout=timeout)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('Killed')", "^it ended with status 1: Killed$"),
        ("import os; os._exit(2)", "^it ended with status 2$"),
        ("import os; os.kill(os.getpid(), 9)", "^it was ended by SIGKILL, as where memory runs out$"),
    ],
)
def test_a_process_that_ends_unasked_leaves_its_status_and_last_line(
    code: str, message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "ends.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with closing(Worker("ends")) as process:
        for ask in (process.reply, partial(process.measure, 0.0)):
            with pytest.raises(WorkerError, match=message):
                ask(60)


def test_a_command_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(error: BaseException) -> int:
        raise error

    for error, status in (
        (KeyboardInterrupt("stopped by Ctrl-C"), 130),
        (UserError("no file"), 2),
        (RunError("full"), 1),
    ):
        assert ended(partial(main, error)) == status
        assert capsys.readouterr().err == f"{error}\n"
    assert (ended(lambda: None), ended(lambda: 1)) == (0, 1)


def test_a_report_says_where_and_with_what_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = surroundings()
    assert all(found[name] for name in ("cores", "processor", "system", "python", "commit", "date"))
    assert found["cores"] == surroundings(cores() + 1)["cores"] == cores()
    assert ", 1 core used, " in heading(surroundings(1), {}, 1)
    assert heading(surroundings(1), {}, 1).endswith("; 1 process per system, in turn.")
    assert heading(surroundings(1), {}, 1, "one process, 3 turns").endswith("; one process, 3 turns.")
    for name in found["environment"]:
        monkeypatch.delenv(name)
    assert "; with" not in heading(surroundings(), {"NumPy": "2.4"}, 5)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert "NumPy 2.4; with OPENBLAS_CORETYPE=Haswell; commit" in heading(surroundings(), {"NumPy": "2.4"}, 5)
    figures = {"of step": {"seconds": 0.00123456, "rows": [{"name": "a", "GB/s": 1.5}, {"name": "b", "error": "none"}]}}
    assert "**kernels of step**\n\n- seconds: 0.001235\n\n" in figures_text(figures, "kernels")


@pytest.mark.parametrize(
    ("times", "cell"),
    [
        ([1.19, 1.2, 1.2, 1.2, 1.21], "1 (1.3): reached"),
        ([1.1, 1.15, 1.2, 1.25, 1.28], "1 (1.3): reached; ratio uncertain"),
        ([0.7, 0.75, 0.8, 0.85, 0.9], "1 (1.3): missed; ratio uncertain"),
        ([0.8, 0.9, 1.0, 1.1, 1.2], "1 (1.3): open; ratio uncertain"),
        ([1.2], "1 (1.3): open (too few rounds)"),
        ([1.4] * 5, "1 (1.3): target reached"),
    ],
)
def test_a_bar_is_reached_missed_or_open_whatever_else_is_uncertain(times: list[float], cell: str) -> None:
    rounds = {"minivit": [1.0] * len(times), "pytorch:plain": times}
    outcomes = {name: Outcome([{"seconds": [s], "peak_bytes": 1e6} for s in own]) for name, own in rounds.items()}
    groups = {"minivit": ["minivit"], "eager": ["pytorch:plain"]}
    assert Comparison(WORKLOADS["train-tiny"], groups, outcomes).rows[1].cells["required (target)"] == cell
