"""The benchmarks: works, rounds, statistics, the limit's products, and one real process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import compare as compare_module
from benchmarks.bars import BARS, PEERS, impossible, systems_of, usual_peers
from benchmarks.products import Product, Weights, products
from benchmarks.ratios import ratio_of_times, spread
from benchmarks.rounds import Outcome, WorkerError, fastest_of, run_rounds, run_worker
from benchmarks.sides import find_side, missing
from benchmarks.sides.limit import layouts, prepare
from benchmarks.surroundings import surroundings
from benchmarks.task import make_task
from benchmarks.works import WORKS, Work, get_work
from minivit.config import ViTConfig

SMALL = ["img_size=8", "embed_dim=8", "depth=2", "num_heads=2", "num_classes=3"]


# Works


def test_the_works_are_those_of_the_bars() -> None:
    sizes = {
        name: (c.embed_dim, c.depth, c.num_heads, c.hidden_dim, c.num_tokens, work.batch_size)
        for name, work in WORKS.items()
        for c in [work.config]
    }
    assert sizes == {
        "train-tiny": (192, 12, 3, 768, 65, 128),
        "train-tiny-1024": (192, 12, 3, 768, 65, 1024),
        "train-w96": (96, 6, 4, 192, 65, 128),
        "train-w64": (64, 4, 8, 128, 65, 64),
        "predict-224": (192, 12, 3, 768, 197, 32),
        "predict-one": (192, 12, 3, 768, 197, 1),
    }
    for name, work in WORKS.items():
        config = work.config
        assert work.kind == ("training" if name.startswith("train") else "prediction")
        assert (config.class_token, config.global_pool, config.act_layer) == (True, "token", "gelu")
        rates = (config.drop_rate, config.pos_drop_rate, config.proj_drop_rate, config.attn_drop_rate)
        assert not any((*rates, config.drop_path_rate))
    assert {bar.work for bar in BARS} == set(WORKS)
    assert {bar.peer for bar in BARS} <= set(PEERS)


def test_a_work_is_changed_by_assignments() -> None:
    work = get_work("train-w64", ["batch_size=2", "img_size=(8, 12)", "act_layer=gelu_tanh", "kind=prediction"])
    assert (work.batch_size, work.kind, work.trains) == (2, "prediction", False)
    assert (work.config.height, work.config.width, work.config.act_layer) == (8, 12, "gelu_tanh")
    assert work.config.embed_dim == 64
    assert WORKS["train-w64"].batch_size == 64


@pytest.mark.parametrize(
    ("name", "assignments", "match"),
    [
        ("train-huge", [], "no work called 'train-huge'"),
        ("train-tiny", ["depth"], "no assignment"),
        ("train-tiny", ["batch_size=0"], "at least 1"),
        ("train-tiny", ["kind=dreaming"], "expected 'training' or 'prediction'"),
    ],
)
def test_a_wrong_work_is_named(name: str, assignments: list[str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        get_work(name, assignments)


def test_a_task_is_the_same_every_time() -> None:
    first, second = (make_task(get_work("train-w64", [*SMALL, "batch_size=2"]), 1) for _ in range(2))
    np.testing.assert_array_equal(first.images, second.images)
    assert first.state.keys() == second.state.keys()
    assert all(np.array_equal(value, second.state[name]) for name, value in first.state.items())
    assert all(value.any() for value in first.state.values())
    assert "blocks.0.mlp.fc1.weight" in first.decay
    assert "blocks.0.mlp.fc1.bias" not in first.decay


# Statistics


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


# The products of the limit


def test_the_products_of_train_tiny_are_those_of_the_mathematics() -> None:
    """Counted by hand: N 65 tokens, D 192, F 768, 48 numbers a patch, 64 patches, 10 classes, 12 blocks."""
    N, D, F, B = 65, 192, 768, 2
    whole_block = N * D * 3 * D + 2 * N * N * D + N * D * D + 2 * N * D * F
    last_block = N * D * 2 * D + D * D + 2 * N * D + D * D + 2 * D * F  # one query
    patch_embed, head = 64 * 48 * D, D * 10
    forward = patch_embed + 11 * whole_block + last_block + head
    backward = patch_embed + 2 * (11 * whole_block + last_block + head)
    config = WORKS["train-tiny"].config
    weights = Weights(config)
    assert sum(p.flops for p in products(config, weights, B, training=False)) == 2 * B * forward
    assert sum(p.flops for p in products(config, weights, B, training=True)) == 2 * B * (forward + backward)


def test_a_mean_of_tokens_needs_all_of_the_last_block() -> None:
    config = ViTConfig(8, 4, 3, 5, 8, 1, 2, mlp_ratio=2.0, class_token=False, global_pool="avg")
    N, D, F = 4, 8, 16
    block = N * D * 3 * D + 2 * N * N * D + N * D * D + 2 * N * D * F
    found = products(config, Weights(config), 3, training=False)
    assert sum(p.flops for p in found) == 2 * 3 * (N * 48 * D + block + D * 5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("near", [False, True])
def test_the_products_fit_and_write_where_they_say(training: bool, near: bool) -> None:
    config = get_work("train-w64", SMALL).config
    for product in products(config, Weights(config), 3, training, near):
        expected = product.a @ product.b
        product.out[...] = 0
        product.run()
        np.testing.assert_allclose(product.out, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 5, 6])
def test_the_shares_of_a_product_are_the_product(rows: int) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, rows, 3)), generator.normal(size=(2, 3, 4))
    out = np.zeros((2, rows, 4))
    whole = Product(a, b, out)
    shares = [whole.share(part, 2) for part in range(2)]
    for share in shares:
        share.run()
    np.testing.assert_allclose(out, a @ b)
    assert sum(share.flops for share in shares) == whole.flops


def test_the_layouts_keep_every_thread_busy() -> None:
    assert layouts(WORKS["train-tiny"], 2) == ["threaded", "micro-8", "micro-16", "micro-32"]
    assert layouts(WORKS["predict-224"], 2) == ["threaded", "micro-4", "micro-8", "micro-16"]
    assert layouts(get_work("train-tiny", ["batch_size=4"]), 2) == ["threaded", "micro-2"]
    assert layouts(WORKS["predict-one"], 2) == ["threaded", "rows"]
    near = [f"limit:{layout}-near" for layout in layouts(WORKS["train-tiny"], 2)]
    assert systems_of("limit-near", WORKS["train-tiny"], 2) == near


@pytest.mark.parametrize("variant", ["threaded", "micro-2", "micro-2-near", "rows"])
def test_every_layout_computes_all_products(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = get_work("predict-one" if variant == "rows" else "train-w64", SMALL)
    work = work.changed(batch_size=1 if variant == "rows" else 5, patch_size=4)
    done: list[int] = []
    monkeypatch.setattr(Product, "run", lambda self: done.append(self.flops))
    monkeypatch.setattr("threadpoolctl.threadpool_limits", lambda *limits, **kinds: None)
    prepare(make_task(work, threads=2), variant)()
    config = work.config
    assert sum(done) == sum(p.flops for p in products(config, Weights(config), work.batch_size, work.trains))


# Rounds and reports


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


def test_who_is_measured_by_default() -> None:
    assert usual_peers(WORKS["train-tiny-1024"]) == ["eager", "eager-kept", "limit"]
    assert {"eager", "compile", "jax", "limit"} <= set(usual_peers(WORKS["train-tiny"]))
    assert "onnx" in usual_peers(WORKS["predict-one"])
    assert "onnx" not in usual_peers(WORKS["train-tiny"])
    assert impossible("onnx", WORKS["train-tiny"]) == "it does not train"


def test_sides_are_found_by_name() -> None:
    side, variant = find_side("limit:micro-16")
    assert (side.__name__, variant) == ("benchmarks.sides.limit", "micro-16")  # type: ignore[attr-defined]
    assert missing("minivit") == []
    with pytest.raises(ValueError, match="no system called 'pytorch:fast'"):
        find_side("pytorch:fast")


# A real process


@pytest.mark.parametrize("system", ["minivit", "limit:threaded"])
def test_a_process_measures(system: str) -> None:
    small = [argument for text in [*SMALL, "batch_size=2"] for argument in ("--set", text)]
    result = run_worker(system, "train-w64", [*small, "--seconds", "0", "--threads", "1"])
    assert len(result["seconds"]) == 3
    assert all(seconds > 0 for seconds in result["seconds"])
    assert 1e6 < result["peak_bytes"] < 1e9
    assert result["threads"] == 1
    assert {"minivit", "NumPy", "BLAS"} <= set(result["versions"])


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(WorkerError, match=r"UserError: .*embed_dim 64 cannot be split"):
        run_worker("minivit", "train-w64", ["--set", "num_heads=7"])
    with pytest.raises(WorkerError, match="longer than 0 s"):
        run_worker("minivit", "train-w64", timeout=0.01)


def test_the_surroundings_name_machine_and_commit() -> None:
    found = surroundings()
    assert found["cores"] >= 1
    assert all(found[name] for name in ("processor", "system", "python", "commit", "date"))


def test_a_step_of_ours_trains_and_a_prediction_predicts() -> None:
    work = get_work("train-w64", [*SMALL, "batch_size=4"])
    side, variant = find_side("minivit")
    step = side.prepare(make_task(work, 1), variant)
    losses = [float(step()) for _ in range(6)]
    assert losses[-1] < losses[0]
    predict = side.prepare(make_task(Work("p", "prediction", work.preset, work.overrides, 4), 1), variant)
    assert predict().shape == (4, 3)
