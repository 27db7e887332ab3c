"""The benchmarks: works, and who is measured."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.bars import BARS, PEERS, impossible, usual_peers
from benchmarks.sides import find_side, limit, missing
from benchmarks.surroundings import surroundings
from benchmarks.tables import heading
from benchmarks.task import make_task
from benchmarks.works import WORKS, Work, get_work

SMALL = ["img_size=8", "embed_dim=8", "depth=2", "num_heads=2", "num_classes=3"]


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


def test_who_is_measured_by_default() -> None:
    assert usual_peers(WORKS["train-tiny-1024"]) == ["eager", "eager-kept", "limit"]
    assert {"eager", "compile", "jax", "limit"} <= set(usual_peers(WORKS["train-tiny"]))
    assert "onnx" in usual_peers(WORKS["predict-one"])
    assert "onnx" not in usual_peers(WORKS["train-tiny"])
    assert impossible("onnx", WORKS["train-tiny"]) == "it does not train"
    assert impossible("limit-near", WORKS["train-tiny"]) is None
    assert impossible("limit-near", WORKS["predict-one"]) == "the operands of a prediction are near in any case"


def test_sides_are_found_by_name() -> None:
    side, variant = find_side("limit:micro-16")
    assert (side, variant) == (limit, "micro-16")
    assert missing("minivit") == []
    with pytest.raises(ValueError, match="no system called 'pytorch:fast'"):
        find_side("pytorch:fast")


def test_the_surroundings_name_machine_and_commit() -> None:
    found = surroundings()
    assert found["cores"] >= 1
    assert all(found[name] for name in ("processor", "system", "python", "commit", "date"))


def test_a_report_says_which_variables_steer_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in surroundings()["environment"]:
        monkeypatch.delenv(name)
    assert "; with" not in heading(surroundings(), {"NumPy": "2.4"}, 5)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert "NumPy 2.4; with OPENBLAS_CORETYPE=Haswell; commit" in heading(surroundings(), {"NumPy": "2.4"}, 5)


def test_a_step_of_ours_trains_and_a_prediction_predicts() -> None:
    work = get_work("train-w64", [*SMALL, "batch_size=4"])
    side, variant = find_side("minivit")
    step = side.prepare(make_task(work, 1), variant)
    losses = [float(step()) for _ in range(6)]
    assert losses[-1] < losses[0]
    predict = side.prepare(make_task(Work("p", "prediction", work.preset, work.overrides, 4), 1), variant)
    assert predict().shape == (4, 3)
