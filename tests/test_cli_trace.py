"""``minivit trace``: the table by depth, where a gradient vanishes or explodes, interventions, and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, Minivit, assert_refused, save_squares
from PIL import Image

import minivit
from minivit.tracing.diagnosis import diagnose
from minivit.tracing.statistics import Statistics
from minivit.tracing.table import Row

MICRO = ("trace", "vit_micro_patch4_8", "--set", "depth=4")


def save_model(path: str = "m", **fields: Any) -> minivit.ViT:
    """Save a model of RGB images of 8 x 8 pixels with random values in its head and names of its classes."""
    model = minivit.create_model("vit_micro_patch4_8", seed=3, **{"depth": 2, "in_chans": 3, "num_classes": 3} | fields)
    head = model.parameters["head.weight"].value
    head[...] = np.random.default_rng(1).normal(size=head.shape)
    C = model.config.in_chans
    about = {"class_names": ["cat", "dog", "frog"], "mean": [0.4] * C, "std": [0.3] * C}
    minivit.save_model(model, path, extra=about)
    return model


def save_image(path: str, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def table_of(out: str) -> list[str]:
    lines = out.splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("layer "))
    return lines[first : lines.index("", first)]


def test_the_table_has_a_row_for_each_layer_by_depth_with_bars(cli: Minivit) -> None:
    said = cli(*MICRO)
    assert said.status == 0
    lines = table_of(said.out)
    assert lines[0].split()[:3] == ["layer", "|y|", "|dy|"]
    assert [line.split()[0] for line in lines[1:]] == [
        "patch_embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "norm", "head",
    ]  # fmt: skip
    assert "██" in lines[2] or "##" in lines[2]
    assert "The gradient reaches every layer" in said.out
    assert "the image is of random pixels" in said.out


def test_the_numbers_are_those_of_the_library(cli: Minivit) -> None:
    model = save_model()
    image = save_image("x.png")
    values = cli("trace", "m", "--image", image, "--label", "dog", "--json").json()
    x = ((np.asarray(Image.open(image)) / 255 - 0.4) / 0.3)[None].astype("float32")
    with minivit.ops.reference_only():
        logits, cache = model.forward(x)
        loss, loss_cache = minivit.ops.cross_entropy(logits, np.array([1]))
        model.zero_grad()
        model.backward(minivit.ops.cross_entropy_backward(1.0, loss_cache), cache)
    assert values["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert values["labels"] == [1]
    head = values["layers"][-1]
    assert head["name"] == "head"
    gradients = [model.parameters[f"head.{name}"].grad for name in ("weight", "bias")]
    assert head["dparameters"] == pytest.approx(np.sqrt(sum(float((g * g).sum()) for g in gradients)), rel=1e-4)
    assert head["y"]["norm"] == pytest.approx(float(np.linalg.norm(logits)), rel=1e-4)


def test_a_vanishing_gradient_is_marked_and_said(cli: Minivit) -> None:
    said = cli(*MICRO, "--scale", "blocks.2.dx=1e-6")
    row = next(line for line in said.out.splitlines() if line.startswith("blocks.1"))
    assert row.endswith("<- dy vanishes")
    assert "The gradient vanishes at blocks.1: |dy| is" in said.out
    assert "the next layer towards the loss" in said.out
    assert "with blocks.2.dx * 1e-06: " in said.out
    assert "without: " in said.out


def test_an_exploding_activation_and_a_gradient_of_zero_are_found(cli: Minivit) -> None:
    found = cli(*MICRO, "--scale", "blocks.1=1e5", "--json").json()["findings"]
    assert (found[0]["layer"], found[0]["kind"], found[0]["quantity"]) == ("blocks.1", "explodes", "y")
    found = cli(*MICRO, "--zero", "blocks.2.dx", "--json").json()["findings"]
    assert [(f["layer"], f["kind"]) for f in found] == [("blocks.1", "is zero")]
    assert found[0]["words"] == (
        "The gradient is exactly 0 from blocks.1 on; the layer before it in this pass is blocks.2: its weights may be "
        "zero, or its units inactive."
    )
    found = cli(*MICRO, "--zero", "blocks.1", "--json").json()["findings"]
    assert found[0]["words"] == (
        "Activations are exactly 0 from blocks.1 on: its weights may be zero, or its units inactive."
    )


def rows_of(ys: list[float], dys: list[float]) -> list[Row]:
    def row(k: int, y: float, dy: float) -> Row:
        stats = [Statistics.of(np.full(8, value)) for value in (y, dy)]
        return Row(f"blocks.{k}", "EncoderBlock", stats[0], stats[1], None, None)

    return [row(k, *pair) for k, pair in enumerate(zip(ys, dys, strict=True))]


@pytest.mark.parametrize(
    ("dys", "layer", "kind"),
    [
        ([1, 1, 1, 1], None, None),
        ([1e-5, 1e-5, 1, 1], "blocks.1", "vanishes"),
        ([1e5, 1e5, 1, 1], "blocks.1", "explodes"),
        ([1e-6, 1e-4, 1e-2, 1], "blocks.0", "vanishes"),  # by depth
        ([1, np.nan, np.nan, 1], "blocks.2", "is not finite"),
        ([0, 0, 1, 1], "blocks.1", "is zero"),
        ([5, 2, 9, 1], None, None),
    ],
)
def test_the_layer_nearest_to_the_loss_is_named(dys: list[float], layer: str | None, kind: str | None) -> None:
    findings = diagnose(rows_of([1.0] * 4, dys))
    assert [(f.layer, f.kind, f.quantity) for f in findings] == ([(layer, kind, "dy")] if layer else [])


@pytest.mark.parametrize(("ys", "layer"), [([1, 1, 1e4, 1e4], "blocks.2"), ([1, np.inf, np.inf, 1], "blocks.1")])
def test_of_activations_the_first_layer_is_named(ys: list[float], layer: str) -> None:
    assert [f.layer for f in diagnose(rows_of(ys, [1.0] * 4)) if f.quantity == "y"] == [layer]


def test_an_image_of_another_size_and_mode_is_resized_and_converted_which_is_said(cli: Minivit) -> None:
    save_model()
    said = cli("trace", "m", "--image", save_image("x.png", (20, 10), "RGBA"), save_image("y.png"), "--json")
    assert said.status == 0
    assert "x.png (10 x 20) was resized and cropped to 8 x 8 and converted from RGBA to RGB\n" in said.err
    assert "y.png" not in said.err
    assert "the model's own prediction" in said.err


def test_a_run_shows_a_test_image_of_its_data_set_with_its_label(cli: Minivit, tmp_path: Path) -> None:
    data = save_squares(tmp_path / "data")
    assert cli("train", str(data), *TINY, "--epochs", "1", "--run", "r").status == 0
    values = cli("trace", "r", "--index", "6", "--json").json()
    assert values["labels"] == [1]
    assert "right" in values["images"][0]
    assert_refused(cli("trace", "r", "--index", "99"), 2, "--index is 99", "10 test images")
    data.rename(tmp_path / "gone")
    said = cli("trace", "r")
    assert said.status == 0
    assert "random pixels" in said.out


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_a_run_on_a_prepared_folder_shows_an_image_of_it(cli: Minivit, tmp_path: Path, command: str) -> None:
    data = save_squares(tmp_path / "data")
    assert cli("prepare", data, "out", *TINY).status == 0
    assert cli(command, "out", *TINY, "--epochs", "1", "--run", "r").status == 0
    said = cli("trace", "r", "--index", "6", "--json")
    values = said.json()
    assert values["images"] == ["test image 6 of data"]
    assert values["labels"] == ([1] if command == "train" else [])
    assert "random pixels" not in said.err
    assert_refused(cli("trace", "r", "--index", "99"), 2, "--index is 99", "10 test images")


def test_a_model_without_a_head_has_no_loss(cli: Minivit) -> None:
    said = cli(*MICRO, "--set", "num_classes=0")
    assert said.status == 0
    assert "no head, so that there is no loss and no gradient" in said.out
    assert [line.split()[0] for line in table_of(said.out)[1:]][:2] == ["patch_embed", "blocks.0"]
    assert cli(*MICRO, "--set", "num_classes=0", "--json").json()["loss"] is None


def test_numbers_that_are_not_finite_are_not_shown_as_zeros(cli: Minivit) -> None:
    lines = table_of(cli(*MICRO, "--scale", "blocks.1=nan").out)
    assert lines[3].split()[:6] == ["blocks.1", "nan", "nan", "nan", "nan", "nan"]


def test_arrays_and_a_page_are_written_and_read_back(cli: Minivit) -> None:
    said = cli(*MICRO, "--at", "blocks.*.attn", "--save", "t.safetensors", "--html", "t.html")
    assert said.status == 0
    assert minivit.tracing.load_trace("t.safetensors")["blocks.2.attn"].weights.shape == (1, 4, 5, 5)
    page = Path("t.html").read_text(encoding="utf-8")
    assert "blocks.2.attn" in page
    assert "<title>Trace of vit_micro_patch4_8</title>" in page
    assert [line.split()[0] for line in table_of(said.out)[1:]] == [f"blocks.{k}.attn" for k in range(4)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vit_micro_patch4_9"], ["there is no model, run or file", "did you mean 'vit_micro_patch4_8'?"]),
        (["vit_micro_patch4_8", "--at", "blocks.0.atn"], ["did you mean 'blocks.0.attn'?"]),
        (["vit_micro_patch4_8", "--zero", "blocks.0.atn"], ["did you mean 'blocks.0.attn'?"]),
        (["vit_micro_patch4_8", "--scale", "blocks.0.attn"], ["expected NAME=NUMBER"]),
        (["vit_micro_patch4_8", "--replace", "blocks.0.attn=none.npy"], ["none.npy cannot be read"]),
        (["vit_micro_patch4_8", "--replace", "blocks.0.attn=bad.npy"], ["bad.npy is not a NumPy array"]),
        (["vit_micro_patch4_8", "--replace", "blocks.0.attn=small.npy"], ["shape (2, 3)", "(1, 5, 64)"]),
        (["vit_micro_patch4_8", "--image", "gone.png"], ["there is no file gone.png"]),
        (["vit_micro_patch4_8", "--image", "bad.npy"], ["cannot be read as an image"]),
        (["vit_micro_patch4_8", "--label", "10"], ["--label is 10", "0 to 9"]),
        (["m", "--label", "dgo"], ["not a class of the model", "did you mean 'dog'?"]),
        (["m", "--label", "DOG"], ["not a class of the model", "did you mean 'dog'?"]),
        (["m", "--label", "0", "1"], ["2 labels were given for 1 image;"]),
        (["vit_micro_patch4_8", "--seed", "-1"], ["--seed is -1"]),
        (["vit_micro_patch4_8", "--at", "block.*.attn"], ["did you mean 'blocks.*.attn'?"]),
        (["vit_micro_patch4_8", "--set", "num_classes=0", "--label", "1"], ["no head and so no classes"]),
    ],
)
def test_bad_input_is_refused_in_one_line(cli: Minivit, arguments: list[str], words: list[str]) -> None:
    save_model()
    Path("bad.npy").write_bytes(b"no array")
    np.save("small.npy", np.zeros((2, 3), np.float32))
    assert_refused(cli("trace", *arguments), 2, *words)


def test_a_model_file_without_a_head_is_traced(cli: Minivit) -> None:
    minivit.save_model(minivit.create_model("vit_micro_patch4_8", depth=1, num_classes=0), "encoder")
    said = cli("trace", "encoder")
    assert said.status == 0
    assert "the model has no head, so that there is no loss and no gradient" in said.out


def test_files_are_written_into_the_home_folder(cli: Minivit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert cli(*MICRO, "--html=~/x.html", "--save=~/y.safetensors").status == 0
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"x.html", "y.safetensors"}
    assert not Path("~").exists()
