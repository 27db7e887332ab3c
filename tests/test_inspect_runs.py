"""The steps of a run in the data of the explorer's page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run
from explored import assert_valid
from strict import strict

import minivit
from minivit.arrays import Array, to_backend
from minivit.explorer import Limits, explore, update_ratios
from minivit.tracing import attention_distance
from minivit.train.run_folder import RunFolder
from minivit.train.watch_options import WatchOptions
from minivit.weights import load_model

EVERY = 5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = small_run.run_at(tmp_path_factory.mktemp("runs") / "kept")
    run.watch_options = WatchOptions(keep_every=EVERY)
    small_run.train(run, small_run.make_dataset(), small_run.Listener())
    return RunFolder.open(run.path)


def image() -> tuple[Array, list[int]]:
    pixels = small_run.make_dataset().test_images[:1]
    return ((pixels / 255 - 0.5) / 0.25).astype(np.float32), [1]


def page_of(run: RunFolder, **options: Any) -> dict[str, Any]:
    data = explore(load_model(run.path / "best"), *image(), run=run, checkpoint="best", checks=False, **options)
    assert_valid(data)
    return data


@pytest.fixture(scope="module")
def data(run: RunFolder) -> dict[str, Any]:
    return page_of(run)


def test_all_kept_steps_come_before_the_model_of_the_page(run: RunFolder, data: dict[str, Any]) -> None:
    kept = list(run.kept_steps())
    assert kept[:2] == [0, EVERY]
    assert [step["step"] for step in data["depth"]["steps"]] == [*kept, None]
    assert [step["label"] for step in data["depth"]["steps"]] == [*(f"step {step}" for step in kept), "best"]
    assert data["depth"]["note"] == ""


def test_each_step_has_the_norms_and_distances_of_its_own_model(run: RunFolder, data: dict[str, Any]) -> None:
    for step, folder in zip(data["depth"]["steps"], run.kept_steps().values(), strict=False):
        model = load_model(folder)
        trace = minivit.trace(model, *image())
        assert step["y"] == [row.y.norm for row in trace.rows()]
        assert step["dparameters"] == [row.gradient for row in trace.rows()]
        assert step["loss"] == float(np.asarray(trace.loss))
        assert step["distance"] == attention_distance(model, image()[0]).tolist()


def test_update_ratios_are_the_medians_of_those_of_the_run(run: RunFolder, data: dict[str, Any]) -> None:
    depth, found = data["depth"], update_ratios(run)
    assert depth["steps"][0]["update_ratio"] is None
    assert depth["steps"][-1]["update_ratio"] is None
    for step, ratios in zip(depth["steps"][1:-1], found.ratios, strict=True):
        by_name = dict(zip(found.names, ratios.tolist(), strict=True))
        for layer, shown in zip(depth["layers"], step["update_ratio"], strict=True):
            own = sorted(r for name, r in by_name.items() if name.startswith(f"{layer}.") and not np.isnan(r))
            # Of a layer whose parameters are all zero, as those of a new head, there is no ratio.
            assert shown == ((own[(len(own) - 1) // 2] + own[len(own) // 2]) / 2 if own else None)


def test_of_many_steps_some_are_evenly_chosen_which_is_said(run: RunFolder) -> None:
    depth, kept = page_of(run, limits=Limits(steps=2))["depth"], list(run.kept_steps())
    assert [step["step"] for step in depth["steps"]] == [kept[0], kept[-1], None]
    assert depth["note"] == f"2 of the run's {len(kept)} kept steps, evenly chosen."
    states = [(step, load_model(folder).state_dict()) for step, folder in run.kept_steps().items()]
    expected = update_ratios([states[0], states[-1]])
    of_block = [r for name, r in zip(expected.names, expected.ratios[0], strict=True) if name.startswith("blocks.1.")]
    assert depth["steps"][1]["update_ratio"][2] == pytest.approx(np.nanmedian(of_block), rel=1e-12)


def test_steps_are_of_the_configuration_of_the_page(run: RunFolder) -> None:
    model = load_model(run.path / "best", "float64", img_size=8)
    images = np.random.default_rng(0).standard_normal((1, 8, 8, 1))
    data = explore(model, images, [0], run=run, checkpoint="best", checks=False)
    assert_valid(data)
    first = load_model(run.kept_steps()[0], "float64", img_size=8)
    expected = minivit.trace(first, images, [0])
    assert data["depth"]["steps"][0]["y"] == [row.y.norm for row in expected.rows()]


@pytest.mark.usefixtures("computed")
def test_steps_are_on_the_device_of_the_model(run: RunFolder, data: dict[str, Any]) -> None:
    images, labels = image()
    model = load_model(run.path / "best", backend="strict")
    depth = explore(model, to_backend(images, strict), labels, run=run, checkpoint="best", checks=False)["depth"]
    for ours, theirs in zip(depth["steps"], data["depth"]["steps"], strict=True):
        assert ours["y"] == pytest.approx(theirs["y"], rel=1e-4)
        assert ours["update_ratio"] == theirs["update_ratio"]


def test_a_run_without_kept_steps_says_how_to_keep_them(tmp_path: Path) -> None:
    run = small_run.run_at(tmp_path / "run")
    small_run.train(run, small_run.make_dataset(), small_run.Listener())
    depth = page_of(RunFolder.open(run.path))["depth"]
    assert [(step["step"], step["label"]) for step in depth["steps"]] == [(None, "best")]
    assert depth["note"] == "The run kept no steps: train with --keep-every 500 to see them."
