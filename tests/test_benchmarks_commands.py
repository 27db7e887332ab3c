"""The commands: compare, ablations, scaling, breakdown, recipes and startup."""

import json
import math
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import fake_run, made_up, scripted, squeezed

import minivit
from benchmarks import ablations, breakdown, compare, gpu, harness, recipes, scaling, startup
from benchmarks.baselines import ABLATED
from benchmarks.command import ended
from benchmarks.harness import WorkerError
from benchmarks.report import records_table, surroundings
from benchmarks.scaling import fit_exponent, growth_table, memory_table, rate_table
from benchmarks.systems.limit import layouts
from benchmarks.workloads import WORKLOADS, Workload, make_task
from minivit import ops
from minivit.train.training import Training

MICRO = Workload("micro", "training", "vit_micro_patch4_8", {"depth": 2}, batch_size=150)


def test_a_comparison_of_fake_systems(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    times = {
        "minivit": [100.0] * 5,
        "pytorch:plain": [140.0, 141.0, 139.0, 140.0, 142.0],
        "pytorch:timm": [170.0] * 5,
        "jax": [],
        **{f"limit:{layout}": [90.0 + i] * 5 for i, layout in enumerate(layouts(WORKLOADS["train-tiny"], 2))},
    }
    fake = fake_run(times, {"pytorch:plain": 2.5e9})

    def run(system: str, workload: Workload, **options: Any) -> dict[str, Any]:
        if "compile" in system:
            raise WorkerError("ModuleNotFoundError: No module named 'torch'")
        return fake(system) | {"answer": 2.0 if system == "pytorch:plain" else 2.001}

    monkeypatch.setattr(harness, "run_worker", run)
    monkeypatch.setattr(compare, "cores", lambda: 2)
    out, table = tmp_path / "deep" / "report.json", tmp_path / "report.md"
    arguments = ["train-tiny", "--threads", "2", "--against", "eager", "compile", "jax", "limit", "onnx"]
    assert compare.main([*arguments, "--json", str(out), "--markdown", str(table)]) == 1
    report = json.loads(out.read_text())
    (found,) = report["workloads"]
    ours, eager, limit = found["rows"]
    assert [row["title"] for row in found["rows"]] == ["minivit", "PyTorch eager (plain)", "limit (threaded)"]
    assert ours["images_per_second"] == pytest.approx(1280.0)
    assert (eager["ratio"]["of_medians"], eager["memory_ratio"]) == pytest.approx((1.4, 25.0))
    assert eager["verdicts"] == ["1 (1.3): target reached"]
    assert (limit["ratio"]["of_medians"], limit["memory_ratio"]) == (pytest.approx(0.9), None)
    assert report["versions"]["pytorch:plain"] == "1.0"
    assert len(found["systems"]["pytorch:plain"]["results"]) == 5
    assert found["notes"] == [
        "ONNX Runtime: not measured: it does not train",
        "pytorch:timm: left out after 2 rounds: 1.21 times as long as pytorch:plain",
        "pytorch:compile-plain: failed: ModuleNotFoundError: No module named 'torch'",
        "pytorch:compile-timm: failed: ModuleNotFoundError: No module named 'torch'",
        "jax: failed: RuntimeError: no more",
    ]
    (printed, told), written = capsys.readouterr(), table.read_text()
    assert told.splitlines()[-1] == "failed: train-tiny: jax", "what is not installed did not fail"
    words = "1 (1.3): target reached", "0.78 (0.85): target reached", "jax: failed: RuntimeError: no more"
    assert all(word in text for text in (printed, written) for word in (*words, report["surroundings"]["commit"]))


@pytest.mark.parametrize("answer", [2.5, math.nan])
def test_a_system_that_computes_something_else_is_no_baseline(answer: float, monkeypatch: Any, capsys: Any) -> None:
    fake = fake_run({"minivit": [1.0] * 5, "jax": [1.0] * 5})
    answers = {"minivit": 2.3, "jax": answer}
    monkeypatch.setattr(harness, "run_worker", lambda system, **_: fake(system) | {"answer": answers[system]})
    assert compare.main(["train-w64", "--against", "jax"]) == 1
    printed, told = capsys.readouterr()
    assert f"jax: its first answer is {answer}, minivit's 2.3: not the same model" in printed
    assert told.splitlines()[-1] == "failed: train-w64: jax computes something else"


NOISY = [160.0, 170.0, 185.0, 190.0, 230.0]


@pytest.mark.parametrize(
    ("arguments", "times", "status", "words"),
    [
        (["train-tiny-1024"], {"minivit": [1.0] * 5}, 0, "2 (2.6): target reached; memory 20 (30): missed"),
        (["train-tiny-1024"], {"minivit": [1.0]}, 1, "minivit: failed: RuntimeError: no more"),
        (["train-tiny"], {"minivit": [100.0] * 5, "jax": NOISY}, 0, "1.8 (2.3): open; ratio uncertain"),
        (
            ["train-tiny"],
            {"minivit": [100.0] * 5, "jax": NOISY},
            0,
            "too noisy to tell the ratio, which lies in 1.60",
        ),
        (["train-tiny", "--processes", "3"], {"minivit": [100.0] * 3, "jax": NOISY}, 0, "fewer than 5 rounds cannot"),
    ],
)
def test_bars_failures_and_noise_are_said(
    arguments: list[str], times: dict[str, list[float]], status: int, words: str, monkeypatch: Any, capsys: Any
) -> None:
    eager = {"pytorch:plain": [5.0] * 5, "pytorch:timm": [5.0] * 5}
    monkeypatch.setattr(harness, "run_worker", fake_run(eager | times))
    assert compare.main([*arguments, "--against", "jax" if "jax" in times else "eager"]) == status
    assert words in capsys.readouterr().out


def test_an_interrupted_comparison_keeps_the_workloads_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(system: str, workload: Workload, **options: Any) -> Any:
        if workload.name == "train-w96":
            raise KeyboardInterrupt
        return fake_run({system: [1.0]})(system)

    monkeypatch.setattr(harness, "run_worker", run)
    out = tmp_path / "report.json"
    assert ended(lambda: compare.main(["train-w64", "train-w96", "--against", "jax", "--json", str(out)])) == 130
    assert [entry["workload"]["name"] for entry in json.loads(out.read_text())["workloads"]] == ["train-w64"]


def test_ablations_are_compared_with_the_step_as_it_is_or_without_the_block(monkeypatch: Any, capsys: Any) -> None:
    speeds = {"minivit": 100.0, "minivit:block": 110.0, "minivit:gelu": 132.0}
    systems = ["minivit", *(f"minivit:{name}" for name in ABLATED)]
    times = {system: [speeds.get(system, 200.0)] * 5 * (system != "minivit:workers") for system in systems}
    monkeypatch.setattr(harness, "run_worker", fake_run(times))
    assert ablations.main(["train-w64", "--rounds", "5"]) == 1
    printed, told = capsys.readouterr()
    assert told.splitlines()[-1] == "failed: train-w64: workers"
    rows = {cells[1]: cells for line in printed.splitlines() if len(cells := [*map(str.strip, line.split("|"))]) == 12}
    titles = {name: baseline.title for name, baseline in ABLATED.items()}
    assert [*rows][3:] == [title for name, title in titles.items() if name != "workers"]
    assert (rows[titles["block"]][6], rows[titles["gelu"]][6]) == ("1.10", "1.20")  # gelu over that without the block
    assert rows[titles["processes"]][6:8] == ["2.00", "2.00 to 2.00"]
    assert "minivit:workers: failed: RuntimeError: no more" in printed


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (compare.main, ["train-huge"], "no workload 'train-huge'"),
        (compare.main, ["--processes", "0"], "at least 1"),
        (compare.main, ["--threads", "99999"], "lets a process use"),
        (compare.main, ["train-w64", "--json", "{folder}"], "cannot write"),
        (compare.main, ["train-w64", "--markdown", "{folder}/file/table.md"], "cannot write"),
        (startup.main, ["nosuch"], "nosuch"),
        (startup.main, ["--repeats", "0"], "at least 1"),
        (breakdown.main, ["--json", "{folder}/file/deep"], "cannot write"),
        (scaling.main, ["--out", "{folder}/file"], "cannot write"),
        (gpu.main, ["--rehearse", "--only", "everything"], "everything"),
    ],
)
def test_a_wrong_option_ends_a_command_before_anything_is_measured(
    main: Any, arguments: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(harness, "run_rounds", lambda *arguments: pytest.fail("something was measured"))
    with pytest.raises(SystemExit) as stop:
        sys.exit(ended(lambda: main([text.format(folder=tmp_path) for text in arguments])))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_exponent_of_a_power_is_found_and_its_error_is_that_of_the_line() -> None:
    x = [16, 64, 128, 512]
    assert fit_exponent(x, [3.0 * v**1.7 for v in x]) == pytest.approx((1.7, 0.0, 1.7), abs=1e-9)
    # logarithms 0, 1, 3 over 0, 1, 2: slope 1.5, residuals 1, -2, 1 sixths
    assert fit_exponent([1.0, 2.0, 4.0], [1.0, 2.0, 8.0]) == pytest.approx((1.5, math.sqrt(6 / 36 / 1 / 2), 2.0))
    assert math.isnan(fit_exponent([1.0, 2.0], [1.0, 3.0])[1])


def test_tables_of_made_up_points() -> None:
    points = made_up()
    assert "| 65 | 31 | 15 | 2.00x | 10.0 % |" in squeezed(rate_table(points, "tokens"))
    growth = squeezed(growth_table(points, ["depth"]))
    assert "| depth | training | minivit | 1 to 12 | 1.00 ± 0.00 | 2.00 | 6 to 12 | 1.00 | 2.00 |" in growth
    memory = squeezed(memory_table(points))
    assert "| 1024 | 202 | 202 |" in memory
    assert "minivit: 100 MB and 0.100 MB for each image." in memory
    gap = [p for p in points if (p.system, p.value) != (scaling.THEIRS, 1024)]
    assert "| 1024 | 2 | | | 10.0 % |" in squeezed(rate_table(gap, "batch"))
    assert "| 1024 | 202 | |" in squeezed(memory_table(gap))


def test_a_folder_with_tables_figures_and_all_numbers_is_written(tmp_path: Path) -> None:
    points = made_up(("training",))
    about = {"surroundings": surroundings(), "versions": {"NumPy": np.__version__}, "rounds": 2}
    scaling.write(points, {**about, "left_out": {"pytorch:timm": "No module named 'timm'"}}, tmp_path)
    text = (tmp_path / "scaling.md").read_text()
    assert "pytorch:timm was left out: No module named 'timm'." in text
    assert len(json.loads((tmp_path / "scaling.json").read_text())["points"]) == len(points)
    for name in ("rate_by_tokens", "rate_by_threads", "memory_by_batch"):
        assert "PyTorch eager" in (tmp_path / f"{name}.svg").read_text()
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("broken", "stop_after", "status"),
    [("", None, 0), ("minivit", None, 1), ("pytorch:timm", None, 1), ("", 19, 130)],  # 18 processes a round
)
def test_a_system_that_fails_is_an_error_and_ctrl_c_keeps_the_rounds_that_are_complete(
    broken: str, stop_after: int | None, status: int, tmp_path: Path, monkeypatch: Any
) -> None:
    calls: list[str] = []

    def run(system: str, workload: Workload, seconds: float, threads: int) -> dict[str, Any]:
        calls.append(system)
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        if system == broken:
            raise WorkerError("MemoryError")
        return {"seconds": [0.1], "peak_bytes": 10**8, "versions": {"NumPy": np.__version__}}

    monkeypatch.setattr(harness, "run_worker", run)
    rounds = "1" if stop_after is None else "3"
    arguments = ["--quick", "--axes", "depth", "batch", "--rounds", rounds, "--out", str(tmp_path)]
    assert ended(lambda: scaling.main(arguments)) == status
    text, found = (tmp_path / "scaling.md").read_text(), json.loads((tmp_path / "scaling.json").read_text())
    assert ("was left out: MemoryError." in text) == bool(broken)
    assert "## Memory" in text
    assert found["rounds"] == 1
    assert {len(point["images_a_second"]) for point in found["points"]} == {1}
    assert len(found["points"]) == (6 if broken == "minivit" else 12)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_breakdown_names_every_op_of_all_workers_and_sums_to_the_time_of_the_step(threads: int) -> None:
    before = {name: getattr(ops, name) for name in breakdown.OPS}
    begun = time.perf_counter()
    seconds, calls = breakdown.timed_steps(make_task(MICRO, threads), 2)
    assert 0 < sum(seconds.values()) < threads * (time.perf_counter() - begun)
    a_part = {"patches": 1, "embed": 1, "pool": 1, "cross_entropy": 1, "linear": 10, "layer_norm": 5}
    a_part |= {"attention": 2, "gelu": 2}
    both = {f"{name}{suffix}": 3 * count for name, count in a_part.items() for suffix in ("", "_backward")}
    assert {name: count for name, count in calls.items() if name in breakdown.OPS} == both
    assert {breakdown.OPTIMIZER, breakdown.ELSE, breakdown.WAITING} <= set(seconds)
    assert min(seconds.values()) > -1e-3
    assert {name: getattr(ops, name) for name in breakdown.OPS} == before


def test_a_clock_adds_up_the_processor_time_of_threads() -> None:
    clock = breakdown.Clock(["busy", "idle"])

    def work() -> None:
        sum(range(1_000_000))

    def seconds_of_one() -> float:
        begun = time.thread_time()
        work()
        return time.thread_time() - begun

    one = min(seconds_of_one() for _ in range(5))
    busy, idle = clock.timed("busy", work), clock.timed("idle", time.sleep)
    thread = threading.Thread(target=busy)
    thread.start()
    busy()
    idle(0.05)
    thread.join()
    (of_busy, busy_calls), (of_idle, idle_calls) = clock.take().values()
    assert (busy_calls, idle_calls) == (2, 1)
    assert of_busy > 1.5 * one
    assert of_idle < 0.01
    assert clock.take() == {}


def test_the_table_of_a_breakdown_ends_with_the_sum() -> None:
    *rows, total = breakdown.breakdown(make_task(replace(MICRO, kind="prediction"), 1), steps=3)
    assert sum(row["ms an image"] for row in rows) == pytest.approx(total["ms an image"])
    assert (total["1 thread"], total["share"]) == ("all", "100.0 %")
    assert breakdown.OPTIMIZER not in {row["1 thread"] for row in rows}
    linear = next(row for row in rows if row["1 thread"] == "linear")
    assert linear["calls"] == 10 * 3
    assert linear["products alone, ms"] > 0
    assert "| linear | 30 | " in squeezed(records_table(rows))


@pytest.mark.parametrize(
    ("answers", "failed", "note"),
    [
        ({"timm:hurried": "50.1 %  class1", "python:nothing": "hello"}, [], "too few rounds"),
        ({"torch:alone": ""}, ["PyTorch alone"], "torch:alone: failed: broken"),
        ({"minivit": ""}, ["minivit"], "minivit: failed: broken"),
        ({"minivit": "hello"}, ["minivit"], "minivit: failed: it printed no answer"),
        ({"torch:alone": "50.0 %  class2"}, ["PyTorch alone computes something else"], "is 50 class2, minivit's 50"),
        ({"torch:alone": "60.0 %  class1"}, ["PyTorch alone computes something else"], "is 60 class1, minivit's 50"),
    ],
)
def test_the_start_up_fails_where_a_command_does_or_the_answers_differ(
    answers: dict[str, str], failed: list[str], note: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    config = minivit.get_config("vit_micro_patch4_8", in_chans=3)
    commands = startup.commands_for(*startup.prepare(tmp_path / "model", config))
    monkeypatch.setattr(startup, "prepare", lambda *_: (tmp_path, tmp_path))
    monkeypatch.setattr(startup, "commands_for", lambda *_: scripted(answers))
    out = tmp_path / "startup.json"
    assert startup.main(["vit_micro_patch4_8", "--repeats", "1", "--json", str(out)]) == bool(failed)
    printed, told = capsys.readouterr()
    assert note in printed
    assert all(f"start-up: {name}" in told.splitlines()[-1] for name in failed)
    assert json.loads(out.read_text())["workloads"][0]["rows"][-1]["title"] == "Python, import numpy"
    if not failed:  # the answer of `minivit predict` is read
        found = startup.run_command(commands, "minivit")
        assert found["label"] in {f"class{i}" for i in range(10)}
        assert 10 < found["answer"] <= 100


def test_the_time_of_a_recipe_is_its_steps_times_the_median_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What augmentation costs is the difference to the same steps without it."""
    seconds = recipes.step_seconds

    def scripted_step(training: Training, batch: np.ndarray) -> float:
        assert seconds(training, batch) > 0
        return 0.5 if training.recipe.flip else 0.4

    monkeypatch.setattr(recipes, "step_seconds", scripted_step)
    recipe, out = tmp_path / "mine.toml", tmp_path / "times.json"
    recipe.write_text(
        'model = "vit_micro_patch4_8"\nepochs = 3\nbatch_size = 16\nflip = true\nvalidation = 0.0\n'
        "mixup_alpha = 0.5\n[model_options]\nimg_size = 8\ndepth = 1\nin_chans = 3\n"
    )
    assert recipes.main([str(recipe), "--rounds", "5", "--images", "40", "--threads", "1", "--json", str(out)]) == 0
    (found,) = json.loads(out.read_text())["recipes"]
    assert (found["epochs"], found["steps"], found["milliseconds"]) == (3, 9, 500.0)
    assert found["minutes"] == pytest.approx(9 * 0.5 / 60)
    assert found["augmentation"] == pytest.approx(0.2)
    assert "0.200 to 0.200" in capsys.readouterr().out
