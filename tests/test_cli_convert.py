"""minivit convert, and the commands on files of other programs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Minivit, assert_refused, save_squares
from numpy.testing import assert_array_equal

import minivit
from minivit.cli.convert import FORMATS
from minivit.weights import model_metadata, read_tensors
from minivit.weights.formats import layouts

IMAGES = {"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bilinear"}
PLAIN: dict[str, Any] = {"img_size": 8, "in_chans": 3, "num_classes": 2, "embed_dim": 64, "depth": 1, "num_heads": 1}


def saved(path: Path, **fields: Any) -> minivit.ViT:
    model = minivit.create_model("vit_micro_patch4_8", seed=1, **PLAIN | {"norm_eps": 1e-6} | fields)
    minivit.save_model(model, path, extra=IMAGES | {"class_names": ["left", "right"], "run": "x", "step": 3})
    return model


@pytest.mark.parametrize("chosen", FORMATS)
def test_a_model_is_the_same_after_two_conversions(cli: Minivit, tmp_path: Path, chosen: str) -> None:
    of_format: dict[str, dict[str, Any]] = {
        "google": {"act_layer": "gelu_tanh"},
        "vit_pytorch": {"norm_eps": 1e-5, "embed_norm": "both", "qkv_bias": False, "num_heads": 2},
        "labml": {"norm_eps": 1e-5, "act_layer": "relu", "representation_size": 8, "representation_act": "relu"},
    }
    model = saved(tmp_path / "a", **of_format.get(chosen, {}))
    said = cli("convert", "a", "b", "--format", chosen)
    assert said.status == 0, said
    assert "read a/model.safetensors of minivit: 1 block of width 64, images of 8 x 8, 2 classes" in said.out
    assert f"in the format {chosen}" in said.out
    file = next(Path("b").glob("model.*"))
    assert cli("convert", file, "c").status == 0
    again = minivit.load_model("c")
    assert again.config == model.config
    for name, value in model.state_dict().items():
        assert_array_equal(again.state_dict()[name], value)
    assert model_metadata("c") == IMAGES | {"class_names": ["left", "right"]}


def test_every_layout_is_a_format_of_convert() -> None:
    assert set(FORMATS) == layouts().keys()


def test_the_format_follows_the_suffix(cli: Minivit, tmp_path: Path) -> None:
    saved(tmp_path / "a", act_layer="gelu_tanh")
    assert cli("convert", "a", "x.npz", "--json").json()["format"] == "google"
    assert cli("convert", "x.npz", "y.safetensors", "--json").json()["format"] == "timm"
    assert "head.weight" in read_tensors("y.safetensors")[0]


def test_a_new_head_and_another_size_are_converted_too(cli: Minivit, tmp_path: Path) -> None:
    saved(tmp_path / "a")
    assert cli("convert", "a", "b", "--set", "num_classes=5", "--set", "img_size=16").status == 0
    config = minivit.load_model("b").config
    assert (config.num_classes, config.img_size) == (5, (16, 16))
    assert "class_names" not in model_metadata("b")


def test_a_file_is_not_converted_onto_itself(cli: Minivit, tmp_path: Path) -> None:
    saved(tmp_path / "a")
    assert_refused(cli("convert", "a", "a"), 2, "is read and cannot be written too; choose another OUT")
    assert_refused(cli("convert", "a", "b.npz", "--format", "timm"), 2, "b.npz", "must end in .safetensors")


def test_files_that_belong_to_another_model_or_to_a_run_are_not_replaced(cli: Minivit, tmp_path: Path) -> None:
    saved(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "vit.safetensors")  # config.json is its own
    saved(tmp_path / "run" / "best")
    (tmp_path / "run" / "recipe.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    other = "a/config.json belongs to vit.safetensors and would be replaced; choose an OUT in another folder"
    assert_refused(cli("convert", "a/vit.safetensors", "a"), 2, other)
    refused = "run is a run, whose files stay as they are; choose another OUT"
    for target in ("run", "run/last", "run/best", "run/nan", "run/steps/step-000100"):
        assert_refused(cli("convert", "a/vit.safetensors", target), 2, refused)
    saved(tmp_path / "steps" / "run")
    (tmp_path / "steps" / "run" / "recipe.json").write_text("{}")
    assert_refused(cli("convert", "a/vit.safetensors", "steps/run/model.safetensors"), 2, f"steps/{refused}")
    shutil.rmtree(tmp_path / "steps")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_a_text_that_is_empty_is_no_path(cli: Minivit, tmp_path: Path) -> None:
    saved(tmp_path)  # in the present folder, which an empty path would be
    assert_refused(cli("convert", tmp_path, ""), 2, "target is an empty text; see `minivit convert --help`")
    assert_refused(cli("info", ""), 2, "model is an empty text")
    assert_refused(cli("train", "digits", "--freeze", ""), 2, "freeze is an empty text")


def test_info_uses_every_argument(cli: Minivit) -> None:
    for given in (("--set", "depth=3"), ("--paper", "vit_tiny_patch16_224"), ("--paper", "--set", "depth=3")):
        assert_refused(cli("info", *given), 2, "--set needs a MODEL, and --paper takes none")


def test_what_a_format_cannot_express_is_refused(cli: Minivit, tmp_path: Path) -> None:
    saved(tmp_path / "a", reg_tokens=2)
    assert_refused(cli("convert", "a", "b", "--format", "huggingface"), 2, "cannot express reg_tokens=2")


@pytest.mark.filterwarnings("default")
def test_what_a_file_does_not_say_is_asked_for_and_given_by_set(cli: Minivit, tmp_path: Path) -> None:
    fields = {"norm_eps": 1e-5, "act_layer": "relu", "representation_size": 8, "representation_act": "relu"}
    model = saved(tmp_path / "a", num_heads=4, **fields)
    minivit.save_model(model, "b", format="labml")
    tensors, _ = read_tensors("b/model.safetensors")
    minivit.weights.write_tensors("foreign.safetensors", tensors, {"format": "pt"})
    folder = save_squares(tmp_path / "squares", 2)
    for command in (["info"], ["eval", "--dataset", folder], ["convert", "c"], ["predict", folder / "test"]):
        name, *rest = command
        words = [rest.pop(0)] if rest and str(rest[0]) == "c" else []
        given = [name, "foreign.safetensors", *words, *rest]
        assert_refused(cli(*given), 2, "pass num_heads=")
        said = cli(*given, "--set", "num_heads=4", "--set", "img_size=8")
        assert said.status == 0, said


def test_a_run_begins_with_a_file_of_another_program(cli: Minivit, tmp_path: Path) -> None:
    model = saved(tmp_path / "a", num_classes=2)
    minivit.save_model(model, "hf", format="huggingface", extra=IMAGES)
    folder = save_squares(tmp_path / "squares", 2)
    said = cli("train", folder, "--init", "hf", "--epochs", 1, "--run", "r", "--threads", 1)
    assert said.status == 0, said
    assert "begins with the weights of hf, for images of 8 x 8; their head" in said.out
    assert "width 64, 1 block, nearest to vit_micro_patch4_8: " in said.out
    about = model_metadata("r")
    assert {key: about[key] for key in IMAGES} == IMAGES
    assert cli("train", folder, "--init", "hf", "--run", "r", "--resume").status == 0
    saved(tmp_path / "other", num_classes=2, num_heads=2)
    assert_refused(
        cli("train", folder, "--init", "other", "--run", "r", "--resume"), 2, "was started with other options: init is"
    )


def test_a_run_says_that_the_head_is_of_other_classes(cli: Minivit, tmp_path: Path) -> None:
    minivit.save_model(saved(tmp_path / "a", num_classes=2), "b", extra={**IMAGES, "class_names": ["cat", "dog"]})
    said = cli("train", save_squares(tmp_path / "squares", 2), "--init", "b", "--epochs", 1, "--threads", 1)
    assert "for images of 8 x 8; a head of zeros replaces that of other classes" in said.out


def test_info_describes_a_model_with_another_head(cli: Minivit, tmp_path: Path) -> None:
    saved(tmp_path / "a")
    assert "classes   3, without names" in cli("info", "a", "--set", "num_classes=3").out


def test_a_model_without_a_head_is_described_and_has_no_classes_to_predict(cli: Minivit, tmp_path: Path) -> None:
    minivit.save_model(minivit.create_model("vit_micro_patch4_8", **PLAIN | {"num_classes": 0}), "a", extra=IMAGES)
    assert "none: the model has no head" in cli("info", "a").out
    folder = save_squares(tmp_path / "squares", 2)
    for command in (["predict", "a", folder / "test"], ["eval", "a", "--dataset", folder]):
        assert_refused(cli(*command), 2, "a has no head, and so no classes; `minivit train DATA --init a` gives it one")
    said = cli("train", folder, "--init", "a", "--epochs", 1, "--threads", 1)
    assert "a head of zeros is added" in said.out


def test_a_conversion_to_timm_says_what_timm_has_not(cli: Minivit, tmp_path: Path) -> None:
    saved(tmp_path / "a", embed_norm="both")
    said = cli("convert", "a", "b")
    assert "minivit reads it; timm has no model with embed_norm='both'" in said.out
    saved(tmp_path / "c", norm_eps=1e-5)
    assert "norm_layer=partial(timm.layers.LayerNorm, eps=1e-05)" in cli("convert", "c", "d").out
    saved(tmp_path / "e")
    assert "timm." not in cli("convert", "e", "f").out


def test_info_of_a_file_says_its_format_and_fingerprint(cli: Minivit, tmp_path: Path) -> None:
    saved(tmp_path / "a")
    said = cli("info", "a", "--json").json()
    assert said["format"] == "minivit"
    assert said["fingerprint"] == minivit.weights.fingerprint("a")


def test_the_paper_s_table_1(cli: Minivit) -> None:
    rows = cli("info", "--paper", "--json").json()["models"]
    keys = ("model", "layers", "hidden_size", "mlp_size", "heads", "params_in_paper")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("ViT-Base", 12, 768, 3072, 12, "86M"),
        ("ViT-Large", 24, 1024, 4096, 16, "307M"),
        ("ViT-Huge", 32, 1280, 5120, 16, "632M"),
    ]
    for row in rows:
        printed = int(row["params_in_paper"][:-1])
        assert min(abs(count / 1e6 - printed) for count in row["parameters"].values()) < 1
    assert np.all([len(row["parameters"]) for row in rows])


def test_the_suffix_of_a_file_may_be_in_upper_case(cli: Minivit) -> None:
    saved(Path("a"))
    assert cli("convert", "a", "X.NPZ", "--json").json()["format"] == "google"
    assert Path("X.NPZ").is_file()
