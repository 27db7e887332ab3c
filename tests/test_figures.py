"""Measures of predictions and runs equal plain loops; every figure is drawn and is a PNG or SVG file."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from bare_vit import images, model, shaken
from command_line import TINY, Minivit, assert_refused, save_squares
from PIL import Image
from small_run import RECIPE, run_at

from minivit import RunError, UserError, create_model, explorer, load_model, save_model, trace, tracing
from minivit.arrays import Array, to_backend
from minivit.cli.figures import FIGURES, folder_names
from minivit.tracing.figures import save_figure
from minivit.train.run_folder import RunFolder

LOGITS: Array = 3 * np.random.default_rng(0).standard_normal((60, 4))
LABELS: Array = np.random.default_rng(1).integers(0, 4, 60)


def test_the_confusion_matrix_counts_each_label_and_prediction() -> None:
    expected = [[0] * 4 for _ in range(4)]
    for row, label in zip(LOGITS, LABELS, strict=True):
        expected[label][list(row).index(max(row))] += 1
    assert explorer.confusion(LOGITS, LABELS).tolist() == expected


def test_the_worst_pairs_are_those_off_the_diagonal_in_order() -> None:
    counts = np.array([[9, 0, 3], [5, 9, 0], [0, 3, 9]])
    assert explorer.worst_pairs(counts) == [(1, 0, 5), (0, 2, 3), (2, 1, 3)]
    assert explorer.worst_pairs(counts, 1) == [(1, 0, 5)]
    assert explorer.worst_pairs(np.diag([3, 4])) == []


@pytest.mark.parametrize("bins", [15, 1, 4])
def test_calibration_is_the_mean_gap_of_accuracy_and_confidence(bins: int) -> None:
    found = explorer.calibration(LOGITS, LABELS, bins)
    error, counted = 0.0, 0
    for m in range(bins):
        right, confidence = [], []
        for row, label in zip(LOGITS, LABELS, strict=True):
            exponentials = [math.exp(value) for value in row]
            largest = max(exponentials) / sum(exponentials)
            if m / bins < largest <= (m + 1) / bins:
                right.append(exponentials.index(max(exponentials)) == label)
                confidence.append(largest)
        assert found.images[m] == len(right)
        counted += len(right)
        if right:
            assert found.accuracy[m] == pytest.approx(sum(right) / len(right), abs=1e-12)
            assert found.confidence[m] == pytest.approx(sum(confidence) / len(right), abs=1e-12)
            error += len(right) / len(LABELS) * abs(sum(right) - sum(confidence)) / len(right)
        else:
            assert np.isnan(found.accuracy[m])
    assert counted == len(LABELS)
    assert found.error == pytest.approx(error, abs=1e-12)


def test_full_confidence_is_in_the_last_bin() -> None:
    found = explorer.calibration(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0]))
    assert found.images[-1] == 2
    assert found.error == 0.5


def test_labels_and_logits_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"logits are float64 \(60, 4\), labels int64 \(59,\)"):
        explorer.confusion(LOGITS, LABELS[1:])
    with pytest.raises(UserError, match="labels are from 0 to 4; expected 0 to 3"):
        explorer.calibration(LOGITS, LABELS + (LABELS == 3))
    with pytest.raises(UserError, match="bins is 0"):
        explorer.calibration(LOGITS, LABELS, 0)
    with pytest.raises(UserError, match="the logits of image 59 are not finite"):
        explorer.calibration(np.where(np.arange(60)[:, None] == 59, np.nan, LOGITS), LABELS)
    with pytest.raises(UserError, match="there are 2 class names and 4 classes"):
        explorer.plot_confusion(LOGITS, LABELS, ["a", "b"])


def test_update_ratios_are_changes_relative_to_the_weights_before() -> None:
    kept = [(0, {"a": np.array([3.0, 4.0]), "b": np.zeros(2)}), (1, {"a": np.array([3.0, 4.5]), "b": np.ones(2)}),
            (5, {"a": np.array([3.0, 4.5]), "b": np.array([3.0, 1.0])})]  # fmt: skip
    found = explorer.update_ratios(kept)
    assert found.names == ["a", "b"]
    assert found.steps.tolist() == [0, 1, 5]
    np.testing.assert_allclose(found.ratios, [[0.1, np.nan], [0.0, 2 / math.sqrt(2) / 4]], atol=1e-15)
    with pytest.raises(UserError, match="at least two; the run has 1"):
        explorer.update_ratios(kept[:1])
    with pytest.raises(UserError, match="step 0 follows step 5"):
        explorer.update_ratios([kept[2], kept[0]])


def figures() -> dict[str, Any]:
    vit, x = shaken(model(class_token=True, reg_tokens=1)), images()
    kept = [(step, {"blocks.0.a": np.full(3, 1.0 + step), "head.b": np.zeros(2)}) for step in (0, 10, 20)]
    pixels = np.random.default_rng(0).integers(0, 255, (60, 4, 9, 3), np.uint8)
    return {
        "filters": lambda: tracing.plot_filter_components(vit),
        "positions": lambda: tracing.plot_position_similarity(vit),
        "distance": lambda: tracing.plot_attention_distance(vit, x),
        "rollout": lambda: tracing.plot_attention_rollout(vit, x, titles=["<cat> & $dog", "$"]),
        "gradients": lambda: tracing.plot_gradient_flow(trace(vit, x, [0, 1])),
        "confusion": lambda: explorer.plot_confusion(LOGITS, LABELS, ["猫", "$b^{$", "c" * 99, "\x1b"], pixels),
        "all right": lambda: explorer.plot_confusion(np.eye(3), np.arange(3)),
        "many classes": lambda: explorer.plot_confusion(np.eye(50)[::-1], np.arange(50)),
        "calibration": lambda: explorer.plot_calibration(LOGITS, LABELS),
        "updates": lambda: explorer.plot_update_ratios(kept),
    }


@pytest.mark.parametrize("name", figures())
def test_a_figure_is_drawn(name: str, tmp_path: Path) -> None:
    with Image.open(save_figure(figures()[name](), tmp_path / "figure.png")) as image:
        assert min(image.size) > 150
        assert len(image.convert("L").getcolors() or range(999)) > 8  # something is drawn


def test_the_same_figure_is_the_same_svg_file(tmp_path: Path) -> None:
    first, second = (save_figure(figures()["distance"](), tmp_path / name) for name in ("a.svg", "b.SVG"))
    assert ElementTree.parse(first).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert first.read_bytes() == second.read_bytes()


def test_a_notebook_shows_a_figure() -> None:
    assert tracing.plot_filter_components(model())._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]  # not of every Figure


def test_a_figure_of_another_format_or_without_a_place_is_refused(tmp_path: Path) -> None:
    figure = tracing.plot_filter_components(model())
    with pytest.raises(UserError, match="the format 'jpg' is not known; expected png or svg"):
        save_figure(figure, tmp_path / "a.jpg")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file"):
        save_figure(figure, tmp_path / "file" / "a.png")


def test_without_matplotlib_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"figures need matplotlib; install it: .* matplotlib"):
        tracing.plot_filter_components(model())


@pytest.fixture(scope="module")
def squares_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from minivit.cli import main

    folder = tmp_path_factory.mktemp("figures")
    run = folder / "run"
    data = save_squares(folder / "squares")
    options = ["--keep-every", "2", "--epochs", "2", "--batch-size", "8", "--threads", "1", "--validation", "0.2"]
    assert main(["train", str(data), *TINY, *options, "--run", str(run)]) == 0
    return run


def test_curves_are_the_metrics_of_each_run(squares_run: Path) -> None:
    run = RunFolder.open(squares_run)
    found = explorer.curves([run])
    assert list(found) == ["run"]
    assert found["run"]["val_loss"].tolist() == [line["val_loss"] for line in run.metrics()]
    assert list(explorer.curves([run, run])) == [str(squares_run)]


def test_update_ratios_of_a_run_are_those_of_its_kept_steps(squares_run: Path) -> None:
    run = RunFolder.open(squares_run)
    found = explorer.update_ratios(run)
    assert found.steps.tolist() == list(run.kept_steps())
    first, second = (load_model(folder) for folder in list(run.kept_steps().values())[:2])
    before, now = (each.blocks[0].mlp.fc1.weight.value.astype(np.float64) for each in (first, second))
    ratio = np.linalg.norm(now - before) / np.linalg.norm(before) / (found.steps[1] - found.steps[0])
    assert found.ratios[0, found.names.index("blocks.0.mlp.fc1.weight")] == pytest.approx(ratio, rel=1e-12)


def test_figures_of_a_run_are_drawn_into_its_folder(squares_run: Path, cli: Minivit) -> None:
    said = cli("figures", str(squares_run), "--json")
    assert said.status == 0, said
    drawn = {figure["figure"]: Path(figure["path"]) for figure in said.json()["figures"]}
    assert list(drawn) == list(FIGURES)
    assert all(path.parent == squares_run / "figures" and path.exists() for path in drawn.values())


def test_figures_of_a_model_are_those_that_need_no_data(squares_run: Path, cli: Minivit, tmp_path: Path) -> None:
    said = cli("figures", str(squares_run / "best"), "--out", str(tmp_path), "--format", "svg", "--json")
    values = said.json()
    assert [figure["figure"] for figure in values["figures"]] == ["filters", "positions"]
    assert "is not a run and has no data set" in values["left_out"][0]["reason"]
    assert (tmp_path / "filters.svg").exists()


def test_figures_that_are_left_out_for_one_reason_are_said_in_one_line(
    squares_run: Path, cli: Minivit, tmp_path: Path
) -> None:
    said = cli("figures", str(squares_run / "best"), "--out", str(tmp_path))
    lines = [line for line in said.out.splitlines() if line.startswith("left out: ")]
    assert [line.split(": ")[1] for line in lines] == [
        "distance, rollout, gradients, confusion, calibration", "updates, curves",
    ]  # fmt: skip
    (tmp_path / "model.txt").write_text("no model")
    assert_refused(cli("figures", tmp_path / "model.txt"), 2, "no figure can be drawn")


def test_the_rollout_covers_pixels_of_any_size() -> None:
    vit = create_model("vit_micro_patch4_8", depth=2)
    for size in (8, 32):
        pixels = np.zeros((1, size, size, 1), np.uint8)
        figure = tracing.plot_attention_rollout(vit, np.ones((1, 8, 8, 1), np.float32), pixels)
        drawn = [image for axes in figure.axes for image in axes.get_images()]
        assert [tuple(image.get_extent()) for image in drawn] == [(-0.5, 7.5, 7.5, -0.5)] * 3


def test_pixels_on_a_device_are_drawn() -> None:
    vit, x = create_model("vit_micro_patch4_8", depth=2), np.ones((1, 8, 8, 1), np.float32)
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    there = to_backend(x, "strict"), to_backend(pixels, "strict")
    figures = [
        tracing.plot_attention_rollout(vit, x, pixels),
        tracing.plot_attention_rollout(vit.to("strict"), *there),
    ]
    host, device = (figure.axes[0].get_images()[0].get_array() for figure in figures)
    np.testing.assert_array_equal(device, host)


def test_what_is_no_vit_and_images_that_do_not_match_are_refused() -> None:
    vit: Any = create_model("vit_micro_patch4_8", depth=2)
    x = np.ones((2, 8, 8, 1), np.float32)
    for of_images in (tracing.attention_distance, tracing.attention_rollout, tracing.plot_attention_rollout):
        with pytest.raises(UserError, match="the model is of type EncoderBlock; expected a ViT"):
            of_images(vit.blocks[0], x)
    with pytest.raises(UserError, match="expected a ViT"):
        tracing.filter_components(vit.head)
    with pytest.raises(UserError, match="expected a ViT"):
        tracing.position_similarity(vit.head)
    with pytest.raises(UserError, match="gradient_flow was given a ViT; expected"):
        tracing.gradient_flow(vit)
    with pytest.raises(UserError, match="pixels has 1 image, and images 2"):
        tracing.plot_attention_rollout(vit, x, np.zeros((1, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match=r"pixels have shape \(8, 8, 1\); expected an array \(B, h, w, C\)"):
        tracing.plot_attention_rollout(vit, x, np.zeros((8, 8, 1), np.uint8))
    with pytest.raises(UserError, match="pixels are a list; expected an array"):
        tracing.plot_attention_rollout(vit, x, [np.zeros((8, 8, 1), np.uint8)] * 2)  # type: ignore[arg-type]
    logits, labels = np.eye(3)[[0, 1, 1]], np.array([0, 1, 2])
    with pytest.raises(UserError, match="pixels has 1 image, and labels 3"):
        explorer.plot_confusion(logits, labels, pixels=np.zeros((1, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match="there are no runs"):
        explorer.plot_curves([])
    others: list[dict[str, Array]] = [{"b": np.ones(2)}, {"a": np.ones(3)}, {"a": np.ones(2), "c": np.ones(2)}]
    for other in others:
        with pytest.raises(UserError, match="steps 0 and 1 have parameters of different"):
            explorer.update_ratios([(0, {"a": np.ones(2)}), (1, other)])


def test_images_of_files_are_resized_and_said(squares_run: Path, cli: Minivit, tmp_path: Path) -> None:
    Image.new("RGB", (20, 30), "red").save(tmp_path / "red.png")
    options = ("--image", str(tmp_path / "red.png"), "--only", "rollout,distance", "--out", str(tmp_path / "out"))
    said = cli("figures", str(squares_run / "best"), *options)
    assert said.status == 0, said
    assert "red.png (30 x 20) was resized and cropped to 8 x 8" in said.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["distance.png", "rollout.png"]


def test_figures_of_a_model_on_a_device(squares_run: Path, cli: Minivit, tmp_path: Path) -> None:
    said = cli("figures", squares_run, "--only", "rollout,gradients", "--backend", "strict", "--out", tmp_path / "out")
    assert said.status == 0, said


def test_several_runs_have_a_folder_each_and_their_curves_together(
    squares_run: Path, cli: Minivit, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = cli("figures", *(str(squares_run),) * 2, "--only", "filters,curves", "--out", str(out))
    assert said.status == 0, said
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == [
        "curves.png", "run-1/filters.png", "run-2/filters.png",
    ]  # fmt: skip


def test_a_command_that_draws_nothing_is_an_error(
    squares_run: Path, cli: Minivit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert_refused(cli("figures", squares_run), 2, "figures need matplotlib")


def test_what_cannot_be_drawn_is_refused_if_it_is_asked_for(squares_run: Path, cli: Minivit, tmp_path: Path) -> None:
    best = str(squares_run / "best")
    assert_refused(cli("figures", best, "--only", "curves"), 2, "is a model and not a run")
    assert_refused(cli("figures", best, "--only", "filtrs"), 2, "did you mean 'filters'?")
    assert_refused(cli("figures", str(tmp_path / "no")), 2, "there is no run or model")
    assert_refused(cli("figures", best, "--image", "no.png", "--only", "rollout"), 2, "there is no file no.png")
    save_model(
        model("float32", pos_embed="none"), tmp_path / "bare.safetensors", extra={"mean": [0.5] * 3, "std": [0.5] * 3}
    )
    bare = str(tmp_path / "bare.safetensors")
    assert_refused(cli("figures", bare, "--only", "positions"), 2, "no positions of patches")


def test_a_model_without_a_head_is_drawn(cli: Minivit, tmp_path: Path) -> None:
    save_model(create_model("vit_micro_patch4_8", depth=1, num_classes=0), tmp_path / "encoder")
    said = cli("figures", tmp_path / "encoder", "--only", "filters,positions", "--out", tmp_path / "out")
    assert said.status == 0, said


def test_the_folders_of_several_runs_have_names_of_their_own(tmp_path: Path) -> None:
    names = ["a/lr0.001", "a/lr0.01", "a/x", "b/x", "c/x-2"]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    found = folder_names([str(tmp_path / name) for name in names])
    assert found[:2] == ["lr0.001", "lr0.01"]
    assert len(set(found)) == 5


def test_the_curves_of_pre_training_have_a_loss_alone(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", replace(RECIPE, task="simmim", label_smoothing=0.0, epochs=1))
    run.write_metrics([{"epoch": 1, "step": 2, "train_loss": 0.5, "val_loss": 0.4}])
    (panel,) = explorer.plot_curves([run]).axes
    assert panel.get_ylabel() == "loss of the predicted patches"
