"""The commands: their output, the object of --json and their exit status."""

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CONTROL, TINY, Minivit, assert_refused, in_a_shell
from PIL import Image

import minivit
from minivit.cli import COMMANDS, train
from minivit.cli.recipe_options import asked_recipe
from minivit.data import normalize
from minivit.train.recipes import load_recipe


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(cli: Minivit, command: str) -> None:
    said = cli(command, "--help")
    assert said.status == 0
    assert re.search(rf"^examples?:\n  minivit {command}", said.out, re.MULTILINE)
    assert "--json" in said.out


def test_version(cli: Minivit) -> None:
    assert cli("--version").out == f"minivit {minivit.__version__}\n"


def test_train_prints_a_line_for_each_epoch_and_the_next_commands(cli: Minivit, squares: Path) -> None:
    said = cli("train", squares, *TINY, "--epochs", 2)
    assert said.status == 0
    assert not said.err
    assert not CONTROL.search(said.out)
    epochs = [line for line in said.out.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 2
    for line in epochs:
        assert re.match(r"epoch \d/2  loss \d+\.\d+ .* %  val \d+\.\d+ .* %  [\d,]+/s  .* left$", line)
    assert re.search(r"^test accuracy \d+\.\d %", said.out, re.MULTILINE)
    assert "minivit eval runs/squares-1" in said.out
    assert Path("runs/squares-1/best/model.safetensors").exists()


def test_train_json(cli: Minivit, squares: Path) -> None:
    said = cli("train", squares, *TINY, "--epochs", 1, "--run", "here", "--json", "--threads", 1)
    assert len(said.out.splitlines()) == 1
    values = said.json()
    assert values["run"] == "here"
    assert 0 <= values["test_accuracy"] <= 1
    assert values["seconds"] > 0
    assert values["images_per_second"] > 0
    assert values["test_images"] == 10
    assert "epoch 1/1" in said.err


def test_the_digits_need_no_options(cli: Minivit) -> None:
    said = cli(
        "train", "digits", "--epochs", 1, "--warmup-epochs", 0.5, "--set", "depth=1", "--batch-size", 256, "--json"
    )
    assert said.status == 0
    assert said.json()["test_images"] == 359
    assert cli("eval", "runs/digits-1", "--json").json()["accuracy"] == said.json()["test_accuracy"]


def test_options_override_the_recipe(cli: Minivit, squares: Path) -> None:
    options: dict[str, Any] = {
        "epochs": 1, "batch_size": 7, "lr": 0.01, "schedule": "linear", "warmup_epochs": 0.5, "seed": 3,
        "optimizer": "sgd", "weight_decay": 0.1, "label_smoothing": 0.2, "validation": 0.25, "micro_batch": 2,
        "dtype": "float64",
    }  # fmt: skip
    given = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value)]
    more = ("--set", "drop_path_rate=0", "--set", "class_token=false", "--set", "global_pool=avg")
    assert cli("train", squares, *TINY, *given, *more, "--run", "here").status == 0
    recipe = json.loads(Path("here/recipe.json").read_text())
    assert {name: recipe[name] for name in options} == options
    assert recipe["dataset"] == str(squares)
    assert recipe["model_options"] == {
        "patch_size": 2, "depth": 1, "embed_dim": 8, "num_heads": 2, "drop_path_rate": 0.0, "class_token": False,
        "global_pool": "avg",
    }  # fmt: skip


def test_set_gives_any_field_of_the_recipe(cli: Minivit, squares: Path) -> None:
    Path("mine.toml").write_text('model = "vit_micro_patch4_8"\nauto_augment = "rand"\nfreeze = ["pos_embed"]\n')
    fields = {"betas": [0.8, 0.95], "choose_by": "loss", "freeze": [], "flip": True, "epochs": 1, "lr": 0.5,
              "mean": [0.5], "std": [0.25], "crop_mode": "squash"}  # fmt: skip
    texts = ("betas=0.8,0.95", "choose_by=loss", "freeze=", "flip=true", "epochs=1", "lr=0.5", "mean=[0.5]",
             "std=0.25", "crop_mode=squash")  # fmt: skip
    given = [word for text in texts for word in ("--set", text)]
    run = ("--recipe", "mine.toml", "--auto-augment", "none", "--run", "here", "--threads", 1)
    assert cli("train", squares, *TINY, *given, *run).status == 0
    recipe = json.loads(Path("here/recipe.json").read_text())
    assert {name: recipe[name] for name in fields} == fields
    assert recipe["auto_augment"] == ""
    assert cli("train", squares, *given, "--run", "here", "--resume").status == 0


def test_a_warmup_in_epochs_is_in_place_of_the_steps_of_the_recipe(cli: Minivit, squares: Path) -> None:
    Path("mine.toml").write_text('model = "vit_micro_patch4_8"\nwarmup_steps = 500\nepochs = 1\n')
    command = ("train", squares, *TINY, "--recipe", "mine.toml", "--warmup-epochs", 0.5, "--run", "here")
    assert cli(*command, "--threads", 1).status == 0
    recipe = json.loads(Path("here/recipe.json").read_text())
    assert (recipe["warmup_steps"], recipe["warmup_epochs"]) == (0, 0.5)
    assert cli(*command, "--resume").status == 0


def test_another_model_than_that_of_the_recipe_has_its_own_sizes(cli: Minivit, squares: Path) -> None:
    Path("mine.toml").write_text('model = "vit_nano_patch4_8"\nepochs = 1\n[model_options]\nmlp_ratio = 3.0\n')
    command = ("train", squares, *TINY, "--recipe", "mine.toml", "--run", "here")
    said = cli(*command, "--threads", 1)
    assert "the recipe mine.toml sets mlp_ratio for vit_nano_patch4_8; vit_micro_patch4_8 keeps its own" in said.err
    assert "mlp_ratio" not in json.loads(Path("here/recipe.json").read_text())["model_options"]
    said = cli(*command, "--resume")
    assert (said.status, said.err) == (0, ""), said


def test_a_path_of_cifar_has_the_recipe_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"")
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    assert asked_recipe(parser.parse_args([str(tmp_path)]))[0].optimizer == "muon"
    assert asked_recipe(parser.parse_args([str(tmp_path)]))[0] == load_recipe(str(tmp_path), "cifar10")


def test_images_of_a_folder_are_resized_to_the_size_of_the_model(cli: Minivit, squares: Path) -> None:
    assert cli("train", squares, *TINY, "--epochs", 1, "--set", "img_size=4x6").status == 0
    config = json.loads(Path("runs/squares-1/best/config.json").read_text())
    assert config["minivit"]["config"]["img_size"] == [4, 6]
    said = cli("predict", "runs/squares-1", squares / "test" / "left" / "0.png")
    assert "0.png (8 x 8) was resized and cropped to 4 x 6" in said.out


def test_training_on_a_terminal_draws_a_bar(cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    said = cli("train", squares, *TINY, "--epochs", 3)
    assert said.status == 0
    assert "\x1b[" in said.out
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.out).replace("\r", "\n")
    for words in ("epoch 3/3", "━", "/s", "left", "validation accuracy", "best "):
        assert words in text
    for epoch in (1, 2, 3):  # a line that stays above the bar
        assert re.search(rf"^epoch {epoch}/3  loss \d.* %  val \d.* %  [\d,]+/s\s*$", text, re.MULTILINE)


@pytest.mark.parametrize(("installed", "words"), [(None, "curves.png needs "), (True, "curves")])
def test_a_run_without_curves_says_what_they_need(
    installed: object, words: str, cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minivit.train.curves.save_curves", lambda *_: None)
    monkeypatch.setattr("minivit.cli.training.find_spec", lambda _: installed)
    said = cli("train", squares, *TINY, "--epochs", 1).out
    assert (words in said) == (installed is None)


def test_nothing_is_wider_than_80_columns(cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = [cli(*command, "--help") for command in ([], *([name] for name in COMMANDS))]
    said.append(cli("train", squares, *TINY, "--epochs", 2))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    said.append(cli("train", squares, *TINY, "--epochs", 100, "--batch-size", 100, "--json"))
    for text in (text for parts in said for text in (parts.out, parts.err)):
        shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n")
        lines = [line for line in shown.splitlines() if not line.startswith(("{", "minivit: "))]
        assert max(map(len, lines), default=0) <= 80, max(lines, key=len)


def test_eval_agrees_with_the_result_of_training(cli: Minivit, run_folder: Path) -> None:
    result = json.loads((run_folder / "result.json").read_text())
    values = cli("eval", run_folder, "--json").json()
    assert values["accuracy"] == result["test_accuracy"]
    assert values["loss"] == pytest.approx(result["test_loss"], rel=1e-6)
    assert values["images"] == 10
    assert [c["images"] for c in values["classes"]] == [5, 5]
    right = sum(c["images"] * c["accuracy"] for c in values["classes"])
    assert right / 10 == pytest.approx(values["accuracy"])

    epochs = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    held_out = cli("eval", run_folder, "--split", "validation", "--checkpoint", "last", "--json").json()
    assert held_out["accuracy"] == epochs[-1]["val_accuracy"]


def test_eval_shows_each_class(cli: Minivit, run_folder: Path, squares: Path) -> None:
    said = cli("eval", run_folder / "best" / "model.safetensors", "--dataset", squares)
    assert said.status == 0
    for words in ("left", "right", "recognised", "accuracy", "loss", "10 test images of squares"):
        assert words in said.out
    assert not CONTROL.search(said.out)


def test_predict_json(cli: Minivit, run_folder: Path, squares: Path) -> None:
    images = [squares / "test" / name / "0.png" for name in ("left", "right")]
    said = cli("predict", run_folder, *images, "--top", 2, "--json")
    assert len(said.out.splitlines()) == 1
    predictions = said.json()["predictions"]
    assert [prediction["path"] for prediction in predictions] == [str(image) for image in images]
    for prediction in predictions:
        assert {top["label"] for top in prediction["top"]} == {"left", "right"}
        first, second = (top["probability"] for top in prediction["top"])
        assert first >= second
        assert first + second == pytest.approx(1, abs=1e-5)


def test_predict_agrees_with_the_model(cli: Minivit, run_folder: Path, squares: Path) -> None:
    image = squares / "test" / "left" / "1.png"
    model, about = minivit.load_model(run_folder), minivit.weights.model_metadata(run_folder)
    pixels = np.asarray(Image.open(image))[None, :, :, None]
    logits = model(normalize(pixels, about["mean"], about["std"], np.float32))
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    for top in cli("predict", run_folder / "best", image, "--json").json()["predictions"][0]["top"]:
        assert top["probability"] == pytest.approx(float(expected[("left", "right").index(top["label"])]), rel=1e-4)


def test_predict_converts_and_resizes_images(cli: Minivit, run_folder: Path) -> None:
    Image.new("RGBA", (30, 20), (200, 10, 10, 255)).save("colour.png")
    said = cli("predict", run_folder, "colour.png")
    assert said.status == 0
    assert "colour.png (20 x 30) was resized and cropped to 8 x 8" in said.out


def test_info_of_a_model(cli: Minivit) -> None:
    values = cli("info", "vit_base_patch16_224", "--json").json()
    assert values["parameters"] == 86_567_656
    assert values["flops"] == pytest.approx(35.1e9, rel=2e-3)
    assert sum(layer["parameters"] for layer in values["layers"]) == values["parameters"]
    said = cli("info", "vit_huge_patch14_224")
    for words in ("632,045,800", "blocks.0-31.attn", "patch_embed", "334.59 G"):
        assert words in said.out


def test_info_of_a_run(cli: Minivit, run_folder: Path) -> None:
    values = cli("info", run_folder, "--json").json()
    assert values["class_names"] == ["left", "right"]
    assert values["result"]["test_accuracy"] == json.loads((run_folder / "result.json").read_text())["test_accuracy"]
    assert values["recipe"]["epochs"] == 2
    assert values["config"]["embed_dim"] == 8
    assert values["preprocessing"]["fit"] == "crop"
    said = cli("info", run_folder)
    for words in ("finished after 2 epochs", "of 10 test images", "2: left, right", "8 x 8 pixels", "whole model"):
        assert words in said.out
    assert max(len(line) for line in said.out.splitlines() if "pytest" not in line) <= 80


def test_info_of_an_unfinished_run(cli: Minivit, run_folder: Path) -> None:
    shutil.copytree(run_folder, "here")
    Path("here/result.json").unlink()
    shutil.rmtree("here/best")
    assert "2 of 2 epochs are done; --resume continues" in cli("info", "here").out
    shutil.rmtree("here/last")
    said = cli("info", "here", "--json")
    assert (said.status, said.json()["epochs"]) == (0, 2)


@pytest.mark.filterwarnings("default")
def test_info_of_a_model_file(cli: Minivit) -> None:
    model = minivit.create_model("vit_micro_patch4_8", depth=1, num_classes=500)
    names = [f"kind {i}" for i in range(500)]
    minivit.save_model(model, "m", extra={"class_names": names, "mean": [0.5], "std": [0.25], "crop_pct": 0.9})
    for path in ("m", "m/model.safetensors"):
        said = cli("info", path)
        for words in ("500: kind 0, kind 1", "crop of 90.0 % to 8 x 8, bicubic", "0.25"):
            assert words in said.out
        assert max(map(len, said.out.splitlines())) <= 80
    minivit.save_model(model, "m")
    said = cli("info", "m")
    assert "500, without names" in said.out
    assert said.err == ""
    assert cli("info", "m", "--json").json()["preprocessing"] is None


@pytest.mark.parametrize("target", ["nowhere.safetensors", "runs/nowhere"])
def test_info_of_a_file_that_does_not_exist(cli: Minivit, target: str) -> None:
    assert_refused(cli("info", target), 2, f"there is no run or model {target}")


def test_info_of_the_machine(cli: Minivit) -> None:
    values = cli("info", "--json").json()
    assert values["models"]["vit_tiny_patch4_32"]["parameters"] == 5_362_762
    assert values["numpy"] == np.__version__
    assert "numpy" in values["backends"]
    assert values["cores"] >= 1
    said = cli("info")
    assert all(name in said.out for name in minivit.PRESETS)


def test_python_m_minivit(tmp_path: Path) -> None:
    process = in_a_shell("info", "vit_micro_patch4_8", "--json", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["parameters"] == minivit.create_model("vit_micro_patch4_8").parameters.count


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["info"]], ids=" ".join)
def test_commands_do_not_import_packages_that_they_do_not_use(argv: list[str], tmp_path: Path) -> None:
    heavy = {
        "rich.progress",
        "rich.live",
        "sklearn",
        "scipy",
        "matplotlib",
        "pooch",
        "PIL",
        "safetensors",
        "hypothesis",
    }
    code = f"import sys; from minivit.cli import main; main({argv}); print('heavy:', {heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "heavy: set()"


def test_a_closed_pipe_is_not_an_error_message(tmp_path: Path) -> None:
    process = in_a_shell("info", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1
    process.stderr.close()


def test_a_recipe_by_name_and_what_it_freezes_and_averages(cli: Minivit, squares: Path) -> None:
    Path("mine.toml").write_text(
        'model = "vit_micro_patch4_8"\nepochs = 2\nswa_start = 0.5\n[model_options]\ndepth = 1\npatch_size = 2\n'
        "embed_dim = 8\nnum_heads = 2\n"
    )
    options = ("--recipe", "mine.toml", "--freeze", "patch_embed.*", "--freeze", "blocks.*", "--warmup-steps", 1)
    said = cli("train", squares, *options, "--set", "drop_path_rate=0", "--run", "here")
    assert "frozen: patch_embed.*, blocks.*; " in said.out
    assert "the averaged weights (from epoch 2 on) are evaluated and saved" in said.out
    recipe = json.loads(Path("here/recipe.json").read_text())
    assert recipe["freeze"] == ["patch_embed.*", "blocks.*"]
    assert recipe["model_options"] == {
        "depth": 1, "patch_size": 2, "embed_dim": 8, "num_heads": 2, "drop_path_rate": 0.0
    }  # fmt: skip
    assert cli("train", squares, *options, "--run", "here", "--resume", "--epochs", 3).status == 0
    said = cli("train", squares, "--recipe", "folder", "--run", "here", "--resume")
    assert said.status == 2
    assert "was started with other options: " in said.err


def test_an_unknown_recipe_lists_those_that_exist(cli: Minivit, squares: Path) -> None:
    said = cli("train", squares, "--recipe", "lamb")
    assert said.status == 2
    assert "there is no recipe 'lamb'; did you mean 'labml'? the recipes are cifar10, cifar10-30min, " in said.err


def test_the_number_of_images_of_a_folder_chooses_its_recipe(
    cli: Minivit, squares: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = ("--model", "vit_nano_patch4_8", "--epochs", 1, "--threads", 1)
    assert cli("train", squares, *options, "--run", tmp_path / "few").status == 0
    recipe = json.loads((tmp_path / "few" / "recipe.json").read_text())
    assert (recipe["batch_size"], recipe["optimizer"], recipe["crop_padding"]) == (64, "muon", 1)
    monkeypatch.setattr("minivit.train.recipes.FOLDERS", {"folder-small": 5, "folder": 10, "digits": math.inf})
    assert cli("train", squares, *options, "--run", tmp_path / "many").status == 0
    recipe = json.loads((tmp_path / "many" / "recipe.json").read_text())
    assert (recipe["optimizer"], recipe["weight_decay"]) == ("adamw", 0.5)
